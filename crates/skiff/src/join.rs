//! `skiff join`: this host becomes a node of a cluster that runs elsewhere.
//!
//! With the token it asks the API server, whose authority it knows by the hash of its key, for a client certificate of
//! its node; from then on the node speaks for itself. Source: kubeadm's TLS bootstrap. A host that is a node of that
//! cluster already is led to the address, and keeps everything else.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use apiserver::pki::Identity;
use base::clock::SystemClock;
use clap::Args;
use client::Client;
use client::discovery::{KeyHash, authority};
use client::https::{Config, Https, Token};
use reconcile::Informers;

use crate::daemon::certificates;
use crate::membership::{Facts, Membership};
use crate::report::Reporter;
use crate::settings::{Settings, UpArgs};

/// Where the API server listens if the address does not say.
const API_PORT: u16 = 6443;

/// Arguments of `skiff join`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  skiff join 192.0.2.1:6443 --token TOKEN --discovery-token-ca-cert-hash HASH"
)]
pub(crate) struct JoinArgs {
    /// Address and port of the API server, as `skiff token create` prints them
    #[arg(value_name = "ADDRESS")]
    server: String,
    /// The token
    #[arg(long, env = "SKIFF_TOKEN", hide_env_values = true)]
    token: String,
    /// Hash of the cluster's authority, `sha256:…`
    #[arg(long, value_name = "HASH")]
    discovery_token_ca_cert_hash: String,
    #[command(flatten)]
    up: UpArgs,
}

/// Runs `join`.
pub(crate) fn run(args: &JoinArgs, settings: Settings) -> Result<u8> {
    if !rustix::process::geteuid().is_root() {
        bail!("skiff join needs root: other nodes have to reach this one and its pods. Run: sudo skiff join");
    }
    let instance = &settings.instance;
    if let Some(running) = instance.running() {
        bail!(
            "instance {:?} is running here already, at {}; stop it first with: {}",
            instance.name,
            running.api,
            instance.command("down")
        );
    }
    crate::home::check(instance)?;
    if instance.data_dir.join("store").exists() {
        bail!(
            "{} holds a cluster of its own; remove it first with: skiff down --purge",
            instance.data_dir.display()
        );
    }
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?
        .block_on(join(args, &settings))?;
    if args.up.foreground {
        return crate::daemon::run(settings, Reporter::Terminal).map(|()| 0);
    }
    crate::up::start_and_follow(&settings, &crate::up::arguments(&settings))
}

impl JoinArgs {
    /// The settings of the node.
    pub(crate) fn settings(&self) -> &UpArgs {
        &self.up
    }
}

async fn join(args: &JoinArgs, settings: &Settings) -> Result<()> {
    let hash = KeyHash::parse(&args.discovery_token_ca_cert_hash)
        .context("--discovery-token-ca-cert-hash has to be sha256: and 64 hexadecimal digits")?;
    let membership = Membership::load(&settings.instance)?;
    if let Some(membership) = &membership
        && KeyHash::of_pem(membership.ca_pem()?.as_bytes()) != Some(hash)
    {
        bail!(
            "this host is a node of another cluster, at {}; leave that first with: {} --purge",
            membership.facts.server,
            settings.instance.command("down")
        );
    }
    let (host, port) = split(&args.server)?;
    cli::output::progress(&format!("asking {host} for its authority"));
    let ca_pem = authority(&host, port, hash)
        .await
        .map_err(|error| anyhow::anyhow!("{}", base::error::chain(&*error)))
        .with_context(|| {
            format!("no API server at {host}:{port} shows the authority {hash}; check address and hash")
        })?;
    let server = if host.contains(':') {
        format!("https://[{host}]:{port}")
    } else {
        format!("https://{host}:{port}")
    };
    if let Some(mut membership) = membership {
        return membership.set_server(&server);
    }
    let config = Config {
        server: server.clone(),
        ca_pem: ca_pem.clone().into_bytes(),
        token: Token::Fixed(args.token.clone()),
        ..Config::default()
    };
    let client = Client::new(Arc::new(Https::new(&config)?), "skiff");
    cli::output::progress("asking for the node's certificate");
    let node_name = settings.node_name.clone();
    let identity = Identity {
        user: format!("system:node:{node_name}"),
        groups: vec!["system:nodes".into()],
        ..Identity::default()
    };
    let informers = Informers::new(client.clone(), Arc::new(SystemClock));
    let issued = certificates::obtain(&client, &informers, &identity, certificates::CLIENT).await.context(
        "get the node's certificate; is the token right and not expired? skiff token create makes a new one",
    )?;
    crate::home::take_data(settings)?;
    Membership::create(&settings.instance, Facts { server, node_name }, &ca_pem, &issued)
}

/// Host and port of an address such as `192.0.2.1`, `host:6443` or `[2001:db8::1]:6443`.
fn split(address: &str) -> Result<(String, u16)> {
    let address = address.trim_start_matches("https://").trim_end_matches('/');
    let bad = || format!("{address:?} is no address of the form HOST:PORT");
    let authority: http::uri::Authority = address.parse().with_context(bad)?;
    let (host, port) = match authority.as_str().rsplit_once(':') {
        Some((host, digits)) if !digits.ends_with(']') => (host, digits.parse().with_context(bad)?),
        _ => (authority.as_str(), API_PORT),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    if host.is_empty() {
        bail!("{}", bad());
    }
    Ok((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_host_and_perhaps_a_port() {
        let split = |address: &str| split(address).unwrap();
        assert_eq!(split("192.0.2.1"), ("192.0.2.1".into(), 6443));
        assert_eq!(split("https://192.0.2.1:7000/"), ("192.0.2.1".into(), 7000));
        assert_eq!(split("server.example:7000"), ("server.example".into(), 7000));
        assert_eq!(split("[2001:db8::1]:7000"), ("2001:db8::1".into(), 7000));
        for bad in ["", "a b", "host:99999", ":6443"] {
            assert!(super::split(bad).is_err(), "{bad}");
        }
    }
}
