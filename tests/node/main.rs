//! What Kubernetes' conformance list says of pods and volumes (`test/e2e/{common/node,common/storage,node,storage}`), with
//! real containers on one host. They need root, a built `skiff` and the base images of `scripts/base-image`.
//!
//! Each behaviour has a namespace of its own, and four of them run at a time. `BEHAVIOUR=part-of-a-name` runs those alone.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

mod access;
mod api;
mod directories;
mod environment;
mod files;
mod grpc;
mod hooks;
mod images;
mod life;
mod names;
mod objects;
mod paths;
mod probes;
mod security;
mod sidecars;
mod sources;
mod space;
mod streams;
mod taints;
mod updates;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::Instant;

use api::Api;
use space::{Cluster, Space};

/// How many behaviours are looked at side by side: most of their time is other programs' work.
const AT_ONCE: usize = 4;

type Behaviour = (&'static str, fn(&Space<'_>));

macro_rules! behaviours {
    ($($group:ident: $($name:ident)*;)*) => { &[$($((stringify!($name), $group::$name)),*),*] };
}

/// What takes longest comes first.
const BEHAVIOURS: &[Behaviour] = behaviours! {
    probes:
        a_failing_liveness_probe_restarts_its_container_again_and_again
        liveness_probes_that_succeed_restart_nothing
        failing_liveness_probes_restart_their_containers
        a_pod_is_not_ready_before_its_initial_delay
        a_pod_whose_readiness_probe_fails_is_never_ready
        probes_speak_tls_and_trust_whoever_answers
        probes_speak_grpc
        a_probe_gives_a_grace_period_of_its_own;
    files:
        files_of_volumes_have_their_content_and_mode
        an_object_is_mounted_at_several_paths
        binary_data_is_mounted_as_it_is
        secrets_of_another_namespace_are_not_seen
        resources_are_told_in_volumes
        all_sources_are_projected_together;
    life:
        init_containers_that_fail_are_started_anew_and_hold_back_the_others
        an_init_container_that_fails_ends_a_pod_that_never_restarts
        init_containers_run_before_the_others
        containers_are_restarted_as_their_policy_says
        a_pod_ends_at_its_deadline
        a_pod_is_watched_from_its_creation_to_its_end
        labels_of_pods_change
        pods_are_deleted_together
        a_pods_status_is_read_and_written
        a_pod_says_where_it_runs_and_what_its_quality_is
        a_command_that_fails_has_a_reason_and_its_pod_can_go
        termination_messages_come_from_a_file_or_the_log
        a_pod_is_ready_when_its_gates_are_open
        a_pod_is_resized_where_it_runs;
    hooks:
        hooks_after_the_start_are_called
        hooks_before_the_end_are_called
        a_hook_that_fails_after_the_start_ends_its_container
        a_hook_before_the_end_counts_against_the_grace_period;
    sidecars:
        sidecars_begin_before_the_others_and_end_after_them
        sidecars_end_with_a_pod_that_completes
        an_ephemeral_container_sees_its_targets_processes
        rules_of_a_container_decide_whether_it_is_restarted;
    names:
        a_pod_has_the_host_name_that_it_asks_for
        a_full_name_that_is_too_long_holds_the_pod_back
        containers_share_processes_where_they_are_asked_to
        a_pod_resolves_names_as_it_is_asked_to;
    sources:
        paths_of_the_host_are_what_they_are_said_to_be
        an_image_is_a_volume
        a_volume_in_memory_has_its_size
        tokens_are_for_whom_they_are_asked
        a_token_is_mounted_into_every_pod;
    updates:
        optional_objects_come_change_and_go_in_volumes
        labels_and_annotations_change_in_volumes;
    directories:
        empty_directories_have_their_modes_and_owners
        containers_share_a_directory
        fifty_volumes_of_five_pods_do_not_race
        a_secret_and_a_config_map_do_not_conflict;
    paths:
        a_single_file_of_a_volume_is_mounted
        a_path_in_a_volume_may_come_of_the_environment
        paths_that_leave_their_volume_are_refused
        a_path_that_failed_is_taken_when_it_is_right
        what_is_written_under_a_path_is_in_the_volume
        links_in_a_volume_lead_nowhere_else;
    environment:
        variables_come_from_objects
        variables_are_composed_and_substituted
        variables_tell_of_the_pod_and_its_node
        variables_tell_of_resources
        variables_tell_of_services;
    images:
        command_and_arguments_override_the_images;
    security:
        users_and_groups_are_as_they_are_asked_for
        a_container_without_privilege_changes_no_network
        root_file_systems_are_written_unless_they_are_read_only
        privileges_do_not_grow_where_that_is_forbidden
        root_is_refused_where_only_others_may_run
        sysctls_are_set_or_refused
        capabilities_and_filters_are_as_they_are_asked_for
        namespaces_of_the_host_are_had_where_they_are_asked_for;
    access:
        the_hosts_file_is_managed_unless_it_is_mounted
        host_aliases_are_in_the_hosts_file;
    streams:
        what_a_container_prints_is_its_log
        commands_run_over_a_websocket
        logs_are_read_over_a_websocket;
    objects:
        empty_keys_are_refused
        config_maps_and_secrets_live
        immutable_objects_keep_their_data
        pod_templates_live_and_are_deleted_together
        leases_live
        runtime_classes_have_every_verb;
};

/// Those that push other pods out come last, one after the other.
const ALONE: &[Behaviour] = behaviours! {
    taints:
        pods_leave_a_tainted_node_when_their_tolerations_end
        a_pod_stays_where_a_taint_goes_in_time;
};

/// The longest part of a name that a namespace may have.
const NAME_MAX: usize = 50;

fn look_at(cluster: &Cluster, api: &Api, (name, behaviour): Behaviour) -> Result<(), &'static str> {
    let began = Instant::now();
    let held = catch_unwind(AssertUnwindSafe(|| {
        let short = name.get(..NAME_MAX).unwrap_or(name).trim_end_matches('_');
        let space = Space::new(cluster, api, short);
        behaviour(&space);
        space.close();
    }));
    let verdict = if held.is_ok() { "held" } else { "NOT HELD" };
    println!("{name}: {verdict} after {:.1} s", began.elapsed().as_secs_f32());
    held.map_err(|_| name)
}

/// Looks at behaviours, so many at once; those that do not hold.
fn look_at_all(cluster: &Cluster, behaviours: &[Behaviour], at_once: usize) -> Vec<&'static str> {
    let chosen = std::env::var("BEHAVIOUR").unwrap_or_default();
    let queue = Mutex::new(behaviours.iter().filter(|(name, _)| name.contains(&chosen)).copied());
    let broken = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                let api = Api::of(&cluster.host);
                loop {
                    // Statements of their own: no lock is held meanwhile.
                    let next = queue.lock().unwrap().next();
                    let Some(next) = next else { break };
                    let held = look_at(cluster, &api, next);
                    broken.lock().unwrap().extend(held.err());
                }
            });
        }
    });
    broken.into_inner().unwrap()
}

#[test]
fn pods_and_volumes_behave_as_the_conformance_list_says() {
    let cluster = Cluster::up();
    let mut broken = look_at_all(&cluster, BEHAVIOURS, AT_ONCE);
    broken.extend(look_at_all(&cluster, ALONE, 1));
    assert_eq!(broken, Vec::<&str>::new(), "these do not hold");
    cluster.purge();
}
