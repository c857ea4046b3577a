//! What an instance is started with: flags, environment and a configuration file, checked before anything is bound.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use cli::instance::{DEFAULT_NAME, Instance};
use serde::{Deserialize, Serialize};

use crate::image_settings::{ImageArgs, Images};
use crate::membership::Membership;

/// Arguments of `skiff up`. Each is also a key of the configuration file, in camel case.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct UpArgs {
    /// Stay in the foreground and log to standard error
    #[arg(long)]
    #[serde(skip)]
    pub(crate) foreground: bool,
    /// Report progress on standard output as JSON lines, in a session of its own
    #[arg(long, hide = true)]
    #[serde(skip)]
    pub(crate) report: bool,
    /// A YAML file with these settings; flags win over it
    #[arg(long, env = "SKIFF_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub(crate) config: Option<PathBuf>,
    /// Kubeconfig to merge the administrator's access into; '' for none [default: $KUBECONFIG or ~/.kube/config]
    #[arg(long, value_name = "FILE", value_parser = OsStringValueParser::new().map(PathBuf::from))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// This host's address [default: the one that the default route uses]
    #[arg(long, value_name = "IP")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) address: Option<IpAddr>,
    /// The node's name [default: the host's name]
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) node_name: Option<String>,
    /// Port of the API server [default: 6443, or derived from the instance's name]
    #[arg(long, value_name = "PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) api_port: Option<u16>,
    /// Port of the node's server [default: 10250, or derived from the instance's name]
    #[arg(long, value_name = "PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) node_port: Option<u16>,
    /// Where the cluster's objects are kept; over etcd, several servers make one control plane [default: embedded]
    #[arg(long, value_enum, value_name = "STORE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) store: Option<StoreKind>,
    /// URLs of etcd's members, with --store etcd
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) etcd_servers: Vec<String>,
    /// Authority that signed the certificates of etcd's members (PEM)
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) etcd_cafile: Option<PathBuf>,
    /// Certificate to show to etcd (PEM)
    #[arg(long, value_name = "FILE", requires = "etcd_keyfile")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) etcd_certfile: Option<PathBuf>,
    /// Key of that certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "etcd_certfile")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) etcd_keyfile: Option<PathBuf>,
    /// AuthenticationConfiguration: the OpenID Connect providers whose tokens the API server believes
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) authentication_config: Option<PathBuf>,
    /// Webhook that knows tokens, in kubeconfig format
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) authentication_token_webhook_config_file: Option<PathBuf>,
    /// Webhook that authorizes what no role allows, in kubeconfig format
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) authorization_webhook_config_file: Option<PathBuf>,
    /// EncryptionConfiguration: which resources are encrypted in the store, and with which keys
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) encryption_provider_config: Option<PathBuf>,
    /// AdmissionConfiguration: defaults and exemptions of PodSecurity, resources that need a quota, more plugins
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) admission_control_config_file: Option<PathBuf>,
    /// Audit policy: which requests are written down, and how much of them
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) audit_policy_file: Option<PathBuf>,
    /// The audit log, one event a line; '-' for standard output
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) audit_log_path: Option<PathBuf>,
    /// Days that old audit logs are kept [default: for ever]
    #[arg(long, value_name = "DAYS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) audit_log_maxage: Option<u32>,
    /// How many old audit logs are kept [default: all]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) audit_log_maxbackup: Option<u32>,
    /// Megabytes at which an audit log is put aside [default: 100]
    #[arg(long, value_name = "MB")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) audit_log_maxsize: Option<u32>,
    /// Webhook that takes audit events, in kubeconfig format
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) audit_webhook_config_file: Option<PathBuf>,
    /// KubeSchedulerConfiguration: profiles, plugins and their arguments
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) scheduler_config: Option<PathBuf>,
    /// Directory of manifests whose pods the node runs by itself, also without an API server
    #[arg(long, value_name = "DIRECTORY")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) static_pod_path: Option<PathBuf>,
    /// KubeletConfiguration of the node: pods that it takes, limits, reservations, evictions; flags win over it
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) node_config: Option<PathBuf>,
    /// The longest that a container which ends again and again waits for its restart, 1 to 300 [default: 300]
    #[arg(long, value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_container_restart_period: Option<u64>,
    /// Further OCI runtimes, as RuntimeClasses name them: runc=/usr/sbin/runc
    #[arg(long, value_name = "HANDLER=PROGRAM", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) oci_runtimes: Vec<String>,
    /// How the node gets, guards and gives up images
    #[command(flatten)]
    pub(crate) images: ImageArgs,
}

