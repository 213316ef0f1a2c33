//! How a model is divided over given devices, and how fast that would be.
//!
//! Layers go to stages so that the slowest stage is as fast as can be within every stage's memory (a bound is searched for
//! by halving, and each bound is tried in one pass over the layers); within a stage each rank takes a slice after its
//! memory bandwidth, at most what it has room for. What comes out is then counted exactly, in the shard map's own units.

use std::ops::Range;

use super::{Predicted, Shape};
use crate::topology::{Link, LinkKind};

/// Shares of a stage add up to about this: fine enough for any machine, coarse enough to repeat.
const SHARES: f64 = 256.0;
/// Tries to make exact counts fit, each with less for the ranks that had too much.
const TRIES: usize = 6;
/// Spent in each step whatever it computes: planning, sampling, waking threads.
pub(super) const STEP_S: f64 = 150e-6;
/// The prompt that a time to first token is predicted for.
pub const PROMPT_TOKENS: f64 = 512.0;

/// A device that shall hold a part.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Seat {
    /// Its number among all devices.
    pub node: u32,
    /// Bytes that this model may take on it.
    pub room: u64,
    /// Bytes a second.
    pub bandwidth: f64,
    /// Operations a second.
    pub flops: f64,
    /// Bytes a second of its whole host; 0: not known.
    pub host: f64,
    /// Seconds of a step that do not depend on how much is read.
    pub step_s: f64,
}

impl Seat {
    /// Takes on what was measured with the whole model here, which has a step's own costs in it: at most half of a step, so
    /// that what caches hold has a finite speed.
    pub(super) fn has_decoded(&mut self, tokens_per_s: f64, read_bytes: f64) {
        let step = 1.0 / tokens_per_s;
        self.step_s = STEP_S.min(step / 2.0);
        self.bandwidth = read_bytes / (step - self.step_s);
    }
}

/// A model over devices.
#[derive(Debug, Clone)]
pub(super) struct Divided {
    /// By stage: its layers, and the share of each of its ranks.
    pub stages: Vec<(Range<usize>, Vec<u32>)>,
    /// Bytes that each rank holds.
    pub memory: Vec<u64>,
}

/// What must fit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub context: u64,
    pub batch: u64,
}

/// Counts what ranks hold, remembering what it counted.
pub(super) trait Count {
    fn exact(&mut self, stages: &[(Range<usize>, Vec<u32>)]) -> Result<Vec<u64>, String>;
}

/// Divides `shape` over `stages` of devices.
pub(super) fn divide(
    shape: &Shape,
    load: Load,
    stages: &[Vec<Seat>],
    names: &dyn Fn(u32) -> String,
    count: &mut dyn Count,
) -> Result<Divided, String> {
    let mut seats: Vec<Vec<Seat>> = stages.to_vec();
    let mut over = None;
    for _ in 0..TRIES {
        let layers = layers(shape, load, &seats)?;
        let shares = |(range, seats): (Range<usize>, &Vec<Seat>)| {
            let shares = shares(shape, load, &range, seats);
            (range, shares)
        };
        let divided: Vec<(Range<usize>, Vec<u32>)> = layers.into_iter().zip(&seats).map(shares).collect();
        let memory = count.exact(&divided)?;
        over = None;
        let flat = stages.iter().flatten().zip(seats.iter_mut().flatten());
        for (rank, ((asked, seat), &needed)) in flat.zip(&memory).enumerate() {
            if needed > asked.room {
                over.get_or_insert((rank, asked.node, needed, asked.room));
                seat.room = (seat.room as f64 * (asked.room as f64 / needed as f64) * 0.99) as u64;
            }
        }
        if over.is_none() {
            return Ok(Divided { stages: divided, memory });
        }
    }
    let (rank, node, needed, room) = over.unwrap_or_default();
    Err(format!(
        "rank {rank} on {} would hold {} and has room for {}",
        names(node),
        base::Bytes(needed),
        base::Bytes(room)
    ))
}

