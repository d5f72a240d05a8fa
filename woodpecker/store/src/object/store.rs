//! Opening an object store from settings, and proving at start that it keeps the one promise everything stands on: of
//! several conditional PUTs of one name, one wins.

use std::{error::Error, fmt, iter::successors, path::PathBuf, sync::Arc, time::Duration};

use object_store::{
    BackoffConfig, Certificate, ClientOptions, ObjectStore, RetryConfig,
    aws::{AmazonS3Builder, S3ConditionalPut},
    azure::MicrosoftAzureBuilder,
    gcp::GoogleCloudStorageBuilder,
    local::LocalFileSystem,
    memory::InMemory,
    path::Path,
    prefix::PrefixStore,
};
use serde::{Deserialize, Serialize};

pub use self::probe::probe;

mod probe;

/// Where objects are kept and how to get in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ObjectStoreSettings {
    pub provider: Provider,
    /// Bucket, or container on Azure.
    pub bucket: String,
    /// Put before every object's name; empty is the top of the bucket.
    pub root: String,
    /// `http://host:port` of an S3-compatible store, or of an emulator; empty is the provider's own.
    pub endpoint: String,
    /// Region to sign for; S3 only.
    pub region: String,
    /// Access key id, or the account's name on Azure. Empty takes credentials from the environment the provider
    /// documents: variables, web identity, instance role.
    pub access_key: String,
    /// Secret key, the account's key on Azure, or the service account's JSON on GCS.
    pub secret_key: Secret,
    /// Session token of temporary S3 credentials.
    pub session_token: Secret,
    /// Addresses the bucket as a host name instead of a path; S3 only.
    pub virtual_host_style: bool,
    /// Allows an `http://` endpoint.
    pub allow_http: bool,
    /// File with authorities that are trusted beside the system's, PEM; empty for none.
    pub ca_file: PathBuf,
    /// The directory that stands for a bucket; provider `file` only, for shared file systems such as NFS.
    pub path: PathBuf,
}

/// Who keeps the objects.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// Amazon S3 and what speaks its protocol.
    #[default]
    S3,
    /// Google Cloud Storage.
    Gcs,
    /// Azure Blob Storage.
    Azure,
    /// A directory, local or shared.
    File,
    /// This process's memory; for tests.
    Memory,
}

/// A setting that is never printed.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "unset" } else { "***" })
    }
}

/// Why an object store cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreOpenError {
    #[error("object_store.{key}: {detail}")]
    Setting { key: &'static str, detail: String },
    #[error(
        "the object store does not decide conditional PUTs: {0}. Segments cannot be fenced on it. Use a store that \
         honours If-None-Match (Amazon S3, GCS, Azure, a recent S3-compatible server), switch the feature on if the \
         store hides it behind an option, or set the backend to local"
    )]
    NoConditionalPut(String),
    #[error("the object store cannot be reached: {0}")]
    Unavailable(String),
}

impl StoreOpenError {
    /// A stable code for documentation and programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Setting { .. } => "OBJECT_STORE_SETTING",
            Self::NoConditionalPut(_) => "OBJECT_STORE_NO_CONDITIONAL_PUT",
            Self::Unavailable(_) => "OBJECT_STORE_UNAVAILABLE",
        }
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }

    /// Opening leaves at most objects of a probe behind, under `probe/`.
    #[must_use]
    pub fn has_side_effects(&self) -> bool {
        !matches!(self, Self::Setting { .. })
    }
}

impl ObjectStoreSettings {
    /// Opens the store. No request is made; see [`probe`].
    ///
    /// # Errors
    /// [`StoreOpenError::Setting`] with the key's name.
    pub fn open(&self) -> Result<Arc<dyn ObjectStore>, StoreOpenError> {
        self.check()?;
        let store: Arc<dyn ObjectStore> = match self.provider {
            Provider::S3 => Arc::new(self.s3()?.build().map_err(|error| refused(&error))?),
            Provider::Gcs => Arc::new(self.gcs()?.build().map_err(|error| refused(&error))?),
            Provider::Azure => Arc::new(self.azure()?.build().map_err(|error| refused(&error))?),
            Provider::File => {
                std::fs::create_dir_all(&self.path).map_err(|error| setting("path", &error))?;
                let files = LocalFileSystem::new_with_prefix(&self.path).map_err(|error| setting("path", &error))?;
                Arc::new(files.with_fsync(true))
            }
            Provider::Memory => Arc::new(InMemory::new()),
        };
        let root = Path::parse(&self.root).map_err(|error| setting("root", &error))?;
        Ok(if root.as_ref().is_empty() { store } else { Arc::new(PrefixStore::new(store, root)) })
    }

