//! The model under test as tasks see it: texts in, log-likelihoods and continuations out, all of them on
//! the serving engine.

use crate::candidate::{Answer, Likelihood};
use engine::{
    Completion, Engine, EngineError, Event, FinishReason, Runner, SamplingParams, SequenceId,
    SequenceRequest,
};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;
use text::{StopStrings, StreamDecoder, Tokenizer};

/// Continuations under way at once.
const IN_FLIGHT: usize = 128;

/// A model, with or without an adapter, and its tokenizer.
pub struct TaskModel<'a, R: Runner> {
    /// What runs it.
    pub engine: &'a mut Engine<R>,
    /// Its tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// Slot of the adapter; None: the base alone.
    pub adapter: Option<usize>,
    /// Tokens that end an answer, beside those of the tokenizer.
    pub stop_ids: Vec<u32>,
}

/// A context and its continuation as token ids.
struct Pair {
    context: Vec<u32>,
    continuation: Vec<u32>,
}

impl<R: Runner> TaskModel<'_, R> {
    /// The token that the model sees first, where the tokenizer puts one in front of a text.
    pub(super) fn first_token(&self) -> Option<String> {
        let bos = self.tokenizer.bos_id().filter(|_| self.tokenizer.add_bos());
        bos.and_then(|id| self.tokenizer.token(id))
    }

    /// How likely each continuation is behind its context. `progress` gets the number of those done.
    pub(super) fn weigh(
        &mut self,
        pairs: &[(String, String)],
        progress: &mut dyn FnMut(usize),
    ) -> Vec<Result<Likelihood, String>> {
        let encoded = pairs.iter().map(|(context, text)| self.encode_pair(context, text));
        self.weigh_tokens(encoded.collect(), progress)
    }

    /// How likely whole texts are, in windows of the model's context, each token once.
    pub(super) fn roll(
        &mut self,
        texts: &[&str],
        progress: &mut dyn FnMut(usize),
    ) -> Vec<Result<Likelihood, String>> {
        let (mut windows, mut owners) = (Vec::new(), Vec::new());
        for (index, text) in texts.iter().enumerate() {
            match self.windows(text) {
                Ok(pairs) => {
                    owners.extend(pairs.iter().map(|_| index));
                    windows.extend(pairs.into_iter().map(Ok));
                }
                Err(reason) => {
                    owners.push(index);
                    windows.push(Err(reason));
                }
            }
        }
        let empty = Likelihood { sum: 0.0, greedy: true, tokens: 0 };
        let mut sums: Vec<Result<Likelihood, String>> = texts.iter().map(|_| Ok(empty)).collect();
        for (found, owner) in self.weigh_tokens(windows, progress).into_iter().zip(owners) {
            sums[owner] = match (sums[owner].clone(), found) {
                (Ok(sum), Ok(window)) => Ok(Likelihood {
                    sum: sum.sum + window.sum,
                    greedy: sum.greedy && window.greedy,
                    tokens: sum.tokens + window.tokens,
                }),
                (Err(reason), _) | (_, Err(reason)) => Err(reason),
            };
        }
        sums
    }

    /// What the model says behind each context, greedily, up to the first of the texts `until`.
    pub(super) fn generate(
        &mut self,
        contexts: &[&str],
        until: &[String],
        max_tokens: usize,
        progress: &mut dyn FnMut(usize),
    ) -> Vec<Answer> {
        let mut answers = vec![Answer::default(); contexts.len()];
        let mut running: HashMap<SequenceId, Running> = HashMap::new();
        let (mut next, mut done) = (0, 0);
        while next < contexts.len() || !running.is_empty() {
            while next < contexts.len() && running.len() < IN_FLIGHT {
                match self.start(contexts[next], until, max_tokens, next) {
                    Ok((id, one)) => _ = running.insert(id, one),
                    Err(reason) => {
                        answers[next] = Answer::failed(reason);
                        done += 1;
                    }
                }
                next += 1;
            }
            for event in self.engine.step() {
                let id = event.id();
                let Some(one) = running.get_mut(&id) else { continue };
                let over = match one.hear(&event) {
                    // What is complete need not be gone on with.
                    Ok(true) => {
                        self.engine.cancel(id);
                        true
                    }
                    Ok(false) => event.is_last(),
                    Err(reason) => {
                        answers[one.index] = Answer::failed(reason);
                        self.engine.cancel(id);
                        running.remove(&id);
                        done += 1;
                        continue;
                    }
                };
                if over && let Some(one) = running.remove(&id) {
                    let index = one.index;
                    answers[index] = one.answer();
                    done += 1;
                }
            }
            progress(done);
        }
        answers
    }

    fn start(
        &mut self,
        context: &str,
        until: &[String],
        max_tokens: usize,
        index: usize,
    ) -> Result<(SequenceId, Running), String> {
        let limit = self.engine.limits().max_len();
        let most = limit.checked_sub(max_tokens).filter(|most| *most > 0).ok_or_else(|| {
            format!("{max_tokens} tokens are to be generated; the model's context has {limit}")
        })?;
        let mut prompt = self.tokenizer.encode_prompt(context).map_err(|e| e.to_string())?;
        // As the harness does: what does not fit is cut off in front.
        prompt.drain(..prompt.len().saturating_sub(most));
        if prompt.is_empty() {
            prompt.push(self.prefix()?);
        }
        let mut stop_ids = self.tokenizer.stop_ids().to_vec();
        stop_ids.extend(&self.stop_ids);
        let running = Running {
            index,
            decoder: StreamDecoder::new(Arc::clone(&self.tokenizer)),
            stops: StopStrings::new(until.to_vec()),
            text: String::new(),
            started: None,
            prompt_tokens: prompt.len(),
            tokens: 0,
            stopped: false,
            seconds: 0.0,
        };
        let request = SequenceRequest {
            prompt,
            params: SamplingParams { max_tokens, stop_ids, ..SamplingParams::default() },
            adapter: self.adapter,
            ..SequenceRequest::default()
        };
        let id = self.engine.add(request).map_err(|error| error.to_string())?;
        Ok((id, running))
    }

    /// Requests are sent so that what they share is computed once: the first of all alone, then in
    /// each batch the first continuation of each context before its others.
    fn weigh_tokens(
        &mut self,
        pairs: Vec<Result<Pair, String>>,
        progress: &mut dyn FnMut(usize),
    ) -> Vec<Result<Likelihood, String>> {
        let mut found: Vec<Result<Likelihood, String>> = pairs
            .iter()
            .map(|pair| Err(pair.as_ref().err().cloned().unwrap_or_default()))
            .collect();
        let pairs: Vec<(usize, Pair)> = pairs
            .into_iter()
            .enumerate()
            .filter_map(|(index, pair)| Some((index, pair.ok()?)))
            .collect();
        // As many tokens as half the cache holds: what the first ones leave is there for the others.
        let budget = (self.engine.limits().cache_tokens / 2).max(1);
        let (mut batch, mut tokens): (Vec<&(usize, Pair)>, usize) = (Vec::new(), 0);
        let mut done = found.len() - pairs.len();
        for (place, pair) in pairs.iter().enumerate() {
            batch.push(pair);
            tokens += pair.1.context.len() + pair.1.continuation.len();
            let same = pairs.get(place + 1).is_some_and(|next| next.1.context == pair.1.context);
            if place > 0
                && (same && tokens < 4 * budget || tokens < budget)
                && place + 1 < pairs.len()
            {
                continue;
            }
            let mut last: Option<&[u32]> = None;
            let (first, others): (Vec<_>, Vec<_>) = batch.drain(..).partition(|(_, pair)| {
                let new = last != Some(&pair.context[..]);
                last = Some(&pair.context);
                new
            });
            for some in [first, others] {
                for (index, likelihood) in self.run_batch(&some) {
                    found[index] = likelihood;
                    done += 1;
                }
                progress(done);
            }
            tokens = 0;
        }
        found
    }

    fn run_batch(&mut self, pairs: &[&(usize, Pair)]) -> Vec<(usize, Result<Likelihood, String>)> {
        let most = self.engine.limits().context_len + 1;
        let requests = pairs.iter().map(|(_, pair)| {
            let mut prompt = pair.context.clone();
            prompt.extend(&pair.continuation);
            // As the harness does: what does not fit is cut off in front.
            prompt.drain(..prompt.len().saturating_sub(most));
            let from = prompt.len().saturating_sub(pair.continuation.len());
            let params = SamplingParams {
                max_tokens: 0,
                logprobs: Some(0),
                prompt_logprobs: true,
                prompt_logprobs_from: from,
                ..SamplingParams::default()
            };
            SequenceRequest { prompt, params, adapter: self.adapter, ..SequenceRequest::default() }
        });
        let completions = self.engine.generate(requests.collect(), |_, _| ());
        let likelihoods = completions.into_iter().map(likelihood);
        pairs.iter().map(|(index, _)| *index).zip(likelihoods).collect()
    }

    /// Space at the end of the context belongs to the continuation, and the continuation's tokens are
    /// those of both texts together behind as many as the context alone has.
    fn encode_pair(&self, context: &str, continuation: &str) -> Result<Pair, String> {
        let encode = |text: &str| self.tokenizer.encode_prompt(text).map_err(|e| e.to_string());
        if context.is_empty() {
            let prefix = self.prefix()?;
            let tokens = self.tokenizer.encode_with_specials(continuation);
            let mut continuation = tokens.map_err(|error| error.to_string())?;
            if continuation.first() == Some(&prefix) {
                continuation.remove(0);
            }
            return pair(vec![prefix], continuation);
        }
        let kept = context.trim_end_matches(crate::metrics::python_is_space);
        let whole = encode(&format!("{context}{continuation}"))?;
        let head = encode(kept)?;
        if head.is_empty() {
            return Err("the context has no tokens".to_owned());
        }
        let tail = whole.get(head.len()..).unwrap_or_default().to_vec();
        pair(head, tail)
    }

    /// What stands before a text that has nothing in front: the beginning token, or else the end token.
    fn prefix(&self) -> Result<u32, String> {
        let prefix = self.tokenizer.bos_id().or(self.tokenizer.eos_id());
        prefix.ok_or_else(|| {
            "the tokenizer has neither a beginning nor an end token, so nothing can stand before the text".to_owned()
        })
    }

    /// Windows of as many tokens as the model reads, each with one token of context where it can have
    /// no more.
    fn windows(&self, text: &str) -> Result<Vec<Pair>, String> {
        let tokens = self.tokenizer.encode_prompt(text).map_err(|error| error.to_string())?;
        let most = self.engine.limits().context_len;
        let first = most.min(tokens.len());
        let mut windows = Vec::new();
        if first > 0 {
            windows.push(pair(vec![self.prefix()?], tokens[..first].to_vec())?);
        }
        let mut told = first;
        while told < tokens.len() {
            let len = (tokens.len() - told).min(most);
            let end = told + len;
            let context = tokens[end - most - 1..told].to_vec();
            windows.push(pair(context, tokens[told..end].to_vec())?);
            told = end;
        }
        Ok(windows)
    }
}

