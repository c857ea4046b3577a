//! The file that says which JWTs are believed. Source: `apiserver.config.k8s.io` `AuthenticationConfiguration`; the parts
//! that are CEL expressions are refused by name.

use std::path::Path;

use serde::Deserialize;

use crate::remote::FileError;

const GROUP: &str = "apiserver.config.k8s.io/";
const KIND: &str = "AuthenticationConfiguration";

/// The file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct AuthenticationConfiguration {
    api_version: String,
    kind: String,
    #[serde(default)]
    pub(crate) jwt: Vec<Jwt>,
    #[serde(default)]
    pub(crate) anonymous: Option<Anonymous>,
}

/// Whether requests without credentials are anonymous, or refused; and for which paths.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Anonymous {
    enabled: bool,
    #[serde(default)]
    conditions: Vec<Condition>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Condition {
    path: String,
}

impl Anonymous {
    /// Whether a request for a path may be anonymous.
    pub(crate) fn allows(&self, path: &str) -> bool {
        self.enabled && (self.conditions.is_empty() || self.conditions.iter().any(|known| known.path == path))
    }
}

/// One provider of tokens.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Jwt {
    pub(crate) issuer: Issuer,
    #[serde(default)]
    pub(crate) claim_validation_rules: Vec<ClaimRule>,
    pub(crate) claim_mappings: ClaimMappings,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct Issuer {
    pub(crate) url: String,
    #[serde(rename = "discoveryURL")]
    pub(crate) discovery_url: String,
    /// PEM; empty: the system's authorities.
    pub(crate) certificate_authority: String,
    pub(crate) audiences: Vec<String>,
    /// `MatchAny`, which is also what nothing means.
    audience_match_policy: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct ClaimRule {
    pub(crate) claim: String,
    pub(crate) required_value: String,
    expression: String,
    message: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ClaimMappings {
    pub(crate) username: Prefixed,
    pub(crate) groups: Prefixed,
    pub(crate) uid: Prefixed,
}

/// A claim, and what is put before its value.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Prefixed {
    pub(crate) claim: String,
    pub(crate) prefix: Option<String>,
    expression: String,
}

impl AuthenticationConfiguration {
    /// Reads and checks the file.
    pub(crate) fn read(path: &Path) -> Result<Self, FileError> {
        let text = std::fs::read_to_string(path).map_err(|error| FileError::new(path, error))?;
        let config: Self = serde_yaml_ng::from_str(&text).map_err(|error| FileError::new(path, error))?;
        match config.wrong() {
            Some(cause) => Err(FileError::new(path, cause)),
            None => Ok(config),
        }
    }

    fn wrong(&self) -> Option<String> {
        if !self.api_version.starts_with(GROUP) || self.kind != KIND {
            return Some(format!("apiVersion and kind have to be {GROUP}v1 and {KIND}"));
        }
        self.jwt
            .iter()
            .enumerate()
            .find_map(|(at, jwt)| jwt.wrong().map(|(field, detail)| format!("jwt[{at}].{field}: {detail}")))
    }
}

impl Jwt {
    /// The first field that is wrong, and why.
    fn wrong(&self) -> Option<(&'static str, &'static str)> {
        const CEL: &str = "CEL expressions are not supported; name a claim";
        let Self { issuer, claim_mappings, claim_validation_rules } = self;
        let ClaimMappings { username, groups, uid } = claim_mappings;
        let checks = [
            (!issuer.url.starts_with("https://"), "issuer.url", "has to be an https URL"),
            (issuer.audiences.is_empty(), "issuer.audiences", "at least one is needed"),
            (
                !matches!(issuer.audience_match_policy.as_str(), "" | "MatchAny"),
                "issuer.audienceMatchPolicy",
                "supported values: \"MatchAny\"",
            ),
            (!username.expression.is_empty(), "claimMappings.username.expression", CEL),
            (!groups.expression.is_empty(), "claimMappings.groups.expression", CEL),
            (!uid.expression.is_empty(), "claimMappings.uid.expression", CEL),
            (username.claim.is_empty(), "claimMappings.username.claim", "is needed"),
            (
                username.prefix.is_none(),
                "claimMappings.username.prefix",
                "is required when claim is set. It can be set to an empty string to disable prefixing",
            ),
            (
                !groups.claim.is_empty() && groups.prefix.is_none(),
                "claimMappings.groups.prefix",
                "is required when claim is set. It can be set to an empty string to disable prefixing",
            ),
            (
                claim_validation_rules
                    .iter()
                    .any(|rule| !rule.expression.is_empty() || !rule.message.is_empty()),
                "claimValidationRules",
                CEL,
            ),
        ];
        checks.into_iter().find_map(|(wrong, field, detail)| wrong.then_some((field, detail)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<AuthenticationConfiguration, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        std::fs::write(&path, text).unwrap();
        AuthenticationConfiguration::read(&path).map_err(|error| error.to_string())
    }

    const HEAD: &str = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\n";

    #[test]
    fn a_file_says_whom_to_believe() {
        let jwt = "jwt:\n- issuer: {url: 'https://a', audiences: [x]}\n  claimMappings: {username: {claim: sub, prefix: ''}}\n";
        let config =
            read(&format!("{HEAD}{jwt}anonymous: {{enabled: true, conditions: [{{path: /livez}}]}}\n"))
                .unwrap();
        assert_eq!(config.jwt[0].issuer.url, "https://a");
        let anonymous = config.anonymous.unwrap();
        assert!(anonymous.allows("/livez") && !anonymous.allows("/version"));
    }

    #[test]
    fn a_file_that_makes_no_sense_says_where() {
        let cases = [
            ("kind: x\napiVersion: y\n".to_owned(), "apiVersion and kind"),
            (format!("{HEAD}jwts: []\n"), "unknown field"),
            (
                format!("{HEAD}jwt:\n- issuer: {{url: 'http://a'}}\n  claimMappings: {{}}\n"),
                "jwt[0].issuer.url",
            ),
            (
                format!(
                    "{HEAD}jwt:\n- issuer: {{url: 'https://a', audiences: [x]}}\n  claimMappings: {{username: {{claim: sub}}}}\n"
                ),
                "claimMappings.username.prefix",
            ),
            (
                format!(
                    "{HEAD}jwt:\n- issuer: {{url: 'https://a', audiences: [x]}}\n  claimMappings: {{username: {{expression: y}}}}\n"
                ),
                "CEL",
            ),
        ];
        for (text, cause) in cases {
            let said = read(&text).unwrap_err();
            assert!(said.contains(cause), "{said}");
        }
    }
}
