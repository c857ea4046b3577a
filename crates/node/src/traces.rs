//! What starting pods took, step by step: the node's own steps, and those of the runtime below it.

use std::collections::HashMap;
use std::sync::Arc;

use base::spans::{Open, Span, Spans};
use parking_lot::Mutex;
use serde_json::{Value, json};

/// The steps of the pods that have a worker, by uid.
#[derive(Debug, Default)]
pub(crate) struct Traces(Mutex<HashMap<String, Arc<Spans>>>);

impl Traces {
    /// The steps of a pod are kept from now on.
    pub(crate) fn begin(&self, uid: &str) {
        self.0.lock().entry(uid.to_owned()).or_default();
    }

    /// The pod's worker has ended.
    pub(crate) fn forget(&self, uid: &str) {
        self.0.lock().remove(uid);
    }

    /// A step begins, for a container where `of` is not empty; it ends when the answer is dropped.
    pub(crate) fn step(&self, uid: &str, step: &'static str, of: &str) -> Open {
        self.0.lock().get(uid).map_or_else(Open::unseen, |spans| spans.open(step, of))
    }

    /// The pod's steps in the order in which they began, with those of its sandbox.
    pub(crate) fn of(&self, uid: &str, below: Vec<Span>) -> Vec<Span> {
        let mut all = self.0.lock().get(uid).map(|spans| spans.list()).unwrap_or_default();
        all.extend(below);
        all.sort_by_key(|span| (span.began_ns, std::cmp::Reverse(span.ended_ns)));
        all
    }
}

/// Steps as the node's server tells them: times in microseconds from the first step on.
pub(crate) fn document(pod: &str, uid: &str, spans: &[Span]) -> Value {
    let first = spans.first().map_or(0, |span| span.began_ns);
    let step = |span: &Span| {
        json!({ "step": span.step, "container": span.of,
            "fromMicroseconds": span.began_ns.saturating_sub(first) / 1000,
            "tookMicroseconds": span.ended_ns.saturating_sub(span.began_ns) / 1000 })
    };
    json!({ "pod": pod, "uid": uid, "steps": spans.iter().map(step).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_of_node_and_runtime_stand_in_one_order() {
        let traces = Traces::default();
        drop(traces.step("u", "nobody asked", ""));
        traces.begin("u");
        let whole = traces.step("u", "sandbox", "");
        let now = base::spans::now_ns();
        let below = Span { step: "shim".into(), of: "main".into(), began_ns: now, ended_ns: now };
        drop(whole);
        let told = document("default/web", "u", &traces.of("u", vec![below]));
        assert_eq!(told["steps"][0]["step"], "sandbox");
        assert_eq!(told["steps"][0]["fromMicroseconds"], 0);
        assert_eq!(
            (told["steps"][1]["step"].as_str(), told["steps"][1]["container"].as_str()),
            (Some("shim"), Some("main"))
        );
        traces.forget("u");
        assert!(traces.of("u", Vec::new()).is_empty());
    }
}
