//! `mmu-model judge FILE`: judges a trace of page-table events.
//!
//! Exit status 0: no rule was broken. 1: one was, and is printed. 2: the file
//! could not be read or is no trace.

use std::process::ExitCode;

const USAGE: &str = "\
usage: mmu-model judge FILE     judge a trace (- for standard input)
       mmu-model explain        list the rules, and what to do about each
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["judge", file] => judge(file),
        ["explain"] => {
            for kind in mmu_model::Kind::ALL {
                println!("{kind:?}\n  {}", kind.explain());
            }
            ExitCode::SUCCESS
        }
        _ => {
            eprint!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn judge(file: &str) -> ExitCode {
    let text = if file == "-" {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(file)
    };
    let text = match text {
        Ok(text) => text,
        Err(error) => {
            eprintln!("{file}: {error}");
            return ExitCode::from(2);
        }
    };
    match mmu_model::trace::judge(&text) {
        Err(error) => {
            eprintln!("{file}: {error}");
            ExitCode::from(2)
        }
        Ok(judged) => match judged.violation {
            None => {
                let s = judged.stats;
                println!(
                    "{file}: no rule broken ({} stores, {} to live tables, \
                     {} TLBIs, {} DSBs, {} ISBs)",
                    s.stores, s.live_stores, s.tlbis, s.dsbs, s.isbs
                );
                ExitCode::SUCCESS
            }
            Some((line, violation)) => {
                println!("{file}:{line}: {violation}");
                ExitCode::FAILURE
            }
        },
    }
}
