//! Grammars that an answer must keep to, over the tokens of one tokenizer.

use crate::answer::{THINK, THINK_END, Thinking};
use crate::error::TextError;
use crate::tokenizer::Tokenizer;
use crate::tools::ToolFormat;
use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::toktrie::{TokEnv, TokRxInfo, TokTrie, TokenizerEnv};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use std::collections::HashMap;
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
    /// Calls of functions as the model writes them.
    Calls(CallSpec),
    /// Thoughts as the model marks them, then this.
    Behind(Thinking, Box<GrammarSpec>),
}

/// Which calls an answer may hold.
#[derive(Clone, Debug, PartialEq)]
pub struct CallSpec {
    /// How they are written.
    pub format: &'static ToolFormat,
    /// What may be called: names of letters, digits, dashes, underscores and dots, each with the JSON
    /// schema of its arguments, which describes an object.
    pub functions: Vec<(String, Value)>,
    /// Whether one answer may hold several, where the format has a way to write them.
    pub several: bool,
    /// What an answer may be that calls nothing, or nothing at first.
    pub or: Option<Uncalled>,
}

/// An answer without a call.
#[derive(Clone, Debug, PartialEq)]
pub enum Uncalled {
    /// Any text; calls may follow.
    Text,
    /// Text of this form; nothing may follow.
    Form(Box<GrammarSpec>),
}

/// Compiles grammars for one tokenizer.
pub struct GrammarCompiler {
    factory: ParserFactory,
    /// The control tokens by their names.
    controls: HashMap<String, u32>,
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
        let mut controls = HashMap::new();
        for id in tokenizer.control_ids() {
            controls.extend(tokenizer.token(id).map(|name| (name, id)));
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
        Ok(GrammarCompiler { factory, controls, end })
    }

