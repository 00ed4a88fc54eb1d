//! Whole runs on a tiny random model: results, resuming, guards.

use model::{Decoder, DecoderConfig};
use std::cell::RefCell;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use train::*;

const STOP: u32 = 2;

fn config() -> DecoderConfig {
    DecoderConfig::from_json(include_bytes!("fixtures/config.json"), Path::new("fixture")).unwrap()
}

/// Random weights, with matrices large enough that an adapter on a frozen head can learn.
fn decoder() -> Decoder {
    let mut decoder = Decoder::init(&config(), 5);
    let mut params = decoder.params();
    for spec in decoder.param_layout().iter().filter(|s| s.decay) {
        params[spec.range.clone()].iter_mut().for_each(|x| *x *= 10.0);
    }
    decoder.set_params(&params).unwrap();
    decoder
}

fn decoder_with(change: impl Fn(&str, &mut [f32])) -> Decoder {
    let mut decoder = decoder();
    let mut params = decoder.params();
    for spec in decoder.param_layout() {
        change(&spec.name, &mut params[spec.range.clone()]);
    }
    decoder.set_params(&params).unwrap();
    decoder
}

/// Prompts of a few tokens, each with its own answer and a stop token.
fn rows(count: usize, seed: u32) -> Vec<Row> {
    (0..count as u32)
        .map(|i| {
            let mut ids = vec![1];
            ids.extend((0..2 + i % 5).map(|p| 3 + (seed + i * 11 + p * 7) % 60));
            let prompt = ids.len();
            ids.extend((0..3 + i % 3).map(|p| 3 + (seed + i * 17 + p * 5) % 60));
            ids.push(STOP);
            let mask = (0..ids.len()).map(|p| p >= prompt).collect();
            Row::new(format!("example-{i}"), ids, mask)
        })
        .collect()
}

fn plan(method: Method, dir: &Path) -> TrainPlan {
    TrainPlan {
        output_dir: dir.to_owned(),
        r: 8,
        lora_alpha: 16.0,
        learning_rate: 1e-2,
        num_train_epochs: 3.0,
        step_size: StepSize::Rows(4),
        micro_batch_tokens: 24,
        eval_steps: 2,
        save_steps: 2,
        ..TrainPlan::new(method, Objective::Sft, &config())
    }
}

fn data(plan: &TrainPlan) -> TrainData {
    TrainData::from_rows(rows(10, 0), rows(3, 30), &[STOP], Some(1), plan).unwrap()
}

fn go(
    plan: &TrainPlan,
    decoder: &mut Decoder,
    data: &TrainData,
    resume: bool,
    mut observer: impl FnMut(&Event),
    cancel: &AtomicBool,
) -> Result<TrainOutcome, TrainError> {
    let provenance = Provenance {
        base_name: "tiny".into(),
        chat_template: "{{ messages }}".into(),
        ..Provenance::default()
    };
    run(plan, decoder, data, &provenance, resume, &mut observer, cancel)
}

fn simply(plan: &TrainPlan, resume: bool) -> Result<TrainOutcome, TrainError> {
    go(plan, &mut decoder(), &data(plan), resume, |_| {}, &AtomicBool::new(false))
}

fn weights_file(method: Method) -> &'static str {
    match method {
        Method::Lora => "adapter_model.safetensors",
        Method::Full => "model.safetensors",
    }
}

