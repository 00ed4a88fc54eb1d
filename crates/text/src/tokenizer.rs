//! The tokenizer: Hugging Face's `tokenizer.json`, or a vocabulary in another form, with the
//! settings around it.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tokenizers::normalizer::Range;
use tokenizers::{
    AddedToken, AddedVocabulary, Model, ModelWrapper, NormalizedString, OffsetType,
    PreTokenizedString, PreTokenizer,
};

use crate::error::{TextError, excerpt};
use crate::template::ChatTemplate;
use crate::unigram::SpeltUnigram;
use crate::vocabulary::{GgufVocabulary, Read, Source};

/// Text to token ids and back.
///
/// A *control token* is one that stands for no text but for a place in the model's protocol:
/// beginning, end, change of speaker. Those are the tokens marked `special` in `tokenizer.json` and
/// the ones the configuration names as beginning, end, padding or unknown. Text from people never
/// becomes a control token: see [`Tokenizer::encode`].
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The added tokens of `inner`, set to read control tokens as plain text.
    plain: AddedVocabulary,
    /// The model of `inner` where it would find pieces in text that are no text.
    spelt: Option<SpeltUnigram>,
    /// Id and text of every control token.
    controls: HashMap<u32, String>,
    /// A control token is matched after normalisation, so text that does not contain its letters
    /// may still become it.
    has_normalized_controls: bool,
    unknown: Option<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
    /// Name and text of the tokens that templates may use (`bos_token` and so on).
    named: Vec<(String, String)>,
    stop_ids: Vec<u32>,
    max_id: u32,
    sha256: String,
}

/// A token of an encoded text and the bytes of the text it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) id: u32,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

const EXPECTED_TOKENIZER: &str = "a Hugging Face tokenizer.json";
const EXPECTED_SOURCE: &str = "a tokenizer: tokenizer.json, tokenizer.model, a .tiktoken file, \
                               vocab.json with merges.txt, or encoder.json with vocab.bpe; hint: \
                               download the model's tokenizer files into this folder";
const EXPECTED_CONFIG: &str = "a JSON object as Hugging Face writes it";

impl Tokenizer {
    /// Loads the tokenizer of a model folder from the first of these that is there:
    ///
    /// 1. `tokenizer.json` (Hugging Face);
    /// 2. `tokenizer.model`, or else the only file named `*.model` or `*.model.vN` (SentencePiece);
    /// 3. the only file named `*.tiktoken` (ranks; only of models known by the file's name; Llama 3
    ///    has its ranks under the name of 2);
    /// 4. `vocab.json` and `merges.txt`, or `encoder.json` and `vocab.bpe` (byte-level pairs);
    /// 5. `original/tokenizer.model`, where Meta puts it.
    ///
    /// `tokenizer_config.json`, `special_tokens_map.json`, `generation_config.json`, `config.json`
    /// and a chat template add the special tokens, whether a beginning token is added, and the ids
    /// that end an answer.
    ///
    /// # Errors
    /// [`TextError::Read`] and [`TextError::Invalid`], naming the file. A broken chat template is
    /// not reported here but by [`ChatTemplate::from_dir`]: the tokenizer works without it.
    pub fn from_dir(dir: &Path) -> Result<Self, TextError> {
        let mut settings = Settings::default();
        let mut class = None;
        for name in ["tokenizer_config.json", "special_tokens_map.json"] {
            if let Some(config) = ConfigFile::read(dir.join(name))? {
                settings.read_tokens(&config)?;
                class =
                    class.or_else(|| Some(config.map.get("tokenizer_class")?.as_str()?.to_owned()));
            }
        }
        for name in ["generation_config.json", "config.json"] {
            if let Some(config) = ConfigFile::read(dir.join(name))? {
                settings.read_ids(&config)?;
            }
        }
        let mut tokenizer = match Source::find(dir)? {
            Some(source) => Self::from_read(source.read(class.as_deref(), settings)?)?,
            None => {
                let path = dir.join("tokenizer.json");
                let bytes = std::fs::read(&path).map_err(|source| TextError::Read {
                    path: path.clone(),
                    expected: EXPECTED_SOURCE,
                    source,
                })?;
                Self::new(&path, &bytes, settings)?
            }
        };
        if let Ok(Some(template)) = ChatTemplate::from_dir(dir)
            && let Some(id) = template.turn_end(&tokenizer)
        {
            tokenizer.add_stop_id(id);
        }
        Ok(tokenizer)
    }

