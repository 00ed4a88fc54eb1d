//! Who answers: a model on this machine's engine, or a file of answers given earlier.

use crate::error::EvalError;
use crate::item::EvalItem;
use crate::recorded::{self, Recorded};
use engine::{
    Completion, Engine, EngineError, Event, FinishReason, Runner, SamplingParams, SequenceRequest,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use text::{ChatTemplate, Tokenizer};

/// Something that answers test examples.
pub trait Candidate {
    /// Name in reports, unique among the candidates compared.
    fn name(&self) -> &str;

    /// What sort of candidate it is: `local`, `recorded` or `rented`.
    fn kind(&self) -> &'static str;

    /// One answer for each example, in their order. `progress` gets the number of examples
    /// answered so far. An example that cannot be answered gets [`Answer::failed`].
    ///
    /// # Errors
    /// When no example can be answered at all.
    fn answer(
        &mut self,
        examples: &[EvalItem],
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<Answer>, EvalError>;
}

/// What came back for one example.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// The answer; empty when it failed.
    pub text: String,
    /// Why there is no answer; such an answer scores 0 with every metric.
    pub error: Option<String>,
    /// Whether the model ended by itself, rather than at the length limit. None: not known.
    pub stopped: Option<bool>,
    /// Tokens of the prompt, template included. None: not known.
    pub prompt_tokens: Option<usize>,
    /// Tokens generated. None: not known.
    pub answer_tokens: Option<usize>,
    /// Seconds from the beginning of the work on it to its end. None: not known.
    pub seconds: Option<f64>,
    /// Prompt tokens that a rented model read from its cache. None: not known.
    pub cached_tokens: Option<usize>,
    /// Prompt tokens that a rented model wrote to its cache. None: not known.
    pub cache_write_tokens: Option<usize>,
    /// The model that answered, as a rented one names itself. None: not known.
    pub model: Option<String>,
    /// How likely each of the example's choices is, or its reference where it has none. Empty where
    /// that was not asked.
    pub likelihoods: Vec<Likelihood>,
    /// Cosine of its embedding and the reference's, by an embedding model. None: not measured.
    pub similarity: Option<f64>,
    /// A judge's grade of it, 1 to 5; 0 where the judge said nothing that can be read. None: not graded.
    pub grade: Option<u8>,
    /// Further answers to the same question, where it was asked more than once ([`crate::Repeated`]);
    /// they have none themselves. Scores and token counts of the example are means over all of them.
    pub repeats: Vec<Answer>,
}

/// How likely a text is as the continuation of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Likelihood {
    /// Sum of its tokens' log probabilities, nats.
    pub sum: f64,
    /// Whether each of its tokens is the likeliest one at its place.
    pub greedy: bool,
    /// Its tokens.
    pub tokens: usize,
}

impl Answer {
    /// No answer, for this reason.
    pub fn failed(reason: impl Into<String>) -> Answer {
        Answer { error: Some(reason.into()), ..Answer::default() }
    }

    /// It and its repeats.
    pub fn all(&self) -> impl Iterator<Item = &Answer> + Clone {
        std::iter::once(self).chain(&self.repeats)
    }

    /// Changes it and its repeats, in the order of [`Answer::all`].
    pub(crate) fn each(&mut self, change: &mut dyn FnMut(&mut Answer)) {
        change(self);
        self.repeats.iter_mut().for_each(change);
    }
}

/// Each example with each of its answers, in the order of [`Answer::all`].
pub(crate) fn answered<'a>(
    items: &'a [EvalItem],
    answers: &'a [Answer],
) -> impl Iterator<Item = (&'a EvalItem, &'a Answer)> {
    let pairs = items.iter().zip(answers);
    pairs.flat_map(|(item, answer)| answer.all().map(move |one| (item, one)))
}

/// What [`LocalCandidate`] needs of an engine; [`Engine`] has it.
pub trait Generator {
    /// Answers all requests in one continuous batch, in their order. `on_event` gets (index of the
    /// request, event); a refused request has no event.
    fn generate(
        &mut self,
        requests: Vec<SequenceRequest>,
        on_event: &mut dyn FnMut(usize, &Event),
    ) -> Vec<Result<Completion, EngineError>>;
}

impl<R: Runner> Generator for Engine<R> {
    fn generate(
        &mut self,
        requests: Vec<SequenceRequest>,
        on_event: &mut dyn FnMut(usize, &Event),
    ) -> Vec<Result<Completion, EngineError>> {
        Engine::generate(self, requests, on_event)
    }
}

