//! What outlives the process, in one SQLite file: keys, usage, feedback, and contents where a key
//! has them kept.
//!
//! A record counts as accepted when its transaction is committed, not before. The file is in WAL mode
//! with `synchronous = FULL`: a commit returns after its frames are flushed
//! (<https://sqlite.org/pragma.html#pragma_synchronous>). What is committed hence survives `kill -9`
//! always, and a power cut as far as the disk keeps what it reports as written.
//!
//! [`Database`] is the file, for blocking callers such as the command line. [`Store`] is the server's
//! side of it: writes go to a thread of their own, which commits together what arrives together
//! ([`writer`]); reads are point queries of microseconds on a second connection.

mod contents;
mod feedback;
mod keys;
mod schema;
mod usage;
mod writer;

pub(crate) use contents::Contents;
pub use contents::{Answer, Kept};
pub(crate) use feedback::Feedback;
pub(crate) use keys::Identity;
pub use keys::{Key, NewKey, RETENTION_DAYS, Secret};
pub(crate) use usage::UsageRecord;
pub use usage::{Happened, Prices, UsageBy, UsageRow};

use crate::state::unix_seconds;
use rusqlite::{Connection, OpenFlags};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use writer::Writer;

/// Name of the file in the folder of state.
pub const STATE_FILE: &str = "metier.sqlite";

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder or the file cannot be made or opened.
    #[error("{path}: {reason}\nhint: choose another folder with --state or METIER_STATE")]
    Open {
        /// The folder or file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The file is SQLite's, but not ours.
    #[error(
        "{path}: a database of another program (application id {found:#010x}); expected one of metier's"
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Its application id.
        found: i32,
    },
    /// A later version of this program has changed the file.
    #[error(
        "{path}: has form {found}, this program knows up to {known}. hint: use the newer metier that wrote it"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its form.
        found: i64,
        /// The newest form known here.
        known: i64,
    },
    /// A key in force has this name.
    #[error("a key named \"{0}\" is in force. hint: revoke it first, or choose another name")]
    NameTaken(String),
    /// A number or name that a key cannot have.
    #[error("{field} is {found}; expected {expected}")]
    Key {
        /// Which.
        field: &'static str,
        /// What was given.
        found: String,
        /// What would be accepted.
        expected: &'static str,
    },
    /// No key in force has this name or prefix.
    #[error("no key in force is named \"{0}\" or begins so. hint: `metier keys list` shows them")]
    NoSuchKey(String),
    /// SQLite's own complaint: a full disk, a damaged file.
    #[error("the store of keys and usage: {0}")]
    Sql(#[from] rusqlite::Error),
    /// A commit that several records shared failed.
    #[error("the store of keys and usage: {0}")]
    Commit(String),
    /// The thread that writes has ended.
    #[error("the store of keys and usage is closed")]
    Closed,
}

/// The file, opened.
#[derive(Debug)]
pub struct Database {
    connection: Connection,
    path: PathBuf,
}

impl Database {
    /// Opens the file in the folder `dir`, making both where they are not there. Only this user may
    /// read or write the file.
    ///
    /// # Errors
    /// [`StoreError::Open`], [`StoreError::Foreign`], [`StoreError::Newer`].
    pub fn open(dir: &Path) -> Result<Database, StoreError> {
        let path = dir.join(STATE_FILE);
        let open = |at: &Path, reason: String| StoreError::Open { path: at.to_owned(), reason };
        make_private(dir, &path).map_err(|(at, e)| open(&at, e.to_string()))?;
        // Each connection is used by one thread at a time.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection =
            Connection::open_with_flags(&path, flags).map_err(|e| open(&path, e.to_string()))?;
        let database = Database { connection, path };
        database.prepare().map_err(|e| match e {
            StoreError::Sql(e) => open(&database.path, e.to_string()),
            other => other,
        })?;
        Ok(database)
    }

    fn prepare(&self) -> Result<(), StoreError> {
        // Another process may be writing, or recovering after a crash.
        self.connection.busy_timeout(Duration::from_secs(10))?;
        schema::check_owner(&self.connection, &self.path)?;
        self.connection.pragma_update(None, "journal_mode", "WAL")?;
        self.connection.pragma_update(None, "synchronous", "FULL")?;
        self.connection.pragma_update(None, "foreign_keys", true)?;
        // Contents that are deleted are overwritten, not only unlinked.
        self.connection.pragma_update(None, "secure_delete", true)?;
        schema::migrate(&self.connection, &self.path)
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Makes folder and file where they are not there, the file for this user alone.
fn make_private(dir: &Path, file: &Path) -> Result<(), (PathBuf, std::io::Error)> {
    let mut folder = std::fs::DirBuilder::new();
    folder.recursive(true);
    let mut options = std::fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    {
        use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
        folder.mode(0o700);
        options.mode(0o600);
    }
    folder.create(dir).map_err(|e| (dir.to_owned(), e))?;
    let opened = options.open(file).map_err(|e| (file.to_owned(), e))?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let private = std::fs::Permissions::from_mode(0o600);
        opened.set_permissions(private).map_err(|e| (file.to_owned(), e))?;
    }
    drop(opened);
    Ok(())
}

/// The server's side of the file. Clones share it.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    writer: Writer,
    reader: Mutex<Database>,
}

