//! From prompts to sequences of the engine, and from their tokens to text.

use crate::adapters::Resident;
use crate::caller::{Caller, deadline};
use crate::error::ApiError;
use crate::sampling::Sampling;
use crate::state::State;
use crate::structured::Form;
use engine::{EngineError, Event, FinishReason, SequenceRequest, Ticket, TokenLogprobs};
use futures_util::stream::{self, BoxStream, StreamExt};
use serde::Serialize;
use std::sync::Arc;
use std::time::Instant;
use text::{StopStrings, StreamDecoder};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// Choices being generated, all in the engine's batch together. Dropping it (because the client
/// went away) cancels them and frees their pages.
pub(crate) struct Generation {
    choices: Vec<Choice>,
    prompt_tokens: usize,
    caller: Caller,
}

/// What a choice gained.
#[derive(Debug)]
pub(crate) struct Piece {
    /// Which choice.
    pub(crate) index: usize,
    /// More text; may be empty.
    pub(crate) text: String,
    /// The tokens generated since the last piece, where the request asks for them. Their text may
    /// still be held back, or be a stop string that is not given out.
    pub(crate) logprobs: Vec<TokenLogprobs>,
    /// Set on the choice's last piece.
    pub(crate) end: Option<End>,
}

/// How a choice ended.
#[derive(Clone, Debug)]
pub(crate) struct End {
    /// `stop` or `length`.
    pub(crate) finish_reason: &'static str,
    /// Tokens generated for it.
    pub(crate) completion_tokens: usize,
    /// Tokens of its prompt that were known already; 0 for all but the first choice of a prompt.
    pub(crate) cached_tokens: usize,
    /// The stop string that ended it.
    pub(crate) stop: Option<String>,
}

/// A choice's whole text.
pub(crate) struct Finished {
    pub(crate) text: String,
    pub(crate) finish_reason: &'static str,
    /// The stop string that ended it.
    pub(crate) stop: Option<String>,
    /// Of the tokens generated, where the request asks for them.
    pub(crate) logprobs: Vec<TokenLogprobs>,
    /// Of the prompt's tokens from the second on, where the request asks for them.
    pub(crate) prompt_logprobs: Vec<TokenLogprobs>,
}

/// Tokens of a request, in OpenAI's names. A prompt with several choices counts once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: usize,
    pub(crate) completion_tokens: usize,
    pub(crate) total_tokens: usize,
    pub(crate) prompt_tokens_details: PromptTokensDetails,
}

/// Of the prompt's tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct PromptTokensDetails {
    /// Those whose keys and values were there from earlier requests.
    pub(crate) cached_tokens: usize,
}

impl Usage {
    pub(crate) fn new(prompt_tokens: usize) -> Usage {
        Usage { prompt_tokens, total_tokens: prompt_tokens, ..Usage::default() }
    }

    pub(crate) fn add(&mut self, end: &End) {
        self.completion_tokens += end.completion_tokens;
        self.total_tokens += end.completion_tokens;
        self.prompt_tokens_details.cached_tokens += end.cached_tokens;
    }
}

