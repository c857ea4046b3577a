//! `/debug/api_priority_and_fairness/dump_*`: levels, queues and requests as tables, for people who look for who
//! holds up whom. Source: `apiserver/pkg/util/flowcontrol/apf_controller_debug.go`.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

use super::dispatcher::Dispatcher;
use super::queues::{QueueFigures, Queues};
use super::running::About;
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

impl Flow {
    /// A table by its name; with `details` requests are told whole.
    pub(crate) fn dump(&self, what: &str, details: bool) -> Option<String> {
        let rows = match what {
            "dump_priority_levels" => self.levels(),
            "dump_queues" => self.act(|state, _| queues(state)),
            "dump_requests" => self.requests(details),
            _ => return None,
        };
        Some(table(&rows))
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
        let running = self.running.lock();
        self.act(|state, _| {
            let level = |(name, queues, retired): (&Arc<str>, &Queues<Waker>, bool)| {
                let figures = queues.figures();
                let waiting: usize = figures.iter().map(|queue| queue.waiting).sum();
                let active = figures.iter().filter(|queue| queue.waiting > 0).count();
                let mut row: Row = vec![
                    name.to_string(),
                    active.to_string(),
                    queues.is_idle().to_string(),
                    retired.to_string(),
                    waiting.to_string(),
                    running.of(name).len().to_string(),
                ];
                row.extend(totals(name).map(|total| total.to_string()));
                row
            };
            headed(&LEVELS, state.queues().into_iter().map(level))
        })
    }

    /// Level by level and queue by queue, those who wait before those who run; last those who run without a queue.
    fn requests(&self, details: bool) -> Vec<Row> {
        let titles: Vec<&str> = REQUESTS.into_iter().chain(DETAILS.into_iter().filter(|_| details)).collect();
        let running = self.running.lock();
        self.act(|state, _| {
            let rows = state.queues().into_iter().flat_map(|(name, queues, _)| {
                let running = running.of(name);
                let waiting: Vec<_> = queues.waiting().collect();
                let numbers = (0..queues.figures().len()).map(Some).chain([None]);
                let rows: Vec<Row> = numbers
                    .flat_map(|number| {
                        let waits = waiting.iter().filter(move |(queue, ..)| Some(*queue) == number);
                        let runs = running.iter().filter(move |request| request.queue == number);
                        let waits = waits.map(|(_, place, seats, who)| Request {
                            queue: number,
                            place: Some(*place),
                            seats: *seats,
                            schema: &who.schema,
                            about: &who.about,
                            arrived: who.arrived,
                            began: None,
                        });
                        let runs = runs.map(|request| Request {
                            queue: number,
                            place: None,
                            seats: request.seats,
                            schema: &request.schema,
                            about: &request.about,
                            arrived: request.arrived,
                            began: Some(request.began),
                        });
                        waits.chain(runs).map(|request| self.row(name, &request, details)).collect::<Vec<_>>()
                    })
                    .collect();
                rows
            });
            headed(&titles, rows)
        })
    }

    fn row(&self, level: &str, request: &Request<'_>, details: bool) -> Row {
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

/// A request, and where it is.
struct Request<'a> {
    queue: Option<usize>,
    /// Its place among those who wait in the queue, if it does.
    place: Option<usize>,
    seats: u32,
    schema: &'a Schema,
    about: &'a About,
    arrived: Instant,
    began: Option<Instant>,
}

fn headed(titles: &[&str], rows: impl Iterator<Item = Row>) -> Vec<Row> {
    std::iter::once(titles.iter().map(|title| (*title).to_owned()).collect()).chain(rows).collect()
}

fn queues(state: &Dispatcher<Waker>) -> Vec<Row> {
    let rows = state.queues().into_iter().flat_map(|(name, queues, _)| {
        let row = move |(number, queue): (usize, QueueFigures)| {
            vec![
                name.to_string(),
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
        queues.figures().into_iter().enumerate().map(row)
    });
    headed(&QUEUES, rows)
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
