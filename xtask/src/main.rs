//! The workspace's own tool: `cargo xtask test` proves the tree, the rest makes or checks one thing each.
//!
//! What it is *not*: part of the product. Nothing under `crates/` may name it. Start with [`test`] for what a landing
//! must pass, [`walls`] for which crate may name which, [`tidy`] for the house's habits.

#![allow(clippy::print_stdout, reason = "a command-line tool speaks on standard output")]

mod codegen;
mod shell;
mod soak;
mod source;
mod test;
mod tidy;
mod train;
mod walls;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The workspace's own tool")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Everything a landing must pass: walls, tidy, format, lints, tests, foreign clients. Installs what it misses.
    Test(test::Options),
    /// What CI runs: `test`, with a closing summary.
    Ci(test::Options),
    /// Check files, names and habits.
    Tidy,
    /// Check which crate names which, and what pure crates may touch.
    Walls,
    /// Write what is generated (docs/commands.md from the binary's own help); `--check` only compares.
    Codegen {
        /// Fail where a file is stale instead of writing it.
        #[arg(long)]
        check: bool,
    },
    /// Long runs of what CI runs shortly.
    #[command(subcommand)]
    Soak(soak::Options),
    /// Train the bundled model from its seed (about an hour on two cores) into models/bundled.
    TrainBundledModel(train::Options),
}

fn main() -> ExitCode {
    let root = source::root();
    let result = match Arguments::parse().command {
        Command::Test(options) | Command::Ci(options) => test::run(&root, &options),
        Command::Tidy => report("tidy", tidy::check(&root)),
        Command::Walls => report("walls", walls::check(&root)),
        Command::Codegen { check } => codegen::run(&root, check),
        Command::Soak(options) => soak::run(&root, &options),
        Command::TrainBundledModel(options) => train::run(&root, &options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints the complaints of a check and turns them into one error.
fn report(name: &str, complaints: anyhow::Result<Vec<String>>) -> anyhow::Result<()> {
    let complaints = complaints?;
    for complaint in &complaints {
        println!("{name}: {complaint}");
    }
    match complaints.len() {
        0 => {
            println!("{name}: nothing to complain of");
            Ok(())
        }
        count => anyhow::bail!("{name}: {count} complaints"),
    }
}
