//! Who pulls when: one pull of an image at a time, whose result those that wait have as well, and no more pulls at once
//! than the node may have.

use std::collections::HashMap;
use std::sync::Arc;

use engine_api::Resolution;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};

/// A pull that has ended well.
#[derive(Debug, Clone)]
pub(super) struct Pulled {
    pub(super) began: Timestamp,
    pub(super) what: Resolution,
}

type Last = Arc<tokio::sync::Mutex<Option<Pulled>>>;

/// Pulls that are under way.
#[derive(Default)]
pub(super) struct Pulls {
    lasts: Mutex<HashMap<String, Last>>,
    /// `None`: there is no bound.
    places: Option<Arc<Semaphore>>,
}

/// The right to pull an image, and what the one before has pulled.
pub(super) type Turn = OwnedMutexGuard<Option<Pulled>>;

impl Pulls {
    /// At most so many at a time.
    pub(super) fn bounded(max: Option<u32>) -> Self {
        let places = max.map(|max| Arc::new(Semaphore::new(max.max(1) as usize)));
        Self { lasts: Mutex::default(), places }
    }

    /// Waits until nobody else pulls this image.
    pub(super) async fn turn(&self, image: &str) -> Turn {
        self.last(image).lock_owned().await
    }

    /// The turn, if nobody pulls this image.
    pub(super) fn free_turn(&self, image: &str) -> Option<Turn> {
        self.last(image).try_lock_owned().ok()
    }

    fn last(&self, image: &str) -> Last {
        let mut lasts = self.lasts.lock();
        lasts.retain(|_, last| Arc::strong_count(last) > 1);
        lasts.entry(image.to_owned()).or_default().clone()
    }

    /// Waits until fewer images are pulled than may be at once.
    pub(super) async fn place(&self) -> Option<OwnedSemaphorePermit> {
        // Nobody closes it.
        self.places.clone()?.acquire_owned().await.ok()
    }
}

/// What another's pull gave, if it began after this one was asked for: then it is as new as a pull of one's own.
pub(super) fn shared(last: Option<&Pulled>, asked: Timestamp) -> Option<Resolution> {
    last.filter(|last| last.began >= asked).map(|last| last.what.clone())
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn an_image_is_pulled_by_one_at_a_time_and_no_more_at_once_than_may_be() {
        let pulls = Pulls::bounded(Some(2));
        let first = pulls.turn("a").await;
        assert!(pulls.turn("a").now_or_never().is_none() && pulls.free_turn("a").is_none());
        let other = pulls.turn("b").now_or_never().unwrap();
        let places = (pulls.place().await, pulls.place().await);
        assert!(pulls.place().now_or_never().is_none());
        drop(places.0);
        assert!(pulls.place().now_or_never().is_some());
        drop((first, other));
        assert!(pulls.free_turn("a").is_some());
        assert!(pulls.turn("c").now_or_never().is_some());
        assert_eq!(pulls.lasts.lock().len(), 1, "what nobody waits for is forgotten");
        assert!(Pulls::default().place().await.is_none());
    }
}
