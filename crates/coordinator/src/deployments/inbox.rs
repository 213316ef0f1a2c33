//! What machines said and nobody has looked at yet, in order; and what each can hold.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use base::{Incarnation, MachineId, Micros};
use fleet::reconcile::{Fetched, Held, Input, RankReport};
use fleet::topology::Reach;
use parking_lot::Mutex;
use wire::control::{AssignmentPhase, AssignmentReport, FetchReport, Inventory, Register};

use crate::uplink::session::Session;

/// Words that wait. A look takes milliseconds, and takes all of them: a full inbox means that machines only talk.
const WAITING_MAX: usize = 65_536;

/// Machines that are remembered though they are gone.
const GONE_MAX: usize = 1024;

/// What is known of a machine.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) name: String,
    /// Which connection said so.
    pub(super) connection: usize,
    /// Which start of its provider.
    pub(super) incarnation: Incarnation,
    /// Its public key, base64.
    pub(super) signing_key: String,
    pub(crate) here: bool,
    pub(crate) managed: bool,
    /// It said that it goes.
    pub(crate) leaving: bool,
    pub(crate) seen: Micros,
    pub(crate) inventory: Option<Arc<Inventory>>,
    /// What an unmanaged machine serves by itself.
    pub(crate) serves: Vec<String>,
    pub(crate) memory: u64,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Input>,
    facts: BTreeMap<MachineId, Facts>,
    /// Who reaches whom.
    reach: Arc<Reach>,
    /// Grows whenever facts, or what is reached, change.
    version: u64,
    dropped: u64,
}

/// Everything that came in.
#[derive(Default)]
pub(crate) struct Inbox {
    state: Mutex<State>,
}

/// A kept-together copy of all facts.
pub(crate) type AllFacts = BTreeMap<MachineId, Facts>;

impl Inbox {
    /// A machine said what it is and holds.
    pub(crate) fn registered(&self, session: &Session, register: &Register, now: Micros) {
        let machine = session.machine;
        let held = |held: &wire::control::Held| Held {
            instance: held.instance,
            epoch: held.epoch,
            rank: held.rank,
            ready: held.ready,
        };
        let holds = if register.managed { register.holds.iter().map(held).collect() } else { Vec::new() };
        let mut state = self.state.lock();
        let before = state.facts.get(&machine);
        let fresh = before.is_none_or(|facts| !facts.here || facts.connection != connection(session));
        let inventory = before.and_then(|facts| facts.inventory.clone());
        let serves = register.instances.iter().filter(|_| !register.managed);
        let facts = Facts {
            name: session.name.clone(),
            connection: connection(session),
            incarnation: session.incarnation,
            signing_key: session.signing_key.clone(),
            here: true,
            managed: register.managed,
            leaving: false,
            seen: now,
            inventory,
            serves: serves.map(|offer| offer.model.name.as_str().to_owned()).collect(),
            memory: register.hardware.memory_total.0,
        };
        if before.is_some_and(|before| before.incarnation != session.incarnation) {
            Arc::make_mut(&mut state.reach).forget(machine);
        }
        state.facts.insert(machine, facts);
        state.version += 1;
        state.forget_oldest();
        let up = Input::MachineUp {
            machine,
            name: session.name.clone(),
            incarnation: session.incarnation,
            fresh,
            holds,
        };
        state.push(up);
    }

    /// A machine said what it has to hold models with.
    pub(crate) fn inventory(&self, machine: MachineId, inventory: Inventory) {
        let mut state = self.state.lock();
        let Some(facts) = state.facts.get_mut(&machine) else { return };
        if facts.inventory.as_deref() == Some(&inventory) {
            return;
        }
        facts.inventory = Some(Arc::new(inventory));
        state.version += 1;
    }

    /// A machine said how far it is.
    pub(crate) fn reported(&self, machine: MachineId, report: AssignmentReport) {
        let AssignmentReport { instance, epoch, rank, phase, percent, detail } = report;
        let report = match phase {
            AssignmentPhase::Draining => RankReport::Draining(percent.min(100)),
            AssignmentPhase::Loading => RankReport::Loading(percent.min(100)),
            AssignmentPhase::Ready => RankReport::Ready,
            AssignmentPhase::Gone => RankReport::Gone,
            AssignmentPhase::Failed => RankReport::Failed(detail),
            AssignmentPhase::Refused => RankReport::Refused(detail),
            AssignmentPhase::Unknown => return,
        };
        self.put(Input::Report { machine, instance, epoch, rank, report });
    }

