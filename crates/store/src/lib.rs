//! What is durable: API keys, settings, and the ledger of requests, behind one trait of few methods.
//!
//! What it is: [`Store`], and its embedded form on SQLite ([`SqliteStore`]); a form on PostgreSQL can stand beside it,
//! held to the same tests (`tests/conformance.rs`). What it is *not*: it decides no limit and no price, and keeps
//! nothing that a restart may forget. Start with [`Store`], then `sqlite/writer.rs` for how many callers share one
//! write to the disk.

mod deployment;
mod error;
mod record;
mod sqlite;

use std::future::Future;
use std::pin::Pin;

use base::{AccountId, KeyId, RequestId};
pub use deployment::{DeploymentCall, DeploymentChange, DeploymentEvent, KeptDeployment, KeptDeployments};
pub use error::{OpenError, StoreError};
pub use record::{Kept, LedgerEntry, Name, Outcome, Reservation, Settled, Settlement, Usage};
pub use sqlite::{SqliteOptions, SqliteStore};
pub use wire::admin::{AuditEntry, KeyInfo, KeyTerms, KeyUsage, Price};

/// The future of an answer from a [`Store`]. Dropping it gives up the wait, not what was asked (see each method).
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// The setting that holds the token with which providers join.
pub const JOIN_TOKEN: &str = "join_token";

/// What the coordinator needs to be durable. Every write is on the disk when its answer is `Ok`; every wait ends
/// within [`WAIT_MAX`].
pub trait Store: Send + Sync + 'static {
    /// Keeps a new key; its secret is known only by `hash`.
    fn create_key(&self, key: KeyInfo, hash: [u8; 32]) -> Answer<'_, ()>;

    /// Every key, revoked ones included, oldest first.
    fn keys(&self) -> Answer<'_, Vec<KeyInfo>>;

    /// Revokes a key at `unix` (seconds since 1970) and gives it as it is then; nothing where there is no such key.
    /// A key that was revoked before keeps its first time.
    fn revoke_key(&self, key: KeyId, unix: u64) -> Answer<'_, Option<KeyInfo>>;

    /// The key with this hash, revoked or not. On every request's way: answered from memory.
    fn key_by_hash(&self, hash: [u8; 32]) -> Answer<'_, Option<KeyInfo>>;

    /// A setting's value, such as [`JOIN_TOKEN`].
    fn setting<'a>(&'a self, name: &'a str) -> Answer<'a, Option<String>>;

    /// Keeps a setting, or removes it.
    fn put_setting<'a>(&'a self, name: &'a str, value: Option<&'a str>) -> Answer<'a, ()>;

    /// Sets the worst case of a request aside. Durable before it returns.
    ///
    /// Where the caller gives up before the answer, the reservation is settled as cancelled, so that none is left open
    /// by a client that went.
    fn reserve(&self, reservation: Reservation) -> Answer<'_, ()>;

    /// Turns a reservation into what was delivered, and gives back the rest. Each reservation is settled once.
    ///
    /// Carried out even where the caller gives up, or the disk is full now: then the error is given, and the settlement
    /// is tried again until it is written. It must not be repeated.
    fn settle(&self, settlement: Settlement) -> Answer<'_, Settled>;

    /// What an account has used and has open.
    fn usage(&self, account: AccountId) -> Answer<'_, Usage>;

    /// Settled requests with a sequence above `after`, in order, at most `count`.
    fn ledger(&self, after: u64, count: u32) -> Answer<'_, Vec<LedgerEntry>>;

    /// One settled request; nothing where there is none, or it is not settled yet.
    fn settled(&self, request: RequestId) -> Answer<'_, Option<Kept>>;

    /// What the last request that was completed under this name, after `since_unix_us`, asked for: the hash of its body.
    fn asked_as(&self, name: [u8; 32], since_unix_us: u64) -> Answer<'_, Option<[u8; 32]>>;

    /// What each key used of each model, since it began.
    fn key_usage(&self) -> Answer<'_, Vec<KeyUsage>>;

    /// Appends to the log of what operators did. Its sequence is the store's.
    fn note(&self, entry: AuditEntry) -> Answer<'_, ()>;

    /// What operators did, with a sequence above `after`, in order, at most `count`.
    fn audit(&self, after: u64, count: u32) -> Answer<'_, Vec<AuditEntry>>;

    /// Keeps changes of deployments: all of them, or none.
    fn keep_deployments(&self, changes: Vec<DeploymentChange>) -> Answer<'_, ()>;

    /// What is wanted, and what was placed.
    fn deployments(&self) -> Answer<'_, KeptDeployments>;

    /// The last `count` lines of the history of `name`, oldest first; of a deleted one, too.
    fn deployment_history<'a>(&'a self, name: &'a str, count: u32) -> Answer<'a, Vec<DeploymentEvent>>;

    /// What a call with this idempotency key was answered.
    fn deployment_call<'a>(&'a self, key: &'a str) -> Answer<'a, Option<DeploymentCall>>;

    /// Whether it can be written. Costs nothing while writes succeed; after one that failed, each call writes.
    fn writable(&self) -> Answer<'_, ()>;

    /// Writes what was asked so far, and ends. Later calls get [`StoreError::Closed`].
    fn close(&self) -> Answer<'_, ()>;
}

/// How long a caller waits at most. A healthy disk answers in a millisecond; one that takes so long serves nobody.
pub const WAIT_MAX: std::time::Duration = std::time::Duration::from_secs(10);
