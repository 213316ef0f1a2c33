//! Decoders that run: blocks over a backend, loaded from any tensor source, with a paged KV cache.
//!
//! What it is: the forward pass. [`Decoder::load`] turns a [`model::spec::ModelSpec`] and its tensors into weights
//! of a [`backend::Backend`]; [`Decoder::forward`] runs a step over any mixture of prompt chunks and single tokens
//! of many sequences. A sequence's logits are bitwise the same whatever else is in the step, however its prompt is
//! cut, whatever the number of threads. What it is *not*: it plans no batch, samples no token, reads no file.
//! Start with [`Decoder`]; a model family is data (crate `model`), so there is no code for families here.

pub mod backend;
mod blocks;
mod cache;
#[cfg(feature = "candle")]
pub mod candle;
mod cpu;
mod decoder;
mod peers;

pub use cache::{CacheError, KvCache, KvDType};
pub use cpu::Cpu;
pub use decoder::{
    Decoder, ForwardError, LoadError, LoadOptions, LogitRows, Logits, Output, Scratch, Span, Weights,
};
pub use kernels::{
    Activations, FileStamp, Isa, MappedFile, Team, f32_ceiling, features, int8_ceiling, read_ceiling,
};
pub use peers::Peers;
