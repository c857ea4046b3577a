//! Conversion of custom resources by a webhook: many objects in one question, and what an answer has to be. Of the
//! metadata only labels and annotations may become others.
//! Source: `apiextensions-apiserver/pkg/apiserver/conversion/webhook_converter.go`.

use std::time::Duration;

use api::custom::Webhook;
use serde_json::{Map, Value, json};

use super::Webhooks;
use crate::field::FieldErrors;
use crate::{names, tree};

const GROUP: &str = "apiextensions.k8s.io";
/// A webhook has this long for one question. Source: upstream's documentation of conversion webhooks.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// A question has at most so many objects; long lists are several questions, so that none is unbounded.
const OBJECTS_MAX: usize = 500;

/// Converts objects to a version; the failure is a sentence for people.
pub(crate) async fn convert(
    webhooks: &Webhooks,
    webhook: &Webhook,
    objects: &[Value],
    api_version: &str,
) -> Result<Vec<Value>, String> {
    let mut converted = Vec::with_capacity(objects.len());
    for some in objects.chunks(OBJECTS_MAX) {
        converted.extend(ask(webhooks, webhook, some, api_version).await?);
    }
    Ok(converted)
}

async fn ask(
    webhooks: &Webhooks,
    webhook: &Webhook,
    objects: &[Value],
    api_version: &str,
) -> Result<Vec<Value>, String> {
    let known = |version: &&String| matches!(version.as_str(), "v1" | "v1beta1");
    let version = webhook.review_versions.iter().find(known);
    let version = version.ok_or("no supported conversion review versions")?;
    let uid = base::id::uuid();
    let review = json!({
        "kind": "ConversionReview", "apiVersion": format!("{GROUP}/{version}"),
        "request": { "uid": uid, "desiredAPIVersion": api_version, "objects": objects },
    });
    let kind = kind_of(objects.first().unwrap_or(&Value::Null));
    let failed = |error: String| format!("conversion webhook for {kind} failed: {error}");
    let client = webhooks.client(&webhook.client, None)?;
    let answer = client.post(&review, ANSWER_MAX, false).await.map_err(|error| failed(error.why))?;
    let converted = answered(answer, version, &uid).map_err(failed)?;
    if converted.len() != objects.len() {
        let (got, wanted) = (converted.len(), objects.len());
        return Err(format!("conversion webhook for {kind} returned {got} objects, expected {wanted}"));
    }
    let one = objects.len() == 1;
    let restored = objects.iter().zip(converted).enumerate().map(|(index, (original, converted))| {
        checked(original, converted, api_version).map_err(|wrong| wrong.told(&kind, index, one))
    });
    restored.collect()
}

/// The objects of an answer that is one.
fn answered(mut answer: Value, version: &str, uid: &str) -> Result<Vec<Value>, String> {
    let strict = version == "v1";
    let wanted = format!("{GROUP}/{version}, Kind=ConversionReview");
    if strict && kind_of(&answer) != wanted {
        return Err(format!("expected webhook response of {wanted}, got {}", kind_of(&answer)));
    }
    let response = tree::member(&mut answer, "response");
    if !response.is_object() {
        return Err("no response provided".to_owned());
    }
    if strict && tree::text(response, &["uid"]) != uid {
        return Err(format!("expected response.uid={uid:?}, got {:?}", tree::text(response, &["uid"])));
    }
    let status = tree::text(response, &["result", "status"]);
    if status != "Success" {
        let message = tree::text(response, &["result", "message"]);
        let unsaid = || format!("response.result.status was '{status}', not 'Success'");
        return Err(if message.is_empty() { unsaid() } else { message.to_owned() });
    }
    match tree::member(response, "convertedObjects").take() {
        Value::Array(objects) => Ok(objects),
        _ => Ok(Vec::new()),
    }
}

/// `example.com/v1, Kind=Widget`, as upstream's messages name a kind.
fn kind_of(object: &Value) -> String {
    let version = tree::text(object, &["apiVersion"]);
    let slash = if version.contains('/') { "" } else { "/" };
    format!("{slash}{version}, Kind={}", tree::text(object, &["kind"]))
}

/// What is wrong with a converted object.
#[derive(Debug, PartialEq)]
enum Wrong {
    Object(String),
    Metadata(String),
    /// Of the wrong kind or version.
    Kind(String),
}

impl Wrong {
    /// The sentence that upstream has for it: it tells one object from several.
    fn told(self, kind: &str, index: usize, one: bool) -> String {
        let what = match (&self, one) {
            (Self::Object(why), true) => format!("invalid object: {why}"),
            (Self::Metadata(why), true) => format!("invalid metadata: {why}"),
            (Self::Kind(why), true) => format!("invalid object at index 0: {why}"),
            (Self::Object(why) | Self::Kind(why), false) => {
                format!("invalid converted object at index {index}: {why}")
            }
            (Self::Metadata(why), false) => format!("invalid metadata in object at index {index}: {why}"),
        };
        format!("conversion webhook for {kind} returned {what}")
    }
}

/// A converted object with the metadata of the original, labels and annotations apart. Pure.
fn checked(original: &Value, mut converted: Value, api_version: &str) -> Result<Value, Wrong> {
    let got = tree::text(&converted, &["apiVersion"]);
    if got != api_version {
        let why = format!("invalid groupVersion (expected {api_version}, received {got})");
        return Err(Wrong::Kind(why));
    }
    let kinds = [original, &converted].map(|object| tree::text(object, &["kind"]));
    if kinds[0] != kinds[1] {
        return Err(Wrong::Kind(format!("invalid kind (expected {}, received {})", kinds[0], kinds[1])));
    }
    for (field, called) in [("name", "name"), ("namespace", "namespace"), ("uid", "UID")] {
        let [before, after] = [original, &converted].map(|object| tree::text(object, &["metadata", field]));
        if before != after {
            return Err(Wrong::Object(format!("must have the same {called}: {before} != {after}")));
        }
    }
    let said = match converted.get("metadata") {
        None => return Err(Wrong::Metadata("missing metadata in converted object".to_owned())),
        Some(Value::Object(said)) => said.clone(),
        Some(_) => return Err(Wrong::Metadata("invalid metadata in converted object".to_owned())),
    };
    let mut metadata = tree::at(original, &["metadata"]).as_object().cloned().unwrap_or_default();
    for field in ["labels", "annotations"] {
        restore(field, said.get(field), &mut metadata).map_err(Wrong::Metadata)?;
    }
    tree::members(&mut converted).insert("metadata".into(), metadata.into());
    Ok(converted)
}

/// Takes over labels or annotations that may stand there.
fn restore(field: &str, said: Option<&Value>, metadata: &mut Map<String, Value>) -> Result<(), String> {
    let Some(said) = said.filter(|said| !said.is_null()) else {
        metadata.remove(field);
        return Ok(());
    };
    let entries = said.as_object().ok_or_else(|| format!("invalid metadata.{field} in converted object"))?;
    if let Some((name, _)) = entries.iter().find(|(_, value)| !value.is_string()) {
        return Err(format!("metadata.{field}[{name}] must be a string in converted object"));
    }
    if metadata.get(field) != Some(said) {
        let mut errors = FieldErrors::new();
        if field == "labels" {
            names::check_labels(said, "metadata.labels", &mut errors);
        } else {
            names::check_annotations(said, "metadata.annotation", &mut errors);
        }
        if !errors.is_empty() {
            return Err(crate::field::joined(&errors));
        }
    }
    metadata.insert(field.to_owned(), said.clone());
    Ok(())
}
