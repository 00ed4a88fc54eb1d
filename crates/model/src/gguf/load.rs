//! A decoder from a GGUF file: tensors by llama.cpp's names into the slots of the decoder, quantised
//! ones as they are.

use super::{GgufFile, GgufTensor};
use crate::config::DecoderConfig;
use crate::decoder::{Decoder, LoadOptions};
use crate::error::ModelError;
use crate::families::gguf::{self, Architecture};
use crate::held::Published;
use crate::linear::Module;
use crate::params::{self, Loaded, NormPlace, Slot, Tensor};
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::path::Path;

/// Tensors that the configuration is made of, or that repeat it.
const OF_THE_CONFIG: [&str; 3] =
    ["rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"];

pub(crate) fn load(path: &Path, options: &LoadOptions) -> Result<Decoder, ModelError> {
    let file = GgufFile::open(path)?;
    let (config, architecture) = gguf::config(&file)?;
    let wanted = params::tensors(&config);
    let problems = mismatches(&file, &config, &wanted);
    if !problems.is_empty() {
        return Err(ModelError::Mismatches {
            dir: path.to_owned(),
            count: problems.len(),
            list: problems.join("\n  "),
        });
    }
    let loaded = wanted
        .par_iter()
        .map(|tensor| convert(&file, &config, architecture, tensor, options))
        .collect::<Result<Vec<_>, String>>()
        .map_err(|problem| ModelError::weights(path, problem))?;
    let mut decoder = params::assemble(&config, loaded.into_iter().flatten().collect());
    let dir = path.parent().map(Path::to_owned).unwrap_or_default();
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    decoder.source = Some((dir, vec![name]));
    Ok(decoder)
}

/// llama.cpp's name of the tensor.
pub(crate) fn tensor_name(tensor: &Tensor) -> String {
    let fused = tensor.parts.len() > 1;
    match tensor.parts[0].0 {
        Slot::Embed => "token_embd.weight".into(),
        Slot::FinalNorm => "output_norm.weight".into(),
        Slot::Head => "output.weight".into(),
        Slot::Norm(l, place) => {
            let name = match place {
                NormPlace::AttnIn => "attn_norm",
                NormPlace::Q => "attn_q_norm",
                NormPlace::K => "attn_k_norm",
                NormPlace::AttnOut => "post_attention_norm",
                NormPlace::MlpIn => "ffn_norm",
                NormPlace::MlpOut => "post_ffw_norm",
            };
            format!("blk.{l}.{name}.weight")
        }
        Slot::Matrix(l, m) => format!("blk.{l}.{}.weight", module_name(m, fused)),
        Slot::Bias(l, m) => format!("blk.{l}.{}.bias", module_name(m, fused)),
        Slot::Router(l) => format!("blk.{l}.ffn_gate_inp.weight"),
        Slot::Expert(l, _, m) => format!("blk.{l}.{}_exps.weight", module_name(m, false)),
    }
}

/// Short name of a matrix; `fused`: of the tensor that begins with it.
pub(super) fn module_name(module: Module, fused: bool) -> &'static str {
    match (module, fused) {
        (Module::Q, true) => "attn_qkv",
        (Module::Gate, true) => "ffn_up",
        (Module::Q, false) => "attn_q",
        (Module::K, _) => "attn_k",
        (Module::V, _) => "attn_v",
        (Module::O, _) => "attn_output",
        (Module::Gate, false) => "ffn_gate",
        (Module::Up, _) => "ffn_up",
        (Module::Down, _) => "ffn_down",
    }
}

/// The shape of the tensor in the file, outermost first: all experts of a layer are one tensor.
pub(crate) fn tensor_shape(config: &DecoderConfig, tensor: &Tensor) -> Vec<usize> {
    let mut shape = tensor.spec.shape.clone();
    if let (Slot::Expert(..), Some(experts)) = (tensor.parts[0].0, config.experts) {
        shape.insert(0, experts.num_experts);
    }
    shape
}

fn mismatches(file: &GgufFile, config: &DecoderConfig, wanted: &[Tensor]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut known: BTreeSet<String> = OF_THE_CONFIG.iter().map(|&n| n.to_owned()).collect();
    for tensor in wanted {
        let (name, expected) = (tensor_name(tensor), tensor_shape(config, tensor));
        match file.tensor(&name) {
            // The experts of a layer share a tensor; once is enough.
            _ if known.contains(&name) => {}
            None => problems.push(format!("{name}: missing, expected shape {expected:?}")),
            Some(found) if found.shape != expected => problems
                .push(format!("{name}: found shape {:?}, expected {expected:?}", found.shape)),
            Some(_) => {}
        }
        known.insert(name);
    }
    for GgufTensor { name, .. } in file.tensors() {
        if !known.contains(name) {
            problems
                .push(format!("{name}: not part of this architecture; it would change the result"));
        }
    }
    problems
}

fn convert(
    file: &GgufFile,
    config: &DecoderConfig,
    architecture: &Architecture,
    tensor: &Tensor,
    options: &LoadOptions,
) -> Result<Vec<(Slot, Loaded)>, String> {
    let name = tensor_name(tensor);
    let found = file.tensor(&name).expect("every tensor was looked for");
    let mut bytes = found.bytes;
    if let Slot::Expert(_, e, _) = tensor.parts[0].0 {
        let size = bytes.len() / found.shape[0];
        bytes = &bytes[e * size..(e + 1) * size];
    }
    let published = Published { name: &name, dtype: found.ggml_type.dtype(), bytes };
    let interleaved = architecture.pairs_interleaved;
    let row_of = |slot, row| if interleaved { paired_row(config, slot, row) } else { row };
    let mut filled = published.fill(tensor, options.dtype, row_of)?;
    // Or the file would count twice while it is loaded.
    file.release(bytes);
    if architecture.norms_plus_one {
        for (slot, loaded) in &mut filled {
            if let (Slot::Norm(..) | Slot::FinalNorm, Loaded::Vector(values)) = (slot, loaded) {
                values.iter_mut().for_each(|w| *w -= 1.0);
            }
        }
    }
    Ok(filled)
}

/// Where an interleaved file has row `row` of a slot: a head's rows i and D/2 + i, which are rotated
/// together, are its rows 2i and 2i + 1 there.
pub(super) fn paired_row(config: &DecoderConfig, slot: Slot, row: usize) -> usize {
    match slot {
        Slot::Matrix(_, Module::Q | Module::K) | Slot::Bias(_, Module::Q | Module::K) => {
            let (head, within) = (row / config.head_dim, row % config.head_dim);
            let half = config.head_dim / 2;
            head * config.head_dim + within % half * 2 + within / half
        }
        _ => row,
    }
}
