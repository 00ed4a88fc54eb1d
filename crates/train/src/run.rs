//! The training loop: one run, or several adapters side by side on one base.
//!
//! Each run is a lane with its own plan, data, optimizer, schedule, log and folder. A step of the
//! loop is one optimizer step of every lane that is not done; their rows share the micro-batches,
//! and each lane comes out as if it had been alone, to the bit.

use crate::checkpoint::{self, Identity, State, Tensors};
use crate::divergence::Reader;
use crate::error::{TrainError, name_some};
use crate::events::{Event, HeldOut, Observer, Rewards};
use crate::forgetting::{self, Before, Forgetting, Kept};
use crate::guard;
use crate::guidance::Facts;
use crate::manifest::{CHAT_TEMPLATE_FILE, MANIFEST_FILE, Manifest, Provenance};
use crate::objective::{Answer, Judgement, Learner};
use crate::optimizer::{AdamW, clip_factor, global_norm};
use crate::output::Output;
use crate::pack::{MicroBatch, Packed, Sampler, Share, dropout_key, micro_batches};
use crate::plan::{Method, TrainPlan};
use crate::reference::{References, log_probabilities};
use crate::rows::{Row, TrainData};
use crate::schedule::Schedule;
use crate::trainable::Trainable;
use model::{AdapterSet, Decoder, Grads, Tape};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrainStatus {
    /// All steps were done.
    Completed,
    /// The held-out loss did not fall for `early_stopping_patience` measurements; the result is on
    /// disk.
    EarlyStopped,
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
    /// What it cost in general ability; None when it was not measured.
    pub guard: Option<Forgetting>,
    /// Tokens that went through the model, earlier parts of the run included.
    pub tokens: u64,
    /// Targets learnt from.
    pub supervised_tokens: u64,
    /// Seconds of training (without held-out loss and files), earlier parts included.
    pub seconds: f64,
    /// Three sentences: what happened, whether it learnt, what to try next.
    pub guidance: Vec<String>,
}

/// One of the runs that share a base.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// What it does.
    pub plan: &'a TrainPlan,
    /// Its rows.
    pub data: &'a TrainData,
    /// Where base and data come from.
    pub provenance: &'a Provenance,
}

/// Trains as `plan` says and writes the result into its `output_dir`: a PEFT adapter or a Hugging
/// Face model, with chat template, manifest and log.
///
/// The same plan, data and base give the same weights, bit by bit, on any number of threads, with any
/// `micro_batch_tokens` in LoRA, and also when the run is killed and continued with `resume` (which
/// starts anew when there is no checkpoint yet). After full fine-tuning `decoder` holds the trained
/// weights.
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
    let job = Job { plan, data, provenance };
    let mut observe = |_: usize, event: &Event| observer.event(event);
    let outcomes = run_together(&[job], decoder, resume, &mut observe, cancel)?;
    Ok(outcomes.into_iter().next().expect("one job gives one outcome"))
}

/// Trains several adapters on one base at a time, each as [`run`] would alone: every result has the
/// bits that it has alone. Rows of all share the micro-batches, of the smallest `micro_batch_tokens`
/// among the plans, so that many short rows of several tenants fill what one tenant's would not.
/// `observer` is told with each event which job it belongs to.
///
/// # Errors
/// [`TrainError`] of the first job in trouble, which stops all; what was trained up to their newest
/// checkpoints stays. [`TrainError::Plan`] when several jobs are not all LoRA.
pub fn run_together(
    jobs: &[Job<'_>],
    decoder: &mut Decoder,
    resume: bool,
    observer: &mut dyn FnMut(usize, &Event),
    cancel: &AtomicBool,
) -> Result<Vec<TrainOutcome>, TrainError> {
    for job in jobs {
        job.plan.validate(decoder.config())?;
        if jobs.len() > 1 && job.plan.method != Method::Lora {
            let expected = "lora, where several trainings share a base";
            return Err(TrainError::plan("method", "full", expected));
        }
        // What is rounded must not depend on the company.
        let rounds = |job: &Job<'_>| job.plan.tape_mode() == model::TapeMode::KeepBf16;
        if rounds(job) != rounds(&jobs[0]) {
            let expected = "the same in all trainings that share a base";
            return Err(TrainError::plan("activation_dtype", "different ones", expected));
        }
    }
    let observer = RefCell::new(observer);
    let mut tell: Vec<_> = (0..jobs.len())
        .map(|lane| {
            let observer = &observer;
            move |event: &Event| (observer.borrow_mut())(lane, event)
        })
        .collect();
    let mut adapters = AdapterSet::new();
    let mut grads = Grads::default();
    let mut lanes = Vec::new();
    for (index, (job, tell)) in jobs.iter().zip(&mut tell).enumerate() {
        lanes.push(Lane::open(index, *job, decoder, resume, tell, &mut adapters, &mut grads)?);
    }
    let mode = jobs.first().map_or(model::TapeMode::Recompute, |job| job.plan.tape_mode());
    let tape = Tape::new(decoder.config(), mode);
    let mut group = Group { decoder, adapters, tape, grads, lanes };
    let started = group.start(resume, cancel);
    let ended = started.and_then(|()| group.go(cancel)).and_then(|()| group.finish(cancel));
    ended.map_err(|error| group.stopped(error))
}

/// The runs that share a base.
struct Group<'a> {
    decoder: &'a mut Decoder,
    adapters: AdapterSet,
    tape: Tape,
    grads: Grads,
    lanes: Vec<Lane<'a>>,
}

