//! Calls as tags, `<tool_call><function=name><parameter=key>value</parameter></function></tool_call>` (Qwen 3 Coder,
//! Qwen 3.5): values are bare texts, and the tool's schema says what JSON they are.

use super::held::{Expected, Held, Prose, Until};
use super::json_text::{Types, escaped};
use super::{Piece, Pieces, Read, Tools};

const CALL: &str = "<tool_call>";
const FUNCTION: &str = "<function=";
const PARAMETER: &str = "<parameter=";
/// A name longer than this is none.
const NAME_BYTES_MAX: usize = 256;

enum At {
    Prose,
    /// After `<tool_call>`.
    Call,
    Function,
    Body,
    Parameter,
    Text(Text),
    Whole(Types),
    /// After `</function>`.
    Tail,
}

/// A text that is told as it comes, without the one newline on either side of it.
#[derive(Default)]
struct Text {
    begun: bool,
    newline: bool,
}

impl Text {
    fn push(&mut self, text: &str) -> String {
        let mut text = text;
        if text.is_empty() {
            return String::new();
        }
        if !self.begun {
            self.begun = true;
            text = text.strip_prefix('\n').unwrap_or(text);
        }
        let mut out = String::new();
        if text.is_empty() {
            return out;
        }
        if self.newline {
            out.push('\n');
        }
        let solid = text.strip_suffix('\n');
        self.newline = solid.is_some();
        out.push_str(solid.unwrap_or(text));
        escaped(&out)
    }
}

pub(super) struct QwenXml {
    tools: Tools,
    at: At,
    prose: Prose,
    /// What was read of a call that is not told yet, or of a value.
    raw: String,
    name: String,
    index: usize,
    parameters: usize,
}

impl QwenXml {
    pub(super) fn new(tools: Tools) -> Self {
        let (raw, name) = (String::new(), String::new());
        Self { tools, at: At::Prose, prose: Prose::default(), raw, name, index: 0, parameters: 0 }
    }

    fn arguments(&self, text: impl Into<String>, out: &mut Pieces) {
        out.push(Piece::ToolArguments { index: self.index, text: text.into() });
    }

    fn end_call(&mut self, out: &mut Pieces) {
        out.push(Piece::ToolEnd { index: self.index });
        self.index += 1;
    }

    fn no_call(&mut self, out: &mut Pieces) {
        self.prose.no_call();
        self.prose.push(&std::mem::take(&mut self.raw), out);
        self.at = At::Prose;
    }

    /// Reads a name up to `>`; it, once it is there. Gives up on what is no name.
    fn name(&mut self, held: &mut Held, end: bool) -> Option<Result<String, ()>> {
        let (text, found) = match held.until(&[">"], end) {
            Until::Found(_, text) => (text, true),
            Until::Open(text) => (text, false),
        };
        for (at, letter) in text.char_indices() {
            if letter == '\n' || self.raw.len() > NAME_BYTES_MAX {
                if found {
                    held.unread(">");
                }
                held.unread(&text[at..]);
                return Some(Err(()));
            }
            self.raw.push(letter);
        }
        found.then(|| {
            let name = self.raw.rsplit('=').next().unwrap_or_default().trim().to_owned();
            self.raw.push('>');
            if name.is_empty() { Err(()) } else { Ok(name) }
        })
    }

    fn begin_parameter(&mut self, name: &str, out: &mut Pieces) {
        let comma = if self.parameters > 0 { ", " } else { "" };
        self.parameters += 1;
        self.arguments(format!("{comma}\"{}\": ", escaped(name)), out);
        let types = self.tools.types(&self.name, name);
        self.raw.clear();
        self.at = if types.only_text() {
            self.arguments("\"", out);
            At::Text(Text::default())
        } else {
            At::Whole(types)
        };
    }

