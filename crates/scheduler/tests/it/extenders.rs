//! Extenders: a small HTTP server that takes part in placing pods.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use api::DeleteOptions;
use base::lifecycle::Tasks;
use client::Client;
use parking_lot::Mutex;
use reconcile::kinds;
use scheduler::Config;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::{condition, node, pod, start_with};

/// An extender: it finds `n1` busy, likes `n3` best, and binds.
#[derive(Default)]
struct Extender {
    client: Mutex<Option<Client>>,
    /// It answers nothing but a failure.
    broken: AtomicBool,
    asked: Mutex<Vec<(String, Value)>>,
}

impl Extender {
    async fn answer(&self, verb: &str, question: Value) -> Option<Value> {
        self.asked.lock().push((verb.to_owned(), question.clone()));
        if self.broken.load(Ordering::Relaxed) {
            return None;
        }
        match verb {
            "filter" => {
                let names = question["NodeNames"].as_array()?.iter().filter(|name| **name != "n1");
                Some(
                    json!({ "nodenames": names.collect::<Vec<_>>(), "failedNodes": { "n1": "node(s) were busy" } }),
                )
            }
            // It lets nobody go from `n2`.
            "preempt" => {
                let kept = question["NodeNameToMetaVictims"].get("n3")?;
                Some(json!({ "NodeNameToMetaVictims": { "n3": kept } }))
            }
            "prioritize" => Some(json!([{ "Host": "n2", "Score": 1 }, { "Host": "n3", "Score": 9 }])),
            "bind" => {
                let body = json!({ "apiVersion": "v1", "kind": "Binding",
                    "metadata": { "name": question["PodName"], "uid": question["PodUID"] },
                    "target": { "kind": "Node", "name": question["Node"] } });
                let request = api::Request {
                    resource: kinds::PODS.gvr(),
                    namespace: question["PodNamespace"].as_str()?.to_owned(),
                    name: question["PodName"].as_str()?.to_owned(),
                    subresource: "binding".to_owned(),
                    call: api::Call::Create {
                        body: serde_json::to_vec(&body).unwrap().into(),
                        options: api::WriteOptions::default(),
                    },
                };
                let client = self.client.lock().clone()?;
                let bound = client.send(request).await;
                Some(json!({ "Error": bound.err().map(|status| status.message).unwrap_or_default() }))
            }
            _ => None,
        }
    }