    /// The files of a model folder that [`Tokenizer::from_dir`] takes the vocabulary from; a copy of
    /// the model needs them. Empty when there is none, or no way to choose.
    pub fn source_files(dir: &Path) -> Vec<PathBuf> {
        match Source::find(dir) {
            Ok(Some(source)) => source.files(),
            Ok(None) => vec![dir.join("tokenizer.json")],
            Err(_) => Vec::new(),
        }
    }

    /// The tokenizer in the metadata of the GGUF file `path`, which is named in messages only.
    ///
    /// # Errors
    /// [`TextError::Invalid`]: lists of different lengths, ids out of range, a kind or a
    /// pre-tokenizer that is not known.
    pub fn from_gguf(path: &Path, vocabulary: &GgufVocabulary<'_>) -> Result<Self, TextError> {
        let mut tokenizer = Self::from_read(vocabulary.read(path)?)?;
        if let Some(source) = vocabulary.chat_template
            && let Ok(template) = ChatTemplate::from_source(source)
            && let Some(id) = template.turn_end(&tokenizer)
        {
            tokenizer.add_stop_id(id);
        }
        Ok(tokenizer)
    }

    /// A tokenizer from the content of `tokenizer.json` and, if there is one, of
    /// `tokenizer_config.json`.
    ///
    /// # Errors
    /// [`TextError::Invalid`].
    pub fn from_bytes(
        tokenizer_json: &[u8],
        tokenizer_config: Option<&[u8]>,
    ) -> Result<Self, TextError> {
        let mut settings = Settings::default();
        if let Some(bytes) = tokenizer_config {
            let config = ConfigFile::parse("tokenizer_config.json".into(), bytes)?;
            settings.read_tokens(&config)?;
        }
        Self::new(Path::new("tokenizer.json"), tokenizer_json, settings)
    }

    fn new(path: &Path, bytes: &[u8], settings: Settings) -> Result<Self, TextError> {
        let invalid = |found: String| TextError::Invalid {
            path: path.to_owned(),
            found,
            expected: EXPECTED_TOKENIZER,
        };
        let file: Value = serde_json::from_slice(bytes)
            .map_err(|error| invalid(format!("not JSON ({error})")))?;
        check_model(&file).map_err(invalid)?;
        for part in ["normalizer", "pre_tokenizer", "post_processor", "decoder"] {
            check_patterns(&file[part], part).map_err(invalid)?;
        }
        let mut inner = guarded(|| tokenizers::Tokenizer::from_bytes(bytes))
            .map_err(invalid)?
            .map_err(|error| invalid(format!("it does not load ({error})")))?;
        check_added_ids(&file, &inner).map_err(invalid)?;

        let model = &file["model"];
        let unknown = model["unk_token"]
            .as_str()
            .and_then(|token| inner.token_to_id(token))
            .or_else(|| model["unk_id"].as_u64()?.try_into().ok());

        // Saved by some training scripts; here every id counts and no step is random.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| invalid(error.to_string()))?;
        if let ModelWrapper::BPE(bpe) = inner.get_model()
            && bpe.dropout.is_some()
        {
            let mut bpe = bpe.clone();
            bpe.dropout = None;
            inner.with_model(bpe);
        }
        guarded(|| {
            Self::finish(path, inner, settings, unknown, hex_sha256(bytes), EXPECTED_TOKENIZER)
        })
        .map_err(invalid)?
    }

    /// A tokenizer from a vocabulary in another form.
    fn from_read(read: Read) -> Result<Self, TextError> {
        const EXPECTED: &str = "a whole vocabulary";
        let Read { vocabulary, settings, path, sha256 } = read;
        let unknown = vocabulary.unknown;
        let invalid = |found| TextError::Invalid { path: path.clone(), found, expected: EXPECTED };
        let inner = guarded(|| vocabulary.build()).and_then(|built| built).map_err(invalid)?;
        guarded(|| Self::finish(&path, inner, settings, unknown, sha256, EXPECTED))
            .map_err(invalid)?
    }

