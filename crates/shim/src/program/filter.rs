//! System call filters, compiled once per profile.
//!
//! Compiling one takes libseccomp as long as everything else that starts a container. So the program of each profile is
//! kept beside the shim's executable, together with the profile that it was made from, and loaded from there.

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompFilterFlag, LinuxSeccompOperator, LinuxSyscall,
};
use libseccomp::error::SeccompError;
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use rustix::fs::MemfdFlags;
use sys::seccomp::Filter;

/// The filter of a profile, from `directory` if it is kept there, and kept there from now on.
///
/// # Errors
/// If the profile asks for what there is not: an architecture or an action that libseccomp does not know.
pub(crate) fn compiled(profile: &LinuxSeccomp, directory: &Path) -> io::Result<Filter> {
    // One line of JSON, so that the first line feed ends it.
    let mut kept = serde_json::to_vec(profile)?;
    kept.push(b'\n');
    let file = file_of(&kept, directory);
    let known = std::fs::read(&file).ok();
    let program = match known.as_deref().and_then(|known| known.strip_prefix(kept.as_slice())) {
        Some(program) => program.to_vec(),
        None => {
            let program = export(&compile(profile).map_err(io::Error::other)?)?;
            kept.extend_from_slice(&program);
            // It only saves time: without room for it containers start all the same.
            let _ = sys::files::write_atomic(&file, &kept);
            program
        }
    };
    let has = |flag| profile.flags().iter().flatten().any(|known| *known == flag);
    Ok(Filter {
        program,
        log: has(LinuxSeccompFilterFlag::SeccompFilterFlagLog),
        allow_speculation: has(LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow),
    })
}

fn file_of(profile: &[u8], directory: &Path) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    profile.hash(&mut hasher);
    directory.join(format!("seccomp-{:016x}", hasher.finish()))
}

/// Source: OCI Runtime Specification, `config-linux.md`, "Seccomp".
fn compile(profile: &LinuxSeccomp) -> Result<ScmpFilterContext, SeccompError> {
    let default = action(profile.default_action(), profile.default_errno_ret());
    let mut context = ScmpFilterContext::new(default)?;
    for known in profile.architectures().iter().flatten() {
        context.add_arch(architecture(*known))?;
    }
    for rule in profile.syscalls().iter().flatten() {
        let action = action(rule.action(), rule.errno_ret());
        if action == default {
            // libseccomp refuses what the default says already.
            continue;
        }
        let conditions = conditions(rule);
        for name in rule.names() {
            // A name that libseccomp does not know is none of this kernel's: nothing can be said about it.
            let Ok(call) = ScmpSyscall::from_name(name) else { continue };
            for together in &conditions {
                context.add_rule_conditional(action, call, together)?;
            }
        }
    }
    Ok(context)
}

/// The program itself.
fn export(context: &ScmpFilterContext) -> io::Result<Vec<u8>> {
    // libseccomp writes it to a descriptor only.
    let mut memory = File::from(rustix::fs::memfd_create("seccomp", MemfdFlags::CLOEXEC)?);
    context.export_bpf(&memory).map_err(io::Error::other)?;
    memory.rewind()?;
    let mut program = Vec::new();
    memory.read_to_end(&mut program)?;
    Ok(program)
}

/// What has to hold for a rule: any of these sets, all of its members. libseccomp compares an argument only once per
/// rule, so a rule that names one twice becomes a rule for each comparison, as other runtimes read it.
fn conditions(rule: &LinuxSyscall) -> Vec<Vec<ScmpArgCompare>> {
    let arguments = rule.args().as_deref().unwrap_or_default();
    let one = |position: usize| {
        let argument = &arguments[position];
        let (value, second) = (argument.value(), argument.value_two().unwrap_or(0));
        let (operator, value) = match argument.op() {
            LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, value),
            LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, value),
            LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, value),
            LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, value),
            LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, value),
            LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, value),
            // `value` is the mask, `valueTwo` what has to be left of the argument under it.
            LinuxSeccompOperator::ScmpCmpMaskedEq => (ScmpCompareOp::MaskedEqual(value), second),
        };
        ScmpArgCompare::new(u32::try_from(argument.index()).unwrap_or(u32::MAX), operator, value)
    };
    let comparisons = (0..arguments.len()).map(one);
    let twice = (1..arguments.len())
        .any(|later| arguments[..later].iter().any(|known| known.index() == arguments[later].index()));
    if twice { comparisons.map(|one| vec![one]).collect() } else { vec![comparisons.collect()] }
}

fn action(action: LinuxSeccompAction, answer: Option<u32>) -> ScmpAction {
    let answer = answer.unwrap_or(rustix::io::Errno::PERM.raw_os_error().unsigned_abs());
    match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => ScmpAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(i32::try_from(answer).unwrap_or(i32::MAX)),
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(u16::try_from(answer).unwrap_or(u16::MAX)),
        LinuxSeccompAction::ScmpActNotify => ScmpAction::Notify,
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
    }
}

