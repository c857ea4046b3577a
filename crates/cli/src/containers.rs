//! `run`, `ps`, and the engine's side of `logs` and `exec`, `stop`, `rm`.

use anyhow::{Context, Result, bail};
use clap::Args;
use futures::StreamExt;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use crate::engine::{Engine, Refused, empty, quote};
use crate::output::{self, Format};
use crate::terminal;

/// Arguments of `skiff run`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  skiff run --rm -it debian:bookworm-slim bash")]
pub struct Run {
    /// Leave it running and print its id
    #[arg(short, long)]
    pub detach: bool,
    /// Keep standard input open
    #[arg(short, long)]
    pub interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Remove it when it has ended
    #[arg(long)]
    pub rm: bool,
    /// Its name
    #[arg(long = "container-name", value_name = "NAME", default_value = "")]
    pub container: String,
    /// An environment variable
    #[arg(short, long = "env", value_name = "KEY[=VALUE]")]
    pub env: Vec<String>,
    /// A mount: host path, path inside, and `ro` to forbid writing
    #[arg(short, long = "volume", value_name = "HOST:INSIDE[:ro]")]
    pub volumes: Vec<String>,
    /// A port of the machine that leads to the container's: `8080:80`, `127.0.0.1:8080:80/tcp`, or `80` for a free one
    #[arg(short, long = "publish", value_name = "[[IP:]PORT:]INSIDE[/PROTOCOL]", value_parser = binding)]
    pub publish: Vec<Binding>,
    /// Working directory
    #[arg(short, long, default_value = "")]
    pub workdir: String,
    /// User
    #[arg(short, long, default_value = "")]
    pub user: String,
    /// Entry point in place of the image's
    #[arg(long)]
    pub entrypoint: Option<String>,
    /// `host` shares the machine's network
    #[arg(long, default_value = "bridge")]
    pub network: String,
    /// All capabilities and devices
    #[arg(long)]
    pub privileged: bool,
    /// The image
    pub image: String,
    /// Command and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// A published port, as Docker's API takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    inside: String,
    ip: String,
    port: String,
}

