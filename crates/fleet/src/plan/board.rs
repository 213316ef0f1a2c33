//! The state of a plan being made: devices, who sits on them, and what each deployment has so far.

use std::collections::HashMap;
use std::ops::Range;

use smallvec::SmallVec;

use super::candidates::Ledger;
use super::demand::capacity;
use super::divide::{Divided, Load, STEP_S, Seat};
use super::singles::Singles;
use super::why::Why;
use super::{PlacedRank, Placement, PlanPolicy, Predicted, Shape, Short, Snapshot};
use crate::deployment::{Division, Machines, Replicas, WhenLost};

/// One device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Node {
    pub machine: u32,
    pub device: u16,
    /// What may be planned with.
    pub usable: u64,
    pub bandwidth: f64,
    pub flops: f64,
    pub host: f64,
}

/// Who sits on a machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Resident {
    pub instance: usize,
    pub deployment: usize,
    pub node: u32,
    pub memory: u64,
}

/// An instance on the board.
#[derive(Debug, Clone)]
pub(super) struct Instance {
    pub placement: Placement,
    pub nodes: Vec<u32>,
    /// Its machines may be had for needs that come first.
    pub takeable: bool,
    /// It was taken off.
    pub gone: Option<String>,
    /// For new ones: why.
    pub reason: String,
    /// For new ones: running instances that must go first.
    pub after: Vec<usize>,
}

/// Why running instances cannot go on, by number.
type Ended = Vec<(usize, String)>;

/// Bytes of each rank, by division.
type Counted = HashMap<Vec<(usize, usize, Vec<u32>)>, Result<Vec<u64>, String>>;

/// What depends on a deployment alone, worked out once.
#[derive(Debug, Default)]
pub(super) struct Terms {
    /// By machine, where a selector or pins say which; all where absent.
    pub allowed: Option<Vec<bool>>,
    /// Pinned machines that are not here.
    pub absent: Vec<String>,
    /// Whether pins bind (they do not once one is lost and may be replaced).
    pub pinned: bool,
    pub load: Option<Load>,
    pub singles: Option<Singles>,
    pub counted: Counted,
}

pub(super) struct Board<'a> {
    pub snapshot: &'a Snapshot,
    pub policy: &'a PlanPolicy,
    pub nodes: Vec<Node>,
    /// By machine: its first device's number.
    pub first: Vec<u32>,
    pub used: Vec<u64>,
    pub residents: Vec<SmallVec<[Resident; 1]>>,
    pub instances: Vec<Instance>,
    /// By deployment: its instances on the board, in the order in which they are to be kept.
    pub held: Vec<Vec<usize>>,
    pub targets: Vec<u32>,
    pub terms: Vec<Terms>,
    pub ended: Ended,
    pub rejected: Ledger,
    pub short: Vec<Short>,
    /// The deployment that is being placed.
    pub looking_at: usize,
}

impl<'a> Board<'a> {
    pub(super) fn new(snapshot: &'a Snapshot, policy: &'a PlanPolicy) -> Self {
        let mut nodes = Vec::with_capacity(snapshot.fleet.machines.len());
        let mut first = Vec::with_capacity(snapshot.fleet.machines.len());
        let share = 1.0 - policy.head_room.clamp(0.0, 0.9);
        for (machine, of) in snapshot.fleet.machines.iter().enumerate() {
            first.push(nodes.len() as u32);
            for (device, on) in of.devices.iter().enumerate() {
                nodes.push(Node {
                    machine: machine as u32,
                    device: device as u16,
                    usable: (on.memory as f64 * share) as u64,
                    bandwidth: on.bandwidth,
                    flops: on.flops,
                    host: on.host_bandwidth,
                });
            }
        }
        let mut board = Self {
            used: vec![0; nodes.len()],
            residents: vec![SmallVec::new(); snapshot.fleet.machines.len()],
            instances: Vec::with_capacity(snapshot.running.len()),
            held: vec![Vec::new(); snapshot.wanted.len()],
            targets: vec![0; snapshot.wanted.len()],
            terms: Vec::with_capacity(snapshot.wanted.len()),
            ended: Vec::new(),
            rejected: Ledger::default(),
            short: Vec::new(),
            looking_at: 0,
            snapshot,
            policy,
            nodes,
            first,
        };
        for deployment in 0..snapshot.wanted.len() {
            let terms = board.terms_of(deployment);
            board.terms.push(terms);
        }
        board
    }

