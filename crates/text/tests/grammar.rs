//! Grammars over the bundled base's vocabulary and over one token per byte.

use serde_json::{Value, json};
use std::path::Path;
use text::{GrammarCompiler, GrammarSpec, GrammarState, TextError, Tokenizer};

fn nano() -> Tokenizer {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/nano");
    Tokenizer::from_dir(&dir).unwrap()
}

struct Compiler {
    tokenizer: Tokenizer,
    compiler: GrammarCompiler,
    vocab: usize,
}

fn compiler() -> Compiler {
    let tokenizer = nano();
    // More rows than tokens, as many models have.
    let vocab = tokenizer.max_id() as usize + 40;
    let compiler = GrammarCompiler::new(&tokenizer, vocab).unwrap();
    Compiler { tokenizer, compiler, vocab }
}

impl Compiler {
    fn allowed(&self, state: &mut GrammarState) -> Vec<u32> {
        let mut words = vec![0u32; self.vocab.div_ceil(32)];
        state.allowed(&mut words).unwrap();
        (0..32 * words.len() as u32)
            .filter(|t| words[*t as usize / 32] >> (t % 32) & 1 == 1)
            .collect()
    }

    /// Whether `text` is whole in the grammar. Every token of it must be allowed where it stands, and
    /// what is not allowed must be refused.
    fn takes(&self, spec: &GrammarSpec, text: &str) -> bool {
        let grammar = self.compiler.compile(spec).unwrap();
        let mut state = grammar.start();
        for token in self.tokenizer.encode(text).unwrap() {
            let allowed = self.allowed(&mut state);
            assert!(allowed.iter().all(|&t| !self.tokenizer.is_control(t)), "no control tokens");
            assert!(
                allowed.iter().all(|&t| t <= self.tokenizer.max_id()),
                "no rows without tokens"
            );
            if !allowed.contains(&token) {
                assert!(grammar.start().accept(u32::MAX).is_err());
                return false;
            }
            state.accept(token).unwrap();
        }
        state.may_end()
    }

    fn error(&self, spec: &GrammarSpec) -> String {
        match self.compiler.compile(spec) {
            Err(error @ TextError::Grammar { .. }) => error.to_string(),
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("{spec:?} is compiled"),
        }
    }
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "intent": {"type": "string", "enum": ["refund", "delivery"]},
            "count": {"type": "integer", "minimum": 0, "maximum": 20},
        },
        "required": ["intent", "count"],
        "additionalProperties": false,
    })
}

#[test]
fn json_schemas_are_kept_to() {
    let c = compiler();
    let spec = GrammarSpec::JsonSchema(schema());
    assert!(c.takes(&spec, r#"{"intent": "refund", "count": 7}"#));
    assert!(c.takes(&spec, "{\"intent\":\"delivery\",\n  \"count\":20}"));
    assert!(!c.takes(&spec, r#"{"intent": "other", "count": 7}"#));
    assert!(!c.takes(&spec, r#"{"intent": "refund", "count": 21}"#));
    assert!(!c.takes(&spec, r#"{"intent": "refund"}"#));
    assert!(!c.takes(&spec, r#"{"intent": "refund", "count": 7"#), "not whole yet");
    assert!(!c.takes(&spec, "Sure! {"));
    assert!(!c.takes(&spec, &format!("{{{}", " ".repeat(200))), "no white space without end");
    assert!(c.takes(&GrammarSpec::JsonObject, r#"{"a": [1, {"é": null}], "b": "x\n"}"#));
    assert!(!c.takes(&GrammarSpec::JsonObject, "[1]"));
}

#[test]
fn choices_regular_expressions_and_lark_are_kept_to() {
    let c = compiler();
    let choice = GrammarSpec::Choice(vec!["yes".into(), "no, \"never\"".into(), "été".into()]);
    assert!(
        c.takes(&choice, "yes") && c.takes(&choice, "no, \"never\"") && c.takes(&choice, "été")
    );
    assert!(!c.takes(&choice, "no") && !c.takes(&choice, "maybe"));
    let regex = GrammarSpec::Regex(r"[A-Z]{2}-\d{4}".into());
    assert!(c.takes(&regex, "AB-1234") && !c.takes(&regex, "AB-12") && !c.takes(&regex, "ab-1234"));
    let lark = GrammarSpec::Lark("start: \"(\" start \")\" | \"x\"".into());
    assert!(c.takes(&lark, "((x))") && !c.takes(&lark, "((x)"));
}

#[test]
fn an_answer_that_is_whole_must_end() {
    let c = compiler();
    let mut state = c.compiler.compile(&GrammarSpec::Choice(vec!["yes".into()])).unwrap().start();
    for token in c.tokenizer.encode("yes").unwrap() {
        assert!(!state.must_end());
        state.accept(token).unwrap();
    }
    assert!(state.may_end() && state.must_end());
    assert_eq!(c.allowed(&mut state), [0u32; 0]);
}

#[test]
fn two_answers_to_one_grammar_do_not_meet() {
    let c = compiler();
    let grammar = c.compiler.compile(&GrammarSpec::Regex("(ab|cd)".into())).unwrap();
    let (mut first, mut second) = (grammar.start(), grammar.start());
    let before = c.allowed(&mut second);
    let token = c.tokenizer.encode("a").unwrap()[0];
    first.accept(token).unwrap();
    assert_ne!(c.allowed(&mut first), before);
    assert_eq!(c.allowed(&mut second), before);
}

#[test]
fn broken_and_hostile_grammars_are_refused() {
    let c = compiler();
    for (spec, expected) in [
        (GrammarSpec::Regex("(".into()), "regex"),
        (GrammarSpec::Lark("start: missing".into()), "missing"),
        (GrammarSpec::Lark(String::new()), ""),
        (GrammarSpec::Choice(vec![]), "at least one"),
        (GrammarSpec::JsonSchema(json!([1])), "expected an object"),
        (GrammarSpec::JsonSchema(json!({"type": "nothing"})), "nothing"),
        (GrammarSpec::JsonSchema(json!({"$ref": "https://example.org/schema"})), "example.org"),
        (GrammarSpec::JsonSchema(json!({"$ref": "#/definitions/missing"})), "missing"),
    ] {
        let found = c.error(&spec);
        assert!(found.contains(expected), "{spec:?}: {found}");
    }
    // Work that grows without bound is cut off, at once or when the mask is made.
    let nested = "(a?){1000}".repeat(50);
    let many = json!({"type": "object", "properties": (0..3000).map(|i| {
        (format!("p{i}"), json!({"type": "string", "pattern": "(x+x+)+y"}))
    }).collect::<serde_json::Map<_, _>>()});
    let recursive = json!({
        "$defs": {"n": {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/n"}}, {"$ref": "#/$defs/n"}]}},
        "$ref": "#/$defs/n",
    });
    for spec in [
        GrammarSpec::Regex(nested),
        GrammarSpec::Regex("(((a{0,100}){0,100}){0,100}){0,100}".into()),
        GrammarSpec::JsonSchema(many),
        GrammarSpec::JsonSchema(recursive),
        GrammarSpec::Lark(format!("start: {}", "\"a\"? ".repeat(20_000))),
    ] {
        if let Ok(grammar) = c.compiler.compile(&spec) {
            let mut state = grammar.start();
            let mut words = vec![0u32; c.vocab.div_ceil(32)];
            let token = c.tokenizer.encode("a").unwrap()[0];
            for _ in 0..20 {
                if state.allowed(&mut words).is_err() || state.accept(token).is_err() {
                    break;
                }
            }
        }
    }
}
