//! A node with its images, namespaces on it, and waiting for what its API says by watches.

use std::collections::BTreeMap;

use http::Method;
use serde_json::{Value, json};
use testbed::{Host, Testbed};

use crate::api::{Answer, Api, Executed, Lines};

/// What all pods run that need no other image.
pub(crate) const IMAGE: &str = "busybox";
/// An image with an entry point and arguments, and a program whose bits say that it runs as root.
pub(crate) const OWN_IMAGE: &str = "own:v1";
const DOCKERFILE: &str = "FROM busybox
RUN mkdir /rooted && cp /bin/busybox /rooted/busybox && chmod 4755 /rooted/busybox
ENTRYPOINT [\"/bin/echo\", \"entry-point\"]
CMD [\"default\", \"arguments\"]
";
/// Containers that end are started anew after a second, so that tests are short. The usual times are the affair of others.
const NODE_CONFIG: &str = "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
crashLoopBackOff:
  maxContainerRestartPeriod: 1s
";

/// What the bookmark bears that comes after all that was there.
const BEGUN: &str = "k8s.io/initial-events-end";

/// Resources that are not in the core group.
const GROUPS: [(&str, &str); 2] = [("leases", "coordination.k8s.io/v1"), ("jobs", "batch/v1")];

/// A host with a node and the images.
pub(crate) struct Cluster {
    pub(crate) bed: Testbed,
    pub(crate) host: Host,
    /// What the host had before.
    before: BTreeMap<&'static str, String>,
}

impl Cluster {
    pub(crate) fn up() -> Self {
        let bed = Testbed::new().unwrap();
        let host = bed.host().unwrap();
        let before = host.traces().unwrap();
        let config = host.directory().join("node.yaml");
        std::fs::write(&config, NODE_CONFIG).unwrap();
        host.must_skiff(&["up", "--node-config", &config.to_string_lossy()]);
        let archive = testbed::base_image("busybox-bookworm.tar").unwrap();
        host.must_skiff(&["load", "-i", &archive.to_string_lossy()]);
        let context = host.directory().join("own");
        std::fs::create_dir(&context).unwrap();
        std::fs::write(context.join("Dockerfile"), DOCKERFILE).unwrap();
        host.must_skiff(&["build", "-t", OWN_IMAGE, &context.to_string_lossy()]);
        Self { bed, host, before }
    }

    /// Removes everything and shows that nothing is left.
    pub(crate) fn purge(self) {
        assert_eq!(self.bed.leaked_packets().unwrap(), 0, "{}", self.bed.leaks().unwrap());
        self.host.must_skiff(&["down", "--purge"]);
        self.host.must_be_as(&self.before);
    }
}

/// Objects by name.
pub(crate) type Objects = BTreeMap<String, Value>;

/// A namespace of its own for one behaviour.
pub(crate) struct Space<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) api: &'a Api,
    pub(crate) name: String,
}

impl<'a> Space<'a> {
    /// Makes it, and waits until pods may be made in it.
    pub(crate) fn new(cluster: &'a Cluster, api: &'a Api, name: &str) -> Self {
        let space = Self { cluster, api, name: name.replace('_', "-") };
        space.create(
            "/api/v1/namespaces",
            &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": space.name}}),
        );
        space.until("serviceaccounts", "the default account", |accounts| accounts.contains_key("default"));
        space
    }

    /// Lets go of it: what is left in it goes on its own.
    pub(crate) fn close(self) {
        self.delete(&format!("/api/v1/namespaces/{}", self.name));
    }

    /// The path of a resource in this namespace, which may go on with a name or a query; or a path as it is.
    pub(crate) fn path(&self, resource: &str) -> String {
        if resource.starts_with('/') {
            return resource.to_owned();
        }
        let plural = resource.split(['?', '/']).next().unwrap_or_default();
        let group = GROUPS.iter().find(|(name, _)| *name == plural);
        let prefix = group.map_or_else(|| "/api/v1".to_owned(), |(_, group)| format!("/apis/{group}"));
        format!("{prefix}/namespaces/{}/{resource}", self.name)
    }

