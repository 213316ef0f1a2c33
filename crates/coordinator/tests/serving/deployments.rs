//! Deployments over managed machines that do as the test says: placed, told, taken on again, replaced; and said truly.

use serde_json::{Value, json};
use wire::control::{AssignmentPhase, AssignmentReport, FromProvider};

use super::house::{House, chat_body, eventually};
use super::managed::{Managed, Way};
use store::Store;

pub(crate) async fn put(house: &House, name: &str, spec: Value) -> (u16, Value) {
    let request = house.http.put(house.url(&format!("/api/deployments/{name}"))).bearer_auth(&house.key);
    let response = request.json(&spec).send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

async fn deployment(house: &House, name: &str) -> Value {
    house.get(&format!("/api/deployments/{name}")).await.json().await.unwrap()
}

pub(crate) async fn delete(house: &House, name: &str) -> u16 {
    let request = house.http.delete(house.url(&format!("/api/deployments/{name}"))).bearer_auth(&house.key);
    request.send().await.unwrap().status().as_u16()
}

fn condition<'a>(deployment: &'a Value, kind: &str) -> &'a Value {
    let all = deployment["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    all.iter().find(|condition| condition["type"] == kind).unwrap_or(&Value::Null)
}

pub(crate) async fn is(house: &House, name: &str, kind: &str, status: &str) -> Value {
    let found = std::sync::Mutex::new(Value::Null);
    let what = format!("{name} is {kind}={status}");
    eventually(&what, async || {
        let now = deployment(house, name).await;
        let holds = condition(&now, kind)["status"] == status
            && condition(&now, kind)["observed_generation"] == now["generation"];
        *found.lock().unwrap() = now;
        holds
    })
    .await;
    found.into_inner().unwrap()
}

/// Waits until a condition's message has `words`.
async fn says(house: &House, name: &str, kind: &str, words: &str) -> Value {
    let found = std::sync::Mutex::new(Value::Null);
    eventually(&format!("{name}'s {kind} says {words:?}"), async || {
        let now = deployment(house, name).await;
        let holds = condition(&now, kind)["message"].as_str().is_some_and(|said| said.contains(words));
        *found.lock().unwrap() = now;
        holds
    })
    .await;
    found.into_inner().unwrap()
}

