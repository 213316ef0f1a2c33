//! The front door: who may come in, what is refused, and in which words.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::house::{House, PATIENCE, chat_body};
use super::provider::{Act, Provider, end, token};

async fn error_of(response: reqwest::Response) -> Value {
    assert!(response.headers().contains_key("x-request-id"));
    let body: Value = response.json().await.unwrap();
    assert!(body["error"]["message"].is_string() && body["error"]["type"].is_string(), "{body}");
    body["error"].clone()
}

#[tokio::test]
async fn nobody_comes_in_without_a_key_of_ours() {
    let house = House::open().await;
    let bare = house.http.post(house.url("/v1/chat/completions")).json(&chat_body(json!({})));
    let wrong = bare.try_clone().unwrap().bearer_auth("sk-phx-wrong");
    for request in [bare, wrong] {
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 401);
        assert!(response.headers()["www-authenticate"].to_str().unwrap().starts_with("Bearer"));
        assert_eq!(error_of(response).await["code"], "invalid_api_key");
    }
    for path in ["/v1/models", "/v1/models/x", "/api/status", "/api/keys", "/api/segments"] {
        assert_eq!(house.http.get(house.url(path)).send().await.unwrap().status(), 401, "{path}");
    }
    for path in ["/health", "/ready", "/metrics"] {
        assert_eq!(house.http.get(house.url(path)).send().await.unwrap().status(), 200, "{path}");
    }
}

#[tokio::test]
async fn keys_are_made_listed_and_revoked_by_admins_alone() {
    let house = House::open().await;
    let body = json!({"name": "app"});
    let made: Value = house.post("/api/keys", &body).send().await.unwrap().json().await.unwrap();
    let (secret, id) = (made["secret"].as_str().unwrap(), made["key"]["id"].as_str().unwrap());
    assert!(secret.starts_with("sk-phx-"));
    let models = |key: &str| house.http.get(house.url("/v1/models")).bearer_auth(key).send();
    assert_eq!(models(secret).await.unwrap().status(), 200);
    let response = house.http.get(house.url("/api/keys")).bearer_auth(secret).send().await.unwrap();
    assert_eq!(response.status(), 403);
    assert_eq!(error_of(response).await["code"], "not_admin");
    let listed: Value = house.get("/api/keys").await.json().await.unwrap();
    assert_eq!(listed["keys"].as_array().unwrap().len(), 2);
    assert!(!listed.to_string().contains(secret));
    let revoke =
        |id: &str| house.http.delete(house.url(&format!("/api/keys/{id}"))).bearer_auth(&house.key).send();
    assert_eq!(revoke(id).await.unwrap().status(), 200);
    assert_eq!(models(secret).await.unwrap().status(), 401);
    assert_eq!(revoke("key_zz").await.unwrap().status(), 404);
    let response = house.post("/api/keys", &json!({"name": "x", "colour": "red"})).send().await.unwrap();
    assert_eq!(response.status(), 400);
}

#[tokio::test]
async fn what_is_wrong_with_a_body_is_named() {
    let house = House::open().await;
    let _provider = Provider::join(&house).await;
    let raw = |text: &'static str| {
        house.http.post(house.url("/v1/chat/completions")).bearer_auth(&house.key).body(text).send()
    };
    assert_eq!(error_of(raw("{").await.unwrap()).await["code"], "invalid_json");
    let cases = [
        (json!({"temperature": "hot"}), 400, "temperature"),
        (json!({"n": 0}), 400, "n"),
        (json!({"frob": 1}), 400, "frob"),
        (json!({"tools": [{}]}), 400, "tools[0].type"),
        (json!({"logit_bias": {"2000": 1}}), 400, "logit_bias.2000"),
        (json!({"model": "large"}), 404, "model"),
    ];
    for (more, status, param) in cases {
        let response = house.chat(more).await;
        assert_eq!(response.status(), status, "{param}");
        assert_eq!(error_of(response).await["param"], param);
    }
    let body = json!({"model": "small", "prompt": [1, 2000]});
    let response = house.post("/v1/completions", &body).send().await.unwrap();
    assert_eq!(error_of(response).await["param"], "prompt[1]");
    let response = house
        .post("/v1/chat/completions", &chat_body(json!({})))
        .header("x-phalanx-deadline-ms", "soon")
        .send()
        .await
        .unwrap();
    assert_eq!(error_of(response).await["code"], "invalid_header");
    let metrics = house.get("/metrics").await.text().await.unwrap();
    assert!(!metrics.contains("large"), "a name that a caller made up is no label");
}

#[tokio::test]
async fn unknown_paths_and_methods_are_answered_in_the_same_shape() {
    let house = House::open().await;
    let response = house.get("/v1/nothing").await;
    assert_eq!(response.status(), 404);
    assert_eq!(error_of(response).await["code"], "unknown_url");
    let response = house.get("/v1/chat/completions").await;
    assert_eq!(response.status(), 405);
    assert_eq!(response.headers()["allow"], "POST");
    let plain = house.get("/api/uplink").await;
    assert_eq!(plain.status(), 400);
    assert_eq!(error_of(plain).await["param"], "upgrade");
    assert_eq!(error_of(response).await["code"], "method_not_allowed");
    let response = house.get("/v1/models/%ff").await;
    assert_eq!(response.status(), 404);
    assert_eq!(error_of(response).await["code"], "unknown_url");
}

