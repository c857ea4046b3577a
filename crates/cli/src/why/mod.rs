//! `why POD`: what keeps a pod from running, and what to do about it.
//!
//! Here everything is gathered that the answer depends on; [`diagnose`](diagnose::diagnose) decides.

mod diagnose;
mod image_rule;
mod references;
mod schedule;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use api::{GroupVersionResource, ListOptions};
use clap::Args;
use http::{Method, Request};
use http_body_util::{BodyExt, Full, Limited};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Event, Node, Pod};
use serde::Serialize;
use serde_json::Value;

use self::image_rule::{ImageRule, Origin, Place};
use self::references::Missing;
use crate::access::Access;
use crate::containers::is_status;
use crate::engine::{Engine, quote};
use crate::instance::Instance;
use crate::output::{self, Format};
use crate::target::pods;

/// Lines of a crashed container's log that are shown.
const LOG_LINES: u32 = 10;
/// Bytes of it that are read at most.
const LOG_MAX_BYTES: usize = 64 << 10;

/// Arguments of `skiff why`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  skiff why web-5d4f8\n  skiff why web-5d4f8 -n shop -o json")]
pub struct Why {
    /// Namespace of the pod
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
    /// The pod
    pub pod: String,
}

/// Everything that the answer depends on.
#[derive(Debug, Default)]
struct Case {
    pod: Pod,
    /// Events about the pod, the oldest first.
    events: Vec<Event>,
    nodes: Vec<Node>,
    /// Every pod that takes room on a node.
    placed: Vec<Pod>,
    /// Objects that the pod names and that are not there.
    missing: Vec<Missing>,
    /// How this machine's image store knows each image.
    images: BTreeMap<String, Place>,
    /// The last lines that a container wrote before it ended.
    last_lines: BTreeMap<String, Vec<String>>,
    now: Timestamp,
}

/// One thing that keeps a pod from running, or that is worth knowing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
struct Finding {
    /// The container that it is about; empty: the pod.
    #[serde(skip_serializing_if = "String::is_empty")]
    container: String,
    cause: String,
    remedy: String,
    /// What shows it: messages, log lines.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    evidence: Vec<String>,
}

/// The whole answer.
#[derive(Debug, Serialize)]
struct Answer {
    namespace: String,
    pod: String,
    phase: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    node: String,
    ready: bool,
    findings: Vec<Finding>,
    images: Vec<ImageRule>,
}

/// Runs `why`.
pub async fn run(instance: &Instance, engine: &Engine, args: &Why) -> Result<()> {
    let access = Access::to(instance)?;
    let name = args.pod.strip_prefix("pod/").unwrap_or(&args.pod);
    let Some(pod) = access.find(&pods(), &args.namespace, name).await? else {
        bail!("{}", not_found(&access, &args.namespace, name).await?);
    };
    let case = gather(instance, engine, &access, serde_json::from_value(pod)?).await?;
    let answer = answer(&case);
    match args.output {
        Format::Table => output::write_out(&text(&answer)),
        format => output::print(format, &answer, &[], &[]),
    }
}

/// The error for a pod that is not there, with those whose names begin alike.
async fn not_found(access: &Access, namespace: &str, name: &str) -> Result<String> {
    let all = access.list(&pods(), namespace, ListOptions::default()).await?;
    let names = all.iter().filter_map(|pod| pod["metadata"]["name"].as_str());
    let alike: Vec<&str> = names.filter(|known| known.starts_with(name)).take(5).collect();
    Ok(match alike.as_slice() {
        [] => format!("there is no pod {namespace}/{name}; see: skiff kubectl get pods -A"),
        alike => format!("there is no pod {namespace}/{name}; did you mean {}?", alike.join(", ")),
    })
}

async fn gather(instance: &Instance, engine: &Engine, access: &Access, pod: Pod) -> Result<Case> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let selector = format!("involvedObject.uid={}", pod.metadata.uid.as_deref().unwrap_or_default());
    let about = ListOptions { field_selector: selector, ..ListOptions::default() };
    let mut events: Vec<Event> = typed(access.list(&core("events"), &namespace, about).await?)?;
    events.sort_by_key(|event| event.last_timestamp.as_ref().map(|time| time.0));
    let nodes: Vec<Node> = typed(access.list(&core("nodes"), "", ListOptions::default()).await?)?;
    let scheduled = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
    // Only what does not fit has to be compared with what is there.
    let placed =
        if scheduled { Vec::new() } else { typed(access.list(&pods(), "", ListOptions::default()).await?)? };
    let mut missing = Vec::new();
    for reference in references::of(&pod) {
        let found = access.find(&core(reference.resource), &namespace, &reference.name).await?;
        missing.extend(references::check(&reference, found.as_ref()));
    }
    // This machine's store says nothing of a pod on another node.
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    let here =
        instance.running().is_some_and(|running| node.is_none_or(|node| node == running.node.as_str()));
    let mut images = BTreeMap::new();
    let mut last_lines = BTreeMap::new();
    for container in containers(&pod) {
        let image = container.image.clone().unwrap_or_default();
        if here {
            images.insert(image.clone(), place(engine, &image).await?);
        }
        if let Some(previous) = diagnose::ended(&pod, &container.name) {
            let lines = last_lines_of(access, &pod, &container.name, previous).await;
            last_lines.insert(container.name.clone(), lines);
        }
    }
    Ok(Case { pod, events, nodes, placed, missing, images, last_lines, now: Timestamp::now() })
}

