//! What Prometheus reads at `/metrics`. The names and their meaning are in docs/guide/serve.md.
//!
//! No label comes from outside unbounded: paths are those of the table, models those that are served,
//! outcomes the codes of this crate.

use crate::store::UsageRecord;
use axum::http::StatusCode;
use engine::EngineStats;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// All metrics of one server.
pub(crate) struct Metrics {
    registry: Registry,
    responses: Family<Responses, Counter>,
    requests: Family<Requests, Counter>,
    tokens: Family<Tokens, Counter>,
    queue: Family<Model, Histogram, fn() -> Histogram>,
    first_token: Family<Model, Histogram, fn() -> Histogram>,
    per_token: Family<Model, Histogram, fn() -> Histogram>,
    total: Family<Model, Histogram, fn() -> Histogram>,
    pub(crate) connections: Gauge,
    running: Gauge,
    waiting: Gauge,
    blocks_free: Gauge,
    blocks_cached: Gauge,
    blocks: Gauge,
    steps: Counter,
    tokens_run: Counter,
    preemptions: Counter,
    guessed: Counter,
    accepted: Counter,
    records_lost: Counter,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Responses {
    endpoint: &'static str,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Requests {
    adapter: String,
    endpoint: &'static str,
    outcome: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Tokens {
    adapter: String,
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Model {
    adapter: String,
}

/// A request that has reached a model and ended.
pub(crate) struct Ended<'a> {
    pub(crate) record: &'a UsageRecord,
    /// (end - first token) / (tokens - 1); None with fewer than two tokens.
    pub(crate) per_token: Option<Duration>,
}

/// Seconds: from a millisecond to ten minutes, about three to a decade.
const SECONDS: [f64; 18] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0,
    300.0, 600.0,
];

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        let timed = || Family::new_with_constructor(seconds as fn() -> Histogram);
        let mut metrics = Metrics {
            registry: Registry::with_prefix("metier"),
            responses: Family::default(),
            requests: Family::default(),
            tokens: Family::default(),
            queue: timed(),
            first_token: timed(),
            per_token: timed(),
            total: timed(),
            connections: Gauge::default(),
            running: Gauge::default(),
            waiting: Gauge::default(),
            blocks_free: Gauge::default(),
            blocks_cached: Gauge::default(),
            blocks: Gauge::default(),
            steps: Counter::default(),
            tokens_run: Counter::default(),
            preemptions: Counter::default(),
            guessed: Counter::default(),
            accepted: Counter::default(),
            records_lost: Counter::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let r = &mut self.registry;
        r.register(
            "build",
            "The running version",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        r.register("responses", "Answers by route and status", self.responses.clone());
        r.register("requests", "Ended requests that reached a model", self.requests.clone());
        r.register("tokens", "Tokens of ended requests", self.tokens.clone());
        for (name, help, histogram) in [
            ("request_queue", "From submission to the first step", &self.queue),
            ("time_to_first_token", "From arrival to the first token", &self.first_token),
            ("time_per_output_token", "(end - first token) / (tokens - 1)", &self.per_token),
            ("request", "From arrival to the end", &self.total),
        ] {
            r.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        }
        r.register("connections_open", "Open connections", self.connections.clone());
        r.register("running", "Sequences with pages", self.running.clone());
        r.register("waiting", "Sequences in the queue", self.waiting.clone());
        r.register("kv_blocks_free", "Pages that nobody holds", self.blocks_free.clone());
        let cached = "Pages that nobody holds and that know the beginning of a past sequence";
        r.register("kv_blocks_cached", cached, self.blocks_cached.clone());
        r.register("kv_blocks", "Pages in all", self.blocks.clone());
        r.register("steps", "Steps of the engine", self.steps.clone());
        r.register("tokens_run", "Tokens run, recomputation included", self.tokens_run.clone());
        r.register("preemptions", "Sequences that lost their pages", self.preemptions.clone());
        r.register("guessed_tokens", "Tokens guessed ahead", self.guessed.clone());
        r.register("accepted_tokens", "Guessed tokens that were right", self.accepted.clone());
        r.register("records_lost", "Records that were not written", self.records_lost.clone());
    }

    /// Counts an answer of any kind.
    pub(crate) fn answered(&self, endpoint: &'static str, status: StatusCode) {
        self.responses.get_or_create(&Responses { endpoint, status: status.as_u16() }).inc();
    }

    /// Counts a request that has reached a model.
    pub(crate) fn ended(&self, ended: &Ended<'_>) {
        let record = ended.record;
        let adapter = || record.model.clone();
        let outcome = record.outcome.clone();
        let requests = Requests { adapter: adapter(), endpoint: record.endpoint, outcome };
        self.requests.get_or_create(&requests).inc();
        for (kind, count) in [
            ("prompt", record.prompt_tokens),
            ("cached", record.cached_tokens),
            ("completion", record.completion_tokens),
        ] {
            self.tokens.get_or_create(&Tokens { adapter: adapter(), kind }).inc_by(count as u64);
        }
        for (family, time) in [
            (&self.queue, record.queue),
            (&self.first_token, record.first_token),
            (&self.per_token, ended.per_token),
            (&self.total, Some(record.total)),
        ] {
            if let Some(time) = time {
                family.get_or_create(&Model { adapter: adapter() }).observe(time.as_secs_f64());
            }
        }
    }

    /// All metrics in OpenMetrics' text form (<https://prometheus.io/docs/specs/om/open_metrics_spec/>).
    pub(crate) fn text(&self, engine: &EngineStats, lost: u64) -> Result<String, std::fmt::Error> {
        let gauge = |gauge: &Gauge, value: usize| {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        gauge(&self.running, engine.running);
        gauge(&self.waiting, engine.waiting);
        gauge(&self.blocks_free, engine.free_blocks);
        gauge(&self.blocks_cached, engine.cached_blocks);
        gauge(&self.blocks, engine.total_blocks);
        for (counter, value) in [
            (&self.steps, engine.steps),
            (&self.tokens_run, engine.tokens_run),
            (&self.preemptions, engine.preemptions),
            (&self.guessed, engine.guessed_tokens),
            (&self.accepted, engine.accepted_tokens),
            (&self.records_lost, lost),
        ] {
            counter.inner().store(value, Ordering::Relaxed);
        }
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
