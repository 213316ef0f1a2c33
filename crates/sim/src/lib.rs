//! A whole fleet on one thread from a seed: the real control plane over a modelled world, with faults, and checkers.
//!
//! What is real: the controller ([`fleet::reconcile`]), the planner in it, and a [`fleet::Pool`] for each model (eligibility,
//! queue, routing, breakers). What is modelled: machines, loading, answers, the network between them and the
//! coordinator, what of the coordinator is on its disk.
//! The same seed gives the same life, so that a failing one can be read again ([`life`]). What it is *not*: it runs no
//! engine and sends nothing. Start with [`life`] for faults, [`compare`] for traffic.

mod life;
mod traffic;
mod world;

pub use life::{Life, Options, Plant, Violation, life, life_with};
pub use traffic::{Comparison, Row, TrafficFile, TrafficModel, compare};
