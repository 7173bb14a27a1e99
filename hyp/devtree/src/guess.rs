//! Where the console may be, in a tree that cannot be read: whoever gives up on
//! it says so there.

/// What a PL011's node is called.
const NAMES: [&[u8]; 3] = [b"pl011@", b"serial@", b"uart@"];

/// The address in the first path that leads to a UART (`stdout-path`, or an
/// alias), else in the first name of one. It is a guess: nothing but a last
/// word should be sent there.
pub fn guess_uart(data: &[u8]) -> Option<u64> {
    find(data, true).or_else(|| find(data, false))
}

fn find(data: &[u8], in_path: bool) -> Option<u64> {
    (0..data.len()).find_map(|at| {
        let name = NAMES.iter().find(|name| data[at..].starts_with(name))?;
        let begins = match at.checked_sub(1).map(|before| data[before]) {
            Some(b'/') => true,
            Some(0) => !in_path,
            _ => false,
        };
        begins.then(|| address(&data[at + name.len()..])).flatten()
    })
}

/// Hexadecimal digits, up to a NUL or a colon.
fn address(text: &[u8]) -> Option<u64> {
    let digits = text
        .iter()
        .take_while(|byte| byte.is_ascii_hexdigit())
        .count();
    if !matches!(text.get(digits), Some(0 | b':')) {
        return None;
    }
    let digits = core::str::from_utf8(text.get(..digits)?).ok()?;
    u64::from_str_radix(digits, 16).ok()
}
