//! How the hidden states of a text become one embedding, and what a model's folder says of it: the
//! files that sentence-transformers writes beside the weights.

use crate::error::ModelError;
use crate::files::read_json_bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Which of a text's final hidden states its embedding is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// That of the last token, the only one of a decoder that has seen the whole text.
    Last,
    /// That of the first token, which some encoders are trained to make the text's.
    Cls,
}

impl Pooling {
    /// The names that users write.
    pub const NAMES: [&'static str; 3] = ["mean", "last", "cls"];

    /// The choice of this name.
    pub fn from_name(name: &str) -> Option<Pooling> {
        match name {
            "mean" => Some(Pooling::Mean),
            "last" => Some(Pooling::Last),
            "cls" => Some(Pooling::Cls),
            _ => None,
        }
    }
}

/// To which lengths embeddings may be cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dimensions {
    /// None: the beginning of an embedding means nothing by itself.
    Whole,
    /// Any: the model was trained so that the beginnings are embeddings too (Matryoshka representation
    /// learning, arXiv 2205.13147).
    Any,
    /// These.
    Listed(Vec<usize>),
}

/// How embeddings of a model are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbeddingForm {
    /// What of the hidden states.
    pub pooling: Pooling,
    /// Whether they are brought to length one.
    pub normalize: bool,
    /// To which lengths they may be cut.
    pub dimensions: Dimensions,
    /// Longest text that the model was made for, tokens, where its folder says so.
    pub max_tokens: Option<usize>,
}

impl EmbeddingForm {
    /// Normalised, of whole length.
    pub fn new(pooling: Pooling) -> EmbeddingForm {
        let dimensions = Dimensions::Whole;
        EmbeddingForm { pooling, normalize: true, dimensions, max_tokens: None }
    }

    /// What the model folder `dir` says in `modules.json`, the pooling module's `config.json` and
    /// `sentence_bert_config.json`, and in `config.json` of Matryoshka; `default` where it is silent.
    /// With a `modules.json`, embeddings are normalised when it lists that.
    ///
    /// # Errors
    /// [`ModelError`] naming the file and what in it would make other embeddings than are made here.
    pub fn read(dir: &Path, default: Pooling) -> Result<EmbeddingForm, ModelError> {
        let mut form = EmbeddingForm::new(default);
        if let Some(file) = JsonFile::read(dir.join("config.json"))? {
            form.dimensions = file.dimensions()?;
        }
        if let Some(file) = JsonFile::read(dir.join("modules.json"))? {
            file.modules(dir, &mut form)?;
        }
        if let Some(file) = JsonFile::read(dir.join("sentence_bert_config.json"))? {
            file.off("do_lower_case")?;
            form.max_tokens = file.size("max_seq_length")?;
        }
        if let Some(file) = JsonFile::read(dir.join("config_sentence_transformers.json"))? {
            // A text that would be put before each input; clients send what they mean.
            file.off("default_prompt_name")?;
        }
        Ok(form)
    }

    /// Whether embeddings of `whole` values may be cut to `wanted`; the reason when not.
    ///
    /// # Errors
    /// What is accepted, in words.
    pub fn check_dimensions(&self, wanted: usize, whole: usize) -> Result<(), String> {
        match &self.dimensions {
            _ if wanted == whole => Ok(()),
            Dimensions::Any if (1..=whole).contains(&wanted) => Ok(()),
            Dimensions::Listed(list) if list.contains(&wanted) && wanted <= whole => Ok(()),
            Dimensions::Whole => Err(format!(
                "{whole}, the length of this model's embeddings, which it was not made to have cut"
            )),
            Dimensions::Any => Err(format!("from 1 to {whole}")),
            Dimensions::Listed(list) => {
                let names: Vec<String> = list.iter().map(usize::to_string).collect();
                Err(format!("one of {}, or {whole}", names.join(", ")))
            }
        }
    }

    /// The embedding as it is given out: `pooled` cut to `dimensions`, then brought to length one where
    /// that belongs to it. One that is zero stays so.
    pub fn finish(&self, mut pooled: Vec<f32>, dimensions: Option<usize>) -> Vec<f32> {
        pooled.truncate(dimensions.unwrap_or(usize::MAX));
        let length = pooled.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        if self.normalize && length > 0.0 {
            pooled.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
        }
        pooled
    }
}

/// A JSON file of a model's folder.
struct JsonFile {
    path: PathBuf,
    value: Value,
}

