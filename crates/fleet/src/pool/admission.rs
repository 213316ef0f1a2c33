//! What becomes of a request that arrives: placed, queued or refused; and the predictions that decide it.

use base::{AccountId, Micros, RequestId, Tokens};

use super::{Effect, Enqueue, Pool};
use crate::eligibility::Ask;
use crate::owner::Owners;
use crate::queue::Waiting;
use crate::refusal::Refusal;
use crate::story::Happening;

/// Completed requests after which predictions are trusted. Before, they rest on what machines say of themselves.
const TRUSTED_AFTER: u64 = 3;
/// A request is let in where its predicted start, times this, lies before its deadline. A prediction is a mean, and
/// requests of other accounts may still go before it: without a margin one in twenty of a saturated queue would expire.
const LATE_MARGIN: f64 = 1.25;
/// As `LATE_MARGIN`, before predictions are trusted: a slow self-test must not turn away what could be served.
const LATE_MARGIN_UNTRIED: f64 = 0.5;

/// What would become of a request that arrived now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Admission {
    /// It would be dispatched at once.
    Now,
    /// It would wait.
    Waits {
        /// When it is predicted to start, from now; nothing where that cannot be told (all is loading).
        predicted: Option<Micros>,
        /// Who would have to make room in the queue.
        gives_way: Option<RequestId>,
    },
}

impl Pool {
    /// What would become of `enqueue` at `now`: accepts exactly when [`super::Input::Enqueue`] then does, given that
    /// [`super::Input::Tick`] was given at `now`.
    ///
    /// # Errors
    /// The refusal it would get.
    pub fn preflight(&self, now: Micros, enqueue: &Enqueue) -> Result<Admission, Refusal> {
        let mut enqueue = enqueue.clone();
        enqueue.ask.answer_tokens = self.answer_expected();
        self.admit(now.max(self.now), &enqueue)
    }

    pub(super) fn enqueue(&mut self, mut enqueue: Enqueue, effects: &mut Vec<Effect>) {
        let request = enqueue.ask.request;
        if self.queue.contains(request) || self.dispatched.contains_key(&request) {
            return;
        }
        enqueue.ask.answer_tokens = self.answer_expected();
        self.stories.arrived(&enqueue);
        match self.admit(self.now, &enqueue) {
            Ok(Admission::Now) => {
                self.queue.charge(&enqueue);
                let placed = self.place(&enqueue.ask, &enqueue.prefixes, self.now, effects);
                assert!(placed, "what is admitted to start now starts now");
            }
            Ok(Admission::Waits { predicted, gives_way }) => {
                if let Some(loser) = gives_way {
                    self.push_out(loser, effects);
                }
                let deadline = self.deadline(&enqueue);
                if self.stories.wanted() {
                    let ahead = self.queue.ahead(self.queue.place(&enqueue));
                    let reasons = self.instances.reasons().collect();
                    let waits = || Happening::Waits { ahead, predicted, reasons };
                    self.stories.tell(enqueue.ask.request, self.now, waits);
                }
                self.queue.push(Waiting { enqueue, since: self.now, deadline });
            }
            Err(refusal) => {
                if let Some(base) = refusal.retry_after() {
                    self.keep_promise(&enqueue, base);
                }
                self.refuse(&enqueue.ask, refusal, effects);
            }
        }
    }

    /// Refuses a queued request in favour of a fairer one.
    fn push_out(&mut self, loser: RequestId, effects: &mut Vec<Effect>) {
        let waiting = self.queue.remove(loser).expect("who gives way waits");
        self.release_hold(loser);
        let ask = &waiting.enqueue.ask;
        let retry_after = self.promise(&waiting.enqueue, self.drain_time(ask, self.queue.len() / 4));
        self.refuse(ask, self.queue_full(retry_after), effects);
    }

    fn queue_full(&self, retry_after: Micros) -> Refusal {
        Refusal::QueueFull {
            queued: u32::try_from(self.queue.len()).unwrap_or(u32::MAX),
            queue_max: self.policy.queue_max,
            retry_after,
        }
    }

