//! Taking an attempt: from a frame to a job in an engine, or a refusal that says why.

use std::sync::Arc;
use std::time::Duration;

use base::AttemptId;
use engine::Sink;
use tokio::sync::mpsc;
use trust::MachineKeys;
use wire::chunk::Chunk;
use wire::control::AttemptRefusal;
use wire::frame::FrameKind;
use wire::job::Job;
use wire::trace::Span;

use super::claim::Claim;
use super::kept::Kept;
use super::lane::Lane;
use super::outbox::{HOLD_MAX, Outbox};
use super::table::{Flight, Standing, Table};
use crate::instance::{Instances, Serving};

/// Why an attempt was not taken.
#[derive(Debug)]
pub(crate) enum Declined {
    /// Said to the coordinator.
    Refused { attempt: AttemptId, reason: AttemptRefusal, message: String },
    /// No attempt at all: counted against the session.
    Misread { detail: String },
}

/// What a session takes attempts with.
pub(crate) struct Intake<'a> {
    pub(crate) keys: &'a Arc<MachineKeys>,
    /// Where spans go, where anybody collects them.
    pub(crate) spans: Option<&'a mpsc::Sender<Span>>,
    pub(crate) instances: &'a Instances,
    pub(crate) table: &'a Table,
    pub(crate) lane: &'a Arc<Lane>,
    pub(crate) data_bytes_max: usize,
    pub(crate) draining: bool,
    /// Whether attempts outlive this session.
    pub(crate) reoffer: bool,
    /// Chunks that may be sent before there is credit.
    pub(crate) credit: Option<u64>,
}

impl Intake<'_> {
    /// Takes the attempt in `message`, or says why not.
    pub(crate) fn take(&self, message: &[u8]) -> Result<(), Declined> {
        let misread = |detail: String| Declined::Misread { detail };
        let (header, payload) = wire::frame::decode(message).map_err(|e| misread(e.to_string()))?;
        if header.kind != FrameKind::Attempt {
            return Err(misread(format!("a frame of kind {:?}, which only a provider sends", header.kind)));
        }
        let attempt = header.attempt();
        let refused = |reason, message: String| Declined::Refused { attempt, reason, message };
        match self.table.standing(attempt) {
            Standing::New => {}
            // A refusal would end the one that runs.
            Standing::Running => return Err(misread(format!("{attempt} came twice"))),
            Standing::Cancelled => {
                return Err(refused(AttemptRefusal::NotReady, "cancelled before it came".into()));
            }
        }
        if message.len() > self.data_bytes_max {
            return Err(refused(
                AttemptRefusal::TooLong,
                format!("{} bytes, over the session's limit of {}", message.len(), self.data_bytes_max),
            ));
        }
        if self.draining {
            return Err(refused(AttemptRefusal::NotReady, "this provider is leaving".into()));
        }
        let unreadable = |message: String| refused(AttemptRefusal::Unreadable, message);
        if header.counter != 0 {
            return Err(unreadable(format!("frame {} of an attempt, which has one frame", header.counter)));
        }
        let (encapsulated, ciphertext) =
            wire::frame::split_sealed_attempt(payload).map_err(|e| unreadable(e.to_string()))?;
        let (plain, sealer) = trust::open_attempt(self.keys, attempt, encapsulated, ciphertext)
            .map_err(|e| unreadable(e.to_string()))?;
        let mut job = Job::decode(&plain).map_err(|e| unreadable(e.to_string()))?;
        drop(plain);
        let (instance, engine) = match self.instances.serving(&job.ask.model) {
            Serving::Ready(instance, engine) => (instance, engine),
            Serving::NotNow(why) => return Err(refused(AttemptRefusal::NotReady, why)),
            Serving::Never => {
                // The name is the coordinator's own word, and no part of a prompt.
                let asked: String = job.ask.model.as_str().chars().take(100).collect();
                return Err(refused(AttemptRefusal::WrongModel, format!("no instance of {asked:?} is here")));
            }
        };
        let claim = Claim::new(self.keys, self.spans, attempt, &job);
        // Other ranks are told of what somebody collects, and of nothing else.
        job.ask.trace.take_if(|_| !claim.traces());
        let kept = Kept::new(self.reoffer, self.credit);
        let hold = Duration::from_millis(job.ask.hold_ms.into()).min(HOLD_MAX);
        let outbox = Outbox::new(attempt, self.lane, (sealer, claim), kept, hold);
        let flight = Flight { instance, engine: engine.clone(), outbox: Arc::clone(&outbox) };
        self.table.insert(attempt, flight);
        let sink = Box::new(AttemptSink { outbox: Arc::clone(&outbox) });
        match engine.submit(attempt, job, sink) {
            Ok(()) => {
                outbox.open();
                Ok(())
            }
            Err(refusal) => {
                outbox.void();
                self.table.remove(attempt);
                Err(refused(refusal.reason(), refusal.to_string()))
            }
        }
    }
}

/// Where an engine puts an answer.
struct AttemptSink {
    outbox: Arc<Outbox>,
}

impl Sink for AttemptSink {
    fn room(&self) -> bool {
        self.outbox.has_room()
    }

    fn deliver(&mut self, chunk: Chunk) {
        self.outbox.append(chunk);
    }

    fn failed(&mut self, message: &str) {
        self.outbox.fail(message);
    }

    fn refused(&mut self, refusal: &engine::Refusal) {
        self.outbox.refuse(refusal.reason(), &refusal.to_string());
    }
}

impl Drop for AttemptSink {
    fn drop(&mut self) {
        // Without effect where there was a last word. Where there was none, the coordinator must not wait for it.
        self.outbox.fail("the engine let go of the attempt without finishing it");
    }
}
