//! How text is cut into words before byte pairs are joined: one table of what each name means.
//!
//! The names are those of `tokenizer.ggml.pre` in GGUF files. The expressions are the ones in the
//! `tokenizer.json` of the models that the names come from.

use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

/// One way to cut text into words, under all its names.
pub(crate) struct PreTokenizer {
    names: &'static [&'static str],
    /// Letters and their accents are joined first (Unicode's NFC).
    pub(crate) composes: bool,
    cuts: &'static [Cut],
    /// A word that is a token as a whole is taken as it is.
    pub(crate) whole_words_first: bool,
    /// Whether a beginning token is added where the file does not say.
    pub(crate) adds_bos: bool,
}

/// One cut; each works on the pieces that the one before it left.
enum Cut {
    /// Every match is a word, and so is what stands between matches.
    Regex(&'static str),
    /// Every digit is a word.
    Digits,
    /// GPT-2's words.
    Gpt2,
}

pub(crate) const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(crate) const QWEN_2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(crate) const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK_3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;

static PRE_TOKENIZERS: &[PreTokenizer] = &[
    PreTokenizer {
        names: &["gpt-2", "phi-2"],
        composes: false,
        cuts: &[Cut::Gpt2],
        whole_words_first: false,
        adds_bos: false,
    },
    // GPT-NeoX's tokenizer and its descendants.
    PreTokenizer {
        names: &["mpt", "olmo"],
        composes: true,
        cuts: &[Cut::Gpt2],
        whole_words_first: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["smollm", "starcoder", "refact"],
        composes: false,
        cuts: &[Cut::Digits, Cut::Gpt2],
        whole_words_first: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3"],
        composes: false,
        cuts: &[Cut::Regex(LLAMA_3)],
        whole_words_first: true,
        adds_bos: true,
    },
    // OpenAI's cl100k, which Llama 3 extends: Phi-4, OLMo 2, Granite, GLM-4.
    PreTokenizer {
        names: &["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"],
        composes: false,
        cuts: &[Cut::Regex(LLAMA_3)],
        whole_words_first: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["qwen2", "deepseek-r1-qwen"],
        composes: true,
        cuts: &[Cut::Regex(QWEN_2)],
        whole_words_first: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["tekken"],
        composes: false,
        cuts: &[Cut::Regex(TEKKEN)],
        whole_words_first: true,
        adds_bos: true,
    },
    PreTokenizer {
        names: &["deepseek-coder"],
        composes: false,
        cuts: &[
            Cut::Regex(r"[\r\n]"),
            Cut::Regex(r"\s?\p{L}+"),
            Cut::Regex(r"\s?\p{P}+"),
            Cut::Regex(r"[一-龥ࠀ-一가-퟿]+"),
            Cut::Digits,
        ],
        whole_words_first: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["deepseek-v3"],
        composes: false,
        cuts: &[
            Cut::Regex(r"\p{N}{1,3}"),
            Cut::Regex(r"[一-龥぀-ゟ゠-ヿ]+"),
            Cut::Regex(DEEPSEEK_3),
        ],
        whole_words_first: false,
        adds_bos: false,
    },
];

/// Which of them the tokenizer classes of Transformers use, for files that do not say.
const CLASSES: &[(&str, &str)] = &[
    ("GPT2Tokenizer", "gpt-2"),
    ("GPT2TokenizerFast", "gpt-2"),
    ("QWenTokenizer", "qwen2"),
    ("Qwen2Tokenizer", "qwen2"),
    ("Qwen2TokenizerFast", "qwen2"),
];

/// What a rank file does not say itself; it is known by its name.
pub(super) struct RankFile {
    pub(super) name: &'static str,
    /// Name of its row in [`PRE_TOKENIZERS`].
    pub(super) words: &'static str,
    /// How many ranks it has, where others that differ have the same name.
    pub(super) ranks: Option<usize>,
    /// Control tokens that follow the ranks where `tokenizer_config.json` lists none.
    pub(super) controls: &'static [&'static str],
    /// Further tokens up to this many, which are reserved, as the reference numbers them.
    pub(super) reserved: usize,
    /// Named by the same rule: the token that begins a text, and those that end an answer.
    pub(super) begin: Option<&'static str>,
    pub(super) ends: &'static [&'static str],
}

