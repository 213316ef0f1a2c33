//! Requests are read strictly: what changes an answer is understood or refused by its path.

use serde_json::{Value, json};
use wire::openai::{ChatRequest, CompletionRequest, Prompt, RequestError};

fn chat(mut extra: Value) -> Result<ChatRequest, RequestError> {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    for (name, value) in extra.as_object_mut().expect("an object") {
        body[name] = value.take();
    }
    ChatRequest::parse(body.to_string().as_bytes())
}

fn completion(mut extra: Value) -> Result<CompletionRequest, RequestError> {
    let mut body = json!({"model": "m", "prompt": "once"});
    for (name, value) in extra.as_object_mut().expect("an object") {
        body[name] = value.take();
    }
    CompletionRequest::parse(body.to_string().as_bytes())
}

fn refused<T>(outcome: Result<T, RequestError>) -> (String, &'static str) {
    match outcome {
        Ok(_) => panic!("the request was accepted"),
        Err(error) => (error.param.unwrap_or_default(), error.code),
    }
}

#[test]
fn every_parameter_of_a_chat_reaches_its_field() {
    let request = chat(json!({
        "stream": true, "stream_options": {"include_usage": true}, "max_completion_tokens": 7, "temperature": 0,
        "top_p": 0.5, "top_k": 40, "min_p": 0.25, "repetition_penalty": 1.5, "presence_penalty": -1,
        "frequency_penalty": 2, "seed": -1, "logit_bias": {"12": -100}, "stop": ["a", "b"], "logprobs": true,
        "top_logprobs": 3, "user": "me", "n": 1, "response_format": {"type": "text"}, "tools": [], "metadata": null
    }))
    .unwrap_or_else(|error| panic!("{error}"));
    let generation = request.generation;
    assert!(generation.stream && generation.include_usage);
    assert_eq!(generation.max_tokens, Some(7));
    assert_eq!((generation.temperature, generation.top_p), (Some(0.0), Some(0.5)));
    assert_eq!((generation.top_k, generation.min_p), (Some(40), Some(0.25)));
    assert_eq!(generation.repetition_penalty, Some(1.5));
    assert_eq!((generation.presence_penalty, generation.frequency_penalty), (Some(-1.0), Some(2.0)));
    assert_eq!(generation.seed, Some(u64::MAX));
    assert_eq!(generation.logit_bias, [(12, -100.0)]);
    assert_eq!(generation.stop, ["a", "b"]);
    assert_eq!(generation.logprobs, Some(3));
    assert_eq!(generation.ignored, ["user"]);
}

#[test]
fn text_parts_are_joined_and_the_developer_speaks_as_system() {
    let request = chat(json!({"messages": [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "refusal": null, "tool_calls": null, "annotations": []},
        {"role": "user", "content": "d", "name": "ann"}
    ]}))
    .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(
        request.messages,
        [
            json!({"role": "system", "content": "be brief"}),
            json!({"role": "user", "content": "ab"}),
            json!({"role": "assistant", "content": "c"}),
            json!({"role": "user", "content": "d", "name": "ann"}),
        ]
    );
}

#[test]
fn what_a_client_sends_by_default_and_what_happens_anyway_is_accepted() {
    let accepted = [
        json!({"n": 1.0, "verbosity": "medium", "reasoning_effort": "none"}),
        json!({"tool_choice": "auto", "function_call": "auto", "tools": [], "functions": []}),
        json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {}}]}]}),
    ];
    for extra in accepted {
        let shown = extra.to_string();
        assert!(chat(extra).is_ok(), "{shown}");
    }
    for (name, value) in [("verbosity", "low"), ("reasoning_effort", "high"), ("function_call", "f")] {
        assert_eq!(refused(chat(json!({name: value}))).0, name);
    }
}

#[test]
fn what_is_ignored_is_listed_once_however_many_messages_have_it() {
    let said = json!({"role": "assistant", "content": "a", "annotations": []});
    let request = chat(
        json!({"messages": vec![said; 4000], "stream": true, "stream_options": {"include_obfuscation": false}}),
    );
    let ignored = request.unwrap_or_else(|error| panic!("{error}")).generation.ignored;
    assert_eq!(ignored, ["messages[].annotations", "stream_options.include_obfuscation"]);
}

