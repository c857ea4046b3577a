//! Pods of files: a directory of manifests whose pods the node runs by itself, also where there is no API server. The API
//! has a copy of each, its mirror, which shows how the pod is and changes nothing of it. Source: `pkg/kubelet/config`
//! (`file.go`, `common.go`), `pkg/kubelet/pod/mirror_client.go`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::names::{is_label, is_subdomain};
use api::{DeleteOptions, Key, Object, Reason, Status};
use base::BoxError;
use base::backoff::Policy;
use futures::{Stream, StreamExt as _};
use inotify::{Event, EventMask, Inotify, WatchMask};
use jiff::Timestamp;
use parking_lot::Mutex;
use reconcile::kinds;
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};

use crate::admission::Workers;
use crate::deps::{Deps, blocking};
use crate::pod::PodView;
use crate::pod::hash::of_parts;

/// Annotations of a pod of a file and of its mirror. Source: `pkg/kubelet/types`.
pub(crate) const MIRROR: &str = "kubernetes.io/config.mirror";
pub(crate) const SOURCE: &str = "kubernetes.io/config.source";
const HASH: &str = "kubernetes.io/config.hash";
const SEEN: &str = "kubernetes.io/config.seen";
/// What [`SOURCE`] says of pods of files.
pub(crate) const FILE: &str = "file";

/// Larger manifests are not read. Source: upstream's `maxConfigLength`.
const SIZE_MAX: u64 = 10 << 20;
/// So many files are read, the first ones by name: more pods no node takes.
const FILES_MAX: usize = 1000;
const EVENTS_AT_ONCE: usize = 256;
/// Steps that the API server did not take.
const MIRROR_BACKOFF: Policy = Policy { first: Duration::from_secs(1), max: Duration::from_secs(60) };
/// A directory that cannot be watched.
const WATCH_BACKOFF: Policy = Policy { first: Duration::from_secs(1), max: Duration::from_secs(20) };

/// The pods of files that the node runs.
#[derive(Default)]
pub(crate) struct StaticPods {
    /// By uid.
    wanted: Mutex<HashMap<String, Arc<Object>>>,
    /// A pod or a mirror has come, changed or gone.
    changed: Notify,
}

/// What has changed in the directory.
#[derive(Default)]
pub(crate) struct Difference {
    pub(crate) gone: Vec<String>,
    pub(crate) new: Vec<Arc<Object>>,
}

impl StaticPods {
    pub(crate) fn has(&self, uid: &str) -> bool {
        self.wanted.lock().contains_key(uid)
    }

    /// The pod of a file with this uid.
    pub(crate) fn get(&self, uid: &str) -> Option<Arc<Object>> {
        self.wanted.lock().get(uid).cloned()
    }

    /// Every pod of a file.
    pub(crate) fn list(&self) -> Vec<Arc<Object>> {
        self.wanted.lock().values().cloned().collect()
    }

    /// The uid under which the node runs what an object of the API shows: that of the file's pod for its mirror. Whose
    /// annotation speaks of a pod of another name shows nothing but itself.
    pub(crate) fn runs_as(&self, pod: &PodView) -> Option<String> {
        let uid = pod.metadata.annotations.get(MIRROR)?;
        let wanted = self.wanted.lock();
        wanted.get(uid).filter(|own| own.key() == pod.key()).map(|_| uid.clone())
    }

    /// Something is to be looked at.
    pub(crate) fn touch(&self) {
        self.changed.notify_one();
    }

    /// Takes over what the directory holds now.
    pub(crate) fn replace(&self, pods: Vec<Object>) -> Difference {
        let mut wanted = self.wanted.lock();
        let mut next = HashMap::new();
        let mut difference = Difference::default();
        for pod in pods {
            let uid = pod.meta().uid.clone();
            let known = wanted.remove(&uid);
            if known.is_none() {
                let pod = Arc::new(pod);
                difference.new.push(pod.clone());
                next.insert(uid, pod);
            } else if let Some(known) = known {
                next.insert(uid, known);
            }
        }
        difference.gone = wanted.drain().map(|(uid, _)| uid).collect();
        *wanted = next;
        drop(wanted);
        self.touch();
        difference
    }
}