fn binding(text: &str) -> Result<Binding, String> {
    let (address, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let mut parts = address.rsplitn(3, ':');
    let (inside, port, ip) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
    let is_port = |text: &str| text.parse::<u16>().is_ok_and(|port| port > 0);
    let free = |port: &&str| !port.is_empty();
    if !is_port(inside) || port.filter(free).is_some_and(|port| !is_port(port)) {
        return Err("use PORT:INSIDE, such as 8080:80".into());
    }
    let text = |part: Option<&str>| part.unwrap_or_default().to_owned();
    Ok(Binding { inside: format!("{inside}/{protocol}"), ip: text(ip), port: text(port) })
}

/// `PortBindings` and `ExposedPorts`.
fn port_bindings(bindings: &[Binding]) -> (Value, Value) {
    let mut bound = serde_json::Map::new();
    for Binding { inside, ip, port } in bindings {
        let list = bound.entry(inside.clone()).or_insert_with(|| json!([]));
        if let Some(list) = list.as_array_mut() {
            list.push(json!({ "HostIp": ip, "HostPort": port }));
        }
    }
    let exposed: serde_json::Map<_, _> = bound.keys().map(|inside| (inside.clone(), json!({}))).collect();
    (bound.into(), exposed.into())
}

/// Arguments of `skiff ps`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  skiff ps -a")]
pub struct Ps {
    /// Ended ones too
    #[arg(short, long)]
    pub all: bool,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

/// Arguments of `skiff stop`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  skiff stop -t 3 web")]
pub struct Stop {
    /// Seconds before it is killed
    #[arg(short, long, default_value_t = 10)]
    pub time: u32,
    /// Containers
    #[arg(required = true)]
    pub names: Vec<String>,
}

/// Arguments of `skiff rm`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  skiff rm -f web")]
pub struct Rm {
    /// Kill it if it runs
    #[arg(short, long)]
    pub force: bool,
    /// Containers
    #[arg(required = true)]
    pub names: Vec<String>,
}

/// Runs a container; answers with its exit code.
pub async fn run(engine: &Engine, args: Run) -> Result<u8> {
    let id = create(engine, &args).await?;
    if args.detach {
        start(engine, &id).await?;
        output::write_out(&format!("{id}\n"))?;
        return Ok(0);
    }
    // Attached before the start and waiting before the start, so that neither output nor exit can be missed.
    let stdin = args.interactive;
    let path = format!("/containers/{id}/attach?stream=1&stdout=1&stderr=1&stdin={}", u8::from(stdin));
    let stream = engine.hijack(&path, None).await?;
    let condition = if args.rm { "removed" } else { "next-exit" };
    let wait_path = format!("/containers/{id}/wait?condition={condition}");
    let wait = engine.request(Method::POST, &wait_path, "application/json", empty()).await?;
    start(engine, &id).await?;
    let resize = format!("/containers/{id}/resize");
    connect(engine, stream, stdin, args.tty, &resize).await?;
    let bytes = wait.into_body().collect().await?.to_bytes();
    let answer: Value = serde_json::from_slice(&bytes).context("the engine's answer to wait")?;
    if let Some(error) = answer["Error"]["Message"].as_str().filter(|message| !message.is_empty()) {
        bail!("{error}");
    }
    Ok(exit_code(&answer["StatusCode"]))
}

fn exit_code(value: &Value) -> u8 {
    value.as_i64().and_then(|code| u8::try_from(code & 0xff).ok()).unwrap_or(1)
}

async fn create(engine: &Engine, args: &Run) -> Result<String> {
    let env: Vec<String> = args
        .env
        .iter()
        .filter_map(|pair| match pair.contains('=') {
            true => Some(pair.clone()),
            false => std::env::var(pair).ok().map(|value| format!("{pair}={value}")),
        })
        .collect();
    let attached = !args.detach;
    let (bindings, exposed) = port_bindings(&args.publish);
    let body = json!({
        "Image": args.image, "Cmd": args.command, "Env": env, "Tty": args.tty, "OpenStdin": args.interactive,
        "StdinOnce": args.interactive && attached, "AttachStdin": args.interactive && attached,
        "AttachStdout": attached, "AttachStderr": attached, "WorkingDir": args.workdir, "User": args.user,
        "ExposedPorts": exposed,
        "Entrypoint": args.entrypoint.as_ref().map(|program| vec![program]),
        "HostConfig": {
            "AutoRemove": args.rm, "NetworkMode": args.network, "Privileged": args.privileged, "Binds": args.volumes,
            "PortBindings": bindings,
        },
    });
    let path = match args.container.is_empty() {
        true => "/containers/create".to_owned(),
        false => format!("/containers/create?name={}", quote(&args.container)),
    };
    let mut answer = engine.call::<Value>(Method::POST, &path, Some(&body)).await;
    if answer.as_ref().is_err_and(|error| is_status(error, StatusCode::NOT_FOUND)) {
        output::progress(&format!("{} is not here: pulling it", args.image));
        let pull = format!("/images/create?fromImage={}", quote(&args.image));
        let failed = |message: Value| match message["error"].as_str() {
            Some(error) => bail!("{error}"),
            None => Ok(()),
        };
        engine.documents(&pull, "application/json", empty(), failed).await?;
        answer = engine.call(Method::POST, &path, Some(&body)).await;
    }
    let answer = answer?;
    answer["Id"].as_str().map(str::to_owned).context("the engine gave no container id")
}

/// Whether an error is the engine's answer with that status.
pub fn is_status(error: &anyhow::Error, status: StatusCode) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|refused| refused.status == status)
}

async fn start(engine: &Engine, id: &str) -> Result<()> {
    engine.call::<Value>(Method::POST, &format!("/containers/{id}/start"), None).await.map(drop)
}

