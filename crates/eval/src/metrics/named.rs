//! From names, as people write them, to metrics.

use super::{FAMILIES, METRICS, Metric};
use crate::error::EvalError;

/// The metrics of these names, in this order; a name given twice counts once. Each text holds one
/// name, or several with commas between them. A parameter (`regex:^[a-z]{1,3}$`) goes on to the end
/// of its text, commas included, and a metric with one is thus the last of its text.
///
/// A metric with a parameter is kept for the rest of the program: a run has a handful.
///
/// # Errors
/// [`EvalError::UnknownMetric`] with the nearest known name, [`EvalError::MetricParameter`] for a
/// parameter that it does not take, [`EvalError::NoMetrics`] for no name.
pub fn metrics_by_name<S: AsRef<str>>(names: &[S]) -> Result<Vec<&'static Metric>, EvalError> {
    let mut found: Vec<&'static Metric> = Vec::new();
    for name in names.iter().flat_map(|text| split(text.as_ref())) {
        if found.iter().any(|metric| metric.name == name) {
            continue;
        }
        found.push(match name.split_once(':') {
            Some((family, parameter)) => with_parameter(name, family.trim(), parameter)?,
            None => {
                METRICS.iter().copied().find(|m| m.name == name).ok_or_else(|| unknown(name))?
            }
        });
    }
    if found.is_empty() {
        return Err(EvalError::NoMetrics { known: known() });
    }
    Ok(found)
}

fn split(text: &str) -> Vec<&str> {
    let colon = text.find(':').unwrap_or(text.len());
    let before = text[..colon].rfind(',').map_or(0, |comma| comma + 1);
    let (plain, last) = text.split_at(before);
    let names = plain.split_terminator(',').chain((!last.is_empty()).then_some(last));
    names.map(|name| if name.contains(':') { name.trim_start() } else { name.trim() }).collect()
}

fn with_parameter(name: &str, family: &str, parameter: &str) -> Result<&'static Metric, EvalError> {
    let family = FAMILIES.iter().find(|f| f.name == family).ok_or_else(|| unknown(name))?;
    let metric = (family.build)(parameter)
        .map_err(|reason| EvalError::MetricParameter { name: name.to_owned(), reason })?;
    let name: &'static str = name.to_owned().leak();
    Ok(Box::leak(Box::new(Metric { name, ..metric })))
}

fn unknown(name: &str) -> EvalError {
    let bare = name.split(':').next().unwrap_or(name);
    let names = METRICS.iter().map(|m| m.name).chain(FAMILIES.iter().map(|f| f.name));
    let nearest = names
        .map(|known| (strsim::jaro_winkler(bare, known), known))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|&(similarity, _)| similarity > 0.7);
    let hint = match nearest {
        Some((_, near)) if near == bare => match FAMILIES.iter().find(|f| f.name == bare) {
            Some(f) => format!(". hint: it needs a parameter: {bare}:{}", f.parameter),
            None => format!(". hint: {bare} takes no parameter"),
        },
        Some((_, near)) => format!(". hint: did you mean {near:?}?"),
        None => String::new(),
    };
    EvalError::UnknownMetric { found: name.to_owned(), known: known(), hint }
}

/// Names of all metrics, with what their parameters are.
pub(crate) fn known() -> String {
    let plain = METRICS.iter().map(|m| m.name.to_owned());
    let families = FAMILIES.iter().map(|f| format!("{}:{}", f.name, f.parameter));
    plain.chain(families).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        let names: Vec<_> = METRICS.iter().map(|m| m.name).collect();
        let found: Vec<_> = metrics_by_name(&names).unwrap().iter().map(|m| m.name).collect();
        assert_eq!(found, names);
        assert_eq!(metrics_by_name(&["token_f1", " token_f1 "]).unwrap().len(), 1);
        assert!(matches!(metrics_by_name::<&str>(&[]), Err(EvalError::NoMetrics { .. })));
        for (wrong, said) in [
            ("exact_macth", "did you mean \"exact_match\""),
            ("regex", "it needs a parameter: regex:PATTERN"),
            ("token_f1:x", "token_f1 takes no parameter"),
            ("regexp:x", "did you mean \"regex\""),
        ] {
            let error = metrics_by_name(&[wrong]).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        let error = metrics_by_name(&["zzz"]).unwrap_err().to_string();
        assert!(error.contains("token_f1") && !error.contains("did you mean"), "{error}");
    }

    #[test]
    fn a_parameter_goes_on_to_the_end_of_its_text() {
        let names = |texts: &[&str]| -> Vec<&str> {
            metrics_by_name(texts).unwrap().iter().map(|m| m.name).collect()
        };
        assert_eq!(
            names(&["exact_match, token_f1,regex:^a{1,2}:$", "numeric_match:0.1"]),
            ["exact_match", "token_f1", "regex:^a{1,2}:$", "numeric_match:0.1"]
        );
        assert_eq!(names(&["exact_match,"]), ["exact_match"]);
        let error = metrics_by_name(&["regex:("]).unwrap_err().to_string();
        assert!(error.contains("regex:(") && error.contains("hint"), "{error}");
    }
}
