//! Numbers as people read them. Every sentence and table of the report goes through here.

/// A share as percent with one digit: `0.873` is `87.3 %`. A share that is not quite whole never
/// reads as whole: `0.9999` is `99.9 %` and `0.0001` is `0.1 %`.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.1} %", tenths_of_percent(share))
}

/// A difference of shares as signed percentage points: `-0.021` is `-2.1 points`.
pub(crate) fn points(difference: f64) -> String {
    format!("{} points", signed(difference))
}

/// The number of [`points`] alone.
pub(crate) fn signed(difference: f64) -> String {
    let text = format!("{:+.1}", difference * 100.0);
    // A negative difference that rounds to nothing has no sign worth printing.
    if text == "-0.0" || text == "+0.0" { "0.0".to_owned() } else { text }
}

/// `p = 0.0032`, or `p < 0.0001`.
pub(crate) fn p_value(p: f64) -> String {
    if p < 0.0001 { "p < 0.0001".to_owned() } else { format!("p = {p:.4}") }
}

/// A confidence as percent, never rounded up: `95 %`, `99.5 %`, `99.9988 %`.
pub(crate) fn confidence(share: f64) -> String {
    let left = 100.0 * (1.0 - share);
    let decimals = if left >= 0.1 { 1 } else { (-left.log10()).clamp(0.0, 9.0) as i32 + 2 };
    let scale = 10f64.powi(decimals);
    format!("{} %", (100.0 * share * scale + 1e-6).floor() / scale)
}

/// An amount with three significant digits and no exponent: `0.0123 EUR`, `1,234 EUR`.
pub(crate) fn money(amount: f64, currency: &str) -> String {
    format!("{} {currency}", significant(amount))
}

/// Three significant digits, at least as many as the whole part has.
pub(crate) fn significant(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return format!("{value}");
    }
    let digits_before = value.abs().log10().floor() as i32 + 1;
    let decimals = (3 - digits_before).clamp(0, 12) as usize;
    if decimals == 0 { grouped(value.round() as i64) } else { format!("{value:.decimals$}") }
}

/// Thousands separated by commas.
pub(crate) fn grouped(value: i64) -> String {
    let digits = value.unsigned_abs().to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3 + 1);
    if value < 0 {
        text.push('-');
    }
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// [`grouped`] for counts.
pub(crate) fn count(value: usize) -> String {
    grouped(i64::try_from(value).unwrap_or(i64::MAX))
}

/// Bytes in binary units: `1.5 GiB`.
pub(crate) fn bytes(value: u64) -> String {
    const UNITS: [&str; 5] = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let mut amount = value as f64;
    let mut unit = 0;
    while amount >= 1024.0 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{value} bytes") } else { format!("{amount:.1} {}", UNITS[unit]) }
}

/// Seconds as `42 s`, `3 min 05 s` or `2 h 07 min`.
pub(crate) fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "unknown".to_owned();
    }
    if seconds < 10.0 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

fn tenths_of_percent(share: f64) -> f64 {
    let rounded = (share * 1000.0).round() / 10.0;
    if share < 1.0 && rounded >= 100.0 {
        99.9
    } else if share > 0.0 && rounded <= 0.0 {
        0.1
    } else {
        rounded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_expected() {
        let cases: &[(String, &str)] = &[
            (percent(0.873), "87.3 %"),
            (percent(1.0), "100.0 %"),
            (percent(0.99999), "99.9 %"),
            (percent(0.0), "0.0 %"),
            (percent(0.00001), "0.1 %"),
            (points(0.75312), "+75.3 points"),
            (points(-0.0001), "0.0 points"),
            (points(-0.021), "-2.1 points"),
            (confidence(0.95), "95 %"),
            (confidence(0.995), "99.5 %"),
            (confidence(1.0 - 0.05 / 3.0), "98.3 %"),
            (confidence(1.0 - 1.2e-5), "99.9988 %"),
            (confidence(0.99999), "99.999 %"),
            (p_value(0.00315), "p = 0.0032"),
            (p_value(1e-99), "p < 0.0001"),
            (money(0.012345, "EUR"), "0.0123 EUR"),
            (money(1.0, "EUR"), "1.00 EUR"),
            (money(1234.4, "USD"), "1,234 USD"),
            (money(0.0, "EUR"), "0 EUR"),
            (count(1_234_567), "1,234,567"),
            (count(123), "123"),
            (grouped(-1000), "-1,000"),
            (bytes(1023), "1023 bytes"),
            (bytes(1_610_612_736), "1.5 GiB"),
            (duration(4.25), "4.2 s"),
            (duration(59.4), "59 s"),
            (duration(185.0), "3 min 05 s"),
            (duration(7620.0), "2 h 07 min"),
            (duration(f64::NAN), "unknown"),
        ];
        for (found, expected) in cases {
            assert_eq!(found, expected);
        }
    }
}
