//! Each judged candidate's rules, verdict and sentences, and which of them the report is about.

use super::{Look, ProofPlan, rules};
use crate::baseline::BASELINE;
use crate::cost::Economics;
use crate::error::EvalError;
use crate::judge::Judgement;
use crate::report::{CandidateReport, Finding, JudgedReport, Rule};
use crate::rubric::GradesReport;
use crate::run::{CandidateResult, EvalResult};
use crate::slices::{SliceReport, slice_reports};
use crate::stats::{CONFIDENCE, FamilyMember, PairedOptions, mean, paired_family, paired_interval};
use crate::verdict::{Decision, Verdict, decide, sentences_in};

/// All that a verdict rests on.
pub(super) struct Evidence<'a> {
    pub(super) plan: &'a ProofPlan,
    pub(super) result: &'a EvalResult,
    /// Place of the metric that decides.
    pub(super) index: usize,
    pub(super) against: &'a CandidateResult,
    /// With what they cost.
    pub(super) candidates: &'a [CandidateReport],
    pub(super) money: Option<&'a Economics>,
    pub(super) judgements: &'a [Judgement],
    pub(super) grades: &'a [GradesReport],
}

/// One judged candidate.
pub(super) struct Judged {
    pub(super) name: String,
    member: FamilyMember,
    pub(super) verdict: Verdict,
    pub(super) sentences: [String; 3],
    pub(super) rules: Vec<Rule>,
    pub(super) slices: Vec<SliceReport>,
}

