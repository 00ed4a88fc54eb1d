//! Exit codes of the command line, and how an error is shown.

use std::process::ExitCode;

/// The input or the run failed.
pub(crate) const FAILED: u8 = 1;

/// `metier prove`: neither worth it nor not worth it is proven.
pub(crate) const NOT_PROVEN: u8 = 3;
/// `metier prove`: not worth it, or, with `--against`, proven worse than before.
pub(crate) const NOT_WORTH_IT: u8 = 4;

/// Nobody reads the output any more: 128 and the number of SIGPIPE.
pub(crate) const READER_GONE: i32 = 141;

/// Done.
pub(crate) fn done() -> ExitCode {
    ExitCode::SUCCESS
}

/// Not proven; of `watch`: a bound is proven to be crossed.
pub(crate) fn not_proven() -> ExitCode {
    ExitCode::from(NOT_PROVEN)
}

/// Prints `error: ...` with its causes on standard error, one line each unless the cause is
/// already part of the message.
pub(crate) fn print_error(error: &anyhow::Error) {
    let mut text = format!("error: {error}");
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text.push_str("\n  because: ");
            text.push_str(&cause);
        }
    }
    eprintln!("{text}");
}
