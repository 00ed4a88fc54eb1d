//! The decoder: THE forward and THE backward. Read this first.
//!
//! `forward` runs a ragged [`Batch`] through embedding, layers and final norm, with keys and
//! values in pages; `head_*` turns hidden rows into logits, a chunk of rows at a time, so that
//! [T, V] never exists; `backward` walks the layers in reverse, computing each layer's
//! activations again from its input unless the tape kept them.

use crate::adapter::AdapterSet;
use crate::batch::{Batch, Layout};
use crate::config::DecoderConfig;
use crate::error::ModelError;
use crate::kv::KvCache;
use crate::linear::{self, Module, lora_groups};
use crate::params::{self, ParamSpec};
use crate::tape::{Activations, Tape};
use crate::weights;
use kernels::{KvPages, PackedMatrix, RopeTable};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// A loaded model. Immutable while it runs, so that one is shared by every request and adapter.
pub struct Decoder {
    pub(crate) config: DecoderConfig,
    /// [V, H]; also the output head when tied.
    pub(crate) embed: PackedMatrix,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Vec<f32>,
    /// [V, H]; None when tied.
    pub(crate) lm_head: Option<PackedMatrix>,
    pub(crate) rope: RopeTable,
    pub(crate) specs: Vec<ParamSpec>,
    /// Folder and files that the weights came from; None for a model made in memory.
    pub(crate) source: Option<(PathBuf, Vec<String>)>,
    pub(crate) digest: OnceLock<String>,
}

/// One layer's weights.
pub(crate) struct Layer {
    pub(crate) attn_norm: Vec<f32>,
    pub(crate) mlp_norm: Vec<f32>,
    /// In the order of [`Module::ALL`].
    pub(crate) matrices: [PackedMatrix; 7],
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
}

impl Decoder {
    /// Loads a model folder: config.json and safetensors, single or sharded.
    ///
    /// # Errors
    /// [`ModelError`] naming file and problem; wrong or missing tensors are all listed at once.
    pub fn load(dir: &Path, options: &LoadOptions) -> Result<Decoder, ModelError> {
        weights::load(dir, options)
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
        let h = self.config.hidden_size;
        adapters.check(batch)?;
        let mut x = vec![0.0; batch.tokens.len() * h];
        let gathered = match memory {
            Memory::Cache(cache) => {
                let layout = Layout::new(batch, &self.config, Some(cache.num_blocks()))?;
                kernels::embedding(&mut x, &batch.tokens, &self.embed);
                let mut acts = Activations::default();
                let mut out = vec![0.0; x.len()];
                for l in 0..self.layers.len() {
                    let pages = (&mut cache.k[l][..], &mut cache.v[l][..]);
                    self.layer_forward(l, &x, &mut out, &mut acts, &layout, pages, adapters);
                    std::mem::swap(&mut x, &mut out);
                }
                gather(&x, &batch.logit_rows, h)
            }
            Memory::Tape(tape) => {
                let layout = Layout::new(batch, &self.config, None)?;
                kernels::embedding(&mut x, &batch.tokens, &self.embed);
                let size = layout.num_pages * KvCache::floats_per_block(&self.config);
                tape.k_pages.resize(size, 0.0);
                tape.v_pages.resize(size, 0.0);
                tape.inputs[0] = x;
                for l in 0..self.layers.len() {
                    let index = tape.activation_index(l);
                    let (before, after) = tape.inputs.split_at_mut(l + 1);
                    let out = &mut after[0];
                    out.resize(before[l].len(), 0.0);
                    let pages = (&mut tape.k_pages[..], &mut tape.v_pages[..]);
                    let acts = &mut tape.activations[index];
                    self.layer_forward(l, &before[l], out, acts, &layout, pages, adapters);
                }
                let last = tape.inputs.last().expect("a tape has L + 1 inputs");
                tape.gathered = gather(last, &batch.logit_rows, h);
                tape.layout = Some(layout);
                tape.gathered.clone()
            }
        };
        let mut hidden = vec![0.0; gathered.len()];
        kernels::rms_norm(&mut hidden, &gathered, &self.norm, self.config.rms_norm_eps);
        Ok(hidden)
    }

