//! Each parser runs once before anybody calls: the first request would otherwise wait half a millisecond for pages of this
//! program that nothing has touched yet.

use std::hint::black_box;

use wire::{anthropic, ollama, openai};

/// What clients send most, in the shape of each call.
const MESSAGES: &[u8] =
    br#"{"model":"m","messages":[{"role":"system","content":"a"},{"role":"user","content":"b"}],
    "max_tokens":16,"temperature":0.5,"top_p":0.9,"seed":1,"stop":["."],"stream":true}"#;
const PROMPT: &[u8] = br#"{"model":"m","prompt":"a","max_tokens":16,"temperature":0,"stream":true}"#;
const INPUT: &[u8] = br#"{"model":"m","input":"a","temperature":0,"stream":true}"#;
const CHAT: &[u8] =
    br#"{"model":"m","messages":[{"role":"user","content":"b"}],"options":{"temperature":0,"num_predict":16}}"#;
const GENERATE: &[u8] = br#"{"model":"m","prompt":"a","options":{"temperature":0,"num_predict":16}}"#;
const MESSAGE: &[u8] =
    br#"{"model":"m","messages":[{"role":"user","content":"b"}],"max_tokens":16,"stream":true}"#;

/// Parses one body of each kind. What comes of them is of no interest.
pub(crate) fn warm() {
    let parsed = [
        black_box(openai::parse_chat(MESSAGES)).is_ok(),
        black_box(openai::parse_completion(PROMPT)).is_ok(),
        black_box(openai::parse_response(INPUT)).is_ok(),
        black_box(anthropic::parse_message(MESSAGE)).is_ok(),
        black_box(ollama::parse_chat(CHAT)).is_ok(),
        black_box(ollama::parse_generate(GENERATE)).is_ok(),
    ];
    debug_assert!(parsed.iter().all(|fine| *fine), "a sample is not what its parser takes: {parsed:?}");
}
