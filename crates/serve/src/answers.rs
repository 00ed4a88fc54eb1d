//! Answers taken apart into thoughts, text and tool calls, as all endpoints for conversations tell
//! them.

use crate::conversation::Tools;
use text::{AnswerFormat, AnswerReader, Part};

/// A piece of an answer.
#[derive(Debug)]
pub(crate) enum Said {
    Content(String),
    Reasoning(String),
    /// A call, with the beginning of its arguments.
    Call(Call),
    /// More of the arguments of the latest call, whose number this is.
    Arguments {
        index: usize,
        text: String,
    },
}

/// A tool call that has its id.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// Counts the calls of one answer from 0.
    pub(crate) index: usize,
    pub(crate) id: String,
    pub(crate) name: String,
    /// A JSON object, where the model has written one; as far as it is known.
    pub(crate) arguments: String,
}

/// Reads the answer of one choice.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    reader: AnswerReader,
    format: AnswerFormat,
    parallel: bool,
    /// Calls told so far.
    calls: usize,
    /// Whether the latest call is one more than the request wants.
    muted: bool,
}

/// An answer in one piece.
#[derive(Debug, Default)]
pub(crate) struct Whole {
    pub(crate) content: String,
    pub(crate) reasoning: String,
    pub(crate) calls: Vec<Call>,
}

impl Answer {
    pub(crate) fn new(format: AnswerFormat, tools: &Tools) -> Answer {
        let reader = AnswerReader::new(format);
        Answer { reader, format, parallel: tools.parallel, calls: 0, muted: false }
    }

    /// What a piece of text says; with `last`, all that is left.
    pub(crate) fn push(&mut self, text: &str, last: bool) -> Vec<Said> {
        let mut parts = self.reader.push(text);
        if last {
            parts.extend(self.reader.finish());
        }
        parts.into_iter().filter_map(|part| self.said(part)).collect()
    }

    fn said(&mut self, part: Part) -> Option<Said> {
        let call = match part {
            Part::Content(text) => return Some(Said::Content(text)),
            Part::Reasoning(text) => return Some(Said::Reasoning(text)),
            Part::Arguments(text) => {
                let index = self.calls.saturating_sub(1);
                return (!self.muted).then_some(Said::Arguments { index, text });
            }
            Part::Call(call) => call,
        };
        if self.calls > 0 && !self.parallel {
            // The request wants one at most.
            self.muted = true;
            return None;
        }
        let index = self.calls;
        self.calls += 1;
        let id = call.id.filter(|id| !id.is_empty());
        let id =
            id.or_else(|| Some(self.format.tools?.call_id(rand::random()))).unwrap_or_default();
        Some(Said::Call(Call { index, id, name: call.name, arguments: call.arguments }))
    }

    /// OpenAI's word for how the choice ended, given how its text did.
    pub(crate) fn finish_reason(&self, reason: &'static str) -> &'static str {
        if reason == "stop" && self.calls > 0 { "tool_calls" } else { reason }
    }

    /// The whole answer, and how the choice ended.
    pub(crate) fn whole(mut self, text: &str, reason: &'static str) -> (Whole, &'static str) {
        let mut whole = Whole::default();
        for said in self.push(text, true) {
            match said {
                Said::Content(text) => whole.content += &text,
                Said::Reasoning(text) => whole.reasoning += &text,
                Said::Call(call) => whole.calls.push(call),
                Said::Arguments { text, .. } => {
                    if let Some(call) = whole.calls.last_mut() {
                        call.arguments += &text;
                    }
                }
            }
        }
        (whole, self.finish_reason(reason))
    }
}
