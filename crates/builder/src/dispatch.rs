//! Carries a plan out: one image per instruction, from the cache where it has one.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use engine_api::{BuildRequest, Runtime};
use image::{ContainerConfig, Digest, History, ImageDocument, NewImage, PackedLayer, Reference, Store};
use serde_json::json;
use tokio::sync::mpsc;

use crate::Error;
use crate::add::{self, Download, Origin};
use crate::config;
use crate::expand::expand;
use crate::parser::{self, Command, Instruction, Step};
use crate::plan::{Base, Plan, plan};
use crate::run::{Job, blocking};
use crate::service::{Events, Host, is_proxy};

const DOCKERFILE_BYTES_MAX: u64 = 4 << 20;
const DOWNLOAD_CONNECT_MAX: Duration = Duration::from_secs(20);
/// A server that sends nothing for so long is dead.
const DOWNLOAD_SILENCE_MAX: Duration = Duration::from_secs(60);
/// Changes when what a key stands for changes: old entries then mean nothing.
const CACHE_VERSION: u32 = 2;

/// One build.
pub(crate) struct Build {
    store: Store,
    runtime: Arc<dyn Runtime>,
    host: Host,
    events: Events,
    request: BuildRequest,
    /// Images of other builds that were asked for, by name: each means one thing throughout a build.
    bases: tokio::sync::Mutex<BTreeMap<String, image::Image>>,
}

/// A stage while it is built, and its result.
#[derive(Clone, Default)]
pub(crate) struct Stage {
    /// The image so far; `None` on scratch.
    image: Option<Digest>,
    document: ImageDocument,
    /// Arguments declared so far that have a value.
    arguments: BTreeMap<String, String>,
    /// This stage has set a CMD, which ENTRYPOINT then leaves alone.
    cmd_set: bool,
}

/// What does not change from step to step.
struct Progress {
    plan: Plan,
    total: usize,
    current: usize,
    results: BTreeMap<usize, Stage>,
    /// Names of arguments that some stage declared.
    consumed: BTreeSet<String>,
}

impl Build {
    pub(crate) fn new(
        store: Store,
        runtime: Arc<dyn Runtime>,
        host: Host,
        events: Events,
        request: BuildRequest,
    ) -> Self {
        Self { store, runtime, host, events, request, bases: tokio::sync::Mutex::default() }
    }

    /// Builds; answers the image's id.
    pub(crate) async fn run(&self) -> Result<Digest, Error> {
        let _lease = self.store.lease();
        let tags: Vec<Reference> =
            self.request.tags.iter().map(|tag| Reference::parse(tag)).collect::<Result<_, _>>()?;
        let text = self.read_dockerfile().await?;
        let mut plan = plan(parser::parse(&text)?, &self.request.build_args, &self.request.target)?;
        self.add_labels(&mut plan);
        self.follow_triggers(&mut plan).await?;
        let total = plan.step_count();
        let mut progress =
            Progress { plan, total, current: 0, results: BTreeMap::new(), consumed: BTreeSet::new() };
        for number in progress.plan.needed.clone() {
            let stage = self.stage(&mut progress, number).await?;
            progress.results.insert(number, stage);
        }
        let built = progress.results.remove(&progress.plan.target).and_then(|stage| stage.image);
        let id = built.ok_or_else(|| {
            Error::invalid("no image was generated: the Dockerfile adds nothing to scratch")
        })?;
        self.warn_unused(&progress).await?;
        let (store, image) = (self.store.clone(), id.clone());
        // Unpacked now, so that the first container starts at once.
        blocking(move || Ok(store.unpacked(&image).map(drop)?)).await?;
        self.events.output(format!("Successfully built {}\n", short(&id))).await?;
        for tag in tags {
            let (store, image, name) = (self.store.clone(), id.clone(), tag.to_string());
            blocking(move || Ok(store.tag(image.as_str(), &name)?)).await?;
            self.events.output(format!("Successfully tagged {}\n", tag.familiar())).await?;
        }
        Ok(id)
    }

