//! The environment of a container: service links, `envFrom`, `env` with `$(VAR)` references.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{Container, EnvVar, FileKeySelector};

use super::PodView;
use super::fields::{FieldContext, field, resource_field};
use crate::env_files::EnvFiles;

/// Finds an object's data by its name.
type Lookup<'a, V> = dyn Fn(&str) -> Option<BTreeMap<String, V>> + 'a;

/// ConfigMaps and Secrets by name, as far as the container refers to them; `None`: there is none of that name.
pub(crate) struct Sources<'a> {
    pub(crate) config_map: &'a Lookup<'a, String>,
    pub(crate) secret: &'a Lookup<'a, Vec<u8>>,
    /// Files of the pod's volumes.
    pub(crate) files: &'a EnvFiles,
}

/// A Service as service links see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServiceLink {
    pub(crate) name: String,
    pub(crate) cluster_ip: String,
    /// Name, protocol and number.
    pub(crate) ports: Vec<(String, String, i32)>,
}

/// The variables of a container, in the order in which they are set; each name once.
pub(crate) fn environment(
    pod: &PodView,
    container: &Container,
    context: &FieldContext,
    services: &[ServiceLink],
    sources: &Sources<'_>,
) -> Result<Vec<String>, String> {
    let links: HashMap<String, String> = services.iter().flat_map(service_variables).collect();
    let mut set = Ordered::default();
    from_sources(container, sources, &mut set)?;
    for variable in container.env.iter().flatten() {
        if let Some(value) = value_of(pod, container, context, sources, variable, &set, &links)? {
            set.put(&variable.name, value);
        }
    }
    let mut links: Vec<_> = links.into_iter().filter(|(name, _)| !set.values.contains_key(name)).collect();
    links.sort();
    for (name, value) in links {
        set.put(&name, value);
    }
    Ok(set.lines())
}

/// Variables in the order of their first setting.
#[derive(Default)]
struct Ordered {
    order: Vec<String>,
    values: HashMap<String, String>,
}

impl Ordered {
    fn put(&mut self, name: &str, value: String) {
        if self.values.insert(name.to_owned(), value).is_none() {
            self.order.push(name.to_owned());
        }
    }

    fn lines(self) -> Vec<String> {
        self.order
            .iter()
            .map(|name| format!("{name}={}", self.values.get(name).map_or("", String::as_str)))
            .collect()
    }
}

fn from_sources(container: &Container, sources: &Sources<'_>, set: &mut Ordered) -> Result<(), String> {
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let pairs: Vec<(String, String)> = if let Some(reference) = &source.config_map_ref {
            match (sources.config_map)(&reference.name) {
                Some(data) => data.into_iter().collect(),
                None if reference.optional == Some(true) => Vec::new(),
                None => return Err(format!("configmap \"{}\" not found", reference.name)),
            }
        } else if let Some(reference) = &source.secret_ref {
            match (sources.secret)(&reference.name) {
                Some(data) => data.into_iter().map(|(key, value)| (key, text(value))).collect(),
                None if reference.optional == Some(true) => Vec::new(),
                None => return Err(format!("secret \"{}\" not found", reference.name)),
            }
        } else {
            Vec::new()
        };
        for (key, value) in pairs {
            let name = format!("{prefix}{key}");
            if is_name(&name) {
                set.put(&name, value);
            }
        }
    }
    Ok(())
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// What upstream takes as the name of a variable (relaxed, since 1.34): printable ASCII without `=`.
fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| (0x20..0x7f).contains(&byte) && byte != b'=')
}

