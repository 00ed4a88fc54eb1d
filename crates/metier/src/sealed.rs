//! A sealed test set is not trained on: not as a file, and not row by row.

use ::data::{Example, FolderSplit, LeakOptions, LeakReport, files_of, leak_check};
use anyhow::{Context, Result, bail};
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// Refuses a training file whose bytes are those of a test set: the one that the config file names, or
/// one that was opened before, as the records of openings beside the training files and the test set say.
pub(crate) fn refuse_sealed_files(files: &[PathBuf], test: Option<&Path>) -> Result<()> {
    let test_files = test.map(|test| files_of(test, FolderSplit::Test)).transpose()?;
    let test_files = test_files.unwrap_or_default();
    let mut sealed: Vec<(String, PathBuf)> = Vec::new();
    for file in &test_files {
        sealed.push((digest(file)?, file.clone()));
    }
    let folders = files.iter().chain(&test_files).map(|file| folder_of(file));
    for folder in folders.collect::<HashSet<&Path>>() {
        for record in ::eval::openings_in(folder)? {
            let digests = ::eval::sealed_digests(&record)?;
            sealed.extend(digests.into_iter().map(|digest| (digest, record.clone())));
        }
    }
    if sealed.is_empty() {
        return Ok(());
    }
    for file in files {
        let own = digest(file)?;
        if let Some((_, known)) = sealed.iter().find(|(digest, _)| *digest == own) {
            bail!(
                "{}: is a sealed test set (known from {}), expected training data\nhint: whoever trains on \
                 the test set has nothing left to prove with; name other rows",
                file.display(),
                known.display()
            );
        }
    }
    Ok(())
}

/// The training rows without those whose question stands in the test set, exactly, after normalising or
/// nearly; says how many were left out.
pub(crate) fn without_test_rows(
    train: Vec<Example>,
    test: &[Example],
    path: &Path,
) -> Result<Vec<Example>> {
    let all = train.len();
    let (train, report) = apart(train, test)?;
    if report.is_clean() {
        return Ok(train);
    }
    if train.is_empty() {
        bail!(
            "every training row stands in the sealed test set {}\nhint: train on other rows",
            path.display()
        );
    }
    let first = report.leaks.first().map(|leak| leak.train_id.clone()).unwrap_or_default();
    eprintln!(
        "warning: {} of {} training rows are left out, because they stand in the sealed test set {} ({} \
         exactly, {} after normalising, {} nearly; the first as its row {first:?})",
        report.total(),
        all,
        path.display(),
        report.exact,
        report.normalised,
        report.near
    );
    Ok(train)
}

/// The training rows without those whose question stands in the test set, and what was found.
pub(crate) fn apart(train: Vec<Example>, test: &[Example]) -> Result<(Vec<Example>, LeakReport)> {
    // Ids need not be unique across files, so rows are named by their place while they are compared.
    let named = |(place, row): (usize, &Example)| Example { id: place.to_string(), ..row.clone() };
    let placed: Vec<Example> = train.iter().enumerate().map(named).collect();
    let report = leak_check(test, &placed, &LeakOptions::default())?;
    let leaked: HashSet<&str> = report.leaked_ids.iter().map(String::as_str).collect();
    let kept = train.into_iter().enumerate();
    let kept = kept.filter(|(place, _)| !leaked.contains(place.to_string().as_str()));
    let kept = kept.map(|(_, row)| row).collect();
    Ok((kept, report))
}

/// SHA-256 of the files of a test set.
pub(crate) fn digests(test: &Path) -> Result<Vec<String>> {
    files_of(test, FolderSplit::Test)?.iter().map(|file| digest(file)).collect()
}

fn folder_of(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn digest(file: &Path) -> Result<String> {
    let bytes = std::fs::read(file).with_context(|| file.display().to_string())?;
    Ok(model::sha256_hex(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::data::ReadOptions;
    use std::slice::from_ref;

    const QUESTIONS: [&str; 3] = [
        "my card was not accepted at the shop and I do not know why that is",
        "please tell me how I can change the pin of my card when I am abroad",
        "the parcel that I paid for never arrived and I would like a refund",
    ];

    fn write(path: &Path, questions: &[&str]) -> Vec<Example> {
        let row = |q: &&str| format!("{{\"prompt\":{q:?},\"completion\":\"x\"}}\n");
        std::fs::write(path, questions.iter().map(row).collect::<String>()).unwrap();
        ::data::read(path, &ReadOptions::default()).unwrap()
    }

    #[test]
    fn a_test_set_is_refused_by_its_bytes_wherever_it_was_opened() {
        let dir = tempfile::tempdir().unwrap();
        let (train, test) = (dir.path().join("train.jsonl"), dir.path().join("test.jsonl"));
        write(&train, &QUESTIONS[..1]);
        write(&test, &QUESTIONS[1..]);
        assert!(refuse_sealed_files(from_ref(&train), Some(&test)).is_ok());
        let copy = dir.path().join("more.jsonl");
        std::fs::copy(&test, &copy).unwrap();
        let error = refuse_sealed_files(&[train.clone(), copy.clone()], Some(&test)).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("more.jsonl") && error.contains("hint"), "{error}");
        // Nobody names the test set, but it was opened before.
        assert!(refuse_sealed_files(from_ref(&copy), None).is_ok());
        let opening = ::eval::Opening { at: "today".into(), by: "eval".into() };
        let record = ::eval::openings_path(&test);
        ::eval::count_opening(&record, &std::fs::read(&test).unwrap(), opening).unwrap();
        assert!(refuse_sealed_files(&[copy], None).is_err());
        assert!(refuse_sealed_files(&[train], None).is_ok());
    }

    #[test]
    fn rows_near_to_the_test_set_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let test = write(&dir.path().join("test.jsonl"), &QUESTIONS[1..]);
        let shouted = QUESTIONS[1].to_uppercase() + "!";
        let train = write(&dir.path().join("train.jsonl"), &[QUESTIONS[0], &shouted, QUESTIONS[2]]);
        let kept = without_test_rows(train.clone(), &test, Path::new("test.jsonl")).unwrap();
        assert_eq!(kept, train[..1]);
        assert_eq!(without_test_rows(kept.clone(), &test, Path::new("t")).unwrap(), kept);
        let error = without_test_rows(train[1..].to_vec(), &test, Path::new("t")).unwrap_err();
        assert!(error.to_string().contains("every training row"));
    }
}
