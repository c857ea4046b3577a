//! What servers over one store have to agree on: the cluster's ranges, the keys with which they sign, and which range of
//! pods belongs to which of them. It is kept in the store itself, beside the objects of the API.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use ipnet::Ipv4Net;
use network::ranges::Ranges;
use sha2::{Digest, Sha256};
use store::{Compare, CompareTarget, Op, RangeRequest, Store, StoreError, Txn};

/// The ranges, as JSON.
const RANGES: &str = "/skiff/ranges";
/// The hash of the keys.
const KEYS: &str = "/skiff/keys";
/// Servers by number: the values are the names of their nodes.
const SERVERS: &str = "/skiff/servers/";
/// How many ranges of pods are left to servers. They are the last of all; members get the first.
pub(crate) const SERVERS_MAX: u32 = 16;
/// With what servers sign, in the directory of the authority.
const KEY_FILES: [&str; 2] = ["ca.key", "sa.key"];

fn unreachable(error: StoreError) -> anyhow::Error {
    anyhow!(error).context("ask the shared store what its servers agreed on")
}

async fn read(store: &Arc<dyn Store>, key: &str) -> Result<Option<Vec<u8>>> {
    let found = store.range(RangeRequest::key(key.to_owned())).await.map_err(unreachable)?;
    Ok(found.kvs.into_iter().next().map(|held| held.value.to_vec()))
}

/// Writes a key unless there is one; gives what is there.
async fn settle(store: &Arc<dyn Store>, key: &str, value: &[u8]) -> Result<Vec<u8>> {
    let txn = Txn {
        compares: vec![Compare { key: key.to_owned().into(), target: CompareTarget::ModRevision(0) }],
        then: vec![Op::Put { key: key.to_owned().into(), value: value.to_vec().into(), lease: 0 }],
        or_else: Vec::new(),
    };
    if store.txn(txn).await.map_err(unreachable)?.succeeded {
        return Ok(value.to_vec());
    }
    read(store, key).await?.with_context(|| format!("{key} vanished from the shared store"))
}

/// The cluster's ranges: those that its first server chose.
pub(crate) async fn ranges(
    store: &Arc<dyn Store>,
    choose: impl FnOnce() -> Result<Ranges>,
) -> Result<Ranges> {
    let bytes = match read(store, RANGES).await? {
        Some(bytes) => bytes,
        None => {
            let chosen = choose()?;
            if member_pods(&chosen).is_empty() {
                bail!(
                    "maxPods is so large that the pods' range ({}) has room for servers only, and none for further nodes: \
                     lower it to 1022 at most, or use the embedded store",
                    chosen.pods
                );
            }
            settle(store, RANGES, &serde_json::to_vec(&chosen)?).await?
        }
    };
    serde_json::from_slice(&bytes).with_context(|| format!("read {RANGES} of the shared store"))
}

/// The pods' range of a server's own node, claimed under the node's name.
pub(crate) async fn node_pods(store: &Arc<dyn Store>, ranges: &Ranges, node: &str) -> Result<Ipv4Net> {
    let all: Vec<Ipv4Net> = (0..).map_while(|number| ranges.node_pods(number)).collect();
    let claims = store.range(RangeRequest::prefix(SERVERS)).await.map_err(unreachable)?.kvs;
    let mine = |number: &u32| {
        let key = format!("{SERVERS}{number}");
        claims.iter().any(|claim| claim.key == key && claim.value == node)
    };
    // A number without a range is nobody's to claim.
    let numbers = u32::try_from(all.len()).map_or(SERVERS_MAX, |count| count.min(SERVERS_MAX));
    let claimed = (0..numbers).find(mine);
    for number in claimed.into_iter().chain(0..numbers) {
        let holder = settle(store, &format!("{SERVERS}{number}"), node.as_bytes()).await?;
        let range = all.iter().rev().nth(number as usize);
        if holder == node.as_bytes()
            && let Some(range) = range
        {
            return Ok(*range);
        }
    }
    bail!(
        "the shared store knows {numbers} servers already; delete the key under {SERVERS} of one that is gone"
    )
}

/// The ranges of pods that are for nodes without a control plane.
pub(crate) fn member_pods(ranges: &Ranges) -> Vec<Ipv4Net> {
    let mut all: Vec<Ipv4Net> = (0..).map_while(|number| ranges.node_pods(number)).collect();
    all.truncate(all.len().saturating_sub(SERVERS_MAX as usize));
    all
}

