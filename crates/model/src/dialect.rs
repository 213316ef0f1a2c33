//! How a model's family writes reasoning and tool calls, read from its answers as they come, and asked of it.
//!
//! [`Dialect::of`] finds the dialect in a kit. [`Dialect::parser`] reads an answer: whatever it is cut into, the same
//! pieces come out, nothing of it is lost, and no more is held back than what may still turn out to be a mark.
//! [`Dialect::tool_constraint`] and [`Dialect::answer_constraint`] say what an answer must be; [`Dialect::messages`]
//! puts past calls into the shape that the family's template can take.

mod conversation;
mod gemma;
mod grammar;
mod harmony;
mod held;
mod hermes;
mod json_call;
mod json_text;
mod llama;
mod mistral;
mod pieces;
mod qwen_xml;
mod thinking;
mod tools;

use std::collections::BTreeMap;

pub use pieces::Piece;
pub use thinking::Thinking;
pub use tools::{ToolChoice, Tools};

use crate::kit::OpenKit;
use crate::tokenizer::Tokenizer;
use held::Held;
use pieces::Pieces;

/// How calls are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Calls {
    Hermes,
    QwenXml,
    Llama,
    Mistral {
        /// `name[ARGS]{...}` instead of a list.
        named: bool,
    },
    Gemma(gemma::Marks),
    Harmony,
}

/// A family's way of writing. Cheap to clone.
#[derive(Debug, Clone, PartialEq)]
pub struct Dialect {
    calls: Calls,
    thinking: Option<Thinking>,
    /// The template shows tools to the model.
    takes_tools: bool,
    /// The marks that are special tokens: left out of an answer's text unless asked for.
    special: BTreeMap<String, u32>,
}

/// What a parser must know of the request.
#[derive(Clone, Default)]
pub struct ParserOptions {
    /// The tools that the model may call; without any, what looks like a call is content.
    pub tools: Tools,
    /// Tell reasoning apart. Where not, its marks stay in the content.
    pub reasoning: bool,
    /// The last tokens of the prompt as text ([`Dialect::prompt_tail`]): it may have opened the reasoning.
    pub prompt_tail: String,
}

/// Reads one part of an answer.
trait Read: Send {
    /// Reads what can be read of `held`; with `end`, all of it.
    fn read(&mut self, held: &mut Held, end: bool, out: &mut Pieces);
}

/// Content and nothing else.
struct Plain;

impl Read for Plain {
    fn read(&mut self, held: &mut Held, _end: bool, out: &mut Pieces) {
        out.push(Piece::Content(held.take()));
    }
}

/// Reads one answer.
pub struct Parser {
    held: Held,
    split: thinking::Split,
    calls: Box<dyn Read>,
}

impl Dialect {
    /// The dialect of a kit's model.
    pub fn of(kit: &OpenKit) -> Self {
        Self::new(&kit.template_texts(), &kit.tokenizer)
    }

    /// The dialect of a model whose templates are `templates`.
    pub fn new(templates: &str, tokenizer: &Tokenizer) -> Self {
        let says = |text: &str| templates.contains(text);
        let (calls, known) = if says(harmony::CHANNEL) && says(harmony::MESSAGE) {
            (Calls::Harmony, true)
        } else if says(gemma::GEMMA_4.open) {
            (Calls::Gemma(gemma::GEMMA_4), true)
        } else if says(gemma::FUNCTION_GEMMA.open) {
            (Calls::Gemma(gemma::FUNCTION_GEMMA), true)
        } else if says(mistral::OPEN) || says("[AVAILABLE_TOOLS]") {
            (Calls::Mistral { named: says(mistral::ARGUMENTS) }, true)
        } else if says("<function=") && says("<parameter=") {
            (Calls::QwenXml, true)
        } else if says(hermes::OPEN) {
            (Calls::Hermes, true)
        } else if says(llama::TAG) || says("<|start_header_id|>") && says("tools") {
            (Calls::Llama, true)
        } else {
            (Calls::Hermes, false)
        };
        let has = |text: &str| says(text) || tokenizer.token_to_id(text).is_some();
        let thinking = match calls {
            Calls::Harmony => None,
            Calls::Gemma(_) if says("<|channel>") => Some(Thinking::of("<|channel>thought\n", "<channel|>")),
            Calls::Mistral { .. } if has("[THINK]") => Some(Thinking::of("[THINK]", "[/THINK]")),
            _ if has("<think>") && has("</think>") => Some(Thinking::of("<think>", "</think>")),
            _ => None,
        };
        let mut special = BTreeMap::new();
        for mark in marks(calls) {
            if let Some(id) = tokenizer.token_to_id(mark)
                && tokenizer.is_special(id)
            {
                special.insert(mark.to_owned(), id);
            }
        }
        // A template that lists no tools is given them in words, and taught the most common dialect.
        let takes_tools = known && says("tools");
        Self { calls, thinking, takes_tools, special }
    }

