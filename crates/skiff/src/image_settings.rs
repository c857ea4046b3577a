//! Settings of the node's images, under upstream's names.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use serde::{Deserialize, Serialize};

/// Where registries are said to be had from, in their order: containerd's directory and Docker's.
const REGISTRIES: [&str; 2] = ["/etc/containerd/certs.d", "/etc/docker/certs.d"];
const DOCKER_DAEMON: &str = "/etc/docker/daemon.json";

/// Arguments about images; in the configuration file below the key `images`.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct ImageArgs {
    /// Use of the disk at which unused images go, in percent [default: 85]
    #[arg(long, value_name = "PERCENT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) image_gc_high_threshold: Option<u8>,
    /// Use of the disk down to which unused images go, in percent [default: 80]
    #[arg(long, value_name = "PERCENT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) image_gc_low_threshold: Option<u8>,
    /// Age below which no unused image goes [default: 2m]
    #[arg(long, value_name = "DURATION")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) image_minimum_gc_age: Option<String>,
    /// Age beyond which unused images go, however empty the disk is [default: 0s, none do]
    #[arg(long, value_name = "DURATION")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) image_maximum_gc_age: Option<String>,
    /// Images pulled for pods at a time [default: as many as are asked for]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_parallel_image_pulls: Option<u32>,
    /// CredentialProviderConfig: programs that know credentials for registries
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) image_credential_provider_config: Option<PathBuf>,
    /// Directory of those programs
    #[arg(long, value_name = "DIRECTORY")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) image_credential_provider_bin_dir: Option<PathBuf>,
    /// Which images that are here need the credentials that they were pulled with [default: NeverVerifyPreloadedImages]
    #[arg(long, value_name = "POLICY")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) image_pull_credentials_verification_policy: Option<String>,
    /// Images that need none, with policy NeverVerifyAllowlistedImages
    #[arg(long, value_name = "IMAGE", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) preloaded_images_verification_allowlist: Vec<String>,
    /// Directories of hosts.toml and certificates of registries [default: /etc/containerd/certs.d, /etc/docker/certs.d]
    #[arg(long, value_name = "DIRECTORY", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) registry_config_dirs: Vec<PathBuf>,
}

/// Settings about images, complete and checked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Images {
    /// How the node gets, guards and gives them up.
    pub(crate) node: node::ImagesConfig,
    /// How registries are reached.
    pub(crate) registries: image::RegistryConfig,
    /// As flags; empty ones were not given, or only by the node's configuration.
    pub(crate) facts: BTreeMap<String, String>,
}

impl ImageArgs {
    /// What the node's configuration says, under the names of flags.
    fn of_kubelet(fields: &node::ImageFields) -> Self {
        let [high, low] = fields.gc_thresholds;
        Self {
            image_gc_high_threshold: high,
            image_gc_low_threshold: low,
            image_minimum_gc_age: fields.minimum_gc_age.clone(),
            image_maximum_gc_age: fields.maximum_gc_age.clone(),
            max_parallel_image_pulls: fields.max_parallel_pulls,
            image_pull_credentials_verification_policy: fields.verification_policy.clone(),
            preloaded_images_verification_allowlist: fields.verification_allowlist.clone(),
            ..Self::default()
        }
    }

    /// Takes what is not said from the file, then from the node's configuration, and checks everything.
    pub(crate) fn resolve(&self, file: Self, kubelet: &node::ImageFields) -> Result<Images> {
        let said = self.clone().over(file);
        let all = said.clone().over(Self::of_kubelet(kubelet));
        let garbage = all.garbage()?;
        let absolute = |path: &PathBuf| std::path::absolute(path).context("path of a setting of images");
        let config = all.image_credential_provider_config.as_ref().map(absolute).transpose()?;
        let programs = all.image_credential_provider_bin_dir.as_ref().map(absolute).transpose()?;
        let listed = all.preloaded_images_verification_allowlist.clone();
        let policy = all.image_pull_credentials_verification_policy.clone().unwrap_or_default();
        let directories = all.registry_config_dirs.iter().map(absolute).collect::<Result<Vec<_>>>()?;
        let facts = facts(&said, config.as_ref(), programs.as_ref(), &directories);
        let credential_providers = match (config, programs) {
            (Some(config), Some(programs)) => Some(node::CredentialProviderFiles { config, programs }),
            (None, None) => None,
            _ => bail!(
                "--image-credential-provider-config and --image-credential-provider-bin-dir belong together"
            ),
        };
        if all.max_parallel_image_pulls == Some(0) {
            bail!(
                "--max-parallel-image-pulls 0 would pull nothing; leave it out for as many as are asked for"
            );
        }
        let verification = node::Verification::parse(&policy, listed)
            .map_err(|why| anyhow!("--image-pull-credentials-verification-policy: {why}"))?;
        let max_parallel_pulls = all.max_parallel_image_pulls;
        let node = node::ImagesConfig { garbage, max_parallel_pulls, credential_providers, verification };
        let directories =
            if directories.is_empty() { REGISTRIES.map(PathBuf::from).to_vec() } else { directories };
        let registries = image::RegistryConfig { directories, docker_daemon: Some(DOCKER_DAEMON.into()) };
        Ok(Images { node, registries, facts })
    }

