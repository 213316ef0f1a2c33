//! GGUF: one file (or several parts) that holds a model's metadata, tokenizer and tensors.
//!
//! What it is: our own reader of <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>, in which every length is
//! held to the bytes that are left before it is believed. What it gives is what a Hugging Face folder gives: a
//! [`crate::kit::Kit`] ([`kit`]) and a tensor for each role ([`GgufCheckpoint`]), so that nothing else knows the format.

mod architecture;
mod names;
mod order;
mod reader;
mod splits;
mod tensors;
mod tokenizer;
mod value;
mod writer;

pub use architecture::kit;
pub(crate) use architecture::of_family as gguf_architecture;
pub(crate) use names::written as gguf_name;
pub use reader::{GgufFile, is_gguf};
pub use tensors::{GgufCheckpoint, as_stored};
pub use tokenizer::json as tokenizer_json;
pub use value::{Array, Value};
pub use writer::GgufWriter;

#[cfg(test)]
mod tests;
