//! Calls as the whole of an answer: `{"name": ..., "parameters": {...}}`, with or without `<|python_tag|>` (Llama 3.x).

use super::held::{Expected, Held, Prose, Until};
use super::json_call::{JsonCall, Progress, Strictness};
use super::{Pieces, Read, Tools};

pub(super) const TAG: &str = "<|python_tag|>";

enum At {
    /// Of the answer, or after a separator.
    Begin,
    /// After the tag.
    Tagged,
    Call(Box<JsonCall>),
    /// After a call.
    Tail,
    Prose,
}

pub(super) struct Llama {
    names: Vec<String>,
    at: At,
    prose: Prose,
    /// What was read of a call that is not told yet.
    raw: String,
    index: usize,
}

impl Llama {
    pub(super) fn new(tools: &Tools) -> Self {
        Self { names: tools.names(), at: At::Begin, prose: Prose::default(), raw: String::new(), index: 0 }
    }

    fn begin(&mut self, strictness: Strictness) {
        self.at = At::Call(Box::new(JsonCall::new(self.index, strictness)));
    }

    fn no_call(&mut self, rest: &str, out: &mut Pieces) {
        self.prose.no_call();
        self.prose.push(&std::mem::take(&mut self.raw), out);
        self.prose.push(rest, out);
        self.at = At::Prose;
    }

    fn step(&mut self, held: &mut Held, end: bool, out: &mut Pieces) -> bool {
        while matches!(self.at, At::Begin | At::Tagged)
            && held.as_str().starts_with(|letter: char| letter.is_whitespace())
        {
            self.raw.extend(held.next());
        }
        match &mut self.at {
            At::Begin => match held.expect(&[TAG], end) {
                Expected::Found(_) => {
                    self.raw.push_str(TAG);
                    self.at = At::Tagged;
                }
                Expected::Unclear => return false,
                Expected::No if held.as_str().starts_with('{') => {
                    self.begin(Strictness::Unmarked(self.names.clone()));
                }
                Expected::No => self.no_call("", out),
            },
            At::Tagged => match held.expect(&["{"], end) {
                Expected::Unclear => return false,
                Expected::Found(_) => {
                    held.unread("{");
                    self.begin(Strictness::Marked);
                }
                Expected::No => self.no_call("", out),
            },
            At::Call(_) => return self.read_call(held, out),
            At::Tail => {
                held.trim();
                match held.expect(&[";", TAG, "{"], end) {
                    Expected::Unclear => return false,
                    Expected::Found(0) => self.at = At::Begin,
                    Expected::Found(1) => {
                        self.raw = TAG.to_owned();
                        self.at = At::Tagged;
                    }
                    Expected::Found(_) => {
                        held.unread("{");
                        self.begin(Strictness::Unmarked(self.names.clone()));
                    }
                    Expected::No => self.at = At::Prose,
                }
            }
            At::Prose => match held.until(&[TAG], end) {
                Until::Found(_, text) => {
                    self.prose.push(&text, out);
                    self.raw = TAG.to_owned();
                    self.at = At::Tagged;
                }
                Until::Open(text) => {
                    self.prose.push(&text, out);
                    return false;
                }
            },
        }
        true
    }

    fn read_call(&mut self, held: &mut Held, out: &mut Pieces) -> bool {
        let At::Call(call) = &mut self.at else { return true };
        let Some(letter) = held.next() else { return false };
        let told = call.told();
        let progress = call.push(letter, out);
        if call.told() && !told {
            self.index += 1;
            self.raw.clear();
            self.prose.call();
        }
        match progress {
            Progress::More => {}
            Progress::Done => self.at = At::Tail,
            Progress::NoCall => {
                let raw = call.raw();
                self.no_call(&raw, out);
            }
            Progress::Broken => {
                held.unread(letter.encode_utf8(&mut [0; 4]));
                self.at = At::Prose;
            }
        }
        true
    }
}

impl Read for Llama {
    fn read(&mut self, held: &mut Held, end: bool, out: &mut Pieces) {
        while self.step(held, end, out) {}
        if !end {
            return;
        }
        match &mut self.at {
            At::Call(call) if call.told() => call.cut(out),
            At::Call(call) => {
                let raw = call.raw();
                self.no_call(&raw, out);
            }
            At::Begin | At::Tagged => self.no_call("", out),
            At::Tail | At::Prose => {}
        }
        self.prose.finish(out);
    }
}
