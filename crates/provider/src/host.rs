//! What computes an instance's answers: our own engine, somebody else's server behind an OpenAI-compatible API, or a
//! bench's stand-in.

use base::AttemptId;
use engine::{Engine, EngineReport, Refusal, Sink};
use wire::job::Job;

use crate::cadence::Cadence;
use crate::upstream::Upstream;

/// Either kind. Cheap to clone.
#[derive(Clone)]
pub(crate) enum Host {
    /// Ours, in this process.
    Engine(Engine),
    /// Another server.
    Upstream(Upstream),
    /// Nothing: a bench's stand-in.
    Cadence(Cadence),
}

impl Host {
    /// As [`Engine::submit`].
    pub(crate) fn submit(&self, attempt: AttemptId, job: Job, sink: Box<dyn Sink>) -> Result<(), Refusal> {
        match self {
            Self::Engine(engine) => engine.submit(attempt, job, sink),
            Self::Upstream(upstream) => upstream.submit(attempt, job, sink),
            Self::Cadence(cadence) => cadence.submit(attempt, &job, sink),
        }
    }

    /// As [`Engine::cancel`].
    pub(crate) fn cancel(&self, attempt: AttemptId) {
        match self {
            Self::Engine(engine) => engine.cancel(attempt),
            Self::Upstream(upstream) => upstream.cancel(attempt),
            Self::Cadence(cadence) => cadence.cancel(attempt),
        }
    }

    /// As [`Engine::room_again`].
    pub(crate) fn room_again(&self) {
        match self {
            Self::Engine(engine) => engine.room_again(),
            Self::Upstream(upstream) => upstream.room_again(),
            // It looks by itself.
            Self::Cadence(_) => {}
        }
    }

    /// As [`Engine::load_now`].
    pub(crate) fn load_now(&self) -> EngineReport {
        match self {
            Self::Engine(engine) => engine.load_now(),
            Self::Upstream(upstream) => upstream.load_now(),
            Self::Cadence(cadence) => cadence.load_now(),
        }
    }

    /// Why it takes nothing at the moment, where it may again later.
    pub(crate) fn down(&self) -> Option<String> {
        match self {
            Self::Engine(_) | Self::Cadence(_) => None,
            Self::Upstream(upstream) => upstream.down(),
        }
    }

    /// As [`Engine::notice`].
    pub(crate) fn notice(&self) -> Option<String> {
        match self {
            Self::Engine(engine) => engine.notice().map(str::to_owned),
            Self::Upstream(upstream) => Some(upstream.notice()),
            Self::Cadence(_) => Some("answers are a bench's stand-in: nothing is computed".to_owned()),
        }
    }

    /// Ends it: attempts in flight fail. Ours joins its threads.
    pub(crate) fn stop(&self) {
        match self {
            Self::Engine(engine) => engine.stop(),
            Self::Upstream(upstream) => upstream.stop(),
            Self::Cadence(cadence) => cadence.stop(),
        }
    }
}
