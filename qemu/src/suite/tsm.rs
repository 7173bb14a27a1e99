//! Tokens as an unmodified Linux gets them: from its own driver, through configfs
//! (Linux, Documentation/ABI/testing/configfs-tsm-report), verified outside.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use rustix::rand::{GetRandomFlags, getrandom};

use super::attestation::{Verifier, hex, measurement};
use super::boots::{LIMIT, ended_well, machine};
use super::{Case, Context, Counts, Outcome};
use crate::config::{Guest, Mode};
use crate::guests::catalogue;
use crate::guests::fetch::Cache;
use crate::guests::initrd::{self, Task};
use crate::newc::Archive;
use crate::run::capture::Capture;
use crate::run::ending::Ending;
use crate::size::Size;

const LINUX: &str = "debian-backports";

/// Its modules, in the order in which one needs the other.
const MODULES: [&str; 3] = ["configfs", "tsm_report", "arm-cca-guest"];

/// Answers each challenge that is typed, as `printf` takes it, with a token.
const SCRIPT: &str = r#"
stty -echo
for module in configfs tsm_report arm-cca-guest; do insmod /modules/$module.ko.xz; done
mount -t configfs configfs /sys/kernel/config
mkdir /sys/kernel/config/tsm/report/one
cd /sys/kernel/config/tsm/report/one || exit
echo "tokens of $(cat provider):"
while read -r challenge; do
    [ "$challenge" = end ] && poweroff -f
    printf "$challenge" >inblob
    echo "token $(hexdump -v -e '1/1 "%02x"' outblob), generation $(cat generation)."
done
"#;

/// A personalization value, and the zeros behind it.
const PERSONALIZATION: &str = "c0ffee";

/// Tokens of a boot, in the order in which they were asked for.
const TOKENS: usize = 2;

/// The case.
pub fn case() -> Case {
    Case::of_cargo("attestation/configfs-tsm", tokens)
        .beside()
        .boots(&[LINUX])
}

/// The same files give the same RIM whatever is asked, and another file gives another.
fn tokens(context: &Context) -> Result<Outcome> {
    let verifier = match Verifier::find(context)? {
        Ok(verifier) => verifier,
        Err(why) => return Ok(Outcome::skipped(why)),
    };
    // A kernel that stays in a cache may outlive its modules in the archive.
    let cache = Cache::of(&context.workspace);
    let modules = match cache.modules(catalogue::find(LINUX)?, &MODULES) {
        Ok(modules) => modules,
        Err(why) => return Ok(Outcome::skipped(format!("{why:#}"))),
    };
    let folder = tempfile::tempdir_in(&context.folder)?;
    let guest = Guest {
        initrd: Some(folder.path().join("initrd")),
        ..realm(context)?
    };
    let disk = initrd(&cache.busybox()?, &modules)?;
    fs::write(folder.path().join("initrd"), disk)?;
    let boot = |guest: &Guest| boot(context, &verifier, folder.path(), guest);
    let first = boot(&guest)?;
    ensure!(first.bytes().any(|digit| digit != b'0'), "the RIM is zero");
    let again = boot(&guest)?;
    ensure!(first == again, "the RIMs are {first} and {again}");
    let other = Guest {
        cmdline: guest.cmdline.as_ref().map(|text| format!("{text} x")),
        ..guest
    };
    ensure!(boot(&other)? != first, "another command line has {first}");
    Ok(Counts::ONE.into())
}

/// Boots this realm, has all of its tokens verified, and returns their RIM.
fn boot(context: &Context, verifier: &Verifier, folder: &Path, guest: &Guest) -> Result<String> {
    let mut machine = machine(context, folder, std::slice::from_ref(guest))?;
    machine.cpus = guest.vcpus;
    let mut capture = Capture::start(&machine, LIMIT, false)?;
    let mut tokens = Vec::new();
    let mut talk = |capture: &mut Capture| -> Result<Ending> {
        capture.until("guest:~# ")?;
        capture.type_in("sh /tokens\n")?;
        capture.until("tokens of arm_cca_guest:")?;
        for _ in 0..TOKENS {
            let mut challenge = [0; 64];
            getrandom(&mut challenge, GetRandomFlags::empty())?;
            let typed: String = challenge.map(|byte| format!("\\x{byte:02x}")).concat();
            capture.type_in(&format!("{typed}\n"))?;
            capture.until("generation ")?;
            tokens.push((hex(challenge), last_token(&capture.console)?));
            capture.until(".")?;
        }
        capture.type_in("end\n")?;
        capture.finish()
    };
    ended_well(talk(&mut capture), &capture)?;
    let measured = capture.log().iter().find_map(|line| measurement(line));
    let [instance, _, image] = measured.context("the log does not say what was measured")?;
    let file = folder.join("token");
    let mut rims = Vec::new();
    for (challenge, token) in tokens {
        fs::write(&file, token)?;
        let called = verifier
            .verify(
                &file,
                &[
                    ("--challenge", &*challenge),
                    ("--personalization", &format!("{PERSONALIZATION:0<128}")),
                    ("--hash", "sha-256"),
                    ("--image", &image),
                    ("--instance", &instance),
                ]
                .map(|(name, value)| [name, value])
                .concat(),
            )?
            .ended(0)?;
        let mut lines = called.stdout.lines();
        let rim = lines.find_map(|line| line.strip_prefix("realm initial measurement: "));
        rims.push(rim.context("the verifier shows no RIM")?.to_string());
    }
    let rim = rims.pop().context("no token was asked for")?;
    ensure!(rims.iter().all(|other| *other == rim), "{rims:?} and {rim}");
    Ok(rim)
}

/// The last token that a console has said.
fn last_token(console: &[u8]) -> Result<Vec<u8>> {
    let text = String::from_utf8_lossy(console);
    let (_, said) = text.rsplit_once("token ").context("it says no token")?;
    let (digits, _) = said.split_once(',').context("the token has no end")?;
    (0..digits.len())
        .step_by(2)
        .map(|at| {
            let byte = digits.get(at..at + 2).context("half a byte")?;
            u8::from_str_radix(byte, 16).with_context(|| format!("{byte} in a token"))
        })
        .collect()
}

/// The initial RAM disk: busybox with a shell, the modules, and the script.
fn initrd(busybox: &Path, modules: &[PathBuf]) -> Result<Vec<u8>> {
    let mut data = initrd::build(busybox, "guest", &Task::Shell)?;
    // Linux unpacks one archive behind the other.
    data.resize(data.len().next_multiple_of(4), 0);
    let mut archive = Archive::new();
    archive.folder("modules")?;
    for (name, file) in MODULES.iter().zip(modules) {
        archive.file(&format!("modules/{name}.ko.xz"), &fs::read(file)?)?;
    }
    archive.file("tokens", SCRIPT.as_bytes())?;
    data.extend(archive.finish()?);
    Ok(data)
}

/// A realm of two CPUs, so that the driver has a choice, without an initrd yet.
fn realm(context: &Context) -> Result<Guest> {
    Ok(Guest {
        cmdline: Some("console=ttyAMA0 quiet".into()),
        vcpus: 2,
        mode: Mode::Realm,
        personalization: Some(PERSONALIZATION.into()),
        console: Some(true),
        ..Guest::new(
            "guest",
            Cache::of(&context.workspace).kernel(catalogue::find(LINUX)?)?,
            Size::mib(256),
        )
    })
}
