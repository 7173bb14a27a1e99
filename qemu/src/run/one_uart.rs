//! Tells the log from the console where both are on one UART: a line of the
//! log is one that looks like one.

use std::collections::VecDeque;

use rmi::end::Token;

use super::ending;

/// The longest line that can be one of the log.
const LONGEST: usize = 1024;

/// Bytes at the end of a line of the console in which the image's last word is
/// looked for: a guest may have left something before it.
const TAIL: usize = 128;

/// What came over a UART.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Bytes of the guest's console.
    Console(Vec<u8>),
    /// A line of the log, without its end.
    Log(String),
}

/// Splits a UART's bytes.
#[derive(Debug)]
pub struct Splitter {
    token: Option<Token>,
    line: Vec<u8>,
    /// What the line that passes ends with so far.
    tail: VecDeque<u8>,
    /// The line under way is not one of the log: it passes as it comes.
    passing: bool,
    /// Lines of the log are not looked for, only the end.
    apart: bool,
}

impl Splitter {
    /// A splitter that knows the image's last word by this token.
    pub fn new(token: Option<Token>) -> Self {
        Self {
            token,
            line: Vec::new(),
            tail: VecDeque::new(),
            passing: false,
            apart: false,
        }
    }

    /// For a console beside the log. Where the log's UART does not answer, the
    /// image tells its end here.
    pub fn apart(token: Option<Token>) -> Self {
        Self {
            apart: true,
            passing: true,
            ..Self::new(token)
        }
    }

    /// Takes bytes and returns what is certain.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Part> {
        let mut parts = Vec::new();
        for byte in bytes {
            self.line.push(*byte);
            self.tail.push_back(*byte);
            if self.tail.len() > TAIL {
                self.tail.pop_front();
            }
            if *byte == b'\n' {
                self.end_line(&mut parts);
            } else if !self.passing && (self.line[0] != b'[' || self.line.len() > LONGEST) {
                self.passing = true;
            }
        }
        if self.passing {
            self.pass(&mut parts);
        }
        parts
    }

    /// What is left when no more will come.
    pub fn rest(&mut self) -> Vec<Part> {
        let mut parts = Vec::new();
        self.end_line(&mut parts);
        parts
    }

    fn end_line(&mut self, parts: &mut Vec<Part>) {
        let text = String::from_utf8_lossy(&self.line);
        if !self.passing && ending::message(&text).is_some() {
            parts.push(Part::Log(text.trim_end().to_string()));
            self.line.clear();
        } else {
            self.pass(parts);
            // The same bytes again, as a line: whoever reads the console has
            // them, and whoever waits for the end must.
            let tail: Vec<u8> = self.tail.iter().copied().collect();
            let tail = String::from_utf8_lossy(&tail);
            if self.token.is_some() && ending::said(&tail, self.token).is_some() {
                let at = tail.rfind("end: ").unwrap_or(0);
                parts.push(Part::Log(tail[at..].trim_end().to_string()));
            }
        }
        self.passing = self.apart;
        self.tail.clear();
    }

    fn pass(&mut self, parts: &mut Vec<Part>) {
        if self.line.is_empty() {
            return;
        }
        match parts.last_mut() {
            Some(Part::Console(bytes)) => bytes.append(&mut self.line),
            _ => parts.push(Part::Console(std::mem::take(&mut self.line))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_told_apart_however_they_arrive() {
        let uart = b"[    0.1] Linux\n[   0.500000] hyp  INFO  one\r\n$ [x\n[   1.000000] host WARN  two\nrest";
        for chunk in 1..uart.len() {
            let mut splitter = Splitter::new(None);
            let mut parts: Vec<Part> = uart
                .chunks(chunk)
                .flat_map(|part| splitter.feed(part))
                .collect();
            parts.extend(splitter.rest());
            let (mut console, mut log) = (Vec::new(), Vec::new());
            for part in parts {
                match part {
                    Part::Console(bytes) => console.extend(bytes),
                    Part::Log(line) => log.push(line),
                }
            }
            assert_eq!(
                String::from_utf8_lossy(&console),
                "[    0.1] Linux\n$ [x\nrest"
            );
            assert_eq!(
                log,
                [
                    "[   0.500000] hyp  INFO  one",
                    "[   1.000000] host WARN  two"
                ]
            );
        }
    }

    #[test]
    fn a_console_beside_the_log_passes_but_for_the_end() {
        let token = Token::of_bits(5);
        let uart = format!(
            "[   1.000000] hyp  INFO  x\n*** y\nend: {} panic\r\nz",
            token.as_str()
        );
        let mut splitter = Splitter::apart(Some(token));
        let mut parts = splitter.feed(uart.as_bytes());
        parts.extend(splitter.rest());
        let console: Vec<u8> = parts
            .iter()
            .flat_map(|part| match part {
                Part::Console(bytes) => bytes.clone(),
                Part::Log(line) => {
                    assert!(ending::said(line, Some(token)).is_some());
                    Vec::new()
                }
            })
            .collect();
        assert_eq!(String::from_utf8_lossy(&console), uart);
        assert_eq!(parts.len(), 3);
    }

    #[test]
    fn the_end_is_found_behind_a_line_that_a_guest_has_not_ended() {
        let token = Token::of_bits(0xabc);
        let end = format!("end: {} status 0", token.as_str());
        let report = format!("end: {} panic", token.as_str());
        for (before, word) in [
            ("$ ".to_string(), &end),
            ("[ ".to_string(), &end),
            ("x".repeat(5000), &end),
            ("\u{fffd}\n[    0.1] Linux".to_string(), &end),
            (String::new(), &report),
        ] {
            for chunk in [1, 7, 10_000] {
                let uart = format!("{before}[   2.000000] host INFO  {word}\r\n");
                let mut splitter = Splitter::new(Some(token));
                let mut parts: Vec<Part> = uart
                    .as_bytes()
                    .chunks(chunk)
                    .flat_map(|part| splitter.feed(part))
                    .collect();
                parts.extend(splitter.rest());
                let said = parts.iter().filter_map(|part| match part {
                    Part::Log(line) => ending::said(line, Some(token)),
                    Part::Console(_) => None,
                });
                assert_eq!(said.count(), 1, "{before:.20}");
            }
        }
    }
}
