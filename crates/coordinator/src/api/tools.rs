//! What a conversation asks of its answer's form: which constraint binds it, and how it is read.

use std::sync::Arc;

use model::dialect::{self, Dialect, Tools};
use model::kit::OpenKit;
use serde_json::{Value, json};
use wire::RequestError;
use wire::job::{Constraint, Grammar};
use wire::request::{AnswerFormat, Chat, Generation, Tool, ToolChoice};

use super::prompt::REASONING_VARIABLES;
use super::reader::Reading;
use crate::problem::Problem;

/// How an answer is bound and read.
pub(super) struct Manner {
    pub(super) constraint: Option<Constraint>,
    pub(super) special_tokens: bool,
    pub(super) reading: Reading,
}

/// What a conversation says of its answer's form, before there is a prompt.
pub(super) struct Form {
    offered: Value,
    tools: Tools,
    choice: dialect::ToolChoice,
    parallel: bool,
}

impl Form {
    /// Of a conversation. What the model's template takes no notice of is added to what is ignored.
    pub(super) fn of(kit: &OpenKit, chat: &Chat, generation: &mut Generation) -> Result<Self, Problem> {
        if let Some(template) = &kit.template
            && chat.effort.is_some_and(|effort| effort != "none")
            && !REASONING_VARIABLES.iter().any(|variable| template.knows(variable))
        {
            generation.ignored.push("reasoning_effort".to_owned());
        }
        let choice = match &chat.tool_choice {
            ToolChoice::Auto | ToolChoice::None => dialect::ToolChoice::Auto,
            ToolChoice::Required => dialect::ToolChoice::Required,
            ToolChoice::Named(name) => dialect::ToolChoice::Named(name.clone()),
        };
        let offered = offered(chat);
        let form =
            Self { tools: Tools::from_openai(&offered), offered, choice, parallel: chat.parallel_tools };
        if form.tools.is_empty() || generation.format == AnswerFormat::Text {
            return Ok(form);
        }
        if form.choice == dialect::ToolChoice::Auto {
            let message =
                "an answer's form cannot be asked for while tools may be called: set 'tool_choice' to \
                           none or required, or leave 'tools' or the form out"
                    .to_owned();
            let param = Some("tool_choice".to_owned());
            return Err(Problem::Request(RequestError { message, param, code: "unsupported_parameter" }));
        }
        // A call comes for certain, and its form is its tool's.
        generation.format = AnswerFormat::Text;
        Ok(form)
    }

    /// How the answer to `prompt` is bound and read.
    pub(super) fn manner(
        self,
        kit: &OpenKit,
        dialect: &Arc<Dialect>,
        format: &AnswerFormat,
        prompt: &[u32],
    ) -> Manner {
        let prompt_tail = Dialect::prompt_tail(&kit.tokenizer, prompt);
        let constraint = match grammar(format) {
            Some(grammar) => Some(dialect.answer_constraint(grammar, &prompt_tail)),
            None if self.tools.is_empty() => None,
            None => dialect.tool_constraint(&self.tools, &self.choice, self.parallel, &prompt_tail),
        };
        let special_tokens = dialect.needs_special_tokens(&self.tools);
        Manner { constraint, special_tokens, reading: Reading::of(dialect, self.offered, prompt_tail) }
    }
}

impl Manner {
    /// Of a text's continuation.
    pub(super) fn of_texts(format: &AnswerFormat) -> Self {
        let constraint = grammar(format).map(Grammar::constraint);
        Self { constraint, special_tokens: false, reading: Reading::Plain }
    }
}

/// The tools that the model may call: none where it shall call none.
pub(super) fn offered(chat: &Chat) -> Value {
    if chat.tool_choice == ToolChoice::None {
        return Value::Array(Vec::new());
    }
    let one = |tool: &Tool| {
        let mut shown = tool.for_template();
        shown["function"]["strict"] = json!(tool.strict);
        shown
    };
    Value::Array(chat.tools.iter().map(one).collect())
}

/// White space between the parts of JSON: a blank, or a line break and an indent. Without a bound, models that wander fill
/// their whole length with it.
const WHITE_SPACE: &str = "( |\\n {0,16})";

fn grammar(format: &AnswerFormat) -> Option<Grammar> {
    Some(match format {
        AnswerFormat::Text => return None,
        AnswerFormat::JsonObject => Grammar::JsonObject,
        AnswerFormat::JsonSchema { schema, .. } => {
            let mut schema = schema.clone();
            if let Some(fields) = schema.as_object_mut() {
                fields.entry("x-guidance").or_insert_with(|| json!({"whitespace_pattern": WHITE_SPACE}));
            }
            Grammar::JsonSchema { schema: schema.to_string() }
        }
        AnswerFormat::Regex(pattern) => Grammar::Regex { pattern: pattern.clone() },
        AnswerFormat::Lark(grammar) => Grammar::Lark { grammar: grammar.clone() },
        AnswerFormat::Choice(choices) => Grammar::Choice { choices: choices.clone() },
    })
}
