//! `streaming doctor`: whether what the engine stands on keeps its promises.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, bail, ensure};
use futures::StreamExt;
use object_store::{ObjectStoreExt, path::Path as ObjectPath};
use serde::Serialize;
use woodpecker_base::{
    clock::Clock,
    disk::{Disk, DiskFile, OpenMode},
    metadata::{Compare, MetadataStore, Txn, TxnOutcome, WatchEvent},
};
use woodpecker_store::object::store::probe;

use super::{list::table, print_json};
use crate::{
    cli::DoctorArgs,
    config::Config,
    print::say,
    roles::{Machine, open_metadata, open_objects},
};

const LIMIT: Duration = Duration::from_secs(20);
/// Clocks of a cluster that differ by more make retention and reports misleading.
const CLOCK_LIMIT: Duration = Duration::from_secs(2);
const SYNCS: u32 = 50;

#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    ok: bool,
    detail: String,
}

/// Examines everything and reports all of it.
///
/// # Errors
/// The configuration cannot be read, or something does not keep its promise.
pub(crate) async fn doctor(arguments: DoctorArgs) -> anyhow::Result<()> {
    let config = arguments.configuration.load()?;
    let machine = Machine::real(&config)?;
    let mut findings = Vec::new();
    let mut note = |check, outcome: anyhow::Result<String>| {
        let (ok, detail) = match outcome {
            Ok(detail) => (true, detail),
            Err(error) => (false, format!("{error:#}")),
        };
        findings.push(Finding { check, ok, detail });
    };
    note("metadata store", Box::pin(within(&machine, metadata(&config, &machine))).await);
    note("disk sync", within(&machine, disk_sync(&config, &machine)).await);
    if config.uses_object_store() {
        note("conditional PUT, 8 writers racing", within(&machine, conditional_put(&config, &machine)).await);
        note("clock against the object store", within(&machine, clock(&config, &machine)).await);
    } else {
        // The metadata store tells no time.
        note("clock", Ok("not compared: no object store is configured, and nothing else tells the time".to_owned()));
    }
    let wrong = findings.iter().filter(|finding| !finding.ok).count();
    if arguments.json {
        print_json(&findings)?;
    } else {
        let mut table = table(["CHECK", "RESULT", "DETAIL"]);
        for Finding { check, ok, detail } in &findings {
            let result = if *ok { "ok" } else { "FAILED" };
            table.add_row([*check, result, detail.as_str()]);
        }
        say!("{table}");
    }
    if wrong > 0 {
        bail!("{wrong} of {} checks failed", findings.len());
    }
    Ok(())
}

async fn within(machine: &Machine, check: impl Future<Output = anyhow::Result<String>>) -> anyhow::Result<String> {
    machine.clock.timeout(LIMIT, check).await.with_context(|| format!("no answer within {LIMIT:?}"))?
}

/// A key goes through what the engine relies on: compare-and-swap, a watch, a lease.
async fn metadata(config: &Config, machine: &Machine) -> anyhow::Result<String> {
    let store = open_metadata(config, machine).await?;
    let key = format!("{}/doctor/{:032x}", config.etcd.root_path, machine.random.u128());
    let started = machine.clock.now();
    let outcome = metadata_promises(&*store, &key).await;
    let took = started.elapsed();
    store.commit(Txn::new().delete(key)).await?;
    outcome.map(|()| format!("compare-and-swap, watch and lease work, in {took:.1?}"))
}

async fn metadata_promises(store: &dyn MetadataStore, key: &str) -> anyhow::Result<()> {
    let before = store.list(key).await?.revision;
    let create = Txn::new().when(Compare::Absent(key.into())).put(key, "1");
    ensure!(matches!(store.commit(create.clone()).await?, TxnOutcome::Committed(_)), "a free key was not created");
    ensure!(store.commit(create).await? == TxnOutcome::Conflict, "a key was created twice");
    let mut watch = store.watch(key, before + 1).await?;
    loop {
        match watch.next().await.context("the watch ended")?? {
            WatchEvent::Put(item) if item.key == key => break,
            _ => {}
        }
    }
    let lease = store.grant_lease(Duration::from_secs(5)).await?;
    store.keep_alive(lease).await?;
    store.revoke_lease(lease).await?;
    ensure!(store.keep_alive(lease).await.is_err(), "a revoked lease lives on");
    Ok(())
}

