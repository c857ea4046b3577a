//! What earlier runs of the node have left of volumes of drivers: which are in use, said before anything is begun, and
//! those that are staged for nobody, taken away when their driver registers. What pods have is not touched: each is ended
//! by its worker, or by whoever clears up after a pod that is gone.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use base::BoxError;
use base::backoff::Policy;
use jiff::Timestamp;

use super::in_use;
use crate::deps::{Deps, blocking};
use crate::volumes::csi::{self, Noted};
use crate::volumes::staged;

const AGAIN: Policy = Policy { first: Duration::from_secs(1), max: Duration::from_secs(120) };

/// Says again that volumes are in use which earlier runs have left so. Before that nothing may be mounted or detached.
///
/// # Errors
/// If nothing that is noted can be read: then nothing is known of what is in use.
pub(crate) async fn begin(deps: &Arc<Deps>) -> Result<(), BoxError> {
    let root = deps.config.data_dir.clone();
    let found = blocking(move || -> io::Result<(Vec<Noted>, bool)> {
        let (mut noted, of_pods) = staged::noted(&root)?;
        let (staged, of_drivers) = staged::staged(&root);
        noted.extend(staged);
        Ok((noted, of_pods && of_drivers))
    });
    let (noted, whole) = found.await??;
    deps.plugins.in_use.begin(noted.into_iter().filter_map(|noted| noted.attached_as));
    if !whole {
        // Whatever else was in use may be still.
        deps.plugins.in_use.begin(in_use::said(deps));
    }
    Ok(())
}

/// Ends what is left of a driver that has registered; returns when nothing is.
pub(super) async fn after(deps: &Deps, driver: &str) {
    let mut failures = 0;
    while let Err(error) = end(deps, driver).await {
        tracing::warn!(driver, %error, "volumes that nobody has are not taken away, trying again");
        failures += 1;
        let again = deps.now().saturating_add(AGAIN.delay(failures)).unwrap_or(Timestamp::MAX);
        deps.clock.sleep_until(again).await;
    }
}

async fn end(deps: &Deps, driver: &str) -> Result<(), BoxError> {
    let root = deps.config.data_dir.clone();
    let (found, _) = blocking(move || staged::staged(&root)).await?;
    let mut failed = Ok(());
    for noted in found.into_iter().filter(|noted| noted.driver == driver) {
        let Some(driver) = deps.plugins.driver(driver) else { return Ok(()) };
        let _alone = deps.plugins.mounted.lock(&noted.driver, &noted.handle).await;
        // A pod that has it may have come meanwhile: it is looked for anew.
        let root = &deps.config.data_dir;
        let done = csi::unstage_unused(deps, &deps.threads, &driver, &noted, (root, "")).await;
        // One volume that cannot be taken away keeps no other.
        failed = failed.and(done.map_err(BoxError::from));
    }
    failed
}
