//! TensorBoard's event files: a scalar per number and step.
//!
//! A file is a row of records: length (u64, little-endian), its masked CRC-32C, the payload, its masked
//! CRC-32C (TensorFlow's `lib/io/record_writer`). A payload is a protocol buffer `Event`; of its fields
//! the few that scalars need are here, with the numbers of `event.proto` and `summary.proto`.

use crate::error::TrainError;
use crate::events::Event;
use prost::Message;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Name of the file; TensorBoard wants `tfevents` in it. One file for a run, however often it was
/// resumed.
pub const TENSORBOARD_FILE: &str = "events.out.tfevents.metier";

/// What the first record of every file says.
const VERSION: &str = "brain.Event:2";
/// Largest record that is read back; ours have a few hundred bytes.
const MAX_RECORD: u64 = 1 << 20;

#[derive(Clone, PartialEq, Message)]
struct EventProto {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<SummaryValue>,
}

#[derive(Clone, PartialEq, Message)]
struct SummaryValue {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

/// A number read back.
#[derive(Clone, Debug, PartialEq)]
pub struct Scalar {
    /// As Hugging Face names it: `train/loss`, `eval/loss`.
    pub tag: String,
    /// Optimizer steps done.
    pub step: i64,
    /// The number.
    pub value: f32,
}

/// The event file of a run.
pub(crate) struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Opens the file in `dir`; a new one unless `resume`.
    pub(crate) fn open(dir: &Path, resume: bool) -> Result<EventFile, TrainError> {
        let path = dir.join(TENSORBOARD_FILE);
        if !resume || !path.exists() {
            let first = EventProto {
                wall_time: now(),
                file_version: Some(VERSION.to_owned()),
                ..EventProto::default()
            };
            model::write_atomic(&path, &record(&first))?;
        }
        let file = appended(&path)?;
        Ok(EventFile { path, file })
    }

    /// Writes the numbers of an event that has some.
    pub(crate) fn event(&mut self, event: &Event) -> Result<(), TrainError> {
        let value =
            |(tag, value): (String, f64)| SummaryValue { tag, simple_value: Some(value as f32) };
        for (step, scalars) in scalars(event) {
            let event = EventProto {
                wall_time: now(),
                step: step as i64,
                summary: Some(Summary { value: scalars.into_iter().map(value).collect() }),
                ..EventProto::default()
            };
            let io = |e| TrainError::io(&self.path, e);
            self.file.write_all(&record(&event)).map_err(io)?;
        }
        Ok(())
    }

    /// Drops what was written about steps after `step`, which will be done again, and about the end,
    /// and a half-written record.
    pub(crate) fn rewind(&mut self, step: u64) -> Result<(), TrainError> {
        let bytes = fs::read(&self.path).map_err(|e| TrainError::io(&self.path, e))?;
        let mut kept = Vec::with_capacity(bytes.len());
        for (payload, whole) in records(&bytes) {
            let Ok(event) = EventProto::decode(payload) else { break };
            let values = event.summary.iter().flat_map(|summary| &summary.value);
            let at_the_end = values.into_iter().any(|value| value.tag.starts_with(GUARD));
            if event.step <= step as i64 && !at_the_end {
                kept.extend_from_slice(whole);
            }
        }
        model::write_atomic(&self.path, &kept)?;
        self.file = appended(&self.path)?;
        Ok(())
    }
}

/// Begins the names of what is measured on the general text, once a run and at its end.
const GUARD: &str = "eval/guard_";