    /// How it is called, for people.
    pub fn name(&self) -> &'static str {
        match self.calls {
            Calls::Hermes if self.takes_tools => "hermes",
            Calls::Hermes => "generic",
            Calls::QwenXml => "qwen-xml",
            Calls::Llama => "llama",
            Calls::Mistral { .. } => "mistral",
            Calls::Gemma(_) => "gemma",
            Calls::Harmony => "harmony",
        }
    }

    /// How reasoning is marked, where the model reasons between marks.
    pub fn thinking(&self) -> Option<&Thinking> {
        self.thinking.as_ref()
    }

    /// Whether the parser needs the text of special tokens (`Ask::special_tokens`), with or without tools offered.
    pub fn needs_special_tokens(&self, tools: &Tools) -> bool {
        let reasons = |mark: &String| {
            self.thinking.as_ref().is_some_and(|thinking| {
                thinking.open.trim_end().starts_with(mark.as_str()) || thinking.close == *mark
            })
        };
        self.calls == Calls::Harmony
            || !self.special.is_empty() && (!tools.is_empty() || self.special.keys().any(reasons))
    }

    /// The end of a prompt as text, long enough to show what the template has opened.
    pub fn prompt_tail(tokenizer: &Tokenizer, prompt: &[u32]) -> String {
        tokenizer.decode(&prompt[prompt.len().saturating_sub(TAIL_TOKENS)..], false)
    }

    /// A reader for one answer.
    pub fn parser(&self, options: ParserOptions) -> Parser {
        let ParserOptions { tools, reasoning, prompt_tail } = options;
        let thinking = self.thinking.clone().filter(|_| reasoning);
        let calls: Box<dyn Read> = match self.calls {
            Calls::Harmony => Box::new(harmony::Harmony::new(&prompt_tail)),
            _ if tools.is_empty() => Box::new(Plain),
            Calls::Hermes => Box::new(hermes::Hermes::new()),
            Calls::QwenXml => Box::new(qwen_xml::QwenXml::new(tools)),
            Calls::Llama => Box::new(llama::Llama::new(&tools)),
            Calls::Mistral { .. } => Box::new(mistral::Mistral::new()),
            Calls::Gemma(marks) => Box::new(gemma::Gemma::new(marks)),
        };
        Parser { held: Held::default(), split: thinking::Split::new(thinking, &prompt_tail), calls }
    }
}

/// Tokens of a prompt's end that are looked at: templates open a reasoning, or close an empty one, with few.
const TAIL_TOKENS: usize = 24;

/// The marks of a dialect that may be special tokens.
fn marks(calls: Calls) -> Vec<&'static str> {
    let mut marks = vec!["<think>", "</think>"];
    match calls {
        Calls::Hermes | Calls::QwenXml => marks.extend([hermes::OPEN, hermes::CLOSE]),
        Calls::Llama => marks.push(llama::TAG),
        Calls::Mistral { .. } => {
            marks.extend([mistral::OPEN, mistral::ARGUMENTS, "[CALL_ID]", "[THINK]", "[/THINK]"]);
        }
        Calls::Gemma(of) => marks.extend([of.open, of.close, of.quote, "<|channel>", "<channel|>"]),
        Calls::Harmony => marks.extend([
            harmony::CHANNEL,
            harmony::MESSAGE,
            harmony::START,
            "<|end|>",
            "<|call|>",
            "<|return|>",
            "<|constrain|>",
        ]),
    }
    marks
}

impl Parser {
    /// The answer goes on with `text`.
    pub fn push(&mut self, text: &str, out: &mut Vec<Piece>) {
        self.held.push(text);
        self.read(false, out);
    }

    /// The answer ends: what was held back is told.
    pub fn finish(mut self, out: &mut Vec<Piece>) {
        self.read(true, out);
    }

    fn read(&mut self, end: bool, out: &mut Vec<Piece>) {
        let mut out = Pieces::new(out);
        if self.split.read(&mut self.held, end, &mut out) {
            self.calls.read(&mut self.held, end, &mut out);
        }
    }
}

#[cfg(test)]
mod tests;