/// The hash of this server's keys; `None` if it lacks one. The keys are random: their hash tells nothing of them.
fn keys_of(pki: &Path) -> Result<Option<String>> {
    let mut digest = Sha256::new();
    for file in KEY_FILES {
        let path = pki.join(file);
        match std::fs::read(&path) {
            Ok(key) => digest.update(Sha256::digest(key)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        }
    }
    Ok(Some(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
}

/// Sees to it, before keys are made here, that this server signs with the keys of the others.
pub(crate) async fn expect_keys(store: &Arc<dyn Store>, pki: &Path) -> Result<()> {
    match read(store, KEYS).await? {
        Some(known) if keys_of(pki)?.is_none_or(|own| own.as_bytes() != known) => Err(foreign(pki)),
        _ => Ok(()),
    }
}

/// Tells the others with which keys the cluster signs, unless they said so first.
pub(crate) async fn publish_keys(store: &Arc<dyn Store>, pki: &Path) -> Result<()> {
    let own = keys_of(pki)?.with_context(|| format!("{} lacks keys", pki.display()))?;
    if settle(store, KEYS, own.as_bytes()).await? == own.as_bytes() { Ok(()) } else { Err(foreign(pki)) }
}

fn foreign(pki: &Path) -> anyhow::Error {
    anyhow!(
        "this server's keys are not those of the cluster in the shared store: copy ca.crt, ca.key and sa.key from the \
         directory pki of another server's data into {} and start again",
        pki.display()
    )
}

#[cfg(test)]
mod tests {
    use store::memory::Memory;
    use store::{Embedded, EmbeddedConfig};

    use super::*;

    fn shared() -> Arc<dyn Store> {
        Embedded::open(Arc::new(Memory::new()), EmbeddedConfig::STANDARD).unwrap()
    }

    fn some() -> Ranges {
        network::ranges::choose(&[], 0).unwrap()
    }

    #[tokio::test]
    async fn the_first_server_chooses_and_each_gets_pods_of_its_own() {
        let store = shared();
        let chosen = ranges(&store, || Ok(some())).await.unwrap();
        let second = ranges(&store, || bail!("asked twice")).await.unwrap();
        assert_eq!(second, chosen);
        let (a, b) =
            (node_pods(&store, &chosen, "a").await.unwrap(), node_pods(&store, &chosen, "b").await.unwrap());
        assert_ne!(a, b);
        assert_eq!(node_pods(&store, &chosen, "a").await.unwrap(), a);
        assert!(
            !member_pods(&chosen).contains(&a)
                && member_pods(&chosen).contains(&chosen.node_pods(0).unwrap())
        );
        for number in 2..SERVERS_MAX {
            node_pods(&store, &chosen, &format!("n{number}")).await.unwrap();
        }
        let error = node_pods(&store, &chosen, "late").await.unwrap_err().to_string();
        assert!(error.contains(SERVERS), "{error}");
    }

    #[tokio::test]
    async fn ranges_without_room_for_members_are_refused_and_claim_no_more_than_there_are() {
        let store = shared();
        let of = |pods| network::ranges::choose(&[], pods).unwrap();
        let error = ranges(&store, || Ok(of(1023))).await.unwrap_err().to_string();
        assert!(error.contains("maxPods") && error.contains("1022"), "{error}");
        assert_eq!(ranges(&store, || Ok(of(1022))).await.unwrap(), of(1022));
        // As an earlier version may have stored them.
        let few = of(2048);
        let count = (0..).map_while(|number| few.node_pods(number)).count();
        assert!(count < SERVERS_MAX as usize);
        for number in 0..count {
            node_pods(&store, &few, &format!("n{number}")).await.unwrap();
        }
        assert!(node_pods(&store, &few, "late").await.is_err());
        let claims = store.range(RangeRequest::prefix(SERVERS)).await.unwrap().kvs;
        assert_eq!(claims.len(), count);
    }

    #[tokio::test]
    async fn servers_with_other_keys_are_refused() {
        let store = shared();
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [one, two] = [dirs[0].path(), dirs[1].path()];
        let write = |dir: &Path, key: &str| {
            KEY_FILES.iter().for_each(|file| std::fs::write(dir.join(file), key).unwrap())
        };
        expect_keys(&store, one).await.unwrap();
        write(one, "a");
        publish_keys(&store, one).await.unwrap();
        assert!(expect_keys(&store, two).await.unwrap_err().to_string().contains("ca.key"));
        write(two, "b");
        assert!(expect_keys(&store, two).await.is_err() && publish_keys(&store, two).await.is_err());
        write(two, "a");
        expect_keys(&store, two).await.unwrap();
        publish_keys(&store, two).await.unwrap();
    }
}
