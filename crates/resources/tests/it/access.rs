//! Who may do what, asked over HTTP: roles and bindings, what they may not give away, reviews, impersonation.

use api::connect::User;
use base::lifecycle::Tasks;
use http::Method;
use serde_json::{Value, json};

use crate::cluster::{Cluster, resource, signing_request};
use crate::http_front::{Answer, JSON, MAPS, get, send, write};

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles";
const BINDINGS: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";

fn user(name: &str, groups: &[&str]) -> User {
    let groups = groups.iter().chain(&["system:authenticated"]).map(|group| (*group).to_owned()).collect();
    User { name: name.into(), groups, ..User::default() }
}

fn role(name: &str, rules: Value) -> Value {
    json!({ "metadata": { "name": name }, "rules": rules })
}

fn rule(verbs: &[&str], group: &str, resource: &str) -> Value {
    json!({ "verbs": verbs, "apiGroups": [group], "resources": [resource] })
}

fn binding(name: &str, role: (&str, &str), user: &str) -> Value {
    let group = "rbac.authorization.k8s.io";
    json!({
        "metadata": { "name": name },
        "roleRef": { "apiGroup": group, "kind": role.0, "name": role.1 },
        "subjects": [{ "apiGroup": group, "kind": "User", "name": user }],
    })
}

/// What somebody sends as JSON.
async fn asks(cluster: &Cluster, user: &User, method: Method, path: &str, body: Value) -> Answer {
    send(cluster, Some(user), method, path, &[("content-type", JSON)], body.to_string()).await
}

/// Creates as the administrator.
async fn made(cluster: &Cluster, path: &str, body: Value) {
    let answer = write(cluster, Method::POST, path, JSON, body.to_string()).await;
    assert_eq!(answer.code, 201, "{}", answer.json());
}

#[tokio::test]
async fn a_binding_gives_and_its_end_takes() {
    let cluster = Cluster::start().await;
    let jane = user("jane", &[]);
    let list = async || asks(&cluster, &jane, Method::GET, MAPS, json!(null)).await;
    let refused = list().await;
    let sentence = "configmaps is forbidden: User \"jane\" cannot list resource \"configmaps\" in API group \"\" in the \
                    namespace \"default\"";
    assert_eq!((refused.code, refused.message().as_str()), (403, sentence));
    made(&cluster, BINDINGS, binding("b", ("Role", "reader"), "jane")).await;
    let missing = format!("{sentence}: RBAC: role.rbac.authorization.k8s.io \"reader\" not found");
    assert_eq!(list().await.message(), missing);
    made(&cluster, ROLES, role("reader", json!([rule(&["list"], "", "configmaps")]))).await;
    assert_eq!(list().await.code, 200);
    let others = "/api/v1/namespaces/kube-system/configmaps";
    assert_eq!(asks(&cluster, &jane, Method::GET, others, json!(null)).await.code, 403);

    let reviews = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let attributes = json!({ "verb": "list", "resource": "configmaps", "namespace": "default" });
    let about = json!({ "spec": { "user": "jane", "resourceAttributes": attributes } });
    let status =
        asks(&cluster, &cluster.user, Method::POST, reviews, about.clone()).await.json()["status"].take();
    let reason = "RBAC: allowed by RoleBinding \"b/default\" of Role \"reader\" to User \"jane\"";
    assert_eq!(status, json!({ "allowed": true, "reason": reason }));
    let local = "/apis/authorization.k8s.io/v1/namespaces/default/localsubjectaccessreviews";
    let status = asks(&cluster, &cluster.user, Method::POST, local, about).await.json()["status"].take();
    assert_eq!(status["allowed"], true);

    let gone = write(&cluster, Method::DELETE, &format!("{BINDINGS}/b"), JSON, "").await;
    assert_eq!((gone.code, list().await.code), (200, 403));
}

