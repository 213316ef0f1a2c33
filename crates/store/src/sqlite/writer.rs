//! The one thread that writes: it takes all that waits, writes it as one transaction, and answers everybody.
//!
//! Group commit: what makes a write durable is the disk's flush (150 us on the machine this was built on, milliseconds
//! on others), and it costs the same for one row and for five hundred. While a group is being written the next one
//! gathers; and where many follow each other they begin a moment apart, since a thousand requests a second would else be a
//! thousand and a half transactions, whose statements, pages and locks took a tenth of two cores (`bench gateway`).

pub(super) mod group;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant, SystemTime};

use base::{KeyId, RequestId};
use rusqlite::{Connection, params};
use tokio::runtime::Handle;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::deployments;
use super::keys::{self, KeyTable};
use super::open::Writable;
use crate::{AuditEntry, DeploymentChange, KeyInfo, Outcome, Reservation, Settled, Settlement, StoreError};
use group::{Ending, Group};

pub(super) use group::whole;

/// Rows in one transaction at most: what a group takes stays far below the deadline of who waits behind it.
const GROUP_MAX: usize = 512;

/// Groups begin so far apart, on average, where they follow each other.
const APART: Duration = Duration::from_millis(2);
/// But so many of those may have begun early: what a few requests write is written at once.
const EARLY: Duration = Duration::from_millis(8);

/// How long to wait, where nothing else is written, before settlements that failed are tried again.
const RETRY: Duration = Duration::from_secs(1);

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// Something to write, and where its answer goes.
pub(super) enum Write {
    Reserve { reservation: Reservation, reply: Reply<Unclaimed> },
    Settle { settlement: Settlement, reply: Reply<Settled> },
    CreateKey { key: KeyInfo, hash: [u8; 32], reply: Reply<()> },
    RevokeKey { key: KeyId, unix: u64, reply: Reply<Option<KeyInfo>> },
    PutSetting { name: String, value: Option<String>, reply: Reply<()> },
    Note { entry: AuditEntry, reply: Reply<()> },
    KeepDeployments { changes: Vec<DeploymentChange>, reply: Reply<()> },
    Close { reply: Reply<()> },
}

/// A reservation that was written and whose caller has not taken note of it yet. Where the caller went, this is dropped
/// wherever it is on its way, and the reservation is settled as cancelled: a client that goes leaves none open.
pub(super) struct Unclaimed {
    reservation: Option<(RequestId, u64)>,
    way: Arc<Way>,
}

/// The way from the writer to the runtime, and back.
struct Way {
    runtime: Handle,
    writes: mpsc::WeakSender<Write>,
}

impl Unclaimed {
    /// The caller has it.
    pub(super) fn claim(mut self) {
        self.reservation = None;
    }
}

impl Drop for Unclaimed {
    fn drop(&mut self) {
        // A store that is closing settles it as lost when it is opened again.
        let (Some((request, reserved_at)), Some(writes)) =
            (self.reservation.take(), self.way.writes.upgrade())
        else {
            return;
        };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let settlement = Settlement {
            request,
            prompt_tokens: 0,
            generated_tokens: 0,
            outcome: Outcome::Cancelled,
            at_unix_us: u64::try_from(now.as_micros()).unwrap_or(u64::MAX).max(reserved_at),
            evidence: String::new(),
            named: None,
        };
        let (reply, _nobody) = oneshot::channel();
        if let Err(TrySendError::Full(write)) = writes.try_send(Write::Settle { settlement, reply }) {
            // Ends with the writer, which never leaves the queue standing.
            let _task = self.way.runtime.spawn(async move { writes.send(write).await.is_ok() });
        }
    }
}

/// The thread's state.
pub(super) struct Writer {
    writable: Writable,
    /// Nothing after a failure: the next write connects again, which also ends whatever transaction was left.
    connection: Option<Connection>,
    keys: Arc<RwLock<KeyTable>>,
    /// Whether the last write failed.
    failing: Arc<AtomicBool>,
    /// Reservations that are on the disk and not settled: as many as there are requests in flight.
    open: HashMap<RequestId, Reservation>,
    /// Settlements that failed, to be written with the next group. At most one for each reservation on the disk.
    pending: Vec<Ending>,
    way: Arc<Way>,
}

