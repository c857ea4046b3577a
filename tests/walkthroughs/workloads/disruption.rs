//! PodDisruptionBudgets.

use serde_json::{Value, json};

use super::space::{REPLICA_SET, Space, of, pod};

const BUDGETS: &str = "poddisruptionbudgets";

fn budget(name: &str, app: &str, available: u32) -> Value {
    json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
        "metadata": {"name": name, "labels": {"test": app}},
        "spec": {"minAvailable": available, "selector": {"matchLabels": {"app": app}}}})
}

/// Waits until a budget allows a number of disruptions.
#[track_caller]
fn allows(space: &Space<'_>, name: &str, count: u64) {
    space.seen(BUDGETS, name);
    space.until_one(BUDGETS, name, &format!("{count} allowed"), |budget| {
        budget["status"]["disruptionsAllowed"] == count
    });
}

pub(crate) fn budgets_are_listed_everywhere_and_deleted_together(space: &Space<'_>) {
    let other = Space::new(space.cluster, &format!("{}-2", space.name));
    let label = format!("test={}", space.name);
    for (place, name) in [(space, "one"), (space, "two"), (&other, "three")] {
        place.make(&budget(name, &space.name, 1));
    }
    assert_eq!(space.list(&[BUDGETS, "-A", "-l", &label]).len(), 3);
    assert_eq!(space.list(&[BUDGETS, "-l", &label]).len(), 2);
    space.delete_collection(BUDGETS, &label);
    space.until_gone(BUDGETS);
    assert_eq!(space.list(&[BUDGETS, "-A", "-l", &label]).len(), 1, "the other namespace's stays");
    other.close();
}

pub(crate) fn budgets_are_created_changed_and_deleted(space: &Space<'_>) {
    space.make(&budget("one", "nobody", 1));
    allows(space, "one", 0);
    let updated = space.update(&["pdb/one"], |budget| budget["spec"]["minAvailable"] = 2.into());
    assert_eq!(updated["spec"]["minAvailable"], 2);
    let patched = space.patch("pdb/one", &json!({"spec": {"minAvailable": "50%"}}));
    assert_eq!(patched["spec"]["minAvailable"], "50%");
    space.run(&["delete", "pdb/one"]);
    space.until_gone(BUDGETS);
}

pub(crate) fn a_budgets_status_follows_its_pods(space: &Space<'_>) {
    space.make(&budget("counted", "counted", 1));
    allows(space, "counted", 0);
    space.make(&REPLICA_SET.of("counted", 3));
    allows(space, "counted", 2);
    let status = space.get(&["pdb/counted"])["status"].clone();
    assert_eq!((&status["currentHealthy"], &status["expectedPods"]), (&json!(3), &json!(3)), "{status}");
}

pub(crate) fn a_budgets_status_is_updated_and_patched(space: &Space<'_>) {
    space.make(&budget("written", "written", 1));
    space.make(&REPLICA_SET.of("written", 2));
    allows(space, "written", 1);
    let part = ["pdb/written", "--subresource=status"];
    let pods = space.ready_pods("written", 2);
    let name = pods.keys().next().unwrap();
    let written = space.update(&part, |budget| {
        budget["status"]["disruptedPods"] = json!({name: "2100-01-01T00:00:00Z"});
    });
    assert_eq!(written["status"]["disruptedPods"][name], "2100-01-01T00:00:00Z", "{written}");
    let condition = json!({"type": "Patched", "status": "True", "reason": "Shown", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let patched =
        space.patch_with(&part, &json!({"status": {"disruptedPods": null, "conditions": [condition]}}));
    assert!(patched["status"]["disruptedPods"].is_null(), "{patched}");
    assert_eq!(patched["status"]["conditions"][0]["type"], "Patched", "{patched}");
}

/// Asks for the end of a pod; what is said where it is refused.
fn evict(space: &Space<'_>, name: &str) -> Result<(), String> {
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}});
    let path = space.path(&format!("pods/{name}/eviction"));
    let ran = space.feed(&["create", "--raw", &path], &eviction);
    if ran.code == 0 { Ok(()) } else { Err(ran.err) }
}

pub(crate) fn an_eviction_is_blocked_until_the_budget_allows_it(space: &Space<'_>) {
    space.make(&budget("strict", "kept", 2));
    for name in ["kept-a", "kept-b"] {
        space.make(&pod(name, "kept"));
    }
    space.ready_pods("kept", 2);
    space.until_one(BUDGETS, "strict", "both counted", |budget| budget["status"]["currentHealthy"] == 2);
    let refused = evict(space, "kept-a").unwrap_err();
    assert!(refused.contains("disruption budget"), "{refused}");
    space.patch("pdb/strict", &json!({"spec": {"minAvailable": 1}}));
    allows(space, "strict", 1);
    evict(space, "kept-a").unwrap();
    space.until(&of("kept"), "one left", |pods| pods.len() == 1);

    // A budget that demands more than there is blocks; without the budget the pod may go.
    let refused = evict(space, "kept-b").unwrap_err();
    assert!(refused.contains("disruption budget"), "{refused}");
    space.run(&["delete", "pdb/strict"]);
    evict(space, "kept-b").unwrap();
    space.until_gone(&of("kept"));
}
