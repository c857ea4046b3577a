//! Tells the generic controllers (garbage collection, namespaces) which resources there are: definitions come and go while
//! the server runs.

use std::sync::Arc;

use api::GroupVersionResource;
use apiserver::{Extension, ExtensionResource, Pipeline, Start};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use reconcile::kinds::{Catalog, Extensions, Served};

/// What extension API servers serve, as the controllers look at it: each resource in the version that is preferred, if its
/// objects can be found and deleted. Pure.
pub(crate) fn extensions(all: &[Extension]) -> Extensions {
    let mut told = Extensions::default();
    for extension in all {
        if !extension.available {
            told.silent.push(format!("{}/{}", extension.group, extension.version));
            continue;
        }
        let can = |one: &&ExtensionResource, verb: &str| one.verbs.iter().any(|held| held == verb);
        for one in extension.resources.iter().filter(|one| can(one, "list") && can(one, "delete")) {
            let known = |held: &Served| {
                held.resource.group == extension.group && held.resource.resource == one.resource
            };
            if !told.served.iter().any(known) {
                told.served.push(Served {
                    resource: GroupVersionResource::new(&extension.group, &extension.version, &one.resource),
                    kind: one.kind.clone(),
                    namespaced: one.namespaced,
                });
            }
        }
    }
    told
}

/// Keeps the controllers' list of resources.
pub(crate) struct ServedKinds {
    pipeline: Arc<Pipeline>,
    start: Start,
    catalog: Catalog,
}

impl ServedKinds {
    /// The rows of `pipeline`, told through `catalog`, which is complete once it is known what others serve.
    pub(crate) fn new(pipeline: &Arc<Pipeline>, start: Start, catalog: &Catalog) -> Self {
        Self { pipeline: pipeline.clone(), start, catalog: catalog.clone() }
    }
}

#[async_trait]
impl Component for ServedKinds {
    fn name(&self) -> &'static str {
        "served-kinds"
    }

    fn after(&self) -> &'static [&'static str] {
        &["apiserver"]
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let mut changes = self.pipeline.catalog().changes();
        ctx.ready();
        let mut others_known = std::pin::pin!(self.start.others_known());
        let mut complete = false;
        loop {
            changes.mark_unchanged();
            self.catalog.set(self.pipeline.catalog().rows());
            tokio::select! {
                changed = changes.changed() => changed?,
                () = &mut others_known, if !complete => {
                    self.catalog.complete();
                    complete = true;
                }
                () = ctx.cancelled() => return Ok(()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_deleted_is_met_once_and_who_is_silent_is_named() {
        let resource = |name: &str, verbs: &[&str]| ExtensionResource {
            resource: name.to_owned(),
            kind: name.to_uppercase(),
            namespaced: true,
            verbs: verbs.iter().map(|verb| (*verb).to_owned()).collect(),
        };
        let extension = |version: &str, available, resources| Extension {
            group: "example.com".to_owned(),
            version: version.to_owned(),
            available,
            resources,
        };
        let all = [
            extension("v2", true, vec![resource("a", &["list", "delete"]), resource("seen", &["list"])]),
            extension(
                "v1",
                true,
                vec![resource("a", &["list", "delete"]), resource("b", &["delete", "list"])],
            ),
            extension("v3", false, vec![resource("c", &["list", "delete"])]),
        ];
        let told = extensions(&all);
        let served: Vec<String> = told.served.iter().map(|held| held.resource.to_string()).collect();
        assert_eq!(served, ["example.com/v2/a", "example.com/v1/b"]);
        assert_eq!(told.silent, ["example.com/v3"]);
    }
}
