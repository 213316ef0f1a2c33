//! One attempt: sealed to its machine, sent, and its chunks brought to the caller.

use std::time::Instant;

use base::{AttemptId, InstanceId, Micros, Tokens};
use bytes::Bytes;
use fleet::{Input, Outcome};
use std::sync::Arc;
use wire::chunk::{Chunk, FinishReason};
use wire::control::{AttemptRefusal, FromCoordinator};
use wire::frame::{self, FrameHeader, FrameKind};
use wire::job::Job;
use wire::openai::response::Usage;

use super::gate::Gate;
use super::{AttemptEnd, Avoid, Delta, Event, Finished, Interrupt, Serving, Stop};
use crate::core::span;
use crate::metrics::Metrics;
use crate::pools::Grant;
use crate::problem::Problem;
use crate::segments::Segment;
use crate::uplink::attempts::{Ended, FromMachine, Receiving};
use crate::uplink::lanes::DataFrame;
use crate::uplink::session::{Session, is_full};

/// An attempt in flight.
struct Flight {
    id: AttemptId,
    instance: InstanceId,
    session: Arc<Session>,
    receiving: Receiving,
    gate: Gate,
    /// When it was sealed.
    sealed: Instant,
    /// When the first token came.
    first: Option<Instant>,
    /// Chunks with a counter below this may be sent, where its machine asks for credit.
    credit: Option<u64>,
}

/// What came of a wait for the machine.
enum Heard {
    Chunk(Chunk),
    /// Its machine was gone and is back.
    Nothing,
    End(AttemptEnd),
}

impl Flight {
    /// Gives its machine more credit where half of it is used.
    fn top_up(&mut self) {
        let (Some(until), Some(window)) = (self.credit, self.session.credit) else { return };
        let taken = self.gate.opener.next_counter();
        if until.saturating_sub(taken) > window / 2 {
            return;
        }
        let until_counter = taken.saturating_add(window);
        self.credit = Some(until_counter);
        self.session.lanes.control(FromCoordinator::Credit { attempt: self.id, until_counter });
    }
}

impl Serving {
    pub(super) async fn attempt(&mut self, grant: Grant) -> AttemptEnd {
        let instance = grant.instance;
        self.resumed_at = self.generated();
        self.life = self.core.groups.life(instance).map(|epoch| (instance, epoch));
        let Some(session) = self.core.machines.session(grant.machine) else {
            return self.unheard(instance);
        };
        let id = self.core.attempt_id();
        self.begin_evidence(&session, id);
        let capacity = self.capacity();
        let Some(receiving) = session.attempts.open(id, capacity) else {
            return self.unheard(instance);
        };
        let (frame, gate, sealed) = match self.seal(&session, id) {
            Ok(sealed) => sealed,
            Err(end) => {
                session.attempts.end(id, Ended::Terminal);
                let machine_fault = matches!(end, AttemptEnd::Again(_));
                let outcome = if machine_fault { Outcome::Faulted } else { Outcome::Cancelled };
                self.end_in_pool(instance, outcome, "unsealable");
                return end;
            }
        };
        let credit = session.credit;
        let mut flight = Flight { id, instance, session, receiving, gate, sealed, first: None, credit };
        let frame = DataFrame { bytes: frame, about: Arc::clone(&flight.receiving.shared) };
        let limit = tokio::time::Instant::now() + span(self.core.config.requests.first_token_us_max);
        let lanes = flight.session.lanes.clone();
        match self.wait(lanes.data(frame), Some(limit)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => {
                flight.session.attempts.end(id, Ended::GivenUp);
                return self.unheard(instance);
            }
            Err(interrupt) => return self.give_up(&flight, &interrupt),
        }
        self.follow(&mut flight).await
    }

    /// Brings chunk after chunk to the caller, until the attempt ends.
    async fn follow(&mut self, flight: &mut Flight) -> AttemptEnd {
        loop {
            let chunk = match self.hear(flight).await {
                Heard::Chunk(chunk) => chunk,
                Heard::Nothing => continue,
                Heard::End(end) => return end,
            };
            if let Some(end) = self.take(flight, chunk).await {
                return end;
            }
            flight.top_up();
        }
    }

    /// Chunks that may wait here for the caller.
    fn capacity(&self) -> usize {
        self.core.config.uplink.chunks_waiting_max.min(self.work.ask.max_tokens as usize + 8)
    }

