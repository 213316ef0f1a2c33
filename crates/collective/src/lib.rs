//! Collectives: what the ranks of a group compute together, over any transport that carries messages between them.
//!
//! What it is: all-reduce, gather, broadcast, send and receive with a fixed order of reduction, so that every rank and
//! every run has the same bits; and the rule that the first fault ends a group for good, with the culprit's name.
//! What it is *not*: it opens no socket and asks no clock (see crate `link` for sealed links between machines): how
//! long a message may take is an argument that the transport keeps. Start with [`Communicator`], which the forward
//! pass uses; [`Group`] is the one implementation, [`Transport`] what it stands on, [`in_memory`] the transport for
//! ranks in one process.

mod communicator;
mod encoding;
mod fault;
mod group;
mod memory;
mod transport;

pub use communicator::Communicator;
pub use encoding::quantise;
pub use fault::{Cause, Fault};
pub use group::{DIRECT_BYTES_MAX, Group, GroupTerms};
pub use memory::{InMemory, in_memory};
pub use transport::{Traffic, Transport, TransportError};
pub use wire::link::WireType;
