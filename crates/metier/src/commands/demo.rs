//! `metier demo`: the whole loop on the bundled base and sample trade.

use super::eval::evaluate;
use crate::assets;
use crate::cli::{DemoArgs, WeightArgs};
use crate::exit;
use crate::machine;
use crate::progress::{TrainBar, clock};
use crate::resolve::{self, Adapter, Base, NANO};
use ::data::{
    CheckOptions, DataReport, DedupOptions, Example, ReadOptions, SplitOptions, TokenCounter,
};
use ::eval::{
    CandidateResult, CostPlan, DataSummary, Decision, EvalItem, EvalResult, FileDigest, Licence,
    LossPoint, MachinePrice, Measurement, Report, TrainSummary, stats::PairedOptions,
};
use ::train::{
    Event, Method, Objective, Provenance, TrainData, TrainOutcome, TrainPlan, TrainStatus,
};
use anyhow::{Context, Result, bail};
use model::{Decoder, KvDtype, LoadOptions};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// The metric that decides: the mean share of ticket fields that are exactly right.
const METRIC: &str = "json_field_accuracy";
const METRICS: [&str; 3] = [METRIC, "json_exact", "json_valid"];
/// The gain that must be exceeded for "worth it", as a share.
const MARGIN: f64 = 0.1;
/// Longest answer: the longest ticket has half as many tokens.
const MAX_TOKENS: usize = 160;
/// Name of the adapter in reports and requests.
const ADAPTED: &str = "tickets";

pub(super) fn run(args: &DemoArgs) -> Result<ExitCode> {
    let started = Instant::now();
    let demo = Demo::prepare(&args.dir)?;

    step(1, "the data: messages to a repair firm, each with its dispatch ticket");
    let (data_report, train, test) = demo.check_data()?;

    step(2, "the base model before adapting");
    let base = Base::load(NANO, WeightArgs::default())?;
    let items = test.iter().map(EvalItem::from_example).collect::<Result<Vec<_>, _>>()?;
    let metrics = ::eval::metrics_by_name(&METRICS)?;
    let before = evaluate(&base, None, items.clone(), metrics.clone(), MAX_TOKENS, KvDtype::F32)?;
    print_scores(&before)?;

    step(3, "adapting it (LoRA on all linear layers)");
    let training = demo.train(&base, train)?;

    step(4, "the adapted model on the same sealed test set");
    let adapter = Adapter::load(ADAPTED, &demo.adapter_dir, &base)?;
    let after = evaluate(&base, Some(&adapter), items, metrics, MAX_TOKENS, KvDtype::F32)?;
    print_scores(&after)?;

    step(5, "the verdict");
    let mut candidates = before.candidates;
    candidates.extend(after.candidates);
    let result = EvalResult { items: after.items, metrics: after.metrics, candidates };
    let report = demo.report(&base, &result, &data_report, training)?;
    for candidate in &result.candidates {
        result.write_answers(
            candidate,
            &demo.dir.join(format!("answers_{}.jsonl", candidate.name)),
        )?;
    }
    report.write(&demo.dir)?;
    eprintln!("{}:", report.verdict.title());
    report.sentences.iter().for_each(|s| eprintln!("  {s}"));
    if args.json {
        print!("{}", report.to_json()?);
    }
    demo.print_next(started.elapsed().as_secs_f64());
    Ok(exit::done())
}

/// What the training of the demo gave.
struct Training {
    outcome: TrainOutcome,
    curve: Vec<LossPoint>,
    train_rows: usize,
    valid_rows: usize,
}

struct Demo {
    dir: PathBuf,
    adapter_dir: PathBuf,
    train_file: PathBuf,
    test_file: PathBuf,
}

