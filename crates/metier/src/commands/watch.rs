//! `metier watch`: has anything changed since the model was proven?

use crate::cli::WatchArgs;
use crate::exit;
use crate::resolve::Base;
use crate::state;
use ::data::{FolderSplit, ReadOptions};
use ::eval::stats::{Conclusion, PairedOptions, ShareAlarm};
use ::eval::{Candidate, EvalItem, RecordedCandidate, ShiftOptions, input_shift};
use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;
use serve::Kept;
use std::process::ExitCode;

/// Fewest texts of today that are compared with the training set.
const LEAST_TEXTS: usize = 20;

/// What one thing that is watched shows.
#[derive(Serialize)]
struct Watched {
    /// `errors`, `disliked`, `broken`, `shift` or `anchors`.
    name: &'static str,
    /// Whether the bound that was stated is proven to be crossed.
    crossed: bool,
    /// In words.
    says: String,
    /// The numbers behind it.
    evidence: Value,
}

pub(super) fn run(args: &WatchArgs) -> Result<ExitCode> {
    let mut watched = shares(args)?;
    watched.extend(shift(args)?);
    watched.extend(anchors(args)?);
    if watched.is_empty() {
        bail!(
            "nothing to watch\nhint: state a bound, such as --max-errors 0.02, --max-disliked 0.1, \
             --max-broken 0.01, --train FILE or --anchors FILE"
        );
    }
    let crossed = watched.iter().any(|w| w.crossed);
    if args.json {
        println!("{}", serde_json::json!({ "crossed": crossed, "watched": watched }));
    } else {
        for thing in &watched {
            println!(
                "{} {}: {}",
                if thing.crossed { "CROSSED" } else { "ok" },
                thing.name,
                thing.says
            );
        }
    }
    Ok(if crossed { exit::not_proven() } else { exit::done() })
}

/// Failed requests, bad ratings and answers that are no JSON, in the order in which they came.
fn shares(args: &WatchArgs) -> Result<Vec<Watched>> {
    let mut watched = Vec::new();
    if args.max_errors.or(args.max_disliked).or(args.max_broken).is_none() {
        return Ok(watched);
    }
    let database = state::open(&args.state)?;
    let from = args.from.map_or(0, state::begin);
    let happened = database.happened(args.adapter_name.as_deref(), from)?;
    let mut add = |name, what: &str, events: Vec<bool>, bound: Option<f64>| -> Result<()> {
        if let Some(bound) = bound {
            watched.push(share(name, what, ShareAlarm::watch(events, bound)?)?);
        }
        Ok(())
    };
    add("errors", "requests failed", happened.failed, args.max_errors)?;
    add("disliked", "ratings are below 0", happened.disliked, args.max_disliked)?;
    if args.max_broken.is_some() {
        let kept = kept(args)?;
        let ended = kept.iter().filter(|k| k.outcome == "ok").flat_map(|k| &k.answers);
        let broken = ended.map(|a| serde_json::from_str::<Value>(a.text.trim()).is_err());
        add("broken", "kept answers are no JSON", broken.collect(), args.max_broken)?;
    }
    Ok(watched)
}

fn share(name: &'static str, what: &str, alarm: ShareAlarm) -> Result<Watched> {
    let interval = alarm.interval()?;
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let seen = if alarm.n == 0 { 0.0 } else { alarm.hits as f64 / alarm.n as f64 };
    let says = format!(
        "{} of {} {what} ({}; at every look between {} and {}), allowed are {}",
        alarm.hits,
        alarm.n,
        percent(seen),
        percent(interval.lo),
        percent(interval.hi),
        percent(alarm.bound)
    );
    let mut evidence = serde_json::to_value(alarm)?;
    evidence["interval"] = serde_json::to_value(interval)?;
    Ok(Watched { name, crossed: alarm.crossed_at.is_some(), says, evidence })
}

/// Kept requests of the model that is watched.
fn kept(args: &WatchArgs) -> Result<Vec<Kept>> {
    let mut kept = state::open(&args.state)?.kept(state::now())?;
    if let Some(name) = &args.adapter_name {
        kept.retain(|k| k.model == *name);
    }
    Ok(kept)
}

/// Kept questions beside those of the training set.
fn shift(args: &WatchArgs) -> Result<Option<Watched>> {
    let Some(path) = &args.train else { return Ok(None) };
    let options = ReadOptions { split: FolderSplit::Train, ..ReadOptions::default() };
    let train: Vec<String> =
        ::data::read(path, &options)?.iter().map(::data::Example::question).collect();
    let recent: Vec<String> = kept(args)?.iter().filter_map(question).collect();
    if recent.len() < LEAST_TEXTS || train.len() < LEAST_TEXTS {
        let says = format!(
            "{} kept questions, {} training rows: too few to compare; expected {LEAST_TEXTS} of each (keys \
             made with --store-contents have theirs kept)",
            recent.len(),
            train.len()
        );
        let evidence = serde_json::json!({ "reference": train.len(), "recent": recent.len() });
        return Ok(Some(Watched { name: "shift", crossed: false, says, evidence }));
    }
    let train: Vec<&str> = train.iter().map(String::as_str).collect();
    let recent: Vec<&str> = recent.iter().map(String::as_str).collect();
    let report = input_shift(&train, &recent, &ShiftOptions::default())?;
    let crossed = report.is_shifted(args.shift_level);
    let tests = report
        .tests
        .iter()
        .map(|t| format!("{} {:.3} apart (p = {:.3} for all three)", t.name, t.distance, t.p_holm));
    let mut says = tests.collect::<Vec<_>>().join(", ");
    if crossed {
        let risen = report.risen.iter().take(5).map(|(word, then, now)| {
            format!("{word:?} in {:.0} % of texts, {:.0} % then", 100.0 * now, 100.0 * then)
        });
        says = format!("{says}; risen most: {}", risen.collect::<Vec<_>>().join(", "));
    }
    Ok(Some(Watched { name: "shift", crossed, says, evidence: serde_json::to_value(report)? }))
}

