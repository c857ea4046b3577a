//! The default system call filter, as an OCI document made from a data file and a set of capabilities.

use serde::Deserialize;
use serde_json::{Value, json};

use std::collections::{BTreeMap, BTreeSet};

use engine_api::EngineError;

/// clone(2)'s flags that make namespaces: NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
const NAMESPACE_FLAGS: u64 = 0x7e02_0000;
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
/// vsock(7): reaches the hypervisor past every network namespace.
const AF_VSOCK: u64 = 40;
/// Personalities that change nothing a kernel check relies on: PER_LINUX, PER_LINUX32, UNAME26 and both, and asking.
const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

#[derive(Deserialize)]
struct Lists {
    allow: BTreeSet<String>,
    deny: BTreeSet<String>,
    with_capability: BTreeMap<String, BTreeSet<String>>,
}

/// The filter for a process that holds `capabilities` (`CAP_…`).
pub(crate) fn default_profile(capabilities: &BTreeSet<String>) -> Result<Value, EngineError> {
    let lists: Lists = serde_json::from_str(include_str!("data/seccomp.json"))
        .map_err(|error| EngineError::internal("reading the built-in system call filter", &error))?;
    let mut allow = lists.allow;
    for (capability, calls) in lists.with_capability {
        if capabilities.contains(&capability) {
            allow.extend(calls);
        }
    }
    let deny: BTreeSet<String> = lists.deny.difference(&allow).cloned().collect();
    let mut rules = vec![
        json!({"names": allow, "action": "SCMP_ACT_ALLOW"}),
        json!({"names": deny, "action": "SCMP_ACT_ERRNO", "errnoRet": EPERM}),
        json!({"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": AF_VSOCK, "op": "SCMP_CMP_NE"}]}),
    ];
    for personality in PERSONALITIES {
        let argument = json!({"index": 0, "value": personality, "op": "SCMP_CMP_EQ"});
        rules.push(json!({"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [argument]}));
    }
    if capabilities.contains("CAP_SYS_ADMIN") {
        rules.push(json!({"names": ["clone"], "action": "SCMP_ACT_ALLOW"}));
    } else {
        // The library reads `value` as the mask and `valueTwo` as what is left of the argument under it.
        let argument =
            json!({"index": 0, "value": NAMESPACE_FLAGS, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"});
        rules.push(json!({"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [argument]}));
        // Its flags lie in memory, where a filter cannot look: programs fall back to clone.
        rules.push(json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS}));
    }
    Ok(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": ENOSYS,
        "architectures": architectures(),
        "syscalls": rules,
    }))
}

/// This machine's architecture with the narrower ones that its kernel runs too.
fn architectures() -> &'static [&'static str] {
    match std::env::consts::ARCH {
        "x86_64" => &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "aarch64" => &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
        _ => &["SCMP_ARCH_NATIVE"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(profile: &Value, call: &str) -> Vec<String> {
        let rules = profile["syscalls"].as_array().unwrap();
        let named = |rule: &&Value| rule["names"].as_array().unwrap().iter().any(|name| name == call);
        rules.iter().filter(named).map(|rule| rule["action"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn dangerous_calls_need_their_capability() {
        let none = default_profile(&BTreeSet::new()).unwrap();
        for call in ["mount", "unshare", "setns", "kexec_load", "bpf", "keyctl", "pivot_root", "userfaultfd"]
        {
            assert_eq!(answer(&none, call), ["SCMP_ACT_ERRNO"], "{call}");
        }
        let admin = default_profile(&BTreeSet::from(["CAP_SYS_ADMIN".to_owned()])).unwrap();
        for call in ["mount", "unshare", "clone3", "clone"] {
            assert_eq!(answer(&admin, call), ["SCMP_ACT_ALLOW"], "{call}");
        }
        assert_eq!(answer(&admin, "kexec_load"), ["SCMP_ACT_ERRNO"]);
        assert_eq!(answer(&none, "read"), ["SCMP_ACT_ALLOW"]);
        assert!(answer(&none, "no_such_call").is_empty());
    }
}
