//! What extenders are asked and answer, and how they are configured.

use serde_json::json;

use super::messages::{Filtered, Score, displaced, lowered};
use crate::Config;

#[test]
fn answers_are_read_in_any_letters() {
    let read = |answer| serde_json::from_value::<Filtered>(lowered(answer)).unwrap();
    let go = read(json!({ "Nodes": null, "NodeNames": ["a", "b"], "FailedNodes": { "c": "busy" },
        "FailedAndUnresolvableNodes": null, "Error": "" }));
    assert_eq!((go.names(true), go.names(false).len()), (vec!["a", "b"], 0));
    assert_eq!(go.failed["c"], "busy");
    let camel = read(json!({ "nodes": { "items": [{ "metadata": { "name": "a" } }] }, "error": "x" }));
    assert_eq!((camel.names(true), camel.error.as_str()), (vec!["a"], "x"));
    let scores: Vec<Score> =
        serde_json::from_value(lowered(json!([{ "Host": "a", "Score": 3 }, { "host": "b", "score": 4 }])))
            .unwrap();
    assert_eq!(scores.iter().map(|score| score.score).sum::<i64>(), 7);
    let victims =
        json!({ "NodeNameToMetaVictims": { "n": { "Pods": [{ "UID": "u" }], "NumPDBViolations": 1 } } });
    let read = displaced(victims);
    assert_eq!((read["n"].uids.as_slice(), read["n"].violations), (["u".to_owned()].as_slice(), 1));
    assert!(displaced(json!({})).is_empty());
}

#[test]
fn what_is_wrong_with_an_extender_is_said() {
    let read = |extenders: &str| {
        let head = "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n";
        Config::parse(&format!("{head}extenders: {extenders}\n"))
    };
    for (extenders, says) in [
        (
            "[{urlPrefix: 'http://x', prioritizeVerb: p}]",
            "extenders[0].weight: Invalid value: 0: must have a positive weight applied to it",
        ),
        (
            "[{urlPrefix: 'http://x', bindVerb: b}, {urlPrefix: 'http://y', bindVerb: b}]",
            "extenders: Invalid value: \"found 2 extenders implementing bind\": only one extender can implement bind",
        ),
        (
            "[{urlPrefix: 'http://x', managedResources: [{name: cpu}]}]",
            "extenders[0].managedResources[0].name: Invalid value: \"cpu\": is an invalid extended resource name",
        ),
        (
            "[{urlPrefix: 'http://x', managedResources: [{name: e.com/a}]}, {urlPrefix: 'http://y', managedResources: [{name: e.com/a}]}]",
            "extenders[1].managedResources[0].name: Invalid value: \"e.com/a\": duplicate extender managed resource name",
        ),
        ("[{urlPrefix: 'http://x', httpTimeout: soon}]", "extenders[0].httpTimeout: "),
        ("[{urlPrefix: 'http://x', tlsConfig: {certFile: /nowhere}}]", "extenders[0].tlsConfig: /nowhere: "),
        ("[{urlPrefix: 'http://x', nonsense: 1}]", "unknown field `nonsense`"),
    ] {
        let said = read(extenders).err().unwrap_or_default();
        assert!(said.contains(says), "{extenders}: {said}");
    }
    let config = read(
        "[{urlPrefix: 'http://x', ignorable: true}, {urlPrefix: 'https://y', enableHTTPS: true, httpTimeout: 100ms,\
         managedResources: [{name: e.com/a, ignoredByScheduler: true}]}]",
    );
    let config = config.unwrap();
    assert_eq!(config.extenders.iter().map(|extender| extender.ignorable).collect::<Vec<_>>(), [false, true]);
    assert!(config.profiles.iter().all(|profile| profile.extended));
}
