//! What an operator wants: the spec of a deployment, strict in what it takes, and the checks before it is accepted.

pub mod condition;
mod forms;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use condition::{Condition, ConditionType, Conditions, Verdict};

/// Longest name of a deployment.
pub const NAME_BYTES_MAX: usize = 63;
/// Most replicas of one deployment.
pub const REPLICAS_MAX: u32 = 100_000;
/// Most ranks of one instance.
pub const RANKS_MAX: u32 = 64;
/// Most tokens of a context.
pub const CONTEXT_MAX: u32 = 1 << 24;
/// Most requests that one instance computes together.
pub const BATCH_MAX: u32 = 4096;

/// What should run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// What the deployment is called; unique.
    pub name: String,
    /// Which model, by the name it is served under.
    pub model: String,
    /// How many instances.
    #[serde(default)]
    pub replicas: Replicas,
    /// Over how many ranks an instance is divided, and how.
    #[serde(default, with = "forms::shape")]
    pub shape: Division,
    /// On which machines.
    #[serde(default, with = "forms::machines")]
    pub machines: Machines,
    /// What happens when a pinned machine is lost.
    #[serde(default)]
    pub when_lost: WhenLost,
    /// What links between ranks must be.
    #[serde(default, with = "forms::transport")]
    pub transport: Transport,
    /// Tokens of a context, prompt and answer together [default: the model's, 8192 at most].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<u32>,
    /// Requests that an instance computes together; its cache holds as many whole contexts.
    #[serde(default = "batch_default")]
    pub max_batch: u32,
    /// Whether its machines hold no other model meanwhile.
    #[serde(default = "yes")]
    pub exclusive: bool,
}

fn yes() -> bool {
    true
}

fn batch_default() -> u32 {
    4
}

/// How many instances.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a number, or floor, ceiling and priority")]
pub enum Replicas {
    /// Always so many.
    Fixed(u32),
    /// As demand wants, within bounds.
    Demand(Demanded),
}

/// Bounds of what demand can make.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Demanded {
    /// At least so many, before any demand of others is met.
    #[serde(default)]
    pub floor: u32,
    /// At most so many.
    pub ceiling: u32,
    /// Whose demand is met first: the larger number's.
    #[serde(default)]
    pub priority: i32,
}

impl Default for Replicas {
    fn default() -> Self {
        Self::Fixed(1)
    }
}

impl Replicas {
    /// At least so many.
    pub fn floor(&self) -> u32 {
        match self {
            Self::Fixed(n) => *n,
            Self::Demand(demand) => demand.floor,
        }
    }

    /// At most so many.
    pub fn ceiling(&self) -> u32 {
        match self {
            Self::Fixed(n) => *n,
            Self::Demand(demand) => demand.ceiling,
        }
    }

    /// Whose needs come first.
    pub fn priority(&self) -> i32 {
        match self {
            Self::Fixed(_) => 0,
            Self::Demand(demand) => demand.priority,
        }
    }
}

/// Over how many ranks an instance is divided, and how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Division {
    /// The fewest machines that it fits on, divided in the way that is fastest.
    #[default]
    Auto,
    /// One device.
    Single,
    /// Slices of every layer on so many ranks.
    Tensor(u32),
    /// Some layers on each of so many ranks.
    Pipeline(u32),
    /// So many stages, of so many ranks each.
    Both {
        /// Stages.
        pipeline: u32,
        /// Ranks in each.
        tensor: u32,
    },
}

impl Division {
    /// How many ranks it asks for; any number where absent.
    pub fn ranks(self) -> Option<u32> {
        match self {
            Self::Auto => None,
            Self::Single => Some(1),
            Self::Tensor(n) | Self::Pipeline(n) => Some(n),
            Self::Both { pipeline, tensor } => Some(pipeline.saturating_mul(tensor)),
        }
    }
}

/// On which machines.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Machines {
    /// All that are managed.
    #[default]
    Any,
    /// Those with all of these labels.
    Selector(BTreeMap<String, String>),
    /// These, by name.
    Pinned(Vec<String>),
}

