//! `metier.toml` and recipes: raw as written, then resolved over the defaults. Unknown keys are
//! errors that name the nearest known key.

use crate::cli::ColumnArgs;
use crate::resolve::NANO;
use anyhow::{Context, Result, bail};
use eval::{CostPlan, MachinePrice, Traffic};
use indexmap::IndexMap;
use model::DecoderConfig;
use serde::{Deserialize, Serialize};
use serve::{Prices, ServePlan};
use std::path::{Path, PathBuf};
use toml::{Table, Value};
use train::{Guard, Method, Objective, TrainPlan};

/// A config file: its sections as written. Paths in it are relative to the file's folder.
#[derive(Default)]
pub(crate) struct ConfigFile {
    /// `[base]`
    pub(crate) base: BaseSection,
    /// `[data]`
    pub(crate) data: DataSection,
    /// `[train]`: keys of [`TrainPlan`], resolved by [`ConfigFile::train_plan`].
    train: Table,
    /// `[sweep]`: keys of [`TrainPlan`], each with a list of values to try.
    pub(crate) sweep: Table,
    /// `[[run]]`: trainings side by side, each with what it has for itself.
    pub(crate) runs: Vec<RunSection>,
    /// `[serve]`: keys of [`ServePlan`], resolved by [`ConfigFile::serve_plan`].
    serve: Table,
    /// `[prove]`: resolved by [`crate::prove_plan`].
    pub(crate) prove: Table,
    /// `[cost]`: resolved by [`ConfigFile::prices`] and [`crate::prove_plan`].
    pub(crate) cost: Table,
    /// The file itself.
    pub(crate) path: PathBuf,
}

/// `[base]`: a model to start from, or the shape of a new one.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct BaseSection {
    /// A folder or `nano`.
    pub(crate) model: Option<String>,
    /// Licence of the base, kept in the manifest, when its files do not say.
    pub(crate) license: Option<String>,
    /// For a new model: its config.json.
    pub(crate) init: Option<PathBuf>,
    /// For a new model: the folder with its tokenizer.
    pub(crate) tokenizer: Option<PathBuf>,
}

/// `[data]`
#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct DataSection {
    /// What is learnt: conversations or prompt/completion pairs.
    pub(crate) train: Vec<Source>,
    /// Held-out conversations for the loss curve.
    pub(crate) valid: Option<PathBuf>,
    /// Share of `train` held out when `valid` is not given.
    pub(crate) valid_fraction: Option<f64>,
    /// Plain text (files, or folders of .txt and .md files) for pretraining.
    pub(crate) text: Vec<PathBuf>,
    /// Test set that must not leak into `train`; checked before training.
    pub(crate) test: Option<PathBuf>,
    /// See `metier train --help`.
    pub(crate) prompt_column: Option<String>,
    /// See `metier train --help`.
    pub(crate) completion_column: Option<String>,
    /// See `metier train --help`.
    pub(crate) group_column: Option<String>,
    /// See `metier train --help`.
    pub(crate) system_prompt: Option<String>,
    /// Licence of the data, kept in the manifest.
    pub(crate) license: Option<String>,
    /// Models that wrote it, kept in the manifest: their providers' terms may forbid to train on it.
    pub(crate) generated_by: Vec<String>,
}

impl DataSection {
    /// How its tables are read; what the command line says goes first.
    pub(crate) fn columns(&self, typed: &ColumnArgs) -> ColumnArgs {
        let one = |typed: &Option<String>, written: &Option<String>| {
            typed.as_ref().or(written.as_ref()).cloned()
        };
        ColumnArgs {
            prompt_column: one(&typed.prompt_column, &self.prompt_column),
            completion_column: one(&typed.completion_column, &self.completion_column),
            group_column: one(&typed.group_column, &self.group_column),
            system_prompt: one(&typed.system_prompt, &self.system_prompt),
        }
    }
}

/// One of the files or folders to learn from: `"a.jsonl"`, or `{ path = "a.jsonl", weight = 0.5 }`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "SourceAsWritten")]
pub(crate) struct Source {
    /// A file, or a folder as the Hub has them.
    pub(crate) path: PathBuf,
    /// How often its rows are seen per epoch.
    pub(crate) weight: f64,
}

