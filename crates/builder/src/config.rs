//! What instructions without files change: the configuration of the image.

use image::{ContainerConfig, ImageDocument};
use serde_json::{Map, Value, json};

use crate::Error;
use crate::parser::{Command, Healthcheck};

const DEFAULT_SHELL: [&str; 2] = ["/bin/sh", "-c"];

/// The command line of a command; the shell form goes to the image's shell.
pub(crate) fn command_line(config: &ContainerConfig, command: &Command) -> Vec<String> {
    match command {
        Command::Exec(words) => words.clone(),
        Command::Shell(text) => {
            let default = || DEFAULT_SHELL.iter().map(|word| (*word).to_owned()).collect();
            let mut line: Vec<String> = config.shell.clone().unwrap_or_else(default);
            line.push(text.clone());
            line
        }
    }
}

/// Sets a variable, in place of an older value.
pub(crate) fn set_env(env: &mut Vec<String>, key: &str, value: &str) {
    let line = format!("{key}={value}");
    match env.iter_mut().find(|old| old.split('=').next() == Some(key)) {
        Some(old) => *old = line,
        None => env.push(line),
    }
}

/// A variable of the configuration.
pub(crate) fn env<'a>(config: &'a ContainerConfig, key: &str) -> Option<&'a str> {
    config
        .env
        .iter()
        .find_map(|line| line.split_once('=').filter(|(name, _)| *name == key))
        .map(|(_, value)| value)
}

/// Adds ports: `80`, `80/udp`, `8000-8010`.
pub(crate) fn expose(config: &mut ContainerConfig, port: &str) -> Result<(), Error> {
    let bad = || Error::invalid(format!("invalid containerPort: {port}"));
    let (numbers, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(bad());
    }
    let (low, high) = numbers.split_once('-').unwrap_or((numbers, numbers));
    let (low, high): (u16, u16) = (low.parse().map_err(|_| bad())?, high.parse().map_err(|_| bad())?);
    if low > high {
        return Err(bad());
    }
    for number in low..=high {
        config.exposed_ports.insert(format!("{number}/{protocol}"), json!({}));
    }
    Ok(())
}

/// A working directory, relative to the one before.
pub(crate) fn working_dir(config: &ContainerConfig, path: &str) -> String {
    let joined = std::path::Path::new("/").join(&config.working_dir).join(path);
    format!("/{}", image::root::clean(&joined).display())
}

/// Docker's form of a health check; durations in nanoseconds.
pub(crate) fn healthcheck(check: &Healthcheck) -> Result<Value, Error> {
    let mut out = Map::new();
    let test = match &check.command {
        None => json!(["NONE"]),
        Some(Command::Shell(text)) => json!(["CMD-SHELL", text]),
        Some(Command::Exec(words)) => {
            json!(["CMD"].into_iter().chain(words.iter().map(String::as_str)).collect::<Vec<_>>())
        }
    };
    out.insert("Test".to_owned(), test);
    for (name, value) in &check.flags {
        let (key, value) = match name.as_str() {
            "interval" => ("Interval", duration_ns(value)?),
            "timeout" => ("Timeout", duration_ns(value)?),
            "start-period" => ("StartPeriod", duration_ns(value)?),
            "start-interval" => ("StartInterval", duration_ns(value)?),
            _ => {
                let retries = value
                    .parse()
                    .map_err(|_| Error::invalid(format!("--retries is not a number: {value:?}")))?;
                ("Retries", retries)
            }
        };
        out.insert(key.to_owned(), json!(value));
    }
    Ok(Value::Object(out))
}

/// Go's durations: `1m30s`, `500ms`, `1.5h`.
fn duration_ns(text: &str) -> Result<u64, Error> {
    let bad = || Error::invalid(format!("invalid duration {text:?}: write it like 30s or 1m30s"));
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let number: f64 = rest[..end].parse().map_err(|_| bad())?;
        let tail = &rest[end..];
        let unit_end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let scale = match &tail[..unit_end] {
            "ns" => 1.0,
            "us" | "µs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return Err(bad()),
        };
        total += number * scale;
        rest = &tail[unit_end..];
    }
    match text.is_empty() || total > 1e18 {
        true => Err(bad()),
        // Truncated as Go does; positive and small enough by the checks above.
        false => Ok(total as u64),
    }
}

/// The configuration that a stage starts with: its base's, without what described the base's own making.
pub(crate) fn inherit(base: &ImageDocument) -> ImageDocument {
    let mut document = base.clone();
    document.extra.retain(|key, _| matches!(key.as_str(), "variant" | "os.version" | "os.features"));
    document.config.on_build.clear();
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_replaced_in_place() {
        let mut env = vec!["A=1".to_owned(), "AB=2".to_owned()];
        set_env(&mut env, "A", "3");
        set_env(&mut env, "C", "4");
        assert_eq!(env, ["A=3", "AB=2", "C=4"]);
    }

    #[test]
    fn ports_and_directories() {
        let mut config = ContainerConfig::default();
        for port in ["80", "53/UDP", "8000-8002"] {
            expose(&mut config, port).unwrap();
        }
        let ports: Vec<_> = config.exposed_ports.keys().cloned().collect();
        assert_eq!(ports, ["53/udp", "80/tcp", "8000/tcp", "8001/tcp", "8002/tcp"]);
        for bad in ["x", "80/icmp", "9-8", "70000", ""] {
            assert!(expose(&mut config, bad).is_err(), "{bad}");
        }
        config.working_dir = "/a/b".to_owned();
        assert_eq!(working_dir(&config, "c"), "/a/b/c");
        assert_eq!(working_dir(&config, "../c"), "/a/c");
        assert_eq!(working_dir(&config, "/c/"), "/c");
    }

    #[test]
    fn health_checks_have_durations() {
        let check = Healthcheck {
            command: Some(Command::Exec(vec!["true".to_owned()])),
            flags: vec![("interval".to_owned(), "1m30s".to_owned()), ("retries".to_owned(), "3".to_owned())],
        };
        let value = healthcheck(&check).unwrap();
        assert_eq!(value, json!({"Test": ["CMD", "true"], "Interval": 90_000_000_000_u64, "Retries": 3}));
        for bad in ["", "5", "x", "1x", "-1s", "1e300h"] {
            assert!(duration_ns(bad).is_err(), "{bad}");
        }
        assert_eq!(duration_ns("1.5s").unwrap(), 1_500_000_000);
    }
}
