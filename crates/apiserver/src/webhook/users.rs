//! As whom the API server asks a webhook: the users of a file in kubeconfig format, each named like those who are asked.
//! Source: `apiserver/pkg/util/webhook/authentication.go`.

use std::path::{Path, PathBuf};

use reqwest::Identity;

use crate::remote::{Credentials, FileError, Kubeconfig, User, directory_of};

/// A user, and where the files lie that it names.
#[derive(Default)]
pub(super) struct Known {
    user: User,
    directory: PathBuf,
}

impl Known {
    /// The files of its certificate.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        self.user.files(&self.directory)
    }

    /// The certificate as it is now.
    pub(super) fn identity(&self) -> Result<Option<Identity>, String> {
        self.user.identity(&self.directory)
    }

    /// What requests carry; files of tokens are read with every one.
    pub(super) fn credentials(&self) -> Credentials {
        self.user.credentials(&self.directory)
    }
}

/// The users of a file.
pub struct Users {
    file: PathBuf,
    config: Kubeconfig,
}

/// Secrets are not told.
impl std::fmt::Debug for Users {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Users").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Users {
    /// Reads a file and looks whether its users are of kinds that are known here.
    pub(crate) fn read(file: &Path) -> Result<Self, FileError> {
        let config = Kubeconfig::read(file)?;
        config.check_users().map_err(|cause| FileError::new(file, cause))?;
        Ok(Self { file: file.to_owned(), config })
    }

    /// The file that names them.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// As whom is asked who is found at `host:port`: nobody, where no user means them.
    pub(super) fn known(users: Option<&Self>, target: &str) -> Known {
        let found = users.and_then(|users| Some((users, users.user(target)?)));
        let known = found.map(|(users, user)| Known {
            user: user.clone(),
            directory: directory_of(&users.file).to_owned(),
        });
        known.unwrap_or_default()
    }

    /// The first user there is of the names that mean a target, and the current context's where there is none.
    fn user(&self, target: &str) -> Option<&User> {
        let mut names = names(target).into_iter();
        names.find_map(|name| self.config.user(&name)).or_else(|| self.config.current_user())
    }
}

/// The names of users that mean a target `host:port`, the first the most exact.
fn names(target: &str) -> Vec<String> {
    let mut names = with_stars(target);
    if let Some(host) = target.strip_suffix(":443") {
        names.extend(with_stars(host.trim_start_matches('[').trim_end_matches(']')));
    }
    names.push("*".to_owned());
    names
}

/// A name, and those that mean it by a star in the place of its first parts.
fn with_stars(name: &str) -> Vec<String> {
    let rests = name.match_indices('.').map(|(dot, _)| format!("*{}", &name[dot..]));
    std::iter::once(name.to_owned()).chain(rests).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_from_the_most_exact_to_the_star() {
        let all = names("hook.default.svc:443");
        let expected =
            "hook.default.svc:443 *.default.svc:443 *.svc:443 hook.default.svc *.default.svc *.svc *";
        assert_eq!(all.join(" "), expected);
        assert_eq!(names("a.example:8443").join(" "), "a.example:8443 *.example:8443 *");
        assert_eq!(names("[::1]:443").join(" "), "[::1]:443 ::1 *");
    }

    #[test]
    fn the_first_name_there_is_counts_and_the_current_context_is_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("users");
        let read = |text: &str| {
            std::fs::write(&file, text).unwrap();
            Users::read(&file)
        };
        let token = |users: &Users, target: &str| match Users::known(Some(users), target).credentials() {
            Credentials::Token(token) => token,
            other => format!("{other:?}"),
        };
        let some = "users: [{name: '*.svc', user: {token: any}}, {name: 'a.b.svc:443', user: {token: exact}}, \
                    {name: own, user: {username: u, password: p}}]\n";
        let users =
            read(&format!("{some}contexts: [{{name: c, context: {{user: own}}}}]\ncurrent-context: c\n"))
                .unwrap();
        assert_eq!(token(&users, "a.b.svc:443"), "exact");
        assert_eq!(token(&users, "b.b.svc:443"), "any");
        assert_eq!(token(&users, "b.b.svc:8443"), "Basic");
        assert_eq!(token(&read(some).unwrap(), "b.b.svc:8443"), "Connection");
        let nobody = Users::known(None, "a:443");
        assert!(nobody.files().is_empty() && matches!(nobody.credentials(), Credentials::Connection));
        for (user, cause) in [
            ("{exec: {command: x}}", "user \"u\": exec is not known here; name a client certificate"),
            ("{auth-provider: {name: x}}", "user \"u\": auth-provider is not known here"),
            ("{as: root}", "user \"u\": as is not known here"),
            ("{client-key: x}", "user \"u\": client-certificate and client-key belong together"),
        ] {
            let said = read(&format!("users: [{{name: u, user: {user}}}]")).unwrap_err().to_string();
            assert!(said.contains(cause), "{said}");
        }
    }
}
