//! What `config.json` says of how weights are quantised: MLX's `quantization`, and gpt-oss's MXFP4.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::{CheckpointError, DType};

/// How the tensors of a checkpoint are quantised, by the module they belong to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Quantisation {
    default: Option<DType>,
    modules: HashMap<String, Option<DType>>,
}

const CONFIG: &str = "config.json";

impl Quantisation {
    /// What `config.json` says; nothing where it says nothing.
    ///
    /// # Errors
    /// A way of quantising that this build does not read, named.
    pub fn from_config(config_json: &[u8]) -> Result<Self, CheckpointError> {
        let bad = |detail: String| CheckpointError::BadHeader { file: CONFIG.to_owned(), detail };
        let config: Map<String, Value> =
            serde_json::from_slice(config_json).map_err(|e| bad(format!("bad JSON: {e}")))?;
        Self::from_fields(&config).map_err(bad)
    }

    /// As [`Quantisation::from_config`], or what is wrong.
    pub(crate) fn from_fields(config: &Map<String, Value>) -> Result<Self, String> {
        let nested = config.get("text_config").and_then(Value::as_object);
        let find =
            |name: &str| config.get(name).or_else(|| nested?.get(name)).filter(|value| !value.is_null());
        let (field, value) = match (find("quantization"), find("quantization_config")) {
            // MLX writes both, alike.
            (Some(value), _) => ("quantization", value),
            (None, Some(value)) => ("quantization_config", value),
            (None, None) => return Ok(Self::default()),
        };
        let Some(object) = value.as_object() else { return Err(format!("{field} is not an object")) };
        if let Some(method) = object.get("quant_method") {
            return match method.as_str() {
                // gpt-oss: which tensors are quantised shows in their names.
                Some("mxfp4") => Ok(Self::default()),
                _ => Err(format!(
                    "{field}.quant_method is {method}; this build reads mxfp4, MLX's quantization, and GGUF"
                )),
            };
        }
        let mut modules = HashMap::new();
        for (name, value) in object {
            let mode = match value {
                Value::Object(own) => Some(mode(&format!("{field}.{name}"), own)?),
                Value::Bool(false) => None,
                _ => continue,
            };
            modules.insert(name.clone(), mode);
        }
        Ok(Self { default: Some(mode(field, object)?), modules })
    }

    /// How the module called `name` is quantised; nothing where it is not, or nobody says.
    pub(super) fn of(&self, name: &str) -> Option<DType> {
        self.modules.get(name).copied().unwrap_or(self.default)
    }
}

fn mode(field: &str, object: &Map<String, Value>) -> Result<DType, String> {
    let number = |name: &str| {
        let value = object.get(name).ok_or_else(|| format!("{field}.{name} is missing"))?;
        value.as_u64().ok_or_else(|| format!("{field}.{name} is {value}, no whole number"))
    };
    let (bits, group) = (number("bits")?, number("group_size")?);
    let kind = match object.get("mode") {
        None => "affine",
        Some(kind) => kind.as_str().unwrap_or("no text"),
    };
    match (kind, bits, group) {
        ("affine", 2..=6 | 8, 32 | 64 | 128) => Ok(DType::Mlx { bits: bits as u8, group: group as u8 }),
        ("mxfp4", 4, 32) => Ok(DType::Mxfp4Split),
        _ => Err(format!(
            "{field} has mode {kind:?} with {bits} bits in groups of {group}; this build reads affine with 2, 3, 4, 5, 6 \
             or 8 bits in groups of 32, 64 or 128, and mxfp4"
        )),
    }
}
