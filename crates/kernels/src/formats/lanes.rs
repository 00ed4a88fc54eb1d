//! Quantised weights in memory: the blocks of sixteen rows side by side, so that a kernel reads a
//! panel front to back and unpacks sixteen outputs at once.
//!
//! Sixteen blocks, one per lane, become
//!
//! ```text
//! floats    [scale, minimum][16 lanes]                    f16 (nf4: f32), as published
//! then, for each part of 32 values:
//!   scales  [1 or 2][16] i8, minima [1 or 2][16] i8       where the format has any
//!   low     [32-bit words][16]                            8, 4 or 2 bits of each code
//!   high    [32-bit words][16]                            0, 1 or 2 more bits
//! ```
//!
//! Within a word, four neighbouring values lie in its four bytes, the next four in the bits above.
//! Nothing is rounded: the numbers are those of the published block. Only 6-bit scales grow to a
//! byte (q4_k takes 4.625 bits per value instead of 4.5).

use super::{Dtype, PART, iq4, nf4, q2_k, q3_k, q4, q4_k, q5, q5_k, q6_k, q8_0};
use crate::packed::PANEL;
use crate::simd::{Integers, Kernel, Simd};
use half::f16;
use std::ops::Range;

/// How a quantised format fills the lanes. A value is scale·(code - OFFSET), or scale·TABLE[code],
/// minus or plus the minimum.
pub(crate) trait Lanes {
    /// Values per block.
    const BLOCK: usize;
    /// Bits of a code in the low words: 8 (signed), 4 or 2.
    const LOW: usize = 4;
    /// Bits of a code in the high words.
    const HIGH: usize = 0;
    /// Floats per block: a scale, or a scale and a minimum.
    const FLOATS: usize = 1;
    /// 2 for f16, 4 for f32.
    const FLOAT_BYTES: usize = 2;
    /// Integer scales per part, each for 32/SCALES values.
    const SCALES: usize = 0;
    /// Whether each has an integer minimum, to be subtracted.
    const MINIMA: bool = false;
    /// Taken off every code.
    const OFFSET: f32 = 0.0;
    /// What codes stand for, if not for themselves.
    const TABLE: Option<&'static [f32; 16]> = None;

    /// The floats of a block, as stored.
    fn floats(block: &[u8]) -> [u8; 4];
    /// The codes and integer scales of a part.
    fn split(block: &[u8], part: usize) -> Part;
}

/// A part of one block, taken apart.
pub(crate) struct Part {
    pub(crate) codes: [u8; PART],
    pub(crate) scales: [i8; 2],
    pub(crate) minima: [i8; 2],
}

impl Part {
    /// A part without scales of its own.
    pub(crate) fn plain(codes: [u8; PART]) -> Part {
        Part { codes, scales: [0; 2], minima: [0; 2] }
    }
}

type FloatsOf = fn(&[u8]) -> [u8; 4];
type PartOf = fn(&[u8], usize) -> Part;

/// The numbers of a [`Lanes`] as one value, so that kernels are compiled per kind of code, not per
/// format.
#[derive(Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) low: usize,
    pub(crate) high: usize,
    floats: usize,
    float_bytes: usize,
    scales: usize,
    minima: bool,
    pub(crate) offset: f32,
    pub(crate) table: Option<&'static [f32; 16]>,
    /// Parts per block.
    parts: usize,
    floats_of: FloatsOf,
    part_of: PartOf,
}

impl Layout {
    const fn of<L: Lanes>() -> Layout {
        Layout {
            low: L::LOW,
            high: L::HIGH,
            floats: L::FLOATS,
            float_bytes: L::FLOAT_BYTES,
            scales: L::SCALES,
            minima: L::MINIMA,
            offset: L::OFFSET,
            table: L::TABLE,
            parts: L::BLOCK / PART,
            floats_of: L::floats,
            part_of: L::split,
        }
    }

