//! The one way of every request: reserved, queued, sealed, sent, answered, settled; with exactly one terminal.
//!
//! A request has a task of its own. What it says goes to its caller through a bounded channel of [`Event`]s, whatever
//! API the caller speaks; when the caller's end of the channel is gone, the task gives up the attempt and settles.

mod attempt;
mod event;
mod evidence;
mod gate;
mod ledger;
mod moves;
mod out;
mod spans;
mod work;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use base::{Epoch, InstanceId, MachineId, Micros, Tokens};
use fleet::{Ask, Enqueue, Priority, Refusal};
use store::Outcome;
use tokio::sync::mpsc;
use wire::admin::Class;
use wire::receipt::AttemptUsage;

use crate::core::{Core, Settling, span};
use crate::metrics::{Ended, Metrics};
use crate::pools::{Decision, Grant};
use crate::problem::Problem;
use crate::segments::Segment;
use event::Interrupt;
pub(crate) use event::{Delta, Event, Finished, Stop};
use ledger::Open;
use out::{Out, Unsent};
pub(crate) use work::{Delivery, Work};

/// Events that may wait for the connection. Small: what waits for a slow client waits in its attempt's channel,
/// whose bound is a knob.
const EVENTS_WAITING_MAX: usize = 32;

/// How often a request may be turned away for want of room that its pool believed in, before that counts as failure.
const BOUNCES_MAX: u32 = 64;

/// Whether a request that goes on avoids the machine that it was on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Avoid {
    /// No: it only had no room.
    No,
    /// No: it heard nothing of the request. Its connection had ended, and the pool was not told yet.
    Unheard,
    /// Its connection is gone, and with it its place in the pool. What comes back is another connection, and often another
    /// process, which is as good as any.
    Gone,
    /// It is there and is not ready. Others come first; where there are none it is waited for.
    WhileOthers,
    /// It is there and does not serve yet, or a group that it leads forms again: as [`Avoid::WhileOthers`], and a matter of
    /// time, not of tries.
    WhileItForms,
    /// It failed the request.
    Always,
}

/// How an attempt ended.
enum AttemptEnd {
    /// With its whole answer.
    Completed(Finished),
    /// By no fault of the request: it may go on elsewhere.
    Again(Avoid),
    /// And the request with it.
    Stop(Stop),
}

/// Serves a request; its caller reads the events. Dropping the receiver cancels it, unless it is kept: then the caller
/// may come back to it ([`Core::attach`]).
pub(crate) fn serve(core: &Arc<Core>, work: Work) -> mpsc::Receiver<Event> {
    let config = &core.config.requests;
    let (events, from) = match work.keep.as_ref().filter(|_| config.resume_us > Micros::ZERO) {
        None => {
            let (to, from) = mpsc::channel(EVENTS_WAITING_MAX);
            (Out::Caller(to), from)
        }
        Some(keep) => {
            let tape = core.streams.open(work.request, work.key.account, keep);
            let patience = (!keep.to_the_end).then(|| span(config.resume_us));
            let from = tape.play(&core.tasks, span(config.keepalive_us), span(config.reader_us_max));
            (Out::Tape { tape, patience }, from)
        }
    };
    let core_of_task = Arc::clone(core);
    core.tasks.spawn(async move {
        let request = Serving {
            core: core_of_task,
            work,
            events,
            told_us: AtomicU64::new(0),
            journal: Vec::new(),
            started: false,
            open: None,
            tried: 0,
            moved: 0,
            fruitless: 0,
            stranded: None,
            forming: None,
            life: None,
            lives_lost: Vec::new(),
            bounces: 0,
            excluded: Vec::new(),
            away: Vec::new(),
            resumed_at: 0,
            served: Vec::new(),
            serving: None,
            attempt_span: None,
            engine: None,
            settling: None,
        };
        Box::pin(request.run()).await;
    });
    from
}

