//! `version`: of this program, and of the cluster where one runs.

use anyhow::{Context, Result, bail};
use clap::Args;
use http::Request;
use http_body_util::{BodyExt, Full, Limited};
use serde::Serialize;
use serde_json::Value;

use crate::access::Access;
use crate::instance::Instance;
use crate::output::{self, Format};

/// Bytes of the server's answer that are read at most.
const ANSWER_MAX_BYTES: usize = 1 << 16;

/// Arguments of `skiff version`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  skiff version -o json")]
pub struct Version {
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

/// Both versions.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    client: Client,
    /// What the API server answers at `/version`; absent where no instance runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<Value>,
}

#[derive(Debug, Serialize)]
struct Client {
    version: &'static str,
    platform: String,
}

/// Prints the versions.
pub async fn run(instance: &Instance, args: &Version) -> Result<()> {
    let platform = format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH);
    let client = Client { version: env!("CARGO_PKG_VERSION"), platform };
    // Without an instance there is nothing to ask, which is no failure of this command.
    let (server, absent) = match Access::to(instance) {
        Ok(access) => (Some(ask(&access).await?), ""),
        Err(_) if instance.hidden() => (None, "root only"),
        Err(_) => (None, "not running"),
    };
    let shown = server.as_ref().and_then(|server| server["gitVersion"].as_str());
    let rows = [
        vec!["client".into(), client.version.into(), client.platform.clone()],
        vec![
            "server".into(),
            shown.unwrap_or(absent).into(),
            server.as_ref().and_then(|server| server["platform"].as_str()).unwrap_or_default().into(),
        ],
    ];
    output::print(args.output, &Versions { client, server }, &["", "VERSION", "PLATFORM"], &rows)
}

async fn ask(access: &Access) -> Result<Value> {
    let response = access.https.send_http(Request::get("/version").body(Full::default())?).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_MAX_BYTES).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("read the server's version: {error}"))?.to_bytes();
    if !status.is_success() {
        bail!("the API server answered {status}: {}", crate::remote::message(&body));
    }
    serde_json::from_slice(&body).context("decode the server's version")
}
