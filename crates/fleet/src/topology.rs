//! The fleet as a graph: machines with their devices, and the links between them that have been proved.
//!
//! Machines and devices are numbered in the order given; the numbers mean the same everywhere in one plan. An edge is
//! directed: that `a` reaches `b` says nothing of the other way. A link without proof carries nothing (T3).

mod graph;
mod reach;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use graph::{Links, Network};
pub use reach::{Outcome, Reach, Shown, Way};

/// What one device can do, as measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Device {
    /// As the machine calls it: `cpu0`, `gpu1`.
    pub name: String,
    /// Bytes that models may take here, whatever holds them now.
    pub memory: u64,
    /// Bytes a second that weights are read with.
    pub bandwidth: f64,
    /// Floating-point operations a second in prefill.
    pub flops: f64,
    /// Bytes a second that all of its host's cores read together, which machines on one host share; 0: not known.
    pub host_bandwidth: f64,
}

/// How a model ran on a machine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// One request alone.
    pub decode_tokens_per_s: f64,
    /// One prompt alone; unknown where 0.
    pub prefill_tokens_per_s: f64,
}

/// A host.
#[derive(Debug, Clone, PartialEq)]
pub struct Machine {
    /// What people call it.
    pub name: String,
    /// Connected, and not leaving.
    pub online: bool,
    /// Whether the planner may decide what it holds.
    pub managed: bool,
    /// Why nothing may be placed here for a while (a cool-down after failures), in words.
    pub resting: Option<String>,
    /// For selectors.
    pub labels: BTreeMap<String, String>,
    /// At least one.
    pub devices: Vec<Device>,
    /// Models whose files it has.
    pub on_disk: Vec<String>,
    /// Models that are in its memory though no deployment holds them there.
    pub loaded: Vec<String>,
    /// Bytes a second from its disk.
    pub disk: f64,
    /// Bytes a second from the endpoint that models are downloaded from; 0: it cannot download.
    pub download: f64,
    /// Models whose files others may take from it.
    pub lends: Vec<String>,
    /// Bytes that models taken from others may fill here; 0: it takes none.
    pub fetch_room: u64,
    /// What was measured, by model.
    pub measured: BTreeMap<String, Measured>,
}

/// What a link runs over. Ordered: for bulk data, earlier is better (T5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkKind {
    /// Inside one machine.
    Local,
    /// A Thunderbolt cable or bridge.
    Thunderbolt,
    /// A wire, or InfiniBand.
    Ethernet,
    /// Wi-Fi.
    Wifi,
    /// Another, or one that is not known: tunnels, for example.
    Other,
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "local",
            Self::Thunderbolt => "Thunderbolt",
            Self::Ethernet => "Ethernet",
            Self::Wifi => "Wi-Fi",
            Self::Other => "another network",
        })
    }
}

/// Whether a link is proved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    /// Nobody has tried.
    Unknown,
    /// The first tries are under way.
    Probing,
    /// Proved and measured.
    Up,
    /// It was tried, and there is no way.
    Down,
}

/// A directed edge.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Link {
    /// What it runs over.
    pub kind: LinkKind,
    /// Whether it is proved.
    pub state: LinkState,
    /// Round trip, in seconds.
    pub rtt_s: f64,
    /// Bytes a second.
    pub bandwidth: f64,
    /// Whether both ends can do RDMA over it.
    pub rdma: bool,
    /// Whether its addresses are private ones (RFC 1918, ULA): preferred where all else is equal (T5).
    pub private: bool,
}

impl Link {
    /// Between two devices of one machine.
    pub const LOCAL: Self = Self {
        kind: LinkKind::Local,
        state: LinkState::Up,
        rtt_s: 20e-6,
        bandwidth: 20e9,
        rdma: true,
        private: true,
    };

    /// Whether this one is the better of two for bulk data (T5): proved before unproved, then kind, then private, then
    /// round trip.
    pub fn better(&self, other: &Self) -> bool {
        let rank = |link: &Self| (link.state != LinkState::Up, link.kind, !link.private);
        match rank(self).cmp(&rank(other)) {
            std::cmp::Ordering::Equal => self.rtt_s < other.rtt_s,
            order => order.is_lt(),
        }
    }
}

/// All machines, and what is between them.
#[derive(Debug, Clone, Default)]
pub struct Fleet {
    /// In the order that numbers them.
    pub machines: Vec<Machine>,
    /// Between them.
    pub links: Links,
}

impl Fleet {
    /// The number of the machine called `name`.
    pub fn find(&self, name: &str) -> Option<u32> {
        let at = self.machines.iter().position(|machine| machine.name == name)?;
        u32::try_from(at).ok()
    }

    /// What people call a machine.
    pub fn name(&self, machine: u32) -> &str {
        self.machines.get(machine as usize).map_or("?", |machine| &machine.name)
    }
}
