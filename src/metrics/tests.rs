//! The page as Prometheus reads it.

use super::*;

/// One sample: name, labels in order, value.
type Sample = (String, Vec<(String, String)>, f64);

/// A small reader of the text format. It panics on what Prometheus would refuse.
fn parse(text: &str) -> (BTreeMap<String, String>, Vec<Sample>) {
    let mut types = BTreeMap::new();
    let mut helps = BTreeMap::new();
    let mut samples = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(helps.insert(name.to_owned(), help.to_owned()).is_none(), "{line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{line}");
        } else {
            samples.push(sample(line));
        }
    }
    let described: Vec<_> = helps.keys().collect();
    assert_eq!(described, types.keys().collect::<Vec<_>>());
    (types, samples)
}

fn sample(line: &str) -> Sample {
    let (series, value) = line.rsplit_once(' ').unwrap();
    let Some((name, rest)) = series.split_once('{') else {
        return (series.to_owned(), vec![], value.parse().unwrap());
    };
    let mut labels = Vec::new();
    let mut rest = rest.strip_suffix('}').unwrap();
    while !rest.is_empty() {
        let (label, after) = rest.split_once("=\"").unwrap();
        let mut text = String::new();
        let mut characters = after.char_indices();
        let end = loop {
            match characters.next().unwrap() {
                (at, '"') => break at,
                (_, '\\') => text.push(match characters.next().unwrap().1 {
                    'n' => '\n',
                    same @ ('\\' | '"') => same,
                    other => panic!("no such escape: {other:?} in {line}"),
                }),
                (_, character) => text.push(character),
            }
        };
        labels.push((label.to_owned(), text));
        rest = after[end + 1..].trim_start_matches(',');
    }
    (name.to_owned(), labels, value.parse().unwrap())
}

fn value(samples: &[Sample], name: &str, label: &str) -> f64 {
    let is_it =
        |sample: &&Sample| sample.0 == name && (label.is_empty() || sample.1.iter().any(|(_, v)| v == label));
    let found: Vec<_> = samples.iter().filter(is_it).collect();
    assert_eq!(found.len(), 1, "{name} {label}: {found:?}");
    found[0].2
}

fn page_with_everything(label: &str) -> Page {
    let mut page = Page::new();
    let mut histogram = Histogram::default();
    histogram.record(Duration::from_millis(3));
    for metric in ALL {
        let labels = vec![label; metric.labels.len()];
        match metric.kind {
            Kind::Counter => page.counter(metric, &labels, 7),
            Kind::Gauge => page.gauge(metric, &labels, 7),
            Kind::Histogram => page.histogram(metric, &labels, &histogram),
        }
    }
    page
}

#[test]
fn every_metric_is_described_once_and_keeps_its_name() {
    let (types, samples) = parse(&page_with_everything("a").render());
    assert_eq!(types.len(), ALL.len());
    for metric in ALL {
        let kind = format!("{:?}", metric.kind).to_lowercase();
        assert_eq!(types[metric.name], kind, "{}", metric.name);
        if metric.kind != Kind::Histogram {
            assert_eq!(value(&samples, metric.name, ""), 7.0);
        }
    }
}

#[test]
fn names_follow_prometheus_conventions() {
    for metric in ALL {
        let name = metric.name;
        let plain = |text: &str| text.chars().all(|c| c.is_ascii_lowercase() || c == '_');
        assert!(name.starts_with("pgweir_") && plain(name), "{name}");
        assert_eq!(metric.kind == Kind::Counter, name.ends_with("_total"), "{name}");
        let base = name.trim_end_matches("_total");
        assert_eq!(metric.unit == Unit::Seconds, base.ends_with("_seconds"), "{name}");
        assert_eq!(metric.unit == Unit::Bytes, base.ends_with("_bytes"), "{name}");
        assert!(metric.help.ends_with('.') && !metric.help.contains('\n'), "{name}");
        assert!(metric.labels.iter().all(|label| plain(label) && *label != "le"), "{name}");
    }
}

