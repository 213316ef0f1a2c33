//! A synthetic model's weights: uniform, seeded, as wide as keeps activations and logits near those of trained models.

use base::Rng;
use half::{bf16, f16};

use crate::checkpoint::DType;
use crate::spec::{LayerSpec, LayerTensor, MixerSpec, ModelSpec, TensorRole};

/// Large enough that writing is not the bound, small enough that any machine holds a few.
const CHUNK_BYTES: usize = 1 << 20;

/// How wide a tensor's values are spread.
#[derive(Debug, Clone, Copy)]
pub(super) enum Spread {
    /// All the same.
    Constant(f32),
    /// Uniform with this standard deviation.
    Deviation(f32),
}

pub(super) fn spread(spec: &ModelSpec, role: TensorRole, shape: &[usize]) -> Spread {
    let inputs = shape.last().copied().unwrap_or(1).max(1) as f32;
    // The head's rows dotted with a normed state: logits then deviate by 2.
    let head = 2.0 / inputs.sqrt();
    match role {
        TensorRole::FinalNorm => Spread::Constant(1.0 - spec.final_norm.weight_offset),
        TensorRole::Head => Spread::Deviation(head),
        TensorRole::Embedding if spec.tied_head => Spread::Deviation(head),
        TensorRole::Embedding => Spread::Deviation(1.0),
        TensorRole::LayerInputEmbedding => Spread::Deviation(1.0),
        TensorRole::LayerInputModelProjection => Spread::Deviation(1.0),
        TensorRole::LayerInputModelNorm => Spread::Constant(1.0),
        TensorRole::Layer(layer, tensor) => match tensor {
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
            // Stacked.
            LayerTensor::ExpertGateBias(_)
            | LayerTensor::ExpertUpBias(_)
            | LayerTensor::ExpertDownBias(_) => Spread::Deviation(0.02),
            _ if shape.len() > 1 => Spread::Deviation(inputs.sqrt().recip()),
            norm if is_norm(norm) => Spread::Constant(1.0 - offset(&spec.layers[layer], norm)),
            _ => Spread::Deviation(0.02),
        },
    }
}

/// What is added to the stored weights of a norm: in a layer it is the same for all but a delta net's own.
fn offset(layer: &LayerSpec, norm: LayerTensor) -> f32 {
    match (&layer.mixer, norm) {
        (MixerSpec::DeltaNet(delta), LayerTensor::DeltaNorm) => delta.norm.weight_offset,
        _ => layer.mixer_norm.weight_offset,
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

impl Spread {
    /// How far values are from their mean.
    pub(super) fn deviation(self) -> f32 {
        match self {
            Self::Constant(_) => 0.0,
            Self::Deviation(deviation) => deviation,
        }
    }

    /// The value for 16 random bits.
    fn value(self, bits: u16) -> f32 {
        match self {
            Self::Constant(value) => value,
            // A uniform value within +-1 deviates by 1/sqrt(3).
            Self::Deviation(deviation) => {
                (f32::from(bits) + 0.5 - 32_768.0) / 32_768.0 * deviation * 3f32.sqrt()
            }
        }
    }
}

/// What a tensor's bytes are.
#[derive(Debug, Clone)]
pub(super) enum Fill {
    /// Floats.
    Floats { dtype: DType, spread: Spread, elements: usize },
    /// Blocks whose codes are random bits and whose scales are all alike: bytes of a block, and those that are not random.
    Blocks { block: usize, fixed: Vec<(usize, Vec<u8>)>, blocks: usize },
}

impl Fill {
    /// `elements` of type `dtype`.
    pub(super) fn new(dtype: DType, spread: Spread, elements: usize) -> Self {
        if dtype.is_float() {
            return Self::Floats { dtype, spread, elements };
        }
        let (of_block, block) = dtype.block();
        Self::Blocks { block, fixed: fixed(dtype, spread.deviation()), blocks: elements / of_block }
    }

    /// Nothing but random bits.
    pub(super) fn random(bytes: usize) -> Self {
        Self::Blocks { block: 1, fixed: Vec::new(), blocks: bytes }
    }

    /// How many there are.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Floats { dtype, elements, .. } => *elements as u64 * dtype.block().1 as u64,
            Self::Blocks { block, blocks, .. } => *blocks as u64 * *block as u64,
        }
    }
}

