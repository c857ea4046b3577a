//! A user's first hour with `kubectl`, and with Skiff's own commands beside it.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use testbed::{Host, Testbed, kubectl};

/// A web server that answers with its pod's name, and ends when it is told to.
const SERVER: &str = "mkdir -p /w; hostname > /w/index.html; echo serving on 80; trap 'exit 0' TERM; \
                      httpd -f -v -p 80 -h /w & wait";

#[test]
fn the_first_hour() {
    let bed = Testbed::new().unwrap();
    let host = bed.host().unwrap();
    host.must_skiff(&["up"]);
    let archive = testbed::base_image("busybox-bookworm.tar").unwrap();
    host.must_skiff(&["load", "-i", &archive.to_string_lossy()]);
    host.must_skiff(&["tag", "busybox", "busybox:v2"]);

    a_deployment_is_made_exposed_and_asked(&host);
    it_is_scaled_updated_and_edited(&host);
    everything_can_be_looked_at(&host);
    pods_are_entered_copied_to_and_listened_to(&host);
    objects_are_compared_applied_labelled_and_patched(&host);
    access_is_given_and_asked_about(&host);
    skiffs_own_commands(&host);
    what_is_wrong_is_explained(&host);
    what_holds_a_pod_is_explained(&host);

    host.must_kubectl(&["delete", "deployment,service", "--all"]);
    host.must_kubectl(&["wait", "pod", "-l", "app=web", "--for=delete", "--timeout=120s"]);
    assert_eq!(bed.leaked_packets().unwrap(), 0, "{}", bed.leaks().unwrap());
    host.must_skiff(&["down"]);
    without_an_instance_every_command_says_so(&host);
    host.must_skiff(&["down", "--purge"]);
    without_an_instance_every_command_says_so(&host);
}

/// Panics with the whole text unless it has every part.
#[track_caller]
fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in:\n{text}");
    }
}

/// The cells of a table's line that begins with `name`, split at runs of spaces.
#[track_caller]
fn row<'a>(table: &'a str, name: &str) -> Vec<&'a str> {
    let line = table.lines().find(|line| line.starts_with(name));
    line.unwrap_or_else(|| panic!("no line {name:?} in:\n{table}")).split_ascii_whitespace().collect()
}

fn json(host: &Host, args: &[&str]) -> Value {
    serde_json::from_str(&host.must_kubectl(&[args, &["-o", "json"]].concat())).unwrap()
}

