//! `config.json` as published: older and newer spellings of every family load alike, and what would
//! change the result without being understood is refused by name.

mod common;

use common::testdata;
use model::{
    Activation, AdapterSet, Batch, Decoder, DecoderConfig, FeedForward, LoadOptions, Memory,
    NormPlacement, QkNorm, Segment, Tape, TapeMode,
};
use serde_json::{Map, Value, json};
use std::path::Path;

fn parse(json: &Value) -> Result<DecoderConfig, String> {
    DecoderConfig::from_json(json.to_string().as_bytes(), Path::new("config.json"))
        .map_err(|e| e.to_string())
}

/// The sizes and rules that a published file states, and the bookkeeping around them.
fn published(own: Value) -> DecoderConfig {
    let mut all = json!({
        "architectures": ["ForCausalLM"], "attention_dropout": 0.0, "initializer_range": 0.02,
        "torch_dtype": "bfloat16", "transformers_version": "4.45.0", "use_cache": true,
        "_name_or_path": "somewhere", "bos_token_id": 1, "eos_token_id": [2, 3],
    });
    let map = all.as_object_mut().unwrap();
    map.extend(own.as_object().unwrap().clone());
    parse(&all).unwrap()
}

fn windows(config: &DecoderConfig) -> Vec<Option<usize>> {
    config.layers.iter().map(|l| l.window).collect()
}

#[test]
fn llama_as_published() {
    // Llama 3.2 1B.
    let c = published(json!({
        "model_type": "llama", "attention_bias": false, "head_dim": 64, "hidden_act": "silu",
        "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 131072,
        "mlp_bias": false, "num_attention_heads": 32, "num_hidden_layers": 16,
        "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-5,
        "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "rope_theta": 500000.0, "tie_word_embeddings": true, "vocab_size": 128256,
    }));
    assert!(c.tie_word_embeddings && c.num_key_value_heads == 8 && c.eos_token_ids == [2, 3]);
    // SmolLM2 135M, with fields of conversions that nothing reads.
    let c = published(json!({
        "model_type": "llama", "attention_bias": false, "hidden_act": "silu", "hidden_size": 576,
        "intermediate_size": 1536, "is_llama_config": true, "max_position_embeddings": 8192,
        "mlp_bias": false, "num_attention_heads": 9, "num_hidden_layers": 30,
        "num_key_value_heads": 3, "pretraining_tp": 1, "rms_norm_eps": 1e-5,
        "rope_interleaved": false, "rope_scaling": null, "rope_theta": 100000,
        "tie_word_embeddings": true, "vocab_size": 49152,
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    }));
    assert_eq!(c.head_dim, 64);
}

#[test]
fn mistral_as_published() {
    let of = |own: Value| {
        let mut all = json!({
            "model_type": "mistral", "hidden_act": "silu", "hidden_size": 4096,
            "intermediate_size": 14336, "max_position_embeddings": 32768,
            "num_attention_heads": 32, "num_hidden_layers": 4, "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
            "vocab_size": 32000,
        });
        all.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
        published(all)
    };
    // The first release, later ones, and Nemo with a head size of its own.
    assert_eq!(windows(&of(json!({"sliding_window": 4096}))), [Some(4096); 4]);
    assert_eq!(windows(&of(json!({"sliding_window": null}))), [None; 4]);
    let nemo = of(json!({"hidden_size": 5120, "head_dim": 128, "sliding_window": null}));
    assert_eq!(nemo.head_dim, 128);
}

