//! `bench reconcile`: a deployment whose machines are killed, and the coordinator too: how long until it is placed again and
//! loading, until it is ready, until the service is back; and whether anything is lost or loaded twice.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Context, ensure};
use serde::Serialize;
use serde_json::{Value, json};

use crate::machine::Machine;
use crate::managed::{LOOK_EVERY, Managed, STEP_MAX, name};
use crate::scenarios::fleet::Process;
use crate::tell::{tell, unless_interrupted};

/// The deployment's name.
const NAME: &str = "reconciled";

/// What to run and how to tell it.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Managed machines.
    #[arg(long, default_value_t = 4)]
    pub providers: usize,
    /// Instances of the deployment.
    #[arg(long, default_value_t = 2)]
    pub replicas: usize,
    /// Machines killed, one after the other.
    #[arg(long, default_value_t = 10)]
    pub losses: usize,
    /// Times that the coordinator is killed and started.
    #[arg(long, default_value_t = 3)]
    pub restarts: usize,
    /// The smallest size, without assertions on speed: whether it works at all.
    #[arg(long)]
    pub quick: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// One lost machine.
#[derive(Debug, Clone, Copy, Serialize)]
struct Loss {
    /// From the kill until another machine loads.
    loading_ms: f64,
    /// Until as many serve as before.
    ready_ms: f64,
}

/// What came of it.
#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    losses: Vec<Loss>,
    loading_p50_ms: f64,
    loading_max_ms: f64,
    ready_p50_ms: f64,
    /// From the coordinator's kill until it answers a request again, its start included.
    restarts_ms: Vec<f64>,
    /// Deployments or instances that were other ones after a restart.
    lost: usize,
    pass: bool,
}

/// Runs it and prints the report; whether nothing was lost, and at full size the goals were met: loading within 1 s of a
/// loss, serving within 2 s of the coordinator's.
///
/// # Errors
/// Processes that do not start, or a step that takes longer than two minutes.
pub async fn run(mut options: Options) -> anyhow::Result<bool> {
    if options.quick {
        (options.losses, options.restarts) = (options.losses.min(1), options.restarts.min(1));
    }
    ensure!(options.replicas > 0, "--replicas must be at least 1");
    ensure!(options.providers > options.replicas, "--providers must be more than --replicas");
    let report = unless_interrupted(measure(&options)).await?;
    tell(options.json, &report, table)?;
    Ok(report.pass)
}

async fn measure(options: &Options) -> anyhow::Result<Report> {
    let mut house = Managed::start(options.providers, &["--model", "bundled"]).await?;
    let spec = json!({"name": NAME, "model": "phalanx-bundled", "replicas": options.replicas});
    house.post("/api/deployments", &spec).await?;
    house.ready(options.replicas).await?;
    let mut losses = Vec::new();
    for number in 0..options.losses {
        eprintln!("loss {} of {} ...", number + 1, options.losses);
        losses.push(house.lose(options.replicas).await?);
    }
    let (mut restarts_ms, mut lost) = (Vec::new(), 0);
    for number in 0..options.restarts {
        eprintln!("restart {} of {} ...", number + 1, options.restarts);
        let before = house.lives().await?;
        restarts_ms.push(house.restart().await?);
        house.ready(options.replicas).await?;
        lost += usize::from(house.lives().await? != before);
    }
    house.end().await;
    let mut loading: Vec<f64> = losses.iter().map(|loss| loss.loading_ms).collect();
    let mut ready: Vec<f64> = losses.iter().map(|loss| loss.ready_ms).collect();
    loading.sort_by(f64::total_cmp);
    ready.sort_by(f64::total_cmp);
    let middle = |sorted: &[f64]| sorted.get(sorted.len() / 2).copied().unwrap_or(0.0);
    let most = |sorted: &[f64]| sorted.last().copied().unwrap_or(0.0);
    let slowest = restarts_ms.iter().copied().fold(0.0, f64::max);
    let in_time = options.quick || (most(&loading) <= 1000.0 && slowest <= 2000.0);
    Ok(Report {
        machine: Machine::here(),
        loading_p50_ms: middle(&loading),
        loading_max_ms: most(&loading),
        ready_p50_ms: middle(&ready),
        losses,
        restarts_ms,
        lost,
        pass: lost == 0 && in_time,
    })
}

