//! What a machine is connected with: Thunderbolt ports and peers, network interfaces, RDMA devices.
//!
//! Parsers are pure: they take what a system said and give values, so that recordings of other machines can be read
//! anywhere (`phalanx topology parse`). Nothing here proves that a peer can be reached.

pub(crate) mod connections;
pub mod sysfs;
pub mod thunderbolt;
