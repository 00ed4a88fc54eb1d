//! The adapters that a batch can name, packed for the kernels.

use super::{LoraAdapter, LoraModule};
use crate::batch::Batch;
use crate::decoder::{Decoder, Grads};
use crate::error::ModelError;
use crate::linear::{Group, Module};
use kernels::{LoraRef, PackedMatrix};
use rayon::prelude::*;
use std::ops::Range;

/// The adapters that a batch can name, packed for the kernels, by slot.
#[derive(Default)]
pub struct AdapterSet {
    slots: Vec<Option<Slot>>,
}

struct Slot {
    name: String,
    dropout: f32,
    modules: Vec<LoraModule>,
    /// A of each of `modules`.
    a: Vec<PackedMatrix>,
    parts: Vec<Part>,
    /// [layer][module] to index in `parts`.
    index: Vec<[Option<usize>; 7]>,
}

/// One matrix's share of a LoRA module: of a fused one the A is shared, and B falls into rows.
struct Part {
    /// Index in the slot's `modules` and `a`.
    module: usize,
    of: Module,
    /// Its rows of the module.
    rows: Range<usize>,
    b: PackedMatrix,
    dora: Option<Dora>,
}

/// DoRA's factors of one matrix, by output.
pub(crate) struct Dora {
    /// Lengths of the rows of W + s·B·A. The gradient takes them as constants (arXiv 2402.09353,
    /// section 4.3).
    pub(crate) lengths: Vec<f32>,
    /// Magnitude over length: what each output of base and delta together is multiplied by.
    pub(crate) gain: Vec<f32>,
}

impl Part {
    fn new(adapter: &LoraAdapter, module: usize, of: Module, rows: Range<usize>) -> Part {
        let m = &adapter.modules[module];
        let b = PackedMatrix::from_f32(&adapter.params[m.b_rows(&rows)], rows.len(), m.r);
        let dora =
            (!m.magnitude.is_empty()).then(|| Dora { lengths: Vec::new(), gain: Vec::new() });
        Part { module, of, rows, b, dora }
    }

    fn refresh(&mut self, adapter: &LoraAdapter, a: &PackedMatrix, base: &Decoder) {
        let m = &adapter.modules[self.module];
        let b = &adapter.params[m.b_rows(&self.rows)];
        self.b.repack_f32(b);
        if let Some(dora) = &mut self.dora {
            dora.lengths = row_lengths(base.layers[m.layer].matrix(self.of), a, b, m.scale);
            let start = m.magnitude.start;
            let magnitude = &adapter.params[start + self.rows.start..start + self.rows.end];
            dora.gain = magnitude.iter().zip(&dora.lengths).map(|(m, length)| m / length).collect();
        }
    }
}

impl LoraModule {
    /// Place of some rows of B.
    fn b_rows(&self, rows: &Range<usize>) -> Range<usize> {
        self.b.start + rows.start * self.r..self.b.start + rows.end * self.r
    }
}

impl AdapterSet {
    /// No adapters.
    pub fn new() -> AdapterSet {
        AdapterSet::default()
    }

    /// Adds an adapter under `name` and returns its slot.
    ///
    /// # Errors
    /// [`ModelError::Params`] when the name is taken or the adapter was made for another shape.
    pub fn insert(
        &mut self,
        name: &str,
        adapter: &LoraAdapter,
        base: &Decoder,
    ) -> Result<usize, ModelError> {
        if self.slot(name).is_some() {
            return Err(ModelError::Params(format!(
                "an adapter named \"{name}\" is already there"
            )));
        }
        let model = base.config();
        let mut index = vec![[None; 7]; model.num_hidden_layers];
        let mut parts = Vec::new();
        for (i, m) in adapter.modules.iter().enumerate() {
            let fits = m.layer < model.num_hidden_layers
                && model.linears(m.layer).contains(&m.linear)
                && m.linear.shape(model) == (m.out_features, m.in_features);
            if !fits {
                return Err(ModelError::Params(format!(
                    "adapter \"{name}\": {} is {} x {}, which this base does not have",
                    m.name, m.out_features, m.in_features
                )));
            }
            for (module, rows) in m.linear.parts(model) {
                index[m.layer][module as usize] = Some(parts.len());
                parts.push(Part::new(adapter, i, module, rows));
            }
        }
        let pack_a = |m: &LoraModule| {
            PackedMatrix::from_f32(&adapter.params[m.a.clone()], m.r, m.in_features)
        };
        let mut slot = Slot {
            name: name.to_owned(),
            dropout: adapter.config.lora_dropout,
            modules: adapter.modules.clone(),
            a: adapter.modules.iter().map(pack_a).collect(),
            parts,
            index,
        };
        slot.refresh(adapter, base);
        let free = self.slots.iter().position(Option::is_none);
        match free {
            Some(i) => self.slots[i] = Some(slot),
            None => self.slots.push(Some(slot)),
        }
        Ok(free.unwrap_or(self.slots.len() - 1))
    }

