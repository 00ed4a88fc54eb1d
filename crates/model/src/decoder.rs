//! The decoder: THE forward and THE backward. Read this first.
//!
//! `forward` runs a ragged [`Batch`] through embedding, layers and final norm, with keys and
//! values in pages; `head_*` turns hidden rows into logits, a chunk of rows at a time, so that
//! [T, V] never exists; `backward` walks the layers in reverse, computing each layer's
//! activations again from its input unless the tape kept them.
//!
//! Families differ by fields of the [`DecoderConfig`] only: which norms there are, what a layer's
//! window and rotation are, what the scales are. A layer is
//!
//! ```text
//! mid = x   + scale · norm(o(attention(rope(norm(q)), rope(norm(k)), v)))    q, k, v of norm(x)
//! out = mid + scale · norm(down(f(gate) · up))                               gate, up of norm(mid)
//! ```
//!
//! without the norms that a family does not have, or with experts in place of the second line.

use crate::adapter::AdapterSet;
use crate::batch::{Batch, Layout};
use crate::config::{DecoderConfig, NormWeightForm};
use crate::error::ModelError;
use crate::experts::{ExpertMatrix, Experts};
use crate::kv::KvCache;
use crate::linear::{self, Module};
use crate::params::{self, NormPlace, ParamLayout, Slot};
use crate::tape::{Activations, Tape, TapeMode};
use crate::weights;
use kernels::{KvPages, KvStore, PackedMatrix};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// A loaded model. Immutable while it runs, so that one is shared by every request and adapter.
pub struct Decoder {
    pub(crate) config: DecoderConfig,
    /// [V, H]; also the output head when tied.
    pub(crate) embed: PackedMatrix,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: NormWeight,
    /// [V, H]; None when tied.
    pub(crate) lm_head: Option<PackedMatrix>,
    pub(crate) layout: ParamLayout,
    /// Folder and files that the weights came from; None for a model made in memory.
    pub(crate) source: Option<(PathBuf, Vec<String>)>,
    pub(crate) digest: OnceLock<String>,
}

/// One layer's weights.
pub(crate) struct Layer {
    /// By [`NormPlace`].
    pub(crate) norms: [Option<NormWeight>; NormPlace::COUNT],
    /// By [`Module`].
    pub(crate) biases: [Option<Vec<f32>>; 7],
    /// q, k, v, o.
    pub(crate) attention: [PackedMatrix; 4],
    pub(crate) mlp: Mlp,
}

/// The feed-forward block of a layer.
pub(crate) enum Mlp {
    /// gate, up, down.
    Dense([PackedMatrix; 3]),
    Experts(Experts),
}

/// A norm's weight as it is stored, and what rows are multiplied by.
pub(crate) struct NormWeight {
    stored: Vec<f32>,
    /// None where it is the stored one.
    factor: Option<Vec<f32>>,
}

impl NormWeight {
    pub(crate) fn new(stored: Vec<f32>, form: NormWeightForm) -> NormWeight {
        let factor = match form {
            NormWeightForm::Plain => None,
            NormWeightForm::OnePlus => Some(stored.iter().map(|w| 1.0 + w).collect()),
        };
        NormWeight { stored, factor }
    }

    /// In Hugging Face's form.
    pub(crate) fn stored(&self) -> &[f32] {
        &self.stored
    }

    /// What rows are multiplied by. Its gradient is also that of the stored form.
    fn factor(&self) -> &[f32] {
        self.factor.as_ref().unwrap_or(&self.stored)
    }
}

impl Layer {
    /// The matrix of `module`; the feed-forward ones only where the block is dense.
    pub(crate) fn matrix(&self, module: Module) -> &PackedMatrix {
        match (&self.mlp, module) {
            (_, Module::Q | Module::K | Module::V | Module::O) => &self.attention[module as usize],
            (Mlp::Dense(mlp), _) => &mlp[module as usize - Module::Gate as usize],
            (Mlp::Experts(_), _) => unreachable!("experts are not among the linear layers"),
        }
    }