impl Demo {
    /// Unpacks the sample trade. What an earlier demo left in the same folder is replaced; a
    /// folder that holds something else is not touched.
    fn prepare(dir: &Path) -> Result<Demo> {
        let adapter_dir = dir.join("adapter");
        if adapter_dir.exists() {
            let ours =
                [::train::LOG_FILE, ".train.lock"].iter().any(|f| adapter_dir.join(f).exists());
            if !ours {
                bail!(
                    "{}: exists and is not from a demo\nhint: choose another --dir",
                    adapter_dir.display()
                );
            }
            std::fs::remove_dir_all(&adapter_dir)
                .with_context(|| adapter_dir.display().to_string())?;
        }
        let demo = Demo {
            adapter_dir,
            train_file: dir.join("data/train.jsonl"),
            test_file: dir.join("data/test.jsonl"),
            dir: dir.to_owned(),
        };
        model::write_atomic(&demo.train_file, &assets::read("trade/train.jsonl")?)?;
        model::write_atomic(&demo.test_file, &assets::read("trade/test.jsonl")?)?;
        Ok(demo)
    }

    fn check_data(&self) -> Result<(DataReport, Vec<Example>, Vec<Example>)> {
        let dir = resolve::model_dir(NANO)?;
        let config = model::DecoderConfig::load(&dir)?;
        let (tokenizer, template) = resolve::load_text(&dir, &config)?;
        let counter = TokenCounter {
            tokenizer: &tokenizer,
            template: &template,
            limit: config.max_position_embeddings,
        };
        let files = [self.train_file.clone()];
        let report =
            ::data::check(&files, Some(&self.test_file), &CheckOptions::default(), Some(counter))?;
        report.write(&self.dir.join("data_report.json"))?;
        for (set, s) in &report.tokens {
            eprintln!(
                "  {set}: {} examples, {} tokens, {} of them learnt",
                s.rows, s.total, s.supervised
            );
        }
        let leaks: usize = report.leaks.iter().map(|l| l.report.total()).sum();
        let d = &report.duplicates;
        eprintln!(
            "  duplicates: {}, test examples leaked into training: {leaks}",
            d.exact + d.normalised
        );
        if !report.blocking.is_empty() {
            bail!("the sample data does not pass its check: {}", report.blocking.join("; "));
        }
        let options = ReadOptions::default();
        let train = ::data::read(&self.train_file, &options)?;
        let (train, _) = ::data::deduplicate(train, &DedupOptions::default());
        let test = ::data::read(&self.test_file, &options)?;
        Ok((report, train, test))
    }

    fn train(&self, base: &Base, examples: Vec<Example>) -> Result<Training> {
        let mut decoder = Decoder::load(&base.dir, &LoadOptions::default())?;
        let mut plan = TrainPlan::new(Method::Lora, Objective::Sft, decoder.config());
        plan.output_dir = self.adapter_dir.clone();
        plan.num_train_epochs = 2.0;
        plan.gradient_checkpointing = false;
        plan.eval_steps = 100;
        let split = SplitOptions {
            valid_fraction: 0.03,
            test_fraction: 0.0,
            near_threshold: None,
            ..SplitOptions::default()
        };
        let (split, _) = ::data::split(examples, &split)?;
        let data = TrainData::from_conversations(
            &split.train,
            &split.valid,
            &base.tokenizer,
            &base.template,
            &plan,
        )?;
        let provenance = Provenance {
            base_name: NANO.to_owned(),
            base_licence: base.license(),
            data_files: vec!["trade/train.jsonl (bundled)".into()],
            data_licences: vec!["Apache-2.0 OR MIT (generated)".into()],
            generated_by: Vec::new(),
            kept_apart: Vec::new(),
            tokenizer_sha256: base.tokenizer.sha256().to_owned(),
            chat_template: base.template.source().to_owned(),
            copied_files: Vec::new(),
        };
        let mut bar = TrainBar::default();
        let mut curve: Vec<LossPoint> = Vec::new();
        let mut observe = |event: &Event| {
            bar.event(event);
            match event {
                Event::Step { step, loss, .. } => {
                    curve.push(LossPoint { step: *step, loss: Some(*loss), held_out: None });
                }
                Event::Evaluation { held_out, .. } => {
                    curve.push(LossPoint {
                        step: held_out.step,
                        loss: None,
                        held_out: Some(held_out.loss),
                    });
                }
                _ => {}
            }
        };
        // Ctrl-C simply ends the demo: there is nothing in it worth resuming.
        let cancel = AtomicBool::new(false);
        let outcome =
            ::train::run(&plan, &mut decoder, &data, &provenance, false, &mut observe, &cancel)?;
        if outcome.status != TrainStatus::Completed {
            bail!("the training ended early: {:?}", outcome.status);
        }
        eprintln!(
            "  {} steps in {}, {:.0} tokens/s",
            outcome.step,
            clock(outcome.seconds),
            outcome.tokens as f64 / outcome.seconds.max(1e-9)
        );
        Ok(Training {
            outcome,
            curve,
            train_rows: data.train_report.rows,
            valid_rows: data.held_out_report.rows,
        })
    }

