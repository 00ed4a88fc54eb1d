//! Who gets in: keys on every route, what they may name, and how much.

mod common;

use common::{CONTEXT, TestServer, chat, error_of, named, now, roomy, with};
use engine::EngineOptions;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use serve::endpoints::{self, Scope};
use serve::{NewKey, Prices, ServePlan};

const CHAT: &str = "/v1/chat/completions";

/// Every path that there is, one that there is not, and one that is taken with another method.
fn paths() -> Vec<(Method, String, Option<Scope>)> {
    let known = endpoints::ALL.iter().map(|endpoint| {
        let method: Method = endpoint.method.parse().unwrap();
        (method, endpoint.path.replace("{model}", "red"), Some(endpoint.scope))
    });
    let mut paths: Vec<_> = known.collect();
    for (method, path) in
        [(Method::GET, "/nowhere"), (Method::PUT, "/v1/models"), (Method::HEAD, "/health")]
    {
        paths.push((method, path.into(), None));
    }
    paths
}

async fn status(server: &TestServer, method: &Method, path: &str, key: Option<&str>) -> StatusCode {
    let mut request = server.client.request(method.clone(), format!("{}{path}", server.url));
    if let Some(key) = key {
        request = request.bearer_auth(key);
    }
    request.json(&json!({})).send().await.unwrap().status()
}

#[tokio::test]
async fn no_route_answers_without_a_key_once_one_exists() {
    let server = TestServer::start().await;
    for (method, path, _) in paths() {
        let status = status(&server, &method, &path, None).await;
        assert_ne!(status, 401, "no key exists: {method} {path}");
    }
    // Made by another process while the server runs.
    let user = server.create_key(named("user"));
    let admin = server.create_key(NewKey { admin: true, ..named("admin") });
    let expired = server.create_key(NewKey { expires: Some(now()), ..named("expired") });
    let revoked = server.create_key(named("revoked"));
    server.database().revoke_key("revoked", now()).unwrap();
    let unknown = format!("mk-{}", "0".repeat(64));
    let mut near = user.clone();
    near.replace_range(66.., if user.ends_with('0') { "1" } else { "0" });
    for (method, path, scope) in paths() {
        for wrong in [
            None,
            Some(""),
            Some("unused"),
            Some(&*unknown),
            Some(&near),
            Some(&expired),
            Some(&revoked),
        ] {
            let found = status(&server, &method, &path, wrong).await;
            assert_eq!(found, 401, "{method} {path} with {wrong:?}");
        }
        let as_user = status(&server, &method, &path, Some(&user)).await;
        let as_admin = status(&server, &method, &path, Some(&admin)).await;
        assert_ne!(as_admin, 401, "{method} {path}");
        match scope {
            Some(Scope::Admin) => {
                assert_eq!(as_user, 403, "{method} {path}");
                assert_ne!(as_admin, 403, "{method} {path}");
            }
            _ => assert_eq!(as_user, as_admin, "{method} {path}"),
        }
    }
    // With the last key revoked the server is closed, not open.
    for name in ["user", "admin", "expired"] {
        server.database().revoke_key(name, now()).unwrap();
    }
    assert_eq!(status(&server, &Method::GET, "/health", Some(&user)).await, 401);
    assert_eq!(status(&server, &Method::GET, "/health", None).await, 401);
}

#[tokio::test]
async fn refusals_have_openai_s_shape_and_both_headers_are_read() {
    let mut server = TestServer::start().await;
    let key = server.create_key(named("user"));
    let refused = server.post(CHAT, &chat("base", "x", 1)).await;
    assert_eq!(refused.headers()["www-authenticate"], "Bearer");
    assert!(refused.headers().contains_key("x-request-id"));
    let (status, error) = error_of(refused).await;
    assert_eq!((status, &error["code"]), (401, &json!("invalid_api_key")));
    assert_eq!(error["type"], "invalid_request_error");

    let health = |name: &str, value: String| {
        let request = server.client.get(format!("{}/health", server.url)).header(name, value);
        async { request.send().await.unwrap().status().as_u16() }
    };
    assert_eq!(health("x-api-key", key.clone()).await, 200);
    assert_eq!(health("authorization", format!("bearer {key}")).await, 200);
    assert_eq!(health("authorization", format!("Bearer   {key}")).await, 200);
    assert_eq!(health("authorization", key.clone()).await, 401);
    assert_eq!(health("authorization", format!("Basic {key}")).await, 401);
    assert_eq!(health("cookie", format!("key={key}")).await, 401);

    server.key = Some(key);
    server.ok(CHAT, &chat("base", "x", 1)).await;
    let (status, error) = error_of(server.get("/metrics").await).await;
    assert_eq!((status, &error["code"]), (403, &json!("insufficient_permissions")));
}

