//! Writing an object so that its outcome is known, whatever happens to the answers.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use object_store::{Error, PutMode};

use super::{Bucket, path};
use crate::{
    backend::StoreError,
    format::{BatchId, Kind},
    object::requests::Operation,
};

/// What became of an object to be written.
#[derive(Debug)]
pub enum Put {
    /// It is there, durably.
    Stored,
    /// A fence is in its place.
    Fenced,
    /// Another's batch is in its place.
    Taken,
    /// The deadline passed, or the store will never take it. The outcome is unknown.
    Failed(StoreError),
}

impl Bucket {
    /// Writes an object that must not exist yet. An attempt whose answer is lost or bad is repeated with the same bytes
    /// for so long; when the name turns out to be taken, the identity inside the object says by whom, for it may
    /// well be by an attempt of one's own.
    pub async fn put(&self, id: BatchId, bytes: &Bytes, within: Duration) -> Put {
        let path = path(id.volume, id.seq);
        let deadline = self.clock.now() + within;
        let mut backoff = self.requests.backoff();
        loop {
            let attempt = self.requests.store.put_opts(&path, bytes.clone().into(), PutMode::Create.into());
            let failure: Arc<str> = match self.requests.once(Operation::Put, bytes.len() as u64, attempt).await {
                Ok(Ok(_)) => return Put::Stored,
                Ok(Err(Error::AlreadyExists { .. } | Error::Precondition { .. })) => match self.owner(id).await {
                    Ok(Some(outcome)) => return outcome,
                    // Two PUTs in conflict, both refused: nothing was stored yet.
                    Ok(None) => format!("{path}: refused, but nothing is there").into(),
                    Err(error) => error.to_string().into(),
                },
                Ok(Err(error @ (Error::NotImplemented { .. } | Error::NotSupported { .. }))) => {
                    return Put::Failed(StoreError::Failed(format!("{path}: {error}").into()));
                }
                Ok(Err(error)) => format!("{path}: {error}").into(),
                Err(_) => format!("{path}: not stored within {:?}", self.requests.time_for(bytes.len() as u64)).into(),
            };
            let wait = backoff.delay();
            if self.clock.now() + wait >= deadline {
                return Put::Failed(StoreError::Failed(failure));
            }
            tracing::debug!(%failure, ?wait, "a PUT is repeated");
            self.requests.repeated();
            self.clock.sleep(wait).await;
        }
    }

    /// Whose object is in the place of this one; `None` when the place is free.
    async fn owner(&self, mine: BatchId) -> Result<Option<Put>, StoreError> {
        match self.header_now(mine.volume, mine.seq).await {
            Ok(header) if header.id == mine => Ok(Some(Put::Stored)),
            Ok(header) if header.id.kind == Kind::Fence => Ok(Some(Put::Fenced)),
            Ok(_) => Ok(Some(Put::Taken)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error @ StoreError::Corrupt { .. }) => {
                Ok(Some(Put::Failed(StoreError::Failed(format!("the place is taken: {error}").into()))))
            }
            Err(error) => Err(error),
        }
    }
}
