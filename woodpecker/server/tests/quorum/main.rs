//! The quorum backend on real log stores: the contract of every backend, restarts, and what it costs.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod bound;
mod figures;
mod noise;
mod restarts;
#[expect(dead_code, reason = "what a store says of itself is asked by the tests of the log engine")]
mod site;
mod world;

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::OnceCell;
use woodpecker_store::{backend::Backend, conformance::Medium};

use world::World;

/// So many stores, of which every segment has all, started with the first process.
#[derive(Debug, Default)]
struct Ensemble<const STORES: usize> {
    world: OnceCell<World>,
}

#[async_trait]
impl<const STORES: usize> Medium for Ensemble<STORES> {
    async fn process(&self) -> Arc<dyn Backend> {
        self.world.get_or_init(|| World::new(STORES)).await.process().await
    }

    async fn kill(&self, process: Arc<dyn Backend>) {
        self.world.get().unwrap().kill(&process);
    }
}

mod acked_by_two_of_three {
    woodpecker_store::conformance_tests!(super::Ensemble::<3>::default());
}

mod acked_by_three_of_five {
    woodpecker_store::conformance_tests!(super::Ensemble::<5>::default());
}
