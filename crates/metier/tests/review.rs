//! `metier review`: a person's session, through pipes.

mod common;

use common::proving::{code, label, metier, said, write_answers, write_config, write_test};
use serde_json::Value;
use std::collections::HashSet;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

const N: usize = 30;

/// A proof where `ours` is right but for every tenth answer, `rented` right at every third, and both say
/// the same where both are right.
fn proof() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_test(dir.path(), N);
    let rented = |i: usize| if i.is_multiple_of(3) { label(i) } else { format!("wrong {i}") };
    let ours = |i: usize| if i % 10 == 9 { format!("also wrong {i}") } else { label(i) };
    write_answers(dir.path(), "rented.jsonl", N, rented);
    write_answers(dir.path(), "ours.jsonl", N, ours);
    write_config(dir.path(), "");
    let output = metier(dir.path(), &["prove"]);
    assert!(matches!(code(&output), 0 | 3), "{}", said(&output));
    dir
}

/// What is shown between two prompts.
struct Screen {
    question: usize,
    answers: [String; 2],
}

/// A review under way.
struct Session {
    child: Child,
    /// All that was shown so far.
    seen: String,
}

impl Session {
    fn start(dir: &Path, more: &[&str]) -> Session {
        let child = Command::new(env!("CARGO_BIN_EXE_metier"))
            .current_dir(dir)
            .arg("review")
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Session { child, seen: String::new() }
    }

    /// What is shown up to the next prompt; None when no more comes.
    fn shown(&mut self) -> Option<String> {
        let begin = self.seen.len();
        let out = self.child.stdout.as_mut().unwrap();
        let mut byte = [0];
        while out.read(&mut byte).unwrap() == 1 {
            self.seen.push(byte[0].into());
            if self.seen.ends_with("> ") {
                return Some(self.seen[begin..].to_owned());
            }
        }
        None
    }

    /// The next pair; None when there is none left.
    fn screen(&mut self) -> Option<Screen> {
        let text = self.shown()?;
        let after =
            |mark: &str| text.split_once(mark).map(|(_, rest)| rest.lines().next().unwrap());
        let answer = |n: usize| after(&format!("--- Answer {n} ---\n")).unwrap().to_owned();
        let question = after("message ").unwrap().parse().unwrap();
        Some(Screen { question, answers: [answer(1), answer(2)] })
    }

