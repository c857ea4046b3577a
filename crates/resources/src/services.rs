//! Services: defaults and validation; addresses and ports are allocated in their own transaction.
//! Source: `core/v1/defaults.go`, `core/validation/validation.go`, `registry/core/service/storage`.

use api::Status;
use apiserver::field::{FieldError, FieldErrors};
use apiserver::strategy::{Companions, NameRule, Strategy, View};
use apiserver::tree;
use serde_json::{Value, json};

use crate::{allocate, service_rules};

/// Sessions last three hours unless said otherwise.
const AFFINITY_SECONDS: i64 = 10_800;

pub(crate) struct Services;

impl Strategy for Services {
    fn name_rule(&self) -> NameRule {
        NameRule::Label
    }

    fn generation(&self) -> bool {
        false
    }

    fn default(&self, object: &mut Value) {
        let spec = tree::member(object, "spec");
        tree::set_default(spec, "type", "ClusterIP");
        tree::set_default(spec, "sessionAffinity", "None");
        match tree::text(spec, &["sessionAffinity"]) {
            "ClientIP" => {
                let config = tree::member(tree::member(spec, "sessionAffinityConfig"), "clientIP");
                tree::set_default(config, "timeoutSeconds", AFFINITY_SECONDS);
            }
            // Also upstream drops it here: its validation never sees one.
            "None" => {
                tree::members(spec).remove("sessionAffinityConfig");
            }
            _ => {}
        }
        let kind = tree::text(spec, &["type"]).to_owned();
        if kind != "ExternalName" {
            tree::set_default(spec, "internalTrafficPolicy", "Cluster");
        }
        if service_rules::is_reachable(spec) {
            tree::set_default(spec, "externalTrafficPolicy", "Cluster");
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
        service_rules::drop_dependent(new, old);
        allocate::keep(new, old);
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        service_rules::validate(object, errors);
    }

    fn validate_status(&self, new: &Value, _: &Value, errors: &mut FieldErrors) {
        service_rules::load_balancer(new, errors);
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        service_rules::warnings(object)
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut FieldErrors) {
        let external = |object: &Value| tree::text(object, &["spec", "type"]) == "ExternalName";
        service_rules::update(new, old, errors);
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
