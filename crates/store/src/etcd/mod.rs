//! The store over an etcd cluster.
//!
//! Every call is one request, plus one or two more where etcd's error leaves out a number that [`StoreError`] carries
//! (which revision is the oldest, which lease is missing). Reads are linearizable, whichever member answers.

mod convert;
mod progress;
mod watch;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{
    Certificate, Client, ConnectOptions, GetOptions, Identity, KvClient, LeaseTimeToLiveOptions, TlsOptions,
    WatchClient, WatchOptions,
};

use crate::{
    LeaseId, Op, RangeRequest, RangeResponse, Revision, Store, StoreError, Txn, TxnResponse, WatchRequest,
    WatchStream,
};
use convert::Refusal;
use progress::Progress;

/// Messages as large as gRPC knows are accepted from etcd: a list of many objects comes in one piece.
const MESSAGE_BYTES_MAX: usize = i32::MAX as usize;
/// How often an idle connection is probed, and how long the answer may take: so a lost server ends its watches.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));
/// A read of this key costs nothing; only the revision in the answer's header counts.
const NO_KEY: &[u8] = b"\0";

/// How to reach an etcd cluster.
#[derive(Clone)]
pub struct EtcdConfig {
    /// The members' client URLs, such as `https://10.0.0.1:2379`.
    pub endpoints: Vec<String>,
    /// For `https` URLs.
    pub tls: Option<EtcdTls>,
    /// Name and password, where etcd's authentication is on.
    pub user: Option<(String, String)>,
    /// How long one request may take.
    pub timeout: Duration,
    /// Whether etcd's answers to progress requests can be believed.
    pub progress: ProgressTrust,
}

/// The TLS side of [`EtcdConfig`], all in PEM.
#[derive(Clone)]
pub struct EtcdTls {
    /// The authority that signed the servers' certificates.
    pub ca: Vec<u8>,
    /// The client's certificate chain and private key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// The name to expect in the servers' certificates, where it is not the URL's host.
    pub server_name: Option<String>,
}

/// Whether etcd's answer to a progress request proves that all events up to its revision were sent. Before 3.4.25 and
/// 3.5.8 it does not (etcd issue 15220); there, the state of the watched range is compared instead, which is slower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgressTrust {
    /// By the version that the server reports.
    ByVersion,
    /// It does: a distribution mended an older version.
    Always,
    /// It does not.
    Never,
}

/// The store over etcd.
pub struct Etcd {
    client: Client,
    kv: KvClient,
    watch: WatchClient,
    progress: Arc<Progress>,
    trusted: bool,
}

impl Etcd {
    /// Connects and asks for the server's version, so that a wrong address or certificate is known at once.
    pub async fn connect(config: EtcdConfig) -> Result<Arc<Self>, StoreError> {
        let mut options = ConnectOptions::new()
            .with_timeout(config.timeout)
            .with_connect_timeout(config.timeout)
            .with_keep_alive(KEEP_ALIVE.0, KEEP_ALIVE.1)
            .with_require_leader(true);
        if let Some(tls) = config.tls {
            options = options.with_tls(tls_options(tls));
        }
        if let Some((name, password)) = config.user {
            options = options.with_user(name, password).with_auto_token_refresh(true);
        }
        let unreachable = |error: etcd_client::Error| {
            let cause = base::error::chain(&error);
            StoreError::Unavailable(format!("cannot reach etcd at {}: {cause}", config.endpoints.join(", ")))
        };
        let mut client = Client::connect(&config.endpoints, Some(options)).await.map_err(unreachable)?;
        let status = client.status().await.map_err(unreachable)?;
        let trusted = match config.progress {
            ProgressTrust::ByVersion => progress::is_reliable(status.version()),
            ProgressTrust::Always => true,
            ProgressTrust::Never => false,
        };
        let kv = client.kv_client().max_decoding_message_size(MESSAGE_BYTES_MAX);
        let watch = client.watch_client().max_decoding_message_size(MESSAGE_BYTES_MAX);
        Ok(Arc::new(Self { client, kv, watch, progress: Arc::default(), trusted }))
    }

    /// The store's error for a refusal of etcd. `asked` is the revision that the request named, `leases` are those
    /// that it used.
    async fn explain(&self, error: etcd_client::Error, asked: Revision, leases: &[LeaseId]) -> StoreError {
        match convert::refusal(error) {
            Refusal::Compacted => match self.oldest().await {
                Ok(oldest) => StoreError::Compacted { oldest },
                Err(error) => error,
            },
            Refusal::Future => match self.current_revision().await {
                Ok(current) => StoreError::Future { asked, current },
                Err(error) => error,
            },
            Refusal::LeaseNotFound => StoreError::LeaseNotFound(self.missing(leases).await),
            Refusal::Other(error) => error,
        }
    }

