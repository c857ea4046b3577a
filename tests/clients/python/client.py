"""What programs do with the official Python client: every part of it that speaks to a server."""

import faulthandler
import threading
import time

import yaml
from kubernetes import client, config, dynamic, utils, watch
from kubernetes.client.rest import ApiException
from kubernetes.leaderelection import electionconfig, leaderelection
from kubernetes.leaderelection.resourcelock.configmaplock import ConfigMapLock
from kubernetes.stream import portforward, stream

# A call that hangs is shown and ends the program.
faulthandler.dump_traceback_later(240, exit=True)
config.load_kube_config()
core, apps = client.CoreV1Api(), client.AppsV1Api()
NAMESPACE = "python"


def fails(status, reason, call, *args, **kwargs):
    """The call fails with an HTTP status and the `reason` of its Status."""
    try:
        call(*args, **kwargs)
    except ApiException as error:
        body = yaml.safe_load(error.body)
        assert (error.status, body["kind"], body["reason"]) == (status, "Status", reason), error
        return body
    raise AssertionError(f"{call} did not fail")


def config_map(name, **data):
    return client.V1ConfigMap(metadata=client.V1ObjectMeta(name=name, labels={"app": "python"}), data=data)


def objects():
    core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=NAMESPACE)))
    made = core.create_namespaced_config_map(NAMESPACE, config_map("one", a="1"))
    assert made.metadata.uid and made.metadata.creation_timestamp.tzinfo
    fails(409, "AlreadyExists", core.create_namespaced_config_map, NAMESPACE, config_map("one"))
    fails(404, "NotFound", core.read_namespaced_config_map, "none", NAMESPACE)
    fails(422, "Invalid", core.create_namespaced_config_map, NAMESPACE, config_map("Not A Name"))
    fails(404, "NotFound", core.create_namespaced_config_map, "none", config_map("one"))

    made.data["a"] = "2"
    changed = core.replace_namespaced_config_map("one", NAMESPACE, made)
    assert changed.metadata.resource_version != made.metadata.resource_version
    fails(409, "Conflict", core.replace_namespaced_config_map, "one", NAMESPACE, made)
    dry = core.patch_namespaced_config_map("one", NAMESPACE, {"data": {"b": "3"}}, dry_run="All")
    assert dry.data == {"a": "2", "b": "3"}
    assert core.read_namespaced_config_map("one", NAMESPACE).data == {"a": "2"}
    steps = [{"op": "test", "path": "/data/a", "value": "2"}, {"op": "replace", "path": "/data/a", "value": "4"}]
    assert core.patch_namespaced_config_map("one", NAMESPACE, steps).data == {"a": "4"}
    generated = core.create_namespaced_config_map(
        NAMESPACE, client.V1ConfigMap(metadata=client.V1ObjectMeta(generate_name="made-")))
    assert generated.metadata.name.startswith("made-") and len(generated.metadata.name) == len("made-") + 5


def lists_and_watches():
    for number in range(25):
        core.create_namespaced_config_map(NAMESPACE, config_map(f"page-{number:02}", n=str(number)))
    names, token = [], None
    while True:
        page = core.list_namespaced_config_map(NAMESPACE, label_selector="app=python", limit=10, _continue=token)
        names += [item.metadata.name for item in page.items]
        token = page.metadata._continue
        if not token:
            break
        assert len(page.items) == 10
    assert names == ["one"] + [f"page-{number:02}" for number in range(25)], names
    assert core.list_namespaced_config_map(NAMESPACE, limit=10).metadata.remaining_item_count > 10
    by_name = core.list_config_map_for_all_namespaces(field_selector="metadata.name=page-07")
    assert [item.metadata.namespace for item in by_name.items] == [NAMESPACE]

    start = core.list_namespaced_config_map(NAMESPACE).metadata.resource_version
    core.create_namespaced_config_map(NAMESPACE, config_map("seen", a="1"))
    core.patch_namespaced_config_map("seen", NAMESPACE, {"data": {"a": "2"}})
    core.delete_namespaced_config_map("seen", NAMESPACE)
    seen = []
    for event in watch.Watch().stream(
            core.list_namespaced_config_map, NAMESPACE, resource_version=start, timeout_seconds=60):
        seen.append((event["type"], event["object"].metadata.name, (event["object"].data or {}).get("a")))
        if event["type"] == "DELETED":
            break
    assert seen == [("ADDED", "seen", "1"), ("MODIFIED", "seen", "2"), ("DELETED", "seen", "2")], seen
    core.delete_collection_namespaced_config_map(NAMESPACE, label_selector="app=python")
    assert not core.list_namespaced_config_map(NAMESPACE, label_selector="app=python").items


def dynamic_objects():
    anything = dynamic.DynamicClient(client.ApiClient())
    services = anything.resources.get(api_version="v1", kind="Service")
    manifest = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "applied"},
                "spec": {"ports": [{"port": 80}], "selector": {"app": "x"}}}
    applied = anything.server_side_apply(services, manifest, namespace=NAMESPACE, field_manager="one")
    assert applied.spec.clusterIP and applied.spec.type == "ClusterIP"
    other = {**manifest, "spec": {"selector": {"app": "y"}}}
    try:
        anything.server_side_apply(services, other, namespace=NAMESPACE, field_manager="two")
        raise AssertionError("no conflict")
    except ApiException as error:
        [cause] = yaml.safe_load(error.body)["details"]["causes"]
        expected = {"field": ".spec.selector", "message": 'conflict with "one"', "reason": "FieldManagerConflict"}
        assert error.status == 409 and cause == expected, error
    forced = anything.server_side_apply(
        services, other, namespace=NAMESPACE, field_manager="two", force_conflicts=True)
    assert forced.spec.selector.app == "y" and forced.spec.ports[0].port == 80
    managers = {entry.manager: entry.operation for entry in forced.metadata.managedFields}
    assert managers == {"one": "Apply", "two": "Apply"}, managers
    kinds = {resource.kind for resource in anything.resources.search(group="apps")}
    assert {"Deployment", "ReplicaSet", "ControllerRevision"} <= kinds, kinds


