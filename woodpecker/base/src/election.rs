//! Active and standby: of all candidates for a role, one holds the exclusive key.
//!
//! A candidate registers `<role>-<server id>`, then tries to create `<role>` on the same lease. The losers watch that key
//! and try again when it goes. What a leader writes is guarded by [`Leadership::guard`], so that one who was deposed
//! without noticing changes nothing.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;

use crate::{
    clock::Clock,
    metadata::{Compare, MetadataStore, Revision, WatchEvent},
    session::{Session, SessionError, SessionRecord, session_prefix},
};

/// A watch reports trouble at once; the next look at the key waits a little.
const TROUBLE_PAUSE: Duration = Duration::from_millis(200);

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
    let record = SessionRecord { exclusive: true, ..session.record().clone() };
    let key = format!("{}{}", session_prefix(meta_root), record.role);
    loop {
        let attempt = async {
            let error = match session.claim(&key, &record).await {
                Ok(created) => return Some(Leadership { key: key.clone(), created }),
                Err(error) => error,
            };
            tracing::debug!(%error, "standing by");
            if let Err(error) = freed(store, &key).await {
                tracing::warn!(%error, "the leader's key cannot be watched");
                clock.sleep(TROUBLE_PAUSE).await;
            }
            None
        };
        tokio::select! {
            biased;
            () = session.lost() => return Err(SessionError::Lost),
            outcome = attempt => if let Some(leadership) = outcome {
                return Ok(leadership);
            },
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
