//! The task that decides about deployments: takes what came in, looks once at everything, keeps what follows, tells it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use base::{Epoch, InstanceId, MachineId, Micros, Rng};
use fleet::plan::PlanPolicy;
use fleet::reconcile::{Controller, Effect, Input, Mode, RankReport, World};
use store::StoreError;
use tokio::sync::mpsc;

use super::demand::Rates;
use super::fetches::Fetches;
use super::perform::Leases;
use super::reach::Asked;
use super::world::Worlds;
use super::{Command, Sight, kept};
use crate::clock::unix_us;
use crate::core::Core;
use crate::metrics::Metrics;
use crate::problem::Problem;

/// The setting that holds whether plans are followed.
const MODE: &str = "deployments_mode";

/// How soon is looked again whether what is ready is offered. What makes it so has the task look at once.
const EARLY_AGAIN: Micros = Micros::from_millis(50);

/// Commands that one look takes in.
const TAKEN_MAX: usize = 32;

/// The task.
pub(crate) struct Writer {
    pub(super) core: Arc<Core>,
    pub(super) controller: Controller,
    pub(super) world: World,
    pub(super) worlds: Worlds,
    rates: Rates,
    pub(super) leases: Leases,
    /// Whom machines were asked to try.
    asked: Asked,
    /// What waits for a model's files.
    pub(super) fetches: Fetches,
    /// Microseconds since 1970 when the coordinator's clock was at zero: wall time that never jumps.
    origin: Micros,
    /// Ranks that said they are ready before their instance was offered for requests: they are believed once it is.
    early: Vec<(MachineId, (InstanceId, Epoch, u32))>,
    /// What the next look performs.
    effects: Vec<Effect>,
    /// Models whose pools were told that a deployment wants them served.
    wanted: BTreeSet<String>,
    /// Lines of history that are on the disk, by deployment.
    pub(super) noted: BTreeMap<String, u64>,
    /// Placements that are on the disk.
    pub(super) placed: HashMap<InstanceId, Epoch>,
    /// The largest epoch that is on the disk.
    pub(super) epoch: Epoch,
}

impl Writer {
    /// With what the disk has.
    pub(super) async fn restore(core: Arc<Core>) -> Result<Self, StoreError> {
        let origin = Micros(unix_us()).saturating_sub(core.clock.now());
        let kept = core.store.deployments().await?;
        let mode = core.store.setting(MODE).await?;
        let rng = Rng::new(core.seed());
        let mut controller = Controller::new(PlanPolicy::default(), Epoch(kept.epoch), rng);
        if let Some(mode) = mode.as_deref().and_then(parse_mode) {
            controller.set_mode(mode);
        }
        let epoch = Epoch(kept.epoch);
        let placed = kept.placements.iter().map(|(id, _)| *id).collect::<Vec<_>>();
        // Deadlines count from now, whatever the time was before.
        let now = origin + core.clock.now();
        controller.begin_at(now);
        kept::restore(&mut controller, kept, now);
        let noted = controller.deployments().map(|(name, d)| (name.clone(), d.noted)).collect();
        // Those that were not taken on are removed at the first look.
        let of = |id: InstanceId| (id, controller.instance(id).map_or(Epoch(0), |i| i.epoch));
        let placed = placed.into_iter().map(of).collect();
        core.deployments.publish(&controller);
        let wanted = wanted(&controller);
        core.tell(core.pools.set_wanted(wanted.clone()));
        Ok(Self {
            core,
            controller,
            world: World::default(),
            worlds: Worlds::default(),
            rates: Rates::default(),
            leases: Leases::default(),
            asked: Asked::default(),
            fetches: Fetches::default(),
            origin,
            early: Vec::new(),
            effects: Vec::new(),
            wanted,
            noted,
            placed,
            epoch,
        })
    }

    /// Now, in microseconds since 1970 that never jump.
    pub(super) fn now(&self) -> Micros {
        self.origin + self.core.clock.now()
    }

    /// Gives the controller an input.
    pub(super) fn input(&mut self, input: Input) {
        let now = self.now();
        self.controller.handle(now, input, &mut self.effects);
    }

