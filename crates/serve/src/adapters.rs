//! Which models there are, which of them are in memory, and how adapters come and go while the
//! server runs.
//!
//! A known adapter is in memory or on disk. A request for one on disk has it loaded first; others
//! go on meanwhile, because loading happens on a thread of its own and only what is finished is
//! handed to the engine, between two of its steps. Whoever works with an adapter holds an [`Arc`]
//! of its [`Resident`]: what nobody holds can give way to another, the one that was asked for
//! longest ago first, and what was unloaded leaves the engine with its last running request.

use crate::caller::Caller;
use crate::error::ApiError;
use crate::fields::shortened;
use crate::server::ServePlan;
use crate::state::{Host, ServeError, ServedModel, off_reactor, unix_seconds};
use axum::http::StatusCode;
use model::PackedAdapter;
use std::ops::Deref;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use text::ChatTemplate;
use tokio::sync::{oneshot, watch};

/// Reads an adapter's folder and checks it against the base: given its name, the folder, and the
/// most bytes that it may take in memory. An error is the reason in words.
pub type LoadAdapter =
    dyn Fn(&str, &Path, usize) -> Result<LoadedAdapter, String> + Send + Sync + 'static;

/// An adapter that has been read, found to fit and to act, but is not in the engine yet.
pub struct LoadedAdapter {
    /// Its matrices.
    pub packed: PackedAdapter,
    /// SHA-256 of what acts: see [`model::LoraAdapter::digest`].
    pub digest: String,
    /// How its conversations become tokens.
    pub template: ChatTemplate,
    /// Tokens that end its answers.
    pub stop_ids: Vec<u32>,
    /// Whether it is proven to be worth it.
    pub proven: Proven,
}

/// What is known of an adapter's worth.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Proven {
    /// Nobody asked.
    #[default]
    NotAsked,
    /// It carries a verdict of "worth it" about itself.
    Yes,
    /// It does not, for this reason, which names no file of this machine.
    No(String),
}

/// A model in memory. An adapter's slot in the engine is freed when the last one who holds it lets
/// go.
pub(crate) struct Resident {
    model: ServedModel,
    proven: Proven,
    bytes: usize,
    host: Arc<Host>,
}

impl Deref for Resident {
    type Target = ServedModel;

    fn deref(&self) -> &ServedModel {
        &self.model
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        let Some(slot) = self.model.adapter else { return };
        let free = move |runner: &mut dyn engine::Runner| {
            runner.adapters_mut().into_iter().for_each(|set| set.remove(slot));
        };
        // An engine that has stopped has nothing to free.
        _ = self.host.engine.between_steps(free);
    }
}

impl Resident {
    /// What runs it.
    pub(crate) fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// Refuses what only makes embeddings.
    ///
    /// # Errors
    /// 400 naming the model.
    pub(crate) fn must_generate(&self) -> Result<(), ApiError> {
        if self.host.generates {
            return Ok(());
        }
        let message = format!(
            "the model \"{}\" makes embeddings only and answers no text. hint: POST /v1/embeddings, or \
             name another model",
            self.name
        );
        let error = ApiError::client(StatusCode::BAD_REQUEST, "model_not_supported", message);
        Err(error.with_param("model"))
    }
}

/// What `/v1/models` tells of a model.
pub(crate) struct Card {
    pub(crate) name: String,
    pub(crate) created: u64,
    pub(crate) is_adapter: bool,
    pub(crate) digest: Option<String>,
    pub(crate) loaded: bool,
    pub(crate) pinned: bool,
    pub(crate) proven: Proven,
    pub(crate) host: Arc<Host>,
}

/// All models by name.
pub(crate) struct Registry {
    /// Of the first base, the one that adapters work on.
    host: Arc<Host>,
    load: OnceLock<Arc<LoadAdapter>>,
    /// Canonical; where requests may name adapters.
    dirs: Vec<PathBuf>,
    max_loaded: usize,
    max_bytes: usize,
    /// Held while an adapter is loaded: one at a time, so that what is being read never takes more
    /// memory than one adapter.
    loading: tokio::sync::Mutex<()>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    /// In the order of `/v1/models`; the first is the base that adapters work on.
    entries: Vec<Entry>,
    /// Every adapter in memory, also those that are no longer in `entries` but still at work.
    alive: Vec<Weak<Resident>>,
    /// Counts requests for models.
    clock: u64,
}

