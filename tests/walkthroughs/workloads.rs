//! What Kubernetes' conformance list says of workloads and scheduling, on a cluster of two nodes with real pods.
//!
//! Each behaviour has a namespace of its own, and four of them run at a time. `BEHAVIOUR=part-of-a-name` runs those
//! alone.

mod common;
mod daemons;
mod disruption;
mod jobs;
mod scheduling;
mod sets;
mod space;
mod stateful;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::Instant;

use space::{Cluster, Space};

/// How many behaviours are looked at side by side: most of their time is other programs' work.
const AT_ONCE: usize = 4;

type Behaviour = (&'static str, fn(&Space<'_>));

macro_rules! behaviours {
    ($($group:ident: $($name:ident)*;)*) => { &[$($((stringify!($name), $group::$name)),*),*] };
}

/// What takes longest comes first.
const BEHAVIOURS: &[Behaviour] = behaviours! {
    jobs:
        cron_jobs_keep_to_their_policies
        cron_jobs_have_every_verb
        a_job_adopts_orphans_and_releases_what_it_does_not_select
        a_job_is_deleted_with_its_pods
        a_job_completes_although_its_tasks_fail_at_first;
    stateful:
        a_burst_goes_on_with_unhealthy_pods
        scaling_goes_in_order_and_halts_at_unhealthy_pods
        a_pod_that_its_node_refuses_is_made_again
        a_stateful_set_has_a_working_scale
        a_stateful_sets_status_is_read_and_written
        stateful_sets_are_listed_patched_and_deleted_together
        updates_are_phased_by_a_partition
        updates_roll_and_are_rolled_back_to_the_same_revision;
    daemons:
        a_daemon_runs_on_each_node_and_is_replaced
        a_daemon_follows_the_labels_of_nodes
        failed_daemons_are_made_again
        daemons_are_updated_when_their_template_is
        daemons_are_rolled_back_without_restarts
        a_daemon_sets_status_is_read_and_written
        daemon_sets_are_listed_and_deleted_together;
    sets:
        a_deployment_has_a_working_scale
        a_deployments_status_is_read_and_written
        a_recreated_deployment_never_has_old_pods_beside_new_ones
        a_rolling_update_adopts_the_old_set_and_replaces_its_pods
        old_replica_sets_go_by_the_history_limit
        a_deployment_is_scaled_in_proportion
        a_deployment_rolls_over_an_update_that_has_not_ended
        a_deployment_lives_its_life
        a_replica_set_is_replaced_and_patched
        a_replica_set_has_a_working_scale
        a_replica_set_adopts_and_releases_pods
        replica_sets_are_listed_and_deleted_together
        each_pod_of_a_replica_set_serves
        a_replica_sets_status_is_read_and_written
        a_replication_controller_adopts_pods
        a_replication_controller_releases_pods
        each_pod_of_a_replication_controller_serves
        a_replication_controller_says_that_a_quota_is_exceeded
        a_replication_controller_lives_its_life;
    disruption:
        budgets_are_listed_everywhere_and_deleted_together
        budgets_are_created_changed_and_deleted
        a_budgets_status_follows_its_pods
        a_budgets_status_is_updated_and_patched
        an_eviction_is_blocked_until_the_budget_allows_it;
    scheduling:
        a_limit_range_gives_defaults_and_keeps_its_bounds
        a_pod_that_exceeds_what_is_left_waits
        a_claim_is_bound_where_its_first_pod_goes
        a_pod_goes_to_the_node_that_its_selector_names
        a_pod_whose_selector_names_no_node_waits
        all_addresses_and_one_of_them_are_the_same_port
        a_pod_of_low_priority_gives_way
        a_pod_of_low_priority_gives_way_to_a_critical_one
        replica_sets_give_way_by_their_ranks
        priority_classes_have_every_verb_and_keep_their_values;
};

/// The longest part of a name that a namespace may have.
const NAME_MAX: usize = 50;

fn look_at(cluster: &Cluster, (name, behaviour): Behaviour) -> Result<(), &'static str> {
    let began = Instant::now();
    let held = catch_unwind(AssertUnwindSafe(|| {
        let short = name.get(..NAME_MAX).unwrap_or(name).trim_end_matches('_');
        let space = Space::new(cluster, short);
        behaviour(&space);
        space.close();
    }));
    let verdict = if held.is_ok() { "held" } else { "NOT HELD" };
    println!("{name}: {verdict} after {} s", began.elapsed().as_secs());
    held.map_err(|_| name)
}

#[test]
fn workloads_and_scheduling_behave_as_the_conformance_list_says() {
    let chosen = std::env::var("BEHAVIOUR").unwrap_or_default();
    let all = BEHAVIOURS.iter().filter(|(name, _)| name.contains(&chosen));
    let cluster = Cluster::up();
    let queue = Mutex::new(all.copied());
    let broken = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    // Statements of their own: no lock is held meanwhile.
                    let next = queue.lock().unwrap().next();
                    let Some(next) = next else { break };
                    let held = look_at(&cluster, next);
                    broken.lock().unwrap().extend(held.err());
                }
            });
        }
    });
    assert_eq!(*broken.lock().unwrap(), Vec::<&str>::new(), "these do not hold");
    assert_eq!(cluster.bed.leaked_packets().unwrap(), 0, "{}", cluster.bed.leaks().unwrap());
    for host in [&cluster.second, &cluster.first] {
        host.must_skiff(&["down", "--purge"]);
    }
}
