//! The controller: desired deployments on one side, machines on the other, and the loop that closes the difference.
//!
//! One writer, level-triggered: whatever happens only changes records ([`Controller::handle`]), and one look at all of them
//! ([`Controller::reconcile`]) says what to do. Looking again changes nothing and says nothing. A machine's record is what
//! it was told, as (instance, epoch, rank); a report that is not about exactly that changes nothing and is counted (A3).
//! Epochs only grow, over all instances, so that a late word of an earlier life is known as such.
//!
//! ```text
//! planned --> assigned --> loading --> ready --(a rank is lost or fails)--> failed
//!                ^                                                            |
//!                +---- again in place, 3 times, pauses growing with jitter ---+
//!                                      then elsewhere; its machines cool down; then pauses that grow (crash loop)
//! ```
//! A rank that went without a word while its instance computed (killed, cut off) is no failure of the model there: it counts
//! as one where the next life does not come to compute either, or where it happens again and again.

mod instance;
mod judge;
mod known;
mod say;
mod snapshot;
mod wishes;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use base::{Epoch, Incarnation, InstanceId, MachineId, Micros, Rng};

use crate::deployment::{Conditions, Spec};
use crate::plan::{Demand, Plan, PlanPolicy, Rejected, Shape, Snapshot, plan};
use crate::topology::{Links, Machine};

use known::Known;

pub use instance::{Fetched, Instance, Phase, RankState, Terms};

/// How often an instance is tried again on the machines that it has.
pub const TRIES_IN_PLACE: u32 = 3;
/// How often in a row an instance that computed may lose a rank from outside before that counts as its own failure.
pub const LOSSES_MAX: u32 = 8;
/// The pause before the first new try in place; doubles.
const RETRY_FIRST: Micros = Micros::from_millis(250);
/// The pause before a deployment that fails everywhere is placed again; doubles.
const CRASH_FIRST: Micros = Micros::from_secs(10);
/// The longest pause of either kind.
const PAUSE_MAX: Micros = Micros::from_secs(300);
/// A machine on which instances failed gets nothing for so long.
const COOL_DOWN: Micros = Micros::from_secs(60);
/// What has been ready for so long is healthy: failures before are forgotten.
const HEALTHY: Micros = Micros::from_secs(60);
/// Lines of history that are kept of a deployment.
const HISTORY_MAX: usize = 256;

/// Something that happened to a deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: Micros,
    /// At which generation of its spec.
    pub generation: u64,
    /// In words.
    pub what: String,
}

/// A deployment and how it is.
#[derive(Debug, Clone)]
pub struct Deployment {
    /// What should run.
    pub spec: Spec,
    /// Grows with each change of the spec.
    pub generation: u64,
    /// How it is.
    pub conditions: Conditions,
    /// What happened, the latest last.
    pub history: VecDeque<Event>,
    /// Failures in a row that ended an instance for good; 0 once one was healthy.
    pub crashes: u32,
    /// Not placed again before this.
    pub paused_until: Micros,
    /// The last errors of ranks, each with its machine's name.
    pub errors: Vec<String>,
    /// Lines of history so far, those that are not kept any more included.
    pub noted: u64,
    /// Whether this generation has been ready.
    was_ready: bool,
}

/// Whether plans are followed (A6).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// They are.
    #[default]
    Enforce,
    /// They are made and told, and nobody does what they say.
    Shadow,
    /// None are made, and what failed is not tried again. What operators delete goes all the same.
    Off,
}

/// What a machine says that it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Of which instance.
    pub instance: InstanceId,
    /// Which assignment.
    pub epoch: Epoch,
    /// Its place.
    pub rank: u32,
    /// Whether it takes requests.
    pub ready: bool,
}

/// How far a rank says that it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RankReport {
    /// It finishes what it has, and unloads; in hundredths.
    Draining(u8),
    /// It takes the model's files from other machines.
    Fetching(Fetched),
    /// It reads its weights; in hundredths.
    Loading(u8),
    /// It computes.
    Ready,
    /// It cannot; why.
    Failed(String),
    /// Others say that it went without a word: its process ended, or its links.
    Lost(String),
    /// It does not take the assignment; why.
    Refused(String),
    /// It holds it no more.
    Gone,
}

/// How an instance stops to take requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Withdrawal {
    /// At once and for good: what it had goes on elsewhere, or ends.
    Over,
    /// At once, and it is back soon: what it had may wait for it.
    BackSoon,
    /// It takes nothing new, and finishes what it has.
    Drains,
}

