//! What leader and follower share: a part of the model, its cache, and one step over both together with the other ranks.

use std::ops::Range;
use std::time::{Duration, Instant};

use base::Bytes;
use collective::{Communicator, Fault};
use model::shard::{Part, ShardMap};
use model::spec::ModelSpec;
use nn::{Decoder, ForwardError, KvCache, LogitRows, Output, Peers, Scratch, Span, Team};
use wire::step::{GroupCapacity, GroupSettings, StepBounds, StepLogits, StepPlan};

use super::report::GroupReport;
use super::{GroupError, LOAD_WAIT, capacity_of};
use crate::backend::{self, BackendError};
use crate::capacity;
use crate::config::{EngineConfig, KvFormat};
use crate::load::LoadedModel;
use crate::machine;

/// A prompt is cut into pieces of so many tokens at least, to keep the stages of a pipeline busy: smaller ones would read
/// every weight for too little arithmetic.
const PIECE_MIN: usize = 64;

/// Whom a rank sends to and receives from.
struct Neighbours {
    /// The ranks of its stage, itself among them.
    members: Vec<usize>,
    /// Who gives it rows: nobody in the first stage.
    from: Option<usize>,
    /// To whom it gives rows: nobody in the last stage, or where another rank of its stage does.
    to: Vec<usize>,
    /// The leader, and the ranks of the last stage, which have logits.
    heads: Vec<usize>,
    /// Logits of a row that each of these has.
    head_rows: Vec<usize>,
    /// How many stages there are.
    stages: usize,
}

impl Neighbours {
    fn of(map: &ShardMap, spec: &ModelSpec, rank: usize) -> Result<Self, GroupError> {
        let missing = || model::shard::ShardError::Rank { rank, ranks: map.ranks() };
        let stage = map.stage_of(rank).ok_or_else(missing)?;
        let stages = map.stages();
        let own = map.ranks_of(stage);
        let place = rank - own.start;
        let from = stage.checked_sub(1).map(|before| {
            let before = map.ranks_of(before);
            before.start + place % before.len()
        });
        let to = match stage + 1 < stages {
            true => {
                let after = map.ranks_of(stage + 1);
                after.clone().filter(|next| (next - after.start) % own.len() == place).collect()
            }
            false => Vec::new(),
        };
        let mut heads: Vec<usize> = map.ranks_of(stages - 1).collect();
        if spec.pooling.is_some() {
            // Every rank of the last stage has whole rows: one of them is asked.
            heads.truncate(1);
        }
        if heads[0] != 0 {
            heads.insert(0, 0);
        }
        let columns = |head: Range<usize>| if spec.pooling.is_some() { spec.hidden } else { head.len() };
        let rows = |&rank: &usize| Ok(map.part(spec, rank)?.head.map_or(0, columns));
        let head_rows = heads.iter().map(rows).collect::<Result<_, GroupError>>()?;
        Ok(Self { members: own.collect(), from, to, heads, head_rows, stages })
    }
}

/// One rank that is ready to compute.
pub(super) struct Rank {
    pub(super) communicator: Box<dyn Communicator>,
    neighbours: Neighbours,
    team: Team,
    decoder: Decoder,
    scratch: Scratch,
    kv: KvCache,
    beside: Option<KvCache>,
    /// Pages that hold something.
    written: Vec<bool>,
    pub(super) bounds: StepBounds,
    pub(super) report: GroupReport,
    /// Rows of the stage before.
    rows: Vec<f32>,
    /// Logits as the ranks of the last stage gave them, and as a sampler wants them.
    gathered: Vec<f32>,
    pub(super) logits: Vec<f32>,
}

/// Sums over the ranks of a stage.
struct Summing<'a> {
    communicator: &'a mut dyn Communicator,
    members: &'a [usize],
}

impl Peers for Summing<'_> {
    fn sum(&mut self, values: &mut [f32]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.communicator.all_reduce_among(self.members, values)?)
    }
}

/// A rank that is ready, what the group has room for, and what its owner should know.
type Opened = (Rank, GroupCapacity, Option<String>);

