//! A real etcd server: Debian's `etcd` as a child process with data, certificates and log in a directory of its own.

#![expect(clippy::expect_used, reason = "a peer that cannot run fails the test that needs it")]
#![expect(clippy::disallowed_methods, reason = "a real process lives in real time")]

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use etcd_client::{Certificate, Client, ConnectOptions, Identity, Permission, TlsOptions};
use rcgen::{DnType, ExtendedKeyUsagePurpose};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use tempfile::TempDir;

use crate::{Authority, Port};

/// How long a server may take to answer after its start; generous, as the machine may be busy.
const START_LIMIT: Duration = Duration::from_secs(60);

/// What an [`Etcd`] asks of its clients.
#[derive(Debug, Clone, Default)]
pub struct EtcdOptions {
    /// Serve TLS only, and ask clients for a certificate of the same authority.
    pub tls: bool,
    /// Turn authentication on, with this user and password, who may read and write every key.
    pub user: Option<(String, String)>,
    /// How long a client's token lives; etcd's default is five minutes.
    pub token_ttl: Option<Duration>,
}

/// One etcd server on free ports of 127.0.0.1. Dropping it kills the process and removes its data; when the test is
/// failing, the end of its log is printed first.
#[derive(Debug)]
pub struct Etcd {
    dir: TempDir,
    options: EtcdOptions,
    // Kept while the server is away, so that nobody else is found in its place.
    client_port: Port,
    peer_port: Port,
    root_password: Option<&'static str>,
    process: Option<Process>,
}

#[derive(Debug)]
struct Process {
    child: Child,
    /// Ends the thread that started the child, whose end would kill it.
    _starter: mpsc::Sender<()>,
}

impl Etcd {
    /// A server without TLS and authentication.
    pub async fn start() -> Self {
        Self::start_with(EtcdOptions::default()).await
    }

    /// A server with these demands, ready to serve.
    ///
    /// # Panics
    /// There is no etcd on this machine, or it does not come up.
    pub async fn start_with(options: EtcdOptions) -> Self {
        let dir = tempfile::Builder::new().prefix("etcd-").tempdir().expect("a temporary directory");
        let (client_port, peer_port) = (Port::hold().expect("a free port"), Port::hold().expect("a free port"));
        let mut etcd = Self { dir, options, client_port, peer_port, root_password: None, process: None };
        if etcd.options.tls {
            write_certificates(&etcd).expect("certificates");
        }
        assert!(etcd.launch().await, "etcd did not start; its log ends:\n{}", etcd.log_tail());
        etcd.enable_auth().await;
        etcd
    }

