//! `phalanx provider`: offers this machine to a coordinator.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use provider::{Config, Event, ManagedConfig, ModelConfig, Pace, RunError, UpstreamConfig, UpstreamKey};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use wire::trace::Span;

use crate::lending::{self, Lending};
use crate::otlp::OtlpOption;
use crate::place::DataOption;
use crate::ready::ReadyOption;
use crate::serving::{self, EngineOptions, ServedModel};
use crate::terminal::{say, say_json};
use crate::{discovery, shutdown};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The coordinator's address, as `phalanx coordinator` printed it [default: the one in this network that announces
    /// itself and knows the token].
    #[arg(long, value_name = "URL", env = "PHALANX_JOIN")]
    join: Option<String>,
    /// The token that the coordinator printed.
    #[arg(long, env = "PHALANX_JOIN_TOKEN", hide_env_values = true)]
    token: String,
    /// What to call this machine [default: its host name].
    #[arg(long)]
    name: Option<String>,
    /// Serve this model, as NAME=PATH or `bundled` [default: bundled]. May be repeated.
    #[arg(long = "model", value_name = "MODEL", value_parser = serving::parse_served_model)]
    models: Vec<ServedModel>,
    /// Let another server compute, as openai=URL: vLLM, llama-server, Ollama, MLX or another Phalanx. Then --model is
    /// NAME or NAME=THE-SERVER'S-NAME, and --kit is needed. Otherwise the CPU computes: this build has no other backend
    /// (no Metal, no CUDA).
    #[arg(long = "engine", value_name = "openai=URL", value_parser = parse_upstream, requires = "kit", requires = "models")]
    upstream: Option<String>,
    /// The folder with the config.json, tokenizer and chat template of the model that another server computes.
    #[arg(long, value_name = "PATH", requires = "upstream")]
    kit: Option<std::path::PathBuf>,
    /// The key that the other server asks for.
    #[arg(
        long,
        value_name = "KEY",
        env = "PHALANX_ENGINE_KEY",
        hide_env_values = true,
        requires = "upstream"
    )]
    engine_key: Option<String>,
    /// Compute models only together with others: read weights only as a rank of a group, and of them only its part.
    #[arg(long, conflicts_with = "upstream")]
    only_in_groups: bool,
    /// Where other machines of a group dial this one, and try whether they reach it [default: every interface; the
    /// loopback where the coordinator is on this machine].
    #[arg(long, value_name = "ADDRESS,...", value_delimiter = ',')]
    group_listen: Vec<std::net::IpAddr>,
    #[command(flatten)]
    managed: ManagedOptions,
    /// Serve only in these hours of local time, as in 22:00-07:00 or "sat-sun 00:00-24:00": outside of them the machine
    /// leaves, as with `phalanx pause`. May be repeated.
    #[arg(long, value_name = "HOURS", value_parser = lending::parse_window)]
    serve_between: Vec<lending::Window>,
    /// Compute nothing, and give tokens at this pace, in milliseconds to the first and between two: for benches.
    #[arg(long, value_name = "FIRST,EACH", value_parser = parse_pace, conflicts_with = "upstream", hide = true)]
    stand_in: Option<Pace>,
    #[command(flatten)]
    engine: EngineOptions,
    /// Trust only the authorities in this PEM file for https [default: the system's].
    #[arg(long, value_name = "FILE")]
    ca_file: Option<std::path::PathBuf>,
    #[command(flatten)]
    otlp: OtlpOption,
    #[command(flatten)]
    data: DataOption,
    #[command(flatten)]
    ready: ReadyOption,
    /// Print only what needs attention.
    #[arg(long)]
    quiet: bool,
    /// Print JSON when joined and serving, and else only what needs attention.
    #[arg(long)]
    json: bool,
    /// End when this process, the parent, does.
    #[arg(long, hide = true)]
    with_parent: Option<u32>,
}

