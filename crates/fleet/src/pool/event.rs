//! What goes into a pool and what comes out of it.

use base::{AccountId, InstanceId, MachineId, Micros, RequestId, Tokens};
use wire::control::{AttemptRefusal, InstanceOffer, InstanceReport};

use crate::affinity::Prefixes;
use crate::cost::Prediction;
use crate::eligibility::{Ask, Ineligible};
use crate::policy::Priority;
use crate::refusal::Refusal;
use crate::reported::Suspect;

/// A request that wants an instance.
#[derive(Debug, Clone, PartialEq)]
pub struct Enqueue {
    /// What it needs. `answer_tokens` is set by the pool.
    pub ask: Ask,
    /// Between whom the queue is fair.
    pub account: AccountId,
    /// The account's share: twice the weight, twice the work. Zero counts as one.
    pub weight: u32,
    /// Its class.
    pub priority: Priority,
    /// When its wait ends; by the pool's policy where absent.
    pub deadline: Option<Micros>,
    /// Whether it was dispatched before: then it goes to the front, and neither a full queue nor a prediction
    /// sends it away.
    pub again: bool,
    /// How many of its attempts failed. Typed refusals for lack of room do not count: they have only its deadline.
    pub tried: u32,
    /// Hashes of its prompt's beginnings: where they were computed before, little is computed again. Empty is fine.
    pub prefixes: Prefixes,
}

/// What happens to a pool.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A machine that proved its identity offers an instance of this model; or offers it anew.
    InstanceUp {
        /// Which machine.
        machine: MachineId,
        /// Whose it is: who lends it.
        owner: Option<AccountId>,
        /// What it offers.
        offer: Box<InstanceOffer>,
    },
    /// An instance says how it is.
    InstanceReport {
        /// From which machine the report came.
        machine: MachineId,
        /// What it says.
        report: InstanceReport,
    },
    /// An instance is no more: its machine's connection ended, or it was taken back.
    InstanceGone {
        /// Which.
        instance: InstanceId,
        /// Whether it may come back by itself (a lost connection): requests wait for it a while.
        lost: bool,
    },
    /// A machine takes nothing new.
    MachineDraining {
        /// Which.
        machine: MachineId,
    },
    /// Whether a deployment wants the model: then what finds nothing that serves it waits for its next place.
    Wanted {
        /// It does.
        wanted: bool,
    },
    /// A request wants an instance.
    Enqueue(Enqueue),
    /// A request is no longer wanted, wherever it is. Harmless where it is not known.
    Withdraw {
        /// Which.
        request: RequestId,
    },
    /// The first token of a dispatched request came.
    FirstToken {
        /// Which.
        request: RequestId,
    },
    /// An attempt ended. Harmless where it is not known (its instance went first).
    AttemptEnded {
        /// Which request.
        request: RequestId,
        /// On which instance.
        instance: InstanceId,
        /// How.
        outcome: Outcome,
        /// Tokens of the answer.
        generated: Tokens,
    },
    /// Time passed: [`Pool::next_deadline`] came.
    Tick,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// With its final chunk.
    Completed,
    /// Nobody wanted it any more.
    Cancelled,
    /// Its machine did not take it; nothing was computed.
    Refused(AttemptRefusal),
    /// Its machine failed it: an error, a chunk that does not open, silence past a deadline.
    Faulted,
    /// Its machine's connection ended.
    Lost,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Send a request to an instance.
    Dispatch {
        /// Which.
        request: RequestId,
        /// Where to.
        instance: InstanceId,
        /// On which machine that is.
        machine: MachineId,
        /// How long it waited in the queue.
        waited: Micros,
        /// What is predicted for it.
        predicted: Prediction,
    },
    /// Tell a request's caller that it is not served.
    Refuse {
        /// Which.
        request: RequestId,
        /// Why.
        refusal: Refusal,
    },
    /// Whether an instance is routed to changed, for reasons other than how busy it is.
    Standing {
        /// Which.
        instance: InstanceId,
        /// On which machine.
        machine: MachineId,
        /// Why not; nothing when it is.
        ineligible: Option<Ineligible>,
    },
    /// A machine reported something that cannot be; it was clamped.
    Suspect {
        /// Which instance.
        instance: InstanceId,
        /// On which machine.
        machine: MachineId,
        /// What.
        suspect: Suspect,
    },
    /// An offer or report was not accepted.
    Rejected {
        /// Which instance.
        instance: InstanceId,
        /// From which machine.
        machine: MachineId,
        /// Why.
        reason: &'static str,
    },
}
