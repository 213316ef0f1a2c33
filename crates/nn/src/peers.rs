//! What a decoder that holds a part of a model asks of the ranks that hold the other parts.

use crate::backend::BackendError;

/// The ranks that hold other slices of the same layers. All of them run the same spans in the same order, so that their
/// calls pair up.
pub trait Peers {
    /// Replaces `values` by their sum over the ranks: the same bits on each of them, and in every run.
    ///
    /// # Errors
    /// A rank is lost, or late. Who asks keeps what it knows of the fault; here it is only passed on.
    fn sum(&mut self, values: &mut [f32]) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;
}

/// Why a block's result could not be added.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResidualError {
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error("the other ranks cannot be reached")]
    Peers(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The peers for one call of several.
pub(crate) fn again<'a>(peers: &'a mut Option<&mut dyn Peers>) -> Option<&'a mut dyn Peers> {
    match peers {
        Some(peers) => Some(&mut **peers),
        None => None,
    }
}