/// A kind of store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum StoreKind {
    /// In the instance's own directory, for one server.
    #[default]
    Embedded,
    /// In an etcd cluster, for one server or several.
    Etcd,
}

/// How etcd is reached. Paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EtcdAccess {
    /// URLs of its members.
    pub(crate) servers: Vec<String>,
    /// Who signed their certificates.
    pub(crate) ca: Option<PathBuf>,
    /// Certificate and key to show.
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
}

/// Settings, complete and checked.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Names and paths.
    pub(crate) instance: Instance,
    /// Where the administrator's access is merged into; `None`: nowhere.
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The address given, if any.
    pub(crate) address: Option<IpAddr>,
    /// The node's name.
    pub(crate) node_name: String,
    /// Port of the API server.
    pub(crate) api_port: u16,
    /// Port of the node's server.
    pub(crate) node_port: u16,
    /// The etcd that keeps the cluster's objects; `None`: the embedded store does.
    pub(crate) etcd: Option<EtcdAccess>,
    /// Whom the API server believes besides its own authority. Paths are absolute.
    pub(crate) access: apiserver::Access,
    /// Encryption at rest and auditing. Paths are absolute.
    pub(crate) protection: apiserver::Protection,
    /// How pods are placed: a configuration of the scheduler. Absolute.
    pub(crate) scheduler_config: Option<PathBuf>,
    /// Directory of the manifests of static pods, as far as no node's configuration says it. Absolute.
    pub(crate) static_pod_path: Option<PathBuf>,
    /// The longest wait for a restart in seconds, likewise.
    pub(crate) max_container_restart_period: Option<u64>,
    /// Programs of further OCI runtimes by the handlers that RuntimeClasses name. Absolute.
    pub(crate) oci_runtimes: BTreeMap<String, PathBuf>,
    /// How the node gets, guards and gives up images.
    pub(crate) images: Images,
    /// The file with the node's configuration, and what it says. Absolute.
    pub(crate) node_config: Option<PathBuf>,
    pub(crate) kubelet: node::KubeletConfiguration,
}

/// Source: `MaxCrashLoopBackOff` in `pkg/kubelet/apis/config`.
pub(crate) const RESTART_PERIOD_MAX: u64 = 300;

