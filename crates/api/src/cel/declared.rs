//! The types of objects as their schemas declare them, and those of `request` and `namespaceObject`.
//! Source: `k8s.io/apiserver/pkg/cel/common/schemas.go`, `admission/plugin/cel/compile.go`.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use super::check::Environment;
use super::cost;
use super::sizes::Decl;
use super::types::{Fields, Type};
use super::value::unescape;
use crate::catalog::Row;
use crate::custom::Props;
use crate::schema::{Scalar, Schema, Type as SchemaType, TypeId};

/// The type of a kind's objects.
pub fn of_kind(row: &Row) -> Type {
    let Some(custom) = &row.custom else { return of_builtin(row.ty, &row.kind) };
    let Some(Type::Object(schema)) = of_props(&custom.schema, &row.kind) else { return Type::Dyn };
    let metadata = Schema::builtin().named("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta");
    let metadata = metadata.map_or(Type::Dyn, |ty| of_builtin(ty, &format!("{}.metadata", row.kind)));
    let added = [("apiVersion", Type::Text), ("kind", Type::Text), ("metadata", metadata)];
    Type::Object(Arc::new(Over {
        under: schema,
        added: added.map(|(name, ty)| (name.to_owned(), ty)).into(),
    }))
}

/// The type that a rule of a custom resource's schema sees, if rules see what it declares; of the whole object they see
/// name and generated name besides.
pub fn of_rule(schema: &Props, whole: bool) -> Option<Type> {
    Some(match of_props(schema, "self")? {
        Type::Object(under) if whole || schema.embedded => {
            let metadata = fields("self.metadata", &[("name", Type::Text), ("generateName", Type::Text)]);
            let added = [("apiVersion", Type::Text), ("kind", Type::Text), ("metadata", metadata)];
            Type::Object(Arc::new(Over {
                under,
                added: added.map(|(name, ty)| (name.to_owned(), ty)).into(),
            }))
        }
        ty => ty,
    })
}

/// Fields by name.
#[derive(Debug)]
struct Named {
    name: String,
    fields: BTreeMap<String, Type>,
}

impl Fields for Named {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn field(&self, name: &str) -> Option<Type> {
        self.fields.get(&*unescape(name)).or_else(|| self.fields.get(name)).cloned()
    }
}

/// Fields over those of another type.
#[derive(Debug)]
struct Over {
    under: Arc<dyn Fields>,
    added: BTreeMap<String, Type>,
}

impl Fields for Over {
    fn name(&self) -> String {
        self.under.name()
    }

    fn field(&self, name: &str) -> Option<Type> {
        self.added.get(name).cloned().or_else(|| self.under.field(name))
    }
}

/// A struct of the built-in schema, whose types may contain themselves: fields are read as they are asked for.
#[derive(Debug)]
struct Builtin {
    name: String,
    ty: TypeId,
}

impl Fields for Builtin {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn field(&self, name: &str) -> Option<Type> {
        let plain = unescape(name);
        let field = Schema::builtin().structure(self.ty)?.field(&plain)?;
        if field.union().is_some() {
            return Some(Type::Dyn);
        }
        Some(of_builtin(field.ty, &format!("{}.{name}", self.name)))
    }
}

fn of_builtin(ty: TypeId, name: &str) -> Type {
    match Schema::builtin().get(ty) {
        SchemaType::Scalar(scalar) => match scalar {
            Scalar::String | Scalar::Quantity => Type::Text,
            Scalar::Int32 | Scalar::Int64 => Type::Int,
            Scalar::Double => Type::Double,
            Scalar::Bool => Type::Bool,
            Scalar::Bytes => Type::Bytes,
            Scalar::Time | Scalar::MicroTime => Type::Time,
            Scalar::IntOrString | Scalar::Any => Type::Dyn,
        },
        SchemaType::List { item, .. } => Type::list(of_builtin(*item, &format!("{name}.@idx"))),
        SchemaType::Map { value, .. } => Type::map(of_builtin(*value, &format!("{name}.@elem"))),
        SchemaType::Struct(_) => Type::Object(Arc::new(Builtin { name: name.to_owned(), ty })),
    }
}

/// What a schema declares; `None`: nothing that expressions see. Fields that an object may have beyond those that are
/// declared are not seen either.
fn of_props(schema: &Props, name: &str) -> Option<Type> {
    if schema.int_or_string {
        return Some(Type::Dyn);
    }
    Some(match (schema.ty.as_str(), schema.format.as_str()) {
        ("boolean", _) => Type::Bool,
        ("integer", _) => Type::Int,
        ("number", _) => Type::Double,
        ("string", "byte") => Type::Bytes,
        ("string", "duration") => Type::Duration,
        ("string", "date" | "date-time") => Type::Time,
        ("string", _) => Type::Text,
        ("array", _) => Type::list(of_props(schema.item()?, &format!("{name}.@idx"))?),
        ("object", _) => {
            if let Some(value) = schema.additional() {
                return Some(Type::map(of_props(value, &format!("{name}.@elem"))?));
            }
            let known = schema.properties.iter();
            let known = known.filter_map(|(field, below)| {
                Some((field.clone(), of_props(below, &format!("{name}.{field}"))?))
            });
            Type::Object(Arc::new(Named { name: name.to_owned(), fields: known.collect() }))
        }
        _ => return None,
    })
}

