//! What a store finds at its start, and what it must not take for its own.

use std::{fs, path::Path};

use streaming_proto::logstore::{Code, DescribeRequest, FenceRequest, ReleaseRequest, Replica};
use tonic::Status;

use super::harness::{Running, Site, close, entry, refusal};
use crate::{LogStore, StartError};

/// Changes the bytes of the only data file that holds `pattern`, from where it is on.
pub fn damage(data: &Path, pattern: &[u8], change: impl FnOnce(&mut [u8])) {
    let volumes = fs::read_dir(data.join("volumes")).unwrap();
    let files =
        volumes.flat_map(|volume| fs::read_dir(volume.unwrap().path()).unwrap()).map(|file| file.unwrap().path());
    for path in files.filter(|path| path.extension().is_some_and(|extension| extension == "vol")) {
        let mut bytes = fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(pattern.len()).position(|window| window == pattern) {
            change(&mut bytes[at..]);
            return fs::write(&path, bytes).unwrap();
        }
    }
    panic!("no file holds {pattern:?}");
}

async fn fails(site: &Site) -> StartError {
    let facts = site.facts().await;
    let error = LogStore::start(site.settings.clone(), site.parts(facts.clone())).await.unwrap_err();
    close(facts).await;
    error
}

async fn fence(running: &Running, replica: &Replica, epoch: u64) -> Result<u64, Status> {
    let request = FenceRequest { replica: Some(replica.clone()), epoch, end: None };
    running.client.clone().fence(request).await.map(|answer| answer.into_inner().durable)
}

#[tokio::test]
async fn the_identity_is_written_once() {
    let site = Site::default();
    let running = site.start().await;
    let id = running.store.id().to_owned();
    assert_eq!(id.len(), 32);
    running.stop().await;
    let running = site.start().await;
    assert_eq!(running.store.id(), id);
    running.stop().await;
    let other = Site::default().start().await;
    assert_ne!(other.store.id(), id);
    // A new, empty disk under an old name answers nothing.
    let replica = Replica { store: id, ..other.replica(1, 1) };
    let status = fence(&other, &replica, 1).await.unwrap_err();
    assert_eq!(refusal(&status).code(), Code::WrongStore);
    let describe = DescribeRequest { replica: Some(replica) };
    assert_eq!(refusal(&other.client.clone().describe(describe).await.unwrap_err()).code(), Code::WrongStore);
    other.stop().await;
}

#[tokio::test]
async fn a_store_whose_volume_is_gone_does_not_start() {
    let site = Site::default();
    let running = site.start().await;
    running.fill(&running.replica(1, 1), 1, 0, 5).await;
    running.stop().await;
    fs::rename(site.dir.path().join("volumes"), site.dir.path().join("elsewhere")).unwrap();
    let error = fails(&site).await;
    assert_eq!(error.code(), "LOGSTORE_VOLUME_GONE", "{error}");
    fs::remove_dir_all(site.dir.path().join("volumes")).unwrap();
    fs::rename(site.dir.path().join("elsewhere"), site.dir.path().join("volumes")).unwrap();
    site.start().await.stop().await;
}

#[tokio::test]
async fn volumes_without_their_facts_are_refused() {
    let site = Site::default();
    let running = site.start().await;
    running.fill(&running.replica(1, 1), 1, 0, 5).await;
    running.stop().await;
    fs::remove_file(site.dir.path().join("store.redb")).unwrap();
    let error = fails(&site).await;
    assert_eq!(error.code(), "LOGSTORE_FACTS_GONE", "{error}");
}

#[tokio::test]
async fn a_foreign_volume_is_left_alone() {
    let (site, other) = (Site::default(), Site::default());
    let running = other.start().await;
    running.fill(&running.replica(1, 1), 1, 0, 5).await;
    running.stop().await;
    let running = site.start().await;
    running.fill(&running.replica(2, 1), 1, 0, 3).await;
    running.stop().await;
    let foreign = fs::read_dir(other.dir.path().join("volumes")).unwrap().next().unwrap().unwrap();
    let to = site.dir.path().join("volumes").join(foreign.file_name());
    fs::rename(foreign.path(), &to).unwrap();
    let running = site.start().await;
    assert_eq!(fence(&running, &running.replica(1, 1), 2).await.unwrap(), 0);
    assert_eq!(fence(&running, &running.replica(2, 1), 2).await.unwrap(), 3);
    assert!(to.join("00000000.vol").exists());
    running.stop().await;
}

