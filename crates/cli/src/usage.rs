//! `phalanx usage`: what each key used of each model, as a table or for another program.

use std::process::ExitCode;

use wire::admin::{KeyList, KeyUsage, UsageReport};

use crate::client::ClientOptions;
use crate::terminal::{say, say_json, say_table};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Print every row for another program.
    #[arg(long, value_name = "FORMAT")]
    export: Option<Format>,
    #[command(flatten)]
    client: ClientOptions,
    /// Print JSON: as `--export json`.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Csv,
    Json,
}

pub(crate) async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let client = options.client.client()?;
    let report: UsageReport = client.get("/api/usage").await?;
    match options.export {
        Some(Format::Csv) => say(csv(&report.usage).trim_end())?,
        Some(Format::Json) => say_json(&report)?,
        None if options.json => say_json(&report)?,
        None => {
            let keys: KeyList = client.get("/api/keys").await.unwrap_or(KeyList { keys: Vec::new() });
            let name = |usage: &KeyUsage| {
                let key = keys.keys.iter().find(|key| key.id == usage.key);
                key.map_or_else(|| usage.key.to_string(), |key| key.name.clone())
            };
            let row = |usage: &KeyUsage| {
                vec![
                    name(usage),
                    usage.model.to_string(),
                    usage.requests.to_string(),
                    usage.prompt_tokens.to_string(),
                    usage.generated_tokens.to_string(),
                    usage.charged_micros.to_string(),
                ]
            };
            let header =
                ["KEY", "MODEL", "REQUESTS", "PROMPT TOKENS", "ANSWER TOKENS", "CHARGED (MICRO-UNITS)"];
            say_table(&header, report.usage.iter().map(row).collect())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// RFC 4180. Names of models may hold commas and quotes.
fn csv(usage: &[KeyUsage]) -> String {
    let mut out = "key,account,model,requests,prompt_tokens,generated_tokens,charged_micros\r\n".to_owned();
    for row in usage {
        let model = format!("\"{}\"", row.model.as_str().replace('"', "\"\""));
        let (requests, prompt, generated) = (row.requests, row.prompt_tokens, row.generated_tokens);
        let charged = row.charged_micros;
        out.push_str(&format!(
            "{},{},{model},{requests},{prompt},{generated},{charged}\r\n",
            row.key, row.account
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use base::{AccountId, KeyId};

    use super::*;

    #[test]
    fn a_models_name_cannot_make_columns_of_its_own() {
        let row = KeyUsage {
            key: KeyId(1),
            account: AccountId(2),
            model: "a\",\"b".into(),
            requests: 1,
            prompt_tokens: 2,
            generated_tokens: 3,
            charged_micros: 4,
        };
        let text = csv(&[row]);
        assert!(text.ends_with(",\"a\"\",\"\"b\",1,2,3,4\r\n"), "{text}");
        assert_eq!(text.lines().count(), 2);
    }
}
