//! A file with the settings of a node, in the words of upstream's kubelet: `KubeletConfiguration` of
//! `kubelet.config.k8s.io/v1beta1`. What has an effect here is taken. What upstream knows and this node does in its own way
//! is refused by name, unless it says what holds here anyway or nothing at all; what nobody knows is refused as well.
//! Source: `staging/src/k8s.io/kubelet/config/v1beta1/types.go`, `pkg/kubelet/apis/config/validation`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use api::quantity::Quantity;
use api::resources::ResourceList;
use base::go_duration::{parse_unsigned, show};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::config::Reserved;
use crate::cpus::{CpuPolicy, CpuSet, CpuSettings};
use crate::eviction::{Eviction, Texts, Words};
use crate::registration::object::IMAGES_MAX;
use crate::registration::{LEASE_PERIOD, LEASE_SECONDS, STATUS_PERIOD};
use crate::server::auth;
use crate::shutdown::{self, ShutdownSettings};

const VERSION: &str = "kubelet.config.k8s.io/v1beta1";
const KIND: &str = "KubeletConfiguration";
/// Source: `MaxCrashLoopBackOff` in `pkg/kubelet/apis/config`.
const RESTART_PERIOD_MAX: Duration = Duration::from_secs(300);

/// Fields that have an effect.
const TAKEN: [&str; 27] = [
    "maxPods",
    "podPidsLimit",
    "staticPodPath",
    "crashLoopBackOff",
    "imageMinimumGCAge",
    "imageMaximumGCAge",
    "imageGCHighThresholdPercent",
    "imageGCLowThresholdPercent",
    "maxParallelImagePulls",
    "imagePullCredentialsVerificationPolicy",
    "preloadedImagesVerificationAllowlist",
    "systemReserved",
    "kubeReserved",
    "enforceNodeAllocatable",
    "evictionHard",
    "evictionSoft",
    "evictionSoftGracePeriod",
    "evictionMinimumReclaim",
    "evictionPressureTransitionPeriod",
    "evictionMaxPodGracePeriod",
    "mergeDefaultEvictionSettings",
    "cpuManagerPolicy",
    "cpuManagerPolicyOptions",
    "reservedSystemCPUs",
    "shutdownGracePeriod",
    "shutdownGracePeriodByPodPriority",
    "shutdownGracePeriodCriticalPods",
];
/// What of the allocatable is enforced, in the words of `enforceNodeAllocatable`: the group of all pods has its limits.
pub(crate) const ENFORCED: [&str; 1] = ["pods"];

/// Fields that upstream knows beside [`TAKEN`] and those that [`fixed`] tells of.
const WITHOUT_EFFECT: [&str; 70] = [
    "address",
    "allowedUnsafeSysctls",
    "cgroupRoot",
    "clusterDNS",
    "clusterDomain",
    "containerLogMaxWorkers",
    "containerLogMonitorInterval",
    "containerRuntimeEndpoint",
    "contentType",
    "cpuManagerReconcilePeriod",
    "defaultPodSysctls",
    "enableContentionProfiling",
    "enableDebugFlagsHandler",
    "enableProfilingHandler",
    "enableServer",
    "enableSystemLogQuery",
    "eventBurst",
    "eventRecordQPS",
    "featureGates",
    "fileCheckFrequency",
    "hairpinMode",
    "healthzBindAddress",
    "httpCheckFrequency",
    "imageServiceEndpoint",
    "iptablesDropBit",
    "iptablesMasqueradeBit",
    "kernelMemcgNotification",
    "kubeAPIBurst",
    "kubeAPIQPS",
    "kubeReservedCgroup",
    "kubeletCgroups",
    "logging",
    "makeIPTablesUtilChains",
    "maxOpenFiles",
    "memoryReservationPolicy",
    "memoryThrottlingFactor",
    "oomScoreAdj",
    "podCIDR",
    "podLogsDir",
    "podsPerCore",
    "port",
    "protectKernelDefaults",
    "providerID",
    "qosReserved",
    "registerWithTaints",
    "registryBurst",
    "registryPullQPS",
    "reservedMemory",
    "resolvConf",
    "rotateCertificates",
    "runOnce",
    "runtimeRequestTimeout",
    "serverTLSBootstrap",
    "showHiddenMetricsForVersion",
    "singleProcessOOMKill",
    "staticPodURL",
    "staticPodURLHeader",
    "streamingConnectionIdleTimeout",
    "syncFrequency",
    "systemCgroups",
    "systemReservedCgroup",
    "tlsCertFile",
    "tlsCipherSuites",
    "tlsCurvePreferences",
    "tlsMinVersion",
    "tlsPrivateKeyFile",
    "topologyManagerPolicyOptions",
    "topologyManagerScope",
    "tracing",
    "userNamespaces",
];