    fn terms_of(&self, deployment: usize) -> Terms {
        let wanted = &self.snapshot.wanted[deployment];
        let machines = &self.snapshot.fleet.machines;
        let mut terms = Terms::default();
        match &wanted.spec.machines {
            Machines::Any => {}
            Machines::Selector(labels) => {
                let has = |machine: &crate::topology::Machine| {
                    labels.iter().all(|(name, value)| machine.labels.get(name) == Some(value))
                };
                terms.allowed = Some(machines.iter().map(has).collect());
            }
            Machines::Pinned(names) => {
                let here = |name: &String| machines.iter().any(|m| m.name == *name && m.online);
                terms.absent = names.iter().filter(|name| !here(name)).cloned().collect();
                terms.pinned = terms.absent.is_empty() || wanted.spec.when_lost == WhenLost::Wait;
                if terms.pinned {
                    terms.allowed = Some(machines.iter().map(|m| names.contains(&m.name)).collect());
                }
            }
        }
        if let Ok(shape) = &wanted.shape {
            let longest = shape.spec().context.clamp(1, 8192);
            let context = wanted.spec.context.map_or(longest as u64, u64::from);
            terms.load = Some(Load { context, batch: u64::from(wanted.spec.max_batch) });
        }
        terms
    }

    pub(super) fn shape(&self, deployment: usize) -> Option<&'a Shape> {
        self.snapshot.wanted[deployment].shape.as_deref().ok()
    }

    pub(super) fn name(&self, node: u32) -> String {
        let Node { machine, device, .. } = self.nodes[node as usize];
        let machine = &self.snapshot.fleet.machines[machine as usize];
        match machine.devices.len() {
            1 => machine.name.clone(),
            _ => format!("{}/{}", machine.name, machine.devices[device as usize].name),
        }
    }

    /// How many ranks an instance has; any number where absent.
    pub(super) fn ranks(&self, deployment: usize) -> Option<usize> {
        let spec = &self.snapshot.wanted[deployment].spec;
        match (&spec.shape, &spec.machines) {
            // Pinned to several machines, and one instance: all of them are meant.
            (Division::Auto, Machines::Pinned(names))
                if names.len() > 1
                    && spec.replicas == Replicas::Fixed(1)
                    && self.terms[deployment].pinned =>
            {
                Some(names.len())
            }
            (division, _) => division.ranks().map(|ranks| ranks as usize),
        }
    }

    /// Why a machine may hold nothing of this deployment, whoever sits on it.
    pub(super) fn barred(&self, machine: u32, deployment: usize) -> Option<Why> {
        let of = &self.snapshot.fleet.machines[machine as usize];
        if !of.online {
            return Some(Why::Offline);
        }
        if let Some(allowed) = &self.terms[deployment].allowed
            && !allowed[machine as usize]
        {
            return Some(if self.terms[deployment].pinned { Why::NotPinned } else { Why::NotSelected });
        }
        if !of.managed {
            return Some(Why::Unmanaged);
        }
        of.resting.is_some().then_some(Why::Resting)
    }

    /// Who of others keeps a device from holding a rank; takeable instances do not count where `take` says so.
    pub(super) fn occupied(&self, node: u32, deployment: usize, take: bool) -> Option<Why> {
        let spec = &self.snapshot.wanted[deployment].spec;
        for resident in &self.residents[self.nodes[node as usize].machine as usize] {
            if take && self.instances[resident.instance].takeable && resident.deployment != deployment {
                continue;
            }
            let other = &self.snapshot.wanted[resident.deployment].spec;
            if resident.deployment == deployment || other.model == spec.model {
                if resident.node == node {
                    return Some(Why::Busy { by: resident.deployment });
                }
            } else if spec.exclusive || other.exclusive {
                return Some(Why::Taken { by: resident.deployment });
            }
        }
        None
    }

    /// Bytes that are left on a device.
    pub(super) fn room(&self, node: u32, deployment: usize, take: bool) -> u64 {
        let mut used = self.used[node as usize];
        if take && used > 0 {
            let leaves = |r: &&Resident| {
                r.node == node && r.deployment != deployment && self.instances[r.instance].takeable
            };
            let of = &self.residents[self.nodes[node as usize].machine as usize];
            used -= of.iter().filter(leaves).map(|r| r.memory).sum::<u64>();
        }
        self.nodes[node as usize].usable.saturating_sub(used)
    }

    pub(super) fn seat(&self, node: u32, deployment: usize, take: bool) -> Seat {
        let room = self.room(node, deployment, take);
        let Node { machine, bandwidth, flops, host, .. } = self.nodes[node as usize];
        let mut seat = Seat { node, room, bandwidth, flops, host, step_s: STEP_S };
        let machine = &self.snapshot.fleet.machines[machine as usize];
        if machine.measured.is_empty() {
            return seat;
        }
        let model = &self.snapshot.wanted[deployment].spec.model;
        if let (Some(measured), Some(shape)) = (machine.measured.get(model), self.shape(deployment)) {
            let all = 0..shape.layers();
            if measured.decode_tokens_per_s > 0.0 {
                seat.has_decoded(measured.decode_tokens_per_s, shape.read_bytes(all.clone()));
            }
            if measured.prefill_tokens_per_s > 0.0 {
                seat.flops = measured.prefill_tokens_per_s * shape.token_flops(all);
            }
        }
        seat
    }

    /// Exact bytes of a division, counted once.
    pub(super) fn count(
        &mut self,
        deployment: usize,
        stages: &[(Range<usize>, Vec<u32>)],
    ) -> Result<Vec<u64>, String> {
        let (Some(shape), Some(load)) = (self.shape(deployment), self.terms[deployment].load) else {
            return Err("its model is not known".to_owned());
        };
        let key: Vec<_> = stages.iter().map(|(l, shares)| (l.start, l.end, shares.clone())).collect();
        let counted = &mut self.terms[deployment].counted;
        let count = || shape.exact(stages, load.context, load.batch).map_err(|error| error.to_string());
        counted.entry(key).or_insert_with(count).clone()
    }

    /// Puts an instance on the board.
    pub(super) fn seat_down(
        &mut self,
        deployment: usize,
        (nodes, divided, predicted): (Vec<u32>, &Divided, Predicted),
        kept: Option<usize>,
    ) -> usize {
        let number = self.instances.len();
        let mut ranks = Vec::with_capacity(nodes.len());
        let places = divided.stages.iter().flat_map(|(layers, shares)| {
            let all: u32 = shares.iter().sum();
            shares.iter().map(move |&share| (layers.clone(), share, f64::from(share) / f64::from(all.max(1))))
        });
        for ((&node, &memory), (layers, share, tensor_share)) in nodes.iter().zip(&divided.memory).zip(places)
        {
            let Node { machine, device, .. } = self.nodes[node as usize];
            ranks.push(PlacedRank { machine, device, layers, share, tensor_share, memory_bytes: memory });
            self.used[node as usize] += memory;
            let resident = Resident { instance: number, deployment, node, memory };
            self.residents[machine as usize].push(resident);
        }
        let placement = Placement { deployment, ranks, predicted, kept };
        self.instances.push(Instance {
            placement,
            nodes,
            takeable: false,
            gone: None,
            reason: String::new(),
            after: Vec::new(),
        });
        self.held[deployment].push(number);
        number
    }

    /// Takes an instance off the board.
    pub(super) fn take_off(&mut self, instance: usize, reason: String) {
        let deployment = self.instances[instance].placement.deployment;
        for node in self.instances[instance].nodes.clone() {
            let machine = self.nodes[node as usize].machine as usize;
            let leaves = |r: &Resident| r.instance == instance && r.node == node;
            let freed: u64 = self.residents[machine].iter().filter(|r| leaves(r)).map(|r| r.memory).sum();
            self.used[node as usize] -= freed;
            self.residents[machine].retain(|r| !leaves(r));
        }
        self.held[deployment].retain(|&held| held != instance);
        self.instances[instance].takeable = false;
        self.instances[instance].gone = Some(reason);
    }

    pub(super) fn capacity(&self, instance: usize) -> f64 {
        let Placement { deployment, predicted, .. } = &self.instances[instance].placement;
        capacity(*predicted, self.snapshot.wanted[*deployment].spec.max_batch)
    }
}
