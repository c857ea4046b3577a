//! What a configuration says, and what is said of one that is wrong.

use super::args::FitArgs;
use super::*;

fn read(text: &str) -> Result<Config, String> {
    Config::parse(&format!("apiVersion: {VERSION}\nkind: {KIND}\n{text}"))
}

fn refused(text: &str) -> String {
    read(text).err().unwrap_or_default()
}

#[test]
fn without_a_file_there_is_upstreams_profile() {
    let config = Config::default();
    assert_eq!(config.profiles.len(), 1);
    let profile = &config.profiles[0];
    assert_eq!((profile.name.as_str(), profile.percentage), (SCHEDULER_NAME, 0));
    assert_eq!(
        profile.score_weights(),
        [
            ("TaintToleration", 3),
            ("NodeAffinity", 2),
            ("NodeResourcesFit", 1),
            ("VolumeBinding", 1),
            ("PodTopologySpread", 2),
            ("InterPodAffinity", 2),
            ("DynamicResources", 2),
            ("NodeResourcesBalancedAllocation", 1),
            ("ImageLocality", 1),
        ]
    );
    assert_eq!(
        profile.filter_names(),
        [
            "NodeUnschedulable",
            "NodeName",
            "TaintToleration",
            "NodeAffinity",
            "NodePorts",
            "NodeResourcesFit",
            "VolumeRestrictions",
            "NodeVolumeLimits",
            "VolumeBinding",
            "VolumeZone",
            "PodTopologySpread",
            "InterPodAffinity",
            "DynamicResources",
            "NodeDeclaredFeatures",
        ]
    );
}

#[test]
fn profiles_change_plugins_for_one_point_or_all() {
    let config = read(
        "podInitialBackoffSeconds: 2\npodMaxBackoffSeconds: 20\npercentageOfNodesToScore: 30\n\
         leaderElection: {leaderElect: true}\nclientConnection: {kubeconfig: /x}\n\
         profiles:\n\
         - schedulerName: a\n  plugins:\n    score: {disabled: [{name: ImageLocality}], enabled: [{name: NodeAffinity, weight: 9}]}\n\
         - schedulerName: b\n  percentageOfNodesToScore: 60\n  plugins:\n    multiPoint: {disabled: [{name: TaintToleration}], enabled: [{name: NodeResourcesFit, weight: 5}]}\n    filter: {disabled: [{name: NodePorts}]}\n\
         - schedulerName: c\n  plugins: {score: {disabled: [{name: '*'}]}}\n",
    )
    .unwrap();
    let seconds = |policy: &Policy| (policy.first.as_secs(), policy.max.as_secs());
    assert_eq!(seconds(&config.backoff), (2, 20));
    let [a, b, c] = &config.profiles[..] else { panic!("three profiles") };
    assert_eq!((a.percentage, b.percentage), (30, 60));
    let weights = a.score_weights();
    assert_eq!(weights[0], ("NodeAffinity", 9));
    assert!(weights.iter().all(|(name, _)| *name != "ImageLocality") && weights.len() == 8);
    assert!(b.score_weights().contains(&("NodeResourcesFit", 5)));
    assert!(!b.filter_names().contains(&"TaintToleration") && !b.filter_names().contains(&"NodePorts"));
    assert!(c.score_weights().is_empty() && c.filter_names().len() == 14);
}

#[test]
fn what_upstream_accepts_is_accepted() {
    let config = read(
        "profiles:\n- plugins:\n    multiPoint: {enabled: [{name: DynamicResources}, {name: GangScheduling}]}\n    \
         filter: {enabled: [{name: VolumeZone}, {name: NodeVolumeLimits}], disabled: [{name: VolumeBinding}]}\n    \
         score: {enabled: [{name: VolumeBinding, weight: 3}]}\n    \
         placementGenerate: {enabled: [{name: TopologyPlacementGenerator}]}\n  \
         pluginConfig:\n  - {name: DynamicResources, args: {filterTimeout: 5s}}\n  \
         - {name: ImageLocality}\n  - {name: NodeAffinity}\n  - {name: PodTopologySpread, args: null}\n  - {name: SomebodyElses, args: {any: [1]}}\n  \
         - {name: NodeResourcesFit, args: {scoringStrategy: {resources: [{name: cpu, weight: 0}], type: MostAllocated}}}\n",
    )
    .unwrap();
    assert!(config.profiles[0].filter_names().contains(&"NodeResourcesFit"));
    let args: FitArgs =
        serde_yaml_ng::from_str("scoringStrategy: {resources: [{name: cpu, weight: 0}]}").unwrap();
    assert_eq!(args.scoring_strategy.resources[0].weight, 1);
    for none in ["resources: []", "resources: null"] {
        let args: args::BalancedArgs = serde_yaml_ng::from_str(none).unwrap();
        assert_eq!(args.resources.len(), 2, "{none}");
    }
}