#[tokio::test]
async fn what_a_key_may_not_name_does_not_exist_for_it() {
    let mut server = TestServer::start().await;
    let models = Some(vec!["red".to_owned(), "later".to_owned()]);
    server.key = Some(server.create_key(NewKey { models, ..named("red only") }));
    let list: Value = server.get("/v1/models").await.json().await.unwrap();
    let ids: Vec<&Value> = list["data"].as_array().unwrap().iter().map(|m| &m["id"]).collect();
    assert_eq!(ids, ["red"]);
    assert_eq!(list["data"][0]["parent"], Value::Null, "nor does the base");
    server.ok(CHAT, &chat("red", "x", 2)).await;
    for name in ["base", "green", "blue", "later", "nobody"] {
        let (status, error) = server.refused(CHAT, &chat(name, "x", 2)).await;
        assert_eq!((status, &error["code"]), (404, &json!("model_not_found")), "{name}");
        let message = error["message"].as_str().unwrap();
        assert!(message.ends_with("known: red"), "{message}");
        let prompt = json!({"model": name, "prompt": "x"});
        assert_eq!(server.refused("/v1/completions", &prompt).await.0, 404);
        let (status, _) = error_of(server.get(&format!("/v1/models/{name}")).await).await;
        assert_eq!(status, 404);
    }
}

#[tokio::test]
async fn a_minute_has_only_so_many_requests_and_tokens() {
    let mut server = TestServer::start().await;
    let few = NewKey { requests_per_minute: Some(3), ..named("few") };
    server.key = Some(server.create_key(few));
    for left in [2, 1, 0] {
        let answer = server.post(CHAT, &chat("base", "x", 1)).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["x-ratelimit-limit-requests"], "3");
        assert_eq!(answer.headers()["x-ratelimit-remaining-requests"], left.to_string());
        assert!(answer.headers().contains_key("x-ratelimit-reset-requests"));
        assert!(!answer.headers().contains_key("x-ratelimit-limit-tokens"));
    }
    let refused = server.post(CHAT, &chat("base", "x", 1)).await;
    let wait: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=20).contains(&wait), "{wait}");
    let (status, error) = error_of(refused).await;
    assert_eq!((status, &error["code"]), (429, &json!("rate_limit_exceeded")));
    assert_eq!(error["type"], "requests");
    server.health().await;

    // A prompt of "x" is 5 tokens.
    let tokens = NewKey { tokens_per_minute: Some(40), ..named("tokens") };
    server.key = Some(server.create_key(tokens));
    let long = server.post(CHAT, &chat("base", &"x".repeat(50), 1)).await;
    assert_eq!(long.headers()["x-should-retry"], "false", "it would never fit");
    assert!(!long.headers().contains_key("retry-after"));
    assert_eq!(error_of(long).await.0, 429);
    server.ok(CHAT, &with(chat("base", "x", 60), json!({"ignore_eos": true}))).await;
    let refused = server.post(CHAT, &chat("base", "x", 1)).await;
    assert_eq!(refused.headers()["x-ratelimit-remaining-tokens"], "0");
    assert!(refused.headers().contains_key("retry-after"));
    let (status, error) = error_of(refused).await;
    assert_eq!((status, &error["type"]), (429, &json!("tokens")), "the answer put it into debt");

    server.key = Some(server.create_key(named("free")));
    server.ok(CHAT, &chat("base", "x", 1)).await;
}

