//! `build`, `images`, `load`, `save`, `pull`, `push`, `tag`, `rmi`.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use base::ignore::Ignore;
use base64::Engine as _;
use bytes::Bytes;
use clap::Args;
use futures::StreamExt;
use http::Method;
use http_body_util::BodyExt;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::ReaderStream;

use crate::engine::{Engine, empty, quote, streamed};
use crate::output::{self, Format};

const IGNORE_FILE: &str = ".dockerignore";

/// Arguments of `skiff build`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  skiff build -t me/app:v2 .")]
pub struct Build {
    /// Name of the result; may be repeated
    #[arg(short, long = "tag", value_name = "NAME[:TAG]")]
    pub tags: Vec<String>,
    /// The Dockerfile [default: PATH/Dockerfile]
    #[arg(short, long)]
    pub file: Option<PathBuf>,
    /// A build-time variable; without a value it is taken from the environment
    #[arg(long = "build-arg", value_name = "KEY[=VALUE]")]
    pub build_args: Vec<String>,
    /// The stage to stop at
    #[arg(long, default_value = "")]
    pub target: String,
    /// A label of the result
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<String>,
    /// Use no cache
    #[arg(long)]
    pub no_cache: bool,
    /// Ask the registries for newer base images
    #[arg(long)]
    pub pull: bool,
    /// Keep the host's certificate bundle out of RUN steps
    #[arg(long)]
    pub no_host_certs: bool,
    /// Print the image's id only
    #[arg(short, long)]
    pub quiet: bool,
    /// The build context
    pub path: PathBuf,
}