#[tokio::test]
async fn one_name_may_be_read_watched_and_no_other() {
    let cluster = Cluster::start().await;
    let jane = user("jane", &[]);
    let mut named = rule(&["get", "list"], "", "configmaps");
    named["resourceNames"] = json!(["kube-root"]);
    made(&cluster, ROLES, role("one", json!([named]))).await;
    made(&cluster, BINDINGS, binding("one", ("Role", "one"), "jane")).await;
    let code = async |path: &str| {
        asks(&cluster, &jane, Method::GET, &format!("{MAPS}{path}"), json!(null)).await.code
    };
    assert_eq!(code("/kube-root").await, 404);
    assert_eq!(code("/other").await, 403);
    assert_eq!(code("?fieldSelector=metadata.name%3Dkube-root").await, 200);
    assert_eq!((code("").await, code("?fieldSelector=metadata.name%3Dother").await), (403, 403));
}

#[tokio::test]
async fn nobody_gives_what_he_has_not() {
    let cluster = Cluster::start().await;
    let jane = user("jane", &["staff"]);
    let of_rbac = |verbs: &[&str], resource: &str| rule(verbs, "rbac.authorization.k8s.io", resource);
    let rights = json!([
        of_rbac(&["create", "update", "patch"], "roles"),
        of_rbac(&["create"], "rolebindings"),
        rule(&["get"], "", "pods"),
    ]);
    made(&cluster, ROLES, role("granter", rights)).await;
    made(&cluster, BINDINGS, binding("granter", ("Role", "granter"), "jane")).await;
    let create = async |path: &str, body: Value| asks(&cluster, &jane, Method::POST, path, body).await;
    assert_eq!(create(ROLES, role("same", json!([rule(&["get"], "", "pods")]))).await.code, 201);
    let wider =
        role("wider", json!([rule(&["get", "list", "watch"], "", "pods"), rule(&["get"], "", "secrets")]));
    let refused = create(ROLES, wider).await;
    let grants = "user \"jane\" (groups=[\"staff\" \"system:authenticated\"]) is attempting to grant RBAC permissions \
                  not currently held:\n";
    let lines = "{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"list\" \"watch\"]}\n\
                 {APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\"]}";
    let wanted = format!("roles.rbac.authorization.k8s.io \"wider\" is forbidden: {grants}{lines}");
    assert_eq!((refused.code, refused.message()), (403, wanted));
    let patch = json!({ "rules": [rule(&["*"], "", "pods")] }).to_string();
    let merge = [("content-type", "application/merge-patch+json")];
    let patched = send(&cluster, Some(&jane), Method::PATCH, &format!("{ROLES}/same"), &merge, patch).await;
    assert_eq!(patched.code, 403);

    let admin = binding("admin", ("ClusterRole", "cluster-admin"), "jane");
    let refused = create(BINDINGS, admin.clone()).await;
    assert!(
        refused.code == 403
            && refused.message().contains("{APIGroups:[\"*\"], Resources:[\"*\"], Verbs:[\"*\"]}")
    );
    assert_eq!(create(BINDINGS, binding("same", ("Role", "same"), "bob")).await.code, 201);
    assert_eq!(create(BINDINGS, binding("none", ("Role", "none"), "bob")).await.code, 404);

    let mut bind = of_rbac(&["bind"], "clusterroles");
    bind["resourceNames"] = json!(["cluster-admin"]);
    made(&cluster, ROLES, role("binder", json!([bind, of_rbac(&["escalate"], "roles")]))).await;
    made(&cluster, BINDINGS, binding("binder", ("Role", "binder"), "jane")).await;
    assert_eq!(create(BINDINGS, admin).await.code, 201);
    assert_eq!(create(ROLES, role("any", json!([rule(&["*"], "*", "*")]))).await.code, 201);
}