struct Entry {
    name: String,
    /// Where it is read from; None for what cannot be read again and so always stays.
    folder: Option<Folder>,
    pinned: bool,
    created: u64,
    digest: Option<String>,
    /// As it was when it was last read.
    proven: Proven,
    /// The clock when it was last asked for.
    used: u64,
    host: Arc<Host>,
    place: Place,
}

enum Place {
    Memory(Arc<Resident>),
    Disk,
    Loading(watch::Receiver<Outcome>),
}

/// None until it is known.
type Outcome = Option<Result<Arc<Resident>, ApiError>>;

/// An adapter's folder.
#[derive(Clone)]
struct Folder {
    path: PathBuf,
    /// None of its files may lie outside this folder; None where the operator chose it.
    jail: Option<PathBuf>,
}

impl Registry {
    /// A registry of `models`, the base first, which stay as long as nobody unloads them.
    pub(crate) fn new(
        plan: &ServePlan,
        host: Host,
        models: Vec<ServedModel>,
    ) -> Result<Registry, ServeError> {
        if models.is_empty() {
            return Err(ServeError::NoModel);
        }
        let (mut table, host) = (Table::default(), Arc::new(host));
        for model in models {
            table.insert(&host, model)?;
        }
        let canonical = |dir: &PathBuf| {
            dir.canonicalize()
                .ok()
                .filter(|d| d.is_dir())
                .ok_or_else(|| ServeError::AdapterDir(dir.clone()))
        };
        Ok(Registry {
            host,
            load: OnceLock::new(),
            dirs: plan.adapter_dirs.iter().map(canonical).collect::<Result<_, _>>()?,
            max_loaded: plan.max_loaded_adapters,
            max_bytes: plan.max_adapter_bytes,
            loading: tokio::sync::Mutex::new(()),
            table: Mutex::new(table),
        })
    }

    /// How adapters are read; without it none can be added. The first call counts.
    pub(crate) fn set_loader(&self, load: Arc<LoadAdapter>) {
        _ = self.load.set(load);
    }

    /// Adds another base, for embeddings, which stays.
    pub(crate) fn add_base(&self, host: Host, model: ServedModel) -> Result<(), ServeError> {
        self.lock().insert(&Arc::new(host), model)
    }

    /// What runs the bases, the first one's first.
    pub(crate) fn hosts(&self) -> Vec<Arc<Host>> {
        let table = self.lock();
        table.entries.iter().filter(|e| e.is_base()).map(|e| Arc::clone(&e.host)).collect()
    }

