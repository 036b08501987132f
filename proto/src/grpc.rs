//! gRPC bodies whose payloads are not copied.
//!
//! Owns: messages in gRPC's wire format, both ways, and calls and answers that use them. Never: what a call means; deadlines, statuses
//! and trailers are tonic's.
//!
//! tonic encodes each message into one buffer, and gathers what arrives in one, which costs a copy of every payload each time and
//! the memory for it. Here a message that is sent becomes pieces: what is small is encoded into a buffer, and a `bytes` field that is
//! large goes along as it is, sharing its memory. What is received is decoded from the pieces it came in, and a field that lies
//! within one shares that piece's memory; so it should be sent in one HTTP/2 frame, and frames may be large.
//! The format is that of <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>: a byte that says "not compressed", the
//! length in four bytes, the message.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::buf::UninitSlice;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body::Frame;
use prost::Message;
use tokio_stream::Stream;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::codec::{DecodeBuf, Decoder, Streaming};
use tonic::codegen::{StdError, http};
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status};

/// The methods that carry batches.
pub const PRODUCE_STREAM: &str = "/highwater.v1.ProducerService/ProduceStream";
/// See [`PRODUCE_STREAM`].
pub const SUBSCRIBE: &str = "/highwater.v1.ConsumerService/Subscribe";
/// See [`PRODUCE_STREAM`].
pub const EXCHANGE: &str = "/highwater.internal.v1.RaftTransportService/Exchange";

/// Smaller fields are copied: a piece of its own costs more than that.
const PIECE_BYTES_MIN: usize = 4 << 10;
/// Messages that are ready are gathered up to this.
const GATHERED_BYTES: usize = 32 << 10;
/// Before each message: whether it is compressed, and its length.
const HEADER_BYTES: usize = 5;
const CONTENT_TYPE: http::HeaderValue = http::HeaderValue::from_static("application/grpc");

/// What has been encoded and not been sent.
#[derive(Debug, Default)]
struct Pieces {
    done: VecDeque<Bytes>,
    done_bytes: usize,
    /// What comes after them.
    small: BytesMut,
}

impl Pieces {
    /// Fails on a message of 4 GiB or more, which the format cannot hold.
    fn encode(&mut self, message: &impl Message) -> Result<(), Status> {
        let bytes = u32::try_from(message.encoded_len())
            .map_err(|_| Status::internal("a message of more than 4 GiB cannot be sent"))?;
        self.put_u8(0);
        self.put_u32(bytes);
        message.encode_raw(self);
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.done_bytes + self.small.len()
    }

    fn end_piece(&mut self) {
        if !self.small.is_empty() {
            self.done_bytes += self.small.len();
            self.done.push_back(self.small.split().freeze());
        }
    }

    fn next(&mut self) -> Option<Bytes> {
        if self.done.is_empty() {
            self.end_piece();
        }
        let piece = self.done.pop_front()?;
        self.done_bytes -= piece.len();
        Some(piece)
    }
}

// SAFETY: all that the trait requires of memory is handed on to a buffer that keeps it; `put`, which is not part of that, only
// decides whether bytes go there at all.
#[expect(unsafe_code, reason = "the trait is unsafe to implement")]
unsafe impl BufMut for Pieces {
    fn remaining_mut(&self) -> usize {
        self.small.remaining_mut()
    }

    unsafe fn advance_mut(&mut self, count: usize) {
        // SAFETY: our caller keeps this function's promise, which is the same.
        unsafe { self.small.advance_mut(count) };
    }

    fn chunk_mut(&mut self) -> &mut UninitSlice {
        self.small.chunk_mut()
    }

    /// prost hands `bytes` fields over whole.
    fn put<T: Buf>(&mut self, mut source: T) {
        let bytes = source.remaining();
        if bytes < PIECE_BYTES_MIN {
            self.small.put(source);
            return;
        }
        self.end_piece();
        self.done_bytes += bytes;
        self.done.push_back(source.copy_to_bytes(bytes));
    }

    fn put_slice(&mut self, source: &[u8]) {
        self.small.put_slice(source);
    }
}

