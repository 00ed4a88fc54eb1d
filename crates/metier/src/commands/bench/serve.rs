//! `metier bench serve`: how a server answers many clients at once, whichever server it is.

use crate::cli::BenchServeArgs;
use crate::{exit, progress};
use anyhow::{Context, Result, bail};
use eventsource_stream::Eventsource;
use futures_util::StreamExt;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use reqwest::Client;
use serde::Serialize;
use serde_json::{Value, json};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// How many requests are on their way at once.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Load {
    /// So many clients, each asking again when it is answered.
    Closed {
        /// Clients.
        concurrency: usize,
    },
    /// Requests come when they come, at times of a Poisson process.
    Open {
        /// Requests per second.
        rate: f64,
    },
}

/// One request, decided before the first is sent.
struct Planned {
    /// Seconds after the start; 0 in a closed loop.
    at: f64,
    body: Value,
}

/// What one request took, seconds.
struct Taken {
    ttft: f64,
    /// Between one piece of text and the next.
    gaps: Vec<f64>,
    e2e: f64,
    prompt_tokens: u64,
    completion_tokens: u64,
}

impl Taken {
    /// Time per output token after the first; none where there is no second.
    fn tpot(&self) -> Option<f64> {
        let more = self.completion_tokens.checked_sub(1).filter(|&n| n > 0)?;
        Some((self.e2e - self.ttft) / more as f64)
    }
}

pub(super) fn run(args: &BenchServeArgs, as_json: bool) -> Result<ExitCode> {
    let bounds = Bounds::read(&args.goodput)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (taken, errors, seconds) = runtime.block_on(drive(args))?;
    let report = Report::new(args, &bounds, &taken, &errors, seconds);
    if as_json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{report}");
    }
    if taken.is_empty() {
        bail!(
            "no request was answered; the first error: {}",
            errors.first().map_or("none", String::as_str)
        );
    }
    Ok(exit::done())
}

async fn drive(args: &BenchServeArgs) -> Result<(Vec<Taken>, Vec<String>, f64)> {
    if args.requests == 0 || args.concurrency == 0 {
        bail!("expected at least one request and one client");
    }
    let client = client(args)?;
    let url = args.url.trim_end_matches('/').to_owned();
    let models = match args.serve_model.is_empty() {
        true => vec![first_model(&client, &url).await?],
        false => args.serve_model.clone(),
    };
    let planned = plan(args, &models)?;
    let endpoint = if args.chat { "chat/completions" } else { "completions" };
    let endpoint = format!("{url}/{endpoint}");
    let bar = progress::bar("requests", planned.len() as u64);
    let places = Arc::new(Semaphore::new(match args.rate {
        Some(_) => Semaphore::MAX_PERMITS,
        None => args.concurrency,
    }));
    let started = Instant::now();
    let mut tasks = Vec::new();
    for request in planned {
        let place = Arc::clone(&places).acquire_owned().await?;
        tokio::time::sleep_until((started + Duration::from_secs_f64(request.at)).into()).await;
        let (client, endpoint, bar) = (client.clone(), endpoint.clone(), bar.clone());
        tasks.push(tokio::spawn(async move {
            let taken = ask(&client, &endpoint, &request.body).await;
            drop(place);
            bar.inc(1);
            taken
        }));
    }
    let (mut taken, mut errors) = (Vec::new(), Vec::new());
    for task in tasks {
        match task.await? {
            Ok(one) => taken.push(one),
            Err(error) => errors.push(format!("{error:#}")),
        }
    }
    bar.finish_and_clear();
    Ok((taken, errors, started.elapsed().as_secs_f64()))
}

fn client(args: &BenchServeArgs) -> Result<Client> {
    let mut headers = reqwest::header::HeaderMap::new();
    if let Some(name) = &args.api_key_env {
        let key = std::env::var(name)
            .with_context(|| format!("--api-key-env {name}: there is no such variable"))?;
        let mut value = reqwest::header::HeaderValue::from_str(&format!("Bearer {key}"))
            .with_context(|| format!("the key in {name} cannot stand in a header"))?;
        value.set_sensitive(true);
        headers.insert(reqwest::header::AUTHORIZATION, value);
    }
    // A connection for each request, as clients that are strangers to each other have: one that is kept
    // may be closed by the server in the moment in which it is used again.
    Ok(Client::builder().default_headers(headers).pool_max_idle_per_host(0).build()?)
}

