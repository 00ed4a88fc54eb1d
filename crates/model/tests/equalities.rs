//! The equalities that "one forward" rests on, as properties over random batches.

use model::{
    AdapterSet, BLOCK_SIZE, Batch, Decoder, DecoderConfig, Grads, KvCache, LoraAdapter, LoraConfig,
    Memory, Segment, Tape, TapeMode,
};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use std::path::Path;

fn config(tied: bool) -> DecoderConfig {
    let json = format!(
        r#"{{"model_type":"llama","hidden_size":32,"intermediate_size":72,"num_hidden_layers":2,
        "num_attention_heads":4,"num_key_value_heads":2,"head_dim":8,"vocab_size":50,
        "max_position_embeddings":128,"rms_norm_eps":1e-5,"tie_word_embeddings":{tied}}}"#
    );
    DecoderConfig::from_json(json.as_bytes(), Path::new("config.json")).unwrap()
}

/// A decoder whose weights are large enough that a wrong row shows.
fn decoder(tied: bool) -> Decoder {
    let mut decoder = Decoder::init(&config(tied), 7);
    let mut params = decoder.params();
    for spec in decoder.param_layout().to_vec() {
        if spec.decay {
            params[spec.range].iter_mut().for_each(|x| *x *= 8.0);
        }
    }
    decoder.set_params(&params).unwrap();
    decoder
}

fn adapter(decoder: &Decoder, seed: u64, r: usize) -> LoraAdapter {
    let lora = LoraConfig { r, lora_alpha: 2.0 * r as f32, ..LoraConfig::default() };
    let mut adapter = LoraAdapter::init(&lora, decoder, seed).unwrap();
    let mut rng = Pcg64::seed_from_u64(seed + 1);
    for m in adapter.modules().to_vec() {
        adapter.params[m.b].iter_mut().for_each(|x| *x = rng.random_range(-0.1..0.1));
    }
    adapter
}

fn tokens(seed: u64, len: usize) -> Vec<u32> {
    let mut rng = Pcg64::seed_from_u64(seed);
    (0..len).map(|_| rng.random_range(0..50)).collect()
}

