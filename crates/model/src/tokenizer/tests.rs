//! Byte-level and byte-fallback tokenizers against `tokenizers` itself, and streams cut anywhere.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::bytes::ByteLetters;
use super::*;

/// A byte-level BPE with a few merges and special tokens, as text models have.
fn byte_level() -> Value {
    let letters = ByteLetters::new();
    let mut vocabulary = serde_json::Map::new();
    for byte in 0..=255u8 {
        vocabulary.insert(letters.letter(byte).to_string(), json!(byte));
    }
    for (number, token) in ["he", "ll", "hell", "Ġw", "æĹ"].iter().enumerate() {
        vocabulary.insert((*token).to_owned(), json!(256 + number));
    }
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [
            {"id": 261, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
            {"id": 262, "content": "<tool call>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": false}
        ],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": [["h", "e"], ["l", "l"], ["he", "ll"], ["Ġ", "w"], ["æ", "Ĺ"]]}
    })
}

/// A byte-fallback BPE, as Llama 2 has.
fn byte_fallback() -> Value {
    let mut vocabulary = serde_json::Map::new();
    for (number, token) in ["<unk>", "<s>", "</s>"].iter().enumerate() {
        vocabulary.insert((*token).to_owned(), json!(number));
    }
    for byte in 0..=255u8 {
        vocabulary.insert(format!("<0x{byte:02X}>"), json!(u32::from(byte) + 3));
    }
    for (number, token) in ["▁", "a", "b", "▁a", "ab"].iter().enumerate() {
        vocabulary.insert((*token).to_owned(), json!(259 + number));
    }
    let mut tokenizer = byte_level();
    tokenizer["added_tokens"] = json!([
        {"id": 1, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}
    ]);
    tokenizer["normalizer"] = json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    ]});
    tokenizer["pre_tokenizer"] = json!(null);
    tokenizer["decoder"] = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    ]});
    tokenizer["model"]["vocab"] = json!(vocabulary);
    tokenizer["model"]["merges"] = json!([["▁", "a"], ["a", "b"]]);
    tokenizer["model"]["byte_fallback"] = json!(true);
    tokenizer["model"]["unk_token"] = json!("<unk>");
    tokenizer["model"]["fuse_unk"] = json!(true);
    tokenizer
}

fn open(json: &Value) -> Tokenizer {
    Tokenizer::from_json(json.to_string().as_bytes()).unwrap()
}

#[test]
fn merges_and_special_tokens_are_found_in_a_text() {
    let tokenizer = open(&byte_level());
    assert_eq!(tokenizer.encode("hello w<|end|>", false).unwrap(), [258, 111, 259, 261]);
    assert_eq!(tokenizer.token_to_id("<|end|>"), Some(261));
    assert_eq!(tokenizer.vocabulary_len(), 263);
    assert!(tokenizer.is_special(261) && !tokenizer.is_special(262));
}

#[test]
fn a_token_stands_for_its_bytes_even_inside_a_character() {
    let tokenizer = open(&byte_level());
    assert_eq!(tokenizer.token_bytes(259), b" w");
    assert_eq!(tokenizer.token_bytes(260), [0xe6, 0x97]);
    assert_eq!(tokenizer.token_bytes(262), b"<tool call>");
    assert_eq!(tokenizer.token_bytes(263), b"");
    assert_eq!(tokenizer.token_bytes(u32::MAX), b"");
    let tokenizer = open(&byte_fallback());
    assert_eq!((tokenizer.token_bytes(13), tokenizer.token_bytes(262)), (b"\n".to_vec(), b" a".to_vec()));
}

#[test]
fn a_character_spread_over_tokens_comes_with_the_last_of_them() {
    let tokenizer = open(&byte_level());
    let mut stream = tokenizer.stream(true);
    assert_eq!(stream.push(260), "");
    assert_eq!(stream.held_len(), 2);
    assert_eq!(stream.push(0xa5), "日");
    assert_eq!(stream.push(261), "");
    assert_eq!(stream.push(260), "");
    assert_eq!(stream.flush(), "\u{fffd}");
}

#[test]
fn a_broken_character_does_not_hold_back_what_follows_it() {
    let mut stream = open(&byte_level()).stream(true);
    assert_eq!(stream.push(0xf0), "");
    assert_eq!(stream.push(u32::from(b'a')), "\u{fffd}a");
    assert_eq!(stream.push(0xff), "\u{fffd}");
    assert_eq!(stream.held_len(), 0);
}

#[test]
fn special_tokens_show_only_where_they_are_wanted() {
    let tokenizer = open(&byte_level());
    assert_eq!(tokenizer.decode(&[258, 111, 261, 262], true), "hello<tool call>");
    assert_eq!(tokenizer.decode(&[258, 111, 261, 262], false), "hello<|end|><tool call>");
}

