//! The scheduler's configuration: a `KubeSchedulerConfiguration` of `kubescheduler.config.k8s.io/v1`, read strictly.
//! What concerns a process of its own (its client, leader election, profiling) is read and of no effect, since the
//! scheduler runs within Skiff.

pub(crate) mod args;

pub(crate) mod check;
mod enabled;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::time::Duration;

use base::BoxError;
use base::backoff::Policy;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_yaml_ng::{Mapping, Value};

use crate::extender::Extender;
use crate::extender::config::{ExtenderFile, read_all};
use crate::framework::Profile;
use crate::types::SCHEDULER_NAME;
use args::{Args, PreemptionArgs};
use check::Problems;
use enabled::Plugins;

const VERSION: &str = "kubescheduler.config.k8s.io/v1";
const KIND: &str = "KubeSchedulerConfiguration";

/// How pods are placed.
pub struct Config {
    /// The profiles; at least one, of different names.
    pub profiles: Vec<Profile>,
    /// How long a refused pod waits before its next attempt.
    pub backoff: Policy,
    /// Programs elsewhere that take part; those that can be done without are asked last.
    pub extenders: Vec<Extender>,
}

impl Default for Config {
    fn default() -> Self {
        // The defaults are well-formed; were they not, there would be no profile, and a test says so.
        File::default().into_config().unwrap_or(Self {
            profiles: Vec::new(),
            backoff: BACKOFF,
            extenders: Vec::new(),
        })
    }
}

/// Upstream's `podInitialBackoffSeconds` and `podMaxBackoffSeconds`.
const BACKOFF: Policy = Policy { first: Duration::from_secs(1), max: Duration::from_secs(10) };

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct File {
    parallelism: i32,
    percentage_of_nodes_to_score: Option<i32>,
    pod_initial_backoff_seconds: i64,
    pod_max_backoff_seconds: i64,
    profiles: Option<Vec<ProfileFile>>,
    extenders: Vec<ExtenderFile>,
    #[serde(rename = "leaderElection")]
    _leader_election: Value,
    #[serde(rename = "clientConnection")]
    _client_connection: Value,
    #[serde(rename = "enableProfiling")]
    _enable_profiling: Option<bool>,
    #[serde(rename = "enableContentionProfiling")]
    _enable_contention_profiling: Option<bool>,
    #[serde(rename = "delayCacheUntilActive")]
    _delay_cache_until_active: bool,
}

