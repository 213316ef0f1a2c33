//! What a synthetic model stores in which format: for each tensor its pieces, and what comes before them all.

use serde_json::json;

use super::vocabulary;
use super::weights::{Fill, spread};
use super::{SynthError, SynthFormat, SynthRequest};
use crate::checkpoint::{DType, StoredTensor, expected_tensors, safetensors_file_header};
use crate::gguf::{GgufWriter, gguf_architecture, gguf_name};
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
    let mut pieces = Vec::new();
    for (role, name, shape) in expected_tensors(spec) {
        match request.format {
            SynthFormat::Safetensors => pieces.push(plain(spec, role, name, request.dtype, shape)),
            SynthFormat::Gguf => pieces.push(gguf(request, spec, role, shape)?),
            SynthFormat::Mlx => mlx(request, spec, (role, name, shape), &mut pieces),
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
    shape: Vec<usize>,
) -> Result<Piece, SynthError> {
    let Some(name) = gguf_name(gguf_architecture(&request.family).unwrap_or_default(), role) else {
        return Err(SynthError::NoGguf { family: request.family.clone() });
    };
    let columns = shape.last().copied().unwrap_or(0);
    let wanted = if shape.len() < 2 { DType::F32 } else { mixed(request, spec, role) };
    // As llama.cpp falls back where rows are no whole blocks.
    let dtype = [wanted, DType::Q8_0, DType::F16]
        .into_iter()
        .find(|dtype| dtype.row_bytes(columns).is_some())
        .expect("floats have no blocks");
    let mut piece = plain(spec, role, name, dtype, shape);
    piece.padding = GgufWriter::padding(piece.bytes());
    Ok(piece)
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
    let quantised = shape.len() == 2 && shape[1].is_multiple_of(usize::from(group).max(32));
    let Some(stem) = name.strip_suffix(".weight").filter(|_| quantised) else {
        pieces.push(plain(spec, role, name, DType::BF16, shape));
        return;
    };
    let deviation = spread(spec, role, &shape).deviation();
    let codes = f32::from(u16::MAX >> (16 - bits));
    // Codes are uniform: they deviate by their number over the root of twelve.
    let scale = deviation / ((codes + 1.0) / 12f32.sqrt());
    let (rows, columns) = (shape[0], shape[1]);
    let groups = columns / usize::from(group);
    pieces.push(Piece {
        name: name.clone(),
        dtype: request.dtype,
        spelled: Some("U32"),
        shape: vec![rows, columns * usize::from(bits) / 32],
        fill: Fill::random(rows * columns * usize::from(bits) / 8),
        padding: 0,
    });
    for (part, value) in [("scales", scale), ("biases", -scale * codes / 2.0)] {
        pieces.push(Piece {
            name: format!("{stem}.{part}"),
            dtype: DType::BF16,
            spelled: None,
            shape: vec![rows, groups],
            fill: Fill::new(DType::BF16, super::weights::Spread::Constant(value), rows * groups),
            padding: 0,
        });
    }
}

/// What the file begins with, and how long it will be.
pub(super) fn header(request: &SynthRequest, spec: &ModelSpec, pieces: &[Piece]) -> (Vec<u8>, u64) {
    if request.format == SynthFormat::Gguf {
        return gguf_header(request, spec, pieces);
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

/// Metadata of a family that [`super::Synth::new`] has accepted.
fn gguf_header(request: &SynthRequest, spec: &ModelSpec, pieces: &[Piece]) -> (Vec<u8>, u64) {
    let architecture = gguf_architecture(&request.family).unwrap_or_default();
    let mut writer = GgufWriter::default();
    writer.text("general.architecture", architecture);
    writer.text("general.name", "synthetic");
    let key = |name: &str| format!("{architecture}.{name}");
    let head_dim = request.head_dim.unwrap_or(request.hidden / request.heads.max(1));
    for (name, number) in [
        ("context_length", request.context),
        ("embedding_length", request.hidden),
        ("block_count", request.layers),
        ("feed_forward_length", request.feed_forward),
        ("attention.head_count", request.heads),
        ("attention.head_count_kv", request.kv_heads),
        ("attention.key_length", head_dim),
        ("attention.value_length", head_dim),
        ("rope.dimension_count", head_dim),
        ("vocab_size", request.vocabulary),
    ] {
        writer
            .unsigned(&key(name), u32::try_from(number).expect("sizes were checked against limits below it"));
    }
    writer.float(&key("attention.layer_norm_rms_epsilon"), spec.final_norm.epsilon);
    writer.float(&key("rope.freq_base"), super::ROPE_THETA);
    let tokens = vocabulary::tokens(request.vocabulary);
    writer.text("tokenizer.ggml.model", "gpt2");
    writer.text("tokenizer.ggml.pre", "gpt-2");
    writer.texts("tokenizer.ggml.tokens", tokens.iter().map(String::as_str));
    let kinds: Vec<i32> =
        (0..tokens.len() as u32).map(|token| if vocabulary::is_mark(token) { 3 } else { 1 }).collect();
    writer.signeds("tokenizer.ggml.token_type", kinds.into_iter());
    writer.texts("tokenizer.ggml.merges", [].into_iter());
    writer.unsigned("tokenizer.ggml.eos_token_id", vocabulary::END_OF_TURN);
    writer.unsigned("tokenizer.ggml.padding_token_id", vocabulary::END_OF_TEXT);
    writer.flag("tokenizer.ggml.add_bos_token", false);
    writer.text("tokenizer.chat_template", vocabulary::CHATML);
    for piece in pieces {
        writer.tensor(&piece.name, piece.dtype, &piece.shape);
    }
    writer.finish()
}

/// What `config.json` says of MLX's codes.
pub(super) fn quantization(request: &SynthRequest) -> Option<serde_json::Value> {
    match request.dtype {
        DType::Mlx { bits, group } => Some(json!({"group_size": group, "bits": bits})),
        _ => None,
    }
}