/// How a machine is whose coordinator decides what it holds.
#[derive(clap::Args)]
struct ManagedOptions {
    /// Let the coordinator decide what this machine holds: load nothing by itself, and take deployments. Models are those
    /// of --model, --models-dir, `phalanx models pull` and the Hugging Face cache.
    #[arg(long, conflicts_with_all = ["upstream", "stand_in", "only_in_groups"])]
    managed: bool,
    /// A folder with folders of models, or with GGUF files, to take deployments from. May be repeated.
    #[arg(long, value_name = "DIR", requires = "managed")]
    models_dir: Vec<std::path::PathBuf>,
    /// Memory that models may take together, as in 24GiB [default: what is free at the start].
    #[arg(long, value_name = "SIZE", value_parser = serving::parse_bytes, requires = "managed")]
    memory_limit: Option<base::Bytes>,
    /// What models that are fetched may take of the disk together, as in 200GiB: those that were least recently used are
    /// removed to make room, never one that a provider of this machine holds [default: what `phalanx models budget` set].
    #[arg(long, value_name = "SIZE", env = "PHALANX_MODELS_BUDGET", value_parser = serving::parse_bytes)]
    models_budget: Option<base::Bytes>,
    /// A folder in which providers of one machine share what that machine was measured to do.
    #[arg(long, value_name = "DIR", requires = "managed", hide = true)]
    measured_beside: Option<std::path::PathBuf>,
    /// Take no models from other machines' disks: hold only what is on this one's.
    #[arg(long, requires = "managed")]
    no_fetch: bool,
    /// Give other machines this one's models at this many bytes a second at most, all together, as in 50MiB [default: as
    /// fast as goes while nothing is served here, and a quarter of the time else].
    #[arg(long, value_name = "SIZE", value_parser = serving::parse_bytes, requires = "managed")]
    lend_rate: Option<base::Bytes>,
    /// What selectors of deployments may ask for, as in room=attic,gpu=none.
    #[arg(long, value_name = "KEY=VALUE,...", value_delimiter = ',', value_parser = parse_label, requires = "managed")]
    labels: Vec<(String, String)>,
}

impl ManagedOptions {
    /// Models are looked for in the folders that were named, where `phalanx models pull` puts them, and in the cache.
    fn config(self, engine: &EngineOptions, data: &std::path::Path) -> Option<ManagedConfig> {
        let variable = |name: &str| std::env::var_os(name).map(std::path::PathBuf::from);
        self.managed.then(|| ManagedConfig {
            folders: self
                .models_dir
                .into_iter()
                .chain([data.join("models")])
                .chain(provider::hugging_face_cache(variable))
                .collect(),
            memory_limit: self.memory_limit,
            labels: self.labels,
            engine: engine.config(),
            measured_beside: self.measured_beside,
            models_budget: self.models_budget,
            fetch_into: (!self.no_fetch).then(|| data.join("models")),
            lend_rate: self.lend_rate,
            ..ManagedConfig::default()
        })
    }
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is no label: KEY=VALUE")),
    }
}

/// What a script wants to know of a provider.
#[derive(Serialize)]
struct Ready {
    machine: String,
    pid: u32,
}

pub(crate) async fn run(options: Options) -> anyhow::Result<ExitCode> {
    if let Some(parent) = options.with_parent {
        shutdown::with_parent(parent)?;
    }
    let ending = shutdown::on_signals()?;
    let folder = options.data.make()?;
    let managed = options.managed.config(&options.engine, &folder);
    let teller = Teller {
        quiet: options.quiet || options.json,
        json: options.json,
        ready: options.ready,
        machine: None,
        joined: false,
        served: false,
    };
    let join = match options.join {
        Some(join) => join,
        None => {
            teller.print("Looking for a coordinator in this network ...".to_owned());
            match discovery::find(&options.token, &ending, |line| eprintln!("{line}")).await? {
                Some(join) => join,
                None => return Ok(ExitCode::SUCCESS),
            }
        }
    };
    let lending = Lending::new(options.serve_between, &folder);
    let mut config = Config::new(join, options.token, folder);
    config.name = options.name;
    config.ca_file = options.ca_file;
    config.managed = managed;
    config.group_listen = options.group_listen;
    let models = if options.models.is_empty() { vec![ServedModel::bundled()] } else { options.models };
    for model in models {
        let mut served = ModelConfig::new(model.name, model.source);
        served.engine = options.engine.config();
        served.stand_in = options.stand_in;
        served.only_in_groups = options.only_in_groups;
        if let (Some(url), Some(kit)) = (&options.upstream, &options.kit) {
            served.upstream = Some(UpstreamConfig {
                url: url.clone(),
                model: served.source.to_string(),
                kit: kit.clone(),
                key: options.engine_key.clone().map(UpstreamKey::new),
            });
        }
        config.models.push(served);
    }
    let (spans, exporter) = options.otlp.start("phalanx-provider")?;
    let ended = lend(config, &lending, &ending, (teller, spans)).await;
    exporter.finish().await;
    ended?;
    Ok(ExitCode::SUCCESS)
}

