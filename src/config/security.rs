//! Who may come in, over what, and how many at once.

use std::path::PathBuf;

use anyhow::ensure;
use bytesize::ByteSize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use woodpecker_base::net::{Demands, OldestTls};

use super::{Config, units};

/// TLS on every port of this process and on every connection that it makes to other roles. The files are read again
/// when they change.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Tls {
    /// Whether ports and connections are encrypted. What is not encrypted is refused then.
    pub(crate) enabled: bool,
    /// File with this process' certificate, and those between it and the authority, PEM. It is shown to who calls, and to
    /// roles that are called and ask for it; so it must be good for server and client.
    pub(crate) cert: PathBuf,
    /// File with its key, PEM.
    pub(crate) key: PathBuf,
    /// File with the authorities that sign the certificates of the cluster's roles and of its clients, PEM.
    pub(crate) ca: PathBuf,
    /// Whether gRPC clients must show a certificate: with `required` TLS is mutual.
    pub(crate) client_auth: ClientAuth,
    /// The oldest version of TLS that the ports speak.
    pub(crate) min_version: MinVersion,
    /// The admin port's own rules.
    pub(crate) admin: AdminTls,
    /// The name in the certificates of the cluster's roles, if it is not the host that is dialled.
    pub(crate) server_name: String,
}

/// TLS on the admin port, where probes come without certificates.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct AdminTls {
    /// Whether the admin port is encrypted if the others are; probes must use the scheme HTTPS then.
    pub(crate) enabled: bool,
    /// Whether its clients must show a certificate. Probes of Kubernetes have none.
    pub(crate) client_auth: ClientAuth,
}

impl Default for AdminTls {
    fn default() -> Self {
        Self { enabled: true, client_auth: ClientAuth::None }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ClientAuth {
    /// Clients are not asked for a certificate.
    #[default]
    None,
    /// Who shows none is let in, who shows a wrong one is not.
    Optional,
    /// Who shows none is refused.
    Required,
}

impl From<ClientAuth> for woodpecker_base::net::ClientAuth {
    fn from(wanted: ClientAuth) -> Self {
        match wanted {
            ClientAuth::None => Self::None,
            ClientAuth::Optional => Self::Optional,
            ClientAuth::Required => Self::Required,
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) enum MinVersion {
    /// 1.2 and 1.3.
    #[default]
    #[serde(rename = "TLS1.2")]
    Tls12,
    /// 1.3 only.
    #[serde(rename = "TLS1.3")]
    Tls13,
}

impl From<MinVersion> for OldestTls {
    fn from(wanted: MinVersion) -> Self {
        match wanted {
            MinVersion::Tls12 => Self::Tls12,
            MinVersion::Tls13 => Self::Tls13,
        }
    }
}

impl Tls {
    /// What a port demands of its clients.
    pub(crate) fn demands(&self, clients: ClientAuth) -> Demands {
        Demands { clients: clients.into(), oldest: self.min_version.into() }
    }
}

/// Bearer tokens with roles, on gRPC and on the admin port. The files are read again when they change.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Auth {
    /// Whether callers must show a token. Without, everybody may call; only what operators do (giving a log store up, deleting a
    /// namespace, pages of the admin port besides probes and metrics) is open to this machine alone.
    pub(crate) enabled: bool,
    /// File with the tokens that are let in: a line each, `read`, `write` or `admin` and the token.
    pub(crate) tokens_file: PathBuf,
    /// File with the token that this process shows to other roles; there it must have the role `admin`.
    pub(crate) token_file: PathBuf,
}

/// What one process lets in at once, on each of its ports.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Limits {
    /// Connections at the same time; more are closed as they come.
    pub(crate) connections: usize,
    /// Calls and streams at the same time; more are refused with RESOURCE_EXHAUSTED. Probes do not count.
    pub(crate) calls: usize,
    /// Largest request on the admin port.
    #[schemars(with = "units::SizeText")]
    pub(crate) admin_request: ByteSize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 10_000, calls: 100_000, admin_request: ByteSize::mib(1) }
    }
}

impl Config {
    pub(super) fn validate_security(&self) -> anyhow::Result<()> {
        let Tls { enabled, cert, key, ca, client_auth, admin, .. } = &self.tls;
        if *enabled {
            for (name, file) in [("tls.cert", cert), ("tls.key", key), ("tls.ca", ca)] {
                ensure!(!file.as_os_str().is_empty(), "{name}: must be set when tls.enabled is");
            }
        }
        let asks = *client_auth != ClientAuth::None || admin.client_auth != ClientAuth::None;
        ensure!(*enabled || !asks, "tls.enabled: must be true when clients are asked for certificates");
        let Auth { enabled, tokens_file, token_file } = &self.auth;
        if *enabled {
            for (name, file) in [("auth.tokensFile", tokens_file), ("auth.tokenFile", token_file)] {
                ensure!(!file.as_os_str().is_empty(), "{name}: must be set when auth.enabled is");
            }
        }
        ensure!(self.limits.connections > 0, "limits.connections: must be more than zero");
        ensure!(self.limits.calls > 0, "limits.calls: must be more than zero");
        ensure!(self.limits.admin_request.as_u64() > 0, "limits.adminRequest: must be more than zero");
        Ok(())
    }
}
