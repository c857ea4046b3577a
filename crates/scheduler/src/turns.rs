//! What is written about one pod is written in the order in which it was decided, whoever is quicker: a condition of an
//! earlier attempt never comes after the binding of a later one. Source: upstream's `backend/api_dispatcher`.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

type Uid = Arc<str>;

/// Who writes about which pod.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    /// The last in each row, with its number.
    last: Mutex<HashMap<Uid, (u64, oneshot::Receiver<()>)>>,
}

/// A place in the row of those that write about a pod. The next one's turn comes when this is dropped.
pub(crate) struct Ticket {
    turns: Arc<Turns>,
    uid: Uid,
    number: u64,
    before: Option<oneshot::Receiver<()>>,
    _done: oneshot::Sender<()>,
}

impl Turns {
    /// A place behind all that there are.
    pub(crate) fn enter(self: &Arc<Self>, uid: &Uid) -> Ticket {
        let (done, after) = oneshot::channel();
        let mut last = self.last.lock();
        let held = last.remove(uid);
        let number = held.as_ref().map_or(0, |(number, _)| number + 1);
        last.insert(uid.clone(), (number, after));
        let before = held.map(|(_, before)| before);
        Ticket { turns: self.clone(), uid: uid.clone(), number, before, _done: done }
    }
}

impl Ticket {
    /// Returns once all that came before are done.
    pub(crate) async fn turn(&mut self) {
        if let Some(before) = self.before.take() {
            // It says nothing and ends.
            drop(before.await);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut last = self.turns.last.lock();
        if last.get(&self.uid).is_some_and(|(number, _)| *number == self.number) {
            last.remove(&self.uid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_decided_first_writes_first() {
        let (turns, said) = (Arc::new(Turns::default()), Arc::new(Mutex::new(Vec::new())));
        let uid: Uid = "u".into();
        let mut tickets: Vec<Ticket> = (0..4).map(|_| turns.enter(&uid)).collect();
        let other = turns.enter(&"v".into());
        let ctx = base::lifecycle::Context::detached("turns");
        let mut tasks = Vec::new();
        // The last of them is asked first.
        while let Some(mut ticket) = tickets.pop() {
            let (said, number) = (said.clone(), tickets.len());
            tasks.push(ctx.spawn(async move {
                ticket.turn().await;
                tokio::task::yield_now().await;
                said.lock().push(number);
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*said.lock(), [0, 1, 2, 3]);
        assert_eq!(turns.last.lock().len(), 1);
        drop(other);
        assert!(turns.last.lock().is_empty());
    }
}
