//! `phalanx why MACHINE`: why a machine gets work, or does not.

use std::process::ExitCode;

use wire::admin::explain::MachineReasons;

use crate::client::ClientOptions;
use crate::terminal::{say, say_json};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// A machine's name or identity, as `phalanx status` shows it.
    machine: String,
    #[command(flatten)]
    client: ClientOptions,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let path = format!("/api/why/{}", escaped(&options.machine));
    let reasons: MachineReasons = options.client.client()?.get(&path).await?;
    if options.json {
        say_json(&reasons)?;
        return Ok(ExitCode::SUCCESS);
    }
    let state = match (reasons.connected, &reasons.left) {
        (true, _) => "connected".to_owned(),
        (false, Some(why)) => format!("away ({why})"),
        (false, None) => "not connected: is its provider running?".to_owned(),
    };
    say(format!("{} ({}): {state}", reasons.name, reasons.machine))?;
    if reasons.instances.is_empty() {
        // A rank above 0 of a group computes, and offers nothing itself: its deployment's line says so.
        say("It offers no instance of any model for requests.")?;
    }
    if reasons.managed {
        say(match reasons.deployments.is_empty() {
            true => "It is managed, and there is no deployment: make one with `phalanx deploy apply`.",
            false => "It is managed. Of each deployment:",
        })?;
    }
    for line in &reasons.deployments {
        say(format!("  {line}"))?;
    }
    for instance in &reasons.instances {
        say(format!("{}: {}", instance.model, instance.text))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A name as a part of a path: machines are called what their owners like.
pub(crate) fn escaped(name: &str) -> String {
    let mut out = String::new();
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}
