//! Links between machines, tried and measured by real processes: groups stand on what is proved, and a cut link is known.

use serde_json::Value;
use testkit::Started;

use crate::api::{Api, PHALANX, coordinator, provider};
use crate::deployments::{answers, condition, deploy, eventually, machines, ready, synth};
use crate::network::Network;

/// The states of all links from `from` to `to`.
fn states(topology: &Value, from: &str, to: &str) -> Vec<String> {
    let all = topology["links"].as_array().unwrap().iter();
    let of = all.filter(|link| link["from_name"] == from && link["to_name"] == to);
    of.map(|link| link["state"].as_str().unwrap().to_owned()).collect()
}

/// Polls who reaches whom until `done` says so.
pub(crate) async fn topology(api: &Api, what: &str, done: impl Fn(&Value) -> bool) -> Value {
    let deadline = std::time::Instant::now() + testkit::program::PATIENCE;
    let mut pace = tokio::time::interval(std::time::Duration::from_millis(20));
    loop {
        pace.tick().await;
        let now = api.get("/api/topology").await;
        if done(&now) {
            return now;
        }
        assert!(std::time::Instant::now() < deadline, "{what} did not come: {now:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_at_several_addresses_prove_their_links_and_hold_a_model_together() {
    let folder = tempfile::tempdir().unwrap();
    synth(folder.path(), "alpha", 1);
    let coordinator = coordinator(&[]);
    let api = Api::of(&coordinator);
    let token = coordinator.ready("join_token");
    let models = folder.path().display().to_string();
    let start = |name: &str, listen: &str| {
        let more =
            ["--managed", "--models-dir", &models, "--memory-limit", "64MiB", "--group-listen", listen];
        provider(&api.url, token, name, &more).variable("HF_HOME", "/nonexistent").start()
    };
    let _one = start("one", "127.0.0.2,127.0.0.3");
    // Alone, and nobody has tried anybody.
    let preview = |transport: &str| {
        let asked =
            ["preview", "--name", "p", "--model", "alpha", "--shape", "tensor 2", "--transport", transport];
        let said = deploy(&api, &[&asked[..], &["--json"]].concat());
        serde_json::from_slice::<Value>(&said.stdout).unwrap()
    };
    let alone = preview("auto");
    assert_eq!(alone["placements"].as_array().unwrap().len(), 0, "{alone:#}");
    let _two = start("two", "127.0.0.4");
    deploy(&api, &["apply", "--name", "a", "--model", "alpha", "--shape", "tensor 2", "--wait"]);
    answers(&api, "alpha").await;
    assert_eq!(machines(&ready(&api, "a").await).len(), 2);
    let all = topology(&api, "all links up", |now| {
        let links = now["links"].as_array().unwrap();
        links.len() == 3 && links.iter().all(|link| link["state"] == "up")
    })
    .await;
    assert_eq!(states(&all, "two", "one"), ["up", "up"], "each address by itself");
    for link in all["links"].as_array().unwrap() {
        assert!(
            link["rtt_us"].as_u64() > Some(0) && link["bytes_per_s"].as_u64() > Some(1_000_000),
            "{link}"
        );
    }
    let shown = std::process::Command::new(PHALANX)
        .args(["topology", "links", "--url", &api.url, "--key", &api.key])
        .output()
        .unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert_eq!(shown.matches(" up ").count(), 3, "{shown}");
    deploy(&api, &["delete", "a"]);
    // RDMA that is not there is said, with the link that lacks it.
    let rdma = preview("rdma");
    assert_eq!(rdma["placements"].as_array().unwrap().len(), 0);
    let rejected = rdma["rejected"].to_string();
    assert!(rejected.contains("RDMA is required, and the link"), "{rejected}");
    deploy(&api, &["apply", "--name", "r", "--model", "alpha", "--shape", "tensor 2", "--transport", "rdma"]);
    let r = eventually(&api, "r", "a reason", |now| {
        condition(now, "Placed")["message"].as_str().is_some_and(|said| said.contains("RDMA"))
    })
    .await;
    assert_eq!(condition(&r, "Ready")["status"], "False", "{r:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_is_cut_goes_down_and_its_group_stands_on_other_machines() {
    let network = Network::make(3).and_then(|network| network.second().map(|()| network));
    let network = match network {
        Ok(network) => network,
        Err(why) => return println!("no networks of one's own on this machine ({why})"),
    };
    let folder = tempfile::tempdir().unwrap();
    synth(folder.path(), "alpha", 1);
    let models = folder.path().display().to_string();
    let door = format!("{}.1:0", network.subnet);
    let coordinator = network.program(None, &["coordinator", "--listen", &door]).start();
    let api = Api::of(&coordinator);
    let token = coordinator.ready("join_token");
    let names = ["one", "two", "three"];
    // Groups meet on the second network alone; the coordinator is on the first.
    let start = |index: usize| -> Started {
        let listen = Network::second_address(index);
        let about =
            ["provider", "--join", &api.url, "--token", token, "--name", names[index], "--threads", "1"];
        let more =
            ["--managed", "--models-dir", &models, "--memory-limit", "64MiB", "--group-listen", &listen];
        network
            .program(Some(index), &[&about[..], &more[..]].concat())
            .variable("HF_HOME", "/nonexistent")
            .spawn()
    };
    let _fleet = [start(0), start(1), start(2)];
    deploy(&api, &["apply", "--name", "a", "--model", "alpha", "--shape", "tensor 2", "--wait"]);
    answers(&api, "alpha").await;
    let a = ready(&api, "a").await;
    let cut = machines(&a)[1].clone();
    let index = names.iter().position(|name| *name == cut).unwrap();
    network.second_wire(index, "down");
    let elsewhere = eventually(&api, "a", "other machines", |now| {
        let places = machines(now);
        places.len() == 2 && !places.contains(&cut) && condition(now, "Ready")["status"] == "True"
    })
    .await;
    answers(&api, "alpha").await;
    let down = api.get("/api/topology").await;
    let rest: Vec<String> = machines(&elsewhere);
    assert!(
        rest.iter()
            .any(|other| states(&down, other, &cut) == ["down"] || states(&down, &cut, other) == ["down"]),
        "{down:#}"
    );
    // The machine is there all the same, and holds whatever needs no link.
    let why = std::process::Command::new(PHALANX)
        .args(["why", &cut, "--url", &api.url, "--key", &api.key])
        .output()
        .unwrap();
    let why = String::from_utf8(why.stdout).unwrap();
    assert!(why.contains("connected"), "{why}");
    network.second_wire(index, "up");
    topology(&api, "the link is up again", |now| {
        rest.iter().all(|other| states(now, other, &cut) == ["up"] && states(now, &cut, other) == ["up"])
    })
    .await;
    let history = String::from_utf8(deploy(&api, &["history", "a"]).stdout).unwrap();
    println!("{history}");
}
