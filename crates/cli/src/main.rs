//! The binary `phalanx`: reads the command line, puts the shells together, and starts one of them.
//!
//! One file per verb. What it is *not*: a place where anything is decided; a verb reads its arguments, calls a crate
//! and prints. Start with [`up`], which starts a whole fleet on this machine.

mod audit;
mod bench;
mod chat;
mod client;
mod coordinator;
mod declared;
mod deploy;
mod discovery;
mod doctor;
mod explain;
mod keys;
mod lending;
mod logits;
mod models;
mod otlp;
mod place;
mod plan;
mod prices;
mod provider;
mod ranks;
mod ready;
mod receipt;
mod run;
mod serving;
mod settings;
mod shutdown;
mod simulate;
mod status;
mod terminal;
mod topology;
mod up;
mod usage;
mod why;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

// Many small, short-lived allocations a token: see `bench scenarios`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(name = "phalanx", version, about = "One private LLM service out of all the machines you have")]
#[command(after_help = "Start with `phalanx up`: a whole fleet on this machine, with a model in it.")]
struct Arguments {
    /// What to log on standard error, as in `info` or `coordinator=debug,warn`.
    #[arg(long, global = true, env = "PHALANX_LOG", value_name = "FILTER")]
    log: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a whole fleet on this machine: a coordinator, two providers, the bundled model.
    Up(up::Options),
    /// Start a coordinator: the control plane and the API.
    Coordinator(coordinator::Options),
    /// Offer this machine to a coordinator.
    Provider(Box<provider::Options>),
    /// Take this machine's provider out of service for a time: what runs is finished first.
    Pause(lending::PauseOptions),
    /// End this machine's pause.
    Resume(lending::ResumeOptions),
    /// Talk to a model.
    Chat(chat::Options),
    /// Answer one prompt with the engine alone: no network, no coordinator.
    Run(run::Options),
    /// Print a model's logits after given tokens.
    Logits(logits::Options),
    /// Show machines, models and instances, and why any of them takes no requests.
    Status(status::Options),
    /// Say of one of the last requests why it went where it went, why then, or why it was refused.
    Explain(explain::Options),
    /// Say why a machine gets work, or does not.
    Why(why::Options),
    /// Say what should run, and see how it is: deployments of models on managed machines.
    #[command(subcommand)]
    Deploy(deploy::Verb),
    /// Say where deployments would run on a fleet that a file describes, how fast, and why nowhere else.
    Plan(plan::Options),
    /// Say what a policy would do with traffic; or live many fleets' lives with faults, from seeds.
    Simulate(simulate::Options),
    /// Show what a machine is connected with.
    #[command(subcommand)]
    Topology(topology::Verb),
    /// List, inspect and make models.
    #[command(subcommand)]
    Models(models::Verb),
    /// Create, list and revoke API keys.
    #[command(subcommand)]
    Keys(keys::Verb),
    /// Show what each key used of each model.
    Usage(usage::Options),
    /// Show a request's receipt, or check one.
    #[command(subcommand)]
    Receipt(receipt::Verb),
    /// Show or set what tokens cost.
    Prices(prices::Options),
    /// Show what operators did.
    Audit(audit::Options),
    /// Measure: the ten scenarios, or the engine.
    #[command(subcommand)]
    Bench(bench::Verb),
    /// Take part in a group that `run`, `logits` or `bench group` leads: they start it.
    #[command(hide = true)]
    Rank,
    /// Check this machine and this installation, and say what to do about what is wrong.
    Doctor(doctor::Options),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    terminal::start_log(arguments.log.as_deref());
    let result = match arguments.command {
        Command::Up(options) => serving::serve(up::run(options)),
        Command::Coordinator(options) => serving::serve(coordinator::run(options)),
        Command::Provider(options) => serving::serve(provider::run(*options)),
        Command::Pause(options) => lending::pause(&options),
        Command::Resume(options) => lending::resume(&options),
        Command::Chat(options) => serving::block_on(chat::run(options)),
        Command::Run(options) => run::run(&options),
        Command::Logits(options) => logits::run(&options),
        Command::Status(options) => serving::block_on(status::run(options)),
        Command::Explain(options) => serving::block_on(explain::run(options)),
        Command::Why(options) => serving::block_on(why::run(options)),
        Command::Deploy(verb) => serving::block_on(deploy::run(verb)),
        Command::Plan(options) => plan::run(&options),
        Command::Simulate(options) => simulate::run(&options),
        Command::Topology(verb) => topology::run(verb),
        Command::Models(verb) => models::run(verb),
        Command::Keys(verb) => serving::block_on(keys::run(verb)),
        Command::Usage(options) => serving::block_on(usage::run(options)),
        Command::Receipt(verb) => serving::block_on(receipt::run(verb)),
        Command::Prices(options) => serving::block_on(prices::run(options)),
        Command::Audit(options) => serving::block_on(audit::run(options)),
        Command::Bench(verb) => serving::block_on(bench::run(verb)),
        Command::Rank => ::bench::ranks::serve().map(|()| ExitCode::SUCCESS),
        Command::Doctor(options) => serving::block_on(doctor::run(options)),
    };
    match result {
        Ok(code) => code,
        Err(error) if terminal::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
