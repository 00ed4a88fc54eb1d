//! Preference data in the forms that TRL documents, and what is refused.

use std::fs;

use data::{Answers, DataError, Preference, ReadOptions, read, read_preferences};
use serde_json::{Value, json};
use text::Message;

fn read_with(name: &str, bytes: &str, options: &ReadOptions) -> Result<Vec<Preference>, DataError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    read_preferences(&path, options)
}

fn read_rows(rows: &[Value]) -> Result<Vec<Preference>, DataError> {
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    read_with("p.jsonl", &lines, &ReadOptions::default())
}

fn turns(messages: &[Message]) -> Vec<(&str, &str)> {
    messages.iter().map(|m| (m.role.as_str(), m.content.as_str())).collect()
}

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

fn assistant(text: &str) -> Value {
    json!({"role": "assistant", "content": text})
}

#[test]
fn all_forms_of_a_pair_are_one() {
    let rows = [
        json!({"prompt": "The sky is", "chosen": "blue.", "rejected": "green."}),
        json!({"prompt": [user("The sky is")], "chosen": [assistant("blue.")],
               "rejected": [assistant("green.")]}),
        json!({"chosen": [user("The sky is"), assistant("blue.")],
               "rejected": [user("The sky is"), assistant("green.")]}),
        // UltraFeedback repeats the prompt beside whole conversations.
        json!({"prompt": "The sky is", "chosen": [user("The sky is"), assistant("blue.")],
               "rejected": [user("The sky is"), assistant("green.")]}),
        json!({"prompt": [user("The sky is")],
               "chosen": [user("The sky is"), assistant("blue.")],
               "rejected": [user("The sky is"), assistant("green.")]}),
        json!({"prompt": "The sky is", "chosen": assistant("blue."),
               "rejected": assistant("green.")}),
        json!({"question": "The sky is", "chosen": "blue.", "rejected": "green."}),
    ];
    let read = read_rows(&rows).unwrap();
    for (i, preference) in read.iter().enumerate() {
        assert_eq!(turns(&preference.prompt.messages), [("user", "The sky is")], "{i}");
        let Answers::Pair { chosen, rejected } = &preference.answers else { panic!("{i}") };
        assert_eq!(turns(chosen), [("assistant", "blue.")], "{i}");
        assert_eq!(turns(rejected), [("assistant", "green.")], "{i}");
        assert_eq!(preference.origin.line, i + 1);
        // Equal rows have equal hashes, and are told apart all the same.
        let hash = &read[0].id;
        let expected = if i == 0 { hash.clone() } else { format!("{hash}-{}", i + 1) };
        assert_eq!(preference.id, expected);
    }
}

#[test]
fn what_is_learnt_is_the_answer() {
    let rows = [json!({
        "id": "x", "group": "g",
        "prompt": [{"role": "system", "content": "S"}, user("a"), assistant("b"), user("c")],
        "chosen": [assistant("d")],
        "rejected": [assistant("e"), user("f"), {"role": "assistant", "content": "h", "weight": 0},
                     user("i"), assistant("j")],
        "tools": [{"type": "function", "function": {"name": "look"}}],
    })];
    let read = read_rows(&rows).unwrap();
    let [preference] = read.as_slice() else { panic!("{read:?}") };
    assert_eq!((preference.id.as_str(), preference.group.as_deref()), ("x", Some("g")));
    let [chosen, rejected] = &preference.conversations()[..] else { panic!() };
    assert_eq!(chosen.tools.len(), 1);
    let learnt =
        |messages: &[Message]| -> Vec<bool> { messages.iter().map(Message::is_learnt).collect() };
    assert_eq!(learnt(&chosen.messages), [false, false, false, false, true]);
    assert_eq!(
        learnt(&rejected.messages),
        [false, false, false, false, true, false, false, false, true]
    );
}

