//! The answer is JSON of a given schema.

use super::{Family, Metric, Score, json};
use jsonschema::Validator;

/// `json_schema:FILE`: 1 when the whole answer is one JSON value that the JSON Schema of the file
/// accepts, else 0. The draft is the one that `$schema` names, 2020-12 by default; a `$ref` to
/// another file or to the network is refused when the schema is read.
pub(super) static FAMILY: Family = Family {
    name: "json_schema",
    parameter: "FILE",
    what: "The share of answers that are JSON of the schema.",
    example: concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/metrics/ticket.schema.json"),
    build,
};

/// Bytes that a schema may take.
const MOST_BYTES: u64 = 4 << 20;

fn build(path: &str) -> Result<Metric, String> {
    let bytes = std::fs::metadata(path).map_err(|error| format!("{path}: {error}"))?.len();
    if bytes > MOST_BYTES {
        return Err(format!("{path}: found {bytes} bytes, expected at most {MOST_BYTES}"));
    }
    let text = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    let schema: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| format!("{path}: not JSON: {error}"))?;
    let validator =
        jsonschema::validator_for(&schema).map_err(|error| format!("{path}: {error}"))?;
    let validator: &'static Validator = Box::leak(Box::new(validator));
    let valid = move |answer: &str, _: &str| {
        f64::from(json::parse(answer).is_some_and(|value| validator.is_valid(&value)))
    };
    Ok(Metric {
        what: FAMILY.what,
        reads_as: "of the answers valid by the schema",
        score: Score::Text(Box::leak(Box::new(valid))),
        examples: if path == FAMILY.example { EXAMPLES } else { &[] },
        ..Metric::BINARY
    })
}

const EXAMPLES: &[(&str, &str, f64)] = &[
    (r#"{"appliance": "oven", "urgent": true}"#, "", 1.0),
    (r#" {"appliance": "oven", "urgent": false, "note": null} "#, "", 1.0),
    (r#"{"appliance": "oven"}"#, "", 0.0),
    (r#"{"appliance": "", "urgent": true}"#, "", 0.0),
    (r#"{"appliance": "oven", "urgent": "yes"}"#, "", 0.0),
    ("oven", "", 0.0),
];
