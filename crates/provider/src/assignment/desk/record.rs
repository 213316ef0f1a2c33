//! What the desk hears, says and remembers.

use base::{Bytes, Epoch, InstanceId, Micros};
use wire::control::{Assignment, AssignmentPhase, AssignmentReport, Leases};

use super::Life;

/// The longest lease: a day. One that never ends is asked for with 0.
const LEASE_MAX: Micros = Micros::from_secs(86_400);

/// What happens.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    /// The coordinator assigns; what it takes here, or why it cannot be had at all.
    Assign { assignment: Assignment, needs: Result<Bytes, String> },
    /// It takes back.
    Unassign { instance: InstanceId, epoch: Epoch, drain: Micros },
    /// It still wants these.
    Renew(Leases),
    /// A load has come so far, in hundredths.
    Progress { life: Life, percent: u8 },
    /// It takes requests.
    Loaded { life: Life },
    /// A load ended without an engine, and has given its memory back: why, where it was not cancelled.
    LoadEnded { life: Life, failed: Option<String> },
    /// An engine broke down.
    Broke { life: Life, detail: String },
    /// So many attempts are in flight.
    InFlight { life: Life, attempts: usize },
    /// An engine has ended, and given its memory back.
    Unloaded { life: Life },
    /// The models that this machine computes as a rank of groups now.
    Groups(Vec<String>),
    /// Time passed.
    Tick,
    /// The provider is leaving: nothing new is taken.
    Leave,
}

/// What is to be done, in order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Effect {
    /// Read the weights: `Progress`, then `Loaded` or `LoadEnded` follow.
    Load { life: Life, assignment: Assignment },
    /// End that load: `Loaded` or `LoadEnded` follows.
    Cancel { life: Life },
    /// Take nothing new for it: `InFlight` follows, now and with each attempt that ends.
    Drain { life: Life },
    /// End the engine, whatever is in flight: `Unloaded` follows.
    Unload { life: Life },
    /// It goes on under another epoch.
    Restamp { life: Life, epoch: Epoch },
    /// Say this.
    Report(AssignmentReport),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum State {
    Waiting,
    Loading(u8),
    Ready,
    Draining { until: Micros, most: usize, left: usize },
    Cancelling,
    Unloading,
}

/// What is remembered of an instance that is not held (any more).
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Last {
    /// It is held, or was when this was written.
    Held,
    /// The coordinator took it back.
    TakenBack,
    /// It can be had again at the same epoch: its lease ended, or it was refused for what may have changed since.
    Open,
    /// It failed: said again when it is asked for again.
    Failed(String),
}

#[derive(Debug)]
pub(super) struct Known {
    pub(super) newest: Epoch,
    pub(super) last: Last,
    /// For forgetting: when it was last heard of, counted.
    pub(super) heard: u64,
}

#[derive(Debug)]
pub(super) struct Record {
    pub(super) assignment: Assignment,
    pub(super) needs: Bytes,
    pub(super) expires: Option<Micros>,
    pub(super) state: State,
    /// How it ends, once it does.
    pub(super) last: Last,
    /// What was said of it last.
    pub(super) said: Option<(AssignmentPhase, u8)>,
}

impl Record {
    pub(super) fn is_wanted(&self) -> bool {
        matches!(self.state, State::Waiting | State::Loading(_) | State::Ready)
    }

    pub(super) fn is_ending(&self) -> bool {
        !self.is_wanted()
    }
}

/// Why a group's rank cannot begin on this machine now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Busy {
    /// A model is held alone: in words.
    Held(String),
    /// What was held is about to be gone.
    Ending,
}

pub(super) fn held_alone(record: &Record) -> String {
    let (model, instance) = (&record.assignment.model, record.assignment.instance);
    format!("this machine holds {model} alone, as {instance}: take that back first")
}

/// Whether what is loaded for one serves for the other.
pub(super) fn same_terms(a: &Assignment, b: &Assignment) -> bool {
    let terms = |a: &Assignment| (a.rank, a.model.clone(), a.context, a.max_batch, a.exclusive);
    terms(a) == terms(b)
}

pub(super) fn lease(now: Micros, lease_us: u64) -> Option<Micros> {
    (lease_us > 0).then(|| now.saturating_add(Micros(lease_us).min(LEASE_MAX)))
}

pub(super) fn hundredths(part: usize, whole: usize) -> u8 {
    match whole {
        0 => 0,
        _ => u8::try_from(part.saturating_mul(100) / whole).unwrap_or(100).min(100),
    }
}

pub(super) fn report(
    assignment: &Assignment,
    phase: AssignmentPhase,
    percent: u8,
    detail: String,
) -> AssignmentReport {
    let Assignment { instance, epoch, rank, .. } = *assignment;
    AssignmentReport { instance, epoch, rank, phase, percent, detail }
}

pub(super) fn refuse(assignment: &Assignment, why: String, effects: &mut Vec<Effect>) {
    effects.push(Effect::Report(report(assignment, AssignmentPhase::Refused, 0, why)));
}

/// How an assignment is; `drained` is how far the machine is with what it had.
pub(super) fn report_of(record: &Record, drained: u8) -> AssignmentReport {
    let (phase, percent) = match record.state {
        State::Waiting => (AssignmentPhase::Draining, drained),
        State::Loading(done) => (AssignmentPhase::Loading, done),
        State::Ready => (AssignmentPhase::Ready, 0),
        State::Draining { most, left, .. } => {
            (AssignmentPhase::Draining, hundredths(most.saturating_sub(left), most))
        }
        State::Cancelling | State::Unloading => (AssignmentPhase::Draining, 100),
    };
    report(&record.assignment, phase, percent, String::new())
}