impl UpArgs {
    /// Reads the configuration file, fills in defaults and checks everything.
    pub(crate) fn resolve(&self, instance: Instance) -> Result<Settings> {
        let file = match &self.config {
            Some(path) => read_config(path)?,
            None => Self::default(),
        };
        let etcd = self.etcd(&file)?;
        let access = self.access(&file)?;
        let protection = self.protection(&file)?;
        let scheduler_config = path_of("--scheduler-config", &self.scheduler_config, &file.scheduler_config)?;
        let node_config = path_of("--node-config", &self.node_config, &file.node_config)?;
        let kubelet = node_config.as_deref().map(node::KubeletConfiguration::read).transpose();
        let kubelet = kubelet.map_err(anyhow::Error::msg)?.unwrap_or_default();
        let static_pod_path = path_of("--static-pod-path", &self.static_pod_path, &file.static_pod_path)?;
        let max_container_restart_period =
            self.max_container_restart_period.or(file.max_container_restart_period);
        if let Some(period) = max_container_restart_period
            && !(1..=RESTART_PERIOD_MAX).contains(&period)
        {
            bail!(
                "--max-container-restart-period {period} is not between 1 and {RESTART_PERIOD_MAX} seconds"
            );
        }
        let oci_runtimes = self.oci_runtimes(&file)?;
        let joined_as = || {
            Ok::<_, anyhow::Error>(Membership::load(&instance)?.map(|membership| membership.facts.node_name))
        };
        let node_name = match self.node_name.clone().or(file.node_name) {
            Some(name) => name,
            None => joined_as()?.unwrap_or_else(host_name),
        };
        let valid = !node_name.is_empty()
            && node_name.len() <= 63
            && node_name
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte))
            && node_name.starts_with(|first: char| first.is_ascii_alphanumeric())
            && node_name.ends_with(|last: char| last.is_ascii_alphanumeric());
        if !valid {
            bail!("node name {node_name:?} is not a DNS name; give another one with --node-name");
        }
        let kubeconfig = self.kubeconfig.clone().or(file.kubeconfig).or_else(default_kubeconfig);
        let kubeconfig = kubeconfig.filter(|path| !path.as_os_str().is_empty());
        let kubeconfig = kubeconfig.map(std::path::absolute).transpose().context("path of the kubeconfig")?;
        let derived = derived_port(&instance.name);
        let default = instance.name == DEFAULT_NAME;
        Ok(Settings {
            kubeconfig,
            address: self.address.or(file.address),
            node_name,
            api_port: self.api_port.or(file.api_port).unwrap_or(if default { 6443 } else { derived }),
            node_port: self.node_port.or(file.node_port).unwrap_or(if default { 10250 } else { derived + 1 }),
            etcd,
            access,
            protection,
            scheduler_config,
            static_pod_path,
            max_container_restart_period,
            oci_runtimes,
            images: self.images.resolve(file.images, &kubelet.images)?,
            node_config,
            kubelet,
            instance,
        })
    }

    /// Whom the API server believes besides its own authority.
    fn access(&self, file: &Self) -> Result<apiserver::Access> {
        let path = path_of;
        Ok(apiserver::Access {
            authentication_config: path(
                "--authentication-config",
                &self.authentication_config,
                &file.authentication_config,
            )?,
            token_webhook: path(
                "--authentication-token-webhook-config-file",
                &self.authentication_token_webhook_config_file,
                &file.authentication_token_webhook_config_file,
            )?,
            authorization_webhook: path(
                "--authorization-webhook-config-file",
                &self.authorization_webhook_config_file,
                &file.authorization_webhook_config_file,
            )?,
        })
    }

    /// Encryption at rest and auditing.
    fn protection(&self, file: &Self) -> Result<apiserver::Protection> {
        let policy = path_of("--audit-policy-file", &self.audit_policy_file, &file.audit_policy_file)?;
        let log = self.audit_log_path.as_ref().or(file.audit_log_path.as_ref());
        let log = match log {
            Some(stdout) if stdout.as_os_str() == "-" => Some(stdout.clone()),
            _ => path_of("--audit-log-path", &self.audit_log_path, &file.audit_log_path)?,
        };
        let webhook = path_of(
            "--audit-webhook-config-file",
            &self.audit_webhook_config_file,
            &file.audit_webhook_config_file,
        )?;
        if policy.is_none() && (log.is_some() || webhook.is_some()) {
            bail!(
                "an audit log or webhook is given, but nothing says what to audit; add --audit-policy-file"
            );
        }
        let number = |own: Option<u32>, file: Option<u32>| own.or(file).unwrap_or(0);
        Ok(apiserver::Protection {
            encryption_provider_config: path_of(
                "--encryption-provider-config",
                &self.encryption_provider_config,
                &file.encryption_provider_config,
            )?,
            admission_control_config_file: path_of(
                "--admission-control-config-file",
                &self.admission_control_config_file,
                &file.admission_control_config_file,
            )?,
            audit: apiserver::Audit {
                policy_file: policy,
                log_path: log,
                log_maxage: number(self.audit_log_maxage, file.audit_log_maxage),
                log_maxbackup: number(self.audit_log_maxbackup, file.audit_log_maxbackup),
                log_maxsize: number(self.audit_log_maxsize, file.audit_log_maxsize),
                webhook_config_file: webhook,
            },
        })
    }

    /// Further OCI runtimes by handler. Source of the names' form: `ValidateRuntimeClass`, RFC 1123's labels.
    fn oci_runtimes(&self, file: &Self) -> Result<BTreeMap<String, PathBuf>> {
        let given = if self.oci_runtimes.is_empty() { &file.oci_runtimes } else { &self.oci_runtimes };
        let mut runtimes = BTreeMap::new();
        for entry in given {
            let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            let parts = entry.split_once('=').filter(|(handler, program)| {
                !handler.is_empty() && handler.bytes().all(plain) && program.starts_with('/')
            });
            let Some((handler, program)) = parts else {
                bail!("--oci-runtimes {entry:?} is not of the form HANDLER=/PATH/OF/PROGRAM");
            };
            if runtimes.insert(handler.to_owned(), PathBuf::from(program)).is_some() {
                bail!("--oci-runtimes names {handler:?} twice");
            }
        }
        Ok(runtimes)
    }

    /// How etcd is reached, if it is the store.
    fn etcd(&self, file: &Self) -> Result<Option<EtcdAccess>> {
        let servers = if self.etcd_servers.is_empty() { &file.etcd_servers } else { &self.etcd_servers };
        if self.store.or(file.store).unwrap_or_default() == StoreKind::Embedded {
            if !servers.is_empty() {
                bail!("--etcd-servers is given, but the store is the embedded one; add --store etcd");
            }
            return Ok(None);
        }
        if servers.is_empty() {
            bail!("--store etcd needs --etcd-servers, such as --etcd-servers https://192.0.2.1:2379");
        }
        for url in servers {
            let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
            if rest.is_none_or(|rest| rest.is_empty() || rest.contains('@')) {
                bail!("--etcd-servers {url:?} is no URL such as https://192.0.2.1:2379");
            }
        }
        let path = |own: &Option<PathBuf>, file: &Option<PathBuf>| {
            own.as_ref()
                .or(file.as_ref())
                .map(std::path::absolute)
                .transpose()
                .context("path of a file for etcd")
        };
        let cert = path(&self.etcd_certfile, &file.etcd_certfile)?;
        let identity = match (cert, path(&self.etcd_keyfile, &file.etcd_keyfile)?) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => bail!("--etcd-certfile and --etcd-keyfile belong together"),
        };
        let ca = path(&self.etcd_cafile, &file.etcd_cafile)?;
        if identity.is_some() && ca.is_none() {
            bail!("--etcd-certfile needs --etcd-cafile: etcd is known by its authority");
        }
        Ok(Some(EtcdAccess { servers: servers.clone(), ca, identity }))
    }
}