    pub(crate) fn new(dtype: Dtype) -> Layout {
        match dtype {
            Dtype::Q8_0 => const { Layout::of::<q8_0::Lane>() },
            Dtype::Q4_0 => const { Layout::of::<q4::Lane0>() },
            Dtype::Q4_1 => const { Layout::of::<q4::Lane1>() },
            Dtype::Q5_0 => const { Layout::of::<q5::Lane0>() },
            Dtype::Q5_1 => const { Layout::of::<q5::Lane1>() },
            Dtype::Q2K => const { Layout::of::<q2_k::Lane>() },
            Dtype::Q3K => const { Layout::of::<q3_k::Lane>() },
            Dtype::Q4K => const { Layout::of::<q4_k::Lane>() },
            Dtype::Q5K => const { Layout::of::<q5_k::Lane>() },
            Dtype::Q6K => const { Layout::of::<q6_k::Lane>() },
            Dtype::Iq4Nl => const { Layout::of::<iq4::LaneNl>() },
            Dtype::Iq4Xs => const { Layout::of::<iq4::LaneXs>() },
            Dtype::Nf4 => const { Layout::of::<nf4::Lane>() },
            Dtype::F32 | Dtype::F16 | Dtype::Bf16 => unreachable!("floats are not quantised"),
        }
    }

    /// Whether codes, or what the table says of them, are integers, so that products can be had
    /// in integers.
    pub(crate) fn has_integers(&self) -> bool {
        self.table.is_none_or(|table| table.iter().all(|value| value.fract() == 0.0))
    }

    /// Whether these are signed bytes.
    pub(crate) fn has_signed_codes(&self) -> bool {
        self.low == 8 || self.table.is_some()
    }

    /// Whether something is added to every value beside its scale times an integer.
    pub(crate) fn has_minima(&self) -> bool {
        self.floats == 2
    }

    /// Scales per part, one at least.
    pub(crate) fn groups(&self) -> usize {
        self.scales.max(1)
    }

    /// The table as signed bytes.
    pub(crate) fn integer_table(&self) -> [i8; 16] {
        self.table.map_or([0; 16], |table| table.map(|value| value as i8))
    }

    /// Bytes of the floats of sixteen blocks.
    fn head_bytes(&self) -> usize {
        self.floats * self.float_bytes * PANEL
    }

    /// Bytes of the integer scales and minima of a part of sixteen blocks.
    fn scale_bytes(&self) -> usize {
        self.scales * PANEL * if self.minima { 2 } else { 1 }
    }

    /// Bytes of the words that hold `bits` bits of the codes of a part of sixteen blocks.
    fn word_bytes(bits: usize) -> usize {
        bits * PART / 8 * PANEL
    }

    fn part_bytes(&self) -> usize {
        self.scale_bytes() + Self::word_bytes(self.low + self.high)
    }

    /// Bytes of sixteen blocks.
    fn block_bytes(&self) -> usize {
        self.head_bytes() + self.parts * self.part_bytes()
    }
}

/// Bytes of one panel of `k` inputs.
pub(crate) fn panel_bytes(dtype: Dtype, k: usize) -> usize {
    k / dtype.block() * Layout::new(dtype).block_bytes()
}

/// Puts a row's blocks into its lane of a panel.
pub(crate) fn place(dtype: Dtype, row: &[u8], lane: usize, panel: &mut [u8]) {
    let layout = Layout::new(dtype);
    let blocks = panel.chunks_exact_mut(layout.block_bytes());
    for (from, to) in row.chunks_exact(dtype.block_bytes()).zip(blocks) {
        let (head, parts) = to.split_at_mut(layout.head_bytes());
        let size = layout.float_bytes;
        for (i, float) in
            (layout.floats_of)(from).chunks_exact(size).take(layout.floats).enumerate()
        {
            let at = (i * PANEL + lane) * size;
            head[at..at + size].copy_from_slice(float);
        }
        for (i, to) in parts.chunks_exact_mut(layout.part_bytes()).enumerate() {
            let part = (layout.part_of)(from, i);
            let (scales, words) = to.split_at_mut(layout.scale_bytes());
            for s in 0..layout.scales {
                scales[s * PANEL + lane] = part.scales[s] as u8;
                if layout.minima {
                    scales[(layout.scales + s) * PANEL + lane] = part.minima[s] as u8;
                }
            }
            let (low, high) = words.split_at_mut(Layout::word_bytes(layout.low));
            place_bits(low, lane, layout.low, part.codes);
            if layout.high > 0 {
                place_bits(high, lane, layout.high, part.codes.map(|code| code >> layout.low));
            }
        }
    }
}

