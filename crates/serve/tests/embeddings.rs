//! `/v1/embeddings`: what is embedded, of which model, and that nobody else waits for it.

mod common;

use common::{CONTEXT, TestServer, adapter, chat, decoder, named, roomy, tokenizer, with};
use engine::EngineOptions;
use futures_util::StreamExt;
use model::{AdapterSet, Batch, KvCache, Memory, Pooling, Segment};
use serde_json::{Value, json};
use serve::{NewKey, ServePlan, UsageBy};

const PATH: &str = "/v1/embeddings";
const CHAT: &str = "/v1/chat/completions";

/// The embeddings of an answer.
fn vectors(answer: &Value) -> Vec<Vec<f32>> {
    assert_eq!(answer["object"], "list");
    let data = answer["data"].as_array().unwrap();
    let one = |(i, entry): (usize, &Value)| {
        assert_eq!((&entry["index"], &entry["object"]), (&json!(i), &json!("embedding")));
        let numbers = entry["embedding"].as_array().unwrap().iter();
        numbers.map(|x| x.as_f64().unwrap() as f32).collect()
    };
    data.iter().enumerate().map(one).collect()
}

/// Pooled states of a plain forward, brought to length one.
fn expected(ids: &[u32], seed: Option<usize>, pooling: Pooling) -> Vec<f32> {
    let decoder = decoder();
    let mut adapters = AdapterSet::new();
    let slot = seed.map(|seed| adapters.insert("a", &adapter(seed), &decoder).unwrap());
    let pages = ids.len().div_ceil(model::BLOCK_SIZE);
    let segment = Segment {
        len: ids.len(),
        pages: (0..pages as u32).collect(),
        adapter: slot,
        ..Segment::default()
    };
    let rows = (0..ids.len()).collect();
    let batch = Batch { tokens: ids.to_vec(), segments: vec![segment], logit_rows: rows };
    let mut cache = KvCache::new(decoder.config(), pages);
    let rows = decoder.forward(&batch, &adapters, Memory::Cache(&mut cache)).unwrap();
    let h = decoder.config().hidden_size;
    let mut pooled = vec![0f64; h];
    let of = match pooling {
        Pooling::Mean => &rows[..],
        Pooling::Last => &rows[rows.len() - h..],
        Pooling::Cls => &rows[..h],
    };
    of.chunks_exact(h).for_each(|row| {
        pooled.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
    });
    let length = pooled.iter().map(|x| x * x).sum::<f64>().sqrt();
    pooled.iter().map(|x| (x / length) as f32).collect()
}

fn assert_near(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    let far = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(far < 1e-6, "{far}");
}

#[tokio::test]
async fn texts_become_pooled_states_of_length_one() {
    for pooling in [Pooling::Mean, Pooling::Last] {
        let plan = ServePlan { pooling: Some(pooling), ..ServePlan::default() };
        let server = TestServer::start_with(plan, roomy()).await;
        // Longer than a step of the engine.
        let texts = ["My boiler leaks".to_owned(), "é".into(), "long ".repeat(60)];
        let ids = |text: &String| tokenizer().encode_prompt(text).unwrap();
        for (model, seed) in [("base", None), ("red", Some(0)), ("green", Some(1))] {
            let answer = server.ok(PATH, &json!({"model": model, "input": texts})).await;
            assert_eq!(answer["model"], model);
            let tokens: usize = texts.iter().map(|text| ids(text).len()).sum();
            assert_eq!(answer["usage"], json!({"prompt_tokens": tokens, "total_tokens": tokens}));
            let found = vectors(&answer);
            assert_eq!(found.len(), texts.len());
            for (found, text) in found.iter().zip(&texts) {
                assert_near(found, &expected(&ids(text), seed, pooling));
            }
        }
    }
}

#[tokio::test]
async fn every_shape_of_input_is_the_same_text() {
    let server = TestServer::start().await;
    let ids = tokenizer().encode_prompt("hello").unwrap();
    let of = async |input: Value| {
        vectors(&server.ok(PATH, &json!({"model": "red", "input": input, "user": "u"})).await)
    };
    let one = of(json!("hello")).await;
    assert_eq!(one.len(), 1);
    assert_eq!(of(json!(["hello"])).await, one);
    assert_eq!(of(json!(ids)).await, one);
    let two = of(json!([ids, [1, 2]])).await;
    assert_eq!((two.len(), &two[0]), (2, &one[0]));

    let body = json!({"model": "red", "input": "hello", "encoding_format": "base64"});
    let answer = server.ok(PATH, &body).await;
    let text = answer["data"][0]["embedding"].as_str().unwrap();
    // 32 numbers of four bytes, three bytes to four letters.
    assert_eq!(text.len(), 172);
    // A control token in a text is only text.
    let control = vectors(&server.ok(PATH, &json!({"model": "red", "input": "<|end|>"})).await);
    assert_ne!(control, of(json!([256, 257])).await);
}

