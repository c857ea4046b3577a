//! Pages on their way through a proxy, whose links are changed piece by piece ([`super::html`]), unpacked and packed again
//! where they are packed.

use std::io::{self, Write};

use api::connect::Body;
use base::BoxError;
use flate2::Compression;
use flate2::write::{GzDecoder, GzEncoder};
use futures::stream;
use http::{Response, StatusCode, header};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, StreamBody};

use super::html::Page;

/// So many bytes are unpacked at once: they may become a thousand times as many.
const PACKED_BYTES: usize = 4096;

/// How a page is unpacked, and packed again.
struct Packing {
    unpack: GzDecoder<Vec<u8>>,
    pack: GzEncoder<Vec<u8>>,
}

/// A page that may be packed.
struct Filter<F> {
    page: Page<F>,
    packed: Option<Packing>,
}

impl<F: Fn(&str) -> String> Filter<F> {
    fn feed(&mut self, data: &[u8]) -> io::Result<Vec<u8>> {
        let Some(Packing { unpack, pack }) = &mut self.packed else { return Ok(self.page.feed(data)) };
        for some in data.chunks(PACKED_BYTES) {
            unpack.write_all(some)?;
            let plain = std::mem::take(unpack.get_mut());
            pack.write_all(&self.page.feed(&plain))?;
        }
        // Who reads a page while it is written goes on reading it.
        pack.flush()?;
        Ok(std::mem::take(pack.get_mut()))
    }

    fn finish(&mut self) -> io::Result<Vec<u8>> {
        let Some(Packing { mut unpack, mut pack }) = self.packed.take() else {
            return Ok(self.page.finish());
        };
        unpack.try_finish()?;
        let plain = std::mem::take(unpack.get_mut());
        pack.write_all(&self.page.feed(&plain))?;
        pack.write_all(&self.page.finish())?;
        pack.finish()
    }
}

/// An answer whose links are changed, if it is a page that can be read. A redirect stays as it is, and so does an answer
/// without a body (to HEAD): its headers tell of a page that is elsewhere.
pub(crate) fn linked<F>(answer: Response<Body>, link: F) -> Response<Body>
where
    F: Fn(&str) -> String + Send + 'static,
{
    let text = |name: header::HeaderName| {
        answer.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    };
    let media = text(header::CONTENT_TYPE).split(';').next().unwrap_or_default().trim();
    let packed = match text(header::CONTENT_ENCODING) {
        "" => None,
        "gzip" => Some(Packing {
            unpack: GzDecoder::new(Vec::new()),
            pack: GzEncoder::new(Vec::new(), Compression::fast()),
        }),
        _ => return answer,
    };
    let whole = !matches!(answer.status(), StatusCode::SWITCHING_PROTOCOLS | StatusCode::PARTIAL_CONTENT);
    if media != "text/html"
        || !whole
        || answer.body().is_end_stream()
        || answer.headers().contains_key(header::LOCATION)
    {
        return answer;
    }
    let (mut head, body) = answer.into_parts();
    head.headers.remove(header::CONTENT_LENGTH);
    let filter = Filter { page: Page::new(link), packed };
    let frames = stream::try_unfold((Some(body), filter), |(body, mut filter)| async move {
        let Some(mut body) = body else { return Ok(None) };
        let (bytes, body) = match body.frame().await.transpose()? {
            None => (filter.finish()?, None),
            // Trailers tell of bytes that are others now.
            Some(frame) => (frame.into_data().map_or(Ok(Vec::new()), |data| filter.feed(&data))?, Some(body)),
        };
        Ok::<_, BoxError>(Some((Frame::data(bytes.into()), (body, filter))))
    });
    Response::from_parts(head, StreamBody::new(frames).boxed_unsync())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read;
    use http_body_util::Full;

    use super::*;

    async fn through(media: &str, encoding: &str, body: Vec<u8>) -> (bool, Vec<u8>) {
        let body = Full::new(bytes::Bytes::from(body)).map_err(|never| match never {}).boxed_unsync();
        let mut answer = Response::builder().header("content-type", media).header("content-length", "1");
        if !encoding.is_empty() {
            answer = answer.header("content-encoding", encoding);
        }
        let answer = linked(answer.body(body).unwrap(), |value| format!("/p{value}"));
        let measured = answer.headers().contains_key("content-length");
        (measured, answer.into_body().collect().await.unwrap().to_bytes().to_vec())
    }

    #[tokio::test]
    async fn pages_are_changed_packed_or_not() {
        let (page, changed) = ("<a href=\"/x\">x</a>", b"<a href=\"/p/x\">x</a>".to_vec());
        assert_eq!(through("text/html; charset=utf-8", "", page.into()).await, (false, changed.clone()));
        let mut pack = GzEncoder::new(Vec::new(), Compression::fast());
        pack.write_all(page.as_bytes()).unwrap();
        let (_, packed) = through("text/html", "gzip", pack.finish().unwrap()).await;
        let mut plain = Vec::new();
        read::GzDecoder::new(&packed[..]).read_to_end(&mut plain).unwrap();
        assert_eq!(plain, changed);
        assert_eq!(through("text/plain", "", page.into()).await, (true, page.into()));
        assert_eq!(through("text/html", "br", page.into()).await, (true, page.into()));
        // The answer to a HEAD.
        for encoding in ["", "gzip"] {
            assert_eq!(through("text/html", encoding, Vec::new()).await, (true, Vec::new()), "{encoding}");
        }
    }
}
