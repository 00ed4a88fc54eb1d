//! Real weights give the published text.

mod common;

use common::shared;
use std::path::Path;
use std::process::Command;

fn greedy(model: &Path, prompt: &str, max_tokens: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_metier"))
        .args(["generate", "--model", model.to_str().unwrap(), "--prompt", prompt])
        .args(["--max-tokens", max_tokens, "--temperature", "0"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn stories260k_tells_the_published_story() {
    let Some(folder) = shared("models/stories260K") else { return };
    let published = std::fs::read_to_string(folder.join("greedy_200.txt")).unwrap();
    assert_eq!(greedy(&folder.join("hf"), "", "200"), published);
    // The reference program prints the prompt too and counts its tokens.
    let more = std::fs::read_to_string(folder.join("greedy_more_prompts.txt")).unwrap();
    let mut checked = 0;
    for part in more.split("### prompt=[").skip(1) {
        let (prompt, rest) = part.split_once(']').unwrap();
        let expected = rest.split_once('\n').unwrap().1.trim_end_matches('\n');
        let ours = format!("{prompt}{}", greedy(&folder.join("hf"), prompt, "100"));
        assert!(ours.starts_with(expected), "{prompt}: {ours}\nexpected: {expected}");
        checked += 1;
    }
    assert_eq!(checked, 5);
}