/// Under this a running instance notes the digest of its node's configuration, beside its flags.
pub(crate) const NODE_CONFIG_DIGEST: &str = "digest of --node-config";

impl Settings {
    /// Directory of the manifests of static pods.
    pub(crate) fn static_pods(&self) -> Option<&PathBuf> {
        self.static_pod_path.as_ref().or(self.kubelet.static_pod_path.as_ref())
    }

    /// The longest wait for a restart.
    pub(crate) fn restart_period(&self) -> Duration {
        let own = self.max_container_restart_period.map(Duration::from_secs);
        own.or(self.kubelet.max_container_restart_period).unwrap_or(Duration::from_secs(RESTART_PERIOD_MAX))
    }

    /// What a running instance notes for a new `up`, which compares its own with that.
    pub(crate) fn noted(&self) -> BTreeMap<String, String> {
        let mut noted = self.facts();
        noted.insert(NODE_CONFIG_DIGEST.to_owned(), self.kubelet.digest.clone());
        noted
    }

    /// The settings as flags, but for what the node's configuration says: that is read anew by who starts with them.
    pub(crate) fn facts(&self) -> BTreeMap<String, String> {
        let text = |path: &Path| path.display().to_string();
        let etcd = self.etcd.as_ref();
        let file = |path: Option<&PathBuf>| path.map(|path| text(path)).unwrap_or_default();
        let identity = etcd.and_then(|etcd| etcd.identity.as_ref());
        let audit = &self.protection.audit;
        let count = |count: u64| if count == 0 { String::new() } else { count.to_string() };
        // The default says something over a node's configuration only.
        let period = self.max_container_restart_period;
        let period = period.filter(|period| *period != RESTART_PERIOD_MAX || self.node_config.is_some());
        let period = period.map(|period| period.to_string()).unwrap_or_default();
        let runtimes = self.oci_runtimes.iter();
        let runtimes: Vec<String> =
            runtimes.map(|(handler, program)| format!("{handler}={}", program.display())).collect();
        let mut facts = BTreeMap::from([
            ("--store".to_owned(), if etcd.is_some() { "etcd" } else { "" }.to_owned()),
            ("--etcd-servers".to_owned(), etcd.map(|etcd| etcd.servers.join(",")).unwrap_or_default()),
            ("--etcd-cafile".to_owned(), file(etcd.and_then(|etcd| etcd.ca.as_ref()))),
            ("--etcd-certfile".to_owned(), file(identity.map(|(cert, _)| cert))),
            ("--etcd-keyfile".to_owned(), file(identity.map(|(_, key)| key))),
            ("--authentication-config".to_owned(), file(self.access.authentication_config.as_ref())),
            (
                "--authentication-token-webhook-config-file".to_owned(),
                file(self.access.token_webhook.as_ref()),
            ),
            (
                "--authorization-webhook-config-file".to_owned(),
                file(self.access.authorization_webhook.as_ref()),
            ),
            (
                "--encryption-provider-config".to_owned(),
                file(self.protection.encryption_provider_config.as_ref()),
            ),
            (
                "--admission-control-config-file".to_owned(),
                file(self.protection.admission_control_config_file.as_ref()),
            ),
            ("--scheduler-config".to_owned(), file(self.scheduler_config.as_ref())),
            ("--static-pod-path".to_owned(), file(self.static_pod_path.as_ref())),
            ("--max-container-restart-period".to_owned(), period),
            ("--oci-runtimes".to_owned(), runtimes.join(",")),
            ("--node-config".to_owned(), file(self.node_config.as_ref())),
            ("--audit-policy-file".to_owned(), file(audit.policy_file.as_ref())),
            ("--audit-log-path".to_owned(), file(audit.log_path.as_ref())),
            ("--audit-log-maxage".to_owned(), count(audit.log_maxage.into())),
            ("--audit-log-maxbackup".to_owned(), count(audit.log_maxbackup.into())),
            ("--audit-log-maxsize".to_owned(), count(audit.log_maxsize.into())),
            ("--audit-webhook-config-file".to_owned(), file(audit.webhook_config_file.as_ref())),
            ("--data-dir".to_owned(), text(&self.instance.data_dir)),
            ("--run-dir".to_owned(), text(&self.instance.run_dir)),
            ("--kubeconfig".to_owned(), self.kubeconfig.as_deref().map(text).unwrap_or_default()),
            ("--address".to_owned(), self.address.map(|address| address.to_string()).unwrap_or_default()),
            ("--node-name".to_owned(), self.node_name.clone()),
            ("--api-port".to_owned(), self.api_port.to_string()),
            ("--node-port".to_owned(), self.node_port.to_string()),
        ]);
        facts.extend(self.images.facts.clone());
        facts
    }
}

