//! The one task that writes: it takes all that waits, writes it as one transaction, and answers everybody.
//!
//! Group commit: what makes a write durable is the disk's flush (150 us on the machine this was built on, milliseconds
//! on others), and it costs the same for one row and for five hundred. While a group is being written the next one
//! gathers by itself, so no timer is needed. Rows travel as JSON in one statement a group, since each statement is a
//! trip to SQLite's thread and back.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, RwLock};
use std::time::{Duration, SystemTime};

use base::{AccountId, KeyId, RequestId};
use serde::Serialize;
use sqlx::query::Query;
use sqlx::sqlite::{Sqlite, SqliteArguments, SqliteConnection};
use sqlx::{Connection, query};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::keys::{self, KeyTable};
use super::open::Writable;
use crate::{KeyInfo, Outcome, Reservation, Settled, Settlement, StoreError, WAIT_MAX};

/// Rows in one transaction at most: what a group takes stays far below the deadline of who waits behind it.
const GROUP_MAX: usize = 512;

/// How long to wait, where nothing else is written, before settlements that failed are tried again.
const RETRY: Duration = Duration::from_secs(1);

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// Something to write, and where its answer goes.
pub(super) enum Write {
    Reserve { reservation: Reservation, reply: Reply<()> },
    Settle { settlement: Settlement, reply: Reply<Settled> },
    CreateKey { key: KeyInfo, hash: [u8; 32], reply: Reply<()> },
    RevokeKey { key: KeyId, unix: u64, reply: Reply<Option<KeyInfo>> },
    PutSetting { name: String, value: Option<String>, reply: Reply<()> },
    Close { reply: Reply<()> },
}

/// A settlement and the reservation that it ends.
struct Ending {
    settlement: Settlement,
    reservation: Reservation,
    /// Nobody waits for one that the store made itself or already gave an error for.
    reply: Option<Reply<Settled>>,
}

impl Ending {
    /// What is charged is never more than what was reserved, whatever was reported.
    fn prompt_tokens(&self) -> u32 {
        self.settlement.prompt_tokens.min(self.reservation.prompt_tokens)
    }

    fn generated_tokens(&self) -> u32 {
        self.settlement.generated_tokens.min(self.reservation.max_tokens)
    }

    fn settled(&self) -> Settled {
        let charged_tokens = u64::from(self.prompt_tokens()) + u64::from(self.generated_tokens());
        Settled { charged_tokens, refunded_tokens: self.reservation.tokens() - charged_tokens }
    }
}

/// What one transaction writes.
#[derive(Default)]
struct Group {
    reserved: Vec<(Reservation, Reply<()>)>,
    settled: Vec<Ending>,
}

/// Changes to an account's sums. Signed: a settlement lowers what is reserved.
#[derive(Default, Clone, Copy)]
struct Change {
    requests: i64,
    prompt: i64,
    generated: i64,
    refunded: i64,
    reserved: i64,
}

const WRITE_GROUP: &str = "BEGIN IMMEDIATE;
    INSERT INTO reservations (request, account, key, model, prompt_tokens, max_tokens, reserved_unix_us)
        SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6
        FROM json_each($1);
    INSERT INTO ledger (request, account, key, model, prompt_tokens, generated_tokens, refunded_tokens, outcome,
                        reserved_unix_us, settled_unix_us)
        SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7,
               value ->> 8, value ->> 9
        FROM json_each($2);
    DELETE FROM reservations WHERE request IN (SELECT value ->> 0 FROM json_each($2));
    INSERT INTO usage (account, requests, prompt_tokens, generated_tokens, refunded_tokens, reserved_tokens)
        SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5 FROM json_each($3) WHERE true
        ON CONFLICT (account) DO UPDATE SET
            requests = requests + excluded.requests,
            prompt_tokens = prompt_tokens + excluded.prompt_tokens,
            generated_tokens = generated_tokens + excluded.generated_tokens,
            refunded_tokens = refunded_tokens + excluded.refunded_tokens,
            reserved_tokens = reserved_tokens + excluded.reserved_tokens;
    COMMIT;";

impl Group {
    fn is_empty(&self) -> bool {
        self.reserved.is_empty() && self.settled.is_empty()
    }

