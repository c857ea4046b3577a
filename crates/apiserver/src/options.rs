//! What options must fulfil before anything is done, in upstream's words. Source:
//! `apimachinery/pkg/apis/meta/internalversion/validation` and `apis/meta/v1/validation`.

use api::{ListOptions, Status, WriteOptions};
use serde_json::json;

use crate::field::{FieldError, FieldErrors, check};

/// Options are kinds of this group.
const GROUP: &str = "meta.k8s.io";
const EXACT: &str = "Exact";
const NOT_OLDER_THAN: &str = "NotOlderThan";
const MATCH: &str = "resourceVersionMatch";
const MANAGER_CHARS_MAX: usize = 128;

/// Which kind of options a write has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "upstream's names")]
pub enum Write {
    Create,
    Update,
    Patch,
    /// A patch that applies.
    Apply,
}

impl Write {
    /// The kind as messages name it.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Create => "CreateOptions",
            Self::Update => "UpdateOptions",
            Self::Patch | Self::Apply => "PatchOptions",
        }
    }
}

/// The 422 of options that do not hold.
pub fn refuse(kind: &str, errors: &[FieldError]) -> Result<(), Status> {
    check(GROUP, kind, "", errors)
}

/// Options of a list.
pub fn check_list(options: &ListOptions) -> Result<(), Status> {
    let mut errors = FieldErrors::new();
    let wanted = options.resource_version_match.as_str();
    if !wanted.is_empty() {
        if options.resource_version.is_empty() {
            let detail = "resourceVersionMatch is forbidden unless resourceVersion is provided";
            errors.push(FieldError::forbidden(MATCH, detail));
        }
        forbid_continue(options, &mut errors);
        if wanted != EXACT && wanted != NOT_OLDER_THAN {
            errors.push(FieldError::not_supported(MATCH, &json!(wanted), &[EXACT, NOT_OLDER_THAN, ""]));
        }
        if wanted == EXACT && options.resource_version == "0" {
            let detail = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
            errors.push(FieldError::forbidden(MATCH, detail));
        }
    }
    if options.send_initial_events.is_some() {
        errors.push(FieldError::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
    }
    refuse("ListOptions", &errors)?;
    if !options.continue_token.is_empty() && !matches!(options.resource_version.as_str(), "" | "0") {
        return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
    }
    Ok(())
}

/// Options of a watch.
pub fn check_watch(options: &ListOptions) -> Result<(), Status> {
    let mut errors = FieldErrors::new();
    let wanted = options.resource_version_match.as_str();
    if options.send_initial_events.is_some() && wanted != NOT_OLDER_THAN {
        let detail = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
        errors.push(FieldError::forbidden(MATCH, detail));
    }
    if !wanted.is_empty() {
        if options.send_initial_events.is_none() {
            let detail = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
            errors.push(FieldError::forbidden(MATCH, detail));
        }
        if wanted != NOT_OLDER_THAN {
            errors.push(FieldError::not_supported(MATCH, &json!(wanted), &[NOT_OLDER_THAN]));
        }
        forbid_continue(options, &mut errors);
    }
    refuse("ListOptions", &errors)
}

fn forbid_continue(options: &ListOptions, errors: &mut FieldErrors) {
    if !options.continue_token.is_empty() {
        let detail = "resourceVersionMatch is forbidden when continue is provided";
        errors.push(FieldError::forbidden(MATCH, detail));
    }
}

/// Options of a write.
pub fn check_write(write: Write, options: &WriteOptions) -> Result<(), Status> {
    let mut errors = FieldErrors::new();
    if options.force && write != Write::Apply {
        errors.push(FieldError::forbidden("force", "may not be specified for non-apply patch"));
    }
    if write == Write::Apply && options.field_manager.is_empty() {
        errors.push(FieldError::required("fieldManager", "is required for apply patch"));
    }
    if options.field_manager.chars().count() > MANAGER_CHARS_MAX {
        errors.push(FieldError::too_long("fieldManager", MANAGER_CHARS_MAX));
    }
    if options.field_manager.chars().any(char::is_control) {
        let detail = "should only contain printable characters";
        errors.push(FieldError::invalid("fieldManager", &json!(options.field_manager), detail));
    }
    refuse(write.kind(), &errors)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(result: Result<(), Status>) -> String {
        result.map_or_else(|status| status.message, |()| String::new())
    }

    #[test]
    fn a_list_says_what_it_means_by_its_version() {
        let list = |version: &str, wanted: &str, token: &str| {
            said(check_list(&ListOptions {
                resource_version: version.into(),
                resource_version_match: wanted.into(),
                continue_token: token.into(),
                ..ListOptions::default()
            }))
        };
        let exact =
            "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch";
        assert_eq!(list("", "Exact", ""), format!("{exact} is forbidden unless resourceVersion is provided"));
        assert_eq!(
            list("0", "Exact", ""),
            format!("{exact} \"exact\" is forbidden for resourceVersion \"0\"")
        );
        assert!(list("5", "Newest", "").contains("Unsupported value: \"Newest\""));
        assert!(list("5", "Exact", "x").contains("forbidden when continue is provided"));
        assert!(list("5", "", "x").contains("not allowed when using continue"));
        for (version, wanted, token) in
            [("", "", ""), ("5", "Exact", ""), ("5", "NotOlderThan", ""), ("0", "", "x")]
        {
            assert_eq!(list(version, wanted, token), "");
        }
        let initial = ListOptions { send_initial_events: Some(true), ..ListOptions::default() };
        assert!(said(check_list(&initial)).contains("sendInitialEvents is forbidden for list"));
        assert!(
            said(check_watch(&initial)).contains("requires setting resourceVersionMatch to NotOlderThan")
        );
        let whole = ListOptions { resource_version_match: NOT_OLDER_THAN.into(), ..initial };
        assert_eq!(said(check_watch(&whole)), "");
        assert!(
            said(check_watch(&ListOptions { send_initial_events: None, ..whole }))
                .contains("forbidden for watch")
        );
    }

    #[test]
    fn who_applies_says_so_and_only_who_applies_may_force() {
        let options = |manager: &str, force| WriteOptions {
            field_manager: manager.into(),
            force,
            ..WriteOptions::default()
        };
        assert_eq!(
            said(check_write(Write::Apply, &options("", false))),
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch"
        );
        assert!(
            said(check_write(Write::Patch, &options("a", true)))
                .contains("may not be specified for non-apply")
        );
        assert!(said(check_write(Write::Create, &options(&"a".repeat(129), false))).contains("Too long"));
        assert_eq!(said(check_write(Write::Apply, &options("a", true))), "");
    }
}
