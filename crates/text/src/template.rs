//! Chat templates: the one way from a conversation to token ids and a loss mask.

use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Serde, Value as JinjaValue};
use serde_json::{Value, json};

use crate::answer::AnswerFormat;
use crate::conversation::{Conversation, Message, ROLES};
use crate::error::{TextError, excerpt};
use crate::jinja::{Jinja, on_deep_stack};
use crate::mask::{Turn, loss_mask};
use crate::tokenizer::{ConfigFile, Tokenizer, hex_sha256};

/// A chat template in Hugging Face's Jinja dialect.
///
/// Cloning is cheap.
#[derive(Clone)]
pub struct ChatTemplate {
    compiled: Arc<Compiled>,
    /// What `strftime_now` tells, in seconds since 1970; the present when `None`.
    clock: Option<u64>,
}

struct Compiled {
    source: String,
    sha256: String,
    jinja: Jinja,
}

/// A conversation as the model sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The token ids, T of them.
    pub ids: Vec<u32>,
    /// For each id whether it is learnt in training, T of them: the assistant's answers that are
    /// to be learnt, each with its end-of-turn token. All false when a generation prompt was asked
    /// for.
    pub mask: Vec<bool>,
    /// What the template wrote.
    pub text: String,
}

/// See [`ChatTemplate::plain`].
const PLAIN: &str = r#"{%- if bos_token is defined and (add_bos_token is not defined or add_bos_token) -%}
    {{- bos_token -}}
{%- endif -%}
{%- for message in messages -%}
    {{- message['role'] | capitalize ~ ':\n' ~ message['content'] | trim -}}
    {%- if message['role'] == 'assistant' and eos_token is defined -%}
        {{- eos_token -}}
    {%- endif -%}
    {{- '\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- 'Assistant:\n' -}}
{%- endif -%}
"#;

impl ChatTemplate {
    /// The template of a model folder: `chat_template.jinja`, or else `chat_template` in
    /// `tokenizer_config.json`, which may be a list with one named `default`. `None` when the
    /// folder has neither.
    ///
    /// # Errors
    /// [`TextError::Read`], [`TextError::Invalid`] and [`TextError::TemplateSyntax`].
    pub fn from_dir(dir: &Path) -> Result<Option<Self>, TextError> {
        let path = dir.join("chat_template.jinja");
        match std::fs::read_to_string(&path) {
            Ok(source) => return Self::from_source(source).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(TextError::Read { path, expected: "a chat template in UTF-8", source });
            }
        }
        let Some(config) = ConfigFile::read(dir.join("tokenizer_config.json"))? else {
            return Ok(None);
        };
        match source_in(&config)? {
            Some(source) => Self::from_source(source).map(Some),
            None => Ok(None),
        }
    }

    /// A template from its source.
    ///
    /// # Errors
    /// [`TextError::TemplateSyntax`].
    pub fn from_source(source: impl Into<String>) -> Result<Self, TextError> {
        let source = source.into();
        let jinja = on_deep_stack(|| Jinja::compile(&source))??;
        let sha256 = hex_sha256(source.as_bytes());
        Ok(Self { compiled: Arc::new(Compiled { source, sha256, jinja }), clock: None })
    }

    /// The template for a base model that comes without one:
    ///
    /// ```text
    /// System:
    /// You are terse.
    /// User:
    /// Hello!
    /// Assistant:
    /// Hi.</s>
    /// ```
    ///
    /// The end token is the tokenizer's own; its beginning token comes first where the tokenizer
    /// adds one. Every content is trimmed and begins a line, so that the first token of an answer
    /// does not depend on what is before it.
    pub fn plain() -> Self {
        Self::from_source(PLAIN).expect("the template in this file compiles")
    }

    /// The same template with its clock stopped: templates that write today's date then write the
    /// same ids on every day, which a resumed training run relies on.
    #[must_use]
    pub fn at(mut self, unix_seconds: u64) -> Self {
        self.clock = Some(unix_seconds);
        self
    }

    /// The template's source, as it was read.
    pub fn source(&self) -> &str {
        &self.compiled.source
    }

    /// SHA-256 of the source, 64 lower-case hexadecimal digits.
    pub fn sha256(&self) -> &str {
        &self.compiled.sha256
    }

    /// Renders a conversation to token ids and says which of them are learnt.
    ///
    /// * Only the template writes control tokens: strings that look like them in a message become
    ///   ordinary tokens.
    /// * The same holds for the descriptions of tools.
    /// * A system message, a tool call or a tool's answer that the template leaves out is an error,
    ///   not a silent loss.
    /// * Nothing is added to what the template writes, in particular no beginning token.
    /// * The mask comes from where the template puts the answers, not from searching the text: an
    ///   answer begins where the generation prompt for it ends, and its end-of-turn token is learnt
    ///   with it. What the assistant calls is part of its answer.
    /// * Of a turn that is not to be learnt ([`Message::is_learnt`]) nothing is, its end-of-turn
    ///   token neither.
    /// * The ids up to an answer are exactly the ids of the prompt for it, so the model is asked in
    ///   use what it was asked in training.
    ///
    /// With `add_generation_prompt` the result is a prompt for the next answer and nothing in it is
    /// learnt.
    ///
    /// # Errors
    /// The template's failures and refusals, [`TextError::Dropped`], [`TextError::DroppedCall`],
    /// [`TextError::Role`], [`TextError::DoubleBos`], [`TextError::ControlToken`],
    /// [`TextError::Encode`]; without `add_generation_prompt` also
    /// [`TextError::NoMask`].
    pub fn render(
        &self,
        tokenizer: &Tokenizer,
        conversation: &Conversation,
        add_generation_prompt: bool,
    ) -> Result<Rendered, TextError> {
        on_deep_stack(|| self.render_here(tokenizer, conversation, add_generation_prompt))?
    }

    /// The control token that this template writes behind an answer, if it writes one: the token
    /// at which generation must stop.
    pub fn turn_end(&self, tokenizer: &Tokenizer) -> Option<u32> {
        on_deep_stack(|| self.turn_end_here(tokenizer)).ok()?
    }

    /// Whether this template writes what tools there are; many do not, and a model that is not told
    /// of a tool does not call it.
    pub fn writes_tools(&self, tokenizer: &Tokenizer) -> bool {
        on_deep_stack(|| {
            let tool = json!({"type": "function", "function": {"name": "f", "description": "d",
                "parameters": {"type": "object", "properties": {}}}});
            let messages = vec![Message::new("user", "a")];
            let conversation = Conversation::new(messages).with_tools(vec![tool]);
            let mut writer = Writer::new(self, tokenizer, &conversation).ok()?;
            let with = writer.write(&writer.messages, true).ok()?;
            writer.tools.clear();
            Some(with != writer.write(&writer.messages, true).ok()?)
        })
        .is_ok_and(|differs| differs == Some(true))
    }

    /// How to read the model's answers to a prompt that this template rendered as `prompt`
    /// ([`Rendered::text`]); tools are looked for only if the conversation has any.
    pub fn answer_format(&self, prompt: &str, tools: bool) -> AnswerFormat {
        AnswerFormat::new(self.source(), prompt, tools)
    }

    /// The tokens that end an answer: the tokenizer's stop tokens, and this template's end of a
    /// turn where it is another (a plain template's need not be known to the model's folder).
    pub fn stop_ids(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        let mut ids = tokenizer.stop_ids().to_vec();
        ids.extend(self.turn_end(tokenizer).filter(|id| !ids.contains(id)));
        ids
    }

    /// What the template writes for `messages`, without asking which of it is learnt.
    pub(crate) fn text(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, TextError> {
        on_deep_stack(|| {
            let writer = Writer::new(self, tokenizer, &Conversation::new(messages.to_vec()))?;
            Ok(writer.clean(writer.write(&writer.messages, add_generation_prompt)?))
        })?
    }

    fn render_here(
        &self,
        tokenizer: &Tokenizer,
        conversation: &Conversation,
        add_generation_prompt: bool,
    ) -> Result<Rendered, TextError> {
        let writer = Writer::new(self, tokenizer, conversation)?;
        let text = writer.write(&writer.messages, add_generation_prompt)?;
        writer.refuse_dropped_calls(add_generation_prompt)?;
        let turns = if add_generation_prompt { Vec::new() } else { writer.turns(&text)? };
        writer.refuse_dropped(add_generation_prompt)?;
        // Answers that are not learnt are given, as in a prompt.
        let given = |index: &usize| add_generation_prompt || !writer.messages[*index].is_learnt();
        let mut cuts = writer.starts(&text, writer.answers().filter(given));
        cuts.extend(turns.iter().map(|turn| turn.start));
        cuts.sort_unstable();
        cuts.dedup();
        let pieces = tokenizer.encode_rendered(&text, writer.sentinel, &cuts)?;
        let ids: Vec<u32> = pieces.iter().map(|piece| piece.id).collect();
        if let (Some(bos), [first, second, ..]) = (tokenizer.bos_id(), ids.as_slice())
            && (*first, *second) == (bos, bos)
        {
            return Err(TextError::DoubleBos { token: tokenizer.token(bos).unwrap_or_default() });
        }
        let turn_end = if turns.is_empty() { None } else { self.turn_end_here(tokenizer) };
        let mask = loss_mask(tokenizer, &text, &pieces, &turns, turn_end);
        Ok(Rendered { ids, mask, text: writer.clean(text) })
    }

    fn turn_end_here(&self, tokenizer: &Tokenizer) -> Option<u32> {
        let messages = vec![Message::new("user", "a"), Message::new("assistant", "b")];
        let writer = Writer::new(self, tokenizer, &Conversation::new(messages)).ok()?;
        let (_, after) = writer.around_answer(1).ok()?;
        let pieces = tokenizer.encode_rendered(&after, None, &[]).ok()?;
        pieces
            .iter()
            .find(|piece| {
                tokenizer.is_control(piece.id) || !after[piece.start..piece.end].trim().is_empty()
            })
            .map(|piece| piece.id)
            .filter(|id| tokenizer.is_control(*id))
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("ChatTemplate")
            .field("source", &excerpt(self.source()))
            .field("sha256", &self.sha256())
            .field("clock", &self.clock)
            .finish()
    }
}

/// Writes one conversation with one template, several times over to see where its parts end up.
struct Writer<'a> {
    template: &'a ChatTemplate,
    tokenizer: &'a Tokenizer,
    /// The messages, with the sentinel inside everything that looks like a control token.
    messages: Vec<Message>,
    /// The tools, likewise.
    tools: Vec<Value>,
    sentinel: Option<char>,
    /// A character that nothing else contains, to stand for an answer.
    mark: char,
    now: u64,
}

impl<'a> Writer<'a> {
    fn new(
        template: &'a ChatTemplate,
        tokenizer: &'a Tokenizer,
        conversation: &Conversation,
    ) -> Result<Self, TextError> {
        let messages = &conversation.messages;
        for (index, message) in messages.iter().enumerate() {
            if !ROLES.contains(&message.role.as_str()) {
                return Err(TextError::Role { index, role: message.role.clone() });
            }
        }
        let is_free = |character: &char| {
            !template.source().contains(*character)
                && !messages.iter().any(|message| occurs_in(message, *character))
                && !conversation.tools.iter().any(|tool| contains(tool, *character))
        };
        // Plane 15 is for private use: 65,534 characters, nearly always all free.
        let mut free = ('\u{F0000}'..='\u{FFFFD}').filter(is_free);
        let (Some(sentinel), Some(mark)) = (free.next(), free.next()) else {
            return Err(TextError::TemplateFailed {
                reason: "the conversation uses every private-use character".into(),
            });
        };
        let mut writer = Self {
            template,
            tokenizer,
            messages: messages.clone(),
            tools: conversation.tools.clone(),
            sentinel: None,
            mark,
            now: template.clock.unwrap_or_else(present),
        };
        for message in &mut writer.messages {
            message.tool_calls.iter_mut().for_each(read_arguments);
            if break_controls_in_message(tokenizer, message, sentinel)? {
                writer.sentinel = Some(sentinel);
            }
        }
        for tool in &mut writer.tools {
            if break_controls_in(tokenizer, tool, sentinel)? {
                writer.sentinel = Some(sentinel);
            }
        }
        Ok(writer)
    }

    /// The text for `messages`, sentinels included.
    fn write(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, TextError> {
        let named = self.tokenizer.named_tokens().iter();
        let variables = named
            .map(|(name, token)| (name.clone(), JinjaValue::from(token.as_str())))
            .chain([("add_bos_token".to_owned(), self.tokenizer.add_bos().into())])
            .chain(
                (!self.tools.is_empty())
                    .then(|| ("tools".to_owned(), JinjaValue::from(Serde(&self.tools)))),
            );
        self.template.compiled.jinja.render(messages, add_generation_prompt, variables, self.now)
    }

    /// Refuses to lose what instructs the model and what tools answer it.
    fn refuse_dropped(&self, add_generation_prompt: bool) -> Result<(), TextError> {
        for (index, message) in self.messages.iter().enumerate() {
            let is_talk = ["user", "assistant"].contains(&message.role.as_str());
            if is_talk || message.content.trim().is_empty() {
                continue;
            }
            let marked = |message: &mut Message| message.content = self.mark.to_string();
            if self.loses(index, add_generation_prompt, marked)? {
                return Err(TextError::Dropped { index, role: message.role.clone() });
            }
        }
        Ok(())
    }

    /// Refuses to lose what the model calls, and what it is to learn to say beside it.
    fn refuse_dropped_calls(&self, add_generation_prompt: bool) -> Result<(), TextError> {
        for (index, message) in self.messages.iter().enumerate() {
            for call in 0..message.tool_calls.len() {
                let marked = |message: &mut Message| {
                    let name = message.tool_calls[call].pointer_mut("/function/name");
                    name.into_iter().for_each(|name| *name = self.mark.to_string().into());
                };
                if self.loses(index, add_generation_prompt, marked)? {
                    return Err(TextError::DroppedCall { index, part: "the tool calls" });
                }
            }
            let taught = !add_generation_prompt && message.is_learnt();
            let beside = !message.tool_calls.is_empty() && !message.content.trim().is_empty();
            let marked = |message: &mut Message| message.content = self.mark.to_string();
            if taught && beside && self.loses(index, add_generation_prompt, marked)? {
                let part = "the text beside the tool calls";
                return Err(TextError::DroppedCall { index, part });
            }
        }
        Ok(())
    }

    /// Whether the template writes nothing of the mark that `change` puts into message `index`.
    fn loses(
        &self,
        index: usize,
        add_generation_prompt: bool,
        change: impl FnOnce(&mut Message),
    ) -> Result<bool, TextError> {
        let mut messages = self.messages.clone();
        change(&mut messages[index]);
        Ok(!self.write(&messages, add_generation_prompt)?.contains(self.mark))
    }

    fn clean(&self, mut text: String) -> String {
        if let Some(sentinel) = self.sentinel {
            text.retain(|character| character != sentinel);
        }
        text
    }

    fn answers(&self) -> impl Iterator<Item = usize> {
        let is_answer = |index: &usize| self.messages[*index].role == "assistant";
        (0..self.messages.len()).filter(is_answer)
    }

    /// Where each answer to learn stands in `text`, the whole conversation.
    fn turns(&self, text: &str) -> Result<Vec<Turn>, TextError> {
        let learnt = self.answers().filter(|&index| self.messages[index].is_learnt());
        learnt.map(|index| self.turn(text, index)).collect()
    }

    fn turn(&self, text: &str, index: usize) -> Result<Turn, TextError> {
        let no_mask = |found: String| TextError::NoMask { turn: index, found };
        let calls = !self.messages[index].tool_calls.is_empty();
        let (before, end) = match calls {
            true => (None, self.end_of_calls(text, index)?),
            false => self.end_of_answer(text, index).map(|(before, end)| (Some(before), end))?,
        };
        let prompt = match (self.write(&self.messages[..index], true), before) {
            (Ok(prompt), _) => prompt,
            // Many templates look at the first message, which a prompt for it does not have.
            (Err(_), Some(before)) if index == 0 => before,
            (Err(error), _) => return Err(error),
        };
        if !text.starts_with(&prompt) {
            let same = common_prefix(text, &prompt);
            return Err(no_mask(format!(
                "after {same} equal bytes, the prompt for it goes on with {:?} but the training text \
                 with {:?}",
                self.clean(excerpt(&prompt[same..])),
                self.clean(excerpt(&text[same..])),
            )));
        }
        let start = prompt.len();
        if end < start {
            return Err(no_mask("the template puts the answer into the prompt for it".into()));
        }
        // Templates may drop the beginning of an answer (earlier thoughts), but if the end is not
        // where it should be, something stands there that depends on the answer.
        let last_word = self.messages[index].content.split_whitespace().last();
        let ends = text[start..end].trim_end().ends_with(last_word.unwrap_or_default());
        if !calls && !ends {
            return Err(no_mask(DEPENDS.into()));
        }
        Ok(Turn { start, end })
    }

    /// What stands before answer `index`, and where in `text` it ends: where everything begins
    /// that is the same whatever the answer is.
    fn end_of_answer(&self, text: &str, index: usize) -> Result<(String, usize), TextError> {
        let (before, after) = self.around_answer(index)?;
        match text.strip_suffix(after.as_str()) {
            Some(rest) => Ok((before, rest.len())),
            None => Err(TextError::NoMask { turn: index, found: DEPENDS.into() }),
        }
    }

    /// Where in `text` the answer `index`, which calls tools, ends. What templates write around
    /// calls depends on the calls, so there is no fixed text behind them to look for; but the
    /// conversation up to this turn ends with the control token that closes it, and no message can
    /// hold that. It is the first of its kind behind the name of the last call.
    fn end_of_calls(&self, text: &str, index: usize) -> Result<usize, TextError> {
        let no_mask = |found: &str| TextError::NoMask { turn: index, found: found.into() };
        let mut messages = self.messages.clone();
        let last = messages[index].tool_calls.last_mut();
        if let Some(name) = last.and_then(|call| call.pointer_mut("/function/name")) {
            *name = self.mark.to_string().into();
        }
        let marked = self.write(&messages, false)?;
        let before = marked.split(self.mark).next().unwrap_or_default();
        if !text.starts_with(before) {
            return Err(no_mask("what the template writes before a tool call depends on the call"));
        }
        let until = self.write(&self.messages[..=index], false)?;
        let until = until.trim_end();
        let closing = self.tokenizer.control_texts().filter(|control| until.ends_with(control));
        let Some(close) = closing.max_by_key(|control| control.len()) else {
            return Err(no_mask("the template closes the tool calls without a control token"));
        };
        match text[before.len()..].find(close) {
            Some(at) => Ok(before.len() + at),
            None => Err(no_mask("the template closes the tool calls otherwise in later turns")),
        }
    }

    /// Where answers that are not learnt begin, as far as that can be told; they need no mask.
    fn starts(&self, text: &str, answers: impl Iterator<Item = usize>) -> Vec<usize> {
        answers
            .filter_map(|index| self.write(&self.messages[..index], true).ok())
            .filter(|prompt| text.starts_with(prompt.as_str()))
            .map(|prompt| prompt.len())
            .collect()
    }

    /// What the template writes before and behind answer `index` in the whole conversation.
    fn around_answer(&self, index: usize) -> Result<(String, String), TextError> {
        let mut messages = self.messages.clone();
        messages[index].content = self.mark.to_string();
        let text = self.write(&messages, false)?;
        match text.split(self.mark).collect::<Vec<_>>().as_slice() {
            [before, after] => Ok(((*before).to_owned(), (*after).to_owned())),
            parts => Err(TextError::NoMask {
                turn: index,
                found: format!("the template writes the answer {} times", parts.len() - 1),
            }),
        }
    }
}

const DEPENDS: &str = "what the template writes behind the answer depends on the answer";

/// OpenAI's wire form has a call's arguments as a string that holds JSON; Hugging Face's templates
/// expect what is in it (some write a string once more as a string).
fn read_arguments(call: &mut Value) {
    if let Some(arguments) = call.pointer_mut("/function/arguments")
        && let Some(object) = arguments.as_str().and_then(|text| serde_json::from_str(text).ok())
    {
        *arguments = Value::Object(object);
    }
}

/// Whether any text of a message contains `character`.
fn occurs_in(message: &Message, character: char) -> bool {
    let texts = [&message.tool_call_id, &message.name, &message.reasoning_content];
    message.content.contains(character)
        || message.tool_calls.iter().any(|call| contains(call, character))
        || texts.into_iter().flatten().any(|text| text.contains(character))
}

/// [`break_controls`] in every text of a message. Returns whether it had to.
fn break_controls_in_message(
    tokenizer: &Tokenizer,
    message: &mut Message,
    sentinel: char,
) -> Result<bool, TextError> {
    let Message { tool_call_id, name, reasoning_content, .. } = message;
    let others = [tool_call_id, name, reasoning_content].into_iter().flatten();
    let mut any = false;
    for text in std::iter::once(&mut message.content).chain(others) {
        if let Some(broken) = break_controls(tokenizer, text, sentinel)? {
            *text = broken;
            any = true;
        }
    }
    for call in &mut message.tool_calls {
        any |= break_controls_in(tokenizer, call, sentinel)?;
    }
    Ok(any)
}

/// Puts `sentinel` into everything in `content` that looks like a control token; `None` when there
/// is no such thing.
fn break_controls(
    tokenizer: &Tokenizer,
    content: &str,
    sentinel: char,
) -> Result<Option<String>, TextError> {
    // Behind the first letter of each occurrence, also of those that overlap.
    let mut places = Vec::new();
    for control in tokenizer.control_texts() {
        let Some(first) = control.chars().next().map(char::len_utf8) else { continue };
        let mut from = 0;
        while let Some(found) = content[from..].find(control) {
            places.push(from + found + first);
            from += found + first;
        }
    }
    places.sort_unstable();
    places.dedup();
    let mut broken = String::with_capacity(content.len() + 4 * places.len());
    let mut from = 0;
    for &place in &places {
        broken.push_str(&content[from..place]);
        broken.push(sentinel);
        from = place;
    }
    broken.push_str(&content[from..]);
    // Normalisation can turn other letters into those of a control token, and a control token of
    // one letter cannot be broken up.
    if !places.is_empty() || tokenizer.has_normalized_controls() {
        let pieces = tokenizer.encode_rendered(&broken, Some(sentinel), &[])?;
        let ids: Vec<u32> = pieces.iter().map(|piece| piece.id).collect();
        tokenizer.refuse_controls(content, &ids)?;
    }
    Ok((!places.is_empty()).then_some(broken))
}

/// [`break_controls`] in every string of a JSON value, names of fields included. Returns whether it
/// had to.
fn break_controls_in(
    tokenizer: &Tokenizer,
    value: &mut Value,
    sentinel: char,
) -> Result<bool, TextError> {
    match value {
        Value::String(text) => match break_controls(tokenizer, text, sentinel)? {
            Some(broken) => {
                *text = broken;
                Ok(true)
            }
            None => Ok(false),
        },
        Value::Array(items) => items
            .iter_mut()
            .try_fold(false, |any, item| Ok(break_controls_in(tokenizer, item, sentinel)? || any)),
        Value::Object(fields) => {
            let mut any = false;
            let mut kept = serde_json::Map::with_capacity(fields.len());
            for (name, mut item) in std::mem::take(fields) {
                any |= break_controls_in(tokenizer, &mut item, sentinel)?;
                let broken = break_controls(tokenizer, &name, sentinel)?;
                any |= broken.is_some();
                kept.insert(broken.unwrap_or(name), item);
            }
            *fields = kept;
            Ok(any)
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(false),
    }
}

/// Whether any string of a JSON value contains `character`.
fn contains(value: &Value, character: char) -> bool {
    match value {
        Value::String(text) => text.contains(character),
        Value::Array(items) => items.iter().any(|item| contains(item, character)),
        Value::Object(fields) => {
            fields.iter().any(|(name, item)| name.contains(character) || contains(item, character))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// The source of the template in `tokenizer_config.json`.
fn source_in(config: &ConfigFile) -> Result<Option<String>, TextError> {
    const NAME: &str = "chat_template";
    const WANTED: &str = "a template or a list of named templates with one called default";
    match config.map.get(NAME) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(source)) => Ok(Some(source.clone())),
        Some(Value::Array(entries)) => {
            let named = |entry: &&Value| entry["name"] == "default";
            let only = if let [entry] = entries.as_slice() { Some(entry) } else { None };
            let chosen = entries.iter().find(named).or(only);
            match chosen.and_then(|entry| entry["template"].as_str()) {
                Some(source) => Ok(Some(source.to_owned())),
                None => Err(config.wrong(NAME, &config.map[NAME], WANTED)),
            }
        }
        Some(other) => Err(config.wrong(NAME, other, WANTED)),
    }
}

/// How many bytes `left` and `right` have in common at the beginning, up to a whole character.
fn common_prefix(left: &str, right: &str) -> usize {
    let same = |((_, left), right): &((usize, char), char)| left == right;
    left.char_indices()
        .zip(right.chars())
        .take_while(same)
        .last()
        .map_or(0, |((start, character), _)| start + character.len_utf8())
}

fn present() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs())
}
