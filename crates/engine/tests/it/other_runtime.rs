//! Sandboxes on another OCI runtime than the built-in one.

use engine_api::{ContainerSpec, EngineError, ErrorKind, Runtime as _, SandboxSpec, Security};

use crate::support::{Place, RUNC, with_runc};

engine_api::contract_cases!(with_runc:
    containers_run_log_and_tell_how_they_ended,
    a_container_that_is_removed_is_gone,
    stopping_asks_first_and_kills_after_the_grace,
    a_sooner_end_hastens_a_stop_that_is_under_way,
    a_group_without_a_user_keeps_the_image_s_user,
    programs_that_cannot_run_say_why,
    a_container_runs_again,
    processes_are_executed_in_running_containers,
    containers_of_a_sandbox_share_network_and_shared_memory_but_not_processes,
    events_tell_a_container_s_life,
    an_attached_client_misses_nothing,
    terminals_work_for_containers_and_further_processes,
    an_exec_reads_standard_input_to_its_end,
    connections_reach_into_the_sandbox,
    the_default_profile_confines_first_and_further_processes,
    security_settings_hold,
    only_the_default_devices_can_be_used,
    limits_are_set_and_kills_for_memory_are_told,
    a_shared_pid_namespace_has_an_init_without_rights,
    kernel_parameters_of_the_sandbox_are_set_and_the_hosts_refused,
    groups_limits_of_processes_and_temporary_file_systems_are_as_asked,
);

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_has_the_runtime_that_it_asks_for_or_none() {
    let place = Place::new();
    let bench = place.open().await;
    let subject = bench.subject();
    let asking = |handler: &str| SandboxSpec {
        id: base::id::hex64(),
        runtime_handler: handler.to_owned(),
        ..SandboxSpec::default()
    };
    let EngineError { kind, message } = bench.engine.create_sandbox(asking("kata")).await.unwrap_err();
    assert_eq!(kind, ErrorKind::Invalid);
    assert!(message.contains("no runtime for \"kata\" is configured"), "{message}");
    assert!(bench.engine.sandboxes().await.unwrap().is_empty());
    let sandbox = bench.engine.create_sandbox(asking(RUNC)).await.unwrap().spec.id;
    let spec = ContainerSpec {
        security: Security { privileged: true, ..Security::default() },
        ..subject.script(&sandbox, "sleep 1000")
    };
    let running = subject.start(spec).await;
    // The runtime's own state of the container.
    let state = place.path().join("run/sandboxes").join(&sandbox).join(&running.spec.id).join("oci");
    let state = state.join(&running.spec.id).join("state.json");
    assert!(std::fs::read_to_string(&state).unwrap().contains("init_process_pid"));
    let handlers = bench.engine.handlers();
    let names: Vec<&str> = handlers.iter().map(|handler| handler.name.as_str()).collect();
    assert_eq!(names, ["", RUNC]);
    assert!(handlers.iter().all(|handler| handler.recursive_read_only_mounts), "{handlers:?}");
    // One that has ended goes with its sandbox, and its runtime knows it no more.
    bench.engine.signal_container(&running.spec.id, 9).await.unwrap();
    assert_eq!(subject.end(&running.spec.id).await.signal, 9);
    bench.engine.remove_sandbox(&sandbox).await.unwrap();
    bench.engine.purge().await.unwrap();
    drop(bench);
    assert_eq!(place.leftovers(), Vec::<String>::new());
}
