//! What a machine is made of and connected with, as its provider tells it.

use core::net::IpAddr;

use base::Bytes;
use serde::{Deserialize, Serialize};

use super::assignment::{at_most, text};

/// Entries of each list of connections: more are left out.
pub const CONNECTIONS_MAX: usize = 64;
/// The longest name of an entry.
pub const CONNECTION_NAME_BYTES_MAX: usize = 128;

/// What a machine is made of.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Hardware {
    /// For people.
    pub cpu: String,
    /// Physical or virtual cores that this provider may use.
    pub cores: u32,
    /// Instruction sets that the kernels found, best first (`amx_int8`, `avx512_vnni`, `avx512`, `avx2`, `neon`).
    pub isa: Vec<String>,
    /// Physical memory.
    pub memory_total: Bytes,
    /// Free when the provider started, control-group limits included.
    pub memory_available: Bytes,
    /// For people.
    pub os: String,
    /// What it keeps models on and reaches others over.
    #[serde(default, skip_serializing_if = "Connections::is_empty")]
    pub connections: Connections,
}

/// A machine's disks, network interfaces, Thunderbolt ports and RDMA devices, when its provider started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Connections {
    /// By where they are mounted.
    #[serde(deserialize_with = "at_most::<_, _, CONNECTIONS_MAX>")]
    pub disks: Vec<Disk>,
    /// All but the loopback.
    #[serde(deserialize_with = "at_most::<_, _, CONNECTIONS_MAX>")]
    pub interfaces: Vec<Interface>,
    /// Those that something is plugged into, and on a Mac the others, too.
    #[serde(deserialize_with = "at_most::<_, _, CONNECTIONS_MAX>")]
    pub thunderbolt: Vec<ThunderboltPort>,
    /// Whether any machine reaches another by them is another matter: links say that.
    #[serde(deserialize_with = "at_most::<_, _, CONNECTIONS_MAX>")]
    pub rdma: Vec<RdmaDevice>,
}

impl Connections {
    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Where it is mounted.
    #[serde(deserialize_with = "text::<_, CONNECTION_NAME_BYTES_MAX>")]
    pub mount: String,
    /// All of it.
    pub total: Bytes,
    /// Free.
    pub available: Bytes,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// As the system calls it.
    #[serde(deserialize_with = "text::<_, CONNECTION_NAME_BYTES_MAX>")]
    pub name: String,
    /// `ethernet`, `wi_fi`, `thunderbolt`, `infini_band`, `virtual`, `unknown`.
    #[serde(deserialize_with = "text::<_, CONNECTION_NAME_BYTES_MAX>")]
    pub kind: String,
    /// Whether it carries traffic.
    pub up: bool,
    /// Mbit/s, where it was negotiated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed_mbps: Option<u64>,
    /// Its addresses.
    #[serde(default, deserialize_with = "at_most::<_, _, CONNECTIONS_MAX>")]
    pub addresses: Vec<IpAddr>,
}

/// A Thunderbolt port, or what is plugged into it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThunderboltPort {
    /// As the system calls it.
    #[serde(deserialize_with = "text::<_, CONNECTION_NAME_BYTES_MAX>")]
    pub name: String,
    /// Whether anything is plugged in.
    pub connected: bool,
    /// Gbit/s as negotiated; 0 where that is not known.
    pub speed_gbps: u32,
    /// Whether it is Thunderbolt 5 for certain: more than 40 Gbit/s, negotiated or possible.
    pub thunderbolt_5: bool,
    /// Machines that are reached over it, hubs looked through.
    #[serde(default, deserialize_with = "at_most::<_, _, CONNECTIONS_MAX>")]
    pub peers: Vec<String>,
}

/// A device that does RDMA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RdmaDevice {
    /// As the system calls it.
    #[serde(deserialize_with = "text::<_, CONNECTION_NAME_BYTES_MAX>")]
    pub name: String,
    /// Whether any of its ports is active.
    pub active: bool,
}