    /// The model of that name, loaded from disk if need be, where the caller may name it.
    pub(crate) async fn acquire(
        self: &Arc<Self>,
        caller: &Caller,
        name: &str,
    ) -> Result<Arc<Resident>, ApiError> {
        let mut outcome = {
            let mut table = self.lock();
            table.clock += 1;
            let clock = table.clock;
            let Some(entry) = table.find_for(caller, name) else {
                return Err(table.unknown(caller, name));
            };
            entry.used = clock;
            match (&entry.place, &entry.folder) {
                (Place::Memory(resident), _) => return Ok(Arc::clone(resident)),
                (Place::Loading(outcome), _) => outcome.clone(),
                (Place::Disk, folder) => {
                    let Some(folder) = folder.clone() else {
                        return Err(ApiError::internal(format!("{name} has no folder")));
                    };
                    let (done, outcome) = watch::channel(None);
                    let digest = entry.digest.clone();
                    entry.place = Place::Loading(outcome.clone());
                    // Not tied to this request: others may wait for the same adapter.
                    let loading =
                        Arc::clone(self).bring_back(name.to_owned(), folder, digest, done);
                    tokio::spawn(loading);
                    outcome
                }
            }
        };
        match outcome.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(outcome)) => outcome.clone(),
            _ => Err(ApiError::stopped()),
        }
    }

    /// The base.
    pub(crate) fn base(&self) -> Result<Arc<Resident>, ApiError> {
        match self.lock().entries.first().map(|entry| &entry.place) {
            Some(Place::Memory(base)) => Ok(Arc::clone(base)),
            _ => Err(ApiError::internal("there is no base")),
        }
    }

    /// The models that the caller may name, in the order in which they came, the base first.
    pub(crate) fn cards(&self, caller: &Caller) -> Vec<Card> {
        self.lock().visible(caller).map(Entry::card).collect()
    }

    /// The card of one model.
    pub(crate) fn card(&self, caller: &Caller, name: &str) -> Result<Card, ApiError> {
        let mut table = self.lock();
        match table.find_for(caller, name) {
            Some(entry) => Ok(entry.card()),
            None => Err(table.unknown(caller, name)),
        }
    }

    /// Adds an adapter that a request names; its folder must lie below the plan's.
    pub(crate) async fn add_named(
        self: &Arc<Self>,
        name: String,
        path: String,
        in_place: bool,
        pinned: bool,
    ) -> Result<(), ApiError> {
        let dirs = self.dirs.clone();
        let folder =
            off_reactor("looking for the adapter", move || find_folder(&dirs, &path)).await??;
        self.add(name, folder, in_place, pinned).await
    }

    /// Adds an adapter from a folder of the operator's choice.
    pub(crate) async fn add_trusted(
        self: &Arc<Self>,
        name: String,
        path: PathBuf,
        pinned: bool,
    ) -> Result<(), ApiError> {
        self.add(name, Folder { path, jail: None }, false, pinned).await
    }

    async fn add(
        self: &Arc<Self>,
        name: String,
        folder: Folder,
        in_place: bool,
        pinned: bool,
    ) -> Result<(), ApiError> {
        check_name(&name).map_err(|e| ApiError::field("lora_name", e.to_string()))?;
        self.lock().may_add(&name, in_place)?;
        let registry = Arc::clone(self);
        // On a task of its own: a client that goes away must not leave half an adapter behind.
        let adding = tokio::spawn(async move {
            let resident = registry.load(&name, &folder, in_place.then_some(&*name)).await;
            let resident = resident.map_err(|failure| failure.told_to_admin(&name))?;
            let mut table = registry.lock();
            table.may_add(&name, in_place)?;
            table.clock += 1;
            let entry = Entry {
                name,
                folder: Some(folder),
                pinned,
                created: unix_seconds(),
                digest: Some(resident.digest.get().to_owned()),
                proven: resident.proven.clone(),
                used: table.clock,
                host: Arc::clone(resident.host()),
                place: Place::Memory(resident),
            };
            match table.find(&entry.name) {
                // What ran with the former one goes on with it.
                Some(former) => *former = entry,
                None => table.entries.push(entry),
            }
            Ok(())
        });
        adding.await.map_err(|e| ApiError::internal(format!("loading the adapter: {e}")))?
    }

    /// Forgets an adapter: new requests for it are refused from now on, running ones finish, and
    /// with the last of them it leaves the engine.
    pub(crate) fn remove(&self, caller: &Caller, name: &str) -> Result<(), ApiError> {
        let mut table = self.lock();
        let Some(index) = table.entries.iter().position(|entry| entry.name == name) else {
            return Err(table.unknown(caller, name).with_param("lora_name"));
        };
        if table.entries[index].is_base() {
            let message = format!("{name} is a base; expected the name of an adapter");
            return Err(ApiError::field("lora_name", message));
        }
        table.entries.remove(index);
        Ok(())
    }

    /// Loads an adapter that is known but on disk, and tells everyone who waits for it.
    async fn bring_back(
        self: Arc<Self>,
        name: String,
        folder: Folder,
        digest: Option<String>,
        done: watch::Sender<Outcome>,
    ) {
        let loaded = self.load(&name, &folder, None).await.and_then(|resident| {
            match digest.as_deref() == Some(resident.digest.get()) {
                true => Ok(resident),
                false => {
                    Err(Failure::Refused("its files have changed since it was first loaded".into()))
                }
            }
        });
        let outcome = loaded.map_err(|failure| failure.told_to_user(&name));
        let mut table = self.lock();
        let ours = |place: &Place| matches!(place, Place::Loading(receiver) if receiver.same_channel(&done.subscribe()));
        // Unless it was unloaded or replaced meanwhile.
        if let Some(entry) = table.find(&name).filter(|entry| ours(&entry.place)) {
            entry.place = match &outcome {
                Ok(resident) => {
                    entry.proven = resident.proven.clone();
                    Place::Memory(Arc::clone(resident))
                }
                Err(_) => Place::Disk,
            };
        }
        drop(table);
        done.send_replace(Some(outcome));
    }

    /// Reads an adapter, makes room and puts it into the engine. The one named `replaced` gives way
    /// even when it is pinned.
    async fn load(
        &self,
        name: &str,
        folder: &Folder,
        replaced: Option<&str>,
    ) -> Result<Arc<Resident>, Failure> {
        let Some(load) = self.load.get().cloned() else {
            return Err(Failure::Refused("this server cannot load adapters".into()));
        };
        let _one_at_a_time = self.loading.lock().await;
        // Cheap, and before anything is read. What is there gives way only to what is good.
        self.lock().room(self, 0, replaced, false)?;
        let (of_name, of_folder, most) = (name.to_owned(), folder.clone(), self.max_bytes);
        let loaded = tokio::task::spawn_blocking(move || {
            of_folder.check()?;
            load(&of_name, &of_folder.path, most)
        });
        let loaded = loaded
            .await
            .map_err(|e| Failure::Refused(format!("reading it failed: {e}")))?
            .map_err(Failure::Refused)?;
        let bytes = loaded.packed.bytes();
        if bytes > self.max_bytes {
            return Err(Failure::Refused(format!(
                "it takes {bytes} bytes in memory; expected at most {} for all adapters together",
                self.max_bytes
            )));
        }
        self.lock().room(self, bytes, replaced, true)?;
        let (sender, slot) = oneshot::channel();
        let packed = loaded.packed;
        let put = move |runner: &mut dyn engine::Runner| {
            // The receiver waits: this task is not cancelled.
            _ = sender.send(runner.adapters_mut().map(|set| set.put(packed)));
        };
        self.host.engine.between_steps(put).map_err(|_| Failure::Stopped)?;
        let slot = slot.await.map_err(|_| Failure::Stopped)?.ok_or(Failure::Stopped)?;
        let model = ServedModel {
            name: name.to_owned(),
            adapter: Some(slot),
            template: loaded.template,
            stop_ids: loaded.stop_ids,
            digest: loaded.digest.into(),
        };
        let (proven, host) = (loaded.proven, Arc::clone(&self.host));
        let resident = Arc::new(Resident { model, proven, bytes, host });
        self.lock().alive.push(Arc::downgrade(&resident));
        Ok(resident)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // The table is consistent between any two statements, so a panic elsewhere cannot break it.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn find(&mut self, name: &str) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.name == name)
    }

    /// Adds a model that stays in memory.
    fn insert(&mut self, host: &Arc<Host>, model: ServedModel) -> Result<(), ServeError> {
        check_name(&model.name)?;
        if self.find(&model.name).is_some() {
            return Err(ServeError::DuplicateName(model.name));
        }
        let (proven, host_of) = (Proven::NotAsked, Arc::clone(host));
        let resident = Arc::new(Resident { model, proven, bytes: 0, host: host_of });
        if resident.adapter.is_some() {
            self.alive.push(Arc::downgrade(&resident));
        }
        self.entries.push(Entry {
            name: resident.name.clone(),
            folder: None,
            pinned: true,
            created: unix_seconds(),
            digest: None,
            proven: Proven::NotAsked,
            used: 0,
            host: Arc::clone(host),
            place: Place::Memory(resident),
        });
        Ok(())
    }

    fn visible<'a>(&'a self, caller: &'a Caller) -> impl Iterator<Item = &'a Entry> {
        self.entries.iter().filter(|entry| caller.may_name(&entry.name))
    }

    fn find_for(&mut self, caller: &Caller, name: &str) -> Option<&mut Entry> {
        self.find(name).filter(|_| caller.may_name(name))
    }

    /// 404, with the names that the caller could use.
    fn unknown(&self, caller: &Caller, name: &str) -> ApiError {
        let known: Vec<&str> = self.visible(caller).map(|e| e.name.as_str()).collect();
        let message = format!(
            "the model \"{}\" does not exist; known: {}",
            shortened(name),
            known.join(", ")
        );
        ApiError::client(StatusCode::NOT_FOUND, "model_not_found", message).with_param("model")
    }

    fn may_add(&mut self, name: &str, in_place: bool) -> Result<(), ApiError> {
        if self.find(name).is_some_and(|entry| entry.is_base()) {
            let message = format!("{name} is a base; expected another name");
            return Err(ApiError::field("lora_name", message));
        }
        match self.find(name) {
            Some(_) if !in_place => Err(ApiError::field(
                "lora_name",
                format!(
                    "an adapter named \"{name}\" is already there. hint: unload it first, or set \
                     load_inplace to true to replace it"
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Whether one more adapter of `bytes` fits, after others have given way where they must; they
    /// do give way when `evict` says so.
    fn room(
        &mut self,
        registry: &Registry,
        bytes: usize,
        replaced: Option<&str>,
        evict: bool,
    ) -> Result<(), Failure> {
        self.alive.retain(|resident| resident.strong_count() > 0);
        let sizes = self.alive.iter().filter_map(Weak::upgrade).map(|resident| resident.bytes);
        let (mut count, mut held) = (self.alive.len(), sizes.sum::<usize>());
        // Those that can go, the one to go first last.
        let mut idle: Vec<(bool, u64, usize, usize)> = Vec::new();
        for (index, entry) in self.entries.iter().enumerate() {
            let Place::Memory(resident) = &entry.place else { continue };
            let is_replaced = replaced == Some(&*entry.name);
            let may_go = entry.folder.is_some() && (!entry.pinned || is_replaced);
            if may_go && Arc::strong_count(resident) == 1 {
                idle.push((!is_replaced, entry.used, index, resident.bytes));
            }
        }
        idle.sort_unstable_by(|a, b| b.cmp(a));
        let mut going = Vec::new();
        while count + 1 > registry.max_loaded || held + bytes > registry.max_bytes {
            let Some((_, _, index, size)) = idle.pop() else {
                let adapters = self.entries.iter().filter(|e| !e.is_base());
                let pinned = adapters.filter(|e| e.pinned && e.in_memory()).count();
                return Err(Failure::Full {
                    loaded: self.alive.len(),
                    pinned,
                    max_loaded: registry.max_loaded,
                    max_bytes: registry.max_bytes,
                });
            };
            count -= 1;
            held = held.saturating_sub(size);
            going.push(index);
        }
        if evict {
            for index in going {
                tracing::info!(adapter = self.entries[index].name, "leaves memory for another");
                self.entries[index].place = Place::Disk;
            }
        }
        Ok(())
    }
}

impl Entry {
    fn in_memory(&self) -> bool {
        matches!(self.place, Place::Memory(_))
    }

    /// A model that is no adapter: those are always in memory.
    fn is_base(&self) -> bool {
        matches!(&self.place, Place::Memory(resident) if resident.adapter.is_none())
    }

    fn card(&self) -> Card {
        Card {
            name: self.name.clone(),
            created: self.created,
            is_adapter: !self.is_base(),
            digest: self.digest.clone(),
            loaded: self.in_memory(),
            pinned: self.pinned,
            proven: self.proven.clone(),
            host: Arc::clone(&self.host),
        }
    }
}

/// Why an adapter is not in memory.
enum Failure {
    /// The reason in words.
    Refused(String),
    /// Nothing that is in memory can give way.
    Full {
        loaded: usize,
        pinned: usize,
        max_loaded: usize,
        max_bytes: usize,
    },
    Stopped,
}

impl Failure {
    fn told_to_admin(self, name: &str) -> ApiError {
        match self {
            Failure::Refused(reason) => {
                ApiError::client(StatusCode::BAD_REQUEST, "adapter_refused", reason)
                    .with_param("lora_path")
            }
            other => other.told_to_user(name),
        }
    }

    /// A user of the adapter learns that it is not there; the reason names files of this machine
    /// and goes to the log.
    fn told_to_user(self, name: &str) -> ApiError {
        match self {
            Failure::Refused(reason) => {
                tracing::error!(adapter = name, reason, "cannot be loaded");
                let message =
                    format!("the adapter \"{name}\" cannot be loaded any more; the log says why");
                ApiError::unavailable("adapter_failed", message)
            }
            Failure::Full { loaded, pinned, max_loaded, max_bytes } => {
                let message = format!(
                    "there is no room in memory for the adapter \"{name}\": {loaded} are there, of \
                     them {pinned} pinned and the others at work; at most {max_loaded} adapters and \
                     {max_bytes} bytes. hint: try again later, or raise --max-loaded-adapters or \
                     --adapter-memory-mib"
                );
                match pinned < loaded {
                    // Some will be idle in a while.
                    true => ApiError::busy("adapters_busy", message),
                    false => ApiError::unavailable("adapters_full", message),
                }
            }
            Failure::Stopped => ApiError::stopped(),
        }
    }
}

impl Folder {
    /// Nothing in the folder leads out of its jail.
    fn check(&self) -> Result<(), String> {
        let Some(jail) = &self.jail else { return Ok(()) };
        let inside = |path: &Path| path.canonicalize().is_ok_and(|p| p.starts_with(jail));
        let entries = std::fs::read_dir(&self.path)
            .map_err(|e| format!("the adapter's folder cannot be read: {e}"))?;
        for entry in std::iter::once(Ok(self.path.clone()))
            .chain(entries.map(|entry| entry.map(|entry| entry.path())))
        {
            let path = entry.map_err(|e| format!("the adapter's folder cannot be read: {e}"))?;
            if !inside(&path) {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                return Err(format!(
                    "{} in the adapter's folder leads out of the folders that --adapter-dir gives",
                    shortened(&name)
                ));
            }
        }
        Ok(())
    }
}

/// The adapter's folder that a request means by `path`: in full, or below one of `dirs`.
fn find_folder(dirs: &[PathBuf], path: &str) -> Result<Folder, ApiError> {
    if dirs.is_empty() {
        let message = "this server does not load adapters on request. hint: start it with \
                       --adapter-dir and the folder that holds them";
        return Err(ApiError::client(StatusCode::FORBIDDEN, "adapters_fixed", message));
    }
    let asked = Path::new(path);
    if path.is_empty() || asked.components().any(|c| c == Component::ParentDir) {
        let message = format!(
            "lora_path is \"{}\"; expected a folder below one of --adapter-dir, without \"..\"",
            shortened(path)
        );
        return Err(ApiError::field("lora_path", message));
    }
    for dir in dirs {
        if let Ok(path) = dir.join(asked).canonicalize()
            && path.starts_with(dir)
            && path.is_dir()
        {
            return Ok(Folder { path, jail: Some(dir.clone()) });
        }
    }
    // The same words for what is outside as for what is not there: nobody learns which it is.
    let message = format!(
        "there is no adapter folder \"{}\" below the folders that --adapter-dir gives",
        shortened(path)
    );
    let error = ApiError::client(StatusCode::NOT_FOUND, "adapter_not_found", message);
    Err(error.with_param("lora_path"))
}

fn check_name(name: &str) -> Result<(), ServeError> {
    /// Bytes; names stand in logs, tables and answers.
    const LONGEST: usize = 200;
    if name.is_empty() || name.len() > LONGEST || name.chars().any(char::is_control) {
        return Err(ServeError::BadName(shortened(name)));
    }
    Ok(())
}
