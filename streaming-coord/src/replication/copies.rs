//! The copies of one broadcast, and where they stand.

use streaming_proto::{
    messages::{self, BroadcastHeader},
    streaming::{AckedCheckpoint, BroadcastTask, BroadcastTaskState},
};
use streaming_types::{ImmutableMessage, Message, channel::to_physical};

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Copies {
    message: Message,
    broadcast: BroadcastHeader,
    /// In the order of the header; without a tick, where that is not known.
    places: Vec<AckedCheckpoint>,
}

impl Copies {
    /// A broadcast of which no copy is known to stand anywhere.
    pub(super) fn new(message: Message, broadcast: BroadcastHeader) -> Self {
        let places = vec![AckedCheckpoint::default(); broadcast.vchannels.len()];
        Self { message, broadcast, places }
    }

    /// `None` if it is none.
    pub(super) fn from_stored(stored: BroadcastTask) -> Option<Self> {
        let message: Message = stored.message?.into();
        let broadcast = message.properties.broadcast().ok()??;
        let mut places = stored.acked_checkpoints;
        places.resize_with(broadcast.vchannels.len(), AckedCheckpoint::default);
        Some(Self { message, broadcast, places })
    }

    pub(super) fn to_stored(&self, state: BroadcastTaskState) -> BroadcastTask {
        BroadcastTask {
            message: Some(self.message.clone().into()),
            state: state.into(),
            acked_checkpoints: self.places.clone(),
            ..BroadcastTask::default()
        }
    }

    pub(super) fn message(&self) -> &Message {
        &self.message
    }

    pub(super) fn broadcast_id(&self) -> u64 {
        self.broadcast.broadcast_id
    }

    /// Where they are not known to stand.
    pub(super) fn missing(&self) -> Vec<String> {
        let places = self.broadcast.vchannels.iter().zip(&self.places);
        places.filter(|(_, at)| at.time_tick == 0).map(|(vchannel, _)| vchannel.clone()).collect()
    }

    pub(super) fn lacks(&self, vchannel: &str) -> bool {
        self.missing().iter().any(|missing| missing == vchannel)
    }

    /// Whether one of them is known to stand in the log of this pchannel.
    pub(super) fn stand_in(&self, pchannel: &str) -> bool {
        let mut places = self.broadcast.vchannels.iter().zip(&self.places);
        places.any(|(vchannel, at)| at.time_tick != 0 && to_physical(vchannel) == pchannel)
    }

    /// What one of them takes.
    pub(super) fn bytes(&self) -> usize {
        self.message.payload.len() + self.message.properties.size()
    }

    pub(super) fn note(&mut self, vchannel: &str, at: &AckedCheckpoint) {
        for (name, place) in self.broadcast.vchannels.iter().zip(&mut self.places) {
            if name == vchannel {
                *place = at.clone();
            }
        }
    }

    /// Where they stand.
    pub(super) fn places(&self) -> (Vec<String>, Vec<AckedCheckpoint>) {
        (self.broadcast.vchannels.clone(), self.places.clone())
    }

    /// The one for a vchannel.
    pub(super) fn copy(&self, vchannel: &str) -> messages::Message {
        let mut copy = self.message.clone();
        copy.properties.set_vchannel(vchannel);
        copy.into()
    }
}

/// Where a message stands.
pub(super) fn place(message: &ImmutableMessage) -> Option<AckedCheckpoint> {
    Some(AckedCheckpoint {
        message_id: Some(message.id.to_proto()),
        last_confirmed_message_id: message.last_confirmed().ok().map(Into::into),
        time_tick: message.time_tick().ok()?.into(),
    })
}
