//! Every way in which a group may lose a rank, with real processes: no request ends wrongly, no token is wrong, the culprit is
//! named, and the group stands again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base::Rng;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use testkit::{Program, Started};

use crate::api::{Api, PHALANX, coordinator, events, provider, text_of};
use crate::groups::{await_phase, group};

const SEED: u64 = 20_261_121;

/// Greedy requests: what they choose does not depend on how many ranks sum.
fn bodies() -> Vec<Value> {
    let long = "Tell me about Phalanx and what it does with many machines. ".repeat(30);
    let asks = [
        ("Tell me a short story about a fox.", 64),
        ("What is Phalanx?", 48),
        ("How do I list files?", 40),
        (long.as_str(), 24),
        ("Hello! Who are you?", 48),
    ];
    let body = |(text, most): &(&str, u32)| crate::api::turn(text, *most);
    asks.iter().map(body).collect()
}

async fn whole(api: &Api, body: &Value) -> String {
    let answer = api.post("/v1/chat/completions", body).await;
    let (status, answer): (_, Value) = (answer.status(), answer.json().await.unwrap());
    assert_eq!(status, 200, "{answer:#}");
    answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

async fn streamed(api: &Api, body: &Value) -> String {
    let mut body = body.clone();
    body["stream"] = true.into();
    let response = api.post("/v1/chat/completions", &body).await;
    let status = response.status();
    assert!(status == 200, "{status}: {}", response.text().await.unwrap());
    let (events, done) = events(response).await;
    assert!(done && events.iter().all(|event| event["error"].is_null()), "{:#}", events.last().unwrap());
    text_of(&events)
}

/// Answers that are being waited for.
pub(crate) struct Asked(Vec<(Value, String, tokio::task::JoinHandle<String>)>);

fn again(api: &Api) -> Api {
    Api { http: api.http.clone(), url: api.url.clone(), key: api.key.clone() }
}

/// Asks everything, every second of it streamed.
pub(crate) fn ask_all(api: &Api, undisturbed: &[(Value, String)]) -> Asked {
    let ask = |(at, (body, expected)): (usize, &(Value, String))| {
        let (api, sent) = (again(api), body.clone());
        let task = tokio::spawn(async move {
            if at % 2 == 0 { streamed(&api, &sent).await } else { whole(&api, &sent).await }
        });
        (body.clone(), expected.clone(), task)
    };
    Asked(undisturbed.iter().enumerate().map(ask).collect())
}

impl Asked {
    /// Each is what it is without faults.
    pub(crate) async fn all_right(self) {
        for (body, expected, task) in self.0 {
            assert_eq!(task.await.unwrap(), expected, "{body:#}");
        }
    }
}

pub(crate) async fn undisturbed(api: &Api) -> Vec<(Value, String)> {
    let mut all = Vec::new();
    for body in bodies() {
        let text = whole(api, &body).await;
        all.push((body, text));
    }
    all
}

/// When a rank is harmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    Idle,
    /// Requests are there, and nothing of their answers.
    Prefill,
    /// After so many tokens of one of them.
    Decode(u32),
    /// The group's next life has begun after another fault.
    Forming,
    /// Its ranks have met.
    Loading,
}

/// Waits for the moment while one more answer streams; gives that answer's task.
async fn await_moment(api: &Api, moment: Moment) {
    let Moment::Decode(tokens) = moment else { return };
    let mut body = crate::api::turn("Tell me a short story about a fox.", 64);
    body["stream"] = true.into();
    let mut answer = api.post("/v1/chat/completions", &body).await;
    let mut seen = 0;
    while seen < tokens {
        let Some(part) = answer.chunk().await.unwrap() else { return };
        seen += u32::try_from(part.windows(6).filter(|w| w == b"data: ").count()).unwrap();
    }
}

/// Polls until the group is in this phase of a later life, or past it: a short phase may be missed.
async fn await_at_least(api: &Api, phase: &str, life: u64) {
    let order = ["waiting", "forming", "loading", "ready"];
    let rank = |phase: &str| order.iter().position(|known| *known == phase).unwrap_or(0);
    let deadline = Instant::now() + testkit::program::PATIENCE;
    loop {
        let group = group(api).await;
        let reached = rank(group["phase"].as_str().unwrap()) >= rank(phase);
        if group["epoch"].as_u64().unwrap() > life && reached {
            return;
        }
        assert!(Instant::now() < deadline, "no life after {life}: {group:#}");
        tokio::task::yield_now().await;
    }
}

struct Fleet {
    coordinator: Started,
    api: Arc<Api>,
    machines: Vec<(String, Option<Started>)>,
    undisturbed: Vec<(Value, String)>,
}

