//! Which places a registry has, by what the host's files say.

use super::*;

fn bases(endpoints: &[Endpoint]) -> Vec<&str> {
    endpoints.iter().map(|endpoint| endpoint.base.as_str()).collect()
}

#[test]
fn only_loopback_is_spoken_to_in_the_clear() {
    for loopback in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.1.2.3", "[::1]:5000"] {
        assert!(is_loopback(loopback), "{loopback}");
    }
    for other in ["docker.io", "10.0.0.1:5000", "localhost.example.org", "127.0.0.1.nip.io", "[fd00::1]"] {
        assert!(!is_loopback(other), "{other}");
    }
    let of = |registry: &str| RegistryConfig::default().endpoints(registry).unwrap();
    assert_eq!(bases(&of("docker.io")), ["https://registry-1.docker.io/v2"]);
    assert_eq!(bases(&of("r.example:5000")), ["https://r.example:5000/v2"]);
    assert_eq!(bases(&of("127.0.0.1:5000")), ["http://127.0.0.1:5000/v2"]);
}

#[test]
fn hosts_come_in_the_files_order_and_the_server_last() {
    let text = r#"
        server = "https://registry.example"
        ca = "/etc/own.pem"

        [host."https://z.mirror.example"]
          capabilities = ["pull", "resolve"]
          ca = ["a.pem", "/b.pem"]
          client = [["c.pem", "c.key"], "both.pem"]
          dial_timeout = "5s"
          [host."https://z.mirror.example".header]
            x-one = "1"
            x-many = ["2", "3"]
        [host."http://a.mirror.example:5000/cache/"]
          capabilities = ["pull"]
        [host."https://harbor.example/v2/proxy"]
          override_path = true
        [host."http://b.mirror.example:5000"]
          skip_verify = true
    "#;
    let endpoints = parse_hosts(text, Path::new("/etc/certs"), "registry.example").unwrap();
    assert_eq!(
        bases(&endpoints),
        [
            "https://z.mirror.example/v2",
            "http://a.mirror.example:5000/cache/v2",
            "https://harbor.example/v2/proxy",
            // TLS is configured for it, so that is tried first.
            "https://b.mirror.example:5000/v2",
            "http://b.mirror.example:5000/v2",
            "https://registry.example/v2",
        ]
    );
    let first = &endpoints[0];
    assert_eq!(first.can, Can::READ);
    assert_eq!(first.tls.authorities, [PathBuf::from("/etc/certs/a.pem"), "/b.pem".into()]);
    let pair = (PathBuf::from("/etc/certs/c.pem"), Some(PathBuf::from("/etc/certs/c.key")));
    assert_eq!(first.tls.clients, [pair, ("/etc/certs/both.pem".into(), None)]);
    assert_eq!(first.connect_timeout, Some(Duration::from_secs(5)));
    let headers: Vec<(&str, &str)> =
        first.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(headers, [("x-many", "2"), ("x-many", "3"), ("x-one", "1")]);
    assert_eq!(first.mirror_of.as_deref(), Some("registry.example"));
    assert!(!endpoints[1].can.resolve && endpoints[1].can.pull);
    assert_eq!(endpoints[3].tls.skip_verify, Some(true));
    let last = &endpoints[5];
    assert_eq!((last.mirror_of.as_deref(), last.can), (None, Can::ALL));
    assert_eq!(last.tls.authorities, [PathBuf::from("/etc/own.pem")]);
}

#[test]
fn a_file_without_a_server_means_the_registry_itself() {
    let only = |text: &str, registry: &str| {
        let endpoints = parse_hosts(text, Path::new("/"), registry).unwrap();
        endpoints.last().unwrap().base.clone()
    };
    let mirror = "[host.\"https://mirror\"]";
    assert_eq!(only(mirror, "docker.io"), "https://registry-1.docker.io/v2");
    assert_eq!(only(mirror, "127.0.0.1:5000"), "http://127.0.0.1:5000/v2");
    assert_eq!(only("ca = \"ca.pem\"", "127.0.0.1:5000"), "https://127.0.0.1:5000/v2");
    assert_eq!(only("server = \"mirror:5000\"", "docker.io"), "https://mirror:5000/v2");
}

