//! A model's kit: everything but its weights that a coordinator needs to serve it.

mod archive;
mod conversation;
mod marks;
mod pooling;

use serde_json::Value;

use crate::family::{ConfigError, spec_from_config};
use crate::spec::{ModelSpec, PoolingSpec};
use crate::template::{ChatExtra, ChatTemplate, TemplateError};
use crate::tokenizer::{Tokenizer, TokenizerError};

pub use archive::{KIT_BYTES_MAX, KitFormatError};

/// The files, as they are in the model's folder. Texts that somebody else made: opening them may fail.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Kit {
    /// `config.json`.
    pub config: Vec<u8>,
    /// `generation_config.json`.
    pub generation_config: Option<Vec<u8>>,
    /// `tokenizer.json`.
    pub tokenizer: Vec<u8>,
    /// `tokenizer_config.json`.
    pub tokenizer_config: Option<Vec<u8>>,
    /// `chat_template.jinja`; wins over the one in `tokenizer_config.json`.
    pub chat_template: Option<Vec<u8>>,
    /// What the model's files say of embeddings, as one JSON object: `modules` (sentence-transformers' `modules.json`) and
    /// `pooling` (the `config.json` of its pooling module), or `pooling_type` (of a GGUF file).
    pub pooling: Option<Vec<u8>>,
}

impl std::fmt::Debug for Kit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kit({} bytes)", self.to_bytes().len())
    }
}

/// Why a kit serves no model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KitError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The tokenizer's settings.
    #[error("tokenizer_config.json is not readable: {0}")]
    TokenizerConfig(String),
    /// The chat template.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// A template that is no text.
    #[error("chat_template.jinja is not UTF-8")]
    TemplateNotText,
    /// The tokenizer has tokens that the model does not.
    #[error("tokenizer.json has tokens up to {last}, but config.json's vocab_size is {vocabulary}")]
    TokenBeyondVocabulary {
        /// The largest token.
        last: usize,
        /// How many the model has.
        vocabulary: usize,
    },
    /// A conversation was asked of a model that only continues texts.
    #[error("this model has no chat template: it continues texts only, use /v1/completions")]
    NoTemplate,
}

/// A kit that has been read.
pub struct OpenKit {
    /// The decoder, its stop tokens together with the tokenizer's own end token.
    pub spec: ModelSpec,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The chat template, where the model converses.
    pub template: Option<ChatTemplate>,
    /// The one for conversations with tools, where it is another.
    tool_template: Option<ChatTemplate>,
    /// Why it gives no embeddings, where it gives none; in words that follow a colon.
    pub no_embeddings: Option<String>,
    marks: marks::Marks,
}

impl std::fmt::Debug for OpenKit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenKit").field("tokenizer", &self.tokenizer).finish_non_exhaustive()
    }
}

impl Kit {
    /// Reads every part.
    ///
    /// # Errors
    /// The first part that is not usable, named.
    pub fn open(&self) -> Result<OpenKit, KitError> {
        let mut spec = self.spec()?;
        let no_embeddings = self.pooling().err();
        let tokenizer = Tokenizer::from_json(&self.tokenizer)?;
        if tokenizer.vocabulary_len() > spec.vocabulary {
            let last = tokenizer.vocabulary_len() - 1;
            return Err(KitError::TokenBeyondVocabulary { last, vocabulary: spec.vocabulary });
        }
        let settings = self.settings()?;
        let (bos, eos) = (special_token(&settings, "bos_token"), special_token(&settings, "eos_token"));
        if let Some(end) = eos.and_then(|eos| tokenizer.token_to_id(eos))
            && !spec.stop_tokens.contains(&end)
        {
            spec.stop_tokens.push(end);
            spec.stop_tokens.sort_unstable();
        }
        let (default, with_tools) = self.template_sources(&settings)?;
        let compile =
            |source: Option<String>| source.map(|text| ChatTemplate::new(&text, bos, eos)).transpose();
        let (template, tool_template) = (compile(default)?, compile(with_tools)?);
        let marks = marks::Marks::of(&tokenizer);
        Ok(OpenKit { spec, tokenizer, template, tool_template, no_embeddings, marks })
    }

    /// The decoder alone, without looking at the tokenizer.
    ///
    /// # Errors
    /// The configuration is not usable.
    pub fn spec(&self) -> Result<ModelSpec, ConfigError> {
        let spec = spec_from_config(&self.config, self.generation_config.as_deref())?;
        Ok(match self.pooling() {
            Ok(pooling) => spec.pooled(pooling),
            Err(_) => spec,
        })
    }