/// A request on its way.
struct Serving {
    core: Arc<Core>,
    work: Work,
    events: Out,
    /// When the caller last heard anything, in microseconds after the request's arrival.
    told_us: AtomicU64,
    /// Tokens delivered so far: with the prompt, what makes the request resumable elsewhere.
    journal: Vec<u32>,
    /// Whether the caller was told of a first token.
    started: bool,
    /// From the moment it is worth a write until it is settled.
    open: Option<Open>,
    tried: u32,
    /// How often the answer went elsewhere after it had begun, and how often in a row for nothing.
    moved: u32,
    fruitless: u32,
    /// Since when nobody can go on with it.
    stranded: Option<Instant>,
    /// Since when what it was on forms again, or is not ready yet.
    forming: Option<Instant>,
    /// The group's life that the current attempt is on.
    life: Option<(InstanceId, Epoch)>,
    /// Lives of groups that ended while they had it. Each is a try, however often it was asked before its end was known.
    lives_lost: Vec<(InstanceId, Epoch)>,
    bounces: u32,
    excluded: Vec<MachineId>,
    /// Those of the excluded that only went away.
    away: Vec<MachineId>,
    /// Tokens that there were when the current attempt began.
    resumed_at: u32,
    /// The attempts that gave tokens, and the one that may.
    served: Vec<AttemptUsage>,
    serving: Option<AttemptUsage>,
    /// The span of the attempt under way, and when it began.
    attempt_span: Option<(u64, Instant)>,
    /// What its engine took, of an answer that one attempt gave.
    engine: Option<Duration>,
    /// Its caller has its answer, and the ledger not yet.
    settling: Option<Settling>,
}

impl Serving {
    async fn run(mut self) {
        self.core.metrics.running.inc();
        let ended = self.answer().await;
        self.core.metrics.running.dec();
        let outcome = match &ended {
            Ok(()) => Outcome::Completed,
            Err(Stop::CallerGone) => Outcome::Cancelled,
            Err(Stop::Failed(_, outcome)) => *outcome,
        };
        self.record(outcome);
        if let Err(Stop::Failed(problem, _)) = ended {
            let limit = span(self.core.config.requests.reader_us_max);
            self.events.fail(Event::Failed(Box::new(problem)), limit).await;
        }
        if let Out::Tape { .. } = self.events {
            if !self.started {
                self.core.streams.unname(self.work.request);
            }
            self.core.streams.ended(
                self.work.request,
                self.core.clock.now(),
                self.core.config.requests.resume_us,
            );
        }
    }

    /// Everything between arrival and settlement.
    async fn answer(&mut self) -> Result<(), Stop> {
        // Refusals that are certain cost no write to the disk.
        if let Some(refusal) = self.work.served.refused_now(&self.enqueue()) {
            return Err(Stop::failed(Problem::Refused(refusal)));
        }
        let start = Instant::now();
        self.open = Some(Open::begin(&self.core, &self.work));
        self.work.timings.since(Segment::Reserve, start);
        let ended = self.attempts().await;
        let ended = match ended {
            // The caller has its answer before the ledger: what follows is the ledger's time alone.
            Ok(finished) => {
                self.settling = Some(Settling::begin(&self.core));
                match self.send(Event::Finished(finished)).await {
                    Ok(()) => self.delivered().await,
                    Err(stop) => Err(stop),
                }
            }
            Err(stop) => Err(stop),
        };
        let outcome = match &ended {
            Ok(()) => Outcome::Completed,
            Err(Stop::CallerGone) => Outcome::Cancelled,
            Err(Stop::Failed(_, outcome)) => *outcome,
        };
        let start = Instant::now();
        // An answer that never began cost its caller nothing, nor does a part of what it got nothing of.
        let undelivered = self.work.dimensions.is_some() && outcome != Outcome::Completed;
        let free = !self.started || self.work.paid || undelivered;
        let prompt_tokens = if free { 0 } else { self.prompt_tokens() };
        let generated = if self.work.paid { 0 } else { self.generated() };
        if let Some(open) = self.open.take() {
            let kept = (self.evidence(), self.work.named.filter(|_| !self.work.paid));
            open.settle((prompt_tokens, generated), outcome, kept).await;
        }
        if let Some(allowance) = self.work.allowance.take() {
            let tokens = u64::from(prompt_tokens) + u64::from(generated);
            allowance.settle(tokens, self.work.price.of(prompt_tokens, generated));
        }
        self.work.timings.since(Segment::Settle, start);
        if ended.is_ok() {
            // Whoever has the whole answer and reads no more must not keep the request's place for ever.
            let _ = self.send(Event::Settled(Box::new(self.work.timings.clone()))).await;
        }
        ended
    }

    /// Of several texts' vectors the caller gets all or none: what is not delivered is not settled as if it were.
    async fn delivered(&mut self) -> Result<(), Stop> {
        let Some(delivery) = self.work.delivery.take() else { return Ok(()) };
        if delivery.known().await { Ok(()) } else { Err(Stop::CallerGone) }
    }

