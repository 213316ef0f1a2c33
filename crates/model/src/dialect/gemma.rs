//! Calls in Gemma's own notation: `<|tool_call>call:name{key:<|"|>text<|"|>,count:1}<tool_call|>` (Gemma 4), and the
//! same between other marks (FunctionGemma). Arguments are translated to JSON as they come.
//!
//! Source: <https://ai.google.dev/gemma/docs/core/prompt-formatting-gemma4>.

use super::held::{Expected, Held, Prose, Until};
use super::json_text::escaped;
use super::{Piece, Pieces, Read};

/// The marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Marks {
    pub(super) open: &'static str,
    pub(super) close: &'static str,
    pub(super) quote: &'static str,
}

pub(super) const GEMMA_4: Marks = Marks { open: "<|tool_call>", close: "<tool_call|>", quote: "<|\"|>" };
pub(super) const FUNCTION_GEMMA: Marks =
    Marks { open: "<start_function_call>", close: "<end_function_call>", quote: "<escape>" };

const CALL: &str = "call:";
/// A name longer than this is none.
const NAME_BYTES_MAX: usize = 256;
/// Brackets within brackets at most.
const DEPTH_MAX: usize = 256;

enum At {
    Prose,
    /// After the opening mark.
    Open,
    Name,
    /// Between words and brackets of the arguments; the word so far.
    Arguments(String),
    Text,
    /// After the arguments.
    Tail,
}

pub(super) struct Gemma {
    marks: Marks,
    at: At,
    prose: Prose,
    raw: String,
    index: usize,
    brackets: Vec<char>,
}

impl Gemma {
    pub(super) fn new(marks: Marks) -> Self {
        let (raw, brackets) = (String::new(), Vec::new());
        Self { marks, at: At::Prose, prose: Prose::default(), raw, index: 0, brackets }
    }

    fn no_call(&mut self, out: &mut Pieces) {
        self.prose.no_call();
        self.prose.push(&std::mem::take(&mut self.raw), out);
        self.at = At::Prose;
    }

    fn arguments(&self, text: impl Into<String>, out: &mut Pieces) {
        out.push(Piece::ToolArguments { index: self.index, text: text.into() });
    }

    fn end_call(&mut self, out: &mut Pieces) {
        out.push(Piece::ToolEnd { index: self.index });
        self.index += 1;
        self.brackets.clear();
    }

    fn step(&mut self, held: &mut Held, end: bool, out: &mut Pieces) -> bool {
        match &mut self.at {
            At::Prose => match held.until(&[self.marks.open], end) {
                Until::Found(_, text) => {
                    self.prose.push(&text, out);
                    self.raw = self.marks.open.to_owned();
                    self.at = At::Open;
                }
                Until::Open(text) => {
                    self.prose.push(&text, out);
                    return false;
                }
            },
            At::Open => match held.expect(&[CALL], end) {
                Expected::Found(_) => {
                    self.raw.push_str(CALL);
                    self.at = At::Name;
                }
                Expected::Unclear => return false,
                Expected::No => self.no_call(out),
            },
            At::Name => match held.next() {
                None => return false,
                Some('{') => {
                    let name = self.raw[self.marks.open.len() + CALL.len()..].trim().to_owned();
                    self.raw.clear();
                    self.prose.call();
                    out.push(Piece::ToolCall { index: self.index, name });
                    self.arguments("{", out);
                    self.brackets = vec!['}'];
                    self.at = At::Arguments(String::new());
                }
                Some(letter) => {
                    self.raw.push(letter);
                    if self.raw.len() > NAME_BYTES_MAX || matches!(letter, '\n' | '<' | '}') {
                        self.no_call(out);
                    }
                }
            },
            At::Arguments(_) => return self.read_arguments(held, end, out),
            At::Text => {
                let (text, found) = match held.until(&[self.marks.quote], end) {
                    Until::Found(_, text) => (text, true),
                    Until::Open(text) => (text, false),
                };
                self.arguments(escaped(&text), out);
                if !found {
                    return false;
                }
                self.arguments("\"", out);
                self.at = At::Arguments(String::new());
            }
            At::Tail => {
                held.trim();
                match held.expect(&[self.marks.close, CALL], end) {
                    Expected::Unclear => return false,
                    Expected::Found(1) => {
                        self.raw = format!("{}{CALL}", self.marks.open);
                        self.at = At::Name;
                    }
                    _ => self.at = At::Prose,
                }
            }
        }
        true
    }

    fn read_arguments(&mut self, held: &mut Held, end: bool, out: &mut Pieces) -> bool {
        match held.expect(&[self.marks.quote], end) {
            Expected::Found(_) => {
                self.word(out, false);
                self.arguments("\"", out);
                self.at = At::Text;
                return true;
            }
            Expected::Unclear => return false,
            Expected::No => {}
        }
        let Some(letter) = held.next() else { return false };
        match letter {
            ':' => {
                self.word(out, true);
                self.arguments(": ", out);
            }
            ',' => {
                self.word(out, false);
                self.arguments(", ", out);
            }
            '{' | '[' => {
                self.word(out, false);
                self.brackets.push(if letter == '{' { '}' } else { ']' });
                self.arguments(letter, out);
                if self.brackets.len() > DEPTH_MAX {
                    self.end_call(out);
                    self.at = At::Prose;
                }
            }
            '}' | ']' => {
                self.word(out, false);
                if self.brackets.pop() != Some(letter) {
                    held.unread(letter.encode_utf8(&mut [0; 4]));
                    self.end_call(out);
                    self.at = At::Prose;
                    return true;
                }
                self.arguments(letter, out);
                if self.brackets.is_empty() {
                    self.end_call(out);
                    self.at = At::Tail;
                }
            }
            _ => {
                if let At::Arguments(word) = &mut self.at {
                    word.push(letter);
                }
            }
        }
        true
    }

    /// Tells the word that ends here: a key, a number or the like as it is, and anything else as a text.
    fn word(&mut self, out: &mut Pieces, key: bool) {
        let At::Arguments(word) = &mut self.at else { return };
        let word = std::mem::take(word);
        let word = word.trim();
        if word.is_empty() {
            return;
        }
        let json =
            serde_json::from_str::<serde_json::Value>(word).is_ok_and(|value| !key || value.is_string());
        let text = if json { word.to_owned() } else { format!("\"{}\"", escaped(word)) };
        self.arguments(text, out);
    }
}

impl Read for Gemma {
    fn read(&mut self, held: &mut Held, end: bool, out: &mut Pieces) {
        while self.step(held, end, out) {}
        if !end {
            return;
        }
        match &self.at {
            At::Open | At::Name => self.no_call(out),
            At::Arguments(_) => {
                self.word(out, false);
                self.end_call(out);
            }
            At::Text => self.end_call(out),
            At::Prose | At::Tail => {}
        }
        self.prose.finish(out);
    }
}
