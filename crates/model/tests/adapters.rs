//! Adapters with every option of PEFT that is honoured, against PEFT itself: the folders that
//! `scripts/make_golden_adapters.py` makes.

mod common;

use common::{Golden, relative, step, testdata};
use model::{
    AdapterSet, Batch, Decoder, Grads, LoadOptions, LoraAdapter, LoraConfig, LoraModule, Memory,
    ModelError, PORTABLE_RANKS, PackedAdapter, Segment, Tape, TapeMode, Targets,
};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// An adapter's folder, its base and what PEFT computes with both.
struct Case {
    name: String,
    dir: PathBuf,
    decoder: Decoder,
    golden: Golden,
}

fn cases() -> Vec<Case> {
    let folders = std::fs::read_dir(testdata("adapters")).unwrap();
    let mut folders: Vec<PathBuf> = folders.map(|f| f.unwrap().path()).collect();
    folders.sort();
    assert!(folders.len() >= 14, "{folders:?}");
    let case = |dir: PathBuf| {
        let golden = Golden::read(&dir);
        let base = testdata(golden.json["base"].as_str().unwrap());
        let decoder = Decoder::load(&base, &LoadOptions::default()).unwrap();
        Case { name: dir.file_name().unwrap().to_string_lossy().into(), dir, decoder, golden }
    };
    folders.into_iter().map(case).collect()
}

/// Logits, loss and gradients of the golden batch with `adapter`.
fn run(case: &Case, adapter: &LoraAdapter) -> (Vec<f32>, f64, Vec<f32>) {
    let mut set = AdapterSet::new();
    let slot = set.insert("golden", adapter, &case.decoder).unwrap();
    let mut grads = Grads::for_adapter(slot, adapter.param_count());
    let batch = case.golden.batch(Some(slot));
    let (logits, loss) = step(&case.decoder, &set, &batch, &mut grads);
    (logits, loss, grads.adapters[slot].take().unwrap())
}

fn tensors(m: &LoraModule) -> [(&'static str, &Range<usize>); 3] {
    [(".lora_A.weight", &m.a), (".lora_B.weight", &m.b), (".lora_magnitude_vector", &m.magnitude)]
}

#[test]
fn logits_and_gradients_match_peft() {
    for case in cases() {
        let name = &case.name;
        let adapter = LoraAdapter::load(&case.dir, &case.decoder).unwrap();
        let (logits, loss, grads) = run(&case, &adapter);
        let difference = relative(&logits, &case.golden.logits("logits"));
        assert!(difference < 1e-4, "{name}: logits differ by {difference}");
        let expected = case.golden.json["loss"].as_f64().unwrap();
        assert!((loss - expected).abs() < 1e-4 * expected, "{name}: loss {loss}, {expected}");
        let mut compared = 0;
        for m in adapter.modules() {
            for (end, range) in tensors(m).into_iter().filter(|(_, range)| !range.is_empty()) {
                let tensor = format!("grad.base_model.model.{}{end}", m.name);
                let difference = relative(&grads[range.clone()], &case.golden.floats[&tensor]);
                assert!(difference < 1e-3, "{name}: {tensor} differs by {difference}");
                compared += 1;
            }
        }
        let all = case.golden.floats.keys().filter(|k| k.starts_with("grad.")).count();
        assert_eq!(compared, all, "{name}");
    }
}

#[test]
fn merged_portable_and_saved_forms_give_the_same_logits() {
    for case in cases() {
        let name = &case.name;
        let adapter = LoraAdapter::load(&case.dir, &case.decoder).unwrap();
        let (logits, ..) = run(&case, &adapter);
        let same = |other: &[f32], bound: f32, what: &str| {
            let difference = relative(other, &logits);
            assert!(difference < bound, "{name}, {what}: logits differ by {difference}");
        };
        for ranks in [&[][..], &PORTABLE_RANKS] {
            let portable = adapter.portable(ranks);
            let config = &portable.config;
            assert!(config.rank_pattern.is_empty() && config.alpha_pattern.is_empty(), "{name}");
            assert!(!config.use_rslora && portable.modules().iter().all(|m| m.r == config.r));
            assert!(ranks.is_empty() || PORTABLE_RANKS.contains(&config.r), "{name}");
            same(&run(&case, &portable).0, 1e-5, "portable");
        }
        let dir = tempfile::tempdir().unwrap();
        let digest = case.decoder.digest().unwrap();
        adapter.save(dir.path(), "base", digest, &[]).unwrap();
        let back = LoraAdapter::load(dir.path(), &case.decoder).unwrap();
        assert_eq!(back.params, adapter.portable(&[]).params, "{name}");
        same(&run(&case, &back).0, 1e-5, "saved");
        let merged = case.decoder.merge(&adapter).unwrap();
        let alone = Case { decoder: merged, ..case };
        let (batch, targets) = alone.golden.batch(None);
        let full = &mut Grads::default();
        let (found, _) = step(&alone.decoder, &AdapterSet::new(), &(batch, targets), full);
        let difference = relative(&found, &logits);
        assert!(difference < 1e-4, "{}, merged: logits differ by {difference}", alone.name);
    }
}

/// The adapter's folder with fields of its configuration changed.
fn changed(dir: &Path, fields: &[(&str, serde_json::Value)]) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(dir.join(name), copy.path().join(name)).unwrap();
    }
    let path = copy.path().join("adapter_config.json");
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (key, value) in fields {
        config[*key] = value.clone();
    }
    std::fs::write(&path, config.to_string()).unwrap();
    copy
}

