//! Runs a program for each event: no shell, an empty environment, the event on its standard input, and an end after a while.

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::{Counts, Work};
use crate::privileges;

/// Programs that run at once, those that earlier configurations began among them.
const AT_ONCE: usize = 4;
/// Each of them takes no longer than this.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often is looked whether a program has ended.
const LOOK: Duration = Duration::from_millis(20);

pub(super) fn start(command: &[String], work: Work) -> io::Result<()> {
    let command: Arc<[String]> = command.into();
    let work = Arc::new(work);
    for n in 0..AT_ONCE {
        let (command, work) = (Arc::clone(&command), Arc::clone(&work));
        let body = move || {
            // The program has no more than the thread that starts it, since there are no new privileges.
            privileges::give_up_all();
            serve(&command, &work);
        };
        thread::Builder::new().name(format!("alert-command-{n}")).spawn(body)?;
    }
    Ok(())
}

/// One of several threads that wait for events in turn.
fn serve(command: &[String], work: &Work) {
    while let Some(body) = work.next() {
        let Some(_place) = Place::wait_for(work) else {
            work.counts.dropped.fetch_add(1, Relaxed);
            continue;
        };
        let result = run(command, &body, PATIENCE);
        work.counts.count(result.is_ok());
        if let Err(why) = result {
            let program = command.first().map_or("", String::as_str);
            tracing::warn!(program, "the command for an event failed: {}", crate::observe::one_line(&why));
        }
    }
}

/// One of the places of programs that run at once.
struct Place<'a>(&'a Counts);

impl<'a> Place<'a> {
    /// The next one that is free; `None` once nobody waits for the program any more.
    fn wait_for(work: &'a Work) -> Option<Self> {
        let one_more = |taken| (taken < AT_ONCE).then_some(taken + 1);
        loop {
            if work.is_over() {
                return None;
            }
            if work.counts.running.fetch_update(Relaxed, Relaxed, one_more).is_ok() {
                return Some(Self(&work.counts));
            }
            // Only programs of an earlier configuration are waited for, which end soon.
            thread::sleep(LOOK);
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Relaxed);
    }
}

/// Runs the program and waits for its end; says why if it did not do what it should.
fn run(command: &[String], body: &str, patience: Duration) -> Result<(), String> {
    let Some((program, arguments)) = command.split_first() else { return Ok(()) };
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // So that what it starts ends with it.
        .process_group(0)
        .spawn()
        .map_err(|e| format!("it cannot be started: {e}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // An event is shorter than a pipe holds, so nobody waits here. A program may not care for it.
        let _ = stdin.write_all(body.as_bytes()).and_then(|()| stdin.write_all(b"\n"));
    }
    let end = wait(&mut child, patience);
    match end {
        Ok(Some(status)) if status.success() => Ok(()),
        Ok(Some(status)) => Err(format!("it ended with {status}")),
        Ok(None) => Err(format!("it was ended after {} s", patience.as_secs())),
        Err(e) => Err(format!("its end could not be waited for: {e}")),
    }
}

/// Its end; `None` if it had to be ended.
fn wait(child: &mut Child, patience: Duration) -> io::Result<Option<std::process::ExitStatus>> {
    let until = Instant::now() + patience;
    while Instant::now() < until {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        thread::sleep(LOOK);
    }
    if let Ok(group) = i32::try_from(child.id()) {
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    child.wait().map(|_| None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Vec<String> {
        ["/bin/sh", "-c", script].map(str::to_owned).to_vec()
    }

    #[test]
    fn the_program_gets_the_event_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("told");
        // `$1` is an argument, not text of a shell; the environment is what the shell itself sets.
        let mut command = sh(
            "cat >\"$1\"; /usr/bin/env | /usr/bin/cut -d= -f1 | /usr/bin/sort | /usr/bin/tr '\\n' ' ' >>\"$1\"",
        );
        command.extend(["sh".to_owned(), path.to_string_lossy().into_owned()]);
        run(&command, "{\"event\":\"x\"}", PATIENCE).unwrap();
        let told = std::fs::read_to_string(&path).unwrap();
        let (event, environment) = told.split_once('\n').unwrap();
        assert_eq!(event, "{\"event\":\"x\"}");
        for word in environment.split_whitespace() {
            assert!(["PWD", "OLDPWD", "SHLVL", "_"].contains(&word), "{word} of our environment got there");
        }
    }

    #[test]
    fn a_program_that_fails_or_hangs_is_told_of() {
        assert!(run(&sh("exit 3"), "", PATIENCE).unwrap_err().contains("exit status: 3"));
        assert!(
            run(&["/nonexistent/program".to_owned()], "", PATIENCE)
                .unwrap_err()
                .contains("cannot be started")
        );
        let began = Instant::now();
        let why = run(&sh("sleep 60 & wait"), "", Duration::from_millis(200)).unwrap_err();
        assert!(why.contains("was ended") && began.elapsed() < Duration::from_secs(30), "{why}");
    }
}