    /// Seals the job to the machine.
    fn seal(&mut self, session: &Arc<Session>, id: AttemptId) -> Result<(Bytes, Gate, Instant), AttemptEnd> {
        let start = Instant::now();
        let mut ask = self.work.ask.clone();
        ask.trace = self.begin_span();
        ask.deadline_us = match self.core.config.requests.total_us_max {
            Micros::ZERO => 0,
            total => total.0.saturating_sub(Micros::from(self.work.arrived.elapsed()).0).max(1),
        };
        let job = Job { ask, prompt: std::mem::take(&mut self.work.prompt), generated: self.journal.clone() };
        let plain = job.encode();
        self.work.prompt = job.prompt;
        let Ok(prepared) = session.prepared(&self.core.keys) else {
            tracing::warn!(machine = %session.machine, "a machine's sealing key cannot be used");
            return Err(AttemptEnd::Again(Avoid::Always));
        };
        let (sealed, opener) = prepared.seal(id, &plain);
        let payload = frame::sealed_attempt(&sealed.encapsulated, &sealed.ciphertext);
        let bytes = frame::encode(FrameHeader::of_attempt(FrameKind::Attempt, id, 0), &payload);
        let (length, max) = (base::Bytes(bytes.len() as u64), self.core.config.uplink.data_bytes_max);
        if length > max {
            return Err(AttemptEnd::Stop(Stop::failed(Problem::FrameTooLarge { bytes: length, max })));
        }
        let sealed = self.work.timings.since(Segment::Encrypt, start);
        let gate = Gate {
            opener,
            max_tokens: self.work.ask.max_tokens,
            vocabulary: self.work.vocabulary,
            logprobs: self.work.ask.logprobs.is_some(),
            dimensions: self.work.dimensions,
        };
        Ok((bytes.into(), gate, sealed))
    }

    /// The next chunk that can be believed, or how the attempt ended.
    async fn hear(&mut self, flight: &mut Flight) -> Heard {
        // Most chunks of a running stream are here already: no timer is touched for them.
        let heard = match flight.receiving.from.try_recv() {
            Ok(heard) => Some(heard),
            Err(_) => {
                let config = &self.core.config.requests;
                let begun = flight.first.is_some();
                let most = if begun { config.pause_us_max } else { config.first_token_us_max };
                let limit = tokio::time::Instant::now() + span(most);
                match self.wait(flight.receiving.from.recv(), Some(limit)).await {
                    Ok(heard) => heard,
                    Err(interrupt) => return Heard::End(self.give_up(flight, &interrupt)),
                }
            }
        };
        match heard {
            Some(FromMachine::Chunk { counter, payload }) => {
                match flight.gate.pass(counter, &payload, self.generated()) {
                    Ok(chunk) => Heard::Chunk(chunk),
                    Err(violation) => {
                        Metrics::count(&self.core.metrics.chunk_violations, violation.name());
                        let machine = flight.session.machine;
                        tracing::warn!(%machine, attempt = %flight.id, %violation, "an answer is not believed");
                        self.cancel(flight);
                        let detail = "it sent a chunk that cannot be believed";
                        Heard::End(self.failed(flight.instance, Outcome::Faulted, "violation", detail))
                    }
                }
            }
            Some(FromMachine::Refused(AttemptRefusal::BadConstraint, detail)) => {
                // No machine can cure it.
                flight.session.attempts.end(flight.id, Ended::Terminal);
                let outcome = Outcome::Refused(AttemptRefusal::BadConstraint);
                self.end_in_pool(flight.instance, outcome, "refused");
                Heard::End(AttemptEnd::Stop(Stop::failed(Problem::Constraint { detail })))
            }
            Some(FromMachine::Refused(reason, _)) => {
                flight.session.attempts.end(flight.id, Ended::Terminal);
                let avoid = if is_full(reason) {
                    Avoid::No
                } else if reason == AttemptRefusal::NotReady {
                    Avoid::WhileItForms
                } else {
                    Avoid::Always
                };
                let end = self.failed(flight.instance, Outcome::Refused(reason), "refused", "it refused");
                Heard::End(match end {
                    AttemptEnd::Again(_) => AttemptEnd::Again(avoid),
                    other => other,
                })
            }
            Some(FromMachine::Failed) => {
                flight.session.attempts.end(flight.id, Ended::Terminal);
                Heard::End(self.failed(flight.instance, Outcome::Faulted, "failed", "its engine failed"))
            }
            None if flight.receiving.overflowed() => {
                flight.session.lanes.control(FromCoordinator::Cancel { attempt: flight.id });
                self.end_in_pool(flight.instance, Outcome::Cancelled, "overflow");
                let detail = "more of the answer waited for it than uplink.chunks_waiting_max";
                Heard::End(AttemptEnd::Stop(Stop::failed(Problem::SlowReader { detail })))
            }
            None => self.lost(flight).await,
        }
    }

