//! What expressions of admission speak of (`object`, `oldObject`, `request`, `params`, `namespaceObject`, `authorizer`),
//! and the match conditions that webhooks and policies share. An evaluation is pure: where it needs to know a right, it
//! ends with the question, and [`answered`] begins it anew with the answer.
//! Source: `admission/plugin/cel`, `admission/plugin/webhook/matchconditions`.

use std::borrow::Cow;
use std::collections::HashMap;

use api::Status;
use api::cel::{Answer, Authority, Budget, CelError, Pace, Program, Question, Step, Val, Variables};
use api::connect::User;
use serde_json::Value;

use super::rules::Matched;
use super::webhook::request;
use super::{Review, World};
use crate::authn::names;
use crate::authz::{Attributes, Decision};
use crate::{lengthy, tree};

/// What all conditions of one webhook or policy may cost. Source: `RuntimeCELCostBudgetMatchConditions`.
const CONDITIONS_COST_MAX: u64 = 2_500_000;
/// The variables that match conditions of webhooks know.
pub const WEBHOOK_VARIABLES: [&str; 4] = ["object", "oldObject", "request", "authorizer"];
/// What is said where the budget of all expressions is used up.
pub const OUT_OF_BUDGET: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

/// What is known of rights so far, for one request.
#[derive(Debug, Default)]
pub struct Answers {
    known: HashMap<Question, Answer>,
    /// How long an evaluation may take, where others wait for it to end.
    pace: Option<Pace>,
}

impl Authority for Answers {
    fn answer(&self, question: &Question) -> Option<Answer> {
        self.known.get(question).cloned()
    }
}

/// Why an evaluation has to begin anew.
#[derive(Debug)]
pub enum Pause {
    /// It needs to know a right.
    Question(Box<Question>),
    /// It takes long.
    Long,
}

/// An evaluation, begun anew with every answer that it turns out to need. Each expression can pay for two questions at
/// most, so this ends. One that takes long begins anew where nobody waits for the thread.
pub async fn answered<T>(
    user: &User,
    world: &dyn World,
    answers: &mut Answers,
    evaluate: impl Fn(&Answers) -> Result<T, Pause> + Send + Sync,
) -> T {
    let mut long = false;
    loop {
        answers.pace = (!long).then(Pace::default);
        // The result does not outlive the step, so that nothing of it is held while others decide.
        let result = if long { lengthy::run(|| evaluate(answers)) } else { evaluate(answers) };
        let question = match result {
            Ok(result) => return result,
            Err(Pause::Question(question)) => *question,
            Err(Pause::Long) => {
                long = true;
                continue;
            }
        };
        let decision = world.decide(&attributes(user, &question)).await;
        let (allowed, reason) = match decision {
            Decision::Allow { reason } => (true, reason),
            Decision::Deny { reason } | Decision::NoOpinion { reason } => (false, reason),
        };
        answers.known.insert(question, Answer { allowed, reason });
    }
}

fn attributes(user: &User, question: &Question) -> Attributes {
    let user = match &question.service_account {
        None => user.clone(),
        Some((namespace, name)) => User {
            name: format!("{}{namespace}:{name}", names::SERVICE_ACCOUNT_PREFIX),
            groups: vec![
                names::SERVICE_ACCOUNTS.to_owned(),
                format!("{}:{namespace}", names::SERVICE_ACCOUNTS),
            ],
            ..User::default()
        },
    };
    Attributes {
        user,
        verb: question.verb.clone(),
        namespace: question.namespace.clone(),
        group: question.group.clone(),
        version: "*".to_owned(),
        resource: question.resource.clone(),
        subresource: question.subresource.clone(),
        name: question.name.clone(),
        is_resource: question.path.is_none(),
        path: question.path.clone().unwrap_or_default(),
        field_selector: question.field_selector.clone(),
        label_selector: question.label_selector.clone(),
    }
}

/// What the expressions of one webhook or policy see of a request.
#[derive(Debug)]
pub struct Scene<'a> {
    /// The object that is to be written, or null, in the version matched.
    pub object: Cow<'a, Value>,
    /// The object before, or null.
    pub old: Cow<'a, Value>,
    /// The AdmissionRequest.
    pub request: Value,
    /// The namespace of a namespaced object, or null.
    pub namespace: Value,
    /// What `authorizer.requestResource` begins with.
    question: Question,
}

