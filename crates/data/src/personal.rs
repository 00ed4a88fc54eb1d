//! Hints at personal data: what looks like an e-mail address, a phone number, an IBAN, a payment
//! card or a French social security number. A model that learns them may tell them to anybody.
//!
//! Only what carries a check of its own, or is written as people write it, is counted: a data set is
//! full of ordinary numbers. So nothing found does not mean that nothing is there (names and
//! addresses are not looked for), and what is found is for people to judge.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::example::{Example, Origin};

/// A kind of personal data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PersonalKind {
    /// An e-mail address, other than those reserved for examples (RFC 2606).
    Email,
    /// An international bank account number whose length and check digits are right (ISO 13616).
    Iban,
    /// The number of a French person in the national register (NIR) with its right key.
    Nir,
    /// A payment card's number: known issuer, right length, right check digit (ISO/IEC 7812).
    Card,
    /// A phone number: with `+` and a country, or written as in France, Britain or North America.
    Phone,
}

impl PersonalKind {
    /// The kind in words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Email => "e-mail addresses",
            Self::Iban => "IBANs",
            Self::Nir => "French social security numbers",
            Self::Card => "payment card numbers",
            Self::Phone => "phone numbers",
        }
    }
}

/// What was found in a data set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PersonalReport {
    /// How many of each kind.
    pub counts: BTreeMap<PersonalKind, usize>,
    /// Rows with at least one.
    pub rows: usize,
    /// The first places of each kind.
    pub places: Vec<PersonalPlace>,
}

/// Where something was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PersonalPlace {
    /// What it looks like.
    pub kind: PersonalKind,
    /// The row.
    pub origin: Origin,
    /// Its turn, such as `messages[1].content`.
    pub field: String,
    /// The value with all but its first characters masked.
    pub masked: String,
}

/// How many places of each kind [`PersonalReport::places`] names.
const LISTED: usize = 10;

/// Looks through the texts and tool calls of all turns.
pub fn personal_data<'a>(examples: impl IntoIterator<Item = &'a Example>) -> PersonalReport {
    let mut report = PersonalReport::default();
    for example in examples {
        let mut any = false;
        for (index, message) in example.conversation.messages.iter().enumerate() {
            let mut look = |text: &str, part: &str| {
                for (kind, place) in find(text) {
                    any = true;
                    let count = report.counts.entry(kind).or_default();
                    *count += 1;
                    if *count <= LISTED {
                        report.places.push(PersonalPlace {
                            kind,
                            origin: example.origin.clone(),
                            field: format!("messages[{index}].{part}"),
                            masked: masked(&text[place]),
                        });
                    }
                }
            };
            look(&message.content, "content");
            for call in &message.tool_calls {
                look(&call.to_string(), "tool_calls");
            }
        }
        report.rows += usize::from(any);
    }
    report.places.sort_by_key(|place| place.kind);
    report
}

impl PersonalReport {
    /// The findings in a line, or `None` where there are none.
    pub fn summary(&self) -> Option<String> {
        let counts = self.counts.iter().map(|(kind, count)| format!("{count} {}", kind.name()));
        let counts = counts.collect::<Vec<_>>().join(", ");
        (!counts.is_empty()).then(|| format!("{counts} in {} rows", self.rows))
    }
}

/// What a text seems to hold, in its order, none overlapping another.
pub(crate) fn find(text: &str) -> Vec<(PersonalKind, Range<usize>)> {
    let mut found: Vec<(PersonalKind, Range<usize>)> = Vec::new();
    let mut take = |kind: PersonalKind, places: Vec<Range<usize>>| {
        for place in places {
            let free = |(_, taken): &(_, Range<usize>)| {
                taken.end <= place.start || place.end <= taken.start
            };
            if found.iter().all(free) {
                found.push((kind, place));
            }
        }
    };
    // From the surest to the least sure: a bank account may hold what looks like a phone number.
    take(PersonalKind::Email, emails(text));
    take(PersonalKind::Iban, ibans(text));
    take(PersonalKind::Nir, nirs(text));
    take(PersonalKind::Card, cards(text));
    take(PersonalKind::Phone, phones(text));
    found.sort_by_key(|(_, place)| place.start);
    found
}

