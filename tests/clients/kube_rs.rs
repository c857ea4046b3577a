//! What programs do with kube-rs: typed objects, watches kept in stores, a controller of a derived kind, applies,
//! evictions, logs and discovery.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{
    DeleteParams, DynamicObject, EvictParams, ListParams, LogParams, ObjectMeta, Patch, PatchParams,
    PostParams,
};
use kube::discovery::{Discovery, Scope};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::reflector::{self, store::Writer};
use kube::runtime::wait::{await_condition, conditions};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, CustomResource, CustomResourceExt as _, Resource as _, ResourceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::Site;

/// Longer than anything here takes, whatever else the machine does.
const PATIENCE: Duration = Duration::from_secs(240);

/// A list of words that the controller counts.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, CustomResource)]
#[kube(
    group = "rs.example.com",
    version = "v1",
    kind = "Poem",
    namespaced,
    status = "Count",
    shortname = "poe"
)]
#[kube(printcolumn = r#"{"name":"Words","type":"integer","jsonPath":".status.words"}"#)]
struct PoemSpec {
    text: String,
    #[serde(default)]
    tags: Vec<String>,
}

/// What the controller saw.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
struct Count {
    words: u32,
}

#[test]
fn a_program_on_kube_rs() {
    let site = Site::up();
    // This program again, on the host: its API server answers there.
    let me = std::env::current_exe().unwrap();
    let said = site
        .host
        .command(&me.to_string_lossy())
        .args(["--exact", "kube_rs::the_program", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let said = testbed::Ran::from(said).ok().unwrap_or_else(|error| panic!("{error:#}"));
    assert!(said.contains("all is well"), "{said}");
    site.end();
}

#[test]
#[ignore = "the program itself, which a_program_on_kube_rs starts on a host"]
fn the_program() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let done = runtime.block_on(async { tokio::time::timeout(PATIENCE, program()).await });
    done.expect("it hangs").unwrap_or_else(|error| panic!("{error}: {error:?}"));
    println!("all is well");
}

async fn program() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::try_default().await?;
    assert_eq!(client.apiserver_version().await?.major, "1");
    objects(&client).await?;
    applies(&client).await?;
    watches(&client).await?;
    controller(&client).await?;
    pods(&client).await?;
    discovery(&client).await?;
    Ok(())
}

fn config_map(name: &str, value: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some([("app".to_owned(), "rs".to_owned())].into()),
            ..ObjectMeta::default()
        },
        data: Some([("k".to_owned(), value.to_owned())].into()),
        ..ConfigMap::default()
    }
}

fn value(map: &ConfigMap) -> &str {
    map.data.as_ref().and_then(|data| data.get("k")).map_or("", String::as_str)
}

/// The code and reason of a refusal.
fn refused<T>(result: kube::Result<T>) -> (u16, String) {
    match result {
        Err(kube::Error::Api(status)) => (status.code, status.reason.clone()),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("not refused"),
    }
}

async fn objects(client: &Client) -> kube::Result<()> {
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let made = maps.create(&PostParams::default(), &config_map("one", "1")).await?;
    let again = maps.create(&PostParams::default(), &config_map("one", "1")).await;
    assert_eq!(refused(again), (409, "AlreadyExists".to_owned()));
    assert_eq!(refused(maps.get("none").await), (404, "NotFound".to_owned()));
    assert!(maps.get_opt("none").await?.is_none());
    let mut changed = made.clone();
    changed.data = config_map("one", "2").data;
    maps.replace("one", &PostParams::default(), &changed).await?;
    assert_eq!(
        refused(maps.replace("one", &PostParams::default(), &changed).await),
        (409, "Conflict".to_owned())
    );
    let merge = Patch::Merge(json!({ "data": { "k": "3" } }));
    assert_eq!(value(&maps.patch("one", &PatchParams::default(), &merge).await?), "3");
    assert_eq!(
        value(
            &maps
                .patch("one", &PatchParams::default().dry_run(), &Patch::Merge(json!({ "data": null })))
                .await?
        ),
        ""
    );
    let metadata = maps.get_metadata("one").await?;
    assert_eq!(metadata.labels()["app"], "rs");
    let mut entry = maps.entry("two").await?.or_insert(|| config_map("two", "4"));
    entry.commit(&PostParams::default()).await.expect("committed");
    let page = maps.list(&ListParams::default().labels("app=rs").limit(1)).await?;
    assert_eq!((page.items.len(), page.metadata.remaining_item_count), (1, None));
    let token = page.metadata.continue_.unwrap();
    let rest = maps.list(&ListParams::default().labels("app=rs").limit(1).continue_token(&token)).await?;
    assert_eq!(rest.items[0].name_any(), "two");
    maps.delete_collection(&DeleteParams::default(), &ListParams::default().labels("app=rs")).await?;
    assert!(maps.list(&ListParams::default().labels("app=rs")).await?.items.is_empty());
    Ok(())
}