    /// Waits for the reservation, before anything of the answer leaves.
    async fn reserved(&mut self) -> Result<(), Stop> {
        let start = Instant::now();
        let durable = match &mut self.open {
            Some(open) => open.durable().await,
            None => Ok(()),
        };
        self.work.timings.add(Segment::Reserve, start.elapsed());
        durable.map_err(|error| {
            tracing::error!(%error, "a reservation failed");
            Stop::failed(Problem::Store { detail: error.to_string() })
        })
    }

    /// One attempt after the other, until one answers. One that is lost in the middle of its answer goes on elsewhere,
    /// from the tokens that were delivered.
    async fn attempts(&mut self) -> Result<Finished, Stop> {
        loop {
            let grant = match self.place().await {
                Ok(grant) => grant,
                Err(Stop::Failed(Problem::Refused(Refusal::AttemptsFailed { .. }), _))
                    if self.forgive() || self.forgives_all() =>
                {
                    continue;
                }
                // Its time in the queue is over, whatever forms.
                Err(
                    stop @ Stop::Failed(
                        Problem::Refused(Refusal::Expired { .. } | Refusal::Unplaced { .. }),
                        _,
                    ),
                ) if !self.started => return Err(stop),
                Err(Stop::Failed(Problem::Refused(refusal), _)) if self.started || self.forming.is_some() => {
                    self.strand(&refusal).await?;
                    continue;
                }
                Err(stop) => return Err(stop),
            };
            self.stranded = None;
            let machine = grant.machine;
            let ended = self.attempt(grant).await;
            self.end_span(machine, &ended);
            self.keep_evidence();
            match ended {
                AttemptEnd::Completed(finished) => return Ok(finished),
                AttemptEnd::Stop(stop) => return Err(stop),
                AttemptEnd::Again(Avoid::Always) => {
                    self.tried += 1;
                    self.excluded.push(machine);
                    self.moves()?;
                }
                AttemptEnd::Again(Avoid::Gone) => {
                    self.tried += 1;
                    self.moves()?;
                }
                AttemptEnd::Again(Avoid::WhileOthers) => {
                    self.tried += 1;
                    self.excluded.push(machine);
                    self.away.push(machine);
                    self.moves()?;
                }
                AttemptEnd::Again(Avoid::WhileItForms) => {
                    self.excluded.push(machine);
                    self.away.push(machine);
                    self.formed().await?;
                }
                AttemptEnd::Again(avoid @ (Avoid::No | Avoid::Unheard)) => {
                    self.bounces += 1;
                    if self.bounces > BOUNCES_MAX {
                        self.excluded.push(machine);
                        self.tried += 1;
                    } else if avoid == Avoid::Unheard {
                        self.pause().await?;
                    }
                }
            }
        }
    }

    /// Lets what forms have its time; once that is over, a try is a try.
    async fn formed(&mut self) -> Result<(), Stop> {
        let since = *self.forming.get_or_insert_with(Instant::now);
        if since.elapsed() >= span(self.core.config.requests.stranded_us) {
            self.tried += 1;
            return self.moves();
        }
        self.pause().await
    }

    fn enqueue(&self) -> Enqueue {
        // What is there of the answer is computed again, as the prompt is.
        let computed = self.prompt_tokens().saturating_add(self.generated());
        let left = self.work.ask.max_tokens.saturating_sub(self.generated());
        let mut ask = Ask::new(self.work.request, Tokens(computed), Tokens(left));
        ask.excluded.extend(self.excluded.iter().copied());
        ask.owners = self.work.owners;
        Enqueue {
            ask,
            account: self.work.key.account,
            weight: u32::try_from(self.work.key.terms.weight).unwrap_or(u32::MAX).max(1),
            priority: match self.work.key.terms.class {
                Class::Urgent => Priority::Urgent,
                Class::Normal => Priority::Normal,
                Class::Background => Priority::Background,
            },
            // It was met: an answer that moves has begun.
            deadline: self.work.deadline.filter(|_| !self.started),
            again: self.started || self.forming.is_some() || self.tried + self.bounces > 0,
            // An answer that has begun has a budget of its own.
            tried: if self.started { 0 } else { self.tried },
            prefixes: fleet::prefixes(&self.work.prompt, self.core.affinity_seed),
        }
    }

