//! `phalanx up`: a whole fleet on this machine: a coordinator in this process, managed providers in processes of their own,
//! and a deployment for each model.

mod children;
mod declare;
mod division;

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use wire::admin::FleetStatus;

use self::children::{Children, Plan};
use self::declare::Declared;
use self::division::Division;
use crate::client::Client;
use crate::coordinator::{Ground, StoreOptions, announce, url_of, warn_beyond_loopback};
use crate::otlp::OtlpOption;
use crate::place::DataOption;
use crate::ready::ReadyOption;
use crate::serving::{self, EngineOptions, ServedModel};
use crate::settings::SettingsOptions;
use crate::shutdown;
use crate::terminal::{say, say_json};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Where to listen. Port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:8420", env = "PHALANX_LISTEN")]
    listen: SocketAddr,
    /// How many providers to start.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    providers: u32,
    /// Divide each model over so many of the providers, which then compute it together: as many instances as they make; who
    /// is left takes the place of one that is lost [default: two; all of them where --mode asks for a group].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=64))]
    ranks: Option<u32>,
    /// How to divide: `tensor` (slices of every layer), `pipeline` (whole layers), stages x ranks as in `2x2`, `auto`, or
    /// `single` (not at all: every provider computes it alone) [default: auto].
    #[arg(long)]
    mode: Option<String>,
    /// Serve this model, as NAME=PATH or `bundled` [default: bundled]. May be repeated.
    #[arg(long = "model", value_name = "MODEL", value_parser = serving::parse_served_model)]
    models: Vec<ServedModel>,
    #[command(flatten)]
    engine: EngineOptions,
    #[command(flatten)]
    data: DataOption,
    #[command(flatten)]
    ready: ReadyOption,
    #[command(flatten)]
    settings: SettingsOptions,
    #[command(flatten)]
    store: StoreOptions,
    #[command(flatten)]
    otlp: OtlpOption,
    /// Print JSON when ready.
    #[arg(long)]
    json: bool,
}

/// What a script wants to know of a fleet.
#[derive(Serialize)]
struct Ready<'a> {
    url: &'a str,
    key: &'a str,
    join_token: &'a str,
    pid: u32,
    models: Vec<String>,
}

/// How long the models may take to load before `up` says that something is wrong.
const READY_MAX: Duration = Duration::from_secs(600);

pub(crate) async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let config: coordinator::Config = options.settings.read()?;
    let division = Division::of(options.mode.as_deref(), options.ranks, options.providers)?;
    let mut declared =
        Declared::of(&models(&options), division.as_ref(), options.providers, &options.engine)?;
    let ending = shutdown::on_signals()?;
    let folder = options.data.make()?;
    let listener = serving::listen(options.listen).await?;
    let url = url_of(listener.local_addr()?);
    let ground = Ground::open(&folder, &url, options.store).await?;
    declared.replace_last(&folder, &*ground.store).await?;
    let _announced = announce(listener.local_addr()?, &ground.join_token);

    let closing = CancellationToken::new();
    let (spans, exporter) = options.otlp.start("phalanx-coordinator")?;
    let store = Arc::clone(&ground.store) as _;
    let serve = coordinator::run_traced(config, listener, store, closing.clone().cancelled_owned(), spans);
    let serving = tokio::spawn(serve);
    let mut children = Children::start(plan(&options, &folder, &url, &ground)?)?;

    let outcome = tokio::select! {
        outcome = attend((&options, declared), &url, &ground, &mut children) => outcome,
        () = ending.cancelled() => Ok(()),
    };
    if !options.json {
        eprintln!("\nending: running requests are finished first (Ctrl-C again ends at once)");
    }
    // Requests are finished while the providers that compute them still run.
    closing.cancel();
    let served = serving.await.context("the coordinator's task")?;
    children.stop().await;
    exporter.finish().await;
    outcome?;
    served?;
    Ok(ExitCode::SUCCESS)
}

