//! A segment under test: what its owner is told, and what its entries hold.

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::sync::watch;
use woodpecker_base::clock::Clock;
use woodpecker_core::ids::{Epoch, LogId, SegmentKey};

use crate::backend::{Backend, Placement, SegmentEnd, SegmentOwner, SegmentReader, SegmentWriter};

const LIMIT: Duration = Duration::from_secs(60);

/// Fails the test when `what` takes too long, so that a hang has a name.
pub(super) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match Clock::system().timeout(LIMIT, future).await {
        Ok(output) => output,
        Err(_) => panic!("{what} took longer than {LIMIT:?}"),
    }
}

/// A segment's owner that keeps what it was told, and checks that it was told in order.
#[derive(Debug, Clone)]
pub struct Owner {
    pub(super) told: watch::Sender<Told>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Told {
    pub acked: u64,
    pub end: Option<SegmentEnd>,
}

impl Default for Owner {
    fn default() -> Self {
        Self { told: watch::Sender::new(Told::default()) }
    }
}

impl Owner {
    /// Every entry below this number was acked.
    #[must_use]
    pub fn acked_now(&self) -> u64 {
        self.told.borrow().acked
    }

    /// Waits until every entry below `next` is acked.
    pub async fn wait_acked(&self, next: u64) {
        let mut told = self.told.subscribe();
        let seen = within("an ack", told.wait_for(|told| told.acked >= next || told.end.is_some())).await.expect("own");
        assert!(seen.acked >= next, "acked only {} of {next}, then {:?}", seen.acked, seen.end);
    }

    /// Waits until the segment takes no more appends, and says why.
    pub async fn wait_ended(&self) -> SegmentEnd {
        let mut told = self.told.subscribe();
        let seen = within("the end", told.wait_for(|told| told.end.is_some())).await.expect("own sender");
        seen.end.clone().expect("waited for")
    }
}

impl SegmentOwner for Owner {
    fn acked(&self, next: u64) {
        self.told.send_modify(|told| {
            assert!(told.end.is_none(), "acked({next}) after the end {:?}", told.end);
            assert!(next > told.acked, "acked({next}) after acked({})", told.acked);
            told.acked = next;
        });
    }

    fn ended(&self, end: SegmentEnd) {
        self.told.send_modify(|told| {
            assert!(told.end.is_none(), "ended twice: {:?}, {end:?}", told.end);
            told.end = Some(end);
        });
    }
}

/// A segment with its owner.
pub(super) struct Open {
    pub key: SegmentKey,
    pub owner: Owner,
    pub writer: Arc<dyn SegmentWriter>,
}

impl Open {
    pub async fn create(backend: &Arc<dyn Backend>, log: u64) -> Self {
        let key = SegmentKey { log: LogId(log), segment: 1 };
        let owner = Owner::default();
        let writer = within("create", backend.create(key, Epoch(1), Arc::new(owner.clone()))).await.expect("create");
        Self { key, owner, writer }
    }

    pub fn placement(&self) -> &Placement {
        self.writer.placement()
    }

    /// Appends entries `from..to` one by one and waits for the last.
    pub async fn fill(&self, from: u64, to: u64) {
        for number in from..to {
            assert_eq!(self.writer.append(vec![entry(self.key, number)]).expect("append"), number);
        }
        self.owner.wait_acked(to).await;
    }
}

/// What entry `number` of a segment holds: recognisable, of varying length, some empty.
pub(super) fn entry(key: SegmentKey, number: u64) -> Bytes {
    let length = usize::try_from((number * 37 + key.log.0) % 200).expect("small");
    let mut bytes = format!("{key}#{number};").repeat(20).into_bytes();
    bytes.truncate(length);
    bytes.into()
}

pub(super) async fn open(
    backend: &Arc<dyn Backend>,
    key: SegmentKey,
    placement: &Placement,
    end: Option<u64>,
) -> Arc<dyn SegmentReader> {
    within("open", backend.open(key, placement, end)).await.expect("open")
}

/// Reads `from..to`, waiting for what is not there yet, and checks every byte.
pub(super) async fn expect(reader: &Arc<dyn SegmentReader>, key: SegmentKey, from: u64, to: u64) {
    let mut next = from;
    while next < to {
        within(&format!("entry {next} of {key}"), reader.readable(next)).await;
        for bytes in within("read", reader.read(next, 4096)).await.expect("read") {
            assert_eq!(bytes, entry(key, next), "entry {next} of {key}");
            next += 1;
        }
    }
}

pub(super) async fn tail(reader: &Arc<dyn SegmentReader>) -> u64 {
    within("tail", reader.tail()).await.expect("tail")
}

/// Reads what is there until nothing is, and says where that was.
pub(super) async fn read_out(reader: &Arc<dyn SegmentReader>, key: SegmentKey) -> u64 {
    let mut next = 0;
    loop {
        let entries = within("read", reader.read(next, 1 << 20)).await.expect("read");
        if entries.is_empty() {
            return next;
        }
        for bytes in entries {
            assert_eq!(bytes, entry(key, next), "entry {next} of {key}");
            next += 1;
        }
    }
}

pub(super) async fn fence(backend: &Arc<dyn Backend>, key: SegmentKey, placement: &Placement) -> u64 {
    within("fence", backend.fence(key, placement, Epoch(2))).await.expect("fence")
}