#[test]
fn label_values_are_escaped() {
    for label in ["a\"b", "a\\b", "a\nb", "a\\\"b", "\\", "\"", "ü=,{}", "\\n", "a\\\\\"\n"] {
        let (_, samples) = parse(&page_with_everything(label).render());
        for (name, labels, _) in &samples {
            for (_, value) in labels.iter().filter(|(key, _)| key != "le") {
                assert_eq!(value, label, "{name}");
            }
        }
    }
}

#[test]
fn histogram_buckets_are_cumulated_and_end_with_infinity() {
    let mut one = Histogram::default();
    for us in [0, 10, 11, 25, 1_000, 1_001, 100_000_000, 100_000_001] {
        one.record(Duration::from_micros(us));
    }
    let mut both = one.clone();
    both.merge(&one);
    assert_eq!(both.count(), 16);
    let mut page = Page::new();
    page.histogram(&QUEUE_WAIT, &["p0"], &both);
    page.histogram(&QUEUE_WAIT, &["p1"], &one);
    let (types, samples) = parse(&page.render());
    assert_eq!(types["pgweir_queue_wait_seconds"], "histogram");
    let of_p0: Vec<_> = samples.iter().filter(|s| s.1[0].1 == "p0").collect();
    let bucket = |le: &str| {
        let found = of_p0.iter().find(|s| s.1.get(1).is_some_and(|(_, v)| v == le));
        found.unwrap_or_else(|| panic!("no bucket {le}: {of_p0:?}")).2
    };
    for (le, count) in [
        ("0.00001", 4.0),
        ("0.000025", 8.0),
        ("0.0005", 8.0),
        ("0.001", 10.0),
        ("0.0025", 12.0),
        ("100", 14.0),
        ("+Inf", 16.0),
    ] {
        assert_eq!(bucket(le), count, "{le}");
    }
    assert_eq!(of_p0[of_p0.len() - 1].2, 16.0, "_count");
    assert_eq!(of_p0[of_p0.len() - 2].2, 400.004096, "_sum");
    assert_eq!(of_p0.len(), 25);
}

#[test]
fn errors_have_a_bounded_number_of_labels() {
    let mut errors = ErrorCounts::default();
    for code in ["08P01", "08P01", "57P01", "", "no state", "é123", "\"\"\"\"\""] {
        errors.record(code);
    }
    let counts: Vec<_> = errors.iter().collect();
    assert_eq!(counts, [("08P01", 2), ("57P01", 1), ("other", 4)]);
    for n in 0..1000 {
        errors.record(&format!("X{n:04}"));
    }
    let mut sum = ErrorCounts::default();
    sum.merge(&errors);
    sum.merge(&errors);
    assert_eq!(sum.iter().count(), SQLSTATES_MAX + 1);
    assert_eq!(sum.iter().map(|(_, count)| count).sum::<u64>(), 2 * 1007);
}

#[test]
fn a_workers_counts_are_on_the_page() {
    let mut worker = WorkerMetrics::default();
    worker.errors.record("08P01");
    worker.login.record(Duration::from_millis(2));
    worker.cancels_forwarded = 3;
    worker.cancels_to_peers = 6;
    worker.cancels_not_here = 7;
    worker.server_logins_failed = 4;
    worker.statements_evicted = 5;
    let mut sum = worker.clone();
    sum.merge(&worker);
    let mut page = Page::new();
    sum.publish(&mut page);
    let (_, samples) = parse(&page.render());
    assert_eq!(value(&samples, "pgweir_errors_total", "08P01"), 2.0);
    assert_eq!(value(&samples, "pgweir_login_seconds_count", ""), 2.0);
    assert_eq!(value(&samples, "pgweir_cancel_requests_total", "forwarded"), 6.0);
    assert_eq!(value(&samples, "pgweir_cancel_requests_total", "peer"), 12.0);
    assert_eq!(value(&samples, "pgweir_cancel_requests_total", "not_here"), 14.0);
    assert_eq!(value(&samples, "pgweir_server_connects_total", "login_failed"), 8.0);
    assert_eq!(value(&samples, "pgweir_prepared_evictions_total", ""), 10.0);
}
