//! The connection to the coordinator: what to do about it ([`machine`]), and the parts that do it.

pub(crate) mod machine;
pub(crate) mod socket;
pub(crate) mod target;
pub(crate) mod writer;
