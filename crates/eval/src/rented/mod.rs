//! A rented model: asked over HTTP in OpenAI's or Anthropic's shapes, every answer written down before
//! the next is asked for.
//!
//! Read [`RentedCandidate`]'s `answer` first. What was answered, or failed after it may have been paid
//! for, is never asked again: a rerun costs nothing. What the endpoint did not take (throttled, not
//! reachable) is tried again, in this run with growing pauses and in the next run anew. A key or model
//! that is refused ends the run at once.

mod ask;
mod records;
mod wire;

pub use records::{Outcome, Record};
pub use wire::Protocol;

use crate::candidate::{Answer, Candidate};
use crate::error::EvalError;
use crate::item::EvalItem;
use ask::{Asked, Asker};
use records::Records;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Duration;

/// Requests in a row that the endpoint may fail to take before the run is given up.
const GIVE_UP_AFTER: usize = 20;

/// A secret from the environment. It is sent to its endpoint and goes nowhere else: it is neither
/// printed, nor logged, nor saved.
#[derive(Clone)]
pub struct Key {
    variable: String,
    secret: String,
}

impl Key {
    /// The key in the environment variable of this name.
    ///
    /// # Errors
    /// [`EvalError::Rented`] when it is not set, empty, or not printable ASCII as headers need.
    pub fn from_env(variable: &str) -> Result<Key, EvalError> {
        Key::new(variable, std::env::var(variable).unwrap_or_default())
    }

    /// A key, and the name of the variable that it came from.
    ///
    /// # Errors
    /// As [`Key::from_env`].
    pub fn new(variable: &str, secret: String) -> Result<Key, EvalError> {
        let secret = secret.trim().to_owned();
        if secret.is_empty() || !secret.bytes().all(|b| b.is_ascii_graphic()) {
            let found = if secret.is_empty() { "empty or not set" } else { "no printable ASCII" };
            return Err(EvalError::Rented {
                name: variable.to_owned(),
                reason: format!(
                    "the environment variable {variable} is {found}\nhint: export {variable}=..."
                ),
            });
        }
        Ok(Key { variable: variable.to_owned(), secret })
    }

    /// The text without the key, wherever an endpoint echoes it.
    fn hidden(&self, text: &str) -> String {
        text.replace(&self.secret, "[key]")
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Key(from {})", self.variable)
    }
}

/// Where a rented model is, and how it is asked.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Base address: `https://api.openai.com/v1`.
    pub url: String,
    /// Whose shapes it speaks.
    pub protocol: Protocol,
    /// The model's name there.
    pub model: String,
    /// The key; None for a server that asks for none.
    pub key: Option<Key>,
    /// Longest answer, tokens.
    pub max_tokens: usize,
    /// Further fields of the request, which replace ours.
    pub parameters: Map<String, Value>,
    /// Fields of ours that this model does not take, such as `temperature`.
    pub omit: Vec<String>,
    /// Requests under way at once, 1 to 64.
    pub concurrency: usize,
    /// Longest wait for an answer.
    pub timeout: Duration,
    /// How often a request that was not taken is sent in all.
    pub attempts: usize,
    /// The first pause; each further one is twice as long, unless the endpoint says how long.
    pub first_pause: Duration,
    /// A longer pause is not waited for.
    pub longest_pause: Duration,
    /// Asks again what failed in an earlier run; that may cost money a second time.
    pub retry_failed: bool,
    /// Which of several draws of the same questions this is, from 0: each has records of its own.
    pub draw: usize,
}

impl Endpoint {
    /// An endpoint with the defaults: 4 requests at once, 120 s, 6 attempts from 1 s on, pauses up to
    /// 5 minutes.
    pub fn new(url: &str, protocol: Protocol, model: &str, key: Option<Key>) -> Endpoint {
        Endpoint {
            url: url.trim_end_matches('/').to_owned(),
            protocol,
            model: model.to_owned(),
            key,
            max_tokens: 256,
            parameters: Map::new(),
            omit: Vec::new(),
            concurrency: 4,
            timeout: Duration::from_secs(120),
            attempts: 6,
            first_pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(300),
            retry_failed: false,
            draw: 0,
        }
    }

    fn check(&self) -> Result<(), String> {
        if !self.url.starts_with("http://") && !self.url.starts_with("https://") {
            return Err(format!("found the address {:?}; expected https://...", self.url));
        }
        if self.key.is_some() && in_the_clear(&self.url) {
            return Err(format!(
                "found the address {:?}, over which the key would travel in the clear\nhint: use https://",
                self.url
            ));
        }
        if !(1..=64).contains(&self.concurrency) {
            return Err(format!("concurrency is {}; expected 1 to 64", self.concurrency));
        }
        if self.attempts == 0 || self.max_tokens == 0 || self.timeout.is_zero() {
            return Err("attempts, max_tokens and timeout must be above 0".to_owned());
        }
        Ok(())
    }

    /// Error texts of an endpoint may echo what was sent.
    fn hidden(&self, text: &str) -> String {
        self.key.as_ref().map_or_else(|| text.to_owned(), |key| key.hidden(text))
    }
}

/// Whether what goes to and from this address can be read and changed on its way: it is plain `http://`, and
/// not to this machine.
pub fn in_the_clear(url: &str) -> bool {
    let here = ["127.0.0.1", "localhost", "[::1]"];
    url.strip_prefix("http://").is_some_and(|rest| {
        let is_here = |host: &&str| {
            rest.strip_prefix(host)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '/']))
        };
        !here.iter().any(is_here)
    })
}

