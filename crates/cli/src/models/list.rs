//! `phalanx models list`: the models that are in this program, on this machine, and those that the coordinator serves.

use std::path::PathBuf;
use std::process::ExitCode;

use engine::{LoadOptions, ModelSource};
use provider::stock::{State, Stock, Stocked};
use serde_json::{Value, json};

use super::place::{date, seconds};
use crate::client::ClientOptions;
use crate::serving::BUNDLED_NAME;
use crate::terminal::{say, say_json, say_table};

#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    client: ClientOptions,
    /// The folder of models of this machine [default: models in the data folder].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let bundled = engine::load(&ModelSource::Bundled, &LoadOptions::default())?;
    let stocked = stock(&options)?.models();
    let served = served(&options.client).await;
    let ids: Vec<&str> = match &served {
        Ok(body) => body["data"].as_array().into_iter().flatten().filter_map(|m| m["id"].as_str()).collect(),
        Err(_) => Vec::new(),
    };
    if options.json {
        say_json(&json!({
            "bundled": [{"name": BUNDLED_NAME, "parameters": bundled.parameters()}],
            "stocked": stocked.iter().map(facts).collect::<Vec<_>>(),
            "served": ids,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let row = |name: &str, place: &str, note: String| vec![name.to_owned(), place.to_owned(), note];
    let size = format!("{:.1} million weights", bundled.parameters() as f64 / 1e6);
    let mut rows = vec![row(BUNDLED_NAME, "in this program", size)];
    rows.extend(stocked.iter().map(|model| row(&model.name, "on this machine", note(model))));
    rows.extend(ids.iter().map(|id| row(id, "served", String::new())));
    say_table(&["MODEL", "WHERE", ""], rows)?;
    if let Err(error) = &served {
        say(format!("\nWhat is served is not known: {error:#}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn stock(options: &Options) -> anyhow::Result<Stock> {
    Ok(match &options.dir {
        Some(folder) => Stock::new(std::path::absolute(folder)?),
        None => Stock::new(options.client.data().folder()?.join("models")),
    })
}

/// One model of this machine, for scripts.
fn facts(model: &Stocked) -> Value {
    json!({
        "model": model.name,
        "path": model.place,
        "bytes": model.bytes.0,
        "state": word(model.state),
        "last_used": seconds(model.last_used),
        "held_by": model.held_by,
        "kept": model.kept,
    })
}

fn word(state: State) -> &'static str {
    match state {
        State::Whole => "whole",
        State::Damaged => "damaged",
        State::UnderWay => "being fetched",
        State::LeftOff => "left off",
        State::Own => "own",
    }
}

fn note(model: &Stocked) -> String {
    let how = match (model.state, &model.kept) {
        (State::Damaged, _) => ", files are missing or have another length: pull it again".to_owned(),
        (State::LeftOff, _) => ", not whole: `phalanx models pull` goes on with it".to_owned(),
        (_, Some(kept)) => format!(", {kept}"),
        (_, None) => String::new(),
    };
    let used = match seconds(model.last_used) {
        0 => String::new(),
        at => format!(", last used {}", date(at)),
    };
    format!("{}{used}{how}", model.bytes)
}

async fn served(client: &ClientOptions) -> anyhow::Result<Value> {
    client.client()?.get("/v1/models").await
}
