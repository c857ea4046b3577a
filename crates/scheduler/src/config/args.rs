//! What plugins are told, with upstream's defaults. Shape: `kubescheduler.config.k8s.io/v1`.

use std::time::Duration;

use serde::{Deserialize, Deserializer};

use super::check::Problems;
use crate::framework::PreemptionSettings;
use crate::plugins::{Shape, Strategy};
use crate::types::NodeAffinity;
use crate::types::decode::SpreadSource;

/// What each plugin of a profile is told.
#[derive(Debug, Clone, Default)]
pub(crate) struct Args {
    pub(crate) node_affinity: AffinityArgs,
    pub(crate) fit: FitArgs,
    pub(crate) balanced: BalancedArgs,
    pub(crate) spread: SpreadArgs,
    pub(crate) inter_pod: InterPodArgs,
    pub(crate) preemption: PreemptionSettings,
    pub(crate) volumes: VolumeArgs,
    pub(crate) devices: DeviceArgs,
}

/// `NodeAffinityArgs`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct AffinityArgs {
    /// Asked of every pod.
    pub(crate) added_affinity: Option<NodeAffinity>,
}

impl AffinityArgs {
    pub(super) fn check(&self, problems: &mut Problems) {
        let Some(added) = &self.added_affinity else { return };
        let required = added.required.iter().flat_map(|required| &required.node_selector_terms);
        let at = "addedAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
        for (number, problem) in
            required.enumerate().filter_map(|(at, term)| Some((at, term.problem.as_ref()?)))
        {
            problems.add(&format!("{at}[{number}]"), problem);
        }
        let at = "addedAffinity.preferredDuringSchedulingIgnoredDuringExecution";
        let preferred = added.preferred.iter().enumerate();
        for (number, problem) in
            preferred.filter_map(|(at, term)| Some((at, term.preference.problem.as_ref()?)))
        {
            problems.add(&format!("{at}[{number}]"), problem);
        }
    }
}

/// `ResourceSpec`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ResourceWeight {
    pub(crate) name: String,
    #[serde(default = "one", deserialize_with = "weight")]
    pub(crate) weight: i64,
}

fn one() -> i64 {
    1
}

/// None is 1. Source: `SetDefaults_NodeResourcesFitArgs`.
fn weight<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    i64::deserialize(deserializer).map(|weight| if weight == 0 { 1 } else { weight })
}

/// The resources that count where none is named.
fn resources<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ResourceWeight>, D::Error> {
    let given = Option::<Vec<ResourceWeight>>::deserialize(deserializer)?;
    Ok(given.filter(|given| !given.is_empty()).unwrap_or_else(cpu_and_memory))
}

fn cpu_and_memory() -> Vec<ResourceWeight> {
    ["cpu", "memory"].map(|name| ResourceWeight { name: name.to_owned(), weight: 1 }).into()
}

/// `NodeResourcesFitArgs`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct FitArgs {
    pub(crate) ignored_resources: Vec<String>,
    pub(crate) ignored_resource_groups: Vec<String>,
    pub(crate) scoring_strategy: ScoringStrategy,
}

/// `ScoringStrategy`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct ScoringStrategy {
    r#type: String,
    #[serde(deserialize_with = "resources")]
    pub(crate) resources: Vec<ResourceWeight>,
    requested_to_capacity_ratio: Option<RatioParams>,
}

