//! A decoder by its definition: f64, every position anew, no cache, no blocks.

use model::spec::{
    Activation, FeedForwardSpec, GatedSpec, LayerTensor, MixerSpec, ModelSpec, NormSpec, TensorRole,
};

use crate::tiny::Tensors;

type Row = Vec<f64>;

fn linear(x: &[f64], weight: &[f32], bias: Option<&[f32]>) -> Row {
    let rows = weight.chunks(x.len()).enumerate();
    rows.map(|(row, w)| {
        let dot: f64 = x.iter().zip(w).map(|(x, w)| x * f64::from(*w)).sum();
        dot + bias.map_or(0.0, |bias| f64::from(bias[row]))
    })
    .collect()
}

fn norm(x: &[f64], weight: &[f32], spec: &NormSpec) -> Row {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (mean + f64::from(spec.epsilon)).sqrt();
    x.iter().zip(weight).map(|(x, w)| x * scale * f64::from(w + spec.weight_offset)).collect()
}

fn rope(head: &mut [f64], position: usize, theta: f32) {
    let half = head.len() / 2;
    for i in 0..half {
        let angle = position as f64 / f64::from(theta).powf(2.0 * i as f64 / head.len() as f64);
        let (a, b) = (head[i], head[i + half]);
        (head[i], head[i + half]) = (a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin());
    }
}

/// Logits of every position.
pub(crate) fn logits(spec: &ModelSpec, tensors: &Tensors, tokens: &[u32]) -> Vec<Row> {
    let e = spec.hidden;
    let embedding = tensors.values(TensorRole::Embedding);
    let look_up = |token: &u32| embedding[*token as usize * e..][..e].iter().map(|&x| f64::from(x)).collect();
    let mut rows: Vec<Row> = tokens.iter().map(look_up).collect();
    for (at, layer) in spec.layers.iter().enumerate() {
        let tensor = |tensor| tensors.values(TensorRole::Layer(at, tensor));
        let mixer_norm = tensor(LayerTensor::MixerNorm);
        let normed: Vec<Row> = rows.iter().map(|x| norm(x, mixer_norm, &layer.mixer_norm)).collect();
        for (x, mixed) in rows.iter_mut().zip(attention(spec, at, tensors, &normed)) {
            x.iter_mut().zip(mixed).for_each(|(x, y)| *x += y);
        }
        let FeedForwardSpec::Gated(GatedSpec { activation, .. }) = layer.feed_forward else { unreachable!() };
        for x in &mut rows {
            let normed = norm(x, tensor(LayerTensor::FeedForwardNorm), &layer.feed_forward_norm);
            let up = linear(&normed, tensor(LayerTensor::Up), None);
            let gate = linear(&normed, tensor(LayerTensor::Gate), None);
            let gated: Row = gate.iter().zip(up).map(|(&gate, up)| activate(activation, gate) * up).collect();
            let down = linear(&gated, tensor(LayerTensor::Down), None);
            x.iter_mut().zip(down).for_each(|(x, y)| *x += y);
        }
    }
    let head = if spec.tied_head { embedding } else { tensors.values(TensorRole::Head) };
    let final_norm = tensors.values(TensorRole::FinalNorm);
    rows.iter().map(|x| linear(&norm(x, final_norm, &spec.final_norm), head, None)).collect()
}

fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
        Activation::Gelu | Activation::ClampedSwiglu { .. } => unreachable!("not among the shapes"),
    }
}

fn attention(spec: &ModelSpec, at: usize, tensors: &Tensors, normed: &[Row]) -> Vec<Row> {
    let MixerSpec::Attention(attention) = &spec.layers[at].mixer else { unreachable!() };
    let d = attention.head_dim;
    let tensor = |tensor| tensors.values(TensorRole::Layer(at, tensor));
    let project = |weight, bias| -> Vec<Row> {
        let bias = attention.qkv_bias.then(|| tensor(bias));
        normed.iter().map(|x| linear(x, tensor(weight), bias)).collect()
    };
    let mut queries = project(LayerTensor::Query, LayerTensor::QueryBias);
    let mut keys = project(LayerTensor::Key, LayerTensor::KeyBias);
    let values = project(LayerTensor::Value, LayerTensor::ValueBias);
    for (rows, weight) in [(&mut queries, LayerTensor::QueryNorm), (&mut keys, LayerTensor::KeyNorm)] {
        for (position, row) in rows.iter_mut().enumerate() {
            for head in row.chunks_mut(d) {
                if let Some(qk_norm) = &attention.qk_norm {
                    head.copy_from_slice(&norm(head, tensor(weight), qk_norm));
                }
                rope(head, position, attention.rope.theta);
            }
        }
    }
    let group = attention.heads / attention.kv_heads;
    let mix = |position: usize| {
        let first = attention.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let mut mixed = Vec::new();
        for head in 0..attention.heads {
            let at_kv = head / group * d;
            let query = &queries[position][head * d..][..d];
            let score = |other: usize| -> f64 {
                let key = &keys[other][at_kv..][..d];
                query.iter().zip(key).map(|(q, k)| q * k).sum::<f64>() * f64::from(attention.scale)
            };
            let weights: Vec<f64> = (first..=position).map(|other| score(other).exp()).collect();
            let sum: f64 = weights.iter().sum();
            mixed.extend((0..d).map(|d| {
                let weighted =
                    weights.iter().zip(first..).map(|(weight, other)| weight * values[other][at_kv + d]);
                weighted.sum::<f64>() / sum
            }));
        }
        let bias = attention.output_bias.then(|| tensor(LayerTensor::OutputBias));
        linear(&mixed, tensor(LayerTensor::Output), bias)
    };
    (0..normed.len()).map(mix).collect()
}
