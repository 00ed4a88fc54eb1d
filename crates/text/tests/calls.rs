//! Grammars that force calls of tools, against a model that knows nothing: every token is drawn at
//! random among those that the grammar allows.

mod common;

use common::{byte_level_json, load};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::sync::Arc;
use text::{
    AnswerFormat, AnswerReader, CallSpec, CompiledGrammar, GrammarCompiler, GrammarSpec, Part,
    StreamDecoder, TOOL_FORMATS, Thinking, Tokenizer, ToolCall, ToolFormat, Uncalled,
};

/// Two functions; the schema of the first refers into itself, that of the second asks for nothing.
fn functions() -> Vec<(String, Value)> {
    let look = json!({
        "type": "object",
        "properties": {
            "at": {"type": "string", "maxLength": 6},
            "n": {"$ref": "#/$defs/count"},
            "flags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
        },
        "required": ["at", "n"], "additionalProperties": false,
        "$defs": {"count": {"type": "integer", "minimum": 3, "maximum": 12}},
    });
    let ask = json!({"type": "object", "properties": {}, "additionalProperties": false});
    vec![("look".into(), look), ("ask-it".into(), ask)]
}

/// Each format, with its markers as control tokens and as text, and a tokenizer for it.
fn cases() -> Vec<(&'static ToolFormat, Arc<Tokenizer>, GrammarCompiler)> {
    let mut cases = Vec::new();
    for &format in TOOL_FORMATS {
        for controls in [true, false] {
            let markers: Vec<&str> = format.markers().chain(["<think>", "</think>"]).collect();
            let mut specials = vec!["<|end|>"];
            specials.extend(if controls { markers } else { Vec::new() });
            let tokenizer = load(&byte_level_json(&specials), &json!({"eos_token": "<|end|>"}));
            let vocab = tokenizer.max_id() as usize + 1;
            let compiler = GrammarCompiler::new(&tokenizer, vocab).unwrap();
            cases.push((format, Arc::new(tokenizer), compiler));
        }
    }
    cases
}

/// An answer that is drawn at random; None where it did not come to its end.
fn draw(
    grammar: &CompiledGrammar,
    tokenizer: &Arc<Tokenizer>,
    markers: &[&'static str],
    rng: &mut StdRng,
) -> Option<String> {
    let mut state = grammar.start();
    let mut decoder = StreamDecoder::new(Arc::clone(tokenizer)).keeping(markers.iter().copied());
    let mut text = String::new();
    let vocab = tokenizer.max_id() + 1;
    for _ in 0..2000 {
        if state.must_end() || (state.may_end() && rng.random_bool(0.3)) {
            return Some(text + &decoder.finish());
        }
        let mut words = vec![0u32; vocab.div_ceil(32) as usize];
        state.allowed(&mut words).unwrap();
        let allowed: Vec<u32> =
            (0..vocab).filter(|t| words[*t as usize / 32] >> (t % 32) & 1 == 1).collect();
        let &token = allowed.choose(rng).expect("something may follow, or the answer may end");
        state.accept(token).unwrap();
        text += &decoder.push(token).unwrap().unwrap_or_default();
    }
    None
}

/// The calls in an answer, and its other text; read letter by letter, as a stream comes.
fn read(format: AnswerFormat, answer: &str) -> (Vec<ToolCall>, String) {
    let mut reader = AnswerReader::new(format);
    let mut parts: Vec<Part> = answer.chars().flat_map(|c| reader.push(&c.to_string())).collect();
    parts.extend(reader.finish());
    let (mut calls, mut content) = (Vec::<ToolCall>::new(), String::new());
    for part in parts {
        match part {
            Part::Call(call) => calls.push(call),
            Part::Arguments(more) => calls.last_mut().unwrap().arguments += &more,
            Part::Content(text) => content += &text,
            Part::Reasoning(_) => {}
        }
    }
    (calls, content)
}

fn check(calls: &[ToolCall], functions: &[(String, Value)], answer: &str) {
    for call in calls {
        let (_, schema) = functions.iter().find(|(name, _)| *name == call.name).expect(answer);
        let arguments: Value = serde_json::from_str(&call.arguments).expect(answer);
        assert!(jsonschema::is_valid(schema, &arguments), "{answer}");
    }
}

#[test]
fn forced_calls_are_calls_with_valid_arguments_in_every_format() {
    let functions = functions();
    for (format, tokenizer, compiler) in cases() {
        let markers: Vec<&'static str> = format.markers().collect();
        let reading = AnswerFormat { tools: Some(format), thinking: Thinking::None };
        let mut rng = StdRng::seed_from_u64(7);
        for (several, one) in [(true, false), (false, false), (false, true)] {
            let functions = if one { &functions[1..] } else { &functions };
            let spec = CallSpec { format, functions: functions.to_vec(), several, or: None };
            let grammar = compiler.compile(&GrammarSpec::Calls(spec)).unwrap();
            let mut seen = HashSet::new();
            let mut most = 0;
            for _ in 0..8 {
                let Some(answer) = draw(&grammar, &tokenizer, &markers, &mut rng) else { continue };
                let (calls, content) = read(reading, &answer);
                assert!(!calls.is_empty() && content.is_empty(), "{format:?} {answer}");
                assert!(several || calls.len() == 1, "{answer}");
                check(&calls, functions, &answer);
                most = most.max(calls.len());
                seen.extend(calls.into_iter().map(|call| call.name));
            }
            assert_eq!(seen.len(), functions.len(), "{format:?} {several}: {seen:?}");
            assert_eq!(most > 1, several && format != llama3(), "{format:?} {several}");
        }
    }
}

fn llama3() -> &'static ToolFormat {
    TOOL_FORMATS.iter().find(|format| format.name == "llama3").unwrap()
}

