//! A coordinator serving, seen from both of its doors: HTTP callers in front, providers behind. The providers here
//! speak the real protocol over real sockets and answer what a test tells them to.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]
#[path = "serving/answers.rs"]
mod answers;
#[path = "serving/deployments.rs"]
mod deployments;
#[path = "serving/embedding.rs"]
mod embedding;
#[path = "serving/explained.rs"]
mod explained;
#[path = "serving/failover.rs"]
mod failover;
#[path = "serving/front_door.rs"]
mod front_door;
#[path = "serving/grouped.rs"]
mod grouped;
#[path = "serving/house.rs"]
mod house;
#[path = "serving/losses.rs"]
mod losses;
#[path = "serving/managed.rs"]
mod managed;
#[path = "serving/provider.rs"]
mod provider;
#[path = "serving/queueing.rs"]
mod queueing;
#[path = "serving/returning.rs"]
mod returning;
#[path = "serving/script.rs"]
mod script;
#[path = "serving/shapes.rs"]
mod shapes;
#[path = "serving/strangers.rs"]
mod strangers;
#[path = "serving/unplaced.rs"]
mod unplaced;
