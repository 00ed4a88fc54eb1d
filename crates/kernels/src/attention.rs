//! Causal attention over a ragged batch, with grouped key/value heads, always out of pages
//! (PagedAttention, Kwon et al., arXiv:2309.06180; grouped heads, Ainslie et al.,
//! arXiv:2305.13245).
//!
//! Per query row: scores against every key up to the row's own position,
//! softmax in two passes, then the values summed key by key in order. Nothing of that depends on
//! the other rows, so a row comes out the same to the bit in prefill, in decode, alone or in a
//! batch.
//!
//! An [`AttnRule`] says what differs by layer: the scale, a sliding window (Beltagy et al.,
//! arXiv:2004.05150), whose keys before the window are not even read, and a soft cap on the scores
//! (Gemma 2, arXiv:2408.00118).

use crate::elementwise::soft_cap_row;
use crate::kv_pages::{AttnSegment, BLOCK_SIZE, KvPages, KvStore, check_segments};
use crate::simd::{Kernel, Level, Simd, dispatch_at};
use crate::tile::{PANEL, Paged, Tile, tile, tile_rows};
use crate::vector::{SharedOutput, dot, exp_in_place, load_at, max, scale as scale_row, store_at};
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;

/// Query rows (tokens times heads of one group) per parallel task, forward.
const FORWARD_ROWS: usize = 64;
/// Query rows that the backward holds scores of at a time.
const BACKWARD_ROWS: usize = 48;

/// How a layer attends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttnRule {
    /// Factor of q·kᵀ.
    pub scale: f32,
    /// A row sees the last `window` positions up to and with its own; None is all of them.
    pub window: Option<usize>,
    /// Scaled scores become cap·tanh(score/cap).
    pub softcap: Option<f32>,
}

impl AttnRule {
    /// Every position up to a row's own, scores only scaled.
    pub fn full(scale: f32) -> AttnRule {
        AttnRule { scale, window: None, softcap: None }
    }

    /// The first key that a row sees that has `keys` keys up to and with its own.
    #[inline(always)]
    fn first_key(&self, keys: usize) -> usize {
        self.window.map_or(0, |window| keys.saturating_sub(window))
    }
}

/// out[T, QH, D] = softmax(scale · q·kᵀ, causal) · v, for q[T, QH, D], with the window and the cap of
/// `rule`. Query head h reads key/value
/// head h / (QH / KVH). The new tokens' keys and values must be in the pages already
/// ([`crate::write_kv`]); page slots past a segment's last token are never looked at and may hold
/// anything. Rows outside all segments are left alone.
///
/// # Panics
/// When the lengths do not fit together, segments overlap or are not in ascending order, a page
/// does not exist, or the window is 0.
pub fn attention(
    out: &mut [f32],
    q: &[f32],
    pages: KvPages,
    segments: &[AttnSegment],
    q_heads: usize,
    rule: AttnRule,
) {
    attention_at(Level::detect(), out, q, pages, segments, q_heads, rule);
}

/// Gradients of [`attention`] for training, where every segment has past == 0 and its keys and
/// values are those in the pages: dq[T, QH, D], dk and dv[T, KVH, D] are overwritten in the rows of
/// the segments. Probabilities are computed anew, a block of query rows at a time (as in
/// FlashAttention, Dao et al., arXiv:2205.14135, section 3.1 and appendix B).
///
/// With P the probabilities: dV = Pᵀ·dO, dP = dO·Vᵀ, dS = P∘(dP - Σ_keys P∘dP),
/// dQ = scale·dS·K, dK = scale·dSᵀ·Q; under a soft cap dS is first multiplied by its slope,
/// 1 - (S/cap)² of the capped scores S.
///
/// # Panics
/// As [`attention`], when a segment has a past, and when the pages are not f32.
pub fn attention_backward(
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
    dout: &[f32],
    q: &[f32],
    pages: KvPages,
    segments: &[AttnSegment],
    q_heads: usize,
    rule: AttnRule,
) {
    attention_backward_at(Level::detect(), dq, dk, dv, dout, q, pages, segments, q_heads, rule);
}

/// Plain [`attention`].
pub fn reference_attention(
    out: &mut [f32],
    q: &[f32],
    pages: KvPages,
    segments: &[AttnSegment],
    q_heads: usize,
    rule: AttnRule,
) {
    let d = pages.head_dim;
    for segment in segments {
        for row in segment.rows.clone() {
            for head in 0..q_heads {
                let at = (row * q_heads + head) * d;
                let kv_head = head / (q_heads / pages.kv_heads);
                let (from, p, _) =
                    reference_probabilities(q, at, &pages, segment, row, kv_head, rule);
                for i in 0..d {
                    let sum: f64 = p
                        .iter()
                        .enumerate()
                        .map(|(j, p)| p * f64::from(pages.value(segment, kv_head, from + j, i)))
                        .sum();
                    out[at + i] = sum as f32;
                }
            }
        }
    }
}

/// Plain [`attention_backward`].
pub fn reference_attention_backward(
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
    dout: &[f32],
    q: &[f32],
    pages: KvPages,
    segments: &[AttnSegment],
    q_heads: usize,
    rule: AttnRule,
) {
    let (d, kv_heads) = (pages.head_dim, pages.kv_heads);
    for segment in segments {
        let own = segment.rows.start * kv_heads * d..segment.rows.end * kv_heads * d;
        dk[own.clone()].fill(0.0);
        dv[own].fill(0.0);
        for row in segment.rows.clone() {
            for head in 0..q_heads {
                let at = (row * q_heads + head) * d;
                let kv_head = head / (q_heads / kv_heads);
                let (from, p, slope) =
                    reference_probabilities(q, at, &pages, segment, row, kv_head, rule);
                let dp: Vec<f64> = (0..p.len())
                    .map(|j| {
                        (0..d)
                            .map(|i| {
                                f64::from(dout[at + i])
                                    * f64::from(pages.value(segment, kv_head, from + j, i))
                            })
                            .sum()
                    })
                    .collect();
                let mean: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
                dq[at..at + d].fill(0.0);
                for j in 0..p.len() {
                    let ds = p[j] * (dp[j] - mean) * slope[j] * f64::from(rule.scale);
                    let key_at = ((segment.rows.start + from + j) * kv_heads + kv_head) * d;
                    for i in 0..d {
                        let key = f64::from(pages.key(segment, kv_head, from + j, i));
                        dq[at + i] += (ds * key) as f32;
                        dk[key_at + i] += (ds * f64::from(q[at + i])) as f32;
                        dv[key_at + i] += (p[j] * f64::from(dout[at + i])) as f32;
                    }
                }
            }
        }
    }
}

