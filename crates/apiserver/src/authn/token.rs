//! Service account tokens: signed with the cluster's key (ES256), bound to an audience, a time and objects.
//! Source: `kubernetes/pkg/serviceaccount/claims.go`, KEP-1205.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rcgen::{KeyPair, PublicKeyData};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::pki::PkiError;

/// Tolerated difference of clocks, in seconds.
const LEEWAY_SECONDS: u64 = 10;

/// An object that a token names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// Name.
    pub name: String,
    /// Uid.
    #[serde(default)]
    pub uid: String,
}

/// The private claims under `kubernetes.io`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// The service account's namespace.
    #[serde(default)]
    pub namespace: String,
    /// The service account.
    #[serde(default)]
    pub serviceaccount: Reference,
    /// The pod that the token ends with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    /// The Secret that the token ends with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
    /// The node of that pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
}

/// All claims of a token. Times are in seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "RFC 7519 section 4.1 names them")]
pub struct Claims {
    pub aud: Vec<String>,
    pub exp: i64,
    pub iat: i64,
    pub iss: String,
    pub jti: String,
    #[serde(rename = "kubernetes.io")]
    pub bound: Bound,
    pub nbf: i64,
    pub sub: String,
}

/// Who issues the tokens that lie in Secrets. Source: `serviceaccount.LegacyIssuer`.
pub const IN_SECRETS: &str = "kubernetes/serviceaccount";

/// All claims of a token that lies in a Secret, and lasts as long as that does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretClaims {
    iss: String,
    /// The service account's namespace, and the Secret's.
    #[serde(rename = "kubernetes.io/serviceaccount/namespace")]
    pub namespace: String,
    /// The Secret.
    #[serde(rename = "kubernetes.io/serviceaccount/secret.name")]
    pub secret: String,
    /// The service account.
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.name")]
    pub account: String,
    /// Its uid.
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.uid")]
    pub uid: String,
    sub: String,
}

impl SecretClaims {
    /// The claims of an account's token in a Secret. Source: `LegacyClaims`.
    pub fn new(namespace: &str, (account, uid): (&str, &str), secret: &str) -> Self {
        Self {
            iss: IN_SECRETS.into(),
            namespace: namespace.into(),
            secret: secret.into(),
            account: account.into(),
            uid: uid.into(),
            sub: super::service_account(namespace, account, uid).name,
        }
    }

    /// Whether everything is said, and once.
    fn is_whole(&self) -> bool {
        let told = [&self.namespace, &self.secret, &self.account, &self.uid];
        told.iter().all(|text| !text.is_empty())
            && *self == Self::new(&self.namespace, (&self.account, &self.uid), &self.secret)
    }
}

/// Signs and checks tokens.
pub struct Tokens {
    issuer: String,
    kid: String,
    encoding: EncodingKey,
    decoding: DecodingKey,
    jwk: Value,
}

impl Tokens {
    /// With a P-256 key (PKCS#8 PEM), under an issuer's URL.
    pub fn new(key_pem: &str, issuer: &str) -> Result<Self, PkiError> {
        let failed = |cause: String| PkiError::Material { what: "load the token key".into(), cause };
        let key = KeyPair::from_pem(key_pem).map_err(|error| failed(error.to_string()))?;
        // An uncompressed P-256 point: a tag and two coordinates of 32 bytes.
        let point = key.public_key_raw();
        let (Some(x), Some(y)) = (point.get(1..33), point.get(33..65)) else {
            return Err(failed("not a P-256 key".into()));
        };
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        let kid = URL_SAFE_NO_PAD.encode(Sha256::digest(key.subject_public_key_info()));
        let decoding = DecodingKey::from_ec_components(&x, &y).map_err(|error| failed(error.to_string()))?;
        let encoding =
            EncodingKey::from_ec_pem(key_pem.as_bytes()).map_err(|error| failed(error.to_string()))?;
        let jwk =
            json!({ "use": "sig", "kty": "EC", "kid": kid, "alg": "ES256", "crv": "P-256", "x": x, "y": y });
        Ok(Self { issuer: issuer.into(), kid, encoding, decoding, jwk })
    }