    /// What a client connects to.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("{}://{}", if self.options.tls { "https" } else { "http" }, self.client_port.address())
    }

    /// The user and password that authentication was turned on with.
    #[must_use]
    pub fn user(&self) -> Option<(String, String)> {
        self.options.user.clone()
    }

    /// The certificate authority, PEM.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// A certificate that clients may show, PEM.
    #[must_use]
    pub fn client_cert_file(&self) -> PathBuf {
        self.dir.path().join("client.pem")
    }

    /// The key of [`Etcd::client_cert_file`], PEM.
    #[must_use]
    pub fn client_key_file(&self) -> PathBuf {
        self.dir.path().join("client.key")
    }

    /// A client of the server's own kind, with every right.
    ///
    /// # Panics
    /// The server cannot be reached.
    pub async fn connect(&self) -> Client {
        self.try_connect().await.expect("a connection to etcd")
    }

    /// Kills the server as a power cut would: SIGKILL, no goodbye.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // A stopped process is killed as well; failing means that it is gone already.
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
    }

    /// Suspends the server (SIGSTOP): it keeps its connections and answers nothing.
    ///
    /// # Panics
    /// The server is not running.
    pub fn stop(&self) {
        let process = self.signal(Signal::STOP);
        // The signal takes a while to reach every thread of a server on busy cores.
        waitpid(Some(process), WaitOptions::UNTRACED).expect("our own child");
    }

    /// Resumes a server that was suspended.
    ///
    /// # Panics
    /// The server is not running.
    pub fn cont(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) -> Pid {
        let process = Pid::from_child(&self.process.as_ref().expect("a running etcd").child);
        kill_process(process, signal).expect("a signal to our own child");
        process
    }

    /// Starts a killed server again, on the same data and ports.
    ///
    /// # Panics
    /// It does not come up.
    pub async fn restart(&mut self) {
        self.kill();
        assert!(self.launch().await, "etcd did not restart; its log ends:\n{}", self.log_tail());
    }

    /// What the server holds, as a backup: it is away while that is copied.
    ///
    /// # Panics
    /// It cannot be copied, or the server does not come up again.
    pub async fn backup(&mut self) -> TempDir {
        let backup = tempfile::tempdir().expect("a temporary directory");
        self.kill();
        copy(&self.dir.path().join("data"), backup.path());
        self.restart().await;
        backup
    }

    /// Brings a backup back in place of what the server holds.
    ///
    /// # Panics
    /// It cannot be copied, or the server does not come up on it.
    pub async fn restore(&mut self, backup: &TempDir) {
        self.kill();
        fs::remove_dir_all(self.dir.path().join("data")).expect("the server's data");
        copy(&backup.path().join("data"), self.dir.path());
        self.restart().await;
    }

    /// Forgets all history before `revision`.
    ///
    /// # Panics
    /// The server refuses.
    pub async fn compact(&self, revision: i64) {
        self.connect().await.compact(revision, None).await.expect("a compaction");
    }

    /// The last lines of what the server logged.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines.iter().skip(lines.len().saturating_sub(40)).fold(String::new(), |tail, line| tail + line + "\n")
    }

    /// Starts the process and waits until it serves; `false` if it ended instead.
    async fn launch(&mut self) -> bool {
        self.process = Some(spawn(self.command()));
        let started = Instant::now();
        while started.elapsed() < START_LIMIT {
            let process = self.process.as_mut().expect("just started");
            if process.child.try_wait().expect("the state of our own child").is_some() {
                self.process = None;
                return false;
            }
            if self.answers().await {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        false
    }

    /// Whether this very server, not another one on the same port, serves requests.
    async fn answers(&self) -> bool {
        let ask = async {
            let mut client = self.try_connect().await?;
            client.get("ready", None).await?;
            client.member_list().await
        };
        match tokio::time::timeout(Duration::from_secs(2), ask).await {
            Ok(Ok(members)) => members.members().iter().any(|member| member.name() == self.name()),
            Ok(Err(_)) | Err(_) => false,
        }
    }

    fn name(&self) -> String {
        self.dir.path().file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    fn command(&self) -> Command {
        let (peer, path) = (format!("http://{}", self.peer_port.address()), self.dir.path());
        let mut command = Command::new("setpriv");
        // The kernel ends the server with the test, also when the test is killed.
        command.args(["--pdeathsig", "KILL", "etcd", "--name", &self.name()]).arg("--data-dir").arg(path.join("data"));
        command.args(["--listen-client-urls", &self.endpoint(), "--advertise-client-urls", &self.endpoint()]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("{}={peer}", self.name())]);
        // A short election timeout makes short leases possible: the least time to live is one and a half of it.
        command.args(["--heartbeat-interval", "50", "--election-timeout", "500", "--logger", "zap"]);
        if let Some(ttl) = self.options.token_ttl {
            command.args(["--auth-token-ttl", &ttl.as_secs().to_string()]);
        }
        if self.options.tls {
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(self.ca_file());
            command.arg("--cert-file").arg(path.join("server.pem")).arg("--key-file").arg(path.join("server.key"));
        }
        let log = File::options().append(true).create(true).open(path.join("log")).expect("a log file");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a second handle")).stderr(log);
        command
    }

    async fn try_connect(&self) -> Result<Client, etcd_client::Error> {
        let mut options = ConnectOptions::new().with_connect_timeout(Duration::from_secs(2));
        if let Some(password) = self.root_password {
            options = options.with_user("root", password);
        }
        if self.options.tls {
            let ca = Certificate::from_pem(fs::read(self.ca_file())?);
            let identity = Identity::from_pem(fs::read(self.client_cert_file())?, fs::read(self.client_key_file())?);
            options = options.with_tls(TlsOptions::new().ca_certificate(ca).identity(identity));
        }
        Client::connect([self.endpoint()], Some(options)).await
    }

    async fn enable_auth(&mut self) {
        let Some((user, password)) = self.options.user.clone() else { return };
        let mut client = self.connect().await;
        let enable = async {
            client.user_add("root", "root-password", None).await?;
            client.user_grant_role("root", "root").await?;
            client.role_add("everything").await?;
            client.role_grant_permission("everything", Permission::read_write("").with_all_keys()).await?;
            client.user_add(user.as_str(), password, None).await?;
            client.user_grant_role(user, "everything").await?;
            client.auth_enable().await
        };
        enable.await.expect("authentication turned on");
        self.root_password = Some("root-password");
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("etcd's log ends:\n{}", self.log_tail());
        }
    }
}

