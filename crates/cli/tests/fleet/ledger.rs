//! The ledger under real faults: its coordinator killed under load, a disk that takes no more, a file that somebody else
//! holds. Requests are refused clearly, nothing is lost, nobody pays twice.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use base::{RequestId, Rng};
use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::process::{Resource, Rlimit, prlimit};
use serde_json::{Value, json};
use store::{LedgerEntry, Outcome, SqliteOptions, SqliteStore, Store};
use testkit::{Program, Started};

use crate::api::{Api, PHALANX, events, provider, turn};

const KILLS: u64 = 4;
const CALLERS: u64 = 6;
const SEED: u64 = 20_261_122;

fn store_file(data: &Path) -> PathBuf {
    data.join("data/coordinator.sqlite")
}

/// Every row of a ledger whose coordinator is gone; its sums are those that a replay of the rows gives.
async fn replayed(file: &Path) -> Vec<LedgerEntry> {
    let store = SqliteStore::open(&SqliteOptions::new(file), 1).await.unwrap();
    let (mut entries, mut after) = (Vec::new(), 0);
    loop {
        let page = store.ledger(after, 500).await.unwrap();
        let Some(last) = page.last() else { break };
        after = last.sequence;
        entries.extend(page);
    }
    let mut sums: BTreeMap<_, [u64; 4]> = BTreeMap::new();
    for entry in &entries {
        let sum = sums.entry(entry.account).or_default();
        let tokens = [entry.prompt_tokens.into(), entry.generated_tokens.into(), entry.refunded_tokens];
        for (sum, more) in sum.iter_mut().zip(tokens.into_iter().chain([entry.charged_micros])) {
            *sum += more;
        }
    }
    for (account, sum) in sums {
        let usage = store.usage(account).await.unwrap();
        let kept = [usage.prompt_tokens, usage.generated_tokens, usage.refunded_tokens, usage.charged_micros];
        assert_eq!(
            (kept, usage.reserved_tokens),
            (sum, 0),
            "the sums of {account} are not those of its rows"
        );
    }
    let by_key = store.key_usage().await.unwrap();
    let total = |of: fn(&store::KeyUsage) -> u64| by_key.iter().map(of).sum::<u64>();
    assert_eq!(total(|row| row.requests), entries.len() as u64);
    assert_eq!(
        total(|row| row.charged_micros),
        entries.iter().map(|entry| entry.charged_micros).sum::<u64>()
    );
    store.close().await.unwrap();
    entries
}

/// A coordinator on this address, in the folder of one before it.
fn restarted(stopped: testkit::program::Stopped, listen: &str) -> Started {
    Program::new(PHALANX, ["coordinator", "--listen", listen]).in_folder_of(stopped).start()
}

/// An answer that its caller had whole: its request, and the tokens that it was told.
type Had = (RequestId, u64, u64);