/// What happens.
#[derive(Debug, Clone)]
pub enum Input {
    /// An operator wants this; a name that is known is changed.
    Apply(Box<Spec>),
    /// An operator does not want it any more.
    Delete(String),
    /// A machine is connected.
    MachineUp {
        /// Which.
        machine: MachineId,
        /// What people call it.
        name: String,
        /// Which start of it.
        incarnation: Incarnation,
        /// Whether the connection is new: on one that stands, what was told it is on its way and comes in order.
        fresh: bool,
        /// What it holds.
        holds: Vec<Held>,
    },
    /// A machine's connection ended.
    MachineGone(MachineId),
    /// A rank says how far it is.
    Report {
        /// Who says so.
        machine: MachineId,
        /// About which instance.
        instance: InstanceId,
        /// Which assignment.
        epoch: Epoch,
        /// Which rank.
        rank: u32,
        /// How far.
        report: RankReport,
    },
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Tell a machine what to hold: rank `rank` of the instance, as its record says.
    Assign {
        /// Whom.
        machine: MachineId,
        /// Of which instance.
        instance: InstanceId,
        /// Which assignment.
        epoch: Epoch,
        /// Which place.
        rank: u32,
    },
    /// Tell a machine to hold it no more; what it has in flight moves or ends first.
    Unassign {
        /// Whom.
        machine: MachineId,
        /// Which instance.
        instance: InstanceId,
        /// Which assignment; older ones end too.
        epoch: Epoch,
        /// Why.
        reason: String,
    },
    /// The instance takes no requests any more.
    Withdraw {
        /// Which.
        instance: InstanceId,
        /// And what it had?
        how: Withdrawal,
    },
    /// Keep this: the deployment's spec or history changed.
    Store(String),
    /// A machine said something that is not so.
    Stray {
        /// Who.
        machine: MachineId,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// What the controller needs to know of the world to plan.
#[derive(Debug, Clone, Default)]
pub struct World {
    /// Machines that can be planned with, by identity; whether they are connected is the controller's own knowledge.
    pub machines: Vec<(MachineId, Machine)>,
    /// Between them, by their numbers in `machines`.
    pub links: Links,
    /// Models.
    pub shapes: BTreeMap<String, Arc<Shape>>,
    /// What is asked of deployments.
    pub demand: BTreeMap<String, Demand>,
}

/// All deployments, instances and machines.
#[derive(Debug, Clone)]
pub struct Controller {
    policy: PlanPolicy,
    mode: Mode,
    rng: Rng,
    deployments: BTreeMap<String, Deployment>,
    instances: BTreeMap<InstanceId, Instance>,
    machines: BTreeMap<MachineId, Known>,
    epoch: Epoch,
    now: Micros,
    /// Words about what is not so.
    strays: u64,
    /// What one look changed is planned for again only when something happened, or it is time.
    changed: bool,
    /// Something was said since the last look.
    heard: bool,
    /// All is as it should be, as the last look found it: until something is said or planned there is nothing to see.
    at_rest: bool,
    next_plan: Micros,
    /// When it was last planned, and whether there was nothing to do.
    planned: (Micros, bool),
    /// Candidates that the last plan did not take.
    rejected: Vec<Rejected>,
    /// What the last plan would do, where nobody does it.
    unfollowed: Vec<String>,
}

/// How often it is looked at though nothing happened: dwell times and cool-downs end, demand moves.
const PLAN_EVERY: Micros = Micros::from_secs(5);

impl Controller {
    /// Nothing wanted yet. Epochs go on after `epoch`; identities and jitter come from `rng`.
    pub fn new(policy: PlanPolicy, epoch: Epoch, rng: Rng) -> Self {
        Self {
            policy,
            mode: Mode::Enforce,
            rng,
            deployments: BTreeMap::new(),
            instances: BTreeMap::new(),
            machines: BTreeMap::new(),
            epoch,
            now: Micros::ZERO,
            strays: 0,
            changed: true,
            heard: true,
            at_rest: false,
            next_plan: Micros::ZERO,
            planned: (Micros::ZERO, false),
            rejected: Vec::new(),
            unfollowed: Vec::new(),
        }
    }

    /// Whether plans are followed.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Machines, links or models are other ones than at the last look: it is planned for anew. Whoever changes its
    /// [`World`] says so; only demand is looked at by itself.
    pub fn world_changed(&mut self) {
        self.changed = true;
    }

    /// Whether plans are to be followed.
    pub fn set_mode(&mut self, mode: Mode) {
        self.changed = true;
        self.unfollowed.clear();
        self.mode = mode;
    }

    /// Candidates that the last plan did not take, and why.
    pub fn rejected(&self) -> &[Rejected] {
        &self.rejected
    }

    /// What the last plan would do, where plans are not followed.
    pub fn unfollowed(&self) -> &[String] {
        &self.unfollowed
    }

    /// Whether deployments may decide what a machine holds at the moment; why not.
    pub fn resting(&self, machine: MachineId) -> Option<&str> {
        let known = self.machines.get(&machine)?;
        (self.now < known.resting_until).then_some(known.resting.as_str())
    }

    /// What would be if `spec` were applied; as it is, where absent (D7). Nothing is changed.
    pub fn preview(&self, now: Micros, world: &World, spec: Option<Spec>) -> (Snapshot, Plan) {
        let mut copy = self.clone();
        copy.now = copy.now.max(now);
        if let Some(spec) = spec {
            copy.apply(spec, &mut Vec::new());
        }
        let (snapshot, _) = copy.snapshot(world);
        let decided = plan(&snapshot, &copy.policy);
        (snapshot, decided)
    }

    /// All deployments, by name.
    pub fn deployments(&self) -> impl Iterator<Item = (&String, &Deployment)> {
        self.deployments.iter()
    }

    /// One of them.
    pub fn deployment(&self, name: &str) -> Option<&Deployment> {
        self.deployments.get(name)
    }

    /// All instances.
    pub fn instances(&self) -> impl Iterator<Item = &Instance> {
        self.instances.values()
    }

    /// One of them.
    pub fn instance(&self, instance: InstanceId) -> Option<&Instance> {
        self.instances.get(&instance)
    }

    /// The largest epoch so far.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// How often a machine said something that was not so.
    pub fn strays(&self) -> u64 {
        self.strays
    }

    /// What a machine was told to hold.
    pub fn told(&self, machine: MachineId) -> &[(InstanceId, Epoch, u32)] {
        self.machines.get(&machine).map_or(&[], |known| known.told.as_slice())
    }

    /// Whether `machine` may offer rank `rank` of `instance` at `epoch` for requests: only rank 0 as it was told.
    pub fn admits(&self, machine: MachineId, instance: InstanceId, epoch: Epoch, rank: u32) -> bool {
        rank == 0 && self.told(machine).contains(&(instance, epoch, rank))
    }

    /// What people call a machine, where it was ever heard of.
    pub fn machine_name(&self, machine: MachineId) -> Option<&str> {
        self.machines.get(&machine).map(|known| known.name.as_str())
    }

    /// Whether a machine is connected.
    pub fn is_here(&self, machine: MachineId) -> bool {
        self.machines.get(&machine).is_some_and(|known| known.incarnation.is_some())
    }

    /// Lets its time begin: what is taken on next is away since then.
    pub fn begin_at(&mut self, now: Micros) {
        self.now = self.now.max(now);
    }

    /// A deployment as it was before the coordinator started again (D8).
    pub fn restore(&mut self, spec: Spec, generation: u64, history: impl IntoIterator<Item = Event>) {
        let name = spec.name.clone();
        let mut deployment = Deployment::new(spec, generation);
        deployment.history.extend(history);
        self.deployments.insert(name, deployment);
        self.changed = true;
    }

    /// Takes in what happened. Effects follow from the next look.
    pub fn handle(&mut self, now: Micros, input: Input, effects: &mut Vec<Effect>) {
        self.now = self.now.max(now);
        self.heard = true;
        match input {
            Input::Apply(spec) => self.apply(*spec, effects),
            Input::Delete(name) => self.delete(&name, effects),
            Input::MachineUp { machine, name, incarnation, fresh, holds } => {
                self.machine_up(machine, name, (incarnation, fresh), &holds, effects);
            }
            Input::MachineGone(machine) => self.machine_gone(machine),
            Input::Report { machine, instance, epoch, rank, report } => {
                self.report(machine, (instance, epoch, rank), report, effects);
            }
        }
    }

    /// The one look at everything.
    pub fn reconcile(&mut self, now: Micros, world: &World, effects: &mut Vec<Effect>) {
        self.now = self.now.max(now);
        if self.at_rest && !self.heard && !self.may_plan_otherwise() {
            return;
        }
        self.heard = false;
        // What is seen now was not known to the last plan.
        self.planned.1 = false;
        self.judge_instances(effects);
        self.judge_links(world, effects);
        if self.mode != Mode::Off && (self.changed || self.now >= self.next_plan) {
            self.changed = false;
            self.next_plan = self.now + PLAN_EVERY;
            if !self.is_empty() {
                self.follow_plan(world, effects);
            }
        }
        if self.mode == Mode::Enforce {
            self.renew_outdated(world, effects);
        }
        // Before what is healthy is forgiven: that is said by the look after it.
        self.at_rest = self.is_at_rest();
        self.say_conditions(effects);
    }

    /// Machines on which instances have their places, whatever they were told: between two tries they were told nothing.
    fn seats(&self) -> BTreeSet<MachineId> {
        self.instances
            .values()
            .flat_map(|instance| instance.places.iter().map(|(machine, _)| *machine))
            .collect()
    }

    /// Whether there is nothing to plan: nothing is wanted, and nothing is there.
    fn is_empty(&self) -> bool {
        self.deployments.is_empty() && self.instances.is_empty()
    }
}

impl Deployment {
    fn new(spec: Spec, generation: u64) -> Self {
        Self {
            spec,
            generation,
            conditions: Conditions::default(),
            history: VecDeque::new(),
            crashes: 0,
            paused_until: Micros::ZERO,
            errors: Vec::new(),
            noted: 0,
            was_ready: false,
        }
    }

    fn note(&mut self, at: Micros, what: String) {
        self.noted += 1;
        if self.history.len() >= HISTORY_MAX {
            self.history.pop_front();
        }
        self.history.push_back(Event { at, generation: self.generation, what });
    }
}
