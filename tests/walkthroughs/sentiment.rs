//! The seed's walkthrough: every command in its order, on the sentiment example. The images are built beforehand by
//! `scripts/example-images` (a testbed host has no way out); the front end is built again on the host, of files only.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;
use testbed::{Host, Testbed};

use crate::pressure::Pressure;
use crate::terminal::{CURL, REGISTRY, Terminal};

const IMAGE: &str = "rinormaloku/sentiment-analysis-frontend";

#[test]
fn the_seeds_walkthrough_from_the_first_pod_to_the_whole_application() {
    let bed = Testbed::new().unwrap();
    let host = bed.host().unwrap();
    let example = testbed::repository().join("examples/sentiment");
    let home = host.directory().join("home");
    copy(&host, &example.join("resource-manifests"), &home.join("resource-manifests"));
    let terminal = Terminal::open(&host, &home.join("resource-manifests"));

    installing(&terminal);
    pods(&terminal);
    services(&terminal);
    deployments(&terminal);
    let mut pressure = Pressure::start(&host, terminal.addresses("sa-frontend-lb"));
    rolling_update(&terminal);
    // Two of the first version have ended.
    pressure.after_the_end_of(2);
    rolling_back(&terminal);
    pressure.after_the_end_of(2);
    let report = pressure.stop();
    let pages: Vec<_> = report.answers.keys().collect();
    assert_eq!(pages.len(), 2, "the two versions answered: {report}");
    logic(&terminal);
    web_app(&terminal);
    whole(&terminal, &example);

    assert_eq!(bed.leaked_packets().unwrap(), 0, "{}", bed.leaks().unwrap());
    host.must_skiff(&["down", "--purge"]);
    assert_eq!(host.processes().unwrap(), Vec::<String>::new());
    assert_eq!(host.cgroups(), Vec::<PathBuf>::new());
}

fn copy(host: &Host, from: &Path, to: &Path) {
    host.must_sh(&format!("cp -r {} {}", from.display(), to.display()));
}

/// The front end's page, fetched from where `skiff service` opens the browser.
#[track_caller]
fn front_page(terminal: &Terminal<'_>) -> String {
    let shown = terminal.services("skiff service sa-frontend-lb");
    assert_eq!(shown.keys().collect::<Vec<_>>(), ["default/sa-frontend-lb"]);
    terminal.types(&format!("{CURL} {}/", shown["default/sa-frontend-lb"]))
}

/// "Installing and Starting".
fn installing(terminal: &Terminal<'_>) {
    terminal.types("skiff up");
    terminal.types(&format!("skiff load -i {}", testbed::example_images("sentiment").unwrap().display()));
    // A controller says what the node is there for.
    let mut watch = terminal.starts("kubectl get nodes --watch");
    watch.until(|line| line.split_whitespace().nth(2) == Some("control-plane"));
    drop(watch);
    let nodes = terminal.table("kubectl get nodes");
    assert_eq!(nodes[0], ["NAME", "STATUS", "ROLES", "AGE", "VERSION"]);
    let [name, status, roles, age, version] = &nodes[1][..] else { panic!("{nodes:?}") };
    assert_eq!((nodes.len(), name, status.as_str()), (2, &terminal.host.name, "Ready"), "{nodes:?}");
    assert_eq!((roles.as_str(), age.is_empty()), ("control-plane", false), "{nodes:?}");
    assert!(version.starts_with("v1.37.") && version.contains("+skiff."), "{nodes:?}");
}

/// "Kubernetes in Practice: Pods".
fn pods(terminal: &Terminal<'_>) {
    assert_eq!(terminal.types("kubectl create -f sa-frontend-pod.yaml"), "pod/sa-frontend created\n");
    let mut watch = terminal.starts("kubectl get pods --watch");
    watch.until(|line| line.starts_with("sa-frontend ") && line.contains("1/1") && line.contains("Running"));
    drop(watch);
    assert_eq!(terminal.running("pods"), BTreeSet::from(["sa-frontend".to_owned()]));

    let mut forward = terminal.starts("kubectl port-forward sa-frontend 88:80");
    forward.until(|line| line == "Forwarding from 127.0.0.1:88 -> 80");
    let page = terminal.types(&format!("{CURL} http://127.0.0.1:88/"));
    assert!(page.contains("<title>Sentiment Analyser</title>"), "{page}");
    drop(forward);

    assert_eq!(terminal.types("kubectl create -f sa-frontend-pod2.yaml"), "pod/sa-frontend2 created\n");
    terminal.types("kubectl wait pod sa-frontend2 --for=condition=Ready --timeout=120s");
    assert_eq!(terminal.running("pods"), pair());
}

