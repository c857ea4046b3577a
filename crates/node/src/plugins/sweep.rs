//! What earlier runs of the node have begun with volumes of drivers and nobody ends any more: a pod that went while the
//! node was away, a volume that was staged for it. It is looked for when a driver registers, since it has to be asked.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use base::BoxError;
use base::backoff::Policy;
use jiff::Timestamp;

use crate::deps::{Deps, blocking};
use crate::volumes::csi::{self, Noted};
use crate::volumes::{staged, tear_down};

const AGAIN: Policy = Policy { first: Duration::from_secs(1), max: Duration::from_secs(120) };

/// Everything of drivers that is noted on this node.
struct Left {
    pods: Vec<(String, Noted)>,
    staged: Vec<Noted>,
}

async fn look(deps: &Deps) -> Result<Left, BoxError> {
    let root = deps.config.data_dir.clone();
    let found = blocking(move || -> io::Result<Left> {
        Ok(Left { pods: staged::noted(&root)?, staged: staged::staged(&root)? })
    });
    Ok(found.await??)
}

/// Says again that volumes are in use which earlier runs have left so. Before that nothing may be mounted or detached.
///
/// # Errors
/// If what is noted cannot be read: then nothing is known of what is in use.
pub(crate) async fn begin(deps: &Arc<Deps>) -> Result<(), BoxError> {
    let Left { pods, staged } = look(deps).await?;
    let noted = pods.into_iter().map(|(_, noted)| noted).chain(staged);
    deps.plugins.in_use.begin(noted.filter_map(|noted| noted.attached_as));
    Ok(())
}

/// Ends what is left of a driver that has registered; returns when nothing is.
pub(super) async fn after(deps: &Deps, driver: &str) {
    let mut failures = 0;
    while let Err(error) = end(deps, driver).await {
        tracing::warn!(driver, %error, "volumes of pods that are gone are not taken away, trying again");
        failures += 1;
        let again = deps.now().saturating_add(AGAIN.delay(failures)).unwrap_or(Timestamp::MAX);
        deps.clock.sleep_until(again).await;
    }
}

async fn end(deps: &Deps, driver: &str) -> Result<(), BoxError> {
    let Left { pods, staged } = look(deps).await?;
    for (uid, noted) in pods {
        if noted.driver == driver && is_gone(deps, &uid) {
            let directories = deps.directories(&uid);
            csi::tear_down(deps, &deps.threads, &directories, &uid).await?;
            blocking(move || tear_down::tear_down(&directories)).await??;
        }
    }
    for noted in staged.into_iter().filter(|noted| noted.driver == driver) {
        let Some(driver) = deps.plugins.driver(driver) else { return Ok(()) };
        let _alone = deps.plugins.mounted.lock(&noted.driver, &noted.handle).await;
        // A pod that has it may have come meanwhile: it is looked for anew.
        let root = &deps.config.data_dir;
        csi::unstage_unused(deps, &deps.threads, &driver, &noted, (root, "")).await?;
    }
    Ok(())
}

/// Nobody on the node has anything to do with a pod any more.
fn is_gone(deps: &Deps, uid: &str) -> bool {
    deps.caches.pods.by_uid(uid).is_none()
        && !deps.static_pods.has(uid)
        && !deps.state.pods().iter().any(|sandbox| sandbox.pod_uid == uid)
}
