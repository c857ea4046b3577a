//! The resources that Skiff's own components work on, by name. What the server serves is the catalog's business; these
//! are the versions that the components read and write.

use std::fmt;
use std::sync::Arc;

use api::GroupVersionResource;
use api::catalog::{Catalog as Rows, Row};
use parking_lot::RwLock;
use tokio::sync::watch;

/// A resource with the names that references to its objects use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kind {
    /// API group; empty for core.
    pub group: &'static str,
    /// Version.
    pub version: &'static str,
    /// Plural, as in paths.
    pub resource: &'static str,
    /// Kind, as in objects.
    pub kind: &'static str,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
}

impl Kind {
    /// Group, version and resource, for requests.
    pub fn gvr(&self) -> GroupVersionResource {
        GroupVersionResource::new(self.group, self.version, self.resource)
    }

    /// `apps/v1`, or `v1` in the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
}

impl From<Kind> for GroupVersionResource {
    fn from(kind: Kind) -> Self {
        kind.gvr()
    }
}

impl From<&Kind> for GroupVersionResource {
    fn from(kind: &Kind) -> Self {
        kind.gvr()
    }
}

const fn namespaced(
    group: &'static str,
    version: &'static str,
    resource: &'static str,
    kind: &'static str,
) -> Kind {
    Kind { group, version, resource, kind, namespaced: true }
}

const fn cluster(
    group: &'static str,
    version: &'static str,
    resource: &'static str,
    kind: &'static str,
) -> Kind {
    Kind { group, version, resource, kind, namespaced: false }
}

/// Namespaces.
pub const NAMESPACES: Kind = cluster("", "v1", "namespaces", "Namespace");
/// Runtime classes.
pub const RUNTIME_CLASSES: Kind = cluster("node.k8s.io", "v1", "runtimeclasses", "RuntimeClass");
/// Nodes.
pub const NODES: Kind = cluster("", "v1", "nodes", "Node");
/// Annotation of a Node that registers: the range of pods that it had before and would have again.
pub const WISHED_POD_RANGE: &str = "skiff.dev/wished-pod-range";
/// Pods.
pub const PODS: Kind = namespaced("", "v1", "pods", "Pod");
/// Services.
pub const SERVICES: Kind = namespaced("", "v1", "services", "Service");
/// Endpoints, the older form of endpoint slices.
pub const ENDPOINTS: Kind = namespaced("", "v1", "endpoints", "Endpoints");
/// Resource quotas.
pub const RESOURCE_QUOTAS: Kind = namespaced("", "v1", "resourcequotas", "ResourceQuota");
/// Claims of volumes.
pub const PERSISTENT_VOLUME_CLAIMS: Kind =
    namespaced("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim");
/// Volumes.
pub const PERSISTENT_VOLUMES: Kind = cluster("", "v1", "persistentvolumes", "PersistentVolume");
/// Claims of devices.
pub const RESOURCE_CLAIMS: Kind = namespaced("resource.k8s.io", "v1", "resourceclaims", "ResourceClaim");
/// What drivers offer.
pub const RESOURCE_SLICES: Kind = cluster("resource.k8s.io", "v1", "resourceslices", "ResourceSlice");
/// Classes of devices.
pub const DEVICE_CLASSES: Kind = cluster("resource.k8s.io", "v1", "deviceclasses", "DeviceClass");
/// Taints of devices that others than their driver say.
pub const DEVICE_TAINT_RULES: Kind = cluster("resource.k8s.io", "v1", "devicetaintrules", "DeviceTaintRule");
/// Storage classes.
pub const STORAGE_CLASSES: Kind = cluster("storage.k8s.io", "v1", "storageclasses", "StorageClass");
/// Volume attributes classes.
pub const VOLUME_ATTRIBUTES_CLASSES: Kind =
    cluster("storage.k8s.io", "v1", "volumeattributesclasses", "VolumeAttributesClass");
/// Volumes that are attached to nodes.
pub const VOLUME_ATTACHMENTS: Kind = cluster("storage.k8s.io", "v1", "volumeattachments", "VolumeAttachment");
/// What the storage drivers of a node say.
pub const CSI_NODES: Kind = cluster("storage.k8s.io", "v1", "csinodes", "CSINode");
/// Storage drivers.
pub const CSI_DRIVERS: Kind = cluster("storage.k8s.io", "v1", "csidrivers", "CSIDriver");
/// How much storage is left somewhere.
pub const CSI_STORAGE_CAPACITIES: Kind =
    namespaced("storage.k8s.io", "v1", "csistoragecapacities", "CSIStorageCapacity");