    /// How it pools, or why it gives no embeddings.
    fn pooling(&self) -> Result<PoolingSpec, String> {
        let said = self.pooling.as_deref().ok_or(pooling::NOTHING_SAID)?;
        pooling::read(said, &self.config)
    }

    fn settings(&self) -> Result<Value, KitError> {
        let Some(text) = &self.tokenizer_config else { return Ok(Value::Null) };
        let settings: Value =
            serde_json::from_slice(text).map_err(|e| KitError::TokenizerConfig(e.to_string()))?;
        if settings.is_object() {
            Ok(settings)
        } else {
            Err(KitError::TokenizerConfig("it is not an object".to_owned()))
        }
    }

    /// The template, and the one for tools where there is another.
    fn template_sources(&self, settings: &Value) -> Result<(Option<String>, Option<String>), KitError> {
        if let Some(source) = &self.chat_template {
            let text = String::from_utf8(source.clone()).map_err(|_| KitError::TemplateNotText)?;
            return Ok((Some(text), None));
        }
        match settings.get("chat_template") {
            None | Some(Value::Null) => Ok((None, None)),
            Some(Value::String(text)) => Ok((Some(text.clone()), None)),
            Some(Value::Array(named)) => {
                let find = |name: &str| {
                    let of_name =
                        named.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some(name));
                    of_name.and_then(|entry| entry.get("template")).and_then(Value::as_str).map(str::to_owned)
                };
                match find("default") {
                    Some(default) => Ok((Some(default), find("tool_use"))),
                    None => {
                        Err(KitError::TokenizerConfig("chat_template has none called \"default\"".to_owned()))
                    }
                }
            }
            Some(_) => {
                Err(KitError::TokenizerConfig("chat_template is neither a text nor a list".to_owned()))
            }
        }
    }
}

/// `"</s>"` or `{"content": "</s>", ...}`.
fn special_token<'a>(settings: &'a Value, name: &str) -> Option<&'a str> {
    match settings.get(name)? {
        Value::String(text) => Some(text),
        Value::Object(token) => token.get("content")?.as_str(),
        _ => None,
    }
}

impl OpenKit {
    /// The text of a conversation in OpenAI's message format: contents in parts are joined, tool calls' arguments
    /// become objects, as the templates expect.
    ///
    /// # Errors
    /// The model does not converse, or not like this.
    pub fn render_chat(
        &self,
        messages: &[Value],
        tools: Option<&Value>,
        add_generation_prompt: bool,
        extra: &ChatExtra,
    ) -> Result<String, KitError> {
        let tools = tools.filter(|tools| tools.as_array().is_none_or(|list| !list.is_empty()));
        let template = match tools {
            Some(_) => self.tool_template.as_ref().or(self.template.as_ref()),
            None => self.template.as_ref(),
        };
        let template = template.ok_or(KitError::NoTemplate)?;
        let messages: Vec<Value> = messages.iter().map(conversation::for_template).collect();
        Ok(template.render(&messages, tools, add_generation_prompt, extra)?)
    }

    /// The texts of its templates, one after the other.
    pub(crate) fn template_texts(&self) -> String {
        let templates = [self.template.as_ref(), self.tool_template.as_ref()];
        templates.into_iter().flatten().map(ChatTemplate::source).collect()
    }

    /// The tokens of a conversation, up to where the answer begins. Templates write their own begin of text. The
    /// model's marks are the template's alone: where the caller's texts spell one, it stays text.
    ///
    /// # Errors
    /// As [`OpenKit::render_chat`], or the tokenizer fails.
    pub fn encode_chat(
        &self,
        messages: &[Value],
        tools: Option<&Value>,
        extra: &ChatExtra,
    ) -> Result<Vec<u32>, KitError> {
        let spelled = |value: &Value| self.marks.appear_in(value);
        if !messages.iter().any(spelled) && !tools.is_some_and(spelled) {
            let text = self.render_chat(messages, tools, true, extra)?;
            return Ok(self.tokenizer.encode(&text, false)?);
        }
        let messages: Vec<Value> = messages.iter().map(|message| self.marks.parted(message)).collect();
        let tools = tools.map(|tools| self.marks.parted(tools));
        let text = self.render_chat(&messages, tools.as_ref(), true, extra)?;
        Ok(marks::encode(&self.tokenizer, &text)?)
    }

    /// The tokens of a text to continue, with the begin of text that the tokenizer puts before it.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>, KitError> {
        Ok(self.tokenizer.encode(text, true)?)
    }
}

#[cfg(test)]
mod tests;
