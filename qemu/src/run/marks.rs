//! Finds a command's output between the marks that the guest's session
//! (`guests/session.sh`) puts on the console around it.

/// The console of a guest that runs one command.
///
/// Bytes pass unchanged and as soon as it is certain that they are output:
/// what could yet become a mark is held back.
#[derive(Debug)]
pub struct Scanner {
    begin: Vec<u8>,
    end: Vec<u8>,
    state: State,
    held: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Before,
    Within,
    Status,
    Done(u8),
    /// The mark that begins output came again: the guest has started anew.
    Again,
}

/// A status is a number of three digits; what goes on for longer is none.
const LONGEST_STATUS: usize = 8;

impl Scanner {
    /// Awaits output between lines that begin with `mark`.
    pub fn new(mark: &str) -> Self {
        Self {
            begin: format!("{mark} begin\n").into_bytes(),
            end: format!("{mark} end ").into_bytes(),
            state: State::Before,
            held: Vec::new(),
        }
    }

    /// Takes bytes of the console and returns those that are output.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.held.extend(bytes);
        let mut output = Vec::new();
        loop {
            match self.state {
                State::Before => match find(&self.held, &self.begin) {
                    Some(at) => {
                        self.held.drain(..at + self.begin.len());
                        self.state = State::Within;
                    }
                    None => {
                        let keep = possible(&self.held, &self.begin);
                        self.held.drain(..self.held.len() - keep);
                        return output;
                    }
                },
                State::Within => match (find(&self.held, &self.end), find(&self.held, &self.begin))
                {
                    (Some(at), again) if again.is_none_or(|again| at < again) => {
                        output.extend(&self.held[..at]);
                        self.held.drain(..at + self.end.len());
                        self.state = State::Status;
                    }
                    (_, Some(again)) => {
                        output.extend(&self.held[..again]);
                        self.state = State::Again;
                    }
                    (_, None) => {
                        let keep =
                            possible(&self.held, &self.end).max(possible(&self.held, &self.begin));
                        let sure = self.held.len() - keep;
                        output.extend(self.held.drain(..sure));
                        return output;
                    }
                },
                State::Status => {
                    let end = self.held.iter().position(|b| *b == b'\n');
                    let at = match end {
                        Some(at) => at,
                        None if self.held.len() > LONGEST_STATUS => self.held.len(),
                        None => return output,
                    };
                    let text = String::from_utf8_lossy(&self.held[..at]).into_owned();
                    // A status that cannot be read is a failure, never success.
                    self.state = State::Done(text.trim().parse().unwrap_or(u8::MAX));
                    self.held.clear();
                }
                State::Done(_) | State::Again => {
                    self.held.clear();
                    return output;
                }
            }
        }
    }

    /// Whether the command has begun.
    pub fn begun(&self) -> bool {
        self.state != State::Before
    }

    /// Whether the guest began anew before the command had ended.
    pub fn began_again(&self) -> bool {
        self.state == State::Again
    }

    /// The command's exit status, once it is known.
    pub fn status(&self) -> Option<u8> {
        match self.state {
            State::Done(status) => Some(status),
            _ => None,
        }
    }

    /// What is held back when no more will come.
    pub fn rest(&mut self) -> Vec<u8> {
        match self.state {
            State::Within => std::mem::take(&mut self.held),
            _ => Vec::new(),
        }
    }
}

fn find(text: &[u8], needle: &[u8]) -> Option<usize> {
    text.windows(needle.len())
        .position(|window| window == needle)
}

/// How many bytes at the end of `text` could be the beginning of `needle`.
fn possible(text: &[u8], needle: &[u8]) -> usize {
    (1..needle.len())
        .rev()
        .find(|len| text.ends_with(&needle[..*len]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &[u8] =
        b"booting\r\nM be\nM begin\nline\r\n\x00M enM end x\n\xffno newlineM end 7\nlater";

    #[test]
    fn output_is_exact_however_it_arrives() {
        // `M end x` inside is a mark as far as the scanner can tell, which is
        // why marks are not guessable; here the output avoids it.
        let console = CONSOLE.to_vec();
        let console = String::from_utf8_lossy(&console).replace("M end x", "M e_d x");
        let console = console.as_bytes();
        for chunk in 1..console.len() {
            let mut scanner = Scanner::new("M");
            let mut output = Vec::new();
            for part in console.chunks(chunk) {
                output.extend(scanner.feed(part));
            }
            let text = String::from_utf8_lossy(&output).into_owned();
            assert_eq!(
                text, "line\r\n\0M enM e_d x\n\u{fffd}no newline",
                "chunks of {chunk}"
            );
            assert_eq!(scanner.status(), Some(7));
        }
    }

    #[test]
    fn an_end_that_never_comes_loses_nothing() {
        let mut scanner = Scanner::new("M");
        assert_eq!(scanner.feed(b"boot\n"), b"");
        assert!(!scanner.begun());
        assert_eq!(scanner.feed(b"M begin\nabcM e"), b"abc");
        assert_eq!(scanner.rest(), b"M e");
        assert_eq!(scanner.status(), None);
    }

    #[test]
    fn a_guest_that_begins_anew_is_told_and_its_mark_is_no_output() {
        let console = b"M begin\nabc\nreboot: x\nM begin\nabc\nM end 0\n";
        for chunk in 1..console.len() {
            let mut scanner = Scanner::new("M");
            let mut output = Vec::new();
            for part in console.chunks(chunk) {
                output.extend(scanner.feed(part));
            }
            output.extend(scanner.rest());
            assert_eq!(output, b"abc\nreboot: x\n", "chunks of {chunk}");
            assert!(scanner.began_again());
            assert_eq!(scanner.status(), None);
        }
    }

    #[test]
    fn a_status_without_an_end_is_not_waited_for() {
        let mut scanner = Scanner::new("M");
        scanner.feed(&[b"M begin\nM end ".as_slice(), &[b'7'; 5000]].concat());
        assert_eq!(scanner.status(), Some(255));
    }

    #[test]
    fn a_status_that_cannot_be_read_is_no_success() {
        let mut scanner = Scanner::new("M");
        scanner.feed(b"M begin\nM end ?\n");
        assert_eq!(scanner.status(), Some(255));
    }
}
