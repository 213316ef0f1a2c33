//! The engine through its public entry points, on real weights: the tiny fixtures and the bundled model.

// Clippy knows tests by their attribute; here the functions beside them belong to them too.
#![allow(clippy::unwrap_used)]

mod damage;
mod day;
mod device;
mod embedding;
mod group;
mod guessing;
mod harness;
mod mlx;
mod reference;
mod serving;
mod shapes;