    async fn read_dockerfile(&self) -> Result<String, Error> {
        let name = match self.request.dockerfile.as_str() {
            "" => "Dockerfile".to_owned(),
            name => name.to_owned(),
        };
        let context = self.request.context.clone();
        blocking(move || {
            let fail = |error| Error::io(format!("failed to read dockerfile {name}"), error);
            let root = image::root::Root::open(&context).map_err(fail)?;
            let mut text = String::new();
            let file = root.file(&image::root::clean(Path::new(&name))).map_err(fail)?;
            file.take(DOCKERFILE_BYTES_MAX).read_to_string(&mut text).map_err(fail)?;
            Ok(text)
        })
        .await
    }

    /// `--label` is a last instruction.
    fn add_labels(&self, plan: &mut Plan) {
        if self.request.labels.is_empty() {
            return;
        }
        let quote = |text: &str| format!("'{}'", text.replace('\'', "'\\''"));
        let labels: Vec<_> =
            self.request.labels.iter().map(|(key, value)| (quote(key), quote(value))).collect();
        let text =
            labels.iter().fold("LABEL".to_owned(), |text, (key, value)| format!("{text} {key}={value}"));
        let step = Step { line: 0, text, instruction: Instruction::Label(labels) };
        plan.stages[plan.target].steps.push(step);
    }

    /// Looks into the base images for triggers that copy from stages that nothing else needs.
    async fn follow_triggers(&self, plan: &mut Plan) -> Result<(), Error> {
        let mut looked = BTreeSet::new();
        // Where every stage up to the target is built anyway, there is nothing to look for.
        while plan.needed.len() <= plan.target {
            let Some(number) = plan.needed.iter().copied().find(|number| looked.insert(*number)) else {
                break;
            };
            if let Base::Image(name) = plan.stages[number].base.clone() {
                let image = self.base_image(&name).await?;
                let triggers: Vec<Step> = parse_triggers(&image.document.config.on_build, plan.escape)?;
                plan.need_for(number, &triggers);
            }
        }
        Ok(())
    }

    async fn stage(&self, progress: &mut Progress, number: usize) -> Result<Stage, Error> {
        let from = progress.plan.stages[number].clone();
        self.announce(progress, &from.from.text).await?;
        check_platform(from.platform.as_deref())?;
        let mut stage = match &from.base {
            Base::Scratch => Stage { document: scratch(), ..Stage::default() },
            Base::Stage(base) => {
                let base = progress.results.get(base).cloned().unwrap_or_default();
                Stage { arguments: BTreeMap::new(), cmd_set: false, ..base }
            }
            Base::Image(name) => {
                let image = self.base_image(name).await?;
                Stage { image: Some(image.id), document: image.document, ..Stage::default() }
            }
        };
        let triggers = std::mem::take(&mut stage.document.config.on_build);
        stage.document = config::inherit(&stage.document);
        self.events.output(format!(" ---> {}\n", stage.image.as_ref().map_or("", short))).await?;
        if !triggers.is_empty() {
            let plural = if triggers.len() == 1 { "" } else { "s" };
            self.events.output(format!("# Executing {} build trigger{plural}\n", triggers.len())).await?;
        }
        progress.total += triggers.len();
        for step in &parse_triggers(&triggers, progress.plan.escape)? {
            self.step(progress, number, &mut stage, step).await?;
        }
        for step in &from.steps {
            self.step(progress, number, &mut stage, step).await?;
        }
        Ok(stage)
    }

    async fn announce(&self, progress: &mut Progress, text: &str) -> Result<(), Error> {
        progress.current += 1;
        self.events.output(format!("Step {}/{} : {text}\n", progress.current, progress.total)).await
    }

