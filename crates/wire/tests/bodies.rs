//! Whatever a caller sends, a parser gives a request or says what is wrong with it: it never panics, and its words never
//! hold what was sent.

use base::Rng;
use serde_json::{Map, Value, json};
use wire::{RequestError, anthropic, ollama, openai};

type Parse = fn(&[u8]) -> Result<(), RequestError>;

const PARSERS: [(&str, Parse); 11] = [
    ("chat", |body| openai::parse_chat(body).map(drop)),
    ("completion", |body| openai::parse_completion(body).map(drop)),
    ("response", |body| openai::parse_response(body).map(drop)),
    ("embedding", |body| openai::parse_embedding(body).map(drop)),
    ("message", |body| anthropic::parse_message(body).map(drop)),
    ("count", |body| anthropic::parse_count(body).map(drop)),
    ("ollama chat", |body| ollama::parse_chat(body).map(drop)),
    ("ollama generate", |body| ollama::parse_generate(body).map(drop)),
    ("ollama show", |body| ollama::parse_show(body).map(drop)),
    ("ollama embed", |body| ollama::embed::parse_embed(body).map(drop)),
    ("ollama embeddings", |body| ollama::embed::parse_embeddings(body).map(drop)),
];

/// Bodies that are right, with as many fields as there are: what is changed at random.
fn right() -> Vec<Value> {
    let schema = json!({"type": "object", "properties": {"a": {"type": "string"}}});
    let function = json!({"name": "f", "description": "d", "parameters": schema, "strict": true});
    let call = json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}});
    vec![
        json!({
            "model": "m", "stream": true, "stream_options": {"include_usage": true}, "n": 2, "seed": 3,
            "messages": [
                {"role": "developer", "content": [{"type": "text", "text": "secret"}]},
                {"role": "assistant", "content": null, "tool_calls": [call], "reasoning_content": "hm"},
                {"role": "tool", "tool_call_id": "c", "content": "7"},
            ],
            "tools": [{"type": "function", "function": function}], "tool_choice": "required",
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}},
            "logit_bias": {"1": 2}, "stop": ["a"], "logprobs": true, "top_logprobs": 2, "temperature": 0.5,
        }),
        json!({"model": "m", "prompt": [[1, 2], "a"], "logprobs": 2, "echo": false, "best_of": 1}),
        json!({
            "model": "m", "instructions": "i", "metadata": {"a": "b"}, "include": ["x"], "store": false,
            "input": [
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "secret"}]},
                {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "t"}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "7"},
            ],
            "tools": [{"type": "function", "name": "f", "parameters": schema}],
            "tool_choice": {"type": "function", "name": "f"}, "text": {"format": {"type": "json_object"}},
            "reasoning": {"effort": "low"},
        }),
        json!({
            "model": "m", "max_tokens": 5, "system": [{"type": "text", "text": "s"}],
            "messages": [
                {"role": "user", "content": "secret"},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "t", "signature": "s"},
                    {"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}},
                ]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "7"}]},
            ],
            "tools": [{"name": "f", "input_schema": schema}], "tool_choice": {"type": "tool", "name": "f"},
            "thinking": {"type": "enabled", "budget_tokens": 2048}, "stop_sequences": ["x"],
        }),
        json!({
            "model": "m", "stream": false, "format": schema, "think": "low", "keep_alive": "5m",
            "messages": [{"role": "assistant", "content": "", "tool_calls": [
                {"function": {"name": "f", "arguments": {"a": 1}}},
            ]}],
            "options": {"temperature": 1, "num_predict": -1, "stop": ["a"], "mirostat": 0},
            "tools": [{"type": "function", "function": function}],
        }),
        json!({"model": "m", "prompt": "secret", "suffix": "", "system": "s", "raw": true, "context": []}),
    ]
}

fn odd(rng: &mut Rng) -> Value {
    match rng.next_u64() % 14 {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(-1),
        3 => json!(1e308),
        4 => json!(u64::MAX),
        5 => json!(""),
        6 => json!("\u{0}\u{feff}e\u{301}"),
        7 => json!([]),
        8 => json!({}),
        9 => json!([[[{}]]]),
        10 => json!("x".repeat(300)),
        11 => json!([null, 1, "a", {}]),
        12 => json!({"type": "text", "text": 1}),
        _ => json!(0.5),
    }
}

