//! What a caller writes is text, also where it spells one of the model's marks.
//!
//! A message that contains `<|im_end|>` must not end its turn: else whoever can put words into a conversation (a
//! web page that was quoted, say) could speak as the system. So such a mark is parted by a character that texts do not
//! have, before the template sees it, and the rendered text is encoded in the parts between: none holds the mark.
//!
//! Source of the idea: `sanitize_control_tokens` in transformers' `chat_template_utils.py`.

use serde_json::Value;

use crate::tokenizer::{Tokenizer, TokenizerError};

/// A code that Unicode reserves for a program's own use ("noncharacter").
const PARTING: char = '\u{10fffe}';

/// The model's marks.
pub(super) struct Marks {
    texts: Vec<String>,
    /// Bytes that a mark begins with: few texts have many of them.
    first: [bool; 256],
}

impl Marks {
    pub(super) fn of(tokenizer: &Tokenizer) -> Self {
        // What is one character long cannot be parted, and is none that a template builds on.
        let texts: Vec<String> =
            tokenizer.special_texts().into_iter().filter(|text| text.chars().nth(1).is_some()).collect();
        let mut first = [false; 256];
        for text in &texts {
            first[usize::from(text.as_bytes()[0])] = true;
        }
        Self { texts, first }
    }

    /// Whether a mark begins at byte `at` of `text`.
    fn begins(&self, text: &str, at: usize) -> bool {
        self.first[usize::from(text.as_bytes()[at])]
            && self.texts.iter().any(|mark| text.as_bytes()[at..].starts_with(mark.as_bytes()))
    }

    /// Whether any text in `value` spells a mark.
    pub(super) fn appear_in(&self, value: &Value) -> bool {
        match value {
            Value::String(text) => (0..text.len()).any(|at| self.begins(text, at)),
            Value::Array(list) => list.iter().any(|value| self.appear_in(value)),
            Value::Object(map) => map.values().any(|value| self.appear_in(value)),
            _ => false,
        }
    }

    /// `value` with every mark in its texts parted after the first character.
    pub(super) fn parted(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.parted_text(text)),
            Value::Array(list) => list.iter().map(|value| self.parted(value)).collect(),
            Value::Object(map) => map.iter().map(|(key, value)| (key.clone(), self.parted(value))).collect(),
            other => other.clone(),
        }
    }

    fn parted_text(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len() + 16);
        for (at, letter) in text.char_indices() {
            if letter == PARTING {
                continue;
            }
            out.push(letter);
            if self.begins(text, at) {
                out.push(PARTING);
            }
        }
        out
    }
}

/// The tokens of a rendered text, its parts each for itself.
pub(super) fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, TokenizerError> {
    let mut parts = text.split(PARTING);
    let mut tokens = tokenizer.encode(parts.next().unwrap_or_default(), false)?;
    let mut newline = None;
    for part in parts {
        // After a newline, so that a tokenizer which puts a space before a text puts it there and not here.
        let newline = match &mut newline {
            Some(newline) => newline,
            none => none.insert(tokenizer.encode("\n", false)?),
        };
        let after = tokenizer.encode(&format!("\n{part}"), false)?;
        match after.strip_prefix(newline.as_slice()) {
            Some(of_part) => tokens.extend_from_slice(of_part),
            None => tokens.extend(tokenizer.encode(part, false)?),
        }
    }
    Ok(tokens)
}
