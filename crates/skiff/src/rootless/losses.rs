//! What users without root have to do without, each in a sentence with its remedy.

use std::net::IpAddr;

use sys::cgroup::CgroupHost;

/// What is known when the namespaces are there.
#[derive(Debug)]
pub(super) struct Facts {
    /// The ids of the user namespace: `many`, `few`, `no-programs`, `no-ranges`.
    pub(super) ids: String,
    /// What leads outside; else why nothing does, empty where no program is installed.
    pub(super) outward: Result<&'static str, String>,
    /// Whether the resolvers can be reached: see [`finds_names`].
    pub(super) names: bool,
    /// Whether processes outlive the user's sessions.
    pub(super) lingers: bool,
    pub(super) cgroups: Groups,
}

/// What was given to the user of cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Groups {
    /// None.
    None,
    /// Groups that count and limit nothing.
    Bare,
    /// Groups with limits.
    Limiting,
}

impl From<CgroupHost> for Groups {
    fn from(host: CgroupHost) -> Self {
        match (host.has_groups(), host.limits_memory()) {
            (false, _) => Self::None,
            (true, false) => Self::Bare,
            (true, true) => Self::Limiting,
        }
    }
}

/// The sentences. Pure.
pub(super) fn of(facts: &Facts) -> Vec<String> {
    let mut losses: Vec<String> = Vec::new();
    losses.extend(of_ids(&facts.ids));
    losses.extend(of_outward(&facts.outward));
    if !facts.names && facts.outward.is_ok() {
        losses.push(
            "the resolvers in /etc/resolv.conf are on the host's loopback, which the node does not reach, so no names are \
             found and images cannot be pulled: name one there that the network reaches, then skiff down and start again"
                .into(),
        );
    }
    losses.extend(of_groups(facts.cgroups));
    if !facts.lingers {
        losses.push("the instance does not outlive this session: loginctl enable-linger USER".into());
    }
    losses.push(
        "drivers (CSI, device plugins) do not find the node under /var/lib/kubelet: tell their charts the directory \
         node in the data directory"
            .into(),
    );
    losses.push(
        "ports are published for TCP and on 127.0.0.1 only, and those below net.ipv4.ip_unprivileged_port_start \
         not at all: choose others, or lower that parameter"
            .into(),
    );
    losses.push(
        "pods with hostUsers: false, NFS and block volumes, and OOM scores below this user's own are refused or \
         ignored: they need Skiff as root"
            .into(),
    );
    losses
}

fn of_ids(state: &str) -> Option<String> {
    let consequence = "files and processes of containers can only belong to root: other owners in images become root, \
                       and pods with runAsUser, fsGroup or images with a user fail";
    match state {
        "many" => None,
        "few" => Some(
            "this user has fewer than 65535 further ids: owners beyond them in images become root, and pods with users \
             or groups beyond them fail; give a larger range in /etc/subuid and /etc/subgid"
                .into(),
        ),
        "no-programs" => Some(format!(
            "newuidmap and newgidmap are missing: {consequence}; install them (Debian: uidmap)"
        )),
        _ => Some(format!(
            "this user has no ranges in /etc/subuid and /etc/subgid: {consequence}; add them with: usermod \
             --add-subuids 100000-165535 --add-subgids 100000-165535 USER"
        )),
    }
}

fn of_outward(state: &Result<&'static str, String>) -> Option<String> {
    match state {
        Ok("slirp4netns") => Some(
            "the way outside is slirp4netns, which is slow; install pasta (Debian: passt) for a faster one".into(),
        ),
        Ok(_) => None,
        Err(why) if why.is_empty() => Some(
            "no way leads outside, so images cannot be pulled and pods reach nothing beyond the cluster: install \
             pasta (Debian: passt) or slirp4netns, and start again"
                .into(),
        ),
        Err(why) => Some(format!(
            "no way leads outside, so images cannot be pulled and pods reach nothing beyond the cluster: {why}"
        )),
    }
}

