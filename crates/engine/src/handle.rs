//! The engine on its own thread, for a server.

use crate::engine::{Engine, EngineStats, Event};
use crate::error::EngineError;
use crate::runner::Runner;
use crate::scheduler::Step;
use crate::sequence::{Limits, SequenceId, SequenceRequest};
use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;

/// A running engine. Clones share it; the thread ends when the last one is dropped or
/// [`EngineHandle::shutdown`] is called, and cancels what is unfinished then.
#[derive(Clone)]
pub struct EngineHandle {
    owner: Arc<Owner>,
}

/// Keeps a submitted request alive: dropping it cancels the sequence and frees its pages before
/// the engine's next step.
#[derive(Debug)]
#[must_use = "dropping the ticket cancels the request"]
pub struct Ticket {
    cancelled: Arc<AtomicBool>,
    started: Arc<OnceLock<Instant>>,
}

impl Ticket {
    /// When the sequence first ran; empty until then. Stays readable after the ticket.
    pub fn started(&self) -> Arc<OnceLock<Instant>> {
        Arc::clone(&self.started)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Release);
    }
}

/// The events of one request, for blocking callers. Dropping it cancels the request.
#[derive(Debug)]
pub struct EventReceiver {
    events: mpsc::Receiver<Event>,
    _ticket: Ticket,
}

impl EventReceiver {
    /// Waits for the next event. None after the last one, or when the engine has stopped.
    pub fn recv(&self) -> Option<Event> {
        self.events.recv().ok()
    }
}

impl EngineHandle {
    /// Starts `engine` on a thread of its own.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn spawn<R: Runner + 'static>(engine: Engine<R>) -> std::io::Result<EngineHandle> {
        let shared = Arc::new(Shared {
            limits: engine.limits(),
            max_queue: engine.options().max_queue,
            state: Mutex::new(State { stats: engine.stats(), ..State::default() }),
            wake: Condvar::new(),
        });
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("engine".into())
            .spawn(move || serve(engine, &for_thread))?;
        Ok(EngineHandle { owner: Arc::new(Owner { shared, thread: Mutex::new(Some(thread)) }) })
    }

    /// Queues a request without waiting. `sink` gets its events on the engine's thread, so it must
    /// be quick; when it returns false the request is cancelled, as when the ticket is dropped.
    ///
    /// # Errors
    /// [`EngineError::QueueFull`], [`EngineError::Stopped`], or the limit that the request breaks.
    pub fn submit(
        &self,
        request: SequenceRequest,
        sink: impl FnMut(Event) -> bool + Send + 'static,
    ) -> Result<Ticket, EngineError> {
        let shared = &self.owner.shared;
        shared.limits.check(&request)?;
        let mut state = shared.lock();
        if state.closed {
            return Err(EngineError::Stopped);
        }
        if state.inbox.len() + state.stats.waiting >= shared.max_queue {
            return Err(EngineError::QueueFull { limit: shared.max_queue });
        }
        let cancelled = Arc::new(AtomicBool::new(false));
        let started = Arc::new(OnceLock::new());
        let client = Client {
            sink: Box::new(sink),
            cancelled: Arc::clone(&cancelled),
            started: Arc::clone(&started),
        };
        state.inbox.push_back((request, client));
        drop(state);
        shared.wake.notify_one();
        Ok(Ticket { cancelled, started })
    }

    /// [`EngineHandle::submit`] for callers that wait for events on their own thread.
    ///
    /// # Errors
    /// As [`EngineHandle::submit`].
    pub fn submit_blocking(&self, request: SequenceRequest) -> Result<EventReceiver, EngineError> {
        let (sender, events) = mpsc::channel();
        let ticket = self.submit(request, move |event| sender.send(event).is_ok())?;
        Ok(EventReceiver { events, _ticket: ticket })
    }

    /// Has the engine's thread call `work` before its next step, in the order of these calls. All
    /// that was cancelled before this call has left the engine by then; no sequence is stepped
    /// meanwhile, so it must be quick. Where the engine ends first, `work` is dropped uncalled; a
    /// panic in it concerns nothing else.
    ///
    /// # Errors
    /// [`EngineError::Stopped`].
    pub fn between_steps(
        &self,
        work: impl FnOnce(&mut dyn Runner) + Send + 'static,
    ) -> Result<(), EngineError> {
        let shared = &self.owner.shared;
        let mut state = shared.lock();
        if state.closed {
            return Err(EngineError::Stopped);
        }
        state.jobs.push(Box::new(work));
        drop(state);
        shared.wake.notify_one();
        Ok(())
    }

    /// The state of the step being run or last run; requests not yet seen by the engine count as waiting.
    pub fn stats(&self) -> EngineStats {
        let state = self.owner.shared.lock();
        EngineStats { waiting: state.stats.waiting + state.inbox.len(), ..state.stats }
    }

    /// Whether the engine's thread still takes requests.
    pub fn is_alive(&self) -> bool {
        !self.owner.shared.lock().closed
    }

    /// What requests must keep within.
    pub fn limits(&self) -> Limits {
        self.owner.shared.limits
    }

    /// Cancels everything unfinished, ends the thread and waits for it (at most one step).
    pub fn shutdown(&self) {
        self.owner.stop();
    }
}

