//! Query parameters and bodies into calls. Pure, but for reading the clock nowhere.

use std::num::IntErrorKind;

use api::decode::Mode;
use api::schema::Schema;
use api::{
    Call, DeleteOptions, FieldValidation, ListOptions, PatchType, Propagation, Reason, Status, WriteOptions,
};
use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use super::negotiate::{media_type, unsupported};
use super::path::ResourcePath;
use crate::field::{FieldError, FieldErrors};
use crate::options::{Write, refuse};
use crate::tree;

const PROPAGATION: &str = "propagationPolicy";
const IGNORE: &str = "ignoreStoreReadErrorWithClusterBreakingPotential";
/// The media types of patches, as refusals list them.
const PATCHES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];
/// How long a watch lasts at least that does not say so.
const WATCH_SECONDS_MIN: u64 = 1800;
/// The part of a user agent that names a manager.
const AGENT_CHARS_MAX: usize = 128;

/// The parameters of a query, in order.
#[derive(Clone, Default)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(query: &str) -> Self {
        Self(form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    fn text(&self, name: &str) -> String {
        self.get(name).unwrap_or_default().to_owned()
    }

    /// Upstream's reading of a boolean: absent and `false` and `0` are false, everything else is true.
    pub(super) fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| !matches!(value, "false" | "0"))
    }

    /// A whole number; the failure is Go's.
    pub(super) fn number(&self, name: &str) -> Result<Option<i64>, Status> {
        match self.get(name).filter(|text| !text.is_empty()) {
            None => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|error: std::num::ParseIntError| {
                let why = match error.kind() {
                    IntErrorKind::PosOverflow | IntErrorKind::NegOverflow => "value out of range",
                    _ => "invalid syntax",
                };
                Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: {why}"))
            }),
        }
    }
}

fn dry_run(values: Vec<&str>, errors: &mut FieldErrors) -> bool {
    if values.iter().any(|value| *value != "All") {
        errors.push(FieldError::not_supported("dryRun", &json!(values), &["All"]));
    }
    !values.is_empty()
}

fn list_options(query: &Query) -> Result<ListOptions, Status> {
    Ok(ListOptions {
        label_selector: query.text("labelSelector"),
        metric_label_selector: String::new(),
        field_selector: query.text("fieldSelector"),
        limit: unsigned(query.number("limit")?).unwrap_or(0),
        continue_token: query.text("continue"),
        resource_version: query.text("resourceVersion"),
        resource_version_match: query.text("resourceVersionMatch"),
        timeout_seconds: unsigned(query.number("timeoutSeconds")?).filter(|seconds| *seconds > 0),
        allow_watch_bookmarks: query.flag("allowWatchBookmarks"),
        send_initial_events: query.get("sendInitialEvents").map(|_| query.flag("sendInitialEvents")),
    })
}

/// The options of a watch, which ends some time: between half an hour and an hour, so that watches do not all come
/// back at once. Source: `--min-request-timeout`.
fn watch_options(query: &Query) -> Result<ListOptions, Status> {
    let mut options = list_options(query)?;
    options.timeout_seconds.get_or_insert_with(|| {
        let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), ());
        WATCH_SECONDS_MIN + random % WATCH_SECONDS_MIN
    });
    Ok(options)
}

/// What is less than nothing says nothing.
fn unsigned(number: Option<i64>) -> Option<u64> {
    number.map(|number| u64::try_from(number).unwrap_or(0))
}