fn log_events(dir: &Path) -> Vec<Event> {
    let text = fs::read_to_string(dir.join(LOG_FILE)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn logged_steps(dir: &Path) -> Vec<u64> {
    log_events(dir)
        .iter()
        .filter_map(|e| if let Event::Step { step, .. } = e { Some(*step) } else { None })
        .collect()
}

#[test]
fn overfits_a_tiny_set() {
    // Hidden rows have a fixed length, so a frozen head must be steep to be sure of anything: with
    // this decoder's own one the loss cannot go below 0.18.
    let base = || {
        decoder_with(|name, p| {
            if name == "lm_head.weight" {
                p.iter_mut().for_each(|x| *x *= 3.0);
            }
        })
    };
    for method in [Method::Lora, Method::Full] {
        let dir = tempfile::tempdir().unwrap();
        let plan = TrainPlan { num_train_epochs: 60.0, save_steps: 0, ..plan(method, dir.path()) };
        let mut decoder = base();
        let never = AtomicBool::new(false);
        let outcome = go(&plan, &mut decoder, &data(&plan), false, |_| {}, &never).unwrap();
        assert_eq!(outcome.status, TrainStatus::Completed);
        assert_eq!(outcome.step, 180);
        assert!(outcome.train_loss < 0.1, "{method:?}: {}", outcome.train_loss);
        assert!(outcome.held_out_before.unwrap().loss > 1.0);
        let manifest: Manifest =
            serde_json::from_slice(&fs::read(dir.path().join(MANIFEST_FILE)).unwrap()).unwrap();
        assert_eq!(manifest.plan, plan);
        assert_eq!(manifest.base_sha256, base().digest().unwrap());
        let template = fs::read(dir.path().join(CHAT_TEMPLATE_FILE)).unwrap();
        assert_eq!(manifest.chat_template_sha256, model::sha256_hex(&template));
        if method == Method::Lora {
            model::LoraAdapter::load(dir.path(), &base()).unwrap();
        } else {
            Decoder::load(dir.path(), &model::LoadOptions::default()).unwrap();
        }
        assert_eq!(logged_steps(dir.path()), (1..=180).collect::<Vec<_>>());
    }
}

#[test]
fn micro_batches_do_not_change_the_losses() {
    let losses = |micro_batch_tokens: usize| -> Vec<f64> {
        let dir = tempfile::tempdir().unwrap();
        let plan = TrainPlan { micro_batch_tokens, ..plan(Method::Lora, dir.path()) };
        simply(&plan, false).unwrap();
        log_events(dir.path())
            .iter()
            .filter_map(|e| if let Event::Step { loss, .. } = e { Some(*loss) } else { None })
            .collect()
    };
    let (one_by_one, together) = (losses(1), losses(10_000));
    assert_eq!(one_by_one.len(), 9);
    for (a, b) in one_by_one.iter().zip(&together) {
        assert!((a - b).abs() < 1e-4 * b, "{one_by_one:?} and {together:?}");
    }
    assert!((one_by_one[0] - together[0]).abs() < 1e-6);
}

/// Ctrl-C at every step, and a kill without warning at every step: the weights end the same.
#[test]
fn resumed_runs_end_with_the_same_bytes() {
    for method in [Method::Lora, Method::Full] {
        let whole = tempfile::tempdir().unwrap();
        let outcome = simply(&plan(method, whole.path()), false).unwrap();
        let expected = fs::read(whole.path().join(weights_file(method))).unwrap();
        for stop_at in 0..outcome.total_steps {
            for killed in [false, true] {
                let dir = tempfile::tempdir().unwrap();
                let plan = plan(method, dir.path());
                let cancel = AtomicBool::new(stop_at == 0);
                let first = catch_unwind(AssertUnwindSafe(|| {
                    go(
                        &plan,
                        &mut decoder(),
                        &data(&plan),
                        false,
                        |event| {
                            let now = matches!(event, Event::Step { step, .. } if *step == stop_at);
                            if now && killed {
                                // No unwinding code of the run does anything here, as in a kill.
                                std::panic::resume_unwind(Box::new("killed"));
                            }
                            cancel.fetch_or(now, Ordering::Relaxed);
                        },
                        &cancel,
                    )
                }));
                match first {
                    Ok(outcome) => {
                        let outcome = outcome.unwrap();
                        assert_eq!(outcome.status, TrainStatus::Interrupted);
                        assert_eq!(outcome.step, stop_at);
                        assert!(!dir.path().join(weights_file(method)).exists());
                    }
                    Err(_) => assert!(killed),
                }
                let resumed = simply(&plan, true).unwrap();
                assert_eq!(resumed.status, TrainStatus::Completed);
                assert_eq!(resumed.tokens, outcome.tokens);
                assert_eq!(resumed.best, outcome.best);
                let found = fs::read(dir.path().join(weights_file(method))).unwrap();
                assert!(found == expected, "{method:?} stopped at {stop_at}, killed: {killed}");
                assert_eq!(logged_steps(dir.path()), (1..=outcome.total_steps).collect::<Vec<_>>());
            }
        }
    }
}

/// Judged answers: of each example the one to be learnt and another one.
fn judged(count: usize, objective: Objective) -> Vec<Row> {
    let chosen = rows(count, 0);
    let rejected = rows(count, 9).into_iter().map(|row| Row { wanted: false, ..row });
    match objective.rows_per_example() {
        2 => chosen.into_iter().zip(rejected).flat_map(|(c, r)| [c, r]).collect(),
        _ => chosen.into_iter().chain(rejected).collect(),
    }
}

/// One plan for each way of training, with its data.
fn every_way(dir: &Path) -> Vec<(String, TrainPlan, TrainData)> {
    let plan = |method| TrainPlan { max_steps: 5, ..plan(method, dir) };
    let lora = || plan(Method::Lora);
    let mut all: Vec<(String, TrainPlan)> = vec![
        ("dropout".into(), TrainPlan { lora_dropout: 0.2, ..lora() }),
        ("dora".into(), TrainPlan { use_dora: true, ..lora() }),
        ("lora+".into(), TrainPlan { loraplus_lr_ratio: 8.0, use_rslora: true, ..lora() }),
        ("ranks".into(), TrainPlan { rank_pattern: [("q_proj".into(), 3)].into(), ..lora() }),
    ];
    for objective in [Objective::Dpo, Objective::Orpo, Objective::Kto, Objective::Simpo] {
        for method in [Method::Lora, Method::Full] {
            let defaults = TrainPlan::new(method, objective, &config());
            let (loss_type, beta) = (defaults.loss_type, defaults.beta);
            let plan = TrainPlan { objective, loss_type, beta, ..plan(method) };
            all.push((format!("{objective:?} {method:?}"), plan));
        }
    }
    all.into_iter()
        .map(|(name, plan)| {
            let data = if plan.objective.is_preference() {
                let (train, held_out) = (judged(8, plan.objective), judged(3, plan.objective));
                TrainData::from_rows(train, held_out, &[STOP], Some(1), &plan).unwrap()
            } else {
                data(&plan)
            };
            (name, plan, data)
        })
        .collect()
}

#[test]
fn resuming_changes_no_bit_whatever_is_trained() {
    let never = AtomicBool::new(false);
    let dir = Path::new("unused");
    let rounded = rounded(TrainPlan { max_steps: 5, ..plan(Method::Lora, dir) });
    let rounded_data = data(&rounded);
    let ways = every_way(dir).into_iter().chain([("bf16".into(), rounded, rounded_data)]);
    for (name, plan, data) in ways {
        let file = weights_file(plan.method);
        let whole = tempfile::tempdir().unwrap();
        let plan = TrainPlan { output_dir: whole.path().to_owned(), ..plan };
        let outcome = go(&plan, &mut decoder(), &data, false, |_| {}, &never).unwrap();
        assert_eq!(outcome.step, 5, "{name}");
        let expected = fs::read(whole.path().join(file)).unwrap();
        for stop_at in [1, 3] {
            let part = tempfile::tempdir().unwrap();
            let plan = TrainPlan { output_dir: part.path().to_owned(), ..plan.clone() };
            let cancel = AtomicBool::new(false);
            let stop = |event: &Event| {
                if matches!(event, Event::Step { step, .. } if *step == stop_at) {
                    cancel.store(true, Ordering::Relaxed);
                }
            };
            go(&plan, &mut decoder(), &data, false, stop, &cancel).unwrap();
            assert!(!part.path().join(file).exists(), "{name}");
            let resumed = go(&plan, &mut decoder(), &data, true, |_| {}, &never).unwrap();
            assert_eq!(resumed.status, TrainStatus::Completed);
            let found = fs::read(part.path().join(file)).unwrap();
            assert!(found == expected, "{name}, stopped after step {stop_at}");
        }
    }
}

/// The plan with activations kept in bf16.
fn rounded(plan: TrainPlan) -> TrainPlan {
    let activation_dtype = FloatDtype::Bfloat16;
    TrainPlan { gradient_checkpointing: false, activation_dtype, ..plan }
}

#[test]
fn activations_in_bf16_do_not_hurt() {
    let losses = |change: fn(TrainPlan) -> TrainPlan, micro_batch_tokens: usize| -> Vec<f64> {
        let dir = tempfile::tempdir().unwrap();
        let plan = TrainPlan { micro_batch_tokens, ..plan(Method::Lora, dir.path()) };
        simply(&change(plan), false).unwrap();
        let of = |e: &Event| if let Event::Step { loss, .. } = e { Some(*loss) } else { None };
        log_events(dir.path()).iter().filter_map(of).collect()
    };
    let (exact, rounded_losses) = (losses(|plan| plan, 24), losses(rounded, 24));
    assert!(exact[8] < 0.8 * exact[0], "it learns: {exact:?}");
    assert_eq!(exact[0], rounded_losses[0], "the forward is not rounded");
    assert_ne!(exact, rounded_losses);
    for (a, b) in exact.iter().zip(&rounded_losses) {
        assert!((a - b).abs() < 5e-3 * a, "{exact:?} and {rounded_losses:?}");
    }
    // Each row is rounded by itself.
    assert_eq!(rounded_losses[0], losses(rounded, 10_000)[0]);
}

#[test]
fn runs_that_round_and_runs_that_do_not_are_kept_apart() {
    let dir = tempfile::tempdir().unwrap();
    let exact = plan(Method::Lora, &dir.path().join("a"));
    let rounding = rounded(plan(Method::Lora, &dir.path().join("b")));
    let (data, provenance) = (data(&exact), Provenance::default());
    let job = |plan| Job { plan, data: &data, provenance: &provenance };
    let never = AtomicBool::new(false);
    let jobs = [job(&exact), job(&rounding)];
    let error = run_together(&jobs, &mut decoder(), false, &mut |_, _| {}, &never).unwrap_err();
    assert!(error.to_string().starts_with("activation_dtype: found different ones"), "{error}");
    let useless = TrainPlan { gradient_checkpointing: true, ..rounding };
    let error = useless.validate(&config()).unwrap_err();
    assert!(error.to_string().starts_with("activation_dtype: found bfloat16"), "{error}");
}

#[test]
fn trainings_side_by_side_have_the_bits_that_each_has_alone() {
    let never = AtomicBool::new(false);
    let ways: Vec<_> = every_way(Path::new("unused"))
        .into_iter()
        .filter(|(_, plan, _)| plan.method == Method::Lora)
        .enumerate()
        .map(|(i, (name, plan, data))| {
            // Different in all that a tenant may choose, the length of the run included.
            let (seed, learning_rate) = (i as u64, 1e-2 / (i + 1) as f64);
            let max_steps = 3 + (i as u64) % 3;
            (name, TrainPlan { seed, learning_rate, max_steps, r: 2 + i, ..plan }, data)
        })
        .collect();
    assert_eq!(ways.len(), 8);
    let root = tempfile::tempdir().unwrap();
    let provenance = Provenance::default();
    let plans: Vec<TrainPlan> = ways
        .iter()
        .map(|(name, plan, _)| TrainPlan { output_dir: root.path().join(name), ..plan.clone() })
        .collect();
    let jobs: Vec<Job<'_>> = plans
        .iter()
        .zip(&ways)
        .map(|(plan, (_, _, data))| Job { plan, data, provenance: &provenance })
        .collect();
    let mut seen = vec![0; jobs.len()];
    let mut observe = |lane: usize, event: &Event| {
        seen[lane] += usize::from(matches!(event, Event::Step { .. }));
    };
    let outcomes = run_together(&jobs, &mut decoder(), false, &mut observe, &never).unwrap();
    for (((name, plan, data), outcome), seen) in ways.iter().zip(&outcomes).zip(&seen) {
        assert_eq!((outcome.step, *seen as u64), (plan.max_steps, plan.max_steps), "{name}");
        let alone = tempfile::tempdir().unwrap();
        // Nor does the size of the micro-batches matter.
        let micro_batch_tokens = 1 + plan.micro_batch_tokens * 3;
        let output_dir = alone.path().to_owned();
        let plan = TrainPlan { output_dir, micro_batch_tokens, ..plan.clone() };
        let (mut decoder, observer) = (decoder(), &mut |_: &Event| {});
        let single = run(&plan, &mut decoder, data, &provenance, false, observer, &never).unwrap();
        assert_eq!(single.held_out, outcome.held_out, "{name}");
        let own = fs::read(alone.path().join("adapter_model.safetensors")).unwrap();
        let file = root.path().join(name).join("adapter_model.safetensors");
        let (own, shared) = (weights(&own), weights(&fs::read(file).unwrap()));
        assert!(own == shared, "{name}");
    }
    let error = run_together(
        &[
            jobs[0],
            Job { plan: &TrainPlan { method: Method::Full, ..plans[1].clone() }, ..jobs[1] },
        ],
        &mut decoder(),
        false,
        &mut |_, _| {},
        &never,
    );
    assert!(error.unwrap_err().to_string().starts_with("method: found full"));
}

/// The tensors of a safetensors file, without its metadata.
fn weights(file: &[u8]) -> Vec<u8> {
    let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    file[8 + header..].to_vec()
}

#[test]
fn early_stopping_keeps_the_best() {
    let dir = tempfile::tempdir().unwrap();
    let plan = TrainPlan {
        max_steps: 200,
        eval_steps: 1,
        early_stopping_patience: 3,
        lr_scheduler_type: SchedulerType::Constant,
        ..plan(Method::Lora, dir.path())
    };
    let outcome = simply(&plan, false).unwrap();
    assert_eq!(outcome.status, TrainStatus::EarlyStopped);
    let best = outcome.best.unwrap();
    assert_eq!(outcome.step, best.step + 3);
    let manifest: Manifest =
        serde_json::from_slice(&fs::read(dir.path().join(MANIFEST_FILE)).unwrap()).unwrap();
    assert_eq!((manifest.saved_step, manifest.status), (best.step, TrainStatus::EarlyStopped));
}

#[test]
fn resume_refuses_another_plan_data_or_base() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(Method::Lora, dir.path());
    simply(&plan, false).unwrap();
    let check = |plan: &TrainPlan, mut decoder: Decoder, data: TrainData, named: &str| {
        let error = go(plan, &mut decoder, &data, true, |_| {}, &AtomicBool::new(false));
        let error = error.unwrap_err();
        assert!(matches!(error, TrainError::ResumeMismatch { .. }), "{error}");
        assert!(error.to_string().contains(named), "{error}");
    };
    let other = TrainPlan { learning_rate: 3e-3, ..plan.clone() };
    check(&other, decoder(), data(&plan), "learning_rate: found 0.01, now 0.003");
    let other = TrainData::from_rows(rows(11, 0), vec![], &[STOP], None, &plan).unwrap();
    check(&plan, decoder(), other, "data: found sha256");
    check(&plan, decoder_with(|_, p| p[0] += 1.0), data(&plan), "base: found sha256");
    // What does not decide the weights may change.
    let other = TrainPlan { logging_steps: 5, save_steps: 50, ..plan.clone() };
    simply(&other, true).unwrap();
}

#[test]
fn a_damaged_checkpoint_falls_back_to_the_one_before() {
    type Damage = fn(&Path);
    let damage: [(&str, Damage); 4] = [
        ("truncated", |dir| {
            let file = dir.join("tensors.safetensors");
            let bytes = fs::read(&file).unwrap();
            fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
        }),
        ("one byte flipped", |dir| {
            let file = dir.join("tensors.safetensors");
            let mut bytes = fs::read(&file).unwrap();
            let at = bytes.len() - 100;
            bytes[at] ^= 1;
            fs::write(file, bytes).unwrap();
        }),
        ("tensors missing", |dir| fs::remove_file(dir.join("tensors.safetensors")).unwrap()),
        ("state is no JSON", |dir| fs::write(dir.join("state.json"), "{").unwrap()),
    ];
    let whole = tempfile::tempdir().unwrap();
    simply(&plan(Method::Lora, whole.path()), false).unwrap();
    let expected = fs::read(whole.path().join("adapter_model.safetensors")).unwrap();
    for (what, damage) in damage {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan(Method::Lora, dir.path());
        simply(&plan, false).unwrap();
        // Nine steps, saved every two and at the end, the newest two kept.
        assert!(!dir.path().join("checkpoint-6").exists());
        damage(&dir.path().join("checkpoint-9"));
        let events = RefCell::new(Vec::new());
        let note = |event: &Event| events.borrow_mut().push(event.clone());
        go(&plan, &mut decoder(), &data(&plan), true, note, &AtomicBool::new(false)).unwrap();
        let events = events.into_inner();
        let warned =
            |e: &Event| matches!(e, Event::Warning { message } if message.contains("checkpoint-9"));
        assert!(events.iter().any(warned), "{what}: {events:?}");
        assert!(events.iter().any(|e| matches!(e, Event::Resumed { step: 8, .. })), "{what}");
        let found = fs::read(dir.path().join("adapter_model.safetensors")).unwrap();
        assert!(found == expected, "{what}");

        damage(&dir.path().join("checkpoint-8"));
        damage(&dir.path().join("checkpoint-9"));
        let error = simply(&plan, true).unwrap_err();
        assert!(
            matches!(error, TrainError::NoUsableCheckpoint { count: 2, .. }),
            "{what}: {error}"
        );
    }
}

/// One bit anywhere in the state: in a number, a name, a digest, a setting of the plan.
#[test]
fn a_flipped_bit_in_the_state_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(Method::Lora, dir.path());
    simply(&plan, false).unwrap();
    let file = dir.path().join("checkpoint-9/state.json");
    let whole = fs::read(&file).unwrap();
    for at in (0..whole.len()).step_by(whole.len() / 40) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&file, &bytes).unwrap();
        let mut fell_back = false;
        let note = |event: &Event| fell_back |= matches!(event, Event::Resumed { step: 8, .. });
        go(&plan, &mut decoder(), &data(&plan), true, note, &AtomicBool::new(false)).unwrap();
        assert!(
            fell_back,
            "byte {at}: {}",
            String::from_utf8_lossy(&bytes[at.max(30) - 30..at + 1])
        );
    }
}

