//! Two hosts that make one cluster, namespaces on it, and waiting for what its API says by watches.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Child, ChildStdout, Stdio};

use serde_json::de::IoRead;
use serde_json::{StreamDeserializer, Value, json};
use testbed::{Host, Ran, Testbed, end};

/// Nothing here takes so many seconds, however slow the machine: a wait that reaches them has failed.
const WAIT_MAX: &str = "240";
/// Sleeps, and ends when it is told to.
pub(crate) const SLEEPS: &str = "trap 'exit 0' TERM; sleep 3600 & wait";
/// A web server that answers with its pod's name, and ends when it is told to.
pub(crate) const SERVES: &str =
    "trap 'exit 0' TERM; mkdir -p /w; hostname > /w/index.html; httpd -f -p 80 -h /w & wait";
/// What pods run; both nodes have it.
pub(crate) const IMAGE: &str = "busybox:latest";
/// The same under another name: a change of a template.
pub(crate) const OTHER_IMAGE: &str = "busybox:v2";
/// No node has it, and none asks for it.
pub(crate) const NO_IMAGE: &str = "nobody/nothing:v1";

/// What the bookmark bears that comes after all that was there.
const BEGUN: &str = "k8s.io/initial-events-end";

/// The groups of resources that are asked for by path.
const PREFIXES: [(&str, &[&str]); 4] = [
    ("/api/v1", &["pods", "events", "replicationcontrollers"]),
    ("/apis/apps/v1", &["deployments", "replicasets", "daemonsets", "statefulsets", "controllerrevisions"]),
    ("/apis/batch/v1", &["jobs", "cronjobs"]),
    ("/apis/policy/v1", &["poddisruptionbudgets"]),
];

/// A cluster of two nodes with the images.
pub(crate) struct Cluster {
    pub(crate) bed: Testbed,
    pub(crate) first: Host,
    pub(crate) second: Host,
}

impl Cluster {
    pub(crate) fn up() -> Self {
        let bed = Testbed::new().unwrap();
        let (first, second) = (bed.host().unwrap(), bed.host().unwrap());
        first.must_skiff(&["up"]);
        let command = first.must_skiff(&["token", "create", "--ttl", "1h"]);
        let words: Vec<&str> = command.split_ascii_whitespace().skip(1).collect();
        second.must_skiff(&words);
        first.must_kubectl(&["wait", "node", "--all", "--for=condition=Ready", "--timeout=240s"]);
        let archive = testbed::base_image("busybox-bookworm.tar").unwrap();
        for host in [&first, &second] {
            host.must_skiff(&["load", "-i", &archive.to_string_lossy()]);
            host.must_skiff(&["tag", IMAGE, OTHER_IMAGE]);
        }
        Self { bed, first, second }
    }

    pub(crate) fn nodes(&self) -> [&str; 2] {
        [&self.first.name, &self.second.name]
    }
}

/// A namespace of its own for one behaviour.
pub(crate) struct Space<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) name: String,
}

impl<'a> Space<'a> {
    /// Makes it, and waits until pods may be made in it.
    pub(crate) fn new(cluster: &'a Cluster, name: &str) -> Self {
        let space = Self { cluster, name: name.replace('_', "-") };
        cluster.first.must_kubectl(&["create", "namespace", &space.name]);
        space.run(&["wait", "--for=create", "serviceaccount/default", "--timeout=240s"]);
        space
    }

    /// Lets go of it: what is left in it goes on its own.
    pub(crate) fn close(self) {
        self.cluster.first.must_kubectl(&["delete", "namespace", &self.name, "--wait=false"]);
    }

    /// Runs kubectl in the namespace.
    pub(crate) fn try_run(&self, args: &[&str]) -> Ran {
        self.cluster.first.kubectl(&[&["-n", &self.name], args].concat()).unwrap()
    }

