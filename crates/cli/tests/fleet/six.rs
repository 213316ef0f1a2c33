//! Six machines of unlike memory, each in a network of its own, and three models of different shapes: killed, started again,
//! cut off, told otherwise and deleted at each phase. It converges each time, and whoever asks another model notices nothing.

use std::path::Path;
use std::time::Instant;

use serde_json::Value;
use testkit::program::Stopped;
use testkit::{Program, Started};

use crate::api::Api;
use crate::deployments::{Asker, ask, condition, deploy, eventually, machines, ready, synth};
use crate::network::Network;
use crate::witness::{Gone, Witness};

const MACHINES: [(&str, &str); 6] =
    [("m0", "48MiB"), ("m1", "40MiB"), ("m2", "32MiB"), ("m3", "28MiB"), ("m4", "24MiB"), ("m5", "20MiB")];

struct Fleet {
    network: Network,
    api: Api,
    token: String,
    models: String,
    running: Vec<Option<Started>>,
    /// For whoever watches: since when each is.
    gone: Gone,
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
        let mut fleet = Self {
            network,
            api,
            token,
            models,
            running: Vec::new(),
            gone: Gone::default(),
            _coordinator: coordinator,
        };
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

    /// Kills a machine's provider; what is left of it, to start it again.
    fn kill(&mut self, name: &str) -> Stopped {
        self.gone.lock().unwrap().insert(name.to_owned(), Instant::now());
        self.running[Self::at(name)].take().unwrap().kill()
    }

    fn start_again(&mut self, name: &str, stopped: Stopped) {
        let at = Self::at(name);
        self.running[at] = Some(self.machine(at).in_folder_of(stopped).spawn());
        self.gone.lock().unwrap().remove(name);
    }

    /// Cuts a machine off from everybody, or mends it.
    fn wire(&self, name: &str, state: &str) {
        match state {
            "down" => _ = self.gone.lock().unwrap().insert(name.to_owned(), Instant::now()),
            _ => _ = self.gone.lock().unwrap().remove(name),
        }
        self.network.wire(Self::at(name), state);
    }

