//! What happens to sandboxes and containers, as the interface tells it: from the engine's notices, and from the calls that
//! remove, after which the engine knows nothing more of what is gone.

use engine_api::{ContainerEvent, ContainerEventKind, EventsLost};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use jiff::Timestamp;
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;
use tonic::Status;

use crate::known::Pod;
use crate::proto::{
    ContainerEventResponse, ContainerEventType, PodSandboxMetadata, PodSandboxState, PodSandboxStatus,
};
use crate::shared::Shared;
use crate::{containers, status};

/// How many events a receiver may be behind.
pub(crate) const KEPT: usize = 1024;

/// The name of a sandbox, for events about what is gone.
pub(crate) fn metadata_of(pod: &Pod) -> Option<PodSandboxMetadata> {
    pod.config.metadata.clone()
}

/// The event of a notice of the engine's; `None` for those that calls tell themselves.
fn kind_of(notice: &ContainerEvent) -> Option<ContainerEventType> {
    let of_container = !notice.container_id.is_empty();
    match &notice.kind {
        ContainerEventKind::Created if of_container => Some(ContainerEventType::ContainerCreatedEvent),
        ContainerEventKind::Started => Some(ContainerEventType::ContainerStartedEvent),
        ContainerEventKind::Exited(_) | ContainerEventKind::SandboxDied => {
            Some(ContainerEventType::ContainerStoppedEvent)
        }
        ContainerEventKind::Created | ContainerEventKind::Removed | ContainerEventKind::Warning(_) => None,
    }
}

impl Shared {
    /// Tells of the engine's notices for as long as there are any.
    pub(crate) async fn follow(&self) {
        let mut notices = self.runtime.events().await;
        while let Some(notice) = notices.next().await {
            let notice = match notice {
                Ok(notice) => notice,
                Err(EventsLost(count)) => {
                    // Whoever listens has to list again as well.
                    let _ = self.events.send(Err(EventsLost(count)));
                    continue;
                }
            };
            let id = match notice.container_id.as_str() {
                "" => &notice.sandbox_id,
                id => id,
            };
            let ours = self.known.has_container(id) || self.known.has_pod(id);
            if let Some(kind) = kind_of(&notice).filter(|_| ours) {
                self.tell(&notice.sandbox_id, id, kind).await;
            }
        }
    }

    /// Tells of a sandbox or a container of it, with how both are now.
    pub(crate) async fn tell(&self, sandbox_id: &str, id: &str, kind: ContainerEventType) {
        if self.events.receiver_count() == 0 {
            return;
        }
        let Ok(pod) = self.pod(sandbox_id).await else { return };
        let addresses = self.addresses(&pod).await.unwrap_or_default();
        let containers_statuses = containers::of_pod(self, &pod).await.unwrap_or_default();
        self.send(ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind as i32,
            created_at: status::nanos(Timestamp::now()),
            pod_sandbox_status: Some(status::pod_status(&pod, &addresses)),
            containers_statuses,
        });
    }

    /// Tells that a sandbox or a container is removed; of its sandbox is known what it was called.
    pub(crate) fn tell_gone(&self, id: &str, metadata: Option<PodSandboxMetadata>) {
        let state = PodSandboxState::SandboxNotready as i32;
        self.send(ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: ContainerEventType::ContainerDeletedEvent as i32,
            created_at: status::nanos(Timestamp::now()),
            pod_sandbox_status: Some(PodSandboxStatus { metadata, state, ..PodSandboxStatus::default() }),
            containers_statuses: Vec::new(),
        });
    }

    fn send(&self, event: ContainerEventResponse) {
        // Nobody may be listening.
        let _ = self.events.send(Ok(event));
    }
}

/// Events from now on; a receiver that is too slow is told so and has to list.
pub(crate) fn stream(
    receiver: broadcast::Receiver<Result<ContainerEventResponse, EventsLost>>,
) -> BoxStream<'static, Result<ContainerEventResponse, Status>> {
    let lost = |count| Status::data_loss(format!("{count} events were lost: list again"));
    let told = move |event| match event {
        Ok(Ok(event)) => Ok(event),
        Ok(Err(EventsLost(count))) | Err(BroadcastStreamRecvError::Lagged(count)) => Err(lost(count)),
    };
    BroadcastStream::new(receiver).map(told).boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_misses_events_is_told_so() {
        let sender = broadcast::Sender::new(1);
        let mut told = stream(sender.subscribe());
        sender.send(Err(EventsLost(7))).unwrap();
        let status = told.next().await.unwrap().unwrap_err();
        assert_eq!(
            (status.code(), status.message()),
            (tonic::Code::DataLoss, "7 events were lost: list again")
        );
        for _ in 0..3 {
            sender.send(Ok(ContainerEventResponse::default())).unwrap();
        }
        assert_eq!(told.next().await.unwrap().unwrap_err().code(), tonic::Code::DataLoss);
        assert!(told.next().await.unwrap().is_ok());
    }
}
