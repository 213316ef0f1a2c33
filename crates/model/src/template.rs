//! Chat templates: a conversation to the text that a model was trained on, as Jinja with Hugging Face's additions.
//!
//! Source: `chat_template_utils.py` of transformers (its environment, filters and globals).

mod environment;
mod json;
mod python;
mod time;

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, Value};
use serde_json::Map;

use environment::Raised;

/// A rendered conversation may be this long. A context of a million tokens is about 4 MB of text.
const OUTPUT_BYTES_MAX: usize = 32 << 20;
/// Instructions that a template may execute for one conversation: some 100 a message are usual, and this many take
/// about half a second.
const FUEL: u64 = 10_000_000;
/// A template's own text may be this long; the longest in use are below 20 KB.
const SOURCE_BYTES_MAX: usize = 1 << 20;

/// Why a conversation could not be rendered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The template itself is not readable.
    #[error("the chat template is not readable, line {line}: {detail}")]
    Syntax {
        /// Where.
        line: usize,
        /// What.
        detail: String,
    },
    /// The template is absurdly long.
    #[error("the chat template has {found} bytes, the limit is {SOURCE_BYTES_MAX}")]
    SourceTooLong {
        /// How long.
        found: usize,
    },
    /// The template says that this conversation is not for this model (`raise_exception`).
    #[error("the model's chat template refuses this conversation: {message}")]
    Refused {
        /// In the template's words.
        message: String,
    },
    /// The template cannot cope with this conversation.
    #[error("the model's chat template fails on this conversation, line {line}: {detail}")]
    Failed {
        /// Where.
        line: usize,
        /// What.
        detail: String,
    },
    /// The template took too many steps, as one that never ends does.
    #[error("the model's chat template did not end within {FUEL} steps")]
    OutOfFuel,
    /// The text became too long.
    #[error("the conversation becomes longer than {OUTPUT_BYTES_MAX} bytes in the model's chat template")]
    TooLong,
}

/// What a template may ask for besides the conversation.
#[derive(Debug, Clone, Default)]
pub struct ChatExtra {
    /// What `strftime_now` shows, in seconds since 1970, UTC.
    pub now_unix_s: i64,
    /// Further variables, as a caller's `chat_template_kwargs` name them.
    pub variables: Map<String, serde_json::Value>,
}

/// A compiled chat template. Shared between threads.
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// What it takes from outside.
    variables: HashSet<String>,
    bos: Option<String>,
    eos: Option<String>,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").finish_non_exhaustive()
    }
}

const NAME: &str = "chat_template";

impl ChatTemplate {
    /// Compiles `source`; `bos` and `eos` are what it sees as `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// The template is too long or not readable, with the line.
    pub fn new(source: &str, bos: Option<&str>, eos: Option<&str>) -> Result<Self, TemplateError> {
        if source.len() > SOURCE_BYTES_MAX {
            return Err(TemplateError::SourceTooLong { found: source.len() });
        }
        let mut environment = environment::environment(FUEL);
        let variables = guarded(|| {
            let source = environment::without_generation_marks(source);
            environment.add_template_owned(NAME, source).map_err(|e| TemplateError::Syntax {
                line: e.line().unwrap_or(0),
                detail: e.detail().unwrap_or("syntax error").to_owned(),
            })?;
            Ok(environment.get_template(NAME).expect("it was added above").undeclared_variables(false))
        })?;
        Ok(Self { environment, variables, bos: bos.map(str::to_owned), eos: eos.map(str::to_owned) })
    }

    /// Whether it takes notice of a variable of this name.
    pub fn knows(&self, variable: &str) -> bool {
        self.variables.contains(variable)
    }

    /// The template's own text.
    pub(crate) fn source(&self) -> String {
        self.environment.get_template(NAME).expect("it was added when this was made").source().to_owned()
    }

    /// The text of `messages`; with `add_generation_prompt`, up to where the model's answer begins.
    ///
    /// # Errors
    /// The template refuses the conversation, fails on it, or does not end.
    pub fn render(
        &self,
        messages: &[serde_json::Value],
        tools: Option<&serde_json::Value>,
        add_generation_prompt: bool,
        extra: &ChatExtra,
    ) -> Result<String, TemplateError> {
        let now = extra.now_unix_s;
        let mut variables: Vec<(&str, Value)> = vec![
            ("documents", Value::from(())),
            ("strftime_now", Value::from_function(move |format: &str| time::strftime(now, format))),
        ];
        for (name, token) in [("bos_token", &self.bos), ("eos_token", &self.eos)] {
            if let Some(token) = token {
                variables.push((name, Value::from(token.as_str())));
            }
        }
        variables
            .extend(extra.variables.iter().map(|(name, value)| (name.as_str(), Value::from(Serde(value)))));
        variables.push(("messages", Value::from(Serde(messages))));
        variables.push(("tools", tools.map_or_else(|| Value::from(()), |tools| Value::from(Serde(tools)))));
        variables.push(("add_generation_prompt", Value::from(add_generation_prompt)));
        let variables: BTreeMap<String, Value> =
            variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();

        let template = self.environment.get_template(NAME).expect("it was added when this was made");
        let mut output = Limited { bytes: Vec::new(), full: false };
        let rendered = guarded(|| {
            let rendered = template.render_captured_to(Value::from_object(variables), &mut output);
            rendered.map(|_| ()).map_err(|error| failure(&error))
        });
        match rendered {
            Ok(()) => Ok(String::from_utf8(output.bytes).expect("templates write texts")),
            Err(_) if output.full => Err(TemplateError::TooLong),
            Err(error) => Err(error),
        }
    }
}

/// The engine is foreign code over a foreign template and whatever a caller says: what it does there is an error and not
/// our end. (Its 3.0 panics where a list without items is taken backwards, as Qwen's templates take the messages.)
fn guarded<T>(work: impl FnOnce() -> Result<T, TemplateError>) -> Result<T, TemplateError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        let detail = "the template engine broke down over it".to_owned();
        Err(TemplateError::Failed { line: 0, detail })
    })
}

fn failure(error: &minijinja::Error) -> TemplateError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(this) = cause {
        if let Some(Raised(message)) = this.downcast_ref() {
            return TemplateError::Refused { message: message.clone() };
        }
        if let Some(error) = this.downcast_ref::<minijinja::Error>()
            && error.kind() == ErrorKind::OutOfFuel
        {
            return TemplateError::OutOfFuel;
        }
        cause = this.source();
    }
    let kind = error.kind().to_string();
    let detail = error.detail().map_or(kind.clone(), |detail| format!("{kind}: {detail}"));
    TemplateError::Failed { line: error.line().unwrap_or(0), detail }
}

/// Ends the rendering when the text is too long.
struct Limited {
    bytes: Vec<u8>,
    full: bool,
}

impl Write for &mut Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > OUTPUT_BYTES_MAX {
            self.full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
