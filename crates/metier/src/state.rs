//! Where keys, usage and feedback are kept, and days as the store counts them.

use crate::cli::StateArgs;
use anyhow::{Context, Result};
use serve::Database;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use time::{Date, Time};

/// The folder: as given, `METIER_STATE`, or `metier` in the platform's folder for a user's data.
pub(crate) fn dir(args: &StateArgs) -> Result<PathBuf> {
    if let Some(dir) = &args.dir {
        return Ok(dir.clone());
    }
    let env = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(dir) = env("METIER_STATE") {
        return Ok(dir);
    }
    let home = || env("HOME").map(|home| home.join(".local/share"));
    let data = if cfg!(windows) { env("LOCALAPPDATA") } else { env("XDG_DATA_HOME").or_else(home) };
    let data = data.filter(|path| path.is_absolute());
    let data = data.context(
        "no folder for keys and usage: the user has no home\nhint: name one with --state or METIER_STATE",
    )?;
    Ok(data.join(Path::new("metier")))
}

/// The file in that folder.
pub(crate) fn open(args: &StateArgs) -> Result<Database> {
    Ok(Database::open(&dir(args)?)?)
}

/// Unix seconds.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Unix seconds at which a day begins, UTC.
pub(crate) fn begin(day: Date) -> u64 {
    day.with_time(Time::MIDNIGHT).assume_utc().unix_timestamp().try_into().unwrap_or(0)
}

/// Unix seconds at which the day after begins, UTC.
pub(crate) fn end(day: Date) -> u64 {
    begin(day) + 86_400
}

/// The day of Unix seconds, UTC.
pub(crate) fn day(seconds: u64) -> String {
    let at =
        i64::try_from(seconds).ok().and_then(|s| time::OffsetDateTime::from_unix_timestamp(s).ok());
    at.map_or_else(|| seconds.to_string(), |at| at.date().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::date;

    #[test]
    fn days_are_utc() {
        assert_eq!(begin(date!(2026 - 02 - 01)), 1_769_904_000);
        assert_eq!(end(date!(2026 - 01 - 31)), 1_769_904_000);
        assert_eq!(day(1_769_903_999), "2026-01-31");
        assert_eq!(begin(date!(1901 - 01 - 01)), 0);
    }
}
