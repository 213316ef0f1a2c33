//! The tools that a caller offers, as OpenAI's requests list them.

use std::sync::Arc;

use serde_json::{Value, json};

use super::json_text::Types;

/// The tools of one request. Cheap to clone.
#[derive(Clone, Default)]
pub struct Tools {
    list: Arc<Vec<Tool>>,
}

/// A tool.
pub(super) struct Tool {
    pub(super) name: String,
    pub(super) description: Option<String>,
    /// A JSON schema.
    pub(super) parameters: Value,
    /// Calls must follow the schema.
    pub(super) strict: bool,
}

/// Which tools an answer must call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolChoice {
    /// The model decides.
    Auto,
    /// At least one, whichever.
    Required,
    /// This one.
    Named(String),
}

impl Tools {
    /// From `[{"type": "function", "function": {"name", "description", "parameters", "strict"}}]`; what is no function
    /// is left out.
    pub fn from_openai(tools: &Value) -> Self {
        let list = tools.as_array().into_iter().flatten().filter_map(Tool::of).collect();
        Self { list: Arc::new(list) }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.list.iter().map(|tool| tool.name.clone()).collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Tool> {
        self.list.iter()
    }

    /// What JSON a tool's argument may be.
    pub(super) fn types(&self, tool: &str, argument: &str) -> Types {
        let found = self.list.iter().find(|candidate| candidate.name == tool);
        let schema = found.and_then(|tool| tool.parameters.get("properties")?.get(argument));
        schema.map(Types::of).unwrap_or_default()
    }
}

impl Tool {
    fn of(tool: &Value) -> Option<Self> {
        let function = tool.get("function").unwrap_or(tool);
        let parameters = function.get("parameters").filter(|schema| schema.is_object()).cloned();
        Some(Self {
            name: function.get("name")?.as_str()?.to_owned(),
            description: function.get("description").and_then(Value::as_str).map(str::to_owned),
            parameters: parameters.unwrap_or_else(|| json!({"type": "object", "properties": {}})),
            strict: function.get("strict").and_then(Value::as_bool).unwrap_or(false),
        })
    }

    /// The schema that calls must follow: without `strict` whatever of it can be enforced.
    pub(super) fn schema(&self) -> Value {
        let mut schema = self.parameters.clone();
        if !self.strict
            && let Some(fields) = schema.as_object_mut()
        {
            fields.insert("x-guidance".to_owned(), json!({"lenient": true}));
        }
        schema
    }
}
