//! Building the server from its configuration: everything that can fail fails here, before anything runs.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use api::connect::NodeConnector;
use base::clock::SharedClock;
use base::lifecycle::Readiness;
use base::queues::Queues;
use parking_lot::Mutex;
use store::Store;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::admission::{self, Chain};
use crate::aggregation::Aggregator;
use crate::audit::Auditor;
use crate::authn::Access;
use crate::authn::token::Tokens;
use crate::authz::{Authorizer, Standard, Webhook};
use crate::bootstrap::Bootstrap;
use crate::encryption::{Keys, Sealed};
use crate::flow::Flow;
use crate::http::{Front, Kept, Metrics};
use crate::pipeline::{Parts, Pipeline};
use crate::pki::{Pki, PkiError};
use crate::protection::Protection;
use crate::proxy::{self, Direct, Egress, Outbound};
use crate::remote::FileError;
use crate::server::Server;
use crate::strategy::{Settings, Strategies};
use crate::usage::Usage;
use crate::words::Catalog;

/// Names that every API server's certificate carries. Source: kubeadm's `GetAPIServerAltNames`.
const NAMES: [&str; 4] =
    ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"];

/// What the API server needs to know.
pub struct Config {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The addresses by which clients reach it: in its certificate, and in the endpoints of Service
    /// `default/kubernetes` (the first that is no loopback address, else the first).
    pub addresses: Vec<IpAddr>,
    /// The directory of keys and certificates.
    pub pki_dir: PathBuf,
    /// Service ranges (address, prefix length), IPv4 first.
    pub service_ranges: Vec<(IpAddr, u8)>,
    /// Node ports, both inclusive: upstream's are 30000 to 32767.
    pub node_ports: (u16, u16),
    /// The address of Service `kube-system/kube-dns`; `None` leaves it out.
    pub dns_address: Option<IpAddr>,
    /// `v1.37.0+skiff.1`
    pub git_version: String,
    /// Time.
    pub clock: SharedClock,
    /// Whether other servers answer over the same store.
    pub shared: bool,
    /// Readiness of the process's components, where a supervisor runs them.
    pub readiness: Option<Readiness>,
    /// Whom the server believes besides its own authority.
    pub access: Access,
    /// How the server and what it keeps are protected.
    pub protection: Protection,
    /// Who may do what; [`Standard`] unless another is given.
    pub authorizer: Option<Arc<dyn Authorizer>>,
    /// How the API server connects to pods and Services; [`Direct`] unless another is given.
    pub egress: Option<Arc<dyn Egress>>,
    /// Admission links, in order.
    pub admission: Chain,
}

/// Why the server could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The port.
    #[error("listen on {address}: {source}; is another program using the port?")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// Keys and certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// A file that says whom to believe, or how to protect.
    #[error(transparent)]
    File(#[from] FileError),
    /// The configuration.
    #[error("configuration: {0}")]
    Config(String),
}

impl Server {
    /// Builds pipeline and server: reads or makes the keys, binds the port, starts to fill the caches. Runs within a
    /// tokio runtime.
    pub async fn build(
        config: Config,
        store: Arc<dyn Store>,
        strategies: Strategies,
        nodes: Arc<dyn NodeConnector>,
    ) -> Result<(Arc<Pipeline>, Self), BuildError> {
        let failed = |source| BuildError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
        let port = listener.local_addr().map_err(failed)?.port();
        let kubernetes = first_service_address(&config.service_ranges)?;
        let names = NAMES.iter().map(|name| (*name).to_owned()).chain(["localhost".to_owned()]).collect();
        let certified = config.addresses.iter().copied().chain(kubernetes);
        let pki = Pki::open(&config.pki_dir, config.clock.clone(), names, certified)?;
        let tls = pki.server_config(&[b"h2", b"http/1.1"])?;
        let tokens = Tokens::new(pki.service_account_key_pem(), ISSUER)?;
        let bootstrap = Arc::new(Mutex::new(Bootstrap {
            addresses: config.addresses.clone(),
            servers: config.shared.then(BTreeSet::new),
            writing: Arc::default(),
            port,
            service_ranges: config.service_ranges.clone(),
            kubernetes,
            dns: config.dns_address,
        }));
        let believed = config.access.believed(ISSUER, &config.clock)?;
        let webhook = config.access.authorization_webhook.as_deref();
        let webhook = webhook.map(|path| Webhook::new(path, config.clock.clone())).transpose()?;
        let keys = config.protection.encryption_provider_config.as_deref();
        let keys = keys.map(Keys::load).transpose()?;
        let metrics = Metrics::new(&config.git_version)
            .map_err(|error| BuildError::Config(format!("metrics: {error}")))?;
        let seal = |keys| Sealed::new(store.clone(), Arc::new(keys), metrics.encryption.clone());
        let sealed = keys.map(seal);
        let store = sealed.clone().map_or(store, |sealed| sealed as Arc<dyn Store>);
        let auditing = &config.protection.audit;
        let auditor = Auditor::open(auditing, config.clock.clone(), metrics.audit.clone())?;
        let flow = Flow::new(metrics.flow.clone());
        let admission = match &config.protection.admission_control_config_file {
            Some(path) => admission::configured(config.admission, path)?,
            None => config.admission,
        };
        let egress = config.egress.unwrap_or_else(|| Arc::new(Direct));
        let pipeline = Pipeline::new(Parts {
            catalog: Catalog::builtin(),
            strategies,
            admission,
            admission_metrics: metrics.admission.clone(),
            authorization_metrics: metrics.authorization.clone(),
            comparisons: metrics.comparisons.clone(),
            authorizer: config.authorizer.unwrap_or_else(|| Arc::new(Standard::default())),
            webhook,
            authenticators: believed.authenticators,
            tokens,
            store,
            sealed,
            auditor,
            usage: Usage::new(nodes.clone(), config.clock.clone()),
            egress: egress.clone(),
            clock: config.clock,
            settings: Settings { service_ranges: config.service_ranges, node_ports: config.node_ports },
        });
        let outbound = Arc::new(Outbound::new(egress));
        let aggregator = Arc::new(Aggregator::new(outbound.clone(), pki.clone())?);
        pipeline.aggregate_by(aggregator.clone());
        let front = Front {
            pipeline: pipeline.clone(),
            nodes,
            aggregator,
            outbound,
            insecure: Arc::new(proxy::insecure().map_err(|error| BuildError::Config(error.to_string()))?),
            anonymous: believed.anonymous,
            readiness: config.readiness,
            metrics,
            documents: Kept::default(),
            queues: Queues::default(),
            started: Arc::default(),
            flow,
            git_version: config.git_version,
            bootstrap: bootstrap.clone(),
            encoded: Arc::default(),
            drain: CancellationToken::new(),
        };
        let server = Self { front: Arc::new(front), pki, listener: Arc::new(listener), tls, bootstrap };
        Ok((pipeline, server))
    }
}

/// The issuer of service account tokens: where pods find the API server.
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// The first address after the range's own: Service `default/kubernetes`.
fn first_service_address(ranges: &[(IpAddr, u8)]) -> Result<Option<IpAddr>, BuildError> {
    let Some((base, length)) = ranges.first() else { return Ok(None) };
    let (bits, most) = match base {
        IpAddr::V4(_) => (32, 30),
        IpAddr::V6(_) => (128, 126),
    };
    if *length > most {
        return Err(BuildError::Config(format!(
            "service range {base}/{length} is too small: of its {bits} bits at most {most} may be fixed"
        )));
    }
    Ok(Some(crate::net::nth(*base, 1)))
}
