//! A fair arm: the same examples asked with good instructions and some worked examples in front, as one
//! would ask a model that was not adapted.

use crate::candidate::{Answer, Candidate};
use crate::error::EvalError;
use crate::item::EvalItem;
use crate::words::Language;
use text::Message;

/// What stands in front of every question.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompting {
    /// Instructions, put in front of the system message where there is one.
    pub instructions: Option<String>,
    /// Worked examples: question and answer.
    pub shots: Vec<(String, String)>,
}

impl Prompting {
    /// The example as it is asked. Its id and reference stay.
    pub fn apply(&self, item: &EvalItem) -> EvalItem {
        let mut item = item.clone();
        let messages = &mut item.conversation.messages;
        let has_system =
            messages.first().is_some_and(|m| m.role == "system" || m.role == "developer");
        match (&self.instructions, has_system) {
            (Some(text), true) => {
                messages[0].content = format!("{text}\n\n{}", messages[0].content)
            }
            (Some(text), false) => messages.insert(0, Message::new("system", text.clone())),
            (None, _) => {}
        }
        let begin = usize::from(has_system || self.instructions.is_some());
        let shots = self.shots.iter().flat_map(|(question, answer)| {
            [Message::new("user", question.clone()), Message::new("assistant", answer.clone())]
        });
        messages.splice(begin..begin, shots);
        item
    }

    /// In words, for the report.
    pub fn in_words(&self, language: Language) -> String {
        let instructions = match &self.instructions {
            Some(text) => {
                let n = language.count(text.chars().count());
                language.say("with instructions of {n} characters", &[("n", &n)])
            }
            None => language.t("without instructions").to_owned(),
        };
        let shots = match self.shots.len() {
            0 => language.t("without worked examples").to_owned(),
            n => language.say("with {n} worked examples in front", &[("n", &language.count(n))]),
        };
        format!("{instructions}, {shots}")
    }
}

/// A candidate that is asked with [`Prompting`].
pub struct Prompted<C: Candidate> {
    inner: C,
    prompting: Prompting,
}

impl<C: Candidate> Prompted<C> {
    /// `inner`, asked with `prompting`.
    pub fn new(inner: C, prompting: Prompting) -> Prompted<C> {
        Prompted { inner, prompting }
    }
}

impl<C: Candidate> Candidate for Prompted<C> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn kind(&self) -> &'static str {
        self.inner.kind()
    }

    fn answer(
        &mut self,
        examples: &[EvalItem],
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<Answer>, EvalError> {
        let asked: Vec<EvalItem> = examples.iter().map(|item| self.prompting.apply(item)).collect();
        self.inner.answer(&asked, progress)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use text::Conversation;

    fn roles(item: &EvalItem) -> Vec<String> {
        item.conversation.messages.iter().map(|m| format!("{}:{}", m.role, m.content)).collect()
    }

    #[test]
    fn instructions_and_examples_stand_in_front_of_the_question() {
        let shots = vec![("q".to_owned(), "a".to_owned())];
        let prompting = Prompting { instructions: Some("do".into()), shots };
        let item = |turns: &[(&str, &str)]| {
            let messages = turns.iter().map(|&(role, text)| Message::new(role, text));
            EvalItem::new("1".into(), Conversation::new(messages.collect())).unwrap()
        };
        let plain = item(&[("user", "x"), ("assistant", "y")]);
        assert_eq!(
            roles(&prompting.apply(&plain)),
            ["system:do", "user:q", "assistant:a", "user:x"]
        );
        let with_system = item(&[("system", "s"), ("user", "x"), ("assistant", "y")]);
        assert_eq!(
            roles(&prompting.apply(&with_system)),
            ["system:do\n\ns", "user:q", "assistant:a", "user:x"]
        );
        assert_eq!(prompting.apply(&plain).reference, "y");
        assert_eq!(Prompting::default().apply(&plain), plain);
        assert!(prompting.in_words(Language::En).contains("1 worked examples"));
    }
}
