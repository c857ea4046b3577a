//! The file that says which JWTs are believed. Source: `apiserver.config.k8s.io` `AuthenticationConfiguration` and its
//! validation, `pkg/apis/apiserver/validation`.

use std::path::Path;

use serde::Deserialize;

use super::claims::Claims;
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
    pub(crate) claim_validation_rules: Vec<Rule>,
    pub(crate) claim_mappings: ClaimMappings,
    #[serde(default)]
    pub(crate) user_validation_rules: Vec<UserRule>,
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

/// What claims have to be: a claim with a value, or an expression.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct Rule {
    pub(crate) claim: String,
    pub(crate) required_value: String,
    pub(crate) expression: String,
    pub(crate) message: String,
}

/// What the user has to be.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct UserRule {
    pub(crate) expression: String,
    pub(crate) message: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ClaimMappings {
    pub(crate) username: Mapped,
    pub(crate) groups: Mapped,
    pub(crate) uid: Mapped,
    pub(crate) extra: Vec<Extra>,
}

/// A claim, and what is put before its value; or an expression.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Mapped {
    pub(crate) claim: String,
    pub(crate) prefix: Option<String>,
    pub(crate) expression: String,
}

/// An extra of the user.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct Extra {
    pub(crate) key: String,
    pub(crate) value_expression: String,
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
            .or_else(|| self.repeated_issuer())
    }

    fn repeated_issuer(&self) -> Option<String> {
        let mut urls = std::collections::HashSet::new();
        let at = self.jwt.iter().position(|jwt| !urls.insert(&jwt.issuer.url))?;
        Some(format!("jwt[{at}].issuer.url: Duplicate value: {:?}", self.jwt[at].issuer.url))
    }
}

impl Jwt {
    /// The first field that is wrong, and why.
    fn wrong(&self) -> Option<(String, String)> {
        const VERIFIED: &str = "claims.email_verified must be used in claimMappings.username.expression or \
            claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is used \
            in claimMappings.username.expression";
        let Self { issuer, claim_mappings, .. } = self;
        let ClaimMappings { username, groups, uid, extra } = claim_mappings;
        let policy = issuer.audience_match_policy.as_str();
        let checks = [
            (!issuer.url.starts_with("https://"), "issuer.url", "has to be an https URL"),
            (issuer.audiences.is_empty(), "issuer.audiences", "at least one is needed"),
            (
                !matches!(policy, "" | "MatchAny") || policy.is_empty() && issuer.audiences.len() > 1,
                "issuer.audienceMatchPolicy",
                "must be MatchAny for multiple audiences; supported values: \"MatchAny\"",
            ),
            (
                username.claim.is_empty() && username.expression.is_empty(),
                "claimMappings.username",
                "claim or expression is required",
            ),
            (uid.prefix.is_some(), "claimMappings.uid.prefix", "is not a field of uid; use an expression"),
            (self.believes_any_mail(), "claimMappings.username.expression", VERIFIED),
        ];
        let first = checks.into_iter().find_map(|(wrong, field, detail)| wrong.then_some((field, detail)));
        let mapped = [("username", username), ("groups", groups), ("uid", uid)];
        first
            .map(|(field, detail)| (field.to_owned(), detail.to_owned()))
            .or_else(|| mapped.into_iter().find_map(|(name, mapped)| mapped.wrong(name)))
            .or_else(|| wrong_extra(extra))
            .or_else(|| self.claim_validation_rules.iter().enumerate().find_map(|(at, rule)| rule.wrong(at)))
            .or_else(|| Claims::new(self).err())
    }

    /// Whether a name is made of a mail address of which nobody asks whether it was verified.
    fn believes_any_mail(&self) -> bool {
        let says = |expression: &str, claim: &str| expression.contains(claim);
        let mappings = &self.claim_mappings;
        let name = mappings.username.expression.as_str();
        // `claims.email_verified` begins like it.
        let mail = name.replace("claims.email_verified", "").contains("claims.email");
        let extras = mappings.extra.iter().map(|extra| extra.value_expression.as_str());
        let rules = self.claim_validation_rules.iter().map(|rule| rule.expression.as_str());
        mail && !extras.chain(rules).chain([name]).any(|text| says(text, "claims.email_verified"))
    }
}

impl Mapped {
    fn wrong(&self, name: &str) -> Option<(String, String)> {
        let field = |rest: &str| format!("claimMappings.{name}{rest}");
        if !self.claim.is_empty() && !self.expression.is_empty() {
            return Some((field(""), "claim and expression can't both be set".into()));
        }
        if !self.expression.is_empty() && self.prefix.is_some() {
            return Some((field(".prefix"), "prefix can't be set when expression is set".into()));
        }
        let unprefixed = !self.claim.is_empty() && self.prefix.is_none() && name != "uid";
        unprefixed.then(|| {
            let detail =
                "is required when claim is set. It can be set to an empty string to disable prefixing";
            (field(".prefix"), detail.into())
        })
    }
}

impl Rule {
    fn wrong(&self, at: usize) -> Option<(String, String)> {
        let found =
            |field: &str, detail: &str| Some((format!("claimValidationRules[{at}]{field}"), detail.into()));
        match (self.claim.is_empty(), self.expression.is_empty()) {
            (true, true) => found("", "claim or expression is required"),
            (false, false) => found("", "claim and expression can't both be set"),
            (false, true) if !self.message.is_empty() => {
                found(".message", "message can't be set when claim is set")
            }
            (true, false) if !self.required_value.is_empty() => {
                found(".requiredValue", "requiredValue can't be set when expression is set")
            }
            _ => None,
        }
    }
}

/// Keys of extras are `domain/path` in lower case, and not Kubernetes' own.
fn wrong_extra(extra: &[Extra]) -> Option<(String, String)> {
    let mut known = std::collections::HashSet::new();
    extra.iter().enumerate().find_map(|(at, Extra { key, .. })| {
        let domain = key.split_once('/').map_or("", |(domain, _)| domain);
        let is_reserved = |zone: &str| domain == zone || domain.ends_with(&format!(".{zone}"));
        let detail = if domain.is_empty() || key.ends_with('/') {
            "must be a domain-prefixed path (such as \"acme.io/foo\")"
        } else if key.chars().any(char::is_uppercase) {
            "key must be lowercase"
        } else if is_reserved("k8s.io") || is_reserved("kubernetes.io") {
            "k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use"
        } else if !known.insert(key) {
            "Duplicate value"
        } else {
            return None;
        };
        Some((format!("claimMappings.extra[{at}].key"), detail.to_owned()))
    })
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
                "jwt[0].claimMappings.username.expression: ERROR: <input>:1:1: undeclared reference to 'y'",
            ),
            (
                format!(
                    "{HEAD}jwt:\n- issuer: {{url: 'https://a', audiences: [x]}}\n  claimMappings: {{username: {{expression: claims.email}}}}\n"
                ),
                "claims.email_verified must be used",
            ),
            (
                format!(
                    "{HEAD}jwt:\n- issuer: {{url: 'https://a', audiences: [x]}}\n  claimMappings: {{username: {{expression: claims.sub}}, extra: [{{key: k8s.io/a, valueExpression: claims.a}}]}}\n"
                ),
                "jwt[0].claimMappings.extra[0].key: k8s.io",
            ),
        ];
        for (text, cause) in cases {
            let said = read(&text).unwrap_err();
            assert!(said.contains(cause), "{said}");
        }
    }
}
