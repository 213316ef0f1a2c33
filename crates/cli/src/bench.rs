//! `phalanx bench`: the ten scenarios on real processes, or the engine alone.

use std::process::ExitCode;

#[derive(clap::Subcommand)]
pub(crate) enum Verb {
    /// Ten scenarios: real coordinator, real providers, real sockets, sealing on, the ledger on disk.
    Scenarios(bench::scenarios::Options),
    /// One engine: decode, prefill, batches, loading, memory.
    Engine(bench::engine::Options),
    /// One model over several ranks against one rank alone: decode, prefill, where a step's time goes, what a sum takes.
    Group(bench::group::Options),
    /// Streams while providers are killed, and the coordinator once: none may be lost or differ.
    Failover(bench::failover::Options),
    /// What the way through coordinator and provider adds to an engine's own time, at rates of requests.
    Gateway(bench::gateway::Options),
    /// An OpenAI-compatible server that answers at a fixed pace: what gateways are compared in front of.
    #[command(hide = true)]
    StandIn(bench::gateway::StandInOptions),
    /// Where a request goes: the time that a decision takes, for pools of 10 to 100,000 instances.
    Route(bench::route::Options),
    /// Where models go: the time that a plan takes, for 10,000 machines, and for the best group of 64.
    Place(bench::place::Options),
    /// A deployment whose machines and coordinator are killed: how long until it is placed again, and serves.
    Reconcile(bench::reconcile::Options),
    /// What a preview says, against where a deployment is then placed and how fast it then is.
    Deploy(bench::deploy::Options),
    /// Two models of unlike speed, with a machine for each and with both on both: what one costs the other.
    Isolation(bench::isolation::Options),
}

pub(crate) async fn run(verb: Verb) -> anyhow::Result<ExitCode> {
    let passed = match verb {
        Verb::Scenarios(options) => bench::scenarios::run(options).await?,
        Verb::Engine(options) => tokio::task::spawn_blocking(move || bench::engine::run(&options)).await??,
        Verb::Group(options) => tokio::task::spawn_blocking(move || bench::group::run(&options)).await??,
        Verb::Failover(options) => bench::failover::run(options).await?,
        Verb::Gateway(options) => bench::gateway::run(options).await?,
        Verb::StandIn(options) => bench::gateway::stand_in(options).await?,
        Verb::Route(options) => tokio::task::spawn_blocking(move || bench::route::run(&options)).await??,
        Verb::Reconcile(options) => bench::reconcile::run(options).await?,
        Verb::Deploy(options) => bench::deploy::run(options).await?,
        Verb::Isolation(options) => bench::isolation::run(options).await?,
        Verb::Place(options) => tokio::task::spawn_blocking(move || bench::place::run(&options)).await??,
    };
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