/// Everything that one run holds for itself.
struct Lane<'a> {
    plan: &'a TrainPlan,
    data: &'a TrainData,
    provenance: &'a Provenance,
    identity: Identity,
    output: Output<'a>,
    trainable: Trainable,
    optimizer: AdamW,
    schedule: Schedule,
    sampler: Sampler,
    /// Of the training and of the held-out rows.
    references: [References; 2],
    held_out: Vec<MicroBatch>,
    total_steps: u64,
    state: State,
    /// What a base that is trained itself made of the general text.
    kept: Option<Kept>,
    /// What the training cost in general ability, at its end.
    guard: Option<Forgetting>,
    /// Weights of the lowest held-out loss; empty unless the plan wants them.
    best: Vec<f32>,
    /// Step of the newest checkpoint on disk.
    saved_step: Option<u64>,
    pace: Pace,
    /// How it ended, once it has.
    ended: Option<TrainStatus>,
}

/// What this process has done, for the speed.
#[derive(Default)]
struct Pace {
    seconds: f64,
    tokens: u64,
    steps: u64,
}

/// How many examples and targets there are: what means are over.
#[derive(Clone, Copy, Default)]
struct Counts {
    examples: u64,
    targets: u64,
    /// Targets of the next-token part.
    nll_targets: u64,
    /// Tokens that go through the model.
    tokens: u64,
}

impl Counts {
    fn add(&mut self, example: &Packed, tokens: usize, plan: &TrainPlan) {
        self.examples += 1;
        self.targets += example.rows.iter().map(|targets| targets.len() as u64).sum::<u64>();
        if plan.objective.nll(plan).weight != 0.0 {
            self.nll_targets += example.rows[0].len() as u64;
        }
        self.tokens += tokens as u64;
    }
}

/// How the gradient and the loss of one lane's examples come out of their cross-entropies.
struct Terms<'a> {
    plan: &'a TrainPlan,
    rows: &'a [Row],
    references: &'a References,
    /// Of the whole step.
    counts: Counts,
    /// KTO's reference point.
    z: f64,
}

