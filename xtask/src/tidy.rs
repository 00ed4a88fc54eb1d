//! The house rules that a compiler does not check: which crate may import which, where `unsafe`,
//! async code and the names of model families may stand, and that nothing is left half done.
//!
//! A rule is a function from the [`Repository`] to the [`Breach`]es it finds, and one line in
//! [`RULES`]. `cargo run -p xtask -- tidy` prints them; the test at the bottom runs the same rules
//! on this repository, so that `cargo test --workspace` fails as well.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use toml::{Table, Value};

/// Every rule, one line each.
const RULES: &[Rule] = &[
    ("imports", imports),
    ("async", async_crates),
    ("manifest", manifests),
    ("unsafe", unsafe_code),
    ("families", family_names),
    ("engine", engine_without_io),
    ("opening", opening_doc),
    ("finished", finished),
    ("traps", traps),
];

/// A name and a check.
type Rule = (&'static str, fn(&Repository) -> Vec<Breach>);

/// What each crate may import of ours; dev- and build-dependencies count too. In words: the model
/// never knows text; the engine never knows text, files or HTTP; train, eval and serve never know
/// one another.
const IMPORTS: &[(&str, &[&str])] = &[
    ("kernels", &[]),
    ("text", &[]),
    ("model", &["kernels"]),
    ("data", &["text"]),
    ("train", &["model", "text", "data"]),
    ("engine", &["model"]),
    ("eval", &["engine", "text", "data"]),
    ("serve", &["engine", "text", "data", "model"]),
    ("metier", &["kernels", "text", "model", "data", "train", "engine", "eval", "serve"]),
    ("xtask", &[]),
];

/// The crates that may depend on an async runtime or an HTTP stack: the server, the evaluation's
/// remote candidates, and the binary that starts both.
const MAY_BE_ASYNC: &[&str] = &["serve", "eval", "metier"];

/// Dependencies that bring an async runtime with them.
const ASYNC: &[&str] = &["axum", "futures", "hyper", "reqwest", "tokio", "tower"];

/// The one crate where `unsafe` may stand.
const UNSAFE_HOME: &str = "crates/kernels";

/// The one folder where a model family may be named in code.
const FAMILY_HOME: &str = "crates/model/src/families";

/// Names of families, as they begin a word: "llama", "Llama3", "qwen2".
const FAMILIES: &[&str] = &[
    "bert", "gemma", "granite", "llama", "mistral", "mixtral", "olmo", "phi", "qwen", "roberta",
    "smollm",
];

/// Programs that are named after a family; their names may stand anywhere.
const PROGRAMS: &[&str] = &["llama.cpp", "llama-cli", "llama-server", "llama-perplexity"];

/// The table of fine-tuning's traps and of the tests that keep them shut.
const TRAPS: &str = "docs/traps.md";

/// Files that may name a family outside [`FAMILY_HOME`], each with its reason.
const FAMILY_EXCEPTIONS: &[(&str, &str)] = &[
    ("xtask/src/tidy.rs", "lists the names that it looks for"),
    ("crates/model/src/pooling.rs", "sentence-transformers names a file of its own after one"),
    ("crates/metier/src/commands/pull.rs", "the same file"),
    ("crates/text/src/vocabulary/gguf.rs", "GGUF names the kinds of tokenizer after families"),
    ("crates/text/src/vocabulary/pre_tokenizer.rs", "and the ways to cut words as well"),
    ("crates/text/src/gguf_tokens.rs", "llama.cpp names kinds of tokenizers after models"),
    ("crates/text/src/tools/mod.rs", "ways to write tool calls are named after who began them"),
    ("crates/text/src/tools/llama3.rs", "one of them"),
    ("crates/text/src/tools/mistral.rs", "one of them"),
    ("crates/text/src/tools/phi.rs", "one of them"),
    ("crates/metier/src/licences.rs", "licences are named after models"),
    ("crates/eval/src/french.rs", "what licences named after a family ask for"),
    ("crates/metier/src/findings.rs", "names of models that can only be rented"),
];

/// `cargo run -p xtask -- tidy`: prints every breach.
///
/// # Errors
/// When there is a breach, or a file cannot be read.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    if let Some(unknown) = arguments.first() {
        bail!("tidy takes no arguments, found \"{unknown}\"");
    }
    let repository = Repository::read(&root())?;
    let breaches = check(&repository);
    for breach in &breaches {
        eprintln!("{breach}");
    }
    if !breaches.is_empty() {
        bail!("{} breach(es) of the house rules (ARCHITECTURE.md, \"Invariants\")", breaches.len());
    }
    println!(
        "tidy: {} rules hold in {} crates, {} source files",
        RULES.len(),
        repository.crates.len(),
        repository.sources.len()
    );
    Ok(())
}

