//! What a model says, taken apart while it comes: thoughts, text and tool calls.

use crate::tools::{Head, ToolCall, ToolFormat, head};

/// Something that an answer turned out to contain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Text for whoever asked.
    Content(String),
    /// What the model thought before it answered.
    Reasoning(String),
    /// A call of a tool, with the beginning of its arguments.
    Call(ToolCall),
    /// More of the arguments of the latest call, as the model writes them.
    Arguments(String),
}

/// How to read the answers of a model to one prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AnswerFormat {
    /// How it calls tools; None where it has none, so that nothing is taken for a call.
    pub tools: Option<&'static ToolFormat>,
    /// Where it thinks.
    pub thinking: Thinking,
}

/// Whether an answer begins with thoughts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Thinking {
    /// Never: the template knows nothing of thoughts.
    #[default]
    None,
    /// When it begins with `<think>`.
    Marked,
    /// It does: the prompt ends with `<think>`.
    Begun,
}

pub(crate) const THINK: &str = "<think>";
pub(crate) const THINK_END: &str = "</think>";

impl AnswerFormat {
    /// The format for answers to a prompt that was rendered as `prompt` by a template of this
    /// source; tools only if the conversation has any.
    pub fn new(source: &str, prompt: &str, tools: bool) -> AnswerFormat {
        let thinking = match source.contains(THINK_END) {
            true if prompt.trim_end().ends_with(THINK) => Thinking::Begun,
            true => Thinking::Marked,
            false => Thinking::None,
        };
        AnswerFormat { tools: ToolFormat::of(source).filter(|_| tools), thinking }
    }

    /// What may be control tokens and must be seen all the same:
    /// [`StreamDecoder::keeping`](crate::StreamDecoder::keeping).
    pub fn markers(&self) -> impl Iterator<Item = &'static str> {
        let thinking = (self.thinking != Thinking::None).then_some([THINK, THINK_END]);
        let tools = self.tools.into_iter().flat_map(ToolFormat::markers);
        thinking.into_iter().flatten().chain(tools)
    }
}

/// Takes an answer apart as its text comes. No part of a marker is ever given out as text, and what
/// comes out, put together, does not depend on how the text was cut into pieces. What looks like a
/// call and is none comes out as the text that it is.
///
/// A call whose name comes before its arguments, as models learn it, is told once these begin. It then
/// stays one: where the answer is cut off in its arguments, or they are no JSON, they are told as far
/// as they were written.
///
/// Where the format asks for nothing, everything is content, at once and unchanged. With tools, the
/// white space before a call, between calls and behind one is left out; with thoughts, the white space
/// around them.
#[derive(Clone, Debug)]
pub struct AnswerReader {
    format: AnswerFormat,
    state: Reading,
    /// Text that is not decided yet.
    held: String,
    /// White space that belongs to the content if more content follows.
    blank: String,
    /// Whether the last part was a call.
    after_call: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// Nothing but white space yet.
    Start,
    /// Thoughts, and whether any came out yet.
    Reasoning(bool),
    /// Behind thoughts, before content.
    Between,
    Content,
    /// Behind the marker of this number among the format's.
    Call(usize),
    /// A call without a marker.
    BareCall,
    /// The arguments of a call that is told already.
    Arguments(Told, Braces),
    /// What stands behind them in the object that is the call; None before anything does.
    Rest(Told, Option<Braces>),
    /// Behind a call that was told.
    Told(Told),
}

/// Of a call that is told while it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
    /// The number of its marker; None for a call without one.
    begin: Option<usize>,
    /// Whether it is an object around its arguments.
    object: bool,
    /// Whether others may follow in the same list.
    listed: bool,
}

/// A place in JSON: how many braces are open, and whether it is inside a string or behind a backslash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Braces {
    open: usize,
    string: bool,
    escaped: bool,
}

impl Braces {
    /// Moves on behind `byte`; whether it closed the last brace.
    fn closes(&mut self, byte: u8) -> bool {
        match (self.string, byte) {
            (true, _) if self.escaped => self.escaped = false,
            (true, b'\\') => self.escaped = true,
            (_, b'"') => self.string = !self.string,
            (false, b'{') => self.open += 1,
            (false, b'}') => {
                self.open = self.open.saturating_sub(1);
                return self.open == 0;
            }
            _ => {}
        }
        false
    }
}

