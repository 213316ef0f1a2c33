//! A synthetic model's tokenizer: each byte a token, three marks, and made-up words to fill the vocabulary.

use std::fmt::Write;

use crate::tokenizer::ByteLetters;

/// 256 bytes and three marks.
pub const VOCABULARY_MIN: usize = 259;

/// `<|endoftext|>`.
pub(super) const END_OF_TEXT: u32 = 256;
/// `<|im_end|>`.
pub(super) const END_OF_TURN: u32 = 258;

const MARKS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

const CONSONANTS: &[u8; 20] = b"bcdfghjklmnpqrstvwxz";
const VOWELS: &[u8; 5] = b"aeiou";

pub(super) const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// The `number`-th made-up word: syllables are digits of a number to the base of 100, at least two of them.
fn word(mut number: usize, out: &mut String) {
    let mut syllables = 0;
    while number > 0 || syllables < 2 {
        let digit = number % 100;
        out.push(CONSONANTS[digit / 5].into());
        out.push(VOWELS[digit % 5].into());
        number /= 100;
        syllables += 1;
    }
}

/// Whether `token` is a mark.
pub(super) fn is_mark(token: u32) -> bool {
    (END_OF_TEXT..=END_OF_TURN).contains(&token)
}

/// How each token is spelled.
pub(super) fn tokens(vocabulary: usize) -> Vec<String> {
    let letters = ByteLetters::new();
    let bytes = (0..=255u8).map(|byte| letters.letter(byte).to_string());
    let words = (VOCABULARY_MIN..vocabulary).map(|token| {
        // The first letter stands for a space.
        let mut text = String::from("\u{120}");
        word(token - VOCABULARY_MIN, &mut text);
        text
    });
    bytes.chain(MARKS.map(str::to_owned)).chain(words).collect()
}

/// `tokenizer.json`. Its made-up words can be generated and shown; no text is encoded with them, as nothing merges.
pub(super) fn tokenizer_json(vocabulary: usize) -> String {
    let byte_level = r#"{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false}"#;
    let mut out = String::with_capacity(vocabulary * 24 + 4096);
    out.push_str(r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":["#);
    for (place, mark) in MARKS.iter().enumerate() {
        let comma = if place == 0 { "" } else { "," };
        let id = 256 + place;
        let _ = write!(
            out,
            r#"{comma}{{"id":{id},"content":"{mark}","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}}"#
        );
    }
    let _ = write!(
        out,
        r#"],"normalizer":null,"pre_tokenizer":{byte_level},"post_processor":null,"decoder":{byte_level},"model":{{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,"ignore_merges":false,"vocab":{{"#
    );
    let letters = ByteLetters::new();
    for byte in 0..=255u8 {
        let comma = if byte == 0 { "" } else { "," };
        let letter = serde_json::to_string(&letters.letter(byte)).expect("a character is JSON");
        let _ = write!(out, "{comma}{letter}:{byte}");
    }
    // Here as well: `tokenizers` numbers marks that are not in the vocabulary by itself, after the last token.
    for (place, mark) in MARKS.iter().enumerate() {
        let _ = write!(out, ",\"{mark}\":{}", 256 + place);
    }
    for token in VOCABULARY_MIN..vocabulary {
        // The first letter stands for a space.
        out.push_str(",\"\u{120}");
        word(token - VOCABULARY_MIN, &mut out);
        let _ = write!(out, "\":{token}");
    }
    out.push_str("},\"merges\":[]}}\n");
    out
}

/// `tokenizer_config.json`.
pub(super) fn tokenizer_config_json() -> String {
    let settings = serde_json::json!({"eos_token": "<|im_end|>", "chat_template": CHATML});
    format!("{settings:#}\n")
}