    /// One step; whether there is more to do with what is held.
    fn step(&mut self, held: &mut Held, end: bool, out: &mut Pieces) -> bool {
        match &mut self.at {
            At::Prose => match held.until(&[CALL, FUNCTION], end) {
                Until::Found(which, text) => {
                    self.prose.push(&text, out);
                    self.raw = [CALL, FUNCTION][which].to_owned();
                    self.at = if which == 0 { At::Call } else { At::Function };
                }
                Until::Open(text) => {
                    self.prose.push(&text, out);
                    return false;
                }
            },
            At::Call => {
                while held.as_str().starts_with(|letter: char| letter.is_whitespace()) {
                    self.raw.extend(held.next());
                }
                match held.expect(&[FUNCTION], end) {
                    Expected::Found(_) => {
                        self.raw.push_str(FUNCTION);
                        self.at = At::Function;
                    }
                    Expected::Unclear => return false,
                    Expected::No => self.no_call(out),
                }
            }
            At::Function => match self.name(held, end) {
                None => return false,
                Some(Err(())) => self.no_call(out),
                Some(Ok(name)) => self.begin_call(name, out),
            },
            At::Body => {
                held.trim();
                match held.expect(&[PARAMETER, "</function>"], end) {
                    Expected::Found(0) => {
                        self.raw = PARAMETER.to_owned();
                        self.at = At::Parameter;
                    }
                    Expected::Unclear => return false,
                    found => {
                        self.arguments("}", out);
                        self.end_call(out);
                        self.at = if found == Expected::No { At::Prose } else { At::Tail };
                    }
                }
            }
            At::Parameter => match self.name(held, end) {
                None => return false,
                Some(Ok(name)) => self.begin_parameter(&name, out),
                Some(Err(())) => {
                    self.arguments("}", out);
                    self.end_call(out);
                    self.no_call(out);
                }
            },
            At::Text(_) | At::Whole(_) => return self.value(held, end, out),
            At::Tail => {
                held.trim();
                match held.expect(&["</tool_call>", FUNCTION], end) {
                    Expected::Found(1) => {
                        self.raw = FUNCTION.to_owned();
                        self.at = At::Function;
                    }
                    Expected::Unclear => return false,
                    _ => self.at = At::Prose,
                }
            }
        }
        true
    }

    fn begin_call(&mut self, name: String, out: &mut Pieces) {
        self.prose.call();
        out.push(Piece::ToolCall { index: self.index, name: name.clone() });
        self.arguments("{", out);
        self.name = name;
        self.parameters = 0;
        self.raw.clear();
        self.at = At::Body;
    }

    fn value(&mut self, held: &mut Held, end: bool, out: &mut Pieces) -> bool {
        let (text, found) = match held.until(&["</parameter>"], end) {
            Until::Found(_, text) => (text, true),
            Until::Open(text) => (text, false),
        };
        let told = match &mut self.at {
            At::Text(of) => {
                let mut told = of.push(&text);
                if found {
                    told.push('"');
                }
                told
            }
            At::Whole(types) => {
                self.raw.push_str(&text);
                let bare = self.raw.strip_prefix('\n').unwrap_or(&self.raw);
                let bare = bare.strip_suffix('\n').unwrap_or(bare);
                if found { types.json(bare) } else { String::new() }
            }
            _ => unreachable!("only called within a value"),
        };
        self.arguments(told, out);
        if found {
            self.raw.clear();
            self.at = At::Body;
        }
        found
    }
}

impl Read for QwenXml {
    fn read(&mut self, held: &mut Held, end: bool, out: &mut Pieces) {
        while self.step(held, end, out) {}
        if !end {
            return;
        }
        match self.at {
            At::Prose | At::Tail => {}
            At::Call | At::Function => self.no_call(out),
            At::Whole(_) => {
                let raw = escaped(&std::mem::take(&mut self.raw));
                self.arguments(format!("\"{raw}"), out);
                self.end_call(out);
            }
            At::Body | At::Parameter | At::Text(_) => self.end_call(out),
        }
        self.prose.finish(out);
    }
}
