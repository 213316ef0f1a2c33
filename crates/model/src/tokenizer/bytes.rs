//! What each token is in bytes, worked out once from the tokenizer's decoder.
//!
//! `tokenizers` decodes whole lists; a stream needs what one token adds. Decoders that a text model has act on each
//! token alone (but for one space at the text's begin), so a table says it all, and a stream costs O(1) per token.

use tokenizers::{DecoderWrapper, Tokenizer};

/// A vocabulary beyond this is no vocabulary: ids are indices of the table.
const TOKENS_MAX: usize = 1 << 24;

/// Why tokens cannot be turned into bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecoderError {
    /// A decoder of another kind.
    #[error(
        "its decoder is {found}; this build knows ByteLevel, Metaspace and sequences of Replace, ByteFallback, Fuse and Strip"
    )]
    Unknown {
        /// As the file spells it.
        found: String,
    },
    /// A token's number is absurd.
    #[error("token {token} is above the limit of {limit}")]
    TokenTooLarge {
        /// The number.
        token: u32,
        /// The limit.
        limit: usize,
    },
    /// There is no token at all.
    #[error("it has no tokens")]
    Empty,
}

/// How a token's spelling becomes bytes.
#[derive(Debug, Default)]
struct Rule {
    /// Every character stands for a byte, as in GPT-2.
    byte_level: bool,
    /// `(from, to)` in every token.
    replacements: Vec<(String, String)>,
    /// `<0x0A>` is a byte.
    byte_fallback: bool,
    /// One space at the begin of the text is taken away.
    strips_first_space: bool,
}

/// The table.
pub(super) struct TokenBytes {
    bytes: Vec<u8>,
    /// Token `t` is `bytes[ends[t - 1]..ends[t]]`.
    ends: Vec<u32>,
    /// Sorted.
    special: Vec<u32>,
    strips_first_space: bool,
}

impl TokenBytes {
    pub(super) fn new(tokenizer: &Tokenizer) -> Result<Self, DecoderError> {
        let rule = Rule::of(tokenizer.get_decoder())?;
        let mut vocabulary: Vec<(u32, String)> =
            tokenizer.get_vocab(true).into_iter().map(|(text, token)| (token, text)).collect();
        vocabulary.sort_unstable();
        let Some(&(last, _)) = vocabulary.last() else { return Err(DecoderError::Empty) };
        if last as usize >= TOKENS_MAX {
            return Err(DecoderError::TokenTooLarge { token: last, limit: TOKENS_MAX });
        }
        let letters = ByteLetters::new();
        let mut table = Self {
            bytes: Vec::new(),
            ends: Vec::with_capacity(last as usize + 1),
            special: Vec::new(),
            strips_first_space: rule.strips_first_space,
        };
        for (token, text) in &vocabulary {
            // Two spellings of one number: `tokenizers` decodes to the added one, which sorts by text only here.
            if table.ends.len() > *token as usize {
                continue;
            }
            table.ends.resize(*token as usize, table.bytes.len() as u32);
            let text = tokenizer.id_to_token(*token).unwrap_or_else(|| text.clone());
            rule.append(&text, &letters, &mut table.bytes);
            table.ends.push(u32::try_from(table.bytes.len()).unwrap_or(u32::MAX));
        }
        let added = tokenizer.get_added_tokens_decoder();
        table.special = added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect();
        table.special.sort_unstable();
        Ok(table)
    }

    /// Empty for tokens that do not exist.
    pub(super) fn of(&self, token: u32) -> &[u8] {
        let token = token as usize;
        let Some(&end) = self.ends.get(token) else { return &[] };
        let begin = if token == 0 { 0 } else { self.ends[token - 1] };
        self.bytes.get(begin as usize..end as usize).unwrap_or(&[])
    }

    pub(super) fn is_special(&self, token: u32) -> bool {
        self.special.binary_search(&token).is_ok()
    }

