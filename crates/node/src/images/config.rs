//! How a node gets, guards and gives up images.

use std::path::PathBuf;
use std::time::Duration;

/// Settings of images. The defaults are upstream's, but that images are pulled side by side.
/// Source: `KubeletConfiguration` of `kubelet.config.k8s.io/v1beta1`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImagesConfig {
    /// When images go.
    pub garbage: GarbagePolicy,
    /// Pulls at a time; `None`: as many as are asked for.
    pub max_parallel_pulls: Option<u32>,
    /// Programs that know credentials.
    pub credential_providers: Option<CredentialProviderFiles>,
    /// Who has to show the credentials that an image was pulled with.
    pub verification: Verification,
}

/// When images go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GarbagePolicy {
    /// From this use of the disk on, in percent.
    pub high_percent: u8,
    /// Down to this one.
    pub low_percent: u8,
    /// None that is here for less.
    pub min_age: Duration,
    /// Those that nobody has used for so long, however empty the disk is; `None`: none.
    pub max_age: Option<Duration>,
}

impl Default for GarbagePolicy {
    fn default() -> Self {
        Self { high_percent: 85, low_percent: 80, min_age: Duration::from_secs(120), max_age: None }
    }
}

impl GarbagePolicy {
    /// Says what cannot be.
    ///
    /// # Errors
    /// In one line, with the fields of `KubeletConfiguration` that are meant.
    pub fn check(&self) -> Result<(), String> {
        if self.high_percent > 100 || self.low_percent > 100 {
            return Err(
                "imageGCHighThresholdPercent and imageGCLowThresholdPercent are at most 100".to_owned()
            );
        }
        if self.low_percent >= self.high_percent {
            return Err(
                "imageGCLowThresholdPercent must be lower than imageGCHighThresholdPercent".to_owned()
            );
        }
        if self.max_age.is_some_and(|max| max <= self.min_age) {
            return Err("imageMaximumGCAge must be more than imageMinimumGCAge".to_owned());
        }
        Ok(())
    }
}

/// A `CredentialProviderConfig`, and the directory of the programs that it names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialProviderFiles {
    /// The configuration.
    pub config: PathBuf,
    /// The programs.
    pub programs: PathBuf,
}

/// Which images need the credentials that they were pulled with. Source: KEP-2535.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Verification {
    /// None: whatever is here is everybody's.
    Never,
    /// Those that the node has pulled for a pod.
    #[default]
    NotPreloaded,
    /// All but these: names without tag and digest, or `registry.example/path/*`.
    NotListed(Vec<String>),
    /// All.
    Always,
}

impl Verification {
    /// Of the fields `imagePullCredentialsVerificationPolicy` and `preloadedImagesVerificationAllowlist`.
    ///
    /// # Errors
    /// Names what is no policy or no pattern.
    pub fn parse(policy: &str, listed: Vec<String>) -> Result<Self, String> {
        if policy != "NeverVerifyAllowlistedImages" && !listed.is_empty() {
            return Err(format!(
                "preloadedImagesVerificationAllowlist is for the policy NeverVerifyAllowlistedImages, not for {policy}"
            ));
        }
        match policy {
            "NeverVerify" => Ok(Self::Never),
            "" | "NeverVerifyPreloadedImages" => Ok(Self::NotPreloaded),
            "AlwaysVerify" => Ok(Self::Always),
            "NeverVerifyAllowlistedImages" => match listed.iter().find(|pattern| !is_pattern(pattern)) {
                Some(pattern) => Err(format!(
                    "{pattern:?} is no name of images: neither tag nor digest is accepted, and only a last '/*'"
                )),
                None => Ok(Self::NotListed(listed)),
            },
            _ => Err(format!(
                "{policy:?} is none of NeverVerify, NeverVerifyPreloadedImages, NeverVerifyAllowlistedImages, AlwaysVerify"
            )),
        }
    }

    /// As the fields that it is parsed from.
    pub(crate) fn shown(&self) -> (&'static str, &[String]) {
        match self {
            Self::Never => ("NeverVerify", &[]),
            Self::NotPreloaded => ("NeverVerifyPreloadedImages", &[]),
            Self::NotListed(listed) => ("NeverVerifyAllowlistedImages", listed),
            Self::Always => ("AlwaysVerify", &[]),
        }
    }

    /// Whether an image needs its credentials. `repository`: its name without tag and digest, complete and as written;
    /// `pulled`: the node has pulled it.
    pub(super) fn is_needed(&self, repository: [&str; 2], pulled: bool) -> bool {
        match self {
            Self::Never => false,
            Self::NotPreloaded => pulled,
            Self::Always => true,
            Self::NotListed(patterns) => !patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some(prefix) => repository.iter().any(|name| name.starts_with(prefix)),
                None => repository.contains(&pattern.as_str()),
            }),
        }
    }
}

fn is_pattern(pattern: &str) -> bool {
    let name = pattern.strip_suffix("/*").unwrap_or(pattern);
    let tagged = name.rsplit('/').next().is_some_and(|last| last.contains(':')) && name.contains('/');
    !name.is_empty() && !tagged && !name.contains(['*', '@']) && !name.contains(char::is_whitespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_named() {
        let policy = GarbagePolicy::default();
        assert_eq!(policy.check(), Ok(()));
        assert!(GarbagePolicy { low_percent: 85, ..policy }.check().is_err());
        assert!(GarbagePolicy { high_percent: 101, ..policy }.check().is_err());
        assert!(GarbagePolicy { max_age: Some(policy.min_age), ..policy }.check().is_err());
    }

    #[test]
    fn policies_say_who_needs_credentials() {
        let of = |policy: &str, listed: &[&str]| {
            Verification::parse(policy, listed.iter().map(|name| (*name).to_owned()).collect())
        };
        let needed = |policy: &Verification, name: &str, pulled| policy.is_needed([name, name], pulled);
        let default = of("", &[]).unwrap();
        assert!(needed(&default, "r.example/x", true) && !needed(&default, "r.example/x", false));
        assert!(!needed(&of("NeverVerify", &[]).unwrap(), "r.example/x", true));
        assert!(needed(&of("AlwaysVerify", &[]).unwrap(), "r.example/x", false));
        let listed =
            of("NeverVerifyAllowlistedImages", &["r.example/team/*", "docker.io/library/x"]).unwrap();
        assert!(!needed(&listed, "r.example/team/a", true) && needed(&listed, "r.example/teams", true));
        assert!(
            !needed(&listed, "docker.io/library/x", true) && needed(&listed, "docker.io/library/xy", true)
        );
        assert!(of("Sometimes", &[]).is_err() && of("NeverVerify", &["x"]).is_err());
        for bad in ["r.example/x:1", "r.example/*/x", "x@sha256:00", "", "/*", " x"] {
            assert!(of("NeverVerifyAllowlistedImages", &[bad]).is_err(), "{bad}");
        }
    }
}
