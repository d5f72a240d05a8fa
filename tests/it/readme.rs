//! What the README tells people to type works.

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::{Context, ensure};
use test_peers::Etcd;

use crate::process::{Role, printed, run, streaming};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The commands in the README's blocks of shell, without comments.
fn commands() -> anyhow::Result<Vec<String>> {
    let readme = std::fs::read_to_string(root().join("README.md"))?;
    let blocks = readme.split("```").skip(1).step_by(2).filter_map(|block| block.strip_prefix("sh\n"));
    let lines = blocks.flat_map(str::lines).map(|line| line.split(" #").next().unwrap_or_default().trim());
    Ok(lines.filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

/// The arguments of every command that begins so.
fn of(program: &str) -> anyhow::Result<Vec<Vec<String>>> {
    let commands = commands()?;
    let ours = commands.iter().filter_map(|line| line.strip_prefix(program)?.strip_prefix(' '));
    let split = |line: &str| line.split_whitespace().filter(|word| *word != "&").map(str::to_owned).collect();
    let found: Vec<Vec<_>> = ours.map(split).collect();
    ensure!(!found.is_empty(), "no command of the README begins with {program}");
    Ok(found)
}

#[test]
fn every_command_is_of_a_kind_that_is_tried_here() -> anyhow::Result<()> {
    for command in commands()? {
        let program = command.split(' ').next().unwrap_or_default();
        assert!(["make", "target/release/streaming", "streaming", "etcd"].contains(&program), "{command}");
    }
    let makefile = std::fs::read_to_string(root().join("Makefile"))?;
    for target in of("make")? {
        assert!(makefile.lines().any(|line| line.starts_with(&format!("{}:", target[0]))), "make {target:?}");
    }
    Ok(())
}

#[test]
fn every_verb_is_in_the_readme_and_every_verb_of_the_readme_exists() -> anyhow::Result<()> {
    let help = String::from_utf8(printed(["--help"])?)?;
    let verbs: Vec<_> = help
        .lines()
        .skip_while(|line| !line.starts_with("Commands:"))
        .skip(1)
        .map_while(|line| line.strip_prefix("  ")?.split_whitespace().next())
        .filter(|verb| *verb != "help")
        .collect();
    let readme = std::fs::read_to_string(root().join("README.md"))?;
    let table: String = readme.lines().filter(|line| line.starts_with("| `streaming ")).collect();
    for verb in &verbs {
        let named = [format!("`streaming {verb}"), format!("`{verb}")];
        assert!(named.iter().any(|name| table.contains(name)), "no row for {verb}");
        assert!(run([verb, "--help"])?.status.success(), "{verb}");
    }
    for named in table.split('`').skip(1).step_by(2).filter_map(|code| code.strip_prefix("streaming ")) {
        let verb = named.split(' ').next().unwrap_or_default();
        assert!(verbs.contains(&verb), "{named}");
    }
    Ok(())
}

#[test]
fn the_first_commands_give_a_file_back() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let data = directory.path().join("data").display().to_string();
    let server = Role::start("standalone", directory.path(), &["--data".into(), data])?;
    let mut output = Vec::new();
    for arguments in of("target/release/streaming")? {
        let command = streaming()
            .args(&arguments)
            .current_dir(root())
            .env("STREAMING_COORDINATOR", server.address("coordinator"))
            .output()?;
        ensure!(command.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&command.stderr));
        output.extend(command.stdout);
    }
    let readme = std::fs::read(root().join("README.md"))?;
    assert!(output.windows(readme.len()).any(|window| window == readme), "{}", String::from_utf8_lossy(&output));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_small_cluster_comes_up_and_serves() -> anyhow::Result<()> {
    let (directory, etcd) = (tempfile::tempdir()?, Etcd::start().await);
    assert_eq!(of("etcd")?.len(), 1);
    let here = [
        "--set".to_owned(),
        format!("etcd.endpoints=[\"{}\"]", etcd.endpoint()),
        "--data".to_owned(),
        directory.path().join("data").display().to_string(),
    ];
    let mut roles = Vec::new();
    for mut arguments in of("streaming")? {
        let verb = arguments.remove(0);
        if ["coord", "node"].contains(&verb.as_str()) {
            // Other tests run on this machine: ports are free ones.
            arguments.retain(|argument| !argument.contains(".port="));
            let settings = arguments.into_iter().filter(|argument| argument != "--set");
            let settings = settings.flat_map(|setting| ["--set".to_owned(), setting]).chain(here.clone());
            roles.push(Role::start(&verb, directory.path(), &settings.collect::<Vec<_>>())?);
            continue;
        }
        let endpoint = arguments.iter_mut().find(|argument| argument.contains("2379")).context("an endpoint")?;
        *endpoint = etcd.endpoint();
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        loop {
            let table = String::from_utf8(printed(std::iter::once(&verb).chain(&arguments))?)?;
            if table.contains("dml_0") && table.contains("dml_15") {
                break;
            }
            ensure!(std::time::Instant::now() < deadline, "{verb} {arguments:?}: {table}");
        }
    }
    assert_eq!(roles.len(), 3);
    Ok(())
}

#[test]
fn who_stops_reading_ends_a_verb_quietly() -> anyhow::Result<()> {
    let mut verb = streaming()
        .args(["config", "schema"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // As `head -c 0` does.
    drop(verb.stdout.take());
    let output = verb.wait_with_output()?;
    ensure!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    Ok(())
}

#[test]
fn who_waits_for_a_cluster_in_vain_is_told_so_before_the_end() -> anyhow::Result<()> {
    let output = run(["channels", "--coordinator", "127.0.0.1:1", "--timeout", "3500ms"])?;
    let said = String::from_utf8(output.stderr)?;
    let (first, then) = said.split_once('\n').context("two lines")?;
    ensure!(first.starts_with("waiting for the coordinator at 127.0.0.1:1, 3.5s at most: "), "{said}");
    ensure!(then.starts_with("error[CLIENT_NOT_READY]: ") && then.contains("not ready after 3.5s"), "{said}");
    // One port is what nobody listens on, and another is none.
    ensure!(run(["channels", "--coordinator", "http://127.0.0.1:1"])?.status.code() == Some(2), "an address");
    Ok(())
}