    /// Adds what the settings say to what the vocabulary says.
    fn finish(
        path: &Path,
        mut inner: tokenizers::Tokenizer,
        settings: Settings,
        unknown: Option<u32>,
        sha256: String,
        expected: &'static str,
    ) -> Result<Self, TextError> {
        let invalid = |found: String| TextError::Invalid { path: path.to_owned(), found, expected };
        settings.add_missing_tokens(&mut inner)?;

        let id_of = |inner: &tokenizers::Tokenizer, name: &str| match settings.tokens.get(name) {
            None => Ok(None),
            Some(token) => match (inner.token_to_id(token), name) {
                (Some(id), _) => Ok(Some(id)),
                // Nothing here depends on the other ones.
                (None, "bos_token" | "eos_token") => Err(invalid(format!(
                    "it has no token {token:?}, which tokenizer_config.json or \
                     special_tokens_map.json names as {name}"
                ))),
                (None, _) => Ok(None),
            },
        };
        let known = |id: &u32| inner.id_to_token(*id).is_some();
        let mut bos = id_of(&inner, "bos_token")?;
        if bos.is_none() && !settings.knows_tokens {
            bos = settings.bos_id.filter(known);
        }
        let mut stop_ids: Vec<u32> = id_of(&inner, "eos_token")?.into_iter().collect();
        for id in settings.eos_ids.iter().copied() {
            if known(&id) && !stop_ids.contains(&id) {
                stop_ids.push(id);
            }
        }
        let eos = stop_ids.first().copied();

        // Some files forget to mark their own end token as special (Phi-3 does), so that it could
        // be typed by anyone.
        let named_ids = [bos, eos, id_of(&inner, "pad_token")?, id_of(&inner, "unk_token")?];
        let added = inner.get_added_vocabulary().get_added_tokens_decoder();
        let missed: Vec<AddedToken> = named_ids
            .into_iter()
            .flatten()
            .chain(stop_ids.iter().copied().filter(|id| added.contains_key(id)))
            .filter_map(|id| {
                let added = added.get(&id);
                let token = match added {
                    Some(token) => token.clone(),
                    None => AddedToken::from(inner.id_to_token(id)?, true),
                };
                (added.is_none() || !token.special).then(|| token.special(true))
            })
            .collect();
        if !missed.is_empty() {
            inner
                .add_special_tokens(missed)
                .map_err(|error| invalid(format!("its added tokens clash ({error})")))?;
        }

        let added = inner.get_added_vocabulary().get_added_tokens_decoder();
        let special = || added.iter().filter(|(_, token)| token.special);
        let controls: HashMap<u32, String> =
            special().map(|(id, token)| (*id, token.content.clone())).collect();
        let has_normalized_controls =
            inner.get_normalizer().is_some() && special().any(|(_, token)| token.normalized);
        let unknown = id_of(&inner, "unk_token")?.or(unknown);
        let max_id = inner.get_vocab(true).into_values().max().unwrap_or(0);
        let mut plain = inner.get_added_vocabulary().clone();
        plain.set_encode_special_tokens(true);
        let named = settings
            .tokens
            .into_iter()
            .filter(|(_, token)| inner.token_to_id(token).is_some())
            .collect();

        let spelt = match inner.get_model() {
            ModelWrapper::Unigram(model) => {
                SpeltUnigram::new(model, &controls.keys().copied().collect())
            }
            _ => None,
        };
        let mut tokenizer = Self {
            inner,
            plain,
            spelt,
            controls,
            has_normalized_controls,
            unknown,
            bos,
            eos,
            add_bos: false,
            named,
            stop_ids,
            max_id,
            sha256,
        };
        tokenizer.add_bos = bos.is_some()
            && settings.add_bos.unwrap_or_else(|| tokenizer.post_processor_adds_bos());
        Ok(tokenizer)
    }

    /// The whole tokenizer in the form of `tokenizer.json`.
    pub(crate) fn to_json(&self) -> Value {
        self.inner
            .to_string(false)
            .ok()
            .and_then(|json| serde_json::from_str(&json).ok())
            .expect("a tokenizer that was read can be written")
    }

