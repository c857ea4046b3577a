//! Access as an administrator gives it and takes it, with the real `kubectl`: roles and bindings, questions about them,
//! tokens of service accounts, certificates of users.

use serde_json::{Value, json};
use testbed::{Host, Testbed};

#[test]
fn access_is_given_asked_about_and_taken() {
    let bed = Testbed::new().unwrap();
    let host = bed.host().unwrap();
    host.must_skiff(&["up"]);
    host.must_kubectl(&["create", "namespace", "shop"]);
    a_role_is_bound_and_asked_about(&host);
    nobody_gives_what_he_has_not(&host);
    roles_of_the_cluster(&host);
    files_are_reconciled(&host);
    a_service_account_uses_its_token(&host);
    a_certificate_is_approved_and_another_denied(&host);
    host.must_skiff(&["down", "--purge"]);
}

/// What `kubectl` answers, whatever it is: code, output and errors.
fn kubectl(host: &Host, line: &str) -> (i32, String, String) {
    let ran = host.kubectl(&line.split(' ').collect::<Vec<_>>()).unwrap();
    (ran.code, ran.out, ran.err)
}

#[track_caller]
fn must(host: &Host, line: &str) -> String {
    let (code, out, err) = kubectl(host, line);
    assert_eq!(code, 0, "{line}: {out}{err}");
    out
}

#[track_caller]
fn refused(host: &Host, line: &str, parts: &[&str]) {
    let (code, out, err) = kubectl(host, line);
    assert_eq!(code, 1, "{line}: {out}{err}");
    parts.iter().for_each(|part| assert!(err.contains(part), "{line}: no {part:?} in {err}"));
}

/// `yes` or `no`, with the code that goes with it.
#[track_caller]
fn can(host: &Host, line: &str, answer: &str) {
    let (code, out, err) = kubectl(host, &format!("auth can-i {line}"));
    assert_eq!((code, out.trim()), (i32::from(answer == "no"), answer), "{line}: {err}");
}

fn a_role_is_bound_and_asked_about(host: &Host) {
    refused(
        host,
        "-n shop get pods --as jane",
        &["Forbidden", "User \"jane\" cannot list resource \"pods\""],
    );
    must(host, "-n shop create role reader --verb=get,list --resource=pods,pods/log,deployments.apps");
    must(host, "-n shop create rolebinding readers --role=reader --user=jane --group=staff");
    must(host, "-n shop get pods --as jane");
    can(host, "list pods -n shop --as jane", "yes");
    can(host, "list pods -n default --as jane", "no");
    can(host, "list pods --all-namespaces --as jane", "no");
    can(host, "get deployments.apps/web -n shop --as jane", "yes");
    can(host, "get pods --subresource=log -n shop --as jane", "yes");
    can(host, "create pods --subresource=exec -n shop --as jane", "no");
    can(host, "list pods -n shop --as bob --as-group staff", "yes");
    let list = must(host, "auth can-i --list -n shop --as jane");
    let row = |name: &str| list.lines().find(|line| line.starts_with(name)).map(str::to_owned);
    assert!(row("pods/log ").is_some_and(|line| line.ends_with("[get list]")), "{list}");
    assert!(row("selfsubjectreviews.authentication.k8s.io").is_some(), "{list}");
    assert!(list.contains("[/version]"), "{list}");
    let who: Value =
        serde_json::from_str(&must(host, "auth whoami -o json --as jane --as-group staff --as-uid 7"))
            .unwrap();
    let info = json!({ "username": "jane", "uid": "7", "groups": ["staff", "system:authenticated"] });
    assert_eq!(who["status"]["userInfo"], info);
    must(host, "-n shop delete rolebinding readers");
    can(host, "list pods -n shop --as jane", "no");
}

fn nobody_gives_what_he_has_not(host: &Host) {
    must(host, "-n shop create rolebinding admins --clusterrole=admin --user=ann");
    must(host, "-n shop create role reader2 --verb=get --resource=pods --as ann");
    must(host, "-n shop create rolebinding readers2 --role=reader2 --user=bob --as ann");
    can(host, "get pods -n shop --as bob", "yes");
    let nodes = "-n shop create role nodes --verb=get --resource=nodes --as ann";
    let missing = "{APIGroups:[\"\"], Resources:[\"nodes\"], Verbs:[\"get\"]}";
    refused(host, nodes, &["attempting to grant RBAC permissions not currently held", missing]);
    let all = "-n shop create rolebinding all --clusterrole=cluster-admin --user=ann --as ann";
    refused(host, all, &["attempting to grant RBAC permissions not currently held"]);
}

