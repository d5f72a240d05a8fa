//! What probes and operators see.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    cluster::{Backend, Cluster},
    process::{Role, printed, run},
};

/// One GET, with this header besides; the status and the body.
pub(crate) fn get(role: &Role, path: &str, header: &str) -> anyhow::Result<(u16, String)> {
    ask(role, "GET", path, header)
}

/// The value of a counter in what `/metrics` shows, 0 if there is none.
pub(crate) fn counted(metrics: &str, series: &str) -> u64 {
    let found = metrics.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok());
    found.unwrap_or_default()
}

fn ask(role: &Role, method: &str, path: &str, header: &str) -> anyhow::Result<(u16, String)> {
    ask_at(role.address("admin").trim_start_matches("http://"), method, path, header)
}

/// As [`get`], of a process that has not said yet that it is ready.
pub(crate) fn ask_at(address: &str, method: &str, path: &str, header: &str) -> anyhow::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{header}\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    Ok((head.split(' ').nth(1).unwrap_or_default().parse()?, body.to_owned()))
}

fn status(role: &Role, path: &str) -> anyhow::Result<u16> {
    Ok(get(role, path, "")?.0)
}

fn json(role: &Role, path: &str) -> anyhow::Result<(u16, Value)> {
    let (status, body) = get(role, path, "Accept: application/json\r\n")?;
    Ok((status, serde_json::from_str(&body)?))
}

/// Waits until a probe answers so.
fn eventually(what: &str, mut holds: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds()? {
        anyhow::ensure!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

#[test]
fn a_standalone_process_is_healthy_and_ready_when_it_says_so() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let data = directory.path().join("data").display().to_string();
    let role = Role::start("standalone", directory.path(), &["--data".into(), data])?;
    assert_eq!(get(&role, "/livez", "")?, (200, "OK".into()));
    assert_eq!(get(&role, "/healthz", "")?, (200, "OK".into()));
    let detail = json!([{"name": "mixcoord", "code": 1}, {"name": "streamingnode", "code": 1}]);
    let healthy = json!({"state": "OK", "detail": detail});
    assert_eq!(json(&role, "/healthz")?, (200, healthy.clone()));
    // As Milvus' own clients ask.
    let (_, body) = get(&role, "/healthz", "Content-Type: application/json\r\n")?;
    assert_eq!(serde_json::from_str::<Value>(&body)?, healthy);
    eventually("ready", || Ok(status(&role, "/readyz")? == 200))?;
    let (_, roles) = json(&role, "/readyz")?;
    assert_eq!(roles[0], json!({"name": "mixcoord", "ready": true, "state": "Healthy", "missing": []}));
    let (metrics, text) = get(&role, "/metrics", "")?;
    assert!(metrics == 200 && text.contains("milvus_streamingcoord_pchannel_info"), "{text}");
    assert_eq!(status(&role, "/nowhere")?, 404);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_without_nodes_is_healthy_not_ready_and_says_what_is_missing() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Backend::Local, 0).await?;
    eventually("the coordinator leads", || Ok(status(&cluster.coord, "/healthz")? == 200))?;
    eventually("it knows its channels", || Ok(get(&cluster.coord, "/readyz", "")?.1.contains("dml_0 is not served")))?;
    let (code, roles) = json(&cluster.coord, "/readyz")?;
    assert_eq!((code, &roles[0]["ready"]), (503, &json!(false)));
    assert_eq!(roles[0]["missing"].as_array().map(Vec::len), Some(16), "{roles}");
    assert_eq!(status(&cluster.coord, "/livez")?, 200);

    cluster.start_node()?;
    eventually("every channel is served", || Ok(status(&cluster.coord, "/readyz")? == 200))?;
    eventually("the node is registered", || Ok(status(&cluster.nodes[0], "/readyz")? == 200))?;
    // A second coordinator waits for its turn, and that is all it is there for.
    let standby = cluster.another_coord()?;
    eventually("it stands by", || Ok(json(&standby, "/healthz")?.1["detail"][0]["code"] == 3))?;
    assert_eq!((status(&standby, "/healthz")?, status(&standby, "/readyz")?), (200, 200));

    // Whoever loses its node is not ready any more.
    cluster.nodes[0].kill()?;
    eventually("nobody serves", || Ok(status(&cluster.coord, "/readyz")? == 503))?;
    assert_eq!(status(&cluster.coord, "/healthz")?, 200);
    Ok(())
}

#[test]
fn an_operator_stops_the_consumers_of_a_node_and_lets_them_go_on() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let data = directory.path().join("data").display().to_string();
    let role = Role::start("standalone", directory.path(), &["--data".into(), data])?;
    let coordinator = ["--coordinator", role.address("coordinator")];
    let lines = directory.path().join("lines").display().to_string();
    std::fs::write(&lines, "one\ntwo\n")?;
    printed(["produce", "--file", &lines].into_iter().chain(coordinator))?;
    let consume = ["consume", "--until-idle", "500ms", "--timeout", "2s"];
    let consumed = || printed(consume.into_iter().chain(coordinator));

    let paused = |value: bool| (200, format!("{{\"paused\":{value}}}"));
    assert_eq!(get(&role, "/node/consumers", "")?, paused(false));
    assert_eq!(get(&role, "/node/consumers/pause", "")?.0, 405, "looking changes nothing");
    assert_eq!(ask(&role, "POST", "/node/consumers/pause", "")?, paused(true));
    assert_eq!(get(&role, "/node/consumers", "")?, paused(true));
    let held = run(consume.into_iter().chain(coordinator))?;
    let said = String::from_utf8_lossy(&held.stderr).into_owned();
    assert!(held.stdout.is_empty() && said.contains("error[CLIENT_NOT_READY]"), "{held:?}");
    assert_eq!(ask(&role, "POST", "/node/consumers/resume", "")?, paused(false));
    assert_eq!(consumed()?, b"one\ntwo\n");
    Ok(())
}
