//! The most frequent answer, whatever is asked.

use super::Kind;
use indexmap::IndexMap;

pub(super) static KIND: Kind = Kind {
    name: "majority",
    learn: |pairs| {
        let mut counts: IndexMap<&str, usize> = IndexMap::new();
        for (_, answer) in pairs {
            *counts.entry(answer).or_default() += 1;
        }
        // Of several the one that came first.
        let mut best = ("", 0);
        for (answer, count) in counts {
            if count > best.1 {
                best = (answer, count);
            }
        }
        let answer = best.0.to_owned();
        Box::new(move |_| answer.clone())
    },
};
