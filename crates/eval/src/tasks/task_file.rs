//! A task file of lm-evaluation-harness: read, checked, resolved. A key that changes the result and is
//! not understood is an error with its name.

use super::TaskError;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Bytes that a task file may take.
const MOST_BYTES: u64 = 1 << 20;
/// Files that may include one another.
const MOST_INCLUDES: usize = 8;

/// What is asked of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputType {
    /// Which of the choices is the likeliest.
    MultipleChoice,
    /// What it says.
    GenerateUntil,
    /// How likely the target is.
    Loglikelihood,
    /// How likely a whole text is.
    LoglikelihoodRolling,
}

/// Keys that do not change the numbers of a local run.
const HARMLESS: &[&str] = &[
    "task_alias",
    "tag",
    "group",
    "metadata",
    "should_decontaminate",
    "doc_to_decontamination_query",
];

/// A task as its file describes it.
#[derive(Clone, Debug)]
pub(super) struct TaskFile {
    pub(super) path: PathBuf,
    pub(super) name: String,
    pub(super) output: OutputType,
    /// Split -> files.
    pub(super) data_files: Vec<(String, Vec<PathBuf>)>,
    pub(super) training_split: Option<String>,
    pub(super) validation_split: Option<String>,
    pub(super) test_split: Option<String>,
    pub(super) doc_to_text: Value,
    pub(super) doc_to_target: Value,
    pub(super) doc_to_choice: Option<Value>,
    pub(super) description: String,
    pub(super) target_delimiter: String,
    pub(super) gen_prefix: Option<String>,
    pub(super) num_fewshot: usize,
    pub(super) fewshot: Fewshot,
    pub(super) metrics: Vec<MetricEntry>,
    pub(super) until: Vec<String>,
    pub(super) max_gen_toks: usize,
    pub(super) filters: Vec<(String, Vec<Map<String, Value>>)>,
}

/// How few-shot examples are chosen and written.
#[derive(Clone, Debug)]
pub(super) struct Fewshot {
    pub(super) first_n: bool,
    pub(super) split: Option<String>,
    pub(super) samples: Option<Vec<Value>>,
    pub(super) indices: Option<Vec<usize>>,
    pub(super) doc_to_text: Value,
    pub(super) doc_to_target: Value,
    pub(super) doc_to_choice: Option<Value>,
    pub(super) gen_prefix: Option<String>,
    pub(super) fewshot_delimiter: String,
    pub(super) target_delimiter: String,
}

/// A metric of the task, with what its entry says beside the name.
#[derive(Clone, Debug)]
pub(super) struct MetricEntry {
    pub(super) name: String,
    pub(super) options: Map<String, Value>,
}

