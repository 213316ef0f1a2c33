//! `phalanx models budget`: what models that were fetched may take of the disk together.

use std::process::ExitCode;

use anyhow::Context as _;
use base::Bytes;
use provider::stock::State;
use serde_json::json;

use super::place::PlaceOption;
use crate::serving;
use crate::terminal::{say, say_json};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// What they may take from now on, as in 200GiB, or `none` [default: it is only shown].
    #[arg(value_name = "SIZE", value_parser = parse)]
    budget: Option<Budget>,
    #[command(flatten)]
    place: PlaceOption,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A budget, or that there is none.
#[derive(Debug, Clone, Copy)]
struct Budget(Option<Bytes>);

fn parse(text: &str) -> Result<Budget, String> {
    if text == "none" {
        Ok(Budget(None))
    } else {
        serving::parse_bytes(text).map(|bytes| Budget(Some(bytes)))
    }
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let stock = options.place.stock()?;
    let folder = stock.folder().display().to_string();
    if let Some(Budget(budget)) = options.budget {
        stock.set_budget(budget).with_context(|| format!("setting the budget of {folder}"))?;
    }
    let budget = stock.budget().with_context(|| format!("reading the budget of {folder}"))?;
    let fetched = stock.models().into_iter().filter(|model| model.state != State::Own);
    let taken = Bytes(fetched.map(|model| model.bytes.0).sum());
    if options.json {
        say_json(
            &json!({"folder": folder, "budget_bytes": budget.map(|bytes| bytes.0), "taken_bytes": taken.0}),
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    say(match budget {
        Some(budget) => format!(
            "Models that were fetched into {folder} take {taken}, and may take {budget}: those that were least recently \
             used go to make room."
        ),
        None => format!(
            "Models that were fetched into {folder} take {taken}, and may take what the disk has: none is removed by itself."
        ),
    })?;
    Ok(ExitCode::SUCCESS)
}
