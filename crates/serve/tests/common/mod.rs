//! A real server on a free port of this machine, over a tiny random decoder.

// Each test file uses its own part of this.
#![allow(dead_code)]

use engine::{Engine, EngineHandle, EngineOptions, Runner};
use model::{
    Batch, Decoder, DecoderConfig, Dimensions, EmbeddingForm, LoraAdapter, LoraConfig, ModelError,
    PackedAdapter, Pooling,
};
use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::{Value, json};
use serve::{
    Database, Host, LoadAdapter, LoadedAdapter, NewKey, Proven, Reloader, ServePlan, ServedModel,
    Server, Store,
};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};
use tempfile::TempDir;
use text::{ChatTemplate, Tokenizer};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Longest context of the test model: long enough that a stream without an end does not end
/// while a test looks at it.
pub(crate) const CONTEXT: usize = 100_000;
/// The names served: the base, then three adapters.
pub(crate) const MODELS: [&str; 4] = ["base", "red", "green", "blue"];

const SPECIALS: [&str; 5] = ["<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"];
const TEMPLATE: &str = "{{- bos_token -}}{%- for message in messages -%}\
    {{- '<|' ~ message.role ~ '|>' ~ message.content ~ '<|end|>' -}}{%- endfor -%}\
    {%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}";
/// The third adapter was "trained" with another template, which refuses what it does not know.
const OTHER_TEMPLATE: &str = "{{- bos_token -}}{%- for message in messages -%}\
    {%- if message.role == 'system' -%}{{- raise_exception('no system text, please') -}}{%- endif -%}\
    {{- '<|' ~ message.role ~ '|>' ~ message.content | upper ~ '<|end|>' -}}{%- endfor -%}\
    {%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}";

/// One token for each byte, in the spelling of byte-level BPE, and five control tokens.
pub(crate) fn tokenizer() -> Arc<Tokenizer> {
    let visible = |b: &u8| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let mut next = 256u32;
    let mut vocab = serde_json::Map::new();
    for byte in 0..=255u8 {
        let letter = if visible(&byte) {
            char::from(byte)
        } else {
            next += 1;
            char::from_u32(next - 1).expect("below the surrogates")
        };
        vocab.insert(letter.to_string(), json!(byte));
    }
    let added: Vec<Value> = SPECIALS
        .iter()
        .enumerate()
        .map(|(i, content)| {
            json!({"id": 256 + i, "content": content, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false, "special": true})
        })
        .collect();
    for (i, content) in SPECIALS.iter().enumerate() {
        vocab.insert((*content).into(), json!(256 + i));
    }
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                          "use_regex": false},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                    "use_regex": false},
        "model": {"type": "BPE", "dropout": null, "unk_token": null,
                  "continuing_subword_prefix": null, "end_of_word_suffix": null,
                  "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []},
    });
    let config = json!({"bos_token": "<|bos|>", "eos_token": "<|end|>", "add_bos_token": true});
    let bytes = |v: &Value| serde_json::to_vec(v).expect("plain JSON");
    Arc::new(Tokenizer::from_bytes(&bytes(&tokenizer), Some(&bytes(&config))).expect("a tokenizer"))
}

/// One layer; weights large enough that contexts and adapters matter.
pub(crate) fn decoder() -> Arc<Decoder> {
    static DECODER: OnceLock<Arc<Decoder>> = OnceLock::new();
    let decoder = DECODER.get_or_init(|| {
        let json = json!({
            "model_type": "llama", "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
            "vocab_size": 261, "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5,
            "tie_word_embeddings": true,
        });
        let path = Path::new("config.json");
        let config = DecoderConfig::from_json(json.to_string().as_bytes(), path).expect("valid");
        let mut decoder = Decoder::init(&config, 3);
        let mut params = decoder.params();
        for spec in decoder.param_layout().iter().filter(|s| s.shape.len() == 2) {
            params[spec.range.clone()].iter_mut().for_each(|w| *w *= 12.0);
        }
        decoder.set_params(&params).expect("the same layout");
        Arc::new(decoder)
    });
    Arc::clone(decoder)
}

/// An adapter on [`decoder`] that acts; each seed is another one.
pub(crate) fn adapter(seed: usize) -> LoraAdapter {
    let config = LoraConfig { r: 4, lora_alpha: 8.0, ..LoraConfig::default() };
    let mut adapter = LoraAdapter::init(&config, &decoder(), 0).expect("fits");
    for (i, value) in adapter.params.iter_mut().enumerate() {
        *value = ((i * 7919 + seed * 104_729) % 1000) as f32 / 1500.0 - 0.33;
    }
    adapter
}

