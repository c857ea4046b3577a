//! Tells the generic controllers (garbage collection, namespaces) which resources there are: definitions come and go while
//! the server runs.

use std::sync::Arc;

use apiserver::Pipeline;
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use reconcile::kinds::Catalog;

/// Keeps the controllers' list of resources.
pub(crate) struct ServedKinds {
    pipeline: Arc<Pipeline>,
    catalog: Catalog,
}

impl ServedKinds {
    /// The rows of `pipeline`, told through `catalog`.
    pub(crate) fn new(pipeline: &Arc<Pipeline>, catalog: &Catalog) -> Self {
        Self { pipeline: pipeline.clone(), catalog: catalog.clone() }
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
        loop {
            changes.mark_unchanged();
            self.catalog.set(self.pipeline.catalog().rows());
            tokio::select! {
                changed = changes.changed() => changed?,
                () = ctx.cancelled() => return Ok(()),
            }
        }
    }
}