/// Of one query row: its first key, its probabilities from there up to its own, and the slopes of
/// the soft cap at its scores.
fn reference_probabilities(
    q: &[f32],
    at: usize,
    pages: &KvPages,
    segment: &AttnSegment,
    row: usize,
    kv_head: usize,
    rule: AttnRule,
) -> (usize, Vec<f64>, Vec<f64>) {
    let keys = segment.past + row - segment.rows.start + 1;
    let from = rule.first_key(keys);
    let scores: Vec<f64> = (from..keys)
        .map(|j| {
            let dot: f64 = (0..pages.head_dim)
                .map(|i| f64::from(q[at + i]) * f64::from(pages.key(segment, kv_head, j, i)))
                .sum();
            let score = dot * f64::from(rule.scale);
            match rule.softcap.map(f64::from) {
                Some(cap) => cap * (score / cap).tanh(),
                None => score,
            }
        })
        .collect();
    let slope = |score: &f64| rule.softcap.map_or(1.0, |c| 1.0 - (score / f64::from(c)).powi(2));
    let slopes = scores.iter().map(slope).collect();
    let largest = scores.iter().fold(f64::NEG_INFINITY, |m, s| m.max(*s));
    let exps: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
    let sum: f64 = exps.iter().sum();
    (from, exps.iter().map(|e| e / sum).collect(), slopes)
}

fn attention_at(
    level: Level,
    out: &mut [f32],
    q: &[f32],
    pages: KvPages,
    segments: &[AttnSegment],
    q_heads: usize,
    rule: AttnRule,
) {
    assert_eq!(out.len(), q.len(), "attention: out and q differ in length");
    let group = check(q, &pages, segments, q_heads, rule);
    let block = (FORWARD_ROWS / group.max(1)).max(1);
    let out = SharedOutput::new(out);
    let mut tasks = Vec::new();
    let mut work = 0;
    for segment in segments {
        for head in 0..pages.kv_heads {
            for first in (0..segment.rows.len()).step_by(block) {
                let tokens = first..(first + block).min(segment.rows.len());
                let keys = segment.past + tokens.end;
                let keys = keys - rule.first_key(segment.past + tokens.start + 1);
                work += tokens.len() * group * keys * pages.head_dim;
                tasks.push(Forward { out, q, pages, segment, head, tokens, group, rule });
            }
        }
    }
    let run = |task: &Forward| {
        SCRATCH.with_borrow_mut(|scratch| {
            dispatch_at(level, Scratched { task, scratch });
        })
    };
    // Below some 10 µs of work, waking threads costs more than it brings.
    if work < 1 << 16 {
        tasks.iter().for_each(run);
    } else {
        tasks.par_iter().with_max_len(1).for_each(run);
    }
}

fn attention_backward_at(
    level: Level,
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
    dout: &[f32],
    q: &[f32],
    pages: KvPages,
    segments: &[AttnSegment],
    q_heads: usize,
    rule: AttnRule,
) {
    assert!(
        dq.len() == q.len() && dout.len() == q.len(),
        "attention: dq, dout and q differ in length"
    );
    let group = check(q, &pages, segments, q_heads, rule);
    assert!(
        dk.len() * group == q.len() && dv.len() == dk.len(),
        "attention: {} and {} values of dk and dv for {} of q",
        dk.len(),
        dv.len(),
        q.len()
    );
    assert!(segments.iter().all(|s| s.past == 0), "attention: backward of a segment with a past");
    let (KvStore::F32(k), KvStore::F32(v)) = (pages.k, pages.v) else {
        panic!("attention: backward of pages that are not f32");
    };
    let (dq, dk, dv) = (SharedOutput::new(dq), SharedOutput::new(dk), SharedOutput::new(dv));
    let mut tasks = Vec::new();
    for segment in segments {
        for head in 0..pages.kv_heads {
            tasks.push(Backward { dq, dk, dv, dout, q, pages, k, v, segment, head, group, rule });
        }
    }
    tasks.par_iter().with_max_len(1).for_each(|task| {
        SCRATCH.with_borrow_mut(|scratch| dispatch_at(level, Scratched { task, scratch }));
    });
}

/// Query heads per key/value head, after checking that everything fits.
fn check(
    q: &[f32],
    pages: &KvPages,
    segments: &[AttnSegment],
    q_heads: usize,
    rule: AttnRule,
) -> usize {
    let (kv_heads, d) = (pages.kv_heads, pages.head_dim);
    assert!(rule.window != Some(0), "attention: a window of 0 lets a row see nothing");
    assert!(
        kv_heads > 0 && q_heads > 0 && q_heads.is_multiple_of(kv_heads) && d > 0,
        "attention: {q_heads} query heads of {d} over {kv_heads} key/value heads"
    );
    assert!(
        q.len().is_multiple_of(q_heads * d),
        "attention: q of {} values is not [T, {q_heads}, {d}]",
        q.len()
    );
    check_segments(segments, q.len() / (q_heads * d), pages);
    q_heads / kv_heads
}

thread_local! {
    /// Working memory of a task, kept between tasks.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// A task and the memory that it works in.
struct Scratched<'a, T> {
    task: &'a T,
    scratch: &'a mut Vec<f32>,
}

/// Cuts working memory into pieces.
struct Pieces(*mut f32);

impl Pieces {
    /// # Safety
    /// The pieces together must not exceed the memory.
    #[inline(always)]
    unsafe fn take(&mut self, n: usize) -> *mut f32 {
        let piece = self.0;
        // SAFETY: the caller's promise.
        self.0 = unsafe { piece.add(n) };
        piece
    }
}

/// Grows `scratch` to `n` values and hands out its pieces.
#[inline(always)]
fn pieces(scratch: &mut Vec<f32>, n: usize) -> Pieces {
    if scratch.len() < n {
        scratch.resize(n, 0.0);
    }
    Pieces(scratch.as_mut_ptr())
}