impl Default for ScoringStrategy {
    fn default() -> Self {
        Self { r#type: LEAST.to_owned(), resources: cpu_and_memory(), requested_to_capacity_ratio: None }
    }
}

const LEAST: &str = "LeastAllocated";
const MOST: &str = "MostAllocated";
const RATIO: &str = "RequestedToCapacityRatio";

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct RatioParams {
    shape: Vec<ShapePoint>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct ShapePoint {
    utilization: i32,
    score: i32,
}

/// Scores of shapes end there. Source: `config.MaxCustomPriorityScore`.
const CUSTOM_SCORE_MAX: i32 = 10;

impl FitArgs {
    pub(crate) fn strategy(&self) -> Strategy {
        let strategy = &self.scoring_strategy;
        match (strategy.r#type.as_str(), &strategy.requested_to_capacity_ratio) {
            (MOST, _) => Strategy::Most,
            (RATIO, Some(params)) => Strategy::Ratio(shape_of(&params.shape)),
            _ => Strategy::Least,
        }
    }

    /// Source: `ValidateNodeResourcesFitArgs`.
    pub(super) fn check(&self, problems: &mut Problems) {
        for (number, name) in self.ignored_resources.iter().enumerate() {
            problems.label_name(&format!("ignoredResources[{number}]"), name);
        }
        for (number, group) in self.ignored_resource_groups.iter().enumerate() {
            let at = format!("ignoredResourceGroups[{number}]");
            if group.contains('/') {
                problems.invalid(&at, &quoted(group), "resource group name can't contain '/'");
            }
            problems.label_name(&at, group);
        }
        let strategy = &self.scoring_strategy;
        let known = [LEAST, MOST, RATIO];
        if !known.contains(&strategy.r#type.as_str()) {
            problems.unsupported("scoringStrategy.type", &strategy.r#type, &known);
        }
        for (number, resource) in strategy.resources.iter().enumerate() {
            if !(1..=100).contains(&resource.weight) {
                let why = format!("resource weight of {} not in valid range (0, 100]", resource.name);
                let at = format!("scoringStrategy.resources[{number}].weight");
                problems.invalid(&at, &resource.weight.to_string(), &why);
            }
        }
        let at = "scoringStrategy.requestedToCapacityRatio";
        match (&strategy.requested_to_capacity_ratio, strategy.r#type == RATIO) {
            (None, true) => {
                problems.add(at, "Required value: must be specified when type is RequestedToCapacityRatio");
            }
            (Some(params), true) => params.check(at, problems),
            (Some(_), false) => {
                problems.add(at, "Forbidden: must be nil when type is not RequestedToCapacityRatio");
            }
            (None, false) => {}
        }
    }
}

/// A shape of a configuration, in the framework's scores.
fn shape_of(points: &[ShapePoint]) -> Shape {
    let scale = crate::framework::MAX_SCORE / i64::from(CUSTOM_SCORE_MAX);
    let points = points.iter().map(|point| (point.utilization.into(), i64::from(point.score) * scale));
    Shape(points.collect())
}

fn quoted(text: &str) -> String {
    format!("{text:?}")
}

impl RatioParams {
    fn check(&self, at: &str, problems: &mut Problems) {
        check_shape(&self.shape, &format!("{at}.shape"), problems);
    }
}

/// Source: `validateFunctionShape`.
fn check_shape(shape: &[ShapePoint], at: &str, problems: &mut Problems) {
    if shape.is_empty() {
        return problems.add(at, "Required value: at least one point must be specified");
    }
    let falls = shape.windows(2).position(|pair| pair[0].utilization >= pair[1].utilization);
    if let Some(number) = falls.map(|number| number + 1) {
        let value = shape[number].utilization.to_string();
        let at = format!("{at}[{number}].utilization");
        problems.invalid(&at, &value, "values must be sorted in increasing order");
    }
    for (number, point) in shape.iter().enumerate() {
        let fields = [("utilization", point.utilization, 100), ("score", point.score, CUSTOM_SCORE_MAX)];
        for (field, value, max) in fields.into_iter().filter(|(_, value, max)| !(0..=*max).contains(value)) {
            let why = format!("not in valid range [0, {max}]");
            problems.invalid(&format!("{at}[{number}].{field}"), &value.to_string(), &why);
        }
    }
}

/// `VolumeBindingArgs`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct VolumeArgs {
    bind_timeout_seconds: Option<i64>,
    shape: Vec<ShapePoint>,
}

/// So long volumes may take to be bound. Source: `SetDefaults_VolumeBindingArgs`.
const BIND_TIMEOUT_SECONDS: i64 = 600;

impl VolumeArgs {
    pub(crate) fn timeout(&self) -> Duration {
        let seconds = self.bind_timeout_seconds.unwrap_or(BIND_TIMEOUT_SECONDS);
        Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    }

    /// Where it is not said how nodes are compared by their volumes, those are better with more left.
    /// Source: `SetDefaults_VolumeBindingArgs`.
    pub(crate) fn shape(&self) -> Shape {
        if self.shape.is_empty() {
            let point = |utilization, score| ShapePoint { utilization, score };
            return shape_of(&[point(0, CUSTOM_SCORE_MAX), point(100, 0)]);
        }
        shape_of(&self.shape)
    }

    /// Source: `ValidateVolumeBindingArgs`.
    pub(super) fn check(&self, problems: &mut Problems) {
        if let Some(seconds) = self.bind_timeout_seconds.filter(|seconds| *seconds < 0) {
            let why = "invalid BindTimeoutSeconds, should not be a negative value";
            problems.invalid("bindTimeoutSeconds", &seconds.to_string(), why);
        }
        if !self.shape.is_empty() {
            check_shape(&self.shape, "shape", problems);
        }
    }
}

/// `DynamicResourcesArgs`; durations are Go's.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct DeviceArgs {
    filter_timeout: Option<String>,
    binding_timeout: Option<String>,
}

/// So long it may take to find devices on one node. Source: `DynamicResourcesFilterTimeoutDefault`.
const FILTER_TIMEOUT: Duration = Duration::from_secs(10);
/// So long devices may take to be ready. Source: `DynamicResourcesBindingTimeoutDefault`.
const BINDING_TIMEOUT: Duration = Duration::from_secs(600);

impl DeviceArgs {
    /// How long it may take to find devices on one node; zero: as long as it does.
    pub(crate) fn filter_timeout(&self) -> Duration {
        given(self.filter_timeout.as_deref()).unwrap_or(FILTER_TIMEOUT)
    }