#[test]
fn output_folder_is_not_overwritten_or_shared() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(Method::Lora, dir.path());
    simply(&plan, false).unwrap();
    let error = simply(&plan, false).unwrap_err();
    assert!(matches!(error, TrainError::OutputTaken { .. }), "{error}");
    let lock = fs::File::open(dir.path().join(".train.lock")).unwrap();
    lock.try_lock().unwrap();
    let error = simply(&plan, true).unwrap_err();
    assert!(matches!(error, TrainError::OutputLocked(_)), "{error}");
}

#[test]
fn values_that_are_not_finite_stop_the_run_and_are_not_saved() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(Method::Lora, dir.path());
    let data = TrainData::from_rows(rows(10, 0), vec![], &[STOP], None, &plan).unwrap();
    // The embedding of a token that only one example holds.
    let count =
        |id: u32| data.train.iter().filter(|r| r.ids[..r.input_len()].contains(&id)).count();
    let token = (3..64).find(|&id| count(id) == 1).unwrap();
    let holder = data.train.iter().find(|r| r.ids[..r.input_len()].contains(&token)).unwrap();
    let mut broken = decoder_with(|name, p| {
        if name.contains("embed_tokens") {
            p[token as usize * 32] = f32::NAN;
        }
    });
    let error = go(&plan, &mut broken, &data, false, |_| {}, &AtomicBool::new(false)).unwrap_err();
    let TrainError::NonFinite { examples, .. } = &error else { panic!("{error}") };
    assert_eq!(examples, &holder.id);
    assert!(!dir.path().join("adapter_model.safetensors").exists());
}