/// Arguments of `skiff images`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  skiff images -o json")]
pub struct List {
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

/// Arguments of `skiff load`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  skiff load -i app.tar")]
pub struct Load {
    /// The archive [default: standard input]
    #[arg(short, long)]
    pub input: Option<PathBuf>,
}

/// Arguments of `skiff import`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  skiff import rootfs.tar debian:bookworm-slim")]
pub struct Import {
    /// Archive of a root file system (`-`: standard input)
    pub file: PathBuf,
    /// Name of the image
    pub image: String,
}

/// Arguments of `skiff save`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  skiff save -f app.tar me/app:v2")]
pub struct Save {
    /// Where to write [default: standard output]
    #[arg(short = 'f', long = "file")]
    pub file: Option<PathBuf>,
    /// Images
    #[arg(required = true)]
    pub names: Vec<String>,
}

/// Arguments of `skiff pull`, `skiff push`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  skiff pull registry.example/app:v2")]
pub struct Transfer {
    /// The image
    pub image: String,
    /// User name at the registry; the password comes from SKIFF_REGISTRY_PASSWORD
    #[arg(long)]
    pub username: Option<String>,
}

/// Arguments of `skiff tag`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  skiff tag me/app:v2 me/app:latest")]
pub struct Tag {
    /// The image
    pub source: String,
    /// Its further name
    pub target: String,
}

/// Arguments of `skiff rmi`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  skiff rmi me/app:v1")]
pub struct Remove {
    /// Also where containers use it
    #[arg(short, long)]
    pub force: bool,
    /// Images
    #[arg(required = true)]
    pub names: Vec<String>,
}

/// Sends the context and prints the build's output; ends with the image's id.
pub async fn build(engine: &Engine, args: Build) -> Result<()> {
    if !args.path.is_dir() {
        bail!("build context {} is not a directory", args.path.display());
    }
    let dockerfile = dockerfile_in(&args.path, args.file.as_deref())?;
    let mut query = vec![format!("dockerfile={}", quote(&dockerfile)), "version=1".to_owned()];
    query.extend(args.tags.iter().map(|tag| format!("t={}", quote(tag))));
    query.push(format!(
        "buildargs={}",
        quote(&pairs(&args.build_args, |key| std::env::var(key).ok()).to_string())
    ));
    query.push(format!("labels={}", quote(&pairs(&args.labels, |_| Some(String::new())).to_string())));
    query.push(format!("target={}", quote(&args.target)));
    for (name, on) in [("nocache", args.no_cache), ("pull", args.pull), ("nohostcerts", args.no_host_certs)] {
        if on {
            query.push(format!("{name}=1"));
        }
    }
    let body = streamed(context_archive(args.path.clone(), PathBuf::from(&dockerfile)));
    let quiet = args.quiet;
    let mut id = String::new();
    let path = format!("/build?{}", query.join("&"));
    engine
        .documents(&path, "application/x-tar", body, |message| {
            if let Some(error) = message["error"].as_str() {
                bail!("build failed: {error}");
            }
            if let Some(built) = message["aux"]["ID"].as_str() {
                built.clone_into(&mut id);
            }
            match message["stream"].as_str() {
                Some(line) if !quiet => output::write_out(line),
                _ => Ok(()),
            }
        })
        .await?;
    if quiet { output::write_out(&format!("{id}\n")) } else { Ok(()) }
}

/// The Dockerfile's path relative to the context.
fn dockerfile_in(context: &Path, file: Option<&Path>) -> Result<String> {
    let Some(file) = file else { return Ok("Dockerfile".into()) };
    let file = file.canonicalize().with_context(|| format!("Dockerfile {}", file.display()))?;
    let context = context.canonicalize()?;
    let inside = file.strip_prefix(&context).with_context(|| {
        format!("Dockerfile {} must lie inside the context {}", file.display(), context.display())
    })?;
    Ok(inside.to_string_lossy().into_owned())
}

/// `KEY=VALUE` arguments as a JSON object; a bare key takes its value from `lookup` and is left out without one.
fn pairs(args: &[String], lookup: impl Fn(&str) -> Option<String>) -> Value {
    let pairs = args.iter().filter_map(|arg| match arg.split_once('=') {
        Some((key, value)) => Some((key.to_owned(), Value::from(value))),
        None => lookup(arg).map(|value| (arg.clone(), Value::from(value))),
    });
    Value::Object(pairs.collect())
}

/// The context as a stream of tar bytes, written by a thread of its own, without what `.dockerignore` leaves out.
fn context_archive(path: PathBuf, dockerfile: PathBuf) -> ReceiverStream<std::io::Result<Bytes>> {
    let (sender, receiver) = tokio::sync::mpsc::channel(16);
    // A blocking writer fits the tar library; the channel's bound is the back-pressure.
    tokio::task::spawn_blocking(move || {
        let mut archive =
            tar::Builder::new(std::io::BufWriter::with_capacity(64 * 1024, ChannelWriter(sender.clone())));
        archive.follow_symlinks(false);
        let result = pack_context(&mut archive, &path, &dockerfile).and_then(|()| {
            let mut writer = archive.into_inner()?;
            std::io::Write::flush(&mut writer)
        });
        if let Err(error) = result {
            let _ = sender.blocking_send(Err(error));
        }
    });
    ReceiverStream::new(receiver)
}

/// Writes a context. The builder needs the Dockerfile and `.dockerignore` themselves, whatever the latter says; it leaves
/// them out of what it copies.
fn pack_context<W: std::io::Write>(
    archive: &mut tar::Builder<W>,
    context: &Path,
    dockerfile: &Path,
) -> std::io::Result<()> {
    use std::os::unix::fs::FileTypeExt as _;
    let always = [dockerfile, Path::new(IGNORE_FILE)];
    let ignore = match std::fs::read_to_string(context.join(IGNORE_FILE)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ignore::default(),
        text => Ignore::parse(&text?),
    };
    let mut waiting = vec![PathBuf::new()];
    while let Some(below) = waiting.pop() {
        let path = context.join(&below);
        let is_root = below.as_os_str().is_empty();
        let excluded = !is_root && ignore.excludes(&below) && !always.contains(&below.as_path());
        let metadata = std::fs::symlink_metadata(&path)?;
        if metadata.is_dir() {
            let holds_more = ignore.has_exceptions() || always.iter().any(|file| file.starts_with(&below));
            if excluded && !holds_more {
                continue;
            }
            if !excluded && !is_root {
                archive.append_dir(&below, &path)?;
            }
            let mut names = Vec::new();
            for entry in std::fs::read_dir(&path)? {
                names.push(entry?.file_name());
            }
            names.sort_unstable();
            waiting.extend(names.into_iter().rev().map(|name| below.join(name)));
        } else if !excluded && !metadata.file_type().is_socket() {
            archive.append_path_with_name(&path, &below)?;
        }
    }
    Ok(())
}

struct ChannelWriter(tokio::sync::mpsc::Sender<std::io::Result<Bytes>>);

impl std::io::Write for ChannelWriter {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        let gone = |_| std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        self.0.blocking_send(Ok(Bytes::copy_from_slice(buffer))).map_err(gone)?;
        Ok(buffer.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Prints the images, newest first.
pub async fn list(engine: &Engine, args: List) -> Result<()> {
    let images: Vec<Value> = engine.call(Method::GET, "/images/json", None).await?;
    let now = Timestamp::now();
    let mut rows = Vec::new();
    for image in &images {
        let id = image["Id"].as_str().unwrap_or_default();
        let short = id.trim_start_matches("sha256:").get(..12).unwrap_or(id);
        let created = image["Created"].as_i64().and_then(|at| Timestamp::from_second(at).ok());
        let tags: Vec<&str> =
            image["RepoTags"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let tags = if tags.is_empty() { vec!["<none>:<none>"] } else { tags };
        for tag in tags {
            let (name, tag) = tag.rsplit_once(':').unwrap_or((tag, ""));
            let size = output::size(image["Size"].as_u64().unwrap_or(0));
            rows.push(vec![name.into(), tag.into(), short.into(), output::age(created, now), size]);
        }
    }
    output::print(args.output, &images, &["REPOSITORY", "TAG", "IMAGE ID", "AGE", "SIZE"], &rows)
}

/// Loads an archive.
pub async fn load(engine: &Engine, args: Load) -> Result<()> {
    let body = archive_body(args.input.as_deref()).await?;
    engine.documents("/images/load?quiet=1", "application/x-tar", body, print_message).await
}

/// Makes an image from a root file system archive.
pub async fn import(engine: &Engine, args: Import) -> Result<()> {
    let file = (args.file != Path::new("-")).then_some(args.file.as_path());
    let body = archive_body(file).await?;
    let path = format!("/images/create?fromSrc=-&repo={}", quote(&args.image));
    engine.documents(&path, "application/x-tar", body, print_message).await
}

async fn archive_body(input: Option<&Path>) -> Result<crate::engine::Body> {
    match input {
        Some(path) => {
            let file =
                tokio::fs::File::open(path).await.with_context(|| format!("open {}", path.display()))?;
            Ok(streamed(ReaderStream::with_capacity(file, 256 * 1024)))
        }
        None if std::io::stdin().is_terminal() => {
            bail!("no archive: give one with -i FILE, or pipe it into standard input")
        }
        None => Ok(streamed(ReaderStream::with_capacity(tokio::io::stdin(), 256 * 1024))),
    }
}

/// Writes images into an archive.
pub async fn save(engine: &Engine, args: Save) -> Result<()> {
    if args.file.is_none() && std::io::stdout().is_terminal() {
        bail!("an archive is not for the terminal: give a file with -f FILE, or redirect");
    }
    let names: Vec<String> = args.names.iter().map(|name| format!("names={}", quote(name))).collect();
    let path = format!("/images/get?{}", names.join("&"));
    let response = engine.request(Method::GET, &path, "application/json", empty()).await?;
    let mut body = response.into_body().into_data_stream();
    let mut target: Box<dyn tokio::io::AsyncWrite + Unpin> = match &args.file {
        Some(path) => Box::new(
            tokio::fs::File::create(path).await.with_context(|| format!("create {}", path.display()))?,
        ),
        None => Box::new(tokio::io::stdout()),
    };
    while let Some(chunk) = body.next().await {
        target.write_all(&chunk?).await?;
    }
    Ok(target.flush().await?)
}

/// Pulls an image.
pub async fn pull(engine: &Engine, args: Transfer) -> Result<()> {
    let path = format!("/images/create?fromImage={}", quote(&args.image));
    transfer(engine, &path, &args).await
}

/// Pushes an image.
pub async fn push(engine: &Engine, args: Transfer) -> Result<()> {
    let path = format!("/images/{}/push", quote(&args.image));
    transfer(engine, &path, &args).await
}

async fn transfer(engine: &Engine, path: &str, args: &Transfer) -> Result<()> {
    let Some(username) = &args.username else {
        return engine.documents(path, "application/json", empty(), print_message).await;
    };
    let password =
        std::env::var("SKIFF_REGISTRY_PASSWORD").context("set SKIFF_REGISTRY_PASSWORD for --username")?;
    let auth = json!({"username": username, "password": password}).to_string();
    let auth = base64::engine::general_purpose::URL_SAFE.encode(auth);
    engine.documents_with_auth(path, &auth, print_message).await
}

/// Gives an image one more name.
pub async fn tag(engine: &Engine, args: Tag) -> Result<()> {
    let (repo, tag) = split_tag(&args.target);
    let path = format!("/images/{}/tag?repo={}&tag={}", quote(&args.source), quote(repo), quote(tag));
    engine.call::<Value>(Method::POST, &path, None).await.map(drop)
}

/// The repository and the tag of a name; a colon before the last slash belongs to a port.
fn split_tag(name: &str) -> (&str, &str) {
    match name.rsplit_once(':') {
        Some((repo, tag)) if !tag.contains('/') => (repo, tag),
        _ => (name, "latest"),
    }
}

/// Takes names away.
pub async fn remove(engine: &Engine, args: Remove) -> Result<()> {
    for name in &args.names {
        let path = format!("/images/{}?force={}", quote(name), u8::from(args.force));
        let done: Vec<Value> = engine.call(Method::DELETE, &path, None).await?;
        for step in done {
            for verb in ["Untagged", "Deleted"] {
                if let Some(what) = step[verb].as_str() {
                    output::write_out(&format!("{verb}: {what}\n"))?;
                }
            }
        }
    }
    Ok(())
}

/// Prints one message of a transfer: lines to standard output, moving progress to a terminal only.
#[allow(clippy::needless_pass_by_value, reason = "the signature of a message handler")]
fn print_message(message: Value) -> Result<()> {
    if let Some(error) = message["error"].as_str() {
        bail!("{error}");
    }
    if let Some(line) = message["stream"].as_str() {
        return output::write_out(line);
    }
    let status = message["status"].as_str().unwrap_or_default();
    if status.is_empty() || message["progressDetail"]["current"].is_u64() {
        return Ok(());
    }
    match message["id"].as_str() {
        Some(id) if !id.is_empty() => output::write_out(&format!("{id}: {status}\n")),
        _ => output::write_out(&format!("{status}\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_travels_without_what_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        for file in
            ["Dockerfile", "main.py", "node_modules/a/b.js", "docs/a.md", "docs/README.md", "empty/x.log"]
        {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        let packed = |dockerfile: &str| {
            let mut archive = tar::Builder::new(Vec::new());
            pack_context(&mut archive, dir.path(), Path::new(dockerfile)).unwrap();
            let bytes = archive.into_inner().unwrap();
            let mut archive = tar::Archive::new(bytes.as_slice());
            let entries = archive.entries().unwrap();
            let path = |entry: std::io::Result<tar::Entry<'_, _>>| {
                entry.unwrap().path().unwrap().display().to_string()
            };
            let names: Vec<String> =
                entries.map(path).map(|name| name.trim_end_matches('/').to_owned()).collect();
            names
        };
        assert_eq!(packed("Dockerfile").len(), 10, "everything, with the directories");
        let rules = "node_modules\n**/*.md\n!docs/README.md\n*.log\n**/*.log\nDockerfile\n.dockerignore\n";
        std::fs::write(dir.path().join(IGNORE_FILE), rules).unwrap();
        let kept = [".dockerignore", "Dockerfile", "docs", "docs/README.md", "empty", "main.py"];
        assert_eq!(packed("Dockerfile"), kept);
        std::fs::write(dir.path().join(IGNORE_FILE), "*\n").unwrap();
        assert_eq!(
            packed("docs/a.md"),
            [".dockerignore", "docs/a.md"],
            "what the builder needs is sent anyway"
        );
    }

    #[test]
    fn a_port_is_no_tag() {
        assert_eq!(split_tag("localhost:5000/app"), ("localhost:5000/app", "latest"));
        assert_eq!(split_tag("localhost:5000/app:v1"), ("localhost:5000/app", "v1"));
    }

    #[test]
    fn bare_build_arguments_come_from_the_environment() {
        let args = ["A=1".to_owned(), "B".to_owned(), "C".to_owned()];
        let found = pairs(&args, |key| (key == "B").then(|| "2".to_owned()));
        assert_eq!(found, json!({"A": "1", "B": "2"}));
    }
}
