//! Which devices the processes of a version 2 cgroup may use: there the kernel asks an eBPF program of the group, as the
//! `devices` controller is one of version 1 only.
//!
//! Source: Linux, `Documentation/admin-guide/cgroup-v2.rst`, "Device controller"; bpf(2); OCI runtime specification,
//! "Default Devices".

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;

/// Block or character devices.
const BLOCK: u32 = 1;
const CHARACTER: u32 = 2;
/// What is done with a device: made, read, written.
const MAKE: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const ANY: u32 = MAKE | READ | WRITE;

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
/// Programs of the groups above are asked too, and each has to agree.
const ALLOW_MULTI: u32 = 2;

/// A rule that allows something; what no rule allows is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    kind: u32,
    /// Every bit that the rule allows.
    access: u32,
    major: Option<u32>,
    minor: Option<u32>,
}

impl Rule {
    /// Allows the use of one device, as far as `access` says: `r` reads, `w` writes, `m` makes nodes of it.
    pub fn device(node: &crate::host::DeviceNode, access: &str) -> Self {
        let bits = [('m', MAKE), ('r', READ), ('w', WRITE)];
        let access = bits.iter().filter(|(letter, _)| access.contains(*letter)).map(|(_, bit)| bit).sum();
        let kind = if node.character { CHARACTER } else { BLOCK };
        Self { kind, access, major: Some(node.major), minor: Some(node.minor) }
    }
}

const fn character(major: u32, minor: Option<u32>) -> Rule {
    Rule { kind: CHARACTER, access: ANY, major: Some(major), minor }
}

/// What every container may use: null, zero, full, random, urandom, tty, console, ptmx and pseudo-terminals; and make
/// any node, which alone opens nothing.
const DEFAULT: [Rule; 11] = [
    character(1, Some(3)),
    character(1, Some(5)),
    character(1, Some(7)),
    character(1, Some(8)),
    character(1, Some(9)),
    character(5, Some(0)),
    character(5, Some(1)),
    character(5, Some(2)),
    character(136, None),
    Rule { kind: CHARACTER, access: MAKE, major: None, minor: None },
    Rule { kind: BLOCK, access: MAKE, major: None, minor: None },
];

/// Confines the processes of the version 2 cgroup at `group` to the default devices, and what `more` allows. It stays
/// until the group is removed; the groups below it are confined too.
pub fn confine(group: &Path, more: &[Rule]) -> io::Result<()> {
    let program = load(&assemble(DEFAULT.iter().chain(more)))?;
    let group = std::fs::File::open(group)?;
    let mut attributes = AttachAttributes {
        target_fd: group.as_raw_fd() as u32,
        attach_bpf_fd: program.as_raw_fd() as u32,
        attach_type: ATTACH_CGROUP_DEVICE,
        attach_flags: ALLOW_MULTI,
    };
    // SAFETY: the attributes are those of PROG_ATTACH, and of the length that is told.
    unsafe { bpf(PROG_ATTACH, (&raw mut attributes).cast(), size_of::<AttachAttributes>()) }.map(drop)
}

/// An instruction of eBPF as the kernel reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
struct Instruction {
    code: u8,
    /// Destination in the low half, source in the high one.
    registers: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    const fn new(code: u8, registers: u8, offset: i16, immediate: u32) -> Self {
        Self { code, registers, offset, immediate: immediate.cast_signed() }
    }
}

/// Loads 32 bits at an offset of the context (register 1) into a register.
const fn load_word(register: u8, offset: i16) -> Instruction {
    Instruction::new(0x61, 0x10 | register, offset, 0)
}

/// Goes on `distance` instructions further unless a register has this value.
const fn unless_equal(register: u8, value: u32, distance: i16) -> Instruction {
    Instruction::new(0x55, register, distance, value)
}

const fn answer(allowed: u32) -> [Instruction; 2] {
    [Instruction::new(0xb7, 0, 0, allowed), Instruction::new(0x95, 0, 0, 0)]
}

