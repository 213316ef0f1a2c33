//! What became of each of the last requests, and why: the answer to "why there, why then, why was I refused?".

use std::collections::{BTreeMap, VecDeque};

use base::{AccountId, InstanceId, MachineId, Micros, RequestId, Tokens};

use crate::cost::Prediction;
use crate::pool::{Enqueue, Outcome, Verdict};
use crate::refusal::Refusal;

/// Candidates that a decision keeps: all of a small pool's, the best of a large one's.
pub(crate) const CANDIDATES_MAX: usize = 16;
/// Events that one request keeps. One that moves more often than this loses its middle.
const EVENTS_MAX: usize = 64;

/// One request.
#[derive(Debug, Clone, PartialEq)]
pub struct Story {
    /// Which.
    pub request: RequestId,
    /// Whose.
    pub account: AccountId,
    /// Tokens of its prompt.
    pub prompt_tokens: Tokens,
    /// Tokens of its answer at most.
    pub max_tokens: Tokens,
    /// What happened, in order, on the pool's clock.
    pub events: Vec<(Micros, Happening)>,
}

/// What happened to a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Happening {
    /// It was let in, and nothing could take it at once.
    Waits {
        /// How many stood before it.
        ahead: usize,
        /// When it was predicted to start, from then; nothing where that could not be told.
        predicted: Option<Micros>,
        /// How many instances could not take it, by reason.
        reasons: Vec<(&'static str, u32)>,
    },
    /// It was sent to an instance.
    Dispatched {
        /// Which.
        instance: InstanceId,
        /// On which machine.
        machine: MachineId,
        /// How long it had waited.
        waited: Micros,
        /// What was predicted for it there.
        predicted: Prediction,
        /// Tokens of its prompt that were thought to be in that instance's cache.
        cached: Tokens,
        /// The others that were weighed, best first, each with its prediction or its reason.
        candidates: Vec<Verdict>,
        /// How many instances there were by reason, `eligible` ones included.
        reasons: Vec<(&'static str, u32)>,
    },
    /// Its first token came.
    FirstToken {
        /// So long after the dispatch.
        after: Micros,
    },
    /// Its attempt ended.
    Ended {
        /// On which instance.
        instance: InstanceId,
        /// How.
        outcome: Outcome,
        /// Tokens of the answer.
        generated: Tokens,
    },
    /// It was refused.
    Refused {
        /// Why.
        refusal: Refusal,
        /// Each instance's reason, of a small pool.
        candidates: Vec<Verdict>,
        /// How many instances there were by reason.
        reasons: Vec<(&'static str, u32)>,
    },
    /// Its caller gave it up.
    Withdrawn,
}

/// How an instance fared of late.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fared {
    /// Requests placed anywhere.
    pub placed: u32,
    /// Of these, on it.
    pub placed_here: u32,
    /// Of these, where another was cheaper.
    pub outbid: u32,
    /// By how many seconds, in all.
    pub outbid_by_s: f64,
    /// Of these, why it could not take them.
    pub passed_over: BTreeMap<&'static str, u32>,
}

/// The last requests of a pool.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stories {
    by_request: BTreeMap<RequestId, Story>,
    order: VecDeque<RequestId>,
    max: usize,
}

impl Stories {
    /// Keeps the last `max` requests; 0 keeps none.
    pub(crate) fn new(max: u32) -> Self {
        Self { max: max as usize, ..Self::default() }
    }

    /// Whether anything is kept at all.
    pub(crate) fn wanted(&self) -> bool {
        self.max > 0
    }

    /// A request arrived; a second time where it goes on after a failed attempt.
    pub(crate) fn arrived(&mut self, enqueue: &Enqueue) {
        if self.max == 0 || self.by_request.contains_key(&enqueue.ask.request) {
            return;
        }
        while self.order.len() >= self.max {
            let oldest = self.order.pop_front().expect("it is as long as the bound");
            self.by_request.remove(&oldest);
        }
        let request = enqueue.ask.request;
        let story = Story {
            request,
            account: enqueue.account,
            prompt_tokens: enqueue.ask.prompt_tokens,
            max_tokens: enqueue.ask.max_tokens,
            events: Vec::with_capacity(4),
        };
        self.order.push_back(request);
        self.by_request.insert(request, story);
    }

    /// Something happened to a request that is kept.
    pub(crate) fn tell(&mut self, request: RequestId, at: Micros, what: impl FnOnce() -> Happening) {
        if let Some(story) = self.by_request.get_mut(&request) {
            if story.events.len() >= EVENTS_MAX {
                story.events.remove(EVENTS_MAX / 2);
            }
            story.events.push((at, what()));
        }
    }

    /// How `instance` fared in the requests that are kept.
    pub(crate) fn fared(&self, instance: InstanceId) -> Fared {
        let mut fared = Fared::default();
        for (_, happening) in self.by_request.values().flat_map(|story| &story.events) {
            let Happening::Dispatched { instance: at, predicted, candidates, .. } = happening else {
                continue;
            };
            fared.placed += 1;
            if *at == instance {
                fared.placed_here += 1;
                continue;
            }
            match candidates.iter().find(|c| c.instance == instance).map(|c| c.verdict) {
                Some(Ok(here)) => {
                    fared.outbid += 1;
                    fared.outbid_by_s += here.cost_s - predicted.cost_s;
                }
                Some(Err(reason)) => *fared.passed_over.entry(reason.code()).or_default() += 1,
                None => {}
            }
        }
        fared
    }

    pub(crate) fn of(&self, request: RequestId) -> Option<&Story> {
        self.by_request.get(&request)
    }
}