    /// Encodes text from people or data, without any special token. Strings that look like control
    /// tokens become ordinary tokens.
    ///
    /// # Errors
    /// [`TextError::Encode`] when the vocabulary cannot spell the text,
    /// [`TextError::ControlToken`] when it can spell a control token only as itself.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let ids = self.encode_ids(&self.plain, text)?;
        self.refuse_controls(text, &ids)?;
        Ok(ids)
    }

    /// Encodes text written for the model's protocol: control tokens in it are recognised. Nothing
    /// is added. For text from people use [`Tokenizer::encode`].
    ///
    /// # Errors
    /// [`TextError::Encode`].
    pub fn encode_with_specials(&self, text: &str) -> Result<Vec<u32>, TextError> {
        self.encode_ids(self.inner.get_added_vocabulary(), text)
    }

    /// Encodes a raw prompt to be continued, as Hugging Face's tokenizer called on a string does:
    /// the beginning token if this tokenizer adds one and the text does not begin with it, then the
    /// text, in which control tokens are recognised. No end token is added.
    ///
    /// # Errors
    /// [`TextError::Encode`].
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let mut ids = self.encode_with_specials(text)?;
        if let Some(bos) = self.bos.filter(|bos| self.add_bos && ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// Encodes a whole text that is to be embedded: as [`Tokenizer::encode`], with the tokens around it
    /// that Hugging Face's tokenizer puts there when it is called on a string (`[CLS]` and `[SEP]`, or a
    /// beginning or end token).
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_whole(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let ids = self.encode(text)?;
        let encoding = tokenizers::Encoding::from_tokens(
            ids.into_iter().map(|id| tokenizers::Token::new(id, String::new(), (0, 0))).collect(),
            0,
        );
        let around = || Ok(self.inner.post_process(encoding, None, true)?.get_ids().to_vec());
        let mut ids = guarded(around)
            .and_then(|ids| ids.map_err(|error: tokenizers::Error| error.to_string()))
            .map_err(|reason| TextError::Encode { text: excerpt(text), reason })?;
        if let Some(bos) = self.bos {
            match ids.first() == Some(&bos) {
                false if self.add_bos => ids.insert(0, bos),
                // The settings are stronger than the vocabulary's file.
                true if !self.add_bos => _ = ids.remove(0),
                _ => {}
            }
        }
        Ok(ids)
    }

    /// The text of `ids`. Control tokens and ids outside the vocabulary have no text. Bytes that
    /// form no character read as U+FFFD.
    ///
    /// # Errors
    /// [`TextError::Decode`] when the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TextError> {
        let visible: Vec<u32> =
            ids.iter().copied().filter(|id| !self.controls.contains_key(id)).collect();
        guarded(|| self.inner.decode(&visible, false))
            .and_then(|text| text.map_err(|error| error.to_string()))
            .map_err(|reason| TextError::Decode { count: ids.len(), reason })
    }

    /// The token that begins a text, if there is one.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text, if there is one; the first of [`Tokenizer::stop_ids`].
    pub fn eos_id(&self) -> Option<u32> {
        self.eos
    }

    /// Whether a beginning token belongs in front of a raw prompt.
    pub fn add_bos(&self) -> bool {
        self.add_bos
    }

    /// The ids that end an answer: the end token, the ones in `generation_config.json` and
    /// `config.json`, and the one that ends a turn in the folder's chat template.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop_ids
    }

    /// Lets `id` end an answer too; used with [`ChatTemplate::turn_end`] when the template is not
    /// from the tokenizer's folder.
    pub fn add_stop_id(&mut self, id: u32) {
        if !self.stop_ids.contains(&id) {
            self.stop_ids.push(id);
        }
    }

    /// How many tokens there are. Ids may have holes; see [`Tokenizer::max_id`].
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The highest token id.
    pub fn max_id(&self) -> u32 {
        self.max_id
    }

    /// Checks that every id fits a model whose embedding has `rows` rows.
    ///
    /// # Errors
    /// [`TextError::VocabTooLarge`].
    pub fn check_vocab(&self, rows: usize) -> Result<(), TextError> {
        if (self.max_id as usize) < rows {
            return Ok(());
        }
        Err(TextError::VocabTooLarge {
            id: self.max_id,
            token: self.token(self.max_id).unwrap_or_default(),
            last: rows.saturating_sub(1),
        })
    }

    /// The token with this id as the vocabulary spells it (`Ġthe`, `▁the`, `<0x0A>`).
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token as the vocabulary spells it.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The bytes that each id stands for in the middle of a text, by id: those of its name for a
    /// control token, none for an id that the vocabulary lacks. A token may be part of a character.
    ///
    /// # Errors
    /// [`TextError::Grammar`] when the vocabulary spells its tokens in no way that is known.
    pub fn token_bytes(&self) -> Result<Vec<Vec<u8>>, TextError> {
        let error = |e: &dyn std::fmt::Display| TextError::Grammar { reason: e.to_string() };
        let json = self.inner.to_string(false).map_err(|e| error(&e))?;
        let json: Value = serde_json::from_str(&json).map_err(|e| error(&e))?;
        let bytes = catch_unwind(|| llguidance::token_bytes_from_tokenizer_json(&json))
            .map_err(|_| error(&"the vocabulary's spelling is not understood"))?;
        let mut bytes = bytes.map_err(|e| error(&e))?;
        for (&id, text) in &self.controls {
            if let Some(bytes) = bytes.get_mut(id as usize) {
                *bytes = text.clone().into_bytes();
            }
        }
        Ok(bytes)
    }

    /// Every control token.
    pub(crate) fn control_ids(&self) -> impl Iterator<Item = u32> {
        self.controls.keys().copied()
    }

    /// Whether `id` is a control token.
    pub fn is_control(&self, id: u32) -> bool {
        self.controls.contains_key(&id)
    }

    /// SHA-256 of the file that the tokenizer was read from, or of its vocabulary in a GGUF file;
    /// 64 lower-case hexadecimal digits.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Names and texts of the special tokens that templates may use, such as `eos_token`.
    pub(crate) fn named_tokens(&self) -> &[(String, String)] {
        &self.named
    }

    /// The texts of all control tokens.
    pub(crate) fn control_texts(&self) -> impl Iterator<Item = &str> {
        self.controls.values().map(String::as_str)
    }

    /// Whether text without the letters of a control token could still become one.
    pub(crate) fn has_normalized_controls(&self) -> bool {
        self.has_normalized_controls
    }

    /// Whether `id` takes part in decoding.
    pub(crate) fn has_text(&self, id: u32) -> bool {
        !self.is_control(id) && self.inner.id_to_token(id).is_some()
    }

    /// Whether `id` is a byte that a byte-fallback vocabulary spells out, such as `<0xE2>`.
    pub(crate) fn is_byte_token(&self, id: u32) -> bool {
        let token = self.inner.id_to_token(id).unwrap_or_default();
        token
            .strip_prefix("<0x")
            .and_then(|rest| rest.strip_suffix('>'))
            .is_some_and(|digits| digits.len() == 2)
    }

    /// Encodes the output of a chat template: control tokens are recognised, except where
    /// `sentinel`, a character that is otherwise not in the text, breaks them up; the sentinel
    /// itself leaves no trace in the ids. At each of the ascending byte positions `cuts` the ids so
    /// far are those of the text so far encoded alone.
    pub(crate) fn encode_rendered(
        &self,
        text: &str,
        sentinel: Option<char>,
        cuts: &[usize],
    ) -> Result<Vec<Piece>, TextError> {
        let adapt = |part: NormalizedString| {
            let mut part = part;
            if let Some(sentinel) = sentinel {
                part.filter(|character| character != sentinel);
            }
            self.cut(part, cuts)
        };
        guarded(|| self.encode_adapted(text, adapt))
            .and_then(|pieces| pieces.map_err(|error| error.to_string()))
            .map_err(|reason| TextError::Encode { text: excerpt(text), reason })
    }

    /// Refuses ids that contain a control token other than the unknown one, which is no forgery.
    pub(crate) fn refuse_controls(&self, text: &str, ids: &[u32]) -> Result<(), TextError> {
        match ids.iter().find(|id| Some(**id) != self.unknown && self.is_control(**id)) {
            None => Ok(()),
            Some(id) => Err(TextError::ControlToken {
                text: excerpt(text),
                token: self.controls[id].clone(),
            }),
        }
    }

    fn encode_adapted(
        &self,
        text: &str,
        mut adapt: impl FnMut(NormalizedString) -> tokenizers::Result<Vec<NormalizedString>>,
    ) -> tokenizers::Result<Vec<Piece>> {
        let added = self.inner.get_added_vocabulary();
        let mut parts = added.extract_and_normalize(self.inner.get_normalizer(), text);
        parts.split(|_, part| adapt(part))?;
        let encoding = self.tokenize(&mut parts, OffsetType::Byte)?;
        let pieces = encoding.get_ids().iter().zip(encoding.get_offsets());
        Ok(pieces.map(|(&id, &(start, end))| Piece { id, start, end }).collect())
    }

    fn encode_ids(&self, added: &AddedVocabulary, text: &str) -> Result<Vec<u32>, TextError> {
        let ids = || {
            let mut parts = added.extract_and_normalize(self.inner.get_normalizer(), text);
            let encoding = self.tokenize(&mut parts, OffsetType::None)?;
            Ok(encoding.get_ids().to_vec())
        };
        guarded(ids)
            .and_then(|ids| ids.map_err(|error: tokenizers::Error| error.to_string()))
            .map_err(|reason| TextError::Encode { text: excerpt(text), reason })
    }

    /// The rest of the way from normalised text to ids; the parts become ids independently.
    fn tokenize(
        &self,
        parts: &mut PreTokenizedString,
        offsets: OffsetType,
    ) -> tokenizers::Result<tokenizers::Encoding> {
        if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(parts)?;
        }
        let model = self.inner.get_model();
        parts.tokenize(|part| match &self.spelt {
            Some(spelt) => spelt.tokenize(part.get()),
            None => model.tokenize(part.get()),
        })?;
        std::mem::replace(parts, PreTokenizedString::from("")).into_encoding(None, 0, offsets)
    }

    /// Cuts `part` where it must be cut so that the ids before each position do not depend on the
    /// text after it. Nearly always they do not, and the part stays whole, as in Hugging Face's
    /// encoding.
    fn cut(
        &self,
        part: NormalizedString,
        cuts: &[usize],
    ) -> tokenizers::Result<Vec<NormalizedString>> {
        let mut done = Vec::new();
        let mut rest = part;
        for &cut in cuts {
            let (start, end) = rest.offsets_original();
            if cut <= start || end <= cut {
                continue;
            }
            let head = rest.slice(Range::Original(..cut - start));
            let tail = rest.slice(Range::Original(cut - start..));
            let (Some(head), Some(tail)) = (head, tail) else { continue };
            // A normaliser may have joined characters across the position.
            if head.len() + tail.len() != rest.len() || head.is_empty() {
                continue;
            }
            let ids = |part: &NormalizedString| {
                self.tokenize(&mut part.clone().into(), OffsetType::None)
                    .map(|encoding| encoding.get_ids().to_vec())
            };
            if !ids(&rest)?.starts_with(&ids(&head)?) {
                done.push(head);
                rest = tail;
            }
        }
        done.push(rest);
        Ok(done)
    }

    fn post_processor_adds_bos(&self) -> bool {
        self.inner
            .encode_fast("", true)
            .is_ok_and(|encoding| encoding.get_ids().first().copied() == self.bos)
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("bos", &self.bos)
            .field("stop_ids", &self.stop_ids)
            .field("add_bos", &self.add_bos)
            .field("sha256", &self.sha256)
            .finish_non_exhaustive()
    }
}

