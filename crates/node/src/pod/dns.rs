//! Resolver configuration and hosts file of a pod.

use std::fmt::Write as _;
use std::net::IpAddr;

use super::PodView;

/// Limits of the resolver. Source: upstream's `MaxDNSNameservers`, `MaxDNSSearchPaths`, `MaxDNSSearchListChars`.
const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARS: usize = 2048;

/// A resolver configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Resolver {
    pub(crate) nameservers: Vec<String>,
    pub(crate) searches: Vec<String>,
    pub(crate) options: Vec<String>,
}

impl Resolver {
    /// Reads `resolv.conf`(5).
    pub(crate) fn parse(text: &str) -> Self {
        let mut resolver = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => resolver.nameservers.extend(words.next().map(str::to_owned)),
                // The last one counts.
                Some("search" | "domain") => resolver.searches = words.map(str::to_owned).collect(),
                Some("options") => resolver.options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
        resolver
    }

    /// Writes `resolv.conf`(5).
    pub(crate) fn render(&self) -> String {
        let mut text = String::new();
        if !self.searches.is_empty() {
            let _ = writeln!(text, "search {}", self.searches.join(" "));
        }
        for server in &self.nameservers {
            let _ = writeln!(text, "nameserver {server}");
        }
        if !self.options.is_empty() {
            let _ = writeln!(text, "options {}", self.options.join(" "));
        }
        text
    }
}

/// Facts about the cluster's DNS.
#[derive(Debug, Clone, Default)]
pub(crate) struct ClusterFacts {
    pub(crate) nameservers: Vec<IpAddr>,
    pub(crate) domain: String,
}

/// The resolver configuration of a pod, from `dnsPolicy` and `dnsConfig`. `host` is the host's own.
pub(crate) fn resolver(pod: &PodView, cluster: &ClusterFacts, host: &Resolver) -> Resolver {
    let policy = pod.spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster_first = match policy {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !pod.host_network(),
        _ => false,
    };
    let mut resolver = if cluster_first && !cluster.nameservers.is_empty() {
        cluster_resolver(pod, cluster, host)
    } else if policy == "None" {
        Resolver::default()
    } else {
        host.clone()
    };
    if let Some(extra) = &pod.spec.dns_config {
        resolver.nameservers.extend(extra.nameservers.iter().flatten().cloned());
        resolver.searches.extend(extra.searches.iter().flatten().cloned());
        for option in extra.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            resolver.options.retain(|known| known.split(':').next() != Some(name));
            resolver.options.push(match &option.value {
                Some(value) => format!("{name}:{value}"),
                None => name.clone(),
            });
        }
    }
    bounded(resolver)
}

fn cluster_resolver(pod: &PodView, cluster: &ClusterFacts, host: &Resolver) -> Resolver {
    let domain = &cluster.domain;
    let mut searches =
        vec![format!("{}.svc.{domain}", pod.metadata.namespace), format!("svc.{domain}"), domain.clone()];
    searches.extend(host.searches.iter().cloned());
    Resolver {
        nameservers: cluster.nameservers.iter().map(ToString::to_string).collect(),
        searches,
        options: vec!["ndots:5".to_owned()],
    }
}

/// Removes repetitions and what the resolver would not read.
fn bounded(mut resolver: Resolver) -> Resolver {
    dedupe(&mut resolver.nameservers);
    dedupe(&mut resolver.searches);
    resolver.nameservers.truncate(MAX_NAMESERVERS);
    resolver.searches.truncate(MAX_SEARCHES);
    let mut chars = 0;
    resolver.searches.retain(|search| {
        chars += search.len() + 1;
        chars <= MAX_SEARCH_CHARS
    });
    resolver
}

fn dedupe(list: &mut Vec<String>) {
    let mut seen = std::collections::HashSet::new();
    list.retain(|entry| seen.insert(entry.clone()));
}

/// The hosts file of a pod. `host_file`: the host's own, which host-network pods see.
pub(crate) fn hosts_file(
    pod: &PodView,
    domain: &str,
    addresses: &[IpAddr],
    host_file: Option<&str>,
) -> String {
    let mut text = match host_file {
        Some(own) => format!("# Kubernetes-managed hosts file (host network).\n{own}"),
        None => {
            let mut text = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n\
                ::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nfe00::\tip6-mcastprefix\n\
                fe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
                .to_owned();
            let hostname = pod.hostname();
            for address in addresses {
                let _ = match pod.host_domain(domain) {
                    Some(domain) => writeln!(text, "{address}\t{hostname}.{domain}\t{hostname}"),
                    None => writeln!(text, "{address}\t{hostname}"),
                };
            }
            text
        }
    };
    let aliases = pod.spec.host_aliases.as_deref().unwrap_or_default();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
            let _ = writeln!(text, "{}\t{names}", alias.ip);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod;

    fn cluster() -> ClusterFacts {
        ClusterFacts { nameservers: vec!["10.96.0.10".parse().unwrap()], domain: "cluster.local".to_owned() }
    }

    fn host() -> Resolver {
        Resolver::parse("# x\nsearch corp.example\nnameserver 192.0.2.1\noptions edns0\n")
    }

    #[test]
    fn each_policy_has_its_servers() {
        let with = |spec: serde_json::Value| resolver(&pod(spec), &cluster(), &host()).render();
        let cluster_first = "search default.svc.cluster.local svc.cluster.local cluster.local corp.example\n\
            nameserver 10.96.0.10\noptions ndots:5\n";
        let own = "search corp.example\nnameserver 192.0.2.1\noptions edns0\n";
        assert_eq!(with(serde_json::json!({"containers": []})), cluster_first);
        assert_eq!(with(serde_json::json!({"containers": [], "dnsPolicy": "Default"})), own);
        assert_eq!(with(serde_json::json!({"containers": [], "hostNetwork": true})), own);
        let policy = serde_json::json!({"containers": [], "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"});
        assert_eq!(with(policy), cluster_first);
        let none = serde_json::json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {
            "nameservers": ["1.2.3.4", "1.2.3.4"], "searches": ["a"], "options": [{"name": "ndots", "value": "2"}]}});
        assert_eq!(with(none), "search a\nnameserver 1.2.3.4\noptions ndots:2\n");
    }

    #[test]
    fn options_of_the_pod_replace_defaults() {
        let spec = serde_json::json!({"containers": [], "dnsConfig": {"options": [{"name": "ndots", "value": "1"}]}});
        assert_eq!(resolver(&pod(spec), &cluster(), &host()).options, ["ndots:1"]);
    }

    #[test]
    fn the_hosts_file_names_the_pod_and_its_aliases() {
        let pod = pod(serde_json::json!({"containers": [], "hostname": "db-0", "subdomain": "db",
            "hostAliases": [{"ip": "10.9.9.9", "hostnames": ["a", "b"]}]}));
        let text = hosts_file(&pod, "cluster.local", &["10.1.0.7".parse().unwrap()], None);
        assert!(text.contains("10.1.0.7\tdb-0.db.default.svc.cluster.local\tdb-0\n"), "{text}");
        assert!(text.contains("10.9.9.9\ta\tb\n"), "{text}");
    }
}
