//! The selectors of Services and of the controllers of pods: what a pod's like are when nothing else says so.
//! Source: `helper.DefaultSelector`.

use std::collections::{BTreeMap, HashMap};

use crate::types::{Labels, Pod, Selector};

/// Services with their selectors, by the first label that they ask for: key, then value. A pod looks at those alone
/// whose first label it has.
type Services = HashMap<String, HashMap<String, BTreeMap<String, Labels>>>;

/// What selects pods.
#[derive(Debug, Default)]
pub struct Selected {
    /// The selectors of Services, by namespace and name.
    selectors: HashMap<String, HashMap<String, Labels>>,
    /// By namespace.
    services: HashMap<String, Services>,
    /// By kind, namespace and name.
    controllers: HashMap<(&'static str, String, String), Selector>,
}

impl Selected {
    /// A Service has this selector from now on, or is gone. One without labels selects nothing.
    pub fn put_service(&mut self, namespace: &str, name: &str, selector: Option<Labels>) {
        self.take_service(namespace, name);
        let Some(selector) = selector else { return };
        let Some((key, value)) = selector.first_key_value() else { return };
        let services = self.services.entry(namespace.to_owned()).or_default();
        let values = services.entry(key.clone()).or_default();
        values.entry(value.clone()).or_default().insert(name.to_owned(), selector.clone());
        self.selectors.entry(namespace.to_owned()).or_default().insert(name.to_owned(), selector);
    }

    fn take_service(&mut self, namespace: &str, name: &str) {
        let Some(names) = self.selectors.get_mut(namespace) else { return };
        let Some(selector) = names.remove(name) else { return };
        if names.is_empty() {
            self.selectors.remove(namespace);
            self.services.remove(namespace);
            return;
        }
        let Some((key, value)) = selector.first_key_value() else { return };
        let values = self.services.get_mut(namespace).and_then(|services| services.get_mut(key));
        let Some(values) = values else { return };
        if let Some(services) = values.get_mut(value) {
            services.remove(name);
            if services.is_empty() {
                values.remove(value);
            }
        }
    }

    /// A controller of pods has this selector from now on, or is gone.
    pub fn put_controller(
        &mut self,
        kind: &'static str,
        namespace: &str,
        name: &str,
        selector: Option<Selector>,
    ) {
        let key = (kind, namespace.to_owned(), name.to_owned());
        match selector {
            Some(selector) => drop(self.controllers.insert(key, selector)),
            None => drop(self.controllers.remove(&key)),
        }
    }

    /// What the Services that select a pod and its controller ask for together; empty if there is none of them.
    pub fn like(&self, pod: &Pod) -> Selector {
        let mut labels = Labels::new();
        let services = self.services.get(&pod.key.namespace);
        let begin = |(key, value): (&String, &String)| services?.get(key)?.get(value);
        for selector in pod.labels.iter().filter_map(begin).flat_map(BTreeMap::values) {
            if selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value)) {
                labels.extend(selector.clone());
            }
        }
        let services = if labels.is_empty() { Selector::default() } else { Selector::of_labels(&labels) };
        let owner = pod.spec.owner.as_ref().and_then(|owner| {
            let kind = ["ReplicaSet", "StatefulSet", "ReplicationController"]
                .into_iter()
                .find(|kind| *kind == owner.kind)?;
            self.controllers.get(&(kind, pod.key.namespace.clone(), owner.name.clone()))
        });
        match owner {
            Some(owner) => services.with(owner),
            None => services,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn like_pods_are_those_of_all_services_and_of_the_controller() {
        let owner = crate::types::Owner { kind: "ReplicaSet".into(), name: "rs".into(), uid: "u".into() };
        let spec = crate::types::Spec { owner: Some(owner), ..crate::types::Spec::default() };
        let pod = Pod {
            key: api::Key::new("ns", "p"),
            labels: Arc::new(labels(&[("app", "web"), ("hash", "1"), ("tier", "front")])),
            spec: Arc::new(spec),
            ..Pod::default()
        };
        let mut selected = Selected::default();
        let asks = |selected: &Selected, pairs: &[(&str, &str)]| selected.like(&pod).matches(&labels(pairs));
        assert!(selected.like(&pod).is_empty());
        selected.put_service("ns", "all", Some(Labels::new()));
        selected.put_service("other", "web", Some(labels(&[("app", "web")])));
        selected.put_service("ns", "db", Some(labels(&[("app", "db")])));
        assert!(selected.like(&pod).is_empty());
        selected.put_service("ns", "web", Some(labels(&[("app", "web")])));
        selected.put_service("ns", "front", Some(labels(&[("app", "web"), ("tier", "front")])));
        assert!(asks(&selected, &[("app", "web"), ("tier", "front")]) && !asks(&selected, &[("app", "web")]));
        selected.put_service("ns", "front", Some(labels(&[("app", "db")])));
        assert!(asks(&selected, &[("app", "web")]));
        let of_set = Selector::of_labels(&labels(&[("hash", "1")]));
        selected.put_controller("ReplicaSet", "ns", "rs", Some(of_set));
        assert!(asks(&selected, &[("app", "web"), ("hash", "1")]) && !asks(&selected, &[("app", "web")]));
        selected.put_service("ns", "web", None);
        assert!(asks(&selected, &[("hash", "1")]));
        selected.put_controller("ReplicaSet", "ns", "rs", None);
        assert!(selected.like(&pod).is_empty());
    }
}