/// Loads this rank's part, agrees with the others how much memory for keys and values there is, and takes it.
pub(super) fn open(
    model: &LoadedModel,
    config: &EngineConfig,
    map: &ShardMap,
    mut communicator: Box<dyn Communicator>,
    settings: &GroupSettings,
) -> Result<Opened, (GroupError, Box<dyn Communicator>)> {
    match load(model, config, map, communicator.as_mut(), settings) {
        Ok((loaded, capacity, notice)) => {
            let Loaded { neighbours, team, decoder, kv, bounds, report } = loaded;
            communicator.set_patience(patience(config, map.stages()));
            let rank = Rank {
                communicator,
                neighbours,
                team,
                decoder,
                scratch: Scratch::new(),
                written: vec![false; kv.pages()],
                kv,
                beside: None,
                bounds,
                report,
                rows: Vec::new(),
                gathered: Vec::new(),
                logits: Vec::new(),
            };
            Ok((rank, capacity, notice))
        }
        Err(error) => Err((error, communicator)),
    }
}

/// A rank of a pipeline waits for whole stages, and not for parts of a layer.
fn patience(config: &EngineConfig, stages: usize) -> Duration {
    let stages = u32::try_from(stages).unwrap_or(u32::MAX);
    Duration::from(config.group_patience_us).saturating_mul(if stages > 1 { 4 * stages } else { 1 })
}

struct Loaded {
    neighbours: Neighbours,
    team: Team,
    decoder: Decoder,
    kv: KvCache,
    bounds: StepBounds,
    report: GroupReport,
}

fn load(
    model: &LoadedModel,
    config: &EngineConfig,
    map: &ShardMap,
    communicator: &mut dyn Communicator,
    settings: &GroupSettings,
) -> Result<(Loaded, GroupCapacity, Option<String>), GroupError> {
    let (spec, rank) = (model.spec(), communicator.rank());
    let part = map.part(spec, rank)?;
    let neighbours = Neighbours::of(map, spec, rank)?;
    let team = backend::team(config);
    let decoder = backend::decoder(model, config, &part, &team)?;
    let format = KvFormat::named(&settings.kv).ok_or_else(|| GroupError::Disagrees {
        what: "a cache of",
        theirs: settings.kv.clone(),
        ours: "knows f32, f16 and bf16".to_owned(),
    })?;
    let (capacity, notice) = agree(&part, config, communicator, settings, format)?;
    let kv = KvCache::new(&part.spec, capacity.pages as usize, settings.page_tokens as usize, format.dtype());
    let kv = kv.map_err(BackendError::from)?;
    let bounds = StepBounds {
        vocabulary: settings.vocabulary,
        pages: capacity.pages,
        page_tokens: settings.page_tokens,
        context: capacity.context,
        tokens_max: settings.step_tokens_max,
    };
    let report =
        GroupReport { rank, ranks: communicator.ranks(), mode: map.mode(), ..GroupReport::default() };
    Ok((Loaded { neighbours, team, decoder, kv, bounds, report }, capacity, notice))
}

/// The least that any rank's memory allows.
fn agree(
    part: &Part,
    config: &EngineConfig,
    communicator: &mut dyn Communicator,
    settings: &GroupSettings,
    format: KvFormat,
) -> Result<(GroupCapacity, Option<String>), GroupError> {
    let config = EngineConfig {
        page_tokens: settings.page_tokens,
        context: settings.context,
        kv: format,
        ..config.clone()
    };
    let context = u32::try_from(part.spec.context).unwrap_or(u32::MAX);
    let per_token = KvCache::bytes_per_token(&part.spec, format.dtype()).max(Bytes(1));
    let own = capacity::size(&config, context, per_token, machine::memory())?;
    let mut least = GroupCapacity { pages: own.pages, context: own.context };
    communicator.set_patience(LOAD_WAIT);
    let mut bytes = Vec::new();
    if communicator.rank() == 0 {
        for rank in 1..communicator.ranks() {
            communicator.receive_bytes(rank, &mut bytes)?;
            let theirs = capacity_of(&bytes)?;
            least.pages = least.pages.min(theirs.pages);
            least.context = least.context.min(theirs.context);
        }
        bytes = least.encode();
        communicator.broadcast(0, &mut bytes)?;
    } else {
        communicator.send_bytes(0, &least.encode())?;
        communicator.broadcast(0, &mut bytes)?;
        let all = capacity_of(&bytes)?;
        if all.pages == 0 || all.context == 0 || all.pages > least.pages || all.context > least.context {
            let shown =
                |capacity: &GroupCapacity| format!("{} pages, {} tokens", capacity.pages, capacity.context);
            return Err(GroupError::Disagrees {
                what: "a cache of",
                theirs: shown(&all),
                ours: format!("has room for {}", shown(&least)),
            });
        }
        least = all;
    }
    let notice = own.notice.or_else(|| {
        (least.context < own.context).then(|| {
            format!("the context is {} tokens, because another rank has no memory for more", least.context)
        })
    });
    Ok((least, notice))
}

