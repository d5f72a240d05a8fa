//! A watch that outlives connections, leaders and compaction. It keeps the place in history up to which it delivered,
//! and starts from there again whenever the server's stream ends.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use etcd_client::{EventType, WatchOptions, WatchResponse, WatchStream};
use futures::{StreamExt, stream};

use super::{EtcdStore, error::metadata_error, first_key, range_end};
use crate::{
    backoff::Backoff,
    clock::Instant,
    metadata::{KeyValue, LeaseId, MetadataError, MetadataStore, Revision, Snapshot, Watch, WatchEvent},
};

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(5);

pub(super) struct Watching {
    store: EtcdStore,
    prefix: String,
    place: Place,
    stream: Option<WatchStream>,
    pending: VecDeque<WatchEvent>,
    backoff: Backoff,
    opened: Instant,
    interrupted: bool,
    /// The code last reported, until the server answers again: an outage is reported once, not at every attempt.
    reported: Option<&'static str>,
}

/// Up to where events were delivered. The server may split a revision over several answers and the stream may end
/// between them, so the place is within a revision.
#[derive(Debug, Clone, Copy)]
struct Place {
    revision: Revision,
    /// Events of `revision` that were delivered.
    delivered: usize,
    /// Events of `revision` that this stream brought.
    seen: usize,
}

impl Place {
    /// All of `revision`, and nothing after it.
    fn after(revision: Revision) -> Self {
        Self { revision, delivered: usize::MAX, seen: 0 }
    }

    /// Whether the next event of the stream is to be delivered.
    fn takes(&mut self, revision: Revision) -> bool {
        if revision > self.revision {
            *self = Self { revision, delivered: 1, seen: 1 };
            return true;
        }
        if revision < self.revision {
            return false;
        }
        self.seen += 1;
        let fresh = self.seen > self.delivered;
        self.delivered = self.delivered.max(self.seen);
        fresh
    }
}

impl Watching {
    pub(super) fn start(store: EtcdStore, prefix: &str, from: Revision) -> Watch {
        let backoff = Backoff::new(store.clock.clone(), &store.random, FIRST_RETRY, LAST_RETRY);
        let opened = store.clock.now();
        let watching = Self {
            store,
            prefix: prefix.to_owned(),
            place: Place::after(from.max(1) - 1),
            stream: None,
            pending: VecDeque::new(),
            backoff,
            opened,
            interrupted: false,
            reported: None,
        };
        stream::unfold(watching, |mut watching| async { Some((watching.next().await, watching)) }).boxed()
    }

    async fn next(&mut self) -> Result<WatchEvent, MetadataError> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Ok(event);
            }
            let Err(error) = self.advance().await else { continue };
            if self.stream.take().is_some() && self.store.clock.now() - self.opened > LAST_RETRY {
                self.backoff.reset();
            }
            self.interrupted = true;
            if self.reported.replace(error.code()) != Some(error.code()) {
                return Err(error);
            }
            tracing::debug!(%error, prefix = self.prefix, "a watch is still interrupted");
        }
    }

    /// Opens the stream if need be and takes one answer from it.
    async fn advance(&mut self) -> Result<(), MetadataError> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                if std::mem::take(&mut self.interrupted) {
                    self.backoff.wait().await;
                }
                self.place.seen = 0;
                self.opened = self.store.clock.now();
                let opened = self.store.open_watch(&self.prefix, self.place.revision).await?;
                self.stream.insert(opened)
            }
        };
        let answer = stream.message().await.map_err(|error| metadata_error(&error))?;
        let answer = answer.ok_or_else(|| MetadataError::Unavailable("the server ended a watch".to_owned()))?;
        if answer.compact_revision() > 0 {
            return self.resync().await;
        }
        if answer.canceled() {
            return Err(self.canceled(&answer).await);
        }
        self.reported = None;
        self.take(&answer);
        Ok(())
    }

    /// Replaces the history that is gone by the present.
    async fn resync(&mut self) -> Result<(), MetadataError> {
        self.stream = None;
        let snapshot: Snapshot = self.store.list(&self.prefix).await?;
        self.place = Place::after(snapshot.revision);
        self.pending.push_back(WatchEvent::Resync(snapshot));
        Ok(())
    }

    /// The server may cancel because the token is stale, which releases of etcd say in different words; so the next
    /// attempt is made with a new one.
    async fn canceled(&self, answer: &WatchResponse) -> MetadataError {
        match self.store.call("authenticate", |client| async move { client.refresh_token().await }).await {
            Ok(()) => MetadataError::Unavailable(format!("the server canceled a watch: {}", answer.cancel_reason())),
            Err(error) => metadata_error(&error),
        }
    }

    fn take(&mut self, answer: &WatchResponse) {
        for event in answer.events() {
            let Some(item) = event.kv() else { continue };
            let revision = item.mod_revision();
            if !self.place.takes(revision) {
                continue;
            }
            let Ok(key) = item.key_str().map(str::to_owned) else {
                tracing::warn!(key = ?item.key(), "skipped a key that is not UTF-8");
                continue;
            };
            self.pending.push_back(match event.event_type() {
                EventType::Delete => WatchEvent::Delete { key, revision },
                EventType::Put => WatchEvent::Put(KeyValue {
                    key,
                    value: Bytes::copy_from_slice(item.value()),
                    create_revision: item.create_revision(),
                    mod_revision: revision,
                    lease: (item.lease() != 0).then(|| LeaseId(item.lease())),
                }),
            });
        }
    }
}

impl EtcdStore {
    /// Starts at `revision` although it was seen: a server below 3.4.36 or 3.5.18 that compacted exactly this revision
    /// silently leaves out its deletes, while one that compacted beyond it says so.
    async fn open_watch(&self, prefix: &str, revision: Revision) -> Result<WatchStream, MetadataError> {
        let options = WatchOptions::new()
            .with_range(range_end(prefix))
            .with_start_revision(revision.max(1))
            // Large revisions come in several answers, so that none exceeds what the client takes.
            .with_fragment();
        let open = |client: etcd_client::Client| {
            let options = options.clone();
            async move {
                let mut watcher = client.watch_client().max_decoding_message_size(super::MAX_ANSWER);
                watcher.watch(first_key(prefix), Some(options)).await
            }
        };
        self.call("watch", open).await.map_err(|error| metadata_error(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_ended_within_a_revision_goes_on_there() {
        let mut place = Place::after(4);
        let taken = |place: &mut Place, revisions: &[Revision]| -> Vec<bool> {
            revisions.iter().map(|revision| place.takes(*revision)).collect()
        };
        assert_eq!(taken(&mut place, &[4, 4, 5, 5]), [false, false, true, true]);
        place.seen = 0;
        assert_eq!(taken(&mut place, &[5, 5, 5, 6]), [false, false, true, true]);
        place.seen = 0;
        assert_eq!(taken(&mut place, &[6, 7]), [false, true]);
    }
}
