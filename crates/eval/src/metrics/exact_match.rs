//! The answer is the reference, character for character.

use super::{Family, Metric, Score, python};
use unicode_normalization::{UnicodeNormalization, char::is_combining_mark};

/// Whitespace (Unicode `White_Space`) is removed at both ends of answer and reference, and nothing
/// else is touched: case, punctuation, accents and inner spaces count. A label or code is either
/// the one asked for or it is not; forgiving more is a decision for the reader, which
/// [`FAMILY`] lets him state.
pub(super) static METRIC: Metric = Metric {
    name: "exact_match",
    what: "The share of answers that are the reference exactly, apart from space at the ends.",
    reads_as: "of the answers exactly right",
    score: Score::Text(&|answer, reference| f64::from(answer.trim() == reference.trim())),
    examples: &[
        ("card_arrival", "card_arrival", 1.0),
        ("  card_arrival\n", "card_arrival", 1.0),
        ("\u{a0}card_arrival", "card_arrival", 1.0),
        ("Card_arrival", "card_arrival", 0.0),
        ("card_arrival.", "card_arrival", 0.0),
        ("card arrival", "card  arrival", 0.0),
        ("", "card_arrival", 0.0),
        ("", "", 1.0),
    ],
    ..Metric::BINARY
};

/// `exact_match:case+punctuation`: what is named is taken off both sides first, in the order of
/// [`NORMALISATIONS`]. `squad` stands for case, punctuation, articles and space, the normalisation of
/// SQuAD (arXiv 1606.05250).
pub(super) static FAMILY: Family = Family {
    name: "exact_match",
    parameter: "case+punctuation+articles+space+numbers+accents+nfkc or squad",
    what: "The share of answers that are the reference once what is named is taken off both.",
    example: "squad",
    build,
};

/// A name and what it does to a text.
type Normalisation = (&'static str, fn(&str) -> String);

const NORMALISATIONS: &[Normalisation] = &[
    // Compatibility forms: full-width letters, ligatures, the narrow spaces of French numbers.
    ("nfkc", |text| text.nfkc().collect()),
    ("accents", |text| text.nfd().filter(|c| !is_combining_mark(*c)).nfc().collect()),
    ("case", |text| text.to_lowercase()),
    // Python's string.punctuation, which is all that SQuAD and lm-evaluation-harness take off.
    ("punctuation", |text| text.chars().filter(|c| !c.is_ascii_punctuation()).collect()),
    ("numbers", |text| text.chars().filter(|c| !c.is_ascii_digit()).collect()),
    ("articles", without_articles),
    ("space", |text| python::split(text).collect::<Vec<_>>().join(" ")),
];

const SQUAD: &str = "case+punctuation+articles+space";

fn build(parameter: &str) -> Result<Metric, String> {
    let names: Vec<&str> = match parameter.trim() {
        "squad" => SQUAD.split('+').collect(),
        other => other.split('+').map(str::trim).collect(),
    };
    let known = || NORMALISATIONS.iter().map(|n| n.0).collect::<Vec<_>>().join(", ");
    if let Some(wrong) = names.iter().find(|n| !NORMALISATIONS.iter().any(|known| known.0 == **n)) {
        return Err(format!("found {wrong:?}; expected squad, or some of {} joined by +", known()));
    }
    let steps: Vec<fn(&str) -> String> =
        NORMALISATIONS.iter().filter(|n| names.contains(&n.0)).map(|n| n.1).collect();
    let normalise =
        move |text: &str| steps.iter().fold(text.trim().to_owned(), |text, step| step(&text));
    let score =
        move |answer: &str, reference: &str| f64::from(normalise(answer) == normalise(reference));
    Ok(Metric {
        what: FAMILY.what,
        reads_as: "of the answers right up to the normalisation named",
        score: Score::Text(Box::leak(Box::new(score))),
        examples: &[
            ("The Drum!", "drum", 1.0),
            ("a drum,  an  end", "drum end", 1.0),
            ("drums", "drum", 0.0),
            ("étage", "etage", 0.0),
            ("theme", "me", 0.0),
            ("", "the", 1.0),
        ],
        ..Metric::BINARY
    })
}

/// The English articles as whole words become a space each.
fn without_articles(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut word = String::new();
    for c in text.chars().chain(['\n']) {
        if c.is_alphanumeric() || c == '_' {
            word.push(c);
            continue;
        }
        let article = matches!(word.to_lowercase().as_str(), "a" | "an" | "the");
        out.push_str(if article { " " } else { &word });
        word.clear();
        out.push(c);
    }
    out.pop();
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_normalisation_takes_off_what_its_name_says() {
        for (parameter, answer, reference, expected) in [
            ("case", "Été", "été", 1.0),
            ("case", "Été", "ete", 0.0),
            ("accents", "Été", "Ete", 1.0),
            ("nfkc", "ﬁn ２", "fin 2", 1.0),
            ("punctuation", "a.b-c", "abc", 1.0),
            ("punctuation", "« oui »", "oui", 0.0),
            ("numbers", "a1b2", "ab", 1.0),
            ("articles", "the_ theme", "the_ theme", 1.0),
            ("space", " a\n b", "a b", 1.0),
            ("case+space", "A  b", "a b", 1.0),
        ] {
            let metric = build(parameter).unwrap();
            let Score::Text(score) = metric.score else { panic!("a score of texts") };
            assert_eq!(score(answer, reference), expected, "{parameter}: {answer:?}");
        }
        assert!(build("case+colour").unwrap_err().contains("\"colour\""));
        assert!(build("").is_err());
    }
}
