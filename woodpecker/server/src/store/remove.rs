//! Giving up replicas, and whole namespaces.

use std::sync::Arc;

use streaming_proto::logstore as proto;
use woodpecker_base::backoff::Backoff;
use woodpecker_store::disk::Piece;

use super::Store;
use crate::{
    lock,
    refusal::Refusal,
    replica::{Replica, ReplicaKey},
};

/// Attempts to delete what was left at the start, each after a pause.
const ORPHAN_ATTEMPTS: usize = 5;

impl Store {
    /// Releases a replica, durably and for ever, and gives its space back. Releasing twice is no error.
    ///
    /// # Errors
    /// As [`Store::find`]; the ledger's; [`Refusal::Unavailable`] when the space did not come back: try again.
    pub async fn release(&self, name: &proto::Replica) -> Result<(), Refusal> {
        let replica = match self.replica(name).await {
            Ok(replica) => replica,
            Err(Refusal::Released) => return Ok(()),
            Err(refusal) => return Err(refusal),
        };
        let key = replica.key;
        let at = |segment| ReplicaKey { segment, ..key };
        let ticket = {
            // Held, so that none is begun among those that are taken for released.
            let held = lock(&self.replicas);
            let mut all = lock(&self.released);
            let released = all.entry((key.namespace, key.log)).or_default();
            released.insert(key.segment, |run| held.range(at(*run.start())..=at(*run.end())).next().is_some());
            replica.release(|| self.ledger.put_released(key, released))
        };
        self.ledger.settled(ticket).await?;
        self.delete(&replica).await?;
        self.advertise();
        Ok(())
    }

    /// Deletes what a released replica held. It stays known until that succeeds.
    async fn delete(&self, replica: &Arc<Replica>) -> Result<(), Refusal> {
        for part in replica.parts() {
            self.delete_part(replica.key, &part.placement).await?;
        }
        lock(&self.replicas).remove(&replica.key);
        Ok(())
    }

    /// Releases every replica of a namespace; its name is refused from then on. Says how many there were.
    ///
    /// # Errors
    /// As [`Store::release`]; a second call goes on where the first one failed.
    pub async fn delete_namespace(&self, name: &str) -> Result<u64, Refusal> {
        let Some(namespace) = self.namespaces.all().into_iter().find(|namespace| *namespace.name == *name) else {
            return Ok(0);
        };
        self.namespaces.delete(&namespace, &self.ledger).await?;
        let of_namespace = |key: &ReplicaKey| key.namespace == namespace.number;
        let replicas: Vec<_> = {
            let all = lock(&self.replicas);
            all.iter().filter(|(key, _)| of_namespace(key)).map(|(_, replica)| replica.clone()).collect()
        };
        for replica in &replicas {
            replica.release(|| ());
        }
        for replica in &replicas {
            self.delete(replica).await?;
        }
        lock(&self.released).retain(|(number, _), _| *number != namespace.number);
        self.ledger.settled(self.ledger.forget_namespace(namespace.number)).await?;
        tracing::info!(namespace = name, replicas = replicas.len(), "a namespace was deleted");
        self.advertise();
        Ok(replicas.len() as u64)
    }

    /// Deletes what was released before the last stop and is still there.
    pub async fn delete_orphans(&self, orphans: Vec<Piece>, mut pauses: Backoff) {
        for piece in orphans {
            let Some(key) = ReplicaKey::from_disk(piece.key) else { continue };
            for attempt in 1..=ORPHAN_ATTEMPTS {
                match self.delete_part(key, &piece.placement).await {
                    Ok(()) => break,
                    Err(error) => {
                        tracing::warn!(segment = %piece.key, %error, attempt, "space of a released replica is not back");
                        pauses.wait().await;
                    }
                }
            }
        }
    }
}