/// Writes `adapter` as a PEFT folder for [`decoder`].
pub(crate) fn save(adapter: &LoraAdapter, folder: &Path) {
    let decoder = decoder();
    std::fs::create_dir_all(folder).expect("a folder");
    adapter.save(folder, "base", decoder.digest().expect("in memory"), &[]).expect("written");
}

/// Reads an adapter's folder as the binary does, with the base's template.
pub(crate) fn load(name: &str, folder: &Path, _: usize) -> Result<LoadedAdapter, String> {
    let decoder = decoder();
    let read = || -> Result<LoadedAdapter, model::ModelError> {
        let adapter = LoraAdapter::load(folder, &decoder)?;
        Ok(LoadedAdapter {
            packed: PackedAdapter::new(name, &adapter, &decoder)?.probe(&decoder)?,
            digest: adapter.digest(),
            template: ChatTemplate::from_source(TEMPLATE).expect("valid"),
            stop_ids: tokenizer().stop_ids().to_vec(),
            proven: Proven::NotAsked,
        })
    };
    read().map_err(|error| error.to_string())
}

/// An engine with three adapters.
fn engine(options: EngineOptions) -> EngineHandle {
    let decoder = decoder();
    let mut engine = Engine::new(Arc::clone(&decoder), options).expect("good options");
    for (seed, name) in MODELS[1..].iter().enumerate() {
        let slot = engine.adapters_mut().insert(name, &adapter(seed), &decoder);
        assert_eq!(slot.expect("fits"), seed);
    }
    EngineHandle::spawn(engine).expect("a thread")
}

fn served(
    name: &str,
    adapter: Option<usize>,
    template: &str,
    tokenizer: &Tokenizer,
) -> ServedModel {
    ServedModel {
        name: name.into(),
        adapter,
        template: ChatTemplate::from_source(template).expect("valid"),
        stop_ids: tokenizer.stop_ids().to_vec(),
        digest: format!("digest of {name}").into(),
    }
}

/// What runs the models, with the pooling of the plan or the mean.
fn host(plan: &ServePlan, engine: EngineHandle, generates: bool) -> Host {
    let mut embedding = EmbeddingForm::new(plan.pooling.unwrap_or(Pooling::Mean));
    if plan.matryoshka {
        embedding.dimensions = Dimensions::Any;
    }
    let embedding_len = decoder().config().hidden_size;
    Host { engine, tokenizer: tokenizer(), generates, embedding, embedding_len }
}

/// A model that says what it is told to: see [`TestServer::scripted`].
struct Scripted {
    scripts: Vec<Vec<u32>>,
    /// By the first page of a sequence: which script, and where the answer begins.
    running: HashMap<u32, (usize, usize)>,
    num_blocks: usize,
}

impl Runner for Scripted {
    fn run(&mut self, batch: &Batch) -> Result<Vec<f32>, ModelError> {
        let mut logits = Vec::new();
        let mut start = 0;
        for segment in &batch.segments {
            let tokens = &batch.tokens[start..start + segment.len];
            let place = segment.past + segment.len;
            if segment.past == 0 {
                let user = tokens.iter().rposition(|&token| token == 259).expect("a user's turn");
                let digit = tokens[user + 1] - u32::from(b'0');
                self.running.insert(segment.pages[0], (digit as usize, place));
            }
            start += segment.len;
            if batch.logit_rows.contains(&(start - 1)) {
                let (script, from) = self.running[&segment.pages[0]];
                let next = self.scripts[script].get(place - from).copied().unwrap_or(257);
                logits.extend((0..261).map(|id| if id == next { 90.0 } else { 0.0 }));
            }
        }
        Ok(logits)
    }
    fn num_blocks(&self) -> usize {
        self.num_blocks
    }
    fn vocab_size(&self) -> usize {
        261
    }
    fn context_len(&self) -> usize {
        4096
    }
}

/// A template that tells of tools, writes calls as Hermes does and knows thoughts.
pub(crate) const TOOLS: &str = "{{- bos_token -}}{%- if tools -%}\
    {{- '<|system|>' ~ tools | tojson ~ ' Call with <tool_call></tool_call>.<|end|>' -}}{%- endif -%}\
    {%- for message in messages -%}{%- if message.role == 'tool' -%}\
    {{- '<|user|>' ~ message.content ~ ' (' ~ message.tool_call_id ~ ')' -}}{%- else -%}\
    {{- '<|' ~ message.role ~ '|>' -}}{%- if message.reasoning_content -%}\
    {{- '<think>' ~ message.reasoning_content ~ '</think>' -}}{%- endif -%}{{- message.content -}}\
    {%- for call in message.tool_calls or [] -%}{{- '<tool_call>' ~ call.function | tojson ~ '</tool_call>' -}}\
    {%- endfor -%}{%- endif -%}{{- '<|end|>' -}}{%- endfor -%}\
    {%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}";

