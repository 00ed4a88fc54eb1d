//! Files that lie or are broken: each is refused with its place, never with a panic.

use std::fmt::Write as _;
use std::fs;

use data::{DataError, Example, ReadOptions, read};
use proptest::prelude::*;

fn read_bytes(name: &str, bytes: &[u8], options: &ReadOptions) -> Result<Vec<Example>, DataError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    read(&path, options)
}

/// Reading `bytes` as file `name` must fail with a message that contains all of `expected`.
fn refuses(name: &str, bytes: impl AsRef<[u8]>, expected: &[&str]) {
    refuses_with(name, bytes, &ReadOptions::default(), expected);
}

fn refuses_with(name: &str, bytes: impl AsRef<[u8]>, options: &ReadOptions, expected: &[&str]) {
    let error = read_bytes(name, bytes.as_ref(), options).expect_err(name).to_string();
    for part in expected.iter().chain(&[name, "expected"]) {
        assert!(error.contains(part), "{error:?} lacks {part:?}");
    }
}

const GOOD: &str =
    r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#;

fn chat(messages: &str) -> String {
    format!("{GOOD}\n{{\"messages\":{messages}}}\n")
}

#[test]
fn a_broken_line_1000_is_named() {
    let mut file = format!("{GOOD}\n").repeat(999);
    file.push_str("{\"messages\":[{\"role\":\"user\",\n");
    file.push_str(GOOD);
    refuses("t.jsonl", &file, &["t.jsonl:1000: ", "broken JSON at column 28", "EOF"]);
    let windows = file.replace('\n', "\r\n");
    refuses("t.jsonl", &windows, &["t.jsonl:1000: "]);
}

#[test]
fn every_wrong_row_is_listed_up_to_a_bound() {
    let mut file = String::new();
    for i in 0..30 {
        writeln!(file, "{GOOD}\n{{\"messages\":{i}}}").unwrap();
    }
    let error = read_bytes("t.jsonl", file.as_bytes(), &ReadOptions::default()).unwrap_err();
    let DataError::Rows(rows) = &error else { panic!("{error}") };
    let lines: Vec<usize> = rows.problems.iter().map(|p| p.line).collect();
    assert_eq!(lines, (1..=20).map(|i| 2 * i).collect::<Vec<_>>());
    assert_eq!(rows.more, 10);
    assert!(error.to_string().ends_with("... and 10 more wrong rows in this file"), "{error}");
}