impl Fleet {
    /// A group of `ranks` machines that stands.
    async fn start(ranks: usize, mode: &str) -> Self {
        let coordinator = coordinator(&[]);
        let api = Arc::new(Api::of(&coordinator));
        let token = coordinator.ready("join_token").to_owned();
        let names = ["one", "two", "three", "four"].into_iter().take(ranks).map(str::to_owned);
        let machines: Vec<_> = names
            .map(|name| {
                let started = provider(&api.url, &token, &name, &[]).spawn();
                (name, Some(started))
            })
            .collect();
        api.await_eligible(ranks as u64).await;
        let undisturbed = undisturbed(&api).await;
        let names: Vec<&String> = machines.iter().map(|(name, _)| name).collect();
        let asked = json!({"model": "phalanx-bundled", "machines": names, "mode": mode, "patience_ms": 1500});
        let made = api.post("/api/groups", &asked).await;
        assert_eq!(made.status(), 201);
        let fleet = Self { coordinator, api, machines, undisturbed };
        fleet.stands_after(0).await;
        fleet
    }

    async fn life(&self) -> u64 {
        group(&self.api).await["epoch"].as_u64().unwrap()
    }

    /// Waits until a later life than this one takes requests, alone, through its rank 0.
    async fn stands_after(&self, life: u64) -> Value {
        let stands = await_phase(&self.api, "ready", life + 1).await;
        self.api.await_eligible(1).await;
        stands
    }

    fn machine(&self, rank: usize) -> &Started {
        self.machines[rank].1.as_ref().unwrap()
    }

    fn kill(&mut self, rank: usize) {
        let token = self.coordinator.ready("join_token").to_owned();
        let (name, machine) = &mut self.machines[rank];
        let stopped = machine.take().unwrap().kill();
        *machine = Some(provider(&self.api.url, &token, name, &[]).in_folder_of(stopped).spawn());
    }

    /// Kills `rank` at this moment, and holds the service to what it was without.
    async fn lose(&mut self, rank: usize, moment: Moment) {
        let mut life = self.life().await;
        if matches!(moment, Moment::Forming | Moment::Loading) {
            self.kill((rank + 1) % self.machines.len());
            let phase = if moment == Moment::Forming { "forming" } else { "loading" };
            await_at_least(&self.api, phase, life).await;
            life = self.life().await;
        }
        let asked = (moment != Moment::Idle).then(|| ask_all(&self.api, &self.undisturbed));
        await_moment(&self.api, moment).await;
        self.kill(rank);
        let asked = asked.unwrap_or_else(|| ask_all(&self.api, &self.undisturbed));
        asked.all_right().await;
        let stands = self.stands_after(life).await;
        let fault = stands["last_fault"].as_str().unwrap();
        let named = if matches!(moment, Moment::Forming | Moment::Loading) {
            fault.starts_with("rank ")
        } else {
            fault.starts_with(&format!("rank {rank}:"))
        };
        assert!(named, "rank {rank} was killed in {moment:?}: {fault}");
        ask_all(&self.api, &self.undisturbed).all_right().await;
        self.only_rank_0_is_listed().await;
    }

