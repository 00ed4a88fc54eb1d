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
    /// Before anything is generated.
    fn head(&mut self) -> Vec<Self::Chunk>;
    /// What a piece becomes.
    fn piece(&mut self, piece: Piece) -> Vec<Self::Chunk>;
    /// The chunk with the usage, when the request asked for one.
    fn usage(&mut self, usage: Usage) -> Option<Self::Chunk>;
}

/// Streams the chunks, then `data: [DONE]`. An error on the way is sent as an error body and ends
/// the stream without `[DONE]`. Dropping the response drops `pieces`, which cancels them.
pub(crate) fn respond<C: Chunks>(
    mut chunks: C,
    pieces: BoxStream<'static, Result<Piece, ApiError>>,
    usage: Usage,
) -> Response {
    let ready = chunks.head().iter().map(data).collect();
    let source = Source { chunks, pieces: Some(pieces), usage, ready };
    let events = stream::unfold(source, |mut source| async move {
        let event = source.next().await?;
        Some((Ok::<_, Infallible>(Event::default().data(event)), source))
    });
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}

struct Source<C> {
    chunks: C,
    /// None after the last one.
    pieces: Option<BoxStream<'static, Result<Piece, ApiError>>>,
    usage: Usage,
    /// Events to send before the next piece is waited for.
    ready: VecDeque<String>,
}

impl<C: Chunks> Source<C> {
    async fn next(&mut self) -> Option<String> {
        while self.ready.is_empty() {
            match self.pieces.as_mut()?.next().await {
                Some(Ok(piece)) => {
                    piece.end.iter().for_each(|end| self.usage.add(end));
                    self.ready.extend(self.chunks.piece(piece).iter().map(data));
                }
                Some(Err(error)) => {
                    self.pieces = None;
                    self.ready.push_back(error.json());
                }
                None => {
                    self.pieces = None;
                    self.ready.extend(self.chunks.usage(self.usage).iter().map(data));
                    self.ready.push_back("[DONE]".into());
                }
            }
        }
        self.ready.pop_front()
    }
}

/// One event's data: JSON on a single line.
fn data<T: Serialize>(chunk: &T) -> String {
    serde_json::to_string(chunk).unwrap_or_else(|e| ApiError::internal(e.to_string()).json())
}
