//! Accepting connections: what a listener does when it cannot.

use std::io;
use std::time::Duration;

use crate::backoff::Policy;

/// How long a listener waits after failures in a row, as Go's `net/http` does.
const PAUSE: Policy = Policy { first: Duration::from_millis(5), max: Duration::from_secs(1) };

/// The next connection of a listener, whose `accept` is called until it gives one. `whose` names it in warnings.
///
/// A client that went away again before it was accepted costs nothing. Anything else is a lack (of descriptors, of
/// memory) that ends when others end: nothing tells of that, so it is tried again after a pause that grows.
pub async fn next<T, F>(whose: &str, accept: impl Fn() -> F) -> T
where
    F: Future<Output = io::Result<T>>,
{
    let mut failures = 0;
    loop {
        match accept().await {
            Ok(accepted) => return accepted,
            Err(error) if of_the_client(&error) => tracing::debug!(whose, %error, "a client went away"),
            Err(error) => {
                failures += 1;
                let pause = PAUSE.delay(failures);
                tracing::warn!(whose, %error, ?pause, "a connection could not be accepted");
                tokio::time::sleep(pause).await;
            }
        }
    }
}

/// Errors of the connection that was to be accepted, not of the listener. Source: accept(2), "Error handling".
fn of_the_client(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionReset, HostUnreachable, Interrupted, NetworkUnreachable,
    };
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | HostUnreachable | Interrupted | NetworkUnreachable
    )
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[tokio::test]
    async fn clients_that_left_and_lacks_are_survived() {
        let answers = RefCell::new(vec![
            Ok("connection"),
            Err(io::Error::from_raw_os_error(23)),
            Err(io::Error::from_raw_os_error(24)),
            Err(io::ErrorKind::ConnectionAborted.into()),
        ]);
        let accepted = next("a test", || std::future::ready(answers.borrow_mut().pop().unwrap())).await;
        assert_eq!(accepted, "connection");
        assert!(answers.borrow().is_empty());
    }

    #[test]
    fn a_lack_is_not_the_client_s() {
        assert!(of_the_client(&io::Error::from_raw_os_error(103)));
        assert!(!of_the_client(&io::Error::from_raw_os_error(24)));
    }
}
