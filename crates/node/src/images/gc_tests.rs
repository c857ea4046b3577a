//! Which images go, and when.

use engine_api::{
    ByteStream, EngineError, ErrorKind, ImageConfig, ImageName, ProgressStream, RegistryAuth, RemovalKind,
    Resolution,
};

use super::*;

const POLICY: Policy =
    Policy { high_percent: 85, low_percent: 80, min_age: Duration::from_secs(120), max_age: None };

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(100_000 + seconds).unwrap()
}

fn image(id: &str, origin: ImageOrigin) -> Image {
    Image {
        id: id.to_owned(),
        manifest_digest: String::new(),
        tags: BTreeMap::from([(format!("{id}:1"), origin)]),
        repo_digests: Vec::new(),
        size_bytes: 10,
        created: None,
        architecture: String::new(),
        config: ImageConfig::default(),
        config_json: String::new(),
        diff_ids: Vec::new(),
        layer_bytes: Vec::new(),
    }
}

fn pulled(id: &str) -> Image {
    image(id, ImageOrigin::Registry)
}

#[test]
fn a_full_disk_is_emptied_down_to_the_lower_threshold() {
    let disk = |available| Disk { capacity: 1000, available };
    // Whole percents, as upstream counts them.
    assert_eq!(surplus(disk(160), POLICY), None);
    assert_eq!(surplus(disk(159), POLICY), Some(41));
    assert_eq!(surplus(disk(150), POLICY), Some(50));
    assert_eq!(surplus(disk(0), POLICY), Some(200));
    assert_eq!(surplus(Disk { capacity: 0, available: 0 }, POLICY), None);
    assert_eq!(disk(2000).used_percent(), 0);
}

#[test]
fn the_longest_unused_go_first_and_nothing_that_is_needed() {
    let mut untagged = pulled("untagged");
    untagged.tags.clear();
    let images = [
        pulled("used-late"),
        pulled("used-early"),
        pulled("never-used"),
        pulled("new"),
        pulled("in-use"),
        pulled("just-wanted"),
        pulled("no-pods"),
        image("built", ImageOrigin::Local),
        untagged,
    ];
    let garbage = Garbage::default();
    let set = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<BTreeSet<String>>();
    let used = |of_pods: &[&str], all: &[&str]| InUse { all: set(all), of_pods: set(of_pods) };
    let known = ["used-late", "used-early", "never-used", "in-use", "just-wanted", "built", "untagged"];
    garbage.note(&images, &used(&known, &["used-early", "used-late"]), at(0));
    garbage.note(&images, &used(&[], &["used-late"]), at(300));
    garbage.note(&images, &used(&["new"], &["in-use"]), at(600));
    garbage.is_used("just-wanted", at(550));
    // What is noted outlives the node.
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("images.json");
    garbage.save(&file).unwrap();
    let next = Garbage::default();
    next.load(&file);
    let plan = candidates(&images, &next.seen.lock(), &set(&["in-use"]), at(600), POLICY);
    let order: Vec<&str> = plan.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(order, ["never-used", "used-early", "used-late"]);
    next.note(&images[..1], &InUse::default(), at(900));
    assert_eq!(next.seen.lock().len(), 1, "what is gone is forgotten");
    std::fs::write(&file, "rubbish").unwrap();
    next.load(&file);
    assert_eq!(next.seen.lock().len(), 1, "what cannot be read says nothing");
}

/// The images in use, where that is known.
#[async_trait]
impl Uses for Option<Vec<&'static str>> {
    async fn in_use(&self) -> Result<BTreeSet<String>, EngineError> {
        let known = self.as_ref().ok_or_else(|| EngineError::invalid("no answer"))?;
        Ok(known.iter().map(|id| (*id).to_owned()).collect())
    }
}

/// Removes everything but `stuck`.
#[derive(Default)]
struct Store(Mutex<Vec<String>>);

#[async_trait]
impl Images for Store {
    async fn mount_read_only(&self, _: &str, _: &str, _: &std::path::Path) -> Result<(), EngineError> {
        Err(EngineError::invalid("not here"))
    }
    async fn release(&self, _: &str) -> Result<(), EngineError> {
        Ok(())
    }
    async fn held(&self) -> Result<Vec<(String, String)>, EngineError> {
        Ok(Vec::new())
    }