/// The program of a list of rules. The context is `{ access << 16 | kind, major, minor }`, 32 bits each.
fn assemble<'r>(rules: impl Iterator<Item = &'r Rule>) -> Vec<Instruction> {
    let mut program = vec![
        load_word(2, 0),
        // r3 = kind, r2 = access
        Instruction::new(0xbc, 0x20 | 3, 0, 0),
        Instruction::new(0x54, 3, 0, 0xffff),
        Instruction::new(0x74, 2, 0, 16),
        load_word(4, 4),
        load_word(5, 8),
    ];
    for rule in rules {
        let mut conditions = vec![(3, rule.kind)];
        conditions.extend(rule.major.map(|major| (4, major)));
        conditions.extend(rule.minor.map(|minor| (5, minor)));
        let mut body: Vec<Instruction> = Vec::new();
        if rule.access != ANY {
            // What is asked beside what is allowed has to be nothing: r6 = access & !allowed
            body.push(Instruction::new(0xbc, 0x20 | 6, 0, 0));
            body.push(Instruction::new(0x54, 6, 0, ANY & !rule.access));
            body.push(unless_equal(6, 0, 2));
        }
        body.extend(answer(1));
        let steps = conditions.len() + body.len();
        for (index, (register, value)) in conditions.into_iter().enumerate() {
            // Over the rest of this rule; a rule has less than ten steps.
            program.push(unless_equal(register, value, (steps - index - 1) as i16));
        }
        program.extend(body);
    }
    program.extend(answer(0));
    program
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let license = c"Apache-2.0";
    let mut attributes = LoadAttributes {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: program.len() as u32,
        insns: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log: [0; 4],
    };
    // SAFETY: the attributes are those of PROG_LOAD and of the length that is told; program and license live through the
    // call, which copies both.
    let fd = unsafe { bpf(PROG_LOAD, (&raw mut attributes).cast(), size_of::<LoadAttributes>()) }?;
    // SAFETY: the kernel just made this descriptor for the caller.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The beginning of `union bpf_attr` for `BPF_PROG_LOAD`; what follows counts as zero.
#[repr(C)]
struct LoadAttributes {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    /// Level and size, buffer, kernel version: unused.
    log: [u64; 4],
}

/// The beginning of `union bpf_attr` for `BPF_PROG_ATTACH`.
#[repr(C)]
struct AttachAttributes {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// bpf(2).
///
/// # Safety
///
/// `attributes` points to what `command` takes, `size` bytes long, with valid pointers inside.
unsafe fn bpf(command: libc::c_int, attributes: *mut libc::c_void, size: usize) -> io::Result<i32> {
    // SAFETY: what the caller promises.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program as the kernel would, for the instructions that there are.
    fn run(program: &[Instruction], kind: u32, access: u32, major: u32, minor: u32) -> u32 {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0u32; 11];
        let mut at = 0;
        loop {
            let instruction = program[at];
            let (to, from) =
                (usize::from(instruction.registers & 15), usize::from(instruction.registers >> 4));
            let immediate = instruction.immediate.cast_unsigned();
            at += 1;
            match instruction.code {
                0x61 => registers[to] = context[instruction.offset as usize / 4],
                0xbc => registers[to] = registers[from],
                0x54 => registers[to] &= immediate,
                0x74 => registers[to] >>= immediate,
                0xb7 => registers[to] = immediate,
                0x55 if registers[to] != immediate => at += instruction.offset as usize,
                0x55 => {}
                0x95 => return registers[0],
                code => panic!("instruction {code:#x}"),
            }
        }
    }

    #[test]
    fn the_default_devices_may_be_used_and_nothing_else() {
        let disk = crate::host::DeviceNode { major: 7, minor: 3, ..crate::host::DeviceNode::default() };
        let given = [Rule::device(&disk, "r")];
        let program = assemble(DEFAULT.iter().chain(&given));
        let (read, write) = (READ, WRITE);
        for (kind, access, major, minor, allowed) in [
            (BLOCK, read, 7, 3, 1),
            (BLOCK, read | write, 7, 3, 0),
            (BLOCK, read, 7, 4, 0),
            (CHARACTER, read, 7, 3, 0),
            (CHARACTER, read | write, 1, 3, 1),
            (CHARACTER, ANY, 136, 77, 1),
            (CHARACTER, read, 1, 1, 0),
            (CHARACTER, MAKE, 1, 1, 1),
            (CHARACTER, MAKE | read, 1, 1, 0),
            (BLOCK, MAKE, 8, 0, 1),
            (BLOCK, read, 8, 0, 0),
            (BLOCK, read, 1, 3, 0),
            (BLOCK, write, 136, 0, 0),
        ] {
            assert_eq!(run(&program, kind, access, major, minor), allowed, "{kind} {access} {major}:{minor}");
        }
    }

    #[test]
    fn the_kernel_asks_the_program() {
        let table = crate::mount::MountTable::own().unwrap();
        let Some(root) = table.entries().iter().find(|entry| entry.fs_type == "cgroup2") else {
            panic!("no cgroup2 hierarchy is mounted: this test needs one")
        };
        let group = root.target.join(format!("skiff-device-test-{}", std::process::id()));
        std::fs::create_dir(&group).unwrap();
        let confined = confine(&group, &[]);
        let script = "echo $$ > \"$0\"/cgroup.procs && echo x > /dev/null && ! head -c1 /dev/kmsg";
        let status = std::process::Command::new("sh").args(["-c", script]).arg(&group).status();
        std::fs::remove_dir(&group).unwrap();
        confined.unwrap();
        assert!(status.unwrap().success());
    }
}
