//! What an answer must be: named by callers and dialects, carried in jobs, enforced where tokens are drawn.

use serde::{Deserialize, Serialize};

/// An answer's form. Not `Debug`: schemas and choices are parts of prompts.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Constraint {
    /// The form.
    #[serde(flatten)]
    pub grammar: Grammar,
    /// It binds what follows the first occurrence of this text in the answer (the end of reasoning, say), and nothing
    /// before; absent, it binds all of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// The form itself.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Grammar {
    /// Any JSON object.
    JsonObject,
    /// JSON that a JSON schema allows.
    JsonSchema {
        /// The schema, as JSON.
        schema: String,
    },
    /// What a regular expression matches, from begin to end.
    Regex {
        /// The expression, in the syntax of Rust's `regex`.
        pattern: String,
    },
    /// What a grammar in llguidance's dialect of Lark derives from `start`.
    Lark {
        /// The grammar.
        grammar: String,
    },
    /// One of some texts.
    Choice {
        /// The texts.
        choices: Vec<String>,
    },
}

impl Grammar {
    /// The form for all of an answer.
    pub fn constraint(self) -> Constraint {
        Constraint { grammar: self, after: None }
    }
}
