//! Who runs a process: names looked up in the container's own `/etc/passwd` and `/etc/group`.

use std::path::Path;

use engine_api::EngineError;

/// The largest file of users or groups that is read.
const FILE_MAX_BYTES: u64 = 4 << 20;

/// A user by numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ResolvedUser {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Groups beside the primary one, sorted.
    pub(crate) additional_gids: Vec<u32>,
    /// The home directory, where a line names it.
    pub(crate) home: Option<String>,
}

/// The user that a container asks for over its image's: as it says; the image's where it says nothing; the image's user
/// with another group where it names only that (`:group`). Nobody becomes root by naming a group.
pub(crate) fn over_image(wanted: &str, image: &str) -> String {
    match wanted.strip_prefix(':') {
        Some(group) => format!("{}:{group}", image.split(':').next().unwrap_or_default()),
        None if wanted.is_empty() => image.to_owned(),
        None => wanted.to_owned(),
    }
}

/// Resolves `user[:group]` in a root file system; empty means uid 0.
pub(crate) fn lookup(rootfs: &Path, spec: &str) -> Result<ResolvedUser, EngineError> {
    resolve(spec, &read(rootfs, "/etc/passwd")?, &read(rootfs, "/etc/group")?)
}

/// Resolves groups by number or name in a root file system.
pub(crate) fn lookup_groups(rootfs: &Path, wanted: &[String]) -> Result<Vec<u32>, EngineError> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let file = read(rootfs, "/etc/group")?;
    wanted.iter().map(|wanted| resolve_group(wanted, &file)).collect()
}

/// A file of the container's; missing is empty. Links lead nowhere outside of the container.
fn read(rootfs: &Path, path: &str) -> Result<String, EngineError> {
    let contents = sys::files::open_in_root(rootfs, Path::new(path))
        .and_then(|file| sys::files::read_bounded(file, FILE_MAX_BYTES));
    match contents {
        Ok(contents) => Ok(String::from_utf8_lossy(&contents).into_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(EngineError::internal(&format!("reading {path} of the container"), &error)),
    }
}

/// Docker's rules: a number needs no entry (its group is then 0), a name does; a given group is the only one.
fn resolve(spec: &str, passwd: &str, group: &str) -> Result<ResolvedUser, EngineError> {
    let (user, given_group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (spec, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = user.parse::<u32>().ok();
    let line = passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let (name, uid, gid) = (fields.first()?, fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?);
        let matches = *name == user || number == Some(uid);
        matches.then(|| (name.to_string(), uid, gid, fields.get(5).map(|home| home.to_string())))
    });
    let mut resolved = match (line.as_ref(), number) {
        (Some((_, uid, gid, home)), _) => {
            ResolvedUser { uid: *uid, gid: *gid, home: home.clone(), ..ResolvedUser::default() }
        }
        (None, Some(uid)) => ResolvedUser { uid, ..ResolvedUser::default() },
        (None, None) => {
            return Err(EngineError::invalid(format!(
                "unable to find user {user}: no matching entries in passwd file"
            )));
        }
    };
    match given_group {
        Some(wanted) => resolved.gid = resolve_group(wanted, group)?,
        None => {
            let name = line.map(|(name, ..)| name).unwrap_or_default();
            resolved.additional_gids = groups_of(&name, group);
            resolved.additional_gids.retain(|gid| *gid != resolved.gid);
        }
    }
    Ok(resolved)
}

fn resolve_group(wanted: &str, group: &str) -> Result<u32, EngineError> {
    let named = group.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == wanted).then(|| fields.nth(1)?.parse().ok()).flatten()
    });
    named.or_else(|| wanted.parse().ok()).ok_or_else(|| {
        EngineError::invalid(format!("unable to find group {wanted}: no matching entries in group file"))
    })
}

/// The groups that list a user as a member, sorted.
fn groups_of(name: &str, group: &str) -> Vec<u32> {
    let mut gids: Vec<u32> = group
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let member = fields.get(3)?.split(',').any(|member| !name.is_empty() && member == name);
            member.then(|| fields[2].parse().ok()).flatten()
        })
        .collect();
    gids.sort_unstable();
    gids.dedup();
    gids
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/srv:/bin/sh\nbroken\n";
    const GROUP: &str = "root:x:0:\napp:x:1001:\ndocker:x:50:app,other\nweb:x:60:app\n";

    #[test]
    fn a_group_alone_keeps_the_images_user() {
        for (wanted, image, user) in [
            ("", "app:web", "app:web"),
            ("", "", ""),
            ("7", "app:web", "7"),
            (":8", "app", "app:8"),
            (":8", "app:web", "app:8"),
            (":8", "", ":8"),
            (":", "app:web", "app:"),
        ] {
            assert_eq!(over_image(wanted, image), user, "{wanted} over {image}");
        }
    }

    #[test]
    fn users_and_groups_are_found_by_name_and_number() {
        let resolve = |spec| resolve(spec, PASSWD, GROUP);
        let app =
            ResolvedUser { uid: 1000, gid: 1001, additional_gids: vec![50, 60], home: Some("/srv".into()) };
        assert_eq!(resolve("app").unwrap(), app);
        assert_eq!(resolve("1000").unwrap(), app);
        let root = resolve("").unwrap();
        assert_eq!((root.uid, root.gid, root.home.as_deref()), (0, 0, Some("/root")));
        let unknown = resolve("4711").unwrap();
        assert_eq!((unknown.uid, unknown.gid), (4711, 0));
        let grouped = resolve("app:docker").unwrap();
        assert_eq!((grouped.gid, grouped.additional_gids.as_slice()), (50, &[][..]));
        assert_eq!(resolve("7:8").unwrap().gid, 8);
        for bad in ["nobody", "app:nogroup", "99999999999"] {
            assert!(resolve(bad).is_err(), "{bad}");
        }
    }
}
