//! A pod's cells: readiness, the one word for its state, and restarts.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{at, human_duration, items, number, text};

/// Restartable init containers (sidecars) by name.
fn sidecars(object: &Value) -> Vec<&str> {
    let containers = items(object, &["spec", "initContainers"]).iter();
    containers.filter(|c| text(c, &["restartPolicy"]) == "Always").map(|c| text(c, &["name"])).collect()
}

/// `ready/all`, sidecars included.
pub(super) fn ready(object: &Value, _: Timestamp) -> Value {
    let sidecars = sidecars(object);
    let is_ready = |status: &&Value| at(status, &["ready"]) == true;
    let main = items(object, &["status", "containerStatuses"]).iter().filter(is_ready).count();
    let beside = items(object, &["status", "initContainerStatuses"]).iter();
    let beside = beside.filter(|status| sidecars.contains(&text(status, &["name"]))).filter(is_ready).count();
    let all = items(object, &["spec", "containers"]).len() + sidecars.len();
    json!(format!("{}/{all}", main + beside))
}

/// The word that people look at first.
pub(super) fn status(object: &Value, _: Timestamp) -> Value {
    let deleting = !at(object, &["metadata", "deletionTimestamp"]).is_null();
    let base = match text(object, &["status", "reason"]) {
        "" => text(object, &["status", "phase"]),
        reason => reason,
    };
    let gated = items(object, &["status", "conditions"]).iter().any(|condition| {
        text(condition, &["type"]) == "PodScheduled" && text(condition, &["reason"]) == "SchedulingGated"
    });
    let base = if gated { "SchedulingGated" } else { base };
    let word = match initializing(object) {
        Some(word) => word,
        None => running(object, base),
    };
    if !deleting {
        return json!(word);
    }
    match text(object, &["status", "reason"]) {
        "NodeLost" => json!("Unknown"),
        _ if matches!(text(object, &["status", "phase"]), "Succeeded" | "Failed") => json!(word),
        _ => json!("Terminating"),
    }
}

/// `Init:…` while init containers have work to do.
fn initializing(object: &Value) -> Option<String> {
    let sidecars = sidecars(object);
    let statuses = items(object, &["status", "initContainerStatuses"]);
    let all = items(object, &["spec", "initContainers"]).len();
    for (index, status) in statuses.iter().enumerate() {
        let terminated = at(status, &["state", "terminated"]);
        let is_sidecar = sidecars.contains(&text(status, &["name"]));
        if (!terminated.is_null() && number(terminated, &["exitCode"]) == 0)
            || (is_sidecar && at(status, &["started"]) == true)
        {
            continue;
        }
        let waiting = text(status, &["state", "waiting", "reason"]);
        return Some(match (terminated.is_null(), waiting) {
            (false, _) => format!("Init:{}", ended(terminated)),
            (true, "" | "PodInitializing") => format!("Init:{index}/{all}"),
            (true, reason) => format!("Init:{reason}"),
        });
    }
    None
}

fn ended(terminated: &Value) -> String {
    match (text(terminated, &["reason"]), number(terminated, &["signal"])) {
        ("", 0) => format!("ExitCode:{}", number(terminated, &["exitCode"])),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

/// The reason of the first container that has one; `Running` where a container runs beside completed ones.
fn running(object: &Value, base: &str) -> String {
    let mut word = base.to_owned();
    let mut has_running = false;
    for status in items(object, &["status", "containerStatuses"]).iter().rev() {
        let terminated = at(status, &["state", "terminated"]);
        let waiting = text(status, &["state", "waiting", "reason"]);
        if !waiting.is_empty() {
            waiting.clone_into(&mut word);
        } else if !terminated.is_null() {
            word = ended(terminated);
        } else if at(status, &["ready"]) == true && !at(status, &["state", "running"]).is_null() {
            has_running = true;
        }
    }
    if word == "Completed" && has_running {
        let ready = items(object, &["status", "conditions"])
            .iter()
            .any(|condition| text(condition, &["type"]) == "Ready" && text(condition, &["status"]) == "True");
        word = if ready { "Running".into() } else { "NotReady".into() };
    }
    word
}

/// How often containers were started again, and when last.
pub(super) fn restarts(object: &Value, now: Timestamp) -> Value {
    let sidecars = sidecars(object);
    let initializing = initializing(object).is_some();
    let init = items(object, &["status", "initContainerStatuses"]).iter();
    let init = init.filter(|status| initializing || sidecars.contains(&text(status, &["name"])));
    let main = items(object, &["status", "containerStatuses"]).iter().filter(|_| !initializing);
    let (mut count, mut last) = (0, None);
    for status in init.chain(main) {
        count += number(status, &["restartCount"]);
        let finished = text(status, &["lastState", "terminated", "finishedAt"]).parse::<Timestamp>().ok();
        last = last.max(finished);
    }
    match last {
        Some(at) if count > 0 => {
            json!(format!("{count} ({} ago)", human_duration(now.duration_since(at).as_secs())))
        }
        _ => json!(count.to_string()),
    }
}

/// `met/all` of the readiness gates.
pub(super) fn readiness_gates(object: &Value, _: Timestamp) -> Value {
    let gates = items(object, &["spec", "readinessGates"]);
    if gates.is_empty() {
        return json!("<none>");
    }
    let conditions = items(object, &["status", "conditions"]);
    let met = gates.iter().filter(|gate| {
        conditions.iter().any(|condition| {
            text(condition, &["type"]) == text(gate, &["conditionType"])
                && text(condition, &["status"]) == "True"
        })
    });
    json!(format!("{}/{}", met.count(), gates.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(object: &Value) -> Value {
        status(object, Timestamp::UNIX_EPOCH)
    }

    fn pod(phase: &str, statuses: Value) -> Value {
        json!({"metadata": {}, "spec": {"containers": [{"name": "a"}, {"name": "b"}]}, "status": {"phase": phase, "containerStatuses": statuses}})
    }

    #[test]
    fn one_word_tells_the_state() {
        let running = json!({"ready": true, "state": {"running": {}}});
        let crash = json!({"ready": false, "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"finishedAt": "1970-01-01T00:00:00Z"}}});
        let done = json!({"ready": false, "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}});
        assert_eq!(word(&pod("Pending", json!([]))), "Pending");
        assert_eq!(word(&pod("Running", json!([running, crash]))), "CrashLoopBackOff");
        assert_eq!(word(&pod("Running", json!([running, done]))), "NotReady");
        assert_eq!(word(&pod("Succeeded", json!([done]))), "Completed");
        let object = pod("Running", json!([running, crash]));
        assert_eq!(ready(&object, Timestamp::UNIX_EPOCH), "1/2");
        let later = Timestamp::UNIX_EPOCH + std::time::Duration::from_secs(90);
        assert_eq!(restarts(&object, later), "3 (90s ago)");
    }

    #[test]
    fn deletion_and_initialisation_come_first() {
        let mut object = pod("Running", json!([{"ready": true, "state": {"running": {}}}]));
        object["metadata"]["deletionTimestamp"] = json!("1970-01-01T00:00:00Z");
        assert_eq!(word(&object), "Terminating");
        let init = json!({"metadata": {}, "spec": {"initContainers": [{"name": "i"}, {"name": "j"}]}, "status": {"phase": "Pending",
            "initContainerStatuses": [{"name": "i", "state": {"terminated": {"exitCode": 0}}}, {"name": "j", "state": {"waiting": {"reason": "PodInitializing"}}}],
            "containerStatuses": [{"state": {"waiting": {"reason": "PodInitializing"}}}]}});
        assert_eq!(word(&init), "Init:1/2");
    }
}
