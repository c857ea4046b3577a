//! ServiceCIDRs: says that they are Ready, and keeps one that is being deleted while addresses are taken from it that no
//! other covers. Source: `k8s.io/kubernetes/pkg/controller/servicecidrs`.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use api::{Key, Object, ObjectMeta, PatchType};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use ipnet::IpNet;
use jiff::Timestamp;
use reconcile::{Action, Informer, Queue, Reconcile, kinds, run_workers};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::claim::ignore_missing;
use crate::context::{Ctx, decode, ready};

const NAME: &str = "service-cidr-controller";
const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
/// API servers may still take addresses from a range for a moment after its deletion began. Source:
/// `deletionGracePeriod`.
const GRACE: Duration = Duration::from_secs(10);
const READY: &str = "Kubernetes Service CIDR is ready";
const IN_USE: &str = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new \
                      ServiceCIDR";

/// The controller.
pub struct ServiceCidrs {
    ctx: Ctx,
}

impl ServiceCidrs {
    /// A controller over these handles.
    pub fn new(ctx: &Ctx) -> Self {
        Self { ctx: ctx.named(NAME) }
    }
}

#[async_trait]
impl Component for ServiceCidrs {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let cidrs = self.ctx.informers.get(kinds::SERVICE_CIDRS);
        let addresses = self.ctx.informers.get(kinds::IP_ADDRESSES);
        let queue: Queue<Key> = self.ctx.queue("ipaddresses");
        let (from_cidrs, from_addresses) = (queue.clone(), queue.clone());
        let (all, waiting) = (cidrs.clone(), cidrs.clone());
        let _registrations = [
            // A range that comes may set another free that waits to go.
            cidrs.on_change(move |change| {
                from_cidrs.add(change.key.clone());
                terminating(&all).for_each(|key| from_cidrs.add(key));
            }),
            addresses.on_change(move |change| {
                if change.new.is_none() {
                    terminating(&waiting).for_each(|key| from_addresses.add(key));
                }
            }),
        ];
        if !ready(&ctx, &[&cidrs, &addresses]).await {
            return Ok(());
        }
        let worker = Arc::new(Worker { ctx: self.ctx.clone(), cidrs, addresses });
        run_workers(&ctx, NAME, &queue, 1, worker).await;
        Ok(())
    }
}

fn terminating(cidrs: &Informer) -> impl Iterator<Item = Key> {
    cidrs.list().into_iter().filter(|held| held.meta().is_terminating()).map(|held| held.key())
}

/// A projection of `networking/v1.ServiceCIDR`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct ServiceCidr {
    metadata: ObjectMeta,
    spec: Spec,
    status: Status,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Spec {
    cidrs: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Status {
    conditions: Vec<Value>,
}

impl ServiceCidr {
    fn covers(&self, address: IpAddr) -> bool {
        self.spec.cidrs.iter().filter_map(|cidr| cidr.parse::<IpNet>().ok()).any(|net| net.contains(&address))
    }

    fn says_ready(&self, status: &str) -> bool {
        self.status.conditions.iter().any(|held| held["type"] == "Ready" && held["status"] == status)
    }
}

/// What is to be done about one range.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    /// It is as it should be.
    Nothing,
    /// It lacks the finalizer or does not say that it is Ready.
    Welcome,
    /// It goes, but its addresses have nowhere else to be.
    Hold,
    /// It may go then.
    ReleaseAt(Timestamp),
}

/// Decides about `cidr`, with all ranges and all addresses that are taken.
fn plan(cidr: &ServiceCidr, all: &[ServiceCidr], taken: &[IpAddr]) -> Plan {
    let has_finalizer = cidr.metadata.finalizers.iter().any(|held| held == FINALIZER);
    let Some(deleted) = cidr.metadata.deletion_timestamp else {
        return if has_finalizer && cidr.says_ready("True") { Plan::Nothing } else { Plan::Welcome };
    };
    if !has_finalizer {
        return Plan::Nothing;
    }
    let stays = |other: &&ServiceCidr| !other.metadata.is_terminating() && !other.says_ready("False");
    let alone = |address: &&IpAddr| {
        cidr.covers(**address) && !all.iter().filter(stays).any(|other| other.covers(**address))
    };
    if taken.iter().any(|address| alone(&address)) {
        return if cidr.says_ready("False") { Plan::Nothing } else { Plan::Hold };
    }
    Plan::ReleaseAt(deleted.saturating_add(GRACE).unwrap_or(deleted))
}

struct Worker {
    ctx: Ctx,
    cidrs: Informer,
    addresses: Informer,
}

