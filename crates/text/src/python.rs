//! The few pieces of Python's standard library that chat templates see: `json.dumps` and
//! `datetime.strftime`.

use serde_json::Value;

/// How `json.dumps` lays out its text.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct JsonLayout {
    /// `indent`: what one level of nesting is indented by; `None` for one line.
    pub(crate) indent: Option<String>,
    /// `separators[0]`, between items.
    pub(crate) item: String,
    /// `separators[1]`, between key and value.
    pub(crate) key: String,
    /// `ensure_ascii`: write everything beyond ASCII as `\uXXXX`.
    pub(crate) ascii: bool,
    /// `sort_keys`.
    pub(crate) sort: bool,
}

/// `json.dumps(value, ...)`.
pub(crate) fn json_dumps(value: &Value, layout: &JsonLayout) -> String {
    let mut out = String::new();
    write_json(&mut out, value, layout, 0);
    out
}

fn write_json(out: &mut String, value: &Value, layout: &JsonLayout, depth: usize) {
    match value {
        Value::Array(items) => {
            let items = items.iter().map(|item| (None, item));
            write_items(out, ['[', ']'], items.collect(), layout, depth);
        }
        Value::Object(entries) => {
            let mut entries: Vec<_> =
                entries.iter().map(|(key, item)| (Some(key.as_str()), item)).collect();
            if layout.sort {
                entries.sort_by_key(|(key, _)| *key);
            }
            write_items(out, ['{', '}'], entries, layout, depth);
        }
        Value::String(text) => write_string(out, text, layout.ascii),
        other => out.push_str(&other.to_string()),
    }
}

fn write_items(
    out: &mut String,
    [open, close]: [char; 2],
    items: Vec<(Option<&str>, &Value)>,
    layout: &JsonLayout,
    depth: usize,
) {
    let new_line = |out: &mut String, depth: usize| {
        if let Some(indent) = &layout.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    };
    out.push(open);
    let count = items.len();
    for (index, (key, item)) in items.into_iter().enumerate() {
        if index > 0 {
            out.push_str(&layout.item);
        }
        new_line(out, depth + 1);
        if let Some(key) = key {
            write_string(out, key, layout.ascii);
            out.push_str(&layout.key);
        }
        write_json(out, item, layout, depth + 1);
    }
    if count > 0 {
        new_line(out, depth);
    }
    out.push(close);
}

fn write_string(out: &mut String, text: &str, ascii: bool) {
    let quoted = Value::from(text).to_string();
    if !ascii {
        out.push_str(&quoted);
        return;
    }
    for character in quoted.chars() {
        if character.is_ascii() {
            out.push(character);
        } else {
            let mut units = [0; 2];
            for unit in character.encode_utf16(&mut units) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
}

const DAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// `datetime.fromtimestamp(unix_seconds, UTC).strftime(format)` for the usual directives. `None`
/// when the format has another one.
pub(crate) fn strftime(unix_seconds: u64, format: &str) -> Option<String> {
    let days = unix_seconds / 86_400;
    let (year, month, day) = civil_date(days);
    let second_of_day = unix_seconds % 86_400;
    let (hour, minute, second) =
        (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
    let weekday = ((days + 4) % 7) as usize;
    let hour_of_twelve = (hour + 11) % 12 + 1;

    let mut out = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        // glibc's `%-d` drops the padding.
        let mut directive = characters.next()?;
        let padded = directive != '-';
        if !padded {
            directive = characters.next()?;
        }
        let mut number = |value: u64, width: usize| {
            let width = if padded { width } else { 0 };
            out.push_str(&format!("{value:0width$}"));
        };
        match directive {
            'Y' => number(year, 4),
            'y' => number(year % 100, 2),
            'm' => number(month, 2),
            'd' => number(day, 2),
            'j' => number(day_of_year(year, month, day), 3),
            'H' => number(hour, 2),
            'I' => number(hour_of_twelve, 2),
            'M' => number(minute, 2),
            'S' => number(second, 2),
            'B' => out.push_str(MONTHS[month as usize - 1]),
            'b' => out.push_str(&MONTHS[month as usize - 1][..3]),
            'A' => out.push_str(DAYS[weekday]),
            'a' => out.push_str(&DAYS[weekday][..3]),
            'p' => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            'F' => out.push_str(&format!("{year:04}-{month:02}-{day:02}")),
            'T' => out.push_str(&format!("{hour:02}:{minute:02}:{second:02}")),
            'Z' => out.push_str("UTC"),
            '%' => out.push('%'),
            _ => return None,
        }
    }
    Some(out)
}

fn day_of_year(year: u64, month: u64, day: u64) -> u64 {
    (1..month).map(|month| days_in_month(year, month)).sum::<u64>() + day
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_in_month(year: u64, month: u64) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Year, month and day of the month, `days` after 1 January 1970.
fn civil_date(mut days: u64) -> (u64, u64, u64) {
    // The calendar repeats every 400 years of 146,097 days.
    let mut year = 1970 + 400 * (days / 146_097);
    days %= 146_097;
    loop {
        let length = if is_leap(year) { 366 } else { 365 };
        if days < length {
            break;
        }
        days -= length;
        year += 1;
    }
    let mut month = 1;
    while days >= days_in_month(year, month) {
        days -= days_in_month(year, month);
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn dates() {
        let check = |seconds, format, expected: Option<&str>| {
            assert_eq!(strftime(seconds, format).as_deref(), expected, "{seconds} {format}");
        };
        check(0, "%d %b %Y", Some("01 Jan 1970"));
        check(
            0,
            "%A, %-d %B %y %H:%M:%S %I%p %j",
            Some("Thursday, 1 January 70 00:00:00 12AM 001"),
        );
        check(1_709_210_096, "%F %T %a 100%%", Some("2024-02-29 12:34:56 Thu 100%"));
        check(1_735_689_599, "%d %b %Y %j", Some("31 Dec 2024 366"));
        check(4_107_542_400, "%F", Some("2100-03-01"));
        check(0, "%Q", None);
        check(0, "%", None);
    }

    #[test]
    fn json_like_python() {
        let value = json!({"b": [1, 2.5, true, null, []], "a": {"<é>": "\"\\\n\u{1}"}});
        let mut layout = JsonLayout {
            indent: None,
            item: ", ".into(),
            key: ": ".into(),
            ascii: false,
            sort: false,
        };
        assert_eq!(
            json_dumps(&value, &layout),
            r#"{"b": [1, 2.5, true, null, []], "a": {"<é>": "\"\\\n\u0001"}}"#
        );
        layout.ascii = true;
        layout.sort = true;
        layout.indent = Some("  ".into());
        layout.item = ",".into();
        assert_eq!(
            json_dumps(&value, &layout),
            "{\n  \"a\": {\n    \"<\\u00e9>\": \"\\\"\\\\\\n\\u0001\"\n  },\n  \"b\": [\n    1,\n    2.5,\n    true,\n    null,\n    []\n  ]\n}"
        );
    }
}