    /// The issuer: also the audience of the API server itself.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The public keys (RFC 7517).
    pub fn jwks(&self) -> Value {
        json!({ "keys": [self.jwk] })
    }

    /// Signs claims.
    pub fn sign(&self, claims: &Claims) -> Result<String, PkiError> {
        self.encode(claims)
    }

    /// Signs the claims of a token that is to lie in a Secret.
    pub fn sign_for_secret(&self, claims: &SecretClaims) -> Result<String, PkiError> {
        self.encode(claims)
    }

    fn encode(&self, claims: &impl Serialize) -> Result<String, PkiError> {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.kid.clone());
        header.typ = None;
        jsonwebtoken::encode(&header, claims, &self.encoding)
            .map_err(|error| PkiError::Material { what: "sign a token".into(), cause: error.to_string() })
    }

    /// The claims of a token whose signature, issuer, times and audience (one of `audiences`) hold.
    pub fn verify(&self, token: &str, audiences: &[String]) -> Option<Claims> {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_audience(audiences);
        validation.set_issuer(&[&self.issuer]);
        validation.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
        validation.validate_nbf = true;
        validation.leeway = LEEWAY_SECONDS;
        jsonwebtoken::decode::<Claims>(token, &self.decoding, &validation).ok().map(|data| data.claims)
    }

    /// The claims of a token that lay in a Secret when it was signed. Nothing but the Secret says whether it still holds.
    pub fn verify_of_secret(&self, token: &str) -> Option<SecretClaims> {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_issuer(&[IN_SECRETS]);
        validation.set_required_spec_claims(&["iss", "sub"]);
        validation.validate_aud = false;
        validation.validate_exp = false;
        let claims = jsonwebtoken::decode::<SecretClaims>(token, &self.decoding, &validation).ok()?.claims;
        claims.is_whole().then_some(claims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(exp_offset: i64) -> Claims {
        let now = jiff::Timestamp::now().as_second();
        Claims {
            aud: vec!["api".into()],
            exp: now + exp_offset,
            iat: now,
            iss: "https://kubernetes.default.svc".into(),
            jti: "1".into(),
            bound: Bound::default(),
            nbf: now,
            sub: "system:serviceaccount:default:default".into(),
        }
    }

    fn tokens() -> Tokens {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        Tokens::new(&key.serialize_pem(), "https://kubernetes.default.svc").unwrap()
    }

    #[test]
    fn a_token_holds_for_its_audience_time_and_key_only() {
        let tokens = tokens();
        let audience = ["api".to_owned()];
        let token = tokens.sign(&claims(600)).unwrap();
        assert_eq!(tokens.verify(&token, &audience).unwrap(), claims(600));
        assert!(tokens.verify(&token, &["other".to_owned()]).is_none());
        assert!(tokens.verify(&tokens.sign(&claims(-60)).unwrap(), &audience).is_none());
        let stranger = Tokens::new(
            &KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap().serialize_pem(),
            "https://kubernetes.default.svc",
        );
        assert!(stranger.unwrap().verify(&token, &audience).is_none());
    }

    #[test]
    fn tokens_in_secrets_are_of_another_issuer_and_last() {
        let tokens = tokens();
        let claims = SecretClaims::new("ns", ("robot", "u1"), "robot-token");
        let token = tokens.sign_for_secret(&claims).unwrap();
        assert_eq!(tokens.verify_of_secret(&token), Some(claims.clone()));
        assert!(tokens.verify(&token, &["api".to_owned()]).is_none());
        assert!(tokens.verify_of_secret(&tokens.sign(&self::claims(600)).unwrap()).is_none());
        let said = serde_json::to_value(&claims).unwrap();
        assert_eq!(said["kubernetes.io/serviceaccount/service-account.name"], "robot");
        assert_eq!(said["sub"], "system:serviceaccount:ns:robot");
        let other = SecretClaims { sub: "system:serviceaccount:ns:admin".into(), ..claims };
        assert!(tokens.verify_of_secret(&tokens.sign_for_secret(&other).unwrap()).is_none());
    }
}
