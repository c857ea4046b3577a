//! The `scale` subresource: how many replicas an object wants, read and written without knowing its kind.
//! Source: `kubernetes/pkg/registry/apps/deployment/storage` and `managedfields.ScaleHandler`.

use api::decode::Mode;
use api::{Call, FieldValidation, Key, Object, PatchType, Reason, Response, Status, WriteOptions};
use serde_json::{Value, json};

use super::write::{Ownership, unsaved};
use super::{Asked, Pipeline};
use crate::tree;
use crate::words::{self, Patch};

/// What a client wants of the Scale.
enum Wanted {
    Update(Value),
    Patch(Patch),
    Apply(Value),
}

impl Pipeline {
    pub(super) async fn scale(&self, asked: &Asked<'_>, call: Call) -> Result<Response, Status> {
        let (wanted, warnings, options) = match call {
            Call::Get { .. } => {
                let key = Key::new(asked.namespace, asked.name);
                let live = self.read_stored(&asked.stored, &key).await?.ok_or_else(|| asked.not_found())?;
                return scale_response(&live, Vec::new());
            }
            Call::Update { body, options } => {
                let (scale, warnings) = decode(asked, &body, options.field_validation, Mode::Object)?;
                (Wanted::Update(scale), warnings, options)
            }
            Call::Patch { kind: PatchType::Apply, body, options } => {
                crate::options::check_write(crate::options::Write::Apply, &options)?;
                let (scale, warnings) = decode(asked, &body, options.field_validation, Mode::Configuration)?;
                (Wanted::Apply(scale), warnings, options)
            }
            // A Scale has no lists: the two merge patches are the same for it.
            Call::Patch { kind: PatchType::StrategicMerge, body, options } => {
                (Wanted::Patch(Patch::parse(PatchType::Merge, &body)?), Vec::new(), options)
            }
            Call::Patch { kind, body, options } => {
                (Wanted::Patch(Patch::parse(kind, &body)?), Vec::new(), options)
            }
            _ => {
                let message = "the server does not allow this method on scale";
                return Err(Status::new(Reason::MethodNotAllowed, message));
            }
        };
        match self.write_scale(asked, &wanted, &options).await? {
            Response::Object { object, warnings: more, .. } => {
                scale_response(&object, warnings.into_iter().chain(more).collect())
            }
            other => Ok(other),
        }
    }

    async fn write_scale(
        &self,
        asked: &Asked<'_>,
        wanted: &Wanted,
        options: &WriteOptions,
    ) -> Result<Response, Status> {
        let Some(writer) = self.writer(options, asked) else {
            return Err(Status::internal("a scale without a writer"));
        };
        let change = |live: &Value| {
            let present = scale_of(live);
            let (mut new, mut warnings) = (live.clone(), Vec::new());
            let scale = match wanted {
                Wanted::Update(scale) => scale.clone(),
                Wanted::Patch(patch) => {
                    let (scale, problems) = patched(asked, &present, patch, options)?;
                    warnings = problems;
                    scale
                }
                Wanted::Apply(intent) => {
                    let writer = words::Writer { api_version: SCALE_VERSION.into(), ..writer.clone() };
                    let present = with_owners(present, live);
                    let (_, ty) = words::kind_of_subresource(&asked.kind, "scale")?;
                    let place = ty.place();
                    let scale =
                        api::patch::apply::apply(&present, intent.clone(), place, &writer, options.force)?;
                    take_owners(&mut new, &scale, &asked.stored.api_version());
                    scale
                }
            };
            check(asked, &scale)?;
            let replicas = tree::at(&scale, &["spec", "replicas"]).as_i64().unwrap_or(0);
            tree::object(&mut new, "spec").insert("replicas".into(), replicas.into());
            let metadata = tree::member(&mut new, "metadata");
            tree::copy(tree::at(&scale, &["metadata"]), metadata, "resourceVersion");
            Ok((new, warnings))
        };
        if !matches!(wanted, Wanted::Apply(_)) {
            return self.system_change(asked, &change, options).await;
        }
        let owned = Some((writer.clone(), Ownership::Applied));
        self.change(asked, &change, options.dry_run, owned).await
    }
}

/// The version of the Scale that is served.
const SCALE_VERSION: &str = "autoscaling/v1";

fn decode(
    asked: &Asked<'_>,
    body: &[u8],
    validation: FieldValidation,
    mode: Mode,
) -> Result<(Value, Vec<String>), Status> {
    words::decode_subresource(&asked.kind, "scale", body, validation, mode)
}