/// All breaches of all rules, in the order of [`RULES`].
fn check(repository: &Repository) -> Vec<Breach> {
    let mut all = Vec::new();
    for (name, rule) in RULES {
        for mut breach in rule(repository) {
            breach.rule = name;
            all.push(breach);
        }
    }
    all
}

/// A place where a rule does not hold.
#[derive(Debug)]
struct Breach {
    rule: &'static str,
    file: String,
    /// 1-based; 0 when the whole file is meant.
    line: usize,
    message: String,
}

impl Breach {
    fn new(file: &str, line: usize, message: impl Into<String>) -> Breach {
        Breach { rule: "", file: file.to_owned(), line, message: message.into() }
    }
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        write!(f, ": {} [{}]", self.message, self.rule)
    }
}

// ---- The rules ----------------------------------------------------------------------------------

/// Crates import of ours only what [`IMPORTS`] allows.
fn imports(repository: &Repository) -> Vec<Breach> {
    let ours: BTreeSet<&str> = repository.crates.iter().map(|c| c.name.as_str()).collect();
    let mut breaches = Vec::new();
    for member in &repository.crates {
        let Some((_, allowed)) = IMPORTS.iter().find(|(name, _)| *name == member.name) else {
            breaches.push(Breach::new(
                &member.manifest_path,
                0,
                format!("crate \"{}\" has no line in IMPORTS of xtask/src/tidy.rs", member.name),
            ));
            continue;
        };
        for dependency in &member.dependencies {
            if ours.contains(dependency.as_str()) && !allowed.contains(&dependency.as_str()) {
                let list = if allowed.is_empty() {
                    "nothing of ours".to_owned()
                } else {
                    allowed.join(", ")
                };
                breaches.push(Breach::new(
                    &member.manifest_path,
                    0,
                    format!(
                        "\"{}\" imports \"{dependency}\", but may import only: {list}",
                        member.name
                    ),
                ));
            }
        }
    }
    breaches
}

/// An async runtime stays in [`MAY_BE_ASYNC`].
fn async_crates(repository: &Repository) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for member in &repository.crates {
        if MAY_BE_ASYNC.contains(&member.name.as_str()) {
            continue;
        }
        for dependency in &member.dependencies {
            let first = dependency.split(['-', '_']).next().unwrap_or_default();
            if ASYNC.contains(&first) {
                breaches.push(Breach::new(
                    &member.manifest_path,
                    0,
                    format!(
                        "\"{}\" depends on \"{dependency}\"; async belongs to: {}",
                        member.name,
                        MAY_BE_ASYNC.join(", ")
                    ),
                ));
            }
        }
    }
    breaches
}

/// Every manifest keeps the lints that hold the other rules up, and the workspace's versions.
fn manifests(repository: &Repository) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for member in &repository.crates {
        let lint = |name: &str| {
            let level = member.manifest.get("lints")?.get("rust")?.get(name)?;
            match level {
                Value::Table(table) => table.get("level")?.as_str(),
                other => other.as_str(),
            }
        };
        if member.folder != UNSAFE_HOME && lint("unsafe_code") != Some("forbid") {
            breaches.push(Breach::new(
                &member.manifest_path,
                0,
                "expected [lints.rust] unsafe_code = \"forbid\"",
            ));
        }
        if lint("missing_docs") != Some("warn") {
            breaches.push(Breach::new(
                &member.manifest_path,
                0,
                "expected [lints.rust] missing_docs = \"warn\"",
            ));
        }
        for field in ["edition", "rust-version", "license", "publish"] {
            let inherited = member
                .manifest
                .get("package")
                .and_then(|p| p.get(field)?.get("workspace")?.as_bool());
            if inherited != Some(true) {
                breaches.push(Breach::new(
                    &member.manifest_path,
                    0,
                    format!("expected {field}.workspace = true"),
                ));
            }
        }
    }
    breaches
}

