//! How much a key may ask: requests and tokens in a minute, and money in a month.

use crate::error::ApiError;
use crate::store::{Key, Prices, Store};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What keys have used lately. In memory: a restart begins with full buckets, which gives at most one
/// minute's worth.
#[derive(Default)]
pub(crate) struct Limits {
    buckets: Mutex<HashMap<i64, Buckets>>,
}

#[derive(Default)]
struct Buckets {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
}

impl Limits {
    /// The buckets of a key, as full as they are now.
    fn of<T>(&self, key: &Key, now: Instant, use_them: impl FnOnce(&mut Buckets) -> T) -> T {
        let mut all: MutexGuard<'_, _> =
            self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let buckets = all.entry(key.id).or_insert_with(|| Buckets {
            requests: key.requests_per_minute.map(|most| Bucket::full(most, now)),
            tokens: key.tokens_per_minute.map(|most| Bucket::full(most, now)),
        });
        for bucket in [&mut buckets.requests, &mut buckets.tokens].into_iter().flatten() {
            bucket.refill(now);
        }
        use_them(buckets)
    }

    /// Counts a request.
    ///
    /// # Errors
    /// 429 when the minute's requests are used up.
    pub(crate) fn request(&self, key: &Key, now: Instant) -> Result<(), ApiError> {
        self.of(key, now, |buckets| match &mut buckets.requests {
            Some(bucket) => bucket.take(1.0).map_err(|wait| {
                ApiError::rate_limited(
                    "requests",
                    format!("more than {} requests in a minute", bucket.most),
                    Some(wait),
                )
            }),
            None => Ok(()),
        })
    }

    /// Counts the tokens of a prompt. Those of its answer are not known yet: they are counted when it
    /// has ended, and may put the key into debt until they are made up for.
    ///
    /// # Errors
    /// 429 when the minute's tokens do not suffice; without a time to come back when they never would.
    pub(crate) fn prompt(&self, key: &Key, tokens: usize, now: Instant) -> Result<(), ApiError> {
        self.of(key, now, |buckets| match &mut buckets.tokens {
            Some(bucket) if tokens as f64 > bucket.most => Err(ApiError::rate_limited(
                "tokens",
                format!(
                    "the prompt has {tokens} tokens, this key may use {} in a minute. hint: shorten it",
                    bucket.most
                ),
                None,
            )),
            Some(bucket) => bucket.take(tokens as f64).map_err(|wait| {
                ApiError::rate_limited(
                    "tokens",
                    format!("more than {} tokens in a minute", bucket.most),
                    Some(wait),
                )
            }),
            None => Ok(()),
        })
    }

    /// Counts the tokens of an answer.
    pub(crate) fn answer(&self, key: &Key, tokens: usize, now: Instant) {
        self.of(key, now, |buckets| {
            if let Some(bucket) = &mut buckets.tokens {
                bucket.level -= tokens as f64;
            }
        });
    }

    /// The headers in which OpenAI tells clients their limits.
    pub(crate) fn headers(&self, key: &Key, now: Instant, headers: &mut HeaderMap) {
        self.of(key, now, |buckets| {
            for (what, bucket) in [("requests", &buckets.requests), ("tokens", &buckets.tokens)] {
                let Some(bucket) = bucket else { continue };
                for (part, value) in [
                    ("limit", bucket.most.to_string()),
                    ("remaining", bucket.level.max(0.0).floor().to_string()),
                    ("reset", in_words(bucket.until(bucket.most))),
                ] {
                    let name = HeaderName::try_from(format!("x-ratelimit-{part}-{what}"));
                    if let (Ok(name), Ok(value)) = (name, HeaderValue::try_from(value)) {
                        headers.insert(name, value);
                    }
                }
            }
        });
    }
}

/// Whether a key has money left this month. Looked at before a request begins, so the requests that
/// run at the same time can together go beyond it by what they cost.
///
/// # Errors
/// 429 when it is spent; 403 when nobody has told the server its prices.
pub(crate) fn check_budget(
    key: &Key,
    prices: Option<&Prices>,
    store: &Store,
    now: u64,
) -> Result<(), ApiError> {
    let Some(budget) = key.monthly_budget else { return Ok(()) };
    let prices = prices.ok_or_else(ApiError::budget_without_prices)?;
    let spent = store
        .read(|database| database.spent(key.id, prices, now))
        .map_err(|e| ApiError::store(&e))?;
    if spent < budget {
        return Ok(());
    }
    Err(ApiError::budget_spent(format!(
        "this key has spent {spent:.4} of its {budget} {} for this month",
        prices.currency
    )))
}

