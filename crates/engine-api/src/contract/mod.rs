//! The contract suite: what every implementation of this crate's traits has to do, as cases that its tests run.
//!
//! An implementation enables the feature `contract` for its tests and names a function that makes a subject, gives it to
//! a case and checks afterwards that nothing is left:
//!
//! ```text
//! async fn with<F: Future<Output = ()>>(case: impl FnOnce(Subject) -> F) { … }
//! engine_api::runtime_contract!(with);
//! engine_api::images_contract!(with);
//! ```
//!
//! Each case becomes a test of its own; it needs root, Debian's `busybox-static` and `tokio` with its macros.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a case fails by panicking")]
#![allow(missing_docs, reason = "a case's name says what it demands")]

mod archive;
mod builds;
mod confinement;
mod containers;
mod images;
mod streams;
mod subject;

pub use archive::{busybox, docker_archive, layer};
pub use builds::{BuildSubject, Resolve};
pub use subject::{PATIENCE, Subject, all, bytes, log_text, outcome, patiently, until};

/// The cases, by name.
pub mod cases {
    pub use super::builds::*;
    pub use super::confinement::*;
    pub use super::containers::*;
    pub use super::images::*;
    pub use super::streams::*;
}

/// Makes a test of each case of [`crate::Runtime`], run by `$with`.
#[macro_export]
macro_rules! runtime_contract {
    ($with:path) => {
        $crate::contract_cases!($with:
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
            what_is_not_there_is_not_found,
            an_attached_client_misses_nothing,
            terminals_work_for_containers_and_further_processes,
            an_exec_reads_standard_input_to_its_end,
            connections_reach_into_the_sandbox,
            the_default_profile_confines_first_and_further_processes,
            security_settings_hold,
            only_the_default_devices_can_be_used,
            a_device_that_is_given_can_be_used,
            cpus_are_those_that_were_given_also_while_a_container_runs,
            devices_that_are_mounted_are_the_hosts,
            who_a_container_runs_as_is_told,
            limits_are_set_and_kills_for_memory_are_told,
            limits_of_a_group_hold_for_all_that_is_in_it,
            limits_of_a_group_take_the_place_of_its_sandboxes_own,
            a_shared_pid_namespace_has_an_init_without_rights,
            kernel_parameters_of_the_sandbox_are_set_and_the_hosts_refused,
            a_mount_on_a_link_to_nowhere_is_where_the_link_leads,
            groups_limits_of_processes_and_temporary_file_systems_are_as_asked,
        );
    };
}

/// Makes a test of each case of [`crate::Images`], run by `$with`.
#[macro_export]
macro_rules! images_contract {
    ($with:path) => {
        $crate::contract_cases!($with:
            names_are_normalised_and_ids_found_by_their_beginning,
            an_archive_carries_images_with_their_names,
            the_last_name_takes_the_contents_with_it,
            what_is_no_image_is_refused,
        );
    };
}

/// Makes a test of each case of [`crate::Builds`], run by `$with`, whose cases take a [`BuildSubject`].
#[macro_export]
macro_rules! builds_contract {
    ($with:path) => {
        $crate::contract_cases!($with:
            a_build_tells_its_steps_and_ends_with_its_image,
            a_build_that_fails_says_why_and_names_nothing,
            a_commit_makes_a_local_image_of_a_container,
        );
    };
}

/// Makes tests of named cases.
#[doc(hidden)]
#[macro_export]
macro_rules! contract_cases {
    ($with:path: $($case:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                $with($crate::contract::cases::$case).await;
            }
        )*
    };
}
