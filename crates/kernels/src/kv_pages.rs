//! Keys and values of a layer in pages of 16 tokens, as f32, bf16 or 8-bit integers.
//!
//! The layouts make every product of attention a register tile (see `tile.rs`): a head's part of a K
//! page, [D][16 keys], is a ready panel for the scores of 16 keys; of a V page, [16 keys][D], one for
//! 16 columns of the output. Shorter forms keep the layout and are widened a panel at a time.

use crate::matmul::widen;
use crate::simd::Simd;
use crate::tile::PANEL;
use crate::vector::SharedOutput;
use half::bf16;
use rayon::prelude::*;
use std::ops::Range;

/// Tokens per page.
pub const BLOCK_SIZE: usize = 16;

// A page of keys is one panel of the tile.
const _: () = assert!(BLOCK_SIZE == PANEL);

/// How pages hold keys and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvDtype {
    /// As they are computed: 4 bytes each.
    #[default]
    F32,
    /// Rounded to nearest even: 2 bytes each, relative error at most 2⁻⁸.
    Bf16,
    /// 8-bit integers with one f32 scale for each token and head: 1 + 4/D bytes each, error at most
    /// 1/254 of the largest of the D values.
    Q8,
}

impl KvDtype {
    /// The names that users write, see [`KvDtype::from_name`].
    pub const NAMES: [&'static str; 3] = ["f32", "bf16", "q8"];

    /// The form of this name.
    pub fn from_name(name: &str) -> Option<KvDtype> {
        match name {
            "f32" => Some(KvDtype::F32),
            "bf16" => Some(KvDtype::Bf16),
            "q8" => Some(KvDtype::Q8),
            _ => None,
        }
    }

    /// Bytes of keys, or of values, that one head of `head_dim` has of one token.
    pub fn bytes(self, head_dim: usize) -> usize {
        match self {
            KvDtype::F32 => 4 * head_dim,
            KvDtype::Bf16 => 2 * head_dim,
            KvDtype::Q8 => head_dim + size_of::<f32>(),
        }
    }
}

/// One layer's keys, [pages][KVH][D][16 keys], or values, [pages][KVH][16 keys][D].
#[derive(Clone, Debug, PartialEq)]
pub enum KvStore {
    /// [`KvDtype::F32`].
    F32(Vec<f32>),
    /// [`KvDtype::Bf16`]: the numbers' bits, because a `Vec` of zero bits costs no memory until it is
    /// written to.
    Bf16(Vec<u16>),
    /// [`KvDtype::Q8`]: a number is an integer times its scale.
    Q8 {
        /// The integers, from -127 to 127.
        values: Vec<i8>,
        /// The scales, [pages][KVH][16 keys].
        scales: Vec<f32>,
    },
}

impl KvStore {
    /// Room for `numbers` = pages · KVH · 16 · D numbers of heads of `head_dim`, all zero. Memory is
    /// touched only when it is written to.
    pub fn new(dtype: KvDtype, numbers: usize, head_dim: usize) -> KvStore {
        match dtype {
            KvDtype::F32 => KvStore::F32(vec![0.0; numbers]),
            KvDtype::Bf16 => KvStore::Bf16(vec![0; numbers]),
            KvDtype::Q8 => KvStore::Q8 {
                values: vec![0; numbers],
                scales: vec![0.0; numbers / head_dim.max(1)],
            },
        }
    }

    /// Numbers held.
    pub fn len(&self) -> usize {
        match self {
            KvStore::F32(values) => values.len(),
            KvStore::Bf16(values) => values.len(),
            KvStore::Q8 { values, .. } => values.len(),
        }
    }

    /// Whether there is room for nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number at `i`, whose scale is at `scale`.
    fn get(&self, i: usize, scale: usize) -> f32 {
        match self {
            KvStore::F32(values) => values[i],
            KvStore::Bf16(values) => bf16::from_bits(values[i]).to_f32(),
            KvStore::Q8 { values, scales } => f32::from(values[i]) * scales[scale],
        }
    }

    fn writer(&mut self) -> Writer {
        match self {
            KvStore::F32(values) => Writer::F32(SharedOutput::new(values)),
            KvStore::Bf16(values) => Writer::Bf16(SharedOutput::new(values)),
            KvStore::Q8 { values, scales } => {
                Writer::Q8(SharedOutput::new(values), SharedOutput::new(scales))
            }
        }
    }
}

/// One layer's pages.
#[derive(Clone, Copy, Debug)]
pub struct KvPages<'a> {
    /// Keys, [pages][KVH][D][16].
    pub k: &'a KvStore,
    /// Values, [pages][KVH][16][D].
    pub v: &'a KvStore,
    /// KVH: key/value heads.
    pub kv_heads: usize,
    /// D: values per head.
    pub head_dim: usize,
}

