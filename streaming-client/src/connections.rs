//! Connections to the coordinator and the nodes: dialled when first used, shared by what has the same urgency.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use streaming_types::{StreamingError, metadata::set_destination};
use tonic::{Code, Status, metadata::MetadataMap, transport::Endpoint};
use woodpecker_base::net::{ClientTls, Connector, Dialed, Pem, TlsError};

use crate::settings::{InvalidSetting, Settings, Tls};

const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Consumers that do not read keep up to a stream window each; only the stream windows may bind, or four of them would
/// stop every other consumer of the node.
const READ_CONNECTION_WINDOW: u32 = 1 << 30;
const FRAME: u32 = 64 << 10;

/// A server process: a process started anew at the same address has a new id, and is another server.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Server {
    pub(crate) address: String,
    /// Unknown where the coordinator was given by address.
    pub(crate) id: Option<i64>,
}

/// What a connection carries. One connection for all would let bulk delay acknowledgements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    Control,
    Append,
    Read,
}

#[derive(Debug)]
pub(crate) struct Connections {
    connector: Connector,
    connect: Duration,
    keepalive_interval: Duration,
    keepalive_timeout: Duration,
    cluster: String,
    open: Mutex<BTreeMap<(Server, Class), Dialed>>,
}

impl Connections {
    /// Fails if TLS cannot be set up as the settings say.
    pub(crate) fn new(connector: Connector, settings: &Settings) -> Result<Self, InvalidSetting> {
        let connector = match &settings.tls {
            None => connector,
            Some(tls) => connector.with_tls(client_tls(tls).map_err(|error| {
                let name = if matches!(error, TlsError::Authorities(_)) { "tls.ca" } else { "tls" };
                InvalidSetting { name, reason: error.to_string() }
            })?),
        };
        let connector = match settings.token.clone() {
            None => connector,
            Some(token) => connector.with_token(token),
        };
        Ok(Self {
            connector,
            connect: settings.timeouts.connect,
            keepalive_interval: settings.timeouts.keepalive_interval,
            keepalive_timeout: settings.timeouts.keepalive_timeout,
            cluster: settings.cluster.clone(),
            open: Mutex::default(),
        })
    }

    /// The connection to a server. It is dialled by the first call and again after it broke.
    pub(crate) fn channel(&self, server: &Server, class: Class) -> Result<Dialed, StreamingError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = open.get(&(server.clone(), class)) {
            return Ok(channel.clone());
        }
        let window = if class == Class::Read { READ_CONNECTION_WINDOW } else { CONNECTION_WINDOW };
        let endpoint = Endpoint::from_shared(format!("http://{}", server.address))
            .map_err(|error| StreamingError::unknown(format!("address {:?}: {error}", server.address)))?
            .connect_timeout(self.connect)
            .http2_keep_alive_interval(self.keepalive_interval)
            .keep_alive_timeout(self.keepalive_timeout)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(window)
            .max_frame_size(FRAME);
        let channel = self.connector.dial(endpoint);
        open.insert((server.clone(), class), channel.clone());
        Ok(channel)
    }

    /// Forgets connections that `keep` does not name; calls that run on them go on.
    pub(crate) fn retain(&self, keep: impl Fn(&Server, Class) -> bool) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).retain(|(server, class), _| keep(server, *class));
    }

    /// Adds what every call carries: the cluster, and the id of the server it is meant for.
    pub(crate) fn address_call(&self, server: &Server, metadata: &mut MetadataMap) {
        set_destination(metadata, &self.cluster, server.id);
    }
}

fn client_tls(tls: &Tls) -> Result<ClientTls, TlsError> {
    let identity = tls.client.as_ref().map(|(certificate, key)| (certificate.clone().into(), key.clone().into()));
    ClientTls::grpc(&Pem { identity, authorities: Some(tls.ca.clone().into()) }, tls.domain.as_deref())
}

/// Why a call or stream ended with `status`. A failure that the server did not explain is UNKNOWN; that we may not do what
/// we ask for is not changed by asking again.
pub(crate) fn status_error(status: &Status) -> StreamingError {
    if matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied) {
        return StreamingError::unrecoverable(format!("{:?}: {}", status.code(), status.message()));
    }
    let error = StreamingError::check_status(status).err();
    error.unwrap_or_else(|| StreamingError::unknown("the stream ended with an error that says success"))
}