#[test]
fn json_that_is_no_row() {
    refuses("t.jsonl", "[\n  {\"prompt\":\"a\",\n", &["t.jsonl:1: ", "jq -c '.[]'", ".json"]);
    refuses("t.jsonl", "{\n\"messages\": []\n}", &["t.jsonl:1: ", "on one line"]);
    refuses("t.jsonl", format!("{GOOD}\n[1]\n"), &["t.jsonl:2: found an array"]);
    refuses("t.jsonl", format!("{GOOD}\nnull\n"), &["t.jsonl:2: found null"]);
    refuses("t.jsonl", format!("{GOOD}{GOOD}"), &["t.jsonl:1: ", "trailing characters"]);
    refuses("t.jsonl", "\n \n", &["empty"]);
    let deep = format!("{GOOD}\n{{\"messages\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    refuses("t.jsonl", deep, &["t.jsonl:2: ", "recursion limit", "127 deep"]);
    let options = ReadOptions { max_row_bytes: 100, ..ReadOptions::default() };
    let long = format!("{GOOD}\n{{\"messages\":\"{}\"}}", "x".repeat(100));
    refuses_with("t.jsonl", long, &options, &["t.jsonl:2: ", "a row of 115 bytes", "at most 100"]);
}

#[test]
fn conversations_in_the_wrong_shape() {
    fn check(messages: &str, field: &str, expected: &[&str]) {
        let place = format!("t.jsonl:2: field \"{field}\": ");
        let mut all = vec![place.as_str()];
        all.extend(expected);
        refuses("t.jsonl", chat(messages), &all);
    }
    let user = r#"{"role":"user","content":"a"}"#;
    let assistant = r#"{"role":"assistant","content":"b"}"#;
    let system = r#"{"role":"system","content":"c"}"#;
    check("[]", "messages", &["an empty list"]);
    check("{}", "messages", &["an object"]);
    check("[7]", "messages[0]", &["found 7"]);
    check(&format!("[{user}]"), "messages", &["ends with user"]);
    check(&format!("[{system}]"), "messages", &["ends with system"]);
    check(
        &format!("[{assistant}]"),
        "messages[0].role",
        &["assistant at the beginning", "expected user"],
    );
    check(&format!("[{user},{user},{assistant}]"), "messages[1].role", &["user after user"]);
    check(&format!("[{user},{system},{assistant}]"), "messages[1].role", &["system after user"]);
    check(
        &format!("[{system},{system},{user},{assistant}]"),
        "messages[1].role",
        &["system after system"],
    );
    check(&format!("[{user},{assistant},{assistant}]"), "messages[2].role", &["expected user"]);
    check(
        r#"[{"role":"human","content":"a"}]"#,
        "messages[0].role",
        &["unknown role \"human\"", "write user"],
    );
    check(
        r#"[{"role":"User","content":"a"}]"#,
        "messages[0].role",
        &["unknown role", "lower case"],
    );
    check(&format!(r#"[{user},{{"role":"tool","content":"a"}}]"#), "messages[1].role", &["tool"]);
    check(r#"[{"content":"a"}]"#, "messages[0].role", &["no such field"]);
    check(r#"[{"role":"user"}]"#, "messages[0].content", &["no such field"]);
    check(r#"[{"role":"user","content":null}]"#, "messages[0].content", &["found null"]);
    check(r#"[{"role":"user","content":7}]"#, "messages[0].content", &["found 7", "in quotes"]);
    check(
        &format!(r#"[{user},{{"role":"assistant","content":" \n"}}]"#),
        "messages[1].content",
        &["empty assistant turn"],
    );
    check(r#"[{"role":"user","content":""}]"#, "messages[0].content", &["empty user turn"]);
    check(
        r#"[{"role":"user","content":[{"type":"image_url"}]}]"#,
        "messages[0].content",
        &["image_url"],
    );
    check(
        r#"[{"role":"user","content":[{"type":"text"}]}]"#,
        "messages[0].content[].text",
        &["no such field"],
    );
    check(r#"[{"role":"user","content":["a"]}]"#, "messages[0].content", &["the string"]);
    check(
        &format!(r#"[{user},{{"role":"assistant","content":"a","weight":0.5}}]"#),
        "messages[1].weight",
        &["found 0.5", "0 or 1"],
    );
    check(
        &format!(r#"[{user},{{"role":"assistant","content":"a","weight":1,"train":false}}]"#),
        "messages[1].train",
        &["found false", "other flag"],
    );
    check(
        &format!(r#"[{user},{{"role":"assistant","content":"a","weight":0}}]"#),
        "messages",
        &["no turn to learn", "weight 1"],
    );
    check(
        &format!(r#"[{{"role":"user","content":"a","train":true}},{assistant}]"#),
        "messages[0].train",
        &["a user turn to learn"],
    );
    refuses(
        "t.jsonl",
        format!("{GOOD}\n{{\"prompt\":\"a\"}}"),
        &["t.jsonl:2: ", "the fields prompt", "as in line 1", "one file holds one form"],
    );
    let id = GOOD.replace("]}", "],\"id\":\"x\"}");
    refuses("t.jsonl", format!("{id}\n{id}"), &["t.jsonl:2: field \"id\"", "line 1 already"]);
    refuses(
        "t.jsonl",
        GOOD.replace("]}", "],\"id\":[]}"),
        &["field \"id\"", "a string or a number"],
    );
    let grouped = ReadOptions { group_column: Some("customer".into()), ..ReadOptions::default() };
    refuses_with("t.jsonl", GOOD, &grouped, &["customer"]);
}

#[test]
fn tools_in_the_wrong_shape() {
    fn check(messages: &str, tools: &str, field: &str, expected: &[&str]) {
        let place = format!("t.jsonl:1: field \"{field}\": ");
        let mut all = vec![place.as_str()];
        all.extend(expected);
        refuses("t.jsonl", format!("{{\"messages\":[{messages}],\"tools\":{tools}}}\n"), &all);
    }
    let user = r#"{"role":"user","content":"a"}"#;
    let end = r#"{"role":"assistant","content":"b"}"#;
    let calls = |calls: &str| format!(r#"{{"role":"assistant","tool_calls":{calls}}}"#);
    let call = |id: &str, name: &str, arguments: &str| {
        format!(
            r#"{{"id":"{id}","type":"function","function":{{"name":"{name}","arguments":{arguments}}}}}"#
        )
    };
    let told = |id: &str| format!(r#"{{"role":"tool","tool_call_id":"{id}","content":"21"}}"#);
    let one = calls(&format!("[{}]", call("x", "f", "{}")));
    let two = calls(&format!("[{},{}]", call("x", "f", "{}"), call("y", "f", "{}")));
    let f = r#"[{"type":"function","function":{"name":"f"}}]"#;

    check(&format!("{user},{}", calls("7")), "[]", "messages[1].tool_calls", &["found 7"]);
    check(
        &format!("{user},{}", calls("[{}]")),
        "[]",
        "messages[1].tool_calls[0]",
        &["an object", "\"function\""],
    );
    check(
        &format!("{user},{}", calls(r#"[{"function":{"arguments":"{}"}}]"#)),
        "[]",
        "messages[1].tool_calls[0].function",
        &["names its function"],
    );
    for arguments in [r#""{\"a\":""#, r#""[1]""#, "[1]", "1"] {
        check(
            &format!("{user},{}", calls(&format!("[{}]", call("x", "f", arguments)))),
            f,
            "messages[1].tool_calls[0].function.arguments",
            &["holds"],
        );
    }
    check(&format!("{user},{one}"), r#"[{"name":"g"}]"#, "messages[1].tool_calls", &["offered"]);
    check(&format!("{user},{end}"), "7", "tools", &["found 7", "a list"]);
    check(&format!("{user},{end}"), r#"[{"type":"function"}]"#, "tools[0]", &["the fields type"]);
    check(&format!("{user},{end}"), r#""not JSON""#, "tools", &["a list"]);
    check(&format!("{user},{one},{user},{end}"), f, "messages[2].role", &["user after assistant"]);
    check(&format!("{user},{one},{end}"), f, "messages[2].role", &["expected tool"]);
    check(
        &format!("{user},{one},{},{end}", told("z")),
        f,
        "messages[2].tool_call_id",
        &["\"z\"", "open call: x"],
    );
    check(
        &format!("{user},{two},{},{},{end}", told("y"), told("y")),
        f,
        "messages[3].tool_call_id",
        &["open call: x"],
    );
    check(&format!("{user},{two},{},{end}", told("y")), f, "messages[3].role", &["expected tool"]);
    check(&format!("{user},{one},{}", told("x")), f, "messages", &["ends with tool"]);
    check(
        &format!("{user},{one},{},{},{end}", told("x"), told("x")),
        f,
        "messages[3].role",
        &["tool after tool", "expected assistant", "once for each call"],
    );
    check(
        &format!(
            r#"{{"role":"user","content":"a","tool_calls":[{}]}},{end}"#,
            call("x", "f", "{}")
        ),
        f,
        "messages[0].tool_calls",
        &["tool calls of user"],
    );
}

#[test]
fn tool_calls_are_read_in_every_spelling() {
    let messages = |call: &str, told: &str| {
        format!(
            r#"{{"role":"user","content":"a"}},{{"role":"assistant",{call}}},{{{told}}},{{"role":"assistant","content":"b"}}"#
        )
    };
    let openai = messages(
        r#""content":null,"tool_calls":[{"type":"function","function":{"name":"f","arguments":"{\"a\":1}"}}]"#,
        r#""role":"tool","content":"21","tool_call_id":"x""#,
    );
    let legacy = messages(
        r#""content":null,"function_call":{"name":"f","arguments":"{\"a\":1}"}"#,
        r#""role":"function","name":"f","content":"21""#,
    );
    let f = r#"{"name":"f","parameters":{"type":"object"}}"#;
    let rows = [
        format!(r#"{{"messages":[{openai}],"tools":[{{"type":"function","function":{f}}}]}}"#),
        format!(r#"{{"messages":[{legacy}],"functions":[{f}]}}"#),
        format!(
            r#"{{"messages":[{legacy}],"tools":{}}}"#,
            serde_json::Value::from(format!("[{f}]"))
        ),
    ];
    let read = read_bytes("t.jsonl", rows.join("\n").as_bytes(), &ReadOptions::default()).unwrap();
    for row in &read {
        let conversation = &row.conversation;
        assert_eq!(conversation.tools, read[0].conversation.tools);
        assert_eq!(
            conversation.messages[1].tool_calls,
            read[0].conversation.messages[1].tool_calls
        );
        assert_eq!(conversation.messages[1].content, "");
    }
    assert_eq!(read[0].conversation.messages[2].tool_call_id.as_deref(), Some("x"));
    assert_eq!(read[1].conversation.messages[2].name.as_deref(), Some("f"));
    assert_ne!(read[0].id, read[1].id, "the tool's turn has another role");
}

#[test]
fn pairs_in_the_wrong_shape() {
    let good = r#"{"prompt":"a","completion":"b"}"#;
    let check =
        |row: &str, expected: &[&str]| refuses("t.jsonl", format!("{good}\n{row}"), expected);
    check(r#"{"prompt":"a"}"#, &["t.jsonl:2: field \"completion\"", "no such field"]);
    check(r#"{"prompt":"a","completion":3}"#, &["field \"completion\"", "found 3", "in quotes"]);
    check(r#"{"prompt":"a","completion":{"x":1}}"#, &["an object with the fields x", "holds JSON"]);
    check(r#"{"prompt":"a","completion":" "}"#, &["field \"completion\"", "empty assistant turn"]);
    check(r#"{"prompt":"","completion":"b"}"#, &["field \"prompt\"", "empty user turn"]);
    refuses(
        "t.jsonl",
        r#"{"paragraphs":[]}"#,
        &["\"paragraphs\"", "prompt/completion", "--prompt-column"],
    );
    let both = r#"{"question":"a","input":"b","output":"c","answer":"d"}"#;
    refuses("t.jsonl", both, &["several choices: question/answer, input/output"]);
}

#[test]
fn tables_in_the_wrong_shape() {
    refuses("t.csv", b"text,category\na,caf\xe9\n", &["t.csv:2: ", "0xe9", "byte 19", "iconv"]);
    refuses("t.csv", "foo,bar\na,b\n", &["\"foo\", \"bar\"", "text/category", "--prompt-column"]);
    refuses(
        "t.csv",
        "text,category\na,b\n\nc\n",
        &["t.csv:4: ", "found 1 fields", "2, as in the header"],
    );
    refuses("t.csv", "text,category\na,b,c\n", &["t.csv:2: ", "found 3 fields", "double quotes"]);
    refuses(
        "t.csv",
        "text,category\na,\n",
        &["t.csv:2: field \"category\"", "empty assistant turn"],
    );
    refuses("t.csv", "text,category\n,a\n", &["t.csv:2: field \"text\"", "empty user turn"]);
    refuses("t.csv", "text,category\n", &["empty", "one row"]);
    refuses("t.csv", "text,text,category\na,b,c\n", &["2 times \"text\""]);
    refuses(
        "t.csv",
        "id,text,category\n1,a,b\n1,c,d\n",
        &["t.csv:3: field \"id\"", "line 2 already"],
    );
    // The quote opened in line 3 swallows the rest of the file.
    refuses("t.csv", "text,category\na,b\nc,\"d\ne,f\ng,h\n", &["t.csv:3: ", "never closed"]);
    refuses("t.csv", "text,category\n\"c,d", &["t.csv:2: ", "never closed"]);
    let options = ReadOptions { completion_column: Some("intent".into()), ..Default::default() };
    refuses_with(
        "t.csv",
        "text,category\na,b\n",
        &options,
        &["no \"intent\" for the completion column"],
    );
}

#[test]
fn prompt_templates_in_the_wrong_shape() {
    fn check(template: &str, expected: &str) {
        let options = ReadOptions { prompt_template: Some(template.into()), ..Default::default() };
        let error = read_bytes("t.csv", b"text,category\na,b\n", &options).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} lacks {expected:?}");
    }
    check("no column", "no column");
    check("{text", "never closed");
    check("text}", "never opened");
    check("{{text}}", "no column");
    check("{title}", "no \"title\" for prompt_template");
    check("{}", "no \"\" for prompt_template");
}

#[test]
fn tables_in_strange_but_good_shapes() {
    fn check(bytes: &[u8], options: &ReadOptions, expected: &[(usize, &str, &str)]) {
        let rows = read_bytes("t.csv", bytes, options).unwrap();
        let got: Vec<_> =
            rows.iter().map(|e| (e.origin.line, e.question(), e.completion().to_owned())).collect();
        let expected: Vec<_> =
            expected.iter().map(|&(l, q, a)| (l, q.to_owned(), a.to_owned())).collect();
        assert_eq!(got, expected);
    }
    let plain = ReadOptions::default();
    check(b"text;label\na, b;c\n", &plain, &[(2, "a, b", "c")]);
    check(b"Question\tAnswer\r\na\tb\r\n\r\n\r\nc\td", &plain, &[(2, "a", "b"), (5, "c", "d")]);
    check(
        b"\xef\xbb\xbf\"text\", label\n\"x\ny\",b\nc,d\n",
        &plain,
        &[(2, "x\ny", "b"), (4, "c", "d")],
    );
    check(b"text,label\na 5\" pipe,b\n", &plain, &[(2, "a 5\" pipe", "b")]);
    check(b"text,label\nb,\"a \"\"5\"\"\"\n", &plain, &[(2, "b", "a \"5\"")]);
    let template = ReadOptions {
        prompt_template: Some("{{{instruction}}}\n{ input }".into()),
        ..Default::default()
    };
    check(b"instruction,input,output\nadd,1 2,3\n", &template, &[(2, "{add}\n1 2", "3")]);
    let named = ReadOptions { prompt_column: Some("Subject".into()), ..Default::default() };
    check(b"subject,label\na,b\n", &named, &[(2, "a", "b")]);
}

#[test]
fn options_reach_the_conversation() {
    let options = ReadOptions {
        system_prompt: Some("Sort.".into()),
        group_column: Some("customer".into()),
        ..ReadOptions::default()
    };
    let rows = read_bytes("t.csv", b"text,label,customer\na,b,7\nc,d,\na,b,8\n", &options).unwrap();
    let roles: Vec<_> = rows[0].conversation.messages.iter().map(|m| m.role.as_str()).collect();
    assert_eq!(roles, ["system", "user", "assistant"]);
    let groups: Vec<_> = rows.iter().map(|e| e.group.as_deref()).collect();
    assert_eq!(groups, [Some("7"), None, Some("8")]);
    assert_eq!(rows[2].id, format!("{}-2", rows[0].id));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), csv: bool) {
        let _ = read_bytes(if csv { "t.csv" } else { "t.jsonl" }, &bytes, &ReadOptions::default());
    }

    #[test]
    fn no_table_panics(rows in "(text|label|id|[a,;\"\n\r\t é]){0,40}") {
        let _ = read_bytes("t.csv", format!("text,label\n{rows}").as_bytes(), &ReadOptions::default());
        let _ = read_bytes("t.csv", rows.as_bytes(), &ReadOptions::default());
    }

    /// What a correct writer wrote is read back with its line numbers.
    #[test]
    fn tables_round_trip(rows in prop::collection::vec(("[a\"',;é\n ]{0,8}x", "[b\", \n]{0,8}y"), 1..8)) {
        let mut writer = String::from("text,label\n");
        let mut line = 2;
        let mut expected = Vec::new();
        for (question, answer) in &rows {
            let quote = |s: &str| format!("\"{}\"", s.replace('"', "\"\""));
            writeln!(writer, "{},{}", quote(question), quote(answer)).unwrap();
            expected.push((line, question.clone(), answer.clone()));
            line += 1 + question.matches('\n').count() + answer.matches('\n').count();
        }
        let read = read_bytes("t.csv", writer.as_bytes(), &ReadOptions::default()).unwrap();
        let got: Vec<_> = read
            .iter()
            .map(|e| (e.origin.line, e.question(), e.completion().to_owned()))
            .collect();
        prop_assert_eq!(got, expected);
    }
}
