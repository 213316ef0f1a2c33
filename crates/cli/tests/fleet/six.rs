//! Six machines of unlike memory, each in a network of its own, and three models of different shapes: killed, started again,
//! cut off, told otherwise and deleted at each phase. It converges each time, and whoever asks another model notices nothing.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::{Program, Started};

use crate::api::Api;
use crate::deployments::{Asker, ask, condition, deploy, eventually, machines, ready, synth};
use crate::network::Network;

const MACHINES: [(&str, &str); 6] =
    [("m0", "48MiB"), ("m1", "40MiB"), ("m2", "32MiB"), ("m3", "28MiB"), ("m4", "24MiB"), ("m5", "20MiB")];

struct Fleet {
    network: Network,
    api: Api,
    token: String,
    models: String,
    running: Vec<Option<Started>>,
    _coordinator: Started,
}

impl Fleet {
    fn start(folder: &Path) -> Result<Self, String> {
        let network = Network::make(MACHINES.len())?;
        let door = format!("{}.1:0", network.subnet);
        let silence = ["--set", "uplink.silence_us_max=3000000", "--set", "uplink.heartbeat_us=500000"];
        let arguments = ["coordinator", "--listen", &door];
        let coordinator = network.program(None, &[&arguments[..], &silence[..]].concat()).start();
        let (api, token) = (Api::of(&coordinator), coordinator.ready("join_token").to_owned());
        let models = folder.display().to_string();
        let mut fleet = Self { network, api, token, models, running: Vec::new(), _coordinator: coordinator };
        fleet.running = (0..MACHINES.len()).map(|at| Some(fleet.machine(at).spawn())).collect();
        Ok(fleet)
    }

    fn machine(&self, at: usize) -> Program {
        let (name, memory) = MACHINES[at];
        let arguments = [
            "provider",
            "--join",
            &self.api.url,
            "--token",
            &self.token,
            "--name",
            name,
            "--threads",
            "1",
            "--managed",
            "--models-dir",
            &self.models,
            "--memory-limit",
            memory,
        ];
        self.network.program(Some(at), &arguments).variable("HF_HOME", "/nonexistent")
    }

    fn at(name: &str) -> usize {
        MACHINES.iter().position(|(of, _)| *of == name).unwrap()
    }

    /// Ready now means that it answers now.
    async fn holds(&self, name: &str, model: &str) -> Value {
        let now = ready(&self.api, name).await;
        assert_eq!(ask(&self.api, model).await, 200, "{name} is said to be ready: {now:#}");
        now
    }

    /// Until no machine but `of` holds anything of `model`.
    async fn is_free_of(&self, model: &str) {
        self.api
            .await_status(&format!("{model} is gone"), |status| {
                !status["machines"].to_string().contains(&format!("\"{model}\""))
            })
            .await;
    }

    async fn other_machines(&self, name: &str, lost: &str, count: usize) -> Value {
        eventually(&self.api, name, "other machines", |now| {
            let places = machines(now);
            places.len() == count && !places.iter().any(|place| place == lost)
        })
        .await
    }

