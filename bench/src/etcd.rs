//! Debian's etcd beside it: the same number of clients write, read and delete values of the same size.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use etcd_client::Client;
use futures::StreamExt;
use futures::stream::FuturesUnordered;

use crate::figures::Samples;
use crate::processes::Cpu;
use crate::rows::Row;

const CLIENTS: usize = 32;
const VALUES: usize = 5000;
const ADDRESS: &str = "http://127.0.0.1:23790";

/// The server, with its data beside Skiff's; both end with it.
struct Etcd {
    process: Child,
    _directory: tempfile::TempDir,
}

impl Etcd {
    async fn start() -> Result<Option<(Self, Vec<Client>)>> {
        let directory = tempfile::tempdir_in("/var/lib")?;
        let mut command = Command::new("etcd");
        command
            .arg("--data-dir")
            .arg(directory.path())
            .args(["--listen-peer-urls", "http://127.0.0.1:23800"]);
        command.args(["--listen-client-urls", ADDRESS, "--advertise-client-urls", ADDRESS]);
        let Ok(process) = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn() else {
            return Ok(None);
        };
        let etcd = Self { process, _directory: directory };
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(20) {
            if let Ok(mut client) = Client::connect([ADDRESS], None).await
                && client.status().await.is_ok()
            {
                let mut clients = Vec::new();
                for _ in 0..CLIENTS {
                    clients.push(Client::connect([ADDRESS], None).await?);
                }
                return Ok(Some((etcd, clients)));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        bail!("etcd does not answer")
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[derive(Clone, Copy)]
enum Operation {
    Put,
    Get,
    Delete,
}

impl Operation {
    async fn run(self, client: &mut Client, number: usize) -> Result<()> {
        let key = format!("/registry/configmaps/bench/map-{number}");
        match self {
            Self::Put => client.put(key, vec![7; 1000], None).await.map(drop)?,
            Self::Get => client.get(key, None).await.map(drop)?,
            Self::Delete => client.delete(key, None).await.map(drop)?,
        }
        Ok(())
    }
}

/// The rows; none where etcd is not installed.
pub(crate) async fn measure() -> Result<Vec<Row>> {
    let Some((etcd, mut clients)) = Etcd::start().await? else { return Ok(Vec::new()) };
    let cpu = Cpu::of(etcd.process.id());
    let mut rows = Vec::new();
    for (name, operation) in
        [("etcd: put", Operation::Put), ("etcd: get", Operation::Get), ("etcd: delete", Operation::Delete)]
    {
        let (begun, before) = (Instant::now(), cpu.seconds()?);
        let mut work: FuturesUnordered<_> = clients
            .iter_mut()
            .enumerate()
            .map(|(first, client)| async move {
                let mut times = Vec::new();
                for number in (first..VALUES).step_by(CLIENTS) {
                    let since = Instant::now();
                    operation.run(client, number).await.context(name)?;
                    times.push(since.elapsed().as_secs_f64());
                }
                Ok::<_, anyhow::Error>(times)
            })
            .collect();
        let mut times = Vec::new();
        while let Some(done) = work.next().await {
            times.extend(done?);
        }
        drop(work);
        let (seconds, used) = (begun.elapsed().as_secs_f64(), cpu.seconds()? - before);
        let samples = Samples::new(times);
        rows.push(Row {
            name: name.to_owned(),
            per_second: VALUES as f64 / seconds,
            cpu_ms: used * 1000.0 / VALUES as f64,
            median_ms: samples.median() * 1000.0,
            p99_ms: samples.percentile(99) * 1000.0,
            cpu_at_most_ms: None,
            p99_at_most_ms: None,
        });
    }
    Ok(rows)
}
