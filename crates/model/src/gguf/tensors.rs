//! The tensors of a GGUF model by role: found, cut out of stacks, put back into the order in which the families know them.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::names::{Part, Stored, is_ignored, places};
use super::order::{self, Reorder};
use super::reader::GgufFile;
use crate::checkpoint::{CheckpointError, Columns, DType, Order, TensorSource, TensorView, expected_tensors};
use crate::quant::{dequantise_all, grouping};
use crate::spec::{FeedForwardSpec, LayerTensor, MixerSpec, ModelSpec, NormSpec, TensorRole};

/// A model's weights in GGUF: one file, or its parts.
#[derive(Debug)]
pub struct GgufCheckpoint<'a> {
    files: Vec<GgufFile<'a>>,
    tensors: HashMap<TensorRole, Located>,
    /// Orders of rows or column blocks: layers alike share one.
    orders: Vec<Vec<u32>>,
}

/// Where a role's tensor is.
#[derive(Debug)]
struct Located {
    file: usize,
    place: usize,
    shape: Vec<usize>,
    /// Of the stored tensor's bytes.
    bytes: Range<usize>,
    rows: Option<usize>,
    /// Width, order, stored columns.
    columns: Option<(usize, usize, usize)>,
    /// f32 in the order and with the meaning that the family knows, where stored ones have others.
    owned: Option<Vec<u8>>,
}

impl<'a> GgufCheckpoint<'a> {
    /// Finds every tensor that `spec` needs in `files`, the parts of one model in their order, and holds each to its
    /// shape and type; there may be none that the model has no place for.
    ///
    /// # Errors
    /// Parts that do not belong together; the first tensor that is missing, misshapen, of another type or too many.
    pub fn new(files: Vec<GgufFile<'a>>, spec: &ModelSpec) -> Result<Self, CheckpointError> {
        let index = index(&files)?;
        let architecture =
            files[0].get("general.architecture").and_then(super::Value::text).unwrap_or_default();
        let mut checkpoint = Self { files, tensors: HashMap::new(), orders: Vec::new() };
        let mut used = HashSet::new();
        let mut known_orders = HashMap::new();
        for (role, _, shape) in expected_tensors(spec) {
            let candidates = places(architecture, role);
            let Some((stored, &(file, place))) =
                candidates.iter().find_map(|stored| Some((stored, index.get(stored.name.as_str())?)))
            else {
                let tensor = candidates.first().map(|stored| stored.name.clone()).unwrap_or_default();
                return Err(CheckpointError::MissingTensor { tensor, file: checkpoint.file_names() });
            };
            used.insert((file, place));
            let reorder = reorder(architecture, spec, role);
            let located = checkpoint.locate(stored, (file, place), shape, reorder, &mut known_orders)?;
            checkpoint.tensors.insert(role, located);
        }
        let layers = spec.layers.len();
        let stray = index
            .iter()
            .filter(|(name, place)| !used.contains(place) && !is_ignored(name, layers, spec.tied_head))
            .map(|(name, place)| (*name, place.0))
            .min();
        match stray {
            Some((name, file)) => Err(CheckpointError::UnexpectedTensor {
                file: checkpoint.files[file].file_name().to_owned(),
                tensor: name.to_owned(),
            }),
            None => Ok(checkpoint),
        }
    }

    /// How many bytes all tensors take.
    pub fn tensor_bytes(&self) -> u64 {
        self.files.iter().map(GgufFile::tensor_bytes).sum()
    }

    /// The file that has the tensor called `name`; the files' names where none has.
    pub fn file_of(&self, name: &str) -> String {
        let found = self.files.iter().find(|file| file.names().any(|other| other == name));
        found.map_or_else(|| self.file_names(), |file| file.file_name().to_owned())
    }

    fn file_names(&self) -> String {
        self.files.iter().map(GgufFile::file_name).collect::<Vec<_>>().join(", ")
    }

