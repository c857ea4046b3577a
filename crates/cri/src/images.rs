//! The image service.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use engine_api::{ErrorKind, Image, ImageOrigin, OWNER_LABEL, RegistryAuth};
use futures::StreamExt as _;
use jiff::Timestamp;
use serde_json::json;
use tonic::{Request, Response, Status};

use crate::known::OWNER;
use crate::proto::image_service_server::ImageService;
use crate::proto::{self, ImageSpec, Int64Value, UInt64Value};
use crate::runtime::Pieces;
use crate::shared::Shared;
use crate::{failure, status};

/// Images over the engine's store.
#[derive(Clone)]
pub(crate) struct Service(pub(crate) Arc<Shared>);

/// Files of a set of images, counted once.
pub(crate) struct Counted {
    images: Vec<String>,
    files: u64,
}

fn name_of(spec: Option<ImageSpec>) -> Result<String, Status> {
    let name = spec.unwrap_or_default().image;
    if name.is_empty() {
        return Err(Status::invalid_argument("the request names no image"));
    }
    Ok(name)
}

/// An image as it is listed. `others`: images of containers that are not of this interface. Nobody who collects garbage
/// takes those, nor what was made here and no registry gives back.
fn shown(image: &Image, others: &BTreeSet<String>) -> proto::Image {
    let local = image.tags.values().any(|origin| *origin == ImageOrigin::Local);
    let known = !image.tags.is_empty() || !image.repo_digests.is_empty();
    let (uid, username) = user(&image.config.user);
    proto::Image {
        id: image.id.clone(),
        repo_tags: image.tags.keys().cloned().collect(),
        repo_digests: image.repo_digests.clone(),
        size: image.size_bytes,
        uid,
        username,
        spec: Some(ImageSpec { image: image.id.clone(), ..ImageSpec::default() }),
        pinned: local || !known || others.contains(&image.id),
    }
}

/// The image's user without its group, as a number or by name.
fn user(text: &str) -> (Option<Int64Value>, String) {
    let user = text.split(':').next().unwrap_or_default();
    match user.parse() {
        Ok(value) => (Some(Int64Value { value }), String::new()),
        Err(_) => (None, user.to_owned()),
    }
}

fn info(image: &Image) -> HashMap<String, String> {
    let config: serde_json::Value = serde_json::from_str(&image.config_json).unwrap_or_default();
    let document = json!({ "chainID": "", "imageSpec": config, "manifestDigest": image.manifest_digest });
    HashMap::from([("info".to_owned(), document.to_string())])
}

/// Credentials in the forms that clients send. Source: `AuthConfig`, and `ParseAuth` of containerd.
fn credentials(auth: Option<proto::AuthConfig>) -> Result<Option<RegistryAuth>, Status> {
    let Some(auth) = auth else { return Ok(None) };
    if !auth.username.is_empty() {
        return Ok(Some(RegistryAuth { username: auth.username, password: auth.password }));
    }
    if !auth.auth.is_empty() {
        let text = STANDARD.decode(&auth.auth).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = text.as_deref().and_then(|text| text.split_once(':'));
        let (username, password) =
            pair.ok_or_else(|| Status::invalid_argument("auth.auth is no `user:password` in base64"))?;
        // Some clients fill up with zero bytes.
        let password = password.trim_end_matches('\0').to_owned();
        return Ok(Some(RegistryAuth { username: username.to_owned(), password }));
    }
    if !auth.registry_token.is_empty() {
        return Err(Status::unimplemented(
            "tokens of registries are not sent on: give user name and password, or an identity token",
        ));
    }
    let token = Some(auth.identity_token).filter(|token| !token.is_empty());
    Ok(token.map(|password| RegistryAuth { username: String::new(), password }))
}

