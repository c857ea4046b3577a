//! Programs that know credentials for registries: asked for the images that they are for, and what they say is kept as long
//! as they say. A program may be given a token of the pod's ServiceAccount. Sources: KEP-2133, KEP-4412, `pkg/credentialprovider/plugin`, `CredentialProviderConfig` of
//! `kubelet.config.k8s.io/v1`, `credentialprovider.kubelet.k8s.io/v1`.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use engine_api::RegistryAuth;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use super::config::CredentialProviderFiles;
use super::keyring::matches;
use super::records::{AccountSource, Source, Tracked};

const CONFIG_VERSION: &str = "kubelet.config.k8s.io/v1";
const PLUGIN_VERSION: &str = "credentialprovider.kubelet.k8s.io/v1";
const CONFIG_BYTES_MAX: u64 = 1024 * 1024;
/// No answer of a program is longer, nor what it says of its failure.
const ANSWER_BYTES_MAX: u64 = 1024 * 1024;
const COMPLAINT_BYTES_MAX: u64 = 4096;
/// Upstream's `execPluginTimeout`.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Answers that are kept of one program.
const KEPT_MAX: usize = 1000;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ConfigFile {
    api_version: String,
    kind: String,
    providers: Vec<Provider>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Provider {
    name: String,
    match_images: Vec<String>,
    default_cache_duration: String,
    api_version: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<Variable>,
    token_attributes: Option<TokenAttributes>,
}

/// Which token of the pod's ServiceAccount a program is given.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TokenAttributes {
    service_account_token_audience: String,
    cache_type: CacheType,
    require_service_account: bool,
    #[serde(default)]
    required_service_account_annotation_keys: Vec<String>,
    #[serde(default)]
    optional_service_account_annotation_keys: Vec<String>,
}

/// For what an answer to a token is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum CacheType {
    Token,
    ServiceAccount,
}

impl TokenAttributes {
    fn check(&self) -> Result<(), String> {
        let (required, optional) =
            (&self.required_service_account_annotation_keys, &self.optional_service_account_annotation_keys);
        if self.service_account_token_audience.is_empty() {
            return Err("serviceAccountTokenAudience is required".to_owned());
        }
        if !required.is_empty() && !self.require_service_account {
            return Err("requireServiceAccount must be true where annotations are required".to_owned());
        }
        let mut keys: Vec<&String> = required.iter().chain(optional).collect();
        let all = keys.len();
        keys.sort();
        keys.dedup();
        match keys.len() == all {
            true => Ok(()),
            false => Err("annotation keys of ServiceAccounts stand there twice".to_owned()),
        }
    }

