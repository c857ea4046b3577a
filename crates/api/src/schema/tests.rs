//! Tests of the embedded schema.

use super::*;

fn definition(name: &str) -> &'static Struct {
    let schema = Schema::builtin();
    schema.named(name).and_then(|id| schema.structure(id)).expect("the definition is in the table")
}

#[test]
fn the_embedded_table_is_whole() {
    let schema = Schema::builtin();
    assert!(schema.definitions().count() > 700);
    for (name, id) in schema.definitions() {
        let Some(definition) = schema.structure(id) else { continue };
        for field in &definition.fields {
            let place = |field: &Field| (field.within.clone(), field.number);
            let mut numbers = definition.fields.iter().filter(|other| place(other) == place(field));
            assert!(
                field.number == 0 || numbers.nth(1).is_none(),
                "{name}.{} has its number twice",
                field.name
            );
        }
    }
}

#[test]
fn facts_of_a_field() {
    let container = definition("io.k8s.api.core.v1.Container");
    let ports = container.field("ports").expect("a field");
    assert_eq!(ports.patch_key(), Some("containerPort"));
    assert!(ports.patch_merges());
    let schema = Schema::builtin();
    let Type::List { kind, item, .. } = schema.get(ports.ty) else { panic!("ports is a list") };
    assert_eq!(*kind, ListKind::Map(vec!["containerPort".into(), "protocol".into()]));
    let port = schema.structure(*item).expect("an object");
    assert_eq!(port.field("protocol").and_then(Field::default), Some(&serde_json::json!("TCP")));
    assert!(port.field("containerPort").is_some_and(|field| field.required && field.number == 3));
}

#[test]
fn a_field_may_override_its_types_atomicity() {
    let volume = definition("io.k8s.api.core.v1.PersistentVolumeSpec");
    let schema = Schema::builtin();
    let claim = schema.structure(volume.field("claimRef").expect("a field").ty).expect("an object");
    assert!(!claim.atomic && !claim.fields.is_empty());
    assert!(definition("io.k8s.api.core.v1.ObjectReference").atomic);
}

#[test]
fn a_newer_release_is_merged() {
    let pod = definition("io.k8s.api.core.v1.PodSpec");
    assert_eq!(pod.field("evictionResponders").and_then(Field::since), Some("1.37"));
}

#[test]
fn descriptions_come_from_the_dependency() {
    let descriptions = Descriptions::open();
    let replicas = descriptions.field("io.k8s.api.apps.v1.DeploymentSpec", "replicas").expect("prose");
    assert!(replicas.contains("Defaults to 1"));
    assert!(descriptions.definition("io.k8s.api.core.v1.Pod").is_some());
}
