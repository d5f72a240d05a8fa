//! Freeing volumes of what no segment needs, while nobody knows but the metadata store.

use futures::TryStreamExt;
use object_store::{ObjectStoreExt, path::Path};

use super::{super::view::KEPT, *};

async fn objects(shared: &Shared, volume: VolumeId) -> Vec<u64> {
    let directory = Path::from(format!("volumes/{volume}"));
    let found: Vec<_> = shared.store.list(Some(&directory)).try_collect().await.unwrap();
    let mut seqs: Vec<u64> = found.iter().map(|meta| meta.location.filename().unwrap().parse().unwrap()).collect();
    seqs.sort_unstable();
    seqs
}

/// A volume of `count` objects, its writer's process ended or not.
async fn volume(backend: &Arc<ObjectBackend>, count: u64) -> Log {
    let log = Log::create(backend, 1).await;
    for number in 0..count {
        log.write(format!("entry {number}")).await;
    }
    log
}

fn fast(settings: &mut ObjectSettings) {
    settings.puts_per_second = 100_000;
}

const LONG: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn what_lies_before_the_oldest_live_segment_goes_and_the_window_stays() {
    let shared = Shared::memory().with(fast);
    let (writing, _tasks) = shared.backend();
    let (collecting, _tasks) = shared.backend();
    let first = volume(&writing, 300).await;
    let second = Log::create(&writing, 2).await;
    for number in 0..50 {
        second.write(format!("second {number}")).await;
    }
    let id = volume_of(first.placement()).unwrap().0;
    let surveyed = collecting.survey().await.unwrap();
    assert_eq!(
        surveyed
            .iter()
            .filter_map(Surveyed::volume)
            .map(|found| (found.volume, found.end, found.ended))
            .collect::<Vec<_>>(),
        [(id, 350, false)]
    );
    let both = [(first.key, first.placement().clone()), (second.key, second.placement().clone())];
    assert_eq!(collecting.reclaim(&surveyed, &both, LONG).await.unwrap(), 0);
    let removed = collecting.reclaim(&surveyed, &both[1..], LONG).await.unwrap();
    let left = objects(&shared, id).await;
    assert_eq!(removed + left.len() as u64, 350);
    assert!(left.len() as u64 >= KEPT && (left.len() as u64) < KEPT + 64, "{}", left.len());
    // The writer goes on, and who takes over finds everything.
    second.write("on").await;
    let (taker, _tasks) = shared.backend();
    assert_eq!(taker.fence(second.key, second.placement(), Epoch(2)).await.unwrap(), 51);
    assert_eq!(read_from(&second.reader(&taker, Some(51)).await, 0, 1 << 20).await.len(), 51);
}

#[tokio::test]
async fn a_process_frees_its_own_volume_of_what_others_deleted_and_does_not_end_it() {
    let shared = Shared::memory().with(fast);
    let (writing, _tasks) = shared.backend();
    let (others, _tasks) = shared.backend();
    let (first, second) = (Log::create(&writing, 1).await, Log::create(&writing, 2).await);
    for number in 0..300 {
        first.append("first");
        second.append("second");
        first.owner.wait_acked(number + 1).await;
        second.owner.wait_acked(number + 1).await;
    }
    let third = Log::create(&writing, 3).await;
    third.write("third").await;
    let id = volume_of(first.placement()).unwrap().0;
    others.delete(first.key, first.placement()).await.unwrap();
    // Of the first one this process was told nothing.
    writing.delete(second.key, second.placement()).await.unwrap();
    let surveyed = writing.survey().await.unwrap();
    writing.reclaim(&surveyed, &[(third.key, third.placement().clone())], Duration::ZERO).await.unwrap();
    let left = objects(&shared, id).await.len() as u64;
    assert!((KEPT..KEPT + 64).contains(&left), "{left}");
    // Not even when nobody needs it.
    let surveyed = writing.survey().await.unwrap();
    assert_eq!(writing.reclaim(&surveyed, &[], Duration::ZERO).await.unwrap(), 0);
    third.write("on").await;
}

