//! The network, as far as a role needs it: a listener that yields connections and a connector that makes them. Both
//! are injected, so that a role runs on TCP in production and on a simulated network in tests.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use futures::{Stream, StreamExt, stream::BoxStream};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tower::util::BoxCloneSyncService;

/// Any byte stream a connection can run on.
pub trait Bytestream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Bytestream for T {}

/// An accepted or made connection.
pub struct Connection {
    stream: Box<dyn Bytestream>,
    peer: Option<SocketAddr>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Connection {
    /// Wraps a byte stream.
    pub fn new(stream: impl Bytestream, peer: Option<SocketAddr>) -> Self {
        Self { stream: Box::new(stream), peer }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl tonic::transport::server::Connected for Connection {
    type ConnectInfo = Option<SocketAddr>;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.peer
    }
}

/// Where a server's connections come from.
pub struct Listener {
    address: String,
    connections: BoxStream<'static, io::Result<Connection>>,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Listener {
    /// Binds a TCP socket; port 0 takes a free one.
    ///
    /// # Errors
    /// The address is in use or not ours.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = tokio::net::TcpListener::bind(address).await?;
        let address = listener.local_addr()?.to_string();
        let connections = tokio_stream::wrappers::TcpListenerStream::new(listener).map(|accepted| {
            let stream = accepted?;
            // Small frames carry acks: waiting to fill a packet would cost each of them a round trip.
            stream.set_nodelay(true)?;
            let peer = stream.peer_addr().ok();
            Ok(Connection::new(stream, peer))
        });
        Ok(Self { address, connections: connections.boxed() })
    }

    /// A listener that yields what `connections` yields; `address` is what peers dial.
    pub fn injected(address: String, connections: BoxStream<'static, io::Result<Connection>>) -> Self {
        Self { address, connections }
    }

    /// The bound address as `host:port`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl Stream for Listener {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.connections.poll_next_unpin(cx)
    }
}

/// Makes connections; what tonic's `connect_with_connector` takes.
pub type Connector = BoxCloneSyncService<http::Uri, TokioIo<Connection>, io::Error>;

/// A connector over TCP.
#[must_use]
pub fn tcp_connector() -> Connector {
    BoxCloneSyncService::new(tower::service_fn(|uri: http::Uri| async move {
        let authority = uri.authority().ok_or_else(|| io::Error::other(format!("no host in {uri}")))?;
        let port = authority.port_u16().ok_or_else(|| io::Error::other(format!("no port in {uri}")))?;
        let stream = tokio::net::TcpStream::connect((authority.host(), port)).await?;
        stream.set_nodelay(true)?;
        let peer = stream.peer_addr().ok();
        Ok(TokioIo::new(Connection::new(stream, peer)))
    }))
}
