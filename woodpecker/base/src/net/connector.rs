//! Making connections: over what, whether encrypted, and as whom.

use std::{future::Future, io, sync::Arc};

use arc_swap::ArcSwapOption;
use hyper_util::rt::TokioIo;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};
use tower::{ServiceExt, util::BoxCloneSyncService};

use super::{Connection, gather::Gathered, tls::ClientTls};

/// A channel whose calls show the token of the connector that made it.
pub type Dialed = InterceptedService<Channel, Shown>;

type Dial = BoxCloneSyncService<http::Uri, TokioIo<Connection>, io::Error>;

/// Makes connections. Clones are one.
#[derive(Debug, Clone)]
pub struct Connector {
    dial: Dial,
    encrypted: bool,
    token: Option<Token>,
}

impl Connector {
    /// Makes connections as `dial` does, which is given the address as the authority of a URI.
    pub fn new<F, R>(dial: F) -> Self
    where
        F: Fn(http::Uri) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = io::Result<Connection>> + Send + 'static,
    {
        let dial = tower::service_fn(move |uri| {
            let dialed = dial(uri);
            async move { Ok(TokioIo::new(dialed.await?)) }
        });
        Self { dial: BoxCloneSyncService::new(dial), encrypted: false, token: None }
    }

    /// Speaks TLS on every connection.
    #[must_use]
    pub fn with_tls(self, tls: ClientTls) -> Self {
        let plain = self.dial;
        let dial = tower::service_fn(move |uri: http::Uri| {
            let (plain, tls) = (plain.clone(), tls.clone());
            async move {
                let host = uri.host().unwrap_or_default().to_owned();
                let connection = plain.oneshot(uri).await?.into_inner();
                Ok(TokioIo::new(tls.connect(&host, connection).await?))
            }
        });
        Self { dial: BoxCloneSyncService::new(dial), encrypted: true, ..self }
    }

    /// Shows a token with every call.
    #[must_use]
    pub fn with_token(self, token: Token) -> Self {
        Self { token: Some(token), ..self }
    }

    /// Shows the token with every call unless there is one that is shown already.
    #[must_use]
    pub fn or_token(self, token: Token) -> Self {
        Self { token: self.token.or(Some(token)), ..self }
    }

    /// One connection, for another protocol than gRPC.
    ///
    /// # Errors
    /// The address cannot be reached, or is not whom it should be.
    pub async fn connect(&self, address: http::Uri) -> io::Result<Connection> {
        Ok(self.dial.clone().oneshot(address).await?.into_inner())
    }

    /// A channel to an endpoint, whose URI has the scheme `http` whether or not this connector encrypts. The connection
    /// is made by the first call, and again after it broke.
    #[must_use]
    pub fn dial(&self, endpoint: Endpoint) -> Dialed {
        let endpoint = if self.encrypted { with_https_origin(endpoint) } else { endpoint };
        let channel = endpoint.connect_with_connector_lazy(self.dial.clone());
        InterceptedService::new(channel, Shown(self.token.clone()))
    }
}

/// What calls say of themselves is what a proxy or a server of another make expects on an encrypted connection.
fn with_https_origin(endpoint: Endpoint) -> Endpoint {
    let mut parts = endpoint.uri().clone().into_parts();
    parts.scheme = Some(http::uri::Scheme::HTTPS);
    match http::Uri::from_parts(parts) {
        Ok(origin) => endpoint.origin(origin),
        Err(_) => endpoint,
    }
}

/// A connector over TCP.
#[must_use]
pub fn tcp_connector() -> Connector {
    Connector::new(|uri| async move {
        let authority = uri.authority().ok_or_else(|| io::Error::other(format!("no host in {uri}")))?;
        let port = authority.port_u16().ok_or_else(|| io::Error::other(format!("no port in {uri}")))?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let stream = tokio::net::TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        let peer = stream.peer_addr().ok();
        Ok(Connection::new(Gathered::new(stream), peer))
    })
}

/// What a caller shows to be let in: a bearer token, which can be replaced while it is in use. Never printed.
#[derive(Clone, Default)]
pub struct Token(Arc<ArcSwapOption<MetadataValue<Ascii>>>);

/// A text that cannot be a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a token must be printable ASCII without spaces, and not empty")]
pub struct TokenError;

impl Token {
    /// A token that is this text, without the white space around it.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn new(text: &str) -> Result<Self, TokenError> {
        let token = Self::default();
        token.replace(text)?;
        Ok(token)
    }

    /// Shows another text from now on, here and in every clone.
    ///
    /// # Errors
    /// [`TokenError`]; the old one stays.
    pub fn replace(&self, text: &str) -> Result<(), TokenError> {
        let text = text.trim();
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TokenError);
        }
        let mut value: MetadataValue<Ascii> = format!("Bearer {text}").parse().map_err(|_| TokenError)?;
        // Kept out of the tables by which HTTP/2 compresses headers.
        value.set_sensitive(true);
        self.0.store(Some(Arc::new(value)));
        Ok(())
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(***)")
    }
}

/// Adds the token to calls.
#[derive(Debug, Clone)]
pub struct Shown(Option<Token>);

impl Interceptor for Shown {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0
            && let Some(value) = &*token.0.load()
        {
            request.metadata_mut().insert("authorization", MetadataValue::clone(value));
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_shown_to_servers_and_to_nobody_else() {
        let token = Token::new(" s3cret\n").unwrap();
        let mut shown = Shown(Some(token.clone()));
        let header = |shown: &mut Shown| {
            let request = shown.call(Request::new(())).unwrap();
            let value = request.metadata().get("authorization").unwrap().clone();
            assert!(value.is_sensitive());
            value.to_str().unwrap().to_owned()
        };
        assert_eq!(header(&mut shown), "Bearer s3cret");
        token.replace("another").unwrap();
        assert_eq!(header(&mut shown), "Bearer another");
        assert_eq!(token.replace("two words"), Err(TokenError));
        assert_eq!(token.replace("\n"), Err(TokenError));
        assert_eq!(header(&mut shown), "Bearer another");
        assert!(!format!("{shown:?} {token:?}").contains("another"));
    }
}
