"""An operator on kopf: it keeps a ConfigMap for each Greeting, says so in the status, and cleans up by a finalizer."""

import kopf
import kubernetes

core = kubernetes.client.CoreV1Api


@kopf.on.startup()
def configure(settings, **_):
    settings.posting.enabled = True
    settings.persistence.finalizer = "example.com/operator"
    kubernetes.config.load_kube_config()


@kopf.on.create("greetings")
@kopf.on.update("greetings")
def say(spec, name, namespace, body, patch, **_):
    said = " ".join([spec["text"]] * spec["times"])
    wanted = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"said": said}}
    kopf.adopt(wanted, owner=body)
    try:
        core().patch_namespaced_config_map(name, namespace, {"data": wanted["data"]})
    except kubernetes.client.ApiException as error:
        if error.status != 404:
            raise
        core().create_namespaced_config_map(namespace, wanted)
    kopf.info(body, reason="Said", message=said)
    patch.status["said"] = said


@kopf.on.delete("greetings")
def unsay(name, namespace, **_):
    core().create_namespaced_config_map(namespace, {"metadata": {"name": f"{name}-gone"}})