    /// Takes over changed parameters of the adapter in `slot` (after an optimizer step).
    ///
    /// # Panics
    /// When the slot is empty or the adapter has another layout: an error of the caller.
    pub fn refresh(&mut self, slot: usize, adapter: &LoraAdapter, base: &Decoder) {
        let slot = self.slots[slot].as_mut().expect("the slot holds an adapter");
        assert!(slot.modules == adapter.modules, "refresh with an adapter of another layout");
        slot.refresh(adapter, base);
    }

    /// Frees `slot`; sequences must not name it any more.
    pub fn remove(&mut self, slot: usize) {
        if let Some(entry) = self.slots.get_mut(slot) {
            *entry = None;
        }
    }

    /// The slot of the adapter named `name`.
    pub fn slot(&self, name: &str) -> Option<usize> {
        self.slots.iter().position(|s| s.as_ref().is_some_and(|s| s.name == name))
    }

    /// The adapter of some rows on one base matrix.
    pub(crate) fn group(
        &self,
        rows: Range<usize>,
        index: usize,
        layer: usize,
        module: Module,
    ) -> Option<Group<'_>> {
        let (slot, part) = self.part(index, layer, module)?;
        let m = &slot.modules[part.module];
        Some(Group {
            rows,
            slot: index,
            lora: LoraRef { a: &slot.a[part.module], b: &part.b, scale: m.scale },
            dora: part.dora.as_ref(),
            dropout: slot.dropout,
            // Matrices of one linear layer see the same inputs, so they drop the same ones.
            stream: (layer * 7 + m.linear.modules()[0] as usize) as u64,
        })
    }

    fn part(&self, slot: usize, layer: usize, module: Module) -> Option<(&Slot, &Part)> {
        let slot = self.slots.get(slot)?.as_ref()?;
        Some((slot, &slot.parts[slot.index[layer][module as usize]?]))
    }

    /// Every slot that the batch names must hold an adapter.
    pub(crate) fn check(&self, batch: &Batch) -> Result<(), ModelError> {
        for slot in batch.segments.iter().filter_map(|s| s.adapter) {
            if !self.slots.get(slot).is_some_and(Option::is_some) {
                return Err(ModelError::Batch(format!("adapter slot {slot} is empty")));
            }
        }
        Ok(())
    }

    /// The gradients of A, B and magnitude of one matrix in an adapter that is trained.
    pub(crate) fn grads<'g>(
        &self,
        slot: usize,
        layer: usize,
        module: Module,
        grads: &'g mut Grads,
    ) -> Option<LoraGrads<'g>> {
        let all = grads.adapters.get_mut(slot)?.as_mut()?;
        let (slot, part) = self.part(slot, layer, module)?;
        let m = &slot.modules[part.module];
        // A, B and magnitude lie one after the other.
        let own = &mut all[m.a.start..m.magnitude.end];
        let (a, rest) = own.split_at_mut(m.a.len());
        let (b, magnitude) = rest.split_at_mut(m.b.len());
        let rows = &part.rows;
        Some(LoraGrads {
            a,
            b: &mut b[rows.start * m.r..rows.end * m.r],
            magnitude: if part.dora.is_some() { &mut magnitude[rows.clone()] } else { &mut [] },
        })
    }
}

/// Where the gradients of one matrix's adapter are added.
pub(crate) struct LoraGrads<'g> {
    pub(crate) a: &'g mut [f32],
    pub(crate) b: &'g mut [f32],
    pub(crate) magnitude: &'g mut [f32],
}

impl Slot {
    fn refresh(&mut self, adapter: &LoraAdapter, base: &Decoder) {
        for (m, a) in self.modules.iter().zip(&mut self.a) {
            a.repack_f32(&adapter.params[m.a.clone()]);
        }
        for part in &mut self.parts {
            part.refresh(adapter, &self.a[part.module], base);
        }
    }
}

/// The length of every row of W [N, K] + scale · B [N, R] A [R, K].
pub(super) fn row_lengths(w: &PackedMatrix, a: &PackedMatrix, b: &[f32], scale: f32) -> Vec<f32> {
    /// Rows whose delta is made at a time.
    const ROWS: usize = 256;
    let (n, k, r) = (w.n(), w.k(), a.n());
    let mut lengths = vec![0.0f32; n];
    let mut delta = Vec::new();
    for start in (0..n).step_by(ROWS) {
        let rows = start..n.min(start + ROWS);
        delta.resize(rows.len() * k, 0.0);
        kernels::matmul_dx(&mut delta, &b[rows.start * r..rows.end * r], a, rows.len(), false);
        let each = lengths[rows.clone()].par_iter_mut().zip(delta.par_chunks_exact(k));
        each.enumerate().for_each_init(
            || vec![0.0; k],
            |row, (i, (length, delta))| {
                w.row(rows.start + i, row);
                let squares = row.iter().zip(delta).map(|(w, d)| {
                    let value = w + scale * d;
                    value as f64 * value as f64
                });
                *length = squares.sum::<f64>().sqrt() as f32;
            },
        );
    }
    lengths
}