/// `None`: an optional source is missing, the variable is not set.
fn value_of(
    pod: &PodView,
    container: &Container,
    context: &FieldContext,
    sources: &Sources<'_>,
    variable: &EnvVar,
    set: &Ordered,
    links: &HashMap<String, String>,
) -> Result<Option<String>, String> {
    let Some(from) = &variable.value_from else {
        let value = variable.value.as_deref().unwrap_or_default();
        return Ok(Some(expand(value, |name| set.values.get(name).or_else(|| links.get(name)).cloned())));
    };
    if let Some(selector) = &from.field_ref {
        return field(pod, context, &selector.field_path).map(Some);
    }
    if let Some(selector) = &from.resource_field_ref {
        return resource_field(pod, context, Some(container), selector).map(Some);
    }
    if let Some(selector) = &from.config_map_key_ref {
        let data = (sources.config_map)(&selector.name);
        let value = data.as_ref().and_then(|data| data.get(&selector.key).cloned());
        let optional = selector.optional == Some(true);
        return keyed(
            "configmap",
            "ConfigMap",
            pod,
            &selector.name,
            &selector.key,
            data.is_some(),
            value,
            optional,
        );
    }
    if let Some(selector) = &from.secret_key_ref {
        let data = (sources.secret)(&selector.name);
        let value = data.as_ref().and_then(|data| data.get(&selector.key).cloned()).map(text);
        let optional = selector.optional == Some(true);
        return keyed(
            "secret",
            "Secret",
            pod,
            &selector.name,
            &selector.key,
            data.is_some(),
            value,
            optional,
        );
    }
    if let Some(selector) = &from.file_key_ref {
        return from_file(sources.files, selector);
    }
    Err(format!("env {}: valueFrom names no source that this node knows", variable.name))
}

/// A variable of a file; an empty one counts as none.
fn from_file(files: &EnvFiles, selector: &FileKeySelector) -> Result<Option<String>, String> {
    let FileKeySelector { key, path, volume_name, .. } = selector;
    let optional = selector.optional == Some(true);
    let file = files.get(&(volume_name.clone(), path.clone())).and_then(Option::as_ref);
    let value = match file {
        Some(file) => file.value(key).map_err(|error| format!("couldn't parse env file: {error}"))?,
        None if optional => None,
        None => return Err(format!("couldn't parse env file: volume {volume_name} has no file {path}")),
    };
    match value {
        None if !optional => Err(format!("environment variable key \"{key}\" not found in file \"{path}\"")),
        value => Ok(value),
    }
}

#[allow(clippy::too_many_arguments, reason = "one table of outcomes for two kinds, in upstream's words")]
fn keyed(
    lower: &str,
    kind: &str,
    pod: &PodView,
    name: &str,
    key: &str,
    exists: bool,
    value: Option<String>,
    optional: bool,
) -> Result<Option<String>, String> {
    match value {
        Some(value) => Ok(Some(value)),
        None if optional => Ok(None),
        None if !exists => Err(format!("{lower} \"{name}\" not found")),
        None => Err(format!("couldn't find key {key} in {kind} {}/{name}", pod.metadata.namespace)),
    }
}

