//! Paths: what a request's path names. Pure. Source: `apiserver/pkg/endpoints/request/requestinfo.go`.

use percent_encoding::percent_decode_str;

/// What a path names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// A resource, a collection or a subresource.
    Resource(ResourcePath),
    /// Anything else: discovery, health, documents.
    Other,
}

/// The parts of a resource's path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ResourcePath {
    pub(super) group: String,
    pub(super) version: String,
    pub(super) namespace: String,
    pub(super) resource: String,
    pub(super) name: String,
    pub(super) subresource: String,
    /// What follows the subresource (`proxy/…`), as it was sent: empty, or from its slash on.
    pub(super) rest: String,
    /// The legacy `/watch/` prefix.
    pub(super) watch: bool,
}

impl ResourcePath {
    /// The namespace that a request concerns.
    pub(super) fn within(&self) -> &str {
        crate::pipeline::concerned([&self.group, &self.resource], &self.namespace, &self.name)
    }
}

/// Subresources of a namespace: what else follows a namespace's name is a resource in it.
const OF_NAMESPACE: [&str; 2] = ["status", "finalize"];

pub(super) fn parse(path: &str) -> Option<Target> {
    let mut segments = Vec::new();
    for segment in path.split('/').filter(|segment| !segment.is_empty()) {
        segments.push(percent_decode_str(segment).decode_utf8().ok()?.into_owned());
    }
    let texts: Vec<&str> = segments.iter().map(String::as_str).collect();
    let (group, version, rest) = match texts.as_slice() {
        ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
        _ => return Some(Target::Other),
    };
    let mut parsed = ResourcePath { group: group.into(), version: version.into(), ..ResourcePath::default() };
    let rest = match rest {
        ["watch", rest @ ..] if !rest.is_empty() => {
            parsed.watch = true;
            rest
        }
        rest => rest,
    };
    let object = match rest {
        ["namespaces", namespace, resource, object @ ..] if !OF_NAMESPACE.contains(resource) => {
            parsed.namespace = (*namespace).into();
            parsed.resource = (*resource).into();
            object
        }
        [resource, object @ ..] => {
            parsed.resource = (*resource).into();
            object
        }
        [] => return Some(Target::Other),
    };
    if let [name, after @ ..] = object {
        parsed.name = (*name).into();
        if let [subresource, rest @ ..] = after {
            parsed.subresource = (*subresource).into();
            parsed.rest = after_segments(path, texts.len() - rest.len()).into();
        }
    }
    Some(Target::Resource(parsed))
}

/// What follows the first `count` segments of a path.
fn after_segments(path: &str, count: usize) -> &str {
    let mut left = path;
    for _ in 0..count {
        let segment = left.trim_start_matches('/');
        left = segment.find('/').map_or("", |end| &segment[end..]);
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(path: &str) -> ResourcePath {
        match parse(path) {
            Some(Target::Resource(parsed)) => parsed,
            other => panic!("{path}: {other:?}"),
        }
    }

    #[test]
    fn paths_name_what_upstream_says() {
        let pod = resource("/api/v1/namespaces/a/pods/b/log");
        assert_eq!((pod.namespace.as_str(), pod.name.as_str(), pod.subresource.as_str()), ("a", "b", "log"));
        let namespace = resource("/api/v1/namespaces/a/finalize");
        assert_eq!((namespace.resource.as_str(), namespace.name.as_str()), ("namespaces", "a"));
        assert_eq!(namespace.namespace, "");
        let list = resource("/apis/apps/v1/deployments");
        assert_eq!(
            (list.group.as_str(), list.resource.as_str(), list.name.as_str()),
            ("apps", "deployments", "")
        );
        assert!(resource("/api/v1/watch/namespaces/a/pods").watch);
        for rest in ["", "/", "/a/b", "//a%2Fb/", "/a//"] {
            assert_eq!(resource(&format!("/api/v1//nodes/n/proxy{rest}")).rest, rest);
        }
        assert_eq!(resource("/api/v1/namespaces/a/configmaps/x%2Fy").name, "x/y");
        assert_eq!(parse("/apis/apps/v1"), Some(Target::Other));
        assert_eq!(parse("/healthz"), Some(Target::Other));
    }
}
