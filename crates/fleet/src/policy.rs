//! The knobs of a pool, each declared once, with what its value follows from.

use base::Micros;
use serde::{Deserialize, Serialize};

/// How a pool decides. The default serves a small fleet well. Zero switches a bound off where a field says so.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Requests that may wait for one model. 1,024 take about 300 KB and, at ten a second, two minutes.
    pub queue_max: u32,
    /// The longest wait in the queue of a request that names no deadline; 0 is off. Ten minutes: the time after which
    /// the official OpenAI clients give up by themselves.
    pub wait_us_max: Micros,
    /// How long requests wait for a lost instance to come back, where nothing else serves their model. A provider
    /// reconnects within a second or two, and starts with a small model within ten.
    pub grace_us: Micros,
    /// How many attempts of a request may fail.
    pub attempts_max: u32,
    /// An instance that refused for lack of room is left alone until its next report, but no longer than this.
    pub full_pause_us: Micros,
    /// After so long at the head of the queue for lack of KV room, one instance is kept free for the request.
    pub patience_us: Micros,
    /// Consecutive faults that open a machine's breaker; 0 is off.
    pub breaker_faults: u32,
    /// The first cool-down of a breaker; each further one is twice as long.
    pub breaker_cool_us: Micros,
    /// The longest cool-down.
    pub breaker_cool_us_max: Micros,
    /// After so long without a fault, a machine's earlier cool-downs are forgotten.
    pub breaker_forget_us: Micros,
    /// How many tokens an answer is taken to have before any was seen. Learnt from then on.
    pub answer_tokens: u32,
    /// Of so many last requests it is kept what became of them and why (`phalanx explain`); 0 is off. About a kilobyte
    /// each.
    pub explained_max: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            queue_max: 1024,
            wait_us_max: Micros::from_secs(600),
            grace_us: Micros::from_secs(10),
            attempts_max: 4,
            full_pause_us: Micros::from_millis(250),
            patience_us: Micros::from_secs(2),
            breaker_faults: 3,
            breaker_cool_us: Micros::from_secs(2),
            breaker_cool_us_max: Micros::from_secs(300),
            breaker_forget_us: Micros::from_secs(600),
            answer_tokens: 256,
            explained_max: 10_000,
        }
    }
}

/// Which requests go first. Between the requests of one class, accounts take turns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Before all others.
    Urgent,
    /// What a request is that says nothing.
    #[default]
    Normal,
    /// When nothing else waits.
    Background,
}
