//! What secures a process: the gates of its ports, and how it shows itself to other roles.

use std::path::{Path, PathBuf};

use anyhow::Context;
use woodpecker_base::{
    clock::Clock,
    net::{ClientTls, Connector, Gate, Pem, Refusals, ServerTls, Token, Tokens, tcp_connector},
};

use super::access;
use crate::config::{Auth, Config, Tls};

/// Gates and connector as the configuration wants them. Clones are one.
#[derive(Debug, Clone)]
pub(crate) struct Security {
    /// Makes connections to other roles.
    pub(crate) connector: Connector,
    /// Of the gRPC ports.
    pub(crate) ports: Gate,
    /// Of the admin port.
    pub(crate) admin: Gate,
    encryption: Option<Encryption>,
    tokens: Option<KnownTokens>,
}

#[derive(Debug, Clone)]
struct Encryption {
    wanted: Tls,
    ports: ServerTls,
    admin: Option<ServerTls>,
    client: ClientTls,
}

#[derive(Debug, Clone)]
struct KnownTokens {
    wanted: Auth,
    known: Tokens,
    own: Token,
}

impl Security {
    /// Reads the files that the configuration names.
    ///
    /// # Errors
    /// One cannot be read, or is not what it should be; with its key.
    pub(crate) fn open(config: &Config, clock: &Clock) -> anyhow::Result<Self> {
        let encryption = if config.tls.enabled { Some(Encryption::open(&config.tls)?) } else { None };
        let tokens = if config.auth.enabled { Some(KnownTokens::open(&config.auth)?) } else { None };
        let mut connector = tcp_connector();
        if let Some(encryption) = &encryption {
            connector = connector.with_tls(encryption.client.clone());
        }
        if let Some(tokens) = &tokens {
            connector = connector.with_token(tokens.own.clone());
        }
        let ports = Gate {
            tls: encryption.as_ref().map(|encryption| encryption.ports.clone()),
            tokens: tokens.as_ref().map(|tokens| tokens.known.clone()),
            needs: access::needs,
            connections: config.limits.connections,
            calls: config.limits.calls,
            refusals: Refusals::new(clock.clone()),
            clock: clock.clone(),
        };
        let admin = Gate { tls: encryption.as_ref().and_then(|encryption| encryption.admin.clone()), ..ports.clone() };
        Ok(Self { connector, ports, admin, encryption, tokens })
    }

    /// The files of certificates and of tokens.
    pub(crate) fn files(&self) -> (Vec<PathBuf>, Vec<PathBuf>) {
        let certificates = self
            .encryption
            .iter()
            .flat_map(|Encryption { wanted: Tls { cert, key, ca, .. }, .. }| [cert.clone(), key.clone(), ca.clone()]);
        let tokens =
            self.tokens.iter().flat_map(|KnownTokens { wanted: Auth { tokens_file, token_file, .. }, .. }| {
                [tokens_file.clone(), token_file.clone()]
            });
        (certificates.collect(), tokens.collect())
    }

    /// Reads the certificates again; from now on handshakes use them.
    ///
    /// # Errors
    /// As [`Security::open`]'s; the old ones stay.
    pub(crate) fn renew_certificates(&self) -> anyhow::Result<()> {
        let Some(Encryption { wanted, ports, admin, client }) = &self.encryption else { return Ok(()) };
        let pem = pem(wanted)?;
        // All that can be wrong with them is found before anything is renewed.
        Encryption::new(wanted, &pem)?;
        ports.replace(&pem, wanted.demands(wanted.client_auth)).context("tls")?;
        if let Some(admin) = admin {
            admin.replace(&pem, wanted.demands(wanted.admin.client_auth)).context("tls")?;
        }
        client.replace(&pem).context("tls")
    }

    /// Reads the tokens again; from now on calls are judged, and made, by them.
    ///
    /// # Errors
    /// As [`Security::open`]'s; the old ones stay.
    pub(crate) fn renew_tokens(&self) -> anyhow::Result<()> {
        let Some(KnownTokens { wanted, known, own }) = &self.tokens else { return Ok(()) };
        let (tokens, token) = tokens(wanted)?;
        KnownTokens::new(wanted, &tokens, &token)?;
        own.replace(&token).context("auth.tokenFile")?;
        known.replace(&tokens).context("auth.tokensFile")
    }
}

impl Encryption {
    fn open(wanted: &Tls) -> anyhow::Result<Self> {
        Self::new(wanted, &pem(wanted)?)
    }

    fn new(wanted: &Tls, pem: &Pem) -> anyhow::Result<Self> {
        let name = Some(wanted.server_name.as_str()).filter(|name| !name.is_empty());
        let demands = wanted.demands(wanted.admin.client_auth);
        let admin = wanted.admin.enabled.then(|| ServerTls::http(pem, demands)).transpose();
        Ok(Self {
            wanted: wanted.clone(),
            ports: ServerTls::grpc(pem, wanted.demands(wanted.client_auth)).context("tls")?,
            admin: admin.context("tls")?,
            client: ClientTls::grpc(pem, name).context("tls")?,
        })
    }
}

impl KnownTokens {
    fn open(wanted: &Auth) -> anyhow::Result<Self> {
        let (tokens, token) = tokens(wanted)?;
        Self::new(wanted, &tokens, &token)
    }

    fn new(wanted: &Auth, tokens: &str, token: &str) -> anyhow::Result<Self> {
        let known = Tokens::parse(tokens).context("auth.tokensFile")?;
        let own = Token::new(token).context("auth.tokenFile")?;
        Ok(Self { wanted: wanted.clone(), known, own })
    }
}

/// The tokens that are let in, and the one that this process shows.
fn tokens(wanted: &Auth) -> anyhow::Result<(String, String)> {
    Ok((text("auth.tokensFile", &wanted.tokens_file)?, text("auth.tokenFile", &wanted.token_file)?))
}

fn pem(wanted: &Tls) -> anyhow::Result<Pem> {
    Ok(Pem { identity: own_identity(wanted)?, authorities: Some(bytes("tls.ca", &wanted.ca)?) })
}

/// The certificate and key of this process, if it has them.
///
/// # Errors
/// One cannot be read; with its key.
pub(super) fn own_identity(wanted: &Tls) -> anyhow::Result<Option<(Vec<u8>, Vec<u8>)>> {
    if !wanted.enabled {
        return Ok(None);
    }
    Ok(Some((bytes("tls.cert", &wanted.cert)?, bytes("tls.key", &wanted.key)?)))
}

pub(super) fn text(key: &str, path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("{key}: cannot read {}", path.display()))
}

pub(super) fn bytes(key: &str, path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("{key}: cannot read {}", path.display()))
}