#[tokio::test]
async fn an_aggregated_role_is_for_administrators_to_make() {
    let cluster = Cluster::start().await;
    let jane = user("jane", &[]);
    let roles = format!("{RBAC}/clusterroles");
    made(
        &cluster,
        &roles,
        role("maker", json!([rule(&["create"], "rbac.authorization.k8s.io", "clusterroles")])),
    )
    .await;
    let bindings = format!("{RBAC}/clusterrolebindings");
    made(&cluster, &bindings, binding("maker", ("ClusterRole", "maker"), "jane")).await;
    let mut gathers = role("gathers", json!([]));
    gathers["aggregationRule"] = json!({ "clusterRoleSelectors": [{ "matchLabels": { "a": "b" } }] });
    let refused = asks(&cluster, &jane, Method::POST, &roles, gathers.clone()).await;
    let wanted = "clusterroles.rbac.authorization.k8s.io \"gathers\" is forbidden: must have cluster-admin privileges to \
                  use the aggregationRule";
    assert_eq!((refused.code, refused.message().as_str()), (403, wanted));
    made(&cluster, &roles, gathers).await;
}

#[tokio::test]
async fn a_user_learns_what_he_may() {
    let cluster = Cluster::start().await;
    let jane = user("jane", &[]);
    let mut named = rule(&["get"], "", "configmaps");
    named["resourceNames"] = json!(["x"]);
    made(&cluster, ROLES, role("one", json!([named]))).await;
    made(&cluster, BINDINGS, binding("one", ("Role", "one"), "jane")).await;
    let reviews = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let ask = async |namespace: &str| {
        asks(&cluster, &jane, Method::POST, reviews, json!({ "spec": { "namespace": namespace } })).await
    };
    let answer = ask("default").await.json();
    let status = &answer["status"];
    assert_eq!(status["incomplete"], false, "{status}");
    assert!(status["resourceRules"].as_array().unwrap().contains(&named), "{status}");
    let info = json!({ "verbs": ["get"], "nonResourceURLs": ["/healthz", "/livez", "/readyz", "/version", "/version/"] });
    assert!(status["nonResourceRules"].as_array().unwrap().contains(&info), "{status}");
    assert_eq!(ask("").await.message(), "no namespace on request");
}

#[tokio::test]
async fn each_part_of_an_impersonation_is_a_right() {
    let cluster = Cluster::start().await;
    let jane = user("jane", &[]);
    let roles = format!("{RBAC}/clusterroles");
    let may = |group: &str, resource: &str, names: &[&str]| json!({ "verbs": ["impersonate"], "apiGroups": [group], "resources": [resource], "resourceNames": names });
    let identity = "authentication.k8s.io";
    let rules = json!([
        may("", "users", &["bob"]),
        may("", "groups", &["testers"]),
        may(identity, "uids", &["7"]),
        may(identity, "userextras/team", &["a"]),
    ]);
    made(&cluster, &roles, role("speaks", rules)).await;
    let bindings = format!("{RBAC}/clusterrolebindings");
    made(&cluster, &bindings, binding("speaks", ("ClusterRole", "speaks"), "jane")).await;
    let whoami = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let bob = [("content-type", JSON), ("impersonate-user", "bob")];
    let asked = async |more: &[(&str, &str)]| {
        send(&cluster, Some(&jane), Method::POST, whoami, &[&bob[..], more].concat(), "{}").await
    };
    let all =
        asked(&[("impersonate-group", "testers"), ("impersonate-uid", "7"), ("impersonate-extra-team", "a")])
            .await;
    let info = json!({
        "username": "bob", "uid": "7", "groups": ["testers", "system:authenticated"], "extra": { "team": ["a"] },
    });
    assert_eq!((all.code, &all.json()["status"]["userInfo"]), (201, &info));
    for more in
        [("impersonate-group", "system:masters"), ("impersonate-uid", "8"), ("impersonate-extra-team", "b")]
    {
        let refused = asked(&[more]).await;
        assert!(refused.code == 403 && refused.message().contains("cannot impersonate"), "{more:?}");
    }
}