/// Reads the directory; what is wrong with a file is said, and the others count. `None`: it cannot be read, which says
/// nothing of its pods. One that is not there has none.
pub(crate) async fn read(deps: &Deps, directory: &Path) -> Option<Vec<Object>> {
    let (node, now, path) = (deps.config.node_name.clone(), deps.now(), directory.to_owned());
    let read = blocking(move || read_directory(&path, &node, now)).await;
    let files = match read {
        Ok(Ok(files)) => files,
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => Files::new(),
        Ok(Err(error)) => {
            tracing::error!(directory = %directory.display(), %error, "the manifests of static pods are not readable");
            return None;
        }
        Err(error) => {
            tracing::error!(%error, "the manifests of static pods are not read");
            return None;
        }
    };
    let mut pods: BTreeMap<Key, Object> = BTreeMap::new();
    for (path, pod) in files {
        let path = path.display();
        match pod {
            Ok(pod) if pods.contains_key(&pod.key()) => {
                tracing::error!(%path, pod = %pod.key(), "another file has a static pod of that name; this one is ignored");
            }
            Ok(pod) => drop(pods.insert(pod.key(), pod)),
            Err(error) => tracing::error!(%path, error, "no static pod"),
        }
    }
    Some(pods.into_values().collect())
}

type Files = Vec<(PathBuf, Result<Object, String>)>;

/// Every manifest of a directory, by name. Hidden files are none. Blocks.
fn read_directory(directory: &Path, node: &str, now: Timestamp) -> io::Result<Files> {
    let (paths, left_out) = manifests(directory, FILES_MAX)?;
    if left_out > 0 {
        let directory = directory.display();
        tracing::error!(%directory, left_out, "more manifests of static pods than are read ({FILES_MAX})");
    }
    let read = |path: PathBuf| {
        let pod = read_file(&path).and_then(|bytes| static_pod(&bytes, &path, node, now));
        (path, pod)
    };
    Ok(paths.into_iter().map(read).collect())
}

/// The first manifests of a directory by name, and how many there are beyond.
fn manifests(directory: &Path, most: usize) -> io::Result<(BTreeSet<PathBuf>, usize)> {
    let (mut paths, mut left_out) = (BTreeSet::new(), 0);
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if hidden || !path.is_file() {
            continue;
        }
        paths.insert(path);
        if paths.len() > most {
            paths.pop_last();
            left_out += 1;
        }
    }
    Ok((paths, left_out))
}

fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let read = File::open(path).and_then(|file| sys::files::read_bounded(file, SIZE_MAX));
    read.map_err(|error| error.to_string())
}

/// The pod of a manifest, as the node runs it. Source: `applyDefaults` in `pkg/kubelet/config`.
fn static_pod(text: &[u8], path: &Path, node: &str, now: Timestamp) -> Result<Object, String> {
    let (json, repeated) = api::decode::yaml_to_json(text)?;
    if let Some(repeated) = repeated {
        return Err(repeated);
    }
    let mut pod: Value = serde_json::from_slice(&json).map_err(|error| error.to_string())?;
    if (pod["apiVersion"].as_str(), pod["kind"].as_str()) != (Some("v1"), Some("Pod")) {
        return Err("not a Pod of v1".to_owned());
    }
    if let Some(what) = api_reference(&pod["spec"]) {
        return Err(format!("static pods may not reference {what}: they run without the API"));
    }
    let uid = hash(text, path, node);
    let Some(meta) = pod["metadata"].as_object_mut() else { return Err("metadata is missing".to_owned()) };
    let name = format!("{}-{node}", meta.get("name").and_then(Value::as_str).unwrap_or_default());
    let namespace = meta.get("namespace").and_then(Value::as_str).unwrap_or("default").to_owned();
    meta.insert("name".to_owned(), name.into());
    meta.insert("namespace".to_owned(), namespace.into());
    meta.insert("uid".to_owned(), uid.clone().into());
    let annotations = meta.entry("annotations").or_insert(Value::Null);
    if annotations.is_null() {
        *annotations = json!({});
    }
    let Some(annotations) = annotations.as_object_mut() else {
        return Err("metadata.annotations is no map".to_owned());
    };
    for (annotation, value) in [(HASH, uid), (SOURCE, FILE.to_owned()), (SEEN, now.to_string())] {
        annotations.insert(annotation.to_owned(), value.into());
    }
    if !pod["spec"].is_object() {
        return Err("spec is missing".to_owned());
    }
    pod["spec"]["nodeName"] = node.into();
    // Taints do not expel it: nobody has placed it.
    let everything = json!({ "operator": "Exists", "effect": "NoExecute" });
    match pod["spec"]["tolerations"].as_array_mut() {
        Some(tolerations) => tolerations.push(everything),
        None => pod["spec"]["tolerations"] = json!([everything]),
    }
    pod["status"] = json!({ "phase": "Pending" });
    let object = Object::parse(pod.to_string().into()).map_err(|error| error.to_string())?;
    let view = PodView::decode(&object).map_err(|error| error.to_string())?;
    check_names(&view)?;
    Ok(object)
}

