//! Machines of several kinds, what their providers do with what they are told, and what they offer.

use std::collections::BTreeMap;
use std::sync::Arc;

use base::{Bytes, Epoch, Incarnation, InstanceId, MachineId, Micros, ModelName, Rng, Tokens};
use fleet::plan::Shape;
use fleet::plan::file::ShapeEntry;
use fleet::reconcile::{Held, World};
use fleet::topology::{Device, Link, LinkKind, LinkState, Links, Machine};
use wire::control::{InstanceOffer, InstancePhase, InstanceReport, ModelDescriptor};

/// What a rank says: it loads, it computes, it failed, others went without a word.
pub(crate) const LOADING: u8 = 0;
pub(crate) const READY: u8 = 1;
pub(crate) const FAILED: u8 = 2;
pub(crate) const LOST: u8 = 3;

/// A provider: what it holds, and whether it is there.
#[derive(Debug, Clone)]
pub(crate) struct Provider {
    pub(crate) name: String,
    pub(crate) linked: bool,
    /// Counts connections, so that what was meant for an earlier one is known as such.
    pub(crate) connection: u64,
    pub(crate) incarnation: Incarnation,
    /// How many times slower than it should be.
    pub(crate) slow: f64,
    /// Since when it is connected.
    pub(crate) linked_since: Micros,
    held: Option<(Held, u64)>,
    seen: BTreeMap<InstanceId, Epoch>,
    /// What ended here at which assignment, and how it said so: said again where it is asked for again.
    ended: BTreeMap<InstanceId, (Epoch, u8)>,
    starts: u64,
    load_s: f64,
}

impl Provider {
    pub(crate) fn new(machine: &Machine) -> Self {
        Self {
            name: machine.name.clone(),
            linked: false,
            connection: 0,
            incarnation: Incarnation(1),
            slow: 1.0,
            linked_since: Micros::ZERO,
            held: None,
            seen: BTreeMap::new(),
            ended: BTreeMap::new(),
            starts: 0,
            load_s: 2.0 + machine.devices[0].memory as f64 / 8e9,
        }
    }

    pub(crate) fn holds(&self) -> Vec<Held> {
        self.held.iter().map(|(held, _)| *held).collect()
    }

    pub(crate) fn load_s(&self) -> f64 {
        self.load_s * self.slow
    }

    /// Takes an assignment that is newer than what it has seen of this instance; which start of loading that is.
    pub(crate) fn assign(
        &mut self,
        (instance, epoch, rank): (InstanceId, Epoch, u32),
        _now: Micros,
    ) -> Option<u64> {
        let seen = self.seen.entry(instance).or_insert(Epoch(0));
        // Repeated or late: what it holds, or held, is as new or newer.
        if epoch <= *seen {
            return None;
        }
        *seen = epoch;
        if let Some((held, _)) = self.held
            && held.epoch > epoch
        {
            // Late, and about another instance than what it holds by now: the newer word stands.
            return None;
        }
        self.starts += 1;
        self.held = Some((Held { instance, epoch, rank, ready: false }, self.starts));
        Some(self.starts)
    }

    pub(crate) fn unassign(&mut self, instance: InstanceId, epoch: Epoch) {
        let seen = self.seen.entry(instance).or_insert(Epoch(0));
        *seen = (*seen).max(epoch);
        if self.held.is_some_and(|(held, _)| held.instance == instance && held.epoch <= epoch) {
            self.held = None;
        }
    }

    /// Loading ended; its rank, where it is still wanted.
    pub(crate) fn loaded(&mut self, about: (InstanceId, Epoch), start: u64, fails: bool) -> Option<u32> {
        let (held, began) = self.held.as_mut()?;
        if (held.instance, held.epoch) != about || *began != start {
            return None;
        }
        let rank = held.rank;
        held.ready = !fails;
        if fails {
            self.end(about, FAILED);
        }
        Some(rank)
    }

    /// Whether it holds this, and whether it is ready.
    pub(crate) fn has(&self, (instance, epoch): (InstanceId, Epoch)) -> Option<bool> {
        let (held, _) = self.held?;
        ((held.instance, held.epoch) == (instance, epoch)).then_some(held.ready)
    }

    /// What it holds ends by itself.
    pub(crate) fn end(&mut self, (instance, epoch): (InstanceId, Epoch), how: u8) {
        if self.has((instance, epoch)).is_some() {
            self.held = None;
            self.ended.insert(instance, (epoch, how));
        }
    }