fn table(report: &Report) -> String {
    let restarts: Vec<String> = report.restarts_ms.iter().map(|ms| format!("{ms:.0}")).collect();
    format!(
        "machines lost: {}; placed again and loading after {:.0} ms (median), {:.0} ms (most); ready after {:.0} ms (median)\n\
         coordinator killed and started: serving after {} ms; {} deployments or instances lost\n{}",
        report.losses.len(),
        report.loading_p50_ms,
        report.loading_max_ms,
        report.ready_p50_ms,
        restarts.join(", "),
        report.lost,
        if report.pass { "PASS" } else { "FAIL" }
    )
}

/// What is asked of the fleet here.
impl Managed {
    /// The deployment's instances: identity and epoch.
    async fn lives(&self) -> anyhow::Result<BTreeSet<String>> {
        let now = self.get(&format!("/api/deployments/{NAME}")).await?;
        let all = now["instances"].as_array().context("no instances")?.iter();
        Ok(all.map(|instance| format!("{} {}", instance["instance"], instance["epoch"])).collect())
    }

    /// Waits until `done` says so of the deployment's instances: each with its machine, its rank's phase and whether it
    /// serves.
    async fn until(
        &self,
        what: &str,
        done: impl Fn(&[(String, String, bool)]) -> bool,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + STEP_MAX;
        loop {
            if let Ok(now) = self.get(&format!("/api/deployments/{NAME}")).await {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let instances = now["instances"].as_array().into_iter().flatten().map(|instance| {
                    let rank = &instance["ranks"][0];
                    (text(&rank["name"]), text(&rank["phase"]), instance["serves"] == true)
                });
                if done(&instances.collect::<Vec<_>>()) {
                    return Ok(());
                }
                ensure!(Instant::now() < deadline, "{what} did not come: {now:#}\n{}", self.logs());
            }
            ensure!(Instant::now() < deadline, "{what} did not come\n{}", self.logs());
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn ready(&self, replicas: usize) -> anyhow::Result<()> {
        self.until("ready", |all| all.iter().filter(|(_, _, serves)| *serves).count() >= replicas).await
    }

    /// Kills a machine that serves, and waits until another is ready in its place; then starts it again.
    async fn lose(&mut self, replicas: usize) -> anyhow::Result<Loss> {
        let now = self.get(&format!("/api/deployments/{NAME}")).await?;
        let lost = now["instances"][0]["ranks"][0]["name"].as_str().context("no instance")?.to_owned();
        let index =
            (0..self.providers.len()).find(|&index| name(index) == lost).context("a strange machine")?;
        let begun = Instant::now();
        self.providers[index].kill(self.folder.path()).await?;
        let loads = |(machine, phase, _): &(String, String, bool)| *machine != lost && phase != "told";
        self.until("placed again", |all| all.iter().filter(|instance| loads(instance)).count() >= replicas)
            .await?;
        let loading_ms = begun.elapsed().as_secs_f64() * 1e3;
        self.until("ready again", |all| {
            all.iter().filter(|(machine, _, serves)| *machine != lost && *serves).count() >= replicas
        })
        .await?;
        let ready_ms = begun.elapsed().as_secs_f64() * 1e3;
        self.providers[index] = self.provider(index)?;
        let _: Value = self.providers[index].ready(self.folder.path()).await?;
        Ok(Loss { loading_ms, ready_ms })
    }

    /// Kills the coordinator and starts it again at its address; milliseconds until it answers a request.
    async fn restart(&mut self) -> anyhow::Result<f64> {
        let begun = Instant::now();
        self.coordinator.kill(self.folder.path()).await?;
        let listen = self.url.trim_start_matches("http://").to_owned();
        self.coordinator = Process::start(self.folder.path(), "coordinator", |command| {
            command.args(["coordinator", "--listen", &listen]);
        })?;
        let turn = json!({"model": "phalanx-bundled", "max_tokens": 1,
            "messages": [{"role": "user", "content": "Hello"}]});
        while self.post("/v1/chat/completions", &turn).await.is_err() {
            ensure!(begun.elapsed() < STEP_MAX, "it does not serve again\n{}", self.logs());
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(begun.elapsed().as_secs_f64() * 1e3)
    }
}
