//! A layer's feed-forward from its tensors.

use model::spec::{ExpertsSpec, FeedForwardSpec, GatedSpec, LayerTensor};

use super::{LoadError, Loading, Role};
use crate::backend::Backend;
use crate::blocks::{DenseAndExperts, Experts, FeedForward, Gated, Linear, Norm};

/// The tensors of one gated feed-forward: weights and biases of gate, up and down.
struct GatedTensors {
    weights: [LayerTensor; 3],
    biases: [LayerTensor; 3],
}

const DENSE: GatedTensors = GatedTensors {
    weights: [LayerTensor::Gate, LayerTensor::Up, LayerTensor::Down],
    biases: [LayerTensor::GateBias, LayerTensor::UpBias, LayerTensor::DownBias],
};

/// A shared expert has no biases.
const SHARED: GatedTensors = GatedTensors {
    weights: [LayerTensor::SharedGate, LayerTensor::SharedUp, LayerTensor::SharedDown],
    biases: DENSE.biases,
};

fn of_expert(number: u16) -> GatedTensors {
    GatedTensors {
        weights: [
            LayerTensor::ExpertGate(number),
            LayerTensor::ExpertUp(number),
            LayerTensor::ExpertDown(number),
        ],
        biases: [
            LayerTensor::ExpertGateBias(number),
            LayerTensor::ExpertUpBias(number),
            LayerTensor::ExpertDownBias(number),
        ],
    }
}

impl<B: Backend> Loading<'_, B> {
    pub(super) fn feed_forward(
        &self,
        role: Role<'_>,
        spec: &FeedForwardSpec,
    ) -> Result<FeedForward<B>, LoadError> {
        let e = self.spec.hidden;
        Ok(match spec {
            FeedForwardSpec::Gated(gated) => FeedForward::Gated(self.gated(role, &DENSE, gated)?),
            FeedForwardSpec::Experts(experts) => FeedForward::Experts(self.experts(role, experts)?),
            FeedForwardSpec::DenseAndExperts(both) => {
                let norm = |tensor, norm| self.norm(role(tensor), e, norm);
                FeedForward::Both(Box::new(DenseAndExperts {
                    dense: self.gated(role, &DENSE, &both.dense)?,
                    dense_post_norm: norm(LayerTensor::DensePostNorm, &both.dense_post_norm)?,
                    experts_norm: norm(LayerTensor::ExpertsNorm, &both.experts_norm)?,
                    experts: self.experts(role, &both.experts)?,
                    experts_post_norm: norm(LayerTensor::ExpertsPostNorm, &both.experts_post_norm)?,
                }))
            }
        })
    }

    fn gated(&self, role: Role<'_>, tensors: &GatedTensors, spec: &GatedSpec) -> Result<Gated<B>, LoadError> {
        let (e, width) = (self.spec.hidden, spec.width);
        let [gate, up, down] = tensors.weights;
        let [gate_bias, up_bias, down_bias] = tensors.biases;
        let bias = |parts: &[(LayerTensor, usize)]| {
            let parts: Vec<_> = parts.iter().map(|&(tensor, len)| (role(tensor), len)).collect();
            spec.bias.then(|| self.biases(&parts)).transpose()
        };
        Ok(Gated {
            gate_up: Linear {
                weight: self.matrix(&[(role(gate), width), (role(up), width)], e)?,
                bias: bias(&[(gate_bias, width), (up_bias, width)])?,
            },
            down: Linear { weight: self.matrix(&[(role(down), e)], width)?, bias: bias(&[(down_bias, e)])? },
            activation: spec.activation,
        })
    }

    fn experts(&self, role: Role<'_>, spec: &ExpertsSpec) -> Result<Experts<B>, LoadError> {
        let e = self.spec.hidden;
        let router_bias = || self.biases(&[(role(LayerTensor::RouterBias), spec.experts)]);
        let router = Linear {
            weight: self.matrix(&[(role(LayerTensor::Router), spec.experts)], e)?,
            bias: spec.router.bias.then(router_bias).transpose()?,
        };
        let router_norm = spec.router.norm.map(|norm| {
            let scale = (e as f32).sqrt().recip();
            let numbers = self.numbers(role(LayerTensor::RouterNorm), &[e])?;
            let weight = numbers.into_iter().map(|x| (x + norm.weight_offset) * scale).collect();
            Ok(Norm { weight: self.vector(weight, "a router's norm")?, epsilon: norm.epsilon })
        });
        let expert_scale = || self.numbers(role(LayerTensor::RouterExpertScale), &[spec.experts]);
        let experts = (0..spec.experts).map(|number| {
            let number = u16::try_from(number).expect("checked: experts are counted in sixteen bits");
            self.gated(role, &of_expert(number), &spec.expert)
        });
        let shared = spec.shared.map(|shared| {
            let gate = || self.linear(&[(role(LayerTensor::SharedOutputGate), 1)], e);
            let gate = shared.output_gate.then(gate).transpose()?;
            Ok((self.gated(role, &SHARED, &shared.gated)?, gate))
        });
        Ok(Experts {
            spec: spec.clone(),
            router,
            router_norm: router_norm.transpose()?,
            expert_scale: spec.router.expert_scale.then(expert_scale).transpose()?,
            experts: experts.collect::<Result<_, _>>()?,
            shared: shared.transpose()?,
        })
    }
}