/// Changes one place of a value: another value, a field gone, a field more, a list longer.
fn changed(value: &mut Value, rng: &mut Rng) {
    let deeper = !rng.next_u64().is_multiple_of(4);
    match value {
        Value::Object(map) if deeper && !map.is_empty() => {
            let at = (rng.next_u64() % map.len() as u64) as usize;
            if let Some((_, inner)) = map.iter_mut().nth(at) {
                changed(inner, rng);
            }
        }
        Value::Array(list) if deeper && !list.is_empty() => {
            let at = (rng.next_u64() % list.len() as u64) as usize;
            changed(&mut list[at], rng);
        }
        Value::Object(map) if rng.next_u64().is_multiple_of(2) => {
            let names: Vec<String> = map.keys().cloned().collect();
            match names.get((rng.next_u64() % (names.len() as u64 + 1)) as usize) {
                Some(name) => drop(map.remove(name)),
                None => drop(map.insert("unheard_of".to_owned(), odd(rng))),
            }
        }
        Value::Array(list) if rng.next_u64().is_multiple_of(2) => list.push(odd(rng)),
        other => *other = odd(rng),
    }
}

fn check(name: &str, parse: Parse, body: &[u8]) {
    if let Err(error) = parse(body) {
        let shown = String::from_utf8_lossy(body);
        assert!(!error.message.is_empty(), "{name}: {shown}");
        assert!(!error.message.contains("secret"), "{name} repeats what was sent: {}", error.message);
        let whole = error.code == "invalid_json";
        assert_eq!(error.param.is_none(), whole, "{name}: {} ({shown})", error.message);
        assert!(error.param.is_none_or(|param| param.len() <= 300), "{name}: {shown}");
    }
}

#[test]
fn changed_bodies_are_read_or_refused_by_name() {
    let mut rng = Rng::new(20_261_121);
    for body in right() {
        for _ in 0..2500 {
            let mut body = body.clone();
            for _ in 0..=rng.next_u64() % 3 {
                changed(&mut body, &mut rng);
            }
            let text = body.to_string();
            for (name, parse) in PARSERS {
                check(name, parse, text.as_bytes());
            }
        }
    }
}

#[test]
fn broken_bytes_are_refused_as_a_whole() {
    let mut rng = Rng::new(7);
    for body in right() {
        let text = body.to_string().into_bytes();
        for _ in 0..400 {
            let mut bytes = text.clone();
            let at = (rng.next_u64() % bytes.len() as u64) as usize;
            match rng.next_u64() % 3 {
                0 => bytes.truncate(at),
                1 => bytes[at] = rng.next_u64() as u8,
                _ => bytes.insert(at, rng.next_u64() as u8),
            }
            for (_, parse) in PARSERS {
                let _ = parse(&bytes);
            }
        }
    }
}

#[test]
fn what_is_right_is_read_by_its_own_parser() {
    let bodies = right();
    let own: [Parse; 6] =
        [PARSERS[0].1, PARSERS[1].1, PARSERS[2].1, PARSERS[4].1, PARSERS[6].1, PARSERS[5].1];
    for (at, body) in bodies.iter().enumerate() {
        // The last is Ollama's text, whose parser stands apart.
        let parse = if at == 5 { PARSERS[7].1 } else { own[at] };
        let read = parse(body.to_string().as_bytes());
        // Tools that may be called and a form are both read; which of them stands is not the parser's to say.
        assert!(read.is_ok(), "{at}: {}", read.err().map_or(String::new(), |error| error.message));
    }
    let deep = format!("{{\"model\":\"m\",\"metadata\":{}1{}}}", "[".repeat(5000), "]".repeat(5000));
    let wide: Map<String, Value> = (0..20_000).map(|at| (format!("f{at}"), json!(at))).collect();
    let wide = Value::Object(wide).to_string();
    for (name, parse) in PARSERS {
        check(name, parse, deep.as_bytes());
        check(name, parse, wide.as_bytes());
    }
}