/// Names that become parts of paths: nobody else has looked at them.
fn check_names(pod: &PodView) -> Result<(), String> {
    let meta = &pod.metadata;
    let containers = pod.containers().map(|(_, container)| container.name.as_str());
    let volumes = pod.spec.volumes.iter().flatten().map(|volume| volume.name.as_str());
    let labels = [meta.namespace.as_str()].into_iter().chain(containers).chain(volumes);
    for (name, fits) in std::iter::once((meta.name.as_str(), is_subdomain(&meta.name)))
        .chain(labels.map(|name| (name, is_label(name))))
    {
        if !fits {
            return Err(format!(
                "{name:?} is no name: lower-case letters, digits and '-' are, in the pod's own also '.'"
            ));
        }
    }
    if pod.spec.containers.is_empty() { Err("the pod has no containers".to_owned()) } else { Ok(()) }
}

/// What of the API a pod refers to, if anything. Source: `HasAPIObjectReference` in `pkg/api/pod`.
fn api_reference(spec: &Value) -> Option<&'static str> {
    let items = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let named = |value: &Value| value.as_str().is_some_and(|name| !name.is_empty());
    if named(&spec["serviceAccountName"]) || named(&spec["serviceAccount"]) {
        return Some("serviceaccounts");
    }
    if !items(&spec["imagePullSecrets"]).is_empty() {
        return Some("secrets");
    }
    if !items(&spec["resourceClaims"]).is_empty() {
        return Some("resourceclaims");
    }
    for (source, what) in [
        ("secret", "secrets"),
        ("configMap", "configmaps"),
        ("projected", "projected volumes"),
        ("persistentVolumeClaim", "persistentvolumeclaims"),
        ("ephemeral", "persistentvolumeclaims"),
        ("csi", "csidrivers"),
    ] {
        if items(&spec["volumes"]).iter().any(|volume| !volume[source].is_null()) {
            return Some(what);
        }
    }
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in items(&spec[list]) {
            let from = items(&container["envFrom"]);
            let env = items(&container["env"]);
            let is = |of: &str, key: &str| {
                from.iter().any(|source| !source[of].is_null())
                    || env.iter().any(|variable| !variable["valueFrom"][key].is_null())
            };
            if is("configMapRef", "configMapKeyRef") {
                return Some("configmaps");
            }
            if is("secretRef", "secretKeyRef") {
                return Some("secrets");
            }
        }
    }
    None
}

/// The uid of a file's pod: another content is another pod.
fn hash(text: &[u8], path: &Path, node: &str) -> String {
    let parts = of_parts([node.as_bytes(), path.as_os_str().as_encoded_bytes(), text]);
    parts.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a uid is that of a file's pod: those of the API are the server's, and UUIDs with dashes.
pub(crate) fn is_of_a_file(uid: &str) -> bool {
    !uid.contains('-')
}

/// Follows the directory, and tells what it holds whenever that may be something else.
pub(crate) async fn follow(deps: Arc<Deps>, directory: PathBuf, listed: mpsc::Sender<Vec<Object>>) {
    let mut failures = 0;
    loop {
        let told = match watch(&directory) {
            Ok(events) => {
                let read = || read(&deps, &directory);
                tell(events, &directory, read, &listed, &mut failures).await
            }
            Err(error) => Err(error.into()),
        };
        let Err(error) = told else { return };
        failures += 1;
        tracing::warn!(directory = %directory.display(), %error, "the manifests of static pods are watched anew");
        let again = deps.now().saturating_add(WATCH_BACKOFF.delay(failures)).unwrap_or(Timestamp::MAX);
        deps.clock.sleep_until(again).await;
    }
}

/// Tells what the directory holds now, and again when something happened in it, until nobody listens any more. An error
/// says why nothing is known of it any more: the watch has to begin anew. `failures` are forgotten when something was told.
async fn tell<R: Future<Output = Option<Vec<Object>>>>(
    events: impl Stream<Item = io::Result<Event<OsString>>> + Unpin,
    directory: &Path,
    mut read: impl FnMut() -> R,
    listed: &mpsc::Sender<Vec<Object>>,
    failures: &mut u32,
) -> Result<(), BoxError> {
    // What happens meanwhile is looked at once.
    let mut events = events.ready_chunks(EVENTS_AT_ONCE);
    // What came before the watch began has told nobody.
    let mut due = true;
    loop {
        if due {
            let pods = read().await.ok_or("they cannot be read")?;
            if listed.send(pods).await.is_err() {
                return Ok(());
            }
            *failures = 0;
        }
        let happened = events.next().await.ok_or("the kernel tells of them no more")?;
        let happened = happened.into_iter().collect::<io::Result<Vec<_>>>()?;
        if happened.iter().any(|event| event.mask.contains(EventMask::IGNORED)) {
            return Err("the directory is gone".into());
        }
        due = happened.iter().any(|event| is_whole(event, directory));
    }
}

/// Whether an event is of a file that has been written: one that was only made is told of again when it is. A link is
/// all there is of itself.
fn is_whole(event: &Event<OsString>, directory: &Path) -> bool {
    let link = |name: &OsString| directory.join(name).symlink_metadata().is_ok_and(|file| file.is_symlink());
    !event.mask.contains(EventMask::CREATE) || event.name.as_ref().is_some_and(link)
}

fn watch(directory: &Path) -> io::Result<inotify::EventStream<Vec<u8>>> {
    std::fs::create_dir_all(directory)?;
    let inotify = Inotify::init()?;
    let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVE | WatchMask::DELETE | WatchMask::CREATE;
    inotify.watches().add(directory, mask | WatchMask::ONLYDIR)?;
    inotify.into_event_stream(vec![0; 4096])
}

/// A pod of the API that may be a mirror.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shown {
    key: Key,
    uid: String,
    /// The pod of a file that it shows.
    of: Option<String>,
    terminating: bool,
}

