//! People judge two candidates of a proof, blind: what they are shown, their labels, and what these say.
//!
//! A reviewer sees pairs of answers in a shuffled order without names, either candidate first at random
//! (what is known of judges, that they prefer a place and a name, holds for people too). Labels are lines
//! of a file that only grows, each on the disk before the next pair is shown; `labels` in `[prove.pairwise]`
//! and `[prove.rubric]` reads the same file.

use crate::error::EvalError;
use crate::item::EvalItem;
use crate::judge::{Agreement, Preference, agreement, longer_wins, without_length};
use crate::proof::{hex, read_answers, read_items, read_report};
use crate::run::CandidateResult;
use crate::stats::{Interval, StatsError, clusters_of, mcnemar_exact, mean, shares_interval};
use indexmap::IndexMap;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Labels are short; a file beyond this is something else.
const MOST_BYTES: u64 = 64 << 20;

/// One example with both answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// The example.
    pub item: EvalItem,
    /// Answer of the candidate compared with; empty when it failed.
    pub a: String,
    /// Answer of the candidate judged.
    pub b: String,
}

/// By what a label is tied to two answers: the head of the SHA-256 over both.
fn digest(a: &str, b: &str) -> String {
    let mut hasher = Sha256::new();
    for text in [a, b] {
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text);
    }
    hex(&hasher.finalize()[..8])
}

impl Pair {
    /// The label that a reviewer gives it.
    pub fn label(&self, better: Preference) -> Label {
        Label { id: self.item.id.clone(), better, answers: Some(digest(&self.a, &self.b)) }
    }

    /// Whether a label is about this example and these answers.
    pub fn is_of(&self, label: &Label) -> bool {
        label.id == self.item.id && label.is_about(&self.a, &self.b)
    }
}

/// A pair as a reviewer sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Its place in [`Review::pairs`].
    pub place: usize,
    /// Whether `b` stands first.
    pub b_first: bool,
}

/// Two candidates of a proof, example by example.
#[derive(Clone, Debug, PartialEq)]
pub struct Review {
    /// Name of the candidate compared with.
    pub a: String,
    /// Name of the candidate judged.
    pub b: String,
    /// All examples of the proof, in its order.
    pub pairs: Vec<Pair>,
}

impl Review {
    /// Reads examples and answers from the folder of a proof; without names, of the two that its verdict
    /// is about. The report's seal and the digests of these files must hold.
    ///
    /// # Errors
    /// [`EvalError::Broken`] naming the file that was changed, [`EvalError::UnknownCandidate`],
    /// [`EvalError::Io`].
    pub fn read(report_path: &Path, a: Option<&str>, b: Option<&str>) -> Result<Review, EvalError> {
        let report = read_report(report_path)?;
        let broken = |reason: String| EvalError::Broken { path: report_path.to_owned(), reason };
        let plan = report.plan.as_ref().ok_or_else(|| broken("it holds no plan".to_owned()))?;
        let (a, b) = (a.unwrap_or(&plan.against), b.unwrap_or(&plan.judged));
        if a == b {
            return Err(broken(format!("{a} would be compared with itself. hint: --a, --b")));
        }
        let items = read_items(report_path, &report)?;
        let answers = |name: &str| {
            let place = report.candidates.iter().position(|c| c.name == name).ok_or_else(|| {
                let known: Vec<&str> = report.candidates.iter().map(|c| c.name.as_str()).collect();
                EvalError::UnknownCandidate { found: name.to_owned(), known: known.join(", ") }
            })?;
            read_answers(report_path, &report, place, &items)
        };
        let (of_a, of_b) = (answers(a)?, answers(b)?);
        let both = items.iter().zip(of_a.into_iter().zip(of_b));
        let pairs = both.map(|(item, (a, b))| Pair { item: item.clone(), a: a.text, b: b.text });
        Ok(Review { a: a.to_owned(), b: b.to_owned(), pairs: pairs.collect() })
    }

    /// The pairs to be judged, shuffled; the same seed gives the same order. Pairs of one and the same
    /// answer are left out: there is nothing to prefer.
    pub fn order(&self, seed: u64) -> Vec<Shown> {
        let mut rng = Pcg64Mcg::seed_from_u64(seed);
        let mut places: Vec<usize> = (0..self.pairs.len()).collect();
        places.shuffle(&mut rng);
        let shown = |place| Shown { place, b_first: rng.random() };
        let mut all: Vec<Shown> = places.into_iter().map(shown).collect();
        all.retain(|shown| self.pairs[shown.place].a != self.pairs[shown.place].b);
        all
    }