/// A running server.
pub(crate) struct TestServer {
    pub(crate) url: String,
    pub(crate) client: Client,
    pub(crate) stop: Option<oneshot::Sender<()>>,
    pub(crate) running: JoinHandle<std::io::Result<()>>,
    pub(crate) reloader: Reloader,
    /// Its folder of keys and usage.
    pub(crate) state: TempDir,
    /// What its requests are authorised with.
    pub(crate) key: Option<String>,
}

/// Options with room for streams of [`CONTEXT`] tokens.
pub(crate) fn roomy() -> EngineOptions {
    EngineOptions {
        num_blocks: 2 * CONTEXT / model::BLOCK_SIZE,
        max_batch_tokens: 64,
        max_num_seqs: 16,
        max_queue: 64,
        ..EngineOptions::default()
    }
}

impl TestServer {
    pub(crate) async fn start() -> TestServer {
        Self::start_with(ServePlan::default(), roomy()).await
    }

    pub(crate) async fn start_with(plan: ServePlan, options: EngineOptions) -> TestServer {
        Self::start_with_loader(plan, options, Arc::new(load)).await
    }

    pub(crate) async fn start_with_loader(
        plan: ServePlan,
        options: EngineOptions,
        load: Arc<LoadAdapter>,
    ) -> TestServer {
        let tokenizer = tokenizer();
        let models = MODELS.iter().enumerate().map(|(i, name)| {
            let source = if i == 3 { OTHER_TEMPLATE } else { TEMPLATE };
            served(name, i.checked_sub(1), source, &tokenizer)
        });
        Self::serve(plan, engine(options), models.collect(), load, |server| server).await
    }

    /// The usual server, and beside it `vectors`, the same decoder once more for embeddings alone.
    pub(crate) async fn with_embedder(plan: ServePlan) -> TestServer {
        let beside = host(&plan, engine(roomy()), false);
        let mut models: Vec<ServedModel> =
            ["base", "vectors"].map(|name| served(name, None, TEMPLATE, &tokenizer())).into();
        let vectors = models.pop().expect("two");
        let prepare = |server: Server| server.with_embedder(beside, vectors).expect("a new name");
        Self::serve(plan, engine(roomy()), models, Arc::new(load), prepare).await
    }

    /// A server whose only model, `base`, makes embeddings only.
    pub(crate) async fn embedder() -> TestServer {
        let plan = ServePlan::default();
        let (beside, models) = (
            host(&plan, engine(roomy()), false),
            vec![served("base", None, TEMPLATE, &tokenizer())],
        );
        Self::listen(plan, beside, models, Arc::new(load), |server| server).await
    }

    /// A server whose only model, `base`, says what the test wants: where the last text of the user
    /// begins with the digit i, the answer is the i-th of `scripts`.
    pub(crate) async fn scripted(template: &str, scripts: &[&str]) -> TestServer {
        let tokenizer = tokenizer();
        let encode = |script: &&str| tokenizer.encode_with_specials(script).expect("bytes");
        let runner = Scripted {
            scripts: scripts.iter().map(encode).collect(),
            running: HashMap::new(),
            num_blocks: 256,
        };
        let options = EngineOptions {
            num_blocks: 256,
            max_batch_tokens: 4096,
            // It must see every prompt whole, and answers one token at a time.
            prefix_caching: false,
            num_speculative_tokens: 0,
            ..roomy()
        };
        let engine = Engine::with_runner(runner, options).expect("good options");
        let engine = EngineHandle::spawn(engine).expect("a thread");
        let models = vec![served("base", None, template, &tokenizer)];
        Self::serve(ServePlan::default(), engine, models, Arc::new(load), |server| server).await
    }

    /// A server of the random base alone, with this template.
    pub(crate) async fn templated(template: &str) -> TestServer {
        let models = vec![served("base", None, template, &tokenizer())];
        let plan = ServePlan::default();
        Self::serve(plan, engine(roomy()), models, Arc::new(load), |server| server).await
    }

    async fn serve(
        plan: ServePlan,
        engine: EngineHandle,
        models: Vec<ServedModel>,
        load: Arc<LoadAdapter>,
        prepare: impl FnOnce(Server) -> Server,
    ) -> TestServer {
        let host = host(&plan, engine, true);
        Self::listen(plan, host, models, load, prepare).await
    }

