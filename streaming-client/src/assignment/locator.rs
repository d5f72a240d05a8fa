//! Finds the coordinator.

use std::time::Duration;

use futures::{StreamExt, stream::BoxStream};
use streaming_types::StreamingError;
use woodpecker_base::{
    clock::Clock,
    metadata::MetadataError,
    random::Random,
    session::{SessionKeys, SessionView, first_streaming_version, watch_sessions},
};

use crate::{connections::Server, settings::Discovery};

/// The role whose session is the active coordinator's.
const ROLE: &str = "mixcoord";

/// Where the coordinator is, and how one learns that it moved.
pub(crate) enum Locator {
    Fixed(Fixed),
    Session(Session),
}

/// An address at which there may be several coordinators, as that of a service, and a connection meets one that stands by.
pub(crate) struct Fixed {
    address: String,
    /// Who leads, by what the last one said that was asked.
    leader: Option<String>,
    /// Whether the last one located was one that another one had named, and whether it is to be asked itself.
    was_named: bool,
    asks: bool,
}

/// The session of the active coordinator, as the metadata store tells of it.
pub(crate) struct Session {
    views: BoxStream<'static, Result<SessionView, MetadataError>>,
    clock: Clock,
    /// How long to wait for the store's first word.
    patience: Duration,
    /// Its last word; `Some(None)` when nobody is registered. It stands while the store cannot be reached.
    known: Option<Option<Server>>,
    /// Why there is no first word.
    failure: String,
    located: Option<Server>,
}

impl Locator {
    pub(crate) fn new(discovery: &Discovery, clock: Clock, random: &Random, patience: Duration) -> Self {
        match discovery {
            Discovery::Address(address) => {
                Self::Fixed(Fixed { address: address.clone(), leader: None, was_named: false, asks: true })
            }
            Discovery::Metadata { store, meta_root } => {
                let keys = SessionKeys::Exclusive(ROLE);
                let views = watch_sessions(store.clone(), meta_root, keys, clock.clone(), random);
                let failure = "the metadata store does not answer".to_owned();
                Self::Session(Session { views, clock, patience, known: None, failure, located: None })
            }
        }
    }

    /// The coordinator as far as one can know: while the store cannot be reached, the last one seen.
    pub(crate) async fn locate(&mut self) -> Result<Server, StreamingError> {
        match self {
            Self::Fixed(fixed) => Ok(fixed.locate()),
            Self::Session(session) => session.locate().await,
        }
    }

    /// Whether the one that was located is to be asked who leads.
    pub(crate) fn asks_for_leader(&self) -> bool {
        matches!(self, Self::Fixed(Fixed { asks: true, .. }))
    }

    /// The coordinator at this address leads, by what the one said that was asked.
    pub(crate) fn named(&mut self, address: String) {
        if let Self::Fixed(fixed) = self {
            fixed.leader = Some(address);
        }
    }

    /// The last one located was a good one.
    pub(crate) fn proven(&mut self) {
        if let Self::Fixed(fixed) = self {
            fixed.was_named = false;
        }
    }

    /// Resolves when another coordinator than the last located one is registered.
    pub(crate) async fn moved(&mut self) {
        match self {
            Self::Fixed(_) => std::future::pending().await,
            Self::Session(session) => session.moved().await,
        }
    }
}

impl Fixed {
    fn locate(&mut self) -> Server {
        // Who named one that failed may be about to lead, and holds a stream until then that does not ask.
        self.asks = !self.was_named;
        let named = self.leader.take();
        self.was_named = named.is_some();
        Server { address: named.unwrap_or_else(|| self.address.clone()), id: None }
    }
}

impl Session {
    async fn locate(&mut self) -> Result<Server, StreamingError> {
        let mut patience = if self.known.is_none() { self.patience } else { Duration::ZERO };
        while let Ok(Some(view)) = self.clock.timeout(patience, self.views.next()).await {
            self.note(view);
            patience = Duration::ZERO;
        }
        match &self.known {
            Some(Some(server)) => {
                self.located = Some(server.clone());
                Ok(server.clone())
            }
            Some(None) => Err(StreamingError::unknown("no coordinator is registered")),
            None => Err(StreamingError::unknown(&self.failure)),
        }
    }

    async fn moved(&mut self) {
        // Gone is not moved: the stream may well live on.
        while self.known.iter().flatten().all(|server| Some(server) == self.located.as_ref()) {
            match self.views.next().await {
                Some(view) => self.note(view),
                None => std::future::pending().await,
            }
        }
    }

    fn note(&mut self, view: Result<SessionView, MetadataError>) {
        match view {
            Ok(view) => {
                let sessions = view.at_least(&first_streaming_version()).sessions.into_values();
                let mut dialled = sessions.filter(|session| !session.address.is_empty());
                self.known = Some(
                    dialled.next().map(|session| Server { address: session.address, id: Some(session.server_id) }),
                );
            }
            Err(error) => self.failure = error.to_string(),
        }
    }
}
