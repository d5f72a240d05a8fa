//! Verbs about logs: the real binary, on a data directory of its own or on a bucket.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context;
use serde_json::Value;
use test_peers::{Etcd, Port, S3};

use crate::{
    admin::{ask_at, get},
    cluster::{Backend, Cluster},
    process::{Role, printed, run},
};

/// A process seals or stops within it.
const LIMIT: Duration = Duration::from_secs(30);

/// How a verb finds the logs.
struct Place {
    directory: tempfile::TempDir,
    settings: Vec<String>,
    _s3: Option<S3>,
}

impl Place {
    fn local() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let data = directory.path().join("data").display().to_string();
        Ok(Self { directory, settings: vec!["--data".into(), data], _s3: None })
    }

    async fn object() -> anyhow::Result<Self> {
        let s3 = S3::start("logs").await?;
        let place = Self::objects_at(&s3.endpoint())?;
        Ok(Self { _s3: Some(s3), ..place })
    }

    fn objects_at(endpoint: &str) -> anyhow::Result<Self> {
        let mut place = Self::local()?;
        for setting in [
            "woodpecker.storage.type=object".to_owned(),
            "woodpecker.storage.also=[local]".to_owned(),
            format!("minio.address={endpoint}"),
            "minio.bucketName=logs".to_owned(),
            format!("minio.accessKeyID={}", S3::ACCESS_KEY),
            format!("minio.secretAccessKey={}", S3::SECRET_KEY),
        ] {
            place.settings.extend(["--set".to_owned(), setting]);
        }
        Ok(place)
    }

    fn arguments<'a>(&'a self, verb: &[&'a str]) -> Vec<&'a str> {
        let (first, rest) = verb.split_at(1);
        let settings = self.settings.iter().map(String::as_str);
        first.iter().copied().chain(settings).chain(rest.iter().copied()).collect()
    }

    fn text(&self, verb: &[&str]) -> anyhow::Result<String> {
        Ok(String::from_utf8(printed(self.arguments(verb))?)?)
    }

    fn json(&self, verb: &[&str]) -> anyhow::Result<Value> {
        let mut arguments = self.arguments(verb);
        arguments.push("--json");
        Ok(serde_json::from_slice(&printed(arguments)?)?)
    }

    /// What a verb that must fail says.
    fn refused(&self, verb: &[&str]) -> anyhow::Result<String> {
        let output = run(self.arguments(verb))?;
        assert!(!output.status.success(), "{verb:?} succeeded");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Lines go into a channel of a standalone process, which then stops.
    fn fill(&self, bytes: usize) -> anyhow::Result<String> {
        let role = Role::start("standalone", self.directory.path(), &self.settings)?;
        let input = self.directory.path().join("input");
        std::fs::write(&input, "all work and no play makes a dull log\n".repeat(bytes / 38))?;
        let (coordinator, file) = (role.address("coordinator").to_owned(), input.display().to_string());
        let report = printed(["produce", "--coordinator", &coordinator, "--json", "--file", &file])?;
        stop(role)?;
        Ok(serde_json::from_slice::<Value>(&report)?["channel"].as_str().unwrap_or_default().to_owned())
    }

    /// A standalone process runs until every closed segment is in its sealed form.
    fn seal(&self) -> anyhow::Result<()> {
        let more = ["woodpecker.maintenance.sealAfter=0s", "woodpecker.maintenance.interval=100ms"];
        let more = more.iter().flat_map(|setting| ["--set".to_owned(), (*setting).to_owned()]);
        let arguments: Vec<String> = self.settings.iter().cloned().chain(more).collect();
        let role = Role::start("standalone", self.directory.path(), &arguments)?;
        let deadline = Instant::now() + LIMIT;
        let done = |text: &str| {
            text.contains("woodpecker_sealed_segments_total") && text.contains("woodpecker_unsealed_segments 0")
        };
        while !done(&get(&role, "/metrics", "")?.1) {
            anyhow::ensure!(Instant::now() < deadline, "not sealed within {LIMIT:?}:\n{}", role.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        stop(role)
    }
}

fn stop(mut role: Role) -> anyhow::Result<()> {
    role.signal("TERM")?;
    anyhow::ensure!(role.wait(LIMIT)?.success(), "{}", role.log());
    Ok(())
}

#[test]
fn a_log_is_created_altered_listed_and_deleted() -> anyhow::Result<()> {
    let place = Place::local()?;
    place.text(&["log", "create", "a", "--compression", "zstd", "--retention", "1h"])?;
    assert!(place.refused(&["log", "create", "a"])?.contains("exists already"));
    place.text(&["log", "create", "b"])?;
    let listed = place.json(&["log", "list"])?;
    assert_eq!(listed.as_array().into_iter().flatten().map(|log| &log["name"]).collect::<Vec<_>>(), ["a", "b"]);
    let altered = place.json(&[
        "log",
        "alter",
        "a",
        "--backend",
        "object",
        "--retention",
        "none",
        "--retention-bytes",
        "1GiB",
    ])?;
    let wanted = serde_json::json!({"backend": "object", "compression": "zstd", "retention_bytes": 1_u64 << 30});
    assert_eq!(altered["settings"], wanted);
    assert!(place.text(&["log", "describe", "a"])?.contains("zstd"));
    assert!(place.refused(&["log", "delete", "a"])?.contains("--yes"));
    place.text(&["log", "delete", "a", "--yes"])?;
    assert!(place.refused(&["log", "describe", "a"])?.contains("does not exist"));
    assert!(place.refused(&["log", "truncate", "b", "3"])?.contains("SEGMENT:ENTRY"));
    for verb in ["create", "alter"] {
        assert!(place.refused(&["log", verb, "b", "--backend", "nonsense"])?.contains("possible values: default"));
    }
    let back = place.json(&["log", "alter", "b", "--backend", "default"])?;
    assert_eq!(back["settings"]["backend"], Value::Null);
    assert!(place.refused(&["log", "describe", "b", "--at", "yesterday"])?.contains("--at"));
    Ok(())
}

#[test]
fn a_data_directory_that_is_not_there_is_told_and_not_made() -> anyhow::Result<()> {
    let place = Place::local()?;
    let data = place.directory.path().join("data");
    for verb in [&["log", "list"][..], &["log", "describe", "a"], &["log", "verify", "a"]] {
        let error = place.refused(verb)?;
        assert!(error.contains("metadata.redb does not exist") && error.contains("--data"), "{verb:?}: {error}");
        assert!(!data.exists(), "{verb:?}");
    }
    // What creates a log makes a place for it; where that is may be said behind the verb too.
    place.text(&["log", "create", "a"])?;
    let listed = printed(["log", "list", "--json", "--data", &data.display().to_string()])?;
    assert!(String::from_utf8(listed)?.contains("\"a\""));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_cannot_be_created_for_now_is_created_later() -> anyhow::Result<()> {
    let (mut etcd, mut place) = (Etcd::start().await, Place::local()?);
    for setting in ["metastore.type=etcd".to_owned(), format!("etcd.endpoints=[\"{}\"]", etcd.endpoint())] {
        place.settings.extend(["--set".to_owned(), setting]);
    }
    etcd.kill();
    let asked = Instant::now();
    assert!(place.refused(&["log", "create", "a"])?.contains("etcd.endpoints"));
    assert!(asked.elapsed() < LIMIT, "{:?}", asked.elapsed());
    etcd.restart().await;
    assert_eq!(place.json(&["log", "list"])?, serde_json::json!([]));
    place.text(&["log", "create", "a"])?;
    Ok(())
}

#[test]
fn a_log_is_entered_where_it_was_at_a_time() -> anyhow::Result<()> {
    let place = Place::local()?;
    // Each life of the process closes the segment of the one before.
    let channel = place.fill(4_000)?;
    let between = humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string();
    place.fill(4_000)?;
    let position =
        |at: &str| Ok::<_, anyhow::Error>(place.json(&["log", "describe", &channel, "--at", at])?["position"].clone());
    let segments = place.json(&["log", "describe", &channel])?["segments"].as_array().map_or(0, Vec::len);
    let (first, then, now) =
        (position("2020-01-01T00:00:00Z")?, position(&between)?, position("2999-01-01T00:00:00Z")?);
    assert_eq!(first, "1:0");
    assert!(then != first && segments > 1, "{first}, {then}, {now} of {segments} segments");
    assert!(place.text(&["log", "describe", &channel, "--at", &between])?.contains("since then"));
    Ok(())
}

#[test]
fn what_was_produced_is_verified_dumped_and_found_damaged_when_it_is() -> anyhow::Result<()> {
    let place = Place::local()?;
    let channel = place.fill(200_000)?;
    let verified = place.json(&["log", "verify", &channel])?;
    assert!(verified["entries"].as_u64() > Some(5_000) && verified["problems"] == 0, "{verified}");
    assert!(place.text(&["log", "verify", &channel])?.contains("entries"));

    let file = largest(&place.directory.path().join("data/woodpecker/volumes"))?;
    let name = file.display().to_string();
    let dumped: Value = serde_json::from_slice(&printed(["volume", "dump", &name, "--json"])?)?;
    let parts = dumped["parts"].as_array().cloned().unwrap_or_default();
    assert!(parts.len() > 2 && parts.iter().all(|part| part["problem"].is_null()), "{dumped}");

    // The largest block is the channel's: the others hold little more than ticks.
    let size = |part: &Value| {
        let detail = part["detail"].as_str().unwrap_or_default();
        detail.strip_suffix(" bytes").and_then(|text| text.rsplit(' ').next()).and_then(|size| size.parse::<u64>().ok())
    };
    let largest = parts.iter().filter(|part| part["what"] == "block").max_by_key(|part| size(part)).expect("a block");
    let block = largest["at"].as_u64().expect("a place");
    let mut bytes = std::fs::read(&file)?;
    bytes[usize::try_from(block)? + 10] ^= 1;
    std::fs::write(&file, bytes)?;
    let output = run(["volume", "dump", &name])?;
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stdout).contains("checksum"));
    let said = place.refused(&["log", "verify", &channel])?;
    assert!(said.contains("damaged") || said.contains("checksum"), "{said}");
    let foreign = place.directory.path().join("input").display().to_string();
    assert!(!run(["volume", "dump", &foreign])?.status.success());
    Ok(())
}

fn largest(directory: &Path) -> anyhow::Result<std::path::PathBuf> {
    let mut files = Vec::new();
    for volume in std::fs::read_dir(directory)? {
        for file in std::fs::read_dir(volume?.path())? {
            let path = file?.path();
            if path.extension().is_some_and(|extension| extension == "vol") {
                files.push((std::fs::read(&path)?.iter().filter(|byte| **byte != 0).count(), path));
            }
        }
    }
    let (_, largest) = files.into_iter().max().context("a data file")?;
    Ok(largest)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_in_a_bucket_is_sealed_in_the_background_and_a_foreign_bucket_is_refused() -> anyhow::Result<()> {
    let place = Place::object().await?;
    // Each life of the process closes the segments of the one before.
    let channel = place.fill(100_000)?;
    place.seal()?;
    let described = place.json(&["log", "describe", &channel])?;
    let segments = described["segments"].as_array().cloned().unwrap_or_default();
    assert!(segments.iter().any(|segment| segment["sealed_bytes"].is_number()), "{described}");
    assert_eq!(place.json(&["log", "verify", &channel])?["problems"], 0);
    let altered = place.json(&["log", "alter", &channel, "--backend", "local"])?;
    assert_eq!(altered["settings"]["backend"], "local");
    place.fill(50_000)?;
    let described = place.json(&["log", "describe", &channel])?;
    let last = described["segments"].as_array().and_then(|segments| segments.last()).cloned().unwrap_or_default();
    assert_eq!(last["backend"], "local", "{described}");
    assert_eq!(place.json(&["log", "verify", &channel])?["problems"], 0);

    // Another instance, the same bucket.
    let directory = tempfile::tempdir()?;
    let mut settings = place.settings;
    settings[1] = directory.path().join("data").display().to_string();
    let other = Place { directory, settings, _s3: None };
    assert!(other.refused(&["log", "create", "a"])?.contains("belong to instance"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_on_the_bucket_of_another_instance_ends_and_says_so() -> anyhow::Result<()> {
    let cluster = Cluster::start(Backend::Object, 1).await?;
    let etcd = Etcd::start().await;
    let mut mistaken = cluster.coord_with(&etcd)?;
    assert!(!mistaken.wait(LIMIT)?.success());
    let said = mistaken.log();
    assert!(said.contains("error[STORE_FOREIGN]") && said.contains("belong to instance"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_finds_what_is_well_and_what_is_not() -> anyhow::Result<()> {
    let place = Place::object().await?;
    let findings = place.json(&["doctor"])?;
    let findings = findings.as_array().cloned().unwrap_or_default();
    assert!(findings.len() == 4 && findings.iter().all(|finding| finding["ok"] == true), "{findings:?}");
    place._s3.as_ref().expect("a peer").faults().conditional(test_peers::s3::Conditional::Ignored);
    let output = run(place.arguments(&["doctor"]))?;
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("FAILED") && said.contains("conditional"), "{said}");
    let alone = Place::local()?.json(&["doctor"])?;
    let clock = alone.as_array().into_iter().flatten().find(|finding| finding["check"] == "clock").cloned();
    assert!(clock.is_some_and(|clock| clock["detail"].to_string().contains("not compared")), "{alone}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_starts_before_its_object_store_waits_and_says_so() -> anyhow::Result<()> {
    let (store, admin) = (Port::hold()?, Port::hold()?);
    let place = Place::objects_at(&format!("http://{}", store.address()))?;
    let mut settings = place.settings.clone();
    settings.extend(["--set".to_owned(), format!("admin.port={}", admin.number())]);
    let directory = place.directory.path().to_owned();
    let starting = tokio::task::spawn_blocking(move || Role::start("standalone", &directory, &settings));
    let deadline = Instant::now() + LIMIT;
    let readiness = || ask_at(&admin.address().to_string(), "GET", "/readyz", "");
    // The port comes first, and the first attempt takes a while to fail.
    while !readiness().is_ok_and(|(status, body)| status == 503 && body.contains("the object store cannot be reached"))
    {
        assert!(Instant::now() < deadline, "it does not say what it waits for: {:?}", readiness());
        assert!(!starting.is_finished(), "it ended");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(ask_at(&admin.address().to_string(), "GET", "/livez", "")?.0, 200);
    let _s3 = S3::listen(store.address(), "logs").await?;
    let role = starting.await??;
    assert_eq!(get(&role, "/readyz", "")?.0, 200);
    Ok(())
}
