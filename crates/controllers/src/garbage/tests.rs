//! The decisions, one by one.

use api::{ObjectMeta, Propagation};
use serde_json::json;

use super::plan::{Decision, Dependent, Owner, decide, owners_patch, unblock_patch};

fn meta(terminating: bool, finalizers: &[&str]) -> ObjectMeta {
    serde_json::from_value(json!({
        "name": "x", "uid": "x", "resourceVersion": "7", "finalizers": finalizers,
        "deletionTimestamp": terminating.then_some("2024-01-01T00:00:00Z"),
        "ownerReferences": [
            { "apiVersion": "v1", "kind": "A", "name": "a", "uid": "a", "blockOwnerDeletion": true },
            { "apiVersion": "v1", "kind": "B", "name": "b", "uid": "b" },
        ],
    }))
    .unwrap()
}

fn owners(states: &[Owner]) -> Vec<(String, Owner)> {
    states.iter().zip(["a", "b"]).map(|(state, uid)| (uid.to_owned(), *state)).collect()
}

const BLOCKING: Dependent = Dependent { blocks: true, waits: false };
const FREE: Dependent = Dependent { blocks: false, waits: false };

#[test]
fn an_object_goes_with_its_last_owner() {
    let alive = meta(false, &[]);
    let decide = |states: &[Owner]| decide(&alive, &owners(states), &[]);
    assert_eq!(decide(&[]), Decision::Keep);
    assert_eq!(decide(&[Owner::Solid, Owner::Solid]), Decision::Keep);
    assert_eq!(decide(&[Owner::Absent, Owner::Solid]), Decision::Disown(vec!["a".into()]));
    assert_eq!(decide(&[Owner::Solid, Owner::Waiting]), Decision::Disown(vec!["b".into()]));
    let background = Decision::Delete { propagation: Propagation::Background, unblock: false };
    assert_eq!(decide(&[Owner::Absent, Owner::Absent]), background);
    assert_eq!(decide(&[Owner::Absent, Owner::Waiting]), background);
}

#[test]
fn a_finalizer_of_its_own_decides_how_it_goes() {
    let absent = owners(&[Owner::Absent]);
    let how = |finalizers: &[&str]| match decide(&meta(false, finalizers), &absent, &[]) {
        Decision::Delete { propagation, .. } => propagation,
        other => panic!("{other:?}"),
    };
    assert_eq!(how(&["orphan"]), Propagation::Orphan);
    assert_eq!(how(&["foregroundDeletion"]), Propagation::Foreground);
}

#[test]
fn in_the_foreground_dependents_go_first() {
    let waiting = owners(&[Owner::Waiting]);
    let alive = meta(false, &[]);
    // A dependent with dependents of its own goes in the foreground too.
    assert_eq!(
        decide(&alive, &waiting, &[FREE]),
        Decision::Delete { propagation: Propagation::Foreground, unblock: false }
    );
    let circle = Dependent { blocks: true, waits: true };
    assert_eq!(
        decide(&alive, &waiting, &[circle]),
        Decision::Delete { propagation: Propagation::Foreground, unblock: true }
    );
    let deleting = meta(true, &["foregroundDeletion"]);
    assert_eq!(decide(&deleting, &[], &[FREE, BLOCKING]), Decision::VisitDependents);
    assert_eq!(decide(&deleting, &[], &[FREE]), Decision::Unfinalize("foregroundDeletion"));
}

#[test]
fn orphans_are_let_go_first_and_others_are_left_alone() {
    let orphaning = meta(true, &["orphan", "foregroundDeletion"]);
    assert_eq!(decide(&orphaning, &[], &[FREE]), Decision::VisitDependents);
    assert_eq!(decide(&orphaning, &[], &[]), Decision::Unfinalize("orphan"));
    assert_eq!(decide(&meta(true, &["example.com/other"]), &[], &[BLOCKING]), Decision::Keep);
}

#[test]
fn patches_are_bound_to_the_version_that_was_decided_on() {
    let patch = owners_patch(&meta(false, &[]), |owner| owner.uid != "a");
    assert_eq!(patch["metadata"]["resourceVersion"], "7");
    assert_eq!(patch["metadata"]["ownerReferences"].as_array().unwrap().len(), 1);
    assert_eq!(
        unblock_patch(&meta(false, &[]))["metadata"]["ownerReferences"][0]["blockOwnerDeletion"],
        false
    );
}
