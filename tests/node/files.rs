//! Files that volumes make of objects. Source: `test/e2e/common/storage/{configmap,secrets,downwardapi}_volume.go` and
//! `projected_*.go`.

use serde_json::{Value, json};

use crate::api::base64;
use crate::environment::allocatable;
use crate::space::{Space, config_map, main, mount, pod, secret};

/// Where volumes are mounted.
const PATH: &str = "/etc/volume";
/// The user of pods that are not root's.
const USER: u64 = 1000;

/// A file of a volume: as whom it is read, and what is found.
struct File {
    pod: String,
    /// The volume's source.
    source: Value,
    /// The pod's user and the group of its volumes.
    user: Option<(u64, Option<u64>)>,
    file: &'static str,
    mode: &'static str,
    content: String,
}

/// An object's source in a volume by itself, or among those that are projected.
fn source(kind: &str, projected: bool, mode: Option<u32>, items: Option<Value>) -> Value {
    let mut fields = match (kind, projected) {
        ("secret", false) => json!({"secretName": "things"}),
        ("downwardAPI", _) => json!({}),
        _ => json!({"name": "things"}),
    };
    if let Some(items) = items {
        fields["items"] = items;
    }
    let mut volume = if projected { json!({"sources": [{kind: fields}]}) } else { fields };
    if let Some(mode) = mode {
        volume["defaultMode"] = mode.into();
    }
    if projected { json!({"projected": volume}) } else { json!({kind: volume}) }
}

/// How a volume of an object differs: a name for it, its mode, its items, its user, and the file that is then found.
type Case =
    (&'static str, Option<u32>, Option<Value>, Option<(u64, Option<u64>)>, &'static str, &'static str);

fn cases_of_objects() -> Vec<Case> {
    let mapped = |mode: Option<u32>| {
        let mut item = json!({"key": "data-2", "path": "path/to/data-2"});
        if let Some(mode) = mode {
            item["mode"] = mode.into();
        }
        Some(json!([item]))
    };
    let (flat, deep) = ("data-1", "path/to/data-2");
    let user = Some((USER, None));
    vec![
        ("default", None, None, None, flat, "-rw-r--r--"),
        ("mode", Some(0o400), None, None, flat, "-r--------"),
        ("user", None, None, user, flat, "-rw-r--r--"),
        ("group", Some(0o440), None, Some((USER, Some(1001))), flat, "-r--r-----"),
        ("mapped", None, mapped(None), None, deep, "-rw-r--r--"),
        ("mapped-mode", None, mapped(Some(0o400)), None, deep, "-r--------"),
        ("mapped-user", None, mapped(None), user, deep, "-rw-r--r--"),
    ]
}

fn cases_of_fields() -> Vec<Case> {
    let item = |mode: Option<u32>| {
        let mut item =
            json!({"path": "podname", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}});
        if let Some(mode) = mode {
            item["mode"] = mode.into();
        }
        Some(json!([item]))
    };
    let group = Some((USER, Some(1001)));
    vec![
        ("default", None, item(None), None, "podname", "-rw-r--r--"),
        ("mode", Some(0o400), item(None), None, "podname", "-r--------"),
        ("item-mode", None, item(Some(0o400)), None, "podname", "-r--------"),
        ("user", None, item(None), group, "podname", "-rw-r--r--"),
        ("group", Some(0o440), item(None), group, "podname", "-r--r-----"),
    ]
}

fn files() -> Vec<File> {
    let mut files = Vec::new();
    for kind in ["configMap", "secret", "downwardAPI"] {
        for projected in [false, true] {
            let cases = if kind == "downwardAPI" { cases_of_fields() } else { cases_of_objects() };
            for (case, mode, items, user, file, shown) in cases {
                let place = if projected { "projected" } else { "plain" };
                let pod = format!("{}-{place}-{case}", kind.to_lowercase());
                let content = match file {
                    "data-1" => "value-1".to_owned(),
                    "podname" => pod.clone(),
                    _ => "value-2".to_owned(),
                };
                let source = source(kind, projected, mode, items);
                files.push(File { pod, source, user, file, mode: shown, content });
            }
        }
    }
    files
}

pub(crate) fn files_of_volumes_have_their_content_and_mode(space: &Space<'_>) {
    let data = json!({"data-1": "value-1", "data-2": "value-2", "data-3": "value-3"});
    space.create("configmaps", &config_map("things", data.clone()));
    space.create("secrets", &secret("things", data));
    let files = files();
    let pods: Vec<Value> = files
        .iter()
        .map(|file| {
            let path = format!("{PATH}/{}", file.file);
            let mut pod = pod(&file.pod, &format!("stat -Lc '%A %g' {path}; cat {path}"));
            mount(&mut pod, "volume", file.source.clone(), PATH, json!({"readOnly": true}));
            if let Some((user, group)) = file.user {
                pod["spec"]["securityContext"] = json!({"runAsUser": user, "fsGroup": group});
            }
            pod
        })
        .collect();
    // So many at once as one may expect a node of two cores to start beside what else it does.
    for (files, pods) in files.chunks(10).zip(pods.chunks(10)) {
        let printed = space.outputs(pods);
        for File { pod, user, mode, content, .. } in files {
            let group = user.and_then(|(_, group)| group).unwrap_or(0);
            assert_eq!(printed[pod], format!("{mode} {group}\n{content}"), "{pod}");
        }
    }
}

