//! The coordinator of a life is killed and starts again: what its disk has is taken on, and machines come back holding.

use std::collections::BTreeSet;

use base::{Epoch, InstanceId, MachineId, Micros, ModelName, RequestId};
use fleet::deployment::{ConditionType, Spec};
use fleet::plan::PlanPolicy;
use fleet::reconcile::{Controller, Instance, Phase, RankState, Terms, World};
use fleet::topology::Reach;
use fleet::{Input, Policy, Pool};

use super::{Happening, MODELS, Plant, Sim};

/// Providers dial again after so long at most.
const BACK_MAX: Micros = Micros::from_secs(15);
/// In fleets up to this size what machines say of themselves is taken in at once, in larger ones once a look.
const AT_ONCE_MAX: usize = 32;

/// The coordinator, apart from what it decides.
pub(super) struct Coordinator {
    is_down: bool,
    /// All machines that there are, as they say of themselves.
    whole: World,
    /// Those that have said so since it started.
    pub(super) seen: BTreeSet<MachineId>,
    /// What is known of the world has changed since it was made.
    pub(super) stale: bool,
    disk: Disk,
    /// What ran undisturbed when it was killed, and is to be taken on as it is.
    runs: Vec<(InstanceId, Epoch)>,
    /// When that is due at the earliest: it may be killed again before.
    taken_on_at: Micros,
    /// Something went wrong since.
    pub(super) disturbed: bool,
}

/// What is kept.
#[derive(Default)]
struct Disk {
    deployments: Vec<(Spec, u64)>,
    placements: Vec<(Instance, Vec<String>)>,
    epoch: Epoch,
}

impl Coordinator {
    pub(super) fn of(world: &World) -> Self {
        Self {
            is_down: false,
            whole: world.clone(),
            seen: world.machines.iter().map(|(id, _)| *id).collect(),
            stale: true,
            disk: Disk::default(),
            runs: Vec::new(),
            taken_on_at: Micros::ZERO,
            disturbed: false,
        }
    }
}

pub(super) fn pools(rng: &mut base::Rng) -> Vec<Pool> {
    let policy = Policy { explained_max: 0, ..Policy::default() };
    MODELS.iter().map(|(name, _)| Pool::new(ModelName::new(*name), policy, rng.fork(3))).collect()
}

impl Sim {
    pub(super) fn is_down(&self) -> bool {
        self.coordinator.is_down
    }

    /// A machine says what it is.
    pub(super) fn seen(&mut self, machine: MachineId) {
        self.coordinator.stale |= self.coordinator.seen.insert(machine);
        if self.providers.len() <= AT_ONCE_MAX {
            self.see_world();
        }
    }

    /// Makes the world anew where something of it changed.
    pub(super) fn see_world(&mut self) {
        if !std::mem::take(&mut self.coordinator.stale) {
            return;
        }
        let Coordinator { whole, seen, .. } = &self.coordinator;
        self.world.machines = whole.machines.iter().filter(|(id, _)| seen.contains(id)).cloned().collect();
        self.world.shapes = if seen.is_empty() { Default::default() } else { whole.shapes.clone() };
        let machines: Vec<MachineId> = self.world.machines.iter().map(|(id, _)| *id).collect();
        self.network.known = self.network.links(&machines);
        self.world.links = match self.is_planted(Plant::HidesTheCut) {
            true => crate::world::lan(machines.len()),
            false => self.network.known.clone(),
        };
        self.controller.world_changed();
    }

    /// Its process ends: callers lose their connections, machines theirs; what is on the disk stays.
    pub(super) fn kill_coordinator(&mut self, away: Micros) {
        self.say(|| format!("the coordinator is killed ({:.0} s)", away.as_secs_f64()));
        self.coordinator.runs = self.what_runs();
        self.coordinator.disturbed = false;
        self.coordinator.is_down = true;
        self.coordinator.disk = self.kept();
        let open: Vec<(RequestId, Option<InstanceId>)> =
            self.requests.iter().map(|(request, running)| (*request, running.instance)).collect();
        for (request, instance) in open {
            if let Some(instance) = instance {
                self.witness.left(request, instance);
            }
            // What was reserved for it and not used comes back when the ledger is read again.
            if !self.is_planted(Plant::KeepsTheOpen) {
                self.over(request, false);
            }
        }
        self.offered.clear();
        self.pools = pools(&mut self.rng);
        for machine in self.providers.keys().copied().collect::<Vec<_>>() {
            let provider = self.providers.get_mut(&machine).expect("machines are not forgotten");
            let was_linked = provider.linked;
            let connection = if was_linked { provider.cut(false) } else { provider.connection };
            if was_linked {
                let back = away + Micros(self.rng.below(BACK_MAX.0));
                self.after(back, Happening::Connect(machine, connection));
            }
        }
        self.after(away, Happening::Starts);
    }

