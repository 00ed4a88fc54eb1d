//! Trains the tokenizer of metier-nano: `cargo run -p xtask --release -- nano-tokenizer
//! --corpus ../shared/corpus --out assets/nano`.
//!
//! The result is a byte-level BPE in Hugging Face's `tokenizer.json` format. Its alphabet holds all
//! 256 bytes, so there is no unknown token and every text survives a round trip (after NFC). The
//! training sample and therefore the output are a pure function of the corpus.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{
    AddedToken, Model, NormalizedString, SplitDelimiterBehavior, Tokenizer, TokenizerBuilder,
    TokenizerImpl,
};

/// All tokens together: the special ones, the 256 bytes and the merges.
const VOCAB_SIZE: usize = 4096;
/// Longest token in bytes; longer ones would be rulers (`-----`) and the like.
const MAX_TOKEN_BYTES: usize = 16;
/// Positions of metier-nano.
const MODEL_MAX_LENGTH: usize = 1024;

const PAD: &str = "<|pad|>";
const BOS: &str = "<|bos|>";
const EOS: &str = "<|eos|>";
const END_OF_TURN: &str = "<|end|>";
/// Ids 0 to 6; the reserved tokens fill up to id 15.
const NAMED_SPECIAL_TOKENS: [&str; 7] =
    [PAD, BOS, EOS, "<|system|>", "<|user|>", "<|assistant|>", END_OF_TURN];
const SPECIAL_TOKENS: usize = 16;

/// How text is cut before merging; no token reaches over a cut. In order: English contractions,
/// French elisions (`l'`, `qu'`), words with the space before them, single digits (so that numbers
/// and postcodes are copied digit by digit), runs of punctuation, line ends, other space.
const SPLIT_PATTERN: &str = concat!(
    r"(?i:['’](?:s|t|re|ve|m|ll|d))(?!\p{L})",
    r"| ?(?i:[cdjlmnst]|qu|jusqu|lorsqu|puisqu)['’](?=\p{L})",
    r"| ?[\p{L}\p{M}]+",
    r"|\p{N}",
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+",
    r"|\s+(?!\S)",
    r"|\s+",
);

/// Every tag trims the space around it, so the line ends below are for the reader only.
const CHAT_TEMPLATE: &str = r#"{{- bos_token -}}
{%- for message in messages -%}
    {%- if message['role'] not in ['system', 'user', 'assistant'] -%}
        {{- raise_exception('unknown role ' ~ message['role'] ~ '; expected system, user or assistant') -}}
    {%- endif -%}
    {{- '<|' ~ message['role'] ~ '|>' ~ message['content'] ~ '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant|>' -}}
{%- endif -%}
"#;

type NanoTokenizer = TokenizerImpl<BPE, NFC, Sequence, TemplateProcessing, ByteLevelDecoder>;

/// Entry of the subcommand; `arguments` are the words after its name.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let (corpus, out) = parse(arguments)?;
    let sample = Sample::read(&corpus)?;
    println!(
        "training on {} pieces, {:.1} MB; {:.2} MB held out",
        sample.train.len(),
        sample.train.iter().map(String::len).sum::<usize>() as f64 / 1e6,
        sample.held_out.values().map(String::len).sum::<usize>() as f64 / 1e6,
    );
    let tokenizer = train(&sample.train)?;
    write(&out, &tokenizer)?;

    // Judge the file as a user will load it, not the object in memory.
    let written = Tokenizer::from_file(out.join("tokenizer.json"))
        .map_err(|error| anyhow::anyhow!("the tokenizer just written does not load: {error}"))?;
    check(&written)?;
    for (name, text) in &sample.held_out {
        let tokens = encode(&written, text)?.len();
        println!("held out {name}: {:.3} bytes per token", text.len() as f64 / tokens as f64);
    }
    Ok(())
}

fn parse(arguments: &[String]) -> Result<(PathBuf, PathBuf)> {
    let mut corpus = PathBuf::from("../shared/corpus");
    let mut out = PathBuf::from("assets/nano");
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let target = match word.as_str() {
            "--corpus" => &mut corpus,
            "--out" => &mut out,
            other => bail!("unknown argument {other}; expected --corpus DIR or --out DIR"),
        };
        *target = words.next().with_context(|| format!("{word} needs a folder"))?.into();
    }
    Ok((corpus, out))
}

