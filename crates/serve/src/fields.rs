//! A JSON object read field by field, so that nothing in a request goes unnoticed.

use crate::error::ApiError;
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// The fields of a JSON object that are not yet read. Each reader takes its field out;
/// [`Fields::finish`] refuses what is left. A null counts as absent.
#[derive(Debug)]
pub(crate) struct Fields {
    map: Map<String, Value>,
    /// Where the object stands in the request, as `messages[0].`; empty for the request itself.
    path: String,
}

/// A field of OpenAI's that has no effect here, so only values that ask for nothing are accepted.
pub(crate) struct Neutral {
    /// Its name.
    pub(crate) field: &'static str,
    /// Whether a value asks for nothing.
    pub(crate) accepts: fn(&Value) -> bool,
    /// The accepted values in words.
    pub(crate) accepted: &'static str,
}

impl Fields {
    /// Parses a request body.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Fields, ApiError> {
        let text = std::str::from_utf8(bytes).map_err(|e| {
            ApiError::invalid(format!(
                "the body is not UTF-8: byte {} cannot be read. hint: send JSON in UTF-8",
                e.valid_up_to()
            ))
        })?;
        let value: Value = serde_json::from_str(text)
            .map_err(|e| ApiError::invalid(format!("the body is not valid JSON: {e}")))?;
        match value {
            Value::Object(map) => Ok(Fields { map, path: String::new() }),
            other => {
                Err(ApiError::invalid(format!("the body is {}; expected an object", kind(&other))))
            }
        }
    }

    /// An object inside the request, standing at `path`.
    pub(crate) fn nested(value: Value, path: &str) -> Result<Fields, ApiError> {
        match value {
            Value::Object(map) => Ok(Fields { map, path: format!("{path}.") }),
            other => Err(ApiError::field(
                path,
                format!("{path} is {}; expected an object", kind(&other)),
            )),
        }
    }

    /// Full name of a field.
    pub(crate) fn param(&self, field: &str) -> String {
        format!("{}{field}", self.path)
    }

    /// Puts a field in whose value has been read in another shape.
    pub(crate) fn put(&mut self, field: &str, value: Value) {
        self.map.insert(field.to_owned(), value);
    }

    /// Takes a field out.
    pub(crate) fn take(&mut self, field: &str) -> Option<Value> {
        self.map.shift_remove(field).filter(|v| !v.is_null())
    }

    /// Whether a field is there and not yet read.
    pub(crate) fn has(&self, field: &str) -> bool {
        self.map.get(field).is_some_and(|v| !v.is_null())
    }

    fn bad(&self, field: &str, found: &str, expected: &str) -> ApiError {
        let param = self.param(field);
        let message = format!("{param} is {found}; expected {expected}");
        ApiError::field(param, message)
    }

    /// The error for a field of the wrong type.
    pub(crate) fn wrong(&self, field: &str, found: &Value, expected: &str) -> ApiError {
        self.bad(field, &shown(found), expected)
    }

    /// The error for a field that must be there.
    pub(crate) fn missing(&self, field: &str, expected: &str) -> ApiError {
        self.bad(field, "missing", expected)
    }

    pub(crate) fn string(&mut self, field: &str) -> Result<Option<String>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(field, &other, "a string")),
        }
    }

    /// A string that must be there.
    pub(crate) fn required(&mut self, field: &str, expected: &str) -> Result<String, ApiError> {
        self.string(field)?.ok_or_else(|| self.missing(field, expected))
    }

    pub(crate) fn flag(&mut self, field: &str) -> Result<Option<bool>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(self.wrong(field, &other, "true or false")),
        }
    }

    pub(crate) fn float(
        &mut self,
        field: &str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.take(field) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => {
                let expected = format!("a number from {} to {}", range.start(), range.end());
                Err(self.wrong(field, &value, &expected))
            }
        }
    }

    pub(crate) fn integer(
        &mut self,
        field: &str,
        range: RangeInclusive<u64>,
    ) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.take(field) else { return Ok(None) };
        match value.as_u64() {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => {
                let expected = match *range.end() {
                    u64::MAX => format!("a whole number of at least {}", range.start()),
                    end => format!("a whole number from {} to {end}", range.start()),
                };
                Err(self.wrong(field, &value, &expected))
            }
        }
    }

    /// Takes out every field of `table` and refuses values that ask for something.
    pub(crate) fn neutral(&mut self, table: &[Neutral]) -> Result<(), ApiError> {
        for entry in table {
            if let Some(value) = self.take(entry.field)
                && !(entry.accepts)(&value)
            {
                let param = self.param(entry.field);
                let message = format!(
                    "{param} is {}, which this server does not support; accepted: {}. hint: leave it out",
                    shown(&value),
                    entry.accepted
                );
                return Err(ApiError::field(param, message));
            }
        }
        Ok(())
    }

    /// Refuses what nobody has read.
    pub(crate) fn finish(self) -> Result<(), ApiError> {
        match self.map.iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((field, _)) => {
                let param = self.param(&shortened(field));
                let message = format!(
                    "unknown field {param}. hint: leave it out; fields are never silently ignored"
                );
                Err(ApiError::field(param, message))
            }
        }
    }
}

