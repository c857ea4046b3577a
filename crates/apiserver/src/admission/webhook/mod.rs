//! MutatingAdmissionWebhook and ValidatingAdmissionWebhook: others are asked over HTTPS about what is written. Those that
//! may change objects are asked one after the other, by the names of their configurations, and again where others changed
//! an object after them; those that may only refuse are asked all at once.
//! Source: `apiserver/pkg/admission/plugin/webhook`.

mod configuration;
mod review;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use api::{FieldValidation, Status};
use async_trait::async_trait;
use serde_json::{Value, json};

use super::conditions::{Answers, Met, Scene, answered};
use super::lifecycle::forbidden;
use super::metrics::{Asked, Ended};
use super::rules::{Matched, is_exempt};
use super::{Link, Operation, Review, Unanswered, Users, World};
use crate::words;
use configuration::{Hook, Hooks};
pub(super) use review::request;
use review::{Answer, internal};

const MUTATING: &str = "MutatingAdmissionWebhook";
const VALIDATING: &str = "ValidatingAdmissionWebhook";
/// Audit annotations. Source: `webhook/mutating/dispatcher.go`, `webhook/validating/dispatcher.go`.
const MUTATION: &str = "mutation.webhook.admission.k8s.io/";
const MUTATION_FAILED_OPEN: &str = "failed-open.mutation.webhook.admission.k8s.io/";
const VALIDATION_FAILED_OPEN: &str = "failed-open.validating.webhook.admission.k8s.io/";

/// MutatingAdmissionWebhook.
pub struct MutatingWebhooks(Hooks);

/// ValidatingAdmissionWebhook.
pub struct ValidatingWebhooks(Hooks);

impl MutatingWebhooks {
    /// Those that are asked as these users.
    pub(super) fn asked_as(users: Option<Arc<Users>>) -> Self {
        Self(Hooks::of("mutatingwebhookconfigurations", users))
    }
}

impl ValidatingWebhooks {
    /// Those that are asked as these users.
    pub(super) fn asked_as(users: Option<Arc<Users>>) -> Self {
        Self(Hooks::of("validatingwebhookconfigurations", users))
    }
}

impl Default for MutatingWebhooks {
    fn default() -> Self {
        Self::asked_as(None)
    }
}

impl Default for ValidatingWebhooks {
    fn default() -> Self {
        Self::asked_as(None)
    }
}

/// The webhooks that a request may concern: nearly always none at all.
fn concerned(hooks: &Hooks, review: &Review<'_>, world: &dyn World) -> Option<Arc<Vec<Hook>>> {
    let hooks = hooks.now(world);
    (!hooks.is_empty() && !is_exempt(review)).then_some(hooks)
}

