//! Finds the coordinator.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use streaming_types::StreamingError;
use woodpecker_base::{
    clock::Clock,
    metadata::{KeyValue, MetadataStore, Revision, WatchEvent},
    session::{SessionRecord, session_prefix},
};

use crate::{connections::Server, settings::Discovery};

/// Where the coordinator is, and how one learns that it moved.
#[derive(Debug)]
pub(crate) enum Locator {
    Fixed(Server),
    Session(Session),
}

/// The session record of the active coordinator (wire.md §3.1).
#[derive(Debug)]
pub(crate) struct Session {
    store: Arc<dyn MetadataStore>,
    key: String,
    clock: Clock,
    /// For one call to the store, and between two that failed.
    patience: Duration,
    last: Option<(Server, Revision)>,
}

impl Locator {
    pub(crate) fn new(discovery: &Discovery, clock: Clock, patience: Duration) -> Self {
        match discovery {
            Discovery::Address(address) => Self::Fixed(Server { address: address.clone(), id: None }),
            Discovery::Metadata { store, meta_root } => {
                let key = format!("{}mixcoord", session_prefix(meta_root));
                Self::Session(Session { store: store.clone(), key, clock, patience, last: None })
            }
        }
    }

    /// The coordinator as far as one can know: while the store cannot be reached, the last one seen.
    pub(crate) async fn locate(&mut self) -> Result<Server, StreamingError> {
        match self {
            Self::Fixed(server) => Ok(server.clone()),
            Self::Session(session) => session.locate().await,
        }
    }

    /// Resolves when another coordinator than the last located one is registered.
    pub(crate) async fn moved(&self) {
        match self {
            Self::Fixed(_) => std::future::pending().await,
            Self::Session(session) => session.moved().await,
        }
    }
}

impl Session {
    async fn locate(&mut self) -> Result<Server, StreamingError> {
        let read = match self.clock.timeout(self.patience, self.store.get(&self.key)).await {
            Ok(Ok(read)) => Ok(read),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("metadata store does not answer".to_owned()),
        };
        match (read, &self.last) {
            (Ok(Some(record)), _) => {
                let server = parse(&record)?;
                self.last = Some((server.clone(), record.mod_revision));
                Ok(server)
            }
            (Ok(None), _) => Err(StreamingError::unknown(format!("no coordinator is registered at {}", self.key))),
            (Err(_), Some((server, _))) => Ok(server.clone()),
            (Err(cause), None) => Err(StreamingError::unknown(cause)),
        }
    }

    async fn moved(&self) {
        let Some((server, revision)) = &self.last else { return std::future::pending().await };
        let is_other =
            |record: &KeyValue| record.key == self.key && parse(record).is_ok_and(|registered| registered != *server);
        loop {
            if let Ok(mut events) = self.store.watch(&self.key, revision + 1).await {
                while let Some(event) = events.next().await {
                    let moved = match event {
                        Ok(WatchEvent::Put(record)) => is_other(&record),
                        Ok(WatchEvent::Resync(snapshot)) => snapshot.items.iter().any(is_other),
                        // Gone is not moved: the stream may well live on.
                        Ok(WatchEvent::Delete { .. }) | Err(_) => false,
                    };
                    if moved {
                        return;
                    }
                }
            }
            self.clock.sleep(self.patience).await;
        }
    }
}

fn parse(record: &KeyValue) -> Result<Server, StreamingError> {
    match SessionRecord::decode(&record.value) {
        Ok(session) if !session.address.is_empty() => {
            Ok(Server { address: session.address, id: Some(session.server_id) })
        }
        Ok(_) => Err(StreamingError::unknown(format!("session record {} has no address", record.key))),
        Err(error) => Err(StreamingError::unknown(format!("session record {}: {error}", record.key))),
    }
}
