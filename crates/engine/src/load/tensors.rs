//! A model's tensors, whatever format its files have.

use model::checkpoint::{
    Checkpoint, CheckpointError, Quantisation, SafetensorsFile, ShardIndex, TensorSource, TensorView,
};
use model::gguf::{self, GgufCheckpoint, GgufFile};
use model::kit::Kit;
use model::spec::{ModelSpec, TensorRole};

use super::Layout;
use super::found::INDEX;

/// The tensors of any format.
pub(crate) enum Tensors<'a> {
    Safetensors(Checkpoint<'a>),
    Gguf(GgufCheckpoint<'a>),
}

/// What a check found.
pub(super) struct Stored {
    /// As the weights have it: where they contradict the configuration in how they are stored, they are right.
    pub(super) spec: ModelSpec,
    /// Of all tensors.
    pub(super) bytes: u64,
}

impl<'a> Tensors<'a> {
    /// Opens `files`, whose `spec` a check has given.
    pub(super) fn open(
        layout: &Layout,
        files: &[(&'a str, &'a [u8])],
        spec: &ModelSpec,
        kit: &Kit,
    ) -> Result<Self, CheckpointError> {
        match layout {
            Layout::Gguf => {
                let files = files.iter().map(|(name, bytes)| GgufFile::parse(name, bytes));
                GgufCheckpoint::new(files.collect::<Result<_, _>>()?, spec).map(Self::Gguf)
            }
            Layout::Safetensors { index } => {
                let files = files.iter().map(|(name, bytes)| SafetensorsFile::parse(name, bytes));
                let files = files.collect::<Result<_, _>>()?;
                let quantisation = Quantisation::from_config(&kit.config)?;
                let checkpoint = match index {
                    Some(index) => {
                        Checkpoint::sharded(&ShardIndex::parse(INDEX, index)?, files, &quantisation)
                    }
                    None => Checkpoint::quantised(files, &quantisation),
                };
                checkpoint.map(Self::Safetensors)
            }
        }
    }

    /// Holds every tensor to `spec`.
    pub(super) fn check(
        layout: &Layout,
        files: &[(&'a str, &'a [u8])],
        spec: &ModelSpec,
        kit: &Kit,
    ) -> Result<Stored, CheckpointError> {
        let mut spec = spec.clone();
        if matches!(layout, Layout::Gguf) {
            gguf::as_stored(&mut spec);
        }
        let bytes = match Self::open(layout, files, &spec, kit)? {
            Self::Gguf(checkpoint) => checkpoint.tensor_bytes(),
            Self::Safetensors(checkpoint) => {
                spec.tied_head &= spec.pooling.is_some() || !checkpoint.has_own_head();
                if checkpoint.has_plain_norms() {
                    gguf::as_stored(&mut spec);
                }
                checkpoint.verify(&spec)?;
                checkpoint.tensor_bytes()
            }
        };
        Ok(Stored { spec, bytes })
    }

    /// The file that has the tensor called `name`.
    pub(crate) fn file_of(&self, name: &str) -> String {
        match self {
            Self::Safetensors(checkpoint) => checkpoint.file_of(name),
            Self::Gguf(checkpoint) => checkpoint.file_of(name),
        }
    }
}

impl TensorSource for Tensors<'_> {
    fn tensor(&self, role: TensorRole) -> Result<TensorView<'_>, CheckpointError> {
        match self {
            Self::Safetensors(checkpoint) => checkpoint.tensor(role),
            Self::Gguf(checkpoint) => checkpoint.tensor(role),
        }
    }
}
