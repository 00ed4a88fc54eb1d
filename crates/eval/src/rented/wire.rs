//! The two shapes in which rented models are asked and answer. A third is one more [`Protocol`] and one
//! more arm in each function here.

use super::Endpoint;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use text::Conversation;

/// Whose shapes an endpoint speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// OpenAI's `/chat/completions`, which most hosts speak.
    Openai,
    /// Anthropic's `/v1/messages`.
    Anthropic,
}

/// What a response says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Parsed {
    pub(super) text: String,
    pub(super) stopped: Option<bool>,
    /// The model as the endpoint names it.
    pub(super) model: Option<String>,
    /// As the endpoint counted, unchanged.
    pub(super) usage: Option<Value>,
}

/// Tokens of a request as the endpoint counted them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Prompt tokens in all, cached ones included.
    pub(super) input: Option<usize>,
    pub(super) cached: Option<usize>,
    pub(super) cache_write: Option<usize>,
    pub(super) output: Option<usize>,
}

/// Address and headers, without the key's.
pub(super) fn address(endpoint: &Endpoint) -> String {
    let url = &endpoint.url;
    match endpoint.protocol {
        Protocol::Openai => format!("{url}/chat/completions"),
        Protocol::Anthropic if url.ends_with("/v1") => format!("{url}/messages"),
        Protocol::Anthropic => format!("{url}/v1/messages"),
    }
}

/// The headers of a request, the key's among them.
pub(super) fn headers(endpoint: &Endpoint) -> Vec<(&'static str, String)> {
    let secret = endpoint.key.as_ref().map(|key| key.secret.clone());
    match endpoint.protocol {
        Protocol::Openai => {
            secret.map(|s| ("authorization", format!("Bearer {s}"))).into_iter().collect()
        }
        Protocol::Anthropic => {
            let version = ("anthropic-version", "2023-06-01".to_owned());
            secret.map(|s| ("x-api-key", s)).into_iter().chain([version]).collect()
        }
    }
}

/// The body of a request: ours, then the endpoint's own parameters, then without what it does not take.
pub(super) fn request(endpoint: &Endpoint, conversation: &Conversation) -> Value {
    let turns = conversation.messages.iter();
    let is_system = |role: &str| matches!(role, "system" | "developer");
    let message = |role: &str, content: &str| json!({ "role": role, "content": content });
    let mut body = Map::new();
    body.insert("model".into(), endpoint.model.clone().into());
    match endpoint.protocol {
        Protocol::Openai => {
            let all: Vec<Value> = turns.map(|m| message(&m.role, &m.content)).collect();
            body.insert("messages".into(), all.into());
        }
        Protocol::Anthropic => {
            let system: Vec<&str> =
                turns.clone().filter(|m| is_system(&m.role)).map(|m| m.content.as_str()).collect();
            if !system.is_empty() {
                body.insert("system".into(), system.join("\n\n").into());
            }
            let said = turns.filter(|m| !is_system(&m.role));
            let said: Vec<Value> = said.map(|m| message(&m.role, &m.content)).collect();
            body.insert("messages".into(), said.into());
        }
    }
    body.insert("temperature".into(), 0.into());
    // The newer name of the same bound replaces the older.
    if !endpoint.parameters.contains_key("max_completion_tokens") {
        body.insert("max_tokens".into(), endpoint.max_tokens.into());
    }
    body.extend(endpoint.parameters.clone());
    for field in &endpoint.omit {
        body.remove(field);
    }
    body.into()
}

/// What a response says; the reason when it is none.
pub(super) fn response(protocol: Protocol, body: &str) -> Result<Parsed, String> {
    let body: Value =
        serde_json::from_str(body).map_err(|error| format!("the answer is not JSON: {error}"))?;
    let model = body["model"].as_str().map(str::to_owned);
    let usage = body.get("usage").filter(|usage| usage.is_object()).cloned();
    let (text, end, own_end) = match protocol {
        Protocol::Openai => {
            let choice = body["choices"].get(0).ok_or("the answer has no choices")?;
            let message = &choice["message"];
            let text = message["content"].as_str().or(message["refusal"].as_str());
            if text.is_none() && !message.is_object() {
                return Err("the answer's first choice has no message".to_owned());
            }
            (text.unwrap_or_default().to_owned(), &choice["finish_reason"], &["stop"][..])
        }
        Protocol::Anthropic => {
            let parts = body["content"].as_array().ok_or("the answer has no content")?;
            let text = parts.iter().filter_map(|part| part["text"].as_str()).collect::<String>();
            (text, &body["stop_reason"], &["end_turn", "stop_sequence", "refusal"][..])
        }
    };
    let stopped = end.as_str().map(|end| own_end.contains(&end));
    Ok(Parsed { text, stopped, model, usage })
}