#[test]
fn examples_that_are_not_finite_are_named_as_those_of_their_own_run() {
    let root = tempfile::tempdir().unwrap();
    let provenance = Provenance::default();
    // Runs of one and of two rows per example share a batch, and only single rows are broken.
    let sft = TrainPlan {
        micro_batch_tokens: 10_000,
        step_size: StepSize::Rows(10),
        ..plan(Method::Lora, &root.path().join("sft"))
    };
    let sft_data = TrainData::from_rows(rows(10, 0), vec![], &[STOP], None, &sft).unwrap();
    let defaults = TrainPlan::new(Method::Lora, Objective::Dpo, &config());
    let dpo = TrainPlan {
        objective: Objective::Dpo,
        loss_type: defaults.loss_type,
        beta: defaults.beta,
        output_dir: root.path().join("dpo"),
        ..sft.clone()
    };
    let judged = judged(3, Objective::Dpo);
    let dpo_data = TrainData::from_rows(judged, vec![], &[STOP], None, &dpo).unwrap();
    let holders = |data: &TrainData, id: u32| -> Vec<String> {
        let held = data.train.iter().filter(|r| r.ids[..r.input_len()].contains(&id));
        held.map(|r| r.id.clone()).collect()
    };
    // Late in its own run, so that an index of the other's form would reach beyond its end.
    let token = (3..64)
        .find(|&id| {
            holders(&dpo_data, id).is_empty() && holders(&sft_data, id) == ["example-9".to_owned()]
        })
        .unwrap();
    let mut broken = decoder_with(|name, p| {
        if name.contains("embed_tokens") {
            p[token as usize * 32] = f32::NAN;
        }
    });
    for order in [[0, 1], [1, 0]] {
        let jobs = [
            Job { plan: &sft, data: &sft_data, provenance: &provenance },
            Job { plan: &dpo, data: &dpo_data, provenance: &provenance },
        ];
        let jobs = order.map(|i| jobs[i]);
        let never = AtomicBool::new(false);
        let error = run_together(&jobs, &mut broken, false, &mut |_, _| {}, &never).unwrap_err();
        let TrainError::NonFinite { examples, .. } = &error else { panic!("{error}") };
        assert_eq!(examples, "example-9");
    }
}

