//! The shim: one per sandbox, outside the daemon's cgroup and session. It owns the containers' processes, streams, logs
//! and exits while Skiff comes and goes.
//!
//! `serve` is the shim; `launch` is a short-lived child of it that calls the OCI runtime library, so that the shim
//! itself stays small and is never forked; `init` is PID 1 of a shared PID namespace, `users` and `users-init` help to make
//! namespaces that belong to a user namespace; `cover` is the hook that shows the host's devices to a container.

mod program;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let verb = arguments.next();
    let directory = arguments.next().map(std::path::PathBuf::from);
    let second = arguments.next().map(std::path::PathBuf::from);
    match (verb.as_deref().and_then(|verb| verb.to_str()), directory) {
        (Some("serve"), Some(directory)) => report(program::server::serve(&directory)),
        (Some("launch"), None) => report(program::launch::run()),
        (Some("init"), Some(directory)) => report(program::init::run(&directory)),
        (Some("users"), Some(names)) => report(program::users::help(&names.to_string_lossy())),
        (Some("cover"), Some(dir)) => report(sys::mount::cover(&dir, &second.unwrap_or_default())),
        (Some("users-init"), Some(pins)) => {
            report(program::users::keep_init(&pins, &second.unwrap_or_default()))
        }
        _ => {
            eprintln!("skiff-shim is started by skiff: it is no command of its own");
            ExitCode::from(2)
        }
    }
}

fn report(result: std::io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("skiff-shim: {error}");
            ExitCode::FAILURE
        }
    }
}