/// What brings the API's copies in line.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Create { of: String },
    Delete { key: Key, uid: String },
}

/// Decides: each pod of a file has one mirror, no mirror stays without its pod. `lives`: whether the node still runs one
/// whose file is gone.
fn steps(wanted: &BTreeMap<Key, String>, shown: &[Shown], lives: impl Fn(&str) -> bool) -> Vec<Step> {
    let create = wanted
        .iter()
        .filter(|(key, _)| !shown.iter().any(|shown| shown.key == **key))
        .map(|(_, uid)| Step::Create { of: uid.clone() });
    let delete = shown.iter().filter(|shown| {
        let Some(of) = &shown.of else { return false };
        match wanted.get(&shown.key) {
            Some(uid) if uid == of => shown.terminating,
            // The one whose place it takes is still ending.
            _ => !lives(of) || shown.terminating,
        }
    });
    let delete = delete.map(|shown| Step::Delete { key: shown.key.clone(), uid: shown.uid.clone() });
    create.chain(delete).collect()
}

/// Keeps the API's copies in line, for as long as it is polled.
pub(crate) async fn keep_mirrors(deps: Arc<Deps>, workers: Workers) {
    let mut failures = 0;
    loop {
        failures = if mirror(&deps, &workers).await { 0 } else { failures + 1 };
        let again = deps.now().saturating_add(MIRROR_BACKOFF.delay(failures)).unwrap_or(Timestamp::MAX);
        tokio::select! {
            () = deps.static_pods.changed.notified() => {}
            () = deps.clock.sleep_until(again), if failures > 0 => {}
        }
    }
}

/// One round; whether every step was taken.
async fn mirror(deps: &Deps, workers: &Workers) -> bool {
    let pods: HashMap<String, Arc<Object>> = deps.static_pods.wanted.lock().clone();
    let wanted = pods.iter().map(|(uid, pod)| (pod.key(), uid.clone())).collect();
    let shown: Vec<Shown> = deps.caches.pods.list().iter().map(|object| shown(object)).collect();
    let mut done = true;
    for step in steps(&wanted, &shown, |uid| is_of_a_file(uid) && workers.lock().contains_key(uid)) {
        let result = match &step {
            Step::Create { of } => match pods.get(of) {
                Some(pod) => create(deps, pod).await,
                None => Ok(()),
            },
            Step::Delete { key, uid } => delete(deps, key, uid).await,
        };
        if let Err(error) = result {
            tracing::warn!(?step, %error, "a static pod is not shown as it is, trying again");
            done = false;
        }
    }
    done
}

fn shown(object: &Object) -> Shown {
    let (key, meta) = (object.key(), object.meta());
    let terminating = meta.deletion_timestamp.is_some();
    Shown { key, uid: meta.uid.clone(), of: mirrored(object), terminating }
}

