//! A driver of devices as the node sees it: calls with deadlines, in the version that it speaks, and answers that are
//! checked before anything of them counts. Source: `cm/dra/plugin/dra_plugin.go`.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use protos::dra::{v1, v1beta1};
use tonic::transport::Channel;

use super::book::{Entry, Given};
use crate::plugins::socket::{ANSWER_MAX, ask, channel};

/// Source: upstream's `defaultClientCallTimeout`.
const CALL_MAX: Duration = Duration::from_secs(45);
/// What a driver may say of one claim.
const DEVICES_MAX: usize = 1024;
const NAMES_MAX: usize = 256;
const NAME_BYTES_MAX: usize = 512;
/// As it is written: the claims of all drivers share one file, which is bounded too.
const CLAIM_BYTES_MAX: usize = 256 << 10;

/// Which service the node asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V1beta1,
}

/// How the driver tells of its devices' health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HealthVersion {
    V1,
    V1alpha1,
}

/// A driver that has registered.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(super) name: String,
    pub(super) endpoint: PathBuf,
    version: Version,
    pub(super) health: Option<HealthVersion>,
    pub(super) channel: Channel,
}

/// What a driver answers about each claim.
type Answers<T> = HashMap<String, Result<T, String>>;

impl Driver {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Takes the newest service that both sides know. Source: `validateSupportedServices`.
    pub(super) fn new(name: &str, endpoint: &Path, services: &[String]) -> Result<Self, String> {
        let speaks = |service: &str| services.iter().any(|known| known == service);
        let refused = |why: &str| {
            let place = endpoint.display();
            format!("invalid supported gRPC versions of DRA driver plugin {name} at endpoint {place}: {why}")
        };
        let version = match () {
            () if services.is_empty() => {
                return Err(refused("empty list of supported gRPC services (aka supported versions)"));
            }
            () if speaks("v1.DRAPlugin") => Version::V1,
            () if speaks("v1beta1.DRAPlugin") => Version::V1beta1,
            () => return Err(refused("this node speaks v1.DRAPlugin and v1beta1.DRAPlugin")),
        };
        let health = match () {
            () if speaks("v1.DRAResourceHealth") => Some(HealthVersion::V1),
            () if speaks("v1alpha1.DRAResourceHealth") => Some(HealthVersion::V1alpha1),
            () => None,
        };
        let (name, endpoint) = (name.to_owned(), endpoint.to_owned());
        Ok(Self { channel: channel(&endpoint), name, endpoint, version, health })
    }

    /// Has the driver prepare claims: what it has prepared of each. All of them, or an error.
    pub(super) async fn prepare(
        &self,
        claims: &[Entry],
        timed: Timed<'_>,
    ) -> Result<BTreeMap<String, Vec<Given>>, String> {
        let begun = Instant::now();
        let answered = self.ask_prepare(claims).await;
        timed(
            &self.name,
            "NodePrepareResources",
            answered.as_ref().err().map(String::as_str),
            begun.elapsed(),
        );
        let answers = answered.map_err(|error| format!("NodePrepareResources: {error}"))?;
        let all = whole("NodePrepareResources", claims, answers)?;
        all.into_iter().map(|(uid, devices)| check(devices).map(|devices| (uid, devices))).collect()
    }