    /// Decides, as long as the coordinator runs.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let core = Arc::clone(&self.core);
        loop {
            let mut next = self.controller.next_deadline().min(self.rates.due()).min(self.leases.due());
            if !self.early.is_empty() {
                next = next.min(self.now() + EARLY_AGAIN);
            }
            let at = self.core.clock.instant(next.saturating_sub(self.origin));
            let command = tokio::select! {
                () = core.end.cancelled() => return,
                () = core.deployments.look.notified() => None,
                () = tokio::time::sleep_until(at) => None,
                command = commands.recv() => match command {
                    Some(command) => Some(command),
                    None => return,
                },
            };
            let mut waiting: Vec<Command> = command.into_iter().collect();
            while waiting.len() < TAKEN_MAX
                && let Ok(command) = commands.try_recv()
            {
                waiting.push(command);
            }
            // What machines said comes first, so that operators look at what is so.
            self.step().await;
            let mut changed = false;
            for command in waiting {
                changed |= self.command(command).await;
            }
            if changed {
                self.step().await;
            }
        }
    }

    async fn step(&mut self) {
        let now = self.now();
        let (inputs, dropped) = self.core.deployments.inbox.take();
        for _ in 0..dropped {
            Metrics::count(&self.core.metrics.deployment_events, "dropped");
        }
        // What was taken back meanwhile is ready no more, and whoever said so was right.
        let mut early = std::mem::take(&mut self.early);
        early.retain(|(machine, told)| self.controller.told(*machine).contains(told));
        let early = early.into_iter().map(|(machine, (instance, epoch, rank))| {
            let report = RankReport::Ready;
            Input::Report { machine, instance, epoch, rank, report }
        });
        for input in early.chain(inputs) {
            if let Some(input) = self.once_offered(input) {
                self.controller.handle(now, input, &mut self.effects);
            }
        }
        self.rates.take(&self.core, now);
        self.refresh_world();
        self.controller.reconcile(now, &self.world, &mut self.effects);
        self.keep_changes().await;
        self.core.deployments.publish(&self.controller);
        let wanted = wanted(&self.controller);
        if wanted != self.wanted {
            self.core.tell(self.core.pools.set_wanted(wanted.clone()));
            self.wanted = wanted;
        }
        let effects = std::mem::take(&mut self.effects);
        self.perform(effects);
        self.follow_fetches();
        self.renew_leases(now);
    }

    /// An input, without what is not so yet: rank 0 is ready when its instance is offered for requests.
    fn once_offered(&mut self, mut input: Input) -> Option<Input> {
        let waits = |instance| !self.core.machines.is_offered(instance);
        let mut later = Vec::new();
        let mut is_later = false;
        match &mut input {
            Input::Report { machine, instance, epoch, rank: 0, report: RankReport::Ready }
                if waits(*instance) =>
            {
                let told = (*instance, *epoch, 0);
                // Of what it was not told it is a stray word, now as later.
                is_later = self.controller.told(*machine).contains(&told);
                later.push((*machine, told));
            }
            Input::MachineUp { machine, holds, .. } => {
                for held in holds.iter_mut().filter(|held| held.ready && held.rank == 0) {
                    if waits(held.instance) {
                        held.ready = false;
                        later.push((*machine, (held.instance, held.epoch, 0)));
                    }
                }
            }
            _ => {}
        }
        // An epoch to come is nothing that anybody was told.
        later.retain(|about| self.controller.told(about.0).contains(&about.1) && !self.early.contains(about));
        self.early.append(&mut later);
        (!is_later).then_some(input)
    }

    fn refresh_world(&mut self) {
        let core = Arc::clone(&self.core);
        if self.worlds.refresh(&core, &mut self.world) {
            self.controller.world_changed();
        }
        self.world.demand = self.rates.of(&self.controller);
        let facts = (&self.worlds.facts, self.worlds.version, core.clock.now());
        let specs: Vec<_> = self.controller.deployments().map(|(_, of)| (of.generation, &of.spec)).collect();
        self.asked.tell(&core, facts, &specs);
    }

    /// Carries out a command; whether something changed.
    async fn command(&mut self, command: Command) -> bool {
        match command {
            Command::Change(change, call, reply) => {
                let changed = self.change(change, call).await;
                let is_ok = changed.is_ok();
                // What follows is decided before the answer, so that whoever looks next finds it.
                if is_ok {
                    self.step().await;
                }
                let _ = reply.send(changed);
                false
            }
            Command::Mode(mode, reply) => {
                let kept = self.core.store.put_setting(MODE, Some(mode_name(mode))).await;
                if kept.is_ok() {
                    self.controller.set_mode(mode);
                }
                let kept = kept.map_err(|error| Problem::Store { detail: error.to_string() });
                let is_ok = kept.is_ok();
                let _ = reply.send(kept);
                is_ok
            }
            Command::Look(look) => {
                let (controller, world, now) = (&self.controller, &self.world, self.now());
                look(&Sight { controller, world, now });
                false
            }
        }
    }
}

/// Models of which deployments will have instances again, whatever becomes of those that they have.
fn wanted(controller: &Controller) -> BTreeSet<String> {
    let follows = controller.mode() == Mode::Enforce;
    let specs = controller.deployments().map(|(_, deployment)| &deployment.spec);
    specs.filter(|spec| follows && spec.replicas.ceiling() > 0).map(|spec| spec.model.clone()).collect()
}

/// What a mode is called.
pub(crate) fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Enforce => "enforce",
        Mode::Shadow => "shadow",
        Mode::Off => "off",
    }
}

/// The mode of that name.
pub(crate) fn parse_mode(name: &str) -> Option<Mode> {
    match name {
        "enforce" => Some(Mode::Enforce),
        "shadow" => Some(Mode::Shadow),
        "off" => Some(Mode::Off),
        _ => None,
    }
}
