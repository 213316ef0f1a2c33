//! What a model's own files say of embeddings: sentence-transformers' modules, or GGUF's `pooling_type`.

use serde_json::Value;

use crate::spec::{PooledRows, PoolingSpec};

/// What a model without any of them lacks.
pub(super) const NOTHING_SAID: &str = "its files say nothing of pooling (modules.json and the config.json of its Pooling \
                                       module, or pooling_type in a GGUF file)";

/// How GGUF numbers the ways to pool: none, mean, first token, last token, rank.
const GGUF_TYPES: [Option<PooledRows>; 5] =
    [None, Some(PooledRows::Mean), Some(PooledRows::First), Some(PooledRows::Last), None];

/// Reads `pooling.json` of a kit whose configuration is `config`.
///
/// # Errors
/// In words that follow "it gives no embeddings:".
pub(super) fn read(text: &[u8], config: &[u8]) -> Result<PoolingSpec, String> {
    let said: Value =
        serde_json::from_slice(text).map_err(|error| format!("pooling is not readable: {error}"))?;
    let config: Value = serde_json::from_slice(config).unwrap_or_default();
    both_ways(&config)?;
    if let Some(kind) = said.get("pooling_type") {
        return of_gguf(kind);
    }
    let normalise = match said.get("modules") {
        None | Some(Value::Null) => false,
        Some(modules) => normalises(modules)?,
    };
    let rows = rows(said.get("pooling").unwrap_or(&Value::Null))?;
    Ok(PoolingSpec { rows, normalise })
}

/// Rows of a decoder see what is before them only; a model that was trained to see what is behind them too is another.
fn both_ways(config: &Value) -> Result<(), String> {
    let text = config.get("text_config").unwrap_or(config);
    let set = |value: Option<&Value>| matches!(value, Some(Value::Bool(true) | Value::String(_)));
    let both = [config, text].iter().any(|place| {
        set(place.get("use_bidirectional_attention")) || place.get("is_causal") == Some(&Value::Bool(false))
    });
    match both {
        true => Err("its attention looks both ways, and engines here look back only".to_owned()),
        false => Ok(()),
    }
}

/// What llama.cpp's own server does with such models: vectors of length 1.
fn of_gguf(kind: &Value) -> Result<PoolingSpec, String> {
    let number = kind.as_u64().and_then(|number| usize::try_from(number).ok());
    match number.and_then(|number| GGUF_TYPES.get(number)) {
        Some(Some(rows)) => Ok(PoolingSpec { rows: *rows, normalise: true }),
        _ => {
            Err(format!("its pooling_type is {kind}; 1 (mean), 2 (first token) and 3 (last token) are known"))
        }
    }
}

/// Whether the modules of `modules.json` end with a norm; an error where they are more than decoder, pooling and norm.
fn normalises(modules: &Value) -> Result<bool, String> {
    let kinds = modules.as_array().ok_or("modules.json is no list")?;
    let (mut pooled, mut normalised) = (false, false);
    for module in kinds {
        let kind = module.get("type").and_then(Value::as_str).unwrap_or_default();
        let last = kind.rsplit('.').next().unwrap_or_default();
        match last {
            "Transformer" if !pooled && !normalised => {}
            "Pooling" if !pooled && !normalised => pooled = true,
            "Normalize" if pooled => normalised = true,
            _ => {
                let shown: String = kind.chars().take(100).collect();
                return Err(format!(
                    "modules.json has {shown:?} in a place where only Transformer, Pooling and Normalize, in this order, are known"
                ));
            }
        }
    }
    if pooled { Ok(normalised) } else { Err("modules.json has no Pooling module".to_owned()) }
}

