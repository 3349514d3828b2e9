//! [`Stage`]: two clients, A and B, who take turns, and a script that says what each hears.

use super::message::{Reply, query};
use super::{Pooler, Raw};

/// Two clients of one pooler.
pub struct Stage {
    pub pooler: Pooler,
    pub a: Raw,
    pub b: Raw,
}

impl Stage {
    /// Transaction mode and one server: whatever one client leaves behind, the other finds.
    pub async fn start() -> Stage {
        Stage::on(Pooler::config().start().await).await
    }

    pub async fn on(pooler: Pooler) -> Stage {
        let (a, b) = (pooler.client().await, pooler.client().await);
        Stage { pooler, a, b }
    }

    /// Each line says who asks, what, and what comes of it: `A: SHOW work_mem => 4MB`. Rows are separated by
    /// `;`, columns by `,`; without rows it is the last command's tag; an error is its SQLSTATE. Lines in which
    /// nothing is expected must succeed.
    pub async fn play(&mut self, script: &str) {
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (who, rest) = line.split_once(": ").expect("a line begins with A: or B:");
            let (sql, expected) = match rest.split_once(" => ") {
                Some((sql, expected)) => (sql, Some(expected)),
                None => (rest.trim_end_matches(" =>"), None),
            };
            let client = match who {
                "A" => &mut self.a,
                "B" => &mut self.b,
                other => panic!("nobody is called {other}"),
            };
            client.send(query(sql)).await;
            let got = outcome(&client.until(b'Z').await);
            match expected {
                Some(expected) => assert_eq!(got, expected, "{line}\n{}", self.pooler.log()),
                None => assert!(!got.starts_with("E("), "{line}: {got}\n{}", self.pooler.log()),
            }
        }
    }
}

/// What a reply comes to, in a few words.
pub fn outcome(reply: &Reply) -> String {
    if let Some(error) = reply.of(b'E').next() {
        return format!("E({})", error.field(b'C'));
    }
    let rows = reply.rows();
    if rows.is_empty() {
        let tag = reply.of(b'C').last().map(|complete| complete.strings().join(" "));
        return tag.unwrap_or_default();
    }
    rows.iter().map(|row| row.join(",")).collect::<Vec<_>>().join(";")
}
