//! The control plane's brain: which instance takes a request, what waits, what is refused and why.
//!
//! What it is: state machines that take the time and an input and give effects. A [`Pool`] decides everything about one
//! model: its instances, its queue, its routing. The one predicate that says whether an instance can take a request
//! is [`eligibility::eligible`]; routing, the queue's drain, preflight, listings and status all call it, and nothing
//! re-states any part of it. What it is *not*: it opens no socket, knows no clock, draws no hidden randomness and
//! holds no prompt. A shell (the coordinator) keeps each pool behind a lock, feeds it [`Input`]s and carries out its
//! [`Effect`]s.
//!
//! Start with [`pool`] for the life of a request, [`eligibility`] for who may take it, [`cost`] for who should.

pub mod affinity;
pub mod breaker;
pub mod cost;
pub mod deployment;
pub mod eligibility;
pub mod group;
pub mod instance;
pub(crate) mod owner;
pub mod plan;
mod policy;
pub mod pool;
mod promise;
mod queue;
pub mod reconcile;
pub mod refusal;
pub mod reported;
mod roster;
pub mod story;
pub mod topology;

pub use affinity::{Prefixes, prefixes};
pub use cost::Prediction;
pub use eligibility::{Ask, Ineligible, eligible};
pub use instance::Instance;
pub use owner::Owners;
pub use policy::{Policy, Priority};
pub use pool::{Admission, Capacity, Effect, Enqueue, Input, Listing, Outcome, Pool, Refused, Verdict};
pub use refusal::Refusal;
pub use reported::Suspect;
pub use story::{Fared, Happening, Story};
