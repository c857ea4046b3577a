//! The decision: from a pod and what is known around it to causes and remedies. Pure.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateTerminated, ContainerStatus, Event, Pod, PodCondition, Probe,
};

use super::references::Missing;
use super::{Case, Finding, containers, schedule};

/// Everything that keeps a pod from running as it should, the first cause first.
pub(super) fn diagnose(case: &Case) -> Vec<Finding> {
    let phase = case.pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
    if let Some(deleted) = &case.pod.metadata.deletion_timestamp {
        return vec![terminating(case, deleted.0)];
    }
    match phase {
        "Succeeded" => return Vec::new(),
        "Failed" => return failed(case),
        _ => {}
    }
    if let Some(finding) = schedule::finding(case) {
        return vec![finding];
    }
    let mut findings: Vec<Finding> = node_down(case).into_iter().collect();
    findings.extend(missing(&case.missing));
    findings.extend(containers(&case.pod).filter_map(|container| of_container(case, container)));
    if findings.is_empty() && condition(&case.pod, "Ready").is_none_or(|ready| ready.status != "True") {
        findings.extend(sandbox_or_volume(case).or_else(|| readiness_gate(case)).or_else(|| starting(case)));
    }
    findings
}

/// The pod's condition of that type.
pub(super) fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind)
}

/// Whether a container has ended, so that its log says why; `true`: it was started again or will be, and the log is
/// that of the run before.
pub(super) fn ended(pod: &Pod, container: &str) -> Option<bool> {
    let status = status_of(pod, container)?;
    if status.state.as_ref().is_some_and(|state| state.terminated.is_some()) {
        return Some(false);
    }
    // A container that waits to be started again has the log of its last run as its current one.
    let waits = status.state.as_ref().is_some_and(|state| state.waiting.is_some());
    last_run(status).map(|_| !waits)
}

fn status_of<'a>(pod: &'a Pod, container: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let all = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    all.into_iter().find(|status| status.name == container)
}

fn last_run(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    status.last_state.as_ref().and_then(|state| state.terminated.as_ref())
}

fn terminating(case: &Case, deadline: Timestamp) -> Finding {
    let meta = &case.pod.metadata;
    let finalizers = meta.finalizers.as_deref().unwrap_or_default();
    let ended = matches!(
        case.pod.status.as_ref().and_then(|status| status.phase.as_deref()),
        Some("Succeeded" | "Failed")
    );
    let (namespace, name) =
        (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
    if !finalizers.is_empty() && (ended || case.now >= deadline) {
        return Finding {
            cause: format!("it is deleted, but finalizers hold it: {}", finalizers.join(", ")),
            remedy: format!(
                "whoever set a finalizer removes it after cleaning up; if that controller is gone for good: skiff kubectl \
                 patch pod {name} -n {namespace} --type=merge -p '{{\"metadata\":{{\"finalizers\":null}}}}'"
            ),
            ..Finding::default()
        };
    }
    if let Some(down) = node_down(case) {
        return Finding {
            cause: format!("it is deleted, but {}", down.cause),
            remedy: format!(
                "{}; if the node is gone for good: skiff kubectl delete pod {name} -n {namespace} --force \
                 --grace-period=0",
                down.remedy
            ),
            ..down
        };
    }
    let grace = meta.deletion_grace_period_seconds.unwrap_or(30);
    let left = deadline.duration_since(case.now).as_secs();
    let cause = match left > 0 {
        true => format!("it is being deleted: its processes have {left} s of their {grace} s grace left"),
        false => {
            format!("it is being deleted; its grace of {grace} s is over and its end is not reported yet")
        }
    };
    let remedy =
        "a process that ends on SIGTERM ends sooner; a shorter grace: spec.terminationGracePeriodSeconds";
    Finding { cause, remedy: remedy.into(), ..Finding::default() }
}

fn failed(case: &Case) -> Vec<Finding> {
    let status = case.pod.status.as_ref();
    let reason = status.and_then(|status| status.reason.clone());
    let message = status.and_then(|status| status.message.clone());
    let ended = containers(&case.pod).filter_map(|container| {
        let state = status_of(&case.pod, &container.name)?.state.as_ref()?;
        let run = state.terminated.as_ref().filter(|run| run.exit_code != 0)?;
        Some(Finding {
            container: container.name.clone(),
            cause: format!(
                "it ended with {}, and restartPolicy {} leaves it so",
                exit(run),
                policy(&case.pod)
            ),
            remedy: exit_remedy(run).into(),
            evidence: message_of(run).into_iter().chain(log_of(case, &container.name)).collect(),
        })
    });
    let mut findings: Vec<Finding> = ended.collect();
    if reason.is_some() || message.is_some() || findings.is_empty() {
        let reason = reason.unwrap_or_else(|| "no reason given".into());
        let finding = Finding {
            cause: format!("the pod failed: {reason}"),
            remedy: "delete it; whatever owns it makes a new one".into(),
            evidence: message.into_iter().collect(),
            ..Finding::default()
        };
        findings.insert(0, finding);
    }
    findings
}

fn policy(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()).unwrap_or("Always")
}