    /// The rows of [`WRITE_GROUP`]: reservations, ledger entries, changes of sums.
    fn rows(&self) -> [String; 3] {
        let reserved: Vec<_> = self
            .reserved
            .iter()
            .map(|(r, _)| {
                (r.request, r.account, r.key, &r.model, r.prompt_tokens, r.max_tokens, r.at_unix_us)
            })
            .collect();
        let settled: Vec<_> = self
            .settled
            .iter()
            .map(|ending| {
                let (r, s) = (&ending.reservation, &ending.settlement);
                let tokens =
                    (ending.prompt_tokens(), ending.generated_tokens(), ending.settled().refunded_tokens);
                let (prompt, generated, refunded) = tokens;
                let names = (s.outcome.as_str(), r.at_unix_us, s.at_unix_us);
                let (outcome, reserved_at, settled_at) = names;
                (
                    r.request,
                    r.account,
                    r.key,
                    &r.model,
                    prompt,
                    generated,
                    refunded,
                    outcome,
                    reserved_at,
                    settled_at,
                )
            })
            .collect();
        let changes: Vec<_> = self
            .changes()
            .into_iter()
            .map(|(account, c)| (account, c.requests, c.prompt, c.generated, c.refunded, c.reserved))
            .collect();
        [json(&reserved), json(&settled), json(&changes)]
    }

    fn changes(&self) -> HashMap<AccountId, Change> {
        let mut changes: HashMap<AccountId, Change> = HashMap::new();
        for (reservation, _) in &self.reserved {
            changes.entry(reservation.account).or_default().reserved += reservation.tokens() as i64;
        }
        for ending in &self.settled {
            let change = changes.entry(ending.reservation.account).or_default();
            change.requests += 1;
            change.prompt += i64::from(ending.prompt_tokens());
            change.generated += i64::from(ending.generated_tokens());
            change.refunded += ending.settled().refunded_tokens as i64;
            change.reserved -= ending.reservation.tokens() as i64;
        }
        changes
    }
}

fn json(rows: &impl Serialize) -> String {
    serde_json::to_string(rows).expect("rows are texts and numbers")
}

/// The task's state.
pub(super) struct Writer {
    writable: Writable,
    /// Nothing after a failure: the next write connects again, which also ends whatever transaction was left.
    connection: Option<SqliteConnection>,
    keys: Arc<RwLock<KeyTable>>,
    /// Reservations that are on the disk and not settled: as many as there are requests in flight.
    open: HashMap<RequestId, Reservation>,
    /// Settlements to be written with the next group: those that failed, and those of callers who went before their
    /// reservation was written. At most one for each reservation that the disk holds.
    pending: Vec<Ending>,
}

impl Writer {
    pub(super) fn new(writable: Writable, keys: Arc<RwLock<KeyTable>>, connection: SqliteConnection) -> Self {
        Self { writable, connection: Some(connection), keys, open: HashMap::new(), pending: Vec::new() }
    }

