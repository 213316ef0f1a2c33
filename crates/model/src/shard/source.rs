//! A part's tensors: any source's, cut where they lie, so that only the part's bytes are touched.

use std::collections::HashMap;
use std::ops::Range;

use super::part::{LayerSlices, Part};
use crate::checkpoint::{CheckpointError, Columns, DType, TensorSource, TensorView};
use crate::quant;
use crate::spec::{DeltaNetSpec, FeedForwardSpec, LayerTensor, MixerSpec, ModelSpec, TensorRole};

/// Shows the tensors of a [`Part`] under the roles of its own decoder.
pub struct ShardedSource<'a> {
    source: &'a dyn TensorSource,
    cuts: HashMap<TensorRole, (TensorRole, Cut)>,
}

/// How a part's tensor is had from the model's.
struct Cut {
    /// Of the part's tensor.
    shape: Vec<usize>,
    how: How,
}

enum How {
    /// As it is.
    Whole,
    /// Some rows.
    Rows(Range<usize>),
    /// Some columns; of a vector, some elements.
    Columns(Range<usize>),
    /// These stored rows, in this order.
    List(Vec<u32>),
    /// Zeros in its place, so many bytes: another rank adds it.
    Zeros(Vec<u8>),
}

impl<'a> ShardedSource<'a> {
    /// The tensors of `part`, which is of `spec`, from `source`, which has those of all of `spec`.
    ///
    /// # Errors
    /// A tensor that must be looked at to be cut is missing or unreadable.
    pub fn new(source: &'a dyn TensorSource, spec: &ModelSpec, part: &Part) -> Result<Self, CheckpointError> {
        let mut cuts = HashMap::new();
        for (role, shape) in part.tensors() {
            let (global, how) = match role {
                TensorRole::Embedding | TensorRole::Head => {
                    let rows = if role == TensorRole::Head { &part.head } else { &part.embedding };
                    (role, How::Rows(rows.as_ref().or(part.head.as_ref()).cloned().unwrap_or_default()))
                }
                TensorRole::Layer(at, tensor) => {
                    let global = TensorRole::Layer(part.layers.start + at, tensor);
                    let layer = &spec.layers[part.layers.start + at];
                    let mut how = if part.summed {
                        of_layer(tensor, &layer.mixer, &part.slices[at])
                    } else {
                        How::Whole
                    };
                    if part.summed && !part.adds_biases && is_summed_bias(tensor) {
                        how = How::Zeros(vec![0; 4 * shape.iter().product::<usize>()]);
                    }
                    if let How::List(rows) = &mut how {
                        let view = source.tensor(global)?;
                        // The source may show its rows in an order of its own.
                        rows.iter_mut().for_each(|row| *row = view.stored_row(*row as usize) as u32);
                    }
                    (global, how)
                }
                other => (other, How::Whole),
            };
            cuts.insert(role, (global, Cut { shape, how }));
        }
        Ok(Self { source, cuts })
    }
}

/// The least number of columns at whose multiples all tensors of `spec` can be cut that are cut by columns: what quantised
/// weights share a scale over, or what a source moves as one block. 1 for floats.
///
/// # Errors
/// A tensor is missing or unreadable.
pub fn grain(spec: &ModelSpec, source: &dyn TensorSource) -> Result<usize, CheckpointError> {
    let mut grain = 1usize;
    for (at, layer) in spec.layers.iter().enumerate() {
        let mut cut = vec![match layer.mixer {
            MixerSpec::Attention(_) => LayerTensor::Output,
            MixerSpec::DeltaNet(_) => LayerTensor::DeltaOutput,
        }];
        let experts = match &layer.feed_forward {
            FeedForwardSpec::Gated(_) => None,
            FeedForwardSpec::Experts(experts) => Some(experts),
            FeedForwardSpec::DenseAndExperts(both) => Some(&both.experts),
        };
        if !matches!(layer.feed_forward, FeedForwardSpec::Experts(_)) {
            cut.push(LayerTensor::Down);
        }
        if let Some(experts) = experts {
            // Experts of a layer are stored alike.
            cut.push(LayerTensor::ExpertDown(0));
            cut.extend(experts.shared.as_ref().map(|_| LayerTensor::SharedDown));
        }
        for tensor in cut {
            let unit = unit(&source.tensor(TensorRole::Layer(at, tensor))?);
            grain = grain / gcd(grain, unit) * unit;
        }
    }
    Ok(grain)
}

