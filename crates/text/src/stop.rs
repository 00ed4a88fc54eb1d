//! Stop strings over streamed text.

/// Watches streamed text for stop strings.
///
/// The text ends where the first stop string is completed, reading character by character; when two
/// are completed by the same character, the longer one counts. The stop string itself is not given
/// out. This definition does not depend on how the text is cut into pieces, and costs a constant
/// number of steps per byte and stop string (Knuth, Morris and Pratt 1977, doi:10.1137/0206024).
#[derive(Clone, Debug)]
pub struct StopStrings {
    patterns: Vec<Pattern>,
    /// Text that may turn out to be the beginning of a stop string.
    held: String,
    /// Which of `patterns` was completed.
    stopped: Option<usize>,
}

/// What [`StopStrings::push`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopOutcome {
    /// Text that can be given out now.
    pub text: String,
    /// Whether a stop string was completed, in this piece or before.
    pub stopped: bool,
}

impl StopStrings {
    /// Watches for `stops`; empty strings among them are ignored.
    pub fn new(stops: Vec<String>) -> Self {
        let patterns =
            stops.into_iter().filter(|stop| !stop.is_empty()).map(Pattern::new).collect();
        Self { patterns, held: String::new(), stopped: None }
    }

    /// Takes the next piece of text. After a stop, further pieces are dropped.
    pub fn push(&mut self, piece: &str) -> StopOutcome {
        if self.stopped.is_some() {
            return StopOutcome { text: String::new(), stopped: true };
        }
        let offset = self.held.len();
        self.held.push_str(piece);
        for (index, byte) in piece.bytes().enumerate() {
            let longest_match = self
                .patterns
                .iter_mut()
                .enumerate()
                .filter_map(|(i, pattern)| {
                    pattern.advance(byte).then_some((pattern.bytes.len(), i))
                })
                .max();
            if let Some((length, which)) = longest_match {
                self.stopped = Some(which);
                let mut text = std::mem::take(&mut self.held);
                text.truncate(offset + index + 1 - length);
                return StopOutcome { text, stopped: true };
            }
        }
        // A partial match begins where a stop string begins, hence at a character.
        let hold = self.patterns.iter().map(|pattern| pattern.matched).max().unwrap_or(0);
        let held = self.held.split_off(self.held.len() - hold);
        StopOutcome { text: std::mem::replace(&mut self.held, held), stopped: false }
    }

    /// The stop string that ended the text, if one did.
    pub fn which(&self) -> Option<&str> {
        let pattern = &self.patterns[self.stopped?];
        // It was a string when it came.
        std::str::from_utf8(&pattern.bytes).ok()
    }

    /// The text held back, once no more will come; empty after a stop.
    pub fn finish(&mut self) -> String {
        for pattern in &mut self.patterns {
            pattern.matched = 0;
        }
        std::mem::take(&mut self.held)
    }
}

/// One stop string and how much of it the text so far ends with.
#[derive(Clone, Debug)]
struct Pattern {
    bytes: Vec<u8>,
    /// `fallback[i]`: length of the longest proper prefix that also ends `bytes[..=i]`.
    fallback: Vec<usize>,
    matched: usize,
}

impl Pattern {
    fn new(stop: String) -> Self {
        let bytes = stop.into_bytes();
        let mut fallback = vec![0; bytes.len()];
        let mut matched = 0;
        for index in 1..bytes.len() {
            while matched > 0 && bytes[index] != bytes[matched] {
                matched = fallback[matched - 1];
            }
            if bytes[index] == bytes[matched] {
                matched += 1;
            }
            fallback[index] = matched;
        }
        Self { bytes, fallback, matched: 0 }
    }

    /// Reads one byte; true when it completes the stop string.
    fn advance(&mut self, byte: u8) -> bool {
        while self.matched > 0 && self.bytes[self.matched] != byte {
            self.matched = self.fallback[self.matched - 1];
        }
        if self.bytes[self.matched] == byte {
            self.matched += 1;
        }
        self.matched == self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds `pieces` and returns all text given out and whether it stopped.
    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut watcher = StopStrings::new(stops.iter().map(|stop| (*stop).to_owned()).collect());
        let mut text = String::new();
        let mut stopped = false;
        for piece in pieces {
            let outcome = watcher.push(piece);
            text.push_str(&outcome.text);
            stopped = outcome.stopped;
        }
        text.push_str(&watcher.finish());
        (text, stopped)
    }

    #[test]
    fn cases() {
        let check = |stops: &[&str], pieces: &[&str], text: &str, stopped: bool| {
            assert_eq!(run(stops, pieces), (text.to_owned(), stopped), "{stops:?} {pieces:?}");
        };
        check(&[], &["abc", "def"], "abcdef", false);
        check(&[""], &["abc"], "abc", false);
        check(&["\n\n"], &["one\n", "\ntwo"], "one", true);
        check(&["\n\n"], &["one\n", "two\n"], "one\ntwo\n", false);
        check(&["abc", "b"], &["xabc"], "xa", true);
        check(&["bc", "abc"], &["xabc"], "x", true);
        check(&["é"], &["caf", "é au lait"], "caf", true);
        check(&["User:"], &["Us", "e", "r: hi"], "", true);
        check(&["aab"], &["aa", "a", "ab", "c"], "aa", true);
    }

    #[test]
    fn gives_out_at_once_what_cannot_be_a_stop_string() {
        let mut watcher = StopStrings::new(vec!["stop".into()]);
        assert_eq!(watcher.push("no st").text, "no ");
        assert_eq!(watcher.push("ar").text, "star");
        assert_eq!(watcher.push("s").text, "");
        assert_eq!(watcher.finish(), "s");
    }

    #[test]
    fn drops_what_follows_a_stop() {
        let mut watcher = StopStrings::new(vec!["x".into()]);
        assert_eq!(watcher.which(), None);
        assert_eq!(watcher.push("axb"), StopOutcome { text: "a".into(), stopped: true });
        assert_eq!(watcher.which(), Some("x"));
        let mut longest = StopStrings::new(vec!["".into(), "b".into(), "ab".into(), "c".into()]);
        assert!(longest.push("xab").stopped);
        assert_eq!(longest.which(), Some("ab"));
        assert_eq!(watcher.push("c"), StopOutcome { text: String::new(), stopped: true });
        assert_eq!(watcher.finish(), "");
    }

    /// The definition, by search over the whole text.
    fn reference(stops: &[String], text: &str) -> (String, bool) {
        let first = stops
            .iter()
            .filter(|stop| !stop.is_empty())
            .filter_map(|stop| text.find(stop.as_str()).map(|start| (start + stop.len(), start)))
            .min();
        match first {
            Some((_, start)) => (text[..start].to_owned(), true),
            None => (text.to_owned(), false),
        }
    }

    proptest! {
        #[test]
        fn streamed_equals_batch(
            stops in prop::collection::vec("[abé]{0,4}", 0..4),
            pieces in prop::collection::vec("[abcé]{0,5}", 0..12),
        ) {
            let stop_refs: Vec<&str> = stops.iter().map(String::as_str).collect();
            let piece_refs: Vec<&str> = pieces.iter().map(String::as_str).collect();
            prop_assert_eq!(run(&stop_refs, &piece_refs), reference(&stops, &pieces.concat()));
        }
    }
}
