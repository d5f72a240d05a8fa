//! TLS with certificates that can be replaced while it is in use: new handshakes use the new ones, connections that are
//! there go on.

use std::{fmt, io, sync::Arc};

use arc_swap::ArcSwap;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::Connection;

/// Certificates and keys as PEM text.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Pem {
    /// One's own certificate, those between it and the authority after it, and its key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// The authorities one of which has signed what peers show.
    pub authorities: Option<Vec<u8>>,
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pem").field("identity", &self.identity.is_some()).finish_non_exhaustive()
    }
}

/// Whether a server asks its clients for a certificate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// It does not.
    #[default]
    None,
    /// It does, and lets in who has none; a wrong one is refused.
    Optional,
    /// It lets in nobody without.
    Required,
}

/// The oldest version of TLS that a server speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OldestTls {
    #[default]
    Tls12,
    Tls13,
}

static NEWEST: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

impl OldestTls {
    fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        match self {
            Self::Tls12 => rustls::DEFAULT_VERSIONS,
            Self::Tls13 => NEWEST,
        }
    }
}

/// What a server demands of its clients.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Demands {
    pub clients: ClientAuth,
    pub oldest: OldestTls,
}

impl From<ClientAuth> for Demands {
    fn from(clients: ClientAuth) -> Self {
        Self { clients, oldest: OldestTls::default() }
    }
}

/// Why certificates cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    #[error("the certificate: {0}")]
    Certificate(String),
    #[error("the key: {0}")]
    Key(String),
    #[error("the authorities: {0}")]
    Authorities(String),
    #[error("a server needs a certificate and a key")]
    NoIdentity,
    #[error("no authorities are given, by which to check what peers show")]
    NoAuthorities,
    #[error("{0:?} is no name of a server")]
    Name(String),
    #[error("{0}")]
    Protocol(String),
}

impl TlsError {
    /// A stable code for documentation and programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        "TLS_CONFIGURATION"
    }

    /// Whether the same may work later: never.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        false
    }

    /// Whether the failed call has changed anything: never, what was there stays in use.
    #[must_use]
    pub fn has_side_effects(&self) -> bool {
        false
    }
}

/// What a server shows and asks for. Clones are one.
#[derive(Clone)]
pub struct ServerTls {
    config: Arc<ArcSwap<ServerConfig>>,
    protocol: &'static [u8],
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerTls")
    }
}

impl ServerTls {
    /// For a gRPC server.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn grpc(pem: &Pem, demands: impl Into<Demands>) -> Result<Self, TlsError> {
        Self::new(pem, demands.into(), b"h2")
    }

    /// For an HTTP/1.1 server.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn http(pem: &Pem, demands: impl Into<Demands>) -> Result<Self, TlsError> {
        Self::new(pem, demands.into(), b"http/1.1")
    }

    fn new(pem: &Pem, demands: Demands, protocol: &'static [u8]) -> Result<Self, TlsError> {
        let config = server_config(pem, demands, protocol)?;
        Ok(Self { config: Arc::new(ArcSwap::from_pointee(config)), protocol })
    }

    /// Shows and asks for something else from now on, here and in every clone.
    ///
    /// # Errors
    /// [`TlsError`]; the old stays.
    pub fn replace(&self, pem: &Pem, demands: impl Into<Demands>) -> Result<(), TlsError> {
        self.config.store(Arc::new(server_config(pem, demands.into(), self.protocol)?));
        Ok(())
    }

    pub(super) async fn accept(&self, connection: Connection) -> io::Result<Connection> {
        let Connection { stream, peer, place } = connection;
        let stream = TlsAcceptor::from(self.config.load_full()).accept(stream).await?;
        Ok(Connection { stream: Box::new(stream), peer, place })
    }
}

/// What a client trusts and shows. Clones are one.
#[derive(Clone)]
pub struct ClientTls {
    config: Arc<ArcSwap<ClientConfig>>,
    protocol: &'static [u8],
    name: Option<ServerName<'static>>,
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").field("name", &self.name).finish_non_exhaustive()
    }
}