    pub(crate) fn matrix_mut(&mut self, module: Module) -> &mut PackedMatrix {
        match (&mut self.mlp, module) {
            (_, Module::Q | Module::K | Module::V | Module::O) => {
                &mut self.attention[module as usize]
            }
            (Mlp::Dense(mlp), _) => &mut mlp[module as usize - Module::Gate as usize],
            (Mlp::Experts(_), _) => unreachable!("experts are not among the linear layers"),
        }
    }

    pub(crate) fn experts(&self) -> Option<&Experts> {
        match &self.mlp {
            Mlp::Dense(_) => None,
            Mlp::Experts(experts) => Some(experts),
        }
    }

    /// The factor of the norm at `place`, where there is one.
    fn norm(&self, place: NormPlace) -> Option<&[f32]> {
        self.norms[place as usize].as_ref().map(NormWeight::factor)
    }
}

/// Where keys and values live, and whether a backward follows.
pub enum Memory<'a> {
    /// Serving and evaluation: pages that outlive the call.
    Cache(&'a mut KvCache),
    /// Training: transient pages, and what the backward needs.
    Tape(&'a mut Tape),
}

/// How weights are held in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightDtype {
    /// bf16 stays bf16; f16 and f32 become f32 (exact).
    #[default]
    AsPublished,
    /// Everything f32.
    F32,
    /// Everything bf16 (f32 and f16 are rounded to nearest even).
    Bf16,
    /// Matrices in 8 bits and a scale per 32 values.
    Q8_0,
    /// The layers' matrices in 4 bits and a scale per 32 values, embedding and head in 8 bits.
    Q4_0,
    /// The layers' matrices in 4-bit NormalFloat (arXiv 2305.14314), embedding and head in 8 bits.
    Nf4,
}

impl WeightDtype {
    /// The names that users write, but for "as published".
    pub const NAMES: [&'static str; 5] = ["f32", "bf16", "q8_0", "q4_0", "nf4"];

    const NAMED: [WeightDtype; 5] = [
        WeightDtype::F32,
        WeightDtype::Bf16,
        WeightDtype::Q8_0,
        WeightDtype::Q4_0,
        WeightDtype::Nf4,
    ];

    /// The choice of this name.
    pub fn from_name(name: &str) -> Option<WeightDtype> {
        WeightDtype::NAMED.into_iter().find(|dtype| dtype.name() == name)
    }

    /// Its name, or "as published".
    pub fn name(self) -> &'static str {
        let place = WeightDtype::NAMED.iter().position(|dtype| *dtype == self);
        place.map_or("as published", |place| WeightDtype::NAMES[place])
    }
}

/// Choices at load.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadOptions {
    /// Type of the weights in memory.
    pub dtype: WeightDtype,
}

/// Gradients, flat, in the layout of what is trained.
#[derive(Default)]
pub struct Grads {
    /// Per adapter slot: same layout as [`crate::LoraAdapter::params`]; None is not trained.
    pub adapters: Vec<Option<Vec<f32>>>,
    /// Same layout as [`Decoder::params`]; None when the base is frozen.
    pub full: Option<Vec<f32>>,
}

impl Grads {
    /// Zero gradients of one adapter.
    pub fn for_adapter(slot: usize, param_count: usize) -> Grads {
        let mut adapters: Vec<Option<Vec<f32>>> = (0..slot).map(|_| None).collect();
        adapters.push(Some(vec![0.0; param_count]));
        Grads { adapters, full: None }
    }

    /// Zero gradients of every base parameter.
    pub fn full(param_count: usize) -> Grads {
        Grads { adapters: Vec::new(), full: Some(vec![0.0; param_count]) }
    }

    /// Sets everything to zero, keeping the buffers.
    pub fn zero(&mut self) {
        self.adapters.iter_mut().flatten().for_each(|g| g.fill(0.0));
        self.full.iter_mut().for_each(|g| g.fill(0.0));
    }

    fn of(&mut self, range: Range<usize>) -> Option<&mut [f32]> {
        self.full.as_mut().map(|g| &mut g[range])
    }

    fn of_slot(&mut self, layout: &ParamLayout, slot: Slot) -> Option<&mut [f32]> {
        self.full.as_mut().map(|g| &mut g[layout.place(slot)])
    }
}