/// The numbers of an event by step, with their names in Hugging Face's trainers, where it has some.
fn scalars(event: &Event) -> Vec<(u64, Vec<(String, f64)>)> {
    let (step, group, mut scalars, judged) = match event {
        Event::Step {
            step,
            epoch,
            loss,
            learning_rate,
            grad_norm,
            tokens_per_second,
            rewards,
            ..
        } => {
            let scalars = vec![
                ("loss", *loss),
                ("grad_norm", *grad_norm),
                ("learning_rate", *learning_rate),
                ("epoch", *epoch),
                ("tokens_per_second", *tokens_per_second),
            ];
            (*step, "train", scalars, rewards)
        }
        Event::Evaluation { held_out, .. } => {
            let bits = held_out.bits_per_byte.map(|bits| ("bits_per_byte", bits));
            let all = std::iter::once(("loss", held_out.loss)).chain(bits);
            (held_out.step, "eval", all.collect(), &held_out.rewards)
        }
        Event::Guard(found) => {
            // A line from the base to what was trained.
            let tag = |name: &str, value: f64| (format!("{GUARD}{name}"), value);
            let before = vec![tag("loss", found.loss_before), tag("kl", 0.0)];
            let after = vec![tag("loss", found.loss_after), tag("kl", found.kl)];
            return vec![(0, before), (found.step, after)];
        }
        _ => return Vec::new(),
    };
    if let Some(rewards) = judged {
        let all = [
            ("rewards/chosen", rewards.chosen),
            ("rewards/rejected", rewards.rejected),
            ("rewards/margins", rewards.margins),
            ("rewards/accuracies", rewards.accuracies),
        ];
        scalars.extend(all.into_iter().filter_map(|(tag, value)| Some((tag, value?))));
    }
    vec![(step, scalars.into_iter().map(|(tag, x)| (format!("{group}/{tag}"), x)).collect())]
}

/// All scalars of an event file, in its order; a record that was cut off at the end is left out.
///
/// # Errors
/// [`TrainError::Io`] when the file cannot be read, or is none of this kind.
pub fn read_scalars(path: &Path) -> Result<Vec<Scalar>, TrainError> {
    let bytes = fs::read(path).map_err(|e| TrainError::io(path, e))?;
    let wrong = |problem: String| TrainError::io(path, std::io::Error::other(problem));
    let mut scalars = Vec::new();
    for (i, (payload, _)) in records(&bytes).enumerate() {
        let event = EventProto::decode(payload).map_err(|e| wrong(format!("record {i}: {e}")))?;
        if i == 0 && event.file_version.as_deref() != Some(VERSION) {
            return Err(wrong(format!("expected an event file that begins with {VERSION}")));
        }
        for value in event.summary.unwrap_or_default().value {
            if let Some(number) = value.simple_value {
                scalars.push(Scalar { tag: value.tag, step: event.step, value: number });
            }
        }
    }
    Ok(scalars)
}

fn appended(path: &Path) -> Result<File, TrainError> {
    OpenOptions::new().append(true).open(path).map_err(|e| TrainError::io(path, e))
}

fn record(event: &EventProto) -> Vec<u8> {
    let payload = event.encode_to_vec();
    let length = (payload.len() as u64).to_le_bytes();
    let mut out = length.to_vec();
    out.extend(masked_crc(&length).to_le_bytes());
    out.extend(&payload);
    out.extend(masked_crc(&payload).to_le_bytes());
    out
}

/// Payload and whole bytes of each record, up to the first that is cut off or damaged.
fn records(bytes: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = u64::from_le_bytes(rest.get(..8)?.try_into().ok()?);
        let crc = |at: usize| Some(u32::from_le_bytes(rest.get(at..at + 4)?.try_into().ok()?));
        if length > MAX_RECORD || crc(8)? != masked_crc(&rest[..8]) {
            return None;
        }
        let end = 12 + length as usize;
        let payload = rest.get(12..end)?;
        if crc(end)? != masked_crc(payload) {
            return None;
        }
        let (whole, after) = rest.split_at(end + 4);
        rest = after;
        Some((payload, whole))
    })
}

