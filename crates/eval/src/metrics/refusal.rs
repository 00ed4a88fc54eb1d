//! Answers that decline to answer.

use super::{Better, Metric, Score};
use regex::Regex;
use std::sync::LazyLock;

/// 1 for an answer that begins by declining, in English or French, else 0. Only its first 200
/// characters are looked at: what is quoted or explained later is no refusal. It finds the usual
/// phrases, not every wording; failed answers said nothing and count 0 (they are counted as failed).
pub(super) static METRIC: Metric = Metric {
    name: "refusal",
    what: "The share of answers that begin by declining to answer (usual phrases, English and French). Lower is better.",
    reads_as: "of the answers refusals",
    better: Better::Lower,
    score: Score::Item(&|_, answer| Ok(f64::from(refuses(&answer.text)))),
    ..Metric::BINARY
};

static PHRASES: LazyLock<Regex> = LazyLock::new(|| {
    let phrases = [
        r"\bi(?: am|['’]m) (?:really |very )?sorry,? (?:but )?(?:i|that)\b",
        r"\bi(?: can ?not|['’]m unable| am unable| can['’]t| won['’]t| will not| am not able|['’]m not able) (?:to )?(?:answer|help|assist|provide|comply|do that|fulfil|discuss|share|create|write|give)",
        r"\bas an ai\b",
        r"\bi (?:must|have to) (?:decline|refuse)\b",
        r"\bje (?:suis |vous présente |m['’])?(?:vraiment )?(?:désolée?|excuse)\b.{0,40}\bje ne\b",
        r"\bje ne (?:peux|puis|suis pas en mesure|saurais) (?:pas )?(?:de |d['’])?(?:vous )?(?:répondre|aider|fournir|donner|accéder|faire)",
        r"\ben tant qu['’](?:ia|intelligence artificielle|assistant)\b",
    ];
    Regex::new(&format!("(?is){}", phrases.join("|"))).expect("these expressions compile")
});

fn refuses(text: &str) -> bool {
    let end = text.char_indices().nth(200).map_or(text.len(), |(place, _)| place);
    PHRASES.is_match(&text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_from_answers() {
        for text in [
            "I'm sorry, but I can't help with that.",
            "I cannot provide medical advice.",
            "As an AI language model, I do not have opinions.",
            "Je ne peux pas répondre à cette question.",
            "Je suis désolé, mais je ne dispose pas de cette information.",
            "En tant qu'intelligence artificielle, je",
        ] {
            assert!(refuses(text), "{text}");
        }
        for text in [
            "card_arrival",
            "I can help with that.",
            "The tenant says he cannot pay.",
            "We are sorry for the delay; your parcel arrives tomorrow.",
            "Je peux vous aider.",
            "",
        ] {
            assert!(!refuses(text), "{text}");
        }
        let late = format!("{} I cannot help with that.", "word ".repeat(50));
        assert!(!refuses(&late));
    }
}
