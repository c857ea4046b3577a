//! The catalog: a row per served resource. Built-in kinds and CustomResourceDefinitions are rows alike; routes,
//! discovery, OpenAPI, tables and clients' aliases derive from them.

mod parse;

use std::sync::Arc;

use foldhash::HashMap;

use crate::custom::Custom;
use crate::request::GroupVersionResource;
use crate::schema::{Name, Schema, Struct, TypeId, Typed};
use crate::table::{Column, columns_of};

/// All verbs of an ordinary resource, as discovery lists them.
pub const ALL_VERBS: [&str; 8] =
    ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// Resources whose objects are the answer to their deletion.
const RETURNED: [(&str, &[&str]); 3] = [
    (
        "",
        &[
            "persistentvolumeclaims",
            "persistentvolumes",
            "pods",
            "podtemplates",
            "resourcequotas",
            "serviceaccounts",
            "services",
        ],
    ),
    (
        "resource.k8s.io",
        &["deviceclasses", "devicetaintrules", "resourceclaims", "resourceclaimtemplates", "resourceslices"],
    ),
    (
        "storage.k8s.io",
        &["csidrivers", "csinodes", "storageclasses", "volumeattachments", "volumeattributesclasses"],
    ),
];

/// A served resource in one version.
#[derive(Debug, Clone)]
pub struct Row {
    /// Group; empty for core.
    pub group: Name,
    /// Version.
    pub version: Name,
    /// Kind.
    pub kind: Name,
    /// Kind of its list.
    pub list_kind: Name,
    /// Plural name, as in paths.
    pub plural: Name,
    /// Singular name.
    pub singular: Name,
    /// Short names.
    pub short_names: Vec<Name>,
    /// Categories (`all`).
    pub categories: Vec<Name>,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// Verbs, as discovery lists them.
    pub verbs: Vec<Name>,
    /// Subresources.
    pub subresources: Vec<Subresource>,
    /// Group of the version that is stored: the row's own, but for retired groups.
    pub storage_group: Name,
    /// Version that is stored.
    pub storage_version: Name,
    /// What clients of a deprecated version of a built-in kind are warned with.
    pub deprecation: Option<Name>,
    /// What field selectors may name besides `metadata.name` and `metadata.namespace`.
    pub selectable_fields: Vec<Name>,
    /// Where its type lives.
    pub schema: Arc<Schema>,
    /// Its type.
    pub ty: TypeId,
    /// What a CustomResourceDefinition says of it besides; `None`: the kind is built in.
    pub custom: Option<Arc<Custom>>,
}

/// A subresource of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subresource {
    /// `status`, `scale`, `log`, ….
    pub name: Name,
    /// Group of the kind that it takes and gives.
    pub group: Name,
    /// Version of that kind.
    pub version: Name,
    /// That kind.
    pub kind: Name,
    /// Verbs.
    pub verbs: Vec<Name>,
}

impl Row {
    /// Its key in the catalog.
    pub fn resource(&self) -> GroupVersionResource {
        GroupVersionResource::new(&self.group, &self.version, &self.plural)
    }

    /// `apps/v1`, or `v1` in the core group.
    pub fn api_version(&self) -> String {
        group_version(&self.group, &self.version)
    }

    /// The `apiVersion` of stored objects.
    pub fn storage_api_version(&self) -> String {
        group_version(&self.storage_group, &self.storage_version)
    }

    /// The resource whose objects are stored: the row's own, but for retired groups.
    pub fn storage_resource(&self) -> GroupVersionResource {
        GroupVersionResource::new(&self.storage_group, &self.storage_version, &self.plural)
    }

    /// Whether objects are written as they are stored.
    pub fn is_storage_version(&self) -> bool {
        self.group == self.storage_group && self.version == self.storage_version
    }

    /// Its type.
    pub fn typed(&self) -> Typed<'_> {
        self.schema.typed(self.ty)
    }

    /// The columns of its table.
    pub fn columns(&self) -> &[Column] {
        columns_of(&self.storage_group, &self.kind)
    }

    /// What clients of a deprecated version are warned with.
    pub fn deprecation(&self) -> Option<&str> {
        match &self.custom {
            Some(custom) => custom.deprecation.as_deref(),
            None => self.deprecation.as_deref(),
        }
    }

    /// The release of Kubernetes that has a deprecated version no more (`1.16`); empty where none is said.
    pub fn removed_release(&self) -> &str {
        let said = self.deprecation.as_deref().and_then(|text| text.split_once("unavailable in v"));
        said.and_then(|(_, rest)| rest.split_once('+')).map_or("", |(release, _)| release)
    }

    /// Whether its objects are kept: nobody stores questions and commands (reviews, bindings), nor what is computed when
    /// it is asked for (component statuses). Nothing of that can be watched.
    pub fn is_stored(&self) -> bool {
        self.serves("watch") || self.custom.is_some()
    }

    /// Whether the answer to a deletion is the object that was deleted, and not only that it was. Source: the registries
    /// with `ReturnDeletedObject` of `kubernetes/pkg/registry`.
    pub fn returns_deleted(&self) -> bool {
        let of_group = RETURNED.iter().find(|(group, _)| self.storage_group == *group);
        self.custom.is_none() && of_group.is_some_and(|(_, plurals)| plurals.contains(&self.plural.as_ref()))
    }

    /// Its definition.
    pub fn definition(&self) -> Option<&Struct> {
        self.schema.structure(self.ty)
    }

    /// The subresource with a name.
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|subresource| subresource.name == name)
    }

    /// Whether a verb is served on the resource itself.
    pub fn serves(&self, verb: &str) -> bool {
        self.verbs.iter().any(|served| served == verb)
    }
}

