//! The statistics against scipy and statsmodels: testdata/statistics.json, which
//! scripts/make_golden_statistics.py wrote.

use eval::stats::{
    clopper_pearson, cluster_error, holm, mcnemar_exact, mcnemar_mid_p, student_t, tango, wilson,
};
use serde_json::Value;
use std::path::Path;

fn golden(name: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/statistics.json");
    let all: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let list = all[name].as_array().unwrap().clone();
    assert!(list.len() >= 2, "{name}");
    list
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn close(found: f64, expected: f64, tolerance: f64, what: &Value) {
    let far = (found - expected).abs() / expected.abs().max(1e-300);
    assert!(far < tolerance || (found - expected).abs() < 1e-12, "{what}: {found}, not {expected}");
}

#[test]
fn shares_have_the_intervals_of_statsmodels() {
    for case in golden("wilson") {
        let [k, n, lo, hi] = numbers(&case)[..] else { panic!() };
        let found = wilson(k as usize, n as usize).unwrap();
        close(found.lo, lo, 1e-9, &case);
        close(found.hi, hi, 1e-9, &case);
    }
    for case in golden("clopper_pearson") {
        let [k, n, confidence, lo, hi] = numbers(&case)[..] else { panic!() };
        let found = clopper_pearson(k as usize, n as usize, confidence).unwrap();
        close(found.lo, lo, 1e-6, &case);
        close(found.hi, hi, 1e-6, &case);
    }
}

#[test]
fn mcnemar_is_that_of_statsmodels() {
    for case in golden("mcnemar") {
        let [b, c, exact, mid] = numbers(&case)[..] else { panic!() };
        close(mcnemar_exact(b as usize, c as usize), exact, 1e-8, &case);
        close(mcnemar_mid_p(b as usize, c as usize), mid, 1e-8, &case);
    }
}

#[test]
fn tango_is_what_a_root_finder_finds() {
    for case in golden("tango") {
        let [b, c, n, confidence, lo, hi] = numbers(&case)[..] else { panic!() };
        let found = tango(b as usize, c as usize, n as usize, confidence).unwrap();
        assert!((found.lo - lo).abs() < 1e-6 && (found.hi - hi).abs() < 1e-6, "{case}: {found:?}");
    }
}

#[test]
fn means_have_the_errors_of_scipy_and_statsmodels() {
    for case in golden("student") {
        let found = student_t(&numbers(&case["values"])).unwrap();
        let [lo, hi] = numbers(&case["ci95"])[..] else { panic!() };
        assert!((found.lo - lo).abs() < 1e-6 && (found.hi - hi).abs() < 1e-6, "{case}: {found:?}");
    }
    for case in golden("clusters") {
        let clusters: Vec<usize> =
            numbers(&case["clusters"]).into_iter().map(|c| c as usize).collect();
        let found = cluster_error(&numbers(&case["values"]), &clusters).unwrap();
        close(found.standard_error, case["standard_error"].as_f64().unwrap(), 1e-9, &case);
    }
}

#[test]
fn holm_is_that_of_statsmodels() {
    for case in golden("holm") {
        let found = holm(&numbers(&case["p"]));
        for (found, expected) in found.iter().zip(numbers(&case["adjusted"])) {
            close(*found, expected, 1e-12, &case);
        }
    }
}