/// What a file says; `None` where it leaves the node its default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KubeletConfiguration {
    /// Pods that the node takes.
    pub max_pods: Option<u32>,
    /// Processes per pod; not above 0: no limit.
    pub pod_pids_limit: Option<i64>,
    /// Directory of the manifests of static pods, absolute.
    pub static_pod_path: Option<PathBuf>,
    /// The longest that a container which ends again and again waits for its restart.
    pub max_container_restart_period: Option<Duration>,
    /// What it says of images.
    pub images: ImageFields,
    /// What of the host is not the pods'.
    pub reserved: Reserved,
    /// When pods have to go.
    pub eviction: Eviction,
    /// Who has CPUs for itself.
    pub cpus: CpuSettings,
    /// How pods end before the machine goes down.
    pub shutdown: ShutdownSettings,
    /// SHA-256 of the file in hexadecimal, by which a change of it is seen; empty: there is none.
    pub digest: String,
}

/// What a file says of images, as it stands there: who takes it checks it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageFields {
    /// Use of the disk in percent at which unused images go, and down to which.
    pub gc_thresholds: [Option<u8>; 2],
    /// The age below which none goes.
    pub minimum_gc_age: Option<String>,
    /// The age beyond which unused ones go.
    pub maximum_gc_age: Option<String>,
    /// Pulls at a time.
    pub max_parallel_pulls: Option<u32>,
    /// Who has to show the credentials that an image was pulled with, …
    pub verification_policy: Option<String>,
    /// … and of which images nobody has.
    pub verification_allowlist: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct CrashLoopBackOff {
    max_container_restart_period: Option<String>,
}

impl KubeletConfiguration {
    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read, is no such configuration, or has a field that is unknown or without effect here.
    pub fn read(path: &Path) -> Result<Self, String> {
        let told = |error: String| format!("node configuration {}: {error}", path.display());
        let text = std::fs::read(path).map_err(|error| told(error.to_string()))?;
        let parsed = Self::parse(&text, path.parent().unwrap_or(Path::new("/"))).map_err(told)?;
        Ok(Self { digest: format!("{:x}", Sha256::digest(&text)), ..parsed })
    }

    /// Takes a text apart; paths in it are relative to `directory`, as upstream's `kubeletconfig.KubeletConfigurationPathRefs`.
    fn parse(text: &[u8], directory: &Path) -> Result<Self, String> {
        let fields = fields_of(text)?;
        let fixed = fixed();
        for (name, value) in &fields {
            check_field(name, value, &fixed)?;
        }
        let max_pods: Option<i64> = taken(&fields, "maxPods")?;
        let max_pods = max_pods.filter(|pods| *pods != 0).map(u32::try_from).transpose();
        let period = taken::<CrashLoopBackOff>(&fields, "crashLoopBackOff")?.unwrap_or_default();
        let cpus = cpus(&fields)?;
        let static_pods: Option<PathBuf> = taken(&fields, "staticPodPath")?;
        Ok(Self {
            max_pods: max_pods.map_err(|_| "maxPods: must not be a negative number")?,
            pod_pids_limit: taken(&fields, "podPidsLimit")?,
            static_pod_path: static_pods
                .filter(|path| !path.as_os_str().is_empty())
                .map(|path| directory.join(path)),
            max_container_restart_period: restart_period(period.max_container_restart_period.as_deref())?,
            images: ImageFields::read(&fields)?,
            reserved: without_named(reserved(&fields)?, cpus.reserved.as_ref()),
            cpus,
            shutdown: shutdown::from_fields(&fields)?,
            eviction: eviction(&fields)?,
            digest: String::new(),
        })
    }
}

