//! One change of the topology, on its way to all pchannels.

use streaming_proto::{
    common::ReplicateConfiguration,
    messages::{
        AlterReplicateConfigMessageBody, AlterReplicateConfigMessageHeader, BroadcastHeader, ResourceDomain,
        ResourceKey,
    },
    streaming::{AckedCheckpoint, BroadcastTask, BroadcastTaskState},
};
use streaming_types::{
    ImmutableMessage, Message, MessageBuilder, StreamingError, channel::control_channel, properties::key,
};

use super::copies::{Copies, place};

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Task {
    pub(super) copies: Copies,
    config: ReplicateConfiguration,
    /// Whether the copies come from the source.
    arrives: bool,
    /// Whether it promotes a cluster without its source.
    by_force: bool,
}

/// A copy that stands in a log.
#[derive(Debug, Clone)]
pub(super) struct Arrival {
    pub(super) broadcast_id: u64,
    pub(super) vchannel: String,
    pub(super) checkpoint: AckedCheckpoint,
    pub(super) replicated: bool,
    message: Message,
    config: ReplicateConfiguration,
    broadcast: BroadcastHeader,
}

impl Arrival {
    /// `None` if it is no copy of a change.
    pub(super) fn of(message: &ImmutableMessage) -> Option<Self> {
        let config = message.header::<AlterReplicateConfigMessageHeader>().ok()?.replicate_configuration?;
        let properties = &message.properties;
        let broadcast = properties.broadcast().ok()??;
        let vchannel = properties.vchannel()?.to_owned();
        let checkpoint = place(message)?;
        let replicated = properties.contains(key::REPLICATE);
        let message = Message { payload: message.payload.clone(), properties: properties.clone() };
        Some(Self {
            broadcast_id: broadcast.broadcast_id,
            vchannel,
            checkpoint,
            replicated,
            message,
            config,
            broadcast,
        })
    }
}

impl Task {
    /// A change of our own. The pchannel with the control channel gets it there, the others under their own names.
    pub(super) fn new(
        broadcast_id: u64,
        config: ReplicateConfiguration,
        by_force: bool,
        pchannels: &[String],
        with_control: &str,
    ) -> Result<Self, StreamingError> {
        let name = |pchannel: &String| {
            if pchannel == with_control { control_channel(pchannel) } else { pchannel.clone() }
        };
        let vchannels: Vec<String> = pchannels.iter().map(name).collect();
        let cluster = ResourceKey { domain: ResourceDomain::Cluster.into(), ..ResourceKey::default() };
        let header = AlterReplicateConfigMessageHeader {
            replicate_configuration: Some(config.clone()),
            force_promote: by_force,
            ..Default::default()
        };
        let message = MessageBuilder::new(&header)
            .body(&AlterReplicateConfigMessageBody {})
            // By it a copy that was appended before is known, whatever the WAL has become since.
            .idempotency_key(format!("replicate-configuration-{broadcast_id}"))
            .broadcast(vchannels.iter().cloned(), vec![cluster.clone()]);
        let mut message = message.build().map_err(|error| StreamingError::inner(error.to_string()))?;
        let broadcast =
            BroadcastHeader { broadcast_id, vchannels, resource_keys: vec![cluster], ..BroadcastHeader::default() };
        message.properties.set_broadcast(&broadcast);
        Ok(Self { copies: Copies::new(message, broadcast), config, arrives: false, by_force })
    }

    /// A change of the source's, of which one copy has arrived.
    pub(super) fn arriving(arrival: &Arrival) -> Self {
        Self {
            copies: Copies::new(arrival.message.clone(), arrival.broadcast.clone()),
            config: arrival.config.clone(),
            arrives: true,
            by_force: false,
        }
    }

    /// `None` if no change was under way.
    pub(super) fn from_stored(stored: BroadcastTask) -> Option<Self> {
        let arrives = stored.state() == BroadcastTaskState::Replicated;
        let copies = Copies::from_stored(stored)?;
        let header: AlterReplicateConfigMessageHeader = copies.message().header().ok()?;
        let by_force = header.force_promote && !arrives;
        Some(Self { copies, config: header.replicate_configuration?, arrives, by_force })
    }

    pub(super) fn to_stored(&self) -> BroadcastTask {
        self.copies.to_stored(if self.arrives { BroadcastTaskState::Replicated } else { BroadcastTaskState::Pending })
    }

    pub(super) fn config(&self) -> &ReplicateConfiguration {
        &self.config
    }

    pub(super) fn arrives(&self) -> bool {
        self.arrives
    }

    pub(super) fn is_by_force(&self) -> bool {
        self.by_force
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        (self.copies.broadcast_id(), &self.config) == (other.copies.broadcast_id(), &other.config)
    }

    pub(super) fn is_of(&self, arrival: &Arrival) -> bool {
        (self.copies.broadcast_id(), &self.config) == (arrival.broadcast_id, &arrival.config)
    }
}
