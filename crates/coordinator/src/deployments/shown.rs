//! Deployments as operators see them.

use fleet::deployment::Condition;
use fleet::plan::file::{PlanOutput, output};
use fleet::reconcile::{Deployment, Instance, Phase, RankState};
use serde_json::Value;
use wire::admin::deployment::{
    ConditionStatus, DeployedFetch, DeployedInstance, DeployedRank, DeploymentStatus, PlannerStatus,
};

use super::Sight;
use super::writer::mode_name;

/// Lines that `why` has of the deployments that a machine holds nothing of.
const WHY_MAX: usize = 64;

impl Sight<'_> {
    /// All of them, by name.
    pub(crate) fn deployments(&self) -> Vec<DeploymentStatus> {
        self.controller.deployments().map(|(name, deployment)| self.shown(name, deployment)).collect()
    }

    /// One of them.
    pub(crate) fn deployment(&self, name: &str) -> Option<DeploymentStatus> {
        Some(self.shown(name, self.controller.deployment(name)?))
    }

    /// Whether plans are followed, and what they would do.
    pub(crate) fn planner(&self) -> PlannerStatus {
        PlannerStatus {
            mode: mode_name(self.controller.mode()).to_owned(),
            unfollowed: self.controller.unfollowed().to_vec(),
            strays: self.controller.strays(),
            epoch: self.controller.epoch(),
        }
    }

    /// What would be.
    pub(crate) fn preview(&self, spec: Option<fleet::deployment::Spec>) -> PlanOutput {
        let name = spec.as_ref().map(|spec| spec.name.clone());
        let (snapshot, plan) = self.controller.preview(self.now, self.world, spec);
        let mut said = output(&snapshot, &plan);
        // Whoever asks about one deployment reads about that one.
        if let Some(name) = name {
            said.placements.retain(|placement| placement.deployment == name);
            let of = |candidate: &str| candidate.strip_prefix(&name).is_some_and(|on| on.starts_with(" on "));
            said.rejected.retain(|rejected| of(&rejected.candidate));
        }
        said
    }

    fn shown(&self, name: &str, deployment: &Deployment) -> DeploymentStatus {
        let instances = self.controller.instances().filter(|instance| instance.deployment == name);
        DeploymentStatus {
            name: name.to_owned(),
            generation: deployment.generation,
            spec: serde_json::to_value(&deployment.spec).unwrap_or(Value::Null),
            conditions: deployment.conditions.iter().map(condition).collect(),
            instances: instances.map(|instance| self.instance(instance)).collect(),
            errors: deployment.errors.clone(),
        }
    }

    fn instance(&self, instance: &Instance) -> DeployedInstance {
        let layers = instance
            .stages
            .iter()
            .flat_map(|(layers, shares)| shares.iter().map(|_| [layers.start, layers.end]));
        let ranks = instance.places.iter().zip(&instance.ranks).zip(layers);
        let rank = |(((machine, _), state), layers): ((&(base::MachineId, u16), &RankState), [usize; 2])| {
            let (phase, percent) = match state {
                RankState::Told => ("told", 0),
                RankState::Draining(done) => ("draining", *done),
                RankState::Fetching(fetched) => ("fetching", fetched.percent()),
                RankState::Loading(done) => ("loading", *done),
                RankState::Ready => ("ready", 100),
            };
            let fetched = match state {
                RankState::Fetching(fetched) => Some(DeployedFetch {
                    done_bytes: fetched.done,
                    bytes: fetched.of,
                    bytes_per_s: fetched.bytes_per_s,
                }),
                _ => None,
            };
            DeployedRank {
                machine: *machine,
                name: self.controller.machine_name(*machine).unwrap_or("?").to_owned(),
                connected: self.controller.is_here(*machine),
                phase: phase.to_owned(),
                percent,
                fetched,
                layers,
            }
        };
        DeployedInstance {
            instance: instance.id,
            epoch: instance.epoch,
            phase: match instance.phase {
                Phase::Assigned => "assigned",
                Phase::Ready => "ready",
                Phase::Retrying(_) => "retrying",
            }
            .to_owned(),
            serves: instance.serves(),
            since_unix_us: instance.since.0,
            failures: instance.failures,
            ranks: ranks.map(rank).collect(),
        }
    }

    /// What a machine is to hold, and of every other deployment why it holds nothing of it.
    pub(crate) fn why(&self, machine: base::MachineId, name: &str) -> Vec<String> {
        let mut lines = Vec::new();
        let mut held = Vec::new();
        for instance in self.controller.instances() {
            let Some(rank) = instance.places.iter().position(|(place, _)| *place == machine) else {
                continue;
            };
            held.push(instance.deployment.as_str());
            let how = match (instance.phase, &instance.ranks[rank]) {
                (Phase::Retrying(_), _) => "failed, and is tried again here".to_owned(),
                (_, RankState::Fetching(fetched)) => {
                    format!("takes its model from other machines, {fetched}")
                }
                (_, RankState::Loading(done)) => format!("loads, {done} % done"),
                (_, RankState::Draining(done)) => format!("makes room for it, {done} % done"),
                (_, RankState::Told) => "was told to".to_owned(),
                (Phase::Assigned, RankState::Ready) => "is ready, and waits for the other ranks".to_owned(),
                (Phase::Ready, RankState::Ready) => "holds it".to_owned(),
            };
            let leads = instance.places.first().and_then(|(leader, _)| self.controller.machine_name(*leader));
            let place = match (rank, instance.places.len()) {
                (0, 1) => "rank 0".to_owned(),
                (0, ranks) => format!("rank 0 of {ranks}, which requests go to"),
                // It computes them, and offers nothing itself.
                (_, ranks) => format!(
                    "rank {rank} of {ranks}; requests go to rank 0, on {}",
                    leads.unwrap_or("another machine")
                ),
            };
            lines.push(format!("{}: {how} ({place})", instance.deployment));
        }
        if let Some(why) = self.controller.resting(machine) {
            lines.push(format!("gets nothing new: {why}"));
        }
        for (deployment, _) in self.controller.deployments() {
            if held.contains(&deployment.as_str()) || lines.len() >= WHY_MAX {
                continue;
            }
            let on = |candidate: &str| {
                let on = candidate.strip_prefix(deployment.as_str()).and_then(|on| on.strip_prefix(" on "));
                on.is_some_and(|on| on.split(" + ").any(|part| part.split('/').next() == Some(name)))
            };
            let rejected = self.controller.rejected().iter().find(|rejected| on(&rejected.candidate));
            let reason =
                rejected.map_or("it has what it wants elsewhere", |rejected| rejected.reason.as_str());
            lines.push(format!("{deployment}: not here: {reason}"));
        }
        lines
    }
}

fn condition(condition: &Condition) -> ConditionStatus {
    ConditionStatus {
        kind: format!("{:?}", condition.kind),
        status: format!("{:?}", condition.status),
        reason: condition.reason.clone(),
        message: condition.message.clone(),
        last_transition_unix_us: condition.last_transition.0,
        observed_generation: condition.observed_generation,
    }
}