/// What happens when a pinned machine is lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenLost {
    /// A condition says which machine is waited for.
    #[default]
    Wait,
    /// Other machines take its place.
    Replace,
}

/// What links between ranks must be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Transport {
    /// Whatever is fastest.
    #[default]
    Auto,
    /// Sockets.
    Tcp,
    /// RDMA, or not at all.
    Rdma,
}

/// Why a spec is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {detail}")]
pub struct SpecError {
    /// Which part of it.
    pub field: &'static str,
    /// What is wrong, and what would be right.
    pub detail: String,
}

impl Spec {
    /// A deployment of `model` with defaults for everything else.
    pub fn new(name: impl Into<String>, model: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            model: model.into(),
            replicas: Replicas::default(),
            shape: Division::default(),
            machines: Machines::default(),
            when_lost: WhenLost::default(),
            transport: Transport::default(),
            context: None,
            max_batch: batch_default(),
            exclusive: true,
        }
    }

    /// Holds it to what can be.
    ///
    /// # Errors
    /// The first field that is wrong, with what would be right.
    pub fn check(&self) -> Result<(), SpecError> {
        let wrong = |field, detail: String| Err(SpecError { field, detail });
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let name_ok = (1..=NAME_BYTES_MAX).contains(&self.name.len()) && self.name.chars().all(plain);
        if !name_ok {
            let shown: String = self.name.chars().take(80).collect();
            return wrong(
                "name",
                format!("{shown:?} is no name: 1 to {NAME_BYTES_MAX} letters, digits, '-', '_' or '.'"),
            );
        }
        if self.model.is_empty() || self.model.len() > 1024 || self.model.chars().any(char::is_control) {
            return wrong("model", "must name a model, in 1 to 1024 bytes".to_owned());
        }
        let (floor, ceiling) = (self.replicas.floor(), self.replicas.ceiling());
        if ceiling > REPLICAS_MAX {
            return wrong("replicas", format!("{ceiling} are too many: {REPLICAS_MAX} at most"));
        }
        if floor > ceiling {
            return wrong("replicas", format!("the floor of {floor} is above the ceiling of {ceiling}"));
        }
        let parts = match self.shape {
            Division::Auto | Division::Single => [1, 1],
            Division::Tensor(n) | Division::Pipeline(n) => [n, 1],
            Division::Both { pipeline, tensor } => [pipeline, tensor],
        };
        let ranks = parts[0].saturating_mul(parts[1]);
        if parts.contains(&0) || ranks > RANKS_MAX {
            return wrong("shape", format!("{ranks} ranks; an instance has 1 to {RANKS_MAX}"));
        }
        self.check_machines()?;
        if self.context.is_some_and(|context| !(16..=CONTEXT_MAX).contains(&context)) {
            let context = self.context.unwrap_or(0);
            return wrong("context", format!("{context} tokens; 16 to {CONTEXT_MAX} are allowed"));
        }
        if !(1..=BATCH_MAX).contains(&self.max_batch) {
            return wrong("max_batch", format!("{}; 1 to {BATCH_MAX} are allowed", self.max_batch));
        }
        Ok(())
    }

    fn check_machines(&self) -> Result<(), SpecError> {
        let wrong = |detail: String| Err(SpecError { field: "machines", detail });
        match &self.machines {
            Machines::Any => {}
            Machines::Selector(labels) if labels.is_empty() => {
                return wrong("a selector without labels; say \"any\" for all machines".to_owned());
            }
            Machines::Selector(_) => {}
            Machines::Pinned(names) => {
                if names.is_empty() {
                    return wrong("pinned to no machine; say \"any\" for all machines".to_owned());
                }
                if let Some(twice) = names.iter().enumerate().find(|(at, name)| names[..*at].contains(name)) {
                    return wrong(format!("{:?} is pinned twice", twice.1));
                }
            }
        }
        Ok(())
    }
}