    /// How what it is asked for again ended before.
    pub(crate) fn ended(&self, (instance, epoch): (InstanceId, Epoch)) -> Option<u8> {
        self.ended.get(&instance).filter(|(at, _)| *at == epoch).map(|(_, how)| *how)
    }

    /// Its connection ends; a new life begins where it dies. Which connection the next will be.
    pub(crate) fn cut(&mut self, dies: bool) -> u64 {
        self.linked = false;
        self.connection += 1;
        if dies {
            self.incarnation = Incarnation(self.incarnation.0 + 1);
            self.held = None;
            self.seen.clear();
            self.ended.clear();
        }
        self.connection
    }
}

/// Two models, and machines of four sizes on one network.
pub(crate) fn world(machines: usize, rng: &mut Rng) -> World {
    let links = lan(machines);
    let machine = |at: usize, rng: &mut Rng| Machine {
        name: format!("m{at}"),
        online: true,
        managed: true,
        resting: None,
        labels: BTreeMap::new(),
        devices: vec![Device {
            name: "cpu0".to_owned(),
            memory: [8, 16, 24, 64][rng.below(4) as usize] << 30,
            bandwidth: 2e10 + 1e11 * rng.next_f64(),
            flops: 1e12,
            host_bandwidth: 0.0,
        }],
        on_disk: MODELS_ON_DISK.iter().map(|name| (*name).to_owned()).collect(),
        loaded: Vec::new(),
        disk: 2e9,
        download: 0.0,
        lends: Vec::new(),
        fetch_room: 0,
        measured: BTreeMap::new(),
    };
    let machines = (0..machines).map(|at| (MachineId(at as u128 + 1), machine(at, rng))).collect();
    let shapes = BTreeMap::from([("fast".to_owned(), shape(16, 2048)), ("slow".to_owned(), shape(32, 4096))]);
    World { machines, links, shapes, demand: BTreeMap::new() }
}

/// One network in which everybody reaches everybody.
pub(crate) fn lan(machines: usize) -> Links {
    let mut links = Links::new(machines);
    let lan = Link {
        kind: LinkKind::Ethernet,
        state: LinkState::Up,
        rtt_s: LAN_RTT_S,
        bandwidth: LAN_BYTES_PER_S,
        rdma: false,
        private: true,
    };
    links.add_network((0..machines as u32).collect(), lan);
    links
}

/// Ten gigabits.
pub(crate) const LAN_BYTES_PER_S: f64 = 1.25e9;
pub(crate) const LAN_RTT_S: f64 = 3e-4;
const MODELS_ON_DISK: [&str; 2] = ["fast", "slow"];

fn shape(layers: usize, hidden: usize) -> Arc<Shape> {
    let entry = ShapeEntry {
        layers,
        hidden,
        heads: hidden / 64,
        kv_heads: Some(8),
        head_dim: None,
        feed_forward: hidden * 4,
        vocabulary: 32_000,
        context: Some(2048),
        tied_head: true,
        experts: None,
        experts_per_token: None,
    };
    let text = entry.config().to_string();
    let spec =
        model::family::spec_from_config(text.as_bytes(), None).expect("its numbers are within all bounds");
    Arc::new(Shape::new(Arc::new(spec), 8.0, 32))
}

/// What rank 0 of a ready instance offers.
pub(crate) fn offer(
    (name, decode): (&str, f64),
    (instance, epoch, ranks): (InstanceId, Epoch, usize),
    now: Micros,
) -> InstanceOffer {
    let kv = 4 * 2048;
    let report = InstanceReport {
        instance,
        generation: now.0,
        phase: InstancePhase::Ready,
        detail: String::new(),
        slots: crate::life::SLOTS as u32,
        running: 0,
        waiting: 0,
        kv_tokens: kv,
        kv_tokens_free: kv,
        prefill_tokens_waiting: 0,
        prefill_tokens_per_s: decode as f32 * 10.0,
        decode_tokens_per_s: decode as f32,
    };
    let model = ModelDescriptor {
        name: ModelName::new(name),
        family: "llama".to_owned(),
        parameters: 1_000_000,
        weight_bytes: Bytes(2_000_000),
        context: Tokens(2048),
        vocabulary: 32_000,
        weights_sha256: "0".repeat(64),
        kit_sha256: "0".repeat(64),
        kit_bytes: Bytes(1000),
    };
    InstanceOffer { instance, epoch, rank: 0, ranks: ranks as u32, model, report }
}