fn write_options(query: &Query, user_agent: &str, kind: Write) -> Result<WriteOptions, Status> {
    let mut errors = FieldErrors::new();
    let field_validation = match query.get("fieldValidation") {
        None | Some("" | "Warn") => FieldValidation::Warn,
        Some("Ignore") => FieldValidation::Ignore,
        Some("Strict") => FieldValidation::Strict,
        Some(other) => {
            let known = ["", "Ignore", "Strict", "Warn"];
            errors.push(FieldError::not_supported("fieldValidation", &json!(other), &known));
            FieldValidation::Strict
        }
    };
    // An agent's name is what its owner made of it: unlike a manager's it is cut, not refused. Who applies names itself.
    let agent = user_agent.split('/').next().unwrap_or_default().trim();
    let agent = agent.chars().filter(|letter| !letter.is_control()).take(AGENT_CHARS_MAX).collect();
    let manager = match query.get("fieldManager").filter(|manager| !manager.is_empty()) {
        Some(manager) => manager.to_owned(),
        None if kind == Write::Apply => String::new(),
        None => agent,
    };
    let dry_run = dry_run(query.all("dryRun").collect(), &mut errors);
    refuse(kind.kind(), &errors)?;
    Ok(WriteOptions { dry_run, field_manager: manager, field_validation, force: query.flag("force") })
}

/// The options in a deletion's body, checked against their type. They may claim any group's version.
fn decode_delete_options(body: &[u8]) -> Result<Value, Status> {
    let refused =
        |why: String| Status::bad_request(format!("the body cannot be handled as DeleteOptions: {why}"));
    let schema = Schema::builtin();
    let ty = schema
        .named("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions")
        .ok_or_else(|| Status::internal("the schema has no DeleteOptions"))?;
    let options = api::decode::json(body, schema.typed(ty), Mode::Object).map_err(refused)?.value;
    match tree::text(&options, &["kind"]) {
        "" | "DeleteOptions" => Ok(options),
        _ => Err(Status::bad_request("decoded object cannot be converted to DeleteOptions")),
    }
}

/// A body says everything: beside one the query counts for nothing. Source: `handlers/delete.go`.
fn delete_options(query: &Query, body: &[u8]) -> Result<DeleteOptions, Status> {
    let none = Query::default();
    let (query, body) =
        if body.is_empty() { (query, Value::Null) } else { (&none, decode_delete_options(body)?) };
    let text = |path: &[&str]| tree::at(&body, path).as_str().map(str::to_owned);
    let propagation =
        query.get("propagationPolicy").map(str::to_owned).or_else(|| text(&["propagationPolicy"]));
    let orphan = tree::at(&body, &["orphanDependents"])
        .as_bool()
        .or_else(|| query.get("orphanDependents").map(|_| query.flag("orphanDependents")));
    let mut errors = FieldErrors::new();
    if let (Some(policy), Some(_)) = (&propagation, orphan) {
        let detail = "orphanDependents and deletionPropagation cannot be both set";
        errors.push(FieldError::invalid(PROPAGATION, &json!(policy), detail));
    }
    let propagation = match (propagation.as_deref(), orphan) {
        (Some("Orphan"), _) | (None, Some(true)) => Some(Propagation::Orphan),
        (Some("Background"), _) | (None, Some(false)) => Some(Propagation::Background),
        (Some("Foreground"), _) => Some(Propagation::Foreground),
        (None, None) => None,
        (Some(other), _) => {
            let known = ["Foreground", "Background", "Orphan", "nil"];
            errors.push(FieldError::not_supported(PROPAGATION, &json!(other), &known));
            None
        }
    };
    let grace = match query.number("gracePeriodSeconds")? {
        Some(grace) => Some(grace),
        None => tree::at(&body, &["gracePeriodSeconds"]).as_i64(),
    };
    let ignore_read_error = tree::at(&body, &[IGNORE]).as_bool().unwrap_or_else(|| query.flag(IGNORE));
    if ignore_read_error {
        let beside = [
            ("propagationPolicy", propagation.is_some() && orphan.is_none()),
            ("orphanDependents", orphan.is_some()),
            ("gracePeriodSeconds", grace.is_some()),
            ("preconditions", !tree::at(&body, &["preconditions"]).is_null()),
        ];
        errors.extend(beside.into_iter().filter(|(_, given)| *given).map(|(other, _)| {
            FieldError::invalid(IGNORE, &json!(true), &format!("cannot be set together with .{other}"))
        }));
    }
    // A negative grace is the shortest. Source: `rest.BeforeDelete`.
    let grace = grace.map(|seconds: i64| if seconds < 0 { 1 } else { seconds });
    let said = tree::items(&body, &["dryRun"]).iter().filter_map(Value::as_str);
    let dry_run = dry_run(query.all("dryRun").chain(said).collect(), &mut errors);
    refuse("DeleteOptions", &errors)?;
    Ok(DeleteOptions {
        dry_run,
        grace_period_seconds: grace,
        propagation,
        precondition_uid: text(&["preconditions", "uid"]),
        precondition_resource_version: text(&["preconditions", "resourceVersion"]),
        ignore_read_error,
        pending_is_accepted: orphan == Some(false),
    })
}

