//! `phalanx plan`: the planner on a fleet that a file describes. "What if I bought another machine?"

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use engine::LoadOptions;
use fleet::deployment::Transport;
use fleet::plan::file::{FleetFile, ModelEntry, PlanOutput, SpecFile, output, read};
use fleet::plan::{Plan, Shape, Snapshot, plan};

use crate::declared;
use crate::serving::parse_source;
use crate::terminal::{say, say_json, say_table};

/// What `--help` says of both files.
const FILES: &str = "\
FILES (YAML or JSON; unknown fields are refused; docs/plan.md has all of them)

  fleet:  machines:
          - name: studio                   # memory: what models may take
            memory: 96 GiB
            memory_gb_per_s: 800
            tflops: 27
            on_disk: [big]
          - {name: laptop, memory: 24 GiB, memory_gb_per_s: 150}
          links:                           # or networks: [{machines: [..], ...}]
          - {from: studio, to: laptop, kind: thunderbolt, rtt_ms: 0.5, gbit_per_s: 50}

  spec:   models:                          # or path: FOLDER, or config: {config.json's content}
            big: {bits_per_weight: 4.5, shape: {layers: 80, hidden: 8192, heads: 64,
                  kv_heads: 8, feed_forward: 28672, vocabulary: 128256}}
          deployments:
          - {name: chat, model: big, replicas: 1, shape: auto, context: 8192, max_batch: 4}

Layers are [first, one after the last]. Exit code 1: a deployment needs RDMA and has no place.";

#[derive(clap::Args)]
#[command(after_long_help = FILES)]
pub(crate) struct Options {
    /// Machines, links, and what runs on them.
    #[arg(long, value_name = "FILE")]
    fleet: PathBuf,
    /// Deployments.
    #[arg(long, value_name = "FILE")]
    spec: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let fleet: FleetFile = declared::read(&options.fleet)?;
    let spec: SpecFile = declared::read(&options.spec)?;
    let (snapshot, policy) =
        read(&fleet, &spec, &load).context("the files do not describe what can be planned")?;
    let decided = plan(&snapshot, &policy);
    let said = output(&snapshot, &decided);
    if options.json {
        say_json(&said)?;
    } else {
        say_plan(&said)?;
    }
    Ok(complain(&snapshot, &decided))
}

/// Says on standard error what has no place, and whether that is an error: RDMA is never replaced silently (T7).
fn complain(snapshot: &Snapshot, plan: &Plan) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for short in &plan.short {
        let spec = &snapshot.wanted[short.deployment].spec;
        eprintln!("{:?} lacks {} of its instances: {}", spec.name, short.missing, short.reason);
        if spec.transport == Transport::Rdma {
            code = ExitCode::FAILURE;
        }
    }
    code
}

/// A model that the files only point at, or not even that.
pub(crate) fn load(name: &str, entry: Option<&ModelEntry>) -> Result<Shape, String> {
    let path = entry.and_then(|entry| entry.path.as_deref());
    let source = match path {
        Some(path) => path,
        None if name == "bundled" || std::path::Path::new(name).exists() => name,
        None => {
            return Err(format!(
                "nobody says what {name:?} is: describe it under models (shape, config or path), or name a folder"
            ));
        }
    };
    let loaded = engine::load(&parse_source(source), &LoadOptions { tokenizer_needed: false });
    let loaded = loaded.map_err(|error| format!("{source}: {error}"))?;
    let stored = loaded.weight_bytes().0 as f64 * 8.0 / loaded.parameters().max(1) as f64;
    let bits = entry.and_then(|entry| entry.bits_per_weight).unwrap_or(stored);
    let grain = entry.and_then(|entry| entry.grain).unwrap_or(if bits >= 15.5 { 1 } else { 32 });
    Ok(Shape::new(Arc::new(loaded.spec().clone()), bits, grain))
}

/// A plan for people.
pub(crate) fn say_plan(said: &PlanOutput) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for placement in &said.placements {
        for (number, rank) in placement.ranks.iter().enumerate() {
            let first = |text: String| if number == 0 { text } else { String::new() };
            rows.push(vec![
                first(placement.deployment.clone()),
                number.to_string(),
                format!("{}/{}", rank.machine, rank.device),
                format!("{}-{}", rank.layers[0], rank.layers[1] - 1),
                format!("{:.2}", rank.tensor_share),
                base::Bytes(rank.memory_bytes).to_string(),
                first(format!("{:.1}", placement.predicted.decode_tokens_per_s)),
                first(format!("{:.0} ms", placement.predicted.ttft_ms)),
            ]);
        }
    }
    say_table(
        &["DEPLOYMENT", "RANK", "DEVICE", "LAYERS", "SHARE", "MEMORY", "TOKENS/S", "FIRST TOKEN"],
        rows,
    )?;
    for change in &said.moves {
        say(format!(
            "{} {} on {}: {}",
            change.action,
            change.deployment,
            change.machines.join(" + "),
            change.reason
        ))?;
    }
    for rejected in &said.rejected {
        say(format!("not {}: {}", rejected.candidate, rejected.reason))?;
    }
    Ok(())
}