impl Writer {
    /// A writer for what comes through `writes`. Answers are given on `runtime`.
    pub(super) fn new(
        writable: Writable,
        connection: Connection,
        (keys, failing): (Arc<RwLock<KeyTable>>, Arc<AtomicBool>),
        writes: mpsc::WeakSender<Write>,
        runtime: Handle,
    ) -> Self {
        let way = Arc::new(Way { runtime, writes });
        Self {
            writable,
            connection: Some(connection),
            keys,
            failing,
            open: HashMap::new(),
            pending: Vec::new(),
            way,
        }
    }

    /// Writes until it is told to close, or nobody can ask any more. Blocks.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Write>) {
        let mut failed = false;
        let mut due = Instant::now();
        let closing = loop {
            let first = if failed && !self.pending.is_empty() {
                let waited = self.way.runtime.block_on(async { timeout(RETRY, queue.recv()).await });
                waited.map_or(Some(None), |got| got.map(Some))
            } else {
                queue.blocking_recv().map(Some)
            };
            let Some(first) = first else { break None };
            if let Some(early) = due.checked_duration_since(Instant::now() + EARLY) {
                // A pace, not a wait for something: nobody unparks it.
                std::thread::park_timeout(early);
            }
            due = due.max(Instant::now()) + APART;
            let mut group = Group { settled: std::mem::take(&mut self.pending), ..Group::default() };
            let mut alone = first.and_then(|write| self.take(write, &mut group));
            let mut taken = 1;
            while alone.is_none()
                && taken < GROUP_MAX
                && let Ok(write) = queue.try_recv()
            {
                alone = self.take(write, &mut group);
                taken += 1;
            }
            failed = !self.write_group(group);
            match alone {
                Some(Write::Close { reply }) => break Some(reply),
                Some(write) => self.write_alone(write),
                None => {}
            }
        };
        queue.close();
        self.finish();
        if let Some(reply) = closing {
            let _ = reply.send(Ok(()));
        }
    }

    /// Puts a write into the group, or gives it back where it is written by itself.
    fn take(&mut self, write: Write, group: &mut Group) -> Option<Write> {
        match write {
            Write::Reserve { reservation, reply } => {
                match self.open.entry(reservation.request) {
                    Entry::Vacant(place) => {
                        place.insert(reservation.clone());
                        group.reserved.push((reservation, reply));
                    }
                    Entry::Occupied(place) => {
                        let _ = reply.send(Err(StoreError::AlreadyReserved { request: *place.key() }));
                    }
                }
                None
            }
            Write::Settle { settlement, reply } => {
                let request = settlement.request;
                match self.open.remove(&request) {
                    Some(reservation) => {
                        group.settled.push(Ending { settlement, reservation, reply: Some(reply) });
                    }
                    None => {
                        let _ = reply.send(Err(StoreError::NotReserved { request }));
                    }
                }
                None
            }
            other => Some(other),
        }
    }

    /// Writes a group and answers its callers. Gives whether it was written.
    fn write_group(&mut self, group: Group) -> bool {
        if group.is_empty() {
            return true;
        }
        let written = self.execute(|connection| group.write(connection));
        match &written {
            Ok(()) => self.answer(group),
            Err(error) => self.give_up(group, error),
        }
        written.is_ok()
    }

    /// Answers on the runtime: there a caller's task is woken without a trip to the kernel, and here the next group
    /// does not wait for it.
    fn answer(&self, group: Group) {
        let way = Arc::clone(&self.way);
        let _task = self.way.runtime.spawn(async move {
            for (reservation, reply) in group.reserved {
                let written = Some((reservation.request, reservation.at_unix_us));
                let _ = reply.send(Ok(Unclaimed { reservation: written, way: Arc::clone(&way) }));
            }
            for ending in group.settled {
                let settled = ending.settled();
                if let Some(reply) = ending.reply {
                    let _ = reply.send(Ok(settled));
                }
            }
        });
    }

    fn give_up(&mut self, group: Group, error: &StoreError) {
        let mut unmade = HashSet::new();
        for (reservation, reply) in group.reserved {
            self.open.remove(&reservation.request);
            unmade.insert(reservation.request);
            let _ = reply.send(Err(error.clone()));
        }
        for mut ending in group.settled {
            if let Some(reply) = ending.reply.take() {
                let _ = reply.send(Err(error.clone()));
            }
            if !unmade.contains(&ending.reservation.request) {
                self.pending.push(ending);
            }
        }
    }

    /// Runs statements on the connection. It is made anew after a failure, which also ends whatever transaction or lock
    /// was left.
    fn execute(
        &mut self,
        work: impl FnOnce(&mut Connection) -> Result<(), rusqlite::Error>,
    ) -> Result<(), StoreError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => match self.writable.connect() {
                Ok(connection) => connection,
                Err(error) => {
                    self.failing.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            },
        };
        match work(&mut connection) {
            Ok(()) => {
                self.failing.store(false, Ordering::Relaxed);
                self.connection = Some(connection);
                Ok(())
            }
            Err(error) => {
                self.failing.store(true, Ordering::Relaxed);
                let error = StoreError::from_sqlite(&self.writable.file, &error);
                tracing::error!(error = &error as &dyn std::error::Error, "a write to the store failed");
                Err(error)
            }
        }
    }

    fn write_alone(&mut self, write: Write) {
        match write {
            Write::CreateKey { key, hash, reply } => {
                let _ = reply.send(self.create_key(key, hash));
            }
            Write::RevokeKey { key, unix, reply } => {
                let _ = reply.send(self.revoke_key(key, unix));
            }
            Write::PutSetting { name, value, reply } => {
                let _ = reply.send(self.put_setting(name, value));
            }
            Write::Note { entry, reply } => {
                let _ = reply.send(self.note(&entry));
            }
            Write::KeepDeployments { changes, reply } => {
                let kept = self.execute(|connection| deployments::write(connection, &changes));
                let _ = reply.send(kept);
            }
            Write::Reserve { .. } | Write::Settle { .. } | Write::Close { .. } => {
                unreachable!("taken into the group, or the end of the loop")
            }
        }
    }

    fn create_key(&mut self, key: KeyInfo, hash: [u8; 32]) -> Result<(), StoreError> {
        if keys::read(&self.keys).has(key.id, &hash) {
            return Err(StoreError::KeyExists);
        }
        let sql =
            "INSERT INTO keys (id, account, name, admin, hash, ends_with, created_unix, revoked_unix, terms)
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
        let terms = serde_json::to_string(&key.terms).expect("terms have no map keys that JSON lacks");
        self.execute(|connection| {
            let (id, account) = (key.id.to_string(), key.account.to_string());
            let (created, revoked) = (whole(key.created_unix), key.revoked_unix.map(whole));
            let values =
                params![id, account, key.name, key.admin, hash, key.ends_with, created, revoked, terms];
            connection.execute(sql, values).map(drop)
        })?;
        keys::write(&self.keys).insert(key, hash);
        Ok(())
    }

    fn revoke_key(&mut self, id: KeyId, unix: u64) -> Result<Option<KeyInfo>, StoreError> {
        let known = keys::read(&self.keys).by_id(id).cloned();
        let Some(mut key) = known else { return Ok(None) };
        if key.revoked_unix.is_none() {
            let sql = "UPDATE keys SET revoked_unix = ?2 WHERE id = ?1";
            self.execute(|connection| {
                connection.execute(sql, params![id.to_string(), whole(unix)]).map(drop)
            })?;
            keys::write(&self.keys).revoke(id, unix);
            key.revoked_unix = Some(unix);
        }
        Ok(Some(key))
    }

    fn note(&mut self, entry: &AuditEntry) -> Result<(), StoreError> {
        let sql = "INSERT INTO audit (at_unix_us, by_key, act, subject, detail) VALUES (?1, ?2, ?3, ?4, ?5)";
        self.execute(|connection| {
            let (at, by) = (whole(entry.at_unix_us), entry.by.to_string());
            connection.execute(sql, params![at, by, entry.act, entry.subject, entry.detail]).map(drop)
        })
    }

    fn put_setting(&mut self, name: String, value: Option<String>) -> Result<(), StoreError> {
        self.execute(|connection| {
            let written = match value {
                Some(value) => {
                    let sql = "INSERT INTO settings (name, value) VALUES (?1, ?2)
                               ON CONFLICT (name) DO UPDATE SET value = excluded.value";
                    connection.execute(sql, [name, value])
                }
                None => connection.execute("DELETE FROM settings WHERE name = ?1", [name]),
            };
            written.map(drop)
        })
    }

    /// Writes what is pending once more, and leaves one file without a log beside it.
    fn finish(mut self) {
        let group = Group { settled: std::mem::take(&mut self.pending), ..Group::default() };
        self.write_group(group);
        if let Some(connection) = self.connection.take() {
            // What stays in the log is read at the next start, so a failure here loses nothing.
            let _ = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |_| Ok(()));
        }
    }
}