impl Generation {
    /// Queues `sampling.n` sequences for each of `prompts`, given with the decoder of what comes
    /// after it; choice `i * n + j` is the j-th of prompt i. All are queued or none. Each keeps to
    /// `form`. `prompt_field` is named when a prompt is at fault, and `max_tokens` holds where the
    /// request names no bound. The books of `caller` are opened here, and closed by
    /// [`Generation::finish`] or at the end of [`Generation::pieces`].
    pub(crate) fn start(
        state: &State,
        caller: &Caller,
        model: &Arc<Resident>,
        prompts: Vec<(Vec<u32>, StreamDecoder)>,
        sampling: &Sampling,
        form: Option<Form>,
        max_tokens: usize,
        prompt_field: &'static str,
    ) -> Result<Generation, ApiError> {
        let prompt_tokens = prompts.iter().map(|(ids, _)| ids.len()).sum();
        caller.begin(model, prompt_tokens)?;
        let time = Allowance::new(state);
        let mut choices = Vec::with_capacity(prompts.len() * sampling.n);
        for (prompt, decoder) in prompts {
            for j in 0..sampling.n {
                let request = SequenceRequest {
                    prompt: prompt.clone(),
                    params: sampling.params(j, max_tokens, &model.stop_ids),
                    adapter: model.adapter,
                    grammar: form.as_ref().map(|form| form.grammar.clone()),
                    tenant: caller.tenant(),
                    ..SequenceRequest::default()
                };
                let (sender, events) = unbounded_channel();
                let books = caller.clone();
                // The channel holds at most one event for each token of the context, so a client
                // that does not read costs little.
                let ticket = state
                    .engine
                    .submit(request, move |event| {
                        books.sees(&event, j == 0, time.end) && sender.send(event).is_ok()
                    })
                    .map_err(|e| ApiError::engine(&e, prompt_field))?;
                caller.submitted(&ticket);
                choices.push(Choice {
                    index: choices.len(),
                    ticket: Some(ticket),
                    events,
                    decoder: decoder.clone(),
                    stops: StopStrings::new(sampling.stop.clone()),
                    tokens: 0,
                    cached: 0,
                    counts_prompt: j == 0,
                    logprobs: Vec::new(),
                    prompt_logprobs: Vec::new(),
                    prompt_field,
                    form_field: form.as_ref().map(|form| form.field),
                    time,
                    _model: Arc::clone(model),
                });
            }
        }
        Ok(Generation { choices, prompt_tokens, caller: caller.clone() })
    }

    /// The request's usage so far: the prompts.
    pub(crate) fn usage(&self) -> Usage {
        Usage::new(self.prompt_tokens)
    }

    /// How many choices there are.
    pub(crate) fn len(&self) -> usize {
        self.choices.len()
    }

    /// All pieces of all choices as they come. Ends after the last choice or the first error; what it
    /// took is committed by then.
    pub(crate) fn pieces(self) -> BoxStream<'static, Result<Piece, ApiError>> {
        let (caller, usage) = (self.caller.clone(), self.usage());
        let pieces = stream::select_all(self.choices.into_iter().map(|c| c.pieces().boxed()));
        let source = (Some(pieces), caller, usage);
        stream::unfold(source, |(pieces, caller, mut usage)| async move {
            let mut pieces = pieces?;
            let next = pieces.next().await;
            match &next {
                Some(Ok(piece)) => {
                    caller.answered(piece);
                    piece.end.iter().for_each(|end| usage.add(end));
                }
                Some(Err(error)) => {
                    drop(pieces);
                    caller.finish(error.outcome()).await;
                    return Some((next?, (None, caller, usage)));
                }
                None => {
                    caller.complete(usage);
                    caller.finish("ok").await;
                }
            }
            Some((next?, (Some(pieces), caller, usage)))
        })
        .boxed()
    }

    /// Waits for all choices, and until what they took is committed.
    pub(crate) async fn finish(self) -> Result<(Vec<Finished>, Usage), ApiError> {
        let mut usage = self.usage();
        let mut finished = Vec::with_capacity(self.len());
        for mut choice in self.choices {
            let mut text = String::new();
            let mut logprobs = Vec::new();
            let end = loop {
                let piece = choice.next().await?;
                self.caller.answered(&piece);
                text.push_str(&piece.text);
                logprobs.extend(piece.logprobs);
                if let Some(end) = piece.end {
                    break end;
                }
            };
            usage.add(&end);
            let prompt_logprobs = choice.prompt_logprobs;
            let End { finish_reason, stop, .. } = end;
            finished.push(Finished { text, finish_reason, stop, logprobs, prompt_logprobs });
        }
        self.caller.complete(usage);
        self.caller.finish("ok").await;
        Ok((finished, usage))
    }
}

/// How long an answer may take.
#[derive(Clone, Copy)]
struct Allowance {
    end: Instant,
    seconds: u64,
}

impl Allowance {
    fn new(state: &State) -> Allowance {
        let seconds = state.plan().request_timeout_seconds;
        Allowance { end: deadline(seconds), seconds }
    }
}

