//! An S3 server in memory: real HTTP, real signatures, conditional writes decided under one lock, and faults that a
//! test switches while it runs.
//!
//! It exists because file-backed stand-ins check `If-None-Match` and write in two steps, so several racing writers can
//! all win; nothing about fencing may be tested against those.

use std::{io, net::SocketAddr, sync::Arc};

use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use self::{counters::Counters, server::Server, storage::Storage};
pub use self::{
    counters::Counts,
    faults::{Conditional, Fault, Faults, Op},
};

mod counters;
mod faults;
mod server;
mod storage;

/// A running server; it stops, and forgets everything, when this is dropped.
#[derive(Debug)]
pub struct S3 {
    address: SocketAddr,
    storage: Storage,
    faults: Faults,
    counters: Arc<Counters>,
    _stop: DropGuard,
}

impl S3 {
    /// The one access key that signatures are checked against.
    pub const ACCESS_KEY: &str = "peer-access-key";
    /// Its secret.
    pub const SECRET_KEY: &str = "peer-secret-key";
    /// The region clients sign for.
    pub const REGION: &str = "us-east-1";

    /// Starts a server with one empty bucket, on a free port of 127.0.0.1, in the current runtime.
    ///
    /// # Errors
    /// No port could be bound.
    pub async fn start(bucket: &str) -> io::Result<Self> {
        Self::listen(SocketAddr::from(([127, 0, 0, 1], 0)), bucket).await
    }

    /// Like [`S3::start`], on an address of the caller's choice.
    ///
    /// # Errors
    /// The address could not be bound.
    pub async fn listen(address: SocketAddr, bucket: &str) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let faults = Faults::default();
        let counters = Arc::new(Counters::default());
        let storage = Storage::new(faults.clone());
        storage.create_bucket(bucket);

        let mut service = S3ServiceBuilder::new(storage.clone());
        service.set_auth(SimpleAuth::from_single(Self::ACCESS_KEY, Self::SECRET_KEY));
        let server = Server::new(service.build(), faults.clone(), Arc::clone(&counters));
        let stop = CancellationToken::new();
        server.run(listener, stop.clone());
        Ok(Self { address, storage, faults, counters, _stop: stop.drop_guard() })
    }

    /// Where it listens, as `http://127.0.0.1:<port>`; buckets are addressed by path.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Adds an empty bucket; one that exists stays as it is.
    pub fn create_bucket(&self, name: &str) {
        self.storage.create_bucket(name);
    }

    /// What goes wrong, settable while requests are running.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// What was asked since the start, failed requests included.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counters.snapshot()
    }
}

#[cfg(test)]
mod tests;
