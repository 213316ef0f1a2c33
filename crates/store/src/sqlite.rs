//! The embedded store: one SQLite file, one writer that many callers share, and what is read often kept in memory.

mod deployments;
mod keys;
mod open;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread;

use base::{AccountId, Bytes, KeyId, RequestId};
use rusqlite::{Connection, OptionalExtension, Row};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::{
    Answer, AuditEntry, DeploymentCall, DeploymentChange, DeploymentEvent, Kept, KeptDeployments, KeyInfo,
    KeyUsage, LedgerEntry, OpenError, Outcome, Reservation, Settled, Settlement, Store, StoreError, Usage,
    WAIT_MAX,
};
use keys::KeyTable;
use writer::{Write, group};

/// Writes that may wait. A group takes a few hundred microseconds for hundreds of writes, so a full queue means that
/// the disk stands still; callers then wait for a place, and for [`WAIT_MAX`] at most.
const QUEUE_MAX: usize = 1024;

/// A setting that is written to learn whether writing works again.
const WRITTEN: &str = "written";

/// How to open a [`SqliteStore`].
#[derive(Debug, Clone)]
pub struct SqliteOptions {
    /// The database's file; beside it lie `-wal`, `-shm` and `.lock`. Its folder is made where it is missing.
    pub file: PathBuf,
    /// The file never grows beyond this; nothing where it may fill the disk.
    pub size_max: Option<Bytes>,
}

impl SqliteOptions {
    /// A store in `file`, of any size.
    pub fn new(file: impl Into<PathBuf>) -> Self {
        Self { file: file.into(), size_max: None }
    }
}

/// A [`Store`] in one SQLite file.
pub struct SqliteStore {
    file: PathBuf,
    writes: mpsc::Sender<Write>,
    /// For listings and sums, which are rare: one at a time, beside the writer and never in its way.
    reader: Arc<Mutex<Connection>>,
    keys: Arc<RwLock<KeyTable>>,
    lost: u64,
    /// Whether the last write failed.
    failing: Arc<AtomicBool>,
    /// Gets its value, or loses its sender, when the writer has ended; gone once somebody has seen that.
    ended: tokio::sync::Mutex<Option<oneshot::Receiver<()>>>,
}

impl SqliteStore {
    /// Opens the store in `options.file`, or makes it. Requests that an earlier run left open are settled as lost, at
    /// `now_unix_us` (microseconds since 1970). Must be called on a tokio runtime, which then runs the writer.
    ///
    /// # Errors
    /// The file is damaged, not ours, newer, in use by another process, or cannot be written.
    pub async fn open(options: &SqliteOptions, now_unix_us: u64) -> Result<Self, OpenError> {
        let wanted = options.clone();
        let opened = spawn_blocking(move || open::open(&wanted, now_unix_us))
            .await
            .map_err(|_| OpenError::Store(StoreError::Closed))??;
        let (writes, queue) = mpsc::channel(QUEUE_MAX);
        let (ending, ended) = oneshot::channel();
        let keys = Arc::new(RwLock::new(opened.keys));
        let failing = Arc::new(AtomicBool::new(false));
        let writer = writer::Writer::new(
            opened.writable,
            opened.connection,
            (Arc::clone(&keys), Arc::clone(&failing)),
            writes.downgrade(),
            Handle::current(),
        );
        // A thread of its own: a flush to the disk blocks, and no worker of the runtime should.
        thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || {
                writer.run(queue);
                // Whoever closes may have gone.
                let _ = ending.send(());
            })
            .map_err(|source| OpenError::Io { file: options.file.clone(), source })?;
        Ok(Self {
            file: options.file.clone(),
            writes,
            reader: Arc::new(Mutex::new(opened.reader)),
            keys,
            lost: opened.lost,
            failing,
            ended: tokio::sync::Mutex::new(Some(ended)),
        })
    }

    /// How many requests an earlier run had left open, and were settled as lost when this one opened the store.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// The database's file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Hands a write to the writer, and waits for its answer.
    async fn write<T>(
        &self,
        write: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Write,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let asked = async {
            self.writes.send(write(reply)).await.map_err(|_| StoreError::Closed)?;
            answer.await.map_err(|_| StoreError::Closed)?
        };
        timeout(WAIT_MAX, asked).await.map_err(|_| StoreError::TimedOut { waited: WAIT_MAX })?
    }

    /// Runs a query on the reading connection, within the deadline.
    async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T, rusqlite::Error> + Send + 'static,
    ) -> Result<T, StoreError> {
        if self.writes.is_closed() {
            return Err(StoreError::Closed);
        }
        let reader = Arc::clone(&self.reader);
        let found = spawn_blocking(move || query(&reader.lock().unwrap_or_else(PoisonError::into_inner)));
        match timeout(WAIT_MAX, found).await {
            Ok(Ok(Ok(found))) => Ok(found),
            Ok(Ok(Err(error))) => Err(StoreError::from_sqlite(&self.file, &error)),
            // The runtime is going: it no longer runs what blocks.
            Ok(Err(_)) => Err(StoreError::Closed),
            Err(_) => Err(StoreError::TimedOut { waited: WAIT_MAX }),
        }
    }
}

