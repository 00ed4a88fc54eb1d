//! Spans of OpenTelemetry, where requests are followed through several services (feature `otel`): one
//! for each request, below the span that its `traceparent` names, and below that one for what a model
//! did. Names, ids, counts and times by the conventions for HTTP servers and for generative models; no
//! contents. Without the feature nothing here does anything.

#[cfg(not(feature = "otel"))]
use off as here;
#[cfg(feature = "otel")]
use on as here;

pub(crate) use here::RequestSpan;
pub use here::{SpanExport, export_spans};

#[cfg(not(feature = "otel"))]
mod off {
    use crate::store::UsageRecord;
    use axum::http::{HeaderMap, Method, StatusCode};

    /// The span of a request: none.
    #[derive(Clone)]
    pub(crate) struct RequestSpan;

    impl RequestSpan {
        pub(crate) fn start(_: &HeaderMap, _: &Method, _: &'static str, _: &str) -> RequestSpan {
            RequestSpan
        }

        pub(crate) fn answered(&self, _: StatusCode) {}

        pub(crate) fn ended(&self, _: &UsageRecord) {}
    }

    /// Built without the feature `otel`: no spans are sent.
    ///
    /// # Errors
    /// None.
    pub fn export_spans() -> Result<Option<SpanExport>, String> {
        Ok(None)
    }

    /// Spans are being sent, which this build never does.
    pub enum SpanExport {}
}

#[cfg(feature = "otel")]
mod on {
    use crate::store::UsageRecord;
    use axum::http::{HeaderMap, Method, StatusCode};
    use opentelemetry::propagation::TextMapPropagator;
    use opentelemetry::trace::{Span, SpanKind, Status, TraceContextExt, Tracer};
    use opentelemetry::{Context, KeyValue, global};
    use opentelemetry_http::HeaderExtractor;
    use opentelemetry_otlp::SpanExporter;
    use opentelemetry_sdk::Resource;
    use opentelemetry_sdk::propagation::TraceContextPropagator;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use std::time::{Duration, SystemTime};

    const LIBRARY: &str = "metier";

    /// The span of a request. Ended by [`RequestSpan::answered`], or when the last clone goes.
    #[derive(Clone)]
    pub(crate) struct RequestSpan(Context);

    impl RequestSpan {
        /// `route` is the path in the table of endpoints, or `other`; `id` that of the request.
        pub(crate) fn start(
            headers: &HeaderMap,
            method: &Method,
            route: &'static str,
            id: &str,
        ) -> RequestSpan {
            let parent = TraceContextPropagator::new()
                .extract_with_context(&Context::new(), &HeaderExtractor(headers));
            let tracer = global::tracer(LIBRARY);
            let span = tracer
                .span_builder(format!("{method} {route}"))
                .with_kind(SpanKind::Server)
                .with_attributes([
                    KeyValue::new("http.request.method", method.to_string()),
                    KeyValue::new("http.route", route),
                    KeyValue::new("metier.request_id", id.to_owned()),
                ])
                .start_with_context(&tracer, &parent);
            RequestSpan(parent.with_span(span))
        }

        /// The head of the answer is on its way; a stream may still go on below this span.
        pub(crate) fn answered(&self, status: StatusCode) {
            let span = self.0.span();
            let code = i64::from(status.as_u16());
            span.set_attribute(KeyValue::new("http.response.status_code", code));
            if status.is_server_error() {
                span.set_status(Status::error(""));
            }
            span.end();
        }

        /// A model is done with the request.
        pub(crate) fn ended(&self, record: &UsageRecord) {
            let end = SystemTime::now();
            let start = end.checked_sub(record.total).unwrap_or(end);
            let operation = match record.endpoint {
                "/v1/embeddings" => "embeddings",
                "/v1/completions" => "text_completion",
                _ => "chat",
            };
            let tokens =
                |name, count: usize| KeyValue::new(name, i64::try_from(count).unwrap_or(i64::MAX));
            let tracer = global::tracer(LIBRARY);
            let mut span = tracer
                .span_builder(format!("{operation} {}", record.model))
                .with_kind(SpanKind::Internal)
                .with_start_time(start)
                .with_attributes([
                    KeyValue::new("gen_ai.operation.name", operation),
                    KeyValue::new("gen_ai.request.model", record.model.clone()),
                    tokens("gen_ai.usage.input_tokens", record.prompt_tokens),
                    tokens("gen_ai.usage.cache_read.input_tokens", record.cached_tokens),
                    tokens("gen_ai.usage.output_tokens", record.completion_tokens),
                ])
                .start_with_context(&tracer, &self.0);
            let mut event = |name: &'static str, after: Option<Duration>| {
                if let Some(at) = after.and_then(|after| start.checked_add(after)) {
                    span.add_event_with_timestamp(name, at, Vec::new());
                }
            };
            event("first_run", record.queue);
            event("first_token", record.first_token);
            if record.outcome != "ok" {
                span.set_attribute(KeyValue::new("error.type", record.outcome.clone()));
                span.set_status(Status::error(""));
            }
            span.end_with_timestamp(end);
        }
    }

    /// Sends the spans of this process to the collector that OTEL_EXPORTER_OTLP_ENDPOINT (or
    /// OTEL_EXPORTER_OTLP_TRACES_ENDPOINT) names, over HTTP, as the specification's other variables say;
    /// none is sent, and None returned, where neither is set. Hold on to what is returned: dropping it,
    /// outside of a runtime, sends what is left.
    ///
    /// # Errors
    /// What is wrong with the variables.
    pub fn export_spans() -> Result<Option<SpanExport>, String> {
        const ENDPOINTS: [&str; 2] =
            ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
        let is_set = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let Some(name) = ENDPOINTS.iter().find(|name| is_set(name)) else { return Ok(None) };
        let exporter = SpanExporter::builder().with_http().build().map_err(|error| {
            format!(
                "{name}: {error}\nhint: an http:// address of a collector, such as http://localhost:4318"
            )
        })?;
        let mut resource = Resource::builder();
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name("metier");
        }
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource.build())
            .build();
        global::set_tracer_provider(provider.clone());
        Ok(Some(SpanExport(provider)))
    }

    /// Spans are being sent.
    pub struct SpanExport(SdkTracerProvider);

    impl Drop for SpanExport {
        fn drop(&mut self) {
            if let Err(error) = self.0.shutdown() {
                tracing::warn!("the last spans were not sent: {error}");
            }
        }
    }
}