/// Columns of a tensor are cut at multiples of this.
fn unit(view: &TensorView<'_>) -> usize {
    match (view.order.columns, quant::grouping(view.dtype)) {
        (Columns::Blocks { width, .. }, _) => width.max(1),
        (_, Some(grouping)) => grouping.group,
        (_, None) => 1,
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl TensorSource for ShardedSource<'_> {
    fn tensor(&self, role: TensorRole) -> Result<TensorView<'_>, CheckpointError> {
        let Some((global, cut)) = self.cuts.get(&role) else {
            return self.source.tensor(role);
        };
        let view = self.source.tensor(*global)?;
        // Whoever loads compares the shape of what was stored: a wrong one is not cut but shown.
        let sliced = match &cut.how {
            How::Whole => return Ok(view),
            How::Zeros(bytes) => return Ok(TensorView::new(view.name, DType::F32, &cut.shape, bytes)),
            How::List(rows) => {
                if rows.iter().any(|&row| row as usize >= view.bytes.len())
                    || view.shape.len() != cut.shape.len()
                {
                    return Ok(view);
                }
                let mut part = view;
                part.shape = &cut.shape;
                part.order.rows = Some(rows);
                return Ok(part);
            }
            How::Rows(rows) if view.shape.len() == 1 => quant::slice(&view, 0..1, rows.clone(), &cut.shape),
            How::Rows(rows) => quant::slice(&view, rows.clone(), 0..view.columns(), &cut.shape),
            How::Columns(columns) => quant::slice(&view, 0..view.rows(), columns.clone(), &cut.shape),
        };
        sliced
            .map_err(|error| CheckpointError::Cut { tensor: view.name.to_owned(), detail: error.to_string() })
    }
}

/// Whether every rank's result would have it, so that only one may add it.
fn is_summed_bias(tensor: LayerTensor) -> bool {
    matches!(tensor, LayerTensor::OutputBias | LayerTensor::DownBias | LayerTensor::ExpertDownBias(_))
}

fn scaled(range: &Range<usize>, by: usize) -> Range<usize> {
    range.start * by..range.end * by
}

fn of_layer(tensor: LayerTensor, mixer: &MixerSpec, slices: &LayerSlices) -> How {
    use LayerTensor as T;
    match tensor {
        T::Gate | T::Up | T::GateBias | T::UpBias => How::Rows(slices.gated.clone()),
        T::Down => How::Columns(slices.gated.clone()),
        T::ExpertGate(_) | T::ExpertUp(_) | T::ExpertGateBias(_) | T::ExpertUpBias(_) => {
            How::Rows(slices.expert.clone())
        }
        T::ExpertDown(_) => How::Columns(slices.expert.clone()),
        T::SharedGate | T::SharedUp => How::Rows(slices.shared.clone()),
        T::SharedDown => How::Columns(slices.shared.clone()),
        other => match mixer {
            MixerSpec::Attention(attention) => {
                let d = attention.head_dim;
                let of_query = if attention.output_gate { 2 * d } else { d };
                match other {
                    T::Query | T::QueryBias => How::Rows(scaled(&slices.heads, of_query)),
                    T::Key | T::KeyBias | T::Value | T::ValueBias => How::Rows(scaled(&slices.keys, d)),
                    T::Output => How::Columns(scaled(&slices.heads, d)),
                    T::Sinks => How::Rows(slices.heads.clone()),
                    _ => How::Whole,
                }
            }
            MixerSpec::DeltaNet(delta) => of_delta(other, delta, slices),
        },
    }
}

fn of_delta(tensor: LayerTensor, delta: &DeltaNetSpec, slices: &LayerSlices) -> How {
    use LayerTensor as T;
    let DeltaNetSpec { key_heads, key_dim, value_dim, .. } = *delta;
    match tensor {
        T::DeltaProjection | T::DeltaConvolution => {
            let keys = scaled(&slices.keys, key_dim);
            let values = scaled(&slices.heads, value_dim);
            let after = key_heads * key_dim;
            let queries = keys.clone();
            let keys = keys.start + after..keys.end + after;
            let values = values.start + 2 * after..values.end + 2 * after;
            How::List(queries.chain(keys).chain(values).map(|row| row as u32).collect())
        }
        T::DeltaGate => How::Rows(scaled(&slices.heads, value_dim)),
        T::DeltaBeta | T::DeltaTime | T::DeltaTimeBias | T::DeltaLogA => How::Rows(slices.heads.clone()),
        T::DeltaOutput => How::Columns(scaled(&slices.heads, value_dim)),
        _ => How::Whole,
    }
}