    fn over(self, file: Self) -> Self {
        let (policy, listed) = self.verification_over(&file);
        let paths = |own: Vec<PathBuf>, file: Vec<PathBuf>| if own.is_empty() { file } else { own };
        Self {
            image_gc_high_threshold: self.image_gc_high_threshold.or(file.image_gc_high_threshold),
            image_gc_low_threshold: self.image_gc_low_threshold.or(file.image_gc_low_threshold),
            image_minimum_gc_age: self.image_minimum_gc_age.or(file.image_minimum_gc_age),
            image_maximum_gc_age: self.image_maximum_gc_age.or(file.image_maximum_gc_age),
            max_parallel_image_pulls: self.max_parallel_image_pulls.or(file.max_parallel_image_pulls),
            image_credential_provider_config: self
                .image_credential_provider_config
                .or(file.image_credential_provider_config),
            image_credential_provider_bin_dir: self
                .image_credential_provider_bin_dir
                .or(file.image_credential_provider_bin_dir),
            image_pull_credentials_verification_policy: policy,
            preloaded_images_verification_allowlist: listed,
            registry_config_dirs: paths(self.registry_config_dirs, file.registry_config_dirs),
        }
    }

    /// The policy and its list. A list is for a policy: where another one wins, that of the file is nobody's.
    fn verification_over(&self, file: &Self) -> (Option<String>, Vec<String>) {
        let policy = &self.image_pull_credentials_verification_policy;
        let of_file = &file.image_pull_credentials_verification_policy;
        let own = &self.preloaded_images_verification_allowlist;
        let listed = match own.is_empty() && (policy.is_none() || policy == of_file) {
            true => &file.preloaded_images_verification_allowlist,
            false => own,
        };
        (policy.as_ref().or(of_file.as_ref()).cloned(), listed.clone())
    }

    fn garbage(&self) -> Result<node::GarbagePolicy> {
        let default = node::GarbagePolicy::default();
        let min_age = duration("--image-minimum-gc-age", self.image_minimum_gc_age.as_deref())?;
        let max_age = duration("--image-maximum-gc-age", self.image_maximum_gc_age.as_deref())?;
        let policy = node::GarbagePolicy {
            high_percent: self.image_gc_high_threshold.unwrap_or(default.high_percent),
            low_percent: self.image_gc_low_threshold.unwrap_or(default.low_percent),
            min_age: min_age.unwrap_or(default.min_age),
            max_age,
        };
        policy.check().map_err(|why| anyhow!(why))?;
        Ok(policy)
    }
}

/// A duration that is more than none, as upstream writes them: `2m`, `24h`.
fn duration(flag: &str, text: Option<&str>) -> Result<Option<Duration>> {
    let Some(text) = text else { return Ok(None) };
    let parsed = base::go_duration::parse_unsigned(text);
    let parsed = parsed.with_context(|| format!("{flag} {text:?} is no duration such as 2m or 24h"))?;
    Ok(Some(parsed).filter(|duration| !duration.is_zero()))
}

