//! One watch that is kept up whatever happens to the API: [`keep`].
//!
//! It says the whole list of its objects each time one has changed, and says when it cannot. After any
//! error it lists anew, so that the first list after an error also says that the API is back.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::mem::discriminant;
use std::pin::{Pin, pin};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

/// How long the API lets one watch request last. The client gives up 5 s later: so this is also how long
/// a connection that died in silence can keep news from us. A shorter one costs more requests.
pub(super) const REQUEST_S: u32 = 10;

/// Longest time to wait for the next part of a list.
const LIST_LIMIT: Duration = Duration::from_secs(15);

/// The pause after an error; it doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// The longest pause while the API cannot be reached.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// The longest pause while the API says no. Mostly only people change that, but an API server that has
/// just started says it too, before it knows the roles: so this pause also begins at [`PAUSE_MIN`].
const REFUSED_MAX: Duration = Duration::from_secs(30);

/// What a watch has to say.
#[derive(Debug)]
pub(super) enum Word<K> {
    /// These are all objects now.
    All(Vec<K>),
    /// It cannot see.
    Blind(Trouble),
}

/// Why a watch cannot see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The API says that we may not (401, 403).
    Denied(String),
    /// The API does not know this kind of object (404).
    Unknown(String),
    /// The API does not answer, or not as it should.
    Unreachable(String),
    /// The API does not know any more where we were (410), or the stream has ended. A new list mends it,
    /// so nobody is told.
    Outdated,
}

impl Trouble {
    /// In words.
    pub(super) fn reason(&self) -> &str {
        match self {
            Trouble::Denied(reason) | Trouble::Unknown(reason) | Trouble::Unreachable(reason) => reason,
            Trouble::Outdated => "the API does not know any more where the watch was",
        }
    }

    /// Whether the API has answered that it will not show us this.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, Trouble::Denied(_) | Trouble::Unknown(_))
    }
}

/// Watches for ever; ends when nobody listens any more.
pub(super) async fn keep<K, N>(
    api: Api<K>,
    selection: watcher::Config,
    as_news: impl Fn(Word<K>) -> N,
    listener: mpsc::Sender<N>,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let selection = selection.timeout(REQUEST_S);
    let mut attempts = 0_u32;
    let mut last = None;
    loop {
        let events = pin!(watcher(api.clone(), selection.clone()));
        let mut shelf = Shelf::default();
        let Some(trouble) = until_trouble(events, &mut shelf, &as_news, &listener).await else { return };
        let is_same = last.replace(discriminant(&trouble)) == Some(discriminant(&trouble));
        attempts = if is_same && !shelf.is_whole() { attempts.saturating_add(1) } else { 0 };
        let pause = pause(&trouble, attempts);
        if trouble != Trouble::Outdated && listener.send(as_news(Word::Blind(trouble))).await.is_err() {
            return;
        }
        // Many poolers lose the API at the same moment, and must not come back at the same one.
        sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
    }
}

/// Says what one stream of events says until it fails; `None` when nobody listens.
async fn until_trouble<K, N>(
    mut events: Pin<&mut impl Stream<Item = watcher::Result<Event<K>>>>,
    shelf: &mut Shelf<K>,
    as_news: impl Fn(Word<K>) -> N,
    listener: &mpsc::Sender<N>,
) -> Option<Trouble>
where
    K: Resource + Clone,
{
    loop {
        let next = match shelf.is_whole() {
            true => events.next().await,
            false => match timeout(LIST_LIMIT, events.next()).await {
                Ok(next) => next,
                Err(_) => return Some(no_answer()),
            },
        };
        match next {
            Some(Ok(event)) => {
                if shelf.handle(event) {
                    listener.send(as_news(Word::All(shelf.list()))).await.ok()?;
                }
            }
            Some(Err(error)) => return Some(trouble(&error)),
            None => return Some(Trouble::Outdated),
        }
    }
}

/// The objects of one watch, by name.
#[derive(Debug)]
struct Shelf<K> {
    objects: BTreeMap<String, K>,
    /// The objects of a list that is not whole yet.
    filling: Option<BTreeMap<String, K>>,
    is_whole: bool,
}

impl<K> Default for Shelf<K> {
    fn default() -> Self {
        Shelf { objects: BTreeMap::new(), filling: None, is_whole: false }
    }
}