    fn check(&self) -> Result<(), StoreOpenError> {
        let remote = matches!(self.provider, Provider::S3 | Provider::Gcs | Provider::Azure);
        if remote && self.bucket.is_empty() {
            return Err(setting("bucket", &"must be set"));
        }
        if self.provider == Provider::File && self.path.as_os_str().is_empty() {
            return Err(setting("path", &"must be set for provider file"));
        }
        if self.endpoint.starts_with("http://") && !self.allow_http {
            return Err(setting("allow_http", &"must be true for an http:// endpoint"));
        }
        if !self.endpoint.is_empty() && !self.endpoint.starts_with("http://") && !self.endpoint.starts_with("https://")
        {
            return Err(setting("endpoint", &"must start with http:// or https://"));
        }
        if self.access_key.is_empty() && !self.secret_key.0.is_empty() && self.provider != Provider::Gcs {
            return Err(setting("access_key", &"must be set when secret_key is"));
        }
        Ok(())
    }

    fn s3(&self) -> Result<AmazonS3Builder, StoreOpenError> {
        let mut builder = AmazonS3Builder::from_env()
            .with_bucket_name(&self.bucket)
            .with_virtual_hosted_style_request(self.virtual_host_style)
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            // Over TLS the payload is protected already, and hashing it costs more than sending it.
            .with_unsigned_payload(!self.endpoint.starts_with("http://"))
            .with_client_options(self.client()?)
            .with_retry(retry());
        if !self.region.is_empty() {
            builder = builder.with_region(&self.region);
        }
        if !self.endpoint.is_empty() {
            builder = builder.with_endpoint(&self.endpoint).with_allow_http(self.allow_http);
        }
        if !self.access_key.is_empty() {
            builder = builder.with_access_key_id(&self.access_key).with_secret_access_key(&self.secret_key.0);
        }
        if !self.session_token.0.is_empty() {
            builder = builder.with_token(&self.session_token.0);
        }
        Ok(builder)
    }

    fn gcs(&self) -> Result<GoogleCloudStorageBuilder, StoreOpenError> {
        let mut builder = GoogleCloudStorageBuilder::from_env()
            .with_bucket_name(&self.bucket)
            .with_client_options(self.client()?)
            .with_retry(retry());
        if !self.endpoint.is_empty() {
            builder = builder.with_base_url(&self.endpoint);
        }
        if !self.secret_key.0.is_empty() {
            builder = builder.with_service_account_key(&self.secret_key.0);
        }
        Ok(builder)
    }

    fn azure(&self) -> Result<MicrosoftAzureBuilder, StoreOpenError> {
        let mut builder = MicrosoftAzureBuilder::from_env()
            .with_container_name(&self.bucket)
            .with_client_options(self.client()?)
            .with_allow_http(self.allow_http)
            .with_retry(retry());
        if !self.endpoint.is_empty() {
            builder = builder.with_endpoint(self.endpoint.clone());
        }
        if !self.access_key.is_empty() {
            builder = builder.with_account(&self.access_key);
        }
        if !self.secret_key.0.is_empty() {
            builder = builder.with_access_key(&self.secret_key.0);
        }
        Ok(builder)
    }

    fn client(&self) -> Result<ClientOptions, StoreOpenError> {
        let mut options = ClientOptions::new()
            .with_allow_http(self.allow_http)
            .with_http1_only()
            .with_connect_timeout(Duration::from_secs(2))
            .with_read_timeout(Duration::from_secs(5))
            .with_timeout(REQUEST_TIMEOUT)
            // Shorter than what stores and balancers keep idle connections for, so that a PUT never meets a dead one.
            .with_pool_idle_timeout(Duration::from_secs(15))
            .with_pool_max_idle_per_host(64);
        if !self.ca_file.as_os_str().is_empty() {
            let pem = std::fs::read(&self.ca_file).map_err(|error| setting("ca_file", &error))?;
            let authorities = Certificate::from_pem_bundle(&pem).map_err(|error| setting("ca_file", &error))?;
            if authorities.is_empty() {
                return Err(setting("ca_file", &"has no certificate"));
            }
            options = authorities.into_iter().fold(options, ClientOptions::with_root_certificate);
        }
        // Nothing is dialled with TLS then, and an image may have no authorities.
        if self.endpoint.starts_with("http://") && !self.access_key.is_empty() {
            options = options.with_no_system_certificates(true);
        }
        Ok(options)
    }
}

fn setting(key: &'static str, detail: &dyn fmt::Display) -> StoreOpenError {
    StoreOpenError::Setting { key, detail: detail.to_string() }
}

/// No client could be made. The library names the reason only at the end of the chain, and parts of it twice.
fn refused(error: &object_store::Error) -> StoreOpenError {
    let mut told = String::new();
    for reason in successors(Some(error as &(dyn Error + 'static)), |&error| error.source()).map(ToString::to_string) {
        if !told.contains(&reason) {
            told += if told.is_empty() { "" } else { ": " };
            told += &reason;
        }
    }
    setting("endpoint", &told)
}

/// One request may take this long at the very most; the backend sets shorter limits by size.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// The library's own retries are few: the backend retries PUTs itself, under one deadline and one identity.
fn retry() -> RetryConfig {
    RetryConfig {
        max_retries: 3,
        retry_timeout: Duration::from_secs(10),
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(50),
            max_backoff: Duration::from_secs(1),
            base: 2.0,
        },
    }
}

#[cfg(test)]
mod tests;