/// Of which pod of a file an object says to be the API's copy.
pub(crate) fn mirrored(object: &Object) -> Option<String> {
    // A glance at the bytes: few pods are.
    let text = std::str::from_utf8(object.bytes()).unwrap_or_default();
    text.contains(MIRROR).then(|| object.annotation(MIRROR)).flatten()
}

async fn create(deps: &Deps, pod: &Object) -> Result<(), Status> {
    let node = Key::new("", deps.config.node_name.clone());
    let node = match deps.caches.nodes.get(&node) {
        Some(node) => node,
        None => deps.client.get(&kinds::NODES.gvr(), &node).await?,
    };
    let unreadable = |error: serde_json::Error| Status::internal(format!("static pod not readable: {error}"));
    let copy = mirror_of(pod.decode().map_err(unreadable)?, &node.meta().name, &node.meta().uid);
    match deps.client.create(&kinds::PODS.gvr(), &pod.meta().namespace, &copy).await {
        Err(status) if status.reason != Reason::AlreadyExists => Err(status),
        _ => Ok(()),
    }
}

/// The API's copy of a file's pod.
fn mirror_of(mut pod: Value, node: &str, node_uid: &str) -> Value {
    let uid = pod["metadata"]["uid"].take();
    if let Some(meta) = pod["metadata"].as_object_mut() {
        meta.remove("uid");
        let owner =
            json!({ "apiVersion": "v1", "kind": "Node", "name": node, "uid": node_uid, "controller": true });
        meta.insert("ownerReferences".to_owned(), json!([owner]));
    }
    pod["metadata"]["annotations"][MIRROR] = uid;
    pod
}

