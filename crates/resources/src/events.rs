//! Events: written by everyone, also over what is there, and forgotten after a while. What is asked of one depends on
//! the group that it is written through. Source: `core/validation/events.go`, `registry/core/event/strategy.go`.

use std::time::Duration;

use apiserver::field::{FieldError, FieldErrors};
use apiserver::names::qualified_name_problems;
use apiserver::strategy::{NameRule, Strategy};
use apiserver::tree;
use serde_json::{Value, json};

use crate::at::{At, IMMUTABLE};

/// How long an event is kept. Source: `--event-ttl`.
const EVENT_TTL: Duration = Duration::from_secs(3600);
/// Namespaces in which events of objects without one may lie.
const SHARED: [&str; 2] = ["default", "kube-system"];
const NO_MATCH: &str = "does not match event.namespace";
const SET: &str = "needs to be unset";
/// The longest texts, in bytes.
const WORDS_MAX: usize = 128;
const NOTE_MAX: usize = 1024;

pub(crate) struct Events;

impl Strategy for Events {
    /// Old clients name events after what they are about, whatever names that may have.
    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }

    fn time_to_live(&self) -> Option<Duration> {
        Some(EVENT_TTL)
    }

    fn generation(&self) -> bool {
        false
    }

    fn create_on_update(&self) -> bool {
        true
    }

    /// Two fields that Go's type always writes.
    fn default(&self, object: &mut Value) {
        for field in ["reportingComponent", "reportingInstance"] {
            tree::set_default(object, field, "");
        }
    }

    fn validate_spoken(&self, group: &str, object: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
        let event = At::object(object);
        validate(&event, group, errors);
        match old {
            _ if group.is_empty() => {}
            None => create(&event, errors),
            Some(old) => update(&event, &At::object(old), errors),
        }
    }
}

/// What is wrong with any event.
fn validate(event: &At<'_>, group: &str, errors: &mut FieldErrors) {
    let namespace = event.down(&["metadata", "namespace"]).text();
    let involved = event.down(&["involvedObject", "namespace"]);
    if event.get("eventTime").text().is_empty() {
        let matches = match involved.text() {
            "" => namespace == SHARED[0],
            other => other == namespace,
        };
        if !matches {
            errors.push(involved.invalid_text(NO_MATCH));
        }
        return;
    }
    if involved.text().is_empty() && !SHARED.contains(&namespace) {
        errors.push(involved.invalid_text(NO_MATCH));
    }
    let controller = event.get("reportingComponent");
    let named = if group.is_empty() { "reportingComponent" } else { "reportingController" };
    let controller = At::new(controller.value, named);
    controller.present("", errors);
    for problem in qualified_name_problems(controller.text()) {
        errors.push(controller.invalid_text(&problem));
    }
    for field in ["reportingInstance", "action", "reason"] {
        event.get(field).present("", errors);
        bounded(&event.get(field), WORDS_MAX, errors);
    }
    bounded(&event.get("message"), NOTE_MAX, errors);
}

fn bounded(text: &At<'_>, most: usize, errors: &mut FieldErrors) {
    if text.text().len() > most {
        errors.push(unshown(text, &format!("can have at most {most} characters")));
    }
}

/// Upstream shows an empty text, whatever stands there.
fn unshown(field: &At<'_>, detail: &str) -> FieldError {
    FieldError::invalid(field.path.clone(), &json!(""), detail)
}

/// What is wrong besides with a new event of events.k8s.io.
fn create(event: &At<'_>, errors: &mut FieldErrors) {
    event.down(&["metadata", "name"]).name(NameRule::Subdomain, errors);
    series(event, errors);
    event.get("eventTime").present("", errors);
    let kind = event.get("type");
    if !matches!(kind.text(), "Normal" | "Warning") {
        errors.push(unshown(&kind, &format!("has invalid value: {}", kind.text())));
    }
    for field in ["firstTimestamp", "lastTimestamp"] {
        if !event.get(field).text().is_empty() {
            errors.push(unshown(&event.get(field), SET));
        }
    }
    if event.get("count").number() != 0 {
        errors.push(unshown(&event.get("count"), SET));
    }
    let source = event.get("source");
    if ["component", "host"].iter().any(|part| !source.get(part).text().is_empty()) {
        errors.push(unshown(&source, SET));
    }
}

fn series(event: &At<'_>, errors: &mut FieldErrors) {
    let series = event.get("series");
    if !series.is_set() {
        return;
    }
    if series.get("count").number() < 2 {
        errors.push(unshown(&series.get("count"), "should be at least 2"));
    }
    series.get("lastObservedTime").present("", errors);
}

/// A field by its stored name and the name that upstream tells, with what Go has where nothing is.
type Frozen = (&'static str, &'static str, fn() -> Value);

/// What stays as it is in events of events.k8s.io.
const FROZEN: [Frozen; 13] = [
    ("involvedObject", "involvedObject", || json!({})),
    ("reason", "reason", || json!("")),
    ("message", "message", || json!("")),
    ("source", "source", || json!({})),
    ("firstTimestamp", "firstTimestamp", || Value::Null),
    ("lastTimestamp", "lastTimestamp", || Value::Null),
    ("count", "count", || json!(0)),
    ("type", "type", || json!("")),
    ("eventTime", "eventTime", || Value::Null),
    ("action", "action", || json!("")),
    ("related", "related", || Value::Null),
    ("reportingComponent", "reportingController", || json!("")),
    ("reportingInstance", "reportingInstance", || json!("")),
];

