//! Bad input: one clear error each, and nothing half-applied.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use testbed::Testbed;

use crate::support::{Cluster, SERVER, container, deployment, pod, service, text};

/// A command that fails.
struct Case {
    /// What is wrong with it.
    name: &'static str,
    /// Arguments of kubectl.
    args: &'static [&'static str],
    /// Its standard input.
    input: Value,
    /// What its error has to say: upstream's words, where users know them.
    says: &'static [&'static str],
}

const APPLY: &[&str] = &["apply", "-f", "-"];
const CREATE: &[&str] = &["create", "-f", "-"];

fn case(
    name: &'static str,
    args: &'static [&'static str],
    input: Value,
    says: &'static [&'static str],
) -> Case {
    Case { name, args, input, says }
}

/// An object with one field changed.
fn with(mut object: Value, pointer: &str, value: Value) -> Value {
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    object.pointer_mut(parent).unwrap_or_else(|| panic!("{parent}"))[field] = value;
    object
}

fn without(mut object: Value, parent: &str, field: &str) -> Value {
    object.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(field);
    object
}

fn good_pod() -> Value {
    pod("bad", "sleep 100000")
}

fn good_deployment() -> Value {
    deployment("bad", 1, "sleep 100000")
}

fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "v"}})
}

/// Documents that cannot be read.
fn unreadable() -> Vec<Case> {
    let main = "/spec/containers/0";
    vec![
        case(
            "malformed YAML",
            APPLY,
            json!("apiVersion: v1\nkind: ConfigMap\n metadata: {name: bad}\n"),
            &["error converting YAML to JSON: yaml: line 3"],
        ),
        case("no kind", APPLY, json!({"apiVersion": "v1", "metadata": {"name": "bad"}}), &["kind"]),
        case(
            "an unknown kind",
            APPLY,
            json!({"apiVersion": "example.com/v1", "kind": "Gadget", "metadata": {"name": "bad"}}),
            &[
                "no matches for kind \"Gadget\" in version \"example.com/v1\"",
                "ensure CRDs are installed first",
            ],
        ),
        case(
            "a scale that is no number",
            &[
                "patch",
                "deployment",
                "web",
                "--subresource=scale",
                "--type=merge",
                "-p",
                r#"{"spec":{"replicas":"3"}}"#,
            ],
            Value::Null,
            &["spec.replicas of type int32"],
        ),
        case(
            "an unknown field",
            APPLY,
            with(good_deployment(), "/spec/replcas", json!(2)),
            &["Error from server (BadRequest)", "strict decoding error: unknown field \"spec.replcas\""],
        ),
        case(
            "unknown fields deep inside",
            APPLY,
            with(with(good_pod(), &format!("{main}/imag"), json!("x")), "/spec/nodeNme", json!("x")),
            &["unknown field \"spec.containers[0].imag\"", "unknown field \"spec.nodeNme\""],
        ),
        case(
            "a word for a number",
            APPLY,
            with(good_deployment(), "/spec/replicas", json!("two")),
            &["BadRequest", "cannot unmarshal string into Go struct field", "spec.replicas of type int32"],
        ),
        case(
            "an object for a list",
            APPLY,
            with(good_pod(), "/spec/containers", json!({"name": "main"})),
            &[
                "BadRequest",
                "cannot unmarshal object into Go struct field",
                "spec.containers of type []v1.Container",
            ],
        ),
        case(
            "a quantity that is none",
            APPLY,
            with(good_pod(), &format!("{main}/resources"), json!({"limits": {"memory": "12Q"}})),
            &["quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"],
        ),
        case(
            "data that is no base64",
            APPLY,
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bad"}, "data": {"k": "%%%"}}),
            &["illegal base64 data at input byte 0"],
        ),
    ]
}

