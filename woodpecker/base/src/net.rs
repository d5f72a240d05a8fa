//! The network, as far as a role needs it: a listener that yields connections and a connector that makes them. Both
//! are injected, so that a role runs on TCP in production and on a simulated network in tests. They also carry what
//! secures them, so that a role that listens and dials knows nothing of certificates and tokens:
//! - a [`Listener`] behind a [`Gate`] speaks TLS, takes so many connections, and has its calls checked by the [`Guard`]
//!   that its server is built with;
//! - a [`Connector`] speaks TLS and shows a [`Token`] with every call of the [`Dialed`] channels that it makes.

mod access;
mod connector;
mod gate;
mod gather;
mod guard;
mod prompt;
mod refusals;
#[cfg(test)]
mod tests;
mod tls;

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use futures::{Stream, StreamExt, stream::BoxStream};
use http::uri::Authority;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::OwnedSemaphorePermit,
};

use self::gather::Gathered;
pub use self::{
    access::{Denied, Need, Role, Tokens, TokensError, operate},
    connector::{Connector, Dialed, Shown, Token, TokenError, tcp_connector},
    gate::Gate,
    guard::{Guard, Guarded},
    refusals::Refusals,
    tls::{ClientAuth, ClientTls, Demands, OldestTls, Pem, ServerTls, TlsError},
};

/// Whether it is an address that can be dialled: `host:port` and nothing else, with an IPv6 host in brackets.
#[must_use]
pub fn is_host_and_port(text: &str) -> bool {
    let Ok(authority) = text.parse::<Authority>() else { return false };
    let host = authority.host().trim_matches(['[', ']']);
    !host.is_empty() && !text.contains('@') && authority.port_u16().is_some_and(|port| port > 0)
}

/// Any byte stream a connection can run on.
pub trait Bytestream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Bytestream for T {}

/// An accepted or made connection.
pub struct Connection {
    stream: Box<dyn Bytestream>,
    peer: Option<SocketAddr>,
    /// Its place among those that its gate lets in.
    place: Option<OwnedSemaphorePermit>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Connection {
    /// Wraps a byte stream.
    pub fn new(stream: impl Bytestream, peer: Option<SocketAddr>) -> Self {
        Self { stream: Box::new(stream), peer, place: None }
    }

    /// The address at the other end, where the network has addresses.
    #[must_use]
    pub fn peer(&self) -> Option<SocketAddr> {
        self.peer
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
    guard: Guard,
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
            Ok(Connection::new(Gathered::new(stream), peer))
        });
        Ok(Self::injected(address, connections.boxed()))
    }

    /// A listener that yields what `connections` yields; `address` is what peers dial.
    pub fn injected(address: String, connections: BoxStream<'static, io::Result<Connection>>) -> Self {
        Self { address, connections, guard: Guard::default() }
    }

    /// Lets in only what passes the gate.
    #[must_use]
    pub fn behind(self, gate: &Gate) -> Self {
        Self { connections: gate.admit(self.connections), guard: gate.guard(), ..self }
    }

    /// The bound address as `host:port`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The layer that the server on this listener must be built with; without a gate it lets every call through.
    #[must_use]
    pub fn guard(&self) -> Guard {
        self.guard.clone()
    }
}

impl Stream for Listener {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.connections.poll_next_unpin(cx)
    }
}
