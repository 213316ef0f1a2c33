//! `phalanx audit`: what operators did.

use std::process::ExitCode;

use wire::admin::{AuditEntry, AuditLog};

use crate::client::ClientOptions;
use crate::terminal::{say_json, say_table};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only what came after the entry with this number.
    #[arg(long, default_value_t = 0, value_name = "NUMBER")]
    after: u64,
    #[command(flatten)]
    client: ClientOptions,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let client = options.client.client()?;
    let mut all = AuditLog::default();
    let mut after = options.after;
    loop {
        let page: AuditLog = client.get(&format!("/api/audit?after={after}")).await?;
        let Some(last) = page.entries.last() else { break };
        after = last.sequence;
        all.entries.extend(page.entries);
    }
    if options.json {
        say_json(&all)?;
    } else {
        let row = |entry: &AuditEntry| {
            vec![
                entry.sequence.to_string(),
                (entry.at_unix_us / 1_000_000).to_string(),
                entry.by.to_string(),
                entry.act.clone(),
                entry.subject.clone(),
                entry.detail.clone(),
            ]
        };
        let header = ["NUMBER", "AT (UNIX SECONDS)", "BY", "ACT", "SUBJECT", "DETAIL"];
        say_table(&header, all.entries.iter().map(row).collect())?;
    }
    Ok(ExitCode::SUCCESS)
}
