//! What programs are asked, and what is kept of their answers.

use super::*;

const CONFIG: &str = "apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
- name: helper
  matchImages: ['*.r.example', 'other.example:5000/team']
  defaultCacheDuration: 1h0m0s
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  args: [get]
  env: [{name: LEVEL, value: high}]
";

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(100_000 + seconds).unwrap()
}

/// A program that is this shell script; what it is asked comes on its standard input.
fn plugin(script: &str) -> Plugin {
    let (mut provider, keep) = parse(CONFIG).unwrap().remove(0);
    provider.args = ["-c", script, "sh", "get"].map(str::to_owned).to_vec();
    Plugin::new(provider, PathBuf::from("/bin/sh"), keep)
}

fn answer(kind: &str, duration: &str) -> String {
    format!(
        r#"{{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"{kind}"{duration},"auth":{{"*.r.example":{{"username":"u","password":"p"}}}}}}"#
    )
}

#[test]
fn what_a_configuration_cannot_say_is_named() {
    assert_eq!(parse(CONFIG).unwrap()[0].1, Duration::from_secs(3600));
    for (from, to, part) in [
        ("config.k8s.io/v1\n", "config.k8s.io/v9\n", "v9"),
        ("args:", "arguments:", "arguments"),
        ("  args:", "  tokenAttributes: {}\n  args:", "serviceAccountTokenAudience"),
        (
            "  args:",
            "  tokenAttributes: {serviceAccountTokenAudience: a, cacheType: Token, requireServiceAccount: false, \
             requiredServiceAccountAnnotationKeys: [k]}\n  args:",
            "requireServiceAccount must be true",
        ),
        ("helper", "../helper", "program in the directory"),
        ("1h0m0s", "-1s", "no duration"),
        ("['*.r.example', 'other.example:5000/team']", "[]", "matchImages is required"),
        ("*.r.example", "https://r.example", "no host"),
        ("provider.kubelet.k8s.io/v1", "provider.kubelet.k8s.io/v1alpha1", "v1alpha1"),
    ] {
        let told = parse(&CONFIG.replacen(from, to, 1)).unwrap_err();
        assert!(told.contains(part), "{to}: {told}");
    }
    let twice = format!("{CONFIG}{}", CONFIG.split_once("providers:\n").unwrap().1);
    assert!(parse(&twice).unwrap_err().contains("twice"));
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config.yaml");
    std::fs::write(&config, CONFIG).unwrap();
    let files = CredentialProviderFiles { config, programs: directory.path().to_owned() };
    assert!(Providers::load(&files).err().unwrap().contains("helper did not exist"));
}

