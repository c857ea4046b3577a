//! Extenders: programs elsewhere that take part in placing pods, asked over HTTP.
//! Source: `pkg/scheduler/extender.go`, `k8s.io/kube-scheduler/extender/v1`.

pub(crate) mod config;
pub(crate) mod cycle;

mod address;
mod messages;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::BytesMut;
use serde::Serialize;
use serde_json::Value;

use crate::types::Pod;
use address::Address;

/// An answer is at most this large: it may name every node with all of it.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// An extender.
#[derive(Debug, Clone)]
pub struct Extender {
    http: reqwest::Client,
    /// Where it is; verbs are appended.
    url: String,
    /// How it is asked where its certificate bears another name than its URL.
    address: Option<Address>,
    filter: String,
    prioritize: String,
    preempt: String,
    bind: String,
    /// How much its scores count.
    weight: i64,
    /// It knows the nodes: names will do.
    knows_nodes: bool,
    /// It sees pods that ask for one of these; none: all pods.
    managed: BTreeSet<String>,
    /// Where it cannot be asked, pods are placed without it.
    ignorable: bool,
    timeout: Duration,
}

impl Extender {
    /// Whether it sees to a pod.
    fn sees(&self, pod: &Pod) -> bool {
        self.managed.is_empty() || pod.spec.requests.iter().any(|(name, _)| self.managed.contains(name))
    }

    /// Whether it binds a pod instead of the scheduler.
    fn binds(&self, pod: &Pod) -> bool {
        !self.bind.is_empty() && self.sees(pod)
    }

    /// Asks for something; the names of the answer's fields are in small letters, as Go reads them in any.
    async fn ask(&self, verb: &str, question: &impl Serialize) -> Result<Value, String> {
        let url = format!("{}/{verb}", self.url.trim_end_matches('/'));
        let body = serde_json::to_vec(question).map_err(|error| error.to_string())?;
        let asked = async {
            let request = match &self.address {
                None => self.http.post(&url),
                Some(address) => address.sign(self.http.post(address.named(&url)?)),
            };
            let request = request.header(http::header::CONTENT_TYPE, "application/json");
            let mut answer = request.body(body).send().await.map_err(|error| base::error::chain(&error))?;
            let code = answer.status().as_u16();
            if code != 200 {
                return Err(format!("failed {verb} with extender at URL {url}, code {code}"));
            }
            let mut bytes = BytesMut::new();
            while let Some(chunk) = answer.chunk().await.map_err(|error| base::error::chain(&error))? {
                if bytes.len() + chunk.len() > ANSWER_BYTES_MAX {
                    return Err(format!("the answer of {url} is larger than {ANSWER_BYTES_MAX} bytes"));
                }
                bytes.extend_from_slice(&chunk);
            }
            serde_json::from_slice(&bytes).map_err(|error| format!("the answer of {url} is no JSON: {error}"))
        };
        let answered = tokio::time::timeout(self.timeout, asked).await;
        answered.unwrap_or_else(|_| {
            Err(format!(
                "Post {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
            ))
        })
    }
}