    fn report(
        &self,
        base: &Base,
        result: &EvalResult,
        data: &DataReport,
        training: Training,
    ) -> Result<Report> {
        let Training { outcome, curve, train_rows, valid_rows } = training;
        let (before, after) = (&result.candidates[0], &result.candidates[1]);
        let options = PairedOptions::default();
        let mut comparisons = Vec::new();
        for metric in METRICS {
            let paired = ::eval::compare(before, after, result.metric(metric)?, &options)?;
            comparisons.push(::eval::comparison_report(metric, &before.name, &after.name, &paired));
        }
        let index = result.metric(METRIC)?;
        let paired = ::eval::compare(before, after, index, &options)?;
        let mut candidates = ::eval::candidate_reports(result)?;
        let machine = machine::detect();
        for candidate in &mut candidates {
            if let (Some(traffic), Some(speed)) = (candidate.traffic, candidate.tokens_per_second) {
                candidate.set_cost(rented_server(speed).cost(&traffic)?);
            }
        }
        let leaks: usize = data.leaks.iter().map(|l| l.report.total()).sum();
        let blockers: Vec<String> = (leaks > 0)
            .then(|| format!("{leaks} test examples are in the training data"))
            .into_iter()
            .collect();
        let decision = Decision {
            a: &before.name,
            b: &after.name,
            metric: result.metrics[index],
            score_a: candidates[0].metrics[METRIC].value,
            score_b: candidates[1].metrics[METRIC].value,
            paired: &paired,
            margin: MARGIN,
            blockers: &blockers,
            cost_a: candidates[0].cost.as_ref(),
            cost_b: candidates[1].cost.as_ref(),
        };
        Ok(Report {
            schema_version: ::eval::SCHEMA_VERSION,
            verdict: ::eval::decide(&decision),
            sentences: ::eval::sentences(&decision),
            metric: METRIC.to_owned(),
            margin: MARGIN,
            title: "Dispatch tickets from a repair firm's messages: metier-nano, before and after adapting".into(),
            created: now(),
            program: format!("metier {}", env!("CARGO_PKG_VERSION")),
            comparisons,
            fields: ::eval::field_reports(result)?,
            examples: ::eval::example_reports(result, index, 10),
            train: Some(TrainSummary {
                tokens_per_second: outcome.tokens as f64 / outcome.seconds.max(1e-9),
                peak_rss_bytes: machine::peak_rss_bytes(),
                seconds: outcome.seconds,
                steps: outcome.step,
                method: "LoRA, rank 32, alpha 64, on all linear layers".into(),
                curve,
            }),
            measurements: candidates
                .iter()
                .filter_map(|c| {
                    Some(Measurement {
                        what: format!("{}: tokens of prompts and answers per second, {} examples", c.name, result.items.len()),
                        value: format!("{:.0}", c.tokens_per_second?),
                        how: format!("wall time of this evaluation on this machine, {:.1} s", c.seconds),
                    })
                })
                .collect(),
            candidates,
            machine,
            data: Some(DataSummary {
                train_rows,
                valid_rows,
                test_rows: result.items.len(),
                duplicates_removed: data.duplicates.exact + data.duplicates.normalised,
                leaks,
                leak_check: "Every test message was compared with every training message: exactly, after \
                             normalising, and by overlap of three-word sequences (threshold 0.8)."
                    .into(),
            }),
            licences: vec![
                Licence { what: "base model metier-nano".into(), licence: base.license() },
                Licence { what: "sample trade".into(), licence: "Apache-2.0 OR MIT (generated)".into() },
            ],
            files: [
                ("data/train.jsonl", &self.train_file),
                ("data/test.jsonl", &self.test_file),
                ("adapter/adapter_model.safetensors", &self.adapter_dir.join("adapter_model.safetensors")),
                ("base/model.safetensors", &base.dir.join("model.safetensors")),
            ]
            .into_iter()
            .map(|(name, path)| {
                let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
                let (sha256, bytes) = (model::sha256_hex(&bytes), bytes.len() as u64);
                let digest = FileDigest { sha256, bytes, path: None };
                Ok((name.to_owned(), digest))
            })
            .collect::<Result<_>>()?,
            plan: None,
            rules: Vec::new(),
            economics: None,
            slices: Vec::new(),
            changed: None,
            judged: Vec::new(),
            confused: Vec::new(),
            without_leaks: None,
            judgements: Vec::new(),
            grades: Vec::new(),
            seal: String::new(),
        })
    }

