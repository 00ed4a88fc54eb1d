//! Grammars that an answer must keep to, over the tokens of one tokenizer.

use crate::error::TextError;
use crate::tokenizer::Tokenizer;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{TokEnv, TokRxInfo, TokTrie, TokenizerEnv};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, PoisonError};

/// What an answer must be.
#[derive(Clone, Debug, PartialEq)]
pub enum GrammarSpec {
    /// Any JSON object.
    JsonObject,
    /// JSON that this schema allows.
    JsonSchema(Value),
    /// Text that this regular expression matches as a whole.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// Text of a context-free grammar in Lark's notation, beginning with `start`.
    Lark(String),
}

/// Compiles grammars for one tokenizer.
pub struct GrammarCompiler {
    factory: ParserFactory,
    /// The parser's own token for the end of an answer; no model has it.
    end: u32,
}

/// A compiled grammar, at its beginning.
pub struct CompiledGrammar {
    // The parser's caches change behind shared references; copies are made one at a time.
    matcher: Mutex<Matcher>,
    end: u32,
}

/// A place in a grammar.
pub struct GrammarState {
    matcher: Matcher,
    end: u32,
}

/// Most states of a grammar's lexer; each takes up to two kilobytes.
const MAX_LEXER_STATES: usize = 50_000;
/// Between the parts of a JSON document. Models that may put in white space without end sometimes do.
const JSON_SPACE: &str = r"[ \t\r\n]{0,20}";

impl GrammarCompiler {
    /// A compiler for `tokenizer`, over `vocab_size` ids (the rows of the model's head, V).
    ///
    /// # Errors
    /// [`TextError::Grammar`] when the vocabulary does not tell which bytes a token stands for.
    pub fn new(tokenizer: &Tokenizer, vocab_size: usize) -> Result<GrammarCompiler, TextError> {
        let mut words = tokenizer.token_bytes()?;
        words.resize(vocab_size, Vec::new());
        // A control token is no text, whatever its name spells.
        for id in tokenizer.control_ids() {
            if let Some(word) = words.get_mut(id as usize) {
                *word = special(word);
            }
        }
        // The parser wants a token that ends an answer. Which of the model's do is the caller's affair.
        let end = vocab_size as u32;
        let info = TokRxInfo::new(end + 1, end);
        words.push(special(b"<end of the answer>"));
        let env: TokEnv = Arc::new(Words { trie: TokTrie::from(&info, &words) });
        let mut factory = ParserFactory::new_simple(&env).map_err(grammar_error)?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.max_lexer_states = MAX_LEXER_STATES;
        // What a person reads should be about the grammar, not about the parser's inside.
        limits.verbose_errors = false;
        Ok(GrammarCompiler { factory, end })
    }

    /// Compiles a grammar. Takes up to some tens of milliseconds: all work is bounded.
    ///
    /// # Errors
    /// [`TextError::Grammar`] with what is wrong, not supported, or too large.
    pub fn compile(&self, spec: &GrammarSpec) -> Result<CompiledGrammar, TextError> {
        let grammar = match spec {
            GrammarSpec::JsonObject => json_grammar(json!({"type": "object"}))?,
            GrammarSpec::JsonSchema(schema) => json_grammar(schema.clone())?,
            GrammarSpec::Regex(regex) => TopLevelGrammar::from_regex(regex),
            GrammarSpec::Choice(choices) => {
                if choices.is_empty() {
                    let reason = "no choices; expected at least one".to_owned();
                    return Err(TextError::Grammar { reason });
                }
                let choices: Vec<String> = choices.iter().map(|c| json!(c).to_string()).collect();
                TopLevelGrammar::from_lark(format!("start: {}", choices.join(" | ")))
            }
            GrammarSpec::Lark(grammar) => TopLevelGrammar::from_lark(grammar.clone()),
        };
        let parser = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            self.factory.create_parser(grammar)
        }));
        let parser = parser.unwrap_or_else(|_| Err(anyhow::anyhow!("the grammar's work panicked")));
        let mut matcher = Matcher::new(Ok(parser.map_err(grammar_error)?));
        // Errors of the first step are errors of the grammar.
        matcher.compute_mask_or_eos().map_err(grammar_error)?;
        Ok(CompiledGrammar { matcher: Mutex::new(matcher), end: self.end })
    }
}

impl CompiledGrammar {
    /// The place before the first token.
    pub fn start(&self) -> GrammarState {
        let matcher = self.matcher.lock().unwrap_or_else(PoisonError::into_inner);
        GrammarState { matcher: matcher.deep_clone(), end: self.end }
    }
}

impl GrammarState {
    /// Sets the bits of the tokens that may follow, token `t` in bit `t % 32` of `words[t / 32]`.
    ///
    /// # Errors
    /// [`TextError::Grammar`] when that takes more work than is allowed.
    pub fn allowed(&mut self, words: &mut [u32]) -> Result<(), TextError> {
        if self.must_end() {
            return Ok(());
        }
        let mut mask = self.matcher.compute_mask().map_err(grammar_error)?;
        mask.disallow_token(self.end);
        for (word, allowed) in words.iter_mut().zip(mask.as_slice()) {
            *word |= allowed;
        }
        Ok(())
    }

    /// Moves on behind `token`.
    ///
    /// # Errors
    /// [`TextError::Grammar`] when it may not stand here.
    pub fn accept(&mut self, token: u32) -> Result<(), TextError> {
        self.matcher.consume_token(token).map_err(grammar_error)
    }

    /// Whether the text so far is whole.
    pub fn may_end(&mut self) -> bool {
        self.matcher.is_stopped() || self.matcher.is_accepting().unwrap_or(false)
    }

    /// Whether nothing may follow.
    pub fn must_end(&self) -> bool {
        self.matcher.is_stopped() && !self.matcher.is_error()
    }
}

fn json_grammar(mut schema: Value) -> Result<TopLevelGrammar, TextError> {
    match &mut schema {
        Value::Object(map) => {
            map.insert("x-guidance".into(), json!({"whitespace_pattern": JSON_SPACE}));
        }
        other => {
            let reason = format!("the schema is {other}; expected an object");
            return Err(TextError::Grammar { reason });
        }
    }
    Ok(TopLevelGrammar::from_json_schema(schema))
}

/// Bytes that no text has, as the parser wants them for tokens that are no text.
fn special(name: &[u8]) -> Vec<u8> {
    [&[TokTrie::SPECIAL_TOKEN_MARKER], name].concat()
}

fn grammar_error(error: impl std::fmt::Display) -> TextError {
    /// Errors quote the grammar, which may be long.
    const LONGEST: usize = 300;
    TextError::Grammar { reason: error.to_string().chars().take(LONGEST).collect() }
}

/// What the parser asks of a tokenizer. Texts that the grammar forces are left to the model to spell,
/// token by token, so nothing is encoded here.
struct Words {
    trie: TokTrie,
}

impl TokenizerEnv for Words {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }
    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        self.trie.greedy_tokenize(bytes)
    }
    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}
