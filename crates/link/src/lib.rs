//! Sealed links between the machines of a group: how they find each other, prove who they are, and carry messages.
//!
//! What it is: a [`collective::Transport`] over TCP and TLS 1.3 with raw public keys, made for latency: no async
//! runtime, one write a message, a receiver that looks before it sleeps. Control (pings, faults, goodbyes) has a small
//! connection of its own beside the data of each pair, so that it is never stuck behind it. What it is *not*: it knows
//! no cipher (see `trust`), sums nothing (see `collective`), and does not decide who forms a group (the coordinator
//! does). Start with [`form`], which makes a verified [`collective::Group`] out of a roster, and [`Links`], what that
//! stands on.

mod address;
mod alarm;
mod cancel;
mod control;
mod door;
mod establish;
mod lane;
mod links;
mod probe;
mod rendezvous;
mod talk;
mod transfer;
mod verify;

pub use address::{Candidate, LinkType, Purpose, in_order};
pub use cancel::Cancel;
pub use door::{Answering, answer};
pub use establish::LinkError;
pub use links::{Dialled, Links, Stopper, Telemetry};
pub use probe::{Asked, Probed, probe};
pub use rendezvous::{FormError, Gathering, Listener, Member, MissingRank, Place, Timing, form};
pub use transfer::{Giving, Library, Taking, TransferError, want};
