//! Streams of bytes over gRPC, and the errors in their trailers.

use std::{marker::PhantomData, time::Duration};

use bytes::{Buf, BufMut, Bytes};
use prost::Message;
use streaming_proto::streaming::{StreamingCode, StreamingError};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request, Status, Streaming,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    metadata::{AsciiMetadataValue, MetadataMap},
    transport::Channel,
};

/// Long enough for a machine that builds next door.
pub(super) const LIMIT: Duration = Duration::from_secs(20);

/// Passes the bytes of a message through, whatever they hold.
#[derive(Debug, Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// Metadata of a call, in the order in which it is sent; a key may come twice.
pub(super) type Headers<'a> = &'a [(&'static str, &'a str)];

/// Adds headers to a request.
pub(super) fn add_headers(metadata: &mut MetadataMap, headers: Headers<'_>) {
    for (key, value) in headers {
        metadata.append(*key, AsciiMetadataValue::try_from(*value).expect("ASCII"));
    }
}

/// One message, one answer.
pub(super) async fn unary(channel: &Channel, path: &'static str, request: &impl Message) -> Result<Bytes, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.expect("a connection");
    let request = Request::new(Bytes::from(request.encode_to_vec()));
    Ok(grpc.unary(request, PathAndQuery::from_static(path), Raw).await?.into_inner())
}

/// A bidirectional stream whose responses are `R`.
pub(super) struct Call<R> {
    requests: Option<mpsc::Sender<Bytes>>,
    responses: Streaming<Bytes>,
    response: PhantomData<R>,
}

impl<R: Message + Default> Call<R> {
    /// Opens a stream. A refusal may come here or with the first response.
    pub(super) async fn open(channel: &Channel, path: &'static str, headers: Headers<'_>) -> Result<Self, Refusal> {
        let (requests, queue) = mpsc::channel(4096);
        let mut request = Request::new(ReceiverStream::new(queue));
        add_headers(request.metadata_mut(), headers);
        let mut grpc = tonic::client::Grpc::new(channel.clone()).max_decoding_message_size(256 << 20);
        grpc.ready().await.expect("a connection");
        let opened = grpc.streaming(request, PathAndQuery::from_static(path), Raw);
        let opened = tokio::time::timeout(LIMIT, opened).await.expect("an answer in time");
        let responses = opened.map_err(|status| Refusal::of(&status))?.into_inner();
        Ok(Self { requests: Some(requests), responses, response: PhantomData })
    }

    pub(super) async fn send(&self, request: &impl Message) {
        self.send_bytes(&request.encode_to_vec()).await;
    }

    /// Sends these bytes as one message. A stream that has ended by now takes no more.
    pub(super) async fn send_bytes(&self, bytes: &[u8]) {
        let requests = self.requests.as_ref().expect("not half-closed");
        let _ = requests.send(Bytes::copy_from_slice(bytes)).await;
    }

    pub(super) fn half_close(&mut self) {
        self.requests = None;
    }

    /// The next response as it is on the wire; `None` when the stream ended with OK.
    pub(super) async fn next_bytes(&mut self) -> Result<Option<Bytes>, Refusal> {
        let next = tokio::time::timeout(LIMIT, self.responses.message()).await.expect("a response in time");
        next.map_err(|status| Refusal::of(&status))
    }

    /// The next response; `None` when the stream ended with OK.
    pub(super) async fn next(&mut self) -> Result<Option<R>, Refusal> {
        Ok(self.next_bytes().await?.map(|bytes| R::decode(bytes).expect("a response of this kind")))
    }

    /// Whether nothing comes for so long.
    pub(super) async fn is_silent(&mut self, period: Duration) -> bool {
        tokio::time::timeout(period, self.responses.message()).await.is_err()
    }
}

/// What a handshake is to be refused with, and what the text of the refusal contains; `None` if it is to succeed.
pub(super) type Refused<'a> = Option<(StreamingCode, &'a str)>;

/// An error of a streaming service, taken from the trailers and held against every rule of their form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: StreamingCode,
    pub(super) cause: String,
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<AnyMessage>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
struct AnyMessage {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

impl Refusal {
    pub(super) fn of(status: &Status) -> Self {
        assert_eq!(status.message(), "", "the text of a streaming status is empty: {status:?}");
        let details = RpcStatus::decode(status.details()).expect("google.rpc.Status");
        assert_eq!(details.code, i32::from(status.code()), "{status:?}");
        let [detail] = &details.details[..] else { panic!("not one detail: {details:?}") };
        assert_eq!(detail.type_url, "type.googleapis.com/milvus.proto.streaming.StreamingError");
        let error = StreamingError::decode(detail.value.as_slice()).expect("a StreamingError");
        let refusal = Self { code: error.code(), cause: error.cause };
        assert_eq!(refusal.grpc_code(), status.code(), "{refusal:?}");
        refusal
    }

    /// What goes with the code. Never UNAVAILABLE, which channels retry by themselves.
    fn grpc_code(&self) -> Code {
        match self.code {
            StreamingCode::Inner => Code::Internal,
            StreamingCode::InvaildArgument => Code::InvalidArgument,
            StreamingCode::Unknown => Code::Unknown,
            _ => Code::FailedPrecondition,
        }
    }

    /// Holds the refusal against what is expected of it: the code, and what its text contains.
    pub(super) fn expect(&self, what: &str, code: StreamingCode, cause: &str) {
        assert_eq!(self.code, code, "{what}: {self:?}");
        assert!(self.cause.contains(cause), "{what}: {self:?} does not say {cause:?}");
    }
}