    /// The annotations that a program is shown; an error names one that is missing.
    fn shown(&self, annotations: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>, String> {
        let required = &self.required_service_account_annotation_keys;
        if let Some(missing) = required.iter().find(|key| !annotations.contains_key(*key)) {
            return Err(format!("the ServiceAccount has no annotation {missing:?}"));
        }
        let wanted = required.iter().chain(&self.optional_service_account_annotation_keys);
        Ok(wanted.filter_map(|key| Some((key.clone(), annotations.get(key)?.clone()))).collect())
    }
}

/// The ServiceAccount of a pod.
#[derive(Debug, Clone)]
pub(super) struct Account {
    pub(super) source: AccountSource,
    pub(super) annotations: BTreeMap<String, String>,
}

/// Who knows the ServiceAccount of the pod that an image is for.
#[async_trait]
pub(super) trait Accounts: Sync {
    /// `None`: the pod has none.
    async fn account(&self) -> Result<Option<Account>, String>;
    /// A token of it, bound to the pod; secret.
    async fn token(&self, audience: &str) -> Result<String, String>;
}

/// What a program is told of who asks.
#[derive(Default)]
struct Asker {
    /// Answers to different ones are kept apart.
    key: String,
    source: Option<AccountSource>,
    token: String,
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Variable {
    name: String,
    value: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    kind: &'a str,
    api_version: &'a str,
    image: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    service_account_token: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    service_account_annotations: &'a BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    cache_key_type: String,
    #[serde(default)]
    cache_duration: Option<String>,
    #[serde(default)]
    auth: Option<BTreeMap<String, Auth>>,
}

#[derive(Deserialize)]
struct Auth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

/// Credentials by what they are for.
type Credentials = Vec<(String, RegistryAuth)>;

/// An answer that is kept.
#[derive(Clone)]
struct Kept {
    until: Timestamp,
    credentials: Credentials,
}

/// A program, and what it has said.
struct Plugin {
    provider: Provider,
    program: PathBuf,
    default_cache: Duration,
    timeout: Duration,
    kept: Mutex<HashMap<String, Kept>>,
    /// One question about an image at a time.
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// The programs, in the order of their configuration.
#[derive(Default)]
pub(super) struct Providers(Vec<Plugin>);

impl Providers {
    /// Reads the configuration, and looks whether its programs are there. Blocks.
    pub(super) fn load(files: &CredentialProviderFiles) -> Result<Self, String> {
        let told = |why: String| format!("{}: {why}", files.config.display());
        let file = std::fs::File::open(&files.config).map_err(|error| told(error.to_string()))?;
        let bytes =
            sys::files::read_bounded(file, CONFIG_BYTES_MAX).map_err(|error| told(error.to_string()))?;
        let text = String::from_utf8(bytes).map_err(|_| told("is not UTF-8".to_owned()))?;
        let providers = parse(&text).map_err(told)?;
        let plugins = providers.into_iter().map(|(provider, default_cache)| {
            let program = files.programs.join(&provider.name);
            if !program.is_file() {
                return Err(told(format!("plugin binary executable {} did not exist", program.display())));
            }
            Ok(Plugin::new(provider, program, default_cache))
        });
        plugins.collect::<Result<_, _>>().map(Self)
    }

    /// What the programs have for a repository, by what it is for. Who fails is told of in the log.
    pub(super) async fn credentials(
        &self,
        repository: &str,
        accounts: &dyn Accounts,
        now: Timestamp,
    ) -> Vec<(String, Tracked)> {
        let mut all = Vec::new();
        for plugin in self.0.iter().filter(|plugin| plugin.is_for(repository)) {
            match plugin.tracked(repository, accounts, now).await {
                Ok(found) => all.extend(found),
                Err(why) => {
                    let provider = plugin.provider.name.as_str();
                    tracing::warn!(
                        provider,
                        image = repository,
                        why,
                        "a credential provider gives no credentials"
                    );
                }
            }
        }
        all
    }
}

impl Plugin {
    fn new(provider: Provider, program: PathBuf, default_cache: Duration) -> Self {
        let (kept, turns) = (Mutex::default(), Mutex::default());
        Self { provider, program, default_cache, timeout: TIMEOUT, kept, turns }
    }

    fn is_for(&self, repository: &str) -> bool {
        self.provider.match_images.iter().any(|place| matches(place, repository))
    }

    async fn tracked(
        &self,
        repository: &str,
        accounts: &dyn Accounts,
        now: Timestamp,
    ) -> Result<Vec<(String, Tracked)>, String> {
        let Some(asker) = self.asker(accounts).await? else { return Ok(Vec::new()) };
        let found = self.credentials(repository, &asker, now).await?;
        let source = asker.source.map_or(Source::Node, Source::ServiceAccount);
        Ok(found.into_iter().map(|(place, auth)| (place, Tracked { auth, source: source.clone() })).collect())
    }

    /// What the program is told of who asks; `None` where it is not to be asked.
    async fn asker(&self, accounts: &dyn Accounts) -> Result<Option<Asker>, String> {
        let Some(attributes) = &self.provider.token_attributes else { return Ok(Some(Asker::default())) };
        let Some(Account { source, annotations }) = accounts.account().await? else {
            return Ok((!attributes.require_service_account).then(Asker::default));
        };
        let annotations = attributes.shown(&annotations)?;
        let token = accounts.token(&attributes.service_account_token_audience).await?;
        let mut parts = vec![&source.namespace, &source.name, &source.uid];
        parts.extend(annotations.iter().flat_map(|(key, value)| [key, value]));
        if attributes.cache_type == CacheType::Token {
            parts.push(&token);
        }
        let key = format!("{:x} ", Sha256::digest(serde_json::to_vec(&parts).unwrap_or_default()));
        Ok(Some(Asker { key, source: Some(source), token, annotations }))
    }

