//! Counting how often a test set was opened.

use crate::state;
use ::data::{FolderSplit, files_of};
use ::eval::{Opening, Openings, count_opening, openings_path};
use std::path::Path;

/// Counts a run on the test set in the file beside it and says on standard error how many there were. Of a
/// folder with several test files, that of the one opened most. None, with a warning, where it cannot be
/// counted (a folder that may not be written to): the run itself need not fail for that.
pub(super) fn count(test: &Path, by: &str) -> Option<Openings> {
    let counted = count_files(test, by);
    match &counted {
        Ok(Some(openings)) => {
            let times = if openings.count == 1 { "time" } else { "times" };
            let note = match openings.count {
                0..=5 => "",
                _ => ": choosing among many runs on it measures luck too",
            };
            eprintln!("{}: opened {} {times}{note}", test.display(), openings.count);
        }
        Ok(None) => {}
        Err(error) => eprintln!("warning: this opening of the test set is not counted: {error}"),
    }
    counted.ok().flatten()
}

fn count_files(test: &Path, by: &str) -> anyhow::Result<Option<Openings>> {
    let mut most: Option<Openings> = None;
    for file in files_of(test, FolderSplit::Test)? {
        let opening = Opening { at: state::day(state::now()), by: by.to_owned() };
        let openings = count_opening(&openings_path(&file), &std::fs::read(&file)?, opening)?;
        if most.as_ref().is_none_or(|most| openings.count > most.count) {
            most = Some(openings);
        }
    }
    Ok(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_run_counts_and_a_folder_stays_the_same_data() {
        let dir = tempfile::tempdir().unwrap();
        let test = dir.path().join("test.jsonl");
        std::fs::write(&test, "{\"prompt\":\"a\",\"completion\":\"b\"}\n").unwrap();
        assert_eq!(count(&test, "eval").unwrap().count, 1);
        assert_eq!(count(dir.path(), "prove").unwrap().count, 2);
        assert_eq!(files_of(dir.path(), FolderSplit::Test).unwrap(), [test]);
        assert!(count(&dir.path().join("none.jsonl"), "eval").is_none());
    }
}