/// Endpoint slices.
pub const ENDPOINT_SLICES: Kind = namespaced("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice");
/// ConfigMaps.
pub const CONFIG_MAPS: Kind = namespaced("", "v1", "configmaps", "ConfigMap");
/// Secrets.
pub const SECRETS: Kind = namespaced("", "v1", "secrets", "Secret");
/// ServiceAccounts.
pub const SERVICE_ACCOUNTS: Kind = namespaced("", "v1", "serviceaccounts", "ServiceAccount");
/// Events.
pub const EVENTS: Kind = namespaced("", "v1", "events", "Event");
/// Replication controllers.
pub const REPLICATION_CONTROLLERS: Kind =
    namespaced("", "v1", "replicationcontrollers", "ReplicationController");
/// Replica sets.
pub const REPLICA_SETS: Kind = namespaced("apps", "v1", "replicasets", "ReplicaSet");
/// Deployments.
pub const DEPLOYMENTS: Kind = namespaced("apps", "v1", "deployments", "Deployment");
/// Stateful sets.
pub const STATEFUL_SETS: Kind = namespaced("apps", "v1", "statefulsets", "StatefulSet");
/// Daemon sets.
pub const DAEMON_SETS: Kind = namespaced("apps", "v1", "daemonsets", "DaemonSet");
/// Pod disruption budgets.
pub const POD_DISRUPTION_BUDGETS: Kind =
    namespaced("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget");
/// Controller revisions.
pub const CONTROLLER_REVISIONS: Kind = namespaced("apps", "v1", "controllerrevisions", "ControllerRevision");
/// Jobs.
pub const JOBS: Kind = namespaced("batch", "v1", "jobs", "Job");
/// Jobs by the clock.
pub const CRON_JOBS: Kind = namespaced("batch", "v1", "cronjobs", "CronJob");
/// Horizontal pod autoscalers.
pub const HORIZONTAL_POD_AUTOSCALERS: Kind =
    namespaced("autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler");
/// Leases: heartbeats of nodes and leadership.
pub const LEASES: Kind = namespaced("coordination.k8s.io", "v1", "leases", "Lease");
/// Priority classes.
pub const PRIORITY_CLASSES: Kind = cluster("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass");
/// Ingresses.
pub const INGRESSES: Kind = namespaced("networking.k8s.io", "v1", "ingresses", "Ingress");
/// Service CIDRs.
pub const SERVICE_CIDRS: Kind = cluster("networking.k8s.io", "v1", "servicecidrs", "ServiceCIDR");
/// Cluster IPs, as objects.
pub const IP_ADDRESSES: Kind = cluster("networking.k8s.io", "v1", "ipaddresses", "IPAddress");

/// What claims of pods are made from.
pub const RESOURCE_CLAIM_TEMPLATES: Kind =
    namespaced("resource.k8s.io", "v1", "resourceclaimtemplates", "ResourceClaimTemplate");
/// Resources whose objects are to be written anew.
pub const STORAGE_VERSION_MIGRATIONS: Kind =
    cluster("storagemigration.k8s.io", "v1", "storageversionmigrations", "StorageVersionMigration");
/// Definitions of custom kinds.
pub const CUSTOM_RESOURCE_DEFINITIONS: Kind =
    cluster("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition");

/// Admission policies in expressions.
pub const VALIDATING_ADMISSION_POLICIES: Kind =
    cluster("admissionregistration.k8s.io", "v1", "validatingadmissionpolicies", "ValidatingAdmissionPolicy");

/// Cluster roles.
pub const CLUSTER_ROLES: Kind = cluster("rbac.authorization.k8s.io", "v1", "clusterroles", "ClusterRole");

/// Certificate signing requests.
pub const CERTIFICATE_SIGNING_REQUESTS: Kind =
    cluster("certificates.k8s.io", "v1", "certificatesigningrequests", "CertificateSigningRequest");

/// Requests of pods for certificates.
pub const POD_CERTIFICATE_REQUESTS: Kind =
    namespaced("certificates.k8s.io", "v1", "podcertificaterequests", "PodCertificateRequest");

/// Authorities that pods may mount.
pub const CLUSTER_TRUST_BUNDLES: Kind =
    cluster("certificates.k8s.io", "v1", "clustertrustbundles", "ClusterTrustBundle");

/// A resource that the server serves, built in or custom, in the version that the server prefers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Served {
    /// Group, version and plural.
    pub resource: GroupVersionResource,
    /// Kind.
    pub kind: String,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
}

impl From<&Row> for Served {
    fn from(row: &Row) -> Self {
        Self { resource: row.resource(), kind: row.kind.to_string(), namespaced: row.namespaced }
    }
}

