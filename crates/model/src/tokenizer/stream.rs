//! Tokens to text as they come: whole characters only, O(1) per token.

use super::Tokenizer;

/// Turns tokens into text one by one. A character that is spread over tokens comes with the last of them.
pub struct DecodeStream {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// The begin of a character whose end has not come: at most 3 bytes between calls.
    held: Vec<u8>,
    at_begin: bool,
}

impl DecodeStream {
    pub(super) fn new(tokenizer: Tokenizer, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, held: Vec::new(), at_begin: true }
    }

    /// Takes `token` and returns the text that is certain now.
    pub fn push(&mut self, token: u32) -> String {
        let mut text = String::new();
        self.push_onto(token, &mut text);
        text
    }

    /// As [`DecodeStream::push`], at the end of `text`.
    pub fn push_onto(&mut self, token: u32, text: &mut String) {
        let table = self.tokenizer.bytes();
        if self.skip_special && table.is_special(token) {
            return;
        }
        let mut bytes = table.of(token);
        if self.at_begin && !bytes.is_empty() {
            self.at_begin = false;
            if table.strips_first_space() {
                bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
            }
        }
        // The usual case needs no copy: nothing held, and the token is whole.
        if self.held.is_empty()
            && let Ok(whole) = std::str::from_utf8(bytes)
        {
            text.push_str(whole);
            return;
        }
        self.held.extend_from_slice(bytes);
        let certain = take_certain(&self.held, text);
        self.held.drain(..certain);
    }

    /// How many bytes are held back because their character is not whole.
    pub fn held_len(&self) -> usize {
        self.held.len()
    }

    /// Ends the text: what is held shows as U+FFFD, for its end will not come.
    pub fn flush(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.held).into_owned();
        self.held.clear();
        text
    }
}

/// Appends to `text` what of `bytes` no further byte can change, bytes that are no UTF-8 as U+FFFD, as
/// `String::from_utf8_lossy` would. Returns how many bytes that is; at most 3 remain.
fn take_certain(bytes: &[u8], text: &mut String) -> usize {
    let mut at = 0;
    loop {
        match std::str::from_utf8(&bytes[at..]) {
            Ok(rest) => {
                text.push_str(rest);
                return bytes.len();
            }
            Err(error) => {
                let (whole, _) = bytes[at..].split_at(error.valid_up_to());
                text.push_str(std::str::from_utf8(whole).expect("checked up to here"));
                at += whole.len();
                match error.error_len() {
                    None => return at,
                    Some(bad) => {
                        text.push('\u{fffd}');
                        at += bad;
                    }
                }
            }
        }
    }
}
