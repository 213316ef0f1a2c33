//! Attempts: opened, handed to an engine, answered in sealed chunks, and each ended exactly once.

pub(crate) mod claim;
pub(crate) mod intake;
pub(crate) mod kept;
pub(crate) mod lane;
pub(crate) mod outbox;
pub(crate) mod table;