    fn locate(
        &mut self,
        stored: &Stored,
        (file, place): (usize, usize),
        shape: Vec<usize>,
        reorder: Option<Reorder>,
        known: &mut HashMap<Reorder, usize>,
    ) -> Result<Located, CheckpointError> {
        let view = self.files[file].view(place)?;
        let bytes = cut(&view, stored.part, &shape).ok_or_else(|| CheckpointError::WrongShape {
            file: self.files[file].file_name().to_owned(),
            tensor: stored.name.clone(),
            found: view.shape.to_vec(),
            expected: match stored.part {
                Part::Whole => shape.clone(),
                Part::Of(_) => [&[0], shape.as_slice()].concat(),
                _ => [&[0, 2 * shape[0]], &shape[1..]].concat(),
            },
        })?;
        let mut located = Located { file, place, shape, bytes, rows: None, columns: None, owned: None };
        let Some(reorder) = reorder else { return Ok(located) };
        let is_vector = located.shape.len() < 2;
        let dtype = view.dtype;
        let mut order_of = |reorder: Reorder| {
            *known.entry(reorder).or_insert_with(|| {
                self.orders.push(reorder.order());
                self.orders.len() - 1
            })
        };
        match reorder {
            Reorder::LogOfNegated | Reorder::LogOfNegatedTiled { .. } => {}
            _ if is_vector => {}
            Reorder::Columns { width, .. }
                if !width.is_multiple_of(grouping(dtype).map_or(1, |g| g.group)) => {}
            Reorder::Columns { width, .. } => {
                let stored = located.shape[1];
                located.columns = Some((width, order_of(reorder), stored));
                return Ok(located);
            }
            _ => {
                located.rows = Some(order_of(reorder));
                return Ok(located);
            }
        }
        // Too small, or too interwoven, to be worth an order of its own.
        let plain = self.view(&located)?;
        let values = order::apply(reorder, &dequantise_all(&plain), plain.columns()).map_err(|detail| {
            CheckpointError::BadTensor {
                file: self.files[file].file_name().to_owned(),
                tensor: stored.name.clone(),
                detail,
            }
        })?;
        located.owned = Some(values.into_iter().flat_map(f32::to_le_bytes).collect());
        Ok(located)
    }

    fn view<'s>(&'s self, located: &'s Located) -> Result<TensorView<'s>, CheckpointError> {
        let whole = self.files[located.file].view(located.place)?;
        if let Some(owned) = &located.owned {
            return Ok(TensorView::new(whole.name, DType::F32, &located.shape, owned));
        }
        let mut view =
            TensorView::new(whole.name, whole.dtype, &located.shape, &whole.bytes[located.bytes.clone()]);
        view.order = Order {
            rows: located.rows.map(|order| self.orders[order].as_slice()),
            columns: match located.columns {
                None => Columns::All,
                Some((width, order, stored)) => Columns::Blocks { width, order: &self.orders[order], stored },
            },
        };
        Ok(view)
    }
}

impl TensorSource for GgufCheckpoint<'_> {
    fn tensor(&self, role: TensorRole) -> Result<TensorView<'_>, CheckpointError> {
        match self.tensors.get(&role) {
            Some(located) => self.view(located),
            None => Err(CheckpointError::MissingTensor {
                tensor: crate::checkpoint::tensor_name(role),
                file: self.file_names(),
            }),
        }
    }
}

/// `spec` for weights in GGUF: norms' weights are stored as they multiply, never as the difference from one.
pub fn as_stored(spec: &mut ModelSpec) {
    let plain = |norm: &mut NormSpec| norm.weight_offset = 0.0;
    let optional = |norm: &mut Option<NormSpec>| norm.iter_mut().for_each(plain);
    plain(&mut spec.final_norm);
    if let Some(inputs) = &mut spec.layer_inputs {
        plain(&mut inputs.norm);
    }
    for layer in &mut spec.layers {
        plain(&mut layer.mixer_norm);
        plain(&mut layer.feed_forward_norm);
        optional(&mut layer.mixer_post_norm);
        optional(&mut layer.feed_forward_post_norm);
        match &mut layer.mixer {
            MixerSpec::Attention(attention) => {
                optional(&mut attention.qk_norm);
                optional(&mut attention.value_norm);
            }
            MixerSpec::DeltaNet(delta) => plain(&mut delta.norm),
        }
        let router = match &mut layer.feed_forward {
            FeedForwardSpec::Gated(_) => continue,
            FeedForwardSpec::Experts(experts) => &mut experts.router,
            FeedForwardSpec::DenseAndExperts(both) => {
                plain(&mut both.dense_post_norm);
                plain(&mut both.experts_norm);
                plain(&mut both.experts_post_norm);
                &mut both.experts.router
            }
        };
        optional(&mut router.norm);
    }
}

type Index<'a> = HashMap<&'a str, (usize, usize)>;

