//! `phalanx deploy`: what should run on managed machines, and how it is.

mod file;
mod show;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use fleet::deployment::{Demanded, Machines, Replicas, Spec, Transport, WhenLost};
use fleet::plan::file::PlanOutput;
use serde_json::Value;
use wire::admin::deployment::{
    Accepted, DeploymentHistory, DeploymentList, DeploymentStatus, PlannerStatus, Preview, Scale, SetPlanner,
};

use crate::client::{Client, ClientOptions};
use crate::terminal::{say, say_json};
use crate::why::escaped;

/// How often `--watch` and `--wait` look.
const LOOK_EVERY: Duration = Duration::from_millis(500);

#[derive(clap::Subcommand)]
pub(crate) enum Verb {
    /// Say that deployments should run, from a file or from flags; saying the same again changes nothing.
    Apply(ApplyOptions),
    /// Say how many instances of a deployment should run.
    Scale(ScaleOptions),
    /// Say that a deployment should not run any more.
    Delete(NameOptions),
    /// Say where a deployment would run, how fast, and why nowhere else; nothing is changed.
    Preview(PreviewOptions),
    /// Show deployments, their conditions and instances.
    Status(StatusOptions),
    /// Show what happened to a deployment, deleted ones included.
    History(NameOptions),
    /// Show or set whether plans are followed.
    Mode(ModeOptions),
}

const APPLY_FILES: &str = "\
A FILE has one deployment, several apart by lines of ---, or a list under `deployments`:

  name: chat
  model: qwen3-8b            # as machines have it on their disks
  replicas: 2                # or {floor: 1, ceiling: 4, priority: 10}
  shape: auto                # single, tensor 2, pipeline 3, tensor 2 x pipeline 3
  machines: any              # {selector: {zone: a}}, [studio, laptop]
  when_lost: wait            # or replace: what to do when a pinned machine is lost
  transport: auto            # tcp, rdma
  context: 8192
  max_batch: 4
  exclusive: true            # its machines hold no other model";

#[derive(clap::Args)]
#[command(after_long_help = APPLY_FILES)]
pub(crate) struct ApplyOptions {
    #[command(flatten)]
    client: ClientOptions,
    /// A file with deployments, YAML or JSON; - reads them from standard input.
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["name", "model"])]
    file: Option<PathBuf>,
    #[command(flatten)]
    spec: SpecOptions,
    /// Wait until all are ready, for so many seconds at most.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "300")]
    wait: Option<u64>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A spec in flags.
#[derive(clap::Args)]
struct SpecOptions {
    /// What it is called.
    #[arg(long)]
    name: Option<String>,
    /// Which model, as machines have it on their disks.
    #[arg(long)]
    model: Option<String>,
    /// How many instances.
    #[arg(long, conflicts_with_all = ["floor", "ceiling"])]
    replicas: Option<u32>,
    /// At least so many instances; more as demand wants.
    #[arg(long, requires = "ceiling")]
    floor: Option<u32>,
    /// At most so many instances.
    #[arg(long)]
    ceiling: Option<u32>,
    /// Whose demand is met first: the larger number's.
    #[arg(long, requires = "ceiling", default_value_t = 0, allow_negative_numbers = true)]
    priority: i32,
    /// auto, single, "tensor N", "pipeline N" or "tensor N x pipeline N".
    #[arg(long)]
    shape: Option<String>,
    /// On these machines, by name; say it once for each.
    #[arg(long, value_name = "MACHINE")]
    pin: Vec<String>,
    /// On machines with this label; say it once for each.
    #[arg(long, value_name = "KEY=VALUE", conflicts_with = "pin")]
    label: Vec<String>,
    /// When a pinned machine is lost: wait or replace.
    #[arg(long)]
    when_lost: Option<String>,
    /// auto, tcp or rdma.
    #[arg(long)]
    transport: Option<String>,
    /// Tokens of a context, prompt and answer together.
    #[arg(long)]
    context: Option<u32>,
    /// Requests that an instance computes together.
    #[arg(long)]
    max_batch: Option<u32>,
    /// Its machines may hold other models, too.
    #[arg(long)]
    may_share: bool,
}

