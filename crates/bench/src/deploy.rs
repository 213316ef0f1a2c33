//! `bench deploy`: what a preview says of a deployment, held against where it is then placed and how fast it then is: the
//! bundled model and a larger one, alone, and over two machines that stand on this host.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, ensure};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::machine::Machine;
use crate::managed::{LOOK_EVERY, Managed, STEP_MAX};
use crate::scenarios::answer::{Question, ask};
use crate::spread::median;
use crate::tell::{tell, unless_interrupted};

/// The deployment's name.
const NAME: &str = "previewed";
const BUNDLED: &str = "phalanx-bundled";
const LARGE: &str = "large";
/// How far a prediction may be off, of what is measured.
const OFF_MAX: f64 = 0.25;
const SHAPES: [(&str, &str); 5] = [
    (BUNDLED, "single"),
    (BUNDLED, "tensor 2"),
    (LARGE, "single"),
    (LARGE, "tensor 2"),
    (LARGE, "pipeline 2"),
];

/// What to run and how to tell it.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Measured requests of each case; the middle one counts.
    #[arg(long, default_value_t = 5)]
    pub runs: usize,
    /// Tokens that each generates.
    #[arg(long, default_value_t = 128)]
    pub tokens: u32,
    /// How the larger model's weights are stored, as `models synth --quantisation` takes it.
    #[arg(long, default_value = "q8_0")]
    pub quantisation: String,
    /// A small second model and one run, without an assertion on speed: whether it works at all.
    #[arg(long)]
    pub quick: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// One model in one shape.
#[derive(Debug, Serialize)]
struct Case {
    model: &'static str,
    shape: &'static str,
    /// By rank: machine and layers, as the preview said.
    previewed: Vec<(String, [u64; 2])>,
    /// As it was placed.
    placed: Vec<(String, [u64; 2])>,
    predicted_tokens_per_s: f64,
    measured_tokens_per_s: f64,
    /// Of the measured.
    off: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    cases: Vec<Case>,
    pass: bool,
}

/// Runs it and prints the report; whether everything was placed as the preview said and, at full size, no prediction was off
/// by more than a quarter.
///
/// # Errors
/// Processes that do not start, or a step that takes longer than two minutes.
pub async fn run(mut options: Options) -> anyhow::Result<bool> {
    if options.quick {
        (options.runs, options.tokens) = (1, options.tokens.min(16));
    }
    ensure!(options.runs > 0, "--runs must be at least 1");
    ensure!((2..=512).contains(&options.tokens), "--tokens must be 2 to 512");
    let report = unless_interrupted(measure(&options)).await?;
    tell(options.json, &report, table)?;
    Ok(report.pass)
}

async fn measure(options: &Options) -> anyhow::Result<Report> {
    let models = tempfile::Builder::new().prefix("phalanx-deploy-").tempdir()?;
    write_large(options, &models.path().join(LARGE)).await?;
    let folder = models.path().to_str().context("a folder whose name is no text")?;
    let arguments = ["--model", "bundled", "--models-dir", folder, "--measured-beside", folder];
    let fleet = Managed::start(2, &arguments).await?;
    let mut cases = Vec::new();
    for (model, shape) in SHAPES {
        eprintln!("{model}, {shape} ...");
        cases.push(fleet.case(options, (model, shape)).await?);
    }
    fleet.end().await;
    let as_said = |case: &Case| case.placed == case.previewed;
    let near = |case: &Case| case.off.abs() <= OFF_MAX;
    let pass = cases.iter().all(as_said) && (options.quick || cases.iter().all(near));
    Ok(Report { machine: Machine::here(), cases, pass })
}

/// Random weights: some 200 million, more than caches hold.
async fn write_large(options: &Options, folder: &Path) -> anyhow::Result<()> {
    let sizes: &[&str] = if options.quick {
        &["--hidden", "256", "--layers", "4", "--vocabulary", "1024"]
    } else {
        &[
            "--hidden",
            "1024",
            "--layers",
            "12",
            "--heads",
            "16",
            "--kv-heads",
            "8",
            "--feed-forward",
            "4096",
            "--vocabulary",
            "16000",
        ]
    };
    let program = std::env::current_exe().context("finding this program")?;
    let mut command = Command::new(program);
    command.args(["models", "synth", "--quantisation", &options.quantisation]).args(sizes);
    let made = command.arg("--out").arg(folder).output().await.context("making the larger model")?;
    ensure!(made.status.success(), "making the larger model: {}", String::from_utf8_lossy(&made.stderr));
    Ok(())
}