    /// Compiles a grammar. Takes up to some tens of milliseconds: all work is bounded.
    ///
    /// # Errors
    /// [`TextError::Grammar`] with what is wrong, not supported, or too large.
    pub fn compile(&self, spec: &GrammarSpec) -> Result<CompiledGrammar, TextError> {
        let mut grammars = Vec::new();
        self.add(spec, "answer", &mut grammars)?;
        let grammar = TopLevelGrammar { grammars, max_tokens: None };
        let parser = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            self.factory.create_parser(grammar)
        }));
        let parser = parser.unwrap_or_else(|_| Err(anyhow::anyhow!("the grammar's work panicked")));
        let mut matcher = Matcher::new(Ok(parser.map_err(grammar_error)?));
        // Errors of the first step are errors of the grammar.
        matcher.compute_mask_or_eos().map_err(grammar_error)?;
        Ok(CompiledGrammar { matcher: Mutex::new(matcher), end: self.end })
    }

    /// Adds the grammar of `spec` under `name`, and behind it those that it refers to.
    fn add(
        &self,
        spec: &GrammarSpec,
        name: &str,
        grammars: &mut Vec<GrammarWithLexer>,
    ) -> Result<(), TextError> {
        let grammar = match spec {
            GrammarSpec::JsonObject => json_grammar(json!({"type": "object"}))?,
            GrammarSpec::JsonSchema(schema) => json_grammar(schema.clone())?,
            GrammarSpec::Regex(regex) => GrammarWithLexer::from_regex(regex),
            GrammarSpec::Choice(choices) => {
                if choices.is_empty() {
                    let reason = "no choices; expected at least one".to_owned();
                    return Err(TextError::Grammar { reason });
                }
                let choices: Vec<String> = choices.iter().map(|c| json!(c).to_string()).collect();
                GrammarWithLexer::from_lark(format!("start: {}", choices.join(" | ")))
            }
            GrammarSpec::Lark(grammar) => GrammarWithLexer::from_lark(grammar.clone()),
            GrammarSpec::Calls(calls) => return self.add_calls(calls, name, grammars),
            GrammarSpec::Behind(thinking, spec) => {
                let inner = format!("{name}-behind");
                let grammar = self.thoughts(*thinking, &inner);
                grammars.push(called(GrammarWithLexer::from_lark(grammar), name));
                return self.add(spec, &inner, grammars);
            }
        };
        grammars.push(called(grammar, name));
        Ok(())
    }

    fn add_calls(
        &self,
        calls: &CallSpec,
        name: &str,
        grammars: &mut Vec<GrammarWithLexer>,
    ) -> Result<(), TextError> {
        let layout = &calls.format.layout;
        let [before, between, behind] = layout.call;
        let written = |text: &str| self.spelled(calls.format, text);
        let ways: Vec<String> = (calls.functions.iter().enumerate())
            .map(|(i, (function, _))| {
                let head = written(&format!("{before}{function}{between}"));
                format!("{head} @{name}-{i} {}", written(behind))
            })
            .collect();
        let more = match layout.between.filter(|_| calls.several) {
            Some(between) => format!("({} call)*", written(between)),
            None => String::new(),
        };
        // What begins calls among text is the marker alone.
        let begin = calls.format.begins.iter().find(|b| layout.open.starts_with(b.marker));
        let open = begin.map_or("", |begin| begin.marker);
        let (rest, close) = (written(&layout.open[open.len()..]), written(layout.close));
        let lark = match &calls.or {
            None => format!("start: {} calls", written(open)),
            Some(Uncalled::Form(_)) => format!("start: {} calls | @{name}-form", written(open)),
            Some(Uncalled::Text) => self.or_text(calls.format, open),
        };
        let ways = ways.join(" | ");
        let lark = format!("{lark}\ncalls: {rest} call {more} {close}\ncall: {ways}\n");
        grammars.push(called(GrammarWithLexer::from_lark(lark), name));
        for (i, (_, schema)) in calls.functions.iter().enumerate() {
            grammars.push(called(json_grammar(schema.clone())?, &format!("{name}-{i}")));
        }
        match &calls.or {
            Some(Uncalled::Form(form)) => self.add(form, &format!("{name}-form"), grammars),
            _ => Ok(()),
        }
    }

    /// Rules for text, and calls behind it where these have the marker `open`. Text without calls holds
    /// no marker.
    fn or_text(&self, format: &ToolFormat, open: &str) -> String {
        // No text holds a control token.
        let begins: Vec<String> = (format.begins.iter())
            .filter(|begin| !self.controls.contains_key(begin.marker))
            .map(|begin| format!(" & ~/(?s:.*){}(?s:.*)/", in_lark(begin.marker)))
            .collect();
        let begins = begins.concat();
        if open.is_empty() {
            // Without a marker, the first letter tells a call.
            return format!("start: calls | TEXT?\nTEXT: /(?s:.+)/ & ~/\\s*\\{{(?s:.*)/{begins}");
        }
        let text = format!("TEXT: /(?s:.+)/{begins}");
        if self.controls.contains_key(open) {
            return format!("start: TEXT? ({} calls)?\n{text}", self.spelled(format, open));
        }
        let marker = json!(open);
        format!("start: TEXT? | until calls\nuntil[suffix={marker}]: /(?s:.*)/\n{text}")
    }

    /// Rules for thoughts before the grammar `inner`.
    fn thoughts(&self, thinking: Thinking, inner: &str) -> String {
        let marker = |name: &str| self.controls.get(name).map(|id| format!("<[{id}]>"));
        let begin = marker(THINK).unwrap_or_else(|| json!(THINK).to_string());
        let (end, rule) = match marker(THINK_END) {
            Some(end) => (format!("TEXT? {end}"), "TEXT: /(?s:.+)/".to_owned()),
            None => {
                let end = json!(THINK_END);
                ("thoughts".to_owned(), format!("thoughts[suffix={end}]: /(?s:.*)/"))
            }
        };
        let start = match thinking {
            Thinking::None => format!("@{inner}"),
            Thinking::Begun => format!("{end} BLANK? @{inner}"),
            Thinking::Marked => format!("({begin} {end} BLANK?)? @{inner}"),
        };
        let blank = r"BLANK: /[ \n]{1,4}/";
        match thinking {
            Thinking::None => format!("start: {start}"),
            _ => format!("start: {start}\n{rule}\n{blank}"),
        }
    }

    /// `text` of a format in Lark's notation: its markers as tokens where they are control tokens, its
    /// white space optional.
    fn spelled(&self, format: &ToolFormat, text: &str) -> String {
        let control = |rest: &str| {
            let mut markers = format.markers().filter(|marker| rest.starts_with(marker));
            markers.find_map(|marker| Some((marker, *self.controls.get(marker)?)))
        };
        let mut spelled = Vec::new();
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let len = if let Some((marker, id)) = control(rest) {
                spelled.push(format!("<[{id}]>"));
                marker.len()
            } else if first.is_whitespace() {
                spelled.push(format!("{}?", json!(first)));
                first.len_utf8()
            } else {
                let ends =
                    |(at, c): &(usize, char)| c.is_whitespace() || control(&rest[*at..]).is_some();
                let len = rest.char_indices().find(ends).map_or(rest.len(), |(at, _)| at);
                spelled.push(json!(rest[..len]).to_string());
                len
            };
            rest = &rest[len..];
        }
        spelled.join(" ")
    }
}

/// The grammar under this name.
fn called(grammar: GrammarWithLexer, name: &str) -> GrammarWithLexer {
    GrammarWithLexer { name: Some(name.to_owned()), ..grammar }
}

/// A marker inside a regular expression in Lark's notation.
fn in_lark(marker: &str) -> String {
    let escaped = |c: char| match r"\/|()[]{}.*+?^$".contains(c) {
        true => format!("\\{c}"),
        false => c.to_string(),
    };
    marker.chars().map(escaped).collect()
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

fn json_grammar(mut schema: Value) -> Result<GrammarWithLexer, TextError> {
    match &mut schema {
        Value::Object(map) => {
            map.insert("x-guidance".into(), json!({"whitespace_pattern": JSON_SPACE}));
        }
        other => {
            let reason = format!("the schema is {other}; expected an object");
            return Err(TextError::Grammar { reason });
        }
    }
    Ok(GrammarWithLexer::from_json_schema(schema))
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