impl ImageFields {
    /// As everywhere in such a file, nothing and 0 stand for the default.
    fn read(fields: &Map<String, Value>) -> Result<Self, String> {
        let text = |name: &str| -> Result<_, String> {
            Ok(taken::<String>(fields, name)?.filter(|text| !is_empty(&json!(text))))
        };
        let percent = |name: &str| taken::<u8>(fields, name);
        Ok(Self {
            gc_thresholds: [percent("imageGCHighThresholdPercent")?, percent("imageGCLowThresholdPercent")?],
            minimum_gc_age: text("imageMinimumGCAge")?,
            maximum_gc_age: text("imageMaximumGCAge")?,
            max_parallel_pulls: taken::<u32>(fields, "maxParallelImagePulls")?.filter(|pulls| *pulls != 0),
            verification_policy: text("imagePullCredentialsVerificationPolicy")?,
            verification_allowlist: taken(fields, "preloadedImagesVerificationAllowlist")?
                .unwrap_or_default(),
        })
    }
}

/// The fields of a document of the right kind that say something.
fn fields_of(text: &[u8]) -> Result<Map<String, Value>, String> {
    let (json, repeated) = api::decode::yaml_to_json(text)?;
    if let Some(repeated) = repeated {
        return Err(repeated);
    }
    let mut fields: Map<String, Value> = serde_json::from_slice(&json).map_err(|error| error.to_string())?;
    let mut head = |name: &str| fields.remove(name).and_then(|value| value.as_str().map(str::to_owned));
    let (version, kind) = (head("apiVersion"), head("kind"));
    if (version.as_deref(), kind.as_deref()) != (Some(VERSION), Some(KIND)) {
        return Err(format!("not a {KIND} of {VERSION}"));
    }
    fields.retain(|_, value| !value.is_null());
    Ok(fields)
}

/// A field of those that have an effect.
pub(crate) fn taken<T: DeserializeOwned>(
    fields: &Map<String, Value>,
    name: &str,
) -> Result<Option<T>, String> {
    let value = fields.get(name).map(T::deserialize).transpose();
    value.map_err(|error| format!("{name}: {error}"))
}

/// Refuses a field that is unknown, or asks for what does not hold here.
fn check_field(name: &str, value: &Value, fixed: &Value) -> Result<(), String> {
    if TAKEN.contains(&name) {
        return Ok(());
    }
    match fixed.get(name) {
        Some(holds) if says(value, holds) => Ok(()),
        Some(holds) => Err(format!(
            "{name}: {value} has no effect on this node, which goes by {holds}; remove the field"
        )),
        None if !WITHOUT_EFFECT.contains(&name) => Err(format!("unknown field \"{name}\"")),
        None if is_empty(value) => Ok(()),
        None => Err(format!("{name}: this node does nothing with it; remove the field")),
    }
}

/// Whether a value says what holds, or a part of that. Durations that are 0 stand for the default.
fn says(value: &Value, holds: &Value) -> bool {
    match (value, holds) {
        (Value::Null, _) => true,
        (Value::Object(value), Value::Object(holds)) => {
            value.iter().all(|(name, value)| match holds.get(name) {
                Some(holds) => says(value, holds),
                None => is_empty(value),
            })
        }
        (Value::String(value), Value::String(holds)) => {
            let (of_value, of_other) = (parse_unsigned(value), parse_unsigned(holds));
            value == holds
                || value.is_empty()
                || of_value == Some(Duration::ZERO)
                || of_value.is_some() && of_value == of_other
        }
        _ => value == holds,
    }
}

/// Whether a value is the one that Go writes for nothing at all.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty() || parse_unsigned(text) == Some(Duration::ZERO),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
    }
}

fn restart_period(text: Option<&str>) -> Result<Option<Duration>, String> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    let period =
        parse_unsigned(text).filter(|period| (Duration::from_secs(1)..=RESTART_PERIOD_MAX).contains(period));
    let wrong = || format!("crashLoopBackOff.maxContainerRestartPeriod: {text:?} is not between 1s and 5m0s");
    Ok(Some(period.ok_or_else(wrong)?))
}

