//! The file of what was asked and answered: JSON lines, appended and synced one by one.
//!
//! A line is found by the digest of everything that decides the answer: address, protocol, model and
//! body, and which draw it is where the same is asked more than once. The last line of a digest counts. A line that a crash cut off was never relied on and is
//! removed; any other damage is an error that names the line.

use super::ask::Asked;
use super::wire;
use super::{Endpoint, Protocol};
use crate::candidate::Answer;
use crate::error::EvalError;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// With an answer.
    Answered,
    /// Without one, though it may have been paid for.
    Failed,
    /// The endpoint did not take it; the next run asks again.
    NotTaken,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// SHA-256 of address, protocol, model and body, and of the draw's number from the second on.
    pub key: String,
    /// Id of the first example that asked it.
    pub id: String,
    /// Address.
    pub endpoint: String,
    /// Model as it was asked for.
    pub model: String,
    /// Whose shapes.
    pub protocol: Protocol,
    /// How it ended.
    pub outcome: Outcome,
    /// The answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whether the model ended by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<bool>,
    /// The model as the endpoint names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_answering: Option<String>,
    /// As the endpoint counted, unchanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Value>,
    /// From sending to the whole answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub milliseconds: Option<u64>,
}

impl Record {
    pub(super) fn new(key: &str, id: &str, endpoint: &Endpoint, asked: Asked) -> Record {
        let mut record = Record {
            key: key.to_owned(),
            id: id.to_owned(),
            endpoint: endpoint.url.clone(),
            model: endpoint.model.clone(),
            protocol: endpoint.protocol,
            outcome: Outcome::Failed,
            answer: None,
            reason: None,
            stopped: None,
            model_answering: None,
            usage: None,
            milliseconds: None,
        };
        match asked {
            Asked::Answered(parsed, time) => {
                record.outcome = Outcome::Answered;
                record.answer = Some(parsed.text);
                record.stopped = parsed.stopped;
                record.model_answering = parsed.model;
                record.usage = parsed.usage;
                record.milliseconds = Some(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
            }
            Asked::Failed(reason) => record.reason = Some(reason),
            Asked::NotTaken(reason) | Asked::Refused(reason) => {
                record.outcome = Outcome::NotTaken;
                record.reason = Some(reason);
            }
        }
        record
    }

    /// Whether it is not asked again.
    pub(super) fn is_final(&self, retry_failed: bool) -> bool {
        match self.outcome {
            Outcome::Answered => true,
            Outcome::Failed => !retry_failed,
            Outcome::NotTaken => false,
        }
    }

    /// As an answer to an example.
    pub(super) fn answer(&self) -> Answer {
        let (Outcome::Answered, Some(text)) = (self.outcome, &self.answer) else {
            return Answer::failed(self.reason.clone().unwrap_or_else(|| "it failed".to_owned()));
        };
        let counts = self.usage.as_ref().map(|usage| wire::counts(self.protocol, usage));
        let counts = counts.unwrap_or_default();
        Answer {
            text: text.clone(),
            stopped: self.stopped,
            prompt_tokens: counts.input,
            answer_tokens: counts.output,
            cached_tokens: counts.cached,
            cache_write_tokens: counts.cache_write,
            seconds: self.milliseconds.map(|ms| ms as f64 / 1000.0),
            model: self.model_answering.clone(),
            ..Answer::default()
        }
    }
}

/// What decides an answer, as one digest.
pub(super) fn key(endpoint: &Endpoint, body: &Value) -> String {
    let mut what = json!({ "endpoint": endpoint.url, "protocol": endpoint.protocol, "body": body });
    if endpoint.draw > 0 {
        what["draw"] = endpoint.draw.into();
    }
    let digest = Sha256::digest(what.to_string().as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The open file with all that is in it. Only one run at a time holds it.
pub(super) struct Records {
    path: PathBuf,
    file: File,
    by_key: HashMap<String, Record>,
}

impl Records {
    /// Opens or makes the file, and reads it.
    pub(super) fn open(path: &Path) -> Result<Records, EvalError> {
        let io = |action: &'static str| {
            move |source: std::io::Error| EvalError::Io { action, path: path.to_owned(), source }
        };
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(io("make the folder of"))?;
        }
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(path);
        let mut file = file.map_err(io("open"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let reason = "another run writes to it\nhint: wait for that run to end".to_owned();
                return Err(EvalError::Recorded { path: path.to_owned(), line: 1, reason });
            }
            Err(TryLockError::Error(source)) => return Err(io("lock")(source)),
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io("read"))?;
        let whole = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |place| place + 1);
        if whole < bytes.len() {
            file.set_len(whole as u64).map_err(io("repair"))?;
        }
        file.seek(SeekFrom::Start(whole as u64)).map_err(io("read"))?;
        let by_key = read_lines(&bytes[..whole], path)?;
        Ok(Records { path: path.to_owned(), file, by_key })
    }

    pub(super) fn get(&self, key: &str) -> Option<&Record> {
        self.by_key.get(key)
    }

    /// Writes a line; when this returns it is on the disk.
    pub(super) fn append(&mut self, record: &Record) -> Result<(), EvalError> {
        let io = |source| EvalError::Io { action: "write", path: self.path.clone(), source };
        let mut line = serde_json::to_string(record)
            .map_err(|error| EvalError::Render { format: "JSON", reason: error.to_string() })?;
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(io)?;
        self.file.sync_data().map_err(io)?;
        self.by_key.insert(record.key.clone(), record.clone());
        Ok(())
    }
}

fn read_lines(bytes: &[u8], path: &Path) -> Result<HashMap<String, Record>, EvalError> {
    let mut by_key = HashMap::new();
    for (index, line) in bytes.split(|&b| b == b'\n').enumerate() {
        if line.is_empty() {
            continue;
        }
        let record: Record = serde_json::from_slice(line).map_err(|error| EvalError::Recorded {
            path: path.to_owned(),
            line: index + 1,
            reason: format!("no record of a rented answer: {error}"),
        })?;
        by_key.insert(record.key.clone(), record);
    }
    Ok(by_key)
}