#[test]
fn what_a_file_cannot_mean_is_named() {
    for (text, part) in [
        ("server = 1", "server is no string"),
        ("[host.\"ftp://x\"]", "no URL of a registry"),
        ("[host.\"https://x\"]\ncapabilities = [\"fly\"]", "unknown capability \"fly\""),
        ("[host.\"https://x\"]\nskip-verify = true", "skip-verify"),
        ("dial_timeout = \"soon\"", "no duration"),
        ("client = [[\"a\"]]", "not a certificate and a key"),
        ("][", "expected"),
    ] {
        let told = parse_hosts(text, Path::new("/"), "r.example").unwrap_err();
        assert!(told.contains(part), "{text}: {told}");
    }
}

#[test]
fn a_registrys_directory_is_found_as_containerd_and_docker_do() {
    let root = tempfile::tempdir().unwrap();
    let (own, dockers) = (root.path().join("own"), root.path().join("docker"));
    let make = |directory: &Path, file: &str, text: &str| {
        fs::create_dir_all(directory).unwrap();
        fs::write(directory.join(file), text).unwrap();
    };
    make(&own.join("r.example_5000_"), "hosts.toml", "server = \"https://one\"");
    make(&own.join("r.example"), "hosts.toml", "server = \"https://two\"");
    make(&dockers.join("r.example:6000"), "ca.crt", "");
    make(&dockers.join("r.example:6000"), "client.cert", "");
    make(&dockers.join("r.example:6000"), "client.key", "");
    let mut config = RegistryConfig { directories: vec![own.clone(), dockers.clone()], docker_daemon: None };
    let of = |config: &RegistryConfig, registry: &str| config.endpoints(registry).unwrap();
    assert_eq!(bases(&of(&config, "r.example:5000")), ["https://one/v2"]);
    assert_eq!(bases(&of(&config, "r.example")), ["https://two/v2"]);
    let certificates = &of(&config, "r.example:6000")[0];
    assert_eq!(certificates.base, "https://r.example:6000/v2");
    let directory = dockers.join("r.example:6000");
    assert_eq!(certificates.tls.authorities, [directory.join("ca.crt")]);
    assert_eq!(
        certificates.tls.clients,
        [(directory.join("client.cert"), Some(directory.join("client.key")))]
    );
    assert_eq!(bases(&of(&config, "else.example")), ["https://else.example/v2"]);
    make(&own.join("_default"), "hosts.toml", "[host.\"https://cache\"]");
    assert_eq!(bases(&of(&config, "else.example")), ["https://cache/v2", "https://else.example/v2"]);

    let daemon = root.path().join("daemon.json");
    let text = r#"{"insecure-registries": ["10.0.0.0/8", "plain.example:5000"],
        "registry-mirrors": ["https://hub.mirror/"], "live-restore": true}"#;
    fs::write(&daemon, text).unwrap();
    config = RegistryConfig { directories: Vec::new(), docker_daemon: Some(daemon.clone()) };
    assert_eq!(
        bases(&of(&config, "docker.io")),
        ["https://hub.mirror/v2", "https://registry-1.docker.io/v2"]
    );
    for insecure in ["10.1.2.3:5000", "plain.example:5000"] {
        let endpoints = of(&config, insecure);
        assert_eq!(bases(&endpoints), [format!("https://{insecure}/v2"), format!("http://{insecure}/v2")]);
        assert_eq!(endpoints[0].tls.skip_verify, Some(true));
    }
    assert_eq!(of(&config, "plain.example").len(), 1);
    fs::write(&daemon, "{").unwrap();
    assert!(config.endpoints("x.example").unwrap_err().to_string().contains("daemon.json cannot be read"));
}
