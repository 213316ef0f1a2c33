//! Whole fleets of real processes: what a newcomer, an operator and an attacker would see.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

#[path = "fleet/api.rs"]
mod api;
#[path = "fleet/chaos.rs"]
mod chaos;
#[path = "fleet/deployments.rs"]
mod deployments;
#[path = "fleet/embeddings.rs"]
mod embeddings;
#[path = "fleet/explained.rs"]
mod explained;
#[path = "fleet/group_accounts.rs"]
mod group_accounts;
#[path = "fleet/group_changes.rs"]
mod group_changes;
#[path = "fleet/group_faults.rs"]
mod group_faults;
#[path = "fleet/groups.rs"]
mod groups;
#[path = "fleet/ledger.rs"]
mod ledger;
#[path = "fleet/lending.rs"]
mod lending;
#[path = "fleet/losses.rs"]
mod losses;
#[path = "fleet/memory.rs"]
mod memory;
#[path = "fleet/network.rs"]
mod network;
#[path = "fleet/newcomer.rs"]
mod newcomer;
#[path = "fleet/owners.rs"]
mod owners;
#[path = "fleet/reach.rs"]
mod reach;
#[path = "fleet/receipts.rs"]
mod receipts;
#[path = "fleet/refusals.rs"]
mod refusals;
#[path = "fleet/returns.rs"]
mod returns;
#[path = "fleet/sealing.rs"]
mod sealing;
#[path = "fleet/six.rs"]
mod six;
#[path = "fleet/stock.rs"]
mod stock;
#[path = "fleet/traces.rs"]
mod traces;
#[path = "fleet/upstream.rs"]
mod upstream;
#[path = "fleet/weights.rs"]
mod weights;
#[path = "fleet/witness.rs"]
mod witness;