    /// Runs kubectl in the namespace, which has to succeed: its output.
    #[track_caller]
    pub(crate) fn run(&self, args: &[&str]) -> String {
        self.cluster.first.must_kubectl(&[&["-n", &self.name], args].concat())
    }

    /// Runs kubectl in the namespace with an object on its standard input.
    pub(crate) fn feed(&self, args: &[&str], object: &Value) -> Ran {
        let all = [&["-n", &self.name], args, &["-f", "-"]].concat();
        let mut command = self.cluster.first.kubectl_command(&all).unwrap();
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // Who does not read to the end says why.
        let _ = stdin.write_all(object.to_string().as_bytes());
        drop(stdin);
        child.wait_with_output().unwrap().into()
    }

    /// Creates an object, which has to be accepted.
    #[track_caller]
    pub(crate) fn make(&self, object: &Value) {
        let ran = self.feed(&["create"], object);
        assert_eq!(ran.code, 0, "{ran:?}");
    }

    /// Creates an object, which has to be refused: what is said about it.
    #[track_caller]
    pub(crate) fn refused(&self, object: &Value) -> String {
        let ran = self.feed(&["create"], object);
        assert_eq!(ran.code, 1, "{object} was accepted");
        ran.err
    }

    /// An object, or a list of them.
    #[track_caller]
    pub(crate) fn get(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.run(&[&["get", "-o", "json"], args].concat())).unwrap()
    }

    /// The items of a list.
    #[track_caller]
    pub(crate) fn list(&self, args: &[&str]) -> Vec<Value> {
        self.get(args)["items"].as_array().cloned().unwrap()
    }

    /// Applies a JSON merge patch to `kind/name`; gives the object.
    #[track_caller]
    pub(crate) fn patch(&self, what: &str, patch: &Value) -> Value {
        self.patch_with(&[what], patch)
    }

    /// Applies a JSON merge patch with more arguments; gives the object.
    #[track_caller]
    pub(crate) fn patch_with(&self, args: &[&str], patch: &Value) -> Value {
        let patch = patch.to_string();
        let all = [&["patch", "--type=merge", "-o", "json", "-p", &patch], args].concat();
        serde_json::from_str(&self.run(&all)).unwrap()
    }

    /// Reads `kind/name`, or a part of it (`--subresource=…`), changes it and writes it back; anew where another was
    /// faster.
    #[track_caller]
    pub(crate) fn update(&self, args: &[&str], change: impl Fn(&mut Value)) -> Value {
        loop {
            let mut object = self.get(args);
            change(&mut object);
            let part: Vec<&str> = args.iter().filter(|arg| arg.starts_with("--")).copied().collect();
            let ran = self.feed(&[&["replace", "-o", "json"], &part[..]].concat(), &object);
            if ran.code == 0 {
                return serde_json::from_str(&ran.out).unwrap();
            }
            assert!(ran.err.contains("(Conflict)"), "{args:?}: {ran:?}");
        }
    }

    /// The path of a resource in this namespace; the text may go on with a name or a query.
    pub(crate) fn path(&self, resource: &str) -> String {
        let plural = resource.split(['?', '/']).next().unwrap_or_default();
        let (prefix, _) = PREFIXES.iter().find(|(_, plurals)| plurals.contains(&plural)).unwrap();
        format!("{prefix}/namespaces/{}/{resource}", self.name)
    }

    /// Deletes the objects of a resource that have a label, in one request.
    #[track_caller]
    pub(crate) fn delete_collection(&self, resource: &str, label: &str) {
        let query = format!("{resource}?labelSelector={}", label.replace('=', "%3D"));
        self.run(&["delete", "--raw", &self.path(&query)]);
    }

    /// Watches a resource; what is there already is known when this returns.
    #[track_caller]
    pub(crate) fn watch(&self, resource: &str) -> Watch {
        Watch::open(&self.cluster.first, &self.path(resource))
    }

    /// Watches a resource until all of it is as wanted; gives it by name.
    #[track_caller]
    pub(crate) fn until(&self, resource: &str, what: &str, holds: impl FnMut(&Objects) -> bool) -> Objects {
        self.watch(resource).until(what, holds)
    }

    /// Watches one object until it is as wanted.
    #[track_caller]
    pub(crate) fn until_one(
        &self,
        resource: &str,
        name: &str,
        what: &str,
        mut holds: impl FnMut(&Value) -> bool,
    ) -> Value {
        let named = format!("{resource}?fieldSelector=metadata.name%3D{name}");
        let found = self.until(&named, what, |objects| objects.get(name).is_some_and(&mut holds));
        found.into_values().next().unwrap()
    }

    /// The pods with label `app`, once as many as wanted are Ready and no other is left.
    #[track_caller]
    pub(crate) fn ready_pods(&self, app: &str, count: usize) -> Objects {
        self.until(&of(app), &format!("{count} Ready pods"), |pods| {
            pods.len() == count && pods.values().all(is_ready)
        })
    }

    /// Waits until the controller of an object has seen its present generation.
    #[track_caller]
    pub(crate) fn seen(&self, resource: &str, name: &str) -> Value {
        let wanted = self.get(&[resource, name])["metadata"]["generation"].clone();
        self.until_one(resource, name, "seen by its controller", |object| {
            object["status"]["observedGeneration"].as_u64() >= wanted.as_u64()
        })
    }

    /// Waits until nothing of a resource is left.
    #[track_caller]
    pub(crate) fn until_gone(&self, resource: &str) {
        self.until(resource, "gone", BTreeMap::is_empty);
    }
}

