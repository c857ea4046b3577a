//! `GET /metrics/cadvisor`: what containers use, with the names and labels that dashboards ask for. Figures of a group that
//! this host does not tell are absent; a limit of 0 is none, as cAdvisor tells it. Sources: cAdvisor's `metrics/prometheus.go`, `prometheus_machine.go`, and
//! `containerPrometheusLabelsFunc` of `pkg/kubelet/server`.

use jiff::Timestamp;

use super::cgroups::{Disk, GroupFigures, Limit, Pressure, Stalled};
use super::host::{self, Interface, Traffic};
use super::text::{family, sample};
use super::usage::{self, ContainerUsage, Measured, PodUsage, Usage};
use crate::deps::{Deps, Hardware, blocking};

/// The labels of each sample: `container`, `id`, `image`, `name`, `namespace`, `pod`.
type Labels = [(&'static str, String); 6];

/// Something that uses resources: the host, a pod, or a container.
struct Row {
    labels: Labels,
    started: Option<Timestamp>,
    usage: Usage,
    group: Option<GroupFigures>,
    interfaces: Vec<Interface>,
}

/// A metric with one sample a row: name, type, what it says, and its value.
type Metric = (&'static str, &'static str, &'static str, fn(&Row) -> Option<f64>);

fn of(row: &Row, figure: fn(&GroupFigures) -> Option<u64>) -> Option<f64> {
    row.group.as_ref().and_then(figure).map(count)
}

fn nanoseconds(row: &Row, figure: fn(&GroupFigures) -> Option<u64>) -> Option<f64> {
    of(row, figure).map(|nanoseconds| nanoseconds / 1e9)
}

/// A limit is 0 where there is none, as cAdvisor tells it; absent where it is not told.
fn limit(row: &Row, figure: fn(&GroupFigures) -> Option<Limit>) -> Option<f64> {
    Some(figure(row.group.as_ref()?)?.most().map_or(0.0, count))
}

#[allow(clippy::cast_precision_loss, reason = "figures of memory and time are far below 2^53")]
fn count(number: u64) -> f64 {
    number as f64
}

#[allow(clippy::cast_precision_loss, reason = "milliseconds since 1970 are far below 2^53")]
fn moment(at: Timestamp) -> f64 {
    at.as_millisecond() as f64 / 1000.0
}

#[rustfmt::skip]
const METRICS: [Metric; 29] = [
    ("container_cpu_user_seconds_total", "counter", "User time consumed, in core-seconds.", |row| nanoseconds(row, |group| group.user_ns)),
    ("container_cpu_system_seconds_total", "counter", "System time consumed, in core-seconds.", |row| nanoseconds(row, |group| group.system_ns)),
    ("container_cpu_cfs_periods_total", "counter", "Enforcement periods that have passed.", |row| of(row, |group| group.periods)),
    ("container_cpu_cfs_throttled_periods_total", "counter", "Periods in which it was throttled.", |row| of(row, |group| group.throttled_periods)),
    ("container_cpu_cfs_throttled_seconds_total", "counter", "How long it was throttled.", |row| nanoseconds(row, |group| group.throttled_ns)),
    ("container_memory_usage_bytes", "gauge", "Memory in use, caches included.", |row| Some(count(row.usage.memory_bytes))),
    ("container_memory_working_set_bytes", "gauge", "Memory in use that cannot be reclaimed at once.", |row| Some(count(row.usage.working_set_bytes))),
    ("container_memory_cache", "gauge", "Page cache, in bytes.", |row| of(row, |group| group.cache_bytes)),
    ("container_memory_rss", "gauge", "Anonymous memory, in bytes.", |row| of(row, |group| group.rss_bytes)),
    ("container_memory_mapped_file", "gauge", "Files mapped into memory, in bytes.", |row| of(row, |group| group.mapped_file_bytes)),
    ("container_memory_swap", "gauge", "Swap in use, in bytes.", |row| of(row, |group| group.swap_bytes)),
    ("container_memory_max_usage_bytes", "gauge", "The most memory that was in use.", |row| of(row, |group| group.max_usage_bytes)),
    ("container_memory_failcnt", "counter", "How often memory was wanted at the limit.", |row| of(row, |group| group.failcnt)),
    ("container_oom_events_total", "counter", "Processes that were killed for memory.", |row| of(row, |group| group.oom_kills)),
    ("container_processes", "gauge", "Processes.", |row| of(row, |group| group.processes)),
    ("container_threads", "gauge", "Threads.", |row| of(row, |group| group.threads)),
    ("container_threads_max", "gauge", "The most threads that there may be, 0 without a limit.", |row| limit(row, |group| group.threads_max)),
    ("container_spec_cpu_shares", "gauge", "CPU shares.", |row| of(row, |group| group.cpu_shares)),
    ("container_spec_cpu_quota", "gauge", "CPU time in a period, in microseconds; absent without a limit.", |row| of(row, |group| group.cpu_quota_us)),
    ("container_spec_cpu_period", "gauge", "The period, in microseconds.", |row| of(row, |group| group.cpu_period_us)),
    ("container_spec_memory_limit_bytes", "gauge", "The most memory, 0 without a limit.", |row| limit(row, |group| group.memory_limit)),
    ("container_spec_memory_swap_limit_bytes", "gauge", "The most swap, 0 without a limit.", |row| limit(row, |group| group.swap_limit)),
    ("container_pressure_cpu_waiting_seconds_total", "counter", "Time in which some waited for a processor.", |row| waited(row, 0, |pressure| Some(pressure.some))),
    ("container_pressure_cpu_stalled_seconds_total", "counter", "Time in which all waited for a processor.", |row| waited(row, 0, |pressure| pressure.full)),
    ("container_pressure_memory_waiting_seconds_total", "counter", "Time in which some waited for memory.", |row| waited(row, 1, |pressure| Some(pressure.some))),
    ("container_pressure_memory_stalled_seconds_total", "counter", "Time in which all waited for memory.", |row| waited(row, 1, |pressure| pressure.full)),
    ("container_pressure_io_waiting_seconds_total", "counter", "Time in which some waited for disks.", |row| waited(row, 2, |pressure| Some(pressure.some))),
    ("container_pressure_io_stalled_seconds_total", "counter", "Time in which all waited for disks.", |row| waited(row, 2, |pressure| pressure.full)),
    ("container_start_time_seconds", "gauge", "When it started, in seconds since 1970.", |row| row.started.map(moment)),
];

fn waited(row: &Row, what: usize, line: fn(&Pressure) -> Option<Stalled>) -> Option<f64> {
    let pressure = row.group.as_ref()?.pressure.get(what)?.as_ref()?;
    Some(count(line(pressure)?.total_us) / 1e6)
}

/// A metric with one sample for each disk or interface of a row.
type Part<T> = (&'static str, &'static str, fn(&T) -> u64);

const DISKS: [Part<Disk>; 4] = [
    ("container_fs_reads_bytes_total", "Bytes read.", |disk| disk.read_bytes),
    ("container_fs_writes_bytes_total", "Bytes written.", |disk| disk.written_bytes),
    ("container_fs_reads_total", "Reads.", |disk| disk.reads),
    ("container_fs_writes_total", "Writes.", |disk| disk.writes),
];

/// A direction: the word in the name, and where the figures are.
type Direction = (&'static str, fn(&Interface) -> Traffic);

const DIRECTIONS: [Direction; 2] =
    [("receive", |interface| interface.received), ("transmit", |interface| interface.sent)];

const TRAFFIC: [Part<Traffic>; 4] = [
    ("bytes", "Bytes.", |traffic| traffic.bytes),
    ("packets", "Packets.", |traffic| traffic.packets),
    ("packets_dropped", "Packets that were dropped.", |traffic| traffic.dropped),
    ("errors", "Errors.", |traffic| traffic.errors),
];

/// Everything, as it is now.
pub(super) async fn metrics(deps: &Deps) -> String {
    let (now, node, measured) = (deps.now(), usage::node().await, usage::pods(deps).await);
    let Measured { mut pods, failed } = measured;
    let rows = blocking(move || {
        usage::add_groups(&mut pods);
        rows(&node, &pods)
    });
    let rows = rows.await;
    let failed = failed || rows.is_err();
    text(now, &deps.hardware, &rows.unwrap_or_default(), failed)
}

/// The host first, then each pod before its containers. Reads the networks: blocks.
fn rows(node: &Usage, pods: &[PodUsage]) -> Vec<Row> {
    let mut rows = vec![Row {
        labels: labels("", "/", "", "", "", ""),
        started: None,
        usage: *node,
        group: None,
        interfaces: host::interfaces_of("self"),
    }];
    for pod in pods.iter().filter(|pod| !pod.containers.is_empty()) {
        rows.push(pod_row(pod));
        rows.extend(pod.containers.iter().map(|container| container_row(pod, container)));
    }
    rows
}

/// The network is the pod's: none of its containers has one of its own.
fn pod_row(pod: &PodUsage) -> Row {
    let process = pod.containers.first().filter(|_| !pod.pod.host_network());
    let meta = &pod.pod.metadata;
    Row {
        labels: labels("", &pod_path(pod), "", "", &meta.namespace, &meta.name),
        started: pod.containers.iter().filter_map(|container| container.started).min(),
        usage: pod.sum(),
        group: None,
        interfaces: process.map(|one| host::interfaces_of(&one.pid.to_string())).unwrap_or_default(),
    }
}

fn container_row(pod: &PodUsage, container: &ContainerUsage) -> Row {
    let meta = &pod.pod.metadata;
    let (id, image) = (container_path(container), &container.image);
    Row {
        labels: labels(&container.name, &id, image, &container.id, &meta.namespace, &meta.name),
        started: container.started,
        usage: container.usage,
        group: container.group.clone(),
        interfaces: Vec::new(),
    }
}

fn container_path(container: &ContainerUsage) -> String {
    container.group.as_ref().map_or_else(|| format!("/{}", container.id), |group| group.path.clone())
}

/// The path of the pod's group, which those of its containers go through.
fn pod_path(pod: &PodUsage) -> String {
    let name = format!("/pod{}", pod.pod.uid());
    let below = pod.containers.iter().find_map(|container| {
        let path = &container.group.as_ref()?.path;
        let end = path.find(&name)? + name.len();
        path.get(..end).map(str::to_owned)
    });
    below.unwrap_or(name)
}

fn labels(container: &str, id: &str, image: &str, name: &str, namespace: &str, pod: &str) -> Labels {
    [
        ("container", container.to_owned()),
        ("id", id.to_owned()),
        ("image", image.to_owned()),
        ("name", name.to_owned()),
        ("namespace", namespace.to_owned()),
        ("pod", pod.to_owned()),
    ]
}

fn text(now: Timestamp, hardware: &Hardware, rows: &[Row], failed: bool) -> String {
    let mut text = String::new();
    machine(&mut text, hardware);
    let at = Some(now);
    cpu(&mut text, rows, now);
    for (name, kind, help, value) in METRICS {
        let mut samples = rows.iter().filter_map(|row| Some((row, value(row)?))).peekable();
        if samples.peek().is_some() {
            family(&mut text, name, kind, help);
        }
        samples.for_each(|(row, value)| sample(&mut text, name, &row.labels, value, at));
    }
    page_faults(&mut text, rows, now);
    disks(&mut text, rows, now);
    networks(&mut text, rows, now);
    family(&mut text, "container_last_seen", "gauge", "When it was last seen, in seconds since 1970.");
    rows.iter().for_each(|row| sample(&mut text, "container_last_seen", &row.labels, now.as_second(), at));
    family(&mut text, "container_scrape_error", "gauge", "1 if something could not be measured.");
    sample::<&str>(&mut text, "container_scrape_error", &[], u8::from(failed), None);
    text
}

fn machine(text: &mut String, hardware: &Hardware) {
    family(text, "machine_cpu_cores", "gauge", "Processors of the host.");
    sample::<&str>(text, "machine_cpu_cores", &[], hardware.milli_cpu / 1000, None);
    family(text, "machine_memory_bytes", "gauge", "Memory of the host.");
    sample::<&str>(text, "machine_memory_bytes", &[], hardware.memory_bytes, None);
}

/// CPU time is told for all processors together.
fn cpu(text: &mut String, rows: &[Row], now: Timestamp) {
    const NAME: &str = "container_cpu_usage_seconds_total";
    family(text, NAME, "counter", "CPU time consumed, in core-seconds.");
    for row in rows {
        let labels = with(&row.labels, "cpu", "total");
        sample(text, NAME, &labels, count(row.usage.cpu_ns) / 1e9, Some(now));
    }
}

fn page_faults(text: &mut String, rows: &[Row], now: Timestamp) {
    const NAME: &str = "container_memory_failures_total";
    let groups = rows.iter().filter_map(|row| Some((row, row.group.as_ref()?)));
    let faults = groups.flat_map(|(row, group)| {
        let kinds = [("pgfault", group.page_faults), ("pgmajfault", group.major_page_faults)];
        kinds.into_iter().filter_map(move |(kind, faults)| Some((row, kind, faults?)))
    });
    let mut faults = faults.peekable();
    if faults.peek().is_some() {
        family(text, NAME, "counter", "Page faults, those that read a disk apart.");
    }
    for (row, kind, faults) in faults {
        let mut labels = with(&row.labels, "failure_type", kind);
        labels.push(("scope", "hierarchy"));
        sample(text, NAME, &labels, faults, Some(now));
    }
}

fn disks(text: &mut String, rows: &[Row], now: Timestamp) {
    let disks = || {
        let groups = rows.iter().filter_map(|row| Some((row, row.group.as_ref()?)));
        groups.flat_map(|(row, group)| group.disks.iter().map(move |disk| (row, disk)))
    };
    if disks().next().is_none() {
        return;
    }
    for (name, help, value) in DISKS {
        family(text, name, "counter", help);
        for (row, disk) in disks() {
            sample(text, name, &with(&row.labels, "device", &disk.device), value(disk), Some(now));
        }
    }
}

fn networks(text: &mut String, rows: &[Row], now: Timestamp) {
    for (direction, traffic) in DIRECTIONS {
        for (what, help, value) in TRAFFIC {
            let name = format!("container_network_{direction}_{what}_total");
            family(text, &name, "counter", help);
            for (row, interface) in
                rows.iter().flat_map(|row| row.interfaces.iter().map(move |interface| (row, interface)))
            {
                let labels = with(&row.labels, "interface", &interface.name);
                sample(text, &name, &labels, value(&traffic(interface)), Some(now));
            }
        }
    }
}

/// The labels with one more.
fn with<'l>(labels: &'l Labels, name: &'static str, value: &'l str) -> Vec<(&'static str, &'l str)> {
    let mut more: Vec<_> = labels.iter().map(|(name, value)| (*name, value.as_str())).collect();
    more.push((name, value));
    more
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::pod::tests::pod;

    fn web(group: Option<GroupFigures>) -> PodUsage {
        let container = ContainerUsage {
            id: "c1".to_owned(),
            pid: std::process::id(),
            log_path: PathBuf::new(),
            name: "main".to_owned(),
            image: "app:1".to_owned(),
            started: Some(Timestamp::from_second(100).unwrap()),
            usage: Usage { cpu_ns: 1_500_000_000, memory_bytes: 2048, working_set_bytes: 1024 },
            group,
        };
        let pod = pod(serde_json::json!({ "containers": [{ "name": "main" }], "hostNetwork": true }));
        PodUsage { pod, containers: vec![container] }
    }

    fn shown(pods: &[PodUsage]) -> String {
        let hardware =
            Hardware { milli_cpu: 2000, memory_bytes: 4096, disk_bytes: 0, huge_pages: Default::default() };
        let mut rows = rows(&Usage::default(), pods);
        rows[0].interfaces = vec![Interface {
            name: "eth0".to_owned(),
            received: Traffic { bytes: 7, ..Traffic::default() },
            sent: Traffic::default(),
        }];
        text(Timestamp::from_second(200).unwrap(), &hardware, &rows, false)
    }

    #[test]
    fn containers_pods_and_the_host_have_the_labels_that_dashboards_ask_for() {
        let disk = Disk { device: "/dev/sda".to_owned(), read_bytes: 9, ..Disk::default() };
        let group = GroupFigures {
            path: "/skiff/kubepods/podu1/s1/c1".to_owned(),
            rss_bytes: Some(5),
            memory_limit: Some(Limit::None),
            throttled_ns: Some(2_000_000_000),
            disks: vec![disk],
            ..GroupFigures::default()
        };
        let text = shown(&[web(Some(group))]);
        let main = "container=\"main\",id=\"/skiff/kubepods/podu1/s1/c1\",image=\"app:1\",name=\"c1\",namespace=\"default\",pod=\"web\"";
        let of_pod = "container=\"\",id=\"/skiff/kubepods/podu1\",image=\"\",name=\"\",namespace=\"default\",pod=\"web\"";
        let root = "container=\"\",id=\"/\",image=\"\",name=\"\",namespace=\"\",pod=\"\"";
        for line in [
            format!("container_cpu_usage_seconds_total{{{main},cpu=\"total\"}} 1.5 200000\n"),
            format!("container_memory_working_set_bytes{{{main}}} 1024 200000\n"),
            format!("container_memory_working_set_bytes{{{of_pod}}} 1024 200000\n"),
            format!("container_memory_rss{{{main}}} 5 200000\n"),
            format!("container_cpu_cfs_throttled_seconds_total{{{main}}} 2 200000\n"),
            format!("container_spec_memory_limit_bytes{{{main}}} 0 200000\n"),
            format!("container_fs_reads_bytes_total{{{main},device=\"/dev/sda\"}} 9 200000\n"),
            format!("container_network_receive_bytes_total{{{root},interface=\"eth0\"}} 7 200000\n"),
            format!("container_start_time_seconds{{{main}}} 100 200000\n"),
            "machine_cpu_cores 2\n".to_owned(),
            "container_scrape_error 0\n".to_owned(),
        ] {
            assert!(text.contains(&line), "{line} in {text}");
        }
        assert!(!text.contains("container_threads_max"), "a limit that is not told is not none: {text}");
    }

    #[test]
    fn what_is_not_known_is_not_told() {
        let text = shown(&[web(None)]);
        assert!(text.contains("container_memory_usage_bytes{container=\"main\",id=\"/c1\""), "{text}");
        for name in ["container_memory_rss", "container_spec_memory_limit_bytes", "container_fs_reads_total"]
        {
            assert!(!text.contains(name), "{text}");
        }
        let heads: Vec<&str> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
        let mut once = heads.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(heads.len(), once.len(), "each metric stands together");
    }
}