#[async_trait]
impl Link for MutatingWebhooks {
    fn name(&self) -> &'static str {
        MUTATING
    }

    async fn mutate(&self, review: &Review<'_>, object: &mut Value, world: &dyn World) -> Result<(), Status> {
        let Some(hooks) = concerned(&self.0, review, world) else { return Ok(()) };
        review.rounds.enter(MUTATING, object);
        let changed = change(&hooks, review, object, world).await;
        review.rounds.leave(MUTATING, object);
        changed
    }

    /// Of a deletion there is nothing to change, but something to refuse.
    async fn validate(
        &self,
        review: &Review<'_>,
        _: Option<&Value>,
        world: &dyn World,
    ) -> Result<(), Status> {
        if review.operation != Operation::Delete {
            return Ok(());
        }
        let Some(hooks) = concerned(&self.0, review, world) else { return Ok(()) };
        for (index, hook) in hooks.iter().enumerate() {
            let Some(call) = Call::meant(hook, review, None, world).await? else { continue };
            let answer = call.ask(true, world).await;
            let answer = call.settled(answer, &format!("{MUTATION_FAILED_OPEN}round_0_index_{index}"))?;
            if !answer.patch.is_empty() && answer.patch != b"[]" {
                return Err(internal(format!(
                    "admission webhook {:?} attempted to modify the object, which is not supported for this operation",
                    hook.name
                )));
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Link for ValidatingWebhooks {
    fn name(&self) -> &'static str {
        VALIDATING
    }

    async fn validate(
        &self,
        review: &Review<'_>,
        object: Option<&Value>,
        world: &dyn World,
    ) -> Result<(), Status> {
        let Some(hooks) = concerned(&self.0, review, world) else { return Ok(()) };
        let mut calls = Vec::new();
        for hook in hooks.iter() {
            calls.extend(Call::meant(hook, review, object, world).await?);
        }
        let since = Instant::now();
        let answers = futures::future::join_all(calls.iter().map(|call| call.ask(false, world))).await;
        review.notes.waits(since.elapsed());
        for (index, (call, answer)) in calls.iter().zip(answers).enumerate() {
            call.settled(answer, &format!("{VALIDATION_FAILED_OPEN}round_0_index_{index}"))?;
        }
        Ok(())
    }
}

/// Lets the webhooks change an object, in their order.
async fn change(
    hooks: &[Hook],
    review: &Review<'_>,
    object: &mut Value,
    world: &dyn World,
) -> Result<(), Status> {
    for (index, hook) in hooks.iter().enumerate() {
        let Some(call) = Call::meant(hook, review, Some(object), world).await? else { continue };
        if !review.rounds.runs(MUTATING, &hook.id) {
            continue;
        }
        let place = format!("round_{}_index_{index}", u8::from(review.rounds.is_second()));
        let answer = call.ask(true, world).await;
        let changed = match call.settled(answer, &format!("{MUTATION_FAILED_OPEN}{place}")) {
            Ok(answer) => call.patched(&answer)?,
            Err(refused) => return Err(refused),
        };
        let about = json!({ "configuration": hook.configuration, "webhook": hook.name, "mutated": changed.is_some() });
        review.notes.annotate(format!("{MUTATION}{place}"), about.to_string());
        let whole = call.whole;
        let matched = call.matched.clone();
        let is_changed = changed.is_some();
        if let Some(new) = changed {
            review.rounds.changes(object);
            *object = if whole { world.convert(new, &matched.kind, review.kind).await? } else { new };
        }
        review.rounds.ran(MUTATING, &hook.id, is_changed, hook.again);
    }
    Ok(())
}

/// A webhook that is to be asked, and about what.
struct Call<'a> {
    hook: &'a Hook,
    review: &'a Review<'a>,
    matched: Matched,
    /// Whether the objects are of the resource's own kind, and not of its subresource's.
    whole: bool,
    request: Value,
    object: Cow<'a, Value>,
    old: Cow<'a, Value>,
}

/// Why a webhook has no say.
enum Failure {
    /// It could not be asked, or gave no answer: its failure policy decides.
    Call(Unanswered),
    /// The request is refused, whatever the policy.
    Refused(Status),
    /// It may not be asked about what is not to happen.
    DryRun(Status),
}

impl<'a> Call<'a> {
    /// Whether a webhook is to be asked.
    async fn meant(
        hook: &'a Hook,
        review: &'a Review<'_>,
        object: Option<&'a Value>,
        world: &dyn World,
    ) -> Result<Option<Self>, Status> {
        let selection = hook.selection.as_ref().map_err(|error| internal(error.clone()))?;
        let Some(matched) = selection.matches(review, object, world).await? else { return Ok(None) };
        let whole = !review.subresource_is_own_kind();
        let shown = async |object: Option<&'a Value>| match object {
            None => Ok(Cow::Owned(Value::Null)),
            Some(object) if !whole || matched.kind.api_version() == review.kind.api_version() => {
                Ok(Cow::Borrowed(object))
            }
            Some(object) => world.convert(object.clone(), review.kind, &matched.kind).await.map(Cow::Owned),
        };
        if !hook.conditions.is_empty() {
            let scene = Scene::new(review, object, &matched, world).await?;
            let evaluate = |answers: &Answers| hook.conditions.met(&scene.variables(None, answers));
            match answered(review.user, world, &mut Answers::default(), evaluate).await {
                Met::Yes => {}
                Met::No(_) => return Ok(None),
                Met::Failed(_) if hook.ignores_failure => return Ok(None),
                Met::Failed(error) => return Err(forbidden(review, &error)),
            }
        }
        let (object, old) = (shown(object).await?, shown(review.old).await?);
        let request = review::request(review, &matched);
        Ok(Some(Self { hook, review, matched, whole, request, object, old }))
    }

    /// Asks, and counts it.
    async fn ask(&self, mutating: bool, world: &dyn World) -> Result<Answer, Failure> {
        let since = Instant::now();
        let answer = self.answered(mutating, world).await;
        if mutating {
            // Others are asked at the same time.
            self.review.notes.waits(since.elapsed());
        }
        if let Some(figures) = world.figures() {
            let ended = match &answer {
                Ok(_) => Ended::Passed,
                Err(Failure::Refused(status)) => Ended::Refused(status.code),
                Err(Failure::DryRun(_)) => Ended::Unasked,
                Err(Failure::Call(failed)) if self.hook.ignores_failure => Ended::FailedOpen(failed.code),
                Err(Failure::Call(failed)) => Ended::Failed(failed.code),
            };
            let step = if mutating { "admit" } else { "validating" };
            let operation = self.review.operation.as_str();
            figures.webhook(Asked { name: &self.hook.name, step, operation }, since.elapsed(), ended);
        }
        answer
    }

    async fn answered(&self, mutating: bool, world: &dyn World) -> Result<Answer, Failure> {
        let hook = self.hook;
        if self.review.options.dry_run() {
            match hook.dry_run {
                None => return Err(Failure::Call(Unanswered::new(400, "Webhook SideEffects is nil"))),
                Some(false) => return Err(Failure::DryRun(review::no_dry_run(&hook.name))),
                Some(true) => {}
            }
        }
        let version = hook.version.ok_or_else(|| {
            let why = "webhook does not accept known AdmissionReview versions (v1, v1beta1)";
            Failure::Call(Unanswered::new(400, format!("could not create admission objects: {why}")))
        })?;
        let uid = base::id::uuid();
        let question = review::question(version, &uid, self.request.clone(), [&self.object, &self.old]);
        let client = (&hook.client, hook.users.as_deref());
        let answer = world.ask(client, &question, hook.within).await.map_err(Failure::Call)?;
        let answer = review::answer(&hook.name, &answer, version, &uid, mutating)
            .map_err(|error| Unanswered::new(503, format!("received invalid webhook response: {error}")))
            .map_err(Failure::Call)?;
        for (key, value) in &answer.annotations {
            self.review.notes.annotate(key, value);
        }
        answer.warnings.iter().for_each(|warning| self.review.notes.warn(warning));
        match answer.refused {
            Some(refused) => Err(Failure::Refused(refused)),
            None => match &answer.odd_patch {
                Some(kind) if !answer.patch.is_empty() => {
                    Err(Failure::Call(Unanswered::new(400, format!("unsupported patch type {kind:?}"))))
                }
                _ => Ok(answer),
            },
        }
    }

    /// What counts of an answer: where the webhook could not be asked, its policy does. `failed_open` is the audit
    /// annotation of a request that went on without.
    fn settled(&self, answer: Result<Answer, Failure>, failed_open: &str) -> Result<Answer, Status> {
        let name = &self.hook.name;
        match answer {
            Ok(answer) => Ok(answer),
            Err(Failure::Refused(status) | Failure::DryRun(status)) => Err(status),
            Err(Failure::Call(Unanswered { why, .. })) if self.hook.ignores_failure => {
                tracing::warn!(webhook = name, why, "a webhook could not be asked; the request goes on");
                self.review.notes.annotate(failed_open, name);
                Ok(Answer::default())
            }
            Err(Failure::Call(failed)) => Err(review::failure(name, &failed.why)),
        }
    }

    /// The object as a patch changes it, in the version that the webhook saw; `None` if nothing changes.
    fn patched(&self, answer: &Answer) -> Result<Option<Value>, Status> {
        if answer.patch.is_empty() {
            return Ok(None);
        }
        let mut new = self.object.clone().into_owned();
        api::patch::json_patch(&mut new, &answer.patch).map_err(|refusal| internal(refusal.to_string()))?;
        if self.review.operation != Operation::Connect {
            new = self.read(&new)?;
        }
        Ok((new != *self.object).then_some(new))
    }

    /// What a patch made, read as what clients send is: unknown fields go, defaults come.
    fn read(&self, new: &Value) -> Result<Value, Status> {
        let (kind, body) = (&self.matched.kind, new.to_string());
        let failed = |status: Status| internal(status.message);
        if !self.whole {
            let (mode, part) = (api::decode::Mode::Object, self.review.subresource);
            let read = words::decode_subresource(kind, part, body.as_bytes(), FieldValidation::Ignore, mode);
            return read.map(|(new, _)| new).map_err(failed);
        }
        let (mut new, _) = words::decode(kind, body.as_bytes(), FieldValidation::Ignore).map_err(failed)?;
        words::default(kind, &mut new);
        Ok(new)
    }
}