async fn first_model(client: &Client, url: &str) -> Result<String> {
    let list = client.get(format!("{url}/models")).send().await;
    let list = list.with_context(|| {
        format!("{url} does not answer\nhint: start a server there, or give another --url")
    })?;
    let list: Value = list.error_for_status()?.json().await?;
    let name = list["data"][0]["id"].as_str();
    Ok(name.context("the server lists no model\nhint: name one with --serve-model")?.to_owned())
}

/// All requests, from the seed alone.
fn plan(args: &BenchServeArgs, models: &[String]) -> Result<Vec<Planned>> {
    let extra: Vec<Value> = args
        .extra
        .iter()
        .map(|text| match serde_json::from_str(text) {
            Ok(value @ Value::Object(_)) => Ok(value),
            _ => bail!("--extra {text}: expected a JSON object"),
        })
        .collect::<Result<_>>()?;
    let mut rng = Pcg64::seed_from_u64(args.seed);
    let mut at = 0.0;
    let mut planned = Vec::with_capacity(args.requests);
    for i in 0..args.requests {
        if let Some(rate) = args.rate {
            if !(rate > 0.0 && rate.is_finite()) {
                bail!("--rate {rate}: expected a number above 0");
            }
            // Gaps of a Poisson process are exponential.
            at += -(1.0 - rng.random::<f64>()).ln() / rate;
        }
        let input = args.input_tokens.draw(&mut rng);
        let output = args.output_tokens.draw(&mut rng);
        let prompt: Value = match args.prompt_vocab {
            // Low ids are often control tokens.
            Some(vocab) if vocab > 1000 && !args.chat => {
                (0..input).map(|_| rng.random_range(1000..vocab)).collect()
            }
            Some(vocab) => bail!(
                "--prompt-vocab {vocab}: expected more than 1000, and no --chat: only text \
                 completions take token ids"
            ),
            None => {
                let words = (0..input).map(|_| WORDS[rng.random_range(0..WORDS.len())]);
                words.collect::<Vec<_>>().join(" ").into()
            }
        };
        let mut body = json!({
            "model": models[i % models.len()], "max_tokens": output, "temperature": args.temperature,
            "seed": args.seed.wrapping_add(i as u64), "stream": true,
            "stream_options": {"include_usage": true},
        });
        match args.chat {
            true => body["messages"] = json!([{"role": "user", "content": prompt}]),
            false => body["prompt"] = prompt,
        }
        if args.ignore_eos {
            body["ignore_eos"] = true.into();
        }
        if let Some(Value::Object(fields)) = extra.get(i % extra.len().max(1)) {
            for (field, value) in fields {
                body[field] = value.clone();
            }
        }
        planned.push(Planned { at, body });
    }
    Ok(planned)
}

/// Common words, each one token in most vocabularies.
const WORDS: [&str; 40] = [
    "the", "of", "and", "to", "in", "is", "you", "that", "it", "he", "was", "for", "on", "are",
    "as", "with", "his", "they", "at", "be", "this", "have", "from", "or", "one", "had", "by",
    "word", "but", "not", "what", "all", "were", "we", "when", "your", "can", "said", "there",
    "use",
];