/// TensorFlow's masked CRC-32C, so that a checksum over data that holds checksums stays a good one.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |age| age.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{HeldOut, Rewards};
    use crate::forgetting::Forgetting;

    fn step(step: u64, loss: f64) -> Event {
        Event::Step {
            step,
            total_steps: 9,
            epoch: 0.5,
            loss,
            learning_rate: 1e-3,
            grad_norm: 2.0,
            tokens: 10,
            supervised_tokens: 5,
            tokens_per_second: 100.0,
            seconds: 1.0,
            eta_seconds: 1.0,
            rewards: None,
        }
    }

    fn losses(path: &Path) -> Vec<(i64, f32)> {
        let all = read_scalars(path).unwrap().into_iter();
        all.filter(|s| s.tag == "train/loss").map(|s| (s.step, s.value)).collect()
    }

    /// The check value of CRC-32C, and its masked form worked out by hand from the definition.
    #[test]
    fn checksums() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(masked_crc(b"123456789"), 0xc78a_b0e5);
    }

    #[test]
    fn written_rewound_and_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(TENSORBOARD_FILE);
        let mut file = EventFile::open(dir.path(), false).unwrap();
        for i in 1..=5 {
            file.event(&step(i, i as f64)).unwrap();
        }
        let rewards =
            Rewards { chosen: Some(1.5), rejected: None, margins: None, accuracies: Some(0.75) };
        let held_out = HeldOut {
            step: 5,
            loss: 0.25,
            tokens: 3,
            bits_per_byte: Some(0.5),
            rewards: Some(rewards),
        };
        file.event(&Event::Evaluation { held_out, best: true }).unwrap();
        file.event(&Event::Warning { message: "nothing to draw".into() }).unwrap();
        let all = read_scalars(&path).unwrap();
        assert_eq!(all.len(), 5 * 5 + 4);
        assert_eq!(all[25], Scalar { tag: "eval/loss".into(), step: 5, value: 0.25 });
        let tags: Vec<&str> = all[26..].iter().map(|s| s.tag.as_str()).collect();
        assert_eq!(tags, ["eval/bits_per_byte", "eval/rewards/chosen", "eval/rewards/accuracies"]);

        // Killed in the middle of a record, then resumed after step 3.
        let mut bytes = fs::read(&path).unwrap();
        bytes.extend([9, 0, 0]);
        fs::write(&path, bytes).unwrap();
        let mut file = EventFile::open(dir.path(), true).unwrap();
        file.rewind(3).unwrap();
        file.event(&step(4, 40.0)).unwrap();
        let guard = Event::Guard(Forgetting {
            text: "a text".into(),
            step: 4,
            tokens: 9,
            pieces: 1,
            loss_before: 2.0,
            loss_after: 2.5,
            difference_interval: None,
            bits_per_byte_before: None,
            bits_per_byte_after: None,
            kl: 0.125,
            kl_tokens: 9,
        });
        // The end comes again when it is reached again.
        file.event(&guard).unwrap();
        file.rewind(4).unwrap();
        file.event(&guard).unwrap();
        let all = read_scalars(&path).unwrap();
        let of_guard: Vec<_> = all.iter().filter(|s| s.tag.starts_with("eval/guard_")).collect();
        let shown: Vec<_> = of_guard.iter().map(|s| (s.tag.as_str(), s.step, s.value)).collect();
        assert_eq!(
            shown,
            [
                ("eval/guard_loss", 0, 2.0),
                ("eval/guard_kl", 0, 0.0),
                ("eval/guard_loss", 4, 2.5),
                ("eval/guard_kl", 4, 0.125)
            ]
        );
        assert_eq!(losses(&path), [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]);

        EventFile::open(dir.path(), false).unwrap();
        assert_eq!(losses(&path), []);
    }

    #[test]
    fn damage_ends_the_reading() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(TENSORBOARD_FILE);
        let mut file = EventFile::open(dir.path(), false).unwrap();
        (1..=3).for_each(|i| file.event(&step(i, i as f64)).unwrap());
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x40;
            fs::write(&path, &bytes).unwrap();
            let found = read_scalars(&path).unwrap();
            assert!(found.len() < 15 && found.len().is_multiple_of(5), "byte {at}");
            fs::write(&path, &whole[..at]).unwrap();
            assert!(read_scalars(&path).unwrap().len() < 15, "cut at {at}");
        }
        fs::write(&path, [0xff; 40]).unwrap();
        assert_eq!(read_scalars(&path).unwrap(), []);
        assert!(read_scalars(&dir.path().join("none")).is_err());
    }
}