async fn delete(deps: &Deps, key: &Key, uid: &str) -> Result<(), Status> {
    let options = DeleteOptions {
        grace_period_seconds: Some(0),
        precondition_uid: Some(uid.to_owned()),
        ..DeleteOptions::default()
    };
    match deps.client.delete(&kinds::PODS.gvr(), key, options).await {
        Err(status) if !matches!(status.reason, Reason::Conflict | Reason::NotFound) => Err(status),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn parse(text: &str) -> Result<Object, String> {
        static_pod(text.as_bytes(), Path::new("/m/web.yaml"), "n1", NOW)
    }

    #[test]
    fn a_manifest_becomes_a_pod_of_its_node() {
        let text =
            "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers: [{name: a, image: x}]\n";
        let pod = parse(text).unwrap();
        let value: Value = pod.decode().unwrap();
        assert_eq!(pod.key(), Key::new("default", "web-n1"));
        assert_eq!((&value["spec"]["nodeName"], pod.meta().uid.len()), (&json!("n1"), 32));
        let annotations = &value["metadata"]["annotations"];
        assert_eq!((&annotations[SOURCE], &annotations[HASH]), (&json!("file"), &value["metadata"]["uid"]));
        assert_eq!(parse(text).unwrap().meta().uid, pod.meta().uid);
        assert_ne!(parse(&text.replace("image: x", "image: z")).unwrap().meta().uid, pod.meta().uid);
        let copy = mirror_of(value.clone(), "n1", "u");
        assert_eq!(copy["metadata"]["annotations"][MIRROR], value["metadata"]["uid"]);
        assert_eq!(
            (&copy["metadata"]["uid"], &copy["metadata"]["ownerReferences"][0]["uid"]),
            (&Value::Null, &json!("u"))
        );
    }

    #[test]
    fn what_is_no_static_pod_is_refused_with_a_reason() {
        let with = |name: &str, spec: Value| {
            let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec});
            parse(&pod.to_string()).err().unwrap_or_default()
        };
        let container = |more: Value| {
            let mut container = json!({"name": "a", "image": "x"});
            container.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
            json!({"containers": [container]})
        };
        for (name, spec, error) in [
            ("web", container(json!({})), ""),
            ("../web", container(json!({})), "is no name"),
            ("web", container(json!({"name": "../a"})), "is no name"),
            ("web-", container(json!({"name": "a."})), "is no name"),
            ("web", json!({"containers": []}), "has no containers"),
            (
                "web",
                container(json!({"envFrom": [{"secretRef": {"name": "s"}}]})),
                "may not reference secrets",
            ),
            (
                "web",
                container(
                    json!({"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}}]}),
                ),
                "may not reference configmaps",
            ),
            (
                "web",
                json!({"serviceAccountName": "s", "containers": [{"name": "a"}]}),
                "may not reference serviceaccounts",
            ),
            (
                "web",
                json!({"volumes": [{"name": "v", "secret": {"secretName": "s"}}], "containers": [{"name": "a"}]}),
                "may not reference secrets",
            ),
        ] {
            let found = with(name, spec.clone());
            assert!(found.contains(error) && found.is_empty() == error.is_empty(), "{name} {spec}: {found}");
        }
        for annotations in [json!("text"), json!([]), json!(7)] {
            let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "annotations": annotations},
                "spec": {"containers": [{"name": "a", "image": "x"}]}});
            assert_eq!(parse(&pod.to_string()).unwrap_err(), "metadata.annotations is no map");
        }
        assert_eq!(parse("kind: Service").unwrap_err(), "not a Pod of v1");
        assert!(parse("a: [").is_err() && parse("").is_err());
    }

    fn event(mask: EventMask) -> Event<OsString> {
        let (wd, name) = (Inotify::init().unwrap().watches().add("/", WatchMask::CREATE).unwrap(), None);
        Event { wd, mask, cookie: 0, name }
    }

    #[tokio::test]
    async fn what_cannot_be_read_or_watched_is_tried_anew() {
        let (sender, mut listed) = mpsc::channel(9);
        let written = || Ok(event(EventMask::CLOSE_WRITE));
        let told = async |events: Vec<io::Result<Event<OsString>>>, reads: usize| {
            let mut left = reads;
            let read = || {
                let read = left.checked_sub(1).map(|_| Vec::new());
                left = left.saturating_sub(1);
                std::future::ready(read)
            };
            let mut failures = 7;
            let events = futures::stream::iter(events);
            let told = tell(events, Path::new("/m"), read, &sender, &mut failures).await;
            assert_eq!(failures, if reads > 0 { 0 } else { 7 });
            told.unwrap_err().to_string()
        };
        assert_eq!(told(Vec::new(), 0).await, "they cannot be read");
        assert_eq!(told(vec![written()], 1).await, "they cannot be read", "also the second time");
        assert_eq!(told(vec![Err(io::Error::other("broken"))], 1).await, "broken");
        assert_eq!(told(vec![Ok(event(EventMask::IGNORED))], 1).await, "the directory is gone");
        assert_eq!(told(Vec::new(), 1).await, "the kernel tells of them no more");
        for _ in 0..4 {
            assert!(listed.try_recv().is_ok());
        }
        assert!(listed.try_recv().is_err(), "what was not read is not told");
    }

    #[test]
    fn what_is_no_manifest_keeps_none_from_being_read() {
        let dir = tempfile::tempdir().unwrap();
        for name in [".a", ".b", ".c", "one", "two", "three"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        std::fs::create_dir(dir.path().join("directory")).unwrap();
        let found = |most| {
            let (paths, left_out) = manifests(dir.path(), most).unwrap();
            let names = paths.iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned());
            (names.collect::<Vec<_>>(), left_out)
        };
        assert_eq!(found(3), (vec!["one".into(), "three".into(), "two".into()], 0));
        assert_eq!(found(1), (vec!["one".into()], 2));
    }

    #[test]
    fn each_static_pod_has_one_mirror() {
        let key = Key::new("default", "web-n1");
        let wanted = BTreeMap::from([(key.clone(), "h1".to_owned())]);
        let shown = |of: Option<&str>, terminating: bool| Shown {
            key: key.clone(),
            uid: "u".to_owned(),
            of: of.map(str::to_owned),
            terminating,
        };
        let delete = || vec![Step::Delete { key: key.clone(), uid: "u".to_owned() }];
        let none = |_: &str| false;
        assert_eq!(steps(&wanted, &[], none), [Step::Create { of: "h1".to_owned() }]);
        assert_eq!(steps(&wanted, &[shown(Some("h1"), false)], none), []);
        assert_eq!(
            steps(&wanted, &[shown(Some("h1"), true)], none),
            delete(),
            "deleted by somebody: made anew"
        );
        assert_eq!(steps(&wanted, &[shown(Some("h0"), false)], none), delete(), "of an older file");
        assert_eq!(steps(&wanted, &[shown(Some("h0"), false)], |uid| uid == "h0"), [], "which still ends");
        assert_eq!(steps(&wanted, &[shown(None, false)], none), [], "somebody else's");
        assert_eq!(steps(&BTreeMap::new(), &[shown(Some("h1"), false)], none), delete(), "the file is gone");
        assert_eq!(steps(&BTreeMap::new(), &[shown(None, false)], none), []);
    }
}
