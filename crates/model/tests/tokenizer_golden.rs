//! Tokenizers of the kinds in use encode and decode odd texts as the reference does, whole and as a stream.
#![allow(clippy::unwrap_used, reason = "a test ends where a fixture is not what it should be")]

use std::fs;
use std::path::Path;

use model::tokenizer::Tokenizer;
use serde_json::Value;

#[test]
fn odd_texts_become_the_references_tokens_and_come_back() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers");
    for name in ["llama2-style", "llama3-style", "qwen-style"] {
        let tokenizer =
            Tokenizer::from_json(&fs::read(folder.join(format!("{name}.json"))).unwrap()).unwrap();
        let golden = fs::read(folder.join(format!("{name}.golden.json"))).unwrap();
        let golden: Value = serde_json::from_slice(&golden).unwrap();
        assert_eq!(tokenizer.vocabulary_len() as u64, golden["vocabulary"].as_u64().unwrap());
        for case in golden["cases"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let tokens = |key: &str| -> Vec<u32> { serde_json::from_value(case[key].clone()).unwrap() };
            assert_eq!(tokenizer.encode(text, false).unwrap(), tokens("tokens"), "{name}: {text:?}");
            let all = tokens("with_special");
            assert_eq!(tokenizer.encode(text, true).unwrap(), all, "{name}: {text:?}");
            for (skip, key) in [(false, "decoded"), (true, "decoded_plain")] {
                assert_eq!(tokenizer.decode(&all, skip), case[key], "{name}: {text:?}, {key}");
                let mut stream = tokenizer.stream(skip);
                let mut streamed: String = all.iter().map(|&token| stream.push(token)).collect();
                streamed.push_str(&stream.flush());
                assert_eq!(streamed, case[key], "{name}: {text:?}, {key}, streamed");
            }
        }
    }
}
