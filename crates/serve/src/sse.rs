//! Server-sent events as OpenAI's clients read them.

use crate::error::ApiError;
use crate::generation::{Piece, Usage};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, BoxStream, StreamExt};
use serde::Serialize;
use std::collections::VecDeque;
use std::convert::Infallible;

/// The chunks of one endpoint.
pub(crate) trait Chunks: Send + 'static {
    /// The wire type.
    type Chunk: Serialize;
    /// What ends a stream that was not broken off.
    const DONE: Option<&'static str> = Some("[DONE]");
    /// Before anything is generated.
    fn head(&mut self) -> Vec<Self::Chunk>;
    /// What a piece becomes.
    fn piece(&mut self, piece: Piece) -> Vec<Self::Chunk>;
    /// After the last piece: the usage, where the request asked for it.
    fn end(&mut self, usage: Usage) -> Vec<Self::Chunk>;
    /// The name of a chunk's event, where the endpoint's events have names.
    fn name(_chunk: &Self::Chunk) -> Option<&'static str> {
        None
    }
    /// What an error on the way becomes: an event's name and data. It ends the stream.
    fn error(&mut self, error: &ApiError) -> (Option<&'static str>, String) {
        (None, error.json())
    }
}

/// Streams the chunks, then what the endpoint ends with. Dropping the response drops `pieces`, which
/// cancels them.
pub(crate) fn respond<C: Chunks>(
    mut chunks: C,
    pieces: BoxStream<'static, Result<Piece, ApiError>>,
    usage: Usage,
) -> Response {
    let ready = chunks.head().iter().map(event::<C>).collect();
    let source = Source { chunks, pieces: Some(pieces), usage, ready };
    let events = stream::unfold(source, |mut source| async move {
        let event = source.next().await?;
        Some((Ok::<_, Infallible>(event), source))
    });
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}

struct Source<C> {
    chunks: C,
    /// None after the last one.
    pieces: Option<BoxStream<'static, Result<Piece, ApiError>>>,
    usage: Usage,
    /// Events to send before the next piece is waited for.
    ready: VecDeque<Event>,
}

impl<C: Chunks> Source<C> {
    async fn next(&mut self) -> Option<Event> {
        while self.ready.is_empty() {
            match self.pieces.as_mut()?.next().await {
                Some(Ok(piece)) => {
                    piece.end.iter().for_each(|end| self.usage.add(end));
                    self.ready.extend(self.chunks.piece(piece).iter().map(event::<C>));
                }
                Some(Err(error)) => {
                    self.pieces = None;
                    let (name, data) = self.chunks.error(&error);
                    self.ready.push_back(named(name, data));
                }
                None => {
                    self.pieces = None;
                    self.ready.extend(self.chunks.end(self.usage).iter().map(event::<C>));
                    self.ready.extend(C::DONE.map(|done| named(None, done.to_owned())));
                    if self.ready.is_empty() {
                        return None;
                    }
                }
            }
        }
        self.ready.pop_front()
    }
}

/// A chunk's event: JSON on a single line.
fn event<C: Chunks>(chunk: &C::Chunk) -> Event {
    let data =
        serde_json::to_string(chunk).unwrap_or_else(|e| ApiError::internal(e.to_string()).json());
    named(C::name(chunk), data)
}

fn named(name: Option<&'static str>, data: String) -> Event {
    let event = Event::default();
    match name {
        Some(name) => event.event(name),
        None => event,
    }
    .data(data)
}
