//! Writes the bundled sample trade: `cargo run -p xtask -- sample-trade [--out DIR]`.
//!
//! A repair firm's incoming messages (English and French, with typos, abbreviations, missing facts
//! and things that do not matter) become dispatch tickets in JSON. Messages are put together from
//! phrase banks (`banks.rs`), so that the right ticket is known; training and test draw from
//! disjoint banks. The files are a pure function of this source.

mod banks;

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64;
use serde::Serialize;
use serde_json::json;

use banks::{APPLIANCES, ENGLISH, FAULTS, FRENCH, Gender, Language};
pub(crate) use banks::{Phrases, Set};

const SEED: u64 = 20_261;
const TRAIN_ROWS: usize = 2_400;
const TEST_ROWS: usize = 400;

/// The system turn of every example: short, because every request pays for it.
const SYSTEM: &str = "Write the dispatch ticket as JSON.";

/// `cargo run -p xtask -- sample-trade [--out DIR]`; DIR is assets/trade by default.
///
/// # Errors
/// When an argument is unknown or a file cannot be written.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let out = match arguments {
        [] => Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/trade"),
        [flag, dir] if flag == "--out" => PathBuf::from(dir),
        _ => bail!("sample-trade takes only --out DIR, found {:?}", arguments.join(" ")),
    };
    fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    for (name, content) in files() {
        let path = out.join(name);
        fs::write(&path, &content).with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("{}: {} bytes", path.display(), content.len());
    }
    Ok(())
}

/// Every file of the sample trade with its content.
fn files() -> [(&'static str, String); 3] {
    let train = messages(SEED, Set::Train, TRAIN_ROWS);
    let test = messages(SEED, Set::Test, TEST_ROWS);
    let readme = readme(&train, &test);
    [
        ("train.jsonl", jsonl("train", &train)),
        ("test.jsonl", jsonl("test", &test)),
        ("README.md", readme),
    ]
}

fn jsonl(set: &str, rows: &[Row]) -> String {
    let mut lines = String::new();
    for (i, row) in rows.iter().enumerate() {
        let line = json!({
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": row.message},
                {"role": "assistant", "content": row.ticket.to_json()},
            ],
            "id": format!("{set}-{:04}", i + 1),
        });
        writeln!(lines, "{line}").expect("writing to a string cannot fail");
    }
    lines
}

/// A message and what should come of it.
pub(crate) struct Row {
    pub(crate) message: String,
    pub(crate) ticket: Ticket,
}

/// The dispatch ticket; its fields in this order.
#[derive(Serialize)]
pub(crate) struct Ticket {
    pub(crate) appliance: &'static str,
    pub(crate) fault: &'static str,
    pub(crate) urgency: &'static str,
    postcode: Option<String>,
    callback: Option<String>,
    pub(crate) language: &'static str,
}

impl Ticket {
    fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings always serialise")
    }
}

/// Different messages of one set, other ones for each seed.
pub(crate) fn messages(seed: u64, set: Set, count: usize) -> Vec<Row> {
    let mut draw = Draw::new(seed, set);
    let mut seen = HashSet::new();
    let mut rows = Vec::with_capacity(count);
    while rows.len() < count {
        let row = message(&mut draw, set);
        if seen.insert(row.message.clone()) {
            rows.push(row);
        }
    }
    rows
}