impl JsonFile {
    /// None when there is none.
    fn read(path: PathBuf) -> Result<Option<JsonFile>, ModelError> {
        if !path.is_file() {
            return Ok(None);
        }
        let value = serde_json::from_slice(&read_json_bytes(&path)?)
            .map_err(|e| ModelError::config(&path, format!("not valid JSON: {e}")))?;
        Ok(Some(JsonFile { path, value }))
    }

    fn bad(&self, field: &str, found: impl std::fmt::Display, expected: &str) -> ModelError {
        let problem = format!("{field}: found {found}, expected {expected}");
        ModelError::config(&self.path, problem)
    }

    fn map(&self) -> Result<&Map<String, Value>, ModelError> {
        self.value
            .as_object()
            .ok_or_else(|| ModelError::config(&self.path, "expected a JSON object at the top"))
    }

    /// Refuses a field that asks for something.
    fn off(&self, field: &str) -> Result<(), ModelError> {
        match self.map()?.get(field) {
            None | Some(Value::Null | Value::Bool(false)) => Ok(()),
            Some(other) => Err(self.bad(field, other, "none: it changes what is embedded")),
        }
    }

    fn size(&self, field: &str) -> Result<Option<usize>, ModelError> {
        match self.map()?.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
                Some(size) if size > 0 => Ok(Some(size)),
                _ => Err(self.bad(field, value, "a whole number of at least 1")),
            },
        }
    }

    /// `matryoshka_dimensions` and `is_matryoshka` of config.json.
    fn dimensions(&self) -> Result<Dimensions, ModelError> {
        let map = self.map()?;
        if let Some(value) = map.get("matryoshka_dimensions").filter(|v| !v.is_null()) {
            let one = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
            let list = value.as_array().and_then(|list| list.iter().map(one).collect());
            return list.map(Dimensions::Listed).ok_or_else(|| {
                self.bad("matryoshka_dimensions", value, "a list of whole numbers")
            });
        }
        match map.get("is_matryoshka") {
            Some(Value::Bool(true)) => Ok(Dimensions::Any),
            _ => Ok(Dimensions::Whole),
        }
    }

    /// The steps behind the model that `modules.json` lists.
    fn modules(&self, dir: &Path, form: &mut EmbeddingForm) -> Result<(), ModelError> {
        let expected = "a list of modules: Transformer, Pooling and maybe Normalize";
        let list = self.value.as_array().ok_or_else(|| self.bad("the file", "none", expected))?;
        form.normalize = false;
        for module in list {
            let kind = module["type"].as_str().unwrap_or_default();
            match kind.rsplit('.').next().unwrap_or_default() {
                "Transformer" => {}
                "Normalize" => form.normalize = true,
                "Pooling" => {
                    let folder = module["path"].as_str().unwrap_or_default();
                    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
                    if folder.is_empty() || !folder.chars().all(plain) {
                        return Err(self.bad("path", &module["path"], "a folder inside this one"));
                    }
                    let path = dir.join(folder).join("config.json");
                    let pooling = JsonFile::read(path.clone())?.ok_or_else(|| {
                        ModelError::config(&path, "missing, expected how states are pooled")
                    })?;
                    form.pooling = pooling.pooling()?;
                }
                _ => return Err(self.bad("type", &module["type"], expected)),
            }
        }
        Ok(())
    }

    /// The pooling module's config.json.
    fn pooling(&self) -> Result<Pooling, ModelError> {
        const MODES: [(&str, &str, Pooling); 3] = [
            ("pooling_mode_mean_tokens", "mean", Pooling::Mean),
            ("pooling_mode_lasttoken", "lasttoken", Pooling::Last),
            ("pooling_mode_cls_token", "cls", Pooling::Cls),
        ];
        let map = self.map()?;
        let on = |(field, value): (&String, &Value)| {
            let on = field.starts_with("pooling_mode_") && *value == Value::Bool(true);
            on.then(|| field.clone())
        };
        let mut asked: Vec<String> = map.iter().filter_map(on).collect();
        asked.extend(map.get("pooling_mode").and_then(Value::as_str).map(str::to_owned));
        let known = |asked: &str| MODES.iter().find(|m| m.0 == asked || m.1 == asked).map(|m| m.2);
        match &asked[..] {
            [one] => known(one),
            _ => None,
        }
        .ok_or_else(|| {
            self.bad("pooling_mode", asked.join(", "), "one of mean, last token and CLS token")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a folder with these files says.
    fn read(files: &[(&str, &str)]) -> Result<EmbeddingForm, String> {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        EmbeddingForm::read(dir.path(), Pooling::Last).map_err(|e| e.to_string())
    }

    const MODULES: &str = r#"[
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}]"#;

    #[test]
    fn a_folder_says_how_its_embeddings_are_made() {
        assert_eq!(read(&[]).unwrap(), EmbeddingForm::new(Pooling::Last));
        let found = read(&[
            ("modules.json", MODULES),
            (
                "1_Pooling/config.json",
                r#"{"word_embedding_dimension": 8, "pooling_mode_cls_token": false,
                    "pooling_mode_mean_tokens": true, "include_prompt": true}"#,
            ),
            ("sentence_bert_config.json", r#"{"max_seq_length": 256, "do_lower_case": false}"#),
            ("config.json", r#"{"matryoshka_dimensions": [4, 8]}"#),
        ]);
        let dimensions = Dimensions::Listed(vec![4, 8]);
        let (pooling, normalize, max_tokens) = (Pooling::Mean, true, Some(256));
        let expected = EmbeddingForm { pooling, normalize, dimensions, max_tokens };
        assert_eq!(found.unwrap(), expected);
        let two = r#"[{"path": "", "type": "a.Transformer"}, {"path": "P", "type": "b.Pooling"}]"#;
        let found =
            read(&[("modules.json", two), ("P/config.json", r#"{"pooling_mode": "lasttoken"}"#)]);
        assert_eq!(
            found.unwrap(),
            EmbeddingForm { normalize: false, ..EmbeddingForm::new(Pooling::Last) }
        );
    }

    #[test]
    fn what_would_make_other_embeddings_is_refused() {
        let pooling = |text| read(&[("modules.json", MODULES), ("1_Pooling/config.json", text)]);
        let module = |text| read(&[("modules.json", text)]);
        for (found, place) in [
            (
                pooling(r#"{"pooling_mode_max_tokens": true}"#),
                "1_Pooling/config.json: pooling_mode",
            ),
            (
                pooling(r#"{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true}"#),
                "pooling_mode_cls_token",
            ),
            (pooling("{}"), "pooling_mode"),
            (pooling("["), "not valid JSON"),
            (module(MODULES), "1_Pooling/config.json: missing"),
            (module(r#"[{"path": "2_Dense", "type": "a.models.Dense"}]"#), "a.models.Dense"),
            (module(r#"[{"path": "../x", "type": "a.Pooling"}]"#), "a folder inside this one"),
            (module("{}"), "expected a list"),
            (read(&[("sentence_bert_config.json", r#"{"do_lower_case": true}"#)]), "do_lower_case"),
            (read(&[("sentence_bert_config.json", r#"{"max_seq_length": 0}"#)]), "max_seq_length"),
            (
                read(&[("config_sentence_transformers.json", r#"{"default_prompt_name": "q"}"#)]),
                "default_prompt_name",
            ),
            (
                read(&[("config.json", r#"{"matryoshka_dimensions": "a"}"#)]),
                "matryoshka_dimensions",
            ),
        ] {
            let error = found.unwrap_err();
            assert!(error.contains(place), "{place}: {error}");
        }
    }

    #[test]
    fn embeddings_are_cut_and_brought_to_length_one() {
        let mut form = EmbeddingForm::new(Pooling::Mean);
        assert_eq!(form.finish(vec![3.0, 4.0], None), [0.6, 0.8]);
        assert_eq!(form.finish(vec![3.0, 4.0], Some(1)), [1.0]);
        assert_eq!(form.finish(vec![0.0, 0.0], None), [0.0, 0.0]);
        form.normalize = false;
        assert_eq!(form.finish(vec![3.0, 4.0, 5.0], Some(2)), [3.0, 4.0]);

        assert_eq!(form.check_dimensions(8, 8), Ok(()));
        assert!(form.check_dimensions(4, 8).unwrap_err().contains("not made"));
        form.dimensions = Dimensions::Any;
        assert!(form.check_dimensions(1, 8).is_ok() && form.check_dimensions(9, 8).is_err());
        form.dimensions = Dimensions::Listed(vec![4, 16]);
        assert!(form.check_dimensions(4, 8).is_ok() && form.check_dimensions(16, 8).is_err());
        assert_eq!(form.check_dimensions(5, 8).unwrap_err(), "one of 4, 16, or 8");
    }
}