#[tokio::test]
async fn addresses_that_people_get_nearly_right_are_served_or_put_right() {
    let house = House::open().await;
    assert_eq!(house.get("/v1/models/").await.status(), 200);
    let response = house.post("/v1/chat/completions/", &chat_body(json!({}))).send().await.unwrap();
    assert_eq!(error_of(response).await["code"], "model_not_found");
    let error = error_of(house.get("/models").await).await;
    assert!(error["message"].as_str().unwrap().contains("base URL ends with /v1"), "{error}");
}

#[tokio::test]
async fn a_call_refused_by_its_head_has_its_whole_body_taken_in_so_that_its_client_reads_why() {
    let house = House::open().await;
    let mut socket = TcpStream::connect(&house.address).await.unwrap();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n";
    let exchange = async {
        socket.write_all(head.as_bytes()).await.unwrap();
        socket.write_all(&vec![b'x'; 3_000_000]).await.expect("the other side listens to the end");
        let mut answer = vec![0; 4096];
        let read = socket.read(&mut answer).await.unwrap();
        assert!(answer[..read].starts_with(b"HTTP/1.1 401"));
    };
    tokio::time::timeout(PATIENCE, exchange).await.unwrap();
}

#[tokio::test]
async fn a_compressed_body_is_refused_as_what_it_is() {
    let house = House::open().await;
    let request = house.post("/v1/chat/completions", &chat_body(json!({})));
    let response = request.header("content-encoding", "gzip").send().await.unwrap();
    assert_eq!(response.status(), 415);
    assert_eq!(error_of(response).await["code"], "body_encoded");
}

#[tokio::test]
async fn a_body_over_the_cap_is_refused_before_it_is_read_and_while_it_is() {
    let house = House::with(|config| config.http.body_bytes_max = base::Bytes(1000)).await;
    let mut socket = TcpStream::connect(&house.address).await.unwrap();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Length: 5000\r\n\r\n",
        house.key
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 4096];
    // Not one byte of the body was sent.
    let read = tokio::time::timeout(PATIENCE, socket.read(&mut answer)).await.unwrap().unwrap();
    assert!(answer[..read].starts_with(b"HTTP/1.1 413"));
    let pieces: Vec<Result<Vec<u8>, std::io::Error>> = (0..5).map(|_| Ok(vec![b'x'; 400])).collect();
    let body = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
    let response = house
        .http
        .post(house.url("/v1/chat/completions"))
        .bearer_auth(&house.key)
        .body(body)
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 413);
    assert_eq!(error_of(response).await["code"], "request_too_large");
}

#[tokio::test]
async fn connections_that_say_nothing_or_stop_halfway_are_ended() {
    let house = House::with(|config| {
        config.http.header_us = base::Micros::from_millis(150);
        config.http.body_us = base::Micros::from_millis(150);
    })
    .await;
    for said in ["", "P", "POST /v1/chat/comp", "GET /health HTTP/1.1\r\nHost: x\r\n"] {
        let mut socket = TcpStream::connect(&house.address).await.unwrap();
        socket.write_all(said.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "{said:?} was left open");
    }
    let mut socket = TcpStream::connect(&house.address).await.unwrap();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Length: 50\r\n\r\n{{",
        house.key
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 4096];
    let read = tokio::time::timeout(PATIENCE, socket.read(&mut answer)).await.unwrap().unwrap();
    assert!(answer[..read].starts_with(b"HTTP/1.1 408"));
}

#[tokio::test]
async fn a_drain_finishes_what_runs_refuses_what_comes_and_says_so() {
    let mut house = House::open().await;
    let mut provider = Provider::join(&house).await;
    let gate = std::sync::Arc::new(tokio::sync::Notify::new());
    provider.next(vec![
        Act::Send(token(0, "a")),
        Act::Hold(std::sync::Arc::clone(&gate)),
        Act::Send(end(1, wire::chunk::FinishReason::Stop)),
    ]);
    let call = tokio::spawn(house.post("/v1/chat/completions", &chat_body(json!({}))).send());
    provider.attempt().await;
    assert_eq!(house.get("/ready").await.status(), 200);
    house.begin_to_close();
    super::house::eventually("not ready", async || house.get("/ready").await.status() == 503).await;
    assert_eq!(house.get("/health").await.status(), 200);
    let response = house.chat(json!({})).await;
    assert_eq!(response.status(), 503);
    assert_eq!(error_of(response).await["code"], "draining");
    gate.notify_one();
    assert_eq!(call.await.unwrap().unwrap().status(), 200);
    provider
        .sees(|seen| match seen {
            super::provider::Seen::Goodbye => Some(()),
            _ => None,
        })
        .await;
}

#[tokio::test]
async fn the_end_comes_within_its_bound_even_while_a_request_hangs() {
    let house = House::with(|config| config.http.drain_us = base::Micros::from_millis(100)).await;
    let mut provider = Provider::join(&house).await;
    provider.next(vec![Act::Hold(std::sync::Arc::new(tokio::sync::Notify::new()))]);
    let call = tokio::spawn(house.post("/v1/chat/completions", &chat_body(json!({}))).send());
    provider.attempt().await;
    let closed = tokio::time::timeout(Duration::from_secs(20), house.close()).await;
    assert!(closed.unwrap().is_ok());
    assert_eq!(call.await.unwrap().unwrap().status(), 503);
}
