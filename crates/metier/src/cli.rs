//! The command line as typed. Nothing is done here.

use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use model::{KvDtype, Pooling, WeightDtype};
use serde::Serialize;
use std::path::PathBuf;

/// Adapt an open language model to your trade, prove it, serve it.
///
/// Start with `metier demo`: it adapts the bundled model to a sample trade, measures it against
/// its base, and prints how to serve it. Then do the same with your own data.
#[derive(Parser)]
#[command(
    name = "metier",
    version,
    max_term_width = 100,
    after_help = "Examples:
  metier demo
  metier data check tickets.csv --prompt-column message --completion-column ticket
  metier train --base nano --data train.jsonl --out out/tickets
  metier eval --model nano --adapter out/tickets --data test.jsonl
  metier serve --model nano --adapter tickets=out/tickets"
)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
    /// Say more on standard error (-vv: details)
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub(crate) verbose: u8,
    /// Threads for computing [default: all cores]
    #[arg(long, global = true, value_name = "N", value_parser = threads)]
    pub(crate) threads: Option<usize>,
}

fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ 1..=1024) => Ok(n),
        _ => Err("expected a whole number from 1 to 1024".into()),
    }
}

/// The commands.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// The whole loop on the bundled model and sample trade; ends with report.html
    Demo(DemoArgs),
    /// Fetch a model from the Hugging Face Hub
    Pull(PullArgs),
    /// The models on this machine
    Models(ModelsArgs),
    /// Check, clean and split data
    #[command(subcommand)]
    Data(DataCommand),
    /// Adapt a base model to data (LoRA or full fine-tuning)
    Train(TrainArgs),
    /// The training runs on this machine: list, compare, plot
    Runs(RunsArgs),
    /// Measure a model on a test set
    Eval(EvalArgs),
    /// Is it worth it? Candidates side by side, with cost, a verdict and its evidence
    ///
    /// Exit code 0: worth it; 3: not proven; 4: not worth it; 1: the run failed. With --against, 4 only
    /// when the judged candidate is proven worse than in that report, else 0.
    Prove(ProveArgs),
    /// Compute a proof again from its recorded answers, and check all digests
    Verify(VerifyArgs),
    /// Judge the answers of a proof yourself: two at a time, shuffled, without names
    Review(ReviewArgs),
    /// What rented models and machines cost: list, update
    #[command(subcommand)]
    Prices(PricesCommand),
    /// Continue a prompt
    Generate(GenerateArgs),
    /// Talk to a model in the terminal
    Chat(ChatArgs),
    /// Show the token ids of a text
    Tokenize(TokenizeArgs),
    /// Turn the lines of a text into vectors
    Embed(EmbedArgs),
    /// Serve a model and adapters through an OpenAI-compatible API
    Serve(ServeArgs),
    /// The keys that the server asks for: create, list, revoke
    Keys(KeysArgs),
    /// What was served: requests, tokens, times and cost by key, adapter or day
    Usage(UsageArgs),
    /// Has anything changed since the model was proven? Exit 3 when a stated bound is proven crossed
    Watch(WatchArgs),
    /// Write a model or an adapter for other tools
    Export(ExportArgs),
    /// How well a model foretells a text
    ///
    /// Counts as llama.cpp's llama-perplexity does. The text's tokens, with a beginning-of-sequence
    /// token in front where the model has one there, are cut into windows of N; the rest at the end is
    /// left out. In each window the first token is replaced by the beginning-of-sequence token, where
    /// the model has one in front. Each window is read on its own, and of it the tokens from the
    /// (N/2 + 2)th on count: N - 1 - N/2, each foretold from all before it in the window. Perplexity is e to
    /// the mean of their losses; bits per byte are their losses over the bytes of text that they spell.
    ///
    /// Where llama-perplexity wants two windows, one is enough here. With --ids the ids are read as
    /// they are: nothing is put in front or replaced, and no tokenizer is needed.
    Perplexity(PerplexityArgs),
    /// Measure how fast a model runs here
    Bench(BenchArgs),
    /// This machine: instruction sets, memory, what will fit and how fast
    Doctor(DoctorArgs),
}

fn objective(text: &str) -> Result<train::Objective, String> {
    serde_json::from_value(text.into())
        .map_err(|_| "expected one of sft, text, dpo, orpo, kto, simpo".into())
}

fn language(text: &str) -> Result<eval::Language, String> {
    eval::Language::from_code(text).ok_or_else(|| "expected en or fr".into())
}

fn weight_dtype(text: &str) -> Result<WeightDtype, String> {
    WeightDtype::from_name(text)
        .ok_or_else(|| format!("expected one of {}", WeightDtype::NAMES.join(", ")))
}

fn pooling(text: &str) -> Result<Pooling, String> {
    Pooling::from_name(text).ok_or_else(|| format!("expected one of {}", Pooling::NAMES.join(", ")))
}

/// How embeddings are made.
#[derive(Args, Clone, Copy, Default)]
pub(crate) struct EmbeddingArgs {
    /// What embeddings are made of: mean, last or cls [default: what the model's folder says; else the
    /// last token of a decoder, the mean of an encoder]
    #[arg(long, value_name = "P", value_parser = pooling)]
    pub(crate) pooling: Option<Pooling>,
    /// Embeddings may be cut (`dimensions`): the model was trained for that, though its config.json
    /// does not say so
    #[arg(long)]
    pub(crate) matryoshka: bool,
}

/// How weights are held in memory.
#[derive(Args, Clone, Copy, Default)]
pub(crate) struct WeightArgs {
    /// Weights in memory: f32, bf16, q8_0, q4_0 or nf4 [default: as published]
    #[arg(long, value_name = "T", value_parser = weight_dtype)]
    pub(crate) dtype: Option<WeightDtype>,
}

fn kv_dtype(text: &str) -> Result<KvDtype, String> {
    KvDtype::from_name(text).ok_or_else(|| format!("expected one of {}", KvDtype::NAMES.join(", ")))
}

/// How keys and values are held in memory.
#[derive(Args, Clone, Copy, Default)]
pub(crate) struct KvCacheArgs {
    /// Keys and values in memory: f32, bf16 (half the memory) or q8 (about a quarter) [default: f32]
    #[arg(long, value_name = "T", value_parser = kv_dtype)]
    kv_cache_dtype: Option<KvDtype>,
}

