//! The system's PAM modules are asked whether a password is a user's: [`Pam`].
//!
//! Modules block, for seconds after a wrong password, and not all of them bear to be called from two threads at
//! once. So there is one thread for them, as in PgBouncer, and no worker ever waits.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::thread;

use nonstick::conv::Exchange;
use nonstick::items::ItemsMut;
use nonstick::{AuthnFlags, Conversation, ErrorCode, PamShared, Transaction, TransactionBuilder};
use tokio::sync::{mpsc, oneshot};

use crate::auth::Password;

/// The service's name, and so of its file in `/etc/pam.d`. PgBouncer's.
const SERVICE: &str = "pgbouncer";

/// Logins that may wait for the thread: PgBouncer's limit. Whoever comes then waits for a place, no longer than
/// `client_login_timeout`.
const QUEUE_MAX: usize = 100;

/// The way to the thread.
#[derive(Debug)]
pub(super) struct Pam(mpsc::Sender<Request>);

#[derive(Debug)]
struct Request {
    user: String,
    password: Password,
    remote_host: Option<String>,
    answer: oneshot::Sender<Result<(), ErrorCode>>,
}

/// Why somebody was not let in.
#[derive(Debug, thiserror::Error)]
pub(super) enum PamError {
    /// A module's word.
    #[error("PAM: {0}")]
    Refused(ErrorCode),
    /// It has ended.
    #[error("PAM: the thread for it is gone")]
    NoThread,
}

impl Pam {
    /// Starts the thread.
    pub(super) fn start() -> io::Result<Pam> {
        let (sender, mut requests) = mpsc::channel(QUEUE_MAX);
        let work = move || {
            while let Some(request) = requests.blocking_recv() {
                serve(request);
            }
        };
        thread::Builder::new().name("pam".into()).spawn(work)?;
        Ok(Pam(sender))
    }

    /// Asks whether the password is the user's and whether the account may be used now.
    pub(super) async fn check(
        &self,
        user: &str,
        password: Password,
        remote_host: Option<String>,
    ) -> Result<(), PamError> {
        let (answer, answered) = oneshot::channel();
        let request = Request { user: user.to_owned(), password, remote_host, answer };
        self.0.send(request).await.map_err(|_| PamError::NoThread)?;
        answered.await.map_err(|_| PamError::NoThread)?.map_err(PamError::Refused)
    }
}

fn serve(request: Request) {
    // Whoever has gone need not be asked about.
    if request.answer.is_closed() {
        return;
    }
    let outcome = ask(&request);
    // It may have gone meanwhile.
    let _ = request.answer.send(outcome);
}

fn ask(request: &Request) -> Result<(), ErrorCode> {
    let answers = Answers(OsString::from_vec(request.password.as_bytes().to_vec()));
    let builder = TransactionBuilder::new_with_service(SERVICE).username(&request.user);
    let mut transaction = builder.build(answers)?;
    if let Some(host) = &request.remote_host {
        transaction.items_mut().set_remote_host(Some(OsStr::from_bytes(host.as_bytes())))?;
    }
    transaction.authenticate(AuthnFlags::SILENT)?;
    transaction.account_management(AuthnFlags::SILENT)
}

/// Every question is taken for the one about the password; what modules have to say goes nowhere.
struct Answers(OsString);

impl Conversation for Answers {
    fn communicate(&self, messages: &[Exchange<'_>]) {
        for message in messages {
            match message {
                Exchange::Prompt(question) => question.set_answer(Ok(self.0.clone())),
                Exchange::MaskedPrompt(question) => question.set_answer(Ok(self.0.clone())),
                Exchange::Info(text) => text.set_answer(Ok(())),
                Exchange::Error(text) => {
                    tracing::warn!("PAM: {}", text.question().to_string_lossy());
                    text.set_answer(Ok(()));
                }
                other => other.set_error(ErrorCode::ConversationError),
            }
        }
    }
}