#[test]
fn tools_are_called_in_an_answer() {
    let call = json!({"role": "assistant", "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]});
    let told = json!({"role": "tool", "tool_call_id": "1", "content": "blue"});
    let rows = [json!({
        "chosen": [user("The sky is"), call, told, assistant("blue.")],
        "rejected": [user("The sky is"), assistant("green.")],
    })];
    let read = read_rows(&rows).unwrap();
    let Answers::Pair { chosen, .. } = &read[0].answers else { panic!() };
    assert_eq!(chosen.len(), 3);
    assert_eq!(read[0].conversations()[0].messages.len(), 4);
}

#[test]
fn labels_are_read() {
    let rows = [
        json!({"prompt": "The sky is", "completion": "blue.", "label": true}),
        json!({"prompt": [user("The sky is")], "completion": [assistant("green.")], "label": 0}),
    ];
    for (i, preference) in read_rows(&rows).unwrap().iter().enumerate() {
        let Answers::Labelled { completion, label } = &preference.answers else { panic!() };
        assert_eq!(*label, i == 0);
        assert_eq!(completion.len(), 1);
        let [whole] = &preference.conversations()[..] else { panic!() };
        assert_eq!(whole.messages.len(), 2);
        assert!(whole.messages[1].is_learnt());
    }
    let csv = "prompt,completion,label\na,b,True\nc,d,0\n";
    let options = ReadOptions { system_prompt: Some("S".into()), ..ReadOptions::default() };
    let read = read_with("p.csv", csv, &options).unwrap();
    assert_eq!(turns(&read[1].prompt.messages), [("system", "S"), ("user", "c")]);
    let labels: Vec<bool> =
        read.iter().map(|p| matches!(p.answers, Answers::Labelled { label: true, .. })).collect();
    assert_eq!(labels, [true, false]);
}

#[test]
fn wrong_rows_are_named() {
    fn check(row: Value, expected: &[&str]) {
        let good = if row.get("chosen").is_some() || row.get("rejected").is_some() {
            json!({"prompt": "p", "chosen": "c", "rejected": "r"})
        } else {
            json!({"prompt": "p", "completion": "c", "label": true})
        };
        let error = read_rows(&[good, row.clone()]).expect_err(&row.to_string()).to_string();
        for part in expected.iter().chain(&["p.jsonl:2: ", "found", "expected"]) {
            assert!(error.contains(part), "{row}: {error:?} lacks {part:?}");
        }
    }
    check(
        json!({"prompt": "p", "chosen": "a", "rejected": "a "}),
        &["\"rejected\"", "same answer"],
    );
    check(
        json!({"prompt": "p", "chosen": "", "rejected": "a"}),
        &["\"chosen\"", "empty assistant"],
    );
    check(json!({"prompt": "", "chosen": "b", "rejected": "a"}), &["\"prompt\"", "empty user"]);
    check(json!({"prompt": "p", "chosen": "b"}), &["\"rejected\"", "no such field"]);
    check(json!({"prompt": "p", "rejected": "b"}), &["\"chosen\"", "no such field"]);
    check(json!({"chosen": "p b", "rejected": "p a"}), &["\"prompt\"", "cannot be told"]);
    check(json!({"prompt": "p", "chosen": 3, "rejected": "b"}), &["\"chosen\"", "found 3"]);
    check(
        json!({"prompt": "p", "chosen": [assistant("a")], "rejected": "b"}),
        &["beside a list", "one form"],
    );
    check(
        json!({"prompt": "p", "chosen": [], "rejected": [assistant("a")]}),
        &["\"rejected\"", "beginning of the other"],
    );
    check(
        json!({"chosen": [user("a"), assistant("b")], "rejected": [user("x"), assistant("b")]}),
        &["\"chosen\"", "begins with a turn of user"],
    );
    check(
        json!({"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("b")]}),
        &["\"rejected\"", "the same answer"],
    );
    check(
        json!({"prompt": [user("a")], "chosen": [assistant("b"), user("c")],
               "rejected": [assistant("d")]}),
        &["\"chosen\"", "ends with user"],
    );
    check(
        json!({"prompt": [user("a")], "chosen": [assistant("b")],
               "rejected": [{"role": "robot", "content": "d"}]}),
        &["\"rejected\"", "turn of robot"],
    );
    check(json!({"prompt": "p", "completion": "c"}), &["\"label\"", "no such field"]);
    check(json!({"prompt": "p", "completion": "c", "label": 0.5}), &["\"label\"", "found 0.5"]);
    check(json!({"completion": "c", "label": true}), &["\"prompt\"", "no such field"]);
    check(json!({"text": "c"}), &["as in line 1", "one form of rows"]);
    check(json!({"prompt": "p", "chosen": "c", "rejected": "r", "completion": "c"}), &["one form"]);
    // A pair in a file of labelled rows.
    let rows = [
        json!({"prompt": "p", "completion": "c", "label": true}),
        json!({"prompt": "p", "chosen": "c", "rejected": "r"}),
    ];
    let error = read_rows(&rows).unwrap_err().to_string();
    assert!(error.contains("as in line 1") && error.contains("label"), "{error}");
    let same_id = json!({"id": 1, "prompt": "p", "chosen": "c", "rejected": "r"});
    let error = read_rows(&[same_id.clone(), same_id]).unwrap_err().to_string();
    assert!(error.contains("p.jsonl:2: field \"id\"") && error.contains("line 1"), "{error}");
    let error = read_with("p.csv", "text,label\na,b\n", &ReadOptions::default()).unwrap_err();
    assert!(error.to_string().contains("\"chosen\""), "{error}");
}

#[test]
fn the_first_twenty_are_listed() {
    let bad = json!({"prompt": "p", "chosen": "a", "rejected": "a"});
    let error = read_rows(&vec![bad; 25]).unwrap_err();
    let DataError::Rows(rows) = &error else { panic!("{error}") };
    assert_eq!((rows.problems.len(), rows.more), (20, 5));
}

/// Read as conversations, preferences would teach the bad answers too.
#[test]
fn preferences_are_not_conversations() {
    let dir = tempfile::tempdir().unwrap();
    let check = |name: &str, bytes: &str, options: &ReadOptions| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        read(&path, options)
    };
    let pair = r#"{"prompt":"p","chosen":"c","rejected":"r"}"#;
    let labelled = r#"{"prompt":"p","completion":"c","label":false}"#;
    let plain = ReadOptions::default();
    for bytes in [pair, labelled] {
        let error = check("p.jsonl", bytes, &plain).unwrap_err().to_string();
        assert!(error.contains("preference data") && error.contains("dpo"), "{error}");
    }
    let error = check("p.csv", "prompt,chosen,rejected\na,b,c\n", &plain).unwrap_err();
    assert!(error.to_string().contains("preference data"), "{error}");
    let chosen = ReadOptions { completion_column: Some("chosen".into()), ..ReadOptions::default() };
    let read = check("p.jsonl", pair, &chosen).unwrap();
    assert_eq!(read[0].completion(), "c");
}
