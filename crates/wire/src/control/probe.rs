//! What coordinator and providers say about links between machines: whom to try, and what came of it.
//!
//! ```text
//! provider                           coordinator
//!   inventory (probe_addresses) ----->             others can try me here
//!             <----------------------- peers       try these: keys and addresses
//!   links ------------------------->               what came of it, where that is news
//! ```

use core::net::SocketAddr;

use base::{Incarnation, MachineId};
use serde::{Deserialize, Serialize};

use super::assignment::{at_most, text};
use super::group::GroupAddress;

/// Most machines that one machine tries.
pub const PEERS_MAX: usize = 64;
/// Most addresses of a machine that are tried.
pub const PEER_ADDRESSES_MAX: usize = 8;
/// Most results in one message.
pub const LINKS_MAX: usize = PEERS_MAX * PEER_ADDRESSES_MAX;
/// Longest text of why a machine was not reached.
pub const LINK_ERROR_BYTES_MAX: usize = 300;

/// Machines to try, and to be tried by. Replaces the list before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peers {
    /// [`PEERS_MAX`] at most.
    #[serde(deserialize_with = "at_most::<_, _, PEERS_MAX>")]
    pub peers: Vec<Peer>,
}

/// A machine to try.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Which.
    pub machine: MachineId,
    /// Which start of its provider.
    pub incarnation: Incarnation,
    /// Its Ed25519 public key, base64: who answers must prove it.
    pub signing_key: String,
    /// Where its provider says that it can be tried: [`PEER_ADDRESSES_MAX`] at most.
    #[serde(deserialize_with = "at_most::<_, _, PEER_ADDRESSES_MAX>")]
    pub addresses: Vec<GroupAddress>,
}

/// What came of tries, where it is news.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkReports {
    /// [`LINKS_MAX`] at most.
    #[serde(deserialize_with = "at_most::<_, _, LINKS_MAX>")]
    pub links: Vec<LinkReport>,
}

/// What came of one try.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkReport {
    /// Who was tried.
    pub peer: MachineId,
    /// Which start of it.
    pub incarnation: Incarnation,
    /// Where.
    pub address: SocketAddr,
    /// Over what: the worse of both ends.
    #[serde(default)]
    pub over: LinkOver,
    /// Why it was not reached; empty where it was, and proved its key.
    #[serde(
        default,
        skip_serializing_if = "String::is_empty",
        deserialize_with = "text::<_, LINK_ERROR_BYTES_MAX>"
    )]
    pub error: String,
    /// Round trip, the median of some small messages.
    #[serde(default)]
    pub rtt_us: u64,
    /// The longest of these less the shortest.
    #[serde(default)]
    pub jitter_us: u64,
    /// Bytes a second there, as last measured; 0 where it never was.
    #[serde(default)]
    pub bytes_per_s: u64,
}

/// What a link runs over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkOver {
    /// The machine itself.
    Loopback,
    /// A Thunderbolt cable, or its bridge.
    Thunderbolt,
    /// A wire.
    Ethernet,
    /// Wi-Fi.
    Wifi,
    /// Another, or one that this build does not know.
    #[default]
    #[serde(other)]
    Other,
}
