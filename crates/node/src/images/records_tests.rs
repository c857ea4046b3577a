//! Who may use an image, by what is on record of its pulls.

use super::*;

const IMAGE: &str = "r.example/team/app:1";

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_000 + seconds).unwrap()
}

fn secret(uid: &str, password: &str) -> Source {
    let auth = RegistryAuth { username: "u".to_owned(), password: password.to_owned() };
    Source::Secret(SecretSource {
        uid: uid.to_owned(),
        namespace: "ns".to_owned(),
        name: "s".to_owned(),
        credential_hash: hash(&auth),
    })
}

fn records() -> (tempfile::TempDir, Records) {
    let dir = tempfile::tempdir().unwrap();
    let records = Records::new(dir.path());
    (dir, records)
}

#[test]
fn who_has_no_credentials_for_an_image_is_not_admitted() {
    let (_dir, records) = records();
    assert_eq!(records.known(IMAGE, "id").unwrap(), Known::Preloaded);
    assert!(!records.intend(IMAGE).unwrap());
    assert_eq!(records.known(IMAGE, "id").unwrap(), Known::Guarded, "it may be here any moment");
    records.pulled(IMAGE, "id", &secret("a", "p"), at(0)).unwrap();
    assert_eq!(records.known(IMAGE, "id").unwrap(), Known::Guarded);
    let admits = |sources: &[Source]| records.admits(IMAGE, "id", sources, at(1)).unwrap();
    assert!(!admits(&[]) && !admits(&[secret("b", "other")]) && !admits(&[Source::Node]));
    // The same Secret with a new password, and another one with a known password: both are known from then on.
    assert!(admits(&[secret("a", "new")]));
    assert!(admits(&[secret("b", "new")]));
    assert!(admits(&[secret("b", "newer")]));
    // Under another name it is another image.
    assert!(!records.admits("other.example/app:1", "id", &[secret("a", "p")], at(1)).unwrap());
    // What a program gave for a ServiceAccount is that one's.
    let account = |uid: &str| {
        let (uid, namespace, name) = (uid.to_owned(), "ns".to_owned(), "builder".to_owned());
        Source::ServiceAccount(AccountSource { uid, namespace, name })
    };
    assert!(!admits(&[account("c")]));
    records.pulled(IMAGE, "id", &account("c"), at(2)).unwrap();
    assert!(admits(&[account("c")]) && !admits(&[account("d")]) && admits(&[secret("a", "new")]));
    // A registry gave it to anybody.
    records.pulled(IMAGE, "id", &Source::Node, at(2)).unwrap();
    assert_eq!(records.known(IMAGE, "id").unwrap(), Known::Open);
    assert!(!records.intend(IMAGE).unwrap(), "the last one was done with");
    assert!(records.intend(IMAGE).unwrap());
    records.failed(IMAGE).unwrap();
    records.failed(IMAGE).unwrap();
}

#[test]
fn records_are_those_of_upstream() {
    let (dir, records) = records();
    records.pulled(IMAGE, "testimageref", &secret("a", "p"), at(0)).unwrap();
    let name = "image_manager/pulled/sha256-b3c0cc4278800b03a308ceb2611161430df571ca733122f0a40ac8b9792a9064";
    let text = std::fs::read_to_string(dir.path().join(name)).unwrap();
    let hash = hash(&RegistryAuth { username: "u".to_owned(), password: "p".to_owned() });
    let wanted = serde_json::json!({
        "kind": "ImagePulledRecord", "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "lastUpdatedTime": "1970-01-01T00:16:40Z", "imageRef": "testimageref",
        "credentialMapping": { "r.example/team/app": { "kubernetesSecrets":
            [{ "uid": "a", "namespace": "ns", "name": "s", "credentialHash": hash }] } },
    });
    assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), wanted);
    std::fs::write(dir.path().join(name), "{").unwrap();
    assert!(records.known(IMAGE, "testimageref").is_err(), "what cannot be read admits nobody");
    // Half a record, or none of it, is what a loss of power may leave: the next pull counts nevertheless.
    for cut in ["{", ""] {
        std::fs::write(dir.path().join(name), cut).unwrap();
        records.pulled(IMAGE, "testimageref", &secret("a", "p"), at(0)).unwrap();
        let text = std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), wanted);
    }
}

#[test]
fn a_pull_that_nobody_saw_end_is_one_of_the_node() {
    let (_dir, records) = records();
    records.intend(IMAGE).unwrap();
    assert_eq!(records.intents(Duration::ZERO).unwrap(), [IMAGE]);
    assert!(records.intents(Duration::from_secs(3600)).unwrap().is_empty(), "it may still be under way");
    records.recovered(IMAGE, "id", at(5)).unwrap();
    assert!(records.intents(Duration::ZERO).unwrap().is_empty());
    assert_eq!(records.known(IMAGE, "id").unwrap(), Known::Guarded);
    assert!(!records.admits(IMAGE, "id", &[secret("a", "p")], at(6)).unwrap());
    // It is forgotten when the image is gone, unless that was looked at before.
    records.prune(&BTreeSet::new(), at(5)).unwrap();
    assert_eq!(records.known(IMAGE, "id").unwrap(), Known::Guarded);
    records.prune(&BTreeSet::from(["id"]), at(9)).unwrap();
    assert_eq!(records.known(IMAGE, "id").unwrap(), Known::Guarded);
    records.prune(&BTreeSet::new(), at(9)).unwrap();
    assert_eq!(records.known(IMAGE, "id").unwrap(), Known::Preloaded);
}