#[test]
fn qwen_as_published() {
    let qwen2 = |own: Value| {
        let mut all = json!({
            "model_type": "qwen2", "hidden_act": "silu", "hidden_size": 3584,
            "intermediate_size": 18944, "max_position_embeddings": 131072,
            "max_window_layers": 28, "num_attention_heads": 28, "num_hidden_layers": 28,
            "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
            "sliding_window": 131072, "tie_word_embeddings": false, "use_mrope": false,
            "use_sliding_window": false, "vocab_size": 152064,
        });
        all.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
        published(all)
    };
    let c = qwen2(json!({}));
    assert!(c.biases.qkv && !c.biases.output && windows(&c).iter().all(Option::is_none));
    // The window stands from max_window_layers on, and only where it is turned on.
    let c = qwen2(json!({"use_sliding_window": true, "max_window_layers": 21}));
    assert_eq!(windows(&c).iter().filter(|w| **w == Some(131072)).count(), 7);
    assert_eq!(c.layers[20].window, None);

    let c = published(json!({
        "model_type": "qwen3", "attention_bias": false, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 1024, "intermediate_size": 3072, "max_position_embeddings": 40960,
        "max_window_layers": 28, "num_attention_heads": 16, "num_hidden_layers": 28,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-6, "rope_scaling": null,
        "rope_theta": 1000000, "sliding_window": null, "tie_word_embeddings": true,
        "use_sliding_window": false, "vocab_size": 151936,
    }));
    assert!(c.qk_norm == QkNorm::PerHead && c.head_dim == 128 && c.biases.qkv == c.biases.output);

    let c = published(json!({
        "model_type": "qwen3_moe", "attention_bias": false, "decoder_sparse_step": 1,
        "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 6144,
        "max_position_embeddings": 40960, "max_window_layers": 48, "mlp_only_layers": [],
        "moe_intermediate_size": 768, "norm_topk_prob": true, "num_attention_heads": 32,
        "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48,
        "num_key_value_heads": 4, "output_router_logits": false, "rms_norm_eps": 1e-6,
        "rope_scaling": null, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001,
        "sliding_window": null, "tie_word_embeddings": false, "use_sliding_window": false,
        "vocab_size": 151936,
    }));
    let experts = c.experts.unwrap();
    assert_eq!((experts.num_experts, experts.top_k, experts.intermediate_size), (128, 8, 768));
    assert!(experts.normalized && c.layers.iter().all(|l| l.feed_forward == FeedForward::Experts));
    assert_eq!(c.target_modules(), ["q_proj", "k_proj", "v_proj", "o_proj"]);
}

#[test]
fn gemma_as_published() {
    // Gemma 2 2B: ties its head without saying so, and lists two activations.
    let c = published(json!({
        "model_type": "gemma2", "attention_bias": false, "attn_logit_softcapping": 50.0,
        "cache_implementation": "hybrid", "final_logit_softcapping": 30.0, "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 2304, "intermediate_size": 9216, "max_position_embeddings": 8192,
        "num_attention_heads": 8, "num_hidden_layers": 26, "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "sliding_window": 4096, "vocab_size": 256000, "pad_token_id": 0,
    }));
    assert!(c.tie_word_embeddings && c.activation == Activation::GeluTanh);
    assert_eq!(c.norms, NormPlacement::PrePost);
    assert_eq!((c.attention_softcap, c.final_softcap), (Some(50.0), Some(30.0)));
    assert_eq!(c.attention_scale, 1.0 / 16.0);
    assert_eq!(windows(&c)[..3], [Some(4096), None, Some(4096)]);

    // Gemma 3 1B, and the text part of larger ones, whose global layers are scaled.
    let text = |scaling: Value| {
        published(json!({
            "model_type": "gemma3_text", "attention_bias": false, "attn_logit_softcapping": null,
            "cache_implementation": "hybrid", "final_logit_softcapping": null, "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152,
            "intermediate_size": 6912, "max_position_embeddings": 32768,
            "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1,
            "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6, "rope_local_base_freq": 10000,
            "rope_scaling": scaling, "rope_theta": 1000000, "sliding_window": 512,
            "sliding_window_pattern": 6, "vocab_size": 262144, "pad_token_id": 0,
        }))
    };
    for scaling in [json!(null), json!({"factor": 8.0, "rope_type": "linear"})] {
        let c = text(scaling);
        let global: Vec<usize> = (0..26).filter(|&l| c.layers[l].window.is_none()).collect();
        assert_eq!(global, [5, 11, 17, 23]);
        assert_ne!(c.layers[0].rope, c.layers[5].rope);
        assert_eq!((c.attention_softcap, c.final_softcap), (None, None));
    }
}