/// A stream of messages as a body. A server's ends with trailers that say how it went.
struct MessageBody<S> {
    messages: Option<S>,
    pieces: Pieces,
    /// How it ended, if that is still to be said.
    outcome: Option<Status>,
    is_servers: bool,
}

impl<S> MessageBody<S> {
    fn new(messages: S, is_servers: bool) -> Self {
        Self { messages: Some(messages), pieces: Pieces::default(), outcome: None, is_servers }
    }
}

impl<S, M> http_body::Body for MessageBody<S>
where
    S: Stream<Item = Result<M, Status>> + Unpin,
    M: Message,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        while let Some(messages) = &mut this.messages
            && this.pieces.bytes() < GATHERED_BYTES
        {
            let encoded = match Pin::new(messages).poll_next(context) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(message))) => this.pieces.encode(&message),
                Poll::Ready(Some(Err(status))) => Err(status),
                Poll::Ready(None) => Err(Status::ok("")),
            };
            if let Err(status) = encoded {
                this.messages = None;
                this.outcome = Some(status);
            }
        }
        if let Some(piece) = this.pieces.next() {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        if this.messages.is_some() {
            return Poll::Pending;
        }
        let end = match this.outcome.take() {
            Some(status) if this.is_servers => {
                let mut trailers = http::HeaderMap::new();
                Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers)))
            }
            Some(status) if status.code() != Code::Ok => Some(Err(status)),
            _ => None,
        };
        Poll::Ready(end)
    }
}

/// What has been received and not been decoded.
#[derive(Debug, Default)]
struct Received {
    pieces: VecDeque<Bytes>,
    bytes: usize,
}

impl Received {
    fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.bytes += piece.len();
            self.pieces.push_back(piece);
        }
    }

    /// The length in the header of the next message, once that is there.
    fn next_bytes(&self) -> Option<Result<usize, Status>> {
        let mut head = self.pieces.iter().flatten().copied();
        let (compressed, length) =
            (head.next()?, [head.next()?, head.next()?, head.next()?, head.next()?]);
        let length = u32::from_be_bytes(length) as usize;
        Some(match compressed {
            0 => Ok(length),
            _ => Err(Status::unimplemented("compressed messages are not understood")),
        })
    }

    /// The next message, if all of it is there.
    fn decode<M: Message + Default>(&mut self, bytes_max: usize) -> Result<Option<M>, Status> {
        let Some(bytes) = self.next_bytes().transpose()? else { return Ok(None) };
        if bytes > bytes_max {
            let text = format!("a message of {bytes} bytes is too large: the limit is {bytes_max}");
            return Err(Status::out_of_range(text));
        }
        if self.bytes < HEADER_BYTES + bytes {
            return Ok(None);
        }
        self.advance(HEADER_BYTES);
        let mut message = Buf::take(&mut *self, bytes);
        let decoded = M::decode(&mut message);
        decoded.map(Some).map_err(|error| Status::internal(format!("not a message: {error}")))
    }
}

impl Buf for Received {
    fn remaining(&self) -> usize {
        self.bytes
    }

    fn chunk(&self) -> &[u8] {
        self.pieces.front().map_or(&[], |piece| piece)
    }

    fn advance(&mut self, mut count: usize) {
        self.bytes -= count;
        while let Some(front) = self.pieces.front_mut() {
            let here = count.min(front.len());
            front.advance(here);
            count -= here;
            if !front.is_empty() {
                return;
            }
            self.pieces.pop_front();
        }
    }

    fn copy_to_bytes(&mut self, bytes: usize) -> Bytes {
        let whole = self.pieces.front_mut().filter(|front| front.len() >= bytes);
        if let Some(shared) = whole.map(|front| front.slice(..bytes)) {
            self.advance(bytes);
            return shared;
        }
        let mut copy = BytesMut::with_capacity(bytes);
        copy.put(Buf::take(&mut *self, bytes));
        copy.freeze()
    }
}

/// Messages on their way from a body to tonic's `Streaming`, which is made to take them whole: for each, the body hands it an
/// empty message and [`FromQueue`] puts this one in its place.
type Queue<M> = Arc<Mutex<VecDeque<M>>>;

