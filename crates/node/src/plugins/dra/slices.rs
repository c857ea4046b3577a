//! What drivers say of their devices to the scheduler, taken back when they are not there to prepare them: pods would come
//! and wait. Source: `DRAPluginManager.wipeResourceSlices`.

use std::sync::Arc;
use std::time::Duration;

use api::{Call, DeleteOptions, ListOptions, Reason, Request};
use base::backoff::Policy;
use jiff::Timestamp;
use reconcile::kinds;

use crate::deps::Deps;

/// A driver that is away for longer is not expected back. Source: `draplugin.DefaultWipingDelay`.
pub(super) const AWAY_MAX: Duration = Duration::from_secs(30);
const AGAIN: Policy = Policy { first: Duration::from_secs(1), max: Duration::from_secs(300) };

/// No driver has registered when a node begins, and some may not come back.
pub(crate) async fn wipe_at_start(deps: Arc<Deps>) {
    wipe(&deps, None).await;
}

/// Removes the slices of this node, of one driver or of all; returns when that is done, or the driver is there again.
pub(super) async fn wipe(deps: &Deps, driver: Option<&str>) {
    let mut failures = 0;
    while let Err(status) = remove(deps, driver).await {
        tracing::warn!(driver, error = %status, "ResourceSlices are not removed, trying again");
        failures += 1;
        let again = deps.now().saturating_add(AGAIN.delay(failures)).unwrap_or(Timestamp::MAX);
        deps.clock.sleep_until(again).await;
        if driver.is_some_and(|name| deps.plugins.claims.is_usable(name)) {
            return;
        }
    }
}

async fn remove(deps: &Deps, driver: Option<&str>) -> Result<(), api::Status> {
    let mut selector = format!("spec.nodeName={}", deps.config.node_name);
    if let Some(driver) = driver {
        selector = format!("{selector},spec.driver={driver}");
    }
    let options = ListOptions { field_selector: selector, ..ListOptions::default() };
    let request = Request {
        resource: kinds::RESOURCE_SLICES.gvr(),
        namespace: String::new(),
        name: String::new(),
        subresource: String::new(),
        call: Call::DeleteCollection(DeleteOptions::default(), options),
    };
    match deps.client.send(request).await {
        Err(status) if status.reason != Reason::NotFound => Err(status),
        _ => Ok(()),
    }
}
