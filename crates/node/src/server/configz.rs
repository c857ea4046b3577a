//! `GET /configz`: what the node goes by, in the words of `kubelet.config.k8s.io/v1beta1`. Only what holds here is told:
//! a field that is absent is one that this node does not know. Source: upstream's `pkg/kubelet/server` and
//! `staging/src/k8s.io/kubelet/config/v1beta1`.

use serde_json::{Value, json};

use crate::config::Config;
use crate::deps::Deps;
use crate::images::ImagesConfig;
use crate::kubelet_config::{duration, fixed};

/// Answers with the configuration.
pub(super) fn document(deps: &Deps, port: u16) -> Value {
    let mut kubelet = fixed();
    merge(&mut kubelet, settings(&deps.config));
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
        "crashLoopBackOff": { "maxContainerRestartPeriod": duration(config.crash_loop_max) },
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