/// Hidden rows of every token of each sequence, all sequences in one training batch.
fn packed(
    decoder: &Decoder,
    adapters: &AdapterSet,
    seqs: &[(Vec<u32>, Option<usize>)],
) -> Vec<Vec<f32>> {
    let batch = Batch {
        tokens: seqs.iter().flat_map(|s| s.0.clone()).collect(),
        segments: seqs
            .iter()
            .map(|s| Segment { len: s.0.len(), adapter: s.1, ..Segment::default() })
            .collect(),
        logit_rows: (0..seqs.iter().map(|s| s.0.len()).sum()).collect(),
    };
    let mut tape = Tape::new(decoder.config(), TapeMode::Recompute);
    let hidden = decoder.forward(&batch, adapters, Memory::Tape(&mut tape)).unwrap();
    let h = decoder.config().hidden_size;
    let mut rest = &hidden[..];
    seqs.iter()
        .map(|s| {
            let (mine, others) = rest.split_at(s.0.len() * h);
            rest = others;
            mine.to_vec()
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn batch_equals_singles_bit_for_bit(lens in prop::collection::vec(1usize..40, 1..6), seed in 0u64..1000, tied: bool) {
        let decoder = decoder(tied);
        let mut adapters = AdapterSet::new();
        let slots: Vec<Option<usize>> = [Some(1), Some(2), None]
            .into_iter()
            .map(|s| s.map(|s: u64| {
                let a = adapter(&decoder, s, 3 + s as usize);
                adapters.insert(&format!("a{s}"), &a, &decoder).unwrap()
            }))
            .collect();
        let seqs: Vec<_> = lens.iter().enumerate()
            .map(|(i, &l)| (tokens(seed + i as u64, l), slots[i % 3])).collect();
        let together = packed(&decoder, &adapters, &seqs);
        for (seq, ours) in seqs.iter().zip(&together) {
            let alone = packed(&decoder, &adapters, std::slice::from_ref(seq));
            prop_assert_eq!(&alone[0], ours);
        }
    }

    #[test]
    fn prefill_and_decode_at_every_split_equal_the_full_forward(len in 2usize..45, seed in 0u64..1000, with_adapter: bool) {
        let decoder = decoder(true);
        let mut adapters = AdapterSet::new();
        let a = adapter(&decoder, 5, 4);
        let slot = adapters.insert("a", &a, &decoder).unwrap();
        let slot = with_adapter.then_some(slot);
        let ids = tokens(seed, len);
        let full = packed(&decoder, &adapters, &[(ids.clone(), slot)]).remove(0);
        let h = decoder.config().hidden_size;
        // Pages out of order and a pool poisoned by another sequence.
        let blocks = len.div_ceil(BLOCK_SIZE) + 3;
        let pages: Vec<u32> = (0..len.div_ceil(BLOCK_SIZE) as u32).rev().map(|p| p + 2).collect();
        for split in 1..len {
            let mut cache = KvCache::new(decoder.config(), blocks);
            let mut got = Vec::new();
            let mut past = 0;
            for step in std::iter::once(split).chain(std::iter::repeat_n(1, len - split)) {
                let batch = Batch {
                    tokens: ids[past..past + step].to_vec(),
                    segments: vec![Segment { len: step, past, pages: pages.clone(), adapter: slot, reach: len, ..Segment::default() }],
                    logit_rows: (0..step).collect(),
                };
                got.extend(decoder.forward(&batch, &adapters, Memory::Cache(&mut cache)).unwrap());
                past += step;
            }
            prop_assert_eq!(got.len(), len * h);
            prop_assert_eq!(&got, &full, "split at {}", split);
        }
    }

    #[test]
    fn merged_equals_unmerged(len in 1usize..30, seed in 0u64..1000) {
        let decoder = decoder(false);
        let a = adapter(&decoder, 9, 4);
        let mut adapters = AdapterSet::new();
        let slot = adapters.insert("a", &a, &decoder).unwrap();
        let merged = decoder.merge(&a).unwrap();
        let ids = tokens(seed, len);
        let with = packed(&decoder, &adapters, &[(ids.clone(), Some(slot))]).remove(0);
        let plain = packed(&merged, &AdapterSet::new(), &[(ids, None)]).remove(0);
        for (x, y) in decoder.logits(&with).iter().zip(merged.logits(&plain)) {
            prop_assert!((x - y).abs() <= 2e-4 * (1.0 + y.abs()), "{x} {y}");
        }
    }

    #[test]
    fn chunked_loss_equals_whole_loss(len in 2usize..40, chunk in 1usize..20, seed in 0u64..1000) {
        let decoder = decoder(true);
        let (whole, whole_grads) = loss_and_grads(&decoder, &tokens(seed, len), usize::MAX, TapeMode::Recompute);
        let (parts, part_grads) = loss_and_grads(&decoder, &tokens(seed, len), chunk, TapeMode::Keep);
        prop_assert!((whole - parts).abs() <= 1e-5 * whole.abs());
        for (x, y) in whole_grads.iter().zip(&part_grads) {
            prop_assert!((x - y).abs() <= 1e-5 * (1.0 + x.abs()), "{x} {y}");
        }
    }
}

/// Mean next-token loss over one sequence and the gradients of every parameter.
fn loss_and_grads(decoder: &Decoder, ids: &[u32], chunk: usize, mode: TapeMode) -> (f32, Vec<f32>) {
    let n = ids.len() - 1;
    let batch = Batch {
        tokens: ids.to_vec(),
        segments: vec![Segment { len: ids.len(), ..Segment::default() }],
        logit_rows: (0..n).collect(),
    };
    let targets: Vec<i32> = ids[1..].iter().map(|&t| t as i32).collect();
    let mut tape = Tape::new(decoder.config(), mode);
    let mut grads = Grads::full(decoder.param_count());
    let adapters = AdapterSet::new();
    let hidden = decoder.forward(&batch, &adapters, Memory::Tape(&mut tape)).unwrap();
    let mut losses = vec![0.0; n];
    let dhidden = decoder.head_backward(&hidden, chunk, &mut grads, &mut |rows, logits| {
        let at = rows.clone();
        model::cross_entropy_backward_inplace(
            logits,
            &targets[at],
            1.0 / n as f32,
            &mut losses[rows],
        );
    });
    decoder.backward(&batch, &adapters, &mut tape, &dhidden, &mut grads).unwrap();
    (losses.iter().sum::<f32>() / n as f32, grads.full.unwrap())
}

#[test]
fn full_gradients_match_finite_differences() {
    let mut decoder = decoder(false);
    let ids = tokens(3, 20);
    let (_, grads) = loss_and_grads(&decoder, &ids, 7, TapeMode::Recompute);
    let params = decoder.params();
    let specs = decoder.param_layout().to_vec();
    let loss_at = |decoder: &mut Decoder, i: usize, d: f32| {
        let mut p = params.clone();
        p[i] += d;
        decoder.set_params(&p).unwrap();
        loss_and_grads(decoder, &ids, 64, TapeMode::Keep).0 as f64
    };
    for spec in specs {
        // The entry with the largest gradient of each tensor: the signal is above f32's noise.
        let i =
            spec.range.clone().max_by(|&a, &b| grads[a].abs().total_cmp(&grads[b].abs())).unwrap();
        let step = 2e-3;
        let numeric = (loss_at(&mut decoder, i, step) - loss_at(&mut decoder, i, -step))
            / (2.0 * step as f64);
        let analytic = grads[i] as f64;
        assert!(
            (numeric - analytic).abs() <= 0.02 * analytic.abs() + 2e-4,
            "{}: numeric {numeric}, analytic {analytic}",
            spec.name
        );
    }
}

#[test]
fn results_do_not_depend_on_the_thread_count() {
    let decoder = decoder(false);
    let ids = tokens(1, 60);
    let run = |threads: usize| {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap()
            .install(|| loss_and_grads(&decoder, &ids, 16, TapeMode::Recompute))
    };
    let (one, three) = (run(1), run(3));
    assert_eq!(one.0.to_bits(), three.0.to_bits());
    assert_eq!(one.1, three.1);
}

#[test]
fn a_batch_that_breaks_a_rule_is_refused() {
    let decoder = decoder(true);
    let ok = Batch {
        tokens: vec![1, 2, 3],
        segments: vec![Segment { len: 3, pages: vec![0], ..Segment::default() }],
        logit_rows: vec![2],
    };
    let cases: Vec<(&str, Batch)> = vec![
        ("token id 99", Batch { tokens: vec![1, 99, 3], ..ok.clone() }),
        ("segments hold", Batch { tokens: vec![1], ..ok.clone() }),
        ("logit_rows", Batch { logit_rows: vec![3], ..ok.clone() }),
        ("pages", Batch { segments: vec![Segment { len: 3, ..Segment::default() }], ..ok.clone() }),
        (
            "page 9",
            Batch {
                segments: vec![Segment { len: 3, pages: vec![9], ..Segment::default() }],
                ..ok.clone()
            },
        ),
        (
            "adapter slot 4",
            Batch {
                segments: vec![Segment {
                    len: 3,
                    pages: vec![0],
                    adapter: Some(4),
                    ..Segment::default()
                }],
                ..ok.clone()
            },
        ),
    ];
    for (expected, batch) in cases {
        let mut cache = KvCache::new(decoder.config(), 2);
        let error =
            decoder.forward(&batch, &AdapterSet::new(), Memory::Cache(&mut cache)).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}
