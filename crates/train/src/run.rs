//! The training loop.

use crate::checkpoint::{self, Identity, State, Tensors};
use crate::error::TrainError;
use crate::events::{Event, HeldOut, Observer};
use crate::guard;
use crate::manifest::{CHAT_TEMPLATE_FILE, MANIFEST_FILE, Manifest, Provenance};
use crate::objective::Learner;
use crate::optimizer::{AdamW, clip_factor, global_norm};
use crate::output::Output;
use crate::pack::{MicroBatch, Sampler, micro_batches};
use crate::plan::{Method, TrainPlan};
use crate::rows::TrainData;
use crate::schedule::Schedule;
use crate::trainable::Trainable;
use model::{Decoder, Tape};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrainStatus {
    /// All steps were done.
    Completed,
    /// `max_seconds` passed; the result is on disk.
    TimeLimit,
    /// The cancel flag was raised; a checkpoint is on disk, the result is not.
    Interrupted,
}

/// What came of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainOutcome {
    /// How it ended.
    pub status: TrainStatus,
    /// Folder of the result.
    pub output_dir: PathBuf,
    /// Optimizer steps done, of how many.
    pub step: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Loss of the last step.
    pub train_loss: f64,
    /// Held-out loss before the first step; None without held-out rows.
    pub held_out_before: Option<HeldOut>,
    /// Held-out loss after the last step.
    pub held_out: Option<HeldOut>,
    /// Lowest held-out loss on the way.
    pub best: Option<HeldOut>,
    /// Tokens that went through the model, earlier parts of the run included.
    pub tokens: u64,
    /// Targets learnt from.
    pub supervised_tokens: u64,
    /// Seconds of training (without held-out loss and files), earlier parts included.
    pub seconds: f64,
}

/// Trains as `plan` says and writes the result into its `output_dir`: a PEFT adapter or a Hugging
/// Face model, with chat template, manifest and log.
///
/// The same plan, data and base give the same weights, bit by bit, on any number of threads, and
/// also when the run is killed and continued with `resume` (which starts anew when there is no
/// checkpoint yet). After full fine-tuning `decoder` holds the trained weights.
///
/// # Errors
/// [`TrainError`]; what was trained up to the newest checkpoint stays.
pub fn run(
    plan: &TrainPlan,
    decoder: &mut Decoder,
    data: &TrainData,
    provenance: &Provenance,
    resume: bool,
    observer: &mut dyn Observer,
    cancel: &AtomicBool,
) -> Result<TrainOutcome, TrainError> {
    plan.validate(decoder.config())?;
    let mut run = Run::open(plan, decoder, data, provenance, resume, observer)?;
    run.start(resume)?;
    let status = loop {
        if run.evaluation_is_due() && !run.evaluate(cancel)? {
            break TrainStatus::Interrupted;
        }
        let step = run.state.step;
        // After the evaluation, so that a resumed run does not do it again.
        if step > 0 && due(step, plan.save_steps) {
            run.save_checkpoint()?;
        }
        if step == run.total_steps {
            break TrainStatus::Completed;
        }
        if plan.max_seconds > 0 && run.state.seconds >= plan.max_seconds as f64 {
            break TrainStatus::TimeLimit;
        }
        if !run.step(cancel)? {
            break TrainStatus::Interrupted;
        }
    };
    run.finish(status, cancel)
}

/// Everything a run holds.
struct Run<'a> {
    plan: &'a TrainPlan,
    decoder: &'a mut Decoder,
    data: &'a TrainData,
    provenance: &'a Provenance,
    identity: Identity,
    output: Output<'a>,
    trainable: Trainable,
    optimizer: AdamW,
    schedule: Schedule,
    sampler: Sampler<'a>,
    held_out: Vec<MicroBatch>,
    grads: model::Grads,
    tape: Tape,
    total_steps: u64,
    state: State,
    /// Weights of the lowest held-out loss; empty unless the plan wants them.
    best: Vec<f32>,
    /// Step of the newest checkpoint on disk.
    saved_step: Option<u64>,
    pace: Pace,
}

/// What this process has done, for the speed.
#[derive(Default)]
struct Pace {
    seconds: f64,
    tokens: u64,
    steps: u64,
}