#[test]
fn what_cannot_be_honoured_is_refused_by_the_name_of_its_field() {
    use serde_json::json;
    let case = cases().into_iter().find(|c| c.name == "rslora").unwrap();
    for (field, value) in [
        ("peft_type", json!("LOHA")),
        ("bias", json!("lora_only")),
        ("lora_bias", json!(true)),
        ("fan_in_fan_out", json!(true)),
        ("modules_to_save", json!(["lm_head"])),
        ("init_lora_weights", json!("pissa")),
        ("layer_replication", json!([[0, 1]])),
        ("alora_invocation_tokens", json!([5])),
        ("target_parameters", json!(["mlp.experts.gate_up_proj"])),
        ("trainable_token_indices", json!([1, 2])),
        ("use_qalora", json!(true)),
        ("use_bdlora", json!({"nblocks": 2})),
        ("arrow_config", json!({"top_k": 2})),
        ("r", json!(0)),
        ("r", json!(1e9)),
        ("lora_alpha", json!("much")),
        ("use_rslora", json!("yes")),
        ("use_dora", json!(3)),
        ("target_modules", json!("(")),
        ("target_modules", json!(["no_such"])),
        ("target_modules", json!(7)),
        ("exclude_modules", json!("[")),
        ("layers_to_transform", json!("first")),
        ("layers_to_transform", json!(-1)),
        ("layers_pattern", json!({"a": 1})),
        ("rank_pattern", json!({"q_proj": 0})),
        ("rank_pattern", json!({"q_proj": "two"})),
        ("rank_pattern", json!({"nothing_like_it": 3})),
        ("rank_pattern", json!([1])),
        ("alpha_pattern", json!({"base_model.model.q_proj": 3})),
        ("alpha_pattern", json!({"*": 3})),
    ] {
        let dir = changed(&case.dir, &[(field, value.clone())]);
        let error = LoraAdapter::load(dir.path(), &case.decoder).unwrap_err().to_string();
        assert!(error.contains(field), "{field} = {value}: {error}");
        assert!(error.contains("expected"), "{field} = {value}: {error}");
    }
}

#[test]
fn tensors_that_do_not_belong_or_are_missing_are_listed() {
    use serde_json::json;
    let case = cases().into_iter().find(|c| c.name == "rslora").unwrap();
    let load = |fields: &[(&str, serde_json::Value)]| {
        let dir = changed(&case.dir, fields);
        LoraAdapter::load(dir.path(), &case.decoder).unwrap_err().to_string()
    };
    let error = load(&[("target_modules", json!(["q_proj", "k_proj"]))]);
    assert!(error.contains("v_proj.lora_A.weight: not among the target_modules"), "{error}");
    let error = load(&[("use_dora", json!(true))]);
    assert!(error.contains("q_proj.lora_magnitude_vector is missing"), "{error}");
    let error = load(&[("r", json!(5))]);
    assert!(error.contains("found shape [6, 64], expected [5, 64]"), "{error}");
    let dora = cases().into_iter().find(|c| c.name == "dora").unwrap();
    let dir = changed(&dora.dir, &[("use_dora", json!(false))]);
    let error = LoraAdapter::load(dir.path(), &dora.decoder).unwrap_err().to_string();
    assert!(error.contains("lora_magnitude_vector: not a lora_A or lora_B tensor"), "{error}");
    let one = cases().into_iter().find(|c| c.name == "one_layer").unwrap();
    let dir = changed(&one.dir, &[("layers_to_transform", json!([0, 1]))]);
    let error = LoraAdapter::load(dir.path(), &one.decoder).unwrap_err().to_string();
    assert!(error.contains("layers.1.self_attn.v_proj.lora_A.weight is missing"), "{error}");
}

