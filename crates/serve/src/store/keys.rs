//! Keys: who may ask, for what, and how much.
//!
//! A key is `mk-` and 256 random bits in hexadecimal. Only its SHA-256 is kept. A slow hash would add
//! nothing: those guard passwords that people choose, while nobody can try 2^256 keys. A presented
//! key is found by its first characters, which are shown anyway, and compared in constant time.

use super::{Database, StoreError};
use rusqlite::{OptionalExtension, Row, named_params};
use serde::Serialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// How every key begins.
const MARK: &str = "mk-";
/// Random bytes of a key.
const BYTES: usize = 32;
/// Characters of a key that are kept and shown: the mark and 32 of its 256 bits.
const PREFIX: usize = MARK.len() + 8;
/// Days for which contents are kept unless said otherwise.
pub const RETENTION_DAYS: u32 = 30;

/// What a key is to be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NewKey {
    /// Whose it is; unique among keys in force.
    pub name: String,
    /// Whether it opens the admin routes.
    pub admin: bool,
    /// The names that it may put into `model`; None for all, now and later.
    pub models: Option<Vec<String>>,
    /// Most requests in a minute.
    pub requests_per_minute: Option<u32>,
    /// Most tokens in a minute, prompts and answers together.
    pub tokens_per_minute: Option<u32>,
    /// Most to be spent in a calendar month (UTC), in the currency of the prices.
    pub monthly_budget: Option<f64>,
    /// Keep prompts and answers for so many days; None does not keep them.
    pub retention_days: Option<u32>,
    /// Unix seconds from which on it is refused.
    pub expires: Option<u64>,
}

/// A key as it is kept.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Key {
    /// Number in the file.
    pub id: i64,
    /// Whose it is.
    pub name: String,
    /// How it begins.
    pub prefix: String,
    /// Whether it opens the admin routes.
    pub admin: bool,
    /// The names that it may put into `model`; None for all.
    pub models: Option<Vec<String>>,
    /// Most requests in a minute.
    pub requests_per_minute: Option<u32>,
    /// Most tokens in a minute.
    pub tokens_per_minute: Option<u32>,
    /// Most to be spent in a calendar month (UTC).
    pub monthly_budget: Option<f64>,
    /// For how many days prompts and answers are kept; None: not at all.
    pub retention_days: Option<u32>,
    /// Unix seconds.
    pub created: u64,
    /// Unix seconds from which on it is refused.
    pub expires: Option<u64>,
    /// Unix seconds since when it is refused.
    pub revoked: Option<u64>,
}

impl Key {
    /// Whether requests may name this model.
    pub(crate) fn may_name(&self, model: &str) -> bool {
        self.models.as_ref().is_none_or(|names| names.iter().any(|name| name == model))
    }

    /// `in force`, `expired` or `revoked`, at `now` in Unix seconds.
    pub fn status(&self, now: u64) -> &'static str {
        match (self.revoked, self.expires) {
            (Some(_), _) => "revoked",
            (None, Some(end)) if end <= now => "expired",
            _ => "in force",
        }
    }
}

/// A new key's text: shown once, kept nowhere.
pub struct Secret(String);

impl Secret {
    fn new() -> Secret {
        let random: [u8; BYTES] = rand::random();
        Secret(random.iter().fold(MARK.to_owned(), |text, byte| format!("{text}{byte:02x}")))
    }

    /// The text, to be shown once.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secret({}...)", &self.0[..PREFIX])
    }
}

/// What a presented key is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Identity {
    /// In force.
    Valid(Key),
    /// Not one of ours.
    Unknown,
    /// One of ours that is refused; why, in a word.
    Refused(&'static str),
}

fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

const COLUMNS: &str = "id, name, prefix, admin, models, requests_per_minute, tokens_per_minute, \
     monthly_budget, retention_days, created, expires, revoked, sha256";

/// A key and its digest, from [`COLUMNS`].
fn read(row: &Row<'_>) -> rusqlite::Result<(Key, [u8; 32])> {
    let models: Option<String> = row.get(4)?;
    let list = |text: String| {
        serde_json::from_str(&text).map_err(|e| {
            rusqlite::Error::FromSqlConversionFailure(4, rusqlite::types::Type::Text, Box::new(e))
        })
    };
    let key = Key {
        id: row.get(0)?,
        name: row.get(1)?,
        prefix: row.get(2)?,
        admin: row.get(3)?,
        models: models.map(list).transpose()?,
        requests_per_minute: row.get(5)?,
        tokens_per_minute: row.get(6)?,
        monthly_budget: row.get(7)?,
        retention_days: row.get(8)?,
        created: row.get::<_, i64>(9)?.cast_unsigned(),
        expires: row.get::<_, Option<i64>>(10)?.map(i64::cast_unsigned),
        revoked: row.get::<_, Option<i64>>(11)?.map(i64::cast_unsigned),
    };
    Ok((key, row.get(12)?))
}