impl<'a> Scene<'a> {
    /// What is seen of a request that is matched as a version of its kind; without `namespaceObject`.
    pub async fn new(
        review: &'a Review<'_>,
        object: Option<&'a Value>,
        matched: &Matched,
        world: &dyn World,
    ) -> Result<Scene<'a>, Status> {
        let request = request(review, matched);
        let namespace = tree::text(&request, &["namespace"]).to_owned();
        Ok(Self {
            object: shown(review, object, matched, world).await?,
            old: shown(review, review.old, matched, world).await?,
            request,
            namespace: Value::Null,
            question: Question {
                group: review.asked.group.to_string(),
                resource: review.asked.plural.to_string(),
                subresource: review.subresource.to_owned(),
                namespace,
                name: review.name.to_owned(),
                ..Question::default()
            },
        })
    }

    /// The same with `namespaceObject`.
    pub async fn with_namespace(
        mut self,
        review: &Review<'_>,
        world: &dyn World,
    ) -> Result<Scene<'a>, Status> {
        let of_namespaces = review.resource.group.is_empty() && review.resource.resource == "namespaces";
        if review.namespace.is_empty() || of_namespaces {
            return Ok(self);
        }
        let found = world.find("", "namespaces", "", review.namespace).await?;
        let found = found.ok_or_else(|| Status::not_found("", "namespaces", review.namespace))?;
        let mut namespace: Value = found.decode().map_err(|error| Status::internal(error.to_string()))?;
        if let Some(fields) = namespace.as_object_mut() {
            fields.retain(|name, _| matches!(name.as_str(), "metadata" | "spec" | "status"));
        }
        let metadata = tree::metadata(&mut namespace);
        metadata.remove("managedFields");
        metadata.remove("ownerReferences");
        self.namespace = namespace;
        Ok(self)
    }

    /// The variables, with the parameters of one binding (null where there are none).
    pub fn variables<'v>(&'v self, params: Option<&'v Value>, answers: &'v Answers) -> Variables<'v> {
        let variables = Variables::default()
            .paced(answers.pace.as_ref())
            .json("object", &self.object)
            .json("oldObject", &self.old)
            .json("request", &self.request)
            .json("namespaceObject", &self.namespace)
            .with("authorizer", Val::Authz(Step::authorizer(answers, self.question.clone())));
        match params {
            Some(params) => variables.json("params", params),
            None => variables.with("params", Val::Null),
        }
    }
}

/// An object as the version matched shows it; null where there is none.
async fn shown<'a>(
    review: &Review<'_>,
    object: Option<&'a Value>,
    matched: &Matched,
    world: &dyn World,
) -> Result<Cow<'a, Value>, Status> {
    const NULL: &Value = &Value::Null;
    let Some(object) = object else { return Ok(Cow::Borrowed(NULL)) };
    if review.subresource_is_own_kind() || is_shown_as(review, matched) {
        return Ok(Cow::Borrowed(object));
    }
    world.convert(object.clone(), review.kind, &matched.kind).await.map(Cow::Owned)
}

/// Whether a request's objects are of the version matched already.
pub(super) fn is_shown_as(review: &Review<'_>, matched: &Matched) -> bool {
    review.kind.group == matched.kind.group && review.kind.version == matched.kind.version
}

/// An expression that was compiled once, or why it could not be.
#[derive(Debug, Clone)]
pub struct Expression {
    source: String,
    program: Result<Program, String>,
}

impl Expression {
    /// Compiles it; a failure is one of every evaluation.
    pub fn compile(source: &str, variables: &[&str]) -> Self {
        let program = Program::compile(source.trim(), variables)
            .map_err(|error| format!("compilation error: compilation failed: {error}"));
        Self { source: source.to_owned(), program }
    }

    /// As it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Its value: the inner failure is what upstream says of it, the outer is of the whole evaluation.
    pub fn run<'v>(
        &'v self,
        variables: &Variables<'v>,
        budget: &mut Budget,
    ) -> Result<Result<Val<'v>, String>, Stop> {
        let program = match &self.program {
            Ok(program) => program,
            Err(error) => return Ok(Err(error.clone())),
        };
        match budget.call(|budget| program.run(variables, budget)) {
            Ok(value) => Ok(Ok(value)),
            Err(CelError::Unanswered(question)) => Err(Stop::Pause(Pause::Question(question))),
            Err(CelError::Long) => Err(Stop::Pause(Pause::Long)),
            Err(CelError::Cost) if budget.left() == 0 => Err(Stop::Budget),
            Err(error) => Ok(Err(format!("expression '{}' resulted in error: {error}", self.source))),
        }
    }
}

/// Why a whole evaluation ends.
#[derive(Debug)]
pub enum Stop {
    /// It has to begin anew.
    Pause(Pause),
    /// Nothing is left to pay with.
    Budget,
}

/// Whether a request meets conditions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Met {
    /// All of them.
    Yes,
    /// Not this one (its name).
    No(String),
    /// It is not known, and why.
    Failed(String),
}

/// `matchConditions`.
#[derive(Debug, Clone, Default)]
pub struct Conditions(Vec<(String, Expression)>);