#[test]
fn phi_as_published() {
    // Phi-3.5 mini.
    let c = published(json!({
        "model_type": "phi3", "attention_bias": false, "embd_pdrop": 0.0, "hidden_act": "silu",
        "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "hidden_size": 3072,
        "intermediate_size": 8192, "max_position_embeddings": 131072, "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 32,
        "original_max_position_embeddings": 4096, "pad_token_id": 32000, "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 262144,
        "rope_scaling": {"type": "longrope", "short_factor": vec![1.1; 48],
            "long_factor": vec![2.5; 48]},
        "tie_word_embeddings": false, "vocab_size": 32064,
    }));
    assert_eq!(c.rope_switch(), Some(4096));
    assert_eq!(c.target_modules(), ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]);
    // Phi-4 mini rotates three quarters of each head.
    let c = published(json!({
        "model_type": "phi3", "attention_bias": false, "embd_pdrop": 0.0, "full_attn_mod": 1,
        "hidden_act": "silu", "hidden_size": 3072, "intermediate_size": 8192,
        "interpolate_factor": 1, "lm_head_bias": false, "max_position_embeddings": 131072,
        "mlp_bias": false, "num_attention_heads": 24, "num_hidden_layers": 32,
        "num_key_value_heads": 8, "original_max_position_embeddings": 4096,
        "partial_rotary_factor": 0.75, "resid_pdrop": 0.0, "rms_norm_eps": 1e-5,
        "rope_scaling": {"type": "longrope", "short_factor": vec![1.0; 48],
            "long_factor": vec![3.0; 48]},
        "rope_theta": 10000.0, "sliding_window": 262144, "tie_word_embeddings": true,
        "vocab_size": 200064,
    }));
    assert_eq!(c.head_dim, 128);
    // Phi-4.
    let c = published(json!({
        "model_type": "phi3", "attention_bias": false, "embd_pdrop": 0.0, "hidden_act": "silu",
        "hidden_size": 5120, "intermediate_size": 17920, "max_position_embeddings": 16384,
        "num_attention_heads": 40, "num_hidden_layers": 40, "num_key_value_heads": 10,
        "original_max_position_embeddings": 16384, "resid_pdrop": 0.0, "rms_norm_eps": 1e-5,
        "rope_scaling": null, "rope_theta": 250000, "sliding_window": null,
        "tie_word_embeddings": false, "vocab_size": 100352,
    }));
    assert_eq!(c.rope_switch(), None);
}

#[test]
fn granite_olmo2_smollm3_and_mixtral_as_published() {
    let c = published(json!({
        "model_type": "granite", "attention_bias": false, "attention_multiplier": 0.015625,
        "embedding_multiplier": 12.0, "hidden_act": "silu", "hidden_size": 2048,
        "intermediate_size": 8192, "logits_scaling": 8.0, "max_position_embeddings": 131072,
        "mlp_bias": false, "num_attention_heads": 32, "num_hidden_layers": 40,
        "num_key_value_heads": 8, "residual_multiplier": 0.22, "rms_norm_eps": 1e-5,
        "rope_scaling": null, "rope_theta": 5000000.0, "tie_word_embeddings": true,
        "vocab_size": 49155, "pad_token_id": 0,
    }));
    assert_eq!(c.attention_scale, 0.015625);
    assert_eq!((c.embedding_scale, c.residual_scale, c.logits_scale), (12.0, 0.22, 0.125));

    let c = published(json!({
        "model_type": "olmo2", "attention_bias": false, "hidden_act": "silu",
        "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 4096,
        "num_attention_heads": 16, "num_hidden_layers": 16, "num_key_value_heads": 16,
        "rms_norm_eps": 1e-6, "rope_scaling": null, "rope_theta": 500000,
        "tie_word_embeddings": false, "vocab_size": 100352, "pad_token_id": 100277,
    }));
    assert!(c.norms == NormPlacement::Post && c.qk_norm == QkNorm::Whole);

    let rotated: Vec<usize> = (0..36).map(|l| usize::from((l + 1) % 4 != 0)).collect();
    let c = published(json!({
        "model_type": "smollm3", "attention_bias": false, "hidden_act": "silu",
        "hidden_size": 2048, "intermediate_size": 11008, "max_position_embeddings": 65536,
        "layer_types": vec!["full_attention"; 36], "max_window_layers": 28, "mlp_bias": false,
        "no_rope_layer_interval": 4, "no_rope_layers": rotated, "num_attention_heads": 16,
        "num_hidden_layers": 36, "num_key_value_heads": 4, "pretraining_tp": 2,
        "rms_norm_eps": 1e-6, "rope_scaling": null, "rope_theta": 5000000.0,
        "sliding_window": null, "use_sliding_window": false, "vocab_size": 128256,
    }));
    assert!(c.tie_word_embeddings && c.layers[3].rope.is_none() && c.layers[4].rope == Some(0));

    let c = published(json!({
        "model_type": "mixtral", "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 14336, "max_position_embeddings": 32768, "num_attention_heads": 32,
        "num_experts_per_tok": 2, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "num_local_experts": 8, "output_router_logits": false, "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02, "sliding_window": null,
        "tie_word_embeddings": false, "vocab_size": 32000,
    }));
    let experts = c.experts.unwrap();
    assert_eq!((experts.num_experts, experts.top_k, experts.intermediate_size), (8, 2, 14336));
}

