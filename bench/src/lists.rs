//! Lists of all objects, as other clients ask for them.

use std::process::Stdio;
use std::time::Instant;

use ::api::{Key, ListOptions};
use anyhow::{Context, Result, ensure};
use tokio::process::Command;

use crate::api::{Load, NAMESPACE, OBJECTS, Taken, failed};
use crate::cluster;
use crate::figures::Samples;
use crate::rows::Row;

/// How often each list is asked for.
const LISTS: usize = 60;
/// Objects of a page.
const PAGE: u64 = 500;

impl Load {
    /// Lists in every form, by one client.
    pub(crate) async fn lists(&self) -> Result<Vec<Row>> {
        self.pages_are_whole().await?;
        let protobuf = "Accept: application/vnd.kubernetes.protobuf";
        let gzip = "Accept-Encoding: gzip";
        let table = "Accept: application/json;as=Table;v=v1;g=meta.k8s.io";
        let wanted: [(&str, &str, &[&str], Option<f64>); 7] = [
            ("list of 5,000", "", &[], Some(5.0)),
            ("the same, resourceVersion=0", "resourceVersion=0", &[], Some(5.0)),
            ("the same, gzip", "", &[gzip], Some(60.0)),
            ("the same, protobuf", "", &[protobuf], None),
            ("the same, protobuf, gzip", "", &[protobuf, gzip], Some(60.0)),
            ("the same, as a table", "", &[table], None),
            ("a page of 500 of it", "limit=500", &[], None),
        ];
        let curl = Curl::new()?;
        let mut rows = Vec::new();
        for (name, query, headers, target) in wanted {
            // One that warms up.
            curl.list(query, headers, 1).await?;
            let (begun, before) = (Instant::now(), self.daemon.seconds()?);
            let times = curl.list(query, headers, LISTS).await?;
            let (seconds, cpu) = (begun.elapsed().as_secs_f64(), self.daemon.seconds()? - before);
            let taken = Taken { operations: LISTS, seconds, cpu, latencies: Samples::new(times) };
            rows.push(taken.row(name, target).told());
        }
        Ok(rows)
    }

    /// Page by page everything is there once and in order, as in one list.
    async fn pages_are_whole(&self) -> Result<()> {
        let client = &self.clients[0];
        let whole = client.list(&self.maps, NAMESPACE, ListOptions::default()).await.map_err(failed)?;
        let (mut paged, mut token) = (Vec::<Key>::new(), String::new());
        loop {
            let options = ListOptions { limit: PAGE, continue_token: token, ..ListOptions::default() };
            let page = client.list(&self.maps, NAMESPACE, options).await.map_err(failed)?;
            paged.extend(page.items.iter().map(|object| object.key()));
            token = page.continue_token;
            if token.is_empty() {
                break;
            }
        }
        let whole: Vec<Key> = whole.items.iter().map(|object| object.key()).collect();
        // A namespace has a ConfigMap of its own: the authority's certificate.
        ensure!(whole.len() == OBJECTS + 1, "the list has {} objects of {OBJECTS}", whole.len());
        ensure!(whole == paged, "pages and the whole list differ");
        Ok(())
    }
}

/// curl with the administrator's keys: it asks for encodings as other clients do, and decodes nothing.
pub(crate) struct Curl {
    directory: tempfile::TempDir,
    server: String,
}

impl Curl {
    pub(crate) fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let config = cluster::connection()?;
        let (cert, key) = config.client_pem.context("the kubeconfig names no certificate")?;
        for (name, text) in [("ca", &config.ca_pem), ("cert", &cert), ("key", &key)] {
            std::fs::write(directory.path().join(name), text)?;
        }
        Ok(Self { directory, server: config.server })
    }

    /// Asks for a path and drops the answer; it does not outlive what is started.
    pub(crate) fn command(&self, path: &str, headers: &[&str]) -> Command {
        let at = |name: &str| self.directory.path().join(name).display().to_string();
        let mut command = Command::new("curl");
        command.kill_on_drop(true);
        // What calls itself curl is taken for a person, who likes it indented.
        command.args([
            "-sf",
            "-A",
            "bench",
            "--cacert",
            &at("ca"),
            "--cert",
            &at("cert"),
            "--key",
            &at("key"),
        ]);
        for header in headers {
            command.args(["-H", header]);
        }
        command.args(["-o", "/dev/null", &format!("{}{path}", self.server)]).stdin(Stdio::null());
        command
    }

    /// Seconds of each of `count` lists over one connection.
    async fn list(&self, query: &str, headers: &[&str], count: usize) -> Result<Vec<f64>> {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps?{query}");
        let mut command = self.command(&path, headers);
        command.args(["-w", "%{time_total}\n"]);
        for _ in 1..count {
            command.args(["-o", "/dev/null", &format!("{}{path}", self.server)]);
        }
        let output = command.output().await.context("start curl")?;
        ensure!(output.status.success(), "curl: {}", output.status);
        let said = String::from_utf8_lossy(&output.stdout);
        let times: Vec<f64> = said.lines().filter_map(|line| line.parse().ok()).collect();
        ensure!(times.len() == count, "curl told {} times of {count}: {said}", times.len());
        Ok(times)
    }
}