pub(super) const RANK_FILES: &[RankFile] = &[
    RankFile {
        name: "qwen.tiktoken",
        words: "qwen2",
        ranks: None,
        controls: &["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        reserved: 3,
        begin: None,
        ends: &["<|endoftext|>"],
    },
    // The names are those of Llama 3.1 and later; the first release had reserved ones at the places
    // of <|finetune_right_pad_id|>, <|eom_id|> and <|python_tag|>.
    RankFile {
        name: "tokenizer.model",
        words: "llama-bpe",
        ranks: Some(128_000),
        controls: &[
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|reserved_special_token_0|>",
            "<|reserved_special_token_1|>",
            "<|finetune_right_pad_id|>",
            "<|reserved_special_token_2|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eom_id|>",
            "<|eot_id|>",
            "<|python_tag|>",
        ],
        reserved: 256,
        begin: Some("<|begin_of_text|>"),
        ends: &["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"],
    },
];

impl RankFile {
    /// Control tokens in the order of their ids.
    pub(super) fn all_controls(&self) -> Vec<String> {
        let named = self.controls.iter().map(|token| (*token).to_owned());
        let reserved = |token: &&&str| token.starts_with("<|reserved_special_token_");
        let first = self.controls.iter().filter(reserved).count();
        let more = self.reserved - self.controls.len();
        let reserved = (first..first + more).map(|n| format!("<|reserved_special_token_{n}|>"));
        named.chain(reserved).collect()
    }
}

impl PreTokenizer {
    /// The one with this name.
    ///
    /// # Errors
    /// That there is none, with the names that there are.
    pub(crate) fn named(name: &str) -> Result<&'static PreTokenizer, String> {
        PRE_TOKENIZERS.iter().find(|row| row.names.contains(&name)).ok_or_else(|| {
            let known: Vec<&str> =
                PRE_TOKENIZERS.iter().flat_map(|row| row.names).copied().collect();
            format!(
                "its pre-tokenizer {:?} is not known here (known are {})",
                crate::error::excerpt(name),
                known.join(", ")
            )
        })
    }

    /// The one of a tokenizer class of Transformers.
    ///
    /// # Errors
    /// That the class is not known, with the ones that are.
    pub(crate) fn of_class(class: &str) -> Result<&'static PreTokenizer, String> {
        match CLASSES.iter().find(|(known, _)| *known == class) {
            Some((_, name)) => Self::named(name),
            None => {
                let known: Vec<&str> = CLASSES.iter().map(|(known, _)| *known).collect();
                Err(format!(
                    "tokenizer_class is {:?}, whose way to cut words is not known here (known are {})",
                    crate::error::excerpt(class),
                    known.join(", ")
                ))
            }
        }
    }

    /// As the tokenizers library has it.
    ///
    /// # Errors
    /// When an expression of the table does not compile.
    pub(super) fn build(&self) -> tokenizers::Result<PreTokenizerWrapper> {
        let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
        let mut bytes_done = false;
        for cut in self.cuts {
            match cut {
                Cut::Regex(expression) => steps.push(
                    Split::new(
                        SplitPattern::Regex((*expression).to_owned()),
                        SplitDelimiterBehavior::Isolated,
                        false,
                    )?
                    .into(),
                ),
                Cut::Digits => steps.push(Digits::new(true).into()),
                Cut::Gpt2 => {
                    steps.push(ByteLevel::new(false, true, true).into());
                    bytes_done = true;
                }
            }
        }
        if !bytes_done {
            steps.push(ByteLevel::new(false, true, false).into());
        }
        Ok(Sequence::new(steps).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_builds_and_has_one_meaning() {
        let mut seen = std::collections::HashSet::new();
        for row in PRE_TOKENIZERS {
            row.build().unwrap();
            for name in row.names {
                assert!(seen.insert(name), "{name} twice");
                assert!(std::ptr::eq(PreTokenizer::named(name).unwrap(), row));
            }
        }
        for (class, name) in CLASSES {
            assert!(std::ptr::eq(
                PreTokenizer::of_class(class).unwrap(),
                PreTokenizer::named(name).unwrap()
            ));
        }
        for file in RANK_FILES {
            PreTokenizer::named(file.words).unwrap();
            assert_eq!(file.all_controls().len(), file.reserved);
            let known = |token: &&str| file.controls.contains(token);
            assert!(file.ends.iter().all(known));
            assert!(file.begin.iter().all(known));
        }
        let error = PreTokenizer::named("babbage").err().unwrap();
        assert!(error.contains("\"babbage\"") && error.contains("llama-bpe"), "{error}");
    }
}
