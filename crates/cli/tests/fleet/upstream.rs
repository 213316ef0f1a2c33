//! Another server as a machine's engine: here a second Phalanx behind its own API.

use serde_json::json;
use testkit::Program;

use crate::api::{Api, PHALANX, coordinator, events, provider, text_of, turn};

const KIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/bundled");

#[tokio::test(flavor = "multi_thread")]
async fn another_server_computes_for_a_machine_and_says_what_it_would_have_said() {
    let server = Program::new(PHALANX, ["up", "--listen", "127.0.0.1:0", "--providers", "1"]).start();
    let direct = Api::of(&server);
    direct.await_eligible(1).await;

    let front = coordinator(&[]);
    let api = Api::of(&front);
    let engine = format!("openai={}", direct.url);
    let more =
        ["--engine", &engine, "--kit", KIT, "--engine-key", &direct.key, "--model", "mirror=phalanx-bundled"];
    let mirror = provider(&api.url, front.ready("join_token"), "mirror", &more).start();
    api.await_eligible(1).await;
    assert!(mirror.printed().contains("takes prompts as tokens"), "{}", mirror.printed());

    let mut body = turn("Hello! Who are you?", 48);
    let undisturbed: serde_json::Value =
        direct.post("/v1/chat/completions", &body).await.json().await.unwrap();
    body["model"] = "mirror".into();
    let mirrored: serde_json::Value = api.post("/v1/chat/completions", &body).await.json().await.unwrap();
    let said = |answer: &serde_json::Value| answer["choices"][0]["message"]["content"].clone();
    assert_eq!(said(&mirrored), said(&undisturbed));
    assert_eq!(mirrored["choices"][0]["finish_reason"], undisturbed["choices"][0]["finish_reason"]);
    assert_eq!(mirrored["usage"]["prompt_tokens"], undisturbed["usage"]["prompt_tokens"]);

    body["stream"] = true.into();
    let (streamed, done) = events(api.post("/v1/chat/completions", &body).await).await;
    // On a busy machine the whole text may come in one piece.
    assert!(done && streamed.len() >= 3, "{streamed:?}");
    assert_eq!(json!(text_of(&streamed)), said(&undisturbed));

    // A client that leaves ends the work on the other side, two hops away.
    body["max_tokens"] = 1500.into();
    body["ignore_eos"] = true.into();
    let leaving = api.post("/v1/chat/completions", &body).await;
    let running = |status: &serde_json::Value| status["models"][0]["running"].as_u64();
    direct.await_status("the server at work", |status| running(status) == Some(1)).await;
    drop(leaving);
    direct.await_status("the server at rest", |status| running(status) == Some(0)).await;

    // Without its server the machine takes nothing; what is asked then is told so, and nothing hangs.
    drop(server.kill());
    api.await_eligible(0).await;
}
