//! The tables, and how files of earlier forms become those of today.

use super::StoreError;
use rusqlite::{Connection, TransactionBehavior};
use std::path::Path;

/// Marks the file as ours: "Mtir" in ASCII, in SQLite's header.
const APPLICATION_ID: i32 = 0x4d74_6972;

/// `MIGRATIONS[i]` brings a file from form i to form i + 1; the form is SQLite's `user_version`. What
/// was released is never changed, only followed by another.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE keys (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL,
        -- The beginning of the key, to show and to find it by.
        prefix TEXT NOT NULL,
        sha256 BLOB NOT NULL UNIQUE CHECK (length(sha256) = 32),
        admin INTEGER NOT NULL,
        -- A JSON list of the names that it may put into `model`; NULL for all.
        models TEXT,
        requests_per_minute INTEGER,
        tokens_per_minute INTEGER,
        monthly_budget REAL,
        -- How long contents are kept; NULL where they are not.
        retention_days INTEGER,
        -- Unix seconds.
        created INTEGER NOT NULL,
        expires INTEGER,
        revoked INTEGER
    ) STRICT;
    CREATE INDEX keys_by_prefix ON keys (prefix);
    CREATE UNIQUE INDEX keys_in_force ON keys (name) WHERE revoked IS NULL;

    CREATE TABLE usage (
        id INTEGER PRIMARY KEY,
        request_id TEXT NOT NULL UNIQUE,
        -- NULL while the server asked for no key.
        key_id INTEGER REFERENCES keys (id),
        model TEXT NOT NULL,
        digest TEXT NOT NULL,
        endpoint TEXT NOT NULL,
        prompt_tokens INTEGER NOT NULL,
        cached_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL,
        -- Seconds.
        queue REAL,
        first_token REAL,
        total REAL NOT NULL,
        outcome TEXT NOT NULL,
        -- Unix seconds.
        time INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX usage_by_time ON usage (time);

    -- Sums of `usage` for budgets, so that asking costs one row.
    CREATE TABLE spent (
        key_id INTEGER NOT NULL REFERENCES keys (id),
        month TEXT NOT NULL,
        prompt_tokens INTEGER NOT NULL,
        cached_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL,
        PRIMARY KEY (key_id, month)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE contents (
        request_id TEXT PRIMARY KEY REFERENCES usage (request_id),
        -- What was asked, as a JSON object, and the answers, as a JSON list.
        asked TEXT NOT NULL,
        answers TEXT NOT NULL,
        delete_after INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX contents_by_end ON contents (delete_after);

    CREATE TABLE feedback (
        id INTEGER PRIMARY KEY,
        request_id TEXT NOT NULL REFERENCES usage (request_id),
        digest TEXT NOT NULL,
        rating REAL,
        correction TEXT,
        comment TEXT,
        time INTEGER NOT NULL,
        -- When correction and comment go; the rating stays.
        delete_after INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX feedback_by_request ON feedback (request_id);
    CREATE INDEX feedback_by_end ON feedback (delete_after);
"];

/// Refuses the file of another program before anything in it is changed.
pub(super) fn check_owner(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let found: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if found != APPLICATION_ID && (found != 0 || tables > 0) {
        return Err(StoreError::Foreign { path: path.to_owned(), found });
    }
    Ok(())
}

/// Brings the file to the newest form, in one transaction.
pub(super) fn migrate(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let known = MIGRATIONS.len() as i64;
    let form = || -> Result<i64, StoreError> {
        let found = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if (0..=known).contains(&found) {
            return Ok(found);
        }
        Err(StoreError::Newer { path: path.to_owned(), found, known })
    };
    if form()? == known {
        return Ok(());
    }
    // Looked at again inside: another process may have been faster.
    let transaction =
        rusqlite::Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
    for step in &MIGRATIONS[form()? as usize..] {
        connection.execute_batch(step)?;
    }
    connection.pragma_update(None, "application_id", APPLICATION_ID)?;
    connection.pragma_update(None, "user_version", known)?;
    transaction.commit()?;
    Ok(())
}
