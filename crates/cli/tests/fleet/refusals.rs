//! What is refused, and whether both ends are told why and what to do.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::api::{Api, coordinator, provider, turn};

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_with_a_wrong_token_is_told_why_and_what_to_do_and_ends() {
    let mut coordinator = coordinator(&[]);
    let url = coordinator.ready("url").to_owned();
    let ended = provider(&url, "not-the-token", "stranger", &[]).spawn().ended();
    assert!(!ended.status.success());
    assert!(ended.printed.contains("token"), "{}", ended.printed);
    assert!(!ended.printed.contains("not-the-token"), "secrets are not printed");
    coordinator.await_printed("token");
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_the_uplink_closes_that_connection_and_disturbs_nothing_else() {
    let coordinator = coordinator(&[]);
    let api = Api::of(&coordinator);
    let _provider = provider(&api.url, coordinator.ready("join_token"), "good", &[]).start();
    api.await_eligible(1).await;
    for garbage in [&b"\x81\x85\0\0\0\0{\"a\":"[..], &[0xff; 64], b"\x82\x84\0\0\0\0abcd"] {
        let mut socket = TcpStream::connect(api.url.trim_start_matches("http://")).await.unwrap();
        let upgrade = "GET /api/uplink HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        socket.write_all(upgrade.as_bytes()).await.unwrap();
        socket.write_all(garbage).await.unwrap();
        let mut rest = Vec::new();
        // Closed by the other side, in bounded time.
        let read = tokio::time::timeout(testkit::program::PATIENCE, socket.read_to_end(&mut rest));
        assert!(read.await.is_ok(), "the connection stays open");
        assert!(rest.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&rest));
    }
    let (code, answer) = api.ask("Hello!", 8).await;
    assert_eq!(code, 200, "{answer:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_refused_in_the_callers_shape_with_the_parameter_named() {
    let coordinator = coordinator(&[]);
    let api = Api::of(&coordinator);
    let _provider = provider(&api.url, coordinator.ready("join_token"), "good", &[]).start();
    api.await_eligible(1).await;
    let with = |name: &str, value: Value| {
        let mut body = turn("Hello!", 4);
        body[name] = value;
        body
    };
    let cases = [
        (with("model", json!("nobody")), 404, "model"),
        (with("temperature", json!("warm")), 400, "temperature"),
        (
            with("tools", json!([{"type": "function", "function": {"name": ""}}])),
            400,
            "tools[0].function.name",
        ),
        (with("response_format", json!({"type": "yaml"})), 400, "response_format.type"),
        (with("max_tokens", json!(-1)), 400, "max_tokens"),
        (with("logprobs", json!(3)), 400, "logprobs"),
    ];
    for (body, code, param) in cases {
        let answer = api.post("/v1/chat/completions", &body).await;
        assert_eq!(answer.status().as_u16(), code, "{body}");
        assert!(answer.headers().contains_key("x-request-id"));
        let answer: Value = answer.json().await.unwrap();
        assert_eq!(answer["error"]["param"], param, "{answer}");
        assert!(!answer["error"]["message"].as_str().unwrap().is_empty());
    }
    let long = turn(&"word ".repeat(30_000), 4);
    let answer: Value = api.post("/v1/chat/completions", &long).await.json().await.unwrap();
    assert_eq!(answer["error"]["code"], "context_length_exceeded", "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_the_cap_is_refused_before_it_is_read() {
    let coordinator = coordinator(&[]);
    let api = Api::of(&coordinator);
    let mut socket = TcpStream::connect(api.url.trim_start_matches("http://")).await.unwrap();
    // A terabyte is announced and never sent.
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\
         Content-Type: application/json\r\nContent-Length: 1099511627776\r\n\r\n{{",
        api.key
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 4096];
    let read = tokio::time::timeout(testkit::program::PATIENCE, socket.read(&mut answer));
    let count = read.await.expect("an answer without the body").unwrap();
    let answer = String::from_utf8_lossy(&answer[..count]);
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_opens_nothing_and_a_plain_key_does_not_operate() {
    let coordinator = coordinator(&[]);
    let api = Api::of(&coordinator);
    let created: Value = api.post("/api/keys", &json!({"name": "app"})).await.json().await.unwrap();
    let app = Api { key: created["secret"].as_str().unwrap().to_owned(), ..Api::of(&coordinator) };
    assert!(app.get("/v1/models").await["data"].is_array());
    assert_eq!(app.get("/api/status").await["error"]["code"], "not_admin");
    let id = created["key"]["id"].as_str().unwrap();
    let client = reqwest::Client::new();
    let revoke = client.delete(format!("{}/api/keys/{id}", api.url)).bearer_auth(&api.key).send().await;
    assert!(revoke.unwrap().status().is_success());
    assert_eq!(app.get("/v1/models").await["error"]["code"], "invalid_api_key");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_fits_in_no_message_to_a_machine_is_refused_with_both_numbers() {
    let coordinator = coordinator(&["--set", "uplink.data_bytes_max=65536"]);
    let api = Api::of(&coordinator);
    let _one = provider(&api.url, coordinator.ready("join_token"), "one", &[]).start();
    api.await_eligible(1).await;
    let mut body = turn("Hello!", 4);
    let schema = json!({"type": "string", "maxLength": 3, "description": "x".repeat(80_000)});
    body["response_format"] =
        json!({"type": "json_schema", "json_schema": {"name": "large", "schema": schema}});
    let answer = api.post("/v1/chat/completions", &body).await;
    let status = answer.status();
    let answer: serde_json::Value = answer.json().await.unwrap();
    assert_eq!(status, 413, "{answer}");
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("uplink.data_bytes_max") && message.contains("64"), "{message}");
    // One request failed, and nothing else.
    assert_eq!(api.ask("Hello!", 4).await.0, 200);
}
