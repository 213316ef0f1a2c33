//! `phalanx explain REQUEST`: why there, why then, why refused.

use std::process::ExitCode;

use wire::admin::explain::{Candidate, Explanation};

use crate::client::ClientOptions;
use crate::terminal::{say, say_json, say_table};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// A request's identity, as in the `x-request-id` header of its answer.
    request: String,
    #[command(flatten)]
    client: ClientOptions,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let path = format!("/api/explain/{}", options.request);
    let explanation: Explanation = options.client.client()?.get(&path).await?;
    if options.json {
        say_json(&explanation)?;
    } else {
        print(&explanation)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print(of: &Explanation) -> anyhow::Result<()> {
    let mut about = vec![of.request.to_string()];
    about.extend(of.model.as_ref().map(|model| model.to_string()));
    about.extend(of.prompt_tokens.map(|tokens| format!("{tokens} prompt tokens")));
    about.extend(of.max_tokens.map(|tokens| format!("at most {tokens} generated")));
    about.extend(of.account.map(|account| format!("account {account}")));
    say(about.join(", "))?;
    let start = of.events.first().map_or(0, |event| event.at_us);
    for event in &of.events {
        say("")?;
        let after = event.at_us.saturating_sub(start) as f64 / 1e6;
        say(format!("{after:9.3} s  {}", event.text))?;
        if !event.candidates.is_empty() {
            say_table(
                &["CANDIDATE", "COST", "FIRST TOKEN", "WHY NOT"],
                event.candidates.iter().map(row).collect(),
            )?;
        }
        if event.candidates.is_empty() && !event.instances.is_empty() {
            let counts: Vec<String> =
                event.instances.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
            say(format!("             instances: {}", counts.join(", ")))?;
        }
    }
    Ok(())
}

fn row(candidate: &Candidate) -> Vec<String> {
    let seconds = |s: Option<f64>| s.map_or_else(|| "-".to_owned(), |s| format!("{s:.3} s"));
    let name = match &*candidate.name {
        "" => candidate.machine.to_string(),
        name => name.to_owned(),
    };
    let why = candidate.ineligible.clone().unwrap_or_else(|| "-".to_owned());
    vec![name, seconds(candidate.cost_s), seconds(candidate.first_token_s), why]
}