/// The counts of a `usage`, in either shape. Anthropic's `input_tokens` leave out what was cached.
pub(super) fn counts(protocol: Protocol, usage: &Value) -> Counts {
    let count = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok());
    match protocol {
        Protocol::Openai => Counts {
            input: count(&usage["prompt_tokens"]),
            cached: count(&usage["prompt_tokens_details"]["cached_tokens"]),
            cache_write: None,
            output: count(&usage["completion_tokens"]),
        },
        Protocol::Anthropic => {
            let cached = count(&usage["cache_read_input_tokens"]);
            let cache_write = count(&usage["cache_creation_input_tokens"]);
            let rest = cached.unwrap_or(0).saturating_add(cache_write.unwrap_or(0));
            let input = count(&usage["input_tokens"]).map(|plain| plain.saturating_add(rest));
            Counts { input, cached, cache_write, output: count(&usage["output_tokens"]) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use text::Message;

    fn endpoint(protocol: Protocol) -> Endpoint {
        Endpoint::new("https://x.example/v1/", protocol, "m", None)
    }

    fn conversation() -> Conversation {
        Conversation::new(vec![Message::new("system", "be brief"), Message::new("user", "hi")])
    }

    #[test]
    fn requests_have_the_shape_of_their_protocol() {
        let openai = endpoint(Protocol::Openai);
        assert_eq!(address(&openai), "https://x.example/v1/chat/completions");
        assert_eq!(
            request(&openai, &conversation()),
            json!({"model": "m", "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}],
                "temperature": 0, "max_tokens": 256})
        );
        let anthropic = endpoint(Protocol::Anthropic);
        assert_eq!(address(&anthropic), "https://x.example/v1/messages");
        assert_eq!(
            request(&anthropic, &conversation()),
            json!({"model": "m", "system": "be brief", "messages": [{"role": "user", "content": "hi"}],
                "temperature": 0, "max_tokens": 256})
        );
        let mut newer = openai;
        newer.parameters.insert("max_completion_tokens".into(), 99.into());
        newer.omit.push("temperature".into());
        let body = request(&newer, &conversation());
        assert_eq!(body["max_completion_tokens"], 99);
        assert!(body.get("max_tokens").is_none() && body.get("temperature").is_none());
    }

    #[test]
    fn answers_and_counts_are_read_in_both_shapes() {
        let body = r#"{"model": "m-2026", "choices": [{"message": {"content": "hello"}, "finish_reason": "length"}],
            "usage": {"prompt_tokens": 12, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 8}}}"#;
        let parsed = response(Protocol::Openai, body).unwrap();
        assert_eq!((parsed.text.as_str(), parsed.stopped), ("hello", Some(false)));
        assert_eq!(parsed.model.as_deref(), Some("m-2026"));
        let counts_of =
            |protocol, parsed: &Parsed| counts(protocol, parsed.usage.as_ref().unwrap());
        let expected =
            Counts { input: Some(12), cached: Some(8), cache_write: None, output: Some(3) };
        assert_eq!(counts_of(Protocol::Openai, &parsed), expected);
        let body = r#"{"content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}], "stop_reason": "end_turn",
            "usage": {"input_tokens": 4, "cache_read_input_tokens": 6, "cache_creation_input_tokens": 2, "output_tokens": 3}}"#;
        let parsed = response(Protocol::Anthropic, body).unwrap();
        assert_eq!((parsed.text.as_str(), parsed.stopped), ("hello", Some(true)));
        let expected =
            Counts { input: Some(12), cached: Some(6), cache_write: Some(2), output: Some(3) };
        assert_eq!(counts_of(Protocol::Anthropic, &parsed), expected);
    }

    #[test]
    fn what_is_no_answer_is_said() {
        for (protocol, body, said) in [
            (Protocol::Openai, "<html>", "not JSON"),
            (Protocol::Openai, "{}", "no choices"),
            (Protocol::Openai, r#"{"choices": [{}]}"#, "no message"),
            (Protocol::Anthropic, r#"{"content": "x"}"#, "no content"),
        ] {
            assert!(response(protocol, body).unwrap_err().contains(said), "{body}");
        }
        // A refusal is an answer, and so is an empty one.
        let refusal = r#"{"choices": [{"message": {"content": null, "refusal": "no"}}]}"#;
        assert_eq!(response(Protocol::Openai, refusal).unwrap().text, "no");
        let odd = json!({"prompt_tokens": -1, "completion_tokens": "x"});
        assert_eq!(counts(Protocol::Openai, &odd), Counts::default());
    }
}
