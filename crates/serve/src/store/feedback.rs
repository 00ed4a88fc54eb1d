//! Feedback: what a user thought of an answer.

use super::{Database, StoreError};
use rusqlite::{OptionalExtension, named_params};

/// Feedback on one request. Digest and key are those of the request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Feedback {
    /// The request that it is about: 32 hexadecimal digits.
    pub(crate) request_id: String,
    /// From -1 to 1.
    pub(crate) rating: Option<f64>,
    /// What should have been answered.
    pub(crate) correction: Option<String>,
    pub(crate) comment: Option<String>,
    /// Unix seconds.
    pub(crate) time: u64,
    /// Unix seconds after which correction and comment are deleted.
    pub(crate) delete_after: u64,
}

impl Database {
    /// Whether a finished request of that id was made with that key (None: without one).
    pub(crate) fn has_request(&self, id: &str, key_id: Option<i64>) -> Result<bool, StoreError> {
        let mut query = self
            .connection
            .prepare_cached("SELECT 1 FROM usage WHERE request_id = ?1 AND key_id IS ?2")?;
        Ok(query.query_row((id, key_id), |_| Ok(())).optional()?.is_some())
    }

    /// Keeps feedback on a request that is there, with the digest of what answered it.
    pub(crate) fn insert_feedback(&self, feedback: &Feedback) -> Result<(), StoreError> {
        let redacted = |text: &Option<String>| text.as_deref().map(data::redacted);
        let mut insert = self.connection.prepare_cached(
            "INSERT INTO feedback (request_id, digest, rating, correction, comment, time, delete_after)
             SELECT request_id, digest, :rating, :correction, :comment, :time, :delete_after
             FROM usage WHERE request_id = :request_id",
        )?;
        let inserted = insert.execute(named_params! {
            ":request_id": feedback.request_id,
            ":rating": feedback.rating,
            ":correction": redacted(&feedback.correction),
            ":comment": redacted(&feedback.comment),
            ":time": feedback.time.cast_signed(),
            ":delete_after": feedback.delete_after.cast_signed(),
        })?;
        match inserted {
            1 => Ok(()),
            _ => Err(StoreError::Sql(rusqlite::Error::QueryReturnedNoRows)),
        }
    }
}