/// The one way to pool that the module's `config.json` names.
fn rows(config: &Value) -> Result<PooledRows, String> {
    let fields = config.as_object().ok_or("the config.json of its Pooling module is missing or no object")?;
    let named = fields.get("pooling_mode").and_then(Value::as_str);
    let set = fields.iter().filter_map(|(name, value)| {
        let mode = name.strip_prefix("pooling_mode_")?;
        (*value == Value::Bool(true)).then_some(mode)
    });
    let modes: Vec<&str> = named.into_iter().chain(set).collect();
    match modes.as_slice() {
        ["mean_tokens" | "mean"] => Ok(PooledRows::Mean),
        ["cls_token" | "cls"] => Ok(PooledRows::First),
        ["lasttoken"] => Ok(PooledRows::Last),
        [] => Err("its Pooling module names no way to pool".to_owned()),
        others => {
            let shown: String = others.join(" and ").chars().take(100).collect();
            Err(format!("it pools by {shown}; mean_tokens, cls_token and lasttoken are known, one of them"))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(said: &Value, config: &Value) -> Result<PoolingSpec, String> {
        read(said.to_string().as_bytes(), config.to_string().as_bytes())
    }

    fn modules(kinds: &[&str]) -> Value {
        let module = |kind: &&str| json!({"idx": 0, "path": "", "type": format!("sentence_transformers.models.{kind}")});
        Value::Array(kinds.iter().map(module).collect())
    }

    #[test]
    fn cards_of_the_models_in_use_are_read() {
        let last = json!({"word_embedding_dimension": 1024, "pooling_mode_cls_token": false,
            "pooling_mode_mean_tokens": false, "pooling_mode_lasttoken": true, "include_prompt": true});
        let said = json!({"modules": modules(&["Transformer", "Pooling", "Normalize"]), "pooling": last});
        assert_eq!(of(&said, &json!({})), Ok(PoolingSpec { rows: PooledRows::Last, normalise: true }));
        let said = json!({"modules": modules(&["Transformer", "Pooling"]), "pooling": {"pooling_mode_mean_tokens": true}});
        assert_eq!(of(&said, &json!({})), Ok(PoolingSpec { rows: PooledRows::Mean, normalise: false }));
        let said = json!({"modules": null, "pooling": {"pooling_mode": "cls"}});
        assert_eq!(of(&said, &json!({})), Ok(PoolingSpec { rows: PooledRows::First, normalise: false }));
        for (kind, rows) in [(1, PooledRows::Mean), (2, PooledRows::First), (3, PooledRows::Last)] {
            let spec = of(&json!({"pooling_type": kind}), &json!({}));
            assert_eq!(spec, Ok(PoolingSpec { rows, normalise: true }));
        }
    }

    #[test]
    fn what_is_not_computed_is_told_and_nothing_panics() {
        let pooling = json!({"pooling_mode_mean_tokens": true});
        let dense = json!({"modules": modules(&["Transformer", "Pooling", "Dense", "Normalize"]), "pooling": pooling});
        let whole = json!({"modules": modules(&["Transformer", "Pooling"]), "pooling": pooling});
        let cases = [
            (dense, json!({}), "Dense"),
            (whole.clone(), json!({"use_bidirectional_attention": true}), "both ways"),
            (whole, json!({"text_config": {"is_causal": false}}), "both ways"),
            (json!({"modules": modules(&["Transformer"]), "pooling": pooling}), json!({}), "no Pooling"),
            (json!({"modules": 3}), json!({}), "no list"),
            (json!({"modules": [7]}), json!({}), "only Transformer"),
            (
                json!({"pooling": {"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true}}),
                json!({}),
                " and ",
            ),
            (
                json!({"pooling": {"pooling_mode_weightedmean_tokens": true}}),
                json!({}),
                "weightedmean_tokens",
            ),
            (json!({"pooling": {}}), json!({}), "no way"),
            (json!({"pooling": []}), json!({}), "no object"),
            (json!({"pooling_type": 4}), json!({}), "pooling_type is 4"),
            (json!({"pooling_type": 0}), json!({}), "pooling_type is 0"),
            (json!({"pooling_type": -1e300}), json!({}), "pooling_type"),
            (json!(null), json!({}), "missing"),
        ];
        for (said, config, word) in cases {
            let error = of(&said, &config).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
        assert!(read(b"{", b"").unwrap_err().contains("not readable"));
    }
}