    /// The oldest readable revision: a watch from the very first one is told.
    async fn oldest(&self) -> Result<Revision, StoreError> {
        let options = WatchOptions::new().with_start_revision(1);
        let mut watch =
            self.watch.clone().watch(NO_KEY, Some(options)).await.map_err(convert::unavailable)?;
        while let Some(message) = watch.message().await.map_err(convert::unavailable)? {
            if message.canceled() {
                return Ok(message.compact_revision());
            }
        }
        Err(StoreError::Unavailable("etcd ended a watch without a reason".to_owned()))
    }

    /// Which of the leases does not exist; one of them where all do by now.
    async fn missing(&self, leases: &[LeaseId]) -> LeaseId {
        let mut client = self.client.lease_client();
        for lease in leases {
            let lived = client.time_to_live(*lease, Some(LeaseTimeToLiveOptions::new())).await;
            if lived.is_ok_and(|lived| lived.ttl() < 0) {
                return *lease;
            }
        }
        leases.first().copied().unwrap_or(0)
    }
}

fn tls_options(tls: EtcdTls) -> TlsOptions {
    let mut options = TlsOptions::new().ca_certificate(Certificate::from_pem(tls.ca));
    if let Some((certificate, key)) = tls.identity {
        options = options.identity(Identity::from_pem(certificate, key));
    }
    match tls.server_name {
        Some(name) => options.domain_name(name),
        None => options,
    }
}

#[async_trait]
impl Store for Etcd {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, StoreError> {
        let asked = request.revision;
        let (key, options) = convert::get(request);
        match self.kv.clone().get(key, Some(options)).await {
            Ok(response) => Ok(convert::range_response(response)),
            Err(error) => Err(self.explain(error, asked, &[]).await),
        }
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResponse, StoreError> {
        let (asked, leases) = named(&txn);
        match self.kv.clone().txn(convert::txn(txn)).await {
            Ok(response) => Ok(convert::txn_response(&response)),
            Err(error) => Err(self.explain(error, asked, &leases).await),
        }
    }

    async fn watch(&self, request: WatchRequest) -> Result<WatchStream, StoreError> {
        watch::open(self, request).await
    }

    async fn request_progress(&self) -> Result<(), StoreError> {
        let revision = self.current_revision().await?;
        self.progress.ask(revision);
        Ok(())
    }

    async fn current_revision(&self) -> Result<Revision, StoreError> {
        let options = GetOptions::new().with_count_only();
        let response = self.kv.clone().get(NO_KEY, Some(options)).await.map_err(convert::unavailable)?;
        Ok(convert::revision(response.header()))
    }

    async fn size(&self) -> Result<u64, StoreError> {
        let status = self.client.maintenance_client().status().await.map_err(convert::unavailable)?;
        Ok(u64::try_from(status.db_size()).unwrap_or_default())
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        match self.kv.clone().compact(revision, None).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.explain(error, revision, &[]).await),
        }
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        // etcd counts in seconds; a lease must not end before its time.
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX).max(1);
        match self.client.lease_client().grant(seconds, None).await {
            Ok(response) => Ok(response.id()),
            Err(error) => Err(self.explain(error, 0, &[]).await),
        }
    }

    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        match self.client.lease_client().keep_alive(lease).await {
            Ok(_) => Ok(()),
            Err(etcd_client::Error::LeaseKeepAliveError(_)) => Err(StoreError::LeaseNotFound(lease)),
            Err(error) => Err(self.explain(error, 0, &[lease]).await),
        }
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        match self.client.lease_client().revoke(lease).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.explain(error, 0, &[lease]).await),
        }
    }
}

/// The newest revision and the leases that a transaction names.
fn named(txn: &Txn) -> (Revision, Vec<LeaseId>) {
    let (mut asked, mut leases) = (0, HashSet::new());
    for op in txn.then.iter().chain(&txn.or_else) {
        match op {
            Op::Put { lease, .. } if *lease != 0 => drop(leases.insert(*lease)),
            Op::Range(request) => asked = asked.max(request.revision),
            Op::Put { .. } | Op::Delete { .. } => {}
        }
    }
    (asked, leases.into_iter().collect())
}