    fn print_next(&self, seconds: f64) {
        let (dir, adapter) = (self.dir.display(), self.adapter_dir.display());
        println!(
            "
Done in {}. Open {dir}/report.html in a browser.

Serve it:
  metier serve --model nano --adapter {ADAPTED}={adapter}

Ask the server:
  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{{\"model\": \"{ADAPTED}\", \"temperature\": 0, \"messages\": [{{\"role\": \"user\", \"content\": \"Hello, our fridge is leaking, please call 07700 900123. SW1A 1AA\"}}]}}'

Talk to it here:
  metier chat --model nano --adapter {adapter} --temperature 0

The same with a real base from the Hugging Face Hub and your own data:
  metier pull HuggingFaceTB/SmolLM2-135M-Instruct
  metier train --base HuggingFaceTB/SmolLM2-135M-Instruct --data your-train.jsonl --out out/yours
  metier eval --model HuggingFaceTB/SmolLM2-135M-Instruct --adapter out/yours --data your-test.jsonl --metrics {METRIC}

(From the checkout, `metier` is `cargo run --release --`.)",
            clock(seconds)
        );
    }
}

fn step(number: usize, what: &str) {
    eprintln!("\n{number}/5 {what}");
}

fn print_scores(result: &EvalResult) -> Result<()> {
    let candidate: &CandidateResult = result.candidates.last().context("nothing was evaluated")?;
    for (i, metric) in result.metrics.iter().enumerate() {
        let (value, interval) = candidate.summary(&result.metrics, i)?;
        eprintln!(
            "  {:<20} {:5.1} %  [{:.1}, {:.1}]",
            metric.name,
            100.0 * value,
            100.0 * interval.lo,
            100.0 * interval.hi
        );
    }
    Ok(())
}

/// A dedicated CPU server, as an example of a price; the report states it as an assumption.
fn rented_server(tokens_per_second: f64) -> CostPlan {
    CostPlan::Machine(MachinePrice {
        price_per_hour: 0.089,
        currency: "EUR".into(),
        price_source: "a dedicated CPU server at 65 EUR a month, an assumption; put in your own"
            .into(),
        tokens_per_second,
        tokens_per_second_source: "measured in this evaluation, on this machine".into(),
        utilisation: 0.3,
    })
}

/// The time in UTC, RFC 3339.
fn now() -> String {
    let format = &time::format_description::well_known::Rfc3339;
    let now = time::OffsetDateTime::now_utc();
    now.replace_nanosecond(0).unwrap_or(now).format(format).unwrap_or_default()
}