impl Source {
    /// A source whose rows are seen once per epoch.
    pub(crate) fn new(path: PathBuf) -> Source {
        Source { path, weight: 1.0 }
    }
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a path, or { path = \"...\", weight = 2.0 }")]
enum SourceAsWritten {
    Path(PathBuf),
    Weighted(WeightedSource),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WeightedSource {
    path: PathBuf,
    #[serde(default = "once")]
    weight: f64,
}

fn once() -> f64 {
    1.0
}

impl From<SourceAsWritten> for Source {
    fn from(source: SourceAsWritten) -> Source {
        match source {
            SourceAsWritten::Path(path) => Source::new(path),
            SourceAsWritten::Weighted(WeightedSource { path, weight }) => Source { path, weight },
        }
    }
}

/// `[[run]]`: one of several trainings on one base.
#[derive(Default)]
pub(crate) struct RunSection {
    /// Name of the run and of its folder in `output_dir`.
    pub(crate) name: String,
    /// Its own training data; those of `[data]` when empty.
    pub(crate) data: Vec<Source>,
    /// Its own held-out data.
    pub(crate) valid: Option<PathBuf>,
    /// Its own keys of [`TrainPlan`].
    pub(crate) train: Table,
}

/// `[cost]`: what tokens cost. Either a price for each kind of token, or a machine paid by the hour.
#[derive(Default, Deserialize)]
#[serde(default)]
struct CostSection {
    currency: Option<String>,
    input_per_mtok: Option<f64>,
    cached_input_per_mtok: Option<f64>,
    output_per_mtok: Option<f64>,
    price_per_hour: Option<f64>,
    tokens_per_second: Option<f64>,
    utilisation: Option<f64>,
}

/// Keys of `[serve]` that are read once, at the start.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct ServeStart {
    /// Adapters to load, by name.
    pub(crate) adapters: IndexMap<String, PathBuf>,
    /// Those that never leave memory for another.
    pub(crate) pin: Vec<String>,
    /// See `metier serve --help`.
    pub(crate) embedding_model: Option<String>,
    /// See `metier serve --help`.
    pub(crate) draft_model: Option<String>,
    /// See `metier serve --help`.
    pub(crate) num_speculative_tokens: Option<usize>,
    /// See `metier serve --help`.
    pub(crate) max_num_seqs: Option<usize>,
    /// See `metier serve --help`.
    pub(crate) kv_cache_mib: Option<usize>,
    /// See `metier serve --help`.
    pub(crate) kv_cache_dtype: Option<String>,
    /// Whether keys and values of finished requests are kept for those that begin alike.
    pub(crate) enable_prefix_caching: Option<bool>,
}

const SERVE_START_KEYS: &[&str] = &[
    "adapters",
    "pin",
    "embedding_model",
    "draft_model",
    "num_speculative_tokens",
    "max_num_seqs",
    "kv_cache_mib",
    "kv_cache_dtype",
    "enable_prefix_caching",
];

const COST_KEYS: &[&str] = &[
    "currency",
    "input_per_mtok",
    "cached_input_per_mtok",
    "output_per_mtok",
    "price_per_hour",
    "tokens_per_second",
    "utilisation",
    // Those of `metier prove`.
    "requests_per_month",
    "amortise_months",
    "exchange",
    "exchange_source",
    "prices",
    "prices_date",
    "machine",
];
/// Keys of `[cost]` that say nothing about what the server's own tokens cost.
const COST_KEYS_OF_PROVE: usize = 7;

const SECTIONS: &[&str] = &["base", "data", "train", "sweep", "run", "serve", "cost", "prove"];
const BASE_KEYS: &[&str] = &["model", "license", "init", "tokenizer"];
const DATA_KEYS: &[&str] = &[
    "train",
    "valid",
    "valid_fraction",
    "text",
    "test",
    "prompt_column",
    "completion_column",
    "group_column",
    "system_prompt",
    "license",
    "generated_by",
];

impl ConfigFile {
    /// Reads and checks a config file.
    pub(crate) fn read(path: &Path) -> Result<ConfigFile> {
        let text = std::fs::read_to_string(path).with_context(|| {
            format!(
                "{}: cannot read the config file\nhint: see recipes/ for complete examples",
                path.display()
            )
        })?;
        Self::parse(&text, path)
    }

