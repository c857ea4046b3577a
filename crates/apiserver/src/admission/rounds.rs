//! When mutation begins anew. What one plugin changes others may want to see: where a plugin that is configured (by
//! webhooks or policies) changed an object, the whole chain runs once more, and of what is configured those parts that
//! want to. Source: `apiserver/pkg/admission/reinvocation.go`, `plugin/webhook/mutating/reinvocationcontext.go`.

use std::collections::{HashMap, HashSet};

use parking_lot::Mutex;
use serde_json::Value;

/// What is known of the rounds of one request.
#[derive(Debug, Default)]
pub struct Rounds(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    second: bool,
    wanted: bool,
    plugins: HashMap<&'static str, Plugin>,
    /// The object's managedFields before the first change.
    owned: Option<Value>,
}

#[derive(Debug, Default)]
struct Plugin {
    /// The object as the plugin left it.
    left: Value,
    /// Parts that have run since the last change and want to see the next.
    ran: HashSet<String>,
    /// Parts that are to run again.
    again: HashSet<String>,
}

impl Plugin {
    fn changed(&mut self) {
        self.again.extend(self.ran.drain());
    }
}

impl Rounds {
    /// Whether this is the second round.
    pub fn is_second(&self) -> bool {
        self.0.lock().second
    }

    /// Begins the second round if a plugin asked for it in the first.
    pub(super) fn begin_second(&self) -> bool {
        let mut state = self.0.lock();
        let begins = state.wanted && !state.second;
        state.second |= begins;
        begins
    }

    /// A plugin is about to change this object.
    pub fn changes(&self, object: &Value) {
        let owned = || object["metadata"]["managedFields"].clone();
        self.0.lock().owned.get_or_insert_with(owned);
    }

    /// The object's managedFields before the first change (null: none); `None` where nothing was changed.
    pub fn owned_before(&self) -> Option<Value> {
        self.0.lock().owned.clone()
    }

    /// A plugin's turn in a round begins with this object.
    pub fn enter(&self, plugin: &'static str, object: &Value) {
        let mut state = self.0.lock();
        let second = state.second;
        let known = state.plugins.entry(plugin).or_default();
        if second && !known.ran.is_empty() && known.left != *object {
            known.changed();
        }
    }

    /// Its turn ends with this one, which is kept only where a part might run again for it.
    pub fn leave(&self, plugin: &'static str, object: &Value) {
        let mut state = self.0.lock();
        let second = state.second;
        if let Some(known) = state.plugins.get_mut(plugin).filter(|known| !second && !known.ran.is_empty()) {
            known.left = object.clone();
        }
    }

    /// Whether a part of a plugin runs in this round: in the second only what ran in the first and was overtaken.
    pub fn runs(&self, plugin: &'static str, part: &str) -> bool {
        let state = self.0.lock();
        !state.second || state.plugins.get(plugin).is_some_and(|known| known.again.contains(part))
    }

    /// A plugin has written the object anew, changed or not: each part that has run and wants to see changes runs again,
    /// also the last. Source: the end of `dispatchInvocations` in `policy/mutating/dispatcher.go`.
    pub fn wrote(&self, plugin: &'static str) {
        let mut state = self.0.lock();
        if let Some(known) = state.plugins.get_mut(plugin).filter(|known| !known.ran.is_empty()) {
            known.changed();
            state.wanted = true;
        }
    }

    /// A part has run; whether it changed the object, and whether it wants to see what is changed after it.
    pub fn ran(&self, plugin: &'static str, part: &str, changed: bool, again: bool) {
        let mut state = self.0.lock();
        state.wanted |= changed;
        let known = state.plugins.entry(plugin).or_default();
        if changed {
            known.changed();
        }
        if again {
            known.ran.insert(part.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PLUGIN: &str = "p";

    #[test]
    fn who_was_overtaken_runs_again_and_nobody_else() {
        let rounds = Rounds::default();
        rounds.enter(PLUGIN, &json!(0));
        for (part, changed, again) in [("a", true, true), ("b", false, true), ("c", true, false)] {
            assert!(rounds.runs(PLUGIN, part));
            rounds.ran(PLUGIN, part, changed, again);
        }
        rounds.leave(PLUGIN, &json!(1));
        assert!(rounds.begin_second() && !rounds.begin_second());
        rounds.enter(PLUGIN, &json!(1));
        assert_eq!(["a", "b", "c"].map(|part| rounds.runs(PLUGIN, part)), [true, true, false]);
    }

    #[test]
    fn who_changed_last_runs_again_only_if_others_changed_the_object() {
        for (seen, runs) in [(json!(1), false), (json!(2), true)] {
            let rounds = Rounds::default();
            rounds.enter(PLUGIN, &json!(0));
            rounds.ran(PLUGIN, "a", true, true);
            rounds.leave(PLUGIN, &json!(1));
            assert!(rounds.begin_second());
            rounds.enter(PLUGIN, &seen);
            assert_eq!(rounds.runs(PLUGIN, "a"), runs);
        }
    }

    #[test]
    fn what_was_written_anew_is_seen_by_all_that_want_to() {
        let rounds = Rounds::default();
        rounds.enter(PLUGIN, &json!(0));
        rounds.ran(PLUGIN, "a", false, true);
        rounds.ran(PLUGIN, "b", false, false);
        rounds.wrote(PLUGIN);
        rounds.leave(PLUGIN, &json!(0));
        assert!(rounds.begin_second());
        rounds.enter(PLUGIN, &json!(0));
        assert_eq!(["a", "b"].map(|part| rounds.runs(PLUGIN, part)), [true, false]);
    }

    #[test]
    fn where_nothing_is_configured_there_is_one_round() {
        let rounds = Rounds::default();
        rounds.enter(PLUGIN, &json!(0));
        rounds.ran(PLUGIN, "a", false, true);
        rounds.leave(PLUGIN, &json!(0));
        assert!(!rounds.begin_second());
    }
}
