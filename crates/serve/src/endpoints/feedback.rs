//! `POST /v1/feedback`: what a user thought of an answer. 200 means that it is committed.

use crate::caller::Caller;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::server::Body;
use crate::state::{State as Shared, unix_seconds};
use crate::store::{Feedback, RETENTION_DAYS};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{MethodRouter, post};
use serde::Serialize;
use serde_json::Value;
use std::sync::Arc;

pub(crate) fn route() -> MethodRouter<Arc<Shared>> {
    post(feedback)
}

#[derive(Serialize)]
struct Accepted {
    object: &'static str,
    /// The request that it is about.
    request_id: String,
}

async fn feedback(
    State(state): State<Arc<Shared>>,
    caller: Caller,
    Body(fields): Body,
) -> Result<Json<Accepted>, ApiError> {
    let given = FeedbackRequest::read(fields)?;
    let (id, key_id) = (given.id.clone(), caller.key_id());
    let known = state.store.read(|database| database.has_request(&id, key_id));
    if !known.map_err(|e| ApiError::store(&e))? {
        let message = "no finished request of this key has that id. hint: it is the answer's id, or \
                       the header x-request-id";
        let error = ApiError::client(StatusCode::NOT_FOUND, "request_not_found", message);
        return Err(error.with_param(given.named_by));
    }
    let now = unix_seconds();
    let days = u64::from(caller.retention_days().unwrap_or(RETENTION_DAYS));
    let feedback = Feedback {
        request_id: given.id,
        rating: given.rating,
        correction: given.correction,
        comment: given.comment,
        time: now,
        delete_after: now + days * 86_400,
    };
    let written = state.store.write(move |database| database.insert_feedback(&feedback)).await;
    written.map_err(|e| ApiError::store(&e))?;
    Ok(Json(Accepted { object: "feedback", request_id: id }))
}

/// The request, read and checked.
#[derive(Debug)]
struct FeedbackRequest {
    /// 32 hexadecimal digits where it is one of ours at all.
    id: String,
    /// The field that it came in.
    named_by: &'static str,
    rating: Option<f64>,
    correction: Option<String>,
    comment: Option<String>,
}

impl FeedbackRequest {
    fn read(mut fields: Fields) -> Result<FeedbackRequest, ApiError> {
        let (answer, request) = (fields.string("id")?, fields.string("request_id")?);
        let (id, named_by) = match (answer, request) {
            (Some(id), None) => (id, "id"),
            (None, Some(id)) => (id, "request_id"),
            (None, None) => return Err(fields.missing("id", "the id of an answer")),
            (Some(_), Some(_)) => {
                let message = "id and request_id are both given; expected one of them";
                return Err(ApiError::field("request_id", message));
            }
        };
        // An answer's id is the request's behind a mark, such as `chatcmpl-`.
        let start = id.rfind(['-', '_']).map_or(0, |mark| mark + 1);
        let given = FeedbackRequest {
            id: id[start..].to_owned(),
            named_by,
            rating: rating(&mut fields)?,
            correction: fields.string("correction")?,
            comment: fields.string("comment")?,
        };
        if given.rating.is_none() && given.correction.is_none() && given.comment.is_none() {
            let expected = "a rating, a correction or a comment";
            return Err(fields.missing("rating", expected));
        }
        fields.finish()?;
        Ok(given)
    }
}

/// A number from -1 to 1, or a thumb.
fn rating(fields: &mut Fields) -> Result<Option<f64>, ApiError> {
    let expected = "a number from -1 to 1, \"up\" or \"down\"";
    match fields.take("rating") {
        None => Ok(None),
        Some(Value::String(word)) if word == "up" => Ok(Some(1.0)),
        Some(Value::String(word)) if word == "down" => Ok(Some(-1.0)),
        Some(value) => match value.as_f64() {
            Some(number) if (-1.0..=1.0).contains(&number) => Ok(Some(number)),
            _ => Err(fields.wrong("rating", &value, expected)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<FeedbackRequest, ApiError> {
        FeedbackRequest::read(Fields::parse(json.as_bytes()).unwrap())
    }

    #[test]
    fn ratings_are_numbers_or_thumbs_and_ids_lose_their_mark() {
        for (json, id, rating) in [
            (r#"{"id": "chatcmpl-0a", "rating": "up"}"#, "0a", Some(1.0)),
            (r#"{"id": "msg_0a", "rating": "down"}"#, "0a", Some(-1.0)),
            (r#"{"request_id": "0a", "rating": -0.5}"#, "0a", Some(-0.5)),
            (r#"{"id": "cmpl-", "correction": "x"}"#, "", None),
        ] {
            let given = read(json).unwrap();
            assert_eq!((given.id.as_str(), given.rating), (id, rating), "{json}");
        }
        for (json, param) in [
            (r#"{"rating": 1}"#, "id"),
            (r#"{"id": "a"}"#, "rating"),
            (r#"{"id": "a", "request_id": "a", "rating": 1}"#, "request_id"),
            (r#"{"id": "a", "rating": 1.5}"#, "rating"),
            (r#"{"id": "a", "rating": "good"}"#, "rating"),
            (r#"{"id": "a", "rating": true}"#, "rating"),
            (r#"{"id": 7, "rating": 1}"#, "id"),
            (r#"{"id": "a", "comment": []}"#, "comment"),
            (r#"{"id": "a", "rating": 1, "score": 2}"#, "score"),
        ] {
            let error = read(json).expect_err(json).json();
            assert!(error.contains(&format!(r#""param":"{param}""#)), "{json}: {error}");
        }
    }
}
