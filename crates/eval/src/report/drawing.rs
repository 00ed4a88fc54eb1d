//! What all drawings of curves share: scales with round numbers, and lines of few points.

/// Most points of a line; longer curves are averaged.
pub(super) const CURVE_POINTS: usize = 300;

/// At most [`CURVE_POINTS`] points: means of neighbours.
pub(super) fn averaged(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let size = points.len().div_ceil(CURVE_POINTS).max(1);
    let mean = |chunk: &[(f64, f64)]| {
        let n = chunk.len() as f64;
        let sum = chunk.iter().fold((0.0, 0.0), |sum, p| (sum.0 + p.0, sum.1 + p.1));
        (sum.0 / n, sum.1 / n)
    };
    points.chunks(size).map(mean).collect()
}

/// Three to six round numbers at even distances; the first is not above `lo`, the last not below
/// `hi`, and they differ.
pub(super) fn ticks(lo: f64, hi: f64) -> Vec<f64> {
    let span = (hi - lo).max(hi.abs() * 1e-3).max(1e-3);
    let rough = span / 4.0;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|&s| s >= rough);
    let step = step.unwrap_or(10.0 * power);
    let first = (lo / step).floor();
    let last = (hi / step).ceil().max(first + 1.0);
    (0..=(last - first) as usize).map(|i| (first + i as f64) * step).collect()
}

/// A drawing with steps to the right and losses upwards, in the units of its view box.
pub(super) struct Axes {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    last_step: f64,
    losses: Vec<f64>,
}

impl Axes {
    /// For all of `points`, in a box from (left, top) to (right, bottom); None without a finite
    /// point.
    pub(super) fn new(
        points: &mut dyn Iterator<Item = (f64, f64)>,
        (left, right, top, bottom): (f64, f64, f64, f64),
    ) -> Option<Axes> {
        let (mut last_step, mut lowest, mut highest) = (1.0f64, f64::INFINITY, f64::NEG_INFINITY);
        for (step, loss) in points.filter(|(_, loss)| loss.is_finite()) {
            last_step = last_step.max(step);
            (lowest, highest) = (lowest.min(loss), highest.max(loss));
        }
        (lowest <= highest).then(|| {
            let losses = ticks(lowest, highest);
            Axes { left, right, top, bottom, last_step, losses }
        })
    }

    pub(super) fn x(&self, step: f64) -> f64 {
        self.left + step / self.last_step * (self.right - self.left)
    }

    pub(super) fn y(&self, loss: f64) -> f64 {
        let (low, high) = (self.losses[0], self.losses[self.losses.len() - 1]);
        self.top + (high - loss) / (high - low) * (self.bottom - self.top)
    }

    /// The points of a polyline.
    pub(super) fn line(&self, points: &[(f64, f64)]) -> String {
        let points = points.iter().filter(|p| p.1.is_finite());
        let points = points.map(|p| format!("{:.1},{:.1}", self.x(p.0), self.y(p.1)));
        points.collect::<Vec<_>>().join(" ")
    }

    /// Places and steps below the drawing.
    pub(super) fn x_ticks(&self) -> Vec<(String, u64)> {
        let inside = ticks(0.0, self.last_step).into_iter().filter(|&step| step <= self.last_step);
        inside.map(|step| (format!("{:.1}", self.x(step)), step as u64)).collect()
    }

    /// Places and losses beside the drawing.
    pub(super) fn y_ticks(&self) -> Vec<(String, String)> {
        let span = self.losses[self.losses.len() - 1] - self.losses[0];
        let decimals = if span < 0.5 { 2 } else { 1 };
        let tick = |loss: &f64| (format!("{:.1}", self.y(*loss)), format!("{loss:.decimals$}"));
        self.losses.iter().map(tick).collect()
    }
}

/// A control character as a sign for it, so that none can hide or reorder what is read; any other
/// character as it is.
pub(super) fn visible(c: char) -> char {
    match c {
        '\n' | '\t' => c,
        '\0'..='\u{1f}' => char::from_u32(0x2400 + c as u32).unwrap_or('\u{fffd}'),
        '\u{7f}' => '\u{2421}',
        // C1 controls and the marks that change the direction of writing.
        '\u{80}'..='\u{9f}'
        | '\u{200e}'
        | '\u{200f}'
        | '\u{202a}'..='\u{202e}'
        | '\u{2066}'..='\u{2069}' => '\u{fffd}',
        _ => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_hold_the_range() {
        for (lo, hi, expected) in [
            (0.0, 100.0, &[0.0, 50.0, 100.0][..]),
            (0.3, 2.9, &[0.0, 1.0, 2.0, 3.0]),
            (0.0, 7.0, &[0.0, 2.0, 4.0, 6.0, 8.0]),
            (-1.0, 1.0, &[-1.0, -0.5, 0.0, 0.5, 1.0]),
        ] {
            assert_eq!(ticks(lo, hi), expected, "{lo} {hi}");
        }
        for (lo, hi) in [(0.0, 0.0), (5.0, 5.0), (1e9, 1e9), (0.1, 0.10001), (0.0, 1e12)] {
            let ticks = ticks(lo, hi);
            assert!((2..=7).contains(&ticks.len()), "{lo} {hi}: {ticks:?}");
            assert!(ticks[0] <= lo && *ticks.last().unwrap() >= hi, "{lo} {hi}: {ticks:?}");
        }
    }

    #[test]
    fn control_characters_become_visible() {
        for (text, expected) in [
            ("a\nb\tc", "a\nb\tc"),
            ("\0\u{1b}[31m\r", "␀␛[31m␍"),
            ("\u{202e}evil\u{2069}", "\u{fffd}evil\u{fffd}"),
            ("Größe 👍", "Größe 👍"),
        ] {
            assert_eq!(text.chars().map(visible).collect::<String>(), expected);
        }
    }
}
