//! The words every other crate speaks: identities, units, and time and randomness as values.
//!
//! What it is: plain types without behaviour of their own, so that crates which may not know each other can pass
//! the same things. What it is *not*: a place for whatever two crates share. A type enters when three need it.
//! Start with [`id`] for identities, [`unit`] for quantities, [`rng`] for randomness as an argument.

pub mod constraint;
pub mod id;
pub mod rng;
pub mod unit;

pub use constraint::{Constraint, Grammar};
pub use id::{AccountId, AttemptId, Incarnation, InstanceId, KeyId, MachineId, ModelName, RequestId};
pub use rng::Rng;
pub use unit::{Bytes, Epoch, Micros, Tokens};