impl AnswerReader {
    /// A reader at the beginning of an answer.
    pub fn new(format: AnswerFormat) -> AnswerReader {
        let state = match format.thinking {
            Thinking::Begun => Reading::Reasoning(false),
            Thinking::None if format.tools.is_none() => Reading::Content,
            Thinking::None | Thinking::Marked => Reading::Start,
        };
        AnswerReader { format, state, held: String::new(), blank: String::new(), after_call: false }
    }

    /// Takes the next piece of text; returns what is certain by now. Neighbouring texts of one kind
    /// may come as several parts.
    pub fn push(&mut self, piece: &str) -> Vec<Part> {
        self.held.push_str(piece);
        let mut parts = Vec::new();
        while self.advance(false, &mut parts) {}
        parts
    }

    /// What is left, once no more text will come. The reader is used up afterwards.
    pub fn finish(&mut self) -> Vec<Part> {
        let mut parts = Vec::new();
        while self.advance(true, &mut parts) {}
        // White space at the end of a text belongs to it, unless a call came last.
        let blank = std::mem::take(&mut self.blank);
        if !blank.is_empty() && !self.after_call {
            parts.push(Part::Content(blank));
        }
        parts
    }

    /// Decides about some of what is held. False when more text is needed, or all is decided.
    fn advance(&mut self, last: bool, parts: &mut Vec<Part>) -> bool {
        match self.state {
            Reading::Start | Reading::Between => self.start(last),
            Reading::Reasoning(begun) => self.reasoning(begun, last, parts),
            Reading::Content => self.content(last, parts),
            Reading::Call(begin) => self.call(begin, last, parts),
            Reading::BareCall => self.bare_call(last, parts),
            Reading::Arguments(told, braces) => self.arguments(told, braces, parts),
            Reading::Rest(told, braces) => self.rest(told, braces),
            Reading::Told(told) => self.behind(told, last),
        }
    }

    fn start(&mut self, last: bool) -> bool {
        let text = self.held.trim_start();
        let blank = self.held.len() - text.len();
        let thinks = self.state == Reading::Start && self.format.thinking == Thinking::Marked;
        if thinks && text.starts_with(THINK) {
            self.held.drain(..blank + THINK.len());
            self.state = Reading::Reasoning(false);
            return true;
        }
        let bare = match self.format.tools {
            Some(tools) if tools.bare => opens_call(text),
            _ => Some(false),
        };
        let undecided = text.is_empty() || (thinks && THINK.starts_with(text)) || bare.is_none();
        if undecided && !last {
            return false;
        }
        if self.state == Reading::Between {
            self.held.drain(..blank);
        }
        self.state = if bare == Some(true) { Reading::BareCall } else { Reading::Content };
        true
    }

    fn reasoning(&mut self, begun: bool, last: bool, parts: &mut Vec<Part>) -> bool {
        if !begun {
            let blank = self.held.len() - self.held.trim_start().len();
            self.held.drain(..blank);
        }
        let (end, found) = match self.held.find(THINK_END) {
            Some(at) => (at, true),
            None if last => (self.held.len(), false),
            None => (self.held.len() - overlap(&self.held, [THINK_END].into_iter()), false),
        };
        let mut text: String = self.held.drain(..end).collect();
        if found || last {
            text.truncate(text.trim_end().len());
            self.held.drain(..if found { THINK_END.len() } else { 0 });
        } else {
            // The white space before the end is left out, and this may be the end.
            let rest = text.split_off(text.trim_end().len());
            self.held.insert_str(0, &rest);
        }
        let any = begun || !text.is_empty();
        if !text.is_empty() {
            parts.push(Part::Reasoning(text));
        }
        self.state = if found { Reading::Between } else { Reading::Reasoning(any) };
        found
    }

    fn content(&mut self, last: bool, parts: &mut Vec<Part>) -> bool {
        let Some(tools) = self.format.tools else {
            let text = std::mem::take(&mut self.held);
            self.give(text, parts);
            return false;
        };
        let first = |(i, begin): (usize, &crate::tools::Begin)| {
            self.held.find(begin.marker).map(|at| (at, i))
        };
        if let Some((at, begin)) = tools.begins.iter().enumerate().filter_map(first).min() {
            let text: String = self.held.drain(..at).collect();
            self.give_trimmed(text, parts);
            self.state = Reading::Call(begin);
            return true;
        }
        let open = match last {
            true => 0,
            false => overlap(&self.held, tools.begins.iter().map(|begin| begin.marker)),
        };
        let text: String = self.held.drain(..self.held.len() - open).collect();
        self.give_trimmed(text, parts);
        false
    }

