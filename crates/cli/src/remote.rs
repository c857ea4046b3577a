//! A pod's streams: its log over HTTP, and commands over WebSocket (`v5.channel.k8s.io`, KEP-4006).

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use futures::{Sink, SinkExt, Stream, StreamExt};
use http::{HeaderValue, Request, header};
use http_body_util::{BodyExt, Full, Limited};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::containers::ExecCommand;
use crate::engine::quote;
use crate::target::PodContainer;
use crate::terminal;

/// The protocol of the channels.
const PROTOCOL: &str = "v5.channel.k8s.io";

/// Bytes of an error's document that are read at most.
const ERROR_MAX_BYTES: usize = 1 << 20;

/// Channel numbers; each message begins with one.
mod channel {
    pub(super) const STDIN: u8 = 0;
    pub(super) const STDOUT: u8 = 1;
    pub(super) const STDERR: u8 = 2;
    pub(super) const ERROR: u8 = 3;
    pub(super) const RESIZE: u8 = 4;
    /// The channel whose number follows is closed.
    pub(super) const CLOSE: u8 = 255;
}

/// Copies a container's log to standard output. `query` holds further parameters (`follow=true`).
pub async fn log(target: &PodContainer, query: &str) -> Result<()> {
    let path = format!(
        "/api/v1/namespaces/{}/pods/{}/log?container={}&{query}",
        quote(&target.namespace),
        quote(&target.pod),
        quote(&target.container)
    );
    let response = target.access.https.send_http(Request::get(path).body(Full::default())?).await?;
    if !response.status().is_success() {
        let body = Limited::new(response.into_body(), ERROR_MAX_BYTES).collect().await;
        bail!("{}", message(&body.map(http_body_util::Collected::to_bytes).unwrap_or_default()));
    }
    let mut body = response.into_body().into_data_stream();
    let mut out = tokio::io::stdout();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.context("read the log")?;
        match out.write_all(&chunk).await.and(out.flush().await) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            other => other?,
        }
    }
    Ok(())
}

/// The sentence in a `Status`, or the text as it is.
pub(crate) fn message(body: &[u8]) -> String {
    let status: Option<Value> = serde_json::from_slice(body).ok();
    let sentence = status.and_then(|status| status["message"].as_str().map(str::to_owned));
    sentence.unwrap_or_else(|| String::from_utf8_lossy(body).trim().to_owned())
}

/// Runs a command in a container; answers with its exit code.
pub async fn exec(target: &PodContainer, exec: &ExecCommand) -> Result<u8> {
    let command: String = exec.command.iter().map(|word| format!("&command={}", quote(word))).collect();
    let uri = format!(
        "wss://{}/api/v1/namespaces/{}/pods/{}/exec?container={}&stdout=true&stderr={}&stdin={}&tty={}{command}",
        target.access.https.authority(),
        quote(&target.namespace),
        quote(&target.pod),
        quote(&target.container),
        !exec.tty,
        exec.stdin,
        exec.tty,
    );
    let mut request = uri.into_client_request().context("the address of the command")?;
    request.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL));
    if let Some(value) = target.access.https.authorization().await? {
        request.headers_mut().insert(header::AUTHORIZATION, value);
    }
    let stream = target.access.https.connect().await?;
    let socket = match tokio_tungstenite::client_async(request, stream).await {
        Ok((socket, _)) => socket,
        Err(Error::Http(response)) => {
            let body = response.body().as_deref().unwrap_or_default();
            bail!("{} ({})", message(body), response.status());
        }
        Err(error) => return Err(error).context("open the command's connection"),
    };
    let _raw = if exec.stdin && exec.tty { terminal::Raw::enter()? } else { None };
    let (sink, stream) = socket.split();
    let input = input(sink, tokio::io::stdin(), exec);
    tokio::select! {
        code = output(stream, tokio::io::stdout(), tokio::io::stderr()) => code,
        () = input => bail!("the connection to the command broke"),
    }
}

/// Sends standard input and the terminal's size. Ends only when the connection does.
async fn input<S, I>(mut sink: S, mut stdin: I, exec: &ExecCommand)
where
    S: Sink<Message> + Unpin,
    I: AsyncRead + Unpin,
{
    let mut resizes = if exec.tty { terminal::resizes().ok() } else { None };
    let mut open = exec.stdin;
    let mut buffer = BytesMut::with_capacity(16 * 1024);
    if exec.tty && sink.send(size_message()).await.is_err() {
        return;
    }
    loop {
        let message = tokio::select! {
            read = stdin.read_buf(&mut buffer), if open => {
                let bytes = buffer.split();
                open = read.is_ok_and(|read| read > 0);
                if open { framed(channel::STDIN, &bytes) } else { framed(channel::CLOSE, &[channel::STDIN]) }
            }
            () = changed(&mut resizes) => size_message(),
        };
        if sink.send(message).await.is_err() {
            return;
        }
    }
}