/// The newest pod of the Deployment `web`, whole and Ready.
fn web_pod(host: &Host) -> String {
    host.must_kubectl(&["rollout", "status", "deployment", "web", "--timeout=120s"]);
    let pods = json(host, &["get", "pods", "-l", "app=web"]);
    let live =
        pods["items"].as_array().unwrap().iter().find(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    live.unwrap()["metadata"]["name"].as_str().unwrap().to_owned()
}

/// Runs a command line on the host with a terminal of its own; gives everything that appeared on it.
#[track_caller]
fn on_terminal(host: &Host, line: &str) -> String {
    let ran = host.command("script").args(["-qec", line, "/dev/null"]).output().unwrap();
    let seen = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(ran.status.success(), "{line}: {:?}\n{seen}", ran.status);
    seen
}

fn a_deployment_is_made_exposed_and_asked(host: &Host) {
    let image = "--image=busybox";
    let made =
        host.must_kubectl(&["create", "deployment", "web", image, "--port=80", "--", "sh", "-c", SERVER]);
    assert_eq!(made, "deployment.apps/web created\n");
    assert_eq!(
        host.must_kubectl(&["expose", "deployment", "web", "--type=NodePort"]),
        "service/web exposed\n"
    );
    host.must_kubectl(&["wait", "deployment", "web", "--for=condition=Available", "--timeout=120s"]);

    let kubectl = kubectl().unwrap();
    let line = format!(
        "{} run -it --rm probe --image=busybox --restart=Never -- wget -qO- http://web",
        kubectl.display()
    );
    let seen = on_terminal(host, &line);
    has(&seen, &["web-", "pod \"probe\" deleted"]);

    // The exit code is the pod's: attaching to it succeeds, however it ends.
    let script = "read word; echo got $word; exit 3";
    let args = ["run", "-i", "--rm", "ends", image, "--restart=Never", "--", "sh", "-c", script];
    let (code, out, err) = with_input(host, &args, "go\n");
    assert_eq!((code, out.lines().next()), (3, Some("got go")), "{out}{err}");
    assert!(!err.contains("couldn't attach"), "{err}");
}

/// Runs `kubectl` with that on its standard input; gives exit code, output and errors.
fn with_input(host: &Host, args: &[&str], input: &str) -> (i32, String, String) {
    let mut command = host.kubectl_command(args).unwrap();
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (out.status.code().unwrap_or(-1), text(&out.stdout), text(&out.stderr))
}

fn it_is_scaled_updated_and_edited(host: &Host) {
    host.must_kubectl(&["scale", "deployment", "web", "--replicas=3"]);
    host.must_kubectl(&[
        "wait",
        "deployment",
        "web",
        "--for=jsonpath={.status.readyReplicas}=3",
        "--timeout=120s",
    ]);
    let table = host.must_kubectl(&["get", "deployment", "web"]);
    assert_eq!(row(&table, "NAME"), ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"]);
    assert_eq!(row(&table, "web")[1..4], ["3/3", "3", "3"]);

    let updated = host.must_kubectl(&["set", "image", "deployment/web", "busybox=busybox:v2"]);
    assert_eq!(updated, "deployment.apps/web image updated\n");
    has(
        &host.must_kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"]),
        &["deployment \"web\" successfully rolled out"],
    );
    let wide = host.must_kubectl(&["get", "deployment", "web", "-o", "wide"]);
    has(&wide, &["CONTAINERS", "IMAGES", "SELECTOR", "busybox:v2", "app=web"]);

    let mut edit = host.kubectl_command(&["edit", "deployment", "web"]).unwrap();
    let edited = edit.env("KUBE_EDITOR", "sed -i s/replicas:.3/replicas:\\ 2/").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&edited.stdout), "deployment.apps/web edited\n", "{edited:?}");
    host.must_kubectl(&[
        "wait",
        "deployment",
        "web",
        "--for=jsonpath={.status.replicas}=2",
        "--timeout=120s",
    ]);
}