/// One message: the facts first, then the words for them.
fn message(draw: &mut Draw, set: Set) -> Row {
    let french = draw.chance(25);
    let language = if french { &FRENCH } else { &ENGLISH };
    let fault = draw.pick(FAULTS);
    let appliance = *draw.pick(fault.appliances);
    let (urgency, urgency_phrase) = match draw.below(100) {
        0..30 => ("high", Some(*draw.pick(language.high.of(set)))),
        30..55 => ("low", Some(*draw.pick(language.low.of(set)))),
        55..75 => ("normal", Some(*draw.pick(language.normal.of(set)))),
        _ => ("normal", None),
    };
    let postcode = draw.chance(78).then(|| draw.fresh(set, |d| postcode(d, french)));
    let callback = draw.chance(72).then(|| draw.fresh(set, |d| phone(d, french)));

    let faults = if french { &fault.fr } else { &fault.en };
    let mut complaint = draw.pick(faults.of(set)).replace("{e}", &error_code(draw, set));
    complaint = if french {
        name_fr(draw, &complaint, appliance)
    } else {
        name_en(draw, &complaint, appliance)
    };
    let street = street(draw, language, set);

    let mut parts = vec![sentence(&complaint)];
    if let Some(phrase) = urgency_phrase {
        parts.push(phrase.to_owned());
    }
    if draw.chance(25) {
        parts.push((*draw.pick(language.chatter.of(set))).to_owned());
    }
    if draw.chance(25) {
        // Not always the fault first: people warm up or begin with what presses them.
        let at = draw.below(parts.len());
        parts.swap(0, at);
    }
    match &postcode {
        Some(postcode) => parts.push(
            draw.pick(language.places.of(set)).replace("{s}", &street).replace("{p}", postcode),
        ),
        None if draw.chance(35) => {
            parts.push(draw.pick(language.vague_places.of(set)).replace("{s}", &street));
        }
        None => {}
    }
    if let Some(callback) = &callback {
        let part = draw.pick(language.callbacks.of(set)).replace("{c}", callback);
        // The number sometimes stands before the address.
        let at = parts.len() - usize::from(draw.chance(30));
        parts.insert(at, part);
    }

    let greeting = draw.chance(55).then(|| *draw.pick(language.greetings.of(set)));
    let closing = draw.chance(50).then(|| *draw.pick(language.closings.of(set)));
    let name = draw.chance(45).then(|| name(draw, language, set));
    let mut words = assemble(draw, greeting, &parts, closing, name.as_deref());
    words = roughen(draw, words, language);

    let ticket = Ticket {
        appliance,
        fault: fault.value,
        urgency,
        postcode,
        callback,
        language: language.value,
    };
    Row { message: words, ticket }
}

/// Greeting, body, closing and name as a mail, or on one line as a text message.
fn assemble(
    draw: &mut Draw,
    greeting: Option<&str>,
    parts: &[String],
    closing: Option<&str>,
    name: Option<&str>,
) -> String {
    let gap = if draw.chance(35) { "\n" } else { " " };
    let mut text = String::new();
    if let Some(greeting) = greeting {
        let end = *draw.pick(&[",", ",", "!", "."]);
        text += &format!("{greeting}{end}{gap}");
    }
    text += &parts.join(" ");
    match (closing, name) {
        (Some(closing), Some(name)) => text += &format!("{gap}{closing}, {name}"),
        (Some(closing), None) => text += &format!("{gap}{closing}{}", draw.pick(&["", "!", "."])),
        (None, Some(name)) => text += &format!("{gap}{name}"),
        (None, None) => {}
    }
    text
}

/// What hurried hands do to a text. Words with digits (postcodes, numbers, codes) stay as they are:
/// the ticket has them as they were written.
fn roughen(draw: &mut Draw, text: String, language: &Language) -> String {
    let mut text = text;
    if draw.chance(15) {
        text = by_word(&text, |word| {
            let known = language.abbreviations.iter().find(|(long, _)| *long == word);
            known.map_or_else(|| word.to_owned(), |(_, short)| (*short).to_owned())
        });
    }
    if draw.chance(30) {
        let words = text.split_whitespace().count();
        for _ in 0..=draw.below(2) {
            let wanted = draw.below(words);
            let mut at = 0;
            text = by_word(&text, |word| {
                at += 1;
                if at == wanted + 1 { typo(draw, word) } else { word.to_owned() }
            });
        }
    }
    if language.value == "fr" && draw.chance(20) {
        text = text.chars().map(without_accent).collect();
    }
    if draw.chance(20) {
        text = by_word(&text, |word| match word.bytes().any(|b| b.is_ascii_digit()) {
            true => word.to_owned(),
            false => word.to_lowercase(),
        });
    }
    if draw.chance(12) {
        text = text.replace(". ", " ");
    }
    text
}