/// What the files around `tokenizer.json` say; earlier files win over later ones.
#[derive(Default)]
pub(crate) struct Settings {
    /// `bos_token` and so on.
    pub(crate) tokens: HashMap<String, String>,
    /// Some file names tokens, so a missing `bos_token` means that there is none.
    pub(crate) knows_tokens: bool,
    pub(crate) add_bos: Option<bool>,
    pub(crate) bos_id: Option<u32>,
    pub(crate) eos_ids: Vec<u32>,
    /// Tokens that the configuration adds to the vocabulary, with the file that says so.
    pub(crate) added: Vec<(u32, AddedToken)>,
    pub(crate) added_path: PathBuf,
}

impl Settings {
    /// Gives a token one of the names that templates use, unless that is taken.
    pub(crate) fn name_token(&mut self, name: &str, token: &str) {
        self.tokens.entry(name.to_owned()).or_insert_with(|| token.to_owned());
    }

    fn read_tokens(&mut self, config: &ConfigFile) -> Result<(), TextError> {
        self.knows_tokens = true;
        for name in ["bos_token", "eos_token", "unk_token", "pad_token"] {
            if let Some(token) = config.token(name)? {
                self.tokens.entry(name.to_owned()).or_insert(token);
            }
        }
        self.add_bos = match config.map.get("add_bos_token") {
            None | Some(Value::Null) => self.add_bos,
            Some(Value::Bool(add)) => Some(*add),
            Some(other) => return Err(config.wrong("add_bos_token", other, "true or false")),
        };
        if let Some(Value::Object(added)) = config.map.get("added_tokens_decoder") {
            self.added_path.clone_from(&config.path);
            for (id, token) in added {
                let parsed = id.parse::<u32>().ok().zip(serde_json::from_value(token.clone()).ok());
                let Some(entry) = parsed else {
                    let name = format!("added_tokens_decoder.{id}");
                    return Err(config.wrong(&name, token, "an added token"));
                };
                self.added.push(entry);
            }
            self.added.sort_by_key(|(id, _)| *id);
        }
        Ok(())
    }