    async fn credentials(
        &self,
        repository: &str,
        asker: &Asker,
        now: Timestamp,
    ) -> Result<Credentials, String> {
        if let Some(kept) = self.recall(repository, asker, now) {
            return Ok(kept);
        }
        let turn = {
            let mut turns = self.turns.lock();
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            turns.entry(format!("{}{repository}", asker.key)).or_default().clone()
        };
        let _turn = turn.lock().await;
        if let Some(kept) = self.recall(repository, asker, now) {
            return Ok(kept);
        }
        let answer = tokio::time::timeout(self.timeout, self.ask(repository, asker)).await;
        let answer = answer.map_err(|_| format!("no answer in {} s", self.timeout.as_secs()))??;
        let Answer { key, keep, credentials } = read(&answer, repository, self.default_cache)?;
        self.remember(format!("{}{key}", asker.key), keep, &credentials, now);
        Ok(credentials)
    }

    fn recall(&self, repository: &str, asker: &Asker, now: Timestamp) -> Option<Credentials> {
        let kept = self.kept.lock();
        let keys = [repository, registry(repository), ""].map(|key| format!("{}{key}", asker.key));
        let found = keys.iter().find_map(|key| kept.get(key).filter(|kept| now < kept.until));
        found.map(|kept| kept.credentials.clone())
    }

    fn remember(&self, key: String, keep: Duration, credentials: &Credentials, now: Timestamp) {
        let until = now.saturating_add(keep).unwrap_or(Timestamp::MAX);
        let mut kept = self.kept.lock();
        kept.retain(|_, kept| now < kept.until);
        if !keep.is_zero() && kept.len() < KEPT_MAX {
            kept.insert(key, Kept { until, credentials: credentials.clone() });
        }
    }