fn core(resource: &str) -> GroupVersionResource {
    GroupVersionResource::new("", "v1", resource)
}

fn typed<T: serde::de::DeserializeOwned>(objects: Vec<Value>) -> Result<Vec<T>> {
    objects.into_iter().map(|object| Ok(serde_json::from_value(object)?)).collect()
}

/// The pod's containers, those that run first first.
fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.as_ref();
    let init = spec.and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default();
    init.iter().chain(spec.map(|spec| spec.containers.as_slice()).unwrap_or_default())
}

/// What this machine's image store says of a name.
async fn place(engine: &Engine, image: &str) -> Result<Place> {
    let path = format!("/images/{}/json", quote(image));
    match engine.call::<Value>(Method::GET, &path, None).await {
        Ok(found) if found["Origin"] == "registry" => Ok(Place::Here(Origin::Registry)),
        Ok(_) => Ok(Place::Here(Origin::Local)),
        Err(error) if is_status(&error, http::StatusCode::NOT_FOUND) => Ok(Place::Absent),
        Err(error) if is_status(&error, http::StatusCode::BAD_REQUEST) => Ok(Place::Absent),
        Err(error) => Err(error),
    }
}

/// The last lines of a log; none where it is gone, which is no reason to say nothing at all.
async fn last_lines_of(access: &Access, pod: &Pod, container: &str, previous: bool) -> Vec<String> {
    let (namespace, name) = (&pod.metadata.namespace, &pod.metadata.name);
    let path = format!(
        "/api/v1/namespaces/{}/pods/{}/log?container={}&tailLines={LOG_LINES}&previous={previous}",
        quote(namespace.as_deref().unwrap_or_default()),
        quote(name.as_deref().unwrap_or_default()),
        quote(container)
    );
    let read = async {
        let response = access.https.send_http(Request::get(path).body(Full::default())?).await?;
        anyhow::ensure!(response.status().is_success(), "no log");
        let body = Limited::new(response.into_body(), LOG_MAX_BYTES).collect().await;
        Ok(body.map_err(|error| anyhow::anyhow!(error))?.to_bytes())
    };
    match read.await {
        Ok(bytes) => String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect(),
        Err(_) => Vec::new(),
    }
}

fn answer(case: &Case) -> Answer {
    let (meta, status) = (&case.pod.metadata, case.pod.status.as_ref());
    let node = case.pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    let phase = status.and_then(|status| status.phase.clone()).unwrap_or_else(|| "Pending".into());
    Answer {
        namespace: meta.namespace.clone().unwrap_or_default(),
        pod: meta.name.clone().unwrap_or_default(),
        phase: if meta.deletion_timestamp.is_some() { "Terminating".into() } else { phase },
        node: node.unwrap_or_default(),
        ready: diagnose::condition(&case.pod, "Ready").is_some_and(|ready| ready.status == "True"),
        findings: diagnose::diagnose(case),
        images: containers(&case.pod).map(|container| image_rule::of(container, &case.images)).collect(),
    }
}

/// The answer for people.
fn text(answer: &Answer) -> String {
    let mut text = format!("pod {}/{}: {}", answer.namespace, answer.pod, answer.phase);
    if !answer.node.is_empty() {
        text += &format!(" on node {}", answer.node);
    }
    // A pod that has ended serves nobody, and is not meant to.
    text += match (answer.phase.as_str(), answer.ready) {
        ("Succeeded" | "Failed", _) => "\n",
        (_, true) => ", ready\n",
        (_, false) => ", not ready\n",
    };
    if answer.findings.is_empty() {
        text += match answer.phase.as_str() {
            "Succeeded" => "\nIt has done its work: its containers ended without an error.\n",
            _ => "\nNothing keeps it from running.\n",
        };
    }
    for finding in &answer.findings {
        let subject = match finding.container.as_str() {
            "" => String::new(),
            container => format!("container {container}: "),
        };
        text += &format!("\ncause    {subject}{}\n", finding.cause);
        for line in finding.evidence.iter().flat_map(|text| text.lines()) {
            text += &format!("         | {line}\n");
        }
        text += &format!("remedy   {}\n", finding.remedy);
    }
    text += "\nimages\n";
    for image in &answer.images {
        text += &format!("  {}: {}\n    {}\n", image.container, image.image, image.rule);
    }
    text
}
