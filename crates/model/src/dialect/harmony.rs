//! The channels of gpt-oss: `<|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>...`.
//!
//! Source: <https://cookbook.openai.com/articles/openai-harmony>.

use super::held::{Expected, Held, Until};
use super::{Piece, Pieces, Read};

pub(super) const CHANNEL: &str = "<|channel|>";
pub(super) const MESSAGE: &str = "<|message|>";
pub(super) const START: &str = "<|start|>";
const ENDS: [&str; 4] = ["<|end|>", "<|call|>", "<|return|>", START];
/// A header longer than this is none.
const HEADER_BYTES_MAX: usize = 512;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Body {
    Content,
    Reasoning,
    Call,
}

enum At {
    /// Of the answer: the prompt ends with `<|start|>assistant`.
    Begin,
    /// Up to `<|message|>`.
    Header,
    Body(Body),
    /// After a message, up to `<|start|>`.
    Between,
}

pub(super) struct Harmony {
    at: At,
    /// What was read of a header.
    raw: String,
    index: usize,
}

impl Harmony {
    /// For a prompt that ends with `tail`: it may have opened a message already.
    pub(super) fn new(tail: &str) -> Self {
        let header = tail.rfind(START).map(|at| &tail[at + START.len()..]);
        let (at, raw) = match header {
            Some(header) => match header.split_once(MESSAGE) {
                Some((header, body)) if !ENDS.iter().any(|end| body.contains(end)) => {
                    let analysis = header.contains("analysis");
                    (At::Body(if analysis { Body::Reasoning } else { Body::Content }), "")
                }
                _ if header.contains(CHANNEL) => (At::Header, header),
                _ => (At::Begin, ""),
            },
            None => (At::Begin, ""),
        };
        Self { at, raw: raw.to_owned(), index: 0 }
    }

    fn step(&mut self, held: &mut Held, end: bool, out: &mut Pieces) -> bool {
        match self.at {
            At::Begin => match held.expect(&[CHANNEL, START, MESSAGE, " to="], end) {
                Expected::Unclear => return false,
                Expected::Found(0) => self.begin_header(CHANNEL),
                Expected::Found(1) => self.begin_header(""),
                Expected::Found(2) => self.at = At::Body(Body::Content),
                Expected::Found(_) => self.begin_header(" to="),
                Expected::No => self.at = At::Body(Body::Content),
            },
            At::Header => {
                let (text, found) = match held.until(&[MESSAGE], end) {
                    Until::Found(_, text) => (text, true),
                    Until::Open(text) => (text, false),
                };
                let room = HEADER_BYTES_MAX.saturating_sub(self.raw.len());
                if text.len() > room {
                    let cut = (room..=text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(text.len());
                    if found {
                        held.unread(MESSAGE);
                    }
                    held.unread(&text[cut..]);
                    self.raw.push_str(&text[..cut]);
                    out.push(Piece::Content(std::mem::take(&mut self.raw)));
                    self.at = At::Body(Body::Content);
                    return true;
                }
                self.raw.push_str(&text);
                if !found {
                    return false;
                }
                self.open_message(out);
            }
            At::Body(body) => {
                let (text, found) = match held.until(&ENDS, end) {
                    Until::Found(which, text) => (text, Some(which)),
                    Until::Open(text) => (text, None),
                };
                out.push(match body {
                    Body::Content => Piece::Content(text),
                    Body::Reasoning => Piece::Reasoning(text),
                    Body::Call => Piece::ToolArguments { index: self.index, text },
                });
                let Some(which) = found else { return false };
                if body == Body::Call {
                    self.end_call(out);
                }
                if ENDS[which] == START {
                    self.begin_header("");
                } else {
                    self.at = At::Between;
                }
            }
            At::Between => {
                held.trim();
                match held.expect(&[START, CHANNEL], end) {
                    Expected::Unclear => return false,
                    Expected::Found(0) => self.begin_header(""),
                    Expected::Found(_) => self.begin_header(CHANNEL),
                    Expected::No => self.at = At::Body(Body::Content),
                }
            }
        }
        true
    }

    fn begin_header(&mut self, raw: &str) {
        self.raw = raw.to_owned();
        self.at = At::Header;
    }

    /// A header is complete: `role to=recipient<|channel|>channel to=recipient <|constrain|>json`.
    fn open_message(&mut self, out: &mut Pieces) {
        let header = std::mem::take(&mut self.raw);
        let word = |text: &str| {
            let text = text.trim_start();
            text[..text.find(|c: char| c.is_whitespace() || c == '<').unwrap_or(text.len())].to_owned()
        };
        let recipient = header.split_once("to=").map(|(_, rest)| word(rest));
        let channel = header.split_once(CHANNEL).map(|(_, rest)| word(rest)).unwrap_or_default();
        let body = match recipient {
            Some(recipient) if !recipient.is_empty() && recipient != "assistant" => {
                let name = recipient.strip_prefix("functions.").unwrap_or(&recipient).to_owned();
                out.push(Piece::ToolCall { index: self.index, name });
                Body::Call
            }
            _ if channel == "analysis" => Body::Reasoning,
            _ => Body::Content,
        };
        self.at = At::Body(body);
    }

    fn end_call(&mut self, out: &mut Pieces) {
        out.push(Piece::ToolEnd { index: self.index });
        self.index += 1;
    }
}

impl Read for Harmony {
    fn read(&mut self, held: &mut Held, end: bool, out: &mut Pieces) {
        while self.step(held, end, out) {}
        if end {
            match self.at {
                At::Header => out.push(Piece::Content(std::mem::take(&mut self.raw))),
                At::Body(Body::Call) => self.end_call(out),
                _ => {}
            }
        }
    }
}
