//! System call filters (seccomp(2)).

use std::io;

/// A filter and how it is loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// The program: classic BPF instructions of eight bytes each, in the machine's byte order.
    pub program: Vec<u8>,
    /// Calls that are refused are also logged.
    pub log: bool,
    /// The mitigation of speculative store bypass stays off.
    pub allow_speculation: bool,
}

impl Filter {
    /// Puts this thread, and what it executes from now on, under the filter. Needs `CAP_SYS_ADMIN` or
    /// `no_new_privs`. A program that the kernel finds malformed is refused.
    pub fn load(&self) -> io::Result<()> {
        let (instructions, rest) = self.program.as_chunks::<8>();
        let length = u16::try_from(instructions.len());
        let (Ok(length), []) = (length, rest) else { return Err(io::ErrorKind::InvalidInput.into()) };
        let mut filter: Vec<libc::sock_filter> = instructions
            .iter()
            .map(|[code0, code1, jt, jf, k @ ..]| libc::sock_filter {
                code: u16::from_ne_bytes([*code0, *code1]),
                jt: *jt,
                jf: *jf,
                k: u32::from_ne_bytes(*k),
            })
            .collect();
        let program = libc::sock_fprog { len: length, filter: filter.as_mut_ptr() };
        let mut flags = 0;
        if self.log {
            flags |= libc::SECCOMP_FILTER_FLAG_LOG;
        }
        if self.allow_speculation {
            flags |= libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
        }
        // SAFETY: `program` points to `length` instructions that outlive the call; the kernel copies them.
        let result = unsafe {
            libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `return action`, as an instruction.
    fn answer(action: u32) -> Vec<u8> {
        let code = u16::try_from(libc::BPF_RET | libc::BPF_K).unwrap();
        [&code.to_ne_bytes()[..], &[0, 0], &action.to_ne_bytes()].concat()
    }

    #[test]
    fn a_filter_takes_hold_and_nonsense_is_refused() {
        // A thread of its own: a filter stays for life.
        let refused = std::thread::spawn(|| {
            assert!(rustix::thread::set_no_new_privs(true).is_ok());
            let cut = Filter { program: vec![0; 12], ..Filter::default() };
            assert_eq!(cut.load().unwrap_err().kind(), io::ErrorKind::InvalidInput);
            assert!(Filter::default().load().is_err());
            let allow = Filter { program: answer(libc::SECCOMP_RET_ALLOW), ..Filter::default() };
            allow.load().unwrap();
            // Loads the number of the call; getppid is answered with an error, everything else is allowed.
            let load = u16::try_from(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS).unwrap();
            let jump = u16::try_from(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K).unwrap();
            let number = u32::try_from(libc::SYS_getppid).unwrap();
            let program = [
                [&load.to_ne_bytes()[..], &[0, 0], &0u32.to_ne_bytes()].concat(),
                [&jump.to_ne_bytes()[..], &[0, 1], &number.to_ne_bytes()].concat(),
                answer(libc::SECCOMP_RET_ERRNO | 95),
                answer(libc::SECCOMP_RET_ALLOW),
            ];
            Filter { program: program.concat(), log: true, allow_speculation: true }.load().unwrap();
            // SAFETY: getppid takes no arguments.
            let answered = unsafe { libc::syscall(libc::SYS_getppid) };
            (answered, io::Error::last_os_error().raw_os_error())
        });
        assert_eq!(refused.join().unwrap(), (-1, Some(95)));
    }
}