    /// Parses a config file's text; `path` names it in errors and anchors relative paths.
    pub(crate) fn parse(text: &str, path: &Path) -> Result<ConfigFile> {
        let shown = path.display();
        let mut table: Table = text.parse().with_context(|| format!("{shown}: not valid TOML"))?;
        check_keys(&table, SECTIONS, &format!("{shown}: section"))?;
        let runs = match table.remove("run") {
            None => Vec::new(),
            Some(Value::Array(runs)) => runs,
            Some(_) => bail!("{shown}: run must be a list of sections: [[run]]"),
        };
        let mut section = |name: &str| match table.remove(name) {
            None => Ok(Table::new()),
            Some(Value::Table(t)) => Ok(t),
            Some(_) => bail!("{shown}: {name} must be a section: [{name}]"),
        };
        let (base, data, train) = (section("base")?, section("data")?, section("train")?);
        let (sweep, serve, cost) = (section("sweep")?, section("serve")?, section("cost")?);
        let prove = section("prove")?;
        check_keys(&cost, COST_KEYS, &format!("{shown}: [cost]"))?;
        check_keys(&base, BASE_KEYS, &format!("{shown}: [base]"))?;
        check_keys(&data, DATA_KEYS, &format!("{shown}: [data]"))?;
        let mut data = data;
        // One name need not be a list.
        if let Some(Value::String(name)) = data.get("generated_by").cloned() {
            data.insert("generated_by".to_owned(), Value::Array(vec![Value::String(name)]));
        }
        let mut config = ConfigFile {
            base: base.try_into().with_context(|| format!("{shown}: [base]"))?,
            data: data.try_into().with_context(|| format!("{shown}: [data]"))?,
            train,
            sweep,
            runs: Vec::new(),
            serve,
            prove,
            cost,
            path: path.to_owned(),
        };
        config.anchor();
        config.runs = runs.into_iter().map(|run| config.run(run)).collect::<Result<_>>()?;
        Ok(config)
    }

    fn run(&self, run: Value) -> Result<RunSection> {
        let shown = self.path.display();
        let Value::Table(mut keys) = run else { bail!("{shown}: [[run]] must be a section") };
        let Some(Value::String(name)) = keys.remove("name") else {
            bail!("{shown}: [[run]] needs a name, which becomes its folder: name = \"a\"")
        };
        check_run_name(&name).with_context(|| format!("{shown}: [[run]]"))?;
        let mut sources = |key: &str| -> Result<Vec<Source>> {
            let one_or_more = match keys.remove(key) {
                None => Vec::new(),
                Some(Value::Array(several)) => several,
                Some(one) => vec![one],
            };
            let source = |value: Value| -> Result<Source> {
                let source: Source =
                    value.try_into().with_context(|| format!("{shown}: [[run]] {name}: {key}"))?;
                Ok(Source { path: self.anchored(&source.path), ..source })
            };
            one_or_more.into_iter().map(source).collect()
        };
        let (data, valid) = (sources("data")?, sources("valid")?.into_iter().next());
        let valid = valid.map(|source| source.path);
        Ok(RunSection { name, data, valid, train: keys })
    }

    /// The plan for a base of this shape: the defaults of its method and objective, then this file's
    /// keys, then those of `more`. `objective` has the last word where it is given.
    pub(crate) fn train_plan(
        &self,
        base: &DecoderConfig,
        objective: Option<Objective>,
        more: &Table,
    ) -> Result<TrainPlan> {
        let shown = self.path.display();
        let mut train = self.train.clone();
        train.extend(more.clone());
        let objective = match (objective, train.get("objective")) {
            (Some(objective), _) => objective,
            (None, Some(value)) => serde_json::from_value(serde_json::to_value(value)?)
                .with_context(|| format!("{shown}: [train] objective"))?,
            (None, None) if self.data.text.is_empty() => Objective::Sft,
            (None, None) => Objective::Text,
        };
        train.remove("objective");
        let method = match self.method()? {
            Some(method) => method,
            None if objective == Objective::Text => Method::Full,
            None => Method::Lora,
        };
        let defaults = TrainPlan::new(method, objective, base);
        let mut merged = serde_json::to_value(&defaults)?;
        let fields = merged.as_object_mut().context("a plan is an object")?;
        let known: Vec<String> = fields.keys().cloned().collect();
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        check_keys(&train, &known, &format!("{shown}: [train]"))?;
        for (key, value) in &train {
            fields.insert(key.clone(), serde_json::to_value(value)?);
        }
        let mut plan: TrainPlan =
            serde_json::from_value(merged).with_context(|| format!("{shown}: [train]"))?;
        if self.train.contains_key("output_dir") {
            plan.output_dir = self.anchored(&plan.output_dir);
        }
        if let Guard::Data(path) = &plan.guard {
            plan.guard = Guard::Data(self.anchored(path));
        }
        Ok(plan)
    }

