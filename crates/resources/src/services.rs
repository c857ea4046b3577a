//! Services: defaults and validation; addresses and ports are allocated in their own transaction.
//! Source: `core/v1/defaults.go`, `core/validation/validation.go`, `registry/core/service/storage`.

use api::Status;
use apiserver::field::{FieldError, FieldErrors};
use apiserver::names::wrong_name;
use apiserver::strategy::{Companions, NameRule, Strategy, View};
use apiserver::tree;
use serde_json::{Value, json};

use crate::allocate;
use crate::containers::port_name_problems;

const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
/// Sessions last three hours unless said otherwise.
const AFFINITY_SECONDS: i64 = 10_800;

pub(crate) struct Services;

impl Strategy for Services {
    fn name_rule(&self) -> NameRule {
        NameRule::Label1035
    }

    fn generation(&self) -> bool {
        false
    }

    fn default(&self, object: &mut Value) {
        let spec = tree::member(object, "spec");
        tree::set_default(spec, "type", "ClusterIP");
        tree::set_default(spec, "sessionAffinity", "None");
        if tree::text(spec, &["sessionAffinity"]) == "ClientIP" {
            let config = tree::member(tree::member(spec, "sessionAffinityConfig"), "clientIP");
            tree::set_default(config, "timeoutSeconds", AFFINITY_SECONDS);
        } else {
            tree::members(spec).remove("sessionAffinityConfig");
        }
        let kind = tree::text(spec, &["type"]).to_owned();
        if kind != "ExternalName" {
            tree::set_default(spec, "internalTrafficPolicy", "Cluster");
        }
        if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
            tree::set_default(spec, "externalTrafficPolicy", "Cluster");
        } else {
            tree::members(spec).remove("externalTrafficPolicy");
        }
        if kind == "LoadBalancer" {
            tree::set_default(spec, "allocateLoadBalancerNodePorts", true);
        }
        if let Some(ports) = tree::members(spec).get_mut("ports").and_then(Value::as_array_mut) {
            for port in ports {
                tree::set_default(port, "protocol", "TCP");
                let target = tree::at(port, &["targetPort"]);
                if target.is_null() || *target == 0 || *target == "" {
                    let number = tree::at(port, &["port"]).clone();
                    tree::members(port).insert("targetPort".into(), number);
                }
            }
        }
        if let Some(first) = tree::items(spec, &["clusterIPs"]).first().cloned() {
            tree::set_default(spec, "clusterIP", first);
        } else if !tree::text(spec, &["clusterIP"]).is_empty() {
            let address = tree::at(spec, &["clusterIP"]).clone();
            tree::members(spec).insert("clusterIPs".into(), json!([address]));
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        tree::object(object, "status").insert("loadBalancer".into(), json!({}));
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        allocate::keep(new, old);
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        let spec = tree::at(object, &["spec"]);
        let kind = tree::text(spec, &["type"]);
        if !TYPES.contains(&kind) {
            errors.push(FieldError::not_supported("spec.type", tree::at(spec, &["type"]), &TYPES));
        }
        let headless = tree::text(spec, &["clusterIP"]) == "None";
        let ports = tree::items(spec, &["ports"]);
        if ports.is_empty() && !headless && kind != "ExternalName" {
            errors.push(FieldError::required("spec.ports", ""));
        }
        if headless && matches!(kind, "NodePort" | "LoadBalancer") {
            let detail = format!("may not be set to 'None' for {kind} services");
            errors.push(FieldError::invalid("spec.clusterIPs[0]", &json!("None"), &detail));
        }
        if kind == "ExternalName" {
            let name = tree::text(spec, &["externalName"]);
            if name.is_empty() {
                errors.push(FieldError::required("spec.externalName", ""));
            } else if let Some(detail) = wrong_name(NameRule::Subdomain, name.trim_end_matches('.')) {
                errors.push(FieldError::invalid("spec.externalName", &name.into(), &detail));
            }
        }
        let affinity = tree::at(spec, &["sessionAffinity"]);
        if !matches!(affinity.as_str(), Some("None" | "ClientIP")) {
            let known = ["ClientIP", "None"];
            errors.push(FieldError::not_supported("spec.sessionAffinity", affinity, &known));
        }
        apiserver::names::check_labels(tree::at(spec, &["selector"]), "spec.selector", errors);
        validate_ports(ports, errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut FieldErrors) {
        let external = |object: &Value| tree::text(object, &["spec", "type"]) == "ExternalName";
        if external(new) || external(old) {
            return;
        }
        let first = |object: &Value| tree::items(object, &["spec", "clusterIPs"]).first().cloned();
        if let Some(before) = first(old)
            && (first(new).as_ref() != Some(&before) || tree::at(new, &["spec", "clusterIP"]) != &before)
        {
            let addresses = tree::at(new, &["spec", "clusterIPs"]);
            errors.push(FieldError::invalid("spec.clusterIPs[0]", addresses, "may not change once set"));
        }
    }

    fn companions(
        &self,
        view: &dyn View,
        old: Option<&Value>,
        new: Option<&mut Value>,
        attempt: u32,
    ) -> Result<Companions, Status> {
        allocate::companions(view, old, new, attempt)
    }
}

fn validate_ports(ports: &[Value], errors: &mut FieldErrors) {
    let mut names: Vec<&str> = Vec::new();
    let mut seen: Vec<(i64, &str)> = Vec::new();
    let mut seen_on_nodes: Vec<(i64, &str)> = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        let field = format!("spec.ports[{index}]");
        let name = tree::text(port, &["name"]);
        if name.is_empty() && ports.len() > 1 {
            errors.push(FieldError::required(format!("{field}.name"), ""));
        } else if !name.is_empty() {
            if let Some(detail) = wrong_name(NameRule::Label, name) {
                errors.push(FieldError::invalid(format!("{field}.name"), &name.into(), &detail));
            } else if names.contains(&name) {
                errors.push(FieldError::duplicate(format!("{field}.name"), &name.into()));
            }
            names.push(name);
        }
        let number = tree::at(port, &["port"]);
        if !number.as_i64().is_some_and(|port| (1..=65535).contains(&port)) {
            let detail = "must be between 1 and 65535, inclusive";
            errors.push(FieldError::invalid(format!("{field}.port"), number, detail));
        }
        let target = tree::at(port, &["targetPort"]);
        if let Some(number) = target.as_i64().filter(|port| !(1..=65535).contains(port)) {
            let detail = "must be between 1 and 65535, inclusive";
            errors.push(FieldError::invalid(format!("{field}.targetPort"), &number.into(), detail));
        }
        for detail in target.as_str().into_iter().flat_map(port_name_problems) {
            errors.push(FieldError::invalid(format!("{field}.targetPort"), target, detail));
        }
        let protocol = tree::text(port, &["protocol"]);
        if !matches!(protocol, "TCP" | "UDP" | "SCTP") {
            let known = ["SCTP", "TCP", "UDP"];
            errors.push(FieldError::not_supported(format!("{field}.protocol"), &protocol.into(), &known));
        }
        let key = (number.as_i64().unwrap_or(0), protocol);
        if seen.contains(&key) {
            let value = json!({ "port": key.0, "protocol": key.1 });
            errors.push(FieldError::duplicate(field.clone(), &value));
        }
        seen.push(key);
        let on_node = tree::at(port, &["nodePort"]);
        if let Some(number) = on_node.as_i64().filter(|number| *number != 0) {
            if seen_on_nodes.contains(&(number, protocol)) {
                errors.push(FieldError::duplicate(format!("spec.ports[{index}].nodePort"), on_node));
            }
            seen_on_nodes.push((number, protocol));
        }
    }
}