    fn call(&mut self, number: usize, last: bool, parts: &mut Vec<Part>) -> bool {
        let Some(tools) = self.format.tools else { return false };
        let begin = &tools.begins[number];
        let from = begin.keep_from;
        if let Some(head) = head(&self.held[from..]) {
            self.begin(Some(number), head, from, parts);
            return true;
        }
        let end = tools.end.and_then(|end| {
            self.held[begin.marker.len()..].find(end).map(|at| begin.marker.len() + at)
        });
        if end.is_none() && !last {
            return false;
        }
        let until = end.unwrap_or(self.held.len());
        let behind = until + end.and(tools.end).map_or(0, str::len);
        let calls = (tools.parse)(&self.held[from..until]);
        let written: String = self.held.drain(..behind).collect();
        self.state = Reading::Content;
        match calls {
            Some(calls) => {
                self.blank.clear();
                self.after_call = true;
                parts.extend(calls.into_iter().map(Part::Call));
            }
            None => self.give_trimmed(written, parts),
        }
        !self.held.is_empty()
    }

    /// Tells a call whose head stands at `from`.
    fn begin(&mut self, begin: Option<usize>, head: Head, from: usize, parts: &mut Vec<Part>) {
        let Head { name, id, arguments_at, object, listed } = head;
        self.held.drain(..from + arguments_at);
        self.blank.clear();
        self.after_call = true;
        parts.push(Part::Call(ToolCall { name, arguments: String::new(), id }));
        self.state = Reading::Arguments(Told { begin, object, listed }, Braces::default());
    }

    fn arguments(&mut self, told: Told, mut braces: Braces, parts: &mut Vec<Part>) -> bool {
        let end = self.held.bytes().position(|byte| braces.closes(byte));
        let text: String = self.held.drain(..end.map_or(self.held.len(), |end| end + 1)).collect();
        if !text.is_empty() {
            parts.push(Part::Arguments(text));
        }
        self.state = match end {
            None => Reading::Arguments(told, braces),
            Some(_) if told.object => Reading::Rest(told, None),
            Some(_) => Reading::Told(told),
        };
        end.is_some()
    }

    /// Leaves out what a call's object holds behind its arguments: an id, say.
    fn rest(&mut self, told: Told, braces: Option<Braces>) -> bool {
        if braces.is_none() {
            let blank = self.held.len() - self.held.trim_start().len();
            self.held.drain(..blank);
            match self.held.as_bytes().first() {
                None => return false,
                Some(b'}' | b',') => {}
                Some(_) => {
                    self.state = Reading::Told(told);
                    return true;
                }
            }
        }
        let mut braces = braces.unwrap_or(Braces { open: 1, ..Braces::default() });
        let end = self.held.bytes().position(|byte| braces.closes(byte));
        self.held.drain(..end.map_or(self.held.len(), |end| end + 1));
        self.state = match end {
            Some(_) => Reading::Told(told),
            None => Reading::Rest(told, Some(braces)),
        };
        end.is_some()
    }

    /// Goes on to the next call, or behind what ends the calls.
    fn behind(&mut self, told: Told, last: bool) -> bool {
        let Some(tools) = self.format.tools else { return false };
        let text = self.held.trim_start();
        if text.is_empty() {
            return false;
        }
        if let (true, Some(rest)) = (told.listed, text.strip_prefix(',')) {
            // As if the list began here.
            let marker = told.begin.map(|number| &tools.begins[number]);
            let marker = marker.map_or("", |begin| &begin.marker[..begin.keep_from]);
            self.held = format!("{marker}[{rest}");
            self.state = told.begin.map_or(Reading::BareCall, Reading::Call);
        } else if let (true, Some(rest)) = (told.listed, text.strip_prefix(']')) {
            self.held = rest.to_owned();
            self.state = Reading::Told(Told { listed: false, ..told });
        } else if let (None, Some(rest)) = (told.begin, text.strip_prefix(';')) {
            self.held = rest.to_owned();
            self.state = Reading::BareCall;
        } else if let Some(end) = tools.end.filter(|end| !last && end.starts_with(text)) {
            if end != text {
                return false;
            }
            self.held.clear();
            self.state = Reading::Content;
        } else {
            let rest = tools.end.and_then(|end| text.strip_prefix(end)).map(str::to_owned);
            self.held = rest.unwrap_or_else(|| std::mem::take(&mut self.held));
            self.state = Reading::Content;
        }
        true
    }