/// The absolute path that a flag or the configuration file names.
fn path_of(flag: &str, own: &Option<PathBuf>, file: &Option<PathBuf>) -> Result<Option<PathBuf>> {
    let path = own.as_ref().or(file.as_ref()).filter(|path| !path.as_os_str().is_empty());
    path.map(std::path::absolute).transpose().with_context(|| format!("path of {flag}"))
}

fn read_config(path: &Path) -> Result<UpArgs> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("configuration file {}", path.display()))?;
    serde_yaml_ng::from_str(&text).with_context(|| format!("configuration file {}", path.display()))
}

/// The file that kubectl would write to.
pub(crate) fn default_kubeconfig() -> Option<PathBuf> {
    if let Some(list) = std::env::var_os("KUBECONFIG") {
        // kubectl writes to the first file of the list, too.
        return std::env::split_paths(&list).find(|path| !path.as_os_str().is_empty());
    }
    std::env::var_os("HOME").map(|home| Path::new(&home).join(".kube/config"))
}

/// The host's name in the form of a node's name.
fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase();
    if name.is_empty() || name == "(none)" { "localhost".into() } else { name }
}

/// An even port from 20,000 to 29,998 that depends on the name only (FNV-1a).
fn derived_port(name: &str) -> u16 {
    let hash =
        name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    20_000 + u16::try_from(hash % 5_000).unwrap_or(0) * 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(name: &str) -> Instance {
        Instance { name: name.into(), data_dir: "/d".into(), run_dir: "/r".into() }
    }

    #[test]
    fn the_first_instance_has_upstreams_ports_and_others_have_their_own() {
        let args = UpArgs { node_name: Some("n1".into()), ..UpArgs::default() };
        let first = args.resolve(instance(DEFAULT_NAME)).unwrap();
        assert_eq!((first.api_port, first.node_port), (6443, 10250));
        let other = args.resolve(instance("demo")).unwrap();
        assert_ne!(other.api_port, 6443);
        assert_eq!(other.node_port, other.api_port + 1);
    }

    #[test]
    fn settings_of_the_node_are_checked_and_compared() {
        let with = |period: u64| {
            let args = UpArgs {
                node_name: Some("n1".into()),
                static_pod_path: Some("/etc/manifests".into()),
                max_container_restart_period: Some(period),
                ..UpArgs::default()
            };
            args.resolve(instance("demo"))
        };
        let facts = with(60).unwrap().facts();
        assert_eq!(
            (facts["--max-container-restart-period"].as_str(), facts["--static-pod-path"].as_str()),
            ("60", "/etc/manifests")
        );
        for period in [0, 301] {
            assert!(with(period).unwrap_err().to_string().contains("is not between 1 and 300 seconds"));
        }
    }

    #[test]
    fn runtimes_are_named_with_their_programs() {
        let with = |entries: &[&str]| {
            let oci_runtimes = entries.iter().map(|entry| (*entry).to_owned()).collect();
            let args = UpArgs { node_name: Some("n1".into()), oci_runtimes, ..UpArgs::default() };
            args.resolve(instance("demo"))
        };
        let facts = with(&["runc=/usr/sbin/runc", "kata=/opt/kata"]).unwrap().facts();
        assert_eq!(facts["--oci-runtimes"], "kata=/opt/kata,runc=/usr/sbin/runc");
        for wrong in ["runc", "=/usr/sbin/runc", "runc=bin/runc", "Runc=/usr/sbin/runc"] {
            assert!(with(&[wrong]).unwrap_err().to_string().contains("HANDLER=/PATH"), "{wrong}");
        }
        assert!(with(&["a=/a", "a=/b"]).unwrap_err().to_string().contains("twice"));
    }

    #[test]
    fn the_nodes_configuration_is_taken_and_flags_win_over_it() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("kubelet.yaml");
        let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
        let body = "maxPods: 7\nstaticPodPath: pods\ncrashLoopBackOff: {maxContainerRestartPeriod: 60s}\n";
        std::fs::write(&file, format!("{head}{body}")).unwrap();
        let args = UpArgs {
            node_name: Some("n1".into()),
            node_config: Some(file.clone()),
            max_container_restart_period: Some(30),
            ..UpArgs::default()
        };
        let settings = args.resolve(instance("x")).unwrap();
        assert_eq!(
            (settings.kubelet.max_pods, settings.restart_period()),
            (Some(7), Duration::from_secs(30))
        );
        assert_eq!(settings.static_pods(), Some(&directory.path().join("pods")));
        assert_eq!(settings.facts()["--node-config"], file.display().to_string());
        let without = UpArgs { max_container_restart_period: None, ..args.clone() };
        assert_eq!(without.resolve(instance("x")).unwrap().restart_period(), Duration::from_secs(60));
        std::fs::write(&file, format!("{head}maxPod: 7\n")).unwrap();
        let error = format!("{:#}", args.resolve(instance("x")).unwrap_err());
        assert!(error.contains("kubelet.yaml: unknown field \"maxPod\""), "{error}");
    }

    /// A unit with these flags follows the file, and a change of it is seen beside a running instance.
    #[test]
    fn what_the_nodes_configuration_says_is_no_flag() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("kubelet.yaml");
        let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
        let with = |body: &str, period: Option<u64>| {
            std::fs::write(&file, format!("{head}{body}")).unwrap();
            let args = UpArgs {
                node_name: Some("n1".into()),
                node_config: Some(file.clone()),
                max_container_restart_period: period,
                ..UpArgs::default()
            };
            args.resolve(instance("x")).unwrap()
        };
        let said = "maxPods: 7\nstaticPodPath: pods\ncrashLoopBackOff: {maxContainerRestartPeriod: 60s}\n\
                    imageGCHighThresholdPercent: 90\n";
        let (first, edited) = (with(said, None), with("maxPods: 8\n", None));
        assert_eq!(first.facts(), edited.facts());
        for flag in ["--static-pod-path", "--max-container-restart-period", "--image-gc-high-threshold"] {
            assert_eq!(first.facts()[flag], "", "{flag}");
        }
        let changed = |one: &Settings, other: &Settings| one.noted() != other.noted();
        assert!(changed(&first, &edited) && !changed(&first, &with(said, None)));
        assert_eq!(with(said, Some(300)).facts()["--max-container-restart-period"], "300");
    }

    #[test]
    fn a_relative_kubeconfig_is_that_of_the_working_directory() {
        let args =
            UpArgs { kubeconfig: Some("config".into()), node_name: Some("n".into()), ..UpArgs::default() };
        let settings = args.resolve(instance("x")).unwrap();
        assert_eq!(settings.kubeconfig, Some(std::env::current_dir().unwrap().join("config")));
    }

    #[test]
    fn etcd_is_named_whole_or_not_at_all() {
        let etcd = |servers: &[&str]| UpArgs {
            store: Some(StoreKind::Etcd),
            etcd_servers: servers.iter().map(|url| (*url).to_owned()).collect(),
            node_name: Some("n".into()),
            ..UpArgs::default()
        };
        let settings = etcd(&["http://a:2379", "https://b:2379"]).resolve(instance("x")).unwrap();
        assert_eq!(settings.facts()["--etcd-servers"], "http://a:2379,https://b:2379");
        assert_eq!(settings.facts()["--store"], "etcd");
        let refused = |args: &UpArgs| format!("{:#}", args.resolve(instance("x")).unwrap_err());
        assert!(refused(&etcd(&[])).contains("--etcd-servers"));
        assert!(refused(&etcd(&["a:2379"])).contains("no URL"));
        let embedded = UpArgs { store: None, ..etcd(&["http://a:2379"]) };
        assert!(refused(&embedded).contains("--store etcd"));
        let half = UpArgs { etcd_certfile: Some("c".into()), ..etcd(&["https://a:2379"]) };
        assert!(refused(&half).contains("--etcd-keyfile"));
    }

    #[test]
    fn flags_win_over_the_file_and_unknown_keys_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("skiff.yaml");
        std::fs::write(&file, "apiPort: 7000\nnodePort: 7001\n").unwrap();
        let args = UpArgs {
            config: Some(file.clone()),
            api_port: Some(8000),
            node_name: Some("n".into()),
            ..UpArgs::default()
        };
        let settings = args.resolve(instance("x")).unwrap();
        assert_eq!((settings.api_port, settings.node_port), (8000, 7001));
        std::fs::write(&file, "apiPrt: 7000\n").unwrap();
        let error = format!("{:#}", args.resolve(instance("x")).unwrap_err());
        assert!(error.contains("apiPrt"), "{error}");
    }
}