/// One sequence in the engine and its text.
struct Choice {
    index: usize,
    /// None once a stop string has ended the choice.
    ticket: Option<Ticket>,
    events: UnboundedReceiver<Event>,
    decoder: StreamDecoder,
    stops: StopStrings,
    tokens: usize,
    /// Tokens of the prompt that were known already.
    cached: usize,
    /// Whether its prompt counts: the first choice's does.
    counts_prompt: bool,
    /// Not yet given out with a piece.
    logprobs: Vec<TokenLogprobs>,
    prompt_logprobs: Vec<TokenLogprobs>,
    prompt_field: &'static str,
    form_field: Option<&'static str>,
    time: Allowance,
    /// Keeps the adapter in the engine. Stands below the ticket, so that the sequence is cancelled
    /// before the adapter can go.
    _model: Arc<Resident>,
}

impl Choice {
    fn pieces(self) -> impl stream::Stream<Item = Result<Piece, ApiError>> + Send {
        stream::unfold(Some(self), |choice| async move {
            let mut choice = choice?;
            match choice.next().await {
                Ok(piece) if piece.end.is_none() => Some((Ok(piece), Some(choice))),
                last => Some((last, None)),
            }
        })
    }

    /// The next piece that has text or ends the choice. Not to be called after the end.
    async fn next(&mut self) -> Result<Piece, ApiError> {
        loop {
            // Also where nothing comes at all, because the sequence still waits.
            let end = tokio::time::Instant::from_std(self.time.end);
            let event = tokio::time::timeout_at(end, self.events.recv()).await;
            let piece = match event.map_err(|_| ApiError::timed_out(self.time.seconds))? {
                Some(Event::Token { token, logprobs, .. }) => {
                    self.logprobs.extend(logprobs);
                    self.token(token)?
                }
                Some(Event::Started { cached_tokens, .. }) => {
                    self.cached = cached_tokens;
                    continue;
                }
                Some(Event::Prompt { logprobs, .. }) => {
                    self.prompt_logprobs.extend(logprobs);
                    continue;
                }
                // Not asked for here.
                Some(Event::Embedding { .. }) => continue,
                Some(Event::Finished { reason, usage, .. }) => {
                    self.tokens = usage.completion_tokens;
                    self.finished(reason)?
                }
                Some(Event::Failed { error, .. }) => {
                    let told = ApiError::engine(&error, self.prompt_field);
                    return Err(match (error, self.form_field) {
                        (EngineError::Grammar(_), Some(field)) => told.with_param(field),
                        _ => told,
                    });
                }
                // The engine was told to stop, here or by `Caller::sees`.
                None if Instant::now() >= self.time.end => {
                    return Err(ApiError::timed_out(self.time.seconds));
                }
                None => return Err(ApiError::stopped()),
            };
            if !piece.text.is_empty() || piece.end.is_some() {
                return Ok(Piece { logprobs: std::mem::take(&mut self.logprobs), ..piece });
            }
        }
    }

    fn token(&mut self, token: u32) -> Result<Piece, ApiError> {
        self.tokens += 1;
        let text = self.decoder.push(token).map_err(|e| ApiError::internal(e.to_string()))?;
        let outcome = self.stops.push(&text.unwrap_or_default());
        if outcome.stopped {
            self.ticket = None;
        }
        Ok(self.piece(outcome.text, outcome.stopped.then_some("stop")))
    }

    fn finished(&mut self, reason: FinishReason) -> Result<Piece, ApiError> {
        let finish_reason = match reason {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Cancelled => return Err(ApiError::stopped()),
        };
        let rest = self.decoder.finish();
        let outcome = self.stops.push(&rest);
        let finish_reason = if outcome.stopped { "stop" } else { finish_reason };
        let text = outcome.text + &self.stops.finish();
        Ok(self.piece(text, Some(finish_reason)))
    }

    fn piece(&self, text: String, finish_reason: Option<&'static str>) -> Piece {
        let cached_tokens = if self.counts_prompt { self.cached } else { 0 };
        let completion_tokens = self.tokens;
        let stop = || self.stops.which().map(str::to_owned);
        let end = finish_reason.map(|finish_reason| End {
            finish_reason,
            completion_tokens,
            cached_tokens,
            stop: stop(),
        });
        Piece { index: self.index, text, logprobs: Vec::new(), end }
    }
}
