//! The informers and the queue against a scripted server.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use api::{
    Call, Key, List, Object, Reason, Request, Response, Status, WatchEvent, WatchEventKind, WatchStream,
};
use async_trait::async_trait;
use base::clock::{Clock, VirtualClock};
use base::queues::Queues;
use client::{Client, Transport};
use futures::StreamExt;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::informer::Informers;
use crate::kinds;
use crate::queue::{LOOKED_AT, Queue};
use crate::reflector::object;

type Batch = Result<Vec<WatchEvent>, Status>;

/// Answers each list and watch with the next line of its script, and keeps what it was asked.
struct Script {
    answers: Mutex<VecDeque<Result<Response, Status>>>,
    asked: Mutex<Vec<String>>,
}

#[async_trait]
impl Transport for Script {
    async fn send(&self, request: Request) -> Result<Response, Status> {
        let line = match &request.call {
            Call::Watch(options) => {
                format!("watch {:?} from {:?}", options.send_initial_events, options.resource_version)
            }
            Call::List(_) => "list".to_owned(),
            other => format!("{:?}", other.verb()),
        };
        self.asked.lock().push(line);
        let next = self.answers.lock().pop_front();
        match next {
            Some(answer) => answer,
            None => std::future::pending().await,
        }
    }
}

fn watch() -> (mpsc::UnboundedSender<Batch>, Result<Response, Status>) {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let stream: WatchStream = futures::stream::poll_fn(move |cx| receiver.poll_recv(cx)).boxed();
    (sender, Ok(Response::Watch(stream)))
}

fn event(kind: WatchEventKind, object: Arc<Object>) -> WatchEvent {
    WatchEvent { kind, object, initial_events_end: false }
}

fn synced_at(revision: i64) -> WatchEvent {
    WatchEvent {
        kind: WatchEventKind::Bookmark,
        object: object("", "", "", revision),
        initial_events_end: true,
    }
}

fn informers(answers: Vec<Result<Response, Status>>) -> (Arc<Script>, Informers, VirtualClock) {
    let script = Arc::new(Script { answers: Mutex::new(answers.into()), asked: Mutex::default() });
    let clock = VirtualClock::new(Timestamp::UNIX_EPOCH);
    let client = Client::new(script.clone(), "test");
    (script, Informers::new(client, Arc::new(clock.clone())), clock)
}

#[tokio::test]
async fn relists_only_on_410_and_synthesizes_what_was_missed() {
    let (first, first_answer) = watch();
    let (second, second_answer) = watch();
    let (third, third_answer) = watch();
    let (script, informers, clock) = informers(vec![first_answer, second_answer, third_answer]);
    let informer = informers.get(kinds::CONFIG_MAPS);
    let log = Arc::new(Mutex::new(Vec::new()));
    let seen = log.clone();
    let _registration = informer.on_change(move |change| {
        let uid = |object: &Option<Arc<Object>>| object.as_ref().map(|object| object.meta().uid.clone());
        seen.lock().push((change.key.name.clone(), uid(&change.old), uid(&change.new)));
    });
    let added = |name, uid, revision| event(WatchEventKind::Added, object("ns", name, uid, revision));

    first.send(Ok(vec![added("a", "a1", 1), added("b", "b1", 2)])).unwrap();
    assert!(!informer.is_synced());
    first.send(Ok(vec![synced_at(5)])).unwrap();
    informer.synced().await;
    assert_eq!(informer.len(), 2);
    assert_eq!(informer.by_uid("b1").unwrap().meta().name, "b");

    first.send(Ok(vec![event(WatchEventKind::Modified, object("ns", "a", "a1", 7))])).unwrap();
    drop(first);
    informer.caught_up(7).await;
    second.send(Err(Status::new(Reason::Expired, "too old"))).unwrap();
    let tick = async {
        loop {
            clock.advance(Duration::from_secs(60));
            tokio::task::yield_now().await;
        }
    };
    // `a` was made anew and `b` went while nobody watched.
    third.send(Ok(vec![added("a", "a2", 9), synced_at(10)])).unwrap();
    tokio::select! { () = informer.caught_up(10) => {}, () = tick => {} }

    let asked = script.asked.lock().clone();
    assert_eq!(
        asked[..3],
        ["watch Some(true) from \"\"", "watch None from \"7\"", "watch Some(true) from \"\""]
    );
    let some = |uid: &str| Some(uid.to_owned());
    let expected = [
        ("a", None, some("a1")),
        ("b", None, some("b1")),
        ("a", some("a1"), some("a1")),
        ("b", some("b1"), None),
        ("a", some("a1"), None),
        ("a", None, some("a2")),
    ];
    assert_eq!(*log.lock(), expected.map(|(name, old, new)| (name.to_owned(), old, new)));
}

