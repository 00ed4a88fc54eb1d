//! A command of the user's own judges.

use super::{Family, Metric, Scale, Score};
use crate::candidate::Answer;
use crate::item::EvalItem;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// `command:PROGRAM ARGUMENTS`: runs the program once for each answer, without a shell (words are
/// parted by space), with one JSON object on standard input: `id`, `prompt`, `answer`, `reference`. It
/// prints the score, a number from 0 to 1, within [`LIMIT`] and [`MOST_BYTES`]; whatever else it does
/// ends the evaluation with an error that names the example, since a score that was not computed is
/// none. A failed answer scores 0 without a question.
pub(super) static FAMILY: Family = Family {
    name: "command",
    parameter: "PROGRAM ARGUMENTS",
    what: "The mean of the scores that the command gives.",
    example: "cat",
    build,
};

/// Whether a metric runs a program, which nobody but its author should let happen unasked.
pub(crate) fn runs_a_program(metric: &Metric) -> bool {
    metric.name.split(':').next() == Some(FAMILY.name)
}

/// Time for one answer.
const LIMIT: Duration = Duration::from_secs(30);
/// Bytes of output that are read.
const MOST_BYTES: u64 = 64 << 10;

fn build(command: &str) -> Result<Metric, String> {
    let words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
    if words.is_empty() {
        return Err("found no command; expected a program and its arguments".to_owned());
    }
    let score = move |item: &EvalItem, answer: &Answer| match answer.error {
        Some(_) => Ok(0.0),
        None => judge(&words, item, answer, LIMIT),
    };
    Ok(Metric {
        what: FAMILY.what,
        reads_as: "by the command's score",
        scale: Scale::Graded,
        score: Score::Item(Box::leak(Box::new(score))),
        ..Metric::GRADED
    })
}

fn judge(
    words: &[String],
    item: &EvalItem,
    answer: &Answer,
    limit: Duration,
) -> Result<f64, String> {
    let question = serde_json::json!({
        "id": item.id,
        "prompt": item.prompt(),
        "answer": answer.text,
        "reference": item.reference,
    });
    let program = &words[0];
    let child = Command::new(program)
        .args(&words[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(|error| format!("{program} cannot be started: {error}"))?;
    let said = output(child, question.to_string(), limit)
        .map_err(|reason| format!("{program} {reason}"))?;
    match said.trim().parse::<f64>() {
        Ok(score) if (0.0..=1.0).contains(&score) => Ok(score),
        _ => {
            let start: String = said.trim().chars().take(80).collect();
            Err(format!("{program} printed {start:?}; expected a number from 0 to 1"))
        }
    }
}

/// What the child prints; it is stopped when it takes longer than `limit` or prints too much.
fn output(mut child: Child, question: String, limit: Duration) -> Result<String, String> {
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let (said, hears) = mpsc::channel();
    std::thread::spawn(move || {
        // A program that does not read its input closes it; that is its own affair.
        let _ = stdin.map(|mut stdin| stdin.write_all(question.as_bytes()));
    });
    std::thread::spawn(move || {
        let mut text = Vec::new();
        let read = stdout.map(|stdout| stdout.take(MOST_BYTES + 1).read_to_end(&mut text));
        // Nobody listens any more when the time is up.
        let _ = said.send((read.is_some_and(|read| read.is_ok()), text));
    });
    let heard = hears.recv_timeout(limit);
    let too_much = heard.as_ref().is_ok_and(|(_, text)| text.len() as u64 > MOST_BYTES);
    if heard.is_err() || too_much {
        // It may have ended by itself meanwhile.
        let _ = child.kill();
    }
    let status = child.wait().map_err(|error| format!("cannot be waited for: {error}"))?;
    match heard {
        Err(_) => Err(format!("took longer than {} seconds", limit.as_secs_f64())),
        Ok(_) if too_much => Err(format!("printed more than {MOST_BYTES} bytes")),
        Ok(_) if !status.success() => Err(format!("failed: {status}")),
        Ok((true, text)) => String::from_utf8(text).map_err(|_| "printed no UTF-8".to_owned()),
        Ok((false, _)) => Err("did not let its output be read".to_owned()),
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use text::{Conversation, Message};

    fn score(script: &str, text: &str) -> Result<f64, String> {
        let turns = vec![Message::new("user", "q"), Message::new("assistant", "yes")];
        let item = EvalItem::new("7".into(), Conversation::new(turns)).unwrap();
        let answer = Answer { text: text.to_owned(), ..Answer::default() };
        let words = ["sh", "-c", script].map(str::to_owned);
        judge(&words, &item, &answer, Duration::from_millis(2000))
    }

    #[test]
    fn the_command_sees_the_example_and_says_the_score() {
        let script = r#"grep -q '"id":"7","prompt":"q","answer":"yes","reference":"yes"' && echo 1 || echo 0.25"#;
        assert_eq!(score(script, "yes"), Ok(1.0));
        assert_eq!(score(script, "no"), Ok(0.25));
        assert_eq!(score("echo 0.5", "no"), Ok(0.5));
    }

    #[test]
    fn whatever_else_it_does_is_an_error() {
        for (script, said) in [
            ("echo 2", "printed \"2\"; expected a number from 0 to 1"),
            ("echo NaN", "expected a number"),
            ("echo good", "\"good\""),
            ("echo 1; exit 3", "failed: exit status: 3"),
            ("yes", "printed more than 65536 bytes"),
            ("exec sleep 60", "took longer than 2 seconds"),
        ] {
            let error = score(script, "x").unwrap_err();
            assert!(error.contains(said), "{script}: {error}");
        }
        assert!(build(" ").is_err());
        let words = ["/nonexistent/judge".to_owned()];
        let turns = vec![Message::new("user", "q"), Message::new("assistant", "yes")];
        let item = EvalItem::new("7".into(), Conversation::new(turns)).unwrap();
        let error = judge(&words, &item, &Answer::default(), LIMIT).unwrap_err();
        assert!(error.contains("cannot be started"), "{error}");
    }
}
