//! Telling text, reasoning and calls apart in what a model writes.

use std::sync::Arc;

use model::dialect::{Dialect, Parser, ParserOptions, Piece, Tools};
use serde_json::{Value, json};

use super::answer::Part;

/// How the answers of a call are read.
pub(super) enum Reading {
    /// All of it is text.
    Plain,
    /// As the model's family writes.
    Dialect(Arc<Dialect>, ParserOptions, Value),
}

impl Reading {
    /// As `dialect` writes; `offered` are the tools that may be called, as OpenAI lists them.
    pub(super) fn of(dialect: &Arc<Dialect>, offered: Value, prompt_tail: String) -> Self {
        let tools = Tools::from_openai(&offered);
        Self::Dialect(Arc::clone(dialect), ParserOptions { tools, reasoning: true, prompt_tail }, offered)
    }

    /// What [`Reading::of`] needs to read the same answer again.
    pub(super) fn kept(&self) -> Value {
        match self {
            Self::Plain => Value::Null,
            Self::Dialect(_, options, offered) => json!({"tools": offered, "tail": options.prompt_tail}),
        }
    }
}

/// Reads one answer.
pub(super) struct Reader {
    parser: Option<Parser>,
    pieces: Vec<Piece>,
    called: bool,
    reasoning_tokens: u32,
}

impl Reader {
    pub(super) fn new(reading: &Reading) -> Self {
        let parser = match reading {
            Reading::Plain => None,
            Reading::Dialect(dialect, options, _) => Some(dialect.parser(options.clone())),
        };
        Self { parser, pieces: Vec::new(), called: false, reasoning_tokens: 0 }
    }

    /// More text, of so many tokens.
    pub(super) fn push(&mut self, text: &str, tokens: u32) -> Vec<Part> {
        let Some(parser) = &mut self.parser else {
            return if text.is_empty() { Vec::new() } else { vec![Part::Content(text.to_owned())] };
        };
        parser.push(text, &mut self.pieces);
        let parts = self.parts();
        if parts.iter().any(|part| matches!(part, Part::Reasoning(_))) {
            self.reasoning_tokens += tokens;
        }
        parts
    }

    /// There is no more.
    pub(super) fn finish(&mut self) -> Vec<Part> {
        if let Some(parser) = self.parser.take() {
            parser.finish(&mut self.pieces);
        }
        self.parts()
    }

    fn parts(&mut self) -> Vec<Part> {
        let mut called = false;
        let part = |piece| match piece {
            Piece::Content(text) => Part::Content(text),
            Piece::Reasoning(text) => Part::Reasoning(text),
            Piece::ToolCall { index, name } => {
                called = true;
                Part::Call { index, name }
            }
            Piece::ToolArguments { index, text } => Part::Arguments { index, text },
            Piece::ToolEnd { index } => Part::CallEnd { index },
        };
        let parts = self.pieces.drain(..).map(part).collect();
        self.called |= called;
        parts
    }

    /// Whether there was a call.
    pub(super) fn called(&self) -> bool {
        self.called
    }

    /// Tokens of what the model thought. Those at its borders count as either.
    pub(super) fn reasoning_tokens(&self) -> u32 {
        self.reasoning_tokens
    }
}
