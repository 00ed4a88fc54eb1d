//! `metier verify`: a proof computed again.

use super::prove::EMBEDDING_MODEL;
use crate::cli::VerifyArgs;
use crate::embedder::Texts;
use crate::exit;
use ::eval::Report;
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::ExitCode;

pub(super) fn run(args: &VerifyArgs) -> Result<ExitCode> {
    let verified = ::eval::verify(&args.report, args.run_commands)?;
    let compared = match &verified.report {
        Some(report) => similarities(report, args)?,
        None => Compared::NotAsked,
    };
    if args.json {
        let (similarities, not_computed_again) = match &compared {
            Compared::NotAsked => (None, None),
            Compared::Again(n) => (Some(n), None),
            Compared::Not(why) => (None, Some(why)),
        };
        let result = serde_json::json!({
            "verified": true,
            "numbers": verified.numbers,
            "similarities": similarities,
            "similarities_not_computed_again": not_computed_again,
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
    match compared {
        Compared::NotAsked => {}
        Compared::Again(n) => {
            println!("{n} similarities computed again from the texts, with the embedding model");
        }
        Compared::Not(why) => {
            println!("similarities NOT computed again, but taken as they were recorded: {why}");
        }
    }
    if !verified.absent.is_empty() {
        println!("not here, so not checked: {}", verified.absent.join(", "));
    }
    Ok(exit::done())
}

/// What was done about the similarities of a proof.
enum Compared {
    /// There are none.
    NotAsked,
    /// So many came out as they were recorded.
    Again(usize),
    /// They were taken as recorded, for this reason.
    Not(String),
}

/// Computes the similarities of answers and references again, where their model is here.
fn similarities(report: &Report, args: &VerifyArgs) -> Result<Compared> {
    let named = report.plan.as_ref().and_then(|plan| plan.embedding_model.as_deref());
    let Some(named) = named else {
        if let Some(model) = &args.embedding_model {
            bail!("--embedding-model {model}: the proof has no similarities");
        }
        return Ok(Compared::NotAsked);
    };
    let beside = args.report.parent().unwrap_or(Path::new("")).join(named);
    let beside = beside.exists().then(|| beside.to_string_lossy().into_owned());
    let name = args.embedding_model.clone().or(beside).unwrap_or_else(|| named.to_owned());
    let texts = match (Texts::load(&name), &args.embedding_model) {
        (Ok(texts), _) => texts,
        (Err(error), Some(_)) => return Err(error),
        (Err(error), None) => {
            return Ok(Compared::Not(format!(
                "the model {named} cannot be loaded here ({error:#}); --embedding-model names it"
            )));
        }
    };
    let proven = report.files.get(EMBEDDING_MODEL).map(|digest| digest.sha256.as_str());
    let proven =
        proven.with_context(|| format!("the report has no digest of the {EMBEDDING_MODEL}"))?;
    if texts.digest() != proven {
        let why = format!("{name} is another model than the one that the proof was made with");
        return match args.embedding_model {
            Some(_) => bail!("{why}"),
            None => Ok(Compared::Not(why)),
        };
    }
    let mut embed = |some: &[&str]| texts.embed(some).map_err(|error| format!("{error:#}"));
    Ok(Compared::Again(::eval::verify_similarities(&args.report, &mut embed)?))
}