impl TaskFile {
    /// Reads a task file, with the files that it includes.
    pub(super) fn read(path: &Path) -> Result<TaskFile, TaskError> {
        let keys = read_keys(path, 0)?;
        let mut keys = Keys { path, keys };
        let fail = |key: &str, reason: String| Err(TaskError::at(path, key, reason));
        for key in HARMLESS {
            keys.keys.remove(*key);
        }
        for key in ["process_docs", "process_results", "custom_dataset", "use_prompt"] {
            if keys.take(key).is_some_and(|v| !v.is_null()) {
                return fail(key, "found code or a prompt library, which is not run here".into());
            }
        }
        let name = keys.text("task")?.ok_or_else(|| missing(path, "task", "a name"))?;
        let output = match keys.text("output_type")?.as_deref() {
            Some("multiple_choice") => OutputType::MultipleChoice,
            Some("generate_until") | None => OutputType::GenerateUntil,
            Some("loglikelihood") => OutputType::Loglikelihood,
            Some("loglikelihood_rolling") => OutputType::LoglikelihoodRolling,
            Some(other) => {
                return fail(
                    "output_type",
                    format!(
                        "found {other:?}; expected multiple_choice, generate_until, loglikelihood or loglikelihood_rolling"
                    ),
                );
            }
        };
        let data_files = data_files(&mut keys)?;
        let fewshot_delimiter = keys.text("fewshot_delimiter")?.unwrap_or_else(|| "\n\n".into());
        let target_delimiter = keys.text("target_delimiter")?.unwrap_or_else(|| " ".into());
        let doc_to_text = keys.template("doc_to_text")?.unwrap_or_else(|| Value::from(""));
        let doc_to_target = keys
            .template("doc_to_target")?
            .ok_or_else(|| missing(path, "doc_to_target", "a template or a field's name"))?;
        let doc_to_choice = keys.template("doc_to_choice")?;
        let gen_prefix = keys.text("gen_prefix")?;
        let fewshot_split = keys.text("fewshot_split")?;
        let mut shots = keys.section("fewshot_config")?;
        let fewshot = Fewshot {
            first_n: match shots.text("sampler")?.as_deref() {
                None | Some("default") => false,
                Some("first_n") => true,
                Some(other) => {
                    return fail(
                        "fewshot_config.sampler",
                        format!("found {other:?}; expected default or first_n"),
                    );
                }
            },
            split: shots.text("split")?.or(fewshot_split),
            samples: match shots.take("samples") {
                None | Some(Value::Null) => None,
                Some(Value::Array(samples)) => Some(samples),
                Some(other) => return fail("fewshot_config.samples", unexpected(&other, "a list")),
            },
            indices: match shots.take("fewshot_indices") {
                None | Some(Value::Null) => None,
                Some(value) => Some(serde_json::from_value(value).map_err(|error| {
                    TaskError::at(path, "fewshot_config.fewshot_indices", error.to_string())
                })?),
            },
            doc_to_text: shots.template("doc_to_text")?.unwrap_or_else(|| doc_to_text.clone()),
            doc_to_target: shots
                .template("doc_to_target")?
                .unwrap_or_else(|| doc_to_target.clone()),
            doc_to_choice: shots.template("doc_to_choice")?.or_else(|| doc_to_choice.clone()),
            gen_prefix: shots.text("gen_prefix")?.or_else(|| gen_prefix.clone()),
            fewshot_delimiter: shots
                .text("fewshot_delimiter")?
                .unwrap_or_else(|| fewshot_delimiter.clone()),
            target_delimiter: shots
                .text("target_delimiter")?
                .unwrap_or_else(|| target_delimiter.clone()),
        };
        shots.finish("fewshot_config.")?;
        let (until, max_gen_toks) = generation(&mut keys, &fewshot_delimiter)?;
        let file = TaskFile {
            path: path.to_owned(),
            name,
            output,
            data_files,
            training_split: keys.text("training_split")?,
            validation_split: keys.text("validation_split")?,
            test_split: keys.text("test_split")?,
            doc_to_text,
            doc_to_target,
            doc_to_choice,
            description: keys.text("description")?.unwrap_or_default(),
            target_delimiter,
            gen_prefix,
            num_fewshot: keys.count("num_fewshot")?.unwrap_or(0),
            fewshot,
            metrics: metric_entries(&mut keys, output)?,
            until,
            max_gen_toks,
            filters: filters(&mut keys)?,
        };
        match keys.count("repeats")? {
            None | Some(1) => {}
            Some(n) => {
                return fail("repeats", format!("found {n}; expected 1: answers are greedy"));
            }
        }
        if keys.take("unsafe_code").is_some_and(|v| v != Value::Bool(false)) {
            return fail("unsafe_code", "found a task that runs code of the model".into());
        }
        keys.finish("")?;
        if output == OutputType::MultipleChoice && file.doc_to_choice.is_none() {
            return Err(missing(path, "doc_to_choice", "the choices of a multiple_choice task"));
        }
        Ok(file)
    }

    /// The split that is evaluated.
    pub(super) fn eval_split(&self) -> Result<&str, TaskError> {
        let split = self.test_split.as_deref().or(self.validation_split.as_deref());
        split.ok_or_else(|| missing(&self.path, "test_split", "a split of the data to evaluate on"))
    }
}