    fn read_ids(&mut self, config: &ConfigFile) -> Result<(), TextError> {
        self.bos_id = self.bos_id.or(config.ids("bos_token_id")?.first().copied());
        self.eos_ids.extend(config.ids("eos_token_id")?);
        Ok(())
    }

    /// Adds the tokens of `added_tokens_decoder` that `tokenizer.json` lacks, as Hugging Face does.
    fn add_missing_tokens(&self, inner: &mut tokenizers::Tokenizer) -> Result<(), TextError> {
        for (id, token) in &self.added {
            if inner.token_to_id(&token.content).is_none() {
                // A clash of two tokens shows in the id.
                let _ = inner.add_tokens([token.clone()]);
                let got = inner.token_to_id(&token.content);
                if got != Some(*id) {
                    return Err(TextError::Invalid {
                        path: self.added_path.clone(),
                        found: format!(
                            "added_tokens_decoder gives {:?} the id {id}, but the next free id in \
                             tokenizer.json is {got:?}",
                            token.content
                        ),
                        expected: "added tokens that continue the vocabulary",
                    });
                }
            }
        }
        Ok(())
    }
}

/// A JSON object from a file beside the tokenizer.
pub(crate) struct ConfigFile {
    pub(crate) path: PathBuf,
    pub(crate) map: Map<String, Value>,
}

