//! The difference of two candidates on the same test set, from the answers that `metier eval --answers`
//! wrote: score of each with its 95 % interval, the paired difference with its interval, and the share
//! right of each field that both were asked for.
//!
//! ```text
//! cargo run -p eval --example compare_answers -- \
//!     test.jsonl base.jsonl adapted.jsonl json_exact,json_field_accuracy
//! ```

use data::{FolderSplit, ReadOptions};
use eval::stats::PairedOptions;
use eval::{Candidate, EvalItem, RecordedCandidate};
use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [data, base, adapted, metrics] = &arguments[..] else {
        return Err("expected TEST BASE_ANSWERS ADAPTED_ANSWERS METRIC,METRIC".into());
    };
    let options = ReadOptions { split: FolderSplit::Test, ..ReadOptions::default() };
    let examples = data::read(Path::new(data), &options)?;
    let items = examples.iter().map(EvalItem::from_example).collect::<Result<Vec<_>, _>>()?;
    let names: Vec<&str> = metrics.split(',').collect();
    let mut candidates: [Box<dyn Candidate>; 2] = [
        Box::new(RecordedCandidate::read("base", Path::new(base))?),
        Box::new(RecordedCandidate::read("adapted", Path::new(adapted))?),
    ];
    let metrics = eval::metrics_by_name(&names)?;
    let result = eval::evaluate(&mut candidates, items, metrics, &mut |_| ())?;
    let [base, adapted] = &result.candidates[..] else { return Err("two candidates".into()) };
    println!("{} examples", result.items.len());
    for (index, metric) in result.metrics.iter().enumerate() {
        for candidate in [base, adapted] {
            let (mean, ci) = candidate.summary(&result.metrics, index)?;
            println!("{} {}: {mean:.4} [{:.4}, {:.4}]", metric.name, candidate.name, ci.lo, ci.hi);
        }
        let paired = eval::compare(base, adapted, index, &PairedOptions::default())?;
        println!(
            "{} difference: {:+.4} [{:+.4}, {:+.4}], p = {:.2e}",
            metric.name, paired.difference, paired.ci95.lo, paired.ci95.hi, paired.p_value
        );
    }
    for field in eval::field_reports(&result)? {
        print!("{} ({} examples):", field.field, field.n);
        for (name, score) in &field.scores {
            print!(" {name} {:.4} [{:.4}, {:.4}]", score.value, score.ci95.lo, score.ci95.hi);
        }
        println!();
    }
    Ok(())
}
