//! `metier bench` and `metier doctor`: the JSON that scripts rely on. No speed is expected of any
//! machine.

use assert_cmd::Command;
use serde_json::Value;

fn json(args: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_metier")).args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn bench_reports_speed_and_its_share_of_the_machine() {
    for (what, extra) in [("decode", ["--tokens", "6"]), ("prefill", ["--prompt-tokens", "40"])] {
        let report = json(&[&["bench", what, "--runs", "3", "--json"][..], &extra].concat());
        let speed = &report["tokens_per_second"];
        let [min, median, max] = ["min", "median", "max"].map(|k| speed[k].as_f64().unwrap());
        assert!(0.0 < min && min <= median && median <= max, "{report}");
        assert_eq!((report["what"].as_str(), report["runs"].as_u64()), (Some(what), Some(3)));
        for field in ["peak_rss_bytes", "weight_bytes", "roofline_share"] {
            assert!(report[field].as_f64().unwrap() > 0.0, "{field}: {report}");
        }
        assert!(report["machine"]["cores"].as_u64().unwrap() > 0);
    }
}

#[test]
fn bench_refuses_what_cannot_be_measured() {
    for args in [
        &["bench", "decode", "--prompt-tokens", "1000000"][..],
        &["bench", "prefill", "--prompt-tokens", "0"],
        &["bench", "decode", "--tokens", "1"],
        &["bench", "decode", "--runs", "0"],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_metier")).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}");
    }
}

#[test]
fn doctor_measures_and_estimates() {
    let report = json(&["doctor", "--json"]);
    assert!(report["roofline"]["bytes_per_second"].as_f64().unwrap() > 0.0);
    assert!(report["roofline"]["flops_per_second"].as_f64().unwrap() > 0.0);
    assert_eq!(report["problems"].as_array().unwrap().len(), 0);
    let models = report["models"].as_array().unwrap();
    let speeds: Vec<f64> =
        models.iter().map(|m| m["decode_tokens_per_second"].as_f64().unwrap()).collect();
    assert!(speeds.len() > 3 && speeds.is_sorted_by(|a, b| a > b), "{report}");
    let one = json(&["doctor", "--model", "nano", "--json"]);
    assert_eq!(one["models"].as_array().unwrap().len(), 1);
}