fn of_groups(groups: Groups) -> Option<String> {
    let remedy = "have systemd give this user cgroups of version 2: systemd-run --user --scope -p Delegate=yes skiff up";
    match groups {
        Groups::Limiting => None,
        Groups::Bare => Some(format!(
            "this user's cgroups have no controllers, so limits of CPU, memory and processes do not hold, and use is \
             not counted: {remedy}"
        )),
        Groups::None => Some(format!(
            "this user has no cgroups, so limits of CPU, memory and processes do not hold, and use is not counted: \
             {remedy}"
        )),
    }
}

/// Whether a text of resolv.conf(5) names a resolver that is not on the host's loopback. Where it names none, programs ask
/// the loopback. Pure.
pub(super) fn finds_names(resolv_conf: &str) -> bool {
    let resolver = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let address = (words.next() == Some("nameserver")).then(|| words.next()).flatten()?;
        // Of an address that is valid on one device, the device follows.
        address.split('%').next()?.parse::<IpAddr>().ok()
    };
    let mut resolvers = resolv_conf.lines().filter_map(resolver);
    resolvers.any(|address| !address.is_loopback() && !address.is_unspecified())
}

/// What lets users have namespaces, by what the kernel says of itself. `read` reads a file.
pub(super) fn remedy_for_namespaces(read: impl Fn(&str) -> Option<String>) -> String {
    let is = |file: &str, value: &str| read(file).is_some_and(|text| text.trim() == value);
    let parameter = if is("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        "kernel.unprivileged_userns_clone=1"
    } else if is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") {
        "kernel.apparmor_restrict_unprivileged_userns=0"
    } else if is("/proc/sys/user/max_user_namespaces", "0") {
        "user.max_user_namespaces=10000"
    } else {
        return "ask the administrator whether a security module or an outer container forbids it".into();
    };
    format!("ask the administrator for: sysctl -w {parameter}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_loss_has_a_remedy_and_nothing_is_told_that_holds() {
        let best = Facts {
            ids: "many".into(),
            outward: Ok("pasta"),
            names: true,
            lingers: true,
            cgroups: Groups::Limiting,
        };
        assert_eq!(of(&best).len(), 3, "{:?}", of(&best));
        let nameless = of(&Facts { names: false, ..best }).join("\n");
        assert!(nameless.contains("/etc/resolv.conf"), "{nameless}");
        let worst = Facts {
            ids: "no-ranges".into(),
            outward: Err(String::new()),
            names: false,
            lingers: false,
            cgroups: Groups::None,
        };
        let all = of(&worst).join("\n");
        assert!(!all.contains("resolv.conf"), "no names without a way out: {all}");
        let parts = [
            "/etc/subuid",
            "usermod",
            "passt",
            "Delegate=yes",
            "/var/lib/kubelet",
            "127.0.0.1",
            "enable-linger",
        ];
        for part in parts {
            assert!(all.contains(part), "{part}: {all}");
        }
        assert!(
            of(&Facts { outward: Err("pasta: no device".into()), ..worst })[1].ends_with("pasta: no device")
        );
    }

    #[test]
    fn resolvers_on_the_loopback_find_no_names() {
        for text in ["", "nameserver 127.0.0.53\noptions edns0\n", "nameserver ::1\n#nameserver 192.0.2.1\n"]
        {
            assert!(!finds_names(text), "{text}");
        }
        for text in ["nameserver 127.0.0.1\nnameserver 192.0.2.1\n", "search x\nnameserver fe80::1%eth0\n"] {
            assert!(finds_names(text), "{text}");
        }
    }

    #[test]
    fn what_forbids_namespaces_is_named() {
        let with = |file: &'static str, value: &'static str| {
            remedy_for_namespaces(move |asked| (asked == file).then(|| value.to_owned()))
        };
        assert!(with("/proc/sys/user/max_user_namespaces", "0\n").ends_with("max_user_namespaces=10000"));
        assert!(with("/proc/sys/kernel/unprivileged_userns_clone", "0").contains("userns_clone=1"));
        assert!(with("/x", "").contains("security module"));
    }
}
