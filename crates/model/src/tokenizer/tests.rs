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
