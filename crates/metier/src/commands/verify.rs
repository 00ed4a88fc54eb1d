//! `metier verify`: a proof computed again.

use crate::cli::VerifyArgs;
use crate::exit;
use anyhow::Result;
use std::process::ExitCode;

pub(super) fn run(args: &VerifyArgs) -> Result<ExitCode> {
    let verified = ::eval::verify(&args.report, args.run_commands)?;
    if args.json {
        let result = serde_json::json!({
            "verified": true,
            "numbers": verified.numbers,
            "files": verified.files,
            "absent": verified.absent,
            "not_recomputed": verified.not_recomputed,
            "verdict": verified.report.as_ref().map(|r| r.verdict),
        });
        println!("{result}");
        return Ok(exit::done());
    }
    println!(
        "{}: holds. {} numbers computed again from the recorded answers, {} files as they were",
        args.report.display(),
        verified.numbers,
        verified.files.len()
    );
    if !verified.not_recomputed.is_empty() {
        println!(
            "not recomputed, taken as recorded: {} (--run-commands runs the programs again)",
            verified.not_recomputed.join(", ")
        );
    }
    if !verified.absent.is_empty() {
        println!("not here, so not checked: {}", verified.absent.join(", "));
    }
    Ok(exit::done())
}
