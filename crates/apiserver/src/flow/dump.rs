//! `/debug/api_priority_and_fairness/dump_*`: levels, queues and requests as tables, for people who look for who
//! holds up whom. Source: `apiserver/pkg/util/flowcontrol/apf_controller_debug.go`.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

use super::queues::{QueueFigures, Queues};
use super::running::{About, Running};
use super::{Flow, Schema, Waker};

const LEVELS: [&str; 10] = [
    "PriorityLevelName",
    "ActiveQueues",
    "IsIdle",
    "IsQuiescing",
    "WaitingRequests",
    "ExecutingRequests",
    "DispatchedRequests",
    "RejectedRequests",
    "TimedoutRequests",
    "CancelledRequests",
];
const QUEUES: [&str; 9] = [
    "PriorityLevelName",
    "Index",
    "PendingRequests",
    "ExecutingRequests",
    "SeatsInUse",
    "NextDispatchR",
    "InitialSeatsSum",
    "MaxSeatsSum",
    "TotalWorkSum",
];
const REQUESTS: [&str; 10] = [
    "PriorityLevelName",
    "FlowSchemaName",
    "QueueIndex",
    "RequestIndexInQueue",
    "FlowDistingsher",
    "ArriveTime",
    "InitialSeats",
    "FinalSeats",
    "AdditionalLatency",
    "StartTime",
];
const DETAILS: [&str; 8] =
    ["UserName", "Verb", "APIPath", "Namespace", "Name", "APIVersion", "Resource", "SubResource"];
/// When a request began that has not: Go's zero time.
const NEVER: &str = "0001-01-01T00:00:00Z";
/// The least width of a column, and what separates it from the next.
const WIDTH_MIN: usize = 8;
const GAP: usize = 1;

type Row = Vec<String>;

/// What a request is told by.
#[derive(Clone)]
struct Seen {
    queue: Option<usize>,
    /// Its place among those who wait in the queue, if it does.
    place: Option<usize>,
    seats: u32,
    schema: Arc<Schema>,
    about: About,
    arrived: Instant,
    began: Option<Instant>,
}

impl Seen {
    fn waiting((queue, place, seats, who): (usize, usize, u32, &Waker)) -> Self {
        Self {
            queue: Some(queue),
            place: Some(place),
            seats,
            schema: who.schema.clone(),
            about: who.about.clone(),
            arrived: who.arrived,
            began: None,
        }
    }

    fn running(request: &Running) -> Self {
        Self {
            queue: request.queue,
            place: None,
            seats: request.seats,
            schema: request.schema.clone(),
            about: request.about.clone(),
            arrived: request.arrived,
            began: Some(request.began),
        }
    }
}

/// A level at one moment.
struct Level {
    name: Arc<str>,
    idle: bool,
    retired: bool,
    queues: Vec<QueueFigures>,
    /// In the order of their queues and places.
    waiting: Vec<Seen>,
    /// As they began.
    running: Vec<Seen>,
}

impl Flow {
    /// A table by its name; with `details` requests are told whole.
    pub(crate) fn dump(&self, what: &str, details: bool) -> Option<String> {
        let rows = match what {
            "dump_priority_levels" => self.levels(),
            "dump_queues" => headed(&QUEUES, self.seen().iter().flat_map(queues)),
            "dump_requests" => self.requests(details),
            _ => return None,
        };
        Some(table(&rows))
    }

    /// Everything at one moment. Requests come and go under the same locks, so nothing is written down here but copied.
    fn seen(&self) -> Vec<Level> {
        let running = self.running.lock();
        self.act(|state, _| {
            let level = |(name, queues, retired): (&Arc<str>, &Queues<Waker>, bool)| Level {
                name: name.clone(),
                idle: queues.is_idle(),
                retired,
                queues: queues.figures(),
                waiting: queues.waiting().map(Seen::waiting).collect(),
                running: running.of(name).into_iter().map(Seen::running).collect(),
            };
            state.queues().into_iter().map(level).collect()
        })
    }

