//! Discovery: who is there.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{StreamExt, stream, stream::BoxStream};
use semver::Version;

use super::{SessionRecord, session_prefix};
use crate::{
    backoff::Backoff,
    clock::Clock,
    metadata::{KeyValue, MetadataError, MetadataStore, Revision, Watch, WatchEvent},
    random::Random,
};

/// Which sessions to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionKeys<'a> {
    /// Every process of a shared role, such as `streamingnode`.
    Shared(&'a str),
    /// The active process of an exclusive role, such as `mixcoord`.
    Exclusive(&'a str),
}

/// Every session that was asked for, as of one revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionView {
    pub revision: Revision,
    /// By server id. Those that are stopping are among them.
    pub sessions: BTreeMap<i64, SessionRecord>,
}

impl SessionView {
    /// Only the sessions of this version and later ones.
    #[must_use]
    pub fn at_least(mut self, minimum: &Version) -> Self {
        self.sessions.retain(|_, record| record.is_at_least(minimum));
        self
    }
}

/// The sessions now, then again whenever one comes, changes or goes. Sessions that cannot be read are skipped. An error
/// is a report that the store cannot be reached: the last view stands, and the stream goes on.
pub fn watch_sessions(
    store: Arc<dyn MetadataStore>,
    meta_root: &str,
    keys: SessionKeys<'_>,
    clock: Clock,
    random: &Random,
) -> BoxStream<'static, Result<SessionView, MetadataError>> {
    let (prefix, exact) = match keys {
        SessionKeys::Shared(role) => (format!("{}{role}-", session_prefix(meta_root)), false),
        SessionKeys::Exclusive(role) => (format!("{}{role}", session_prefix(meta_root)), true),
    };
    let backoff = Backoff::new(clock, random, Duration::from_millis(100), Duration::from_secs(2));
    let following =
        Following { store, prefix, exact, backoff, failed: false, watch: None, revision: 0, current: BTreeMap::new() };
    stream::unfold(following, |mut following| async { Some((following.next().await, following)) }).boxed()
}

struct Following {
    store: Arc<dyn MetadataStore>,
    prefix: String,
    /// The prefix is a whole key; what is longer is another's.
    exact: bool,
    backoff: Backoff,
    failed: bool,
    watch: Option<Watch>,
    revision: Revision,
    current: BTreeMap<String, SessionRecord>,
}

impl Following {
    async fn next(&mut self) -> Result<SessionView, MetadataError> {
        loop {
            let Some(watch) = &mut self.watch else {
                if std::mem::take(&mut self.failed) {
                    self.backoff.wait().await;
                }
                return self.start().await.map(|()| self.view()).inspect_err(|_| self.failed = true);
            };
            match watch.next().await {
                Some(Ok(event)) => {
                    if self.apply(event) {
                        return Ok(self.view());
                    }
                }
                Some(Err(error)) => return Err(error),
                None => {
                    (self.watch, self.failed) = (None, true);
                    return Err(MetadataError::Unavailable("the watch has ended".to_owned()));
                }
            }
        }
    }

    async fn start(&mut self) -> Result<(), MetadataError> {
        let snapshot = self.store.list(&self.prefix).await?;
        self.watch = Some(self.store.watch(&self.prefix, snapshot.revision + 1).await?);
        self.backoff.reset();
        self.apply(WatchEvent::Resync(snapshot));
        Ok(())
    }

    /// Whether the view has changed.
    fn apply(&mut self, event: WatchEvent) -> bool {
        match event {
            WatchEvent::Put(item) => {
                self.revision = item.mod_revision;
                self.wants(&item.key) && self.put(&item)
            }
            WatchEvent::Delete { key, revision } => {
                self.revision = revision;
                self.current.remove(&key).is_some()
            }
            WatchEvent::Resync(snapshot) => {
                self.revision = snapshot.revision;
                self.current.clear();
                for item in &snapshot.items {
                    if self.wants(&item.key) {
                        self.put(item);
                    }
                }
                true
            }
        }
    }

    fn wants(&self, key: &str) -> bool {
        !self.exact || key == self.prefix
    }

    fn put(&mut self, item: &KeyValue) -> bool {
        match SessionRecord::decode(&item.value) {
            Ok(record) => self.current.insert(item.key.clone(), record.clone()) != Some(record),
            Err(error) => {
                tracing::warn!(key = item.key, %error, "skipped a session that cannot be read");
                self.current.remove(&item.key).is_some()
            }
        }
    }

    fn view(&self) -> SessionView {
        let sessions = self.current.values().map(|record| (record.server_id, record.clone())).collect();
        SessionView { revision: self.revision, sessions }
    }
}