fn pair() -> BTreeSet<String> {
    BTreeSet::from(["sa-frontend".to_owned(), "sa-frontend2".to_owned()])
}

/// "Kubernetes in Practice: Services".
fn services(terminal: &Terminal<'_>) {
    for pod in ["sa-frontend", "sa-frontend2"] {
        let file = if pod.ends_with('2') { "sa-frontend-pod2.yaml" } else { "sa-frontend-pod.yaml" };
        edit(terminal, file, "metadata:\n", "metadata:\n  labels:\n    app: sa-frontend\n");
        let applied = terminal.ran(&format!("kubectl apply -f {file}"));
        assert_eq!(applied.out, format!("pod/{pod} configured\n"));
        let warning = "kubectl apply should only be used on resources created declaratively";
        assert!(applied.err.starts_with("Warning: ") && applied.err.contains(warning), "{}", applied.err);
        let again = terminal.ran(&format!("kubectl apply -f {file}"));
        assert_eq!((again.out, again.err), (format!("pod/{pod} unchanged\n"), String::new()));
    }
    assert_eq!(terminal.running("pod -l app=sa-frontend"), pair());
    let labelled = terminal.table("kubectl get pod -l app=sa-frontend --show-labels");
    assert_eq!(labelled[0].last().unwrap(), "LABELS");
    assert!(labelled[1..].iter().all(|row| row.last().unwrap() == "app=sa-frontend"), "{labelled:?}");

    let created = terminal.types("kubectl create -f service-sa-frontend-lb.yaml");
    assert_eq!(created, "service/sa-frontend-lb created\n");
    let address = terminal.balancer("sa-frontend-lb");
    let services = terminal.table("kubectl get svc");
    assert_eq!(services[0], ["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"]);
    let row = services.iter().find(|row| row[0] == "sa-frontend-lb").unwrap();
    assert_eq!((row[1].as_str(), format!("http://{}", row[3])), ("LoadBalancer", address), "{row:?}");
    assert!(row[4].starts_with("80:") && row[4].ends_with("/TCP"), "{row:?}");
    let page = terminal.types(&format!("{CURL} {}/", terminal.balancer("sa-frontend-lb")));
    assert_eq!(page, front_page(terminal));
    assert!(page.contains("Sentiment Analyser"), "{page}");
}

/// Replaces text in a file of the terminal's directory; it has to be there.
#[track_caller]
fn edit(terminal: &Terminal<'_>, file: &str, from: &str, to: &str) {
    let path = terminal.directory.join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{file} has no {from:?}: {text}");
    std::fs::write(&path, text.replace(from, to)).unwrap();
}

/// "Kubernetes in Practice: Deployments".
fn deployments(terminal: &Terminal<'_>) {
    let applied = terminal.types("kubectl apply -f sa-frontend-deployment.yaml");
    assert_eq!(applied, "deployment.extensions/sa-frontend created\n");
    terminal.types("kubectl rollout status deployment sa-frontend --timeout=300s");
    assert_eq!(terminal.running("pods").len(), 4);

    let deleted = terminal.types("kubectl delete pod sa-frontend sa-frontend2");
    assert_eq!(
        deleted,
        "pod \"sa-frontend\" deleted from default namespace\npod \"sa-frontend2\" deleted from default namespace\n"
    );
    let before = terminal.running("pods");
    assert_eq!(before.len(), 2);

    // "Delete one of the pods of the deployment as well and see what happens."
    let victim = before.first().unwrap();
    terminal.types(&format!("kubectl delete pod {victim}"));
    let mut watch = terminal.starts("kubectl get pods --watch");
    watch.until(|line| {
        let name = line.split_whitespace().next().unwrap_or_default();
        name.starts_with("sa-frontend-") && !before.contains(name) && line.contains("1/1")
    });
    drop(watch);
    let after = terminal.running("pods");
    assert!(after.len() == 2 && !after.contains(victim), "{before:?} {after:?}");
}

/// "Rolling a Zero-Downtime deployment".
fn rolling_update(terminal: &Terminal<'_>) {
    assert!(front_page(terminal).contains("--button: royalblue"));
    let before = terminal.running("pods");
    let applied = terminal.ran("kubectl apply -f sa-frontend-deployment-green.yaml --record");
    assert_eq!(applied.out, "deployment.extensions/sa-frontend configured\n");
    let status = terminal.rolled_out("sa-frontend", &before);
    said_how_it_rolls_out(&status);
    assert!(front_page(terminal).contains("--button: green"));
}

