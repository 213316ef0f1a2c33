//! Rank 0: plans as an engine alone does, and has every step computed by all ranks.

use std::collections::VecDeque;
use std::time::Instant;

use nn::LogitRows;
use wire::step::{GroupSettings, StepCommand, StepLogits, StepOrder, StepPlan, StepSpan};

use super::rank::{self, Rank};
use super::report::GroupReport;
use super::{GroupEnd, GroupError, GroupSeat, HEARTBEAT, LOAD_WAIT, pooling_of};
use crate::backend::{limits, self_test};
use crate::compute::{Compute, Work};
use crate::config::EngineConfig;
use crate::engine::{Ready, StartError};
use crate::load::LoadedModel;

/// Told once why the group is over.
pub(crate) type OnEnd = Box<dyn FnOnce(GroupEnd) + Send>;

/// The whole group, as the step loop sees it.
pub(crate) struct Leader {
    rank: Rank,
    sequence: u64,
    /// Pages to overwrite that no rank has been told of.
    wipes: Vec<u32>,
    spoken: Instant,
    bytes: Vec<u8>,
    under_way: VecDeque<UnderWay>,
    row_length: usize,
    recurrent: bool,
    end: Option<GroupEnd>,
    on_end: Option<OnEnd>,
}

/// Loads rank 0's part, agrees with the others, and measures the speed of all together.
pub(crate) fn lead(
    model: &LoadedModel,
    config: &EngineConfig,
    seat: GroupSeat,
    on_end: OnEnd,
) -> Result<Ready<Leader>, StartError> {
    let GroupSeat { map, mut communicator } = seat;
    let fail = |error: GroupError, mut communicator: Box<dyn collective::Communicator>| {
        error.end(communicator.as_mut());
        StartError::Group(error)
    };
    let settings = GroupSettings {
        map: map.encode(),
        vocabulary: model.spec().vocabulary as u32,
        page_tokens: config.page_tokens,
        step_tokens_max: config.step_tokens_max,
        kv: config.kv.name().to_owned(),
        context: config.context,
        pooling: pooling_of(model.spec()),
    };
    let mut first = || {
        if communicator.rank() != 0 {
            return Err(GroupError::Task { rank: communicator.rank(), task: "lead: rank 0 does" });
        }
        if map.ranks() != communicator.ranks() {
            return Err(GroupError::Ranks { map: map.ranks(), group: communicator.ranks() });
        }
        map.check(model.spec())?;
        communicator.set_patience(LOAD_WAIT);
        Ok(communicator.broadcast(0, &mut settings.encode())?)
    };
    if let Err(error) = first() {
        return Err(fail(error, communicator));
    }
    let opened = rank::open(model, config, &map, communicator, &settings);
    let (rank, capacity, notice) = opened.map_err(|(error, communicator)| fail(error, communicator))?;
    let limits = limits(config, capacity.pages, capacity.context);
    let mut leader = Leader {
        rank,
        sequence: 0,
        wipes: Vec::new(),
        spoken: Instant::now(),
        bytes: Vec::new(),
        under_way: VecDeque::new(),
        row_length: model.spec().row_length(),
        recurrent: model.spec().is_recurrent(),
        end: None,
        on_end: None,
    };
    limits.check()?;
    let speed = self_test(&mut leader, &limits, model.spec().vocabulary);
    if let Some(end) = leader.end.clone() {
        return Err(StartError::Group(GroupError::Lost(end)));
    }
    leader.on_end = Some(on_end);
    Ok(Ready { compute: leader, limits, speed, notice, speculate: 0 })
}

fn plan_of(work: &[Work<'_>]) -> StepPlan {
    let span = |work: &Work<'_>| StepSpan {
        position: work.position as u32,
        logits: match work.logits {
            LogitRows::None => StepLogits::None,
            LogitRows::Last => StepLogits::Last,
            LogitRows::All => StepLogits::All,
        },
        tokens: work.tokens.to_vec(),
        pages: work.pages.to_vec(),
    };
    StepPlan { spans: work.iter().map(span).collect(), ..StepPlan::default() }
}

/// A step that was begun.
enum UnderWay {
    /// The last stage owes so many rows of logits, piece by piece.
    Due(Vec<usize>),
    /// They came early, because something else was to be asked.
    Logits(Vec<f32>),
}

impl Leader {
    /// Tells every rank what to do.
    fn say(&mut self, order: StepOrder) -> Result<StepOrder, GroupError> {
        self.sequence += 1;
        let command = StepCommand { sequence: self.sequence, order };
        command.encode(&mut self.bytes);
        self.rank.communicator.broadcast(0, &mut self.bytes)?;
        // A prompt may be among what was sent.
        self.bytes.fill(0);
        self.spoken = Instant::now();
        Ok(command.order)
    }

    /// Does `what`, unless the group is over; a failure ends it.
    fn attempt<R>(&mut self, what: impl FnOnce(&mut Self) -> Result<R, GroupError>) -> Result<R, String> {
        if let Some(end) = &self.end {
            return Err(end.to_string());
        }
        what(self).map_err(|error| {
            let end = error.end(self.rank.communicator.as_mut());
            self.rank.wipe_all();
            let text = end.to_string();
            self.end = Some(end);
            text
        })
    }