/// Amounts that are reserved. Source: `parseResourceList` in `cmd/kubelet/app`.
fn reserved(fields: &Map<String, Value>) -> Result<Reserved, String> {
    let enforced: Option<Vec<String>> = taken(fields, "enforceNodeAllocatable")?;
    if enforced.as_ref().is_some_and(Vec::is_empty) {
        return Err(format!(
            "enforceNodeAllocatable: [] has no effect on this node, which enforces {ENFORCED:?}; leave it out"
        ));
    }
    let enforced = enforced.unwrap_or_default();
    if let Some(other) = enforced.iter().find(|name| !ENFORCED.contains(&name.as_str())) {
        return Err(format!(
            "enforceNodeAllocatable: {other:?} has no effect on this node, which enforces {ENFORCED:?}; leave it out"
        ));
    }
    let list = |field: &str| -> Result<ResourceList, String> {
        let texts: Texts = taken(fields, field)?.unwrap_or_default();
        let amount = |(name, text): (String, String)| {
            if name == "pid" {
                return Err(format!(
                    "{field}: \"pid\" has no effect on this node, which reserves no process ids; leave it out"
                ));
            }
            if !matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
                return Err(format!("{field}: cannot reserve {name:?} resource"));
            }
            let amount: Quantity = text.parse().map_err(|error| format!("{field}: {text:?}: {error}"))?;
            match amount.is_negative() {
                true => Err(format!("{field}: resource quantity for {name:?} cannot be negative: {text}")),
                false => Ok((name, amount)),
            }
        };
        texts.into_iter().map(amount).collect()
    };
    Ok(Reserved { system: list("systemReserved")?, kube: list("kubeReserved")? })
}

/// Who has CPUs for itself. Source: `pkg/kubelet/cm/cpumanager/policy_options.go`, `getReservedCPUs` in `cmd/kubelet/app`.
fn cpus(fields: &Map<String, Value>) -> Result<CpuSettings, String> {
    let policy: Option<String> = taken(fields, "cpuManagerPolicy")?;
    let policy = match policy.as_deref() {
        None | Some("" | "none") => CpuPolicy::None,
        Some("static") => CpuPolicy::Static,
        Some(other) => return Err(format!("cpuManagerPolicy: unknown policy: {other:?}")),
    };
    let named: Option<String> = taken(fields, "reservedSystemCPUs")?;
    let named: Option<CpuSet> = named
        .filter(|text| !text.trim().is_empty())
        .map(|text| text.parse())
        .transpose()
        .map_err(|error| format!("reservedSystemCPUs: unable to parse reserved CPU list: {error}"))?;
    let mut settings = CpuSettings { policy, reserved: named, ..CpuSettings::default() };
    let options: Texts = taken(fields, "cpuManagerPolicyOptions")?.unwrap_or_default();
    if policy == CpuPolicy::None && !options.is_empty() {
        return Err(format!(
            "cpuManagerPolicyOptions: None policy: received unsupported options={options:?}"
        ));
    }
    for (name, text) in options {
        let wanted = match text.as_str() {
            "true" | "True" | "TRUE" | "t" | "T" | "1" => true,
            "false" | "False" | "FALSE" | "f" | "F" | "0" => false,
            _ => return Err(format!("cpuManagerPolicyOptions: bad value for option {name:?}: {text:?}")),
        };
        match name.as_str() {
            "full-pcpus-only" => settings.full_cores_only = wanted,
            "strict-cpu-reservation" => settings.strict_reservation = wanted,
            "align-by-socket"
            | "distribute-cpus-across-cores"
            | "distribute-cpus-across-numa"
            | "prefer-align-cpus-by-uncorecache" => {
                if wanted {
                    return Err(format!(
                        "cpuManagerPolicyOptions: {name:?} has no effect on this node; leave it out"
                    ));
                }
            }
            _ => {
                return Err(format!("cpuManagerPolicyOptions: unknown CPU Manager Policy option: {name:?}"));
            }
        }
    }
    Ok(settings)
}

/// Where CPUs are reserved by their numbers, so many are, whatever else is said.
fn without_named(mut reserved: Reserved, named: Option<&CpuSet>) -> Reserved {
    if let Some(named) = named {
        let count = i64::try_from(named.len()).unwrap_or(i64::MAX);
        reserved.kube.remove("cpu");
        reserved.system.insert("cpu".to_owned(), Quantity::from_milli(count.saturating_mul(1000)));
    }
    reserved
}