/// The object, with a controller.
fn owned(object: &Object) -> Arc<Object> {
    let mut json: serde_json::Value = object.decode().unwrap();
    json["metadata"]["ownerReferences"] = serde_json::json!([
        { "apiVersion": "v1", "kind": "Owner", "name": "o", "uid": "o", "controller": true }]);
    Arc::new(Object::parse(serde_json::to_vec(&json).unwrap().into()).unwrap())
}

#[tokio::test]
async fn orphans_are_found_without_a_look_at_the_others() {
    let (sender, answer) = watch();
    let (_script, informers, _clock) = informers(vec![answer]);
    let informer = informers.get(kinds::CONFIG_MAPS);
    let one = |name: &str, revision| object("ns", name, name, revision);
    let many = (1..1000).map(|at| event(WatchEventKind::Added, owned(&one(&format!("m{at}"), at))));
    sender.send(Ok(many.collect())).unwrap();
    let added = |namespace, name, at| event(WatchEventKind::Added, object(namespace, name, name, at));
    sender.send(Ok(vec![added("ns", "b", 1000), added("other", "c", 1001), synced_at(1001)])).unwrap();
    informer.synced().await;
    let looks = std::cell::Cell::new(0);
    let orphans = || {
        looks.set(0);
        let found = informer.orphans("ns", |_| {
            looks.set(looks.get() + 1);
            true
        });
        found.iter().map(|object| object.meta().name.clone()).collect::<Vec<_>>()
    };
    assert_eq!((orphans(), looks.get()), (vec!["b".to_owned()], 1));
    // One gets a controller, one loses it, one is new, and one goes.
    let changed = |object| event(WatchEventKind::Modified, object);
    let changes = vec![
        changed(owned(&one("b", 1002))),
        changed(one("m7", 1003)),
        added("ns", "a", 1004),
        changed(one("m8", 1005)),
        event(WatchEventKind::Deleted, one("m8", 1006)),
    ];
    sender.send(Ok(changes)).unwrap();
    informer.caught_up(1006).await;
    assert_eq!((orphans(), looks.get()), (vec!["a".to_owned(), "m7".to_owned()], 2));
}

