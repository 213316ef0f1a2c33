//! The dialects' grammars, held to what the dialects' own parsers read: whatever a grammar lets through is a call.

use model::dialect::{Dialect, ParserOptions, Piece, ToolChoice, Tools};
use serde_json::{Value, json};

use super::tests::{tokenizer_json, walk_with};
use super::*;

/// Words of a template that give each dialect away, and a prompt's end after which no reasoning comes.
const TEMPLATES: [(&str, &str, &str); 8] = [
    ("hermes", "tools <tool_call> <think></think>", "<think>\n\n</think>\n\n"),
    ("qwen-xml", "tools <tool_call><function=x><parameter=y> <think></think>", "<think>\n\n</think>\n\n"),
    ("llama", "tools <|start_header_id|> <|python_tag|>", ""),
    ("mistral", "tools [TOOL_CALLS]", ""),
    ("mistral", "tools [TOOL_CALLS]name[ARGS]", ""),
    ("gemma", "tools <|tool_call>call:", ""),
    ("harmony", "tools <|channel|><|message|>", ""),
    ("generic", "no such thing", ""),
];

const MARKS: [&str; 19] = [
    "<tool_call>",
    "</tool_call>",
    "<think>",
    "</think>",
    "<|python_tag|>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "[CALL_ID]",
    "<|tool_call>",
    "<tool_call|>",
    "<|\"|>",
    "<|channel|>",
    "<|message|>",
    "<|start|>",
    "<|end|>",
    "<|call|>",
    "<|return|>",
    "<|constrain|>",
    "<|channel>",
];

fn tools(strict: bool) -> Tools {
    Tools::from_openai(&json!([
        {"type": "function", "function": {"name": "pick", "strict": strict, "parameters": {"type": "object",
            "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}, "kind": {"enum": ["ab", "cd"]},
                "maybe": {"type": "boolean"}},
            "required": ["n", "kind"], "additionalProperties": false}}},
        {"type": "function", "function": {"name": "now", "strict": strict, "parameters":
            {"type": "object", "properties": {}, "additionalProperties": false}}},
    ]))
}

fn grammars(marks_are_tokens: bool) -> Grammars {
    let mut file: Value = tokenizer_json();
    let mut next = 259;
    if marks_are_tokens {
        for mark in MARKS {
            file["added_tokens"]
                .as_array_mut()
                .unwrap()
                .push(json!({"id": next, "content": mark, "special": true,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false}));
            next += 1;
        }
    }
    let tokenizer = Tokenizer::from_json(file.to_string().as_bytes()).unwrap();
    Grammars::new(tokenizer, next, vec![256])
}

/// The calls of an answer, and its content.
fn calls(dialect: &Dialect, tail: &str, text: &str) -> (Vec<(String, String)>, String) {
    let options = ParserOptions { tools: tools(true), reasoning: true, prompt_tail: tail.to_owned() };
    let (mut parser, mut pieces) = (dialect.parser(options), Vec::new());
    parser.push(text, &mut pieces);
    parser.finish(&mut pieces);
    let (mut calls, mut content) = (Vec::<(String, String)>::new(), String::new());
    for piece in pieces {
        match piece {
            Piece::ToolCall { name, .. } => calls.push((name, String::new())),
            Piece::ToolArguments { index, text } => calls[index].1.push_str(&text),
            Piece::Content(text) => content.push_str(&text),
            Piece::Reasoning(_) | Piece::ToolEnd { .. } => {}
        }
    }
    (calls, content)
}

fn fits(name: &str, arguments: &str) -> bool {
    let Ok(value) = serde_json::from_str::<Value>(arguments) else { return false };
    match name {
        "now" => value == json!({}),
        "pick" => {
            let count = value["n"].as_u64().is_some_and(|n| n <= 99);
            count && (value["kind"] == "ab" || value["kind"] == "cd")
        }
        _ => false,
    }
}

#[test]
fn whatever_a_dialects_grammar_lets_through_its_parser_reads_as_the_calls_that_were_asked_for() {
    for marks_are_tokens in [false, true] {
        let grammars = grammars(marks_are_tokens);
        for (name, template, tail) in TEMPLATES {
            let dialect = Dialect::new(template, &grammars.tokenizer);
            assert_eq!(dialect.name(), name);
            if name == "harmony" {
                // A random walk does not find the way out of its free reasoning.
                continue;
            }
            for choice in
                [ToolChoice::Named("pick".into()), ToolChoice::Named("now".into()), ToolChoice::Required]
            {
                for strict in [true, false] {
                    let constraint = dialect.tool_constraint(&tools(strict), &choice, true, tail).unwrap();
                    for seed in 0..3 {
                        let text = walk_with(&grammars, &constraint, seed);
                        let (calls, content) = calls(&dialect, tail, &text);
                        let context = format!("{name} {choice:?} {strict} {marks_are_tokens}: {text:?}");
                        assert!(!calls.is_empty() && content.trim().is_empty(), "{context}");
                        for (called, arguments) in calls {
                            assert!(fits(&called, &arguments), "{context}: {arguments}");
                            assert!(
                                !matches!(&choice, ToolChoice::Named(named) if *named != called),
                                "{context}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn strict_tools_leave_text_free_until_a_call_begins_and_forms_wait_for_the_reasonings_end() {
    for marks_are_tokens in [false, true] {
        let grammars = grammars(marks_are_tokens);
        for (name, template, tail) in TEMPLATES {
            let dialect = Dialect::new(template, &grammars.tokenizer);
            let constraint = dialect.tool_constraint(&tools(true), &ToolChoice::Auto, true, tail).unwrap();
            let mut guide =
                grammars.guide(&constraint, &[]).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(guide.mask(false).unwrap().is_some());
            for form in [
                Grammar::JsonObject,
                Grammar::JsonSchema { schema: r#"{"type":"integer"}"#.into() },
                Grammar::Regex { pattern: "a/b|[0-9]+".into() },
                Grammar::Choice { choices: vec!["x".into()] },
            ] {
                for tail in [tail, "", "<think>\n"] {
                    let constraint = dialect.answer_constraint(form.clone(), tail);
                    let guide = grammars.guide(&constraint, &[]);
                    let mut guide = guide.unwrap_or_else(|error| panic!("{name}: {error}"));
                    guide.mask(false).unwrap_or_else(|error| panic!("{name}: {error}"));
                }
            }
        }
    }
}