impl Subresource {
    /// `autoscaling/v1`, or `v1` in the core group.
    pub fn api_version(&self) -> String {
        group_version(&self.group, &self.version)
    }
}

/// `apps/v1`, or `v1` in the core group.
pub fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// A served group with its versions, best first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Name; empty for core.
    pub name: Name,
    /// Versions, best first.
    pub versions: Vec<Name>,
}

/// The rows, found by resource and by kind. A value: a server holds the present one behind a pointer and replaces it.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    rows: Vec<Arc<Row>>,
    by_resource: HashMap<GroupVersionResource, Arc<Row>>,
    by_plural: HashMap<String, Vec<Arc<Row>>>,
}

impl Catalog {
    /// The built-in kinds.
    pub fn builtin() -> Self {
        #[allow(
            clippy::expect_used,
            reason = "a part of the program, read by its tests: no input reaches it"
        )]
        let rows = parse::kinds(include_str!("../../schema/kinds.txt"), Schema::builtin())
            .expect("the embedded list of kinds is well-formed");
        let mut catalog = Self::default();
        rows.into_iter().for_each(|row| catalog.insert(row));
        catalog
    }

    /// Adds or replaces a row. One without verbs is not served: it is found as the version in which others are stored.
    pub fn insert(&mut self, row: Row) {
        let row = Arc::new(row);
        self.remove(&row.resource());
        self.by_resource.insert(row.resource(), row.clone());
        self.by_plural.entry(row.plural.to_string()).or_default().push(row.clone());
        if !row.verbs.is_empty() {
            self.rows.push(row);
        }
    }

    /// Removes a row.
    pub fn remove(&mut self, resource: &GroupVersionResource) {
        if self.by_resource.remove(resource).is_some() {
            self.rows.retain(|row| row.resource() != *resource);
            let of_name = self.by_plural.get_mut(&resource.resource);
            let left = of_name.map_or(0, |rows| {
                rows.retain(|row| row.resource() != *resource);
                rows.len()
            });
            if left == 0 {
                self.by_plural.remove(&resource.resource);
            }
        }
    }

    /// The row of a resource.
    pub fn get(&self, resource: &GroupVersionResource) -> Option<&Arc<Row>> {
        self.by_resource.get(resource)
    }

    /// The row of a kind.
    pub fn by_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<Row>> {
        self.rows.iter().find(|row| row.group == group && row.version == version && row.kind == kind)
    }

    /// The row of a kind by an object's `apiVersion`.
    pub fn by_api_version(&self, api_version: &str, kind: &str) -> Option<&Arc<Row>> {
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        self.by_kind(group, version, kind)
    }

    /// The row in which the objects of a resource are stored.
    pub fn storage_of(&self, group: &str, plural: &str) -> Option<&Arc<Row>> {
        self.by_plural.get(plural)?.iter().find(|row| row.group == group && row.is_storage_version())
    }

    /// All rows that are served, in the order of their declaration.
    pub fn rows(&self) -> impl Iterator<Item = &Arc<Row>> {
        self.rows.iter()
    }

    /// The groups in the order of their declaration, core first.
    pub fn groups(&self) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for row in &self.rows {
            match groups.iter_mut().find(|group| group.name == row.group) {
                Some(group) if group.versions.contains(&row.version) => {}
                Some(group) => group.versions.push(row.version.clone()),
                None => groups.push(Group { name: row.group.clone(), versions: vec![row.version.clone()] }),
            }
        }
        for group in &mut groups {
            group.versions.sort_by(|one, other| version_order(other).cmp(&version_order(one)));
        }
        groups
    }
}