/// Row stride of a score buffer for `keys` keys: whole panels, and one more so that the rows of a
/// power-of-two context do not fall on the same cache sets.
#[inline(always)]
fn score_stride(keys: usize) -> usize {
    keys.next_multiple_of(PANEL) + PANEL
}

/// The query rows of one group of heads for a stretch of one segment's tokens.
struct Forward<'a> {
    out: SharedOutput,
    q: &'a [f32],
    pages: KvPages<'a>,
    segment: &'a AttnSegment<'a>,
    /// Key/value head.
    head: usize,
    /// New tokens of the segment, counted from its first new one.
    tokens: Range<usize>,
    /// Query heads per key/value head.
    group: usize,
    rule: AttnRule,
}

impl Forward<'_> {
    /// Where row r (token by token, head by head) lies in q and out.
    #[inline(always)]
    fn offset(&self, r: usize) -> usize {
        let q_heads = self.pages.kv_heads * self.group;
        let row = self.segment.rows.start + self.tokens.start + r / self.group;
        (row * q_heads + self.head * self.group + r % self.group) * self.pages.head_dim
    }

    /// How many keys row r sees.
    #[inline(always)]
    fn keys(&self, r: usize) -> usize {
        self.segment.past + self.tokens.start + r / self.group + 1
    }

    /// The first of them.
    #[inline(always)]
    fn first_key(&self, r: usize) -> usize {
        self.rule.first_key(self.keys(r))
    }
}

impl Kernel for Scratched<'_, Forward<'_>> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let task = self.task;
        let (d, pages) = (task.pages.head_dim, task.segment.pages);
        let rows = task.tokens.len() * task.group;
        let most_keys = task.keys(rows - 1);
        // Scores are held from the first key of the first row's first page on.
        let lowest = task.first_key(0) / BLOCK_SIZE * BLOCK_SIZE;
        let stride = score_stride(most_keys - lowest);
        // Where the numbers lie as they are used, only the last columns of V are copied; shorter forms
        // are widened a panel at a time.
        let plain = match (task.pages.k, task.pages.v) {
            (KvStore::F32(_), KvStore::F32(v)) => Some(v.as_ptr()),
            _ => None,
        };
        let tail = if plain.is_some() { d % PANEL } else { 0 };
        let tail_size = if tail == 0 { 0 } else { (most_keys - lowest) * PANEL };
        let widened = if plain.is_some() { 0 } else { (d + PANEL) * PANEL };
        let most_rows = tile_rows::<S>(rows);
        let needed = most_rows * (d + stride + PANEL) + tail_size + widened;
        let mut memory = pieces(self.scratch, needed);
        // SAFETY: `check` saw that q, out and the pages cover what is read and written here; this
        // task's rows of out are its own; the pieces add up to `needed`.
        unsafe {
            let query = memory.take(most_rows * d);
            let scores = memory.take(most_rows * stride);
            let sums = memory.take(most_rows * PANEL);
            let values_tail = memory.take(tail_size);
            let widened = memory.take(widened);
            if let (true, Some(v)) = (tail != 0, plain) {
                // The last columns of V, widened to a whole panel.
                for j in lowest..most_keys {
                    let base = task.pages.base(pages[j / BLOCK_SIZE], task.head);
                    let from = v.add(base + j % BLOCK_SIZE * d + d - tail);
                    let to = values_tail.add((j - lowest) * PANEL);
                    std::ptr::copy_nonoverlapping(from, to, tail);
                    std::ptr::write_bytes(to.add(tail), 0, PANEL - tail);
                }
            }
            let mut first = 0;
            while first < rows {
                let n = tile_rows::<S>(rows - first);
                for r in 0..n {
                    let from = task.q.as_ptr().add(task.offset(first + r));
                    scaled_copy::<S>(query.add(r * d), from, d, task.rule.scale);
                }
                let (fewest, most) = (task.keys(first), task.keys(first + n - 1));
                let (earliest, latest) = (task.first_key(first), task.first_key(first + n - 1));
                for page in earliest / BLOCK_SIZE..most.div_ceil(BLOCK_SIZE) {
                    tile::<S>(Tile {
                        c: scores.add(page * BLOCK_SIZE - lowest),
                        c_row: stride,
                        a: query,
                        a_row: d,
                        a_step: 1,
                        b: task
                            .pages
                            .key_panel::<S>(task.pages.base(pages[page], task.head), widened),
                        b_step: PANEL,
                        paged: None,
                        steps: d,
                        rows: n,
                        accumulate: false,
                    });
                }
                let mut inverse = [0.0_f32; 12];
                for r in 0..n {
                    let from = task.first_key(first + r);
                    let (row, keys) =
                        (scores.add(r * stride + from - lowest), task.keys(first + r) - from);
                    if let Some(cap) = task.rule.softcap {
                        soft_cap_row::<S>(row, keys, cap);
                    }
                    let largest = max::<S>(row, keys);
                    inverse[r] = (1.0 / exp_in_place::<S>(row, keys, largest)) as f32;
                }
                for column in (0..d).step_by(PANEL) {
                    let width = PANEL.min(d - column);
                    // sums[r] += Σ over keys from..to of their scores in row r times their values.
                    let add = |rows: Range<usize>, from: usize, to: usize, accumulate: bool| {
                        let whole = Tile {
                            c: sums.add(rows.start * PANEL),
                            c_row: PANEL,
                            a: scores.add(rows.start * stride + from - lowest),
                            a_row: stride,
                            a_step: 1,
                            b: values_tail.add((from - lowest) * PANEL).cast_const(),
                            b_step: PANEL,
                            paged: None,
                            steps: to - from,
                            rows: rows.len(),
                            accumulate,
                        };
                        match plain {
                            Some(_) if width < PANEL => tile::<S>(whole),
                            Some(v) => tile::<S>(Tile {
                                b: v.add(task.pages.base(0, task.head) + column),
                                b_step: d,
                                paged: Some(Paged {
                                    stride: task.pages.base(1, 0),
                                    pages: &pages[from / BLOCK_SIZE..],
                                    slot: from % BLOCK_SIZE,
                                }),
                                ..whole
                            }),
                            None => {
                                let mut at = from;
                                while at < to {
                                    let slot = at % BLOCK_SIZE;
                                    let steps = (BLOCK_SIZE - slot).min(to - at);
                                    let base = task.pages.base(pages[at / BLOCK_SIZE], task.head);
                                    let slots = slot..slot + steps;
                                    task.pages.value_panel(base, slots, column, width, widened);
                                    tile::<S>(Tile {
                                        a: whole.a.add(at - from),
                                        b: widened,
                                        steps,
                                        accumulate: accumulate || at > from,
                                        ..whole
                                    });
                                    at += steps;
                                }
                            }
                        }
                    };
                    if latest > earliest {
                        // In a window, each row from its own first key up to the first that all of
                        // them see ...
                        std::ptr::write_bytes(sums, 0, n * PANEL);
                        for r in 0..n {
                            let from = task.first_key(first + r);
                            let to = latest.min(task.keys(first + r));
                            if from < to {
                                add(r..r + 1, from, to, true);
                            }
                        }
                    }
                    if latest < fewest {
                        // ... all rows up to the last key that all of them see ...
                        add(0..n, latest, fewest, latest > earliest);
                    }
                    let own = fewest.max(latest);
                    for r in 0..n {
                        let sums = sums.add(r * PANEL);
                        if task.keys(first + r) > own {
                            // ... then each by itself: a key that a row may not see is not even
                            // multiplied by zero.
                            add(r..r + 1, own, task.keys(first + r), true);
                        }
                        scale_row::<S>(sums, width, inverse[r]);
                        let out = task.out.at(task.offset(first + r) + column);
                        std::ptr::copy_nonoverlapping(sums, out, width);
                    }
                }
                first += n;
            }
        }
    }
}

