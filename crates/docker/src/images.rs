//! Images: list, inspect, history, tag, remove, load, save, pull, import, push.

use std::collections::BTreeMap;

use base64::Engine as _;
use engine_api::{Image, ImageOrigin, Progress, ProgressStream, RegistryAuth, RemovalKind, Resolution};
use futures::StreamExt;
use http::StatusCode;
use serde_json::{Value, json};

use crate::answer::{Answer, Failure, documents, error_document, ok, status, streamed};
use crate::query::{familiar, labels_match};
use crate::server::Call;
use crate::upload::upload;

pub(crate) async fn list(call: &Call) -> Answer {
    let filters = call.query.filters()?;
    let wanted = |name: &str| filters.get(name).cloned().unwrap_or_default();
    let (labels, references, dangling) = (wanted("label"), wanted("reference"), wanted("dangling"));
    let mut images = call.shared.images.list().await?;
    if !references.is_empty() {
        // An image is listed by the names that were asked for.
        for image in &mut images {
            image.tags.retain(|name, _| references.iter().any(|wanted| names_match(&familiar(name), wanted)));
        }
        images.retain(|image| !image.tags.is_empty());
    }
    images.retain(|image| {
        labels_match(&image.config.labels, &labels)
            && dangling.iter().all(|on| matches!(on.as_str(), "true" | "1") == image.tags.is_empty())
    });
    images.sort_by_key(|image| std::cmp::Reverse(image.created));
    ok(&images.iter().map(|image| summary(call, image)).collect::<Vec<_>>())
}

/// A `reference` filter: a repository, or a repository and tag, with `*` for anything.
fn names_match(name: &str, wanted: &str) -> bool {
    let repository = name.rsplit_once(':').map_or(name, |(repository, _)| repository);
    let fits = |text: &str| match wanted.split_once('*') {
        None => text == wanted,
        Some((start, end)) => {
            text.len() >= start.len() + end.len() && text.starts_with(start) && text.ends_with(end)
        }
    };
    fits(name) || fits(repository)
}

fn summary(call: &Call, image: &Image) -> Value {
    let mut tags: Vec<String> = image.tags.keys().map(|name| familiar(name)).collect();
    // Clients before 1.43 expect a name for what has none.
    if tags.is_empty() && call.version < (1, 43) {
        tags.push("<none>:<none>".to_owned());
    }
    json!({
        "Id": image.id,
        "ParentId": "",
        "RepoTags": tags,
        "RepoDigests": image.repo_digests.iter().map(|name| familiar(name)).collect::<Vec<_>>(),
        "Created": image.created.map_or(0, |time| time.as_second()),
        "Size": image.size_bytes,
        "SharedSize": -1,
        "VirtualSize": image.size_bytes,
        "Labels": image.config.labels,
        "Containers": -1,
    })
}

pub(crate) async fn inspect(call: &Call, name: &str) -> Answer {
    let Resolution { image, origin, .. } = call.shared.images.resolve(name).await?;
    let document: Value = serde_json::from_str(&image.config_json).unwrap_or_default();
    let origin = match origin {
        ImageOrigin::Local => "local",
        ImageOrigin::Registry => "registry",
    };
    ok(&json!({
        "Id": image.id,
        "RepoTags": image.tags.keys().map(|name| familiar(name)).collect::<Vec<_>>(),
        "RepoDigests": image.repo_digests.iter().map(|name| familiar(name)).collect::<Vec<_>>(),
        "Parent": "",
        "Comment": "",
        "Created": document["created"],
        "DockerVersion": "",
        "Author": document["author"].as_str().unwrap_or_default(),
        "Config": document["config"],
        "Architecture": image.architecture,
        "Os": document["os"],
        "Size": image.size_bytes,
        "VirtualSize": image.size_bytes,
        "GraphDriver": { "Name": "overlay2", "Data": {} },
        "RootFS": { "Type": "layers", "Layers": image.diff_ids },
        "Metadata": { "LastTagTime": "0001-01-01T00:00:00Z" },
        // Skiff's own: whether the name that was asked for was last written here or by a registry.
        "Origin": origin,
    }))
}