/// What was asked, without system turns.
fn question(kept: &Kept) -> Option<String> {
    if let Some(prompt) = kept.asked.get("prompt").and_then(Value::as_str) {
        return Some(prompt.to_owned());
    }
    let said = kept.asked.get("messages")?.as_array()?.iter().filter(|message| {
        !matches!(message.get("role").and_then(Value::as_str), Some("system" | "developer"))
    });
    let texts: Vec<&str> = said.filter_map(|m| m.get("content")?.as_str()).collect();
    (!texts.is_empty()).then(|| texts.join("\n"))
}

/// The anchor set answered again, beside the answers recorded when the model was proven.
fn anchors(args: &WatchArgs) -> Result<Option<Watched>> {
    let Some(path) = &args.anchors else { return Ok(None) };
    let recorded = args.recorded.as_ref().context(
        "--anchors without --recorded\nhint: record the answers when the model is proven: metier eval \
         --answers FILE",
    )?;
    let model = args.model.as_ref().context("--anchors without --model: who shall answer them?")?;
    let metrics = ::eval::metrics_by_name(&[args.metric.as_str()])?;
    let base = Base::load(model, args.weights)?;
    let adapter = super::eval::adapted(args.adapter.as_ref(), &base)?;
    let options = ReadOptions { split: FolderSplit::Test, ..ReadOptions::default() };
    let examples = ::data::read(path, &options)?;
    let items = examples.iter().map(EvalItem::from_example).collect::<Result<Vec<_>, _>>()?;
    let mut then: [Box<dyn Candidate>; 1] = [Box::new(RecordedCandidate::read("then", recorded)?)];
    let then = ::eval::evaluate(&mut then, items.clone(), metrics.clone(), &mut |_| ())?;
    let now = super::eval::evaluate(
        &base,
        adapter.as_ref(),
        items,
        metrics,
        args.max_tokens,
        model::KvDtype::F32,
    )?;
    let (then, now) = (&then.candidates[0], &now.candidates[0]);
    let paired = ::eval::compare(then, now, 0, &PairedOptions::default())?;
    let conclusion = paired.conclusion(args.margin);
    let says = format!(
        "{} of {} anchors, {} is {:+.1} points since they were recorded, with 95 % confidence between \
         {:+.1} and {:+.1}; allowed is a loss of {:.1}",
        now.answers.len() - now.failed(),
        now.answers.len(),
        args.metric,
        100.0 * paired.difference,
        100.0 * paired.ci95.lo,
        100.0 * paired.ci95.hi,
        100.0 * args.margin
    );
    let evidence = serde_json::json!({
        "n": paired.n,
        "difference": paired.difference,
        "ci95": paired.ci95,
        "conclusion": conclusion,
        "margin": args.margin,
    });
    let crossed = conclusion == Conclusion::Worse;
    Ok(Some(Watched { name: "anchors", crossed, says, evidence }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_question_is_what_was_said_without_instructions() {
        let kept = |asked: Value| Kept {
            request_id: "r".into(),
            model: "m".into(),
            digest: "d".into(),
            outcome: "ok".into(),
            asked,
            answers: Vec::new(),
            rating: None,
            correction: None,
        };
        assert_eq!(question(&kept(json!({"prompt": "Hi"}))).unwrap(), "Hi");
        let chat = json!({"messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Where?"},
            {"role": "user", "content": [{"type": "text", "text": "x"}]}
        ]});
        assert_eq!(question(&kept(chat)).unwrap(), "Where?");
        assert!(question(&kept(json!({"messages": []}))).is_none());
        assert!(question(&kept(json!({}))).is_none());
    }

    #[test]
    fn a_share_says_its_bound_and_whether_it_is_crossed() {
        let calm = share("errors", "requests failed", ShareAlarm::watch([false; 50], 0.1).unwrap());
        let calm = calm.unwrap();
        assert!(!calm.crossed && calm.says.starts_with("0 of 50 requests failed"), "{}", calm.says);
        let bad = share("errors", "x", ShareAlarm::watch([true; 20], 0.1).unwrap()).unwrap();
        assert!(bad.crossed && bad.evidence["crossed_at"].as_u64() < Some(20));
        let none = share("errors", "x", ShareAlarm::watch([], 0.1).unwrap()).unwrap();
        assert!(!none.crossed);
    }
}
