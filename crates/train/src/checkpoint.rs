//! Checkpoints: a folder `checkpoint-STEP` with `state.json` and `tensors.safetensors`, there as a
//! whole or not at all.
//!
//! A folder is written beside under a hidden name, flushed to disk with all its files, and then
//! renamed; older ones are deleted only after that. A state names the SHA-256 of its tensors and its own,
//! so that any damaged bit is noticed and the checkpoint before it taken.

use crate::error::TrainError;
use crate::events::HeldOut;
use crate::plan::TrainPlan;
use crate::rows::hex;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use safetensors::{SafeTensorError, SafeTensors};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

const PREFIX: &str = "checkpoint-";
const STATE_FILE: &str = "state.json";
const TENSORS_FILE: &str = "tensors.safetensors";
const FORMAT: u32 = 3;
/// Field of the state with the SHA-256 of all others.
const SHA256: &str = "sha256";
/// Names in the tensor file; `best` only when the best weights are kept.
const NAMES: [&str; 4] = ["params", "exp_avg", "exp_avg_sq", "best"];

/// Where a run stands. Shuffles are functions of the plan's seed and the step, so these two are
/// the data cursor and the whole state of randomness.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    /// Optimizer steps done.
    pub(crate) step: u64,
    /// Passes over the data done.
    pub(crate) epoch: f64,
    /// Seconds of training.
    pub(crate) seconds: f64,
    /// Tokens that went through the model.
    pub(crate) tokens: u64,
    /// Targets learnt from.
    pub(crate) supervised_tokens: u64,
    /// Loss of the last step.
    pub(crate) train_loss: f64,
    pub(crate) held_out_before: Option<HeldOut>,
    pub(crate) held_out: Option<HeldOut>,
    pub(crate) best: Option<HeldOut>,
    /// Measurements since the best one.
    pub(crate) stale: u64,
    /// Every measurement after a step.
    pub(crate) measured: Vec<HeldOut>,
    /// Steps whose gradient was scaled down.
    pub(crate) clipped_steps: u64,
}

/// What a checkpoint must share with the run that continues it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) plan: TrainPlan,
    pub(crate) data_sha256: String,
    pub(crate) base_sha256: String,
}

/// The numbers of a checkpoint, each [P]; `best` is empty unless best weights are kept.
pub(crate) struct Tensors<'a> {
    pub(crate) params: &'a [f32],
    pub(crate) exp_avg: &'a [f32],
    pub(crate) exp_avg_sq: &'a [f32],
    pub(crate) best: &'a [f32],
}

