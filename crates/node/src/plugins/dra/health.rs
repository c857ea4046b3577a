//! How devices are, as their drivers and plugins tell, shown with the containers that have them. Source: KEP-4680,
//! `cm/dra/healthinfo.go`, `UpdateAllocatedResourcesStatus`.

use std::collections::BTreeMap;
use std::time::Duration;

use base::backoff::Policy;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, PodStatus, ResourceHealth, ResourceStatus};
use parking_lot::Mutex;
use protos::dra::{health_v1, health_v1alpha1};
use tonic::Status;

use super::driver::HealthVersion;
use super::{Driver, Given, claims};
use crate::admission::Workers;
use crate::deps::Deps;
use crate::plugins::socket::ANSWER_MAX;
use crate::pod::PodView;

/// What was said counts for so long, unless the driver says how long. Source: `DefaultHealthTimeout`.
const TIMEOUT: Duration = Duration::from_secs(30);
const TIMEOUT_MAX_S: i64 = 24 * 3600;
/// A driver that ends its stream is asked again.
const AGAIN: Policy = Policy { first: Duration::from_secs(5), max: Duration::from_secs(120) };
/// Pods hear of it no more often: a driver may think otherwise of its devices all the time.
const PACE: Duration = Duration::from_secs(1);
/// What one driver may say.
const DEVICES_MAX: usize = 10_000;
const NAME_BYTES_MAX: usize = 512;
/// Source: `v1.ResourceHealthMessageMaxLength`.
const MESSAGE_BYTES_MAX: usize = 1024;

/// What a driver says of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    pool: String,
    device: String,
    health: &'static str,
    message: String,
    /// How long that counts.
    counts: Duration,
}

/// What is known of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    health: &'static str,
    message: String,
    /// Until when; nothing is expected of one that is unknown.
    until: Option<Timestamp>,
}

/// By pool and device.
type OfDriver = BTreeMap<(String, String), Known>;

/// How devices are, by driver.
#[derive(Default)]
pub(super) struct Health(Mutex<BTreeMap<String, OfDriver>>);

impl Health {
    pub(super) fn forget(&self, driver: &str) {
        self.0.lock().remove(driver);
    }

    /// Takes in what a driver says. Answers whether something has become other.
    fn told(&self, driver: &str, told: Vec<Told>, now: Timestamp) -> bool {
        let mut all = self.0.lock();
        let known = all.entry(driver.to_owned()).or_default();
        let mut news = false;
        for Told { pool, device, health, message, counts } in told {
            let until = now.saturating_add(counts).ok();
            let key = (pool, device);
            if known.len() >= DEVICES_MAX && !known.contains_key(&key) {
                continue;
            }
            let before = known.insert(key, Known { health, message: message.clone(), until });
            news |= before.is_none_or(|before| (before.health, before.message) != (health, message));
        }
        news
    }

    /// What was said too long ago is unknown. Answers whether something was.
    fn expire(&self, driver: &str, now: Timestamp) -> bool {
        let mut all = self.0.lock();
        let late = |known: &&mut Known| known.until.is_some_and(|until| until <= now);
        let mut any = false;
        for known in all.get_mut(driver).into_iter().flat_map(BTreeMap::values_mut).filter(late) {
            *known = Known { health: "Unknown", message: String::new(), until: None };
            any = true;
        }
        any
    }

    fn next_expiry(&self, driver: &str) -> Option<Timestamp> {
        self.0.lock().get(driver)?.values().filter_map(|known| known.until).min()
    }

    fn of(&self, driver: &str, given: &Given) -> (&'static str, String) {
        let all = self.0.lock();
        let known = all.get(driver).and_then(|of| of.get(&(given.pool.clone(), given.device.clone())));
        known.map_or(("Unknown", String::new()), |known| (known.health, known.message.clone()))
    }
}

/// A driver's word, within bounds; none where it names no device. Pure.
fn read(pool: String, device: String, health: i32, seconds: i64, mut message: String) -> Option<Told> {
    if device.is_empty() || device.len() > NAME_BYTES_MAX || pool.len() > NAME_BYTES_MAX {
        return None;
    }
    let health = match health {
        1 => "Healthy",
        2 => "Unhealthy",
        _ => "Unknown",
    };
    if message.len() > MESSAGE_BYTES_MAX {
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX - 3));
        message.push_str("...");
    }
    let counts = u64::try_from(seconds.min(TIMEOUT_MAX_S)).ok().filter(|seconds| *seconds > 0);
    Some(Told { pool, device, health, message, counts: counts.map_or(TIMEOUT, Duration::from_secs) })
}