fn architecture(architecture: Arch) -> ScmpArch {
    match architecture {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchMips => ScmpArch::Mips,
        Arch::ScmpArchMips64 => ScmpArch::Mips64,
        Arch::ScmpArchMips64n32 => ScmpArch::Mips64N32,
        Arch::ScmpArchMipsel => ScmpArch::Mipsel,
        Arch::ScmpArchMipsel64 => ScmpArch::Mipsel64,
        Arch::ScmpArchMipsel64n32 => ScmpArch::Mipsel64N32,
        Arch::ScmpArchPpc => ScmpArch::Ppc,
        Arch::ScmpArchPpc64 => ScmpArch::Ppc64,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        Arch::ScmpArchS390 => ScmpArch::S390,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        Arch::ScmpArchParisc => ScmpArch::Parisc,
        Arch::ScmpArchParisc64 => ScmpArch::Parisc64,
        Arch::ScmpArchLoongarch64 => ScmpArch::Loongarch64,
        Arch::ScmpArchM68k => ScmpArch::M68k,
        Arch::ScmpArchSh => ScmpArch::Sh,
        Arch::ScmpArchSheb => ScmpArch::Sheb,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ALLOW: u32 = 0x7fff_0000;
    const ERRNO: u32 = 0x0005_0000;
    const CLONE: &str = "clone";
    const NAMESPACES: u64 = 0x7e02_0000;

    /// What the kernel would answer to a native call: an interpreter of the few instructions that filters are made of.
    fn answer(filter: &Filter, call: &str, arguments: &[u64]) -> u32 {
        let number = i32::from(ScmpSyscall::from_name(call).unwrap());
        let mut data = [0u8; 64];
        data[..4].copy_from_slice(&number.to_ne_bytes());
        data[4..8].copy_from_slice(&0xc000_003e_u32.to_ne_bytes());
        for (position, argument) in arguments.iter().enumerate() {
            data[16 + position * 8..24 + position * 8].copy_from_slice(&argument.to_ne_bytes());
        }
        let (instructions, _) = filter.program.as_chunks::<8>();
        let (mut at, mut value) = (0, 0u32);
        loop {
            let [code0, code1, yes, no, k @ ..] = instructions[at];
            let k = u32::from_ne_bytes(k);
            let jump = |holds: bool| usize::from(if holds { yes } else { no });
            at += 1;
            match u16::from_ne_bytes([code0, code1]) {
                0x20 => value = u32::from_ne_bytes(data[k as usize..k as usize + 4].try_into().unwrap()),
                0x05 => at += k as usize,
                0x15 => at += jump(value == k),
                0x25 => at += jump(value > k),
                0x35 => at += jump(value >= k),
                0x45 => at += jump(value & k != 0),
                0x54 => value &= k,
                0x06 => return k,
                code => panic!("instruction {code:#x}"),
            }
        }
    }

    fn profile(rules: serde_json::Value) -> LinuxSeccomp {
        let profile = json!({
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"], "syscalls": rules,
        });
        serde_json::from_value(profile).unwrap()
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn rules_hold_and_a_filter_is_compiled_once() {
        let rules = json!([
            {"names": ["read", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
            {"names": ["ptrace"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
            {"names": [CLONE], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
            {"names": ["personality"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
            {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_NE"}]},
        ]);
        let directory = tempfile::tempdir().unwrap();
        let filter = compiled(&profile(rules.clone()), directory.path()).unwrap();
        assert!(filter.log && !filter.allow_speculation);
        for (call, arguments, wanted) in [
            ("read", [0, 0], ALLOW),
            ("write", [0, 0], ERRNO | 38),
            ("mount", [0, 0], ERRNO | 1),
            ("ptrace", [0, 0], ERRNO | 38),
            (CLONE, [0x11, 0], ALLOW),
            (CLONE, [0x1000_0011, 0], ERRNO | 38),
            ("personality", [8, 0], ALLOW),
            ("personality", [7, 0], ERRNO | 38),
            ("socket", [2, 40], ALLOW),
            ("socket", [40, 2], ERRNO | 38),
        ] {
            assert_eq!(answer(&filter, call, &arguments), wanted, "{call} {arguments:?}");
        }
        let kept = std::fs::read_dir(directory.path()).unwrap().next().unwrap().unwrap().path();
        // What is kept is what is loaded, as long as it was made from the same profile.
        let mut bytes = std::fs::read(&kept).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&kept, &bytes).unwrap();
        let again = compiled(&profile(rules.clone()), directory.path()).unwrap();
        assert_eq!(again.program[..], bytes[bytes.len() - again.program.len()..]);
        bytes[2] ^= 1;
        std::fs::write(&kept, &bytes).unwrap();
        assert_eq!(compiled(&profile(rules), directory.path()).unwrap(), filter);
    }
}