#[async_trait]
impl Reconcile<Key> for Worker {
    async fn reconcile(&self, key: &Key) -> Result<Action, BoxError> {
        let Some(object) = self.cidrs.get(key) else { return Ok(Action::Done) };
        let cidr: ServiceCidr = decode(&object)?;
        let all =
            self.cidrs.list().iter().map(|held| decode(held)).collect::<Result<Vec<ServiceCidr>, _>>()?;
        let taken: Vec<IpAddr> =
            self.addresses.list().iter().filter_map(|held| held.meta().name.parse().ok()).collect();
        match plan(&cidr, &all, &taken) {
            Plan::Nothing => {}
            Plan::Welcome => {
                self.set_finalizer(&object, true).await?;
                self.say(&object, "True", "Ready", READY).await?;
            }
            Plan::Hold => self.say(&object, "False", "Terminating", IN_USE).await?,
            Plan::ReleaseAt(due) => {
                let left = Duration::try_from(due.duration_since(self.ctx.clock.now())).unwrap_or_default();
                if !left.is_zero() {
                    return Ok(Action::After(left));
                }
                self.set_finalizer(&object, false).await?;
            }
        }
        Ok(Action::Done)
    }
}

impl Worker {
    async fn set_finalizer(&self, object: &Object, present: bool) -> Result<(), BoxError> {
        let mut finalizers = object.meta().finalizers.clone();
        finalizers.retain(|held| held != FINALIZER);
        if present {
            finalizers.push(FINALIZER.to_owned());
        }
        if finalizers == object.meta().finalizers {
            return Ok(());
        }
        // With the version that was read: another's finalizer is not lost.
        let patch = json!({ "metadata": {
            "uid": object.meta().uid, "resourceVersion": object.revision().to_string(), "finalizers": finalizers,
        } });
        let resource = kinds::SERVICE_CIDRS.gvr();
        ignore_missing(self.ctx.client.patch(&resource, &object.key(), "", PatchType::Merge, &patch).await)?;
        Ok(())
    }

    async fn say(&self, object: &Object, status: &str, reason: &str, message: &str) -> Result<(), BoxError> {
        let patch = json!({ "metadata": { "uid": object.meta().uid }, "status": { "conditions": [{
            "type": "Ready", "status": status, "reason": reason, "message": message,
            "lastTransitionTime": reconcile::time::seconds(self.ctx.clock.now()),
        }] } });
        let resource = kinds::SERVICE_CIDRS.gvr();
        let kind = PatchType::StrategicMerge;
        ignore_missing(self.ctx.client.patch(&resource, &object.key(), "status", kind, &patch).await)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(cidr: &str, ready: &str, deleted: bool) -> ServiceCidr {
        let mut object = json!({
            "metadata": { "name": cidr, "finalizers": [FINALIZER] }, "spec": { "cidrs": [cidr] },
            "status": { "conditions": [{ "type": "Ready", "status": ready }] },
        });
        if deleted {
            object["metadata"]["deletionTimestamp"] = "2024-01-01T00:00:00Z".into();
        }
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn a_range_in_use_stays_until_another_covers_it() {
        let taken: Vec<IpAddr> = vec!["10.96.0.5".parse().unwrap()];
        let going = cidr("10.96.0.0/24", "True", true);
        assert_eq!(plan(&going, std::slice::from_ref(&going), &taken), Plan::Hold);
        let told = cidr("10.96.0.0/24", "False", true);
        assert_eq!(plan(&told, std::slice::from_ref(&told), &taken), Plan::Nothing);
        let due = Plan::ReleaseAt("2024-01-01T00:00:10Z".parse().unwrap());
        for (other, wanted) in [
            (cidr("10.96.0.0/16", "True", false), &due),
            (cidr("10.96.0.0/16", "True", true), &Plan::Hold),
            (cidr("10.96.0.0/16", "False", false), &Plan::Hold),
            (cidr("10.96.0.128/25", "True", false), &Plan::Hold),
        ] {
            assert_eq!(plan(&going, &[going.clone(), other], &taken), *wanted);
        }
        assert_eq!(plan(&going, std::slice::from_ref(&going), &[]), due);
    }

    #[test]
    fn a_new_range_is_welcomed_once() {
        let new: ServiceCidr =
            serde_json::from_value(json!({ "spec": { "cidrs": ["10.96.0.0/24"] } })).unwrap();
        assert_eq!(plan(&new, std::slice::from_ref(&new), &[]), Plan::Welcome);
        let ready = cidr("10.96.0.0/24", "True", false);
        assert_eq!(plan(&ready, std::slice::from_ref(&ready), &[]), Plan::Nothing);
    }
}