impl Terms<'_> {
    /// What the objective makes of the answers of an example; None where it judges none.
    fn judge(&self, example: &Packed, micro: &MicroBatch, losses: &[f32]) -> Option<Judgement> {
        let objective = self.plan.objective;
        if !objective.is_preference() {
            return None;
        }
        let first_row = example.index * example.rows.len();
        let answer = |(n, targets): (usize, &Range<usize>)| {
            let own = targets.clone().filter(|&t| micro.in_answer[t]);
            let (tokens, loss) =
                own.fold((0.0, 0.0), |(n, sum), t| (n + 1.0, sum + losses[t] as f64));
            Answer { logp: -loss, reference: self.references.of(first_row + n), tokens }
        };
        let answers: Vec<Answer> = example.rows.iter().enumerate().map(answer).collect();
        objective.judge(self.plan, &answers, self.rows[first_row].wanted, self.z)
    }

    /// Sets the weights that the cross-entropies of an example's targets have in the loss.
    fn weigh(&self, example: &Packed, micro: &MicroBatch, losses: &[f32], weights: &mut [f32]) {
        let judged = self.judge(example, micro, losses).unwrap_or_default();
        let nll = self.plan.objective.nll(self.plan);
        for (n, targets) in example.rows.iter().enumerate() {
            for t in targets.clone() {
                let mut weight = 0.0;
                if micro.in_answer[t] {
                    weight -= judged.slopes[n] / self.counts.examples as f64;
                }
                if n == 0 && nll.weight != 0.0 {
                    weight += nll.weight / self.counts.nll_targets as f64;
                }
                weights[t] = weight as f32;
            }
        }
    }

    /// Adds an example, whose targets have the cross-entropies `losses`, to `sums`.
    fn add(&self, example: &Packed, micro: &MicroBatch, losses: &[f32], sums: &mut Sums) {
        if self.plan.objective.nll(self.plan).weight != 0.0 {
            let first = &losses[example.rows[0].clone()];
            sums.nll += first.iter().map(|&l| l as f64).sum::<f64>();
        }
        let Some(judged) = self.judge(example, micro, losses) else { return };
        sums.judged += judged.loss;
        let pair = example.rows.len() == 2;
        let wanted = self.rows[example.index * example.rows.len()].wanted;
        // Chosen or wanted answers are counted apart from the others.
        for n in 0..example.rows.len() {
            let kind = if pair { n } else { usize::from(!wanted) };
            sums.rewards[kind] += judged.rewards[n];
            sums.answers[kind] += 1;
        }
        sums.right += u64::from(pair && judged.rewards[0] > judged.rewards[1]);
    }

    fn loss(&self, sums: &Sums) -> f64 {
        let nll = self.plan.objective.nll(self.plan).weight;
        let mean = |sum: f64, count: u64| if count > 0 { sum / count as f64 } else { 0.0 };
        mean(sums.judged, self.counts.examples) + nll * mean(sums.nll, self.counts.nll_targets)
    }

    fn rewards(&self, sums: &Sums) -> Option<Rewards> {
        let mean =
            |n: usize| (sums.answers[n] > 0).then(|| sums.rewards[n] / sums.answers[n] as f64);
        let (chosen, rejected) = (mean(0), mean(1));
        let pairs = self.plan.objective.rows_per_example() == 2;
        self.plan.objective.is_preference().then(|| Rewards {
            chosen,
            rejected,
            margins: chosen.zip(rejected).map(|(c, r)| c - r),
            accuracies: pairs.then(|| sums.right as f64 / self.counts.examples.max(1) as f64),
        })
    }
}

/// What examples add up to.
#[derive(Default)]
struct Sums {
    /// Of the judged part, by example.
    judged: f64,
    /// Of the next-token part, by target.
    nll: f64,
    /// Summed rewards of chosen and rejected answers, and how many there are of each.
    rewards: [f64; 2],
    answers: [u64; 2],
    /// Pairs whose chosen answer has the larger reward.
    right: u64,
}

/// What one lane's part of a step came to.
struct Done {
    counts: Counts,
    loss: f64,
    rewards: Option<Rewards>,
}

impl<'a> Lane<'a> {
    fn open(
        index: usize,
        job: Job<'a>,
        decoder: &Decoder,
        resume: bool,
        observer: &'a mut dyn Observer,
        adapters: &mut AdapterSet,
        grads: &mut Grads,
    ) -> Result<Lane<'a>, TrainError> {
        let Job { plan, data, provenance } = job;
        if data.train.iter().all(|row| row.input_len() == 0) {
            return Err(TrainError::NoData("no row has a token to learn".into()));
        }
        let per_example = plan.objective.rows_per_example();
        for rows in [&data.train, &data.held_out] {
            assert!(rows.len().is_multiple_of(per_example), "rows that are no whole examples");
        }
        let output = Output::open(&plan.output_dir, resume, &plan.report_to, observer)?;
        let identity = Identity {
            plan: plan.clone(),
            data_sha256: data.digest(),
            base_sha256: decoder.digest()?.to_owned(),
        };
        let trainable = Trainable::new(plan, decoder, adapters, &format!("training {index}"))?;
        trainable.add_zero_grads(grads);
        let optimizer = AdamW::new(
            trainable.params().len(),
            (plan.adam_beta1, plan.adam_beta2),
            plan.adam_epsilon,
            plan.weight_decay,
            trainable.groups(plan, decoder),
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
        let all: Vec<usize> = (0..data.held_out.len() / per_example).collect();
        let held_out = Share {
            // Measured alone.
            lane: 0,
            rows: &data.held_out,
            per_example,
            chosen: &all,
            adapter: trainable.slot(),
            dropout: None,
            whole: plan.objective.nll(plan).whole,
        };
        Ok(Lane {
            held_out: micro_batches(&[held_out], plan.micro_batch_tokens),
            references: [References::new(data.train.len()), References::new(data.held_out.len())],
            plan,
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
            kept: None,
            guard: None,
            best: Vec::new(),
            saved_step: None,
            pace: Pace::default(),
            ended: None,
        })
    }

