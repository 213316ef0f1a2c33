//! How parts of a spec are written: short words for people, and objects for programs.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// `auto`, `single`, `tensor 2`, `pipeline 3`, `tensor 2 x pipeline 3`, `{tensor: 2, pipeline: 3}`.
pub(super) mod shape {
    use super::*;
    use crate::deployment::Division;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Grid {
        tensor: Option<u32>,
        pipeline: Option<u32>,
    }

    #[derive(Deserialize)]
    #[serde(
        untagged,
        expecting = "auto, single, \"tensor N\", \"pipeline N\", \"tensor N x pipeline N\", or {tensor: N, pipeline: N}"
    )]
    enum Form {
        Word(String),
        Grid(Grid),
    }

    pub(in crate::deployment) fn serialize<S: Serializer>(value: &Division, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&value.to_string())
    }

    pub(in crate::deployment) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Division, D::Error> {
        match Form::deserialize(d)? {
            Form::Word(word) => word.parse().map_err(serde::de::Error::custom),
            Form::Grid(Grid { tensor, pipeline }) => Ok(match (tensor, pipeline) {
                (None, None) => Division::Auto,
                (Some(tensor), None) => Division::Tensor(tensor),
                (None, Some(pipeline)) => Division::Pipeline(pipeline),
                (Some(tensor), Some(pipeline)) => Division::Both { pipeline, tensor },
            }),
        }
    }

    impl std::fmt::Display for Division {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            match self {
                Self::Auto => f.write_str("auto"),
                Self::Single => f.write_str("single"),
                Self::Tensor(n) => write!(f, "tensor {n}"),
                Self::Pipeline(n) => write!(f, "pipeline {n}"),
                Self::Both { pipeline, tensor } => write!(f, "tensor {tensor} x pipeline {pipeline}"),
            }
        }
    }

    impl std::str::FromStr for Division {
        type Err = String;

        fn from_str(text: &str) -> Result<Self, Self::Err> {
            let wrong = || {
                let shown: String = text.chars().take(60).collect();
                format!(
                    "{shown:?} is no shape: auto, single, \"tensor N\", \"pipeline N\" or \"tensor N x pipeline N\""
                )
            };
            let spaced: String =
                text.chars().map(|c| if matches!(c, '-' | '_' | ':' | '=') { ' ' } else { c }).collect();
            match spaced.trim() {
                "auto" => return Ok(Self::Auto),
                "single" => return Ok(Self::Single),
                _ => {}
            }
            // As groups say it: stages x ranks.
            if let Some((pipeline, tensor)) = spaced.trim().split_once('x')
                && let (Ok(pipeline), Ok(tensor)) = (pipeline.trim().parse(), tensor.trim().parse())
            {
                return Ok(Self::Both { pipeline, tensor });
            }
            let part = |part: &str| -> Option<(bool, u32)> {
                let (word, number) = part.trim().split_once(' ')?;
                let number = number.trim().parse().ok()?;
                match word {
                    "tensor" => Some((true, number)),
                    "pipeline" => Some((false, number)),
                    _ => None,
                }
            };
            let parts: Option<Vec<_>> = spaced.split([',', '×', 'x', '*']).map(part).collect();
            match parts.ok_or_else(wrong)?.as_slice() {
                [(true, n)] => Ok(Self::Tensor(*n)),
                [(false, n)] => Ok(Self::Pipeline(*n)),
                [(true, tensor), (false, pipeline)] | [(false, pipeline), (true, tensor)] => {
                    Ok(Self::Both { pipeline: *pipeline, tensor: *tensor })
                }
                _ => Err(wrong()),
            }
        }
    }
}

/// `any`, `{selector: {label: value}}`, `{pinned: [name, ...]}`, `[name, ...]`.
pub(super) mod machines {
    use std::collections::BTreeMap;

    use super::*;
    use crate::deployment::Machines;

    #[derive(Deserialize)]
    #[serde(rename_all = "snake_case", deny_unknown_fields)]
    enum Object {
        Selector(BTreeMap<String, String>),
        Pinned(Vec<String>),
    }

    #[derive(Deserialize)]
    #[serde(
        untagged,
        expecting = "any, {selector: {label: value}}, {pinned: [machine, ...]}, or a list of machines"
    )]
    enum Form {
        Word(String),
        List(Vec<String>),
        Object(Object),
    }

    pub(in crate::deployment) fn serialize<S: Serializer>(value: &Machines, s: S) -> Result<S::Ok, S::Error> {
        use std::collections::BTreeMap as Map;
        match value {
            Machines::Any => s.serialize_str("any"),
            Machines::Selector(labels) => Map::from([("selector", labels)]).serialize(s),
            Machines::Pinned(names) => Map::from([("pinned", names)]).serialize(s),
        }
    }

    pub(in crate::deployment) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Machines, D::Error> {
        match Form::deserialize(d)? {
            Form::Word(word) if word == "any" => Ok(Machines::Any),
            Form::Word(word) => {
                let shown: String = word.chars().take(60).collect();
                Err(serde::de::Error::custom(format!(
                    "{shown:?}: machines are any, {{selector: {{label: value}}}} or {{pinned: [machine, ...]}}"
                )))
            }
            Form::List(names) | Form::Object(Object::Pinned(names)) => Ok(Machines::Pinned(names)),
            Form::Object(Object::Selector(labels)) => Ok(Machines::Selector(labels)),
        }
    }
}

/// `auto`, `tcp`, `rdma`.
pub(super) mod transport {
    use super::*;
    use crate::deployment::Transport;

    pub(in crate::deployment) fn serialize<S: Serializer>(
        value: &Transport,
        s: S,
    ) -> Result<S::Ok, S::Error> {
        s.serialize_str(match value {
            Transport::Auto => "auto",
            Transport::Tcp => "tcp",
            Transport::Rdma => "rdma",
        })
    }

    pub(in crate::deployment) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Transport, D::Error> {
        let word = String::deserialize(d)?;
        match word.as_str() {
            "auto" => Ok(Transport::Auto),
            "tcp" => Ok(Transport::Tcp),
            "rdma" | "rdma required" => Ok(Transport::Rdma),
            _ => {
                let shown: String = word.chars().take(60).collect();
                Err(serde::de::Error::custom(format!("{shown:?}: transport is auto, tcp or rdma")))
            }
        }
    }
}