fn patch_type(content_type: &str) -> Result<PatchType, Status> {
    match media_type(content_type) {
        "application/json-patch+json" => Ok(PatchType::Json),
        "application/merge-patch+json" => Ok(PatchType::Merge),
        "application/strategic-merge-patch+json" => Ok(PatchType::StrategicMerge),
        "application/apply-patch+yaml" => Ok(PatchType::Apply),
        _ => Err(unsupported(&PATCHES)),
    }
}

/// Strategic merges need what only built-in kinds say of themselves.
pub(super) fn check_patch(call: &Call) -> Result<(), Status> {
    match call {
        Call::Patch { kind: PatchType::StrategicMerge, .. } => {
            Err(unsupported(&[PATCHES[0], PATCHES[1], PATCHES[3]]))
        }
        _ => Ok(()),
    }
}

/// Whether a request is a watch.
pub(super) fn is_watch(method: &Method, path: &ResourcePath, query: &Query) -> bool {
    *method == Method::GET && path.subresource.is_empty() && (path.watch || query.flag("watch"))
}

/// The call that a request makes; `body` is JSON already, and absent as long as it is not read.
pub(super) fn call(
    method: &Method,
    path: &ResourcePath,
    query: &Query,
    content_type: &str,
    user_agent: &str,
    body: Option<Bytes>,
) -> Result<Call, Status> {
    let one = !path.name.is_empty();
    // Whether the query of a deletion counts is known once there is a body.
    let deletion = match &body {
        Some(body) if *method == Method::DELETE => delete_options(query, body)?,
        _ => DeleteOptions::default(),
    };
    let body = body.unwrap_or_default();
    match *method {
        Method::GET | Method::HEAD if is_watch(method, path, query) => Ok(Call::Watch(watch_options(query)?)),
        Method::GET | Method::HEAD if one => {
            Ok(Call::Get { resource_version: query.text("resourceVersion") })
        }
        Method::GET | Method::HEAD => Ok(Call::List(list_options(query)?)),
        Method::POST if !one || !path.subresource.is_empty() => {
            Ok(Call::Create { body, options: write_options(query, user_agent, Write::Create)? })
        }
        Method::PUT if one => {
            Ok(Call::Update { body, options: write_options(query, user_agent, Write::Update)? })
        }
        Method::PATCH if one => {
            let kind = patch_type(content_type)?;
            let what = if kind == PatchType::Apply { Write::Apply } else { Write::Patch };
            let options = write_options(query, user_agent, what)?;
            Ok(Call::Patch { kind, body, options })
        }
        Method::DELETE if one => Ok(Call::Delete(deletion)),
        Method::DELETE => {
            if deletion.ignore_read_error {
                let why = "is not allowed with DELETECOLLECTION, try again after removing the option";
                refuse("DeleteOptions", &[FieldError::invalid(IGNORE, &json!(true), why)])?;
            }
            Ok(Call::DeleteCollection(deletion, list_options(query)?))
        }
        _ => Err(Status::new(
            Reason::MethodNotAllowed,
            "the server does not allow this method on the requested resource",
        )),
    }
}