    /// What runs, and nothing is about to change it.
    fn what_runs(&self) -> Vec<(InstanceId, Epoch)> {
        let is_settled = self.controller.deployments().all(|(name, deployment)| {
            let of = self.controller.instances().filter(|i| i.deployment == *name);
            deployment.conditions.is(ConditionType::Placed)
                && deployment.conditions.is(ConditionType::Ready)
                && of.count() == deployment.spec.replicas.floor() as usize
        });
        let runs = |instance: &&Instance| {
            let spec = self.controller.deployment(&instance.deployment).map(|of| &of.spec);
            let holds = |(machine, _): &(MachineId, u16)| {
                let provider = &self.providers[machine];
                provider.linked && provider.has((instance.id, instance.epoch)) == Some(true)
            };
            instance.is_ready()
                && spec.is_some_and(|spec| Terms::of(spec) == instance.terms)
                && instance.places.iter().all(holds)
        };
        let all: Vec<&Instance> = self.controller.instances().collect();
        // Where one of them is not as it should be, or not for long any more, others may be moved for it.
        if !is_settled || self.network.is_cut() || !all.iter().all(runs) {
            return Vec::new();
        }
        all.into_iter().map(|instance| (instance.id, instance.epoch)).collect()
    }

    /// What the disk has of what was decided.
    fn kept(&self) -> Disk {
        let deployments = self.controller.deployments().map(|(_, of)| (of.spec.clone(), of.generation));
        let name = |machine: &MachineId| self.providers[machine].name.clone();
        let placement = |of: &Instance| {
            let names = of.places.iter().map(|(machine, _)| name(machine)).collect();
            let of = Instance {
                ranks: vec![RankState::Told; of.places.len()],
                phase: Phase::Assigned,
                failures: 0,
                losses: 0,
                excused: false,
                doubted: false,
                ..of.clone()
            };
            (of, names)
        };
        let placements = self.controller.instances().map(placement).collect();
        Disk { deployments: deployments.collect(), placements, epoch: self.controller.epoch() }
    }

    /// It reads its disk, and waits for its machines.
    pub(super) fn starts(&mut self) {
        self.say(|| "the coordinator starts".to_owned());
        let mut disk = std::mem::take(&mut self.coordinator.disk);
        if self.is_planted(Plant::EpochsStartAgain) {
            disk.epoch = Epoch(0);
        }
        if self.is_planted(Plant::EpochsStartAgain) || self.is_planted(Plant::ForgetsPlacements) {
            disk.placements.clear();
        }
        if self.is_planted(Plant::LosesADeployment) {
            disk.deployments.truncate(1);
        }
        let clock = self.clock();
        self.controller = Controller::new(PlanPolicy::default(), disk.epoch, self.rng.fork(1));
        self.controller.begin_at(clock);
        for (spec, generation) in disk.deployments {
            self.controller.restore(spec, generation, []);
        }
        for (instance, names) in disk.placements {
            let instance = Instance { since: clock, away_since: Some(clock), ..instance };
            self.controller.adopt(instance, &names);
        }
        self.network.reach = Reach::default();
        self.coordinator.seen.clear();
        (self.coordinator.stale, self.coordinator.is_down) = (true, false);
        self.see_world();
        for (model, (name, _)) in MODELS.iter().enumerate() {
            let wanted = self.controller.deployment(name).is_some();
            self.pool(model, Input::Wanted { wanted });
        }
        self.check_declared();
        for machine in self.providers.keys().copied().collect::<Vec<_>>() {
            self.check_told(machine);
        }
        self.after(Micros(1), Happening::Tick);
        let taken_on = BACK_MAX + Micros::from_secs(4);
        self.coordinator.taken_on_at = self.now + taken_on;
        self.after(taken_on, Happening::TakenOn);
    }

    /// Machines have come back: what ran runs, as what it was, and takes requests.
    pub(super) fn taken_on(&mut self) {
        if self.now < self.coordinator.taken_on_at {
            return;
        }
        let runs = std::mem::take(&mut self.coordinator.runs);
        if self.coordinator.disturbed || self.is_down() {
            return;
        }
        for (id, epoch) in runs {
            let of = self.controller.instance(id).filter(|of| of.epoch == epoch);
            if !of.is_some_and(Instance::is_ready) || !self.offered.contains_key(&id) {
                let now = self.controller.instance(id).map(|of| (of.epoch, of.phase));
                let what =
                    format!("{id} ran at {epoch} before the coordinator started again, and is now {now:?}");
                self.violate("adoption", what);
            }
        }
    }

    /// Exactly what operators declared is wanted, as they said it last.
    pub(super) fn check_declared(&mut self) {
        for (model, (name, _)) in MODELS.iter().enumerate() {
            let wanted = self.declared[model].then_some(&self.specs[model]);
            let known = self.controller.deployment(name).map(|of| &of.spec);
            if wanted != known {
                let is = if known.is_some() { "is known otherwise" } else { "is not known" };
                let is = if wanted.is_none() { "is known, and was deleted" } else { is };
                self.violate("deployments stay", format!("{name} {is}"));
            }
        }
    }
}
