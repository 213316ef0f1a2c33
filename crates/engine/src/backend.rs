//! The model on this machine's CPU: weights, KV cache, scratch and threads, all owned by the engine's thread.

use crate::compute::{Compute, Work};
use crate::config::EngineConfig;
use crate::engine::{Ready, StartError};
use crate::load::LoadedModel;

/// Why a model cannot be computed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// Nothing to compute with.
    #[error("this build cannot compute")]
    None,
}

pub(crate) struct Cpu;

pub(crate) fn open(_model: &LoadedModel, _config: &EngineConfig) -> Result<Ready<Cpu>, StartError> {
    Err(BackendError::None.into())
}

impl Compute for Cpu {
    fn wipe(&mut self, _pages: &[u32]) {}
    fn step(&mut self, _work: &[Work<'_>]) -> Result<&[f32], String> {
        Err("this build cannot compute".to_owned())
    }
    fn logits(&mut self, _tokens: &[u32], _all: bool) -> Result<Vec<Vec<f32>>, String> {
        Err("this build cannot compute".to_owned())
    }
}