/// Training pieces, and held-out text by kind, from a corpus folder with `text/*_LANG_*.txt` and
/// `instruct.jsonl`.
struct Sample {
    train: Vec<String>,
    held_out: BTreeMap<&'static str, String>,
}

impl Sample {
    /// English paragraphs are halved and French ones doubled, because the corpus holds six times
    /// more English; instruct rows are doubled, because that is what the model will answer. One
    /// piece in 200, chosen by its hash, is held out.
    fn read(corpus: &Path) -> Result<Self> {
        let mut sample = Self { train: Vec::new(), held_out: BTreeMap::new() };
        let folder = corpus.join("text");
        let mut files: Vec<PathBuf> = fs::read_dir(&folder)
            .with_context(|| format!("cannot list {}", folder.display()))?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()?;
        files.sort();
        for file in files {
            let text = fs::read_to_string(&file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            let french = name.contains("_fr_");
            for (index, paragraph) in text.split_inclusive("\n\n").enumerate() {
                match (french, index % 2) {
                    (true, _) => sample.add("french", paragraph, 2),
                    (false, 0) => sample.add("english", paragraph, 1),
                    (false, _) => {}
                }
            }
        }

        let file = corpus.join("instruct.jsonl");
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        for (index, line) in text.lines().enumerate() {
            let row: Value = serde_json::from_str(line)
                .with_context(|| format!("{}:{}: not JSON", file.display(), index + 1))?;
            let messages = row["messages"]
                .as_array()
                .with_context(|| format!("{}:{}: no list `messages`", file.display(), index + 1))?;
            for message in messages {
                sample.add("instruct", message["content"].as_str().unwrap_or_default(), 2);
            }
            if index % 10 == 0 {
                for text in json_forms(&row, index) {
                    sample.add("json", &text, 1);
                }
            }
        }
        ensure!(!sample.train.is_empty(), "the corpus {} is empty", corpus.display());
        Ok(sample)
    }

    fn add(&mut self, kind: &'static str, text: &str, weight: usize) {
        if hash(text).is_multiple_of(200) {
            self.held_out.entry(kind).or_default().push_str(text);
        } else {
            self.train.extend(std::iter::repeat_n(text.to_owned(), weight));
        }
    }
}

/// JSON as programs write it: a conversation and a made-up record, compact, spaced and indented.
fn json_forms(row: &Value, index: usize) -> Vec<String> {
    let pick = |choices: &[&str], salt: usize| -> Value {
        let draw = hash(&format!("{index} {salt}")) as usize;
        choices[draw % choices.len()].into()
    };
    let number = hash(&format!("{index} number")) % 100_000;
    let record = json!({
        "id": number,
        "name": pick(&["Martin", "Dupont", "Smith", "Garcia", "Lefebvre", "Jones"], 1),
        "type": pick(&["order", "request", "invoice", "complaint", "question"], 2),
        "status": pick(&["open", "closed", "pending", "unknown"], 3),
        "language": pick(&["en", "fr"], 4),
        "phone": format!("0{number:05}{:04}", number % 10_000),
        "date": format!("20{:02}-{:02}-{:02}", number % 30, number % 12 + 1, number % 28 + 1),
        "amount": number as f64 / 100.0,
        "urgent": number.is_multiple_of(2),
        "comment": Value::Null,
        "tags": [pick(&["high", "medium", "low"], 5), pick(&["new", "old"], 6)],
    });
    [row, &record]
        .into_iter()
        .flat_map(|value| {
            let compact = value.to_string();
            let spaced = compact.replace("\":", "\": ").replace(",\"", ", \"");
            [compact, spaced, format!("{value:#}")]
        })
        .collect()
}

/// FNV-1a, 64 bits, with a final mix so that the low digits are even.
fn hash(text: &str) -> u64 {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    hash ^ (hash >> 32)
}

fn train(pieces: &[String]) -> Result<NanoTokenizer> {
    let names = NAMED_SPECIAL_TOKENS.iter().map(|name| (*name).to_owned()).chain(
        (0..SPECIAL_TOKENS - NAMED_SPECIAL_TOKENS.len()).map(|i| format!("<|reserved_{i}|>")),
    );
    let special: Vec<AddedToken> = names.map(|name| AddedToken::from(name, true)).collect();
    let mut trainer = BpeTrainer::builder()
        .vocab_size(VOCAB_SIZE)
        .min_frequency(2)
        .show_progress(false)
        .special_tokens(special)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .max_token_length(Some(MAX_TOKEN_BYTES))
        .build();

    let split = Split::new(
        SplitPattern::Regex(SPLIT_PATTERN.into()),
        SplitDelimiterBehavior::Isolated,
        false,
    )
    .map_err(anyhow::Error::from_boxed)?;
    // The split pattern has cut the text already: the byte-level step only maps bytes.
    let bytes = ByteLevel::new(false, false, false);
    let post_processor = TemplateProcessing::builder()
        .try_single(format!("{BOS}:0 $A:0"))
        .map_err(anyhow::Error::msg)?
        .try_pair(format!("{BOS}:0 $A:0 $B:1"))
        .map_err(anyhow::Error::msg)?
        .special_tokens(vec![(BOS, 1)])
        .build()?;
    let mut tokenizer: NanoTokenizer = TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_normalizer(Some(NFC))
        .with_pre_tokenizer(Some(Sequence::new(vec![split.into(), bytes.into()])))
        .with_post_processor(Some(post_processor))
        .with_decoder(Some(ByteLevelDecoder::default()))
        .build()
        .map_err(anyhow::Error::from_boxed)?;
    tokenizer.train(&mut trainer, pieces.iter()).map_err(anyhow::Error::from_boxed)?;
    ensure!(
        tokenizer.get_vocab_size(true) == VOCAB_SIZE,
        "the corpus gave {} tokens instead of {VOCAB_SIZE}: it is too small",
        tokenizer.get_vocab_size(true)
    );
    ensure!(tokenizer.get_model().token_to_id(BOS) == Some(1), "{BOS} did not get id 1");
    Ok(tokenizer)
}

fn write(out: &Path, tokenizer: &NanoTokenizer) -> Result<()> {
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let save = |name: &str, text: String| {
        let path = out.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    let tokenizer = serde_json::to_value(tokenizer)?;
    save("tokenizer.json", format!("{tokenizer:#}\n"))?;
    save("chat_template.jinja", CHAT_TEMPLATE.to_owned())?;
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "add_bos_token": true,
        "add_eos_token": false,
        "model_max_length": MODEL_MAX_LENGTH,
        "clean_up_tokenization_spaces": false,
        "chat_template": CHAT_TEMPLATE,
    });
    save("tokenizer_config.json", format!("{config:#}\n"))?;
    let special = json!({ "bos_token": BOS, "eos_token": EOS, "pad_token": PAD });
    save("special_tokens_map.json", format!("{special:#}\n"))?;
    let generation = json!({ "bos_token_id": 1, "eos_token_id": [2, 6], "pad_token_id": 0 });
    save("generation_config.json", format!("{generation:#}\n"))
}