    /// How to serve: the defaults, then this file's keys and prices.
    pub(crate) fn serve_plan(&self) -> Result<ServePlan> {
        let shown = self.path.display();
        let mut merged = serde_json::to_value(ServePlan::default())?;
        let fields = merged.as_object_mut().context("a plan is an object")?;
        let known: Vec<String> = fields.keys().cloned().collect();
        let known = known.iter().map(String::as_str).chain(SERVE_START_KEYS.iter().copied());
        check_keys(&self.serve, &known.collect::<Vec<&str>>(), &format!("{shown}: [serve]"))?;
        let of_plan = |(key, _): &(&String, _)| !SERVE_START_KEYS.contains(&key.as_str());
        for (key, value) in self.serve.iter().filter(of_plan) {
            fields.insert(key.clone(), serde_json::to_value(value)?);
        }
        let mut plan: ServePlan =
            serde_json::from_value(merged).with_context(|| format!("{shown}: [serve]"))?;
        if let Some(tls) = &mut plan.tls {
            (tls.cert, tls.key) = (self.anchored(&tls.cert), self.anchored(&tls.key));
        }
        plan.adapter_dirs = plan.adapter_dirs.iter().map(|dir| self.anchored(dir)).collect();
        plan.prices = self.prices()?;
        Ok(plan)
    }

    /// What a server is started with.
    pub(crate) fn serve_start(&self) -> Result<ServeStart> {
        let of_start = |(key, _): &(&String, _)| SERVE_START_KEYS.contains(&key.as_str());
        let table: Table = (self.serve.iter().filter(of_start))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let place = || format!("{}: [serve]", self.path.display());
        let start: ServeStart = table.try_into().with_context(place)?;
        let model = |name: Option<String>| name.map(|name| self.model(&name));
        let adapters = start.adapters.into_iter();
        Ok(ServeStart {
            adapters: adapters.map(|(name, dir)| (name, self.anchored(&dir))).collect(),
            embedding_model: model(start.embedding_model),
            draft_model: model(start.draft_model),
            ..start
        })
    }

    /// What tokens cost, where the file says so.
    pub(crate) fn prices(&self) -> Result<Option<Prices>> {
        let place = format!("{}: [cost]", self.path.display());
        let (ours, of_prove) = COST_KEYS.split_at(COST_KEYS.len() - COST_KEYS_OF_PROVE);
        let named = |keys: &[&str]| keys.iter().any(|key| self.cost.contains_key(*key));
        if self.cost.is_empty() || named(of_prove) && !named(&ours[1..]) {
            return Ok(None);
        }
        let cost: CostSection = self.cost.clone().try_into().with_context(|| place.clone())?;
        let Some(currency) = cost.currency.filter(|code| !code.is_empty()) else {
            bail!("{place}: currency is missing; expected a code such as \"EUR\"")
        };
        let by_token = cost.input_per_mtok.or(cost.output_per_mtok).or(cost.cached_input_per_mtok);
        let by_hour = cost.price_per_hour.or(cost.tokens_per_second).or(cost.utilisation);
        let (input, cached, output) = match (by_token, by_hour) {
            (Some(_), None) => {
                let (Some(input), Some(output)) = (cost.input_per_mtok, cost.output_per_mtok)
                else {
                    bail!("{place}: expected input_per_mtok and output_per_mtok, found one of them")
                };
                (input, cost.cached_input_per_mtok.unwrap_or(input), output)
            }
            (None, Some(_)) => {
                let (Some(price_per_hour), Some(tokens_per_second), Some(utilisation)) =
                    (cost.price_per_hour, cost.tokens_per_second, cost.utilisation)
                else {
                    bail!(
                        "{place}: a machine needs price_per_hour, tokens_per_second and utilisation"
                    )
                };
                let machine = CostPlan::Machine(MachinePrice {
                    price_per_hour,
                    currency: currency.clone(),
                    price_source: place.clone(),
                    tokens_per_second,
                    tokens_per_second_source: place.clone(),
                    utilisation,
                });
                // A thousand requests of a thousand tokens are a million.
                let million = Traffic { prompt_tokens: 1000.0, answer_tokens: 0.0 };
                let price =
                    machine.cost(&million).with_context(|| place.clone())?.per_1000_requests;
                (price, price, price)
            }
            _ => bail!(
                "{place}: expected either input_per_mtok and output_per_mtok, or price_per_hour, \
                 tokens_per_second and utilisation"
            ),
        };
        for (field, price) in [
            ("input_per_mtok", input),
            ("cached_input_per_mtok", cached),
            ("output_per_mtok", output),
        ] {
            if !(price >= 0.0 && price.is_finite()) {
                bail!("{place}: {field} is {price}; expected a number of at least 0");
            }
        }
        Ok(Some(Prices {
            currency,
            input_per_mtok: input,
            cached_input_per_mtok: cached,
            output_per_mtok: output,
        }))
    }

