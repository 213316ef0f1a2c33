//! The world that plans are made for, out of what machines say of themselves and what is measured of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use fleet::plan::Shape;
use fleet::reconcile::World;
use fleet::topology::{Device, Link, LinkKind, LinkState, Links, Machine, Measured, Reach};
use wire::control::{Inventory, ModelOnDisk};

use super::inbox::{AllFacts, Facts};
use super::reach::add_proved;
use crate::core::Core;

/// What a machine is taken for that has measured nothing: one with two channels of memory.
const READ_BYTES_PER_S: f64 = 30e9;
const FLOPS_PER_BYTE: f64 = 20.0;
const DISK_BYTES_PER_S: f64 = 1e9;

/// What shapes were read from, so that each is read once.
#[derive(Default)]
pub(super) struct Worlds {
    pub(super) version: u64,
    /// What it was made of.
    pub(super) facts: AllFacts,
    shapes: HashMap<String, (ShapeKey, Option<Arc<Shape>>)>,
}

type ShapeKey = (String, u64, u64, u32);

impl Worlds {
    /// Makes `world` anew where machines said something else; whether they did.
    pub(super) fn refresh(&mut self, core: &Core, world: &mut World) -> bool {
        let Some((mut facts, reach, version)) = core.deployments.inbox.facts(self.version) else {
            return false;
        };
        // One that is back and has not told yet what it has: what it holds is not judged, and nothing is moved off it.
        facts.retain(|_, facts| !facts.managed || facts.inventory.is_some());
        self.version = version;
        world.machines = facts.iter().map(|(id, facts)| (*id, machine(facts))).collect();
        world.links = links(core, &facts, &reach);
        world.shapes = self.shapes(&facts);
        self.facts = facts;
        true
    }

    /// Columns of a model that are not cut apart.
    pub(super) fn grain(&self, model: &str) -> usize {
        let grain = self.shapes.get(model).map_or(1, |((_, _, _, grain), _)| *grain);
        usize::try_from(grain.max(1)).unwrap_or(1)
    }

    /// Every model that some machine has. Of machines that say different things of one name, the first counts: the others'
    /// instances are found out when they are offered.
    fn shapes(&mut self, facts: &AllFacts) -> BTreeMap<String, Arc<Shape>> {
        let mut shapes = BTreeMap::new();
        let mut seen: HashMap<String, (ShapeKey, Option<Arc<Shape>>)> = HashMap::new();
        let inventories = facts.values().filter_map(|facts| facts.inventory.as_deref());
        for model in inventories.flat_map(|inventory| &inventory.models) {
            let name = model.name.as_str();
            if seen.contains_key(name) {
                continue;
            }
            let key = (model.config.clone(), model.memory_bytes.0, model.parameters, model.grain);
            let shape = match self.shapes.remove(name) {
                Some((same, shape)) if same == key => shape,
                _ => shape(model),
            };
            if let Some(shape) = &shape {
                shapes.insert(name.to_owned(), Arc::clone(shape));
            }
            seen.insert(name.to_owned(), (key, shape));
        }
        self.shapes = seen;
        shapes
    }
}

fn shape(model: &ModelOnDisk) -> Option<Arc<Shape>> {
    match model::family::spec_from_config(model.config.as_bytes(), None) {
        Ok(spec) => {
            let bits = model.memory_bytes.0 as f64 * 8.0 / model.parameters.max(1) as f64;
            let grain = usize::try_from(model.grain.max(1)).unwrap_or(1);
            Some(Arc::new(Shape::new(Arc::new(spec), bits, grain)))
        }
        Err(error) => {
            let name: String = model.name.as_str().chars().filter(|c| !c.is_control()).take(80).collect();
            tracing::warn!(name, %error, "a machine's model has a configuration that cannot be read");
            None
        }
    }
}

fn machine(facts: &Facts) -> Machine {
    let inventory = facts.inventory.as_deref();
    let devices = inventory.map(devices).filter(|devices| !devices.is_empty()).unwrap_or_else(|| {
        vec![Device {
            name: "cpu0".to_owned(),
            // One that says nothing of what models may take gets none.
            memory: if facts.managed { 0 } else { facts.memory },
            bandwidth: READ_BYTES_PER_S,
            flops: READ_BYTES_PER_S * FLOPS_PER_BYTE,
            host_bandwidth: 0.0,
        }]
    });
    let known = |number: u64, otherwise: f64| if number == 0 { otherwise } else { number as f64 };
    let labels = inventory.map(|i| &i.labels).into_iter().flatten();
    let models = inventory.map(|i| &i.models).into_iter().flatten();
    // Who cannot be dialled gives nothing.
    let door = inventory.is_some_and(|i| !i.probe_addresses.is_empty());
    Machine {
        name: facts.name.clone(),
        // Whether it is connected is the controller's own knowledge.
        online: !facts.leaving,
        managed: facts.managed,
        resting: None,
        labels: labels.map(|label| (label.key.clone(), label.value.clone())).collect(),
        devices,
        on_disk: models.clone().map(|model| model.name.as_str().to_owned()).collect(),
        loaded: facts.serves.clone(),
        disk: inventory.map_or(DISK_BYTES_PER_S, |i| known(i.disk_bytes_per_s, DISK_BYTES_PER_S)),
        download: inventory.map_or(0.0, |i| i.download_bytes_per_s as f64),
        lends: models.clone().filter(|of| of.lent && door).map(|of| of.name.as_str().to_owned()).collect(),
        fetch_room: inventory.map_or(0, |i| i.fetch_room.0),
        measured: models.filter_map(measured).collect(),
    }
}

fn devices(inventory: &Inventory) -> Vec<Device> {
    let device = |facts: &wire::control::DeviceFacts| {
        let bandwidth =
            if facts.read_bytes_per_s == 0 { READ_BYTES_PER_S } else { facts.read_bytes_per_s as f64 };
        let flops = if facts.flops == 0 { bandwidth * FLOPS_PER_BYTE } else { facts.flops as f64 };
        let host_bandwidth = facts.host_read_bytes_per_s as f64;
        Device { name: facts.name.clone(), memory: facts.memory.0, bandwidth, flops, host_bandwidth }
    };
    inventory.devices.iter().map(device).collect()
}

fn measured(model: &ModelOnDisk) -> Option<(String, Measured)> {
    (model.decode_tokens_per_ks > 0).then(|| {
        let measured = Measured {
            decode_tokens_per_s: model.decode_tokens_per_ks as f64 / 1e3,
            prefill_tokens_per_s: model.prefill_tokens_per_ks as f64 / 1e3,
        };
        (model.name.as_str().to_owned(), measured)
    })
}

/// What is proved between machines; where the operator says that all reach each other, all of them do, as over a wire of
/// one gigabit.
fn links(core: &Core, facts: &AllFacts, reach: &Reach) -> Links {
    let mut links = Links::new(facts.len());
    add_proved(reach, facts, &mut links);
    if core.config.deployments.trust_network {
        let link = Link {
            kind: LinkKind::Ethernet,
            state: LinkState::Up,
            rtt_s: 5e-4,
            bandwidth: 1.25e8,
            rdma: false,
            private: true,
        };
        let all = 0..u32::try_from(facts.len()).unwrap_or(u32::MAX);
        links.add_network(all.collect(), link);
    }
    links
}
