//! What mixes channels: a gated feed-forward, a choice of many, or both beside each other.

use super::NormSpec;

/// What mixes channels.
#[derive(Debug, Clone, PartialEq)]
pub enum FeedForwardSpec {
    /// One for all tokens.
    Gated(GatedSpec),
    /// Each token has a few of many.
    Experts(ExpertsSpec),
    /// Both (Gemma 4).
    DenseAndExperts(Box<DenseAndExpertsSpec>),
}

impl FeedForwardSpec {
    /// Its experts, if it has any.
    pub fn experts(&self) -> Option<&ExpertsSpec> {
        match self {
            Self::Gated(_) => None,
            Self::Experts(experts) => Some(experts),
            Self::DenseAndExperts(both) => Some(&both.experts),
        }
    }
}

/// `down(act(gate(x), up(x)))`: `gate: [F, E]`, `up: [F, E]`, `down: [E, F]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GatedSpec {
    /// F.
    pub width: usize,
    /// Of gate and up.
    pub activation: Activation,
    /// Whether all three have one.
    pub bias: bool,
}

/// `sum over the chosen of weight * expert(x)`, and what all tokens share.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertsSpec {
    /// X.
    pub experts: usize,
    /// How many a token has.
    pub per_token: usize,
    /// Each of them.
    pub expert: GatedSpec,
    /// How they are chosen.
    pub router: RouterSpec,
    /// One more, that every token has.
    pub shared: Option<SharedSpec>,
}

/// A linear layer `[X, E]` whose largest outputs choose a token's experts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RouterSpec {
    /// How outputs become weights.
    pub scoring: Scoring,
    /// Whether it has one: `[X]`.
    pub bias: bool,
    /// The router sees the residual stream under a norm of its own, with weights `[E]` that are further multiplied with
    /// `E^-1/2`; else it sees what the experts see.
    pub norm: Option<NormSpec>,
    /// Whether the weights are multiplied with a stored number for each expert: `[X]`.
    pub expert_scale: bool,
}

/// How a router's outputs become the weights of the chosen experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scoring {
    /// Softmax over all, then the largest; divided by their sum with `normalise`.
    SoftmaxThenTopK {
        /// Whether the chosen weights add up to one.
        normalise: bool,
    },
    /// The largest, then softmax over these.
    TopKThenSoftmax,
}

/// An expert that every token has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SharedSpec {
    /// What it is.
    pub gated: GatedSpec,
    /// Whether it is multiplied with `sigmoid(gate(x))`, `gate: [1, E]`.
    pub output_gate: bool,
}

/// `post(dense(norm(x))) + post(experts(norm(x)))`, where the dense one sees what the layer's feed-forward norm gives
/// and the experts see the residual stream under a norm of their own.
#[derive(Debug, Clone, PartialEq)]
pub struct DenseAndExpertsSpec {
    /// One for all tokens.
    pub dense: GatedSpec,
    /// Norm of what it gives.
    pub dense_post_norm: NormSpec,
    /// Norm before the experts.
    pub experts_norm: NormSpec,
    /// Each token has a few of many.
    pub experts: ExpertsSpec,
    /// Norm of what they give.
    pub experts_post_norm: NormSpec,
}

/// How gate and up become one: a function of the gate, times up, but for the last.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// GELU, tanh form.
    GeluTanh,
    /// GELU by its definition: `x * (1 + erf(x / sqrt 2)) / 2`.
    Gelu,
    /// `(up + 1) * gate * sigmoid(alpha * gate)`, with the gate at most `limit` and up within `limit` of 0 (gpt-oss).
    ClampedSwiglu {
        /// Steepness.
        alpha: f32,
        /// Bound.
        limit: f32,
    },
}