    /// The method, where the file names one.
    pub(crate) fn method(&self) -> Result<Option<Method>> {
        match self.train.get("method").map(|v| v.as_str()) {
            None => Ok(None),
            Some(Some("lora")) => Ok(Some(Method::Lora)),
            Some(Some("full")) => Ok(Some(Method::Full)),
            Some(_) => {
                bail!("{}: [train] method: expected \"lora\" or \"full\"", self.path.display())
            }
        }
    }

    /// Whether the file says where the result goes.
    pub(crate) fn names_output_dir(&self) -> bool {
        self.train.contains_key("output_dir")
    }

    /// A path of the file, from the file's folder on.
    pub(crate) fn anchored(&self, path: &Path) -> PathBuf {
        match self.path.parent() {
            Some(dir) if path.is_relative() => dir.join(path),
            _ => path.to_owned(),
        }
    }

    /// A model as the file names it: a folder or a .gguf file from the file's folder on, a name of the
    /// Hub, or `nano`.
    pub(crate) fn model(&self, name: &str) -> String {
        if name == NANO {
            return name.to_owned();
        }
        let path = self.anchored(Path::new(name));
        let (owner, rest) = name.split_once('/').unwrap_or_default();
        let of_hub = !owner.is_empty() && !owner.starts_with('.') && !rest.contains('/');
        match path.exists() || !of_hub {
            true => path.to_string_lossy().into_owned(),
            false => name.to_owned(),
        }
    }

    fn anchor(&mut self) {
        let data = std::mem::take(&mut self.data);
        let all = |paths: &[PathBuf]| paths.iter().map(|p| self.anchored(p)).collect();
        let one = |path: &Option<PathBuf>| path.as_ref().map(|p| self.anchored(p));
        let (init, tokenizer) = (one(&self.base.init), one(&self.base.tokenizer));
        let model = self.base.model.as_deref().map(|name| self.model(name));
        self.data = DataSection {
            train: data
                .train
                .iter()
                .map(|source| Source { path: self.anchored(&source.path), ..source.clone() })
                .collect(),
            text: all(&data.text),
            valid: one(&data.valid),
            test: one(&data.test),
            ..data
        };
        self.base = BaseSection { init, tokenizer, model, ..std::mem::take(&mut self.base) };
    }
}

/// Refuses a name of a run that cannot be a folder's.
fn check_run_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '=' | ',');
    if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
        bail!("name: found \"{name}\", expected letters, digits, - _ . = and ,");
    }
    Ok(())
}

