//! Where the content of a volume comes from: pods' volumes and PersistentVolumes. Source: `validateVolumeSource` and
//! `ValidatePersistentVolumeSpec` in `core/validation/validation.go`.

use std::collections::HashSet;

use apiserver::field::{FieldError, FieldErrors};
use apiserver::strategy::NameRule;
use serde_json::json;

use crate::at::At;
use crate::{certificates, drivers, field_refs, pod_certificates};

/// The fields that a source cannot do without.
const REQUIRED: [(&str, &[&str]); 19] = [
    ("hostPath", &["path"]),
    ("gitRepo", &["repository"]),
    ("gcePersistentDisk", &["pdName"]),
    ("awsElasticBlockStore", &["volumeID"]),
    ("secret", &["secretName"]),
    ("configMap", &["name"]),
    ("persistentVolumeClaim", &["claimName"]),
    ("nfs", &["server", "path"]),
    ("iscsi", &["targetPortal", "iqn"]),
    ("glusterfs", &["endpoints", "path"]),
    ("cinder", &["volumeID"]),
    ("flexVolume", &["driver"]),
    ("azureFile", &["secretName", "shareName"]),
    ("azureDisk", &["diskName", "diskURI"]),
    ("vsphereVolume", &["volumePath"]),
    ("photonPersistentDisk", &["pdID"]),
    ("portworxVolume", &["volumeID"]),
    ("scaleIO", &["gateway", "system", "volumeName"]),
    ("local", &["path"]),
];
const HOST_PATHS: [&str; 8] =
    ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
const CSI_DRIVER_BYTES_MAX: usize = 63;
/// Where a certificate of the pod's own, and its key, may be written.
const CREDENTIAL_FILES: [&str; 3] = ["credentialBundlePath", "keyPath", "certificateChainPath"];
const KEY_TYPES: [&str; 6] = ["RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"];
const TOKEN_SECONDS_MIN: i64 = 600;
const TOKEN_SECONDS_MAX: i64 = 1 << 32;

/// Sources that upstream names otherwise where it tells of more than one.
const MISNAMED: [(&str, &str); 2] = [("cephfs", "cephFS"), ("downwardAPI", "downwarAPI")];

/// What is wrong with the sources among an object's fields; `others` are its fields that are none, `persistent` whether the
/// object is a PersistentVolume.
pub(crate) fn validate(volume: &At<'_>, others: &[&str], persistent: bool, errors: &mut FieldErrors) {
    let fields = volume.value.as_object().into_iter().flatten();
    let mut given = fields.filter(|(key, value)| !others.contains(&key.as_str()) && !value.is_null());
    let Some((name, _)) = given.next() else {
        errors.push(volume.required("must specify a volume type"));
        return;
    };
    for (second, _) in given {
        let told =
            MISNAMED.iter().find(|(known, _)| known == second).map_or(second.as_str(), |(_, told)| told);
        errors.push(FieldError::forbidden(volume.child(told), "may not specify more than 1 volume type"));
    }
    let mut source = volume.get(name);
    if name == "gcePersistentDisk" {
        source.path = volume.child("persistentDisk");
    }
    if let Some((_, required)) = REQUIRED.iter().find(|(known, _)| known == name) {
        required.iter().for_each(|field| {
            source.get(field).present("", errors);
        });
    }
    match name.as_str() {
        "hostPath" if !source.get("path").text().is_empty() => {
            no_backsteps(&source.get("path"), errors);
            source.get("type").one_of_if_set(&HOST_PATHS, errors);
        }
        "emptyDir" => {
            let limit = source.get("sizeLimit");
            if limit.quantity().is_some_and(|quantity| quantity.is_negative()) {
                errors.push(limit.forbidden("SizeLimit field must be a valid resource quantity"));
            }
        }
        "nfs" if !source.get("path").text().starts_with('/') => {
            errors.push(source.get("path").invalid_text("must be an absolute path"));
        }
        "secret" | "configMap" => {
            mode(&source.get("defaultMode"), errors);
            source.each("items").for_each(|item| key_to_path(&item, errors));
        }
        "downwardAPI" => {
            mode(&source.get("defaultMode"), errors);
            source.each("items").for_each(|item| downward_file(&item, &source, errors));
        }
        "projected" => projected(&source, errors),
        "ephemeral" => {
            let template = source.get("volumeClaimTemplate");
            if template.is_set() {
                template.down(&["metadata", "labels"]).labels(errors);
                crate::claims::validate_spec(&template.get("spec"), errors);
            } else {
                errors.push(template.required(""));
            }
        }
        "local" if !source.get("path").text().is_empty() => no_backsteps(&source.get("path"), errors),
        other => drivers::validate(other, &source, persistent, errors),
    }
}

