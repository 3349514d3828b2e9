//! What each message costs in the floors that do no input or output. `cargo bench` runs them all.

#![allow(missing_docs, reason = "criterion_group! makes a public function")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pgweir::pool::state::{Limits, PoolState};
use pgweir::protocol::body::Body;
use pgweir::protocol::functions::Functions;
use pgweir::protocol::state::SessionState;
use pgweir::protocol::statements::{ClientStatements, Interner, ServerStatements};
use pgweir::protocol::upstream::{Rules, StatementCounts, Upstream};
use pgweir::protocol::{Answer, Pipeline, RequestKind, Stop};
use pgweir::wire::Header;

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("a message of a bench is small");
    [&[tag][..], &length.to_be_bytes(), body].concat()
}

/// DataRows of one column, `size` bytes each, 64 kB together.
fn data_rows(size: usize) -> Vec<u8> {
    let row = message(b'D', &vec![b'x'; size - 5]);
    row.repeat(64 * 1024 / row.len())
}

/// Brings bytes to the pipeline until it has dealt with all of them.
fn receive(pipeline: &mut Pipeline, input: &[u8]) -> usize {
    let (mut at, mut forwarded) = (0, 0);
    loop {
        let received = pipeline.receive(&input[at..]).expect("the bench's server keeps step");
        at += received.consumed;
        forwarded += received.forward.len();
        if received.stop == Stop::NeedMore {
            return forwarded;
        }
    }
}

fn headers(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("headers of 64 kB");
    for size in [16, 128, 1024] {
        let rows = data_rows(size);
        group.throughput(Throughput::Bytes(rows.len() as u64));
        group.bench_function(format!("{size} byte messages"), |bencher| {
            bencher.iter(|| {
                let mut rest = black_box(&rows[..]);
                while let Ok(Some(header)) = Header::read(rest) {
                    rest = &rest[header.length..];
                }
                rest.len()
            });
        });
    }
    group.finish();
}

fn large_result(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("Pipeline::receive of 64 kB");
    for size in [16, 128, 1024] {
        let rows = data_rows(size);
        let mut pipeline = Pipeline::default();
        pipeline.push(RequestKind::Query, Answer::Forward);
        group.throughput(Throughput::Bytes(rows.len() as u64));
        group.bench_function(format!("{size} byte rows"), |bencher| {
            bencher.iter(|| receive(&mut pipeline, black_box(&rows)));
        });
    }
    group.finish();
}

fn round_trips(criterion: &mut Criterion) {
    use RequestKind::*;
    let row = [message(b'T', &[0; 40]), message(b'D', &[0; 20])].concat();
    let end = [message(b'C', b"SELECT 1\0"), message(b'Z', b"I")].concat();
    let begun = [message(b'1', b""), message(b'2', b"")].concat();
    let simple = [&row[..], &end].concat();
    let extended = [&begun[..], &row, &end].concat();
    let mut group = criterion.benchmark_group("Pipeline round trip");
    let mut check = |name: &str, requests: &[RequestKind], answers: &[u8]| {
        let mut pipeline = Pipeline::default();
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                requests.iter().for_each(|kind| pipeline.push(*kind, Answer::Forward));
                let forwarded = receive(&mut pipeline, black_box(answers));
                assert!(pipeline.is_idle());
                forwarded
            });
        });
    };
    check("simple", &[Query], &simple);
    check("extended", &[Parse, Bind, Describe, Execute, Sync], &extended);
    group.finish();
}

/// A client and its server, which have a statement `s` of the client in common.
struct Pair {
    pipeline: Pipeline,
    server: ServerStatements,
    client: Option<Box<ClientStatements>>,
    interner: Interner,
    counts: StatementCounts,
    body: Body,
    unnamed_present: bool,
}

