//! Where a rank's time goes: computing, sealing, sending, waiting for others.

use std::time::Duration;

use collective::Traffic;
use serde::{Deserialize, Serialize};

/// One rank's account since its group formed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupReport {
    /// This rank.
    pub rank: usize,
    /// Of so many.
    pub ranks: usize,
    /// `tensor`, `pipeline`, or stages x ranks.
    pub mode: String,
    /// Steps that only decoded.
    pub decode: StepTimes,
    /// Steps that prefilled.
    pub prefill: StepTimes,
}

/// Sums over steps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepTimes {
    /// How many steps.
    pub steps: u64,
    /// Tokens in them.
    pub tokens: u64,
    /// In all.
    pub total_ns: u64,
    /// Spent sealing and opening.
    pub seal_ns: u64,
    /// Spent in the system's send and receive calls.
    pub wire_ns: u64,
    /// Spent waiting for others.
    pub wait_ns: u64,
    /// Sent.
    pub bytes_sent: u64,
    /// Messages sent.
    pub messages_sent: u64,
}

impl GroupReport {
    /// All steps.
    pub fn whole(&self) -> StepTimes {
        let mut whole = self.decode;
        whole.add_all(&self.prefill);
        whole
    }
}

impl StepTimes {
    /// What is left of the whole.
    pub fn compute_ns(&self) -> u64 {
        self.total_ns.saturating_sub(self.seal_ns + self.wire_ns + self.wait_ns)
    }

    /// What happened since an earlier account of the same rank.
    pub fn since(&self, earlier: &Self) -> Self {
        let less = |now: u64, then: u64| now.saturating_sub(then);
        Self {
            steps: less(self.steps, earlier.steps),
            tokens: less(self.tokens, earlier.tokens),
            total_ns: less(self.total_ns, earlier.total_ns),
            seal_ns: less(self.seal_ns, earlier.seal_ns),
            wire_ns: less(self.wire_ns, earlier.wire_ns),
            wait_ns: less(self.wait_ns, earlier.wait_ns),
            bytes_sent: less(self.bytes_sent, earlier.bytes_sent),
            messages_sent: less(self.messages_sent, earlier.messages_sent),
        }
    }

    /// Counts another account in.
    pub fn add_all(&mut self, more: &Self) {
        self.steps += more.steps;
        self.tokens += more.tokens;
        self.total_ns += more.total_ns;
        self.seal_ns += more.seal_ns;
        self.wire_ns += more.wire_ns;
        self.wait_ns += more.wait_ns;
        self.bytes_sent += more.bytes_sent;
        self.messages_sent += more.messages_sent;
    }

    /// Time that belongs to no step of its own: waiting for the last stage.
    pub(super) fn wait(&mut self, took: Duration, before: &Traffic, after: &Traffic) {
        self.add(0, took, before, after);
        self.steps -= 1;
    }

    pub(super) fn add(&mut self, tokens: usize, took: Duration, before: &Traffic, after: &Traffic) {
        self.steps += 1;
        self.tokens += tokens as u64;
        self.total_ns += u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.seal_ns += after.seal_ns.saturating_sub(before.seal_ns);
        self.wire_ns += after.wire_ns.saturating_sub(before.wire_ns);
        self.wait_ns += after.wait_ns.saturating_sub(before.wait_ns);
        self.bytes_sent += after.bytes_sent.saturating_sub(before.bytes_sent);
        self.messages_sent += after.messages_sent.saturating_sub(before.messages_sent);
    }
}
