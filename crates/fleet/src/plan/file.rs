//! A fleet described in a file, for "what if": strict in what it takes, with units in the names.

mod entries;
mod output;

use std::collections::BTreeMap;
use std::sync::Arc;

use base::Micros;

use super::{Demand, PlanPolicy, Running, Shape, Snapshot, Wanted};
use crate::topology::{Device, Fleet, Links, Machine, Measured};

pub use entries::{
    DemandEntry, DeviceEntry, FleetFile, LinkEntry, LinkTerms, MachineEntry, MeasuredEntry, ModelEntry,
    NetworkEntry, PolicyEntry, RunningEntry, ShapeEntry, Size, SpecFile,
};
pub use output::{MoveOutput, PlacementOutput, PlanOutput, RankOutput, output};

/// Most machines in a file.
const MACHINES_MAX: usize = 200_000;
/// What a machine is taken for that does not say.
const MEMORY_GB_PER_S: f64 = 50.0;
const DISK_GB_PER_S: f64 = 2.0;
const DOWNLOAD_MBIT_PER_S: f64 = 800.0;
/// Operations for each byte of bandwidth, where a machine does not say its operations.
const FLOPS_PER_BYTE: f64 = 20.0;

/// A file that says something that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {detail}")]
pub struct FileError {
    /// Where.
    pub path: String,
    /// What, and what would be right.
    pub detail: String,
}

fn wrong<T>(path: impl Into<String>, detail: impl Into<String>) -> Result<T, FileError> {
    Err(FileError { path: path.into(), detail: detail.into() })
}

/// What models are: those that files describe come from there, and `load` knows those that are pointed at.
pub type LoadShape<'a> = &'a dyn Fn(&str, Option<&ModelEntry>) -> Result<Shape, String>;

/// A snapshot and a policy out of both files.
///
/// # Errors
/// The first thing that cannot be, with where it is said.
pub fn read(
    fleet: &FleetFile,
    spec: &SpecFile,
    load: LoadShape<'_>,
) -> Result<(Snapshot, PlanPolicy), FileError> {
    let graph = graph(fleet)?;
    let mut shapes: BTreeMap<&str, Result<Arc<Shape>, String>> = BTreeMap::new();
    let mut wanted = Vec::with_capacity(spec.deployments.len());
    for (at, deployment) in spec.deployments.iter().enumerate() {
        let path = format!("deployments[{at}]");
        if let Err(error) = deployment.check() {
            return wrong(format!("{path}.{}", error.field), error.detail);
        }
        if spec.deployments[..at].iter().any(|other| other.name == deployment.name) {
            return wrong(
                format!("{path}.name"),
                format!("two deployments are called {:?}", deployment.name),
            );
        }
        if let crate::deployment::Machines::Pinned(names) = &deployment.machines
            && let Some(name) = names.iter().find(|name| graph.find(name).is_none())
        {
            return wrong(format!("{path}.machines.pinned"), format!("no machine is called {name:?}"));
        }
        let name = deployment.model.as_str();
        if !shapes.contains_key(name) {
            let entry = spec.models.get(name).or_else(|| fleet.models.get(name));
            let described = match entry.map(ModelEntry::described) {
                Some(Ok(Some(shape))) => Ok(Arc::new(shape)),
                Some(Err(detail)) => return wrong(format!("models.{name}"), detail),
                _ => match load(name, entry) {
                    Ok(shape) => Ok(Arc::new(shape)),
                    Err(detail) => return wrong(format!("{path}.model"), detail),
                },
            };
            shapes.insert(name, described);
        }
        let demand = spec.demand.get(&deployment.name).or_else(|| fleet.demand.get(&deployment.name));
        let demand = demand.map_or(Demand::default(), |d| Demand {
            requests_per_s: d.requests_per_s,
            refused_per_s: d.refused_per_s,
            tokens_per_request: d.tokens_per_request,
        });
        wanted.push(Wanted { spec: deployment.clone(), shape: shapes[name].clone(), demand });
    }
    for name in spec.demand.keys().chain(fleet.demand.keys()) {
        if !wanted.iter().any(|wanted| wanted.spec.name == *name) {
            return wrong(format!("demand.{name}"), "no deployment is called so");
        }
    }
    let now = Micros::from_secs(1 << 32);
    let running = running(fleet, &graph, &wanted, now)?;
    Ok((Snapshot { fleet: graph, wanted, running, now }, policy(&fleet.policy)?))
}

fn policy(entry: &PolicyEntry) -> Result<PlanPolicy, FileError> {
    let default = PlanPolicy::default();
    let share = |field: &str, value: Option<f64>, otherwise: f64| match value {
        None => Ok(otherwise),
        Some(value) if (0.0..=1.0).contains(&value) => Ok(value),
        Some(value) => wrong(format!("policy.{field}"), format!("{value}; 0 to 1 are allowed")),
    };
    Ok(PlanPolicy {
        head_room: share("head_room", entry.head_room, default.head_room)?,
        dwell: entry.dwell_s.map_or(default.dwell, |s| Micros::from_secs(s.min(1 << 31))),
        moves_max: entry.moves_max,
        loading_max: entry.loading_max,
        utilisation: share("utilisation", entry.utilisation, default.utilisation)?.max(0.01),
        utilisation_min: share("utilisation_min", entry.utilisation_min, default.utilisation_min)?,
        ranks_max: entry.ranks_max.unwrap_or(default.ranks_max).clamp(1, 64),
        horizon_s: default.horizon_s,
        from_neighbours: default.from_neighbours,
    })
}