fn everything_can_be_looked_at(host: &Host) {
    let pod = web_pod(host);
    let described = host.must_kubectl(&["describe", "pod", &pod]);
    has(
        &described,
        &[
            "Priority:         0",
            "Service Account:  default",
            "Controlled By:  ReplicaSet/web-",
            "Image:         busybox:v2",
            "State:          Running",
            "Restart Count:  0",
            "from kube-api-access-",
            "PodReadyToStartContainers",
            "ContainersReady",
            "QoS Class:                   BestEffort",
            "node.kubernetes.io/not-ready:NoExecute op=Exists for 300s",
            "Successfully assigned default/web-",
            "Container started",
        ],
    );
    let described = host.must_kubectl(&["describe", "deployment", "web"]);
    has(
        &described,
        &[
            "2 desired | 2 updated | 2 total | 2 available | 0 unavailable",
            "StrategyType:           RollingUpdate",
            "RollingUpdateStrategy:  25% max unavailable, 25% max surge",
            "Progressing    True    NewReplicaSetAvailable",
            "Scaled up replica set web-",
        ],
    );
    let described = host.must_kubectl(&["describe", "service", "web"]);
    has(
        &described,
        &["Selector:                 app=web", "NodePort:", ":80,", "Session Affinity:         None"],
    );
    // Clients that create by protobuf keep what stands in embedded messages.
    host.must_kubectl(&["create", "ingress", "front", "--rule=a.example/shop*=web:80"]);
    has(&host.must_kubectl(&["describe", "ingress", "front"]), &["a.example", "/shop", "web:80"]);
    host.must_kubectl(&["delete", "ingress", "front"]);
    let node = host.name.as_str();
    let described = host.must_kubectl(&["describe", "node", node]);
    has(
        &described,
        &[
            "InternalIP:",
            "Ready            True",
            "Container Runtime Version:",
            "Allocated resources:",
            "web-",
        ],
    );

    let events = host.must_kubectl(&["get", "events"]);
    has(
        &events,
        &["LAST SEEN", "Scheduled", "Pulled", "Created", "Started", "ScalingReplicaSet", "SuccessfulCreate"],
    );
    has(&host.must_kubectl(&["events", "--for", &format!("pod/{pod}")]), &["Scheduled", "Started"]);

    let explained = host.must_kubectl(&["explain", "pod.spec.containers.image"]);
    has(&explained, &["KIND:       Pod", "FIELD: image <string>", "Container image name"]);
    has(&host.must_kubectl(&["explain", "deployment", "--recursive"]), &["GROUP:      apps", "maxSurge"]);
    let resources = host.must_kubectl(&["api-resources"]);
    has(&resources, &["SHORTNAMES", "deployments", "apps/v1", "configmaps", "cm"]);
    has(&host.must_kubectl(&["api-versions"]), &["apps/v1\n", "v1\n"]);
    has(&host.must_kubectl(&["cluster-info"]), &["Kubernetes control plane", "https://"]);
    has(&host.must_kubectl(&["get", "pods", "-A"]), &["NAMESPACE", "default"]);
    let all = host.must_kubectl(&["get", "all"]);
    has(
        &all,
        &["pod/web-", "service/web", "service/kubernetes", "deployment.apps/web", "replicaset.apps/web-"],
    );
    let names = "jsonpath={range .items[*]}{.metadata.name}={.status.phase}{\"\\n\"}{end}";
    has(&host.must_kubectl(&["get", "pods", "-o", names]), &[&format!("{pod}=Running\n")]);
    let columns = "custom-columns=NAME:.metadata.name,IMAGE:.spec.containers[*].image";
    has(
        &host.must_kubectl(&["get", "pods", "--sort-by=.metadata.creationTimestamp", "-o", columns]),
        &["NAME", "busybox:v2"],
    );
}

fn pods_are_entered_copied_to_and_listened_to(host: &Host) {
    let pod = web_pod(host);
    let file = host.directory().join("greeting");
    std::fs::write(&file, "good morning\n").unwrap();
    host.must_kubectl(&["cp", &file.to_string_lossy(), &format!("{pod}:/w/greeting")]);
    assert_eq!(host.must_kubectl(&["exec", &pod, "--", "cat", "/w/greeting"]), "good morning\n");
    let back = host.directory().join("back");
    host.must_kubectl(&["cp", &format!("{pod}:/w/greeting"), &back.to_string_lossy()]);
    assert_eq!(std::fs::read_to_string(back).unwrap(), "good morning\n");
    assert_eq!(host.kubectl(&["exec", &pod, "--", "sh", "-c", "exit 9"]).unwrap().code, 9);

    // `port-forward` says which local port it took.
    let mut forward = Background::kubectl(host, &["port-forward", "service/web", ":80"]);
    let line = forward.line_with("Forwarding from 127.0.0.1:");
    let port = line.split("127.0.0.1:").nth(1).unwrap().split(' ').next().unwrap();
    let answer = host.must_sh(&format!("curl -s --max-time 120 http://127.0.0.1:{port}/"));
    assert!(answer.starts_with("web-"), "{answer}");
    forward.end();

    // The server writes a line for each request: `logs -f` shows what comes while it looks.
    let mut follow = Background::kubectl(host, &["logs", "-f", &pod]);
    follow.line_with("serving on 80");
    host.must_kubectl(&["exec", &pod, "--", "wget", "-qO-", "http://localhost/greeting"]);
    follow.line_with("response:200");
    follow.end();
    let both = host.must_kubectl(&["logs", "-l", "app=web", "--prefix", "--tail=-1"]);
    has(&both, &[&format!("[pod/{pod}/busybox] serving on 80\n")]);
    assert!(both.matches("serving on 80").count() >= 2, "{both}");

    host.must_kubectl(&[
        "run",
        "echo",
        "--image=busybox",
        "-i",
        "--restart=Never",
        "--attach=false",
        "--",
        "cat",
    ]);
    host.must_kubectl(&["wait", "pod", "echo", "--for=condition=Ready", "--timeout=120s"]);
    let attached = with_input(host, &["attach", "-i", "echo"], "marco\n");
    assert_eq!((attached.0, attached.1.as_str()), (0, "marco\n"), "{attached:?}");

    host.must_kubectl(&["run", "again", "--image=busybox", "--", "sh", "-c", "echo first; sleep 1; exit 4"]);
    host.must_kubectl(&[
        "wait",
        "pod",
        "again",
        "--for=jsonpath={.status.containerStatuses[0].lastState.terminated.exitCode}=4",
        "--timeout=120s",
    ]);
    has(&host.must_kubectl(&["logs", "again", "--previous"]), &["first"]);
    host.must_kubectl(&["delete", "pod", "again", "echo", "--now"]);
}