    /// Runs the program once; it ends with this.
    async fn ask(&self, repository: &str, asker: &Asker) -> Result<Vec<u8>, String> {
        let request = Request {
            kind: "CredentialProviderRequest",
            api_version: PLUGIN_VERSION,
            image: repository,
            service_account_token: &asker.token,
            service_account_annotations: &asker.annotations,
        };
        let question = serde_json::to_vec(&request).map_err(|error| error.to_string())?;
        let failed = |what: &str, error: &io::Error| format!("{what} {}: {error}", self.program.display());
        let mut child = Command::new(&self.program)
            .args(&self.provider.args)
            .envs(self.provider.env.iter().map(|variable| (&variable.name, &variable.value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed("run", &error))?;
        let (Some(mut stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err("the program has no pipes".to_owned());
        };
        let asking = async move {
            // One that does not read what it is asked may still answer.
            let _ = stdin.write_all(&question).await;
        };
        let (mut answer, mut complaint) = (Vec::new(), Vec::new());
        let reading = async { stdout.take(ANSWER_BYTES_MAX + 1).read_to_end(&mut answer).await };
        let listening = async {
            let mut stderr = stderr;
            let heard = (&mut stderr).take(COMPLAINT_BYTES_MAX).read_to_end(&mut complaint).await;
            // What is more is read as well: a closed pipe would kill who talks on.
            let drained = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
            heard.and(drained)
        };
        let ((), read, _) = tokio::join!(asking, reading, listening);
        read.map_err(|error| failed("read from", &error))?;
        if answer.len() as u64 > ANSWER_BYTES_MAX {
            return Err(format!("its answer is longer than {ANSWER_BYTES_MAX} bytes"));
        }
        let status = child.wait().await.map_err(|error| failed("wait for", &error))?;
        if !status.success() {
            let said = String::from_utf8_lossy(&complaint);
            return Err(format!("{} ended with {status}: {}", self.program.display(), said.trim()));
        }
        Ok(answer)
    }
}

/// What a program has said.
struct Answer {
    /// The repository, the registry, or nothing: for what it is good.
    key: String,
    keep: Duration,
    credentials: Credentials,
}

/// Its words may be those of a secret, so that none of them is told.
fn read(bytes: &[u8], repository: &str, default_cache: Duration) -> Result<Answer, String> {
    let response: Response = serde_json::from_slice(bytes).map_err(|error| {
        format!(
            "its answer is no CredentialProviderResponse, at line {} column {}",
            error.line(),
            error.column()
        )
    })?;
    if (response.kind.as_str(), response.api_version.as_str())
        != ("CredentialProviderResponse", PLUGIN_VERSION)
    {
        return Err(format!("its answer is no CredentialProviderResponse of {PLUGIN_VERSION}"));
    }
    let key = match response.cache_key_type.as_str() {
        "Image" => repository,
        "Registry" => registry(repository),
        "Global" => "",
        other => {
            return Err(format!("credential provider plugin did not return a valid cacheKeyType: {other:?}"));
        }
    };
    let keep = response.cache_duration.as_deref().map_or(Ok(default_cache), duration)?;
    let auths = response.auth.unwrap_or_default().into_iter();
    let credentials =
        auths.map(|(place, Auth { username, password })| (place, RegistryAuth { username, password }));
    Ok(Answer { key: key.to_owned(), keep, credentials: credentials.collect() })
}

fn registry(repository: &str) -> &str {
    repository.split('/').next().unwrap_or_default()
}

/// A configuration's providers with the time for which their answers are kept.
fn parse(text: &str) -> Result<Vec<(Provider, Duration)>, String> {
    let (json, repeated) = api::decode::yaml_to_json(text.as_bytes())?;
    if let Some(key) = repeated {
        return Err(format!("key {key:?} is repeated"));
    }
    let file: ConfigFile = serde_json::from_slice(&json).map_err(|error| error.to_string())?;
    if (file.api_version.as_str(), file.kind.as_str()) != (CONFIG_VERSION, "CredentialProviderConfig") {
        let (version, kind) = (file.api_version, file.kind);
        return Err(format!("{kind} of {version} is no CredentialProviderConfig of {CONFIG_VERSION}"));
    }
    if file.providers.is_empty() {
        return Err("providers: at least 1 item in plugins is required".to_owned());
    }
    let mut providers: Vec<(Provider, Duration)> = Vec::new();
    for provider in file.providers {
        let name = provider.name.as_str();
        let told = |why: &str| format!("provider {name:?}: {why}");
        check_name(name).map_err(|why| told(&why))?;
        if providers.iter().any(|(other, _)| other.name == name) {
            return Err(told("stands there twice"));
        }
        if provider.match_images.is_empty() {
            return Err(told("at least 1 item in matchImages is required"));
        }
        if let Some(place) = provider.match_images.iter().find(|place| !is_place(place)) {
            return Err(told(&format!("matchImages: {place:?} is no host with an optional port and path")));
        }
        if provider.api_version != PLUGIN_VERSION {
            return Err(told(&format!("apiVersion {:?} is not {PLUGIN_VERSION}", provider.api_version)));
        }
        if let Some(attributes) = &provider.token_attributes {
            attributes.check().map_err(|why| told(&format!("tokenAttributes: {why}")))?;
        }
        let keep = duration(&provider.default_cache_duration).map_err(|why| told(&why))?;
        providers.push((provider, keep));
    }
    Ok(providers)
}

/// A program's name is no path.
fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty()
        || matches!(name, "." | "..")
        || Path::new(name).components().count() != 1
        || name.contains('/')
    {
        return Err("the name must be that of a program in the directory of providers".to_owned());
    }
    if name.contains(char::is_whitespace) {
        return Err("the name cannot contain spaces".to_owned());
    }
    Ok(())
}

fn is_place(place: &str) -> bool {
    let (host, _) = place.split_once('/').unwrap_or((place, ""));
    !host.is_empty() && !place.contains("://") && !place.contains(char::is_whitespace)
}

/// As Go writes it: `12h0m0s`, `0s`.
fn duration(text: &str) -> Result<Duration, String> {
    base::go_duration::parse_unsigned(text)
        .ok_or_else(|| format!("{text:?} is no duration of at least 0: use 12h, 30m or the like"))
}

#[cfg(test)]
#[path = "providers_tests.rs"]
mod tests;