    async fn is_deleted_at_each_phase(&self) {
        // Deleted while it waits for a machine, while it is placed and loads, when it is ready, and while it drains.
        deploy(&self.api, &["apply", "--name", "d", "--model", "delta", "--pin", "nowhere"]);
        let d = eventually(&self.api, "d", "waiting", |now| condition(now, "Placed")["reason"] == "Waiting")
            .await;
        assert_eq!(condition(&d, "Ready")["status"], "False");
        let apply = |more: &[&str]| {
            deploy(&self.api, &["delete", "d"]);
            deploy(&self.api, &[&["apply", "--name", "d", "--model", "delta"], more].concat())
        };
        apply(&[]);
        apply(&[]);
        eventually(&self.api, "d", "loading", |now| condition(now, "Progressing")["status"] == "True").await;
        apply(&["--wait"]);
        self.holds("d", "delta").await;
        apply(&["--wait"]);
        deploy(&self.api, &["scale", "d", "0"]);
        deploy(&self.api, &["delete", "d"]);
        let again = self.api.http.delete(format!("{}/api/deployments/d", self.api.url));
        let again = again.bearer_auth(&self.api.key).send().await.unwrap();
        assert_eq!(again.status(), 404, "deleting again harms nobody");
        self.is_free_of("delta").await;
        assert_ne!(ask(&self.api, "delta").await, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn six_machines_and_three_models_converge_whatever_happens_and_others_notice_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for (seed, name) in (1..).zip(["alpha", "beta", "gamma", "delta"]) {
        synth(folder.path(), name, seed);
    }
    let mut fleet = match Fleet::start(folder.path()) {
        Ok(fleet) => fleet,
        Err(why) => return println!("no networks of one's own on this machine ({why})"),
    };
    deploy(&fleet.api, &["apply", "--name", "a", "--model", "alpha", "--shape", "single"]);
    deploy(&fleet.api, &["apply", "--name", "b", "--model", "beta", "--shape", "tensor 2"]);
    deploy(&fleet.api, &["apply", "--name", "c", "--model", "gamma", "--shape", "pipeline 2"]);
    fleet.holds("a", "alpha").await;
    let b = fleet.holds("b", "beta").await;
    fleet.holds("c", "gamma").await;

    // A rank is killed: placed again within a second, on others; the rest serves on.
    let others = [Asker::of(&fleet.api, "alpha"), Asker::of(&fleet.api, "gamma")];
    let lost = machines(&b)[1].clone();
    let killed = Instant::now();
    let stopped = fleet.running[Fleet::at(&lost)].take().unwrap().kill();
    let now = fleet.other_machines("b", &lost, 2).await;
    let took = killed.elapsed();
    println!("placed again {took:?} after the kill: {}", condition(&now, "Progressing")["message"]);
    assert!(took < Duration::from_secs(5), "a second, and what a busy machine adds: {took:?}");
    fleet.holds("b", "beta").await;
    for other in others {
        other.ended().await;
    }
    fleet.running[Fleet::at(&lost)] = Some(fleet.machine(Fleet::at(&lost)).in_folder_of(stopped).spawn());

    // A wire goes dead under a stage: nobody is told, and it is found out.
    let others = [Asker::of(&fleet.api, "alpha"), Asker::of(&fleet.api, "beta")];
    let c = fleet.holds("c", "gamma").await;
    let cut = machines(&c)[0].clone();
    fleet.network.wire(Fleet::at(&cut), "down");
    fleet.other_machines("c", &cut, 2).await;
    fleet.holds("c", "gamma").await;
    fleet.network.wire(Fleet::at(&cut), "up");
    for other in others {
        other.ended().await;
    }

    // Another spec: the old terms serve until the new ones do, or requests wait; the rest notices nothing.
    let others = [Asker::of(&fleet.api, "gamma"), Asker::of(&fleet.api, "beta")];
    deploy(
        &fleet.api,
        &["apply", "--name", "a", "--model", "alpha", "--shape", "single", "--context", "256"],
    );
    let a = fleet.holds("a", "alpha").await;
    assert_eq!((a["generation"].as_u64(), a["spec"]["context"].as_u64()), (Some(2), Some(256)), "{a:#}");

    fleet.is_deleted_at_each_phase().await;
    for other in others {
        other.ended().await;
    }

    // Every group is deleted; nothing is left.
    for (name, model) in [("b", "beta"), ("c", "gamma"), ("a", "alpha")] {
        deploy(&fleet.api, &["delete", name]);
        fleet.is_free_of(model).await;
    }
    let status = fleet.api.get("/api/status").await;
    assert!(status["groups"].as_array().is_none_or(Vec::is_empty), "{status:#}");
}