fn facts(
    said: &ImageArgs,
    config: Option<&PathBuf>,
    programs: Option<&PathBuf>,
    directories: &[PathBuf],
) -> BTreeMap<String, String> {
    let number = |number: Option<u32>| number.map(|number| number.to_string()).unwrap_or_default();
    let path = |path: Option<&PathBuf>| path.map(|path| path.display().to_string()).unwrap_or_default();
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let directories: Vec<String> = directories.iter().map(|path| path.display().to_string()).collect();
    let pairs = [
        ("--image-gc-high-threshold", number(said.image_gc_high_threshold.map(u32::from))),
        ("--image-gc-low-threshold", number(said.image_gc_low_threshold.map(u32::from))),
        ("--image-minimum-gc-age", text(&said.image_minimum_gc_age)),
        ("--image-maximum-gc-age", text(&said.image_maximum_gc_age)),
        ("--max-parallel-image-pulls", number(said.max_parallel_image_pulls)),
        ("--image-credential-provider-config", path(config)),
        ("--image-credential-provider-bin-dir", path(programs)),
        (
            "--image-pull-credentials-verification-policy",
            text(&said.image_pull_credentials_verification_policy),
        ),
        ("--preloaded-images-verification-allowlist", said.preloaded_images_verification_allowlist.join(",")),
        ("--registry-config-dirs", directories.join(",")),
    ];
    pairs.into_iter().map(|(flag, value)| (flag.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_the_file_and_what_cannot_be_is_named() {
        let file: ImageArgs = serde_json::from_value(serde_json::json!({
            "imageMaximumGcAge": "24h", "imageGcHighThreshold": 70, "imageGcLowThreshold": 60,
        }))
        .unwrap();
        let own = ImageArgs { image_gc_high_threshold: Some(90), ..ImageArgs::default() };
        let kubelet = node::ImageFields {
            gc_thresholds: [Some(50), Some(40)],
            max_parallel_pulls: Some(3),
            ..node::ImageFields::default()
        };
        let images = own.resolve(file, &kubelet).unwrap();
        let garbage = images.node.garbage;
        assert_eq!((garbage.high_percent, garbage.low_percent), (90, 60));
        assert_eq!(images.node.max_parallel_pulls, Some(3));
        assert_eq!(garbage.max_age, Some(Duration::from_secs(24 * 3600)));
        assert_eq!(images.facts["--image-maximum-gc-age"], "24h");
        assert_eq!(images.registries.directories, REGISTRIES.map(PathBuf::from));
        let refused = |args: ImageArgs| {
            format!("{:#}", args.resolve(ImageArgs::default(), &node::ImageFields::default()).unwrap_err())
        };
        let default = ImageArgs::default;
        for (args, part) in [
            (ImageArgs { image_gc_low_threshold: Some(90), ..default() }, "must be lower"),
            (ImageArgs { image_minimum_gc_age: Some("soon".into()), ..default() }, "no duration"),
            (ImageArgs { max_parallel_image_pulls: Some(0), ..default() }, "would pull nothing"),
            (
                ImageArgs { image_credential_provider_config: Some("x".into()), ..default() },
                "belong together",
            ),
            (
                ImageArgs { image_pull_credentials_verification_policy: Some("No".into()), ..default() },
                "is none of",
            ),
        ] {
            let told = refused(args);
            assert!(told.contains(part), "{told}");
        }
    }

    #[test]
    fn a_policy_that_wins_takes_no_list_of_another_one() {
        let with = |policy: &str, listed: &[&str]| ImageArgs {
            image_pull_credentials_verification_policy: (!policy.is_empty()).then(|| policy.to_owned()),
            preloaded_images_verification_allowlist: listed.iter().map(|image| (*image).to_owned()).collect(),
            ..ImageArgs::default()
        };
        let (listing, team, own) = ("NeverVerifyAllowlistedImages", "r.example/team/*", "r.example/own");
        let kubelet = node::ImageFields {
            verification_policy: Some(listing.to_owned()),
            verification_allowlist: vec![team.to_owned()],
            ..node::ImageFields::default()
        };
        let is = |args: ImageArgs, wanted: node::Verification| {
            let of_kubelet = args.resolve(ImageArgs::default(), &kubelet).unwrap();
            let of_file = args.resolve(with(listing, &[team]), &node::ImageFields::default()).unwrap();
            assert_eq!([of_kubelet.node.verification, of_file.node.verification], [wanted.clone(), wanted]);
        };
        is(with("NeverVerify", &[]), node::Verification::Never);
        is(with("", &[]), node::Verification::NotListed(vec![team.to_owned()]));
        is(with(listing, &[]), node::Verification::NotListed(vec![team.to_owned()]));
        is(with("", &[own]), node::Verification::NotListed(vec![own.to_owned()]));
    }
}
