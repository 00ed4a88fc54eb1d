//! `metier review`: people judge the answers of a proof, two at a time, without knowing whose they are.

use crate::cli::ReviewArgs;
use crate::exit;
use ::eval::{Label, LabelFile, Preference, Review, ReviewSummary, Shown};
use anyhow::Result;
use std::collections::{HashMap, VecDeque};
use std::io::{BufRead, IsTerminal, Write};
use std::process::ExitCode;

pub(super) fn run(args: &ReviewArgs) -> Result<ExitCode> {
    let review = Review::read(&args.report, args.a.as_deref(), args.b.as_deref())?;
    let path = args.labels.clone().unwrap_or_else(|| args.report.with_file_name("labels.jsonl"));
    let others = args.compare.as_deref().map(::eval::read_labels).transpose()?;
    let labels = if args.summary {
        ::eval::read_labels(&path)?
    } else {
        let mut file = LabelFile::open(&path)?;
        ask(&review, &mut file, args)?;
        eprintln!("labels: {}", path.display());
        file.labels()
    };
    let summary = review.summary(&labels, others.as_deref())?;
    match args.json {
        true => println!("{}", serde_json::to_string(&summary)?),
        false => print(&summary, args),
    }
    Ok(exit::done())
}

const KEYS: &str = "1, 2, t(ie), s(kip), u(ndo), q(uit)";

/// Shows pair after pair until none is left, or the reviewer or the input ends it.
fn ask(review: &Review, file: &mut LabelFile, args: &ReviewArgs) -> Result<()> {
    let order = review.order(args.seed);
    let labels = file.labels();
    let last: HashMap<&str, &Label> = labels.iter().map(|l| (l.id.as_str(), l)).collect();
    let done = |shown: &Shown| {
        let pair = &review.pairs[shown.place];
        last.get(pair.item.id.as_str()).is_some_and(|label| pair.is_of(label))
    };
    let mut queue: VecDeque<Shown> = order.iter().copied().filter(|s| !done(s)).collect();
    let mut lines = std::io::stdin().lock().lines();
    while let Some(shown) = queue.pop_front() {
        show(review, shown, args.reference, order.len() - queue.len(), order.len());
        loop {
            print!("{KEYS}> ");
            std::io::stdout().flush()?;
            let Some(line) = lines.next() else { return Ok(()) };
            let better = match line?.trim().to_lowercase().as_str() {
                "1" => Preference::A,
                "2" => Preference::B,
                "t" | "tie" => Preference::Tie,
                "s" | "skip" => break,
                "u" | "undo" => match taken_back(review, file, &order)? {
                    Some(before) => {
                        queue.push_front(shown);
                        queue.push_front(before);
                        break;
                    }
                    None => {
                        println!("there is no label to take back");
                        continue;
                    }
                },
                "q" | "quit" => return Ok(()),
                other => {
                    println!("found {:?}; expected one of {KEYS}", shortened(other));
                    continue;
                }
            };
            file.add(review.pairs[shown.place].label(placed(better, shown)))?;
            break;
        }
    }
    println!("\nno pair is left to judge");
    Ok(())
}

/// What was said of the first and second answer shown, as said of `a` and `b`.
fn placed(better: Preference, shown: Shown) -> Preference {
    match (better, shown.b_first) {
        (Preference::A, true) => Preference::B,
        (Preference::B, true) => Preference::A,
        (better, _) => better,
    }
}

/// Removes the label given last and tells which pair it was about; None when there is none of this review.
fn taken_back(review: &Review, file: &mut LabelFile, order: &[Shown]) -> Result<Option<Shown>> {
    let Some(last) = file.last() else { return Ok(None) };
    let before = order.iter().find(|shown| review.pairs[shown.place].is_of(last)).copied();
    if before.is_some() {
        file.undo()?;
    }
    Ok(before)
}

fn show(review: &Review, shown: Shown, reference: bool, place: usize, of: usize) {
    let pair = &review.pairs[shown.place];
    let (first, second) = if shown.b_first { (&pair.b, &pair.a) } else { (&pair.a, &pair.b) };
    if std::io::stdout().is_terminal() {
        // Clear the screen: what was judged before is no help.
        print!("\x1b[2J\x1b[H");
    }
    println!("\n=== {place} of {of} ===\n\n{}\n", plain(&pair.item.prompt()));
    if reference {
        println!("--- Reference ---\n{}\n", plain(&pair.item.reference));
    }
    for (number, text) in [(1, first), (2, second)] {
        let text = if text.is_empty() { "(no answer)".to_owned() } else { plain(text) };
        println!("--- Answer {number} ---\n{text}\n");
    }
}

/// A text of others that cannot steer the terminal.
fn plain(text: &str) -> String {
    let shown = |c: char| match c {
        '\n' | '\t' => c,
        // Controls, and marks that turn the direction of what follows.
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
        c if c.is_control() => '\u{fffd}',
        c => c,
    };
    text.chars().map(shown).collect()
}

fn shortened(text: &str) -> String {
    text.chars().take(20).collect()
}

fn print(s: &ReviewSummary, args: &ReviewArgs) {
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    println!(
        "{} of {} examples labelled ({} more have the same answer twice): {} {}, {} ties, {} {}",
        s.labelled,
        s.pairs - s.identical,
        s.identical,
        s.wins_a,
        s.a,
        s.ties,
        s.wins_b,
        s.b
    );
    if s.foreign > 0 {
        println!("{} labels are of other examples or answers and do not count", s.foreign);
    }
    if let Some(rate) = s.win_rate {
        let between = s.ci95.map_or(String::new(), |ci| {
            format!(" (95 % between {} and {})", percent(ci.lo), percent(ci.hi))
        });
        let p = s.p_value.map_or(String::new(), |p| format!("; sign test p = {p:.4}"));
        println!("{} wins {}, ties half{between}{p}", s.b, percent(rate));
    }
    if let Some(rate) = s.length_controlled {
        println!("with the difference of lengths taken out: {}", percent(rate));
    }
    if let Some(share) = s.longer_wins {
        println!("the longer answer wins {} of those decided", percent(share));
    }
    match (&args.compare, s.agreement) {
        (Some(path), Some(found)) => println!(
            "agreement with {} on {} examples: {}, Cohen's kappa {:.2}",
            path.display(),
            found.n,
            percent(found.agreement),
            found.kappa
        ),
        (Some(path), None) => println!("no example is labelled here and in {}", path.display()),
        (None, _) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_cannot_steer_the_terminal() {
        assert_eq!(
            plain("a\n\tb\x1b[2Jc\u{202e}d\u{2066}é"),
            "a\n\tb\u{fffd}[2Jc\u{fffd}d\u{fffd}é"
        );
    }

    #[test]
    fn what_is_said_of_a_place_becomes_a_candidate() {
        use Preference::{A, B, Tie};
        for (said, b_first, meant) in
            [(A, false, A), (B, false, B), (A, true, B), (B, true, A), (Tie, true, Tie)]
        {
            assert_eq!(placed(said, Shown { place: 0, b_first }), meant);
        }
    }
}