/// Serves whenever its owner lends this machine, until the program ends.
async fn lend(
    config: Config,
    lending: &Lending,
    ending: &CancellationToken,
    (teller, spans): (Teller, Option<mpsc::Sender<Span>>),
) -> Result<(), RunError> {
    let teller = Arc::new(Mutex::new(teller));
    loop {
        let told = Arc::clone(&teller);
        let waits = |why: &str| told.lock().print(format!("This machine does not serve: it is {why}."));
        tokio::select! {
            biased;
            () = ending.cancelled() => return Ok(()),
            () = lending.begins(waits) => {}
        }
        let shutdown = async {
            tokio::select! {
                () = ending.cancelled() => "left by its owner".to_owned(),
                why = lending.ends() => why,
            }
        };
        let told = Arc::clone(&teller);
        let tell = move |event| told.lock().tell(&event);
        provider::run_traced(config.clone(), shutdown, tell, spans.clone()).await?;
    }
}

fn parse_pace(text: &str) -> Result<Pace, String> {
    let wrong = || format!("{text:?} is no pace: two numbers of milliseconds, as in 20,5");
    let (first, each) = text.split_once(',').ok_or_else(wrong)?;
    let span = |text: &str| {
        let ms = text.trim().parse::<f64>().ok().filter(|ms| (0.0..=60_000.0).contains(ms));
        ms.map(|ms| Duration::from_secs_f64(ms / 1e3)).ok_or_else(wrong)
    };
    Ok(Pace { first: span(first)?, each: span(each)? })
}

fn parse_upstream(text: &str) -> Result<String, String> {
    let url = text.strip_prefix("openai=").ok_or("expected openai=URL")?;
    if url.starts_with("http://") || url.starts_with("https://") {
        Ok(url.to_owned())
    } else {
        Err(format!("{url:?} is no address: http://HOST:PORT or https://HOST"))
    }
}

/// Prints what happens, and writes the ready file once something is served, or held for groups.
struct Teller {
    quiet: bool,
    json: bool,
    ready: ReadyOption,
    machine: Option<String>,
    joined: bool,
    served: bool,
}

impl Teller {
    fn tell(&mut self, event: &Event) {
        match event {
            Event::Identified { machine, name, .. } => {
                self.machine = Some(machine.to_string());
                self.print(format!("This machine is {name} ({machine})."));
            }
            Event::Loading { model } => self.print(format!("{model}: loading")),
            Event::Ready { model, took, slots, kv_tokens } => {
                self.served = true;
                self.print(format!(
                    "{model}: ready after {:.1} s, {slots} requests together, {kv_tokens} tokens of KV cache",
                    took.as_secs_f64()
                ));
            }
            Event::Connecting { url } => self.print(format!("Connecting to {url}")),
            Event::Joined { url } => {
                self.joined = true;
                self.print(format!("Joined {url}."));
            }
            Event::Standing { lines } => {
                lines.iter().for_each(|line| self.print(format!("Coordinator: {line}")))
            }
            Event::Draining { in_flight } => {
                self.print(format!("Ending: {in_flight} requests are finished first."))
            }
            // All that it can do alone is done: its groups say for themselves when they stand.
            Event::InGroups { model, detail } => {
                self.served = true;
                self.print(format!("{model}: {detail}"));
            }
            Event::Shelved { models } => {
                // What it could hold is what a managed machine is there for.
                self.served = true;
                self.print(format!("Models on this machine's disk: {models}."));
            }
            Event::FetchEnded { model } => {
                self.print(format!("{model}: not taken from other machines any more"));
            }
            Event::Fetched { model } => self.print(format!("{model}: taken from other machines")),
            Event::Broken { name, why } => eprintln!("{name} cannot be held: {why}"),
            Event::Declined { detail } => eprintln!("refused to the coordinator: {detail}"),
            Event::Unloaded { resident: Some((before, after)) } => {
                self.print(format!("Memory was given back: {before} held before, {after} after."));
            }
            Event::Failed { model, detail } => eprintln!("{model} cannot be served: {detail}"),
            Event::Notice { model, text } => eprintln!("{model}: {text}"),
            // Where it ends, the error at the end says the same.
            Event::Refused { reason, remedy, ends: false, .. } => {
                eprintln!("refused by the coordinator: {reason}. {remedy}")
            }
            // Under `up` this happens when the coordinator, and then everything, ends.
            Event::Reconnecting { detail, pause } if !self.quiet => {
                eprintln!("no connection ({detail}); trying again in {:.1} s", pause.as_secs_f64());
            }
            _ => {}
        }
        if self.joined
            && self.served
            && let Some(machine) = self.machine.take()
        {
            let ready = Ready { machine, pid: std::process::id() };
            let said = if self.json { say_json(&ready) } else { Ok(()) };
            // A closed standard output must not end a provider.
            if let Err(error) = said.and_then(|()| self.ready.write(&ready)) {
                eprintln!("{error:#}");
            }
        }
    }

    fn print(&self, line: String) {
        // A closed standard output must not end a provider.
        if !self.quiet && say(line).is_err() {}
    }
}
