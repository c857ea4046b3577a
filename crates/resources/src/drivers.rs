//! What is wrong with the sources of single kinds of volumes, those of old drivers above all. Source: the functions
//! `validate…VolumeSource` in `core/validation/validation.go`.

use std::sync::LazyLock;

use apiserver::field::FieldErrors;
use apiserver::strategy::NameRule;
use regex::Regex;
use serde_json::json;

use crate::at::At;
use crate::certificates;
use crate::volume_sources::{csi_driver, descending};

const REGISTRY: &str = "must be a host:port pair or multiple pairs separated by commas";
const CACHING: [&str; 3] = ["None", "ReadOnly", "ReadWrite"];
const DISKS: [&str; 3] = ["Dedicated", "Managed", "Shared"];
const MANAGED_URI: &str =
    "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}";
const BLOB_URI: &str = "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd";
/// Upstream's patterns of iSCSI names.
/// The kinds of names of iSCSI, with what each looks like: compiled once, since a pod may name many.
/// Source: `iscsiInitiatorIqnRegex` and its sisters.
static ISCSI_NAMES: LazyLock<[(&str, Option<Regex>); 3]> = LazyLock::new(|| {
    let of = |kind, pattern| (kind, Regex::new(pattern).ok());
    [
        of("iqn", r"iqn\.[0-9]{4}-[0-9]{2}\.([-.0-9A-Za-z]+)(:[^,;*&$|\t\n\f\r ]+)$"),
        of("eui", r"^eui.[0-9A-Za-z]{16}$"),
        of("naa", r"^naa.[0-9A-Za-z]{32}$"),
    ]
});

/// What is wrong with a source beyond what it lacks; `persistent`: that of a PersistentVolume, which refers to Secrets in
/// any namespace.
pub(crate) fn validate(kind: &str, source: &At<'_>, persistent: bool, errors: &mut FieldErrors) {
    match kind {
        "gcePersistentDisk" | "awsElasticBlockStore" => source.get("partition").between(0, 255, errors),
        "gitRepo" => descending(&source.get("directory"), errors),
        "iscsi" => iscsi(source, persistent, errors),
        "fc" => fibre_channel(source, errors),
        "rbd" => {
            monitors(source, errors);
            source.get("image").present("", errors);
        }
        "cephfs" => monitors(source, errors),
        "quobyte" => quobyte(source, errors),
        "flocker" => flocker(source, errors),
        "glusterfs" if persistent => {
            let namespace = source.get("endpointsNamespace");
            if namespace.is_set() && namespace.text().is_empty() {
                let detail = "if the endpointnamespace is set, it must be a valid namespace name";
                errors.push(namespace.invalid(detail));
            } else if namespace.is_set() {
                namespace.name(NameRule::Label, errors);
            }
        }
        "cinder" => secret(source, persistent, errors),
        "storageos" => {
            source.get("volumeName").named(NameRule::Label, errors);
            source.get("volumeNamespace").name_if_set(NameRule::Label, errors);
            secret(source, persistent, errors);
        }
        "flexVolume" => flex_options(&source.get("options"), errors),
        "azureFile" if persistent && source.has("secretNamespace") => {
            source.get("secretNamespace").present("", errors);
        }
        "azureDisk" => azure_disk(source, errors),
        "csi" => csi(source, persistent, errors),
        _ => {}
    }
}

fn monitors(source: &At<'_>, errors: &mut FieldErrors) {
    if source.get("monitors").is_empty() {
        errors.push(source.get("monitors").required(""));
    }
}

