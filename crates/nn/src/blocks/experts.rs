//! Experts: a router chooses a few for each token, and each expert computes its tokens together.
//!
//! A token's result is the sum over its experts in the order of their numbers, whatever else is in the step: rows of a
//! product do not depend on each other, so neither does it.

use model::spec::{ExpertsSpec, Scoring};

use super::feed_forward::{FeedForwardRows, Gated};
use super::{Linear, Norm};
use crate::backend::{Backend, BackendError, Store};

/// See [`model::spec::ExpertsSpec`].
pub(crate) struct Experts<B: Backend> {
    pub(crate) spec: ExpertsSpec,
    pub(crate) router: Linear<B>,
    /// The router's own norm of the residual stream.
    pub(crate) router_norm: Option<Norm<B>>,
    /// Multiplies each expert's weight.
    pub(crate) expert_scale: Option<Vec<f32>>,
    pub(crate) experts: Vec<Gated<B>>,
    /// What every token has, and its gate.
    pub(crate) shared: Option<(Gated<B>, Option<Linear<B>>)>,
}

/// Memory of the experts, kept between steps.
pub(crate) struct ExpertsRows<B: Backend> {
    routed: B::Rows,
    logits: B::Rows,
    chosen: B::Rows,
    result: B::Rows,
    /// Of each expert: its tokens' rows, and its weight in each.
    tokens: Vec<(Vec<usize>, Vec<f32>)>,
    order: Vec<usize>,
    weights: Vec<f32>,
}

impl<B: Backend> Default for ExpertsRows<B> {
    fn default() -> Self {
        Self {
            routed: B::Rows::default(),
            logits: B::Rows::default(),
            chosen: B::Rows::default(),
            result: B::Rows::default(),
            tokens: Vec::new(),
            order: Vec::new(),
            weights: Vec::new(),
        }
    }
}

impl<B: Backend> Experts<B> {
    /// Sets `out` to the experts' result for `x`; `stream` is the residual stream that it was normed from.
    pub(super) fn apply(
        &self,
        on: (&B, &B::Workers),
        (stream, x): (&B::Rows, &B::Rows),
        rows: &mut FeedForwardRows<B>,
        out: &mut B::Rows,
    ) -> Result<(), BackendError> {
        let (backend, workers) = on;
        let FeedForwardRows { both, gated, experts: memory, .. } = rows;
        match &self.router_norm {
            Some(norm) => {
                norm.apply(backend, workers, stream, &mut memory.routed)?;
                self.router.apply(backend, workers, &memory.routed, Store::Set, &mut memory.logits)?;
            }
            None => self.router.apply(backend, workers, x, Store::Set, &mut memory.logits)?,
        }
        self.choose(backend.download(&memory.logits)?, &mut memory.tokens, &mut memory.order);
        let tokens = memory.tokens.iter().map(|(rows, _)| rows.len()).sum::<usize>() / self.spec.per_token;
        backend.zero_like(x, out)?;
        for (expert, (rows, weights)) in self.experts.iter().zip(&memory.tokens) {
            if rows.is_empty() {
                continue;
            }
            backend.gather(x, rows, &mut memory.chosen)?;
            expert.inner(on, &memory.chosen, both, gated)?;
            expert.down.apply(backend, workers, gated, Store::Set, &mut memory.result)?;
            backend.scatter_add(&memory.result, (rows, weights), out)?;
        }
        if let Some((shared, gate)) = &self.shared {
            shared.inner(on, x, both, gated)?;
            shared.down.apply(backend, workers, gated, Store::Set, &mut memory.result)?;
            memory.weights.clear();
            match gate {
                Some(gate) => {
                    gate.apply(backend, workers, x, Store::Set, &mut memory.logits)?;
                    let logits = backend.download(&memory.logits)?.iter();
                    memory.weights.extend(logits.map(|&x| (1.0 / (1.0 + (-f64::from(x)).exp())) as f32));
                }
                None => memory.weights.resize(tokens, 1.0),
            }
            memory.order.clear();
            memory.order.extend(0..tokens);
            backend.scatter_add(&memory.result, (&memory.order, &memory.weights), out)?;
        }
        Ok(())
    }

    /// Shares the tokens out by `logits: [T, X]`.
    fn choose(&self, logits: &[f32], tokens: &mut Vec<(Vec<usize>, Vec<f32>)>, order: &mut Vec<usize>) {
        let ExpertsSpec { experts, per_token, .. } = self.spec;
        tokens.resize_with(experts, Default::default);
        tokens.iter_mut().for_each(|(rows, weights)| {
            rows.clear();
            weights.clear();
        });
        for (row, logits) in logits.chunks_exact(experts).enumerate() {
            order.clear();
            order.extend(0..experts);
            // The largest first, and of equals the first: a total order, so that it is the same everywhere.
            let before = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
            if per_token < experts {
                order.select_nth_unstable_by(per_token - 1, before);
                order.truncate(per_token);
            }
            order.sort_unstable_by(before);
            let top = f64::from(logits[order[0]]);
            let weight = |&expert: &usize| (f64::from(logits[expert]) - top).exp();
            let chosen: f64 = order.iter().map(weight).sum();
            let sum = match self.spec.router.scoring {
                Scoring::TopKThenSoftmax | Scoring::SoftmaxThenTopK { normalise: true } => chosen,
                Scoring::SoftmaxThenTopK { normalise: false } => (0..experts).map(|e| weight(&e)).sum(),
            };
            for expert in &*order {
                let scale = self.expert_scale.as_ref().map_or(1.0, |scale| scale[*expert]);
                let (rows, weights) = &mut tokens[*expert];
                rows.push(row);
                weights.push((weight(expert) / sum) as f32 * scale);
            }
        }
    }

    pub(super) fn linears(&self) -> Vec<&Linear<B>> {
        let mut linears = vec![&self.router];
        linears.extend(self.experts.iter().flat_map(Gated::linears));
        if let Some((shared, gate)) = &self.shared {
            linears.extend(shared.linears());
            linears.extend(gate);
        }
        linears
    }
}