/// Changes each word (without the punctuation around it), keeping what is between.
fn by_word(text: &str, mut change: impl FnMut(&str) -> String) -> String {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '-' || c == '\'';
    let mut out = String::new();
    let mut rest = text;
    while let Some(start) = rest.find(part_of_word) {
        out += &rest[..start];
        rest = &rest[start..];
        let end = rest.find(|c| !part_of_word(c)).unwrap_or(rest.len());
        out += &change(&rest[..end]);
        rest = &rest[end..];
    }
    out + rest
}

/// Swaps, drops or doubles a letter inside a word of five or more letters.
fn typo(draw: &mut Draw, word: &str) -> String {
    let mut letters: Vec<char> = word.chars().collect();
    if letters.len() < 5 || !letters.iter().all(|c| c.is_alphabetic()) {
        return word.to_owned();
    }
    let at = 1 + draw.below(letters.len() - 3);
    match draw.below(3) {
        0 => letters.swap(at, at + 1),
        1 => {
            letters.remove(at);
        }
        _ => letters.insert(at, letters[at]),
    }
    letters.into_iter().collect()
}

fn without_accent(c: char) -> char {
    match c {
        'é' | 'è' | 'ê' | 'ë' => 'e',
        'à' | 'â' => 'a',
        'î' | 'ï' => 'i',
        'ô' => 'o',
        'û' | 'ù' => 'u',
        'ç' => 'c',
        'É' => 'E',
        'À' => 'A',
        'Ç' => 'C',
        other => other,
    }
}

/// A clause as a sentence.
fn sentence(clause: &str) -> String {
    let mut chars = clause.chars();
    let first = chars.next().map(|c| c.to_uppercase().to_string()).unwrap_or_default();
    format!("{first}{}.", chars.as_str())
}

fn name_en(draw: &mut Draw, phrase: &str, appliance: &str) -> String {
    let names = APPLIANCES.iter().find(|a| a.value == appliance).expect("a known appliance").en;
    phrase.replace("{a}", draw.pick::<&str>(names))
}

fn name_fr(draw: &mut Draw, phrase: &str, appliance: &str) -> String {
    let names = APPLIANCES.iter().find(|a| a.value == appliance).expect("a known appliance").fr;
    let (noun, gender) = draw.pick(names);
    let (my, the, of_the) = match gender {
        Gender::Masculine => ("mon", "le", "du"),
        Gender::Feminine => ("ma", "la", "de la"),
    };
    phrase
        .replace("{mon}", &format!("{my} {noun}"))
        // "à le" contracts.
        .replace(
            "à {le}",
            &if *gender == Gender::Masculine {
                format!("au {noun}")
            } else {
                format!("à la {noun}")
            },
        )
        .replace("{le}", &format!("{the} {noun}"))
        .replace("{du}", &format!("{of_the} {noun}"))
}

fn name(draw: &mut Draw, language: &Language, set: Set) -> String {
    let first = *draw.pick(language.first_names.of(set));
    match draw.below(3) {
        0 => format!("{first} {}", draw.pick(language.last_names.of(set))),
        _ => first.to_owned(),
    }
}

/// A first name of the English bank.
pub(crate) fn first_name(draw: &mut Draw, set: Set) -> &'static str {
    let names = ENGLISH.first_names.of(set);
    names[draw.below(names.len())]
}

/// An appliance, as tickets name it.
pub(crate) fn appliance(draw: &mut Draw) -> &'static str {
    draw.pick(APPLIANCES).value
}

fn street(draw: &mut Draw, language: &Language, set: Set) -> String {
    let number = 1 + draw.below(180);
    let street = draw.pick(language.streets.of(set));
    format!("{number} {street}")
}

/// A letter and one or two digits; the two sets have different letters.
fn error_code(draw: &mut Draw, set: Set) -> String {
    let letter = match set {
        Set::Train => draw.pick(&["E", "E", "F", "A", "L"]),
        Set::Test => draw.pick(&["H", "C", "P"]),
    };
    format!("{letter}{}", 1 + draw.below(60))
}

