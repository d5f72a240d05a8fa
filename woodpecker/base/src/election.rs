//! Active and standby: of all candidates for a role, one holds the exclusive key.
//!
//! A candidate registers `<role>-<server id>`, then tries to create `<role>` on the same lease. The losers watch that key
//! and try again when it goes. What a leader writes is guarded by [`Leadership::guard`], so that one who was deposed
//! without noticing changes nothing.

use std::sync::Arc;

use futures::StreamExt;

use crate::{
    clock::Clock,
    metadata::{Compare, MetadataStore, Revision, WatchEvent},
    random::Random,
    session::{Session, SessionError, SessionRecord, pauses, session_prefix},
};

/// The exclusive key, held by this process' session.
#[derive(Debug)]
pub struct Leadership {
    key: String,
    created: Revision,
}

impl Leadership {
    /// Holds in a transaction only while this very leadership does.
    #[must_use]
    pub fn guard(&self) -> Compare {
        Compare::CreateRevision(self.key.clone(), self.created)
    }

    /// Grows from one leadership to the next.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.created
    }
}

/// Waits until this candidate leads; the leadership ends with the session, which reports its loss. Dropping the future
/// gives the candidacy up.
///
/// # Errors
/// [`SessionError::Lost`] when the session ended first.
pub async fn campaign(
    store: &Arc<dyn MetadataStore>,
    clock: &Clock,
    meta_root: &str,
    session: &Session,
) -> Result<Leadership, SessionError> {
    let record = SessionRecord { exclusive: true, ..session.record() };
    let key = format!("{}{}", session_prefix(meta_root), record.role);
    tokio::select! {
        biased;
        () = session.lost() => Err(SessionError::Lost),
        created = win(store, clock, session, &key, &record) => Ok(Leadership { key: key.clone(), created }),
    }
}

async fn win(
    store: &Arc<dyn MetadataStore>,
    clock: &Clock,
    session: &Session,
    key: &str,
    record: &SessionRecord,
) -> Revision {
    let mut pauses = pauses(clock, &Random::seeded(record.server_id.unsigned_abs()));
    loop {
        let waited = match session.claim(key, record).await {
            Ok(created) => return created,
            Err(SessionError::Held { holder, .. }) => {
                tracing::debug!(holder, "standing by");
                freed(store, key).await
            }
            Err(error) => Err(error),
        };
        match waited {
            Ok(()) => pauses.reset(),
            Err(error) => {
                tracing::warn!(%error, "cannot stand for election now");
                pauses.wait().await;
            }
        }
    }
}

/// Resolves when nobody holds the key.
async fn freed(store: &Arc<dyn MetadataStore>, key: &str) -> Result<(), SessionError> {
    let snapshot = store.list(key).await?;
    if !snapshot.items.iter().any(|item| item.key == key) {
        return Ok(());
    }
    let mut events = store.watch(key, snapshot.revision + 1).await?;
    while let Some(event) = events.next().await {
        match event? {
            WatchEvent::Delete { key: deleted, .. } if deleted == key => return Ok(()),
            WatchEvent::Resync(snapshot) if !snapshot.items.iter().any(|item| item.key == key) => return Ok(()),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