/// A checkpoint read back.
pub(crate) struct Loaded {
    pub(crate) path: PathBuf,
    pub(crate) state: State,
    pub(crate) params: Vec<f32>,
    pub(crate) exp_avg: Vec<f32>,
    pub(crate) exp_avg_sq: Vec<f32>,
    pub(crate) best: Vec<f32>,
    /// Newer checkpoints that could not be read.
    pub(crate) problems: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct StateFile {
    format: u32,
    tensors_sha256: String,
    plan_sha256: String,
    state: State,
    identity: Identity,
}

/// Folder of the checkpoint of `step`.
pub(crate) fn path(dir: &Path, step: u64) -> PathBuf {
    dir.join(format!("{PREFIX}{step}"))
}

/// Writes the checkpoint of `state.step` into `dir` and deletes all but the newest `keep` (0 keeps
/// all).
///
/// # Errors
/// [`TrainError::Checkpoint`] when a number is not finite (nothing is written);
/// [`TrainError::Io`], after which what was half written is gone and older checkpoints are untouched.
pub(crate) fn save(
    dir: &Path,
    state: &State,
    identity: &Identity,
    tensors: &Tensors<'_>,
    keep: usize,
) -> Result<PathBuf, TrainError> {
    let path = path(dir, state.step);
    for (name, values) in tensors.named() {
        if values.iter().any(|x| !x.is_finite()) {
            let problem = format!("{name} holds values that are not finite; nothing was written");
            return Err(TrainError::checkpoint(&path, problem));
        }
    }
    let beside = dir.join(format!(".{PREFIX}{}.tmp", state.step));
    remove(&beside)?;
    if let Err(error) = write(&beside, state, identity, tensors) {
        // Best effort: on a full disk its room is wanted.
        let _ = remove(&beside);
        return Err(error);
    }
    if path.exists() {
        // Only a damaged one can be in the way: a good one would have been continued.
        remove(&path)?;
    }
    fs::rename(&beside, &path).map_err(|e| TrainError::io(&path, e))?;
    sync(dir)?;
    if keep > 0 {
        for old in list(dir)?.into_iter().filter(|(step, _)| *step < state.step).skip(keep - 1) {
            remove(&old.1)?;
        }
    }
    Ok(path)
}

/// Writes both files into the new folder `beside` and flushes them to disk.
fn write(
    beside: &Path,
    state: &State,
    identity: &Identity,
    tensors: &Tensors<'_>,
) -> Result<(), TrainError> {
    fs::create_dir_all(beside).map_err(|e| TrainError::io(beside, e))?;
    let file = beside.join(TENSORS_FILE);
    let views = tensors.named().map(|(name, values)| {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        (name, TensorView::new(Dtype::F32, vec![values.len()], bytes).expect("four bytes per f32"))
    });
    serialize_to_file(views, None, &file).map_err(|e| {
        let source = match e {
            SafeTensorError::IoError(source) => source,
            other => std::io::Error::other(other),
        };
        TrainError::io(&file, source)
    })?;
    sync(&file)?;
    let record = StateFile {
        format: FORMAT,
        tensors_sha256: tensors.digest(),
        plan_sha256: identity.plan.digest(),
        state: state.clone(),
        identity: identity.clone(),
    };
    let mut form = serde_json::to_value(&record).expect("plain JSON");
    form[SHA256] = digest_of(&form).into();
    let json = serde_json::to_vec_pretty(&form).expect("plain JSON");
    let file = beside.join(STATE_FILE);
    fs::write(&file, json).map_err(|e| TrainError::io(&file, e))?;
    sync(&file)?;
    sync(beside)
}

fn digest_of(form: &serde_json::Value) -> String {
    model::sha256_hex(&serde_json::to_vec(form).expect("plain JSON"))
}

/// The newest checkpoint in `dir` that can be read; None when there is none at all.
///
/// # Errors
/// [`TrainError::ResumeMismatch`] when it belongs to another plan, data or base;
/// [`TrainError::NoUsableCheckpoint`] when all are damaged.
pub(crate) fn load_newest(
    dir: &Path,
    identity: &Identity,
    param_count: usize,
) -> Result<Option<Loaded>, TrainError> {
    let found = list(dir)?;
    let mut problems = Vec::new();
    for (_, path) in &found {
        match load(path, identity, param_count) {
            Ok(loaded) => return Ok(Some(Loaded { problems, ..loaded })),
            Err(e @ TrainError::ResumeMismatch { .. }) => return Err(e),
            Err(e) => problems.push(e.to_string()),
        }
    }
    if found.is_empty() {
        return Ok(None);
    }
    Err(TrainError::NoUsableCheckpoint {
        path: dir.to_owned(),
        count: found.len(),
        problems: problems.join("\n  "),
    })
}

/// Checkpoint folders in `dir`, newest first.
pub(crate) fn list(dir: &Path) -> Result<Vec<(u64, PathBuf)>, TrainError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| TrainError::io(dir, e))? {
        let entry = entry.map_err(|e| TrainError::io(dir, e))?;
        let name = entry.file_name();
        let step = name.to_str().and_then(|n| n.strip_prefix(PREFIX)).and_then(|n| n.parse().ok());
        if let Some(step) = step {
            found.push((step, entry.path()));
        }
    }
    found.sort_by_key(|(step, _)| std::cmp::Reverse(*step));
    Ok(found)
}