#[tokio::test]
async fn a_program_is_asked_once_for_what_its_answer_is_good_for() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("asked");
    for (kind, duration, asked) in [
        ("Image", "", 3),
        ("Registry", "", 2),
        ("Global", "", 1),
        ("Global", r#","cacheDuration":"0s""#, 5),
        ("Global", r#","cacheDuration":"10s""#, 2),
    ] {
        let _ = std::fs::remove_file(&log);
        let script = format!(
            "[ \"$1$LEVEL\" = gethigh ] || exit 3\ncat >> {log}; echo >> {log}\ncat <<'E'\n{}\nE",
            answer(kind, duration),
            log = log.display()
        );
        let plugin = plugin(&script);
        for (repository, time) in [
            ("a.r.example/x", 0),
            ("a.r.example/x", 1),
            ("a.r.example/y", 2),
            ("b.r.example/x", 3),
            ("b.r.example/x", 30),
        ] {
            let found = plugin.credentials(repository, &Asker::default(), at(time)).await.unwrap();
            assert_eq!(found[0].1.username, "u");
        }
        let questions = std::fs::read_to_string(&log).unwrap();
        assert_eq!(questions.lines().count(), asked, "{kind} {duration}");
        let first: serde_json::Value = serde_json::from_str(questions.lines().next().unwrap()).unwrap();
        let wanted = serde_json::json!({ "kind": "CredentialProviderRequest",
            "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "image": "a.r.example/x" });
        assert_eq!(first, wanted);
    }
}

#[tokio::test]
async fn who_talks_much_is_heard_out() {
    let script = format!("head -c 100000 /dev/zero >&2 || exit 4\necho '{}'", answer("Image", ""));
    let found = plugin(&script).credentials("a.r.example/x", &Asker::default(), at(0)).await.unwrap();
    assert_eq!(found[0].1.username, "u");
}

#[tokio::test]
async fn who_fails_hangs_or_never_ends_is_bounded() {
    for (script, part) in [
        ("echo no such account >&2; exit 1", "no such account"),
        ("echo '{\"password\": \"hidden\"}'", "no CredentialProviderResponse"),
        ("echo 'secret words'", "at line 1"),
        ("exec cat /dev/zero", "longer than"),
        ("exec sleep 1000", "no answer"),
    ] {
        let mut plugin = plugin(script);
        if part == "no answer" {
            plugin.timeout = Duration::from_millis(200);
        }
        let told = plugin.credentials("a.r.example/x", &Asker::default(), at(0)).await.unwrap_err();
        assert!(told.contains(part), "{script}: {told}");
        assert!(!told.contains("hidden") && !told.contains("secret"), "{told}");
    }
    let wrong = plugin(&format!("echo '{}'", answer("Some", "")));
    assert!(
        wrong
            .credentials("a.r.example/x", &Asker::default(), at(0))
            .await
            .unwrap_err()
            .contains("cacheKeyType")
    );
    let providers = Providers(vec![wrong]);
    assert!(providers.credentials("else.example/x", &Pod(None), at(0)).await.is_empty(), "it is not asked");
    assert!(providers.credentials("a.r.example/x", &Pod(None), at(0)).await.is_empty(), "it gives none");
}

/// A pod with or without a ServiceAccount, whose uid this is.
struct Pod(Option<&'static str>);

#[async_trait]
impl Accounts for Pod {
    async fn account(&self) -> Result<Option<Account>, String> {
        Ok(self.0.map(|uid| Account {
            source: AccountSource { uid: uid.to_owned(), namespace: "ns".to_owned(), name: "a".to_owned() },
            annotations: [("role", "reader"), ("other", "x")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
        }))
    }

    async fn token(&self, audience: &str) -> Result<String, String> {
        Ok(format!("token-of-{}-for-{audience}", self.0.unwrap_or_default()))
    }
}

#[tokio::test]
async fn a_program_may_be_given_the_token_of_the_pods_service_account() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("asked");
    let script =
        format!("cat >> {log}; echo >> {log}\ncat <<'E'\n{}\nE", answer("Global", ""), log = log.display());
    let mut program = plugin(&script);
    program.provider.token_attributes = Some(TokenAttributes {
        service_account_token_audience: "registry".to_owned(),
        cache_type: CacheType::ServiceAccount,
        require_service_account: true,
        required_service_account_annotation_keys: vec!["role".to_owned()],
        optional_service_account_annotation_keys: Vec::new(),
    });
    let providers = Providers(vec![program]);
    let found = async |uid| providers.credentials("a.r.example/x", &Pod(uid), at(0)).await;
    assert!(found(None).await.is_empty(), "who has no ServiceAccount is not asked for");
    for _ in 0..2 {
        let tracked = found(Some("one")).await.remove(0).1;
        assert!(matches!(tracked.source, Source::ServiceAccount(account) if account.uid == "one"));
    }
    // Another one's answer is another one's.
    found(Some("two")).await;
    let questions = std::fs::read_to_string(&log).unwrap();
    let asked: Vec<serde_json::Value> =
        questions.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[0]["serviceAccountToken"], "token-of-one-for-registry");
    assert_eq!(asked[0]["serviceAccountAnnotations"], serde_json::json!({ "role": "reader" }));
}