    /// Until a deployment's ranks are not these two any more, and it serves.
    async fn moves_apart(&self, name: &str, pair: &[String]) {
        eventually(&self.api, name, "another pair", |now| {
            let ready = condition(now, "Ready");
            let places = machines(now);
            places.len() == 2
                && !pair.iter().all(|machine| places.contains(machine))
                && ready["status"] == "True"
                && ready["observed_generation"] == now["generation"]
        })
        .await;
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

    /// Kills a rank: by the coordinator's own times it is placed again, and told to load, within a second of the loss. Where the
    /// machine is so busy that nobody got to it, it is lost again: what is asked is what the fleet does, not its neighbours.
    /// Which machines were lost, and how long it took each time, in microseconds.
    async fn is_placed_again_within_a_second(&mut self, name: &str, model: &str) -> Vec<(String, u64)> {
        let mut times = Vec::new();
        while times.len() < 5 && times.iter().all(|(_, took)| *took >= 1_000_000) {
            let before = self.history(name).await.len();
            let lost = machines(&ready(&self.api, name).await)[1].clone();
            let stopped = self.kill(&lost);
            self.other_machines(name, &lost, 2).await;
            let told = self.history(name).await;
            let at = |what: &str| {
                let line = told[before..].iter().find(|line| line["what"].as_str().unwrap().contains(what));
                line.unwrap_or_else(|| panic!("{what:?}: {told:#?}"))["at_unix_us"].as_u64().unwrap()
            };
            let took = at("was placed on") - at(&lost);
            self.holds(name, model).await;
            self.start_again(&lost, stopped);
            times.push((lost, took));
        }
        assert!(times.iter().any(|(_, took)| *took < 1_000_000), "a second is meant: {times:?}");
        times
    }

    async fn history(&self, name: &str) -> Vec<Value> {
        let history = self.api.get(&format!("/api/deployments/{name}/history")).await;
        history["events"].as_array().unwrap().clone()
    }

    /// Deleted while it waits for a machine, while it is placed and loads, when it is ready, and while it drains; alone, and as a
    /// group; and told otherwise on its way.
    async fn is_deleted_at_each_phase(&self) {
        deploy(&self.api, &["apply", "--name", "d", "--model", "delta", "--pin", "nowhere"]);
        let d = eventually(&self.api, "d", "waiting", |now| condition(now, "Placed")["reason"] == "Waiting")
            .await;
        assert_eq!(condition(&d, "Ready")["status"], "False");
        for shape in ["single", "pipeline 2"] {
            let apply = |more: &[&str]| {
                deploy(&self.api, &["delete", "d"]);
                let spec = ["apply", "--name", "d", "--model", "delta", "--shape", shape];
                deploy(&self.api, &[&spec[..], more].concat())
            };
            apply(&[]);
            apply(&[]);
            eventually(&self.api, "d", "loading", |now| condition(now, "Progressing")["status"] == "True")
                .await;
            apply(&["--wait"]);
            self.holds("d", "delta").await;
            apply(&["--wait"]);
            deploy(&self.api, &["scale", "d", "0"]);
        }
        // Each before the one before it has come to be; the last counts.
        for shape in ["tensor 2", "single", "pipeline 2"] {
            deploy(&self.api, &["apply", "--name", "d", "--model", "delta", "--shape", shape]);
        }
        let d = self.holds("d", "delta").await;
        let ranks = d["instances"][0]["ranks"].as_array().unwrap();
        assert!(ranks.len() == 2 && ranks[0]["layers"] != ranks[1]["layers"], "{d:#}");
        deploy(&self.api, &["delete", "d"]);
        let again = self.api.http.delete(format!("{}/api/deployments/d", self.api.url));
        let again = again.bearer_auth(&self.api.key).send().await.unwrap();
        assert_eq!(again.status(), 404, "deleting again harms nobody");
        self.is_free_of("delta").await;
        assert_ne!(ask(&self.api, "delta").await, 200);
    }

    /// What fails wherever it loads is said with machine and error, ever more seldom tried, and deleted as anything else.
    async fn is_deleted_while_it_fails_everywhere(&self) {
        deploy(&self.api, &["apply", "--name", "e", "--model", "epsilon"]);
        let e = eventually(&self.api, "e", "a crash loop", |now| {
            condition(now, "Placed")["reason"] == "CrashLoop"
        })
        .await;
        let errors = e["errors"].as_array().unwrap();
        let names =
            |error: &Value| MACHINES.iter().any(|(name, _)| error.to_string().contains(&format!("{name}:")));
        assert!(errors.len() >= 8 && errors.iter().all(names), "{errors:#?}");
        let said = condition(&e, "Placed")["message"].as_str().unwrap();
        assert!(said.contains("tried again in"), "{said}");
        deploy(&self.api, &["delete", "e"]);
        self.is_free_of("epsilon").await;
    }

    /// A wire goes dead under a stage, then links between two machines, one way and both.
    async fn is_cut(&self) {
        // Nobody is told, and it is found out.
        let others = [Asker::of(&self.api, "alpha"), Asker::of(&self.api, "beta")];
        let c = self.holds("c", "gamma").await;
        let cut = machines(&c)[0].clone();
        self.wire(&cut, "down");
        self.other_machines("c", &cut, 2).await;
        self.holds("c", "gamma").await;
        self.wire(&cut, "up");
        for other in others {
            other.ended().await;
        }
        // The coordinator reaches everybody all the time.
        let alpha = Asker::of(&self.api, "alpha");
        self.holds("c", "gamma").await;
        // One way and the other, and both: of whichever ranks there are.
        tokio::join!(self.loses_a_link("b", &[(0, 1)]), self.loses_a_link("c", &[(0, 1), (1, 0)]));
        self.holds("b", "beta").await;
        self.holds("c", "gamma").await;
        tokio::join!(self.loses_a_link("b", &[(1, 0)]), self.loses_a_link("c", &[(0, 1)]));
        self.holds("b", "beta").await;
        self.holds("c", "gamma").await;
        alpha.ended().await;
    }

    /// What goes from one rank to the other is lost, `ways` by rank, and everything else is not: it is found out, and other
    /// machines compute.
    async fn loses_a_link(&self, name: &str, ways: &[(usize, usize)]) {
        let pair = machines(&eventually(&self.api, name, "a group", |now| machines(now).len() == 2).await);
        let at = |rank: usize| Self::at(&pair[rank]);
        ways.iter().for_each(|(from, to)| self.network.one_way(at(*from), at(*to), "down"));
        self.moves_apart(name, &pair).await;
        ways.iter().for_each(|(from, to)| self.network.one_way(at(*from), at(*to), "up"));
    }
}

/// A model whose weights are no numbers: it is seen on the disk, and does not load.
fn synth_broken(folder: &Path, name: &str) {
    synth(folder, name, 9);
    let path = folder.join(name).join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let data = 8 + usize::try_from(header).unwrap();
    bytes[data..].fill(0xff);
    std::fs::write(&path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn six_machines_and_three_models_converge_whatever_happens_and_others_notice_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for (seed, name) in (1..).zip(["alpha", "beta", "gamma", "delta"]) {
        synth(folder.path(), name, seed);
    }
    synth_broken(folder.path(), "epsilon");
    let mut fleet = match Fleet::start(folder.path()) {
        Ok(fleet) => fleet,
        Err(why) => return println!("no networks of one's own on this machine ({why})"),
    };
    let witness = Witness::of(&fleet.api, &fleet.gone);
    deploy(&fleet.api, &["apply", "--name", "a", "--model", "alpha", "--shape", "single"]);
    deploy(&fleet.api, &["apply", "--name", "b", "--model", "beta", "--shape", "tensor 2"]);
    deploy(&fleet.api, &["apply", "--name", "c", "--model", "gamma", "--shape", "pipeline 2"]);
    fleet.holds("a", "alpha").await;
    fleet.holds("b", "beta").await;
    fleet.holds("c", "gamma").await;

    // A rank is killed: placed again within a second, on others; the rest serves on.
    let others = [Asker::of(&fleet.api, "alpha"), Asker::of(&fleet.api, "gamma")];
    let times = fleet.is_placed_again_within_a_second("b", "beta").await;
    println!("lost, and placed again after so many microseconds: {times:?}");
    for other in others {
        other.ended().await;
    }

    fleet.is_cut().await;

    // Another spec: the old terms serve until the new ones do, or requests wait; the rest notices nothing.
    let others = [Asker::of(&fleet.api, "beta"), Asker::of(&fleet.api, "gamma")];
    deploy(
        &fleet.api,
        &["apply", "--name", "a", "--model", "alpha", "--shape", "single", "--context", "256"],
    );
    let a = fleet.holds("a", "alpha").await;
    assert_eq!((a["generation"].as_u64(), a["spec"]["context"].as_u64()), (Some(2), Some(256)), "{a:#}");
    let [beta, gamma] = others;
    gamma.ended().await;
    deploy(&fleet.api, &["delete", "c"]);
    fleet.is_free_of("gamma").await;

    fleet.is_deleted_at_each_phase().await;
    fleet.is_deleted_while_it_fails_everywhere().await;
    beta.ended().await;

    // Every group is deleted; nothing is left.
    for (name, model) in [("b", "beta"), ("a", "alpha")] {
        deploy(&fleet.api, &["delete", name]);
        fleet.is_free_of(model).await;
    }
    let status = fleet.api.get("/api/status").await;
    assert!(status["groups"].as_array().is_none_or(Vec::is_empty), "{status:#}");
    witness.ended().await;
}
