//! `phalanx status`: machines, models and instances, and why any of them takes no requests.

use std::process::ExitCode;
use std::time::Duration;

use wire::admin::{FleetStatus, InstanceStatus, MachineStatus};

use crate::client::ClientOptions;
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
    let status: FleetStatus = options.client.client()?.get("/api/status").await?;
    if options.json {
        say_json(&status)?;
    } else {
        print(&status)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print(status: &FleetStatus) -> anyhow::Result<()> {
    say(format!("{}, up {}", status.version, span(status.uptime_us)))?;
    say("")?;
    if status.machines.is_empty() {
        return say("No machine has joined yet: run `phalanx provider --join URL` on one.");
    }
    let models = status.models.iter().map(|pool| {
        vec![
            pool.model.to_string(),
            pool.context.to_string(),
            pool.weight_bytes.to_string(),
            format!("{} of {}", pool.eligible.0, pool.eligible.1),
            pool.running.to_string(),
            pool.queued.to_string(),
            pool.refused.to_string(),
        ]
    });
    say_table(
        &["MODEL", "CONTEXT", "WEIGHTS", "INSTANCES READY", "RUNNING", "QUEUED", "REFUSED"],
        models.collect(),
    )?;
    say("")?;
    let rows = status.machines.iter().flat_map(|machine| machine_rows(machine, status.uptime_us)).collect();
    print_groups(status)?;
    say_table(
        &[
            "MACHINE",
            "STATE",
            "CORES",
            "MEMORY",
            "INSTANCE OF",
            "RUNNING",
            "KV FREE",
            "TOKENS/S",
            "TAKES REQUESTS",
        ],
        rows,
    )
}

/// Models that several machines compute together.
fn print_groups(status: &FleetStatus) -> anyhow::Result<()> {
    if status.groups.is_empty() {
        return Ok(());
    }
    let rows = status.groups.iter().map(|group| {
        let ranks = group.ranks.iter().map(|rank| format!("{} {}", rank.name, rank.phase));
        let standing = group.ranks.first().and_then(|rank| rank.standing.as_deref());
        let chosen = standing.filter(|standing| standing.mode != group.mode);
        let mode =
            chosen.map_or_else(|| group.mode.clone(), |chosen| format!("{}: {}", group.mode, chosen.mode));
        let fallback = standing.map_or("", |standing| standing.fallback.as_str());
        let why = match (group.detail.is_empty(), group.last_fault.is_empty(), fallback.is_empty()) {
            (false, ..) => group.detail.clone(),
            (true, false, _) => format!("last fault: {}", group.last_fault),
            (true, true, false) => format!("not tensor: {fallback}"),
            (true, true, true) => String::new(),
        };
        vec![
            group.instance.to_string(),
            group.model.to_string(),
            mode,
            format!("{} {}", group.phase, span(group.since_us)),
            group.epoch.0.to_string(),
            ranks.collect::<Vec<_>>().join(", "),
            why,
        ]
    });
    say_table(&["GROUP", "MODEL", "MODE", "STATE", "LIFE", "RANKS", "WHY"], rows.collect())?;
    say("")
}

/// `now_us` is on the coordinator's clock, as `since_us` is.
fn machine_rows(machine: &MachineStatus, now_us: u64) -> Vec<Vec<String>> {
    let state = if machine.connected { "connected" } else { "away" };
    let head = [
        machine.owner.map_or_else(|| machine.name.clone(), |owner| format!("{} (of {owner})", machine.name)),
        format!("{state} {}", span(now_us.saturating_sub(machine.since_us))),
        machine.hardware.cores.to_string(),
        machine.hardware.memory_total.to_string(),
    ];
    if machine.instances.is_empty() {
        let why = machine.left.clone().unwrap_or_default();
        return vec![[head.to_vec(), vec!["none".into()], vec![String::new(); 3], vec![why]].concat()];
    }
    let rows = machine.instances.iter().enumerate();
    rows.map(|(index, instance)| {
        let head = if index == 0 { head.to_vec() } else { vec![String::new(); 4] };
        [head, instance_cells(instance)].concat()
    })
    .collect()
}

fn instance_cells(instance: &InstanceStatus) -> Vec<String> {
    vec![
        instance.model.to_string(),
        format!("{} of {}", instance.running, instance.slots),
        format!("{} of {}", instance.kv_tokens.1, instance.kv_tokens.0),
        format!("{:.0}", instance.decode_tokens_per_s),
        instance.ineligible.as_ref().map_or_else(|| "yes".into(), |why| format!("no: {why}")),
    ]
}

/// A span for people: its two largest units.
pub(crate) fn span(us: u64) -> String {
    let seconds = Duration::from_micros(us).as_secs();
    let parts =
        [(seconds / 86_400, "d"), (seconds / 3600 % 24, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let first = parts.iter().position(|(count, _)| *count > 0).unwrap_or(3);
    parts[first..].iter().take(2).map(|(count, unit)| format!("{count} {unit}")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_as_it_is_since_it_became_so() {
        let away = MachineStatus {
            owner: None,
            machine: base::MachineId(1),
            name: "one".into(),
            connected: false,
            since_us: 60_000_000,
            agent: String::new(),
            hardware: wire::control::Hardware::default(),
            instances: Vec::new(),
            left: Some("paused by its owner".into()),
        };
        let row = &machine_rows(&away, 63_000_000)[0];
        assert_eq!((row[1].as_str(), row[8].as_str()), ("away 3 s", "paused by its owner"));
    }

    #[test]
    fn a_span_is_shown_in_its_two_largest_units() {
        assert_eq!(span(0), "0 s");
        assert_eq!(span(59_999_999), "59 s");
        assert_eq!(span(3_600_000_000), "1 h 0 m");
        assert_eq!(span(90_061_000_000), "1 d 1 h");
    }
}
