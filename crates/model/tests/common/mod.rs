//! What the golden tests share: reading the reference's values, and one training step.

// Each test file uses its own part of this.
#![allow(dead_code)]

use model::{AdapterSet, Batch, Decoder, Grads, Memory, Segment, Tape, TapeMode};
use safetensors::SafeTensors;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

pub(crate) fn testdata(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../testdata").join(name)
}

/// The values that Transformers and PEFT computed.
pub(crate) struct Golden {
    pub(crate) floats: HashMap<String, Vec<f32>>,
    pub(crate) ints: HashMap<String, Vec<i32>>,
    pub(crate) json: serde_json::Value,
}

impl Golden {
    /// Reads golden.safetensors and golden.json in `dir`.
    pub(crate) fn read(dir: &Path) -> Golden {
        let json = std::fs::read(dir.join("golden.json")).unwrap();
        let json = serde_json::from_slice(&json).unwrap();
        Golden { json, ..Golden::read_file(&dir.join("golden.safetensors")) }
    }

    /// Reads the tensors of one file.
    pub(crate) fn read_file(path: &Path) -> Golden {
        let bytes = std::fs::read(path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let (mut floats, mut ints) = (HashMap::new(), HashMap::new());
        for (name, view) in file.iter() {
            match view.dtype() {
                safetensors::Dtype::F32 => {
                    let v = view
                        .data()
                        .chunks_exact(4)
                        .map(|b| f32::from_le_bytes(b.try_into().unwrap()));
                    floats.insert(name.to_owned(), v.collect::<Vec<f32>>());
                }
                safetensors::Dtype::I32 => {
                    let v = view
                        .data()
                        .chunks_exact(4)
                        .map(|b| i32::from_le_bytes(b.try_into().unwrap()));
                    ints.insert(name.to_owned(), v.collect::<Vec<i32>>());
                }
                other => panic!("unexpected dtype {other:?} of {name}"),
            }
        }
        Golden { floats, ints, json: serde_json::Value::Null }
    }

    /// All sequences in one batch, and for each row of the batch its target (or -100).
    pub(crate) fn batch(&self, adapter: Option<usize>) -> (Batch, Vec<i32>) {
        let mut batch = Batch::default();
        let mut targets = Vec::new();
        for i in 0.. {
            let Some(ids) = self.ints.get(&format!("ids.{i}")) else { break };
            batch.tokens.extend(ids.iter().map(|&t| t as u32));
            batch.segments.push(Segment { len: ids.len(), adapter, ..Segment::default() });
            match self.ints.get(&format!("targets.{i}")) {
                Some(own) => targets.extend(own),
                None => targets.resize(batch.tokens.len(), -100),
            }
        }
        assert!(batch.segments.len() > 1);
        batch.logit_rows = (0..batch.tokens.len()).collect();
        (batch, targets)
    }

    /// The sequences' ids.
    pub(crate) fn sequences(&self) -> Vec<Vec<u32>> {
        (0..)
            .map_while(|i| self.ints.get(&format!("ids.{i}")))
            .map(|ids| ids.iter().map(|&t| t as u32).collect())
            .collect()
    }

    /// Reference logits of all sequences, one after the other.
    pub(crate) fn logits(&self, prefix: &str) -> Vec<f32> {
        let each = (0..).map_while(|i| self.floats.get(&format!("{prefix}.{i}")));
        each.flatten().copied().collect()
    }
}

/// Largest difference relative to the largest value.
pub(crate) fn relative(ours: &[f32], theirs: &[f32]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    let scale = theirs.iter().fold(0f32, |m, x| m.max(x.abs()));
    assert!(scale > 0.0, "an all-zero reference proves nothing");
    ours.iter().zip(theirs).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / scale
}

/// Forward and backward of the mean loss over the targets; returns logits and loss, and adds to `grads`.
pub(crate) fn step(
    decoder: &Decoder,
    adapters: &AdapterSet,
    (batch, targets): &(Batch, Vec<i32>),
    grads: &mut Grads,
) -> (Vec<f32>, f64) {
    let mut tape = Tape::new(decoder.config(), TapeMode::Recompute);
    let hidden = decoder.forward(batch, adapters, Memory::Tape(&mut tape)).unwrap();
    let supervised = targets.iter().filter(|&&t| t >= 0).count();
    let mut losses = vec![0.0; targets.len()];
    let dhidden = decoder.head_backward(&hidden, 16, grads, &mut |rows, logits| {
        let weight = 1.0 / supervised as f32;
        model::cross_entropy_backward_inplace(
            logits,
            &targets[rows.clone()],
            weight,
            &mut losses[rows],
        );
    });
    decoder.backward(batch, adapters, &mut tape, &dhidden, grads).unwrap();
    let loss = losses.iter().map(|&l| l as f64).sum::<f64>() / supervised as f64;
    (decoder.logits(&hidden), loss)
}
