//! Opening the file: alone, whole, ours, of a schema that is known; and what an earlier run left open is settled.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use base::Bytes;
use rusqlite::types::Type;
use rusqlite::{Connection, OpenFlags, Row};

use super::SqliteOptions;
use super::keys::KeyTable;
use crate::{KeyInfo, KeyTerms, OpenError, StoreError};

/// "PHLX" in the file's header, so that no other program's database is taken for ours.
const APPLICATION_ID: i64 = 0x5048_4c58;

/// Each brings a file from its index to the next schema. Never changed once released, only added to.
const MIGRATIONS: [&str; 4] = [
    concat!(
        "BEGIN IMMEDIATE;",
        include_str!("schema.sql"),
        "PRAGMA application_id = 1346915416; PRAGMA user_version = 1; COMMIT;"
    ),
    concat!("BEGIN IMMEDIATE;", include_str!("accounts.sql"), "PRAGMA user_version = 2; COMMIT;"),
    concat!("BEGIN IMMEDIATE;", include_str!("deployments.sql"), "PRAGMA user_version = 3; COMMIT;"),
    concat!("BEGIN IMMEDIATE;", include_str!("receipts.sql"), "PRAGMA user_version = 4; COMMIT;"),
];

/// Requests that were open when an earlier run ended are over: charged nothing, given back whole.
const SETTLE_LOST: [&str; 4] = [
    "INSERT INTO ledger (request, account, key, model, prompt_tokens, generated_tokens, refunded_tokens, outcome,
                         reserved_unix_us, settled_unix_us)
        SELECT request, account, key, model, 0, 0, prompt_tokens + max_tokens, 'lost', reserved_unix_us, ?1
        FROM reservations ORDER BY reserved_unix_us",
    "UPDATE usage SET
        requests = requests + lost.count,
        refunded_tokens = refunded_tokens + lost.tokens,
        reserved_tokens = reserved_tokens - lost.tokens
        FROM (SELECT account, count(*) AS count, sum(prompt_tokens + max_tokens) AS tokens
              FROM reservations GROUP BY account) AS lost
        WHERE lost.account = usage.account",
    "INSERT INTO key_usage (key, model, account, requests, prompt_tokens, generated_tokens, charged_micros)
        SELECT key, model, min(account), count(*), 0, 0, 0 FROM reservations WHERE true GROUP BY key, model
        ON CONFLICT (key, model) DO UPDATE SET requests = requests + excluded.requests",
    "DELETE FROM reservations",
];

/// A file up to this size is read whole at the start, and any damage found: a second on a slow disk.
const CHECKED_BYTES_MAX: u64 = 64 << 20;

/// The smallest page count that SQLite can hold the schema in.
const PAGES_MIN: u64 = 32;
const PAGE_BYTES: u64 = 4096;

/// How long to wait for another process's lock. Nobody else writes, so only a database tool can hold one.
const BUSY_WAIT: Duration = Duration::from_secs(2);

/// How the writer reaches the file, again after a failure too; and the lock that keeps other processes out.
pub(super) struct Writable {
    pub(super) file: PathBuf,
    size_max: Option<Bytes>,
    _lock: File,
}

impl Writable {
    /// A fresh connection for the writer.
    pub(super) fn connect(&self) -> Result<Connection, StoreError> {
        self.try_connect().map_err(|error| StoreError::from_sqlite(&self.file, &error))
    }

    fn try_connect(&self) -> Result<Connection, rusqlite::Error> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.file, flags)?;
        connection.busy_timeout(BUSY_WAIT)?;
        // Each commit is flushed to the disk before it is answered.
        connection.pragma_update(None, "synchronous", "FULL")?;
        if let Some(size) = self.size_max {
            connection.pragma_update(None, "max_page_count", (size.0 / PAGE_BYTES).max(PAGES_MIN) as i64)?;
        }
        Ok(connection)
    }
}

/// Everything that a store begins with.
pub(super) struct Opened {
    pub(super) writable: Writable,
    pub(super) connection: Connection,
    pub(super) reader: Connection,
    pub(super) keys: KeyTable,
    pub(super) lost: u64,
}

pub(super) fn open(options: &SqliteOptions, now_unix_us: u64) -> Result<Opened, OpenError> {
    let file = options.file.as_path();
    let lock = claim(file)?;
    let writable = Writable { file: file.to_owned(), size_max: options.size_max, _lock: lock };
    let mut connection = writable.connect()?;
    let failed = |error: rusqlite::Error| StoreError::from_sqlite(file, &error);
    check(file, &connection)?;
    // Readers and the writer do not wait for each other, and a commit is one write to one file.
    connection.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
    migrate(file, &connection)?;
    let lost = settle_lost(&mut connection, now_unix_us).map_err(failed)?;
    if lost > 0 {
        tracing::warn!(requests = lost, "requests left open by an earlier run are settled as lost");
    }
    let keys = load_keys(&connection).map_err(|error| unreadable_row(file, &error))?;
    let reader =
        Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)
            .and_then(|reader| reader.busy_timeout(BUSY_WAIT).map(|()| reader))
            .map_err(failed)?;
    Ok(Opened { writable, connection, reader, keys, lost })
}