#[test]
fn parameters_that_do_not_move_stop_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let base = plan(Method::Lora, dir.path());
    // Behind an output projection of zeros nothing of attention can be learnt at once.
    let mut cut_off = decoder_with(|name, p| {
        if name == "model.layers.1.self_attn.o_proj.weight" {
            p.fill(0.0);
        }
    });
    let error =
        go(&base, &mut cut_off, &data(&base), false, |_| {}, &AtomicBool::new(false)).unwrap_err();
    let TrainError::DidNotMove { step: 1, count: 3, side: "lora_B", modules } = &error else {
        panic!("{error}")
    };
    assert!(modules.contains("model.layers.1.self_attn.v_proj"), "{modules}");

    let dir = tempfile::tempdir().unwrap();
    let too_small = TrainPlan { learning_rate: 1e-30, ..plan(Method::Lora, dir.path()) };
    let error = simply(&too_small, false).unwrap_err();
    assert!(matches!(error, TrainError::DidNotMove { step: 2, side: "lora_A", .. }), "{error}");

    let dir = tempfile::tempdir().unwrap();
    let too_small = TrainPlan { learning_rate: 1e-30, ..plan(Method::Full, dir.path()) };
    let error = simply(&too_small, false).unwrap_err();
    assert!(matches!(error, TrainError::DidNotMove { step: 2, side: "matrices", .. }), "{error}");
}