    /// The marks' numbers, sorted.
    pub(super) fn special(&self) -> &[u32] {
        &self.special
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn strips_first_space(&self) -> bool {
        self.strips_first_space
    }
}

impl Rule {
    fn of(decoder: Option<&DecoderWrapper>) -> Result<Self, DecoderError> {
        let mut rule = Self::default();
        let Some(decoder) = decoder else { return Err(DecoderError::Unknown { found: "absent".to_owned() }) };
        // Read as data: the decoders keep most of their fields to themselves.
        let json = serde_json::to_value(decoder)
            .map_err(|e| DecoderError::Unknown { found: format!("unreadable ({e})") })?;
        rule.take(&json)?;
        Ok(rule)
    }

    fn take(&mut self, decoder: &serde_json::Value) -> Result<(), DecoderError> {
        let unknown = || DecoderError::Unknown { found: decoder.to_string().chars().take(120).collect() };
        let text = |field: &str| decoder.get(field).and_then(serde_json::Value::as_str);
        match text("type").ok_or_else(unknown)? {
            "ByteLevel" => self.byte_level = true,
            "ByteFallback" => self.byte_fallback = true,
            // Joins what is joined here anyway.
            "Fuse" => {}
            "Sequence" => {
                let parts =
                    decoder.get("decoders").and_then(serde_json::Value::as_array).ok_or_else(unknown)?;
                for part in parts {
                    self.take(part)?;
                }
            }
            "Replace" => {
                let from = decoder.pointer("/pattern/String").and_then(serde_json::Value::as_str);
                match (from, text("content")) {
                    (Some(from), Some(to)) if !from.is_empty() => {
                        self.replacements.push((from.to_owned(), to.to_owned()));
                    }
                    _ => return Err(unknown()),
                }
            }
            "Strip" => {
                let count = |field: &str| decoder.get(field).and_then(serde_json::Value::as_u64);
                match (text("content"), count("start"), count("stop")) {
                    (Some(" "), Some(1), Some(0)) => self.strips_first_space = true,
                    (_, Some(0), Some(0)) => {}
                    _ => return Err(unknown()),
                }
            }
            "Metaspace" => {
                self.replacements.push((text("replacement").ok_or_else(unknown)?.to_owned(), " ".to_owned()));
                self.strips_first_space = text("prepend_scheme") != Some("never");
            }
            _ => return Err(unknown()),
        }
        Ok(())
    }

    fn append(&self, token: &str, letters: &ByteLetters, out: &mut Vec<u8>) {
        if self.byte_level {
            let begin = out.len();
            for letter in token.chars() {
                match letters.byte(letter) {
                    Some(byte) => out.push(byte),
                    None => {
                        // Not in the alphabet: an added token, which stands for itself.
                        out.truncate(begin);
                        out.extend_from_slice(token.as_bytes());
                        return;
                    }
                }
            }
            return;
        }
        if self.byte_fallback
            && let Some(digits) = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'))
            && digits.len() == 2
            && let Ok(byte) = u8::from_str_radix(digits, 16)
        {
            out.push(byte);
            return;
        }
        let mut text = std::borrow::Cow::Borrowed(token);
        for (from, to) in &self.replacements {
            text = text.replace(from.as_str(), to).into();
        }
        out.extend_from_slice(text.as_bytes());
    }
}

/// GPT-2's alphabet: a letter for each byte, so that every text can be spelled in visible letters.
///
/// Source: `bytes_to_unicode` of <https://github.com/openai/gpt-2/blob/master/src/encoder.py>.
pub(crate) struct ByteLetters {
    letters: [char; 256],
    bytes: [Option<u8>; 512],
}

impl ByteLetters {
    pub(crate) fn new() -> Self {
        let visible = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        let mut letters = ['\0'; 256];
        let mut bytes = [None; 512];
        let mut next = 256;
        for byte in 0..=255u8 {
            let code = if visible(byte) {
                u32::from(byte)
            } else {
                next += 1;
                next - 1
            };
            letters[usize::from(byte)] = char::from_u32(code).expect("codes below 512 are characters");
            bytes[code as usize] = Some(byte);
        }
        Self { letters, bytes }
    }

    fn byte(&self, letter: char) -> Option<u8> {
        self.bytes.get(letter as usize).copied().flatten()
    }

    pub(crate) fn letter(&self, byte: u8) -> char {
        self.letters[usize::from(byte)]
    }
}