impl KvCacheArgs {
    /// With the value of a config file where the command line has none.
    ///
    /// # Errors
    /// When there is no such type.
    pub(crate) fn or_of_file(self, written: Option<&str>) -> Result<KvCacheArgs, String> {
        let written = written.map(kv_dtype).transpose()?;
        Ok(KvCacheArgs { kv_cache_dtype: self.kv_cache_dtype.or(written) })
    }

    pub(crate) fn dtype(self) -> KvDtype {
        self.kv_cache_dtype.unwrap_or_default()
    }
}

/// Arguments of `demo`.
#[derive(Args)]
#[command(after_help = "Examples:
  metier demo
  metier demo --dir my-demo")]
pub(crate) struct DemoArgs {
    /// Folder for everything the demo writes
    #[arg(long, default_value = "metier-demo")]
    pub(crate) dir: PathBuf,
    /// Print report.json on standard output at the end
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `pull`.
#[derive(Args)]
#[command(after_help = "Examples:
  metier pull HuggingFaceTB/SmolLM2-135M-Instruct
  metier pull HuggingFaceTB/SmolLM2-135M@12fd25f77366fa6b3b4b768ec3050bf629380bac
  metier train --base HuggingFaceTB/SmolLM2-135M-Instruct --data train.jsonl --out out/tickets

The files go to the cache that other Hugging Face tools share (HF_HOME). An interrupted pull goes
on where it stopped. Gated models need an access token in HF_TOKEN.")]
pub(crate) struct PullArgs {
    /// ORG/NAME, or ORG/NAME@REVISION with a branch, tag or commit
    #[arg(value_name = "ORG/NAME[@REV]")]
    pub(crate) model: String,
    /// Only this file of the repository (repeatable), such as one of several GGUF files
    #[arg(long, value_name = "NAME")]
    pub(crate) file: Vec<String>,
    /// Print one JSON object at the end
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `models`.
#[derive(Args)]
#[command(after_help = "Examples:
  metier models
  metier models show nano
  metier models prepare ./SmolLM2-135M-Instruct --dtype q8_0
  metier models rm HuggingFaceTB/SmolLM2-135M-Instruct")]
pub(crate) struct ModelsArgs {
    /// What to do [default: list]
    #[command(subcommand)]
    pub(crate) command: Option<ModelsCommand>,
    /// Print JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// `models` subcommands.
#[derive(Subcommand)]
pub(crate) enum ModelsCommand {
    /// Bundled and pulled models: family, parameters, dtype, size, context, licence
    List,
    /// One model: a folder, a .gguf file, a pulled ORG/NAME, or `nano`
    Show {
        /// The model
        #[arg(value_name = "M")]
        model: String,
    },
    /// Lay a model's weights out on disk as they are used, so that later starts map them
    #[command(after_help = "Examples:
  metier models prepare ./SmolLM2-135M-Instruct
  metier models prepare ./SmolLM2-135M-Instruct --dtype q8_0
  metier models prepare ./SmolLM2-135M-Instruct --dtype q8_0 --undo

Every command that loads this model in this type then starts without converting it, and processes
that serve it share its memory. It takes as much disk as the weights take memory; --undo deletes it.
A model whose files have changed is converted as before: prepare it again.")]
    Prepare {
        /// The model: a folder, a .gguf file, a pulled ORG/NAME, or `nano`
        #[arg(value_name = "M")]
        model: String,
        #[command(flatten)]
        weights: WeightArgs,
        /// Delete what was laid out
        #[arg(long)]
        undo: bool,
    },
    /// Delete a pulled model from the cache, all revisions
    Rm {
        /// ORG/NAME
        #[arg(value_name = "M")]
        model: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

/// `data` subcommands.
#[derive(Subcommand)]
pub(crate) enum DataCommand {
    /// Validate, count tokens, find duplicates and train/test leaks; exit 1 when something blocks
    #[command(after_help = "Examples:
  metier data check train.jsonl --test test.jsonl
  metier data check tickets.csv --prompt-column message --completion-column ticket --json")]
    Check(DataCheckArgs),
    /// Convert, deduplicate and split into train/valid/test.jsonl with data_report.json
    #[command(after_help = "Examples:
  metier data prepare tickets.csv --out data/tickets --test-fraction 0.15
  metier data prepare chats.jsonl --out data/chats --group-column customer --seed 7")]
    Prepare(DataPrepareArgs),
    /// Show rows as the model sees them: the tokens, and which of them are learnt
    #[command(after_help = "Examples:
  metier data show train.jsonl
  metier data show tickets.csv --prompt-column message --completion-column ticket -n 1
  metier data show preferences.jsonl --model ./SmolLM2-135M-Instruct
  metier data show book.txt --json

On a terminal learnt tokens are green, the others grey, in two shades in turn, so that the borders
of tokens show; without colours (a pipe, NO_COLOR) learnt text stands between \u{27e6} and \u{27e7}.")]
    Show(DataShowArgs),
    /// Turn answers that were served, and corrections of them, into training data
    #[command(after_help = "Examples:
  metier data harvest --out harvest.jsonl --test data/test.jsonl
  metier data harvest --out harvest.jsonl --adapter tickets --min-rating 0.5 --test data/test.jsonl

Only requests of keys made with --store-contents are there to be harvested, for as long as their
contents are kept. An answer that was corrected (POST /v1/feedback) is learnt in its corrected form,
whatever its rating; others when they came to their own end and are not rated below 0.")]
    Harvest(DataHarvestArgs),
}

/// Where keys, usage, feedback and price tables are kept.
#[derive(Args, Clone, Default)]
pub(crate) struct StateArgs {
    /// Folder of keys, usage, feedback and price tables [default: METIER_STATE, or metier in the user's data folder]
    #[arg(long = "state", value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
}

/// How tables and prompts become conversations.
#[derive(Args, Clone, Default)]
pub(crate) struct ColumnArgs {
    /// CSV column (or JSONL field) with the input
    #[arg(long, value_name = "NAME")]
    pub(crate) prompt_column: Option<String>,
    /// CSV column (or JSONL field) with the wanted answer
    #[arg(long, value_name = "NAME")]
    pub(crate) completion_column: Option<String>,
    /// Column or field that ties examples together (customer, document): never split apart
    #[arg(long, value_name = "NAME")]
    pub(crate) group_column: Option<String>,
    /// System message put before every example of prompt/completion or CSV data
    #[arg(long, value_name = "TEXT")]
    pub(crate) system_prompt: Option<String>,
}

/// Arguments of `data check`.
#[derive(Args)]
pub(crate) struct DataCheckArgs {
    /// Data files (.jsonl, .json, .csv, .parquet) or folders with files for each split
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Test set to check for leaks against
    #[arg(long, value_name = "FILE")]
    pub(crate) test: Option<PathBuf>,
    /// Model whose tokenizer counts the tokens
    #[arg(long, default_value = "nano")]
    pub(crate) model: String,
    #[command(flatten)]
    pub(crate) columns: ColumnArgs,
    /// Also write the report to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Print the report as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `data show`.
#[derive(Args)]
pub(crate) struct DataShowArgs {
    /// A data file or folder: conversations, prompt/completion, preferences, or plain text (.txt, .md)
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Model whose chat template and tokenizer are used
    #[arg(long, value_name = "M", default_value = "nano")]
    pub(crate) model: String,
    /// How many rows to show, from the first
    #[arg(short = 'n', long = "rows", value_name = "N", default_value_t = 3)]
    pub(crate) rows: usize,
    #[command(flatten)]
    pub(crate) columns: ColumnArgs,
    /// Print one JSON object per rendered row: ids, which are learnt, counts
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `data prepare`.
#[derive(Args)]
pub(crate) struct DataPrepareArgs {
    /// Data files (.jsonl, .json, .csv, .parquet) or folders with files for each split
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Folder for train.jsonl, valid.jsonl, test.jsonl and data_report.json
    #[arg(long)]
    pub(crate) out: PathBuf,
    /// Share of the groups for the sealed test set
    #[arg(long, default_value_t = 0.1)]
    pub(crate) test_fraction: f64,
    /// Share of the groups for held-out loss during training
    #[arg(long, default_value_t = 0.05)]
    pub(crate) valid_fraction: f64,
    /// Same seed, same split
    #[arg(long, default_value_t = 42)]
    pub(crate) seed: u64,
    /// Model whose tokenizer counts the tokens
    #[arg(long, default_value = "nano")]
    pub(crate) model: String,
    #[command(flatten)]
    pub(crate) columns: ColumnArgs,
    /// Print the report as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `data harvest`.
#[derive(Args)]
pub(crate) struct DataHarvestArgs {
    /// The file to write, chat JSONL
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Only what this name in `model` answered
    #[arg(long, value_name = "A")]
    pub(crate) adapter: Option<String>,
    /// Answers without a correction need this rating, from -1 to 1
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    pub(crate) min_rating: Option<f64>,
    /// The sealed test set: what is too near to its questions is left out
    #[arg(long, value_name = "FILE")]
    pub(crate) test: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) state: StateArgs,
    /// Print what was taken and left out as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `train`.
#[derive(Args)]
#[command(after_help = "Examples:
  metier train --base nano --data train.jsonl --out out/tickets
  metier train --config recipes/banking77.toml
  metier train --config metier.toml --resume
  metier train --base nano --data train.jsonl --out out/x --dry-run
  metier train --base nano --data train.jsonl --out out/sweep --sweep r=8,32 --sweep learning_rate=1e-4,1e-3
  metier train --base nano --data pairs.jsonl --objective dpo --out out/preferred

Flags override the config file. Ctrl-C saves a checkpoint; --resume continues from it exactly.")]
pub(crate) struct TrainArgs {
    /// Config file with [base], [data] and [train] (see recipes/)
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Base model: a folder, a .gguf file, a pulled ORG/NAME, or `nano`
    #[arg(long, value_name = "M")]
    pub(crate) base: Option<String>,
    #[command(flatten)]
    pub(crate) weights: WeightArgs,
    /// Training data
    #[arg(long, value_name = "FILE")]
    pub(crate) data: Vec<PathBuf>,
    /// Held-out data for the loss curve [default: a seeded 5% of the training data]
    #[arg(long, value_name = "FILE")]
    pub(crate) valid: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) columns: ColumnArgs,
    /// Folder for the adapter, the log and the checkpoints
    #[arg(long)]
    pub(crate) out: Option<PathBuf>,
    /// Continue from the last checkpoint in --out
    #[arg(long)]
    pub(crate) resume: bool,
    /// Print the resolved plan and what it would do, then stop
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// What is minimised: sft, text, dpo, orpo, kto or simpo [default: sft; text for plain text]
    #[arg(long, value_name = "O", value_parser = objective)]
    pub(crate) objective: Option<train::Objective>,
    /// Train with each of these values, side by side on one base (repeatable; every combination)
    #[arg(long, value_name = "KEY=V,V")]
    pub(crate) sweep: Vec<String>,
    /// Optimizer steps; overrides num_train_epochs
    #[arg(long)]
    pub(crate) max_steps: Option<usize>,
    /// Passes over the training data
    #[arg(long)]
    pub(crate) num_train_epochs: Option<f64>,
    /// Peak learning rate
    #[arg(long)]
    pub(crate) learning_rate: Option<f64>,
    /// LoRA rank
    #[arg(long)]
    pub(crate) r: Option<usize>,
    /// LoRA alpha
    #[arg(long)]
    pub(crate) lora_alpha: Option<f32>,
    /// Seed of initialisation and order
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// General text on which forgetting is measured: a file or folder, or `off` [default: a bundled one]
    #[arg(long, value_name = "FILE")]
    pub(crate) guard: Option<PathBuf>,
    /// Write the numbers for these too, beside the log: tensorboard
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = ["tensorboard"])]
    pub(crate) report_to: Vec<String>,
    /// Print events as JSON lines instead of a progress bar
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `runs`.
#[derive(Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  metier runs
  metier runs out experiments --json
  metier runs compare out/a out/b --html compare.html"
)]
pub(crate) struct RunsArgs {
    /// What to do [default: list]
    #[command(subcommand)]
    pub(crate) command: Option<RunsCommand>,
    /// Folders to look for runs in, and in the folders below [default: this one]
    #[arg(value_name = "DIR")]
    pub(crate) dirs: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `runs` subcommands.
#[derive(Subcommand)]
pub(crate) enum RunsCommand {
    /// Settings that differ, results, and a page with all loss curves in one drawing
    Compare(RunsCompareArgs),
}

/// Arguments of `runs compare`.
#[derive(Args)]
pub(crate) struct RunsCompareArgs {
    /// Folders of runs, as `metier runs` lists them
    #[arg(required = true, value_name = "RUN")]
    pub(crate) runs: Vec<PathBuf>,
    /// The page to write
    #[arg(long, value_name = "FILE", default_value = "runs.html")]
    pub(crate) html: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `eval`.
#[derive(Args)]
#[command(after_help = "Examples:
  metier eval --model nano --adapter out/tickets --data test.jsonl --metrics json_field_accuracy
  metier eval --model nano --adapter out/banking --data test.csv --json --answers answers.jsonl
  metier eval --model nano --tasks testdata/lm_eval --json

Task files are run as lm-evaluation-harness runs them, with its numbers; the data must be in local files
(dataset_path: json).")]
pub(crate) struct EvalArgs {
    /// Base model: a folder, a .gguf file, a pulled ORG/NAME, or `nano`
    #[arg(long, value_name = "M")]
    pub(crate) model: String,
    #[command(flatten)]
    pub(crate) weights: WeightArgs,
    #[command(flatten)]
    pub(crate) kv_cache: KvCacheArgs,
    /// Adapter folder
    #[arg(long, value_name = "A")]
    pub(crate) adapter: Option<PathBuf>,
    /// Test set
    #[arg(long, value_name = "FILE", required_unless_present = "tasks")]
    pub(crate) data: Option<PathBuf>,
    /// Task files of lm-evaluation-harness, or folders of them, instead of a test set (repeatable)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["data", "metrics", "max_tokens"])]
    pub(crate) tasks: Vec<PathBuf>,
    /// Examples in front of each question of a task [default: as its file says]
    #[arg(long, value_name = "N", requires = "tasks")]
    pub(crate) num_fewshot: Option<usize>,
    #[command(flatten)]
    pub(crate) columns: ColumnArgs,
    /// Metrics, comma-separated; a parameter, as in regex:PATTERN, goes on to the end (repeatable)
    #[arg(long, value_name = "NAMES", default_value = "exact_match")]
    pub(crate) metrics: Vec<String>,
    /// For the metric embedding_similarity: an encoder's folder (bert, roberta, xlm-roberta), or a decoder
    #[arg(long, value_name = "M", conflicts_with = "tasks")]
    pub(crate) embedding_model: Option<String>,
    /// Longest answer in tokens
    #[arg(long, default_value_t = 256)]
    pub(crate) max_tokens: usize,
    /// Only the first N examples
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,
    /// Write every answer with its scores to this file (JSON lines)
    #[arg(long, value_name = "FILE")]
    pub(crate) answers: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `prove`.
#[derive(Args)]
#[command(after_help = "Examples:
  metier prove
  metier prove --config metier.toml --out proof
  metier prove --dry-run
  metier prove --against proofs/last/report.json

The candidates, the margin and the prices stand in [prove] and [cost] of the config file: see
docs/guide/prove.md. Answers of rented models are kept in the folder `records` of --out; a rerun asks
none of them again.")]
pub(crate) struct ProveArgs {
    /// Config file with [prove] and [cost]
    #[arg(long, value_name = "FILE", default_value = "metier.toml")]
    pub(crate) config: PathBuf,
    /// Folder for report.html, report.json and the answers [default: the file's, or `proof`]
    #[arg(long)]
    pub(crate) out: Option<PathBuf>,
    /// Compare with the judged candidate of this earlier report.json; fails only on a proven regression
    #[arg(long, value_name = "REPORT")]
    pub(crate) against: Option<PathBuf>,
    /// Say what would be asked of whom, and how small a gap the test set can show; ask nobody
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Ask rented models again for answers that failed, which may cost money a second time
    #[arg(long)]
    pub(crate) retry_failed: bool,
    /// Language of the report: en or fr
    #[arg(long, value_name = "L", default_value = "en", value_parser = language)]
    pub(crate) lang: eval::Language,
    /// Print report.json on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `verify`.
#[derive(Args)]
#[command(after_help = "Examples:
  metier verify proof/report.json
  metier verify proof/report.json --json
  metier verify proof/report.json --run-commands    # one's own report: its command: metrics are run again")]
pub(crate) struct VerifyArgs {
    /// The report of a proof, in its folder
    #[arg(value_name = "REPORT")]
    pub(crate) report: PathBuf,
    /// Run the programs of `command:` metrics again, which the report names: only for one's own reports
    #[arg(long)]
    pub(crate) run_commands: bool,
    /// The model of embedding_similarity [default: the one that the report names, where it is here]
    #[arg(long, value_name = "M")]
    pub(crate) embedding_model: Option<String>,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `prices` subcommands.
#[derive(Subcommand)]
pub(crate) enum PricesCommand {
    /// Keep a newer table, for proofs whose config file names none
    #[command(after_help = "Examples:
  metier prices update
  metier prices update --from https://prices.firm.eu/models.json
  metier prices update --from model_prices_and_context_window.json --date 2026-11-02

Without --from the table of genai-prices is fetched from
  https://raw.githubusercontent.com/pydantic/genai-prices/main/prices/data.json
No other command fetches prices, and this one only when it is run. Forms: genai-prices' data.json,
LiteLLM's model_prices_and_context_window.json, and our own, one price a line. A table that cannot be
read changes nothing; earlier ones are kept.")]
    Update(PricesUpdateArgs),
    /// The prices of a day, and which table they are from
    #[command(after_help = "Examples:
  metier prices list
  metier prices list gpt-4o --json
  metier prices list scaleway --date 2026-09-01")]
    List(PricesListArgs),
}

/// Arguments of `prices update`.
#[derive(Args)]
pub(crate) struct PricesUpdateArgs {
    /// A file, or an address (https://, or http:// of this machine) [default: genai-prices]
    #[arg(long, value_name = "FILE|URL")]
    pub(crate) from: Option<String>,
    /// The day that the table is from [default: today]
    #[arg(long, value_name = "YYYY-MM-DD", value_parser = day)]
    pub(crate) date: Option<time::Date>,
    #[command(flatten)]
    pub(crate) state: StateArgs,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `prices list`.
#[derive(Args)]
pub(crate) struct PricesListArgs {
    /// Only names with this in them
    #[arg(value_name = "PART")]
    pub(crate) part: Option<String>,
    /// The day whose prices hold, UTC [default: today]
    #[arg(long, value_name = "YYYY-MM-DD", value_parser = day)]
    pub(crate) date: Option<time::Date>,
    #[command(flatten)]
    pub(crate) state: StateArgs,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `review`.
#[derive(Args)]
#[command(after_help = "Examples:
  metier review
  metier review proof/report.json --labels anna.jsonl --seed 7 --reference
  metier review --summary --json
  metier review --labels anna.jsonl --summary --compare ben.jsonl

Each label is on the disk before the next pair is shown; the command goes on where it was left. The file
is what labels in [prove.pairwise] and [prove.rubric] reads.")]
pub(crate) struct ReviewArgs {
    /// The report of a proof, in its folder
    #[arg(value_name = "REPORT", default_value = "proof/report.json")]
    pub(crate) report: PathBuf,
    /// Candidate compared with [default: the one that the verdict compares with]
    #[arg(long, value_name = "NAME")]
    pub(crate) a: Option<String>,
    /// Candidate judged [default: the one that the verdict judges]
    #[arg(long, value_name = "NAME")]
    pub(crate) b: Option<String>,
    /// File of the labels, one for each reviewer [default: labels.jsonl beside the report]
    #[arg(long, value_name = "FILE")]
    pub(crate) labels: Option<PathBuf>,
    /// Decides the order of the pairs and which answer stands first; to be the same when going on
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Show the reference answer too
    #[arg(long)]
    pub(crate) reference: bool,
    /// Ask nothing, only say what the labels say
    #[arg(long)]
    pub(crate) summary: bool,
    /// Labels of another reviewer: how far the two agree
    #[arg(long, value_name = "FILE")]
    pub(crate) compare: Option<PathBuf>,
    /// Print the summary as JSON
    #[arg(long, requires = "summary")]
    pub(crate) json: bool,
}

/// How the next token is chosen.
#[derive(Args, Clone)]
pub(crate) struct SamplingArgs {
    /// Most tokens to generate
    #[arg(long, default_value_t = 256)]
    pub(crate) max_tokens: usize,
    /// 0 always takes the likeliest token
    #[arg(long, default_value_t = 0.7)]
    pub(crate) temperature: f32,
    /// Sample from the smallest set of tokens with this total probability
    #[arg(long, default_value_t = 1.0)]
    pub(crate) top_p: f32,
    /// Sample from the N likeliest tokens (0: all)
    #[arg(long, default_value_t = 0)]
    pub(crate) top_k: usize,
    /// Same seed, same text
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
}

/// Arguments of `generate`.
#[derive(Args)]
#[command(after_help = "Examples:
  metier generate --model nano --prompt \"Once upon a time\" --max-tokens 60
  metier generate --model ./SmolLM2-135M --prompt \"The capital of France is\" --temperature 0 --json")]
pub(crate) struct GenerateArgs {
    /// Base model: a folder, a .gguf file, a pulled ORG/NAME, or `nano`
    #[arg(long, value_name = "M")]
    pub(crate) model: String,
    #[command(flatten)]
    pub(crate) weights: WeightArgs,
    /// Adapter folder
    #[arg(long, value_name = "A")]
    pub(crate) adapter: Option<PathBuf>,
    /// Text to continue (as it is; see `chat` for conversations)
    #[arg(long)]
    pub(crate) prompt: String,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    /// Stop before this text (repeatable)
    #[arg(long)]
    pub(crate) stop: Vec<String>,
    /// Print one JSON object at the end instead of the text as it comes
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `chat`.
#[derive(Args)]
#[command(after_help = "Examples:
  metier chat --model nano --adapter out/tickets
  echo 'My boiler leaks, SW1A 1AA' | metier chat --model nano --adapter out/tickets --temperature 0

