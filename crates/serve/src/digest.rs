//! Which weights answer, known when it is first written down.

use std::sync::{Arc, LazyLock};

/// SHA-256 of weights in hexadecimal. Of a large base it takes seconds, so it need not be computed before
/// the server answers: usage and feedback are what is kept under it. Clones share the value.
#[derive(Clone)]
pub struct Digest(Arc<LazyLock<String, Box<dyn FnOnce() -> String + Send>>>);

impl Digest {
    /// One that `compute` gives when it is first asked for.
    pub fn later(compute: impl FnOnce() -> String + Send + 'static) -> Digest {
        Digest(Arc::new(LazyLock::new(Box::new(compute))))
    }

    /// The value; the first to ask waits for it to be computed.
    pub fn get(&self) -> &str {
        &self.0
    }
}

impl From<String> for Digest {
    fn from(value: String) -> Digest {
        Digest::later(move || value)
    }
}

impl std::fmt::Debug for Digest {
    /// Does not compute it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Digest")
    }
}