impl Default for File {
    fn default() -> Self {
        Self {
            parallelism: 16,
            percentage_of_nodes_to_score: None,
            pod_initial_backoff_seconds: 1,
            pod_max_backoff_seconds: 10,
            profiles: None,
            extenders: Vec::new(),
            _leader_election: Value::Null,
            _client_connection: Value::Null,
            _enable_profiling: None,
            _enable_contention_profiling: None,
            _delay_cache_until_active: false,
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct ProfileFile {
    scheduler_name: Option<String>,
    percentage_of_nodes_to_score: Option<i32>,
    plugins: Plugins,
    plugin_config: Vec<PluginConfig>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct PluginConfig {
    name: String,
    args: Value,
}

impl Config {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, BoxError> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Self::parse(&text).map_err(|error| format!("{}: {error}", path.display()).into())
    }

    /// Reads a text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let value: Value = serde_yaml_ng::from_str(text).map_err(|error| error.to_string())?;
        let file: File = of_kind(value, KIND, true)?;
        file.into_config()
    }
}

/// Reads a value that says of which version and kind it is, or need not.
fn of_kind<T: DeserializeOwned>(value: Value, kind: &str, must_say: bool) -> Result<T, String> {
    let value = if value.is_null() && !must_say { Value::Mapping(Mapping::new()) } else { value };
    let Value::Mapping(mut fields) = value else { return Err(format!("it is no {kind}")) };
    let mut taken = |field: &str| match fields.remove(field) {
        Some(Value::String(text)) => text,
        _ => String::new(),
    };
    let (version, given) = (taken("apiVersion"), taken("kind"));
    let right =
        (version == VERSION && given == kind) || (!must_say && version.is_empty() && given.is_empty());
    if !right {
        return Err(format!(
            "no kind {given:?} is registered for version {version:?}; kind {kind:?} of {VERSION:?} is"
        ));
    }
    serde_yaml_ng::from_value(Value::Mapping(fields))
        .map_err(|error| format!("strict decoding error: {error}"))
}

fn check_percentage(percentage: Option<i32>, problems: &mut Problems) {
    if let Some(percentage) = percentage.filter(|percentage| !(0..=100).contains(percentage)) {
        let value = percentage.to_string();
        problems.invalid("percentageOfNodesToScore", &value, "not in valid range [0-100]");
    }
}

impl File {
    /// Source: `ValidateKubeSchedulerConfiguration`.
    fn into_config(self) -> Result<Config, String> {
        let mut problems = Problems::default();
        if self.parallelism <= 0 {
            let value = self.parallelism.to_string();
            problems.invalid("parallelism", &value, "should be an integer value greater than zero");
        }
        check_percentage(self.percentage_of_nodes_to_score, &mut problems);
        let (first, max) = (self.pod_initial_backoff_seconds, self.pod_max_backoff_seconds);
        if first <= 0 {
            problems.invalid("podInitialBackoffSeconds", &first.to_string(), "must be greater than 0");
        }
        if max < first {
            let why = "must be greater than or equal to PodInitialBackoffSeconds";
            problems.invalid("podMaxBackoffSeconds", &max.to_string(), why);
        }
        let managed = self.extenders.iter().flat_map(|extender| &extender.managed_resources);
        let ignored: Vec<String> = managed
            .filter(|managed| managed.ignored_by_scheduler)
            .map(|managed| managed.name.clone())
            .collect();
        let extenders = read_all(self.extenders, &mut problems);
        let percentage = self.percentage_of_nodes_to_score;
        let mut profiles = profiles(self.profiles.unwrap_or_default(), percentage, &ignored, &mut problems);
        for profile in &mut profiles {
            profile.extended = !extenders.is_empty();
        }
        problems.into_result()?;
        let seconds = |seconds: i64| Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        let backoff = Policy { first: seconds(first), max: seconds(max) };
        Ok(Config { profiles, backoff, extenders })
    }
}

fn profiles(
    files: Vec<ProfileFile>,
    percentage: Option<i32>,
    ignored: &[String],
    problems: &mut Problems,
) -> Vec<Profile> {
    let alone = files.len() <= 1;
    let files = if files.is_empty() { vec![ProfileFile::default()] } else { files };
    let mut names: Vec<String> = Vec::new();
    let mut profiles = Vec::new();
    for (number, file) in files.into_iter().enumerate() {
        let at = format!("profiles[{number}]");
        // Only the one profile has a name by itself.
        let name = match &file.scheduler_name {
            Some(name) => name.clone(),
            None if alone => SCHEDULER_NAME.to_owned(),
            None => String::new(),
        };
        if name.is_empty() {
            problems.add(&format!("{at}.schedulerName"), "Required value");
        } else if let Some(before) = names.iter().position(|held| *held == name) {
            let why = format!("Duplicate value: \"profiles[{before}].schedulerName\"");
            problems.add(&format!("{at}.schedulerName"), &why);
        }
        let percentage = file.percentage_of_nodes_to_score.or(percentage).unwrap_or(0);
        problems.within(&at, |problems| {
            check_percentage(file.percentage_of_nodes_to_score, problems);
            let mut args = read_args(file.plugin_config, problems);
            args.fit.ignored_resources.extend_from_slice(ignored);
            let enabled = file.plugins.enabled(&args, problems);
            profiles.push(Profile::new(&name, percentage.into(), &enabled));
        });
        names.push(name);
    }
    profiles
}

/// What the plugins of a profile are told.
fn read_args(configs: Vec<PluginConfig>, problems: &mut Problems) -> Args {
    let mut args = Args::default();
    let mut seen: Vec<String> = Vec::new();
    for (number, config) in configs.into_iter().enumerate() {
        let at = format!("pluginConfig[{number}]");
        if seen.contains(&config.name) {
            problems.add(&at, &format!("Duplicate value: {:?}", config.name));
            continue;
        }
        enabled::check_retired(&at, &config.name, problems);
        let read = read_one(&config.name, config.args, &mut args);
        problems.within(&format!("{at}.args"), |problems| match read {
            Ok(check) => check(&args, problems),
            Err(error) => problems.add("", &error),
        });
        seen.push(config.name);
    }
    args
}

type Check = Box<dyn FnOnce(&Args, &mut Problems)>;

fn read_one(name: &str, given: Value, args: &mut Args) -> Result<Check, String> {
    let kind = format!("{name}Args");
    Ok(match name {
        "NodeAffinity" => {
            args.node_affinity = of_kind(given, &kind, false)?;
            Box::new(|args, problems| args.node_affinity.check(problems))
        }
        "NodeResourcesFit" => {
            args.fit = of_kind(given, &kind, false)?;
            Box::new(|args, problems| args.fit.check(problems))
        }
        "NodeResourcesBalancedAllocation" => {
            args.balanced = of_kind(given, &kind, false)?;
            Box::new(|args, problems| args.balanced.check(problems))
        }
        "PodTopologySpread" => {
            args.spread = of_kind(given, &kind, false)?;
            Box::new(|args, problems| args.spread.check(problems))
        }
        "InterPodAffinity" => {
            args.inter_pod = of_kind(given, &kind, false)?;
            Box::new(|args, problems| args.inter_pod.check(problems))
        }
        "VolumeBinding" => {
            args.volumes = of_kind(given, &kind, false)?;
            Box::new(|args, problems| args.volumes.check(problems))
        }
        "DynamicResources" => {
            args.devices = of_kind(given, &kind, false)?;
            Box::new(|args, problems| args.devices.check(problems))
        }
        "DefaultPreemption" => {
            let read: PreemptionArgs = of_kind(given, &kind, false)?;
            args.preemption = read.settings();
            Box::new(move |_, problems| read.check(problems))
        }
        // Upstream decodes the arguments of plugins that it knows, and hands the others to whoever may know them.
        other => {
            if !given.is_null() {
                tracing::warn!(
                    plugin = other,
                    "the scheduler has no plugin of that name that takes arguments"
                );
            }
            Box::new(|_, _| ())
        }
    })
}
