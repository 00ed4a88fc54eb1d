//! GGUF files: what an honest one says, and every kind of lie refused with its own message.

mod gguf_files;

use gguf_files::{Gguf, array, entry, shared, tensor, text};
use model::gguf::{GgmlType, GgufFile, GgufProblem, Value};
use std::fs;

fn open(bytes: &[u8]) -> Result<GgufFile, model::GgufError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    GgufFile::open(file.path())
}

/// The file made by `lie` from an honest one is refused with a message that has every piece.
#[track_caller]
fn refused(lie: impl FnOnce(&mut Gguf), pieces: &[&str]) {
    let mut gguf = Gguf::honest();
    lie(&mut gguf);
    refused_bytes(&gguf.bytes(), pieces);
}

#[track_caller]
fn refused_bytes(bytes: &[u8], pieces: &[&str]) {
    let message = match open(bytes) {
        Ok(_) => panic!("accepted; expected a message with {pieces:?}"),
        Err(error) => error.to_string(),
    };
    for piece in pieces {
        assert!(message.contains(piece), "expected {piece:?} in: {message}");
    }
}

#[test]
fn an_honest_file_says_what_it_has() {
    for version in [2, 3] {
        let mut gguf = Gguf::honest();
        gguf.version = version;
        let file = open(&gguf.bytes()).unwrap();
        assert_eq!(file.version(), version);
        assert_eq!(file.require::<&str>("general.architecture").unwrap(), "nano");
        assert_eq!(file.require::<usize>("nano.block_count").unwrap(), 2);
        assert_eq!(file.require::<Vec<usize>>("nano.block_count").unwrap(), [2]);
        assert_eq!(file.get::<f32>("nano.epsilon").unwrap(), Some(0.5));
        assert_eq!(file.get::<bool>("nano.flag").unwrap(), Some(true));
        assert_eq!(file.require::<&[String]>("tokens").unwrap(), ["a", "bc"]);
        assert_eq!(file.require::<&[f32]>("scores").unwrap(), [2.5]);
        assert_eq!(file.get::<u32>("nothing").unwrap(), None);
        assert_eq!(file.metadata("nano.block_count"), Some(&Value::U32(2)));
        assert_eq!(file.all_metadata().count(), 6);

        let names: Vec<&str> = file.tensors().map(|tensor| tensor.name).collect();
        assert_eq!(names, ["norm", "weight"]);
        let weight = file.tensor("weight").unwrap();
        assert_eq!((weight.shape, weight.ggml_type), (&[2, 32][..], GgmlType::Q8_0));
        assert_eq!(weight.bytes, [7; 68]);
        assert_eq!(file.tensor("norm").unwrap().bytes, 1f32.to_le_bytes().repeat(8));
        assert!(file.tensor("other").is_none());
    }
}

#[test]
fn getters_name_key_found_and_expected() {
    let file = open(&Gguf::honest().bytes()).unwrap();
    let cases = [
        (file.require::<u32>("none").unwrap_err(), "no \"none\", expected a whole number"),
        (file.get::<u32>("tokens").unwrap_err(), "\"tokens\" is an array of 2 x string, expected"),
        (file.get::<bool>("nano.block_count").unwrap_err(), "is the u32 2, expected a boolean"),
        (file.get::<&[f32]>("tokens").unwrap_err(), "expected an array of f32"),
        (file.get::<&str>("nano.epsilon").unwrap_err(), "is the f32 0.5, expected a string"),
        (file.get::<usize>("nano.flag").unwrap_err(), "is the boolean true, expected a whole"),
        (file.get::<&[i32]>("scores").unwrap_err(), "array of 1 x f32, expected an array of i32"),
    ];
    for (error, expected) in cases {
        let message = error.to_string();
        assert!(message.contains(expected), "expected {expected:?} in: {message}");
    }
}

#[test]
fn the_beginning() {
    refused_bytes(b"", &["not a GGUF file", "0 bytes"]);
    refused_bytes(b"GG", &["not a GGUF file"]);
    refused_bytes(b"GGUF", &["file ends at byte 4", "the version"]);
    refused(|g| g.magic = *b"GGML", &["begins with \"GGML\"", "expected \"GGUF\""]);
    refused(|g| g.version = 0, &["GGUF version 0", "expected 2 or 3"]);
    refused(|g| g.version = 1, &["GGUF version 1", "expected 2 or 3"]);
    refused(|g| g.version = 4, &["GGUF version 4"]);
    refused(|g| g.version = 3u32.swap_bytes(), &["big-endian (version 3)", "little-endian"]);
}

#[test]
fn counts() {
    refused(|g| g.tensor_count = Some(u64::MAX), &["number of tensors is 18446744073709551615"]);
    refused(|g| g.tensor_count = Some(1000), &["number of tensors is 1000", "hold at most"]);
    // One more than there are: its description would be read from the data.
    refused(|g| g.tensor_count = Some(3), &["tensor name"]);
    refused(|g| g.entry_count = Some(u64::MAX), &["number of metadata entries"]);
    refused(|g| g.entry_count = Some(1 << 40), &["number of metadata entries"]);
}