#[tokio::test]
async fn objects_are_found_by_a_label_as_it_changes() {
    let (sender, answer) = watch();
    let (_script, informers, _clock) = informers(vec![answer]);
    let informer = informers.get(kinds::CONFIG_MAPS);
    let labelled = |namespace, name: &str, value: &str, revision| {
        let mut json: serde_json::Value = object(namespace, name, name, revision).decode().unwrap();
        json["metadata"]["labels"] = serde_json::json!({ "of": value, "other": "x" });
        Arc::new(Object::parse(serde_json::to_vec(&json).unwrap().into()).unwrap())
    };
    let added = |object| event(WatchEventKind::Added, object);
    let there = vec![
        added(labelled("ns", "b", "web", 1)),
        added(labelled("ns", "a", "web", 2)),
        added(labelled("ns", "c", "api", 3)),
        added(labelled("elsewhere", "a", "web", 4)),
        added(object("ns", "none", "none", 5)),
        synced_at(5),
    ];
    sender.send(Ok(there)).unwrap();
    informer.synced().await;
    let found = |namespace, value| {
        let found = informer.by_label(namespace, "of", value);
        found.iter().map(|object| object.meta().name.clone()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        (found("ns", "web"), found("ns", "api"), found("other", "web")),
        ("a b".into(), "c".into(), "".into())
    );
    // One gets another value, one loses the label, one is new, and one goes.
    let changes = vec![
        event(WatchEventKind::Modified, labelled("ns", "b", "api", 6)),
        event(WatchEventKind::Modified, object("ns", "c", "c", 7)),
        added(labelled("ns", "d", "api", 8)),
        event(WatchEventKind::Deleted, labelled("ns", "a", "web", 9)),
    ];
    sender.send(Ok(changes)).unwrap();
    informer.caught_up(9).await;
    assert_eq!(
        (found("ns", "web"), found("ns", "api"), found("elsewhere", "web")),
        ("".into(), "b d".into(), "a".into())
    );
}

#[tokio::test]
async fn falls_back_to_list_and_watch() {
    let (_watch, answer) = watch();
    let list = List { items: vec![object("ns", "a", "u", 3)], revision: 4, ..List::default() };
    let refused = Err(Status::new(Reason::Invalid, "sendInitialEvents is forbidden"));
    let (script, informers, _clock) = informers(vec![refused, Ok(Response::List(list)), answer]);
    let informer = informers.get(kinds::CONFIG_MAPS);
    informer.synced().await;
    assert_eq!((informer.len(), informer.revision()), (1, 4));
    while script.asked.lock().len() < 3 {
        tokio::task::yield_now().await;
    }
    assert_eq!(script.asked.lock()[1..], ["list", "watch None from \"4\""]);
}

#[tokio::test]
async fn subscriptions_hold_one_change_per_key() {
    let (sender, answer) = watch();
    let (_script, informers, _clock) = informers(vec![answer]);
    let informer = informers.get(kinds::CONFIG_MAPS);
    sender.send(Ok(vec![event(WatchEventKind::Added, object("ns", "a", "u", 1)), synced_at(1)])).unwrap();
    informer.synced().await;
    let mut subscription = informer.subscribe();
    let changes = (2..100).map(|revision| event(WatchEventKind::Modified, object("ns", "a", "u", revision)));
    sender.send(Ok(changes.collect())).unwrap();
    informer.caught_up(99).await;
    let changed = subscription.changed().await;
    assert_eq!(changed.len(), 1);
    assert!(changed[0].old.is_none());
    assert_eq!(changed[0].new.as_ref().unwrap().revision(), 99);
    sender.send(Ok(vec![event(WatchEventKind::Deleted, object("ns", "a", "u", 100))])).unwrap();
    let changed = subscription.changed().await;
    assert!(changed[0].new.is_none() && changed[0].old.is_some());
    assert!(informer.get(&Key::new("ns", "a")).is_none() && informer.by_uid("u").is_none());
}

#[tokio::test]
async fn a_key_is_never_worked_on_twice_at_once_and_comes_again_if_added_meanwhile() {
    let clock = VirtualClock::new(Timestamp::UNIX_EPOCH);
    let queue = Queue::new(Arc::new(clock));
    queue.add("a");
    queue.add("a");
    queue.add("b");
    let first = queue.next().await.unwrap();
    assert_eq!(*first.key(), "a");
    queue.add("a");
    let second = queue.next().await.unwrap();
    assert_eq!(*second.key(), "b");
    assert!(queue.is_empty());
    drop(first);
    assert_eq!(*queue.next().await.unwrap().key(), "a");
    drop(second);
    queue.drain().await;
    assert!(queue.next().await.is_none());
}

#[tokio::test]
async fn a_queue_tells_what_it_does() {
    let queues = Queues::default();
    let queue = Queue::new(Arc::new(VirtualClock::new(Timestamp::UNIX_EPOCH))).named("deployment", &queues);
    let told = || queues.figures()["deployment"];
    queue.add("a");
    queue.add("a");
    queue.add_after("b", Duration::ZERO);
    assert_eq!((told().adds, told().depth, told().retries), (2, 2, 1));
    let first = queue.next().await.unwrap();
    // What is added while it is worked on waits, too.
    queue.add("a");
    let now = told();
    assert_eq!((now.adds, now.depth, now.waited.count, now.worked.count), (3, 2, 1, 0));
    assert_eq!(now.unfinished, now.longest);
    queue.retry("c");
    assert_eq!((told().adds, told().retries), (3, 2));
    drop(first);
    let ended = told();
    assert_eq!((ended.worked.count, ended.unfinished, ended.longest), (1, Duration::ZERO, Duration::ZERO));
    drop(queue);
    // Its timer goes when the runtime gets to it.
    while !queues.figures().is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn where_the_clock_goes_back_keys_come_no_later() {
    let clock = VirtualClock::new(Timestamp::UNIX_EPOCH + Duration::from_secs(10_000));
    let queue = Queue::new(Arc::new(clock.clone()));
    queue.add_after("first", Duration::from_secs(60));
    queue.add_after("second", Duration::from_secs(90));
    tokio::task::yield_now().await;
    clock.set(Timestamp::UNIX_EPOCH);
    for (name, seconds) in [("first", 60), ("second", 30)] {
        clock.advance(Duration::from_secs(seconds));
        assert_eq!(*queue.next().await.unwrap().key(), name);
        tokio::task::yield_now().await;
    }
    // Also where something else is set for later before the timer runs off.
    queue.add_after("third", Duration::from_secs(60));
    tokio::task::yield_now().await;
    clock.set(Timestamp::UNIX_EPOCH - Duration::from_secs(10_000));
    queue.add_after("fourth", Duration::from_secs(50));
    tokio::task::yield_now().await;
    clock.advance(Duration::from_secs(60));
    assert_eq!(*queue.next().await.unwrap().key(), "fourth");
    assert_eq!(*queue.next().await.unwrap().key(), "third");
}

#[tokio::test]
async fn delayed_keys_come_in_order_of_their_deadlines() {
    let clock = VirtualClock::new(Timestamp::UNIX_EPOCH);
    let queue = Queue::new(Arc::new(clock.clone()));
    queue.add_after("slow", Duration::from_secs(3600));
    queue.add_after("soon", Duration::from_secs(60));
    queue.add_after("slow", Duration::from_secs(1800));
    tokio::task::yield_now().await;
    clock.advance(Duration::from_secs(60));
    assert_eq!(*queue.next().await.unwrap().key(), "soon");
    assert!(queue.is_empty());
    clock.advance(Duration::from_secs(1740));
    assert_eq!(*queue.next().await.unwrap().key(), "slow");
    assert_eq!(clock.now().as_second(), 1800);
    // Failures grow the delay; forgetting starts over.
    assert_eq!(queue.retry("x"), Duration::from_millis(5));
    assert_eq!(queue.retry("x"), Duration::from_millis(10));
    queue.forget(&"x");
    assert_eq!(queue.retry("x"), Duration::from_millis(5));
}

#[tokio::test]
async fn changes_of_many_objects_are_gathered_into_one_pass() {
    let clock = VirtualClock::new(Timestamp::UNIX_EPOCH);
    let queue = Queue::new(Arc::new(clock.clone()));
    queue.add_gathered("few", 10, LOOKED_AT);
    assert_eq!(*queue.next().await.unwrap().key(), "few");
    for _ in 0..1000 {
        queue.add_gathered("many", 10_000, LOOKED_AT);
    }
    tokio::task::yield_now().await;
    clock.advance(Duration::from_millis(49));
    assert!(queue.is_empty());
    clock.advance(Duration::from_millis(1));
    drop(queue.next().await.unwrap());
    assert!(queue.is_empty());
    // A change of what is wanted waits for none of them.
    queue.add_gathered("many", 10_000, LOOKED_AT);
    queue.add("many");
    assert_eq!(*queue.next().await.unwrap().key(), "many");
}