/// Objects by name.
pub(crate) type Objects = BTreeMap<String, Value>;

/// A watch of one resource, and what it has told.
pub(crate) struct Watch {
    child: Child,
    events: StreamDeserializer<'static, IoRead<ChildStdout>, Value>,
    objects: Objects,
    path: String,
}

impl Watch {
    #[track_caller]
    fn open(host: &Host, path: &str) -> Self {
        let more = if path.contains('?') { '&' } else { '?' };
        let query =
            "watch=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
        let mut command = host.command("timeout");
        command.arg(WAIT_MAX).arg(testbed::kubectl().unwrap()).args(["get", "--raw"]);
        let mut child = command.arg(format!("{path}{more}{query}")).stdout(Stdio::piped()).spawn().unwrap();
        let events = serde_json::Deserializer::from_reader(child.stdout.take().unwrap()).into_iter();
        let mut watch = Self { child, events, objects: Objects::new(), path: path.to_owned() };
        while !watch.step().unwrap_or_else(|| panic!("{path}: the watch ended before it began")) {}
        watch
    }

    /// Takes the next event; whether what was there before has been told with it, or nothing where the watch has ended.
    fn step(&mut self) -> Option<bool> {
        let event = self.events.next()?.ok()?;
        let object = event["object"].clone();
        let name = text(&object["metadata"]["name"]);
        match event["type"].as_str()? {
            "BOOKMARK" => return Some(!object["metadata"]["annotations"][BEGUN].is_null()),
            "ERROR" => panic!("{}: {object}", self.path),
            "DELETED" => drop(self.objects.remove(&name)),
            _ => drop(self.objects.insert(name, object)),
        }
        Some(false)
    }

    /// Goes on until all objects together are as wanted, asking after each event; gives them.
    #[track_caller]
    pub(crate) fn until(&mut self, what: &str, mut holds: impl FnMut(&Objects) -> bool) -> Objects {
        while !holds(&self.objects) {
            if self.step().is_none() {
                self.give_up(what);
            }
        }
        self.objects.clone()
    }