#[derive(clap::Args)]
pub(crate) struct ScaleOptions {
    /// Which deployment.
    name: String,
    /// How many instances.
    replicas: u32,
    #[command(flatten)]
    client: ClientOptions,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(crate) struct NameOptions {
    /// Which deployment.
    name: String,
    #[command(flatten)]
    client: ClientOptions,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(crate) struct PreviewOptions {
    #[command(flatten)]
    client: ClientOptions,
    /// A file with one deployment, YAML or JSON; - reads it from standard input.
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["name", "model"])]
    file: Option<PathBuf>,
    #[command(flatten)]
    spec: SpecOptions,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(crate) struct StatusOptions {
    /// Which deployment; all where absent.
    name: Option<String>,
    #[command(flatten)]
    client: ClientOptions,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Print it again whenever it changes, until interrupted.
    #[arg(long)]
    watch: bool,
}

#[derive(clap::Args)]
pub(crate) struct ModeOptions {
    /// enforce: plans are followed; shadow: they are made and told; off: none are made [default: show it].
    mode: Option<String>,
    #[command(flatten)]
    client: ClientOptions,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(verb: Verb) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Apply(options) => apply(options).await,
        Verb::Scale(options) => {
            let path = format!("{}/scale", path(&options.name));
            let body = Scale { replicas: Value::from(options.replicas) };
            let accepted: Accepted = options.client.client()?.post(&path, &body).await?;
            accepted_say(&accepted, options.json)
        }
        Verb::Delete(options) => {
            let accepted: Accepted = options.client.client()?.delete(&path(&options.name)).await?;
            accepted_say(&accepted, options.json)
        }
        Verb::Preview(options) => preview(options).await,
        Verb::Status(options) => status(options).await,
        Verb::History(options) => {
            let path = format!("{}/history", path(&options.name));
            let history: DeploymentHistory = options.client.client()?.get(&path).await?;
            if options.json {
                say_json(&history)?
            } else {
                show::history(&history)?
            }
            Ok(ExitCode::SUCCESS)
        }
        Verb::Mode(options) => mode(options).await,
    }
}

fn path(name: &str) -> String {
    format!("/api/deployments/{}", escaped(name))
}

fn accepted_say(accepted: &Accepted, json: bool) -> anyhow::Result<ExitCode> {
    if json {
        say_json(accepted)?
    } else {
        show::accepted(accepted)?
    }
    Ok(ExitCode::SUCCESS)
}

async fn apply(options: ApplyOptions) -> anyhow::Result<ExitCode> {
    // All are looked at before any is applied.
    let specs = match &options.file {
        Some(file) => file::read(file)?,
        None => vec![options.spec.spec()?],
    };
    let client = options.client.client()?;
    let mut all = Vec::new();
    for spec in &specs {
        let accepted: Accepted = client
            .put(&path(&spec.name), spec)
            .await
            .with_context(|| format!("deployment {:?}", spec.name))?;
        if !options.json {
            show::accepted(&accepted)?;
        }
        all.push(accepted);
    }
    if options.json {
        say_json(&all)?;
    }
    match options.wait {
        None => Ok(ExitCode::SUCCESS),
        Some(seconds) => wait(&client, &all, Duration::from_secs(seconds)).await,
    }
}