/// Refuses keys that are not in `known`, naming the nearest one.
pub(crate) fn check_keys(table: &Table, known: &[&str], place: &str) -> Result<()> {
    for key in table.keys() {
        if known.contains(&key.as_str()) {
            continue;
        }
        let nearest = known
            .iter()
            .map(|k| (strsim::damerau_levenshtein(key, k), k))
            .min()
            .filter(|(distance, k)| *distance <= k.len().max(key.len()) / 2);
        match nearest {
            Some((_, k)) => bail!("{place}: unknown key \"{key}\"; did you mean \"{k}\"?"),
            None => bail!("{place}: unknown key \"{key}\"; expected some of {}", known.join(", ")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        let base = base_shape();
        let result = ConfigFile::parse(text, Path::new("dir/m.toml"))
            .and_then(|c| c.train_plan(&base, None, &Table::new()));
        format!("{:#}", result.expect_err("expected an error"))
    }

    fn base_shape() -> DecoderConfig {
        DecoderConfig::from_json(
            br#"{"model_type":"llama","hidden_size":256,"intermediate_size":512,"num_hidden_layers":2,
                "num_attention_heads":4,"vocab_size":64}"#,
            Path::new("config.json"),
        )
        .unwrap()
    }

    #[test]
    fn unknown_keys_name_the_nearest() {
        for (text, expected) in [
            ("[trian]", "did you mean \"train\""),
            ("[train]\nlearning_rat = 1", "did you mean \"learning_rate\""),
            ("[base]\nmodle = 'x'", "did you mean \"model\""),
            ("[data]\nzzzzzzzzzzzz = 1", "expected some of train"),
        ] {
            assert!(error(text).contains(expected), "{}", error(text));
        }
    }

    #[test]
    fn wrong_types_and_methods_are_named() {
        assert!(error("[train]\nlearning_rate = 'fast'").contains("[train]"));
        assert!(error("[train]\nmethod = 'magic'").contains("\"lora\" or \"full\""));
        assert!(error("train = 3").contains("must be a section"));
        assert!(error("[train").contains("not valid TOML"));
    }

    #[test]
    fn keys_override_the_defaults_of_the_method() {
        let text = "[data]\ntrain = ['a.jsonl']\n[train]\nmethod = 'full'\nlearning_rate = 1e-3\noutput_dir = 'o'\nguard = 'g.txt'";
        let config = ConfigFile::parse(text, Path::new("dir/m.toml")).unwrap();
        let plan = config.train_plan(&base_shape(), None, &Table::new()).unwrap();
        assert_eq!(plan.method, Method::Full);
        assert_eq!(plan.learning_rate, 1e-3);
        assert_eq!(plan.output_dir, Path::new("dir/o"));
        assert_eq!(plan.guard, Guard::Data("dir/g.txt".into()));
        assert_eq!(config.data.train, [Source::new("dir/a.jsonl".into())]);
    }

    #[test]
    fn a_server_is_described_by_its_plan() {
        let parse = |text: &str| ConfigFile::parse(text, Path::new("dir/m.toml"))?.serve_plan();
        let text = "[serve]\nport = 9000\nhost = '0.0.0.0'\ntls = { cert = 'c.pem', key = '/k.pem' }\n\
            [cost]\ncurrency = 'EUR'\ninput_per_mtok = 1.0\noutput_per_mtok = 4.0";
        let plan = parse(text).unwrap();
        assert_eq!((plan.port, plan.host.to_string()), (9000, "0.0.0.0".to_owned()));
        let tls = plan.tls.unwrap();
        assert_eq!(
            (tls.cert.as_path(), tls.key.as_path()),
            ("dir/c.pem".as_ref(), "/k.pem".as_ref())
        );
        let prices = plan.prices.unwrap();
        assert_eq!(prices.cost(1_000_000, 500_000, 1_000_000), 5.0, "cached costs the same");
        assert_eq!(parse("").unwrap(), ServePlan::default());

        // 0.72 an hour at 100 tokens a second, half of the time: 4 for a million.
        let machine = "currency = 'EUR'\nprice_per_hour = 0.72\ntokens_per_second = 100.0\n";
        let plan = parse(&format!("[cost]\n{machine}utilisation = 0.5")).unwrap();
        let prices = plan.prices.unwrap();
        assert!((prices.cost(500_000, 0, 500_000) - 4.0).abs() < 1e-9, "{prices:?}");

        for (text, expected) in [
            ("[serve]\nprot = 1", "did you mean \"port\""),
            ("[serve]\nport = 'x'", "[serve]"),
            ("[serve]\ntls = { cert = 'x' }", "[serve]"),
            ("[cost]\ninput_per_mtok = 1.0", "currency is missing"),
            ("[cost]\ncurrency = 'EUR'", "expected either"),
            ("[cost]\ncurrency = 'EUR'\ninput_per_mtok = 1.0", "found one of them"),
            ("[cost]\ncurrency = 'EUR'\nprice_per_hour = 1.0", "a machine needs"),
            (
                "[cost]\ncurrency = 'EUR'\ninput_per_mtok = -1.0\noutput_per_mtok = 1.0",
                "at least 0",
            ),
            ("[cost]\ncurency = 'EUR'", "did you mean \"currency\""),
        ] {
            let Err(error) = parse(text) else { panic!("{text} was accepted") };
            assert!(format!("{error:#}").contains(expected), "{text}: {error:#}");
        }
    }

    #[test]
    fn what_a_server_starts_with_is_read_beside_its_plan() {
        let parse = |text: &str| ConfigFile::parse(text, Path::new("dir/m.toml"));
        let text = "[base]\nmodel = 'org/base'\n[serve]\nport = 9000\nmax_num_seqs = 8\npin = ['a']\n\
            adapters = { a = 'out/a', b = '/b' }\nembedding_model = './bge'\ndraft_model = 'nano'";
        let config = parse(text).unwrap();
        assert_eq!(config.serve_plan().unwrap().port, 9000);
        let start = config.serve_start().unwrap();
        let adapters: Vec<_> =
            start.adapters.iter().map(|(n, d)| (n.as_str(), d.as_path())).collect();
        assert_eq!(adapters, [("a", "dir/out/a".as_ref()), ("b", "/b".as_ref())]);
        assert_eq!((start.max_num_seqs, start.kv_cache_mib), (Some(8), None));
        assert_eq!(start.embedding_model.as_deref(), Some("dir/./bge"));
        assert_eq!(start.draft_model.as_deref(), Some("nano"));
        assert_eq!(config.base.model.as_deref(), Some("org/base"), "a name of the Hub");
        // Whatever lies beside the config file, such as a folder of that name.
        let beside = tempfile::tempdir().unwrap();
        std::fs::create_dir(beside.path().join("nano")).unwrap();
        let config = ConfigFile::parse("[base]\nmodel = 'nano'", &beside.path().join("m.toml"));
        assert_eq!(config.unwrap().base.model.as_deref(), Some("nano"));

        let wrong = parse("[serve]\nmax_num_seqs = 'many'").unwrap().serve_start();
        assert!(format!("{:#}", wrong.err().unwrap()).contains("max_num_seqs"));
        let error = parse("[serve]\nadapter = {}").unwrap().serve_plan().unwrap_err();
        assert!(format!("{error:#}").contains("did you mean \"adapters\""), "{error:#}");
    }

    #[test]
    fn who_wrote_the_data_is_one_or_several() {
        let written = |value: &str| {
            let text = format!("[data]\ngenerated_by = {value}");
            ConfigFile::parse(&text, Path::new("m.toml")).map(|config| config.data.generated_by)
        };
        assert_eq!(written("'gpt-4o'").unwrap(), ["gpt-4o"]);
        assert_eq!(written("['gpt-4o', 'claude']").unwrap(), ["gpt-4o", "claude"]);
        assert!(written("3").is_err());
    }

    #[test]
    fn a_source_has_a_weight() {
        let parse = |train: &str| {
            ConfigFile::parse(&format!("[data]\ntrain = {train}"), Path::new("dir/m.toml"))
        };
        let config = parse("['a.jsonl', { path = 'b', weight = 0.5 }, { path = 'c' }]").unwrap();
        let weights: Vec<_> =
            config.data.train.iter().map(|s| (s.path.to_str().unwrap(), s.weight)).collect();
        assert_eq!(weights, [("dir/a.jsonl", 1.0), ("dir/b", 0.5), ("dir/c", 1.0)]);
        for wrong in ["[{ weight = 2.0 }]", "[{ path = 'a', wieght = 2.0 }]", "[3]", "['a', {}]"] {
            let Err(error) = parse(wrong) else { panic!("{wrong} was accepted") };
            assert!(format!("{error:#}").contains("{ path ="), "{wrong}: {error:#}");
        }
    }
}