fn objects_are_compared_applied_labelled_and_patched(host: &Host) {
    let file = host.directory().join("settings.yaml");
    let write = |colour: &str| {
        let text = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: settings}}\ndata: {{colour: {colour}}}\n"
        );
        std::fs::write(&file, text).unwrap();
    };
    let path = file.to_string_lossy().into_owned();
    write("green");
    assert_eq!(host.must_kubectl(&["apply", "-f", &path]), "configmap/settings created\n");
    assert_eq!(host.must_kubectl(&["apply", "-f", &path]), "configmap/settings unchanged\n");
    assert_eq!(host.kubectl(&["diff", "-f", &path]).unwrap().code, 0);
    write("blue");
    let diff = host.kubectl(&["diff", "-f", &path]).unwrap();
    assert_eq!(diff.code, 1, "{diff:?}");
    has(&diff.out, &["-  colour: green", "+  colour: blue"]);
    assert_eq!(host.must_kubectl(&["apply", "-f", &path]), "configmap/settings configured\n");

    let applied = host.must_kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &path]);
    assert_eq!(applied, "configmap/settings serverside-applied\n");
    write("red");
    let other = host.kubectl(&["apply", "--server-side", "--field-manager=other", "-f", &path]).unwrap();
    assert_eq!(other.code, 1);
    has(&other.err, &["conflict with \"kubectl\"", ".data.colour"]);

    assert_eq!(
        host.must_kubectl(&["label", "configmap", "settings", "tier=web"]),
        "configmap/settings labeled\n"
    );
    has(&host.must_kubectl(&["get", "cm", "-l", "tier=web", "--show-labels"]), &["settings", "tier=web"]);
    let annotated = host.must_kubectl(&["annotate", "configmap", "settings", "note=hello"]);
    assert_eq!(annotated, "configmap/settings annotated\n");
    for (kind, patch) in [
        ("strategic", r#"{"data":{"a":"1"}}"#),
        ("merge", r#"{"data":{"b":"2","colour":null}}"#),
        ("json", r#"[{"op":"add","path":"/data/c","value":"3"}]"#),
    ] {
        let patched = host.must_kubectl(&["patch", "configmap", "settings", "--type", kind, "-p", patch]);
        assert_eq!(patched, "configmap/settings patched\n");
    }
    let data = json(host, &["get", "configmap", "settings"])["data"].clone();
    assert_eq!(data, serde_json::json!({"a": "1", "b": "2", "c": "3"}));
    assert_eq!(
        host.must_kubectl(&["delete", "-f", &path]),
        "configmap \"settings\" deleted from default namespace\n"
    );
    let gone = host.kubectl(&["get", "configmap", "settings"]).unwrap();
    assert_eq!(
        (gone.code, gone.err.as_str()),
        (1, "Error from server (NotFound): configmaps \"settings\" not found\n")
    );
}

fn access_is_given_and_asked_about(host: &Host) {
    assert_eq!(host.must_kubectl(&["auth", "can-i", "create", "pods"]), "yes\n");
    let token = host.must_kubectl(&["create", "token", "default"]);
    assert_eq!(token.trim().split('.').count(), 3, "a signed token has three parts");
    let server =
        host.must_kubectl(&["config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"]);
    let ask = |args: &str| {
        let line = format!(
            "umask 077; d=$(mktemp -d); {kubectl} config view --raw --minify --flatten -o \
             'jsonpath={{.clusters[0].cluster.certificate-authority-data}}' | base64 -d > $d/ca; \
             {kubectl} --kubeconfig /dev/null --server {server} --certificate-authority $d/ca --token {token} {args}; \
             code=$?; rm -r $d; exit $code",
            kubectl = kubectl().unwrap().display(),
            token = token.trim(),
        );
        host.sh(&line).unwrap()
    };
    let who = ask("auth whoami");
    has(&who.out, &["system:serviceaccount:default:default", "system:serviceaccounts"]);
    let can = ask("auth can-i list pods");
    assert_eq!((can.code, can.out.as_str()), (1, "no\n"));
    has(&ask("get pods").err, &["Forbidden", "system:serviceaccount:default:default"]);
}

fn skiffs_own_commands(host: &Host) {
    let node_port = host.must_kubectl(&["get", "service", "web", "-o", "jsonpath={.spec.ports[0].nodePort}"]);
    let url = format!("http://{}:{node_port}", host.address);
    assert_eq!(host.must_skiff(&["service", "web", "--url"]), format!("{url}\n"));
    has(&host.must_skiff(&["service", "web"]), &["| NAMESPACE | NAME |", "| default   | web  |", &url]);
    let list = host.must_skiff(&["service", "list"]);
    has(
        &list,
        &["|  NAMESPACE  |", "| default     | kubernetes | No node port", "| kube-system | kube-dns", &url],
    );
    let list: Value = serde_json::from_str(&host.must_skiff(&["service", "list", "-o", "json"])).unwrap();
    let web = list.as_array().unwrap().iter().find(|service| service["name"] == "web").unwrap();
    assert_eq!(web["urls"], serde_json::json!([url]));
    let none = host.skiff(&["service", "kubernetes", "--url"]).unwrap();
    assert_eq!((none.code, none.out.as_str()), (1, ""));
    has(&none.err, &["has no node port"]);
    has(&host.skiff(&["service", "nobody"]).unwrap().err, &["was not found in namespace \"default\""]);

    let pod = web_pod(host);
    has(&host.must_skiff(&["logs", &pod]), &["serving on 80"]);
    has(
        &host.must_skiff(&["logs", "--tail", "1", "-t", &format!("{pod}/busybox"), "-n", "default"]),
        &["T", "Z "],
    );
    assert_eq!(host.must_skiff(&["exec", &pod, "--", "hostname"]), format!("{pod}\n"));
    assert_eq!(host.skiff(&["exec", &pod, "--", "sh", "-c", "exit 5"]).unwrap().code, 5);
    let skiff = testbed::skiff_binary().unwrap();
    let seen = on_terminal(host, &format!("{} exec -it {pod} -- tty", skiff.display()));
    has(&seen, &["/dev/pts/"]);

    // A container of `skiff run`, and one that has a pod's name.
    let serve =
        ["run", "-d", "--container-name", "plain", "busybox", "sh", "-c", "echo here; exec sleep 1000"];
    host.must_skiff(&serve);
    let mut follow = Background::start(host, &skiff.to_string_lossy(), &["logs", "-f", "plain"]);
    follow.line_with("here");
    follow.end();
    assert_eq!(host.must_skiff(&["exec", "plain", "echo", "there"]), "there\n");
    host.must_skiff(&["run", "-d", "--container-name", &pod, "busybox", "sleep", "1000"]);
    let both = host.skiff(&["exec", &pod, "hostname"]).unwrap();
    assert_eq!(both.code, 1);
    has(&both.err, &["is ambiguous", &format!("a container {pod}"), &format!("a pod default/{pod}")]);
    assert_eq!(host.must_skiff(&["exec", "-n", "default", &pod, "hostname"]), format!("{pod}\n"));
    host.must_skiff(&["rm", "-f", "plain", &pod]);
    has(&host.skiff(&["logs", "plain"]).unwrap().err, &["no container plain and no pod default/plain"]);

    let version: Value = serde_json::from_str(&host.must_skiff(&["version", "-o", "json"])).unwrap();
    has(version["server"]["gitVersion"].as_str().unwrap(), &["v1.37.", "+skiff."]);
    assert!(version["client"]["version"].is_string());
}

fn what_is_wrong_is_explained(host: &Host) {
    let pod = web_pod(host);
    let why = host.must_skiff(&["why", &pod]);
    has(&why, &["Running on node", "Nothing keeps it from running", "no registry is asked"]);

    host.must_kubectl(&["run", "never", "--image=nobody/nothing:v1", "--image-pull-policy=Never"]);
    host.must_kubectl(&["run", "crash", "--image=busybox", "--", "sh", "-c", "echo no database; exit 3"]);
    host.must_kubectl(&["run", "huge", "--image=busybox", "--overrides",
        r#"{"spec":{"containers":[{"name":"huge","image":"busybox","resources":{"requests":{"cpu":"1000"}}}]}}"#]);
    host.must_kubectl(&["run", "lacks", "--image=busybox", "--overrides",
        r#"{"spec":{"containers":[{"name":"lacks","image":"busybox","envFrom":[{"configMapRef":{"name":"settings"}}]}]}}"#]);

    let waits = |pod: &str, reason: &str| {
        let path = format!("--for=jsonpath={{.status.containerStatuses[0].state.waiting.reason}}={reason}");
        host.must_kubectl(&["wait", "pod", pod, &path, "--timeout=120s"]);
        host.must_skiff(&["why", pod])
    };
    has(
        &waits("never", "ErrImageNeverPull"),
        &["imagePullPolicy Never", "skiff build -t nobody/nothing:v1", "cannot start"],
    );
    has(&waits("crash", "CrashLoopBackOff"), &["ended with exit code 3", "| no database"]);
    has(
        &waits("lacks", "CreateContainerConfigError"),
        &["ConfigMap \"settings\"", "create configmap settings"],
    );
    host.must_kubectl(&[
        "wait",
        "pod",
        "huge",
        "--for=jsonpath={.status.conditions[?(@.type==\"PodScheduled\")].reason}=Unschedulable",
        "--timeout=120s",
    ]);
    has(&host.must_skiff(&["why", "huge"]), &["no node takes it", "Insufficient cpu", "1k cpu wanted"]);
    let none = host.skiff(&["why", "hug"]).unwrap();
    assert_eq!(none.code, 1);
    has(&none.err, &["did you mean huge?"]);
    host.must_kubectl(&["delete", "pod", "never", "crash", "huge", "lacks", "--now"]);
}

/// An init container that does not end, a probe that fails, a finalizer that nobody removes.
fn what_holds_a_pod_is_explained(host: &Host) {
    let sleeps =
        |name: &str| serde_json::json!({"name": name, "image": "busybox", "command": ["sleep", "1000"]});
    let pod = |name: &str| {
        let spec = serde_json::json!({"containers": [sleeps("main")]});
        serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
    };
    let mut begins = pod("begins");
    begins["spec"]["initContainers"] = serde_json::json!([sleeps("migrate")]);
    let mut unready = pod("unready");
    unready["spec"]["containers"][0]["readinessProbe"] =
        serde_json::json!({"exec": {"command": ["cat", "/nowhere"]}, "periodSeconds": 1});
    let mut held = pod("held");
    held["metadata"]["finalizers"] = serde_json::json!(["example.com/hold"]);
    let file = host.directory().join("held.json");
    // kubectl checks a List by the version 2 document, which it takes in protobuf only.
    let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": [begins, unready, held]});
    std::fs::write(&file, list.to_string()).unwrap();
    let mut mistaken = list.clone();
    mistaken["items"][0]["spec"]["containers"][0]["imaje"] = "busybox".into();
    let other = host.directory().join("mistaken.json");
    std::fs::write(&other, mistaken.to_string()).unwrap();
    let refused = host.kubectl(&["apply", "-f", &other.to_string_lossy()]).unwrap();
    assert_eq!(refused.code, 1);
    has(&refused.err, &["imaje"]);
    host.must_kubectl(&["apply", "-f", &file.to_string_lossy()]);

    let wait = |pod: &str, what: &str| {
        host.must_kubectl(&["wait", "pod", pod, &format!("--for={what}"), "--timeout=120s"]);
        host.must_skiff(&["why", pod])
    };
    let why = wait("begins", "jsonpath={.status.initContainerStatuses[0].state.running.startedAt}");
    has(&why, &["container migrate: this init container still runs", "skiff logs begins/migrate"]);

    let mut events =
        Background::kubectl(host, &["get", "events", "--watch", "--field-selector=reason=Unhealthy"]);
    events.line_with("Readiness probe failed");
    events.end();
    has(
        &host.must_skiff(&["why", "unready"]),
        &["its readiness probe fails", "| Readiness probe failed", "nowhere"],
    );

    wait("held", "condition=Ready");
    host.must_kubectl(&["delete", "pod", "held", "--now", "--wait=false"]);
    let why = wait("held", "jsonpath={.status.containerStatuses[0].state.terminated.exitCode}=137");
    has(&why, &["Terminating", "finalizers hold it: example.com/hold", "patch pod held -n default"]);
    let freed = r#"{"metadata":{"finalizers":null}}"#;
    host.must_kubectl(&["patch", "pod", "held", "--type=merge", "-p", freed]);
    host.must_kubectl(&["wait", "pod", "held", "--for=delete", "--timeout=120s"]);
    host.must_kubectl(&["delete", "pod", "begins", "unready", "--now"]);
}

/// Each command that needs one fails with one line that names the remedy.
fn without_an_instance_every_command_says_so(host: &Host) {
    for line in [
        "status",
        "kubectl get pods",
        "service list",
        "why web",
        "logs web",
        "exec web true",
        "images",
        "ps",
        "pull nobody/nothing",
        "tag busybox other",
        "rmi busybox",
        "run busybox true",
        "stop web",
        "rm web",
    ] {
        let args: Vec<&str> = line.split(' ').collect();
        let ran = host.skiff(&args).unwrap();
        assert_eq!((ran.code, ran.out.as_str(), ran.err.lines().count()), (1, "", 1), "{line}: {}", ran.err);
        has(&ran.err, &["skiff: no ", &format!("skiff up --name {}", host.name)]);
    }
    has(&host.must_skiff(&["version"]), &["client", "not running"]);
}

/// A command whose output is read while it runs.
struct Background {
    child: Child,
    out: BufReader<Box<dyn Read>>,
}

impl Background {
    fn kubectl(host: &Host, args: &[&str]) -> Self {
        Self::start(host, &kubectl().unwrap().to_string_lossy(), args)
    }

    /// Bounded, so that a line which never comes fails the test instead of holding it.
    fn start(host: &Host, program: &str, args: &[&str]) -> Self {
        let mut command = host.command("timeout");
        command.args(["180", program]).args(args).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let out: Box<dyn Read> = Box::new(child.stdout.take().unwrap());
        Self { child, out: BufReader::new(out) }
    }

    /// Reads on until a line has the words; the process's end without it fails.
    #[track_caller]
    fn line_with(&mut self, words: &str) -> String {
        let mut seen = String::new();
        loop {
            let start = seen.len();
            let read = self.out.read_line(&mut seen).unwrap();
            assert!(read > 0, "ended without {words:?}:\n{seen}");
            if seen[start..].contains(words) {
                return seen[start..].to_owned();
            }
        }
    }

    /// Ends the command; it is the child of the one that entered the host's namespaces.
    fn end(mut self) {
        let entered = self.child.id().to_string();
        Command::new("pkill").args(["-TERM", "-P", &entered]).status().unwrap();
        self.child.wait().unwrap();
    }
}