    /// No listing offers any other rank (E3, E4).
    async fn only_rank_0_is_listed(&self) {
        let status = self.api.get("/api/status").await;
        let instances: Vec<&Value> = status["machines"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|m| m["instances"].as_array().unwrap())
            .collect();
        let taking: Vec<_> = instances.iter().filter(|i| i["ineligible"].is_null()).collect();
        assert_eq!(taking.len(), 1, "{status:#}");
        assert_eq!(taking[0]["instance"], status["groups"][0]["instance"]);
        let models = self.api.get("/v1/models").await;
        assert_eq!(models["data"].as_array().map(Vec::len), Some(1), "{models:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn either_rank_may_be_killed_at_any_moment() {
    let mut fleet = Fleet::start(2, "tensor").await;
    fleet.only_rank_0_is_listed().await;
    for rank in [1, 0] {
        for moment in [Moment::Idle, Moment::Prefill, Moment::Decode(7), Moment::Forming, Moment::Loading] {
            fleet.lose(rank, moment).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_ranks_and_two_stages_of_two_lose_any_of_them() {
    let mut rng = Rng::new(SEED);
    for (ranks, mode) in [(3, "tensor"), (4, "2x2"), (3, "pipeline")] {
        let mut fleet = Fleet::start(ranks, mode).await;
        let first = rng.below(ranks as u64) as usize;
        fleet.lose(first, Moment::Decode(1 + rng.below(20) as u32)).await;
        fleet.lose((first + 1) % ranks, Moment::Prefill).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn either_rank_may_freeze_beyond_the_deadline() {
    let fleet = Fleet::start(2, "tensor").await;
    for rank in [1, 0] {
        let life = fleet.life().await;
        let asked = ask_all(&fleet.api, &fleet.undisturbed);
        await_moment(&fleet.api, Moment::Decode(5)).await;
        fleet.machine(rank).signal(Signal::STOP);
        asked.all_right().await;
        // Where all of these were answered before the machine stood still, it is the idle group that finds it.
        let named = |status: &Value| {
            let fault = status["groups"][0]["last_fault"].as_str().unwrap_or_default();
            fault.starts_with(&format!("rank {rank}:"))
        };
        fleet.api.await_status("the frozen rank's name", named).await;
        fleet.machine(rank).signal(Signal::CONT);
        fleet.stands_after(life).await;
        ask_all(&fleet.api, &fleet.undisturbed).all_right().await;
    }
}

/// Random faults in random order; `PHALANX_SOAK_SEED` and `PHALANX_SOAK_SECONDS` make more of it (`cargo xtask soak groups`).
#[tokio::test(flavor = "multi_thread")]
async fn random_faults_one_after_the_other() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("PHALANX_SOAK_SEED").unwrap_or(SEED);
    let long = number("PHALANX_SOAK_SECONDS").map(Duration::from_secs);
    let (begun, mut rng) = (Instant::now(), Rng::new(seed));
    let mut faults = 0;
    while faults < 4 || long.is_some_and(|long| begun.elapsed() < long) {
        let (ranks, mode) =
            [(2, "tensor"), (3, "tensor"), (2, "pipeline"), (4, "2x2")][rng.below(4) as usize];
        let mut fleet = Fleet::start(ranks, mode).await;
        for _ in 0..4 {
            let rank = rng.below(ranks as u64) as usize;
            let moment = match rng.below(6) {
                0 => Moment::Idle,
                1 => Moment::Prefill,
                2 => Moment::Forming,
                3 => Moment::Loading,
                _ => Moment::Decode(1 + rng.below(40) as u32),
            };
            if long.is_some() {
                println!("seed {seed}, fault {faults}: rank {rank} of {ranks} ({mode}), {moment:?}");
            }
            fleet.lose(rank, moment).await;
            faults += 1;
        }
    }
}

/// The provider of this name among the children of `up`.
pub(crate) fn child_named(up: &Started, name: &str) -> Option<Pid> {
    let parent = up.pid().as_raw_nonzero().get();
    let tasks = std::fs::read_dir(format!("/proc/{parent}/task")).unwrap();
    let children = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("children")).ok());
    let all: Vec<i32> = children
        .flat_map(|text| text.split_whitespace().map(|w| w.parse().unwrap()).collect::<Vec<_>>())
        .collect();
    let named = |process: &i32| {
        std::fs::read(format!("/proc/{process}/cmdline"))
            .is_ok_and(|line| line.split(|byte| *byte == 0).any(|word| word == name.as_bytes()))
    };
    all.into_iter().find(named).and_then(Pid::from_raw)
}

#[tokio::test(flavor = "multi_thread")]
async fn up_serves_over_two_ranks_and_no_request_ends_wrongly_when_either_is_killed() {
    let single = Program::new(PHALANX, ["up", "--listen", "127.0.0.1:0", "--mode", "single"]).start();
    let expected = undisturbed(&Api::of(&single)).await;
    drop(single.stop());
    let up = Program::new(PHALANX, ["up", "--listen", "127.0.0.1:0"]).start();
    let api = Api::of(&up);
    assert_eq!(group(&api).await["phase"], "ready");
    api.await_eligible(1).await;
    ask_all(&api, &expected).all_right().await;
    for name in ["machine-1", "machine-2", "machine-1"] {
        let life = await_phase(&api, "ready", 0).await["epoch"].as_u64().unwrap();
        let told = lines(&api, name).await;
        let asked = ask_all(&api, &expected);
        await_moment(&api, Moment::Decode(3)).await;
        kill_process(child_named(&up, name).expect("it runs"), Signal::KILL).unwrap();
        asked.all_right().await;
        await_phase(&api, "ready", life + 1).await;
        // What happened is in the history of the model's deployment, with the machine's name.
        assert!(lines(&api, name).await > told);
        ask_all(&api, &expected).all_right().await;
    }
    // What runs is what was declared.
    let now = crate::deployments::ready(&api, "phalanx-bundled").await;
    assert_eq!((&now["spec"]["shape"], &now["spec"]["replicas"]), (&json!("tensor 2"), &json!(1)), "{now:#}");
    assert_eq!(crate::deployments::machines(&now), ["machine-1", "machine-2"]);
}

/// Lines of the bundled model's history that name this machine's loss.
async fn lines(api: &Api, machine: &str) -> usize {
    let history = api.get("/api/deployments/phalanx-bundled/history").await;
    let lines = history["events"].as_array().unwrap_or_else(|| panic!("{history:#}")).iter();
    let lost = |what: &str| what.contains(machine) && (what.contains("failed") || what.contains("was ended"));
    lines.filter(|line| line["what"].as_str().is_some_and(lost)).count()
}