/// A postcode of British or French form; not looked up, so it may or may not exist.
fn postcode(draw: &mut Draw, french: bool) -> String {
    if french {
        let department = draw.pick(&[
            "75", "69", "13", "31", "44", "33", "59", "67", "35", "34", "38", "76", "21", "49",
            "63", "37", "51", "29", "14", "06",
        ]);
        return format!("{department}{}{}0", draw.below(10), draw.below(10));
    }
    let area = draw.pick(&[
        "SW", "SE", "N", "NW", "E", "W", "M", "LS", "B", "BS", "G", "EH", "CF", "NE", "NG", "L",
        "S", "OX", "CB", "RG", "BN", "YO", "EX", "PL",
    ]);
    const LETTERS: &[char] = &[
        'A', 'B', 'D', 'E', 'F', 'G', 'H', 'J', 'L', 'N', 'P', 'Q', 'R', 'S', 'T', 'U', 'W', 'X',
        'Y', 'Z',
    ];
    let (district, sector) = (1 + draw.below(20), 1 + draw.below(9));
    format!("{area}{district} {sector}{}{}", draw.pick(LETTERS), draw.pick(LETTERS))
}

/// A number from the ranges that the regulators (Ofcom, Arcep) keep free for fiction.
fn phone(draw: &mut Draw, french: bool) -> String {
    let three = format!("{:03}", draw.below(1000));
    if french {
        let (start, four) = (
            draw.pick(&["06 39 98", "06 39 98", "01 99 00", "04 65 71"]),
            format!("{:04}", draw.below(10_000)),
        );
        let spaced = format!("{start} {} {}", &four[..2], &four[2..]);
        return match draw.below(5) {
            0 => spaced.replace(' ', ""),
            1 => spaced.replace(' ', "."),
            _ => spaced,
        };
    }
    let spaced = match draw.below(8) {
        0..4 => format!("07700 900{three}"),
        4 => format!("01632 960{three}"),
        5 => format!("020 7946 0{three}"),
        6 => format!("0161 496 0{three}"),
        _ => format!("0121 496 0{three}"),
    };
    if draw.below(4) == 0 { spaced.replace(' ', "") } else { spaced }
}

/// Draws that are the same on every machine and with every version of the random number crates:
/// only the generator's 64-bit words are taken from them.
pub(crate) struct Draw(Pcg64);

impl Draw {
    /// The same draws for the same seed and set.
    pub(crate) fn new(seed: u64, set: Set) -> Self {
        let stream = match set {
            Set::Train => 0,
            Set::Test => 1,
        };
        Self(Pcg64::seed_from_u64(seed * 2 + stream))
    }

    /// A number below `n`, by multiplication (Lemire, arXiv:1805.10941); the bias is below n/2^64.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.0.next_u64()) * n as u128) >> 64) as usize
    }

    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// Draws until the value belongs to `set`: one value in five is kept for the test.
    fn fresh(&mut self, set: Set, mut draw: impl FnMut(&mut Self) -> String) -> String {
        loop {
            let value = draw(self);
            if set_of(&value) == set {
                return value;
            }
        }
    }
}

/// Which set a postcode or a phone number belongs to, however it is spaced.
fn set_of(value: &str) -> Set {
    let letters = value.bytes().filter(u8::is_ascii_alphanumeric);
    let hash = letters.fold(7u32, |hash, b| hash.wrapping_mul(31).wrapping_add(b.into()));
    if hash % 5 == 0 { Set::Test } else { Set::Train }
}

