//! A real provider with a real engine, against a coordinator that the test plays over a real WebSocket.

// A test fails by panicking, in what it shares with others too.
#![allow(clippy::unwrap_used)]

mod attempts;
mod fake;
mod joining;
mod leaving;
mod managed;
mod models;
mod secure;