/// Keys of a file or section that have not been asked for yet.
struct Keys<'a> {
    path: &'a Path,
    keys: Map<String, Value>,
}

impl Keys<'_> {
    fn take(&mut self, key: &str) -> Option<Value> {
        self.keys.shift_remove(key)
    }

    fn text(&mut self, key: &str) -> Result<Option<String>, TaskError> {
        match self.take(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(TaskError::at(self.path, key, unexpected(&other, "a text"))),
        }
    }

    fn count(&mut self, key: &str) -> Result<Option<usize>, TaskError> {
        match self.take(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64() {
                Some(n) => Ok(Some(n as usize)),
                None => Err(TaskError::at(
                    self.path,
                    key,
                    unexpected(&value, "a whole number of at least 0"),
                )),
            },
        }
    }

    /// A template, a field's name, a number or a list.
    fn template(&mut self, key: &str) -> Result<Option<Value>, TaskError> {
        match self.take(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value @ (Value::String(_) | Value::Number(_) | Value::Array(_))) => {
                Ok(Some(value))
            }
            Some(Value::Object(choices)) => {
                Ok(Some(Value::Array(choices.into_iter().map(|(_, choice)| choice).collect())))
            }
            Some(other) => Err(TaskError::at(
                self.path,
                key,
                unexpected(&other, "a template, a field's name or a list"),
            )),
        }
    }

    fn section(&mut self, key: &str) -> Result<Keys<'_>, TaskError> {
        let keys = match self.take(key) {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(keys)) => keys,
            Some(other) => return Err(TaskError::at(self.path, key, unexpected(&other, "keys"))),
        };
        Ok(Keys { path: self.path, keys })
    }

    /// Refuses what nobody asked for.
    fn finish(self, place: &str) -> Result<(), TaskError> {
        let left = self.keys.iter().find(|(_, value)| !value.is_null());
        match left {
            None => Ok(()),
            Some((key, _)) => Err(TaskError::at(
                self.path,
                &format!("{place}{key}"),
                "this key is not supported, and it may change the result".into(),
            )),
        }
    }
}

fn missing(path: &Path, key: &str, expected: &str) -> TaskError {
    TaskError::at(path, key, format!("it is missing; expected {expected}"))
}

fn unexpected(found: &Value, expected: &str) -> String {
    let shown: String = found.to_string().chars().take(60).collect();
    format!("found {shown}; expected {expected}")
}

