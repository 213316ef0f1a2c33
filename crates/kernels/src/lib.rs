//! The unsafe leaf: loops over numbers, memory they like, and threads that run them together.
//!
//! What it is: matrix products, norms, attention and conversions for the CPU, written once over sixteen f32
//! lanes and compiled for AVX-512, for AVX2 and for no extension at all; the choice is a value,
//! [`Isa`]. Every loop fixes the order of its additions, so that a row's result is bitwise the same whatever the
//! instruction set (given a fused multiply-add), the number of threads, and whatever else is in the batch.
//! What it is *not*: it knows no model, no tensor name and no file format. The only crate that may hold `unsafe`.
//! Start with [`Isa`], [`Team`], [`PackedMatrix`] and [`linear`]; [`attention`] is the largest of the loops.

// Here, and nowhere else in the workspace: see the crate's description.
#![allow(unsafe_code)]
// Tiles are arrays of registers: counted loops over all their sides at once say what happens, iterators hide it.
#![allow(clippy::needless_range_loop)]

mod activations;
mod attention;
mod buffer;
mod ceiling;
mod delta;
mod dots;
mod finite;
mod grouped;
mod heads;
mod isa;
mod kv;
mod lanes;
mod mapped;
mod math;
mod matmul;
#[cfg(test)]
mod numbers;
mod pack;
mod rows;
mod shared;
mod team;
#[cfg(target_arch = "x86_64")]
mod tiles;

pub use activations::Activations;
pub use attention::{AttentionScratch, AttentionShape, AttentionSpan, attention};
pub use buffer::Buffer;
pub use ceiling::{f32_ceiling, int8_ceiling, read_ceiling};
pub use delta::{DeltaScratch, DeltaShape, DeltaSpan, delta_net};
pub use finite::all_finite;
pub use grouped::{Codes, Factors, GroupedFormat, GroupedRows, SUPER};
pub use heads::{HeadsShape, Rotation, prepare_heads};
pub use isa::{Isa, features};
pub use kv::{KvElement, KvPages, KvPagesError};
pub use mapped::{FileStamp, MappedFile};
pub use matmul::{Store, linear};
pub use pack::{PackError, PackedMatrix, WeightBytes, WeightElement};
pub use rows::{Activation, gate, rms_norm, sigmoid_gate};
pub use team::Team;
