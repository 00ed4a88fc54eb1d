//! When two texts count as the same although their bytes differ.

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

/// The form in which texts are compared: compatibility forms folded (Unicode NFKC, UAX #15),
/// lower-case, everything that is neither letter nor digit nor combining mark turned into a space,
/// white space collapsed to single spaces.
///
/// Punctuation becomes a space, not nothing, so that "card;please" and "card; please" agree. A text
/// of symbols alone keeps them, so that "?" and "!" stay different.
pub fn normalise(text: &str) -> String {
    // Lower case can undo the composition ("\u{130}"), hence the second time.
    let folded: String = text.nfkc().flat_map(char::to_lowercase).nfkc().collect();
    let keep = |c: char| c.is_alphanumeric() || is_combining_mark(c);
    let words = collapse(&folded.replace(|c| !keep(c), " "));
    if words.is_empty() { collapse(&folded) } else { words }
}

fn collapse(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cases() {
        fn check(input: &str, expected: &str) {
            assert_eq!(normalise(input), expected, "{input:?}");
        }
        check("  Hello,\tWORLD!\n", "hello world");
        check("card;please", "card please");
        check("can't", "can t");
        check("\u{fb01}ne ① ｆｕｌｌ", "fine 1 full");
        check("E\u{301}te\u{301}", "\u{e9}t\u{e9}");
        check("l’été…", "l été");
        check("हिन्दी", "हिन्दी");
        check("??  !", "?? !");
        check("", "");
        check(" \u{a0} ", "");
    }

    proptest! {
        #[test]
        fn twice_is_once(text in "\\PC{0,40}") {
            let once = normalise(&text);
            prop_assert_eq!(normalise(&once), once);
        }

        #[test]
        fn case_and_spacing_do_not_matter(words in prop::collection::vec("[a-z0-9]{1,6}", 1..6)) {
            let a = words.join(" ");
            let b = format!("  {}.", words.join(", \n")).to_uppercase();
            prop_assert_eq!(normalise(&a), normalise(&b));
        }
    }
}
