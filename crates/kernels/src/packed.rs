//! Weights laid out for the matrix kernels: panels of sixteen outputs.
//!
//! Panel p holds outputs 16p..16p+16 as `[k][16 lanes]`, so that a kernel reads a weight matrix
//! front to back with whole vectors, and one input element meets sixteen outputs at once. The last
//! panel is padded with zeros.
//!
//! Quantised weights stay quantised: a panel then holds the blocks of its sixteen outputs as
//! [`crate::formats::lanes`] lays them out, and kernels unpack a stretch of a panel at a time.

use crate::formats::{Dtype, PART, lanes};
use crate::mapped_file::MappedFile;
use crate::simd::{Level, dispatch_at};
use half::bf16;
use rayon::prelude::*;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// Outputs per panel.
pub const PANEL: usize = 16;

/// Counts the changes of how panels are laid out: [`PackedMatrix::laid_out`] is read by the same only.
pub const LAYOUT: u32 = 1;

/// Sixteen f32 lanes. Aligned to the cache line, because a vector load that crosses two lines
/// costs two loads.
#[derive(Clone, Copy, Debug, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
pub(crate) struct LanesF32(pub(crate) [f32; PANEL]);

/// Sixteen bf16 lanes.
#[derive(Clone, Copy, Debug, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(32))]
pub(crate) struct LanesBf16(pub(crate) [bf16; PANEL]);

/// A cache line of quantised panels.
#[derive(Clone, Copy, Debug, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
pub(crate) struct Line([u8; 64]);

/// Values of this process's own, or those of a mapped file, read-only.
#[derive(Clone, Debug)]
pub(crate) enum Kept<T> {
    Own(Vec<T>),
    /// The file and the place of the values in it, which [`Kept::mapped`] has checked.
    Mapped(Arc<MappedFile>, Range<usize>),
}

impl<T: bytemuck::Pod> Kept<T> {
    fn mapped(file: &Arc<MappedFile>, place: Range<usize>) -> Result<Kept<T>, String> {
        let size = file.len();
        let bytes = file.get(place.clone()).ok_or_else(|| {
            format!("bytes {} to {} of a file of {size} bytes", place.start, place.end)
        })?;
        bytemuck::try_cast_slice::<u8, T>(bytes)
            .map_err(|e| format!("bytes {} to {}: {e}", place.start, place.end))?;
        Ok(Kept::Mapped(Arc::clone(file), place))
    }
}

impl<T: bytemuck::Pod> Deref for Kept<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        match self {
            Kept::Own(values) => values,
            Kept::Mapped(file, place) => bytemuck::cast_slice(&file[place.clone()]),
        }
    }
}

impl<T> From<Vec<T>> for Kept<T> {
    fn from(values: Vec<T>) -> Kept<T> {
        Kept::Own(values)
    }
}

/// Panels of quantised blocks.
#[derive(Clone, Debug)]
pub(crate) struct Quantised {
    pub(crate) dtype: Dtype,
    lines: Kept<Line>,
    panel_bytes: usize,
}

impl Quantised {
    /// The blocks of panel `panel`.
    pub(crate) fn panel(&self, panel: usize) -> &[u8] {
        let bytes: &[u8] = bytemuck::cast_slice(&self.lines);
        &bytes[panel * self.panel_bytes..(panel + 1) * self.panel_bytes]
    }

    /// Whether products can be had in integers.
    pub(crate) fn has_integers(&self) -> bool {
        lanes::Layout::new(self.dtype).has_integers()
    }

    /// What unpacks a stretch of panel `panel` to `to`; start and length in multiples of 32.
    pub(crate) fn unpack_panel(
        &self,
        panel: usize,
        start: usize,
        len: usize,
        to: *mut f32,
    ) -> lanes::UnpackPanel {
        lanes::UnpackPanel { dtype: self.dtype, panel: self.panel(panel).as_ptr(), start, len, to }
    }
}