/// `unsafe` stands only in [`UNSAFE_HOME`]. The lint forbids it as well; this also covers code that
/// is compiled for another machine than the one at hand.
fn unsafe_code(repository: &Repository) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for source in &repository.sources {
        if source.is_in(UNSAFE_HOME) {
            continue;
        }
        for (line, word) in words(&source.code) {
            if word == "unsafe" {
                breaches.push(Breach::new(
                    &source.path,
                    line,
                    format!("`unsafe` outside {UNSAFE_HOME}"),
                ));
            }
        }
    }
    breaches
}

/// No family is named in code or in a string outside [`FAMILY_HOME`]; comments and tests may.
fn family_names(repository: &Repository) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for source in &repository.sources {
        let excepted = FAMILY_EXCEPTIONS.iter().any(|(path, _)| *path == source.path);
        if source.is_in(FAMILY_HOME) || source.is_test_file() || excepted {
            continue;
        }
        let product = source.without_tests();
        for view in [&product.code, &product.strings] {
            let blank = |view: String, program: &&str| view.replace(program, " ");
            let view = PROGRAMS.iter().fold(view.clone(), blank);
            for (line, word) in words(&view) {
                if let Some(family) = named_family(word) {
                    breaches.push(Breach::new(
                        &source.path,
                        line,
                        format!(
                            "\"{word}\" names the family {family}; what differs by family is a \
                             field of its file in {FAMILY_HOME}"
                        ),
                    ));
                }
            }
        }
    }
    breaches
}

/// The engine touches neither files nor sockets: token ids in, token ids out.
fn engine_without_io(repository: &Repository) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for source in &repository.sources {
        if !source.is_in("crates/engine") || source.is_test_file() {
            continue;
        }
        for (number, line) in source.without_tests().code.lines().enumerate() {
            for module in ["std::fs", "std::net", "std::process"] {
                if line.contains(module) {
                    breaches.push(Breach::new(
                        &source.path,
                        number + 1,
                        format!("the engine sees token ids only, found `{module}`"),
                    ));
                }
            }
        }
    }
    breaches
}

/// Every source file opens by saying what it is for.
fn opening_doc(repository: &Repository) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for source in &repository.sources {
        let first = source.text.lines().find(|l| !l.trim().is_empty());
        let documented = first.is_some_and(|l| l.starts_with("//!") || l.starts_with("///"));
        if !documented {
            breaches.push(Breach::new(
                &source.path,
                1,
                "expected the file to open with a //! line that says what it is for",
            ));
        }
    }
    breaches
}

/// Every test that the table of traps names, in backquotes, is a function somewhere.
fn traps(repository: &Repository) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for (number, line) in repository.traps.lines().enumerate() {
        let quoted = line.split('`').skip(1).step_by(2);
        let test = |name: &&str| {
            name.contains('_') && name.chars().all(|c| c == '_' || c.is_ascii_alphanumeric())
        };
        for name in quoted.filter(test) {
            let wanted = format!("fn {name}(");
            if !repository.sources.iter().any(|source| source.code.contains(&wanted)) {
                let message = format!("names the test {name}, which does not exist");
                breaches.push(Breach::new(TRAPS, number + 1, message));
            }
        }
    }
    breaches
}

