//! What holds where no label says otherwise, and who is exempt: a PodSecurityConfiguration.
//! Source: `k8s.io/pod-security-admission/admission/api`.

use serde::Deserialize;
use serde_json::json;

use super::policy::{Level, Policy, Standard, Version, level, version};
use crate::field::{FieldError, FieldErrors};
use crate::names::name_problems;
use crate::strategy::NameRule;

/// A PodSecurityConfiguration.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Settings {
    #[serde(default)]
    defaults: Defaults,
    #[serde(default)]
    pub(super) exemptions: Exemptions,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct Defaults {
    enforce: String,
    enforce_version: String,
    audit: String,
    audit_version: String,
    warn: String,
    warn_version: String,
}

/// Who and what is not looked at.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Exemptions {
    pub(super) usernames: Vec<String>,
    pub(super) namespaces: Vec<String>,
    pub(super) runtime_classes: Vec<String>,
}

impl Defaults {
    /// Level and version of each mode.
    fn modes(&self) -> [(&'static str, &str, &str); 3] {
        [
            ("enforce", &self.enforce, &self.enforce_version),
            ("warn", &self.warn, &self.warn_version),
            ("audit", &self.audit, &self.audit_version),
        ]
    }
}

impl Settings {
    /// The policy of a namespace without labels.
    pub(super) fn policy(&self) -> Policy {
        let standard = |(_, named, of): (&str, &str, &str)| Standard {
            level: level(named).unwrap_or(Level::Privileged),
            version: version(of).unwrap_or(Version::Latest),
        };
        let [enforce, warn, audit] = self.defaults.modes().map(standard);
        Policy { enforce, audit, warn }
    }

    /// What is wrong, in upstream's words; empty ones say nothing.
    pub(crate) fn check(&self) -> Result<(), String> {
        let mut errors = FieldErrors::new();
        for (mode, named, of) in self.defaults.modes() {
            if let Some(why) = level(named).err().filter(|_| !named.is_empty()) {
                errors.push(FieldError::invalid(format!("defaults.{mode}"), &json!(named), why));
            }
            if let Some(why) = version(of).err().filter(|_| !of.is_empty()) {
                errors.push(FieldError::invalid(format!("defaults.{mode}-version"), &json!(of), why));
            }
        }
        let Exemptions { usernames, namespaces, runtime_classes } = &self.exemptions;
        check_list("namespaces", namespaces, &mut errors, |name| name_problems(NameRule::Label, name));
        check_list("runtimeClasses", runtime_classes, &mut errors, |name| {
            name_problems(NameRule::Subdomain, name)
        });
        check_list("usernames", usernames, &mut errors, |name| {
            if name.is_empty() { vec!["username must not be empty".to_owned()] } else { Vec::new() }
        });
        let said = errors.iter().map(|error| format!("{}: {}", error.field, error.message));
        let said: Vec<String> = said.collect();
        if said.is_empty() { Ok(()) } else { Err(said.join(", ")) }
    }
}

fn check_list(
    field: &str,
    list: &[String],
    errors: &mut FieldErrors,
    problems: impl Fn(&str) -> Vec<String>,
) {
    for (index, name) in list.iter().enumerate() {
        let field = format!("exemptions.{field}[{index}]");
        let problems = problems(name);
        if !problems.is_empty() {
            errors.push(FieldError::invalid(field, &json!(name), &problems.join(", ")));
        } else if list[..index].contains(name) {
            errors.push(FieldError::duplicate(field, &json!(name)));
        }
    }
}
