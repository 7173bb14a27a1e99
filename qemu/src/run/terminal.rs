//! The user's terminal as the guest's console: every key goes to the guest, the
//! settings are put back at the end.

use std::io::{self, Read, Write};
use std::process::ChildStdin;

use rustix::termios::{
    ControlModes, InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Termios,
    tcgetattr, tcsetattr,
};

/// The terminal's settings as they were.
pub struct Terminal(Option<Termios>);

impl Terminal {
    /// Hands every key on, as a terminal on a serial line does.
    pub fn raw() -> Self {
        let Ok(before) = tcgetattr(rustix::stdio::stdin()) else {
            return Self(None);
        };
        let mut raw = before.clone();
        raw.input_modes -= InputModes::IGNBRK
            | InputModes::BRKINT
            | InputModes::PARMRK
            | InputModes::ISTRIP
            | InputModes::INLCR
            | InputModes::IGNCR
            | InputModes::ICRNL
            | InputModes::IXON;
        // Lines of ours still end where a line begins.
        raw.output_modes |= OutputModes::OPOST;
        raw.local_modes -= LocalModes::ECHO
            | LocalModes::ECHONL
            | LocalModes::ICANON
            | LocalModes::IEXTEN
            | LocalModes::ISIG;
        raw.control_modes -= ControlModes::CSIZE | ControlModes::PARENB;
        raw.control_modes |= ControlModes::CS8;
        raw.special_codes[SpecialCodeIndex::VMIN] = 1;
        raw.special_codes[SpecialCodeIndex::VTIME] = 0;
        match tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw) {
            Ok(()) => Self(Some(before)),
            Err(_) => Self(None),
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // Where it fails there is no terminal any more.
            let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, before);
        }
    }
}

/// Sends standard input to the guest's console until either is gone.
pub fn forward(mut to: ChildStdin) {
    let mut from = io::stdin().lock();
    let mut buffer = [0; 4096];
    loop {
        match from.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => break,
            Ok(count) => {
                if to
                    .write_all(&buffer[..count])
                    .and_then(|()| to.flush())
                    .is_err()
                {
                    break;
                }
            }
        }
    }
    // QEMU goes on without an input; the console stays as it is.
    std::mem::forget(to);
}
