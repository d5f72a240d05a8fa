//! One message for many vchannels.

use std::collections::BTreeSet;

use crate::{
    Message,
    properties::{PropertyError, key},
};

/// Why a message cannot be split.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotABroadcast {
    #[error("the message has no broadcast header")]
    NoHeader,
    #[error("the message already has a vchannel")]
    HasVChannel,
    #[error("the broadcast header names no vchannel")]
    NoVChannels,
    #[error("the broadcast header names an empty vchannel")]
    EmptyVChannel,
    #[error("the broadcast header names {0} twice")]
    DoubledVChannel(String),
    #[error(transparent)]
    Property(#[from] PropertyError),
}

/// One copy for each vchannel that the broadcast header names, in its order. Every copy keeps that header.
pub fn split_broadcast(message: &Message) -> Result<Vec<Message>, NotABroadcast> {
    let header = message.properties.broadcast()?.ok_or(NotABroadcast::NoHeader)?;
    if message.properties.contains(key::VCHANNEL) {
        return Err(NotABroadcast::HasVChannel);
    }
    if header.vchannels.is_empty() {
        return Err(NotABroadcast::NoVChannels);
    }
    let mut seen = BTreeSet::new();
    let copy = |vchannel: &String| {
        if vchannel.is_empty() {
            return Err(NotABroadcast::EmptyVChannel);
        }
        if !seen.insert(vchannel.clone()) {
            return Err(NotABroadcast::DoubledVChannel(vchannel.clone()));
        }
        let mut copy = message.clone();
        copy.properties.set_vchannel(vchannel);
        Ok(copy)
    };
    header.vchannels.iter().map(copy).collect()
}

#[cfg(test)]
mod tests {
    use streaming_proto::messages::{BroadcastHeader, DropCollectionMessageHeader};

    use super::*;
    use crate::MessageBuilder;

    fn broadcast(vchannels: &[&str]) -> Message {
        MessageBuilder::new(&DropCollectionMessageHeader { collection_id: 1, db_id: 2 })
            .payload("body")
            .property("who", "me")
            .broadcast(vchannels.iter().copied(), Vec::new())
            .build()
            .unwrap()
    }

    #[test]
    fn every_vchannel_gets_a_copy_with_the_header() {
        let message = broadcast(&["p_0_1v0", "p_1_1v1"]);
        let copies = split_broadcast(&message).unwrap();
        let vchannels: Vec<_> = copies.iter().filter_map(|copy| copy.properties.vchannel()).collect();
        assert_eq!(vchannels, ["p_0_1v0", "p_1_1v1"]);
        for mut copy in copies {
            copy.properties.remove(key::VCHANNEL);
            assert_eq!(copy, message);
        }
    }

    #[test]
    fn what_is_no_broadcast_is_refused() {
        let mut plain = broadcast(&["a"]);
        plain.properties.remove(key::BROADCAST);
        assert_eq!(split_broadcast(&plain), Err(NotABroadcast::NoHeader));

        let mut addressed = broadcast(&["a"]);
        addressed.properties.set_vchannel("a");
        assert_eq!(split_broadcast(&addressed), Err(NotABroadcast::HasVChannel));

        let mut broken = broadcast(&["a"]);
        for (vchannels, error) in [
            (vec![], NotABroadcast::NoVChannels),
            (vec![""], NotABroadcast::EmptyVChannel),
            (vec!["a", "a"], NotABroadcast::DoubledVChannel("a".to_owned())),
        ] {
            let vchannels = vchannels.into_iter().map(str::to_owned).collect();
            broken.properties.set_broadcast(&BroadcastHeader { vchannels, ..BroadcastHeader::default() });
            assert_eq!(split_broadcast(&broken), Err(error));
        }
        broken.properties.set(key::BROADCAST, "?");
        assert!(matches!(split_broadcast(&broken), Err(NotABroadcast::Property(_))));
    }
}