fn iscsi(source: &At<'_>, persistent: bool, errors: &mut FieldErrors) {
    // Upstream says less of persistent ones.
    let kinds = if persistent {
        "must be valid format"
    } else {
        "must be valid format starting with iqn, eui, or naa"
    };
    for (field, told) in [("iqn", "iqn"), ("initiatorName", "initiatorname")] {
        let name = At::new(source.get(field).value, source.child(told));
        if !name.is_set() || (field == "iqn" && name.text().is_empty()) {
            continue;
        }
        match ISCSI_NAMES.iter().find(|(kind, _)| name.text().starts_with(kind)) {
            None => errors.push(name.invalid(kinds)),
            Some((_, form)) if !form.as_ref().is_some_and(|form| form.is_match(name.text())) => {
                errors.push(name.invalid("must be valid format"));
            }
            Some(_) => {}
        }
    }
    source.get("lun").between(0, 255, errors);
    let authenticates =
        ["chapAuthDiscovery", "chapAuthSession"].iter().any(|field| source.get(field).truth());
    let reference = source.get("secretRef");
    if authenticates && !reference.is_set() {
        errors.push(reference.required(""));
    }
    if persistent && reference.is_set() {
        reference.get("name").present("", errors);
    }
}

fn fibre_channel(source: &At<'_>, errors: &mut FieldErrors) {
    let (targets, ids, lun) = (source.get("targetWWNs"), source.get("wwids"), source.get("lun"));
    if targets.is_empty() && ids.is_empty() {
        errors.push(targets.required("must specify either targetWWNs or wwids, but not both"));
    }
    if !targets.is_empty() && !ids.is_empty() {
        errors.push(targets.invalid("targetWWNs and wwids can not be specified simultaneously"));
    }
    if !targets.is_empty() && !lun.is_set() {
        errors.push(lun.required("lun is required if targetWWNs is specified"));
    } else if !targets.is_empty() {
        lun.between(0, 255, errors);
    }
}

fn quobyte(source: &At<'_>, errors: &mut FieldErrors) {
    let (registry, tenant) = (source.get("registry"), source.get("tenant"));
    if !registry.present(REGISTRY, errors) {
    } else if tenant.text().len() >= 65 {
        let detail = "must be a UUID and may not exceed a length of 64 characters";
        errors.push(tenant.required(detail));
    } else if !registry.text().split(',').all(is_host_and_port) {
        errors.push(registry.invalid(REGISTRY));
    }
    source.get("volume").present("", errors);
}

/// Source: Go's `net.SplitHostPort`.
fn is_host_and_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let plain = |text: &str| !text.contains(['[', ']']);
    plain(port) && inner.map_or(plain(host) && !host.contains(':'), plain)
}

fn flocker(source: &At<'_>, errors: &mut FieldErrors) {
    let (name, id) = (source.get("datasetName"), source.get("datasetUUID"));
    match (name.text().is_empty(), id.text().is_empty()) {
        (true, true) => errors.push(source.required("one of datasetName and datasetUUID is required")),
        (false, false) => {
            let detail = "datasetName and datasetUUID can not be specified simultaneously";
            errors.push(At::new(&json!("resource"), source.path.clone()).invalid(detail));
        }
        _ => {}
    }
    if name.text().contains('/') {
        errors.push(name.invalid("must not contain '/'"));
    }
}

fn secret(source: &At<'_>, persistent: bool, errors: &mut FieldErrors) {
    let reference = source.get("secretRef");
    let fields: &[&str] = if persistent { &["name", "namespace"] } else { &["name"] };
    for field in fields.iter().filter(|_| reference.is_set()) {
        reference.get(field).present("", errors);
    }
}

fn flex_options(options: &At<'_>, errors: &mut FieldErrors) {
    for (key, option) in options.entries() {
        let namespace = key.split_once('/').map_or(key, |(namespace, _)| namespace).to_lowercase();
        let reserved = |of: &str| namespace == of || namespace.ends_with(&format!(".{of}"));
        if reserved("kubernetes.io") || reserved("k8s.io") {
            let detail = "kubernetes.io and k8s.io namespaces are reserved";
            errors.push(At::new(&json!(key), option.path).invalid(detail));
        }
    }
}

fn azure_disk(source: &At<'_>, errors: &mut FieldErrors) {
    source.get("cachingMode").one_of_if_set(&CACHING, errors);
    let (kind, uri) = (source.get("kind"), source.get("diskURI"));
    kind.one_of_if_set(&DISKS, errors);
    let (begins, form) =
        if kind.text() == "Managed" { ("/subscriptions/", MANAGED_URI) } else { ("https://", BLOB_URI) };
    if kind.is_set() && !uri.text().starts_with(begins) {
        errors.push(uri.not_supported(&[form]));
    }
}