    /// A machine said how far it is with taking a model from others.
    pub(crate) fn fetching(&self, machine: MachineId, report: FetchReport) {
        let FetchReport { instance, epoch, rank, done, of, bytes_per_s } = report;
        let fetched = Fetched { done: done.0.min(of.0), of: of.0, bytes_per_s };
        self.put(Input::Report { machine, instance, epoch, rank, report: RankReport::Fetching(fetched) });
    }

    /// Something else came in.
    pub(crate) fn put(&self, input: Input) {
        self.state.lock().push(input);
    }

    /// A machine takes nothing new: it goes.
    pub(crate) fn leaves(&self, machine: MachineId) {
        let mut state = self.state.lock();
        if let Some(facts) = state.facts.get_mut(&machine) {
            facts.leaving = true;
            state.version += 1;
        }
    }

    /// A machine's connection ended; nothing changes where it has another by now.
    pub(crate) fn gone(&self, session: &Session, now: Micros) {
        let mut state = self.state.lock();
        let machine = session.machine;
        let facts = state.facts.get_mut(&machine).filter(|facts| facts.connection == connection(session));
        if let Some(facts) = facts {
            facts.here = false;
            facts.seen = now;
            state.version += 1;
            state.push(Input::MachineGone(machine));
        }
    }

    /// Everything that waits, and how many words were dropped for want of room.
    pub(super) fn take(&self) -> (Vec<Input>, u64) {
        let mut state = self.state.lock();
        let dropped = std::mem::take(&mut state.dropped);
        (std::mem::take(&mut state.waiting).into(), dropped)
    }

    /// All facts and what is reached, where they are newer than `version`.
    pub(super) fn facts(&self, version: u64) -> Option<(AllFacts, Arc<Reach>, u64)> {
        let state = self.state.lock();
        (state.version != version).then(|| (state.facts.clone(), Arc::clone(&state.reach), state.version))
    }

    /// Changes what is reached; `change` says whether it did.
    pub(super) fn with_reach(&self, change: impl FnOnce(&mut Reach) -> bool) {
        let mut state = self.state.lock();
        if change(Arc::make_mut(&mut state.reach)) {
            state.version += 1;
        }
    }

    /// Looks at facts and at what is reached.
    pub(super) fn with_state<T>(&self, look: impl FnOnce(&AllFacts, &Reach) -> T) -> T {
        let state = self.state.lock();
        look(&state.facts, &state.reach)
    }

    /// Whether deployments decide what a machine holds.
    pub(crate) fn is_managed(&self, machine: MachineId) -> bool {
        self.state.lock().facts.get(&machine).is_some_and(|facts| facts.managed)
    }
}

/// Tells connections of one machine apart.
fn connection(session: &Session) -> usize {
    std::ptr::from_ref(session).addr()
}

impl State {
    fn push(&mut self, input: Input) {
        // Progress replaces the progress before it.
        if let (
            Some(Input::Report {
                machine: m,
                instance: i,
                epoch: e,
                rank: r,
                report: of @ (RankReport::Loading(_) | RankReport::Fetching(_)),
            }),
            Input::Report {
                machine,
                instance,
                epoch,
                rank,
                report: now @ (RankReport::Loading(_) | RankReport::Fetching(_)),
            },
        ) = (self.waiting.back_mut(), &input)
            && (*m, *i, *e, *r) == (*machine, *instance, *epoch, *rank)
        {
            of.clone_from(now);
            return;
        }
        // What comes and goes is bounded by connections; what is said on them is not.
        if self.waiting.len() >= WAITING_MAX && matches!(input, Input::Report { .. }) {
            self.dropped += 1;
            return;
        }
        self.waiting.push_back(input);
    }

    fn forget_oldest(&mut self) {
        let gone = || self.facts.iter().filter(|(_, facts)| !facts.here);
        if gone().count() > GONE_MAX
            && let Some(oldest) = gone().min_by_key(|(_, facts)| facts.seen).map(|(id, _)| *id)
        {
            self.facts.remove(&oldest);
            Arc::make_mut(&mut self.reach).forget(oldest);
        }
    }
}
