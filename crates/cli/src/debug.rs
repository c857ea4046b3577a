//! `debug`: looks into the platform itself.

use anyhow::{Context, Result, bail};
use api::GroupVersionResource;
use clap::{Args, Subcommand};
use http::Request;
use http_body_util::{BodyExt, Full, Limited};
use serde::{Deserialize, Serialize};

use crate::access::Access;
use crate::engine::quote;
use crate::instance::Instance;
use crate::output::{self, Format};

/// The largest answer of a node that is read.
const ANSWER_MAX_BYTES: usize = 1 << 20;
/// How wide the picture of the time is, in characters.
const WIDTH: u64 = 48;

/// Arguments of `skiff debug`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  skiff debug start-trace web-5d4f8")]
pub struct Debug {
    /// What to look at
    #[command(subcommand)]
    pub what: What,
}

/// What can be looked at.
#[derive(Debug, Subcommand)]
pub enum What {
    /// Show what starting a pod took, step by step
    StartTrace(StartTrace),
}

/// Arguments of `skiff debug start-trace`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  skiff debug start-trace web-5d4f8\n  skiff debug start-trace web-5d4f8 -n shop -o json"
)]
pub struct StartTrace {
    /// Namespace of the pod
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
    /// The pod
    pub pod: String,
}

/// What a node tells of a pod's start.
#[derive(Debug, Serialize, Deserialize)]
struct Trace {
    pod: String,
    uid: String,
    steps: Vec<Step>,
}

/// One step, in microseconds from the first one's beginning on.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Step {
    step: String,
    container: String,
    from_microseconds: u64,
    took_microseconds: u64,
}

/// Runs `debug`.
pub async fn run(instance: &Instance, args: Debug) -> Result<()> {
    match args.what {
        What::StartTrace(args) => start_trace(instance, &args).await,
    }
}

async fn start_trace(instance: &Instance, args: &StartTrace) -> Result<()> {
    let access = Access::to(instance)?;
    let name = args.pod.strip_prefix("pod/").unwrap_or(&args.pod);
    let pods = GroupVersionResource::new("", "v1", "pods");
    let Some(pod) = access.find(&pods, &args.namespace, name).await? else {
        bail!("there is no pod {}/{name}; see: skiff kubectl get pods -A", args.namespace);
    };
    let Some(node) = pod["spec"]["nodeName"].as_str() else {
        bail!("pod {}/{name} is on no node yet; see: skiff why {name} -n {}", args.namespace, args.namespace);
    };
    let trace = ask(&access, node, &args.namespace, name).await?;
    output::print(args.output, &trace, &["FROM", "TOOK", "STEP", "CONTAINER", "TIME"], &rows(&trace.steps))
}

/// Asks the node for the steps, through the API server.
async fn ask(access: &Access, node: &str, namespace: &str, pod: &str) -> Result<Trace> {
    let path =
        format!("/api/v1/nodes/{}/proxy/debug/startTrace/{}/{}", quote(node), quote(namespace), quote(pod));
    let response = access.https.send_http(Request::get(path).body(Full::default())?).await?;
    let code = response.status();
    let body = Limited::new(response.into_body(), ANSWER_MAX_BYTES).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!(error)).context("read the node's answer")?.to_bytes();
    if !code.is_success() {
        let status: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        bail!("node {node} does not tell: {}", status["message"].as_str().unwrap_or(code.as_str()));
    }
    let trace: Trace = serde_json::from_slice(&body).context("decode the node's answer")?;
    if trace.steps.is_empty() {
        bail!("node {node} knows no steps of the pod: it was started before the node's process was");
    }
    Ok(trace)
}

/// Rows for people, with a picture of when each step was.
fn rows(steps: &[Step]) -> Vec<Vec<String>> {
    let end = steps.iter().map(|step| step.from_microseconds + step.took_microseconds).max().unwrap_or(0);
    let column = |at: u64| usize::try_from(at * WIDTH / end.max(1)).unwrap_or(0);
    let milliseconds = |micros: u64| format!("{}.{:02} ms", micros / 1000, micros % 1000 / 10);
    let row = |step: &Step| {
        let (from, to) =
            (column(step.from_microseconds), column(step.from_microseconds + step.took_microseconds));
        vec![
            milliseconds(step.from_microseconds),
            milliseconds(step.took_microseconds),
            step.step.clone(),
            step.container.clone(),
            format!("{}{}", " ".repeat(from), "=".repeat((to - from).max(1))),
        ]
    };
    steps.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_shows_when_each_step_was() {
        let step = |name: &str, from_microseconds, took_microseconds| Step {
            step: name.to_owned(),
            container: String::new(),
            from_microseconds,
            took_microseconds,
        };
        let rows = rows(&[step("whole", 0, 48_000), step("part", 24_000, 12_010), step("end", 48_000, 0)]);
        assert_eq!(rows[0][4], "=".repeat(48));
        assert_eq!(rows[1][..2], ["24.00 ms", "12.01 ms"]);
        assert_eq!(rows[1][4], format!("{}{}", " ".repeat(24), "=".repeat(12)));
        assert_eq!(rows[2][4].trim(), "=");
        assert!(super::rows(&[]).is_empty());
    }
}