    #[track_caller]
    fn must(&self, method: &Method, resource: &str, kind: &str, body: Option<&Value>) -> Value {
        let answer = self.api.send(method, &self.path(resource), kind, body);
        assert!(answer.code < 300, "{method} {resource}: {}", answer.text());
        answer.object()
    }

    /// Creates an object, which has to be accepted.
    #[track_caller]
    pub(crate) fn create(&self, resource: &str, object: &Value) -> Value {
        self.must(&Method::POST, resource, "", Some(object))
    }

    /// Sends a request that has to be refused; what was said.
    #[track_caller]
    pub(crate) fn refused(&self, method: &Method, resource: &str, kind: &str, body: &Value) -> Value {
        let Answer { code, body } = self.api.send(method, &self.path(resource), kind, Some(body));
        assert!((400..500).contains(&code), "{method} {resource} was accepted: {code}");
        serde_json::from_slice(&body).unwrap()
    }

    #[track_caller]
    pub(crate) fn get(&self, resource: &str) -> Value {
        self.must(&Method::GET, resource, "", None)
    }

    /// The items of a list.
    #[track_caller]
    pub(crate) fn list(&self, resource: &str) -> Vec<Value> {
        self.get(resource)["items"].as_array().cloned().unwrap()
    }

    /// Applies a JSON merge patch.
    #[track_caller]
    pub(crate) fn patch(&self, resource: &str, patch: &Value) -> Value {
        self.must(&Method::PATCH, resource, MERGE, Some(patch))
    }

    /// Reads an object, changes it and writes it back; anew where another was faster.
    #[track_caller]
    pub(crate) fn update(&self, resource: &str, change: impl Fn(&mut Value)) -> Value {
        loop {
            let mut object = self.get(resource);
            change(&mut object);
            let answer = self.api.send(&Method::PUT, &self.path(resource), "", Some(&object));
            if answer.code != 409 {
                assert!(answer.code < 300, "update {resource}: {}", answer.text());
                return answer.object();
            }
        }
    }

    /// Deletes an object, or those of a collection that its query selects.
    #[track_caller]
    pub(crate) fn delete(&self, resource: &str) {
        self.must(&Method::DELETE, resource, "", None);
    }

    /// Watches a resource until all of it is as wanted; gives it by name.
    #[track_caller]
    pub(crate) fn until(&self, resource: &str, what: &str, holds: impl FnMut(&Objects) -> bool) -> Objects {
        self.watch(resource).until(what, holds)
    }