/// `n` zero values in fresh memory, in huge pages where the system gives any: gigabytes of weights are
/// half a million small ones, each of which costs a fault at load and its share of misses later.
fn zeroed<T: bytemuck::Zeroable>(n: usize) -> Vec<T> {
    let values = bytemuck::zeroed_vec::<T>(n);
    #[cfg(target_os = "linux")]
    {
        const HUGE: usize = 2 << 20;
        let bytes = values.as_ptr() as usize..values.as_ptr() as usize + size_of_val(&values[..]);
        // Only whole huge pages, so that no more memory is taken than was asked for.
        let (start, end) = (bytes.start.next_multiple_of(HUGE), bytes.end / HUGE * HUGE);
        if start < end {
            // SAFETY: the pages lie inside memory that this function owns, and the advice changes
            // nothing in it. Where the system declines, all stays as it was.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
        }
    }
    values
}

#[derive(Clone, Debug)]
pub(crate) enum Storage {
    F32(Kept<LanesF32>),
    Bf16(Kept<LanesBf16>),
    Quantised(Quantised),
}

/// A weight `[N, K]` (outputs, inputs) in panels of sixteen outputs; see the module's text.
#[derive(Clone, Debug)]
pub struct PackedMatrix {
    pub(crate) n: usize,
    pub(crate) k: usize,
    /// `[ceil(N/16)][K]` lanes.
    pub(crate) storage: Storage,
}

impl PackedMatrix {
    /// Packs a row-major `[N, K]` matrix, kept as f32.
    ///
    /// # Panics
    /// When `src.len() != n * k`.
    pub fn from_f32(src: &[f32], n: usize, k: usize) -> Self {
        check_shape(src.len(), n, k);
        let mut lanes: Vec<LanesF32> = zeroed(n.div_ceil(PANEL) * k);
        pack(&mut lanes, n, k, |i| &src[i * k..][..k], |lanes, i, value| lanes.0[i] = value);
        PackedMatrix { n, k, storage: Storage::F32(lanes.into()) }
    }

    /// Packs a row-major `[N, K]` matrix, kept as bf16. Products widen each value exactly and
    /// accumulate in f32.
    ///
    /// # Panics
    /// When `src.len() != n * k`.
    pub fn from_bf16(src: &[bf16], n: usize, k: usize) -> Self {
        check_shape(src.len(), n, k);
        let mut lanes: Vec<LanesBf16> = zeroed(n.div_ceil(PANEL) * k);
        pack(&mut lanes, n, k, |i| &src[i * k..][..k], |lanes, i, value| lanes.0[i] = value);
        PackedMatrix { n, k, storage: Storage::Bf16(lanes.into()) }
    }

