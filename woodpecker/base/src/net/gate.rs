//! What a port demands of those who come.

use std::{io, sync::Arc, time::Duration};

use futures::{StreamExt, future, stream::BoxStream};
use tokio::sync::Semaphore;

use super::{Connection, Guard, Need, Refusals, ServerTls, Tokens, prompt::Prompt};
use crate::clock::Clock;

/// From a connection to its being an encrypted one, and from there to its peer's having said what it wants.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Handshakes at the same time: a peer that says nothing keeps its place until the limit, so there are many places.
const HANDSHAKES: usize = 4096;
/// Until a connection is taken again after one could not be.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a port demands: encryption, tokens, moderation. Each port counts for itself.
#[derive(Debug, Clone)]
pub struct Gate {
    pub tls: Option<ServerTls>,
    /// Who may call; without them, everybody.
    pub tokens: Option<Tokens>,
    /// What a call of a method, as `/package.Service/Method`, needs.
    pub needs: fn(&str) -> Need,
    /// Connections at the same time.
    pub connections: usize,
    /// Calls at the same time, streams among them.
    pub calls: usize,
    pub refusals: Refusals,
    pub clock: Clock,
}

impl Gate {
    pub(super) fn guard(&self) -> Guard {
        Guard::new(self)
    }

    /// The connections that pass.
    pub(super) fn admit(
        &self,
        connections: BoxStream<'static, io::Result<Connection>>,
    ) -> BoxStream<'static, io::Result<Connection>> {
        let (limit, places) =
            (self.connections, Arc::new(Semaphore::new(self.connections.min(Semaphore::MAX_PERMITS))));
        let refusals = self.refusals.clone();
        let placed = self.accepted(connections).filter_map(move |connection| {
            future::ready(match Arc::clone(&places).try_acquire_owned() {
                Ok(place) => Some(Connection { place: Some(place), ..connection }),
                // Nothing to answer with was agreed upon yet: it is closed.
                Err(_) => {
                    let peer = connection.peer();
                    refusals.beyond("connections", peer, "connection", format_args!("{limit} are there"));
                    None
                }
            })
        });
        let clock = self.clock.clone();
        let prompt = move |connection: Connection| {
            let Connection { stream, peer, place } = connection;
            Ok(Connection { stream: Box::new(Prompt::new(stream, &clock, HANDSHAKE_LIMIT)), peer, place })
        };
        let Some(tls) = self.tls.clone() else { return placed.map(prompt).boxed() };
        let (refusals, clock) = (self.refusals.clone(), self.clock.clone());
        let shaken = placed.map(move |connection| {
            let (tls, refusals, clock) = (tls.clone(), refusals.clone(), clock.clone());
            async move {
                let peer = connection.peer();
                let late = |_| Err(io::Error::from(io::ErrorKind::TimedOut));
                let shaken = clock.timeout(HANDSHAKE_LIMIT, tls.accept(connection)).await.unwrap_or_else(late);
                shaken.inspect_err(|error| refusals.handshake(peer, error)).ok()
            }
        });
        shaken.buffer_unordered(HANDSHAKES).filter_map(future::ready).map(prompt).boxed()
    }

    /// Those that could be taken. Where no more files may be open, each attempt fails at once: without a pause between
    /// them a processor does nothing else, and servers tell nobody.
    fn accepted(&self, connections: BoxStream<'static, io::Result<Connection>>) -> BoxStream<'static, Connection> {
        let clock = self.clock.clone();
        let taken = connections.filter_map(move |accepted| {
            let clock = clock.clone();
            async move {
                if let Err(error) = &accepted {
                    tracing::warn!(%error, "a port takes no connection for a moment");
                    clock.sleep(ACCEPT_PAUSE).await;
                }
                accepted.ok()
            }
        });
        taken.boxed()
    }
}
