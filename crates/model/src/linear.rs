//! The matrices of a layer: as the decoder multiplies by them, as Hugging Face names and fuses
//! them, and with the adapters on top.

use crate::adapter::{AdapterSet, Dora};
use crate::config::{DecoderConfig, FeedForward};
use crate::decoder::Grads;
use kernels::{LoraRef, PackedMatrix};
use std::borrow::Cow;
use std::ops::Range;

/// The seven matrices of a layer, in the order used everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Module {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
}

impl Module {
    pub(crate) const ATTENTION: [Module; 4] = [Module::Q, Module::K, Module::V, Module::O];
    pub(crate) const MLP: [Module; 3] = [Module::Gate, Module::Up, Module::Down];

    /// (out, in) of this matrix in a dense layer.
    pub(crate) fn shape(self, config: &DecoderConfig) -> (usize, usize) {
        let (h, i) = (config.hidden_size, config.intermediate_size);
        let q = config.num_attention_heads * config.head_dim;
        let kv = config.num_key_value_heads * config.head_dim;
        match self {
            Module::Q => (q, h),
            Module::K | Module::V => (kv, h),
            Module::O => (h, q),
            Module::Gate | Module::Up => (i, h),
            Module::Down => (h, i),
        }
    }

    /// Whether the matrix carries a bias.
    pub(crate) fn has_bias(self, config: &DecoderConfig) -> bool {
        match self {
            Module::Q | Module::K | Module::V => config.biases.qkv,
            Module::O => config.biases.output,
            Module::Gate | Module::Up | Module::Down => config.biases.mlp,
        }
    }
}

/// A linear layer as Hugging Face names it: one module, or several stored one above the other.
/// This is what adapters target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Linear {
    Q,
    K,
    V,
    Qkv,
    O,
    Gate,
    Up,
    GateUp,
    Down,
}

impl Linear {
    /// Hugging Face's short name.
    pub(crate) fn short_name(self) -> &'static str {
        match self {
            Linear::Q => "q_proj",
            Linear::K => "k_proj",
            Linear::V => "v_proj",
            Linear::Qkv => "qkv_proj",
            Linear::O => "o_proj",
            Linear::Gate => "gate_proj",
            Linear::Up => "up_proj",
            Linear::GateUp => "gate_up_proj",
            Linear::Down => "down_proj",
        }
    }

    /// The modules whose rows it holds, from the top.
    pub(crate) fn modules(self) -> &'static [Module] {
        match self {
            Linear::Q => &[Module::Q],
            Linear::K => &[Module::K],
            Linear::V => &[Module::V],
            Linear::Qkv => &[Module::Q, Module::K, Module::V],
            Linear::O => &[Module::O],
            Linear::Gate => &[Module::Gate],
            Linear::Up => &[Module::Up],
            Linear::GateUp => &[Module::Gate, Module::Up],
            Linear::Down => &[Module::Down],
        }
    }

    /// Hugging Face's full module name in layer `layer`.
    pub(crate) fn full_name(self, layer: usize) -> String {
        let block = if Module::MLP.contains(&self.modules()[0]) { "mlp" } else { "self_attn" };
        format!("model.layers.{layer}.{block}.{}", self.short_name())
    }

    /// (out, in) of the whole matrix.
    pub(crate) fn shape(self, config: &DecoderConfig) -> (usize, usize) {
        let out = self.modules().iter().map(|m| m.shape(config).0).sum();
        (out, self.modules()[0].shape(config).1)
    }

    /// Each module with the rows that it has in the matrix.
    pub(crate) fn parts(self, config: &DecoderConfig) -> Vec<(Module, Range<usize>)> {
        let mut start = 0;
        let part = |module: &Module| {
            let rows = start..start + module.shape(config).0;
            start = rows.end;
            (*module, rows)
        };
        self.modules().iter().map(part).collect()
    }
}