/// The older spelling of a config.json that Transformers 5 wrote.
fn older(config: &Map<String, Value>) -> Map<String, Value> {
    let mut old = config.clone();
    let dtype = old.remove("dtype").unwrap();
    old.insert("torch_dtype".into(), dtype);
    let rope = old.remove("rope_parameters").unwrap();
    let mut rope = rope.as_object().unwrap().clone();
    if let Some(Value::Object(local)) = rope.remove("sliding_attention") {
        old.insert("rope_local_base_freq".into(), local["rope_theta"].clone());
        rope = rope["full_attention"].as_object().unwrap().clone();
    }
    for field in ["rope_theta", "partial_rotary_factor"] {
        old.extend(rope.remove(field).map(|value| (field.to_owned(), value)));
    }
    let kind = rope.remove("rope_type").unwrap();
    let scaled = kind != "default";
    rope.insert("type".into(), kind);
    old.insert("rope_scaling".into(), if scaled { Value::Object(rope) } else { Value::Null });
    old
}

#[test]
fn older_and_newer_spelling_compute_the_same() {
    for entry in std::fs::read_dir(testdata("families")).unwrap() {
        let dir = entry.unwrap().path();
        let config: Value =
            serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap();
        let old = tempfile::tempdir().unwrap();
        std::fs::copy(dir.join("model.safetensors"), old.path().join("model.safetensors")).unwrap();
        let text = Value::Object(older(config.as_object().unwrap())).to_string();
        std::fs::write(old.path().join("config.json"), text).unwrap();
        let run = |dir: &Path| {
            let decoder = Decoder::load(dir, &LoadOptions::default()).unwrap();
            let batch = Batch {
                tokens: (0..40).map(|i| i * 7 % 64).collect(),
                segments: vec![Segment { len: 40, ..Segment::default() }],
                logit_rows: vec![39],
            };
            let mut tape = Tape::new(decoder.config(), TapeMode::Recompute);
            let none = AdapterSet::new();
            decoder.forward(&batch, &none, Memory::Tape(&mut tape)).unwrap()
        };
        assert!(run(&dir) == run(old.path()), "{}", dir.display());
    }
}

/// Sets `field` (with dots into objects) of the golden config of `folder`; null removes nothing.
fn edited(folder: &str, field: &str, value: Value) -> Result<DecoderConfig, String> {
    let path = testdata("families").join(folder).join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let mut at = &mut config;
    for key in field.split('.') {
        at = &mut at[key];
    }
    *at = value;
    parse(&config)
}