fn fields(name: &str, known: &[(&str, Type)]) -> Type {
    let fields = known.iter().map(|(field, ty)| ((*field).to_owned(), ty.clone())).collect();
    Type::Object(Arc::new(Named { name: name.to_owned(), fields }))
}

fn texts(names: &[&'static str]) -> Vec<(&'static str, Type)> {
    names.iter().map(|name| (*name, Type::Text)).collect()
}

/// The type of `authentication.k8s.io/v1` `UserInfo`.
pub fn user_info() -> Type {
    let mut user = texts(&["username", "uid"]);
    user.push(("groups", Type::list(Type::Text)));
    user.push(("extra", Type::map(Type::list(Type::Text))));
    fields("kubernetes.UserInfo", &user)
}

/// The type of `request`.
pub fn request() -> Type {
    let kind = fields("kubernetes.GroupVersionKind", &texts(&["group", "version", "kind"]));
    let resource = fields("kubernetes.GroupVersionResource", &texts(&["group", "version", "resource"]));
    let mut request = texts(&["subResource", "requestSubResource", "name", "namespace", "operation"]);
    request.extend([
        ("kind", kind.clone()),
        ("resource", resource.clone()),
        ("requestKind", kind),
        ("requestResource", resource),
        ("userInfo", user_info()),
        ("dryRun", Type::Bool),
        ("options", Type::Dyn),
    ]);
    fields("kubernetes.AdmissionRequest", &request)
}

/// The type of `namespaceObject`.
pub fn namespace() -> Type {
    let mut condition = texts(&["status", "type", "message", "reason"]);
    condition.push(("lastTransitionTime", Type::Time));
    let condition = fields("kubernetes.NamespaceCondition", &condition);
    let mut metadata = texts(&["name", "generateName", "namespace", "UID", "resourceVersion"]);
    metadata.extend([
        ("labels", Type::map(Type::Text)),
        ("annotations", Type::map(Type::Text)),
        ("creationTimestamp", Type::Time),
        ("deletionTimestamp", Type::Time),
        ("deletionGracePeriodSeconds", Type::Int),
        ("generation", Type::Int),
        ("finalizers", Type::list(Type::Text)),
    ]);
    let spec = fields("kubernetes.NamespaceSpec", &[("finalizers", Type::list(Type::Text))]);
    let status = [("conditions", Type::list(condition)), ("phase", Type::Text)];
    let parts = [
        ("metadata", fields("kubernetes.NamespaceMetadata", &metadata)),
        ("spec", spec),
        ("status", fields("kubernetes.NamespaceStatus", &status)),
    ];
    fields("kubernetes.Namespace", &parts)
}

/// What the selectors of devices know: `device`. Its attributes may be of any type.
/// Source: `k8s.io/dynamic-resource-allocation/cel/compile.go`.
fn device() -> Environment {
    let quantities = Type::map(Type::named("kubernetes.Quantity"));
    let device = fields(
        "kubernetes.DRADevice",
        &[
            ("driver", Type::Text),
            ("attributes", Type::map(Type::map(Type::Dyn))),
            ("capacity", Type::map(quantities)),
            ("allowMultipleAllocations", Type::Bool),
        ],
    );
    Environment::default().with("device", device).binding()
}

/// The type of an expression that selects devices, and what it costs at most.
pub fn device_selector(source: &str) -> Result<(Type, u64), String> {
    static DEVICE: LazyLock<Environment> = LazyLock::new(device);
    let checked = DEVICE.checked(source)?;
    let cost = cost::max_cost(&checked, Decl::device());
    Ok((checked.ty, cost))
}

/// What the expressions of admission know: `params` where a policy has parameters, `authorizer` where rights may be asked.
/// Objects may be of any kind.
pub fn admission(params: bool, authorizer: bool) -> Environment {
    let mut environment = Environment::default()
        .with("object", Type::Dyn)
        .with("oldObject", Type::Dyn)
        .with("request", request())
        .with("namespaceObject", namespace());
    if params {
        environment = environment.with("params", Type::Dyn);
    }
    if authorizer {
        environment = environment.with("authorizer", Type::named("kubernetes.authorization.Authorizer"));
    }
    environment
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first five are upstream's numbers. Source: `dynamic-resource-allocation/cel/compile_test.go`.
    #[test]
    fn what_selectors_of_devices_cost() {
        for (source, wanted) in [
            ("device.driver == \"dra.example.com\"", 4),
            ("cel.bind(dra, device.attributes[\"dra.example.com\"], dra.name)", 15),
            ("device.attributes.exists_one(x, x == \"dra.example.com\")", 164),
            ("device.capacity[\"dra.example.com\"].exists_one(x, x == \"memory\")", 133),
            ("device.allowMultipleAllocations == true", 3),
            // What is no part of the device is as large as the list says that it is in.
            ("[device.driver].exists(x, x == \"a\")", 19),
        ] {
            assert_eq!(device_selector(source).map(|(_, cost)| cost), Ok(wanted), "{source}");
        }
        // Nothing tells how large a type is.
        let cost = device_selector("type(device.driver) == string || true").map(|(_, cost)| cost);
        assert!(cost.is_ok_and(|cost| cost > 1 << 60));
    }
}
