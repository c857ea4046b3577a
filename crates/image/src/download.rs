//! Brings content from the places that have it: what breaks off goes on from where it ended, at the next place or at the
//! same one, and nothing is kept but what has the digest that was asked for.

use std::time::{Duration, Instant};

use base::backoff::Policy;
use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE};
use tokio::sync::mpsc;

use crate::Error;
use crate::document::Descriptor;
use crate::error::During;
use crate::partial::Partial;
use crate::reference::Reference;
use crate::refusal::Refusal;
use crate::registry::run_blocking;
use crate::source::Source;
use crate::store::Store;

/// Tries in a row that brought next to nothing.
const FRUITLESS_MAX: u32 = 3;
/// Tries in all: a place that breaks off after each byte is not asked for ever.
const TRIES_MAX: u32 = 32;
const PAUSE: Policy = Policy { first: Duration::from_millis(250), max: Duration::from_secs(5) };
/// Progress is told once per so many bytes.
const REPORT_BYTES: u64 = 512 * 1024;
/// Chunks that wait to be written.
const CHUNKS_WAITING: usize = 16;

/// When a connection that brings next to nothing ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// It ends when nothing comes for so long, and is looked at again and again after so much waiting.
    pub(crate) window: Duration,
    /// It ends when less has come in that time.
    pub(crate) bytes_min: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { window: Duration::from_secs(60), bytes_min: 16 * 1024 }
    }
}

/// The places that may be asked for one image, in their order.
pub(crate) struct Download<'a> {
    pub(crate) store: &'a Store,
    pub(crate) sources: &'a [Source],
    pub(crate) reference: &'a Reference,
    pub(crate) pace: Pace,
}

impl Download<'_> {
    /// Brings one piece of content into the store, unless it is there. `counted` is told how much has come.
    pub(crate) async fn bring(
        &self,
        what: &Descriptor,
        counted: impl Fn(u64) + Send + Sync,
    ) -> Result<(), Error> {
        let inner = &self.store.inner;
        let turn = inner.partials.turn(&self.reference.domain, &what.digest).await;
        if inner.blobs.contains(&what.digest) {
            return Ok(());
        }
        let (store, size) = (self.store.clone(), what.size);
        let partial = run_blocking(move || {
            let mut partial = store.inner.partials.begin(turn)?;
            if partial.bytes() > size {
                partial.restart()?;
            }
            store.inner.blobs.must_fit(size - partial.bytes())?;
            Ok(partial)
        })
        .await?;
        let partial = self.complete(partial, what, counted).await?;
        let (store, digest) = (self.store.clone(), what.digest.clone());
        run_blocking(move || {
            let file = partial.finish(&digest)?;
            store.inner.blobs.adopt(file, &digest)
        })
        .await
    }

    /// Asks one place after the other until everything is there and is what it should be.
    async fn complete(
        &self,
        mut partial: Partial,
        what: &Descriptor,
        counted: impl Fn(u64) + Send + Sync,
    ) -> Result<Partial, Error> {
        let mut search = Search::new(self.sources, partial.bytes());
        for tries in 0..=TRIES_MAX {
            if partial.bytes() == what.size {
                let actual = partial.digest();
                if actual == what.digest {
                    return Ok(partial);
                }
                partial = restarted(partial).await?;
                if search.was_wrong() {
                    return Err(Error::Digest {
                        expected: what.digest.to_string(),
                        actual: actual.to_string(),
                    });
                }
            }
            // What the last try completed has been looked at too.
            if tries == TRIES_MAX {
                break;
            }
            let Some(place) = search.place() else {
                return Err(Error::Invalid(format!(
                    "no place may be asked for {}: see its hosts.toml",
                    self.reference.familiar()
                )));
            };
            let before = partial.bytes();
            let (back, result) = self.once(place, partial, what, &counted).await?;
            partial = back;
            search.came(before, partial.bytes(), self.pace.bytes_min);
            let Err(refusal) = result else { continue };
            match search.next(&refusal) {
                true => tokio::time::sleep(PAUSE.delay(search.fruitless)).await,
                false => return Err(refusal.told(self.reference, place.host())),
            }
        }
        Err(Refusal::CutOff.told(self.reference, &self.reference.domain))
    }

    /// One request: gives back what is there then, and why it is not all.
    async fn once(
        &self,
        place: &Source,
        mut partial: Partial,
        what: &Descriptor,
        counted: &(impl Fn(u64) + Send + Sync),
    ) -> Result<(Partial, Result<(), Refusal>), Error> {
        let response = match place.blob(&what.digest, partial.bytes()).await {
            Ok(response) => response,
            // It has not so much of it: what is here is not what it has.
            Err(Refusal::Status(StatusCode::RANGE_NOT_SATISFIABLE, _)) => {
                return Ok((restarted(partial).await?, Err(Refusal::CutOff)));
            }
            Err(refusal) => return Ok((partial, Err(refusal))),
        };
        match begins_at(&response, partial.bytes(), what.size) {
            Ok(0) if partial.bytes() > 0 => partial = restarted(partial).await?,
            Ok(_) => {}
            Err(refusal) => return Ok((partial, Err(refusal))),
        }
        let begun = partial.bytes();
        let (sender, receiver) = mpsc::channel(CHUNKS_WAITING);
        let writing = run_blocking(move || write(partial, receiver));
        let reading = self.read(response, sender, begun, what.size, counted);
        let (partial, read) = futures::future::join(writing, reading).await;
        let partial = partial?;
        match read {
            // What is more than was promised is not what was asked for.
            Err(Refusal::Lie(why)) => Ok((restarted(partial).await?, Err(Refusal::Lie(why)))),
            read => Ok((partial, read)),
        }
    }

    async fn read(
        &self,
        mut response: reqwest::Response,
        sender: mpsc::Sender<Bytes>,
        begun: u64,
        size: u64,
        counted: &(impl Fn(u64) + Send + Sync),
    ) -> Result<(), Refusal> {
        let (mut done, mut told) = (begun, begun);
        let (mut waited, mut came) = (Duration::ZERO, 0);
        loop {
            let asked = Instant::now();
            let chunk = response.chunk().await.map_err(Refusal::Connection)?;
            waited += asked.elapsed();
            let Some(chunk) = chunk else { break };
            done += chunk.len() as u64;
            came += chunk.len() as u64;
            if done > size {
                return Err(Refusal::Lie(format!(
                    "it sends more than the {size} bytes that its manifest names"
                )));
            }
            if done - told >= REPORT_BYTES {
                told = done;
                counted(done);
            }
            // The writer ends early only where it fails, and says so itself.
            if sender.send(chunk).await.is_err() {
                return Ok(());
            }
            if waited >= self.pace.window {
                if came < self.pace.bytes_min && done < size {
                    return Err(Refusal::TooSlow);
                }
                (waited, came) = (Duration::ZERO, 0);
            }
        }
        if done < size { Err(Refusal::CutOff) } else { Ok(()) }
    }
}

