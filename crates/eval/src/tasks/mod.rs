//! Tasks of EleutherAI's lm-evaluation-harness, run as their files describe them, with its numbers.
//!
//! Read [`Task::run`] first. A task file becomes questions (`prompt.rs`, with few-shot examples drawn by
//! the harness's own random numbers, `python_random.rs`), the model answers them on the serving engine
//! (`model.rs`), filters and metrics make values of the answers (`filters.rs`, `score.rs`). The rules are
//! those of its version 0.4.13; `scripts/check_lm_eval_tasks.py` runs both side by side.

mod filters;
mod model;
mod prompt;
mod python_random;
mod score;
mod task_file;
mod template;

use crate::candidate::{Answer, Likelihood};
use engine::Runner;
use indexmap::IndexMap;
use prompt::Ask;
use serde::Serialize;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Instant;
use task_file::TaskFile;

pub use model::TaskModel;
pub use task_file::OutputType;

/// What can be wrong with a task.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// A key's value cannot be honoured.
    #[error("{path}: {key}: {reason}")]
    Key {
        /// The task file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What was found and what was expected.
        reason: String,
    },
    /// A file cannot be read.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A row of the data cannot be asked or scored.
    #[error("{path}: row {row} of the data (counted from 0): {reason}")]
    Row {
        /// The task file.
        path: PathBuf,
        /// The row, from 0.
        row: usize,
        /// What was found and what was expected.
        reason: String,
    },
}

impl TaskError {
    fn at(path: &Path, key: &str, reason: String) -> TaskError {
        TaskError::Key { path: path.to_owned(), key: key.to_owned(), reason }
    }
}

/// A task ready to be run.
pub struct Task {
    file: TaskFile,
    asks: Vec<(Value, Ask)>,
}

/// What a model did at a task.
#[derive(Clone, Debug, Serialize)]
pub struct TaskResult {
    /// Name of the task.
    pub task: String,
    /// Values by `metric,filter`, as lm-evaluation-harness names them.
    pub values: IndexMap<String, TaskValue>,
    /// Documents asked.
    pub n: usize,
    /// Documents that could not be answered; they score 0.
    pub failed: usize,
    /// Examples in front of each question.
    pub num_fewshot: usize,
    /// The token that the tokenizer puts in front of every prompt; None: it puts none.
    pub first_token: Option<String>,
    /// What ends an answer that is generated, beside the model's own end.
    pub until: Vec<String>,
    /// Seconds from the first question to the last answer.
    pub seconds: f64,
    /// Each document with its answers, one for each filter.
    #[serde(skip)]
    pub samples: Vec<TaskSample>,
}

/// A value with its standard error.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TaskValue {
    /// The value, in the unit of lm-evaluation-harness (BLEU, chrF and TER from 0 to 100).
    pub value: f64,
    /// Its standard error by the same rules; None where there is none.
    pub stderr: Option<f64>,
}

/// A document with what came back, in the names of the harness's `--log_samples`.
#[derive(Clone, Debug, Serialize)]
pub struct TaskSample {
    /// Its place in the data, from 0.
    pub doc_id: usize,
    /// The row itself.
    pub doc: Value,
    /// What was held to be right.
    pub target: Value,
    /// What the model was given: (context, continuation), or the context.
    pub arguments: Vec<Vec<String>>,
    /// What came back to each: (log-likelihood, greedy), or the text.
    pub resps: Value,
    /// The same after the filter.
    pub filtered_resps: Value,
    /// Name of the filter.
    pub filter: String,
    /// The scores.
    #[serde(flatten)]
    pub scores: IndexMap<String, f64>,
}

