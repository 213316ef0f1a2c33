//! What a newcomer does: `phalanx up`, the line that it prints, Ctrl-C.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;

use rustix::process::{Signal, kill_process};
use testkit::Program;

use crate::api::{Api, PHALANX, events, text_of, turn};
use crate::deployments::{answers, ask, deploy, machines, ready, synth};
use crate::group_faults::child_named;

#[tokio::test]
async fn up_prints_a_curl_line_that_streams_an_answer_and_ends_without_a_trace() {
    let up = Program::new(PHALANX, ["up", "--listen", "127.0.0.1:0"]).start();
    let api = Api::of(&up);
    assert_eq!(
        up.ready_file()["pid"].as_u64(),
        Some(u64::try_from(up.pid().as_raw_nonzero().get()).unwrap())
    );
    // Both compute the bundled model together: one instance, whose rank 0 alone takes requests.
    api.await_eligible(1).await;
    let status = api.get("/api/status").await;
    assert_eq!(status["groups"][0]["ranks"].as_array().map(Vec::len), Some(2), "{status:#}");
    assert_eq!(status["groups"][0]["phase"], "ready");
    let children = children_of(up.pid().as_raw_nonzero().get());
    assert_eq!(children.len(), 2, "two providers, each a process of its own");

    // The line is run as it was printed: by a shell.
    let printed = up.printed();
    let line = printed.lines().find(|line| line.trim_start().starts_with("curl ")).expect("a curl line");
    if Command::new("curl").arg("--version").output().is_ok() {
        let output = Command::new("sh").args(["-c", line]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("data: {") && text.trim_end().ends_with("data: [DONE]"), "{text}");
    }
    assert!(line.contains(&api.url) && line.contains(&api.key));
    let mut body = turn("Hello! Who are you?", 64);
    body["stream"] = true.into();
    let (events, done) = events(api.post("/v1/chat/completions", &body).await).await;
    assert!(done);
    assert!(text_of(&events).contains("Phalanx"), "{}", text_of(&events));

    let address: SocketAddr = api.url.trim_start_matches("http://").parse().unwrap();
    let stopped = up.stop();
    assert!(stopped.status.success(), "{}\n{}", stopped.status, stopped.printed);
    assert!(TcpStream::connect(address).is_err(), "the port is closed");
    drop(TcpListener::bind(address).expect("the port is free"));
    for child in children {
        assert!(!std::path::Path::new(&format!("/proc/{child}")).exists(), "process {child} is left");
    }
}

#[tokio::test]
async fn a_killed_up_takes_its_providers_with_it() {
    let up = Program::new(PHALANX, ["up", "--listen", "127.0.0.1:0"]).start();
    let children = children_of(up.pid().as_raw_nonzero().get());
    assert_eq!(children.len(), 2);
    drop(up.kill());
    let mut pace = tokio::time::interval(std::time::Duration::from_millis(20));
    for _ in 0..1500 {
        if children.iter().all(|child| !is_alive(*child)) {
            return;
        }
        pace.tick().await;
    }
    panic!("providers outlive their parent by half a minute");
}

