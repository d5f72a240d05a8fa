//! Consumers for which a log is kept: listed and forgotten by the verb, at a real process.

use serde_json::Value;
use streaming_client::{Client, Discovery, Edges, Settings};
use streaming_types::{MessageId, TimeTick};
use woodpecker_base::{clock::Clock, net::tcp_connector, random::Random};

use crate::{
    load::LIMIT,
    process::{Role, printed, run},
};

const CHANNEL: &str = "by-dev-rootcoord-dml_0";

fn listed(coordinator: &str) -> anyhow::Result<Vec<(String, String, Option<u64>)>> {
    let text = printed(["consumers", "list", "--coordinator", coordinator, "--json", CHANNEL])?;
    let consumers: Vec<Value> = serde_json::from_slice(&text)?;
    let line = |consumer: Value| {
        let text = |key: &str| consumer[key].as_str().unwrap_or_default().to_owned();
        (text("name"), text("position"), consumer["behind_ms"].as_u64())
    };
    Ok(consumers.into_iter().map(line).collect())
}

#[tokio::test]
async fn consumers_are_listed_with_how_far_they_are_behind_and_forgotten_by_name() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let data = format!("woodpecker.storage.rootPath={}", directory.path().join("data").display());
    let settings = ["rootCoord.dmlChannelNum=1", &data].map(str::to_owned);
    let arguments: Vec<_> = settings.into_iter().flat_map(|value| ["--set".to_owned(), value]).collect();
    let role = Role::start("standalone", directory.path(), &arguments)?;
    let coordinator = role.address("coordinator");
    let settings = Settings::new(Discovery::Address(coordinator.to_owned()));
    let edges = Edges { connector: tcp_connector(), clock: Clock::system(), random: Random::system() };
    let client = Client::connect(settings, edges)?;
    client.wait_channel(CHANNEL, LIMIT).await?;
    assert_eq!(listed(coordinator)?, []);

    let now = TimeTick::new(Clock::system().wall_ms(), 0);
    let (kept, gone) = (CHANNEL, "by-dev-rootcoord-dml_0_7v0");
    client.report_position(kept, MessageId::new(1, 2), now).await?;
    let old = TimeTick::new(now.physical_ms() - 3_600_000, 0);
    client.report_position(gone, MessageId::new(1, 1), old).await?;
    let consumers = listed(coordinator)?;
    let names: Vec<_> = consumers.iter().map(|(name, position, _)| (name.as_str(), position.as_str())).collect();
    assert_eq!(names, [(kept, "1:2"), (gone, "1:1")]);
    // The WAL's newest message is the tick that began its term, a moment ago.
    assert!(consumers[1].2.is_some_and(|behind| (3_000_000..=3_600_000).contains(&behind)), "{consumers:?}");
    let table = String::from_utf8(printed(["consumers", "list", "--coordinator", coordinator])?)?;
    assert!(table.contains(gone) && table.contains("NEEDS FROM"), "{table}");

    printed(["consumers", "forget", "--coordinator", coordinator, gone])?;
    let left: Vec<_> = listed(coordinator)?.into_iter().map(|(name, ..)| name).collect();
    assert_eq!(left, [kept]);
    let again = run(["consumers", "forget", "--coordinator", coordinator, gone])?;
    assert!(!again.status.success());
    assert!(String::from_utf8_lossy(&again.stderr).contains("is no registered consumer"), "{again:?}");
    client.close().await;
    Ok(())
}