impl<'a> Run<'a> {
    fn open(
        plan: &'a TrainPlan,
        decoder: &'a mut Decoder,
        data: &'a TrainData,
        provenance: &'a Provenance,
        resume: bool,
        observer: &'a mut dyn Observer,
    ) -> Result<Run<'a>, TrainError> {
        if data.train.iter().all(|row| row.input_len() == 0) {
            return Err(TrainError::NoData("no row has a token to learn".into()));
        }
        let output = Output::open(&plan.output_dir, resume, observer)?;
        let identity = Identity {
            plan: plan.clone(),
            data_sha256: data.digest(),
            base_sha256: decoder.digest()?.to_owned(),
        };
        let trainable = Trainable::new(plan, decoder)?;
        let optimizer = AdamW::new(
            trainable.params().len(),
            (plan.adam_beta1, plan.adam_beta2),
            plan.adam_epsilon,
            plan.weight_decay,
            trainable.decayed(decoder),
        );
        let sampler = Sampler::new(&data.train, plan);
        let total_steps = sampler.total_steps(plan);
        let warmup_steps = match plan.warmup_steps {
            0 => (plan.warmup_ratio * total_steps as f64).ceil() as u64,
            steps => steps,
        };
        let schedule = Schedule {
            kind: plan.lr_scheduler_type,
            peak: plan.learning_rate,
            min_ratio: plan.min_lr_ratio,
            warmup_steps: warmup_steps.min(total_steps),
            total_steps,
        };
        let all: Vec<usize> = (0..data.held_out.len()).collect();
        Ok(Run {
            held_out: micro_batches(
                &data.held_out,
                &all,
                plan.micro_batch_tokens,
                trainable.slot(),
            ),
            grads: trainable.zero_grads(),
            tape: Tape::new(decoder.config(), plan.tape_mode()),
            plan,
            decoder,
            data,
            provenance,
            identity,
            output,
            trainable,
            optimizer,
            schedule,
            sampler,
            total_steps,
            state: State::default(),
            best: Vec::new(),
            saved_step: None,
            pace: Pace::default(),
        })
    }

    /// Restores the newest checkpoint, if any.
    fn start(&mut self, resume: bool) -> Result<(), TrainError> {
        if resume {
            self.restore()?;
        }
        // Also without a checkpoint: from here on a fully trained base is f32, as after a resume.
        self.trainable.publish(self.decoder)?;
        let report = &self.data.train_report;
        self.output.event(&Event::Start {
            step: self.state.step,
            total_steps: self.total_steps,
            steps_per_epoch: self.sampler.steps_per_epoch(),
            rows: self.data.train.len(),
            tokens: report.tokens,
            held_out_rows: self.data.held_out.len(),
            trainable_parameters: self.trainable.params().len(),
        })?;
        let dropped = report.too_long + report.unsupervised;
        if dropped > 0 {
            let message = format!(
                "{dropped} rows were left out: {} longer than max_length, {} without an answer to learn",
                report.too_long, report.unsupervised
            );
            self.output.event(&Event::Warning { message })?;
        }
        Ok(())
    }

    fn restore(&mut self) -> Result<(), TrainError> {
        let count = self.trainable.params().len();
        let Some(found) = checkpoint::load_newest(&self.output.dir, &self.identity, count)? else {
            self.output.rewind_log(0)?;
            let message = "there is no checkpoint to resume from: starting at step 0".to_owned();
            return self.output.event(&Event::Warning { message });
        };
        self.output.rewind_log(found.state.step)?;
        for problem in found.problems {
            let message = format!("{problem}; taking the checkpoint before it");
            self.output.event(&Event::Warning { message })?;
        }
        self.trainable.params_mut().copy_from_slice(&found.params);
        self.optimizer.exp_avg = found.exp_avg;
        self.optimizer.exp_avg_sq = found.exp_avg_sq;
        self.best = found.best;
        self.state = found.state;
        self.saved_step = Some(self.state.step);
        self.output.event(&Event::Resumed { step: self.state.step, path: found.path })
    }

    /// One optimizer step: forward and backward of each micro-batch, clipping, AdamW. False when
    /// cancelled before its end; nothing has changed then.
    fn step(&mut self, cancel: &AtomicBool) -> Result<bool, TrainError> {
        let started = Instant::now();
        let (rows, step) = (&self.data.train, self.state.step + 1);
        let chosen = self.sampler.step(self.state.step);
        let slot = self.trainable.slot();
        let micros = micro_batches(rows, chosen, self.plan.micro_batch_tokens, slot);
        let tokens: usize = micros.iter().map(|m| m.batch.tokens.len()).sum();
        let targets: usize = micros.iter().map(|m| m.targets.len()).sum();
        // The mean over all targets of the step, however they are cut into micro-batches.
        let weight = 1.0 / targets as f32;
        let mut loss = 0.0;
        self.grads.zero();
        for micro in &micros {
            if cancel.load(Ordering::Relaxed) {
                return Ok(false);
            }
            let adapters = self.trainable.adapters();
            let learner = Learner { decoder: self.decoder, adapters, tape: &mut self.tape };
            let losses = self.plan.objective.backward(learner, micro, weight, &mut self.grads)?;
            loss += guard::finite_sum(&losses, micro, rows, step, "loss")?;
        }
        let grads = self.trainable.grad_slice(&self.grads);
        let grad_norm = global_norm(grads);
        guard::finite_norm(grad_norm, chosen, rows, step)?;
        let scale = clip_factor(grad_norm, self.plan.max_grad_norm);
        let learning_rate = self.schedule.learning_rate(self.state.step);
        self.optimizer.step(self.trainable.params_mut(), grads, scale, learning_rate, step);
        self.trainable.publish(self.decoder)?;
        self.trainable.check_moved(step, self.decoder)?;

        let seconds = started.elapsed().as_secs_f64();
        self.pace.seconds += seconds;
        self.pace.tokens += tokens as u64;
        self.pace.steps += 1;
        self.state.step = step;
        self.state.epoch = step as f64 / self.sampler.steps_per_epoch() as f64;
        self.state.seconds += seconds;
        self.state.tokens += tokens as u64;
        self.state.supervised_tokens += targets as u64;
        self.state.train_loss = loss / targets as f64;
        let event = Event::Step {
            step,
            total_steps: self.total_steps,
            epoch: self.state.epoch,
            loss: self.state.train_loss,
            learning_rate,
            grad_norm,
            tokens: tokens as u64,
            supervised_tokens: targets as u64,
            tokens_per_second: self.pace.tokens as f64 / self.pace.seconds.max(1e-9),
            seconds: self.state.seconds,
            eta_seconds: (self.total_steps - step) as f64 * self.pace.seconds
                / self.pace.steps as f64,
        };
        if step == 1 || step == self.total_steps || due(step, self.plan.logging_steps) {
            self.output.event(&event)?;
        } else {
            self.output.event_unlogged(&event);
        }
        Ok(true)
    }

    /// Whether this step's held-out loss is wanted and not there yet: before the first step, and
    /// every `eval_steps`. Asked again after a resume, so that an interruption loses none.
    fn evaluation_is_due(&self) -> bool {
        let step = self.state.step;
        let wanted = step == 0 || due(step, self.plan.eval_steps);
        wanted && self.state.held_out.is_none_or(|h| h.step != step)
    }

    /// Measures the held-out loss, if there are held-out rows. False when cancelled before its
    /// end; nothing has changed then.
    fn evaluate(&mut self, cancel: &AtomicBool) -> Result<bool, TrainError> {
        if self.held_out.is_empty() {
            return Ok(true);
        }
        let step = self.state.step;
        let (mut sum, mut tokens) = (0.0, 0);
        for micro in &self.held_out {
            if cancel.load(Ordering::Relaxed) {
                return Ok(false);
            }
            let adapters = self.trainable.adapters();
            let learner = Learner { decoder: self.decoder, adapters, tape: &mut self.tape };
            let losses = self.plan.objective.loss(learner, micro)?;
            sum += guard::finite_sum(&losses, micro, &self.data.held_out, step, "held-out loss")?;
            tokens += losses.len() as u64;
        }
        let bytes = self.data.held_out_bytes;
        let held_out = HeldOut {
            step,
            loss: sum / tokens as f64,
            tokens,
            bits_per_byte: (bytes > 0).then(|| sum / std::f64::consts::LN_2 / bytes as f64),
        };
        // The untrained base is no candidate.
        let best = step > 0 && self.state.best.is_none_or(|b| held_out.loss < b.loss);
        if best {
            self.state.best = Some(held_out);
            if self.plan.load_best_model_at_end {
                self.best = self.trainable.params().to_vec();
            }
        }
        if step == 0 {
            self.state.held_out_before = Some(held_out);
        }
        self.state.held_out = Some(held_out);
        self.output.event(&Event::Evaluation { held_out, best })?;
        Ok(true)
    }

    fn save_checkpoint(&mut self) -> Result<(), TrainError> {
        let step = self.state.step;
        if self.saved_step == Some(step) {
            return Ok(());
        }
        let tensors = Tensors {
            params: self.trainable.params(),
            exp_avg: &self.optimizer.exp_avg,
            exp_avg_sq: &self.optimizer.exp_avg_sq,
            best: &self.best,
        };
        let keep = self.plan.save_total_limit;
        let path = checkpoint::save(&self.output.dir, &self.state, &self.identity, &tensors, keep)?;
        self.saved_step = Some(step);
        self.output.event(&Event::Checkpoint { step, path })
    }

    /// Writes the result, or after an interruption a checkpoint.
    fn finish(
        mut self,
        mut status: TrainStatus,
        cancel: &AtomicBool,
    ) -> Result<TrainOutcome, TrainError> {
        let step = self.state.step;
        let measured = self.state.held_out.is_some_and(|h| h.step == step);
        if status != TrainStatus::Interrupted && !measured && !self.evaluate(cancel)? {
            status = TrainStatus::Interrupted;
        }
        if status == TrainStatus::Interrupted {
            self.save_checkpoint()?;
        } else {
            if self.plan.save_steps > 0 {
                self.save_checkpoint()?;
            }
            self.save_result(status)?;
        }
        self.output.event(&Event::End { step, status, seconds: self.state.seconds })?;
        Ok(TrainOutcome {
            status,
            output_dir: self.plan.output_dir.clone(),
            step,
            total_steps: self.total_steps,
            train_loss: self.state.train_loss,
            held_out_before: self.state.held_out_before,
            held_out: self.state.held_out,
            best: self.state.best,
            tokens: self.state.tokens,
            supervised_tokens: self.state.supervised_tokens,
            seconds: self.state.seconds,
        })
    }

    fn save_result(&mut self, status: TrainStatus) -> Result<(), TrainError> {
        let mut saved_step = self.state.step;
        if let (Some(best), false) = (self.state.best, self.best.is_empty()) {
            self.trainable.params_mut().copy_from_slice(&self.best);
            self.trainable.publish(self.decoder)?;
            saved_step = best.step;
        }
        let (dir, provenance) = (&self.output.dir, self.provenance);
        let template = provenance.chat_template.as_bytes();
        let manifest = Manifest {
            schema_version: 1,
            metier_version: env!("CARGO_PKG_VERSION").to_owned(),
            base_name: provenance.base_name.clone(),
            base_sha256: self.identity.base_sha256.clone(),
            base_licence: provenance.base_licence.clone(),
            data_files: provenance.data_files.clone(),
            data_licences: provenance.data_licences.clone(),
            data_sha256: self.identity.data_sha256.clone(),
            tokenizer_sha256: provenance.tokenizer_sha256.clone(),
            chat_template_sha256: if template.is_empty() {
                String::new()
            } else {
                model::sha256_hex(template)
            },
            plan_sha256: self.plan.digest(),
            plan: self.plan.clone(),
            status,
            steps: self.state.step,
            saved_step,
            tokens: self.state.tokens,
            supervised_tokens: self.state.supervised_tokens,
            seconds: self.state.seconds,
            train_loss: self.state.train_loss,
            held_out_before: self.state.held_out_before,
            held_out: self.state.held_out,
            best: self.state.best,
        };
        let metadata: Vec<(String, String)> = [
            ("metier_version", &manifest.metier_version),
            ("metier_data_digest", &manifest.data_sha256),
            ("metier_plan_digest", &manifest.plan_sha256),
            ("metier_tokenizer_digest", &manifest.tokenizer_sha256),
            ("metier_chat_template_digest", &manifest.chat_template_sha256),
        ]
        .map(|(key, value)| (key.to_owned(), value.clone()))
        .to_vec();
        self.trainable.save(
            dir,
            self.decoder,
            &provenance.base_name,
            &self.identity.base_sha256,
            self.plan.save_dtype,
            &metadata,
        )?;
        let full = self.plan.method == Method::Full;
        for file in provenance.copied_files.iter().filter(|_| full) {
            let bytes = fs::read(file).map_err(|e| TrainError::io(file, e))?;
            if let Some(name) = file.file_name() {
                model::write_atomic(&dir.join(name), &bytes)?;
            }
        }
        if !template.is_empty() {
            model::write_atomic(&dir.join(CHAT_TEMPLATE_FILE), template)?;
        }
        // Last, so that a folder with a manifest is a whole result.
        let json = serde_json::to_vec_pretty(&manifest).expect("plain JSON");
        model::write_atomic(&dir.join(MANIFEST_FILE), &json)?;
        Ok(())
    }
}

fn due(step: u64, every: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}
