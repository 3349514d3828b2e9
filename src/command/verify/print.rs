//! How the lines are printed: [`table`] for people, [`json`](json()) for programs.

use std::fmt::Write;

use serde_json::json;

use super::checks::{Line, Verdict};

/// One row for each line, with its remedy below it, and the counts at the end.
pub(super) fn table(cluster: &str, lines: &[Line]) -> String {
    let width = |text: fn(&Line) -> usize| lines.iter().map(text).max().unwrap_or(0);
    let (ids, titles) = (width(|line| line.id.len()), width(|line| line.title.len()));
    let mut text = String::new();
    for Line { id, title, verdict, found, remedy } in lines {
        let word = match verdict {
            Verdict::Fail => "FAIL",
            other => other.word(),
        };
        writeln!(text, "{word:7}  {id:ids$}  {title:titles$}  {found}").expect("a String takes any text");
        if let Some(remedy) = remedy {
            writeln!(text, "{:7}  {:ids$}  -> {remedy}", "", "").expect("a String takes any text");
        }
    }
    let counts = counts(lines).map(|(word, count)| format!("{count} {word}"));
    writeln!(text, "{cluster}: {}", counts.join(", ")).expect("a String takes any text");
    text
}

/// One object, with the lines in their order.
pub(super) fn json(cluster: &str, lines: &[Line]) -> String {
    let counts: serde_json::Map<_, _> =
        counts(lines).into_iter().map(|(word, count)| (word.to_owned(), json!(count))).collect();
    let object = json!({ "cluster": cluster, "counts": counts, "lines": lines });
    format!("{object:#}\n")
}

fn counts(lines: &[Line]) -> [(&'static str, usize); 4] {
    let all = [Verdict::Pass, Verdict::Warn, Verdict::Fail, Verdict::Skipped];
    all.map(|verdict| (verdict.word(), lines.iter().filter(|line| line.verdict == verdict).count()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines() -> Vec<Line> {
        let line = |id, title, verdict, found: &str, remedy: Option<&str>| Line {
            id,
            title,
            verdict,
            found: found.into(),
            remedy: remedy.map(str::to_owned),
        };
        vec![
            line("a", "First", Verdict::Pass, "3 of 3", None),
            line("bcd", "Last of all", Verdict::Fail, "none", Some("make one")),
        ]
    }

    #[test]
    fn a_table_has_the_remedy_below_its_line() {
        let expected = "\
pass     a    First        3 of 3
FAIL     bcd  Last of all  none
              -> make one
pg: 1 pass, 0 warn, 1 fail, 0 skipped
";
        assert_eq!(table("pg", &lines()), expected);
    }

    #[test]
    fn json_has_every_field_of_every_line() {
        let read: serde_json::Value = serde_json::from_str(&json("pg", &lines())).expect("it is JSON");
        let last = json!({ "id": "bcd", "title": "Last of all", "verdict": "fail", "found": "none",
            "remedy": "make one" });
        assert_eq!(read["lines"][1], last);
        assert_eq!(read["lines"][0]["remedy"], json!(null));
        assert_eq!(read["counts"], json!({ "pass": 1, "warn": 0, "fail": 1, "skipped": 0 }));
        assert_eq!(read["cluster"], "pg");
    }
}
