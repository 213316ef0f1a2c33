//! Requests are read strictly: what changes an answer is understood or refused by its path.

use serde_json::{Value, json};
use wire::openai::{RequestError, parse_chat, parse_completion};
use wire::request::{AnswerFormat, Chat, Generation, Prompt, Source, ToolChoice};

struct Asked {
    chat: Chat,
    messages: Vec<Value>,
    generation: Generation,
}

fn chat(mut extra: Value) -> Result<Asked, RequestError> {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    for (name, value) in extra.as_object_mut().expect("an object") {
        body[name] = value.take();
    }
    let request = parse_chat(body.to_string().as_bytes())?;
    let Source::Chat(chat) = request.source else { panic!("a chat is a chat") };
    Ok(Asked { messages: chat.messages.clone(), chat, generation: request.generation })
}

fn completion(mut extra: Value) -> Result<Vec<Prompt>, RequestError> {
    let mut body = json!({"model": "m", "prompt": "once"});
    for (name, value) in extra.as_object_mut().expect("an object") {
        body[name] = value.take();
    }
    let Source::Texts(prompts) = parse_completion(body.to_string().as_bytes())?.source else {
        panic!("texts are texts")
    };
    Ok(prompts)
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
        json!({"n": 3, "parallel_tool_calls": false, "moderation": null}),
        json!({"tool_choice": "auto", "function_call": "auto", "tools": [], "functions": []}),
        json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {}}]}]}),
    ];
    for extra in accepted {
        let shown = extra.to_string();
        assert!(chat(extra).is_ok(), "{shown}");
    }
    for (name, value) in [("verbosity", "low"), ("reasoning_effort", "huge"), ("function_call", "f")] {
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
        (
            json!({"messages": [{"role": "function", "content": ""}]}),
            "messages[0].role",
            "unsupported_parameter",
        ),
        (
            json!({"messages": [{"role": "tool", "content": ""}]}),
            "messages[0].tool_call_id",
            "missing_required_parameter",
        ),
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
        (json!({"n": 0}), "n", "invalid_value"),
        (json!({"tools": [{"type": "function"}]}), "tools[0].function", "missing_required_parameter"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type", "unsupported_parameter"),
        (json!({"tool_choice": "required"}), "tool_choice", "invalid_value"),
        (
            json!({"tool_choice": {"type": "function", "function": {"name": "f"}}}),
            "tool_choice",
            "invalid_value",
        ),
        (json!({"response_format": {"type": "yaml"}}), "response_format.type", "invalid_value"),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x y", "schema": {}}}}),
            "response_format.json_schema.name",
            "invalid_value",
        ),
        (
            json!({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}),
            "structured_outputs",
            "invalid_value",
        ),
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
        let Err(error) = parse_chat(body.as_bytes()) else { panic!("{body:?} was accepted") };
        assert_eq!((error.param, error.code), (None, "invalid_json"), "{body:?}");
        assert!(!error.message.contains("secret"));
        assert_eq!(error.message.contains("is empty"), body.is_empty(), "{}", error.message);
    }
    let Err(error) = parse_chat(br#"{"model": "\ud800"}"#) else { panic!("half a character") };
    assert!(error.message.contains("surrogate") || error.message.contains("hex escape"), "{}", error.message);
    assert!(parse_chat(&[0xff, 0xfe]).is_err());
    let deep = format!("{{\"model\":{}", "[".repeat(100_000));
    assert!(parse_chat(deep.as_bytes()).is_err());
}

#[test]
fn a_completion_takes_text_tokens_or_a_list_of_either() {
    let prompts = |prompt: Value| match completion(json!({"prompt": prompt})) {
        Ok(prompts) => prompts,
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
        (json!({"prompt": vec!["a"; 64], "n": 3}), "n"),
        (json!({"echo": true, "logprobs": 1}), "echo"),
        (json!({"suffix": "x"}), "suffix"),
        (json!({"best_of": 2}), "best_of"),
        (json!({"logprobs": 21}), "logprobs"),
    ];
    for (extra, param) in cases {
        assert_eq!(refused(completion(extra)).0, param);
    }
    assert!(completion(json!({"echo": false, "suffix": null, "best_of": 2, "n": 2, "logprobs": 5})).is_ok());
}

#[test]
fn tools_and_calls_reach_the_template_and_a_choice_leaves_only_what_may_be_called() {
    let f = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}});
    let call = json!({"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}});
    let request = chat(json!({
        "tools": [f("f"), f("g"), {"type": "function", "function": {"name": "h", "description": "d"}}],
        "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [f_named("g")]}},
        "parallel_tool_calls": false,
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": null, "tool_calls": [call], "reasoning_content": "hm"},
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "7"}]}
        ]
    }))
    .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(request.chat.tools.len(), 1);
    assert_eq!(request.chat.tools[0].for_template()["function"]["name"], "g");
    assert_eq!(request.chat.tool_choice, ToolChoice::Required);
    assert!(!request.chat.parallel_tools);
    let call = json!({"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}});
    assert_eq!(
        request.messages[1],
        json!({"reasoning_content": "hm", "role": "assistant", "content": "", "tool_calls": [call]})
    );
    assert_eq!(request.messages[2], json!({"tool_call_id": "c1", "role": "tool", "content": "7"}));
    let named = chat(json!({"tools": [f("f")], "tool_choice": f_named("f")}));
    assert!(named.is_ok_and(|named| named.chat.tool_choice == ToolChoice::Named("f".to_owned())));
}

fn f_named(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name}})
}

#[test]
fn the_form_of_an_answer_is_read_under_each_of_its_names() {
    let format = |extra: Value| match chat(extra) {
        Ok(request) => request.generation.format,
        Err(error) => panic!("{error}"),
    };
    let schema = json!({"type": "object", "properties": {"b": {}, "a": {}}});
    let named =
        json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": true}});
    assert!(format(json!({"response_format": {"type": "json_object"}})) == AnswerFormat::JsonObject);
    assert!(
        format(json!({"response_format": named}))
            == AnswerFormat::JsonSchema { schema: schema.clone(), name: Some("n".to_owned()) }
    );
    assert!(
        format(json!({"structured_outputs": {"json": schema}}))
            == AnswerFormat::JsonSchema { schema, name: None }
    );
    assert!(
        format(json!({"structured_outputs": {"choice": ["a", "b"]}}))
            == AnswerFormat::Choice(vec!["a".to_owned(), "b".to_owned()])
    );
}