fn readme(train: &[Row], test: &[Row]) -> String {
    let mut text = String::from(
        "# Sample trade: from a message to a dispatch ticket\n\
         \n\
         Made by `cargo run -p xtask -- sample-trade`; do not edit by hand. Synthetic data, under the \
         licence of this repository. Names and streets are invented, phone numbers come from the \
         ranges that Ofcom and Arcep keep free for fiction.\n\
         \n\
         A repair firm gets messages in English and French, with typos, abbreviations, missing facts \
         and things that do not matter. The answer is one line of JSON with these fields, in this \
         order:\n\
         \n\
         | field | value |\n\
         |---|---|\n",
    );
    let list = |values: Vec<&str>| format!("`{}`", values.join("`, `"));
    let fields = [
        ("appliance", list(APPLIANCES.iter().map(|a| a.value).collect())),
        ("fault", list(FAULTS.iter().map(|f| f.value).collect())),
        (
            "urgency",
            list(vec!["low", "normal", "high"]) + "; `normal` when the message does not say",
        ),
        ("postcode", "as written in the message, or null".to_owned()),
        ("callback", "the phone number as written in the message, or null".to_owned()),
        ("language", list(vec!["en", "fr"])),
    ];
    for (name, values) in fields {
        writeln!(text, "| {name} | {values} |").expect("writing to a string cannot fail");
    }
    write!(
        text,
        "\n`train.jsonl` has {} examples, `test.jsonl` {} sealed ones. The test set is made from \
         other phrases, names, streets, postcodes and numbers than the training set: what carries \
         over is the meaning. That no phrase of the test occurs in training, and that the leak check \
         finds nothing, is tested.\n\
         \n\
         It shows what adapting does; it is not a measure of how well a model will do on real \
         messages, which are messier than phrase banks.\n\
         \n\
         | value | train | test |\n\
         |---|---|---|\n",
        train.len(),
        test.len()
    )
    .expect("writing to a string cannot fail");
    let (train, test) = (counts(train), counts(test));
    let empty = 0;
    for (value, in_train) in &train {
        let in_test = test.get(value).unwrap_or(&empty);
        writeln!(text, "| {value} | {in_train} | {in_test} |")
            .expect("writing to a string cannot fail");
    }
    text
}