/// All of one key/value head of one segment: its dk and dv, and the dq of its query heads.
struct Backward<'a> {
    dq: SharedOutput,
    dk: SharedOutput,
    dv: SharedOutput,
    dout: &'a [f32],
    q: &'a [f32],
    pages: KvPages<'a>,
    k: &'a [f32],
    v: &'a [f32],
    segment: &'a AttnSegment<'a>,
    /// Key/value head.
    head: usize,
    /// Query heads per key/value head.
    group: usize,
    rule: AttnRule,
}

impl Backward<'_> {
    /// Where row r (token by token, head by head) lies in q, dout and dq.
    #[inline(always)]
    fn offset(&self, r: usize) -> usize {
        let q_heads = self.pages.kv_heads * self.group;
        let row = self.segment.rows.start + r / self.group;
        (row * q_heads + self.head * self.group + r % self.group) * self.pages.head_dim
    }
}

/// Matrices of `columns` padded to whole panels, panel after panel: [columns/16][rows][16]. A
/// panel is what a tile streams through, without gaps.
#[derive(Clone, Copy)]
struct Panels {
    data: *mut f32,
    rows: usize,
}

impl Panels {
    /// # Safety
    /// `panel` and `row` must lie in the matrix.
    #[inline(always)]
    unsafe fn at(self, panel: usize, row: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.data.add((panel * self.rows + row) * PANEL) }
    }

    /// Copies a row of `d` values in, times `factor`; pads with zeros.
    ///
    /// # Safety
    /// The level of `S` must be supported, `from` cover d values, and the row lie in the matrix.
    #[inline(always)]
    unsafe fn set_row<S: Simd>(self, row: usize, from: *const f32, d: usize, factor: f32) {
        // SAFETY: the caller's promise.
        unsafe {
            for column in (0..d).step_by(PANEL) {
                let to = self.at(column / PANEL, row);
                let width = PANEL.min(d - column);
                scaled_copy::<S>(to, from.add(column), width, factor);
                std::ptr::write_bytes(to.add(width), 0, PANEL - width);
            }
        }
    }

    /// Copies a row of `d` values out, times `factor`.
    ///
    /// # Safety
    /// The level of `S` must be supported, `to` cover d values, and the row lie in the matrix.
    #[inline(always)]
    unsafe fn get_row<S: Simd>(self, row: usize, to: *mut f32, d: usize, factor: f32) {
        // SAFETY: the caller's promise.
        unsafe {
            for column in (0..d).step_by(PANEL) {
                let width = PANEL.min(d - column);
                scaled_copy::<S>(to.add(column), self.at(column / PANEL, row), width, factor);
            }
        }
    }
}

