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
    /// Generations given so far.
    generations: u64,
}

struct Slot {
    name: String,
    generation: u64,
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
    fn new(
        adapter: &LoraAdapter,
        module: usize,
        of: Module,
        rows: Range<usize>,
        a: &PackedMatrix,
        base: &Decoder,
    ) -> Part {
        let m = &adapter.modules[module];
        let b = PackedMatrix::from_f32(&adapter.params[m.b_rows(&rows)], rows.len(), m.r);
        let dora = Dora::new(adapter, m, of, &rows, a, base);
        Part { module, of, rows, b, dora }
    }

    fn refresh(&mut self, adapter: &LoraAdapter, a: &PackedMatrix, base: &Decoder) {
        let m = &adapter.modules[self.module];
        self.b.repack_f32(&adapter.params[m.b_rows(&self.rows)]);
        self.dora = Dora::new(adapter, m, self.of, &self.rows, a, base);
    }
}

impl Dora {
    /// None where the module has no magnitudes.
    fn new(
        adapter: &LoraAdapter,
        m: &LoraModule,
        of: Module,
        rows: &Range<usize>,
        a: &PackedMatrix,
        base: &Decoder,
    ) -> Option<Dora> {
        let magnitude = adapter.params[m.magnitude.clone()].get(rows.clone())?;
        let b = &adapter.params[m.b_rows(rows)];
        let lengths = row_lengths(base.layers[m.layer].matrix(of), a, b, m.scale);
        let gain = magnitude.iter().zip(&lengths).map(|(m, length)| m / length).collect();
        Some(Dora { lengths, gain })
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
        let (mut packed_a, mut parts) = (Vec::new(), Vec::new());
        for (i, m) in adapter.modules.iter().enumerate() {
            if !m.fits(model) {
                return Err(ModelError::Params(format!(
                    "adapter \"{name}\": {} is {} x {}, which this base does not have",
                    m.name, m.out_features, m.in_features
                )));
            }
            let a = PackedMatrix::from_f32(&adapter.params[m.a.clone()], m.r, m.in_features);
            for (module, rows) in m.linear.parts(model) {
                index[m.layer][module as usize] = Some(parts.len());
                parts.push(Part::new(adapter, i, module, rows, &a, base));
            }
            packed_a.push(a);
        }
        self.generations += 1;
        let slot = Slot {
            name: name.to_owned(),
            generation: self.generations,
            dropout: adapter.config.lora_dropout,
            modules: adapter.modules.clone(),
            a: packed_a,
            parts,
            index,
        };
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
        self.generations += 1;
        let generation = self.generations;
        let slot = self.slots[slot].as_mut().expect("the slot holds an adapter");
        assert!(slot.modules == adapter.modules, "refresh with an adapter of another layout");
        slot.generation = generation;
        for (m, a) in slot.modules.iter().zip(&mut slot.a) {
            a.repack_f32(&adapter.params[m.a.clone()]);
        }
        for part in &mut slot.parts {
            part.refresh(adapter, &slot.a[part.module], base);
        }
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

    /// A number, from 1 on, that only the adapter in `slot` has, and only in its present form: keys
    /// that were made with it serve only while it stays the same. None where the slot is empty.
    pub fn generation(&self, slot: usize) -> Option<u64> {
        Some(self.slots.get(slot)?.as_ref()?.generation)
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

/// The length of every row of W [N, K] + scale · B [N, R] A [R, K].
pub(super) fn row_lengths(w: &PackedMatrix, a: &PackedMatrix, b: &[f32], scale: f32) -> Vec<f32> {
    /// Rows whose delta is made at a time: whole panels.
    const ROWS: usize = 16 * kernels::PANEL;
    let (n, k, r) = (w.n(), w.k(), a.n());
    let mut lengths = vec![0.0f32; n];
    let mut delta = Vec::new();
    for start in (0..n).step_by(ROWS) {
        let rows = start..n.min(start + ROWS);
        delta.resize(rows.len() * k, 0.0);
        kernels::matmul_dx(&mut delta, &b[rows.start * r..rows.end * r], a, rows.len(), false);
        let lengths = lengths[rows].par_chunks_mut(kernels::PANEL);
        let each = lengths.zip(delta.par_chunks(kernels::PANEL * k)).enumerate();
        each.for_each_init(Vec::new, |values, (panel, (lengths, delta))| {
            values.resize(delta.len(), 0.0);
            w.panel(start / kernels::PANEL + panel, values);
            let rows = values.chunks_exact(k).zip(delta.chunks_exact(k));
            for (length, (row, delta)) in lengths.iter_mut().zip(rows) {
                let squares = row.iter().zip(delta).map(|(w, d)| {
                    let value = w + scale * d;
                    value as f64 * value as f64
                });
                *length = squares.sum::<f64>().sqrt() as f32;
            }
        });
    }
    lengths
}
