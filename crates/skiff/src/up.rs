//! `skiff up`: starts the daemon apart from the terminal, shows its progress, and returns when the node is Ready.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use cli::instance::Running;
use cli::output;

use crate::daemon::lock;
use crate::membership::Membership;
use crate::report::{Report, Reporter};
use crate::settings::{NODE_CONFIG_DIGEST, Settings, UpArgs};

/// The daemon's log is started anew beyond this size; the one before is kept as `.1`.
const LOG_MAX_BYTES: u64 = 10 * 1024 * 1024;

/// A daemon that is ending, or was killed, has this many seconds to be gone.
const ENDING_MAX_S: i64 = 10;

/// Runs `up`.
pub(crate) fn run(args: &UpArgs, settings: Settings) -> Result<u8> {
    if !rustix::process::geteuid().is_root() {
        bail!(
            "skiff up needs root: it makes namespaces, mounts and network rules. Run: sudo {}",
            settings.instance.command("up")
        );
    }
    if let Some(running) = settings.instance.running() {
        same_settings(&running, &settings)?;
        output::write_out(&format!(
            "instance {:?} is already running\n{}",
            settings.instance.name,
            summary(&running)
        ))?;
        return Ok(0);
    }
    crate::rootless::settle()?;
    crate::home::check(&settings.instance)?;
    if let Some(pid) = lock::holder(&settings.instance.data_dir)?
        && !lock::ended_within(pid, ENDING_MAX_S)?
    {
        bail!(
            "a daemon of instance {:?} (process {pid}) is starting or stopping; try again, or end it with: skiff down",
            settings.instance.name
        );
    }
    check_ports(&settings)?;
    if let Some(path) = &settings.kubeconfig
        && Membership::load(&settings.instance)?.is_none()
    {
        crate::kubeconfig::check(path, &settings.instance.name)?;
    }
    if args.foreground {
        if args.report {
            // A session of its own: the terminal's hang-up and Ctrl-C are not the daemon's. And no directory of the
            // user's is held; what the settings name is absolute by now.
            rustix::process::setsid().context("leave the terminal's session")?;
            std::env::set_current_dir("/").context("leave the working directory")?;
        }
        let reporter = if args.report { Reporter::Parent } else { Reporter::Terminal };
        return crate::daemon::run(settings, reporter).map(|()| 0);
    }
    start_and_follow(&settings, &std::env::args_os().skip(1).collect::<Vec<_>>())
}

/// Starts the daemon with these arguments apart from the terminal, and follows it until it is ready.
pub(crate) fn start_and_follow(settings: &Settings, arguments: &[OsString]) -> Result<u8> {
    crate::home::take_data(settings)?;
    let mut child = start(&settings.instance.log_file(), arguments)?;
    let running = follow(&mut child, settings)?;
    output::write_out(&summary(&running))?;
    Ok(0)
}

/// The arguments of `up` that say these settings, whatever the environment and the host say later.
pub(crate) fn arguments(settings: &Settings) -> Vec<OsString> {
    let mut all: Vec<OsString> = vec!["up".into(), "--name".into(), settings.instance.name.clone().into()];
    for (flag, value) in settings.facts() {
        // No address means to follow the host's; no kubeconfig has to be said, else there is a default.
        if !value.is_empty() || flag == "--kubeconfig" {
            all.extend([flag.into(), value.into()]);
        }
    }
    all
}

/// Whether the ports are free, before anything is made on the host.
fn check_ports(settings: &Settings) -> Result<()> {
    if settings.api_port == settings.node_port {
        bail!("--api-port and --node-port are both {}; choose two ports", settings.api_port);
    }
    let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    crate::ports::check(&[(any(settings.api_port), "--api-port"), (any(settings.node_port), "--node-port")])
}

