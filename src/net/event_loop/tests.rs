use std::future::poll_fn;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::task::{Context, Waker};
use std::thread;
use std::time::Duration;

use socket2::{Domain, Type};
use tokio::io::AsyncReadExt;
use tokio::task::yield_now;

use super::*;
use crate::net::Socket;
use crate::net::stream::{Listener, Stream};

/// Runs a test on a loop of its own; a test that hangs ends after a minute.
fn looped<F: Future<Output = ()> + 'static>(test: impl FnOnce() -> F + Send + 'static) {
    let (over, ended) = mpsc::channel();
    let thread = thread::spawn(move || {
        EventLoop::new().unwrap().run(test());
        over.send(()).unwrap();
    });
    if ended.recv_timeout(Duration::from_secs(60)) == Err(mpsc::RecvTimeoutError::Timeout) {
        panic!("the loop sleeps for ever");
    }
    thread.join().unwrap();
}

fn pair() -> (Stream, UnixStream) {
    let (ours, other) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    (Stream::new(ours).unwrap(), other)
}

async fn receive(stream: &Stream, room: usize) -> Vec<u8> {
    let mut buffer = vec![0; room];
    let count = poll_fn(|context| stream.poll_receive(context, &mut buffer)).await.unwrap();
    buffer.truncate(count);
    buffer
}

fn is_silent(stream: &Stream) -> bool {
    let mut context = Context::from_waker(Waker::noop());
    stream.poll_receive(&mut context, &mut [0; 8]).is_pending()
}

#[test]
fn a_loop_runs_until_its_task_ends() {
    looped(|| async {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        spawn(async move {
            // More turns than a set of tasks takes at a time.
            for _ in 0..1_000 {
                yield_now().await;
            }
            sender.send(()).unwrap();
        });
        receiver.await.unwrap();
    });
}

#[test]
fn another_thread_interrupts_the_sleep_each_time() {
    looped(|| async {
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let (ask, asked) = mpsc::channel();
        let other = thread::spawn(move || asked.iter().for_each(|number: u32| sender.send(number).unwrap()));
        for number in 0..1_000 {
            ask.send(number).unwrap();
            assert_eq!(receiver.recv().await, Some(number));
        }
        drop(ask);
        other.join().unwrap();
    });
}

#[test]
fn what_comes_later_wakes_who_has_read_all() {
    looped(|| async {
        let (stream, mut other) = pair();
        for word in [&b"one"[..], b"two", b"three"] {
            let (go, gone) = mpsc::channel();
            let mut writer = other.try_clone().unwrap();
            let thread = thread::spawn(move || {
                gone.recv().unwrap();
                writer.write_all(word).unwrap();
            });
            assert!(is_silent(&stream));
            go.send(()).unwrap();
            assert_eq!(receive(&stream, 8).await, word);
            thread.join().unwrap();
        }
        other.write_all(b"12345678rest").unwrap();
        assert_eq!(receive(&stream, 8).await, b"12345678");
        assert_eq!(receive(&stream, 8).await, b"rest");
    });
}

#[test]
fn the_end_is_read_behind_the_last_bytes() {
    looped(|| async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut other = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let stream = listener.accept().unwrap().0;
        stream.set_nonblocking(true).unwrap();
        let stream = Stream::new(stream).unwrap();
        other.write_all(b"last").unwrap();
        other.shutdown(Shutdown::Write).unwrap();
        assert_eq!(receive(&stream, 8).await, b"last");
        assert_eq!(receive(&stream, 8).await, b"");
        assert_eq!(receive(&stream, 8).await, b"");
    });
}

#[test]
fn a_full_socket_wakes_its_writer_when_there_is_room() {
    looped(|| async {
        let (stream, mut other) = pair();
        let bytes = vec![7; 4 << 20];
        let reader = thread::spawn(move || {
            let mut read = Vec::new();
            other.read_to_end(&mut read).unwrap();
            read
        });
        let mut at = 0;
        while at < bytes.len() {
            at += poll_fn(|context| stream.poll_send(context, &bytes[at..])).await.unwrap();
        }
        drop(stream);
        assert_eq!(reader.join().unwrap(), bytes);
    });
}

#[test]
fn who_is_always_given_some_lets_others_have_their_turn() {
    looped(|| async {
        let (stream, mut other) = pair();
        let mut socket = Socket::Unix(stream);
        other.write_all(&[7; 1_000]).unwrap();
        socket.read_u8().await.unwrap();
        let is_over = Rc::new(Cell::new(false));
        let over = Rc::clone(&is_over);
        spawn(async move { over.set(true) });
        let mut reads = 0;
        while !is_over.get() {
            socket.read_u8().await.unwrap();
            reads += 1;
        }
        assert!((2..1_000).contains(&reads), "{reads}");
    });
}

#[test]
fn a_connection_is_made_or_says_why_not() {
    looped(|| async {
        let socket = || socket2::Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let place = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = Listener::new(listener).unwrap();
        let ours = Stream::connect(socket(), &place.into()).await.unwrap();
        let (accepted, from) = listener.accept().await.unwrap();
        assert_eq!(from, socket2::SockRef::from(&ours).local_addr().unwrap().as_socket());
        poll_fn(|context| ours.poll_send(context, b"hello")).await.unwrap();
        assert_eq!(receive(&Stream::new(accepted).unwrap(), 8).await, b"hello");
        drop(listener);
        let refused = Stream::connect(socket(), &place.into()).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn a_socket_goes_on_under_another_threads_loop() {
    looped(|| async {
        let (stream, mut other) = pair();
        assert!(is_silent(&stream));
        // As an idle server does, that a client of another worker is given.
        let there = thread::spawn(move || {
            looped(move || async move {
                let stream = Stream::new(stream.detach()).unwrap();
                assert_eq!(receive(&stream, 8).await, b"moved");
                poll_fn(|context| stream.poll_send(context, b"answer")).await.unwrap();
            });
        });
        other.write_all(b"moved").unwrap();
        let mut answer = [0; 6];
        other.read_exact(&mut answer).unwrap();
        there.join().unwrap();
    });
}

#[test]
fn a_place_is_free_again_whoever_drops_its_socket() {
    looped(|| async {
        let (one, _other) = pair();
        let (two, _another) = pair();
        assert_eq!(sources::count(), 2);
        drop(one);
        assert_eq!(sources::count(), 1);
        thread::spawn(move || drop(two)).join().unwrap();
        let _third = pair();
        assert_eq!(sources::count(), 1);
    });
}