/// A rented model whose answers are kept in a file.
#[derive(Debug)]
pub struct RentedCandidate {
    name: String,
    endpoint: Endpoint,
    path: PathBuf,
}

impl RentedCandidate {
    /// A candidate called `name` whose answers are kept in the file `path`, which is made when it is
    /// not there. Several candidates may share a file, one after another.
    ///
    /// # Errors
    /// [`EvalError::Rented`] for an endpoint that makes no sense, or would show the key.
    pub fn new(
        name: impl Into<String>,
        endpoint: Endpoint,
        path: PathBuf,
    ) -> Result<RentedCandidate, EvalError> {
        let name = name.into();
        endpoint.check().map_err(|reason| EvalError::Rented { name: name.clone(), reason })?;
        Ok(RentedCandidate { name, endpoint, path })
    }

    fn requests(&self, examples: &[EvalItem]) -> Vec<Question> {
        let mut place_of: HashMap<String, usize> = HashMap::new();
        let mut questions: Vec<Question> = Vec::new();
        for (index, item) in examples.iter().enumerate() {
            let body = wire::request(&self.endpoint, &item.conversation);
            let key = records::key(&self.endpoint, &body);
            // Two examples that ask the same share one answer: it is paid for once.
            let place = *place_of.entry(key.clone()).or_insert(questions.len());
            match questions.get_mut(place) {
                Some(question) => question.indices.push(index),
                None => questions.push(Question {
                    id: item.id.clone(),
                    key,
                    body,
                    indices: vec![index],
                }),
            }
        }
        questions
    }

    fn error(&self, reason: String) -> EvalError {
        EvalError::Rented { name: self.name.clone(), reason }
    }
}

/// One request, and the examples that it answers.
struct Question {
    id: String,
    key: String,
    body: Value,
    indices: Vec<usize>,
}

impl Candidate for RentedCandidate {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "rented"
    }

    fn answer(
        &mut self,
        examples: &[EvalItem],
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<Answer>, EvalError> {
        let records = Records::open(&self.path)?;
        let questions = self.requests(examples);
        let mut answers = vec![Answer::failed("it was not asked"); examples.len()];
        let mut done = 0;
        let mut fill = |question: &Question, record: &Record| {
            question.indices.iter().for_each(|&index| answers[index] = record.answer());
            done += question.indices.len();
            done
        };
        let mut open = Vec::new();
        for question in &questions {
            match records.get(&question.key) {
                Some(record) if record.is_final(self.endpoint.retry_failed) => {
                    fill(question, record);
                }
                _ => open.push(question),
            }
        }
        let this: &RentedCandidate = self;
        let asker = Asker::new(&this.endpoint);
        let records = Mutex::new(records);
        let (next, stop, refused) =
            (AtomicUsize::new(0), AtomicBool::new(false), AtomicUsize::new(0));
        let ended: Option<EvalError> = std::thread::scope(|scope| {
            let (sender, receiver) = mpsc::channel();
            for _ in 0..self.endpoint.concurrency.min(open.len()) {
                let sender = sender.clone();
                let (open, asker, records) = (&open, &asker, &records);
                let (next, stop, refused) = (&next, &stop, &refused);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let Some(question) = open.get(next.fetch_add(1, Ordering::Relaxed)) else {
                            return;
                        };
                        let result = this.ask(question, asker, records, refused);
                        let failed = result.is_err();
                        // The receiver lives as long as the scope.
                        let _ = sender.send((*question, result));
                        if failed {
                            stop.store(true, Ordering::Relaxed);
                        }
                    }
                });
            }
            drop(sender);
            let mut ended = None;
            for (question, result) in receiver {
                match result {
                    Ok(record) => progress(fill(question, &record)),
                    Err(error) => ended = ended.or(Some(error)),
                }
            }
            ended
        });
        match ended {
            Some(error) => Err(error),
            None => {
                progress(examples.len());
                Ok(answers)
            }
        }
    }
}

impl RentedCandidate {
    /// Asks, and writes down what came back, whatever it is.
    fn ask(
        &self,
        question: &Question,
        asker: &Asker,
        records: &Mutex<Records>,
        refused: &AtomicUsize,
    ) -> Result<Record, EvalError> {
        let asked = asker.ask(&question.body);
        if let Asked::Refused(reason) = asked {
            let hint = "\nhint: nothing is lost: what was answered is kept, and is not asked again";
            return Err(self.error(reason + hint));
        }
        let in_a_row = match &asked {
            Asked::NotTaken(_) => refused.fetch_add(1, Ordering::Relaxed) + 1,
            _ => {
                refused.store(0, Ordering::Relaxed);
                0
            }
        };
        let record = Record::new(&question.key, &question.id, &self.endpoint, asked);
        let mut records = records.lock().unwrap_or_else(PoisonError::into_inner);
        records.append(&record)?;
        if in_a_row >= GIVE_UP_AFTER {
            return Err(self.error(format!(
                "{in_a_row} requests in a row were not taken; the last: {}\nhint: run it again later; what was answered is kept, and is not asked again",
                record.reason.unwrap_or_default()
            )));
        }
        Ok(record)
    }
}
