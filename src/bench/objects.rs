//! What the object store can do by itself, used as the engine uses it: conditional PUTs, several at once.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, path::Path};
use woodpecker_base::clock::Clock;

use super::{SMALL, latency::Latencies};
use crate::roles::Machine;

/// Bytes that the engine gathers before it starts another PUT while one is in flight, and how many it has in flight.
pub(super) const BLOCK: usize = 2 << 20;
pub(super) const PUTS: usize = 4;

/// A prefix in the bucket that the engine writes.
#[derive(Debug)]
pub(super) struct RawObjects {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    clock: Clock,
    blocks: usize,
    small: usize,
}

impl RawObjects {
    pub(super) fn open(store: Arc<dyn ObjectStore>, machine: &Machine) -> Self {
        let prefix = Path::from(format!("bench-{:032x}", machine.random.u128()));
        Self { store, prefix, clock: machine.clock.clone(), blocks: 0, small: 0 }
    }

    fn path(&self, kind: &str, number: usize) -> Path {
        self.prefix.clone().join(format!("{kind}-{number:08}"))
    }

    async fn put(&self, path: Path, body: Bytes) -> anyhow::Result<()> {
        let options = PutOptions::from(PutMode::Create);
        self.store.put_opts(&path, PutPayload::from_bytes(body), options).await?;
        Ok(())
    }

    pub(super) async fn write(&mut self, blocks: usize) -> anyhow::Result<Duration> {
        let body = Bytes::from(vec![7; BLOCK]);
        let started = self.clock.now();
        let numbers = self.blocks..self.blocks + blocks;
        stream::iter(numbers)
            .map(|number| self.put(self.path("block", number), body.clone()))
            .buffer_unordered(PUTS)
            .try_for_each(|()| async { Ok(()) })
            .await?;
        let elapsed = started.elapsed();
        self.blocks += blocks;
        Ok(elapsed)
    }

    pub(super) async fn read(&self, bytes: usize) -> anyhow::Result<Duration> {
        let started = self.clock.now();
        stream::iter(0..bytes.div_ceil(BLOCK))
            .map(|number| async move {
                let body = self.store.get(&self.path("block", number)).await?.bytes().await?;
                anyhow::ensure!(body.len() == BLOCK, "short read");
                Ok(())
            })
            .buffer_unordered(PUTS)
            .try_for_each(|()| async { Ok(()) })
            .await?;
        Ok(started.elapsed())
    }

    /// One small PUT after another.
    pub(super) async fn write_small(&mut self, count: usize, latencies: &mut Latencies) -> anyhow::Result<()> {
        let body = Bytes::from(vec![b'x'; SMALL]);
        for _ in 0..count {
            let begun = self.clock.now();
            self.put(self.path("small", self.small), body.clone()).await?;
            latencies.record(begun.elapsed());
            self.small += 1;
        }
        Ok(())
    }

    /// Removes everything.
    pub(super) async fn clear(&mut self) -> anyhow::Result<()> {
        let blocks = (0..self.blocks).map(|number| self.path("block", number));
        let paths: Vec<Path> = blocks.chain((0..self.small).map(|number| self.path("small", number))).collect();
        let store = &self.store;
        stream::iter(paths)
            .map(|path| async move { store.delete(&path).await })
            .buffer_unordered(PUTS)
            .try_for_each(|()| async { Ok(()) })
            .await?;
        (self.blocks, self.small) = (0, 0);
        Ok(())
    }
}