    async fn step(
        &self,
        progress: &mut Progress,
        number: usize,
        stage: &mut Stage,
        step: &Step,
    ) -> Result<(), Error> {
        self.announce(progress, &step.text).await?;
        let escape = progress.plan.escape;
        match &step.instruction {
            Instruction::Run(command) => self.run_command(stage, command).await?,
            Instruction::Copy(transfer) => {
                self.transfer(progress, number, stage, step, transfer, false).await?
            }
            Instruction::Add(transfer) => {
                self.transfer(progress, number, stage, step, transfer, true).await?
            }
            Instruction::Workdir(path) => {
                stage.set_working_dir(path, step, escape)?;
                self.working_dir(stage).await?;
            }
            Instruction::Arg(pairs) => {
                self.declare(progress, stage, pairs, step)?;
                self.configured(stage, step, &step.text).await?;
            }
            _ => {
                let told = stage.describe(step, escape)?;
                stage.configure(step, escape)?;
                self.configured(stage, step, &told).await?;
            }
        }
        let id = stage.image.as_ref().map_or("", short);
        self.events.output(format!(" ---> {id}\n")).await
    }

    fn declare(
        &self,
        progress: &mut Progress,
        stage: &mut Stage,
        pairs: &[(String, Option<String>)],
        step: &Step,
    ) -> Result<(), Error> {
        for (name, default) in pairs {
            let default =
                default.as_deref().map(|text| stage.replace(text, progress.plan.escape, step)).transpose()?;
            let given = self.request.build_args.get(name).cloned();
            let value = given.or(default).or_else(|| progress.plan.arguments.get(name).cloned());
            progress.consumed.insert(name.clone());
            if let Some(value) = value {
                stage.arguments.insert(name.clone(), value);
            }
        }
        Ok(())
    }

    /// Commits an instruction that changed the configuration only. `told` is what the history says of it.
    async fn configured(&self, stage: &mut Stage, step: &Step, told: &str) -> Result<(), Error> {
        let what = json!(["config", step.text, stage.document.config]);
        if self.try_cache(stage, &what).await? {
            return Ok(());
        }
        self.commit(stage, format!("/bin/sh -c #(nop)  {told}"), None, &what).await
    }

    async fn working_dir(&self, stage: &mut Stage) -> Result<(), Error> {
        let path = stage.document.config.working_dir.clone();
        let what = json!(["workdir", path, stage.document.config]);
        if self.try_cache(stage, &what).await? {
            return Ok(());
        }
        let (store, parent) = (self.store.clone(), self.parent(stage).await?);
        let layer = blocking(move || add::make_directory(&store, &parent, &path)).await?;
        let told = format!("/bin/sh -c #(nop) WORKDIR {}", stage.document.config.working_dir);
        self.commit(stage, told, layer, &what).await
    }

    async fn run_command(&self, stage: &mut Stage, command: &Command) -> Result<(), Error> {
        let command = config::command_line(&stage.document.config, command);
        let env = &stage.document.config;
        // ENV wins over ARG; proxies are there without a declaration and count for no cache.
        let arguments: Vec<String> = stage
            .arguments
            .iter()
            .filter(|(name, _)| config::env(env, name).is_none() && !is_proxy(name))
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let surroundings = (self.request.no_network, &self.request.extra_hosts);
        let what = json!(["run", command, arguments, surroundings]);
        if self.try_cache(stage, &what).await? {
            return Ok(());
        }
        let proxies = self.request.build_args.iter().filter(|(name, _)| is_proxy(name));
        let mut environment: Vec<String> = proxies.map(|(name, value)| format!("{name}={value}")).collect();
        environment.extend(arguments.iter().cloned());
        let image = self.parent(stage).await?;
        let job = Job {
            store: &self.store,
            runtime: &self.runtime,
            host: &self.host,
            events: &self.events,
            image: &image,
            command: command.clone(),
            environment,
            host_certs: !self.request.no_host_certs,
            network: !self.request.no_network,
            extra_hosts: &self.request.extra_hosts,
            context: &self.request.context,
        };
        let layer = job.run().await?;
        let count = arguments.len();
        let prefix = if count == 0 { String::new() } else { format!("|{count} {} ", arguments.join(" ")) };
        let layer = Some(layer).filter(|layer| !layer.empty);
        self.commit(stage, format!("{prefix}{}", command.join(" ")), layer, &what).await
    }