/// Where each name is, once the parts are known to belong together.
fn index<'a>(files: &[GgufFile<'a>]) -> Result<Index<'a>, CheckpointError> {
    let Some(first) = files.first() else { return Err(CheckpointError::NoFiles) };
    let number = |file: &GgufFile<'_>, key: &str| file.get(key).and_then(super::Value::unsigned);
    let count = number(first, "split.count").unwrap_or(1).max(1);
    if count != files.len() as u64 {
        return Err(CheckpointError::BadHeader {
            file: first.file_name().to_owned(),
            detail: format!("it is one of {count} parts, and {} are given; fetch the others", files.len()),
        });
    }
    let mut index = HashMap::new();
    for (place, file) in files.iter().enumerate() {
        if count > 1 && number(file, "split.no") != Some(place as u64) {
            return Err(CheckpointError::BadHeader {
                file: file.file_name().to_owned(),
                detail: format!("it is not part {} of {count}", place + 1),
            });
        }
        for (tensor, name) in file.names().enumerate() {
            if let Some((other, _)) = index.insert(name, (place, tensor)) {
                return Err(CheckpointError::InTwoFiles {
                    tensor: name.to_owned(),
                    first: files[other].file_name().to_owned(),
                    second: file.file_name().to_owned(),
                });
            }
        }
    }
    match number(first, "split.tensors.count") {
        Some(expected) if count > 1 && expected != index.len() as u64 => Err(CheckpointError::BadHeader {
            file: first.file_name().to_owned(),
            detail: format!("its parts should have {expected} tensors and have {}", index.len()),
        }),
        _ => Ok(index),
    }
}

/// The bytes of `part`, where the tensor has one of that shape. Sides of one may be missing, or too many.
fn cut(view: &TensorView<'_>, part: Part, shape: &[usize]) -> Option<Range<usize>> {
    fn plain(shape: &[usize]) -> Vec<usize> {
        shape.iter().copied().filter(|&side| side != 1).collect()
    }
    if part == Part::Whole {
        return (plain(view.shape) == plain(shape)).then_some(0..view.bytes.len());
    }
    let (&stack, one) = view.shape.split_first()?;
    let (expert, halves, half) = match part {
        Part::Of(expert) => (expert, 1, 0),
        Part::FirstHalf(expert) => (expert, 2, 0),
        Part::SecondHalf(expert) => (expert, 2, 1),
        Part::Whole => return None,
    };
    let matches = match halves {
        1 => one == shape,
        _ => one.len() == shape.len() && one[0] == 2 * shape[0] && one[1..] == shape[1..],
    };
    if usize::from(expert) >= stack || !matches {
        return None;
    }
    let of_one = view.bytes.len() / stack;
    let of_half = of_one / halves;
    let start = usize::from(expert) * of_one + half * of_half;
    Some(start..start + of_half)
}

/// How the tensor for `role` is to be put back in order.
fn reorder(architecture: &str, spec: &ModelSpec, role: TensorRole) -> Option<Reorder> {
    let TensorRole::Layer(layer, tensor) = role else { return None };
    match &spec.layers[layer].mixer {
        MixerSpec::Attention(attention) => {
            // These architectures turn neighbours instead of halves, and their rows are stored so.
            if !matches!(architecture, "llama" | "mistral3") {
                return None;
            }
            let head_dim = attention.head_dim;
            match tensor {
                LayerTensor::Query | LayerTensor::QueryBias => {
                    Some(Reorder::Pairs { heads: attention.heads, head_dim })
                }
                LayerTensor::Key | LayerTensor::KeyBias => {
                    Some(Reorder::Pairs { heads: attention.kv_heads, head_dim })
                }
                _ => None,
            }
        }
        MixerSpec::DeltaNet(delta) => {
            let keys = delta.key_heads;
            let per_key = delta.value_heads / keys.max(1);
            let tiled = architecture.starts_with("qwen35") && per_key > 1;
            let rows = |before, width| tiled.then_some(Reorder::Tiles { before, keys, per_key, width });
            match tensor {
                LayerTensor::DeltaProjection | LayerTensor::DeltaConvolution => {
                    rows(2 * keys * delta.key_dim, delta.value_dim)
                }
                LayerTensor::DeltaGate => rows(0, delta.value_dim),
                LayerTensor::DeltaBeta | LayerTensor::DeltaTime | LayerTensor::DeltaTimeBias => rows(0, 1),
                LayerTensor::DeltaLogA if tiled => Some(Reorder::LogOfNegatedTiled { keys, per_key }),
                LayerTensor::DeltaLogA => Some(Reorder::LogOfNegated),
                LayerTensor::DeltaOutput if tiled => {
                    Some(Reorder::Columns { keys, per_key, width: delta.value_dim })
                }
                _ => None,
            }
        }
    }
}
