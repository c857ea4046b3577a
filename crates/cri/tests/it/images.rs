//! The image service.

use cri::proto::*;
use tonic::Code;

use crate::world::{World, code, script, with};

fn spec(image: &str) -> Option<ImageSpec> {
    Some(ImageSpec { image: image.into(), ..ImageSpec::default() })
}

#[tokio::test]
async fn images_are_listed_told_and_removed() {
    with(async |mut world: World| {
        let listed =
            world.images.list_images(ListImagesRequest::default()).await.unwrap().into_inner().images;
        assert_eq!(listed.len(), 1);
        let image = &listed[0];
        assert_eq!(image.repo_tags, ["docker.io/library/busybox:test"]);
        assert!(image.size > 100_000 && image.id.starts_with("sha256:"));
        let streamed = world.images.stream_images(StreamImagesRequest::default()).await.unwrap();
        assert_eq!(streamed.into_inner().message().await.unwrap().unwrap().images, listed);
        let filter = Some(ImageFilter { image: spec("none:1") });
        let none = world.images.list_images(ListImagesRequest { filter }).await.unwrap();
        assert!(none.into_inner().images.is_empty());
        for name in ["busybox:test", &image.id, &image.id["sha256:".len()..]] {
            let request = ImageStatusRequest { image: spec(name), verbose: true };
            let status = world.images.image_status(request).await.unwrap().into_inner();
            assert_eq!(status.image.as_ref(), Some(image), "{name}");
            assert!(!status.info.is_empty());
        }
        let missing = ImageStatusRequest { image: spec("none:1"), verbose: true };
        assert!(world.images.image_status(missing).await.unwrap().into_inner().image.is_none());
        assert_eq!(
            code(world.images.image_status(ImageStatusRequest::default()).await),
            Code::InvalidArgument
        );

        let info = world.images.image_fs_info(ImageFsInfoRequest {}).await.unwrap().into_inner();
        let usage = &info.image_filesystems[0];
        assert_eq!(usage.used_bytes.as_ref().unwrap().value, image.size);
        assert!(usage.inodes_used.as_ref().unwrap().value > 3);

        // Port 1 of loopback: nobody listens there.
        let pull = PullImageRequest { image: spec("127.0.0.1:1/a:1"), ..PullImageRequest::default() };
        let refused = world.images.pull_image(pull).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable);
        assert!(refused.message().starts_with("RegistryUnavailable"), "{refused}");

        // What runs goes on running.
        let pod = world.run_pod(world.pod("a")).await;
        let id = world.start(&pod, script("c", "sleep 1000")).await;
        let remove = RemoveImageRequest { image: spec("busybox:test") };
        world.images.remove_image(remove.clone()).await.unwrap();
        world.images.remove_image(remove).await.unwrap();
        assert_eq!(world.exec(&id, "echo here").await.stdout, b"here\n");
        let gone = ImageStatusRequest { image: spec("busybox:test"), verbose: false };
        assert!(world.images.image_status(gone).await.unwrap().into_inner().image.is_none());
        world
    })
    .await;
}