#[test]
fn what_is_wrong_is_said_in_upstreams_words() {
    let plugin =
        |name: &str, args: &str| format!("profiles: [{{pluginConfig: [{{name: {name}, args: {args}}}]}}]\n");
    for (text, says) in [
        ("nonsense: 1\n".to_owned(), "strict decoding error: unknown field `nonsense`"),
        ("profiles: [{plugins: {fitler: {}}}]\n".into(), "unknown field `fitler`"),
        (
            "parallelism: 0\n".into(),
            "parallelism: Invalid value: 0: should be an integer value greater than zero",
        ),
        (
            "percentageOfNodesToScore: 101\n".into(),
            "percentageOfNodesToScore: Invalid value: 101: not in valid range [0-100]",
        ),
        (
            "podInitialBackoffSeconds: 20\n".into(),
            "podMaxBackoffSeconds: Invalid value: 10: must be greater than or equal to PodInitialBackoffSeconds",
        ),
        ("profiles: [{schedulerName: a}, {}]\n".into(), "profiles[1].schedulerName: Required value"),
        (
            "profiles: [{schedulerName: a}, {schedulerName: a}]\n".into(),
            "profiles[1].schedulerName: Duplicate value: \"profiles[0].schedulerName\"",
        ),
        (
            "profiles: [{plugins: {filter: {enabled: [{name: Foo}]}}}]\n".into(),
            "profiles[0].plugins: Plugin \"Foo\" does not exist",
        ),
        (
            "profiles: [{plugins: {filter: {enabled: [{name: EBSLimits}]}}}]\n".into(),
            "profiles[0].plugins.filter.enabled[0]: Invalid value: \"EBSLimits\": was invalid in version \"v1\" \
             (KubeSchedulerConfiguration is version \"kubescheduler.config.k8s.io/v1\")",
        ),
        (
            "profiles: [{plugins: {multiPoint: {enabled: [{name: EBSLimits}]}}}]\n".into(),
            "profiles[0].plugins: Plugin \"EBSLimits\" does not exist",
        ),
        (
            "profiles: [{plugins: {score: {enabled: [{name: ImageLocality, weight: 3000000000}]}}}]\n".into(),
            "strict decoding error: ",
        ),
        (
            "profiles: [{plugins: {filter: {enabled: [{name: ImageLocality}]}}}]\n".into(),
            "profiles[0].plugins.filter: plugin \"ImageLocality\" does not extend filter plugin",
        ),
        (
            "profiles: [{plugins: {bind: {disabled: [{name: '*'}]}}}]\n".into(),
            "profiles[0].plugins.bind: at least one bind plugin is needed",
        ),
        (
            plugin(
                "NodeResourcesFit",
                "{scoringStrategy: {type: Best, resources: [{name: cpu, weight: 101}]}}",
            ),
            "[profiles[0].pluginConfig[0].args.scoringStrategy.type: Unsupported value: \"Best\": supported values: \
             \"LeastAllocated\", \"MostAllocated\", \"RequestedToCapacityRatio\", \
             profiles[0].pluginConfig[0].args.scoringStrategy.resources[0].weight: Invalid value: 101: resource weight \
             of cpu not in valid range (0, 100]]",
        ),
        (
            plugin("NodeResourcesFit", "{scoringStrategy: {type: RequestedToCapacityRatio}}"),
            "requestedToCapacityRatio: Required value: must be specified when type is RequestedToCapacityRatio",
        ),
        (
            plugin("NodeResourcesBalancedAllocation", "{resources: [{name: cpu, weight: 2}]}"),
            "weight: Invalid value: 2: must be 1",
        ),
        (
            plugin("InterPodAffinity", "{hardPodAffinityWeight: 101}"),
            "hardPodAffinityWeight: Invalid value: 101: not in valid range [0, 100]",
        ),
        (
            plugin("DefaultPreemption", "{minCandidateNodesPercentage: 0, minCandidateNodesAbsolute: 0}"),
            "minCandidateNodesPercentage: Invalid value: 0: cannot be zero at the same time as minCandidateNodesAbsolute",
        ),
        (
            plugin(
                "PodTopologySpread",
                "{defaultConstraints: [{maxSkew: 0, topologyKey: zone, whenUnsatisfiable: Maybe}]}",
            ),
            "args.defaultingType: Invalid value: \"System\": when .defaultConstraints are not empty",
        ),
        (
            plugin("VolumeBinding", "{bindTimeoutSeconds: -1}"),
            "args.bindTimeoutSeconds: Invalid value: -1: invalid BindTimeoutSeconds, should not be a negative value",
        ),
        (
            plugin("VolumeBinding", "{shape: [{utilization: 0, score: 11}]}"),
            "args.shape[0].score: Invalid value: 11: not in valid range [0, 10]",
        ),
        (plugin("NodeAffinity", "{addedAffinity: {nonsense: 1}}"), "unknown field `nonsense`"),
        (plugin("NodeAffinity", "{kind: Other}"), "no kind \"Other\" is registered"),
    ] {
        let said = refused(&text);
        assert!(said.contains(says), "{text}: {said}");
    }
    assert!(
        Config::parse("kind: Pod\napiVersion: v1\n").err().unwrap().contains("no kind \"Pod\" is registered")
    );
}

#[test]
fn how_long_devices_may_take_is_checked() {
    for (args, says) in [
        ("{bindingTimeout: 10ms}", "bindingTimeout: Invalid value: \"10ms\": must be at least 1 second"),
        ("{filterTimeout: -1s}", "filterTimeout: Invalid value: \"-1s\": must be zero or positive"),
        ("{filterTimeout: soon}", "filterTimeout: Invalid value: \"soon\": invalid duration"),
    ] {
        let text = format!("profiles: [{{pluginConfig: [{{name: DynamicResources, args: {args}}}]}}]\n");
        let refused = refused(&text);
        assert!(refused.contains(says), "{refused}");
    }
    assert!(
        read("profiles: [{pluginConfig: [{name: DynamicResources, args: {filterTimeout: 0s}}]}]\n").is_ok()
    );
}
