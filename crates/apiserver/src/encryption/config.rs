//! The file: an EncryptionConfiguration of `apiserver.config.k8s.io/v1`, read strictly and checked in upstream's words.
//! Source: `apiserver/pkg/apis/apiserver/validation/validation_encryption.go`.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::cipher::Cipher;
use super::{ANY, Provider, Providers};
use crate::field::{FieldError, FieldErrors};

/// Lengths of AES keys in bytes.
const AES: &[usize] = &[16, 24, 32];
/// The length of secretbox's keys in bytes.
const SECRETBOX: &[usize] = &[32];
/// What is said of a value whose key is not there.
const NO_AES_KEY: &str = "no matching key was found for the provided AES transformer";
const NO_SECRETBOX_KEY: &str = "no matching key was found for the provided Secretbox transformer";
/// Rows of the store that are no resources.
const NO_RESOURCES: [&str; 3] = ["apiserveripinfo", "serviceipallocations", "servicenodeportallocations"];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Configuration {
    api_version: String,
    kind: String,
    #[serde(default)]
    resources: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    providers: Vec<Named>,
}

/// One provider: exactly one of its fields is there.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    aesgcm: Option<KeyList>,
    aescbc: Option<KeyList>,
    secretbox: Option<KeyList>,
    identity: Option<Nothing>,
    kms: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyList {
    #[serde(default)]
    keys: Vec<Key>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    #[serde(default)]
    name: String,
    #[serde(default)]
    secret: String,
}

/// Makes a cipher of a key.
type Make = fn(&[u8]) -> Option<Cipher>;

/// A provider that has keys: its field, how its values begin, its keys' lengths, and what is said of unknown ones.
struct Keyed<'a> {
    field: &'static str,
    keys: &'a [Key],
    lengths: &'static [usize],
    make: Make,
    unknown_key: &'static str,
}

impl Named {
    fn keyed(&self) -> impl Iterator<Item = Keyed<'_>> {
        let rows: [(_, &Option<KeyList>, _, Make, _); 3] = [
            ("aesgcm", &self.aesgcm, AES, Cipher::gcm, NO_AES_KEY),
            ("aescbc", &self.aescbc, AES, Cipher::cbc, NO_AES_KEY),
            ("secretbox", &self.secretbox, SECRETBOX, Cipher::secretbox, NO_SECRETBOX_KEY),
        ];
        rows.into_iter().filter_map(|(field, list, lengths, make, unknown_key)| {
            let keys = &list.as_ref()?.keys;
            Some(Keyed { field, keys, lengths, make, unknown_key })
        })
    }
}

/// Reads the file's text. What is wrong is said without any of the keys.
pub(super) fn parse(text: &[u8]) -> Result<Providers, String> {
    if text.iter().all(u8::is_ascii_whitespace) {
        return Err("encryption provider configuration file is empty".to_owned());
    }
    let read: Configuration = serde_yaml_ng::from_slice(text)
        .map_err(|error| format!("error decoding encryption provider configuration file: {error}"))?;
    if (read.api_version.as_str(), read.kind.as_str())
        != ("apiserver.config.k8s.io/v1", "EncryptionConfiguration")
    {
        return Err(format!("got unexpected config type: {}, Kind={}", read.api_version, read.kind));
    }
    let errors = check(&read);
    if !errors.is_empty() {
        let said: Vec<String> =
            errors.iter().map(|error| format!("{}: {}", error.field, error.message)).collect();
        return Err(said.join(", "));
    }
    providers(&read)
}

fn providers(read: &Configuration) -> Result<Providers, String> {
    let mut lists: HashMap<(String, String), Vec<Provider>> = HashMap::new();
    for entry in &read.resources {
        for name in &entry.resources {
            let (group, resource) = group_resource(name);
            let group_rule = (group.to_owned(), ANY.to_owned());
            for earlier in [group_rule, (ANY.to_owned(), ANY.to_owned())] {
                if lists.contains_key(&earlier) {
                    let earlier = format!("{}.{}", earlier.1, earlier.0);
                    return Err(format!("resource {name:?} is masked by earlier rule {earlier:?}"));
                }
            }
            let list = lists.entry((group.to_owned(), resource.to_owned())).or_default();
            for provider in &entry.providers {
                append(list, provider)?;
            }
        }
    }
    Ok(Providers { by_resource: lists.into_iter().map(|(name, list)| (name, Arc::new(list))).collect() })
}

