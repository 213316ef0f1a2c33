//! The coordinator: the front door, the providers' connections, and a request's way between the two.
//!
//! What it is: a shell. It parses what callers say, asks `fleet` where it goes, has `trust` seal it, relays what
//! comes back, and has `store` keep what must last. What it is *not*: it decides nothing about placement or order
//! (see `fleet`), names no cipher (see `trust`), computes no token (see `engine`) and links no kernel.
//!
//! Start with [`run`]; then `api.rs` for which handler stands where, `dispatch.rs` for the one way of every request,
//! `uplink.rs` for a provider's connection, and `problem.rs` for every way a call can fail.

mod api;
mod bootstrap;
mod clock;
mod config;
mod core;
mod deployments;
mod dispatch;
mod groups;
mod limits;
mod machines;
mod metrics;
mod pools;
mod prices;
mod problem;
mod segments;
mod server;
mod streams;
mod tracing_of;
mod turned_away;
mod uplink;

pub use bootstrap::{Bootstrap, bootstrap, create_key};
pub use config::{Config, ConfigError, DeploymentConfig, HttpConfig, RequestConfig, UplinkConfig};
pub use deployments::forget_placements;
pub use server::{RunError, run, run_traced};

/// Program and version, as peers and people see them.
pub(crate) const VERSION: &str = concat!("phalanx/", env!("CARGO_PKG_VERSION"));