/// One sequence's part of a batch.
#[derive(Clone, Debug)]
pub struct AttnSegment<'a> {
    /// The batch rows of its new tokens. Segments come in ascending order and do not overlap.
    pub rows: Range<usize>,
    /// Tokens of the sequence that are in the pages from before.
    pub past: usize,
    /// The pages of tokens 0..16, 16..32, ...; at least enough for past + new tokens.
    pub pages: &'a [u32],
}

/// Writes the new keys and values, k and v [T, KVH, D], to the pages of their segments: token i
/// of a segment goes to position past + i. What a token becomes in a shorter form depends on itself
/// alone.
///
/// # Panics
/// When the lengths do not fit together or a page does not exist.
pub fn write_kv(
    k_pages: &mut KvStore,
    v_pages: &mut KvStore,
    k: &[f32],
    v: &[f32],
    segments: &[AttnSegment],
    kv_heads: usize,
    head_dim: usize,
) {
    let width = kv_heads * head_dim;
    assert!(
        k.len() == v.len() && if width == 0 { k.is_empty() } else { k.len().is_multiple_of(width) },
        "write_kv: {} keys and {} values are not [T, {kv_heads}, {head_dim}]",
        k.len(),
        v.len()
    );
    let pages = KvPages { k: k_pages, v: v_pages, kv_heads, head_dim };
    check_segments(segments, k.len() / width.max(1), &pages);
    let (k_out, v_out) = (k_pages.writer(), v_pages.writer());
    let write_head = |head: usize| {
        for segment in segments {
            for (row, position) in segment.rows.clone().zip(segment.past..) {
                let page = segment.pages[position / BLOCK_SIZE] as usize;
                let base = (page * kv_heads + head) * BLOCK_SIZE;
                let slot = position % BLOCK_SIZE;
                let from = (row * kv_heads + head) * head_dim;
                let (k, v) = (&k[from..from + head_dim], &v[from..from + head_dim]);
                // SAFETY: the page exists (see check_segments), and only this head's task writes this
                // head's part of any page.
                unsafe {
                    k_out.write(k, base * head_dim + slot, BLOCK_SIZE, base + slot);
                    v_out.write(v, (base + slot) * head_dim, 1, base + slot);
                }
            }
        }
    };
    // A few decode tokens are not worth waking threads for.
    if k.len() < 1 << 14 {
        (0..kv_heads).for_each(write_head);
    } else {
        (0..kv_heads).into_par_iter().for_each(write_head);
    }
}

/// A store that several threads write to, each its own places.
enum Writer {
    F32(SharedOutput),
    Bf16(SharedOutput<u16>),
    Q8(SharedOutput<i8>, SharedOutput),
}

impl Writer {
    /// Writes `numbers` from place `at` on, `step` apart, and their scale to place `scale`.
    ///
    /// # Safety
    /// The places must exist, and nobody else use them at the same time.
    unsafe fn write(&self, numbers: &[f32], at: usize, step: usize, scale: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Writer::F32(out) => {
                    for (i, &x) in numbers.iter().enumerate() {
                        *out.at(at + i * step) = x;
                    }
                }
                Writer::Bf16(out) => {
                    for (i, &x) in numbers.iter().enumerate() {
                        *out.at(at + i * step) = bf16::from_f32(x).to_bits();
                    }
                }
                Writer::Q8(out, scales) => {
                    let largest = numbers.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
                    // What is no number must not look like one: max passes over a NaN.
                    let finite = numbers.iter().all(|x| x.is_finite());
                    let unit = if finite { largest / 127.0 } else { f32::NAN };
                    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
                    for (i, &x) in numbers.iter().enumerate() {
                        *out.at(at + i * step) = (x * inverse).round_ties_even() as i8;
                    }
                    *scales.at(scale) = unit;
                }
            }
        }
    }
}

