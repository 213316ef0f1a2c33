//! A synthetic model's weights: uniform, seeded, as wide as keeps activations and logits near those of trained models.

use base::Rng;
use half::{bf16, f16};

use crate::checkpoint::DType;
use crate::spec::{LayerTensor, ModelSpec, TensorRole};

/// Large enough that writing is not the bound, small enough that any machine holds a few.
const CHUNK_BYTES: usize = 1 << 20;

/// The bytes of one tensor, a chunk at a time.
pub struct TensorChunks {
    rng: Rng,
    /// An element's bytes for each 16 random bits.
    table: Vec<u8>,
    size: usize,
    elements_left: usize,
}

/// How wide a tensor's values are spread.
enum Spread {
    /// All the same.
    Constant(f32),
    /// Uniform with this standard deviation.
    Deviation(f32),
}

fn spread(spec: &ModelSpec, role: TensorRole, shape: &[usize]) -> Spread {
    let inputs = shape.last().copied().unwrap_or(1).max(1) as f32;
    // The head's rows dotted with a normed state: logits then deviate by 2.
    let head = 2.0 / inputs.sqrt();
    match role {
        TensorRole::FinalNorm => Spread::Constant(1.0),
        TensorRole::Head => Spread::Deviation(head),
        TensorRole::Embedding if spec.tied_head => Spread::Deviation(head),
        TensorRole::Embedding => Spread::Deviation(1.0),
        TensorRole::LayerInputEmbedding => Spread::Deviation(1.0),
        TensorRole::LayerInputModelProjection => Spread::Deviation(1.0),
        TensorRole::LayerInputModelNorm => Spread::Constant(1.0),
        TensorRole::Layer(_, tensor) => match tensor {
            // What is added to the residual grows with the layers: each adds its share.
            LayerTensor::Output
            | LayerTensor::DeltaOutput
            | LayerTensor::Down
            | LayerTensor::ExpertDown(_)
            | LayerTensor::SharedDown
            | LayerTensor::LayerInputProjection => {
                Spread::Deviation((inputs * 2.0 * spec.layers.len() as f32).sqrt().recip())
            }
            LayerTensor::OutputScale | LayerTensor::RouterExpertScale => Spread::Constant(1.0),
            // With a time of about one half a step forgets a third.
            LayerTensor::DeltaLogA => Spread::Constant(0.0),
            LayerTensor::DeltaConvolution => Spread::Deviation(0.5),
            _ if shape.len() > 1 => Spread::Deviation(inputs.sqrt().recip()),
            norm if is_norm(norm) => Spread::Constant(1.0),
            _ => Spread::Deviation(0.02),
        },
    }
}

fn is_norm(tensor: LayerTensor) -> bool {
    matches!(
        tensor,
        LayerTensor::MixerNorm
            | LayerTensor::MixerPostNorm
            | LayerTensor::QueryNorm
            | LayerTensor::KeyNorm
            | LayerTensor::DeltaNorm
            | LayerTensor::FeedForwardNorm
            | LayerTensor::FeedForwardPostNorm
            | LayerTensor::RouterNorm
            | LayerTensor::DensePostNorm
            | LayerTensor::ExpertsNorm
            | LayerTensor::ExpertsPostNorm
            | LayerTensor::LayerInputNorm
    )
}

pub(super) fn chunks(
    spec: &ModelSpec,
    role: TensorRole,
    (_, dtype, shape): &(String, DType, Vec<usize>),
    seed: u64,
    index: u64,
) -> TensorChunks {
    let value = |bits: u16| match spread(spec, role, shape) {
        Spread::Constant(value) => value,
        // A uniform value within +-1 deviates by 1/sqrt(3).
        Spread::Deviation(deviation) => {
            (f32::from(bits) + 0.5 - 32_768.0) / 32_768.0 * deviation * 3f32.sqrt()
        }
    };
    let mut table = Vec::with_capacity(65_536 * dtype.block().1);
    for bits in 0..=u16::MAX {
        match dtype {
            DType::F32 => table.extend_from_slice(&value(bits).to_le_bytes()),
            DType::F16 => table.extend_from_slice(&f16::from_f32(value(bits)).to_le_bytes()),
            _ => table.extend_from_slice(&bf16::from_f32(value(bits)).to_le_bytes()),
        }
    }
    TensorChunks {
        rng: Rng::new(seed).fork(index),
        table,
        size: dtype.block().1,
        elements_left: shape.iter().product(),
    }
}

impl Iterator for TensorChunks {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        if self.elements_left == 0 {
            return None;
        }
        let elements = self.elements_left.min(CHUNK_BYTES / self.size);
        self.elements_left -= elements;
        let mut out = Vec::with_capacity(elements * self.size);
        let mut bits = 0u64;
        for element in 0..elements {
            if element % 4 == 0 {
                bits = self.rng.next_u64();
            }
            let at = usize::from(bits as u16) * self.size;
            out.extend_from_slice(&self.table[at..at + self.size]);
            bits >>= 16;
        }
        Some(out)
    }
}
