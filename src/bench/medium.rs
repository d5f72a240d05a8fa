//! What the medium can do by itself, measured the way the engine uses it: same block size, same sync, same parallelism.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context, anyhow};
use bytes::Bytes;
use futures::{StreamExt, stream};
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, path::Path as ObjectPath};
use tokio::sync::oneshot;
use woodpecker_base::{
    clock::Clock,
    disk::{Disk, DiskFile, OpenMode},
};

use super::latency::Latencies;

/// What came out of one measurement.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) latencies: Latencies,
    pub(crate) bytes: u64,
    pub(crate) elapsed: Duration,
}

impl Measured {
    /// Bytes per second.
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    pub(crate) fn rate(&self) -> f64 {
        self.bytes as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// Sequential writes of `block` bytes into a pre-allocated, pre-zeroed file, each followed by fdatasync.
///
/// # Errors
/// The disk's.
pub(crate) async fn disk_writes(
    disk: &Arc<dyn Disk>,
    directory: &Path,
    clock: &Clock,
    block: usize,
    count: usize,
) -> anyhow::Result<Measured> {
    let path = directory.join("medium.bin");
    let (clock, disk_for_work) = (clock.clone(), disk.clone());
    on_disk(disk, move || {
        let file = create(&*disk_for_work, &path)?;
        file.preallocate((block * count) as u64)?;
        file.sync_data()?;
        let data: Vec<u8> = (0..=250).cycle().take(block).collect();
        let mut latencies = Latencies::new()?;
        let started = clock.now();
        for i in 0..count {
            let begun = clock.now();
            file.write_all_at(&data, (i * block) as u64)?;
            file.sync_data()?;
            latencies.record(begun.elapsed());
        }
        let elapsed = started.elapsed();
        disk_for_work.remove_file(&path)?;
        Ok(Measured { latencies, bytes: (block * count) as u64, elapsed })
    })
    .await
}

/// Sequential reads of `block` bytes from a file of `count` blocks that was just written (so from the page cache, as a
/// catch-up of recent data is).
///
/// # Errors
/// The disk's.
pub(crate) async fn disk_reads(
    disk: &Arc<dyn Disk>,
    directory: &Path,
    clock: &Clock,
    block: usize,
    count: usize,
) -> anyhow::Result<Measured> {
    let path = directory.join("medium.bin");
    let (clock, disk_for_work) = (clock.clone(), disk.clone());
    on_disk(disk, move || {
        let file = create(&*disk_for_work, &path)?;
        file.preallocate((block * count) as u64)?;
        file.sync_data()?;
        let mut buffer = vec![0; block];
        let mut latencies = Latencies::new()?;
        let started = clock.now();
        for i in 0..count {
            let begun = clock.now();
            let read = file.read_at(&mut buffer, (i * block) as u64)?;
            anyhow::ensure!(read == block, "short read");
            latencies.record(begun.elapsed());
        }
        let elapsed = started.elapsed();
        disk_for_work.remove_file(&path)?;
        Ok(Measured { latencies, bytes: (block * count) as u64, elapsed })
    })
    .await
}

fn create(disk: &dyn Disk, path: &Path) -> anyhow::Result<Arc<dyn DiskFile>> {
    disk.open(path, OpenMode::CreateNew).with_context(|| format!("cannot create {}", path.display()))
}

async fn on_disk<T: Send + 'static>(
    disk: &Arc<dyn Disk>,
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let (done, result) = oneshot::channel();
    disk.run(Box::new(move || {
        let _ = done.send(work());
    }))
    .await;
    result.await.map_err(|_| anyhow!("the disk thread ended"))?
}

/// Conditional PUTs of `block` bytes, `parallel` at a time.
///
/// # Errors
/// The store's.
pub(crate) async fn object_puts(
    store: &Arc<dyn ObjectStore>,
    prefix: &ObjectPath,
    clock: &Clock,
    block: usize,
    count: usize,
    parallel: usize,
) -> anyhow::Result<Measured> {
    let body = Bytes::from(vec![7u8; block]);
    let mut latencies = Latencies::new()?;
    let started = clock.now();
    let mut puts = stream::iter(0..count)
        .map(|i| {
            let (path, body) = (prefix.clone().join(format!("medium-{i:08}")), body.clone());
            async move {
                let begun = clock.now();
                let options = PutOptions::from(PutMode::Create);
                store.put_opts(&path, PutPayload::from_bytes(body), options).await?;
                anyhow::Ok(begun.elapsed())
            }
        })
        .buffer_unordered(parallel);
    while let Some(latency) = puts.next().await {
        latencies.record(latency?);
    }
    Ok(Measured { latencies, bytes: (block * count) as u64, elapsed: started.elapsed() })
}

/// GETs of what [`object_puts`] left, `parallel` at a time; then removes it.
///
/// # Errors
/// The store's.
pub(crate) async fn object_gets(
    store: &Arc<dyn ObjectStore>,
    prefix: &ObjectPath,
    clock: &Clock,
    count: usize,
    parallel: usize,
) -> anyhow::Result<Measured> {
    let mut latencies = Latencies::new()?;
    let mut bytes = 0;
    let started = clock.now();
    let mut gets = stream::iter(0..count)
        .map(|i| {
            let path = prefix.clone().join(format!("medium-{i:08}"));
            async move {
                let begun = clock.now();
                let body = store.get(&path).await?.bytes().await?;
                anyhow::Ok((begun.elapsed(), body.len()))
            }
        })
        .buffer_unordered(parallel);
    while let Some(got) = gets.next().await {
        let (latency, length) = got?;
        latencies.record(latency);
        bytes += length as u64;
    }
    drop(gets);
    let elapsed = started.elapsed();
    for i in 0..count {
        store.delete(&prefix.clone().join(format!("medium-{i:08}"))).await?;
    }
    Ok(Measured { latencies, bytes, elapsed })
}