/// Writes the low `bits` bits of each code where [`place_of`] says.
fn place_bits(words: &mut [u8], lane: usize, bits: usize, codes: [u8; PART]) {
    let mask = (0xffu16 >> (8 - bits)) as u8;
    for (i, code) in codes.iter().enumerate() {
        let (word, byte, shift) = place_of(i, bits);
        let to = &mut words[word * PANEL * 4 + lane * 4 + byte];
        if shift == 0 {
            *to = 0;
        }
        *to |= (code & mask) << shift;
    }
}

/// Word, byte in it and shift in that of value `i`, when a value has `bits` bits.
#[inline(always)]
const fn place_of(i: usize, bits: usize) -> (usize, usize, usize) {
    let per_word = 32 / bits;
    (i / per_word, i % 4, i % per_word / 4 * bits)
}

/// Unpacks a stretch of one panel to `[depth][16]`.
pub(crate) struct UnpackPanel {
    pub(crate) dtype: Dtype,
    /// Where the panel starts.
    pub(crate) panel: *const u8,
    /// First value of the stretch and its length, multiples of 32.
    pub(crate) start: usize,
    pub(crate) len: usize,
    pub(crate) to: *mut f32,
}

// Run through `Simd::call`: one copy of the unrolled loops per level.
impl Kernel for UnpackPanel {
    type Output = ();

    /// # Safety
    /// The panel covers the stretch and `to` has room for it; the processor supports `S`.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller's contract.
        unsafe { S::unpack(self) }
    }
}

/// Where a part of sixteen blocks keeps its numbers.
pub(crate) struct Places {
    /// The floats of the block.
    head: *const u8,
    scales: *const u8,
    low: *const u8,
    high: *const u8,
}

/// The parts of a panel, from and to as given.
///
/// # Safety
/// The panel covers them.
#[inline(always)]
pub(crate) unsafe fn places(
    layout: Layout,
    panel: *const u8,
    parts: Range<usize>,
) -> impl Iterator<Item = Places> {
    parts.map(move |part| {
        // SAFETY: the part is inside the panel.
        unsafe {
            let head = panel.add(part / layout.parts * layout.block_bytes());
            let within = part % layout.parts * layout.part_bytes();
            let scales = head.add(layout.head_bytes() + within);
            let low = scales.add(layout.scale_bytes());
            let high = low.add(Layout::word_bytes(layout.low));
            Places { head, scales, low, high }
        }
    })
}

/// Four neighbouring codes of every lane make a word; a part has eight of these.
pub(crate) const QUADS: usize = PART / 4;

/// The lowest `bits` bits of each byte.
const fn byte_mask(bits: usize) -> i32 {
    (0x0101_0101u32 * ((1 << bits) - 1)) as i32
}

impl Places {
    /// Float `i` of each lane's block.
    ///
    /// # Safety
    /// The format has such a float; the processor supports `S`.
    #[inline(always)]
    unsafe fn float<S: Integers>(&self, layout: Layout, i: usize, lane: usize) -> S::F {
        // SAFETY: the caller's contract.
        unsafe {
            let at = self.head.add((i * PANEL + lane) * layout.float_bytes);
            match layout.float_bytes {
                2 => S::load_f16(at),
                _ => S::load(at.cast()),
            }
        }
    }

    /// For each half of the part: the scale, and what is added.
    ///
    /// # Safety
    /// The layout is that of the part; the processor supports `S`.
    #[inline(always)]
    pub(crate) unsafe fn scales<S: Integers>(
        &self,
        layout: Layout,
        lane: usize,
    ) -> [(S::F, S::F); 2] {
        // SAFETY: every offset is inside the part or the head of its block.
        unsafe {
            let integer =
                |i: usize| S::float(S::load_signed_bytes(self.scales.add(i * PANEL + lane)));
            let d = self.float::<S>(layout, 0, lane);
            let mut groups = [(d, S::zero()); 2];
            for (half, (scale, add)) in groups.iter_mut().enumerate() {
                let group = half * layout.scales / 2;
                if layout.scales > 0 {
                    *scale = S::mul(d, integer(group));
                }
                *add = match (layout.minima, layout.floats) {
                    (true, _) => {
                        let minimum = self.float::<S>(layout, 1, lane);
                        let minimum = S::mul(minimum, integer(layout.scales + group));
                        S::sub(S::zero(), minimum)
                    }
                    (false, 1) => S::mul(*scale, S::splat(-layout.offset)),
                    (false, _) => self.float::<S>(layout, 1, lane),
                };
            }
            groups
        }
    }

