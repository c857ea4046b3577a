//! Which capabilities a container gets.

use std::collections::BTreeSet;

use engine_api::{EngineError, Security};

/// Every capability of Linux 6.12 (`linux/capability.h`), by number.
const ALL: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What containers get where nothing else is asked for: the set that Docker and containerd agree on.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// The capabilities (`CAP_…`) of a process: the default set, less what is dropped, with what is added; every one that
/// `held` tells this process to have for a privileged one. Adding wins over dropping, `ALL` aside.
pub(crate) fn resolve(
    security: &Security,
    privileged: bool,
    held: impl Fn(u32) -> bool,
) -> Result<BTreeSet<String>, EngineError> {
    let full = |name: &str| format!("CAP_{name}");
    let held_names = || (0u32..).zip(ALL).filter(|(number, _)| held(*number)).map(|(_, name)| full(name));
    if privileged || security.privileged {
        return Ok(held_names().collect());
    }
    let mut set: BTreeSet<String> = DEFAULT.iter().map(|name| full(name)).collect();
    let dropped = parse_all(&security.drop_capabilities)?;
    let added = parse_all(&security.add_capabilities)?;
    if dropped.contains(&"ALL") {
        set.clear();
    }
    if added.contains(&"ALL") {
        set.extend(held_names());
    }
    for name in dropped.iter().filter(|name| **name != "ALL") {
        set.remove(&full(name));
    }
    set.extend(added.iter().filter(|name| **name != "ALL").map(|name| full(name)));
    Ok(set)
}

/// Names as users write them: any case, with or without `CAP_`.
fn parse_all(names: &[String]) -> Result<Vec<&'static str>, EngineError> {
    names
        .iter()
        .map(|name| {
            let upper = name.to_ascii_uppercase();
            let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
            let known = ALL.iter().copied().chain(["ALL"]).find(|known| *known == short);
            known.ok_or_else(|| {
                EngineError::invalid(format!("unknown capability `{name}`: see capabilities(7)"))
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn sets_are_added_to_and_dropped_from() {
        let resolve = |add: &[&str], drop: &[&str]| {
            let security = Security {
                add_capabilities: names(add),
                drop_capabilities: names(drop),
                ..Security::default()
            };
            resolve(&security, false, |_| true)
        };
        assert_eq!(resolve(&[], &[]).unwrap().len(), 14);
        assert_eq!(
            resolve(&["net_bind_service"], &["ALL"]).unwrap(),
            BTreeSet::from(["CAP_NET_BIND_SERVICE".into()])
        );
        assert_eq!(resolve(&["ALL"], &["CAP_SYS_ADMIN"]).unwrap().len(), 40);
        assert!(!resolve(&[], &["net_raw"]).unwrap().contains("CAP_NET_RAW"));
        assert!(resolve(&["NONSENSE"], &[]).is_err());
    }

    #[test]
    fn privileged_gets_what_is_held() {
        let security = Security { privileged: true, ..Security::default() };
        assert!(!resolve(&security, false, |number| number != 24).unwrap().contains("CAP_SYS_RESOURCE"));
    }
}