/// Upstream's order of versions: stable before beta before alpha, then by number; others last, by name.
/// Source: `k8s.io/apimachinery/pkg/version`.
pub fn version_order(version: &str) -> (u8, u32, u32, std::cmp::Reverse<&str>) {
    let parsed = (|| {
        let rest = version.strip_prefix('v')?;
        let digits = rest.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(rest.len());
        let major: u32 = rest[..digits].parse().ok()?;
        let stage = &rest[digits..];
        if stage.is_empty() {
            return Some((3, major, 0));
        }
        let (rank, minor) = match stage.strip_prefix("beta") {
            Some(minor) => (2, minor),
            None => (1, stage.strip_prefix("alpha")?),
        };
        Some((rank, major, if minor.is_empty() { 0 } else { minor.parse().ok()? }))
    })();
    let (rank, major, minor) = parsed.unwrap_or((0, 0, 0));
    (rank, major, minor, std::cmp::Reverse(version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_its_facts() {
        let catalog = Catalog::builtin();
        let row = catalog.get(&GroupVersionResource::new("apps", "v1", "deployments")).expect("a row");
        assert_eq!(
            (row.kind.as_ref(), row.singular.as_ref(), row.list_kind.as_ref()),
            ("Deployment", "deployment", "DeploymentList")
        );
        assert!(row.namespaced && row.serves("deletecollection") && row.is_storage_version());
        assert_eq!(row.short_names, ["deploy"]);
        let scale = row.subresource("scale").expect("a subresource");
        assert_eq!((scale.api_version().as_str(), scale.kind.as_ref()), ("autoscaling/v1", "Scale"));
        assert_eq!(row.definition().expect("a definition").name, "io.k8s.api.apps.v1.Deployment");
        assert_eq!(row.columns().len(), 8);
    }

    #[test]
    fn a_retired_version_is_stored_as_its_successor() {
        let catalog = Catalog::builtin();
        let row = catalog.by_api_version("extensions/v1beta1", "Deployment").expect("a row");
        assert_eq!(row.storage_api_version(), "apps/v1");
        assert_eq!(
            row.deprecation.as_deref(),
            Some(
                "extensions/v1beta1 Deployment is deprecated in v1.8+, unavailable in v1.16+; use apps/v1 Deployment"
            )
        );
        assert_eq!(row.removed_release(), "1.16");
        let said = |api_version: &str, kind: &str| {
            catalog.by_api_version(api_version, kind).and_then(|row| row.deprecation.as_deref())
        };
        assert_eq!(
            said("v1", "Endpoints"),
            Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice")
        );
        assert_eq!(
            said("resource.k8s.io/v1beta1", "DeviceClass"),
            Some("resource.k8s.io/v1beta1 DeviceClass is deprecated in v1.35+, unavailable in v1.38+")
        );
        assert_eq!(said("autoscaling/v1", "HorizontalPodAutoscaler"), None);
        assert_eq!(row.columns().len(), 8);
        assert!(catalog.get(&row.storage_resource()).is_some());
    }

    #[test]
    fn versions_stand_in_upstreams_order() {
        let mut versions = ["v1alpha1", "v2", "foo", "v1beta2", "v1", "v1beta10", "v10"];
        versions.sort_by(|one, other| version_order(other).cmp(&version_order(one)));
        assert_eq!(versions, ["v10", "v2", "v1", "v1beta10", "v1beta2", "v1alpha1", "foo"]);
        let groups = Catalog::builtin().groups();
        let networking = groups.iter().find(|group| group.name == "networking.k8s.io").expect("a group");
        assert_eq!(networking.versions, ["v1", "v1beta1"]);
        let scaling = groups.iter().find(|group| group.name == "autoscaling").expect("a group");
        assert_eq!(scaling.versions, ["v2", "v1", "v2beta2", "v2beta1"]);
    }

    #[test]
    fn retired_groups_have_no_aliases_and_come_last() {
        let catalog = Catalog::builtin();
        let retired: Vec<&Arc<Row>> = catalog.rows().filter(|row| row.deprecation.is_some()).collect();
        assert!(!retired.is_empty());
        for row in retired.iter().filter(|row| row.group != row.storage_group) {
            assert!(row.short_names.is_empty() && row.categories.is_empty(), "{}", row.api_version());
        }
        let groups = catalog.groups();
        let place = |name: &str| groups.iter().position(|group| group.name == name);
        assert!(place("extensions") > place("apps") && place("extensions") > place("networking.k8s.io"));
        assert_eq!(place("extensions"), Some(groups.len() - 1));
    }

    #[test]
    fn a_row_is_replaced_and_removed() {
        let mut catalog = Catalog::builtin();
        let before = catalog.rows().count();
        let pods = GroupVersionResource::new("", "v1", "pods");
        let row = Row::clone(catalog.get(&pods).expect("a row"));
        catalog.insert(row);
        assert_eq!(catalog.rows().count(), before);
        catalog.remove(&pods);
        assert!(catalog.get(&pods).is_none() && catalog.by_kind("", "v1", "Pod").is_none());
        assert!(catalog.storage_of("", "pods").is_none() && catalog.storage_of("", "services").is_some());
    }
}