    async fn transfer(
        &self,
        progress: &Progress,
        number: usize,
        stage: &mut Stage,
        step: &Step,
        written: &parser::Transfer,
        is_add: bool,
    ) -> Result<(), Error> {
        let escape = progress.plan.escape;
        let origin = match &written.from {
            None => Origin::Context(self.request.context.clone()),
            Some(name) => match progress.plan.stage(number, name) {
                Some(other) => {
                    let built = progress.results.get(&other).and_then(|stage| stage.image.clone());
                    Origin::Image(
                        built.ok_or_else(|| Error::invalid(format!("stage {name} holds nothing to copy")))?,
                    )
                }
                None => Origin::Image(self.base_image(name).await?.id),
            },
        };
        let replace = |text: &String| stage.replace(text, escape, step);
        let mut sources = Vec::new();
        let mut downloads = Vec::new();
        for source in written.sources.iter().map(replace) {
            match source? {
                url if is_add && (url.starts_with("http://") || url.starts_with("https://")) => {
                    let fetched = self.events.unless_closed(download(&url, &self.request.context)).await?;
                    downloads.push(fetched?);
                }
                path => sources.push(path),
            }
        }
        let mut documents = written.documents.clone();
        for document in documents.iter_mut().filter(|document| document.expands) {
            document.content = stage.replace_text(&document.content, escape, step)?;
        }
        let destination = replace(&written.destination)?;
        let transfer = add::Transfer {
            origin,
            sources,
            documents,
            downloads,
            destination: absolute(&stage.document.config, &destination),
            chown: written.chown.as_ref().map(replace).transpose()?,
            chmod: written.chmod.as_ref().map(replace).transpose()?,
            unpacks: is_add,
        };
        let keyword = if is_add { "ADD" } else { "COPY" };
        let failed = move |error| match error {
            Error::Invalid(message) => Error::Invalid(format!("{keyword} failed: {message}")),
            other => other,
        };
        let store = self.store.clone();
        let (transfer, files, sum) = blocking(move || {
            let files = transfer.find(&store).map_err(failed)?;
            let sum = transfer.sum(&files)?;
            Ok((transfer, files, sum))
        })
        .await?;
        let what = json!([keyword, sum]);
        if self.try_cache(stage, &what).await? {
            return Ok(());
        }
        let (store, parent) = (self.store.clone(), self.parent(stage).await?);
        let layer = blocking(move || transfer.apply(&store, &parent, &files).map_err(failed)).await?;
        let created_by = format!("/bin/sh -c #(nop) {keyword} multi:{sum} in {destination} ");
        self.commit(stage, created_by, Some(layer).filter(|layer| !layer.empty), &what).await
    }

    /// Takes a step's image from the cache, if it is there.
    async fn try_cache(&self, stage: &mut Stage, what: &serde_json::Value) -> Result<bool, Error> {
        if self.request.no_cache {
            return Ok(false);
        }
        let (store, key) = (self.store.clone(), cache_key(stage, what));
        let found = blocking(move || {
            let id = store.cached(&key);
            // An image that was removed meanwhile is made again.
            Ok(id.and_then(|id| store.image(&id).ok()))
        })
        .await?;
        let Some(image) = found else { return Ok(false) };
        self.events.output(" ---> Using cache\n".to_owned()).await?;
        stage.image = Some(image.id);
        stage.document = image.document;
        Ok(true)
    }