#[tokio::test]
async fn a_month_has_only_so_much_money() {
    let mut server = TestServer::start().await;
    let budget = NewKey { monthly_budget: Some(1.0), ..named("ann") };
    server.key = Some(server.create_key(budget));
    let (status, error) = server.refused(CHAT, &chat("base", "x", 1)).await;
    assert_eq!((status, &error["code"]), (403, &json!("budget_without_prices")));
    // 5 tokens of prompt and 10 of answer cost 0.6.
    let prices = Prices {
        currency: "EUR".into(),
        input_per_mtok: 20_000.0,
        cached_input_per_mtok: 20_000.0,
        output_per_mtok: 50_000.0,
    };
    let plan = ServePlan { prices: Some(prices), ..ServePlan::default() };
    server.reloader.reload(plan).unwrap();
    let ten = with(chat("base", "x", 10), json!({"ignore_eos": true}));
    for _ in 0..2 {
        server.ok(CHAT, &ten).await;
    }
    let refused = server.post(CHAT, &ten).await;
    assert_eq!(refused.headers()["x-should-retry"], "false");
    let (status, error) = error_of(refused).await;
    assert_eq!((status, &error["code"]), (429, &json!("insufficient_quota")));
    assert!(error["message"].as_str().unwrap().contains("1.2000 of its 1 EUR"), "{error}");
}

#[tokio::test]
async fn an_answer_that_takes_too_long_ends_with_an_error() {
    let plan = ServePlan { request_timeout_seconds: 0, ..ServePlan::default() };
    let server = TestServer::start_with(plan.clone(), roomy()).await;
    let endless = with(chat("base", "x", CONTEXT), json!({"ignore_eos": true}));
    let (status, error) = server.refused(CHAT, &endless).await;
    assert_eq!((status, &error["code"]), (504, &json!("request_timeout")));
    let response = server.post(CHAT, &with(endless.clone(), json!({"stream": true}))).await;
    let text = response.text().await.unwrap();
    assert!(text.contains("request_timeout") && !text.contains("[DONE]"), "{text}");
    let health = server.wait_until("running", 0).await;
    assert_eq!(health["free_blocks"], health["total_blocks"]);

    // One that only waits is told as well.
    let one = EngineOptions { max_num_seqs: 1, ..roomy() };
    let server = TestServer::start_with(ServePlan::default(), one).await;
    let running = server.post(CHAT, &with(endless.clone(), json!({"stream": true}))).await;
    server.wait_until("running", 1).await;
    server.reloader.reload(plan).unwrap();
    let (status, error) = server.refused(CHAT, &chat("red", "x", 1)).await;
    assert_eq!((status, &error["code"]), (504, &json!("request_timeout")));
    drop(running);
    server.wait_until("running", 0).await;
}

#[tokio::test]
async fn web_pages_may_ask_only_from_named_origins() {
    let preflight = |server: &TestServer, origin: &'static str| {
        let request = server
            .client
            .request(Method::OPTIONS, format!("{}{CHAT}", server.url))
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,content-type");
        async { request.send().await.unwrap() }
    };
    let closed = TestServer::start().await;
    let answer = preflight(&closed, "https://a.example").await;
    assert_eq!(answer.status(), 405);
    assert!(!answer.headers().contains_key("access-control-allow-origin"));

    let plan = ServePlan { cors_origins: vec!["https://a.example".into()], ..ServePlan::default() };
    let mut open = TestServer::start_with(plan, roomy()).await;
    open.key = Some(open.create_key(named("page")));
    let answer = preflight(&open, "https://a.example").await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["access-control-allow-origin"], "https://a.example");
    let answer = preflight(&open, "https://b.example").await;
    assert!(!answer.headers().contains_key("access-control-allow-origin"));
    let request = open.request(Method::GET, "/v1/models").header("origin", "https://a.example");
    let answer = request.send().await.unwrap();
    assert_eq!(answer.headers()["access-control-allow-origin"], "https://a.example");
    assert_eq!(answer.headers()["access-control-expose-headers"], "x-request-id");
    let keyless = open.client.get(format!("{}/v1/models", open.url));
    let keyless = keyless.header("origin", "https://a.example").send().await.unwrap();
    assert_eq!(keyless.status(), 401);
}

#[tokio::test]
async fn a_key_s_secret_stands_in_no_answer() {
    let mut server = TestServer::start().await;
    let key = server.create_key(NewKey { admin: true, ..named("admin") });
    server.key = Some(key.clone());
    for path in ["/health", "/ready", "/version", "/metrics", "/v1/models", "/nowhere"] {
        let answer = server.get(path).await;
        let headers = format!("{:?}", answer.headers());
        let text = answer.text().await.unwrap() + &headers;
        assert!(!text.contains(&key[12..]), "{path}");
    }
}
