//! The `scale` subresource: how many replicas an object wants, read and written without knowing its kind.
//! Source: `kubernetes/pkg/registry/apps/deployment/storage` and `managedfields.ScaleHandler`.

use api::custom::ScalePaths;
use api::decode::Mode;
use api::{Call, FieldValidation, Key, Object, PatchType, Reason, Response, Status, WriteOptions};
use serde_json::{Value, json};

use super::write::{Ownership, unsaved};
use super::{Asked, Pipeline};
use crate::admission::Options;
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
                let live = self.present(asked, live).await?;
                return scale_response(&paths(asked), &live, Vec::new());
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
                scale_response(&paths(asked), &object, warnings.into_iter().chain(more).collect())
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
        let paths = paths(asked);
        let change = |live: &Value| {
            let present = scale_of(&paths, live);
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
                    let present = with_owners(&paths, present, live);
                    let (_, ty) = words::kind_of_subresource(&asked.kind, "scale")?;
                    let place = ty.place();
                    let scale =
                        api::patch::apply::apply(&present, intent.clone(), place, &writer, options.force)?;
                    take_owners(&paths, &mut new, &scale, &asked.stored.api_version());
                    scale
                }
            };
            check(asked, &scale)?;
            let replicas = tree::at(&scale, &["spec", "replicas"]).as_i64().unwrap_or(0);
            *paths.spec.iter().fold(&mut new, |value, name| tree::member(value, name)) = replicas.into();
            let metadata = tree::member(&mut new, "metadata");
            tree::copy(tree::at(&scale, &["metadata"]), metadata, "resourceVersion");
            Ok((new, warnings))
        };
        if !matches!(wanted, Wanted::Apply(_)) {
            return self.system_change(asked, &change, options).await;
        }
        let owned = Some((writer.clone(), Ownership::Applied));
        self.change(asked, &change, Options::Write(options), owned).await
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
        .map_err(|status| super::write::misshapen(status, patch, || Ok(scale)))
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

/// The subresource.
pub(super) const NAME: &str = "scale";

/// The Scale of an object, as admission sees it.
pub(super) fn shown(asked: &Asked<'_>, object: &Value) -> Value {
    scale_of(&paths(asked), object)
}

/// Takes the replicas of a Scale that admission changed into the object.
pub(super) fn take(asked: &Asked<'_>, scale: &Value, object: &mut Value) {
    let replicas = tree::at(scale, &["spec", "replicas"]).as_i64().unwrap_or(0);
    *paths(asked).spec.iter().fold(object, |value, name| tree::member(value, name)) = replicas.into();
}

/// Where the numbers stand.
fn paths(asked: &Asked<'_>) -> ScalePaths {
    let path = |parent: &str| vec![parent.to_owned(), "replicas".to_owned()];
    let declared = asked.kind.custom.as_ref().and_then(|custom| custom.scale.clone());
    declared.unwrap_or_else(|| ScalePaths { spec: path("spec"), status: path("status"), selector: None })
}

fn under<'a>(object: &'a Value, path: &[String]) -> &'a Value {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    tree::at(object, &path)
}

/// An object's `autoscaling/v1` Scale.
fn scale_of(paths: &ScalePaths, object: &Value) -> Value {
    let metadata = tree::at(object, &["metadata"]);
    let mut kept = serde_json::Map::new();
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = metadata.get(field) {
            kept.insert(field.to_owned(), value.clone());
        }
    }
    let mut status = json!({ "replicas": under(object, &paths.status).as_i64().unwrap_or(0) });
    let selector = match &paths.selector {
        Some(path) => under(object, path).as_str().unwrap_or_default().to_owned(),
        None => words::selector_text(tree::at(object, &["spec", "selector"])),
    };
    if !selector.is_empty() {
        status["selector"] = selector.into();
    }
    json!({
        "kind": "Scale", "apiVersion": SCALE_VERSION, "metadata": kept,
        "spec": { "replicas": under(object, &paths.spec).as_i64().unwrap_or(0) }, "status": status,
    })
}

fn scale_response(paths: &ScalePaths, object: &Object, warnings: Vec<String>) -> Result<Response, Status> {
    let tree: Value = object.decode().map_err(|error| Status::internal(error.to_string()))?;
    Ok(Response::Object { object: unsaved(&scale_of(paths, &tree))?, created: false, warnings })
}

/// Where the number of replicas stands in `fieldsV1` of a Scale.
const REPLICAS: &str = "/f:spec/f:replicas";

/// Where it stands in `fieldsV1` of the object.
fn replicas_of(paths: &ScalePaths) -> Vec<String> {
    paths.spec.iter().map(|name| format!("f:{name}")).collect()
}

fn owners(object: &Value) -> &[Value] {
    tree::items(object, &["metadata", "managedFields"])
}

fn owns_replicas(paths: &ScalePaths, entry: &Value) -> bool {
    !under(&entry["fieldsV1"], &replicas_of(paths)).is_null()
}

/// Who an entry of managedFields belongs to.
fn owner(entry: &Value) -> [&Value; 3] {
    [&entry["manager"], &entry["operation"], &entry["subresource"]]
}

/// The Scale with the owners of the object's number of replicas.
fn with_owners(paths: &ScalePaths, mut scale: Value, object: &Value) -> Value {
    let entries: Vec<Value> = owners(object)
        .iter()
        .filter(|entry| owns_replicas(paths, entry))
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

/// Takes a path out of a tree of fields, with the parents that hold nothing else.
fn take_path(fields: &mut Value, path: &[String]) {
    let Some((first, rest)) = path.split_first() else { return };
    let Some(members) = fields.as_object_mut() else { return };
    if let Some(below) = members.get_mut(first) {
        take_path(below, rest);
        if rest.is_empty() || below.as_object().is_none_or(serde_json::Map::is_empty) {
            members.remove(first);
        }
    }
}

/// Gives the object the owners that its Scale has: whoever lost the replicas there loses them here.
fn take_owners(paths: &ScalePaths, object: &mut Value, scale: &Value, api_version: &str) {
    let mut entries = owners(object).to_vec();
    let path = replicas_of(paths);
    let held = |entry: &Value| owners(scale).iter().any(|other| owner(other) == owner(entry));
    for entry in entries.iter_mut().filter(|entry| owns_replicas(paths, entry) && !held(entry)) {
        take_path(tree::member(entry, "fieldsV1"), &path);
    }
    entries.retain(|entry| entry["fieldsV1"].as_object().is_some_and(|fields| !fields.is_empty()));
    for gained in owners(scale).iter().filter(|entry| entry["fieldsV1"].pointer(REPLICAS).is_some()) {
        let own = |entry: &mut Value| {
            let fields = tree::member(entry, "fieldsV1");
            *path.iter().fold(fields, |value, name| tree::member(value, name)) = json!({});
        };
        match entries.iter_mut().find(|entry| owner(entry) == owner(gained)) {
            Some(entry) => own(entry),
            None => {
                let mut entry = gained.clone();
                entry["apiVersion"] = api_version.into();
                entry["fieldsV1"] = json!({});
                own(&mut entry);
                entries.push(entry);
            }
        }
    }
    tree::metadata(object).insert("managedFields".into(), entries.into());
}
