//! Links of the kernel behind blocking calls, and the connection that [`crate::route`] shares.
//!
//! The `rtnetlink` crate is asynchronous. It runs here on a thread of its own, in the network namespace of the thread
//! that opened the connection; each call hands that thread a piece of work and waits. When the crate's connection dies,
//! a request without an answer looks like success, so whoever changes something reads it back.

use std::future::Future;
use std::pin::Pin;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::{Handle, LinkUnspec};

/// No answer of the kernel takes as long as this.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why the kernel's links, routes or rules could not be read or changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("cannot {operation}: {detail}")]
pub struct RtnlError {
    /// What was tried, as in "add route".
    pub operation: String,
    /// The errno, positive, if the kernel answered with one.
    pub errno: Option<i32>,
    /// The kernel's or the crate's words.
    pub detail: String,
}

impl RtnlError {
    pub(crate) fn refused(operation: &str, error: &crate::NetlinkError) -> Self {
        Self {
            operation: operation.to_owned(),
            errno: error.errno().map(|errno| errno as i32),
            detail: error.to_string(),
        }
    }

    pub(crate) fn new(operation: &str, detail: impl ToString) -> Self {
        Self { operation: operation.to_owned(), errno: None, detail: detail.to_string() }
    }

    pub(crate) fn of(operation: &str, error: rtnetlink::Error) -> Self {
        let rtnetlink::Error::NetlinkError(message) = error else { return Self::new(operation, error) };
        let errno = message.code.map(|code| code.get().saturating_neg());
        let detail =
            errno.map_or_else(|| message.to_string(), |e| nix::errno::Errno::from_raw(e).to_string());
        Self { operation: operation.to_owned(), errno, detail }
    }
}

type Work = Box<dyn FnOnce(Handle) -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// A connection to the kernel's routing tables. Its thread ends when it is dropped.
pub struct Rtnl {
    work: Option<mpsc::Sender<Work>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// A link as far as it matters here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its MTU in octets.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
}

impl Rtnl {
    /// Connects, in the network namespace of the calling thread.
    pub fn open() -> Result<Self, RtnlError> {
        let (work, todo) = mpsc::channel::<Work>();
        let (ready, started) = mpsc::sync_channel(1);
        let thread = thread::Builder::new()
            .name("rtnetlink".to_owned())
            .spawn(move || serve(&todo, &ready))
            .map_err(|e| RtnlError::new("start the rtnetlink thread", e))?;
        let died = |_| Err(RtnlError::new("connect to rtnetlink", "the thread ended"));
        started.recv().unwrap_or_else(died)?;
        Ok(Self { work: Some(work), thread: Some(thread) })
    }

    /// Runs `work` on the connection's thread and waits for its result.
    pub(crate) fn run<T, F, W>(&self, operation: &str, work: W) -> Result<T, RtnlError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, RtnlError>> + 'static,
        W: FnOnce(Handle) -> F + Send + 'static,
    {
        let (answer, result) = mpsc::sync_channel(1);
        let name = operation.to_owned();
        let boxed: Work = Box::new(move |handle| {
            let work = work(handle);
            Box::pin(async move {
                let in_time = tokio::time::timeout(TIMEOUT, work).await;
                let late = |_| Err(RtnlError::new(&name, "the kernel does not answer"));
                // Nobody listens only if the caller's thread is gone.
                let _ = answer.send(in_time.unwrap_or_else(late));
            })
        });
        let dead = || RtnlError::new(operation, "the rtnetlink thread ended");
        self.work.as_ref().ok_or_else(dead)?.send(boxed).map_err(|_| dead())?;
        result.recv().map_err(|_| dead())?
    }

    /// The link of a name; `None` if there is none.
    pub fn link(&self, name: &str) -> Result<Option<Link>, RtnlError> {
        let name = name.to_owned();
        self.run("look up a link", move |handle| async move { find(&handle, &name).await })
    }

    /// Sets a link's MTU and takes it up; returns the link as it is then.
    pub fn set_up(&self, name: &str, mtu: u32) -> Result<Link, RtnlError> {
        let name = name.to_owned();
        let operation = format!("take up link {name}");
        let title = operation.clone();
        self.run(&operation, move |handle| async move {
            let gone = || RtnlError::new(&title, "there is no such link");
            let link = find(&handle, &name).await?.ok_or_else(gone)?;
            let message = LinkUnspec::new_with_index(link.index).mtu(mtu).up().build();
            handle.link().set(message).execute().await.map_err(|e| RtnlError::of(&title, e))?;
            let now = find(&handle, &name).await?.ok_or_else(gone)?;
            if now.up && now.mtu == mtu {
                Ok(now)
            } else {
                Err(RtnlError::new(&title, format!("it is still {now:?}")))
            }
        })
    }
}

impl Drop for Rtnl {
    fn drop(&mut self) {
        drop(self.work.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported by the runtime already.
            let _ = thread.join();
        }
    }
}

async fn find(handle: &Handle, name: &str) -> Result<Option<Link>, RtnlError> {
    const NO_SUCH_DEVICE: i32 = nix::errno::Errno::ENODEV as i32;
    let mut links = std::pin::pin!(handle.link().get().match_name(name.to_owned()).execute());
    match links.try_next().await.map_err(|e| RtnlError::of("look up a link", e)) {
        Ok(message) => Ok(message.map(|m| summary(&m))),
        Err(RtnlError { errno: Some(NO_SUCH_DEVICE), .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn summary(message: &LinkMessage) -> Link {
    let mtu = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    Link {
        index: message.header.index,
        mtu: mtu.unwrap_or_default(),
        up: message.header.flags.contains(LinkFlags::Up),
    }
}

/// The thread's body: work comes in, one piece at a time. Between two pieces the connection is not polled, which is
/// fine, because it subscribes to nothing.
fn serve(todo: &mpsc::Receiver<Work>, ready: &mpsc::SyncSender<Result<(), RtnlError>>) {
    let fail = |e: &dyn ToString| {
        let _ = ready.send(Err(RtnlError::new("connect to rtnetlink", e.to_string())));
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return fail(&e),
    };
    let _inside = runtime.enter();
    let handle = match rtnetlink::new_connection() {
        Ok((connection, handle, _)) => {
            runtime.spawn(connection);
            handle
        }
        Err(e) => return fail(&e),
    };
    let _ = ready.send(Ok(()));
    while let Ok(work) = todo.recv() {
        runtime.block_on(work(handle.clone()));
    }
}