fn roles_of_the_cluster(host: &Host) {
    must(host, "create clusterrole scraper --verb=get --non-resource-url=/metrics");
    must(host, "create clusterrolebinding scrapers --clusterrole=scraper --group=monitors");
    can(host, "get /metrics --as eve", "no");
    can(host, "get /metrics --as eve --as-group monitors", "yes");
    must(host, "create clusterrole boats --verb=get,list --resource=persistentvolumes");
    must(host, "label clusterrole boats rbac.authorization.k8s.io/aggregate-to-view=true");
    must(
        host,
        "wait clusterrole/view --timeout=60s --for=jsonpath={.rules[?(@.resources[0]==\"persistentvolumes\")].verbs[0]}=get",
    );
    must(host, "create clusterrolebinding viewers --clusterrole=view --group=visitors");
    can(host, "list persistentvolumes --as eve --as-group visitors", "yes");
    can(host, "get secrets -n shop --as eve --as-group visitors", "no");
}

fn files_are_reconciled(host: &Host) {
    let role = |verbs: &str| {
        format!(
            "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {{name: kept, namespace: shop}}\n\
             rules: [{{apiGroups: [''], resources: [configmaps], verbs: [{verbs}]}}]\n"
        )
    };
    let file = host.directory().join("role.yaml");
    let line = format!("auth reconcile -f {}", file.display());
    for verbs in ["get", "get, list"] {
        std::fs::write(&file, role(verbs)).unwrap();
        let said = must(host, &line);
        assert!(said.contains("role.rbac.authorization.k8s.io/kept reconciled"), "{said}");
    }
    let verbs = must(host, "-n shop get role kept -o jsonpath={.rules[*].verbs}");
    assert!(verbs.contains("get") && verbs.contains("list"), "{verbs}");
}

fn a_service_account_uses_its_token(host: &Host) {
    must(host, "-n shop create serviceaccount bot");
    must(host, "-n shop create rolebinding bots --clusterrole=edit --serviceaccount=shop:bot");
    let token = must(host, "-n shop create token bot --duration=10m");
    let server = must(host, "config view --minify -o jsonpath={.clusters[0].cluster.server}");
    let as_bot = |line: &str| {
        let token = token.trim();
        let line = format!(
            "--kubeconfig /dev/null --server {server} --insecure-skip-tls-verify --token {token} {line}"
        );
        kubectl(host, &line)
    };
    let (code, out, err) = as_bot("auth whoami -o jsonpath={.status.userInfo.username}");
    assert_eq!((code, out.as_str()), (0, "system:serviceaccount:shop:bot"), "{err}");
    assert_eq!(as_bot("-n shop create configmap made --from-literal=a=b").0, 0);
    let (code, _, err) = as_bot("-n default get configmaps");
    assert!(code == 1 && err.contains("Forbidden"), "{err}");
    must(host, "-n shop delete serviceaccount bot");
    let (code, _, err) = as_bot("-n shop get configmaps");
    assert!(code == 1 && err.contains("Unauthorized"), "{err}");
}

fn a_certificate_is_approved_and_another_denied(host: &Host) {
    let directory = host.directory().display().to_string();
    let request = |name: &str| {
        host.must_sh(&format!(
            "cd {directory} && openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key \
             -subj /O=staff/CN={name} -out {name}.csr 2> /dev/null && cat > {name}.yaml <<EOF\n\
             apiVersion: certificates.k8s.io/v1\nkind: CertificateSigningRequest\nmetadata: {{name: {name}}}\n\
             spec: {{request: $(base64 -w0 {name}.csr), signerName: kubernetes.io/kube-apiserver-client, usages: [client auth]}}\n\
             EOF"
        ));
        must(host, &format!("create -f {directory}/{name}.yaml"));
    };
    request("carl");
    refused(host, "certificate approve carl --as ann", &["Forbidden"]);
    assert!(must(host, "certificate approve carl").contains("carl approved"));
    must(host, "wait csr/carl --timeout=60s --for=jsonpath={.status.certificate}");
    host.must_sh(&format!(
        "umask 077; base64 -d > {directory}/carl.crt <<EOF\n{}\nEOF",
        must(host, "get csr carl -o jsonpath={.status.certificate}")
    ));
    let server = must(host, "config view --minify -o jsonpath={.clusters[0].cluster.server}");
    let line = format!(
        "--kubeconfig /dev/null --server {server} --insecure-skip-tls-verify --client-certificate {directory}/carl.crt \
         --client-key {directory}/carl.key auth whoami -o jsonpath={{.status.userInfo.username}}"
    );
    assert_eq!(must(host, &line), "carl");
    request("dora");
    assert!(must(host, "certificate deny dora").contains("dora denied"));
    let row = must(host, "get csr dora");
    assert!(row.contains("Denied"), "{row}");
}
