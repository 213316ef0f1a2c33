//! Every byte that leaves a process: control messages, data frames, the sealed bodies of an attempt, HTTP bodies.
//!
//! What it is: types, their encodings, and golden bytes for each, so that two versions of Phalanx understand each
//! other. What it is *not*: it opens no socket and knows no cipher (see `trust`), and decides nothing (see `fleet`).
//! Start with [`control`] for what coordinator and provider say to each other, [`frame`] for the binary frames
//! beside it, [`job`] and [`chunk`] for what travels sealed inside those, and [`link`] and [`step`] for what the ranks of
//! a group say to each other.

pub mod admin;
pub mod anthropic;
pub mod chunk;
pub mod control;
mod fields;
pub mod frame;
pub mod job;
pub mod link;
pub mod ollama;
pub mod openai;
mod reader;
pub mod receipt;
pub mod request;
pub mod step;
pub mod trace;

pub use fields::RequestError;
pub use reader::DecodeError;
