//! What `pgbench` reports, read from its text. It can exit with 0 although a transaction failed or
//! a PREPARE was refused, so the text is what counts. Read [`Report`] first.

/// The numbers of one run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Report {
    /// Transactions that were finished.
    pub(super) transactions: u64,
    /// Transactions that were given up.
    pub(super) failed: u64,
    /// Average latency of a transaction.
    pub(super) latency_ms: f64,
    /// Transactions a second, without the time to connect.
    pub(super) transactions_per_s: f64,
}

impl Report {
    /// `None` when the text is not a report of pgbench 14 or newer.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let after = |label: &str| text.lines().find_map(|line| line.strip_prefix(label));
        Some(Report {
            transactions: number(after("number of transactions actually processed: ")?)?,
            // pgbench before 15 gives up the whole client instead.
            failed: after("number of failed transactions: ").map_or(Some(0), number)?,
            latency_ms: number(after("latency average = ")?)?,
            transactions_per_s: number(after("tps = ")?)?,
        })
    }
}

/// The lines in which pgbench complains, from what it wrote to standard error.
pub(super) fn complaints(text: &str) -> Vec<&str> {
    let words = ["error:", "ERROR:", "FATAL:", "PANIC:", "fatal:", "aborted"];
    text.lines().filter(|line| words.iter().any(|word| line.contains(word))).collect()
}

/// The number that a text begins with: `100/100`, `2.5 ms`, `0 (0.000%)`.
fn number<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.split([' ', '/']).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_is_read_in_both_of_its_forms() {
        fn check(text: &str, expected: Option<(u64, u64, f64, f64)>) {
            let expected = expected.map(|(transactions, failed, latency_ms, transactions_per_s)| Report {
                transactions,
                failed,
                latency_ms,
                transactions_per_s,
            });
            assert_eq!(Report::parse(text), expected, "{text:?}");
        }
        let end = "latency average = 0.162 ms\ninitial connection time = 4.1 ms\n\
                   tps = 6165.228113 (without initial connection time)\n";
        check(
            &format!(
                "duration: 3 s\nnumber of transactions actually processed: 18481\n\
                 number of failed transactions: 7 (0.038%)\n{end}"
            ),
            Some((18481, 7, 0.162, 6165.228113)),
        );
        check(
            &format!("number of transactions actually processed: 90/100\n{end}"),
            Some((90, 0, 0.162, 6165.228113)),
        );
        check("number of transactions actually processed: 1\n", None);
        check("number of transactions actually processed: many\n", None);
        check("", None);
    }

    #[test]
    fn complaints_are_told_from_progress() {
        fn check(text: &str, expected: &[&str]) {
            assert_eq!(complaints(text), expected);
        }
        check("dropping old tables...\ncreating tables...\nvacuuming...\ndone in 0.2 s\n", &[]);
        check(
            "progress\npgbench: error: client 3 script 0 aborted in command 1 query 0: ERROR:  x\n",
            &["pgbench: error: client 3 script 0 aborted in command 1 query 0: ERROR:  x"],
        );
        check(
            "ERROR:  prepared statement \"P_0\" does not exist",
            &["ERROR:  prepared statement \"P_0\" does not exist"],
        );
    }
}