impl Conditions {
    /// Compiles the conditions under `matchConditions` of a webhook or a policy's spec.
    pub fn compile(from: &Value, variables: &[&str]) -> Self {
        let conditions = tree::items(from, &["matchConditions"]).iter().map(|condition| {
            let expression = Expression::compile(tree::text(condition, &["expression"]), variables);
            (tree::text(condition, &["name"]).to_owned(), expression)
        });
        Self(conditions.collect())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether they hold. One that does not decides, whatever goes wrong with others.
    pub fn met<'v>(&'v self, variables: &Variables<'v>) -> Result<Met, Pause> {
        let mut budget = Budget::new(CONDITIONS_COST_MAX);
        let mut errors = Vec::new();
        for (name, expression) in &self.0 {
            match expression.run(variables, &mut budget) {
                Ok(Ok(Val::Bool(true))) => {}
                Ok(Ok(Val::Bool(false))) => return Ok(Met::No(name.clone())),
                Ok(Ok(other)) => {
                    errors.push(format!("must evaluate to bool but got {}", other.type_name()));
                }
                Ok(Err(error)) => errors.push(error),
                Err(Stop::Pause(pause)) => return Err(pause),
                Err(Stop::Budget) => return Ok(Met::Failed(OUT_OF_BUDGET.to_owned())),
            }
        }
        Ok(match errors.as_slice() {
            [] => Met::Yes,
            [one] => Met::Failed(one.clone()),
            several => Met::Failed(format!("[{}]", several.join(", "))),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn scene(object: &Value) -> Scene<'_> {
        let request = json!({ "operation": "CREATE", "userInfo": { "username": "jane" } });
        let question = Question { resource: "pods".into(), ..Question::default() };
        Scene {
            object: Cow::Borrowed(object),
            old: Cow::Owned(Value::Null),
            request,
            namespace: Value::Null,
            question,
        }
    }

    #[test]
    fn one_that_does_not_hold_decides() {
        let object = json!({ "metadata": { "name": "a" } });
        let scene = scene(&object);
        let met = |expressions: &[&str]| {
            let named = |text: &&str| json!({ "name": *text, "expression": text });
            let all: Vec<Value> = expressions.iter().map(named).collect();
            let conditions = Conditions::compile(&json!({ "matchConditions": all }), &WEBHOOK_VARIABLES);
            let answers = Answers::default();
            conditions.met(&scene.variables(None, &answers)).unwrap()
        };
        let yes = "request.userInfo.username != 'bob' && oldObject == null";
        assert_eq!(met(&[yes, "object.metadata.name == 'a'"]), Met::Yes);
        let no = "object.metadata.name == 'b'";
        assert_eq!(met(&["object.spec.x == 1", no]), Met::No(no.to_owned()));
        let Met::Failed(wrong) = met(&[yes, "object.spec.x == 1"]) else { panic!("met") };
        assert_eq!(wrong, "expression 'object.spec.x == 1' resulted in error: no such key: spec");
        let Met::Failed(wrong) = met(&["params.x"]) else { panic!("met") };
        assert!(
            wrong.starts_with("compilation error: compilation failed: ERROR: <input>:1:1: undeclared"),
            "{wrong}"
        );
    }

    /// Lets `jane` get pods.
    struct Rights;

    #[async_trait::async_trait]
    impl World for Rights {
        async fn find(
            &self,
            _: &str,
            _: &str,
            _: &str,
            _: &str,
        ) -> Result<Option<std::sync::Arc<api::Object>>, Status> {
            Ok(None)
        }

        fn all(&self, _: &str, _: &str, _: &str) -> Vec<std::sync::Arc<api::Object>> {
            Vec::new()
        }

        async fn decide(&self, asked: &Attributes) -> Decision {
            let reason = String::new();
            if (asked.user.name.as_str(), asked.verb.as_str()) == ("jane", "get") && asked.resource == "pods"
            {
                Decision::Allow { reason }
            } else {
                Decision::NoOpinion { reason }
            }
        }
    }

    #[tokio::test]
    async fn rights_are_asked_for_as_they_are_needed() {
        let object = json!({});
        let scene = scene(&object);
        let jane = User { name: "jane".into(), ..User::default() };
        for (expression, wanted) in [
            ("authorizer.requestResource.check('get').allowed()", true),
            (
                "authorizer.requestResource.check('delete').allowed() || authorizer.group('').resource('pods').check('get').allowed()",
                true,
            ),
            (
                "authorizer.serviceAccount('n', 'jane').group('').resource('pods').check('get').allowed()",
                false,
            ),
        ] {
            let all = json!({ "matchConditions": [{ "name": "n", "expression": expression }] });
            let conditions = Conditions::compile(&all, &WEBHOOK_VARIABLES);
            let evaluate = |answers: &Answers| conditions.met(&scene.variables(None, answers));
            let met = answered(&jane, &Rights, &mut Answers::default(), evaluate).await;
            assert_eq!(met == Met::Yes, wanted, "{expression}");
        }
    }
}
