//! The parts that decoders are made of, each over any backend.

mod attention;
mod feed_forward;
mod linear;
mod norm;
mod residual;
mod rope;

pub(crate) use attention::{Attention, AttentionRows};
pub(crate) use feed_forward::{FeedForward, FeedForwardRows};
pub(crate) use linear::Linear;
pub(crate) use norm::Norm;
pub(crate) use residual::Residual;
pub(crate) use rope::Rope;
