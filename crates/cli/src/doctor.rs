//! `phalanx doctor`: checks this machine and this installation, and says what to do about what is wrong.

use std::path::Path;
use std::process::ExitCode;

use base::ModelName;
use engine::{Engine, EngineConfig, LoadOptions, ModelSource};
use serde::Serialize;
use serde_json::Value;
use store::{OpenError, SqliteOptions, SqliteStore, Store as _};

use crate::client::ClientOptions;
use crate::coordinator::now_us;
use crate::place::make_private;
use crate::terminal::{say, say_json};

#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    client: ClientOptions,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// One thing that was looked at.
#[derive(Serialize)]
struct Finding {
    what: &'static str,
    /// `good`, `note` (works, could be better) or `bad`.
    state: &'static str,
    detail: String,
}

impl Finding {
    fn of(what: &'static str, result: anyhow::Result<String>) -> Self {
        match result {
            Ok(detail) => Self { what, state: "good", detail },
            Err(error) => Self { what, state: "bad", detail: format!("{error:#}") },
        }
    }

    fn note(what: &'static str, detail: String) -> Self {
        Self { what, state: "note", detail }
    }
}

pub(crate) async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let folder = options.client.data().folder()?;
    let findings = vec![
        processor(),
        backends(),
        memory(),
        Finding::of("data folder", writable(&folder)),
        Finding::of("store", store(&folder).await),
        Finding::of("engine", tokio::task::spawn_blocking(engine_answers).await?),
        coordinator(&options.client, &folder).await,
    ];
    if options.json {
        say_json(&findings)?;
    } else {
        for finding in &findings {
            say(format!("{:4}  {:<12} {}", finding.state, finding.what, finding.detail))?;
        }
    }
    let bad = findings.iter().any(|f| f.state == "bad");
    Ok(if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn processor() -> Finding {
    let hardware = provider::hardware();
    let sets = hardware.isa.join(", ");
    let detail = format!("{}, {} cores, {sets}", hardware.cpu, hardware.cores);
    let vector = ["avx512", "avx2", "neon", "amx"];
    if hardware.isa.iter().any(|set| vector.iter().any(|v| set.starts_with(v))) {
        Finding::of("processor", Ok(detail))
    } else {
        let slow = "no vector instructions that the kernels know: computing works, slowly";
        Finding::note("processor", format!("{detail}: {slow}"))
    }
}

/// What this build computes with, and what it does not. Said here, since nothing else would tell before a model is slow.
fn backends() -> Finding {
    let sets = engine::machine::instruction_sets().join(", ");
    let here = format!("the CPU ({sets}), and another server by --engine openai=URL");
    let devices = [engine::Device::CandleCpu, engine::Device::Metal(0), engine::Device::Cuda(0)];
    let (gone, built): (Vec<_>, Vec<_>) =
        devices.iter().partition(|device| device.missing_feature().is_some());
    let list = |devices: Vec<&engine::Device>| {
        devices.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    let here = match built.is_empty() {
        true => here,
        false => format!("{here}; --device {}", list(built)),
    };
    // The features are the words of `cargo build --features`.
    let gone = match gone.is_empty() {
        true => String::new(),
        false => format!("; not in this build: {} (features candle, metal, candle-cuda)", list(gone)),
    };
    // Said as long as nobody has told what they do on a processor.
    let tiles = match engine::machine::instruction_sets().contains(&"amx") {
        true => {
            "; AMX tiles, which were held to their twins in an emulator and not measured on a processor yet"
        }
        false => "",
    };
    // Compiled and run is x86-64 only; elsewhere the loops are the compiler's own.
    let portable = match cfg!(target_arch = "x86_64") {
        true => "",
        false => "; on this processor only portable loops, which nobody has measured",
    };
    Finding::of("backends", Ok(format!("{here}{gone}{tiles}{portable}")))
}

fn memory() -> Finding {
    let hardware = provider::hardware();
    let detail = format!("{} of {} available", hardware.memory_available, hardware.memory_total);
    if hardware.memory_available.0 < 1 << 30 {
        return Finding::note("memory", format!("{detail}: below 1 GiB only the smallest models fit"));
    }
    Finding::of("memory", Ok(detail))
}

fn writable(folder: &Path) -> anyhow::Result<String> {
    make_private(folder)?;
    let probe = folder.join(format!("doctor-{}", std::process::id()));
    crate::place::write_private(&probe, b"probe")?;
    std::fs::remove_file(&probe)?;
    Ok(folder.display().to_string())
}

async fn store(folder: &Path) -> anyhow::Result<String> {
    let path = folder.join("coordinator.sqlite");
    if !path.exists() {
        return Ok("none yet: the first `phalanx up` or `phalanx coordinator` makes it".into());
    }
    match SqliteStore::open(&SqliteOptions::new(&path), now_us()).await {
        Ok(store) => {
            let keys = store.keys().await?.len();
            store.close().await?;
            Ok(format!("{}: {keys} keys", path.display()))
        }
        Err(OpenError::InUse { .. }) => Ok(format!("{}: in use by a running coordinator", path.display())),
        Err(error) => Err(error.into()),
    }
}

/// The whole way from files to tokens, with the model that is always there.
fn engine_answers() -> anyhow::Result<String> {
    let loaded = engine::load(&ModelSource::Bundled, &LoadOptions::default())?;
    let engine = Engine::start(ModelName::from("bundled"), loaded, EngineConfig::default())?;
    let report = engine.load_now();
    let logits = engine.logits(&[1, 2, 3], false)?;
    engine.stop();
    anyhow::ensure!(
        logits.iter().flatten().all(|value| value.is_finite()),
        "the bundled model computes what is no number: this processor, or its memory, is at fault"
    );
    Ok(format!("the bundled model computes: about {:.0} tokens/s", report.decode_tokens_per_s))
}

async fn coordinator(client: &ClientOptions, folder: &Path) -> Finding {
    const WHAT: &str = "coordinator";
    match client.client() {
        Err(_) => Finding::note(WHAT, "none is known here: `phalanx up` starts one".into()),
        Ok(client) => match client.get::<Value>("/v1/models").await {
            Ok(models) => {
                let count = models["data"].as_array().map_or(0, Vec::len);
                Finding::of(WHAT, Ok(format!("{} serves; models: {count}", client.url)))
            }
            // One that was stopped left its address behind; that is no fault.
            Err(error) if folder.exists() => Finding::note(WHAT, format!("{error:#}")),
            Err(error) => Finding::of(WHAT, Err(error)),
        },
    }
}