/// What `kubectl rollout status` prints of an update of two pods: each line one of upstream's, those of pods that end
/// among them (new ones are available after 15 s only), and its end.
#[track_caller]
fn said_how_it_rolls_out(status: &str) {
    let mut lines: Vec<&str> = status.lines().collect();
    assert_eq!(lines.pop(), Some("deployment \"sa-frontend\" successfully rolled out"), "{status}");
    let waits = |what: &str| format!("Waiting for deployment \"sa-frontend\" rollout to finish: {what}...");
    let ending = waits("1 old replicas are pending termination");
    let known = [
        ending.clone(),
        waits("0 out of 2 new replicas have been updated"),
        waits("1 out of 2 new replicas have been updated"),
        waits("2 old replicas are pending termination"),
        waits("0 of 2 updated replicas are available"),
        waits("1 of 2 updated replicas are available"),
        // Before the controller has seen the new specification.
        "Waiting for deployment spec update to be observed...".to_owned(),
    ];
    assert!(lines.iter().all(|line| known.iter().any(|one| one == line)), "{status}");
    assert!(lines.contains(&ending.as_str()), "{status}");
}

/// "Rolling back to a previous state".
fn rolling_back(terminal: &Terminal<'_>) {
    let history = terminal.types("kubectl rollout history deployment sa-frontend");
    let lines: Vec<&str> = history.lines().collect();
    assert_eq!(lines[0], "deployment.apps/sa-frontend ");
    assert_eq!(lines[1].split_whitespace().collect::<Vec<_>>(), ["REVISION", "CHANGE-CAUSE"]);
    assert_eq!(lines[2].split_whitespace().collect::<Vec<_>>(), ["1", "<none>"]);
    let (revision, cause) = lines[3].split_once(' ').unwrap();
    let typed = "kubectl apply --filename=sa-frontend-deployment-green.yaml --record=true";
    assert_eq!((revision, cause.trim()), ("2", typed));

    let before = terminal.running("pods");
    let undone = terminal.types("kubectl rollout undo deployment sa-frontend --to-revision=1");
    assert_eq!(undone, "deployment.apps/sa-frontend rolled back\n");
    terminal.rolled_out("sa-frontend", &before);
    assert!(front_page(terminal).contains("--button: royalblue"));
    let history = terminal.table("kubectl rollout history deployment sa-frontend");
    let revisions: Vec<_> = history.iter().skip(2).filter_map(|row| row.first()).collect();
    assert_eq!(revisions, ["2", "3"]);
}

/// "Deployment SA-Logic" and its Service.
fn logic(terminal: &Terminal<'_>) {
    let applied = terminal.types("kubectl apply -f sa-logic-deployment.yaml --record");
    assert_eq!(applied, "deployment.extensions/sa-logic created\n");
    assert_eq!(terminal.types("kubectl apply -f service-sa-logic.yaml"), "service/sa-logic created\n");
    terminal.types("kubectl rollout status deployment sa-logic --timeout=300s");
    assert_eq!(terminal.running("pods -l app=sa-logic").len(), 2);
}

/// "Deployment SA-WebApp", which finds the logic by its name, and its Service.
fn web_app(terminal: &Terminal<'_>) {
    let applied = terminal.types("kubectl apply -f sa-web-app-deployment.yaml --record");
    assert_eq!(applied, "deployment.extensions/sa-web-app created\n");
    let applied = terminal.types("kubectl apply -f service-sa-web-app-lb.yaml");
    assert_eq!(applied, "service/sa-web-app-lb created\n");
    terminal.types("kubectl rollout status deployment sa-web-app --timeout=300s");
    // IPv4 only: for a name without an IPv6 address the resolver goes on to ask the host's, which is out of reach.
    let by_name = "kubectl exec deployment/sa-web-app -- sh -c 'getent ahostsv4 ${SA_LOGIC_API_URL#http://}'";
    let resolved = terminal.table(by_name);
    let address = terminal.types("kubectl get service sa-logic -o jsonpath='{.spec.clusterIP}'");
    assert_eq!(resolved[0], [address.as_str(), "STREAM", "sa-logic.default.svc.cluster.local"]);
}

