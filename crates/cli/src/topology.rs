//! `phalanx topology`: what a machine is connected with; and what the parsers make of a recording of another.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use provider::topology::{sysfs, thunderbolt};
use wire::admin::topology::Topology;
use wire::admin::{FleetStatus, MachineStatus};
use wire::control::hardware::Connections;

use crate::client::ClientOptions;
use crate::serving;
use crate::terminal::{say, say_json, say_table};

#[derive(clap::Subcommand)]
pub(crate) enum Verb {
    /// Show what this machine (Linux) is connected with, or what another told its coordinator.
    Show(Show),
    /// Show what the parser makes of a recording.
    Parse(Parse),
    /// Show which managed machines reach which, and how well.
    Links(Links),
}

#[derive(clap::Args)]
pub(crate) struct Show {
    /// Where the system's tree is mounted, or recorded.
    #[arg(long, default_value = "/sys", value_name = "FOLDER")]
    sysfs: PathBuf,
    /// A machine's name or identity: what it told its coordinator when it joined.
    #[arg(long, value_name = "NAME", conflicts_with = "sysfs")]
    machine: Option<String>,
    #[command(flatten)]
    client: ClientOptions,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(crate) struct Parse {
    /// What `system_profiler SPThunderboltDataType -json` printed on a Mac.
    #[arg(long, value_name = "FILE")]
    thunderbolt: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(crate) struct Links {
    #[command(flatten)]
    client: ClientOptions,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(verb: Verb) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Show(options) => match options.machine.clone() {
            Some(machine) => serving::block_on(told(options, machine)).map(drop)?,
            None => show(&options)?,
        },
        Verb::Parse(options) => parse(&options)?,
        Verb::Links(options) => serving::block_on(links(options)).map(drop)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn show(options: &Show) -> anyhow::Result<()> {
    let found = sysfs::read(&options.sysfs);
    if options.json {
        return say_json(&found);
    }
    let speed = |mbps: Option<u64>| mbps.map_or_else(|| "-".to_owned(), |mbps| format!("{mbps} Mbit/s"));
    let rows = found.interfaces.iter().map(|i| {
        let state = if i.up { "up" } else { "down" };
        vec![i.name.clone(), format!("{:?}", i.kind), state.to_owned(), speed(i.speed_mbps)]
    });
    say_table(&["INTERFACE", "KIND", "STATE", "SPEED"], rows.collect())?;
    for device in &found.thunderbolt {
        let kind = if device.machine { "machine" } else { "device" };
        let gbps = device.speed_gbps.map_or_else(String::new, |gbps| format!(", {gbps} Gbit/s"));
        say(format!("Thunderbolt {}: {} ({kind}{gbps})", device.device, device.name))?;
    }
    for device in &found.rdma {
        say(format!("RDMA {}: {}", device.name, if device.active { "active" } else { "not active" }))?;
    }
    Ok(())
}

async fn told(options: Show, asked: String) -> anyhow::Result<ExitCode> {
    let status: FleetStatus = options.client.client()?.get("/api/status").await?;
    let is_it = |m: &&MachineStatus| m.name == asked || m.machine.to_string() == asked;
    let Some(machine) = status.machines.iter().find(is_it) else {
        bail!("no machine is called {asked:?}: `phalanx status` lists all");
    };
    let Connections { disks, interfaces, thunderbolt, rdma } = &machine.hardware.connections;
    if options.json {
        say_json(&machine.hardware)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows = interfaces.iter().map(|i| {
        let state = if i.up { "up" } else { "down" };
        let speed = i.speed_mbps.map_or_else(|| "-".to_owned(), |mbps| format!("{mbps} Mbit/s"));
        let addresses = i.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        vec![i.name.clone(), i.kind.clone(), state.to_owned(), speed, addresses]
    });
    say_table(&["INTERFACE", "KIND", "STATE", "SPEED", "ADDRESSES"], rows.collect())?;
    for port in thunderbolt {
        let generation = if port.thunderbolt_5 { ", Thunderbolt 5" } else { "" };
        let peers = match port.peers.is_empty() {
            true => String::new(),
            false => format!(": {}", port.peers.join(", ")),
        };
        let state = if port.connected { format!("{} Gb/s", port.speed_gbps) } else { "idle".to_owned() };
        say(format!("Thunderbolt {} ({state}{generation}){peers}", port.name))?;
    }
    for device in rdma {
        say(format!("RDMA {}: {}", device.name, if device.active { "active" } else { "not active" }))?;
    }
    for disk in disks {
        say(format!("Disk at {}: {} of {} free", disk.mount, disk.available, disk.total))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn links(options: Links) -> anyhow::Result<ExitCode> {
    let found: Topology = options.client.client()?.get("/api/topology").await?;
    if options.json {
        say_json(&found)?;
        return Ok(ExitCode::SUCCESS);
    }
    if found.links.is_empty() {
        say("No managed machines try each other: it takes two (`phalanx provider --managed`).")?;
        return Ok(ExitCode::SUCCESS);
    }
    let or_none = |known: bool, text: String| if known { text } else { "-".to_owned() };
    let rows = found.links.iter().map(|link| {
        vec![
            link.from_name.clone(),
            link.to_name.clone(),
            link.address.to_string(),
            link.kind.clone(),
            link.state.clone(),
            or_none(link.rtt_us > 0, format!("{} us", link.rtt_us)),
            or_none(link.bytes_per_s > 0, format!("{:.1} Gbit/s", link.bytes_per_s as f64 * 8.0 / 1e9)),
            link.cause.clone(),
        ]
    });
    let heads = ["FROM", "TO", "ADDRESS", "OVER", "STATE", "ROUND TRIP", "CARRIES", "WHY NOT"];
    say_table(&heads, rows.collect())?;
    if found.left_out > 0 {
        say(format!("and {} more", found.left_out))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn parse(options: &Parse) -> anyhow::Result<()> {
    let file = &options.thunderbolt;
    let bytes = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    let found = thunderbolt::parse(&bytes).with_context(|| format!("{} is no recording", file.display()))?;
    if options.json {
        return say_json(&found);
    }
    let gbps = |gbps: Option<f64>| gbps.map_or_else(|| "-".to_owned(), |gbps| format!("{gbps} Gb/s"));
    let rows = found.ports.iter().map(|port| {
        vec![
            port.bus.clone(),
            port.receptacle.clone().unwrap_or_else(|| "-".to_owned()),
            if port.connected { "connected" } else { "idle" }.to_owned(),
            gbps(port.speed_gbps),
            gbps(port.capable_gbps),
            if port.thunderbolt_5 { "Thunderbolt 5" } else { "-" }.to_owned(),
        ]
    });
    say_table(&["BUS", "PORT", "STATE", "SPEED", "CAPABLE", "KIND"], rows.collect())?;
    for link in &found.links {
        let via =
            if link.via.is_empty() { "directly".to_owned() } else { format!("via {}", link.via.join(", ")) };
        say(format!("{} -> {} ({}), {via}", link.local_domain_uuid, link.peer_name, link.peer_domain_uuid))?;
    }
    for problem in &found.problems {
        say(format!("left out: {problem}"))?;
    }
    Ok(())
}
