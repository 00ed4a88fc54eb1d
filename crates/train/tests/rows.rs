//! From text and conversations to rows, with the bundled tokenizer and template.

use data::{Document, Example, Origin};
use model::DecoderConfig;
use std::path::Path;
use text::{ChatTemplate, Conversation, Message, Tokenizer};
use train::*;

fn bundled() -> (Tokenizer, ChatTemplate) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/nano");
    let template = ChatTemplate::from_dir(&dir).unwrap().expect("the bundled model has a template");
    (Tokenizer::from_dir(&dir).unwrap(), template)
}

fn plan(objective: Objective) -> TrainPlan {
    let bytes = include_bytes!("fixtures/config.json");
    let config = DecoderConfig::from_json(bytes, Path::new("fixture")).unwrap();
    TrainPlan::new(Method::Full, objective, &config)
}

fn example(id: &str, turns: &[(&str, &str)]) -> Example {
    let messages = turns.iter().map(|(role, content)| Message::new(*role, *content)).collect();
    Example {
        id: id.into(),
        conversation: Conversation::new(messages),
        group: None,
        slices: Default::default(),
        origin: Origin { file: "f".into(), line: 1 },
    }
}

#[test]
fn every_answer_is_learnt_up_to_its_stop_token() {
    let (tokenizer, template) = bundled();
    let examples = [
        example("one", &[("user", "hi"), ("assistant", "yes")]),
        example("two", &[("user", "a"), ("assistant", "no"), ("user", "b"), ("assistant", "so")]),
    ];
    for template in [template, ChatTemplate::plain()] {
        let plan = plan(Objective::Sft);
        let data =
            TrainData::from_conversations(&examples, &examples[..1], &tokenizer, &template, &plan)
                .unwrap();
        let learnt = |row: &Row| {
            let ids = row.ids.iter().zip(&row.mask).filter(|(_, m)| **m).map(|(id, _)| *id);
            tokenizer
                .decode(&ids.collect::<Vec<_>>())
                .unwrap()
                .split_whitespace()
                .collect::<String>()
        };
        assert_eq!(learnt(&data.train[0]), "yes");
        assert_eq!(learnt(&data.train[1]), "noso");
        assert_eq!(data.held_out, data.train[..1]);
        assert_eq!((data.train_report.rows, data.held_out_bytes), (2, 0));
        assert!(data.train[1].supervised() >= 4, "two answers and two stop tokens");
    }
}

#[test]
fn a_template_that_writes_the_date_gives_the_same_rows_on_every_day() {
    let (tokenizer, template) = bundled();
    let dated = format!("{{{{ strftime_now('%d %b %Y') }}}}{}", template.source());
    let template = ChatTemplate::from_source(dated).unwrap();
    let examples = [example("one", &[("user", "hi"), ("assistant", "yes")])];
    let plan = plan(Objective::Sft);
    let data = TrainData::from_conversations(&examples, &[], &tokenizer, &template, &plan).unwrap();
    let text = tokenizer.decode(&data.train[0].ids).unwrap();
    assert!(text.starts_with("26 Jul 2024"), "{text}");
}

#[test]
fn an_example_that_cannot_be_rendered_is_named() {
    let (tokenizer, template) = bundled();
    let broken = [example("row-17", &[("wizard", "hi"), ("assistant", "yes")])];
    let plan = plan(Objective::Sft);
    let error =
        TrainData::from_conversations(&broken, &[], &tokenizer, &template, &plan).unwrap_err();
    assert!(error.to_string().starts_with("row-17: "), "{error}");
}

