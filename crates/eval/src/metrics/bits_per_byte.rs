//! Bits per byte.

use super::Metric;
use super::likelihood::{LossPer, loss_metric};

/// The references' losses in bits over their bytes in UTF-8, `bits_per_byte` of lm-evaluation-harness: it
/// compares models whatever their tokenizers. Lower is better.
pub(super) static METRIC: Metric = loss_metric::<BitsPerByte>(
    "bits_per_byte",
    "Bits that the model would need per byte of the references. Lower is better.",
    "bits per byte",
);

struct BitsPerByte;

impl LossPer for BitsPerByte {
    fn weight(text: &str) -> f64 {
        text.len() as f64
    }

    fn value(loss: f64) -> f64 {
        loss / std::f64::consts::LN_2
    }
}