#[tokio::test]
async fn who_approves_a_certificate_may_do_so_for_its_signer() {
    let cluster = Cluster::start().await;
    let requests = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let spec = json!({
        "request": signing_request(), "signerName": "example.com/own", "usages": ["client auth"],
    });
    made(&cluster, requests, json!({ "metadata": { "name": "r" }, "spec": spec })).await;
    let updates = rule(&["update", "patch"], "certificates.k8s.io", "certificatesigningrequests/approval");
    let roles = format!("{RBAC}/clusterroles");
    made(&cluster, &roles, role("approver", json!([updates]))).await;
    let bindings = format!("{RBAC}/clusterrolebindings");
    made(&cluster, &bindings, binding("approver", ("ClusterRole", "approver"), "jane")).await;
    let approve = async || {
        let condition = json!({ "type": "Approved", "status": "True", "reason": "x", "message": "y" });
        let patch = json!({ "status": { "conditions": [condition] } }).to_string();
        let merge = [("content-type", "application/merge-patch+json")];
        let path = format!("{requests}/r/approval");
        send(&cluster, Some(&user("jane", &[])), Method::PATCH, &path, &merge, patch).await
    };
    let refused = approve().await;
    let wanted = "certificatesigningrequests.certificates.k8s.io \"r\" is forbidden: user not permitted to approve \
                  requests with signerName \"example.com/own\"";
    assert_eq!((refused.code, refused.message().as_str()), (403, wanted));
    let mut signers = rule(&["approve"], "certificates.k8s.io", "signers");
    signers["resourceNames"] = json!(["example.com/*"]);
    made(&cluster, &roles, role("signers", json!([signers]))).await;
    made(&cluster, &bindings, binding("signers", ("ClusterRole", "signers"), "jane")).await;
    assert_eq!(approve().await.code, 200);
}

#[tokio::test]
async fn the_default_roles_are_there_and_written_once() {
    let first = Cluster::start().await;
    let versions = async |cluster: &Cluster| {
        let mut all = Vec::new();
        for list in ["clusterroles", "clusterrolebindings", "roles", "rolebindings"] {
            let items = get(cluster, &format!("{RBAC}/{list}"), JSON).await.json()["items"].take();
            for item in items.as_array().unwrap() {
                let text = |part: &str| item["metadata"][part].as_str().unwrap_or_default().to_owned();
                all.push((list, text("namespace"), text("name"), text("resourceVersion")));
            }
        }
        all
    };
    let before = versions(&first).await;
    for name in ["cluster-admin", "admin", "edit", "view", "system:node", "system:controller:job-controller"]
    {
        assert!(before.iter().any(|(list, _, known, _)| *list == "clusterroles" && known == name), "{name}");
    }
    // What somebody took away comes back with the next start; the rest is left as it is.
    let discovery = resource("rbac.authorization.k8s.io", "v1", "clusterrolebindings");
    let gone = api::Call::Delete(api::DeleteOptions::default());
    first.call(&discovery, "", "system:discovery", "", gone).await.unwrap();
    let second = Cluster::start_over(first.store.clone()).await;
    let after = versions(&second).await;
    let changed: Vec<_> =
        after.iter().filter(|entry| !before.contains(entry)).map(|entry| &entry.2).collect();
    assert_eq!(changed, ["system:discovery"]);
    assert_eq!(after.len(), before.len());
}

/// A webhook on a loopback port that answers each review with what `answer` says as its status; a kubeconfig names it.
async fn webhook(
    (dir, name): (&std::path::Path, &str),
    tasks: &Tasks,
    answer: fn(&Value) -> Value,
) -> std::path::PathBuf {
    use http_body_util::{BodyExt, Full};
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tasks.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| async move {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let mut review: Value = serde_json::from_slice(&body).unwrap();
                review["status"] = answer(&review["spec"]);
                let body = Full::new(bytes::Bytes::from(review.to_string()));
                Ok::<_, std::convert::Infallible>(http::Response::new(body))
            });
            // One request a connection: they are served one after the other.
            let mut server = hyper::server::conn::http1::Builder::new();
            let _ = server.keep_alive(false).serve_connection(TokioIo::new(stream), service).await;
        }
    });
    let path = dir.join(name);
    let server = format!("http://{address}/review");
    let config = json!({ "clusters": [{ "name": "w", "cluster": { "server": server } }] });
    std::fs::write(&path, config.to_string()).unwrap();
    path
}