    /// The codes, four neighbours to a word.
    ///
    /// # Safety
    /// The layout of the part has `LOW` and `HIGH` bits; the processor supports `S`.
    #[inline(always)]
    pub(crate) unsafe fn codes<S: Integers, const LOW: usize, const HIGH: usize>(
        &self,
        lane: usize,
    ) -> [S::I; QUADS] {
        // Loops, not closures: a closure that is not inlined has no vector instructions.
        let mask = const { [byte_mask(LOW), byte_mask(HIGH)] };
        // SAFETY: every word is inside the part.
        unsafe {
            let mut codes = [S::load_dwords(self.low.add(lane * 4)); QUADS];
            for quad in 0..QUADS {
                let (word, _, shift) = place_of(quad * 4, LOW);
                let low = S::load_dwords(self.low.add((word * PANEL + lane) * 4));
                codes[quad] = match LOW {
                    8 => low,
                    _ => S::bits(low, shift as u32, mask[0]),
                };
                if HIGH > 0 {
                    let (word, _, shift) = place_of(quad * 4, HIGH);
                    let high = S::load_dwords(self.high.add((word * PANEL + lane) * 4));
                    let high = S::bits(high, shift as u32, mask[1]);
                    codes[quad] = S::or_left(codes[quad], high, LOW as u32);
                }
            }
            codes
        }
    }

    /// [`Places::scales`] of sixteen lanes by plain loops.
    ///
    /// # Safety
    /// The layout is that of the part.
    pub(crate) unsafe fn plain_scales(&self, layout: Layout) -> [[(f32, f32); PANEL]; 2] {
        // SAFETY: every offset is inside the part or the head of its block.
        unsafe {
            let float = |i: usize, lane: usize| {
                let at = self.head.add((i * PANEL + lane) * layout.float_bytes);
                match layout.float_bytes {
                    2 => f16::from_bits(at.cast::<u16>().read_unaligned()).to_f32(),
                    _ => at.cast::<f32>().read_unaligned(),
                }
            };
            let integer =
                |i: usize, lane: usize| *self.scales.add(i * PANEL + lane).cast::<i8>() as f32;
            std::array::from_fn(|half| {
                std::array::from_fn(|lane| {
                    let group = half * layout.scales / 2;
                    let mut scale = float(0, lane);
                    if layout.scales > 0 {
                        scale *= integer(group, lane);
                    }
                    let add = match (layout.minima, layout.floats) {
                        (true, _) => -(float(1, lane) * integer(layout.scales + group, lane)),
                        (false, 1) => scale * -layout.offset,
                        (false, _) => float(1, lane),
                    };
                    (scale, add)
                })
            })
        }
    }

    /// Code `i` of a lane, as its bits stand.
    ///
    /// # Safety
    /// The layout is that of the part; `i` < 32, `lane` < 16.
    #[inline(always)]
    unsafe fn plain_code(&self, layout: Layout, i: usize, lane: usize) -> u8 {
        let code = |words: *const u8, bits: usize| {
            let (word, byte, shift) = place_of(i, bits);
            // SAFETY: the word is inside the part.
            let byte = unsafe { *words.add((word * PANEL + lane) * 4 + byte) };
            byte >> shift & (0xffu16 >> (8 - bits)) as u8
        };
        match layout.high {
            0 => code(self.low, layout.low),
            high => code(self.low, layout.low) | code(self.high, high) << layout.low,
        }
    }

    /// The integers that codes stand for, `[32][16]`.
    ///
    /// # Safety
    /// The layout is that of the part.
    pub(crate) unsafe fn plain_codes(&self, layout: Layout) -> [[i16; PANEL]; PART] {
        let table = layout.integer_table();
        std::array::from_fn(|i| {
            std::array::from_fn(|lane| {
                // SAFETY: the caller's contract.
                let code = unsafe { self.plain_code(layout, i, lane) };
                match layout.table {
                    Some(_) => table[code as usize] as i16,
                    None if layout.low == 8 => code as i8 as i16,
                    None => code as i16,
                }
            })
        })
    }
}