/// The text with everything that [`personal_data`] would find replaced by what it is, in brackets:
/// `[e-mail address]`. What is not recognised stays (see the top of this file).
pub fn redacted(text: &str) -> String {
    let mut left = String::with_capacity(text.len());
    let mut end = 0;
    for (kind, place) in find(text) {
        left.push_str(&text[end..place.start]);
        left.push_str(match kind {
            PersonalKind::Email => "[e-mail address]",
            PersonalKind::Iban => "[IBAN]",
            PersonalKind::Nir => "[social security number]",
            PersonalKind::Card => "[card number]",
            PersonalKind::Phone => "[phone number]",
        });
        end = place.end;
    }
    left.push_str(&text[end..]);
    left
}

/// All but the first letter or digit (two for numbers) as stars.
fn masked(value: &str) -> String {
    let shown = if value.contains('@') { 1 } else { 2 };
    let mut seen = 0;
    let hide = |c: char| {
        seen += usize::from(c.is_alphanumeric());
        if c.is_alphanumeric() && seen > shown { '*' } else { c }
    };
    value.chars().map(hide).collect()
}

fn pattern(source: &str) -> Regex {
    Regex::new(source).expect("the patterns in this file compile")
}

/// What people put between groups of digits: a space, also one that does not break, or a sign.
const GAP: &str = r"[ \x{a0}\x{202f}.\-]";

fn emails(text: &str) -> Vec<Range<usize>> {
    static EMAIL: LazyLock<Regex> = LazyLock::new(|| {
        pattern(r"[A-Za-z0-9][A-Za-z0-9._%+'\-]{0,63}@(?:[A-Za-z0-9\-]{1,63}\.){1,8}[A-Za-z]{2,24}")
    });
    let reserved = |address: &str| {
        let host = address.rsplit('@').next().unwrap_or_default().to_ascii_lowercase();
        let mut labels = host.rsplit('.');
        let (top, second) = (labels.next().unwrap_or_default(), labels.next().unwrap_or_default());
        ["example", "test", "invalid", "localhost"].contains(&top)
            || (second == "example" && ["com", "net", "org"].contains(&top))
    };
    // A letter behind it would be part of the name.
    EMAIL
        .find_iter(text)
        .map(|found| found.range())
        .filter(|place| stands_alone(text, place, "") && !reserved(&text[place.clone()]))
        .collect()
}

/// Lengths of account numbers by country, from the IBAN registry.
const IBAN_LENGTHS: &[(&str, usize)] = &[
    ("AD", 24),
    ("AE", 23),
    ("AL", 28),
    ("AT", 20),
    ("AZ", 28),
    ("BA", 20),
    ("BE", 16),
    ("BG", 22),
    ("BH", 22),
    ("BI", 27),
    ("BR", 29),
    ("BY", 28),
    ("CH", 21),
    ("CR", 22),
    ("CY", 28),
    ("CZ", 24),
    ("DE", 22),
    ("DJ", 27),
    ("DK", 18),
    ("DO", 28),
    ("EE", 20),
    ("EG", 29),
    ("ES", 24),
    ("FI", 18),
    ("FK", 18),
    ("FO", 18),
    ("FR", 27),
    ("GB", 22),
    ("GE", 22),
    ("GI", 23),
    ("GL", 18),
    ("GR", 27),
    ("GT", 28),
    ("HR", 21),
    ("HU", 28),
    ("IE", 22),
    ("IL", 23),
    ("IQ", 23),
    ("IS", 26),
    ("IT", 27),
    ("JO", 30),
    ("KW", 30),
    ("KZ", 20),
    ("LB", 28),
    ("LC", 32),
    ("LI", 21),
    ("LT", 20),
    ("LU", 20),
    ("LV", 21),
    ("LY", 25),
    ("MC", 27),
    ("MD", 24),
    ("ME", 22),
    ("MK", 19),
    ("MN", 20),
    ("MR", 27),
    ("MT", 31),
    ("MU", 30),
    ("NI", 28),
    ("NL", 18),
    ("NO", 15),
    ("OM", 23),
    ("PK", 24),
    ("PL", 28),
    ("PS", 29),
    ("PT", 25),
    ("QA", 29),
    ("RO", 24),
    ("RS", 22),
    ("RU", 33),
    ("SA", 24),
    ("SC", 31),
    ("SD", 18),
    ("SE", 24),
    ("SI", 19),
    ("SK", 24),
    ("SM", 27),
    ("SO", 23),
    ("ST", 25),
    ("SV", 28),
    ("TL", 23),
    ("TN", 24),
    ("TR", 26),
    ("UA", 29),
    ("VA", 22),
    ("VG", 24),
    ("XK", 20),
    ("YE", 30),
];

