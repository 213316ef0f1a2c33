//! Opening the file: alone, whole, ours, of a schema that is known; and what an earlier run left open is settled.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Row, SqlitePool};

use super::SqliteOptions;
use super::keys::KeyTable;
use crate::{KeyInfo, OpenError, StoreError, WAIT_MAX};

/// "PHLX" in the file's header, so that no other program's database is taken for ours.
const APPLICATION_ID: i64 = 0x5048_4c58;

/// Each brings a file from its index to the next schema. Never changed once released, only added to.
const MIGRATIONS: [&str; 1] = [concat!(
    "BEGIN IMMEDIATE;",
    include_str!("schema.sql"),
    "PRAGMA application_id = 1346915416; PRAGMA user_version = 1; COMMIT;"
)];

/// Requests that were open when an earlier run ended are over: charged nothing, given back whole.
const SETTLE_LOST: &str = "BEGIN IMMEDIATE;
    INSERT INTO ledger (request, account, key, model, prompt_tokens, generated_tokens, refunded_tokens, outcome,
                        reserved_unix_us, settled_unix_us)
        SELECT request, account, key, model, 0, 0, prompt_tokens + max_tokens, 'lost', reserved_unix_us, $1
        FROM reservations ORDER BY reserved_unix_us;
    UPDATE usage SET
        requests = requests + lost.requests,
        refunded_tokens = refunded_tokens + lost.tokens,
        reserved_tokens = reserved_tokens - lost.tokens
        FROM (SELECT account, count(*) AS requests, sum(prompt_tokens + max_tokens) AS tokens
              FROM reservations GROUP BY account) AS lost
        WHERE lost.account = usage.account;
    DELETE FROM reservations;
    COMMIT;";

/// A file up to this size is read whole at the start, and any damage found: a second on a slow disk.
const CHECKED_BYTES_MAX: u64 = 64 << 20;

/// The smallest page count that SQLite can hold the schema in.
const PAGES_MIN: u64 = 16;
const PAGE_BYTES: u64 = 4096;

/// Connections that read (listings, sums): rare, and none waits for the writer.
const READERS_MAX: u32 = 2;

/// How the writer reaches the file, again after a failure too; and the lock that keeps other processes out.
pub(super) struct Writable {
    pub(super) file: PathBuf,
    options: SqliteConnectOptions,
    _lock: File,
}

impl Writable {
    /// A fresh connection for the writer.
    pub(super) async fn connect(&self) -> Result<SqliteConnection, StoreError> {
        self.options.connect().await.map_err(|error| StoreError::from_sqlite(&self.file, &error))
    }
}

/// Everything that a store begins with.
pub(super) struct Opened {
    pub(super) writable: Writable,
    pub(super) connection: SqliteConnection,
    pub(super) readers: SqlitePool,
    pub(super) keys: KeyTable,
    pub(super) lost: u64,
}

