//! `phalanx models list`: the models that are in this program, and those that the coordinator serves.

use std::process::ExitCode;

use engine::{LoadOptions, ModelSource};
use serde_json::{Value, json};

use crate::client::ClientOptions;
use crate::serving::BUNDLED_NAME;
use crate::terminal::{say, say_json, say_table};

#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    client: ClientOptions,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let bundled = engine::load(&ModelSource::Bundled, &LoadOptions::default())?;
    let served = served(&options.client).await;
    let ids: Vec<&str> = match &served {
        Ok(body) => body["data"].as_array().into_iter().flatten().filter_map(|m| m["id"].as_str()).collect(),
        Err(_) => Vec::new(),
    };
    if options.json {
        say_json(&json!({
            "bundled": [{"name": BUNDLED_NAME, "parameters": bundled.parameters()}],
            "served": ids,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let row = |name: &str, place: &str, note: String| vec![name.to_owned(), place.to_owned(), note];
    let size = format!("{:.1} million weights", bundled.parameters() as f64 / 1e6);
    let mut rows = vec![row(BUNDLED_NAME, "in this program", size)];
    rows.extend(ids.iter().map(|id| row(id, "served", String::new())));
    say_table(&["MODEL", "WHERE", ""], rows)?;
    if let Err(error) = &served {
        say(format!("\nWhat is served is not known: {error:#}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn served(client: &ClientOptions) -> anyhow::Result<Value> {
    client.client()?.get("/v1/models").await
}