impl Pair {
    fn new() -> Self {
        let mut pair = Pair {
            pipeline: Pipeline::default(),
            server: ServerStatements::new(200),
            client: None,
            interner: Interner::default(),
            counts: StatementCounts::default(),
            body: Body::default(),
            unnamed_present: true,
        };
        let mut out = Vec::new();
        pair.take(&message(b'P', b"s\0select $1\0\0\0"), &mut out);
        pair.take(&message(b'S', b""), &mut out);
        receive(&mut pair.pipeline, &[message(b'1', b""), message(b'Z', b"I")].concat());
        pair
    }

    fn take(&mut self, input: &[u8], out: &mut Vec<u8>) -> usize {
        let mut upstream = Upstream {
            pipeline: &mut self.pipeline,
            server: &mut self.server,
            client: &mut self.client,
            unnamed_present: &mut self.unnamed_present,
            interner: &self.interner,
            tracking: true,
            counts: &mut self.counts,
            rules: Rules::default(),
            state: &SessionState::default(),
            parameters: &Default::default(),
            listens: None,
            functions: &Functions::default(),
            definitions: 0,
        };
        let taken = upstream.take(input, &mut self.body, out).expect("the bench's client keeps step");
        taken.forward.len()
    }
}

fn upstream(criterion: &mut Criterion) {
    let tail = [message(b'E', b"\0\0\0\0\0"), message(b'S', b"")].concat();
    let named = [&message(b'B', b"\0s\0\0\0\0\x01\0\0\0\x0242\0\0")[..], &tail].concat();
    let unnamed = [
        &message(b'P', b"\0select abalance from accounts where aid = $1\0\0\0")[..],
        &message(b'B', b"\0\0\0\0\0\x01\0\0\0\x0242\0\0"),
        &message(b'D', b"P\0"),
        &tail,
    ]
    .concat();
    let query = message(b'Q', b"select abalance from accounts where aid = 42\0");
    let end = [message(b'C', b"SELECT 1\0"), message(b'Z', b"I")].concat();
    let bound = [&message(b'2', b"")[..], &end].concat();
    let described = [&message(b'1', b"")[..], &message(b'2', b""), &message(b'n', b""), &end].concat();
    let mut group = criterion.benchmark_group("Upstream::take and its answers");
    for (name, request, answers) in [
        ("simple", &query, &end),
        ("extended, unnamed", &unnamed, &described),
        ("prepared, renamed", &named, &bound),
    ] {
        let mut pair = Pair::new();
        let mut out = Vec::new();
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                out.clear();
                let forwarded = pair.take(black_box(request), &mut out);
                receive(&mut pair.pipeline, answers) + forwarded
            });
        });
    }
    group.finish();
}

fn pool(criterion: &mut Criterion) {
    let now = Instant::now();
    let limits = Limits { size: 20, reserve: 0, reserve_after: None, round_robin: false };
    let mut group = criterion.benchmark_group("PoolState");
    let mut idle: PoolState<u64, u64> = PoolState::new(limits, 2);
    for server in 0..20 {
        idle.begin_opening();
        idle.opened(server, 0, now).expect("there is room for 20");
    }
    group.bench_function("acquire and release", |bencher| {
        bencher.iter(|| {
            let lent = idle.acquire(1, 0, now, |_| 0).expect("20 are idle");
            idle.release(lent.server, 1, 0, now)
        });
    });
    let mut busy: PoolState<u64, u64> = PoolState::new(limits, 2);
    busy.begin_opening();
    busy.enqueue(0, 0, now);
    busy.opened(0, 0, now).expect("there is room for one");
    for waiter in 0..400 {
        busy.enqueue(waiter, usize::from(waiter % 2 == 0), now);
    }
    group.bench_function("release to one of 400 waiters", |bencher| {
        bencher.iter(|| {
            busy.enqueue(1, 0, now);
            busy.release(0, 1, 0, now)
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(30)
        .without_plots();
    targets = headers, large_result, round_trips, upstream, pool
}
criterion_main!(benches);
