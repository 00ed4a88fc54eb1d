//! Weights laid out for the matrix kernels: panels of sixteen outputs.
//!
//! Panel p holds outputs 16p..16p+16 as `[k][16 lanes]`, so that a kernel reads a weight matrix
//! front to back with whole vectors, and one input element meets sixteen outputs at once. The last
//! panel is padded with zeros.

use half::bf16;
use rayon::prelude::*;

/// Outputs per panel.
pub(crate) const PANEL: usize = 16;

/// How a weight's values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// 32-bit IEEE 754.
    F32,
    /// The upper half of an f32.
    Bf16,
}

impl Dtype {
    /// Bytes of one value.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::Bf16 => 2,
        }
    }
}

/// Sixteen f32 lanes. Aligned to the cache line, because a vector load that crosses two lines
/// costs two loads.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct LanesF32(pub(crate) [f32; PANEL]);

/// Sixteen bf16 lanes.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
pub(crate) struct LanesBf16(pub(crate) [bf16; PANEL]);

#[derive(Clone, Debug)]
pub(crate) enum Storage {
    F32(Vec<LanesF32>),
    Bf16(Vec<LanesBf16>),
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
        let mut lanes = vec![LanesF32([0.0; PANEL]); n.div_ceil(PANEL) * k];
        pack(&mut lanes, src, n, k, |lanes, i, value| lanes.0[i] = value);
        PackedMatrix { n, k, storage: Storage::F32(lanes) }
    }

    /// Packs a row-major `[N, K]` matrix, kept as bf16. Products widen each value exactly and
    /// accumulate in f32.
    ///
    /// # Panics
    /// When `src.len() != n * k`.
    pub fn from_bf16(src: &[bf16], n: usize, k: usize) -> Self {
        check_shape(src.len(), n, k);
        let mut lanes = vec![LanesBf16([bf16::ZERO; PANEL]); n.div_ceil(PANEL) * k];
        pack(&mut lanes, src, n, k, |lanes, i, value| lanes.0[i] = value);
        PackedMatrix { n, k, storage: Storage::Bf16(lanes) }
    }

    /// Replaces all values by those of a row-major `[N, K]` matrix of the same shape; the storage
    /// becomes f32 (it is reused when it already was).
    ///
    /// # Panics
    /// When `src.len() != n * k`.
    pub fn repack_f32(&mut self, src: &[f32]) {
        check_shape(src.len(), self.n, self.k);
        match &mut self.storage {
            Storage::F32(lanes) => {
                pack(lanes, src, self.n, self.k, |lanes, i, value| lanes.0[i] = value);
            }
            Storage::Bf16(_) => *self = Self::from_f32(src, self.n, self.k),
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

    /// How the values are stored.
    pub fn dtype(&self) -> Dtype {
        match self.storage {
            Storage::F32(_) => Dtype::F32,
            Storage::Bf16(_) => Dtype::Bf16,
        }
    }

    /// Memory of the values, padding included, in bytes.
    pub fn bytes(&self) -> usize {
        self.panels() * PANEL * self.k * self.dtype().bytes()
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
        }
    }

    /// The matrix as row-major f32 `[N, K]`.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.n * self.k];
        if self.k > 0 {
            out.par_chunks_mut(self.k).enumerate().for_each(|(i, row)| self.row(i, row));
        }
        out
    }

    /// Number of panels, the padded last one included.
    pub(crate) fn panels(&self) -> usize {
        self.n.div_ceil(PANEL)
    }
}

fn check_shape(len: usize, n: usize, k: usize) {
    assert_eq!(len, n * k, "a [{n}, {k}] weight needs {} values, found {len}", n * k);
}

/// Spreads the rows of `src` over lanes; padding lanes are left as they are.
fn pack<L: Send, V: Copy + Sync>(
    lanes: &mut [L],
    src: &[V],
    n: usize,
    k: usize,
    set: impl Fn(&mut L, usize, V) + Sync,
) {
    if k == 0 {
        return;
    }
    lanes.par_chunks_mut(k).enumerate().for_each(|(p, panel)| {
        for (lane, row) in (p * PANEL..n.min((p + 1) * PANEL)).enumerate() {
            for (lanes, &value) in panel.iter_mut().zip(&src[row * k..(row + 1) * k]) {
                set(lanes, lane, value);
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
    #[should_panic(expected = "a [3, 4] weight needs 12 values, found 11")]
    fn a_wrong_length_is_refused() {
        PackedMatrix::from_f32(&[0.0; 11], 3, 4);
    }
}