impl Kernel for Scratched<'_, Backward<'_>> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let task = self.task;
        let (d, group) = (task.pages.head_dim, task.group);
        let tokens = task.segment.rows.len();
        let panels = d.div_ceil(PANEL);
        let wide = panels * PANEL;
        let keys = tokens.next_multiple_of(PANEL);
        let stride = score_stride(tokens);
        let block = (BACKWARD_ROWS / group).max(1);
        let most_rows = block * group;
        let slopes = if task.rule.softcap.is_some() { stride } else { 0 };
        let needed = keys * (3 * wide + d) + most_rows * (3 * wide + 2 * d + 2 * stride) + slopes;
        let mut memory = pieces(self.scratch, needed);
        // SAFETY: `check` saw that q, dout, dq, dk, dv and the pages cover what is read and written
        // here; this task's heads of the segment's rows are its own; the pieces add up to `needed`.
        unsafe {
            // Of the whole segment: K by rows, Vᵀ by panels of keys, and the sums dK and dV.
            let k_rows = Panels { data: memory.take(keys * wide), rows: keys };
            let v_columns = memory.take(keys * d);
            let dk = Panels { data: memory.take(keys * wide), rows: keys };
            let dv = Panels { data: memory.take(keys * wide), rows: keys };
            // Of a block of query rows: q and dout by rows and by panels, P and dS, dQ.
            let q_rows = memory.take(most_rows * d);
            let dout_rows = memory.take(most_rows * d);
            let q_panels = Panels { data: memory.take(most_rows * wide), rows: most_rows };
            let dout_panels = Panels { data: memory.take(most_rows * wide), rows: most_rows };
            let dq = Panels { data: memory.take(most_rows * wide), rows: most_rows };
            let p = memory.take(most_rows * stride);
            let ds = memory.take(most_rows * stride);
            // The slopes of the soft cap at one row's scores after the other.
            let slopes = memory.take(slopes);

            gather(task, tokens, k_rows, v_columns);
            std::ptr::write_bytes(dk.data, 0, keys * wide);
            std::ptr::write_bytes(dv.data, 0, keys * wide);

            for start in (0..tokens).step_by(block) {
                let end = (start + block).min(tokens);
                let (first, rows) = (start * group, (end - start) * group);
                // No row of the block sees a key before this one.
                let lowest = task.rule.first_key(start + 1) / BLOCK_SIZE * BLOCK_SIZE;
                for r in 0..rows {
                    let q = task.q.as_ptr().add(task.offset(first + r));
                    let dout = task.dout.as_ptr().add(task.offset(first + r));
                    scaled_copy::<S>(q_rows.add(r * d), q, d, task.rule.scale);
                    scaled_copy::<S>(dout_rows.add(r * d), dout, d, 1.0);
                    q_panels.set_row::<S>(r, q, d, task.rule.scale);
                    dout_panels.set_row::<S>(r, dout, d, 1.0);
                }
                let mut r = 0;
                while r < rows {
                    let n = tile_rows::<S>(rows - r);
                    // S = Q·Kᵀ and dP = dO·Vᵀ, 16 keys at a time.
                    let most = start + (r + n - 1) / group + 1;
                    let earliest = task.rule.first_key(start + r / group + 1);
                    for page in earliest / BLOCK_SIZE..most.div_ceil(BLOCK_SIZE) {
                        let k = task.pages.base(task.segment.pages[page], task.head);
                        let products = [
                            (p, q_rows, task.k.as_ptr().add(k)),
                            (ds, dout_rows, v_columns.add(page * d * PANEL).cast_const()),
                        ];
                        for (c, a, b) in products {
                            tile::<S>(Tile {
                                c: c.add(r * stride + page * PANEL),
                                c_row: stride,
                                a: a.add(r * d),
                                a_row: d,
                                a_step: 1,
                                b,
                                b_step: PANEL,
                                paged: None,
                                steps: d,
                                rows: n,
                                accumulate: false,
                            });
                        }
                    }
                    for r in r..r + n {
                        let keys = start + r / group + 1;
                        let from = task.rule.first_key(keys);
                        let (p, ds) = (p.add(r * stride), ds.add(r * stride));
                        // dQ, dK and dV are summed over whole tiles of keys: what a row does not
                        // see counts zero.
                        for row in [p, ds] {
                            std::ptr::write_bytes(row.add(lowest), 0, from - lowest);
                            std::ptr::write_bytes(row.add(keys), 0, end - keys);
                        }
                        let (p, ds, seen) = (p.add(from), ds.add(from), keys - from);
                        if let Some(cap) = task.rule.softcap {
                            soft_cap_row::<S>(p, seen, cap);
                            cap_slope::<S>(slopes, p, seen, cap);
                        }
                        let largest = max::<S>(p, seen);
                        let sum = exp_in_place::<S>(p, seen, largest);
                        scale_row::<S>(p, seen, (1.0 / sum) as f32);
                        score_gradient::<S>(ds, p, seen);
                        if task.rule.softcap.is_some() {
                            multiply::<S>(ds, slopes, seen);
                        }
                    }
                    // dQ = dS·K
                    for panel in 0..panels {
                        tile::<S>(Tile {
                            c: dq.at(panel, r),
                            c_row: PANEL,
                            a: ds.add(r * stride + lowest),
                            a_row: stride,
                            a_step: 1,
                            b: k_rows.at(panel, lowest),
                            b_step: PANEL,
                            paged: None,
                            steps: most - lowest,
                            rows: n,
                            accumulate: false,
                        });
                    }
                    r += n;
                }
                for r in 0..rows {
                    let to = task.dq.at(task.offset(first + r));
                    dq.get_row::<S>(r, to, d, task.rule.scale);
                }
                // dV += Pᵀ·dO and dK += dSᵀ·Q, a few keys at a time, over the rows that see them.
                let mut key = lowest;
                while key < end {
                    let n = tile_rows::<S>(end - key);
                    let skip = key.saturating_sub(start) * group;
                    for panel in 0..panels {
                        for (c, a, b) in [(dv, p, dout_panels), (dk, ds, q_panels)] {
                            tile::<S>(Tile {
                                c: c.at(panel, key),
                                c_row: PANEL,
                                a: a.add(skip * stride + key),
                                a_row: 1,
                                a_step: stride,
                                b: b.at(panel, skip),
                                b_step: PANEL,
                                paged: None,
                                steps: rows - skip,
                                rows: n,
                                accumulate: true,
                            });
                        }
                    }
                    key += n;
                }
            }
            for token in 0..tokens {
                let row = task.segment.rows.start + token;
                let to = (row * task.pages.kv_heads + task.head) * d;
                // q carried the scale already.
                dk.get_row::<S>(token, task.dk.at(to), d, 1.0);
                dv.get_row::<S>(token, task.dv.at(to), d, 1.0);
            }
        }
    }
}

/// Reads one head's keys and values of a segment out of the pages: K by rows (zero-padded columns)
/// and Vᵀ by panels of 16 keys, [keys/16][D][16]; keys past the last token become zero.
///
/// # Safety
/// `check` must have passed, and the destinations hold whole panels of `tokens`.
#[inline(always)]
unsafe fn gather(task: &Backward, tokens: usize, k_rows: Panels, v_columns: *mut f32) {
    let d = task.pages.head_dim;
    // SAFETY: the caller's promise; the last panel of V is cleared before its keys are written.
    unsafe {
        for page in 0..tokens.div_ceil(BLOCK_SIZE) {
            let base = task.pages.base(task.segment.pages[page], task.head);
            let k = task.k.as_ptr().add(base);
            let v = task.v.as_ptr().add(base);
            let to = v_columns.add(page * d * PANEL);
            std::ptr::write_bytes(to, 0, d * PANEL);
            for slot in 0..BLOCK_SIZE.min(tokens - page * BLOCK_SIZE) {
                let key = page * BLOCK_SIZE + slot;
                for i in 0..d {
                    *k_rows.at(i / PANEL, key).add(i % PANEL) = *k.add(i * BLOCK_SIZE + slot);
                    *to.add(i * PANEL + slot) = *v.add(slot * d + i);
                }
                if !d.is_multiple_of(PANEL) {
                    let end = k_rows.at(d / PANEL, key).add(d % PANEL);
                    std::ptr::write_bytes(end, 0, PANEL - d % PANEL);
                }
            }
        }
    }
}

