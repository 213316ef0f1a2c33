//! An engine for one command: alone, or over several ranks of this machine.

use anyhow::Context;
use base::ModelName;
use bench::ranks::{ProcessGroup, Wanted};
use engine::group::{GroupMode, LocalGroup};
use engine::{Engine, EngineConfig, LoadOptions, LoadedModel, ModelSource};

/// Over how many ranks a model is divided, and how.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct GroupOptions {
    /// Divide the model over so many ranks.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    ranks: u32,
    /// tensor (slices of every layer), pipeline (some layers each), stages x ranks as in 2x2, or auto.
    #[arg(long, default_value = "auto", requires = "ranks")]
    mode: GroupMode,
    /// memory: threads of this process; link: processes over sealed links.
    #[arg(long, default_value = "memory", value_parser = ["memory", "link"], requires = "ranks")]
    transport: String,
}

/// An engine, and the other ranks where there are any.
pub(crate) enum Running {
    Alone(Engine),
    Threads(LocalGroup),
    Processes(ProcessGroup),
}

impl Running {
    /// Starts what the options ask for. `model` is what `source` holds.
    pub(crate) fn start(
        name: ModelName,
        (source, model, options): (&ModelSource, LoadedModel, &LoadOptions),
        config: EngineConfig,
        group: &GroupOptions,
    ) -> anyhow::Result<Self> {
        let ranks = group.ranks as usize;
        if ranks == 1 {
            return Ok(Self::Alone(Engine::start(name, model, config)?));
        }
        drop(model);
        if group.transport == "memory" {
            let group = LocalGroup::start(name, (source, options), &config, (group.mode, ranks));
            return Ok(Self::Threads(group.context("starting the group")?));
        }
        let (options, mode) = (options.clone(), group.mode);
        let wanted = Wanted { name, source, options, config, mode, ranks, pinned: false };
        Ok(Self::Processes(ProcessGroup::start(&wanted).context("starting the group")?))
    }

    /// What takes requests.
    pub(crate) fn engine(&self) -> &Engine {
        match self {
            Self::Alone(engine) => engine,
            Self::Threads(group) => group.engine(),
            Self::Processes(group) => group.engine(),
        }
    }

    /// Ends it, and every rank with it.
    pub(crate) fn stop(self) -> anyhow::Result<()> {
        match self {
            Self::Alone(engine) => engine.stop(),
            Self::Threads(group) => {
                group.stop();
            }
            Self::Processes(group) => {
                for account in group.stop().1 {
                    account?;
                }
            }
        }
        Ok(())
    }
}