impl Database {
    /// Makes a key; `now` in Unix seconds. It counts from the moment that this returns, also for
    /// servers that run already.
    ///
    /// # Errors
    /// [`StoreError::Key`] naming what is wrong, [`StoreError::NameTaken`].
    pub fn create_key(&self, new: &NewKey, now: u64) -> Result<(Secret, Key), StoreError> {
        new.check()?;
        let secret = Secret::new();
        let models = new.models.as_ref().map(|m| serde_json::json!(m).to_string());
        let inserted = self.connection.execute(
            "INSERT INTO keys (name, prefix, sha256, admin, models, requests_per_minute,
                 tokens_per_minute, monthly_budget, retention_days, created, expires)
             VALUES (:name, :prefix, :sha256, :admin, :models, :requests, :tokens, :budget,
                 :retention, :created, :expires)",
            named_params! {
                ":name": new.name,
                ":prefix": &secret.reveal()[..PREFIX],
                ":sha256": digest(secret.reveal()),
                ":admin": new.admin,
                ":models": models,
                ":requests": new.requests_per_minute,
                ":tokens": new.tokens_per_minute,
                ":budget": new.monthly_budget,
                ":retention": new.retention_days,
                ":created": now.cast_signed(),
                ":expires": new.expires.map(u64::cast_signed),
            },
        );
        match inserted {
            Err(rusqlite::Error::SqliteFailure(e, _))
                if e.code == rusqlite::ErrorCode::ConstraintViolation =>
            {
                return Err(StoreError::NameTaken(new.name.clone()));
            }
            other => other?,
        };
        let id = self.connection.last_insert_rowid();
        let sql = format!("SELECT {COLUMNS} FROM keys WHERE id = ?1");
        let (key, _) = self.connection.query_row(&sql, [id], read)?;
        Ok((secret, key))
    }

    /// All keys, those refused too, in the order of their making.
    ///
    /// # Errors
    /// [`StoreError::Sql`].
    pub fn keys(&self) -> Result<Vec<Key>, StoreError> {
        let mut query =
            self.connection.prepare_cached(&format!("SELECT {COLUMNS} FROM keys ORDER BY id"))?;
        let keys = query.query_map([], |row| Ok(read(row)?.0))?.collect::<Result<_, _>>()?;
        Ok(keys)
    }

    /// Refuses the key of that name, or that begins so, from now on; also in servers that run.
    ///
    /// # Errors
    /// [`StoreError::NoSuchKey`].
    pub fn revoke_key(&self, name_or_prefix: &str, now: u64) -> Result<Key, StoreError> {
        let sql = format!(
            "UPDATE keys SET revoked = ?2 WHERE revoked IS NULL AND (name = ?1 OR prefix = ?1) \
             RETURNING {COLUMNS}"
        );
        let revoked = self
            .connection
            .query_row(&sql, (name_or_prefix, now.cast_signed()), read)
            .optional()?;
        match revoked {
            Some((key, _)) => Ok(key),
            None => Err(StoreError::NoSuchKey(name_or_prefix.to_owned())),
        }
    }

    /// Whether a key was ever made. Keys are never deleted, so once true stays true: a server whose
    /// keys are all revoked is closed, not open.
    ///
    /// # Errors
    /// [`StoreError::Sql`].
    pub fn has_keys(&self) -> Result<bool, StoreError> {
        let mut query = self.connection.prepare_cached("SELECT EXISTS (SELECT 1 FROM keys)")?;
        Ok(query.query_row([], |row| row.get(0))?)
    }

    /// What a presented text is, at `now` in Unix seconds.
    pub(crate) fn identify(&self, presented: &str, now: u64) -> Result<Identity, StoreError> {
        if presented.len() != MARK.len() + 2 * BYTES || !presented.is_ascii() {
            return Ok(Identity::Unknown);
        }
        let wanted = digest(presented);
        let sql = format!("SELECT {COLUMNS} FROM keys WHERE prefix = ?1");
        let mut query = self.connection.prepare_cached(&sql)?;
        let mut rows = query.query([&presented[..PREFIX]])?;
        while let Some(row) = rows.next()? {
            let (key, digest) = read(row)?;
            if bool::from(digest.ct_eq(&wanted)) {
                return Ok(match key.status(now) {
                    "in force" => Identity::Valid(key),
                    refused => Identity::Refused(refused),
                });
            }
        }
        Ok(Identity::Unknown)
    }
}

