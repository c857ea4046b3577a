//! Lists and watches from the cache.

use api::{Call, DeleteOptions, ListOptions, PatchType, Response, WatchEventKind, WatchStream};
use futures::StreamExt;
use serde_json::{Value, json};

use crate::cluster::{Cluster, options, resource};

async fn watch(cluster: &Cluster, namespace: &str, options: ListOptions) -> WatchStream {
    let maps = resource("", "v1", "configmaps");
    match cluster.call(&maps, namespace, "", "", Call::Watch(options)).await {
        Ok(Response::Watch(stream)) => stream,
        Ok(_) => panic!("no watch"),
        Err(status) => panic!("{status}"),
    }
}

async fn next(
    stream: &mut WatchStream,
    pending: &mut Vec<(WatchEventKind, String)>,
) -> (WatchEventKind, String) {
    while pending.is_empty() {
        let batch = stream.next().await.unwrap().unwrap();
        pending.extend(batch.into_iter().map(|event| (event.kind, event.object.meta().name.clone())));
    }
    pending.remove(0)
}

#[tokio::test]
async fn objects_enter_and_leave_a_selection() {
    let cluster = Cluster::start().await;
    let maps = resource("", "v1", "configmaps");
    let selected = ListOptions { label_selector: "x=1".into(), ..ListOptions::default() };
    let (mut stream, mut pending) = (watch(&cluster, "default", selected).await, Vec::new());
    let make = |name: &str, value: &str| json!({ "metadata": { "name": name, "labels": { "x": value } } });
    cluster.create(&maps, "default", make("a", "2")).await.unwrap();
    cluster.create(&maps, "kube-system", make("other", "1")).await.unwrap();
    cluster.create(&maps, "default", make("b", "1")).await.unwrap();
    assert_eq!(next(&mut stream, &mut pending).await, (WatchEventKind::Added, "b".into()));
    let label = |value: &str| json!({ "metadata": { "labels": { "x": value } } });
    for (value, kind) in [("2", WatchEventKind::Deleted), ("1", WatchEventKind::Added)] {
        cluster.patch(&maps, ("default", "b", ""), PatchType::Merge, label(value), options()).await.unwrap();
        assert_eq!(next(&mut stream, &mut pending).await, (kind, "b".into()));
    }
    cluster.delete(&maps, "default", "b", DeleteOptions::default()).await.unwrap();
    assert_eq!(next(&mut stream, &mut pending).await, (WatchEventKind::Deleted, "b".into()));
}

#[tokio::test]
async fn initial_events_end_with_a_bookmark() {
    let cluster = Cluster::start().await;
    let maps = resource("", "v1", "configmaps");
    cluster.create(&maps, "default", json!({ "metadata": { "name": "a" } })).await.unwrap();
    let options = ListOptions {
        send_initial_events: Some(true),
        resource_version_match: "NotOlderThan".into(),
        allow_watch_bookmarks: true,
        ..ListOptions::default()
    };
    let (mut stream, mut pending) = (watch(&cluster, "default", options).await, Vec::new());
    assert_eq!(next(&mut stream, &mut pending).await, (WatchEventKind::Added, "a".into()));
    assert_eq!(next(&mut stream, &mut pending).await.0, WatchEventKind::Bookmark);
}

#[tokio::test]
async fn a_watch_ends_in_time_also_where_something_always_happens() {
    let cluster = Cluster::start().await;
    let maps = resource("", "v1", "configmaps");
    let options = ListOptions { timeout_seconds: Some(1), ..ListOptions::default() };
    let mut stream = watch(&cluster, "default", options).await;
    let write = async |number: usize| {
        let map = json!({ "metadata": { "name": format!("map-{number}") } });
        cluster.create(&maps, "default", map).await.unwrap();
    };
    for number in 0..100 {
        write(number).await;
    }
    // The watcher never catches up.
    let begun = std::time::Instant::now();
    for number in 100.. {
        write(number).await;
        write(usize::MAX - number).await;
        let batch = stream.next().await;
        if batch.is_none() {
            return;
        }
        assert!(begun.elapsed().as_secs() < 60, "the watch goes on");
    }
}

#[tokio::test]
async fn pages_are_of_one_revision() {
    let cluster = Cluster::start().await;
    let maps = resource("", "v1", "configmaps");
    for name in ["a", "b", "c", "d", "e"] {
        cluster.create(&maps, "default", json!({ "metadata": { "name": name } })).await.unwrap();
    }
    let mut options = ListOptions { limit: 2, ..ListOptions::default() };
    let (mut names, mut revisions) = (Vec::new(), Vec::new());
    loop {
        let call = Call::List(options.clone());
        let Ok(Response::List(list)) = cluster.call(&maps, "default", "", "", call).await else {
            panic!("no list");
        };
        // What is deleted between pages is still part of the list.
        let _ = cluster.delete(&maps, "default", "e", DeleteOptions::default()).await;
        names.extend(list.items.iter().map(|item| item.meta().name.clone()));
        revisions.push(list.revision);
        if list.continue_token.is_empty() {
            break;
        }
        options.continue_token = list.continue_token;
    }
    assert_eq!(names, ["a", "b", "c", "d", "e"]);
    assert!(revisions.windows(2).all(|pair| pair[0] == pair[1]));
}

