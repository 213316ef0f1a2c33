//! Texts as parts of JSON, and bare texts as the JSON that a schema wants.

use serde_json::Value;

/// `text` as it stands between a JSON text's quotes.
pub(super) fn escaped(text: &str) -> String {
    let json = Value::from(text).to_string();
    json[1..json.len() - 1].to_owned()
}

/// Which JSON types a schema allows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Types {
    names: Vec<String>,
}

/// Schemas within schemas at most.
const DEPTH_MAX: usize = 8;

impl Types {
    /// The types that `schema` names; none where it names none.
    pub(super) fn of(schema: &Value) -> Self {
        let mut types = Self::default();
        types.collect(schema, 0);
        types
    }

    fn collect(&mut self, schema: &Value, depth: usize) {
        if depth > DEPTH_MAX {
            return;
        }
        match schema.get("type") {
            Some(Value::String(name)) => self.names.push(name.clone()),
            Some(Value::Array(names)) => {
                self.names.extend(names.iter().filter_map(Value::as_str).map(str::to_owned));
            }
            _ => {}
        }
        for union in ["anyOf", "oneOf"] {
            for choice in schema.get(union).and_then(Value::as_array).into_iter().flatten() {
                self.collect(choice, depth + 1);
            }
        }
    }

    fn allow(&self, name: &str) -> bool {
        self.names.iter().any(|allowed| allowed == name)
    }

    /// Whether nothing but a text will do, or nothing is known.
    pub(super) fn only_text(&self) -> bool {
        self.names.iter().all(|name| name == "string")
    }

    /// `bare` as JSON of one of these types, or as a text.
    pub(super) fn json(&self, bare: &str) -> String {
        let trimmed = bare.trim();
        let python = match trimmed {
            "True" => "true",
            "False" => "false",
            "None" => "null",
            other => other,
        };
        let fits = match serde_json::from_str::<Value>(python) {
            Ok(Value::Null) => self.allow("null"),
            Ok(Value::Bool(_)) => self.allow("boolean"),
            Ok(Value::Number(number)) => {
                self.allow("number") || self.allow("integer") && (number.is_i64() || number.is_u64())
            }
            Ok(Value::Array(_)) => self.allow("array"),
            Ok(Value::Object(_)) => self.allow("object"),
            Ok(Value::String(_)) | Err(_) => false,
        };
        if fits { python.to_owned() } else { Value::from(bare).to_string() }
    }
}
