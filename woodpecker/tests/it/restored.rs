//! Records that were brought back from a backup, and are older than what is on the media.

use std::time::Duration;

use futures::TryStreamExt;
use object_store::{ObjectStore, path::Path};
use woodpecker::MaintenanceSettings;
use woodpecker_base::metadata::{KeyValue, MetadataStore, Txn};

use crate::{
    on_every_medium,
    world::{World, append_all, eager, read_all, soon},
};

on_every_medium!(
    what_was_appended_after_the_backup_is_not_mixed_with_what_is_appended_then,
    a_segment_that_was_sealed_after_the_backup_is_not_taken_for_an_empty_one,
);

const RECORDS: &str = "test/";

async fn backup(world: &World) -> Vec<KeyValue> {
    world.metadata.list(RECORDS).await.unwrap().items
}

async fn bring_back(world: &World, backup: &[KeyValue]) {
    world.metadata.commit(Txn::new().delete_prefix(RECORDS)).await.unwrap();
    for KeyValue { key, value, .. } in backup {
        world.metadata.commit(Txn::new().put(key.clone(), value.clone())).await.unwrap();
    }
}

async fn what_was_appended_after_the_backup_is_not_mixed_with_what_is_appended_then(world: World) {
    let first = world.process().await;
    let writer = first.log("log").await.open_writer().await.unwrap();
    let mut kept = append_all(&writer, "before", 10).await;
    let backup = backup(&world).await;
    kept.extend(append_all(&writer, "in the same segment", 10).await);
    first.kill();
    let second = world.process().await;
    let lost = append_all(&second.log("log").await.open_writer().await.unwrap(), "lost", 10).await;
    assert!(lost[0].0.segment > kept[0].0.segment);
    second.kill();

    bring_back(&world, &backup).await;
    let third = world.process().await;
    let log = third.log("log").await;
    let writer = log.open_writer().await.unwrap();
    kept.extend(append_all(&writer, "then", 20).await);
    assert_eq!(read_all(&log).await, kept);
    let elsewhere = world.process().await;
    assert_eq!(read_all(&elsewhere.log("log").await).await, kept);
}

async fn sealed(world: &World) -> usize {
    world.objects.list(Some(&Path::from("sealed"))).try_collect::<Vec<_>>().await.unwrap().len()
}

async fn a_segment_that_was_sealed_after_the_backup_is_not_taken_for_an_empty_one(world: World) {
    let first = world.process().await;
    let writer = first.log("log").await.open_writer().await.unwrap();
    let written = append_all(&writer, "entry", 10).await;
    let backup = backup(&world).await;
    soon("close", writer.close()).await.unwrap();
    let now = MaintenanceSettings { sweep_grace: Duration::ZERO, ..eager() };
    assert_eq!(first.maintain_with(now.clone()).await.freed, 1);
    first.client.close().await;
    first.kill();
    let count = sealed(&world).await;

    bring_back(&world, &backup).await;
    let next = world.process().await;
    next.maintain_with(now).await;
    assert_eq!(sealed(&world).await, count, "nothing else has what the backup does not know");
    let log = next.log("log").await;
    match soon("open", log.open_writer()).await {
        Err(error) => assert_eq!(error.code(), "STORE_FOREIGN", "{error}"),
        // In object storage it goes later than it is freed.
        Ok(_) => assert_eq!(read_all(&log).await, written),
    }
}
