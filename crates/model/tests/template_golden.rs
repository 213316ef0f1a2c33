//! Chat templates render what transformers renders, byte for byte, or refuse where it refuses.
#![allow(clippy::unwrap_used, reason = "a test ends where a fixture is not what it should be")]

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use model::template::{ChatExtra, ChatTemplate, TemplateError};
use serde_json::Value;

fn wrong(expected: &Value, got: &Result<String, TemplateError>) -> Option<String> {
    match (expected.get("text"), expected.get("refused"), got) {
        (Some(text), _, Ok(got)) if text == got => None,
        (_, Some(message), Err(TemplateError::Refused { message: got })) if message == got => None,
        (None, None, Err(_)) => None,
        _ => Some(format!(
            "{} with {:?}:\nexpected {expected}\ngot      {got:?}\n",
            expected["template"], expected["conversation"]
        )),
    }
}

#[test]
fn templates_render_what_transformers_renders() {
    // Another folder of templates, with a golden file that `python tools/reference/templates.py FOLDER` has made: those of
    // published models may be looked at so, and are not ours to keep here.
    let folder = match std::env::var_os("PHALANX_TEMPLATES") {
        Some(folder) => folder.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/templates"),
    };
    let golden: Value = serde_json::from_slice(&fs::read(folder.join("golden.json")).unwrap()).unwrap();
    let mut compiled: HashMap<&str, ChatTemplate> = HashMap::new();
    let mut failures = Vec::new();
    let cases = golden["cases"].as_array().unwrap();
    for case in cases {
        let name = case["template"].as_str().unwrap();
        let template = compiled.entry(name).or_insert_with(|| {
            let source = fs::read_to_string(folder.join(name)).unwrap();
            ChatTemplate::new(&source, golden["bos"].as_str(), golden["eos"].as_str()).unwrap()
        });
        let conversation = &golden["conversations"][case["conversation"].as_str().unwrap()];
        let extra = ChatExtra {
            now_unix_s: golden["now_unix_s"].as_i64().unwrap(),
            variables: conversation.get("variables").and_then(Value::as_object).cloned().unwrap_or_default(),
        };
        let prompt = conversation.get("add_generation_prompt").and_then(Value::as_bool).unwrap_or(true);
        let messages = conversation["messages"].as_array().unwrap();
        let got = template.render(messages, conversation.get("tools"), prompt, &extra);
        failures.extend(wrong(case, &got));
    }
    assert!(cases.len() >= 150, "only {} cases", cases.len());
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), cases.len(), failures.join("\n"));
}