    /// One request on one connection.
    async fn serve(&self, mut stream: TcpStream) -> Option<()> {
        let mut read = Vec::new();
        let end = loop {
            if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            stream.read_buf(&mut read).await.ok().filter(|count| *count > 0)?;
        };
        let head = String::from_utf8_lossy(&read[..end]).to_lowercase();
        let length: usize = head.split("content-length: ").nth(1)?.lines().next()?.trim().parse().ok()?;
        while read.len() < end + length {
            stream.read_buf(&mut read).await.ok().filter(|count| *count > 0)?;
        }
        let verb = head.split(' ').nth(1)?.rsplit('/').next()?.to_owned();
        let question = serde_json::from_slice(&read[end..]).ok()?;
        let (code, body) = match self.answer(&verb, question).await {
            Some(answer) => ("200 OK", answer.to_string()),
            None => ("500 Internal Server Error", String::new()),
        };
        let head = format!("HTTP/1.1 {code}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
        stream.write_all(format!("{head}{body}").as_bytes()).await.ok()
    }
}

/// Serves an extender until the tasks are dropped; gives where it is.
async fn serve(extender: &Arc<Extender>) -> (String, Arc<Tasks>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/api", listener.local_addr().unwrap());
    let tasks = Arc::new(Tasks::default());
    let (inner, serving) = (tasks.clone(), extender.clone());
    tasks.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let serving = serving.clone();
            inner.spawn(async move {
                // A connection that breaks off is the other side's business.
                let _ = serving.serve(stream).await;
            });
        }
    });
    (url, tasks)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extender_filters_scores_and_binds() {
    let extender = Arc::new(Extender::default());
    let (url, _tasks) = serve(&extender).await;
    // Nobody is at the second one, and nobody has to be.
    let config = format!(
        "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\nextenders:\n\
         - {{urlPrefix: 'http://127.0.0.1:1', filterVerb: filter, ignorable: true}}\n\
         - {{urlPrefix: '{url}', filterVerb: filter, prioritizeVerb: prioritize, weight: 100, bindVerb: bind, \
         nodeCacheCapable: true, httpTimeout: 60s}}\n"
    );
    let cluster = start_with(|| Config::parse(&config).unwrap()).await;
    *extender.client.lock() = Some(cluster.client.clone());
    for name in ["n1", "n2", "n3"] {
        node(&cluster, name, "1").await;
    }
    // Nobody has room for it: what is said of it says when all nodes are known.
    let scout = pod(&cluster, "scout", "100").await;
    let knows_all = |held: &Value| {
        let message = condition(held, "PodScheduled").and_then(|held| held["message"].as_str());
        message.is_some_and(|message| message.starts_with("0/3 nodes are available: 3 Insufficient cpu"))
    };
    cluster.until(kinds::PODS, &scout, knows_all).await;
    cluster.client.delete(&kinds::PODS.gvr(), &scout, DeleteOptions::default()).await.unwrap();
    let first = pod(&cluster, "first", "700m").await;
    let placed = cluster.until(kinds::PODS, &first, |held| held["status"]["phase"] == "Running").await;
    assert_eq!(placed["spec"]["nodeName"], "n3");
    let asked: Vec<(String, Value)> = extender.asked.lock().clone();
    assert_eq!(
        asked.iter().map(|(verb, _)| verb.as_str()).collect::<Vec<_>>(),
        ["filter", "prioritize", "bind"]
    );
    assert_eq!(asked[0].1["Pod"]["metadata"]["name"], "first");
    let second = pod(&cluster, "second", "700m").await;
    let placed = cluster.until(kinds::PODS, &second, |held| held["status"]["phase"] == "Running").await;
    assert_eq!(placed["spec"]["nodeName"], "n2");

    // Only the node is left that the extender finds busy; then it says nothing any more.
    let third = pod(&cluster, "third", "700m").await;
    let says = |what: &'static str| {
        move |held: &Value| {
            let message = condition(held, "PodScheduled").and_then(|held| held["message"].as_str());
            message.is_some_and(|message| message.contains(what))
        }
    };
    let busy = "0/3 nodes are available: 1 node(s) were busy, 2 Insufficient cpu.";
    cluster.until(kinds::PODS, &third, says(busy)).await;
    extender.broken.store(true, Ordering::Relaxed);
    let fourth = pod(&cluster, "fourth", "100m").await;
    let told = cluster
        .until(kinds::PODS, &fourth, says("failed filter with extender at URL http://127.0.0.1"))
        .await;
    assert_eq!(condition(&told, "PodScheduled").unwrap()["reason"], "SchedulerError");
    extender.broken.store(false, Ordering::Relaxed);
    cluster.until(kinds::PODS, &fourth, |held| held["status"]["phase"] == "Running").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn room_is_made_on_the_best_node_that_an_extender_leaves() {
    let extender = Arc::new(Extender::default());
    let (url, _tasks) = serve(&extender).await;
    let config = format!(
        "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\nextenders:\n\
         - {{urlPrefix: '{url}', preemptVerb: preempt, nodeCacheCapable: true, httpTimeout: 60s}}\n"
    );
    let cluster = start_with(|| Config::parse(&config).unwrap()).await;
    for (class, value) in [("high", 1000), ("some", 10), ("none", 0)] {
        let class = json!({ "metadata": { "name": class }, "value": value });
        cluster.create(&kinds::PRIORITY_CLASSES, "", class).await;
    }
    let on = |name: &str, class: &str, nodes: Value| {
        let named = json!([{ "key": "metadata.name", "operator": "In", "values": nodes }]);
        json!({ "metadata": { "name": name }, "spec": { "priorityClassName": class,
            "containers": [{ "name": "c", "image": "i", "resources": { "requests": { "cpu": "700m" } } }],
            "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{ "matchFields": named }] } } } } })
    };
    // Were nobody asked, the less important one on `n2` would go.
    for (name, class) in [("n2", "none"), ("n3", "some")] {
        node(&cluster, name, "1").await;
        let body = on(&format!("on-{name}"), class, json!([name]));
        let there = cluster.create(&kinds::PODS, "default", body).await.key();
        cluster.until(kinds::PODS, &there, |held| held["status"]["phase"] == "Running").await;
    }
    let container = json!({ "name": "c", "image": "i", "resources": { "requests": { "cpu": "700m" } } });
    let body = json!({ "metadata": { "name": "high" },
        "spec": { "priorityClassName": "high", "containers": [container] } });
    let high = cluster.create(&kinds::PODS, "default", body).await.key();
    let placed = cluster.until(kinds::PODS, &high, |held| held["status"]["phase"] == "Running").await;
    assert_eq!(placed["spec"]["nodeName"], "n3");
    let asked: Vec<(String, Value)> = extender.asked.lock().clone();
    let (verb, question) = asked.first().unwrap();
    assert_eq!(verb, "preempt");
    let nodes: Vec<&String> = question["NodeNameToMetaVictims"].as_object().unwrap().keys().collect();
    assert_eq!(nodes, ["n2", "n3"]);
}