/// Joins the user's terminal or pipes with a hijacked stream until the other side ends it.
async fn connect<S>(engine: &Engine, stream: S, stdin: bool, tty: bool, resize: &str) -> Result<()>
where
    S: AsyncRead + tokio::io::AsyncWrite + Send + 'static,
{
    let _raw = if stdin && tty { terminal::Raw::enter()? } else { None };
    let (reader, mut writer) = tokio::io::split(stream);
    let input = async move {
        if stdin {
            let mut source = tokio::io::stdin();
            let _ = tokio::io::copy(&mut source, &mut writer).await;
            let _ = writer.shutdown().await;
        }
        // The connection's write half stays open: ending it early would end the other direction as well.
        std::future::pending::<()>().await;
    };
    let output = async { if tty { copy_raw(reader).await } else { demultiplex(reader).await } };
    tokio::select! {
        result = output => result,
        () = input => Ok(()),
        () = follow_size(engine, resize), if tty => Ok(()),
    }
}

/// Tells the engine the terminal's size, now and at every change.
async fn follow_size(engine: &Engine, path: &str) {
    let Ok(mut resizes) = terminal::resizes() else { return std::future::pending().await };
    loop {
        if let Some((rows, columns)) = terminal::size() {
            // A process that is about to end cannot be resized, and need not be.
            let _ = engine.call::<Value>(Method::POST, &format!("{path}?h={rows}&w={columns}"), None).await;
        }
        resizes.recv().await;
    }
}

async fn copy_raw(mut reader: impl AsyncRead + Unpin) -> Result<()> {
    let mut out = tokio::io::stdout();
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = reader.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        out.write_all(&buffer[..read]).await?;
        out.flush().await?;
    }
}

/// Splits Docker's multiplexed stream: frames of `[stream, 0, 0, 0, length as u32 big-endian]` and payload.
async fn demultiplex(mut reader: impl AsyncRead + Unpin) -> Result<()> {
    let (mut out, mut err) = (tokio::io::stdout(), tokio::io::stderr());
    let mut header = [0; 8];
    let mut buffer = vec![0; 16 * 1024];
    loop {
        match reader.read_exact(&mut header).await {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other.map(drop)?,
        }
        let mut left = u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize;
        while left > 0 {
            let chunk = left.min(buffer.len());
            reader.read_exact(&mut buffer[..chunk]).await?;
            if header[0] == 2 {
                err.write_all(&buffer[..chunk]).await?;
                err.flush().await?;
            } else {
                out.write_all(&buffer[..chunk]).await?;
                out.flush().await?;
            }
            left -= chunk;
        }
    }
}

/// Prints containers.
pub async fn ps(engine: &Engine, args: Ps) -> Result<()> {
    let path = format!("/containers/json?all={}", u8::from(args.all));
    let containers: Vec<Value> = engine.call(Method::GET, &path, None).await?;
    let now = Timestamp::now();
    let rows: Vec<Vec<String>> = containers
        .iter()
        .map(|container| {
            let text = |field: &str| container[field].as_str().unwrap_or_default().to_owned();
            let created = container["Created"].as_i64().and_then(|at| Timestamp::from_second(at).ok());
            let name = container["Names"][0].as_str().unwrap_or_default().trim_start_matches('/').to_owned();
            let id = text("Id").chars().take(12).collect();
            let ports = ports(&container["Ports"]);
            vec![id, text("Image"), text("Command"), output::age(created, now), text("Status"), ports, name]
        })
        .collect();
    output::print(
        args.output,
        &containers,
        &["CONTAINER ID", "IMAGE", "COMMAND", "AGE", "STATUS", "PORTS", "NAME"],
        &rows,
    )
}

/// `0.0.0.0:8080->80/tcp`, one after the other.
fn ports(list: &Value) -> String {
    let shown = list.as_array().into_iter().flatten().filter_map(|port| {
        let (ip, protocol) = (port["IP"].as_str()?, port["Type"].as_str()?);
        Some(format!("{ip}:{}->{}/{protocol}", port["PublicPort"], port["PrivatePort"]))
    });
    shown.collect::<Vec<_>>().join(", ")
}

