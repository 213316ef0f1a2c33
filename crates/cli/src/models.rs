//! `phalanx models`: list, inspect, fetch, remove and make models.

mod budget;
mod inspect;
mod list;
mod place;
mod pull;
mod remove;
mod synth;

use std::process::ExitCode;

use crate::serving;

#[derive(clap::Subcommand)]
pub(crate) enum Verb {
    /// List the models that are in this program, on this machine, and those that the coordinator serves.
    List(list::Options),
    /// Tell a model's family, format, size, and the memory it needs.
    Inspect(inspect::Options),
    /// Fetch a model from the Hugging Face hub, or from any server that speaks its language.
    Pull(pull::Options),
    /// Remove a model that was fetched; one that a provider of this machine holds stays.
    Remove(remove::Options),
    /// Show or set what models that were fetched may take of the disk together.
    Budget(budget::Options),
    /// Write a model with random weights, of any shape, for tests and benches.
    Synth(synth::Options),
}

pub(crate) fn run(verb: Verb) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::List(options) => serving::block_on(list::run(options)),
        Verb::Inspect(options) => inspect::run(&options),
        Verb::Pull(options) => serving::block_on(pull::run(options)),
        Verb::Remove(options) => remove::run(&options),
        Verb::Budget(options) => budget::run(&options),
        Verb::Synth(options) => synth::run(&options),
    }
}
