//! How fast a number of pods may follow what the figures ask for. Pure: what was asked and done before is handed in.
//! Source: `podautoscaler/horizontal.go` from `normalizeDesiredReplicas` on.

use std::time::Duration;

use jiff::Timestamp;

use super::types::{Behavior, Policy, Rules};

/// For so long higher recommendations hold where no behavior says otherwise.
/// Source: `--horizontal-pod-autoscaler-downscale-stabilization`.
const DOWN_WINDOW_S: i32 = 300;
/// Without a behavior the number doubles at most, …
const UP_FACTOR: i32 = 2;
/// … but four are always allowed. Source: `scaleUpLimitFactor`, `scaleUpLimitMinimum`.
const UP_LEAST: i32 = 4;

/// What was recommended and done before, per autoscaler. It is lost with the process, as upstream's is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct History {
    /// Recommendations, oldest first.
    recommended: Vec<(i32, Timestamp)>,
    /// By how much the number grew.
    ups: Vec<(i32, Timestamp)>,
    /// By how much it shrank.
    downs: Vec<(i32, Timestamp)>,
}

/// What the number may become, and why.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Normalized {
    pub(super) desired: i32,
    /// Reason and message of `AbleToScale`, which is true.
    pub(super) able: (&'static str, &'static str),
    /// Status, reason and message of `ScalingLimited`.
    pub(super) limited: (bool, &'static str, &'static str),
}

/// The bounds of an autoscaler, and what there is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) current: i32,
    pub(super) least: i32,
    pub(super) most: i32,
}

const READY: (&str, &str) = ("ReadyForNewScale", "recommended size matches current size");
const HIGHER: (&str, &str) = (
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);
const LOWER: (&str, &str) = (
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);
const WITHIN: (&str, &str) = ("DesiredWithinRange", "the desired count is within the acceptable range");
const UP_LIMIT: (&str, &str) =
    ("ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate");
const DOWN_LIMIT: (&str, &str) =
    ("ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate");
const TOO_MANY: (&str, &str) =
    ("TooManyReplicas", "the desired replica count is more than the maximum replica count");
const TOO_FEW: (&str, &str) =
    ("TooFewReplicas", "the desired replica count is less than the minimum replica count");

fn ago(now: Timestamp, seconds: i32) -> Timestamp {
    let period = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    now.saturating_sub(period).unwrap_or(Timestamp::MIN)
}

impl History {
    /// The number that is found first is a recommendation: a new process does not take pods away at once.
    pub(super) fn begin(&mut self, current: i32, now: Timestamp) {
        if self.recommended.is_empty() {
            self.recommended.push((current, now));
        }
    }

    /// What is said to have happened later than now did so by a clock that has gone back: it happened now, else it would
    /// hold until the clock is where it was.
    fn begin_anew(&mut self, now: Timestamp) {
        let all = [&mut self.recommended, &mut self.ups, &mut self.downs];
        all.into_iter().flatten().for_each(|(_, at)| *at = (*at).min(now));
    }

    /// Notes that the number of pods was changed.
    pub(super) fn scaled(&mut self, behavior: Option<&Behavior>, from: i32, to: i32, now: Timestamp) {
        let Some(behavior) = behavior else { return };
        let (rules, events) = if to > from {
            (up_rules(behavior), &mut self.ups)
        } else {
            (down_rules(behavior), &mut self.downs)
        };
        let longest = rules.policies.iter().map(|policy| policy.period_seconds).max().unwrap_or(0);
        let begin = ago(now, longest);
        events.retain(|(_, at)| *at >= begin);
        events.push(((to - from).abs(), now));
    }

    /// What becomes of a recommendation, which is noted.
    pub(super) fn normalize(
        &mut self,
        behavior: Option<&Behavior>,
        bounds: Bounds,
        asked: i32,
        now: Timestamp,
    ) -> Normalized {
        self.begin_anew(now);
        let (stable, because) = match behavior {
            None => self.stabilized_down(asked, now),
            Some(behavior) => self.stabilized(behavior, bounds.current, asked, now),
        };
        let (desired, limit) = match behavior {
            None => within_default_rate(bounds, stable),
            Some(behavior) => self.within_rate(behavior, bounds, stable, now),
        };
        Normalized {
            desired,
            able: if stable == asked { READY } else { because },
            limited: (desired != stable, limit.0, limit.1),
        }
    }

    fn stabilized_down(&mut self, asked: i32, now: Timestamp) -> (i32, (&'static str, &'static str)) {
        let begin = ago(now, DOWN_WINDOW_S);
        self.recommended.retain(|(_, at)| *at >= begin);
        let stable = self.recommended.iter().map(|(held, _)| *held).fold(asked, i32::max);
        self.recommended.push((asked, now));
        (stable, HIGHER)
    }