impl Store {
    /// Opens the file in `dir` twice: to write on a thread of its own, and to read.
    ///
    /// # Errors
    /// As [`Database::open`], or when the system refuses a thread.
    pub fn open(dir: &Path) -> Result<Store, StoreError> {
        let writer = Writer::spawn(Database::open(dir)?)?;
        let reader = Mutex::new(Database::open(dir)?);
        Ok(Store { shared: Arc::new(Shared { writer, reader }) })
    }

    /// Runs a query. To be kept to point queries: the caller's thread waits.
    pub(crate) fn read<T>(
        &self,
        query: impl FnOnce(&Database) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        // A query changes nothing that a panic could leave half done.
        query(&self.shared.reader.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Has `change` carried out and waits until it is committed.
    pub(crate) async fn write(
        &self,
        change: impl FnOnce(&Database) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<(), StoreError> {
        self.shared.writer.write(Box::new(change)).await
    }

    /// Has `change` carried out without waiting for it, where nobody is left to be told.
    pub(crate) fn write_unwatched(
        &self,
        change: impl FnOnce(&Database) -> Result<(), StoreError> + Send + 'static,
    ) {
        self.shared.writer.write_unwatched(Box::new(change));
    }

    /// Deletes contents whose time is over, from the file and its log.
    pub(crate) async fn sweep(&self) -> Result<(), StoreError> {
        let now = unix_seconds();
        self.write(move |database| database.delete_expired_contents(now).map(drop)).await?;
        self.shared.writer.compact().await
    }

    /// Waits until everything handed over so far is committed.
    ///
    /// # Errors
    /// [`StoreError::Closed`].
    pub async fn flush(&self) -> Result<(), StoreError> {
        self.write(|_| Ok(())).await
    }

    /// Whether the last commit went well.
    pub(crate) fn is_healthy(&self) -> bool {
        self.shared.writer.failures().1
    }

    /// Records that could not be written since the start.
    pub(crate) fn lost(&self) -> u64 {
        self.shared.writer.failures().0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_private_and_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("deep/state");
        let database = Database::open(&state).unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!((mode(database.path()), mode(&state)), (0o600, 0o700));
            let log = state.join(format!("{STATE_FILE}-wal"));
            assert_eq!(mode(&log), 0o600, "the log holds the same secrets");
        }
        let setting = |name: &str| -> String {
            let read = |row: &rusqlite::Row<'_>| row.get::<_, rusqlite::types::Value>(0);
            let value = database.connection.pragma_query_value(None, name, read).unwrap();
            format!("{value:?}")
        };
        assert!(setting("journal_mode").contains("wal"), "{}", setting("journal_mode"));
        assert!(setting("synchronous").contains('2'), "FULL is 2: {}", setting("synchronous"));
        drop(database);
        Database::open(&state).unwrap();
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(STATE_FILE);
        std::fs::write(&path, "no database at all, but long enough to be looked at".repeat(30))
            .unwrap();
        let error = Database::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains(STATE_FILE) && error.contains("not a database"), "{error}");

        std::fs::remove_file(&path).unwrap();
        let other = Connection::open(&path).unwrap();
        other.execute_batch("PRAGMA application_id = 7; CREATE TABLE keys (x)").unwrap();
        drop(other);
        assert!(matches!(Database::open(dir.path()), Err(StoreError::Foreign { found: 7, .. })));

        std::fs::remove_file(&path).unwrap();
        let database = Database::open(dir.path()).unwrap();
        database.connection.pragma_update(None, "user_version", 99).unwrap();
        drop(database);
        assert!(matches!(Database::open(dir.path()), Err(StoreError::Newer { found: 99, .. })));
    }

    #[tokio::test]
    async fn what_fails_harms_no_other_record_of_its_commit() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let note = |value: i64| {
            move |database: &Database| {
                let sql = "INSERT INTO marks VALUES (?1)";
                database.connection.execute(sql, [value])?;
                // Refused after it has written.
                if value == 3 { Err(StoreError::Closed) } else { Ok(()) }
            }
        };
        let table = "CREATE TABLE marks (value INTEGER UNIQUE)";
        store.write(|database| Ok(database.connection.execute_batch(table)?)).await.unwrap();
        let results =
            futures_util::future::join_all([1, 2, 3, 2, 4].map(|value| store.write(note(value))))
                .await;
        let kept: Vec<bool> = results.iter().map(Result::is_ok).collect();
        assert_eq!(kept, [true, true, false, false, true]);
        let sql = "SELECT group_concat(value) FROM (SELECT value FROM marks ORDER BY value)";
        let marks: String =
            store.read(|d| Ok(d.connection.query_row(sql, [], |row| row.get(0))?)).unwrap();
        assert_eq!(marks, "1,2,4");
        assert!(store.is_healthy(), "refused records are not the store's fault");
    }
}