impl Managed {
    async fn case(
        &self,
        options: &Options,
        (model, shape): (&'static str, &'static str),
    ) -> anyhow::Result<Case> {
        let spec = json!({"name": NAME, "model": model, "shape": shape, "context": 1024});
        let preview = self.previewed(&spec).await?;
        let predicted_tokens_per_s =
            preview["predicted"]["decode_tokens_per_s"].as_f64().context("no prediction")?;
        self.post("/api/deployments", &spec).await?;
        let instance = self.serving().await?;
        let measured_tokens_per_s = self.decodes(options, model).await?;
        let url = format!("{}/api/deployments/{NAME}", self.url);
        self.client.delete(url).bearer_auth(&self.key).send().await?.error_for_status()?;
        Ok(Case {
            model,
            shape,
            previewed: ranks(&preview["ranks"], "machine")?,
            placed: ranks(&instance["ranks"], "name")?,
            predicted_tokens_per_s,
            measured_tokens_per_s,
            off: predicted_tokens_per_s / measured_tokens_per_s.max(f64::MIN_POSITIVE) - 1.0,
        })
    }

    /// Where it would be, once machines and links are known.
    async fn previewed(&self, spec: &Value) -> anyhow::Result<Value> {
        let deadline = Instant::now() + STEP_MAX;
        loop {
            let said = self.post("/api/preview", &json!({ "spec": spec })).await?;
            if let Some(placement) = said["placements"].as_array().and_then(|all| all.first()) {
                return Ok(placement.clone());
            }
            ensure!(Instant::now() < deadline, "it has no place: {said:#}\n{}", self.logs());
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn serving(&self) -> anyhow::Result<Value> {
        let deadline = Instant::now() + STEP_MAX;
        loop {
            let now = self.get(&format!("/api/deployments/{NAME}")).await?;
            let mut all = now["instances"].as_array().into_iter().flatten();
            if let Some(instance) = all.find(|instance| instance["serves"] == true) {
                return Ok(instance.clone());
            }
            ensure!(Instant::now() < deadline, "it is not ready: {now:#}\n{}", self.logs());
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Tokens a second of one stream alone, by how much longer a long answer takes than a short one, so that what is before
    /// the first token, and what holds that one up while the model goes on, is no part of it: the middle of some.
    async fn decodes(&self, options: &Options, model: &str) -> anyhow::Result<f64> {
        let few = (options.tokens / 4).max(1);
        let mut rates = Vec::new();
        // The first warms up.
        for number in 0..=options.runs {
            let short = self.answer_s(model, number, few).await?;
            let long = self.answer_s(model, number, options.tokens).await?;
            if number > 0 {
                rates.push(f64::from(options.tokens - few) / (long - short).max(1e-9));
            }
        }
        Ok(median(&rates))
    }

    /// What an answer of so many tokens takes, in seconds.
    async fn answer_s(&self, model: &str, number: usize, max_tokens: u32) -> anyhow::Result<f64> {
        let question = Question {
            url: self.url.clone(),
            key: self.key.clone(),
            model: model.to_owned(),
            prompt: format!("{number}: tell me more"),
            max_tokens,
            stream: true,
            exact: true,
        };
        let answer = ask(&self.client, &question).await;
        let answer = answer.map_err(|failure| anyhow::anyhow!("{}: {}", failure.code, failure.detail))?;
        Ok(answer.total_s)
    }
}

fn ranks(ranks: &Value, machine: &str) -> anyhow::Result<Vec<(String, [u64; 2])>> {
    let rank = |rank: &Value| {
        let name = rank[machine].as_str()?.to_owned();
        Some((name, [rank["layers"][0].as_u64()?, rank["layers"][1].as_u64()?]))
    };
    let all = ranks.as_array().context("no ranks")?;
    all.iter().map(|of| rank(of).context("a rank without a machine")).collect()
}

fn table(report: &Report) -> String {
    let mut text = format!(
        "{}\n\nmodel            shape       placed as previewed  predicted tokens/s  measured     off\n",
        report.machine.line()
    );
    for case in &report.cases {
        text += &format!(
            "{:<16} {:<11} {:<19} {:>19.1} {:>9.1} {:>6.0} %\n",
            case.model,
            case.shape,
            if case.placed == case.previewed { "yes" } else { "NO" },
            case.predicted_tokens_per_s,
            case.measured_tokens_per_s,
            case.off * 100.0
        );
    }
    text + if report.pass { "PASS" } else { "FAIL" }
}