#[test]
fn a_refusal_names_the_path_of_the_parameter() {
    let cases = [
        (json!({"model": 3}), "model", "invalid_type"),
        (json!({"model": null}), "model", "missing_required_parameter"),
        (json!({"messages": []}), "messages", "invalid_value"),
        (json!({"messages": "hi"}), "messages", "invalid_type"),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content", "missing_required_parameter"),
        (json!({"messages": [{"role": "robot", "content": ""}]}), "messages[0].role", "invalid_value"),
        (json!({"messages": [{"role": "tool", "content": ""}]}), "messages[0].role", "unsupported_parameter"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}),
            "messages[0].content[0].type",
            "unsupported_parameter",
        ),
        (
            json!({"messages": [{"role": "user", "content": "", "mood": 1}]}),
            "messages[0].mood",
            "unknown_parameter",
        ),
        (json!({"temperature": 2.5}), "temperature", "invalid_value"),
        (json!({"temperature": "hot"}), "temperature", "invalid_type"),
        (json!({"max_tokens": 0}), "max_tokens", "invalid_value"),
        (json!({"max_tokens": 1.5}), "max_tokens", "invalid_type"),
        (json!({"max_tokens": 1, "max_completion_tokens": 2}), "max_tokens", "invalid_value"),
        (json!({"n": 2}), "n", "unsupported_parameter"),
        (json!({"tools": [{"type": "function"}]}), "tools", "unsupported_parameter"),
        (json!({"response_format": {"type": "json_object"}}), "response_format", "unsupported_parameter"),
        (json!({"logit_bias": {"x": 1}}), "logit_bias.x", "invalid_value"),
        (json!({"logit_bias": {"1": 101}}), "logit_bias.1", "invalid_value"),
        (json!({"stop": [""]}), "stop[0]", "invalid_value"),
        (json!({"top_logprobs": 2}), "top_logprobs", "invalid_value"),
        (json!({"stream_options": {}}), "stream_options", "invalid_value"),
        (json!({"stream": true, "stream_options": {"x": 1}}), "stream_options.x", "unknown_parameter"),
        (json!({"frobnicate": 1}), "frobnicate", "unknown_parameter"),
    ];
    for (extra, param, code) in cases {
        let shown = extra.to_string();
        assert_eq!(refused(chat(extra)), (param.to_owned(), code), "{shown}");
    }
}

#[test]
fn a_body_that_is_no_object_is_refused_as_a_whole_without_showing_it() {
    for body in ["", "{", "[1]", "{\"model\": \"secret words", "\u{0}", "{\"model\":\"m\"}x"] {
        let Err(error) = ChatRequest::parse(body.as_bytes()) else { panic!("{body:?} was accepted") };
        assert_eq!((error.param, error.code), (None, "invalid_json"), "{body:?}");
        assert!(!error.message.contains("secret"));
        assert_eq!(error.message.contains("is empty"), body.is_empty(), "{}", error.message);
    }
    let Err(error) = ChatRequest::parse(br#"{"model": "\ud800"}"#) else { panic!("half a character") };
    assert!(error.message.contains("surrogate") || error.message.contains("hex escape"), "{}", error.message);
    assert!(ChatRequest::parse(&[0xff, 0xfe]).is_err());
    let deep = format!("{{\"model\":{}", "[".repeat(100_000));
    assert!(ChatRequest::parse(deep.as_bytes()).is_err());
}

#[test]
fn a_completion_takes_text_tokens_or_a_list_of_either() {
    let prompts = |prompt: Value| match completion(json!({"prompt": prompt})) {
        Ok(request) => request.prompts,
        Err(error) => panic!("{error}"),
    };
    assert!(prompts(json!("a")) == [Prompt::Text("a".into())]);
    assert!(prompts(json!(["a", "b"])) == [Prompt::Text("a".into()), Prompt::Text("b".into())]);
    assert!(prompts(json!([1, 2])) == [Prompt::Tokens(vec![1, 2])]);
    assert!(prompts(json!([[1], [2, 3]])) == [Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])]);
    let cases = [
        (json!({"prompt": []}), "prompt"),
        (json!({"prompt": [1, "a"]}), "prompt[1]"),
        (json!({"prompt": [[1], []]}), "prompt[1]"),
        (json!({"prompt": [-1]}), "prompt[0]"),
        (json!({"prompt": ["a", "b"], "stream": true}), "prompt"),
        (json!({"echo": true}), "echo"),
        (json!({"suffix": "x"}), "suffix"),
        (json!({"best_of": 2}), "best_of"),
        (json!({"logprobs": 21}), "logprobs"),
    ];
    for (extra, param) in cases {
        assert_eq!(refused(completion(extra)).0, param);
    }
    assert!(completion(json!({"echo": false, "suffix": null, "best_of": 1, "logprobs": 5})).is_ok());
}
