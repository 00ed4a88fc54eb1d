//! Price tables that were fetched: each as it came, under its digest, in the folder for state, and a list
//! of them with source and day. The last one of the list counts.

use ::eval::{PriceTable, in_the_clear};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where a table comes from when nobody says otherwise: genai-prices (MIT), whose prices have days.
pub(crate) const DEFAULT_URL: &str =
    "https://raw.githubusercontent.com/pydantic/genai-prices/main/prices/data.json";

/// Largest table.
const MOST_BYTES: u64 = 64 << 20;
/// Longest wait for one.
const PATIENCE: Duration = Duration::from_secs(60);
/// The list, in the folder of tables.
const INDEX: &str = "index.json";

/// A table of the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// The file or address that it was read from.
    pub(crate) source: String,
    /// The day that it is from, year-month-day.
    pub(crate) read: String,
    /// Of its bytes.
    pub(crate) sha256: String,
    /// How many.
    pub(crate) bytes: u64,
    /// Prices of rented models in it.
    pub(crate) models: usize,
    /// Prices of machines in it.
    pub(crate) machines: usize,
}

/// A table that was kept.
pub(crate) struct Kept {
    /// Where it is from.
    pub(crate) entry: Entry,
    /// Its file.
    pub(crate) path: PathBuf,
    /// Its prices.
    pub(crate) table: PriceTable,
}

/// The list as it is on the disk.
#[derive(Default, Serialize, Deserialize)]
struct Index {
    schema_version: u32,
    tables: Vec<Entry>,
}

/// Reads a table from `from`, a file or an address, and keeps it below `state` as that of the day `read`.
/// What cannot be read changes nothing.
pub(crate) fn update(state: &Path, from: &str, read: &str) -> Result<Entry> {
    let bytes = if from.starts_with("https://") || from.starts_with("http://") {
        fetch(from)?
    } else {
        let file = File::open(from).with_context(|| from.to_owned())?;
        bounded(file, from)?
    };
    let text = std::str::from_utf8(&bytes)
        .with_context(|| format!("{from}: expected a table of prices in UTF-8"))?;
    let table = PriceTable::parse(text, Path::new(from), read)?;
    if table.tokens.is_empty() && table.machines.is_empty() {
        bail!("{from}: found no price in it; expected a table of prices");
    }
    let dir = dir(state);
    std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    let lock_path = dir.join(".lock");
    let lock = OpenOptions::new().create(true).append(true).open(&lock_path);
    let lock = lock.with_context(|| lock_path.display().to_string())?;
    lock.lock().with_context(|| lock_path.display().to_string())?;
    let mut index = list(state)?;
    let entry = Entry {
        source: from.to_owned(),
        read: read.to_owned(),
        sha256: model::sha256_hex(&bytes),
        bytes: bytes.len() as u64,
        models: table.tokens.len(),
        machines: table.machines.len(),
    };
    // The table first: whoever is in the list is there.
    model::write_atomic(&file_of(&dir, &entry), &bytes)?;
    index.retain(|other| *other != entry);
    index.push(entry.clone());
    let index = serde_json::to_string_pretty(&Index { schema_version: 1, tables: index })? + "\n";
    model::write_atomic(&dir.join(INDEX), index.as_bytes())?;
    Ok(entry)
}

/// The tables that were kept, the one that counts last.
pub(crate) fn list(state: &Path) -> Result<Vec<Entry>> {
    let path = dir(state).join(INDEX);
    let shown = path.display().to_string();
    let file = match File::open(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        opened => opened.with_context(|| shown.clone())?,
    };
    let hint = || {
        format!("{shown}: no list of price tables\nhint: delete it, and run `metier prices update`")
    };
    let index: Index = serde_json::from_slice(&bounded(file, &shown)?).with_context(hint)?;
    if index.schema_version != 1 {
        bail!(
            "{shown}: found version {}; expected 1\nhint: a newer metier wrote it",
            index.schema_version
        );
    }
    Ok(index.tables)
}

/// The table that counts, with its digest checked; None where none was kept.
pub(crate) fn newest(state: &Path) -> Result<Option<Kept>> {
    let Some(entry) = list(state)?.pop() else { return Ok(None) };
    let path = file_of(&dir(state), &entry);
    let shown = path.display().to_string();
    let hint = "hint: `metier prices update` keeps a new one";
    let file = File::open(&path).with_context(|| format!("{shown}\n{hint}"))?;
    let bytes = bounded(file, &shown)?;
    let found = model::sha256_hex(&bytes);
    if found != entry.sha256 {
        bail!("{shown}: its SHA-256 is {found}, and not the one it was kept under\n{hint}");
    }
    let text = std::str::from_utf8(&bytes).with_context(|| shown.clone())?;
    let table = PriceTable::parse(text, &path, &entry.read)?;
    Ok(Some(Kept { entry, path, table }))
}

fn dir(state: &Path) -> PathBuf {
    state.join("prices")
}

fn file_of(dir: &Path, entry: &Entry) -> PathBuf {
    let digest: String = entry.sha256.chars().filter(char::is_ascii_hexdigit).take(64).collect();
    dir.join(format!("{digest}.json"))
}

fn bounded(reader: impl Read, name: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(MOST_BYTES + 1).read_to_end(&mut bytes).with_context(|| name.to_owned())?;
    if bytes.len() as u64 > MOST_BYTES {
        bail!("{name}: found more than {MOST_BYTES} bytes; expected a table of prices");
    }
    Ok(bytes)
}

fn fetch(url: &str) -> Result<Vec<u8>> {
    if in_the_clear(url) {
        bail!("{url}: whoever stands in between could change the prices\nhint: use https://");
    }
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(PATIENCE))
        .http_status_as_error(false)
        .https_only(url.starts_with("https://"))
        .max_redirects(if url.starts_with("https://") { 3 } else { 0 })
        .user_agent(concat!("metier/", env!("CARGO_PKG_VERSION")));
    let agent = config.build().new_agent();
    let mut response = agent.get(url).call().with_context(|| {
        format!("{url}: cannot be fetched\nhint: --from takes a file that was fetched elsewhere")
    })?;
    if response.status() != 200 {
        bail!("{url}: found the status {}; expected a table of prices", response.status());
    }
    bounded(response.body_mut().as_reader(), url)
}
