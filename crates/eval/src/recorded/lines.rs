//! Our own form: one JSON object per line with `id` and `answer`, as
//! [`crate::EvalResult::write_answers`] writes them.

use super::{Form, Recorded, Wrong, lines_of};

pub(super) const FORM: Form = Form { is: |_| true, read };

pub(super) fn read(bytes: &[u8]) -> Result<Vec<(usize, Recorded)>, Wrong> {
    let expected = r#"expected {"id": "...", "answer": "..."}"#;
    let parse = |(line, bytes)| {
        let wrong = |reason: String| Wrong { line, reason: format!("{reason}; {expected}") };
        let recorded: Recorded =
            serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
        if recorded.id.is_none() {
            return Err(wrong("missing field `id`".to_owned()));
        }
        if !recorded.is_whole() {
            return Err(wrong(
                "it, or one of its repeats, has neither answer nor error".to_owned(),
            ));
        }
        Ok((line, recorded))
    };
    lines_of(bytes).map(parse).collect()
}