    /// Waits for an instance.
    async fn place(&mut self) -> Result<Grant, Stop> {
        let start = Instant::now();
        let (decision, notices) = self.work.served.enqueue(self.enqueue());
        self.core.tell(notices);
        let decided = self.wait(decision, None).await;
        let waited = start.elapsed();
        match decided {
            Ok(Ok(Decision::Granted(grant))) => {
                self.work.timings.add(Segment::Route, grant.decided_in);
                self.work.timings.add_from(Segment::Queue, start, waited.saturating_sub(grant.decided_in));
                Ok(grant)
            }
            Ok(Ok(Decision::Refused(refusal))) => {
                self.work.timings.add(Segment::Queue, waited);
                Err(Stop::failed(Problem::Refused(refusal)))
            }
            Ok(Err(_)) => Err(Stop::failed(Problem::Internal("the pool forgot this request"))),
            Err(interrupt) => {
                self.work.timings.add(Segment::Queue, waited);
                self.core.tell(self.work.served.withdraw(self.work.request));
                Err(interrupt.stop(|| Stop::failed(Problem::Internal("a wait without a limit reached it"))))
            }
        }
    }

    /// Waits for `what`, but no longer than the caller, the coordinator, the request's time and `limit` allow. A
    /// caller that waits long, in a queue or for an answer that moves, is told so from time to time.
    async fn wait<T>(
        &self,
        what: impl Future<Output = T>,
        limit: Option<tokio::time::Instant>,
    ) -> Result<T, Interrupt> {
        let total = match self.core.config.requests.total_us_max {
            Micros::ZERO => None,
            total => Some(tokio::time::Instant::from_std(self.work.arrived + span(total))),
        };
        let first = match (limit, total) {
            (Some(limit), Some(total)) => Some(limit.min(total)),
            (one, other) => one.or(other),
        };
        let over = async {
            match first {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let every = span(self.core.config.requests.keepalive_us);
        let comments = async {
            loop {
                let told = span(Micros(self.told_us.load(Ordering::Relaxed)));
                tokio::time::sleep_until((self.work.arrived + told + every).into()).await;
                self.tell_time();
                self.events.waiting();
            }
        };
        tokio::select! {
            biased;
            out = what => Ok(out),
            () = self.events.closed() => Err(Interrupt::CallerGone),
            () = self.core.end.cancelled() => Err(Interrupt::Ending),
            () = over => {
                let expired = total.is_some_and(|total| total <= tokio::time::Instant::now());
                Err(if expired { Interrupt::Expired } else { Interrupt::Limit })
            }
            never = comments => never,
        }
    }

    /// Tells the caller; a caller that does not read for too long loses the rest.
    async fn send(&self, event: Event) -> Result<(), Stop> {
        self.tell_time();
        let limit = span(self.core.config.requests.reader_us_max);
        let detail = match self.events.send(event, limit).await {
            Ok(()) => return Ok(()),
            Err(Unsent::Gone) => return Err(Stop::CallerGone),
            Err(Unsent::Slow) => "nothing was read for requests.reader_us_max",
            Err(Unsent::Full) => "the answer is larger than what can be kept to come back to",
        };
        Err(Stop::failed(Problem::SlowReader { detail }))
    }

    /// The caller hears something now.
    fn tell_time(&self) {
        self.told_us.store(Micros::from(self.work.arrived.elapsed()).0, Ordering::Relaxed);
    }

    fn prompt_tokens(&self) -> u32 {
        u32::try_from(self.work.prompt.len()).unwrap_or(u32::MAX)
    }

    fn generated(&self) -> u32 {
        u32::try_from(self.journal.len()).unwrap_or(u32::MAX)
    }

    /// Counts the request, once, at its end.
    fn record(&self, outcome: Outcome) {
        let metrics = &self.core.metrics;
        self.tell_trace(outcome);
        self.core.segments.record(&self.work.timings, outcome == Outcome::Completed);
        metrics.segments(&self.work.timings);
        if let Some(engine) = self.engine.filter(|_| outcome == Outcome::Completed && self.tried == 0) {
            let waited = self.work.timings.get(Segment::Queue).unwrap_or_default();
            let ours = self.work.arrived.elapsed().saturating_sub(engine + waited);
            metrics.overhead.observe(ours.as_secs_f64());
        }
        metrics.requests.get_or_create(&Ended { api: self.work.api, outcome: outcome.as_str() }).inc();
        if self.started {
            let model = Metrics::of_model(&self.work.served.name);
            metrics.prompt_tokens.get_or_create(&model).inc_by(self.prompt_tokens().into());
            metrics.generated_tokens.get_or_create(&model).inc_by(self.generated().into());
        }
        tracing::info!(
            request = %self.work.request,
            api = self.work.api,
            model = %self.work.served.name,
            outcome = outcome.as_str(),
            prompt_tokens = self.prompt_tokens(),
            generated_tokens = self.generated(),
            tried = self.tried,
            total_us = u64::try_from(self.work.arrived.elapsed().as_micros()).unwrap_or(u64::MAX),
            "a request ended"
        );
    }
}
