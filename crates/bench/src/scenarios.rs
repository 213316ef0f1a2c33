//! The ten scenarios, and an overload beside them: real coordinator, real providers, real sockets, sealing on, the
//! ledger on disk, cold start included.
//!
//! Each scenario starts processes of its own from this very program, with data folders of their own, and ends them.

pub(crate) mod answer;
mod assertion;
pub(crate) mod fleet;
mod load;
mod overload;
mod plan;
pub(crate) mod prompt;
mod report;

use std::time::Duration;

use anyhow::{Context, bail};

pub(crate) use self::assertion::Assertion;
pub(crate) use self::report::print;
use crate::machine::Machine;
use crate::scenarios::fleet::Fleet;
use crate::scenarios::plan::Scenario;
use crate::scenarios::report::{Report, ScenarioReport};
use crate::tell::{tell, unless_interrupted};

/// What to run and how to tell it.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Options {
    /// Run only scenarios whose name contains this. May be repeated. `overload` is one of them.
    #[arg(long, value_name = "NAME")]
    pub only: Vec<String>,
    /// The smallest size, without assertions on speed: whether it works at all.
    #[arg(long)]
    pub quick: bool,
    /// Leave out the overload scenario.
    #[arg(long)]
    pub no_overload: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// List the scenarios, and end.
    #[arg(long)]
    pub list: bool,
}

/// Runs the scenarios and prints the report; whether every assertion held.
///
/// # Errors
/// A name that is no scenario's, or processes that do not start.
pub async fn run(options: Options) -> anyhow::Result<bool> {
    let wanted =
        |name: &str| options.only.is_empty() || options.only.iter().any(|part| name.contains(part.as_str()));
    let scenarios: Vec<Scenario> = plan::scenarios().into_iter().filter(|s| wanted(s.name)).collect();
    let overload = wanted(overload::NAME) && !options.no_overload;
    if scenarios.is_empty() && !overload {
        bail!(
            "no scenario's name contains {:?}; `bench scenarios --list` shows them",
            options.only.join(" or ")
        );
    }
    if options.list {
        let names: Vec<&str> =
            scenarios.iter().map(|s| s.name).chain(overload.then_some(overload::NAME)).collect();
        report::print(&names.join("\n"))?;
        return Ok(true);
    }
    let mut report = Report::new(Machine::here(), options.quick);
    unless_interrupted(run_all(&scenarios, overload, &options, &mut report)).await?;
    report.finish();
    tell(options.json, &report, Report::table)?;
    Ok(report.pass)
}

async fn run_all(
    scenarios: &[Scenario],
    overload: bool,
    options: &Options,
    report: &mut Report,
) -> anyhow::Result<()> {
    for scenario in scenarios {
        let scenario = if options.quick { scenario.quick() } else { scenario.clone() };
        eprintln!("{} ...", scenario.name);
        let done = run_one(&scenario, options.quick).await.with_context(|| scenario.name.to_owned())?;
        eprintln!("{} {}", scenario.name, done.line());
        report.scenarios.push(done);
    }
    if overload {
        eprintln!("{} ...", overload::NAME);
        let done = overload::run(options.quick).await.context(overload::NAME)?;
        eprintln!("{} {}", overload::NAME, done.line());
        report.overload = Some(done);
    }
    Ok(())
}

async fn run_one(scenario: &Scenario, quick: bool) -> anyhow::Result<ScenarioReport> {
    let fleet = Fleet::start(&scenario.providers, &[]).await?;
    let keys = fleet.user_keys(scenario.users).await?;
    let outcome = load::closed_loop(&fleet, scenario, &keys).await;
    let segments = fleet.segments(scenario.requests as u64, Duration::from_secs(10)).await;
    let started = fleet.started_after;
    let logs = fleet.end().await;
    let segments = segments.with_context(|| format!("reading the segments\n{logs}"))?;
    let assertions = assertion::of_scenario(scenario, &outcome, &segments, quick);
    let mut report = ScenarioReport::new(scenario, &outcome, segments, assertions, started);
    if !report.pass() {
        report.logs = Some(logs);
    }
    Ok(report)
}
