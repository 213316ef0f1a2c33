//! One model divided over ranks: who holds which layers, and which slices of each.
//!
//! A [`ShardMap`] is what ranks agree on: a few numbers from which, with the model's spec, every slice follows. What a rank
//! holds is a decoder again, with fewer layers, heads and columns ([`Part`]), and its tensors are parts of the model's
//! ([`ShardedSource`]). Attention and delta nets are divided by heads, feed-forwards and experts by columns, embedding and
//! head by rows of the vocabulary; norms, routers and what is small are held by every rank.

mod map;
mod part;
mod share;
mod source;

pub use map::{Division, Member, ShardError, ShardMap, Stage, weights_read};
pub use part::Part;
pub use share::apportion;
pub use source::{ShardedSource, grain};

#[cfg(test)]
mod tests;
