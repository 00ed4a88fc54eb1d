//! The text side of a model as the user named it: tokenizer and chat template, from the files of a
//! folder or from the metadata of a GGUF file.

use anyhow::Result;
use model::GgufFile;
use model::gguf::GgufError;
use std::path::Path;
use text::{ChatTemplate, GgufVocabulary, Tokenizer};

/// Tokenizer and chat template of a folder ([`Tokenizer::from_dir`] says which file is read first)
/// or of a GGUF file; the template is `None` when the model has none.
pub(crate) fn load(model: &Path) -> Result<(Tokenizer, Option<ChatTemplate>)> {
    if model.is_file() {
        return load_gguf(&GgufFile::open(model)?);
    }
    Ok((Tokenizer::from_dir(model)?, ChatTemplate::from_dir(model)?))
}

/// Tokenizer and chat template from the metadata of an open GGUF file.
pub(crate) fn load_gguf(file: &GgufFile) -> Result<(Tokenizer, Option<ChatTemplate>)> {
    let vocabulary = vocabulary(file)?;
    let tokenizer = Tokenizer::from_gguf(file.path(), &vocabulary)?;
    let template = vocabulary.chat_template.map(ChatTemplate::from_source).transpose()?;
    Ok((tokenizer, template))
}

/// What the file says about its tokenizer (keys of the GGUF specification).
fn vocabulary(file: &GgufFile) -> Result<GgufVocabulary<'_>, GgufError> {
    Ok(GgufVocabulary {
        model: file.require("tokenizer.ggml.model")?,
        pre: file.get("tokenizer.ggml.pre")?,
        tokens: file.require("tokenizer.ggml.tokens")?,
        scores: file.get("tokenizer.ggml.scores")?,
        token_types: file.get("tokenizer.ggml.token_type")?,
        merges: file.get("tokenizer.ggml.merges")?,
        bos_id: file.get("tokenizer.ggml.bos_token_id")?,
        eos_id: file.get("tokenizer.ggml.eos_token_id")?,
        unknown_id: file.get("tokenizer.ggml.unknown_token_id")?,
        padding_id: file.get("tokenizer.ggml.padding_token_id")?,
        end_ids: [
            file.get("tokenizer.ggml.eot_token_id")?,
            file.get("tokenizer.ggml.eom_token_id")?,
        ],
        add_bos: file.get("tokenizer.ggml.add_bos_token")?,
        add_space_prefix: file.get("tokenizer.ggml.add_space_prefix")?,
        remove_extra_whitespaces: file.get("tokenizer.ggml.remove_extra_whitespaces")?,
        chat_template: file.get("tokenizer.chat_template")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::PathBuf;

    fn shared(name: &str) -> Option<PathBuf> {
        let root = std::env::var_os("METIER_SHARED").map_or_else(
            || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared"),
            PathBuf::from,
        );
        let path = root.join(name);
        if path.exists() {
            return Some(path);
        }
        eprintln!("SKIPPED: {} is not there", path.display());
        None
    }

    /// The texts and ids that llama.cpp publishes for a vocabulary.
    struct Cases(Vec<(String, Vec<u32>)>);

    impl Cases {
        fn read(inp: &Path) -> Cases {
            let text = fs::read_to_string(inp).unwrap();
            let ids = fs::read_to_string(inp.with_extension("out")).unwrap();
            let texts = text.split("\n__ggml_vocab_test__\n");
            let ids = ids.lines().map(|line| {
                line.split_whitespace().map(|id| id.parse().unwrap()).collect::<Vec<u32>>()
            });
            let cases: Vec<_> = texts.map(str::to_owned).zip(ids).collect();
            assert_eq!(cases.len(), 47, "{}", inp.display());
            Cases(cases)
        }

        fn hold(&self, what: &str, tokenizer: &Tokenizer) {
            let mut wrong = Vec::new();
            for (text, expected) in &self.0 {
                let found = tokenizer.encode(text).unwrap();
                if found != *expected {
                    wrong.push(format!("{text:?}\n  expected {expected:?}\n  found    {found:?}"));
                }
            }
            assert!(wrong.is_empty(), "{what}: {} differ\n{}", wrong.len(), wrong.join("\n"));
            println!("{what}: {} of {} texts", self.0.len(), self.0.len());
        }
    }

    /// Every tokenizer file in the shared folder, whatever its form, against llama.cpp's cases in
    /// the same folder.
    #[test]
    fn every_source_of_every_vocabulary_gives_the_published_ids() {
        let Some(root) = shared("tokenizers") else { return };
        let mut folders: Vec<PathBuf> =
            fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
        folders.sort();
        let mut checked = Vec::new();
        for folder in folders {
            let name = folder.file_name().unwrap().to_string_lossy().into_owned();
            let names: Vec<String> = fs::read_dir(&folder)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            let with = |end: &str| names.iter().find(|name| name.ends_with(end));
            let Some(inp) = with(".inp") else { continue };
            let cases = Cases::read(&folder.join(inp));
            if let Some(gguf) = with(".gguf") {
                cases.hold(&format!("{name}: GGUF"), &load(&folder.join(gguf)).unwrap().0);
                checked.push(format!("{name} gguf"));
            }
            // The folder as it is has, of the other forms, one each.
            let forms = [
                ("tokenizer.json", "tokenizer.json"),
                (".tiktoken", "ranks"),
                ("vocab.bpe", "byte pairs"),
            ];
            for (end, form) in forms {
                if with(end).is_some() {
                    cases.hold(&format!("{name}: {form}"), &load(&folder).unwrap().0);
                    checked.push(format!("{name} {form}"));
                }
            }
        }
        assert_eq!(
            checked,
            [
                "gpt-2 gguf",
                "gpt-2 byte pairs",
                "llama-spm gguf",
                "mpt gguf",
                "phi-3-mini gguf",
                "phi-3-mini tokenizer.json",
                "qwen2 ranks",
            ]
        );
    }
}
