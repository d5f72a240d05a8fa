//! The quorum backend on real log stores: the contract of every backend, restarts, and what it costs.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod figures;
mod restarts;
mod world;

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::OnceCell;
use woodpecker_store::{backend::Backend, conformance::Medium};

use world::World;

/// Three stores that are started with the first process.
#[derive(Debug, Default)]
struct Three {
    world: OnceCell<World>,
}

#[async_trait]
impl Medium for Three {
    async fn process(&self) -> Arc<dyn Backend> {
        self.world.get_or_init(|| World::new(3)).await.process().await
    }

    async fn kill(&self, process: Arc<dyn Backend>) {
        self.world.get().unwrap().kill(&process);
    }
}

woodpecker_store::conformance_tests!(Three::default());