fn eviction(fields: &Map<String, Value>) -> Result<Eviction, String> {
    let graces: Texts = taken(fields, "evictionSoftGracePeriod")?.unwrap_or_default();
    let grace = |(name, text): (String, String)| match parse_unsigned(&text) {
        Some(grace) => Ok((name, grace)),
        None => Err(format!("evictionSoftGracePeriod: {text:?} is no duration")),
    };
    let words = Words {
        hard: taken(fields, "evictionHard")?,
        merge_defaults: taken(fields, "mergeDefaultEvictionSettings")?.unwrap_or(false),
        soft: taken(fields, "evictionSoft")?.unwrap_or_default(),
        soft_grace: graces.into_iter().map(grace).collect::<Result<_, _>>()?,
        reclaim: taken(fields, "evictionMinimumReclaim")?.unwrap_or_default(),
    };
    let default = Eviction::default();
    let transition: Option<String> = taken(fields, "evictionPressureTransitionPeriod")?;
    let transition = match transition.as_deref() {
        None | Some("") => default.transition,
        Some(text) => match parse_unsigned(text) {
            // As upstream's default for what says nothing.
            Some(Duration::ZERO) => default.transition,
            Some(period) => period,
            None => return Err(format!("evictionPressureTransitionPeriod: {text:?} is no duration")),
        },
    };
    let grace_seconds_max: i64 = taken(fields, "evictionMaxPodGracePeriod")?.unwrap_or(0);
    if grace_seconds_max < 0 {
        return Err("evictionMaxPodGracePeriod: must not be a negative number".to_owned());
    }
    Ok(Eviction { thresholds: words.thresholds()?, transition, grace_seconds_max })
}

