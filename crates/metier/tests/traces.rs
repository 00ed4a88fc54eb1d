//! A server built with the feature `otel`, as tests build it (Cargo.toml), and a collector that takes what it sends.
#![cfg(unix)]

mod common;

use axum::Json;
use axum::extract::State;
use axum::routing::post;
use common::serving::{METIER, Serving};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

type Spans = Arc<Mutex<Vec<Value>>>;

/// Takes OTLP in JSON, as a collector does; the address, and what came.
async fn collector() -> (String, Spans) {
    async fn take(State(spans): State<Spans>, Json(body): Json<Value>) -> Json<Value> {
        for resource in body["resourceSpans"].as_array().unwrap() {
            let names = resource["resource"]["attributes"].as_array().unwrap();
            let service = json!({"key": "service.name", "value": {"stringValue": "metier"}});
            assert!(names.contains(&service), "{names:?}");
            for scope in resource["scopeSpans"].as_array().unwrap() {
                spans.lock().unwrap().extend(scope["spans"].as_array().unwrap().iter().cloned());
            }
        }
        Json(json!({}))
    }
    let spans = Spans::default();
    let routes = axum::Router::new().route("/v1/traces", post(take)).with_state(Arc::clone(&spans));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, routes).await });
    (address, spans)
}

fn attribute<'a>(span: &'a Value, name: &str) -> Option<&'a Value> {
    let found = span["attributes"].as_array()?.iter().find(|a| a["key"] == name)?;
    found["value"].as_object()?.values().next()
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_spans_below_those_of_their_callers() {
    let (address, spans) = collector().await;
    let mut metier = Command::new(METIER);
    metier
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
        .env_remove("OTEL_SERVICE_NAME");
    let state = Arc::new(tempfile::tempdir().unwrap());
    let mut server = Serving::start_from(metier, state, Path::new("nano"), &[]);
    let (trace, parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let secret = "The hen is called Berta.";
    let ask = json!({"model": "nano", "max_tokens": 5, "temperature": 0,
                     "messages": [{"role": "user", "content": secret}]});
    let answer = reqwest::Client::new()
        .post(format!("{}/chat/completions", server.url))
        .header("traceparent", format!("00-{trace}-{parent}-01"))
        .json(&ask)
        .send()
        .await
        .unwrap();
    let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    let answer: Value = answer.json().await.unwrap();
    let unknown = json!({"model": "none", "messages": [{"role": "user", "content": "Hello"}]});
    assert_eq!(server.try_post("/chat/completions", &unknown).await.unwrap().0, 404);
    // What has not been sent yet is sent at the end.
    let ended = tokio::task::spawn_blocking(move || server.terminate()).await.unwrap();
    assert!(ended.success());

    let spans = spans.lock().unwrap();
    let said = serde_json::to_string(&*spans).unwrap();
    assert!(!said.contains("Berta") && !said.contains("hen is"), "{said}");
    let below = |parent: &str| {
        spans.iter().filter(move |s| s["parentSpanId"] == parent).collect::<Vec<_>>()
    };
    let [request] = below(parent)[..] else { panic!("one span of the caller's: {said}") };
    assert_eq!(request["name"], "POST /v1/chat/completions");
    assert_eq!(request["traceId"], trace);
    assert_eq!(attribute(request, "metier.request_id").unwrap(), &json!(id));
    assert_eq!(attribute(request, "http.route").unwrap(), "/v1/chat/completions");
    assert_eq!(attribute(request, "http.response.status_code").unwrap(), "200");
    let [model] = below(request["spanId"].as_str().unwrap())[..] else { panic!("{said}") };
    assert_eq!((&model["name"], &model["traceId"]), (&json!("chat nano"), &json!(trace)));
    let usage = |name: &str| attribute(model, &format!("gen_ai.usage.{name}")).unwrap().clone();
    let told = |name: &str| Value::from(answer["usage"][name].to_string());
    assert_eq!(usage("input_tokens"), told("prompt_tokens"));
    assert_eq!(usage("output_tokens"), told("completion_tokens"));
    let time = |value: &Value| value.as_str().unwrap().parse::<u64>().unwrap();
    let events = model["events"].as_array().unwrap();
    let names: Vec<_> = events.iter().map(|event| &event["name"]).collect();
    assert_eq!(names, ["first_run", "first_token"]);
    let times: Vec<u64> = [time(&model["startTimeUnixNano"])]
        .into_iter()
        .chain(events.iter().map(|event| time(&event["timeUnixNano"])))
        .chain([time(&model["endTimeUnixNano"])])
        .collect();
    assert!(times.is_sorted(), "{times:?}");

    // The request for a model that is not there is a trace of its own, without a model's span.
    let refused =
        spans.iter().find(|s| attribute(s, "http.response.status_code") == Some(&json!("404")));
    let refused = refused.expect(&said);
    assert!(refused["traceId"] != trace && below(refused["spanId"].as_str().unwrap()).is_empty());
    assert_eq!(spans.len(), 3, "{said}");
}