    /// Watches a resource; what is there already is known when this returns.
    #[track_caller]
    pub(crate) fn watch(&self, resource: &str) -> Watch<'_> {
        let path = self.path(resource);
        let more = if path.contains('?') { '&' } else { '?' };
        let query =
            "watch=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
        let lines = self.api.lines(&format!("{path}{more}{query}"));
        let mut watch = Watch { lines, objects: Objects::new(), deleted: Vec::new() };
        while !watch.step("the watch begins") {}
        watch
    }

    /// Watches a pod until it is as wanted.
    #[track_caller]
    pub(crate) fn until_pod(&self, name: &str, what: &str, mut holds: impl FnMut(&Value) -> bool) -> Value {
        let named = format!("pods?fieldSelector=metadata.name%3D{name}");
        let found = self.until(&named, what, |pods| pods.get(name).is_some_and(&mut holds));
        found[name].clone()
    }

    /// Creates a pod and waits until it is Ready.
    #[track_caller]
    pub(crate) fn start(&self, pod: &Value) -> Value {
        self.create("pods", pod);
        self.until_pod(&text(&pod["metadata"]["name"]), "Ready", is_ready)
    }

    /// Deletes a pod and waits until it is gone.
    #[track_caller]
    pub(crate) fn stop(&self, name: &str) {
        self.delete(&format!("pods/{name}"));
        self.until(&format!("pods?fieldSelector=metadata.name%3D{name}"), "gone", BTreeMap::is_empty);
    }

    /// Creates a pod, which has to end well: what it printed.
    #[track_caller]
    pub(crate) fn output(&self, pod: &Value) -> String {
        self.outputs(std::slice::from_ref(pod)).remove(&text(&pod["metadata"]["name"])).unwrap()
    }

    /// Creates pods, each of which has to end well: what each printed, by its name.
    #[track_caller]
    pub(crate) fn outputs(&self, pods: &[Value]) -> BTreeMap<String, String> {
        let names: Vec<String> = pods.iter().map(|pod| text(&pod["metadata"]["name"])).collect();
        for pod in pods {
            self.create("pods", pod);
        }
        let ended = self.until("pods", "ended", |all| {
            let phases =
                names.iter().filter_map(|name| all.get(name)).map(|pod| text(&pod["status"]["phase"]));
            phases.filter(|phase| ["Succeeded", "Failed"].contains(&&**phase)).count() == names.len()
        });
        let printed = names.into_iter().map(|name| {
            let log = self.log(&name, "main");
            assert_eq!(
                ended[&name]["status"]["phase"], "Succeeded",
                "{name}: {log} {:#}",
                ended[&name]["status"]
            );
            (name, log)
        });
        printed.collect()
    }

    /// What a container printed so far.
    #[track_caller]
    pub(crate) fn log(&self, pod: &str, container: &str) -> String {
        let path = self.path(&format!("pods/{pod}/log?container={container}"));
        let answer = self.api.send(&Method::GET, &path, "", None);
        assert_eq!(answer.code, 200, "{path}: {}", answer.text());
        answer.text()
    }

    /// Follows what a container prints until so many lines contain a text.
    #[track_caller]
    pub(crate) fn until_printed(&self, pod: &str, container: &str, part: &str, count: usize) {
        let path = self.path(&format!("pods/{pod}/log?container={container}&follow=true"));
        let (mut lines, mut found, mut all) = (self.api.lines(&path), 0, String::new());
        while found < count {
            let Some(line) = lines.next(|| format!("{part:?} {count} times in {all}")) else {
                panic!("{pod} ended without {part:?}: {all}")
            };
            let line = String::from_utf8_lossy(&line);
            found += usize::from(line.contains(part));
            all.push_str(&line);
        }
    }

    /// Runs a shell command line in a container.
    #[track_caller]
    pub(crate) fn try_exec(&self, pod: &str, container: &str, script: &str) -> Executed {
        let script: String = script.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let path = self.path(&format!(
            "pods/{pod}/exec?container={container}&stdout=1&stderr=1&command=sh&command=-c&command={script}"
        ));
        Executed::of(&self.api.messages(&path, "v4.channel.k8s.io").1)
    }

    /// Runs a shell command line in a container, which has to succeed: what it printed.
    #[track_caller]
    pub(crate) fn exec(&self, pod: &str, container: &str, script: &str) -> String {
        let Executed { out, status } = self.try_exec(pod, container, script);
        assert_eq!(status["status"], "Success", "{script}: {out} {status}");
        out
    }

    /// Waits in a container until a condition of its shell holds.
    #[track_caller]
    pub(crate) fn until_in(&self, pod: &str, container: &str, condition: &str) {
        self.exec(pod, container, &format!("timeout 120 sh -c 'until {condition}; do sleep 0.1; done'"));
    }

    /// Waits for an event of an object whose message has a part.
    #[track_caller]
    pub(crate) fn until_event(&self, name: &str, reason: &str, part: &str) {
        let path = format!("events?fieldSelector=involvedObject.name%3D{name},reason%3D{reason}");
        self.until(&path, part, |events| events.values().any(|event| text(&event["message"]).contains(part)));
    }
}

/// The type of a JSON merge patch.
pub(crate) const MERGE: &str = "application/merge-patch+json";

/// A watch of one resource, and what it has told.
pub(crate) struct Watch<'a> {
    lines: Lines<'a>,
    objects: Objects,
    /// Those that went while it watched, as they were last.
    pub(crate) deleted: Vec<Value>,
}