    fn bare_call(&mut self, last: bool, parts: &mut Vec<Part>) -> bool {
        if let Some(head) = head(&self.held) {
            self.begin(None, head, 0, parts);
            return true;
        }
        if !last {
            return false;
        }
        self.state = Reading::Content;
        match self.format.tools.and_then(|tools| (tools.parse)(&self.held)) {
            Some(calls) => {
                self.held.clear();
                self.after_call = true;
                parts.extend(calls.into_iter().map(Part::Call));
                false
            }
            None => true,
        }
    }

    fn give(&mut self, text: String, parts: &mut Vec<Part>) {
        if !text.is_empty() {
            parts.push(Part::Content(text));
        }
    }

    /// Gives out text but for the white space at its end, which a call behind it would take away.
    fn give_trimmed(&mut self, mut text: String, parts: &mut Vec<Part>) {
        if self.after_call {
            text.drain(..text.len() - text.trim_start().len());
        }
        let rest = text.split_off(text.trim_end().len());
        if text.is_empty() {
            self.blank.push_str(&rest);
            return;
        }
        let blank = std::mem::replace(&mut self.blank, rest);
        self.after_call = false;
        self.give(blank + &text, parts);
    }
}

/// Whether `text` opens with a JSON object whose first field is one of a call's; None when more text
/// is needed to tell.
fn opens_call(text: &str) -> Option<bool> {
    const FIELDS: [&str; 5] = ["name", "type", "parameters", "arguments", "id"];
    let mut rest = text;
    for opening in ['{', '"'] {
        match rest.trim_start().strip_prefix(opening) {
            Some(behind) => rest = behind,
            None if rest.trim_start().is_empty() => return None,
            None => return Some(false),
        }
    }
    match rest.split_once('"') {
        Some((field, _)) => Some(FIELDS.contains(&field)),
        None if FIELDS.iter().any(|field| field.starts_with(rest)) => None,
        None => Some(false),
    }
}