    /// The machine's connection is gone. It may be back with the attempt in a moment (P2).
    async fn lost(&mut self, flight: &mut Flight) -> Heard {
        let patience = self.core.config.requests.patience_us;
        if flight.session.reoffers && patience > Micros::ZERO {
            let (due, capacity) = (flight.gate.opener.next_counter(), self.capacity());
            let core = Arc::clone(&self.core);
            let mut wait = core.returns.wait(flight.id, flight.session.machine, due, capacity);
            let limit = tokio::time::Instant::now() + span(patience);
            match self.wait(wait.returned(), Some(limit)).await {
                Ok(Some(returned)) => {
                    Metrics::count(&self.core.metrics.attempts, "returned");
                    flight.credit = returned.session.credit.map(|credit| due.saturating_add(credit));
                    flight.session = returned.session;
                    flight.receiving = returned.receiving;
                    return Heard::Nothing;
                }
                Ok(None) | Err(Interrupt::Limit) => {}
                Err(interrupt) => return Heard::End(self.give_up(flight, &interrupt)),
            }
        }
        Heard::End(self.failed(flight.instance, Outcome::Lost, "lost", "its connection ended"))
    }

    /// Brings a chunk to the caller; gives the attempt's end where it was the last.
    async fn take(&mut self, flight: &mut Flight, chunk: Chunk) -> Option<AttemptEnd> {
        let finish = chunk.finish;
        if let Some(finish) = &finish
            && let Some(end) = self.end_without_answer(flight, finish.reason, chunk.tokens.is_empty())
        {
            return Some(end);
        }
        if flight.first.is_none() && (!chunk.tokens.is_empty() || finish.is_some()) {
            flight.first = Some(Instant::now());
            self.core.tell(self.work.served.handle(Input::FirstToken { request: self.work.request }));
        }
        if !self.started && flight.first.is_some() {
            self.first_token(flight);
            if let Err(stop) = self.reserved().await {
                return Some(self.stop(flight, finish.is_some(), stop));
            }
            if let Err(stop) = self.send(Event::Started(Box::new(self.work.timings.clone()))).await {
                return Some(self.stop(flight, finish.is_some(), stop));
            }
        }
        let tokens = u32::try_from(chunk.tokens.len()).unwrap_or(u32::MAX);
        self.journal.extend_from_slice(&chunk.tokens);
        if !chunk.tokens.is_empty() || !chunk.text.is_empty() || chunk.vector.is_some() {
            let delta = Delta {
                tokens,
                text: chunk.text,
                logprobs: chunk.logprobs.filter(|_| self.work.ask.logprobs.is_some()),
                vector: chunk.vector,
            };
            if let Err(stop) = self.send(Event::Delta(delta)).await {
                return Some(self.stop(flight, finish.is_some(), stop));
            }
        }
        let finish = finish?;
        self.sign_evidence(&finish);
        let first = flight.first.unwrap_or(flight.sealed);
        self.work.timings.since(Segment::Stream, first);
        // Its machine's word, within what it can be.
        let took = finish.queue_us.saturating_add(finish.prefill_us).saturating_add(finish.decode_us);
        self.engine = Some(span(Micros(took)).min(flight.sealed.elapsed()));
        flight.session.attempts.end(flight.id, Ended::Terminal);
        if flight.receiving.from.try_recv().is_ok() {
            // The answer is whole and stands, but its machine does not keep to the rules.
            Metrics::count(&self.core.metrics.chunk_violations, "after_terminal");
            self.end_in_pool(flight.instance, Outcome::Faulted, "violation");
        } else {
            self.end_in_pool(flight.instance, Outcome::Completed, "completed");
        }
        let stop_text = finish.stop_text.and_then(|which| self.work.ask.stop.get(which as usize).cloned());
        let cached = finish.cached_tokens.min(self.prompt_tokens());
        let usage = Usage::new(self.prompt_tokens(), self.generated(), cached);
        let timings = Box::new(self.work.timings.clone());
        Some(AttemptEnd::Completed(Finished { reason: finish.reason, stop_text, usage, timings }))
    }

    /// A finish that is no answer: cancelled though nobody cancelled it, or over time before anything came.
    fn end_without_answer(
        &mut self,
        flight: &Flight,
        reason: FinishReason,
        no_tokens: bool,
    ) -> Option<AttemptEnd> {
        match reason {
            FinishReason::Cancelled => {
                flight.session.attempts.end(flight.id, Ended::Terminal);
                Some(self.failed(flight.instance, Outcome::Faulted, "failed", "it gave the answer up"))
            }
            FinishReason::Expired if no_tokens && self.journal.is_empty() => {
                flight.session.attempts.end(flight.id, Ended::Terminal);
                self.end_in_pool(flight.instance, Outcome::Cancelled, "expired");
                Some(AttemptEnd::Stop(Stop::failed(Problem::Expired)))
            }
            FinishReason::Stop | FinishReason::Length | FinishReason::Expired => None,
        }
    }