  metier chat --model nano --adapter tickets=out/tickets --adapter triage=out/triage

In the chat: /help lists the commands: /adapter goes on with another adapter, /compare asks the base
and all of them the same, /save keeps the conversation, /quit (or Ctrl-D) leaves.")]
pub(crate) struct ChatArgs {
    /// Base model: a folder, a .gguf file, a pulled ORG/NAME, or `nano`
    #[arg(long, value_name = "M")]
    pub(crate) model: String,
    #[command(flatten)]
    pub(crate) weights: WeightArgs,
    /// Adapter folder, or NAME=FOLDER (repeatable; the first one answers)
    #[arg(long, value_name = "A")]
    pub(crate) adapter: Vec<String>,
    /// System message
    #[arg(long)]
    pub(crate) system: Option<String>,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
}

/// Arguments of `tokenize`.
#[derive(Args)]
#[command(after_help = "Examples:
  metier tokenize --model nano --text \"Bonjour, ma chaudière fuit\"
  metier tokenize --model nano --file letter.txt --json")]
pub(crate) struct TokenizeArgs {
    /// Model whose tokenizer to use
    #[arg(long, value_name = "M")]
    pub(crate) model: String,
    /// The text
    #[arg(long, conflicts_with = "file", required_unless_present = "file")]
    pub(crate) text: Option<String>,
    /// A file with the text
    #[arg(long)]
    pub(crate) file: Option<PathBuf>,
    /// Parse special tokens in the text and add the beginning-of-sequence token as the model does
    #[arg(long)]
    pub(crate) special: bool,
    /// Print {"ids": [...]}
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `embed`.
#[derive(Args)]
#[command(after_help = "Examples:
  metier embed --model ./bge-small-en < questions.txt > vectors.jsonl
  metier embed --model nano --adapter out/tickets --pooling mean --file mails.txt

Each line is one text; each line of the output is {\"index\": N, \"embedding\": [...]}, in order.")]
pub(crate) struct EmbedArgs {
    /// Model: an encoder's folder (bert, roberta, xlm-roberta), or any decoder
    #[arg(long, value_name = "M")]
    pub(crate) model: String,
    #[command(flatten)]
    pub(crate) weights: WeightArgs,
    /// Adapter folder, of a decoder
    #[arg(long, value_name = "A")]
    pub(crate) adapter: Option<PathBuf>,
    /// File of texts [default: standard input]
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) embedding: EmbeddingArgs,
    /// Cut each embedding to its first N values, where the model was made for that
    #[arg(long, value_name = "N")]
    pub(crate) dimensions: Option<usize>,
}

/// Arguments of `serve`.
#[derive(Args)]
#[command(after_help = "Examples:
  metier serve --model nano --adapter tickets=out/tickets
  metier serve --model ./base --adapter a=out/a --adapter b=out/b --port 8080
  metier serve --model ./base --embedding-model ./bge-small-en
  metier serve --config metier.toml --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem

The `model` field of a request picks the base or an adapter by name. As soon as a key exists
(`metier keys create`), every route asks for one. Flags override [serve] of the config file; SIGHUP
reads the file and the certificate again.")]
pub(crate) struct ServeArgs {
    /// Base model: a folder, a .gguf file, a pulled ORG/NAME, or `nano` [default: nano]
    #[arg(long, value_name = "M")]
    pub(crate) model: Option<String>,
    #[command(flatten)]
    pub(crate) weights: WeightArgs,
    #[command(flatten)]
    pub(crate) kv_cache: KvCacheArgs,
    /// Another model, for /v1/embeddings alone: an encoder's folder (bert, roberta, xlm-roberta), or a
    /// decoder
    #[arg(long, value_name = "M")]
    pub(crate) embedding_model: Option<String>,
    /// Adapter as NAME=FOLDER (repeatable)
    #[arg(long, value_name = "NAME=PATH")]
    pub(crate) adapter: Vec<String>,
    /// Adapter of --adapter that never leaves memory for another (repeatable)
    #[arg(long, value_name = "NAME")]
    pub(crate) pin: Vec<String>,
    /// Folder below which requests may name adapters to load (repeatable); none may without it
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter_dir: Vec<PathBuf>,
    /// Most adapters in memory; others that are known are read again when they are asked for
    /// [default: 64]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_loaded_adapters: Option<u32>,
    /// Most memory for adapters together in MiB [default: 1024]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) adapter_memory_mib: Option<u32>,
    /// Config file with [base], [serve] and [cost]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Address to listen on [default: 127.0.0.1, reachable from this machine only]
    #[arg(long)]
    pub(crate) host: Option<String>,
    /// Port; 0 takes a free one [default: 8000]
    #[arg(long)]
    pub(crate) port: Option<u16>,
    /// Certificate for TLS, PEM, with those that vouch for it behind it
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) state: StateArgs,
    /// Memory for the KV cache in MiB [default: 512]
    #[arg(long, value_name = "N")]
    pub(crate) kv_cache_mib: Option<usize>,
    /// Most sequences running at once [default: 32]
    #[arg(long, value_name = "N")]
    pub(crate) max_num_seqs: Option<usize>,
    /// Do not keep the keys and values of finished requests for those that begin alike
    #[arg(long)]
    pub(crate) no_prefix_caching: bool,
    /// Most tokens guessed at a time, by --draft-model or from what the conversation says already;
    /// changes no answer, 0 guesses nothing [default: 4]
    #[arg(long, value_name = "N")]
    pub(crate) num_speculative_tokens: Option<usize>,
    /// Small model of the same tokenizer that guesses what comes next
    #[arg(long, value_name = "M")]
    pub(crate) draft_model: Option<String>,
    #[command(flatten)]
    pub(crate) embedding: EmbeddingArgs,
}

/// Arguments of `keys`.
#[derive(Args)]
pub(crate) struct KeysArgs {
    /// What to do
    #[command(subcommand)]
    pub(crate) command: KeysCommand,
}

/// `keys` subcommands.
#[derive(Subcommand)]
pub(crate) enum KeysCommand {
    /// Make a key and show it, this once
    #[command(after_help = "Examples:
  metier keys create --name operations --admin
  metier keys create --name shop --adapter tickets --requests-per-minute 60 --tokens-per-minute 20000
  metier keys create --name trial --monthly-budget 25 --expires 2026-12-31 --json
  metier keys create --name pilot --store-contents --retention-days 14

From the first key on, every route of every server on this state asks for one; servers that run notice
at once. The key goes into the header Authorization: Bearer, or x-api-key.")]
    Create(KeyCreateArgs),
    /// All keys, without their text: what they may, and whether they are in force
    #[command(after_help = "Examples:
  metier keys list
  metier keys list --json")]
    List(KeysListArgs),
    /// Refuse a key from now on, also in servers that run
    #[command(after_help = "Examples:
  metier keys revoke shop
  metier keys revoke mk-1f0c27aa")]
    Revoke(KeyRevokeArgs),
}

/// Arguments of `keys create`.
#[derive(Args)]
pub(crate) struct KeyCreateArgs {
    /// Whose it is; unique among the keys in force
    #[arg(long, value_name = "N")]
    pub(crate) name: String,
    /// Opens the admin routes as well
    #[arg(long)]
    pub(crate) admin: bool,
    /// May name this adapter (or the base) in `model`, and no other than those given (repeatable)
    /// [default: all]
    #[arg(long, value_name = "A")]
    pub(crate) adapter: Vec<String>,
    /// Most requests in a minute
    #[arg(long, value_name = "N")]
    pub(crate) requests_per_minute: Option<u32>,
    /// Most tokens in a minute, prompts and answers together
    #[arg(long, value_name = "N")]
    pub(crate) tokens_per_minute: Option<u32>,
    /// Most to be spent in a calendar month (UTC), in the currency of [cost]
    #[arg(long, value_name = "AMOUNT")]
    pub(crate) monthly_budget: Option<f64>,
    /// Keep prompts and answers, without the personal data that is recognised
    #[arg(long)]
    pub(crate) store_contents: bool,
    /// For how many days they are kept [default: 30]
    #[arg(long, value_name = "N", requires = "store_contents")]
    pub(crate) retention_days: Option<u32>,
    /// Last day of the key, UTC
    #[arg(long, value_name = "YYYY-MM-DD", value_parser = day)]
    pub(crate) expires: Option<time::Date>,
    #[command(flatten)]
    pub(crate) state: StateArgs,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `keys list`.
#[derive(Args)]
pub(crate) struct KeysListArgs {
    #[command(flatten)]
    pub(crate) state: StateArgs,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `keys revoke`.
#[derive(Args)]
pub(crate) struct KeyRevokeArgs {
    /// The name, or the beginning of the key as `list` shows it
    #[arg(value_name = "NAME")]
    pub(crate) key: String,
    #[command(flatten)]
    pub(crate) state: StateArgs,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `usage`.
#[derive(Args)]
#[command(after_help = "Examples:
  metier usage
  metier usage --by adapter --from 2026-11-01 --to 2026-11-30 --config metier.toml
  metier usage --by day --json")]
pub(crate) struct UsageArgs {
    /// What a line of the table is
    #[arg(long, value_enum, default_value_t = UsageGroup::Key)]
    pub(crate) by: UsageGroup,
    /// First day, UTC [default: the first of all]
    #[arg(long, value_name = "YYYY-MM-DD", value_parser = day)]
    pub(crate) from: Option<time::Date>,
    /// Last day, UTC [default: today]
    #[arg(long, value_name = "YYYY-MM-DD", value_parser = day)]
    pub(crate) to: Option<time::Date>,
    /// Config file with [cost], for a column with the cost
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) state: StateArgs,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// What `usage` sums up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum UsageGroup {
    /// Who asked
    Key,
    /// What answered
    Adapter,
    /// When
    Day,
}

/// A day as ISO 8601 writes it.
fn day(text: &str) -> Result<time::Date, String> {
    time::Date::parse(text, time::macros::format_description!("[year]-[month]-[day]"))
        .map_err(|_| "expected a day such as 2026-12-31".into())
}

fn share_bound(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if share > 0.0 && share < 1.0 => Ok(share),
        _ => Err("expected a share between 0 and 1, such as 0.05".into()),
    }
}

/// Arguments of `watch`.
#[derive(Args)]
#[command(after_help = "Examples:
  metier watch --max-errors 0.02 --max-disliked 0.1
  metier watch --name tickets --train train.jsonl --json
  metier watch --anchors anchors.jsonl --recorded proven.jsonl --model nano --adapter out/tickets

Shares may be looked at every night: their tests stay valid, a false alarm ever has a chance of 5 %.")]
pub(crate) struct WatchArgs {
    #[command(flatten)]
    pub(crate) state: StateArgs,
    /// Only what was asked of this name in `model` [default: all]
    #[arg(long = "name", value_name = "NAME")]
    pub(crate) adapter_name: Option<String>,
    /// First day, UTC [default: the first of all]
    #[arg(long, value_name = "YYYY-MM-DD", value_parser = day)]
    pub(crate) from: Option<time::Date>,
    /// Share of requests that may fail
    #[arg(long, value_name = "SHARE", value_parser = share_bound)]
    pub(crate) max_errors: Option<f64>,
    /// Share of ratings that may be below 0
    #[arg(long, value_name = "SHARE", value_parser = share_bound)]
    pub(crate) max_disliked: Option<f64>,
    /// Share of kept answers that may be no JSON
    #[arg(long, value_name = "SHARE", value_parser = share_bound)]
    pub(crate) max_broken: Option<f64>,
    /// Training set that kept questions are compared with, without labels: wording, language, length
    #[arg(long, value_name = "FILE")]
    pub(crate) train: Option<PathBuf>,
    /// Chance of a false alarm of that comparison, each time it is made
    #[arg(long, value_name = "SHARE", default_value_t = 0.01, value_parser = share_bound)]
    pub(crate) shift_level: f64,
    /// Test set that is answered again
    #[arg(long, value_name = "FILE")]
    pub(crate) anchors: Option<PathBuf>,
    /// The answers of that time, from `metier eval --answers`
    #[arg(long, value_name = "FILE")]
    pub(crate) recorded: Option<PathBuf>,
    /// Base model that answers the anchors
    #[arg(long, value_name = "M")]
    pub(crate) model: Option<String>,
    #[command(flatten)]
    pub(crate) weights: WeightArgs,
    /// Adapter folder
    #[arg(long, value_name = "A")]
    pub(crate) adapter: Option<PathBuf>,
    /// Metric of the anchors
    #[arg(long, default_value = "exact_match")]
    pub(crate) metric: String,
    /// Loss on the anchors that does not matter, as a share
    #[arg(long, value_name = "SHARE", default_value_t = 0.02)]
    pub(crate) margin: f64,
    /// Longest answer in tokens
    #[arg(long, default_value_t = 256)]
    pub(crate) max_tokens: usize,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `export`.
#[derive(Args)]
#[command(after_help = "Examples:
  metier export --base nano --adapter out/tickets --format peft --out export/tickets
  metier export --base nano --adapter out/tickets --format merged --out export/tickets-merged
  metier export --base ./base --adapter out/x --format gguf --dtype q4_k --out export/x
  metier export --base ./base --adapter out/x --format ollama --data test.jsonl --out export/x
  metier export --base ./base --format gguf --dtype q8_0 --out export/base
  metier export --base ./base --adapter out/x --format gguf-lora --out export/x-lora

What is written is read back and compared with the model in memory: logits, loss and KL divergence.
Beyond the bound of its format, nothing is left at --out.")]
pub(crate) struct ExportArgs {
    /// Base that the adapter was trained on: a folder, a .gguf file or `nano`
    #[arg(long, value_name = "M", default_value = "nano")]
    pub(crate) base: String,
    /// Adapter folder; formats of whole models without one write the base itself
    #[arg(long, value_name = "A")]
    pub(crate) adapter: Option<PathBuf>,
    /// What to write
    #[arg(long, value_parser = export_formats())]
    pub(crate) format: String,
    /// Weights of a GGUF file
    #[arg(long, value_name = "T", value_parser = ["f32", "f16", "q8_0", "q6_k", "q4_k", "q4_0"],
        default_value = "q8_0")]
    pub(crate) dtype: String,
    /// merged: largest file of weights, such as 500MB; more are written with an index
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "5GB")]
    pub(crate) max_shard_size: u64,
    /// Compare on the answers of this test set [default: on a bundled text]
    #[arg(long, value_name = "FILE")]
    pub(crate) data: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) columns: ColumnArgs,
    /// Only the first N examples of --data
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,
    /// Folder to write
    #[arg(long)]
    pub(crate) out: PathBuf,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// The formats of the table beside the command, each with what it holds.
fn export_formats() -> PossibleValuesParser {
    let formats = crate::commands::EXPORT_FORMATS.iter();
    formats.map(|format| PossibleValue::new(format.name).help(format.holds)).into()
}

/// A number of bytes with Hugging Face's units: KB, MB and GB are powers of 1000.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => 0,
    };
    match digits.trim().parse::<u64>().ok().and_then(|n| n.checked_mul(factor)) {
        Some(bytes) if bytes > 0 => Ok(bytes),
        _ => Err("expected a size such as 500MB or 5GB".into()),
    }
}

/// Arguments of `perplexity`.
#[derive(Args)]
#[command(after_help = "Examples:
  metier perplexity --model nano --text letters.txt
  metier perplexity --model ./model-q4_k.gguf --text wiki.test.raw --context 512 --json")]
pub(crate) struct PerplexityArgs {
    /// Model: a folder, a .gguf file, a pulled ORG/NAME, or `nano`
    #[arg(long, value_name = "M")]
    pub(crate) model: String,
    #[command(flatten)]
    pub(crate) weights: WeightArgs,
    #[command(flatten)]
    pub(crate) kv_cache: KvCacheArgs,
    /// Adapter folder
    #[arg(long, value_name = "A")]
    pub(crate) adapter: Option<PathBuf>,
    /// A file with the text, UTF-8
    #[arg(long, value_name = "FILE", conflicts_with = "ids", required_unless_present = "ids")]
    pub(crate) text: Option<PathBuf>,
    /// Or a file with its token ids, a JSON array
    #[arg(long, value_name = "FILE")]
    pub(crate) ids: Option<PathBuf>,
    /// Tokens in a window [default: 512, or the model's context where that is shorter]
    #[arg(long, value_name = "N")]
    pub(crate) context: Option<usize>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `bench`.
#[derive(Args)]
#[command(after_help = "Examples:
  metier bench decode --model nano
  metier bench prefill --model HuggingFaceTB/SmolLM2-135M --prompt-tokens 512 --runs 10 --json
  metier bench train --model HuggingFaceTB/SmolLM2-135M --rows 4 --prompt-tokens 512 --runs 3
  metier bench serve --url http://127.0.0.1:8000/v1 --concurrency 16 --output-tokens 32:128
  metier bench serve --serve-model tickets --serve-model mails --rate 4 --goodput ttft:500

Token ids are made up: speed does not depend on them. Prints the median of the runs, their range, and
the share of what this machine can do, measured just before and after.")]
pub(crate) struct BenchArgs {
    /// decode: one sequence, token after token; prefill: reading a prompt; train: LoRA steps on all
    /// linear layers; serve: a running server under many clients
    pub(crate) what: BenchWhat,
    /// Base model: a folder, a .gguf file, a pulled ORG/NAME, or `nano`
    #[arg(long, value_name = "M", default_value = "nano")]
    pub(crate) model: String,
    #[command(flatten)]
    pub(crate) weights: WeightArgs,
    #[command(flatten)]
    pub(crate) kv_cache: KvCacheArgs,
    /// Length of the prompt, or of a row to train on [default: 16 for decode, otherwise 512]
    #[arg(long, value_name = "N")]
    pub(crate) prompt_tokens: Option<usize>,
    /// Tokens to decode
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub(crate) tokens: usize,
    /// Rows of a training step
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub(crate) rows: usize,
    /// LoRA rank of the training
    #[arg(long, default_value_t = 16)]
    pub(crate) r: usize,
    /// Adapters trained side by side, each on its own rows
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) adapters: usize,
    /// Activations between forward and backward: computed again, or kept in this type (faster, with
    /// more memory)
    #[arg(long, value_name = "HOW", value_enum, default_value_t = BenchActivations::Recompute)]
    pub(crate) activations: BenchActivations,
    /// Counted runs (for train: steps), after one to warm up
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(crate) runs: usize,
    #[command(flatten, next_help_heading = "For serve")]
    pub(crate) serve: BenchServeArgs,
    /// Print JSON
    #[arg(long, help_heading = "Options")]
    pub(crate) json: bool,
}

/// What `bench serve` needs.
#[derive(Args)]
pub(crate) struct BenchServeArgs {
    /// The server: any that speaks OpenAI's API
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8000/v1")]
    pub(crate) url: String,
    /// A model or adapter to ask; with several, requests take turns [default: the first that the
    /// server lists]
    #[arg(long, value_name = "NAME")]
    pub(crate) serve_model: Vec<String>,
    /// More fields of the request, a JSON object; with several, requests take turns
    #[arg(long, value_name = "JSON")]
    pub(crate) extra: Vec<String>,
    /// Environment variable that holds the server's API key
    #[arg(long, value_name = "NAME")]
    pub(crate) api_key_env: Option<String>,
    /// Requests in all
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(crate) requests: usize,
    /// Clients that ask at once, each again when it is answered
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub(crate) concurrency: usize,
    /// Requests per second at random times (a Poisson process), however many are unanswered
    #[arg(long, value_name = "R", conflicts_with = "concurrency")]
    pub(crate) rate: Option<f64>,
    /// Length of a prompt in tokens (about, unless --prompt-vocab is given), or a range of lengths
    #[arg(long, value_name = "N|MIN:MAX", default_value = "128")]
    pub(crate) input_tokens: Lengths,
    /// Most tokens to generate, or a range
    #[arg(long, value_name = "N|MIN:MAX", default_value = "128")]
    pub(crate) output_tokens: Lengths,
    /// Send prompts as random token ids below this, so that their length is exact
    #[arg(long, value_name = "V")]
    pub(crate) prompt_vocab: Option<u32>,
    /// Ask /chat/completions, not /completions
    #[arg(long)]
    pub(crate) chat: bool,
    /// Generate the whole length even when the model would end before (field ignore_eos)
    #[arg(long)]
    pub(crate) ignore_eos: bool,
    /// Temperature of the requests
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub(crate) temperature: f64,
    /// Count the requests that keep within so many milliseconds: ttft:500, tpot:50 or e2el:5000
    #[arg(long, value_name = "WHAT:MS")]
    pub(crate) goodput: Vec<String>,
    /// Decides lengths, prompts and times
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
}

/// A length, or a range of lengths that are equally likely.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lengths {
    least: usize,
    most: usize,
}

impl Lengths {
    pub(crate) fn draw(&self, rng: &mut impl rand::Rng) -> usize {
        rand::RngExt::random_range(rng, self.least..=self.most)
    }
}

impl std::str::FromStr for Lengths {
    type Err = String;

    fn from_str(text: &str) -> Result<Lengths, String> {
        let (least, most) = text.split_once(':').unwrap_or((text, text));
        match (least.parse(), most.parse()) {
            (Ok(least), Ok(most)) if least > 0 && least <= most => Ok(Lengths { least, most }),
            _ => Err("expected a length of at least 1, or two as in 64:256".into()),
        }
    }
}

/// What `bench` measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum BenchWhat {
    /// One sequence, token after token
    Decode,
    /// Reading a prompt
    Prefill,
    /// LoRA steps
    Train,
    /// A running server under many clients
    Serve,
}

/// What `bench train` does about activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum BenchActivations {
    /// gradient_checkpointing = true
    Recompute,
    /// activation_dtype = "bfloat16"
    Bfloat16,
    /// activation_dtype = "float32"
    Float32,
}

/// Arguments of `doctor`.
#[derive(Args)]
#[command(after_help = "Examples:
  metier doctor
  metier doctor --model HuggingFaceTB/SmolLM2-135M --json")]
pub(crate) struct DoctorArgs {
    /// Only this model: a folder, a pulled ORG/NAME, or `nano`
    #[arg(long, value_name = "M")]
    pub(crate) model: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}