/// What a driver says of its devices, as long as it does.
async fn open(
    driver: &Driver,
    version: HealthVersion,
) -> Result<BoxStream<'static, Result<Vec<Told>, Status>>, Status> {
    match version {
        HealthVersion::V1 => {
            let client =
                health_v1::dra_resource_health_client::DraResourceHealthClient::new(driver.channel.clone());
            let mut client = client.max_decoding_message_size(ANSWER_MAX);
            let stream =
                client.node_watch_resources(health_v1::NodeWatchResourcesRequest {}).await?.into_inner();
            let each = |of: health_v1::DeviceHealth| {
                let named = of.device.unwrap_or_default();
                read(
                    named.pool_name,
                    named.device_name,
                    of.health,
                    of.health_check_timeout_seconds,
                    of.message,
                )
            };
            Ok(stream
                .map(move |list| list.map(|list| list.devices.into_iter().filter_map(each).collect()))
                .boxed())
        }
        HealthVersion::V1alpha1 => {
            let client = health_v1alpha1::dra_resource_health_client::DraResourceHealthClient::new(
                driver.channel.clone(),
            );
            let mut client = client.max_decoding_message_size(ANSWER_MAX);
            let stream = client
                .node_watch_resources(health_v1alpha1::NodeWatchResourcesRequest {})
                .await?
                .into_inner();
            let each = |of: health_v1alpha1::DeviceHealth| {
                let named = of.device.unwrap_or_default();
                read(
                    named.pool_name,
                    named.device_name,
                    of.health,
                    of.health_check_timeout_seconds,
                    of.message,
                )
            };
            Ok(stream
                .map(move |list| list.map(|list| list.devices.into_iter().filter_map(each).collect()))
                .boxed())
        }
    }
}

/// Follows what a driver says of its devices, if it does, until it is dropped.
pub(super) async fn follow(deps: &Deps, workers: &Workers, driver: &Driver) {
    let Some(version) = driver.health else { return };
    let mut failures = 0;
    loop {
        if let Err(status) = watch(deps, workers, driver, version, &mut failures).await {
            let said: String = status.message().chars().take(200).collect();
            tracing::debug!(driver = driver.name, code = %status.code(), said, "a driver does not tell how its devices are");
        }
        forget(deps, driver);
        tell(deps, workers, &driver.name);
        failures += 1;
        let again = deps.now().saturating_add(AGAIN.delay(failures)).unwrap_or(Timestamp::MAX);
        deps.clock.sleep_until(again).await;
    }
}

/// Forgets what a driver has said that is not there to say it any more, unless another speaks in its name.
pub(super) fn forget(deps: &Deps, driver: &Driver) {
    let claims = &deps.plugins.claims;
    if !claims.is_succeeded(driver) {
        claims.health.forget(&driver.name);
    }
}

/// Takes in what a driver says as long as it does; whoever says something has not failed.
async fn watch(
    deps: &Deps,
    workers: &Workers,
    driver: &Driver,
    version: HealthVersion,
    failures: &mut u32,
) -> Result<(), Status> {
    let health = &deps.plugins.claims.health;
    let mut lists = open(driver, version).await?;
    // What pods have not heard of, and when they may.
    let (mut news, mut next) = (false, deps.now());
    loop {
        let expiry = health.next_expiry(&driver.name);
        news |= tokio::select! {
            list = lists.next() => match list {
                Some(list) => {
                    let other = health.told(&driver.name, list?, deps.now());
                    *failures = 0;
                    other
                }
                None => return Ok(()),
            },
            () = deps.clock.sleep_until(expiry.unwrap_or(Timestamp::MAX)), if expiry.is_some() => {
                health.expire(&driver.name, deps.now())
            }
            () = deps.clock.sleep_until(next), if news => false,
        };
        let now = deps.now();
        if news && now >= next {
            tell(deps, workers, &driver.name);
            (news, next) = (false, now.saturating_add(PACE).unwrap_or(Timestamp::MAX));
        }
    }
}

/// The pods that have devices of a driver look at them again.
pub(super) fn tell(deps: &Deps, workers: &Workers, driver: &str) {
    let concerned = deps.plugins.claims.book.lock().pods_of(driver);
    let workers = workers.lock();
    for mailbox in concerned.iter().filter_map(|uid| workers.get(uid)) {
        mailbox.runtime_changed();
    }
}