    /// Packs rows that come as the bytes of `dtype`: `row(i)` are those of output `i`, in the
    /// layout of GGUF files. Quantised formats and bf16 are kept as they are; f16 is widened to
    /// f32 (exact).
    ///
    /// # Panics
    /// When a row of `k` values is not whole blocks of `dtype`, or `row` gives another length.
    pub fn from_bytes<'a>(
        dtype: Dtype,
        n: usize,
        k: usize,
        row: impl Fn(usize) -> &'a [u8] + Sync,
    ) -> Self {
        let row_bytes = row_bytes(dtype, k);
        let row = |i: usize| {
            let bytes = row(i);
            assert_eq!(bytes.len(), row_bytes, "row {i} of {k} values of {}", dtype.name());
            bytes
        };
        if dtype.is_quantised() {
            return Self::quantised(dtype, n, k, |i, _, place| place(row(i)));
        }
        if dtype == Dtype::Bf16 {
            // Most published models are bf16, and a person waits for this: no way through f32.
            let mut lanes: Vec<LanesBf16> = zeroed(n.div_ceil(PANEL) * k);
            pack(
                &mut lanes,
                n,
                k,
                |i| row(i).as_chunks::<2>().0,
                |lanes, i, value| {
                    lanes.0[i] = bf16::from_le_bytes(value);
                },
            );
            return PackedMatrix { n, k, storage: Storage::Bf16(lanes.into()) };
        }
        let kept = if dtype == Dtype::F16 { Dtype::F32 } else { dtype };
        Self::from_rows(kept, n, k, |i, values| dtype.unpack(row(i), values))
    }

    /// Packs rows of f32 values, converted to `dtype` row by row: `fill(i, values)` writes the `k`
    /// weights of output `i`. No copy of the whole matrix in f32 is ever made.
    ///
    /// # Panics
    /// When a row of `k` values is not whole blocks of `dtype`, or Metier cannot make the format
    /// (see [`Dtype::can_pack`]), or `dtype` is f16, which is not kept in memory.
    pub fn from_rows(
        dtype: Dtype,
        n: usize,
        k: usize,
        fill: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Self {
        let row_bytes = row_bytes(dtype, k);
        if dtype.is_quantised() {
            return Self::quantised(dtype, n, k, |i, (values, bytes), place| {
                values.resize(k, 0.0);
                bytes.resize(row_bytes, 0);
                fill(i, values);
                dtype.pack(values, bytes);
                place(bytes);
            });
        }
        let count = n.div_ceil(PANEL) * k;
        let storage = match dtype {
            Dtype::F32 => {
                let mut lanes: Vec<LanesF32> = zeroed(count);
                fill_panels(&mut lanes, n, k, fill, |lanes, i, value| lanes.0[i] = value);
                Storage::F32(lanes.into())
            }
            Dtype::Bf16 => {
                let mut lanes: Vec<LanesBf16> = zeroed(count);
                let set = |lanes: &mut LanesBf16, i, value| lanes.0[i] = bf16::from_f32(value);
                fill_panels(&mut lanes, n, k, fill, set);
                Storage::Bf16(lanes.into())
            }
            _ => panic!("{} is not kept in memory", dtype.name()),
        };
        PackedMatrix { n, k, storage }
    }

    /// Builds quantised panels: `row` is called for each output with buffers of its thread and
    /// hands the blocks of its row to its last argument.
    fn quantised(
        dtype: Dtype,
        n: usize,
        k: usize,
        row: impl Fn(usize, &mut (Vec<f32>, Vec<u8>), &mut dyn FnMut(&[u8])) + Sync,
    ) -> Self {
        let panel_bytes = lanes::panel_bytes(dtype, k);
        let size = n.div_ceil(PANEL) * panel_bytes;
        let mut lines: Vec<Line> = zeroed(size.div_ceil(64));
        if size > 0 {
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut lines);
            let panels = bytes[..size].par_chunks_mut(panel_bytes).enumerate();
            panels.for_each_init(Default::default, |buffers, (p, panel)| {
                for (lane, i) in (p * PANEL..n.min((p + 1) * PANEL)).enumerate() {
                    row(i, buffers, &mut |blocks| lanes::place(dtype, blocks, lane, panel));
                }
            });
        }
        let quantised = Quantised { dtype, lines: lines.into(), panel_bytes };
        PackedMatrix { n, k, storage: Storage::Quantised(quantised) }
    }

    /// The values as they lie in memory, for [`PackedMatrix::mapped`] on a machine like this one.
    pub fn laid_out(&self) -> &[u8] {
        match &self.storage {
            Storage::F32(lanes) => bytemuck::cast_slice(lanes),
            Storage::Bf16(lanes) => bytemuck::cast_slice(lanes),
            Storage::Quantised(q) => bytemuck::cast_slice(&q.lines),
        }
    }

    /// A matrix `[N, K]` whose values stay in `file`: at `start`, a multiple of 64, are those of
    /// [`PackedMatrix::laid_out`].
    ///
    /// # Errors
    /// What is wrong with the place, when they cannot lie there.
    ///
    /// # Panics
    /// As [`PackedMatrix::from_rows`].
    pub fn mapped(
        dtype: Dtype,
        n: usize,
        k: usize,
        file: &Arc<MappedFile>,
        start: usize,
    ) -> Result<Self, String> {
        row_bytes(dtype, k);
        let panels = n.div_ceil(PANEL);
        let panel_bytes = match dtype {
            Dtype::F32 => k * size_of::<LanesF32>(),
            Dtype::Bf16 => k * size_of::<LanesBf16>(),
            _ => lanes::panel_bytes(dtype, k),
        };
        // Whole cache lines, as quantised panels are held; the others are whole ones anyway.
        let len = panels.saturating_mul(panel_bytes).div_ceil(64).saturating_mul(64);
        let place = start..start.saturating_add(len);
        let storage = match dtype {
            Dtype::F32 => Storage::F32(Kept::mapped(file, place)?),
            Dtype::Bf16 => Storage::Bf16(Kept::mapped(file, place)?),
            _ if dtype.is_quantised() => {
                let lines = Kept::mapped(file, place)?;
                Storage::Quantised(Quantised { dtype, lines, panel_bytes })
            }
            _ => panic!("{} is not kept in memory", dtype.name()),
        };
        Ok(PackedMatrix { n, k, storage })
    }

    /// Replaces all values by those of a row-major `[N, K]` matrix of the same shape; the storage
    /// becomes f32 (it is reused when it already was).
    ///
    /// # Panics
    /// When `src.len() != n * k`.
    pub fn repack_f32(&mut self, src: &[f32]) {
        check_shape(src.len(), self.n, self.k);
        match &mut self.storage {
            Storage::F32(Kept::Own(lanes)) => {
                let (n, k) = (self.n, self.k);
                pack(lanes, n, k, |i| &src[i * k..][..k], |lanes, i, value| lanes.0[i] = value);
            }
            _ => *self = Self::from_f32(src, self.n, self.k),
        }
    }

    /// Outputs N.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs K.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Whether products with it are computed in integers, with an error of their own: see
    /// [`crate::int8`].
    pub(crate) fn in_integers(&self) -> bool {
        matches!(&self.storage, Storage::Quantised(q) if q.has_integers())
    }

    /// How the values are stored.
    pub fn dtype(&self) -> Dtype {
        match &self.storage {
            Storage::F32(_) => Dtype::F32,
            Storage::Bf16(_) => Dtype::Bf16,
            Storage::Quantised(q) => q.dtype,
        }
    }

    /// Memory of the values, padding included, in bytes.
    pub fn bytes(&self) -> usize {
        self.laid_out().len()
    }

    /// Unpacks the weights of output `i` into `out` `[K]`; for a tied embedding, the vector of
    /// token `i`.
    ///
    /// # Panics
    /// When `i >= n` or `out.len() != k`.
    pub fn row(&self, i: usize, out: &mut [f32]) {
        assert!(i < self.n, "row {i} of a weight with {} rows", self.n);
        assert_eq!(out.len(), self.k, "a row of this weight has {} values", self.k);
        let (panel, lane) = (i / PANEL, i % PANEL);
        let range = panel * self.k..(panel + 1) * self.k;
        match &self.storage {
            Storage::F32(lanes) => {
                for (out, lanes) in out.iter_mut().zip(&lanes[range]) {
                    *out = lanes.0[lane];
                }
            }
            Storage::Bf16(lanes) => {
                for (out, lanes) in out.iter_mut().zip(&lanes[range]) {
                    *out = lanes.0[lane].to_f32();
                }
            }
            Storage::Quantised(q) => {
                // Sixteen rows are unpacked for the sake of one: still microseconds, and the same
                // bits as in every product.
                let mut parts = [[[0.0f32; PANEL]; PART]; 4];
                for (i, out) in out.chunks_mut(parts.len() * PART).enumerate() {
                    let start = i * parts.len() * PART;
                    let to = parts.as_mut_ptr().cast();
                    dispatch_at(Level::detect(), q.unpack_panel(panel, start, out.len(), to));
                    for (out, lanes) in out.iter_mut().zip(parts.as_flattened()) {
                        *out = lanes[lane];
                    }
                }
            }
        }
    }

    /// Unpacks the weights of the outputs of panel `panel` (sixteen of them, or what is left) into
    /// `out`, row-major `[outputs, K]`. Quantised rows are unpacked sixteen at a time anyway, so this
    /// is how to go through all of them.
    ///
    /// # Panics
    /// When there is no such panel or `out` has another length.
    pub fn panel(&self, panel: usize, out: &mut [f32]) {
        let first = panel * PANEL;
        assert!(first < self.n, "panel {panel} of a weight with {} rows", self.n);
        let rows = (self.n - first).min(PANEL);
        assert_eq!(out.len(), rows * self.k, "{rows} rows of {} values", self.k);
        let k = self.k;
        let mut put = |input: usize, lanes: &[f32; PANEL]| {
            for (lane, value) in lanes[..rows].iter().enumerate() {
                out[lane * k + input] = *value;
            }
        };
        let range = panel * k..(panel + 1) * k;
        match &self.storage {
            Storage::F32(lanes) => {
                lanes[range].iter().enumerate().for_each(|(i, lanes)| put(i, &lanes.0));
            }
            Storage::Bf16(lanes) => lanes[range]
                .iter()
                .enumerate()
                .for_each(|(i, lanes)| put(i, &lanes.0.map(bf16::to_f32))),
            Storage::Quantised(q) => {
                let mut parts = [[[0.0f32; PANEL]; PART]; 4];
                for start in (0..k).step_by(parts.len() * PART) {
                    let len = (k - start).min(parts.len() * PART);
                    let to = parts.as_mut_ptr().cast();
                    dispatch_at(Level::detect(), q.unpack_panel(panel, start, len, to));
                    for (i, lanes) in parts.as_flattened()[..len].iter().enumerate() {
                        put(start + i, lanes);
                    }
                }
            }
        }
    }

    /// The matrix as row-major f32 `[N, K]`.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.n * self.k];
        if self.k > 0 {
            let panels = out.par_chunks_mut(PANEL * self.k).enumerate();
            panels.for_each(|(panel, rows)| self.panel(panel, rows));
        }
        out
    }
}