/// What no setting changes, as `/configz` tells it.
pub(crate) fn fixed() -> Value {
    json!({
        "kind": KIND,
        "apiVersion": VERSION,
        "authentication": {
            "x509": {},
            "webhook": { "enabled": true, "cacheTTL": show(auth::TOKEN_TTL) },
            "anonymous": { "enabled": false },
        },
        "authorization": {
            "mode": "Webhook",
            "webhook": {
                "cacheAuthorizedTTL": show(auth::ALLOWED_TTL),
                "cacheUnauthorizedTTL": show(auth::DENIED_TTL),
            },
        },
        "readOnlyPort": 0,
        "healthzPort": 0,
        "nodeStatusUpdateFrequency": show(LEASE_PERIOD),
        "nodeStatusReportFrequency": show(STATUS_PERIOD),
        "nodeLeaseDurationSeconds": LEASE_SECONDS,
        "nodeStatusMaxImages": IMAGES_MAX,
        "volumeStatsAggPeriod": "1m0s",
        "cgroupsPerQOS": true,
        "cgroupDriver": "cgroupfs",
        "memoryManagerPolicy": "None",
        "topologyManagerPolicy": "none",
        "cpuCFSQuota": true,
        "cpuCFSQuotaPeriod": "100ms",
        "enableDebuggingHandlers": true,
        "enableSystemLogHandler": true,
        "enableControllerAttachDetach": true,
        "configMapAndSecretChangeDetectionStrategy": "Watch",
        "serializeImagePulls": false,
        "failSwapOn": false,
        "failCgroupV1": false,
        "memorySwap": { "swapBehavior": "NoSwap" },
        "seccompDefault": true,
        "containerLogMaxSize": format!("{}Mi", engine_api::logs::FILE_BYTES_MAX >> 20),
        "containerLogMaxFiles": engine_api::logs::FILES_MAX,
        "registerNode": true,
        "localStorageCapacityIsolation": true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(fields: &str) -> Result<KubeletConfiguration, String> {
        let text = format!("apiVersion: {VERSION}\nkind: {KIND}\n{fields}");
        KubeletConfiguration::parse(text.as_bytes(), Path::new("/etc/node"))
    }

    #[test]
    fn what_has_an_effect_is_taken() {
        let file = "maxPods: 200\npodPidsLimit: 1000\nstaticPodPath: manifests\n\
                    crashLoopBackOff: {maxContainerRestartPeriod: 1m}\nimageGCHighThresholdPercent: 90\n\
                    imageMaximumGCAge: 24h\nimageMinimumGCAge: 0s\n";
        let wanted = KubeletConfiguration {
            max_pods: Some(200),
            pod_pids_limit: Some(1000),
            static_pod_path: Some("/etc/node/manifests".into()),
            max_container_restart_period: Some(Duration::from_secs(60)),
            images: ImageFields {
                gc_thresholds: [Some(90), None],
                maximum_gc_age: Some("24h".to_owned()),
                ..ImageFields::default()
            },
            ..KubeletConfiguration::default()
        };
        assert_eq!(parse(file), Ok(wanted));
        assert_eq!(
            parse("maxPods: 0\nstaticPodPath: \"\"\npodPidsLimit: null\n"),
            Ok(KubeletConfiguration::default())
        );
    }

    #[test]
    fn reservations_and_evictions_are_taken() {
        let file = "systemReserved: {cpu: 500m, memory: 1Gi}\nkubeReserved: {ephemeral-storage: 2Gi}\n\
                    enforceNodeAllocatable: [pods]\nevictionHard: {memory.available: 200Mi}\n\
                    evictionSoft: {nodefs.available: 20%}\nevictionSoftGracePeriod: {nodefs.available: 1m30s}\n\
                    evictionPressureTransitionPeriod: 30s\nevictionMaxPodGracePeriod: 60\n";
        let config = parse(file).unwrap();
        assert_eq!((config.reserved.milli_cpu(), config.reserved.bytes("memory")), (500, 1 << 30));
        assert_eq!(config.reserved.bytes("ephemeral-storage"), 2 << 30);
        let Eviction { thresholds, transition, grace_seconds_max } = config.eviction;
        assert_eq!((transition, grace_seconds_max), (Duration::from_secs(30), 60));
        let graces: Vec<_> = thresholds.iter().map(|known| (known.signal.name(), known.grace)).collect();
        assert_eq!(graces, [("memory.available", None), ("nodefs.available", Some(Duration::from_secs(90)))]);
        for (file, told) in [
            ("systemReserved: {pods: \"1\"}\n", "systemReserved: cannot reserve \"pods\" resource"),
            (
                "enforceNodeAllocatable: [pods, system-reserved]\n",
                "enforceNodeAllocatable: \"system-reserved\" has no effect on this node, which enforces [\"pods\"]; \
                 leave it out",
            ),
            (
                "kubeReserved: {pid: \"1000\"}\n",
                "kubeReserved: \"pid\" has no effect on this node, which reserves no process ids; leave it out",
            ),
            (
                "enforceNodeAllocatable: []\n",
                "enforceNodeAllocatable: [] has no effect on this node, which enforces [\"pods\"]; leave it out",
            ),
            (
                "evictionHard: {containerfs.available: 1Gi}\n",
                "evictionHard: containerfs.available has no effect on this node, whose containers write where nodefs \
                 is; leave it out",
            ),
            ("evictionHard: {disk: 1Gi}\n", "evictionHard: unsupported eviction signal disk"),
        ] {
            assert_eq!(parse(file).unwrap_err(), told);
        }
    }

    #[test]
    fn cpus_of_their_own_are_taken() {
        let file = "cpuManagerPolicy: static\nreservedSystemCPUs: 0-1,4\nkubeReserved: {cpu: 100m, memory: 1Gi}\n\
                    cpuManagerPolicyOptions: {full-pcpus-only: \"true\", align-by-socket: \"false\"}\n";
        let config = parse(file).unwrap();
        let reserved = Some("0-1,4".parse().unwrap());
        let wanted = CpuSettings {
            policy: CpuPolicy::Static,
            full_cores_only: true,
            strict_reservation: false,
            reserved,
        };
        assert_eq!(config.cpus, wanted);
        assert_eq!((config.reserved.milli_cpu(), config.reserved.bytes("memory")), (3000, 1 << 30));
        assert_eq!(
            parse("cpuManagerPolicy: none\nreservedSystemCPUs: \"\"\n"),
            Ok(KubeletConfiguration::default())
        );
        let with =
            |option: &str| format!("cpuManagerPolicy: static\ncpuManagerPolicyOptions: {{{option}}}\n");
        for (file, told) in [
            ("cpuManagerPolicy: dynamic\n".to_owned(), "cpuManagerPolicy: unknown policy: \"dynamic\""),
            (
                "reservedSystemCPUs: 0-x\n".to_owned(),
                "reservedSystemCPUs: unable to parse reserved CPU list: \"x\" is no number of a CPU",
            ),
            (
                "cpuManagerPolicyOptions: {full-pcpus-only: \"true\"}\n".to_owned(),
                "cpuManagerPolicyOptions: None policy: received unsupported options={\"full-pcpus-only\": \"true\"}",
            ),
            (
                with("distribute-cpus-across-numa: \"true\""),
                "cpuManagerPolicyOptions: \"distribute-cpus-across-numa\" has no effect on this node; leave it out",
            ),
            (with("x: \"true\""), "cpuManagerPolicyOptions: unknown CPU Manager Policy option: \"x\""),
            (
                with("full-pcpus-only: \"yes\""),
                "cpuManagerPolicyOptions: bad value for option \"full-pcpus-only\": \"yes\"",
            ),
        ] {
            assert_eq!(parse(&file), Err(told.to_owned()));
        }
    }

    /// A file as upstream's installer writes it, but for what this host is told otherwise.
    #[test]
    fn what_holds_anyway_and_what_says_nothing_may_stand_there() {
        let file = "cgroupDriver: cgroupfs\nnodeStatusUpdateFrequency: 0s\nlogging: {}\n\
                    authentication: {anonymous: {enabled: false}, webhook: {cacheTTL: 0s, enabled: true}}\n\
                    authorization: {mode: Webhook, webhook: {cacheAuthorizedTTL: 0s}}\nhealthzPort: 0\n\
                    memorySwap: {}\nshutdownGracePeriod: 0s\nclusterDNS: []\ncontainerRuntimeEndpoint: \"\"\n";
        assert_eq!(parse(file), Ok(KubeletConfiguration::default()));
    }

    #[test]
    fn nothing_is_ignored_without_a_word() {
        for (file, told) in [
            ("maxPodz: 1\n", "unknown field \"maxPodz\""),
            ("maxPods: many\n", "maxPods: invalid type: string \"many\", expected i64"),
            ("maxPods: -1\n", "maxPods: must not be a negative number"),
            ("runOnce: true\n", "runOnce: this node does nothing with it; remove the field"),
            (
                "memoryManagerPolicy: Static\n",
                "memoryManagerPolicy: \"Static\" has no effect on this node, which goes by \"None\"; remove the field",
            ),
            (
                "memorySwap: {swapBehavior: LimitedSwap}\n",
                "memorySwap: {\"swapBehavior\":\"LimitedSwap\"} has no effect on this node, which goes by \
                 {\"swapBehavior\":\"NoSwap\"}; remove the field",
            ),
            (
                "crashLoopBackOff: {maxContainerRestartPeriod: 6m}\n",
                "crashLoopBackOff.maxContainerRestartPeriod: \"6m\" is not between 1s and 5m0s",
            ),
        ] {
            assert_eq!(parse(file), Err(told.to_owned()), "{file}");
        }
        assert!(parse("crashLoopBackOff: {period: 6m}\n").unwrap_err().contains("unknown field `period`"));
        assert!(parse("maxPods: 1\nmaxPods: 2\n").is_err());
        let other = KubeletConfiguration::parse(b"kind: KubeletConfiguration\n", Path::new("/"));
        assert_eq!(other, Err("not a KubeletConfiguration of kubelet.config.k8s.io/v1beta1".to_owned()));
    }

    #[test]
    fn what_is_told_is_what_holds() {
        let shown = fixed();
        assert_eq!(shown["authentication"]["webhook"]["cacheTTL"], "2m0s");
        assert_eq!(shown["nodeStatusReportFrequency"], "5m0s");
        assert_eq!(
            (&shown["containerLogMaxSize"], &shown["containerLogMaxFiles"]),
            (&json!("10Mi"), &json!(5))
        );
        // A field is either fixed, or taken, or without effect.
        for name in TAKEN.iter().chain(&WITHOUT_EFFECT) {
            assert!(shown.get(name).is_none(), "{name}");
        }
    }
}
