//! What a name of `logs` and `exec` stands for: a container of this machine's engine, or a pod's.

use anyhow::{Context, Result, bail};
use api::GroupVersionResource;
use serde_json::Value;

use crate::access::Access;
use crate::containers;
use crate::engine::Engine;
use crate::instance::Instance;

/// The namespace that is meant when none is given.
const DEFAULT_NAMESPACE: &str = "default";

/// The annotation that names the container to choose. Source: kubectl.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// A container, found.
pub enum Target {
    /// Of `skiff run` or the Docker API, by name or id.
    Engine(String),
    /// A pod's.
    Pod(Box<PodContainer>),
}

/// A container of a pod.
pub struct PodContainer {
    /// The connection that found it.
    pub access: Access,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod.
    pub pod: String,
    /// The container's name.
    pub container: String,
}

/// What a name can mean by its form alone.
#[derive(Debug, PartialEq, Eq)]
struct Named<'a> {
    pod: &'a str,
    container: Option<&'a str>,
    namespace: &'a str,
    /// Only a pod: a namespace was given, or a container of it.
    pod_only: bool,
}

fn parse<'a>(name: &'a str, namespace: Option<&'a str>) -> Named<'a> {
    let name = name.strip_prefix("pod/").or_else(|| name.strip_prefix("pods/")).unwrap_or(name);
    let (pod, container) = match name.split_once('/') {
        Some((pod, container)) => (pod, Some(container)),
        None => (name, None),
    };
    Named {
        pod,
        container,
        namespace: namespace.unwrap_or(DEFAULT_NAMESPACE),
        pod_only: namespace.is_some() || container.is_some(),
    }
}

/// Finds what a name stands for. A name that is both a container and a pod of namespace `default` is an error.
pub async fn find(
    instance: &Instance,
    engine: &Engine,
    name: &str,
    namespace: Option<&str>,
) -> Result<Target> {
    let named = parse(name, namespace);
    let access = Access::to(instance)?;
    let pod = access.find(&pods(), named.namespace, named.pod).await?;
    // Who may not reach the engine's socket still has the cluster.
    let reachable = std::fs::metadata(instance.docker_socket()).is_ok();
    let is_container = !named.pod_only && reachable && containers::exists(engine, name).await?;
    match (is_container, pod) {
        (true, Some(_)) => bail!(
            "{name:?} is ambiguous: there is a container {name} and a pod {}/{}; say `-n {}` for the pod, or give \
             the container's id (skiff ps -a)",
            named.namespace,
            named.pod,
            named.namespace
        ),
        (true, None) => Ok(Target::Engine(name.to_owned())),
        (false, Some(pod)) => {
            let container = container_of(&pod, named.container)?;
            let (namespace, pod) = (named.namespace.to_owned(), named.pod.to_owned());
            Ok(Target::Pod(Box::new(PodContainer { access, namespace, pod, container })))
        }
        (false, None) if named.pod_only => {
            bail!("there is no pod {}/{}; see: skiff kubectl get pods -A", named.namespace, named.pod)
        }
        (false, None) => bail!(
            "there is no container {name} and no pod {}/{name}; see: skiff ps -a, skiff kubectl get pods -A",
            named.namespace
        ),
    }
}

/// The resource of pods.
pub fn pods() -> GroupVersionResource {
    GroupVersionResource::new("", "v1", "pods")
}

/// The container that is meant: the one asked for, the annotated one, or the first, as with kubectl.
fn container_of(pod: &Value, wanted: Option<&str>) -> Result<String> {
    let names = |list: &str| -> Vec<&str> {
        let containers = pod["spec"][list].as_array().map(Vec::as_slice).unwrap_or_default();
        containers.iter().filter_map(|container| container["name"].as_str()).collect()
    };
    let main = names("containers");
    let all = [main.clone(), names("initContainers"), names("ephemeralContainers")].concat();
    if let Some(wanted) = wanted {
        if all.contains(&wanted) {
            return Ok(wanted.to_owned());
        }
        bail!(
            "pod {} has no container {wanted:?}; it has: {}",
            pod["metadata"]["name"].as_str().unwrap_or_default(),
            all.join(", ")
        );
    }
    let annotated = pod["metadata"]["annotations"][DEFAULT_CONTAINER].as_str();
    if let Some(annotated) = annotated.filter(|name| all.contains(name)) {
        return Ok(annotated.to_owned());
    }
    let first = *main.first().context("the pod has no containers")?;
    if all.len() > 1 {
        eprintln!("Defaulted container {first:?} out of: {}", all.join(", "));
    }
    Ok(first.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_slash_or_a_namespace_means_a_pod() {
        let plain = parse("web", None);
        assert_eq!((plain.pod, plain.container, plain.pod_only), ("web", None, false));
        let of_pod = parse("web/app", None);
        assert_eq!((of_pod.pod, of_pod.container, of_pod.pod_only), ("web", Some("app"), true));
        let elsewhere = parse("pod/web", Some("shop"));
        assert_eq!((elsewhere.pod, elsewhere.namespace, elsewhere.pod_only), ("web", "shop", true));
    }

    #[test]
    fn the_container_is_the_one_asked_for_the_annotated_or_the_first() {
        let mut pod = json!({
            "metadata": {"name": "web"},
            "spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "set-up"}]},
        });
        assert_eq!(container_of(&pod, Some("set-up")).unwrap(), "set-up");
        assert_eq!(container_of(&pod, None).unwrap(), "a");
        let error = container_of(&pod, Some("c")).unwrap_err().to_string();
        assert!(error.contains("a, b, set-up"), "{error}");
        pod["metadata"]["annotations"] = json!({DEFAULT_CONTAINER: "b"});
        assert_eq!(container_of(&pod, None).unwrap(), "b");
    }
}