impl Decoder {
    /// Loads a model: a folder with config.json and safetensors, single or sharded, or a GGUF file.
    ///
    /// # Errors
    /// [`ModelError`] naming file and problem; wrong or missing tensors are all listed at once.
    pub fn load(path: &Path, options: &LoadOptions) -> Result<Decoder, ModelError> {
        if path.is_file() {
            return crate::gguf::load(path, options);
        }
        weights::load(path, options)
    }

    /// How many of the matrices' values are held in each format, most first.
    pub fn held(&self) -> Vec<(kernels::Dtype, usize)> {
        let mut counts: Vec<(kernels::Dtype, usize)> = Vec::new();
        for m in self.matrices() {
            match counts.iter_mut().find(|(dtype, _)| *dtype == m.dtype()) {
                Some((_, count)) => *count += m.n() * m.k(),
                None => counts.push((m.dtype(), m.n() * m.k())),
            }
        }
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        counts
    }

    /// Memory of all matrices, in bytes.
    pub fn weight_bytes(&self) -> usize {
        self.matrices().iter().map(|m| m.bytes()).sum()
    }

    /// A new model with random weights: N(0, 0.02²), output projections of both blocks scaled by
    /// 1/sqrt(2L) (GPT-2's initialisation), norms one. The same seed gives the same weights.
    pub fn init(config: &DecoderConfig, seed: u64) -> Decoder {
        params::init(config, seed)
    }

    /// The model's shape.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// SHA-256 over config.json and the weight files, which names this base in manifests and
    /// adapters. Computed at the first call (it reads the files once). A model made in memory is
    /// digested by its parameters.
    ///
    /// # Errors
    /// [`ModelError::Io`] when the files are gone.
    pub fn digest(&self) -> Result<&str, ModelError> {
        if let Some(digest) = self.digest.get() {
            return Ok(digest);
        }
        let computed = match &self.source {
            Some((dir, files)) => crate::files::digest_files(dir, files)?,
            None => crate::sha256_hex(bytemuck::cast_slice(&self.params())),
        };
        Ok(self.digest.get_or_init(|| computed))
    }

    /// Runs `batch` and returns the final-normed hidden rows at `batch.logit_rows`,
    /// [logit rows, H]. Each row's bits depend on its own sequence and adapter only, not on the
    /// rest of the batch, the split of prefill and decode, or the number of threads.
    ///
    /// # Errors
    /// [`ModelError::Batch`] when the batch breaks a rule; nothing was computed then.
    pub fn forward(
        &self,
        batch: &Batch,
        adapters: &AdapterSet,
        memory: Memory<'_>,
    ) -> Result<Vec<f32>, ModelError> {
        kernels::in_pool(|| self.forward_in_pool(batch, adapters, memory))
    }

    fn forward_in_pool(
        &self,
        batch: &Batch,
        adapters: &AdapterSet,
        memory: Memory<'_>,
    ) -> Result<Vec<f32>, ModelError> {
        let h = self.config.hidden_size;
        adapters.check(batch)?;
        let mut x = vec![0.0; batch.tokens.len() * h];
        let gathered = match memory {
            Memory::Cache(cache) => {
                let layout = Layout::new(batch, &self.config, Some(cache.num_blocks()))?;
                self.embed(&mut x, &batch.tokens);
                let mut acts = Activations::default();
                let mut out = vec![0.0; x.len()];
                for l in 0..self.layers.len() {
                    let pages = (&mut cache.k[l], &mut cache.v[l]);
                    self.layer_forward(l, &x, &mut out, &mut acts, &layout, pages, adapters, false);
                    std::mem::swap(&mut x, &mut out);
                }
                gather(&x, &batch.logit_rows, h)
            }
            Memory::Tape(tape) => {
                let layout = Layout::new(batch, &self.config, None)?;
                self.embed(&mut x, &batch.tokens);
                let numbers = layout.num_pages * KvCache::numbers_per_block(&self.config);
                for pages in [&mut tape.k_pages, &mut tape.v_pages] {
                    if let KvStore::F32(values) = pages {
                        values.resize(numbers, 0.0);
                    }
                }
                tape.inputs[0] = x;
                for l in 0..self.layers.len() {
                    let index = tape.activation_index(l);
                    let (before, after) = tape.inputs.split_at_mut(l + 1);
                    let out = &mut after[0];
                    out.resize(before[l].len(), 0.0);
                    let pages = (&mut tape.k_pages, &mut tape.v_pages);
                    let acts = &mut tape.activations[index];
                    self.layer_forward(l, &before[l], out, acts, &layout, pages, adapters, false);
                    if let Some(rounded) = tape.rounded.get_mut(l)
                        && self.layers[l].experts().is_none()
                    {
                        rounded.keep(acts);
                    }
                }
                let last = tape.inputs.last().expect("a tape has L + 1 inputs");
                tape.gathered = gather(last, &batch.logit_rows, h);
                tape.layout = Some(layout);
                tape.gathered.clone()
            }
        };
        let mut hidden = vec![0.0; gathered.len()];
        kernels::rms_norm(&mut hidden, &gathered, self.norm.factor(), self.config.rms_norm_eps);
        Ok(hidden)
    }

