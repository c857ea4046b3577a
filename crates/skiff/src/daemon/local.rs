//! In-process ways to the API server's pipeline: the same door as HTTPS, without the network.

use std::sync::Arc;
use std::time::Instant;

use api::connect::User;
use api::{Request, Response, Status};
use apiserver::Pipeline;
use async_trait::async_trait;
use client::{Client, Transport};

use super::calls::Calls;

/// The group of this process's own components: no certificate or token can claim it.
pub(crate) const COMPONENTS: &str = apiserver::authn::names::COMPONENTS;

/// Requests under one fixed identity.
struct Local {
    pipeline: Arc<Pipeline>,
    user: User,
    calls: Arc<Calls>,
}

#[async_trait]
impl Transport for Local {
    async fn send(&self, request: Request) -> Result<Response, Status> {
        let (verb, since) = (request.call.verb(), Instant::now());
        let answer = self.pipeline.call(&self.user, request).await;
        self.calls.answered(verb, &answer, since.elapsed());
        answer
    }
}

/// A client of the pipeline as a component of this process.
pub(crate) fn client(pipeline: &Arc<Pipeline>, calls: &Arc<Calls>, user: &str, groups: &[&str]) -> Client {
    let groups = groups.iter().map(|group| (*group).to_owned()).collect();
    let user = User { name: user.to_owned(), groups, ..User::default() };
    let manager = user.name.rsplit(':').next().unwrap_or("skiff").to_owned();
    Client::new(Arc::new(Local { pipeline: pipeline.clone(), user, calls: calls.clone() }), &manager)
}