fn queue_of<M>(queue: &Queue<M>) -> MutexGuard<'_, VecDeque<M>> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

struct DecodedBody<B, M> {
    body: B,
    received: Received,
    bytes_max: usize,
    queue: Queue<M>,
}

impl<B, M> http_body::Body for DecodedBody<B, M>
where
    B: http_body::Body + Unpin,
    B::Error: Into<StdError>,
    M: Message + Default,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        loop {
            match this.received.decode(this.bytes_max) {
                Ok(Some(message)) => {
                    queue_of(&this.queue).push_back(message);
                    let empty = Bytes::from_static(&[0; HEADER_BYTES]);
                    return Poll::Ready(Some(Ok(Frame::data(empty))));
                }
                Ok(None) => {}
                Err(status) => return Poll::Ready(Some(Err(status))),
            }
            let frame = match ready!(Pin::new(&mut this.body).poll_frame(context)) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => {
                    return Poll::Ready(Some(Err(Status::from_error(error.into()))));
                }
                None if this.received.has_remaining() => {
                    this.received = Received::default();
                    let status = Status::internal("the stream ended within a message");
                    return Poll::Ready(Some(Err(status)));
                }
                None => return Poll::Ready(None),
            };
            match frame.into_data() {
                Ok(mut data) => this.received.push(data.copy_to_bytes(data.remaining())),
                Err(frame) => {
                    return Poll::Ready(
                        frame.into_trailers().ok().map(|trailers| Ok(Frame::trailers(trailers))),
                    );
                }
            }
        }
    }
}

struct FromQueue<M>(Queue<M>);

impl<M> Decoder for FromQueue<M> {
    type Item = M;
    type Error = Status;

    fn decode(&mut self, _: &mut DecodeBuf<'_>) -> Result<Option<M>, Status> {
        Ok(queue_of(&self.0).pop_front())
    }
}

/// A body with its decoder.
fn decoded<B, M>(body: B, bytes_max: usize) -> (FromQueue<M>, DecodedBody<B, M>) {
    let queue = Queue::default();
    let decoder = FromQueue(Arc::clone(&queue));
    (decoder, DecodedBody { body, received: Received::default(), bytes_max, queue })
}

/// Opens a stream in both directions at `path`, `/package.Service/Method`. Answers are at most `bytes_max` long.
pub async fn open<T, Q, A>(
    mut channel: T,
    path: &'static str,
    requests: impl Stream<Item = Q> + Send + Unpin + 'static,
    bytes_max: usize,
) -> Result<Streaming<A>, Status>
where
    T: GrpcService<Body>,
    T::ResponseBody: http_body::Body + Send + Unpin + 'static,
    <T::ResponseBody as http_body::Body>::Error: Into<StdError>,
    Q: Message + Send + Sync + 'static,
    A: Message + Default + Send + Sync + 'static,
{
    let status = |error: T::Error| Status::from_error(error.into());
    poll_fn(|context| channel.poll_ready(context)).await.map_err(status)?;
    let requests = tokio_stream::StreamExt::map(requests, Ok);
    let mut request = http::Request::new(Body::new(MessageBody::new(requests, false)));
    *request.method_mut() = http::Method::POST;
    *request.version_mut() = http::Version::HTTP_2;
    *request.uri_mut() = http::Uri::from_static(path);
    request.headers_mut().insert(http::header::TE, http::HeaderValue::from_static("trailers"));
    request.headers_mut().insert(http::header::CONTENT_TYPE, CONTENT_TYPE);
    let (head, body) = channel.call(request).await.map_err(status)?.into_parts();
    // An answer without messages has its outcome in the headers.
    match Status::from_header_map(&head.headers) {
        Some(status) if status.code() != Code::Ok => Err(status),
        Some(_) => Ok(Streaming::new_empty(FromQueue(Queue::default()), body)),
        None => {
            let (decoder, body) = decoded(body, bytes_max);
            Ok(Streaming::new_response(decoder, body, head.status, None, None))
        }
    }
}

