//! What users without root have to do without, each in a sentence with its remedy.

use sys::cgroup::CgroupHost;

/// What is known when the namespaces are there.
#[derive(Debug)]
pub(super) struct Facts {
    /// The ids of the user namespace: `many`, `few`, `no-programs`, `no-ranges`.
    pub(super) ids: String,
    /// What leads outside; else why nothing does, empty where no program is installed.
    pub(super) outward: Result<&'static str, String>,
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
    losses.extend(of_groups(facts.cgroups));
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
            "this user has fewer than 65535 further ids, and owners beyond them fail: give a larger range in \
             /etc/subuid and /etc/subgid"
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
        let best = Facts { ids: "many".into(), outward: Ok("pasta"), cgroups: Groups::Limiting };
        assert_eq!(of(&best).len(), 3, "{:?}", of(&best));
        let worst = Facts { ids: "no-ranges".into(), outward: Err(String::new()), cgroups: Groups::None };
        let all = of(&worst).join("\n");
        for part in ["/etc/subuid", "usermod", "passt", "Delegate=yes", "/var/lib/kubelet", "127.0.0.1"] {
            assert!(all.contains(part), "{part}: {all}");
        }
        assert!(
            of(&Facts { outward: Err("pasta: no device".into()), ..worst })[1].ends_with("pasta: no device")
        );
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