/// The keys of a file over those of the file that it includes.
fn read_keys(path: &Path, depth: usize) -> Result<Map<String, Value>, TaskError> {
    let fail = |reason: String| TaskError::File { path: path.to_owned(), reason };
    if depth > MOST_INCLUDES {
        return Err(fail(format!("more than {MOST_INCLUDES} files include one another")));
    }
    let bytes = std::fs::metadata(path).map_err(|error| fail(error.to_string()))?.len();
    if bytes > MOST_BYTES {
        return Err(fail(format!("found {bytes} bytes, expected at most {MOST_BYTES}")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
    if let Some(line) =
        text.lines().position(|l| l.split('#').next().is_some_and(|l| l.contains("!function")))
    {
        return Err(fail(format!(
            "line {}: found a Python function (!function), which is not run here; expected a template",
            line + 1
        )));
    }
    // A choice called n or yes is a text; the harness's own reader takes n as one too.
    let options = serde_saphyr::options! { strict_booleans: true };
    let value: Value = serde_saphyr::from_str_with_options(&text, options)
        .map_err(|error| fail(error.to_string()))?;
    let Value::Object(mut keys) = value else {
        return Err(fail("found no keys; expected a task of lm-evaluation-harness".into()));
    };
    match keys.shift_remove("include") {
        None | Some(Value::Null) => Ok(keys),
        Some(Value::String(other)) => {
            let other = path.parent().unwrap_or(Path::new(".")).join(other);
            let mut merged = read_keys(&other, depth + 1)?;
            merged.extend(keys);
            Ok(merged)
        }
        Some(other) => {
            Err(TaskError::at(path, "include", unexpected(&other, "the name of one file")))
        }
    }
}

fn data_files(keys: &mut Keys) -> Result<Vec<(String, Vec<PathBuf>)>, TaskError> {
    let path = keys.path;
    match keys.text("dataset_path")?.as_deref() {
        Some("json") => {}
        found => {
            let found = found.unwrap_or("nothing");
            let reason = format!(
                "found {found}; expected json, with dataset_kwargs.data_files: nothing is fetched from a hub. hint: export the data to JSON lines and name the file"
            );
            return Err(TaskError::at(path, "dataset_path", reason));
        }
    }
    if let Some(name) = keys.text("dataset_name")? {
        return Err(TaskError::at(path, "dataset_name", format!("found {name:?}; expected none")));
    }
    let mut arguments = keys.section("dataset_kwargs")?;
    let paths = |value: &Value| -> Option<Vec<PathBuf>> {
        match value {
            Value::String(one) => Some(vec![one.into()]),
            Value::Array(several) => {
                several.iter().map(|v| v.as_str().map(PathBuf::from)).collect()
            }
            _ => None,
        }
    };
    let found = arguments.take("data_files").unwrap_or(Value::Null);
    let files: Option<Vec<(String, Vec<PathBuf>)>> = match &found {
        Value::Object(splits) => {
            splits.iter().map(|(split, files)| Some((split.clone(), paths(files)?))).collect()
        }
        other => paths(other).map(|files| vec![("train".to_owned(), files)]),
    };
    arguments.take("trust_remote_code");
    arguments.finish("dataset_kwargs.")?;
    let Some(mut files) = files else {
        let reason = unexpected(&found, "a file, a list of files, or one of these for each split");
        return Err(TaskError::at(path, "dataset_kwargs.data_files", reason));
    };
    for (_, files) in &mut files {
        for file in files {
            // As the harness has it, from where it runs; else beside the task.
            let beside = path.parent().unwrap_or(Path::new(".")).join(&*file);
            if !file.exists() && beside.exists() {
                *file = beside;
            }
        }
    }
    Ok(files)
}

fn generation(keys: &mut Keys, fewshot_delimiter: &str) -> Result<(Vec<String>, usize), TaskError> {
    let path = keys.path;
    let mut arguments = keys.section("generation_kwargs")?;
    let until = match arguments.take("until") {
        None | Some(Value::Null) => vec![fewshot_delimiter.to_owned()],
        Some(Value::String(one)) => vec![one],
        Some(value) => serde_json::from_value(value)
            .map_err(|error| TaskError::at(path, "generation_kwargs.until", error.to_string()))?,
    };
    let mut most = None;
    for name in ["max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"] {
        let found = arguments.count(name)?;
        most = most.or(found);
    }
    let sampled = arguments.take("do_sample").is_some_and(|v| v == Value::Bool(true));
    let temperature = arguments.take("temperature").and_then(|v| v.as_f64()).unwrap_or(0.0);
    if sampled && temperature != 0.0 {
        let reason = "found sampling; expected do_sample: false or temperature: 0, so that an answer can be repeated";
        return Err(TaskError::at(path, "generation_kwargs.do_sample", reason.into()));
    }
    // Of no account where nothing is sampled.
    for name in ["top_p", "top_k", "min_p"] {
        arguments.take(name);
    }
    arguments.finish("generation_kwargs.")?;
    match most.unwrap_or(256) {
        0 => Err(TaskError::at(
            path,
            "generation_kwargs.max_gen_toks",
            "found 0; expected at least 1".into(),
        )),
        most => Ok((until, most)),
    }
}

fn metric_entries(keys: &mut Keys, output: OutputType) -> Result<Vec<MetricEntry>, TaskError> {
    let path = keys.path;
    let bad = |reason: String| Err(TaskError::at(path, "metric_list", reason));
    let known: &[&str] = match output {
        OutputType::MultipleChoice => {
            &["acc", "acc_norm", "acc_bytes", "exact_match", "brier_score"]
        }
        OutputType::GenerateUntil => &["exact_match", "bleu", "chrf", "ter"],
        OutputType::Loglikelihood => &["perplexity", "acc"],
        OutputType::LoglikelihoodRolling => {
            &["word_perplexity", "byte_perplexity", "bits_per_byte"]
        }
    };
    let listed = match keys.take("metric_list") {
        None | Some(Value::Null) => {
            let default: &[&str] = match output {
                OutputType::MultipleChoice => &["acc", "acc_norm"],
                OutputType::GenerateUntil => &["exact_match"],
                _ => known,
            };
            let entry = |name: &&str| MetricEntry { name: (*name).to_owned(), options: Map::new() };
            return Ok(default.iter().map(entry).collect());
        }
        Some(Value::Array(listed)) => listed,
        Some(other) => return bad(unexpected(&other, "a list")),
    };
    let mut entries = Vec::new();
    for entry in listed {
        let Value::Object(mut options) = entry else {
            return bad(unexpected(&entry, "{metric: name}"));
        };
        let name = match options.shift_remove("metric") {
            Some(Value::String(name)) => name,
            found => return bad(unexpected(&found.unwrap_or(Value::Null), "{metric: name}")),
        };
        if !known.contains(&name.as_str()) {
            return bad(format!("found {name:?}; expected some of {}", known.join(", ")));
        }
        let usual: &str = match name.as_str() {
            "brier_score" | "bleu" | "chrf" | "ter" | "perplexity" | "bits_per_byte" => &name,
            "word_perplexity" | "byte_perplexity" => "weighted_perplexity",
            _ => "mean",
        };
        match options.shift_remove("aggregation") {
            None => {}
            Some(Value::String(aggregation)) if aggregation == usual => {}
            Some(other) => {
                return bad(format!("{name}: aggregation: {}", unexpected(&other, usual)));
            }
        }
        options.shift_remove("higher_is_better");
        let allowed: &[&str] = match (name.as_str(), output) {
            ("exact_match", OutputType::GenerateUntil) => {
                &["ignore_case", "ignore_punctuation", "ignore_numbers", "regexes_to_ignore"]
            }
            _ => &[],
        };
        if let Some(key) = options.keys().find(|key| !allowed.contains(&key.as_str())) {
            return bad(format!(
                "{name}: the key {key} is not supported, and it may change the result"
            ));
        }
        entries.push(MetricEntry { name, options });
    }
    Ok(entries)
}

/// A name and the steps of its pipeline.
type NamedFilters = (String, Vec<Map<String, Value>>);

fn filters(keys: &mut Keys) -> Result<Vec<NamedFilters>, TaskError> {
    let path = keys.path;
    let bad = |found: &Value| {
        let expected = "[{name: ..., filter: [{function: ...}]}]";
        TaskError::at(path, "filter_list", unexpected(found, expected))
    };
    let listed = match keys.take("filter_list") {
        None | Some(Value::Null) => return Ok(vec![("none".to_owned(), Vec::new())]),
        Some(Value::Array(listed)) => listed,
        Some(other) => return Err(bad(&other)),
    };
    let mut pipelines = Vec::new();
    for entry in &listed {
        let name = entry["name"].as_str().ok_or_else(|| bad(entry))?;
        let steps = entry["filter"].as_array().ok_or_else(|| bad(entry))?;
        let steps: Option<Vec<Map<String, Value>>> =
            steps.iter().map(|step| step.as_object().cloned()).collect();
        pipelines.push((name.to_owned(), steps.ok_or_else(|| bad(entry))?));
    }
    Ok(pipelines)
}
