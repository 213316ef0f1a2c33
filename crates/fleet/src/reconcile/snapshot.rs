//! What a plan is made from, out of all that is known at a moment.

use std::collections::BTreeMap;

use base::{InstanceId, MachineId};

use super::{Controller, World};
use crate::deployment::Replicas;
use crate::plan::{Running, Snapshot, Wanted};
use crate::topology::Fleet;

/// How many instances of a deployment a plan looks at, and how many it leaves as they are.
#[derive(Debug, Clone, Copy, Default)]
struct Share {
    running: u32,
    unseen: u32,
}

impl Controller {
    /// What a plan is made from, and the instances that it numbers. Deployments that pause want nothing new. What is
    /// doubted is not there: another place is looked for. Of what cannot be judged (after a start of the coordinator: its
    /// machines have not come back, or nobody has told what its model is) so much less is wanted, and its machines rest.
    pub(super) fn snapshot(&self, world: &World) -> (Snapshot, Vec<InstanceId>) {
        let numbers: BTreeMap<MachineId, u32> =
            world.machines.iter().enumerate().map(|(at, (id, _))| (*id, at as u32)).collect();
        let by_name: BTreeMap<&str, usize> =
            self.deployments.keys().enumerate().map(|(at, name)| (name.as_str(), at)).collect();
        let mut shares = vec![Share::default(); by_name.len()];
        let mut fleet = self.fleet(world);
        let mut running = Vec::new();
        let mut ids = Vec::new();
        for instance in self.instances.values().filter(|instance| !instance.doubted) {
            let Some(&deployment) = by_name.get(instance.deployment.as_str()) else { continue };
            let seats: Vec<Option<u32>> =
                instance.places.iter().map(|(machine, _)| numbers.get(machine).copied()).collect();
            if seats.contains(&None) || !world.shapes.contains_key(&instance.terms.model) {
                shares[deployment].unseen += 1;
                for seat in seats.into_iter().flatten() {
                    let reason = "it holds what an earlier start of the coordinator placed".to_owned();
                    fleet.machines[seat as usize].resting = Some(reason);
                }
                continue;
            }
            shares[deployment].running += 1;
            let devices = instance.places.iter().map(|(_, device)| *device);
            running.push(Running {
                deployment,
                ranks: seats.into_iter().flatten().zip(devices).collect(),
                ready: instance.is_ready(),
                since: instance.placed,
                stages: Some(instance.stages.clone()),
            });
            ids.push(instance.id);
        }
        let wanted = self.wanted(world, &shares);
        (Snapshot { fleet, wanted, running, now: self.now }, ids)
    }

    fn fleet(&self, world: &World) -> Fleet {
        let mut fleet =
            Fleet { machines: Vec::with_capacity(world.machines.len()), links: world.links.clone() };
        let seats = self.seats();
        for (id, machine) in &world.machines {
            let mut machine = machine.clone();
            let known = self.machines.get(id);
            // One that is away for a moment keeps what it has, and gets nothing new.
            let here = known.is_some_and(|known| known.incarnation.is_some());
            let soon = known.is_some_and(|known| seats.contains(id) && !known.is_doubtful(self.now));
            machine.online &= here || soon;
            if machine.online && !here {
                machine.resting = Some("it is not connected at the moment".to_owned());
            }
            if let Some(known) = known
                && self.now < known.resting_until
            {
                machine.resting = Some(known.resting.clone());
            }
            fleet.machines.push(machine);
        }
        fleet
    }

    fn wanted(&self, world: &World, shares: &[Share]) -> Vec<Wanted> {
        let of = self.deployments.iter().zip(shares);
        of.map(|((name, deployment), share)| {
            let mut spec = deployment.spec.clone();
            let paused = self.now < deployment.paused_until;
            let shape = match world.shapes.get(&spec.model).cloned() {
                Some(shape) if !paused || share.running > 0 => Ok(shape),
                Some(_) => Err("it failed everywhere, and is tried again after a pause".to_owned()),
                None => Err(format!("no connected machine has the model {:?} on its disk", spec.model)),
            };
            let less = |number: u32| number.saturating_sub(share.unseen);
            spec.replicas = match spec.replicas {
                // What it has stays; nothing is added.
                ref replicas if paused => Replicas::Fixed(share.running.min(less(replicas.ceiling()))),
                Replicas::Fixed(number) => Replicas::Fixed(less(number)),
                Replicas::Demand(mut bounds) => {
                    (bounds.floor, bounds.ceiling) = (less(bounds.floor), less(bounds.ceiling));
                    Replicas::Demand(bounds)
                }
            };
            let demand = world.demand.get(name).copied().unwrap_or_default();
            Wanted { spec, shape, demand }
        })
        .collect()
    }
}