#[test]
fn dora_starts_as_its_base_and_is_not_written_for_llama_cpp() {
    for name in ["families/phi3", "llama_tiny"] {
        let decoder = Decoder::load(&testdata(name), &LoadOptions::default()).unwrap();
        let config = LoraConfig { r: 3, use_dora: true, ..LoraConfig::default() };
        let adapter = LoraAdapter::init(&config, &decoder, 1).unwrap();
        let logits = |adapter: Option<&LoraAdapter>| {
            let mut set = AdapterSet::new();
            let slot = adapter.map(|a| set.insert("a", a, &decoder).unwrap());
            let batch = Batch {
                tokens: (3..20).collect(),
                segments: vec![Segment { len: 17, adapter: slot, ..Segment::default() }],
                logit_rows: (0..17).collect(),
            };
            let mut tape = Tape::new(decoder.config(), TapeMode::Recompute);
            let hidden = decoder.forward(&batch, &set, Memory::Tape(&mut tape)).unwrap();
            decoder.logits(&hidden)
        };
        let difference = relative(&logits(Some(&adapter)), &logits(None));
        assert!(difference < 1e-5, "{name}: {difference}");
        let path = Path::new("never-written.gguf");
        let error = adapter.save_gguf(path, decoder.config(), Vec::new()).unwrap_err();
        assert!(matches!(&error, ModelError::Params(p) if p.contains("use_dora")), "{error}");
    }
}

/// Ragged rows, some of them with dropout, and the loss and gradient of one adapter.
fn dropped(
    decoder: &Decoder,
    adapter: &LoraAdapter,
    segments: &[(usize, Option<u64>)],
    mode: TapeMode,
) -> (Vec<f32>, Vec<f32>) {
    let mut set = AdapterSet::new();
    let slot = set.insert("a", adapter, decoder).unwrap();
    let mut batch = Batch::default();
    for &(len, dropout) in segments {
        let first = batch.tokens.len();
        // Rows of one length are the same.
        batch.tokens.extend((0..len).map(|i| (3 + (len * 31 + i * 17) % 300) as u32));
        batch.segments.push(Segment { len, adapter: Some(slot), dropout, ..Segment::default() });
        batch.logit_rows.extend(first..first + len);
    }
    let targets: Vec<i32> = batch.tokens.iter().map(|&t| (t as i32 * 7) % 320).collect();
    let mut grads = Grads::for_adapter(slot, adapter.param_count());
    let mut tape = Tape::new(decoder.config(), mode);
    let hidden = decoder.forward(&batch, &set, Memory::Tape(&mut tape)).unwrap();
    let mut losses = vec![0.0; targets.len()];
    let dhidden = decoder.head_backward(&hidden, 16, &mut grads, &mut |rows, logits| {
        let (targets, losses) = (&targets[rows.clone()], &mut losses[rows]);
        model::cross_entropy_backward_inplace(logits, targets, 1.0, losses);
    });
    decoder.backward(&batch, &set, &mut tape, &dhidden, &mut grads).unwrap();
    (losses, grads.adapters[slot].take().unwrap())
}

#[test]
fn dropout_is_a_function_of_key_and_place_and_its_gradient_is_exact() {
    let decoder = Decoder::load(&testdata("llama_tiny"), &LoadOptions::default()).unwrap();
    let config = LoraConfig {
        r: 3,
        lora_alpha: 6.0,
        lora_dropout: 0.3,
        target_modules: Targets::all_linear(),
        ..LoraConfig::default()
    };
    let mut adapter = LoraAdapter::init(&config, &decoder, 4).unwrap();
    for (i, x) in adapter.params.iter_mut().enumerate() {
        *x += 0.02 * ((i % 13) as f32 - 6.0);
    }
    let (keep, recompute) = (TapeMode::Keep, TapeMode::Recompute);
    let segments = [(9, Some(5)), (4, None), (9, Some(6)), (9, None)];
    let (losses, grads) = dropped(&decoder, &adapter, &segments, recompute);
    assert_eq!(dropped(&decoder, &adapter, &segments, keep), (losses.clone(), grads.clone()));
    // Equal rows with other keys, or with none, give other losses; with one key, the same.
    assert_ne!(losses[..9], losses[13..22]);
    assert_ne!(losses[..9], losses[22..]);
    let (alone, _) = dropped(&decoder, &adapter, &[(9, Some(6))], recompute);
    assert_eq!(losses[13..22], alone);
    // Without dropout in the adapter a key changes nothing.
    let mut plain = LoraAdapter::init(&LoraConfig { lora_dropout: 0.0, ..config }, &decoder, 4);
    plain.as_mut().unwrap().params.copy_from_slice(&adapter.params);
    let (undropped, _) = dropped(&decoder, &plain.unwrap(), &segments, recompute);
    assert_eq!(undropped[22..], losses[22..]);
    assert_eq!(undropped[..9], losses[22..]);
    // The gradient, along a few directions, by differences.
    let total = |params: &[f32]| -> f64 {
        let mut moved = adapter.clone();
        moved.params.copy_from_slice(params);
        dropped(&decoder, &moved, &segments, recompute).0.iter().map(|&l| l as f64).sum()
    };
    for seed in 0..3 {
        let direction: Vec<f32> =
            (0..grads.len()).map(|i| (((i * 29 + seed * 7) % 23) as f32 - 11.0) / 11.0).collect();
        let shifted = |by: f32| -> Vec<f32> {
            adapter.params.iter().zip(&direction).map(|(p, d)| p + by * d).collect()
        };
        let h = 1e-3;
        let numeric = (total(&shifted(h)) - total(&shifted(-h))) / (2.0 * h as f64);
        let exact: f64 = grads.iter().zip(&direction).map(|(g, d)| (g * d) as f64).sum();
        assert!((numeric - exact).abs() < 0.02 * exact.abs().max(1.0), "{numeric} and {exact}");
    }
}

