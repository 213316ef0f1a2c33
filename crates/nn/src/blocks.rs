//! The parts that decoders are made of, each over any backend.

mod attention;
mod delta_net;
mod experts;
mod feed_forward;
mod layer_inputs;
mod linear;
mod norm;
mod residual;
mod rope;

pub(crate) use attention::{Attention, AttentionRows};
pub(crate) use delta_net::{DeltaNet, DeltaNetRows};
pub(crate) use experts::Experts;
pub(crate) use feed_forward::{DenseAndExperts, FeedForward, FeedForwardRows, Gated};
pub(crate) use layer_inputs::{LayerInput, LayerInputRows, LayerInputs};
pub(crate) use linear::Linear;
pub(crate) use norm::Norm;
pub(crate) use residual::Residual;
pub(crate) use rope::Rope;