async fn applies(client: &Client) -> kube::Result<()> {
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let mut wanted = config_map("applied", "1");
    maps.patch("applied", &PatchParams::apply("one"), &Patch::Apply(&wanted)).await?;
    wanted.data = config_map("applied", "2").data;
    let conflict = maps.patch("applied", &PatchParams::apply("two"), &Patch::Apply(&wanted)).await;
    assert_eq!(refused(conflict), (409, "Conflict".to_owned()));
    let forced = maps.patch("applied", &PatchParams::apply("two").force(), &Patch::Apply(&wanted)).await?;
    assert_eq!(value(&forced), "2");
    let managers: Vec<_> = forced.managed_fields().iter().filter_map(|entry| entry.manager.clone()).collect();
    assert_eq!(managers, ["one", "two"]);
    maps.delete("applied", &DeleteParams::foreground()).await?;
    await_condition(maps, "applied", conditions::is_deleted(&forced.uid().unwrap())).await.expect("deleted");
    Ok(())
}

/// A store that a watch keeps, once with a list at its beginning and once with a streamed one.
async fn watches(client: &Client) -> Result<(), Box<dyn std::error::Error>> {
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    for config in [watcher::Config::default(), watcher::Config::default().streaming_lists()] {
        maps.create(&PostParams::default(), &config_map("there", "1")).await?;
        let writer = Writer::default();
        let store = writer.as_reader();
        let events = reflector::reflector(writer, watcher(maps.clone(), config.labels("app=rs")));
        let mut changed = Box::pin(events.default_backoff().touched_objects());
        let first = changed.try_next().await?.unwrap();
        assert_eq!(first.name_any(), "there");
        maps.create(&PostParams::default(), &config_map("comes", "2")).await?;
        assert_eq!(changed.try_next().await?.unwrap().name_any(), "comes");
        assert_eq!(store.state().len(), 2);
        maps.delete("there", &DeleteParams::default()).await?;
        assert_eq!(changed.try_next().await?.unwrap().name_any(), "there");
        let left: Vec<_> = store.state().iter().map(|map| map.name_any()).collect();
        assert_eq!(left, ["comes"]);
        maps.delete("comes", &DeleteParams::default()).await?;
    }
    Ok(())
}

#[derive(Debug)]
struct Failed(kube::Error);

impl std::fmt::Display for Failed {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(formatter)
    }
}

impl std::error::Error for Failed {}

/// Counts a Poem's words into its status, and keeps a map that it owns.
async fn count(poem: Arc<Poem>, client: Arc<Client>) -> Result<Action, Failed> {
    let namespace = poem.namespace().unwrap_or_default();
    let words = u32::try_from(poem.spec.text.split_whitespace().count()).unwrap_or(u32::MAX);
    let mut map = config_map(&poem.name_any(), &words.to_string());
    map.metadata.owner_references = Some(vec![poem.controller_owner_ref(&()).unwrap_or_default()]);
    let maps: Api<ConfigMap> = Api::namespaced(Client::clone(&client), &namespace);
    let apply = PatchParams::apply("poems").force();
    maps.patch(&poem.name_any(), &apply, &Patch::Apply(&map)).await.map_err(Failed)?;
    let poems: Api<Poem> = Api::namespaced(Client::clone(&client), &namespace);
    let status = json!({ "apiVersion": "rs.example.com/v1", "kind": "Poem", "status": { "words": words } });
    poems.patch_status(&poem.name_any(), &apply, &Patch::Apply(status)).await.map_err(Failed)?;
    Ok(Action::await_change())
}