    /// The one decision about an arrival.
    fn admit(&self, now: Micros, enqueue: &Enqueue) -> Result<Admission, Refusal> {
        let ask = &enqueue.ask;
        if enqueue.tried >= self.policy.attempts_max {
            return Err(Refusal::AttemptsFailed { tried: enqueue.tried });
        }
        if self.instances.takes(ask, now) {
            return Ok(Admission::Now);
        }
        self.serving_path(enqueue)?;
        let deadline = self.deadline(enqueue);
        let allowed = deadline.saturating_sub(now);
        if allowed == Micros::ZERO {
            let retry_after = self.retry_after(enqueue, self.drain_time(ask, 1));
            return Err(self.overdue(Micros::ZERO, retry_after));
        }
        let place = self.queue.place(enqueue);
        let predicted = self.predicted_start(ask, self.queue.ahead(place));
        // Its own machines are no part of the public pool: what they will take is not refused on account of that.
        let own = ask.owners.own().filter(|account| self.own_path(*account, ask).is_ok());
        let of_own = own.and_then(|account| self.predicted_own(account, ask));
        let predicted = match (ask.owners, predicted, of_own) {
            (Owners::Only(_), _, own) => own,
            (_, Some(public), Some(own)) => Some(public.min(own)),
            (_, public, own) => own.or(public),
        };
        let margin = if self.completed >= TRUSTED_AFTER { LATE_MARGIN } else { LATE_MARGIN_UNTRIED };
        let late = |p: &Micros| p.as_secs_f64() * margin > allowed.as_secs_f64();
        // A request that was already let in once is not sent away for a prediction.
        if let Some(predicted) = predicted.filter(|p| !enqueue.again && late(p)) {
            let over = predicted.as_secs_f64() * margin - allowed.as_secs_f64();
            let retry_after = self.retry_after(enqueue, Micros::from_secs_f64(over));
            return Err(Refusal::PredictedLate { predicted, allowed, retry_after });
        }
        let full = self.policy.queue_max > 0 && self.queue.len() >= self.policy.queue_max as usize;
        let own_full = |account| self.queue.owned_len(account) >= self.policy.queue_max as usize;
        let waits_for_own = own.is_some_and(|account| !own_full(account));
        let gives_way = if full && !enqueue.again && !waits_for_own {
            let lends = |account| self.instances.owns(account);
            let loser = self.queue.gives_way(enqueue, self.held(), lends);
            // Promised from a quarter of the queue on: a place that is free for certain by then, not the first one,
            // for which everybody else competes.
            let retry_after = self.retry_after(enqueue, self.drain_time(ask, self.queue.len() / 4));
            Some(loser.ok_or(self.queue_full(retry_after))?)
        } else {
            None
        };
        Ok(Admission::Waits { predicted, gives_way })
    }

    /// Whether anything may serve `ask` in time to come; else the refusal that says why not.
    fn serving_path(&self, enqueue: &Enqueue) -> Result<(), Refusal> {
        let ask = &enqueue.ask;
        if let Owners::Only(account) = ask.owners {
            return match self.own_path(account, ask) {
                Err(Refusal::AttemptsFailed { .. }) => Err(Refusal::AttemptsFailed { tried: enqueue.tried }),
                // Where it is placed next may be one of its own.
                Err(Refusal::NoOwnMachine) if self.is_unplaced() => Ok(()),
                other => other,
            };
        }
        let (limit, excluded) = self.instances.longest_path(&ask.excluded);
        match limit {
            Some(limit) if ask.length_max() <= limit => Ok(()),
            _ if excluded => Err(Refusal::AttemptsFailed { tried: enqueue.tried }),
            Some(limit) => {
                Err(Refusal::TooLong { prompt: ask.prompt_tokens, max_tokens: ask.max_tokens, limit })
            }
            None if self.wanted => Ok(()),
            None => Err(Refusal::NoServingPath),
        }
    }

    /// Whether nothing serves the model or is about to, and a deployment wants it: its next place is waited for.
    pub(super) fn is_unplaced(&self) -> bool {
        self.wanted && self.instances.longest_path(&[]).0.is_none()
    }

    /// The refusal of a request whose deadline is over.
    pub(super) fn overdue(&self, waited: Micros, retry_after: Micros) -> Refusal {
        if self.is_unplaced() {
            Refusal::Unplaced { waited, retry_after }
        } else {
            Refusal::Expired { waited, retry_after }
        }
    }

    /// Whether an account's own machines may serve `ask` in time to come; else the refusal that says why not.
    fn own_path(&self, account: AccountId, ask: &Ask) -> Result<(), Refusal> {
        match self.instances.longest_own_path(account, &ask.excluded) {
            (Some(limit), _) if ask.length_max() <= limit => Ok(()),
            (_, true) => Err(Refusal::AttemptsFailed { tried: 0 }),
            (Some(limit), _) => {
                Err(Refusal::TooLong { prompt: ask.prompt_tokens, max_tokens: ask.max_tokens, limit })
            }
            (None, _) => Err(Refusal::NoOwnMachine),
        }
    }

