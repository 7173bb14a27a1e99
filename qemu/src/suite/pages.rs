//! Where the host, EL2 and a guest count memory in pages of different sizes.

use std::fs;

use anyhow::Result;

use super::call::Call;
use super::{Case, Context};
use crate::build;

/// A guest, the machine's options, and the settings beside its kernel.
struct Boot {
    name: &'static str,
    options: &'static [&'static str],
    settings: &'static str,
}

const BOOTS: [Boot; 2] = [
    // The host has 64K pages there, EL2 4K: RAM ends within one of the former, and the
    // guest wants all of it.
    Boot {
        name: "pages/of-the-host-larger-than-of-el2",
        options: &[
            "--cpu",
            "max,pauth-impdef=on,lpa2=off",
            "--granule",
            "4k",
            "--ram",
            "438200K",
        ],
        settings: "memory = \"400M\"\npopulate = \"eager\"\n",
    },
    // Its root is of level 3: no entry above that maps a block, though memory is aligned.
    Boot {
        name: "pages/of-a-walk-of-one-level",
        options: &["--granule", "64k", "--ram", "3G"],
        settings: "memory = \"512M\"\nipa_bits = 32\nstart_level = 3\npopulate = \"eager\"\n",
    },
];

/// The cases.
pub fn cases() -> Vec<Case> {
    BOOTS
        .iter()
        .map(|boot| Case::new(boot.name, move |context| boots(context, boot)))
        .collect()
}

fn boots(context: &Context, boot: &Boot) -> Result<()> {
    let kernel = build::program(&context.workspace, "hello")?;
    let folder = tempfile::tempdir_in(&context.folder)?;
    let file = folder.path().join("guests.toml");
    let text = format!(
        "[[guest]]\nname = \"guest\"\nkernel = {:?}\n{}",
        kernel, boot.settings
    );
    fs::write(&file, text)?;
    Call::run(context)?
        .args(["--guests".as_ref(), file.as_os_str()])
        .args(boot.options)
        .call()?
        .ended(0)?
        .shows(&["goodbye"])?;
    Ok(())
}