fn pair(context: Vec<u32>, continuation: Vec<u32>) -> Result<Pair, String> {
    match continuation.is_empty() {
        true => Err("the continuation has no tokens of its own".to_owned()),
        false => Ok(Pair { context, continuation }),
    }
}

fn likelihood(completion: Result<Completion, EngineError>) -> Result<Likelihood, String> {
    let told = completion.map_err(|error| error.to_string())?.prompt_logprobs;
    Ok(Likelihood {
        sum: told.iter().map(|t| f64::from(t.logprob)).sum(),
        greedy: told.iter().all(|t| t.rank == 0),
        tokens: told.len(),
    })
}

/// A continuation under way.
struct Running {
    index: usize,
    decoder: StreamDecoder,
    stops: StopStrings,
    text: String,
    started: Option<Instant>,
    prompt_tokens: usize,
    tokens: usize,
    stopped: bool,
    seconds: f64,
}

impl Running {
    /// Takes an event; true when a stop text is complete.
    fn hear(&mut self, event: &Event) -> Result<bool, String> {
        match event {
            Event::Started { .. } => self.started = Some(Instant::now()),
            Event::Token { token, .. } => {
                self.tokens += 1;
                let piece = self.decoder.push(*token).map_err(|error| error.to_string())?;
                self.take(&piece.unwrap_or_default());
            }
            Event::Finished { reason, .. } => {
                let rest = self.decoder.finish();
                self.take(&rest);
                if !self.stopped {
                    let held = self.stops.finish();
                    self.text.push_str(&held);
                }
                self.stopped |= *reason == FinishReason::Stop;
            }
            Event::Failed { error, .. } => return Err(error.to_string()),
            Event::Prompt { .. } | Event::Embedding { .. } => {}
        }
        self.seconds = self.started.map_or(0.0, |start| start.elapsed().as_secs_f64());
        Ok(self.stopped && !event.is_last())
    }

    fn take(&mut self, piece: &str) {
        let outcome = self.stops.push(piece);
        self.text.push_str(&outcome.text);
        self.stopped |= outcome.stopped;
    }

    fn answer(self) -> Answer {
        Answer {
            text: self.text,
            stopped: Some(self.stopped),
            prompt_tokens: Some(self.prompt_tokens),
            answer_tokens: Some(self.tokens),
            seconds: Some(self.seconds),
            ..Answer::default()
        }
    }
}
