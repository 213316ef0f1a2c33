//! The agent on a machine: keeps its identity, holds its instances, and serves a coordinator's attempts over one
//! outbound connection.
//!
//! What it is: a shell, which performs effects (sockets, files, threads) around two things that decide: the uplink's
//! state machine and the engines. What it is *not*: it computes nothing itself (see `engine`), knows no cipher (see
//! `trust`) and never sees an API key or a client (see `coordinator`). Start with [`run`]; then `uplink/machine.rs`
//! for when it dials, waits and gives up, `attempt/intake.rs` for how an attempt is taken, and `attempt/outbox.rs`
//! for how its answer leaves.

mod assignment;
mod attempt;
mod cadence;
mod config;
mod event;
mod fetch;
mod group;
mod hardware;
mod host;
mod identity;
mod instance;
mod lend;
mod load;
mod measured;
mod probe;
mod provider;
mod session;
mod shelf;
pub mod stock;
pub mod topology;
mod uplink;
mod upstream;
mod weights;

pub use cadence::Pace;
pub use config::{Config, ConfigError, JoinToken, ManagedConfig, ModelConfig, NAME_BYTES_MAX};
pub use event::Event;
pub use hardware::machine_name;
pub use identity::{IdentityError, KEY_FILE};
pub use provider::{Farewell, RunError, run, run_traced};
pub use shelf::hugging_face_cache;
pub use shelf::place::{Place, PlaceError, beside};
pub use uplink::socket::AuthorityError;
pub use uplink::target::TargetError;
pub use upstream::{UpstreamConfig, UpstreamKey};

/// What the machine is made of, as it would be registered; for `phalanx doctor`. Takes some milliseconds.
pub fn hardware() -> wire::control::Hardware {
    hardware::probe()
}