    /// Source: `stabilizeRecommendationWithBehaviors`.
    fn stabilized(
        &mut self,
        behavior: &Behavior,
        current: i32,
        asked: i32,
        now: Timestamp,
    ) -> (i32, (&'static str, &'static str)) {
        let up = up_rules(behavior).stabilization_window_seconds.unwrap_or(0);
        let down = down_rules(behavior).stabilization_window_seconds.unwrap_or(DOWN_WINDOW_S);
        let since = |seconds: i32| {
            let begin = ago(now, seconds);
            self.recommended.iter().filter(move |(_, at)| *at > begin).map(|(held, _)| *held)
        };
        // The number stays where it is between the lowest of the one window and the highest of the other.
        let (lowest, highest) = (since(up).fold(asked, i32::min), since(down).fold(asked, i32::max));
        let stable = current.max(lowest).min(highest);
        let forgotten = ago(now, up.max(down));
        self.recommended.retain(|(_, at)| *at >= forgotten);
        self.recommended.push((asked, now));
        (stable, if asked >= current { LOWER } else { HIGHER })
    }

    /// By how much the number grew in a period, all in all.
    fn grown_in(&self, period_s: i32, now: Timestamp) -> i32 {
        changed_in(period_s, &self.ups, now) - changed_in(period_s, &self.downs, now)
    }

    /// Source: `convertDesiredReplicasWithBehaviorRate`.
    fn within_rate(
        &self,
        behavior: &Behavior,
        bounds: Bounds,
        stable: i32,
        now: Timestamp,
    ) -> (i32, (&'static str, &'static str)) {
        let Bounds { current, least, most } = bounds;
        if stable > current {
            // What grew in the last period may be more than is allowed by now: then nothing more.
            let rate =
                up_limit(&up_rules(behavior), current, |period| self.grown_in(period, now)).max(current);
            let (top, why) = if most > rate { (rate, UP_LIMIT) } else { (most, TOO_MANY) };
            if stable > top {
                return (top, why);
            }
        } else if stable < current {
            let rate =
                down_limit(&down_rules(behavior), current, |period| self.grown_in(period, now)).min(current);
            let (bottom, why) = if least < rate { (rate, DOWN_LIMIT) } else { (least, TOO_FEW) };
            if stable < bottom {
                return (bottom, why);
            }
        }
        (stable, WITHIN)
    }
}

/// Source: `convertDesiredReplicasWithRules`.
fn within_default_rate(bounds: Bounds, stable: i32) -> (i32, (&'static str, &'static str)) {
    let rate = bounds.current.saturating_mul(UP_FACTOR).max(UP_LEAST);
    let (top, why) = if bounds.most > rate { (rate, UP_LIMIT) } else { (bounds.most, TOO_MANY) };
    if stable < bounds.least {
        (bounds.least, TOO_FEW)
    } else if stable > top {
        (top, why)
    } else {
        (stable, WITHIN)
    }
}

/// The rules upwards: the API server has filled them in where there is a behavior. Source: `GenerateHPAScaleUpRules`.
fn up_rules(behavior: &Behavior) -> Rules {
    let policy = |kind: &str, value| Policy { r#type: kind.into(), value, period_seconds: 15 };
    behavior.scale_up.clone().unwrap_or_else(|| Rules {
        stabilization_window_seconds: Some(0),
        policies: vec![policy("Pods", 4), policy("Percent", 100)],
        ..Rules::default()
    })
}

/// The rules downwards. Source: `GenerateHPAScaleDownRules`.
fn down_rules(behavior: &Behavior) -> Rules {
    behavior.scale_down.clone().unwrap_or_else(|| Rules {
        policies: vec![Policy { r#type: "Percent".into(), value: 100, period_seconds: 15 }],
        ..Rules::default()
    })
}

fn changed_in(period_s: i32, events: &[(i32, Timestamp)], now: Timestamp) -> i32 {
    let begin = ago(now, period_s);
    events.iter().filter(|(_, at)| *at > begin).fold(0, |sum: i32, (by, _)| sum.saturating_add(*by))
}

/// Source: `calculateScaleUpLimitWithScalingRules`.
fn up_limit(rules: &Rules, current: i32, grown_in: impl Fn(i32) -> i32) -> i32 {
    let proposals = rules.policies.iter().map(|policy| {
        let began = current.saturating_sub(grown_in(policy.period_seconds));
        if policy.r#type == "Pods" {
            began.saturating_add(policy.value)
        } else {
            // Rounded up: a small number would never grow.
            (f64::from(began) * (1.0 + f64::from(policy.value) / 100.0)).ceil() as i32
        }
    });
    match rules.select_policy.as_str() {
        "Disabled" => current,
        "Min" => proposals.min().unwrap_or(i32::MAX),
        _ => proposals.max().unwrap_or(i32::MIN),
    }
}

/// Source: `calculateScaleDownLimitWithBehaviors`.
fn down_limit(rules: &Rules, current: i32, grown_in: impl Fn(i32) -> i32) -> i32 {
    let proposals = rules.policies.iter().map(|policy| {
        let began = current.saturating_sub(grown_in(policy.period_seconds));
        if policy.r#type == "Pods" {
            began.saturating_sub(policy.value)
        } else {
            (f64::from(began) * (1.0 - f64::from(policy.value) / 100.0)) as i32
        }
    });
    match rules.select_policy.as_str() {
        "Disabled" => current,
        "Min" => proposals.max().unwrap_or(i32::MAX),
        _ => proposals.min().unwrap_or(i32::MAX),
    }
}
