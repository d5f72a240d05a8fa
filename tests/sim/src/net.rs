//! The simulated network as the roles' listener and connector.

use std::io;

use futures::{StreamExt, stream};
use woodpecker_base::net::{Connection, Connector, Listener};

/// Listens on `port` of the simulated host `host`.
///
/// # Errors
/// The port is taken.
pub async fn listen(host: &str, port: u16) -> io::Result<Listener> {
    let listener = turmoil::net::TcpListener::bind(("0.0.0.0", port)).await?;
    let connections = stream::unfold(listener, |listener| async move {
        let accepted = listener.accept().await.map(|(stream, peer)| Connection::new(stream, Some(peer)));
        Some((accepted, listener))
    });
    Ok(Listener::injected(format!("{host}:{port}"), connections.boxed()))
}

/// Dials simulated hosts by name.
#[must_use]
pub fn connector() -> Connector {
    Connector::new(|uri| async move {
        let host = uri.host().ok_or_else(|| io::Error::other(format!("no host in {uri}")))?.to_owned();
        let port = uri.port_u16().ok_or_else(|| io::Error::other(format!("no port in {uri}")))?;
        let stream = turmoil::net::TcpStream::connect((host, port)).await?;
        let peer = stream.peer_addr().ok();
        Ok(Connection::new(stream, peer))
    })
}