impl DecoderConfig {
    /// The linear layers of layer `layer`, in the order of computation. Experts are not among
    /// them: their matrices are no linear layers of the reference.
    pub(crate) fn linears(&self, layer: usize) -> &'static [Linear] {
        const SEPARATE: [Linear; 7] =
            [Linear::Q, Linear::K, Linear::V, Linear::O, Linear::Gate, Linear::Up, Linear::Down];
        const FUSED: [Linear; 4] = [Linear::Qkv, Linear::O, Linear::GateUp, Linear::Down];
        match (self.fused_projections, self.layers[layer].feed_forward) {
            (false, FeedForward::Dense) => &SEPARATE,
            (false, FeedForward::Experts) => &SEPARATE[..4],
            (true, FeedForward::Dense) => &FUSED,
            (true, FeedForward::Experts) => &FUSED[..2],
        }
    }
}

/// Some rows of a batch and their adapter on one matrix.
pub(crate) struct Group<'a> {
    pub(crate) rows: Range<usize>,
    pub(crate) slot: usize,
    pub(crate) lora: LoraRef<'a>,
    /// Where the adapter brings base and delta together to a length of its own.
    pub(crate) dora: Option<&'a Dora>,
    /// Probability with which an input of A is dropped, in rows that have a key for it.
    pub(crate) dropout: f32,
    /// Tells the draws of one linear layer from those of another.
    pub(crate) stream: u64,
}

/// Rows of a batch whose inputs of A may be dropped: those of one sequence, and its key.
pub(crate) type DropoutRows = [(Range<usize>, u64)];

/// y [T, out] = x [T, in] Wᵀ + bias, or y += when `accumulate`, through each row group's adapter.
pub(crate) fn forward(
    y: &mut [f32],
    x: &[f32],
    weight: &PackedMatrix,
    bias: Option<&[f32]>,
    t: usize,
    accumulate: bool,
    groups: &[Group<'_>],
    dropout: &DropoutRows,
) {
    let (n, k) = (weight.n(), weight.k());
    let dora = groups.iter().filter_map(|g| Some((g, g.dora?)));
    // What base and adapter yield is scaled before it is added to what was there.
    let kept = |(g, _): (&Group<'_>, _)| y[g.spans(n, k).1].to_vec();
    let kept: Vec<Vec<f32>> =
        if accumulate { dora.clone().map(kept).collect() } else { Vec::new() };
    // Adapters that read what the base reads ride along with it.
    let riding = refs(groups.iter().filter(|g| !g.drops(dropout)));
    kernels::matmul_lora(y, x, weight, t, accumulate, &riding);
    for (i, (group, dora)) in dora.enumerate() {
        let (ins, outs) = group.spans(n, k);
        let y = &mut y[outs];
        if accumulate {
            let rows = group.rows.len();
            kernels::matmul_lora(y, &x[ins], weight, rows, false, &[(0..rows, group.lora)]);
        }
        multiply_rows(y, &dora.gain);
        if let Some(kept) = kept.get(i) {
            kernels::add_scaled(y, kept, 1.0);
        }
    }
    if let Some(dropped) = dropped(x, k, groups, dropout) {
        let dropping = refs(groups.iter().filter(|g| g.drops(dropout)));
        kernels::lora(y, &dropped, &dropping, n, k);
    }
    if let Some(bias) = bias {
        kernels::add_row(y, bias);
    }
}

/// Backward of [`forward`]: dx [T, in] (+)= the gradient of x from dy [T, out]; adds to those of the
/// adapters of layer `layer` that are trained. Returns the gradient of x·Wᵀ, for that of W.
pub(crate) fn backward<'d>(
    dx: &mut [f32],
    dy: &'d [f32],
    x: &[f32],
    weight: &PackedMatrix,
    t: usize,
    accumulate: bool,
    groups: &[Group<'_>],
    dropout: &DropoutRows,
    adapters: &AdapterSet,
    (layer, module): (usize, Module),
    grads: &mut Grads,
) -> Cow<'d, [f32]> {
    let (n, k) = (weight.n(), weight.k());
    let mut dy = Cow::Borrowed(dy);
    for group in groups {
        let Some(dora) = group.dora else { continue };
        let (ins, outs) = group.spans(n, k);
        // The forward does not keep what is brought to its length: x·Wᵀ and the adapter's part.
        let mut z = vec![0.0; outs.len()];
        let rows = group.rows.len();
        kernels::matmul_lora(&mut z, &x[ins], weight, rows, false, &[(0..rows, group.lora)]);
        let dy = &mut dy.to_mut()[outs];
        if let Some(own) = adapters.grads(group.slot, layer, module, grads) {
            for (z, dy) in z.chunks_exact(n).zip(dy.chunks_exact(n)) {
                let each = own.magnitude.iter_mut().zip(z).zip(dy).zip(&dora.lengths);
                each.for_each(|(((dm, z), dy), length)| *dm += dy * z / length);
            }
        }
        multiply_rows(dy, &dora.gain);
    }
    let riding = refs(groups.iter().filter(|g| !g.drops(dropout)));
    let mut ridden = kernels::matmul_dx_lora(dx, &dy, weight, t, accumulate, &riding).into_iter();
    let dropped = dropped(x, k, groups, dropout);
    let x = dropped.as_deref().unwrap_or(x);
    for group in groups {
        let (ins, outs) = group.spans(n, k);
        let (x, dy, dx) = (&x[ins.clone()], &dy[outs], &mut dx[ins]);
        let t = group.rows.len();
        let dh = if group.drops(dropout) {
            let mut part = vec![0.0; dx.len()];
            let dh = kernels::lora_dx(&mut part, dy, t, group.lora);
            group.drop(&mut part, k, dropout);
            kernels::add_scaled(dx, &part, 1.0);
            dh
        } else {
            ridden.next().expect("one result for each adapter that rode along")
        };
        // An adapter that is not trained still passed the gradient on to `dx`.
        if let Some(own) = adapters.grads(group.slot, layer, module, grads) {
            kernels::lora_grads(own.a, own.b, dy, &dh, x, t, group.lora);
        }
    }
    dy
}

/// Groups as the kernels take them.
fn refs<'a: 'b, 'b>(
    groups: impl Iterator<Item = &'b Group<'a>>,
) -> Vec<(Range<usize>, LoraRef<'a>)> {
    groups.map(|g| (g.rows.clone(), g.lora)).collect()
}

