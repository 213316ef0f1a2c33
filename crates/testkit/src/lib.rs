//! What tests of whole programs need: real processes with a folder and a port of their own, ended when dropped.
//!
//! What it is *not*: linked into the product, or a place for stand-ins of our own parts: tests that use it start the
//! real binary. Start with [`Program`].

pub mod program;
pub mod tap;

pub use program::{Program, Started};
