//! Logits, gradients and training losses against Hugging Face Transformers and PEFT, on the tiny
//! checkpoints that `scripts/make_golden_llama.py` makes.

mod common;

use common::{Golden, relative, step, testdata};
use model::{AdapterSet, Decoder, Grads, LoadOptions, LoraAdapter, LoraConfig};
use safetensors::SafeTensors;

fn load(name: &str) -> Decoder {
    Decoder::load(&testdata(name), &LoadOptions::default()).unwrap()
}

fn reference_losses(golden: &Golden, of: &str) -> Vec<f64> {
    golden.json[of]["losses"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

/// torch.optim.AdamW without decay, step by step, as the reference ran it.
struct AdamW {
    m: Vec<f32>,
    v: Vec<f32>,
    step: i32,
}

impl AdamW {
    fn new(n: usize) -> AdamW {
        AdamW { m: vec![0.0; n], v: vec![0.0; n], step: 0 }
    }

    fn update(&mut self, params: &mut [f32], grads: &[f32], lr: f64) {
        self.step += 1;
        let (b1, b2) = (0.9f64, 0.999f64);
        let (c1, c2) = (1.0 - b1.powi(self.step), 1.0 - b2.powi(self.step));
        for i in 0..params.len() {
            let g = grads[i] as f64;
            self.m[i] = (b1 * self.m[i] as f64 + (1.0 - b1) * g) as f32;
            self.v[i] = (b2 * self.v[i] as f64 + (1.0 - b2) * g * g) as f32;
            let denominator = (self.v[i] as f64 / c2).sqrt() + 1e-8;
            params[i] = (params[i] as f64 - lr * (self.m[i] as f64 / c1) / denominator) as f32;
        }
    }
}

fn assert_losses(ours: &[f64], theirs: &[f64]) {
    assert_eq!(ours.len(), theirs.len());
    for (i, (a, b)) in ours.iter().zip(theirs).enumerate() {
        assert!((a - b).abs() <= 2e-3 * b, "loss {i}: ours {a}, reference {b}");
    }
}

#[test]
fn logits_and_full_gradients_match_transformers() {
    for name in ["llama_tiny", "llama_tiny_tied_bf16"] {
        let (decoder, golden) = (load(name), Golden::read(&testdata(name)));
        let mut grads = Grads::full(decoder.param_count());
        let (logits, loss) = step(&decoder, &AdapterSet::new(), &golden.batch(None), &mut grads);
        let difference = relative(&logits, &golden.logits("logits"));
        assert!(difference < 1e-4, "{name}: logits differ by {difference}");
        let reference = golden.json["loss"].as_f64().unwrap();
        assert!(
            (loss - reference).abs() < 1e-4 * reference,
            "{name}: loss {loss}, reference {reference}"
        );
        let grads = grads.full.unwrap();
        let mut compared = 0;
        for spec in decoder.param_layout() {
            if let Some(theirs) = golden.floats.get(&format!("full_grad.{}", spec.name)) {
                let difference = relative(&grads[spec.range.clone()], theirs);
                assert!(
                    difference < 1e-3,
                    "{name}: gradient of {} differs by {difference}",
                    spec.name
                );
                compared += 1;
            }
        }
        assert!(
            name == "llama_tiny" || compared == decoder.param_layout().len(),
            "{name}: {compared}"
        );
    }
}

#[test]
fn adapter_logits_and_gradients_match_peft() {
    let (decoder, golden) = (load("llama_tiny"), Golden::read(&testdata("llama_tiny")));
    let adapter = LoraAdapter::load(&testdata("llama_tiny_adapter"), &decoder).unwrap();
    let mut adapters = AdapterSet::new();
    let slot = adapters.insert("golden", &adapter, &decoder).unwrap();
    let mut grads = Grads::for_adapter(slot, adapter.param_count());
    let (logits, loss) = step(&decoder, &adapters, &golden.batch(Some(slot)), &mut grads);
    let difference = relative(&logits, &golden.logits("adapter_logits"));
    assert!(difference < 1e-4, "logits differ by {difference}");
    let reference = golden.json["adapter_loss"].as_f64().unwrap();
    assert!((loss - reference).abs() < 1e-4 * reference, "loss {loss}, reference {reference}");
    let grads = grads.adapters[slot].as_ref().unwrap();
    assert_eq!(adapter.modules().len(), 14);
    for m in adapter.modules() {
        for (side, range) in [("lora_A", &m.a), ("lora_B", &m.b)] {
            let name = format!("adapter_grad.base_model.model.{}.{side}.weight", m.name);
            let difference = relative(&grads[range.clone()], &golden.floats[&name]);
            assert!(difference < 1e-3, "{name} differs by {difference}");
        }
    }
}

#[test]
fn ten_lora_steps_lose_like_peft() {
    let (decoder, golden) = (load("llama_tiny"), Golden::read(&testdata("llama_tiny")));
    let lora = LoraConfig { r: 4, lora_alpha: 8.0, ..LoraConfig::default() };
    let mut adapter = LoraAdapter::init(&lora, &decoder, 0).unwrap();
    let bytes =
        std::fs::read(testdata("llama_tiny_adapter_init/adapter_model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    for m in adapter.modules().to_vec() {
        for (side, range) in [("lora_A", &m.a), ("lora_B", &m.b)] {
            let view = file.tensor(&format!("base_model.model.{}.{side}.weight", m.name)).unwrap();
            let values =
                view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
            adapter.params[range.clone()].iter_mut().zip(values).for_each(|(p, v)| *p = v);
        }
    }
    let mut adapters = AdapterSet::new();
    let slot = adapters.insert("a", &adapter, &decoder).unwrap();
    let mut optimizer = AdamW::new(adapter.param_count());
    let lr = golden.json["lora_adamw"]["lr"].as_f64().unwrap();
    let batch = golden.batch(Some(slot));
    let losses: Vec<f64> = reference_losses(&golden, "lora_adamw")
        .iter()
        .map(|_| {
            let mut grads = Grads::for_adapter(slot, adapter.param_count());
            let (_, loss) = step(&decoder, &adapters, &batch, &mut grads);
            optimizer.update(&mut adapter.params, grads.adapters[slot].as_ref().unwrap(), lr);
            adapters.refresh(slot, &adapter, &decoder);
            loss
        })
        .collect();
    assert_losses(&losses, &reference_losses(&golden, "lora_adamw"));
}

#[test]
fn ten_full_steps_lose_like_transformers() {
    let (mut decoder, golden) = (load("llama_tiny"), Golden::read(&testdata("llama_tiny")));
    let mut params = decoder.params();
    let mut optimizer = AdamW::new(params.len());
    let lr = golden.json["full_adamw"]["lr"].as_f64().unwrap();
    let batch = golden.batch(None);
    let losses: Vec<f64> = reference_losses(&golden, "full_adamw")
        .iter()
        .map(|_| {
            let mut grads = Grads::full(decoder.param_count());
            let (_, loss) = step(&decoder, &AdapterSet::new(), &batch, &mut grads);
            optimizer.update(&mut params, grads.full.as_ref().unwrap(), lr);
            decoder.set_params(&params).unwrap();
            loss
        })
        .collect();
    assert_losses(&losses, &reference_losses(&golden, "full_adamw"));
}
