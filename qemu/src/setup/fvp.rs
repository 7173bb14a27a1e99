//! Arm's model and the firmware for it: found, or told where they are to be had.
//! Neither can be fetched without its user: the model has a licence to agree to, and
//! the firmware is built for this machine.

use std::env;
use std::path::{self, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::machine::fvp::{BL1, FIP, PROGRAM, parts};
use crate::workspace::{in_path, path_from};

/// Names the words that start the model, for instance in a container.
const MODEL: &str = "UNDERCROFT_FVP";

/// Names the folder of the firmware.
const FIRMWARE: &str = "UNDERCROFT_FVP_FIRMWARE";

/// The words that start the model, wherever it is.
///
/// # Errors
/// Words that no shell could read.
pub fn words() -> Result<Vec<String>> {
    match env::var(MODEL) {
        Ok(said) => split(&said),
        Err(env::VarError::NotPresent) => split(""),
        Err(error) => bail!("{MODEL}: {error}"),
    }
}

fn split(said: &str) -> Result<Vec<String>> {
    if said.trim().is_empty() {
        return Ok(vec![PROGRAM.into()]);
    }
    let words = shlex::split(said)
        .with_context(|| format!("{MODEL}: a quote in it does not end: {said}"))?;
    ensure!(
        words
            .first()
            .is_some_and(|program| !program.trim().is_empty()),
        "{MODEL} names no program: {said}"
    );
    Ok(words)
}

/// Whether these words start something.
///
/// # Errors
/// When there is no such program; the message says where one is to be had.
pub fn check(words: &[String]) -> Result<()> {
    let program = words.first().map_or("", String::as_str);
    let there = match program.contains('/') {
        true => Path::new(program).is_file(),
        false => in_path(program).is_some(),
    };
    ensure!(
        there,
        "{program} is not there, which --machine fvp starts: put Arm's {PROGRAM} into \
         PATH, or the words that start it in a container into {MODEL} (README.md, \
         \"Arm's FVP\"); --dry-run does without"
    );
    Ok(())
}

/// The folder of the firmware: `named`, or what the environment has.
///
/// # Errors
/// A folder without it.
pub fn firmware(named: Option<&Path>) -> Result<Option<PathBuf>> {
    let (from, folder) = match named {
        Some(folder) => ("--firmware", Some(path::absolute(folder)?)),
        None => (FIRMWARE, path_from(FIRMWARE)?),
    };
    if let Some(folder) = &folder {
        for file in [BL1, FIP] {
            let file = folder.join(file);
            if !file.is_file() {
                bail!("{from}: there is no file {}", file.display());
            }
        }
    }
    Ok(folder)
}

/// What is said where there is no firmware.
pub fn no_firmware() -> String {
    format!(
        "a model has no firmware of its own: build TF-A's {BL1} and {FIP} for \
         PRELOADED_BL33_BASE={:#x} (README.md, \"Arm's FVP\"), and name their folder by \
         --firmware or {FIRMWARE}",
        parts::IMAGE
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_may_be_in_a_container() {
        assert_eq!(split(" ").expect("none"), [PROGRAM]);
        let words = split("docker run --rm -v '/a b:/a b' image FVP").expect("words");
        assert_eq!(words[3..5], ["-v", "/a b:/a b"]);
        assert!(split("docker 'run").is_err());
        let error = check(&["no such model".into()]).expect_err("it is not there");
        let text = error.to_string();
        assert!(
            text.contains(PROGRAM) && text.contains("--dry-run"),
            "{text}"
        );
        check(&["sh".into()]).expect("everybody has one");
    }

    #[test]
    fn a_folder_has_the_whole_firmware() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join(BL1), "").expect("writes");
        let error = firmware(Some(folder.path())).expect_err("half of it");
        let text = error.to_string();
        assert!(text.contains("--firmware") && text.contains(FIP), "{text}");
        std::fs::write(folder.path().join(FIP), "").expect("writes");
        let found = firmware(Some(folder.path())).expect("all of it");
        assert_eq!(found.as_deref(), Some(folder.path()));
    }
}
