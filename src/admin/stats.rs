//! SHOW STATS and its relatives: the same eleven counters, as totals and as averages.

use super::show::sorted_by;
use super::table::{Columns, Table, Value, number, text};
use super::view::{Snapshot, Stats, StatsView};
use crate::wire::originate::ColumnType::{Numeric, Text};

const STATS: Columns = &[
    ("database", Text),
    ("total_server_assignment_count", Numeric),
    ("total_xact_count", Numeric),
    ("total_query_count", Numeric),
    ("total_received", Numeric),
    ("total_sent", Numeric),
    ("total_xact_time", Numeric),
    ("total_query_time", Numeric),
    ("total_wait_time", Numeric),
    ("total_client_parse_count", Numeric),
    ("total_server_parse_count", Numeric),
    ("total_bind_count", Numeric),
    ("avg_server_assignment_count", Numeric),
    ("avg_xact_count", Numeric),
    ("avg_query_count", Numeric),
    ("avg_recv", Numeric),
    ("avg_sent", Numeric),
    ("avg_xact_time", Numeric),
    ("avg_query_time", Numeric),
    ("avg_wait_time", Numeric),
    ("avg_client_parse_count", Numeric),
    ("avg_server_parse_count", Numeric),
    ("avg_bind_count", Numeric),
];

const STATS_TOTALS: Columns = &[
    ("database", Text),
    ("server_assignment_count", Numeric),
    ("xact_count", Numeric),
    ("query_count", Numeric),
    ("bytes_received", Numeric),
    ("bytes_sent", Numeric),
    ("xact_time", Numeric),
    ("query_time", Numeric),
    ("wait_time", Numeric),
    ("client_parse_count", Numeric),
    ("server_parse_count", Numeric),
    ("bind_count", Numeric),
];

// Three names carry `avg_` and eight do not: PgBouncer's own.
const STATS_AVERAGES: Columns = &[
    ("database", Text),
    ("server_assignment_count", Numeric),
    ("xact_count", Numeric),
    ("query_count", Numeric),
    ("bytes_received", Numeric),
    ("bytes_sent", Numeric),
    ("xact_time", Numeric),
    ("query_time", Numeric),
    ("wait_time", Numeric),
    ("avg_client_parse_count", Numeric),
    ("avg_server_parse_count", Numeric),
    ("avg_bind_count", Numeric),
];

const TOTALS: Columns = &[("name", Text), ("value", Numeric)];

const TOTALS_ROWS: [&str; 11] = [
    "server_assignment_count",
    "xact_count",
    "query_count",
    "client_bytes",
    "server_bytes",
    "xact_time",
    "query_time",
    "wait_time",
    "ps_client_parse_count",
    "ps_server_parse_count",
    "ps_bind_count",
];

pub(crate) fn stats(snapshot: &Snapshot) -> Table {
    rows(STATS, snapshot, |view| {
        let averages = view.totals.averages_since(&view.older, snapshot.stats_elapsed);
        [in_order(&view.totals), in_order(&averages)].concat()
    })
}

pub(crate) fn totals(snapshot: &Snapshot) -> Table {
    rows(STATS_TOTALS, snapshot, |view| in_order(&view.totals).to_vec())
}

pub(crate) fn averages(snapshot: &Snapshot) -> Table {
    rows(STATS_AVERAGES, snapshot, |view| {
        let averages = view.totals.averages_since(&view.older, snapshot.stats_elapsed);
        in_order(&averages).to_vec()
    })
}

/// SHOW TOTALS: all databases in one, a row for each number.
pub(crate) fn totals_by_name(snapshot: &Snapshot) -> Table {
    let sum = |of: fn(&StatsView) -> &Stats| {
        snapshot.stats.iter().map(of).fold(Stats::default(), |sum, stats| sum.plus(stats))
    };
    let totals = sum(|view| &view.totals);
    let averages = totals.averages_since(&sum(|view| &view.older), snapshot.stats_elapsed);
    let named = |prefix: &'static str, stats: &Stats| {
        let numbers = TOTALS_ROWS.into_iter().zip(in_order(stats));
        numbers.map(move |(name, n)| vec![text(format!("{prefix}_{name}")), number(n)])
    };
    Table::new(TOTALS, named("total", &totals).chain(named("avg", &averages)))
}

fn rows(columns: Columns, snapshot: &Snapshot, numbers: impl Fn(&StatsView) -> Vec<u64>) -> Table {
    let row = |view: &StatsView| -> Vec<Value> {
        let numbers = numbers(view).into_iter().map(number);
        std::iter::once(text(&view.database)).chain(numbers).collect()
    };
    Table::new(columns, sorted_by(&snapshot.stats, |view| &view.database).into_iter().map(row))
}

/// The order of every table here.
fn in_order(stats: &Stats) -> [u64; 11] {
    [
        stats.server_assignment_count,
        stats.xact_count,
        stats.query_count,
        stats.bytes_received,
        stats.bytes_sent,
        stats.xact_time_us,
        stats.query_time_us,
        stats.wait_time_us,
        stats.client_parse_count,
        stats.server_parse_count,
        stats.bind_count,
    ]
}
