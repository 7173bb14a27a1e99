//! An assembler: the one in the compiler that builds the images.

use std::fs;
use std::process::Command;
use std::string::String;
use std::vec::Vec;
use std::{assert, assert_eq, format};

/// The target that the images are built for; the toolchain has it.
const TARGET: &str = "aarch64-unknown-none-softfloat";

/// The words of these instructions of an architecture, one a line.
pub fn assemble(arch: &str, lines: &[String]) -> Vec<u32> {
    let folder = std::env::temp_dir().join(format!(
        "assembler-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    fs::create_dir_all(&folder).expect("a folder for the object");
    let (source, object) = (folder.join("all.rs"), folder.join("all.o"));
    let mut text = format!("#![no_std]\ncore::arch::global_asm!(\".arch {arch}\",\n");
    for line in lines {
        let line = line.replace('{', "{{").replace('}', "}}");
        text += &format!("\"{line}\",\n");
    }
    text += ");\n";
    fs::write(&source, text).expect("the source is written");
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let output = Command::new(rustc)
        .args([
            "--target",
            TARGET,
            "--crate-type",
            "lib",
            "--emit",
            "obj",
            "-o",
        ])
        .args([&object, &source])
        .output()
        .expect("rustc runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}", &said[..said.len().min(4000)]);
    let bytes = fs::read(&object).expect("the object was written");
    fs::remove_dir_all(&folder).expect("the folder is ours");
    let file = elf::ElfBytes::<elf::endian::LittleEndian>::minimal_parse(&bytes).expect("ELF");
    let section = file.section_header_by_name(".text").expect("sections");
    let (code, _) = file
        .section_data(&section.expect("code"))
        .expect("its bytes");
    let words: Vec<u32> = code
        .chunks_exact(4)
        .map(|word| u32::from_le_bytes(word.try_into().expect("four bytes")))
        .collect();
    assert_eq!(words.len(), lines.len(), "a word a line");
    words
}
