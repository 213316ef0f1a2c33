//! What a synthetic model stores in which format: for each tensor its pieces, and what comes before them all.

use serde_json::json;

use super::layout::{self, Written};
use super::metadata;
use super::weights::{Fill, Spread, spread};
use super::{SynthError, SynthFormat, SynthRequest};
use crate::checkpoint::{DType, StoredTensor, expected_tensors, safetensors_file_header};
use crate::gguf::{GgufWriter, as_stored};
use crate::spec::{LayerTensor, ModelSpec, TensorRole};

/// One tensor of the file.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    pub(super) name: String,
    pub(super) dtype: DType,
    /// As safetensors spells its type, where that is not `dtype`'s own.
    pub(super) spelled: Option<&'static str>,
    pub(super) shape: Vec<usize>,
    pub(super) fill: Fill,
    /// Zero bytes after it.
    pub(super) padding: usize,
}

impl Piece {
    fn bytes(&self) -> u64 {
        self.fill.bytes()
    }
}

/// The pieces of `spec` in the order in which they are written.
pub(super) fn pieces(request: &SynthRequest, spec: &ModelSpec) -> Result<Vec<Piece>, SynthError> {
    let fits = match request.format {
        SynthFormat::Safetensors => request.dtype.is_float(),
        SynthFormat::Mlx => matches!(request.dtype, DType::Mlx { .. }),
        SynthFormat::Gguf => {
            !matches!(request.dtype, DType::Mlx { .. } | DType::Mxfp4Split | DType::Q2K | DType::Q3K)
        }
    };
    if !fits {
        return Err(SynthError::Format { dtype: request.dtype, format: request.format.name() });
    }
    let mut stored = spec.clone();
    if request.format == SynthFormat::Gguf || (request.format == SynthFormat::Mlx && spec.is_recurrent()) {
        as_stored(&mut stored);
    }
    let mut pieces = Vec::new();
    for (role, name, shape) in expected_tensors(spec) {
        for Written { name, shape } in layout::written(request, spec, (role, name, shape)) {
            match request.format {
                SynthFormat::Safetensors => pieces.push(plain(&stored, role, name, request.dtype, shape)),
                SynthFormat::Gguf => pieces.push(gguf(request, &stored, role, (name, shape))),
                SynthFormat::Mlx => mlx(request, &stored, (role, name, shape), &mut pieces),
            }
        }
    }
    Ok(pieces)
}

fn plain(spec: &ModelSpec, role: TensorRole, name: String, dtype: DType, shape: Vec<usize>) -> Piece {
    let fill = Fill::new(dtype, spread(spec, role, &shape), shape.iter().product());
    Piece { name, dtype, spelled: None, shape, fill, padding: 0 }
}

fn gguf(
    request: &SynthRequest,
    spec: &ModelSpec,
    role: TensorRole,
    (name, shape): (String, Vec<usize>),
) -> Piece {
    let columns = shape.last().copied().unwrap_or(0);
    // llama.cpp holds these to f32, whatever the rest is.
    let exact = matches!(
        role,
        TensorRole::Layer(
            _,
            LayerTensor::Router
                | LayerTensor::SharedOutputGate
                | LayerTensor::DeltaConvolution
                | LayerTensor::ExpertGateBias(_)
                | LayerTensor::ExpertUpBias(_)
                | LayerTensor::ExpertDownBias(_)
        )
    );
    let wanted = if shape.len() < 2 || exact { DType::F32 } else { mixed(request, spec, role) };
    // As llama.cpp falls back where rows are no whole blocks.
    let dtype = [wanted, DType::Q8_0, DType::F16]
        .into_iter()
        .find(|dtype| dtype.row_bytes(columns).is_some())
        .expect("floats have no blocks");
    let mut piece = plain(spec, role, name, dtype, shape);
    if let TensorRole::Layer(_, LayerTensor::DeltaLogA) = role {
        // Stored as what it is for: -exp(x).
        piece.fill = Fill::new(dtype, Spread::Constant(-1.0), piece.shape.iter().product());
    }
    piece.padding = GgufWriter::padding(piece.bytes());
    piece
}

/// The type of one matrix: in mixes, values and what narrows get more bits in some layers, and the head everywhere.
fn mixed(request: &SynthRequest, spec: &ModelSpec, role: TensorRole) -> DType {
    let k = matches!(request.dtype, DType::Q4K | DType::Q5K);
    let layers = spec.layers.len();
    match role {
        TensorRole::Head if k => DType::Q6K,
        TensorRole::Embedding if k && spec.tied_head => DType::Q6K,
        TensorRole::Layer(layer, LayerTensor::Value | LayerTensor::Down) if k && request.mixed => {
            let eighth = layers / 8;
            let more = layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2;
            if more { DType::Q6K } else { request.dtype }
        }
        _ => request.dtype,
    }
}

fn mlx(
    request: &SynthRequest,
    spec: &ModelSpec,
    (role, name, shape): (TensorRole, String, Vec<usize>),
    pieces: &mut Vec<Piece>,
) {
    let DType::Mlx { bits, group } = request.dtype else { return };
    let columns = shape.last().copied().unwrap_or(0);
    let vector = shape.len() < 2 || layout::is_small(role);
    let quantised = !vector && columns.is_multiple_of(usize::from(group).max(32));
    let Some(stem) = name.strip_suffix(".weight").filter(|_| quantised) else {
        pieces.push(plain(spec, role, name, DType::BF16, shape));
        return;
    };
    let deviation = spread(spec, role, &shape).deviation();
    let codes = f32::from(u16::MAX >> (16 - bits));
    // Codes are uniform: they deviate by their number over the root of twelve.
    let scale = deviation / ((codes + 1.0) / 12f32.sqrt());
    let outer = &shape[..shape.len() - 1];
    let rows: usize = outer.iter().product();
    let groups = columns / usize::from(group);
    let with = |last: usize| [outer, &[last]].concat();
    pieces.push(Piece {
        name: name.clone(),
        dtype: request.dtype,
        spelled: Some("U32"),
        shape: with(columns * usize::from(bits) / 32),
        fill: Fill::random(rows * columns * usize::from(bits) / 8),
        padding: 0,
    });
    for (part, value) in [("scales", scale), ("biases", -scale * codes / 2.0)] {
        pieces.push(Piece {
            name: format!("{stem}.{part}"),
            dtype: DType::BF16,
            spelled: None,
            shape: with(groups),
            fill: Fill::new(DType::BF16, Spread::Constant(value), rows * groups),
            padding: 0,
        });
    }
}

/// What the file begins with, and how long it will be.
pub(super) fn header(request: &SynthRequest, spec: &ModelSpec, pieces: &[Piece]) -> (Vec<u8>, u64) {
    if request.format == SynthFormat::Gguf {
        return metadata::header(request, spec, pieces);
    }
    let tensors: Vec<StoredTensor<'_>> = pieces
        .iter()
        .map(|piece| StoredTensor {
            name: &piece.name,
            stored: piece.spelled.unwrap_or(piece.dtype.name()),
            shape: &piece.shape,
            bytes: piece.bytes(),
        })
        .collect();
    safetensors_file_header(&tensors)
}

/// What `config.json` says of MLX's codes.
pub(super) fn quantization(request: &SynthRequest) -> Option<serde_json::Value> {
    match request.dtype {
        DType::Mlx { bits, group } => Some(json!({"group_size": group, "bits": bits})),
        _ => None,
    }
}