/// Stops the thread when the last handle goes.
struct Owner {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Owner {
    fn stop(&self) {
        self.shared.lock().closed = true;
        self.shared.wake.notify_one();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
        {
            // A panic of the thread has closed the state already; there is nothing to add.
            _ = thread.join();
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What handles and thread share. The bound on waiting requests is exact because the inbox and the
/// engine's own count change under the same lock.
struct Shared {
    limits: Limits,
    max_queue: usize,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    inbox: VecDeque<(SequenceRequest, Client)>,
    /// See [`EngineHandle::between_steps`].
    jobs: Vec<Job>,
    stats: EngineStats,
    closed: bool,
}

type Job = Box<dyn FnOnce(&mut dyn Runner) + Send>;

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is consistent between any two statements, so a panic elsewhere cannot break it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whoever waits for a sequence's events.
struct Client {
    sink: Box<dyn FnMut(Event) -> bool + Send>,
    cancelled: Arc<AtomicBool>,
    started: Arc<OnceLock<Instant>>,
}

impl Client {
    fn gone(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }
}

/// The thread: take in what arrived, drop what nobody waits for, step, hand out events.
fn serve<R: Runner>(mut engine: Engine<R>, shared: &Shared) {
    // Whatever ends this thread, nobody may wait for it afterwards.
    let _closed = CloseOnExit(shared);
    let mut clients: HashMap<SequenceId, Client> = HashMap::new();
    while let Some(step) = next_step(&mut engine, shared, &mut clients) {
        for event in engine.execute(step) {
            let id = event.id();
            let last = event.is_last();
            let Some(client) = clients.get_mut(&id) else { continue };
            if !(client.sink)(event) && !last {
                engine.cancel(id);
                clients.remove(&id);
            } else if last {
                clients.remove(&id);
            }
        }
        // Takes a while: after the events are out, and while others can come in.
        engine.draft();
    }
}

/// Waits until there is work and schedules it (the inner None has only events to hand out). None
/// when the engine is to end.
fn next_step<R: Runner>(
    engine: &mut Engine<R>,
    shared: &Shared,
    clients: &mut HashMap<SequenceId, Client>,
) -> Option<Option<Step>> {
    let mut state = shared.lock();
    loop {
        if state.closed {
            return None;
        }
        while let Some((request, mut client)) = state.inbox.pop_front() {
            if client.gone() {
                continue;
            }
            match engine.add(request) {
                Ok(id) => _ = clients.insert(id, client),
                // After the checks of `submit` only an adapter that is gone by now.
                Err(error) => _ = (client.sink)(Event::Failed { id: SequenceId(u64::MAX), error }),
            }
        }
        clients.retain(|&id, client| {
            let gone = client.gone();
            if gone {
                engine.cancel(id);
            }
            !gone
        });
        let jobs = std::mem::take(&mut state.jobs);
        if !jobs.is_empty() {
            drop(state);
            for job in jobs {
                let job = AssertUnwindSafe(|| job(engine.runner_mut()));
                // What it was for is told by its own means: whoever waits sees them dropped.
                _ = catch_unwind(job);
            }
            state = shared.lock();
            continue;
        }
        let work = engine.has_work().then(|| engine.schedule());
        for (id, _) in work.iter().flatten().flat_map(|step| &step.started) {
            if let Some(client) = clients.get(id) {
                client.started.get_or_init(Instant::now);
            }
        }
        state.stats = engine.stats();
        if work.is_some() {
            return work;
        }
        state = shared.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
}

struct CloseOnExit<'a>(&'a Shared);

impl Drop for CloseOnExit<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.closed = true;
        state.inbox.clear();
        // Outside the lock: what a job holds may ask for it when it is dropped.
        let jobs = std::mem::take(&mut state.jobs);
        state.stats = EngineStats {
            running: 0,
            waiting: 0,
            free_blocks: state.stats.total_blocks,
            ..state.stats
        };
        drop(state);
        drop(jobs);
    }
}