fn ibans(text: &str) -> Vec<Range<usize>> {
    static START: LazyLock<Regex> = LazyLock::new(|| pattern("[A-Z]{2}[0-9]{2}"));
    let mut found = Vec::new();
    for start in START.find_iter(text) {
        let country = &text[start.start()..start.start() + 2];
        let Some((_, length)) = IBAN_LENGTHS.iter().find(|(known, _)| *known == country) else {
            continue;
        };
        // As long as the country's numbers are, with single spaces between groups.
        let mut signs = String::with_capacity(*length);
        let mut end = start.start();
        let mut gap = false;
        for (at, c) in text[start.start()..].char_indices() {
            match c {
                'A'..='Z' | '0'..='9' => {
                    signs.push(c);
                    gap = false;
                }
                ' ' | '\u{a0}' | '\u{202f}' | '-' if !gap => gap = true,
                _ => break,
            }
            if signs.len() == *length {
                end = start.start() + at + 1;
                break;
            }
        }
        let place = start.start()..end;
        if end > start.start() && stands_alone(text, &place, "") && iban_remainder(&signs) == 1 {
            found.push(place);
        }
    }
    found
}

/// The number, its first four signs moved to the end and letters as 10 to 35, modulo 97 (ISO 7064).
fn iban_remainder(signs: &str) -> u32 {
    let moved = signs[4..].bytes().chain(signs[..4].bytes());
    moved.fold(0, |rest, sign| match sign {
        b'0'..=b'9' => (rest * 10 + u32::from(sign - b'0')) % 97,
        _ => (rest * 100 + u32::from(sign - b'A') + 10) % 97,
    })
}

fn nirs(text: &str) -> Vec<Range<usize>> {
    // Sex, year, month, department (Corsica: 2A, 2B), town, number in it, key.
    static NIR: LazyLock<Regex> = LazyLock::new(|| {
        pattern(&format!(
            "[1-478]{GAP}?[0-9]{{2}}{GAP}?[0-9]{{2}}{GAP}?(?:[0-9]{{2}}|2[AB]){GAP}?[0-9]{{3}}{GAP}?[0-9]{{3}}{GAP}?[0-9]{{2}}"
        ))
    });
    let places = NIR.find_iter(text).map(|found| found.range());
    places.filter(|place| stands_alone(text, place, ".,") && is_nir(&text[place.clone()])).collect()
}

/// The key is 97 minus the other thirteen digits modulo 97; 2A counts as 19, 2B as 18 (INSEE).
fn is_nir(written: &str) -> bool {
    let signs: String = written.chars().filter(char::is_ascii_alphanumeric).collect();
    let (body, key) = signs.split_at(13);
    let body = body.replace("2A", "19").replace("2B", "18");
    let (Ok(number), Ok(key)) = (body.parse::<u64>(), key.parse::<u64>()) else { return false };
    let month: u32 = signs[3..5].parse().unwrap_or(0);
    // 20 and more stand for months that are not known.
    (matches!(month, 1..=12 | 20..=42 | 50..=99)) && key == 97 - number % 97
}

fn cards(text: &str) -> Vec<Range<usize>> {
    static CARD: LazyLock<Regex> = LazyLock::new(|| {
        // In one piece, in fours, or as American Express writes them.
        pattern(
            r"[0-9]{13,19}|[0-9]{4}(?:[ \x{a0}\-][0-9]{4}){3}(?:[ \x{a0}\-][0-9]{1,3})?|3[47][0-9]{2}[ \x{a0}\-][0-9]{6}[ \x{a0}\-][0-9]{5}",
        )
    });
    let places = CARD.find_iter(text).map(|found| found.range());
    let is_card = |written: &str| {
        let digits: Vec<u32> = written.chars().filter_map(|c| c.to_digit(10)).collect();
        is_issued(&digits) && luhn(&digits)
    };
    places.filter(|p| stands_alone(text, p, ".,-/") && is_card(&text[p.clone()])).collect()
}

/// Whether an issuer's numbers begin so and are so long.
fn is_issued(digits: &[u32]) -> bool {
    let first = |n: usize| digits[..n].iter().fold(0, |number, digit| number * 10 + digit);
    let length = digits.len();
    match (first(1), first(2), first(3), first(4)) {
        // Visa
        (4, ..) => [13, 16, 19].contains(&length),
        // Mastercard
        (_, 51..=55, ..) | (_, _, _, 2221..=2720) => length == 16,
        // American Express
        (_, 34 | 37, ..) => length == 15,
        // Diners Club
        (_, 36 | 38, ..) | (_, _, 300..=305, _) => length == 14,
        // Discover, UnionPay
        (_, 65 | 62, ..) | (_, _, 644..=649, _) | (_, _, _, 6011) => (16..=19).contains(&length),
        // JCB
        (_, _, _, 3528..=3589) => length == 16,
        _ => false,
    }
}