    /// What labels say of the two, and how far they agree with `others`. Of several labels for one
    /// example the last counts.
    ///
    /// # Errors
    /// [`EvalError::Stats`].
    pub fn summary(
        &self,
        labels: &[Label],
        others: Option<&[Label]>,
    ) -> Result<ReviewSummary, EvalError> {
        let given = self.by_place(labels);
        let labelled: Vec<(usize, Preference)> =
            given.iter().enumerate().filter_map(|(place, p)| Some((place, (*p)?))).collect();
        let count = |wanted| labelled.iter().filter(|(_, p)| *p == wanted).count();
        let (wins_a, ties, wins_b) =
            (count(Preference::A), count(Preference::Tie), count(Preference::B));
        let results: Vec<f64> = labelled.iter().map(|(_, p)| p.share()).collect();
        let length = |text: &str| text.chars().count() as f64;
        let pair = |place: &(usize, Preference)| &self.pairs[place.0];
        let longer: Vec<f64> =
            labelled.iter().map(pair).map(|p| length(&p.b) - length(&p.a)).collect();
        let groups = labelled.iter().map(pair).map(|p| p.item.group.as_deref());
        let clusters = clusters_of(groups);
        let known: std::collections::HashSet<&str> = labels.iter().map(|l| l.id.as_str()).collect();
        let compared = others.map(|others| {
            let others = self.by_place(others);
            let both = given.iter().zip(&others).filter_map(|(a, b)| Some(((*a)?, (*b)?)));
            agreement(&both.collect::<Vec<_>>())
        });
        Ok(ReviewSummary {
            a: self.a.clone(),
            b: self.b.clone(),
            pairs: self.pairs.len(),
            identical: self.pairs.iter().filter(|p| p.a == p.b).count(),
            labelled: labelled.len(),
            foreign: known.len() - labelled.len(),
            wins_a,
            ties,
            wins_b,
            win_rate: (!labelled.is_empty()).then(|| mean(&results)),
            ci95: interval(&results, &clusters)?,
            p_value: (wins_a + wins_b > 0).then(|| mcnemar_exact(wins_b, wins_a)),
            length_controlled: without_length(&results, &longer),
            longer_wins: longer_wins(&results, &longer),
            agreement: compared.flatten(),
        })
    }

    /// For each pair what the last label about it says.
    fn by_place(&self, labels: &[Label]) -> Vec<Option<Preference>> {
        let last: HashMap<&str, &Label> = labels.iter().map(|l| (l.id.as_str(), l)).collect();
        let of = |pair: &Pair| {
            let label = last.get(pair.item.id.as_str()).filter(|label| pair.is_of(label));
            label.map(|label| label.better)
        };
        self.pairs.iter().map(of).collect()
    }
}

