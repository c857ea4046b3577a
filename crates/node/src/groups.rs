//! The control groups above those of pods: all pods, and the classes of them that have a group of their own. They come and
//! go with the pods in them, so that each pod that comes sets them anew. Source: `pkg/kubelet/cm/qos_container_manager_linux.go`.

use std::collections::HashMap;

use api::resources::Side;
use parking_lot::Mutex;

use crate::deps::Deps;
use crate::pod::PodView;
use crate::pod::resources::{all_pods, class_groups, qos_class, sum};
use crate::registration::allocatable::for_pods;

/// The burstable pods that have a group, with what they ask for in thousandths of cores.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    asked: Mutex<HashMap<String, i64>>,
    /// Held from a sum until it is written: an older one would come after a newer one else, and stay.
    writing: tokio::sync::Mutex<()>,
}

impl Groups {
    /// A pod is there, or asks for something else now.
    fn enter(&self, pod: &PodView) {
        if qos_class(&pod.spec) == "Burstable" {
            let asked = sum(&pod.spec, Side::Requests).get("cpu").map_or(0, |cpu| cpu.milli_value());
            self.asked.lock().insert(pod.uid().to_owned(), asked);
        }
    }

    /// Whether it was there.
    fn leave(&self, uid: &str) -> bool {
        self.asked.lock().remove(uid).is_some()
    }

    fn milli_cpu(&self) -> i64 {
        self.asked.lock().values().fold(0, |sum, asked| sum.saturating_add(*asked))
    }

    /// Writes what there is then, when all that was to be written before is.
    async fn in_order<F: Future<Output = ()>>(&self, write: impl FnOnce(i64) -> F) {
        let _alone = self.writing.lock().await;
        write(self.milli_cpu()).await;
    }
}

/// Sets the groups for a pod that is there, or was resized.
pub(crate) async fn enter(deps: &Deps, pod: &PodView) {
    deps.groups.enter(pod);
    deps.groups.in_order(|milli_cpu| set(deps, milli_cpu)).await;
}

/// Sets the groups for those that are left.
pub(crate) async fn leave(deps: &Deps, uid: &str) {
    if deps.groups.leave(uid) {
        deps.groups.in_order(|milli_cpu| set(deps, milli_cpu)).await;
    }
}

/// Pods run without their class's share, too: what fails is told, and set with the next pod.
async fn set(deps: &Deps, burstable_milli_cpu: i64) {
    let all = for_pods(&deps.hardware, &deps.config.reserved);
    let all = all_pods(all.milli_cpu, all.memory_bytes);
    for (group, limits) in [all].into_iter().chain(class_groups(burstable_milli_cpu)) {
        if let Err(error) = deps.runtime.limit_group(&group, limits).await {
            tracing::warn!(group, %error, "the limits of a group of pods are not set");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, resources: serde_json::Value) -> PodView {
        let pod = json!({ "metadata": { "name": uid, "namespace": "d", "uid": uid },
            "spec": { "containers": [{ "name": "a", "resources": resources }] } });
        serde_json::from_value(pod).unwrap()
    }

    #[tokio::test]
    async fn the_newest_sum_is_written_last() {
        let (groups, written) = (Groups::default(), Mutex::new(Vec::new()));
        groups.enter(&pod("a", json!({ "requests": { "cpu": "250m" } })));
        let (go, gate) = tokio::sync::oneshot::channel::<()>();
        let written_down = &written;
        let slow = groups.in_order(|sum| async move {
            gate.await.unwrap();
            written_down.lock().push(sum);
        });
        let quick = async {
            groups.enter(&pod("b", json!({ "requests": { "cpu": "1" } })));
            groups
                .in_order(|sum| {
                    written.lock().push(sum);
                    std::future::ready(())
                })
                .await;
        };
        let open = async { go.send(()).unwrap() };
        tokio::join!(slow, quick, open);
        assert_eq!(*written.lock(), [250, 1250]);
    }

    #[test]
    fn burstable_pods_are_added_up_as_long_as_they_are_there() {
        let groups = Groups::default();
        groups.enter(&pod("a", json!({ "requests": { "cpu": "250m" } })));
        groups.enter(&pod("b", json!({ "requests": { "cpu": "1" } })));
        groups.enter(&pod("c", json!({ "limits": { "cpu": "1", "memory": "1Gi" } })));
        groups.enter(&pod("d", json!({})));
        assert_eq!(groups.milli_cpu(), 1250);
        groups.enter(&pod("b", json!({ "requests": { "cpu": "2" } })));
        assert_eq!(groups.milli_cpu(), 2250);
        assert!(groups.leave("b") && !groups.leave("b") && !groups.leave("c"));
        assert_eq!(groups.milli_cpu(), 250);
    }
}