/// What is wrong besides with a change through events.k8s.io: only its series may change.
fn update(event: &At<'_>, before: &At<'_>, errors: &mut FieldErrors) {
    if event.get("series").value != before.get("series").value {
        series(event, errors);
    }
    for (field, told, zero) in FROZEN {
        let held = |event: &At<'_>| Some(event.get(field).value.clone()).filter(|value| !value.is_null());
        let (now, then) = (held(event).unwrap_or_else(zero), held(before).unwrap_or_else(zero));
        if now != then {
            errors.push(FieldError::invalid(told, &now, IMMUTABLE));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::at::said;

    const CORE: &str = "";
    const NEW: &str = "events.k8s.io";

    fn merged(mut event: Value, change: &Value) -> Value {
        let members = event.as_object_mut().unwrap();
        members.extend(change.as_object().unwrap().clone());
        event
    }

    fn causes(group: &str, event: &Value, old: Option<&Value>) -> Vec<String> {
        let mut errors = Vec::new();
        Events.validate_spoken(group, event, old, &mut errors);
        said(&errors)
    }

    fn old_style() -> Value {
        json!({ "metadata": { "name": "web.1", "namespace": "default" },
            "involvedObject": { "kind": "Pod", "namespace": "default" } })
    }

    fn new_style() -> Value {
        let part = json!({ "eventTime": "2026-01-01T00:00:00.000000Z", "type": "Normal", "reason": "Seen",
            "action": "Look", "reportingComponent": "example.com/c", "reportingInstance": "c-1" });
        merged(old_style(), &part)
    }

    #[test]
    fn an_event_lies_where_its_object_does() {
        let other =
            |namespace: &str| merged(old_style(), &json!({ "involvedObject": { "namespace": namespace } }));
        let wrong =
            |shown: &str| vec![format!("involvedObject.namespace: Invalid value: {shown}: {NO_MATCH}")];
        assert_eq!(causes(CORE, &old_style(), None), Vec::<String>::new());
        assert_eq!(causes(CORE, &other(""), None), Vec::<String>::new());
        assert_eq!(causes(CORE, &other("other"), None), wrong("\"other\""));
        assert_eq!(causes(CORE, &other("other"), Some(&old_style())), wrong("\"other\""));
        let elsewhere = json!({ "metadata": { "name": "a", "namespace": "kube-system" } });
        assert_eq!(causes(CORE, &elsewhere, None), wrong("\"\""));
        assert_eq!(causes(CORE, &merged(new_style(), &elsewhere), None), Vec::<String>::new());
    }

    #[test]
    fn new_events_say_who_reports_what() {
        assert_eq!(causes(NEW, &new_style(), None), Vec::<String>::new());
        let bare = merged(
            old_style(),
            &json!({ "count": 1, "source": { "component": "c" },
            "firstTimestamp": "2026-01-01T00:00:00Z", "series": {} }),
        );
        assert_eq!(
            causes(NEW, &bare, None),
            [
                "series.count: Invalid value: \"\": should be at least 2",
                "series.lastObservedTime: Required value",
                "eventTime: Required value",
                "type: Invalid value: \"\": has invalid value: ",
                "firstTimestamp: Invalid value: \"\": needs to be unset",
                "count: Invalid value: \"\": needs to be unset",
                "source: Invalid value: \"\": needs to be unset",
            ]
        );
        assert_eq!(causes(CORE, &bare, None), Vec::<String>::new());
        let empty = json!({ "reportingInstance": "", "action": "", "reason": "r".repeat(129),
            "message": "m".repeat(1025) });
        assert_eq!(
            causes(CORE, &merged(new_style(), &empty), None),
            [
                "reportingInstance: Required value",
                "action: Required value",
                "reason: Invalid value: \"\": can have at most 128 characters",
                "message: Invalid value: \"\": can have at most 1024 characters",
            ]
        );
        for (version, field) in [(CORE, "reportingComponent"), (NEW, "reportingController")] {
            let said = causes(version, &merged(new_style(), &json!({ "reportingComponent": "a b" })), None);
            assert!(
                said[0].starts_with(&format!("{field}: Invalid value: \"a b\": name part must")),
                "{said:?}"
            );
        }
        let named = merged(new_style(), &json!({ "metadata": { "name": "A_b", "namespace": "default" } }));
        assert!(causes(NEW, &named, None)[0].starts_with("metadata.name: Invalid value: \"A_b\""));
        assert_eq!(causes(CORE, &named, None), Vec::<String>::new());
    }

    #[test]
    fn only_the_series_of_a_new_event_changes() {
        let series = json!({ "series": { "count": 2, "lastObservedTime": "2026-01-01T00:00:01.000000Z" } });
        let counted = merged(new_style(), &series);
        assert_eq!(causes(NEW, &counted, Some(&new_style())), Vec::<String>::new());
        let other =
            merged(counted.clone(), &json!({ "series": { "count": 1 }, "reason": "Other", "count": 2 }));
        assert_eq!(
            causes(NEW, &other, Some(&counted)),
            [
                "series.count: Invalid value: \"\": should be at least 2",
                "series.lastObservedTime: Required value",
                "reason: Invalid value: \"Other\": field is immutable",
                "count: Invalid value: 2: field is immutable",
            ]
        );
        assert_eq!(causes(CORE, &other, Some(&counted)), Vec::<String>::new());
    }
}
