//! The embedded store: one SQLite file, one writer that many callers share, and what is read often kept in memory.

mod keys;
mod open;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use base::{AccountId, Bytes, KeyId};
use sqlx::{Row, SqlitePool};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::{
    Answer, KeyInfo, LedgerEntry, OpenError, Outcome, Reservation, Settled, Settlement, Store, StoreError,
    Usage, WAIT_MAX,
};
use keys::KeyTable;
use writer::Write;

/// Writes that may wait. A group takes a few hundred microseconds for hundreds of writes, so a full queue means that
/// the disk stands still; callers then wait for a place, and for [`WAIT_MAX`] at most.
const QUEUE_MAX: usize = 1024;

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
    readers: SqlitePool,
    keys: Arc<RwLock<KeyTable>>,
    lost: u64,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl SqliteStore {
    /// Opens the store in `options.file`, or makes it. Requests that an earlier run left open are settled as lost, at
    /// `now_unix_us` (microseconds since 1970). Must be called on a tokio runtime, which then runs the writer.
    ///
    /// # Errors
    /// The file is damaged, not ours, newer, in use by another process, or cannot be written.
    pub async fn open(options: &SqliteOptions, now_unix_us: u64) -> Result<Self, OpenError> {
        let opened = open::open(options, now_unix_us).await?;
        let (writes, queue) = mpsc::channel(QUEUE_MAX);
        let keys = Arc::new(RwLock::new(opened.keys));
        let writer = writer::Writer::new(opened.writable, Arc::clone(&keys), opened.connection);
        Ok(Self {
            file: options.file.clone(),
            writes,
            readers: opened.readers,
            keys,
            lost: opened.lost,
            writer: Mutex::new(Some(tokio::spawn(writer.run(queue)))),
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

    /// Runs a query on a reading connection, within the deadline.
    async fn read<T>(&self, query: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, StoreError> {
        match timeout(WAIT_MAX, query).await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(sqlx::Error::PoolClosed)) => Err(StoreError::Closed),
            Ok(Err(error)) => Err(StoreError::from_sqlite(&self.file, &error)),
            Err(_) => Err(StoreError::TimedOut { waited: WAIT_MAX }),
        }
    }

    fn damaged(&self, what: &str) -> StoreError {
        StoreError::corrupt(&self.file, format!("unreadable {what}"))
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
        Box::pin(self.read(async move {
            let sql = "SELECT value FROM settings WHERE name = $1";
            sqlx::query_scalar(sql).bind(name).fetch_optional(&self.readers).await
        }))
    }

    fn put_setting<'a>(&'a self, name: &'a str, value: Option<&'a str>) -> Answer<'a, ()> {
        let (name, value) = (name.to_owned(), value.map(str::to_owned));
        Box::pin(self.write(move |reply| Write::PutSetting { name, value, reply }))
    }

    fn reserve(&self, reservation: Reservation) -> Answer<'_, ()> {
        Box::pin(self.write(move |reply| Write::Reserve { reservation, reply }))
    }

    fn settle(&self, settlement: Settlement) -> Answer<'_, Settled> {
        Box::pin(self.write(move |reply| Write::Settle { settlement, reply }))
    }

    fn usage(&self, account: AccountId) -> Answer<'_, Usage> {
        Box::pin(async move {
            let sql = "SELECT requests, prompt_tokens, generated_tokens, refunded_tokens, reserved_tokens FROM usage \
                       WHERE account = $1";
            let row =
                self.read(sqlx::query(sql).bind(account.to_string()).fetch_optional(&self.readers)).await?;
            let Some(row) = row else { return Ok(Usage::default()) };
            let count = |at: usize| -> Result<u64, StoreError> {
                let value: i64 = row.try_get(at).map_err(|_| self.damaged("usage"))?;
                u64::try_from(value).map_err(|_| self.damaged("usage"))
            };
            Ok(Usage {
                requests: count(0)?,
                prompt_tokens: count(1)?,
                generated_tokens: count(2)?,
                refunded_tokens: count(3)?,
                reserved_tokens: count(4)?,
            })
        })
    }

    fn ledger(&self, after: u64, count: u32) -> Answer<'_, Vec<LedgerEntry>> {
        Box::pin(async move {
            let sql = "SELECT sequence, request, account, key, model, prompt_tokens, generated_tokens, \
                       refunded_tokens, outcome, reserved_unix_us, settled_unix_us FROM ledger \
                       WHERE sequence > $1 ORDER BY sequence LIMIT $2";
            let after = i64::try_from(after).unwrap_or(i64::MAX);
            let rows = self
                .read(sqlx::query(sql).bind(after).bind(i64::from(count)).fetch_all(&self.readers))
                .await?;
            let entries =
                rows.iter().map(|row| ledger_entry(row).ok_or_else(|| self.damaged("ledger entry")));
            entries.collect()
        })
    }

    fn close(&self) -> Answer<'_, ()> {
        Box::pin(async {
            let asked = self.write(|reply| Write::Close { reply }).await;
            self.readers.close().await;
            if let Some(writer) = self.writer.lock().await.take()
                && timeout(WAIT_MAX, writer).await.is_err()
            {
                return Err(StoreError::TimedOut { waited: WAIT_MAX });
            }
            // Closing twice is no mistake.
            if matches!(asked, Err(StoreError::Closed)) { Ok(()) } else { asked }
        })
    }
}

/// The entry that a row of the ledger holds; nothing where it holds something that was never written.
fn ledger_entry(row: &sqlx::sqlite::SqliteRow) -> Option<LedgerEntry> {
    let number = |at: usize| row.try_get::<i64, _>(at).ok().and_then(|value| u64::try_from(value).ok());
    let count = |at: usize| number(at).and_then(|value| u32::try_from(value).ok());
    let text = |at: usize| row.try_get::<&str, _>(at).ok();
    Some(LedgerEntry {
        sequence: number(0)?,
        request: text(1)?.parse().ok()?,
        account: text(2)?.parse().ok()?,
        key: text(3)?.parse().ok()?,
        model: text(4)?.into(),
        prompt_tokens: count(5)?,
        generated_tokens: count(6)?,
        refunded_tokens: number(7)?,
        outcome: Outcome::from_name(text(8)?)?,
        reserved_unix_us: number(9)?,
        settled_unix_us: number(10)?,
    })
}