    async fn commit(
        &self,
        stage: &mut Stage,
        created_by: String,
        layer: Option<PackedLayer>,
        what: &serde_json::Value,
    ) -> Result<(), Error> {
        let now = image::document::timestamp();
        let mut document = stage.document.clone();
        document.created = Some(now.clone());
        document.history.push(History {
            created: Some(now),
            created_by,
            empty_layer: layer.is_none(),
            ..History::default()
        });
        let key = cache_key(stage, what);
        let parent = stage.image.clone();
        let new = NewImage { parent, document: document.clone(), layer, cache_key: Some(key) };
        let store = self.store.clone();
        stage.image = Some(blocking(move || Ok(store.create(new)?)).await?);
        stage.document = document;
        Ok(())
    }

    /// The image so far; on scratch, one without layers.
    async fn parent(&self, stage: &mut Stage) -> Result<Digest, Error> {
        if let Some(image) = &stage.image {
            return Ok(image.clone());
        }
        let (store, document) = (self.store.clone(), stage.document.clone());
        let id = blocking(move || Ok(store.create(NewImage { document, ..NewImage::default() })?)).await?;
        stage.image = Some(id.clone());
        Ok(id)
    }

    /// An image by name: from the store, or pulled where it is absent (or came from a registry and `--pull` asks).
    async fn base_image(&self, name: &str) -> Result<image::Image, Error> {
        let mut bases = self.bases.lock().await;
        if let Some(known) = bases.get(name) {
            return Ok(known.clone());
        }
        let image = self.find_image(name).await?;
        bases.insert(name.to_owned(), image.clone());
        Ok(image)
    }

    async fn find_image(&self, name: &str) -> Result<image::Image, Error> {
        let (store, wanted) = (self.store.clone(), name.to_owned());
        let found = blocking(move || match store.resolve(&wanted) {
            Ok(found) => Ok(Some(found)),
            Err(image::Error::NotFound(_)) => Ok(None),
            Err(error) => Err(error.into()),
        })
        .await?;
        match found {
            Some(found) if !(self.request.pull && found.origin == image::Origin::Registry) => Ok(found.image),
            _ => self.pull(name).await,
        }
    }

    async fn pull(&self, name: &str) -> Result<image::Image, Error> {
        let (sender, mut receiver) = mpsc::channel::<image::Progress>(64);
        let tell = async {
            while let Some(step) = receiver.recv().await {
                if step.total == 0 {
                    let id = if step.id.is_empty() { String::new() } else { format!("{}: ", step.id) };
                    self.events.output(format!("{id}{}\n", step.status)).await?;
                }
            }
            Ok::<(), Error>(())
        };
        let domain = Reference::parse(name)?.domain;
        let credentials = self.request.registry_auth.get(&domain).map(|auth| image::Credentials {
            username: auth.username.clone(),
            password: auth.password.clone(),
        });
        let pull = futures::future::join(self.store.pull(name, credentials, sender), tell);
        let (id, told) = self.events.unless_closed(pull).await?;
        let id = id?;
        told?;
        let store = self.store.clone();
        blocking(move || Ok(store.image(&id)?)).await
    }

    async fn warn_unused(&self, progress: &Progress) -> Result<(), Error> {
        let known = |name: &String| {
            progress.consumed.contains(name) || progress.plan.arguments.contains_key(name) || is_proxy(name)
        };
        let unused: Vec<&str> =
            self.request.build_args.keys().filter(|name| !known(name)).map(String::as_str).collect();
        if unused.is_empty() {
            return Ok(());
        }
        self.events.output(format!("[Warning] One or more build-args {unused:?} were not consumed\n")).await
    }
}

impl Stage {
    /// A stage of a configuration alone.
    pub(crate) fn of(document: ImageDocument) -> Self {
        Self { document, ..Self::default() }
    }

    /// The configuration so far.
    pub(crate) fn into_document(self) -> ImageDocument {
        self.document
    }

