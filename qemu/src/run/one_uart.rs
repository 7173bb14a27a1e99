//! Tells the log from the console where both are on one UART: a line of the
//! log is one that looks like one.

use super::ending;

/// The longest line that can be one of the log.
const LONGEST: usize = 1024;

/// What came over a UART.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Bytes of the guest's console.
    Console(Vec<u8>),
    /// A line of the log, without its end.
    Log(String),
}

/// Splits a UART's bytes.
#[derive(Debug, Default)]
pub struct Splitter {
    line: Vec<u8>,
    /// The line under way is not one of the log: it passes as it comes.
    passing: bool,
}

impl Splitter {
    /// Takes bytes and returns what is certain.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Part> {
        let mut parts = Vec::new();
        for byte in bytes {
            self.line.push(*byte);
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
        }
        self.passing = false;
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
            let mut splitter = Splitter::default();
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
}