/// Fills steadily up to a minute's worth (a token bucket).
struct Bucket {
    /// What goes in within a minute, and at most holds.
    most: f64,
    /// Below 0 where more was used than there was.
    level: f64,
    at: Instant,
}

impl Bucket {
    fn full(most: u32, at: Instant) -> Bucket {
        Bucket { most: f64::from(most), level: f64::from(most), at }
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = (self.level + passed * self.most / 60.0).min(self.most);
        self.at = self.at.max(now);
    }

    /// Takes `amount` out, or says when it will be there.
    fn take(&mut self, amount: f64) -> Result<(), Duration> {
        if self.level < amount {
            return Err(self.until(amount));
        }
        self.level -= amount;
        Ok(())
    }

    /// Time until the level reaches `amount`.
    fn until(&self, amount: f64) -> Duration {
        Duration::from_secs_f64((amount - self.level).max(0.0) * 60.0 / self.most)
    }
}

/// A time as OpenAI writes it: `20ms`, `1.5s`, `6m0s`.
fn in_words(time: Duration) -> String {
    match time.as_millis() {
        ms @ 0..1000 => format!("{ms}ms"),
        ms @ 1000..60_000 => format!("{}s", ms as f64 / 1000.0),
        ms => format!("{}m{}s", ms / 60_000, ms % 60_000 / 1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::StatusCode;
    use axum::response::IntoResponse;

    fn key(requests: Option<u32>, tokens: Option<u32>) -> Key {
        Key {
            id: 1,
            name: "ann".into(),
            prefix: "mk-00000000".into(),
            admin: false,
            models: None,
            requests_per_minute: requests,
            tokens_per_minute: tokens,
            monthly_budget: None,
            retention_days: None,
            created: 0,
            expires: None,
            revoked: None,
        }
    }

    /// `Retry-After` of a refusal.
    fn wait(result: Result<(), ApiError>) -> Option<String> {
        let response = result.unwrap_err().into_response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        let header = response.headers().get("retry-after")?;
        Some(header.to_str().unwrap().to_owned())
    }

    #[test]
    fn requests_are_counted_and_come_back() {
        let (limits, key, start) = (Limits::default(), key(Some(6), None), Instant::now());
        let after = |seconds: f64| start + Duration::from_secs_f64(seconds);
        for _ in 0..6 {
            limits.request(&key, start).unwrap();
        }
        assert_eq!(wait(limits.request(&key, start)), Some("10".into()));
        assert_eq!(wait(limits.request(&key, after(9.5))), Some("1".into()), "rounded up");
        limits.request(&key, after(10.0)).unwrap();
        assert_eq!(wait(limits.request(&key, after(10.0))), Some("10".into()));
        for _ in 0..6 {
            limits.request(&key, after(1000.0)).unwrap();
        }
        assert!(limits.request(&key, after(1000.0)).is_err(), "never more than a minute's worth");
        limits.prompt(&key, 1_000_000, start).unwrap();
    }

    #[test]
    fn tokens_of_answers_may_go_into_debt() {
        let (limits, key, start) = (Limits::default(), key(None, Some(600)), Instant::now());
        let after = |seconds: u64| start + Duration::from_secs(seconds);
        limits.prompt(&key, 500, start).unwrap();
        limits.answer(&key, 200, start);
        // 100 below nothing; 10 tokens come in a second.
        assert_eq!(wait(limits.prompt(&key, 50, start)), Some("15".into()));
        assert_eq!(wait(limits.prompt(&key, 50, after(14))), Some("1".into()));
        limits.prompt(&key, 50, after(15)).unwrap();
        assert_eq!(wait(limits.prompt(&key, 601, after(600))), None, "it would never fit");
        limits.prompt(&key, 600, after(600)).unwrap();
    }

    #[test]
    fn limits_are_told_in_openai_s_headers() {
        let (limits, key, start) = (Limits::default(), key(Some(60), Some(600)), Instant::now());
        limits.request(&key, start).unwrap();
        limits.prompt(&key, 400, start).unwrap();
        let mut headers = HeaderMap::new();
        limits.headers(&key, start, &mut headers);
        for (name, value) in [
            ("x-ratelimit-limit-requests", "60"),
            ("x-ratelimit-remaining-requests", "59"),
            ("x-ratelimit-reset-requests", "1s"),
            ("x-ratelimit-limit-tokens", "600"),
            ("x-ratelimit-remaining-tokens", "200"),
            ("x-ratelimit-reset-tokens", "40s"),
        ] {
            assert_eq!(headers[name], value, "{name}");
        }
        for (ms, text) in [(0, "0ms"), (20, "20ms"), (1500, "1.5s"), (360_000, "6m0s")] {
            assert_eq!(in_words(Duration::from_millis(ms)), text);
        }
    }
}