fn csi(source: &At<'_>, persistent: bool, errors: &mut FieldErrors) {
    csi_driver(&source.get("driver"), errors);
    if !persistent {
        let reference = source.get("nodePublishSecretRef");
        if reference.is_set() && reference.get("name").present("", errors) {
            // Upstream tells of the name without saying whose.
            At::new(reference.get("name").value, source.child("name")).name(NameRule::Subdomain, errors);
        }
        return;
    }
    source.get("volumeHandle").present("", errors);
    let secrets = [
        "controllerPublishSecretRef",
        "controllerExpandSecretRef",
        "nodePublishSecretRef",
        "nodeExpandSecretRef",
    ];
    for reference in secrets.iter().map(|field| source.get(field)).filter(At::is_set) {
        reference.get("name").named(NameRule::Subdomain, errors);
        reference.get("namespace").named(NameRule::Label, errors);
    }
}

/// A projection of certificates that are trusted, by name or of a signer.
pub(crate) fn trust_bundle(bundle: &At<'_>, errors: &mut FieldErrors) {
    let (name, signer) = (bundle.get("name"), bundle.get("signerName"));
    match (name.is_set(), signer.is_set()) {
        (true, true) => errors.push(bundle.invalid("only one of name and signerName may be used")),
        (true, false) => {
            name.present("must be a valid object name", errors);
            bundle_name(&name, errors);
            if bundle.has("labelSelector") {
                let detail = "labelSelector must be unset if name is specified";
                errors.push(bundle.get("labelSelector").invalid(detail));
            }
        }
        (false, true) => {
            signer.present("must be a valid signer name", errors);
            certificates::signer_name(&signer, errors);
            bundle.get("labelSelector").selector(errors);
        }
        (false, false) => errors.push(bundle.required("either name or signerName must be specified")),
    }
}