/// A CSI driver's name that is there.
pub(crate) fn csi_driver(driver: &At<'_>, errors: &mut FieldErrors) {
    if !driver.present("", errors) {
        return;
    }
    if driver.text().len() > CSI_DRIVER_BYTES_MAX {
        errors.push(driver.too_long(CSI_DRIVER_BYTES_MAX));
    }
    for detail in apiserver::names::name_problems(NameRule::Subdomain, &driver.text().to_lowercase()) {
        errors.push(driver.invalid(&detail));
    }
}

/// A file's mode, if set.
pub(crate) fn mode(mode: &At<'_>, errors: &mut FieldErrors) {
    if !(0..=0o777).contains(&mode.number()) {
        errors.push(mode.invalid(MODE));
    }
}

fn key_to_path(item: &At<'_>, errors: &mut FieldErrors) {
    item.get("key").present("", errors);
    item.get("path").present("", errors);
    local_path(&item.get("path"), errors);
    mode(&item.get("mode"), errors);
}

/// A relative path that stays below where it begins.
pub(crate) fn descending(path: &At<'_>, errors: &mut FieldErrors) {
    if path.text().starts_with('/') {
        errors.push(path.invalid("must be a relative path"));
    }
    no_backsteps(path, errors);
}

pub(crate) fn local_path(path: &At<'_>, errors: &mut FieldErrors) {
    descending(path, errors);
    if path.text().starts_with("..") && !path.text().starts_with("../") {
        errors.push(path.invalid("must not start with '..'"));
    }
}

/// A path without `..`.
pub(crate) fn no_backsteps(path: &At<'_>, errors: &mut FieldErrors) {
    if path.text().split('/').any(|part| part == "..") {
        errors.push(path.invalid("must not contain '..'"));
    }
}

/// Upstream reports failures of a file at the path of its volume (or projection).
fn downward_file(item: &At<'_>, parent: &At<'_>, errors: &mut FieldErrors) {
    let file = At::new(item.value, parent.path.clone());
    file.get("path").present("", errors);
    local_path(&file.get("path"), errors);
    let (field, resource) = (file.get("fieldRef"), file.get("resourceFieldRef"));
    if field.is_set() {
        field_refs::validate(&field, &field_refs::OF_VOLUMES, errors);
        if resource.is_set() {
            let detail = "fieldRef and resourceFieldRef can not be specified simultaneously";
            errors.push(At::new(&json!("resource"), file.path.clone()).invalid(detail));
        }
    } else if resource.is_set() {
        field_refs::validate_resource(&resource, true, errors);
    } else {
        errors.push(file.required("one of fieldRef and resourceFieldRef is required"));
    }
    mode(&file.get("mode"), errors);
}

fn projected(volume: &At<'_>, errors: &mut FieldErrors) {
    mode(&volume.get("defaultMode"), errors);
    let mut paths: HashSet<&str> = HashSet::new();
    for source in volume.each("sources") {
        for kind in ["secret", "configMap"] {
            let part = source.get(kind);
            if !part.is_set() {
                continue;
            }
            part.get("name").present("", errors);
            for item in part.each("items") {
                key_to_path(&item, errors);
                unique(&mut paths, item.get("path").text(), part.get("name").text(), volume, errors);
            }
        }
        let downward = source.get("downwardAPI");
        for item in downward.each("items") {
            downward_file(&item, &downward, errors);
            let path = item.get("path").text();
            unique(&mut paths, path, path, volume, errors);
        }
        token(&source.get("serviceAccountToken"), volume, errors);
        let bundle = source.get("clusterTrustBundle");
        if bundle.is_set() {
            drivers::trust_bundle(&bundle, errors);
            let path = bundle.get("path");
            path.present("", errors);
            local_path(&path, errors);
            unique(&mut paths, path.text(), path.text(), volume, errors);
        }
        certificate(&source.get("podCertificate"), &mut paths, volume, errors);
        if source.len() > 1 {
            errors.push(source.forbidden("may not specify more than 1 volume type per source"));
        }
    }
}