#[test]
fn a_probe_tells_whether_an_adapter_acts() {
    for case in cases() {
        let adapter = LoraAdapter::load(&case.dir, &case.decoder).unwrap();
        let packed = PackedAdapter::new("x", &adapter, &case.decoder).unwrap();
        let bytes = packed.bytes();
        assert!(bytes >= 4 * adapter.modules().iter().map(|m| m.b.len()).sum::<usize>());
        // The probe gives the adapter back as it was.
        assert_eq!(packed.probe(&case.decoder).unwrap().bytes(), bytes, "{}", case.name);
    }
    let case = cases().into_iter().find(|c| c.name == "rslora").expect("a plain adapter");
    let good = LoraAdapter::load(&case.dir, &case.decoder).unwrap();
    let refused = |change: &dyn Fn(&mut LoraAdapter)| {
        let mut adapter = good.clone();
        change(&mut adapter);
        let packed = PackedAdapter::new("x", &adapter, &case.decoder).unwrap();
        packed.probe(&case.decoder).err().expect("refused").to_string()
    };
    let side = |adapter: &mut LoraAdapter, a: bool, value: f32| {
        for m in adapter.modules().to_vec() {
            adapter.params[if a { m.a } else { m.b }].fill(value);
        }
    };
    for a in [true, false] {
        let error = refused(&|adapter| side(adapter, a, 0.0));
        assert!(error.contains("it does nothing"), "{error}");
    }
    let error = refused(&|adapter| side(adapter, false, f32::MAX));
    assert!(error.contains("a logit is"), "{error}");
}

#[test]
fn a_digest_covers_what_acts() {
    let case = cases().remove(0);
    let adapter = LoraAdapter::load(&case.dir, &case.decoder).unwrap();
    let digest = adapter.digest();
    assert_eq!((digest.len(), adapter.clone().digest()), (64, digest.clone()));
    let mut other = adapter.clone();
    *other.params.last_mut().unwrap() += 1.0;
    assert_ne!(other.digest(), digest);
    // What is saved and read again is the same adapter.
    let dir = tempfile::tempdir().unwrap();
    let plain = adapter.portable(&[]);
    plain.save(dir.path(), "base", case.decoder.digest().unwrap(), &[]).unwrap();
    assert_eq!(LoraAdapter::load(dir.path(), &case.decoder).unwrap().digest(), plain.digest());
}

#[test]
fn a_generation_never_comes_twice() {
    let case = cases().remove(0);
    let adapter = LoraAdapter::load(&case.dir, &case.decoder).unwrap();
    let mut set = AdapterSet::new();
    let mut seen = Vec::new();
    let first = set.insert("a", &adapter, &case.decoder).unwrap();
    let second = set.insert("b", &adapter, &case.decoder).unwrap();
    seen.extend([set.generation(first), set.generation(second)]);
    set.remove(first);
    assert_eq!((set.generation(first), set.generation(99)), (None, None));
    // The slot is used again, under another generation, and so is the name.
    let again = set.insert("a", &adapter, &case.decoder).unwrap();
    assert_eq!(again, first);
    seen.push(set.generation(again));
    set.refresh(again, &adapter, &case.decoder);
    seen.push(set.generation(again));
    let packed = set.take(again).expect("it is there");
    let slot = set.put(packed);
    seen.push(set.generation(slot));
    let different: std::collections::HashSet<_> = seen.iter().collect();
    assert!(seen.iter().all(Option::is_some) && different.len() == seen.len(), "{seen:?}");
}
