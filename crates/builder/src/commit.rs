//! An image of what a container changed: its files as a layer, its settings as the configuration. Blocks.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use engine_api::{CommitRequest, ContainerSpec};
use image::{ContainerConfig, Digest, History, ImageDocument, NewImage, Reference, Store};

use crate::Error;
use crate::config;
use crate::dispatch::Stage;
use crate::parser::{self, Instruction};

/// Makes the image and names it.
pub(crate) fn commit(
    store: &Store,
    container: &ContainerSpec,
    request: &CommitRequest,
) -> Result<Digest, Error> {
    let name = match request.reference.as_str() {
        "" => None,
        name => Some(Reference::parse(name)?),
    };
    // Nothing of it is collected before the image has it.
    let _lease = store.lease();
    let parent = store.image(&Digest::parse(&container.image_id)?)?;
    let mut document = parent.document;
    overlay(&mut document.config, container);
    // What ran, not what containers of the image will run.
    let created_by = command(&document.config).join(" ");
    let mut document = changed(document, &request.changes)?;
    let layer = store.diff_without(&container.id, &mount_points(store, &parent.id, container)?)?;
    let layer = Some(layer).filter(|layer| !layer.empty);
    let now = image::document::timestamp();
    document.author.clone_from(&request.author);
    document.created = Some(now.clone());
    document.history.push(History {
        created: Some(now),
        created_by,
        author: request.author.clone(),
        comment: request.comment.clone(),
        empty_layer: layer.is_none(),
    });
    let id = store.create(NewImage { parent: Some(parent.id), document, layer, cache_key: None })?;
    if let Some(name) = name {
        store.tag(id.as_str(), &name.to_string())?;
    }
    Ok(id)
}

/// A container's settings over its image's.
fn overlay(config: &mut ContainerConfig, container: &ContainerSpec) {
    let list = |words: &[String]| Some(words.to_vec()).filter(|words| !words.is_empty());
    if !container.entrypoint.is_empty() {
        config.entrypoint = list(&container.entrypoint);
        config.cmd = list(&container.args);
    } else if !container.args.is_empty() {
        config.cmd = list(&container.args);
    }
    for line in &container.env {
        let (key, value) = line.split_once('=').unwrap_or((line, ""));
        config::set_env(&mut config.env, key, value);
    }
    for (of_container, of_image) in [
        (&container.working_dir, &mut config.working_dir),
        (&container.user.spec, &mut config.user),
        (&container.stop_signal, &mut config.stop_signal),
    ] {
        if !of_container.is_empty() {
            of_image.clone_from(of_container);
        }
    }
    config.labels.clone_from(&container.labels);
}

/// The document after instructions that change only the configuration.
fn changed(document: ImageDocument, changes: &[String]) -> Result<ImageDocument, Error> {
    const ESCAPE: char = '\\';
    let mut stage = Stage::of(document);
    for text in changes.iter().filter(|text| !text.trim().is_empty()) {
        let step = parser::parse_step(text, ESCAPE)
            .map_err(|error| Error::invalid(format!("change {text:?}: {error}")))?;
        match &step.instruction {
            Instruction::Workdir(path) => stage.set_working_dir(path, &step, ESCAPE)?,
            Instruction::From { .. }
            | Instruction::Run(_)
            | Instruction::Arg(_)
            | Instruction::Copy(_)
            | Instruction::Add(_)
            | Instruction::Maintainer(_) => {
                let keyword = text.split_whitespace().next().unwrap_or_default();
                return Err(Error::invalid(format!("{keyword} is not a valid change command")));
            }
            _ => stage.configure(&step, ESCAPE)?,
        }
    }
    Ok(stage.into_document())
}

/// Where the container's mounts needed files that the image lacks.
fn mount_points(
    store: &Store,
    image: &Digest,
    container: &ContainerSpec,
) -> Result<BTreeSet<PathBuf>, Error> {
    let view = store.view(image)?;
    let point = |target: &Path| {
        view.follow(target).map_err(|error| Error::io(format!("follow {}", target.display()), error))
    };
    container.mounts.iter().map(|mount| point(&mount.target)).collect()
}

fn command(config: &ContainerConfig) -> Vec<String> {
    [&config.entrypoint, &config.cmd].into_iter().flatten().flatten().cloned().collect()
}