fn unique<'v>(
    paths: &mut HashSet<&'v str>,
    path: &'v str,
    shown: &str,
    volume: &At<'_>,
    errors: &mut FieldErrors,
) {
    if !path.is_empty() && !paths.insert(path) {
        errors.push(At::new(&json!(shown), volume.path.clone()).invalid("conflicting duplicate paths"));
    }
}

/// A certificate of the pod's own.
fn certificate<'v>(
    certificate: &At<'v>,
    paths: &mut HashSet<&'v str>,
    volume: &At<'_>,
    errors: &mut FieldErrors,
) {
    if !certificate.is_set() {
        return;
    }
    let (signer, life) = (certificate.get("signerName"), certificate.get("maxExpirationSeconds"));
    certificates::signer_name(&signer, errors);
    certificate.get("keyType").one_of(&KEY_TYPES, errors);
    if life.is_set() {
        pod_certificates::life(&signer, &life, errors);
    }
    pod_certificates::user_annotations(&certificate.get("userAnnotations"), errors);
    let mut named = false;
    for file in CREDENTIAL_FILES.map(|file| certificate.get(file)) {
        if file.text().is_empty() {
            continue;
        }
        named = true;
        local_path(&file, errors);
        unique(paths, file.text(), file.text(), volume, errors);
    }
    if !named {
        let detail = "specify at least one of credentialBundlePath, keyPath, and certificateChainPath";
        errors.push(certificate.required(detail));
    }
}

fn token(token: &At<'_>, volume: &At<'_>, errors: &mut FieldErrors) {
    if !token.is_set() {
        return;
    }
    let life = token.get("expirationSeconds");
    if life.is_set() && life.number() < TOKEN_SECONDS_MIN {
        errors.push(life.invalid("may not specify a duration less than 10 minutes"));
    }
    if life.number() > TOKEN_SECONDS_MAX {
        errors.push(life.invalid("may not specify a duration larger than 2^32 seconds"));
    }
    let path = At::new(token.get("path").value, volume.child("path"));
    if path.present("", errors) {
        local_path(&path, errors);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::at::said;

    fn told(certificate: &Value) -> Vec<String> {
        let volume = json!({ "projected": { "sources": [{ "podCertificate": certificate }] } });
        let mut errors = Vec::new();
        validate(&At::new(&volume, "v"), &["name"], false, &mut errors);
        said(&errors)
    }

    #[test]
    fn who_wants_a_certificate_says_of_whom_and_where_to() {
        let with = |field: &str, value: Value| {
            let mut certificate = json!({ "signerName": "example.com/s", "keyType": "ED25519",
                "credentialBundlePath": "all.pem" });
            certificate[field] = value;
            told(&certificate)
        };
        assert_eq!(with("keyPath", json!("key.pem")), [""; 0]);
        let at = "v.projected.sources[0].podCertificate";
        for (field, value, wanted) in [
            ("signerName", json!(""), ".signerName: Required value"),
            (
                "keyType",
                json!("RSA1024"),
                ".keyType: Unsupported value: \"RSA1024\": supported values: \"RSA3072\", \"RSA4096\", \"ECDSAP256\", \
                 \"ECDSAP384\", \"ECDSAP521\", \"ED25519\"",
            ),
            (
                "maxExpirationSeconds",
                json!(60),
                ".maxExpirationSeconds: Invalid value: 60: must be in the range [3600, 7862400]",
            ),
            (
                "userAnnotations",
                json!({ "a": "x" }),
                ".userAnnotations[a]: Invalid value: \"x\": key must be domain-prefixed",
            ),
            (
                "credentialBundlePath",
                json!(""),
                ": Required value: specify at least one of credentialBundlePath, keyPath, and certificateChainPath",
            ),
            ("keyPath", json!("../key"), ".keyPath: Invalid value: \"../key\": must not contain '..'"),
        ] {
            assert_eq!(with(field, value), [format!("{at}{wanted}")]);
        }
        assert_eq!(
            with("keyPath", json!("all.pem")),
            ["v.projected: Invalid value: \"all.pem\": conflicting duplicate paths"]
        );
    }
}
