//! Logs of inspect_ai as it writes them by default, `.eval`: a ZIP archive of `samples/*.json`, each as in a
//! log in JSON, and `header.json`, which knows their order. Nothing is unpacked to disk.

use super::inspect::sample_of;
use super::{Placed, Recorded, Wrong, text_of};
use serde_json::Value;
use std::io::{Cursor, Read};
use zip::ZipArchive;
use zip::read::ZipFile;

/// Largest sample or header.
const MOST_OF_ONE: u64 = 64 << 20;
/// Of all together, so that a small archive cannot keep a machine busy.
const MOST_OF_ALL: u64 = 2 << 30;

/// How an archive begins.
pub(super) const MAGIC: &[u8] = b"PK\x03\x04";

pub(super) fn read(bytes: &[u8]) -> Placed {
    let wrong = |reason: String| Wrong { line: 1, reason };
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(|error| {
        wrong(format!("the archive cannot be read: {error}; expected a .eval log of inspect_ai"))
    })?;
    let (mut samples, mut order, mut total) = (Vec::new(), None, 0);
    for index in 0..archive.len() {
        let entry = archive.by_index(index).map_err(|error| {
            wrong(format!("entry {} of the archive cannot be read: {error}", index + 1))
        })?;
        let name = entry.name().map_err(|error| wrong(error.to_string()))?.into_owned();
        let line = samples.len() + 1;
        let wrong = |reason: String| Wrong { line, reason: format!("{name}: {reason}") };
        let is_sample = name.starts_with("samples/") && name.ends_with(".json");
        if !is_sample && name != "header.json" {
            continue;
        }
        let value = json(entry, &mut total).map_err(wrong)?;
        if is_sample {
            samples.push((line, sample_of(&value).map_err(wrong)?));
        } else {
            order = Some(value["eval"]["dataset"]["sample_ids"].clone());
        }
    }
    let Some(order) = order else {
        return Err(wrong(
            "it has no header.json, which inspect_ai writes at the end of a run. hint: inspect log recover"
                .to_owned(),
        ));
    };
    let ids = order.as_array().map_or(&[][..], Vec::as_slice);
    let ids: Vec<Option<String>> = ids.iter().map(text_of).collect();
    let placed = |(line, sample): (usize, Recorded)| {
        let place = ids.iter().position(|id| id.is_some() && *id == sample.id);
        (line, Recorded { place, ..sample })
    };
    Ok(samples.into_iter().map(placed).collect())
}

/// An entry as JSON; `total` counts the bytes of all.
fn json(entry: ZipFile<impl Read>, total: &mut u64) -> Result<Value, String> {
    let mut bytes = Vec::new();
    let most = MOST_OF_ONE.min(MOST_OF_ALL - *total);
    let read = entry.take(most + 1).read_to_end(&mut bytes);
    *total += bytes.len() as u64;
    if bytes.len() as u64 > most {
        return Err(format!("found more than {most} bytes; expected a log"));
    }
    read.map_err(|error| format!("it cannot be unpacked: {error}"))?;
    serde_json::from_slice(&bytes).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
        for (name, bytes) in entries {
            writer.start_file(*name, SimpleFileOptions::default()).unwrap();
            writer.write_all(bytes).unwrap();
        }
        writer.finish().unwrap().into_inner()
    }

    const SAMPLE: &[u8] =
        br#"{"id": 7, "epoch": 1, "target": "yes", "output": {"completion": "no"}}"#;
    const HEADER: &[u8] = br#"{"eval": {"dataset": {"sample_ids": [3, 7]}}}"#;

    fn error(bytes: &[u8]) -> String {
        read(bytes).err().unwrap().reason
    }

    #[test]
    fn samples_have_the_places_of_the_header() {
        let entries = [
            ("samples/7_epoch_1.json", SAMPLE),
            ("_journal/x.json", b"{"),
            ("header.json", HEADER),
        ];
        let all = read(&archive(&entries)).ok().unwrap();
        let one = &all[0].1;
        assert_eq!((all.len(), one.id.as_deref(), one.place), (1, Some("7"), Some(1)));
        assert_eq!((one.answer.as_deref(), one.reference.as_deref()), (Some("no"), Some("yes")));
    }

    #[test]
    fn what_is_no_log_is_named() {
        assert!(error(b"PK\x03\x04").contains("cannot be read"));
        let good = archive(&[("samples/7_epoch_1.json", SAMPLE), ("header.json", HEADER)]);
        for cut in [good.len() - 1, good.len() / 2, 40] {
            assert!(error(&good[..cut]).contains("archive"), "{cut}");
        }
        let cases: [(&str, &[u8], &str); 3] = [
            ("samples/a.json", b"{", "samples/a.json: EOF"),
            ("samples/a.json", br#"{"epoch": 2}"#, "second epoch"),
            ("samples/a.json", br#"{"id": "a"}"#, "neither output.completion"),
        ];
        for (name, bytes, expected) in cases {
            let found = error(&archive(&[(name, bytes), ("header.json", HEADER)]));
            assert!(found.contains(expected), "{found}");
        }
        assert!(error(&archive(&[("samples/7_epoch_1.json", SAMPLE)])).contains("no header.json"));
    }

    #[test]
    fn what_grows_beyond_all_measure_is_stopped() {
        let bomb = vec![b' '; MOST_OF_ONE as usize + 2];
        let packed = archive(&[("samples/a.json", &bomb), ("header.json", HEADER)]);
        assert!(packed.len() < 1 << 20, "{}", packed.len());
        let found = error(&packed);
        assert!(found.contains("samples/a.json: found more than 67108864 bytes"), "{found}");
    }

    #[test]
    fn any_damage_is_an_error_or_another_answer_and_never_a_panic() {
        let good = archive(&[("samples/7_epoch_1.json", SAMPLE), ("header.json", HEADER)]);
        for place in 0..good.len() {
            for bit in [1, 0x80] {
                let mut bytes = good.clone();
                bytes[place] ^= bit;
                let _ = read(&bytes);
            }
        }
    }
}