#[tokio::test]
async fn an_idle_volume_that_nobody_needs_is_ended_first_and_emptied_at_the_next_survey() {
    let shared = Shared::memory().with(fast);
    let (writing, tasks) = shared.backend();
    let (collecting, _tasks) = shared.backend();
    let log = volume(&writing, 40).await;
    let id = volume_of(log.placement()).unwrap().0;
    let surveyed = collecting.survey().await.unwrap();
    assert_eq!(collecting.reclaim(&surveyed, &[], LONG).await.unwrap(), 0, "it is not idle");
    assert_eq!(objects(&shared, id).await.len(), 40);
    assert_eq!(collecting.reclaim(&surveyed, &[], Duration::ZERO).await.unwrap(), 0);
    assert_eq!(objects(&shared, id).await.len(), 41, "the fence");
    // Somebody had recorded a segment there meanwhile: it is needed.
    let surveyed = collecting.survey().await.unwrap();
    assert!(surveyed[0].volume().unwrap().ended);
    let live = [(log.key, log.placement().clone())];
    assert_eq!(collecting.reclaim(&surveyed, &live, Duration::ZERO).await.unwrap(), 0);
    assert_eq!(collecting.reclaim(&surveyed, &[], Duration::ZERO).await.unwrap(), 40);
    assert_eq!(objects(&shared, id).await, [40]);
    assert!(collecting.survey().await.unwrap().is_empty(), "there is nothing left to look at");
    // The writer was alive, and wakes up: it is told, and goes on in another volume.
    log.append("late");
    let end = log.owner.wait_ended().await;
    assert!(matches!(end, SegmentEnd::Fenced | SegmentEnd::Displaced), "{end:?}");
    assert_eq!(log.owner.acked_now(), 40, "nothing is acked in a volume that ended");
    let next = Log::create(&writing, 3).await;
    next.write("x").await;
    assert_ne!(volume_of(next.placement()).unwrap().0, id);
    tasks.stop();
}

#[tokio::test]
async fn a_volume_that_was_emptied_keeps_no_later_sweep_from_the_others() {
    let shared = Shared::memory().with(fast);
    let (collecting, _tasks) = shared.backend();
    let sweep = async || {
        let surveyed = collecting.survey().await.unwrap();
        collecting.reclaim(&surveyed, &[], Duration::ZERO).await.unwrap()
    };
    let (writing, _tasks) = shared.backend();
    let id = volume_of(volume(&writing, 200).await.placement()).unwrap().0;
    sweep().await;
    assert_eq!(objects(&shared, id).await.len(), 201, "the fence");
    assert_eq!(sweep().await, 200);
    // Of another one that was ended some went before the process that emptied it did.
    let (writing, _tasks) = shared.backend();
    let half = volume_of(volume(&writing, 200).await.placement()).unwrap().0;
    sweep().await;
    for seq in (0..200).filter(|seq| *seq != 190) {
        shared.store.delete(&Path::from(format!("volumes/{half}/{seq:020}"))).await.unwrap();
    }
    let (collecting, _tasks) = shared.backend();
    for _ in 0..2 {
        let surveyed = collecting.survey().await.unwrap();
        assert_eq!(surveyed.len(), 1, "{surveyed:?}");
        collecting.reclaim(&surveyed, &[], Duration::ZERO).await.unwrap();
    }
    assert_eq!((objects(&shared, id).await, objects(&shared, half).await), (vec![200], vec![191, 200]));
    assert!(collecting.survey().await.unwrap().is_empty(), "there is nothing left to look at");
}

#[tokio::test]
async fn a_volume_that_cannot_be_read_keeps_no_sweep_from_the_others() {
    let shared = Shared::memory().with(fast);
    let (writing, _tasks) = shared.backend();
    let (collecting, _tasks) = shared.backend();
    let id = volume_of(volume(&writing, 3).await.placement()).unwrap().0;
    for damaged in [0, u128::MAX] {
        let path = Path::from(format!("volumes/{}/{:020}", VolumeId(damaged), 0));
        shared.store.put(&path, vec![7; 1_000].into()).await.unwrap();
    }
    let surveyed = collecting.survey().await.unwrap();
    let found: Vec<_> = surveyed.iter().filter_map(Surveyed::volume).map(|found| found.volume).collect();
    assert_eq!(found, [id]);
}

