//! Who is let in, and how often the API server is asked.

use std::sync::Arc;

use api::{Call, Object, Request, Response};
use base::clock::VirtualClock;
use client::Transport;
use http::HeaderValue;
use jiff::Timestamp;
use parking_lot::Mutex;

use super::*;

/// Knows the token `good`, and that the user `scraper` may do what `allowed` names.
#[derive(Default)]
struct Api {
    allowed: Vec<&'static str>,
    asked: Mutex<Vec<String>>,
    away: Mutex<bool>,
}

#[async_trait::async_trait]
impl Transport for Api {
    async fn send(&self, request: Request) -> Result<Response, Status> {
        if *self.away.lock() {
            return Err(Status::internal("away"));
        }
        let Call::Create { body, .. } = &request.call else { return Err(Status::internal("no review")) };
        let spec = serde_json::from_slice::<serde_json::Value>(body).unwrap()["spec"].take();
        let status = if request.resource.resource == "tokenreviews" {
            self.asked.lock().push("token".to_owned());
            json!({"authenticated": spec["token"] == "good",
                "user": {"username": "scraper", "uid": "u1", "groups": ["g"], "extra": {"k": ["v"]}}})
        } else {
            let wanted = &spec["resourceAttributes"];
            assert_eq!((&spec["uid"], &spec["extra"]["k"][0]), (&json!("u1"), &json!("v")));
            assert_eq!(wanted["name"], "n1");
            let right =
                format!("{} {}", wanted["verb"].as_str().unwrap(), wanted["subresource"].as_str().unwrap());
            let allowed = self.allowed.contains(&right.as_str());
            self.asked.lock().push(right);
            json!({ "allowed": allowed })
        };
        let object = json!({ "metadata": {}, "status": status }).to_string();
        let object = Arc::new(Object::parse(object.into()).unwrap());
        Ok(Response::Object { object, created: true, warnings: Vec::new() })
    }
}

fn guard(allowed: &[&'static str]) -> (Arc<Api>, VirtualClock, Guard) {
    let api = Arc::new(Api { allowed: allowed.to_vec(), ..Api::default() });
    let clock = VirtualClock::new(Timestamp::from_second(1_800_000_000).unwrap());
    let guard = Guard::new(Client::new(api.clone(), "kubelet"), Arc::new(clock.clone()), "n1");
    (api, clock, guard)
}

fn bearer(token: &str) -> HeaderMap {
    let value = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
    HeaderMap::from_iter([(header::AUTHORIZATION, value)])
}

async fn asked(guard: &Guard, method: &Method, route: &Route) -> Result<(), Status> {
    let identity = guard.authenticate(None, &bearer("good")).await?;
    guard.authorize("skiff-apiserver", &identity, method, route).await
}

#[test]
fn only_the_api_server_and_masters_need_no_review() {
    let identity = |name: &str, groups: &[&str]| Identity {
        name: name.to_owned(),
        groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        ..Identity::default()
    };
    assert!(is_trusted(&identity("skiff-apiserver", &[]), "skiff-apiserver"));
    assert!(is_trusted(&identity("admin", &["system:masters"]), "skiff-apiserver"));
    assert!(!is_trusted(&identity("system:node:other", &["system:nodes"]), "skiff-apiserver"));
    assert!(!is_trusted(&identity("", &[]), ""));
}

#[tokio::test]
async fn a_fine_right_or_the_broad_one_is_enough() {
    let (api, _, broad) = guard(&["get proxy"]);
    for route in [Route::Pods, Route::Configz, Route::Healthz] {
        asked(&broad, &Method::GET, &route).await.unwrap();
    }
    let rights = ["token", "get pods", "get proxy", "get configz", "get healthz"];
    assert_eq!(*api.asked.lock(), rights, "the answer about the proxy is known");
    // Figures and logs have rights of their own that the broad one does not stand for.
    let refused = asked(&broad, &Method::GET, &Route::Metrics).await.unwrap_err();
    assert_eq!(refused.code, 403);
    assert_eq!(
        refused.message,
        "Forbidden (user=scraper, verb=get, resource=nodes, subresource(s)=[metrics])"
    );

    let (_, _, fine) = guard(&["get pods"]);
    asked(&fine, &Method::GET, &Route::Pods).await.unwrap();
    let refused = asked(&fine, &Method::GET, &Route::Configz).await.unwrap_err();
    assert!(refused.message.ends_with("subresource(s)=[configz proxy])"), "{}", refused.message);
    assert_eq!(asked(&fine, &Method::PUT, &Route::ApiServer).await.unwrap_err().code, 403);
}

#[tokio::test]
async fn answers_are_asked_for_again_when_they_are_old() {
    let (api, clock, guard) = guard(&["get metrics"]);
    for _ in 0..3 {
        asked(&guard, &Method::GET, &Route::Metrics).await.unwrap();
        assert_eq!(guard.authenticate(None, &bearer("bad")).await.unwrap_err().code, 401);
    }
    assert_eq!(*api.asked.lock(), ["token", "get metrics", "token"]);
    clock.advance(REFUSED_TTL);
    guard.authenticate(None, &bearer("bad")).await.unwrap_err();
    assert_eq!(api.asked.lock().len(), 4);
    clock.advance(TOKEN_TTL);
    asked(&guard, &Method::GET, &Route::Metrics).await.unwrap();
    assert_eq!(api.asked.lock().len(), 5, "the right is known for longer than the name");
    clock.advance(ALLOWED_TTL);
    asked(&guard, &Method::GET, &Route::Metrics).await.unwrap();
    assert_eq!(api.asked.lock().len(), 7);
}

#[tokio::test]
async fn nothing_is_concluded_from_an_api_server_that_does_not_answer() {
    let (api, _, guard) = guard(&["get metrics"]);
    *api.away.lock() = true;
    assert_eq!(asked(&guard, &Method::GET, &Route::Metrics).await.unwrap_err().code, 401);
    *api.away.lock() = false;
    let identity = guard.authenticate(None, &bearer("good")).await.unwrap();
    *api.away.lock() = true;
    let failed = guard.authorize("", &identity, &Method::GET, &Route::Metrics).await.unwrap_err();
    assert_eq!(failed.code, 500);
    *api.away.lock() = false;
    asked(&guard, &Method::GET, &Route::Metrics).await.unwrap();
}
