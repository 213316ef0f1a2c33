//! A call written as a JSON object, `{"name": ..., "arguments": {...}}`, read letter by letter.

use super::{Piece, Pieces};

/// How strictly an object must look like a call to be one.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Strictness {
    /// A mark said that a call comes.
    Marked,
    /// Nothing did: only an object with a call's keys and one of these names is one.
    Unmarked(Vec<String>),
}

/// How reading goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// More of the object must come.
    More,
    /// The object ended with this letter.
    Done,
    /// This is no call. Nothing was told: all that was read is [`JsonCall::raw`].
    NoCall,
    /// The call was told, but broke off before this letter.
    Broken,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Open,
    KeyOrEnd,
    Key,
    Colon,
    Value,
    CommaOrEnd,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Slot {
    Name,
    Arguments,
    Other,
}

/// Reads one object.
pub(super) struct JsonCall {
    index: usize,
    strictness: Strictness,
    at: At,
    key: String,
    /// The name, as JSON.
    spelled: String,
    name: Option<String>,
    value: Option<Value>,
    /// Arguments that came before the name.
    early: String,
    /// Everything read, until the call is told.
    raw: String,
    told: bool,
    has_arguments: bool,
}

impl JsonCall {
    pub(super) fn new(index: usize, strictness: Strictness) -> Self {
        Self {
            index,
            strictness,
            at: At::Open,
            key: String::new(),
            spelled: String::new(),
            name: None,
            value: None,
            early: String::new(),
            raw: String::new(),
            told: false,
            has_arguments: false,
        }
    }

    /// Whether the call's name was told.
    pub(super) fn told(&self) -> bool {
        self.told
    }

    /// What was read, where nothing was told.
    pub(super) fn raw(&mut self) -> String {
        std::mem::take(&mut self.raw)
    }

    /// The answer ends here: what was told of the call is all of it.
    pub(super) fn cut(&mut self, out: &mut Pieces) {
        let text = std::mem::take(&mut self.early);
        out.push(Piece::ToolArguments { index: self.index, text });
        out.push(Piece::ToolEnd { index: self.index });
    }

    /// Reads a letter.
    pub(super) fn push(&mut self, letter: char, out: &mut Pieces) -> Progress {
        if !self.told {
            self.raw.push(letter);
        }
        let progress = self.read(letter, out);
        match progress {
            Progress::NoCall if self.told => {
                out.push(Piece::ToolEnd { index: self.index });
                Progress::Broken
            }
            other => other,
        }
    }

    fn read(&mut self, letter: char, out: &mut Pieces) -> Progress {
        if let Some(value) = &mut self.value {
            match value.push(letter) {
                Read::Inside => self.pass(letter, out),
                Read::Last => {
                    self.pass(letter, out);
                    return self.end_of_value(out);
                }
                Read::Over => {
                    let progress = self.end_of_value(out);
                    return if progress == Progress::More { self.read(letter, out) } else { progress };
                }
                Read::Bad => return Progress::NoCall,
            }
            return Progress::More;
        }
        if self.at == At::Key {
            // Keys with escapes are none of a call's.
            match letter {
                '"' => return self.end_of_key(),
                '\\' | '\n' => return Progress::NoCall,
                _ => self.key.push(letter),
            }
            return if self.key.len() > 64 { Progress::NoCall } else { Progress::More };
        }
        if letter.is_ascii_whitespace() {
            return Progress::More;
        }
        match (self.at, letter) {
            (At::Open, '{') => self.at = At::KeyOrEnd,
            (At::KeyOrEnd, '"') => {
                self.key.clear();
                self.at = At::Key;
            }
            (At::KeyOrEnd | At::CommaOrEnd, '}') => return self.end_of_object(out),
            (At::Colon, ':') => self.at = At::Value,
            (At::Value, _) => return self.begin_value(letter, out),
            (At::CommaOrEnd, ',') => self.at = At::KeyOrEnd,
            _ => return Progress::NoCall,
        }
        Progress::More
    }

    fn slot(&self) -> Slot {
        match self.key.as_str() {
            "name" => Slot::Name,
            "arguments" | "parameters" => Slot::Arguments,
            _ => Slot::Other,
        }
    }

    fn end_of_key(&mut self) -> Progress {
        self.at = At::Colon;
        let known = matches!(self.key.as_str(), "name" | "arguments" | "parameters" | "type" | "id");
        if !known && matches!(self.strictness, Strictness::Unmarked(_)) {
            return Progress::NoCall;
        }
        Progress::More
    }

    fn begin_value(&mut self, letter: char, out: &mut Pieces) -> Progress {
        let Some(value) = Value::new(letter) else { return Progress::NoCall };
        let fits = match self.slot() {
            Slot::Name => self.name.is_none() && letter == '"',
            Slot::Arguments => !self.has_arguments && matches!(letter, '{' | '"' | 'n'),
            Slot::Other => true,
        };
        if !fits {
            return Progress::NoCall;
        }
        self.value = Some(value);
        if self.slot() == Slot::Arguments {
            self.has_arguments = true;
            if self.name.is_some() && !self.tell(out) {
                return Progress::NoCall;
            }
        }
        self.pass(letter, out);
        Progress::More
    }

