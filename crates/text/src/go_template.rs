//! A chat template as one for Go's text/template, which is what Ollama renders conversations with.
//!
//! Ollama does not run Jinja. Of a GGUF file's own chat template it only looks whether it is nearly
//! the same text as one of those it has a Go template for (Levenshtein distance below 100,
//! `template.Named` in its sources); otherwise prompts go to the model bare. So a Modelfile must bring
//! a template. It is found by looking at what the chat template writes around the messages of a few
//! conversations, and accepted only when it gives exactly the same text for others.

use crate::conversation::Message;
use crate::error::{TextError, excerpt};
use crate::template::ChatTemplate;
use crate::tokenizer::Tokenizer;

/// What a chat template writes around each message, as far as that depends on the role alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoTemplate {
    system: System,
    /// At the beginning of a conversation without a system message.
    head: String,
    user: Around,
    assistant: Around,
    /// After the last message, before the answer.
    answer: String,
    /// What a user should know about the difference that remains.
    notes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Around {
    before: String,
    after: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum System {
    /// The template refuses system messages, or leaves them out.
    None,
    /// A turn of its own.
    Turn(Around),
    /// In front of the first message of the user, in the same turn: what is before and behind it.
    InFirstUser(Around),
}

/// A chat template whose text cannot be had from a Go template of the kind tried here.
#[derive(Debug, thiserror::Error)]
#[error("the chat template cannot be written as a Go template with certainty: {0}")]
pub struct NotInGo(String);

impl From<TextError> for NotInGo {
    fn from(error: TextError) -> NotInGo {
        NotInGo(error.to_string())
    }
}

/// What a chat template writes for messages, with or without asking for an answer.
type Render<'a> = dyn Fn(&[Message], bool) -> Result<String, TextError> + 'a;

const SYSTEM: &str = "system";
const USER: &str = "user";
const ASSISTANT: &str = "assistant";

impl ChatTemplate {
    /// This template for Go's text/template, with Ollama's variables. A template that writes today's
    /// date must have its clock stopped (see [`ChatTemplate::at`]): the date becomes part of the text.
    ///
    /// # Errors
    /// [`NotInGo`] with what depends on more than the role of a message.
    pub fn to_go(&self, tokenizer: &Tokenizer) -> Result<GoTemplate, NotInGo> {
        let write = |messages: &[Message], ask: bool| self.text(tokenizer, messages, ask);
        let go = derive(&write)?;
        for messages in trials(go.system != System::None) {
            let (expected, found) = (write(&messages, true)?, go.expand(&messages));
            if found != expected {
                let same = expected.bytes().zip(found.bytes()).take_while(|(a, b)| a == b).count();
                let rest = |text: &str| {
                    let at = (0..=same).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
                    excerpt(&text[at..])
                };
                return Err(NotInGo(format!(
                    "for {} messages it writes {:?} where a template by roles writes {:?}",
                    messages.len(),
                    rest(&expected),
                    rest(&found)
                )));
            }
        }
        let mut notes = Vec::new();
        if go.system == System::None {
            notes.push(
                "the chat template knows no system message; Ollama leaves one out".to_owned(),
            );
        }
        let padded = [Message::new(USER, "  two spaces on each side  ")];
        if write(&padded, true)? != go.expand(&padded) {
            notes.push(
                "the chat template trims space around messages, which Ollama's templates cannot"
                    .to_owned(),
            );
        }
        Ok(GoTemplate { notes, ..go })
    }
}

impl GoTemplate {
    /// The source for Modelfile's TEMPLATE.
    pub fn source(&self) -> String {
        let around = |around: &Around, what: &str| {
            format!("{}{{{{ {what} }}}}{}", literal(&around.before), literal(&around.after))
        };
        let head = literal(&self.head);
        let user = around(&self.user, ".Content");
        let (begin, user) = match &self.system {
            System::None => (head, user),
            System::Turn(system) => (
                format!(
                    "{{{{ if .System }}}}{}{{{{ else }}}}{head}{{{{ end }}}}",
                    around(system, ".System")
                ),
                user,
            ),
            System::InFirstUser(system) => (
                format!(
                    "{{{{ $open := false }}}}{{{{ if .System }}}}{}{{{{ $open = true }}}}{{{{ else }}}}{head}{{{{ end }}}}",
                    around(system, ".System")
                ),
                format!(
                    "{{{{ if $open }}}}{{{{ $open = false }}}}{{{{ else }}}}{}{{{{ end }}}}{{{{ .Content }}}}{}",
                    literal(&self.user.before),
                    literal(&self.user.after)
                ),
            ),
        };
        format!(
            "{begin}{{{{ range .Messages }}}}{{{{ if eq .Role \"user\" }}}}{user}\
             {{{{ else if eq .Role \"assistant\" }}}}{}{{{{ end }}}}{{{{ end }}}}{}",
            around(&self.assistant, ".Content"),
            literal(&self.answer)
        )
    }

    /// What Ollama sends to the model for `messages`: messages of one role that follow one another
    /// are one with an empty line between them, and system messages are gathered at the beginning
    /// (`collate` in its template.go).
    pub fn expand(&self, messages: &[Message]) -> String {
        let system: Vec<&str> =
            messages.iter().filter(|m| m.role == SYSTEM).map(|m| m.content.as_str()).collect();
        let system = system.join("\n\n");
        let mut collated: Vec<Message> = Vec::new();
        for message in messages {
            match collated.last_mut() {
                Some(last) if last.role == message.role => {
                    last.content.push_str("\n\n");
                    last.content.push_str(&message.content);
                }
                _ => collated.push(message.clone()),
            }
        }
        let mut text = String::new();
        let mut put = |around: &Around, content: &str, open: bool| {
            let before = if open { "" } else { around.before.as_str() };
            text.extend([before, content, &around.after]);
        };
        let mut open = false;
        match &self.system {
            System::Turn(around) if !system.is_empty() => put(around, &system, false),
            System::InFirstUser(around) if !system.is_empty() => {
                put(around, &system, false);
                open = true;
            }
            _ => put(&Around { before: String::new(), after: String::new() }, &self.head, false),
        }
        for message in &collated {
            match message.role.as_str() {
                USER => put(&self.user, &message.content, std::mem::take(&mut open)),
                ASSISTANT => put(&self.assistant, &message.content, false),
                _ => {}
            }
        }
        text.push_str(&self.answer);
        text
    }

    /// Differences that remain, in words.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

/// What is around each message of three conversations.
fn derive(write: &Render<'_>) -> Result<GoTemplate, NotInGo> {
    let user = |n: usize| Message::new(USER, format!("Wq{n}user"));
    let answer = |n: usize| Message::new(ASSISTANT, format!("Wq{n}answer"));
    let one = pieces(write, &[user(1)], true)?;
    let ended = pieces(write, &[user(1)], false)?;
    let three = pieces(write, &[user(1), answer(1), user(2)], true)?;
    let answered = pieces(write, &[user(1), answer(1)], false)?;
    let user_after = shared_end(&ended[1], &[&one[1], &three[1]]);
    let assistant_after = shared_end(&answered[2], &[&three[2]]);
    let after = |text: &str, end: &str| text[end.len()..].to_owned();
    let asks = after(&one[1], user_after);
    let assistant =
        Around { before: after(&three[1], user_after), after: assistant_after.to_owned() };
    let user_turn =
        Around { before: after(&three[2], assistant_after), after: user_after.to_owned() };
    let head = one[0].strip_suffix(&user_turn.before).map(str::to_owned).ok_or_else(|| {
        NotInGo(format!(
            "before the first message of the user, it writes {:?}, and {:?} before others",
            excerpt(&one[0]),
            excerpt(&user_turn.before)
        ))
    })?;
    let told = [Message::new(SYSTEM, "Wq1system"), user(1)];
    let system = match pieces(write, &told, true) {
        // Refused, or not written.
        Err(_) => System::None,
        Ok(told) => {
            let before = told[0].clone();
            match told[1].strip_suffix(&user_turn.before) {
                Some(after) => System::Turn(Around { before, after: after.to_owned() }),
                None => System::InFirstUser(Around { before, after: told[1].clone() }),
            }
        }
    };
    Ok(GoTemplate { system, head, user: user_turn, assistant, answer: asks, notes: Vec::new() })
}

/// What is behind a message whatever follows: all that ends a conversation, or, where the template
/// writes something there that ends conversations only, what `going_on` begins with as well, up to the
/// end of a tag or a line. Where it is cut does not change the text, only how it reads.
fn shared_end<'a>(end: &'a str, going_on: &[&str]) -> &'a str {
    if going_on.iter().all(|text| text.starts_with(end)) {
        return end;
    }
    let cuts = end.char_indices().filter(|(_, c)| matches!(c, '>' | ']' | '\n'));
    let ends = cuts.map(|(at, _)| &end[..=at]);
    let mut shared = ends.filter(|cut| going_on.iter().all(|text| text.starts_with(cut)));
    shared.next_back().unwrap_or_default()
}

