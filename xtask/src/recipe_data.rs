//! Writes the data of the recipes: `cargo run -p xtask -- recipe-data [--out DIR]`.
//!
//! The same repair firm as in the sample trade, in the forms that other tasks take: labels, questions
//! about a text, letters in a house style, judged replies and plain reports. All of it is put together
//! from the phrase banks of this source and of the sample trade, so that the right answer is known. The
//! files are a pure function of this source.

mod banks;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::sample_trade::{self, Draw, Set, messages};
use banks::{
    ASIDES, FACTS, FIRMS, JOBS, LETTERS, MISSING, NEXT_STEPS, OPENINGS, PROMISES, SENDERS, TESTED,
    UNKINDNESS, WAYS_OUT,
};

/// Where the generator begins; other than the sample trade's, so that the messages are others.
const SEED: u64 = 40_961;

const WEEKDAYS: &[&str] = &["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
/// Months of the reports; the last one is kept for the test.
const MONTHS: &[(&str, u32)] =
    &[("January", 31), ("February", 28), ("March", 31), ("April", 30), ("May", 31), ("June", 30)];
const REPORTS_PER_MONTH: usize = 90;

/// `cargo run -p xtask -- recipe-data [--out DIR]`; DIR is recipes/data by default.
///
/// # Errors
/// When an argument is unknown or a file cannot be written.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let out = match arguments {
        [] => Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/data"),
        [flag, dir] if flag == "--out" => PathBuf::from(dir),
        _ => bail!("recipe-data takes only --out DIR, found {:?}", arguments.join(" ")),
    };
    for (name, content) in files() {
        let path = out.join(&name);
        let parent = path.parent().expect("below DIR");
        fs::create_dir_all(parent)
            .with_context(|| format!("cannot create {}", parent.display()))?;
        fs::write(&path, &content).with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("{}: {} bytes", path.display(), content.len());
    }
    Ok(())
}

/// Makes so many rows of one set.
type Maker = fn(Set, usize) -> Vec<Value>;

/// A data set in rows: its folder, what makes it, and how many rows its two files have.
const SETS: &[(&str, Maker, usize, usize)] = &[
    ("classification", labels, 800, 200),
    ("question-answering", questions, 800, 200),
    ("style", letters, 480, 120),
    ("preferences", preferences, 400, 100),
];

/// Every file with its content.
fn files() -> Vec<(String, String)> {
    let mut files = Vec::new();
    for (name, make, train, test) in SETS {
        for (part, set, count) in [("train", Set::Train, *train), ("test", Set::Test, *test)] {
            let lines: String = make(set, count).iter().map(|row| format!("{row}\n")).collect();
            files.push((format!("{name}/{part}.jsonl"), lines));
        }
    }
    for (i, (month, days)) in MONTHS.iter().enumerate() {
        let file = match i + 1 == MONTHS.len() {
            true => "reports_test.txt".to_owned(),
            false => format!("reports/{}-{}.txt", i + 1, month.to_lowercase()),
        };
        files.push((file, reports(month, *days, i)));
    }
    files
}

/// A message to the firm and how urgent it is.
fn labels(set: Set, count: usize) -> Vec<Value> {
    let rows = messages(SEED, set, count).into_iter();
    rows.map(|row| json!({"text": row.message, "label": row.ticket.urgency})).collect()
}

/// Some facts about a firm, a question, and the answer in the text's own words; one question in seven
/// has no answer there.
fn questions(set: Set, count: usize) -> Vec<Value> {
    let mut draw = Draw::new(SEED + 1, set);
    (0..count)
        .map(|_| {
            let mut order: Vec<usize> = (0..FACTS.len()).collect();
            for i in 0..5 {
                let other = i + draw.below(order.len() - i);
                order.swap(i, other);
            }
            let mut text = format!("{}.", pick(&mut draw, FIRMS.of(set)));
            let mut answers = Vec::new();
            for &fact in &order[..4] {
                let value = (FACTS[fact].value)(&mut draw);
                write!(
                    text,
                    " {}",
                    pick(&mut draw, FACTS[fact].says.of(set)).replace("{v}", &value)
                )
                .expect("writing to a string cannot fail");
                answers.push(value);
            }
            let asked = if draw.chance(15) { 4 } else { draw.below(4) };
            let question = pick(&mut draw, FACTS[order[asked]].asks.of(set));
            let answer = answers.get(asked).map_or(MISSING, String::as_str);
            json!({"prompt": format!("{text}\n\n{question}"), "completion": answer})
        })
        .collect()
}

/// A note between colleagues and the letter that the firm makes of it.
fn letters(set: Set, count: usize) -> Vec<Value> {
    let mut draw = Draw::new(SEED + 2, set);
    let mut rows: Vec<Value> = Vec::new();
    while rows.len() < count {
        let letter = draw.pick(LETTERS);
        let day = pick(&mut draw, WEEKDAYS);
        let price = format!("{}", 40 + 5 * draw.below(50));
        let values = [
            ("{n}", sample_trade::first_name(&mut draw, set)),
            ("{a}", sample_trade::appliance(&mut draw)),
            ("{d}", day),
            ("{p}", price.as_str()),
        ];
        let note = fill(pick(&mut draw, letter.notes.of(set)), &values);
        let row = json!({"prompt": note, "completion": fill(letter.text, &values)});
        if !rows.iter().any(|known| known["prompt"] == row["prompt"]) {
            rows.push(row);
        }
    }
    rows
}