impl KvPages<'_> {
    /// Where a head's part of a page begins, in `k` and in `v`.
    #[inline(always)]
    pub(crate) fn base(&self, page: u32, kv_head: usize) -> usize {
        (page as usize * self.kv_heads + kv_head) * self.head_dim * BLOCK_SIZE
    }

    /// Where a head's part of the page of `position` begins, and the position's slot in it.
    fn place(&self, segment: &AttnSegment, kv_head: usize, position: usize) -> (usize, usize) {
        let base = self.base(segment.pages[position / BLOCK_SIZE], kv_head);
        (base, position % BLOCK_SIZE)
    }

    /// Element i of the key at `position` of a segment.
    pub(crate) fn key(
        &self,
        segment: &AttnSegment,
        kv_head: usize,
        position: usize,
        i: usize,
    ) -> f32 {
        let (base, slot) = self.place(segment, kv_head, position);
        self.k.get(base + i * BLOCK_SIZE + slot, base / self.head_dim + slot)
    }

    /// Element i of the value at `position` of a segment.
    pub(crate) fn value(
        &self,
        segment: &AttnSegment,
        kv_head: usize,
        position: usize,
        i: usize,
    ) -> f32 {
        let (base, slot) = self.place(segment, kv_head, position);
        self.v.get(base + slot * self.head_dim + i, base / self.head_dim + slot)
    }

    /// The panel [D][16] of a head's keys of a page that begins at `base` (see [`KvPages::base`]):
    /// where it lies, or widened into `room`.
    ///
    /// # Safety
    /// The page must exist, `room` hold D · 16 values, and the level of `S` be supported.
    #[inline(always)]
    pub(crate) unsafe fn key_panel<S: Simd>(&self, base: usize, room: *mut f32) -> *const f32 {
        let d = self.head_dim;
        // SAFETY: the caller's promise: every index is of the page, or below D · 16.
        unsafe {
            match self.k {
                KvStore::F32(values) => return values.as_ptr().add(base),
                KvStore::Bf16(values) => {
                    widen::<S>(room, values.as_ptr().add(base).cast(), d * PANEL);
                }
                KvStore::Q8 { values, scales } => {
                    let from = values.as_ptr().add(base);
                    let scale: [f32; PANEL] =
                        scales.as_ptr().add(base / d).cast::<[f32; PANEL]>().read_unaligned();
                    for i in 0..d {
                        for (slot, scale) in scale.iter().enumerate() {
                            let at = i * PANEL + slot;
                            *room.add(at) = f32::from(*from.add(at)) * scale;
                        }
                    }
                }
            }
        }
        room
    }

    /// Columns column..column + width of the values of tokens `slots` of the page that begins at
    /// `base`, widened into `room`, 16 apart; the columns up to the sixteenth become zero.
    ///
    /// # Safety
    /// The page must exist with such columns, width be at most 16, and `room` hold 16 · 16 values.
    #[inline(always)]
    pub(crate) unsafe fn value_panel(
        &self,
        base: usize,
        slots: Range<usize>,
        column: usize,
        width: usize,
        room: *mut f32,
    ) {
        let d = self.head_dim;
        for (row, slot) in slots.enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                let to = room.add(row * PANEL);
                if width < PANEL {
                    std::ptr::write_bytes(to.add(width), 0, PANEL - width);
                }
                let at = base + slot * d + column;
                match self.v {
                    KvStore::F32(values) => {
                        std::ptr::copy_nonoverlapping(values.as_ptr().add(at), to, width);
                    }
                    KvStore::Bf16(values) => {
                        let from = values.as_ptr().add(at);
                        for i in 0..width {
                            *to.add(i) = f32::from_bits(u32::from(*from.add(i)) << 16);
                        }
                    }
                    KvStore::Q8 { values, scales } => {
                        let from = values.as_ptr().add(at);
                        let scale = *scales.as_ptr().add(base / d + slot);
                        for i in 0..width {
                            *to.add(i) = f32::from(*from.add(i)) * scale;
                        }
                    }
                }
            }
        }
    }
}

