//! `phalanx logits`: a model's logits after given tokens, for comparing implementations.

use std::process::ExitCode;

use base::ModelName;
use engine::LoadOptions;
use serde_json::json;

use crate::ranks::{GroupOptions, Running};
use crate::serving::{EngineOptions, parse_source};
use crate::terminal::say;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// `bundled`, a model's folder, or a GGUF file.
    #[arg(long, value_name = "PATH")]
    model: String,
    /// The tokens, as in 1,2,3.
    #[arg(long, value_delimiter = ',', required = true)]
    tokens: Vec<u32>,
    /// After each of them, not only after the last.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    engine: EngineOptions,
    #[command(flatten)]
    group: GroupOptions,
    /// Print JSON: {"logits": [[V numbers], ...]}.
    #[arg(long)]
    json: bool,
}

/// How many of the highest logits are shown to people.
const SHOWN: usize = 10;

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let config = options.engine.config();
    let (source, load) = (parse_source(&options.model), LoadOptions { tokenizer_needed: false });
    let loaded = engine::load(&source, &load)?;
    let name = ModelName::new(options.model.as_str());
    let running = Running::start(name, (&source, loaded, &load), config, &options.group)?;
    let logits = running.engine().logits(&options.tokens, options.all)?;
    running.stop()?;
    if options.json {
        say(json!({ "logits": logits }).to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    let first = options.tokens.len() - logits.len();
    for (index, row) in logits.iter().enumerate() {
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
        let best = order.iter().take(SHOWN).map(|token| format!("{token}: {:.4}", row[*token]));
        say(format!("after position {}: {}", first + index, best.collect::<Vec<_>>().join("  ")))?;
    }
    Ok(ExitCode::SUCCESS)
}