impl Service {
    async fn find(&self, name: &str) -> Result<Option<Image>, Status> {
        match self.0.images.resolve(name).await {
            Ok(found) => Ok(Some(found.image)),
            Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failure::of(error)),
        }
    }

    async fn list(&self, filter: Option<proto::ImageFilter>) -> Result<Vec<proto::Image>, Status> {
        let wanted = filter.and_then(|filter| filter.image).map(|spec| spec.image).unwrap_or_default();
        if !wanted.is_empty() {
            let others = self.of_others().await?;
            return Ok(self.find(&wanted).await?.iter().map(|image| shown(image, &others)).collect());
        }
        let images = self.0.images.list().await.map_err(failure::of)?;
        let others = self.of_others().await?;
        Ok(images.iter().map(|image| shown(image, &others)).collect())
    }

    /// The images of containers that were not made by this interface.
    async fn of_others(&self) -> Result<BTreeSet<String>, Status> {
        let containers = self.0.runtime.containers().await.map_err(failure::of)?;
        let is_ours =
            |labels: &BTreeMap<String, String>| labels.get(OWNER_LABEL).is_some_and(|owner| owner == OWNER);
        let others = containers.into_iter().filter(|status| !is_ours(&status.spec.labels));
        Ok(others.map(|status| status.spec.image_id).collect())
    }

    async fn pull(&self, request: proto::PullImageRequest) -> Result<String, Status> {
        let name = name_of(request.image)?;
        let auth = credentials(request.auth)?;
        let mut steps = self.0.images.pull(&name, auth).await.map_err(failure::of_pull)?;
        while let Some(step) = steps.next().await {
            step.map_err(failure::of_pull)?;
        }
        let image = self.find(&name).await?;
        let image =
            image.ok_or_else(|| Status::unavailable(format!("{name} was removed while it was pulled")))?;
        Ok(image.id)
    }

    /// Takes all of an image's names away. Where a container uses it, its contents stay as long.
    async fn remove(&self, name: &str) -> Result<(), Status> {
        let Some(image) = self.find(name).await? else { return Ok(()) };
        match self.0.images.remove(&image.id, true).await {
            Err(error) if error.kind != ErrorKind::NotFound => Err(failure::of(error)),
            _ => Ok(()),
        }
    }

    async fn usage(&self) -> Result<proto::FilesystemUsage, Status> {
        let images = self.0.images.list().await.map_err(failure::of)?;
        // Layers that images share are there once.
        let layers: BTreeMap<&String, u64> = images
            .iter()
            .flat_map(|image| image.diff_ids.iter().zip(image.layer_bytes.iter().copied()))
            .collect();
        let directory = self.0.config.image_dir.clone();
        let files = self.files(&images).await?;
        let mountpoint = directory.to_string_lossy().into_owned();
        Ok(proto::FilesystemUsage {
            timestamp: status::nanos(Timestamp::now()),
            fs_id: Some(proto::FilesystemIdentifier { mountpoint }),
            used_bytes: Some(UInt64Value { value: layers.values().sum() }),
            inodes_used: Some(UInt64Value { value: files }),
        })
    }

    /// Files in the store. They are counted again only where the images are others: it takes a walk.
    async fn files(&self, images: &[Image]) -> Result<u64, Status> {
        let mut ids: Vec<String> = images.iter().map(|image| image.id.clone()).collect();
        ids.sort();
        if let Some(counted) = self.0.image_files.lock().as_ref().filter(|counted| counted.images == ids) {
            return Ok(counted.files);
        }
        let directory = self.0.config.image_dir.clone();
        let counted = tokio::task::spawn_blocking(move || count(&directory)).await;
        let files = counted.map_err(|error| Status::internal(format!("count the images' files: {error}")))?;
        *self.0.image_files.lock() = Some(Counted { images: ids, files });
        Ok(files)
    }
}

/// Files and directories below a directory. Blocks.
fn count(directory: &Path) -> u64 {
    let mut waiting: Vec<PathBuf> = vec![directory.to_owned()];
    let mut found = 0;
    while let Some(directory) = waiting.pop() {
        found += 1;
        // What goes away meanwhile is not there.
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => waiting.push(entry.path()),
                Ok(_) => found += 1,
                Err(_) => {}
            }
        }
    }
    found
}