pub(crate) fn check_segments(segments: &[AttnSegment], rows: usize, pages: &KvPages) {
    let page = pages.kv_heads * pages.head_dim * BLOCK_SIZE;
    let (keys, values) = (pages.k.len(), pages.v.len());
    assert!(
        keys == values && if page == 0 { keys == 0 } else { keys.is_multiple_of(page) },
        "attention: {keys} keys and {values} values are not whole pages of {page}",
    );
    for store in [pages.k, pages.v] {
        if let KvStore::Q8 { values, scales } = store {
            let (found, expected) = (scales.len(), values.len() / pages.head_dim.max(1));
            assert!(found == expected, "attention: {found} scales where {expected} are needed");
        }
    }
    let count = keys / page.max(1);
    let mut end = 0;
    for segment in segments {
        assert!(
            end <= segment.rows.start
                && segment.rows.start <= segment.rows.end
                && segment.rows.end <= rows,
            "attention: segment rows {:?} overlap, are out of order or exceed {rows}",
            segment.rows
        );
        end = segment.rows.end;
        let needed = (segment.past + segment.rows.len()).div_ceil(BLOCK_SIZE);
        assert!(
            segment.pages.len() >= needed,
            "attention: {} pages where {needed} are needed",
            segment.pages.len()
        );
        for page in segment.pages {
            assert!((*page as usize) < count, "attention: page {page} is not below {count}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::testing::random;

    const DTYPES: [KvDtype; 3] = [KvDtype::F32, KvDtype::Bf16, KvDtype::Q8];

    #[test]
    fn a_token_is_written_to_its_own_slots_within_the_error_of_the_form() {
        let (kv_heads, d, width) = (2, 6, 12);
        for (dtype, tokens) in DTYPES.iter().flat_map(|d| [5, 40, 2000].map(|n| (*d, n))) {
            let count = tokens / 16 + 2;
            let mut k_pages = KvStore::new(dtype, count * 16 * width, d);
            let mut v_pages = k_pages.clone();
            let (k, v) = (random(tokens * width, 1), random(tokens * width, 2));
            let ids: Vec<u32> = (0..count as u32).rev().collect();
            let segments = [AttnSegment { rows: 0..tokens, past: 3, pages: &ids }];
            // What stands around them stays.
            let around = vec![0.5; count * 16 * width];
            let all = [AttnSegment { rows: 0..count * 16, past: 0, pages: &ids }];
            write_kv(&mut k_pages, &mut v_pages, &around, &around, &all, kv_heads, d);
            write_kv(&mut k_pages, &mut v_pages, &k, &v, &segments, kv_heads, d);
            let pages = KvPages { k: &k_pages, v: &v_pages, kv_heads, head_dim: d };
            for (position, head) in (0..count * 16).flat_map(|p| (0..kv_heads).map(move |h| (p, h)))
            {
                let own = (3..3 + tokens).contains(&position);
                let at = position.wrapping_sub(3).wrapping_mul(width) + head * d;
                let close = |found: f32, of: &[f32], i: usize| {
                    let (expected, most) = match own {
                        true => (
                            of[at + i],
                            of[at..at + d].iter().fold(0.0, |m: f32, x| m.max(x.abs())),
                        ),
                        false => (0.5, 0.5),
                    };
                    let bound = match dtype {
                        KvDtype::F32 => 0.0,
                        KvDtype::Bf16 => expected.abs() / 256.0,
                        KvDtype::Q8 => most / 253.9,
                    };
                    let error = (found - expected).abs();
                    assert!(
                        error <= bound,
                        "{dtype:?} position {position}: {found} for {expected}"
                    );
                };
                for i in 0..d {
                    close(pages.key(&segments[0], head, position, i), &k, i);
                    close(pages.value(&segments[0], head, position, i), &v, i);
                }
            }
        }
    }

    #[test]
    fn a_number_that_is_none_is_not_hidden() {
        for dtype in DTYPES {
            for bad in [f32::NAN, f32::INFINITY] {
                let mut k_pages = KvStore::new(dtype, 16 * 4, 4);
                let mut v_pages = k_pages.clone();
                let segments = [AttnSegment { rows: 0..1, past: 0, pages: &[0] }];
                let row = [1.0, bad, 2.0, 0.0];
                write_kv(&mut k_pages, &mut v_pages, &row, &row, &segments, 1, 4);
                let pages = KvPages { k: &k_pages, v: &v_pages, kv_heads: 1, head_dim: 4 };
                assert!(!pages.key(&segments[0], 0, 0, 1).is_finite(), "{dtype:?}");
                assert!(!pages.value(&segments[0], 0, 0, 1).is_finite(), "{dtype:?}");
            }
        }
    }

    #[test]
    fn bytes_are_those_of_the_store() {
        for dtype in DTYPES {
            let bytes = match KvStore::new(dtype, 3 * 16 * 64, 64) {
                KvStore::F32(values) => size_of_val(&values[..]),
                KvStore::Bf16(values) => size_of_val(&values[..]),
                KvStore::Q8 { values, scales } => {
                    size_of_val(&values[..]) + size_of_val(&scales[..])
                }
            };
            assert_eq!(bytes, 3 * 16 * dtype.bytes(64));
        }
    }

    #[test]
    #[should_panic(expected = "2 scales where 16 are needed")]
    fn scales_that_are_missing_are_refused() {
        let k = KvStore::Q8 { values: vec![0; 64], scales: vec![0.0; 2] };
        let pages = KvPages { k: &k, v: &k, kv_heads: 1, head_dim: 4 };
        check_segments(&[], 0, &pages);
    }
}
