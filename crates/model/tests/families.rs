//! Every family against Transformers and PEFT, on the tiny checkpoints that
//! `scripts/make_golden_families.py` makes, and the equalities of "one forward" on each of them.
//! The folders are the table: a family of the program without one fails here.

mod common;

use common::{Golden, relative, step, testdata};
use model::{
    AdapterSet, BLOCK_SIZE, Batch, Decoder, DecoderConfig, Family, Grads, KvCache, LoadOptions,
    LoraAdapter, LoraConfig, Memory, Segment, Tape, TapeMode, WeightDtype,
};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

struct Case {
    name: String,
    dir: PathBuf,
    decoder: Decoder,
    golden: Golden,
}

impl Case {
    fn adapter(&self) -> (AdapterSet, usize, LoraAdapter) {
        let adapter = LoraAdapter::load(&self.dir.join("adapter"), &self.decoder).unwrap();
        let mut adapters = AdapterSet::new();
        let slot = adapters.insert("golden", &adapter, &self.decoder).unwrap();
        (adapters, slot, adapter)
    }
}

/// Every folder, its weights in f32.
fn cases() -> Vec<Case> {
    let mut dirs: Vec<PathBuf> = std::fs::read_dir(testdata("families"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    dirs.sort();
    let case = |dir: PathBuf| Case {
        name: dir.file_name().unwrap().to_string_lossy().into_owned(),
        decoder: load(&dir),
        golden: Golden::read(&dir),
        dir,
    };
    dirs.into_iter().map(case).collect()
}

fn load(dir: &Path) -> Decoder {
    Decoder::load(dir, &LoadOptions { dtype: WeightDtype::F32 }).unwrap()
}

#[test]
fn every_family_has_a_golden_folder() {
    let families: BTreeSet<&str> = Family::all().map(Family::name).collect();
    let golden: BTreeSet<&str> =
        cases().iter().map(|case| case.decoder.config().family.name()).collect();
    assert_eq!(golden, families, "see scripts/make_golden_families.py");
}

#[test]
fn logits_and_adapter_gradients_match_the_reference() {
    for case in cases() {
        let Case { name, decoder, golden, .. } = &case;
        let none = AdapterSet::new();
        let (logits, _) = step(decoder, &none, &golden.batch(None), &mut Grads::default());
        let difference = relative(&logits, &golden.logits("logits"));
        assert!(difference < 1e-4, "{name}: logits differ by {difference}");

        let (adapters, slot, adapter) = case.adapter();
        let mut grads = Grads::for_adapter(slot, adapter.param_count());
        let (logits, loss) = step(decoder, &adapters, &golden.batch(Some(slot)), &mut grads);
        let difference = relative(&logits, &golden.logits("adapter_logits"));
        assert!(difference < 1e-4, "{name}: logits with adapter differ by {difference}");
        let reference = golden.json["adapter_loss"].as_f64().unwrap();
        assert!((loss - reference).abs() < 1e-4 * reference, "{name}: {loss}, not {reference}");
        let grads = grads.adapters[slot].as_ref().unwrap();
        let mut compared = 0;
        for m in adapter.modules() {
            for (side, range) in [("lora_A", &m.a), ("lora_B", &m.b)] {
                let key = format!("adapter_grad.base_model.model.{}.{side}.weight", m.name);
                let difference = relative(&grads[range.clone()], &golden.floats[&key]);
                assert!(difference < 2e-4, "{name}: {key} differs by {difference}");
                compared += 1;
            }
        }
        let theirs = golden.floats.keys().filter(|k| k.starts_with("adapter_grad.")).count();
        assert_eq!(compared, theirs, "{name}: gradients compared");
    }
}

/// Final hidden rows of `ids`, run in steps of the given lengths through pages out of order.
fn in_steps(
    case: &Case,
    adapters: &AdapterSet,
    slot: usize,
    ids: &[u32],
    steps: &[usize],
) -> Vec<f32> {
    let needed = ids.len().div_ceil(BLOCK_SIZE) as u32;
    let mut cache = KvCache::new(case.decoder.config(), needed as usize + 2);
    let pages: Vec<u32> = (0..needed).rev().map(|p| p + 1).collect();
    let mut rows = Vec::new();
    let mut past = 0;
    for &len in steps {
        let segment = Segment {
            len,
            past,
            pages: pages.clone(),
            adapter: Some(slot),
            reach: ids.len(),
            ..Segment::default()
        };
        let batch = Batch {
            tokens: ids[past..past + len].to_vec(),
            segments: vec![segment],
            logit_rows: (0..len).collect(),
        };
        rows.extend(case.decoder.forward(&batch, adapters, Memory::Cache(&mut cache)).unwrap());
        past += len;
    }
    assert_eq!(past, ids.len());
    rows
}

#[test]
fn prefill_then_decode_and_a_batch_equal_each_sequence_alone() {
    for case in cases() {
        let (adapters, slot, _) = case.adapter();
        let (batch, _) = case.golden.batch(Some(slot));
        let mut tape = Tape::new(case.decoder.config(), TapeMode::Recompute);
        let memory = Memory::Tape(&mut tape);
        let together = case.decoder.forward(&batch, &adapters, memory).unwrap();
        let mut rest = &together[..];
        for ids in case.golden.sequences() {
            let (ours, others) = rest.split_at(ids.len() * case.decoder.config().hidden_size);
            rest = others;
            let n = ids.len();
            let ones = |first: usize| {
                std::iter::once(first).chain(std::iter::repeat_n(1, n - first)).collect::<Vec<_>>()
            };
            for steps in [vec![n], ones(1), ones(n / 2), vec![n / 3, n - n / 3], ones(n - 1)] {
                let alone = in_steps(&case, &adapters, slot, &ids, &steps);
                assert!(alone == ours, "{}: steps {steps:?}", case.name);
            }
        }
    }
}

#[test]
fn recomputed_and_kept_activations_give_the_same_gradients() {
    for case in cases() {
        let (adapters, slot, adapter) = case.adapter();
        let batch = case.golden.batch(Some(slot));
        let run = |mode: TapeMode| {
            let mut grads = Grads::for_adapter(slot, adapter.param_count());
            grads.full = Some(vec![0.0; case.decoder.param_count()]);
            let mut tape = Tape::new(case.decoder.config(), mode);
            let memory = Memory::Tape(&mut tape);
            let hidden = case.decoder.forward(&batch.0, &adapters, memory).unwrap();
            case.decoder.backward(&batch.0, &adapters, &mut tape, &hidden, &mut grads).unwrap();
            (grads.adapters, grads.full)
        };
        let exact = run(TapeMode::Recompute);
        assert!(exact == run(TapeMode::Keep), "{}", case.name);
        // Eight bits of a value are 0.4 % of it.
        let (adapters, full) = run(TapeMode::KeepBf16);
        let pairs =
            exact.0.iter().zip(&adapters).filter_map(|(e, f)| Some((e.as_ref()?, f.as_ref()?)));
        let pairs = pairs.chain(exact.1.iter().zip(&full));
        for (exact, found) in pairs {
            let norm = |values: &mut dyn Iterator<Item = f32>| -> f64 {
                values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt()
            };
            let off = norm(&mut exact.iter().zip(found).map(|(e, f)| e - f));
            let share = off / norm(&mut exact.iter().copied());
            assert!(share < 0.02, "{}: gradients are off by {share}", case.name);
        }
    }
}

#[test]
fn full_gradients_are_the_slope() {
    for mut case in cases() {
        let none = AdapterSet::new();
        let batch = case.golden.batch(None);
        let mut grads = Grads::full(case.decoder.param_count());
        step(&case.decoder, &none, &batch, &mut grads);
        let grads = grads.full.unwrap();
        let params = case.decoder.params();
        for spec in case.decoder.param_layout().to_vec() {
            // The entry with the largest gradient: the signal is above f32's noise.
            let largest = |a: &usize, b: &usize| grads[*a].abs().total_cmp(&grads[*b].abs());
            let i = spec.range.clone().max_by(largest).unwrap();
            let mut loss_at = |d: f32| {
                let mut p = params.clone();
                p[i] += d;
                case.decoder.set_params(&p).unwrap();
                step(&case.decoder, &none, &batch, &mut Grads::default()).1
            };
            let analytic = f64::from(grads[i]);
            // Where a token is about to change its experts the loss jumps: the narrower step then
            // stays on this side, at the price of more rounding.
            let mut tried = Vec::new();
            let close = [2e-3, 4e-4].iter().any(|&width| {
                let numeric = (loss_at(width) - loss_at(-width)) / (2.0 * f64::from(width));
                tried.push(numeric);
                (numeric - analytic).abs() <= 0.02 * analytic.abs() + 4e-7 / f64::from(width)
            });
            assert!(close, "{}: {}: numeric {tried:?}, analytic {analytic}", case.name, spec.name);
        }
    }
}

#[test]
fn saved_models_and_adapters_come_back_the_same() {
    for case in cases() {
        let Case { name, decoder, golden, .. } = &case;
        let dir = tempfile::tempdir().unwrap();
        let published = Decoder::load(&case.dir, &LoadOptions::default()).unwrap();
        published.save(dir.path(), WeightDtype::Bf16).unwrap();
        let again = load(dir.path());
        assert!(again.params() == decoder.params(), "{name}: parameters");
        assert_eq!(again.param_layout(), decoder.param_layout(), "{name}");
        let none = AdapterSet::new();
        let logits = |d: &Decoder, set: &AdapterSet, slot: Option<usize>| {
            step(d, set, &golden.batch(slot), &mut Grads::default()).0
        };
        assert!(logits(&again, &none, None) == logits(decoder, &none, None), "{name}: logits");

        let (adapters, slot, adapter) = case.adapter();
        adapter.save(dir.path(), "base", decoder.digest().unwrap(), &[]).unwrap();
        let reread = LoraAdapter::load(dir.path(), decoder).unwrap();
        assert!(reread.params == adapter.params, "{name}: adapter");
        let merged = logits(&decoder.merge(&adapter).unwrap(), &none, None);
        let difference = relative(&merged, &logits(decoder, &adapters, Some(slot)));
        assert!(difference < 1e-4, "{name}: merged differs by {difference}");
    }
}

#[test]
fn all_linear_layers_are_those_that_peft_finds() {
    for case in cases() {
        let config = LoraConfig { r: 2, lora_alpha: 8.0, ..LoraConfig::default() };
        let ours = LoraAdapter::init(&config, &case.decoder, 0).unwrap();
        let names = |a: &LoraAdapter| -> Vec<String> {
            a.modules().iter().map(|m| m.name.clone()).collect()
        };
        // The reference adapters of models with experts were made for attention alone.
        let dense =
            |name: &String| case.decoder.config().experts.is_none() || name.contains("attn");
        let ours: Vec<String> = names(&ours).into_iter().filter(dense).collect();
        let theirs = names(&case.adapter().2);
        assert_eq!(ours, theirs, "{}", case.name);
    }
}

#[test]
fn a_long_sequence_is_rotated_as_one_from_its_start() {
    let dir = testdata("families/phi3");
    let config = DecoderConfig::load(&dir).unwrap();
    assert_eq!(config.rope_switch(), Some(24));
    let decoder = load(&dir);
    let ids: Vec<u32> = (0..30).collect();
    let first = |reach: usize| {
        let mut cache = KvCache::new(&config, 2);
        let segment = Segment { len: 10, pages: vec![0], reach, ..Segment::default() };
        let batch =
            Batch { tokens: ids[..10].to_vec(), segments: vec![segment], logit_rows: vec![9] };
        decoder.forward(&batch, &AdapterSet::new(), Memory::Cache(&mut cache)).unwrap()
    };
    assert!(first(0) == first(24), "within the first context");
    assert!(first(25) == first(30), "beyond it");
    assert!(first(24) != first(25), "the first part of a longer sequence");
}

/// As Transformers saves a model without its head, and embedding models are published: names without
/// the first part.
#[test]
fn a_model_saved_without_its_head_is_the_same() {
    let from = common::testdata("families/qwen2");
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(from.join("config.json"), dir.path().join("config.json")).unwrap();
    let bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let bare = |(name, view)| (name_without_model(name), view);
    let tensors: Vec<_> = file.iter().map(bare).collect();
    assert!(tensors.iter().any(|(name, _)| name == "embed_tokens.weight"));
    safetensors::serialize_to_file(tensors, None, &dir.path().join("model.safetensors")).unwrap();
    assert_eq!(load(dir.path()).params(), load(&from).params());
}

fn name_without_model(name: &str) -> String {
    name.strip_prefix("model.").unwrap_or(name).to_owned()
}