/// How many bytes at the end of `text` may be the beginning of a marker.
fn overlap<'a>(text: &str, markers: impl Iterator<Item = &'a str>) -> usize {
    markers
        .map(|marker| {
            let most = text.len().min(marker.len() - 1);
            (1..=most)
                .rev()
                .find(|&n| text.as_bytes().ends_with(&marker.as_bytes()[..n]))
                .unwrap_or(0)
        })
        .max()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::TOOL_FORMATS;
    use proptest::prelude::*;

    /// All parts, neighbours of one kind put together: what a reader of the whole stream sees.
    fn read(format: AnswerFormat, pieces: &[&str]) -> Vec<Part> {
        let mut reader = AnswerReader::new(format);
        let mut parts: Vec<Part> = pieces.iter().flat_map(|piece| reader.push(piece)).collect();
        parts.extend(reader.finish());
        let mut joined: Vec<Part> = Vec::new();
        for part in parts {
            match (joined.last_mut(), part) {
                (Some(Part::Content(text)), Part::Content(more)) => text.push_str(&more),
                (Some(Part::Call(call)), Part::Arguments(more)) => call.arguments.push_str(&more),
                (Some(Part::Reasoning(text)), Part::Reasoning(more)) => text.push_str(&more),
                (_, part) => joined.push(part),
            }
        }
        joined
    }

    fn format(tools: &str, thinking: Thinking) -> AnswerFormat {
        let tools = TOOL_FORMATS.iter().copied().find(|format| format.name == tools);
        AnswerFormat { tools, thinking }
    }

    /// Reads `text` whole and letter by letter, and shows what comes out.
    fn shown(format: AnswerFormat, text: &str) -> String {
        let whole = read(format, &[text]);
        let letters: Vec<String> = text.chars().map(String::from).collect();
        let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
        assert_eq!(read(format, &letters), whole, "{text:?}");
        let show = |part: &Part| match part {
            Part::Content(text) => format!("C{text:?}"),
            Part::Reasoning(text) => format!("R{text:?}"),
            Part::Call(call) => format!("{}({})", call.name, call.arguments),
            Part::Arguments(_) => panic!("arguments of no call"),
        };
        whole.iter().map(show).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn calls_and_text_come_apart() {
        let hermes = format("hermes", Thinking::None);
        let llama = format("llama3", Thinking::None);
        let mistral = format("mistral", Thinking::None);
        let phi = format("phi", Thinking::None);
        for (format, text, expected) in [
            (hermes, "", ""),
            (hermes, "  ", r#"C"  ""#),
            (hermes, " Hello\n", r#"C" Hello\n""#),
            (hermes, "a <tool_cal b", r#"C"a <tool_cal b""#),
            (hermes, "a <tool_call", r#"C"a <tool_call""#),
            (
                hermes,
                "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>",
                r#"f({"a": 1})"#,
            ),
            (
                hermes,
                "Wait.\n\n<tool_call>{\"name\": \"f\"}</tool_call>\n<tool_call>{\"name\": \"g\"}</tool_call>\n",
                r#"C"Wait." f({}) g({})"#,
            ),
            (hermes, "<tool_call>{\"name\": \"f\"}</tool_call>\n Done. ", r#"f({}) C"Done. ""#),
            // The end token may take the place of the end marker.
            (hermes, "<tool_call>{\"name\": \"f\"}", "f({})"),
            // So may a text, or nothing at all; a call that has begun stays one.
            (
                hermes,
                "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"</tool_call>\\\"}\"}} b",
                r#"f({"a": "</tool_call>\"}"}) C"b""#,
            ),
            (hermes, "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1", r#"f({"a": 1)"#),
            (
                hermes,
                "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": b}, \"id\": {\"}\": 1}}</tool_call>c",
                r#"f({"a": b}) C"c""#,
            ),
            (
                hermes,
                "<tool_call>{\"arguments\": {\"a\": 1}, \"name\": \"f\"}</tool_call>",
                r#"f({"a": 1})"#,
            ),
            (
                hermes,
                "x <tool_call>nonsense</tool_call> y",
                r#"C"x <tool_call>nonsense</tool_call> y""#,
            ),
            (hermes, "<tool_call>{\"name\": \"f\"", r#"C"<tool_call>{\"name\": \"f\"""#),
            (
                hermes,
                "{\"name\": \"f\", \"arguments\": {}}",
                r#"C"{\"name\": \"f\", \"arguments\": {}}""#,
            ),
            (llama, " {\"name\": \"f\", \"parameters\": {\"a\": [1]}} ", r#"f({"a": [1]})"#),
            (llama, "{\"name\": \"Bob\", \"age\": 7}", r#"C"{\"name\": \"Bob\", \"age\": 7}""#),
            (llama, "{\"age\": 7}", r#"C"{\"age\": 7}""#),
            (llama, " { \"", r#"C" { \"""#),
            (
                llama,
                "So {\"name\": \"f\", \"parameters\": {}}",
                r#"C"So {\"name\": \"f\", \"parameters\": {}}""#,
            ),
            (llama, "<|python_tag|>{\"name\": \"f\", \"parameters\": {}}", "f({})"),
            (llama, "<|python_tag|>print(1)", r#"C"<|python_tag|>print(1)""#),
            (mistral, "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {}}]", "f({})"),
            (mistral, "Yes. [TOOL_CALLS]f[ARGS]{}[TOOL_CALLS]g[ARGS]{}", r#"C"Yes." f({}) g({})"#),
            (mistral, "[TOOL_CALL] [1]", r#"C"[TOOL_CALL] [1]""#),
            (
                mistral,
                "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {\"a\": 1}, \"id\": \"x\"} , {\"name\": \"g\"}, {\"name\": \"h\", \"arguments\": {}}]",
                r#"f({"a": 1}) g({}) h({})"#,
            ),
            (
                llama,
                "{\"name\": \"f\", \"parameters\": {}}; {\"name\": \"g\", \"parameters\": {\"b\": 2}}",
                r#"f({}) g({"b": 2})"#,
            ),
            (
                phi,
                "<|tool_call|>[{\"name\": \"f\", \"arguments\": {}},\n{\"name\": \"g\", \"arguments\": {}}]<|/tool_call|>",
                "f({}) g({})",
            ),
            (phi, "<|tool_call|>[{\"name\": \"f\", \"arguments\": {}}]<|/tool_call|>", "f({})"),
            (phi, "functools[{\"name\": \"f\", \"arguments\": {}}]", "f({})"),
            (phi, "import functools\nfunctools.cache", r#"C"import functools\nfunctools.cache""#),
        ] {
            assert_eq!(shown(format, text), expected, "{text:?}");
        }
    }

    #[test]
    fn thoughts_and_text_come_apart() {
        let marked = format("", Thinking::Marked);
        let begun = format("", Thinking::Begun);
        let both = format("hermes", Thinking::Marked);
        for (format, text, expected) in [
            (AnswerFormat::default(), " <think>a</think> b\n", r#"C" <think>a</think> b\n""#),
            (marked, "<think>\nWell, well.\n</think>\n\nYes.\n", r#"R"Well, well." C"Yes.\n""#),
            (marked, "\n<think>a b </think>", r#"R"a b""#),
            (marked, "<think>\n\n</think>\n\nYes", r#"C"Yes""#),
            (marked, " Yes <think>no</think>", r#"C" Yes <think>no</think>""#),
            (marked, "<think>a <b></think", r#"R"a <b></think""#),
            (marked, "<thin", r#"C"<thin""#),
            (begun, "Hm. </thi</think> a", r#"R"Hm. </thi" C"a""#),
            (begun, "Hm", r#"R"Hm""#),
            (
                both,
                "<think>Call <tool_call>?</think>\n<tool_call>{\"name\": \"f\"}</tool_call>",
                r#"R"Call <tool_call>?" f({})"#,
            ),
        ] {
            assert_eq!(shown(format, text), expected, "{text:?}");
        }
    }

    #[test]
    fn text_that_is_certain_is_not_held_back() {
        let mut reader = AnswerReader::new(format("hermes", Thinking::Marked));
        let content = |text: &str| vec![Part::Content(text.into())];
        assert_eq!(reader.push("Hel"), content("Hel"));
        assert_eq!(reader.push("lo <to"), content("lo"));
        assert_eq!(reader.push("p>"), content(" <top>"));
        let mut reader = AnswerReader::new(format("llama3", Thinking::None));
        assert_eq!(reader.push("{\"a"), []);
        assert_eq!(reader.push("ge\": 7"), content("{\"age\": 7"));
        let mut reader = AnswerReader::new(AnswerFormat::default());
        assert_eq!(reader.push(" \n"), content(" \n"));
    }

    #[test]
    fn a_template_tells_how_its_model_answers() {
        let of = |source, prompt, tools| AnswerFormat::new(source, prompt, tools);
        assert_eq!(of("{{ messages }}", "<think>", true), AnswerFormat::default());
        let qwen = "a <tool_call> b </think>";
        assert_eq!(of(qwen, "x\n", true), format("hermes", Thinking::Marked));
        assert_eq!(of(qwen, "<think>\n", false), format("", Thinking::Begun));
        assert_eq!(of(qwen, "", true).markers().count(), 4);
    }

    proptest! {
        #[test]
        fn cuts_change_nothing_and_nothing_is_lost(
            words in prop::collection::vec(prop::sample::select(vec![
                "<think>", "</think>", "<tool_call>", "</tool_call>", "{\"name\": \"f\"}", "<tool",
                "[TOOL_CALLS]", "<|tool_call|>", "functools", "[", "<|python_tag|>", "{", "\"name\"",
                " ", "\n", "é", "a", "{\"name\": \"f\", \"arguments\": {\"a\": \"", "\"", "}", "]", ",", ";",
            ]), 0..12),
            cuts in prop::collection::vec(0usize..80, 0..6),
            tools in 0..=TOOL_FORMATS.len(),
            thinking in prop::sample::select(vec![Thinking::None, Thinking::Marked, Thinking::Begun]),
        ) {
            let format = AnswerFormat { tools: TOOL_FORMATS.get(tools).copied(), thinking };
            let text = words.concat();
            let mut places: Vec<usize> =
                cuts.into_iter().filter(|&cut| text.is_char_boundary(cut)).collect();
            places.extend([0, text.len()]);
            places.sort_unstable();
            let pieces: Vec<&str> = places.windows(2).map(|w| &text[w[0]..w[1]]).collect();
            let parts = read(format, &pieces);
            prop_assert_eq!(&parts, &read(format, &[&text]));
            // Without a call or thoughts, what comes out is what went in.
            if parts.iter().all(|part| matches!(part, Part::Content(_))) && thinking == Thinking::None {
                prop_assert_eq!(read(format, &[&text]), if text.is_empty() { vec![] } else {
                    vec![Part::Content(text.clone())]
                });
            }
        }
    }
}