impl Evidence<'_> {
    /// The candidate that the report is about, and what there is to say of each. Of those that are worth it
    /// it is the one with the greatest difference, which may be picked afterwards since the claims hold for
    /// all together ([`paired_family`]); where none is worth it, the one named first of those that are not
    /// ruled out; where all are, the one named first.
    pub(super) fn judge(&self) -> Result<(Judged, Vec<JudgedReport>), EvalError> {
        let names = self.plan.all_judged();
        let family = names.map(|name| self.result.candidate(name));
        let family = family.collect::<Result<Vec<_>, _>>()?;
        let scores: Vec<&[f64]> = family.iter().map(|c| c.scores_of(self.index)).collect();
        let members = paired_family(
            self.against.scores_of(self.index),
            &scores,
            &self.against.clusters,
            self.plan.margin,
            &self.plan.look.map_or(vec![1.0], Look::shares),
            &PairedOptions::default(),
        )?;
        let judged = family.iter().zip(members).map(|(candidate, m)| self.one(candidate, m));
        let mut judged = judged.collect::<Result<Vec<Judged>, _>>()?;
        let worth: Vec<usize> =
            (0..judged.len()).filter(|&i| judged[i].verdict == Verdict::WorthIt).collect();
        let gain = |place: usize| judged[place].member.paired.difference;
        // The first of the best.
        let best = worth.iter().copied().reduce(|a, b| if gain(b) > gain(a) { b } else { a });
        let open = judged.iter().position(|j| j.verdict == Verdict::NotProven);
        let place = best.or(open).unwrap_or(0);
        let reports = judged.iter().enumerate().map(|(i, j)| j.report(i == place)).collect();
        if judged.len() > 1 {
            let worth: Vec<&str> = worth.iter().map(|&i| judged[i].name.as_str()).collect();
            let about = (judged[place].name.as_str(), judged[place].verdict);
            let rule = rules::family(self.plan.language, &worth, about, judged.len());
            judged[place].rules.insert(1, rule);
        }
        Ok((judged.swap_remove(place), reports))
    }

    /// The candidate beside each baseline that is neither judged nor the one compared with.
    fn baselines(&self, candidate: &CandidateResult) -> Result<Vec<Rule>, EvalError> {
        let others = self.result.candidates.iter().filter(|c| {
            c.kind == BASELINE
                && c.name != self.plan.against
                && !self.plan.all_judged().any(|name| name == c.name)
        });
        let rule = |baseline: &CandidateResult| {
            let (a, b) = (baseline.scores_of(self.index), candidate.scores_of(self.index));
            let interval = paired_interval(a, b, &candidate.clusters, CONFIDENCE)?;
            let difference = mean(b) - mean(a);
            Ok(rules::baseline(self.plan, &candidate.name, &baseline.name, difference, interval))
        };
        others.map(rule).collect()
    }

    fn one(&self, candidate: &CandidateResult, member: FamilyMember) -> Result<Judged, EvalError> {
        let (plan, paired) = (self.plan, &member.paired);
        let of = |name: &str| self.candidates.iter().find(|c| c.name == name);
        let (name, ours, theirs) = (&candidate.name, of(&candidate.name), of(&plan.against));
        let slices =
            slice_reports(self.result, self.against, candidate, self.index, plan.least_slice)?;
        let mut rules = vec![rules::quality(plan, name, paired)];
        rules.extend(plan.look.map(|look| rules::looks(plan.language, look, paired.confidence)));
        rules.extend(rules::failures(plan, self.against, candidate));
        rules.extend(rules::arms(plan, name));
        rules.extend(self.baselines(candidate)?);
        rules.extend(rules::money(plan, name, ours, self.money));
        rules.extend(rules::slices(plan, &slices));
        rules.extend(rules::forgetting(plan, name));
        rules.extend(self.judgements.iter().map(|j| rules::judgement(plan.language, j)));
        let grades = self.grades.iter().filter(|g| g.b == *name);
        rules.extend(grades.map(|grades| rules::grades(plan, grades)));
        rules.extend(plan.findings.iter().cloned());
        let broken = rules.iter().find(|r| r.finding == Finding::Broken && r.name != "quality");
        let open = rules
            .iter()
            .skip(1)
            .filter(|r| r.finding == Finding::Open || r.finding == Finding::Broken);
        let blockers: Vec<String> = open.map(|rule| as_clause(&rule.evidence)).collect();
        let score = |c: Option<&CandidateReport>| c.map_or(0.0, |c| c.metrics[&plan.metric].value);
        let decision = Decision {
            a: &plan.against,
            b: name,
            metric: self.result.metrics[self.index],
            score_a: score(theirs),
            score_b: score(ours),
            paired,
            margin: plan.margin,
            blockers: &blockers,
            cost_a: theirs.and_then(|c| c.cost.as_ref()),
            cost_b: ours.and_then(|c| c.cost.as_ref()),
        };
        let [scored, sure, follows] = sentences_in(&decision, plan.language);
        let (verdict, follows) = match broken {
            Some(rule) => (Verdict::NotWorthIt, rule.evidence.clone()),
            None => (decide(&decision), follows),
        };
        let (name, sentences) = (name.clone(), [scored, sure, follows]);
        Ok(Judged { name, member, verdict, sentences, rules, slices })
    }
}

impl Judged {
    fn report(&self, decides: bool) -> JudgedReport {
        let paired = &self.member.paired;
        JudgedReport {
            name: self.name.clone(),
            verdict: self.verdict,
            decides,
            difference: paired.difference,
            interval: paired.interval,
            confidence: paired.confidence,
            p_value: paired.p_value,
            p_holm: self.member.p_holm,
        }
    }
}

/// A sentence as the clause that completes "because ...".
fn as_clause(sentence: &str) -> String {
    let sentence = sentence.trim_end_matches('.');
    let mut letters = sentence.chars();
    let second_is_capital = sentence.chars().nth(1).is_some_and(char::is_uppercase);
    match letters.next() {
        Some(first) if first.is_uppercase() && !second_is_capital => {
            first.to_lowercase().chain(letters).collect()
        }
        _ => sentence.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_become_clauses() {
        for (sentence, clause) in [
            ("Three answers failed.", "three answers failed"),
            ("EUR 3 is too much.", "EUR 3 is too much"),
            ("2 rows leak.", "2 rows leak"),
            ("", ""),
        ] {
            assert_eq!(as_clause(sentence), clause);
        }
    }
}
