//! Next-token cross-entropy, the mean over all targets of a step however they are cut into
//! micro-batches: on the answers of conversations, or on every token of texts.

use super::Nll;

pub(super) const NLL: Nll = Nll { weight: 1.0, whole: false };
