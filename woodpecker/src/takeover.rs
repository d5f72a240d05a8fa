//! Opening a writer: carries out what [`Opening`] says.

use std::sync::Arc;

use woodpecker_base::metadata::MetadataError;
use woodpecker_core::opening::{CommitOutcome, Next, Opening};
use woodpecker_store::backend::StoreError;

use crate::{LogError, OpenWriterError, Writer, catalog::PATIENCE, client::Inner, view::View, writer::Shared};

/// Takes the log. Dropping the future at any point is like a crash there: the next opener goes on.
pub(crate) async fn take_over(client: &Arc<Inner>, view: &Arc<View>) -> Result<Writer, OpenWriterError> {
    client.claim_media().await?;
    if !view.is_listed() {
        view.learn_all_closed(client.catalog.segments(view.id).await?);
    }
    let mut attempts = client.retrying.attempts(Some(PATIENCE));
    let mut opening = Opening::new(view.id);
    let mut created = None;
    loop {
        match opening.next() {
            Next::Read => {
                opening.on_read(client.catalog.log(&view.name, Some(PATIENCE)).await?, client.clock.wall_ms());
            }
            Next::Commit { revision, change } => {
                let outcome = client.catalog.commit(revision, &change).await.map_err(LogError::from)?;
                if let CommitOutcome::Committed(revision) = outcome {
                    view.learn((change.log, revision), change.closed);
                } else if !attempts.wait().await {
                    let why = format!("the record of {:?} cannot be changed", view.name);
                    return Err(LogError::from(MetadataError::Unavailable(why)).into());
                }
                opening.on_commit(outcome);
            }
            Next::Fence { segment, epoch } => {
                let fenced = client.fence(view.id, &segment, epoch).await;
                if matches!(fenced, Ok(0) | Err(StoreError::NotFound { .. } | StoreError::Unavailable(_))) {
                    client.check_unsealed(view.id, &segment).await.map_err(LogError::from)?;
                }
                match fenced {
                    Ok(entries) => opening.on_fenced(entries, client.clock.wall_ms()),
                    Err(StoreError::Fenced { .. }) => return Err(OpenWriterError::Preempted),
                    Err(error) => return Err(LogError::from(error).into()),
                }
            }
            Next::Create { segment, epoch } => {
                let shared = Shared::new(client.clone(), view.clone(), epoch);
                let backend = client.backend_for(&view.log().0.settings).map_err(LogError::from)?;
                let handle = shared.create(backend, segment, Some(PATIENCE)).await.map_err(LogError::from)?;
                opening.on_created(backend.name(), handle.placement().clone(), client.clock.wall_ms());
                created = Some((shared, handle));
            }
            Next::Ready { log, revision, segment } => {
                let Some((shared, handle)) = created.take() else { return Err(OpenWriterError::Preempted) };
                return Ok(shared.start((log, revision), segment, handle));
            }
            Next::Preempted => return Err(OpenWriterError::Preempted),
            Next::Gone => return Err(LogError::NotFound(view.name.clone()).into()),
        }
    }
}