    fn embed(&self, x: &mut [f32], tokens: &[u32]) {
        kernels::embedding(x, tokens, &self.embed);
        if self.config.embedding_scale != 1.0 {
            kernels::scale_inplace(x, self.config.embedding_scale);
        }
    }

    /// Logits [rows, V] of hidden rows [rows, H].
    pub fn logits(&self, hidden: &[f32]) -> Vec<f32> {
        let rows = hidden.len() / self.config.hidden_size;
        let mut logits = vec![0.0; rows * self.config.vocab_size];
        self.head_logits(&mut logits, hidden, rows);
        logits
    }

    fn head_logits(&self, logits: &mut [f32], hidden: &[f32], rows: usize) {
        kernels::in_pool(|| {
            kernels::matmul(logits, hidden, self.head(), rows, false);
            if self.config.logits_scale != 1.0 {
                kernels::scale_inplace(logits, self.config.logits_scale);
            }
            if let Some(cap) = self.config.final_softcap {
                kernels::soft_cap(logits, cap);
            }
        });
    }

    /// Logits of `hidden` [rows, H] in chunks of `chunk` rows, handed to `f` with their rows: for
    /// losses without a backward.
    pub fn head_forward(
        &self,
        hidden: &[f32],
        chunk: usize,
        f: &mut dyn FnMut(Range<usize>, &mut [f32]),
    ) {
        let (h, v) = (self.config.hidden_size, self.config.vocab_size);
        let mut logits = Vec::new();
        for rows in chunks(hidden.len() / h, chunk) {
            logits.resize(rows.len() * v, 0.0);
            let x = &hidden[rows.start * h..rows.end * h];
            self.head_logits(&mut logits, x, rows.len());
            f(rows, &mut logits);
        }
    }

    /// As [`Decoder::head_forward`], but `objective` replaces the logits [C, V] by their
    /// gradients; returns the gradient of `hidden`, [rows, H], and adds the head's own gradient
    /// to `grads` when the base is trained.
    pub fn head_backward(
        &self,
        hidden: &[f32],
        chunk: usize,
        grads: &mut Grads,
        objective: &mut dyn FnMut(Range<usize>, &mut [f32]),
    ) -> Vec<f32> {
        let (h, v) = (self.config.hidden_size, self.config.vocab_size);
        let mut dhidden = vec![0.0; hidden.len()];
        let head_range = self.layout.place(Slot::Head);
        let mut capped = Vec::new();
        self.head_forward(hidden, chunk, &mut |rows, logits| {
            if self.config.final_softcap.is_some() {
                capped.clear();
                capped.extend_from_slice(logits);
            }
            objective(rows.clone(), logits);
            if let Some(cap) = self.config.final_softcap {
                kernels::soft_cap_backward(logits, &capped, cap);
            }
            if self.config.logits_scale != 1.0 {
                kernels::scale_inplace(logits, self.config.logits_scale);
            }
            let at = rows.start * h..rows.end * h;
            kernels::matmul_dx(&mut dhidden[at.clone()], logits, self.head(), rows.len(), false);
            if let Some(dw) = grads.of(head_range.clone()) {
                kernels::matmul_dw(dw, logits, &hidden[at], rows.len(), v, h);
            }
        });
        dhidden
    }