pub(crate) async fn history(call: &Call, name: &str) -> Answer {
    let image = call.shared.images.resolve(name).await?.image;
    let document: Value = serde_json::from_str(&image.config_json).unwrap_or_default();
    let steps = document["history"].as_array().cloned().unwrap_or_default();
    let sizes = step_sizes(&steps, &image.layer_bytes);
    let tags: Vec<String> = image.tags.keys().map(|name| familiar(name)).collect();
    let entry = |(position, (step, size)): (usize, (&Value, u64))| {
        let created = step["created"].as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok());
        let is_top = position == 0;
        json!({
            "Id": if is_top { image.id.as_str() } else { "<missing>" },
            "Created": created.map_or(0, |time| time.as_second()),
            "CreatedBy": step["created_by"].as_str().unwrap_or_default(),
            "Tags": if is_top { json!(tags) } else { Value::Null },
            "Size": size,
            "Comment": step["comment"].as_str().unwrap_or_default(),
        })
    };
    ok(&steps.iter().zip(sizes).rev().enumerate().map(entry).collect::<Vec<_>>())
}

/// The size of each step's layer: steps that made none have none. Source: OCI image configuration, `history`.
fn step_sizes(steps: &[Value], layers: &[u64]) -> Vec<u64> {
    let mut layers = layers.iter().copied();
    let size = |step: &Value| match step["empty_layer"] == json!(true) {
        true => 0,
        false => layers.next().unwrap_or(0),
    };
    steps.iter().map(size).collect()
}

pub(crate) async fn tag(call: &Call, name: &str) -> Answer {
    let (repo, tag) = (call.query.text("repo"), call.query.text("tag"));
    let target = if tag.is_empty() { repo.to_owned() } else { format!("{repo}:{tag}") };
    call.shared.images.tag(name, &target).await?;
    status(StatusCode::CREATED)
}

pub(crate) async fn remove(call: &Call, name: &str) -> Answer {
    let done = call.shared.images.remove(name, call.query.flag("force")).await?;
    ok(&done.into_iter().map(removal).collect::<Vec<_>>())
}

fn removal((kind, what): (RemovalKind, String)) -> Value {
    match kind {
        RemovalKind::Untagged => json!({ "Untagged": what }),
        RemovalKind::Deleted => json!({ "Deleted": what }),
    }
}

/// Removes images without a name; with `dangling=false` also those that nothing uses.
pub(crate) async fn prune(call: &Call) -> Answer {
    let filters = call.query.filters()?;
    let everything =
        filters.get("dangling").is_some_and(|on| on.iter().any(|on| matches!(on.as_str(), "false" | "0")));
    let used: Vec<String> =
        call.shared.runtime.containers().await?.into_iter().map(|it| it.spec.image_id).collect();
    let mut deleted = Vec::new();
    for image in call.shared.images.list().await? {
        if used.contains(&image.id) || !(everything || image.tags.is_empty()) {
            continue;
        }
        // One that is in the way of nothing but itself is no reason to stop.
        if let Ok(done) = call.shared.images.remove(&image.id, everything).await {
            deleted.extend(done.into_iter().map(removal));
        }
    }
    ok(&json!({ "ImagesDeleted": deleted, "SpaceReclaimed": 0 }))
}

pub(crate) async fn load(call: Call) -> Answer {
    let images = call.shared.images.clone();
    let loaded = upload(call, |archive| images.load(archive)).await?;
    let lines = loaded.into_iter().map(|name| match name.starts_with("sha256:") {
        true => json!({ "stream": format!("Loaded image ID: {name}\n") }),
        false => json!({ "stream": format!("Loaded image: {name}\n") }),
    });
    Ok(documents(futures::stream::iter(lines.collect::<Vec<_>>())))
}

pub(crate) async fn save(call: &Call, names: Vec<String>) -> Answer {
    if names.is_empty() {
        return Err(Failure::bad_request("no image was named"));
    }
    let archive = call.shared.images.save(&names).await?;
    Ok(streamed("application/x-tar", archive))
}

/// Pull, or import from the request's body.
pub(crate) async fn create(call: Call) -> Answer {
    let tag = call.query.text("tag").to_owned();
    let named = |name: &str| match tag.as_str() {
        "" => name.to_owned(),
        digest if digest.starts_with("sha256:") => format!("{name}@{digest}"),
        tag => format!("{name}:{tag}"),
    };
    let from = call.query.text("fromImage").to_owned();
    crate::system::check_platform(call.query.text("platform"))?;
    if !from.is_empty() {
        let auth = registry_auth(&call);
        let steps = call.shared.images.pull(&named(&from), auth).await?;
        return progress(steps).await;
    }
    if call.query.text("fromSrc") != "-" {
        return Err(Failure::bad_request(
            "only imports from standard input are supported: give - as the source",
        ));
    }
    if !call.query.text("changes").is_empty() {
        return Err(Failure::bad_request(
            "--change is not supported at import: build over the imported image",
        ));
    }
    let name = named(call.query.text("repo"));
    let images = call.shared.images.clone();
    let id = upload(call, |archive| images.import(archive, &name)).await?;
    Ok(documents(futures::stream::iter([json!({ "status": id })])))
}