/// Names the first setting in which a running instance differs.
fn same_settings(running: &Running, wanted: &Settings) -> Result<()> {
    let has = |name: &str| running.settings.get(name).and_then(|value| value.as_str());
    let instance = &wanted.instance;
    for (flag, value) in wanted.facts() {
        let has = has(&flag).unwrap_or_default();
        if has != value {
            bail!(
                "instance {:?} is already running with {flag} {has:?}, not {value:?}; stop it first with: {}",
                instance.name,
                instance.command("down")
            );
        }
    }
    // One that an earlier version started has not noted it.
    if has(NODE_CONFIG_DIGEST).is_some_and(|has| has != wanted.kubelet.digest) {
        let file = wanted.node_config.as_deref().unwrap_or(Path::new(""));
        bail!(
            "instance {:?} is already running, and {} has changed since it was started; stop it first with: {}",
            instance.name,
            file.display(),
            instance.command("down")
        );
    }
    Ok(())
}

/// Starts this program once more as the daemon, with its log in a file.
fn start(log: &Path, arguments: &[OsString]) -> Result<Child> {
    let directory = log.parent().context("the log has no directory")?;
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    if fs::metadata(log).is_ok_and(|metadata| metadata.len() > LOG_MAX_BYTES) {
        fs::rename(log, log.with_extension("log.1")).context("rotate the log")?;
    }
    let file = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(log)
        .with_context(|| format!("open {}", log.display()))?;
    let program = std::env::current_exe().context("find this program")?;
    Command::new(program)
        .args(arguments)
        .args(["--foreground", "--report"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(file)
        .spawn()
        .context("start the daemon")
}

/// Shows the daemon's reports until it is ready.
fn follow(child: &mut Child, settings: &Settings) -> Result<Running> {
    let log = settings.instance.log_file();
    let out = child.stdout.take().context("the daemon has no standard output")?;
    for line in BufReader::new(out).lines() {
        let line = line.context("read the daemon's report")?;
        match serde_json::from_str::<Report>(&line) {
            Ok(Report::Progress(step)) => output::progress(&step),
            Ok(Report::Ready(running)) => return Ok(*running),
            Ok(Report::Failed(why)) => return Err(anyhow!(why)),
            Err(_) => {}
        }
    }
    let status = child.wait().context("wait for the daemon")?;
    bail!("the daemon ended before it was ready ({status}); its log is {}", log.display())
}

/// What a person wants to know first.
fn summary(running: &Running) -> String {
    let context = running.kubeconfig.display();
    format!(
        "node        {} ({})\napi         {}\nkubeconfig  {context}\n\nTry:  skiff kubectl get nodes\n",
        running.node, running.address, running.api
    )
}

#[cfg(test)]
mod tests {
    use cli::instance::Instance;

    use super::*;

    #[test]
    fn a_running_instance_is_asked_for_its_flags_and_for_the_nodes_configuration() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("kubelet.yaml");
        let with = |max_pods: u32, api_port: u16| {
            let text = format!(
                "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nmaxPods: {max_pods}\n\
                 imageMaximumGCAge: 24h\n"
            );
            fs::write(&file, text).unwrap();
            let args = UpArgs {
                node_name: Some("n1".into()),
                api_port: Some(api_port),
                node_config: Some(file.clone()),
                ..UpArgs::default()
            };
            let instance = Instance { name: "x".into(), data_dir: "/d".into(), run_dir: "/r".into() };
            args.resolve(instance).unwrap()
        };
        let running = |settings: serde_json::Value| Running {
            pid: 1,
            pid_start: 1,
            version: String::new(),
            api: String::new(),
            node: "n1".into(),
            address: String::new(),
            kubeconfig: "/k".into(),
            settings,
        };
        let noted = running(serde_json::to_value(with(7, 7000).noted()).unwrap());
        same_settings(&noted, &with(7, 7000)).unwrap();
        let told = |wanted: &Settings| same_settings(&noted, wanted).unwrap_err().to_string();
        assert!(told(&with(8, 7000)).contains("kubelet.yaml has changed since it was started"));
        assert!(told(&with(8, 7001)).contains("already running with --api-port \"7000\", not \"7001\""));
        let earlier = running(serde_json::to_value(with(7, 7000).facts()).unwrap());
        same_settings(&earlier, &with(8, 7000)).unwrap();
    }
}
