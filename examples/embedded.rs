//! Woodpecker inside a program: a log on a local disk, without any server. What was acked is there when the program runs again.
//!
//! `cargo run --example embedded -- DIRECTORY`

use std::{
    collections::BTreeMap,
    env,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use woodpecker::{Client, Position, Settings};
use woodpecker_base::{clock::Clock, disk::RealDisk, metadata::RedbStore, random::Random, tasks::Tasks};
use woodpecker_store::{
    backend::Backend,
    disk::{LocalBackend, LocalSettings},
};

/// The engine with its metadata, its medium, and its view of the world.
async fn open(directory: &Path, tasks: &Tasks) -> anyhow::Result<Client> {
    let (clock, random) = (Clock::system(), Random::system());
    std::fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    let metadata = RedbStore::open(&directory.join("metadata.redb"), clock.clone()).await?;
    let volumes = directory.join("woodpecker");
    let disk =
        LocalBackend::open(&volumes, LocalSettings::default(), Arc::new(RealDisk), clock.clone(), random.clone())
            .await?;
    let backends: BTreeMap<String, Arc<dyn Backend>> =
        [("local".to_owned(), Arc::new(disk) as Arc<dyn Backend>)].into();
    let settings = Settings {
        metadata_prefix: "example".to_owned(),
        backend: "local".to_owned(),
        segment_bytes: 64 << 20,
        segment_age: Duration::from_secs(600),
        in_flight_bytes: 16 << 20,
        read_ahead_bytes: Settings::READ_AHEAD_BYTES,
    };
    Ok(Client::new(settings, Arc::new(metadata), backends, clock, random, tasks.clone()))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let directory = PathBuf::from(env::args().nth(1).context("the directory is missing")?);
    let tasks = Tasks::new();
    let client = open(&directory, &tasks).await?;
    let log = client.open_or_create_log("greetings").await?;

    // Opening fences whoever wrote before.
    let writer = log.open_writer().await?;
    let mut first = None;
    for text in ["one", "two", "three"] {
        // The ack: the entry is synced to the disk.
        let appended = writer.append(vec![text.into()]).await?;
        first.get_or_insert(appended.first);
        println!("appended {text}");
    }
    writer.close().await?;

    let mut reader = log.reader(Position::At(first.context("nothing was appended")?));
    let mut missing = 3;
    while missing > 0 {
        for entry in reader.next().await? {
            println!("read {}", String::from_utf8_lossy(&entry.payload));
            missing -= 1;
        }
    }
    client.close().await;
    tasks.stop();
    Ok(())
}