    /// Replaces variables: those of ENV win over arguments.
    fn replace(&self, text: &str, escape: char, step: &Step) -> Result<String, Error> {
        let lookup = |name: &str| {
            let env = config::env(&self.document.config, name).map(str::to_owned);
            env.or_else(|| self.arguments.get(name).cloned())
        };
        expand(text, escape, &lookup).map_err(|message| Error::Parse { line: step.line, message })
    }

    /// Replaces variables in a document, whose quotes are text.
    fn replace_text(&self, text: &str, escape: char, step: &Step) -> Result<String, Error> {
        let quoted: String = text
            .chars()
            .flat_map(|c| match c {
                '\'' | '"' => vec![escape, c],
                c => vec![c],
            })
            .collect();
        self.replace(&quoted, escape, step)
    }

    /// An instruction as the history shows it: with the values that its variables have here.
    fn describe(&self, step: &Step, escape: char) -> Result<String, Error> {
        let replaced = |text: &String| self.replace(text, escape, step);
        let pairs = |pairs: &[(String, String)]| {
            let pair =
                |(key, value): &(String, String)| Ok(format!("{}={}", replaced(key)?, replaced(value)?));
            pairs.iter().map(pair).collect::<Result<Vec<_>, Error>>()
        };
        let words = |words: &[String]| words.iter().map(replaced).collect::<Result<Vec<_>, Error>>();
        Ok(match &step.instruction {
            Instruction::Env(list) => format!("ENV {}", pairs(list)?.join(" ")),
            Instruction::Label(list) => format!("LABEL {}", pairs(list)?.join(" ")),
            Instruction::Expose(ports) => format!("EXPOSE {}", words(ports)?.join(" ")),
            Instruction::Volume(paths) => format!("VOLUME [{}]", words(paths)?.join(" ")),
            Instruction::User(user) => format!("USER {}", replaced(user)?),
            Instruction::StopSignal(signal) => format!("STOPSIGNAL {}", replaced(signal)?),
            _ => step.text.clone(),
        })
    }

    /// Carries the configuration's side of WORKDIR out.
    pub(crate) fn set_working_dir(&mut self, path: &str, step: &Step, escape: char) -> Result<(), Error> {
        let path = self.replace(path, escape, step)?;
        self.document.config.working_dir = config::working_dir(&self.document.config, &path);
        Ok(())
    }

    /// Carries out an instruction that only changes the configuration.
    pub(crate) fn configure(&mut self, step: &Step, escape: char) -> Result<(), Error> {
        let replace = |stage: &Self, text: &str| stage.replace(text, escape, step);
        match &step.instruction {
            Instruction::Env(pairs) => {
                // All of one instruction see the values from before it.
                let before = self.clone();
                for (key, value) in pairs {
                    let (key, value) = (replace(&before, key)?, replace(&before, value)?);
                    config::set_env(&mut self.document.config.env, &key, &value);
                }
            }
            Instruction::Label(pairs) => {
                for (key, value) in pairs {
                    let (key, value) = (replace(self, key)?, replace(self, value)?);
                    self.document.config.labels.insert(key, value);
                }
            }
            Instruction::Cmd(command) => {
                self.document.config.cmd = Some(config::command_line(&self.document.config, command));
                self.cmd_set = true;
            }
            Instruction::Entrypoint(command) => {
                self.document.config.entrypoint = Some(config::command_line(&self.document.config, command));
                if !self.cmd_set {
                    self.document.config.cmd = None;
                }
            }
            Instruction::Expose(ports) => {
                for port in ports {
                    let port = replace(self, port)?;
                    port.split_whitespace()
                        .try_for_each(|port| config::expose(&mut self.document.config, port))?;
                }
            }
            Instruction::Volume(paths) => {
                for path in paths {
                    let path = replace(self, path)?;
                    self.document.config.volumes.insert(path, json!({}));
                }
            }
            Instruction::User(user) => self.document.config.user = replace(self, user)?,
            Instruction::Shell(shell) => self.document.config.shell = Some(shell.clone()),
            Instruction::StopSignal(signal) => self.document.config.stop_signal = replace(self, signal)?,
            Instruction::Healthcheck(check) => {
                self.document.config.healthcheck = Some(config::healthcheck(check)?);
            }
            Instruction::Onbuild { text, .. } => self.document.config.on_build.push(text.clone()),
            Instruction::Maintainer(name) => self.document.author = name.clone(),
            // Those that do more than configure are carried out elsewhere; FROM starts a stage and is never a step.
            Instruction::From { .. }
            | Instruction::Run(_)
            | Instruction::Arg(_)
            | Instruction::Workdir(_)
            | Instruction::Copy(_)
            | Instruction::Add(_) => {}
        }
        Ok(())
    }
}