#[test]
fn rows_are_guarded() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(Method::Lora, dir.path());
    let check = |change: fn(&mut Vec<Row>), plan: &TrainPlan| {
        let mut changed = rows(40, 0);
        change(&mut changed);
        TrainData::from_rows(changed, vec![], &[STOP], Some(1), plan)
    };
    let message = |change: fn(&mut Vec<Row>)| check(change, &plan).unwrap_err().to_string();

    let no_stop = message(|rows| {
        rows[3].ids.pop();
        rows[3].mask.pop();
    });
    assert!(
        no_stop.starts_with("example-3: the learnt part") && no_stop.contains("stop"),
        "{no_stop}"
    );
    // Also where it is not the last answer of the conversation.
    let inner = message(|rows| {
        let at = rows[5].mask.iter().position(|&m| m).unwrap();
        rows[5].mask[at + 1] = false;
    });
    assert!(inner.starts_with("example-5: "), "{inner}");
    let two_starts = message(|rows| rows[7].ids[1] = 1);
    assert!(two_starts.contains("occurs 2 times"), "{two_starts}");

    // One row in forty is below the share of 5 %, three are above.
    let one = check(|rows| rows[0].mask.fill(false), &plan).unwrap();
    assert_eq!((one.train_report.rows, one.train_report.unsupervised), (39, 1));
    let three = message(|rows| rows[..3].iter_mut().for_each(|r| r.mask.fill(false)));
    assert!(three.contains("3 of 40 rows") && three.contains("example-0, example-1"), "{three}");
    let short = TrainPlan { max_length: 10, ..plan.clone() };
    let long = check(|_| {}, &short).unwrap_err().to_string();
    assert!(long.contains("longer than max_length = 10"), "{long}");
    assert!(matches!(check(Vec::clear, &plan), Err(TrainError::NoData(_))));
}

#[test]
fn best_weights_are_those_of_a_run_that_stops_there() {
    let made = |max_steps: u64, load_best_model_at_end: bool| {
        let dir = tempfile::tempdir().unwrap();
        let plan = TrainPlan {
            max_steps,
            load_best_model_at_end,
            lr_scheduler_type: SchedulerType::Constant,
            warmup_ratio: 0.0,
            eval_steps: 1,
            ..plan(Method::Lora, dir.path())
        };
        let outcome = simply(&plan, false).unwrap();
        let adapter = model::LoraAdapter::load(dir.path(), &decoder()).unwrap();
        (outcome, adapter.params)
    };
    let (outcome, best) = made(30, true);
    let (step, last) = (outcome.best.unwrap(), outcome.held_out.unwrap());
    // Unrelated held-out rows: the loss must rise while the training set is learnt by heart.
    assert!(step.step < 30 && step.loss < last.loss, "{outcome:?}");
    assert!(best == made(step.step, false).1);
    assert!(best != made(30, false).1);
}