/// The check digit of ISO/IEC 7812: every second digit from the right counts double.
fn luhn(digits: &[u32]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(i, &digit)| match i % 2 {
            0 => digit,
            _ if digit > 4 => 2 * digit - 9,
            _ => 2 * digit,
        })
        .sum();
    sum.is_multiple_of(10)
}

fn phones(text: &str) -> Vec<Range<usize>> {
    static PHONE: LazyLock<Regex> = LazyLock::new(|| {
        let forms = [
            // With the country: +33 6 12 34 56 78, +1 (202) 555-0143, 0033 6 12 34 56 78
            format!(
                r"(?:\+|00)[1-9][0-9]{{0,2}}{GAP}?(?:\([0-9]{{1,4}}\){GAP}?)?[0-9]{{1,4}}(?:{GAP}?[0-9]{{2,4}}){{1,5}}"
            ),
            // France: 06 12 34 56 78
            format!(r"0[1-9](?:{GAP}?[0-9]{{2}}){{4}}"),
            // Britain: 020 7946 0958, 07700 900123
            r"0[1-9][0-9]{1,3} [0-9]{3,4} ?[0-9]{3,6}".to_owned(),
            // North America: (202) 555-0143, 202-555-0143
            r"(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[.\-])[2-9][0-9]{2}[.\-][0-9]{4}".to_owned(),
        ];
        pattern(&forms.join("|"))
    });
    let digits =
        |place: &Range<usize>| text[place.clone()].bytes().filter(u8::is_ascii_digit).count();
    let right = |place: &Range<usize>| match &text[place.clone()] {
        // E.164 allows fifteen digits.
        international if international.starts_with('+') => (9..=15).contains(&digits(place)),
        international if international.starts_with("00") => (11..=17).contains(&digits(place)),
        _ => (10..=11).contains(&digits(place)),
    };
    let places = PHONE.find_iter(text).map(|found| found.range());
    places.filter(|place| stands_alone(text, place, ".,-/+") && right(place)).collect()
}

