//! How loops over grouped weights read a panel: where it lies, or unpacked into one byte a code and scales in f32.

use super::{Codes, Geometry, MX_CODES, ROWS, Scales};
use crate::dots::{DotKernel, Dots};
use crate::pack::BLOCK;

/// How far ahead a panel that is read where it lies is asked for: into the second level's cache first, whose many open
/// requests keep memory busy while a core computes, and from there into the first. Measured with `--example products` on
/// Zen 4: one row 1.3 (Q4_0, Q8_0) to 1.6 times (Q4_K), eight rows of Q8_0 1.4 times as fast as one request 4 KB ahead.
const FAR_BYTES: usize = 16384;
const SOON_BYTES: usize = 2048;
/// How far ahead a panel is asked for that is unpacked.
const AHEAD_BYTES: usize = 4096;

/// A panel, as a tile reads it.
///
/// # Safety
/// Every method needs the instructions of `D`, a block of the panel, and a `lane` that is 0 or, where registers hold
/// eight rows, 8.
pub(crate) trait Form: Copy {
    /// Whether groups have a minimum.
    const MINS: bool;
    /// Scales in a block.
    const HALVES: usize;
    /// Bits of a code at most, as the dot products count them: 4 (or less than 32), 6 or 8.
    const BITS: u8;
    /// Whether this is a panel where it lies.
    const DIRECT: bool;
    /// The eight quads of columns of a block.
    unsafe fn weights<D: Dots>(&self, block: usize, lane: usize) -> [[D::W; 4]; 2];
    /// One of them.
    #[inline(always)]
    unsafe fn quad<D: Dots>(&self, block: usize, quad: usize, lane: usize) -> D::W {
        // SAFETY: as the caller's.
        unsafe { self.weights::<D>(block, lane)[quad / 4][quad % 4] }
    }
    unsafe fn scale<D: Dots>(&self, block: usize, half: usize, lane: usize) -> D::F;
    unsafe fn min<D: Dots>(&self, block: usize, half: usize, lane: usize) -> D::F;
    /// Asks for what comes a while after this block.
    unsafe fn ask<D: Dots>(&self, block: usize);
}

/// Codes of four bits in [`Direct`].
pub(crate) const FOUR: u8 = 0;
/// Codes of eight bits.
pub(crate) const EIGHT: u8 = 1;
/// e2m1 floats.
pub(crate) const MX: u8 = 2;
/// Codes of six bits.
pub(crate) const SIX: u8 = 3;

/// A panel where it lies, of groups of at least a block, or with `HALVES` 2 of half a block. `FACTORS` as
/// [`Geometry::factors`].
#[derive(Clone, Copy)]
pub(crate) struct Direct<
    const CODES: u8,
    const MINS: bool,
    const FACTORS: bool = false,
    const HALVES: usize = 1,
> {
    panel: *const u8,
    head_bytes: usize,
    record_bytes: usize,
    mins_at: usize,
    /// Blocks in a record and in a group, as powers of two.
    record_shift: u32,
    group_shift: u32,
    bf16: bool,
}

impl<const CODES: u8, const MINS: bool, const FACTORS: bool, const HALVES: usize>
    Direct<CODES, MINS, FACTORS, HALVES>
{
    /// Of a panel's bytes.
    pub(crate) fn new(panel: &[u8], g: &Geometry) -> Self {
        assert_eq!(panel.len(), g.panel_bytes());
        assert_eq!((g.mins, g.factors, g.halves()), (MINS, FACTORS, HALVES));
        Self {
            panel: panel.as_ptr(),
            head_bytes: g.head_bytes(),
            record_bytes: g.record_bytes(),
            mins_at: g.scale_bytes(),
            record_shift: g.record_blocks().ilog2(),
            group_shift: (g.group / BLOCK).max(1).ilog2(),
            bf16: g.scales == Scales::Bf16,
        }
    }

    const BLOCK_BYTES: usize = match CODES {
        EIGHT => ROWS * BLOCK,
        SIX => ROWS * BLOCK * 3 / 4,
        _ => ROWS * BLOCK / 2,
    };

    #[inline(always)]
    fn record(&self, block: usize) -> *const u8 {
        self.panel.wrapping_add((block >> self.record_shift) * self.record_bytes)
    }

    /// Where a block's codes begin.
    #[inline(always)]
    fn codes(&self, block: usize) -> *const u8 {
        let within = block & ((1 << self.record_shift) - 1);
        self.record(block).wrapping_add(self.head_bytes + within * Self::BLOCK_BYTES)
    }

    #[inline(always)]
    unsafe fn vector<D: Dots>(&self, block: usize, half: usize, at: usize, lane: usize) -> D::F {
        let within = block & ((1 << self.record_shift) - 1);
        let vector = (within >> self.group_shift) * HALVES + half;
        if FACTORS {
            let from = self.record(block).wrapping_add(at);
            let factor = from.wrapping_add((2 + vector) * ROWS + lane);
            // SAFETY: inside the record's head, sixteen halves and then bytes; the caller vouches for the instructions.
            unsafe {
                let scale = D::load_f16(from.cast::<u16>().wrapping_add(lane));
                let factor =
                    if MINS { D::load_bytes::<false>(factor) } else { D::load_bytes::<true>(factor) };
                return D::mul(scale, factor);
            }
        }
        let from = self.record(block).wrapping_add(at).cast::<u16>().wrapping_add(vector * ROWS + lane);
        // SAFETY: inside the record's head; the caller vouches for the instructions.
        unsafe { if self.bf16 { D::load_bf16(from) } else { D::load_f16(from) } }
    }
}