/// The text before, between and behind the messages, one piece more than there are messages.
fn pieces(write: &Render<'_>, messages: &[Message], ask: bool) -> Result<Vec<String>, NotInGo> {
    let text = write(messages, ask)?;
    let mut pieces = Vec::new();
    let mut rest = text.as_str();
    for message in messages {
        let found = rest.split_once(&message.content);
        let (before, after) =
            found.filter(|_| text.matches(&message.content).count() == 1).ok_or_else(|| {
                NotInGo(format!(
                    "a message of the {} is not written once and in its place",
                    message.role
                ))
            })?;
        pieces.push(before.to_owned());
        rest = after;
    }
    pieces.push(rest.to_owned());
    Ok(pieces)
}

/// Conversations to try a template on: one to four messages of the user, with and without a system
/// message, and contents with what templates and their languages may trip over.
fn trials(system: bool) -> Vec<Vec<Message>> {
    const CONTENTS: [&str; 9] = [
        "Hello!",
        "What is 2 + 2?\nAnd 3 + 3?\n\nThank you.",
        "Le café – 中文 👍",
        "{{ .System }} {% if x %} {{- end }}",
        "a \"quoted\" word, a `tick` and a back\\slash",
        "{\"name\": \"pump\", \"loud\": true}",
        "<b>bold</b> & more",
        "user: system: assistant:",
        "x",
    ];
    let mut trials = Vec::new();
    for told in [false, true] {
        for turns in 1..=4 {
            for first in 0..CONTENTS.len() {
                let content = |i: usize| CONTENTS[(first + i) % CONTENTS.len()];
                let mut messages = Vec::new();
                if told {
                    messages.push(Message::new(SYSTEM, content(8)));
                }
                for turn in 0..turns {
                    messages.push(Message::new(USER, content(2 * turn)));
                    if turn + 1 < turns {
                        messages.push(Message::new(ASSISTANT, content(2 * turn + 1)));
                    }
                }
                trials.push(messages);
            }
        }
        if !system {
            break;
        }
    }
    trials
}

