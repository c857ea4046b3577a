//! The user that a token's claims make: which claims are demanded, which of them become name, groups, uid and extras, and
//! what the user has to be. Each may be a claim's name or a CEL expression over `claims` (of the user: over `user`).
//! Source: `apiserver.config.k8s.io` `JWTAuthenticator`, KEP-3331; `plugin/pkg/authenticator/token/oidc`.

use api::cel::{Budget, CALL_COST_MAX, Environment, Program, Type, Variables, declared};
use api::connect::User;
use serde_json::{Value, json};

use super::config::{Extra, Jwt, Mapped, Rule};
use super::names;
use crate::tree;

/// The variable of a token's claims.
const CLAIMS: &str = "claims";
/// The variable of the user that they made.
const USER: &str = "user";

/// What is made of one provider's claims.
pub(super) struct Claims {
    demanded: Vec<Demand>,
    username: Source,
    groups: Source,
    uid: Source,
    extra: Vec<(String, Program)>,
    user: Vec<Check>,
}

/// Something that has to hold of the claims.
enum Demand {
    Value { claim: String, value: String },
    Check(Check),
}

/// An expression that has to be true, and what is said where it is not.
struct Check {
    program: Program,
    message: String,
}

/// Where a part of the user comes from.
enum Source {
    Nothing,
    Claim { name: String, prefix: String },
    Expression(Program),
}

/// A field of the file that is wrong, and why.
pub(super) type Wrong = (String, String);

impl Claims {
    /// Compiles what the file says of one provider, whose fields fit together already.
    pub(super) fn new(config: &Jwt) -> Result<Self, Wrong> {
        let mappings = &config.claim_mappings;
        let rules = config.claim_validation_rules.iter().enumerate();
        let users = config.user_validation_rules.iter().enumerate();
        Ok(Self {
            demanded: rules.map(|(at, rule)| demand(at, rule)).collect::<Result<_, _>>()?,
            username: source("username", &mappings.username, &[Type::Text])?,
            groups: source("groups", &mappings.groups, &[Type::Text, texts()])?,
            uid: source("uid", &mappings.uid, &[Type::Text])?,
            extra: mappings.extra.iter().enumerate().map(extra).collect::<Result<_, _>>()?,
            user: users
                .map(|(at, rule)| {
                    let field = format!("userValidationRules[{at}].expression");
                    check(&field, &rule.expression, &rule.message, USER)
                })
                .collect::<Result<_, _>>()?,
        })
    }

    /// The user that claims make; the failure says what is not as it has to be, without the claims' values.
    pub(super) fn user(&self, claims: &Value) -> Result<User, String> {
        for demand in &self.demanded {
            demand.meets(claims)?;
        }
        let name = self.username.one(claims)?;
        if name.is_empty() {
            return Err("oidc: the claims name no user".to_owned());
        }
        if self.username.is_claim("email") && tree::at(claims, &["email_verified"]).as_bool() == Some(false) {
            return Err("oidc: email not verified".to_owned());
        }
        let mut extra = Vec::new();
        for (key, program) in &self.extra {
            let values = many(evaluated(program, CLAIMS, claims)?)?;
            if !values.is_empty() {
                extra.push((key.clone(), values));
            }
        }
        let jti = tree::text(claims, &["jti"]);
        if !jti.is_empty() {
            extra.push((names::CREDENTIAL_ID.to_owned(), vec![format!("JTI={jti}")]));
        }
        let user = User { name, uid: self.uid.one(claims)?, groups: self.groups.many(claims)?, extra };
        let shown = shown(&user);
        self.user.iter().try_for_each(|check| check.meets(USER, &shown))?;
        Ok(user)
    }
}

/// A user as expressions see one: `authentication.k8s.io/v1` `UserInfo`.
fn shown(user: &User) -> Value {
    let extra: serde_json::Map<_, _> =
        user.extra.iter().map(|(key, values)| (key.clone(), json!(values))).collect();
    json!({ "username": user.name, "uid": user.uid, "groups": user.groups, "extra": extra })
}

fn texts() -> Type {
    Type::list(Type::Text)
}

/// Compiles an expression over one variable, whose value is of one of the types.
fn compile(field: &str, source: &str, variable: &str, types: &[Type]) -> Result<Program, Wrong> {
    let wrong = |cause: String| (field.to_owned(), cause);
    let known = if variable == USER { declared::user_info() } else { Type::map(Type::Dyn) };
    let ty = Environment::default().with(variable, known).check(source).map_err(wrong)?;
    let fits = matches!(ty, Type::Dyn) || types.iter().any(|wanted| may_be(&ty, wanted));
    if !fits {
        let names: Vec<_> = types.iter().map(ToString::to_string).collect();
        return Err(wrong(format!("must evaluate to {}", names.join(" or "))));
    }
    Program::compile(source, &[variable]).map_err(wrong)
}

