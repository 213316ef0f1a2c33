//! `phalanx bench place`: how long the planner takes, for 10,000 machines and 20 models, and for the best group of 64.

use std::time::Instant;

use base::Rng;
use fleet::plan::file::{FleetFile, SpecFile, read};
use fleet::plan::{PlanPolicy, Shape, Snapshot, plan};
use serde::Serialize;
use serde_json::{Value, json};

use crate::scenarios::print;

const FLEET_MS_MAX: f64 = 50.0;
const GROUP_MS_MAX: f64 = 10.0;

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Machines of the large fleet.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=200_000))]
    machines: u64,
    /// Models on it.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=200))]
    models: u64,
    /// Plans that the median is taken of.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u64).range(1..=1000))]
    runs: u64,
    /// A tenth of the machines, no assertion.
    #[arg(long)]
    quick: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    what: String,
    median_ms: f64,
    max_ms: f64,
    goal_ms: f64,
    placements: usize,
    passed: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    rows: Vec<Row>,
    passed: bool,
}

/// Measures, prints, and says whether the assertions hold.
///
/// # Errors
/// Standard output is closed.
pub fn run(options: &Options) -> anyhow::Result<bool> {
    let machines = if options.quick { options.machines.min(1000) } else { options.machines };
    let runs = options.runs as usize;
    let mut rows = Vec::new();
    let (mut snapshot, policy) = large(machines, options.models)?;
    let what = format!("{machines} machines, {} models, an empty fleet", options.models);
    let (row, decided) = measure(what, (&snapshot, &policy), runs, FLEET_MS_MAX);
    rows.push(row);
    let run = |placement: &fleet::plan::Placement| fleet::plan::Running {
        deployment: placement.deployment,
        ranks: placement.ranks.iter().map(|rank| (rank.machine, rank.device)).collect(),
        ready: true,
        since: base::Micros::ZERO,
        stages: Some(placement.stages()),
    };
    snapshot.running = decided.placements.iter().map(run).collect();
    // A hundredth of the machines is lost.
    for machine in snapshot.fleet.machines.iter_mut().step_by(100) {
        machine.online = false;
    }
    let what = format!("{machines} machines, {} models, running, one machine in 100 lost", options.models);
    rows.push(measure(what, (&snapshot, &policy), runs, FLEET_MS_MAX).0);
    let (snapshot, policy) = sixty_four()?;
    rows.push(
        measure("best group out of 64 machines".to_owned(), (&snapshot, &policy), runs, GROUP_MS_MAX).0,
    );
    let passed = options.quick || rows.iter().all(|row| row.passed);
    let report = Report { rows, passed };
    let text =
        if options.json { serde_json::to_string_pretty(&report)? } else { table(&report, options.quick) };
    print(&text)?;
    Ok(report.passed)
}

fn table(report: &Report, quick: bool) -> String {
    let mut out = String::from(
        "The planner, in milliseconds (one thread)\n\n   median       max      goal  placements\n",
    );
    for row in &report.rows {
        out.push_str(&format!(
            "{:>9.2} {:>9.2} {:>9.0} {:>11}  {}\n",
            row.median_ms, row.max_ms, row.goal_ms, row.placements, row.what
        ));
    }
    out.push_str(match (quick, report.passed) {
        (true, _) => "\nquick: nothing is asserted",
        (false, true) => "\nPASS medians are within their goals",
        (false, false) => "\nFAIL a median is above its goal",
    });
    out
}

fn measure(
    what: String,
    (snapshot, policy): (&Snapshot, &PlanPolicy),
    runs: usize,
    goal_ms: f64,
) -> (Row, fleet::plan::Plan) {
    let mut took = Vec::with_capacity(runs);
    let mut decided = plan(snapshot, policy);
    for _ in 0..runs {
        let start = Instant::now();
        decided = plan(snapshot, policy);
        took.push(start.elapsed().as_secs_f64() * 1e3);
    }
    took.sort_by(f64::total_cmp);
    let median_ms = took[took.len() / 2];
    let max_ms = took.last().copied().unwrap_or(0.0);
    let passed = median_ms <= goal_ms && !decided.placements.is_empty();
    (Row { what, median_ms, max_ms, goal_ms, placements: decided.placements.len(), passed }, decided)
}

