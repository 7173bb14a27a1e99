//! What a machine says goes to standard output and standard error through a
//! thread of its own, so that a reader that does not read holds up neither
//! `--timeout` nor a signal.
//!
//! What is under way is bounded: whoever reads from the machine takes room
//! first ([`Room::take`]) and gets it back when the bytes were written or
//! dropped. So a reader that is slow slows the guest down, as a terminal does.

use std::io::{self, Write};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use super::session::{Event, Sent};

/// Bytes that may be under way from the machine to whoever reads.
const ROOM: usize = 1 << 20;

/// Room for bytes under way.
#[derive(Debug, Default)]
pub struct Room {
    taken: Mutex<usize>,
    given: Condvar,
}

/// Room that somebody has; given back when dropped.
#[derive(Debug, Default)]
pub struct Taken(Option<(Arc<Room>, usize)>);

impl Room {
    /// Waits until there is room for `count` bytes, and takes it.
    pub fn take(self: &Arc<Self>, count: usize) -> Taken {
        // A number is whole whatever a thread that failed did.
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = self
            .given
            .wait_while(taken, |taken| *taken > 0 && *taken + count > ROOM)
            .unwrap_or_else(PoisonError::into_inner);
        *taken += count;
        Taken(Some((self.clone(), count)))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let Some((room, count)) = self.0.take() else {
            return;
        };
        *room.taken.lock().unwrap_or_else(PoisonError::into_inner) -= count;
        room.given.notify_all();
    }
}

/// Where bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// Standard output.
    Output,
    /// Standard error.
    Errors,
}

struct Piece {
    bytes: Vec<u8>,
    to: To,
    _taken: Taken,
}

/// The way out. It tells by events when standard output cannot be written any more,
/// and when all was written after [`Outlet::close`].
#[derive(Debug)]
pub struct Outlet {
    pieces: Option<Sender<Piece>>,
}

impl Outlet {
    /// Opens it; its events go to `events`.
    pub fn open(events: Sender<Sent>) -> Self {
        Self::onto(events, |to, bytes| match to {
            To::Output => {
                let mut out = io::stdout().lock();
                out.write_all(bytes).and_then(|()| out.flush())
            }
            To::Errors => io::stderr().lock().write_all(bytes),
        })
    }

    fn onto(
        events: Sender<Sent>,
        mut write: impl FnMut(To, &[u8]) -> io::Result<()> + Send + 'static,
    ) -> Self {
        let (pieces, from) = mpsc::channel::<Piece>();
        thread::spawn(move || {
            let mut deaf = false;
            for piece in from {
                let written = write(piece.to, &piece.bytes);
                // Without standard error there is nobody to tell, and nothing
                // less to do.
                if let (Err(why), To::Output, false) = (written, piece.to, deaf) {
                    deaf = true;
                    let gone = why.kind() == io::ErrorKind::BrokenPipe;
                    let why = (!gone).then(|| why.to_string());
                    // The session is gone: so is the one who would know.
                    let _ = events.send(Event::Deaf(why).into());
                }
            }
            // As above.
            let _ = events.send(Event::Drained.into());
        });
        Self {
            pieces: Some(pieces),
        }
    }

    /// Writes bytes when their turn comes; `taken` is the room that they take.
    pub fn write(&self, to: To, bytes: Vec<u8>, taken: Taken) {
        if bytes.is_empty() {
            return;
        }
        if let Some(pieces) = &self.pieces {
            // The thread is there until it is told that no more will come.
            let _ = pieces.send(Piece {
                bytes,
                to,
                _taken: taken,
            });
        }
    }

    /// No more will come: [`Event::Drained`] follows when all was written.
    pub fn close(&mut self) {
        self.pieces = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn a_reader_that_does_not_read_bounds_what_is_under_way() {
        const CHUNK: usize = 4096;
        let (events, seen) = mpsc::channel();
        let (read, reader) = mpsc::channel::<()>();
        let mut outlet = Outlet::onto(events, move |_, _| {
            // Reads when the test says so, and then without end.
            let _ = reader.recv();
            Ok(())
        });
        let room = Arc::new(Room::default());
        let under_way = Arc::new(AtomicUsize::new(0));
        let (chunks, machine) = mpsc::channel();
        let (sent, from) = (under_way.clone(), room.clone());
        let source = thread::spawn(move || {
            for _ in 0..2 * ROOM / CHUNK {
                let taken = from.take(CHUNK);
                sent.fetch_add(CHUNK, Ordering::SeqCst);
                chunks.send(taken).expect("somebody listens");
            }
        });
        for _ in 0..ROOM / CHUNK {
            let taken = machine.recv().expect("there is room");
            outlet.write(To::Output, vec![0; CHUNK], taken);
        }
        // All that fits is under way, and no more: nothing has been read.
        assert_eq!(under_way.load(Ordering::SeqCst), ROOM);
        assert!(machine.try_recv().is_err());
        drop(read);
        for _ in 0..ROOM / CHUNK {
            let taken = machine.recv().expect("there is room again");
            outlet.write(To::Output, vec![0; CHUNK], taken);
        }
        outlet.close();
        assert!(matches!(
            seen.recv().expect("an event").event,
            Event::Drained
        ));
        source.join().expect("it has sent all");
    }

    #[test]
    fn a_reader_that_has_gone_is_told_once() {
        let (events, seen) = mpsc::channel();
        let mut outlet = Outlet::onto(events, |to, _| match to {
            To::Output => Err(io::ErrorKind::BrokenPipe.into()),
            To::Errors => Ok(()),
        });
        for _ in 0..3 {
            outlet.write(To::Output, vec![1], Taken::default());
        }
        outlet.close();
        assert!(matches!(
            seen.recv().expect("an event").event,
            Event::Deaf(None)
        ));
        assert!(matches!(
            seen.recv().expect("an event").event,
            Event::Drained
        ));
        assert!(seen.recv().is_err(), "nothing more");
    }
}
