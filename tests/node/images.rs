//! What an image says to run. Source: `test/e2e/common/node/containers.go`.

use serde_json::{Value, json};

use crate::space::{OWN_IMAGE, Space, main, pod};

pub(crate) fn command_and_arguments_override_the_images(space: &Space<'_>) {
    let arguments = json!(["override", "arguments"]);
    let command = json!(["/bin/echo", "override-command"]);
    let cases = [
        ("neither", Value::Null, Value::Null, "entry-point default arguments\n"),
        ("arguments", Value::Null, arguments.clone(), "entry-point override arguments\n"),
        // The image's arguments belong to its own entry point.
        ("command", command.clone(), Value::Null, "override-command\n"),
        ("both", command, arguments, "override-command override arguments\n"),
    ];
    let pods: Vec<Value> = cases
        .iter()
        .map(|(name, command, arguments, _)| {
            let mut pod = pod(name, "");
            let main = main(&mut pod);
            main["image"] = OWN_IMAGE.into();
            (main["command"], main["args"]) = (command.clone(), arguments.clone());
            pod
        })
        .collect();
    let printed = space.outputs(&pods);
    for (name, .., wanted) in cases {
        assert_eq!(printed[name], wanted, "{name}");
    }
}