    async fn ask_prepare(&self, claims: &[Entry]) -> Result<Answers<Vec<Given>>, String> {
        match self.version {
            Version::V1 => {
                let claims = claims.iter().map(|of| v1::Claim {
                    namespace: of.namespace.clone(),
                    uid: of.uid.clone(),
                    name: of.name.clone(),
                });
                let request = v1::NodePrepareResourcesRequest { claims: claims.collect() };
                let client = v1::dra_plugin_client::DraPluginClient::new(self.channel.clone());
                let mut client = client.max_decoding_message_size(ANSWER_MAX);
                let answer = ask(CALL_MAX, client.node_prepare_resources(request)).await?;
                let given = |of: v1::Device| Given {
                    requests: of.request_names,
                    pool: of.pool_name,
                    device: of.device_name,
                    cdi: of.cdi_device_ids,
                    share: of.share_id,
                };
                Ok(answered(answer.claims, |of| (of.error, of.devices.into_iter().map(given).collect())))
            }
            Version::V1beta1 => {
                let claims = claims.iter().map(|of| v1beta1::Claim {
                    namespace: of.namespace.clone(),
                    uid: of.uid.clone(),
                    name: of.name.clone(),
                });
                let request = v1beta1::NodePrepareResourcesRequest { claims: claims.collect() };
                let client = v1beta1::dra_plugin_client::DraPluginClient::new(self.channel.clone());
                let mut client = client.max_decoding_message_size(ANSWER_MAX);
                let answer = ask(CALL_MAX, client.node_prepare_resources(request)).await?;
                let given = |of: v1beta1::Device| Given {
                    requests: of.request_names,
                    pool: of.pool_name,
                    device: of.device_name,
                    cdi: of.cdi_device_ids,
                    share: None,
                };
                Ok(answered(answer.claims, |of| (of.error, of.devices.into_iter().map(given).collect())))
            }
        }
    }

    /// Has the driver take back what it has prepared of claims: of all of them, or an error.
    pub(super) async fn unprepare(&self, claims: &[Entry], timed: Timed<'_>) -> Result<(), String> {
        let begun = Instant::now();
        let answered = self.ask_unprepare(claims).await;
        timed(
            &self.name,
            "NodeUnprepareResources",
            answered.as_ref().err().map(String::as_str),
            begun.elapsed(),
        );
        let answers = answered.map_err(|error| format!("NodeUnprepareResources: {error}"))?;
        whole("NodeUnprepareResources", claims, answers).map(drop)
    }

    async fn ask_unprepare(&self, claims: &[Entry]) -> Result<Answers<()>, String> {
        match self.version {
            Version::V1 => {
                let claims = claims.iter().map(|of| v1::Claim {
                    namespace: of.namespace.clone(),
                    uid: of.uid.clone(),
                    name: of.name.clone(),
                });
                let request = v1::NodeUnprepareResourcesRequest { claims: claims.collect() };
                let client = v1::dra_plugin_client::DraPluginClient::new(self.channel.clone());
                let mut client = client.max_decoding_message_size(ANSWER_MAX);
                let answer = ask(CALL_MAX, client.node_unprepare_resources(request)).await?;
                Ok(answered(answer.claims, |of| (of.error, ())))
            }
            Version::V1beta1 => {
                let claims = claims.iter().map(|of| v1beta1::Claim {
                    namespace: of.namespace.clone(),
                    uid: of.uid.clone(),
                    name: of.name.clone(),
                });
                let request = v1beta1::NodeUnprepareResourcesRequest { claims: claims.collect() };
                let client = v1beta1::dra_plugin_client::DraPluginClient::new(self.channel.clone());
                let mut client = client.max_decoding_message_size(ANSWER_MAX);
                let answer = ask(CALL_MAX, client.node_unprepare_resources(request)).await?;
                Ok(answered(answer.claims, |of| (of.error, ())))
            }
        }
    }
}

