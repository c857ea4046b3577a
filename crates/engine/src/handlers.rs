//! The OCI runtimes that sandboxes can ask for: the built-in one and programs with runc's command line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use crate::mapping;
use engine_api::{EngineError, RuntimeHandler};
use serde::Deserialize;
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

/// How long a runtime may take to say what it can do.
const FEATURES_MAX: Duration = Duration::from_secs(10);
/// The most that is read of that.
const FEATURES_MAX_BYTES: u64 = 1 << 20;
/// The first kernel with mount_setattr(2).
const RECURSIVE_SINCE: (u32, u32) = (5, 12);

/// Runtimes by the names that sandboxes give.
#[derive(Debug)]
pub(crate) struct Handlers {
    built_in: RuntimeHandler,
    others: BTreeMap<String, (PathBuf, RuntimeHandler)>,
}

/// What a runtime can do. Source: OCI Runtime Specification, `features.md`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Features {
    mount_options: Vec<String>,
    linux: LinuxFeatures,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct LinuxFeatures {
    namespaces: Vec<String>,
}

impl Handlers {
    /// Asks each of the programs what it can do. One that does not say can only what all can; it may come later.
    pub(crate) async fn open(programs: BTreeMap<String, PathBuf>) -> Self {
        let recursive = sys::host::kernel_is_at_least(RECURSIVE_SINCE.0, RECURSIVE_SINCE.1);
        let mut others = BTreeMap::new();
        for (name, program) in programs {
            let features = features_of(&program).await.unwrap_or_else(|error| {
                tracing::warn!(handler = name, program = %program.display(), error, "a runtime does not tell its features");
                Features::default()
            });
            let mut about = RuntimeHandler { name: name.clone(), ..about(&features, recursive) };
            about.user_namespaces &= mapping::possible();
            others.insert(name, (program, about));
        }
        let built_in = RuntimeHandler {
            recursive_read_only_mounts: recursive,
            user_namespaces: mapping::possible(),
            ..RuntimeHandler::default()
        };
        Self { built_in, others }
    }

    /// All of them, the built-in one first.
    pub(crate) fn all(&self) -> Vec<RuntimeHandler> {
        let others = self.others.values().map(|(_, about)| about.clone());
        [self.built_in.clone()].into_iter().chain(others).collect()
    }

    /// The program of a handler; `None` for the built-in one. The words for one that there is not are containerd's.
    pub(crate) fn program(&self, name: &str) -> Result<Option<PathBuf>, EngineError> {
        if name.is_empty() {
            return Ok(None);
        }
        let (program, _) = self.others.get(name).ok_or_else(|| {
            EngineError::invalid(format!(
                "failed to get sandbox runtime: no runtime for \"{name}\" is configured"
            ))
        })?;
        Ok(Some(program.clone()))
    }
}

fn about(features: &Features, recursive: bool) -> RuntimeHandler {
    RuntimeHandler {
        name: String::new(),
        recursive_read_only_mounts: recursive && features.mount_options.iter().any(|option| option == "rro"),
        user_namespaces: features.linux.namespaces.iter().any(|namespace| namespace == "user"),
    }
}

async fn features_of(program: &Path) -> Result<Features, String> {
    let mut command = Command::new(program);
    command.arg("features").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.kill_on_drop(true).spawn().map_err(|error| error.to_string())?;
    let mut told = Vec::new();
    let read = async {
        if let Some(stdout) = child.stdout.take() {
            stdout.take(FEATURES_MAX_BYTES).read_to_end(&mut told).await?;
        }
        child.wait().await
    };
    tokio::time::timeout(FEATURES_MAX, read)
        .await
        .map_err(|_| format!("no answer within {FEATURES_MAX:?}"))?
        .map_err(|error| error.to_string())?;
    serde_json::from_slice(&told).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_what_the_runtime_and_the_kernel_have() {
        let text =
            r#"{"mountOptions": ["ro", "rro"], "linux": {"namespaces": ["pid", "user"]}, "hooks": []}"#;
        let features: Features = serde_json::from_str(text).unwrap();
        let both = about(&features, true);
        assert!(both.recursive_read_only_mounts && both.user_namespaces);
        assert!(!about(&features, false).recursive_read_only_mounts);
        let old = about(&Features::default(), true);
        assert!(!old.recursive_read_only_mounts && !old.user_namespaces);
    }

    #[tokio::test]
    async fn a_handler_that_is_not_configured_is_named() {
        let handlers = Handlers::open([("other".to_owned(), PathBuf::from("/no/such"))].into()).await;
        let names: Vec<String> = handlers.all().into_iter().map(|handler| handler.name).collect();
        assert_eq!(names, ["", "other"]);
        assert_eq!(handlers.program("").unwrap(), None);
        assert_eq!(handlers.program("other").unwrap(), Some(PathBuf::from("/no/such")));
        let error = handlers.program("kata").unwrap_err();
        assert_eq!(error.message, "failed to get sandbox runtime: no runtime for \"kata\" is configured");
    }
}