impl ConfigFile {
    /// Reads the file; `None` when there is none.
    pub(crate) fn read(path: PathBuf) -> Result<Option<Self>, TextError> {
        match std::fs::read(&path) {
            Ok(bytes) => Self::parse(path, &bytes).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(TextError::Read { path, expected: EXPECTED_CONFIG, source }),
        }
    }

    fn parse(path: PathBuf, bytes: &[u8]) -> Result<Self, TextError> {
        match serde_json::from_slice(bytes) {
            Ok(map) => Ok(Self { path, map }),
            Err(error) => Err(TextError::Invalid {
                path,
                found: error.to_string(),
                expected: EXPECTED_CONFIG,
            }),
        }
    }

    pub(crate) fn wrong(&self, name: &str, found: &Value, wanted: &str) -> TextError {
        TextError::Invalid {
            path: self.path.clone(),
            found: format!("{name} is {}, not {wanted}", excerpt(&found.to_string())),
            expected: EXPECTED_CONFIG,
        }
    }

    /// A token given as a string or as an object with `content`.
    fn token(&self, name: &str) -> Result<Option<String>, TextError> {
        match self.map.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(token)) => Ok(Some(token.clone())),
            Some(other) => match other.get("content").and_then(Value::as_str) {
                Some(token) => Ok(Some(token.to_owned())),
                None => Err(self.wrong(name, other, "a token")),
            },
        }
    }

    /// An id or a list of ids.
    fn ids(&self, name: &str) -> Result<Vec<u32>, TextError> {
        let items = match self.map.get(name) {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(Value::Array(items)) => items.as_slice(),
            Some(single) => std::slice::from_ref(single),
        };
        let id = |item: &Value| item.as_u64().and_then(|id| u32::try_from(id).ok());
        items
            .iter()
            .map(|item| id(item).ok_or_else(|| self.wrong(name, item, "a token id")))
            .collect()
    }
}