    #[track_caller]
    fn give_up(&mut self, what: &str) -> ! {
        for object in self.objects.values_mut() {
            object["metadata"]["managedFields"] = Value::Null;
        }
        panic!("{}: {what}: not so after {WAIT_MAX} s: {:#?}", self.path, self.objects)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// The pods with label `app`.
pub(crate) fn of(app: &str) -> String {
    format!("pods?labelSelector=app%3D{app}")
}

/// A string of an object; empty where there is none.
pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The uid of an object.
pub(crate) fn uid(object: &Value) -> String {
    text(&object["metadata"]["uid"])
}

/// Whether a pod was told to end.
pub(crate) fn is_ending(pod: &Value) -> bool {
    !pod["metadata"]["deletionTimestamp"].is_null()
}

/// Whether a pod lives and is Ready.
pub(crate) fn is_ready(pod: &Value) -> bool {
    !is_ending(pod) && condition(pod, "Ready") == "True"
}

/// The value of a condition; empty where there is none.
pub(crate) fn condition(object: &Value, kind: &str) -> String {
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    conditions
        .filter(|known| known["type"] == kind)
        .map(|known| text(&known["status"]))
        .next()
        .unwrap_or_default()
}

/// The image of a pod's, or a template's, first container.
pub(crate) fn image(pod: &Value) -> &str {
    pod["spec"]["containers"][0]["image"].as_str().unwrap_or_default()
}

/// The uid of an object's controller; empty where it has none.
pub(crate) fn controller(object: &Value) -> String {
    let owners = object["metadata"]["ownerReferences"].as_array().into_iter().flatten();
    owners
        .filter(|owner| owner["controller"] == true)
        .map(|owner| text(&owner["uid"]))
        .next()
        .unwrap_or_default()
}

/// A merge patch that sets the template's image.
pub(crate) fn with_image(image: &str) -> Value {
    json!({"spec": {"template": {"spec": {"containers": [container(image, SLEEPS)]}}}})
}

fn container(image: &str, script: &str) -> Value {
    json!({"name": "main", "image": image, "command": ["sh", "-c", script],
        "imagePullPolicy": if image == NO_IMAGE { "Never" } else { "IfNotPresent" }})
}

/// What a pod of one container is to be.
pub(crate) fn pod_spec(script: &str) -> Value {
    json!({"terminationGracePeriodSeconds": 1, "containers": [container(IMAGE, script)]})
}

/// A pod with label `app`.
pub(crate) fn pod(name: &str, app: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": app}},
        "spec": pod_spec(SLEEPS)})
}

/// A kind of workload: its kind, its plural, its version.
#[derive(Clone, Copy)]
pub(crate) struct Kind(pub(crate) &'static str, pub(crate) &'static str, &'static str);

pub(crate) const DEPLOYMENT: Kind = Kind("Deployment", "deployments", "apps/v1");
pub(crate) const REPLICA_SET: Kind = Kind("ReplicaSet", "replicasets", "apps/v1");
pub(crate) const REPLICATION_CONTROLLER: Kind = Kind("ReplicationController", "replicationcontrollers", "v1");
pub(crate) const STATEFUL_SET: Kind = Kind("StatefulSet", "statefulsets", "apps/v1");
pub(crate) const DAEMON_SET: Kind = Kind("DaemonSet", "daemonsets", "apps/v1");

impl Kind {
    /// An object of this kind over pods with label `app`, which is its name.
    pub(crate) fn of(self, name: &str, replicas: u32) -> Value {
        let labels = json!({"app": name});
        let mut object = json!({"apiVersion": self.2, "kind": self.0, "metadata": {"name": name, "labels": labels},
            "spec": {"replicas": replicas, "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod_spec(SLEEPS)}}});
        match self.0 {
            "ReplicationController" => object["spec"]["selector"] = labels,
            "DaemonSet" => drop(object["spec"].as_object_mut().unwrap().remove("replicas")),
            "StatefulSet" => object["spec"]["serviceName"] = name.into(),
            _ => {}
        }
        object
    }

    /// `plural/name`.
    pub(crate) fn named(self, name: &str) -> String {
        format!("{}/{name}", self.1)
    }
}
