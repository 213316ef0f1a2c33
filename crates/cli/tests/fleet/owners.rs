//! Machines that accounts lend, with real processes: an owner's requests reach its own, and nobody can forge whose one is.

use serde_json::{Value, json};

use crate::api::{Api, coordinator, provider, turn};

/// A key of an account; the first one of it where none is named.
async fn key(api: &Api, account: Option<&Value>, terms: Value) -> (String, Value) {
    let mut body = json!({"name": "k", "terms": terms});
    if let Some(account) = account {
        body["account"] = account.clone();
    }
    let answer = api.post("/api/keys", &body).await;
    assert!(answer.status().is_success());
    let created: Value = answer.json().await.unwrap();
    (created["secret"].as_str().unwrap().to_owned(), created["key"]["account"].clone())
}

/// Asks with `key`; the status, the answer, and the machine that served it by the request's own story.
async fn ask(api: &Api, key: &str, owner: Option<&str>) -> (u16, Value, String) {
    let mut request = api.http.post(format!("{}/v1/chat/completions", api.url)).bearer_auth(key);
    if let Some(owner) = owner {
        request = request.header("x-phalanx-owner", owner);
    }
    let answer = request.json(&turn("Hello!", 3)).send().await.unwrap();
    let status = answer.status().as_u16();
    let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    let body: Value = answer.json().await.unwrap();
    let story = api.get(&format!("/api/explain/{id}")).await.to_string();
    (status, body, story)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owners_requests_reach_its_own_machine_and_nobody_elses_where_it_says_so() {
    let coordinator = coordinator(&[]);
    let api = Api::of(&coordinator);
    let (anna, account) = key(&api, None, json!({})).await;
    let (join, _) = key(&api, Some(&account), json!({"scopes": ["join"]})).await;
    let (always, _) = key(&api, Some(&account), json!({"owner": "only"})).await;
    let (berta, other) = key(&api, None, json!({})).await;
    assert_ne!(account, other);

    // A key that may ask may not join; one that may join may not ask.
    let ended = provider(&api.url, &anna, "stranger", &[]).spawn().ended();
    assert!(!ended.status.success() && ended.printed.contains("scope join"), "{}", ended.printed);
    let _public = provider(&api.url, coordinator.ready("join_token"), "public", &[]).start();
    api.await_eligible(1).await;
    assert_eq!(ask(&api, &join, None).await.0, 403);

    // Without a machine of its own, only is refused and prefer is anybody's.
    for (key, owner) in [(&anna, Some("only")), (&always, None)] {
        let (status, body, _) = ask(&api, key, owner).await;
        assert_eq!((status, &body["error"]["code"]), (503, &json!("no_own_machine")), "{body}");
    }
    assert_eq!(ask(&api, &anna, Some("prefer")).await.0, 200);
    assert_eq!(ask(&api, &always, Some("any")).await.0, 200);
    let (status, body, _) = ask(&api, &anna, Some("mine")).await;
    assert_eq!((status, body["error"]["message"].as_str().unwrap().contains("x-phalanx-owner")), (400, true));

    let own = provider(&api.url, &join, "annas", &[]).start();
    api.await_eligible(2).await;
    let status = api.get("/api/status").await;
    let machine = |name: &str| {
        let machines = status["machines"].as_array().unwrap();
        machines.iter().find(|machine| machine["name"] == name).unwrap().clone()
    };
    assert_eq!(machine("annas")["owner"], account);
    assert_eq!(machine("public")["owner"], Value::Null);
    let annas = machine("annas")["machine"].as_str().unwrap().to_owned();
    for (key, owner) in [(&anna, Some("only")), (&anna, Some("prefer")), (&always, None)] {
        for _ in 0..3 {
            let (status, body, story) = ask(&api, key, owner).await;
            assert_eq!(status, 200, "{body}");
            assert!(story.contains(&annas), "{story}");
            let receipt = api.http.get(format!("{}/v1/receipts/{}", api.url, body["id"].as_str().unwrap()));
            let receipt: Value = receipt.bearer_auth(key).send().await.unwrap().json().await.unwrap();
            assert!(receipt.to_string().contains(&annas), "{receipt}");
        }
    }
    // Others have no claim on it, and none on being only there.
    let (status, body, _) = ask(&api, &berta, Some("only")).await;
    assert_eq!((status, &body["error"]["code"]), (503, &json!("no_own_machine")));
    drop(own);
    api.await_eligible(1).await;
    assert_eq!(ask(&api, &anna, Some("prefer")).await.0, 200);
}
