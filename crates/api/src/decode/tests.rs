//! Tests of decoding against the built-in schema.

use serde_json::json;

use super::*;
use crate::catalog::Catalog;

fn row(api_version: &str, kind: &str) -> std::sync::Arc<Row> {
    Catalog::builtin().by_api_version(api_version, kind).expect("a row").clone()
}

fn decoded(
    api_version: &str,
    kind: &str,
    body: &Value,
    validation: FieldValidation,
) -> Result<(Value, Vec<String>), String> {
    object(&row(api_version, kind), body.to_string().as_bytes(), validation, Mode::Object)
        .map_err(|status| status.message)
}

fn deployment(spec: &Value) -> Result<(Value, Vec<String>), String> {
    let body = json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": spec});
    decoded("apps/v1", "Deployment", &body, FieldValidation::Strict)
}

#[test]
fn unknown_fields_are_refused_warned_about_or_dropped() {
    let body = json!({"kind": "Pod", "apiVersion": "v1", "spec": {"foo": 1, "containers": [{"name": "a", "bar": {"x": []}}]}});
    let strict = decoded("v1", "Pod", &body, FieldValidation::Strict).expect_err("unknown fields");
    assert_eq!(
        strict,
        "Pod in version \"v1\" cannot be handled as a Pod: strict decoding error: unknown field \"spec.containers[0].bar\", unknown field \"spec.foo\""
    );
    let (object, warnings) = decoded("v1", "Pod", &body, FieldValidation::Warn).expect("only warned about");
    assert_eq!(warnings, ["unknown field \"spec.containers[0].bar\"", "unknown field \"spec.foo\""]);
    assert_eq!(object, json!({"kind": "Pod", "apiVersion": "v1", "spec": {"containers": [{"name": "a"}]}}));
    let (_, warnings) = decoded("v1", "Pod", &body, FieldValidation::Ignore).expect("ignored");
    assert!(warnings.is_empty());
}

#[test]
fn what_is_not_json_is_not_recognized() {
    let schema = crate::schema::Schema::builtin();
    let map = schema.typed(schema.named("io.k8s.api.core.v1.ConfigMap").unwrap());
    let said = |body: &str| {
        let decoded = kind(map, "v1", "ConfigMap", body.as_bytes(), FieldValidation::Strict, Mode::Object);
        decoded.unwrap_err().message
    };
    let unrecognized = |cause: &str, start: &str| {
        format!(
            "the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind; json parse \
             error: {cause} ({start})"
        )
    };
    assert_eq!(said("{"), unrecognized("unexpected end of JSON input", "{"));
    assert_eq!(said(""), unrecognized("unexpected end of JSON input", "<empty>"));
    assert!(said("nonsense").ends_with(" (6e6f6e73656e7365)"), "{}", said("nonsense"));
    assert!(said(&format!("{{ {}", "x".repeat(40))).ends_with(&format!(" ({{ {} ...)", "x".repeat(28))));
}

