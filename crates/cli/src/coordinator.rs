//! `phalanx coordinator`: the control plane and the API.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use serde::Serialize;
use store::{SqliteOptions, SqliteStore};

use wire::admin::KeyTerms;

use crate::otlp::OtlpOption;
use crate::place::{ClientFile, DataOption};
use crate::ready::ReadyOption;
use crate::settings::{self, SettingsOptions};
use crate::terminal::{say, say_json};
use crate::{discovery, serving, shutdown};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Where to listen. Port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:8420", env = "PHALANX_LISTEN")]
    listen: SocketAddr,
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
    /// Do not announce this coordinator in its network (by multicast DNS, where it listens beyond the loopback).
    #[arg(long)]
    no_announce: bool,
    /// Print all settings with their values as TOML, and end.
    #[arg(long)]
    print_config: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Where keys, settings and the ledger are kept.
#[derive(clap::Args, Clone, Copy)]
pub(crate) struct StoreOptions {
    /// The ledger's file never grows beyond this many bytes: requests are refused before the disk is full [default: as
    /// large as the disk].
    #[arg(long, value_name = "BYTES")]
    store_bytes_max: Option<u64>,
}

/// What a script wants to know of a coordinator.
#[derive(Serialize)]
struct Ready<'a> {
    url: &'a str,
    key: &'a str,
    join_token: &'a str,
    pid: u32,
}

pub(crate) async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let config: coordinator::Config = options.settings.read()?;
    if options.print_config {
        say(settings::print(&config)?.trim_end())?;
        return Ok(ExitCode::SUCCESS);
    }
    let ending = shutdown::on_signals()?;
    let folder = options.data.make()?;
    let listener = serving::listen(options.listen).await?;
    let url = url_of(listener.local_addr()?);
    let ground = Ground::open(&folder, &url, options.store).await?;
    let announced = match options.no_announce {
        true => None,
        false => announce(listener.local_addr()?, &ground.join_token),
    };
    let ready =
        Ready { url: &url, key: &ground.key, join_token: &ground.join_token, pid: std::process::id() };
    let (spans, exporter) = options.otlp.start("phalanx-coordinator")?;
    let store = Arc::clone(&ground.store) as _;
    let serve = coordinator::run_traced(config, listener, store, ending.cancelled_owned(), spans);
    if options.json {
        say_json(&ready)?;
    } else {
        say(format!("The coordinator listens on {url}. Let machines join with:\n"))?;
        say(format!("  phalanx provider --join {url} --token {}\n", ground.join_token))?;
        if announced.is_some() {
            say("It is announced in its network: machines there find it without --join.")?;
        }
        say(format!("API key (kept in {}): {}", folder.display(), ground.key))?;
        warn_beyond_loopback(options.listen.ip());
    }
    options.ready.write(&ready)?;
    let served = serve.await;
    drop(announced);
    exporter.finish().await;
    served?;
    Ok(ExitCode::SUCCESS)
}

/// What a coordinator stands on: its store, a key to use it with, a token to join it with.
pub(crate) struct Ground {
    pub(crate) store: Arc<SqliteStore>,
    pub(crate) key: String,
    pub(crate) join_token: String,
}

impl Ground {
    /// Opens the store in `folder`, or makes it, and keeps how this machine's commands reach the coordinator.
    pub(crate) async fn open(folder: &Path, url: &str, limits: StoreOptions) -> anyhow::Result<Self> {
        let path: PathBuf = folder.join("coordinator.sqlite");
        let size_max = limits.store_bytes_max.map(base::Bytes);
        let store =
            SqliteStore::open(&SqliteOptions { size_max, ..SqliteOptions::new(path) }, now_us()).await?;
        if store.lost() > 0 {
            eprintln!(
                "{} requests were running when the coordinator last ended; they are settled as lost",
                store.lost()
            );
        }
        let store = Arc::new(store);
        let first = coordinator::bootstrap(&*store).await.context("preparing the store")?;
        let kept = ClientFile::read(folder)?.map(|kept| kept.key);
        let key = match (first.first_key, kept) {
            (Some(fresh), _) => fresh.secret,
            (None, Some(kept)) => kept,
            // The file with the secret is gone, and the store has only hashes.
            (None, None) => {
                coordinator::create_key(&*store, "local".to_owned(), None, true, KeyTerms::default())
                    .await?
                    .secret
            }
        };
        ClientFile { url: url.to_owned(), key: key.clone() }.write(folder)?;
        Ok(Self { store, key, join_token: first.join_token })
    }
}

/// Wall time, microseconds since 1970.
pub(crate) fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

/// An address as a URL that this machine's own programs can use.
pub(crate) fn url_of(address: SocketAddr) -> String {
    let host = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => "127.0.0.1".to_owned(),
        IpAddr::V6(ip) if ip.is_unspecified() => "[::1]".to_owned(),
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    format!("http://{host}:{}", address.port())
}

/// Announces the coordinator where other machines could reach it. It serves all the same where that fails.
pub(crate) fn announce(listens: SocketAddr, token: &str) -> Option<discovery::Announcement> {
    discovery::announce(listens, token).unwrap_or_else(|error| {
        eprintln!("not announced in this network ({error:#}): machines join with --join");
        None
    })
}

/// Keys and prompts of clients cross this in the clear.
pub(crate) fn warn_beyond_loopback(ip: IpAddr) {
    if !ip.is_loopback() {
        eprintln!(
            "warning: listening on {ip} without TLS: between clients and this coordinator, keys and prompts can be read. \
             Put a TLS-terminating proxy in front (between coordinator and providers they are sealed)."
        );
    }
}