#[test]
fn keys() {
    let long = "k".repeat(65_536);
    refused(|g| g.entries.push(entry("", 0, [1])), &["metadata key", "0 bytes long"]);
    refused(|g| g.entries.push(entry(&long, 0, [1])), &["metadata key", "65536 bytes long"]);
    refused(|g| g.entries.push(entry("tokens", 0, [1])), &["key \"tokens\" occurs twice"]);
    for length in [u64::MAX, 1 << 40, 100_000] {
        let lie = length.to_le_bytes().to_vec();
        refused(|g| g.entries.insert(0, lie), &["metadata key", &length.to_string()]);
    }
    let not_utf8 = [&2u64.to_le_bytes()[..], &[0xff, 0xfe], &0u32.to_le_bytes(), &[1]].concat();
    refused(|g| g.entries.push(not_utf8), &["metadata key", "not UTF-8"]);
}

#[test]
fn values() {
    refused(|g| g.entries.push(entry("x", 13, [1])), &["\"x\" has the type 13"]);
    refused(|g| g.entries.push(entry("x", 7, [2])), &["\"x\" is the boolean 2"]);
    refused(|g| g.entries.push(entry("x", 9, array(7, 1, [2]))), &["\"x\" is the boolean 2"]);
    refused(|g| g.entries.push(entry("x", 9, array(9, 0, []))), &["\"x\" is an array of arrays"]);
    refused(|g| g.entries.push(entry("x", 9, array(99, 0, []))), &["\"x\" has the type 99"]);
    let bytes = array(0, 1 << 30, []);
    refused(|g| g.entries.push(entry("x", 9, bytes)), &["length", "\"x\" is 1073741824"]);
    for kind in [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12] {
        let endless = array(kind, u64::MAX, []);
        refused(|g| g.entries.push(entry("x", 9, endless)), &["length", "hold at most"]);
    }
    let endless = u64::MAX.to_le_bytes();
    refused(|g| g.entries.push(entry("x", 8, endless)), &["the value of \"x\"", "file ends"]);
    let not_utf8 = [&1u64.to_le_bytes()[..], &[0xff]].concat();
    refused(|g| g.entries.push(entry("x", 8, not_utf8)), &["the value of \"x\"", "not UTF-8"]);
}

#[test]
fn alignment() {
    for lie in [0u32, 1, 13, 1 << 30] {
        let value = entry("general.alignment", 4, lie.to_le_bytes());
        refused(|g| g.entries.push(value), &[&format!("general.alignment is {lie}")]);
    }
    let wide = entry("general.alignment", 10, 32u64.to_le_bytes());
    refused(|g| g.entries.push(wide), &["general.alignment", "the u64 32", "expected a u32"]);

    let mut gguf = Gguf::honest();
    gguf.entries.push(entry("general.alignment", 4, 256u32.to_le_bytes()));
    gguf.alignment = 256;
    gguf.tensors = vec![tensor("norm", &[8], 0, 0)];
    assert_eq!(
        open(&gguf.bytes()).unwrap().tensor("norm").unwrap().bytes,
        1f32.to_le_bytes().repeat(8)
    );
}

#[test]
fn tensors() {
    let one = |bytes: Vec<u8>| move |g: &mut Gguf| g.tensors = vec![bytes];
    let long = "t".repeat(65);
    refused(one(tensor("", &[8], 0, 0)), &["tensor name", "0 bytes long"]);
    refused(one(tensor(&long, &[8], 0, 0)), &["tensor name", "65 bytes long"]);
    refused(|g| g.tensors[1] = g.tensors[0].clone(), &["tensor \"norm\" occurs twice"]);
    refused(one(tensor("t", &[], 0, 0)), &["has 0 dimensions"]);
    refused(one(tensor("t", &[1; 5], 0, 0)), &["has 5 dimensions"]);
    refused(one(tensor("t", &[0], 0, 0)), &["size [0]", "a dimension is 0"]);
    refused(one(tensor("t", &[8, 0], 0, 0)), &["a dimension is 0"]);
    refused(one(tensor("t", &[u64::MAX], 0, 0)), &["more values than can be counted"]);
    refused(one(tensor("t", &[1 << 32, 1 << 32], 0, 0)), &["more values than can be counted"]);
    // Bytes, not values, overflow: 2^62 values of four bytes wrap to zero.
    refused(one(tensor("t", &[1 << 62], 0, 0)), &["more values than can be counted"]);
    refused(one(tensor("t", &[(1 << 42) + 1, 1 << 22], 0, 0)), &["more values than"]);
    refused(one(tensor("t", &[33, 2], 8, 0)), &["multiple of 32 values for the type Q8_0"]);
    refused(one(tensor("t", &[8], 0, 7)), &["offset 7", "multiple of 32"]);
    refused(one(tensor("t", &[8], 0, u64::MAX - 31)), &["from offset 18446744073709551584"]);
    refused(one(tensor("t", &[8], 0, 1 << 40)), &["from offset 1099511627776"]);
    refused(|g| g.data.truncate(99), &["\"weight\" has 68 bytes from offset 32", "which has 99"]);
    refused(|g| g.tensors[1] = tensor("weight", &[32, 2], 8, 0), &["\"norm\"", "overlap"]);
    refused(one(tensor("t", &[8], 16, 0)), &["type 16 (IQ2_XXS)", "expected one of F32, F16"]);
    refused(one(tensor("t", &[8], 1000, 0)), &["type 1000"]);
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let bytes = Gguf::honest().bytes();
    for end in 0..bytes.len() {
        assert!(open(&bytes[..end]).is_err(), "accepted the first {end} bytes");
    }
}

