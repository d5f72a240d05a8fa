//! How far a reader has to be to have seen everything: for strongly consistent reads.

use futures::FutureExt;
use streaming_proto::node::{LatestRequest, read_points_client::ReadPointsClient};
use streaming_types::{StreamingError, TimeTick, channel::to_physical};
use tonic::Request;

use crate::{
    assignment::Channel,
    client::{Client, Core},
    connections::{Class, status_error},
    error::ReadPointError,
};

impl Client {
    /// The time tick that a consumer of the channel, a vchannel or a physical one, has to reach to have seen every
    /// message of it that was acknowledged to anyone before this call; its [`progress`](crate::Consumer::progress) says
    /// how far it is, also when it asks for time ticks only. Asks the channel's owner, in this process without any
    /// call. Tries again, also at the next owner, until [`Timeouts::stall`](crate::Timeouts::stall).
    ///
    /// # Errors
    /// [`ReadPointError`].
    pub async fn latest_time_tick(&self, channel: &str) -> Result<TimeTick, ReadPointError> {
        let core = self.core();
        let pchannel = to_physical(channel);
        if pchannel.is_empty() {
            return Err(ReadPointError::InvalidRequest("no channel is named".to_owned()));
        }
        let mut cause = None;
        let limit = core.settings.timeouts.stall;
        let asked = core.clock.timeout(limit, ask(core, pchannel, channel, &mut cause).boxed());
        let outcome = core.tasks.token().run_until_cancelled(asked).await;
        match outcome {
            None => Err(ReadPointError::Closed),
            Some(Ok(outcome)) => outcome.map_err(ReadPointError::Refused),
            Some(Err(_)) => {
                let cause = cause.unwrap_or_else(|| core.why_unassigned(pchannel));
                Err(ReadPointError::Unavailable { after: limit, cause })
            }
        }
    }
}

async fn ask(
    core: &Core,
    pchannel: &str,
    vchannel: &str,
    trouble: &mut Option<String>,
) -> Result<TimeTick, StreamingError> {
    let mut backoff = core.backoff();
    loop {
        // Only who appends knows what was acknowledged.
        let channel = core.wait_assigned(pchannel, |channel| !channel.pchannel.is_read_only()).await;
        let error = match latest(core, &channel, vchannel).await {
            Ok(tick) => return Ok(tick),
            // IGNORED_OPERATION says that another process answered at the owner's address.
            Err(error) if !error.is_retryable() && !error.is_ignored() => return Err(error),
            Err(error) => error,
        };
        core.assignments.report(&channel.pchannel, &error);
        *trouble = Some(error.to_string());
        core.newer_term(pchannel, channel.pchannel.term(), backoff.delay()).await;
    }
}

async fn latest(core: &Core, channel: &Channel, vchannel: &str) -> Result<TimeTick, StreamingError> {
    if let Some(node) = core.local(channel) {
        return node.latest_time_tick(&channel.pchannel, vchannel);
    }
    let server = channel.server();
    let limit = core.settings.timeouts.open;
    let mut client = ReadPointsClient::new(core.connections.channel(&server, Class::Append)?);
    let mut request = Request::new(LatestRequest { vchannel: vchannel.to_owned(), term: channel.pchannel.term() });
    core.connections.address_call(&server, request.metadata_mut());
    match core.clock.timeout(limit, client.latest(request)).await {
        Ok(Ok(response)) => Ok(TimeTick(response.into_inner().time_tick)),
        Ok(Err(status)) => Err(status_error(&status)),
        Err(_) => Err(StreamingError::unknown(format!("{} did not answer within {limit:?}", channel.owner.address))),
    }
}
