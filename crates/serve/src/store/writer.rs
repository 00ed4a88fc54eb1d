//! The thread that writes: what arrives while a commit is being flushed is committed together next.

use super::{Database, StoreError};
use rusqlite::{Transaction, TransactionBehavior};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::sync::{mpsc, oneshot};

/// Changes that may wait. A finished request makes one, so this is far above what runs at a time;
/// where the disk stands still, callers wait here instead of filling memory.
const MAX_WAITING: usize = 4096;
/// Most changes in one commit.
const MAX_TOGETHER: usize = 512;

/// A change to the file; it runs in a transaction.
pub(super) type Change = Box<dyn FnOnce(&Database) -> Result<(), StoreError> + Send>;

type Reply = oneshot::Sender<Result<(), StoreError>>;

enum Job {
    /// None where nobody waits.
    Change(Change, Option<Reply>),
    /// Moves the log into the file and empties it.
    Compact(Reply),
}

/// The thread's callers.
pub(super) struct Writer {
    jobs: mpsc::Sender<Job>,
    health: Arc<Health>,
}

#[derive(Default)]
struct Health {
    /// Changes that were lost.
    lost: AtomicU64,
    /// Whether the last commit failed.
    ill: AtomicBool,
}

impl Writer {
    /// Starts the thread. It ends, after what is waiting is committed, when the writer is dropped.
    pub(super) fn spawn(database: Database) -> Result<Writer, StoreError> {
        let (jobs, received) = mpsc::channel(MAX_WAITING);
        let health = Arc::new(Health::default());
        let for_thread = Arc::clone(&health);
        std::thread::Builder::new()
            .name("store".into())
            .spawn(move || run(&database, received, &for_thread))
            .map_err(|e| StoreError::Commit(format!("no thread to write on: {e}")))?;
        Ok(Writer { jobs, health })
    }

    pub(super) async fn write(&self, change: Change) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Job::Change(change, Some(reply)), answer).await
    }

    pub(super) async fn compact(&self) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Job::Compact(reply), answer).await
    }

    async fn ask(
        &self,
        job: Job,
        answer: oneshot::Receiver<Result<(), StoreError>>,
    ) -> Result<(), StoreError> {
        self.jobs.send(job).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    pub(super) fn write_unwatched(&self, change: Change) {
        if self.jobs.try_send(Job::Change(change, None)).is_err() {
            self.health.lost(1);
            tracing::error!(
                "a record of usage is lost: {MAX_WAITING} wait to be written, or the server is ending"
            );
        }
    }

    /// How many changes were lost, and whether the last commit went well.
    pub(super) fn failures(&self) -> (u64, bool) {
        let health = &self.health;
        (health.lost.load(Ordering::Relaxed), !health.ill.load(Ordering::Relaxed))
    }
}

impl Health {
    fn lost(&self, count: u64) {
        self.lost.fetch_add(count, Ordering::Relaxed);
    }
}

fn run(database: &Database, mut jobs: mpsc::Receiver<Job>, health: &Health) {
    while let Some(first) = jobs.blocking_recv() {
        let mut changes = Vec::new();
        let mut compacting = Vec::new();
        let mut next = Some(first);
        while let Some(job) = next {
            match job {
                Job::Change(change, reply) => changes.push((change, reply)),
                Job::Compact(reply) => compacting.push(reply),
            }
            next = (changes.len() < MAX_TOGETHER).then(|| jobs.try_recv().ok()).flatten();
        }
        commit(database, changes, health);
        for reply in compacting {
            let emptied = database
                .connection
                .pragma_update(None, "wal_checkpoint", "TRUNCATE")
                .map_err(StoreError::from);
            _ = reply.send(emptied);
        }
    }
}

/// Carries `changes` out in one transaction and answers. One that is refused is undone alone; where
/// the commit fails, none has happened.
fn commit(database: &Database, changes: Vec<(Change, Option<Reply>)>, health: &Health) {
    if changes.is_empty() {
        return;
    }
    let (changes, replies): (Vec<Change>, Vec<Option<Reply>>) = changes.into_iter().unzip();
    let committed = together(database, changes);
    health.ill.store(committed.is_err(), Ordering::Relaxed);
    let results = committed.unwrap_or_else(|error| {
        health.lost(replies.len() as u64);
        tracing::error!("{} records could not be written: {error}", replies.len());
        replies.iter().map(|_| Err(StoreError::Commit(error.to_string()))).collect()
    });
    for (reply, result) in replies.into_iter().zip(results) {
        match (reply, result) {
            // Whoever asked may have gone meanwhile.
            (Some(reply), result) => _ = reply.send(result),
            (None, Err(error)) if !matches!(error, StoreError::Commit(_)) => {
                health.lost(1);
                tracing::error!("a record is lost: {error}");
            }
            (None, _) => {}
        }
    }
}

fn together(
    database: &Database,
    changes: Vec<Change>,
) -> Result<Vec<Result<(), StoreError>>, StoreError> {
    let connection = &database.connection;
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
    let mut results = Vec::with_capacity(changes.len());
    for change in changes {
        connection.execute_batch("SAVEPOINT one")?;
        let result = change(database);
        let end = if result.is_ok() { "RELEASE one" } else { "ROLLBACK TO one; RELEASE one" };
        connection.execute_batch(end)?;
        results.push(result);
    }
    transaction.commit()?;
    Ok(results)
}
