//! Calls as JSON between marks: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` (Hermes, Qwen 2.5, Qwen 3).

use super::held::{Expected, Held, Prose, Until};
use super::json_call::{JsonCall, Progress, Strictness};
use super::{Pieces, Read};

pub(super) const OPEN: &str = "<tool_call>";
pub(super) const CLOSE: &str = "</tool_call>";

enum At {
    Prose,
    Call(Box<JsonCall>),
    /// After a call's object.
    Tail,
}

pub(super) struct Hermes {
    at: At,
    prose: Prose,
    index: usize,
}

impl Hermes {
    pub(super) fn new() -> Self {
        Self { at: At::Prose, prose: Prose::default(), index: 0 }
    }
}

impl Read for Hermes {
    fn read(&mut self, held: &mut Held, end: bool, out: &mut Pieces) {
        loop {
            match &mut self.at {
                At::Prose => match held.until(&[OPEN], end) {
                    Until::Found(_, text) => {
                        self.prose.push(&text, out);
                        self.at = At::Call(Box::new(JsonCall::new(self.index, Strictness::Marked)));
                    }
                    Until::Open(text) => {
                        self.prose.push(&text, out);
                        break;
                    }
                },
                At::Call(call) => {
                    let Some(letter) = held.next() else { break };
                    let told = call.told();
                    let progress = call.push(letter, out);
                    if call.told() && !told {
                        self.index += 1;
                        self.prose.call();
                    }
                    match progress {
                        Progress::More => {}
                        Progress::Done => self.at = At::Tail,
                        Progress::NoCall => {
                            self.prose.no_call();
                            self.prose.push(OPEN, out);
                            held.unread(&call.raw());
                            self.at = At::Prose;
                        }
                        Progress::Broken => {
                            held.unread(letter.encode_utf8(&mut [0; 4]));
                            self.at = At::Prose;
                        }
                    }
                }
                At::Tail => {
                    held.trim();
                    match held.expect(&[CLOSE, "{"], end) {
                        Expected::Found(0) | Expected::No => self.at = At::Prose,
                        Expected::Found(_) => {
                            let mut call = JsonCall::new(self.index, Strictness::Marked);
                            call.push('{', out);
                            self.at = At::Call(Box::new(call));
                        }
                        Expected::Unclear => break,
                    }
                }
            }
        }
        if end {
            match &mut self.at {
                At::Call(call) if call.told() => call.cut(out),
                At::Call(call) => {
                    self.prose.no_call();
                    self.prose.push(OPEN, out);
                    self.prose.push(&call.raw(), out);
                }
                _ => {}
            }
            self.prose.finish(out);
        }
    }
}