impl<const CODES: u8, const MINS: bool, const FACTORS: bool, const HALVES: usize> Form
    for Direct<CODES, MINS, FACTORS, HALVES>
{
    const MINS: bool = MINS;
    const HALVES: usize = HALVES;
    const BITS: u8 = match CODES {
        EIGHT => 8,
        SIX => 6,
        _ => 4,
    };
    const DIRECT: bool = true;

    #[inline(always)]
    unsafe fn weights<D: Dots>(&self, block: usize, lane: usize) -> [[D::W; 4]; 2] {
        // SAFETY: a block of the panel; the caller vouches for the instructions.
        unsafe { quads::<D, CODES, true>(self.codes(block).add(lane * 4)) }
    }

    #[inline(always)]
    unsafe fn scale<D: Dots>(&self, block: usize, half: usize, lane: usize) -> D::F {
        // SAFETY: as above.
        unsafe { self.vector::<D>(block, half, 0, lane) }
    }

    #[inline(always)]
    unsafe fn min<D: Dots>(&self, block: usize, half: usize, lane: usize) -> D::F {
        // SAFETY: as above.
        unsafe { self.vector::<D>(block, half, self.mins_at, lane) }
    }

    #[inline(always)]
    unsafe fn ask<D: Dots>(&self, block: usize) {
        // An even part of the record, its head included: the stream has no gaps, nor does what is asked for.
        let within = block & ((1 << self.record_shift) - 1);
        let part = within * (self.record_bytes >> self.record_shift);
        let from = self.record(block).wrapping_add(part);
        for line in 0..Self::BLOCK_BYTES / 64 + 1 {
            // SAFETY: a prefetch may point anywhere.
            unsafe {
                D::prefetch_second(from.wrapping_add(FAR_BYTES + line * 64));
                D::prefetch(from.wrapping_add(SOON_BYTES + line * 64));
            }
        }
    }
}

/// A block's quads, one byte a code; `FLIP` says whether codes of eight bits become what [`Dots::dot_wide`] takes.
#[inline(always)]
unsafe fn quads<D: Dots, const CODES: u8, const FLIP: bool>(block: *const u8) -> [[D::W; 4]; 2] {
    // SAFETY: the caller's block and instructions.
    unsafe {
        if CODES == EIGHT {
            let mut both = [[D::bytes(block); 4]; 2];
            for half in 0..2 {
                for quad in 0..4 {
                    let w = D::bytes(block.add((half * 4 + quad) * ROWS * 4));
                    both[half][quad] = if D::SIGNED && FLIP { D::flip(w) } else { w };
                }
            }
            both
        } else {
            let (mut low, mut high) = ([D::bytes(block); 4], [D::bytes(block); 4]);
            for quad in 0..4 {
                let w = D::bytes(block.add(quad * ROWS * 4));
                (low[quad], high[quad]) = (D::low(w), D::high(w));
                if CODES == MX {
                    low[quad] = D::look_up(&MX_CODES, low[quad]);
                    high[quad] = D::look_up(&MX_CODES, high[quad]);
                }
            }
            if CODES == SIX {
                let tops = block.add(ROWS * BLOCK / 2);
                low = topped::<D>(low, D::bytes(tops));
                high = topped::<D>(high, D::bytes(tops.add(ROWS * 4)));
            }
            [low, high]
        }
    }
}

