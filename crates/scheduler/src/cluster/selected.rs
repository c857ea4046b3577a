//! The selectors of Services and of the controllers of pods: what a pod's like are when nothing else says so.
//! Source: `helper.DefaultSelector`.

use std::collections::HashMap;

use crate::types::{Labels, Pod, Selector};

/// What selects pods.
#[derive(Debug, Default)]
pub struct Selected {
    /// By namespace and name.
    services: HashMap<String, HashMap<String, Labels>>,
    /// By kind, namespace and name.
    controllers: HashMap<(&'static str, String, String), Selector>,
}

impl Selected {
    /// A Service has this selector from now on, or is gone.
    pub fn put_service(&mut self, namespace: &str, name: &str, selector: Option<Labels>) {
        match selector.filter(|selector| !selector.is_empty()) {
            Some(selector) => {
                self.services.entry(namespace.to_owned()).or_default().insert(name.to_owned(), selector);
            }
            None => {
                if let Some(services) = self.services.get_mut(namespace) {
                    services.remove(name);
                    if services.is_empty() {
                        self.services.remove(namespace);
                    }
                }
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
        for selector in self.services.get(&pod.key.namespace).into_iter().flat_map(HashMap::values) {
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
