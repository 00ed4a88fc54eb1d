//! Prompts and answers of keys that have them kept, without the personal data that is recognised,
//! and only for the key's days.

use super::{Database, StoreError};
use rusqlite::{Row, named_params};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// An answer as it was given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Its text.
    pub text: String,
    /// `stop` or `length`; None where it did not come to its end.
    pub finish_reason: Option<String>,
}

/// What was said in a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Contents {
    /// What was asked: `{"messages": [...], "tools": [...]}`, or `{"prompt": ...}` of plain text.
    pub(crate) asked: Value,
    /// The answers, one for each choice.
    pub(crate) answers: Vec<Answer>,
    /// Unix seconds after which it is deleted.
    pub(crate) delete_after: u64,
}

/// Kept contents with the newest feedback on them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Kept {
    /// 32 hexadecimal digits.
    pub request_id: String,
    /// The name in `model`.
    pub model: String,
    /// Which weights that was.
    pub digest: String,
    /// `ok`, `cancelled`, or the code of an error.
    pub outcome: String,
    /// What was asked: `{"messages": [...], "tools": [...]}`, or `{"prompt": ...}` of plain text.
    pub asked: Value,
    /// The answers, one for each choice.
    pub answers: Vec<Answer>,
    /// From -1 to 1.
    pub rating: Option<f64>,
    /// What should have been answered.
    pub correction: Option<String>,
}

impl Database {
    /// Keeps what was said. Personal data is taken out here, so that none reaches the file.
    pub(crate) fn insert_contents(&self, id: &str, said: &Contents) -> Result<(), StoreError> {
        let mut asked = said.asked.clone();
        redact(&mut asked);
        let redacted =
            |answer: &Answer| Answer { text: data::redacted(&answer.text), ..answer.clone() };
        let answers: Vec<Answer> = said.answers.iter().map(redacted).collect();
        let mut insert = self.connection.prepare_cached(
            "INSERT INTO contents VALUES (:request_id, :asked, :answers, :delete_after)",
        )?;
        insert.execute(named_params! {
            ":request_id": id,
            ":asked": asked.to_string(),
            ":answers": serde_json::json!(answers).to_string(),
            ":delete_after": said.delete_after.cast_signed(),
        })?;
        Ok(())
    }

    /// Deletes what is to be deleted by `now`, Unix seconds: contents, and the words of feedback.
    /// Returns how many rows were.
    pub(crate) fn delete_expired_contents(&self, now: u64) -> Result<usize, StoreError> {
        let now = [now.cast_signed()];
        let contents =
            self.connection.execute("DELETE FROM contents WHERE delete_after <= ?1", now)?;
        let words = self.connection.execute(
            "UPDATE feedback SET correction = NULL, comment = NULL
             WHERE delete_after <= ?1 AND (correction IS NOT NULL OR comment IS NOT NULL)",
            now,
        )?;
        Ok(contents + words)
    }

    /// All contents that are there at `now` (Unix seconds), in the order of the requests, each with
    /// the newest rating and the newest correction given to it.
    ///
    /// # Errors
    /// [`StoreError::Sql`].
    pub fn kept(&self, now: u64) -> Result<Vec<Kept>, StoreError> {
        let mut query = self.connection.prepare(
            "SELECT request_id, model, usage.digest, outcome, asked, answers,
                 (SELECT rating FROM feedback f WHERE f.request_id = contents.request_id
                      AND rating IS NOT NULL ORDER BY f.id DESC LIMIT 1),
                 (SELECT correction FROM feedback f WHERE f.request_id = contents.request_id
                      AND correction IS NOT NULL ORDER BY f.id DESC LIMIT 1)
             FROM contents JOIN usage USING (request_id)
             WHERE contents.delete_after > ?1 ORDER BY usage.id",
        )?;
        let rows = query.query_map([now.cast_signed()], |row| {
            Ok(Kept {
                request_id: row.get(0)?,
                model: row.get(1)?,
                digest: row.get(2)?,
                outcome: row.get(3)?,
                asked: json(row, 4)?,
                answers: json(row, 5)?,
                rating: row.get(6)?,
                correction: row.get(7)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

/// A column that holds JSON.
fn json<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(|e| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(e))
    })
}

/// Takes personal data out of all texts in a value.
fn redact(value: &mut Value) {
    match value {
        Value::String(text) => *text = data::redacted(text),
        Value::Array(list) => list.iter_mut().for_each(redact),
        Value::Object(map) => map.values_mut().for_each(redact),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Feedback;
    use crate::store::usage::tests::record;
    use serde_json::json;

    #[test]
    fn contents_are_kept_without_personal_data_and_only_for_their_time() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(dir.path()).unwrap();
        let said = |text: &str| Answer { text: text.into(), finish_reason: Some("stop".into()) };
        for (id, delete_after) in [("a", 100), ("b", 200)] {
            database.insert_usage(&record(id, None, 1)).unwrap();
            let contents = Contents {
                asked: json!({"messages": [{"role": "user", "content": "I am ann@firm.eu"}]}),
                answers: vec![said("Call 06 12 34 56 78"), said("No")],
                delete_after,
            };
            database.insert_contents(id, &contents).unwrap();
        }
        let feedback = |rating, correction: Option<&str>| Feedback {
            request_id: "b".into(),
            rating,
            correction: correction.map(str::to_owned),
            comment: Some("bob@firm.eu says so".into()),
            time: 5,
            delete_after: 150,
        };
        let give = |f: Feedback| database.insert_feedback(&f).unwrap();
        give(feedback(Some(1.0), Some("Better: bob@firm.eu")));
        give(feedback(Some(-1.0), None));

        let kept = database.kept(10).unwrap();
        assert_eq!(kept.iter().map(|k| k.request_id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!((kept[0].rating, &kept[0].correction), (None, &None));
        assert_eq!(kept[1].rating, Some(-1.0), "the newest");
        assert_eq!(kept[1].correction.as_deref(), Some("Better: [e-mail address]"));
        let asked = json!({"messages": [{"role": "user", "content": "I am [e-mail address]"}]});
        assert_eq!(kept[1].asked, asked);
        assert_eq!(kept[1].answers, [said("Call [phone number]"), said("No")]);

        assert_eq!(database.kept(100).unwrap().len(), 1, "unseen once its time is over");
        assert_eq!(database.delete_expired_contents(150).unwrap(), 3);
        let kept = database.kept(10).unwrap();
        assert_eq!((kept.len(), kept[0].rating, &kept[0].correction), (1, Some(-1.0), &None));
        assert_eq!(database.delete_expired_contents(150).unwrap(), 0);
        drop(database);
        let bytes = std::fs::read(dir.path().join(crate::store::STATE_FILE)).unwrap();
        for gone in ["firm.eu", "12 34", "Better"] {
            let found = bytes.windows(gone.len()).any(|w| w == gone.as_bytes());
            assert!(!found, "{gone} stands in the file");
        }
    }
}
