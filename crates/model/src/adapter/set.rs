//! The adapters that a batch can name, packed for the kernels.

use super::{LoraAdapter, LoraModule};
use crate::batch::{Batch, Segment};
use crate::decoder::{Decoder, Grads, Memory};
use crate::error::ModelError;
use crate::kv::KvCache;
use crate::linear::{Group, Module};
use half::bf16;
use kernels::{LoraRef, PackedMatrix};
use rayon::prelude::*;
use std::ops::Range;

/// The adapters that a batch can name, packed for the kernels, by slot.
#[derive(Default)]
pub struct AdapterSet {
    slots: Vec<Option<Slot>>,
    /// How many generations there have been.
    generations: u64,
}

struct Slot {
    adapter: PackedAdapter,
    /// See [`AdapterSet::generation`].
    generation: u64,
}

/// An adapter in the form that the kernels read. Making one takes a while and needs no
/// [`AdapterSet`]; putting it into one takes no time.
pub struct PackedAdapter {
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
    fn new(
        adapter: &LoraAdapter,
        module: usize,
        of: Module,
        rows: Range<usize>,
        a: &PackedMatrix,
        base: &Decoder,
    ) -> Part {
        let m = &adapter.modules[module];
        let b = packed(&adapter.params[m.b_rows(&rows)], rows.len(), m.r);
        let dora = Dora::new(adapter, m, of, &rows, a, base);
        Part { module, of, rows, b, dora }
    }

    fn refresh(&mut self, adapter: &LoraAdapter, a: &PackedMatrix, base: &Decoder) {
        let m = &adapter.modules[self.module];
        self.b.repack_f32(&adapter.params[m.b_rows(&self.rows)]);
        self.dora = Dora::new(adapter, m, self.of, &self.rows, a, base);
    }
}