/// Replaces `$(NAME)` where `lookup` knows the name; `$$` is a dollar sign; everything else stays as it is.
/// Source: upstream's `third_party/forked/golang/expansion`.
pub(crate) fn expand(input: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(input.len());
    let mut rest = input;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|tail| tail.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// Docker's link variables of one Service.
fn service_variables(service: &ServiceLink) -> Vec<(String, String)> {
    let prefix = service.name.to_uppercase().replace('-', "_");
    let host = &service.cluster_ip;
    let mut variables = vec![(format!("{prefix}_SERVICE_HOST"), host.clone())];
    if let Some((_, _, port)) = service.ports.first() {
        variables.push((format!("{prefix}_SERVICE_PORT"), port.to_string()));
    }
    let address = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    for (index, (name, protocol, port)) in service.ports.iter().enumerate() {
        if !name.is_empty() {
            let name = name.to_uppercase().replace('-', "_");
            variables.push((format!("{prefix}_SERVICE_PORT_{name}"), port.to_string()));
        }
        let lower = protocol.to_lowercase();
        let url = format!("{lower}://{address}:{port}");
        if index == 0 {
            variables.push((format!("{prefix}_PORT"), url.clone()));
        }
        let one = format!("{prefix}_PORT_{port}_{}", protocol.to_uppercase());
        variables.push((one.clone(), url));
        variables.push((format!("{one}_PROTO"), lower));
        variables.push((format!("{one}_PORT"), port.to_string()));
        variables.push((format!("{one}_ADDR"), host.clone()));
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::env_file::EnvFile;
    use crate::pod::tests::pod;

    fn run(container: serde_json::Value, services: &[ServiceLink]) -> Result<Vec<String>, String> {
        let pod = pod(serde_json::json!({"containers": [container]}));
        let config_map = |name: &str| {
            (name == "cm").then(|| {
                BTreeMap::from([("k".to_owned(), "v".to_owned()), ("b=d".to_owned(), "x".to_owned())])
            })
        };
        let secret = |name: &str| (name == "s").then(|| BTreeMap::from([("p".to_owned(), b"w".to_vec())]));
        let file = ("v".to_owned(), "d/env".to_owned());
        let files = EnvFiles::from([(file, Some(EnvFile::parse("F='file'\nE=''")))]);
        let sources = Sources { config_map: &config_map, secret: &secret, files: &files };
        let context = FieldContext {
            pod_addresses: vec!["10.1.0.7".parse().unwrap()],
            node_milli_cpu: 2000,
            ..FieldContext::default()
        };
        environment(&pod, &pod.spec.containers[0], &context, services, &sources)
    }

    #[test]
    fn expansion_follows_upstreams_rules() {
        let lookup = |name: &str| (name == "A").then(|| "1".to_owned());
        for (input, output) in [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$$(A)", "$(A)"),
            ("$(B)", "$(B)"),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("$", "$"),
            ("$$$(A)", "$1"),
        ] {
            assert_eq!(expand(input, lookup), output, "{input}");
        }
    }

    #[test]
    fn variables_come_from_every_source() {
        let lines = run(
            serde_json::json!({"name": "c", "resources": {"limits": {"memory": "64Mi"}},
                "envFrom": [{"prefix": "P_", "configMapRef": {"name": "cm"}}, {"secretRef": {"name": "none", "optional": true}}],
                "env": [
                    {"name": "A", "value": "1"},
                    {"name": "B", "value": "$(A)$(P_k)$(C)"},
                    {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                    {"name": "L", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                    {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                    {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
                    {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "p"}}},
                    {"name": "O", "valueFrom": {"secretKeyRef": {"name": "s", "key": "no", "optional": true}}},
                    {"name": "F", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "d/env", "key": "F"}}},
                    {"name": "E", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "d/env", "key": "E", "optional": true}}},
                    {"name": "N", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "no", "key": "E", "optional": true}}},
                    {"name": "A", "value": "2"},
                ]}),
            &[],
        )
        .unwrap();
        let wanted = ["P_k=v", "A=2", "B=1v$(C)", "IP=10.1.0.7", "L=web", "CPU=2", "MEM=64", "S=w", "F=file"];
        assert_eq!(lines, wanted);
    }

    #[test]
    fn a_missing_source_is_named() {
        let with = |from: serde_json::Value| {
            run(serde_json::json!({"name": "c", "env": [{"name": "X", "valueFrom": from}]}), &[]).unwrap_err()
        };
        assert_eq!(
            with(serde_json::json!({"configMapKeyRef": {"name": "no", "key": "k"}})),
            "configmap \"no\" not found"
        );
        assert_eq!(
            with(serde_json::json!({"secretKeyRef": {"name": "s", "key": "q"}})),
            "couldn't find key q in Secret default/s"
        );
        assert_eq!(
            with(serde_json::json!({"fileKeyRef": {"volumeName": "v", "path": "d/env", "key": "no"}})),
            "environment variable key \"no\" not found in file \"d/env\""
        );
        assert_eq!(
            with(serde_json::json!({"fileKeyRef": {"volumeName": "v", "path": "no", "key": "no"}})),
            "couldn't parse env file: volume v has no file no"
        );
        assert_eq!(
            with(serde_json::json!({"fieldRef": {"fieldPath": "spec.x"}})),
            "unsupported fieldPath: spec.x"
        );
    }

    #[test]
    fn services_become_docker_style_variables() {
        let service = ServiceLink {
            name: "sa-logic".to_owned(),
            cluster_ip: "10.0.0.9".to_owned(),
            ports: vec![("http".to_owned(), "TCP".to_owned(), 80)],
        };
        let lines = run(
            serde_json::json!({"name": "c", "env": [{"name": "URL", "value": "http://$(SA_LOGIC_SERVICE_HOST)"}]}),
            &[service],
        )
        .unwrap();
        for line in [
            "URL=http://10.0.0.9",
            "SA_LOGIC_SERVICE_HOST=10.0.0.9",
            "SA_LOGIC_SERVICE_PORT=80",
            "SA_LOGIC_SERVICE_PORT_HTTP=80",
            "SA_LOGIC_PORT=tcp://10.0.0.9:80",
            "SA_LOGIC_PORT_80_TCP=tcp://10.0.0.9:80",
            "SA_LOGIC_PORT_80_TCP_ADDR=10.0.0.9",
        ] {
            assert!(lines.iter().any(|known| known == line), "{line} in {lines:?}");
        }
    }
}