/// Nothing is left for later: no such comments, no such macros.
fn finished(repository: &Repository) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for source in &repository.sources {
        for (line, word) in words(&source.comments) {
            if ["TODO", "FIXME", "XXX", "HACK"].contains(&word) {
                breaches.push(Breach::new(
                    &source.path,
                    line,
                    format!("\"{word}\" in a comment: do it, or note it where work is planned"),
                ));
            }
        }
        for (number, line) in source.code.lines().enumerate() {
            for name in ["todo!", "unimplemented!", "dbg!"] {
                if line.contains(name) {
                    breaches.push(Breach::new(
                        &source.path,
                        number + 1,
                        format!("`{name}` left in the code"),
                    ));
                }
            }
        }
    }
    breaches
}

// ---- What the rules look at ---------------------------------------------------------------------

/// The manifests and Rust sources of the workspace.
#[derive(Default)]
struct Repository {
    crates: Vec<Crate>,
    sources: Vec<Source>,
    /// The text of [`TRAPS`].
    traps: String,
}

struct Crate {
    name: String,
    /// Relative to the root: "crates/model".
    folder: String,
    manifest_path: String,
    manifest: Table,
    /// Package names of all dependencies: normal, dev, build, and those under `[target]`.
    dependencies: BTreeSet<String>,
}

impl Repository {
    fn read(root: &Path) -> Result<Repository> {
        let workspace = read_toml(&root.join("Cargo.toml"))?;
        let traps =
            fs::read_to_string(root.join(TRAPS)).with_context(|| format!("cannot read {TRAPS}"))?;
        let mut repository = Repository { traps, ..Repository::default() };
        for folder in member_folders(root)? {
            let path = format!("{folder}/Cargo.toml");
            let manifest = read_toml(&root.join(&path))?;
            repository.crates.push(Crate::new(&folder, manifest, &workspace)?);
            for file in rust_files(&root.join(&folder))? {
                let relative = file.strip_prefix(root)?.to_string_lossy().replace('\\', "/");
                let text = fs::read_to_string(&file)
                    .with_context(|| format!("cannot read {}", file.display()))?;
                repository.sources.push(Source::new(&relative, &text));
            }
        }
        Ok(repository)
    }
}

impl Crate {
    fn new(folder: &str, manifest: Table, workspace: &Table) -> Result<Crate> {
        let manifest_path = format!("{folder}/Cargo.toml");
        let name = manifest
            .get("package")
            .and_then(|p| p.get("name")?.as_str())
            .with_context(|| format!("{manifest_path}: expected package.name"))?
            .to_owned();
        let mut dependencies = BTreeSet::new();
        collect_dependencies(&manifest, workspace, &mut dependencies);
        Ok(Crate { name, folder: folder.to_owned(), manifest_path, manifest, dependencies })
    }
}

/// Adds the package names of every dependency table in `table`, following renames
/// (`alias = { package = "name" }`), also where the rename is in the workspace's table.
fn collect_dependencies(table: &Table, workspace: &Table, found: &mut BTreeSet<String>) {
    let shared = workspace.get("workspace").and_then(|w| w.get("dependencies")?.as_table());
    for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
        let Some(list) = table.get(kind).and_then(Value::as_table) else {
            continue;
        };
        for (alias, entry) in list {
            let inherited = entry.get("workspace").and_then(Value::as_bool) == Some(true);
            let entry =
                if inherited { shared.and_then(|s| s.get(alias)).unwrap_or(entry) } else { entry };
            let package = entry.get("package").and_then(Value::as_str);
            found.insert(package.unwrap_or(alias).to_owned());
        }
    }
    if let Some(targets) = table.get("target").and_then(Value::as_table) {
        for target in targets.values().filter_map(Value::as_table) {
            collect_dependencies(target, workspace, found);
        }
    }
}

/// A Rust file, seen as code, string literals and comments. Each view has the text's lines, with
/// everything else blanked.
struct Source {
    path: String,
    text: String,
    code: String,
    strings: String,
    comments: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Source {
        let characters: Vec<char> = text.chars().collect();
        let kinds = kinds(&characters);
        let view = |wanted: Kind| -> String {
            let keep =
                |(&c, &kind): (&char, &Kind)| if kind == wanted || c == '\n' { c } else { ' ' };
            characters.iter().zip(&kinds).map(keep).collect()
        };
        Source {
            path: path.to_owned(),
            text: text.to_owned(),
            code: view(Kind::Code),
            strings: view(Kind::Str),
            comments: view(Kind::Comment),
        }
    }