/// A model on this machine, with or without an adapter. Base and adapted are two candidates over
/// one engine, tokenizer and template, so that nothing but the adapter tells them apart.
pub struct LocalCandidate<G: Generator = Engine> {
    name: String,
    engine: Arc<Mutex<G>>,
    tokenizer: Arc<Tokenizer>,
    template: Arc<ChatTemplate>,
    adapter: Option<usize>,
    params: SamplingParams,
}

impl<G: Generator> LocalCandidate<G> {
    /// A candidate called `name` that answers with the adapter in slot `adapter` of the engine
    /// (None: the base alone). `params` say how long and how; the tokenizer's stop tokens and the
    /// template's end of a turn are added to theirs.
    pub fn new(
        name: impl Into<String>,
        engine: Arc<Mutex<G>>,
        tokenizer: Arc<Tokenizer>,
        template: Arc<ChatTemplate>,
        adapter: Option<usize>,
        mut params: SamplingParams,
    ) -> LocalCandidate<G> {
        for id in template.stop_ids(&tokenizer) {
            if !params.stop_ids.contains(&id) {
                params.stop_ids.push(id);
            }
        }
        LocalCandidate { name: name.into(), engine, tokenizer, template, adapter, params }
    }

    /// The same on the same engine, drawing once more: 0 is this one itself, each further number has a seed of
    /// its own. Greedy answers are the same in every draw.
    pub fn draw(&self, draw: u64) -> LocalCandidate<G> {
        let seed = self.params.seed.wrapping_add(draw);
        LocalCandidate {
            name: self.name.clone(),
            engine: Arc::clone(&self.engine),
            tokenizer: Arc::clone(&self.tokenizer),
            template: Arc::clone(&self.template),
            adapter: self.adapter,
            params: SamplingParams { seed, ..self.params.clone() },
        }
    }

    fn request(&self, item: &EvalItem) -> Result<SequenceRequest, String> {
        let rendered = self
            .template
            .render(&self.tokenizer, &item.conversation, true)
            .map_err(|error| format!("the prompt cannot be rendered: {error}"))?;
        Ok(SequenceRequest {
            prompt: rendered.ids,
            params: SamplingParams {
                seed: seed_of(self.params.seed, &item.id),
                ..self.params.clone()
            },
            adapter: self.adapter,
            ..SequenceRequest::default()
        })
    }

    fn finish(&self, completion: Result<Completion, EngineError>) -> Answer {
        let completion = match completion {
            Ok(completion) => completion,
            Err(error) => return Answer::failed(error.to_string()),
        };
        if completion.reason == FinishReason::Cancelled {
            return Answer::failed("it was cancelled");
        }
        match self.tokenizer.decode(&completion.tokens) {
            Ok(text) => Answer {
                text,
                error: None,
                stopped: Some(completion.reason == FinishReason::Stop),
                prompt_tokens: Some(completion.usage.prompt_tokens),
                answer_tokens: Some(completion.usage.completion_tokens),
                ..Answer::default()
            },
            Err(error) => Answer::failed(format!("the answer cannot be decoded: {error}")),
        }
    }
}

/// An example's own random numbers: with the same ones for all, their answers would be right or wrong
/// together, and no interval would know it.
fn seed_of(seed: u64, id: &str) -> u64 {
    let digest = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(id).finalize();
    digest[..8].iter().fold(0, |seed, byte| seed << 8 | u64::from(*byte))
}

impl<G: Generator> Candidate for LocalCandidate<G> {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "local"
    }

    fn answer(
        &mut self,
        examples: &[EvalItem],
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<Answer>, EvalError> {
        let mut answers: Vec<Answer> = vec![Answer::default(); examples.len()];
        let mut requests = Vec::with_capacity(examples.len());
        let mut index_of = Vec::with_capacity(examples.len());
        for (index, item) in examples.iter().enumerate() {
            match self.request(item) {
                Ok(request) => {
                    requests.push(request);
                    index_of.push(index);
                }
                Err(reason) => answers[index] = Answer::failed(reason),
            }
        }
        let mut done = examples.len() - requests.len();
        // A panic elsewhere while the engine was locked does not spoil it: every request brings
        // all of its own state.
        let mut engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner);
        let mut times = vec![(None, None); requests.len()];
        let completions = engine.generate(requests, &mut |request, event| {
            if let Event::Started { .. } = event {
                times[request].0 = Some(Instant::now());
            }
            if event.is_last() {
                times[request].1 = Some(Instant::now());
                done += 1;
                progress(done);
            }
        });
        drop(engine);
        for ((completion, index), times) in completions.into_iter().zip(index_of).zip(times) {
            answers[index] = self.finish(completion);
            if let (Some(start), Some(end)) = times {
                answers[index].seconds = Some(end.duration_since(start).as_secs_f64());
            }
        }
        progress(examples.len());
        Ok(answers)
    }
}

