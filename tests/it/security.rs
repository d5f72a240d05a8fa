//! Processes with TLS and tokens: who gets in, who does not, and that what secures them changes while they run.

use std::{
    path::{Path, PathBuf},
    process::Output,
    time::{Duration, Instant},
};

use serde_json::Value;
use test_peers::{Authority, Etcd, Port};

use crate::process::{Role, run};

const READ: &str = "reads-0123456789abcdef";
const WRITE: &str = "writes-0123456789abcdef";
const ADMIN: &str = "admins-0123456789abcdef";

/// A directory with everything that secures a cluster.
pub(crate) struct Secrets {
    directory: tempfile::TempDir,
}

impl Secrets {
    pub(crate) fn new() -> anyhow::Result<Self> {
        Self::of("")
    }

    /// With tokens that no other cluster knows.
    pub(crate) fn of(cluster: &str) -> anyhow::Result<Self> {
        let secrets = Self { directory: tempfile::tempdir()? };
        secrets.certify("")?;
        secrets.certify("stranger-")?;
        let [read, write, admin] = [READ, WRITE, ADMIN].map(|token| format!("{cluster}{token}"));
        secrets.write("tokens", &format!("# who may\nread {read}\nwrite {write}\nadmin {admin}\n"))?;
        let wrong = "nobody-0123456789abcdef".to_owned();
        for (name, token) in [("read", read), ("write", write), ("admin", admin), ("wrong", wrong)] {
            secrets.write(name, &token)?;
        }
        Ok(secrets)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Replaces a file as a mounted secret is: at once.
    fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let aside = self.path(".aside");
        std::fs::write(&aside, text)?;
        Ok(std::fs::rename(aside, self.path(name))?)
    }

    /// A new authority, and a certificate of this machine that it has signed.
    fn certify(&self, prefix: &str) -> anyhow::Result<()> {
        let authority = Authority::new()?;
        let (certificate, key) = authority.sign(&["127.0.0.1"], |_| {})?;
        self.write(&format!("{prefix}ca"), &authority.pem())?;
        self.write(&format!("{prefix}key"), &key)?;
        self.write(&format!("{prefix}cert"), &certificate)
    }