    /// Backward of the last `forward` on `tape`: `dhidden` [logit rows, H] is the gradient of its
    /// result; gradients are added to `grads`.
    ///
    /// # Errors
    /// [`ModelError::Batch`] when the tape holds no forward or `dhidden` has another size.
    pub fn backward(
        &self,
        batch: &Batch,
        adapters: &AdapterSet,
        tape: &mut Tape,
        dhidden: &[f32],
        grads: &mut Grads,
    ) -> Result<(), ModelError> {
        kernels::in_pool(|| self.backward_in_pool(batch, adapters, tape, dhidden, grads))
    }

    fn backward_in_pool(
        &self,
        batch: &Batch,
        adapters: &AdapterSet,
        tape: &mut Tape,
        dhidden: &[f32],
        grads: &mut Grads,
    ) -> Result<(), ModelError> {
        let Some(layout) = tape.layout.take() else {
            return Err(ModelError::Batch("backward without a forward on this tape".into()));
        };
        if dhidden.len() != tape.gathered.len() {
            return Err(ModelError::Batch(format!(
                "gradient of {} values for {} hidden values",
                dhidden.len(),
                tape.gathered.len()
            )));
        }
        let h = self.config.hidden_size;
        let mut dgathered = vec![0.0; dhidden.len()];
        kernels::rms_norm_backward(
            &mut dgathered,
            grads.of(self.layout.place(Slot::FinalNorm)),
            dhidden,
            &tape.gathered,
            self.norm.factor(),
            self.config.rms_norm_eps,
        );
        let mut dx = vec![0.0; batch.tokens.len() * h];
        for (row, d) in batch.logit_rows.iter().zip(dgathered.chunks_exact(h)) {
            dx[row * h..(row + 1) * h].copy_from_slice(d);
        }
        let mut scratch = Scratch::default();
        for l in (0..self.layers.len()).rev() {
            self.layer_backward(l, &mut dx, tape, &layout, adapters, grads, &mut scratch);
        }
        if self.config.embedding_scale != 1.0 {
            kernels::scale_inplace(&mut dx, self.config.embedding_scale);
        }
        if let Some(dtable) = grads.of(self.layout.place(Slot::Embed)) {
            kernels::embedding_backward(dtable, &batch.tokens, &dx, h);
        }
        Ok(())
    }

