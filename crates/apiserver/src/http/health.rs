//! Health: named checks behind `/livez`, `/readyz` and `/healthz`. Source: `apiserver/pkg/server/healthz`.

use api::connect::Body;
use http::StatusCode;

use super::documents::nothing_here;
use super::respond::typed_response;
use super::{Front, Parts};
use crate::started;

/// One check: its name, and what is wrong.
struct Check {
    name: String,
    wrong: Option<String>,
}

const TEXT: &str = "text/plain; charset=utf-8";

/// A line for each check, and whether one failed that counts.
fn report(checks: &[Check], excluded: &[&str]) -> (String, bool) {
    let (mut lines, mut failed) = (String::new(), false);
    for check in checks {
        let name = &check.name;
        lines += &match &check.wrong {
            _ if excluded.contains(&name.as_str()) => format!("[+]{name} excluded: ok\n"),
            None => format!("[+]{name} ok\n"),
            Some(why) => {
                failed = true;
                format!("[-]{name} failed: {why}\n")
            }
        };
    }
    let unknown: Vec<String> = excluded
        .iter()
        .filter(|name| !checks.iter().any(|check| check.name == **name))
        .map(|name| format!("{name:?}"))
        .collect();
    if !unknown.is_empty() {
        let names = unknown.join(",");
        lines += &format!("warn: some health checks cannot be excluded: no matches for {names}\n");
    }
    (lines, failed)
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
                return Some(nothing_here());
            }
        }
        for check in &checks {
            self.metrics.checked(endpoint, &check.name, check.wrong.is_none());
        }
        let excluded: Vec<&str> = parts.query.all("exclude").filter(|name| !name.is_empty()).collect();
        let (report, failed) = report(&checks, &excluded);
        if failed {
            let text = format!("{report}{endpoint} check failed\n");
            return Some(typed_response(StatusCode::INTERNAL_SERVER_ERROR, TEXT, text));
        }
        let text = match parts.query.get("verbose") {
            None => "ok".to_owned(),
            Some(_) => format!("{report}{endpoint} check passed\n"),
        };
        Some(typed_response(StatusCode::OK, TEXT, text))
    }

    async fn checks(&self, endpoint: &str) -> Vec<Check> {
        let fine = |name: &str| Check { name: name.into(), wrong: None };
        let mut checks = vec![fine("ping"), fine("log")];
        let store = self.pipeline.store().current_revision().await;
        let store = store.err().map(|error| error.to_string());
        checks.push(Check { name: "etcd".into(), wrong: store.clone() });
        if endpoint == "readyz" {
            checks.push(Check { name: "etcd-readiness".into(), wrong: store });
        }
        checks.extend(started::CHECKS.iter().map(|(name, step)| {
            let wrong = (!self.started.has(*step)).then(|| "not finished".to_owned());
            Check { name: (*name).into(), wrong }
        }));
        if endpoint != "readyz" {
            return checks;
        }
        let unsynced = self.pipeline.unsynced();
        let wrong = (!unsynced.is_empty()).then(|| format!("not filled yet: {}", unsynced.join(", ")));
        checks.push(Check { name: "informer-sync".into(), wrong });
        let drains = self.drain.is_cancelled().then(|| "process is shutting down".to_owned());
        checks.push(Check { name: "shutdown".into(), wrong: drains });
        if let Some(readiness) = &self.readiness {
            for name in readiness.missing() {
                checks.push(Check { name: format!("component-{name}"), wrong: Some("not ready".into()) });
            }
        }
        checks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_excluded_does_not_count() {
        let check =
            |name: &str, wrong: Option<&str>| Check { name: name.into(), wrong: wrong.map(str::to_owned) };
        let checks = [check("ping", None), check("etcd", Some("gone"))];
        assert_eq!(report(&checks, &[]), ("[+]ping ok\n[-]etcd failed: gone\n".into(), true));
        let (text, failed) = report(&checks, &["etcd", "moon"]);
        assert!(!failed);
        let warning = "warn: some health checks cannot be excluded: no matches for \"moon\"\n";
        assert_eq!(text, format!("[+]ping ok\n[+]etcd excluded: ok\n{warning}"));
    }
}