/// Deletes what a killed run left half written or half deleted.
pub(crate) fn clean(dir: &Path) -> Result<(), TrainError> {
    for entry in fs::read_dir(dir).map_err(|e| TrainError::io(dir, e))? {
        let entry = entry.map_err(|e| TrainError::io(dir, e))?;
        let name = entry.file_name();
        let leftover = name
            .to_str()
            .is_some_and(|n| n.strip_prefix('.').is_some_and(|n| n.starts_with(PREFIX)));
        if leftover {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn load(path: &Path, identity: &Identity, param_count: usize) -> Result<Loaded, TrainError> {
    let file = path.join(STATE_FILE);
    let bytes = fs::read(&file).map_err(|e| TrainError::io(&file, e))?;
    let mut form: serde_json::Value = serde_json::from_slice(&bytes)
        .map_err(|e| TrainError::checkpoint(&file, format!("not valid JSON: {e}")))?;
    // First of all: a damaged setting is not another run's.
    if let Some(named) = form.as_object_mut().and_then(|fields| fields.shift_remove(SHA256)) {
        let found = digest_of(&form);
        if named != found.as_str() {
            let problem = format!("found sha256 {found}, expected {named} as the file says");
            return Err(TrainError::checkpoint(&file, problem));
        }
    } else if form["format"] == FORMAT {
        return Err(TrainError::checkpoint(&file, format!("expected a field {SHA256}")));
    }
    if form["format"] != FORMAT {
        return Err(TrainError::ResumeMismatch {
            path: path.to_owned(),
            differences: format!("format: found {}, now {FORMAT}", form["format"]),
        });
    }
    let record: StateFile =
        serde_json::from_value(form).map_err(|e| TrainError::checkpoint(&file, e.to_string()))?;
    let mut differences = identity.plan.differences(&record.identity.plan);
    for (what, ours, theirs) in [
        ("data", &identity.data_sha256, &record.identity.data_sha256),
        ("base", &identity.base_sha256, &record.identity.base_sha256),
    ] {
        if ours != theirs {
            let short = |digest: &str| digest.chars().take(12).collect::<String>();
            differences.push(format!(
                "{what}: found sha256 {}.., now {}..",
                short(theirs),
                short(ours)
            ));
        }
    }
    if !differences.is_empty() {
        let differences = differences.join("\n  ");
        return Err(TrainError::ResumeMismatch { path: path.to_owned(), differences });
    }
    let file = path.join(TENSORS_FILE);
    let bytes = fs::read(&file).map_err(|e| TrainError::io(&file, e))?;
    let tensors = SafeTensors::deserialize(&bytes)
        .map_err(|e| TrainError::checkpoint(&file, e.to_string()))?;
    let read = |name: &str, expected: usize| -> Result<Vec<f32>, TrainError> {
        let view =
            tensors.tensor(name).map_err(|e| TrainError::checkpoint(&file, e.to_string()))?;
        if view.dtype() != Dtype::F32 || view.shape() != [expected] {
            return Err(TrainError::checkpoint(
                &file,
                format!(
                    "{name}: found {:?} {:?}, expected F32 [{expected}]",
                    view.dtype(),
                    view.shape()
                ),
            ));
        }
        Ok(view
            .data()
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect())
    };
    let with_best = tensors.tensor(NAMES[3]).is_ok();
    let loaded = Loaded {
        path: path.to_owned(),
        params: read(NAMES[0], param_count)?,
        exp_avg: read(NAMES[1], param_count)?,
        exp_avg_sq: read(NAMES[2], param_count)?,
        best: if with_best { read(NAMES[3], param_count)? } else { Vec::new() },
        state: record.state,
        problems: Vec::new(),
    };
    let digest = Tensors {
        params: &loaded.params,
        exp_avg: &loaded.exp_avg,
        exp_avg_sq: &loaded.exp_avg_sq,
        best: &loaded.best,
    }
    .digest();
    if digest != record.tensors_sha256 {
        return Err(TrainError::checkpoint(
            &file,
            format!(
                "found sha256 {digest}, expected {} as {STATE_FILE} says",
                record.tensors_sha256
            ),
        ));
    }
    Ok(loaded)
}

impl Tensors<'_> {
    fn named(&self) -> impl Iterator<Item = (&'static str, &[f32])> {
        NAMES
            .into_iter()
            .zip([self.params, self.exp_avg, self.exp_avg_sq, self.best])
            .filter(|(name, values)| *name != NAMES[3] || !values.is_empty())
    }

    fn digest(&self) -> String {
        let mut hasher = Sha256::new();
        for (name, values) in self.named() {
            hasher.update(name.as_bytes());
            hasher.update([0]);
            hasher.update(bytemuck::cast_slice::<f32, u8>(values));
        }
        hex(&hasher.finalize())
    }
}

/// Flushes a file or folder to disk.
fn sync(path: &Path) -> Result<(), TrainError> {
    File::open(path).and_then(|f| f.sync_all()).map_err(|e| TrainError::io(path, e))
}

/// Deletes a folder if it is there. It is hidden first, so that a kill in between leaves no
/// half-deleted checkpoint under a checkpoint's name.
fn remove(path: &Path) -> Result<(), TrainError> {
    if !path.exists() {
        return Ok(());
    }
    let hidden = match path.file_name().and_then(|n| n.to_str()) {
        Some(name) if !name.starts_with('.') => {
            let hidden = path.with_file_name(format!(".{name}.old"));
            if hidden.exists() {
                fs::remove_dir_all(&hidden).map_err(|e| TrainError::io(&hidden, e))?;
            }
            fs::rename(path, &hidden).map_err(|e| TrainError::io(path, e))?;
            hidden
        }
        _ => path.to_owned(),
    };
    fs::remove_dir_all(&hidden).map_err(|e| TrainError::io(&hidden, e))
}