impl Group<'_> {
    /// Its values in x and in y.
    fn spans(&self, n: usize, k: usize) -> (Range<usize>, Range<usize>) {
        (self.rows.start * k..self.rows.end * k, self.rows.start * n..self.rows.end * n)
    }

    fn drops(&self, rows: &DropoutRows) -> bool {
        self.dropout > 0.0
            && rows.iter().any(|(r, _)| r.start < self.rows.end && self.rows.start < r.end)
    }

    /// Drops values of `x` [rows, K], this group's own rows.
    fn drop(&self, x: &mut [f32], k: usize, rows: &DropoutRows) {
        for (range, key) in rows {
            let own = range.start.max(self.rows.start)..range.end.min(self.rows.end);
            if own.is_empty() {
                continue;
            }
            let x = &mut x[(own.start - self.rows.start) * k..(own.end - self.rows.start) * k];
            let first = (own.start - range.start) as u64;
            kernels::dropout(x, k, self.dropout, *key, self.stream, first);
        }
    }
}

/// x with values dropped in the rows of groups that drop any; None where none does.
fn dropped(x: &[f32], k: usize, groups: &[Group<'_>], rows: &DropoutRows) -> Option<Vec<f32>> {
    let mut copy: Option<Vec<f32>> = None;
    for group in groups.iter().filter(|g| g.drops(rows)) {
        let x = copy.get_or_insert_with(|| x.to_vec());
        group.drop(&mut x[group.rows.start * k..group.rows.end * k], k, rows);
    }
    copy
}

/// Each row of `y` times `factors`, value by value.
fn multiply_rows(y: &mut [f32], factors: &[f32]) {
    for row in y.chunks_exact_mut(factors.len()) {
        row.iter_mut().zip(factors).for_each(|(y, f)| *y *= f);
    }
}

/// The row groups that have an adapter on this matrix.
pub(crate) fn groups<'a>(
    adapters: &'a AdapterSet,
    rows: &[(Range<usize>, usize)],
    layer: usize,
    module: Module,
) -> Vec<Group<'a>> {
    rows.iter()
        .filter_map(|(range, slot)| adapters.group(range.clone(), *slot, layer, module))
        .collect()
}