    async fn listen(
        plan: ServePlan,
        host: Host,
        models: Vec<ServedModel>,
        load: Arc<LoadAdapter>,
        prepare: impl FnOnce(Server) -> Server,
    ) -> TestServer {
        let plan = ServePlan { port: 0, ..plan };
        let listener = plan.bind().await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        assert!(url.starts_with("http://127.0.0.1:"), "{url}");
        let state = tempfile::tempdir().expect("a folder");
        let store = Store::open(state.path()).expect("a new store");
        let server = Server::new(plan, host, models, store).expect("valid");
        let server = prepare(server.with_loader(load));
        let reloader = server.reloader();
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(server.run(listener, async move {
            _ = stopped.await;
        }));
        let client = Client::new();
        TestServer { url, client, stop: Some(stop), running, reloader, state, key: None }
    }

    /// The file of keys and usage, as another process sees it.
    pub(crate) fn database(&self) -> Database {
        Database::open(self.state.path()).expect("the server's own")
    }

    /// A new key's text.
    pub(crate) fn create_key(&self, new: NewKey) -> String {
        self.database().create_key(&new, now()).expect("a new name").0.reveal().to_owned()
    }

    /// Stops the server and waits until its books are closed.
    pub(crate) async fn finish(mut self) -> TempDir {
        self.stop.take().expect("running").send(()).expect("listening");
        self.running.await.expect("no panic").expect("no error");
        self.state
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.url));
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Response {
        self.request(Method::POST, path).json(body).send().await.expect("an answer")
    }

    /// Posts and expects success.
    pub(crate) async fn ok(&self, path: &str, body: &Value) -> Value {
        let response = self.post(path, body).await;
        let status = response.status();
        let text = response.text().await.expect("a body");
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).expect("JSON")
    }

    /// Posts and expects an error in OpenAI's shape.
    pub(crate) async fn refused(&self, path: &str, body: &Value) -> (u16, Value) {
        error_of(self.post(path, body).await).await
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.expect("an answer")
    }

    pub(crate) async fn health(&self) -> Value {
        self.get("/health").await.json().await.expect("JSON")
    }

    /// Looks at `/health` until `field` is `value`.
    pub(crate) async fn wait_until(&self, field: &str, value: u64) -> Value {
        loop {
            let health = self.health().await;
            if health[field] == value {
                return health;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Looks at `/health` until `field` is above 1.
    pub(crate) async fn wait_until_many(&self, field: &str) {
        while self.health().await[field].as_u64().is_none_or(|value| value <= 1) {
            tokio::task::yield_now().await;
        }
    }

    /// Posts a streaming request to an endpoint whose events have names: name and data of each. Every
    /// data says its event's name too.
    pub(crate) async fn events(&self, path: &str, body: &Value) -> Vec<(String, Value)> {
        let response = self.post(path, body).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let text = response.text().await.expect("a body");
        let mut events = Vec::new();
        for event in text.split("\n\n").filter(|event| event.starts_with("event: ")) {
            let (name, data) = event.split_once('\n').expect("two lines");
            let name = name.strip_prefix("event: ").expect("a name");
            let data = data.strip_prefix("data: ").expect("data");
            let data: Value = serde_json::from_str(data).expect("JSON");
            assert_eq!(data["type"], name);
            events.push((name.to_owned(), data));
        }
        assert!(!text.contains("[DONE]"), "{text}");
        events
    }

    /// Posts a streaming request; every event's data but the last, which must be `[DONE]`.
    pub(crate) async fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let response = self.post(path, body).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let text = response.text().await.expect("a body");
        let mut data: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("data: ")).collect();
        assert_eq!(data.pop(), Some("[DONE]"), "{text}");
        data.into_iter().map(|d| serde_json::from_str(d).expect("JSON")).collect()
    }
}

/// Unix seconds.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

/// A key without rights or limits of its own.
pub(crate) fn named(name: &str) -> NewKey {
    NewKey { name: name.into(), ..NewKey::default() }
}

/// Status and error object of an answer that must be an error in OpenAI's shape.
pub(crate) async fn error_of(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    assert!(status >= 400, "{status}");
    let body: Value = response.json().await.expect("JSON");
    let error = body["error"].clone();
    assert!(error["message"].as_str().is_some_and(|m| !m.is_empty()), "{body}");
    assert!(error["type"].is_string(), "{body}");
    for field in ["param", "code"] {
        assert!(error.get(field).is_some_and(|v| v.is_null() || v.is_string()), "{body}");
    }
    (status, error)
}

/// A chat request at temperature 0.
pub(crate) fn chat(model: &str, text: &str, max_tokens: usize) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": text}],
           "temperature": 0, "max_tokens": max_tokens})
}

/// The same request with `change` put over it.
pub(crate) fn with(mut body: Value, change: Value) -> Value {
    for (field, value) in change.as_object().expect("an object") {
        body[field] = value.clone();
    }
    body
}
