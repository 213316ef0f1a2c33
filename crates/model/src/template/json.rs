//! JSON as Python's `json.dumps` writes it: models were trained on its exact spaces and numbers.

use std::fmt::Write;

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

/// How to write.
pub(super) struct Style {
    /// Spaces per level, each item on its own line.
    pub(super) indent: Option<usize>,
    /// Only ASCII, the rest as `\uXXXX`.
    pub(super) ascii: bool,
    /// Keys in order.
    pub(super) sorted: bool,
    /// Between items, and between key and value.
    pub(super) separators: Option<[String; 2]>,
}

/// Values nest at most so deep; what clients send is limited by its own parser before.
const DEPTH_MAX: usize = 128;

pub(super) fn to_json(value: &Value, style: &Style) -> Result<String, Error> {
    let (item, key) = match &style.separators {
        Some([item, key]) => (item.as_str(), key.as_str()),
        None if style.indent.is_some() => (",", ": "),
        None => (", ", ": "),
    };
    let mut writer = Writer { out: String::new(), style, item, key };
    writer.value(value, 0)?;
    Ok(writer.out)
}

struct Writer<'a> {
    out: String,
    style: &'a Style,
    item: &'a str,
    key: &'a str,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEPTH_MAX {
            return Err(Error::new(ErrorKind::BadSerialization, "a value nests too deep for JSON"));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.number(value),
            ValueKind::String => self.text(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.list('[', ']', items.len(), depth, |this, place| this.value(&items[place], depth + 1))?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.style.sorted {
                    keys.sort();
                }
                self.list('{', '}', keys.len(), depth, |this, place| {
                    match keys[place].as_str() {
                        Some(text) => this.text(text),
                        None => this.text(&scalar_key(&keys[place])),
                    }
                    this.out.push_str(this.key);
                    this.value(&value.get_item(&keys[place])?, depth + 1)
                })?;
            }
            kind => return Err(Error::new(ErrorKind::BadSerialization, format!("{kind} is no JSON"))),
        }
        Ok(())
    }

    fn list(
        &mut self,
        open: char,
        close: char,
        len: usize,
        depth: usize,
        mut item: impl FnMut(&mut Self, usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for place in 0..len {
            if place > 0 {
                self.out.push_str(self.item);
            }
            self.line(depth + 1);
            item(self, place)?;
        }
        if len > 0 {
            self.line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = self.style.indent {
            self.out.push('\n');
            // Python's indent is any number; more than 16 a level is none that a template means.
            self.out.extend(std::iter::repeat_n(' ', indent.min(16) * depth));
        }
    }

    fn number(&mut self, value: &Value) {
        if value.is_integer() {
            let _ = write!(self.out, "{value}");
        } else {
            self.out.push_str(&float(f64::try_from(value.clone()).unwrap_or(f64::NAN)));
        }
    }

    fn text(&mut self, text: &str) {
        self.out.push('"');
        for letter in text.chars() {
            match letter {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                '\0'..='\u{1f}' => self.escape(letter),
                '\u{7f}'.. if self.style.ascii && letter > '\u{7e}' => self.escape(letter),
                _ => self.out.push(letter),
            }
        }
        self.out.push('"');
    }

    fn escape(&mut self, letter: char) {
        for unit in letter.encode_utf16(&mut [0; 2]) {
            let _ = write!(self.out, "\\u{unit:04x}");
        }
    }
}

fn scalar_key(key: &Value) -> String {
    match key.kind() {
        ValueKind::None => "null".to_owned(),
        ValueKind::Bool => key.to_string().to_lowercase(),
        ValueKind::Number if !key.is_integer() => float(f64::try_from(key.clone()).unwrap_or(f64::NAN)),
        _ => key.to_string(),
    }
}

/// Python's `repr` of a float: the shortest digits that read back, in positions from 1e-4 to below 1e16.
pub(super) fn float(number: f64) -> String {
    if number.is_nan() {
        return "NaN".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').expect("this format has an exponent");
    let exponent: i32 = exponent.parse().expect("the exponent is a number");
    if number == 0.0 || (-4..16).contains(&exponent) {
        let positions = format!("{number}");
        return if positions.contains('.') { positions } else { positions + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}