async fn controller(client: &Client) -> Result<(), Box<dyn std::error::Error>> {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let name = Poem::crd().name_any();
    definitions.patch(&name, &PatchParams::apply("rs"), &Patch::Apply(Poem::crd())).await?;
    await_condition(definitions.clone(), &name, conditions::is_crd_established()).await?;

    let poems: Api<Poem> = Api::default_namespaced(client.clone());
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let running = Controller::new(poems.clone(), watcher::Config::default())
        .owns(maps.clone(), watcher::Config::default())
        .run(count, |_, _, _| Action::requeue(Duration::from_secs(1)), Arc::new(client.clone()));
    tokio::select! {
        () = running.for_each(|_| async {}) => panic!("the controller ended"),
        done = a_poems_life(poems, maps) => done?,
    }
    let definition = definitions.delete(&name, &DeleteParams::default()).await?;
    let uid = definition.either(|definition| definition.uid(), |_| None).unwrap();
    await_condition(definitions, &name, conditions::is_deleted(&uid)).await?;
    Ok(())
}

/// What the controller does for a Poem while it runs.
async fn a_poems_life(poems: Api<Poem>, maps: Api<ConfigMap>) -> Result<(), Box<dyn std::error::Error>> {
    let spec = PoemSpec { text: "roses are red".to_owned(), tags: Vec::new() };
    let poem = poems.create(&PostParams::default(), &Poem::new("roses", spec)).await?;
    let counted = |words| {
        move |poem: Option<&Poem>| {
            poem.and_then(|poem| poem.status.as_ref()).is_some_and(|status| status.words == words)
        }
    };
    await_condition(poems.clone(), "roses", counted(3)).await?;
    let more = Patch::Merge(json!({ "spec": { "text": "roses are red again" } }));
    poems.patch("roses", &PatchParams::default(), &more).await?;
    await_condition(poems.clone(), "roses", counted(4)).await?;
    // What it owns comes back, and goes with its owner.
    let lost = maps.get("roses").await?;
    maps.delete("roses", &DeleteParams::default()).await?;
    let back = move |map: Option<&ConfigMap>| map.is_some_and(|map| map.uid() != lost.uid());
    let kept = await_condition(maps.clone(), "roses", back).await?.unwrap();
    let wrong = Patch::Merge(json!({ "spec": { "text": 7 } }));
    assert_eq!(refused(poems.patch("roses", &PatchParams::default(), &wrong).await).0, 422);
    poems.delete("roses", &DeleteParams::background()).await?;
    await_condition(poems, "roses", conditions::is_deleted(&poem.uid().unwrap())).await?;
    await_condition(maps, "roses", conditions::is_deleted(&kept.uid().unwrap())).await?;
    Ok(())
}

async fn pods(client: &Client) -> Result<(), Box<dyn std::error::Error>> {
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let pod: Pod = serde_json::from_value(json!({
        "metadata": { "name": "talker" },
        "spec": { "terminationGracePeriodSeconds": 1, "containers": [{
            "name": "talker", "image": "busybox", "command": ["sh", "-c", "echo hello; exec sleep 3600"] }] },
    }))?;
    let made = pods.create(&PostParams::default(), &pod).await?;
    await_condition(pods.clone(), "talker", conditions::is_pod_running()).await?;
    let follow = LogParams { follow: true, ..LogParams::default() };
    let mut lines = futures::AsyncBufReadExt::lines(pods.log_stream("talker", &follow).await?);
    assert_eq!(lines.try_next().await?.unwrap(), "hello");
    drop(lines);
    assert_eq!(
        pods.logs("talker", &LogParams { tail_lines: Some(1), ..LogParams::default() }).await?,
        "hello\n"
    );
    pods.evict("talker", &EvictParams::default()).await?;
    await_condition(pods, "talker", conditions::is_deleted(&made.uid().unwrap())).await?;
    Ok(())
}

async fn discovery(client: &Client) -> kube::Result<()> {
    let found = Discovery::new(client.clone()).run_aggregated().await?;
    let apps = found.get("apps").unwrap();
    let (deployment, capabilities) = apps.recommended_kind("Deployment").unwrap();
    assert_eq!((deployment.version.as_str(), &capabilities.scope), ("v1", &Scope::Namespaced));
    assert_eq!(deployment.plural, Deployment::plural(&()));
    assert!(capabilities.supports_operation("patch"));
    let namespaces = found.resolve_gvk(&kube::core::GroupVersionKind::gvk("", "v1", "Namespace")).unwrap().0;
    let all: Api<DynamicObject> = Api::all_with(client.clone(), &namespaces);
    let names: Vec<_> = all.list(&ListParams::default()).await?.iter().map(ResourceExt::name_any).collect();
    assert!(names.contains(&"kube-system".to_owned()), "{names:?}");
    assert!(Discovery::new(client.clone()).filter(&["batch"]).run().await?.has_group("batch"));
    Ok(())
}