fn node_down(case: &Case) -> Option<Finding> {
    let name = case.pod.spec.as_ref()?.node_name.as_deref()?;
    let Some(node) = case.nodes.iter().find(|node| node.metadata.name.as_deref() == Some(name)) else {
        return Some(Finding {
            cause: format!("its node {name} does not exist any more"),
            remedy: "delete the pod; whatever owns it makes a new one on another node".into(),
            ..Finding::default()
        });
    };
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready")?;
    (ready.status != "True").then(|| Finding {
        cause: format!(
            "its node {name} is not Ready ({})",
            ready.reason.as_deref().unwrap_or("no reason given")
        ),
        remedy: "start it again: skiff up".into(),
        evidence: ready.message.clone().into_iter().collect(),
        ..Finding::default()
    })
}

/// One finding for each object that is missing, or that lacks a key.
fn missing(missing: &[Missing]) -> Vec<Finding> {
    let mut seen = BTreeSet::new();
    let mut findings = Vec::new();
    for Missing { reference, keys } in missing {
        let key = if keys.is_some() { reference.key.as_str() } else { "" };
        if !seen.insert((reference.resource, reference.name.as_str(), key)) {
            continue;
        }
        let name = &reference.name;
        let (kind, command) = match reference.resource {
            "configmaps" => ("ConfigMap", format!("create configmap {name} --from-literal=KEY=VALUE")),
            "secrets" => ("Secret", format!("create secret generic {name} --from-literal=KEY=VALUE")),
            "serviceaccounts" => ("ServiceAccount", format!("create serviceaccount {name}")),
            _ => ("PersistentVolumeClaim", "apply -f CLAIM.yaml".to_owned()),
        };
        let user = &reference.user;
        findings.push(match keys {
            None => Finding {
                cause: format!("{kind} {name:?}, which {user} needs, does not exist in its namespace"),
                remedy: format!("create it (the pod goes on by itself): skiff kubectl {command}"),
                ..Finding::default()
            },
            Some(keys) => Finding {
                cause: format!("{kind} {name:?} has no key {key:?}, which {user} needs"),
                remedy: format!(
                    "add the key, or name one that is there ({})",
                    if keys.is_empty() { "it has none".to_owned() } else { keys.join(", ") }
                ),
                ..Finding::default()
            },
        });
    }
    findings
}

/// What keeps one container from running as it should.
fn of_container(case: &Case, container: &Container) -> Option<Finding> {
    let status = status_of(&case.pod, &container.name)?;
    let state = status.state.clone().unwrap_or_default();
    let finding = match &state {
        ContainerState { waiting: Some(waiting), .. } => {
            let reason = waiting.reason.as_deref().unwrap_or_default();
            let message = waiting.message.clone().unwrap_or_default();
            waits(case, container, status, reason, message)?
        }
        ContainerState { terminated: Some(run), .. } => stopped(case, container, run)?,
        _ => runs(case, container, status)?,
    };
    Some(Finding { container: container.name.clone(), ..finding })
}

fn waits(
    case: &Case,
    container: &Container,
    status: &ContainerStatus,
    reason: &str,
    message: String,
) -> Option<Finding> {
    let image = container.image.as_deref().unwrap_or_default();
    let evidence: Vec<String> = Some(message).filter(|message| !message.is_empty()).into_iter().collect();
    let finding = |cause: String, remedy: String| {
        Some(Finding { cause, remedy, evidence: evidence.clone(), ..Finding::default() })
    };
    match reason {
        "ErrImagePull" | "RegistryUnavailable" | "ImagePullBackOff" => finding(
            format!("image {image:?} cannot be pulled ({reason})"),
            format!(
                "check the name; or make it local, then no registry is asked: skiff build -t {image} DIR, or skiff load \
                 -i ARCHIVE; for a private registry give the pod imagePullSecrets"
            ),
        ),
        "ErrImageNeverPull" => finding(
            format!(
                "image {image:?} is not on the node, and imagePullPolicy Never forbids to ask a registry"
            ),
            format!(
                "build or load it under exactly this name: skiff build -t {image} DIR, or skiff load -i ARCHIVE"
            ),
        ),
        "InvalidImageName" => finding(
            format!("{image:?} is not an image's name"),
            "write it as [REGISTRY/]NAME[:TAG], in lower case".into(),
        ),
        "CrashLoopBackOff" => crash_loop(case, container, status, &evidence),
        // What is missing has its own finding.
        "CreateContainerConfigError" if !case.missing.is_empty() => None,
        "CreateContainerConfigError" => {
            finding("its configuration cannot be made".into(), "correct what the message names".into())
        }
        "CreateContainerError" | "RunContainerError" | "StartError" => finding(
            format!("it cannot be started ({reason})"),
            "check command, args, workingDir, user and mounts against what is in the image".into(),
        ),
        "PostStartHookError" => finding(
            "its postStart hook fails, so it is killed and started again".into(),
            "run the hook's command by hand with: skiff exec".into(),
        ),
        // Waiting for its turn, its volumes or its image: others tell why.
        _ => None,
    }
}