/// A message to the firm with a reply as it should be and one as it should not be: curt, blaming, or
/// promising what nobody knows. Both are of like length, so that length tells nothing.
fn preferences(set: Set, count: usize) -> Vec<Value> {
    let mut draw = Draw::new(SEED + 3, set);
    // One message in four is French; the replies are English.
    let rows = messages(SEED + 4, set, 2 * count).into_iter();
    let english = rows.filter(|row| row.ticket.language == "en").take(count);
    english
        .map(|row| {
            let values = [("{a}", row.ticket.appliance)];
            let mut reply = |parts: [&[&'static str]; 3]| -> String {
                let said = parts.map(|part| fill(pick(&mut draw, part), &values));
                said.join(" ")
            };
            let chosen = reply([OPENINGS.of(set), NEXT_STEPS.of(set), WAYS_OUT.of(set)]);
            let rejected = reply([UNKINDNESS.of(set), PROMISES.of(set), ASIDES.of(set)]);
            json!({"prompt": row.message, "chosen": chosen, "rejected": rejected})
        })
        .collect()
}

/// The reports of a month's jobs, a paragraph each.
fn reports(month: &str, days: u32, index: usize) -> String {
    let mut draw = Draw::new(SEED + 5 + index as u64, Set::Train);
    let mut text = String::new();
    for i in 0..REPORTS_PER_MONTH {
        let job = draw.pick(JOBS);
        let appliance = *draw.pick(job.appliances);
        let day = 1 + i * days as usize / REPORTS_PER_MONTH;
        let price = format!("{}", 40 + 5 * draw.below(50));
        let minutes = format!("{}", 20 + 5 * draw.below(20));
        let (found, done) = *draw.pick(job.work);
        let values = [
            ("{n}", sample_trade::first_name(&mut draw, Set::Train)),
            ("{a}", appliance),
            ("{p}", price.as_str()),
            ("{m}", minutes.as_str()),
        ];
        let parts = [
            format!("{day} {month}, job {}{i:02}.", index + 1),
            fill(pick(&mut draw, SENDERS), &values),
            fill(pick(&mut draw, job.reported), &values),
            fill(found, &values),
            fill(done, &values),
            fill(pick(&mut draw, TESTED), &values),
        ];
        text += &parts.join(" ");
        text += "\n\n";
    }
    text.truncate(text.len() - 1);
    text
}

fn pick(draw: &mut Draw, from: &[&'static str]) -> &'static str {
    from[draw.below(from.len())]
}

/// Puts values where their marks stand.
fn fill(phrase: &str, values: &[(&str, &str)]) -> String {
    values.iter().fold(phrase.to_owned(), |text, (mark, value)| text.replace(mark, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_committed_files_are_what_this_source_makes() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/data");
        for (name, content) in files() {
            let committed = fs::read_to_string(folder.join(&name)).unwrap();
            assert!(committed == content, "{name} is stale: cargo run -p xtask -- recipe-data");
            assert!(!content.contains(['{', '}']) || name.ends_with("jsonl"), "{name}");
        }
    }

    #[test]
    fn every_mark_is_filled_and_every_prompt_is_its_own() {
        for (name, make, train, test) in SETS {
            let mut prompts = HashSet::new();
            for (set, count) in [(Set::Train, *train), (Set::Test, *test)] {
                let rows = make(set, count);
                assert_eq!(rows.len(), count, "{name}");
                for row in rows {
                    let fields = row.as_object().unwrap();
                    for (field, text) in fields {
                        let text = text.as_str().unwrap();
                        assert!(!text.contains(['{', '}']), "{name}: {field}: {text}");
                    }
                    let prompt = fields.values().next().unwrap().to_string();
                    assert!(prompts.insert(prompt.clone()), "{name}: twice: {prompt}");
                }
            }
        }
    }

    #[test]
    fn an_answer_stands_in_its_text() {
        for set in [Set::Train, Set::Test] {
            let rows = questions(set, 300);
            let missing = rows.iter().filter(|row| row["completion"] == MISSING).count();
            assert!((20..80).contains(&missing), "{missing}");
            for row in rows.iter().filter(|row| row["completion"] != MISSING) {
                let (text, answer) = (&row["prompt"], &row["completion"]);
                assert!(text.as_str().unwrap().contains(answer.as_str().unwrap()), "{row}");
            }
        }
    }

    #[test]
    fn length_does_not_tell_the_better_reply() {
        let rows = preferences(Set::Train, 400);
        let length = |row: &Value, field: &str| row[field].as_str().unwrap().len();
        let longer = rows.iter().filter(|r| length(r, "chosen") > length(r, "rejected")).count();
        assert!((120..280).contains(&longer), "{longer} of 400 chosen replies are the longer ones");
    }
}