/// What is drawn follows the log: every number of a step once, also when a run is resumed, or begun
/// anew because there was no checkpoint to resume from.
#[test]
fn event_files_hold_each_step_once() {
    let scalars = |dir: &Path, tag: &str| -> Vec<i64> {
        let all = train::read_scalars(&dir.join(train::TENSORBOARD_FILE)).unwrap();
        all.into_iter().filter(|s| s.tag == tag).map(|s| s.step).collect()
    };
    let evaluated = |dir: &Path| -> Vec<i64> {
        let events = log_events(dir).into_iter().filter_map(|e| match e {
            Event::Evaluation { held_out, .. } => Some(held_out.step as i64),
            _ => None,
        });
        events.collect()
    };
    for save_steps in [0, 2] {
        let dir = tempfile::tempdir().unwrap();
        let report_to = vec![train::ReportTo::Tensorboard];
        let plan =
            TrainPlan { max_steps: 5, save_steps, report_to, ..plan(Method::Lora, dir.path()) };
        simply(&plan, false).unwrap();
        let once: Vec<i64> = (1..=5).collect();
        assert_eq!(scalars(dir.path(), "train/loss"), once);
        if save_steps > 0 {
            // Back to the checkpoint of step 4.
            fs::remove_dir_all(dir.path().join("checkpoint-5")).unwrap();
        }
        simply(&plan, true).unwrap();
        assert_eq!(scalars(dir.path(), "train/loss"), once, "save_steps {save_steps}");
        assert_eq!(scalars(dir.path(), "train/learning_rate"), once);
        assert_eq!(scalars(dir.path(), "eval/loss"), [0, 2, 4, 5], "save_steps {save_steps}");
        assert_eq!(evaluated(dir.path()), [0, 2, 4, 5], "save_steps {save_steps}");
        assert_eq!(logged_steps(dir.path()), [1, 2, 3, 4, 5]);
    }
}

/// A text that no row is like: of some pieces all tokens count, of some a part.
fn general() -> GeneralText {
    let piece = |n: u32| {
        let ids: Vec<u32> = (0..12 + n).map(|p| 3 + (n * 19 + p * p * 3) % 60).collect();
        let mask = (0..ids.len()).map(|p| n.is_multiple_of(2) || p % 3 != 1).collect();
        Piece { bytes: ids.len() * 2, ids, mask }
    };
    GeneralText { what: "numbers".into(), pieces: (0..5).map(piece).collect() }
}

/// All logits of a piece, [T, V].
fn all_logits(decoder: &Decoder, adapter: Option<&model::LoraAdapter>, ids: &[u32]) -> Vec<f32> {
    let mut adapters = model::AdapterSet::new();
    let slot = adapter.map(|lora| adapters.insert("a", lora, decoder).unwrap());
    let batch = model::Batch {
        tokens: ids.to_vec(),
        segments: vec![model::Segment { len: ids.len(), adapter: slot, ..Default::default() }],
        logit_rows: (0..ids.len()).collect(),
    };
    let mut tape = model::Tape::new(decoder.config(), model::TapeMode::Recompute);
    let memory = model::Memory::Tape(&mut tape);
    decoder.logits(&decoder.forward(&batch, &adapters, memory).unwrap())
}

/// Losses and divergence of the general text, as their definitions say: softmax in f64 over the whole
/// vocabulary, tokens one after the other.
#[test]
fn what_was_forgotten_is_told_by_losses_and_divergence_from_full_logits() {
    let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/llama_tiny");
    let base = || Decoder::load(&testdata, &model::LoadOptions::default()).unwrap();
    for method in [Method::Lora, Method::Full] {
        let dir = tempfile::tempdir().unwrap();
        let mut plan = TrainPlan { max_steps: 4, ..plan(method, dir.path()) };
        plan.learning_rate = 3e-2;
        let data = TrainData { general: general(), ..data(&plan) };
        let never = AtomicBool::new(false);
        let found = go(&plan, &mut base(), &data, false, |_| {}, &never).unwrap().guard.unwrap();

        let base = base();
        let (trained, adapter) = match method {
            Method::Lora => (None, Some(model::LoraAdapter::load(dir.path(), &base).unwrap())),
            Method::Full => {
                (Some(Decoder::load(dir.path(), &model::LoadOptions::default()).unwrap()), None)
            }
        };
        let v = base.config().vocab_size;
        let softmax = |logits: &[f32]| -> Vec<f64> {
            let e: Vec<f64> = logits.iter().map(|x| f64::from(*x).exp()).collect();
            let sum: f64 = e.iter().sum();
            e.iter().map(|x| x / sum).collect()
        };
        let (mut losses, mut kl, mut n, mut bytes) = ([0.0; 2], 0.0, 0.0, 0);
        for piece in &data.general.pieces {
            let a = all_logits(&base, None, &piece.ids);
            let b = all_logits(trained.as_ref().unwrap_or(&base), adapter.as_ref(), &piece.ids);
            bytes += piece.bytes;
            for t in (1..piece.ids.len()).filter(|&t| piece.mask[t]) {
                let row = (t - 1) * v..t * v;
                let (p, q) = (softmax(&a[row.clone()]), softmax(&b[row]));
                let target = piece.ids[t] as usize;
                losses[0] -= p[target].ln();
                losses[1] -= q[target].ln();
                kl += p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum::<f64>();
                n += 1.0;
            }
        }
        let near = |found: f64, expected: f64, what: &str| {
            let close = (found - expected).abs() <= 1e-5 * expected.abs().max(1e-3);
            assert!(close, "{method:?}: {what}: found {found}, expected {expected}");
        };
        assert_eq!((found.tokens, found.kl_tokens, found.pieces), (n as u64, n as u64, 5));
        near(found.loss_before, losses[0] / n, "loss before");
        near(found.loss_after, losses[1] / n, "loss after");
        near(found.kl, kl / n, "divergence");
        let bits = |loss: f64| loss / std::f64::consts::LN_2 / bytes as f64;
        near(found.bits_per_byte_before.unwrap(), bits(losses[0]), "bits per byte before");
        near(found.bits_per_byte_after.unwrap(), bits(losses[1]), "bits per byte after");
        assert!(found.kl > 1e-3 && found.loss_after != found.loss_before, "{found:?}");
        let [lo, hi] = found.difference_interval.unwrap();
        near((lo + hi) / 2.0, (losses[1] - losses[0]) / n, "middle of the interval");
        let manifest = fs::read(dir.path().join(MANIFEST_FILE)).unwrap();
        let manifest: Manifest = serde_json::from_slice(&manifest).unwrap();
        assert_eq!(manifest.guard.as_ref(), Some(&found));
        assert!(log_events(dir.path()).contains(&Event::Guard(found)));
    }
}