fn crash_loop(
    case: &Case,
    container: &Container,
    status: &ContainerStatus,
    said: &[String],
) -> Option<Finding> {
    let run = last_run(status);
    let how = run.map_or_else(|| "an unknown code".to_owned(), exit);
    let killed_by_probe = run.and_then(|_| probe_event(case, container, "Liveness"));
    let mut evidence: Vec<String> = said.to_vec();
    evidence.extend(killed_by_probe.clone());
    evidence.extend(run.and_then(message_of));
    evidence.extend(log_of(case, &container.name));
    Some(Finding {
        cause: format!(
            "it ends again and again (CrashLoopBackOff): {} restarts, the last run ended with {how}",
            status.restart_count
        ),
        remedy: match (killed_by_probe, run) {
            (Some(_), _) => {
                "its liveness probe ends it: correct the probe, or give it more time with a startupProbe"
                    .into()
            }
            (None, Some(run)) => exit_remedy(run).into(),
            (None, None) => "its log says more: skiff logs --previous".into(),
        },
        evidence,
        ..Finding::default()
    })
}

/// A container that has ended and is not waiting to be started again.
fn stopped(case: &Case, container: &Container, run: &ContainerStateTerminated) -> Option<Finding> {
    (run.exit_code != 0).then(|| Finding {
        cause: format!("it ended with {}", exit(run)),
        remedy: exit_remedy(run).into(),
        evidence: message_of(run).into_iter().chain(log_of(case, &container.name)).collect(),
        ..Finding::default()
    })
}

/// A container that runs: is it still starting, unready, or an init container that others wait for?
fn runs(case: &Case, container: &Container, status: &ContainerStatus) -> Option<Finding> {
    if init_of(&case.pod).any(|init| init.name == container.name)
        && container.restart_policy.as_deref() != Some("Always")
    {
        return Some(Finding {
            cause: "this init container still runs, and the containers after it wait for its end".into(),
            remedy: format!("see what it is doing: skiff logs {}/{}", name_of(&case.pod), container.name),
            ..Finding::default()
        });
    }
    let has = |probe: &Option<Probe>| probe.is_some();
    if status.started == Some(false) && has(&container.startup_probe) {
        return Some(failing_probe(case, container, "Startup", "so it does not count as started"));
    }
    if !status.ready && has(&container.readiness_probe) {
        return Some(failing_probe(case, container, "Readiness", "so Services send it nothing"));
    }
    let run = last_run(status).filter(|run| run.exit_code != 0)?;
    let probe = probe_event(case, container, "Liveness");
    Some(Finding {
        cause: format!(
            "it runs, after {} restarts; the last run ended with {}",
            status.restart_count,
            exit(run)
        ),
        remedy: match probe {
            Some(_) => {
                "its liveness probe ends it: correct the probe, or give it more time with a startupProbe"
                    .into()
            }
            None => exit_remedy(run).into(),
        },
        evidence: probe.into_iter().chain(message_of(run)).chain(log_of(case, &container.name)).collect(),
        ..Finding::default()
    })
}

fn init_of(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten())
}

