//! The file that configures plugins of admission: an AdmissionConfiguration of `apiserver.config.k8s.io/v1`, read strictly.
//! It says what holds where no label asks for pod security, which resources nobody gets without a quota, and adds
//! plugins that no chain has by itself. Source: `apiserver/pkg/admission/config.go`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_yaml_ng::Value;

use super::pod_security::Settings;
use super::quota::Limited;
use super::{
    Chain, DenyServiceExternalIps, Link, MutatingWebhooks, PodSecurity, ResourceQuota, Users,
    ValidatingWebhooks,
};
use crate::remote::FileError;

const FILE: (&[&str], &str) = (
    &["apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1alpha1", "apiserver.k8s.io/v1alpha1"],
    "AdmissionConfiguration",
);
const POD_SECURITY: (&[&str], &str) = (
    &[
        "pod-security.admission.config.k8s.io/v1",
        "pod-security.admission.config.k8s.io/v1beta1",
        "pod-security.admission.config.k8s.io/v1alpha1",
    ],
    "PodSecurityConfiguration",
);
const QUOTA_VERSIONS: &[&str] = &[
    "apiserver.config.k8s.io/v1",
    "resourcequota.admission.k8s.io/v1beta1",
    "resourcequota.admission.k8s.io/v1alpha1",
];
/// The kind has the second name in `resourcequota.admission.k8s.io`.
const QUOTA_KINDS: [&str; 2] = ["ResourceQuotaConfiguration", "Configuration"];
const WEBHOOK_VERSIONS: &[&str] = &["apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1alpha1"];
/// The kind had the second name in `v1alpha1`.
const WEBHOOK_KINDS: [&str; 2] = ["WebhookAdmissionConfiguration", "WebhookAdmission"];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    #[serde(default)]
    plugins: Vec<Plugin>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Plugin {
    name: String,
    /// A file beside this one.
    #[serde(default)]
    path: PathBuf,
    #[serde(default)]
    configuration: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct QuotaFile {
    #[serde(default)]
    limited_resources: Vec<Limited>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WebhookFile {
    /// As whom webhooks are asked.
    #[serde(default)]
    kube_config_file: PathBuf,
    #[serde(default)]
    static_manifests_dir: String,
}

/// The chain as a file configures it.
pub(crate) fn configured(mut chain: Chain, path: &Path) -> Result<Chain, FileError> {
    let text = std::fs::read(path).map_err(|error| FileError::new(path, error))?;
    let failed = |cause: String| FileError::new(path, cause);
    let file: File = of_kind(&text, FILE.0, &[FILE.1]).map_err(failed)?;
    for plugin in file.plugins {
        let given = plugin.given(path)?;
        let failed = |cause: String| FileError::new(path, format!("plugin {}: {cause}", plugin.name));
        let link = link(&plugin.name, given.as_deref(), &chain).map_err(failed)?;
        let Some(link) = link else { continue };
        match chain.iter_mut().find(|known| known.name() == link.name()) {
            Some(known) => *known = link,
            None => chain.push(link),
        }
    }
    Ok(chain)
}

impl Plugin {
    /// Its configuration's text, here or in a file of its own.
    fn given(&self, beside: &Path) -> Result<Option<Vec<u8>>, FileError> {
        if !self.path.as_os_str().is_empty() {
            let path = beside.parent().unwrap_or(Path::new("/")).join(&self.path);
            return std::fs::read(&path).map(Some).map_err(|error| FileError::new(&path, error));
        }
        if self.configuration.is_null() {
            return Ok(None);
        }
        let text = serde_yaml_ng::to_string(&self.configuration);
        text.map(|text| Some(text.into_bytes())).map_err(|error| FileError::new(beside, error))
    }
}

/// The link that a plugin's configuration makes; `None` leaves the chain's own.
fn link(name: &str, given: Option<&[u8]>, chain: &Chain) -> Result<Option<Arc<dyn Link>>, String> {
    match (name, given) {
        ("PodSecurity", Some(given)) => {
            let settings: Settings = of_kind(given, POD_SECURITY.0, &[POD_SECURITY.1])?;
            settings.check()?;
            Ok(Some(Arc::new(PodSecurity::of(settings))))
        }
        ("ResourceQuota", Some(given)) => {
            let file: QuotaFile = of_kind(given, QUOTA_VERSIONS, &QUOTA_KINDS)?;
            Ok(Some(Arc::new(ResourceQuota::limiting(file.limited_resources))))
        }
        ("MutatingAdmissionWebhook", Some(given)) => {
            Ok(Some(Arc::new(MutatingWebhooks::asked_as(users(given)?))))
        }
        ("ValidatingAdmissionWebhook", Some(given)) => {
            Ok(Some(Arc::new(ValidatingWebhooks::asked_as(users(given)?))))
        }
        ("DenyServiceExternalIPs", None) => Ok(Some(Arc::new(DenyServiceExternalIps))),
        (_, None) if chain.iter().any(|known| known.name() == name) => Ok(None),
        (_, Some(_)) if chain.iter().any(|known| known.name() == name) => {
            Err("it takes no configuration here; leave the configuration out".to_owned())
        }
        _ => Err("there is no such plugin here; leave it out".to_owned()),
    }
}

/// As whom a plugin's configuration wants webhooks to be asked.
fn users(given: &[u8]) -> Result<Option<Arc<Users>>, String> {
    let file: WebhookFile = of_kind(given, WEBHOOK_VERSIONS, &WEBHOOK_KINDS)?;
    if !file.static_manifests_dir.is_empty() {
        let remedy = "create the webhook configurations as objects instead";
        return Err(format!("staticManifestsDir is not known here; {remedy}"));
    }
    let path = file.kube_config_file;
    if path.as_os_str().is_empty() {
        return Ok(None);
    }
    if !path.is_absolute() {
        return Err(format!("kubeConfigFile: Invalid value: {path:?}: must be an absolute file path"));
    }
    Users::read(&path).map(|users| Some(Arc::new(users))).map_err(|error| error.to_string())
}

/// Reads a text that says of which version and kind it is.
fn of_kind<T: DeserializeOwned>(text: &[u8], versions: &[&str], kinds: &[&str]) -> Result<T, String> {
    let read: Value = serde_yaml_ng::from_slice(text).map_err(|error| error.to_string())?;
    let Value::Mapping(mut read) = read else { return Err(format!("it is no {}", kinds[0])) };
    let mut taken = |field: &str| match read.remove(field) {
        Some(Value::String(text)) => text,
        _ => String::new(),
    };
    let (version, kind) = (taken("apiVersion"), taken("kind"));
    if !versions.contains(&version.as_str()) || !kinds.contains(&kind.as_str()) {
        let known = versions.join(", ");
        return Err(format!(
            "apiVersion {version:?} and kind {kind:?} are not known; kind {} of one of {known} is",
            kinds[0]
        ));
    }
    serde_yaml_ng::from_value(Value::Mapping(read)).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::standard;
    use super::*;

    fn read(text: &str) -> Result<Vec<&'static str>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admission.yaml");
        std::fs::write(dir.path().join("quota.yaml"), "{apiVersion: apiserver.config.k8s.io/v1, kind: X}")
            .unwrap();
        let head = "apiVersion: apiserver.config.k8s.io/v1\nkind: AdmissionConfiguration\nplugins:\n";
        std::fs::write(&path, format!("{head}{text}")).unwrap();
        let chain = configured(standard(), &path).map_err(|error| error.to_string())?;
        Ok(chain.iter().map(|link| link.name()).collect())
    }

    #[test]
    fn a_file_configures_plugins_and_adds_what_no_chain_has_by_itself() {
        let own: Vec<&str> = standard().iter().map(|link| link.name()).collect();
        let pod_security = "- name: PodSecurity\n  configuration: {apiVersion: pod-security.admission.config.k8s.io/v1, \
                            kind: PodSecurityConfiguration, defaults: {enforce: baseline}, \
                            exemptions: {namespaces: [kube-system]}}\n";
        let quota = "- name: ResourceQuota\n  configuration: {apiVersion: resourcequota.admission.k8s.io/v1beta1, \
                     kind: Configuration, limitedResources: [{resource: pods, matchContains: [cpu]}]}\n";
        assert_eq!(read(&format!("{pod_security}{quota}- name: LimitRanger\n")).unwrap(), own);
        let more = read("- name: DenyServiceExternalIPs\n").unwrap();
        assert_eq!(more, [own, vec!["DenyServiceExternalIPs"]].concat());
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said() {
        for (text, says) in [
            ("- name: Nonsense\n", "plugin Nonsense: there is no such plugin"),
            (
                "- name: LimitRanger\n  configuration: {a: b}\n",
                "plugin LimitRanger: it takes no configuration",
            ),
            ("- name: ResourceQuota\n  path: quota.yaml\n", "kind \"X\" are not known"),
            ("- name: ResourceQuota\n  path: none.yaml\n", "none.yaml: "),
            (
                "- name: PodSecurity\n  configuration: {apiVersion: pod-security.admission.config.k8s.io/v1, \
                 kind: PodSecurityConfiguration, defaults: {enforce: strict, warn-version: v2}, \
                 exemptions: {usernames: [a, a]}}\n",
                "defaults.enforce: Invalid value: \"strict\": must be one of privileged, baseline, restricted, \
                 defaults.warn-version: Invalid value: \"v2\": must be \"latest\" or \"v1.x\", \
                 exemptions.usernames[1]: Duplicate value: \"a\"",
            ),
            ("- {name: PodSecurity, nonsense: 1}\n", "unknown field"),
            (
                "- name: MutatingAdmissionWebhook\n  configuration: {apiVersion: apiserver.config.k8s.io/v1, \
                 kind: WebhookAdmissionConfiguration, kubeConfigFile: users}\n",
                "plugin MutatingAdmissionWebhook: kubeConfigFile: Invalid value: \"users\": must be an absolute file path",
            ),
            (
                "- name: ValidatingAdmissionWebhook\n  configuration: {apiVersion: apiserver.config.k8s.io/v1, \
                 kind: WebhookAdmissionConfiguration, staticManifestsDir: /nowhere}\n",
                "staticManifestsDir is not known here; create the webhook configurations as objects",
            ),
            (
                "- name: ValidatingAdmissionWebhook\n  configuration: {apiVersion: apiserver.config.k8s.io/v1alpha1, \
                 kind: WebhookAdmission, kubeConfigFile: /nowhere/users}\n",
                "/nowhere/users: No such file",
            ),
        ] {
            let said = read(text).unwrap_err();
            assert!(said.contains(says), "{text}: {said}");
        }
    }
}