/// Checks what the tokenizers library takes for granted: ids are unique, and every merge joins two
/// tokens of the vocabulary to a third.
fn check_model(file: &Value) -> Result<(), String> {
    let model = file.get("model").and_then(Value::as_object).ok_or("it has no object `model`")?;
    let Some(vocab) = model.get("vocab").and_then(Value::as_object) else {
        // Unigram vocabularies are lists; the ids are the positions.
        return match model.get("vocab") {
            Some(Value::Array(_)) => Ok(()),
            _ => Err("it has no `model.vocab`".into()),
        };
    };
    let mut owners = HashMap::with_capacity(vocab.len());
    for (token, id) in vocab {
        let id = id
            .as_u64()
            .and_then(|id| u32::try_from(id).ok())
            .ok_or_else(|| format!("model.vocab gives {token:?} the id {id}"))?;
        if let Some(other) = owners.insert(id, token) {
            return Err(format!("model.vocab gives {other:?} and {token:?} the same id {id}"));
        }
    }
    let prefix = model.get("continuing_subword_prefix").and_then(Value::as_str).unwrap_or_default();
    let merges = model.get("merges").and_then(Value::as_array);
    for (index, merge) in merges.into_iter().flatten().enumerate() {
        let pair = match merge {
            Value::String(line) if line.starts_with("#version") => continue,
            Value::String(line) => line.split_once(' '),
            Value::Array(pair) => match pair.as_slice() {
                [Value::String(left), Value::String(right)] => {
                    Some((left.as_str(), right.as_str()))
                }
                _ => None,
            },
            _ => None,
        };
        let Some((left, right)) = pair else {
            return Err(format!("model.merges[{index}] is {merge}, not a pair of tokens"));
        };
        let unknown = [left, right].into_iter().find(|token| !vocab.contains_key(*token));
        if let Some(token) = unknown {
            return Err(format!(
                "model.merges[{index}] names {token:?}, which is not in the vocabulary"
            ));
        }
        let joined = right.get(prefix.len()..).map(|right| format!("{left}{right}"));
        if !joined.is_some_and(|joined| vocab.contains_key(&joined)) {
            return Err(format!(
                "model.merges[{index}] joins {left:?} and {right:?} to a token that is not in the \
                 vocabulary"
            ));
        }
    }
    Ok(())
}

/// Runs a step of the tokenizers library. The checks of this file cover every way known to us in
/// which that library panics on a bad file; it reads what strangers send, so a new one must still be
/// an error and not an end. What a step that panicked has touched is not used again.
fn guarded<T>(step: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(step)).map_err(|panic| {
        let words = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied());
        format!("the tokenizers library panicked ({})", excerpt(words.unwrap_or("no message")))
    })
}

/// An empty pattern is found everywhere, which the library's replacing and splitting do not survive.
fn check_patterns(part: &Value, place: &str) -> Result<(), String> {
    match part {
        Value::Object(fields) => fields.iter().try_for_each(|(name, value)| {
            let place = format!("{place}.{name}");
            let empty = |kind: &str| value[kind].as_str().is_some_and(str::is_empty);
            if name == "pattern" && (empty("String") || empty("Regex")) {
                return Err(format!("{place} is empty"));
            }
            check_patterns(value, &place)
        }),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .try_for_each(|(index, item)| check_patterns(item, &format!("{place}[{index}]"))),
        _ => Ok(()),
    }
}

/// The library numbers added tokens itself; a file that numbers them otherwise would be read with
/// every embedding after the gap off by one.
fn check_added_ids(file: &Value, inner: &tokenizers::Tokenizer) -> Result<(), String> {
    let mut seen = HashSet::new();
    for token in file["added_tokens"].as_array().into_iter().flatten() {
        let (Some(content), Some(id)) = (token["content"].as_str(), token["id"].as_u64()) else {
            continue;
        };
        let got = inner.token_to_id(content);
        if got.map(u64::from) != Some(id) {
            return Err(format!(
                "added token {content:?} has the id {id}, but the vocabulary before it makes it {}",
                got.map_or("unknown".into(), |got| got.to_string())
            ));
        }
        if !seen.insert(id) {
            return Err(format!("two added tokens have the id {id}"));
        }
    }
    Ok(())
}

/// SHA-256 as 64 lower-case hexadecimal digits.
pub(crate) fn hex_sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