#[tokio::test]
async fn a_second_start_keeps_machines_and_key_and_a_second_up_beside_it_is_told_why_not() {
    let up = Program::new(PHALANX, ["up", "--listen", "127.0.0.1:0"]).start();
    let api = Api::of(&up);
    let machines = |status: &serde_json::Value| -> Vec<String> {
        let all = status["machines"].as_array().unwrap().iter();
        let mut names: Vec<_> = all.map(|m| m["machine"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    };
    api.await_eligible(1).await;
    let before = machines(&api.get("/api/status").await);

    let address = api.url.trim_start_matches("http://").to_owned();
    let beside = Program::new(PHALANX, ["up", "--listen", &address]).spawn().ended();
    assert!(!beside.status.success());
    assert!(beside.printed.contains("in use") && beside.printed.contains("--listen"), "{}", beside.printed);

    let again = Program::new(PHALANX, ["up", "--listen", "127.0.0.1:0"]).in_folder_of(up.stop()).start();
    let api_again = Api::of(&again);
    assert_eq!(api_again.key, api.key);
    api_again.await_eligible(1).await;
    assert_eq!(machines(&api_again.get("/api/status").await), before);
}

#[tokio::test]
async fn a_start_with_another_model_leaves_nothing_of_the_last_and_what_operators_declared_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let models = ["alpha", "beta"].map(|name| {
        synth(folder.path(), name, 5);
        format!("{name}={}", folder.path().join(name).display())
    });
    let start = |model: &str| {
        let sizes = ["--mode", "single", "--threads", "1", "--kv-memory", "8MiB", "--listen", "127.0.0.1:0"];
        Program::new(PHALANX, ["up", "--model", model].iter().chain(&sizes).copied())
    };
    let up = start(&models[0]).start();
    let api = Api::of(&up);
    assert_eq!(machines(&ready(&api, "alpha").await).len(), 2);
    answers(&api, "alpha").await;
    // One of an operator's has the name that the next start would give its own.
    for (name, model) in [("mine", "alpha"), ("beta", "gamma")] {
        deploy(&api, &["apply", "--name", name, "--model", model, "--replicas", "0", "--context", "128"]);
    }
    let again = start(&models[1]).in_folder_of(up.stop()).start();
    let api = Api::of(&again);
    answers(&api, "beta").await;
    let listed = api.get("/api/deployments").await;
    let all = listed["deployments"].as_array().unwrap();
    let mut names: Vec<_> = all.iter().map(|of| of["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["beta", "beta-2", "mine"], "{listed:#}");
    let of = |name: &str| all.iter().find(|of| of["name"] == name).unwrap();
    for name in ["mine", "beta"] {
        assert_eq!(
            (of(name)["generation"].as_u64(), of(name)["spec"]["context"].as_u64()),
            (Some(1), Some(128))
        );
    }
    assert_eq!(of("beta-2")["spec"]["model"], "beta");
    let status = api.get("/api/status").await;
    assert!(!status["machines"].to_string().contains("\"alpha\""), "{status:#}");
    assert_ne!(ask(&api, "alpha").await, 200);
    let history = deploy(&api, &["history", "alpha"]);
    let history = String::from_utf8(history.stdout).unwrap();
    assert!(history.contains("whoever declared it was started without it"), "{history}");

    // The same again: what is declared is what was, and nothing is deleted.
    let third = start(&models[1]).in_folder_of(again.stop()).start();
    let api = Api::of(&third);
    answers(&api, "beta").await;
    let now = ready(&api, "beta-2").await;
    assert_eq!((now["generation"].as_u64(), machines(&now).len()), (Some(1), 2), "{now:#}");
}

#[tokio::test]
async fn a_provider_that_is_killed_as_often_as_one_that_fails_may_end_is_started_again_each_time() {
    let arguments = ["up", "--listen", "127.0.0.1:0", "--providers", "1", "--threads", "1"];
    let up = Program::new(PHALANX, arguments).start();
    let api = Api::of(&up);
    for kill in 1..=5 {
        answers(&api, "phalanx-bundled").await;
        let child = child_named(&up, "machine-1").expect("it runs");
        kill_process(child, Signal::KILL).unwrap();
        // Whoever asks meanwhile waits, and is answered.
        assert_eq!(ask(&api, "phalanx-bundled").await, 200, "after {kill} kills");
        let now = ready(&api, "phalanx-bundled").await;
        assert_eq!(now["instances"][0]["failures"], 0, "{now:#}");
    }
}

#[test]
fn a_model_that_cannot_be_read_ends_up_with_its_reason() {
    let arguments = ["up", "--listen", "127.0.0.1:0", "--providers", "1", "--model", "gone=/no/such/folder"];
    let ended = Program::new(PHALANX, arguments).spawn().ended();
    assert!(!ended.status.success());
    let last = ended.printed.lines().rfind(|line| line.starts_with("error: ")).unwrap_or_default();
    assert!(last.contains("gone cannot be served") && last.contains("/no/such/folder"), "{}", ended.printed);
    assert!(!ended.printed.contains("makes no sense"), "{}", ended.printed);
}

fn children_of(parent: i32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
    let mut found: Vec<i32> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    // A child started by another thread is listed under that thread.
    for task in std::fs::read_dir(format!("/proc/{parent}/task")).unwrap() {
        let text = std::fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default();
        found.extend(text.split_whitespace().filter_map(|word| word.parse::<i32>().ok()));
    }
    found.sort_unstable();
    found.dedup();
    found
}

fn is_alive(process: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{process}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z'))
}