#[tokio::test]
async fn webhooks_vouch_for_tokens_and_allow_what_no_role_does() {
    let dir = tempfile::tempdir().unwrap();
    let tasks = Tasks::default();
    let tokens = webhook((dir.path(), "tokens"), &tasks, |spec| match spec["token"].as_str() {
        Some("of-jane") => {
            let user = json!({ "username": "jane", "groups": ["staff", "skiff:components"] });
            json!({ "authenticated": true, "user": user, "audiences": spec["audiences"] })
        }
        _ => json!({ "authenticated": false }),
    });
    let rights = webhook((dir.path(), "rights"), &tasks, |spec| {
        let asked = (&spec["user"], &spec["resourceAttributes"]["verb"]);
        match (asked.0.as_str(), asked.1.as_str()) {
            (Some("jane"), Some("list")) => json!({ "allowed": true, "reason": "she may" }),
            (Some("jane"), _) => json!({ "allowed": false, "denied": true, "reason": "she may not" }),
            _ => json!({ "allowed": false }),
        }
    });
    let cluster = Cluster::start_believing(apiserver::Access {
        token_webhook: Some(tokens.await),
        authorization_webhook: Some(rights.await),
        ..apiserver::Access::default()
    })
    .await;
    let jane = [("authorization", "bearer of-jane"), ("content-type", JSON)];
    let ask = async |method: Method, path: &str, body: &str| {
        send(&cluster, None, method, path, &jane, body.to_owned()).await
    };
    assert_eq!(ask(Method::GET, MAPS, "").await.code, 200);
    let refused = ask(Method::DELETE, &format!("{MAPS}/x"), "").await;
    assert!(refused.code == 403 && refused.message().ends_with(": she may not"), "{}", refused.message());
    let stranger = [("authorization", "Bearer of-nobody")];
    assert_eq!(send(&cluster, None, Method::GET, MAPS, &stranger, "").await.code, 401);
    let review = json!({ "spec": { "token": "of-jane" } });
    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    let status = asks(&cluster, &cluster.user, Method::POST, reviews, review).await.json()["status"].take();
    // Nobody outside makes a component of this process.
    assert_eq!(status["user"]["groups"], json!(["staff", "system:authenticated"]), "{status}");
    let rules = json!({ "spec": { "namespace": "default" } });
    let reviews = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let status =
        asks(&cluster, &user("bob", &[]), Method::POST, reviews, rules).await.json()["status"].take();
    assert_eq!((&status["incomplete"], status["evaluationError"].as_str().is_some()), (&json!(true), true));
}

#[tokio::test]
async fn a_token_of_a_provider_names_its_user_and_anonymous_requests_may_be_refused() {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("authentication.yaml");
    let config = json!({
        "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration",
        "anonymous": { "enabled": true, "conditions": [{ "path": "/livez" }] },
        "jwt": [{
            "issuer": { "url": "https://127.0.0.1:1", "audiences": ["skiff"] },
            "claimMappings": { "username": { "claim": "sub", "prefix": "" } },
        }],
    });
    std::fs::write(&path, config.to_string()).unwrap();
    let access = apiserver::Access { authentication_config: Some(path), ..apiserver::Access::default() };
    let cluster = Cluster::start_believing(access).await;
    crate::http_front::started(&cluster).await;
    let code = async |path: &str, headers: &[(&str, &str)]| {
        send(&cluster, None, Method::GET, path, headers, "").await.code
    };
    assert_eq!((code("/livez", &[]).await, code("/version", &[]).await), (200, 401));
    // Nobody answers for the provider, and what it did not sign is not believed.
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let claims =
        json!({ "iss": "https://127.0.0.1:1", "aud": "skiff", "sub": "jane", "exp": 4_000_000_000_u64 });
    for header in [json!({ "alg": "none" }), json!({ "alg": "RS256", "kid": "k" })] {
        let token = format!("Bearer {}.{}.c2ln", part(header), part(claims.clone()));
        assert_eq!(code("/livez", &[("authorization", &token)]).await, 401);
    }
}