pub(crate) async fn push(call: &Call, name: &str) -> Answer {
    let tag = call.query.text("tag");
    let name = if tag.is_empty() { name.to_owned() } else { format!("{name}:{tag}") };
    let steps = call.shared.images.push(&name, registry_auth(call)).await?;
    progress(steps).await
}

/// The credentials in Docker's header; what cannot be read is no credential.
fn registry_auth(call: &Call) -> Option<RegistryAuth> {
    credentials(&encoded_header(call, "x-registry-auth")?)
}

/// The credentials for base images, by registry; Docker's hub has its old address there.
pub(crate) fn registry_config(call: &Call) -> BTreeMap<String, RegistryAuth> {
    let all = encoded_header(call, "x-registry-config").unwrap_or_default();
    let entry = |(address, auth): (&String, &Value)| Some((registry_domain(address), credentials(auth)?));
    all.as_object().into_iter().flatten().filter_map(entry).collect()
}

/// `https://index.docker.io/v1/` is docker.io; other registries stand by their domain, maybe as an address.
fn registry_domain(address: &str) -> String {
    let bare = address.split_once("://").map_or(address, |(_, rest)| rest);
    match bare.split('/').next().unwrap_or_default() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        domain => domain.to_owned(),
    }
}

fn encoded_header(call: &Call, name: &str) -> Option<Value> {
    let text = call.header(name)?.trim_end_matches('=');
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text);
    let bytes = bytes.or_else(|_| base64::engine::general_purpose::STANDARD_NO_PAD.decode(text)).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn credentials(auth: &Value) -> Option<RegistryAuth> {
    let field = |name: &str| auth[name].as_str().unwrap_or_default().to_owned();
    let (mut username, mut password) = (field("username"), field("password"));
    let token = field("identitytoken");
    if !token.is_empty() {
        return Some(RegistryAuth { username: String::new(), password: token });
    }
    if username.is_empty() {
        // Some clients send both as one: base64 of `user:password`.
        let both = base64::engine::general_purpose::STANDARD.decode(field("auth")).ok()?;
        let both = String::from_utf8(both).ok()?;
        let (user, secret) = both.split_once(':')?;
        (username, password) = (user.to_owned(), secret.to_owned());
    }
    (!username.is_empty()).then_some(RegistryAuth { username, password })
}

/// Progress as documents. An error before anything else is an error answer, one after it the last document.
async fn progress(mut steps: ProgressStream) -> Answer {
    let first = match steps.next().await {
        Some(Err(error)) => return Err(error.into()),
        Some(Ok(step)) => Some(step_document(&step)),
        None => None,
    };
    let rest = steps.map(|step| match step {
        Ok(step) => step_document(&step),
        Err(error) => error_document(&error),
    });
    Ok(documents(futures::stream::iter(first).chain(rest)))
}

fn step_document(step: &Progress) -> Value {
    let mut document = json!({ "status": step.status });
    if !step.id.is_empty() {
        document["id"] = json!(step.id);
        document["progressDetail"] = json!({});
    }
    if step.total > 0 {
        document["progressDetail"] = json!({ "current": step.current, "total": step.total });
    }
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_found_by_registry() {
        assert_eq!(registry_domain("https://index.docker.io/v1/"), "docker.io");
        assert_eq!(registry_domain("127.0.0.1:5000"), "127.0.0.1:5000");
        assert_eq!(registry_domain("https://quay.io/v2"), "quay.io");
        let plain = credentials(&json!({"username": "u", "password": "p"})).unwrap();
        assert_eq!((plain.username.as_str(), plain.password.as_str()), ("u", "p"));
        let both = credentials(&json!({"auth": "dTpwOnE="})).unwrap();
        assert_eq!((both.username.as_str(), both.password.as_str()), ("u", "p:q"));
        assert!(credentials(&json!({"email": "x"})).is_none());
    }

    #[test]
    fn layers_belong_to_the_steps_that_made_one() {
        let steps = [json!({}), json!({"empty_layer": true}), json!({"empty_layer": false}), json!({})];
        assert_eq!(step_sizes(&steps, &[5, 7]), [5, 0, 7, 0]);
    }

    #[test]
    fn reference_filters_take_repositories_tags_and_stars() {
        for (name, wanted, expected) in [
            ("a/b:c", "a/b", true),
            ("a/b:c", "a/b:c", true),
            ("a/b:c", "a/*", true),
            ("a/b:c", "b", false),
            ("a:c", "a:*", true),
            ("ab", "ab*b", false),
        ] {
            assert_eq!(names_match(name, wanted), expected, "{name} {wanted}");
        }
    }
}