/// Documents that say what cannot be.
#[allow(clippy::too_many_lines, reason = "a table")]
fn invalid() -> Vec<Case> {
    let main = "/spec/containers/0";
    let mut twice = good_pod();
    let again = twice["spec"]["containers"][0].clone();
    twice["spec"]["containers"].as_array_mut().unwrap().push(again);
    vec![
        case(
            "no selector",
            APPLY,
            without(good_deployment(), "/spec", "selector"),
            &["The Deployment \"bad\" is invalid", "spec.selector: Required value"],
        ),
        case(
            "no containers",
            APPLY,
            with(good_pod(), "/spec/containers", json!([])),
            &["The Pod \"bad\" is invalid: spec.containers: Required value"],
        ),
        case(
            "no image",
            APPLY,
            without(good_pod(), main, "image"),
            &["spec.containers[0].image: Required value"],
        ),
        case(
            "a name in capitals",
            APPLY,
            config_map("Bad_Name"),
            &["The ConfigMap \"Bad_Name\" is invalid: metadata.name: Invalid value: \"Bad_Name\": \
                 a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.'"],
        ),
        case(
            "a label with a space",
            APPLY,
            with(config_map("bad"), "/metadata/labels", json!({"a": "b c"})),
            &["metadata.labels: Invalid value: \"b c\": a valid label must be an empty string or consist of"],
        ),
        case(
            "a port that is none",
            APPLY,
            with(good_pod(), &format!("{main}/ports"), json!([{"containerPort": 70000}])),
            &[
                "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
            ],
        ),
        case(
            "a node port out of range",
            APPLY,
            with(
                with(service("bad"), "/spec/type", json!("NodePort")),
                "/spec/ports",
                json!([{"port": 80, "nodePort": 80}]),
            ),
            &[
                "spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid \
               ports is 30000-32767",
            ],
        ),
        case("a container twice", APPLY, twice, &["spec.containers[1].name: Duplicate value: \"main\""]),
        case(
            "a mount of no volume",
            APPLY,
            with(good_pod(), &format!("{main}/volumeMounts"), json!([{"name": "nope", "mountPath": "/x"}])),
            &["spec.containers[0].volumeMounts[0].name: Not found: \"nope\""],
        ),
        case(
            "a policy that is none",
            APPLY,
            with(good_pod(), "/spec/restartPolicy", json!("Sometimes")),
            &["spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", "],
        ),
        case(
            "a policy that a Deployment cannot have",
            APPLY,
            with(good_deployment(), "/spec/template/spec/restartPolicy", json!("Never")),
            &["spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\""],
        ),
        case(
            "more asked for than allowed",
            APPLY,
            with(
                good_pod(),
                &format!("{main}/resources"),
                json!({"requests": {"memory": "2Gi"}, "limits": {"memory": "1Gi"}}),
            ),
            &[
                "spec.containers[0].resources.requests: Invalid value: \"2Gi\": must be less than or equal to memory \
               limit of 1Gi",
            ],
        ),
        case(
            "fewer than no replicas",
            APPLY,
            with(good_deployment(), "/spec/replicas", json!(-1)),
            &["spec.replicas: Invalid value: -1: must be greater than or equal to 0"],
        ),
        case(
            "labels that the selector does not select",
            APPLY,
            with(good_deployment(), "/spec/template/metadata/labels", json!({"app": "other"})),
            &[
                "spec.template.metadata.labels: Invalid value: {\"app\":\"other\"}: `selector` does not match template \
               `labels`",
            ],
        ),
    ]
}

/// What does not go with what is there: a Deployment, Service and pod `web` and a ConfigMap `there`.
#[allow(clippy::too_many_lines, reason = "a table")]
fn conflicting() -> Vec<Case> {
    vec![
        case(
            "another selector",
            APPLY,
            with(
                with(deployment("web", 1, SERVER), "/spec/selector/matchLabels", json!({"app": "x"})),
                "/spec/template/metadata/labels",
                json!({"app": "x"}),
            ),
            &["The Deployment \"web\" is invalid: spec.selector: Invalid value: ", "field is immutable"],
        ),
        case(
            "another cluster address",
            &[
                "patch",
                "service",
                "web",
                "-p",
                r#"{"spec":{"clusterIP":"10.0.0.99","clusterIPs":["10.0.0.99"]}}"#,
            ],
            Value::Null,
            &[
                "The Service \"web\" is invalid: spec.clusterIPs[0]: Invalid value: ",
                "may not change once set",
            ],
        ),
        case(
            "another command in a pod",
            APPLY,
            with(pod("web", SERVER), "/spec/containers/0/command", json!(["true"])),
            &["The Pod \"web\" is invalid: spec: Forbidden: pod updates may not change fields other than"],
        ),
        case(
            "an unknown namespace",
            APPLY,
            with(config_map("bad"), "/metadata/namespace", json!("nope")),
            &["Error from server (NotFound): error when creating \"STDIN\": namespaces \"nope\" not found"],
        ),
        case(
            "what is there already",
            CREATE,
            config_map("there"),
            &[
                "Error from server (AlreadyExists): error when creating \"STDIN\": configmaps \"there\" already exists",
            ],
        ),
        case(
            "a kind that is none",
            &["get", "foos"],
            Value::Null,
            &["error: the server doesn't have a resource type \"foos\""],
        ),
        case(
            "what is not there",
            &["get", "pod", "nope"],
            Value::Null,
            &["Error from server (NotFound): pods \"nope\" not found"],
        ),
        case(
            "an old resource version",
            &["replace", "-f", "-"],
            with(config_map("there"), "/metadata/resourceVersion", json!("1")),
            &[
                "Error from server (Conflict)",
                "the object has been modified; please apply your changes to the latest version",
            ],
        ),
        case(
            "a patch that is no object",
            &["patch", "configmap", "there", "-p", "[]"],
            Value::Null,
            &["BadRequest", "json: cannot unmarshal array into Go value of type map[string]interface {}"],
        ),
        case(
            "a patch of a field that is none",
            &["patch", "deployment", "web", "--type", "merge", "-p", r#"{"spec":{"replicas":"many"}}"#],
            Value::Null,
            &["cannot unmarshal string into Go struct field", "spec.replicas of type int32"],
        ),
        case(
            "a JSON patch of what is not there",
            &[
                "patch",
                "configmap",
                "there",
                "--type",
                "json",
                "-p",
                r#"[{"op":"remove","path":"/data/nope"}]"#,
            ],
            Value::Null,
            &["the server rejected our request"],
        ),
        case(
            "logs of a container that is none",
            &["logs", "web", "-c", "nope"],
            Value::Null,
            &["container nope is not valid for pod web"],
        ),
        case(
            "a revision that is none",
            &["rollout", "undo", "deployment/web", "--to-revision=99"],
            Value::Null,
            &["unable to find specified revision 99 in history"],
        ),
    ]
}

/// Documents beyond the limits.
fn too_large() -> Vec<Case> {
    let of = |bytes: usize| with(config_map("bad"), "/data", json!({"k": "x".repeat(bytes)}));
    vec![
        case(
            "more data than an object may have",
            CREATE,
            of((1 << 20) + 1),
            &["Too long: may not be more than 1048576 bytes"],
        ),
        case(
            "a body beyond the limit",
            CREATE,
            of(4 << 20),
            &["Error from server (RequestEntityTooLarge)", "limit is 3145728"],
        ),
    ]
}

/// Everything that a failing command could have changed, by kind and name.
fn versions(cluster: &Cluster) -> BTreeMap<String, Value> {
    let kinds = "configmaps,secrets,services,deployments,replicasets,pods,namespaces,serviceaccounts";
    let objects = cluster.list(&[kinds, "-A"]);
    let version = |object: &Value| {
        let meta = &object["metadata"];
        (
            format!("{} {}/{}", object["kind"], meta["namespace"], meta["name"]),
            meta["resourceVersion"].clone(),
        )
    };
    objects.iter().map(version).collect()
}

#[test]
fn each_mistake_gives_one_clear_error_and_changes_nothing() {
    let cluster = Cluster::up();
    cluster.apply(&[deployment("web", 1, SERVER), service("web"), pod("web", SERVER), config_map("there")]);
    cluster.ready_pods("web", 1);
    cluster.host.must_kubectl(&["wait", "--for=condition=Ready", "pod/web", "--timeout=120s"]);
    cluster.host.must_kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"]);
    let before = versions(&cluster);
    let mut wrong = Vec::new();
    for case in unreadable().into_iter().chain(invalid()).chain(conflicting()).chain(too_large()) {
        let input = case.input.as_str().map_or_else(|| case.input.to_string(), str::to_owned);
        let ran = cluster.kubectl_with(case.args, &input);
        let missing: Vec<_> = case.says.iter().filter(|part| !ran.err.contains(**part)).collect();
        // kubectl warns of what it does besides, and has a remedy of its own.
        let besides =
            |line: &&str| line.starts_with("Warning: ") || *line == "ensure CRDs are installed first";
        let one = ran.err.lines().filter(|line| !besides(line)).count() == 1;
        if ran.code != 1 || !ran.out.is_empty() || !missing.is_empty() || !one {
            let err: String = ran.err.chars().take(1000).collect();
            wrong.push(format!("{}: code {}, {}{err}  lacks {missing:?}", case.name, ran.code, ran.out));
        }
    }
    unreadable_by_the_server(&cluster, &mut wrong);
    let after = versions(&cluster);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(after, before);
    cluster.purge();
}

/// Bodies that kubectl would not send, as another client sends them: (what, content type, body, what the error says).
const BODIES: [(&str, &str, &str, &str); 7] = [
    (
        "malformed YAML",
        "application/yaml",
        "apiVersion: v1\nkind: ConfigMap\n metadata: {name: bad}\n",
        "line 3",
    ),
    ("a tab in YAML", "application/yaml", "kind: ConfigMap\nmetadata:\n\tname: bad\n", "line 3"),
    ("an unclosed list in YAML", "application/yaml", "kind: ConfigMap\nmetadata: [name\n", "line"),
    ("YAML that is only a word", "application/yaml", "configmap", ""),
    ("half a JSON object", "application/json", "{\"kind\": \"ConfigMap\", \"metadata\"", ""),
    ("YAML as JSON", "application/json", "kind: ConfigMap\nmetadata: {name: bad}\n", "line 1 column 1"),
    ("nothing at all", "application/json", "", ""),
];

/// The server says of each with a Status of code 400 what is wrong with it, and keeps nothing of it.
fn unreadable_by_the_server(cluster: &Cluster, wrong: &mut Vec<String>) {
    let (keys, server) = cluster.keys();
    let file = cluster.host.directory().join("body");
    for (what, media_type, body, says) in BODIES {
        std::fs::write(&file, body).unwrap();
        let answer = cluster.host.must_sh(&format!(
            "curl -sS --max-time 120 --cacert {keys}/ca --cert {keys}/cert --key {keys}/key \
             -H 'Content-Type: {media_type}' -H 'Accept: application/json' --data-binary @{} \
             {server}/api/v1/namespaces/default/configmaps",
            file.display()
        ));
        let status: Value = serde_json::from_str(&answer).unwrap_or_default();
        let message = text(&status["message"]);
        let one = !message.is_empty() && message.trim_end().lines().count() == 1;
        let refused = status["kind"] == "Status" && status["code"] == 400 && status["reason"] == "BadRequest";
        if !refused || !one || !message.contains(says) {
            wrong.push(format!("{what}: {answer}"));
        }
    }
}

#[test]
fn of_a_list_with_one_bad_object_the_good_ones_are_applied() {
    let cluster = Cluster::up();
    let list = |bad: Value| {
        let items = [config_map("one"), bad, config_map("two")];
        json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
    };
    let ran = cluster.kubectl_with(APPLY, &list(config_map("Bad_Name")));
    assert_eq!((ran.code, &*ran.out), (1, "configmap/one created\nconfigmap/two created\n"), "{ran:?}");
    assert!(ran.err.contains("The ConfigMap \"Bad_Name\" is invalid: metadata.name"), "{ran:?}");
    let names: Vec<_> =
        cluster.list(&["configmaps"]).iter().map(|map| text(&map["metadata"]["name"])).collect();
    assert_eq!(names, ["kube-root-ca.crt", "one", "two"]);
    // What kubectl itself finds wrong in a list it does not send at all.
    let ran = cluster.kubectl_with(APPLY, &list(with(good_deployment(), "/spec/replcas", json!(1))));
    assert_eq!((ran.code, &*ran.out), (1, ""), "{ran:?}");
    assert!(ran.err.contains("unknown field \"replcas\" in io.k8s.api.apps.v1.DeploymentSpec"), "{ran:?}");
    assert!(cluster.list(&["deployments"]).is_empty());

    // Asked to, the server takes what it knows and warns of the rest.
    let unknown = with(config_map("warned"), "/spec", json!({"x": 1}));
    let ran = cluster.kubectl_with(&["apply", "--validate=warn", "-f", "-"], &unknown.to_string());
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.err.contains("Warning: unknown field \"spec\""), "{ran:?}");
    // And with no validation at all it says nothing.
    let unknown = with(config_map("ignored"), "/spec", json!({"x": 1}));
    let ran = cluster.kubectl_with(&["apply", "--validate=ignore", "-f", "-"], &unknown.to_string());
    assert_eq!((ran.code, &*ran.err), (0, ""), "{ran:?}");
    cluster.purge();
}

#[test]
fn nulls_in_maps_are_no_lasting_damage() {
    let cluster = Cluster::up();
    let null = |field: &str| {
        let mut object = config_map("nulls");
        object["metadata"] = json!({"name": "nulls", field: {"gone": null, "kept": "x"}});
        object
    };
    for field in ["annotations", "labels"] {
        // kubectl's own last-applied annotation would hide what the server does with a null: create has none.
        let ran = cluster.kubectl_with(CREATE, &null(field).to_string());
        assert_eq!(ran.code, 0, "{ran:?}");
        let seen = cluster.get(&["configmap", "nulls"]);
        assert_eq!(seen["metadata"][field]["kept"], "x", "{seen}");
        cluster.list(&["configmaps", "-A"]);
        let patch = format!(r#"{{"metadata":{{"{field}":{{"kept":null,"more":"y"}}}}}}"#);
        cluster.host.must_kubectl(&["patch", "configmap", "nulls", "-p", &patch]);
        let seen = cluster.get(&["configmap", "nulls"]);
        assert_eq!(
            (&seen["metadata"][field]["more"], &seen["metadata"][field]["kept"]),
            (&json!("y"), &Value::Null)
        );
        cluster.host.must_kubectl(&["delete", "configmap", "nulls"]);
    }
    let null_data = with(config_map("nulls"), "/data", json!({"gone": null, "kept": "x"}));
    cluster.kubectl_with(CREATE, &null_data.to_string());
    cluster.list(&["configmaps", "-A"]);
    cluster.purge();
}

#[test]
fn a_missing_image_is_named_with_its_remedy() {
    let cluster = Cluster::up();
    let pod_of =
        |name: &str, image: &str| with(pod(name, "sleep 100000"), "/spec/containers/0/image", json!(image));
    let missing = pod_of("missing", "127.0.0.1:5999/app:1");
    let never = with(pod_of("never", "nowhere:1"), "/spec/containers/0/imagePullPolicy", json!("Never"));
    let malformed = pod_of("malformed", "Not/An/Image:::");
    cluster.apply(&[missing, never, malformed]);
    let reason = |pod: &Value| text(&container(pod)["state"]["waiting"]["reason"]);
    let message = |pod: &Value| text(&container(pod)["state"]["waiting"]["message"]);
    let seen = cluster.until(&["pod", "missing"], "no image", |pod| reason(pod) == "RegistryUnavailable");
    for part in ["127.0.0.1:5999/app:1", "skiff load"] {
        assert!(message(&seen).contains(part), "{part}: {}", message(&seen));
    }
    let seen = cluster.until(&["pod", "missing"], "waiting", |pod| reason(pod) == "ImagePullBackOff");
    let start = "Back-off pulling image \"127.0.0.1:5999/app:1\": RegistryUnavailable: ";
    assert!(message(&seen).starts_with(start), "{}", message(&seen));
    assert!(message(&seen).contains("skiff load"), "{}", message(&seen));
    assert_eq!(seen["status"]["phase"], "Pending");
    let seen = cluster.until(&["pod", "never"], "never", |pod| reason(pod) == "ErrImageNeverPull");
    assert_eq!(message(&seen), "Container image \"nowhere:1\" is not present with pull policy of Never");
    let seen = cluster.until(&["pod", "malformed"], "no name", |pod| reason(pod) == "InvalidImageName");
    assert!(message(&seen).contains("Not/An/Image:::"), "{}", message(&seen));
    // An image that comes later is taken at the next try, at once if the pod is made anew.
    cluster.purge();
}

#[test]
fn up_says_why_it_cannot() {
    let bed = Testbed::new().unwrap();
    let host = bed.host().unwrap();
    let untouched = host.traces().unwrap();
    host.must_skiff(&["up"]);
    // Other tests' hosts come and go in the /var/lib that all share.
    let listed = format!(
        "ip -o link | cut -d: -f2; ip -4 route | sed 's/ linkdown//'; ls -A /run; \
         ls -A /var/lib | grep -vE '^t[0-9a-z]{{5}}$'; ls -dA /var/lib/{}*",
        host.name
    );
    let state = || host.must_sh(&listed);
    let before = state();
    let port =
        host.must_kubectl(&["config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"]);
    let port = port.rsplit_once(':').unwrap().1.to_owned();
    let other = format!("{}b", &host.name[..8.min(host.name.len())]);
    let dirs = ["--data-dir", "/run/other-data", "--run-dir", "/run/other-run"];
    let fails = |args: &[&str], says: &[&str]| {
        let ran = host.skiff(args).unwrap();
        assert_eq!((ran.code, &*ran.out), (1, ""), "{args:?}: {ran:?}");
        assert_eq!(ran.err.trim_end().lines().count(), 1, "{args:?}: {}", ran.err);
        for part in says {
            assert!(ran.err.contains(part), "{args:?}: {part:?} is not in {}", ran.err);
        }
    };
    for flag in ["--api-port", "--node-port"] {
        let args = [&["--name", &other][..], &dirs, &["up", flag, &port]].concat();
        fails(&args, &[&port, flag, "in use"]);
    }
    fails(&["--name", "Not-A-Name", "up"], &["instance name \"Not-A-Name\" does not fit"]);
    fails(&["up", "--node-name", "a_b"], &["node name \"a_b\" is not a DNS name", "--node-name"]);
    fails(&["up", "--api-port", "7777"], &["is already running with --api-port", "skiff down"]);
    fails(&["up", "--config", "/no/such/file"], &["configuration file /no/such/file"]);
    fails(
        &["--name", "absent", "status"],
        &["no instance \"absent\" is running here", "skiff up --name absent"],
    );
    assert_eq!(state(), before);

    // Who is not root and has no place of its own is told so, and has no instance to end.
    let ran = as_nobody(&host, "up");
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains("needs root") && ran.err.contains("sudo skiff"), "{ran:?}");
    let ran = as_nobody(&host, "down");
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.out.contains("was ever started here"), "{ran:?}");
    host.must_skiff(&["down", "--purge"]);
    host.must_be_as(&untouched);
    assert_eq!(bed.leaked_packets().unwrap(), 0, "{}", bed.leaks().unwrap());
}

/// `skiff VERB` by a user without rights, but for the one to read the program wherever it is.
fn as_nobody(host: &testbed::Host, verb: &str) -> testbed::Ran {
    let mut command = host.command("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
    command.args(["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]);
    command.arg(testbed::skiff_binary().unwrap()).arg(verb);
    command.output().unwrap().into()
}