#[test]
fn what_is_not_understood_is_refused_by_name() {
    let cases = [
        ("llama", "model_type", json!("mamba"), "model_type"),
        ("llama", "attention_chunk_size", json!(64), "attention_chunk_size = 64"),
        ("llama", "use_parallel_residual", json!(true), "use_parallel_residual"),
        ("llama", "hidden_act", json!("relu"), "hidden_act"),
        ("llama", "quantization_config", json!({"bits": 4}), "quantization_config"),
        ("llama", "rope_parameters.rope_type", json!("yarn"), "rope_parameters.rope_type"),
        ("llama", "rope_parameters.rope_type", json!(3), "rope_parameters.rope_type"),
        ("llama", "rope_parameters.mscale", json!(0.7), "rope_parameters.mscale"),
        ("llama", "rope_parameters.factor", json!(0), "rope_parameters.factor"),
        ("llama", "rope_parameters.high_freq_factor", json!(1.0), "high_freq_factor"),
        ("llama", "rope_parameters", json!([1]), "rope_parameters"),
        ("llama_linear_bias", "rope_parameters.factor", json!(null), "rope_parameters.factor"),
        ("mistral", "sliding_window", json!(0), "sliding_window"),
        ("mistral", "layer_types", json!(["full_attention", "sliding_attention"]), "layer_types"),
        ("qwen2", "layer_types", json!(["full_attention"]), "layer_types"),
        ("qwen2", "layer_types", json!(["full_attention", "linear_attention"]), "linear_attention"),
        ("qwen3", "attention_bias", json!("yes"), "attention_bias"),
        ("gemma2", "hidden_activation", json!("gelu"), "hidden_activation"),
        ("gemma2", "query_pre_attn_scalar", json!(0), "scale of attention scores"),
        ("gemma2", "attn_logit_softcapping", json!(-1.0), "attn_logit_softcapping"),
        ("gemma2", "use_bidirectional_attention", json!(true), "use_bidirectional_attention"),
        ("gemma3", "attn_logit_softcapping", json!(50.0), "attn_logit_softcapping"),
        ("gemma3", "rope_parameters.other", json!({}), "rope_parameters.other"),
        ("gemma3", "sliding_window_pattern", json!(0), "sliding_window_pattern"),
        ("phi3", "rope_parameters.short_factor", json!([1.0]), "short_factor"),
        ("phi3", "rope_parameters.long_factor", json!([1.0, 0.0, 2.0]), "long_factor"),
        ("phi3", "rope_parameters.partial_rotary_factor", json!(0.4), "partial_rotary_factor"),
        ("phi3", "rope_parameters.short_mscale", json!(1.2), "short_mscale"),
        ("phi3", "mlp_bias", json!(true), "mlp_bias"),
        ("phi3", "full_attn_mod", json!(2), "full_attn_mod"),
        ("granite", "logits_scaling", json!(0), "logits_scaling"),
        ("granite", "residual_multiplier", json!(1e300), "residual_multiplier"),
        ("smollm3", "no_rope_layers", json!([1]), "no_rope_layers"),
        ("smollm3", "no_rope_layers", json!([1, 2]), "no_rope_layers"),
        ("mixtral", "router_jitter_noise", json!(0.1), "router_jitter_noise"),
        ("mixtral", "num_experts_per_tok", json!(5), "num_experts_per_tok"),
        ("qwen3_moe", "decoder_sparse_step", json!(0), "decoder_sparse_step"),
        ("qwen3_moe", "mlp_only_layers", json!("none"), "mlp_only_layers"),
        ("qwen3_moe", "shared_expert_intermediate_size", json!(64), "shared_expert"),
    ];
    for (folder, field, value, expected) in cases {
        let what = format!("{folder} {field} = {value}");
        let error = edited(folder, field, value).expect_err(&what);
        assert!(error.contains(expected), "{what}: {error}");
    }
}

#[test]
fn absurd_sizes_are_refused_before_anything_is_made_of_them() {
    for (folder, field, value) in [
        ("llama", "num_hidden_layers", json!(4_000_000_000_u64)),
        ("llama", "num_hidden_layers", json!(0)),
        ("llama", "hidden_size", json!(1_u64 << 40)),
        ("llama", "vocab_size", json!(u64::MAX)),
        ("llama", "head_dim", json!(1_000_000_000)),
        ("llama", "max_position_embeddings", json!(1_u64 << 40)),
        ("llama", "intermediate_size", json!(-1)),
        ("llama", "num_key_value_heads", json!(3)),
        ("mixtral", "num_local_experts", json!(1_000_000_000)),
        ("qwen3_moe", "moe_intermediate_size", json!(1_u64 << 50)),
    ] {
        let what = format!("{folder} {field} = {value}");
        let error = edited(folder, field, value).expect_err(&what);
        let named = field.trim_start_matches("num_local_").trim_start_matches("num_");
        assert!(error.contains(named), "{what}: {error}");
    }
    // A context as long as is allowed costs nothing until tokens use it.
    let config = edited("llama", "max_position_embeddings", json!(1 << 26)).unwrap();
    let decoder = Decoder::init(&config, 0);
    let batch = Batch {
        tokens: vec![1, 2, 3],
        segments: vec![Segment { len: 3, ..Segment::default() }],
        logit_rows: vec![2],
    };
    let mut tape = Tape::new(&config, TapeMode::Recompute);
    let hidden = decoder.forward(&batch, &AdapterSet::new(), Memory::Tape(&mut tape)).unwrap();
    assert!(hidden.iter().all(|x| x.is_finite()));
}
