//! `/debug/api_priority_and_fairness/dump_*`: levels, queues and waiting requests as tables, for people who look for who
//! holds up whom. Source: `apiserver/pkg/util/flowcontrol/apf_controller_debug.go`.

use std::fmt::Write as _;
use std::sync::Arc;

use super::dispatcher::Dispatcher;
use super::queues::{QueueFigures, Queues};
use super::{Flow, Waker};

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
const REQUESTS: [&str; 9] = [
    "PriorityLevelName",
    "FlowSchemaName",
    "QueueIndex",
    "RequestIndexInQueue",
    "FlowDistingsher",
    "ArriveTime",
    "InitialSeats",
    "FinalSeats",
    "AdditionalLatency",
];
const DETAILS: [&str; 8] =
    ["UserName", "Verb", "APIPath", "Namespace", "Name", "APIVersion", "Resource", "SubResource"];
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
            "dump_requests" => self.act(|state, _| requests(state, details)),
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
                    queues.executing().to_string(),
                ];
                row.extend(totals(name).map(|total| total.to_string()));
                row
            };
            headed(&LEVELS, state.queues().into_iter().map(level))
        })
    }
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

fn requests(state: &Dispatcher<Waker>, details: bool) -> Vec<Row> {
    let titles: Vec<&str> = REQUESTS.into_iter().chain(DETAILS.into_iter().filter(|_| details)).collect();
    let rows = state.queues().into_iter().flat_map(|(name, queues, _)| {
        let row = move |(queue, place, seats, who): (usize, usize, u32, &Waker)| {
            let mut row: Row = vec![
                name.to_string(),
                who.schema.name.to_string(),
                queue.to_string(),
                place.to_string(),
                who.distinguisher.clone(),
                who.arrived.to_string(),
                seats.to_string(),
                "0".to_owned(),
                "0s".to_owned(),
            ];
            if details {
                let about = &who.about;
                row.extend([
                    about.user.clone(),
                    about.verb.clone(),
                    about.path.clone(),
                    about.namespace.clone(),
                    about.name.clone(),
                    about.version.clone(),
                    about.resource.clone(),
                    about.subresource.clone(),
                ]);
            }
            row
        };
        queues.waiting().map(row)
    });
    headed(&titles, rows)
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