def workloads():
    manifests = f"""
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web, namespace: {NAMESPACE}}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: busybox
        command: [sh, -c, "echo hello from $HOSTNAME; echo ok > index.html; exec httpd -f -p 8080"]
        ports: [{{containerPort: 8080}}]
        resources: {{limits: {{cpu: 500m, memory: 64Mi}}}}
"""
    utils.create_from_dict(client.ApiClient(), yaml.safe_load(manifests))
    for event in watch.Watch().stream(apps.list_namespaced_deployment, NAMESPACE, timeout_seconds=120):
        if event["object"].status.ready_replicas == 2:
            break
    else:
        raise AssertionError("the Deployment did not become ready")
    scale = apps.read_namespaced_deployment_scale("web", NAMESPACE)
    scale.spec.replicas = 1
    assert apps.replace_namespaced_deployment_scale("web", NAMESPACE, scale).spec.replicas == 1
    for event in watch.Watch().stream(apps.list_namespaced_deployment, NAMESPACE, timeout_seconds=120):
        status = event["object"].status
        if status.replicas == status.ready_replicas == 1:
            break
    pods = core.list_namespaced_pod(NAMESPACE, label_selector="app=web", field_selector="status.phase=Running").items
    [pod] = [pod for pod in pods if not pod.metadata.deletion_timestamp]
    return pod.metadata.name


def streams(pod):
    assert core.read_namespaced_pod_log(pod, NAMESPACE, tail_lines=1) == f"hello from {pod}\n"
    for line in watch.Watch().stream(core.read_namespaced_pod_log, pod, NAMESPACE):
        assert line == f"hello from {pod}", line
        break
    out = stream(core.connect_get_namespaced_pod_exec, pod, NAMESPACE, command=["sh", "-c", "echo out; echo err >&2"],
                 stdout=True, stderr=True, stdin=False, tty=False)
    assert sorted(out.split()) == ["err", "out"], out
    shell = stream(core.connect_get_namespaced_pod_exec, pod, NAMESPACE, stdin=True, stdout=True, stderr=True, tty=False,
                   command=["sh", "-c", "read x; echo got $x; exit 3"], _preload_content=False)
    shell.write_stdin("it\n")
    shell.run_forever(timeout=60)
    assert (shell.read_stdout(), shell.returncode) == ("got it\n", 3)
    ports = portforward(core.connect_get_namespaced_pod_portforward, pod, NAMESPACE, ports="8080")
    socket = ports.socket(8080)
    socket.setblocking(True)
    socket.sendall(b"GET / HTTP/1.0\r\nHost: x\r\n\r\n")
    answer = b""
    while chunk := socket.recv(4096):
        answer += chunk
    assert answer.startswith(b"HTTP/1.1 200 OK") and answer.endswith(b"ok\n"), (answer, ports.error(8080))


def leaders():
    led = threading.Event()
    lock = ConfigMapLock("election", NAMESPACE, "me")
    # It never returns: a daemon thread ends with the program.
    election = electionconfig.Config(lock, lease_duration=17, renew_deadline=15, retry_period=5,
                                     onstarted_leading=lambda: (led.set(), time.sleep(3600)),
                                     onstopped_leading=None)
    threading.Thread(target=leaderelection.LeaderElection(election).run, daemon=True).start()
    assert led.wait(60)
    holder = core.read_namespaced_config_map("election", NAMESPACE).metadata.annotations
    assert '"holderIdentity": "me"' in holder["control-plane.alpha.kubernetes.io/leader"], holder


def questions():
    assert client.VersionApi().get_code().git_version.startswith("v1.37.")
    groups = {group.name for group in client.ApisApi().get_api_versions().groups}
    assert {"apps", "events.k8s.io", "networking.k8s.io"} <= groups
    request = client.AuthenticationV1TokenRequest(spec=client.V1TokenRequestSpec(audiences=[], expiration_seconds=600))
    token = core.create_namespaced_service_account_token("default", NAMESPACE, request).status.token
    review = client.AuthenticationV1Api().create_token_review(
        client.V1TokenReview(spec=client.V1TokenReviewSpec(token=token)))
    assert review.status.user.username == f"system:serviceaccount:{NAMESPACE}:default", review
    attributes = client.V1ResourceAttributes(verb="delete", resource="pods", namespace=NAMESPACE)
    access = client.V1SelfSubjectAccessReview(spec=client.V1SelfSubjectAccessReviewSpec(resource_attributes=attributes))
    assert client.AuthorizationV1Api().create_self_subject_access_review(access).status.allowed


objects()
lists_and_watches()
dynamic_objects()
streams(workloads())
leaders()
questions()
core.delete_namespace(NAMESPACE)
print("all is well", flush=True)
