//! Models of the Hugging Face Hub: how they are named, and where the cache that other tools share
//! (`HF_HOME`, `HF_HUB_CACHE`) keeps them.

use anyhow::{Result, bail};
use hf_hub::api::sync::{Api, ApiBuilder};
use hf_hub::{Cache, Repo, RepoType};
use std::path::{Path, PathBuf};

/// `ORG/NAME`, or `ORG/NAME@REVISION` with a branch, tag or commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HubId {
    /// `ORG/NAME`
    pub(crate) name: String,
    /// Branch, tag or commit.
    pub(crate) revision: String,
}

impl HubId {
    /// None when `text` has another form. Names become folders of the cache, so nothing that
    /// could lead out of it is taken.
    pub(crate) fn parse(text: &str) -> Option<HubId> {
        let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (org, model) = name.split_once('/')?;
        let plain = |part: &str| {
            let word = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !part.is_empty() && part.len() <= 96 && part.chars().all(word) && !part.starts_with('.')
        };
        let fits = plain(org) && plain(model) && revision.split('/').all(plain);
        fits.then(|| HubId { name: name.to_owned(), revision: revision.to_owned() })
    }

    /// The repository at this revision.
    pub(crate) fn repo(&self) -> Repo {
        Repo::with_revision(self.name.clone(), RepoType::Model, self.revision.clone())
    }

    /// The same model at another revision.
    pub(crate) fn at(&self, revision: &str) -> HubId {
        HubId { name: self.name.clone(), revision: revision.to_owned() }
    }

    /// The model's folder in the cache, when it has been pulled.
    pub(crate) fn snapshot(&self) -> Option<PathBuf> {
        let folder = self.folder();
        let commit = std::fs::read_to_string(folder.join("refs").join(&self.revision));
        let commit = commit.unwrap_or_else(|_| self.revision.clone());
        let dir = folder.join("snapshots").join(commit.trim());
        dir.join("config.json").is_file().then_some(dir)
    }

    /// Everything the cache holds of this model, all revisions.
    pub(crate) fn folder(&self) -> PathBuf {
        cache().path().join(self.repo().folder_name())
    }
}

/// The cache that huggingface_hub and its relatives use too.
pub(crate) fn cache() -> Cache {
    match std::env::var_os("HF_HUB_CACHE").filter(|v| !v.is_empty()) {
        Some(path) => Cache::new(PathBuf::from(path)),
        None => Cache::from_env(),
    }
}

/// A client of `HF_ENDPOINT` (default: the Hub) with the user's token, from `HF_TOKEN` or as
/// `hf auth login` left it.
pub(crate) fn api() -> Result<Api> {
    let mut builder = ApiBuilder::from_cache(cache())
        .with_progress(false)
        .with_retries(3)
        .with_user_agent("metier", env!("CARGO_PKG_VERSION"));
    if let Ok(endpoint) = std::env::var("HF_ENDPOINT") {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
    }
    if let Ok(token) = std::env::var("HF_TOKEN")
        && !token.trim().is_empty()
    {
        builder = builder.with_token(Some(token.trim().to_owned()));
    }
    Ok(builder.build()?)
}

/// Every model in the cache, by name.
pub(crate) fn pulled() -> Vec<HubId> {
    let entries = std::fs::read_dir(cache().path()).into_iter().flatten().flatten();
    let mut ids: Vec<HubId> = entries
        .filter_map(|e| {
            let folder = e.file_name().into_string().ok()?;
            HubId::parse(&folder.strip_prefix("models--")?.replacen("--", "/", 1))
        })
        .collect();
    ids.sort_by(|a, b| a.name.cmp(&b.name));
    ids
}

/// A file of a repository must stay inside its folder.
pub(crate) fn check_file_name(name: &str) -> Result<()> {
    let mut parts = Path::new(name).components();
    if name.is_empty() || !parts.all(|p| matches!(p, std::path::Component::Normal(_))) {
        bail!("the Hub lists a file named \"{name}\", expected a path inside the repository");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::HubId;

    #[test]
    fn names() {
        let good = |text: &str, name: &str, revision: &str| {
            let id = HubId { name: name.into(), revision: revision.into() };
            assert_eq!(HubId::parse(text), Some(id));
        };
        good("org/model", "org/model", "main");
        good("org/Model-1.5_b@v1.0", "org/Model-1.5_b", "v1.0");
        good("org/model@refs/pr/3", "org/model", "refs/pr/3");
        for bad in [
            "nano", "a/b/c", "/b", "a/", "../b", "a/..", "a/b@", "a/b@../c", "a b/c", "./model",
            "a/b@x//y",
        ] {
            assert_eq!(HubId::parse(bad), None, "{bad}");
        }
    }
}
