//! The fields that chat and text completions share: how to sample and how to answer.

use crate::error::ApiError;
use crate::fields::{Fields, Neutral};
use crate::structured::Structured;
use engine::SamplingParams;
use serde_json::Value;

/// The shared fields, read and checked.
#[derive(Clone, Debug)]
pub(crate) struct Sampling {
    params: SamplingParams,
    /// Most tokens to generate; None when the request names none.
    pub(crate) max_tokens: Option<usize>,
    /// Strings that end the text.
    pub(crate) stop: Vec<String>,
    /// Choices per prompt.
    pub(crate) n: usize,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    /// The form that the answer must have.
    pub(crate) structured: Option<Structured>,
}

/// Most stop strings, as in OpenAI's API.
const MAX_STOPS: usize = 4;

impl Sampling {
    /// Reads the fields; at most `max_choices` choices per prompt.
    pub(crate) fn read(fields: &mut Fields, max_choices: usize) -> Result<Sampling, ApiError> {
        let temperature = fields.float("temperature", 0.0..=2.0)?.unwrap_or(1.0) as f32;
        let top_k = fields.integer("top_k", 0..=u64::MAX)?.unwrap_or(0);
        let params = SamplingParams {
            temperature,
            top_p: positive(fields.float("top_p", 0.0..=1.0)?.unwrap_or(1.0)),
            top_k: saturating(top_k),
            min_p: fields.float("min_p", 0.0..=1.0)?.unwrap_or(0.0) as f32,
            typical_p: positive(fields.float("typical_p", 0.0..=1.0)?.unwrap_or(1.0)),
            repetition_penalty: positive(
                fields.float("repetition_penalty", 0.0..=10.0)?.unwrap_or(1.0),
            ),
            presence_penalty: fields.float("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0) as f32,
            frequency_penalty: fields.float("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0) as f32,
            logit_bias: logit_bias(fields)?,
            max_tokens: 1,
            seed: seed(fields)?,
            ignore_eos: fields.flag("ignore_eos")?.unwrap_or(false),
            ..SamplingParams::default()
        };
        let stream = fields.flag("stream")?.unwrap_or(false);
        Ok(Sampling {
            params,
            max_tokens: max_tokens(fields)?,
            stop: stops(fields)?,
            n: saturating(fields.integer("n", 1..=max_choices as u64)?.unwrap_or(1)),
            stream,
            include_usage: include_usage(fields, stream)?,
            structured: Structured::read(fields)?,
        })
    }

    /// One choice with these parameters, for endpoints that name their fields otherwise.
    pub(crate) fn one(
        params: SamplingParams,
        max_tokens: Option<usize>,
        stop: Vec<String>,
        stream: bool,
    ) -> Sampling {
        let (n, include_usage, structured) = (1, true, None);
        Sampling { params, max_tokens, stop, n, stream, include_usage, structured }
    }

    /// Tells the log probabilities of the answer's tokens, with those of `top` others beside each;
    /// where `prompt` says so, those of the prompt's too.
    pub(crate) fn tell_logprobs(&mut self, top: usize, prompt: bool) {
        self.params.logprobs = Some(top);
        self.params.prompt_logprobs = prompt;
    }

    /// Whether log probabilities are told.
    pub(crate) fn tells_logprobs(&self) -> bool {
        self.params.logprobs.is_some()
    }

    /// Parameters of choice `index`: the first has the request's seed itself.
    pub(crate) fn params(
        &self,
        index: usize,
        max_tokens: usize,
        stop_ids: &[u32],
    ) -> SamplingParams {
        SamplingParams {
            // An odd step visits every seed once.
            seed: self.params.seed.wrapping_add((index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            max_tokens: self.max_tokens.unwrap_or(max_tokens),
            stop_ids: stop_ids.to_vec(),
            ..self.params.clone()
        }
    }
}

/// Fields of OpenAI's on both endpoints that have no effect here.
pub(crate) const COMMON: &[Neutral] =
    &[Neutral { field: "user", accepts: Value::is_string, accepted: "a string" }];

pub(crate) fn is_false(value: &Value) -> bool {
    value.as_bool() == Some(false)
}

pub(crate) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

pub(crate) fn never(_: &Value) -> bool {
    false
}

/// The smallest positive number for 0: clients may send it where the engine wants more than that, and
/// of a share it keeps one token just as well.
pub(crate) fn positive(value: f64) -> f32 {
    (value as f32).max(f32::MIN_POSITIVE)
}

pub(crate) fn saturating(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// Any 64-bit integer; random when absent.
fn seed(fields: &mut Fields) -> Result<u64, ApiError> {
    match fields.take("seed") {
        None => Ok(rand::random()),
        Some(value) => value
            .as_u64()
            .or_else(|| value.as_i64().map(i64::cast_unsigned))
            .ok_or_else(|| fields.wrong("seed", &value, "a whole number of 64 bits")),
    }
}

/// Most tokens that may have a bias.
const MAX_BIASES: usize = 1024;

/// Token ids (as JSON wants them: in quotes) to numbers from -100 to 100.
fn logit_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    let Some(value) = fields.take("logit_bias") else { return Ok(Vec::new()) };
    let biases = value.as_object().filter(|map| map.len() <= MAX_BIASES).and_then(|map| {
        let bias = |(token, bias): (&String, &Value)| {
            let bias = bias.as_f64().filter(|b| (-100.0..=100.0).contains(b))?;
            Some((token.parse::<u32>().ok()?, bias as f32))
        };
        map.iter().map(bias).collect()
    });
    let expected =
        format!("an object of at most {MAX_BIASES} token ids with numbers from -100 to 100");
    biases.ok_or_else(|| fields.wrong("logit_bias", &value, &expected))
}

/// `max_completion_tokens`, or its older name. 0 is for prompts that are only scored.
fn max_tokens(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let old = fields.integer("max_tokens", 0..=u64::MAX)?;
    let new = fields.integer("max_completion_tokens", 1..=u64::MAX)?;
    match (old, new) {
        (Some(old), Some(new)) if old != new => Err(ApiError::field(
            "max_tokens",
            format!(
                "max_tokens is {old}, max_completion_tokens is {new}; expected one of them. hint: \
                 leave out max_tokens, its older name"
            ),
        )),
        (old, new) => Ok(new.or(old).map(saturating)),
    }
}

fn stops(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let expected = format!("a string or a list of at most {MAX_STOPS} strings, none empty");
    let Some(value) = fields.take("stop") else { return Ok(Vec::new()) };
    let list = match &value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Array(list) => list.iter().map(|v| v.as_str().map(str::to_owned)).collect(),
        _ => None,
    };
    list.filter(|l| l.len() <= MAX_STOPS && l.iter().all(|s| !s.is_empty()))
        .ok_or_else(|| fields.wrong("stop", &value, &expected))
}

fn include_usage(fields: &mut Fields, stream: bool) -> Result<bool, ApiError> {
    let Some(value) = fields.take("stream_options") else { return Ok(false) };
    if !stream {
        let message =
            "stream_options is only for streams. hint: set stream to true or leave it out";
        return Err(ApiError::field("stream_options", message));
    }
    let mut options = Fields::nested(value, "stream_options")?;
    let include_usage = options.flag("include_usage")?.unwrap_or(false);
    options.neutral(&[Neutral {
        field: "include_obfuscation",
        accepts: is_false,
        accepted: "false",
    }])?;
    options.finish()?;
    Ok(include_usage)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Sampling, ApiError> {
        Sampling::read(&mut Fields::parse(json.as_bytes()).unwrap(), 8)
    }

    #[test]
    fn defaults_are_openai_s() {
        let s = read("{}").unwrap();
        let p = s.params(0, 77, &[9]);
        assert_eq!((p.temperature, p.top_p, p.top_k, p.max_tokens), (1.0, 1.0, 0, 77));
        assert_eq!((s.n, s.stream, s.include_usage, p.stop_ids), (1, false, false, vec![9]));
        assert!(s.stop.is_empty());
        assert_ne!(read("{}").unwrap().params.seed, s.params.seed, "random seeds differ");
    }

    #[test]
    fn values_are_read() {
        let s = read(
            r#"{"temperature": 0, "top_p": 0, "max_completion_tokens": 5, "max_tokens": 5, "n": 3,
                "stop": ["a", "b"], "seed": -1, "stream": true,
                "stream_options": {"include_usage": true, "include_obfuscation": false}}"#,
        )
        .unwrap();
        let p = s.params(0, 77, &[]);
        assert_eq!((p.temperature, p.max_tokens, p.seed), (0.0, 5, u64::MAX));
        assert!(p.top_p > 0.0);
        assert_eq!((s.n, s.stop.len(), s.stream, s.include_usage), (3, 2, true, true));
        assert_ne!(s.params(1, 1, &[]).seed, p.seed);
        let s = read(
            r#"{"min_p": 0.1, "typical_p": 0.9, "repetition_penalty": 1.1, "presence_penalty": -2,
                "frequency_penalty": 2, "logit_bias": {"7": -100, "9": 0.5}}"#,
        );
        let p = s.unwrap().params(0, 1, &[]);
        assert_eq!((p.min_p, p.typical_p, p.repetition_penalty), (0.1, 0.9, 1.1));
        assert_eq!((p.presence_penalty, p.frequency_penalty), (-2.0, 2.0));
        assert_eq!(p.logit_bias, [(7, -100.0), (9, 0.5)]);
        assert_eq!(read(r#"{"stop": "x"}"#).unwrap().stop, ["x"]);
        assert_eq!(read(r#"{"stop": null}"#).unwrap().stop, [""; 0]);
    }

    #[test]
    fn what_cannot_be_honoured_names_its_field() {
        for (json, field) in [
            (r#"{"temperature": 2.5}"#, "temperature"),
            (r#"{"temperature": "hot"}"#, "temperature"),
            (r#"{"top_p": -0.1}"#, "top_p"),
            (r#"{"top_k": -1}"#, "top_k"),
            (r#"{"max_tokens": -1}"#, "max_tokens"),
            (r#"{"max_completion_tokens": 0}"#, "max_completion_tokens"),
            (r#"{"min_p": 1.5}"#, "min_p"),
            (r#"{"typical_p": -1}"#, "typical_p"),
            (r#"{"repetition_penalty": -1}"#, "repetition_penalty"),
            (r#"{"presence_penalty": 2.5}"#, "presence_penalty"),
            (r#"{"frequency_penalty": "x"}"#, "frequency_penalty"),
            (r#"{"logit_bias": {"a": 1}}"#, "logit_bias"),
            (r#"{"logit_bias": {"1": 101}}"#, "logit_bias"),
            (r#"{"logit_bias": [1]}"#, "logit_bias"),
            (r#"{"max_tokens": 1.5}"#, "max_tokens"),
            (r#"{"max_tokens": 1, "max_completion_tokens": 2}"#, "max_tokens"),
            (r#"{"n": 0}"#, "n"),
            (r#"{"n": 9}"#, "n"),
            (r#"{"n": 1000000000000000000000}"#, "n"),
            (r#"{"stop": ["a", "b", "c", "d", "e"]}"#, "stop"),
            (r#"{"stop": [""]}"#, "stop"),
            (r#"{"stop": [1]}"#, "stop"),
            (r#"{"stop": 7}"#, "stop"),
            (r#"{"seed": 1.5}"#, "seed"),
            (r#"{"stream": 1}"#, "stream"),
            (r#"{"stream_options": {}}"#, "stream_options"),
            (r#"{"stream": true, "stream_options": {"x": 1}}"#, "stream_options.x"),
            (r#"{"stream": true, "stream_options": 3}"#, "stream_options"),
        ] {
            let error = read(json).unwrap_err().json();
            assert!(error.contains(&format!(r#""param":"{field}""#)), "{json}: {error}");
        }
    }
}
