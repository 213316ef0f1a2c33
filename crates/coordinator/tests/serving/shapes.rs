//! Every API's shape over the one way: the same answers, in each caller's own words; and the document that lists them.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::house::{House, PATIENCE, chat_body, streamed};
use super::provider::{Act, Provider, answer, end, token};

const ROUTER: &str = include_str!("../../src/api.rs");

/// Paths of the router that the document leaves out: other spellings, what is refused, and the machines' own door.
fn unlisted(path: &str) -> bool {
    let refused = ["pull", "push", "create", "copy", "delete"];
    path.ends_with('/')
        || path == "/api/uplink"
        || path.strip_prefix("/api/").is_some_and(|name| refused.contains(&name))
}

#[tokio::test]
async fn the_document_lists_every_path_of_the_router_and_no_other() {
    let house = House::open().await;
    let response = house.http.get(house.url("/openapi.json")).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let document: Value = response.json().await.unwrap();
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    let listed = document["paths"].as_object().unwrap();
    let routed: Vec<String> = ROUTER
        .split(".route(\"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
        .filter(|path| !unlisted(path))
        .map(|path| path.replace("{*", "{"))
        .collect();
    assert!(routed.len() > 15);
    for path in &routed {
        assert!(listed.contains_key(path), "{path} is served and not listed in openapi.json");
    }
    for (path, calls) in listed {
        assert!(routed.contains(path), "{path} is listed and not served");
        for method in calls.as_object().unwrap().keys() {
            let url = house.url(&path.replace(['{', '}'], ""));
            let method = reqwest::Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            let status = house.http.request(method.clone(), url).send().await.unwrap().status();
            assert_ne!(status, 405, "{method} {path} is listed and not served");
            assert!(status == 401 || status == 200, "{method} {path} without a key: {status}");
        }
    }
}

#[tokio::test]
async fn problems_are_told_in_the_callers_own_shape() {
    let house = House::open().await;
    let ask = |path: &str| house.post(path, &json!({"model": "none", "max_tokens": 1, "messages": []}));
    let response = ask("/v1/messages").send().await.unwrap();
    assert_eq!(response.status(), 400);
    assert!(response.headers().contains_key("request-id"));
    let body: Value = response.json().await.unwrap();
    assert_eq!((&body["type"], &body["error"]["type"]), (&json!("error"), &json!("invalid_request_error")));
    assert!(body["error"]["message"].as_str().unwrap().contains("'messages'"), "{body}");
    let plain = house.http.get(house.url("/api/tags")).send().await.unwrap();
    assert_eq!(plain.status(), 401);
    let body: Value = plain.json().await.unwrap();
    assert!(body["error"].is_string(), "{body}");
    let with_key = house.http.get(house.url("/v1/models")).header("x-api-key", &house.key);
    let models: Value =
        with_key.header("anthropic-version", "2023-06-01").send().await.unwrap().json().await.unwrap();
    assert_eq!(models["has_more"], false);
}

#[tokio::test]
async fn several_choices_come_interleaved_and_one_failure_ends_them_all() {
    let house = House::open().await;
    let mut provider = Provider::join(&house).await;
    provider.next(answer(&["a", "b"]));
    provider.next(answer(&["c"]));
    let body = house.chat(json!({"n": 2, "stream": true, "seed": 5})).await.text().await.unwrap();
    let got = streamed(&body);
    assert!(got.done, "{body}");
    let seeds = [provider.attempt().await.1.ask.sampling.seed, provider.attempt().await.1.ask.sampling.seed];
    assert!(seeds == [5, 6] || seeds == [6, 5], "{seeds:?}");
    let ends = got.events.iter().filter(|event| event["choices"][0]["finish_reason"] == "stop").count();
    assert_eq!(ends, 2);
    provider.next(vec![Act::Send(token(0, "a")), Act::Send(end(1, wire::chunk::FinishReason::Stop))]);
    provider.next(vec![Act::Send(token(0, "b")), Act::Tampered(token(1, "x"))]);
    let response = house.post("/v1/chat/completions", &chat_body(json!({"n": 2, "stream": true})));
    let response = response.header("x-phalanx-failover", "off").send().await.unwrap();
    let got = streamed(&response.text().await.unwrap());
    assert!(!got.done && got.error.is_some());
}

#[tokio::test]
async fn a_tool_call_is_told_in_every_shape() {
    let house = House::open().await;
    let provider = Provider::join(&house).await;
    let written = ["<tool_call>\n{\"name\": \"f\", \"argu", "ments\": {\"a\": 1}}\n</tool_call>"];
    let schema = json!({"type": "object"});
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": schema}}]);
    provider.next(answer(&written));
    let chat: Value = house.chat(json!({"tools": tools})).await.json().await.unwrap();
    let choice = &chat["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{chat}");
    assert_eq!(choice["message"]["tool_calls"][0]["function"]["name"], "f");
    let arguments = choice["message"]["tool_calls"][0]["function"]["arguments"].as_str().unwrap();
    assert_eq!(serde_json::from_str::<Value>(arguments).unwrap(), json!({"a": 1}));
    let said = json!([{"role": "user", "content": "go"}]);
    provider.next(answer(&written));
    let asked = json!({
        "model": "small", "max_tokens": 50, "messages": said, "tools": [{"name": "f", "input_schema": schema}],
    });
    let message: Value = house.post("/v1/messages", &asked).send().await.unwrap().json().await.unwrap();
    assert_eq!(message["stop_reason"], "tool_use", "{message}");
    assert_eq!(message["content"][0]["input"], json!({"a": 1}));
    provider.next(answer(&written));
    let asked = json!({"model": "small:latest", "messages": said, "tools": tools, "stream": false});
    let line: Value = house.post("/api/chat", &asked).send().await.unwrap().json().await.unwrap();
    assert_eq!(line["message"]["tool_calls"][0]["function"]["arguments"], json!({"a": 1}), "{line}");
    provider.next(answer(&written));
    let asked = json!({
        "model": "small", "input": "go", "tools": [{"type": "function", "name": "f", "parameters": schema}],
    });
    let made: Value = house.post("/v1/responses", &asked).send().await.unwrap().json().await.unwrap();
    assert_eq!(made["output"][0]["type"], "function_call", "{made}");
    let id = made["id"].as_str().unwrap();
    let kept: Value = house.get(&format!("/v1/responses/{id}")).await.json().await.unwrap();
    assert_eq!(kept, made);
}

#[tokio::test]
async fn ollamas_clients_need_no_key_only_where_the_operator_says_so_and_only_from_this_machine() {
    let house = House::with(|config| config.api.ollama_without_key = true).await;
    let _provider = Provider::join(&house).await;
    let ask = || house.http.get(house.url("/api/tags"));
    assert_eq!(ask().send().await.unwrap().status(), 200);
    // A page in this machine's browser says where it comes from, or calls a name of its own that leads here.
    assert_eq!(ask().header("origin", "https://example.com").send().await.unwrap().status(), 401);
    assert_eq!(ask().header("host", "example.com").send().await.unwrap().status(), 401);
    for path in ["/v1/models", "/api/status", "/api/keys"] {
        assert_eq!(house.http.get(house.url(path)).send().await.unwrap().status(), 401, "{path}");
    }
    let key = house.store_key("ollama (without a key)").await;
    let revoked =
        house.http.delete(house.url(&format!("/api/keys/{key}"))).bearer_auth(&house.key).send().await;
    assert_eq!(revoked.unwrap().status(), 200);
    assert_eq!(ask().send().await.unwrap().status(), 401);
}

#[tokio::test]
async fn odd_heads_are_refused_and_leave_others_alone() {
    let house = House::open().await;
    let flood: String = (0..200).map(|at| format!("x-{at}: y\r\n")).collect();
    let heads = [
        ("GET /health HTTP/1.1\r\n\r\n".to_owned(), "400"),
        (format!("GET /health HTTP/1.1\r\nHost: x\r\n{flood}\r\n"), "431"),
        (format!("GET /health HTTP/1.1\r\nHost: x\r\nA: {}\r\n\r\n", "y".repeat(1 << 20)), "431"),
        ("GET /health HTTP/9.9\r\nHost: x\r\n\r\n".to_owned(), "400"),
    ];
    for (head, status) in heads {
        let mut socket = TcpStream::connect(&house.address).await.unwrap();
        let mut answer = vec![0; 64];
        let exchange = async {
            let _ = socket.write_all(head.as_bytes()).await;
            socket.read(&mut answer).await.unwrap_or(0)
        };
        let read = tokio::time::timeout(PATIENCE, exchange).await.unwrap();
        let text = String::from_utf8_lossy(&answer[..read]).into_owned();
        assert!(read == 0 || text.contains(status), "{text}");
        assert_eq!(house.get("/health").await.status(), 200);
    }
}

#[tokio::test]
async fn megabytes_of_prompt_are_refused_without_being_cut_into_tokens() {
    let house = House::open().await;
    let _provider = Provider::join(&house).await;
    let response =
        house.chat(json!({"messages": [{"role": "user", "content": "ab ".repeat(700_000)}]})).await;
    assert_eq!(response.status(), 400);
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["error"]["code"], "context_length_exceeded");
}