#[test]
fn truncation_and_padding_of_the_file_are_left_out() {
    let mut json = byte_level();
    json["truncation"] =
        json!({"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"});
    json["padding"] = json!({"strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "!"});
    assert_eq!(open(&json).encode("hellohell", false).unwrap(), [258, 111, 258]);
}

#[test]
fn a_decoder_that_is_no_text_models_is_refused_by_name() {
    let mut json = byte_level();
    for (decoder, name) in [
        (json!(null), "absent"),
        (json!({"type": "WordPiece", "prefix": "##", "cleanup": true}), "WordPiece"),
        (json!({"type": "Strip", "content": "x", "start": 2, "stop": 1}), "Strip"),
    ] {
        json["decoder"] = decoder;
        let error = Tokenizer::from_json(json.to_string().as_bytes()).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("ByteLevel"), "{error}");
    }
}

#[test]
fn a_tokenizer_without_a_required_part_is_refused() {
    let mut json = byte_level();
    json.as_object_mut().unwrap().remove("model");
    let error = Tokenizer::from_json(json.to_string().as_bytes()).unwrap_err().to_string();
    assert!(error.starts_with("tokenizer.json is not readable"), "{error}");
    for text in ["", "null", "[]", "{}", "{\"model\": {}}", "{\"model\": {\"type\": \"BPE\"}}", "\u{0}"] {
        assert!(Tokenizer::from_json(text.as_bytes()).is_err(), "{text}");
    }
}

#[test]
fn a_merge_of_unknown_tokens_is_refused() {
    let mut json = byte_level();
    json["model"]["merges"] = json!([["zz", "qq"]]);
    assert!(Tokenizer::from_json(json.to_string().as_bytes()).is_err());
}

#[test]
fn an_added_token_that_would_get_another_number_is_refused() {
    let mut json = byte_level();
    json["added_tokens"][0]["id"] = json!(300);
    let error = Tokenizer::from_json(json.to_string().as_bytes()).unwrap_err().to_string();
    assert!(error.contains("\"<|end|>\"") && error.contains("300") && error.contains("261"), "{error}");
}

#[test]
fn an_absurd_token_number_is_refused_before_memory_is_asked_for() {
    let mut json = byte_level();
    json["added_tokens"] = json!([]);
    json["model"]["vocab"]["absurd"] = json!(u32::MAX);
    let error = Tokenizer::from_json(json.to_string().as_bytes()).unwrap_err().to_string();
    assert!(error.contains("4294967295") && error.contains("limit"), "{error}");
}

proptest! {
    #[test]
    fn a_text_survives_encoding_and_decoding(text in any::<String>()) {
        for tokenizer in [open(&byte_level()), open(&byte_fallback())] {
            let tokens = tokenizer.encode(&text, false).unwrap();
            prop_assert_eq!(tokenizer.decode(&tokens, false), text.clone());
        }
    }

    #[test]
    fn a_stream_says_what_the_library_says_of_the_whole(tokens in prop::collection::vec(0u32..270, 0..40)) {
        let tokenizer = open(&byte_level());
        for skip in [true, false] {
            let mut stream = tokenizer.stream(skip);
            let mut text: String = tokens.iter().map(|&token| stream.push(token)).collect();
            prop_assert!(stream.held_len() <= 3);
            text.push_str(&stream.flush());
            prop_assert_eq!(text, tokenizer.parts.inner.decode(&tokens, skip).unwrap());
        }
    }

    #[test]
    fn a_damaged_file_is_refused_or_read_but_never_a_panic(at in 0usize..8000, with in any::<u8>()) {
        let mut bytes = byte_level().to_string().into_bytes();
        let at = at % bytes.len();
        bytes[at] = with;
        if let Ok(tokenizer) = Tokenizer::from_json(&bytes) {
            let _ = tokenizer.encode("hello world", true);
        }
        let _ = Tokenizer::from_json(&bytes[..at]);
    }
}

/// A byte-level BPE that cuts texts by `pattern`.
fn cut_by(pattern: &str) -> Value {
    let mut tokenizer = byte_level();
    tokenizer["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}
    ]});
    tokenizer
}

/// Patterns of GPT-2, Llama 3, Qwen and gpt-oss, and the bundled model's.
const PATTERNS: [&str; 5] = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
];

fn odd_text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        Just("<|end|>".to_owned()),
        Just("<tool call>".to_owned()),
        Just("<|en".to_owned()),
        "[ \t\r\n\u{a0}\u{2003}]{1,5}",
        "[a-zA-Z'äß中é\u{301}]{1,6}",
        "[0-9.,;!?/ ]{1,5}",
        "\\PC{0,4}",
    ];
    proptest::collection::vec(part, 0..14).prop_map(|parts| parts.concat())
}

#[test]
fn the_quick_way_is_taken_where_it_can_be_and_nowhere_else() {
    let quick = |json: &Value| open(json).parts.quick.is_some();
    assert!(quick(&byte_level()) && PATTERNS.iter().all(|pattern| quick(&cut_by(pattern))));
    assert!(!quick(&byte_fallback()));
    for (at, odd) in [
        ("/pre_tokenizer/add_prefix_space", json!(true)),
        ("/added_tokens/0/lstrip", json!(true)),
        ("/added_tokens/0/rstrip", json!(true)),
        ("/added_tokens/0/single_word", json!(true)),
        ("/model/dropout", json!(0.1)),
        ("/normalizer", json!({"type": "Lowercase"})),
    ] {
        let mut json = byte_level();
        *json.pointer_mut(at).unwrap() = odd;
        assert!(!quick(&json), "{at}");
    }
    for pattern in
        [r"\s+(?!\S)|\s+", r"a*|\s+(?!\S)|\s+", r"(?:a|\s+(?!\S)|\s+", r"b(?=c)|\s+(?!\S)|\s+", r"\p{L}+|\s+"]
    {
        let read = Tokenizer::from_json(cut_by(pattern).to_string().as_bytes());
        assert!(read.is_err() || read.unwrap().parts.quick.is_none(), "{pattern}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn the_quick_way_gives_what_the_library_gives(text in odd_text(), which in 0..2 * PATTERNS.len()) {
        let mut json = cut_by(PATTERNS[which / 2]);
        if which % 2 == 1 {
            json["normalizer"] = json!({"type": "NFC"});
            // One that is looked for after the others.
            json["added_tokens"][1]["normalized"] = json!(true);
        }
        let tokenizer = open(&json);
        prop_assert!(tokenizer.parts.quick.is_some());
        prop_assert_eq!(tokenizer.encode(&text, false).unwrap(), tokenizer.encode_slowly(&text, false).unwrap());
    }
}
