//! What was decided, done: machines are told, pools let go, and what was said wrongly is counted.

use std::collections::HashMap;

use base::{InstanceId, MachineId, Micros, ModelName};
use fleet::reconcile::{Effect, Input, Instance, RankReport, Terms, Withdrawal};
use model::shard::ShardMap;
use wire::control::{Assignment, FromCoordinator, HELD_MAX, Lease, Unassignment};

use super::GroupTerms;
use super::writer::Writer;
use crate::metrics::Metrics;

/// How long a machine goes on holding what it was told without a word from here. Long: nobody is served worse by a machine
/// that is cut off, but its memory is not its owner's until then.
const LEASE_US: u64 = 600_000_000;
/// How often leases are renewed.
const RENEW_EVERY: Micros = Micros::from_secs(120);
/// The longest context that is held where a spec says none, as plans count it.
const CONTEXT_DEFAULT: u32 = 8192;

/// When leases are renewed next.
#[derive(Default)]
pub(super) struct Leases {
    at: Micros,
}

impl Leases {
    pub(super) fn due(&self) -> Micros {
        self.at + RENEW_EVERY
    }
}

impl Writer {
    pub(super) fn perform(&mut self, effects: Vec<Effect>) {
        let mut drains: HashMap<InstanceId, u64> = HashMap::new();
        for effect in effects {
            match effect {
                Effect::Assign { machine, instance, epoch, rank } => {
                    let current = self.controller.instance(instance);
                    // What was decided later in the same look counts.
                    if current.is_some_and(|current| current.epoch == epoch) {
                        self.assign(machine, instance, rank);
                    }
                }
                Effect::Unassign { machine, instance, epoch, reason } => {
                    if self.core.groups.contains(instance) {
                        // All of its ranks are told at once.
                        self.core.remove_group(instance);
                        continue;
                    }
                    let drain_us = drains.get(&instance).copied().unwrap_or(0);
                    // Held alone, or as a rank of a group that nobody here knows: whichever it is not is no news there.
                    let group = FromCoordinator::UnassignGroup { instance, epoch, reason: reason.clone() };
                    self.say(machine, group);
                    let unassignment = Unassignment { instance, epoch, reason, drain_us };
                    self.say(machine, FromCoordinator::Unassign(unassignment));
                }
                Effect::Withdraw { instance, how } => {
                    let drain_us = self.core.config.deployments.drain_us.0;
                    let drains_for = if how == Withdrawal::Drains { drain_us } else { 0 };
                    drains.insert(instance, drains_for);
                    let after = match how {
                        Withdrawal::Over => self.core.machines.withdraw(instance, false),
                        Withdrawal::BackSoon => self.core.machines.withdraw(instance, true),
                        Withdrawal::Drains => self.core.machines.drain(instance),
                    };
                    self.core.carry_out(None, after);
                }
                Effect::Store(name) => tracing::debug!(name, "a deployment changed"),
                Effect::Stray { machine, what } => {
                    Metrics::count(&self.core.metrics.deployment_events, "stray");
                    tracing::info!(%machine, what, "a word about an assignment that is not so");
                }
            }
        }
    }

    /// A machine that is away hears of it when it is back: it says then what it holds.
    fn say(&self, machine: MachineId, message: FromCoordinator) {
        if let Some(session) = self.core.machines.session(machine) {
            session.lanes.control(message);
        }
    }

    /// Tokens of a context that an instance holds; 0 where that is not known yet.
    fn context(&self, terms: &Terms) -> u32 {
        let default = || {
            let shape = self.world.shapes.get(&terms.model)?;
            u32::try_from(shape.spec().context).ok().map(|context| context.clamp(1, CONTEXT_DEFAULT))
        };
        terms.context.or_else(default).unwrap_or(0)
    }

    /// Several machines are one instance: their group forms, once for all that are told.
    fn form(&mut self, instance: &Instance, stands: bool) {
        let grain = self.worlds.grain(&instance.terms.model);
        let map = ShardMap::of(instance.stages.iter().cloned(), grain);
        let terms = GroupTerms {
            model: ModelName::new(instance.terms.model.as_str()),
            mode: map.mode(),
            shard_map: map.encode(),
            context: self.context(&instance.terms),
            max_batch: instance.terms.max_batch,
        };
        let machines: Vec<MachineId> = instance.places.iter().map(|(machine, _)| *machine).collect();
        self.core.form_deployed(instance.id, (instance.epoch, terms), &machines, stands);
    }

    /// Groups that stood before the coordinator started are waited for: their machines come back with their ranks.
    pub(super) fn await_groups(&mut self) {
        let groups: Vec<Instance> =
            self.controller.instances().filter(|instance| instance.places.len() > 1).cloned().collect();
        for instance in groups {
            self.form(&instance, true);
        }
    }

    pub(super) fn assign(&mut self, machine: MachineId, id: InstanceId, rank: u32) {
        let Some(instance) = self.controller.instance(id).cloned() else { return };
        if instance.places.len() > 1 {
            if self.core.groups.is_awaited(id, instance.epoch) {
                // It came back without its rank: this life is over for all of them.
                let epoch = instance.epoch;
                let report = RankReport::Failed("it does not hold its rank any more".to_owned());
                let input = Input::Report { machine, instance: id, epoch, rank, report };
                self.core.deployments.inbox.put(input);
                self.core.deployments.look_soon();
            } else if !self.waits_for_files(&instance) {
                self.form(&instance, false);
            }
            return;
        }
        if self.waits_for_files(&instance) {
            return;
        }
        let terms = &instance.terms;
        let assignment = Assignment {
            instance: id,
            epoch: instance.epoch,
            rank,
            model: ModelName::new(terms.model.as_str()),
            context: self.context(terms),
            max_batch: terms.max_batch,
            exclusive: terms.exclusive,
            lease_us: LEASE_US,
        };
        tracing::info!(%machine, instance = %id, epoch = assignment.epoch.0, model = %assignment.model, "assigned");
        self.say(machine, FromCoordinator::Assign(assignment));
    }

    /// Says to every machine what is still wanted of it.
    pub(super) fn renew_leases(&mut self, now: Micros) {
        if now < self.leases.due() {
            return;
        }
        self.leases.at = now;
        let mut machines: Vec<MachineId> =
            self.controller.instances().flat_map(|i| i.places.iter().map(|(machine, _)| *machine)).collect();
        machines.sort_unstable();
        machines.dedup();
        for machine in machines {
            let told = self.controller.told(machine).iter().take(HELD_MAX);
            let leases: Vec<Lease> =
                told.map(|(instance, epoch, _)| Lease { instance: *instance, epoch: *epoch }).collect();
            if !leases.is_empty() {
                let leases = wire::control::Leases { lease_us: LEASE_US, leases };
                self.say(machine, FromCoordinator::RenewLeases(leases));
            }
        }
    }
}