/// Makes the folder and the file where they are missing, for this user alone, and locks out other processes.
fn claim(file: &Path) -> Result<File, OpenError> {
    let io = |source: io::Error| OpenError::Io { file: file.to_owned(), source };
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).map_err(io)?;
    }
    let mut options = OpenOptions::new();
    options.create(true).write(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let lock_file = file.with_added_extension("lock");
    let lock = options.open(&lock_file).map_err(|source| OpenError::Io { file: lock_file, source })?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(OpenError::InUse { file: file.to_owned() }),
        Err(TryLockError::Error(source)) => return Err(io(source)),
    }
    options.open(file).map_err(io)?;
    Ok(lock)
}

/// Refuses a file that is not ours, or does not hold together.
fn check(file: &Path, connection: &Connection) -> Result<(), OpenError> {
    let failed = |error: rusqlite::Error| StoreError::from_sqlite(file, &error);
    let number = |sql: &str| connection.query_row(sql, (), |row| row.get::<_, i64>(0)).map_err(failed);
    let application = number("PRAGMA application_id")?;
    let fresh = application == 0 && number("SELECT count(*) FROM sqlite_schema")? == 0;
    if application != APPLICATION_ID && !fresh {
        return Err(OpenError::NotOurs { file: file.to_owned() });
    }
    let length =
        std::fs::metadata(file).map_err(|source| OpenError::Io { file: file.to_owned(), source })?.len();
    if !fresh && length <= CHECKED_BYTES_MAX {
        let found: String =
            connection.query_row("PRAGMA quick_check(1)", (), |row| row.get(0)).map_err(failed)?;
        if found != "ok" {
            return Err(StoreError::corrupt(file, found).into());
        }
    }
    Ok(())
}

/// Brings the file to the schema of this build.
fn migrate(file: &Path, connection: &Connection) -> Result<(), OpenError> {
    let failed = |error: rusqlite::Error| StoreError::from_sqlite(file, &error);
    let found: i64 = connection.query_row("PRAGMA user_version", (), |row| row.get(0)).map_err(failed)?;
    let known = MIGRATIONS.len() as i64;
    let Some(missing) = usize::try_from(found).ok().and_then(|found| MIGRATIONS.get(found..)) else {
        return Err(OpenError::Newer { file: file.to_owned(), found, known });
    };
    for migration in missing {
        connection.execute_batch(migration).map_err(failed)?;
    }
    Ok(())
}

/// Gives how many requests were open.
fn settle_lost(connection: &mut Connection, now_unix_us: u64) -> Result<u64, rusqlite::Error> {
    let now = i64::try_from(now_unix_us).unwrap_or(i64::MAX);
    let transaction = connection.transaction()?;
    let [to_ledger, sums, key_sums, clear] = SETTLE_LOST;
    let lost = transaction.execute(to_ledger, [now])?;
    transaction.execute(sums, ())?;
    transaction.execute(key_sums, ())?;
    transaction.execute(clear, ())?;
    transaction.commit()?;
    Ok(lost as u64)
}

fn load_keys(connection: &Connection) -> Result<KeyTable, rusqlite::Error> {
    let sql = "SELECT id, account, name, admin, hash, ends_with, created_unix, revoked_unix, terms
               FROM keys ORDER BY sequence";
    let mut keys = KeyTable::default();
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query(())?;
    while let Some(row) = rows.next()? {
        let key = KeyInfo {
            id: parsed(row, 0)?,
            account: parsed(row, 1)?,
            name: row.get(2)?,
            admin: row.get(3)?,
            ends_with: row.get(5)?,
            created_unix: count(row, 6)?,
            revoked_unix: row.get::<_, Option<i64>>(7)?.map(i64::unsigned_abs),
            terms: terms(row, 8)?,
        };
        keys.insert(key, row.get(4)?);
    }
    Ok(keys)
}

/// Terms that this build does not know are no terms to go by: the key is not let in with fewer than it was given.
fn terms(row: &Row<'_>, at: usize) -> Result<KeyTerms, rusqlite::Error> {
    let text: String = row.get(at)?;
    serde_json::from_str(&text)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(at, Type::Text, Box::new(error)))
}

/// The identity that a column holds as text.
pub(super) fn parsed<T: FromStr>(row: &Row<'_>, at: usize) -> Result<T, rusqlite::Error>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let text: String = row.get(at)?;
    text.parse().map_err(|error| rusqlite::Error::FromSqlConversionFailure(at, Type::Text, Box::new(error)))
}

/// The number that a column holds; SQLite's integers are signed, and none of ours is negative.
pub(super) fn count(row: &Row<'_>, at: usize) -> Result<u64, rusqlite::Error> {
    let value: i64 = row.get(at)?;
    u64::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(at, value))
}

/// The error of a column that holds something which was never written there.
pub(super) fn unreadable(at: usize, what: &str) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(at, Type::Text, format!("unknown {what}").into())
}

/// A row of another shape than was written is damage, whatever SQLite thinks of the file.
pub(super) fn unreadable_row(file: &Path, error: &rusqlite::Error) -> StoreError {
    match error {
        rusqlite::Error::SqliteFailure(..) => StoreError::from_sqlite(file, error),
        other => StoreError::corrupt(file, other.to_string()),
    }
}
