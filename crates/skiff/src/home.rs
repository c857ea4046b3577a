//! The directories of an instance: taken only where they are new, empty or its own already, so that nothing is ever
//! protected, locked or removed that is somebody else's.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};
use cli::claim::Claim;
use cli::instance::Instance;

use crate::settings::Settings;

/// The claim while it is being written. A directory in which nothing else was left is as good as empty.
const BESIDE: &str = "skiff-instance.new";

/// What a directory holds.
#[derive(Debug, PartialEq, Eq)]
enum Holds {
    /// Nothing, or it is not there.
    Nothing,
    /// An instance's files.
    Claim(Claim),
    /// Files of which no instance says that they are its own.
    Foreign,
}

fn look(directory: &Path) -> Result<Holds> {
    let failed = || format!("look into {}", directory.display());
    if let Some(claim) = Claim::read(directory).with_context(failed)? {
        return Ok(Holds::Claim(claim));
    }
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Holds::Nothing),
        Err(error) => return Err(error).with_context(failed),
    };
    for entry in entries {
        if entry.with_context(failed)?.file_name() != BESIDE {
            return Ok(Holds::Foreign);
        }
    }
    Ok(Holds::Nothing)
}

/// Whether an instance may be started in its directories. Touches nothing.
pub(crate) fn check(instance: &Instance) -> Result<()> {
    let data = check_one(&instance.data_dir, "--data-dir", &instance.name)?;
    let run = check_one(&instance.run_dir, "--run-dir", &instance.name)?;
    if let Some(run) = run
        && run.data_dir != instance.data_dir
        && !is_bare(&instance.run_dir)?
    {
        bail!(
            "{} is in use by instance {:?} with --data-dir {}; end that first with: {}",
            instance.run_dir.display(),
            instance.name,
            run.data_dir.display(),
            instance.command("down")
        );
    }
    // What it left in another run directory may still be running.
    if let Some(data) = data
        && data.run_dir != instance.run_dir
        && let Holds::Claim(run) = look(&data.run_dir)?
        && run.data_dir == instance.data_dir
        && !is_bare(&data.run_dir)?
    {
        bail!(
            "instance {:?} was started with --run-dir {}, not {}; give that one, or end it first with: {}",
            instance.name,
            data.run_dir.display(),
            instance.run_dir.display(),
            instance.command("down")
        );
    }
    Ok(())
}

/// Whether a directory holds a claim and nothing else, as `skiff down` leaves a run directory.
fn is_bare(directory: &Path) -> Result<bool> {
    let entries = fs::read_dir(directory).with_context(|| format!("look into {}", directory.display()))?;
    Ok(entries.flatten().all(|entry| entry.file_name() == Claim::FILE))
}

fn check_one(directory: &Path, flag: &str, name: &str) -> Result<Option<Claim>> {
    match look(directory)? {
        Holds::Nothing => Ok(None),
        Holds::Claim(claim) if claim.name == name => Ok(Some(claim)),
        Holds::Claim(claim) => bail!(
            "{} belongs to instance {:?}; choose another directory with {flag}",
            directory.display(),
            claim.name
        ),
        Holds::Foreign => bail!(
            "{} holds files that are not of instance {name:?}; choose a new or an empty directory with {flag}, such as \
             {}, or another --name",
            directory.display(),
            directory.join(name).display()
        ),
    }
}

/// Takes the data directory, and says there where everything else of the instance is.
pub(crate) fn take_data(settings: &Settings) -> Result<()> {
    take(settings, &settings.instance.data_dir)
}

/// Takes the run directory, and says there where the data is.
pub(crate) fn take_run(settings: &Settings) -> Result<()> {
    let directory = &settings.instance.run_dir;
    check(&settings.instance)?;
    private_directory(directory)?;
    // A file system that is mounted over it hides what was written before.
    crate::rundir::keep_in_memory(directory)?;
    take(settings, directory)
}

fn take(settings: &Settings, directory: &Path) -> Result<()> {
    let instance = &settings.instance;
    check(instance)?;
    private_directory(directory)?;
    let before = Claim::read(directory).with_context(|| format!("look into {}", directory.display()))?;
    let mut claim = Claim {
        name: instance.name.clone(),
        data_dir: instance.data_dir.clone(),
        run_dir: instance.run_dir.clone(),
        kubeconfigs: before.as_ref().map(|before| before.kubeconfigs.clone()).unwrap_or_default(),
    };
    claim.kubeconfigs.extend(settings.kubeconfig.clone());
    if before.as_ref() == Some(&claim) {
        return Ok(());
    }
    write(directory, &claim).with_context(|| format!("take {}", directory.display()))
}

/// Whole or not at all: a directory with half a claim would be nobody's.
fn write(directory: &Path, claim: &Claim) -> Result<()> {
    let text = serde_json::to_string_pretty(claim)?;
    Ok(sys::files::write_durable(&directory.join(Claim::FILE), text.as_bytes())?)
}

fn private_directory(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("create {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
        .with_context(|| format!("protect {}", path.display()))
}

/// What is there of an instance that was started once.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Traces {
    /// What it says in its data directory, if that is there.
    pub(crate) data: Option<Claim>,
    /// What it says in its run directory, which a reboot takes.
    pub(crate) run: Option<Claim>,
}

