//! `phalanx models pull`: fetches a model from a hub; what was fetched before is gone on with, and nothing is believed that
//! does not verify.

mod choose;
mod fetch;
mod hub;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use base::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use indicatif::{ProgressBar, ProgressStyle};
use provider::Place;
use provider::stock::Wanted;
use serde::Serialize;

use super::place::{PlaceOption, RemovedModel};
use crate::serving;
use crate::terminal::{say, say_json};
use fetch::Fetch;
use hub::Hub;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The model, as ORGANISATION/NAME; @REVISION picks a branch, a tag or a commit.
    name: String,
    /// The hub.
    #[arg(long, value_name = "URL", env = "HF_ENDPOINT", default_value = "https://huggingface.co")]
    endpoint: String,
    /// Of a repository with several GGUF files, this one: its name, or a part of it as in Q4_K_M.
    #[arg(long, value_name = "NAME")]
    file: Option<String>,
    /// For models that need one: a token of the hub.
    #[arg(long, env = "HF_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Files fetched at once.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=16))]
    parallel: u32,
    /// Give up once the hub has said nothing new for so many seconds in spite of new tries.
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    patience: u64,
    #[command(flatten)]
    place: PlaceOption,
    /// What all models that were fetched may take of the disk together, as in 200GiB: those that were least recently used
    /// are removed to make room, never one that a provider holds [default: what `phalanx models budget` set; nothing is
    /// removed where nothing was].
    #[arg(long, value_name = "SIZE", env = "PHALANX_MODELS_BUDGET", value_parser = serving::parse_bytes)]
    models_budget: Option<Bytes>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What was fetched.
#[derive(Serialize)]
struct Pulled {
    model: String,
    revision: String,
    path: PathBuf,
    files: usize,
    bytes: u64,
    /// Of these, came over the network now.
    fetched_bytes: u64,
    /// What went to make room.
    removed: Vec<RemovedModel>,
    seconds: f64,
}

pub(crate) async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let (name, revision) = options.name.split_once('@').unwrap_or((&options.name, "main"));
    let hub = Hub::new(&options.endpoint, options.token.as_deref(), Duration::from_secs(options.patience))?;
    let stock = options.place.stock()?;
    let listing = hub.listing(name, revision).await?;
    let files = choose::choose(name, &listing.files, options.file.as_deref())?;
    let bytes: u64 = files.iter().map(|file| file.size).sum();
    let shelf = Place::open(&stock, name)?;
    let pulled = |path: PathBuf, fetched_bytes, removed| Pulled {
        model: name.to_owned(),
        revision: listing.revision.clone(),
        path,
        files: files.len(),
        bytes,
        fetched_bytes,
        removed,
        seconds: started.elapsed().as_secs_f64(),
    };
    if let Some(path) = shelf.is_there(&listing.revision, &files) {
        return tell(&options, &pulled(path, 0, Vec::new()), "is here already");
    }
    let here = shelf.begin(&listing.revision, &files)?;
    let wanted = Wanted { name, whole: Bytes(bytes), to_write: Bytes(bytes.saturating_sub(here)) };
    let removed = stock.make_room(wanted, options.models_budget).inspect_err(|_| shelf.leave(here))?;
    let removed: Vec<RemovedModel> = removed.into_iter().map(RemovedModel::from).collect();
    if !options.json {
        for model in &removed {
            say(format!("Removed to make room: {}", model.text()))?;
        }
    }
    let bar = progress(bytes, options.json);
    let fetched = fetch_all(&hub, &shelf, &options, (name, &listing.revision), &files, &bar).await;
    bar.finish_and_clear();
    let fetched = fetched.with_context(|| {
        format!(
            "{name} was not fetched whole; what came is kept in {}, and the same command goes on",
            stock.folder().display()
        )
    })?;
    let path = shelf.finish()?;
    tell(&options, &pulled(path, fetched, removed), "was fetched")
}

async fn fetch_all(
    hub: &Hub,
    shelf: &Place,
    options: &Options,
    (name, revision): (&str, &str),
    files: &[hub::File],
    bar: &ProgressBar,
) -> anyhow::Result<u64> {
    let hub = Arc::new(hub.clone());
    let fetches = files.iter().map(|file| {
        let fetch = Fetch {
            hub: Arc::clone(&hub),
            url: hub.url_of(name, revision, &file.path),
            file: file.clone(),
            place: shelf.place_of(&file.path),
            bar: bar.clone(),
        };
        async move { fetch.run().await }
    });
    futures_util::stream::iter(fetches)
        .buffer_unordered(options.parallel as usize)
        .try_fold(0, |all, fetched| async move { Ok(all + fetched) })
        .await
}

fn progress(bytes: u64, json: bool) -> ProgressBar {
    let bar = if json { ProgressBar::hidden() } else { ProgressBar::new(bytes) };
    bar.set_length(bytes);
    let style = "{bar:30} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left  {msg}";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar
}

fn tell(options: &Options, pulled: &Pulled, what: &str) -> anyhow::Result<ExitCode> {
    if options.json {
        say_json(pulled)?;
    } else {
        let (files, bytes) = (pulled.files, Bytes(pulled.bytes));
        say(format!("{} {what}: {} ({files} files, {bytes})", pulled.model, pulled.path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}