impl<K: Resource + Clone> Shelf<K> {
    /// Takes one event in; returns whether the list may be another now.
    fn handle(&mut self, event: Event<K>) -> bool {
        match event {
            Event::Init => {
                self.filling = Some(BTreeMap::new());
                self.is_whole = false;
                return false;
            }
            Event::InitApply(object) => {
                self.filling.get_or_insert_default().insert(object.name_any(), object);
                return false;
            }
            Event::InitDone => {
                self.objects = self.filling.take().unwrap_or_default();
                self.is_whole = true;
            }
            Event::Apply(object) => drop(self.objects.insert(object.name_any(), object)),
            Event::Delete(object) => drop(self.objects.remove(&object.name_any())),
        }
        true
    }

    fn is_whole(&self) -> bool {
        self.is_whole
    }

    fn list(&self) -> Vec<K> {
        self.objects.values().cloned().collect()
    }
}

fn no_answer() -> Trouble {
    Trouble::Unreachable(format!("the API has not answered within {} s", LIST_LIMIT.as_secs()))
}

fn trouble(error: &watcher::Error) -> Trouble {
    let (code, message) = match error {
        watcher::Error::WatchError(status) => (status.code, status.message.clone()),
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => match error {
            kube::Error::Api(status) => (status.code, status.message.clone()),
            other => (0, with_causes(other)),
        },
        watcher::Error::NoResourceVersion => (0, error.to_string()),
    };
    match code {
        410 => Trouble::Outdated,
        401 | 403 => Trouble::Denied(message),
        404 => Trouble::Unknown(message),
        _ => Trouble::Unreachable(message),
    }
}

/// The error with its causes: the outer ones say only that something has failed.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

fn pause(trouble: &Trouble, attempts: u32) -> Duration {
    let longest = if trouble.is_refusal() { REFUSED_MAX } else { PAUSE_MAX };
    PAUSE_MIN.saturating_mul(2_u32.saturating_pow(attempts)).min(longest)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::core::Status;

    use super::*;

    fn object(name: &str) -> ConfigMap {
        let mut object = ConfigMap::default();
        object.metadata.name = Some(name.to_owned());
        object
    }

    #[test]
    fn a_list_counts_only_when_it_is_whole() {
        let mut shelf = Shelf::default();
        let names = |shelf: &Shelf<ConfigMap>| -> Vec<String> {
            shelf.list().iter().map(ResourceExt::name_any).collect()
        };
        assert!(!shelf.handle(Event::Init));
        assert!(!shelf.handle(Event::InitApply(object("b"))));
        assert!(!shelf.is_whole());
        assert!(shelf.handle(Event::InitDone));
        assert!(shelf.is_whole());
        assert!(shelf.handle(Event::Apply(object("a"))));
        assert_eq!(names(&shelf), ["a", "b"]);
        assert!(!shelf.handle(Event::Init));
        assert_eq!(names(&shelf), ["a", "b"], "the old list stays until the new one is whole");
        assert!(!shelf.handle(Event::InitApply(object("c"))));
        assert!(shelf.handle(Event::InitDone));
        assert_eq!(names(&shelf), ["c"]);
        assert!(shelf.handle(Event::Delete(object("c"))));
        assert_eq!(names(&shelf), [""; 0]);
    }

    #[test]
    fn the_code_tells_what_an_error_means() {
        let check = |code: u16, expected: Trouble| {
            let status = Status { code, message: "why".to_owned(), ..Status::default() }.boxed();
            assert_eq!(trouble(&watcher::Error::WatchError(status.clone())), expected);
            let error = kube::Error::Api(status);
            assert_eq!(trouble(&watcher::Error::InitialListFailed(error)), expected);
        };
        check(401, Trouble::Denied("why".into()));
        check(403, Trouble::Denied("why".into()));
        check(404, Trouble::Unknown("why".into()));
        check(410, Trouble::Outdated);
        check(429, Trouble::Unreachable("why".into()));
        check(503, Trouble::Unreachable("why".into()));
    }

    #[test]
    fn pauses_double_up_to_a_limit() {
        let check = |trouble: Trouble, attempts, expected_ms| {
            assert_eq!(pause(&trouble, attempts), Duration::from_millis(expected_ms));
        };
        let unreachable = || Trouble::Unreachable(String::new());
        let denied = || Trouble::Denied(String::new());
        check(Trouble::Outdated, 0, 100);
        check(unreachable(), 0, 100);
        check(unreachable(), 3, 800);
        check(unreachable(), 40, 5000);
        check(denied(), 0, 100);
        check(denied(), 1, 200);
        check(denied(), 40, 30_000);
    }
}
