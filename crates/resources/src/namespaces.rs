//! Namespaces: a finalizer of their own in `spec` keeps them until their content is gone.

use api::DeleteOptions;
use apiserver::field::{FieldError, FieldErrors};
use apiserver::strategy::{NameRule, Strategy};
use apiserver::tree;
use serde_json::{Value, json};

use crate::at::At;

/// The label by which selectors find a namespace by name.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

pub(crate) struct Namespaces;

impl Strategy for Namespaces {
    fn name_rule(&self) -> NameRule {
        NameRule::Label
    }

    fn generation(&self) -> bool {
        false
    }

    fn default(&self, object: &mut Value) {
        let name = tree::text(object, &["metadata", "name"]).to_owned();
        if !name.is_empty() {
            let metadata = tree::member(object, "metadata");
            tree::object(metadata, "labels").insert(NAME_LABEL.into(), name.into());
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        tree::object(object, "spec").insert("finalizers".into(), json!(["kubernetes"]));
        tree::object(object, "status").insert("phase".into(), "Active".into());
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        tree::copy(old, new, "spec");
    }

    fn validate_update(&self, new: &Value, _: &Value, errors: &mut FieldErrors) {
        let name = tree::at(new, &["metadata", "name"]);
        if tree::at(new, &["metadata", "labels", NAME_LABEL]) != name {
            errors.push(FieldError::invalid(
                format!("metadata.labels[{NAME_LABEL}]"),
                name,
                "must match the name",
            ));
        }
    }

    fn validate_part(&self, _: &str, new: &Value, _: &Value, errors: &mut FieldErrors) {
        for finalizer in At::object(new).down(&["spec", "finalizers"]).items() {
            finalizer.label_key(errors);
            if !finalizer.text().contains('/') && finalizer.text() != "kubernetes" {
                let detail = "name is neither a standard finalizer name nor is it fully qualified";
                errors.push(finalizer.invalid(detail));
            }
        }
    }

    fn validate_status(&self, new: &Value, _: &Value, errors: &mut FieldErrors) {
        let phase = At::object(new).down(&["status", "phase"]);
        let terminating = !tree::at(new, &["metadata", "deletionTimestamp"]).is_null();
        match (terminating, phase.text()) {
            (false, "Terminating") => {
                let detail = "may only be 'Active' if `deletionTimestamp` is empty";
                errors.push(At::new(phase.value, "status.Phase").invalid(detail));
            }
            (true, "Active") => {
                let detail = "may only be 'Terminating' if `deletionTimestamp` is not empty";
                errors.push(At::new(phase.value, "status.Phase").invalid(detail));
            }
            _ => {}
        }
    }

    fn grace_seconds(&self, _: &Value, _: &DeleteOptions) -> Option<i64> {
        None
    }

    fn deletion_began(&self, object: &mut Value) {
        tree::object(object, "status").insert("phase".into(), "Terminating".into());
    }

    fn keeps(&self, object: &Value) -> bool {
        !tree::items(object, &["spec", "finalizers"]).is_empty()
    }
}
