//! One-time tokens: who was told a stream's URL may open that stream, once, within a minute.
//!
//! Source: upstream's streaming server (`k8s.io/kubelet/pkg/cri/streaming`): its bounds, and the code when they are met.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tonic::Status;

/// How long a token may wait for its use.
const LIFETIME: Duration = Duration::from_secs(60);
/// Streams that may be asked for and not opened.
const WAITING_MAX: usize = 1000;

/// What waits to be opened.
pub(crate) struct Tokens<T> {
    waiting: Mutex<HashMap<String, (Instant, T)>>,
}

impl<T> Default for Tokens<T> {
    fn default() -> Self {
        Self { waiting: Mutex::default() }
    }
}

impl<T> Tokens<T> {
    /// A token for a stream.
    pub(crate) fn give(&self, stream: T, now: Instant) -> Result<String, Status> {
        let mut waiting = self.waiting.lock();
        if waiting.len() >= WAITING_MAX {
            waiting.retain(|_, (since, _)| now.duration_since(*since) < LIFETIME);
        }
        if waiting.len() >= WAITING_MAX {
            return Err(Status::resource_exhausted(format!(
                "{WAITING_MAX} streams were asked for and are not opened: try again later"
            )));
        }
        let token = base::id::hex64();
        waiting.insert(token.clone(), (now, stream));
        Ok(token)
    }

    /// The stream of a token, which is of no use any more.
    pub(crate) fn take(&self, token: &str, now: Instant) -> Option<T> {
        let (since, stream) = self.waiting.lock().remove(token)?;
        (now.duration_since(since) < LIFETIME).then_some(stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_opens_once_and_not_for_ever() {
        let tokens = Tokens::default();
        let now = Instant::now();
        let token = tokens.give("a", now).unwrap();
        assert_eq!(tokens.take(&token, now), Some("a"));
        assert_eq!(tokens.take(&token, now), None);
        let late = tokens.give("b", now).unwrap();
        assert_eq!(tokens.take(&late, now + LIFETIME), None);
        assert_eq!(tokens.take("guessed", now), None);
    }

    #[test]
    fn what_waits_is_bounded_and_makes_room_when_it_is_old() {
        let tokens = Tokens::default();
        let now = Instant::now();
        for _ in 0..WAITING_MAX {
            tokens.give((), now).unwrap();
        }
        assert_eq!(tokens.give((), now).unwrap_err().code(), tonic::Code::ResourceExhausted);
        tokens.give((), now + LIFETIME).unwrap();
    }
}