fn name_of(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

fn failing_probe(case: &Case, container: &Container, which: &str, so: &str) -> Finding {
    let seen = probe_event(case, container, which);
    Finding {
        cause: match seen {
            Some(_) => format!("its {} probe fails, {so}", which.to_lowercase()),
            None => format!("its {} probe has not succeeded yet, {so}", which.to_lowercase()),
        },
        remedy: "the probe has to name the port and path that the program serves; try it from inside with: skiff exec".into(),
        evidence: seen.into_iter().collect(),
        ..Finding::default()
    }
}

/// The newest failure of a container's probe.
fn probe_event(case: &Case, container: &Container, which: &str) -> Option<String> {
    let place = format!("{{{}}}", container.name);
    let about = |event: &&Event| {
        let path = event.involved_object.field_path.as_deref().unwrap_or_default();
        let message = event.message.as_deref().unwrap_or_default();
        event.reason.as_deref() == Some("Unhealthy") && path.ends_with(&place) && message.starts_with(which)
    };
    let newest = case.events.iter().rfind(about)?;
    // What the probe printed ends with its own newline.
    newest.message.as_deref().map(|message| message.trim_end().to_owned())
}

/// The pod's sandbox or volumes, whose failures are told by events only.
fn sandbox_or_volume(case: &Case) -> Option<Finding> {
    let newest = |reason: &str| {
        case.events
            .iter()
            .rfind(|event| event.reason.as_deref() == Some(reason))
            .and_then(|event| event.message.clone())
    };
    if let Some(message) = newest("FailedMount") {
        return Some(Finding {
            cause: "a volume cannot be mounted".into(),
            remedy: "correct what the message names; the pod goes on by itself".into(),
            evidence: vec![message],
            ..Finding::default()
        });
    }
    newest("FailedCreatePodSandBox").map(|message| Finding {
        cause: "its namespaces or network cannot be made".into(),
        remedy: "the log of the node says more: skiff.log in its data directory (/var/lib/skiff)".into(),
        evidence: vec![message],
        ..Finding::default()
    })
}

fn readiness_gate(case: &Case) -> Option<Finding> {
    let gates = case.pod.spec.as_ref()?.readiness_gates.as_ref()?;
    let open = |kind: &str| condition(&case.pod, kind).is_some_and(|condition| condition.status == "True");
    let closed: Vec<&str> =
        gates.iter().map(|gate| gate.condition_type.as_str()).filter(|kind| !open(kind)).collect();
    (!closed.is_empty()).then(|| Finding {
        cause: format!("its containers are ready, but not its readiness gates: {}", closed.join(", ")),
        remedy: "whoever is to set these conditions of the pod has not done so".into(),
        ..Finding::default()
    })
}

fn starting(case: &Case) -> Option<Finding> {
    let pulling = case.events.last().filter(|event| event.reason.as_deref() == Some("Pulling"));
    let cause = match pulling {
        Some(event) => {
            format!("its image is being pulled ({})", event.message.as_deref().unwrap_or_default())
        }
        None => "it is starting".to_owned(),
    };
    let remedy = format!("wait: skiff kubectl wait pod {} --for=condition=Ready", name_of(&case.pod));
    Some(Finding { cause, remedy, ..Finding::default() })
}

fn log_of(case: &Case, container: &str) -> Vec<String> {
    case.last_lines.get(container).cloned().unwrap_or_default()
}

/// How a run ended: `exit code 137 (OOMKilled)`.
fn exit(run: &ContainerStateTerminated) -> String {
    let code = run.exit_code;
    let reason = run.reason.as_deref().filter(|reason| !matches!(*reason, "Error" | "Completed" | ""));
    match (reason, code) {
        (Some(reason), _) => format!("exit code {code} ({reason})"),
        (None, 126) => "exit code 126 (the command cannot be executed)".into(),
        (None, 127) => "exit code 127 (command not found)".into(),
        (None, 134) => "exit code 134 (SIGABRT)".into(),
        (None, 137) => "exit code 137 (SIGKILL)".into(),
        (None, 139) => "exit code 139 (SIGSEGV)".into(),
        (None, 143) => "exit code 143 (SIGTERM)".into(),
        (None, code) => format!("exit code {code}"),
    }
}

/// What the runtime, or the program by its termination message, says of an end.
fn message_of(run: &ContainerStateTerminated) -> Option<String> {
    run.message.as_deref().map(str::trim_end).filter(|message| !message.is_empty()).map(str::to_owned)
}

fn exit_remedy(run: &ContainerStateTerminated) -> &'static str {
    match (run.reason.as_deref(), run.exit_code) {
        (Some("OOMKilled"), _) => {
            "it needs more memory than its limit: raise resources.limits.memory, or let it use less"
        }
        (Some("StartError"), _) | (_, 126 | 127) => {
            "command and args have to name a program that is in the image and may be executed"
        }
        (_, 0) => {
            "its program ends by itself: a Deployment wants one that stays (a Job is for work that ends)"
        }
        _ => "its last lines say what it missed; correct the image, its arguments or its environment",
    }
}