fn append(list: &mut Vec<Provider>, named: &Named) -> Result<(), String> {
    if named.identity.is_some() {
        list.push(Provider { prefix: Vec::new(), cipher: None, unknown_key: "" });
    }
    for Keyed { field, keys, make, unknown_key, .. } in named.keyed() {
        for Key { name, secret } in keys {
            let secret = STANDARD.decode(secret).unwrap_or_default();
            let cipher =
                make(&secret).ok_or_else(|| format!("error while creating cipher for named key {name}"))?;
            let prefix = format!("k8s:enc:{field}:v1:{name}:").into_bytes();
            list.push(Provider { prefix, cipher: Some(cipher), unknown_key });
        }
    }
    Ok(())
}

/// `secrets`, `widgets.example.com`, `*.` (of the core group), `*.apps`, `*.*`.
fn group_resource(name: &str) -> (&str, &str) {
    name.split_once('.').map_or(("", name), |(resource, group)| (group, resource))
}

fn check(read: &Configuration) -> FieldErrors {
    let mut errors = FieldErrors::new();
    if read.resources.is_empty() {
        errors.push(FieldError::required("resources", "at least one resources is required"));
    }
    for (at, entry) in read.resources.iter().enumerate() {
        let (names, providers) = (format!("resources[{at}].resources"), format!("resources[{at}].providers"));
        if entry.resources.is_empty() {
            errors.push(FieldError::required(names.clone(), &format!("at least one {names} is required")));
        }
        check_overlap(&entry.resources, &names, &mut errors);
        for (at, name) in entry.resources.iter().enumerate() {
            if let Some(detail) = wrong_name(name) {
                errors.push(FieldError::invalid(format!("{names}[{at}]"), &json!(name), detail));
            }
        }
        if entry.providers.is_empty() {
            let detail = format!("at least one {providers} is required");
            errors.push(FieldError::required(providers.clone(), &detail));
        }
        for (at, provider) in entry.providers.iter().enumerate() {
            check_provider(provider, &format!("{providers}[{at}]"), &mut errors);
        }
    }
    errors
}

fn check_overlap(names: &[String], field: &str, errors: &mut FieldErrors) {
    let pairs = || {
        let numbered = || names.iter().map(|name| group_resource(name)).enumerate();
        numbered().flat_map(move |(i, one)| {
            numbered().filter(move |(j, _)| i != *j).map(move |(_, other)| (one, other))
        })
    };
    if pairs().any(|(one, other)| one == other) {
        let detail = "the same resource cannot be specified multiple times";
        errors.push(FieldError::invalid(field, &json!(names), detail));
    }
    let masks = |((group, resource), (other_group, other)): ((&str, &str), (&str, &str))| {
        (group, resource) != (other_group, other)
            && ((group, resource) == (ANY, ANY)
                || (group == other_group && (resource == ANY || other == ANY)))
    };
    if pairs().any(masks) {
        let detail = "using overlapping resources such as 'secrets' and '*.' in the same resource list is not allowed as \
                      they will be masked";
        errors.push(FieldError::invalid(field, &json!(names), detail));
    }
}

fn wrong_name(name: &str) -> Option<&'static str> {
    let (group, resource) = group_resource(name);
    Some(match (group, resource) {
        _ if name.chars().any(char::is_uppercase) => "resource name should not contain capital letters",
        _ if name == ANY => {
            "use '*.' to encrypt all the resources from core API group or *.* to encrypt all resources"
        }
        _ if NO_RESOURCES.contains(&name) => "resources which do not have REST API/s cannot be encrypted",
        ("events.k8s.io", _) => {
            "'*.events.k8s.io' objects are stored using the 'events' API group in etcd. Use 'events' instead in the \
             config file"
        }
        ("extensions", _) => "'extensions' group has been removed and cannot be used for encryption",
        (ANY, resource) if resource != ANY => "encrypting the same resource across groups is not supported",
        _ => return None,
    })
}