/// Waits until every one is ready at its generation.
async fn wait(client: &Client, all: &[Accepted], most: Duration) -> anyhow::Result<ExitCode> {
    let deadline = Instant::now() + most;
    for accepted in all {
        loop {
            let status: DeploymentStatus = client.get(&path(&accepted.name)).await?;
            let ready = status.condition("Ready");
            if ready.is_some_and(|r| r.status == "True" && r.observed_generation >= accepted.generation) {
                break;
            }
            if Instant::now() >= deadline {
                show::one(&status)?;
                bail!("{:?} is not ready after {} s", accepted.name, most.as_secs());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn preview(options: PreviewOptions) -> anyhow::Result<ExitCode> {
    let spec = match (&options.file, &options.spec.name, &options.spec.model) {
        (None, None, None) => None,
        (Some(file), ..) => match <[Spec; 1]>::try_from(file::read(file)?) {
            Ok([spec]) => Some(spec),
            Err(more) => bail!("{} deployments; a preview is of one", more.len()),
        },
        _ => Some(options.spec.spec()?),
    };
    let spec = spec.map(serde_json::to_value).transpose()?;
    let client = options.client.client()?;
    if options.json {
        let said: Value = client.post("/api/preview", &Preview { spec }).await?;
        say_json(&said)?;
    } else {
        let said: PlanOutput = client.post("/api/preview", &Preview { spec }).await?;
        crate::plan::say_plan(&said)?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn status(options: StatusOptions) -> anyhow::Result<ExitCode> {
    let client = options.client.client()?;
    let mut last = None;
    loop {
        let list = match &options.name {
            None => client.get::<DeploymentList>("/api/deployments").await?,
            Some(name) => {
                let one: DeploymentStatus = client.get(&path(name)).await?;
                DeploymentList { mode: "enforce".to_owned(), deployments: vec![one] }
            }
        };
        if last.as_ref() != Some(&list) {
            match (options.json, &options.name) {
                (true, None) => say_json(&list)?,
                (true, Some(_)) => say_json(&list.deployments[0])?,
                (false, None) => show::all(&list)?,
                (false, Some(_)) => show::one(&list.deployments[0])?,
            }
            last = Some(list);
        }
        if !options.watch {
            return Ok(ExitCode::SUCCESS);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn mode(options: ModeOptions) -> anyhow::Result<ExitCode> {
    let client = options.client.client()?;
    let planner: PlannerStatus = match options.mode {
        None => client.get("/api/planner").await?,
        Some(mode) => client.put("/api/planner", &SetPlanner { mode }).await?,
    };
    if options.json {
        say_json(&planner)?;
    } else {
        say(format!("plans: {}", planner.mode))?;
        for line in &planner.unfollowed {
            say(format!("  not done: {line}"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl SpecOptions {
    fn spec(&self) -> anyhow::Result<Spec> {
        let model = self.model.clone().context("say --model MODEL, or -f FILE with deployments")?;
        let name = self.name.clone().unwrap_or_else(|| model.clone());
        let mut spec = Spec::new(name, model);
        if let Some(replicas) = self.replicas {
            spec.replicas = Replicas::Fixed(replicas);
        }
        if let Some(ceiling) = self.ceiling {
            let floor = self.floor.unwrap_or(0);
            spec.replicas = Replicas::Demand(Demanded { floor, ceiling, priority: self.priority });
        }
        if let Some(shape) = &self.shape {
            spec.shape = shape.parse().map_err(anyhow::Error::msg).context("--shape")?;
        }
        if !self.pin.is_empty() {
            spec.machines = Machines::Pinned(self.pin.clone());
        }
        if !self.label.is_empty() {
            let labels = self.label.iter().map(|label| {
                let (key, value) = label
                    .split_once('=')
                    .with_context(|| format!("--label {label:?}: expected KEY=VALUE"))?;
                Ok((key.to_owned(), value.to_owned()))
            });
            spec.machines = Machines::Selector(labels.collect::<anyhow::Result<_>>()?);
        }
        spec.when_lost = match self.when_lost.as_deref() {
            None | Some("wait") => WhenLost::Wait,
            Some("replace") => WhenLost::Replace,
            Some(other) => bail!("--when-lost {other:?}: wait or replace"),
        };
        spec.transport = match self.transport.as_deref() {
            None | Some("auto") => Transport::Auto,
            Some("tcp") => Transport::Tcp,
            Some("rdma") => Transport::Rdma,
            Some(other) => bail!("--transport {other:?}: auto, tcp or rdma"),
        };
        spec.context = self.context;
        spec.max_batch = self.max_batch.unwrap_or(spec.max_batch);
        spec.exclusive = !self.may_share;
        spec.check()?;
        Ok(spec)
    }
}
