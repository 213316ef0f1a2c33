//! Links between machines, as operators see them.

use core::net::SocketAddr;

use base::MachineId;
use serde::{Deserialize, Serialize};

/// `GET /api/topology`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Topology {
    /// Every address of every machine that another was asked to try.
    pub links: Vec<LinkStatus>,
    /// Links that are not among these, for want of room.
    pub left_out: u64,
}

/// One directed link.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LinkStatus {
    /// Who dials.
    pub from: MachineId,
    /// What people call it.
    pub from_name: String,
    /// Who is dialled.
    pub to: MachineId,
    /// What people call it.
    pub to_name: String,
    /// Where.
    pub address: SocketAddr,
    /// What it runs over: `local`, `thunderbolt`, `ethernet`, `wifi`, `other`.
    pub kind: String,
    /// `probing`, `up`, `down`.
    pub state: String,
    /// Since when, on the coordinator's clock.
    pub since_us: u64,
    /// Round trip; 0 where it was never measured.
    pub rtt_us: u64,
    /// Bytes a second; 0 where that was never measured.
    pub bytes_per_s: u64,
    /// Why the last try failed; empty where it did not.
    pub cause: String,
}
