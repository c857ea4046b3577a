//! `GET /configz`: what the node goes by, in the words of `kubelet.config.k8s.io/v1beta1`. Only what holds here is told:
//! a field that is absent is one that this node does not know. Source: upstream's `pkg/kubelet/server` and
//! `staging/src/k8s.io/kubelet/config/v1beta1`.

use std::time::Duration;

use serde_json::{Value, json};

use super::auth;
use crate::deps::Deps;
use crate::images::ImagesConfig;
use crate::registration::{LEASE_PERIOD, LEASE_SECONDS, STATUS_PERIOD, pressure};

/// Answers with the configuration.
pub(super) fn document(deps: &Deps, port: u16) -> Value {
    let config = &deps.config;
    let mut kubelet = fixed();
    let fields = json!({
        "port": port,
        "address": config.server.as_ref().map(|server| server.listen.ip().to_string()).unwrap_or_default(),
        "enableServer": config.server.is_some(),
        "maxPods": config.max_pods,
        "podPidsLimit": config.pod_pids_limit.unwrap_or(-1),
        "resolvConf": config.resolv_conf,
        "clusterDomain": deps.dns.domain(),
        "clusterDNS": deps.dns.nameservers(),
    });
    merge(&mut kubelet, fields);
    merge(&mut kubelet, images(&config.images));
    json!({ "kubeletconfig": kubelet })
}

/// What no setting changes.
fn fixed() -> Value {
    let memory = format!("{}Mi", pressure::MEMORY_LEAST >> 20);
    let [disk, inodes] =
        [pressure::DISK_LEAST_PERCENT, pressure::INODES_LEAST_PERCENT].map(|percent| format!("{percent}%"));
    json!({
        "kind": "KubeletConfiguration",
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "authentication": {
            "x509": {},
            "webhook": { "enabled": true, "cacheTTL": duration(auth::TOKEN_TTL) },
            "anonymous": { "enabled": false },
        },
        "authorization": {
            "mode": "Webhook",
            "webhook": {
                "cacheAuthorizedTTL": duration(auth::ALLOWED_TTL),
                "cacheUnauthorizedTTL": duration(auth::DENIED_TTL),
            },
        },
        "readOnlyPort": 0,
        "healthzPort": 0,
        "nodeStatusUpdateFrequency": duration(LEASE_PERIOD),
        "nodeStatusReportFrequency": duration(STATUS_PERIOD),
        "nodeLeaseDurationSeconds": LEASE_SECONDS,
        "cgroupsPerQOS": true,
        "cgroupDriver": "cgroupfs",
        "cpuManagerPolicy": "none",
        "memoryManagerPolicy": "None",
        "topologyManagerPolicy": "none",
        "enableDebuggingHandlers": true,
        "configMapAndSecretChangeDetectionStrategy": "Watch",
        "serializeImagePulls": false,
        "failSwapOn": false,
        "memorySwap": { "swapBehavior": "NoSwap" },
        "containerLogMaxSize": "10Mi",
        "containerLogMaxFiles": 5,
        "registerNode": true,
        "localStorageCapacityIsolation": true,
        // Conditions only: nobody is evicted for them yet.
        "evictionHard": { "memory.available": memory, "nodefs.available": disk, "nodefs.inodesFree": inodes },
        "evictionPressureTransitionPeriod": duration(pressure::TRANSITION),
    })
}

/// What is said of images.
fn images(config: &ImagesConfig) -> Value {
    let (policy, listed) = config.verification.shown();
    let mut shown = json!({
        "imageMinimumGCAge": duration(config.garbage.min_age),
        "imageMaximumGCAge": duration(config.garbage.max_age.unwrap_or_default()),
        "imageGCHighThresholdPercent": config.garbage.high_percent,
        "imageGCLowThresholdPercent": config.garbage.low_percent,
        "imagePullCredentialsVerificationPolicy": policy,
    });
    if let Some(max) = config.max_parallel_pulls {
        shown["maxParallelImagePulls"] = max.into();
    }
    if !listed.is_empty() {
        shown["preloadedImagesVerificationAllowlist"] = listed.into();
    }
    shown
}

fn merge(target: &mut Value, more: Value) {
    if let (Value::Object(target), Value::Object(more)) = (target, more) {
        target.extend(more);
    }
}

/// As Go writes a duration: `2m0s`, `10s`, `0s`.
fn duration(of: Duration) -> String {
    let (hours, minutes, seconds) = (of.as_secs() / 3600, of.as_secs() / 60 % 60, of.as_secs() % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_clients_of_go_read_them() {
        let shown = |seconds| duration(Duration::from_secs(seconds));
        assert_eq!([shown(0), shown(10), shown(120), shown(3661)], ["0s", "10s", "2m0s", "1h1m1s"]);
    }

    #[test]
    fn what_is_told_is_what_holds() {
        let shown = fixed();
        assert_eq!(shown["authentication"]["webhook"]["cacheTTL"], "2m0s");
        let images = images(&ImagesConfig::default());
        assert_eq!(images["imageGCHighThresholdPercent"], 85);
        assert_eq!(images["imagePullCredentialsVerificationPolicy"], "NeverVerifyPreloadedImages");
        assert_eq!(shown["nodeStatusReportFrequency"], "5m0s");
        assert_eq!(shown["evictionHard"]["memory.available"], "100Mi");
    }
}
