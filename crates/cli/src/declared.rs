//! Files that people write (YAML, or JSON): read strictly, and what is wrong is named with its path.

use std::fmt;
use std::path::Path;

use anyhow::{Context, bail};
use serde::de::{DeserializeOwned, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Number, Value};

/// Longer files are no descriptions of fleets.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// A file's content.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let shown = path.display();
    let length = std::fs::metadata(path).with_context(|| format!("reading {shown}"))?.len();
    if length > FILE_BYTES_MAX {
        bail!("{shown} has {length} bytes; {FILE_BYTES_MAX} are allowed");
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {shown}"))?;
    parse(&text).with_context(|| format!("{shown} is not as it should be"))
}

/// Every document of a text: JSON (one, or several after another), or YAML (apart by lines of `---`).
///
/// # Errors
/// The first that cannot be read, by its number where there are several.
pub(crate) fn documents(text: &str) -> anyhow::Result<Vec<Value>> {
    if text.len() as u64 > FILE_BYTES_MAX {
        bail!("{} bytes; {FILE_BYTES_MAX} are allowed", text.len());
    }
    if text.trim_start().starts_with(['{', '[']) {
        let all = serde_json::Deserializer::from_str(text).into_iter::<Once>();
        return Ok(all.map(|value| value.map(|Once(value)| value)).collect::<Result<_, _>>()?);
    }
    let mut parts = vec![String::new()];
    for line in text.lines() {
        if line.trim_end() == "---" || line.trim_end() == "..." {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push_str(line);
            part.push('\n');
        }
    }
    let said =
        |part: &&String| part.lines().any(|l| !l.trim().is_empty() && !l.trim_start().starts_with('#'));
    let mut all = Vec::new();
    for (at, part) in parts.iter().filter(said).enumerate() {
        let Once(value) =
            serde_saphyr::from_str(part).map_err(|error| anyhow::anyhow!("document {}: {error}", at + 1))?;
        all.push(value);
    }
    Ok(all)
}

/// What a text says, JSON where it begins as such.
pub(crate) fn parse<T: DeserializeOwned>(text: &str) -> anyhow::Result<T> {
    let Once(value) = if text.trim_start().starts_with(['{', '[']) {
        serde_json::from_str(text)?
    } else {
        serde_saphyr::from_str(text).map_err(|error| anyhow::anyhow!("{error}"))?
    };
    typed(value)
}

/// A value as a type.
pub(crate) fn typed<T: DeserializeOwned>(value: Value) -> anyhow::Result<T> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let detail = error.into_inner();
        if path == "." { anyhow::anyhow!("{detail}") } else { anyhow::anyhow!("{path}: {detail}") }
    })
}

/// A value in which no object has a key twice: which of the two would hold, nobody can see.
struct Once(Value);

impl<'de> Deserialize<'de> for Once {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Values).map(Self)
    }
}

struct Values;

impl<'de> Visitor<'de> for Values {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Once::deserialize(deserializer).map(|Once(value)| value)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(Once(item)) = items.next_element()? {
            all.push(item);
        }
        Ok(Value::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut all = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let Once(value) = entries.next_value()?;
            if all.contains_key(&key) {
                return Err(A::Error::custom(format!("the key {key:?} comes twice")));
            }
            all.insert(key, value);
        }
        Ok(Value::Object(all))
    }
}

#[cfg(test)]
mod tests {
    use fleet::plan::file::{FleetFile, SpecFile};

    use super::*;

    fn refusal<T: DeserializeOwned>(text: &str) -> String {
        format!("{:#}", parse::<T>(text).err().expect("it should be refused"))
    }

    #[test]
    fn yaml_and_json_say_the_same() {
        let yaml =
            "machines:\n- name: a\n  memory: 64 GiB\nlinks:\n- {from: a, to: b, rtt_ms: 0.5, rdma: true}\n";
        let json = r#"{"machines": [{"name": "a", "memory": 68719476736}],
            "links": [{"from": "a", "to": "b", "rtt_ms": 0.5, "rdma": true}]}"#;
        for text in [yaml, json] {
            let file: FleetFile = parse(text).expect("it is as it should be");
            assert_eq!(file.machines[0].memory.map(|size| size.0), Some(64 << 30));
            assert!(file.links[0].link.rdma && file.links[0].both);
        }
    }

    #[test]
    fn what_is_unknown_or_double_is_refused_with_its_path() {
        let text = "machines:\n- name: a\n  memory: 64 GiB\n  memroy: 1\n";
        let said = refusal::<FleetFile>(text);
        assert!(said.contains("machines[0].memroy") && said.contains("unknown field"), "{said}");
        let text = "machines: []\nlinks:\n- {from: a, to: b, rttms: 3}\n";
        let said = refusal::<FleetFile>(text);
        assert!(said.contains("links[0]") && said.contains("rttms"), "{said}");
        let text = r#"{"deployments": [{"name": "a", "model": "m", "name": "b"}]}"#;
        assert!(refusal::<SpecFile>(text).contains("comes twice"));
        let text = "deployments:\n- {name: a, model: m, shape: tensro 2}\n";
        let said = refusal::<SpecFile>(text);
        assert!(said.contains("deployments[0].shape") && said.contains("tensor N"), "{said}");
        let text = "deployments:\n- {name: a, model: m, replicas: {floor: 1, ceiling: 2, priorty: 3}}\n";
        assert!(refusal::<SpecFile>(text).contains("deployments[0].replicas"));
    }
}
