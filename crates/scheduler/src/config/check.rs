//! What is wrong with a configuration, in upstream's words, all of it at once.

use api::names;

/// The problems that were found, each with the field's path.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    found: Vec<String>,
    prefix: String,
}

impl Problems {
    /// Checks a part whose fields are told with this path before them.
    pub(crate) fn within(&mut self, path: &str, check: impl FnOnce(&mut Self)) {
        let within = format!("{}{path}.", self.prefix);
        let before = std::mem::replace(&mut self.prefix, within);
        check(self);
        self.prefix = before;
    }

    pub(crate) fn add(&mut self, field: &str, why: &str) {
        self.found.push(format!("{}{field}: {why}", self.prefix));
    }

    pub(crate) fn invalid(&mut self, field: &str, value: &str, why: &str) {
        self.add(field, &format!("Invalid value: {value}: {why}"));
    }

    pub(crate) fn unsupported(&mut self, field: &str, value: &str, known: &[&str]) {
        let known: Vec<String> = known.iter().map(|known| format!("{known:?}")).collect();
        self.add(field, &format!("Unsupported value: {value:?}: supported values: {}", known.join(", ")));
    }

    pub(crate) fn label_name(&mut self, field: &str, name: &str) {
        for problem in names::qualified_name_problems(name) {
            self.invalid(field, &format!("{name:?}"), &problem);
        }
    }

    /// What was found, as one text.
    pub(crate) fn into_result(self) -> Result<(), String> {
        match self.found.as_slice() {
            [] => Ok(()),
            [one] => Err(one.clone()),
            several => Err(format!("[{}]", several.join(", "))),
        }
    }
}
