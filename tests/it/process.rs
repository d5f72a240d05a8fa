//! Processes of the real binary, each ended by id and only by the test that started it.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};

/// Time for a process to say that it listens; a cold machine that builds next door is slow.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A role in a process of its own.
#[derive(Debug)]
pub(crate) struct Role {
    child: Child,
    log: PathBuf,
    addresses: Vec<(String, String)>,
}

/// The binary under test.
pub(crate) fn streaming() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_streaming"));
    command.env_remove("STREAMING_CONFIG").env_remove("STREAMING_COORDINATOR").env_remove("STREAMING_ETCD");
    command
}

/// Runs a verb to its end.
pub(crate) fn run<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> anyhow::Result<Output> {
    Ok(streaming().args(arguments).stdin(Stdio::null()).output()?)
}

/// Runs a verb that must succeed and returns what it printed.
pub(crate) fn printed<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> anyhow::Result<Vec<u8>> {
    let output = run(arguments)?;
    ensure!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

impl Role {
    /// Starts a role and waits until it prints that it is ready.
    pub(crate) fn start(role: &str, directory: &Path, arguments: &[String]) -> anyhow::Result<Self> {
        Self::start_by(streaming(), role, directory, arguments)
    }

    /// As [`Self::start`], of a process whose writes can be made to fail: see [`Self::limit_writes`].
    pub(crate) fn start_limitable(role: &str, directory: &Path, arguments: &[String]) -> anyhow::Result<Self> {
        let mut command = Command::new("env");
        command.arg("--ignore-signal=XFSZ").arg(env!("CARGO_BIN_EXE_streaming"));
        Self::start_by(command, role, directory, arguments)
    }

    fn start_by(mut command: Command, role: &str, directory: &Path, arguments: &[String]) -> anyhow::Result<Self> {
        let serial = std::fs::read_dir(directory)?.count();
        let log = directory.join(format!("{role}-{serial}.log"));
        let mut child = command
            .arg(role)
            .args(["--set", "admin.port=0", "--set", "rootCoord.port=0", "--set", "streamingNode.port=0"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log)?)
            .spawn()?;
        let stdout = child.stdout.take().context("stdout")?;
        let (lines, received) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = lines.send(line);
            }
        });
        let mut started = Self { child, log, addresses: Vec::new() };
        let deadline = Instant::now() + START_LIMIT;
        loop {
            match received.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line == "ready" => return Ok(started),
                Ok(line) => started.addresses.extend(named_address(&line)),
                Err(error) => bail!("{role} did not become ready ({error}):\n{}", started.log()),
            }
        }
    }

    /// The `host:port` printed under this name, empty if there was none.
    pub(crate) fn address(&self, name: &str) -> &str {
        let found = self.addresses.iter().find(|(printed, _)| printed == name);
        found.map_or("", |(_, address)| address)
    }

    /// What it logged so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The process' id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, and wait until it is gone.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Sends a signal by name, as `kill -s`.
    pub(crate) fn signal(&self, signal: &str) -> anyhow::Result<()> {
        let status = Command::new("kill").args(["-s", signal, &self.child.id().to_string()]).status()?;
        ensure!(status.success(), "kill -s {signal}: {status}");
        Ok(())
    }

    /// From now on the kernel refuses each of its writes beyond this place of a file, as a disk that breaks does.
    pub(crate) fn limit_writes(&self, bytes: u64) -> anyhow::Result<()> {
        let limit = format!("--fsize={bytes}");
        let status = Command::new("prlimit").args(["--pid", &self.id().to_string(), &limit]).status()?;
        ensure!(status.success(), "prlimit {limit}: {status}");
        Ok(())
    }

    /// Waits until it ends by itself.
    pub(crate) fn wait(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "still running after {limit:?}:\n{}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- {}\n{}", self.log.display(), self.log());
        }
    }
}

/// `  coordinator  127.0.0.1:1234` as printed at start.
fn named_address(line: &str) -> Option<(String, String)> {
    let mut words = line.strip_prefix("  ")?.split_whitespace();
    Some((words.next()?.to_owned(), words.next()?.to_owned()))
}

/// The sha256 of a file, in hexadecimal.
pub(crate) fn sha256(path: &Path) -> anyhow::Result<String> {
    use sha2::Digest;
    let mut digest = sha2::Sha256::new();
    let mut file = std::fs::File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
        }
        digest.update(&buffer[..read]);
    }
}