/// A name says of which signer it is: `example.com:signer:name`.
fn bundle_name(name: &At<'_>, errors: &mut FieldErrors) {
    let own = name.text().rsplit_once(':').map_or(name.text(), |(_, own)| own);
    for detail in apiserver::names::name_problems(NameRule::Subdomain, own) {
        errors.push(name.invalid(&format!("not a valid clustertrustbundlename: {detail}")));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::at::said;
    use crate::volume_sources;

    fn told(kind: &str, source: &Value, persistent: bool) -> Vec<String> {
        let volume = json!({ kind: source });
        let mut errors = Vec::new();
        let others: &[&str] = if persistent { &["capacity", "name"] } else { &["name"] };
        volume_sources::validate(&At::new(&volume, "v"), others, persistent, &mut errors);
        said(&errors)
    }

    #[test]
    fn drivers_get_what_they_understand() {
        let iqn = "iqn.2015-08.com.example:disk:1";
        for (kind, source, wanted) in [
            (
                "gcePersistentDisk",
                json!({ "pdName": "a", "partition": 256 }),
                vec!["v.persistentDisk.partition: Invalid value: 256: must be between 0 and 255, inclusive"],
            ),
            (
                "gitRepo",
                json!({ "repository": "a", "directory": "../b" }),
                vec!["v.gitRepo.directory: Invalid value: \"../b\": must not contain '..'"],
            ),
            ("iscsi", json!({ "targetPortal": "a", "iqn": iqn, "lun": 1 }), vec![]),
            (
                "iscsi",
                json!({ "targetPortal": "a", "iqn": "x", "lun": 256, "chapAuthSession": true, "initiatorName": "eui.1" }),
                vec![
                    "v.iscsi.iqn: Invalid value: \"x\": must be valid format starting with iqn, eui, or naa",
                    "v.iscsi.initiatorname: Invalid value: \"eui.1\": must be valid format",
                    "v.iscsi.lun: Invalid value: 256: must be between 0 and 255, inclusive",
                    "v.iscsi.secretRef: Required value",
                ],
            ),
            (
                "fc",
                json!({}),
                vec![
                    "v.fc.targetWWNs: Required value: must specify either targetWWNs or wwids, but not both",
                ],
            ),
            (
                "fc",
                json!({ "targetWWNs": ["a"] }),
                vec!["v.fc.lun: Required value: lun is required if targetWWNs is specified"],
            ),
            ("rbd", json!({}), vec!["v.rbd.monitors: Required value", "v.rbd.image: Required value"]),
            ("cephfs", json!({}), vec!["v.cephfs.monitors: Required value"]),
            ("quobyte", json!({ "registry": "a:1,[::1]:2", "volume": "b" }), vec![]),
            (
                "quobyte",
                json!({ "registry": "a:1,b" }),
                vec![
                    "v.quobyte.registry: Invalid value: \"a:1,b\": must be a host:port pair or multiple pairs separated by commas",
                    "v.quobyte.volume: Required value",
                ],
            ),
            (
                "flocker",
                json!({}),
                vec!["v.flocker: Required value: one of datasetName and datasetUUID is required"],
            ),
            (
                "flexVolume",
                json!({ "driver": "d", "options": { "a.K8s.io/x": "", "k8s.iox": "" } }),
                vec![
                    "v.flexVolume.options[a.K8s.io/x]: Invalid value: \"a.K8s.io/x\": kubernetes.io and k8s.io namespaces are \
                 reserved",
                ],
            ),
            (
                "azureDisk",
                json!({ "diskName": "a", "diskURI": "b", "kind": "Managed", "cachingMode": "x" }),
                vec![
                    "v.azureDisk.cachingMode: Unsupported value: \"x\": supported values: \"None\", \"ReadOnly\", \"ReadWrite\"",
                    "v.azureDisk.diskURI: Unsupported value: \"b\": supported values: \"/subscriptions/{sub-id}/resourcegroups/\
                     {group-name}/providers/microsoft.compute/disks/{disk-id}\"",
                ],
            ),
            (
                "csi",
                json!({ "driver": "d", "nodePublishSecretRef": {} }),
                vec!["v.csi.nodePublishSecretRef.name: Required value"],
            ),
            (
                "cinder",
                json!({ "volumeID": "a", "secretRef": {} }),
                vec!["v.cinder.secretRef.name: Required value"],
            ),
        ] {
            assert_eq!(told(kind, &source, false), wanted, "{kind} {source}");
        }
        assert_eq!(
            told("cinder", &json!({ "volumeID": "a", "secretRef": {} }), true),
            ["v.cinder.secretRef.name: Required value", "v.cinder.secretRef.namespace: Required value"]
        );
        assert_eq!(
            told("csi", &json!({ "driver": "d", "nodeExpandSecretRef": { "name": "a" } }), true),
            ["v.csi.volumeHandle: Required value", "v.csi.nodeExpandSecretRef.namespace: Required value"]
        );
        assert_eq!(told("cephfs", &json!({ "monitors": ["a"], "x": 1 }), true), Vec::<String>::new());
    }

    #[test]
    fn trust_is_by_name_or_of_a_signer() {
        let at = "v.projected.sources[0].clusterTrustBundle";
        for (bundle, wanted) in [
            (
                json!({ "path": "p" }),
                format!("{at}: Required value: either name or signerName must be specified"),
            ),
            (
                json!({ "path": "p", "name": "a", "labelSelector": {} }),
                format!(
                    "{at}.labelSelector: Invalid value: {{}}: labelSelector must be unset if name is specified"
                ),
            ),
            (json!({ "name": "a" }), format!("{at}.path: Required value")),
        ] {
            let source = json!({ "sources": [{ "clusterTrustBundle": bundle }] });
            assert_eq!(told("projected", &source, false), [wanted]);
        }
        let twice = json!({ "name": "a", "path": "p" });
        let source = json!({ "sources": [{ "clusterTrustBundle": twice }, { "clusterTrustBundle": twice }] });
        assert_eq!(
            told("projected", &source, false),
            ["v.projected: Invalid value: \"p\": conflicting duplicate paths"]
        );
    }
}