/// A value in an error message: itself when it is short, otherwise its kind.
fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) | Value::Object(_) => kind(value).into(),
        Value::String(text) if text.len() > 40 => kind(value).into(),
        other => other.to_string(),
    }
}

/// A name from outside, short enough for a message.
pub(crate) fn shortened(name: &str) -> String {
    const LONGEST: usize = 80;
    match name.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &name[..end]),
        None => name.to_owned(),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fields(json: &str) -> Fields {
        Fields::parse(json.as_bytes()).unwrap()
    }

    fn text<T: std::fmt::Debug>(result: Result<T, ApiError>) -> String {
        result.unwrap_err().json()
    }

    #[test]
    fn reads_and_names_what_is_wrong() {
        let mut f = fields(r#"{"a": "x", "b": true, "c": 0.5, "d": 3, "e": null, "f": [1]}"#);
        assert_eq!(f.string("a").unwrap().as_deref(), Some("x"));
        assert_eq!(f.flag("b").unwrap(), Some(true));
        assert_eq!(f.float("c", 0.0..=1.0).unwrap(), Some(0.5));
        assert_eq!(f.integer("d", 1..=9).unwrap(), Some(3));
        assert_eq!(f.string("e").unwrap(), None);
        assert_eq!(f.string("absent").unwrap(), None);
        assert!(text(f.finish()).contains("unknown field f"));

        let mut f = fields(r#"{"a": 1, "b": "x", "c": 1.5, "d": -3, "g": 2.0, "h": {}}"#);
        assert!(text(f.string("a")).contains("a is 1; expected a string"));
        assert!(text(f.flag("b")).contains("expected true or false"));
        assert!(text(f.float("c", 0.0..=1.0)).contains("c is 1.5; expected a number from 0 to 1"));
        assert!(text(f.integer("d", 1..=u64::MAX)).contains("at least 1"));
        assert!(text(f.integer("g", 1..=4)).contains("a whole number from 1 to 4"));
        assert!(text(f.string("h")).contains("h is an object"));
        assert!(f.finish().is_ok(), "a field that was refused has been read");
    }

    #[test]
    fn bodies_that_are_no_object_are_refused() {
        let refuse = |body: &[u8], expected: &str| {
            let found = text(Fields::parse(body));
            assert!(found.contains(expected), "{found}");
        };
        refuse(b"", "not valid JSON");
        refuse(b"{", "not valid JSON");
        refuse(b"[]", "a list; expected an object");
        refuse(b"{\"a\": \"\xff\"}", "not UTF-8: byte 7");
        refuse("[".repeat(100_000).as_bytes(), "recursion limit");
        refuse(b"{\"a\": 1e999}", "not valid JSON");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Err(e) = Fields::parse(&bytes) {
                prop_assert!(e.status.is_client_error());
            }
        }
    }
}
