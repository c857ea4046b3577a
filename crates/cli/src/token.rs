//! `token`: bootstrap tokens, with which other machines join. They are Secrets, as kubeadm has them.

use anyhow::{Context, Result, bail};
use api::{DeleteOptions, GroupVersionResource, Key, ListOptions};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use client::discovery::KeyHash;
use client::https::Https;
use client::{Client, kubeconfig};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::instance::Instance;
use crate::output::{self, Format};

const NAMESPACE: &str = "kube-system";
const TYPE: &str = "bootstrap.kubernetes.io/token";
/// Name of a token's Secret before its id.
const NAME: &str = "bootstrap-token-";

/// Arguments of `skiff token`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  skiff token create --ttl 1h")]
pub struct Token {
    /// What to do
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a token, and print the command with which another machine joins
    #[command(after_help = "Example:\n  skiff token create --ttl 1h")]
    Create {
        /// How long it may be used (`90m`, `24h`); 0 for ever
        #[arg(long, default_value = "24h", value_name = "DURATION")]
        ttl: String,
    },
    /// List tokens (without their secrets)
    #[command(after_help = "Example:\n  skiff token list")]
    List {
        /// Form of the answer
        #[arg(short, long, value_enum, default_value_t)]
        output: Format,
    },
    /// Delete a token by its id, the six characters before the dot
    #[command(after_help = "Example:\n  skiff token delete abcdef")]
    Delete {
        /// The token's id
        id: String,
    },
}

fn secrets() -> GroupVersionResource {
    GroupVersionResource::new("", "v1", "secrets")
}

/// Runs `token`.
pub async fn run(instance: &Instance, args: Token) -> Result<()> {
    let running = instance.expect_running()?;
    let loaded = kubeconfig::load(&instance.kubeconfig(), None)
        .context("this host has no administrator's access to the cluster; run this where `skiff up` did")?;
    let client = Client::new(std::sync::Arc::new(Https::new(&loaded.config)?), "skiff");
    match args.action {
        Action::Create { ttl } => {
            let hash =
                KeyHash::of_pem(&loaded.config.ca_pem).context("the kubeconfig holds no certificate")?;
            let token = create(&client, expiration(&ttl, Timestamp::now())?).await?;
            let server = running.api.trim_start_matches("https://");
            output::write_out(&format!(
                "skiff join {server} --token {token} --discovery-token-ca-cert-hash {hash}\n"
            ))
        }
        Action::List { output } => list(&client, output).await,
        Action::Delete { id } => {
            let key = Key::new(NAMESPACE, format!("{NAME}{id}"));
            client.get(&secrets(), &key).await.with_context(|| format!("no token {id}"))?;
            client.delete(&secrets(), &key, DeleteOptions::default()).await?;
            Ok(())
        }
    }
}

/// When a token ends that lives for `ttl` from `now`; `None`: never.
fn expiration(ttl: &str, now: Timestamp) -> Result<Option<Timestamp>> {
    if ttl == "0" {
        return Ok(None);
    }
    let ttl: SignedDuration =
        ttl.parse().with_context(|| format!("--ttl {ttl:?} is no duration such as 90m or 24h"))?;
    if !ttl.is_positive() {
        bail!("--ttl has to be longer than 0s; 0 alone stands for a token that never expires");
    }
    Ok(Some(now.checked_add(ttl).context("--ttl is too long")?))
}

/// `length` random characters of `a-z` and `0-9`.
fn random(length: usize) -> Result<String> {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while filled < length {
        filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
    }
    // 32 divides 256: every character is equally likely.
    Ok(bytes.into_iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect())
}

async fn create(client: &Client, expiration: Option<Timestamp>) -> Result<String> {
    let (id, secret) = (random(6)?, random(16)?);
    let mut data = json!({
        "token-id": id, "token-secret": secret,
        "usage-bootstrap-authentication": "true",
        "description": "made by skiff token create",
    });
    if let Some(expiration) = expiration {
        data["expiration"] = json!(format!("{expiration:.0}"));
    }
    let object = json!({
        "apiVersion": "v1", "kind": "Secret", "type": TYPE,
        "metadata": { "name": format!("{NAME}{id}"), "namespace": NAMESPACE },
        "stringData": data,
    });
    client.create(&secrets(), NAMESPACE, &object).await.context("make the token")?;
    Ok(format!("{id}.{secret}"))
}

#[derive(Deserialize)]
struct SecretView {
    #[serde(default)]
    data: std::collections::BTreeMap<String, String>,
}

#[derive(Serialize)]
struct Row {
    id: String,
    expires: String,
    description: String,
}

async fn list(client: &Client, format: Format) -> Result<()> {
    let options = ListOptions { field_selector: format!("type={TYPE}"), ..ListOptions::default() };
    let found = client.list(&secrets(), NAMESPACE, options).await?;
    let mut rows = Vec::new();
    for object in &found.items {
        let view: SecretView = object.decode()?;
        let field = |name: &str| {
            let bytes = STANDARD.decode(view.data.get(name)?).ok()?;
            String::from_utf8(bytes).ok()
        };
        rows.push(Row {
            id: field("token-id").unwrap_or_default(),
            expires: field("expiration").unwrap_or_else(|| "never".into()),
            description: field("description").unwrap_or_default(),
        });
    }
    let cells: Vec<_> =
        rows.iter().map(|row| vec![row.id.clone(), row.expires.clone(), row.description.clone()]).collect();
    output::print(format, &rows, &["ID", "EXPIRES", "DESCRIPTION"], &cells)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_are_read_and_secrets_have_their_form() {
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(expiration("0", now).unwrap(), None);
        assert_eq!(expiration("90m", now).unwrap().unwrap().as_second(), 5400);
        for bad in ["", "-1h", "0s", "soon"] {
            assert!(expiration(bad, now).is_err(), "{bad}");
        }
        let secret = random(16).unwrap();
        assert!(secret.len() == 16 && secret.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()));
    }
}