/// Whether neither side of `place` goes on: no letter or digit touches it, and none of `glue` with
/// a letter or digit behind.
fn stands_alone(text: &str, place: &Range<usize>, glue: &str) -> bool {
    let goes_on = |mut side: Box<dyn Iterator<Item = char> + '_>| match side.next() {
        Some(c) if c.is_alphanumeric() => true,
        Some(c) if glue.contains(c) => side.next().is_some_and(char::is_alphanumeric),
        _ => false,
    };
    !goes_on(Box::new(text[..place.start].chars().rev()))
        && !goes_on(Box::new(text[place.end..].chars()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::tests::example;
    use proptest::prelude::*;

    #[track_caller]
    fn check(text: &str, expected: &[(PersonalKind, &str)]) {
        let found: Vec<_> = find(text).into_iter().map(|(kind, at)| (kind, &text[at])).collect();
        assert_eq!(found, expected, "{text}");
    }

    use PersonalKind::{Card, Email, Iban, Nir, Phone};

    #[test]
    fn what_people_write_is_found() {
        check("Écrire à jean.dupont@mairie-lyon.fr.", &[(Email, "jean.dupont@mairie-lyon.fr")]);
        check("<a+b@c.co.uk>", &[(Email, "a+b@c.co.uk")]);
        check(
            "IBAN FR76 3000 6000 0112 3456 7890 189 merci",
            &[(Iban, "FR76 3000 6000 0112 3456 7890 189")],
        );
        check("DE89370400440532013000", &[(Iban, "DE89370400440532013000")]);
        check("GB29 NWBK 6016 1331 9268 19,", &[(Iban, "GB29 NWBK 6016 1331 9268 19")]);
        check("pay 4111 1111 1111 1111 now", &[(Card, "4111 1111 1111 1111")]);
        check("5555555555554444", &[(Card, "5555555555554444")]);
        check("3782-822463-10005", &[(Card, "3782-822463-10005")]);
        check("n° 2 55 08 14 168 025 38", &[(Nir, "2 55 08 14 168 025 38")]);
        check("(255081416802538)", &[(Nir, "255081416802538")]);
        for phone in [
            "06 12 34 56 78",
            "0612345678",
            "06.12.34.56.78",
            "06\u{a0}12\u{a0}34\u{a0}56\u{a0}78",
            "+33 6 12 34 56 78",
            "+33612345678",
            "+33 (0)6 12 34 56 78",
            "0033 6 12 34 56 78",
            "+44 20 7946 0958",
            "020 7946 0958",
            "07700 900123",
            "+1 (202) 555-0143",
            "(202) 555-0143",
            "202-555-0143",
            "+49 30 901820",
        ] {
            check(phone, &[(Phone, phone)]);
            check(&format!("Tél. : {phone}, ou"), &[(Phone, phone)]);
        }
        check("a@b.fr et 0612345678", &[(Email, "a@b.fr"), (Phone, "0612345678")]);
    }

    /// Corsica's departments count as 19 and 18; the keys are worked out by INSEE's rule.
    #[test]
    fn corsican_numbers_have_letters() {
        for (department, value) in [("2A", 19), ("2B", 18)] {
            let number: u64 = 1_840_500_004_012 + value * 1_000_000;
            let key = 97 - number % 97;
            let written = format!("1 84 05 {department} 004 012 {key:02}");
            check(&written, &[(Nir, &written)]);
            let wrong = format!("1 84 05 {department} 004 012 {:02}", key % 97 + 1);
            check(&wrong, &[]);
        }
    }

    #[test]
    fn ordinary_numbers_are_left_alone() {
        for text in [
            "write to user@example.com or a@b.test",
            "not@an address",
            "@handle",
            "x@y",
            "FR76 3000 6000 0112 3456 7890 188",
            "ISO 9001",
            "AB12CD34",
            "GB29 NWBK 6016",
            "4111 1111 1111 1112",
            "1234567890123456",
            "0000000000000000",
            "4111.1111.1111.1111",
            "order 20230415123456",
            "1700000000000",
            "1_700_000_000",
            "3.14159265358979",
            "255081416802539",
            "2023-04-15 12:34:56",
            "12 345 678 901",
            "192.168.100.200",
            "10+20+30+40",
            "5 + 33 612 345",
            "0.0612345678",
            "007",
            "1990 1991 1992 1993",
            "ISBN 978-2-07-036822-8",
            "0-306-40615-2",
            "SW1A 1AA",
            "+20%",
            "€1,000,000.00",
            "sha 4111111111111111a",
            "550e8400-e29b-41d4-a716-446655440000",
            "L. 121-16-1",
            "2016/679",
            "2018-493 du 20 juin 2018",
            "00000000000",
            "100-200-3000",
        ] {
            check(text, &[]);
        }
    }

    #[test]
    fn places_are_named_and_values_masked() {
        let mut rows = vec![example(1, "I am ann@firm.eu", "Call 06 12 34 56 78")];
        rows.extend((2..20).map(|line| example(line, "bob@firm.eu", "ok")));
        let report = personal_data(&rows);
        assert_eq!(report.counts, BTreeMap::from([(Email, 19), (Phone, 1)]));
        assert_eq!((report.rows, report.places.len()), (19, LISTED + 1));
        let first = &report.places[0];
        assert_eq!((first.kind, first.origin.line), (Email, 1));
        assert_eq!(
            (first.field.as_str(), first.masked.as_str()),
            ("messages[0].content", "a**@****.**")
        );
        assert_eq!(report.places[LISTED].masked, "06 ** ** ** **");
        let summary = report.summary().unwrap();
        assert_eq!(summary, "19 e-mail addresses, 1 phone numbers in 19 rows");
        let json = serde_json::to_string(&report).unwrap();
        assert!(!json.contains("firm") && !json.contains("12 34"), "{json}");
        assert_eq!(personal_data(&[example(1, "a", "b")]).summary(), None);
    }

    #[test]
    fn what_is_found_is_taken_out() {
        for (text, left) in [
            ("", ""),
            ("nothing here, 12 or 13", "nothing here, 12 or 13"),
            (
                "a@b.fr, 0612345678; pay 4111 1111 1111 1111.",
                "[e-mail address], [phone number]; pay [card number].",
            ),
            ("IBAN FR76 3000 6000 0112 3456 7890 189", "IBAN [IBAN]"),
            ("é255081416802538", "é255081416802538"),
            ("n° 255081416802538é", "n° 255081416802538é"),
            ("n° 255081416802538", "n° [social security number]"),
        ] {
            assert_eq!(redacted(text), left);
            assert_eq!(redacted(left), left, "nothing is found in what is left");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[A-Z]{0,3}[0-9+ .@()éa\u{a0}-]{0,60}") {
            redacted(&text);
            for (_, place) in find(&text) {
                prop_assert!(!text[place].is_empty());
            }
        }
    }
}
