//! `GET /configz`: what the node goes by, in the words of `kubelet.config.k8s.io/v1beta1`. Only what holds here is told:
//! a field that is absent is one that this node does not know. Source: upstream's `pkg/kubelet/server` and
//! `staging/src/k8s.io/kubelet/config/v1beta1`.

use base::go_duration::show;
use serde_json::{Map, Value, json};

use crate::config::{Config, Reserved};
use crate::cpus::CpuSettings;
use crate::deps::{Deps, Hardware};
use crate::eviction::{Eviction, Signal, Threshold};
use crate::images::ImagesConfig;
use crate::kubelet_config::{ENFORCED, fixed};
use crate::shutdown;

/// Answers with the configuration.
pub(super) fn document(deps: &Deps, port: u16) -> Value {
    let mut kubelet = fixed();
    merge(&mut kubelet, settings(&deps.config));
    merge(&mut kubelet, reservations(&deps.config.reserved));
    merge(&mut kubelet, cpus(&deps.config.cpus));
    merge(&mut kubelet, shutdown::shown(&deps.config.shutdown));
    merge(&mut kubelet, evictions(&deps.config.eviction, &capacity(&deps.hardware)));
    let around = json!({
        "port": port,
        "clusterDomain": deps.dns.domain(),
        "clusterDNS": deps.dns.nameservers(),
    });
    merge(&mut kubelet, around);
    json!({ "kubeletconfig": kubelet })
}

/// What a node is started with.
fn settings(config: &Config) -> Value {
    let mut fields = json!({
        "address": config.server.as_ref().map(|server| server.listen.ip().to_string()).unwrap_or_default(),
        "enableServer": config.server.is_some(),
        "maxPods": config.max_pods,
        "podPidsLimit": config.pod_pids_limit.unwrap_or(-1),
        "podLogsDir": config.log_dir,
        "resolvConf": config.resolv_conf,
        "crashLoopBackOff": { "maxContainerRestartPeriod": show(config.crash_loop_max) },
    });
    if let Some(directory) = &config.static_pods {
        fields["staticPodPath"] = json!(directory);
    }
    merge(&mut fields, images(&config.images));
    fields
}

/// What is said of images.
fn images(config: &ImagesConfig) -> Value {
    let (policy, listed) = config.verification.shown();
    let mut shown = json!({
        "imageMinimumGCAge": show(config.garbage.min_age),
        "imageMaximumGCAge": show(config.garbage.max_age.unwrap_or_default()),
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

fn reservations(reserved: &Reserved) -> Value {
    json!({
        "systemReserved": api::resources::to_json(&reserved.system),
        "kubeReserved": api::resources::to_json(&reserved.kube),
        "enforceNodeAllocatable": ENFORCED,
    })
}

/// Who has CPUs for itself.
fn cpus(settings: &CpuSettings) -> Value {
    let mut shown = json!({ "cpuManagerPolicy": settings.policy.name() });
    let options = [
        ("full-pcpus-only", settings.full_cores_only),
        ("strict-cpu-reservation", settings.strict_reservation),
    ];
    let options = options.into_iter().filter(|(_, holds)| *holds);
    let options: Map<String, Value> = options.map(|(name, _)| (name.to_owned(), "true".into())).collect();
    if !options.is_empty() {
        shown["cpuManagerPolicyOptions"] = options.into();
    }
    if let Some(reserved) = &settings.reserved {
        shown["reservedSystemCPUs"] = reserved.to_string().into();
    }
    shown
}

/// How much there is of what thresholds are shares of, where a share is told as an amount.
fn capacity(hardware: &Hardware) -> impl Fn(Signal) -> u64 {
    let bytes = |bytes: i64| u64::try_from(bytes).unwrap_or(0);
    let (memory, disk) = (bytes(hardware.memory_bytes), bytes(hardware.disk_bytes));
    move |signal| match signal {
        Signal::Memory => memory,
        Signal::NodeDisk | Signal::ImageDisk => disk,
        _ => 0,
    }
}

fn evictions(eviction: &Eviction, capacity: &dyn Fn(Signal) -> u64) -> Value {
    let of = |is_soft: bool, told: &dyn Fn(&Threshold) -> Option<String>| -> Map<String, Value> {
        let which = eviction.thresholds.iter().filter(|known| known.grace.is_some() == is_soft);
        which.filter_map(|known| Some((known.signal.name().to_owned(), told(known)?.into()))).collect()
    };
    let least = |known: &Threshold| Some(known.least.shown(capacity(known.signal)));
    let reclaim = |known: &Threshold| Some(known.reclaim?.shown(capacity(known.signal)));
    let mut fields = json!({
        "evictionHard": of(false, &least),
        "evictionPressureTransitionPeriod": show(eviction.transition),
        "evictionMaxPodGracePeriod": eviction.grace_seconds_max,
    });
    let mut reclaims = of(false, &reclaim);
    reclaims.extend(of(true, &reclaim));
    let graces = of(true, &|known| known.grace.map(show));
    let more = [
        ("evictionSoft", of(true, &least)),
        ("evictionSoftGracePeriod", graces),
        ("evictionMinimumReclaim", reclaims),
    ];
    for (name, told) in more.into_iter().filter(|(_, told)| !told.is_empty()) {
        fields[name] = told.into();
    }
    fields
}

fn merge(target: &mut Value, more: Value) {
    if let (Value::Object(target), Value::Object(more)) = (target, more) {
        target.extend(more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_images_is_what_holds() {
        let images = images(&ImagesConfig::default());
        assert_eq!(images["imageGCHighThresholdPercent"], 85);
        assert_eq!(images["imagePullCredentialsVerificationPolicy"], "NeverVerifyPreloadedImages");
    }
}
