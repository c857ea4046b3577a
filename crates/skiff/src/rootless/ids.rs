//! Which user ids the namespace has: the user's own as root, and those that an administrator gave the user.
//!
//! Sources: user_namespaces(7), subuid(5), newuidmap(1). Only a program with rights may give more than one's own id.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

/// So many ids are what images are made for: those below it, `nobody` among them.
const ENOUGH: u32 = 65_536;
/// The largest file that is read.
const FILE_MAX: u64 = 4 << 20;

/// The ids of one kind: ranges of the host's beside the user's own.
pub(super) type Ranges = Vec<(u32, u32)>;

/// What a user has.
#[derive(Debug)]
pub(super) struct Ids {
    uid: u32,
    gid: u32,
    more: Result<(Ranges, Ranges), Lack>,
}

/// Why a user has no more than one id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lack {
    /// The programs are missing.
    Programs,
    /// The user has no ranges.
    Ranges,
}

impl Ids {
    pub(super) fn of_this_user() -> Self {
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let name = own_name().unwrap_or_default();
        let subuid = ranges(&read("/etc/subuid"), &name, uid);
        let subgid = ranges(&read("/etc/subgid"), &name, uid);
        let more = if subuid.is_empty() || subgid.is_empty() {
            Err(Lack::Ranges)
        } else if ["newuidmap", "newgidmap"].iter().any(|program| super::outward::find(program).is_none()) {
            Err(Lack::Programs)
        } else {
            Ok((subuid, subgid))
        };
        Self { uid, gid, more }
    }

    /// How many there are, as an argument of the keeper's: [`state_of`] reads it.
    pub(super) fn state(&self) -> &'static str {
        match &self.more {
            Ok((uids, gids)) if [uids, gids].into_iter().all(|ranges| count(ranges) >= ENOUGH - 1) => "many",
            Ok(_) => "few",
            Err(Lack::Programs) => "no-programs",
            Err(Lack::Ranges) => "no-ranges",
        }
    }

    /// Gives them to the user namespace of a process.
    pub(super) fn give(&self, pid: u32) -> io::Result<()> {
        match &self.more {
            Ok((uids, gids)) => {
                map_with("newuidmap", pid, self.uid, uids)?;
                map_with("newgidmap", pid, self.gid, gids)
            }
            Err(_) => {
                // Nobody may leave a group by which something is forbidden: user_namespaces(7), "setgroups".
                std::fs::write(format!("/proc/{pid}/setgroups"), "deny")?;
                std::fs::write(format!("/proc/{pid}/uid_map"), format!("0 {} 1", self.uid))?;
                std::fs::write(format!("/proc/{pid}/gid_map"), format!("0 {} 1", self.gid))
            }
        }
    }
}

fn read(path: &str) -> String {
    let file = std::fs::File::open(path).and_then(|file| sys::files::read_bounded(file, FILE_MAX));
    file.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// This user's name, where /etc/passwd has it.
pub(super) fn own_name() -> Option<String> {
    name_of(&read("/etc/passwd"), rustix::process::getuid().as_raw())
}

/// The name of a user. Source: passwd(5).
fn name_of(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// A user's ranges, by name or number. Source: subuid(5).
fn ranges(text: &str, name: &str, uid: u32) -> Ranges {
    let of_line = |line: &str| {
        let mut fields = line.trim().split(':');
        let owner = fields.next().filter(|owner| !owner.is_empty())?;
        let range = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        (range.1 > 0 && (owner == name || owner.parse() == Ok(uid))).then_some(range)
    };
    text.lines().filter_map(of_line).collect()
}

fn count(ranges: &[(u32, u32)]) -> u32 {
    ranges.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
}

/// The arguments of newuidmap(1): the user is root, the ranges follow from 1 on.
fn arguments(pid: u32, own: u32, ranges: &[(u32, u32)]) -> Vec<String> {
    let mut words = vec![pid.to_string(), "0".into(), own.to_string(), "1".into()];
    let mut next = 1_u32;
    for (first, count) in ranges {
        let Some(after) = next.checked_add(*count) else { break };
        words.extend([next.to_string(), first.to_string(), count.to_string()]);
        next = after;
    }
    words
}

fn map_with(program: &str, pid: u32, own: u32, ranges: &[(u32, u32)]) -> io::Result<()> {
    let path = super::outward::find(program).unwrap_or_else(|| Path::new(program).to_owned());
    let output = Command::new(path).args(arguments(pid, own, ranges)).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{program} gives no ids: {}", why.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_name_and_by_number() {
        let text = "root:1:2\nana:100000:65536\n1000:300000:10\n# comment\nbroken:x:1\nana:5:0\n:7:7\n";
        assert_eq!(ranges(text, "ana", 1000), [(100_000, 65_536), (300_000, 10)]);
        assert_eq!(ranges(text, "", 1001), []);
        assert_eq!(name_of("root:x:0:0::/:/bin/sh\nana:x:1000:7::/h:/bin/sh\n", 1000).unwrap(), "ana");
    }

    #[test]
    fn the_user_is_root_and_ranges_follow_without_gap() {
        let words = arguments(7, 1000, &[(100_000, 10), (300_000, 5)]);
        assert_eq!(words.join(" "), "7 0 1000 1 1 100000 10 11 300000 5");
        let state = |more| Ids { uid: 1, gid: 1, more }.state();
        assert_eq!(state(Ok((vec![(1, 65_535)], vec![(1, 65_535)]))), "many");
        assert_eq!(state(Ok((vec![(1, 65_535)], vec![(1, 10)]))), "few");
        assert_eq!(state(Err(Lack::Programs)), "no-programs");
    }
}
