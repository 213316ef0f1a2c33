//! Grouped weights into panels.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::{Codes, Factors, Geometry, Grouped, GroupedFormat, GroupedRows, ROWS, SUPER, Scales};
use crate::pack::{BLOCK, PackError};
use crate::shared::SharedMut;
use crate::team::Team;

/// Stacks `parts` into panels; gives the rows too.
pub(crate) fn pack(
    parts: &[&dyn GroupedRows],
    format: GroupedFormat,
    team: &Team,
) -> Result<(usize, usize, Grouped), PackError> {
    if !matches!(format.group, 16 | 32 | 64 | 128) {
        return Err(PackError::Group(format.group));
    }
    let columns = parts.first().map_or(0, |part| part.columns());
    let mut rows = 0;
    for part in parts {
        if part.columns() != columns {
            return Err(PackError::Columns { expected: columns, found: part.columns() });
        }
        rows += part.rows();
    }
    let factored = Geometry::new(format, columns, Scales::F16).with_factors();
    if has_factors(parts, &factored)
        && let Some(grouped) = pack_as(parts, rows, factored, team)?
    {
        return Ok((rows, columns, grouped));
    }
    let tries: &[Scales] = match format.codes {
        Codes::Mxfp4 => &[Scales::Bf16, Scales::F32],
        Codes::Affine4 | Codes::Affine6 | Codes::Affine8 => &[Scales::F16, Scales::Bf16, Scales::F32],
    };
    for &scales in tries {
        let geometry = Geometry::new(format, columns, scales);
        if let Some(grouped) = pack_as(parts, rows, geometry, team)? {
            return Ok((rows, columns, grouped));
        }
    }
    unreachable!("f32 holds every f32")
}

/// Whether all parts have scales in two steps, and there is a loop that reads them where they lie.
fn has_factors(parts: &[&dyn GroupedRows], g: &Geometry) -> bool {
    let known = match g.codes {
        Codes::Affine4 => g.mins && g.group == BLOCK,
        Codes::Affine6 => (g.mins && g.group == BLOCK) || (!g.mins && g.group == BLOCK / 2),
        Codes::Affine8 | Codes::Mxfp4 => false,
    };
    let mut row = Row::default();
    known
        && g.columns.is_multiple_of(SUPER)
        && parts.iter().all(|part| part.rows() == 0 || row.fit(g).read_factors(*part, 0))
}

/// A row's codes, scales and minima.
#[derive(Default)]
struct Row {
    codes: Vec<u8>,
    scales: Vec<f32>,
    mins: Vec<f32>,
    of_scales: Vec<u8>,
    of_mins: Vec<u8>,
}

impl Row {
    /// Makes room for a row, all of it zero.
    fn fit(&mut self, g: &Geometry) -> &mut Self {
        let groups = g.columns.div_ceil(g.group);
        zeros(&mut self.codes, g.records() * g.record_columns());
        zeros(&mut self.scales, groups);
        zeros(&mut self.mins, groups);
        if g.factors {
            zeros(&mut self.of_scales, groups);
            zeros(&mut self.of_mins, groups);
        }
        self
    }

    fn read_factors(&mut self, part: &dyn GroupedRows, row: usize) -> bool {
        let Self { scales, mins, of_scales, of_mins, .. } = self;
        part.read_factors(row, &mut Factors { scales, mins, of_scales, of_mins })
    }
}

fn zeros<T: Clone + Default>(values: &mut Vec<T>, len: usize) {
    values.clear();
    values.resize(len, T::default());
}

thread_local! {
    static ROW: RefCell<Row> = RefCell::default();
}

/// The panels, or nothing where a scale is not exactly one of `geometry.scales`.
fn pack_as(
    parts: &[&dyn GroupedRows],
    rows: usize,
    geometry: Geometry,
    team: &Team,
) -> Result<Option<Grouped>, PackError> {
    let panels = rows.div_ceil(ROWS);
    let panel_bytes = geometry.panel_bytes();
    let len = panels.saturating_mul(panel_bytes);
    let mut bytes = super::zeroed(len).map_err(PackError::Memory)?;
    let shared = SharedMut::new(&mut bytes);
    let inexact = AtomicBool::new(false);
    let not_finite = AtomicUsize::new(usize::MAX);
    team.share(panels, 4, &|_, range| {
        for panel in range {
            if inexact.load(Ordering::Relaxed) || not_finite.load(Ordering::Relaxed) != usize::MAX {
                return;
            }
            // SAFETY: each panel is handed out once.
            let out = unsafe { shared.part(panel * panel_bytes, panel_bytes) };
            for row in panel * ROWS..rows.min((panel + 1) * ROWS) {
                match pack_row(parts, row, &geometry, out) {
                    Packed::Exactly => {}
                    Packed::Inexactly => inexact.store(true, Ordering::Relaxed),
                    Packed::NotFinite => not_finite.store(row, Ordering::Relaxed),
                }
            }
        }
    });
    match not_finite.into_inner() {
        usize::MAX => Ok((!inexact.into_inner()).then_some(Grouped { geometry, bytes })),
        row => Err(PackError::NotFinite { row }),
    }
}