impl Watch<'_> {
    /// Takes the next event; whether what was there before has been told with it.
    #[track_caller]
    fn step(&mut self, what: &str) -> bool {
        let objects = &self.objects;
        let line = self.lines.next(|| format!("{what}: {:#?}", without_fields(objects)));
        let line = line.unwrap_or_else(|| panic!("the watch ended before {what}"));
        let event: Value = serde_json::from_slice(&line).unwrap();
        let object = event["object"].clone();
        let name = text(&object["metadata"]["name"]);
        match event["type"].as_str().unwrap_or_default() {
            "BOOKMARK" => return !object["metadata"]["annotations"][BEGUN].is_null(),
            "ERROR" => panic!("{what}: {object}"),
            "DELETED" => {
                self.objects.remove(&name);
                self.deleted.push(object);
            }
            _ => drop(self.objects.insert(name, object)),
        }
        false
    }

    /// Goes on until all objects together are as wanted, asking after each event; gives them.
    #[track_caller]
    pub(crate) fn until(&mut self, what: &str, mut holds: impl FnMut(&Objects) -> bool) -> Objects {
        while !holds(&self.objects) {
            self.step(what);
        }
        self.objects.clone()
    }
}

fn without_fields(objects: &Objects) -> Objects {
    let mut objects = objects.clone();
    for object in objects.values_mut() {
        object["metadata"]["managedFields"] = Value::Null;
    }
    objects
}

/// A string of an object; empty where there is none.
pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Whether a pod lives and is Ready.
pub(crate) fn is_ready(pod: &Value) -> bool {
    pod["metadata"]["deletionTimestamp"].is_null() && condition(pod, "Ready")["status"] == "True"
}

/// A condition; null where there is none.
pub(crate) fn condition(object: &Value, kind: &str) -> Value {
    let mut conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    conditions.find(|known| known["type"] == kind).cloned().unwrap_or_default()
}

/// Whether a pod has ended, and how.
pub(crate) fn is_in(pod: &Value, phase: &str) -> bool {
    pod["status"]["phase"] == phase
}

/// The status of a pod's container, or of one that began before them.
pub(crate) fn container<'p>(pod: &'p Value, name: &str) -> &'p Value {
    let lists = ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"];
    let mut all = lists.iter().filter_map(|list| pod["status"][list].as_array()).flatten();
    all.find(|status| status["name"] == name).unwrap_or(&Value::Null)
}

/// How often a container was started anew.
pub(crate) fn restarts(pod: &Value, name: &str) -> u64 {
    container(pod, name)["restartCount"].as_u64().unwrap_or(0)
}

/// A container that runs a shell script.
pub(crate) fn shell(name: &str, script: &str) -> Value {
    json!({"name": name, "image": IMAGE, "command": ["sh", "-c", script]})
}

/// A pod of the containers, none of which is started twice.
pub(crate) fn pod_of(name: &str, containers: &[Value]) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": containers}})
}

/// A pod of one container, `main`, which runs a shell script.
pub(crate) fn pod(name: &str, script: &str) -> Value {
    pod_of(name, &[shell("main", script)])
}

/// What a container does that only has to be there.
pub(crate) const IDLE: &str = "trap 'exit 0' TERM; sleep 3600 & wait";

/// A pod's first container.
pub(crate) fn main(pod: &mut Value) -> &mut Value {
    &mut pod["spec"]["containers"][0]
}

/// Gives a pod a volume, and its first container the volume at a path; the mount may say more.
pub(crate) fn mount(pod: &mut Value, name: &str, source: Value, path: &str, more: Value) {
    let mut volume = source;
    volume["name"] = name.into();
    push(&mut pod["spec"]["volumes"], volume);
    let mut mount = more;
    if mount.is_null() {
        mount = json!({});
    }
    (mount["name"], mount["mountPath"]) = (name.into(), path.into());
    push(&mut main(pod)["volumeMounts"], mount);
}

/// Adds to a list, which is made where it is not there.
pub(crate) fn push(list: &mut Value, item: Value) {
    match list.as_array_mut() {
        Some(list) => list.push(item),
        None => *list = json!([item]),
    }
}

pub(crate) fn config_map(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

pub(crate) fn secret(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data})
}