    /// How long devices may take to be ready.
    pub(crate) fn binding_timeout(&self) -> Duration {
        given(self.binding_timeout.as_deref()).unwrap_or(BINDING_TIMEOUT)
    }

    /// Source: `ValidateDynamicResourcesArgs`.
    pub(super) fn check(&self, problems: &mut Problems) {
        let read = |text: &Option<String>| {
            text.as_deref().map(|text| (text.to_owned(), base::go_duration::parse(text)))
        };
        match read(&self.filter_timeout) {
            Some((text, None)) => problems.invalid("filterTimeout", &format!("{text:?}"), "invalid duration"),
            Some((text, Some(..0))) => {
                problems.invalid("filterTimeout", &format!("{text:?}"), "must be zero or positive");
            }
            _ => {}
        }
        match read(&self.binding_timeout) {
            Some((text, None)) => {
                problems.invalid("bindingTimeout", &format!("{text:?}"), "invalid duration")
            }
            Some((text, Some(..1_000_000_000))) => {
                problems.invalid("bindingTimeout", &format!("{text:?}"), "must be at least 1 second");
            }
            _ => {}
        }
    }
}

fn given(text: Option<&str>) -> Option<Duration> {
    base::go_duration::parse_unsigned(text?)
}

/// `NodeResourcesBalancedAllocationArgs`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct BalancedArgs {
    #[serde(deserialize_with = "resources")]
    pub(crate) resources: Vec<ResourceWeight>,
}

impl Default for BalancedArgs {
    fn default() -> Self {
        Self { resources: cpu_and_memory() }
    }
}

impl BalancedArgs {
    /// Source: `ValidateNodeResourcesBalancedAllocationArgs`.
    pub(super) fn check(&self, problems: &mut Problems) {
        for (number, resource) in self.resources.iter().enumerate() {
            let at = format!("resources[{number}]");
            if self.resources[..number].iter().any(|before| before.name == resource.name) {
                problems.add(&format!("{at}.name"), &format!("Duplicate value: {:?}", resource.name));
            }
            if resource.weight != 1 {
                problems.invalid(&format!("{at}.weight"), &resource.weight.to_string(), "must be 1");
            }
        }
    }
}

/// `PodTopologySpreadArgs`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct SpreadArgs {
    pub(crate) default_constraints: Vec<SpreadSource>,
    defaulting_type: String,
}

impl SpreadArgs {
    /// Whether the system's constraints are the default.
    pub(crate) fn is_system(&self) -> bool {
        matches!(self.defaulting_type.as_str(), "" | "System")
    }