    /// Restores the newest checkpoint, if any, and says that the run begins.
    fn start(
        &mut self,
        decoder: &mut Decoder,
        adapters: &mut AdapterSet,
        resume: bool,
    ) -> Result<(), TrainError> {
        if resume {
            self.restore()?;
        }
        // Also without a checkpoint: from here on a fully trained base is f32, as after a resume.
        self.trainable.publish(decoder, adapters)?;
        self.output.event(&Event::plan(self.plan, &self.provenance.base_name))?;
        let per_example = self.plan.objective.rows_per_example();
        let report = &self.data.train_report;
        self.output.event(&Event::Start {
            step: self.state.step,
            total_steps: self.total_steps,
            steps_per_epoch: self.sampler.steps_per_epoch(),
            rows: self.data.train.len() / per_example,
            tokens: report.tokens,
            held_out_rows: self.data.held_out.len() / per_example,
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
            self.output.rewind_log(None)?;
            let message = "there is no checkpoint to resume from: starting at step 0".to_owned();
            return self.output.event(&Event::Warning { message });
        };
        self.saved_step = Some(found.state.step);
        self.output.rewind_log(Some(found.state.step))?;
        for problem in found.problems {
            let message = format!("{problem}; taking the checkpoint before it");
            self.output.event(&Event::Warning { message })?;
        }
        self.trainable.params_mut().copy_from_slice(&found.params);
        self.optimizer.exp_avg = found.exp_avg;
        self.optimizer.exp_avg_sq = found.exp_avg_sq;
        self.best = found.best;
        self.state = found.state;
        self.output.event(&Event::Resumed { step: self.state.step, path: found.path })
    }

    /// Whether this step's held-out loss is wanted and not there yet: before the first step, and
    /// every `eval_steps`. Asked again after a resume, so that an interruption loses none.
    fn evaluation_is_due(&self) -> bool {
        let step = self.state.step;
        let wanted = step == 0 || due(step, self.plan.eval_steps);
        wanted && !self.is_measured()
    }

    fn is_measured(&self) -> bool {
        self.state.held_out.is_some_and(|h| h.step == self.state.step)
    }

    /// How it ends before its next step, if it does.
    fn end(&self) -> Option<TrainStatus> {
        let (plan, state) = (self.plan, &self.state);
        if state.step == self.total_steps {
            return Some(TrainStatus::Completed);
        }
        if plan.early_stopping_patience > 0 && state.stale >= plan.early_stopping_patience {
            return Some(TrainStatus::EarlyStopped);
        }
        let late = plan.max_seconds > 0 && state.seconds >= plan.max_seconds as f64;
        late.then_some(TrainStatus::TimeLimit)
    }

    /// KTO's reference point: the mean of how much likelier the policy makes the answers of these
    /// examples, each put behind the prompt of another one, at least 0. None when cancelled.
    fn kl(
        &self,
        learner: &mut Learner<'_>,
        rows: &[Row],
        chosen: &[usize],
        cancel: &AtomicBool,
    ) -> Result<Option<f64>, TrainError> {
        if !self.plan.objective.needs_kl(self.plan) {
            return Ok(Some(0.0));
        }
        let most = self.plan.max_length;
        let crossed: Vec<Row> = (0..chosen.len())
            .map(|i| {
                let other = &rows[chosen[(i + chosen.len() - 1) % chosen.len()]];
                rows[chosen[i]].with_answer_of(other, most)
            })
            .collect();
        let all: Vec<usize> = (0..crossed.len()).collect();
        let mut sums = [0.0; 2];
        for (sum, adapter) in sums.iter_mut().zip([self.trainable.slot(), None]) {
            let budget = self.plan.micro_batch_tokens;
            let logps = log_probabilities(learner, &crossed, 1, &all, adapter, budget, cancel)?;
            let Some(logps) = logps else { return Ok(None) };
            *sum = logps.iter().map(|(_, logp)| logp).sum();
        }
        Ok(Some(((sums[0] - sums[1]) / crossed.len() as f64).max(0.0)))
    }

    /// Measures the held-out loss, if there are held-out rows. False when cancelled before its
    /// end; nothing has changed then.
    fn evaluate(
        &mut self,
        decoder: &Decoder,
        adapters: &AdapterSet,
        tape: &mut Tape,
        cancel: &AtomicBool,
    ) -> Result<bool, TrainError> {
        if self.held_out.is_empty() {
            return Ok(true);
        }
        let (step, rows, plan) = (self.state.step, &self.data.held_out, self.plan);
        let mut learner = Learner { decoder, adapters, tape };
        let per_example = plan.objective.rows_per_example();
        let all: Vec<usize> = (0..rows.len() / per_example).collect();
        if plan.objective.needs_reference() {
            let budget = plan.micro_batch_tokens;
            let references = &mut self.references[1];
            if !references.complete(&mut learner, rows, per_example, &all, budget, cancel)? {
                return Ok(false);
            }
        }
        let Some(z) = self.kl(&mut learner, rows, &all, cancel)? else { return Ok(false) };
        let references = &self.references[1];
        let counts = counts_of(&self.held_out, 1, |_| plan).remove(0);
        let terms = Terms { plan, rows, references, counts, z };
        let mut sums = Sums::default();
        for micro in &self.held_out {
            if cancel.load(Ordering::Relaxed) {
                return Ok(false);
            }
            let losses = learner.losses(micro)?;
            for example in &micro.examples {
                terms.add(example, micro, &losses, &mut sums);
            }
            check_finite(&sums, &losses, micro, |_| rows, step, "held-out loss")?;
        }
        let bytes = self.data.held_out_bytes;
        let held_out = HeldOut {
            step,
            loss: terms.loss(&sums),
            tokens: counts.targets,
            bits_per_byte: (bytes > 0).then(|| sums.nll / std::f64::consts::LN_2 / bytes as f64),
            rewards: terms.rewards(&sums),
        };
        // The untrained base is no candidate.
        let better = self.state.best.is_none_or(|b| held_out.loss < b.loss);
        let best = step > 0 && better;
        if best {
            self.state.best = Some(held_out);
            if plan.load_best_model_at_end {
                self.best = self.trainable.params().to_vec();
            }
        }
        if step > 0 {
            self.state.stale = if best { 0 } else { self.state.stale + 1 };
            self.state.measured.push(held_out);
        }
        if step == 0 {
            self.state.held_out_before = Some(held_out);
        }
        self.state.held_out = Some(held_out);
        self.output.event(&Event::Evaluation { held_out, best })?;
        Ok(true)
    }

    /// Measures what the weights that will be saved have forgotten, if there is a text to tell by. False
    /// when cancelled before its end; nothing has changed then.
    fn measure_forgetting(
        &mut self,
        decoder: &mut Decoder,
        adapters: &mut AdapterSet,
        cancel: &AtomicBool,
    ) -> Result<bool, TrainError> {
        let text = &self.data.general;
        if text.pieces.is_empty() {
            return Ok(true);
        }
        let best = self.state.best.filter(|_| !self.best.is_empty());
        if best.is_some() {
            self.trainable.params_mut().swap_with_slice(&mut self.best);
            self.trainable.publish(decoder, adapters)?;
        }
        let step = best.map_or(self.state.step, |best| best.step);
        let after = Reader { decoder, adapters, slot: self.trainable.slot() };
        let before = match (self.trainable.slot(), &self.kept) {
            (Some(_), _) => Some(Before::Base(Reader { slot: None, ..after })),
            (None, kept) => kept.as_ref().map(Before::Kept),
        };
        let found = match before {
            Some(before) => forgetting::measure(text, &before, &after, step, cancel)?,
            None => None,
        };
        if best.is_some() {
            self.trainable.params_mut().swap_with_slice(&mut self.best);
        }
        let Some(found) = found else { return Ok(false) };
        if [found.loss_before, found.loss_after, found.kl].iter().all(|x| x.is_finite()) {
            self.output.event(&Event::Guard(found.clone()))?;
            self.guard = Some(found);
        } else {
            let message = format!(
                "{}: the loss there is not finite (before {}, after {}), so nothing tells what was forgotten",
                found.text, found.loss_before, found.loss_after
            );
            self.output.event(&Event::Warning { message })?;
        }
        Ok(true)
    }

    fn facts(&self, status: TrainStatus) -> Facts {
        let (report, state, plan) = (&self.data.train_report, &self.state, self.plan);
        Facts {
            status: Some(status),
            step: state.step,
            epoch: state.epoch,
            rows: self.data.train.len() / plan.objective.rows_per_example(),
            dropped: report.too_long + report.unsupervised,
            targets: report.supervised_tokens,
            trainable: self.trainable.params().len(),
            learning_rate: plan.learning_rate,
            train_loss: state.train_loss,
            clipped_steps: state.clipped_steps,
            before: state.held_out_before,
            measured: state.measured.clone(),
            saves_best: plan.load_best_model_at_end,
            guard: self.guard.clone(),
        }
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

    fn save_result(
        &mut self,
        decoder: &mut Decoder,
        adapters: &mut AdapterSet,
        status: TrainStatus,
    ) -> Result<(), TrainError> {
        let mut saved_step = self.state.step;
        if let (Some(best), false) = (self.state.best, self.best.is_empty()) {
            self.trainable.params_mut().copy_from_slice(&self.best);
            self.trainable.publish(decoder, adapters)?;
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
            generated_by: provenance.generated_by.clone(),
            kept_apart: provenance.kept_apart.clone(),
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
            guard: self.guard.clone(),
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
            decoder,
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

impl Group<'_> {
    fn start(&mut self, resume: bool, cancel: &AtomicBool) -> Result<(), TrainError> {
        for lane in &mut self.lanes {
            // A base that is trained itself is the reference only now.
            if lane.plan.method == Method::Full && lane.plan.objective.needs_reference() {
                let per_example = lane.plan.objective.rows_per_example();
                let budget = lane.plan.micro_batch_tokens;
                let sets = [&lane.data.train, &lane.data.held_out];
                for (references, rows) in lane.references.iter_mut().zip(sets) {
                    let all: Vec<usize> = (0..rows.len() / per_example).collect();
                    let mut learner = Learner {
                        decoder: self.decoder,
                        adapters: &self.adapters,
                        tape: &mut self.tape,
                    };
                    // When cancelled, the loop ends before its first step.
                    references.complete(&mut learner, rows, per_example, &all, budget, cancel)?;
                }
            }
            if lane.plan.method == Method::Full {
                let (decoder, adapters) = (&*self.decoder, &self.adapters);
                let base = Reader { decoder, adapters, slot: None };
                lane.kept = Kept::of(&lane.data.general, &base, cancel)?;
            }
            lane.start(self.decoder, &mut self.adapters, resume)?;
        }
        Ok(())
    }

    /// Steps until every lane has ended.
    fn go(&mut self, cancel: &AtomicBool) -> Result<(), TrainError> {
        loop {
            for lane in self.lanes.iter_mut().filter(|l| l.ended.is_none()) {
                let (decoder, adapters) = (&*self.decoder, &self.adapters);
                let wanted = lane.evaluation_is_due();
                if wanted && !lane.evaluate(decoder, adapters, &mut self.tape, cancel)? {
                    return Ok(());
                }
                let step = lane.state.step;
                // After the evaluation, so that a resumed run does not do it again.
                if step > 0 && due(step, lane.plan.save_steps) {
                    lane.save_checkpoint()?;
                }
                lane.ended = lane.end();
            }
            let going = self.lanes.iter().any(|l| l.ended.is_none());
            if !going || !self.step(cancel)? {
                return Ok(());
            }
        }
    }

    /// One optimizer step of every lane that goes on: forward and backward of each micro-batch,
    /// clipping, AdamW. False when cancelled before its end; nothing has changed then.
    fn step(&mut self, cancel: &AtomicBool) -> Result<bool, TrainError> {
        let started = Instant::now();
        let going: Vec<usize> =
            (0..self.lanes.len()).filter(|&i| self.lanes[i].ended.is_none()).collect();
        let budget = going.iter().map(|&i| self.lanes[i].plan.micro_batch_tokens).min();
        let budget = budget.unwrap_or(1);
        let mut chosen = vec![Vec::new(); self.lanes.len()];
        let mut z = vec![0.0; self.lanes.len()];
        for &i in &going {
            let lane = &mut self.lanes[i];
            chosen[i] = lane.sampler.step(lane.state.step).to_vec();
            let (rows, plan) = (&lane.data.train, lane.plan);
            let per_example = plan.objective.rows_per_example();
            let mut learner =
                Learner { decoder: self.decoder, adapters: &self.adapters, tape: &mut self.tape };
            if plan.objective.needs_reference() {
                let references = &mut lane.references[0];
                let done = references.complete(
                    &mut learner,
                    rows,
                    per_example,
                    &chosen[i],
                    budget,
                    cancel,
                )?;
                if !done {
                    return Ok(false);
                }
            }
            match lane.kl(&mut learner, rows, &chosen[i], cancel)? {
                Some(found) => z[i] = found,
                None => return Ok(false),
            }
        }
        let lanes = &self.lanes;
        let shares: Vec<Share<'_>> = going
            .iter()
            .map(|&i| {
                let (lane, plan) = (&lanes[i], lanes[i].plan);
                let drops = plan.method == Method::Lora && plan.lora_dropout > 0.0;
                Share {
                    lane: i,
                    rows: &lane.data.train,
                    per_example: plan.objective.rows_per_example(),
                    chosen: &chosen[i],
                    adapter: lane.trainable.slot(),
                    dropout: drops.then(|| dropout_key(plan.seed, lane.state.step + 1)),
                    whole: plan.objective.nll(plan).whole,
                }
            })
            .collect();
        let micros = micro_batches(&shares, budget);
        let counts = counts_of(&micros, lanes.len(), |lane| lanes[lane].plan);
        let terms: Vec<Terms<'_>> = lanes
            .iter()
            .zip(counts)
            .zip(z)
            .map(|((lane, counts), z)| Terms {
                plan: lane.plan,
                rows: &lane.data.train,
                references: &lane.references[0],
                counts,
                z,
            })
            .collect();
        let mut sums: Vec<Sums> = lanes.iter().map(|_| Sums::default()).collect();
        self.grads.zero();
        for micro in &micros {
            if cancel.load(Ordering::Relaxed) {
                return Ok(false);
            }
            let preference = |e: &Packed| lanes[e.lane].plan.objective.is_preference();
            let needs = micro.examples.iter().any(preference);
            let mut learner =
                Learner { decoder: self.decoder, adapters: &self.adapters, tape: &mut self.tape };
            let weigh = |losses: &[f32]| {
                let mut weights = vec![0.0; micro.targets.len()];
                for example in &micro.examples {
                    terms[example.lane].weigh(example, micro, losses, &mut weights);
                }
                weights
            };
            let losses = learner.backward(micro, needs, weigh, &mut self.grads)?;
            for example in &micro.examples {
                let (lane, sums) = (example.lane, &mut sums[example.lane]);
                terms[lane].add(example, micro, &losses, sums);
                let rows = |lane: usize| &lanes[lane].data.train;
                check_finite(sums, &losses, micro, rows, lanes[lane].state.step + 1, "loss")?;
            }
        }
        let done = |(terms, sums): (&Terms<'_>, &Sums)| Done {
            counts: terms.counts,
            loss: terms.loss(sums),
            rewards: terms.rewards(sums),
        };
        let done: Vec<Done> = terms.iter().zip(&sums).map(done).collect();
        for &i in &going {
            self.apply(i, &chosen[i], &done[i], started)?;
        }
        Ok(true)
    }

    /// The optimizer step of lane `index`, whose gradients are complete.
    fn apply(
        &mut self,
        index: usize,
        chosen: &[usize],
        done: &Done,
        started: Instant,
    ) -> Result<(), TrainError> {
        let lane = &mut self.lanes[index];
        let (plan, step) = (lane.plan, lane.state.step + 1);
        let per_example = plan.objective.rows_per_example();
        let grads = lane.trainable.grad_slice(&self.grads);
        let grad_norm = global_norm(grads);
        guard::finite_norm(grad_norm, chosen, &lane.data.train, per_example, step)?;
        let scale = clip_factor(grad_norm, plan.max_grad_norm);
        let learning_rate = lane.schedule.learning_rate(lane.state.step);
        lane.optimizer.step(lane.trainable.params_mut(), grads, scale, learning_rate, step);
        lane.trainable.publish(self.decoder, &mut self.adapters)?;
        lane.trainable.check_moved(step, self.decoder)?;

        let seconds = started.elapsed().as_secs_f64();
        lane.pace.seconds += seconds;
        lane.pace.tokens += done.counts.tokens;
        lane.pace.steps += 1;
        lane.state.step = step;
        lane.state.epoch = step as f64 / lane.sampler.steps_per_epoch() as f64;
        lane.state.seconds += seconds;
        lane.state.tokens += done.counts.tokens;
        lane.state.supervised_tokens += done.counts.targets;
        lane.state.train_loss = done.loss;
        lane.state.clipped_steps += u64::from(scale < 1.0);
        let event = Event::Step {
            step,
            total_steps: lane.total_steps,
            epoch: lane.state.epoch,
            loss: lane.state.train_loss,
            learning_rate,
            grad_norm,
            tokens: done.counts.tokens,
            supervised_tokens: done.counts.targets,
            tokens_per_second: lane.pace.tokens as f64 / lane.pace.seconds.max(1e-9),
            seconds: lane.state.seconds,
            eta_seconds: (lane.total_steps - step) as f64 * lane.pace.seconds
                / lane.pace.steps as f64,
            rewards: done.rewards,
        };
        if step == 1 || step == lane.total_steps || due(step, plan.logging_steps) {
            lane.output.event(&event)
        } else {
            lane.output.event_unlogged(&event);
            Ok(())
        }
    }

    /// A file that could not be written, with the checkpoints that stand.
    fn stopped(&self, source: TrainError) -> TrainError {
        let Some(io) = source.io_source() else { return source };
        use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        let hint = match io.kind() {
            StorageFull | QuotaExceeded => "make room on the disk",
            FileTooLarge => "allow larger files (ulimit -f)",
            _ => "see to it that the folder can be written",
        };
        let stands = self.lanes.iter().map(|lane| match lane.saved_step {
            Some(step) => format!("{} stands", checkpoint::path(&lane.output.dir, step).display()),
            None => format!("{} has no checkpoint yet", lane.output.dir.display()),
        });
        let stands = format!("the training stopped; {}", name_some(stands));
        TrainError::Stopped { source: Box::new(source), stands, hint }
    }

    /// Writes every lane's result, or after an interruption its checkpoint.
    fn finish(&mut self, cancel: &AtomicBool) -> Result<Vec<TrainOutcome>, TrainError> {
        let mut outcomes = Vec::new();
        for lane in &mut self.lanes {
            let mut status = lane.ended.unwrap_or(TrainStatus::Interrupted);
            let (decoder, adapters) = (&*self.decoder, &self.adapters);
            let evaluate = status != TrainStatus::Interrupted && !lane.is_measured();
            if evaluate && !lane.evaluate(decoder, adapters, &mut self.tape, cancel)? {
                status = TrainStatus::Interrupted;
            }
            if status != TrainStatus::Interrupted && lane.plan.save_steps > 0 {
                lane.save_checkpoint()?;
            }
            let guard = status != TrainStatus::Interrupted;
            if guard && !lane.measure_forgetting(self.decoder, &mut self.adapters, cancel)? {
                status = TrainStatus::Interrupted;
            }
            if status == TrainStatus::Interrupted {
                lane.save_checkpoint()?;
            } else {
                lane.save_result(self.decoder, &mut self.adapters, status)?;
            }
            let (step, seconds) = (lane.state.step, lane.state.seconds);
            let guidance = lane.facts(status).sentences().to_vec();
            let said = guidance.clone();
            lane.output.event(&Event::End { step, status, seconds, guidance: said })?;
            outcomes.push(TrainOutcome {
                status,
                output_dir: lane.plan.output_dir.clone(),
                step,
                total_steps: lane.total_steps,
                train_loss: lane.state.train_loss,
                held_out_before: lane.state.held_out_before,
                held_out: lane.state.held_out,
                best: lane.state.best,
                guard: lane.guard.clone(),
                tokens: lane.state.tokens,
                supervised_tokens: lane.state.supervised_tokens,
                seconds,
                guidance,
            });
        }
        Ok(outcomes)
    }
}

/// Examples, targets and tokens of each of `lanes` lanes in all micro-batches.
fn counts_of<'p>(
    micros: &[MicroBatch],
    lanes: usize,
    plan: impl Fn(usize) -> &'p TrainPlan,
) -> Vec<Counts> {
    let mut counts = vec![Counts::default(); lanes];
    for micro in micros {
        for (example, tokens) in micro.examples.iter().zip(micro.example_tokens()) {
            counts[example.lane].add(example, tokens, plan(example.lane));
        }
    }
    counts
}

/// Refuses a loss that is not finite, naming the examples whose own loss is not. `rows` are those of
/// a lane.
fn check_finite<'r>(
    sums: &Sums,
    losses: &[f32],
    micro: &MicroBatch,
    rows: impl Fn(usize) -> &'r Vec<Row>,
    step: u64,
    what: &'static str,
) -> Result<(), TrainError> {
    let sum = sums.judged + sums.nll;
    if sum.is_finite() {
        return Ok(());
    }
    let broken = micro.examples.iter().filter(|e| {
        e.rows.iter().any(|targets| losses[targets.clone()].iter().any(|l| !l.is_finite()))
    });
    let names: Vec<&String> = broken.map(|e| &rows(e.lane)[e.index * e.rows.len()].id).collect();
    let examples = name_some(names);
    Err(TrainError::NonFinite { step, what, value: sum.to_string(), examples })
}

fn due(step: u64, every: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}

#[cfg(test)]
mod tests;
