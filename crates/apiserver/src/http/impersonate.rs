//! Impersonation: a user that asks to be taken for another, part by part, as far as it may.
//! Source: `apiserver/pkg/endpoints/filters/impersonation`.

use std::collections::BTreeMap;

use api::Status;
use api::connect::User;
use http::HeaderMap;
use percent_encoding::percent_decode_str;

use super::Front;
use crate::audit::Record;
use crate::authn::{self, in_group, names};
use crate::authz::Attributes;

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";
/// The group of what users have besides name and groups.
const AUTHENTICATION: &str = "authentication.k8s.io";

/// Whom a request asks to be taken for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    name: String,
    uid: String,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

/// Reads the headers; `None` if there are none.
fn wanted(headers: &HeaderMap) -> Result<Option<Wanted>, Status> {
    let mut wanted = Wanted::default();
    for (header, value) in headers.iter().filter(|(header, _)| header.as_str().starts_with("impersonate-")) {
        let text = || Status::bad_request(format!("header {header} is not text"));
        let value = value.to_str().map_err(|_| text())?.to_owned();
        match (header.as_str(), header.as_str().strip_prefix(EXTRA)) {
            (USER, _) => wanted.name = value,
            (UID, _) => wanted.uid = value,
            (GROUP, _) => wanted.groups.push(value),
            (_, Some(key)) => {
                let key = percent_decode_str(key).decode_utf8().map_err(|_| text())?;
                wanted.extra.entry(key.into_owned()).or_default().push(value);
            }
            (other, None) => return Err(Status::bad_request(format!("header {other} is not known"))),
        }
    }
    if wanted == Wanted::default() {
        return Ok(None);
    }
    if wanted.name.is_empty() {
        return Err(Status::bad_request("requested impersonation without impersonating a user"));
    }
    Ok(Some(wanted))
}

/// Namespace and name of the service account that a user is, if it is one.
fn account_of(user: &str) -> Option<(&str, &str)> {
    user.strip_prefix(names::SERVICE_ACCOUNT_PREFIX)?.split_once(':')
}

/// What has to be allowed, each with the verb `impersonate`.
fn questions(user: &User, wanted: &Wanted) -> Vec<Attributes> {
    let ask = |group: &str, resource: &str, namespace: &str, subresource: &str, name: &str| Attributes {
        user: user.clone(),
        verb: "impersonate".into(),
        group: group.into(),
        resource: resource.into(),
        namespace: namespace.into(),
        subresource: subresource.into(),
        name: name.into(),
        is_resource: true,
        ..Attributes::default()
    };
    let mut questions = vec![match account_of(&wanted.name) {
        Some((namespace, account)) => ask("", "serviceaccounts", namespace, "", account),
        None => ask("", "users", "", "", &wanted.name),
    }];
    questions.extend(wanted.groups.iter().map(|group| ask("", "groups", "", "", group)));
    if !wanted.uid.is_empty() {
        questions.push(ask(AUTHENTICATION, "uids", "", "", &wanted.uid));
    }
    for (key, values) in &wanted.extra {
        questions.extend(values.iter().map(|value| ask(AUTHENTICATION, "userextras", "", key, value)));
    }
    questions
}

/// The user that comes out of it.
fn taken(wanted: Wanted) -> User {
    let mut groups = wanted.groups;
    if groups.is_empty()
        && let Some((namespace, account)) = account_of(&wanted.name)
    {
        groups = authn::service_account(namespace, account, "").groups;
    }
    let mut user =
        User { name: wanted.name, uid: wanted.uid, groups, extra: wanted.extra.into_iter().collect() };
    if in_group(&user, names::UNAUTHENTICATED) {
        return user;
    }
    if user.name == names::ANONYMOUS {
        user.groups.push(names::UNAUTHENTICATED.into());
        return user;
    }
    authn::authenticated(user)
}

impl Front {
    /// The user that the request asks to be taken for, if its own may do that.
    pub(super) async fn impersonate(
        &self,
        user: User,
        headers: &HeaderMap,
        record: Option<&Record>,
    ) -> Result<User, Status> {
        let Some(wanted) = wanted(headers)? else { return Ok(user) };
        for question in questions(&user, &wanted) {
            self.pipeline.authorize(&question).await?;
        }
        let taken = taken(wanted);
        if let Some(record) = record {
            record.impersonated(&taken);
        }
        Ok(taken)
    }
}

/// Takes away what said who asks: it was for this server, and not for those to whom the request may be passed on.
pub(super) fn forget_credentials(headers: &mut HeaderMap) {
    let said = |name: &str| name.starts_with("impersonate-") || name.starts_with("x-remote-");
    let names: Vec<_> = headers.keys().filter(|name| said(name.as_str())).cloned().collect();
    for name in names.iter().chain([&http::header::AUTHORIZATION]) {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Option<Wanted>, Status> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            let name = HeaderName::try_from(*name).unwrap();
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        wanted(&headers)
    }

    #[test]
    fn every_part_is_asked_for_by_itself() {
        let wanted = read(&[
            ("Impersonate-User", "jane"),
            ("Impersonate-Group", "a"),
            ("Impersonate-Group", "b"),
            ("Impersonate-Uid", "7"),
            ("Impersonate-Extra-Example.com%2Fscope", "x"),
            ("Impersonate-Extra-Example.com%2Fscope", "y"),
        ]);
        let wanted = wanted.unwrap().unwrap();
        let asked: Vec<String> = questions(&User::default(), &wanted)
            .iter()
            .map(|one| format!("{}/{}/{}/{}", one.group, one.resource, one.subresource, one.name))
            .collect();
        assert_eq!(
            asked,
            [
                "/users//jane",
                "/groups//a",
                "/groups//b",
                "authentication.k8s.io/uids//7",
                "authentication.k8s.io/userextras/example.com/scope/x",
                "authentication.k8s.io/userextras/example.com/scope/y",
            ]
        );
        let user = taken(wanted);
        assert_eq!(user.groups, ["a", "b", names::AUTHENTICATED]);
        assert_eq!(user.extra, [("example.com/scope".to_owned(), vec!["x".to_owned(), "y".to_owned()])]);
    }

    #[test]
    fn a_service_account_has_its_groups_and_nobody_has_none() {
        let bob = read(&[("impersonate-user", "system:serviceaccount:ns:bob")]).unwrap().unwrap();
        let asked = questions(&User::default(), &bob).remove(0);
        assert_eq!(
            (asked.resource.as_str(), asked.namespace.as_str(), asked.name.as_str()),
            ("serviceaccounts", "ns", "bob")
        );
        assert!(in_group(&taken(bob), "system:serviceaccounts:ns"));
        let nobody = taken(read(&[("impersonate-user", names::ANONYMOUS)]).unwrap().unwrap());
        assert_eq!(nobody.groups, [names::UNAUTHENTICATED]);
        assert!(read(&[]).unwrap().is_none());
        assert!(
            read(&[("impersonate-group", "a")]).is_err() && read(&[("impersonate-extra-x", "a")]).is_err()
        );
        assert!(read(&[("impersonate-user", "a"), ("impersonate-shoe-size", "44")]).is_err());
    }
}