/// A damaged volume may have held more of any replica: none is answered for, and what is whole can be read.
#[tokio::test]
async fn with_a_damaged_volume_a_store_does_not_know_and_says_so() {
    let site = Site::default();
    let running = site.start().await;
    let replica = running.replica(1, 1);
    running.fill(&replica, 1, 0, 5).await;
    running.fill(&running.replica(2, 1), 1, 0, 1).await;
    running.fill(&replica, 1, 5, 10).await;
    running.fill(&running.replica(2, 1), 1, 1, 2).await;
    running.stop().await;
    // The head of a batch that is not the last: no crash does that.
    let volumes = fs::read_dir(site.dir.path().join("volumes")).unwrap();
    let volume = volumes.map(|volume| volume.unwrap().path()).next().unwrap();
    let _unneeded = fs::remove_file(volume.join("00000000.idx"));
    let mut bytes = fs::read(volume.join("00000000.vol")).unwrap();
    bytes[2 * 4_096 + 20] ^= 1;
    fs::write(volume.join("00000000.vol"), bytes).unwrap();

    let running = site.start().await;
    for replica in [&replica, &running.replica(2, 1), &running.replica(3, 1)] {
        let status = fence(&running, replica, 2).await.unwrap_err();
        assert_eq!(refusal(&status).code(), Code::Corrupt, "{replica:?}");
    }
    assert!(!running.store.status().safe_to_remove);
    // A new segment is no replica that was lost.
    running.fill(&running.replica(3, 1), 2, 0, 5).await;
    running.stop().await;
}

#[tokio::test]
async fn what_was_released_stays_released() {
    let site = Site::default();
    let running = site.start().await;
    let (replica, other) = (running.replica(1, 1), running.replica(1, 2));
    running.fill(&replica, 1, 0, 5).await;
    running.fill(&other, 1, 0, 5).await;
    for _ in 0..2 {
        running.client.clone().release(ReleaseRequest { replica: Some(replica.clone()) }).await.unwrap();
    }
    running.stop().await;
    let running = site.start().await;
    assert_eq!(refusal(&fence(&running, &replica, 2).await.unwrap_err()).code(), Code::Released);
    let mut stream = running.stream().await;
    stream.send(&replica, 1, 0, 1).await;
    assert_eq!(stream.refusal().await.code(), Code::Released, "a stale writer began it again");
    let describe = DescribeRequest { replica: Some(replica) };
    assert!(running.client.clone().describe(describe).await.unwrap().into_inner().released);
    assert_eq!(super::read::read(&running, &other, 0, 5).await.last(), Some(&entry(&other, 4)));
    running.stop().await;
}

#[tokio::test]
async fn space_comes_back_when_everything_in_a_file_is_released() {
    let site = Site::default();
    let running = site.start().await;
    let replicas = [running.replica(1, 1), running.replica(2, 1)];
    for replica in &replicas {
        running.fill(replica, 1, 0, 100).await;
    }
    running.stop().await;
    let running = site.start().await;
    let data_files = || {
        let volumes = fs::read_dir(site.dir.path().join("volumes")).unwrap();
        let files = volumes.flat_map(|volume| fs::read_dir(volume.unwrap().path()).unwrap());
        files.filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|kind| kind == "vol")).count()
    };
    for (replica, left) in replicas.iter().zip([1, 0]) {
        running.client.clone().release(ReleaseRequest { replica: Some(replica.clone()) }).await.unwrap();
        assert_eq!(data_files(), left);
    }
    assert_eq!(running.store.status().bytes_held, 0);
    // What was being written stays until the run is over, and no longer.
    let last = running.replica(3, 1);
    running.fill(&last, 1, 0, 100).await;
    running.client.clone().release(ReleaseRequest { replica: Some(last) }).await.unwrap();
    assert!(data_files() > 0);
    running.stop().await;
    let running = site.start().await;
    assert_eq!(data_files(), 0);
    running.stop().await;
    site.start().await.stop().await;
}