/// Part of a span: which, and which of its tokens.
type Piece = (usize, Range<usize>);

/// Cuts a step into pieces that the stages of a pipeline work on at the same time. Every rank cuts alike.
fn pieces(plan: &StepPlan, stages: usize) -> Vec<Vec<Piece>> {
    let tokens = plan.tokens();
    // A step that only decodes reads every weight once, however few its rows are: cut, it would read them again.
    let whole = stages < 2 || tokens == plan.spans.len();
    let size = if whole { tokens } else { tokens.div_ceil(2 * stages).max(PIECE_MIN) };
    let mut out: Vec<Vec<Piece>> = Vec::new();
    let mut room = 0;
    for (index, span) in plan.spans.iter().enumerate() {
        let mut at = 0;
        while at < span.tokens.len() {
            if room == 0 {
                out.push(Vec::new());
                room = size;
            }
            let end = span.tokens.len().min(at + room);
            out.last_mut().expect("pushed above").push((index, at..end));
            room -= end - at;
            at = end;
        }
    }
    out
}

fn span_of<'a>(plan: &'a StepPlan, (index, tokens): &Piece) -> Span<'a> {
    let span = &plan.spans[*index];
    let logits = match span.logits {
        StepLogits::None => LogitRows::None,
        StepLogits::All => LogitRows::All,
        StepLogits::Last if tokens.end == span.tokens.len() => LogitRows::Last,
        StepLogits::Last => LogitRows::None,
    };
    Span {
        tokens: &span.tokens[tokens.clone()],
        position: span.position as usize + tokens.start,
        pages: &span.pages,
        logits,
    }
}

/// How many rows of logits spans give.
fn logit_rows(spans: &[Span<'_>]) -> usize {
    let rows = |span: &Span<'_>| match span.logits {
        LogitRows::None => 0,
        LogitRows::Last => 1,
        LogitRows::All => span.tokens.len(),
    };
    spans.iter().map(rows).sum()
}

impl Rank {
    /// Makes the cache beside the main one, or drops it.
    pub(super) fn set_beside(&mut self, pages: u32) -> Result<(), GroupError> {
        self.beside = None;
        if pages > 0 {
            let spec = self.decoder.spec();
            let kv = KvCache::new(spec, pages as usize, self.kv.page_tokens(), self.kv.dtype());
            self.beside = Some(kv.map_err(BackendError::from)?);
        }
        Ok(())
    }

    /// What a plan is held to.
    pub(super) fn bounds_of(&self, plan: &StepPlan) -> StepBounds {
        match (plan.beside, &self.beside) {
            (true, Some(kv)) => StepBounds { pages: kv.pages() as u32, ..self.bounds },
            (true, None) => StepBounds { pages: 0, ..self.bounds },
            (false, _) => self.bounds,
        }
    }

    /// Computes this rank's part of `plan`, which has been checked. How many rows of logits are to be had by
    /// [`Rank::collect`] then, piece by piece: none where they are in [`Rank::logits`] already, or go to the leader.
    pub(super) fn run(&mut self, plan: &StepPlan) -> Result<Vec<usize>, GroupError> {
        let (begun, before) = (Instant::now(), self.communicator.traffic());
        for &page in &plan.wipe {
            self.kv.wipe(page);
            self.written[page as usize] = false;
        }
        self.logits.clear();
        let mut due = Vec::new();
        if plan.spans.is_empty() {
            return Ok(due);
        }
        if !plan.beside {
            let written = plan.spans.iter().flat_map(|span| &span.pages);
            written.for_each(|&page| self.written[page as usize] = true);
        }
        let pieces = pieces(plan, self.neighbours.stages);
        for piece in &pieces {
            let spans: Vec<Span<'_>> = piece.iter().map(|piece| span_of(plan, piece)).collect();
            self.compute(&spans, plan.beside)?;
            let rows = logit_rows(&spans);
            if rows > 0 && self.report.rank == 0 && self.neighbours.stages > 1 {
                due.push(rows);
            }
        }
        let tokens = plan.tokens();
        let times =
            if tokens == plan.spans.len() { &mut self.report.decode } else { &mut self.report.prefill };
        times.add(tokens, begun.elapsed(), &before, &self.communicator.traffic());
        Ok(due)
    }