impl Task {
    /// Reads a task file and its data, and writes every question. `limit`: only so many documents;
    /// `num_fewshot`: so many examples in front, whatever the file says.
    ///
    /// # Errors
    /// [`TaskError`] naming the file, the key or row, what was found and what was expected.
    pub fn read(
        path: &Path,
        limit: Option<usize>,
        num_fewshot: Option<usize>,
    ) -> Result<Task, TaskError> {
        let mut file = TaskFile::read(path)?;
        file.num_fewshot = num_fewshot.unwrap_or(file.num_fewshot);
        score::check(&file)?;
        let asks = prompt::asks(&file, limit)?;
        Ok(Task { file, asks })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.file.name
    }

    /// Documents that will be asked.
    pub fn len(&self) -> usize {
        self.asks.len()
    }

    /// Whether there is nothing to ask; never so for a task that was read.
    pub fn is_empty(&self) -> bool {
        self.asks.is_empty()
    }

    /// Has the model answer, and scores the answers. `progress` gets how many of how many requests are
    /// done.
    ///
    /// # Errors
    /// [`TaskError::Row`] for a text whose likelihood cannot be told.
    pub fn run<R: Runner>(
        &self,
        model: &mut TaskModel<R>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<TaskResult, TaskError> {
        let started = Instant::now();
        let answers = self.answer(model, progress);
        let seconds = started.elapsed().as_secs_f64();
        let (values, samples) = score::score(&self.file, &self.asks, &answers)?;
        Ok(TaskResult {
            task: self.file.name.clone(),
            values,
            n: self.asks.len(),
            failed: answers.iter().filter(|answer| answer.error.is_some()).count(),
            num_fewshot: self.file.num_fewshot,
            first_token: model.first_token(),
            until: match self.file.output {
                OutputType::GenerateUntil => self.file.until.clone(),
                _ => Vec::new(),
            },
            seconds,
            samples,
        })
    }

    fn answer<R: Runner>(
        &self,
        model: &mut TaskModel<R>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Vec<Answer> {
        match self.file.output {
            OutputType::GenerateUntil => {
                let contexts: Vec<&str> =
                    self.asks.iter().filter_map(|(_, ask)| ask.context()).collect();
                let total = contexts.len();
                let (until, most) = (&self.file.until, self.file.max_gen_toks);
                model.generate(&contexts, until, most, &mut |done| progress(done, total))
            }
            OutputType::LoglikelihoodRolling => {
                let texts: Vec<&str> = self.asks.iter().filter_map(|(_, ask)| ask.text()).collect();
                let total = texts.len();
                let rolled = model.roll(&texts, &mut |done| progress(done.min(total), total));
                rolled.into_iter().map(|one| weighed(vec![one])).collect()
            }
            OutputType::MultipleChoice | OutputType::Loglikelihood => {
                let pairs: Vec<Vec<(String, String)>> =
                    self.asks.iter().map(|(_, ask)| ask.pairs()).collect();
                let all = pairs.concat();
                let total = all.len();
                let found = model.weigh(&all, &mut |done| progress(done, total));
                let mut found = found.into_iter();
                pairs.iter().map(|of| weighed(found.by_ref().take(of.len()).collect())).collect()
            }
        }
    }
}

/// The answer that these likelihoods make: none when one of them is missing.
fn weighed(likelihoods: Vec<Result<Likelihood, String>>) -> Answer {
    match likelihoods.into_iter().collect::<Result<Vec<_>, _>>() {
        Ok(likelihoods) => Answer { likelihoods, ..Answer::default() },
        Err(reason) => Answer::failed(reason),
    }
}

impl Ask {
    fn context(&self) -> Option<&str> {
        match self {
            Ask::Generate { context, .. } => Some(context),
            _ => None,
        }
    }

    fn text(&self) -> Option<&str> {
        match self {
            Ask::Roll { text } => Some(text),
            _ => None,
        }
    }

    /// The contexts and continuations whose likelihood is asked.
    fn pairs(&self) -> Vec<(String, String)> {
        match self {
            Ask::Choices { pairs, .. } => pairs.clone(),
            Ask::Weigh { context, target } => vec![(context.clone(), target.clone())],
            Ask::Roll { .. } | Ask::Generate { .. } => Vec::new(),
        }
    }
}