/// Looks for what an instance left; `None` where it never was. Touches nothing.
///
/// # Errors
/// If one of the directories is another instance's.
pub(crate) fn traces(instance: &Instance) -> Result<Option<Traces>> {
    let own = |directory: &Path, flag: &str| match look(directory)? {
        Holds::Claim(claim) if claim.name != instance.name => bail!(
            "{} belongs to instance {:?}: name that one with --name, or another directory with {flag}",
            directory.display(),
            claim.name
        ),
        Holds::Claim(claim) => Ok(Some(claim)),
        Holds::Nothing | Holds::Foreign => Ok(None),
    };
    let data = own(&instance.data_dir, "--data-dir")?;
    let run = own(&instance.run_dir, "--run-dir")?;
    if let Some(run) = &run
        && run.data_dir != instance.data_dir
    {
        bail!(
            "instance {:?} has --data-dir {}, not {}",
            instance.name,
            run.data_dir.display(),
            instance.data_dir.display()
        );
    }
    Ok((data.is_some() || run.is_some()).then_some(Traces { data, run }))
}

#[cfg(test)]
mod tests {
    use cli::instance::InstanceArgs;

    use super::*;

    fn settings(place: &Path, name: &str) -> Settings {
        Settings {
            etcd: None,
            access: apiserver::Access::default(),
            protection: apiserver::Protection::default(),
            scheduler_config: None,
            static_pod_path: None,
            max_container_restart_period: None,
            oci_runtimes: Default::default(),
            images: crate::image_settings::Images::default(),
            node_config: None,
            kubelet: node::KubeletConfiguration::default(),
            instance: Instance {
                name: name.into(),
                data_dir: place.join("data"),
                run_dir: place.join("run"),
            },
            kubeconfig: Some(place.join("config")),
            address: None,
            node_name: "n".into(),
            api_port: 6443,
            node_port: 10250,
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn what_is_somebody_elses_is_neither_protected_nor_taken() {
        let place = tempfile::tempdir().unwrap();
        let settings = settings(place.path(), "skiff");
        let data = &settings.instance.data_dir;
        fs::create_dir(data).unwrap();
        fs::set_permissions(data, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(data.join("lock"), "precious").unwrap();
        let refused = take_data(&settings).unwrap_err().to_string();
        assert!(refused.contains("--data-dir") && refused.contains("data/skiff"), "{refused}");
        assert_eq!(mode(data), 0o755);
        assert_eq!(fs::read_to_string(data.join("lock")).unwrap(), "precious");
        assert_eq!(traces(&settings.instance).unwrap(), None, "and down finds nothing of its own");
    }

    #[test]
    fn an_empty_directory_is_taken_once_and_for_one_name() {
        let place = tempfile::tempdir().unwrap();
        let first = settings(place.path(), "one");
        fs::create_dir(&first.instance.data_dir).unwrap();
        // As an interrupted start leaves it.
        fs::write(first.instance.data_dir.join(BESIDE), "{").unwrap();
        take_data(&first).unwrap();
        take_data(&first).unwrap();
        assert_eq!(mode(&first.instance.data_dir), 0o700);
        let found = traces(&first.instance).unwrap().unwrap();
        assert_eq!(found.data.unwrap().kubeconfigs.len(), 1);
        assert_eq!(found.run, None);
        let other = settings(place.path(), "two");
        for refused in [take_data(&other).unwrap_err(), traces(&other.instance).unwrap_err()] {
            assert!(refused.to_string().contains("belongs to instance \"one\""), "{refused}");
        }
    }

    #[test]
    fn one_directory_leads_to_the_other() {
        let place = tempfile::tempdir().unwrap();
        let settings = settings(place.path(), "skiff");
        take_data(&settings).unwrap();
        take(&settings, &settings.instance.run_dir).unwrap();
        let given = |data: bool, run: bool| InstanceArgs {
            name: "skiff".into(),
            data_dir: data.then(|| settings.instance.data_dir.clone()),
            run_dir: run.then(|| settings.instance.run_dir.clone()),
        };
        for args in [given(true, true), given(true, false), given(false, true)] {
            assert_eq!(args.resolve_started().unwrap(), settings.instance, "{args:?}");
        }
        let mut moved = settings.clone();
        moved.instance.data_dir = place.path().join("other");
        check(&moved.instance).expect("nothing is in use");
        fs::write(settings.instance.run_dir.join("docker.sock"), "").unwrap();
        let refused = [check(&moved.instance).unwrap_err(), traces(&moved.instance).unwrap_err()];
        for refused in refused {
            assert!(refused.to_string().contains(&format!("{}", settings.instance.data_dir.display())));
        }
        moved = settings.clone();
        moved.instance.run_dir = place.path().join("other");
        assert!(check(&moved.instance).unwrap_err().to_string().contains("--run-dir"));
        fs::remove_dir_all(&settings.instance.run_dir).unwrap();
        check(&moved.instance).unwrap();
    }
}
