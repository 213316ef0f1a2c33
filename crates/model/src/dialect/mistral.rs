//! Calls after `[TOOL_CALLS]`: a JSON list (Mistral 7B v0.3 to Large 2407), or `name[ARGS]{...}` (since Small 3.2).

use super::held::{Held, Prose, Until};
use super::json_call::{JsonArguments, JsonCall, Progress, Strictness};
use super::{Piece, Pieces, Read};

pub(super) const OPEN: &str = "[TOOL_CALLS]";
pub(super) const ARGUMENTS: &str = "[ARGS]";
const ID: &str = "[CALL_ID]";
/// A name longer than this is none.
const NAME_BYTES_MAX: usize = 256;

enum At {
    Prose,
    Open,
    Name,
    /// After `[CALL_ID]`, up to the arguments.
    Id,
    Arguments(JsonArguments),
    /// Between a list's calls.
    List,
    Call(Box<JsonCall>),
}

pub(super) struct Mistral {
    at: At,
    prose: Prose,
    /// What was read of a call that is not told yet.
    raw: String,
    name: String,
    index: usize,
}

impl Mistral {
    pub(super) fn new() -> Self {
        let (raw, name) = (String::new(), String::new());
        Self { at: At::Prose, prose: Prose::default(), raw, name, index: 0 }
    }

    fn no_call(&mut self, rest: &str, out: &mut Pieces) {
        self.prose.no_call();
        self.prose.push(&std::mem::take(&mut self.raw), out);
        self.prose.push(rest, out);
        self.at = At::Prose;
    }

    fn tell(&mut self, out: &mut Pieces) {
        self.prose.call();
        self.raw.clear();
        out.push(Piece::ToolCall { index: self.index, name: self.name.trim().to_owned() });
        self.at = At::Arguments(JsonArguments::new());
    }

    fn step(&mut self, held: &mut Held, end: bool, out: &mut Pieces) -> bool {
        match &mut self.at {
            At::Prose => match held.until(&[OPEN], end) {
                Until::Found(_, text) => {
                    self.prose.push(&text, out);
                    self.raw = OPEN.to_owned();
                    self.at = At::Open;
                }
                Until::Open(text) => {
                    self.prose.push(&text, out);
                    return false;
                }
            },
            At::Open => match held.next() {
                None => return false,
                Some(letter) if letter.is_whitespace() => self.raw.push(letter),
                Some('[') => {
                    self.raw.push('[');
                    self.at = At::List;
                }
                Some('{') => self.begin_call(held),
                Some(letter) => {
                    held.unread(letter.encode_utf8(&mut [0; 4]));
                    self.name.clear();
                    self.at = At::Name;
                }
            },
            At::Name => return self.read_name(held, end, out),
            At::Id => match held.until(&[ARGUMENTS, "{"], end) {
                Until::Found(which, text) => {
                    self.raw.push_str(&text);
                    if which == 1 {
                        held.unread("{");
                    }
                    self.tell(out);
                }
                Until::Open(text) => {
                    self.raw.push_str(&text);
                    return false;
                }
            },
            At::Arguments(arguments) => {
                let Some(letter) = held.next() else { return false };
                let progress = arguments.push(self.index, letter, out);
                if progress != Progress::More {
                    if progress == Progress::Broken {
                        held.unread(letter.encode_utf8(&mut [0; 4]));
                    }
                    self.index += 1;
                    self.at = At::Prose;
                }
            }
            At::List => match held.next() {
                None => return false,
                Some(letter) if letter.is_whitespace() || letter == ',' => self.raw.push(letter),
                Some(']') if self.index > 0 => self.at = At::Prose,
                Some('{') => self.begin_call(held),
                Some(letter) => self.no_call(letter.encode_utf8(&mut [0; 4]), out),
            },
            At::Call(_) => return self.read_call(held, out),
        }
        true
    }

    fn begin_call(&mut self, held: &mut Held) {
        held.unread("{");
        self.at = At::Call(Box::new(JsonCall::new(self.index, Strictness::Marked)));
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
            Progress::Done => {
                self.raw.clear();
                self.at = At::List;
            }
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

    fn read_name(&mut self, held: &mut Held, end: bool, out: &mut Pieces) -> bool {
        let (text, found) = match held.until(&[ARGUMENTS, ID, "{"], end) {
            Until::Found(which, text) => (text, Some(which)),
            Until::Open(text) => (text, None),
        };
        let over = |(at, letter): (usize, char)| {
            (letter == '\n' || self.name.len() + at > NAME_BYTES_MAX).then_some(at)
        };
        if let Some(at) = text.char_indices().find_map(over) {
            if let Some(which) = found {
                held.unread([ARGUMENTS, ID, "{"][which]);
            }
            held.unread(&text[at..]);
            let name = std::mem::take(&mut self.name);
            self.no_call(&format!("{name}{}", &text[..at]), out);
            return true;
        }
        self.name.push_str(&text);
        match found {
            None => return false,
            Some(1) => {
                self.raw.push_str(&self.name);
                self.raw.push_str(ID);
                self.at = At::Id;
            }
            Some(which) => {
                if which == 2 {
                    held.unread("{");
                }
                self.tell(out);
            }
        }
        true
    }
}

impl Read for Mistral {
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
            At::Open | At::Id => self.no_call("", out),
            At::Name => {
                let name = std::mem::take(&mut self.name);
                self.no_call(&name, out);
            }
            At::Arguments(_) => out.push(Piece::ToolEnd { index: self.index }),
            At::List if self.index == 0 => self.no_call("", out),
            At::List | At::Prose => {}
        }
        self.prose.finish(out);
    }
}
