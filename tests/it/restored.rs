//! A metadata store that is brought back from a backup, under logs that went on.

use crate::{
    cluster::{Backend, Cluster},
    load::{CHANNEL, LIMIT, Load, check, read_until},
};

/// The backup is taken in the middle of a segment; after it that one goes on, and another owner begins the next one. What is
/// in the segments that the backup knows is there; what was appended later is lost with the metadata, and what comes then
/// takes its place and its ids, but is never mixed with it.
async fn what_the_backup_knows_is_kept(backend: Backend) -> anyhow::Result<()> {
    let mut cluster = Cluster::start(backend, 1).await?;
    let client = cluster.client().await?;
    client.wait_channel(CHANNEL, LIMIT).await?;
    let before = Load::run(&client, 1).await?;
    let backup = cluster.etcd.backup().await;
    let in_the_same_segment = Load::run(&client, 1).await?;
    cluster.nodes[0].kill()?;
    cluster.start_node()?;
    let lost = Load::run(&client, 1).await?;
    let [known, same, next] = [&before, &in_the_same_segment, &lost].map(|run| run[0].id.segment);
    assert!(known == same && same < next, "{known} {same} {next}");
    client.close().await;

    // All that serves is stopped. Log stores need not be: other instances may be on them.
    cluster.coord.kill()?;
    cluster.nodes[1].kill()?;
    cluster.etcd.restore(&backup).await;
    cluster.restart_coord()?;
    cluster.start_node()?;
    let client = cluster.client().await?;
    let then = Load::run(&client, 1).await?;
    let found = read_until(&client, then[then.len() - 1].id).await?;
    let mut rest = &found[..];
    for run in [before, in_the_same_segment, then] {
        let (of_run, behind) = rest.split_at(run.len());
        check(of_run, &run);
        rest = behind;
    }
    assert!(rest.is_empty(), "{rest:?}");
    cluster.verify(CHANNEL)?;
    client.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_backup_of_etcd_knows_is_kept_on_a_local_disk() -> anyhow::Result<()> {
    what_the_backup_knows_is_kept(Backend::Local).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_backup_of_etcd_knows_is_kept_on_object_storage() -> anyhow::Result<()> {
    what_the_backup_knows_is_kept(Backend::Object).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_backup_of_etcd_knows_is_kept_on_log_stores_that_have_more() -> anyhow::Result<()> {
    what_the_backup_knows_is_kept(Backend::Quorum).await
}
