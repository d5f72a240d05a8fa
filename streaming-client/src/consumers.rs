//! Who holds a log back: the consumers that registered with the owner of a pchannel, for operators.

use streaming_proto::{
    data::{DropVirtualChannelRequest, data_coord_client::DataCoordClient},
    node::{self, ListConsumersRequest, consumers_client::ConsumersClient},
};
use streaming_types::{MessageId, StreamingError, TimeTick, channel::to_physical};
use tonic::{Request, Response, Status};
use woodpecker_base::net::Dialed;

use crate::{
    client::{Client, Core},
    connections::{Class, status_error},
};

/// A consumer for which a log is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisteredConsumer {
    /// The vchannel that it reads, the pchannel when it reads all of it, or what a cluster that follows registers as.
    pub name: String,
    /// The log is kept from here on.
    pub position: MessageId,
    /// It has everything up to this tick, if it said so.
    pub time_tick: Option<TimeTick>,
    /// By how many milliseconds that is behind the newest message.
    pub behind_ms: Option<u64>,
}

/// The owner of a pchannel did not do what it was asked about its consumers, or it is not known whether it did.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("consumers of {pchannel}: {error}")]
pub struct ConsumersError {
    pub pchannel: String,
    pub error: StreamingError,
}

impl ConsumersError {
    /// A stable code for documentation and programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        "CONSUMERS_OWNER_FAILED"
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.error.is_retryable()
    }

    /// Whether the failed call may have taken effect.
    #[must_use]
    pub fn has_side_effects(&self) -> bool {
        self.error.has_side_effects()
    }
}

impl Client {
    /// The consumers for which the log of a pchannel is kept, by name.
    ///
    /// # Errors
    /// [`ConsumersError`].
    pub async fn registered_consumers(&self, pchannel: &str) -> Result<Vec<RegisteredConsumer>, ConsumersError> {
        let request = ListConsumersRequest { pchannel: pchannel.to_owned() };
        let list = |channel, request| async move { ConsumersClient::new(channel).list(request).await };
        let listed = ask(self.core(), pchannel, request, list).await?;
        let newest = TimeTick(listed.time_tick);
        Ok(listed.consumers.into_iter().map(|consumer| registered(consumer, newest)).collect())
    }

    /// Lets go of the log that is kept for a consumer, known or not. One that reports again is registered again.
    ///
    /// # Errors
    /// [`ConsumersError`].
    pub async fn forget_consumer(&self, name: &str) -> Result<(), ConsumersError> {
        let request = DropVirtualChannelRequest { channel_name: name.to_owned(), ..Default::default() };
        let drop = |channel, request| async move { DataCoordClient::new(channel).drop_virtual_channel(request).await };
        ask(self.core(), to_physical(name), request, drop).await.map(|_| ())
    }
}

fn registered(consumer: node::RegisteredConsumer, newest: TimeTick) -> RegisteredConsumer {
    let node::RegisteredConsumer { name, segment, entry, time_tick } = consumer;
    let time_tick = Some(TimeTick(time_tick)).filter(|tick| tick.0 > 0);
    RegisteredConsumer {
        name,
        // A position that fits no message is before all of them.
        position: MessageId::from_u64(segment, entry).unwrap_or_else(|| MessageId::new(0, 0)),
        time_tick,
        behind_ms: time_tick.map(|tick| newest.physical_ms().saturating_sub(tick.physical_ms())),
    }
}

/// Asks the owner of a pchannel, once.
async fn ask<Q, R, F>(
    core: &Core,
    pchannel: &str,
    question: Q,
    call: impl FnOnce(Dialed, Request<Q>) -> F,
) -> Result<R, ConsumersError>
where
    F: Future<Output = Result<Response<R>, Status>>,
{
    let failed = |error| ConsumersError { pchannel: pchannel.to_owned(), error };
    let owner =
        core.assigned(pchannel).ok_or_else(|| failed(StreamingError::unknown(core.why_unassigned(pchannel))))?;
    let (server, limit) = (owner.server(), core.settings.timeouts.open);
    let connection = core.connections.channel(&server, Class::Control).map_err(failed)?;
    let mut request = Request::new(question);
    request.set_timeout(limit);
    core.connections.address_call(&server, request.metadata_mut());
    match core.clock.timeout(limit, call(connection, request)).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(failed(status_error(&status))),
        Err(_) => Err(failed(StreamingError::unknown(format!("no answer within {limit:?}")))),
    }
}