fn running(
    fleet: &FleetFile,
    graph: &Fleet,
    wanted: &[Wanted],
    now: Micros,
) -> Result<Vec<Running>, FileError> {
    let mut running = Vec::with_capacity(fleet.running.len());
    for (at, entry) in fleet.running.iter().enumerate() {
        let path = format!("running[{at}]");
        let Some(deployment) = wanted.iter().position(|wanted| wanted.spec.name == entry.deployment) else {
            return wrong(
                format!("{path}.deployment"),
                format!("no deployment is called {:?}", entry.deployment),
            );
        };
        let mut ranks = Vec::new();
        for rank in &entry.ranks {
            let (name, device) = match graph.find(rank) {
                Some(_) => (rank.as_str(), None),
                None => rank.rsplit_once('/').map_or((rank.as_str(), None), |(n, d)| (n, Some(d))),
            };
            let machine = graph.find(name);
            let device = machine.and_then(|machine| {
                let devices = &graph.machines[machine as usize].devices;
                device.map_or(Some(0), |wanted| devices.iter().position(|d| d.name == wanted))
            });
            match (machine, device) {
                (Some(machine), Some(device)) => ranks.push((machine, device as u16)),
                _ => {
                    return wrong(
                        format!("{path}.ranks"),
                        format!("no machine or device is called {rank:?}"),
                    );
                }
            }
        }
        let age = Micros::from_secs(entry.age_s.unwrap_or(3600).min(1 << 31));
        let since = now.saturating_sub(age);
        running.push(Running { deployment, ranks, ready: entry.ready, since, stages: None });
    }
    Ok(running)
}

fn graph(file: &FleetFile) -> Result<Fleet, FileError> {
    if file.machines.is_empty() || file.machines.len() > MACHINES_MAX {
        return wrong(
            "machines",
            format!("{} machines; 1 to {MACHINES_MAX} are allowed", file.machines.len()),
        );
    }
    let mut numbers: BTreeMap<&str, u32> = BTreeMap::new();
    let mut machines = Vec::with_capacity(file.machines.len());
    for (at, entry) in file.machines.iter().enumerate() {
        let machine = machine(at, entry)?;
        if numbers.insert(&entry.name, at as u32).is_some() {
            return wrong(
                format!("machines[{at}].name"),
                format!("two machines are called {:?}", entry.name),
            );
        }
        machines.push(machine);
    }
    let number = |path: String, name: &String| match numbers.get(name.as_str()) {
        Some(number) => Ok(*number),
        None => wrong(path, format!("no machine is called {name:?}")),
    };
    let mut links = Links::new(machines.len());
    for (at, entry) in file.links.iter().enumerate() {
        let from = number(format!("links[{at}].from"), &entry.from)?;
        let to = number(format!("links[{at}].to"), &entry.to)?;
        links.add(from, to, entry.link.link());
        if entry.both {
            links.add(to, from, entry.link.link());
        }
    }
    for (at, entry) in file.networks.iter().enumerate() {
        let members = match &entry.machines {
            None => (0..machines.len() as u32).collect(),
            Some(names) => names
                .iter()
                .map(|name| number(format!("networks[{at}].machines"), name))
                .collect::<Result<Vec<u32>, FileError>>()?,
        };
        links.add_network(members, entry.link.link());
    }
    Ok(Fleet { machines, links })
}

fn machine(at: usize, entry: &MachineEntry) -> Result<Machine, FileError> {
    let path = |field: &str| format!("machines[{at}].{field}");
    if entry.name.is_empty() {
        return wrong(path("name"), "a machine without a name");
    }
    let device = |name: &str, memory: u64, gb: Option<f64>, tflops: Option<f64>| {
        let bandwidth = gb.unwrap_or(MEMORY_GB_PER_S).max(0.001) * 1e9;
        let flops = tflops.map_or(bandwidth * FLOPS_PER_BYTE, |tflops| tflops.max(0.0001) * 1e12);
        Device { name: name.to_owned(), memory, bandwidth, flops, host_bandwidth: 0.0 }
    };
    let devices = match (entry.memory, entry.devices.as_slice()) {
        (Some(memory), []) => vec![device("cpu0", memory.0, entry.memory_gb_per_s, entry.tflops)],
        (None, []) => return wrong(path("memory"), "say how much memory models may take, or list devices"),
        (None, devices) => {
            let of = |d: &DeviceEntry| {
                let gb = d.memory_gb_per_s.or(entry.memory_gb_per_s);
                device(&d.name, d.memory.0, gb, d.tflops.or(entry.tflops))
            };
            devices.iter().map(of).collect()
        }
        (Some(_), _) => return wrong(path("memory"), "say memory, or devices with their own"),
    };
    let measured = |(name, m): (&String, &MeasuredEntry)| {
        let MeasuredEntry { decode_tokens_per_s, prefill_tokens_per_s } = *m;
        (name.clone(), Measured { decode_tokens_per_s, prefill_tokens_per_s })
    };
    Ok(Machine {
        name: entry.name.clone(),
        online: entry.online,
        managed: entry.managed,
        resting: None,
        labels: entry.labels.clone(),
        devices,
        on_disk: entry.on_disk.clone(),
        loaded: entry.loaded.clone(),
        disk: entry.disk_gb_per_s.unwrap_or(DISK_GB_PER_S).max(0.001) * 1e9,
        // Whoever asks "what if" has not said how full its disks are.
        lends: entry.on_disk.iter().chain(&entry.loaded).cloned().collect(),
        fetch_room: u64::MAX,
        download: entry.download_mbit_per_s.unwrap_or(DOWNLOAD_MBIT_PER_S).max(0.0) * 1e6 / 8.0,
        measured: entry.measured.iter().map(measured).collect(),
    })
}
