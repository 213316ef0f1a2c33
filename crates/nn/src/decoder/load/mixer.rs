//! A layer's mixer from its tensors.

use model::checkpoint::{Order, TensorView};
use model::spec::{AttentionSpec, DeltaNetSpec, KvSource, LayerTensor};

use super::{LoadError, Loading, Role};
use crate::backend::Backend;
use crate::blocks::{Attention, DeltaNet, Linear, Norm, Rope};

impl<B: Backend> Loading<'_, B> {
    pub(super) fn attention(
        &mut self,
        role: Role<'_>,
        spec: &AttentionSpec,
    ) -> Result<Attention<B>, LoadError> {
        let (e, d) = (self.spec.hidden, spec.head_dim);
        let own_keys = !matches!(spec.kv, KvSource::Layer(_));
        let (projection, gate) = self.projections(role, spec)?;
        let output = Linear {
            weight: self.matrix(&[(role(LayerTensor::Output), e)], spec.heads * d)?,
            bias: spec.output_bias.then(|| self.biases(&[(role(LayerTensor::OutputBias), e)])).transpose()?,
        };
        let head_norm = |tensor, wanted: bool| {
            let norm = spec.qk_norm.as_ref().filter(|_| wanted);
            norm.map(|norm| self.norm(role(tensor), d, norm)).transpose()
        };
        let value_norm = spec.value_norm.filter(|_| own_keys).map(|norm| {
            let ones = self.vector(vec![1.0; d], "the values' norm")?;
            Ok(Norm { weight: ones, epsilon: norm.epsilon })
        });
        let sinks = spec.sinks.then(|| self.biases(&[(role(LayerTensor::Sinks), spec.heads)]));
        let (query_norm, key_norm) =
            (head_norm(LayerTensor::QueryNorm, true)?, head_norm(LayerTensor::KeyNorm, own_keys)?);
        let (value_norm, sinks) = (value_norm.transpose()?, sinks.transpose()?);
        let rope = Rope::new(&spec.rope);
        let known = self.ropes.iter().position(|other| *other == rope);
        let rope = known.unwrap_or_else(|| {
            self.ropes.push(rope);
            self.ropes.len() - 1
        });
        let spec = spec.clone();
        Ok(Attention { spec, projection, gate, output, query_norm, key_norm, value_norm, sinks, rope })
    }

    /// Queries, keys and values as one layer, and the output's gate.
    fn projections(
        &self,
        role: Role<'_>,
        spec: &AttentionSpec,
    ) -> Result<(Linear<B>, Option<Linear<B>>), LoadError> {
        let e = self.spec.hidden;
        let (queries, keys) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let (weights, biases): (&[_], &[_]) = match spec.kv {
            KvSource::Own => {
                (&[LayerTensor::Key, LayerTensor::Value], &[LayerTensor::KeyBias, LayerTensor::ValueBias])
            }
            KvSource::KeyIsValue => {
                (&[LayerTensor::Key, LayerTensor::Key], &[LayerTensor::KeyBias, LayerTensor::KeyBias])
            }
            KvSource::Layer(_) => (&[], &[]),
        };
        let stored = if spec.output_gate { 2 * queries } else { queries };
        let query = self.tensor(role(LayerTensor::Query), &[stored, e])?;
        let mut tensors = vec![query];
        for &tensor in weights {
            tensors.push(self.tensor(role(tensor), &[keys, e])?);
        }
        let mut bias = Vec::new();
        if spec.qkv_bias {
            bias.extend(self.numbers(role(LayerTensor::QueryBias), &[stored])?);
            for &tensor in biases {
                bias.extend(self.numbers(role(tensor), &[keys])?);
            }
        }
        let name = query.name;
        let with_bias = |values: Vec<f32>| spec.qkv_bias.then(|| self.vector(values, name)).transpose();
        if !spec.output_gate {
            return Ok((Linear { weight: self.stack(&tensors)?, bias: with_bias(bias)? }, None));
        }
        // Of each head first the query's rows, then the gate's.
        let rows = |gates: usize| {
            let of_head = move |head: usize| {
                let first = (2 * head + gates) * spec.head_dim;
                first..first + spec.head_dim
            };
            (0..spec.heads).flat_map(of_head).collect::<Vec<usize>>()
        };
        let (query_rows, gate_rows) = (rows(0), rows(1));
        let shape = [queries, e];
        let (query_order, gate_order) = (stored_rows(&query, &query_rows), stored_rows(&query, &gate_rows));
        let ordered = |order| part(&query, order, &shape);
        tensors[0] = ordered(&query_order);
        let (mut kept, mut gates) = (Vec::new(), Vec::new());
        if spec.qkv_bias {
            kept.extend(query_rows.iter().map(|&row| bias[row]));
            kept.extend(&bias[stored..]);
            gates.extend(gate_rows.iter().map(|&row| bias[row]));
        }
        let projection = Linear { weight: self.stack(&tensors)?, bias: with_bias(kept)? };
        let gate = Linear { weight: self.stack(&[ordered(&gate_order)])?, bias: with_bias(gates)? };
        Ok((projection, Some(gate)))
    }

    pub(super) fn delta_net(
        &mut self,
        role: Role<'_>,
        spec: &DeltaNetSpec,
    ) -> Result<DeltaNet<B>, LoadError> {
        let e = self.spec.hidden;
        let (heads, values, channels) =
            (spec.value_heads, spec.value_heads * spec.value_dim, spec.channels());
        let projection = [
            (role(LayerTensor::DeltaProjection), channels),
            (role(LayerTensor::DeltaGate), values),
            (role(LayerTensor::DeltaBeta), heads),
            (role(LayerTensor::DeltaTime), heads),
        ];
        let stored = self.numbers(role(LayerTensor::DeltaConvolution), &[channels, 1, spec.conv_width])?;
        // From the taps of each channel to the channels of each tap.
        let tap = |tap: usize| stored.iter().skip(tap).step_by(spec.conv_width).copied();
        let convolution = (0..spec.conv_width).flat_map(tap).collect();
        let log_a = self.numbers(role(LayerTensor::DeltaLogA), &[heads])?;
        let decay = log_a.into_iter().map(|x| f64::from(x).exp() as f32).collect();
        let norm = self.norm(role(LayerTensor::DeltaNorm), spec.value_dim, &spec.norm)?;
        self.states += 1;
        Ok(DeltaNet {
            spec: spec.clone(),
            projection: self.linear(&projection, e)?,
            convolution: self.vector(convolution, "a delta net's convolution")?,
            decay: self.vector(decay, "a delta net's decay")?,
            time_bias: self.biases(&[(role(LayerTensor::DeltaTimeBias), heads)])?,
            norm: norm.weight,
            output: self.linear(&[(role(LayerTensor::DeltaOutput), e)], values)?,
            state: self.states - 1,
        })
    }
}

/// Where the given rows of `tensor` are stored.
fn stored_rows(tensor: &TensorView<'_>, rows: &[usize]) -> Vec<u32> {
    let stored = |&row: &usize| u32::try_from(tensor.stored_row(row)).expect("rows are counted in u32");
    rows.iter().map(stored).collect()
}

/// The rows of `tensor` that are stored at `order`.
fn part<'a>(tensor: &TensorView<'a>, order: &'a [u32], shape: &'a [usize]) -> TensorView<'a> {
    TensorView { shape, order: Order { rows: Some(order), ..tensor.order }, ..*tensor }
}