/// What a stage has room for, above what each of its ranks works in.
fn room(shape: &Shape, load: Load, seats: &[Seat]) -> u64 {
    let working = shape.working_bytes(load.batch);
    seats.iter().map(|seat| seat.room.saturating_sub(working)).fold(0, u64::saturating_add)
}

fn held(shape: &Shape, load: Load, layers: Range<usize>) -> u64 {
    shape.weight_bytes(layers.clone()).saturating_add(shape.kv_bytes(layers, load.context, load.batch))
}

/// Layers for each stage.
fn layers(shape: &Shape, load: Load, stages: &[Vec<Seat>]) -> Result<Vec<Range<usize>>, String> {
    let count = shape.layers();
    if stages.len() > count {
        return Err(format!("{} stages of {count} layers: one would be empty", stages.len()));
    }
    let rooms: Vec<u64> = stages.iter().map(|seats| room(shape, load, seats)).collect();
    let speeds: Vec<f64> =
        stages.iter().map(|seats| seats.iter().map(|s| s.bandwidth).sum::<f64>().max(1.0)).collect();
    if let [_] = stages {
        let needed = held(shape, load, 0..count);
        if needed > rooms[0] {
            return Err(short(needed, rooms[0]));
        }
        return Ok(std::iter::once(0..count).collect());
    }
    let fill = |bound: f64| -> Option<Vec<Range<usize>>> {
        let mut at = 0;
        let mut ranges = Vec::with_capacity(stages.len());
        for stage in 0..stages.len() {
            let left = stages.len() - stage - 1;
            let fits = |end: usize| {
                held(shape, load, at..end) <= rooms[stage]
                    && shape.read_bytes(at..end) / speeds[stage] <= bound
            };
            let most = count - left;
            // What a longer range holds is never less (but for the head, which comes with the last layer).
            let mut end = at;
            let (mut low, mut high) = (at + 1, most);
            while low <= high {
                let middle = low.midpoint(high);
                if fits(middle) {
                    end = middle;
                    low = middle + 1;
                } else {
                    high = middle - 1;
                }
            }
            while end > at && end < count && !shape.may_cut(end) {
                end -= 1;
            }
            if end == at {
                return None;
            }
            ranges.push(at..end);
            at = end;
        }
        (at == count).then_some(ranges)
    };
    let slowest = speeds.iter().copied().fold(f64::INFINITY, f64::min);
    let (mut low, mut high) = (0.0, shape.read_bytes(0..count) / slowest * 1.01);
    let Some(mut found) = fill(high) else {
        let needed = held(shape, load, 0..count);
        let all = rooms.iter().copied().fold(0, u64::saturating_add);
        return Err(if needed > all {
            short(needed, all)
        } else {
            "whole layers do not fit on these devices one after another".to_owned()
        });
    };
    for _ in 0..24 {
        let middle = (low + high) / 2.0;
        match fill(middle) {
            Some(ranges) => (found, high) = (ranges, middle),
            None => low = middle,
        }
    }
    Ok(found)
}

pub(super) fn short(needed: u64, room: u64) -> String {
    format!(
        "weights, cache and head-room take {}, and there is room for {}",
        base::Bytes(needed),
        base::Bytes(room)
    )
}

/// The share of each rank of a stage: after its bandwidth, at most what it has room for.
fn shares(shape: &Shape, load: Load, layers: &Range<usize>, seats: &[Seat]) -> Vec<u32> {
    if seats.len() == 1 {
        return vec![1];
    }
    let working = shape.working_bytes(load.batch);
    let all = held(shape, load, layers.clone()).max(1) as f64;
    let most: Vec<f64> = seats.iter().map(|s| s.room.saturating_sub(working) as f64 / all).collect();
    let mut parts = vec![0.0f64; seats.len()];
    let mut full = vec![false; seats.len()];
    // Each round fills at least one rank or ends.
    for _ in 0..seats.len() {
        let left: f64 = 1.0 - (0..seats.len()).filter(|&at| full[at]).map(|at| parts[at]).sum::<f64>();
        let speed: f64 =
            (0..seats.len()).filter(|&at| !full[at]).map(|at| seats[at].bandwidth.max(1.0)).sum();
        let mut again = false;
        for at in (0..seats.len()).filter(|&at| !full[at]).collect::<Vec<_>>() {
            parts[at] = left.max(0.0) * seats[at].bandwidth.max(1.0) / speed;
            if parts[at] > most[at] {
                (parts[at], full[at], again) = (most[at], true, true);
            }
        }
        if !again {
            break;
        }
    }
    parts.iter().map(|part| (part * SHARES).round().max(1.0) as u32).collect()
}