/// Whether a value of a type may turn out to be of another: items of lists may be known at run time only.
fn may_be(ty: &Type, wanted: &Type) -> bool {
    match (ty, wanted) {
        (Type::List(one), Type::List(_)) if matches!(**one, Type::Dyn) => true,
        _ => ty.is(wanted),
    }
}

fn check(field: &str, expression: &str, message: &str, variable: &str) -> Result<Check, Wrong> {
    let program = compile(field, expression, variable, &[Type::Bool])?;
    let message = match message {
        "" => format!("expression {expression:?} does not hold"),
        message => message.to_owned(),
    };
    Ok(Check { program, message })
}

fn demand(at: usize, rule: &Rule) -> Result<Demand, Wrong> {
    if rule.expression.is_empty() {
        return Ok(Demand::Value { claim: rule.claim.clone(), value: rule.required_value.clone() });
    }
    let field = format!("claimValidationRules[{at}].expression");
    check(&field, &rule.expression, &rule.message, CLAIMS).map(Demand::Check)
}

fn extra((at, extra): (usize, &Extra)) -> Result<(String, Program), Wrong> {
    let field = format!("claimMappings.extra[{at}].valueExpression");
    let program = compile(&field, &extra.value_expression, CLAIMS, &[Type::Text, texts()])?;
    Ok((extra.key.clone(), program))
}

fn source(field: &str, mapped: &Mapped, types: &[Type]) -> Result<Source, Wrong> {
    let Mapped { claim, prefix, expression } = mapped;
    Ok(match (claim.as_str(), expression.as_str()) {
        ("", "") => Source::Nothing,
        ("", expression) => {
            let field = format!("claimMappings.{field}.expression");
            Source::Expression(compile(&field, expression, CLAIMS, types)?)
        }
        (name, _) => Source::Claim { name: name.to_owned(), prefix: prefix.clone().unwrap_or_default() },
    })
}

impl Demand {
    fn meets(&self, claims: &Value) -> Result<(), String> {
        match self {
            Self::Value { claim, value } if tree::text(claims, &[claim]) != value => {
                Err(format!("oidc: claim {claim:?} does not have the required value"))
            }
            Self::Value { .. } => Ok(()),
            Self::Check(check) => check.meets(CLAIMS, claims),
        }
    }
}

impl Check {
    fn meets(&self, variable: &str, value: &Value) -> Result<(), String> {
        match evaluated(&self.program, variable, value)? {
            Value::Bool(true) => Ok(()),
            _ => Err(format!("oidc: {}", self.message)),
        }
    }
}

impl Source {
    fn is_claim(&self, wanted: &str) -> bool {
        matches!(self, Self::Claim { name, .. } if name == wanted)
    }

    /// A text; empty where the claims have none.
    fn one(&self, claims: &Value) -> Result<String, String> {
        match self {
            Self::Nothing => Ok(String::new()),
            Self::Claim { name, prefix } => match tree::text(claims, &[name]) {
                "" => Ok(String::new()),
                text => Ok(format!("{prefix}{text}")),
            },
            Self::Expression(program) => match evaluated(program, CLAIMS, claims)? {
                Value::String(text) => Ok(text),
                _ => Err(not(program, "a string")),
            },
        }
    }

    /// Texts: one or a list of them.
    fn many(&self, claims: &Value) -> Result<Vec<String>, String> {
        match self {
            Self::Nothing => Ok(Vec::new()),
            Self::Claim { name, prefix } => {
                let prefixed = |text: &String| format!("{prefix}{text}");
                Ok(match tree::at(claims, &[name]) {
                    Value::String(group) => vec![prefixed(group)],
                    groups => super::texts(groups).iter().map(prefixed).collect(),
                })
            }
            Self::Expression(program) => many(evaluated(program, CLAIMS, claims)?),
        }
    }
}

/// A text, or a list of them; null and empty texts are none.
fn many(value: Value) -> Result<Vec<String>, String> {
    let text = |value: Value| match value {
        Value::String(text) => Ok(text),
        _ => Err("oidc: an expression gave something else than strings".to_owned()),
    };
    let texts: Vec<String> = match value {
        Value::Null => Vec::new(),
        Value::Array(items) => items.into_iter().map(text).collect::<Result<_, _>>()?,
        value => vec![text(value)?],
    };
    Ok(texts.into_iter().filter(|text| !text.is_empty()).collect())
}

fn not(program: &Program, wanted: &str) -> String {
    format!("oidc: expression {:?} gave something else than {wanted}", program.source())
}