/// "The architecture is complete. But we have one single dissonance."
fn whole(terminal: &Terminal<'_>, example: &Path) {
    let services = terminal.services("skiff service list");
    let names: Vec<_> = services.keys().map(String::as_str).collect();
    let expected =
        ["kubernetes", "sa-frontend-lb", "sa-logic", "sa-web-app-lb"].map(|name| format!("default/{name}"));
    assert_eq!(names[..4], expected, "{services:?}");
    assert_eq!(names[4..], ["kube-system/kube-dns"]);
    assert_eq!(
        (&*services["default/sa-logic"], &*services["kube-system/kube-dns"]),
        ("No node port", "No node port")
    );
    let url = services["default/sa-web-app-lb"].clone();
    assert!(url.starts_with(&format!("http://{}:3", terminal.host.address)), "{url}");
    let pages = terminal.directory.with_file_name("sa-frontend");
    rebuild(terminal, &example.join("sa-frontend"), &pages, &url);
    publish(terminal, &pages);
    edit(terminal, "sa-frontend-deployment.yaml", IMAGE, &format!("{REGISTRY}/{IMAGE}:minikube"));
    let before = terminal.running("pods -l app=sa-frontend");
    let applied = terminal.types("kubectl apply -f sa-frontend-deployment.yaml");
    assert_eq!(applied, "deployment.extensions/sa-frontend configured\n");
    terminal.rolled_out("sa-frontend", &before);
    let events = terminal.types("kubectl get events --field-selector reason=Pulled");
    assert!(
        events.contains(&format!("Successfully pulled image \"{REGISTRY}/{IMAGE}:minikube\"")),
        "{events}"
    );
    terminal.types("kill $(cat /run/registry.pid)");

    // What a browser does: the page, its script, and what the script asks.
    let page = front_page(terminal);
    let script = page.split('"').find(|word| word.ends_with(".js")).unwrap().trim_start_matches("./");
    let script = terminal.types(&format!("{CURL} {}/{script}", terminal.balancer("sa-frontend-lb")));
    assert!(script.contains(&format!("{url}/sentiment")), "the page does not ask {url}");
    assert!(polarity(terminal, &url, "I like yogobella, it is great") > 0.0);
    assert!(polarity(terminal, &terminal.balancer("sa-web-app-lb"), "this is a terrible day") < 0.0);
    let headers = terminal.types(&format!(
        "{CURL} --include -H 'Origin: http://elsewhere' -H 'Content-Type: application/json' \
         -d '{{\"sentence\": \"good\"}}' {url}/sentiment"
    ));
    assert!(headers.to_lowercase().contains("access-control-allow-origin: *"), "{headers}");
}

/// "Push the image": into a registry, from where the nodes pull it.
fn publish(terminal: &Terminal<'_>, pages: &Path) {
    let developer = Terminal::open(terminal.host, pages);
    let data = terminal.host.directory().join("registry");
    let config = format!(
        "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: {REGISTRY}}}\n",
        data.display()
    );
    std::fs::write(pages.join("registry.yml"), config).unwrap();
    developer.types(
        "setsid sh -c 'echo $$ >/run/registry.pid; exec docker-registry serve registry.yml' >/dev/null 2>&1 &",
    );
    developer.types(&format!("{CURL} http://{REGISTRY}/v2/"));
    let pushed = developer.types("docker push $DOCKER_USER_ID/sentiment-analysis-frontend:minikube");
    assert!(pushed.contains("minikube: digest: sha256:"), "{pushed}");
    // What is here alone would be taken from here: what a pod then runs came from the registry.
    developer.types("docker rmi $DOCKER_USER_ID/sentiment-analysis-frontend:minikube");
}

/// Points the front end at the web app's balancer, builds its files and its image.
fn rebuild(terminal: &Terminal<'_>, sources: &Path, pages: &Path, url: &str) {
    copy(terminal.host, sources, pages);
    let developer = Terminal::open(terminal.host, pages);
    edit(&developer, "src/App.js", "http://localhost:8080/sentiment", &format!("{url}/sentiment"));
    developer.types("NPM_CONFIG_UPDATE_NOTIFIER=false npm run build");
    let built = developer
        .types("docker build -f Dockerfile -t $DOCKER_USER_ID/sentiment-analysis-frontend:minikube .");
    assert!(built.contains(&format!("Successfully tagged {REGISTRY}/{IMAGE}:minikube")), "{built}");
}

/// What the whole application says of a sentence.
#[track_caller]
fn polarity(terminal: &Terminal<'_>, url: &str, sentence: &str) -> f64 {
    let asked = serde_json::json!({ "sentence": sentence });
    let answer =
        terminal.types(&format!("{CURL} -H 'Content-Type: application/json' -d '{asked}' {url}/sentiment"));
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["sentence"], asked["sentence"], "{answer}");
    answer["polarity"].as_f64().unwrap()
}
