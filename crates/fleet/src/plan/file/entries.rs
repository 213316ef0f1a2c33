//! What files may say, field by field.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Deserializer};

use crate::deployment::Spec;
use crate::plan::Shape;
use crate::topology::{Link, LinkKind, LinkState};

/// Machines, links, and what runs.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FleetFile {
    /// What models are, by name; a spec file may say the same.
    #[serde(default)]
    pub models: BTreeMap<String, ModelEntry>,
    /// All machines.
    pub machines: Vec<MachineEntry>,
    /// Single links.
    #[serde(default)]
    pub links: Vec<LinkEntry>,
    /// Networks in which everybody reaches everybody.
    #[serde(default)]
    pub networks: Vec<NetworkEntry>,
    /// Instances that are there already.
    #[serde(default)]
    pub running: Vec<RunningEntry>,
    /// What requests ask for, by deployment.
    #[serde(default)]
    pub demand: BTreeMap<String, DemandEntry>,
    /// How the planner decides.
    #[serde(default)]
    pub policy: PolicyEntry,
}

/// What should run.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpecFile {
    /// What models are, by name.
    #[serde(default)]
    pub models: BTreeMap<String, ModelEntry>,
    /// Deployments.
    pub deployments: Vec<Spec>,
    /// What requests ask for, by deployment.
    #[serde(default)]
    pub demand: BTreeMap<String, DemandEntry>,
}

/// What a model is: one of the first three, and how its weights are stored.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelEntry {
    /// A folder or file, or `bundled`.
    pub path: Option<String>,
    /// The content of a `config.json`.
    pub config: Option<serde_json::Value>,
    /// A few numbers of a decoder like Llama.
    pub shape: Option<ShapeEntry>,
    /// Bits that a weight takes [default: 16; those of the files where there is a path].
    pub bits_per_weight: Option<f64>,
    /// Columns that share a scale, and are not cut [default: 1 at 16 bits and more, else 32].
    pub grain: Option<usize>,
}

/// A decoder in a few numbers.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShapeEntry {
    /// L.
    pub layers: usize,
    /// E.
    pub hidden: usize,
    /// H.
    pub heads: usize,
    /// K [default: H].
    pub kv_heads: Option<usize>,
    /// D [default: E / H].
    pub head_dim: Option<usize>,
    /// F; of each expert where there are experts.
    pub feed_forward: usize,
    /// V.
    pub vocabulary: usize,
    /// Longest context [default: 32768].
    pub context: Option<usize>,
    /// Whether the head is the embedding.
    #[serde(default)]
    pub tied_head: bool,
    /// X [default: none].
    pub experts: Option<usize>,
    /// Experts of a token [default: 8].
    pub experts_per_token: Option<usize>,
}

impl ShapeEntry {
    /// As a family's `config.json` says it.
    pub fn config(&self) -> serde_json::Value {
        let mut config = serde_json::json!({
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads.unwrap_or(self.heads),
            "head_dim": self.head_dim.unwrap_or(self.hidden / self.heads.max(1)),
            "intermediate_size": self.feed_forward,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.context.unwrap_or(32_768),
            "tie_word_embeddings": self.tied_head,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10_000.0,
            "hidden_act": "silu",
            "eos_token_id": 0,
        });
        let (architecture, kind) = match self.experts {
            None => ("LlamaForCausalLM", "llama"),
            Some(experts) => {
                config["num_experts"] = experts.into();
                config["num_experts_per_tok"] = self.experts_per_token.unwrap_or(8).into();
                config["moe_intermediate_size"] = self.feed_forward.into();
                config["norm_topk_prob"] = true.into();
                config["decoder_sparse_step"] = 1.into();
                config["mlp_only_layers"] = serde_json::json!([]);
                ("Qwen3MoeForCausalLM", "qwen3_moe")
            }
        };
        config["architectures"] = serde_json::json!([architecture]);
        config["model_type"] = kind.into();
        config
    }
}

impl ModelEntry {
    /// The model's shape, where it is described and not only pointed at.
    ///
    /// # Errors
    /// It is described in no way or in several, or not in a way that this build knows.
    pub fn described(&self) -> Result<Option<Shape>, String> {
        let config = match (&self.path, &self.config, &self.shape) {
            (Some(_), None, None) => return Ok(None),
            (None, Some(config), None) => config.clone(),
            (None, None, Some(shape)) => shape.config(),
            _ => return Err("say exactly one of path, config and shape".to_owned()),
        };
        let text = config.to_string();
        let spec =
            model::family::spec_from_config(text.as_bytes(), None).map_err(|error| error.to_string())?;
        let bits = self.bits_per_weight.unwrap_or(16.0);
        if !(1.0..=64.0).contains(&bits) {
            return Err(format!("bits_per_weight: {bits}; 1 to 64 are allowed"));
        }
        let grain = self.grain.unwrap_or(if bits >= 16.0 { 1 } else { 32 }).max(1);
        Ok(Some(Shape::new(Arc::new(spec), bits, grain)))
    }
}