/// How often each value occurs, sorted by field and value.
fn counts(rows: &[Row]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for Row { ticket, .. } in rows {
        let given = |value: &Option<String>| if value.is_some() { "given" } else { "null" };
        for (field, value) in [
            ("appliance", ticket.appliance),
            ("fault", ticket.fault),
            ("urgency", ticket.urgency),
            ("postcode", given(&ticket.postcode)),
            ("callback", given(&ticket.callback)),
            ("language", ticket.language),
        ] {
            *counts.entry(format!("{field}: {value}")).or_insert(0) += 1;
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_files_are_what_this_source_makes() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/trade");
        for (name, content) in files() {
            let committed = fs::read_to_string(folder.join(name)).unwrap();
            assert!(committed == content, "{name} is stale: cargo run -p xtask -- sample-trade");
        }
    }

    /// The longest literal piece of a phrase, in the form in which texts are compared here.
    fn fingerprint(phrase: &str) -> String {
        let mut pieces: Vec<&str> = vec![phrase];
        for hole in ["{a}", "{mon}", "{le}", "{du}", "{e}", "{s}", "{p}", "{c}"] {
            pieces = pieces.iter().flat_map(|piece| piece.split(hole)).collect();
        }
        let longest = pieces.into_iter().max_by_key(|piece| piece.len()).unwrap();
        plain(longest)
    }

    /// Lower case, only letters and digits, words parted and enclosed by single spaces.
    fn plain(text: &str) -> String {
        let spaced: String = text
            .chars()
            .map(|c| if c.is_alphanumeric() { without_accent(c).to_ascii_lowercase() } else { ' ' })
            .collect();
        format!(" {} ", spaced.split_whitespace().collect::<Vec<_>>().join(" "))
    }

    fn all_phrases() -> Vec<(&'static str, &'static Phrases)> {
        let mut all = Vec::new();
        for fault in FAULTS {
            all.extend([(fault.value, &fault.en), (fault.value, &fault.fr)]);
        }
        for language in [&ENGLISH, &FRENCH] {
            all.extend([
                ("high", &language.high),
                ("low", &language.low),
                ("normal", &language.normal),
                ("greetings", &language.greetings),
                ("closings", &language.closings),
                ("chatter", &language.chatter),
                ("places", &language.places),
                ("vague_places", &language.vague_places),
                ("callbacks", &language.callbacks),
                ("first_names", &language.first_names),
                ("last_names", &language.last_names),
                ("streets", &language.streets),
            ]);
        }
        all
    }

    #[test]
    fn no_phrase_of_the_test_bank_occurs_in_a_training_message() {
        let train: Vec<String> =
            messages(SEED, Set::Train, TRAIN_ROWS).iter().map(|row| plain(&row.message)).collect();
        let everything = train.join("\n");
        let mut checked = 0;
        for (kind, phrases) in all_phrases() {
            let of_train: Vec<String> = phrases.train.iter().map(|p| plain(p)).collect();
            for phrase in phrases.test {
                let mark = fingerprint(phrase);
                assert!(mark.trim().len() >= 3, "{kind}: {phrase:?} has nothing of its own");
                assert!(!everything.contains(&mark), "{kind}: {phrase:?} occurs in training");
                assert!(!of_train.iter().any(|p| p.contains(&mark)), "{kind}: {phrase:?} in bank");
                checked += 1;
            }
        }
        assert!(checked > 200, "{checked}");
        // The check can fail: phrases of the training bank are found.
        assert!(everything.contains(&fingerprint("our {a} rattles and bangs")));
    }

    #[test]
    fn postcodes_and_numbers_are_as_written_and_not_shared() {
        let digits = |text: &str| text.replace([' ', '.'], "");
        let mut values: Vec<HashSet<String>> = Vec::new();
        for (set, count) in [(Set::Train, TRAIN_ROWS), (Set::Test, TEST_ROWS)] {
            let mut own = HashSet::new();
            for row in messages(SEED, set, count) {
                for value in [&row.ticket.postcode, &row.ticket.callback].into_iter().flatten() {
                    assert!(row.message.contains(value.as_str()), "{value}: {}", row.message);
                    own.insert(digits(value));
                }
                if row.ticket.callback.is_none() {
                    let longest = row.message.split(|c: char| !c.is_ascii_digit()).map(str::len);
                    assert!(longest.max() < Some(6), "a stray number in {:?}", row.message);
                }
            }
            values.push(own);
        }
        assert!(values[0].is_disjoint(&values[1]));
    }

    #[test]
    fn every_value_is_well_covered() {
        let train = counts(&messages(SEED, Set::Train, TRAIN_ROWS));
        let test = counts(&messages(SEED, Set::Test, TEST_ROWS));
        let keys = |counts: &BTreeMap<String, usize>| counts.keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&train), keys(&test));
        for (value, &count) in &train {
            assert!(count >= 60, "{value}: {count} in train");
            assert!(test[value] >= 8, "{value}: {} in test", test[value]);
        }
        let french = train["language: fr"] as f64 / TRAIN_ROWS as f64;
        assert!((0.2..0.3).contains(&french), "{french}");
    }

    #[test]
    fn every_slot_has_forty_ways_to_say_it_in_training() {
        let of = |kinds: &[&str]| -> usize {
            let all = all_phrases();
            let wanted = all.iter().filter(|(kind, _)| kinds.contains(kind));
            wanted.map(|(_, phrases)| phrases.train.len()).sum()
        };
        let faults: Vec<_> = FAULTS.iter().map(|f| f.value).collect();
        assert!(of(&faults) >= 120);
        for kinds in [
            &["high", "low", "normal"][..],
            &["greetings"],
            &["closings"],
            &["chatter"],
            &["places", "vague_places"],
            &["first_names"],
            &["last_names"],
            &["streets"],
        ] {
            assert!(of(kinds) >= 40, "{kinds:?}: {}", of(kinds));
        }
        assert!(of(&["callbacks"]) >= 30);
    }

    #[test]
    fn tickets_are_compact_and_in_order() {
        let ticket = Ticket {
            appliance: "oven",
            fault: "no heat",
            urgency: "low",
            postcode: None,
            callback: Some("07700 900123".into()),
            language: "en",
        };
        assert_eq!(
            ticket.to_json(),
            r#"{"appliance":"oven","fault":"no heat","urgency":"low","postcode":null,"callback":"07700 900123","language":"en"}"#
        );
    }

    #[test]
    fn words_change_and_the_rest_stays() {
        let shout = |word: &str| word.to_uppercase();
        assert_eq!(by_word(" a-b, c'd!\n\u{e9} 5. ", shout), " A-B, C'D!\n\u{c9} 5. ");
        let mut draw = Draw::new(1, Set::Train);
        for word in ["oven", "SW14", "E12", "07700", "rendez-vous"] {
            assert_eq!(typo(&mut draw, word), word);
        }
        for _ in 0..50 {
            assert_ne!(typo(&mut draw, "abcdefgh"), "abcdefgh");
        }
    }
}