/// The 95 % interval of a mean of shares; None where the labels are too few to have one.
fn interval(results: &[f64], clusters: &[usize]) -> Result<Option<Interval>, EvalError> {
    if results.len() < 2 {
        return Ok(None);
    }
    match shares_interval(results, clusters) {
        Ok(found) => Ok(Some(found)),
        Err(StatsError::Clusters { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// What people say of two candidates: the numbers that a judge's report has.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReviewSummary {
    /// Name of the candidate compared with.
    pub a: String,
    /// Name of the candidate judged.
    pub b: String,
    /// Examples of the proof.
    pub pairs: usize,
    /// Of them, those to which both answer the same: nobody is asked, and they count nowhere below.
    pub identical: usize,
    /// Examples with a label.
    pub labelled: usize,
    /// Labels that count for nothing: of other examples, or of answers that have changed since.
    pub foreign: usize,
    /// Examples where `a` is better.
    pub wins_a: usize,
    /// Examples where neither is.
    pub ties: usize,
    /// Examples where `b` is better.
    pub wins_b: usize,
    /// Share of the labelled examples that `b` wins, ties half; None without labels.
    pub win_rate: Option<f64>,
    /// Its 95 % interval; examples of one group count as one cluster. None for fewer than two labels.
    pub ci95: Option<Interval>,
    /// Exact two-sided sign test of the decided examples; None when there is none.
    pub p_value: Option<f64>,
    /// The win rate with the difference of lengths taken out, as for a judge.
    pub length_controlled: Option<f64>,
    /// Of the decided examples with answers of different length, the share that the longer one wins.
    pub longer_wins: Option<f64>,
    /// Agreement with the labels compared with; None when none were, or no example has both.
    pub agreement: Option<Agreement>,
}

/// What one person says of one pair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// Id of the example.
    pub id: String,
    /// Which answer is better; `a` is the candidate compared with.
    pub better: Preference,
    /// Digest of the two answers; None in labels that were not given here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<String>,
}

impl Label {
    /// Whether it is about these two answers, as far as it says.
    fn is_about(&self, a: &str, b: &str) -> bool {
        self.answers.as_ref().is_none_or(|found| *found == digest(a, b))
    }
}

/// People's preferences: one JSON object per line with `id` and `better` (`a`, `b` or `tie`). A last line
/// without its end, which a crash cut off, is left out unless it is whole.
///
/// # Errors
/// [`EvalError::Io`]; [`EvalError::Recorded`] naming the line.
pub fn read_labels(path: &Path) -> Result<Vec<Label>, EvalError> {
    let mut file = File::open(path).map_err(io(path, "read"))?;
    let bytes = read_bounded(&mut file, path)?;
    Ok(parse(&bytes, path)?.into_iter().map(|(_, label)| label).collect())
}

/// What labels say of two candidates' answers, by example: those tied to other answers say nothing of them.
/// Labels that are tied to none are meant for one pair of candidates only, `untied` says whether it is this
/// one. Of several labels for one example the last counts.
pub fn labels_of(
    labels: &[Label],
    untied: bool,
    items: &[EvalItem],
    a: &CandidateResult,
    b: &CandidateResult,
) -> IndexMap<String, Preference> {
    let ids = items.iter().map(|item| item.id.as_str());
    let texts: HashMap<&str, (&str, &str)> = ids
        .zip(a.answers.iter().zip(&b.answers))
        .map(|(id, (a, b))| (id, (a.text.as_str(), b.text.as_str())))
        .collect();
    let about = |label: &&Label| {
        let texts = texts.get(label.id.as_str());
        (untied || label.answers.is_some()) && texts.is_some_and(|(a, b)| label.is_about(a, b))
    };
    labels.iter().filter(about).map(|label| (label.id.clone(), label.better)).collect()
}

fn io(path: &Path, action: &'static str) -> impl Fn(std::io::Error) -> EvalError {
    move |source| EvalError::Io { action, path: path.to_owned(), source }
}

fn wrong(path: &Path, line: usize, reason: String) -> EvalError {
    EvalError::Recorded { path: path.to_owned(), line, reason }
}

fn read_bounded(file: &mut File, path: &Path) -> Result<Vec<u8>, EvalError> {
    let mut bytes = Vec::new();
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(io(path, "read"))?;
    if bytes.len() as u64 > MOST_BYTES {
        let reason = format!("found more than {MOST_BYTES} bytes; expected a file of labels");
        return Err(wrong(path, 1, reason));
    }
    Ok(bytes)
}

/// Labels, each with where its line begins.
fn parse(bytes: &[u8], path: &Path) -> Result<Vec<(u64, Label)>, EvalError> {
    let mut labels = Vec::new();
    let mut begin = 0;
    for (index, line) in bytes.split_inclusive(|&b| b == b'\n').enumerate() {
        let (start, torn) = (begin as u64, !line.ends_with(b"\n"));
        begin += line.len();
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        match serde_json::from_slice(line) {
            Ok(label) => labels.push((start, label)),
            Err(_) if torn => {}
            Err(error) => {
                let expected = "expected {\"id\": ..., \"better\": \"a\", \"b\" or \"tie\"}";
                return Err(wrong(path, index + 1, format!("{error}; {expected}")));
            }
        }
    }
    Ok(labels)
}

/// A file of labels that one session adds to.
pub struct LabelFile {
    path: PathBuf,
    file: File,
    /// Each with where its line begins.
    labels: Vec<(u64, Label)>,
    end: u64,
}

impl LabelFile {
    /// Opens or makes the file. A last line that a crash cut off was never relied on and is removed.
    ///
    /// # Errors
    /// As [`read_labels`]; [`EvalError::Recorded`] when another session has it open.
    pub fn open(path: &Path) -> Result<LabelFile, EvalError> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(path);
        let mut file = file.map_err(io(path, "open"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let reason = "another review writes to it. hint: each reviewer needs a file of their own: --labels FILE";
                return Err(wrong(path, 1, reason.to_owned()));
            }
            Err(TryLockError::Error(source)) => return Err(io(path, "lock")(source)),
        }
        let bytes = read_bounded(&mut file, path)?;
        let labels = parse(&bytes, path)?;
        let whole = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |place| place + 1) as u64;
        let mut opened = LabelFile { path: path.to_owned(), file, labels, end: whole };
        if whole < bytes.len() as u64 {
            let last_is_whole = opened.labels.last().is_some_and(|(start, _)| *start == whole);
            opened.cut(whole)?;
            if last_is_whole && let Some((_, label)) = opened.labels.pop() {
                opened.add(label)?;
            }
        }
        Ok(opened)
    }

    /// All labels, in the order given.
    pub fn labels(&self) -> Vec<Label> {
        self.labels.iter().map(|(_, label)| label.clone()).collect()
    }

    /// Adds a label; when this returns it is on the disk.
    ///
    /// # Errors
    /// [`EvalError::Io`]; nothing of it is left in the file then.
    pub fn add(&mut self, label: Label) -> Result<(), EvalError> {
        // Strings: nothing here can fail to serialise.
        let line = serde_json::to_string(&label).unwrap_or_default() + "\n";
        let begin = self.end;
        let written = self.file.seek(SeekFrom::Start(begin)).and_then(|_| {
            self.file.write_all(line.as_bytes())?;
            self.file.sync_all()
        });
        if let Err(source) = written {
            // The write already failed with a better reason than the clean-up could give.
            let _ = self.file.set_len(begin);
            return Err(io(&self.path, "write")(source));
        }
        self.end = begin + line.len() as u64;
        self.labels.push((begin, label));
        Ok(())
    }

    /// The label given last.
    pub fn last(&self) -> Option<&Label> {
        self.labels.last().map(|(_, label)| label)
    }

    /// Takes back the label given last, also on the disk.
    ///
    /// # Errors
    /// [`EvalError::Io`].
    pub fn undo(&mut self) -> Result<(), EvalError> {
        if let Some((begin, _)) = self.labels.last() {
            let begin = *begin;
            self.cut(begin)?;
            self.labels.pop();
        }
        Ok(())
    }

    fn cut(&mut self, end: u64) -> Result<(), EvalError> {
        let cut = self.file.set_len(end).and_then(|()| self.file.sync_all());
        cut.map_err(io(&self.path, "shorten"))?;
        self.end = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use text::{Conversation, Message};

    fn review(answers: &[(&str, &str)]) -> Review {
        let pair = |(i, (a, b)): (usize, &(&str, &str))| {
            let turns = vec![Message::new("user", "q"), Message::new("assistant", "r")];
            let item = EvalItem::new(i.to_string(), Conversation::new(turns)).unwrap();
            Pair { item, a: (*a).to_owned(), b: (*b).to_owned() }
        };
        let pairs = answers.iter().enumerate().map(pair).collect();
        Review { a: "old".into(), b: "new".into(), pairs }
    }

    #[test]
    fn the_order_is_shuffled_by_its_seed_and_leaves_out_what_is_the_same() {
        let texts: Vec<String> = (0..200).map(|i| i.to_string()).collect();
        let answers: Vec<(&str, &str)> = texts.iter().map(|t| (t.as_str(), "7")).collect();
        let review = review(&answers);
        let order = review.order(1);
        assert_eq!(order, review.order(1));
        assert_ne!(order, review.order(2));
        let mut places: Vec<usize> = order.iter().map(|s| s.place).collect();
        assert!(!places.is_sorted());
        places.sort_unstable();
        assert_eq!(places, (0..200).filter(|i| *i != 7).collect::<Vec<_>>());
        let first = order.iter().filter(|s| s.b_first).count();
        assert!((70..130).contains(&first), "{first} of 199");
    }

    #[test]
    fn labels_give_the_numbers_of_a_judge() {
        let review = review(&[("x", "yy"); 12]);
        let label = |i: usize, better| review.pairs[i].label(better);
        let mut labels: Vec<Label> = (0..8).map(|i| label(i, Preference::B)).collect();
        labels.push(label(8, Preference::A));
        labels.push(label(9, Preference::Tie));
        let found = review.summary(&labels, None).unwrap();
        assert_eq!((found.labelled, found.wins_a, found.ties, found.wins_b), (10, 1, 1, 8));
        assert_eq!((found.win_rate, found.longer_wins), (Some(0.85), Some(8.0 / 9.0)));
        // Of nine decided examples at most one falls to the rarer side: 2 · (1 + 9) / 2⁹.
        assert!((found.p_value.unwrap() - 20.0 / 512.0).abs() < 1e-12);
        let interval = found.ci95.unwrap();
        assert!(interval.lo > 0.4 && interval.lo < 0.85 && interval.hi <= 1.0, "{interval:?}");
        // A second label for an example replaces the first.
        labels.push(label(8, Preference::B));
        assert_eq!(review.summary(&labels, None).unwrap().wins_b, 9);
        let none = review.summary(&[], None).unwrap();
        assert_eq!((none.win_rate, none.ci95, none.p_value), (None, None, None));
    }

    #[test]
    fn labels_of_other_answers_and_examples_do_not_count() {
        let review = review(&[("x", "y"), ("x", "z"), ("x", "w")]);
        let mut stale = review.pairs[0].label(Preference::A);
        stale.answers = Some("0000000000000000".into());
        let by_hand = Label { id: "1".into(), better: Preference::B, answers: None };
        let elsewhere = Label { id: "99".into(), ..by_hand.clone() };
        let found = review.summary(&[stale, by_hand, elsewhere], None).unwrap();
        assert_eq!((found.labelled, found.foreign, found.wins_b), (1, 2, 1));
        let (one, other) =
            (&review.pairs[0], Pair { a: "xy".into(), b: "".into(), ..review.pairs[0].clone() });
        assert_ne!(digest(&one.a, &one.b), digest(&other.a, &other.b));
    }

    #[test]
    fn two_reviewers_agree_beyond_chance_or_not() {
        let review = review(&[("x", "y"); 50]);
        let give = |counts: &[(usize, Preference)]| -> Vec<Label> {
            let all = counts.iter().flat_map(|(n, p)| std::iter::repeat_n(*p, *n));
            all.enumerate().map(|(i, p)| review.pairs[i].label(p)).collect()
        };
        use Preference::{A, B};
        // The worked example of Cohen's kappa: 20 + 15 of 50 agree, 0.4.
        let one = give(&[(25, A), (25, B)]);
        let other = give(&[(20, A), (5, B), (10, A), (15, B)]);
        let found = review.summary(&one, Some(&other)).unwrap().agreement.unwrap();
        assert!(found.n == 50 && (found.kappa - 0.4).abs() < 1e-12, "{found:?}");
        assert_eq!(review.summary(&one, Some(&[])).unwrap().agreement, None);
    }

    #[test]
    fn a_file_of_labels_survives_a_crash_and_is_held_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("labels.jsonl");
        let label = |id: &str| Label { id: id.into(), better: Preference::Tie, answers: None };
        let text = |path: &Path| std::fs::read_to_string(path).unwrap();
        let mut file = LabelFile::open(&path).unwrap();
        file.add(label("1")).unwrap();
        file.add(label("2")).unwrap();
        let error = LabelFile::open(&path).err().unwrap().to_string();
        assert!(error.contains("another review") && error.contains("hint"), "{error}");
        file.undo().unwrap();
        assert_eq!(text(&path), "{\"id\":\"1\",\"better\":\"tie\"}\n");
        drop(file);
        // A crash in the middle of a line, and one before its end.
        for (torn, kept) in [("{\"id\":\"9\",\"bet", 1), ("{\"id\":\"9\",\"better\":\"a\"}", 2)] {
            std::fs::write(&path, text(&path) + torn).unwrap();
            assert_eq!(read_labels(&path).unwrap().len(), kept);
            let mut file = LabelFile::open(&path).unwrap();
            assert_eq!(file.labels().len(), kept);
            file.add(label("3")).unwrap();
            assert!(text(&path).ends_with("{\"id\":\"3\",\"better\":\"tie\"}\n"));
            file.undo().unwrap();
        }
        std::fs::write(&path, "{\"id\":\"1\",\"better\":\"c\"}\n").unwrap();
        for error in [LabelFile::open(&path).err().unwrap(), read_labels(&path).unwrap_err()] {
            let error = error.to_string();
            assert!(error.contains("line 1") && error.contains("expected"), "{error}");
        }
    }
}