impl NewKey {
    fn check(&self) -> Result<(), StoreError> {
        let wrong =
            |field, found: String, expected| Err(StoreError::Key { field, found, expected });
        let name = &self.name;
        if name.trim().is_empty() || name.len() > 200 || name.chars().any(char::is_control) {
            return wrong(
                "name",
                format!("\"{name}\""),
                "1 to 200 bytes without control characters",
            );
        }
        if name.starts_with(MARK) {
            return wrong("name", name.clone(), "one that does not look like a key");
        }
        for (field, value) in [
            ("requests-per-minute", self.requests_per_minute),
            ("tokens-per-minute", self.tokens_per_minute),
            ("retention-days", self.retention_days),
        ] {
            if value == Some(0) {
                return wrong(field, "0".into(), "at least 1");
            }
        }
        match self.monthly_budget {
            Some(amount) if !(amount > 0.0 && amount.is_finite()) => {
                wrong("monthly-budget", amount.to_string(), "an amount above 0")
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database() -> (tempfile::TempDir, Database) {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(dir.path()).unwrap();
        (dir, database)
    }

    fn named(name: &str) -> NewKey {
        NewKey { name: name.into(), ..NewKey::default() }
    }

    #[test]
    fn a_key_is_known_by_its_text_and_its_text_is_not_kept() {
        let (dir, database) = database();
        assert!(!database.has_keys().unwrap());
        let new = NewKey {
            admin: true,
            models: Some(vec!["red".into(), "blue".into()]),
            requests_per_minute: Some(10),
            tokens_per_minute: Some(1000),
            monthly_budget: Some(2.5),
            retention_days: Some(7),
            expires: Some(5000),
            ..named("ann")
        };
        let (secret, key) = database.create_key(&new, 100).unwrap();
        assert!(database.has_keys().unwrap());
        assert_eq!((secret.reveal().len(), &secret.reveal()[..PREFIX]), (67, &*key.prefix));
        assert_eq!((key.created, key.expires, key.monthly_budget), (100, Some(5000), Some(2.5)));
        assert!(key.may_name("red") && !key.may_name("green"));
        assert_eq!(database.keys().unwrap(), std::slice::from_ref(&key));
        let identify = |text: &str, now| database.identify(text, now).unwrap();
        assert_eq!(identify(secret.reveal(), 4999), Identity::Valid(key.clone()));
        assert_eq!(identify(secret.reveal(), 5000), Identity::Refused("expired"));

        let mut near = secret.reveal().to_owned();
        let last = if near.ends_with('0') { "1" } else { "0" };
        near.replace_range(near.len() - 1.., last);
        let upper = secret.reveal().to_uppercase();
        let wide = format!("{}\u{e9}", &secret.reveal()[..65]);
        for other in ["", "mk-", &key.prefix, &near, &upper, &wide, &"x".repeat(67)] {
            assert_eq!(identify(other, 200), Identity::Unknown, "{other}");
        }
        assert!(!format!("{secret:?}").contains(&secret.reveal()[PREFIX..]));
        drop(database);
        for file in std::fs::read_dir(dir.path()).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            let found = bytes.windows(20).any(|w| w == &secret.reveal().as_bytes()[20..40]);
            assert!(!found, "the key stands in a file");
        }
    }

    #[test]
    fn a_revoked_key_stays_and_frees_its_name() {
        let (_dir, database) = database();
        let (secret, key) = database.create_key(&named("ann"), 1).unwrap();
        assert!(matches!(database.create_key(&named("ann"), 1), Err(StoreError::NameTaken(_))));
        assert!(matches!(database.revoke_key("bob", 2), Err(StoreError::NoSuchKey(_))));
        assert_eq!(database.revoke_key(&key.prefix, 2).unwrap().revoked, Some(2));
        assert!(matches!(database.revoke_key("ann", 3), Err(StoreError::NoSuchKey(_))));
        assert_eq!(database.identify(secret.reveal(), 2).unwrap(), Identity::Refused("revoked"));
        assert!(database.has_keys().unwrap(), "the server stays closed");
        database.create_key(&named("ann"), 4).unwrap();
        let keys = database.keys().unwrap();
        let shown: Vec<_> = keys.iter().map(|k| k.status(9)).collect();
        assert_eq!(shown, ["revoked", "in force"]);
    }

    #[test]
    fn what_a_key_cannot_be_is_named() {
        let (_dir, database) = database();
        let refused = |new: NewKey| match database.create_key(&new, 1) {
            Err(StoreError::Key { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(named(" ")), "name");
        assert_eq!(refused(named("a\nb")), "name");
        assert_eq!(refused(named("mk-00000000")), "name");
        let with = |change: fn(&mut NewKey)| {
            let mut new = named("x");
            change(&mut new);
            new
        };
        assert_eq!(refused(with(|k| k.requests_per_minute = Some(0))), "requests-per-minute");
        assert_eq!(refused(with(|k| k.tokens_per_minute = Some(0))), "tokens-per-minute");
        assert_eq!(refused(with(|k| k.retention_days = Some(0))), "retention-days");
        for amount in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let budget = NewKey { monthly_budget: Some(amount), ..named("x") };
            assert_eq!(refused(budget), "monthly-budget");
        }
        assert!(!database.has_keys().unwrap());
    }
}