    /// The answer begins.
    fn first_token(&mut self, flight: &Flight) {
        let now = flight.first.unwrap_or_else(Instant::now);
        let written = flight.receiving.shared.written.get().copied().unwrap_or(now).max(flight.sealed);
        self.work.timings.add_from(Segment::Dispatch, flight.sealed, written - flight.sealed);
        let first = now.saturating_duration_since(written);
        self.work.timings.add_from(Segment::FirstToken, written, first);
        self.started = true;
    }

    /// The machine failed the attempt: another may do better, from the tokens that were delivered (S1, S2).
    fn failed(
        &mut self,
        instance: InstanceId,
        outcome: Outcome,
        label: &'static str,
        detail: &'static str,
    ) -> AttemptEnd {
        // A group's lost rank may be any machine's, and its rank 0 leads the next life too: it is not the one that failed.
        // It was one when the attempt began: a life that is over since is no group any more.
        let grouped = self.life.is_some() || self.core.groups.contains(instance);
        let outcome = if grouped && label == "failed" { Outcome::Lost } else { outcome };
        self.end_in_pool(instance, outcome, label);
        let tokens = self.generated();
        if grouped && (self.forming.is_none() || tokens > self.resumed_at) {
            self.forming = Some(Instant::now());
        }
        if self.started && !self.work.failover {
            return AttemptEnd::Stop(Stop::failed(Problem::StreamLost { tokens, detail }));
        }
        if self.started && tokens >= self.work.ask.max_tokens {
            // Every token was delivered; only the word that this was all is missing.
            let usage = Usage::new(self.prompt_tokens(), tokens, 0);
            let timings = Box::new(self.work.timings.clone());
            let reason = FinishReason::Length;
            return AttemptEnd::Completed(Finished { reason, stop_text: None, usage, timings });
        }
        if self.started {
            Metrics::count(&self.core.metrics.attempts, "moved");
        }
        AttemptEnd::Again(match outcome {
            _ if grouped && self.loses_a_life() => Avoid::WhileOthers,
            _ if grouped => Avoid::WhileItForms,
            Outcome::Lost => Avoid::Gone,
            _ => Avoid::Always,
        })
    }

    /// The attempt never left: its machine's connection had ended.
    fn unheard(&mut self, instance: InstanceId) -> AttemptEnd {
        self.end_in_pool(instance, Outcome::Lost, "unheard");
        AttemptEnd::Again(Avoid::Unheard)
    }

    /// A wait ended before the machine's answer did.
    fn give_up(&mut self, flight: &Flight, interrupt: &Interrupt) -> AttemptEnd {
        self.cancel(flight);
        if matches!(interrupt, Interrupt::Limit) {
            return self.failed(flight.instance, Outcome::Faulted, "silent", "it fell silent");
        }
        self.end_in_pool(flight.instance, Outcome::Cancelled, "cancelled");
        AttemptEnd::Stop(interrupt.stop(|| Stop::CallerGone))
    }

    /// The caller is gone, or reads no more, while the machine computes (or has just finished).
    fn stop(&mut self, flight: &Flight, finished: bool, stop: Stop) -> AttemptEnd {
        if finished {
            flight.session.attempts.end(flight.id, Ended::Terminal);
            self.end_in_pool(flight.instance, Outcome::Completed, "completed");
        } else {
            self.cancel(flight);
            self.end_in_pool(flight.instance, Outcome::Cancelled, "cancelled");
        }
        AttemptEnd::Stop(stop)
    }

    /// Tells the machine that the answer is no longer wanted.
    fn cancel(&self, flight: &Flight) {
        let open = flight.session.attempts.end(flight.id, Ended::GivenUp);
        // An answer that overflowed while its caller was waited for is closed on this side only: its machine computes on.
        if open || flight.receiving.overflowed() {
            flight.session.lanes.control(FromCoordinator::Cancel { attempt: flight.id });
        }
    }

    fn end_in_pool(&self, instance: InstanceId, outcome: Outcome, label: &'static str) {
        Metrics::count(&self.core.metrics.attempts, label);
        // What earlier machines computed is not this one's work.
        let generated = Tokens(self.generated() - self.resumed_at);
        let request = self.work.request;
        let input = Input::AttemptEnded { request, instance, outcome, generated };
        self.core.tell(self.work.served.handle(input));
    }
}