async fn ask(client: &Client, endpoint: &str, body: &Value) -> Result<Taken> {
    let started = Instant::now();
    let response = client.post(endpoint).json(body).send().await?;
    let status = response.status();
    if !status.is_success() {
        let text: String = response.text().await.unwrap_or_default().chars().take(300).collect();
        bail!("{status}: {text}");
    }
    let mut events = response.bytes_stream().eventsource();
    let (mut first, mut last) = (None, started);
    let mut gaps = Vec::new();
    let mut usage = None;
    let mut done = false;
    while let Some(event) = events.next().await {
        let event = event?;
        if event.data == "[DONE]" {
            done = true;
            break;
        }
        let chunk: Value = serde_json::from_str(&event.data)
            .with_context(|| format!("a chunk that is not JSON: {:.100}", event.data))?;
        if !chunk["error"].is_null() {
            bail!("{}", chunk["error"]);
        }
        if chunk["usage"].is_object() {
            usage = Some(chunk["usage"].clone());
        }
        let choice = &chunk["choices"][0];
        let text = choice["delta"]["content"].as_str().or(choice["text"].as_str());
        if text.is_some_and(|text| !text.is_empty()) {
            let now = Instant::now();
            match first {
                None => first = Some(now),
                Some(_) => gaps.push((now - last).as_secs_f64()),
            }
            last = now;
        }
    }
    let e2e = started.elapsed().as_secs_f64();
    if !done {
        bail!("the stream ended before its end");
    }
    let usage = usage.context("the server told no usage")?;
    let count =
        |field: &str| usage[field].as_u64().with_context(|| format!("usage has no {field}"));
    Ok(Taken {
        // An answer without text has no first token but its end.
        ttft: first.map_or(e2e, |first| (first - started).as_secs_f64()),
        gaps,
        e2e,
        prompt_tokens: count("prompt_tokens")?,
        completion_tokens: count("completion_tokens")?,
    })
}

/// What a request must keep within to count as goodput, seconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Bounds {
    ttft: Option<f64>,
    tpot: Option<f64>,
    e2e: Option<f64>,
}

impl Bounds {
    /// From entries such as `ttft:500`, in milliseconds.
    fn read(entries: &[String]) -> Result<Bounds> {
        let mut bounds = Bounds::default();
        for entry in entries {
            let parsed = entry.split_once(':').and_then(|(name, ms)| {
                Some((name, ms.parse::<f64>().ok().filter(|ms| *ms > 0.0)? / 1000.0))
            });
            match parsed {
                Some(("ttft", bound)) => bounds.ttft = Some(bound),
                Some(("tpot", bound)) => bounds.tpot = Some(bound),
                Some(("e2el" | "e2e", bound)) => bounds.e2e = Some(bound),
                _ => bail!(
                    "--goodput {entry}: expected ttft, tpot or e2el, as in ttft:500 (milliseconds)"
                ),
            }
        }
        Ok(bounds)
    }

    fn any(&self) -> bool {
        self.ttft.is_some() || self.tpot.is_some() || self.e2e.is_some()
    }

    fn kept(&self, taken: &Taken) -> bool {
        let within = |bound: Option<f64>, found: f64| bound.is_none_or(|bound| found <= bound);
        within(self.ttft, taken.ttft)
            && within(self.tpot, taken.tpot().unwrap_or(0.0))
            && within(self.e2e, taken.e2e)
    }
}

/// Milliseconds over the requests (for `itl_ms`: over all gaps).
#[derive(Serialize)]
struct Spread {
    mean: f64,
    p50: f64,
    p90: f64,
    p95: f64,
    p99: f64,
}

impl Spread {
    fn new(mut seconds: Vec<f64>) -> Option<Spread> {
        if seconds.is_empty() {
            return None;
        }
        seconds.sort_by(f64::total_cmp);
        let p = |share| 1e3 * percentile(&seconds, share);
        Some(Spread {
            mean: 1e3 * seconds.iter().sum::<f64>() / seconds.len() as f64,
            p50: p(0.5),
            p90: p(0.9),
            p95: p(0.95),
            p99: p(0.99),
        })
    }
}

/// Of ascending numbers, between the nearest two where it falls between them.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let below = place.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (place - below as f64) * (sorted[above] - sorted[below])
}

#[derive(Serialize)]
struct Report {
    what: &'static str,
    url: String,
    load: Load,
    requests: usize,
    failed: usize,
    first_error: Option<String>,
    seconds: f64,
    prompt_tokens: u64,
    completion_tokens: u64,
    /// Answered requests per second.
    request_throughput: f64,
    /// Generated tokens per second, all clients together.
    output_throughput: f64,
    /// Prompt and generated tokens per second.
    total_throughput: f64,
    /// Requests per second that kept within the bounds; none where no bound is given.
    goodput: Option<f64>,
    bounds: Bounds,
    ttft_ms: Option<Spread>,
    tpot_ms: Option<Spread>,
    itl_ms: Option<Spread>,
    e2e_ms: Option<Spread>,
}