    fn is_in(&self, folder: &str) -> bool {
        Path::new(&self.path).starts_with(folder)
    }

    /// Whether the whole file is test or benchmark code.
    fn is_test_file(&self) -> bool {
        let path = Path::new(&self.path);
        let in_folder =
            path.components().any(|c| ["tests", "benches"].iter().any(|t| c.as_os_str() == *t));
        in_folder || path.file_name().is_some_and(|name| name == "tests.rs")
    }

    /// The same file with every item under `#[cfg(test)]` blanked.
    fn without_tests(&self) -> Source {
        let mut code: Vec<char> = self.code.chars().collect();
        let mut strings: Vec<char> = self.strings.chars().collect();
        let marker: Vec<char> = "#[cfg(test)]".chars().collect();
        let mut at = 0;
        while at + marker.len() <= code.len() {
            if code[at..at + marker.len()] != marker[..] {
                at += 1;
                continue;
            }
            let end = end_of_item(&code, at + marker.len());
            for view in [&mut code, &mut strings] {
                for c in &mut view[at..end] {
                    if *c != '\n' {
                        *c = ' ';
                    }
                }
            }
            at = end;
        }
        Source {
            path: self.path.clone(),
            text: self.text.clone(),
            code: code.into_iter().collect(),
            strings: strings.into_iter().collect(),
            comments: self.comments.clone(),
        }
    }
}

/// Index after the item that begins at `at`: after its `;`, or after its closing brace.
fn end_of_item(code: &[char], at: usize) -> usize {
    let mut depth = 0usize;
    for (i, c) in code.iter().enumerate().skip(at) {
        match c {
            '{' => depth += 1,
            '}' if depth <= 1 => return i + 1,
            '}' => depth -= 1,
            ';' if depth == 0 => return i + 1,
            _ => {}
        }
    }
    code.len()
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Code,
    Str,
    Comment,
}

/// What each character of a Rust source belongs to. The quotes of a literal count as code, so that
/// a string's words never join the code around them.
fn kinds(source: &[char]) -> Vec<Kind> {
    let mut kinds = vec![Kind::Code; source.len()];
    let at = |i: usize| source.get(i).copied().unwrap_or('\0');
    let mut i = 0;
    while i < source.len() {
        let start = i;
        match at(i) {
            '/' if at(i + 1) == '/' => {
                while i < source.len() && at(i) != '\n' {
                    i += 1;
                }
                kinds[start..i].fill(Kind::Comment);
            }
            '/' if at(i + 1) == '*' => {
                let mut depth = 0;
                while i < source.len() {
                    match (at(i), at(i + 1)) {
                        ('/', '*') => (depth, i) = (depth + 1, i + 2),
                        ('*', '/') => (depth, i) = (depth - 1, i + 2),
                        _ => i += 1,
                    }
                    if depth == 0 {
                        break;
                    }
                }
                i = i.min(source.len());
                kinds[start..i].fill(Kind::Comment);
            }
            '"' => {
                i += 1;
                while i < source.len() && at(i) != '"' {
                    i += if at(i) == '\\' { 2 } else { 1 };
                }
                let end = i.min(source.len());
                kinds[start + 1..end].fill(Kind::Str);
                i = end + 1;
            }
            'r' if raw_string_hashes(source, i).is_some() => {
                let hashes = raw_string_hashes(source, i).unwrap_or_default();
                let open = i + 1 + hashes;
                i = open + 1;
                while i < source.len() && !(at(i) == '"' && (1..=hashes).all(|h| at(i + h) == '#'))
                {
                    i += 1;
                }
                let end = i.min(source.len());
                kinds[open + 1..end].fill(Kind::Str);
                i = end + 1 + hashes;
            }
            // A character literal; otherwise the quote begins a lifetime.
            '\'' if at(i + 1) == '\\' => {
                i += 3;
                while i < source.len() && at(i) != '\'' {
                    i += 1;
                }
                i += 1;
            }
            '\'' if at(i + 2) == '\'' => i += 3,
            _ => i += 1,
        }
    }
    kinds
}