fn row_bytes(dtype: Dtype, k: usize) -> usize {
    dtype.row_bytes(k).unwrap_or_else(|| {
        panic!("rows of {k} values are not whole blocks of {} ({})", dtype.block(), dtype.name())
    })
}

/// Spreads rows that come one by one over lanes; padding lanes are left as they are.
fn fill_panels<L: Send>(
    lanes: &mut [L],
    n: usize,
    k: usize,
    fill: impl Fn(usize, &mut [f32]) + Sync,
    set: impl Fn(&mut L, usize, f32) + Sync,
) {
    if k == 0 {
        return;
    }
    lanes.par_chunks_mut(k).enumerate().for_each_init(
        || vec![0.0; k],
        |values, (p, panel)| {
            for (lane, row) in (p * PANEL..n.min((p + 1) * PANEL)).enumerate() {
                fill(row, values);
                for (lanes, &value) in panel.iter_mut().zip(values.iter()) {
                    set(lanes, lane, value);
                }
            }
        },
    );
}

fn check_shape(len: usize, n: usize, k: usize) {
    assert_eq!(len, n * k, "a [{n}, {k}] weight needs {} values, found {len}", n * k);
}

/// Spreads rows over lanes; padding lanes are left as they are.
fn pack<'a, L: Send, V: Copy + 'a>(
    lanes: &mut [L],
    n: usize,
    k: usize,
    row: impl Fn(usize) -> &'a [V] + Sync,
    set: impl Fn(&mut L, usize, V) + Sync,
) {
    /// Inputs at a time: their lanes, 8 KiB at most, stay in the first-level cache for sixteen rows.
    const STRETCH: usize = 128;
    if k == 0 {
        return;
    }
    lanes.par_chunks_mut(k).enumerate().for_each(|(p, panel)| {
        for (s, lanes) in panel.chunks_mut(STRETCH).enumerate() {
            for (lane, i) in (p * PANEL..n.min((p + 1) * PANEL)).enumerate() {
                for (lanes, &value) in lanes.iter_mut().zip(&row(i)[s * STRETCH..]) {
                    set(lanes, lane, value);
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpacking_gives_back_what_was_packed() {
        for (n, k) in [(1, 1), (16, 3), (17, 5), (40, 7), (0, 4), (4, 0)] {
            let src: Vec<f32> = (0..n * k).map(|i| (i % 251) as f32 - 125.0).collect();
            let packed = PackedMatrix::from_f32(&src, n, k);
            assert_eq!(packed.to_f32(), src, "f32 [{n}, {k}]");
            assert_eq!(packed.dtype(), Dtype::F32);
            assert_eq!(packed.bytes(), n.div_ceil(16) * 16 * k * 4);
            // Integers below 256 are exact in bf16.
            let narrow: Vec<bf16> = src.iter().map(|&v| bf16::from_f32(v)).collect();
            let mut packed = PackedMatrix::from_bf16(&narrow, n, k);
            assert_eq!(packed.to_f32(), src, "bf16 [{n}, {k}]");
            assert_eq!((packed.n(), packed.k(), packed.dtype()), (n, k, Dtype::Bf16));
            assert_eq!(packed.bytes(), n.div_ceil(16) * 16 * k * 2);
            let other: Vec<f32> = src.iter().map(|v| v * 0.3).collect();
            packed.repack_f32(&other);
            assert_eq!(packed.to_f32(), other);
            packed.repack_f32(&src);
            assert_eq!(packed.to_f32(), src);
        }
    }

    #[test]
    fn quantised_panels_hold_the_values_of_their_blocks() {
        for dtype in Dtype::all().filter(|d| d.is_quantised()) {
            for (n, k) in [(1, 256), (16, 512), (37, 768), (0, 256), (3, 0)] {
                // Blocks of any bits at all, with small finite scales where the format has them:
                // an exponent field of f16 (or f32) that is all ones needs 0x7c in its high byte.
                let mut state = 7u32;
                let mut byte = || {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 24) as u8 & 0x3b
                };
                let row_bytes = dtype.row_bytes(k).unwrap();
                let bytes: Vec<u8> = (0..n * row_bytes).map(|_| byte()).collect();
                let mut expected = vec![0.0; n * k];
                dtype.unpack(&bytes, &mut expected);
                let row = |i: usize| &bytes[i * row_bytes..(i + 1) * row_bytes];
                let packed = PackedMatrix::from_bytes(dtype, n, k, row);
                let found = packed.to_f32();
                assert_eq!(found, expected, "{} [{n}, {k}]", dtype.name());
                let mut row = vec![0.0; k];
                for (i, expected) in expected.chunks_exact(k.max(1)).enumerate() {
                    packed.row(i, &mut row);
                    assert_eq!(row, expected, "{} [{n}, {k}], row {i}", dtype.name());
                }
                assert_eq!((packed.n(), packed.k(), packed.dtype()), (n, k, dtype));
                let published = n.div_ceil(16) * 16 * row_bytes;
                assert!(packed.bytes() <= published * 6 / 5 + 64, "{}", dtype.name());
                if dtype.can_pack() {
                    let converted = PackedMatrix::from_rows(dtype, n, k, |i, values| {
                        values.copy_from_slice(&expected[i * k..(i + 1) * k]);
                    });
                    let mut bytes = vec![0; n * row_bytes];
                    dtype.pack(&expected, &mut bytes);
                    let mut expected = vec![0.0; n * k];
                    dtype.unpack(&bytes, &mut expected);
                    assert_eq!(converted.to_f32(), expected, "{} [{n}, {k}]", dtype.name());
                }
            }
        }
    }

    #[test]
    fn float_rows_are_packed_as_matrices_are() {
        let (n, k) = (21, 9);
        let src: Vec<f32> = (0..n * k).map(|i| (i as f32 - 90.0) / 7.0).collect();
        let narrow: Vec<bf16> = src.iter().map(|&v| bf16::from_f32(v)).collect();
        let fill = |i: usize, values: &mut [f32]| values.copy_from_slice(&src[i * k..][..k]);
        let rows = PackedMatrix::from_rows(Dtype::F32, n, k, fill);
        assert_eq!(rows.to_f32(), src);
        let rows = PackedMatrix::from_rows(Dtype::Bf16, n, k, fill);
        assert_eq!(rows.to_f32(), PackedMatrix::from_bf16(&narrow, n, k).to_f32());
        assert_eq!(rows.dtype(), Dtype::Bf16);
        for (n, k) in [(21, 9), (16, 300), (3, 129), (0, 7), (5, 0)] {
            let values: Vec<bf16> =
                (0..n * k).map(|i| bf16::from_f32((i % 251) as f32 - 90.0)).collect();
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let row = |i: usize| &bytes[i * k * 2..][..k * 2];
            let rows = PackedMatrix::from_bytes(Dtype::Bf16, n, k, row);
            assert_eq!(rows.to_f32(), PackedMatrix::from_bf16(&values, n, k).to_f32());
            assert_eq!(rows.dtype(), Dtype::Bf16);
        }
        let halves: Vec<u8> =
            src.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect();
        let rows = PackedMatrix::from_bytes(Dtype::F16, n, k, |i| &halves[i * k * 2..][..k * 2]);
        let expected: Vec<f32> = src.iter().map(|&v| half::f16::from_f32(v).to_f32()).collect();
        assert_eq!((rows.to_f32(), rows.dtype()), (expected, Dtype::F32));
    }

    #[test]
    #[should_panic(expected = "rows of 48 values are not whole blocks of 32 (q8_0)")]
    fn a_row_that_is_not_whole_blocks_is_refused() {
        PackedMatrix::from_rows(Dtype::Q8_0, 3, 48, |_, _| {});
    }

    #[test]
    #[should_panic(expected = "a [3, 4] weight needs 12 values, found 11")]
    fn a_wrong_length_is_refused() {
        PackedMatrix::from_f32(&[0.0; 11], 3, 4);
    }
}