/// Answers given earlier, by anything. One JSON object per line with `id` and `answer`, as
/// [`crate::EvalResult::write_answers`] writes them; optional: `prompt` and `reference` (checked
/// against the test set), `error`, `stopped`, `prompt_tokens`, `answer_tokens`, `seconds`, `likelihoods`,
/// `similarity`, `grade`, `repeats` (a list of further answers); other fields are ignored. Or what
/// lm-evaluation-harness (`--log_samples`), inspect_ai (logs in both its formats) or promptfoo (`--output`)
/// wrote; where no row has an id of the test set, they belong to its examples in order, which the references
/// must confirm.
///
/// An example without a recorded answer is a failed one; answers to other examples are ignored.
pub struct RecordedCandidate {
    name: String,
    path: PathBuf,
    /// Each with its line.
    answers: Vec<(usize, Recorded)>,
    /// Where in `answers` an id is.
    by_id: HashMap<String, usize>,
    /// Where in `answers` a place of the test set is.
    by_place: HashMap<usize, usize>,
}

impl RecordedCandidate {
    /// Reads recorded answers.
    ///
    /// # Errors
    /// [`EvalError::Io`]; [`EvalError::Recorded`] naming the line that is not such an object, has
    /// neither answer nor error, or repeats an id.
    pub fn read(name: impl Into<String>, path: &Path) -> Result<RecordedCandidate, EvalError> {
        let bytes = std::fs::read(path).map_err(|source| EvalError::Io {
            action: "read",
            path: path.to_owned(),
            source,
        })?;
        let all = recorded::read(&bytes)
            .map_err(|wrong| recorded_error(path, wrong.line, wrong.reason))?;
        let mut candidate = RecordedCandidate {
            name: name.into(),
            path: path.to_owned(),
            answers: Vec::new(),
            by_id: HashMap::new(),
            by_place: HashMap::new(),
        };
        for (line, one) in all {
            let index = candidate.answers.len();
            let same_place = one.place.and_then(|place| candidate.by_place.insert(place, index));
            let same_id = one.id.clone().and_then(|id| candidate.by_id.insert(id, index));
            candidate.answers.push((line, one));
            if let Some(first) = same_id.or(same_place) {
                let first = candidate.answers[first].0;
                let reason = format!("its id is that of line {first}; expected one answer per id");
                return Err(recorded_error(path, line, reason));
            }
        }
        Ok(candidate)
    }

    /// The answer recorded for an example: by its id, or by its place where the file knows no ids of the test
    /// set; `ids_fit` says that it knows some.
    fn find(
        &self,
        index: usize,
        item: &EvalItem,
        ids_fit: bool,
    ) -> Result<Option<&(usize, Recorded)>, EvalError> {
        if let Some(&found) = self.by_id.get(&item.id) {
            return Ok(Some(&self.answers[found]));
        }
        let Some(&found) = self.by_place.get(&index) else { return Ok(None) };
        let found = &self.answers[found];
        // Where some rows have ids of the test set, one with another id belongs to another example.
        if ids_fit && found.1.id.is_some() {
            return Ok(None);
        }
        if found.1.reference.is_none() {
            let reason = "it has neither the id of a test example nor a reference that would show which one it belongs to. hint: give the rows ids";
            return Err(recorded_error(&self.path, found.0, reason.to_owned()));
        }
        Ok(Some(found))
    }

    fn recorded(&self, index: usize, item: &EvalItem, ids_fit: bool) -> Result<Answer, EvalError> {
        let Some((line, recorded)) = self.find(index, item, ids_fit)? else {
            return Ok(Answer::failed("no answer is recorded for this example"));
        };
        for (field, recorded, expected) in [
            ("prompt", &recorded.prompt, item.prompt()),
            ("reference", &recorded.reference, item.reference.clone()),
        ] {
            if recorded.as_ref().is_some_and(|recorded| *recorded != expected) {
                let reason = format!(
                    "its {field} is not the one of test example {:?}. hint: record the answers with the same test file",
                    item.id
                );
                return Err(recorded_error(&self.path, *line, reason));
            }
        }
        Ok(recorded.answer())
    }
}