impl Report {
    fn new(
        args: &BenchServeArgs,
        bounds: &Bounds,
        taken: &[Taken],
        errors: &[String],
        seconds: f64,
    ) -> Report {
        let prompt_tokens = taken.iter().map(|t| t.prompt_tokens).sum();
        let completion_tokens = taken.iter().map(|t| t.completion_tokens).sum();
        let kept = taken.iter().filter(|t| bounds.kept(t)).count();
        Report {
            what: "serve",
            url: args.url.clone(),
            load: match args.rate {
                Some(rate) => Load::Open { rate },
                None => Load::Closed { concurrency: args.concurrency },
            },
            requests: args.requests,
            failed: errors.len(),
            first_error: errors.first().cloned(),
            seconds,
            prompt_tokens,
            completion_tokens,
            request_throughput: taken.len() as f64 / seconds,
            output_throughput: completion_tokens as f64 / seconds,
            total_throughput: (prompt_tokens + completion_tokens) as f64 / seconds,
            goodput: bounds.any().then_some(kept as f64 / seconds),
            bounds: *bounds,
            ttft_ms: Spread::new(taken.iter().map(|t| t.ttft).collect()),
            tpot_ms: Spread::new(taken.iter().filter_map(Taken::tpot).collect()),
            itl_ms: Spread::new(taken.iter().flat_map(|t| t.gaps.clone()).collect()),
            e2e_ms: Spread::new(taken.iter().map(|t| t.e2e).collect()),
        }
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "{} requests in {:.1} s{}: {:.2} requests/s, {:.1} generated tokens/s, {:.1} tokens/s with prompts",
            self.requests,
            self.seconds,
            match self.failed {
                0 => String::new(),
                n => format!(" ({n} failed)"),
            },
            self.request_throughput,
            self.output_throughput,
            self.total_throughput
        )?;
        if let Some(goodput) = self.goodput {
            writeln!(f, "goodput: {goodput:.2} requests/s within the bounds")?;
        }
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        table.set_header(["ms", "mean", "p50", "p90", "p95", "p99"]);
        for (name, spread) in [
            ("TTFT", &self.ttft_ms),
            ("TPOT", &self.tpot_ms),
            ("ITL", &self.itl_ms),
            ("E2E", &self.e2e_ms),
        ] {
            if let Some(s) = spread {
                let values = [s.mean, s.p50, s.p90, s.p95, s.p99].map(|v| format!("{v:.1}"));
                table.add_row([&[name.to_owned()], &values[..]].concat());
            }
        }
        writeln!(f, "{table}")?;
        writeln!(
            f,
            "TTFT: sent to first text. TPOT: (E2E - TTFT) / (generated tokens - 1). ITL: between two pieces \
             of text.\nE2E: sent to the end of the stream."
        )?;
        if let Some(error) = &self.first_error {
            writeln!(f, "first error: {error}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_numpy_s() {
        // numpy.percentile([1, 2, 3, 4], [0, 50, 95, 100])
        let sorted = [1.0, 2.0, 3.0, 4.0];
        let found = [0.0, 0.5, 0.95, 1.0].map(|p| percentile(&sorted, p));
        for (found, expected) in found.iter().zip([1.0, 2.5, 3.85, 4.0]) {
            assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        }
        assert_eq!(percentile(&[7.0], 0.99), 7.0);
    }

    #[test]
    fn a_request_is_good_when_it_keeps_every_bound() {
        let taken = Taken {
            ttft: 0.2,
            gaps: vec![0.1; 4],
            e2e: 0.6,
            prompt_tokens: 3,
            completion_tokens: 5,
        };
        assert!((taken.tpot().unwrap() - 0.1).abs() < 1e-12);
        let read = |entries: &[&str]| {
            Bounds::read(&entries.iter().map(|e| (*e).to_owned()).collect::<Vec<_>>())
        };
        assert!(read(&["ttft:200", "tpot:101", "e2el:600"]).unwrap().kept(&taken));
        for entry in ["ttft:199", "tpot:99", "e2el:599"] {
            assert!(!read(&[entry]).unwrap().kept(&taken), "{entry}");
        }
        for entry in ["ttft", "ttft:x", "ttft:-1", "speed:3"] {
            assert!(read(&[entry]).unwrap_err().to_string().contains(entry));
        }
    }
}