/// What the links of a placement cost.
pub(super) struct Ways<'a> {
    /// Between two ranks, the worse of both ways; by rank.
    pub link: &'a dyn Fn(usize, usize) -> Option<Link>,
}

/// What a rank reads with while the others of its stage read, too: those on one host share what that gives.
fn shared_bandwidth(seats: &[Seat], stage: Range<usize>, rank: usize, ways: &Ways<'_>) -> f64 {
    let Seat { bandwidth, host, .. } = seats[rank];
    let beside = |other: &usize| {
        let link = |link: Option<Link>| link.is_some_and(|link| link.kind == LinkKind::Local);
        *other == rank || link((ways.link)(rank.min(*other), rank.max(*other)))
    };
    let together: f64 = stage.filter(beside).map(|other| seats[other].bandwidth).sum();
    if host > 0.0 && together > host { bandwidth * host / together } else { bandwidth }
}

/// How fast one request alone would be.
pub(super) fn predict(shape: &Shape, divided: &Divided, seats: &[Seat], ways: &Ways<'_>) -> Predicted {
    let (mut decode, mut prefill) = (seats.iter().map(|seat| seat.step_s).fold(0.0, f64::max), 0.0);
    let mut first = 0;
    for (stage, (layers, shares)) in divided.stages.iter().enumerate() {
        let ranks = first..first + shares.len();
        let all: f64 = shares.iter().map(|&share| f64::from(share)).sum();
        let (read, flops) = (shape.read_bytes(layers.clone()), shape.token_flops(layers.clone()));
        let part = |rank: usize| f64::from(shares[rank - first]) / all;
        let slowest = |cost: &dyn Fn(usize) -> f64| ranks.clone().map(cost).fold(0.0, f64::max);
        let shared = |rank: usize| shared_bandwidth(seats, ranks.clone(), rank, ways);
        decode += slowest(&|rank| read * part(rank) / shared(rank).max(1.0));
        prefill += slowest(&|rank| PROMPT_TOKENS * flops * part(rank) / seats[rank].flops.max(1.0));
        if shares.len() > 1 {
            // After each mixer and each feed-forward everybody sends everybody its sum, at the same time.
            let sums = 2.0 * layers.len() as f64;
            let others = (shares.len() - 1) as f64;
            let worst = |bytes: f64| {
                let mut worst = 0.0f64;
                for a in ranks.clone() {
                    for b in a + 1..ranks.end {
                        if let Some(link) = (ways.link)(a, b) {
                            worst = worst.max(link.rtt_s / 2.0 + others * bytes / link.bandwidth.max(1.0));
                        }
                    }
                }
                worst
            };
            decode += sums * worst(shape.row_bytes());
            prefill += sums * worst(shape.row_bytes() * PROMPT_TOKENS);
        }
        let next = if stage + 1 < divided.stages.len() { ranks.end } else { 0 };
        if divided.stages.len() > 1
            && let Some(link) = (ways.link)(first, next)
        {
            let bytes = if next == 0 { 64.0 } else { shape.row_bytes() };
            decode += link.rtt_s / 2.0 + bytes / link.bandwidth.max(1.0);
            prefill += link.rtt_s / 2.0 + bytes * PROMPT_TOKENS / link.bandwidth.max(1.0);
        }
        first = ranks.end;
    }
    Predicted { decode_tokens_per_s: 1.0 / decode, ttft_ms: (prefill + decode) * 1e3 }
}
