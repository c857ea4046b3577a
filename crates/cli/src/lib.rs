//! Commands and output. Images and containers are spoken of through the Docker Engine API on Skiff's socket, the rest
//! through the Kubernetes API: nothing here knows the inside of the daemon.

pub mod access;
pub mod claim;
pub mod cluster;
pub mod containers;
pub mod debug;
pub mod engine;
pub mod images;
pub mod instance;
pub mod output;
pub mod remote;
pub mod service;
pub mod streams;
pub mod target;
pub mod terminal;
pub mod token;
pub mod version;
pub mod why;

use anyhow::Result;
use clap::Subcommand;

use crate::engine::Engine;
use crate::instance::Instance;

/// Commands that speak to a running instance.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the running instance
    Status(cluster::Status),
    /// Run the installed kubectl with this instance's kubeconfig
    Kubectl(cluster::Kubectl),
    /// Print the administrator's kubeconfig
    Kubeconfig(cluster::Kubeconfig),
    /// Show where Services can be reached
    Service(service::Service),
    /// Explain what keeps a pod from running, and what to do
    Why(why::Why),
    /// Look into the platform itself
    Debug(debug::Debug),
    /// Make, list and delete tokens with which other machines join
    Token(token::Token),
    /// Build an image from a Dockerfile
    Build(images::Build),
    /// List images
    Images(images::List),
    /// Load images from an archive
    Load(images::Load),
    /// Make an image from a root file system archive
    Import(images::Import),
    /// Write images into an archive
    Save(images::Save),
    /// Pull an image from its registry
    Pull(images::Transfer),
    /// Push an image to its registry
    Push(images::Transfer),
    /// Give an image one more name
    Tag(images::Tag),
    /// Take names of images away
    Rmi(images::Remove),
    /// Run a container
    Run(containers::Run),
    /// List containers
    Ps(containers::Ps),
    /// Print the log of a container or a pod
    Logs(streams::Logs),
    /// Run a command in a container or a pod
    Exec(streams::Exec),
    /// Stop containers
    Stop(containers::Stop),
    /// Remove containers
    Rm(containers::Rm),
    /// Show the versions of this program and of the cluster
    Version(version::Version),
}

/// Runs a command; answers with the exit code of the process.
pub async fn run(command: Command, instance: &Instance) -> Result<u8> {
    let engine = Engine::of(instance);
    match command {
        Command::Status(args) => cluster::status(instance, &args)?,
        Command::Kubectl(args) => cluster::kubectl(instance, &args)?,
        Command::Kubeconfig(_) => cluster::kubeconfig(instance)?,
        Command::Service(args) => service::run(instance, args).await?,
        Command::Why(args) => why::run(instance, &engine, &args).await?,
        Command::Debug(args) => debug::run(instance, args).await?,
        Command::Token(args) => token::run(instance, args).await?,
        Command::Build(args) => images::build(&engine, args).await?,
        Command::Images(args) => images::list(&engine, args).await?,
        Command::Load(args) => images::load(&engine, args).await?,
        Command::Import(args) => images::import(&engine, args).await?,
        Command::Save(args) => images::save(&engine, args).await?,
        Command::Pull(args) => images::pull(&engine, args).await?,
        Command::Push(args) => images::push(&engine, args).await?,
        Command::Tag(args) => images::tag(&engine, args).await?,
        Command::Rmi(args) => images::remove(&engine, args).await?,
        Command::Run(args) => return containers::run(&engine, args).await,
        Command::Ps(args) => containers::ps(&engine, args).await?,
        Command::Logs(args) => streams::logs(instance, &engine, &args).await?,
        Command::Exec(args) => return streams::exec(instance, &engine, args).await,
        Command::Stop(args) => containers::stop(&engine, args).await?,
        Command::Rm(args) => containers::rm(&engine, args).await?,
        Command::Version(args) => version::run(instance, &args).await?,
    }
    Ok(0)
}
