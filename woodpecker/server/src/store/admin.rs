//! What an operator sees of the namespaces.

use serde::Serialize;

use super::Store;
use crate::quota::Quota;

/// One namespace, as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NamespaceStatus {
    pub name: String,
    pub logs: usize,
    pub bytes: u64,
    pub quota: Quota,
}

impl Store {
    /// Every namespace that was not deleted.
    pub fn namespace_status(&self) -> Vec<NamespaceStatus> {
        let living = self.namespaces.all().into_iter().filter(|namespace| !namespace.is_deleted());
        living
            .map(|namespace| NamespaceStatus {
                name: namespace.name.to_string(),
                logs: namespace.logs(),
                bytes: namespace.bytes(),
                quota: namespace.quota(),
            })
            .collect()
    }
}
