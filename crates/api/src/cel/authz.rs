//! `authorizer`: questions about rights, asked in the midst of an expression. Whoever answers may need time, and an
//! evaluation does not wait: it ends with the question, and is begun anew when the answer is known.
//! Source: `k8s.io/apiserver/pkg/cel/library/authz.go`.

use std::sync::Arc;

use super::{Budget, CelError, Val};

type Result<T> = std::result::Result<T, CelError>;

/// What one question costs: two of them fit into one expression.
const CHECK_COST: u64 = 350_000;

/// Who knows answers.
pub trait Authority: Send + Sync + std::fmt::Debug {
    /// The answer to a question, if it is known.
    fn answer(&self, question: &Question) -> Option<Answer>;
}

/// A question about a right.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Question {
    /// Whose: a service account (namespace, name), or else whoever made the request.
    pub service_account: Option<(String, String)>,
    /// The verb of the API, or of HTTP for a path.
    pub verb: String,
    /// The path, where no resource is asked for.
    pub path: Option<String>,
    /// API group.
    pub group: String,
    /// Plural.
    pub resource: String,
    /// Subresource, or empty.
    pub subresource: String,
    /// Namespace, or empty.
    pub namespace: String,
    /// The object's name, or empty.
    pub name: String,
    /// Unparsed.
    pub field_selector: String,
    /// Unparsed.
    pub label_selector: String,
}

/// Its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Yes.
    pub allowed: bool,
    /// Why, if anything is said.
    pub reason: String,
}

/// The steps from `authorizer` to an answer. Each carries the question as far as it has been put.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "upstream's types: kubernetes.authorization.Authorizer and its siblings")]
pub enum Step<'v> {
    Authorizer(&'v dyn Authority, Arc<Question>),
    Path(&'v dyn Authority, Arc<Question>),
    Group(&'v dyn Authority, Arc<Question>),
    Resource(&'v dyn Authority, Arc<Question>),
    Decision(Arc<Answer>),
}

impl<'v> Step<'v> {
    /// `authorizer`; `request` is the question that `authorizer.requestResource` begins with.
    pub fn authorizer(authority: &'v dyn Authority, request: Question) -> Self {
        Self::Authorizer(authority, Arc::new(request))
    }

    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::Authorizer(..) => "kubernetes.authorization.Authorizer",
            Self::Path(..) => "kubernetes.authorization.PathCheck",
            Self::Group(..) => "kubernetes.authorization.GroupCheck",
            Self::Resource(..) => "kubernetes.authorization.ResourceCheck",
            Self::Decision(_) => "kubernetes.authorization.Decision",
        }
    }

    /// How long the question has become, which each step copies.
    fn length(&self) -> usize {
        match self {
            Self::Authorizer(_, asked)
            | Self::Path(_, asked)
            | Self::Group(_, asked)
            | Self::Resource(_, asked) => {
                let texts =
                    [&asked.verb, &asked.group, &asked.resource, &asked.subresource, &asked.namespace];
                let more = [&asked.name, &asked.field_selector, &asked.label_selector];
                let path = asked.path.as_ref().map_or(0, String::len);
                path + texts.into_iter().chain(more).map(String::len).sum::<usize>()
            }
            Self::Decision(answer) => answer.reason.len(),
        }
    }

    /// `authorizer.requestResource`.
    pub(super) fn field(&self, name: &str) -> Option<Val<'v>> {
        match self {
            Self::Authorizer(authority, request) if name == "requestResource" => {
                Some(Val::Authz(Self::Resource(*authority, request.clone())))
            }
            _ => None,
        }
    }

    /// A method; `None`: there is none of the name.
    pub(super) fn method(
        &self,
        name: &str,
        arguments: &[Val<'v>],
        budget: &mut Budget,
    ) -> Result<Option<Val<'v>>> {
        let texts: Option<Vec<&str>> = arguments
            .iter()
            .map(|argument| match argument {
                Val::Text(text) => Some(&**text),
                _ => None,
            })
            .collect();
        let Some(texts) = texts else { return Ok(None) };
        budget.spend_on(self.length() + texts.iter().map(|text| text.len()).sum::<usize>())?;
        let step = match (self, name, texts.as_slice()) {
            (Self::Authorizer(authority, asked), "path", [path]) => {
                not_empty("path", path)?;
                let service_account = asked.service_account.clone();
                let question =
                    Question { service_account, path: Some((*path).to_owned()), ..Question::default() };
                Self::Path(*authority, Arc::new(question))
            }
            (Self::Authorizer(authority, asked), "group", [group]) => {
                let service_account = asked.service_account.clone();
                let question =
                    Question { service_account, group: (*group).to_owned(), ..Question::default() };
                Self::Group(*authority, Arc::new(question))
            }
            (Self::Authorizer(authority, asked), "serviceAccount", [namespace, account]) => {
                service_account(namespace, account)?;
                let of = Some(((*namespace).to_owned(), (*account).to_owned()));
                let question = Question { service_account: of, ..(**asked).clone() };
                Self::Authorizer(*authority, Arc::new(question))
            }
            (Self::Group(authority, asked), "resource", [resource]) => {
                not_empty("resource", resource)?;
                let question = Question { resource: (*resource).to_owned(), ..(**asked).clone() };
                Self::Resource(*authority, Arc::new(question))
            }
            (Self::Resource(authority, asked), name, [text]) if name != "check" => {
                let mut question = (**asked).clone();
                let part = match name {
                    "subresource" => &mut question.subresource,
                    "namespace" => &mut question.namespace,
                    "name" => &mut question.name,
                    "fieldSelector" => &mut question.field_selector,
                    "labelSelector" => &mut question.label_selector,
                    _ => return Ok(None),
                };
                *part = (*text).to_owned();
                Self::Resource(*authority, Arc::new(question))
            }
            (Self::Path(authority, asked) | Self::Resource(authority, asked), "check", [verb]) => {
                budget.charge(CHECK_COST)?;
                let question = Question { verb: (*verb).to_owned(), ..(**asked).clone() };
                match authority.answer(&question) {
                    Some(answer) => Self::Decision(Arc::new(answer)),
                    None => return Err(CelError::Unanswered(Box::new(question))),
                }
            }
            (Self::Decision(answer), name, []) => {
                return Ok(Some(match name {
                    "allowed" => Val::Bool(answer.allowed),
                    "reason" => Val::text(&answer.reason),
                    // Who decides does not fail: what goes wrong on the way is no.
                    "errored" => Val::Bool(false),
                    "error" => Val::text(""),
                    _ => return Ok(None),
                }));
            }
            _ => return Ok(None),
        };
        Ok(Some(Val::Authz(step)))
    }
}

fn not_empty(what: &str, text: &str) -> Result<()> {
    if text.trim().is_empty() { Err(CelError::fault(format!("{what} must not be empty"))) } else { Ok(()) }
}

fn service_account(namespace: &str, name: &str) -> Result<()> {
    let label = |text: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !text.is_empty()
            && text.len() <= 63
            && text.bytes().all(inner)
            && !text.starts_with('-')
            && !text.ends_with('-')
    };
    if name.len() > 253 || !name.split('.').all(label) {
        return Err(CelError::fault("Invalid service account name"));
    }
    if label(namespace) { Ok(()) } else { Err(CelError::fault("Invalid service account namespace")) }
}