impl ClientTls {
    /// For a gRPC client; `name` is what servers' certificates say, if that is not the host that is dialled.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn grpc(pem: &Pem, name: Option<&str>) -> Result<Self, TlsError> {
        Self::new(pem, name, b"h2")
    }

    /// As [`ClientTls::grpc`], for an HTTP/1.1 client.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn http(pem: &Pem, name: Option<&str>) -> Result<Self, TlsError> {
        Self::new(pem, name, b"http/1.1")
    }

    fn new(pem: &Pem, name: Option<&str>, protocol: &'static [u8]) -> Result<Self, TlsError> {
        let name = name.map(server_name).transpose().map_err(TlsError::Name)?;
        Ok(Self { config: Arc::new(ArcSwap::from_pointee(client_config(pem, protocol)?)), protocol, name })
    }

    /// Trusts and shows something else from now on, here and in every clone.
    ///
    /// # Errors
    /// [`TlsError`]; the old stays.
    pub fn replace(&self, pem: &Pem) -> Result<(), TlsError> {
        self.config.store(Arc::new(client_config(pem, self.protocol)?));
        Ok(())
    }

    pub(super) async fn connect(&self, host: &str, connection: Connection) -> io::Result<Connection> {
        let name = match &self.name {
            Some(name) => name.clone(),
            None => server_name(host).map_err(|host| io::Error::other(format!("{host:?} is no name of a server")))?,
        };
        let Connection { stream, peer, place } = connection;
        let stream = TlsConnector::from(self.config.load_full()).connect(name, stream).await?;
        Ok(Connection { stream: Box::new(stream), peer, place })
    }
}

fn server_name(host: &str) -> Result<ServerName<'static>, String> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(bare.to_owned()).map_err(|_| host.to_owned())
}

/// Named, so that no process-wide default decides, which a library in the same process may set otherwise.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn server_config(pem: &Pem, demands: Demands, protocol: &[u8]) -> Result<ServerConfig, TlsError> {
    let Demands { clients, oldest } = demands;
    let (certificates, key) = identity(pem)?.ok_or(TlsError::NoIdentity)?;
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(oldest.versions())
        .map_err(|error| TlsError::Protocol(error.to_string()))?;
    let builder = match clients {
        ClientAuth::None => builder.with_no_client_auth(),
        ClientAuth::Optional | ClientAuth::Required => builder.with_client_cert_verifier(verifier(pem, clients)?),
    };
    let mut config = builder.with_single_cert(certificates, key).map_err(|error| TlsError::Key(error.to_string()))?;
    config.alpn_protocols = vec![protocol.to_vec()];
    Ok(config)
}

fn verifier(pem: &Pem, clients: ClientAuth) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let roots = roots(pem)?.ok_or(TlsError::NoAuthorities)?;
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
    let builder = if clients == ClientAuth::Optional { builder.allow_unauthenticated() } else { builder };
    builder.build().map_err(|error| TlsError::Authorities(error.to_string()))
}

fn client_config(pem: &Pem, protocol: &[u8]) -> Result<ClientConfig, TlsError> {
    let roots = roots(pem)?.ok_or(TlsError::NoAuthorities)?;
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::Protocol(error.to_string()))?
        .with_root_certificates(roots);
    let mut config = match identity(pem)? {
        None => builder.with_no_client_auth(),
        Some((certificates, key)) => {
            builder.with_client_auth_cert(certificates, key).map_err(|error| TlsError::Key(error.to_string()))?
        }
    };
    config.alpn_protocols = vec![protocol.to_vec()];
    Ok(config)
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn identity(pem: &Pem) -> Result<Option<Identity>, TlsError> {
    let Some((certificates, key)) = &pem.identity else { return Ok(None) };
    let certificates = certificates_in(certificates).map_err(TlsError::Certificate)?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| TlsError::Key(error.to_string()))?;
    Ok(Some((certificates, key)))
}

fn roots(pem: &Pem) -> Result<Option<RootCertStore>, TlsError> {
    let Some(authorities) = &pem.authorities else { return Ok(None) };
    let mut roots = RootCertStore::empty();
    for certificate in certificates_in(authorities).map_err(TlsError::Authorities)? {
        roots.add(certificate).map_err(|error| TlsError::Authorities(error.to_string()))?;
    }
    Ok(Some(roots))
}

fn certificates_in(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = read.map_err(|error| error.to_string())?;
    if certificates.is_empty() { Err("no certificate in PEM".to_owned()) } else { Ok(certificates) }
}