impl UnpackPanel {
    /// The parts of the stretch, and where their `[32][16]` values go.
    ///
    /// # Safety
    /// The panel covers the stretch and `to` has room for it.
    #[inline(always)]
    unsafe fn places(&self, layout: Layout) -> impl Iterator<Item = (Places, *mut f32)> {
        let UnpackPanel { panel, start, len, to, .. } = *self;
        // SAFETY: the caller's contract.
        let parts = unsafe { places(layout, panel, start / PART..(start + len) / PART) };
        parts.enumerate().map(move |(i, places)| (places, to.wrapping_add(i * PART * PANEL)))
    }

    /// Unpacks by plain loops, value by value.
    ///
    /// # Safety
    /// The panel covers the stretch and `to` has room for it.
    #[inline(never)]
    pub(crate) unsafe fn plain(self) {
        let layout = Layout::new(self.dtype);
        // SAFETY: the caller's contract.
        unsafe {
            for (places, to) in self.places(layout) {
                let scales = places.plain_scales(layout);
                for i in 0..PART {
                    for lane in 0..PANEL {
                        let (scale, add) = scales[i / (PART / 2)][lane];
                        let code = places.plain_code(layout, i, lane);
                        let value = match layout.table {
                            Some(table) => table[code as usize],
                            None if layout.low == 8 => code as i8 as f32,
                            None => code as f32,
                        };
                        *to.add(i * PANEL + lane) = scale * value + add;
                    }
                }
            }
        }
    }

    /// Unpacks sixteen outputs at a time.
    ///
    /// # Safety
    /// The panel covers the stretch and `to` has room for it; the processor supports `S`.
    #[inline(always)]
    pub(crate) unsafe fn by_vectors<S: Integers>(self) {
        let layout = Layout::new(self.dtype);
        // SAFETY: the caller's contract.
        unsafe {
            match (layout.low, layout.high, layout.table) {
                (8, 0, None) => self.coded::<S, 8, 0, false>(layout),
                (4, 0, None) => self.coded::<S, 4, 0, false>(layout),
                (4, 0, Some(_)) => self.coded::<S, 4, 0, true>(layout),
                (4, 1, None) => self.coded::<S, 4, 1, false>(layout),
                (4, 2, None) => self.coded::<S, 4, 2, false>(layout),
                (2, 0, None) => self.coded::<S, 2, 0, false>(layout),
                (2, 1, None) => self.coded::<S, 2, 1, false>(layout),
                _ => unreachable!("no format has such codes"),
            }
        }
    }

    /// # Safety
    /// As [`UnpackPanel::by_vectors`]; the codes are as the parameters say.
    #[inline(always)]
    unsafe fn coded<S: Integers, const LOW: usize, const HIGH: usize, const TABLE: bool>(
        self,
        layout: Layout,
    ) {
        let table = layout.table.map_or(std::ptr::null(), |table| table.as_ptr());
        // SAFETY: every offset below is inside the part or the head of its block.
        unsafe {
            for (places, to) in self.places(layout) {
                for lane in (0..PANEL).step_by(S::LANES) {
                    let groups = places.scales::<S>(layout, lane);
                    let Places { low, high, .. } = places;
                    let per_word = 32 / LOW;
                    for word in 0..LOW {
                        let first = word * per_word;
                        let (scale, add) = groups[first / 16];
                        let low = S::load_dwords(low.add((word * PANEL + lane) * 4));
                        let high = if HIGH > 0 {
                            S::load_dwords(high.add((first * HIGH / 32 * PANEL + lane) * 4))
                        } else {
                            low
                        };
                        for i in 0..per_word {
                            let (_, byte, shift) = place_of(i, LOW);
                            let mut code = match LOW {
                                8 => S::signed_byte(low, byte as u32),
                                bits => S::bits(low, (byte * 8 + shift) as u32, (1 << bits) - 1),
                            };
                            if HIGH > 0 {
                                let (_, byte, shift) = place_of(first + i, HIGH);
                                let mask = (1 << HIGH) - 1;
                                let more = S::bits(high, (byte * 8 + shift) as u32, mask);
                                code = S::or_left(code, more, LOW as u32);
                            }
                            let value = if TABLE { S::lookup(table, code) } else { S::float(code) };
                            // Where a minimum or an offset is added, the product is exact in 24
                            // bits, and else the sum is: fused or not, the bits are those of the
                            // plain code.
                            S::store(to.add((first + i) * PANEL + lane), S::fma(scale, value, add));
                        }
                    }
                }
            }
        }
    }
}