    fn name(&self, _: &str) -> Result<ImageName, EngineError> {
        Err(EngineError::invalid("not here"))
    }

    async fn resolve(&self, _: &str) -> Result<Resolution, EngineError> {
        Err(EngineError::invalid("not here"))
    }

    async fn list(&self) -> Result<Vec<Image>, EngineError> {
        Ok(Vec::new())
    }

    async fn pull(&self, _: &str, _: Option<RegistryAuth>) -> Result<ProgressStream, EngineError> {
        Err(EngineError::invalid("not here"))
    }

    async fn push(&self, _: &str, _: Option<RegistryAuth>) -> Result<ProgressStream, EngineError> {
        Err(EngineError::invalid("not here"))
    }

    async fn tag(&self, _: &str, _: &str) -> Result<(), EngineError> {
        Err(EngineError::invalid("not here"))
    }

    async fn remove(&self, id: &str, force: bool) -> Result<Vec<(RemovalKind, String)>, EngineError> {
        assert!(force, "an image has several names");
        if id == "stuck" {
            return Err(EngineError::new(ErrorKind::Internal, "read-only"));
        }
        self.0.lock().push(id.to_owned());
        Ok(Vec::new())
    }

    async fn load(&self, _: ByteStream) -> Result<Vec<String>, EngineError> {
        Err(EngineError::invalid("not here"))
    }

    async fn import(&self, _: ByteStream, _: &str) -> Result<String, EngineError> {
        Err(EngineError::invalid("not here"))
    }

    async fn save(&self, _: &[String]) -> Result<ByteStream, EngineError> {
        Err(EngineError::invalid("not here"))
    }
}

#[tokio::test]
async fn no_more_goes_than_has_to_and_nothing_that_somebody_wants_meanwhile() {
    let (garbage, store) = (Garbage::default(), Store::default());
    let plan = || ["a", "stuck", "wanted", "b", "c"].map(|id| (id.to_owned(), 10)).to_vec();
    // A pod got this one after it had been decided about.
    garbage.is_used("wanted", at(600));
    let nobody = &Some(Vec::new());
    let freed = garbage.free(&store, nobody, plan(), 15, at(600)).await;
    assert_eq!((freed, garbage.removed()), (Freed { images: 2, bytes: 20 }, 2));
    assert_eq!(*store.0.lock(), ["a", "b"]);
    // As long as somebody counts on an image, none goes.
    let held = garbage.hold().await;
    let mut more = Box::pin(garbage.free(&store, nobody, plan(), 15, at(600)));
    assert!(futures::FutureExt::now_or_never(&mut more).is_none());
    drop(held);
    assert_eq!(more.await.images, 2);
}

#[tokio::test]
async fn an_image_that_somebody_makes_a_container_of_meanwhile_stays() {
    let (garbage, store) = (Garbage::default(), Store::default());
    let plan = || ["a", "b"].map(|id| (id.to_owned(), 10)).to_vec();
    let used = &Some(vec!["a"]);
    assert_eq!(garbage.free(&store, used, plan(), 100, at(0)).await.images, 1);
    assert_eq!(*store.0.lock(), ["b"]);
    let unknown = &None;
    assert_eq!(garbage.free(&store, unknown, plan(), 100, at(0)).await, Freed::default());
}

#[test]
fn what_nobody_has_used_for_too_long_goes_however_empty_the_disk_is() {
    let seen = BTreeMap::from([
        ("old".to_owned(), Seen { first: at(0), used: Some(at(100)) }),
        ("never".to_owned(), Seen { first: at(50), used: None }),
        ("fresh".to_owned(), Seen { first: at(0), used: Some(at(900)) }),
    ]);
    let all: Vec<(String, u64)> = seen.keys().map(|id| (id.clone(), 1)).collect();
    let ids =
        |policy| outdated(&all, &seen, at(1000), policy).into_iter().map(|(id, _)| id).collect::<Vec<_>>();
    assert!(ids(POLICY).is_empty());
    assert_eq!(ids(Policy { max_age: Some(Duration::from_secs(500)), ..POLICY }), ["never", "old"]);
    assert!(Disk::of(Path::new("/nowhere/at/all")).is_err());
}