fn check_provider(provider: &Named, field: &str, errors: &mut FieldErrors) {
    let others = usize::from(provider.identity.is_some()) + usize::from(provider.kms.is_some());
    match provider.keyed().count() + others {
        0 => {
            let detail = "provider does not contain any of the expected providers: KMS, AESGCM, AESCBC, Secretbox, \
                          Identity";
            errors.push(FieldError::invalid(field, &Value::Null, detail));
        }
        1 if provider.kms.is_some() => {
            let detail =
                "key management services are not supported; name aesgcm, aescbc, secretbox or identity";
            errors.push(FieldError::forbidden(format!("{field}.kms"), detail));
        }
        1 => {}
        _ => {
            let detail = "more than one provider specified in a single element, should split into different list \
                          elements";
            errors.push(FieldError::invalid(field, &Value::Null, detail));
        }
    }
    for keyed in provider.keyed() {
        let list = format!("{field}.{}.keys", keyed.field);
        if keyed.keys.is_empty() {
            errors.push(FieldError::required(list.clone(), "at least one keys is required"));
        }
        for (at, key) in keyed.keys.iter().enumerate() {
            check_key(key, &format!("{list}[{at}]"), keyed.lengths, errors);
        }
    }
}

fn check_key(key: &Key, field: &str, lengths: &[usize], errors: &mut FieldErrors) {
    if key.name.is_empty() {
        errors.push(FieldError::required(format!("{field}.name"), "name is a mandatory field for a key"));
    }
    let secret = format!("{field}.secret");
    if key.secret.is_empty() {
        errors.push(FieldError::required(secret, "secret is a mandatory field for a key"));
        return;
    }
    let redacted = json!("REDACTED");
    match STANDARD.decode(&key.secret) {
        Err(_) => errors.push(FieldError::invalid(secret, &redacted, "secrets must be base64 encoded")),
        Ok(bytes) if !lengths.contains(&bytes.len()) => {
            let lengths: Vec<String> = lengths.iter().map(usize::to_string).collect();
            let (got, known) = (bytes.len(), lengths.join(" "));
            let detail =
                format!("secret is not of the expected length, got {got}, expected one of [{known}]");
            errors.push(FieldError::invalid(secret, &redacted, &detail));
        }
        Ok(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(resources: &str) -> String {
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources: {resources}"
        );
        parse(text.as_bytes()).err().unwrap_or_default()
    }

    #[test]
    fn a_file_that_cannot_be_used_says_why_and_shows_no_key() {
        let secret = STANDARD.encode([7; 20]);
        for (resources, expected) in [
            ("[]", "resources: Required value: at least one resources is required"),
            ("[{resources: [secrets], providers: [{}]}]", "does not contain any of the expected providers"),
            ("[{resources: [secrets], providers: [{kms: {name: a}}]}]", "providers[0].kms: Forbidden"),
            ("[{resources: ['*'], providers: [{identity: {}}]}]", "use '*.' to encrypt all"),
            ("[{resources: [secrets, '*.'], providers: [{identity: {}}]}]", "using overlapping resources"),
            ("[{resources: [a, a], providers: [{identity: {}}]}]", "cannot be specified multiple times"),
            (
                "[{resources: ['*.*'], providers: [{identity: {}}]}, {resources: [a], providers: [{identity: {}}]}]",
                "resource \"a\" is masked by earlier rule \"*.*\"",
            ),
            ("[{resources: [a], providers: [{aesgcm: {keys: []}}]}]", "aesgcm.keys: Required value"),
            ("[{resources: [a], providers: [{rot13: {}}]}]", "unknown field"),
        ] {
            let got = said(resources);
            assert!(got.contains(expected), "{resources}: {got}");
        }
        let short = said(&format!(
            "[{{resources: [a], providers: [{{aescbc: {{keys: [{{name: k, secret: {secret}}}]}}}}]}}]"
        ));
        assert!(short.contains("got 20, expected one of [16 24 32]") && !short.contains(&secret), "{short}");
        assert_eq!(said("[{resources: ['*.', widgets.example.com], providers: [{identity: {}}]}]"), "");
    }

    #[test]
    fn resources_are_found_from_the_narrowest_rule_on() {
        let text = b"apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n\
            - {resources: [widgets.example.com], providers: [{identity: {}}]}\n\
            - {resources: ['*.apps'], providers: [{identity: {}}, {identity: {}}]}\n\
            - {resources: ['*.*'], providers: [{identity: {}}, {identity: {}}, {identity: {}}]}\n";
        let read = parse(text).unwrap();
        let count = |key: &str| read.of(key.as_bytes()).map(<[_]>::len);
        assert_eq!(count("/registry/example.com/widgets/ns/a"), Some(1));
        assert_eq!(count("/registry/apps/deployments/ns/a"), Some(2));
        assert_eq!(count("/registry/core/secrets/ns/a"), Some(3));
        assert_eq!(count("/skiff/apiservers/a"), None);
    }
}