#[test]
fn calls_that_are_not_forced_are_valid_all_the_same() {
    let functions = functions();
    for (format, tokenizer, compiler) in cases() {
        let spec = CallSpec {
            format,
            functions: functions.clone(),
            several: true,
            or: Some(Uncalled::Text),
        };
        let grammar = compiler.compile(&GrammarSpec::Calls(spec)).unwrap();
        let takes = |text: &str| {
            let mut state = grammar.start();
            let ids = tokenizer.encode_with_specials(text).unwrap();
            ids.into_iter().all(|id| state.accept(id).is_ok()) && state.may_end()
        };
        let call = |arguments: &str| {
            let key = if format == llama3() { "parameters" } else { "arguments" };
            let object = format!("{{\"name\": \"look\", \"{key}\": {arguments}}}");
            match format.name {
                "hermes" => format!("<tool_call>\n{object}\n</tool_call>"),
                "mistral" => format!("[TOOL_CALLS] [{object}]"),
                "mistral-v11" => format!("[TOOL_CALLS]look[ARGS]{arguments}"),
                "phi" => format!("<|tool_call|>[{object}]<|/tool_call|>"),
                "functools" => format!("functools[{object}]"),
                "llama3" => object,
                other => panic!("no example of {other}"),
            }
        };
        let (good, bad) = (r#"{"at": "é", "n": 7}"#, r#"{"at": "é", "n": 70}"#);
        for text in ["", "Hello, {you} <there>", "\n", &call(good)] {
            assert!(takes(text), "{format:?} {text}");
        }
        assert!(!takes(&call(bad)) && !takes(&call("{}")), "{format:?}");
        if format != llama3() {
            assert!(takes(&format!("I look. {}", call(good))), "{format:?}");
            assert!(!takes(&format!("I look. {}", call(bad))), "{format:?}");
        }
    }
}

#[test]
fn a_form_or_a_call() {
    let functions = functions();
    let form = json!({"type": "object", "properties": {"yes": {"type": "boolean"}},
                      "required": ["yes"], "additionalProperties": false});
    for (format, tokenizer, compiler) in cases() {
        let spec = CallSpec {
            format,
            functions: functions.clone(),
            several: false,
            or: Some(Uncalled::Form(Box::new(GrammarSpec::JsonSchema(form.clone())))),
        };
        let grammar = compiler.compile(&GrammarSpec::Calls(spec)).unwrap();
        let mut rng = StdRng::seed_from_u64(3);
        let markers: Vec<&'static str> = format.markers().collect();
        let reading = AnswerFormat { tools: Some(format), thinking: Thinking::None };
        let mut kinds = HashSet::new();
        for _ in 0..16 {
            let Some(answer) = draw(&grammar, &tokenizer, &markers, &mut rng) else { continue };
            let (calls, content) = read(reading, &answer);
            check(&calls, &functions, &answer);
            kinds.insert(calls.len());
            if calls.is_empty() {
                let value: Value = serde_json::from_str(&content).expect(&answer);
                assert!(jsonschema::is_valid(&form, &value), "{answer}");
            }
        }
        assert_eq!(kinds, HashSet::from([0, 1]), "{format:?}");
    }
}

#[test]
fn thoughts_come_before_what_is_forced() {
    for (format, tokenizer, compiler) in cases().into_iter().take(2) {
        let spec = CallSpec { format, functions: functions(), several: false, or: None };
        let forms = [
            (
                GrammarSpec::Calls(spec),
                "<tool_call>{\"name\": \"ask-it\", \"arguments\": {}}</tool_call>",
            ),
            (GrammarSpec::JsonObject, "{\"a\": 1}"),
            (GrammarSpec::Regex("[a-c]+".into()), "abc"),
            (GrammarSpec::Choice(vec!["yes".into(), "no".into()]), "no"),
            (GrammarSpec::Lark("start: \"(\" start \")\" | \"x\"".into()), "((x))"),
        ];
        for (spec, answer) in forms {
            let takes = |thinking: Thinking, text: &str| {
                let spec = GrammarSpec::Behind(thinking, Box::new(spec.clone()));
                let mut state = compiler.compile(&spec).unwrap().start();
                let ids = tokenizer.encode_with_specials(text).unwrap();
                ids.into_iter().all(|id| state.accept(id).is_ok()) && state.may_end()
            };
            let begun = format!("Hm, <b> well.\n</think>\n\n{answer}");
            for (thinking, text, expected) in [
                (Thinking::None, answer.to_owned(), true),
                (Thinking::None, begun.clone(), false),
                (Thinking::Begun, begun.clone(), true),
                (Thinking::Begun, format!("</think>{answer}"), true),
                (Thinking::Begun, "Hm</think> Sure!".to_owned(), false),
                (Thinking::Begun, "Hm".to_owned(), false),
                (Thinking::Marked, answer.to_owned(), true),
                (Thinking::Marked, format!("<think>{begun}"), true),
                (Thinking::Marked, format!("<think></think>{answer}"), true),
                (Thinking::Marked, "<think>Hm".to_owned(), false),
            ] {
                assert_eq!(takes(thinking, &text), expected, "{thinking:?} {text}");
            }
        }
    }
}
