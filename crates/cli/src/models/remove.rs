//! `phalanx models remove`: a model that was fetched goes, unless it is in use.

use std::process::ExitCode;

use super::place::{PlaceOption, RemovedModel};
use crate::terminal::{say, say_json};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The model, as `phalanx models list` shows it.
    name: String,
    #[command(flatten)]
    place: PlaceOption,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let removed = RemovedModel::from(options.place.stock()?.remove(&options.name)?);
    match options.json {
        true => say_json(&removed)?,
        false => say(format!("Removed: {}", removed.text()))?,
    }
    Ok(ExitCode::SUCCESS)
}
