//! Server ids: one number for each start of a process, growing, never reused.

use bytes::Bytes;

use crate::{
    metadata::{Compare, MetadataError, MetadataStore, Txn, TxnOutcome},
    session::session_prefix,
};

/// Takes the next server id from the counter that all components of the cluster share, `<meta_root>/session/id`.
///
/// # Errors
/// The store's; [`MetadataError::Invalid`] when the counter holds no number.
pub async fn allocate(store: &dyn MetadataStore, meta_root: &str) -> Result<i64, MetadataError> {
    let key = format!("{}id", session_prefix(meta_root));
    loop {
        let Some(counter) = store.get(&key).await? else {
            store.commit(Txn::new().when(Compare::Absent(key.clone())).put(key.clone(), "1")).await?;
            continue;
        };
        let next = std::str::from_utf8(&counter.value).ok().and_then(|text| text.parse::<i64>().ok());
        let Some((id, after)) = next.and_then(|id| Some((id, id.checked_add(1)?))) else {
            return Err(MetadataError::Invalid(format!("{key} holds {:?}, which is no number", counter.value)));
        };
        let taken = Txn::new()
            .when(Compare::Value(key.clone(), counter.value))
            .put(key.clone(), Bytes::from(after.to_string()));
        if let TxnOutcome::Committed(_) = store.commit(taken).await? {
            return Ok(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{clock::Clock, metadata::MemoryStore};

    #[tokio::test]
    async fn ids_start_at_one_and_no_two_processes_get_the_same() {
        let store = Arc::new(MemoryStore::new(Clock::system()));
        assert_eq!(allocate(&*store, "by-dev/meta").await.unwrap(), 1);
        let taken = futures::future::join_all((0..20).map(|_| allocate(&*store, "by-dev/meta"))).await;
        let mut taken: Vec<i64> = taken.into_iter().map(Result::unwrap).collect();
        taken.sort_unstable();
        assert_eq!(taken, (2..22).collect::<Vec<_>>());
        assert_eq!(store.get("by-dev/meta/session/id").await.unwrap().unwrap().value, "22");
    }

    #[tokio::test]
    async fn a_counter_that_is_no_number_is_an_error_and_left_alone() {
        let store = MemoryStore::new(Clock::system());
        for garbage in ["", "x", "9223372036854775807"] {
            store.commit(Txn::new().put("r/session/id", garbage)).await.unwrap();
            assert!(matches!(allocate(&store, "r").await, Err(MetadataError::Invalid(_))), "{garbage}");
            assert_eq!(store.get("r/session/id").await.unwrap().unwrap().value, garbage);
        }
    }
}