/// Who is asked next, and who sent what is there.
struct Search<'a> {
    places: Vec<&'a Source>,
    at: usize,
    /// Tries in a row that brought nothing.
    fruitless: u32,
    /// The place that everything so far is from; `None` where it is from several, or from another time.
    from: Option<usize>,
}

impl<'a> Search<'a> {
    fn new(sources: &'a [Source], there: u64) -> Self {
        let places: Vec<&Source> = sources.iter().filter(|source| source.can.pull).collect();
        Self { places, at: 0, fruitless: 0, from: (there == 0).then_some(0) }
    }

    fn place(&self) -> Option<&'a Source> {
        self.places.get(self.at).copied()
    }

    /// Notes what a try brought. Next to nothing is nothing.
    fn came(&mut self, before: u64, now: u64, least: u64) {
        if before == 0 {
            self.from = Some(self.at);
        } else if now != before && self.from != Some(self.at) {
            self.from = None;
        }
        self.fruitless = if now >= before.saturating_add(least) { 0 } else { self.fruitless + 1 };
    }

    /// Goes on to another place, or to the same one again; whether there is any.
    fn next(&mut self, refusal: &Refusal) -> bool {
        let tries = FRUITLESS_MAX.max(u32::try_from(self.places.len()).unwrap_or(u32::MAX));
        if refusal.may_pass() && self.fruitless < tries {
            self.at = (self.at + 1) % self.places.len();
            return true;
        }
        self.drop_place(self.at);
        !self.places.is_empty()
    }

    /// What was put together is not what was asked for: a place that sent all of it is not asked again. Whether none is left.
    fn was_wrong(&mut self) -> bool {
        if let Some(from) = self.from {
            self.drop_place(from);
        }
        self.places.is_empty()
    }

    fn drop_place(&mut self, at: usize) {
        if at < self.places.len() {
            self.places.remove(at);
        }
        self.at = if at < self.places.len() { at } else { 0 };
        self.fruitless = 0;
        self.from = None;
    }
}

async fn restarted(mut partial: Partial) -> Result<Partial, Error> {
    run_blocking(move || {
        partial.restart()?;
        Ok(partial)
    })
    .await
}

/// Where what comes begins: where it was asked for, or at the start.
fn begins_at(response: &reqwest::Response, wanted: u64, size: u64) -> Result<u64, Refusal> {
    let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
    if response.status() != StatusCode::PARTIAL_CONTENT {
        let length = header(CONTENT_LENGTH).and_then(|text| text.parse::<u64>().ok());
        return match length {
            Some(length) if length > size => {
                Err(Refusal::Lie(format!("content has {length} bytes where its manifest names {size}")))
            }
            _ => Ok(0),
        };
    }
    let range = header(CONTENT_RANGE).unwrap_or_default();
    let told = range.strip_prefix("bytes ").and_then(|range| range.split_once('-'));
    match told.and_then(|(begin, _)| begin.parse().ok()) {
        Some(begin) if begin == wanted => Ok(begin),
        _ => Err(Refusal::Lie(format!("it was asked for bytes from {wanted} on and sends {range:?}"))),
    }
}

/// Writes what comes until nothing more does. Blocks. A disk that is full keeps none of it.
fn write(mut partial: Partial, mut chunks: mpsc::Receiver<Bytes>) -> Result<Partial, Error> {
    while let Some(chunk) = chunks.blocking_recv() {
        if let Err(error) = partial.append(&chunk) {
            partial.discard()?;
            return Err(error).during("write content");
        }
    }
    Ok(partial)
}