    /// x [T, H] -> out [T, H]; fills `acts`, and the pages with this batch's keys and values. `again`:
    /// only these are wanted, so what leads to `out` alone is left out.
    fn layer_forward(
        &self,
        l: usize,
        x: &[f32],
        out: &mut [f32],
        acts: &mut Activations,
        layout: &Layout,
        (k_pages, v_pages): (&mut KvStore, &mut KvStore),
        adapters: &AdapterSet,
        again: bool,
    ) {
        let c = &self.config;
        let layer = &self.layers[l];
        let t = layout.positions.len();
        let segments = layout.attn_segments();
        acts.resize(c, l, t);
        let project = |module: Module, y: &mut [f32], x: &[f32], accumulate: bool| {
            let groups = linear::groups(adapters, &layout.adapter_rows, l, module);
            let bias = layer.biases[module as usize].as_deref();
            let weight = layer.matrix(module);
            linear::forward(y, x, weight, bias, t, accumulate, &groups, &layout.dropout);
        };
        // Attention block.
        let attn_in = self.normed(l, NormPlace::AttnIn, x, &mut acts.attn_in);
        for (module, place, raw, y) in [
            (Module::Q, NormPlace::Q, &mut acts.q_raw, &mut acts.q),
            (Module::K, NormPlace::K, &mut acts.k_raw, &mut acts.k),
        ] {
            match layer.norm(place) {
                None => project(module, y, attn_in, false),
                Some(weight) => {
                    project(module, raw, attn_in, false);
                    kernels::rms_norm(y, raw, weight, c.rms_norm_eps);
                }
            }
        }
        project(Module::V, &mut acts.v, attn_in, false);
        if let Some(rope) = c.layers[l].rope.map(|r| &layout.ropes[r]) {
            kernels::rope(&mut acts.q, c.num_attention_heads, rope);
            kernels::rope(&mut acts.k, c.num_key_value_heads, rope);
        }
        kernels::write_kv(
            k_pages,
            v_pages,
            &acts.k,
            &acts.v,
            &segments,
            c.num_key_value_heads,
            c.head_dim,
        );
        let pages = self.pages(k_pages, v_pages);
        let heads = c.num_attention_heads;
        kernels::attention(&mut acts.attn_out, &acts.q, pages, &segments, heads, c.attn_rule(l));
        acts.mid.copy_from_slice(x);
        if c.adds_directly() {
            project(Module::O, &mut acts.mid, &acts.attn_out, true);
        } else {
            project(Module::O, &mut acts.attn_y, &acts.attn_out, false);
            self.add_block(l, NormPlace::AttnOut, &mut acts.mid, &acts.attn_y);
        }
        // Feed-forward block.
        let mlp_in = self.normed(l, NormPlace::MlpIn, &acts.mid, &mut acts.mlp_in);
        let direct = c.adds_directly();
        if !again {
            out.copy_from_slice(&acts.mid);
        }
        let y = if direct { &mut *out } else { &mut acts.mlp_y[..] };
        match &layer.mlp {
            Mlp::Dense(_) => {
                project(Module::Gate, &mut acts.gate, mlp_in, false);
                project(Module::Up, &mut acts.up, mlp_in, false);
                kernels::gated(c.activation, &mut acts.act, &acts.gate, &acts.up);
                if !(again && direct) {
                    project(Module::Down, y, &acts.act, direct);
                }
            }
            Mlp::Experts(experts) => experts.forward(y, mlp_in, direct, &mut acts.experts),
        }
        if !direct && !again {
            self.add_block(l, NormPlace::MlpOut, out, &acts.mlp_y);
        }
    }

