//! Owners who lend a machine, with real processes: a pause, hours, and machines that find their coordinator by themselves.

use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;
use testkit::Started;

use crate::api::{Api, PHALANX, coordinator, events, provider, text_of, turn};
use crate::network::Network;

/// Runs a command of an owner's on the machine of `provider`; what it printed.
fn owner(provider: &Started, arguments: &[&str]) -> String {
    let data = provider.folder().join("data");
    let output = Command::new(PHALANX).args(arguments).arg("--data").arg(data).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn machine<'a>(status: &'a Value, name: &str) -> &'a Value {
    status["machines"].as_array().unwrap().iter().find(|machine| machine["name"] == name).unwrap()
}

fn is_away(status: &Value, name: &str, why: &str) -> bool {
    let machine = machine(status, name);
    machine["connected"] == false && machine["left"].as_str().is_some_and(|left| left.contains(why))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_machine_finishes_what_it_has_and_is_back_when_its_owner_says_so() {
    let coordinator = coordinator(&[]);
    let api = Api::of(&coordinator);
    let token = coordinator.ready("join_token");
    let one = provider(&api.url, token, "one", &[]).start();
    api.await_eligible(1).await;
    let mut body = turn("Tell me a short story about a fox.", 2000);
    body["ignore_eos"] = true.into();
    let whole: Value = api.post("/v1/chat/completions", &body).await.json().await.unwrap();
    body["stream"] = true.into();

    // Paused in the middle of an answer, which is finished first.
    let answer = api.post("/v1/chat/completions", &body).await;
    assert!(owner(&one, &["pause"]).contains("`phalanx resume` ends the pause"));
    let (told, done) = events(answer).await;
    assert!(done);
    assert_eq!(text_of(&told), whole["choices"][0]["message"]["content"].as_str().unwrap());
    api.await_status("its leave", |status| is_away(status, "one", "paused by its owner")).await;
    let why =
        Command::new(PHALANX).args(["why", "one", "--url", &api.url, "--key", &api.key]).output().unwrap();
    let why = String::from_utf8(why.stdout).unwrap();
    assert!(why.contains("away (paused by its owner)"), "{why}");

    // The pause outlives the provider, and others are not concerned.
    let stopped = one.stop();
    assert!(
        stopped.status.success() && stopped.printed.contains("paused by its owner"),
        "{}",
        stopped.printed
    );
    let two = provider(&api.url, token, "two", &[]).start();
    api.await_eligible(1).await;
    let mut one = provider(&api.url, token, "one", &[]).in_folder_of(stopped).spawn();
    one.await_printed("This machine does not serve: it is paused by its owner");
    assert_eq!(api.ask("What is Phalanx?", 8).await.0, 200);
    assert!(is_away(&api.get("/api/status").await, "one", "paused"));
    assert!(owner(&one, &["resume"]).contains("joins again"));
    api.await_eligible(2).await;
    assert!(owner(&one, &["resume"]).contains("was not paused"));

    // A pause with an end says when that is.
    assert!(owner(&two, &["pause", "--for", "2h"]).contains("paused by its owner until"));
    api.await_status("its leave", |status| is_away(status, "two", "paused by its owner until")).await;
    api.await_eligible(1).await;
}

/// Hours that begin and end so many minutes from now.
fn hours(from: u64, to: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() / 60;
    let time = |ahead: u64| format!("{:02}:{:02}", (now + ahead) / 60 % 24, (now + ahead) % 60);
    format!("{}-{}", time(from), time(to))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_serves_in_its_owners_hours_alone() {
    let coordinator = coordinator(&[]);
    let api = Api::of(&coordinator);
    let token = coordinator.ready("join_token");
    // From two hours ago to two hours ahead, and from then on.
    let (now, later) = (hours(22 * 60, 26 * 60), hours(2 * 60, 4 * 60));
    let lend = |name: &str, hours: &str| {
        provider(&api.url, token, name, &["--serve-between", hours]).variable("TZ", "UTC")
    };
    let mut closed = lend("closed", &later).spawn();
    let _open = lend("open", &now).start();
    closed.await_printed("This machine does not serve: it is outside of its owner's hours until");
    assert!(closed.printed().contains(later.split_once('-').unwrap().0), "{}", closed.printed());
    api.await_eligible(1).await;
    let status = api.get("/api/status").await;
    assert_eq!(status["machines"].as_array().unwrap().len(), 1, "{status:#}");
    let refused = lend("wrong", "9 to 5").spawn().ended();
    assert!(!refused.status.success() && refused.printed.contains("22:00-07:00"), "{}", refused.printed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_finds_the_coordinator_of_its_network_that_knows_its_token() {
    let network = match Network::make(3) {
        Ok(network) => network,
        Err(why) => return println!("no networks of one's own on this machine ({why})"),
    };
    let door = format!("{}.1:0", network.subnet);
    let ours = network.program(None, &["coordinator", "--listen", &door]).start();
    // Another one is in the same network, and its token is another.
    let door = format!("{}.12:0", network.subnet);
    let theirs = network.program(Some(2), &["coordinator", "--listen", &door]).start();
    assert!(ours.printed().contains("machines there find it without --join"), "{}", ours.printed());
    let (api, other) = (Api::of(&ours), Api::of(&theirs));
    let provider = |place: usize, name: &str, token: &str| {
        let arguments = ["provider", "--token", token, "--name", name, "--threads", "1"];
        network.program(Some(place), &arguments)
    };
    let _one = provider(0, "one", ours.ready("join_token")).start();
    api.await_eligible(1).await;
    assert_eq!(api.ask("What is Phalanx?", 8).await.0, 200);
    // What it is made of and connected with is told.
    let status = api.get("/api/status").await;
    let hardware = &machine(&status, "one")["hardware"];
    let interface = &hardware["connections"]["interfaces"][0];
    assert_eq!((&interface["name"], &interface["up"]), (&"eth0".into(), &true.into()), "{hardware:#}");
    assert!(interface["addresses"].to_string().contains(&format!("{}.10", network.subnet)), "{hardware:#}");
    assert!(hardware["connections"]["disks"][0]["total"].as_u64().unwrap() > 0, "{hardware:#}");
    assert!(hardware["cores"].as_u64().unwrap() > 0 && hardware["memory_total"].as_u64().unwrap() > 0);
    let show = ["topology", "show", "--machine", "one", "--url", &api.url, "--key", &api.key];
    let shown = String::from_utf8(Command::new(PHALANX).args(show).output().unwrap().stdout).unwrap();
    assert!(shown.contains("eth0") && shown.contains("Disk at /"), "{shown}");
    let _two = provider(1, "two", theirs.ready("join_token")).start();
    other.await_eligible(1).await;
    api.await_eligible(1).await;

    let mut stranger = provider(1, "three", "join-phx-of-nobody").spawn();
    stranger.await_printed("do not know this token");
    assert!(stranger.printed().contains("say where it is with --join URL"), "{}", stranger.printed());
    assert!(stranger.stop().status.success(), "it ends when it is told to");

    let alone = coordinator(&[]);
    assert!(!alone.printed().contains("announced"), "nobody could reach it: {}", alone.printed());
}
