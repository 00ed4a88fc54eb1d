//! Grades: a judge says how good an answer is by criteria, for a metric of its own (`rubric`).
//!
//! The grade is asked while the candidate answers ([`Graded`]) and recorded with the answer, as its time and
//! tokens are: a proof must be computable again without the judge. What is known of judges (see
//! [`crate::Judge`]) holds here as well: agreement with people is shown or its absence warned of, and a judge
//! of an arm's own family is warned of. A grade knows no other answer, so there is no order to change.

use crate::candidate::{Answer, Candidate, answered};
use crate::error::EvalError;
use crate::item::EvalItem;
use crate::judge::{
    Agreement, Judge, Preference, agreement, asked, fenced, kinship, not_validated, parsed,
};
use crate::run::CandidateResult;
use crate::words::Language;
use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// The best grade; the worst is 1.
pub(crate) const BEST: u8 = 5;

/// By what answers were graded, and what people think of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Rubric {
    /// The judge's model.
    pub judge: String,
    /// What makes an answer good, in the words of the trade.
    pub criteria: String,
    /// People's preferences between the candidate compared with (a) and a judged one (b), by that one's name
    /// and the example.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub labels: IndexMap<String, IndexMap<String, Preference>>,
}

/// What is known of the grades of two candidates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GradesReport {
    /// Name of the candidate compared with.
    pub a: String,
    /// Name of the candidate judged.
    pub b: String,
    /// The judge's model.
    pub judge: String,
    /// What makes an answer good.
    pub criteria: String,
    /// Examples of `a` and of `b` with a grade that could not be read; it counts as the worst one.
    pub unreadable: [usize; 2],
    /// How far the better grade agrees with people's preference; None without labels.
    pub agreement: Option<Agreement>,
    /// What the reader must know, a sentence each.
    pub warnings: Vec<String>,
}

impl Judge {
    /// How good answers are by the criteria, 1 to 5; 0 where the judge said nothing that can be read.
    ///
    /// # Errors
    /// As a rented candidate's.
    pub fn grades(
        &self,
        answers: &[(&EvalItem, &Answer)],
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<u8>, EvalError> {
        let question = |(item, answer): &(&EvalItem, &Answer)| {
            let text = format!(
                "{}\n\nAnswer:\n{}\n\nHow good is the answer by the criteria, from 1 (useless) to 5 (as good as can be)?",
                self.beginning(item),
                fenced(&answer.text)
            );
            asked(format!("{}:rubric", item.id), text)
        };
        let questions: Vec<EvalItem> = answers.iter().map(question).collect::<Result<_, _>>()?;
        let grades: Vec<u8> = (1..=BEST).collect();
        let properties = json!({"grade": {"type": "integer", "enum": grades}});
        let said = self.ask(&questions, properties, progress)?;
        let grade = |answer: &Answer| {
            let grade = parsed(answer).and_then(|value| value["grade"].as_u64());
            let grade = grade.and_then(|grade| u8::try_from(grade).ok());
            grade.filter(|grade| (1..=BEST).contains(grade)).unwrap_or(0)
        };
        Ok(said.iter().map(grade).collect())
    }
}

/// A candidate whose answers a judge grades. Failed answers are not shown to the judge.
pub struct Graded<'a> {
    inner: Box<dyn Candidate + 'a>,
    judge: &'a Judge,
    graded: &'a mut dyn FnMut(usize, usize),
}

impl<'a> Graded<'a> {
    /// `inner`, graded by `judge`; `graded` gets how many answers have a grade, and how many there are.
    pub fn new(
        inner: Box<dyn Candidate + 'a>,
        judge: &'a Judge,
        graded: &'a mut dyn FnMut(usize, usize),
    ) -> Graded<'a> {
        Graded { inner, judge, graded }
    }
}

impl Candidate for Graded<'_> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn kind(&self) -> &'static str {
        self.inner.kind()
    }

    fn answer(
        &mut self,
        examples: &[EvalItem],
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<Answer>, EvalError> {
        let mut answers = self.inner.answer(examples, progress)?;
        let there = answered(examples, &answers).filter(|(_, answer)| answer.error.is_none());
        let pairs: Vec<(&EvalItem, &Answer)> = there.collect();
        let n = pairs.len();
        let graded = &mut self.graded;
        let grades = self.judge.grades(&pairs, &mut |done| graded(done, n))?;
        let mut grades = grades.into_iter();
        for answer in &mut answers {
            answer.each(&mut |one| {
                one.grade = if one.error.is_none() { grades.next() } else { None };
            });
        }
        Ok(answers)
    }
}

impl Rubric {
    /// What is known of the grades of two candidates' first answers.
    pub(crate) fn report(
        &self,
        items: &[EvalItem],
        a: &CandidateResult,
        b: &CandidateResult,
        language: Language,
    ) -> GradesReport {
        let unreadable = |candidate: &CandidateResult| {
            let is_one = |answer: &&Answer| answer.all().any(|one| one.grade == Some(0));
            candidate.answers.iter().filter(is_one).count()
        };
        let unreadable = [unreadable(a), unreadable(b)];
        let labels = self.labels.get(&b.name);
        let pairs = items.iter().zip(a.answers.iter().zip(&b.answers));
        let pairs = pairs.filter_map(|(item, (a, b))| {
            Some((preference(a.grade?, b.grade?), *labels?.get(&item.id)?))
        });
        let pairs: Vec<(Preference, Preference)> = pairs.collect();
        let mut warnings: Vec<String> = not_validated(pairs.len(), language).into_iter().collect();
        warnings.extend(kinship(&self.judge, &[a, b], language));
        for (name, n) in [(&a.name, unreadable[0]), (&b.name, unreadable[1])] {
            if n > 0 {
                warnings.push(language.say(
                    "Of {name} {n} grades could not be read; they count as the worst.",
                    &[("name", name), ("n", &language.count(n))],
                ));
            }
        }
        GradesReport {
            a: a.name.clone(),
            b: b.name.clone(),
            judge: self.judge.clone(),
            criteria: self.criteria.clone(),
            unreadable,
            agreement: agreement(&pairs),
            warnings,
        }
    }
}

/// The better grade.
fn preference(a: u8, b: u8) -> Preference {
    match a.cmp(&b) {
        std::cmp::Ordering::Greater => Preference::A,
        std::cmp::Ordering::Equal => Preference::Tie,
        std::cmp::Ordering::Less => Preference::B,
    }
}