#[tokio::test]
async fn embeddings_are_cut_only_where_that_means_something() {
    let server = TestServer::start().await;
    let body = json!({"model": "base", "input": "hello", "dimensions": 8});
    let (status, error) = server.refused(PATH, &body).await;
    assert_eq!((status, &error["param"]), (400, &json!("dimensions")));
    let whole = vectors(&server.ok(PATH, &with(body.clone(), json!({"dimensions": 32}))).await);

    let plan = ServePlan { matryoshka: true, ..ServePlan::default() };
    let server = TestServer::start_with(plan, roomy()).await;
    let cut = vectors(&server.ok(PATH, &body).await);
    let length = whole[0][..8].iter().map(|x| x * x).sum::<f32>().sqrt();
    let expected: Vec<f32> = whole[0][..8].iter().map(|x| x / length).collect();
    assert_near(&cut[0], &expected);
    let (_, error) = server.refused(PATH, &with(body, json!({"dimensions": 33}))).await;
    assert!(error["message"].as_str().unwrap().contains("from 1 to 32"), "{error}");
}

#[tokio::test]
async fn what_cannot_be_embedded_is_named() {
    let server = TestServer::start().await;
    for (input, param, code) in [
        (json!(["a", ""]), "input[1]", Value::Null),
        (json!([[1], []]), "input[1]", Value::Null),
        (json!([1, 261]), "input[0]", Value::Null),
        (json!(["a", "x".repeat(CONTEXT + 1)]), "input[1]", json!("context_length_exceeded")),
    ] {
        let (status, error) = server.refused(PATH, &json!({"model": "red", "input": input})).await;
        assert_eq!((status, &error["param"], &error["code"]), (400, &json!(param), &code));
    }
    let (status, error) = server.refused(PATH, &json!({"model": "nobody", "input": "a"})).await;
    assert_eq!((status, &error["code"]), (404, &json!("model_not_found")));
    let health = server.wait_until("running", 0).await;
    assert_eq!(health["free_blocks"], health["total_blocks"]);
}

/// More inputs than the queue holds, longer together than many steps: an answer that is under way goes
/// on, one that comes meanwhile does not wait for all of them.
#[tokio::test]
async fn many_texts_hold_nobody_up() {
    let options = EngineOptions { max_queue: 20, max_num_seqs: 8, ..roomy() };
    let server = TestServer::start_with(ServePlan::default(), options).await;
    let alone = server.ok(CHAT, &chat("green", "hello", 20)).await["choices"].clone();
    let endless = json!({"stream": true, "ignore_eos": true});
    let running = server.post(CHAT, &with(chat("red", "go on", CONTEXT), endless)).await;
    let mut stream = running.bytes_stream();
    stream.next().await.unwrap().unwrap();
    let inputs: Vec<String> = (0..300).map(|i| format!("text {i} ").repeat(20)).collect();
    let body = json!({"model": "blue", "input": inputs});
    let post = server.request(reqwest::Method::POST, PATH).json(&body);
    let many = tokio::spawn(async move { post.send().await.unwrap().json::<Value>().await });
    server.wait_until_many("waiting").await;
    assert_eq!(server.ok(CHAT, &chat("green", "hello", 20)).await["choices"], alone);
    assert!(!many.is_finished(), "the answer came before the last text was embedded");
    for _ in 0..3 {
        stream.next().await.unwrap().unwrap();
    }
    let found = vectors(&many.await.unwrap().unwrap());
    assert_eq!(found.len(), 300);
    for i in [0, 17, 299] {
        let ids = tokenizer().encode_prompt(&inputs[i]).unwrap();
        assert_near(&found[i], &expected(&ids, Some(2), Pooling::Mean));
    }
}

