//! CustomResourceDefinitions: a definition becomes rows of the catalog, and its schema what objects are pruned, defaulted
//! and validated by. Source: `k8s.io/apiextensions-apiserver`.

mod causes;
mod check;
mod columns;
mod embedded;
mod expressions;
mod fill;
mod formats;
mod jsonpath;
mod openapi;
mod props;
mod prune;
mod rows;
mod rules;
mod shape;
mod validate;

pub use check::{check_rules, check_schema, check_structure, needs_structure};
pub use columns::{PrinterColumn, cells, definitions};
pub use expressions::Before;
pub use formats::is_known as is_known_format;
pub(crate) use formats::{duration as duration_of, fits as fits_format};
pub use jsonpath::JsonPath;
pub use openapi::name as definition_name;
pub use props::{Additional, Items, Props, Rule, pattern};
pub use rows::{ScalePaths, rows};

use serde_json::Value;

use crate::cel::Pace;
use crate::schema::{Schema, TypeId, Typed};
use crate::status::Cause;

/// What a row has besides where its kind comes from a CustomResourceDefinition.
#[derive(Debug)]
pub struct Custom {
    /// The schema of the row's version.
    pub schema: Props,
    /// The columns of its table, the name apart.
    pub columns: Vec<PrinterColumn>,
    /// Where the numbers of the `scale` subresource stand.
    pub scale: Option<ScalePaths>,
    /// What clients of the version are warned with.
    pub deprecation: Option<String>,
    /// How objects of other versions become ones of this.
    pub conversion: Conversion,
    /// The published schema and that of the list, for OpenAPI version 2 and 3.
    pub published: [Published; 2],
    /// A digest of the schema that version 3 publishes, the same for equal ones: it is asked for far more often than a
    /// definition changes, and the schema may be large.
    pub digest: u64,
    /// Whether anything is filled in where objects lack it.
    has_defaults: bool,
    /// Whether the definition keeps unknown fields, wherever they are.
    preserves: bool,
    envelope: TypeId,
}

/// Definitions as OpenAPI publishes them.
#[derive(Debug)]
pub struct Published {
    /// The kind's.
    pub kind: Value,
    /// Its list's.
    pub list: Value,
}

/// How objects of one version become those of another.
#[derive(Debug, Clone, PartialEq)]
pub enum Conversion {
    /// Only `apiVersion` changes.
    None,
    /// A webhook is asked.
    Webhook(Box<Webhook>),
}

/// The webhook of a conversion. Source: apiextensions/v1 `WebhookConversion`.
#[derive(Debug, Clone, PartialEq)]
pub struct Webhook {
    /// `spec.conversion.webhook.clientConfig`.
    pub client: Value,
    /// Versions of ConversionReview that it understands, in its order.
    pub review_versions: Vec<String>,
}

impl Custom {
    /// The type by which bodies are decoded: only what every object has is typed, the rest is taken as it comes.
    pub fn envelope<'s>(&self, schema: &'s Schema) -> Typed<'s> {
        schema.typed(self.envelope)
    }

    /// Drops unknown fields; what was dropped, in upstream's words.
    pub fn prune(&self, object: &mut Value) -> Vec<String> {
        if self.preserves { Vec::new() } else { prune::prune(object, &self.schema) }
    }

    /// Fills in defaults.
    pub fn default(&self, object: &mut Value) {
        fill::default(object, &self.schema);
    }

    /// Whether [`Custom::default`] may change objects.
    pub fn has_defaults(&self) -> bool {
        self.has_defaults
    }

    /// What is wrong with an object; `old` is what it was before an update. Expressions may take seconds.
    pub fn validate(&self, object: &Value, old: Option<&Value>) -> Vec<Cause> {
        self.validate_paced(object, old, None).unwrap_or_default()
    }

    /// The same where others wait; `None`: it takes long.
    pub fn validate_quickly(&self, object: &Value, old: Option<&Value>) -> Option<Vec<Cause>> {
        self.validate_paced(object, old, Some(&Pace::default()))
    }

    fn validate_paced(&self, object: &Value, old: Option<&Value>, pace: Option<&Pace>) -> Option<Vec<Cause>> {
        let mut causes = validate::validate(object, old, &self.schema);
        if self.schema.with_rules {
            let blocks = |cause: &Cause| {
                !["FieldValueInvalid", "FieldValueDuplicate"].contains(&cause.reason.as_str())
            };
            if causes.iter().any(blocks) {
                causes.push(rules::unchecked());
            } else {
                causes.extend(rules::check(object, old, &self.schema, pace)?);
            }
        }
        Some(causes)
    }
}