/// The resources among a server's rows whose objects can be listed, watched and deleted, each in the version in which it
/// is stored: an object must not be met twice.
pub fn served(rows: &api::catalog::Catalog) -> Vec<Served> {
    let generic = |row: &&Arc<Row>| ["list", "watch", "delete"].iter().all(|verb| row.serves(verb));
    rows.rows()
        .filter(|row| row.is_storage_version())
        .filter(generic)
        .map(|row| Served::from(&**row))
        .collect()
}

/// What extension API servers serve.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extensions {
    /// What can be listed and deleted there, each resource in one version.
    pub served: Vec<Served>,
    /// Group versions (`example.com/v1`) whose server cannot be asked, in their order.
    pub silent: Vec<String>,
}

/// Tells what extension API servers serve, whenever it is asked.
#[derive(Clone)]
struct Teller(Arc<dyn Fn() -> Extensions + Send + Sync>);

impl fmt::Debug for Teller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Teller")
    }
}

/// What can be listed, watched and deleted at present: the generic controllers (garbage collection, namespaces) work on
/// all of it. Whoever knows sets it; cheap to clone.
#[derive(Debug, Clone)]
pub struct Catalog {
    rows: Arc<RwLock<Arc<Rows>>>,
    served: Arc<watch::Sender<Arc<[Served]>>>,
    extensions: Option<Teller>,
    whole: Arc<watch::Sender<bool>>,
}

impl Catalog {
    /// A catalog of all that is served, which is among these rows; see [`served`].
    pub fn new(rows: Arc<Rows>) -> Self {
        let served = Arc::new(watch::Sender::new(served(&rows).into()));
        Self {
            rows: Arc::new(RwLock::new(rows)),
            served,
            extensions: None,
            whole: Arc::new(watch::Sender::new(true)),
        }
    }

    /// The same of which it is not known yet whether it is all: [`Catalog::complete`] says so later.
    #[must_use]
    pub fn incomplete(self) -> Self {
        self.whole.send_replace(false);
        self
    }

    /// From now on it is known what is served, by others too.
    pub fn complete(&self) {
        self.whole.send_replace(true);
    }

    /// Returns once it is known what is served. Before that, that nothing is found says nothing.
    pub async fn completed(&self) {
        // The sender is held by `self`, so waiting cannot fail.
        let _ = self.whole.subscribe().wait_for(|whole| *whole).await;
    }

    /// The same where `tell` knows what extension API servers serve.
    #[must_use]
    pub fn extended(self, tell: impl Fn() -> Extensions + Send + Sync + 'static) -> Self {
        Self { extensions: Some(Teller(Arc::new(tell))), ..self }
    }

    /// What extension API servers serve now.
    pub fn extensions(&self) -> Extensions {
        self.extensions.as_ref().map(|teller| (teller.0)()).unwrap_or_default()
    }

    /// The server's rows, with the types of all kinds.
    pub fn rows(&self) -> Arc<Rows> {
        self.rows.read().clone()
    }

    /// Replaces the rows; whoever watches what is served is told if it is another.
    pub fn set(&self, rows: Arc<Rows>) {
        let served = served(&rows);
        *self.rows.write() = rows;
        self.served.send_if_modified(|held| {
            let differs = **held != *served;
            if differs {
                *held = served.into();
            }
            differs
        });
    }

    /// The present list.
    pub fn served(&self) -> Arc<[Served]> {
        self.served.borrow().clone()
    }

    /// The list as it changes.
    pub fn watch(&self) -> watch::Receiver<Arc<[Served]>> {
        self.served.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kept_resource_is_met_once() {
        let served = served(&api::catalog::Catalog::builtin());
        let named = |group: &str, plural: &str| {
            served.iter().filter(|row| row.resource.group == group && row.resource.resource == plural).count()
        };
        assert_eq!(named("networking.k8s.io", "ingressclasses"), 1);
        assert_eq!((named("networking.k8s.io", "ingresses"), named("extensions", "ingresses")), (1, 0));
        assert_eq!((named("", "events"), named("events.k8s.io", "events")), (1, 0));
        assert_eq!(named("authentication.k8s.io", "tokenreviews"), 0);
        // The components read and write these in the version in which they are stored.
        let kinds = [
            PODS,
            DEPLOYMENTS,
            ENDPOINT_SLICES,
            INGRESSES,
            LEASES,
            IP_ADDRESSES,
            RESOURCE_CLAIMS,
            RESOURCE_CLAIM_TEMPLATES,
            RESOURCE_SLICES,
            DEVICE_TAINT_RULES,
            STORAGE_VERSION_MIGRATIONS,
            CUSTOM_RESOURCE_DEFINITIONS,
            POD_CERTIFICATE_REQUESTS,
            CLUSTER_TRUST_BUNDLES,
        ];
        for kind in kinds {
            assert!(served.iter().any(|row| row.resource == kind.gvr()), "{}", kind.resource);
        }
    }
}