/// Bytes: a number, or a text such as `64 GiB`, `16GB`, `512 MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || {
            let shown: String = text.chars().take(40).collect();
            format!("{shown:?} is no size: a number of bytes, or as in \"64 GiB\" or \"64 GB\"")
        };
        let text = text.trim();
        let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let unit = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1.0,
            "kb" => 1e3,
            "mb" => 1e6,
            "gb" => 1e9,
            "tb" => 1e12,
            "k" | "kib" => 1024.0,
            "m" | "mib" => 1024.0f64.powi(2),
            "g" | "gib" => 1024.0f64.powi(3),
            "t" | "tib" => 1024.0f64.powi(4),
            _ => return Err(wrong()),
        };
        let bytes = number * unit;
        if bytes > 1e18 { Err(wrong()) } else { Ok(Self(bytes as u64)) }
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a number of bytes, or as in \"64 GiB\"")]
        enum Form {
            Bytes(u64),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Bytes(bytes) => Ok(Self(bytes)),
            Form::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// One machine.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineEntry {
    /// What it is called; unique.
    pub name: String,
    /// What models may take, where it has one device.
    pub memory: Option<Size>,
    /// How fast weights are read [default: 50].
    pub memory_gb_per_s: Option<f64>,
    /// Operations a second in prefill, 10^12 [default: 20 for each byte of bandwidth].
    pub tflops: Option<f64>,
    /// Its devices, where they are several.
    #[serde(default)]
    pub devices: Vec<DeviceEntry>,
    /// For selectors.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Models whose files it has.
    #[serde(default)]
    pub on_disk: Vec<String>,
    /// Models that are in its memory.
    #[serde(default)]
    pub loaded: Vec<String>,
    /// How fast its disk is read [default: 2].
    pub disk_gb_per_s: Option<f64>,
    /// How fast it downloads models; 0: it cannot [default: 800].
    pub download_mbit_per_s: Option<f64>,
    /// Whether it is connected [default: true].
    #[serde(default = "yes")]
    pub online: bool,
    /// Whether the planner decides what it holds [default: true].
    #[serde(default = "yes")]
    pub managed: bool,
    /// What was measured on it, by model.
    #[serde(default)]
    pub measured: BTreeMap<String, MeasuredEntry>,
}

fn yes() -> bool {
    true
}

/// One device.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceEntry {
    /// What it is called.
    pub name: String,
    /// What models may take.
    pub memory: Size,
    /// How fast weights are read [default: 50].
    pub memory_gb_per_s: Option<f64>,
    /// Operations a second in prefill, 10^12.
    pub tflops: Option<f64>,
}

/// What was measured.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasuredEntry {
    /// One request alone.
    pub decode_tokens_per_s: f64,
    /// One prompt alone.
    #[serde(default)]
    pub prefill_tokens_per_s: f64,
}

/// One link.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkEntry {
    /// Who dials.
    pub from: String,
    /// Who is dialled.
    pub to: String,
    /// Whether it is so the other way, too [default: true].
    #[serde(default = "yes")]
    pub both: bool,
    /// What it is.
    #[serde(flatten)]
    pub link: LinkTerms,
}

/// One network.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkEntry {
    /// Who is on it [default: all].
    #[serde(default)]
    pub machines: Option<Vec<String>>,
    /// What it is.
    #[serde(flatten)]
    pub link: LinkTerms,
}

/// What a link or network is.
#[derive(Debug, Clone, Deserialize)]
pub struct LinkTerms {
    /// thunderbolt, ethernet, wifi or other [default: ethernet].
    #[serde(default)]
    pub kind: Option<LinkKind>,
    /// Round trip [default: by kind].
    pub rtt_ms: Option<f64>,
    /// Bandwidth [default: by kind].
    pub gbit_per_s: Option<f64>,
    /// Whether RDMA works over it [default: false].
    #[serde(default)]
    pub rdma: bool,
    /// unknown, probing, up or down [default: up].
    #[serde(default)]
    pub state: Option<LinkState>,
}

impl LinkTerms {
    pub(super) fn link(&self) -> Link {
        let kind = self.kind.unwrap_or(LinkKind::Ethernet);
        let (rtt_ms, gbit) = match kind {
            LinkKind::Local => (0.02, 160.0),
            LinkKind::Thunderbolt => (0.5, 50.0),
            LinkKind::Ethernet => (0.4, 1.0),
            LinkKind::Wifi => (4.0, 0.3),
            LinkKind::Other => (20.0, 0.1),
        };
        Link {
            kind,
            state: self.state.unwrap_or(LinkState::Up),
            rtt_s: self.rtt_ms.unwrap_or(rtt_ms).max(0.0) / 1e3,
            bandwidth: self.gbit_per_s.unwrap_or(gbit).max(0.0) * 1e9 / 8.0,
            rdma: self.rdma,
            private: true,
        }
    }
}

/// An instance that is there.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunningEntry {
    /// Whose.
    pub deployment: String,
    /// Its machines in the order of ranks: `name`, or `name/device`.
    pub ranks: Vec<String>,
    /// Whether it takes requests [default: true].
    #[serde(default = "yes")]
    pub ready: bool,
    /// How long it has been placed [default: an hour].
    pub age_s: Option<u64>,
}

/// What requests ask for.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DemandEntry {
    /// Requests that were taken.
    #[serde(default)]
    pub requests_per_s: f64,
    /// Requests that were refused.
    #[serde(default)]
    pub refused_per_s: f64,
    /// Tokens that each generates [default: 256].
    #[serde(default)]
    pub tokens_per_request: f64,
}

/// How the planner decides.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyEntry {
    /// Share of memory that is kept free [default: 0.1].
    pub head_room: Option<f64>,
    /// How long an instance stays [default: 300].
    pub dwell_s: Option<u64>,
    /// Most moves at once [default: no bound].
    pub moves_max: Option<usize>,
    /// Most instances that load at once [default: no bound].
    pub loading_max: Option<usize>,
    /// Demand adds instances above this share of use [default: 0.7].
    pub utilisation: Option<f64>,
    /// And gives them back below this one [default: 0.4].
    pub utilisation_min: Option<f64>,
    /// Most ranks where the shape is auto [default: 16].
    pub ranks_max: Option<usize>,
}