/// Files that others made: some right, some broken.
#[test]
fn files_from_elsewhere() {
    let Some(dir) = shared("hostile") else { return };
    let error = |name: &str| GgufFile::open(&dir.join(name)).err().unwrap().problem;

    let file = GgufFile::open(&dir.join("test-le-v3.gguf")).unwrap();
    assert_eq!(file.require::<u32>("answer").unwrap(), 42);
    assert_eq!(file.require::<f32>("answer_in_float").unwrap(), 42.0);
    assert_eq!(file.require::<&[String]>("tokenizer.ggml.tokens").unwrap().concat(), "abcde");
    for (name, len, value) in
        [("tensor1", 32, 100f32), ("tensor2", 64, 101.), ("tensor3", 96, 102.)]
    {
        let tensor = file.tensor(name).unwrap();
        assert_eq!((tensor.shape, tensor.ggml_type), (&[len][..], GgmlType::F32));
        assert_eq!(tensor.bytes, value.to_le_bytes().repeat(len), "{name}");
    }
    let seed = GgufFile::open(&dir.join("gguf-seed.gguf")).unwrap();
    assert_eq!(seed.tensor("blk.0.weight").unwrap().shape, [4, 4]);
    let empty = GgufFile::open(&dir.join("empty.gguf")).unwrap();
    assert_eq!(empty.tensors().len(), 0);
    assert_eq!(empty.require::<&str>("general.architecture").unwrap(), "llama");

    assert!(matches!(error("test-be-v3.gguf"), GgufProblem::BigEndian { version: 3 }));
    assert!(matches!(error("gguf-truncated-crash.bin"), GgufProblem::Magic { .. }));
    // Claims a tensor of 32 KiB in a file of 122 bytes.
    assert!(matches!(error("tiny.gguf"), GgufProblem::OutOfFile { .. }));
    assert!(matches!(error("tiny.safetensors"), GgufProblem::Magic { .. }));
}

#[test]
fn array_of_strings_without_room_for_their_lengths() {
    let lie = entry("x", 9, array(8, 40, text("a")));
    refused(|g| g.entries.push(lie), &["the length of the value of \"x\" is 40"]);
}

/// What an architecture must say is asked for by name, and so is what it says too much.
#[test]
fn an_architecture_without_its_keys_or_with_others() {
    let load = |lie: &dyn Fn(&mut Gguf)| {
        let mut gguf = Gguf::honest();
        gguf.entries = vec![entry("general.architecture", 8, text("llama"))];
        lie(&mut gguf);
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), gguf.bytes()).unwrap();
        let loaded = model::Decoder::load(file.path(), &model::LoadOptions::default());
        loaded.err().expect("a lie").to_string()
    };
    let number = |key: &str, n: u32| entry(&format!("llama.{key}"), 4, n.to_le_bytes());
    let float = |key: &str, x: f32| entry(&format!("llama.{key}"), 6, x.to_le_bytes());
    let mut entries = Vec::new();
    for (key, n) in [
        ("embedding_length", 32),
        ("attention.head_count", 4),
        ("token_embd.weight", 0),
        ("feed_forward_length", 48),
        ("block_count", 1),
        ("context_length", 64),
    ] {
        let before = entries.clone();
        let said = load(&|g| {
            g.entries.extend(before.clone());
            if before.len() > 2 {
                g.tensors = vec![tensor("token_embd.weight", &[8, 1], 0, 0)];
            }
        });
        assert!(said.contains(key), "expected {key} in: {said}");
        entries.push(number(key, n));
    }
    entries.push(float("attention.layer_norm_rms_epsilon", 1e-5));
    let with = |more: Vec<u8>| {
        load(&|g| {
            g.entries.extend(entries.iter().cloned().chain([more.clone()]));
            g.tensors = vec![tensor("token_embd.weight", &[8, 1], 0, 0)];
        })
    };
    let said = with(float("logit_scale", 2.0));
    assert!(said.contains("llama.logit_scale (the f32 2)"), "{said}");
    let said = with(entry("llama.attention.causal", 7, [0]));
    assert!(said.contains("llama.attention.causal: found false"), "{said}");
    let said = with(entry("llama.attention.head_count_kv", 8, text("two")));
    assert!(said.contains("head_count_kv") && said.contains("the string"), "{said}");
    let said = with(number("block_count_other", 0));
    assert!(said.contains("blk.0.attn_norm.weight: missing"), "{said}");
    let said = with(entry("llama.expert_count", 4, 1_000_000u32.to_le_bytes()));
    assert!(said.contains("expert_used_count"), "{said}");
}