impl Candidate for RecordedCandidate {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "recorded"
    }

    fn answer(
        &mut self,
        examples: &[EvalItem],
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<Answer>, EvalError> {
        let ids_fit = examples.iter().any(|item| self.by_id.contains_key(&item.id));
        if self.by_place.is_empty() && !ids_fit {
            return Err(EvalError::NothingRecorded {
                path: self.path.clone(),
                recorded: self.answers.len(),
                items: examples.len(),
            });
        }
        let numbered = examples.iter().enumerate();
        let answers = numbered
            .map(|(index, item)| self.recorded(index, item, ids_fit))
            .collect::<Result<_, _>>()?;
        progress(examples.len());
        Ok(answers)
    }
}

fn recorded_error(path: &Path, line: usize, reason: String) -> EvalError {
    EvalError::Recorded { path: path.to_owned(), line, reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::{SequenceId, Usage};
    use text::{Conversation, Message};

    fn items(n: usize) -> Vec<EvalItem> {
        let item = |i: usize| {
            let question = Message::new("user", format!("ab{}", "b".repeat(i)));
            let answer = Message::new("assistant", "a");
            EvalItem::new(i.to_string(), Conversation::new(vec![question, answer])).unwrap()
        };
        (0..n).map(item).collect()
    }

    fn tokenizer() -> Arc<Tokenizer> {
        let json = br#"{"version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [{"id": 0, "content": "</s>", "special": true, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false}],
            "normalizer": null, "post_processor": null,
            "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": false},
            "decoder": {"type": "Fuse"},
            "model": {"type": "WordLevel", "unk_token": "?", "vocab": {"</s>": 0, "?": 1, "a": 2, "b": 3}}}"#;
        let config = br#"{"eos_token": "</s>", "add_bos_token": false}"#;
        Arc::new(Tokenizer::from_bytes(json, Some(config)).unwrap())
    }

    /// Answers a prompt of n tokens with n times `a` and stops, except that the third runs on to
    /// the limit and the fourth is refused.
    struct Fake {
        seen: Vec<SequenceRequest>,
    }

    impl Generator for Fake {
        fn generate(
            &mut self,
            requests: Vec<SequenceRequest>,
            on_event: &mut dyn FnMut(usize, &Event),
        ) -> Vec<Result<Completion, EngineError>> {
            self.seen = requests.clone();
            let answer = |(index, request): (usize, SequenceRequest)| {
                if index == 3 {
                    return Err(EngineError::PromptTooLong { tokens: 9, context_len: 8 });
                }
                let n = request.prompt.len();
                let reason = if index == 2 { FinishReason::Length } else { FinishReason::Stop };
                let usage =
                    Usage { prompt_tokens: n, completion_tokens: n + 1, ..Usage::default() };
                let id = SequenceId(index as u64);
                on_event(index, &Event::Token { id, token: 2, logprobs: None });
                on_event(index, &Event::Finished { id, reason, usage });
                Ok(Completion {
                    tokens: vec![2; n],
                    logprobs: Vec::new(),
                    prompt_logprobs: Vec::new(),
                    embedding: Vec::new(),
                    reason,
                    usage,
                })
            };
            requests.into_iter().enumerate().map(answer).collect()
        }
    }

    #[test]
    fn a_local_candidate_renders_generates_and_decodes() {
        let engine = Arc::new(Mutex::new(Fake { seen: Vec::new() }));
        let tokenizer = tokenizer();
        let template = Arc::new(
            ChatTemplate::from_source("{% for m in messages %}{{ m.content }}{% endfor %}")
                .unwrap(),
        );
        let params = SamplingParams { max_tokens: 5, ..SamplingParams::default() };
        let mut candidate =
            LocalCandidate::new("adapted", engine.clone(), tokenizer, template, Some(4), params);
        let mut seen = Vec::new();
        let answers = candidate.answer(&items(5), &mut |done| seen.push(done)).unwrap();
        assert_eq!(seen, [1, 2, 3, 4, 5]);
        let texts: Vec<_> = answers.iter().map(|a| a.text.as_str()).collect();
        assert_eq!(texts, ["aa", "aaa", "aaaa", "", "aaaaaa"]);
        let stopped: Vec<_> = answers.iter().map(|a| a.stopped).collect();
        assert_eq!(stopped, [Some(true), Some(true), Some(false), None, Some(true)]);
        assert!(answers[3].error.as_ref().unwrap().contains("9 tokens"));
        assert_eq!((answers[0].prompt_tokens, answers[0].answer_tokens), (Some(2), Some(3)));
        let engine = engine.lock().unwrap();
        assert_eq!(engine.seen[1].prompt, [2, 3, 3]);
        assert_eq!(engine.seen[1].adapter, Some(4));
        assert_eq!(engine.seen[1].params.stop_ids, [0]);
        assert_eq!(engine.seen[1].params.max_tokens, 5);
    }

    #[test]
    fn a_prompt_that_cannot_be_rendered_fails_alone() {
        let engine = Arc::new(Mutex::new(Fake { seen: Vec::new() }));
        let source = "{{ raise_exception('no') if messages[0].content == 'ab' else 'a' }}";
        let template = Arc::new(ChatTemplate::from_source(source).unwrap());
        let params = SamplingParams::default();
        let mut candidate =
            LocalCandidate::new("base", engine, tokenizer(), template, None, params);
        let answers = candidate.answer(&items(2), &mut |_| ()).unwrap();
        assert!(answers[0].error.as_ref().unwrap().contains("cannot be rendered"), "{answers:?}");
        assert_eq!(answers[1].text, "a");
    }

    fn recorded(text: &str, items: &[EvalItem]) -> Result<Vec<Answer>, EvalError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("answers.jsonl");
        std::fs::write(&path, text).unwrap();
        RecordedCandidate::read("rented", &path)?.answer(items, &mut |_| ())
    }

    #[test]
    fn recorded_answers_are_found_by_id() {
        let text = r#"
            {"id": "1", "answer": "x", "stopped": true, "extra": [1]}

            {"id": "0", "error": "timeout"}
            {"id": "99", "answer": "to another question"}"#;
        let answers = recorded(text, &items(3)).unwrap();
        assert_eq!(answers[0].error.as_deref(), Some("timeout"));
        assert_eq!((answers[1].text.as_str(), answers[1].stopped), ("x", Some(true)));
        assert!(answers[2].error.as_ref().unwrap().contains("no answer is recorded"));
    }

    /// Rows of another program with ids of its own.
    #[test]
    fn rows_without_an_id_of_the_test_set_belong_to_it_in_order() {
        let log = |ids: [&str; 2], target: &str| {
            let sample = |id: &str, target: &str, said: &str| {
                format!(
                    r#"{{"id": "{id}", "epoch": 1, "target": "{target}", "output": {{"completion": "{said}"}}}}"#
                )
            };
            let samples = [sample(ids[0], "a", "x"), sample(ids[1], target, "y")];
            format!(r#"{{"eval": {{}}, "samples": [{}]}}"#, samples.join(","))
        };
        let texts = |text: &str| -> Vec<String> {
            recorded(text, &items(2)).unwrap().into_iter().map(|a| a.text).collect()
        };
        assert_eq!(texts(&log(["10", "11"], "a")), ["x", "y"]);
        // One id fits, so the other row is about another example.
        assert_eq!(texts(&log(["1", "11"], "a")), ["", "x"]);
        let error = recorded(&log(["10", "11"], "b"), &items(2)).unwrap_err().to_string();
        assert!(error.contains("its reference is not"), "{error}");
    }

    #[test]
    fn recorded_answers_of_another_test_set_or_broken_are_refused() {
        for (text, said) in [
            ("{\"id\": \"0\", \"answer\": \"x\"}\n{\"id\": ", "line 2"),
            ("{\"id\": \"0\"}", "neither answer nor error"),
            ("[1]", "line 1"),
            (
                "{\"id\": \"0\", \"answer\": \"\"}\n{\"id\": \"0\", \"answer\": \"\"}",
                "that of line 1",
            ),
            ("{\"id\": \"0\", \"answer\": \"x\", \"prompt\": \"other\"}", "its prompt is not"),
            ("{\"id\": \"0\", \"answer\": \"x\", \"reference\": \"b\"}", "its reference is not"),
            ("{\"id\": \"77\", \"answer\": \"x\"}", "none of its 1 recorded answers"),
            ("", "none of its 0 recorded answers"),
            ("{\"id\": \"\u{0}\", \"answer\": \"x\"}", "line 1"),
        ] {
            let error = recorded(text, &items(1)).unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
        let mut not_utf8 = b"{\"id\": \"0\", \"answer\": \"".to_vec();
        not_utf8.extend([0xff, b'"', b'}']);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        std::fs::write(&path, not_utf8).unwrap();
        assert!(RecordedCandidate::read("r", &path).is_err());
        let missing = RecordedCandidate::read("r", &dir.path().join("none")).err().unwrap();
        assert!(missing.to_string().contains("cannot read"));
    }
}
