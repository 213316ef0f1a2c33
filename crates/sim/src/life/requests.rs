//! Requests of a life: how they come, wait, and end.

use base::{InstanceId, Micros, RequestId, Tokens};
use fleet::{Ask, Enqueue, Input, Priority};

use super::witness::RESERVED;
use super::{Happening, Plant, Running, Sim};

impl Sim {
    pub(super) fn on(&self, request: RequestId, instance: InstanceId) -> Option<usize> {
        let running = self.requests.get(&request)?;
        (running.instance == Some(instance)).then_some(running.model)
    }

    /// A request leaves its queue for an instance.
    pub(super) fn sent(&mut self, request: RequestId, instance: InstanceId) {
        self.witness.sent(request, instance);
        let Some(running) = self.requests.get_mut(&request) else { return };
        match running.instance {
            Some(other) => {
                self.violate("one terminal", format!("{request} is sent to {instance}, and is on {other}"));
            }
            None => running.instance = Some(instance),
        }
    }

    /// A request's end, for its caller and for the ledger.
    pub(super) fn over(&mut self, request: RequestId, answered: bool) {
        self.requests.remove(&request);
        self.life.requests.1 += u64::from(answered);
        let lost = if answered && self.is_planted(Plant::KeepsARefund) { 1 } else { 0 };
        // What a caller got, it pays for: half of what it might have got, here.
        self.witness.ended(request, if answered { RESERVED / 2 } else { 0 }, lost);
    }

    pub(super) fn arrival(&mut self) {
        if self.is_down() {
            // Nobody hears it.
            self.after(Micros::from_secs(1), Happening::Arrival);
        } else if self.now < self.faults_end {
            self.next_request += 1;
            self.life.requests.0 += 1;
            let request = RequestId(u128::from(self.next_request));
            let model = usize::from(self.rng.below(100) >= 83);
            self.requests.insert(request, Running { model, instance: None });
            self.witness.arrived(request);
            self.enqueue(request, model, false);
            // By day four times as much as by night.
            let hour = self.now.as_secs_f64() / 3600.0;
            let rate = 0.05 * (1.0 + 0.6 * (hour / 24.0 * std::f64::consts::TAU).sin());
            let gap = -(1.0 - self.rng.next_f64()).ln() / rate;
            // Now and then many come at once, and some of them are refused.
            let gap = if self.next_request % 80 < 30 { 0.0 } else { gap };
            self.after(Micros::from_secs_f64(gap), Happening::Arrival);
        }
    }

    pub(super) fn enqueue(&mut self, request: RequestId, model: usize, again: bool) {
        let asked = Enqueue {
            ask: Ask::new(request, Tokens(128), Tokens(64)),
            account: base::AccountId(request.0 % 7),
            weight: 1,
            priority: Priority::Normal,
            // Some will not wait long.
            deadline: (!again && request.0.is_multiple_of(3)).then(|| self.clock() + Micros::from_secs(3)),
            again,
            tried: 0,
            prefixes: fleet::prefixes(&[], 0),
        };
        self.pool(model, Input::Enqueue(asked));
    }
}