/// The bytes of a block that are not codes, so that its values deviate by `deviation` around (about) nothing.
fn fixed(dtype: DType, deviation: f32) -> Vec<(usize, Vec<u8>)> {
    let half = |at: usize, value: f32| (at, f16::from_f32(value).to_le_bytes().to_vec());
    // `codes` uniform whole numbers deviate by their number over the root of twelve.
    let scale = |codes: f32| deviation * 12f32.sqrt() / codes;
    // Six bits for each of eight scales and minima: 32 for all of them.
    let packed = || (4, [[160; 4], [160; 4], [0; 4]].concat());
    match dtype {
        DType::Q4_0 => vec![half(0, scale(16.0))],
        DType::Q4_1 => vec![half(0, scale(16.0)), half(2, -7.5 * scale(16.0))],
        DType::Q5_0 => vec![half(0, scale(32.0))],
        DType::Q5_1 => vec![half(0, scale(32.0)), half(2, -15.5 * scale(32.0))],
        DType::Q8_0 => vec![half(0, scale(256.0))],
        DType::Q4K => vec![half(0, scale(16.0) / 32.0), half(2, 7.5 * scale(16.0) / 32.0), packed()],
        DType::Q5K => vec![half(0, scale(32.0) / 32.0), half(2, 15.5 * scale(32.0) / 32.0), packed()],
        DType::Q6K => vec![(192, vec![64; 16]), half(208, scale(64.0) / 64.0)],
        // The sixteen values deviate by 2.9.
        DType::Mxfp4 => vec![(0, vec![(127.0 + (deviation / 2.9).log2()).round().clamp(1.0, 254.0) as u8])],
        _ => Vec::new(),
    }
}

/// The bytes of one tensor, a chunk at a time.
pub struct TensorChunks {
    rng: Rng,
    making: Making,
    padding: usize,
}

enum Making {
    /// An element's bytes for each 16 random bits, the bytes of one, and how many are left.
    Floats { table: Vec<u8>, size: usize, left: usize },
    /// As [`Fill::Blocks`].
    Blocks { block: usize, fixed: Vec<(usize, Vec<u8>)>, left: usize },
}

pub(super) fn chunks(fill: &Fill, padding: usize, seed: u64, index: u64) -> TensorChunks {
    let making = match fill {
        Fill::Floats { dtype, spread, elements } => {
            let size = dtype.block().1;
            let mut table = Vec::with_capacity(65_536 * size);
            for bits in 0..=u16::MAX {
                let value = spread.value(bits);
                match dtype {
                    DType::F32 => table.extend_from_slice(&value.to_le_bytes()),
                    DType::F16 => table.extend_from_slice(&f16::from_f32(value).to_le_bytes()),
                    _ => table.extend_from_slice(&bf16::from_f32(value).to_le_bytes()),
                }
            }
            Making::Floats { table, size, left: *elements }
        }
        Fill::Blocks { block, fixed, blocks } => {
            Making::Blocks { block: *block, fixed: fixed.clone(), left: *blocks }
        }
    };
    TensorChunks { rng: Rng::new(seed).fork(index), making, padding }
}

impl Iterator for TensorChunks {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let mut out = match &mut self.making {
            Making::Floats { table, size, left } if *left > 0 => {
                let elements = (*left).min(CHUNK_BYTES / *size);
                *left -= elements;
                let mut out = Vec::with_capacity(elements * *size);
                let mut bits = 0u64;
                for element in 0..elements {
                    if element % 4 == 0 {
                        bits = self.rng.next_u64();
                    }
                    let at = usize::from(bits as u16) * *size;
                    out.extend_from_slice(&table[at..at + *size]);
                    bits >>= 16;
                }
                out
            }
            Making::Blocks { block, fixed, left } if *left > 0 => {
                let blocks = (*left).min(CHUNK_BYTES / *block);
                *left -= blocks;
                let bytes = blocks * *block;
                let mut out = Vec::with_capacity(bytes + 8);
                while out.len() < bytes {
                    out.extend_from_slice(&self.rng.next_u64().to_le_bytes());
                }
                out.truncate(bytes);
                for block in out.chunks_exact_mut(*block) {
                    for (at, bytes) in &*fixed {
                        block[*at..at + bytes.len()].copy_from_slice(bytes);
                    }
                }
                out
            }
            _ => return (self.padding > 0).then(|| vec![0; std::mem::take(&mut self.padding)]),
        };
        let done = match &self.making {
            Making::Floats { left, .. } | Making::Blocks { left, .. } => *left == 0,
        };
        if done {
            out.resize(out.len() + std::mem::take(&mut self.padding), 0);
        }
        Some(out)
    }
}