enum Packed {
    Exactly,
    Inexactly,
    NotFinite,
}

fn pack_row(parts: &[&dyn GroupedRows], row: usize, g: &Geometry, panel: &mut [u8]) -> Packed {
    let (mut part, mut at) = (0, row);
    while at >= parts[part].rows() {
        at -= parts[part].rows();
        part += 1;
    }
    ROW.with_borrow_mut(|buffers| {
        let groups = g.columns.div_ceil(g.group);
        let buffers = buffers.fit(g);
        parts[part].read(at, &mut buffers.codes[..g.columns], &mut buffers.scales[..], &mut buffers.mins[..]);
        let lane = row % ROWS;
        let mut packed = Packed::Exactly;
        if g.factors && !buffers.read_factors(parts[part], at) {
            return Packed::Inexactly;
        }
        for (record, out) in panel.chunks_exact_mut(g.record_bytes()).enumerate() {
            let from = record * g.vectors();
            let until = groups.min(from + g.vectors());
            if g.factors {
                pack_factors(&mut packed, g, buffers, record, (out, lane));
                let codes = &buffers.codes[record * g.record_columns()..][..g.record_columns()];
                pack_codes(g, codes, &mut out[g.head_bytes()..], lane);
                continue;
            }
            let half = if g.codes == Codes::Mxfp4 { 0.5 } else { 1.0 };
            for (vector, &scale) in buffers.scales[from..until].iter().enumerate() {
                store(&mut packed, g, scale * half, &mut out[vector * g.vector_bytes()..], lane);
            }
            if g.mins {
                for (vector, &min) in buffers.mins[from..until].iter().enumerate() {
                    let at = g.scale_bytes() + vector * g.vector_bytes();
                    store(&mut packed, g, min, &mut out[at..], lane);
                }
            }
            let codes = &buffers.codes[record * g.record_columns()..][..g.record_columns()];
            pack_codes(g, codes, &mut out[g.head_bytes()..], lane);
        }
        packed
    })
}

/// A record's scales and minima in two steps.
fn pack_factors(
    packed: &mut Packed,
    g: &Geometry,
    row: &Row,
    record: usize,
    (out, lane): (&mut [u8], usize),
) {
    let groups = record * g.vectors()..(record + 1) * g.vectors();
    let parts = [(&row.scales, &row.of_scales), (&row.mins, &row.of_mins)];
    for (part, (scales, factors)) in parts.into_iter().enumerate().take(if g.mins { 2 } else { 1 }) {
        let out = &mut out[part * g.scale_bytes()..][..g.scale_bytes()];
        store(packed, g, scales[record], out, lane);
        let places = out[g.vector_bytes()..].chunks_exact_mut(ROWS);
        for (place, &factor) in places.zip(&factors[groups.clone()]) {
            place[lane] = factor;
        }
    }
}

fn store(packed: &mut Packed, g: &Geometry, value: f32, vector: &mut [u8], lane: usize) {
    let size = g.scales.size();
    if !value.is_finite() {
        *packed = Packed::NotFinite;
    } else if !g.scales.store(value, &mut vector[lane * size..][..size]) && matches!(packed, Packed::Exactly)
    {
        *packed = Packed::Inexactly;
    }
}

/// A record's codes of one row to their places.
fn pack_codes(g: &Geometry, codes: &[u8], out: &mut [u8], lane: usize) {
    let blocks = codes.chunks_exact(BLOCK).zip(out.chunks_exact_mut(g.block_bytes()));
    for (codes, out) in blocks {
        let (quads, _) = codes.as_chunks::<4>();
        let places = out[..].chunks_exact_mut(ROWS * 4);
        if g.codes == Codes::Affine8 {
            for (quad, place) in quads.iter().zip(places) {
                place[lane * 4..lane * 4 + 4].copy_from_slice(quad);
            }
        } else {
            let (low, high) = quads.split_at(BLOCK / 8);
            for ((low, high), place) in low.iter().zip(high).zip(places) {
                let both =
                    u32::from_le_bytes(*low) & 0x0f0f_0f0f | (u32::from_le_bytes(*high) & 0x0f0f_0f0f) << 4;
                place[lane * 4..lane * 4 + 4].copy_from_slice(&both.to_le_bytes());
            }
            if g.codes == Codes::Affine6 {
                let tops = out[ROWS * BLOCK / 2..].chunks_exact_mut(ROWS * 4);
                for (four, place) in quads.chunks_exact(4).zip(tops) {
                    let top = |at: usize| (u32::from_le_bytes(four[at]) >> 4 & 0x0303_0303) << (2 * at);
                    let bits = top(0) | top(1) | top(2) | top(3);
                    place[lane * 4..lane * 4 + 4].copy_from_slice(&bits.to_le_bytes());
                }
            }
        }
    }
}