async fn changed(resizes: &mut Option<tokio::signal::unix::Signal>) {
    if let Some(resizes) = resizes
        && resizes.recv().await.is_some()
    {
        return;
    }
    std::future::pending().await
}

fn framed(channel: u8, bytes: &[u8]) -> Message {
    let mut frame = BytesMut::with_capacity(bytes.len() + 1);
    frame.extend_from_slice(&[channel]);
    frame.extend_from_slice(bytes);
    Message::Binary(frame.freeze())
}

fn size_message() -> Message {
    let (rows, columns) = terminal::size().unwrap_or((24, 80));
    framed(channel::RESIZE, format!(r#"{{"Width":{columns},"Height":{rows}}}"#).as_bytes())
}

/// Copies the command's output until its status arrives.
async fn output<S>(
    mut stream: S,
    mut out: impl tokio::io::AsyncWrite + Unpin,
    mut err: impl tokio::io::AsyncWrite + Unpin,
) -> Result<u8>
where
    S: Stream<Item = Result<Message, Error>> + Unpin,
{
    while let Some(message) = stream.next().await {
        let bytes: Bytes = match message.context("the connection to the command broke")? {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => text.into(),
            _ => continue,
        };
        let Some((channel, payload)) = bytes.split_first() else { continue };
        match *channel {
            channel::STDOUT => {
                out.write_all(payload).await?;
                out.flush().await?;
            }
            channel::STDERR => {
                err.write_all(payload).await?;
                err.flush().await?;
            }
            channel::ERROR => return exit_code(payload),
            _ => {}
        }
    }
    bail!("the connection ended before the command did")
}

/// The exit code in the `Status` of the error channel. Source: upstream's `remotecommand`.
fn exit_code(status: &[u8]) -> Result<u8> {
    let status: Value = serde_json::from_slice(status).context("the command's status")?;
    if status["status"] == "Success" {
        return Ok(0);
    }
    let causes = status["details"]["causes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let code = causes.iter().find(|cause| cause["reason"] == "ExitCode").and_then(|c| c["message"].as_str());
    match code.and_then(|code| code.parse::<i64>().ok()) {
        Some(code) => Ok(u8::try_from(code & 0xff).unwrap_or(1)),
        None => bail!("{}", status["message"].as_str().unwrap_or("the command failed without a reason")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream;

    #[test]
    fn exit_codes_come_from_the_status() {
        assert_eq!(exit_code(br#"{"status":"Success"}"#).unwrap(), 0);
        let failed = br#"{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"7"}]}}"#;
        assert_eq!(exit_code(failed).unwrap(), 7);
        let error = exit_code(br#"{"status":"Failure","message":"no such program"}"#).unwrap_err();
        assert_eq!(error.to_string(), "no such program");
        assert!(exit_code(b"nonsense").is_err());
    }

    #[tokio::test]
    async fn output_goes_to_its_stream_and_the_status_ends_it() {
        let messages = [
            framed(channel::STDOUT, b"out"),
            framed(channel::STDERR, b"err"),
            Message::Binary(Bytes::new()),
            framed(channel::ERROR, br#"{"status":"Success"}"#),
            framed(channel::STDOUT, b"never"),
        ];
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = output(stream::iter(messages.map(Ok)), &mut out, &mut err).await.unwrap();
        assert_eq!((code, out.as_slice(), err.as_slice()), (0, b"out".as_slice(), b"err".as_slice()));
        assert!(output(stream::empty(), Vec::new(), Vec::new()).await.is_err());
    }

    #[tokio::test]
    async fn the_end_of_standard_input_is_sent() {
        let (sender, receiver) = futures::channel::mpsc::unbounded();
        let exec = ExecCommand { command: Vec::new(), stdin: true, tty: false };
        let sent = tokio::select! {
            () = input(sender, b"abc".as_slice(), &exec) => panic!("the connection is open"),
            sent = receiver.take(2).collect::<Vec<_>>() => sent,
        };
        assert_eq!(sent, [framed(channel::STDIN, b"abc"), framed(channel::CLOSE, &[channel::STDIN])]);
    }

    #[test]
    fn errors_are_the_servers_sentence() {
        assert_eq!(message(br#"{"kind":"Status","message":"pods \"x\" not found"}"#), "pods \"x\" not found");
        assert_eq!(message(b"plain\n"), "plain");
    }
}
