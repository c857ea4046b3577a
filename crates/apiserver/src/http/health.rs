//! Health: named checks behind `/livez`, `/readyz` and `/healthz`. Source: `apiserver/pkg/server/healthz`.

use api::connect::Body;
use http::StatusCode;

use super::respond::typed_response;
use super::{Front, Parts};

/// One check: its name, and what is wrong.
struct Check {
    name: String,
    wrong: Option<String>,
}

impl Front {
    /// Answers `/livez`, `/readyz`, `/healthz` and `/<of them>/<check>`.
    pub(super) async fn health(&self, parts: &Parts<'_>) -> Option<http::Response<Body>> {
        let mut segments = parts.path.trim_matches('/').splitn(2, '/');
        let endpoint = segments.next().filter(|name| matches!(*name, "livez" | "readyz" | "healthz"))?;
        let mut checks = self.checks(endpoint).await;
        if let Some(one) = segments.next() {
            checks.retain(|check| check.name == one);
            if checks.is_empty() {
                return Some(typed_response(StatusCode::NOT_FOUND, "text/plain", "404 page not found\n"));
            }
        }
        for excluded in parts.query.all("exclude") {
            checks.retain(|check| check.name != excluded);
        }
        let failed = checks.iter().any(|check| check.wrong.is_some());
        let code = if failed { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
        if !failed && parts.query.get("verbose").is_none() {
            return Some(typed_response(code, "text/plain; charset=utf-8", "ok"));
        }
        let mut lines: String = checks
            .iter()
            .map(|check| match &check.wrong {
                None => format!("[+]{} ok\n", check.name),
                Some(why) => format!("[-]{} failed: {why}\n", check.name),
            })
            .collect();
        lines += &format!("{endpoint} check {}\n", if failed { "failed" } else { "passed" });
        Some(typed_response(code, "text/plain; charset=utf-8", lines))
    }

    async fn checks(&self, endpoint: &str) -> Vec<Check> {
        let mut checks = vec![Check { name: "ping".into(), wrong: None }];
        let store = self.pipeline.store().current_revision().await;
        checks.push(Check { name: "etcd".into(), wrong: store.err().map(|error| error.to_string()) });
        if endpoint == "livez" {
            return checks;
        }
        let unsynced = self.pipeline.unsynced();
        let wrong = (!unsynced.is_empty()).then(|| format!("not filled yet: {}", unsynced.join(", ")));
        checks.push(Check { name: "watch-caches".into(), wrong });
        if let Some(readiness) = &self.readiness {
            for name in readiness.missing() {
                checks.push(Check { name: format!("component-{name}"), wrong: Some("not ready".into()) });
            }
        }
        checks
    }
}