/// Four quads with their codes' upper two bits.
#[inline(always)]
unsafe fn topped<D: Dots>(quads: [D::W; 4], tops: D::W) -> [D::W; 4] {
    // SAFETY: the caller's instructions.
    unsafe {
        [
            D::or(quads[0], D::top::<0>(tops)),
            D::or(quads[1], D::top::<1>(tops)),
            D::or(quads[2], D::top::<2>(tops)),
            D::or(quads[3], D::top::<3>(tops)),
        ]
    }
}

/// A panel unpacked: `codes: [block][quad][16 rows][4]`, `scales` and `mins: [block][half][16 rows]`.
#[derive(Default)]
pub(crate) struct Unpacked {
    codes: Vec<u8>,
    scales: Vec<f32>,
    mins: Vec<f32>,
}

impl Unpacked {
    /// Makes room for a panel with so many scales a block.
    pub(crate) fn fit(&mut self, g: &Geometry, halves: usize) {
        grow(&mut self.codes, g.blocks() * BLOCK * ROWS);
        grow(&mut self.scales, g.blocks() * halves * ROWS);
        grow(&mut self.mins, g.blocks() * halves * ROWS);
    }

    #[inline(always)]
    unsafe fn unpack_codes<D: Dots, const CODES: u8, const FLIP: bool>(
        &mut self,
        panel: *const u8,
        g: &Geometry,
    ) {
        let (record_blocks, block_bytes) = (g.record_blocks(), g.block_bytes());
        assert!(self.codes.len() >= g.blocks() * BLOCK * ROWS);
        let mut to = self.codes.as_mut_ptr();
        // SAFETY: all blocks of all records of the panel, into as many blocks of bytes.
        unsafe {
            for record in 0..g.records() {
                let codes = panel.add(record * g.record_bytes() + g.head_bytes());
                for block in 0..record_blocks {
                    let from = codes.add(block * block_bytes);
                    D::prefetch(from.wrapping_add(AHEAD_BYTES));
                    D::prefetch(from.wrapping_add(AHEAD_BYTES + 64));
                    D::prefetch(from.wrapping_add(AHEAD_BYTES + 128));
                    D::prefetch(from.wrapping_add(AHEAD_BYTES + 192));
                    for lane in (0..ROWS).step_by(D::ROWS) {
                        let quads = quads::<D, CODES, FLIP>(from.add(lane * 4));
                        for half in 0..2 {
                            for quad in 0..4 {
                                let at = (half * 4 + quad) * ROWS * 4 + lane * 4;
                                D::put_bytes(to.add(at), quads[half][quad]);
                            }
                        }
                    }
                    to = to.add(BLOCK * ROWS);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn unpack_scales<D: Dots>(&mut self, panel: *const u8, g: &Geometry, halves: usize) {
        let vectors = g.blocks() * halves;
        assert!(self.scales.len() >= vectors * ROWS && self.mins.len() >= vectors * ROWS);
        // Vectors of one record, as they are used: each of a wide group's several times.
        let (per_record, record_bytes) = (g.record_blocks() * halves, g.record_bytes());
        let span = BLOCK / halves;
        for vector in 0..vectors {
            let record = vector / per_record;
            let within = vector % per_record * span / g.group;
            // SAFETY: inside the record's head; the places are inside the vectors just checked.
            unsafe {
                let head = panel.add(record * record_bytes);
                for lane in (0..ROWS).step_by(D::ROWS) {
                    let to = vector * ROWS + lane;
                    D::store(self.scales.as_mut_ptr().add(to), load::<D>(g, head, within, lane));
                    if g.mins {
                        let head = head.add(g.scale_bytes());
                        D::store(self.mins.as_mut_ptr().add(to), load::<D>(g, head, within, lane));
                    }
                }
            }
        }
    }

    /// As a form, of the panel that was unpacked last.
    pub(crate) fn form<const MINS: bool, const HALVES: usize, const BITS: u8>(
        &self,
    ) -> Plain<MINS, HALVES, BITS> {
        Plain { codes: self.codes.as_ptr(), scales: self.scales.as_ptr(), mins: self.mins.as_ptr() }
    }
}

/// A panel to be unpacked; `flip` says whether for [`Dots::dot_wide`], where that takes signed bytes.
pub(crate) struct Unpacking<'a> {
    pub(crate) to: &'a mut Unpacked,
    pub(crate) panel: &'a [u8],
    pub(crate) g: &'a Geometry,
    pub(crate) halves: usize,
    pub(crate) flip: bool,
}

impl DotKernel for Unpacking<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<D: Dots>(self) {
        let Self { to, panel, g, halves, flip } = self;
        assert_eq!(panel.len(), g.panel_bytes());
        let panel = panel.as_ptr();
        // SAFETY: a panel of this geometry, just checked; the caller vouches for the instructions.
        unsafe {
            match (g.codes, flip) {
                (Codes::Affine4, _) => to.unpack_codes::<D, FOUR, false>(panel, g),
                (Codes::Affine8, false) => to.unpack_codes::<D, EIGHT, false>(panel, g),
                (Codes::Affine8, true) => to.unpack_codes::<D, EIGHT, true>(panel, g),
                (Codes::Affine6, _) => to.unpack_codes::<D, SIX, false>(panel, g),
                (Codes::Mxfp4, _) => to.unpack_codes::<D, MX, false>(panel, g),
            }
            to.unpack_scales::<D>(panel, g, halves);
        }
    }
}

fn grow<T: Copy + Default>(values: &mut Vec<T>, len: usize) {
    if values.len() < len {
        values.resize(len, T::default());
    }
}

/// Scales (or minima) of a record's group, from where they begin.
#[inline(always)]
unsafe fn load<D: Dots>(g: &Geometry, from: *const u8, group: usize, lane: usize) -> D::F {
    // SAFETY: as the caller's.
    unsafe {
        if g.factors {
            let factor = from.add(g.vector_bytes() + group * ROWS + lane);
            let factor = if g.mins { D::load_bytes::<false>(factor) } else { D::load_bytes::<true>(factor) };
            return D::mul(D::load_f16(from.cast::<u16>().add(lane)), factor);
        }
        let from = from.add(group * g.vector_bytes() + lane * g.scales.size());
        match g.scales {
            Scales::F16 => D::load_f16(from.cast()),
            Scales::Bf16 => D::load_bf16(from.cast()),
            Scales::F32 => D::load(from.cast()),
        }
    }
}

/// An unpacked panel.
#[derive(Clone, Copy)]
pub(crate) struct Plain<const MINS: bool, const HALVES: usize, const BITS: u8> {
    codes: *const u8,
    scales: *const f32,
    mins: *const f32,
}

impl<const MINS: bool, const HALVES: usize, const BITS: u8> Plain<MINS, HALVES, BITS> {
    /// Where its codes begin.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn codes(&self) -> *const u8 {
        self.codes
    }
}

impl<const MINS: bool, const HALVES: usize, const BITS: u8> Form for Plain<MINS, HALVES, BITS> {
    const MINS: bool = MINS;
    const HALVES: usize = HALVES;
    const BITS: u8 = BITS;
    const DIRECT: bool = false;

    #[inline(always)]
    unsafe fn weights<D: Dots>(&self, block: usize, lane: usize) -> [[D::W; 4]; 2] {
        // SAFETY: a block of the unpacked panel; the caller vouches for the instructions.
        unsafe { quads::<D, EIGHT, false>(self.codes.add(block * BLOCK * ROWS + lane * 4)) }
    }

    #[inline(always)]
    unsafe fn quad<D: Dots>(&self, block: usize, quad: usize, lane: usize) -> D::W {
        // SAFETY: as above.
        unsafe { D::bytes(self.codes.add((block * 8 + quad) * ROWS * 4 + lane * 4)) }
    }

    #[inline(always)]
    unsafe fn scale<D: Dots>(&self, block: usize, half: usize, lane: usize) -> D::F {
        // SAFETY: as above.
        unsafe { D::load(self.scales.add((block * HALVES + half) * ROWS + lane)) }
    }

    #[inline(always)]
    unsafe fn min<D: Dots>(&self, block: usize, half: usize, lane: usize) -> D::F {
        // SAFETY: as above.
        unsafe { D::load(self.mins.add((block * HALVES + half) * ROWS + lane)) }
    }

    #[inline(always)]
    unsafe fn ask<D: Dots>(&self, _block: usize) {}
}