fn model(layers: u64, hidden: u64) -> Value {
    json!({"bits_per_weight": 4.5, "shape": {"layers": layers, "hidden": hidden, "heads": hidden / 128, "kv_heads": 8,
        "feed_forward": hidden * 7 / 2, "vocabulary": 128_256}})
}

/// Sites of 40 machines on a network each, models from 1 to 120 billion weights, demand that wants most of the fleet.
fn large(machines: u64, models: u64) -> anyhow::Result<(Snapshot, PlanPolicy)> {
    let mut rng = Rng::new(7);
    let sizes = [(16, 2048), (32, 4096), (40, 5120), (64, 5120), (80, 8192)];
    let entries: Vec<Value> = (0..machines)
        .map(|at| {
            let kind = rng.below(5) as usize;
            let on_disk: Vec<String> = (0..1 + rng.below(3)).map(|_| format!("model{}", rng.below(models))).collect();
            let memory = format!("{} GiB", [16, 24, 32, 64, 128][kind]);
            let gb_per_s = [100, 120, 270, 400, 800][kind] + rng.below(50);
            json!({"name": format!("m{at}"), "memory": memory, "memory_gb_per_s": gb_per_s, "on_disk": on_disk})
        })
        .collect();
    let networks: Vec<Value> = (0..machines.div_ceil(40))
        .map(|site| {
            let members: Vec<String> =
                (site * 40..((site + 1) * 40).min(machines)).map(|at| format!("m{at}")).collect();
            json!({"machines": members, "rtt_ms": 0.3, "gbit_per_s": 10})
        })
        .collect();
    let mut described = serde_json::Map::new();
    let mut deployments = Vec::new();
    let mut demand = serde_json::Map::new();
    for at in 0..models {
        let (layers, hidden) = sizes[(at % 5) as usize];
        described.insert(format!("model{at}"), model(layers, hidden));
        let ceiling = if at % 5 == 4 { 10 } else { machines * 2 / models };
        deployments.push(json!({"name": format!("d{at}"), "model": format!("model{at}"), "context": 4096,
            "replicas": {"floor": 2, "ceiling": ceiling.max(2), "priority": at % 3}}));
        demand.insert(format!("d{at}"), json!({"requests_per_s": 200, "refused_per_s": 20}));
    }
    snapshot(
        json!({"machines": entries, "networks": networks, "models": described, "demand": demand}),
        json!({"deployments": deployments}),
    )
}

/// 64 unlike machines, some with cables between them, and a model that eight of them hold together.
fn sixty_four() -> anyhow::Result<(Snapshot, PlanPolicy)> {
    let mut rng = Rng::new(9);
    let machines: Vec<Value> = (0..64)
        .map(|at| json!({"name": format!("m{at}"), "memory": format!("{} GiB", 12 + rng.below(12)), "memory_gb_per_s": 100 + rng.below(300)}))
        .collect();
    let mut links = Vec::new();
    for at in 0..64u64 {
        for step in 1..4 {
            if at / 4 == ((at + step) % 64) / 4 {
                links.push(json!({"from": format!("m{at}"), "to": format!("m{}", (at + step) % 64), "kind": "thunderbolt"}));
            }
        }
    }
    let networks = json!([{"rtt_ms": 0.4, "gbit_per_s": 10}]);
    snapshot(
        json!({"machines": machines, "links": links, "networks": networks, "models": {"huge": model(80, 8192)}}),
        json!({"deployments": [{"name": "d", "model": "huge", "context": 4096, "max_batch": 2}]}),
    )
}

fn snapshot(fleet: Value, spec: Value) -> anyhow::Result<(Snapshot, PlanPolicy)> {
    let fleet: FleetFile = serde_json::from_value(fleet)?;
    let spec: SpecFile = serde_json::from_value(spec)?;
    let unknown = |name: &str, _: Option<&_>| -> Result<Shape, String> { Err(format!("no {name}")) };
    Ok(read(&fleet, &spec, &unknown)?)
}
