//! The daemon's part of the relay: it tells the keeper which ports are to be reached from the host. These are the API
//! server's, node ports and published ports; the last wish holds while no daemon runs.

use std::collections::BTreeSet;
use std::io::{BufRead, Write};
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use api::Key;
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context as Running, OnFailure};
use network::proxy::agent::View;
use reconcile::events::{EventRecorder, EventType, Involved};
use reconcile::kinds;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::place::Place;
use super::relay::{Refused, Wanted, Wish};
use crate::settings::Settings;

/// The keeper answers a daemon that starts within this time, or is stuck.
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// A port that another had is asked for again after so long: nobody tells when it is free.
const RETRY: Duration = Duration::from_secs(10);

/// Has the host's port of the API server lead here, before anything is made: one that is taken is named. Nothing where
/// this process is in the host's network.
pub(crate) fn claim_api(port: u16) -> Result<()> {
    let Some(place) = super::inside() else { return Ok(()) };
    let refused =
        claim(&Place::at(&place).socket(), port).context("tell the keeper of the API server's port")?;
    let Some(refused) = refused.first() else { return Ok(()) };
    bail!(
        "port {port} of the host cannot be had ({}); end who has it, or choose another port with --api-port",
        refused.why
    )
}

fn claim(socket: &Path, port: u16) -> Result<Vec<Refused>> {
    let mut stream = std::os::unix::net::UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    // An earlier daemon's other ports stay until this one knows which there are.
    let wish = Wish { ports: wanted(port, &BTreeSet::new()), others_stay: true };
    stream.write_all(&message(&wish)?)?;
    let mut line = String::new();
    std::io::BufReader::new(stream).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

/// What is to be reached: the API server's port, and those at which the service proxy serves on this host. Pure.
fn wanted(api_port: u16, served: &BTreeSet<(Option<Ipv4Addr>, u16)>) -> Vec<Wanted> {
    let own = [(None, api_port)];
    let all: BTreeSet<Wanted> = own
        .iter()
        .chain(served)
        // An unprivileged user's ports are nobody else's to reach, unless an address is named.
        .map(|(address, port)| Wanted { address: address.unwrap_or(Ipv4Addr::LOCALHOST), port: *port })
        .collect();
    all.into_iter().collect()
}

fn message(wish: &Wish) -> serde_json::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(wish)?;
    line.push(b'\n');
    Ok(line)
}

/// Waits until then; for ever where there is no such moment.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Keeps the keeper's list of ports, and has the Node's events say what is lost.
pub(crate) struct Ports {
    place: Place,
    api_port: u16,
    view: View,
    node: String,
    recorder: EventRecorder,
}

impl Ports {
    /// `None` where this process is in the host's network.
    pub(crate) fn of(
        settings: &Settings,
        view: View,
        recorder: impl FnOnce() -> EventRecorder,
    ) -> Option<Self> {
        let place = Place::at(&super::inside()?);
        let (api_port, node) = (settings.api_port, settings.node_name.clone());
        Some(Self { place, api_port, view, node, recorder: recorder() })
    }

    /// Tells the cluster's users as well what this node has to do without: as the user who started it was told.
    fn tell_losses(&self) {
        let node = Involved::named(&kinds::NODES, &Key::new("", self.node.clone()), "");
        for loss in self.place.said().into_iter().flat_map(|said| said.losses) {
            self.recorder.event(node.clone(), EventType::Warning, "WithoutRoot", loss);
        }
    }
}

#[async_trait]
impl Component for Ports {
    fn name(&self) -> &'static str {
        "host-ports"
    }

    fn after(&self) -> &'static [&'static str] {
        &["apiserver-start"]
    }

    fn on_failure(&self) -> OnFailure {
        // A keeper that was killed has a successor as soon as somebody starts one.
        OnFailure::Restart
    }

    async fn run(&self, ctx: Running) -> Result<(), BoxError> {
        ctx.ready();
        self.tell_losses();
        let mut programmed = self.view.revision();
        let gone = "the keeper of the namespaces is gone, and with it the way to them: run skiff up";
        let stream =
            UnixStream::connect(self.place.socket()).await.map_err(|error| format!("{gone} ({error})"))?;
        let (read, mut write) = stream.into_split();
        let mut answers = tokio::io::BufReader::new(read).lines();
        let mut told: Option<Wish> = None;
        let (mut refused, mut retry): (Vec<Refused>, _) = (Vec::new(), None);
        loop {
            programmed.mark_unchanged();
            // Before the first table is there, what an earlier daemon wished stays.
            let ports = self.view.is_complete().then(|| wanted(self.api_port, &self.view.host_ports()));
            let wish = ports.map(|ports| Wish { ports, others_stay: false });
            if let Some(wish) = wish.filter(|wish| told.as_ref() != Some(wish)) {
                write.write_all(&message(&wish)?).await?;
                told = Some(wish);
            }
            tokio::select! {
                () = ctx.cancelled() => return Ok(()),
                changed = programmed.changed() => changed?,
                answer = answers.next_line() => {
                    let answer: Vec<Refused> = serde_json::from_str(&answer?.ok_or(gone)?)?;
                    for Refused { wanted, why } in answer.iter().filter(|one| !refused.contains(one)) {
                        tracing::warn!(address = %wanted.address, port = wanted.port, why, "a port of the host cannot be had");
                    }
                    retry = (!answer.is_empty()).then(|| Instant::now() + RETRY);
                    refused = answer;
                }
                () = until(retry) => {
                    told = None;
                    retry = None;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_the_loopbacks_unless_an_address_is_named() {
        let lan = Ipv4Addr::new(192, 0, 2, 7);
        let served = BTreeSet::from([(None, 30080), (Some(lan), 80), (None, 6443)]);
        let wanted: Vec<_> = wanted(6443, &served).iter().map(|one| (one.address, one.port)).collect();
        let loopback = Ipv4Addr::LOCALHOST;
        assert_eq!(wanted, [(loopback, 6443), (loopback, 30080), (lan, 80)]);
    }
}
