//! Deployments on the disk: what is written after each look, and what a start begins with.

use std::ops::Range;

use base::{Epoch, InstanceId, MachineId, Micros};
use fleet::deployment::Spec;
use fleet::reconcile::{Controller, Instance, Phase, RankState, Terms};
use serde::{Deserialize, Serialize};
use store::{DeploymentChange, DeploymentEvent, KeptDeployment, KeptDeployments, Store, StoreError};

use super::writer::Writer;
use crate::clock::unix_us;

/// Where an instance was placed.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    deployment: String,
    epoch: Epoch,
    /// When, in microseconds since 1970.
    placed_unix_us: u64,
    terms: Terms,
    /// By rank: the machine, what it is called, which device.
    places: Vec<(MachineId, String, u16)>,
    /// The first layer, the one after the last, and shares.
    stages: Vec<(usize, usize, Vec<u32>)>,
}

impl Record {
    fn of(instance: &Instance, name: impl Fn(MachineId) -> String) -> Self {
        Self {
            deployment: instance.deployment.clone(),
            epoch: instance.epoch,
            placed_unix_us: instance.placed.0,
            terms: instance.terms.clone(),
            places: instance.places.iter().map(|(id, device)| (*id, name(*id), *device)).collect(),
            stages: instance.stages.iter().map(|(l, shares)| (l.start, l.end, shares.clone())).collect(),
        }
    }

    fn instance(self, id: InstanceId, now: Micros) -> (Instance, Vec<String>) {
        let names = self.places.iter().map(|(_, name, _)| name.clone()).collect();
        let stages = self.stages.into_iter();
        let stages: Vec<(Range<usize>, Vec<u32>)> =
            stages.map(|(start, end, shares)| (start..end, shares)).collect();
        let instance = Instance {
            id,
            deployment: self.deployment,
            ranks: vec![RankState::Told; self.places.len()],
            places: self.places.into_iter().map(|(machine, _, device)| (machine, device)).collect(),
            terms: self.terms,
            stages,
            epoch: self.epoch,
            phase: Phase::Assigned,
            since: now,
            placed: Micros(self.placed_unix_us),
            failures: 0,
            losses: 0,
            excused: false,
            away_since: Some(now),
            doubted: false,
        };
        (instance, names)
    }
}

/// Before a coordinator starts whose own machines ended with it: what was placed of the deployments `of` is nowhere, and of
/// these, those that are not `wanted` any more are deleted. Gives the names of all other deployments.
///
/// # Errors
/// The store fails.
pub async fn forget_placements(
    store: &dyn Store,
    of: &[String],
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<String>, StoreError> {
    let kept = store.deployments().await?;
    let others = kept.deployments.iter().map(|kept| kept.name.clone()).filter(|name| !of.contains(name));
    let others = others.collect();
    let mut changes = Vec::new();
    for (instance, record) in &kept.placements {
        let record = serde_json::from_str::<Record>(record);
        if record.is_ok_and(|record| of.contains(&record.deployment)) {
            changes.push(DeploymentChange::Ended { instance: *instance });
        }
    }
    let over = |kept: &&KeptDeployment| of.contains(&kept.name) && !wanted(&kept.name);
    for KeptDeployment { name, generation, .. } in kept.deployments.iter().filter(over) {
        changes.push(DeploymentChange::Event(DeploymentEvent {
            name: name.clone(),
            generation: *generation,
            at_unix_us: unix_us(),
            what: "it was deleted: whoever declared it was started without it".to_owned(),
        }));
        changes.push(DeploymentChange::Deleted { name: name.clone() });
    }
    if !changes.is_empty() {
        store.keep_deployments(changes).await?;
    }
    Ok(others)
}

/// Gives a controller what was kept. What cannot be read is left out, and said.
pub(super) fn restore(controller: &mut Controller, kept: KeptDeployments, now: Micros) {
    for deployment in kept.deployments {
        match serde_json::from_str::<Spec>(&deployment.spec) {
            Ok(spec) => controller.restore(spec, deployment.generation, []),
            Err(error) => {
                let name = deployment.name;
                tracing::error!(name, %error, "a kept deployment cannot be read, and is left as it is");
            }
        }
    }
    for (id, record) in kept.placements {
        match serde_json::from_str::<Record>(&record) {
            Ok(record) if !record.places.is_empty() => {
                let (instance, names) = record.instance(id, now);
                controller.adopt(instance, &names);
            }
            Ok(_) => {}
            Err(error) => tracing::error!(instance = %id, %error, "a kept placement cannot be read"),
        }
    }
}

impl Writer {
    /// Lines of history of `name` that are not on the disk yet.
    pub(super) fn lines_of(&self, name: &str) -> Vec<DeploymentChange> {
        let Some(deployment) = self.controller.deployment(name) else { return Vec::new() };
        let written = self.noted.get(name).copied().unwrap_or(0);
        let new = usize::try_from(deployment.noted.saturating_sub(written)).unwrap_or(usize::MAX);
        let skipped = deployment.history.len().saturating_sub(new);
        let lines = deployment.history.iter().skip(skipped).map(|event| {
            DeploymentChange::Event(DeploymentEvent {
                name: name.to_owned(),
                generation: event.generation,
                at_unix_us: event.at.0,
                what: event.what.clone(),
            })
        });
        lines.collect()
    }

    /// Writes what a look changed. Where the disk fails, the next look tries again.
    pub(super) async fn keep_changes(&mut self) {
        let mut changes = Vec::new();
        for (name, deployment) in self.controller.deployments() {
            if self.noted.get(name) != Some(&deployment.noted) {
                changes.extend(self.lines_of(name));
            }
        }
        let name =
            |machine: MachineId| self.core.machines.name(machine).unwrap_or_else(|| machine.to_string());
        for instance in self.controller.instances() {
            if self.placed.get(&instance.id) != Some(&instance.epoch)
                && let Ok(record) = serde_json::to_string(&Record::of(instance, name))
            {
                changes.push(DeploymentChange::Placed { instance: instance.id, record });
            }
        }
        let gone = |id: &&InstanceId| self.controller.instance(**id).is_none();
        let ended = self.placed.keys().filter(gone).map(|id| DeploymentChange::Ended { instance: *id });
        changes.extend(ended);
        if self.controller.epoch() > self.epoch {
            changes.push(DeploymentChange::Epoch(self.controller.epoch().0));
        }
        if changes.is_empty() {
            return;
        }
        if let Err(error) = self.core.store.keep_deployments(changes).await {
            tracing::error!(%error, "what was decided about deployments could not be kept; it is tried again");
            return;
        }
        let deployments = self.controller.deployments();
        self.noted = deployments.map(|(name, deployment)| (name.clone(), deployment.noted)).collect();
        self.placed = self.controller.instances().map(|instance| (instance.id, instance.epoch)).collect();
        self.epoch = self.controller.epoch();
    }
}