#[tonic::async_trait]
impl ImageService for Service {
    async fn list_images(
        &self,
        request: Request<proto::ListImagesRequest>,
    ) -> Result<Response<proto::ListImagesResponse>, Status> {
        let images = self.list(request.into_inner().filter).await?;
        Ok(Response::new(proto::ListImagesResponse { images }))
    }

    type StreamImagesStream = Pieces<proto::StreamImagesResponse>;

    async fn stream_images(
        &self,
        request: Request<proto::StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        let images = self.list(request.into_inner().filter).await?;
        Ok(crate::runtime::pieces(images, |images| proto::StreamImagesResponse { images }))
    }

    async fn image_status(
        &self,
        request: Request<proto::ImageStatusRequest>,
    ) -> Result<Response<proto::ImageStatusResponse>, Status> {
        let request = request.into_inner();
        let image = self.find(&name_of(request.image)?).await?;
        let info = image.as_ref().filter(|_| request.verbose).map(info).unwrap_or_default();
        let others = self.of_others().await?;
        let image = image.as_ref().map(|image| shown(image, &others));
        Ok(Response::new(proto::ImageStatusResponse { image, info }))
    }

    async fn pull_image(
        &self,
        request: Request<proto::PullImageRequest>,
    ) -> Result<Response<proto::PullImageResponse>, Status> {
        let image_ref = self.pull(request.into_inner()).await?;
        Ok(Response::new(proto::PullImageResponse { image_ref }))
    }

    async fn remove_image(
        &self,
        request: Request<proto::RemoveImageRequest>,
    ) -> Result<Response<proto::RemoveImageResponse>, Status> {
        let (service, name) = (self.clone(), name_of(request.into_inner().image)?);
        self.0.to_the_end(async move { service.remove(&name).await }).await?;
        Ok(Response::new(proto::RemoveImageResponse {}))
    }

    async fn image_fs_info(
        &self,
        _: Request<proto::ImageFsInfoRequest>,
    ) -> Result<Response<proto::ImageFsInfoResponse>, Status> {
        let usage = self.usage().await?;
        Ok(Response::new(proto::ImageFsInfoResponse {
            image_filesystems: vec![usage.clone()],
            container_filesystems: vec![usage],
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::AuthConfig;

    #[test]
    fn credentials_come_in_several_forms() {
        let plain = AuthConfig { username: "u".into(), password: "p".into(), ..AuthConfig::default() };
        assert_eq!(credentials(Some(plain)).unwrap().unwrap().password, "p");
        let encoded = AuthConfig { auth: STANDARD.encode("u:p:q\0"), ..AuthConfig::default() };
        let read = credentials(Some(encoded)).unwrap().unwrap();
        assert_eq!((read.username.as_str(), read.password.as_str()), ("u", "p:q"));
        assert!(
            credentials(None).unwrap().is_none()
                && credentials(Some(AuthConfig::default())).unwrap().is_none()
        );
        let bad = AuthConfig { auth: "!".into(), ..AuthConfig::default() };
        assert_eq!(credentials(Some(bad)).unwrap_err().code(), tonic::Code::InvalidArgument);
        let token = AuthConfig { identity_token: "secret".into(), ..AuthConfig::default() };
        assert!(!format!("{token:?}").contains("secret"));
        let taken = credentials(Some(token)).unwrap().unwrap();
        assert_eq!((taken.username.as_str(), taken.password.as_str()), ("", "secret"));
        let other = AuthConfig { registry_token: "secret".into(), ..AuthConfig::default() };
        assert_eq!(credentials(Some(other)).unwrap_err().code(), tonic::Code::Unimplemented);
    }

    #[test]
    fn users_are_numbers_or_names() {
        assert_eq!(user("1002:5"), (Some(Int64Value { value: 1002 }), String::new()));
        assert_eq!(user("www-data:www-data"), (None, "www-data".to_owned()));
        assert_eq!(user(""), (None, String::new()));
    }
}