pub(super) async fn open(options: &SqliteOptions, now_unix_us: u64) -> Result<Opened, OpenError> {
    let file = options.file.as_path();
    let lock = claim(file)?;
    let connect = SqliteConnectOptions::new()
        .filename(file)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(false)
        .busy_timeout(Duration::from_secs(2))
        .disable_statement_logging();
    let limited = match options.size_max {
        Some(size) => {
            connect.clone().pragma("max_page_count", (size.0 / PAGE_BYTES).max(PAGES_MIN).to_string())
        }
        None => connect.clone(),
    };
    let writable = Writable { file: file.to_owned(), options: limited, _lock: lock };
    let mut connection = writable.connect().await?;
    let failed = |error: sqlx::Error| StoreError::from_sqlite(file, &error);
    check(file, &mut connection).await?;
    // Readers and the writer do not wait for each other, and a commit is one write to one file.
    sqlx::query("PRAGMA journal_mode = WAL").execute(&mut connection).await.map_err(failed)?;
    migrate(file, &mut connection).await?;
    let lost: i64 = sqlx::query_scalar("SELECT count(*) FROM reservations")
        .fetch_one(&mut connection)
        .await
        .map_err(failed)?;
    if lost > 0 {
        let now = i64::try_from(now_unix_us).unwrap_or(i64::MAX);
        sqlx::query(SETTLE_LOST).bind(now).execute(&mut connection).await.map_err(failed)?;
        tracing::warn!(requests = lost, "requests left open by an earlier run are settled as lost");
    }
    let keys = load_keys(file, &mut connection).await?;
    let readers = SqlitePoolOptions::new()
        .max_connections(READERS_MAX)
        .acquire_timeout(WAIT_MAX)
        .connect_lazy_with(connect.read_only(true));
    Ok(Opened { writable, connection, readers, keys, lost: lost.unsigned_abs() })
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
async fn check(file: &Path, connection: &mut SqliteConnection) -> Result<(), OpenError> {
    let failed = |error: sqlx::Error| StoreError::from_sqlite(file, &error);
    let application: i64 =
        sqlx::query_scalar("PRAGMA application_id").fetch_one(&mut *connection).await.map_err(failed)?;
    let tables: i64 = sqlx::query_scalar("SELECT count(*) FROM sqlite_schema")
        .fetch_one(&mut *connection)
        .await
        .map_err(failed)?;
    let fresh = application == 0 && tables == 0;
    if application != APPLICATION_ID && !fresh {
        return Err(OpenError::NotOurs { file: file.to_owned() });
    }
    let length =
        std::fs::metadata(file).map_err(|source| OpenError::Io { file: file.to_owned(), source })?.len();
    if !fresh && length <= CHECKED_BYTES_MAX {
        let found: String =
            sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(&mut *connection).await.map_err(failed)?;
        if found != "ok" {
            return Err(StoreError::corrupt(file, found).into());
        }
    }
    Ok(())
}

/// Brings the file to the schema of this build.
async fn migrate(file: &Path, connection: &mut SqliteConnection) -> Result<(), OpenError> {
    let failed = |error: sqlx::Error| StoreError::from_sqlite(file, &error);
    let found: i64 =
        sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut *connection).await.map_err(failed)?;
    let known = MIGRATIONS.len() as i64;
    let Some(missing) = usize::try_from(found).ok().and_then(|found| MIGRATIONS.get(found..)) else {
        return Err(OpenError::Newer { file: file.to_owned(), found, known });
    };
    for migration in missing {
        sqlx::raw_sql(*migration).execute(&mut *connection).await.map_err(failed)?;
    }
    Ok(())
}

async fn load_keys(file: &Path, connection: &mut SqliteConnection) -> Result<KeyTable, StoreError> {
    let sql = "SELECT id, account, name, admin, hash, ends_with, created_unix, revoked_unix FROM keys ORDER BY sequence";
    let rows = sqlx::query(sql)
        .fetch_all(connection)
        .await
        .map_err(|error| StoreError::from_sqlite(file, &error))?;
    let mut keys = KeyTable::default();
    for row in &rows {
        let (key, hash) =
            key_of(row).ok_or_else(|| StoreError::corrupt(file, "unreadable key".to_owned()))?;
        keys.insert(key, hash);
    }
    Ok(keys)
}

/// The key that a row holds; nothing where it holds something that was never written.
fn key_of(row: &sqlx::sqlite::SqliteRow) -> Option<(KeyInfo, [u8; 32])> {
    let text = |at: usize| row.try_get::<&str, _>(at).ok();
    let seconds = |at: usize| row.try_get::<Option<i64>, _>(at).ok();
    let key = KeyInfo {
        id: text(0)?.parse().ok()?,
        account: text(1)?.parse().ok()?,
        name: text(2)?.to_owned(),
        admin: row.try_get::<bool, _>(3).ok()?,
        ends_with: text(5)?.to_owned(),
        created_unix: u64::try_from(seconds(6)??).ok()?,
        revoked_unix: seconds(7)?.map(u64::try_from).transpose().ok()?,
    };
    let hash = row.try_get::<&[u8], _>(4).ok()?.try_into().ok()?;
    Some((key, hash))
}