pub(crate) fn an_object_is_mounted_at_several_paths(space: &Space<'_>) {
    space.create("configmaps", &config_map("things", json!({"data-1": "value-1"})));
    space.create("secrets", &secret("things", json!({"data-1": "value-1"})));
    let mut pods = Vec::new();
    for kind in ["configMap", "secret"] {
        for projected in [false, true] {
            let name = format!("{}-{projected}", kind.to_lowercase());
            let mut pod = pod(&name, "cat /etc/volume-1/data-1 /etc/volume-2/data-1");
            for place in ["volume-1", "volume-2"] {
                let path = format!("/etc/{place}");
                mount(&mut pod, place, source(kind, projected, None, None), &path, json!({"readOnly": true}));
            }
            pods.push(pod);
        }
    }
    for (name, printed) in space.outputs(&pods) {
        assert_eq!(printed, "value-1value-1", "{name}");
    }
}

pub(crate) fn binary_data_is_mounted_as_it_is(space: &Space<'_>) {
    let mut object = config_map("things", json!({"data-1": "value-1"}));
    object["binaryData"] = json!({"dump.bin": base64([0xde, 0xca, 0xfe, 0xba, 0xd0, 0xfe, 0xff])});
    space.create("configmaps", &object);
    let mut pod = pod("reader", &format!("cat {PATH}/data-1; echo; xxd -p {PATH}/dump.bin"));
    mount(&mut pod, "volume", source("configMap", false, None, None), PATH, Value::Null);
    assert_eq!(space.output(&pod), "value-1\ndecafebad0feff\n");
}

pub(crate) fn secrets_of_another_namespace_are_not_seen(space: &Space<'_>) {
    let name = format!("{}-2", space.name);
    let other = Space::new(space.cluster, space.api, &name);
    other
        .create("secrets", &secret("things", json!({"this-should-not-match-content-of-other-secret": "no"})));
    space.create("secrets", &secret("things", json!({"data-1": "value-1"})));
    let mut pod = pod("reader", &format!("ls {PATH}; cat {PATH}/data-1"));
    mount(&mut pod, "volume", source("secret", false, None, None), PATH, Value::Null);
    assert_eq!(space.output(&pod), "data-1\nvalue-1");
    other.close();
}

pub(crate) fn resources_are_told_in_volumes(space: &Space<'_>) {
    let names = ["limits.cpu", "limits.memory", "requests.cpu", "requests.memory"];
    let items = |names: &[&str]| {
        let item = |name: &&str| json!({"path": name, "resourceFieldRef": {"containerName": "main", "resource": name}});
        Some(names.iter().map(item).collect::<Value>())
    };
    let mut pods = Vec::new();
    for projected in [false, true] {
        let place = if projected { "projected" } else { "plain" };
        let mut stated =
            pod(&format!("{place}-stated"), &format!("cd {PATH}; for f in *; do cat $f; echo; done"));
        main(&mut stated)["resources"] = json!({"requests": {"cpu": "250m", "memory": "32Mi"},
            "limits": {"cpu": "1250m", "memory": "64Mi"}});
        let mut unstated = stated.clone();
        unstated["metadata"]["name"] = format!("{place}-unstated").into();
        main(&mut unstated)["resources"] = json!({});
        mount(
            &mut stated,
            "volume",
            source("downwardAPI", projected, None, items(&names)),
            PATH,
            Value::Null,
        );
        let limits = source("downwardAPI", projected, None, items(&names[..2]));
        mount(&mut unstated, "volume", limits, PATH, Value::Null);
        pods.extend([stated, unstated]);
    }
    let printed = space.outputs(&pods);
    let (cpu, memory) = allocatable(space);
    for place in ["plain", "projected"] {
        assert_eq!(printed[&format!("{place}-stated")], "2\n67108864\n1\n33554432\n", "{place}");
        assert_eq!(printed[&format!("{place}-unstated")], format!("{cpu}\n{memory}\n"), "{place}");
    }
}

pub(crate) fn all_sources_are_projected_together(space: &Space<'_>) {
    space.create("configmaps", &config_map("things", json!({"configmap-data": "configmap-value-1"})));
    space.create("secrets", &secret("things", json!({"secret-data": "secret-value-1"})));
    let all = json!({"projected": {"sources": [
        {"secret": {"name": "things"}},
        {"configMap": {"name": "things"}},
        {"downwardAPI": {"items": [{"path": "podname", "fieldRef": {"fieldPath": "metadata.name"}}]}},
    ]}});
    let mut pod = pod("reader", &format!("cd {PATH}; cat podname secret-data configmap-data"));
    mount(&mut pod, "volume", all, PATH, Value::Null);
    assert_eq!(space.output(&pod), "readersecret-value-1configmap-value-1");
}