    /// Logits [rows, V] of hidden rows [rows, H].
    pub fn logits(&self, hidden: &[f32]) -> Vec<f32> {
        let rows = hidden.len() / self.config.hidden_size;
        let mut logits = vec![0.0; rows * self.config.vocab_size];
        kernels::matmul(&mut logits, hidden, self.head(), rows, false);
        logits
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
            kernels::matmul(&mut logits, x, self.head(), rows.len(), false);
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
        let head_range = self.specs[self.head_spec()].range.clone();
        self.head_forward(hidden, chunk, &mut |rows, logits| {
            objective(rows.clone(), logits);
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
        let norm_range = self.specs[self.norm_spec()].range.clone();
        kernels::rms_norm_backward(
            &mut dgathered,
            grads.of(norm_range),
            dhidden,
            &tape.gathered,
            &self.norm,
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
        if let Some(dtable) = grads.of(self.specs[0].range.clone()) {
            kernels::embedding_backward(dtable, &batch.tokens, &dx, h);
        }
        Ok(())
    }

    /// x [T, H] -> out [T, H]; fills `acts`, and the pages with this batch's keys and values.
    fn layer_forward(
        &self,
        l: usize,
        x: &[f32],
        out: &mut [f32],
        acts: &mut Activations,
        layout: &Layout,
        (k_pages, v_pages): (&mut [f32], &mut [f32]),
        adapters: &AdapterSet,
    ) {
        let c = &self.config;
        let layer = &self.layers[l];
        let t = layout.positions.len();
        let segments = layout.attn_segments();
        acts.resize(c, t);
        let project = |module: Module, y: &mut [f32], x: &[f32], accumulate: bool| {
            let groups = lora_groups(adapters, &layout.adapter_rows, l, module);
            linear::forward(y, x, &layer.matrices[module as usize], t, accumulate, &groups);
        };
        kernels::rms_norm(&mut acts.attn_in, x, &layer.attn_norm, c.rms_norm_eps);
        project(Module::Q, &mut acts.q, &acts.attn_in, false);
        project(Module::K, &mut acts.k, &acts.attn_in, false);
        project(Module::V, &mut acts.v, &acts.attn_in, false);
        kernels::rope(&mut acts.q, &layout.positions, c.num_attention_heads, &self.rope);
        kernels::rope(&mut acts.k, &layout.positions, c.num_key_value_heads, &self.rope);
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
        kernels::attention(
            &mut acts.attn_out,
            &acts.q,
            pages,
            &segments,
            c.num_attention_heads,
            self.attn_scale(),
        );
        acts.mid.copy_from_slice(x);
        project(Module::O, &mut acts.mid, &acts.attn_out, true);
        kernels::rms_norm(&mut acts.mlp_in, &acts.mid, &layer.mlp_norm, c.rms_norm_eps);
        project(Module::Gate, &mut acts.gate, &acts.mlp_in, false);
        project(Module::Up, &mut acts.up, &acts.mlp_in, false);
        kernels::swiglu(&mut acts.act, &acts.gate, &acts.up);
        out.copy_from_slice(&acts.mid);
        project(Module::Down, out, &acts.act, true);
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
        let (k_pages, v_pages) = (&mut tape.k_pages[..], &mut tape.v_pages[..]);
        let acts = &mut tape.activations[index];
        let x = &tape.inputs[l];
        match tape.mode {
            crate::TapeMode::Recompute => {
                s.out.resize(x.len(), 0.0);
                self.layer_forward(l, x, &mut s.out, acts, layout, (k_pages, v_pages), adapters);
            }
            // The pages hold another layer's keys and values by now.
            crate::TapeMode::Keep => kernels::write_kv(
                k_pages,
                v_pages,
                &acts.k,
                &acts.v,
                &segments,
                c.num_key_value_heads,
                c.head_dim,
            ),
        }
        let rows = &layout.adapter_rows;
        let project = |module: Module,
                       dx: &mut Vec<f32>,
                       dy: &[f32],
                       x: &[f32],
                       add: bool,
                       grads: &mut Grads| {
            self.project_backward(l, module, rows, dx, dy, x, add, adapters, grads);
        };
        // Feed-forward block: out = mid + down(silu(gate) * up).
        project(Module::Down, &mut s.act, dx, &acts.act, false, grads);
        s.gate.resize(acts.gate.len(), 0.0);
        s.up.resize(acts.up.len(), 0.0);
        kernels::swiglu_backward(&mut s.gate, &mut s.up, &s.act, &acts.gate, &acts.up);
        project(Module::Gate, &mut s.hidden, &s.gate, &acts.mlp_in, false, grads);
        project(Module::Up, &mut s.hidden, &s.up, &acts.mlp_in, true, grads);
        let dw = grads.of(self.specs[self.mlp_norm_spec(l)].range.clone());
        kernels::rms_norm_backward(dx, dw, &s.hidden, &acts.mid, &layer.mlp_norm, c.rms_norm_eps);
        // Attention block: mid = x + o(attention(q, k, v)).
        project(Module::O, &mut s.attn, dx, &acts.attn_out, false, grads);
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
            self.attn_scale(),
        );
        kernels::rope_backward(&mut s.q, &layout.positions, c.num_attention_heads, &self.rope);
        kernels::rope_backward(&mut s.k, &layout.positions, c.num_key_value_heads, &self.rope);
        project(Module::Q, &mut s.hidden, &s.q, &acts.attn_in, false, grads);
        project(Module::K, &mut s.hidden, &s.k, &acts.attn_in, true, grads);
        project(Module::V, &mut s.hidden, &s.v, &acts.attn_in, true, grads);
        let dw = grads.of(self.specs[self.attn_norm_spec(l)].range.clone());
        kernels::rms_norm_backward(dx, dw, &s.hidden, x, &layer.attn_norm, c.rms_norm_eps);
    }

    /// dx [T, in] (+)= dy [T, out] W, through the adapters too; adds to the gradients of what is
    /// trained.
    fn project_backward(
        &self,
        l: usize,
        module: Module,
        adapter_rows: &[(Range<usize>, usize)],
        dx: &mut Vec<f32>,
        dy: &[f32],
        x: &[f32],
        accumulate: bool,
        adapters: &AdapterSet,
        grads: &mut Grads,
    ) {
        let weight = &self.layers[l].matrices[module as usize];
        let t = dy.len() / weight.n();
        dx.resize(x.len(), 0.0);
        kernels::matmul_dx(dx, dy, weight, t, accumulate);
        if let Some(dw) = grads.of(self.specs[self.matrix_spec(l, module)].range.clone()) {
            kernels::matmul_dw(dw, dy, x, t, weight.n(), weight.k());
        }
        adapters.backward(adapter_rows, l, module, dx, dy, x, grads);
    }

    fn pages<'a>(&self, k: &'a [f32], v: &'a [f32]) -> KvPages<'a> {
        KvPages { k, v, kv_heads: self.config.num_key_value_heads, head_dim: self.config.head_dim }
    }

    fn attn_scale(&self) -> f32 {
        1.0 / (self.config.head_dim as f32).sqrt()
    }

    fn head(&self) -> &PackedMatrix {
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
}

fn gather(x: &[f32], rows: &[usize], h: usize) -> Vec<f32> {
    rows.iter().flat_map(|r| &x[r * h..(r + 1) * h]).copied().collect()
}

fn chunks(rows: usize, chunk: usize) -> impl Iterator<Item = Range<usize>> {
    let chunk = chunk.max(1);
    (0..rows.div_ceil(chunk)).map(move |i| i * chunk..((i + 1) * chunk).min(rows))
}
