//! What controller and nodes agree on about volumes that are directories of a node. The controller writes volumes, the
//! node makes and removes directories; they speak through annotations of the Node, which both of them watch anyway.

use std::collections::BTreeMap;

/// The name of the provisioner.
pub const PROVISIONER: &str = "skiff.dev/local-path";
/// Annotation of a Node: where its directories are. Written by the node.
pub const ROOT: &str = "skiff.dev/local-path-root";
/// Prefix of annotations of a Node, one for each volume whose directory is to go: the volume's name follows.
pub const REMOVAL: &str = "local-path.skiff.dev/";
/// Value of such an annotation: the directory is to go. Written by the controller.
pub const REMOVE: &str = "remove";
/// Value of such an annotation: it is gone. Written by the node.
pub const REMOVED: &str = "removed";

/// The annotation about the removal of a volume's directory.
pub fn removal(volume: &str) -> String {
    format!("{REMOVAL}{volume}")
}

/// The name of the directory of a volume that was made for a claim.
pub fn directory(volume: &str, namespace: &str, claim: &str) -> String {
    // What a file system takes for one name; the volume's alone is unique.
    format!("{volume}_{namespace}_{claim}").chars().take(255).collect()
}

/// Whether a directory is that of a volume.
pub fn is_directory_of(name: &str, volume: &str) -> bool {
    name.strip_prefix(volume).is_some_and(|rest| rest.starts_with('_'))
}

/// The volumes of which a Node's annotations say this.
pub fn volumes<'a>(annotations: &'a BTreeMap<String, String>, value: &str) -> Vec<&'a str> {
    let said = annotations.iter().filter(|(_, said)| *said == value);
    said.filter_map(|(key, _)| key.strip_prefix(REMOVAL)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_named_for_people_and_found_by_their_volume() {
        let name = directory("pvc-1", "default", "data-db-0");
        assert_eq!(name, "pvc-1_default_data-db-0");
        assert!(is_directory_of(&name, "pvc-1"));
        assert!(
            !is_directory_of(&name, "pvc-") && !is_directory_of(&name, "pvc-12") && !is_directory_of("x", "")
        );
        assert!(directory("pvc-1", &"n".repeat(63), &"c".repeat(253)).len() <= 255);
    }

    #[test]
    fn annotations_tell_what_is_to_go_and_what_is_gone() {
        let said = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let annotations =
            BTreeMap::from([said(&removal("a"), REMOVE), said(&removal("b"), REMOVED), said("c", REMOVE)]);
        assert_eq!((volumes(&annotations, REMOVE), volumes(&annotations, REMOVED)), (vec!["a"], vec!["b"]));
    }
}
