//! Usage: one row for each request that reached a model, and sums of them.

use super::{Database, StoreError};
use crate::digest::Digest;
use rusqlite::{OptionalExtension, named_params};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A request that has ended. Nothing of its contents.
#[derive(Clone, Debug)]
pub(crate) struct UsageRecord {
    /// 32 hexadecimal digits.
    pub(crate) request_id: String,
    /// None while the server asks for no key.
    pub(crate) key_id: Option<i64>,
    /// The name that it put into `model`.
    pub(crate) model: String,
    /// Which weights that was.
    pub(crate) digest: Digest,
    /// The path.
    pub(crate) endpoint: &'static str,
    pub(crate) prompt_tokens: usize,
    /// Of `prompt_tokens`, those whose keys and values were there already.
    pub(crate) cached_tokens: usize,
    pub(crate) completion_tokens: usize,
    /// Until it first ran; None when it never did.
    pub(crate) queue: Option<Duration>,
    /// From arrival to the first token.
    pub(crate) first_token: Option<Duration>,
    /// From arrival to the end.
    pub(crate) total: Duration,
    /// `ok`, `cancelled`, or the code of an error.
    pub(crate) outcome: String,
    /// Unix seconds at the end.
    pub(crate) time: u64,
}

/// What tokens cost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Prices {
    /// ISO 4217 code.
    pub currency: String,
    /// Price of a million prompt tokens.
    pub input_per_mtok: f64,
    /// Price of a million prompt tokens whose keys and values were in the cache.
    pub cached_input_per_mtok: f64,
    /// Price of a million answer tokens.
    pub output_per_mtok: f64,
}

impl Prices {
    /// The price of so many tokens; `cached` are among those of `prompt`.
    pub fn cost(&self, prompt: u64, cached: u64, completion: u64) -> f64 {
        let cached = cached.min(prompt);
        (((prompt - cached) as f64) * self.input_per_mtok
            + cached as f64 * self.cached_input_per_mtok
            + completion as f64 * self.output_per_mtok)
            / 1e6
    }
}

/// What rows of usage are put together by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsageBy {
    /// The key's name and prefix.
    Key,
    /// The name in `model` and the digest behind it.
    Adapter,
    /// The day, UTC.
    Day,
}

/// Sums of usage.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct UsageRow {
    /// The key, model or day.
    pub group: String,
    /// What tells two of the same name apart: the key's prefix or the model's digest.
    pub detail: String,
    /// Requests in all.
    pub requests: u64,
    /// Of them, those whose client went away.
    pub cancelled: u64,
    /// Of them, those that ended in an error.
    pub failed: u64,
    /// Tokens of prompts.
    pub prompt_tokens: u64,
    /// Of them, those found in the cache.
    pub cached_tokens: u64,
    /// Tokens of answers.
    pub completion_tokens: u64,
    /// Mean seconds before a request first ran.
    pub mean_queue_seconds: Option<f64>,
    /// Mean seconds from arrival to the first token.
    pub mean_first_token_seconds: Option<f64>,
    /// Mean seconds from arrival to the end.
    pub mean_total_seconds: f64,
}

/// What happened, in its order, for a test that may be looked at every night.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Happened {
    /// Of each request whose client stayed: whether it failed.
    pub failed: Vec<bool>,
    /// Of each rating: whether it is below 0.
    pub disliked: Vec<bool>,
}

impl Database {
    /// Requests and ratings from `from` (Unix seconds) on; of one name in `model`, or of all.
    ///
    /// # Errors
    /// [`StoreError::Sql`].
    pub fn happened(&self, model: Option<&str>, from: u64) -> Result<Happened, StoreError> {
        let (from, mut happened) = (from.cast_signed(), Happened::default());
        let mut requests = self.connection.prepare(
            "SELECT outcome <> 'ok' FROM usage
             WHERE time >= ?1 AND (?2 IS NULL OR model = ?2) AND outcome <> 'cancelled' ORDER BY id",
        )?;
        for failed in requests.query_map((from, model), |row| row.get(0))? {
            happened.failed.push(failed?);
        }
        // A rating that was changed counts as it was given first, so that the order stays that of what
        // happened.
        let mut ratings = self.connection.prepare(
            "SELECT rating < 0 FROM feedback JOIN usage USING (request_id)
             WHERE feedback.time >= ?1 AND (?2 IS NULL OR model = ?2) AND rating IS NOT NULL
                 AND NOT EXISTS (SELECT 1 FROM feedback f WHERE f.request_id = feedback.request_id
                     AND f.rating IS NOT NULL AND f.id < feedback.id)
             ORDER BY feedback.id",
        )?;
        for disliked in ratings.query_map((from, model), |row| row.get(0))? {
            happened.disliked.push(disliked?);
        }
        Ok(happened)
    }

