//! Text to tokens and back, by the model's own `tokenizer.json`.

mod automaton;
mod bytes;
mod quick;
mod stream;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

pub(crate) use bytes::ByteLetters;
pub use bytes::DecoderError;
use bytes::TokenBytes;
use quick::Quick;
pub use stream::DecodeStream;

/// Why a tokenizer cannot be had, or cannot do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The file is not a tokenizer.
    #[error("tokenizer.json is not readable: {0}")]
    Unreadable(String),
    /// An added token whose number is not the one that the file says: the model would see another token.
    #[error("tokenizer.json: added token {content:?} says that its id is {id}, but it can only be {found}")]
    Misnumbered {
        /// How it is spelled.
        content: String,
        /// As the file says.
        id: u32,
        /// As the library numbers it.
        found: u32,
    },
    /// The file's decoder is of a kind that this build cannot undo token by token.
    #[error("tokenizer.json: {0}")]
    Decoder(#[from] DecoderError),
    /// The text could not be encoded. The text itself is not shown.
    #[error("the tokenizer failed on a text of {bytes} bytes: {detail}")]
    Encode {
        /// How long the text is.
        bytes: usize,
        /// What the tokenizer said.
        detail: String,
    },
}

/// A model's tokenizer. Cheap to clone; shared between threads.
#[derive(Clone)]
pub struct Tokenizer {
    parts: Arc<Parts>,
}

struct Parts {
    inner: tokenizers::Tokenizer,
    bytes: TokenBytes,
    /// Several times as fast, for most.
    quick: Option<Quick>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({} tokens)", self.vocabulary_len())
    }
}

/// `tokenizers` is foreign code over a foreign file: whatever it does there, it is an error and not our end.
fn guarded<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("it contradicts itself".to_owned()),
    }
}

/// `tokenizers` numbers added tokens that the vocabulary lacks in their order, whatever ids the file gives them.
fn check_numbers(inner: &tokenizers::Tokenizer, json: &[u8]) -> Result<(), TokenizerError> {
    #[derive(serde::Deserialize)]
    struct File {
        #[serde(default)]
        added_tokens: Vec<Added>,
    }
    #[derive(serde::Deserialize)]
    struct Added {
        id: u32,
        content: String,
    }
    let file: File = serde_json::from_slice(json).map_err(|e| TokenizerError::Unreadable(e.to_string()))?;
    for Added { id, content } in file.added_tokens {
        match inner.token_to_id(&content) {
            Some(found) if found != id => return Err(TokenizerError::Misnumbered { content, id, found }),
            _ => {}
        }
    }
    Ok(())
}

impl Tokenizer {
    /// Reads a `tokenizer.json`. Truncation and padding that it may ask for are left out: they belong to training.
    ///
    /// # Errors
    /// Not a tokenizer, or one whose decoder is unknown.
    pub fn from_json(json: &[u8]) -> Result<Self, TokenizerError> {
        let mut inner =
            guarded(|| tokenizers::Tokenizer::from_bytes(json)).map_err(TokenizerError::Unreadable)?;
        guarded(|| inner.with_truncation(None).map(|_| ())).map_err(TokenizerError::Unreadable)?;
        inner.with_padding(None);
        check_numbers(&inner, json)?;
        let bytes = TokenBytes::new(&inner)?;
        let quick = Quick::of(json, &inner);
        Ok(Self { parts: Arc::new(Parts { inner, bytes, quick }) })
    }

    /// How it makes tokens of a text, for people.
    pub fn kind(&self) -> &'static str {
        use tokenizers::ModelWrapper;
        match self.parts.inner.get_model() {
            ModelWrapper::BPE(bpe) if bpe.byte_fallback => "BPE, bytes where there is no token",
            ModelWrapper::BPE(_) => "BPE over bytes",
            ModelWrapper::Unigram(_) => "Unigram",
            ModelWrapper::WordPiece(_) => "WordPiece",
            ModelWrapper::WordLevel(_) => "words",
        }
    }

    /// The tokens of `text`; with `add_special`, also those that the tokenizer puts around a text (begin of text). Texts
    /// that name special tokens become these tokens.
    ///
    /// # Errors
    /// The tokenizer has no token for a part of the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        let failed = |detail| TokenizerError::Encode { bytes: text.len(), detail };
        let quick = self.parts.quick.as_ref().filter(|_| !add_special);
        let tokens = quick.map(|quick| guarded(|| quick.encode(&self.parts.inner, text)));
        match tokens.transpose().map_err(failed)?.flatten() {
            Some(tokens) => Ok(tokens),
            None => self.encode_slowly(text, add_special).map_err(failed),
        }
    }

    /// As `tokenizers` itself does.
    fn encode_slowly(&self, text: &str, add_special: bool) -> Result<Vec<u32>, String> {
        let encoding = guarded(|| self.parts.inner.encode_fast(text, add_special))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The tokens of a text that goes on after another: no space is put before it, as some tokenizers do at a begin.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_part(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let newline = self.encode("\n", false)?;
        let after = self.encode(&format!("\n{text}"), false)?;
        match after.strip_prefix(newline.as_slice()) {
            Some(part) => Ok(part.to_vec()),
            None => self.encode(text, false),
        }
    }

    /// The text of `tokens`; tokens that do not exist and, with `skip_special`, special ones have none. Bytes that are no
    /// UTF-8 show as U+FFFD.
    pub fn decode(&self, tokens: &[u32], skip_special: bool) -> String {
        let mut stream = self.stream(skip_special);
        let mut text = String::new();
        for &token in tokens {
            stream.push_onto(token, &mut text);
        }
        text.push_str(&stream.flush());
        text
    }

    /// The bytes that `token` stands for inside a text: maybe part of a character, none where it does not exist.
    pub fn token_bytes(&self, token: u32) -> Vec<u8> {
        self.parts.bytes.of(token).to_vec()
    }

    /// The token spelled `text` in the vocabulary (as stored there: a space may be `Ġ` or `▁`).
    pub fn token_to_id(&self, text: &str) -> Option<u32> {
        self.parts.inner.token_to_id(text)
    }

    /// Whether `token` is one of the model's marks rather than text.
    pub fn is_special(&self, token: u32) -> bool {
        self.parts.bytes.is_special(token)
    }

    /// How the model's marks are spelled.
    pub fn special_texts(&self) -> Vec<String> {
        let ids = self.parts.bytes.special();
        ids.iter()
            .filter_map(|&id| self.parts.inner.id_to_token(id))
            .filter(|text| !text.is_empty())
            .collect()
    }

    /// One above the largest token there is.
    pub fn vocabulary_len(&self) -> usize {
        self.parts.bytes.len()
    }

    /// A decoder of tokens that come one by one.
    pub fn stream(&self, skip_special: bool) -> DecodeStream {
        DecodeStream::new(self.clone(), skip_special)
    }

    fn bytes(&self) -> &TokenBytes {
        &self.parts.bytes
    }
}

#[cfg(test)]
mod tests;