    fn say(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Prefers whichever answer is right.
    fn judge(&mut self, screen: &Screen) {
        let right = screen.answers.iter().position(|a| *a == label(screen.question));
        self.say(right.map_or("t", |place| ["1", "2"][place]));
    }

    /// Leaves, and gives back all that was shown.
    fn quit(mut self) -> String {
        self.say("q");
        while self.shown().is_some() {}
        assert!(self.child.wait().unwrap().success());
        self.seen
    }
}

fn labels(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn summary(dir: &Path, more: &[&str]) -> Value {
    let output = metier(dir, &[&["review", "--summary", "--json"][..], more].concat());
    assert_eq!(code(&output), 0, "{}", said(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_blind_shuffled_review_finds_out_who_is_better() {
    let dir = proof();
    let mut session = Session::start(dir.path(), &[]);
    let (mut asked, mut ours_first) = (Vec::new(), 0);
    while let Some(screen) = session.screen() {
        ours_first += usize::from(!screen.answers[0].starts_with("wrong"));
        asked.push(screen.question);
        session.judge(&screen);
    }
    // Of 30 pairs nine have the right answer twice (every third, but for one of each ten).
    let same = (0..N).filter(|i| i % 3 == 0 && i % 10 != 9).count();
    assert_eq!(asked.iter().collect::<HashSet<_>>().len(), N - same);
    assert!(!asked.is_sorted() && ours_first > 3 && ours_first < N - same - 3, "{asked:?}");
    // No name before the end.
    let (blind, result) = session.seen.split_once("no pair is left").unwrap();
    assert!(!blind.contains("ours") && !blind.contains("rented"), "{blind}");
    assert!(result.contains("sign test"), "{result}");
    assert!(session.child.wait().unwrap().success());

    let found = summary(dir.path(), &[]);
    assert_eq!((&found["a"], &found["b"]), (&"rented".into(), &"ours".into()));
    // Where ours is wrong, the rented one is right at 9 alone; at 19 and 29 both are wrong.
    let counts = ["wins_a", "ties", "wins_b"].map(|name| found[name].as_u64().unwrap() as usize);
    assert_eq!(counts, [1, 2, N - same - 3]);
    assert!(found["ci95"][0].as_f64().unwrap() > 0.5 && found["p_value"].as_f64().unwrap() < 0.05);
    // The judge's section of the config file reads the same labels.
    let lines = labels(&dir.path().join("proof/labels.jsonl"));
    assert!(lines.iter().all(|l| l["id"].is_string() && l["better"].is_string()));
}

#[test]
fn a_killed_review_goes_on_where_it_was() {
    let dir = proof();
    let path = dir.path().join("anna.jsonl");
    let more = ["--labels", "anna.jsonl", "--seed", "5"];
    let mut session = Session::start(dir.path(), &more);
    let mut asked = Vec::new();
    for _ in 0..7 {
        let screen = session.screen().unwrap();
        session.judge(&screen);
        asked.push(screen.question);
    }
    // The eighth is on the screen, so seven are on the disk.
    let eighth = session.screen().unwrap().question;
    session.child.kill().unwrap();
    session.child.wait().unwrap();
    assert_eq!(labels(&path).len(), 7);
    let mut session = Session::start(dir.path(), &more);
    assert_eq!(session.screen().unwrap().question, eighth);
    // Taken back beyond the session's own beginning, and given again.
    session.say("u");
    let seventh = session.screen().unwrap();
    assert_eq!(Some(&seventh.question), asked.last());
    assert_eq!(labels(&path).len(), 6);
    session.judge(&seventh);
    assert_eq!(session.screen().unwrap().question, eighth);
    session.say("s");
    let ninth = session.screen().unwrap();
    assert_ne!(ninth.question, eighth);
    session.say("third");
    let seen = session.quit();
    assert!(seen.contains("found \"third\"; expected one of 1, 2"), "{seen}");
    assert_eq!(labels(&path).len(), 7);
    // What was skipped is asked again.
    let mut session = Session::start(dir.path(), &more);
    assert_eq!(session.screen().unwrap().question, eighth);
    // Nobody else may write to the file meanwhile.
    let other = metier(dir.path(), &["review", "--labels", "anna.jsonl"]);
    assert!(code(&other) == 1 && said(&other).contains("another review"), "{}", said(&other));
    session.quit();
}

#[test]
fn reviewers_are_compared_and_changed_answers_are_found() {
    let dir = proof();
    for (name, flip) in [("anna.jsonl", 0), ("ben.jsonl", 6)] {
        let mut session = Session::start(dir.path(), &["--labels", name, "--reference"]);
        let mut left = flip;
        while let Some(screen) = session.screen() {
            match left {
                0 => session.judge(&screen),
                _ => session.say("t"),
            }
            left = usize::saturating_sub(left, 1);
        }
        assert!(session.seen.contains("--- Reference ---\nlabel-"));
    }
    let found = summary(dir.path(), &["--labels", "anna.jsonl", "--compare", "ben.jsonl"]);
    let agreement = &found["agreement"];
    assert_eq!(agreement["n"], found["labelled"]);
    let kappa = agreement["kappa"].as_f64().unwrap();
    assert!(kappa > 0.1 && kappa < agreement["agreement"].as_f64().unwrap(), "{found}");
    let same = summary(dir.path(), &["--labels", "anna.jsonl", "--compare", "anna.jsonl"]);
    assert_eq!(same["agreement"]["kappa"], 1.0);
    let words = said(&metier(
        dir.path(),
        &["review", "--labels", "anna.jsonl", "--summary", "--compare", "ben.jsonl"],
    ));
    assert!(words.contains("Cohen's kappa"), "{words}");

    // Other answers under the old labels.
    write_answers(dir.path(), "ours.jsonl", N, |i| format!("new {i}"));
    metier(dir.path(), &["prove"]);
    let found = summary(dir.path(), &["--labels", "anna.jsonl"]);
    assert_eq!((&found["labelled"], found["foreign"].as_u64().unwrap() > 10), (&0.into(), true));
    let answers = dir.path().join("proof/answers/2_ours.jsonl");
    let text = std::fs::read_to_string(&answers).unwrap().replacen("new 1", "new 2", 1);
    std::fs::write(&answers, text).unwrap();
    for (arguments, words) in [
        (&["review"][..], "2_ours.jsonl"),
        (&["review", "--a", "nobody"], "there are rented, ours"),
        (&["review", "--a", "ours"], "compared with itself"),
    ] {
        let output = metier(dir.path(), arguments);
        assert!(code(&output) == 1 && said(&output).contains(words), "{}", said(&output));
    }
}