    /// Writes until it is told to close, or nobody can ask any more.
    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Write>) {
        let mut failed = false;
        let closing = loop {
            let first = match (self.pending.is_empty(), failed) {
                (true, _) => queue.recv().await.map(Some),
                (false, true) => timeout(RETRY, queue.recv()).await.map_or(Some(None), |got| got.map(Some)),
                (false, false) => Some(queue.try_recv().ok()),
            };
            let Some(first) = first else { break None };
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
            failed = !self.write_group(group).await;
            match alone {
                Some(Write::Close { reply }) => break Some(reply),
                Some(write) => self.write_alone(write).await,
                None => {}
            }
        };
        queue.close();
        self.finish().await;
        if let Some(reply) = closing {
            let _ = reply.send(Ok(()));
        }
    }

    /// Puts a write into the group, or gives it back where it is written by itself.
    fn take(&mut self, write: Write, group: &mut Group) -> Option<Write> {
        match write {
            Write::Reserve { reservation, reply } => {
                let request = reservation.request;
                if self.open.contains_key(&request) {
                    let _ = reply.send(Err(StoreError::AlreadyReserved { request }));
                } else {
                    self.open.insert(request, reservation.clone());
                    group.reserved.push((reservation, reply));
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
    async fn write_group(&mut self, group: Group) -> bool {
        if group.is_empty() {
            return true;
        }
        let [reserved, settled, changes] = group.rows();
        let written = self.execute(query(WRITE_GROUP).bind(reserved).bind(settled).bind(changes)).await;
        match &written {
            Ok(()) => self.answer(group),
            Err(error) => self.give_up(group, error),
        }
        written.is_ok()
    }

    fn answer(&mut self, group: Group) {
        for (reservation, reply) in group.reserved {
            if reply.send(Ok(())).is_err() && self.open.remove(&reservation.request).is_some() {
                self.pending.push(abandoned(reservation));
            }
        }
        for ending in group.settled {
            let settled = ending.settled();
            if let Some(reply) = ending.reply {
                let _ = reply.send(Ok(settled));
            }
        }
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

    async fn connected(&mut self) -> Result<&mut SqliteConnection, StoreError> {
        if self.connection.is_none() {
            self.connection = Some(self.writable.connect().await?);
        }
        Ok(self.connection.as_mut().expect("set above"))
    }

    /// Runs statements on the connection, which is made anew after a failure.
    async fn execute(&mut self, work: Query<'_, Sqlite, SqliteArguments>) -> Result<(), StoreError> {
        let written = work.execute(self.connected().await?).await;
        match written {
            Ok(_) => Ok(()),
            Err(error) => Err(self.failed(&error).await),
        }
    }

    /// Closes the connection, which ends a transaction that it may be in; tells what the error means.
    async fn failed(&mut self, error: &sqlx::Error) -> StoreError {
        if let Some(connection) = self.connection.take() {
            // Whether or not it closes well, it is not used again.
            let _ = timeout(WAIT_MAX, connection.close()).await;
        }
        let error = StoreError::from_sqlite(&self.writable.file, error);
        tracing::error!(error = &error as &dyn std::error::Error, "a write to the store failed");
        error
    }

    async fn write_alone(&mut self, write: Write) {
        match write {
            Write::CreateKey { key, hash, reply } => {
                let _ = reply.send(self.create_key(key, hash).await);
            }
            Write::RevokeKey { key, unix, reply } => {
                let _ = reply.send(self.revoke_key(key, unix).await);
            }
            Write::PutSetting { name, value, reply } => {
                let _ = reply.send(self.put_setting(name, value).await);
            }
            Write::Reserve { .. } | Write::Settle { .. } | Write::Close { .. } => {
                unreachable!("taken into the group, or the end of the loop")
            }
        }
    }

    async fn create_key(&mut self, key: KeyInfo, hash: [u8; 32]) -> Result<(), StoreError> {
        if keys::read(&self.keys).has(key.id, &hash) {
            return Err(StoreError::KeyExists);
        }
        let sql = "INSERT INTO keys (id, account, name, admin, hash, ends_with, created_unix, revoked_unix) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
        let work = query(sql)
            .bind(key.id.to_string())
            .bind(key.account.to_string())
            .bind(key.name.clone())
            .bind(key.admin)
            .bind(hash.to_vec())
            .bind(key.ends_with.clone())
            .bind(seconds(key.created_unix))
            .bind(key.revoked_unix.map(seconds));
        self.execute(work).await?;
        keys::write(&self.keys).insert(key, hash);
        Ok(())
    }

    async fn revoke_key(&mut self, id: KeyId, unix: u64) -> Result<Option<KeyInfo>, StoreError> {
        let known = keys::read(&self.keys).by_id(id).cloned();
        let Some(mut key) = known else { return Ok(None) };
        if key.revoked_unix.is_none() {
            let work = query("UPDATE keys SET revoked_unix = $2 WHERE id = $1")
                .bind(id.to_string())
                .bind(seconds(unix));
            self.execute(work).await?;
            keys::write(&self.keys).revoke(id, unix);
            key.revoked_unix = Some(unix);
        }
        Ok(Some(key))
    }

    async fn put_setting(&mut self, name: String, value: Option<String>) -> Result<(), StoreError> {
        let work = match value {
            Some(value) => query(
                "INSERT INTO settings (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            )
            .bind(name)
            .bind(value),
            None => query("DELETE FROM settings WHERE name = $1").bind(name),
        };
        self.execute(work).await
    }

    /// Writes what is pending once more, and leaves one file without a log beside it.
    async fn finish(mut self) {
        let group = Group { settled: std::mem::take(&mut self.pending), ..Group::default() };
        self.write_group(group).await;
        if let Some(mut connection) = self.connection.take() {
            // What stays in the log is read at the next start, so a failure here loses nothing.
            let _ = query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut connection).await;
            let _ = connection.close().await;
        }
    }
}

/// Ends a reservation whose caller went before it was written.
fn abandoned(reservation: Reservation) -> Ending {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let settlement = Settlement {
        request: reservation.request,
        prompt_tokens: 0,
        generated_tokens: 0,
        outcome: Outcome::Cancelled,
        at_unix_us: u64::try_from(now.as_micros()).unwrap_or(u64::MAX).max(reservation.at_unix_us),
    };
    Ending { settlement, reservation, reply: None }
}

/// SQLite's integers are signed; a time beyond the year 292 billion is kept as the last that fits.
fn seconds(unix: u64) -> i64 {
    i64::try_from(unix).unwrap_or(i64::MAX)
}