/// A Scale that a patch made, checked as one that is sent.
fn patched(
    asked: &Asked<'_>,
    present: &Value,
    patch: &Patch,
    options: &WriteOptions,
) -> Result<(Value, Vec<String>), Status> {
    let scale = words::patch(&asked.kind, present, patch)?;
    let bytes = serde_json::to_vec(&scale).map_err(|error| Status::internal(error.to_string()))?;
    decode(asked, &bytes, options.field_validation, Mode::Object)
}

fn check(asked: &Asked<'_>, scale: &Value) -> Result<(), Status> {
    let name = tree::text(scale, &["metadata", "name"]);
    if !name.is_empty() && name != asked.name {
        return Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            asked.name
        )));
    }
    let replicas = tree::at(scale, &["spec", "replicas"]);
    if replicas.as_i64().is_none_or(|count| (0..=i64::from(i32::MAX)).contains(&count)) {
        return Ok(());
    }
    let detail = "must be greater than or equal to 0";
    let errors = [crate::field::FieldError::invalid("spec.replicas", replicas, detail)];
    crate::field::check("autoscaling", "Scale", asked.name, &errors)
}

/// An object's `autoscaling/v1` Scale.
fn scale_of(object: &Value) -> Value {
    let metadata = tree::at(object, &["metadata"]);
    let mut kept = serde_json::Map::new();
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = metadata.get(field) {
            kept.insert(field.to_owned(), value.clone());
        }
    }
    let mut status = json!({ "replicas": tree::at(object, &["status", "replicas"]).as_i64().unwrap_or(0) });
    let selector = words::selector_text(tree::at(object, &["spec", "selector"]));
    if !selector.is_empty() {
        status["selector"] = selector.into();
    }
    json!({
        "kind": "Scale", "apiVersion": SCALE_VERSION, "metadata": kept,
        "spec": { "replicas": tree::at(object, &["spec", "replicas"]).as_i64().unwrap_or(0) }, "status": status,
    })
}

fn scale_response(object: &Object, warnings: Vec<String>) -> Result<Response, Status> {
    let tree: Value = object.decode().map_err(|error| Status::internal(error.to_string()))?;
    Ok(Response::Object { object: unsaved(&scale_of(&tree))?, created: false, warnings })
}

/// Where the number of replicas stands in `fieldsV1`, in the object as in its Scale.
const REPLICAS: &str = "/f:spec/f:replicas";

fn owners(object: &Value) -> &[Value] {
    tree::items(object, &["metadata", "managedFields"])
}

fn owns_replicas(entry: &Value) -> bool {
    entry["fieldsV1"].pointer(REPLICAS).is_some()
}

/// Who an entry of managedFields belongs to.
fn owner(entry: &Value) -> [&Value; 3] {
    [&entry["manager"], &entry["operation"], &entry["subresource"]]
}

/// The Scale with the owners of the object's number of replicas.
fn with_owners(mut scale: Value, object: &Value) -> Value {
    let entries: Vec<Value> = owners(object)
        .iter()
        .filter(|entry| owns_replicas(entry))
        .map(|entry| {
            let mut entry = entry.clone();
            entry["apiVersion"] = SCALE_VERSION.into();
            entry["fieldsV1"] = json!({ "f:spec": { "f:replicas": {} } });
            entry
        })
        .collect();
    if !entries.is_empty() {
        tree::metadata(&mut scale).insert("managedFields".into(), entries.into());
    }
    scale
}

/// Gives the object the owners that its Scale has: whoever lost the replicas there loses them here.
fn take_owners(object: &mut Value, scale: &Value, api_version: &str) {
    let mut entries = owners(object).to_vec();
    let held = |entry: &Value| owners(scale).iter().any(|other| owner(other) == owner(entry));
    for entry in entries.iter_mut().filter(|entry| owns_replicas(entry) && !held(entry)) {
        let fields = tree::object(entry, "fieldsV1");
        let left = fields.get_mut("f:spec").and_then(Value::as_object_mut).is_some_and(|spec| {
            spec.remove("f:replicas");
            !spec.is_empty()
        });
        if !left {
            fields.remove("f:spec");
        }
    }
    entries.retain(|entry| entry["fieldsV1"].as_object().is_some_and(|fields| !fields.is_empty()));
    for gained in owners(scale).iter().filter(|entry| owns_replicas(entry)) {
        match entries.iter_mut().find(|entry| owner(entry) == owner(gained)) {
            Some(entry) => entry["fieldsV1"]["f:spec"]["f:replicas"] = json!({}),
            None => {
                let mut entry = gained.clone();
                entry["apiVersion"] = api_version.into();
                entries.push(entry);
            }
        }
    }
    tree::metadata(object).insert("managedFields".into(), entries.into());
}