#[test]
fn telling_what_was_forgotten_changes_no_bit_and_survives_a_resume() {
    let never = AtomicBool::new(false);
    for (name, plan, data) in every_way(Path::new("unused")) {
        if !["lora+", "Dpo Lora", "Dpo Full", "Kto Lora"].contains(&name.as_str()) {
            continue;
        }
        let file = weights_file(plan.method);
        let with = TrainData { general: general(), ..data.clone() };
        let run = |data: &TrainData, stop_at: Option<u64>| {
            let dir = tempfile::tempdir().unwrap();
            let plan = TrainPlan { output_dir: dir.path().to_owned(), ..plan.clone() };
            if let Some(stop_at) = stop_at {
                let cancel = AtomicBool::new(false);
                let stop = |event: &Event| {
                    // Also while it is being measured: at the end of the last step.
                    let now = matches!(event, Event::Step { step, .. } if *step == stop_at);
                    cancel.fetch_or(now, Ordering::Relaxed);
                };
                let first = go(&plan, &mut decoder(), data, false, stop, &cancel).unwrap();
                assert_eq!(first.status, TrainStatus::Interrupted, "{name}");
                assert_eq!(first.guard, None);
            }
            let resume = stop_at.is_some();
            let outcome = go(&plan, &mut decoder(), data, resume, |_| {}, &never).unwrap();
            // Resumed once more, the end is reached again and said once.
            go(&plan, &mut decoder(), data, true, |_| {}, &never).unwrap();
            let told = log_events(dir.path());
            let told = told.iter().filter(|e| matches!(e, Event::Guard(_))).count();
            assert_eq!(told, usize::from(!data.general.pieces.is_empty()), "{name}");
            (fs::read(dir.path().join(file)).unwrap(), outcome.guard)
        };
        let (bytes, nothing) = run(&data, None);
        assert_eq!(nothing, None);
        let (same, told) = run(&with, None);
        assert!(bytes == same, "{name}: the weights differ");
        let told = told.unwrap();
        assert!(told.kl > 0.0 && told.step > 0, "{name}: {told:?}");
        for stop_at in [2, 5] {
            let (same, again) = run(&with, Some(stop_at));
            assert!(bytes == same, "{name}: the weights differ after a resume");
            assert_eq!(again.as_ref(), Some(&told), "{name}");
        }
    }
}

#[test]
fn each_of_several_runs_has_its_own_general_text() {
    let root = tempfile::tempdir().unwrap();
    let provenance = Provenance::default();
    let plans: Vec<TrainPlan> = (0..2)
        .map(|i| TrainPlan {
            seed: i,
            max_steps: 3 + i,
            ..plan(Method::Lora, &root.path().join(i.to_string()))
        })
        .collect();
    let mut other = general();
    other.pieces.truncate(2);
    let data: Vec<TrainData> = plans
        .iter()
        .zip([general(), other])
        .map(|(plan, general)| TrainData { general, ..data(plan) })
        .collect();
    let jobs: Vec<Job<'_>> = plans
        .iter()
        .zip(&data)
        .map(|(plan, data)| Job { plan, data, provenance: &provenance })
        .collect();
    let never = AtomicBool::new(false);
    let outcomes = run_together(&jobs, &mut decoder(), false, &mut |_, _| {}, &never).unwrap();
    for (i, outcome) in outcomes.iter().enumerate() {
        let alone = tempfile::tempdir().unwrap();
        let plan = TrainPlan { output_dir: alone.path().to_owned(), ..plans[i].clone() };
        let single = go(&plan, &mut decoder(), &data[i], false, |_| {}, &never).unwrap();
        assert!(outcome.guard.is_some());
        assert_eq!(single.guard, outcome.guard);
    }
}

#[test]
fn a_general_text_that_tells_nothing_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let plan = TrainPlan { max_steps: 2, ..plan(Method::Lora, dir.path()) };
    let mut general = general();
    general.pieces.iter_mut().for_each(|piece| piece.mask.fill(false));
    let data = TrainData { general, ..data(&plan) };
    let never = AtomicBool::new(false);
    let outcome = go(&plan, &mut decoder(), &data, false, |_| {}, &never).unwrap();
    assert_eq!((outcome.status, outcome.guard), (TrainStatus::Completed, None));
    let warned = |e: &Event| matches!(e, Event::Warning { message } if message.contains("numbers"));
    assert!(log_events(dir.path()).iter().any(warned));
}
