//! Whose objects they are: an object `instance` names the instance of Woodpecker that everything beside it belongs to.

use bytes::Bytes;
use object_store::{Error, ObjectStoreExt, PutMode, path::Path};

use super::requests::{Operation, Requests};
use crate::backend::StoreError;

const NAME: &str = "instance";
/// What is ours beside it.
const OURS: [&str; 2] = ["volumes", "sealed"];

impl Requests {
    /// Makes the object store the instance's, unless there are objects already that do not say whose they are.
    ///
    /// # Errors
    /// [`StoreError::Foreign`]; or the store's.
    pub async fn claim(&self, instance: &str) -> Result<(), StoreError> {
        if self.is_claimed(instance).await? {
            return Ok(());
        }
        for directory in OURS {
            if !self.list(&Path::from(directory), None, 1).await?.is_empty() {
                let what = format!("the object store of instance {instance}");
                let detail = format!("it has objects under {directory}/ and no object {NAME:?} to say whose they are");
                return Err(StoreError::Foreign { what, detail });
            }
        }
        let (path, body) = (Path::from(NAME), Bytes::copy_from_slice(instance.as_bytes()));
        self.retry(Operation::Put, NAME, 0, || async {
            match self.store.put_opts(&path, body.clone().into(), PutMode::Create.into()).await {
                // Another process was faster, or one's own answer was lost: what is there decides.
                Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(()),
                // Sealing alone needs no conditional PUT: two first starters then write in turn, and one is refused.
                Err(Error::NotImplemented { .. } | Error::NotSupported { .. }) => {
                    self.store.put(&path, body.clone().into()).await.map(|_| ())
                }
                other => other.map(|_| ()),
            }
        })
        .await?;
        self.check(instance).await
    }

    /// Whether the object store says that it is the instance's.
    ///
    /// # Errors
    /// [`StoreError::Foreign`] when it is another's; or the store's.
    pub async fn is_claimed(&self, instance: &str) -> Result<bool, StoreError> {
        match self.check(instance).await {
            Err(StoreError::NotFound { .. }) => Ok(false),
            checked => checked.map(|()| true),
        }
    }

    /// Checks that the object store is the instance's.
    ///
    /// # Errors
    /// [`StoreError::Foreign`] when it is another's, [`StoreError::NotFound`] when it does not say; or the store's.
    pub async fn check(&self, instance: &str) -> Result<(), StoreError> {
        let path = Path::from(NAME);
        let read = || async { self.store.get(&path).await?.bytes().await };
        let found = self.retry(Operation::Get, "the object that says whose objects these are", 0, read).await?;
        if found == instance.as_bytes() {
            return Ok(());
        }
        let what = format!("the object store of instance {instance}");
        let detail = format!("its objects belong to instance {}", String::from_utf8_lossy(&found));
        Err(StoreError::Foreign { what, detail })
    }
}