    /// Source: `ValidatePodTopologySpreadArgs`.
    pub(super) fn check(&self, problems: &mut Problems) {
        match self.defaulting_type.as_str() {
            "" | "System" if !self.default_constraints.is_empty() => {
                problems.invalid("defaultingType", "\"System\"", "when .defaultConstraints are not empty");
            }
            "" | "System" | "List" => {}
            other => problems.unsupported("defaultingType", other, &["List", "System"]),
        }
        for (number, constraint) in self.default_constraints.iter().enumerate() {
            let at = format!("defaultConstraints[{number}]");
            if constraint.max_skew <= 0 {
                let value = constraint.max_skew.to_string();
                problems.invalid(&format!("{at}.maxSkew"), &value, "not in valid range (0, inf)");
            }
            if constraint.topology_key.is_empty() {
                problems.add(&format!("{at}.topologyKey"), "Required value: can not be empty");
            } else {
                problems.label_name(&format!("{at}.topologyKey"), &constraint.topology_key);
            }
            match constraint.when_unsatisfiable.as_str() {
                "" => problems.add(&format!("{at}.whenUnsatisfiable"), "Required value: can not be empty"),
                "DoNotSchedule" | "ScheduleAnyway" => {}
                other => {
                    let known = ["DoNotSchedule", "ScheduleAnyway"];
                    problems.unsupported(&format!("{at}.whenUnsatisfiable"), other, &known);
                }
            }
            if constraint.label_selector.is_some() {
                let why = "Forbidden: constraint must not define a selector, as they deduced for each pod";
                problems.add(&format!("{at}.labelSelector"), why);
            }
            let same = |before: &SpreadSource| {
                before.topology_key == constraint.topology_key
                    && before.when_unsatisfiable == constraint.when_unsatisfiable
            };
            if self.default_constraints[..number].iter().any(same) {
                let (key, when) = (&constraint.topology_key, &constraint.when_unsatisfiable);
                problems.add(&at, &format!("Duplicate value: \"{{{key}, {when}}}\""));
            }
        }
    }
}

/// `InterPodAffinityArgs`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct InterPodArgs {
    pub(crate) hard_pod_affinity_weight: i32,
    pub(crate) ignore_preferred_terms_of_existing_pods: bool,
}

impl Default for InterPodArgs {
    fn default() -> Self {
        Self { hard_pod_affinity_weight: 1, ignore_preferred_terms_of_existing_pods: false }
    }
}

impl InterPodArgs {
    pub(super) fn check(&self, problems: &mut Problems) {
        let weight = self.hard_pod_affinity_weight;
        if !(0..=100).contains(&weight) {
            problems.invalid("hardPodAffinityWeight", &weight.to_string(), "not in valid range [0, 100]");
        }
    }
}

/// `DefaultPreemptionArgs`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct PreemptionArgs {
    min_candidate_nodes_percentage: i32,
    min_candidate_nodes_absolute: i32,
}

impl Default for PreemptionArgs {
    fn default() -> Self {
        Self { min_candidate_nodes_percentage: 10, min_candidate_nodes_absolute: 100 }
    }
}

impl PreemptionArgs {
    /// Source: `ValidateDefaultPreemptionArgs`.
    pub(super) fn check(&self, problems: &mut Problems) {
        let (percentage, absolute) = (self.min_candidate_nodes_percentage, self.min_candidate_nodes_absolute);
        let fields = ["minCandidateNodesPercentage", "minCandidateNodesAbsolute"];
        if !(0..=100).contains(&percentage) {
            problems.invalid(fields[0], &percentage.to_string(), "not in valid range [0, 100]");
        }
        if absolute < 0 {
            problems.invalid(fields[1], &absolute.to_string(), "not in valid range [0, inf)");
        }
        if percentage == 0 && absolute == 0 {
            for (field, other) in [(fields[0], fields[1]), (fields[1], fields[0])] {
                problems.invalid(field, "0", &format!("cannot be zero at the same time as {other}"));
            }
        }
    }

    pub(super) fn settings(&self) -> PreemptionSettings {
        let number = |number: i32| usize::try_from(number).unwrap_or(0);
        PreemptionSettings {
            percentage: number(self.min_candidate_nodes_percentage),
            absolute: number(self.min_candidate_nodes_absolute),
        }
    }
}