#[tokio::test]
async fn a_stream_whose_reader_was_cut_off_is_read_to_its_end_from_where_it_was() {
    let house = House::open().await;
    let provider = Provider::join(&house).await;
    let gate = std::sync::Arc::new(tokio::sync::Notify::new());
    provider.next(vec![
        Act::Send(token(0, "a")),
        Act::Hold(std::sync::Arc::clone(&gate)),
        Act::Send(token(1, "b")),
        Act::Send(end(2, wire::chunk::FinishReason::Stop)),
    ]);
    let request = house.post("/v1/chat/completions", &chat_body(json!({"stream": true})));
    let mut response = request.header("x-phalanx-resume", "on").send().await.unwrap();
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    let mut got = String::new();
    while !got.contains("id: 1\n") {
        got.push_str(&String::from_utf8_lossy(&response.chunk().await.unwrap().expect("it goes on")));
    }
    drop(response);
    gate.notify_one();
    let path = format!("/v1/chat/completions/{id}?starting_after=1");
    let rest = house.get(&path).await.text().await.unwrap();
    assert!(
        rest.contains("id: 2\n")
            && !rest.contains("id: 1\n")
            && !rest.contains("\"role\"")
            && rest.ends_with("data: [DONE]\n\n"),
        "{rest}"
    );
    assert!(rest.contains("\"content\":\"b\"") && !rest.contains("\"content\":\"a\""), "{rest}");
    let whole = house.get(&format!("/v1/chat/completions/{id}")).await.text().await.unwrap();
    assert!(whole.contains("id: 1\n") && whole.contains("\"role\"") && whole.contains("\"content\":\"a\""));
    assert_eq!(house.get("/v1/chat/completions/chatcmpl-0").await.status(), 404);
    let stranger = house.post("/api/keys", &json!({"name": "other"})).send().await.unwrap();
    let made: Value = stranger.json().await.unwrap();
    let other = house.http.get(house.url(&path)).bearer_auth(made["secret"].as_str().unwrap());
    assert_eq!(other.send().await.unwrap().status(), 404);
}
