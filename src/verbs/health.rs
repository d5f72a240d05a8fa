//! `streaming health`: how the roles of a cluster are, by their admin ports.

use anyhow::{Context, bail, ensure};
use comfy_table::Table;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use woodpecker_base::{clock::Clock, net::Connector};

use super::{
    credentials::{self, Protocol},
    list::table,
    print_json,
};
use crate::{cli::HealthArgs, print::say};

/// More than any answer of the two pages.
const MOST_ANSWER: u64 = 4 << 20;

/// What one admin port says.
#[derive(Debug, Serialize)]
struct Process {
    address: String,
    healthy: bool,
    ready: bool,
    roles: Vec<Role>,
    /// Why there is no answer.
    error: Option<String>,
}

/// As `/readyz` has it.
#[derive(Debug, Serialize, Deserialize)]
struct Role {
    name: String,
    ready: bool,
    state: String,
    missing: Vec<String>,
    /// What is to be known of one that is ready all the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

/// Asks every admin port, and prints what they say.
///
/// # Errors
/// One does not answer, or a role is not healthy or not ready.
pub(crate) async fn health(arguments: HealthArgs) -> anyhow::Result<()> {
    let connector = credentials::connector(&arguments.credentials, Protocol::Http)?;
    let encrypted = arguments.credentials.ca.is_some();
    let clock = Clock::system();
    let asked = arguments.admin.iter().map(|address| async {
        let asking = ask(&connector, encrypted, address);
        let answer = clock.timeout(arguments.timeout, asking).await;
        answer.with_context(|| format!("no answer in {:?}", arguments.timeout)).flatten().unwrap_or_else(|error| {
            Process {
                address: address.clone(),
                healthy: false,
                ready: false,
                roles: Vec::new(),
                error: Some(format!("{error:#}")),
            }
        })
    });
    let found = futures::future::join_all(asked).await;
    if arguments.json {
        print_json(&found)?;
    } else {
        say!("{}", shown(&found));
    }
    let bad = found.iter().filter(|process| !(process.healthy && process.ready)).count();
    ensure!(bad == 0, "{bad} of {} are not healthy and ready", found.len());
    Ok(())
}

fn shown(found: &[Process]) -> Table {
    let mut table = table(["ADMIN", "ROLE", "STATE", "READY", "SAYS"]);
    for Process { address, roles, error, .. } in found {
        if let Some(error) = error {
            table.add_row([address.as_str(), "", "unreachable", "no", error]);
        }
        for role in roles {
            let ready = if role.ready { "yes" } else { "no" };
            let says = [role.missing.as_slice(), &role.notes].concat().join("\n");
            table.add_row([address, &role.name, &role.state, ready, &says]);
        }
    }
    table
}

async fn ask(connector: &Connector, encrypted: bool, address: &str) -> anyhow::Result<Process> {
    let uri: http::Uri = address.parse().context("no URL")?;
    match uri.scheme_str() {
        Some("https") => ensure!(encrypted, "https needs --ca"),
        Some("http") => ensure!(!encrypted, "--ca is for https"),
        _ => bail!("expected http://HOST:PORT or https://HOST:PORT"),
    }
    let (healthy, _) = page(connector, &uri, "/healthz").await?;
    let (ready, body) = page(connector, &uri, "/readyz").await?;
    let roles = serde_json::from_str(&body).with_context(|| format!("/readyz answered {ready}: {body}"))?;
    Ok(Process { address: address.to_owned(), healthy: healthy == 200, ready: ready == 200, roles, error: None })
}

/// The status and body of a page. HTTP/1.0: the answer is what comes until the end.
///
/// # Errors
/// There is no answer, or it is none.
pub(crate) async fn page(connector: &Connector, uri: &http::Uri, path: &str) -> anyhow::Result<(u16, String)> {
    let host = uri.authority().context("no host")?.as_str();
    let mut connection = connector.connect(uri.clone()).await?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {host}\r\nAccept: application/json\r\n\r\n");
    connection.write_all(request.as_bytes()).await?;
    // A connection keeps what was not flushed for what comes after it.
    connection.flush().await?;
    let mut answer = Vec::new();
    connection.take(MOST_ANSWER).read_to_end(&mut answer).await?;
    let answer = String::from_utf8(answer).context("the answer is not text")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is not HTTP")?;
    let status = head.split(' ').nth(1).context("the answer has no status")?.parse()?;
    Ok((status, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_role_that_is_ready_says_besides_is_shown() {
        let body = r#"[{"name":"logstore","ready":true,"state":"Healthy","missing":[],"notes":["the disk is full"]}]"#;
        let roles = serde_json::from_str(body).unwrap();
        let found = [Process { address: "http://a:1".into(), healthy: true, ready: true, roles, error: None }];
        assert!(shown(&found).to_string().contains("the disk is full"));
        assert!(serde_json::to_string(&found).unwrap().contains(r#""notes":["the disk is full"]"#));
    }
}