#[tokio::test]
async fn whoever_goes_away_leaves_nothing_behind() {
    let server = TestServer::start().await;
    let inputs = vec!["x".repeat(9_000); 40];
    let body = json!({"model": "red", "input": inputs});
    let post = server.request(reqwest::Method::POST, PATH).json(&body);
    let asking = tokio::spawn(post.send());
    server.wait_until_many("running").await;
    asking.abort();
    let health = server.wait_until("running", 0).await;
    assert_eq!(health["waiting"], 0);
    assert_eq!(health["free_blocks"], health["total_blocks"]);
    let state = server.finish().await;
    let rows = serve::Database::open(state.path()).unwrap();
    let rows = rows.usage(UsageBy::Adapter, 0, u64::MAX).unwrap();
    assert_eq!((rows[0].requests, rows[0].cancelled), (1, 1));
}

#[tokio::test]
async fn keys_limits_and_books_hold_for_embeddings() {
    let mut server = TestServer::start().await;
    let models = Some(vec!["red".to_owned()]);
    let key = NewKey { models, tokens_per_minute: Some(20), ..named("ann") };
    server.key = Some(server.create_key(key));
    let ask = |model: &str, input: &str| json!({"model": model, "input": input});
    // With the beginning token, six.
    let answer = server.ok(PATH, &ask("red", "hello")).await;
    assert_eq!(answer["usage"]["prompt_tokens"], 6);
    assert_eq!(server.refused(PATH, &ask("base", "hello")).await.0, 404);
    let (status, error) = server.refused(PATH, &ask("red", "more than is left")).await;
    assert_eq!((status, &error["type"]), (429, &json!("tokens")));
    let rows = server.database().usage(UsageBy::Adapter, 0, u64::MAX).unwrap();
    let row = &rows[0];
    assert_eq!((row.group.as_str(), row.detail.as_str()), ("red", "digest of red"));
    assert_eq!((row.requests, row.failed, row.prompt_tokens, row.completion_tokens), (1, 0, 6, 0));
    assert!(row.mean_queue_seconds.is_some() && row.mean_first_token_seconds.is_none(), "{row:?}");
}

#[tokio::test]
async fn a_base_for_embeddings_stands_beside_the_other() {
    let plan = ServePlan { pooling: Some(Pooling::Last), ..ServePlan::default() };
    let server = TestServer::with_embedder(plan).await;
    let list: Value = server.get("/v1/models").await.json().await.unwrap();
    let shown: Vec<_> =
        list["data"].as_array().unwrap().iter().map(|m| (&m["id"], &m["parent"])).collect();
    assert_eq!(shown, [(&json!("base"), &Value::Null), (&json!("vectors"), &Value::Null)]);
    let ids = tokenizer().encode_prompt("hello").unwrap();
    for model in ["base", "vectors"] {
        let found = vectors(&server.ok(PATH, &json!({"model": model, "input": "hello"})).await);
        assert_near(&found[0], &expected(&ids, None, Pooling::Last));
        let tokens = server.ok("/tokenize", &json!({"model": model, "prompt": "hello"})).await;
        assert_eq!(tokens["tokens"], json!(ids));
    }
    server.ok(CHAT, &chat("base", "hello", 3)).await;
    for (path, body) in [
        (CHAT, chat("vectors", "hello", 3)),
        ("/v1/completions", json!({"model": "vectors", "prompt": "a"})),
        ("/v1/responses", json!({"model": "vectors", "input": "a"})),
        ("/tokenize", chat("vectors", "hello", 3)),
    ] {
        let body = match path {
            "/tokenize" => json!({"model": body["model"], "messages": body["messages"]}),
            _ => body,
        };
        let (status, error) = server.refused(path, &body).await;
        assert_eq!((status, &error["param"]), (400, &json!("model")), "{path}");
        assert!(error["message"].as_str().unwrap().contains("embeddings only"), "{path}: {error}");
    }
    for name in ["base", "vectors"] {
        let unload = json!({"lora_name": name});
        let (status, error) = server.refused("/v1/unload_lora_adapter", &unload).await;
        assert!(status == 400 && error["message"].as_str().unwrap().contains("is a base"));
    }
    server.finish().await;
}

#[tokio::test]
async fn a_server_may_have_nothing_but_a_base_for_embeddings() {
    let server = TestServer::embedder().await;
    server.ok(PATH, &json!({"model": "base", "input": "hello"})).await;
    assert_eq!(server.refused(CHAT, &chat("base", "hello", 3)).await.0, 400);
    server.ok("/tokenize", &json!({"prompt": "hello"})).await;
    let back = server.ok("/detokenize", &json!({"tokens": [104, 105]})).await;
    assert_eq!(back["prompt"], "hi");
    assert_eq!(server.get("/ready").await.status(), 200);
}
