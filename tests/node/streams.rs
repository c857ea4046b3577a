//! Logs and commands. Source: `test/e2e/common/node/{pods,kubelet}.go`.

use tokio_tungstenite::tungstenite::Message;

use crate::api::{Executed, base64};
use crate::space::{IDLE, Space, pod};

pub(crate) fn what_a_container_prints_is_its_log(space: &Space<'_>) {
    let said = space.output(&pod("speaks", "echo 'Hello World'; echo 'to both' >&2; sleep 0.1"));
    assert_eq!(said, "Hello World\nto both\n");
}

pub(crate) fn commands_run_over_a_websocket(space: &Space<'_>) {
    space.start(&pod("runs", IDLE));
    let command = "container=main&stdout=1&stderr=1&command=echo&command=remote+execution+test";
    let path = space.path(&format!("pods/runs/exec?{command}"));
    let (chosen, messages) = space.api.messages(&path, "channel.k8s.io");
    assert_eq!(chosen, "channel.k8s.io");
    assert_eq!(Executed::of(&messages).out, "remote execution test\n");
    let failed = space.try_exec("runs", "main", "echo said; exit 7");
    assert!(!failed.succeeded() && failed.out == "said\n", "{}", failed.status);
    assert_eq!(failed.status["details"]["causes"][0]["message"], "7", "{}", failed.status);
}

pub(crate) fn logs_are_read_over_a_websocket(space: &Space<'_>) {
    space.output(&pod("spoke", "echo container is alive"));
    let path = space.path("pods/spoke/log?container=main");
    let (chosen, messages) = space.api.messages(&path, "binary.k8s.io");
    assert_eq!(chosen, "binary.k8s.io");
    let bytes: Vec<u8> = messages
        .iter()
        .flat_map(|message| match message {
            Message::Binary(bytes) => bytes.to_vec(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(String::from_utf8_lossy(&bytes), "container is alive\n");
    // Who cannot take bytes gets text; an empty message comes first, so that the client knows that it is heard.
    let (chosen, messages) = space.api.messages(&path, "base64.binary.k8s.io");
    assert_eq!(chosen, "base64.binary.k8s.io");
    let wanted = [Message::text(""), Message::text(base64("container is alive\n"))];
    assert_eq!(messages, wanted);
}
