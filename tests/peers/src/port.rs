//! A port that stays the test's own while nobody listens on it.

use std::{io, net::SocketAddr};

use tokio::net::TcpSocket;

/// A free port of 127.0.0.1, held until it is dropped: connections are refused until a server of the test listens on it,
/// and again once that is gone. The kernel gives it to nobody else meanwhile, as it would a port that was only looked up.
#[derive(Debug)]
pub struct Port {
    address: SocketAddr,
    // Bound and not listening: a server that asks for the reuse of addresses, as all do, may listen beside it.
    _held: TcpSocket,
}

impl Port {
    /// Takes one.
    ///
    /// # Errors
    /// There is none left.
    pub fn hold() -> io::Result<Self> {
        let held = TcpSocket::new_v4()?;
        held.set_reuseaddr(true)?;
        held.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        Ok(Self { address: held.local_addr()?, _held: held })
    }

    /// Where a server is to listen.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its number alone.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.address.port()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn connections_are_refused_until_a_server_listens_and_after_it_is_gone() {
        let port = Port::hold().unwrap();
        for _ in 0..3 {
            assert_eq!(TcpStream::connect(port.address()).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
            let server = TcpListener::bind(port.address()).unwrap();
            TcpStream::connect(server.local_addr().unwrap()).unwrap();
        }
    }

    #[test]
    fn nobody_else_gets_it() {
        let port = Port::hold().unwrap();
        // As the kernel chooses a port for who asks for any: one that needs no reuse.
        let other = TcpSocket::new_v4().unwrap();
        assert_eq!(other.bind(port.address()).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(port);
    }
}