fn parse_triggers(texts: &[String], escape: char) -> Result<Vec<Step>, Error> {
    texts.iter().map(|text| parser::parse_step(text, escape)).collect()
}

fn scratch() -> ImageDocument {
    let host = image::document::Platform::host();
    ImageDocument { architecture: host.architecture, os: host.os, ..ImageDocument::default() }
}

fn check_platform(platform: Option<&str>) -> Result<(), Error> {
    let host = image::document::Platform::host();
    let here = format!("{}/{}", host.os, host.architecture);
    match platform {
        Some(wanted) if wanted != here && wanted != host.os && !wanted.starts_with(&format!("{here}/")) => {
            Err(Error::invalid(format!("platform {wanted} cannot be built on this machine, which is {here}")))
        }
        _ => Ok(()),
    }
}

/// A destination from the root on; a final slash stays, because it says that this is a directory.
fn absolute(config: &ContainerConfig, destination: &str) -> String {
    let joined = Path::new("/").join(&config.working_dir).join(destination);
    let cleaned = format!("/{}", image::root::clean(&joined).display());
    let is_directory = destination.ends_with('/') || destination == "." || destination.ends_with("/.");
    if is_directory && cleaned != "/" { format!("{cleaned}/") } else { cleaned }
}

fn cache_key(stage: &Stage, what: &serde_json::Value) -> String {
    let parent = stage.image.as_ref().map_or("scratch", Digest::as_str);
    Digest::of(json!([CACHE_VERSION, parent, what]).to_string().as_bytes()).to_string()
}

fn short(id: &Digest) -> &str {
    &id.hex()[..12]
}

/// Fetches a file for ADD; it is kept without a name beside the context.
async fn download(url: &str, context: &Path) -> Result<Download, Error> {
    use std::io::Write;
    let fail =
        |error: reqwest::Error| Error::invalid(format!("ADD failed: {url}: {}", base::error::chain(&error)));
    let client = reqwest::Client::builder()
        .connect_timeout(DOWNLOAD_CONNECT_MAX)
        .read_timeout(DOWNLOAD_SILENCE_MAX)
        .build()
        .map_err(fail)?;
    let mut answer =
        client.get(url).send().await.and_then(reqwest::Response::error_for_status).map_err(fail)?;
    let name = answer.url().path_segments().and_then(|mut parts| parts.next_back().map(str::to_owned));
    let name = name.filter(|name| !name.is_empty() && name != "." && name != "..").ok_or_else(|| {
        Error::invalid(format!(
            "ADD failed: cannot determine a file name from {url}: give one in the destination"
        ))
    })?;
    let modified = answer.headers().get("last-modified").and_then(|value| value.to_str().ok());
    let modified = modified.and_then(|text| jiff::fmt::rfc2822::parse(text).ok());
    let modified = modified.map_or(0, |time| time.timestamp().as_second());
    let io = |error| Error::io("keep a download", error);
    let mut file = tempfile::tempfile_in(context).map_err(io)?;
    while let Some(chunk) = answer.chunk().await.map_err(fail)? {
        file.write_all(&chunk).map_err(io)?;
    }
    Ok(Download { name, file, modified })
}

#[cfg(test)]
#[path = "dispatch_tests.rs"]
mod tests;