/// Number of `#` of the raw string literal that begins with the `r` at `i` (also in `br`, `cr`);
/// None when it is a letter of a name or a raw identifier.
fn raw_string_hashes(source: &[char], i: usize) -> Option<usize> {
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    let before = i.checked_sub(1).map(|b| source[b]);
    let prefixed = matches!(before, Some('b' | 'c'))
        && !i.checked_sub(2).is_some_and(|b| part_of_name(source[b]));
    if !prefixed && before.is_some_and(part_of_name) {
        return None;
    }
    let hashes = source[i + 1..].iter().take_while(|c| **c == '#').count();
    (source.get(i + 1 + hashes) == Some(&'"')).then_some(hashes)
}

/// The names in a view, each with its 1-based line.
fn words(view: &str) -> impl Iterator<Item = (usize, &str)> {
    view.lines().enumerate().flat_map(|(number, line)| {
        line.split(|c: char| !c.is_alphanumeric() && c != '_')
            .filter(|word| !word.is_empty())
            .map(move |word| (number + 1, word))
    })
}

/// The family that a part of `word` names: parts are what underscores and capitals separate, and a
/// version number may follow ("qwen2", "Llama3ForCausalLM"). "graphic" names none.
fn named_family(word: &str) -> Option<&'static str> {
    let mut parts: Vec<String> = vec![String::new()];
    let mut after_lower = false;
    for c in word.chars() {
        let boundary = c == '_' || (c.is_uppercase() && after_lower);
        after_lower = c.is_lowercase() || c.is_ascii_digit();
        if boundary {
            parts.push(String::new());
        }
        if c != '_' {
            parts.last_mut()?.extend(c.to_lowercase());
        }
    }
    let bare = |part: &str| part.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned();
    let bare: Vec<String> = parts.iter().map(|p| bare(p)).collect();
    FAMILIES.iter().copied().find(|family| bare.iter().any(|part| part == family))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_owned()
}

/// Folders of the workspace's members, sorted: all of crates/, and xtask.
fn member_folders(root: &Path) -> Result<Vec<String>> {
    let crates = root.join("crates");
    let mut folders = vec!["xtask".to_owned()];
    for entry in
        fs::read_dir(&crates).with_context(|| format!("cannot list {}", crates.display()))?
    {
        let entry = entry?;
        if entry.path().join("Cargo.toml").is_file() {
            folders.push(format!("crates/{}", entry.file_name().to_string_lossy()));
        }
    }
    folders.sort();
    Ok(folders)
}