    /// The rows of `x` normed into `buffer`, or `x` itself where the layer has no such norm.
    fn normed<'a>(
        &self,
        l: usize,
        place: NormPlace,
        x: &'a [f32],
        buffer: &'a mut [f32],
    ) -> &'a [f32] {
        match self.layers[l].norm(place) {
            None => x,
            Some(weight) => {
                kernels::rms_norm(buffer, x, weight, self.config.rms_norm_eps);
                buffer
            }
        }
    }

    /// stream += scale · norm(y): what a block yields, into the residual stream.
    fn add_block(&self, l: usize, place: NormPlace, stream: &mut [f32], y: &[f32]) {
        let mut buffer = vec![0.0; if self.layers[l].norm(place).is_some() { y.len() } else { 0 }];
        let y = self.normed(l, place, y, &mut buffer);
        kernels::add_scaled(stream, y, self.config.residual_scale);
    }

    /// Gradient of [`Decoder::add_block`] for y, from that of the stream; `buffer` holds it where
    /// it is not the stream's own.
    fn add_block_backward<'a>(
        &self,
        l: usize,
        place: NormPlace,
        dstream: &'a [f32],
        y: &[f32],
        buffer: &'a mut Vec<f32>,
        grads: &mut Grads,
    ) -> &'a [f32] {
        let c = &self.config;
        if c.adds_directly() {
            return dstream;
        }
        buffer.clear();
        match self.layers[l].norm(place) {
            None => buffer.extend(dstream.iter().map(|d| c.residual_scale * d)),
            Some(weight) => {
                buffer.resize(y.len(), 0.0);
                let dw = grads.of_slot(&self.layout, Slot::Norm(l, place));
                // The scale is 1 in every family that has this norm, but nothing relies on it.
                let scaled: Vec<f32> = dstream.iter().map(|d| c.residual_scale * d).collect();
                kernels::rms_norm_backward(buffer, dw, &scaled, y, weight, c.rms_norm_eps);
            }
        }
        buffer
    }

    /// dx += the gradient of `x`, the input of a block, from `dnormed`, that of its normed form.
    fn normed_backward(
        &self,
        l: usize,
        place: NormPlace,
        dx: &mut [f32],
        dnormed: &[f32],
        x: &[f32],
        grads: &mut Grads,
    ) {
        match self.layers[l].norm(place) {
            None => kernels::add_scaled(dx, dnormed, 1.0),
            Some(weight) => {
                let dw = grads.of_slot(&self.layout, Slot::Norm(l, place));
                kernels::rms_norm_backward(dx, dw, dnormed, x, weight, self.config.rms_norm_eps);
            }
        }
    }

    /// dx [T, H] is the gradient of the layer's output and becomes that of its input.
    fn layer_backward(
        &self,
        l: usize,
        dx: &mut [f32],
        tape: &mut Tape,
        layout: &Layout,
        adapters: &AdapterSet,
        grads: &mut Grads,
        s: &mut Scratch,
    ) {
        let c = &self.config;
        let layer = &self.layers[l];
        let segments = layout.attn_segments();
        let index = tape.activation_index(l);
        let (k_pages, v_pages) = (&mut tape.k_pages, &mut tape.v_pages);
        let acts = &mut tape.activations[index];
        let x = &tape.inputs[l];
        let again = match tape.mode {
            TapeMode::Recompute => true,
            TapeMode::Keep => false,
            TapeMode::KeepBf16 => layer.experts().is_some(),
        };
        if again {
            s.out.resize(x.len(), 0.0);
            let pages = (&mut *k_pages, &mut *v_pages);
            self.layer_forward(l, x, &mut s.out, acts, layout, pages, adapters, true);
        } else {
            if let Some(rounded) = tape.rounded.get(l) {
                rounded.restore(acts, c, l, layout.positions.len());
                self.normed(l, NormPlace::AttnIn, x, &mut acts.attn_in);
                self.normed(l, NormPlace::MlpIn, &acts.mid, &mut acts.mlp_in);
                kernels::gated(c.activation, &mut acts.act, &acts.gate, &acts.up);
            }
            // The pages hold another layer's keys and values by now.
            kernels::write_kv(
                k_pages,
                v_pages,
                &acts.k,
                &acts.v,
                &segments,
                c.num_key_value_heads,
                c.head_dim,
            );
        }
        let project = |module: Module,
                       dx: &mut Vec<f32>,
                       dy: &[f32],
                       x: &[f32],
                       add: bool,
                       grads: &mut Grads| {
            self.project_backward(l, module, layout, dx, dy, x, add, adapters, grads);
        };
        // Feed-forward block.
        let mlp_in = if layer.norm(NormPlace::MlpIn).is_some() { &acts.mlp_in } else { &acts.mid };
        let dy = self.add_block_backward(l, NormPlace::MlpOut, dx, &acts.mlp_y, &mut s.dy, grads);
        match &layer.mlp {
            Mlp::Dense(_) => {
                project(Module::Down, &mut s.act, dy, &acts.act, false, grads);
                s.gate.resize(acts.gate.len(), 0.0);
                s.up.resize(acts.up.len(), 0.0);
                kernels::gated_backward(
                    c.activation,
                    &mut s.gate,
                    &mut s.up,
                    &s.act,
                    &acts.gate,
                    &acts.up,
                );
                project(Module::Gate, &mut s.hidden, &s.gate, mlp_in, false, grads);
                project(Module::Up, &mut s.hidden, &s.up, mlp_in, true, grads);
            }
            Mlp::Experts(experts) => {
                s.hidden.resize(x.len(), 0.0);
                let mut grad = |expert: ExpertMatrix, dy: &[f32], x: &[f32], t| {
                    let slot = match expert {
                        None => Slot::Router(l),
                        Some((e, module)) => Slot::Expert(l, e, module),
                    };
                    if let Some(dw) = grads.of_slot(&self.layout, slot) {
                        kernels::matmul_dw(dw, dy, x, t, dy.len() / t, x.len() / t);
                    }
                };
                experts.backward(&mut s.hidden, dy, mlp_in, &acts.experts, &mut grad);
            }
        }
        self.normed_backward(l, NormPlace::MlpIn, dx, &s.hidden, &acts.mid, grads);
        // Attention block.
        let attn_in = if layer.norm(NormPlace::AttnIn).is_some() { &acts.attn_in } else { x };
        let dy = self.add_block_backward(l, NormPlace::AttnOut, dx, &acts.attn_y, &mut s.dy, grads);
        project(Module::O, &mut s.attn, dy, &acts.attn_out, false, grads);
        s.q.resize(acts.q.len(), 0.0);
        s.k.resize(acts.k.len(), 0.0);
        s.v.resize(acts.v.len(), 0.0);
        let pages = self.pages(k_pages, v_pages);
        kernels::attention_backward(
            &mut s.q,
            &mut s.k,
            &mut s.v,
            &s.attn,
            &acts.q,
            pages,
            &segments,
            c.num_attention_heads,
            c.attn_rule(l),
        );
        if let Some(rope) = c.layers[l].rope.map(|r| &layout.ropes[r]) {
            kernels::rope_backward(&mut s.q, c.num_attention_heads, rope);
            kernels::rope_backward(&mut s.k, c.num_key_value_heads, rope);
        }
        for (place, d, raw) in
            [(NormPlace::Q, &mut s.q, &acts.q_raw), (NormPlace::K, &mut s.k, &acts.k_raw)]
        {
            if layer.norm(place).is_some() {
                s.raw.clear();
                s.raw.resize(raw.len(), 0.0);
                self.normed_backward(l, place, &mut s.raw, d, raw, grads);
                std::mem::swap(d, &mut s.raw);
            }
        }
        project(Module::Q, &mut s.hidden, &s.q, attn_in, false, grads);
        project(Module::K, &mut s.hidden, &s.k, attn_in, true, grads);
        project(Module::V, &mut s.hidden, &s.v, attn_in, true, grads);
        self.normed_backward(l, NormPlace::AttnIn, dx, &s.hidden, x, grads);
    }

    /// dx [T, in] (+)= dy [T, out] W, through the adapters too; adds to the gradients of what is
    /// trained.
    fn project_backward(
        &self,
        l: usize,
        module: Module,
        layout: &Layout,
        dx: &mut Vec<f32>,
        dy: &[f32],
        x: &[f32],
        accumulate: bool,
        adapters: &AdapterSet,
        grads: &mut Grads,
    ) {
        let weight = self.layers[l].matrix(module);
        let t = dy.len() / weight.n();
        dx.resize(x.len(), 0.0);
        let groups = linear::groups(adapters, &layout.adapter_rows, l, module);
        let (rows, place) = (&layout.dropout, (l, module));
        let inner = linear::backward(
            dx, dy, x, weight, t, accumulate, &groups, rows, adapters, place, grads,
        );
        if let Some(dw) = grads.of_slot(&self.layout, Slot::Matrix(l, module)) {
            kernels::matmul_dw(dw, &inner, x, t, weight.n(), weight.k());
        }
        if self.layers[l].biases[module as usize].is_some()
            && let Some(db) = grads.of_slot(&self.layout, Slot::Bias(l, module))
        {
            kernels::sum_rows(db, dy);
        }
    }

    fn pages<'a>(&self, k: &'a KvStore, v: &'a KvStore) -> KvPages<'a> {
        KvPages { k, v, kv_heads: self.config.num_key_value_heads, head_dim: self.config.head_dim }
    }

    pub(crate) fn head(&self) -> &PackedMatrix {
        self.lm_head.as_ref().unwrap_or(&self.embed)
    }
}

/// Gradients of one layer's intermediates, reused over layers.
#[derive(Default)]
struct Scratch {
    out: Vec<f32>,
    act: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    hidden: Vec<f32>,
    attn: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// Gradient of queries or keys before their norm.
    raw: Vec<f32>,
    /// Gradient of a block's output before it was normed or scaled.
    dy: Vec<f32>,
}

fn gather(x: &[f32], rows: &[usize], h: usize) -> Vec<f32> {
    rows.iter().flat_map(|r| &x[r * h..(r + 1) * h]).copied().collect()
}

fn chunks(rows: usize, chunk: usize) -> impl Iterator<Item = Range<usize>> {
    let chunk = chunk.max(1);
    (0..rows.div_ceil(chunk)).map(move |i| i * chunk..((i + 1) * chunk).min(rows))
}