/// ds = p∘(ds - Σ p∘ds), where ds comes in as dP.
///
/// # Safety
/// The level of `S` must be supported; both must cover `n` values.
#[inline(always)]
unsafe fn score_gradient<S: Simd>(ds: *mut f32, p: *const f32, n: usize) {
    // SAFETY: every access stays below n.
    unsafe {
        let mean = S::splat(dot::<S>(p, ds, n));
        let mut i = 0;
        while i < n {
            let centred = S::sub(load_at::<S>(ds, i, n, 0.0), mean);
            store_at::<S>(ds, i, n, S::mul(load_at::<S>(p, i, n, 0.0), centred));
            i += S::LANES;
        }
    }
}

/// slope = 1 - (capped/cap)²: the slope of the soft cap from its results.
///
/// # Safety
/// The level of `S` must be supported; both must cover `n` values.
#[inline(always)]
unsafe fn cap_slope<S: Simd>(slope: *mut f32, capped: *const f32, n: usize, cap: f32) {
    // SAFETY: every access stays below n.
    unsafe {
        let (one, inverse) = (S::splat(1.0), S::splat(1.0 / cap));
        let mut i = 0;
        while i < n {
            let t = S::mul(load_at::<S>(capped, i, n, 0.0), inverse);
            store_at::<S>(slope, i, n, S::sub(one, S::mul(t, t)));
            i += S::LANES;
        }
    }
}

/// x ·= y
///
/// # Safety
/// The level of `S` must be supported; both must cover `n` values.
#[inline(always)]
unsafe fn multiply<S: Simd>(x: *mut f32, y: *const f32, n: usize) {
    // SAFETY: every access stays below n.
    unsafe {
        let mut i = 0;
        while i < n {
            let product = S::mul(load_at::<S>(x, i, n, 0.0), load_at::<S>(y, i, n, 0.0));
            store_at::<S>(x, i, n, product);
            i += S::LANES;
        }
    }
}

