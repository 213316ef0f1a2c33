//! `phalanx prices`: what tokens cost, by model.

use std::process::ExitCode;

use base::ModelName;
use wire::admin::{Price, PriceList, SetPrice};

use crate::client::ClientOptions;
use crate::terminal::{say_json, say_table};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Set this model's price, from the next request on.
    #[arg(long, value_name = "MODEL", requires = "prompt", requires = "generated")]
    set: Option<String>,
    /// Micro-units for a million tokens of prompts.
    #[arg(long, value_name = "MICRO-UNITS")]
    prompt: Option<u64>,
    /// Micro-units for a million tokens of answers.
    #[arg(long, value_name = "MICRO-UNITS")]
    generated: Option<u64>,
    #[command(flatten)]
    client: ClientOptions,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let client = options.client.client()?;
    let list: PriceList = match options.set {
        Some(model) => {
            let price = Price {
                prompt_micros: options.prompt.unwrap_or(0),
                generated_micros: options.generated.unwrap_or(0),
            };
            client.put("/api/prices", &SetPrice { model: ModelName::new(model), price }).await?
        }
        None => client.get("/api/prices").await?,
    };
    if options.json {
        say_json(&list)?;
    } else {
        let row = |(model, price): (&ModelName, &Price)| {
            vec![model.to_string(), price.prompt_micros.to_string(), price.generated_micros.to_string()]
        };
        let header = ["MODEL", "MICRO-UNITS A MILLION PROMPT TOKENS", "A MILLION ANSWER TOKENS"];
        say_table(&header, list.prices.iter().map(row).collect())?;
    }
    Ok(ExitCode::SUCCESS)
}