    fn levels(&self) -> Vec<Row> {
        let config = self.current.read().config.clone();
        let totals = |level: &str| {
            let own = config.schemas.iter().filter(|schema| *schema.level == *level);
            own.map(|schema| schema.counted.totals()).fold([0; 4], |mut sum, more: [u64; 4]| {
                sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
                sum
            })
        };
        let row = |level: Level| {
            let active = level.queues.iter().filter(|queue| queue.waiting > 0).count();
            let mut row: Row = vec![
                level.name.to_string(),
                active.to_string(),
                level.idle.to_string(),
                level.retired.to_string(),
                level.waiting.len().to_string(),
                level.running.len().to_string(),
            ];
            row.extend(totals(&level.name).map(|total| total.to_string()));
            row
        };
        headed(&LEVELS, self.seen().into_iter().map(row))
    }

    /// Level by level and queue by queue, those who wait before those who run; last those who run without a queue.
    fn requests(&self, details: bool) -> Vec<Row> {
        let titles: Vec<&str> = REQUESTS.into_iter().chain(DETAILS.into_iter().filter(|_| details)).collect();
        let rows = self.seen().into_iter().flat_map(|mut level| {
            let mut requests = std::mem::take(&mut level.waiting);
            requests.append(&mut level.running);
            // In each queue those who wait stand before those who run already.
            requests.sort_by_key(|request| (request.queue.is_none(), request.queue));
            let row = move |request: Seen| self.row(&level.name, &request, details);
            requests.into_iter().map(row)
        });
        headed(&titles, rows)
    }

    fn row(&self, level: &str, request: &Seen, details: bool) -> Row {
        let number = |number: Option<usize>| number.map_or("-1".to_owned(), |number| number.to_string());
        let about = request.about.parts();
        let mut row: Row = vec![
            level.to_owned(),
            request.schema.name.to_string(),
            number(request.queue),
            number(request.place),
            about.distinguisher.to_owned(),
            self.moment(request.arrived),
            request.seats.to_string(),
            "0".to_owned(),
            "0s".to_owned(),
            request.began.map_or(NEVER.to_owned(), |began| self.moment(began)),
        ];
        if details {
            row.extend([about.user, about.verb, about.path, about.namespace, about.name].map(str::to_owned));
            row.push(api::catalog::group_version(about.group, about.version));
            row.extend([about.resource, about.subresource].map(str::to_owned));
        }
        row
    }

    /// An instant of this process as others read it.
    fn moment(&self, instant: Instant) -> String {
        let passed = instant.saturating_duration_since(self.begun);
        self.born.checked_add(passed).unwrap_or(self.born).to_string()
    }
}

fn headed(titles: &[&str], rows: impl Iterator<Item = Row>) -> Vec<Row> {
    std::iter::once(titles.iter().map(|title| (*title).to_owned()).collect()).chain(rows).collect()
}

fn queues(level: &Level) -> impl Iterator<Item = Row> {
    let row = move |(number, queue): (usize, &QueueFigures)| {
        vec![
            level.name.to_string(),
            number.to_string(),
            queue.waiting.to_string(),
            queue.executing.to_string(),
            queue.seats.to_string(),
            format!("{:.8}ss", queue.next),
            queue.waiting_seats.to_string(),
            queue.widest.to_string(),
            format!("{:.8}ss", f64::from(queue.waiting_seats)),
        ]
    };
    level.queues.iter().enumerate().map(row)
}

/// Rows as Go's `tabwriter` sets them: a comma after every cell but the last, columns as wide as their widest cell. What a
/// client chose to be called breaks no line.
fn table(rows: &[Row]) -> String {
    let shown: Vec<Row> = rows.iter().map(|row| row.iter().map(|cell| plain(cell)).collect()).collect();
    let columns = shown.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let cells = shown.iter().filter_map(|row| row.get(column));
        let widest = cells.map(|cell| cell.chars().count() + 1).max().unwrap_or_default();
        (widest + GAP).max(WIDTH_MIN)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in &shown {
        for (column, cell) in row.iter().enumerate() {
            if column + 1 == row.len() {
                text.push_str(cell);
            } else {
                let width = widths.get(column).copied().unwrap_or(WIDTH_MIN);
                let cell = format!("{cell},");
                // Writing to a string cannot fail.
                let _ = write!(text, "{cell:width$}");
            }
        }
        text.push('\n');
    }
    text
}

fn plain(cell: &str) -> String {
    cell.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [
            vec!["a".to_owned(), "long name".into(), "c".into()],
            vec!["b\n".into(), "x".into(), String::new()],
        ];
        assert_eq!(table(&rows), "a,      long name, c\nb ,     x,         \n");
    }
}
