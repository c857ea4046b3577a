//! What extenders are asked and answer, and how they are configured.

use std::sync::Arc;

use base::lifecycle::Tasks;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{ServerConfig, crypto, pki_types::PrivateKeyDer};

use super::messages::{Filtered, Score, displaced, lowered};
use crate::Config;

#[test]
fn answers_are_read_in_any_letters() {
    let read = |answer| serde_json::from_value::<Filtered>(lowered(answer)).unwrap();
    let go = read(json!({ "Nodes": null, "NodeNames": ["a", "b"], "FailedNodes": { "c": "busy" },
        "FailedAndUnresolvableNodes": null, "Error": "" }));
    assert_eq!((go.names(true), go.names(false).len()), (vec!["a", "b"], 0));
    assert_eq!(go.failed["c"], "busy");
    let camel = read(json!({ "nodes": { "items": [{ "metadata": { "name": "a" } }] }, "error": "x" }));
    assert_eq!((camel.names(true), camel.error.as_str()), (vec!["a"], "x"));
    let scores: Vec<Score> =
        serde_json::from_value(lowered(json!([{ "Host": "a", "Score": 3 }, { "host": "b", "score": 4 }])))
            .unwrap();
    assert_eq!(scores.iter().map(|score| score.score).sum::<i64>(), 7);
    let victims =
        json!({ "NodeNameToMetaVictims": { "n": { "Pods": [{ "UID": "u" }], "NumPDBViolations": 1 } } });
    let read = displaced(victims);
    assert_eq!((read["n"].uids.as_slice(), read["n"].violations), (["u".to_owned()].as_slice(), 1));
    assert!(displaced(json!({})).is_empty());
}

#[test]
fn what_is_wrong_with_an_extender_is_said() {
    let read = |extenders: &str| {
        let head = "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n";
        Config::parse(&format!("{head}extenders: {extenders}\n"))
    };
    for (extenders, says) in [
        (
            "[{urlPrefix: 'http://x', prioritizeVerb: p}]",
            "extenders[0].weight: Invalid value: 0: must have a positive weight applied to it",
        ),
        (
            "[{urlPrefix: 'http://x', bindVerb: b}, {urlPrefix: 'http://y', bindVerb: b}]",
            "extenders: Invalid value: \"found 2 extenders implementing bind\": only one extender can implement bind",
        ),
        (
            "[{urlPrefix: 'http://x', managedResources: [{name: cpu}]}]",
            "extenders[0].managedResources[0].name: Invalid value: \"cpu\": is an invalid extended resource name",
        ),
        (
            "[{urlPrefix: 'http://x', managedResources: [{name: e.com/a}]}, {urlPrefix: 'http://y', managedResources: [{name: e.com/a}]}]",
            "extenders[1].managedResources[0].name: Invalid value: \"e.com/a\": duplicate extender managed resource name",
        ),
        ("[{urlPrefix: 'http://x', httpTimeout: soon}]", "extenders[0].httpTimeout: "),
        ("[{urlPrefix: 'http://x', tlsConfig: {certFile: /nowhere}}]", "extenders[0].tlsConfig: /nowhere: "),
        (
            "[{urlPrefix: 'https://x', tlsConfig: {serverName: 10.0.0.1}}]",
            "extenders[0].tlsConfig: serverName \"10.0.0.1\" has to be a DNS name",
        ),
        ("[{urlPrefix: 'http://x', nonsense: 1}]", "unknown field `nonsense`"),
    ] {
        let said = read(extenders).err().unwrap_or_default();
        assert!(said.contains(says), "{extenders}: {said}");
    }
    let config = read(
        "[{urlPrefix: 'http://x', ignorable: true}, {urlPrefix: 'https://y', enableHTTPS: true, httpTimeout: 100ms,\
         managedResources: [{name: e.com/a, ignoredByScheduler: true}]}]",
    );
    let config = config.unwrap();
    assert_eq!(config.extenders.iter().map(|extender| extender.ignorable).collect::<Vec<_>>(), [false, true]);
    assert!(config.profiles.iter().all(|profile| profile.extended));
}

/// A certificate for one name, as its own authority in base64, and what serves with it.
fn certified(name: &str) -> (String, TlsAcceptor) {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed([name.to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    (STANDARD.encode(cert.pem()), TlsAcceptor::from(Arc::new(config)))
}

/// Answers one request over TLS with the name that was asked for and the `Host` of the request.
async fn answer(tls: TlsAcceptor, stream: TcpStream) -> Option<()> {
    let mut stream = tls.accept(stream).await.ok()?;
    let mut read = Vec::new();
    while !read.ends_with(b"{}") {
        stream.read_buf(&mut read).await.ok().filter(|count| *count > 0)?;
    }
    let head = String::from_utf8_lossy(&read).to_lowercase();
    let host = head.split("\r\nhost: ").nth(1)?.lines().next()?.to_owned();
    let body = json!({ "asked": stream.get_ref().1.server_name(), "host": host }).to_string();
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).await.ok()
}

#[tokio::test]
async fn an_extender_is_known_by_the_name_that_is_set() {
    let (authority, tls) = certified("extender.example");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let tasks = Tasks::default();
    tasks.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A connection that breaks off is the other side's business.
            let _ = answer(tls.clone(), stream).await;
        }
    });
    let ask = async |more: &str| -> Result<Value, String> {
        let config = format!(
            "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\nextenders:\n\
             - {{urlPrefix: 'https://{at}', enableHTTPS: true, httpTimeout: 60s, tlsConfig: {{{more}}}}}\n"
        );
        Config::parse(&config).unwrap().extenders[0].ask("filter", &json!({})).await
    };
    let answered = json!({ "asked": "extender.example", "host": at.to_string() });
    assert_eq!(
        ask(&format!("serverName: extender.example, caData: {authority}")).await,
        Ok(answered.clone())
    );
    // Nobody's certificate is looked at, and the name is asked for all the same.
    assert_eq!(ask("serverName: extender.example").await, Ok(answered));
    // It is another one, or none that is set: the host is an address that the certificate does not bear.
    assert!(ask(&format!("serverName: other.example, caData: {authority}")).await.is_err());
    assert!(ask(&format!("caData: {authority}")).await.is_err());
}