fn machines(deployment: &Value) -> Vec<String> {
    let mut names: Vec<String> = deployment["instances"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|instance| instance["ranks"].as_array().unwrap())
        .map(|rank| rank["name"].as_str().unwrap().to_owned())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_deployment_is_placed_served_scaled_changed_and_deleted() {
    let house = House::open().await;
    let one = Managed::join(&house, "one", &["small"]).await;
    let two = Managed::join(&house, "two", &["small"]).await;
    let (status, made) = put(&house, "chat", json!({"model": "small"})).await;
    assert_eq!((status, &made["generation"], &made["outcome"]), (201, &json!(1), &json!("created")));
    let (status, again) = put(&house, "chat", json!({"model": "small"})).await;
    assert_eq!((status, &again["generation"], &again["outcome"]), (200, &json!(1), &json!("unchanged")));
    is(&house, "chat", "Ready", "True").await;
    eventually("it answers", async || house.chat(json!({})).await.status() == 200).await;
    assert_eq!(one.told().0 + two.told().0, 1, "what is unchanged is not told again");

    let scaled = house.post("/api/deployments/chat/scale", &json!({"replicas": 2})).send().await.unwrap();
    assert_eq!(scaled.status(), 200);
    let both = is(&house, "chat", "Ready", "True").await;
    assert_eq!((machines(&both), &both["generation"]), (vec!["one".to_owned(), "two".to_owned()], &json!(2)));
    assert_eq!((one.told(), two.told()), ((1, 0), (1, 0)), "the first was left alone");

    // Other terms: told anew, one after the other, under larger epochs.
    put(&house, "chat", json!({"model": "small", "replicas": 2, "context": 256, "max_batch": 2})).await;
    is(&house, "chat", "Ready", "True").await;
    eventually("both were told the new terms", async || one.told() == (2, 1) && two.told() == (2, 1)).await;
    for machine in [&one, &two] {
        let state = machine.state.lock().unwrap();
        let (first, second) = (&state.assigned[0], &state.assigned[1]);
        assert_eq!((second.context, second.max_batch, second.instance), (256, 2, first.instance));
        assert!(second.epoch > first.epoch && second.lease_us > 0);
    }
    let epochs = house.get("/api/planner").await.json::<Value>().await.unwrap()["epoch"].as_u64().unwrap();
    assert!(epochs >= 4);

    assert_eq!(delete(&house, "chat").await, 200);
    eventually("both let it go", async || {
        one.state.lock().unwrap().holds.is_empty() && two.state.lock().unwrap().holds.is_empty()
    })
    .await;
    assert_eq!(delete(&house, "chat").await, 404, "deleting again is harmless");
    let answer = house.chat(json!({})).await;
    assert!([404, 503].contains(&answer.status().as_u16()));
    let history: Value = house.get("/api/deployments/chat/history").await.json().await.unwrap();
    let lines = history["events"].to_string();
    for word in ["it was made", "was placed on", "is ready", "spec was changed", "it was deleted"] {
        assert!(lines.contains(word), "{word:?} is not in {lines}");
    }
    assert_eq!(house.get("/api/deployments/never/history").await.status(), 404);
}

#[tokio::test]
async fn what_is_no_spec_is_refused_with_its_reason_and_leaves_nothing() {
    let house = House::open().await;
    let wrong = [
        (json!({"model": "m", "replica": 2}), "unknown field"),
        (json!({"replicas": 2}), "missing field `model`"),
        (json!({"model": "m", "shape": "star"}), "is no shape"),
        (json!({"model": "m", "shape": "tensor 0"}), "an instance has 1 to"),
        (json!({"model": "m", "replicas": {"floor": 3, "ceiling": 2}}), "above the ceiling"),
        (json!({"model": "m", "replicas": {"floor": 3}}), "floor, ceiling and priority"),
        (json!({"model": "m", "context": 4}), "16 to"),
        (json!({"model": "m", "machines": []}), "pinned to no machine"),
        (json!({"model": "m", "when_lost": "panic"}), "unknown variant"),
        (json!({"model": "m", "name": "other"}), "names \"other\""),
        (json!("chat"), "object"),
        (json!([]), "object"),
    ];
    for (spec, reason) in wrong {
        let (status, said) = put(&house, "chat", spec.clone()).await;
        let message = said["error"]["message"].as_str().unwrap_or_default().to_owned();
        assert!(status == 400 && message.contains(reason), "{spec}: {status} {message}");
    }
    let (status, _) = put(&house, "no%20name", json!({"model": "m"})).await;
    assert_eq!(status, 400);
    let twice = house.http.post(house.url("/api/deployments")).bearer_auth(&house.key);
    let twice = twice.body("{\"name\": \"a\", \"model\": \"m\", \"model\": \"n\"}").send().await.unwrap();
    assert_eq!(twice.status(), 400);
    let list: Value = house.get("/api/deployments").await.json().await.unwrap();
    assert_eq!(list, json!({"mode": "enforce", "deployments": []}));
    // Without a key, or with one that may not.
    let plain = house.post("/api/keys", &json!({"name": "plain"})).send().await.unwrap();
    let plain: Value = plain.json().await.unwrap();
    let read = json!({"name": "read", "admin": true, "terms": {"scopes": ["read"]}});
    let read: Value = house.post("/api/keys", &read).send().await.unwrap().json().await.unwrap();
    for (key, may_read) in [(&plain["secret"], 403), (&read["secret"], 200)] {
        let key = key.as_str().unwrap();
        let got = house.http.get(house.url("/api/deployments")).bearer_auth(key).send().await.unwrap();
        assert_eq!(got.status(), may_read);
        let body = json!({"name": "a", "model": "m"});
        let post = house.http.post(house.url("/api/deployments")).bearer_auth(key).json(&body);
        assert_eq!(post.send().await.unwrap().status(), 403);
    }
}

#[tokio::test]
async fn a_call_with_an_idempotency_key_is_done_once() {
    let house = House::open().await;
    let ask = |key: &str, replicas: u32| {
        let body = json!({"name": "chat", "model": "small", "replicas": replicas});
        house.post("/api/deployments", &body).header("idempotency-key", key)
    };
    let first: Value = ask("a", 1).send().await.unwrap().json().await.unwrap();
    ask("b", 2).send().await.unwrap();
    // Its answer comes again, and what was changed since stays.
    let again: Value = ask("a", 1).send().await.unwrap().json().await.unwrap();
    assert_eq!((first["generation"].clone(), &first), (json!(1), &again));
    assert_eq!(deployment(&house, "chat").await["spec"]["replicas"], 2);
    assert_eq!(ask("a", 3).send().await.unwrap().status(), 409);
}

#[tokio::test]
async fn what_fails_is_tried_here_then_elsewhere_and_the_conditions_name_machine_and_error() {
    let house = House::open().await;
    let bad = Managed::join(&house, "bad", &["small"]).await;
    bad.goes(Way::Fails("its weights are damaged in layer 3"));
    put(&house, "chat", json!({"model": "small"})).await;
    let now = is(&house, "chat", "Degraded", "True").await;
    let told = condition(&now, "Degraded")["message"].as_str().unwrap().to_owned();
    assert!(told.contains("bad: its weights are damaged in layer 3"), "{told}");
    assert_eq!(condition(&now, "Ready")["status"], "False");
    eventually("it was tried four times there", async || bad.told().0 == 4).await;
    says(&house, "chat", "Placed", "bad: instances failed on it, the last with: its weights are damaged")
        .await;
    let why: Value = house.get("/api/why/bad").await.json().await.unwrap();
    assert!(why["deployments"].to_string().contains("instances failed on it"), "{why:#}");

    let _good = Managed::join(&house, "good", &["small"]).await;
    let now = is(&house, "chat", "Ready", "True").await;
    assert_eq!(machines(&now), ["good"]);
    assert!(now["errors"].as_array().unwrap().len() >= 4, "all errors are kept");
}

#[tokio::test]
async fn a_machine_that_refuses_is_no_failure_and_another_takes_it() {
    let house = House::open().await;
    let full = Managed::with(&house, "full", &["small"], 2 << 30).await;
    full.goes(Way::Refuses("another program holds its memory"));
    put(&house, "chat", json!({"model": "small"})).await;
    let now = says(&house, "chat", "Placed", "another program holds its memory").await;
    assert_eq!(condition(&now, "Placed")["reason"], "NoPlace", "{now:#}");
    assert_eq!(full.told().0, 1, "it is not asked again before it has cooled down");
    let _other = Managed::join(&house, "other", &["small"]).await;
    let now = is(&house, "chat", "Ready", "True").await;
    assert_eq!(machines(&now), ["other"]);
}

#[tokio::test]
async fn a_lost_machine_is_replaced_and_told_to_let_go_when_it_is_back() {
    let house = House::open().await;
    let mut one = Managed::join(&house, "one", &["small"]).await;
    put(&house, "chat", json!({"model": "small"})).await;
    is(&house, "chat", "Ready", "True").await;
    let two = Managed::join(&house, "two", &["small"]).await;
    eventually("two is seen", async || {
        let why = house.get("/api/why/two").await.json::<Value>().await.unwrap();
        why["deployments"].to_string().contains("chat")
    })
    .await;
    one.cut().await;
    // How soon is held by `fleet six::`, by the coordinator's own times.
    eventually("the other was told", async || two.told().0 == 1).await;
    let now = is(&house, "chat", "Ready", "True").await;
    assert_eq!(machines(&now), ["two"]);
    one.back(&house).await;
    eventually("what came back lets go", async || one.told().1 == 1).await;
    assert_eq!(two.told(), (1, 0));
}

#[tokio::test]
async fn what_has_no_other_place_waits_for_its_machine_and_goes_on_there() {
    let house = House::open().await;
    let mut one = Managed::join(&house, "one", &["small"]).await;
    let _two = Managed::join(&house, "two", &["small"]).await;
    let pinned = json!({"model": "small", "machines": ["one"]});
    put(&house, "chat", pinned).await;
    is(&house, "chat", "Ready", "True").await;
    one.cut().await;
    let now = is(&house, "chat", "Placed", "False").await;
    let placed = condition(&now, "Placed");
    assert_eq!(placed["reason"], "Waiting");
    assert_eq!(placed["message"], "waiting for machine one");
    assert_eq!(condition(&now, "Ready")["status"], "False");
    // It comes back with what it held: nothing is loaded again.
    one.back(&house).await;
    is(&house, "chat", "Ready", "True").await;
    let history: Value = house.get("/api/deployments/chat/history").await.json().await.unwrap();
    assert_eq!(one.told(), (1, 0), "{history:#}");
    // It died: told again, at once.
    one.restart(&house).await;
    is(&house, "chat", "Ready", "True").await;
    eventually("told again", async || one.told().0 >= 2 && !one.state.lock().unwrap().holds.is_empty()).await;
    // Lost, and to be replaced.
    put(&house, "chat", json!({"model": "small", "machines": ["one"], "when_lost": "replace"})).await;
    is(&house, "chat", "Ready", "True").await;
    one.cut().await;
    eventually("it is on the other", async || machines(&deployment(&house, "chat").await) == ["two"]).await;
}

#[tokio::test]
async fn a_coordinator_that_starts_again_takes_on_what_is_held_and_tears_down_nothing() {
    let house = House::open().await;
    let mut one = Managed::join(&house, "one", &["small"]).await;
    let mut two = Managed::join(&house, "two", &["small"]).await;
    put(&house, "chat", json!({"model": "small", "replicas": 2})).await;
    put(&house, "later", json!({"model": "absent"})).await;
    let before = is(&house, "chat", "Ready", "True").await;
    put(&house, "later", json!({"model": "absent", "context": 64})).await;
    for machine in [&mut one, &mut two] {
        machine.cut().await;
    }
    let house = house.again().await;
    let early = deployment(&house, "chat").await;
    assert_eq!(condition(&early, "Ready")["status"], "False", "nobody is here yet: {early:#}");
    let history: Value = house.get("/api/deployments/chat/history").await.json().await.unwrap();
    assert_eq!(
        early["instances"].as_array().unwrap().len(),
        2,
        "{history:#} {:#?}",
        house.store.deployments().await
    );
    one.back(&house).await;
    two.back(&house).await;
    let after = is(&house, "chat", "Ready", "True").await;
    let ids = |deployment: &Value| -> Vec<(String, u64)> {
        let all = deployment["instances"].as_array().unwrap().iter();
        let id = |i: &Value| (i["instance"].as_str().unwrap().to_owned(), i["epoch"].as_u64().unwrap());
        all.map(id).collect()
    };
    assert_eq!(ids(&before), ids(&after));
    assert_eq!((one.told(), two.told()), ((1, 0), (1, 0)));
    eventually("it answers", async || house.chat(json!({})).await.status() == 200).await;
    assert_eq!(deployment(&house, "later").await["generation"], 2);
    let history: Value = house.get("/api/deployments/chat/history").await.json().await.unwrap();
    assert!(history["events"].to_string().contains("it was made"));
    // A later assignment has a later epoch than any before.
    put(&house, "chat", json!({"model": "small", "replicas": 2, "context": 128})).await;
    eventually("told under larger epochs", async || {
        [&one, &two].iter().all(|machine| {
            let state = machine.state.lock().unwrap();
            state.assigned.len() == 2 && state.assigned[1].epoch > state.assigned[0].epoch
        })
    })
    .await;
}

#[tokio::test]
async fn words_that_are_not_so_change_nothing_and_are_counted() {
    let house = House::open().await;
    let one = Managed::join(&house, "one", &["small"]).await;
    one.goes(Way::Stuck);
    put(&house, "chat", json!({"model": "small"})).await;
    eventually("it was told", async || one.told().0 == 1).await;
    let told = one.state.lock().unwrap().assigned[0].clone();
    let say = |epoch: u64, rank: u32, instance: u128| {
        one.send(FromProvider::AssignmentReport(AssignmentReport {
            instance: base::InstanceId(instance),
            epoch: base::Epoch(epoch),
            rank,
            phase: AssignmentPhase::Ready,
            percent: 0,
            detail: String::new(),
        }));
    };
    say(told.epoch.0 + 1, 0, told.instance.0);
    say(told.epoch.0 - 1, 0, told.instance.0);
    say(told.epoch.0, 1, told.instance.0);
    say(told.epoch.0, 0, 77);
    eventually("four strays", async || {
        let planner = house.get("/api/planner").await.json::<Value>().await.unwrap();
        planner["strays"] == 4
    })
    .await;
    assert_eq!(house.metric("phalanx_deployment_events_total{kind=\"stray\"}").await, 4.0);
    assert_eq!(condition(&deployment(&house, "chat").await, "Ready")["status"], "False");
    // Right, and early: nobody could ask it anything yet.
    say(told.epoch.0, 0, told.instance.0);
    say(told.epoch.0, 0, 77);
    eventually("a fifth stray", async || {
        house.get("/api/planner").await.json::<Value>().await.unwrap()["strays"] == 5
    })
    .await;
    assert_eq!(condition(&deployment(&house, "chat").await, "Ready")["status"], "False");
    one.offers_all();
    is(&house, "chat", "Ready", "True").await;
    // Deleted while others load: whatever it says then is no stray.
    assert_eq!(delete(&house, "chat").await, 200);
    eventually("it let go", async || one.told().1 == 1).await;
}

#[tokio::test]
async fn preview_agrees_with_what_is_then_placed_and_shadow_says_and_does_not() {
    let house = House::open().await;
    let small = Managed::with(&house, "small", &["small"], 1 << 20).await;
    let _large = Managed::with(&house, "large", &["small"], 1 << 30).await;
    let planner = |mode: &str| {
        let body = json!({"mode": mode});
        house.http.put(house.url("/api/planner")).bearer_auth(&house.key).json(&body).send()
    };
    assert_eq!(planner("sideways").await.unwrap().status(), 400);
    assert_eq!(planner("shadow").await.unwrap().status(), 200);
    let spec = json!({"name": "chat", "model": "small", "replicas": 1});
    let seen = async || -> Value {
        house.post("/api/preview", &json!({"spec": spec})).send().await.unwrap().json().await.unwrap()
    };
    eventually("both machines are seen", async || seen().await["rejected"].to_string().contains("small"))
        .await;
    let preview = seen().await;
    let rank = &preview["placements"][0]["ranks"][0];
    assert_eq!((rank["machine"].as_str(), rank["memory_bytes"].as_u64() > Some(0)), (Some("large"), true));
    assert!(preview["placements"][0]["predicted"]["decode_tokens_per_s"].as_f64().unwrap() > 0.0);
    let rejected = preview["rejected"].to_string();
    assert!(rejected.contains("chat on small") && rejected.contains("head-room"), "{rejected}");
    assert_eq!(house.get("/api/deployments/chat").await.status(), 404, "nothing was changed");

    put(&house, "chat", spec.clone()).await;
    eventually("it says what it would do", async || {
        let planner = house.get("/api/planner").await.json::<Value>().await.unwrap();
        planner["unfollowed"].to_string().contains("start chat on large")
    })
    .await;
    assert_eq!(deployment(&house, "chat").await["instances"], json!([]));
    planner("enforce").await.unwrap();
    let now = is(&house, "chat", "Ready", "True").await;
    assert_eq!(machines(&now), ["large"]);
    assert_eq!(small.told(), (0, 0));
}

#[tokio::test]
async fn demand_that_finds_nothing_brings_an_instance_and_waits_for_it() {
    let house = House::open().await;
    let _one = Managed::join(&house, "one", &["small"]).await;
    put(&house, "chat", json!({"model": "small", "replicas": {"floor": 0, "ceiling": 1}})).await;
    is(&house, "chat", "Ready", "True").await;
    assert_eq!(deployment(&house, "chat").await["instances"], json!([]), "nobody asked yet");
    let hasty = house.post("/v1/chat/completions", &chat_body(json!({"model": "small"})));
    let hasty = hasty.header("x-phalanx-deadline-ms", "1").send().await.unwrap();
    assert_eq!(hasty.status(), 503);
    assert!(hasty.headers().contains_key("retry-after"));
    assert_eq!(house.chat(json!({"model": "small"})).await.status(), 200);
}

#[tokio::test]
async fn a_managed_machine_serves_nothing_that_it_was_not_told() {
    let house = House::open().await;
    let one = Managed::join(&house, "one", &["small"]).await;
    // It claims to hold what nobody told it.
    one.state.lock().unwrap().holds.insert(base::InstanceId(5), (base::Epoch(3), "small".into(), true));
    one.send(FromProvider::Draining);
    let mut one = one;
    one.cut().await;
    one.back(&house).await;
    eventually("it is told to let go", async || one.told().1 >= 1).await;
    assert_eq!(house.chat(json!({})).await.status(), 404);
    assert!(one.state.lock().unwrap().holds.is_empty());
}