#[test]
fn text_is_learnt_whole_and_blocks_are_held_out() {
    let (tokenizer, _) = bundled();
    let plan = TrainPlan {
        max_length: 16,
        held_out_share: 0.2,
        held_out_block_bytes: 100,
        ..plan(Objective::Text)
    };
    let text = |from: usize| -> String {
        (from..from + 40).map(|i| format!("The number {i} comes after another one.\n\n")).collect()
    };
    let documents = [
        Document { id: "a.txt".into(), text: text(0) },
        Document { id: "b.txt".into(), text: text(1000) },
    ];
    let data = TrainData::from_text(&documents, &tokenizer, &plan).unwrap();
    // Taking the overlap out again gives every block's text.
    let bytes = |rows: &[Row]| -> usize {
        let mut bytes = 0;
        let mut stream = Vec::new();
        for row in rows {
            if row.id.ends_with("+0") {
                bytes += tokenizer.decode(&stream).unwrap().len();
                stream = row.ids.clone();
            } else {
                assert_eq!(stream.last(), row.ids.first());
                stream.extend(&row.ids[1..]);
            }
            assert!(row.ids.len() <= 16 && row.mask.iter().all(|&m| m));
        }
        bytes + tokenizer.decode(&stream).unwrap().len()
    };
    let total: usize = documents.iter().map(|d| d.text.len()).sum();
    assert_eq!(bytes(&data.held_out) as u64, data.held_out_bytes);
    assert_eq!(bytes(&data.train) + bytes(&data.held_out), total);
    assert!(data.held_out_bytes > 0 && (data.held_out_bytes as usize) < total / 2);
    let eos = tokenizer.eos_id().expect("the bundled tokenizer has an end token");
    let ends = |rows: &[Row]| rows.iter().filter(|r| r.ids.last() == Some(&eos)).count();
    assert_eq!(ends(&data.train) + ends(&data.held_out), documents.len());

    let empty = [Document { id: "e".into(), text: String::new() }];
    let error = TrainData::from_text(&empty, &tokenizer, &plan).unwrap_err();
    assert!(matches!(error, TrainError::NoData(_)), "{error}");
}

#[test]
fn digest_tells_rows_masks_and_sets_apart() {
    let row = |id: u32, learnt: bool| Row::new("r", vec![1, id], vec![false, learnt]);
    let data = |train: Vec<Row>, held_out: Vec<Row>| TrainData {
        general: GeneralText::default(),
        train,
        held_out,
        held_out_bytes: 0,
        train_report: RowReport::default(),
        held_out_report: RowReport::default(),
    };
    let (a, b, c) = (row(5, true), row(6, true), row(5, false));
    let digests: Vec<String> = [
        data(vec![a.clone(), b.clone()], vec![]),
        data(vec![b.clone(), a.clone()], vec![]),
        data(vec![a.clone()], vec![b.clone()]),
        data(vec![c, b], vec![]),
    ]
    .iter()
    .map(TrainData::digest)
    .collect();
    for (i, digest) in digests.iter().enumerate() {
        assert!(!digests[i + 1..].contains(digest));
    }
}

#[test]
fn text_beside_conversations_is_learnt_whole() {
    let (tokenizer, template) = bundled();
    let plan = TrainPlan { max_length: 16, ..plan(Objective::Sft) };
    let text = "The tide rises twice a day, and the boats rise with it. ".repeat(8);
    let document = Document { id: "sea.txt".into(), text };
    let windows = TrainData::text_rows(&[document], &tokenizer, &plan).unwrap();
    assert!(windows.len() > 3);
    for row in &windows {
        assert!(row.ids.len() <= 16 && row.supervised() == row.ids.len() - 1, "{row:?}");
    }
    let plan = TrainPlan { max_length: 64, ..plan };
    let rows = [example("a", &[("user", "Hi"), ("assistant", "Hello")])];
    let mut data = TrainData::from_conversations(&rows, &[], &tokenizer, &template, &plan).unwrap();
    let digest = data.digest();
    data.add_text(windows.clone());
    assert_ne!(data.digest(), digest);
    assert_eq!(data.train.len(), 1 + windows.len());
    assert_eq!(data.train_report.rows, data.train.len());
    let learnt: usize = data.train.iter().map(Row::supervised).sum();
    assert_eq!(data.train_report.supervised_tokens, learnt);
}