    /// When `ask` starts on one of its account's own machines, behind what waits for these already.
    fn predicted_own(&self, account: AccountId, ask: &Ask) -> Option<Micros> {
        let rate = self.instances.own_drain_per_s(account, ask);
        let ahead = self.queue.owned_len(account);
        (rate > 0.0).then(|| Micros::from_secs_f64((ahead + 1) as f64 / rate))
    }

    /// Refuses what waits and has no serving path any more.
    pub(super) fn prune(&mut self, effects: &mut Vec<Effect>) {
        let mut after = None;
        while let Some((place, waiting)) = self.queue.next_after(after) {
            after = Some(place);
            let request = waiting.enqueue.ask.request;
            if let Err(refusal) = self.serving_path(&waiting.enqueue) {
                let waiting = self.queue.remove(request).expect("it was just seen there");
                self.release_hold(request);
                self.refuse(&waiting.enqueue.ask, refusal, effects);
            }
        }
    }

    /// Counts a refusal as demand, then tells it.
    pub(super) fn refuse(&mut self, ask: &Ask, refusal: Refusal, effects: &mut Vec<Effect>) {
        let refused = &mut self.refused;
        refused.total += 1;
        refused.tokens += u64::from(ask.length_max().0);
        match refusal {
            Refusal::QueueFull { .. } => refused.queue_full += 1,
            Refusal::PredictedLate { .. } => refused.predicted_late += 1,
            Refusal::Expired { .. } => refused.expired += 1,
            Refusal::NoServingPath | Refusal::NoOwnMachine | Refusal::Unplaced { .. } => {
                refused.no_serving_path += 1;
            }
            Refusal::TooLong { .. } => refused.too_long += 1,
            Refusal::AttemptsFailed { .. } => refused.attempts_failed += 1,
        }
        if self.stories.wanted() {
            let (candidates, reasons) = self.candidates(ask);
            let refused = || Happening::Refused { refusal, candidates, reasons };
            self.stories.tell(ask.request, self.now, refused);
        }
        effects.push(Effect::Refuse { request: ask.request, refusal });
    }

    fn deadline(&self, enqueue: &Enqueue) -> Micros {
        enqueue.deadline.unwrap_or(match self.policy.wait_us_max {
            Micros::ZERO => Micros::MAX,
            wait => self.now.saturating_add(wait),
        })
    }

    /// Tokens that an answer is taken to have: the mean so far, and a quarter more, since a mean is too little for
    /// half of them.
    pub(super) fn answer_expected(&self) -> Tokens {
        Tokens((self.answer_tokens * 1.25).clamp(1.0, 1e6) as u32)
    }

    /// Requests a second that the pool completes when every slot is taken.
    fn drain_per_s(&self, ask: &Ask) -> f64 {
        let mean = Ask { prompt_tokens: Tokens(self.prompt_tokens.clamp(1.0, 1e9) as u32), ..ask.clone() };
        self.instances.drain_per_s(if self.completed > 0 { &mean } else { ask })
    }

    /// When a request with `ahead` others before it starts, from now; nothing where nothing serves yet.
    fn predicted_start(&self, ask: &Ask, ahead: usize) -> Option<Micros> {
        let rate = self.drain_per_s(ask);
        (rate > 0.0).then(|| Micros::from_secs_f64((ahead + 1) as f64 / rate))
    }

    /// How long `count` requests take to leave the queue.
    fn drain_time(&self, ask: &Ask, count: usize) -> Micros {
        let rate = self.drain_per_s(ask);
        if rate > 0.0 { Micros::from_secs_f64(count as f64 / rate) } else { self.policy.grace_us }
    }

    /// When a refused request should come back, from now, and not before `base`.
    fn retry_after(&self, enqueue: &Enqueue, base: Micros) -> Micros {
        self.promises.retry_after(enqueue.account, self.now, base)
    }

    /// Keeps the place that `retry_after` promised.
    fn keep_promise(&mut self, enqueue: &Enqueue, retry_after: Micros) {
        let each = self.drain_time(&enqueue.ask, 1);
        self.promises.keep(enqueue.account, self.now, retry_after, each);
    }

    /// Both at once.
    pub(super) fn promise(&mut self, enqueue: &Enqueue, base: Micros) -> Micros {
        let retry_after = self.retry_after(enqueue, base);
        self.keep_promise(enqueue, retry_after);
        retry_after
    }
}
