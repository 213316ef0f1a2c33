//! Reasoning apart from the answer: what stands between a model's thinking marks.

use super::held::{Held, Until};
use super::{Piece, Pieces};

/// How a model marks its reasoning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thinking {
    /// Comes before it.
    pub open: String,
    /// Comes after it.
    pub close: String,
}

impl Thinking {
    pub(super) fn of(open: &str, close: &str) -> Self {
        Self { open: open.to_owned(), close: close.to_owned() }
    }

    /// Whether a prompt that ends with `tail` has opened the reasoning already.
    pub fn opened_in(&self, tail: &str) -> bool {
        let Some(at) = tail.rfind(self.open.trim_end()) else { return false };
        !tail[at..].contains(self.close.trim())
    }

    /// Whether a prompt that ends with `tail` holds a reasoning that is over, so that none comes.
    pub fn closed_in(&self, tail: &str) -> bool {
        tail.trim_end().ends_with(self.close.trim())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    /// The answer may begin with reasoning.
    Begin,
    /// White space after the opening mark.
    Lead,
    Inside,
    /// White space after the closing mark.
    Tail,
    Over,
}

/// Takes the reasoning off an answer's begin.
pub(super) struct Split {
    thinking: Option<Thinking>,
    at: At,
    /// White space that is none of the reasoning's if the reasoning ends with it.
    white: String,
}

impl Split {
    pub(super) fn new(thinking: Option<Thinking>, tail: &str) -> Self {
        let at = match &thinking {
            None => At::Over,
            Some(thinking) if thinking.opened_in(tail) => At::Lead,
            Some(thinking) if thinking.closed_in(tail) => At::Over,
            Some(_) => At::Begin,
        };
        Self { thinking, at, white: String::new() }
    }

    /// Reads from `held` what is reasoning; true once all that is left is none.
    pub(super) fn read(&mut self, held: &mut Held, end: bool, out: &mut Pieces) -> bool {
        let Some(thinking) = &self.thinking else { return true };
        loop {
            match self.at {
                At::Over => return true,
                At::Begin => {
                    let white = held.as_str().len() - held.as_str().trim_start().len();
                    let open = thinking.open.trim_end();
                    let rest = &held.as_str()[white..];
                    if rest.starts_with(open) {
                        held.take_first(white + open.len());
                        self.at = At::Lead;
                    } else if !end && open.starts_with(rest) {
                        return false;
                    } else {
                        self.at = At::Over;
                    }
                }
                At::Lead | At::Tail => {
                    held.trim();
                    if held.is_empty() {
                        return false;
                    }
                    self.at = if self.at == At::Lead { At::Inside } else { At::Over };
                }
                At::Inside => {
                    let (text, over) = match held.until(&[&thinking.close], end) {
                        Until::Found(_, text) => (text, true),
                        Until::Open(text) => (text, false),
                    };
                    let solid = text.trim_end().len();
                    if solid > 0 {
                        out.push(Piece::Reasoning(std::mem::take(&mut self.white)));
                        out.push(Piece::Reasoning(text[..solid].to_owned()));
                    }
                    self.white.push_str(&text[solid..]);
                    if !over {
                        if end {
                            out.push(Piece::Reasoning(std::mem::take(&mut self.white)));
                        }
                        return false;
                    }
                    self.white.clear();
                    self.at = At::Tail;
                }
            }
        }
    }
}
