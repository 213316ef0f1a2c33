//! What a conversation asks of its answer's form: which constraint binds it, and how it is read.

use model::kit::OpenKit;
use wire::RequestError;
use wire::job::{Constraint, Grammar};
use wire::request::{AnswerFormat, Chat, Generation, ToolChoice};

use super::prompt::REASONING_VARIABLES;
use super::reader::Reading;
use crate::problem::Problem;

/// How an answer is bound and read.
pub(super) struct Manner {
    pub(super) constraint: Option<Constraint>,
    pub(super) special_tokens: bool,
    pub(super) reading: Reading,
}

impl Manner {
    /// Of a text's continuation.
    pub(super) fn of_texts(format: &AnswerFormat) -> Self {
        let constraint = grammar(format).map(Grammar::constraint);
        Self { constraint, special_tokens: false, reading: Reading::Plain }
    }

    /// Of a conversation's answer. What the model's template takes no notice of is added to what is ignored.
    pub(super) fn of_chat(kit: &OpenKit, chat: &Chat, generation: &mut Generation) -> Result<Self, Problem> {
        if let Some(template) = &kit.template
            && chat.effort.is_some_and(|effort| effort != "none")
            && !REASONING_VARIABLES.iter().any(|variable| template.knows(variable))
        {
            generation.ignored.push("reasoning_effort".to_owned());
        }
        let constraint = grammar(&generation.format).map(Grammar::constraint);
        if !chat.tools.is_empty() && !matches!(chat.tool_choice, ToolChoice::None | ToolChoice::Auto) {
            let message = "'tool_choice' is not supported yet".to_owned();
            return Err(Problem::Request(RequestError {
                message,
                param: Some("tool_choice".to_owned()),
                code: "unsupported_parameter",
            }));
        }
        Ok(Self { constraint, special_tokens: false, reading: Reading::of_chat(kit, chat) })
    }
}

fn grammar(format: &AnswerFormat) -> Option<Grammar> {
    Some(match format {
        AnswerFormat::Text => return None,
        AnswerFormat::JsonObject => Grammar::JsonObject,
        AnswerFormat::JsonSchema { schema, .. } => Grammar::JsonSchema { schema: schema.to_string() },
        AnswerFormat::Regex(pattern) => Grammar::Regex { pattern: pattern.clone() },
        AnswerFormat::Lark(grammar) => Grammar::Lark { grammar: grammar.clone() },
        AnswerFormat::Choice(choices) => Grammar::Choice { choices: choices.clone() },
    })
}
