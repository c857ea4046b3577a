//! `service NAME` and `service list`: where Services can be reached, in the columns of `minikube service`.

use std::io::IsTerminal;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};
use api::{GroupVersionResource, ListOptions};
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::access::Access;
use crate::instance::Instance;
use crate::output::{self, Format};

/// What stands in the place of an address where there is none.
const NOWHERE: &str = "No node port";

/// Arguments of `skiff service`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
#[command(
    after_help = "Example:\n  skiff service web\n  curl $(skiff service web --url)\n  skiff service list"
)]
pub struct Service {
    #[command(subcommand)]
    list: Option<Verb>,
    /// The Service
    #[arg(required = true)]
    service: Option<String>,
    /// Its namespace
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Print the addresses only, one a line
    #[arg(long)]
    url: bool,
    /// Write addresses with https instead of http
    #[arg(long)]
    https: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List Services with their addresses
    #[command(after_help = "Example:\n  skiff service list -o json")]
    List {
        /// One namespace only
        #[arg(short, long)]
        namespace: Option<String>,
        /// Form of the answer
        #[arg(short, long, value_enum, default_value_t)]
        output: Format,
    },
}

/// The fields of a Service that decide where it is reached. Source: `core/v1.Service`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Facts {
    metadata: Metadata,
    spec: Spec,
    status: ServiceStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Metadata {
    namespace: String,
    name: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Spec {
    ports: Vec<Port>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Port {
    port: u16,
    node_port: u16,
    protocol: String,
    app_protocol: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ServiceStatus {
    load_balancer: LoadBalancer,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct LoadBalancer {
    ingress: Vec<Ingress>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Ingress {
    ip: String,
}

/// A Service and its addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Reached {
    namespace: String,
    name: String,
    /// By the node's address and a node port: from wherever the node is reached. A Service with a balancer but no node
    /// ports has its balancer's addresses here.
    urls: Vec<String>,
    /// By the balancer's address: on the node itself.
    balancer_urls: Vec<String>,
}

/// Runs `service`.
pub async fn run(instance: &Instance, args: Service) -> Result<()> {
    let access = Access::to(instance)?;
    match args.list {
        Some(Verb::List { namespace, output }) => {
            list(&access, namespace.as_deref().unwrap_or_default(), output).await
        }
        None => one(&access, &args).await,
    }
}

async fn list(access: &Access, namespace: &str, format: Format) -> Result<()> {
    let services = access.list(&services(), namespace, ListOptions::default()).await?;
    let node = node_address(&access.list(&nodes(), "", ListOptions::default()).await?);
    let reached = services
        .into_iter()
        .map(|service| Ok(reached(&serde_json::from_value(service)?, &node, false)))
        .collect::<Result<Vec<_>>>()?;
    match format {
        Format::Table => output::write_out(&framed(&reached)),
        _ => output::print(format, &reached, &[], &[]),
    }
}

async fn one(access: &Access, args: &Service) -> Result<()> {
    let (name, namespace) = (args.service.as_deref().unwrap_or_default(), args.namespace.as_str());
    let Some(service) = access.find(&services(), namespace, name).await? else {
        bail!(
            "service {name:?} was not found in namespace {namespace:?}; see all of them with: skiff service list"
        );
    };
    let node = node_address(&access.list(&nodes(), "", ListOptions::default()).await?);
    let reached = reached(&serde_json::from_value(service)?, &node, args.https);
    if !args.url {
        output::write_out(&framed(std::slice::from_ref(&reached)))?;
    }
    if reached.urls.is_empty() {
        bail!(
            "service {namespace}/{name} has no node port; make it of type NodePort or LoadBalancer, or use: \
             skiff kubectl port-forward -n {namespace} service/{name} LOCAL:PORT"
        );
    }
    let selector = format!("kubernetes.io/service-name={name}");
    let options = ListOptions { label_selector: selector.clone(), ..ListOptions::default() };
    if !any_ready(&access.list(&endpoint_slices(), namespace, options).await?) {
        eprintln!(
            "skiff: no pod behind {namespace}/{name} is ready yet; see: skiff kubectl get endpointslices -n {namespace} \
             -l {selector}"
        );
    }
    if args.url {
        return output::write_out(&(reached.urls.join("\n") + "\n"));
    }
    browse(&reached);
    Ok(())
}

fn services() -> GroupVersionResource {
    GroupVersionResource::new("", "v1", "services")
}

fn nodes() -> GroupVersionResource {
    GroupVersionResource::new("", "v1", "nodes")
}

fn endpoint_slices() -> GroupVersionResource {
    GroupVersionResource::new("discovery.k8s.io", "v1", "endpointslices")
}

/// The internal address of the first Ready node, else of the first; empty without nodes.
fn node_address(nodes: &[Value]) -> String {
    let of = |list: &Value, key: &str, wanted: &str, value: &str| {
        let entries = list.as_array().map(Vec::as_slice).unwrap_or_default();
        let found = entries.iter().find(|entry| entry[key] == wanted);
        found.and_then(|entry| entry[value].as_str()).unwrap_or_default().to_owned()
    };
    let ready = |node: &&Value| of(&node["status"]["conditions"], "type", "Ready", "status") == "True";
    let node = nodes.iter().find(ready).or(nodes.first());
    node.map(|node| of(&node["status"]["addresses"], "type", "InternalIP", "address")).unwrap_or_default()
}

/// Whether any endpoint takes connections.
fn any_ready(slices: &[Value]) -> bool {
    let endpoints = slices.iter().filter_map(|slice| slice["endpoints"].as_array()).flatten();
    // Unset means ready (discovery/v1.EndpointConditions).
    endpoints.into_iter().any(|endpoint| endpoint["conditions"]["ready"].as_bool().unwrap_or(true))
}

/// Where a Service is reached.
fn reached(service: &Facts, node: &str, https: bool) -> Reached {
    let url = |address: &str, port: &Port, number: u16| {
        let scheme = match port.protocol.as_str() {
            "UDP" => "udp",
            "SCTP" => "sctp",
            _ if https || port.app_protocol == "https" => "https",
            _ => "http",
        };
        if address.contains(':') {
            format!("{scheme}://[{address}]:{number}")
        } else {
            format!("{scheme}://{address}:{number}")
        }
    };
    let ports = &service.spec.ports;
    let by_balancer: Vec<String> = service
        .status
        .load_balancer
        .ingress
        .iter()
        .filter(|ingress| !ingress.ip.is_empty())
        .flat_map(|ingress| ports.iter().map(|port| url(&ingress.ip, port, port.port)))
        .collect();
    let with_node_port = ports.iter().filter(|port| port.node_port != 0 && !node.is_empty());
    let by_node: Vec<String> = with_node_port.map(|port| url(node, port, port.node_port)).collect();
    Reached {
        namespace: service.metadata.namespace.clone(),
        name: service.metadata.name.clone(),
        urls: if by_node.is_empty() { by_balancer.clone() } else { by_node },
        balancer_urls: by_balancer,
    }
}

/// The frame: one line per address, the Service named in its first.
fn framed(services: &[Reached]) -> String {
    let mut rows = Vec::new();
    for service in services {
        let first = service.urls.first().map_or(NOWHERE, String::as_str);
        rows.push(vec![service.namespace.clone(), service.name.clone(), first.to_owned()]);
        rows.extend(service.urls.iter().skip(1).map(|url| vec![String::new(), String::new(), url.clone()]));
    }
    output::framed(&["NAMESPACE", "NAME", "URL"], &rows)
}

/// Opens the web addresses in the browser of a desktop; elsewhere nothing happens.
fn browse(service: &Reached) {
    let desktop = ["DISPLAY", "WAYLAND_DISPLAY"].iter().any(|variable| std::env::var_os(variable).is_some());
    if !desktop || !std::io::stdout().is_terminal() {
        return;
    }
    for url in service.urls.iter().filter(|url| url.starts_with("http")) {
        let opened = Command::new("xdg-open")
            .arg(url)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        if opened.is_ok() {
            output::progress(&format!(
                "Opening kubernetes service {}/{} in default browser...",
                service.namespace, service.name
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(service: Value) -> Reached {
        reached(&serde_json::from_value(service).unwrap(), "192.0.2.7", false)
    }

    #[test]
    fn a_node_port_is_reached_by_the_nodes_address() {
        let service = at(json!({
            "metadata": {"namespace": "default", "name": "web"},
            "spec": {"ports": [
                {"port": 80, "nodePort": 30708, "protocol": "TCP"},
                {"port": 443, "nodePort": 30709, "protocol": "TCP", "appProtocol": "https"},
                {"port": 53, "nodePort": 30710, "protocol": "UDP"},
            ]},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.200"}]}},
        }));
        assert_eq!(
            service.urls,
            ["http://192.0.2.7:30708", "https://192.0.2.7:30709", "udp://192.0.2.7:30710"]
        );
        assert_eq!(service.balancer_urls[0], "http://192.0.2.200:80");
        let text = framed(&[service]);
        assert_eq!(text.lines().nth(3).unwrap(), "| default   | web  | http://192.0.2.7:30708  |");
        assert_eq!(text.lines().nth(4).unwrap(), "|           |      | https://192.0.2.7:30709 |");
    }

    #[test]
    fn without_node_ports_the_balancer_is_the_way_in_and_without_both_there_is_none() {
        let ports = json!({"ports": [{"port": 80, "protocol": "TCP"}]});
        let balanced =
            at(json!({"spec": ports, "status": {"loadBalancer": {"ingress": [{"ip": "2001:db8::1"}]}}}));
        assert_eq!(balanced.urls, ["http://[2001:db8::1]:80"]);
        let inner = at(
            json!({"metadata": {"namespace": "default", "name": "kubernetes"}, "spec": ports, "status": {}}),
        );
        assert!(inner.urls.is_empty());
        assert!(framed(&[inner]).contains("| default   | kubernetes | No node port |"));
    }

    #[test]
    fn the_address_is_a_ready_nodes() {
        let node = |ready: &str, address: &str| {
            json!({"status": {
                "conditions": [{"type": "Ready", "status": ready}],
                "addresses": [{"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": address}],
            }})
        };
        assert_eq!(node_address(&[node("Unknown", "192.0.2.1"), node("True", "192.0.2.2")]), "192.0.2.2");
        assert_eq!(node_address(&[node("False", "192.0.2.1")]), "192.0.2.1");
        assert_eq!(node_address(&[]), "");
    }

    #[test]
    fn an_endpoint_that_says_nothing_is_ready() {
        assert!(any_ready(&[json!({"endpoints": [{"addresses": ["192.0.2.9"]}]})]));
        assert!(!any_ready(&[json!({"endpoints": [{"conditions": {"ready": false}}]}), json!({})]));
    }
}
