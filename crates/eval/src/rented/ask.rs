//! One request until something final comes back: an answer, a failure that may have cost money, or the
//! endpoint's refusal to take it.

use super::Endpoint;
use super::wire::{self, Parsed};
use serde_json::Value;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use ureq::http::Response;
use ureq::{Agent, Body};

/// Longest response that is read.
const MAX_BODY: u64 = 8 << 20;
/// Longest wait for a connection.
const LONGEST_CONNECT: Duration = Duration::from_secs(30);
/// Most of a response that an error quotes, characters.
const QUOTED: usize = 300;

/// What came of a request.
pub(super) enum Asked {
    /// An answer.
    Answered(Parsed, Duration),
    /// It may have been paid for, and there is no answer: never sent again by itself.
    Failed(String),
    /// The endpoint did not take it, so it cost nothing.
    NotTaken(String),
    /// It would be the same for every request: a wrong key, model or address.
    Refused(String),
}

/// What one attempt gave.
enum Attempt {
    Done(Asked),
    /// To be sent again, after this pause where the endpoint says one.
    Again(String, Option<Duration>),
}

/// Sends requests; all threads share the pause that an endpoint asks for.
pub(super) struct Asker<'a> {
    endpoint: &'a Endpoint,
    agent: Agent,
    not_before: Mutex<Instant>,
}

impl<'a> Asker<'a> {
    pub(super) fn new(endpoint: &'a Endpoint) -> Asker<'a> {
        let config = Agent::config_builder()
            .timeout_global(Some(endpoint.timeout))
            .timeout_connect(Some(endpoint.timeout.min(LONGEST_CONNECT)))
            // A kept connection that the endpoint closes meanwhile would lose a request after it was sent.
            .max_idle_connections(0)
            .http_status_as_error(false)
            // The key belongs to this address and to no other.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("metier/", env!("CARGO_PKG_VERSION")));
        let agent = config.build().new_agent();
        Asker { endpoint, agent, not_before: Mutex::new(Instant::now()) }
    }

    /// Sends `body` until it is answered, has failed, or was not taken as often as is allowed.
    pub(super) fn ask(&self, body: &Value) -> Asked {
        let mut pause = self.endpoint.first_pause;
        for attempt in 1.. {
            self.wait();
            let (reason, asked_for) = match self.attempt(body) {
                Attempt::Done(asked) => return asked,
                Attempt::Again(reason, asked_for) => (reason, asked_for),
            };
            let reason = self.endpoint.hidden(&reason);
            let wanted = asked_for.unwrap_or(pause);
            if attempt >= self.endpoint.attempts {
                return Asked::NotTaken(format!("{reason}, {attempt} times"));
            }
            if wanted > self.endpoint.longest_pause {
                return Asked::NotTaken(format!(
                    "{reason}; it asks to wait {} s",
                    wanted.as_secs()
                ));
            }
            match asked_for {
                // It holds for every request, so every thread waits.
                Some(_) => self.hold_back(wanted),
                None => std::thread::sleep(wanted),
            }
            pause = (pause * 2).min(self.endpoint.longest_pause);
        }
        Asked::NotTaken("it was never sent".to_owned())
    }

    fn wait(&self) {
        let until = *self.not_before.lock().unwrap_or_else(PoisonError::into_inner);
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
    }

    fn hold_back(&self, pause: Duration) {
        let mut until = self.not_before.lock().unwrap_or_else(PoisonError::into_inner);
        *until = (*until).max(Instant::now() + pause);
    }

    fn attempt(&self, body: &Value) -> Attempt {
        let started = Instant::now();
        let mut request =
            self.agent.post(wire::address(self.endpoint)).content_type("application/json");
        for (name, value) in wire::headers(self.endpoint) {
            request = request.header(name, value);
        }
        match request.send(body.to_string()) {
            Ok(response) => self.read(response, started),
            Err(error) if before_sending(&error) => {
                Attempt::Again(format!("it cannot be reached: {error}"), None)
            }
            Err(error) => {
                Attempt::Done(Asked::Failed(self.endpoint.hidden(&format!(
                    "the connection was lost after the request was sent: {error}"
                ))))
            }
        }
    }

    fn read(&self, mut response: Response<Body>, started: Instant) -> Attempt {
        let status = response.status().as_u16();
        let retry_after = retry_after(&response);
        let body = response.body_mut().with_config().limit(MAX_BODY).read_to_string();
        let quoted = |body: &str| {
            let body = self.endpoint.hidden(body.trim());
            let mut short: String = body.chars().take(QUOTED).collect();
            if body.chars().count() > QUOTED {
                short.push('…');
            }
            short
        };
        let said = body.as_ref().map_or_else(ToString::to_string, |body| quoted(body));
        match (status, &body) {
            (200..=299, Ok(body)) => {
                Attempt::Done(match wire::response(self.endpoint.protocol, body) {
                    Ok(parsed) => Asked::Answered(parsed, started.elapsed()),
                    Err(reason) => Asked::Failed(format!("{reason}: {said}")),
                })
            }
            (200..=299, Err(_)) => {
                Attempt::Done(Asked::Failed(format!("the answer broke off: {said}")))
            }
            // Too many requests, or a server that is overloaded or failing.
            (408 | 409 | 425 | 429 | 500..=599, _) => {
                Attempt::Again(format!("status {status}: {said}"), retry_after)
            }
            (300..=399 | 401 | 402 | 403 | 404 | 405, _) => {
                Attempt::Done(Asked::Refused(format!("status {status}: {said}")))
            }
            // This request alone is refused: too long, against a policy.
            _ => Attempt::Done(Asked::Failed(format!("status {status}: {said}"))),
        }
    }
}

/// Seconds of `Retry-After`; a date there is rare and is answered by our own pauses.
fn retry_after(response: &Response<Body>) -> Option<Duration> {
    let seconds: f64 = response.headers().get("retry-after")?.to_str().ok()?.trim().parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// Whether nothing can have reached the endpoint.
fn before_sending(error: &ureq::Error) -> bool {
    use std::io::ErrorKind;
    match error {
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed | ureq::Error::Tls(_) => true,
        ureq::Error::Timeout(at) => matches!(at, ureq::Timeout::Resolve | ureq::Timeout::Connect),
        ureq::Error::Io(error) => error.kind() == ErrorKind::ConnectionRefused,
        _ => false,
    }
}
