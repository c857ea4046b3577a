// What programs do with the official JavaScript client.

import assert from "node:assert/strict";
import net from "node:net";
import { once } from "node:events";
import { PassThrough } from "node:stream";
import * as k8s from "@kubernetes/client-node";

const config = new k8s.KubeConfig();
config.loadFromDefault();
const core = config.makeApiClient(k8s.CoreV1Api);
const apps = config.makeApiClient(k8s.AppsV1Api);
const namespace = "javascript";

/** What was written to it, as text. */
function sink() {
    const stream = new PassThrough();
    let text = "";
    stream.on("data", (chunk) => (text += chunk));
    return { stream, text: () => text };
}

async function objects() {
    await core.createNamespace({ body: { metadata: { name: namespace } } });
    const body = { metadata: { name: "one", labels: { app: "javascript" } }, data: { a: "1" } };
    const made = await core.createNamespacedConfigMap({ namespace, body });
    assert.ok(made.metadata.creationTimestamp instanceof Date);
    await assert.rejects(core.createNamespacedConfigMap({ namespace, body }), { code: 409 });
    await assert.rejects(core.readNamespacedConfigMap({ namespace, name: "none" }), { code: 404 });
    made.data.a = "2";
    await core.replaceNamespacedConfigMap({ namespace, name: "one", body: made });
    await assert.rejects(core.replaceNamespacedConfigMap({ namespace, name: "one", body: made }), { code: 409 });
    for (const [kind, patch, expected] of [
        [k8s.PatchStrategy.JsonPatch, [{ op: "replace", path: "/data/a", value: "3" }], { a: "3" }],
        [k8s.PatchStrategy.MergePatch, { data: { a: null, b: "4" } }, { b: "4" }],
        [k8s.PatchStrategy.StrategicMergePatch, { data: { c: "5" } }, { b: "4", c: "5" }],
    ]) {
        const patched = await core.patchNamespacedConfigMap(
            { namespace, name: "one", body: patch },
            k8s.setHeaderOptions("Content-Type", kind),
        );
        assert.deepEqual(patched.data, expected);
    }
    const anything = k8s.KubernetesObjectApi.makeApiClient(config);
    const applied = await anything.patch(
        { apiVersion: "v1", kind: "ConfigMap", metadata: { name: "applied", namespace }, data: { a: "1" } },
        undefined, undefined, "javascript", undefined, k8s.PatchStrategy.ServerSideApply,
    );
    assert.equal(applied.metadata.managedFields[0].operation, "Apply");
}

async function informed() {
    const seen = [];
    const list = () => core.listNamespacedConfigMap({ namespace, labelSelector: "watched=yes" });
    const path = `/api/v1/namespaces/${namespace}/configmaps`;
    const informer = k8s.makeInformer(config, path, list, "watched=yes");
    const gone = new Promise((resolve, reject) => {
        informer.on("add", (object) => seen.push(["add", object.metadata.name]));
        informer.on("update", (object) => seen.push(["update", object.data.a]));
        informer.on("delete", (object) => resolve(seen.push(["delete", object.metadata.name])));
        informer.on("error", reject);
    });
    const body = { metadata: { name: "watched", labels: { watched: "yes" } }, data: { a: "1" } };
    await core.createNamespacedConfigMap({ namespace, body });
    await informer.start();
    body.data.a = "2";
    await core.replaceNamespacedConfigMap({ namespace, name: "watched", body });
    await core.deleteNamespacedConfigMap({ namespace, name: "watched" });
    await gone;
    await informer.stop();
    assert.deepEqual(seen, [["add", "watched"], ["update", "2"], ["delete", "watched"]]);
}

async function pod() {
    const name = "shell";
    const script = "echo begun; echo ok > index.html; exec httpd -f -p 8080";
    const spec = {
        containers: [{ name, image: "busybox", command: ["sh", "-c", script] }],
        terminationGracePeriodSeconds: 1,
    };
    await core.createNamespacedPod({ namespace, body: { metadata: { name }, spec } });
    const watching = new k8s.Watch(config);
    await new Promise((resolve, reject) => {
        const request = watching.watch(
            `/api/v1/namespaces/${namespace}/pods`,
            { fieldSelector: `metadata.name=${name}`, timeoutSeconds: 120 },
            (_, object) => {
                if (object.status.phase !== "Running") return;
                resolve();
                request.then((controller) => controller.abort());
            },
            (error) => reject(error ?? new Error("the watch ended")),
        );
    });
    return name;
}

async function streams(name) {
    assert.equal(await core.readNamespacedPodLog({ namespace, name }), "begun\n");
    const followed = sink();
    // Ends with the program: the library does not catch its own abort.
    await new k8s.Log(config).log(namespace, name, name, followed.stream, { follow: true });
    await once(followed.stream, "data");

    const [out, err] = [sink(), sink()];
    const status = await new Promise((resolve, reject) => {
        const command = ["sh", "-c", "cat; echo err >&2; exit 3"];
        const stdin = new PassThrough();
        stdin.end("in\n");
        new k8s.Exec(config)
            .exec(namespace, name, name, command, out.stream, err.stream, stdin, false, resolve)
            .catch(reject);
    });
    assert.equal(out.text(), "in\n");
    assert.equal(err.text(), "err\n");
    assert.equal(status.status, "Failure");
    assert.equal(status.details.causes.find((cause) => cause.reason === "ExitCode").message, "3");

    const forward = new k8s.PortForward(config);
    const server = net.createServer((socket) => forward.portForward(namespace, name, [8080], socket, null, socket));
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    const socket = net.connect(server.address().port, "127.0.0.1");
    socket.write("GET / HTTP/1.0\r\nHost: x\r\n\r\n");
    let answer = "";
    for await (const chunk of socket) {
        answer += chunk;
        if (answer.endsWith("ok\n")) break;
    }
    assert.match(answer, /^HTTP\/1.1 200 OK/);
    server.close();
}

async function deployment() {
    const labels = { app: "web" };
    const spec = {
        replicas: 1,
        selector: { matchLabels: labels },
        template: { metadata: { labels }, spec: { containers: [{ name: "web", image: "busybox", command: ["sleep", "1000"] }] } },
    };
    const made = await apps.createNamespacedDeployment({ namespace, body: { metadata: { name: "web" }, spec } });
    assert.equal(made.spec.strategy.type, "RollingUpdate");
    const scaled = await apps.patchNamespacedDeploymentScale(
        { namespace, name: "web", body: { spec: { replicas: 0 } } },
        k8s.setHeaderOptions("Content-Type", k8s.PatchStrategy.MergePatch),
    );
    assert.equal(scaled.spec.replicas, 0);
    await apps.deleteNamespacedDeployment({ namespace, name: "web", propagationPolicy: "Foreground" });
}

await objects();
await informed();
await streams(await pod());
await deployment();
await core.deleteNamespace({ name: namespace });
process.stdout.write("all is well\n", () => process.exit(0));
