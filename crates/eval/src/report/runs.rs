//! Several training runs on one page: their loss curves in one drawing, their settings where they
//! differ, and what came of them. Self-contained, as the report is.

use super::LossPoint;
use super::drawing::{Axes, averaged, visible};
use crate::error::EvalError;
use crate::files::write_atomic;
use askama::Template;
use std::path::Path;

/// A training run among others.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunColumn {
    /// Its name.
    pub name: String,
    /// Its losses.
    pub curve: Vec<LossPoint>,
}

/// The page.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunsPage {
    /// When, and by what program.
    pub made: String,
    /// The runs, at least one.
    pub runs: Vec<RunColumn>,
    /// Settings that differ: name, and a value for each run.
    pub settings: Vec<(String, Vec<String>)>,
    /// What came of them: name, and a value for each run.
    pub results: Vec<(String, Vec<String>)>,
}

/// Colours, in pairs for light and dark pages, in the template; more runs than these share them.
const COLOURS: usize = 8;
/// The drawing, in units of its view box (width 720, height 360).
const WITHIN: (f64, f64, f64, f64) = (48.0, 708.0, 10.0, 318.0);

#[derive(Template)]
#[template(path = "runs.html")]
struct View<'a> {
    page: &'a RunsPage,
    lines: Vec<Line<'a>>,
    x_ticks: Vec<(String, String)>,
    y_ticks: Vec<(String, String)>,
}

struct Line<'a> {
    name: &'a str,
    class: usize,
    train: String,
    held_out: String,
    dots: Vec<(String, String)>,
    summary: String,
}

impl RunsPage {
    /// The page as HTML that needs nothing from elsewhere and runs nothing.
    ///
    /// # Errors
    /// [`EvalError::Render`], which only a mistake in the template could cause.
    pub fn to_html(&self) -> Result<String, EvalError> {
        let pick = |run: &RunColumn, loss: fn(&LossPoint) -> Option<f64>| -> Vec<(f64, f64)> {
            let noted = run.curve.iter().filter_map(|p| Some((p.step as f64, loss(p)?)));
            noted.filter(|(_, loss)| loss.is_finite()).collect()
        };
        let curves: Vec<_> =
            self.runs.iter().map(|r| (pick(r, |p| p.loss), pick(r, |p| p.held_out))).collect();
        let mut all = curves.iter().flat_map(|(a, b)| a.iter().chain(b).copied());
        let axes = Axes::new(&mut all, WITHIN);
        let lines = self.runs.iter().zip(&curves).enumerate().map(|(i, (run, (train, held)))| {
            let axes = axes.as_ref();
            let line = |points: &[(f64, f64)]| {
                axes.map_or(String::new(), |axes| axes.line(&averaged(points)))
            };
            let dot = |p: &(f64, f64)| {
                axes.map(|axes| (format!("{:.1}", axes.x(p.0)), format!("{:.1}", axes.y(p.1))))
            };
            let ends = [("training", train), ("held-out", held)].into_iter().filter_map(
                |(name, points)| {
                    let (first, last) = (points.first()?, points.last()?);
                    Some(format!("{name} {:.3} to {:.3}", first.1, last.1))
                },
            );
            Line {
                name: &run.name,
                class: i % COLOURS,
                train: line(train),
                held_out: line(held),
                dots: averaged(held).iter().filter_map(dot).collect(),
                summary: ends.collect::<Vec<_>>().join(", "),
            }
        });
        let steps = |axes: &Axes| {
            axes.x_ticks().into_iter().map(|(x, step)| (x, step.to_string())).collect()
        };
        let view = View {
            page: self,
            lines: lines.collect(),
            x_ticks: axes.as_ref().map_or_else(Vec::new, steps),
            y_ticks: axes.as_ref().map_or_else(Vec::new, Axes::y_ticks),
        };
        let html = view
            .render()
            .map_err(|error| EvalError::Render { format: "HTML", reason: error.to_string() })?;
        // The template has none of these characters, so all of them are from outside.
        Ok(html.chars().map(visible).collect())
    }

    /// Writes the page to a file, whole or not at all.
    ///
    /// # Errors
    /// [`EvalError::Io`] naming the file.
    pub fn write(&self, path: &Path) -> Result<(), EvalError> {
        write_atomic(path, self.to_html()?.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(name: &str, losses: &[f64]) -> RunColumn {
        let point = |(i, loss): (usize, &f64)| LossPoint {
            step: i as u64 * 10,
            loss: Some(*loss),
            held_out: (i % 2 == 0).then_some(loss + 0.1),
        };
        RunColumn { name: name.to_owned(), curve: losses.iter().enumerate().map(point).collect() }
    }

    #[test]
    fn all_runs_are_in_one_drawing_and_names_are_only_text() {
        let page = RunsPage {
            made: "now".into(),
            runs: vec![run("a", &[3.0, 2.0, 1.0]), run("<b>&\u{202e}", &[4.0, f64::NAN, 0.5])],
            settings: vec![("r".into(), vec!["8".into(), "<i>".into()])],
            results: vec![("steps".into(), vec!["3".into(), "3".into()])],
        };
        let html = page.to_html().unwrap();
        assert_eq!(html.matches("<polyline").count(), 4);
        assert_eq!(html.matches("<svg class=\"curve\"").count(), 1);
        for absent in ["<b>", "<i>", "\u{202e}", "NaN", "<script", "http:", "https:", "src="] {
            assert!(!html.contains(absent), "{absent}");
        }
        assert!(html.contains("training 3.000 to 1.000, held-out 3.100 to 1.100"), "{html}");
        assert!(html.contains("default-src 'none'"));
    }

    #[test]
    fn runs_without_a_curve_are_listed() {
        let page = RunsPage { runs: vec![run("empty", &[])], ..RunsPage::default() };
        let html = page.to_html().unwrap();
        assert!(html.contains("empty") && !html.contains("<svg class=\"curve\""), "{html}");
    }
}