/// Starts the command from a thread that lives as long as the process may: the death signal follows that thread.
fn spawn(mut command: Command) -> Process {
    let (started, child) = mpsc::channel();
    let (starter, ended) = mpsc::channel::<()>();
    std::thread::spawn(move || {
        if started.send(command.spawn()).is_ok() {
            // Resolves with an error when the process is dropped.
            let _ = ended.recv();
        }
    });
    assert!(
        find_on_path("etcd"),
        "this test runs a real etcd, and there is none on PATH or in /usr/bin: apt-get install etcd-server"
    );
    let child = child.recv().expect("the starting thread answers").expect("setpriv (util-linux) starts");
    Process { child, _starter: starter }
}

fn find_on_path(program: &str) -> bool {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|dir| dir.join(program).is_file())
}

fn copy(directory: &Path, into: &Path) {
    let copied = Command::new("cp").arg("-a").args([directory, into]).status().expect("cp starts");
    assert!(copied.success(), "{} was not copied", directory.display());
}

fn write_certificates(etcd: &Etcd) -> Result<(), Box<dyn std::error::Error>> {
    let authority = Authority::new()?;
    fs::write(etcd.ca_file(), authority.pem())?;
    for name in ["server", "client"] {
        let (certificate, key) = authority.sign(&["127.0.0.1", "localhost"], |params| {
            params.distinguished_name.push(DnType::CommonName, name);
            // The server also dials itself, showing the same certificate.
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        })?;
        fs::write(etcd.dir.path().join(format!("{name}.pem")), certificate)?;
        fs::write(etcd.dir.path().join(format!("{name}.key")), key)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn data_survive_a_kill_and_a_stopped_server_is_silent() {
        let mut etcd = Etcd::start().await;
        etcd.connect().await.put("key", "value", None).await.unwrap();
        etcd.restart().await;
        let read = etcd.connect().await.get("key", None).await.unwrap();
        assert_eq!(read.kvs().first().unwrap().value(), b"value");
        etcd.stop();
        assert!(!etcd.answers().await);
        etcd.cont();
        // It elects itself anew first, which a busy machine takes its time for.
        let started = Instant::now();
        while !etcd.answers().await {
            assert!(started.elapsed() < START_LIMIT, "{}", etcd.log_tail());
        }
    }

    #[tokio::test]
    async fn a_backup_that_is_brought_back_knows_nothing_of_what_came_after_it() {
        let mut etcd = Etcd::start().await;
        etcd.connect().await.put("key", "before", None).await.unwrap();
        let backup = etcd.backup().await;
        etcd.connect().await.put("key", "after", None).await.unwrap();
        etcd.restore(&backup).await;
        let read = etcd.connect().await.get("key", None).await.unwrap();
        assert_eq!(read.kvs().first().unwrap().value(), b"before");
    }

    #[tokio::test]
    async fn with_tls_and_a_user_strangers_are_refused() {
        let user = Some(("app".to_owned(), "secret".to_owned()));
        let mut etcd = Etcd::start_with(EtcdOptions { tls: true, user, token_ttl: None }).await;
        let revision = etcd.connect().await.put("key", "value", None).await.unwrap().header().unwrap().revision();
        etcd.compact(revision).await;
        etcd.restart().await;
        etcd.root_password = None;
        assert!(etcd.connect().await.get("key", None).await.is_err());
        etcd.options.tls = false;
        let plain = async { etcd.connect().await.get("key", None).await };
        assert!(!matches!(tokio::time::timeout(Duration::from_secs(1), plain).await, Ok(Ok(_))));
    }
}
