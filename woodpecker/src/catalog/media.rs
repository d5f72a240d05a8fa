//! What the records remember of media.

use woodpecker_base::metadata::{Compare, Txn};

use super::{Catalog, PATIENCE};
use crate::LogError;

impl Catalog {
    fn objects_key(&self) -> String {
        format!("{}/objects", self.prefix)
    }

    /// Whether an object store was this instance's before.
    pub async fn had_objects(&self) -> Result<bool, LogError> {
        Ok(self.get(&self.objects_key(), Some(PATIENCE)).await?.is_some())
    }

    /// Notes that one is. Said once, it stays.
    pub async fn note_objects(&self) -> Result<(), LogError> {
        let (key, instance) = (self.objects_key(), self.instance().await?);
        let same = Compare::Value(self.instance_key(), instance);
        let txn = Txn::new().when(same).when(Compare::Absent(key.clone())).put(key, "1");
        // A conflict says that another process was faster.
        self.retrying.run(Some(PATIENCE), || self.store.commit(txn.clone())).await?;
        Ok(())
    }
}