    /// Has `plan` computed, and says what logits are still to come.
    fn run(&mut self, mut plan: StepPlan) -> Result<Vec<usize>, GroupError> {
        if !plan.beside {
            plan.wipe = std::mem::take(&mut self.wipes);
        }
        match self.say(StepOrder::Run(plan))? {
            StepOrder::Run(plan) => self.rank.run(&plan),
            _ => Ok(Vec::new()),
        }
    }

    /// The same, and waits for the logits.
    fn run_to_end(&mut self, plan: StepPlan) -> Result<(), GroupError> {
        let due = self.run(plan)?;
        if due.is_empty() { Ok(()) } else { self.rank.collect(&due) }
    }

    /// Takes in the logits of all steps under way, so that the next that come are those of what follows.
    fn catch_up(&mut self) -> Result<(), GroupError> {
        for step in &mut self.under_way {
            if let UnderWay::Due(due) = step {
                self.rank.collect(due)?;
                *step = UnderWay::Logits(std::mem::take(&mut self.rank.logits));
            }
        }
        Ok(())
    }

    fn question(&mut self, tokens: &[u32], all: bool) -> Result<Vec<Vec<f32>>, GroupError> {
        self.catch_up()?;
        let pages = tokens.len().div_ceil(self.rank.bounds.page_tokens as usize) as u32;
        self.say(StepOrder::Beside { pages })?;
        self.rank.set_beside(pages)?;
        let step = self.rank.bounds.tokens_max as usize;
        let mut rows = Vec::new();
        for (chunk, at) in tokens.chunks(step).zip((0..).step_by(step)) {
            let logits = match (all, at + chunk.len() == tokens.len()) {
                (true, _) => StepLogits::All,
                (false, true) => StepLogits::Last,
                (false, false) => StepLogits::None,
            };
            let span =
                StepSpan { position: at as u32, logits, tokens: chunk.to_vec(), pages: (0..pages).collect() };
            self.run_to_end(StepPlan { beside: true, wipe: Vec::new(), spans: vec![span] })?;
            rows.extend(self.rank.logits.chunks_exact(self.row_length).map(<[f32]>::to_vec));
        }
        self.say(StepOrder::Beside { pages: 0 })?;
        self.rank.set_beside(0)?;
        Ok(rows)
    }
}

impl Compute for Leader {
    fn is_recurrent(&self) -> bool {
        self.recurrent
    }

    fn wipe(&mut self, pages: &[u32]) {
        self.wipes.extend_from_slice(pages);
    }

    fn step(&mut self, work: &[Work<'_>]) -> Result<Vec<&[f32]>, String> {
        self.attempt(|leader| leader.run_to_end(plan_of(work)))?;
        Ok(self.rank.logits.chunks_exact(self.row_length).collect())
    }

    fn depth(&self) -> usize {
        self.rank.stages()
    }

    fn begin(&mut self, work: &[Work<'_>]) -> Result<(), String> {
        let due = self.attempt(|leader| leader.run(plan_of(work)))?;
        self.under_way.push_back(UnderWay::Due(due));
        Ok(())
    }

    fn finish(&mut self) -> Result<Vec<&[f32]>, String> {
        self.attempt(|leader| {
            match leader.under_way.pop_front() {
                None => leader.rank.logits.clear(),
                Some(UnderWay::Logits(logits)) => leader.rank.logits = logits,
                Some(UnderWay::Due(due)) => leader.rank.collect(&due)?,
            }
            Ok(())
        })?;
        Ok(self.rank.logits.chunks_exact(self.row_length).collect())
    }

    fn logits(&mut self, tokens: &[u32], all: bool) -> Result<Vec<Vec<f32>>, String> {
        self.attempt(|leader| leader.question(tokens, all))
    }

    fn idle(&mut self) {
        // Failures stay in `end`, where the loop looks next.
        if !self.wipes.is_empty() {
            let _ = self.attempt(|leader| leader.run(StepPlan::default()));
        } else if self.spoken.elapsed() >= HEARTBEAT {
            let _ = self.attempt(|leader| leader.say(StepOrder::Idle));
        }
    }

    fn trace(&mut self, at: &str, took: base::Micros) {
        // A failure stays in `end`, where the loop looks next.
        let order = StepOrder::Trace { at: at.to_owned(), took_us: took.0 };
        let _ = self.attempt(|leader| leader.say(order));
    }

    fn broken(&self) -> Option<String> {
        self.end.as_ref().map(GroupEnd::to_string)
    }

    fn group(&self) -> Option<GroupReport> {
        Some(self.rank.report.clone())
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        let reason = "the engine has stopped".to_owned();
        if self.end.is_none() {
            let goodbye = StepOrder::Goodbye { reason: reason.clone() };
            // The last stage may still be sending logits: it is heard out, so that a goodbye is what ends it.
            let _ = self.attempt(|leader| {
                leader.catch_up()?;
                leader.say(goodbye)
            });
        }
        self.rank.wipe_all();
        if let Some(on_end) = self.on_end.take() {
            on_end(self.end.take().unwrap_or(GroupEnd { culprit: None, reason }));
        }
    }
}
