//! The demo's live line: the console's SHOW POOLS and SHOW STATS, as one sentence. It reads text
//! that psql wrote and opens nothing. Read [`Snapshot`] first.

use std::time::Duration;

/// What the console said at one moment, summed over all pools.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Snapshot {
    clients: u64,
    clients_waiting: u64,
    servers: u64,
    longest_wait_s: u64,
    queries: u64,
    transactions: u64,
    wait_us: u64,
    primary: String,
}

impl Snapshot {
    /// Reads the tables that `psql --no-align` printed with `|` between the columns. Columns are
    /// found by name, for newer consoles have more of them. The console's own pool does not count.
    pub(super) fn parse(text: &str) -> Self {
        let mut snapshot = Snapshot::default();
        let mut header: Vec<&str> = Vec::new();
        for line in text.lines() {
            let cells: Vec<&str> = line.split('|').collect();
            match cells.first() {
                Some(&("database" | "name")) => header = cells,
                Some(&"pgbouncer") => {}
                _ => header.iter().zip(cells).for_each(|(name, cell)| snapshot.add(name, cell)),
            }
        }
        snapshot
    }

    fn add(&mut self, column: &str, cell: &str) {
        let value: u64 = cell.parse().unwrap_or(0);
        match column {
            "cl_active" => self.clients += value,
            "cl_waiting" => {
                self.clients += value;
                self.clients_waiting += value;
            }
            "sv_active" | "sv_idle" | "sv_used" | "sv_tested" | "sv_login" => self.servers += value,
            "maxwait" => self.longest_wait_s = self.longest_wait_s.max(value),
            "total_query_count" => self.queries += value,
            "total_xact_count" => self.transactions += value,
            "total_wait_time" => self.wait_us += value,
            "state" if cell != "open" => self.primary = format!("no primary ({cell})"),
            "primary" if self.primary.is_empty() => self.primary = format!("primary {cell}"),
            _ => {}
        }
    }

    /// One line about the time since `before`.
    pub(super) fn line(&self, before: &Snapshot, elapsed: Duration) -> String {
        let queries = self.queries.saturating_sub(before.queries) as f64;
        let queries_per_s = queries / elapsed.as_secs_f64().max(0.001);
        let transactions = self.transactions.saturating_sub(before.transactions).max(1) as f64;
        let wait_ms = self.wait_us.saturating_sub(before.wait_us) as f64 / 1000.0 / transactions;
        format!(
            "{} clients ({} waiting, the longest for {} s) | {} servers | {queries_per_s:.0} queries/s | \
             {wait_ms:.3} ms waited per transaction | {}",
            self.clients, self.clients_waiting, self.longest_wait_s, self.servers, self.primary,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOLS: &str = "database|user|cl_active|cl_waiting|sv_active|sv_idle|maxwait|maxwait_us|pool_mode\n\
                         demo|demo|40|3|18|2|5|10|transaction\n\
                         pgbouncer|pgbouncer|1|0|0|0|0|0|statement\n\
                         standby1|demo|1|0|0|1|0|0|transaction\n";
    const STATS: &str = "database|total_xact_count|total_query_count|total_wait_time\n\
                         demo|100|700|250000\n\
                         pgbouncer|9|9|0\n";
    const CLUSTERS: &str = "name|state|since_ms|primary\n\
                            demo|open|1500|127.0.0.2\n";

    #[test]
    fn pools_are_summed_without_the_console() {
        let snapshot = Snapshot::parse(&format!("{POOLS}{STATS}{CLUSTERS}"));
        assert_eq!(
            snapshot,
            Snapshot {
                clients: 44,
                clients_waiting: 3,
                servers: 21,
                longest_wait_s: 5,
                queries: 700,
                transactions: 100,
                wait_us: 250_000,
                primary: "primary 127.0.0.2".to_owned(),
            }
        );
    }

    #[test]
    fn the_line_is_about_the_time_between_two_snapshots() {
        let before = Snapshot { queries: 200, transactions: 50, ..Snapshot::default() };
        let now = Snapshot::parse(&format!("{POOLS}{STATS}{CLUSTERS}"));
        assert_eq!(
            now.line(&before, Duration::from_secs(2)),
            "44 clients (3 waiting, the longest for 5 s) | 21 servers | 250 queries/s | \
             5.000 ms waited per transaction | primary 127.0.0.2"
        );
    }

    #[test]
    fn a_restarted_pooler_counts_from_nothing() {
        let before = Snapshot { queries: 200, ..Snapshot::default() };
        let line = Snapshot::default().line(&before, Duration::ZERO);
        assert!(line.contains("| 0 queries/s |"), "{line}");
    }

    #[test]
    fn text_that_is_no_table_counts_nothing() {
        assert_eq!(Snapshot::parse("psql: error: x\n||\n"), Snapshot::default());
    }
}
