//! From a conversation or a text to tokens: rendered, counted by the model's own tokenizer, away from the threads that
//! serve connections where it takes long.

use std::sync::Arc;

use base::ModelName;
use model::dialect::{Dialect, Tools};
use model::kit::{KitError, OpenKit};
use model::template::ChatExtra;
use serde_json::{Map, Value};
use wire::RequestError;
use wire::request::{Chat, Prompt, Tool, ToolChoice};

use super::tools::offered;
use crate::clock::unix_s;
use crate::core::Core;
use crate::pools::KitOf;
use crate::problem::Problem;

/// Texts below this are tokenized where they are (some tens of microseconds); longer ones away from the threads that
/// serve connections.
const TOKENIZED_HERE_BYTES_MAX: usize = 512;

/// Normalisation may make a text shorter before it is cut into tokens, by so much at most in any tokenizer in use.
const SHRINK: usize = 4;

/// One prompt. Not `Debug`.
pub(super) enum Asked {
    Chat(Box<Chat>),
    Text(Prompt),
    /// To be embedded.
    Input(Prompt),
}

impl Asked {
    pub(super) fn param(&self) -> &'static str {
        match self {
            Self::Chat(_) => "messages",
            Self::Text(_) => "prompt",
            Self::Input(_) => "input",
        }
    }

    /// Bytes of text in it, without what the template adds.
    fn bytes(&self) -> usize {
        match self {
            Self::Chat(chat) => {
                let messages = chat.messages.iter().map(|m| m["content"].as_str().map_or(0, str::len) + 32);
                // Schemas are long and many: whoever sends one waits for another thread.
                messages.sum::<usize>() + chat.tools.len() * TOKENIZED_HERE_BYTES_MAX
            }
            Self::Text(Prompt::Text(text)) | Self::Input(Prompt::Text(text)) => text.len(),
            Self::Text(Prompt::Tokens(_)) | Self::Input(Prompt::Tokens(_)) => 0,
        }
    }
}

/// The tokens of a prompt.
pub(super) async fn tokens(
    core: &Arc<Core>,
    of: &KitOf,
    name: &ModelName,
    asked: Asked,
) -> Result<Vec<u32>, Problem> {
    let KitOf { kit, dialect, longest_token: longest, .. } = of;
    let longest = *longest;
    let bytes = asked.bytes();
    let (context, param) = (kit.spec.context, asked.param());
    // Megabytes that can never fit are not worth seconds of a tokenizer.
    if bytes / (SHRINK * longest.max(1)) >= context {
        let context = u32::try_from(context).unwrap_or(u32::MAX);
        return Err(Problem::PromptBytes { context, bytes, longest, param });
    }
    let encoded = if bytes > TOKENIZED_HERE_BYTES_MAX {
        let _place = core.tokenizers.acquire().await.expect("the semaphore is never closed");
        let (kit, dialect) = (Arc::clone(kit), Arc::clone(dialect));
        match tokio::task::spawn_blocking(move || encode(&kit, &dialect, asked)).await {
            Ok(encoded) => encoded,
            Err(_) => return Err(Problem::Internal("tokenizing the prompt failed")),
        }
    } else {
        encode(kit, dialect, asked)
    };
    encoded.map_err(|unencoded| match unencoded {
        Unencoded::Kit(KitError::NoTemplate) => Problem::NoTemplate { model: name.as_str().to_owned() },
        Unencoded::Kit(KitError::Template(error)) => Problem::Template { detail: error.to_string() },
        Unencoded::Kit(_) => Problem::Internal("the model's tokenizer failed on this prompt"),
        Unencoded::Prefix => {
            let message =
                "the last message begins the answer and spells one of the model's marks: leave the \
                           mark out"
                    .to_owned();
            Problem::Request(RequestError { message, param: Some(param.to_owned()), code: "invalid_value" })
        }
    })
}

enum Unencoded {
    Kit(KitError),
    /// The answer's beginning would be read as more than text.
    Prefix,
}

impl From<KitError> for Unencoded {
    fn from(error: KitError) -> Self {
        Self::Kit(error)
    }
}

fn encode(kit: &OpenKit, dialect: &Dialect, asked: Asked) -> Result<Vec<u32>, Unencoded> {
    let chat = match asked {
        Asked::Chat(chat) => chat,
        Asked::Text(Prompt::Text(text)) | Asked::Input(Prompt::Text(text)) => {
            return Ok(kit.encode_text(&text)?);
        }
        Asked::Text(Prompt::Tokens(tokens)) | Asked::Input(Prompt::Tokens(tokens)) => return Ok(tokens),
    };
    let now_unix_s = i64::try_from(unix_s()).unwrap_or(i64::MAX);
    let tools = for_template(&chat).filter(|_| dialect.template_takes_tools());
    let messages = dialect.messages(&chat.messages, &Tools::from_openai(&offered(&chat)));
    let extra = ChatExtra { now_unix_s, variables: variables(&chat) };
    let mut tokens = kit.encode_chat(&messages, tools.as_ref(), &extra)?;
    if let Some(prefix) = &chat.prefix {
        if kit.tokenizer.special_texts().iter().any(|mark| prefix.contains(mark.as_str())) {
            return Err(Unencoded::Prefix);
        }
        let more = kit.tokenizer.encode(prefix, false).map_err(KitError::from)?;
        tokens.extend(more);
    }
    Ok(tokens)
}

/// The tools that the model is told of: none where it shall call none.
fn for_template(chat: &Chat) -> Option<Value> {
    let told = !chat.tools.is_empty() && chat.tool_choice != ToolChoice::None;
    told.then(|| Value::Array(chat.tools.iter().map(Tool::for_template).collect()))
}

/// How the templates in use name what callers ask of reasoning; those that know none of it ignore it.
pub(super) const REASONING_VARIABLES: [&str; 3] = ["enable_thinking", "thinking", "reasoning_effort"];

fn variables(chat: &Chat) -> Map<String, Value> {
    let mut out = Map::new();
    if let Some(effort) = chat.effort {
        let [enable, thinking, level] = REASONING_VARIABLES;
        let wanted = effort != "none";
        out.insert(enable.to_owned(), Value::Bool(wanted));
        out.insert(thinking.to_owned(), Value::Bool(wanted));
        if wanted {
            // Templates know three levels.
            let known = match effort {
                "minimal" => "low",
                "xhigh" | "max" => "high",
                other => other,
            };
            out.insert(level.to_owned(), Value::String(known.to_owned()));
        }
    }
    out.extend(chat.template_variables.clone());
    out
}