/// Says in a pod's status how the devices of its containers are.
pub(crate) fn show(deps: &Deps, pod: &PodView, status: &mut PodStatus) {
    for shown in status.container_statuses.iter_mut().flatten() {
        let Some((_, container)) = pod.container(&shown.name) else { continue };
        let mut all = of_plugins(deps, pod, container);
        all.extend(of_claims(deps, pod, container));
        shown.allocated_resources_status = (!all.is_empty()).then_some(all);
    }
}

fn of_plugins(deps: &Deps, pod: &PodView, container: &Container) -> Vec<ResourceStatus> {
    let of = deps.plugins.devices.health(pod.uid(), &container.name);
    let each = of.into_iter().map(|(name, devices)| {
        let health = |(id, health): (String, &str)| ResourceHealth {
            resource_id: id,
            health: Some(health.to_owned()),
            message: None,
        };
        ResourceStatus { name, resources: Some(devices.into_iter().map(health).collect()) }
    });
    each.collect()
}

fn of_claims(deps: &Deps, pod: &PodView, container: &Container) -> Vec<ResourceStatus> {
    let mut all = Vec::new();
    let named = container.resources.iter().flat_map(|resources| resources.claims.iter().flatten());
    for claim in named {
        let request = claim.request.as_deref().unwrap_or_default();
        let name = match request {
            "" => format!("claim:{}", claim.name),
            request => format!("claim:{}/{request}", claim.name),
        };
        let Ok(Some(wanted)) = claims::named(pod, &claim.name) else { continue };
        let Some(entry) = deps.plugins.claims.claim(&pod.metadata.namespace, &wanted.name) else { continue };
        let mut resources: Vec<ResourceHealth> = Vec::new();
        for (driver, devices) in &entry.drivers {
            for given in devices.iter().filter(|given| claims::is_of(&given.requests, request)) {
                let id = match given.cdi.first() {
                    Some(id) => id.clone(),
                    None => format!("{driver}/{}/{}", given.pool, given.device),
                };
                if resources.iter().any(|known| known.resource_id == id) {
                    continue;
                }
                let (health, message) = deps.plugins.claims.health.of(driver, given);
                let message = Some(message).filter(|message| !message.is_empty());
                resources.push(ResourceHealth { resource_id: id, health: Some(health.to_owned()), message });
            }
        }
        if !resources.is_empty() && all.iter().all(|known: &ResourceStatus| known.name != name) {
            all.push(ResourceStatus { name, resources: Some(resources) });
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn told(device: &str, health: i32, seconds: i64) -> Told {
        read("p".into(), device.into(), health, seconds, String::new()).unwrap()
    }

    #[test]
    fn what_was_said_counts_for_its_time() {
        let health = Health::default();
        let given = Given { pool: "p".into(), device: "a".into(), ..Given::default() };
        assert_eq!(health.of("d", &given).0, "Unknown");
        assert!(health.told("d", vec![told("a", 1, 10), told("b", 2, -1)], at(0)));
        assert!(!health.told("d", vec![told("a", 1, 10)], at(5)), "nothing new");
        assert_eq!(health.of("d", &given).0, "Healthy");
        assert_eq!(health.next_expiry("d"), Some(at(15)));
        assert!(!health.expire("d", at(14)) && health.expire("d", at(15)));
        assert_eq!(health.of("d", &given).0, "Unknown");
        assert_eq!(health.next_expiry("d"), Some(at(30)), "the default");
        assert!(health.told("d", vec![told("a", 2, 10)], at(16)));
        health.forget("d");
        assert_eq!(health.next_expiry("d"), None);
    }

    #[test]
    fn a_drivers_words_are_bounded() {
        assert_eq!(read("p".into(), String::new(), 1, 0, String::new()), None);
        assert_eq!(read("p".into(), "x".repeat(513), 1, 0, String::new()), None);
        let long = read("p".into(), "a".into(), 7, i64::MAX, "ä".repeat(1000)).unwrap();
        assert!(long.message.len() <= MESSAGE_BYTES_MAX && long.message.ends_with("..."));
        assert_eq!((long.health, long.counts), ("Unknown", Duration::from_secs(24 * 3600)));
        let health = Health::default();
        let many = (0..=DEVICES_MAX).map(|index| told(&index.to_string(), 1, 0));
        health.told("d", many.collect(), at(0));
        assert_eq!(health.0.lock()["d"].len(), DEVICES_MAX);
    }
}