/// Fixed ids hold, digits stand alone, and texts of every kind come back unchanged.
fn check(tokenizer: &Tokenizer) -> Result<()> {
    for (id, name) in NAMED_SPECIAL_TOKENS.iter().enumerate() {
        ensure!(
            tokenizer.token_to_id(name) == Some(id as u32),
            "{name} has id {:?} instead of {id}",
            tokenizer.token_to_id(name)
        );
    }
    let many_scripts: String = (0..0x3000).filter_map(char::from_u32).collect();
    let texts = [
        "My washing machine won't drain; call 0612345678 before 5pm.",
        "L’été, l'évier fuit : appelez-moi aujourd'hui, s'il vous plaît !\n\n\t« Où ? »",
        "🧺👩🏽‍🔧 日本語 \u{301}\u{0} cafe\u{301}",
        r#"{"appliance":"oven","postcode":"75011","tags":["a", null], "n": -1.50}"#,
        &many_scripts,
    ];
    for text in texts {
        let mut expected = NormalizedString::from(text);
        expected.nfc();
        let ids = encode(tokenizer, text)?;
        let back = tokenizer.decode(&ids, false).map_err(anyhow::Error::from_boxed)?;
        ensure!(back == expected.get(), "came back changed: {text:?}");
    }
    let digits = encode(tokenizer, "75011")?;
    ensure!(digits.len() == 5, "75011 became {} tokens instead of five", digits.len());
    Ok(())
}

fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let encoding = tokenizer.encode_fast(text, false).map_err(anyhow::Error::from_boxed)?;
    Ok(encoding.get_ids().to_vec())
}