impl Store for SqliteStore {
    fn create_key(&self, key: KeyInfo, hash: [u8; 32]) -> Answer<'_, ()> {
        Box::pin(self.write(move |reply| Write::CreateKey { key, hash, reply }))
    }

    fn keys(&self) -> Answer<'_, Vec<KeyInfo>> {
        Box::pin(async { Ok(keys::read(&self.keys).list()) })
    }

    fn revoke_key(&self, key: KeyId, unix: u64) -> Answer<'_, Option<KeyInfo>> {
        Box::pin(self.write(move |reply| Write::RevokeKey { key, unix, reply }))
    }

    fn key_by_hash(&self, hash: [u8; 32]) -> Answer<'_, Option<KeyInfo>> {
        Box::pin(async move { Ok(keys::read(&self.keys).by_hash(&hash)) })
    }

    fn setting<'a>(&'a self, name: &'a str) -> Answer<'a, Option<String>> {
        let name = name.to_owned();
        Box::pin(self.read(move |reader| {
            let sql = "SELECT value FROM settings WHERE name = ?1";
            reader.query_row(sql, [name], |row| row.get(0)).optional()
        }))
    }

    fn put_setting<'a>(&'a self, name: &'a str, value: Option<&'a str>) -> Answer<'a, ()> {
        let (name, value) = (name.to_owned(), value.map(str::to_owned));
        Box::pin(self.write(move |reply| Write::PutSetting { name, value, reply }))
    }

    fn reserve(&self, reservation: Reservation) -> Answer<'_, ()> {
        Box::pin(async move {
            let written = self.write(move |reply| Write::Reserve { reservation, reply }).await?;
            written.claim();
            Ok(())
        })
    }

    fn settle(&self, settlement: Settlement) -> Answer<'_, Settled> {
        Box::pin(self.write(move |reply| Write::Settle { settlement, reply }))
    }

    fn usage(&self, account: AccountId) -> Answer<'_, Usage> {
        Box::pin(self.read(move |reader| {
            let sql = "SELECT requests, prompt_tokens, generated_tokens, refunded_tokens, reserved_tokens,
                       charged_micros FROM usage
                       WHERE account = ?1";
            let found = reader.query_row(sql, [account.to_string()], |row| {
                Ok(Usage {
                    requests: open::count(row, 0)?,
                    prompt_tokens: open::count(row, 1)?,
                    generated_tokens: open::count(row, 2)?,
                    refunded_tokens: open::count(row, 3)?,
                    reserved_tokens: open::count(row, 4)?,
                    charged_micros: open::count(row, 5)?,
                })
            });
            Ok(found.optional()?.unwrap_or_default())
        }))
    }

    fn ledger(&self, after: u64, count: u32) -> Answer<'_, Vec<LedgerEntry>> {
        Box::pin(self.read(move |reader| {
            let sql = "SELECT sequence, request, account, key, model, prompt_tokens, generated_tokens,
                              refunded_tokens, outcome, reserved_unix_us, settled_unix_us, charged_micros
                       FROM ledger WHERE sequence > ?1 ORDER BY sequence LIMIT ?2";
            let after = i64::try_from(after).unwrap_or(i64::MAX);
            reader.prepare(sql)?.query_map((after, count), ledger_entry)?.collect()
        }))
    }

    fn settled(&self, request: RequestId) -> Answer<'_, Option<Kept>> {
        Box::pin(self.read(move |reader| {
            let sql = "SELECT sequence, request, account, key, model, prompt_tokens, generated_tokens,
                              refunded_tokens, outcome, reserved_unix_us, settled_unix_us, charged_micros, evidence
                       FROM ledger WHERE request = ?1";
            let kept = |row: &Row<'_>| Ok(Kept { entry: ledger_entry(row)?, evidence: row.get(12)? });
            reader.query_row(sql, [request.to_string()], kept).optional()
        }))
    }

    fn asked_as(&self, name: [u8; 32], since_unix_us: u64) -> Answer<'_, Option<[u8; 32]>> {
        Box::pin(self.read(move |reader| {
            let sql = "SELECT named FROM ledger WHERE named <> '' AND named >= ?1 AND named < ?2
                       AND outcome = 'completed' AND settled_unix_us > ?3 ORDER BY sequence DESC LIMIT 1";
            let first = group::hex(&name);
            let since = i64::try_from(since_unix_us).unwrap_or(i64::MAX);
            let found: Option<String> =
                reader.query_row(sql, (&first, format!("{first}g"), since), |row| row.get(0)).optional()?;
            Ok(found.and_then(|named| group::unhex(named.get(first.len()..)?)))
        }))
    }

    fn key_usage(&self) -> Answer<'_, Vec<KeyUsage>> {
        Box::pin(self.read(move |reader| {
            let sql = "SELECT key, account, model, requests, prompt_tokens, generated_tokens, charged_micros
                       FROM key_usage ORDER BY key, model";
            let entry = |row: &Row<'_>| {
                Ok(KeyUsage {
                    key: open::parsed(row, 0)?,
                    account: open::parsed(row, 1)?,
                    model: row.get::<_, String>(2)?.as_str().into(),
                    requests: open::count(row, 3)?,
                    prompt_tokens: open::count(row, 4)?,
                    generated_tokens: open::count(row, 5)?,
                    charged_micros: open::count(row, 6)?,
                })
            };
            reader.prepare(sql)?.query_map((), entry)?.collect()
        }))
    }

    fn note(&self, entry: AuditEntry) -> Answer<'_, ()> {
        Box::pin(self.write(move |reply| Write::Note { entry, reply }))
    }

    fn audit(&self, after: u64, count: u32) -> Answer<'_, Vec<AuditEntry>> {
        Box::pin(self.read(move |reader| {
            let sql =
                "SELECT sequence, at_unix_us, by_key, act, subject, detail FROM audit WHERE sequence > ?1
                       ORDER BY sequence LIMIT ?2";
            let entry = |row: &Row<'_>| {
                Ok(AuditEntry {
                    sequence: open::count(row, 0)?,
                    at_unix_us: open::count(row, 1)?,
                    by: open::parsed(row, 2)?,
                    act: row.get(3)?,
                    subject: row.get(4)?,
                    detail: row.get(5)?,
                })
            };
            let after = i64::try_from(after).unwrap_or(i64::MAX);
            reader.prepare(sql)?.query_map((after, count), entry)?.collect()
        }))
    }

    fn keep_deployments(&self, changes: Vec<DeploymentChange>) -> Answer<'_, ()> {
        Box::pin(self.write(move |reply| Write::KeepDeployments { changes, reply }))
    }

    fn deployments(&self) -> Answer<'_, KeptDeployments> {
        Box::pin(self.read(deployments::read))
    }

    fn deployment_history<'a>(&'a self, name: &'a str, count: u32) -> Answer<'a, Vec<DeploymentEvent>> {
        let name = name.to_owned();
        Box::pin(self.read(move |reader| deployments::history(reader, &name, count)))
    }

    fn deployment_call<'a>(&'a self, key: &'a str) -> Answer<'a, Option<DeploymentCall>> {
        let key = key.to_owned();
        Box::pin(self.read(move |reader| deployments::call(reader, &key)))
    }

    fn writable(&self) -> Answer<'_, ()> {
        Box::pin(async {
            if self.writes.is_closed() {
                return Err(StoreError::Closed);
            }
            if !self.failing.load(Ordering::Relaxed) {
                return Ok(());
            }
            self.put_setting(WRITTEN, Some("yes")).await
        })
    }

    fn close(&self) -> Answer<'_, ()> {
        Box::pin(async {
            let asked = self.write(|reply| Write::Close { reply }).await;
            let mut ended = self.ended.lock().await;
            if let Some(end) = ended.as_mut() {
                // A lost sender is the writer's end, too.
                let seen = timeout(WAIT_MAX, end).await;
                seen.map_err(|_| StoreError::TimedOut { waited: WAIT_MAX })?.ok();
                *ended = None;
            }
            // Closing twice is no mistake.
            if matches!(asked, Err(StoreError::Closed)) { Ok(()) } else { asked }
        })
    }
}

fn ledger_entry(row: &Row<'_>) -> Result<LedgerEntry, rusqlite::Error> {
    let outcome: String = row.get(8)?;
    Ok(LedgerEntry {
        sequence: open::count(row, 0)?,
        request: open::parsed(row, 1)?,
        account: open::parsed(row, 2)?,
        key: open::parsed(row, 3)?,
        model: row.get::<_, String>(4)?.as_str().into(),
        prompt_tokens: row.get(5)?,
        generated_tokens: row.get(6)?,
        refunded_tokens: open::count(row, 7)?,
        outcome: Outcome::from_name(&outcome).ok_or_else(|| open::unreadable(8, "outcome"))?,
        reserved_unix_us: open::count(row, 9)?,
        settled_unix_us: open::count(row, 10)?,
        charged_micros: open::count(row, 11)?,
    })
}
