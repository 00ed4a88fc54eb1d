//! Answers that were given earlier, in the forms in which programs record them: one file each, one table.

mod inspect;
mod inspect_archive;
mod lines;
mod lm_eval;
mod promptfoo;

use crate::candidate::{Answer, Likelihood};
use serde::Deserialize;
use serde_json::Value;

/// An answer as it was recorded.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Recorded {
    /// Id of the example; None where the form knows only its place.
    pub(crate) id: Option<String>,
    /// Place of the example in the test set, from 0.
    #[serde(skip)]
    pub(crate) place: Option<usize>,
    pub(crate) answer: Option<String>,
    pub(crate) prompt: Option<String>,
    pub(crate) reference: Option<String>,
    pub(crate) error: Option<String>,
    pub(crate) stopped: Option<bool>,
    pub(crate) prompt_tokens: Option<usize>,
    pub(crate) answer_tokens: Option<usize>,
    pub(crate) seconds: Option<f64>,
    pub(crate) cached_tokens: Option<usize>,
    pub(crate) cache_write_tokens: Option<usize>,
    pub(crate) model: Option<String>,
    #[serde(default)]
    pub(crate) likelihoods: Vec<Likelihood>,
    pub(crate) similarity: Option<f64>,
    pub(crate) grade: Option<u8>,
    #[serde(default)]
    pub(crate) repeats: Vec<Recorded>,
}

impl Recorded {
    /// As an answer, with its repeats.
    pub(crate) fn answer(&self) -> Answer {
        let repeats =
            self.repeats.iter().map(|repeat| Answer { repeats: Vec::new(), ..repeat.answer() });
        Answer {
            text: self.answer.clone().unwrap_or_default(),
            error: self.error.clone(),
            stopped: self.stopped,
            prompt_tokens: self.prompt_tokens,
            answer_tokens: self.answer_tokens,
            seconds: self.seconds,
            cached_tokens: self.cached_tokens,
            cache_write_tokens: self.cache_write_tokens,
            model: self.model.clone(),
            likelihoods: self.likelihoods.clone(),
            similarity: self.similarity,
            grade: self.grade,
            repeats: repeats.collect(),
        }
    }

    /// Whether it, and each of its repeats, has an answer or the reason why there is none.
    fn is_whole(&self) -> bool {
        let has_one = |one: &Recorded| one.answer.is_some() || one.error.is_some();
        has_one(self) && self.repeats.iter().all(has_one)
    }
}

/// What is wrong with a file, and where: a line from 1, or its place in a list from 1.
pub(crate) struct Wrong {
    pub(crate) line: usize,
    pub(crate) reason: String,
}

/// A form of recorded answers.
struct Form {
    /// Whether a file is of this form, by its first JSON value.
    is: fn(&Value) -> bool,
    /// Its answers, each with its line or place from 1.
    read: fn(&[u8]) -> Placed,
}

/// Answers, each with its line or place from 1.
type Placed = Result<Vec<(usize, Recorded)>, Wrong>;

/// The forms; the first that recognises the file reads it. The last one is ours.
const FORMS: &[Form] = &[lm_eval::FORM, inspect::FORM, promptfoo::FORM, lines::FORM];

/// Reads the answers of a file, whatever its form.
pub(crate) fn read(bytes: &[u8]) -> Placed {
    if bytes.starts_with(inspect_archive::MAGIC) {
        return inspect_archive::read(bytes);
    }
    let first = serde_json::Deserializer::from_slice(bytes).into_iter::<Value>().next();
    let first = first.and_then(Result::ok).unwrap_or(Value::Null);
    for form in FORMS {
        if (form.is)(&first) {
            return (form.read)(bytes);
        }
    }
    lines::read(bytes)
}

/// Each line of JSON lines that is not empty, with its number from 1.
fn lines_of(bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let numbered = bytes.split(|&b| b == b'\n').enumerate();
    numbered
        .filter(|(_, line)| !line.iter().all(u8::is_ascii_whitespace))
        .map(|(index, line)| (index + 1, line))
}

/// A whole file as one JSON value.
fn whole(bytes: &[u8]) -> Result<Value, Wrong> {
    serde_json::from_slice(bytes)
        .map_err(|error| Wrong { line: error.line(), reason: error.to_string() })
}