/// `text` in the source of a Go template: as it is where that is read as text, and as a quoted string
/// where it holds what begins an action, what ends a Modelfile's string, or characters that its parser
/// leaves out.
fn literal(text: &str) -> String {
    let plain = |c: char| c == '\n' || (!c.is_control() && !is_hidden(c));
    if !text.contains("{{")
        && !text.contains("\"\"\"")
        && !text.ends_with(['{', '"'])
        && text.chars().all(plain)
    {
        return text.to_owned();
    }
    let mut out = String::from("{{ \"");
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '"' | '\\' | '{' | '}' => out.push_str(&format!("\\u{:04x}", c as u32)),
            c if plain(c) => out.push(c),
            c if (c as u32) < 0x10000 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push_str(&format!("\\U{:08x}", c as u32)),
        }
    }
    out + "\" }}"
}

/// Characters that Go does not count as printable (`strconv.IsPrint`): spaces but the ordinary one,
/// format and private-use characters.
fn is_hidden(c: char) -> bool {
    (c.is_whitespace() && c != ' ')
        || matches!(c, '\u{ad}' | '\u{600}'..='\u{605}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{e000}'..='\u{f8ff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{10ffff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals() {
        for (text, source) in [
            ("<|im_start|>user\n", "<|im_start|>user\n"),
            ("", ""),
            ("a {{ b", "{{ \"a \\u007b\\u007b b\" }}"),
            ("\"\"\"", "{{ \"\\u0022\\u0022\\u0022\" }}"),
            ("a\t\u{200b}\\", "{{ \"a\\u0009\\u200b\\u005c\" }}"),
            ("\u{f0000}", "{{ \"\\U000f0000\" }}"),
            ("<｜User｜>", "<｜User｜>"),
            ("ends in {", "{{ \"ends in \\u007b\" }}"),
        ] {
            assert_eq!(literal(text), source, "{text:?}");
        }
    }
}