    pub(crate) fn insert_usage(&self, record: &UsageRecord) -> Result<(), StoreError> {
        let seconds = |d: Duration| d.as_secs_f64();
        let mut insert = self.connection.prepare_cached(
            "INSERT INTO usage (request_id, key_id, model, digest, endpoint, prompt_tokens,
                 cached_tokens, completion_tokens, queue, first_token, total, outcome, time)
             VALUES (:request_id, :key_id, :model, :digest, :endpoint, :prompt, :cached,
                 :completion, :queue, :first_token, :total, :outcome, :time)",
        )?;
        insert.execute(named_params! {
            ":request_id": record.request_id,
            ":key_id": record.key_id,
            ":model": record.model,
            ":digest": record.digest.get(),
            ":endpoint": record.endpoint,
            ":prompt": record.prompt_tokens as i64,
            ":cached": record.cached_tokens as i64,
            ":completion": record.completion_tokens as i64,
            ":queue": record.queue.map(seconds),
            ":first_token": record.first_token.map(seconds),
            ":total": seconds(record.total),
            ":outcome": record.outcome,
            ":time": record.time.cast_signed(),
        })?;
        let Some(key_id) = record.key_id else { return Ok(()) };
        let mut add = self.connection.prepare_cached(
            "INSERT INTO spent VALUES (:key_id, strftime('%Y-%m', :time, 'unixepoch'), :prompt,
                 :cached, :completion)
             ON CONFLICT DO UPDATE SET
                 prompt_tokens = prompt_tokens + excluded.prompt_tokens,
                 cached_tokens = cached_tokens + excluded.cached_tokens,
                 completion_tokens = completion_tokens + excluded.completion_tokens",
        )?;
        add.execute(named_params! {
            ":key_id": key_id,
            ":time": record.time.cast_signed(),
            ":prompt": record.prompt_tokens as i64,
            ":cached": record.cached_tokens as i64,
            ":completion": record.completion_tokens as i64,
        })?;
        Ok(())
    }

    /// What a key has spent in the calendar month (UTC) of `now`, Unix seconds.
    pub(crate) fn spent(&self, key_id: i64, prices: &Prices, now: u64) -> Result<f64, StoreError> {
        let mut query = self.connection.prepare_cached(
            "SELECT prompt_tokens, cached_tokens, completion_tokens FROM spent
             WHERE key_id = ?1 AND month = strftime('%Y-%m', ?2, 'unixepoch')",
        )?;
        let tokens = query
            .query_row((key_id, now.cast_signed()), |row| {
                Ok([0, 1, 2].map(|i| row.get::<_, i64>(i).map(i64::cast_unsigned)))
            })
            .optional()?;
        let Some([prompt, cached, completion]) = tokens else { return Ok(0.0) };
        Ok(prices.cost(prompt?, cached?, completion?))
    }

    /// Sums of the usage from `from` up to, not including, `to` (Unix seconds), by group.
    ///
    /// # Errors
    /// [`StoreError::Sql`].
    pub fn usage(&self, by: UsageBy, from: u64, to: u64) -> Result<Vec<UsageRow>, StoreError> {
        let (group, detail) = match by {
            UsageBy::Key => ("coalesce(keys.name, '(no key)')", "coalesce(keys.prefix, '')"),
            UsageBy::Adapter => ("model", "digest"),
            UsageBy::Day => ("strftime('%Y-%m-%d', time, 'unixepoch')", "''"),
        };
        let sql = format!(
            "SELECT {group}, {detail}, count(*), sum(outcome = 'cancelled'),
                 sum(outcome NOT IN ('ok', 'cancelled')), sum(prompt_tokens), sum(cached_tokens),
                 sum(completion_tokens), avg(queue), avg(first_token), avg(total)
             FROM usage LEFT JOIN keys ON keys.id = usage.key_id
             WHERE time >= ?1 AND time < ?2 GROUP BY 1, 2 ORDER BY 1, 2"
        );
        let mut query = self.connection.prepare(&sql)?;
        let bound = |seconds: u64| i64::try_from(seconds).unwrap_or(i64::MAX);
        let rows = query.query_map([bound(from), bound(to)], |row| {
            let count = |column: usize| row.get::<_, i64>(column).map(i64::cast_unsigned);
            Ok(UsageRow {
                group: row.get(0)?,
                detail: row.get(1)?,
                requests: count(2)?,
                cancelled: count(3)?,
                failed: count(4)?,
                prompt_tokens: count(5)?,
                cached_tokens: count(6)?,
                completion_tokens: count(7)?,
                mean_queue_seconds: row.get(8)?,
                mean_first_token_seconds: row.get(9)?,
                mean_total_seconds: row.get(10)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::store::NewKey;

    /// A record of 100 prompt tokens, 20 of them cached, and 10 answer tokens.
    pub(in crate::store) fn record(id: &str, key_id: Option<i64>, time: u64) -> UsageRecord {
        UsageRecord {
            request_id: id.into(),
            key_id,
            model: "red".into(),
            digest: "d1".to_owned().into(),
            endpoint: "/v1/completions",
            prompt_tokens: 100,
            cached_tokens: 20,
            completion_tokens: 10,
            queue: Some(Duration::from_millis(250)),
            first_token: Some(Duration::from_millis(500)),
            total: Duration::from_secs(1),
            outcome: "ok".into(),
            time,
        }
    }

    #[test]
    fn what_happened_stands_in_its_order() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(dir.path()).unwrap();
        for (id, outcome, model, time) in [
            ("a", "ok", "red", 10),
            ("b", "queue_full", "red", 11),
            ("c", "cancelled", "red", 12),
            ("d", "ok", "blue", 13),
        ] {
            let record = UsageRecord {
                outcome: outcome.into(),
                model: model.into(),
                ..record(id, None, time)
            };
            database.insert_usage(&record).unwrap();
        }
        for (id, rating, time) in
            [("d", Some(-1.0), 20), ("a", None, 21), ("a", Some(1.0), 22), ("a", Some(-1.0), 23)]
        {
            let feedback = crate::store::feedback::Feedback {
                request_id: id.into(),
                rating,
                correction: None,
                comment: None,
                time,
                delete_after: 99,
            };
            database.insert_feedback(&feedback).unwrap();
        }
        let all = database.happened(None, 0).unwrap();
        assert_eq!((all.failed, all.disliked), (vec![false, true, false], vec![true, false]));
        let red = database.happened(Some("red"), 11).unwrap();
        assert_eq!((red.failed, red.disliked), (vec![true], vec![false]));
        assert_eq!(database.happened(Some("green"), 0).unwrap(), Happened::default());
    }

    #[test]
    fn sums_are_by_key_model_and_day_and_budgets_by_month() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(dir.path()).unwrap();
        let new = NewKey { name: "ann".into(), ..NewKey::default() };
        let key = database.create_key(&new, 1).unwrap().1;
        // 2026-01-31 23:59:59 and a second later.
        let (january, february) = (1_769_903_999, 1_769_904_000);
        let put = |record: UsageRecord| database.insert_usage(&record).unwrap();
        put(record("a", Some(key.id), january));
        put(record("b", Some(key.id), february));
        put(UsageRecord {
            outcome: "cancelled".into(),
            queue: None,
            first_token: None,
            ..record("c", Some(key.id), february)
        });
        put(UsageRecord {
            model: "blue".into(),
            outcome: "queue_full".into(),
            ..record("d", None, february)
        });

        let shown = |by, from, to| -> Vec<String> {
            let rows = database.usage(by, from, to).unwrap();
            let show = |r: UsageRow| {
                format!(
                    "{} {}/{}/{} {}",
                    r.group, r.requests, r.cancelled, r.failed, r.prompt_tokens
                )
            };
            rows.into_iter().map(show).collect()
        };
        assert_eq!(shown(UsageBy::Key, 0, u64::MAX), ["(no key) 1/0/1 100", "ann 3/1/0 300"]);
        assert_eq!(shown(UsageBy::Adapter, 0, u64::MAX), ["blue 1/0/1 100", "red 3/1/0 300"]);
        assert_eq!(
            shown(UsageBy::Day, 0, u64::MAX),
            ["2026-01-31 1/0/0 100", "2026-02-01 3/1/1 300"]
        );
        assert_eq!(shown(UsageBy::Day, 0, february), ["2026-01-31 1/0/0 100"]);
        let row = &database.usage(UsageBy::Key, 0, february).unwrap()[0];
        assert_eq!((row.detail.as_str(), row.completion_tokens), (key.prefix.as_str(), 10));
        assert_eq!((row.mean_queue_seconds, row.mean_total_seconds), (Some(0.25), 1.0));

        let prices = Prices {
            currency: "EUR".into(),
            input_per_mtok: 1.0,
            cached_input_per_mtok: 0.5,
            output_per_mtok: 10.0,
        };
        // (80 + 20 / 2 + 100) / 1e6 for each request.
        let spent = |now| database.spent(key.id, &prices, now).unwrap() * 1e6;
        assert!((spent(january) - 190.0).abs() < 1e-9, "{}", spent(january));
        assert!((spent(february + 86_400) - 380.0).abs() < 1e-9);
        assert_eq!(spent(february + 40 * 86_400), 0.0);
    }

    #[test]
    fn cached_tokens_are_part_of_the_prompt() {
        let prices = Prices { input_per_mtok: 2.0, ..Prices::default() };
        assert_eq!(prices.cost(1_000_000, 250_000, 5), 1.5);
        assert_eq!(prices.cost(10, 20, 0), 0.0, "more cached than there is counts as all of it");
    }
}
