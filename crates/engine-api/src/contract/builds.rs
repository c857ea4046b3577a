//! What a builder has to do, whoever runs its commands.

use std::path::PathBuf;
use std::sync::Arc;

use futures::StreamExt as _;

use super::patiently;
use crate::{
    BuildEvent, BuildRequest, Builds, CommitRequest, ContainerSpec, EngineError, ErrorKind, ImageOrigin,
    Runtime, SandboxSpec,
};

/// What a name means in the image store: an image's id, and who wrote the name.
pub type Resolve = Arc<dyn Fn(&str) -> Option<(String, ImageOrigin)> + Send + Sync>;

/// A builder under test, in a place of the case's own.
#[derive(Clone)]
pub struct BuildSubject {
    /// The builder.
    pub builds: Arc<dyn Builds>,
    /// Runs its commands.
    pub runtime: Arc<dyn Runtime>,
    /// Looks into its image store, which has an image `busybox:test`.
    pub resolve: Resolve,
    /// An empty directory for a context.
    pub context: PathBuf,
}

impl BuildSubject {
    /// Builds a Dockerfile under a name; everything that was told, and the image's id.
    async fn build(&self, dockerfile: &str, tag: &str) -> Result<(String, String), EngineError> {
        std::fs::write(self.context.join("Dockerfile"), dockerfile).unwrap();
        let (context, tags) = (self.context.clone(), vec![tag.to_owned()]);
        let mut events = self.builds.build(BuildRequest { context, tags, ..BuildRequest::default() }).await?;
        let (mut output, mut built) = (String::new(), None);
        while let Some(event) = patiently(events.next()).await {
            assert!(built.is_none(), "nothing comes after the image's id");
            match event? {
                BuildEvent::Output(text) => output.push_str(&text),
                BuildEvent::Built(id) => built = Some(id),
            }
        }
        Ok((output, built.expect("the image's id comes last")))
    }
}

pub async fn a_build_tells_its_steps_and_ends_with_its_image(subject: BuildSubject) {
    std::fs::write(subject.context.join("file"), "1").unwrap();
    let text = "FROM busybox:test\nCOPY file /file\nENV A=1\nCMD [\"cat\", \"/file\"]\n";
    let (output, id) = subject.build(text, "made:1").await.unwrap();
    for line in ["Step 1/4 : FROM busybox:test\n", "Step 4/4 : CMD", "Successfully tagged made:1\n"] {
        assert!(output.contains(line), "{line} in {output}");
    }
    assert_eq!((subject.resolve)("made:1"), Some((id.clone(), ImageOrigin::Local)));
    // The same again is the same image, and another content is another.
    assert_eq!(subject.build(text, "made:2").await.unwrap().1, id);
    std::fs::write(subject.context.join("file"), "2").unwrap();
    let (_, other) = subject.build(text, "made:1").await.unwrap();
    assert_ne!(other, id);
    assert_eq!((subject.resolve)("made:1"), Some((other, ImageOrigin::Local)), "the name goes on");
    assert_eq!((subject.resolve)("made:2"), Some((id, ImageOrigin::Local)));
}

pub async fn a_build_that_fails_says_why_and_names_nothing(subject: BuildSubject) {
    for (text, expected) in [
        ("FETCH x\n", "unknown instruction: FETCH"),
        ("FROM busybox:test\nCOPY none /x\n", "none"),
        ("FROM busybox:test\nCOPY ../../etc/passwd /x\n", "etc/passwd"),
        ("FROM scratch\n", "no image was generated"),
    ] {
        let error = subject.build(text, "made:1").await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid, "{text}: {}", error.message);
        assert!(
            error.message.contains(expected) && !error.message.contains('\n'),
            "{text}: {}",
            error.message
        );
        assert_eq!((subject.resolve)("made:1"), None, "{text}");
    }
    let error = subject.build("FROM busybox:test\nCMD x\n", "No Name").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid, "{}", error.message);
}

pub async fn a_commit_makes_a_local_image_of_a_container(subject: BuildSubject) {
    let (image_id, _) = (subject.resolve)("busybox:test").unwrap();
    let id = base::id::hex64();
    subject.runtime.create_sandbox(SandboxSpec { id: id.clone(), ..SandboxSpec::default() }).await.unwrap();
    let container = ContainerSpec {
        id: id.clone(),
        sandbox_id: id.clone(),
        image: "busybox:test".into(),
        image_id: image_id.clone(),
        args: vec!["true".into()],
        ..ContainerSpec::default()
    };
    subject.runtime.create_container(container).await.unwrap();
    let request = |container: &str, change: &str| CommitRequest {
        container: container.to_owned(),
        reference: "kept:1".into(),
        changes: vec![change.to_owned()],
        ..CommitRequest::default()
    };
    let error = subject.builds.commit(request(&id, "RUN true")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid, "{}", error.message);
    assert_eq!((subject.resolve)("kept:1"), None);
    let made = subject.builds.commit(request(&id, "ENV A=1")).await.unwrap();
    assert_ne!(made, image_id);
    assert_eq!((subject.resolve)("kept:1"), Some((made, ImageOrigin::Local)));
    subject.runtime.remove_sandbox(&id).await.unwrap();
    // What it was made of is not needed any more, and what never was is not found.
    assert!((subject.resolve)("kept:1").is_some());
    let error = subject.builds.commit(request(&base::id::hex64(), "ENV A=1")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound, "{}", error.message);
}