/// Whether the engine has a container of that name or id.
pub async fn exists(engine: &Engine, name: &str) -> Result<bool> {
    match engine.call::<Value>(Method::GET, &format!("/containers/{}/json", quote(name)), None).await {
        Ok(_) => Ok(true),
        Err(error) if is_status(&error, StatusCode::NOT_FOUND) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Which part of a log.
#[derive(Debug, Clone, Default)]
pub struct LogOptions {
    /// Go on with what is written from now on.
    pub follow: bool,
    /// So many of the last lines.
    pub tail: Option<u64>,
    /// Not older; seconds since 1970.
    pub since: Option<i64>,
    /// With the time of each line.
    pub timestamps: bool,
}

/// Prints a container's log.
pub async fn logs(engine: &Engine, name: &str, options: &LogOptions) -> Result<()> {
    let tail = options.tail.map_or_else(|| "all".to_owned(), |lines| lines.to_string());
    let quoted = quote(name);
    let container: Value = engine.call(Method::GET, &format!("/containers/{quoted}/json"), None).await?;
    let path = format!(
        "/containers/{quoted}/logs?stdout=1&stderr=1&follow={}&tail={tail}&since={}&timestamps={}",
        u8::from(options.follow),
        options.since.unwrap_or(0),
        u8::from(options.timestamps)
    );
    let response = engine.request(Method::GET, &path, "application/json", empty()).await?;
    let body = response.into_body().into_data_stream().map(|chunk| chunk.map_err(std::io::Error::other));
    let reader = tokio_util::io::StreamReader::new(body);
    if container["Config"]["Tty"].as_bool() == Some(true) {
        copy_raw(reader).await
    } else {
        demultiplex(reader).await
    }
}

/// What to run inside a container.
#[derive(Debug, Clone)]
pub struct ExecCommand {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Pass standard input on.
    pub stdin: bool,
    /// Give it a terminal.
    pub tty: bool,
}

/// Runs a command inside a container; answers with its exit code.
pub async fn exec(engine: &Engine, name: &str, exec: &ExecCommand) -> Result<u8> {
    let body = json!({
        "AttachStdin": exec.stdin, "AttachStdout": true, "AttachStderr": true, "Tty": exec.tty, "Cmd": exec.command,
    });
    let created: Value =
        engine.call(Method::POST, &format!("/containers/{}/exec", quote(name)), Some(&body)).await?;
    let id = created["Id"].as_str().context("the engine gave no exec id")?.to_owned();
    let start = json!({"Detach": false, "Tty": exec.tty});
    let stream = engine.hijack(&format!("/exec/{id}/start"), Some(&start)).await?;
    connect(engine, stream, exec.stdin, exec.tty, &format!("/exec/{id}/resize")).await?;
    let ended: Value = engine.call(Method::GET, &format!("/exec/{id}/json"), None).await?;
    Ok(exit_code(&ended["ExitCode"]))
}

/// Stops containers.
pub async fn stop(engine: &Engine, args: Stop) -> Result<()> {
    for name in &args.names {
        engine
            .call::<Value>(Method::POST, &format!("/containers/{}/stop?t={}", quote(name), args.time), None)
            .await?;
        output::write_out(&format!("{name}\n"))?;
    }
    Ok(())
}

/// Removes containers.
pub async fn rm(engine: &Engine, args: Rm) -> Result<()> {
    for name in &args.names {
        let path = format!("/containers/{}?force={}", quote(name), u8::from(args.force));
        engine.call::<Value>(Method::DELETE, &path, None).await?;
        output::write_out(&format!("{name}\n"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_given_as_docker_takes_them() {
        let (bindings, exposed) =
            port_bindings(&["8080:80", "127.0.0.1:81:80/tcp", "53/udp"].map(|text| binding(text).unwrap()));
        assert_eq!(bindings["80/tcp"][0], json!({"HostIp": "", "HostPort": "8080"}));
        assert_eq!(bindings["80/tcp"][1], json!({"HostIp": "127.0.0.1", "HostPort": "81"}));
        assert_eq!(bindings["53/udp"], json!([{"HostIp": "", "HostPort": ""}]));
        assert_eq!(exposed["53/udp"], json!({}));
        for text in ["", "http", "80:http", "http:80", "0:80", "8080:"] {
            assert!(binding(text).is_err(), "{text}");
        }
        let shown = json!([{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"}]);
        assert_eq!(ports(&shown), "0.0.0.0:8080->80/tcp");
    }
}