/// An id or target as text: numbers as they are written.
fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn count_of(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|n| usize::try_from(n).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Vec<(usize, Recorded)>, String> {
        read(text.as_bytes()).map_err(|wrong| format!("{}: {}", wrong.line, wrong.reason))
    }

    #[test]
    fn our_lines_keep_what_is_known() {
        let all = read_text(
            "{\"id\": \"a\", \"answer\": \"x\", \"seconds\": 0.5}\n\n{\"id\": \"b\", \"error\": \"e\"}\n",
        );
        let all = all.unwrap();
        assert_eq!((all[0].0, all[0].1.seconds), (1, Some(0.5)));
        assert_eq!((all[1].0, all[1].1.error.as_deref()), (3, Some("e")));
        assert!(read_text("{\"answer\": \"x\"}").err().unwrap().contains("missing field `id`"));
    }

    #[test]
    fn samples_of_the_harness_become_answers() {
        let text = concat!(
            r#"{"doc_id": 0, "doc": {"text": "q"}, "target": "4", "arguments": {"gen_args_0": {"arg_0": "q"}}, "resps": [["is 4"]], "filtered_resps": ["4"], "filter": "n", "exact_match": 1.0}"#,
            "\n",
            r#"{"doc_id": 1, "doc": {"id": "k"}, "target": "5", "arguments": [], "resps": [["6"]], "filtered_resps": ["6"], "filter": "n"}"#,
        );
        let all = read_text(text).unwrap();
        assert_eq!((all[0].1.id.as_deref(), all[0].1.place), (None, Some(0)));
        assert_eq!(all[0].1.answer.as_deref(), Some("4"));
        assert_eq!(all[0].1.reference.as_deref(), Some("4"));
        assert_eq!(all[1].1.id.as_deref(), Some("k"));
        let two = format!("{text}\n{}", text.lines().next().unwrap().replace("\"n\"", "\"m\""));
        assert!(read_text(&two).err().unwrap().contains("filters \"n\" and \"m\""));
        let choice = r#"{"doc_id": 0, "doc": {}, "target": "1", "arguments": {"gen_args_0": {"arg_0": "q", "arg_1": " no"}, "gen_args_1": {"arg_0": "q", "arg_1": " yes"}}, "resps": [], "filtered_resps": [["-2.5", "False"], ["-1.5", "True"]], "filter": "none"}"#;
        let one = read_text(choice).unwrap().remove(0).1;
        assert_eq!((one.answer.as_deref(), one.reference.as_deref()), (Some("yes"), Some("yes")));
        assert_eq!((one.likelihoods[0].sum, one.likelihoods[1].greedy), (-2.5, true));
    }

    #[test]
    fn logs_of_inspect_become_answers() {
        // What the program writes in its two formats.
        for file in ["inspect.json", "inspect.eval"] {
            let all = read(&recorded(file)).ok().unwrap();
            let shown: Vec<_> = all
                .iter()
                .map(|(_, r)| {
                    (r.id.as_deref(), r.place, r.answer.as_deref(), r.reference.as_deref())
                })
                .collect();
            let (yes, maybe, no) = (Some("yes"), Some("maybe"), Some("no"));
            let expected = [
                (Some("t0"), Some(0), yes, yes),
                (Some("t1"), Some(1), maybe, no),
                (Some("t2"), Some(2), None, yes),
            ];
            assert_eq!(shown, expected, "{file}");
            assert_eq!((all[0].1.prompt_tokens, all[0].1.answer_tokens), (Some(5), Some(2)));
            assert_eq!(all[0].1.stopped, Some(true));
            assert!(all[2].1.error.as_ref().unwrap().contains("ran out of values"), "{file}");
        }
    }

    fn recorded(name: &str) -> Vec<u8> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/recorded");
        std::fs::read(std::path::Path::new(folder).join(name)).unwrap()
    }

    /// What promptfoo itself writes.
    #[test]
    fn a_file_of_promptfoo_becomes_answers() {
        let all = read(&recorded("promptfoo.json")).ok().unwrap();
        let shown: Vec<_> = all
            .iter()
            .map(|(_, r)| (r.id.as_deref(), r.place, r.answer.as_deref(), r.reference.as_deref()))
            .collect();
        let (yes, maybe, no) = (Some("yes"), Some("maybe"), Some("no"));
        assert_eq!(shown, [(Some("t0"), Some(0), yes, yes), (Some("t1"), Some(1), maybe, no)]);
        // A failed assertion is no failed answer, and a provider that counts nothing counts no zeros.
        assert!(all.iter().all(|(_, r)| r.error.is_none() && r.prompt_tokens.is_none()));
        assert!(all.iter().all(|(_, r)| r.seconds.is_some_and(|s| s < 60.0)));
    }

    #[test]
    fn results_of_promptfoo_become_answers() {
        let row = |index: usize, provider: &str, response: &str| {
            format!(
                r#"{{"testIdx": {index}, "promptIdx": 0, "vars": {{"question": "q", "expected": "yes"}}, "provider": {{"id": "{provider}", "label": ""}}, "response": {response}, "latencyMs": 250, "error": "Expected output to contain \"yes\""}}"#
            )
        };
        let file = |rows: &[String]| {
            format!(
                r#"{{"evalId": "e", "results": {{"version": 3, "results": [{}]}}}}"#,
                rows.join(",")
            )
        };
        let good =
            row(0, "openai:m", r#"{"output": "no", "tokenUsage": {"prompt": 7, "completion": 3}}"#);
        let failed = row(1, "openai:m", r#"{"error": "timed out"}"#);
        let all = read_text(&file(&[good.clone(), failed])).unwrap();
        let one = &all[0].1;
        assert_eq!((one.answer.as_deref(), one.error.as_deref()), (Some("no"), None));
        assert_eq!((one.place, one.prompt_tokens, one.answer_tokens), (Some(0), Some(7), Some(3)));
        assert_eq!((one.seconds, one.reference.as_deref()), (Some(0.25), Some("yes")));
        assert_eq!(all[1].1.error.as_deref(), Some("timed out"));
        let other = row(0, "openai:n", r#"{"output": "no"}"#);
        assert!(read_text(&file(&[good, other])).err().unwrap().contains("one provider"));
    }
}