#[tokio::test]
async fn dependents_are_watched_by_their_owner() {
    let cluster = Cluster::start().await;
    let maps = resource("", "v1", "configmaps");
    let selected =
        ListOptions { field_selector: "metadata.ownerReferences.uid=u1".into(), ..ListOptions::default() };
    let (mut stream, mut pending) = (watch(&cluster, "", selected.clone()).await, Vec::new());
    let owner = |uid: &str| json!({ "apiVersion": "v1", "kind": "ConfigMap", "name": "o", "uid": uid });
    let make = |name: &str, owners: Value| json!({ "metadata": { "name": name, "ownerReferences": owners } });
    cluster.create(&maps, "default", make("a", json!([owner("u2")]))).await.unwrap();
    cluster.create(&maps, "default", make("b", json!([owner("u2"), owner("u1")]))).await.unwrap();
    assert_eq!(next(&mut stream, &mut pending).await, (WatchEventKind::Added, "b".into()));
    let Ok(Response::List(list)) = cluster.call(&maps, "", "", "", Call::List(selected)).await else {
        panic!("no list");
    };
    assert_eq!(list.items.len(), 1);
    let orphan = json!({ "metadata": { "ownerReferences": null } });
    cluster.patch(&maps, ("default", "b", ""), PatchType::Merge, orphan, options()).await.unwrap();
    assert_eq!(next(&mut stream, &mut pending).await, (WatchEventKind::Deleted, "b".into()));
}

#[tokio::test]
async fn a_list_whose_revision_is_gone_goes_on_with_what_is_there() {
    let cluster = Cluster::start().await;
    let maps = resource("", "v1", "configmaps");
    for name in ["a", "b", "c"] {
        cluster.create(&maps, "default", json!({ "metadata": { "name": name } })).await.unwrap();
    }
    let page = async |token: &str| {
        let options = ListOptions { limit: 1, continue_token: token.into(), ..ListOptions::default() };
        match cluster.call(&maps, "default", "", "", Call::List(options)).await {
            Ok(Response::List(list)) => Ok((list.items[0].meta().name.clone(), list.continue_token)),
            Ok(_) => panic!("no list"),
            Err(status) => Err(status),
        }
    };
    let (first, token) = page("").await.unwrap();
    assert_eq!(first, "a");
    cluster.delete(&maps, "default", "b", DeleteOptions::default()).await.unwrap();
    let newest = cluster.store.current_revision().await.unwrap();
    cluster.store.compact(newest).await.unwrap();
    let expired = page(&token).await.unwrap_err();
    assert_eq!(expired.code, 410);
    assert_eq!(expired.to_json()["metadata"]["continue"], expired.details.continue_token);
    let (next, token) = page(&expired.details.continue_token).await.unwrap();
    assert_eq!((next.as_str(), token.as_str()), ("c", ""));
}

#[tokio::test]
async fn a_watch_goes_on_at_another_server() {
    let cluster = Cluster::start().await;
    let maps = resource("", "v1", "configmaps");
    let first = cluster.create(&maps, "default", json!({ "metadata": { "name": "a" } })).await.unwrap();
    cluster.create(&maps, "default", json!({ "metadata": { "name": "b" } })).await.unwrap();
    cluster.delete(&maps, "default", "a", DeleteOptions::default()).await.unwrap();
    // Whose caches begin now.
    let other = Cluster::start_over(cluster.store.clone()).await;
    let since = ListOptions {
        resource_version: first["metadata"]["resourceVersion"].as_str().unwrap().into(),
        field_selector: "metadata.name!=kube-root-ca.crt".into(),
        ..ListOptions::default()
    };
    let (mut stream, mut pending) = (watch(&other, "default", since).await, Vec::new());
    assert_eq!(next(&mut stream, &mut pending).await, (WatchEventKind::Added, "b".into()));
    assert_eq!(next(&mut stream, &mut pending).await, (WatchEventKind::Deleted, "a".into()));
    cluster.create(&maps, "default", json!({ "metadata": { "name": "c" } })).await.unwrap();
    assert_eq!(next(&mut stream, &mut pending).await, (WatchEventKind::Added, "c".into()));
}