/// Small writes, each synced, where the local volumes are.
async fn disk_sync(config: &Config, machine: &Machine) -> anyhow::Result<String> {
    let directory = config.data_path("doctor");
    // Not one that an interrupted check left, nor one of another that runs.
    let path = directory.join(format!("{:032x}.bin", machine.random.u128()));
    let (disk, clock) = (machine.disk.clone(), machine.clock.clone());
    let (answer, answered) = tokio::sync::oneshot::channel();
    let work = move || -> anyhow::Result<String> {
        // It stays: another check may be about to use it.
        disk.create_dir_all(&directory)?;
        let file = disk.open(&path, OpenMode::CreateNew)?;
        let each = synced_write(&*file, &clock);
        let removed = disk.remove_file(&path);
        let each = each?;
        removed?;
        disk.sync_dir(&directory)?;
        Ok(format!("{each:.1?} for 4 KiB in {}", directory.display()))
    };
    let runner: Arc<dyn Disk> = machine.disk.clone();
    runner
        .run(Box::new(move || {
            // Nobody waits any more when the check took too long.
            let _ = answer.send(work());
        }))
        .await;
    answered.await?
}

/// How long one takes.
fn synced_write(file: &dyn DiskFile, clock: &Clock) -> anyhow::Result<Duration> {
    let page = [7; 4096];
    let started = clock.now();
    for number in 0..SYNCS {
        file.write_all_at(&page, u64::from(number) * 4096)?;
        file.sync_data()?;
    }
    Ok(started.elapsed() / SYNCS)
}

async fn conditional_put(config: &Config, machine: &Machine) -> anyhow::Result<String> {
    let started = machine.clock.now();
    probe(&*open_objects(config)?, &machine.random).await?;
    Ok(format!("one winner in every race, in {:.1?}", started.elapsed()))
}

async fn clock(config: &Config, machine: &Machine) -> anyhow::Result<String> {
    let store = open_objects(config)?;
    let path = ObjectPath::from(format!("probe/{:032x}", machine.random.u128()));
    let before = machine.clock.wall();
    store.put(&path, "clock".into()).await?;
    let after = machine.clock.wall();
    let stored = store.head(&path).await?.last_modified.timestamp_millis();
    store.delete(&path).await?;
    let stored = Duration::from_millis(u64::try_from(stored).unwrap_or(0));
    // Stores tell whole seconds.
    let apart = before.saturating_sub(stored).max(stored.saturating_sub(after));
    ensure!(apart <= CLOCK_LIMIT, "this clock and the object store's are {apart:.1?} apart");
    Ok(format!("{apart:.1?} apart at most"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};

    #[tokio::test]
    async fn what_an_interrupted_check_left_and_another_that_runs_do_not_make_a_disk_bad() {
        let place = tempfile::tempdir().unwrap();
        let assignments = vec![format!("woodpecker.storage.rootPath={}", place.path().display())];
        let config = load(&Sources { assignments, ..Sources::default() }).unwrap();
        let machine = Machine::real(&config).unwrap();
        let directory = config.data_path("doctor");
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("left.bin"), "x").unwrap();
        let (one, other) = tokio::join!(disk_sync(&config, &machine), disk_sync(&config, &machine));
        assert!(one.is_ok() && other.is_ok(), "{one:?} {other:?}");
        let left: Vec<_> = std::fs::read_dir(&directory).unwrap().map(|file| file.unwrap().file_name()).collect();
        assert_eq!(left, ["left.bin"]);
    }
}