    /// On the leader of a pipeline: waits for logits that its last stage owes, and puts them into [`Rank::logits`].
    pub(super) fn collect(&mut self, due: &[usize]) -> Result<(), GroupError> {
        let (begun, before) = (Instant::now(), self.communicator.traffic());
        self.logits.clear();
        for &rows in due {
            gather(self.communicator.as_mut(), &self.neighbours, (&[], rows), &mut self.gathered)?;
            lay_out(&self.neighbours.head_rows, &self.gathered, &mut self.logits);
        }
        self.report.decode.wait(begun.elapsed(), &before, &self.communicator.traffic());
        Ok(())
    }

    /// How many steps keep all stages busy.
    pub(super) fn stages(&self) -> usize {
        self.neighbours.stages
    }

    fn compute(&mut self, spans: &[Span<'_>], beside: bool) -> Result<(), GroupError> {
        let communicator = self.communicator.as_mut();
        let rows = match self.neighbours.from {
            None => None,
            Some(from) => {
                let tokens: usize = spans.iter().map(|span| span.tokens.len()).sum();
                self.rows.resize(tokens * self.decoder.spec().hidden, 0.0);
                communicator.receive(from, &mut self.rows)?;
                Some(self.rows.as_slice())
            }
        };
        let kv = match (beside, &mut self.beside) {
            (true, Some(kv)) => kv,
            _ => &mut self.kv,
        };
        let mut peers = Summing { communicator, members: &self.neighbours.members };
        let peers: Option<&mut dyn Peers> = if self.decoder.part().summed { Some(&mut peers) } else { None };
        let output = self.decoder.forward_part(&self.team, &mut self.scratch, (spans, rows), kv, peers);
        let communicator = self.communicator.as_mut();
        match output {
            Ok(Output::Rows(rows)) => {
                self.neighbours.to.iter().try_for_each(|&to| communicator.send(to, rows))?;
            }
            Ok(Output::Logits(_)) if logit_rows(spans) == 0 => {}
            Ok(Output::Logits(_)) if !self.neighbours.heads.contains(&self.report.rank) => {}
            Ok(Output::Logits(logits)) => {
                let own = (logits.values(), logit_rows(spans));
                gather(communicator, &self.neighbours, own, &mut self.gathered)?;
                if self.report.rank == 0 {
                    lay_out(&self.neighbours.head_rows, &self.gathered, &mut self.logits);
                }
            }
            Err(ForwardError::Peers(cause)) => {
                return Err(communicator.fault().map_or_else(
                    || GroupError::Step(cause.to_string()),
                    |fault: &Fault| GroupError::from(fault.clone()),
                ));
            }
            Err(error) => return Err(GroupError::Step(backend::in_words(error))),
        }
        Ok(())
    }

    /// Overwrites every page that holds something.
    pub(super) fn wipe_all(&mut self) {
        for (page, written) in self.written.iter_mut().enumerate() {
            if std::mem::take(written) {
                self.kv.wipe(page as u32);
            }
        }
        self.beside = None;
    }
}

/// Brings `rows` rows of logits from the ranks that have them to the leader.
fn gather(
    communicator: &mut dyn Communicator,
    neighbours: &Neighbours,
    (own, rows): (&[f32], usize),
    out: &mut Vec<f32>,
) -> Result<(), Fault> {
    out.clear();
    if rows == 0 {
        return Ok(());
    }
    let counts: Vec<usize> = neighbours.head_rows.iter().map(|columns| rows * columns).collect();
    if communicator.rank() == 0 {
        out.resize(counts.iter().sum(), 0.0);
    }
    communicator.gather_among(&neighbours.heads, 0, own, &counts, out)
}

/// Appends logits that came rank by rank as rows of the whole vocabulary.
fn lay_out(head_rows: &[usize], gathered: &[f32], logits: &mut Vec<f32>) {
    let vocabulary: usize = head_rows.iter().sum();
    let rows = gathered.len() / vocabulary.max(1);
    for row in 0..rows {
        let mut start = 0;
        for &columns in head_rows {
            logits.extend_from_slice(&gathered[start + row * columns..][..columns]);
            start += rows * columns;
        }
    }
}