/// What an expression says of one variable.
fn evaluated(program: &Program, variable: &str, value: &Value) -> Result<Value, String> {
    let variables = Variables::default().json(variable, value);
    let mut budget = Budget::new(CALL_COST_MAX);
    let found = program.run(&variables, &mut budget).and_then(|value| value.to_json(&mut budget));
    found.map_err(|cause| format!("oidc: expression {:?}: {cause}", program.source()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(more: Value) -> Jwt {
        let mut config = json!({
            "issuer": { "url": "https://login.example.com", "audiences": ["skiff"] },
            "claimMappings": {
                "username": { "claim": "sub", "prefix": "oidc:" }, "groups": { "claim": "groups", "prefix": "" },
            },
        });
        for (key, value) in more.as_object().unwrap() {
            config[key] = value.clone();
        }
        serde_json::from_value(config).unwrap()
    }

    fn user(config_more: Value, claims: Value) -> Result<User, String> {
        Claims::new(&config(config_more)).unwrap_or_else(|wrong| panic!("{wrong:?}")).user(&claims)
    }

    #[test]
    fn claims_become_a_user() {
        let jane = user(json!({}), json!({ "sub": "jane", "groups": ["a", "b"], "jti": "1" })).unwrap();
        assert_eq!((jane.name.as_str(), jane.groups), ("oidc:jane", vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(jane.extra[0].1, ["JTI=1"]);
        let one = user(json!({}), json!({ "sub": "jane", "groups": "a" })).unwrap();
        assert_eq!(one.groups, ["a"]);
        user(json!({}), json!({ "groups": "a" })).unwrap_err();
        let rules = json!({ "claimValidationRules": [{ "claim": "hd", "requiredValue": "example.com" }] });
        user(rules.clone(), json!({ "sub": "jane" })).unwrap_err();
        user(rules, json!({ "sub": "jane", "hd": "example.com" })).unwrap();
        let mail = json!({ "claimMappings": { "username": { "claim": "email", "prefix": "" } } });
        let claims = |verified: bool| json!({ "email": "j@x", "email_verified": verified });
        assert_eq!(user(mail.clone(), claims(true)).unwrap().name, "j@x");
        assert_eq!(user(mail, claims(false)).unwrap_err(), "oidc: email not verified");
    }

    #[test]
    fn expressions_make_a_user_and_check_it() {
        let mapped = json!({
            "claimMappings": {
                "username": { "expression": "'dex:' + claims.sub" },
                "groups": { "expression": "claims.roles.split(',')" },
                "uid": { "expression": "string(claims.id)" },
                "extra": [
                    { "key": "example.com/team", "valueExpression": "claims.team" },
                    { "key": "example.com/none", "valueExpression": "claims.?none.orValue('')" },
                ],
            },
            "claimValidationRules": [
                { "expression": "claims.exp - claims.iat <= 3600", "message": "lives too long" },
            ],
            "userValidationRules": [
                { "expression": "!user.username.startsWith('dex:system:')", "message": "reserved" },
                { "expression": "user.groups.all(group, group != 'root') && 'example.com/team' in user.extra" },
            ],
        });
        let claims = |more: Value| {
            let mut claims =
                json!({ "sub": "jane", "roles": "a,b", "id": 7, "team": ["x", "y"], "exp": 3600, "iat": 0 });
            claims.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
            user(mapped.clone(), claims)
        };
        let jane = claims(json!({})).unwrap();
        assert_eq!((jane.name.as_str(), jane.uid.as_str()), ("dex:jane", "7"));
        assert_eq!(jane.groups, ["a", "b"]);
        assert_eq!(jane.extra, [("example.com/team".to_owned(), vec!["x".to_owned(), "y".to_owned()])]);
        assert_eq!(claims(json!({ "exp": 9999 })).unwrap_err(), "oidc: lives too long");
        assert_eq!(claims(json!({ "sub": "system:admin" })).unwrap_err(), "oidc: reserved");
        assert!(claims(json!({ "roles": "root" })).unwrap_err().ends_with("does not hold"));
        assert!(claims(json!({ "sub": null })).unwrap_err().contains("oidc: expression"));
        assert!(claims(json!({ "team": 7 })).unwrap_err().contains("something else than strings"));
    }

    #[test]
    fn expressions_that_cannot_be_are_told_when_the_file_is_read() {
        let wrong = |more: Value| Claims::new(&config(more)).err().unwrap();
        let rule =
            |expression: &str| wrong(json!({ "claimValidationRules": [{ "expression": expression }] }));
        assert_eq!(
            rule("'yes'"),
            ("claimValidationRules[0].expression".to_owned(), "must evaluate to bool".to_owned())
        );
        assert!(rule("user.username == 'a'").1.contains("undeclared reference to 'user'"));
        let of_user = wrong(json!({ "userValidationRules": [{ "expression": "user.name == 'a'" }] }));
        assert!(of_user.1.contains("undefined field 'name'"), "{of_user:?}");
        let groups = json!({ "claimMappings": {
            "username": { "claim": "sub", "prefix": "" }, "groups": { "expression": "1" },
        } });
        assert_eq!(wrong(groups).1, "must evaluate to string or list(string)");
    }
}