/// Waits until the fleet serves, says so, and then keeps its providers running for good.
async fn attend(
    (options, declared): (&Options, Declared),
    url: &str,
    ground: &Ground,
    children: &mut Children,
) -> anyhow::Result<()> {
    let client = Client::new(url, &ground.key);
    let spinner = indicatif::ProgressBar::new_spinner().with_message("loading the model");
    spinner.enable_steady_tick(Duration::from_millis(100));
    let status = tokio::select! {
        status = declared.carry_out(&client, Instant::now() + READY_MAX) => status?,
        error = children.keep() => return Err(error),
    };
    spinner.finish_and_clear();
    let models = status.models.iter().map(|pool| pool.model.to_string()).collect();
    let ready =
        Ready { url, key: &ground.key, join_token: &ground.join_token, pid: std::process::id(), models };
    if options.json {
        say_json(&ready)?;
    } else {
        banner(options, &ready, &status)?;
    }
    options.ready.write(&ready)?;
    Err(children.keep().await)
}

fn models(options: &Options) -> Vec<ServedModel> {
    if options.models.is_empty() { vec![ServedModel::bundled()] } else { options.models.clone() }
}

fn plan(options: &Options, folder: &Path, url: &str, ground: &Ground) -> anyhow::Result<Plan> {
    // What they hold is the coordinator's word; what the machine can do is measured once for all of them.
    let mut arguments = vec!["--managed".to_owned()];
    for model in models(options) {
        arguments.extend(["--model".to_owned(), model.argument().to_owned()]);
    }
    let mut engine = options.engine.clone();
    if engine.threads.is_none() {
        // The cores are shared out, so that providers do not wait for each other's threads.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        engine.threads = u32::try_from(cores).ok().map(|cores| (cores / options.providers).max(1));
    }
    arguments.extend(engine.arguments());
    if let Some(url) = &options.otlp.url {
        arguments.extend(["--otlp".to_owned(), url.clone()]);
    }
    Ok(Plan {
        program: std::env::current_exe().context("finding this program's own file")?,
        count: options.providers,
        join: url.to_owned(),
        token: ground.join_token.clone(),
        folder: folder.to_owned(),
        arguments,
    })
}

fn banner(options: &Options, ready: &Ready<'_>, status: &FleetStatus) -> anyhow::Result<()> {
    let model = status.models.first().map(|pool| pool.model.to_string()).unwrap_or_default();
    let speeds = status.machines.iter().flat_map(|m| &m.instances).map(|i| i.decode_tokens_per_s);
    say(format!("Phalanx {} is up.\n", env!("CARGO_PKG_VERSION")))?;
    say(format!("  URL       {}/v1", ready.url))?;
    say(format!("  key       {}", ready.key))?;
    for pool in &status.models {
        let plural = if pool.eligible.0 == 1 { "" } else { "s" };
        say(format!(
            "  model     {} ({} instance{plural}, context {} tokens, about {:.0} tokens/s each)",
            pool.model,
            pool.eligible.0,
            pool.context,
            speeds.clone().fold(f32::INFINITY, f32::min)
        ))?;
    }
    for group in &status.groups {
        let ranks: Vec<&str> = group.ranks.iter().map(|rank| rank.name.as_str()).collect();
        say(format!("  group     {} over {} (sealed links)", group.model, ranks.join(", ")))?;
    }
    say("\nTry it:\n")?;
    say(format!(
        "  curl -sN {}/v1/chat/completions -H 'Authorization: Bearer {}' -H 'Content-Type: application/json' \
         -d '{{\"model\":\"{model}\",\"stream\":true,\"messages\":[{{\"role\":\"user\",\"content\":\"Hello! Who are you?\"}}]}}'",
        ready.url, ready.key
    ))?;
    say(
        "\nor talk to it in another terminal: phalanx chat (from the source tree: cargo run --release -- chat)",
    )?;
    say(format!(
        "Another machine joins with: phalanx provider --join {} --token {}",
        ready.url, ready.join_token
    ))?;
    say("\nCtrl-C ends everything.")?;
    warn_beyond_loopback(options.listen.ip());
    Ok(())
}