/// Every .rs file below `folder`, sorted.
fn rust_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut waiting = vec![folder.to_owned()];
    while let Some(folder) = waiting.pop() {
        for entry in
            fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?
        {
            let path = entry?.path();
            if path.is_dir() {
                if path.file_name().is_some_and(|name| name != "target") {
                    waiting.push(path);
                }
            } else if path.extension().is_some_and(|e| e == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

fn read_toml(path: &Path) -> Result<Table> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    text.parse().with_context(|| format!("{} is not valid TOML", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_repository_is_tidy() {
        let repository = Repository::read(&root()).expect("the repository is readable");
        // Guards against a walk that finds nothing and so approves everything.
        assert_eq!(repository.crates.len(), IMPORTS.len());
        assert!(repository.sources.len() > 20, "{}", repository.sources.len());
        let breaches = check(&repository);
        let listed: Vec<String> = breaches.iter().map(Breach::to_string).collect();
        assert!(listed.is_empty(), "\n{}", listed.join("\n"));
    }

    /// The workspace's table of dependencies in all manifest tests.
    const WORKSPACE: &str = r#"
        [workspace.dependencies]
        kernels = { path = "crates/kernels" }
        math = { path = "crates/kernels", package = "kernels" }
        tokio = "1"
    "#;

    fn with_crates(manifests: &[(&str, &str)]) -> Repository {
        let workspace: Table = WORKSPACE.parse().expect("valid TOML");
        let parse = |(folder, manifest): &(&str, &str)| {
            let manifest: Table = manifest.parse().expect("valid TOML");
            Crate::new(folder, manifest, &workspace).expect("a name")
        };
        Repository { crates: manifests.iter().map(parse).collect(), ..Repository::default() }
    }

    fn with_source(path: &str, text: &str) -> Repository {
        Repository { sources: vec![Source::new(path, text)], ..Repository::default() }
    }

    fn lines(breaches: &[Breach]) -> Vec<usize> {
        breaches.iter().map(|b| b.line).collect()
    }

    #[track_caller]
    fn check_imports(manifest: &str, expected: usize) {
        let kernels = ("crates/kernels", "package.name = \"kernels\"");
        let repository = with_crates(&[kernels, ("crates/x", manifest)]);
        assert_eq!(imports(&repository).len(), expected, "{manifest}");
    }

    #[test]
    fn imports_follow_the_table() {
        check_imports("package.name = \"model\"\ndependencies.kernels.workspace = true", 0);
        check_imports("package.name = \"text\"\ndependencies.kernels.workspace = true", 1);
        check_imports("package.name = \"text\"\ndev-dependencies.kernels.workspace = true", 1);
        check_imports("package.name = \"text\"\nbuild-dependencies.kernels.workspace = true", 1);
        check_imports("package.name = \"text\"\ndependencies.math.workspace = true", 1);
        check_imports("package.name = \"text\"\ndependencies.kernels.path = \"../kernels\"", 1);
        check_imports(
            "package.name = \"text\"\ndependencies.k = { path = \"..\", package = \"kernels\" }",
            1,
        );
        check_imports(
            "package.name = \"text\"\n[target.'cfg(unix)'.dependencies]\nkernels.workspace = true",
            1,
        );
        check_imports("package.name = \"text\"\ndependencies.serde = \"1\"", 0);
        check_imports("package.name = \"newcomer\"", 1);
    }

    #[track_caller]
    fn check_async(name: &str, dependency: &str, expected: usize) {
        let manifest = format!("package.name = \"{name}\"\ndev-dependencies.{dependency} = \"1\"");
        let repository = with_crates(&[("crates/x", &manifest)]);
        assert_eq!(async_crates(&repository).len(), expected, "{manifest}");
    }

    #[test]
    fn async_stays_at_the_edge() {
        check_async("serve", "tokio", 0);
        check_async("metier", "reqwest", 0);
        check_async("engine", "tokio", 1);
        check_async("engine", "tokio-stream", 1);
        check_async("train", "futures-util", 1);
        check_async("data", "tower-http", 1);
        check_async("data", "tokenizers", 0);
    }

    #[test]
    fn manifests_keep_their_lints() {
        let good = "package = { name = \"text\", edition.workspace = true, \
                    rust-version.workspace = true, license.workspace = true, \
                    publish.workspace = true }\n\
                    [lints.rust]\nunsafe_code = \"forbid\"\nmissing_docs = \"warn\"";
        let check =
            |folder: &str, manifest: &str| manifests(&with_crates(&[(folder, manifest)])).len();
        assert_eq!(check("crates/text", good), 0);
        assert_eq!(check("crates/text", &good.replace("forbid", "warn")), 1);
        assert_eq!(check("crates/kernels", &good.replace("forbid", "warn")), 0);
        assert_eq!(check("crates/text", &good.replace("missing_docs", "dead_code")), 1);
        assert_eq!(check("crates/text", &good.replace("license.", "homepage.")), 1);
    }

    #[test]
    fn unsafe_has_one_home() {
        let text =
            "fn f() {\n    unsafe { g() }\n}\n// unsafe in words\nconst S: &str = \"unsafe\";\n";
        assert_eq!(lines(&unsafe_code(&with_source("crates/model/src/a.rs", text))), [2]);
        assert!(lines(&unsafe_code(&with_source("crates/kernels/src/a.rs", text))).is_empty());
        assert_eq!(lines(&unsafe_code(&with_source("crates/kernels_x/src/a.rs", text))), [2]);
    }

    #[track_caller]
    fn check_family(word: &str, expected: Option<&str>) {
        assert_eq!(named_family(word), expected, "{word}");
    }

    #[test]
    fn families_are_recognised_as_parts_of_a_word() {
        check_family("llama", Some("llama"));
        check_family("LlamaForCausalLM", Some("llama"));
        check_family("load_qwen2_config", Some("qwen"));
        check_family("is_phi3", Some("phi"));
        check_family("GEMMA", Some("gemma"));
        check_family("graphic", None);
        check_family("philosophy", None);
        check_family("alpha", None);
    }

    #[test]
    fn families_are_named_at_home_and_in_tests_only() {
        let text = "/// Like mistral.\nfn f(name: &str) -> bool {\n    name == \"llama\"\n}\n\
                    #[cfg(test)]\nmod tests {\n    fn g() { qwen(\"{ phi\"); }\n}\nfn gemma() {}\n";
        let check = |path: &str| lines(&family_names(&with_source(path, text)));
        let mut found = check("crates/model/src/decoder.rs");
        found.sort_unstable();
        assert_eq!(found, [3, 9]);
        assert!(check("crates/model/src/families/other.rs").is_empty());
        assert!(check("crates/model/tests/golden.rs").is_empty());
    }

    #[test]
    fn the_engine_does_no_io() {
        let text = "use std::fs;\n// std::net\n#[cfg(test)]\nmod tests { use std::fs; }\n";
        let check = |path: &str| lines(&engine_without_io(&with_source(path, text)));
        assert_eq!(check("crates/engine/src/a.rs"), [1]);
        assert!(check("crates/model/src/a.rs").is_empty());
    }

    #[test]
    fn files_open_with_their_purpose() {
        let check = |text: &str| opening_doc(&with_source("crates/a/src/a.rs", text)).len();
        assert_eq!(check("//! What it is.\nfn f() {}\n"), 0);
        assert_eq!(check("\n/// What it is.\nfn f() {}\n"), 0);
        assert_eq!(check("// Not a doc.\nfn f() {}\n"), 1);
        assert_eq!(check("use std::fs;\n//! Late.\n"), 1);
        assert_eq!(check(""), 1);
    }

    #[test]
    fn nothing_is_left_for_later() {
        let text = "// TODO: later\nfn f() { todo!() }\n/* FIXME */\nfn g() { unimplemented!(\"x\") }\n\
                    const S: &str = \"TODO todo!\";\nlet todo = 1;\n";
        let mut found = lines(&finished(&with_source("crates/a/src/a.rs", text)));
        found.sort_unstable();
        assert_eq!(found, [1, 2, 3, 4]);
    }

    #[track_caller]
    fn check_strings(text: &str, expected: &str) {
        let source = Source::new("a.rs", text);
        let found: Vec<&str> = source.strings.split_whitespace().collect();
        assert_eq!(found.join(" "), expected, "{text}");
    }

    #[test]
    fn a_trap_without_its_test_is_found() {
        let mut repository = with_source("crates/a/src/lib.rs", "fn kept_shut() {}\n");
        repository.traps = "a `kept_shut`\n`cargo run` and `left_open`, `kept_shut`\n".into();
        assert_eq!(lines(&traps(&repository)), [2]);
    }

    #[test]
    fn literals_and_comments_are_told_apart() {
        check_strings(r#"f("in")"#, "in");
        check_strings(r#"f("a\"b") // "no""#, r#"a\"b"#);
        check_strings("f(r\"in\\\") + g(\"too\")", "in\\ too");
        check_strings("f(br#\"a\"b\"#, \"c\")", "a\"b c");
        check_strings("let r#type = \"a\";", "a");
        check_strings("let c = '\"'; f(\"in\")", "in");
        check_strings("let c = '\\''; f(\"in\")", "in");
        check_strings("fn f<'a>(x: &'a str) { g(\"in\") }", "in");
        check_strings("/* \"no\" /* nested \"no\" */ \"no\" */ f(\"in\")", "in");
        check_strings("f(\"open", "open");
        check_strings("\"é// not a comment\"", "é// not a comment");
    }
}