/// Takes a request with a stream of messages of at most `bytes_max` each, has `method` answer it, and sends its messages.
pub async fn answer<Q, A, S, F>(
    request: http::Request<Body>,
    bytes_max: usize,
    method: impl FnOnce(Request<Streaming<Q>>) -> F,
) -> Result<http::Response<Body>, Infallible>
where
    Q: Message + Default + Send + Sync + 'static,
    A: Message + Send + Sync + 'static,
    S: Stream<Item = Result<A, Status>> + Send + Unpin + 'static,
    F: Future<Output = Result<Response<S>, Status>>,
{
    let (head, body) = request.into_parts();
    let (decoder, body) = decoded(body, bytes_max);
    let messages = Streaming::new_request(decoder, body, None, None);
    let metadata = MetadataMap::from_headers(head.headers);
    let response = match method(Request::from_parts(metadata, head.extensions, messages)).await {
        Ok(response) => response,
        Err(status) => return Ok(status.into_http()),
    };
    let (metadata, messages, extensions) = response.into_parts();
    let mut response = http::Response::new(Body::new(MessageBody::new(messages, true)));
    *response.version_mut() = http::Version::HTTP_2;
    *response.headers_mut() = metadata.into_headers();
    response.headers_mut().insert(http::header::CONTENT_TYPE, CONTENT_TYPE);
    *response.extensions_mut() = extensions;
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1;
    use v1::produce_stream_request::Message as Kind;

    fn batch(request_id: u64, payload: &Bytes) -> v1::ProduceStreamRequest {
        let batch = v1::ProduceBatch {
            request_id,
            topic: "orders".into(),
            partition: 7,
            batch: payload.clone(),
            timeout_ms: 1_000,
            ..Default::default()
        };
        v1::ProduceStreamRequest { message: Some(Kind::Batch(batch)) }
    }

    /// As the format says, by way of one buffer.
    fn expected(messages: &[v1::ProduceStreamRequest]) -> Vec<u8> {
        let mut all = Vec::new();
        for message in messages {
            let encoded = message.encode_to_vec();
            all.push(0);
            all.extend(u32::try_from(encoded.len()).unwrap().to_be_bytes());
            all.extend(encoded);
        }
        all
    }

    #[test]
    fn pieces_are_the_same_bytes_and_large_payloads_stay_where_they_are() {
        for bytes in [0, 1, PIECE_BYTES_MIN - 1, PIECE_BYTES_MIN, 1 << 20] {
            let payload = Bytes::from(vec![9; bytes]);
            let messages = [batch(1, &payload), batch(2, &payload)];
            let mut pieces = Pieces::default();
            messages.iter().for_each(|message| pieces.encode(message).unwrap());
            let expected = expected(&messages);
            assert_eq!(pieces.bytes(), expected.len());
            let found: Vec<Bytes> = std::iter::from_fn(|| pieces.next()).collect();
            assert_eq!(found.concat(), expected);
            assert_eq!(pieces.bytes(), 0);
            let shared = found.iter().filter(|piece| piece.as_ptr() == payload.as_ptr()).count();
            assert_eq!(shared, if bytes < PIECE_BYTES_MIN { 0 } else { 2 }, "{bytes}");
        }
    }

    #[test]
    fn messages_are_decoded_from_any_pieces_and_share_the_memory_of_large_ones() {
        let payload =
            Bytes::from((0..40_000_u32).map(|at| at.to_le_bytes()[0]).collect::<Vec<_>>());
        let messages =
            [batch(1, &payload), v1::ProduceStreamRequest::default(), batch(2, &payload)];
        let all = Bytes::from(expected(&messages));
        for piece_bytes in [1, 3, 4, 5, 6, 7, 1_000, 39_999, 50_000, all.len()] {
            let mut received = Received::default();
            let mut found = Vec::new();
            for at in (0..all.len()).step_by(piece_bytes) {
                received.push(all.slice(at..all.len().min(at + piece_bytes)));
                while let Some(message) =
                    received.decode::<v1::ProduceStreamRequest>(1 << 20).unwrap()
                {
                    found.push(message);
                }
            }
            assert_eq!(found, messages, "in pieces of {piece_bytes}");
            assert_eq!(received.remaining(), 0);
            let Some(Kind::Batch(first)) = &found[0].message else { panic!("a batch") };
            let is_shared = all.as_ptr_range().contains(&first.batch.as_ptr());
            assert_eq!(is_shared, piece_bytes >= 50_000, "in pieces of {piece_bytes}");
        }
    }

    #[test]
    fn a_length_is_believed_only_within_the_limit() {
        let mut received = Received::default();
        received.push(Bytes::from_static(&[0, 0xff, 0xff, 0xff, 0xff]));
        let status = received.decode::<v1::ProduceStreamRequest>(1 << 20).unwrap_err();
        assert_eq!(status.code(), Code::OutOfRange);
        let mut received = Received::default();
        received.push(Bytes::from_static(&[1, 0, 0, 0, 0]));
        let status = received.decode::<v1::ProduceStreamRequest>(1 << 20).unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented);
    }

    #[tokio::test]
    async fn what_one_side_sends_the_other_receives() {
        let sent = [batch(1, &Bytes::from(vec![3; 100_000])), batch(2, &Bytes::new())];
        let body = MessageBody::new(tokio_stream::iter(sent.clone().map(Ok)), true);
        let (decoder, body) = decoded(Body::new(body), 1 << 20);
        let status = http::StatusCode::OK;
        let mut stream =
            Streaming::<v1::ProduceStreamRequest>::new_response(decoder, body, status, None, None);
        for message in sent {
            assert_eq!(stream.message().await.unwrap(), Some(message));
        }
        assert_eq!(stream.message().await.unwrap(), None);
        let half = Body::new(MessageBody::new(
            tokio_stream::iter([Ok(batch(1, &Bytes::from(vec![3; 9_000])))]),
            false,
        ));
        let (decoder, body) = decoded(half, 8_000);
        let mut stream =
            Streaming::<v1::ProduceStreamRequest>::new_request(decoder, body, None, None);
        assert_eq!(stream.message().await.unwrap_err().code(), Code::OutOfRange);
    }

    async fn collect(
        body: impl http_body::Body<Data = Bytes, Error = Status>,
    ) -> (Vec<Bytes>, Result<Option<http::HeaderMap>, Status>) {
        let mut body = std::pin::pin!(body);
        let mut data = Vec::new();
        loop {
            match poll_fn(|context| body.as_mut().poll_frame(context)).await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(piece) => data.push(piece),
                    Err(frame) => return (data, Ok(frame.into_trailers().ok())),
                },
                Some(Err(status)) => return (data, Err(status)),
                None => return (data, Ok(None)),
            }
        }
    }

    #[tokio::test]
    async fn a_servers_body_ends_with_the_outcome_and_a_clients_does_not() {
        let one = batch(1, &Bytes::from_static(b"x"));
        let answers = vec![Ok(one.clone()), Err(Status::not_found("gone"))];
        let messages = tokio_stream::iter(answers.clone());
        let (data, end) = collect(MessageBody::new(messages, true)).await;
        assert_eq!(data.concat(), expected(std::slice::from_ref(&one)), "what came before is sent");
        let status = Status::from_header_map(&end.unwrap().unwrap()).unwrap();
        assert_eq!((status.code(), status.message()), (Code::NotFound, "gone"));
        let messages = tokio_stream::iter(vec![Ok(one.clone()), Ok(one.clone())]);
        let (data, end) = collect(MessageBody::new(messages, true)).await;
        assert_eq!(data.len(), 1, "small ones are gathered");
        assert_eq!(end.unwrap().unwrap()["grpc-status"], "0");
        let (_, end) = collect(MessageBody::new(tokio_stream::iter(answers), false)).await;
        assert_eq!(end.unwrap_err().code(), Code::NotFound);
        let messages = tokio_stream::iter(vec![Ok(one)]);
        let (_, end) = collect(MessageBody::new(messages, false)).await;
        assert_eq!(end.unwrap(), None);
    }
}