#[test]
fn what_is_dropped_may_nest_so_deep_and_no_deeper() {
    let of = |depth: usize| {
        let nested =
            format!(r#"{{"metadata":{{"name":"\"[a"}},"x":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
        object(&row("v1", "ConfigMap"), nested.as_bytes(), FieldValidation::Warn, Mode::Object)
    };
    assert_eq!(of(DEPTH_MAX - 1).expect("an object").1, ["unknown field \"x\""]);
    let refused = of(DEPTH_MAX).expect_err("too deep");
    let says = "json parse error: invalid character '[' exceeded max depth ({";
    assert!(refused.code == 400 && refused.message.contains(says), "{}", refused.message);
}

#[test]
fn repeated_fields_are_noticed_and_the_last_one_counts() {
    let body = br#"{"metadata":{"name":"a","name":"b","labels":{"x":"1","x":"2"}}}"#;
    let (object, warnings) =
        object(&row("v1", "Pod"), body, FieldValidation::Warn, Mode::Object).expect("an object");
    assert_eq!(warnings, ["duplicate field \"metadata.name\"", "duplicate field \"metadata.labels.x\""]);
    assert_eq!(object["metadata"], json!({"name": "b", "labels": {"x": "2"}}));
}

#[test]
fn wrong_types_are_named_as_upstream_names_them() {
    let replicas = deployment(&json!({"replicas": "three"})).expect_err("a string");
    assert!(
        replicas.ends_with(
            "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"
        ),
        "{replicas}"
    );
    let env = json!({"template": {"spec": {"containers": [{"env": [{"name": "A", "value": 1}]}]}}});
    let env = deployment(&env).expect_err("a number");
    assert!(
        env.ends_with(
            "json: cannot unmarshal number into Go struct field EnvVar.spec.template.spec.containers.env.value of type string"
        ),
        "{env}"
    );
    let containers = deployment(&json!({"template": {"spec": {"containers": {}}}})).expect_err("an object");
    assert!(
        containers.ends_with(
            "cannot unmarshal object into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container"
        ),
        "{containers}"
    );
    // A map's keys are no fields.
    let labels = json!({"template": {"metadata": {"labels": {"on": true}}}});
    let labels = deployment(&labels).expect_err("a truth value");
    let place = "ObjectMeta.spec.template.metadata.labels of type string";
    assert!(labels.ends_with(&format!("cannot unmarshal bool into Go struct field {place}")), "{labels}");
    assert!(deployment(&json!({"replicas": 3_000_000_000_u64})).is_err());
    assert!(deployment(&json!({"replicas": 1.5})).is_err());
}

#[test]
fn leaves_take_their_canonical_form() {
    let body = json!({"metadata": {"creationTimestamp": "2026-01-01T02:00:00+02:00"}, "spec": {"containers": [
        {"name": "a", "resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}}, "ports": [],
         "livenessProbe": {"httpGet": {"port": "http"}}}], "nodeSelector": null}});
    let (object, _) = decoded("v1", "Pod", &body, FieldValidation::Strict).expect("an object");
    let container = &object["spec"]["containers"][0];
    assert_eq!(container["resources"]["limits"], json!({"cpu": "500m", "memory": "1Gi"}));
    assert!(container.get("ports").is_none() && object["spec"].get("nodeSelector").is_none());
    assert_eq!(object["metadata"]["creationTimestamp"], "2026-01-01T00:00:00Z");
    let wrong = json!({"spec": {"containers": [{"resources": {"limits": {"cpu": "much"}}}]}});
    let wrong = decoded("v1", "Pod", &wrong, FieldValidation::Strict).expect_err("no quantity");
    assert!(wrong.contains("quantities must match the regular expression"), "{wrong}");
    let secret = json!({"data": {"a": "***"}});
    assert!(decoded("v1", "Secret", &secret, FieldValidation::Strict).is_err());
}

#[test]
fn the_kind_in_the_data_must_be_the_one_asked_for() {
    let other = json!({"apiVersion": "extensions/v1beta1", "kind": "Deployment"});
    assert_eq!(
        decoded("apps/v1", "Deployment", &other, FieldValidation::Strict).expect_err("another version"),
        "the API version in the data (extensions/v1beta1) does not match the expected API version (apps/v1)"
    );
    let (filled, _) = decoded("v1", "ConfigMap", &json!({}), FieldValidation::Strict).expect("filled in");
    assert_eq!(filled, json!({"apiVersion": "v1", "kind": "ConfigMap"}));
}

#[test]
fn a_configuration_keeps_what_it_says_of_nothing() {
    let body = br#"{"metadata":{"labels":{}}}"#;
    let row = row("v1", "Pod");
    let (kept, _) = object(&row, body, FieldValidation::Strict, Mode::Configuration).expect("an object");
    assert_eq!(kept["metadata"], json!({"labels": {}}));
    let (dropped, _) = object(&row, body, FieldValidation::Strict, Mode::Object).expect("an object");
    assert_eq!(dropped["metadata"], json!({}));
}

#[test]
fn nonsense_is_refused() {
    let row = row("v1", "Pod");
    let deep = format!("{{\"spec\":{}", "[".repeat(100_000));
    let long = vec![b' '; BODY_BYTES_MAX + 1];
    let bodies: [&[u8]; 6] = [b"", b"null", b"[]", b"{\"a\":1}x", deep.as_bytes(), &long];
    for body in bodies {
        assert!(object(&row, body, FieldValidation::Ignore, Mode::Object).is_err());
    }
}

#[test]
fn decoding_twice_changes_nothing() {
    let body = json!({"metadata": {"name": "x", "labels": {"a": null}}, "spec": {"containers": [{"name": "a",
        "resources": {"requests": {"cpu": "1500m", "memory": "1.5Gi"}}}], "volumes": [{"name": "v", "emptyDir": {}}]}});
    let (once, _) = decoded("v1", "Pod", &body, FieldValidation::Strict).expect("an object");
    let (twice, _) = decoded("v1", "Pod", &once, FieldValidation::Strict).expect("an object");
    assert_eq!(once, twice);
}
