//! Benches that anyone can run: the ten scenarios on real processes, and one engine alone.
//!
//! Each prints a table (or JSON), its assertions, and whether they hold. What it is *not*: a timed test; nothing here
//! decides whether a build is good, and `--quick` runs each bench at its smallest size without asserting speed.
//! Start with [`scenarios::run`], [`engine::run`], [`group::run`] and
//! [`route::run`].

pub mod deploy;
pub mod engine;
pub mod failover;
pub mod gateway;
pub mod group;
pub mod isolation;
mod machine;
mod managed;
pub mod place;
pub mod ranks;
pub mod reconcile;
pub mod route;
pub mod scenarios;
mod spread;
mod tell;