    /// A letter of the value that is being read.
    fn pass(&mut self, letter: char, out: &mut Pieces) {
        let value = self.value.as_mut().expect("a value is being read");
        let whole = value.text || value.scalar;
        match self.slot() {
            Slot::Arguments if self.told && !whole => {
                out.arguments(self.index, letter);
            }
            Slot::Arguments => self.early.push(letter),
            Slot::Name => self.spelled.push(letter),
            Slot::Other => {}
        }
    }

    fn end_of_value(&mut self, out: &mut Pieces) -> Progress {
        let slot = self.slot();
        self.at = At::CommaOrEnd;
        let value = self.value.take().expect("a value is being read");
        match slot {
            Slot::Other => {}
            Slot::Name => {
                let Ok(name) = serde_json::from_str::<String>(&self.spelled) else { return Progress::NoCall };
                if name.is_empty() {
                    return Progress::NoCall;
                }
                self.name = Some(name);
                if self.has_arguments {
                    if !self.tell(out) {
                        return Progress::NoCall;
                    }
                    self.tell_early(out);
                }
            }
            Slot::Arguments if self.told && (value.text || value.scalar) => self.tell_early(out),
            Slot::Arguments => {}
        }
        Progress::More
    }

    /// Arguments that could not be told letter by letter; a text that spells them counts as what it spells, and
    /// null as none.
    fn tell_early(&mut self, out: &mut Pieces) {
        let early = std::mem::take(&mut self.early);
        let text = match early.as_bytes().first() {
            Some(b'"') => serde_json::from_str(&early).unwrap_or(early),
            Some(b'n') => "{}".to_owned(),
            _ => early,
        };
        out.push(Piece::ToolArguments { index: self.index, text });
    }

    fn end_of_object(&mut self, out: &mut Pieces) -> Progress {
        if !self.told {
            let unmarked = matches!(self.strictness, Strictness::Unmarked(_));
            if self.name.is_none() || unmarked && !self.has_arguments || !self.tell(out) {
                return Progress::NoCall;
            }
        }
        if !self.has_arguments {
            out.push(Piece::ToolArguments { index: self.index, text: "{}".to_owned() });
        }
        out.push(Piece::ToolEnd { index: self.index });
        Progress::Done
    }

    /// Tells the name; false where it is no tool's.
    fn tell(&mut self, out: &mut Pieces) -> bool {
        let name = self.name.clone().expect("the caller looked");
        if let Strictness::Unmarked(names) = &self.strictness
            && !names.contains(&name)
        {
            return false;
        }
        self.raw = String::new();
        self.told = true;
        out.push(Piece::ToolCall { index: self.index, name });
        true
    }
}

enum Read {
    Inside,
    /// The value ends with this letter.
    Last,
    /// It ended before this letter.
    Over,
    Bad,
}

/// Where a JSON value ends: its brackets and texts are followed, its scalars are not judged.
pub(super) struct Value {
    brackets: Vec<char>,
    in_text: bool,
    escaped: bool,
    /// It is a text itself.
    text: bool,
    scalar: bool,
}

/// Brackets within brackets at most: a model that opens more is lost.
const DEPTH_MAX: usize = 256;

impl Value {
    fn new(first: char) -> Option<Self> {
        let scalar = matches!(first, 't' | 'f' | 'n' | '-' | '0'..='9');
        let text = first == '"';
        let brackets = match first {
            '{' => vec!['}'],
            '[' => vec![']'],
            _ if scalar || text => Vec::new(),
            _ => return None,
        };
        Some(Self { brackets, in_text: text, escaped: false, text, scalar })
    }

    fn push(&mut self, letter: char) -> Read {
        if self.in_text {
            match letter {
                _ if self.escaped => self.escaped = false,
                '\\' => self.escaped = true,
                '"' => {
                    self.in_text = false;
                    if self.brackets.is_empty() {
                        return Read::Last;
                    }
                }
                _ => {}
            }
            return Read::Inside;
        }
        if self.scalar {
            let over = matches!(letter, ',' | '}' | ']') || letter.is_ascii_whitespace();
            return if over { Read::Over } else { Read::Inside };
        }
        match letter {
            '"' => self.in_text = true,
            '{' => self.brackets.push('}'),
            '[' => self.brackets.push(']'),
            '}' | ']' if self.brackets.pop() != Some(letter) => return Read::Bad,
            '}' | ']' if self.brackets.is_empty() => return Read::Last,
            _ => {}
        }
        if self.brackets.len() > DEPTH_MAX { Read::Bad } else { Read::Inside }
    }
}

/// A JSON value that is an argument list by itself, read letter by letter.
pub(super) struct JsonArguments {
    value: Option<Value>,
}

impl JsonArguments {
    pub(super) fn new() -> Self {
        Self { value: None }
    }

    /// Reads a letter of call `index`'s arguments.
    pub(super) fn push(&mut self, index: usize, letter: char, out: &mut Pieces) -> Progress {
        let read = match &mut self.value {
            Some(value) => value.push(letter),
            None if letter.is_ascii_whitespace() => return Progress::More,
            None if letter == '{' => {
                self.value = Value::new(letter);
                Read::Inside
            }
            None => Read::Bad,
        };
        match read {
            Read::Inside => out.arguments(index, letter),
            Read::Last => {
                out.arguments(index, letter);
                out.push(Piece::ToolEnd { index });
                return Progress::Done;
            }
            Read::Over | Read::Bad => {
                out.push(Piece::ToolEnd { index });
                return Progress::Broken;
            }
        }
        Progress::More
    }
}