#[tokio::test]
async fn a_damaged_object_keeps_no_sweep_from_the_volumes_behind_it() {
    let shared = Shared::memory().with(fast);
    let mut volumes = Vec::new();
    for log in [1, 3] {
        let (writing, tasks) = shared.backend();
        let (held, freed) = (Log::create(&writing, log).await, Log::create(&writing, log + 1).await);
        held.write("held").await;
        for number in 0..400 {
            freed.write(format!("freed {number}")).await;
        }
        volumes.push((volume_of(held.placement()).unwrap().0, held, tasks));
    }
    volumes.sort_by_key(|(id, ..)| *id);
    let (collecting, _tasks) = shared.backend();
    let path = Path::from(format!("volumes/{}/{:020}", volumes[0].0, 50));
    shared.store.put(&path, vec![7; 1_000].into()).await.unwrap();
    let live: Vec<_> = volumes.iter().map(|(_, held, _)| (held.key, held.placement().clone())).collect();
    let mut removed = 0;
    for _ in 0..2 {
        let surveyed = collecting.survey().await.unwrap();
        removed += collecting.reclaim(&surveyed, &live, LONG).await.unwrap();
    }
    let left = objects(&shared, volumes[1].0).await.len() as u64;
    assert!(left < 401 && removed >= 401 - left, "{removed} went, {left} are left");
}

#[tokio::test]
async fn all_that_nobody_needs_goes_where_objects_are_listed_in_no_order() {
    let shared = Shared::file();
    let (backend, _tasks) = shared.backend();
    let volume = VolumeId(7);
    let directory = shared.directory.as_ref().unwrap().path().join(format!("bucket/volumes/{volume}"));
    std::fs::create_dir_all(&directory).unwrap();
    // More than a page of them stays.
    for seq in 0..2_500 {
        std::fs::write(directory.join(format!("{seq:020}")), "object").unwrap();
    }
    assert_eq!(backend.bucket.delete_below(volume, 500).await.unwrap(), 500);
    assert_eq!(objects(&shared, volume).await, (500..2_500).collect::<Vec<_>>());
}

/// However long the volume is: what is freed must be so in the time of one call, and each object is of many segments.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn freeing_reads_no_objects_unless_a_segment_holds_the_volume_for_long() {
    let shared = Shared::s3(|_| ()).await.with(fast);
    let (writing, _tasks) = shared.backend();
    let (collecting, _tasks) = shared.backend();
    let held = Log::create(&writing, 1).await;
    held.write("held").await;
    let freed = Log::create(&writing, 2).await;
    for number in 0..400 {
        freed.write(format!("freed {number}")).await;
    }
    let gets = || shared.peer().counts().gets;
    let before = gets();
    collecting.delete(freed.key, freed.placement()).await.unwrap();
    assert_eq!(gets(), before);
    let live = [(held.key, held.placement().clone())];
    let mut removed = Vec::new();
    for _ in 0..3 {
        let surveyed = collecting.survey().await.unwrap();
        let before = gets();
        removed.push(collecting.reclaim(&surveyed, &live, LONG).await.unwrap());
        assert!(removed.len() == 2 || gets() == before, "{removed:?}");
    }
    assert!(removed[0] == 0 && (200..300).contains(&removed[1]) && removed[2] == 0, "{removed:?}");
    assert_eq!(read_from(&held.reader(&collecting, Some(1)).await, 0, 100).await, ["held"]);
    let (taker, _tasks) = shared.backend();
    assert_eq!(taker.fence(held.key, held.placement(), Epoch(2)).await.unwrap(), 1);
}

#[tokio::test]
async fn a_bucket_is_claimed_once_and_by_one_instance() {
    let shared = Shared::s3(|_| ()).await;
    let (one, _tasks) = shared.backend();
    let (two, _tasks) = shared.backend();
    let claims = futures::future::join_all(["a", "b", "a", "b"].map(|instance| one.claim(instance))).await;
    let won: Vec<_> = claims.iter().map(Result::is_ok).collect();
    assert!(won == [true, false, true, false] || won == [false, true, false, true], "{claims:?}");
    let winner = if won[0] { "a" } else { "b" };
    two.claim(winner).await.unwrap();
    assert_eq!(two.claim("c").await.unwrap_err().code(), "STORE_FOREIGN");
    let unmarked = Shared::memory();
    let (backend, _tasks) = unmarked.backend();
    Log::create(&backend, 1).await.write("x").await;
    assert_eq!(backend.claim("a").await.unwrap_err().code(), "STORE_FOREIGN");
}