    pub(crate) fn shown(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// What makes a role use all of it.
    pub(crate) fn settings(&self) -> Vec<String> {
        [
            "tls.enabled=true".to_owned(),
            format!("tls.cert={}", self.shown("cert")),
            format!("tls.key={}", self.shown("key")),
            format!("tls.ca={}", self.shown("ca")),
            "auth.enabled=true".to_owned(),
            format!("auth.tokensFile={}", self.shown("tokens")),
            format!("auth.tokenFile={}", self.shown("admin")),
            "common.reloadInterval=100ms".to_owned(),
        ]
        .into_iter()
        .flat_map(|value| ["--set".to_owned(), value])
        .collect()
    }

    /// What makes a verb show this token, and trust this authority.
    pub(crate) fn credentials(&self, token: &str, authority: &str) -> Vec<String> {
        ["--token-file", &self.shown(token), "--ca", &self.shown(authority)].map(str::to_owned).to_vec()
    }
}

fn standalone(secrets: &Secrets, directory: &Path, more: &[&str]) -> anyhow::Result<Role> {
    let data = format!("woodpecker.storage.rootPath={}", directory.join("data").display());
    let more = ["rootCoord.dmlChannelNum=1", &data].into_iter().chain(more.iter().copied());
    let arguments: Vec<_> =
        secrets.settings().into_iter().chain(more.flat_map(|value| ["--set".to_owned(), value.to_owned()])).collect();
    Role::start("standalone", directory, &arguments)
}

/// A verb against a coordinator; a refusal is waited for no longer than needed.
fn verb(role: &Role, verb: &[&str], credentials: &[String], limit: &str) -> anyhow::Result<Output> {
    let connect = ["--coordinator", role.address("coordinator"), "--timeout", limit].map(str::to_owned);
    run(verb.iter().map(|word| (*word).to_owned()).chain(connect).chain(credentials.iter().cloned()))
}

fn eventually(what: &str, mut holds: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds()? {
        anyhow::ensure!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// One request to the admin port by curl's rules, over TLS that trusts our authority.
async fn admin(
    role: &Role,
    secrets: &Secrets,
    method: &str,
    path: &str,
    token: Option<&str>,
    body: &str,
) -> anyhow::Result<(u16, String)> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let pem = woodpecker_base::net::Pem { identity: None, authorities: Some(std::fs::read(secrets.path("ca"))?) };
    let tls = woodpecker_base::net::ClientTls::http(&pem, None)?;
    let connector = woodpecker_base::net::tcp_connector().with_tls(tls);
    let mut connection = connector.connect(role.address("admin").parse()?).await?;
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.0\r\n{token}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    connection.write_all(request.as_bytes()).await?;
    connection.flush().await?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    Ok((head.split(' ').nth(1).unwrap_or_default().parse()?, body.to_owned()))
}

#[tokio::test]
async fn who_may_not_is_refused_told_why_logged_and_counted() -> anyhow::Result<()> {
    let (secrets, directory) = (Secrets::new()?, tempfile::tempdir()?);
    let role = standalone(&secrets, directory.path(), &[])?;
    let lines = directory.path().join("lines");
    std::fs::write(&lines, "one\ntwo\n")?;
    let lines = lines.display().to_string();
    let produce = ["produce", "--file", &lines];
    let consume = ["consume", "--from", "earliest", "--count", "2"];

    let said = verb(&role, &produce, &secrets.credentials("write", "ca"), "20s")?;
    assert!(said.status.success(), "{said:?}");
    let said = verb(&role, &consume, &secrets.credentials("read", "ca"), "20s")?;
    assert_eq!(String::from_utf8_lossy(&said.stdout), "one\ntwo\n", "{said:?}");

    let refusals = [
        ("plaintext", vec!["--token-file".into(), secrets.shown("write")], ""),
        ("another authority", secrets.credentials("write", "stranger-ca"), ""),
        ("no token", vec!["--ca".into(), secrets.shown("ca")], "no bearer token"),
        ("a wrong token", secrets.credentials("wrong", "ca"), "not known here"),
    ];
    for (what, credentials, why) in refusals {
        let said = verb(&role, &["channels"], &credentials, "3s")?;
        let told = String::from_utf8_lossy(&said.stderr);
        assert!(!said.status.success() && told.contains(why), "{what}: {told}");
    }
    let said = verb(&role, &produce, &secrets.credentials("read", "ca"), "20s")?;
    let told = String::from_utf8_lossy(&said.stderr);
    assert!(!said.status.success() && told.contains("needs the role write"), "{told}");

    let (_, metrics) = admin(&role, &secrets, "GET", "/metrics", None, "").await?;
    for reason in ["no_token", "wrong_token", "role"] {
        let series = format!("streaming_auth_refused_total{{reason=\"{reason}\"}}");
        assert!(crate::admin::counted(&metrics, &series) > 0, "{series}: {metrics}");
    }
    assert!(crate::admin::counted(&metrics, "streaming_tls_handshakes_failed_total") > 1, "{metrics}");
    let log = role.log();
    assert!(log.contains("refused: ") && log.contains("peer"), "{log}");
    for token in [READ, WRITE, ADMIN, "nobody-0123456789abcdef"] {
        assert!(!log.contains(token), "a token stands in the log");
    }
    Ok(())
}

#[tokio::test]
async fn certificates_and_tokens_change_without_a_restart() -> anyhow::Result<()> {
    let (secrets, directory) = (Secrets::new()?, tempfile::tempdir()?);
    let mut role = standalone(&secrets, directory.path(), &[])?;
    let old_authority = std::fs::read_to_string(secrets.path("ca"))?;
    let works = |token: &str, authority: &str| -> anyhow::Result<bool> {
        let said = verb(&role, &["channels"], &secrets.credentials(token, authority), "1s")?;
        Ok(said.status.success())
    };
    eventually("it works", || works("read", "ca"))?;
    secrets.certify("")?;
    secrets.write("old-ca", &old_authority)?;
    eventually("the new certificate is shown", || works("read", "ca"))?;
    assert!(!works("read", "old-ca")?, "the old one is not shown any more");

    secrets.write("tokens", &format!("read {WRITE}\nadmin {ADMIN}\n"))?;
    eventually("the old token is refused", || Ok(!works("read", "ca")?))?;
    eventually("the new token is let in", || works("write", "ca"))?;
    // What cannot be used changes nothing, and is told of.
    secrets.write("tokens", "nonsense\n")?;
    eventually("it is told", || Ok(role.log().contains("auth.tokensFile: line 1")))?;
    eventually("the tokens of before still are", || works("write", "ca"))?;
    // Not even the half of it that could.
    secrets.certify("next-")?;
    let text = |name: &str| std::fs::read_to_string(secrets.path(name));
    for (name, what) in [("before-ca", text("ca")?), ("ca", "nonsense".to_owned())] {
        secrets.write(name, &what)?;
    }
    for name in ["cert", "key"] {
        secrets.write(name, &text(&format!("next-{name}"))?)?;
    }
    std::thread::sleep(Duration::from_secs(1));
    assert!(works("write", "before-ca")? && !works("write", "next-ca")?, "half of it is in use");
    secrets.write("ca", &text("next-ca")?)?;
    eventually("all of it is in use", || works("write", "next-ca"))?;
    role.signal("TERM")?;
    assert!(role.wait(Duration::from_secs(30))?.success());
    Ok(())
}

#[tokio::test]
async fn the_admin_port_opens_what_changes_things_to_admins_only() -> anyhow::Result<()> {
    let (secrets, directory) = (Secrets::new()?, tempfile::tempdir()?);
    let role = standalone(&secrets, directory.path(), &[])?;
    let (address, ca) = (role.address("admin").to_owned(), secrets.shown("ca"));
    // On a busy machine a session may be renewed late.
    eventually("it is well", || Ok(run(["health", "--admin", &address, "--ca", &ca])?.status.success()))?;
    for open in ["/healthz", "/livez", "/readyz", "/metrics"] {
        assert_eq!(admin(&role, &secrets, "GET", open, None, "").await?.0, 200, "{open}");
    }
    let debug = r#"{"level":"info,streaming_node=debug"}"#;
    for (token, status) in [(None, 401), (Some("nobody-0123456789abcdef"), 401), (Some(WRITE), 403), (Some(ADMIN), 200)]
    {
        let (answered, body) = admin(&role, &secrets, "PUT", "/log/level", token, debug).await?;
        assert_eq!(answered, status, "{token:?}: {body}");
    }
    let (status, body) = admin(&role, &secrets, "GET", "/log/level", Some(READ), "").await?;
    assert_eq!((status, serde_json::from_str::<Value>(&body)?), (200, serde_json::from_str(debug)?));
    let wrong = admin(&role, &secrets, "PUT", "/log/level", Some(ADMIN), r#"{"level":"info,x=loud"}"#).await?;
    assert_eq!(wrong.0, 400, "{}", wrong.1);
    let huge = format!(r#"{{"level":"{}"}}"#, "x".repeat(2 << 20));
    assert_eq!(admin(&role, &secrets, "PUT", "/log/level", Some(ADMIN), &huge).await?.0, 413);

    let said = run(["health", "--json", "--admin", &address, "--ca", &ca])?;
    assert!(said.status.success(), "{said:?}");
    let found: Value = serde_json::from_slice(&said.stdout)?;
    assert_eq!((&found[0]["healthy"], &found[0]["roles"][1]["name"]), (&true.into(), &"streamingnode".into()));
    let said = run(["health", "--admin", "http://127.0.0.1:1", "--timeout", "1s"])?;
    assert!(!said.status.success() && String::from_utf8_lossy(&said.stdout).contains("unreachable"), "{said:?}");
    Ok(())
}

#[tokio::test]
async fn a_file_that_changes_sets_the_level_and_names_what_needs_a_restart() -> anyhow::Result<()> {
    let (secrets, directory) = (Secrets::new()?, tempfile::tempdir()?);
    let file = secrets.path("streaming.yaml");
    std::fs::write(&file, "log: {level: info}\n")?;
    let data = directory.path().join("data").display().to_string();
    let arguments = ["--config", &file.display().to_string(), "--data", &data].map(str::to_owned);
    let role = Role::start("standalone", directory.path(), &arguments)?;
    let level = || Ok::<_, anyhow::Error>(crate::admin::get(&role, "/log/level", "")?.1);
    assert_eq!(level()?, r#"{"level":"info"}"#);
    let streaming = "timeTickInterval: 100ms, primaryResourceGroup: blue, walRateLimit: {appendRate: {enabled: true}}";
    std::fs::write(&file, format!("log: {{level: debug}}\nstreaming: {{{streaming}}}\n"))?;
    // The default interval is longer than this test waits: it is the signal that counts.
    role.signal("HUP")?;
    eventually("the level is used", || Ok(level()? == r#"{"level":"debug"}"#))?;
    eventually("the rest is named", || Ok(role.log().contains("streaming.timeTickInterval")))?;
    assert!(!role.log().contains("primaryResourceGroup") && !role.log().contains("appendRate"), "{}", role.log());
    std::fs::write(&file, "log: {level: 'info,x=loud'}\n")?;
    role.signal("HUP")?;
    eventually("a wrong file is told of", || Ok(role.log().contains("not reloaded")))?;
    assert_eq!(level()?, r#"{"level":"debug"}"#);
    Ok(())
}

#[tokio::test]
async fn the_roles_of_a_cluster_let_in_one_another_and_nobody_else() -> anyhow::Result<()> {
    let (secrets, directory, etcd) = (Secrets::new()?, tempfile::tempdir()?, Etcd::start().await);
    let mut arguments = secrets.settings();
    for value in [
        "metastore.type=etcd".to_owned(),
        "tls.clientAuth=required".to_owned(),
        format!("etcd.endpoints={}", etcd.endpoint()),
        "rootCoord.dmlChannelNum=2".to_owned(),
        // The machine that runs the tests may be almost full.
        "woodpecker.logstore.disk.softUsed=1.0".to_owned(),
        "woodpecker.logstore.disk.hardUsed=1.0".to_owned(),
        "woodpecker.logstore.port=0".to_owned(),
        "woodpecker.storage.type=quorum".to_owned(),
        "woodpecker.maintenance.sealing=false".to_owned(),
        format!("woodpecker.storage.rootPath={}", directory.path().join("data").display()),
    ] {
        arguments.extend(["--set".to_owned(), value]);
    }
    let mut stores = Vec::new();
    for number in 0..3 {
        let data = directory.path().join(format!("store-{number}")).display().to_string();
        let own: Vec<_> = arguments.iter().cloned().chain(["--data".to_owned(), data]).collect();
        stores.push(Role::start("logstore", directory.path(), &own)?);
    }
    let coord = Role::start("coord", directory.path(), &arguments)?;
    let _node = Role::start("node", directory.path(), &arguments)?;
    let mut credentials = secrets.credentials("write", "ca");
    credentials.extend(["--cert".to_owned(), secrets.shown("cert"), "--key".to_owned(), secrets.shown("key")]);

    let lines = directory.path().join("lines");
    std::fs::write(&lines, "through every hop\n")?;
    let said = verb(&coord, &["produce", "--file", &lines.display().to_string()], &credentials, "40s")?;
    assert!(said.status.success(), "{said:?}");
    let consume = ["consume", "--from", "earliest", "--count", "1"];
    let said = verb(&coord, &consume, &credentials, "20s")?;
    assert_eq!(String::from_utf8_lossy(&said.stdout), "through every hop\n", "{said:?}");
    // Without a certificate of one's own.
    let said = verb(&coord, &["channels"], &secrets.credentials("admin", "ca"), "1s")?;
    assert!(!said.status.success(), "{said:?}");

    // A log store is asked directly: plaintext, and TLS without a token.
    use streaming_proto::logstore::{StatusRequest, log_store_client::LogStoreClient};
    use woodpecker_base::net::{ClientTls, Pem, tcp_connector};
    let address = stores[0].address("logstore").to_owned();
    assert!(LogStoreClient::connect(format!("http://{address}")).await?.status(StatusRequest {}).await.is_err());
    let identity = Some((std::fs::read(secrets.path("cert"))?, std::fs::read(secrets.path("key"))?));
    let pem = Pem { identity, authorities: Some(std::fs::read(secrets.path("ca"))?) };
    let connector = tcp_connector().with_tls(ClientTls::grpc(&pem, None)?);
    let channel = connector.dial(tonic::transport::Endpoint::from_shared(format!("http://{address}"))?);
    let refused = LogStoreClient::new(channel).status(StatusRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated, "{refused:?}");
    Ok(())
}

#[tokio::test]
async fn a_node_waits_for_a_metadata_store_that_is_away_at_its_start() -> anyhow::Result<()> {
    let (directory, mut etcd) = (tempfile::tempdir()?, Etcd::start().await);
    let data = directory.path().join("data").display().to_string();
    let arguments: Vec<_> = [
        "metastore.type=etcd".to_owned(),
        format!("etcd.endpoints={}", etcd.endpoint()),
        format!("woodpecker.storage.rootPath={data}"),
    ]
    .into_iter()
    .flat_map(|value| ["--set".to_owned(), value])
    .collect();
    etcd.kill();
    let admin = Port::hold()?;
    let own: Vec<_> =
        arguments.iter().cloned().chain(["--set".to_owned(), format!("admin.port={}", admin.number())]).collect();
    let starting = std::thread::spawn({
        let directory = directory.path().to_owned();
        move || Role::start("node", &directory, &own)
    });
    let asked = || {
        let said = run(["health", "--json", "--admin", &format!("http://{}", admin.address()), "--timeout", "1s"])?;
        Ok::<Value, anyhow::Error>(serde_json::from_slice(&said.stdout)?)
    };
    let waits = eventually("it says what it waits for", || {
        let missing = asked()?[0]["roles"][0]["missing"].to_string();
        Ok(missing.contains("metadata store") || starting.is_finished())
    });
    if starting.is_finished() {
        let _ended = starting.join().map_err(|_| anyhow::anyhow!("the start panicked"))??;
        anyhow::bail!("it did not wait");
    }
    waits?;
    etcd.restart().await;
    let node = starting.join().map_err(|_| anyhow::anyhow!("the start panicked"))??;
    eventually("it is ready", || Ok(asked()?[0]["ready"] == true))?;
    drop(node);
    Ok(())
}