/// Is told of each call: the driver, the method, why it has failed, and how long it took.
pub(super) type Timed<'a> = &'a (dyn Fn(&str, &'static str, Option<&str>, Duration) + Send + Sync);

fn answered<A, T>(claims: HashMap<String, A>, read: impl Fn(A) -> (String, T)) -> Answers<T> {
    let each = claims.into_iter().map(|(uid, answer)| match read(answer) {
        (error, of) if error.is_empty() => (uid, Ok(of)),
        (error, _) => (uid, Err(error.chars().take(NAME_BYTES_MAX).collect())),
    });
    each.collect()
}

/// An answer that is about every claim that was asked about, and about no other. Pure.
fn whole<T>(method: &str, claims: &[Entry], answers: Answers<T>) -> Result<BTreeMap<String, T>, String> {
    let mut all = BTreeMap::new();
    for (uid, answer) in answers {
        let Some(claim) = claims.iter().find(|claim| claim.uid == uid) else {
            let uid: String = uid.chars().take(64).collect();
            return Err(format!("{method} returned result for unknown claim UID {uid}"));
        };
        let of =
            answer.map_err(|error| format!("{method} failed for ResourceClaim {}: {error}", claim.name))?;
        all.insert(uid, of);
    }
    match claims.len() - all.len() {
        0 => Ok(all),
        skipped => Err(format!("{method} skipped {skipped} ResourceClaims")),
    }
}

/// Devices within bounds: they are kept on disk, and told to whoever asks the node. Pure.
fn check(devices: Vec<Given>) -> Result<Vec<Given>, String> {
    let long = |text: &String| text.len() > NAME_BYTES_MAX;
    let odd = |of: &Given| {
        let names = [&of.pool, &of.device].into_iter().chain(&of.requests).chain(&of.cdi).chain(&of.share);
        of.requests.len() > NAMES_MAX || of.cdi.len() > NAMES_MAX || names.into_iter().any(long)
    };
    if devices.len() > DEVICES_MAX || devices.iter().any(odd) {
        return Err(format!(
            "NodePrepareResources answered with more than {DEVICES_MAX} devices, {NAMES_MAX} names of one, or {NAME_BYTES_MAX} bytes of a name"
        ));
    }
    let written = serde_json::to_vec(&devices).map_err(|error| error.to_string())?;
    if written.len() > CLAIM_BYTES_MAX {
        return Err(format!(
            "NodePrepareResources answered with more than {CLAIM_BYTES_MAX} bytes of one claim"
        ));
    }
    Ok(devices)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(uids: &[&str]) -> Vec<Entry> {
        let claim = |uid: &&str| Entry { uid: (*uid).into(), name: format!("of-{uid}"), ..Entry::default() };
        uids.iter().map(claim).collect()
    }

    fn answers(list: &[(&str, Result<(), &str>)]) -> Answers<()> {
        list.iter().map(|(uid, of)| ((*uid).to_owned(), of.map_err(str::to_owned))).collect()
    }

    #[test]
    fn the_newest_service_of_both_is_asked() {
        let of = |services: &[&str]| {
            let services: Vec<String> = services.iter().map(|service| (*service).to_owned()).collect();
            Driver::new("d", Path::new("/s"), &services).map(|driver| (driver.version, driver.health))
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let _inside = runtime.enter();
        let both = ["v1beta1.DRAPlugin", "v1.DRAPlugin", "v1alpha1.DRAResourceHealth"];
        assert_eq!(of(&both), Ok((Version::V1, Some(HealthVersion::V1alpha1))));
        assert_eq!(of(&["v1beta1.DRAPlugin"]), Ok((Version::V1beta1, None)));
        assert!(of(&[]).unwrap_err().contains("empty list"));
        assert!(of(&["v1alpha4.Node"]).unwrap_err().contains("invalid supported gRPC versions"));
    }

    #[test]
    fn answers_are_about_what_was_asked() {
        let of = |list: &[_]| whole("M", &claims(&["a", "b"]), answers(list)).map(drop).err();
        assert_eq!(of(&[("a", Ok(())), ("b", Ok(()))]), None);
        assert_eq!(of(&[("a", Ok(()))]).unwrap(), "M skipped 1 ResourceClaims");
        assert_eq!(of(&[]).unwrap(), "M skipped 2 ResourceClaims");
        assert_eq!(of(&[("c", Ok(()))]).unwrap(), "M returned result for unknown claim UID c");
        let failed = of(&[("a", Err("on fire")), ("b", Ok(()))]).unwrap();
        assert_eq!(failed, "M failed for ResourceClaim of-a: on fire");
    }

    #[test]
    fn what_a_driver_says_is_bounded() {
        assert!(check(vec![Given::default(); DEVICES_MAX]).is_ok());
        assert!(check(vec![Given::default(); DEVICES_MAX + 1]).is_err());
        assert!(check(vec![Given { device: "x".repeat(513), ..Given::default() }]).is_err());
        assert!(check(vec![Given { cdi: vec![String::new(); 257], ..Given::default() }]).is_err());
        let long = Given { cdi: vec!["x".repeat(NAME_BYTES_MAX); NAMES_MAX], ..Given::default() };
        assert!(check(vec![long.clone()]).is_ok());
        assert!(check(vec![long; 2]).unwrap_err().contains("bytes of one claim"));
    }
}