/// to = from · factor
///
/// # Safety
/// The level of `S` must be supported; both must cover `n` values.
#[inline(always)]
unsafe fn scaled_copy<S: Simd>(to: *mut f32, from: *const f32, n: usize, factor: f32) {
    // SAFETY: every access stays below n.
    unsafe {
        let factor = S::splat(factor);
        let mut i = 0;
        while i < n {
            store_at::<S>(to, i, n, S::mul(load_at::<S>(from, i, n, 0.0), factor));
            i += S::LANES;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv_pages::{KvDtype, write_kv};
    use crate::vector::testing::*;

    /// A ragged batch in scattered pages; unused page memory is NaN.
    struct Case {
        q_heads: usize,
        kv_heads: usize,
        d: usize,
        segments: Vec<(Range<usize>, usize, Vec<u32>)>,
        q: Vec<f32>,
        k_pages: KvStore,
        v_pages: KvStore,
        window: Option<usize>,
        softcap: Option<f32>,
    }

    /// Windows below, at and above a page and a tile of rows, with and without a soft cap.
    const RULES: [(Option<usize>, Option<f32>); 6] = [
        (None, None),
        (None, Some(2.0)),
        (Some(1), None),
        (Some(5), Some(2.0)),
        (Some(16), None),
        (Some(23), Some(2.0)),
    ];

    /// Keys and values [positions, KVH, D] of a sequence; the same whatever the batch.
    fn sequence(seed: u64, positions: usize, width: usize) -> (Vec<f32>, Vec<f32>) {
        (random(positions * width, 10 + seed), random(positions * width, 1000 + seed))
    }

    /// Room for `numbers` that are not a number before something is written.
    fn unwritten(dtype: KvDtype, numbers: usize, d: usize) -> KvStore {
        match dtype {
            KvDtype::F32 => KvStore::F32(vec![f32::NAN; numbers]),
            KvDtype::Bf16 => KvStore::Bf16(vec![0x7fc0; numbers]),
            KvDtype::Q8 => {
                KvStore::Q8 { values: vec![1; numbers], scales: vec![f32::NAN; numbers / d] }
            }
        }
    }

    const DTYPES: [KvDtype; 3] = [KvDtype::F32, KvDtype::Bf16, KvDtype::Q8];

    impl Case {
        /// Segments of (new tokens, past); segment i is sequence `names[i]`.
        fn new(shape: (usize, usize, usize), lengths: &[(usize, usize)], names: &[u64]) -> Case {
            Case::held_as(KvDtype::F32, shape, lengths, names)
        }

        fn held_as(
            dtype: KvDtype,
            shape: (usize, usize, usize),
            lengths: &[(usize, usize)],
            names: &[u64],
        ) -> Case {
            let (q_heads, kv_heads, d) = shape;
            let (width, q_width) = (kv_heads * d, q_heads * d);
            let count: usize = lengths.iter().map(|(n, past)| (n + past).div_ceil(16) + 1).sum();
            let page_size = 16 * width;
            let mut k_pages = unwritten(dtype, count * page_size, d);
            let mut v_pages = k_pages.clone();
            // Pages are dealt from the back, one spare per segment.
            let mut free: Vec<u32> = (0..count as u32).collect();
            let (mut segments, mut q, mut row) = (Vec::new(), Vec::new(), 0);
            for ((new, past), name) in lengths.iter().zip(names) {
                let total = new + past;
                let pages = free.split_off(free.len() - total.div_ceil(16) - 1);
                let pages: Vec<u32> = pages.into_iter().rev().collect();
                let (k, v) = sequence(*name, total, width);
                // The past was written by an earlier call.
                for (rows, past) in [(0..*past, 0), (*past..total, *past)] {
                    let own = rows.start * width..rows.end * width;
                    let segment = AttnSegment { rows: 0..rows.len(), past, pages: &pages };
                    write_kv(
                        &mut k_pages,
                        &mut v_pages,
                        &k[own.clone()],
                        &v[own],
                        &[segment],
                        kv_heads,
                        d,
                    );
                }
                q.extend(&random(total * q_width, 5000 + name)[past * q_width..]);
                segments.push((row..row + new, *past, pages));
                row += new;
            }
            let (window, softcap) = (None, None);
            Case { q_heads, kv_heads, d, segments, q, k_pages, v_pages, window, softcap }
        }

        fn with(self, (window, softcap): (Option<usize>, Option<f32>)) -> Case {
            Case { window, softcap, ..self }
        }

        fn pages(&self) -> KvPages<'_> {
            KvPages {
                k: &self.k_pages,
                v: &self.v_pages,
                kv_heads: self.kv_heads,
                head_dim: self.d,
            }
        }

        fn segments(&self) -> Vec<AttnSegment<'_>> {
            let each = self.segments.iter();
            each.map(|(rows, past, pages)| AttnSegment { rows: rows.clone(), past: *past, pages })
                .collect()
        }

        fn rule(&self) -> AttnRule {
            // Larger than 1/sqrt(D), so that some probabilities are far from even.
            let scale = 3.0 / (self.d as f32).sqrt();
            AttnRule { scale, window: self.window, softcap: self.softcap }
        }

        fn forward(&self, level: Level) -> Vec<f32> {
            let mut out = vec![9.0; self.q.len()];
            let (segments, rule) = (self.segments(), self.rule());
            attention_at(level, &mut out, &self.q, self.pages(), &segments, self.q_heads, rule);
            out
        }

        fn backward(&self, level: Level, dout: &[f32]) -> [Vec<f32>; 3] {
            let kv = self.q.len() / self.q_heads * self.kv_heads;
            let (mut dq, mut dk, mut dv) = (vec![9.0; self.q.len()], vec![9.0; kv], vec![9.0; kv]);
            attention_backward_at(
                level,
                &mut dq,
                &mut dk,
                &mut dv,
                dout,
                &self.q,
                self.pages(),
                &self.segments(),
                self.q_heads,
                self.rule(),
            );
            [dq, dk, dv]
        }

        fn reference_backward(&self, dout: &[f32]) -> [Vec<f32>; 3] {
            let kv = self.q.len() / self.q_heads * self.kv_heads;
            let (mut dq, mut dk, mut dv) = (vec![9.0; self.q.len()], vec![9.0; kv], vec![9.0; kv]);
            reference_attention_backward(
                &mut dq,
                &mut dk,
                &mut dv,
                dout,
                &self.q,
                self.pages(),
                &self.segments(),
                self.q_heads,
                self.rule(),
            );
            [dq, dk, dv]
        }

        fn reference(&self) -> Vec<f32> {
            let mut out = vec![9.0; self.q.len()];
            let (segments, rule) = (self.segments(), self.rule());
            reference_attention(&mut out, &self.q, self.pages(), &segments, self.q_heads, rule);
            out
        }
    }

    /// (QH, KVH, D): groups of 1, 2, 3, 4 and 9; D below, at, between and above panels.
    const SHAPES: [(usize, usize, usize); 8] = [
        (1, 1, 2),
        (4, 2, 8),
        (3, 1, 16),
        (2, 2, 20),
        (9, 1, 30),
        (4, 1, 64),
        (6, 2, 80),
        (9, 3, 64),
    ];

    #[test]
    fn forward_at_every_level_equals_the_reference() {
        for level in Level::available() {
            for (shape, rule) in SHAPES.iter().flat_map(|s| RULES.map(|r| (*s, r))) {
                let lengths = [(1, 0), (1, 37), (20, 13), (33, 0), (16, 16), (70, 5)];
                for dtype in DTYPES {
                    let case = Case::held_as(dtype, shape, &lengths, &[1, 2, 3, 4, 5, 6]);
                    let case = case.with(rule);
                    let what = format!("{} {shape:?} {rule:?} {dtype:?}", level.name());
                    assert_close(&case.forward(level), &case.reference(), 1e-5, &what);
                }
            }
        }
    }

    #[test]
    fn backward_at_every_level_equals_the_reference() {
        for level in Level::available() {
            for (shape, rule) in SHAPES.iter().flat_map(|s| RULES.map(|r| (*s, r))) {
                let case = Case::new(shape, &[(1, 0), (16, 0), (75, 0), (18, 0)], &[1, 2, 3, 4])
                    .with(rule);
                let dout = random(case.q.len(), 77);
                let (found, expected) =
                    (case.backward(level, &dout), case.reference_backward(&dout));
                for (i, what) in ["dq", "dk", "dv"].iter().enumerate() {
                    let what = format!("{} {shape:?} {rule:?} {what}", level.name());
                    assert_close(&found[i], &expected[i], 5e-5, &what);
                }
            }
        }
    }

    #[test]
    fn gradient_is_the_slope() {
        let shape = (4, 2, 6);
        for rule in [RULES[0], RULES[1], RULES[3]] {
            let case = Case::new(shape, &[(3, 0), (17, 0)], &[1, 2]).with(rule);
            let dout = random(case.q.len(), 77);
            let [dq, dk, dv] = case.backward(Level::detect(), &dout);
            let width = 2 * 6;
            let (k1, v1) = sequence(1, 3, width);
            let (k2, v2) = sequence(2, 17, width);
            let (k, v) = ([k1, k2].concat(), [v1, v2].concat());
            let loss = |q: &[f32], k: &[f32], v: &[f32]| {
                let (mut k_pages, mut v_pages) = (case.k_pages.clone(), case.v_pages.clone());
                write_kv(&mut k_pages, &mut v_pages, k, v, &case.segments(), 2, 6);
                let pages = KvPages { k: &k_pages, v: &v_pages, kv_heads: 2, head_dim: 6 };
                let mut out = vec![0.0; q.len()];
                reference_attention(&mut out, q, pages, &case.segments(), 4, case.rule());
                inner(&out, &dout)
            };
            assert_gradient(&case.q, &dq, 5e-3, "dq", |q| loss(q, &k, &v));
            assert_gradient(&k, &dk, 5e-3, "dk", |k| loss(&case.q, k, &v));
            assert_gradient(&v, &dv, 5e-3, "dv", |v| loss(&case.q, &k, v));
        }
    }

    #[test]
    fn prefill_then_decode_equals_full_forward_to_the_bit() {
        for shape in [(4, 2, 8), (3, 1, 16), (9, 3, 64), (2, 1, 20)] {
            let total = 35;
            let width = shape.0 * shape.2;
            for ((level, rule), dtype) in Level::available()
                .iter()
                .flat_map(|l| [RULES[0], RULES[3], RULES[4]].map(|r| (*l, r)))
                .flat_map(|case| DTYPES.map(|dtype| (case, dtype)))
            {
                let forward = |lengths: (usize, usize)| {
                    Case::held_as(dtype, shape, &[lengths], &[7]).with(rule).forward(level)
                };
                let full = forward((total, 0));
                for split in 1..total {
                    let prefill = forward((split, 0));
                    assert_same_bits(&prefill, &full[..split * width], "prefill");
                    let one = forward((1, split));
                    let own = split * width..(split + 1) * width;
                    assert_same_bits(&one, &full[own], "one token");
                    let rest = forward((total - split, split));
                    assert_same_bits(&rest, &full[split * width..], "rest in one piece");
                }
            }
        }
    }

    #[test]
    fn a_sequence_alone_equals_itself_in_a_batch_to_the_bit() {
        for shape in [(4, 2, 24), (8, 1, 64)] {
            let lengths = [(40, 0), (1, 60), (23, 0), (5, 19)];
            let width = shape.0 * shape.2;
            let batch = Case::new(shape, &lengths, &[1, 2, 3, 4]).forward(Level::detect());
            let mut row = 0;
            for (i, length) in lengths.iter().enumerate() {
                let alone = Case::new(shape, &[*length], &[i as u64 + 1]).forward(Level::detect());
                let own = row * width..(row + length.0) * width;
                assert_same_bits(&alone, &batch[own], "alone");
                row += length.0;
            }
            let training = [(40, 0), (23, 0)];
            let case = Case::new(shape, &training, &[1, 3]);
            let dout = random(case.q.len(), 77);
            let [dq, dk, dv] = case.backward(Level::detect(), &dout);
            let alone = Case::new(shape, &training[1..], &[3]);
            let alone = alone.backward(Level::detect(), &dout[40 * width..]);
            let kv = 40 * shape.1 * shape.2;
            assert_same_bits(&alone[0], &dq[40 * width..], "dq alone");
            assert_same_bits(&alone[1], &dk[kv..], "dk alone");
            assert_same_bits(&alone[2], &dv[kv..], "dv alone");
        }
    }

    #[test]
    fn bits_do_not_depend_on_threads() {
        let case = Case::new((4, 2, 40), &[(130, 0), (50, 0), (7, 0)], &[1, 2, 3]);
        let dout = random(case.q.len(), 77);
        let all = |threads| {
            with_threads(threads, || {
                (case.forward(Level::detect()), case.backward(Level::detect(), &dout))
            })
        };
        let (one, three) = (all(1), all(3));
        assert_same_bits(&one.0, &three.0, "out");
        for i in 0..3 {
            assert_same_bits(&one.1[i], &three.1[i], "gradient");
        }
    }

    #[test]
    fn a_later_token_does_not_reach_an_earlier_row() {
        // NaN in the last token's key and value: every row before it stays clean.
        let shape = (4, 2, 20);
        for dtype in DTYPES {
            let mut case = Case::held_as(dtype, shape, &[(45, 0)], &[1]);
            let clean = case.forward(Level::detect());
            let nan = vec![f32::NAN; 2 * 20];
            let pages = case.segments[0].2.clone();
            let last = AttnSegment { rows: 0..1, past: 44, pages: &pages };
            write_kv(&mut case.k_pages, &mut case.v_pages, &nan, &nan, &[last], 2, 20);
            let found = case.forward(Level::detect());
            let width = 4 * 20;
            assert_same_bits(&found[..44 * width], &clean[..44 * width], "earlier rows");
            assert!(found[44 * width..].iter().all(|v| v.is_nan()), "{dtype:?}: NaN is not hidden");
        }
    }

    #[test]
    fn a_key_before_the_window_is_not_read() {
        // NaN in the first token's key and value: only the rows whose window holds it show it.
        let shape = (4, 2, 20);
        let mut case = Case::new(shape, &[(45, 0)], &[1]).with((Some(7), None));
        let clean = case.forward(Level::detect());
        let nan = vec![f32::NAN; 2 * 20];
        let pages = case.segments[0].2.clone();
        let first = AttnSegment { rows: 0..1, past: 0, pages: &pages };
        write_kv(&mut case.k_pages, &mut case.v_pages, &nan, &nan, &[first], 2, 20);
        let found = case.forward(Level::detect());
        let width = 4 * 20;
        assert_same_bits(&found[7 * width..], &clean[7 * width..], "rows past the window");
        assert!(found[..7 * width].iter().all(|v| v.is_nan()), "rows within it");
    }

    #[test]
    fn rows_outside_the_segments_are_left_alone() {
        let case = Case::new((2, 1, 8), &[(3, 0)], &[1]);
        let pages = &case.segments[0].2;
        let segment = AttnSegment { rows: 1..2, past: 0, pages };
        let mut out = vec![5.0; 3 * 16];
        attention(&mut out, &case.q, case.pages(), &[segment], 2, AttnRule::full(1.0));
        assert!(out[..16].iter().chain(&out[32..]).all(|v| *v == 5.0));
        assert!(out[16..32].iter().all(|v| *v != 5.0));
    }

    #[test]
    #[should_panic(expected = "overlap")]
    fn overlapping_segments_are_refused() {
        let case = Case::new((1, 1, 2), &[(3, 0)], &[1]);
        let pages = &case.segments[0].2;
        let segments = [0..2, 1..3].map(|rows| AttnSegment { rows, past: 0, pages });
        attention(&mut [0.0; 6], &case.q, case.pages(), &segments, 1, AttnRule::full(1.0));
    }

    #[test]
    #[should_panic(expected = "page 9 is not below")]
    fn a_page_that_does_not_exist_is_refused() {
        let case = Case::new((1, 1, 2), &[(1, 0)], &[1]);
        let segment = AttnSegment { rows: 0..1, past: 0, pages: &[9] };
        attention(&mut [0.0; 2], &case.q, case.pages(), &[segment], 1, AttnRule::full(1.0));
    }
}