/// `values` [n, k] in bf16 where that loses nothing, which is so with adapters that were saved in it:
/// with many adapters in a batch, reading them takes about as long as reading the base.
fn packed(values: &[f32], n: usize, k: usize) -> PackedMatrix {
    match values.iter().all(|value| value.to_bits() & 0xffff == 0) {
        true => {
            let values: Vec<bf16> = values.iter().map(|&value| bf16::from_f32(value)).collect();
            PackedMatrix::from_bf16(&values, n, k)
        }
        false => PackedMatrix::from_f32(values, n, k),
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

impl PackedAdapter {
    /// Packs `adapter`; `name` is what it is called in errors and found by.
    ///
    /// # Errors
    /// [`ModelError::Params`] when the adapter was made for another shape.
    pub fn new(
        name: &str,
        adapter: &LoraAdapter,
        base: &Decoder,
    ) -> Result<PackedAdapter, ModelError> {
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
            let a = packed(&adapter.params[m.a.clone()], m.r, m.in_features);
            for (module, rows) in m.linear.parts(model) {
                index[m.layer][module as usize] = Some(parts.len());
                parts.push(Part::new(adapter, i, module, rows, &a, base));
            }
            packed_a.push(a);
        }
        Ok(PackedAdapter {
            name: name.to_owned(),
            dropout: adapter.config.lora_dropout,
            modules: adapter.modules.clone(),
            a: packed_a,
            parts,
            index,
        })
    }

    /// Bytes that the packed matrices take.
    pub fn bytes(&self) -> usize {
        let dora = |d: &Dora| (d.lengths.len() + d.gain.len()) * size_of::<f32>();
        let part = |p: &Part| p.b.bytes() + p.dora.as_ref().map_or(0, dora);
        self.a.iter().map(PackedMatrix::bytes).sum::<usize>()
            + self.parts.iter().map(part).sum::<usize>()
    }

    /// Runs a short fixed prompt through `base` with and without the adapter: an adapter that is to
    /// be served must change something, and must not break anything.
    ///
    /// # Errors
    /// [`ModelError::Params`] when a logit is not finite, or when no logit differs from the base's.
    pub fn probe(self, base: &Decoder) -> Result<PackedAdapter, ModelError> {
        let bad = |problem: String| ModelError::Params(problem);
        let vocab = base.config().vocab_size;
        let len = PROBE_TOKENS.min(base.config().max_position_embeddings);
        let ids = (0..len).map(|i| ((2 * i + 1) * vocab / (2 * len)) as u32);
        let name = self.name.clone();
        let mut set = AdapterSet::new();
        let slot = set.put(self);
        let segment = |page, adapter| Segment {
            len,
            adapter,
            pages: vec![page],
            reach: len,
            ..Segment::default()
        };
        let batch = Batch {
            tokens: ids.clone().chain(ids).collect(),
            segments: vec![segment(0, None), segment(1, Some(slot))],
            logit_rows: (0..2 * len).collect(),
        };
        let mut cache = KvCache::new(base.config(), batch.segments.len());
        let hidden = base.forward(&batch, &set, Memory::Cache(&mut cache))?;
        let logits = base.logits(&hidden);
        let (without, with) = logits.split_at(len * vocab);
        if without.iter().any(|x| !x.is_finite()) {
            return Err(bad("the base itself gives logits that are not finite".into()));
        }
        if let Some(place) = with.iter().position(|x| !x.is_finite()) {
            return Err(bad(format!(
                "adapter \"{name}\": a logit is {}, where the base's is {}\n\
                 hint: the values are finite but too large; was the training stopped when it diverged?",
                with[place], without[place]
            )));
        }
        if with == without {
            return Err(bad(format!(
                "adapter \"{name}\": it does nothing: all {} logits of a probe are the base's own\n\
                 hint: is lora_A or lora_B zero everywhere, or lora_alpha zero?",
                with.len()
            )));
        }
        set.take(slot).ok_or_else(|| bad("the probe's slot is empty".into()))
    }
}

/// Tokens of the prompt of [`PackedAdapter::probe`], spread over the vocabulary: they fit into a page.
const PROBE_TOKENS: usize = 8;

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
        Ok(self.put(PackedAdapter::new(name, adapter, base)?))
    }

    /// Puts a packed adapter into a free slot and returns that. Unlike [`AdapterSet::insert`] it
    /// takes a name twice: an adapter and what replaces it stand side by side while sequences of the
    /// former run. [`AdapterSet::slot`] then finds either.
    pub fn put(&mut self, adapter: PackedAdapter) -> usize {
        self.generations += 1;
        let slot = Some(Slot { adapter, generation: self.generations });
        match self.slots.iter().position(Option::is_none) {
            Some(i) => {
                self.slots[i] = slot;
                i
            }
            None => {
                self.slots.push(slot);
                self.slots.len() - 1
            }
        }
    }

    /// A number, from 1 on, that only the adapter in `slot` has among all that the set ever held, and
    /// only in its present form ([`AdapterSet::refresh`]): keys that were made with it serve only
    /// while it stays the same, whatever the slot. None where the slot is empty.
    pub fn generation(&self, slot: usize) -> Option<u64> {
        Some(self.slots.get(slot)?.as_ref()?.generation)
    }

    /// Takes over changed parameters of the adapter in `slot` (after an optimizer step).
    ///
    /// # Panics
    /// When the slot is empty or the adapter has another layout: an error of the caller.
    pub fn refresh(&mut self, slot: usize, adapter: &LoraAdapter, base: &Decoder) {
        let slot = self.slots[slot].as_mut().expect("the slot holds an adapter");
        self.generations += 1;
        slot.generation = self.generations;
        let slot = &mut slot.adapter;
        assert!(slot.modules == adapter.modules, "refresh with an adapter of another layout");
        for (m, a) in slot.modules.iter().zip(&mut slot.a) {
            a.repack_f32(&adapter.params[m.a.clone()]);
        }
        for part in &mut slot.parts {
            part.refresh(adapter, &slot.a[part.module], base);
        }
    }

    /// Frees `slot`; sequences must not name it any more.
    pub fn remove(&mut self, slot: usize) {
        _ = self.take(slot);
    }

    /// Frees `slot` and returns what was in it.
    pub fn take(&mut self, slot: usize) -> Option<PackedAdapter> {
        self.slots.get_mut(slot)?.take().map(|slot| slot.adapter)
    }

    /// The slot of the adapter named `name`.
    pub fn slot(&self, name: &str) -> Option<usize> {
        self.slots.iter().position(|s| s.as_ref().is_some_and(|s| s.adapter.name == name))
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

    fn part(&self, slot: usize, layer: usize, module: Module) -> Option<(&PackedAdapter, &Part)> {
        let slot = &self.slots.get(slot)?.as_ref()?.adapter;
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