/// Asks until it is over, each request under a name of its own and again under that name until it is answered.
async fn call(api: Api, caller: u64, progress: Arc<AtomicU64>, over: Arc<AtomicBool>) -> Vec<Had> {
    let (mut had, mut rng) = (Vec::new(), Rng::new(caller));
    let mut pace = tokio::time::interval(Duration::from_millis(20));
    for n in 0.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        let mut body = turn(&format!("Tell me story {n} of {caller}."), 4 + rng.below(60) as u32);
        body["ignore_eos"] = true.into();
        let name = format!("{caller}-{n}");
        loop {
            pace.tick().await;
            let request = api.http.post(format!("{}/v1/chat/completions", api.url)).bearer_auth(&api.key);
            let answer = request.header("idempotency-key", &name).json(&body).send().await;
            let Ok(answer) = answer else { continue };
            let fine = answer.status() == 200;
            let Ok(answer) = answer.json::<Value>().await else { continue };
            if !fine {
                continue;
            }
            let digits = answer["id"].as_str().unwrap().rsplit('-').next().unwrap();
            let request = RequestId(u128::from_str_radix(digits, 16).unwrap());
            let tokens =
                ["prompt_tokens", "completion_tokens"].map(|of| answer["usage"][of].as_u64().unwrap());
            had.push((request, tokens[0], tokens[1]));
            progress.fetch_add(1, Ordering::Relaxed);
            break;
        }
    }
    had
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_killed_again_and_again_under_load_loses_no_sum_and_charges_nobody_twice() {
    let mut coordinator = crate::api::coordinator(&[]);
    let api = Api::of(&coordinator);
    let (url, token) = (api.url.clone(), coordinator.ready("join_token").to_owned());
    let listen = url.trim_start_matches("http://").to_owned();
    let _one = provider(&url, &token, "one", &[]).start();
    let _two = provider(&url, &token, "two", &[]).start();
    api.await_eligible(2).await;
    let price = json!({"model": "phalanx-bundled", "price": {"prompt_micros": 1_000_000, "generated_micros": 2_000_000}});
    let put = api.http.put(format!("{url}/api/prices")).bearer_auth(&api.key).json(&price);
    assert_eq!(put.send().await.unwrap().status(), 200);

    let (progress, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let api = Api { http: api.http.clone(), url: url.clone(), key: api.key.clone() };
            tokio::spawn(call(api, caller, Arc::clone(&progress), Arc::clone(&over)))
        })
        .collect();
    let mut rng = Rng::new(SEED);
    let mut pace = tokio::time::interval(Duration::from_millis(5));
    for _ in 0..KILLS {
        // At a random point of the work, and not of the time that a busy machine takes for it.
        let until = progress.load(Ordering::Relaxed) + 4 + rng.below(12);
        while progress.load(Ordering::Relaxed) < until {
            pace.tick().await;
        }
        let (killed, listen) = (coordinator, listen.clone());
        coordinator = tokio::task::spawn_blocking(move || restarted(killed.kill(), &listen)).await.unwrap();
    }
    over.store(true, Ordering::Relaxed);
    let mut had = Vec::new();
    for caller in callers {
        had.extend(caller.await.unwrap());
    }
    let folder = tokio::task::spawn_blocking(move || {
        let file = store_file(coordinator.folder());
        (file, coordinator.stop())
    });
    let (file, stopped) = folder.await.unwrap();
    assert!(stopped.status.success(), "{}", stopped.printed);
    let entries = replayed(&file).await;
    assert!(entries.iter().any(|entry| entry.outcome == Outcome::Lost), "the kills hit something");

    // Each answer has one row: charged as its caller was told, or lost with its coordinator and free.
    let mut rows: BTreeMap<RequestId, Vec<&LedgerEntry>> = BTreeMap::new();
    for entry in &entries {
        rows.entry(entry.request).or_default().push(entry);
    }
    assert!(rows.values().all(|rows| rows.len() == 1), "a request is in the ledger twice");
    for (request, prompt, generated) in &had {
        let entry = rows[request][0];
        let charged = (u64::from(entry.prompt_tokens), u64::from(entry.generated_tokens));
        let free = charged == (0, 0) && entry.charged_micros == 0;
        let told = charged == (*prompt, *generated) && entry.charged_micros == prompt + 2 * generated;
        assert!(free || told, "{entry:?} for an answer of {prompt} and {generated} tokens");
    }
    // Under each name one request was charged at most: there are as many names as answers.
    let charged = entries.iter().filter(|e| e.outcome == Outcome::Completed && e.charged_micros > 0).count();
    assert!(charged <= had.len(), "{charged} are charged, and {} were asked for", had.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_under_its_name_is_free_even_after_the_coordinator_was_killed() {
    let first = crate::api::coordinator(&[]);
    let api = Api::of(&first);
    let listen = api.url.trim_start_matches("http://").to_owned();
    let _one = provider(&api.url, first.ready("join_token"), "one", &[]).start();
    api.await_eligible(1).await;
    let ask = |body: Value| {
        let request = api.http.post(format!("{}/v1/chat/completions", api.url)).bearer_auth(&api.key);
        request.header("idempotency-key", "order-1").json(&body).send()
    };
    let before: Value = ask(turn("Hello!", 8)).await.unwrap().json().await.unwrap();
    let usage = api.get("/api/usage").await;
    let _second = tokio::task::spawn_blocking(move || restarted(first.kill(), &listen)).await.unwrap();
    api.await_eligible(1).await;
    let again: Value = ask(turn("Hello!", 8)).await.unwrap().json().await.unwrap();
    assert_eq!(again["choices"], before["choices"]);
    let after = api.get("/api/usage").await;
    for of in ["prompt_tokens", "generated_tokens", "charged_micros"] {
        assert_eq!(after["usage"][0][of], usage["usage"][0][of], "{of}");
    }
    let other = ask(turn("Another body", 8)).await.unwrap();
    assert_eq!(other.status(), 409);
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_takes_no_more_refuses_requests_clearly_loses_nothing_and_recovers() {
    // The limit on file sizes stands for the full disk: no right to mount one is needed. Its signal is ignored, so that
    // writes fail as they do on a disk.
    let script = r#"trap "" 25; exec "$0" "$@""#;
    let arguments = ["-c", script, PHALANX, "coordinator", "--listen", "127.0.0.1:0"];
    let coordinator = Program::new("/bin/sh", arguments).start();
    let api = Api::of(&coordinator);
    let _one = provider(&api.url, coordinator.ready("join_token"), "one", &[]).start();
    api.await_eligible(1).await;
    assert_eq!(api.ask("Hello!", 4).await.0, 200);
    // Reserved before the disk is full, and settled after it.
    let mut body = turn("Tell me a long story.", 300);
    body["ignore_eos"] = true.into();
    body["stream"] = true.into();
    let stream = api.post("/v1/chat/completions", &body).await;
    assert_eq!(stream.status(), 200);

    let limit = |to: Option<u64>| {
        let limit = Rlimit { current: to, maximum: None };
        prlimit(Some(coordinator.pid()), Resource::Fsize, limit).unwrap();
    };
    limit(Some(0));
    let (status, answer) = api.ask("Hello again!", 4).await;
    assert_eq!((status, &answer["error"]["code"]), (503, &json!("store_unavailable")), "{answer}");
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("coordinator.sqlite") && message.contains("disk"), "{message}");
    let ready = api.http.get(format!("{}/ready", api.url)).send().await.unwrap();
    assert_eq!(ready.status(), 503);
    // Who has begun is served to the end.
    let (streamed, done) = events(stream).await;
    assert!(done && streamed.len() > 10);

    limit(None);
    let mut pace = tokio::time::interval(Duration::from_millis(20));
    let fine = async {
        loop {
            pace.tick().await;
            if api.ask("Hello once more!", 4).await.0 == 200 {
                break;
            }
        }
    };
    tokio::time::timeout(testkit::program::PATIENCE, fine).await.expect("it recovers");
    let settled = async {
        let mut pace = tokio::time::interval(Duration::from_millis(20));
        while api.get("/api/usage").await["usage"][0]["generated_tokens"].as_u64() < Some(300) {
            pace.tick().await;
        }
    };
    tokio::time::timeout(testkit::program::PATIENCE, settled).await.expect("what was served is settled");
    let file = store_file(coordinator.folder());
    let stopped = tokio::task::spawn_blocking(|| coordinator.stop()).await.unwrap();
    let entries = replayed(&file).await;
    drop(stopped);
    let completed = entries.iter().filter(|entry| entry.outcome == Outcome::Completed);
    assert_eq!(completed.map(|entry| entry.generated_tokens).filter(|tokens| *tokens == 300).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_at_its_own_limit_says_so_and_a_higher_limit_cures_it() {
    let small = crate::api::coordinator(&["--store-bytes-max", "196608"]);
    let api = Api::of(&small);
    let listen = api.url.trim_start_matches("http://").to_owned();
    let _one = provider(&api.url, small.ready("join_token"), "one", &[]).start();
    api.await_eligible(1).await;
    let mut refused = None;
    for n in 0..1000 {
        let (status, answer) = api.ask(&format!("Hello {n}!"), 1).await;
        if status != 200 {
            refused = Some((status, answer));
            break;
        }
    }
    let (status, answer) = refused.expect("192 KB are full some time");
    assert_eq!(status, 503, "{answer}");
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("no room left"), "{message}");
    let _larger = tokio::task::spawn_blocking(move || restarted(small.kill(), &listen)).await.unwrap();
    api.await_eligible(1).await;
    assert_eq!(api.ask("Hello!", 1).await.0, 200);
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_another_process_holds_refuses_requests_with_the_cause_until_it_lets_go() {
    let coordinator = crate::api::coordinator(&[]);
    let api = Api::of(&coordinator);
    let _one = provider(&api.url, coordinator.ready("join_token"), "one", &[]).start();
    api.await_eligible(1).await;
    assert_eq!(api.ask("Hello!", 4).await.0, 200);
    // As a database tool does that has begun to write: SQLite's own locks lie in this file.
    let mut shared = store_file(coordinator.folder()).into_os_string();
    shared.push("-shm");
    let shared = std::fs::OpenOptions::new().read(true).write(true).open(shared).unwrap();
    let mut pace = tokio::time::interval(Duration::from_millis(5));
    while fcntl_lock(&shared, FlockOperation::NonBlockingLockShared).is_err() {
        pace.tick().await;
    }
    let (status, answer) = api.ask("Hello again!", 4).await;
    assert_eq!((status, &answer["error"]["code"]), (503, &json!("store_unavailable")), "{answer}");
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("locked by another process"), "{message}");
    fcntl_lock(&shared, FlockOperation::Unlock).unwrap();
    let fine = async {
        while api.ask("Hello once more!", 4).await.0 != 200 {
            pace.tick().await;
        }
    };
    tokio::time::timeout(testkit::program::PATIENCE, fine).await.expect("it recovers");
}
