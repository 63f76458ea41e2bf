//! A C package of Debian's, unpacked, configured and built on a mount.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, ensure};

use super::{Place, shell};
use crate::steps::Steps;

/// Fetches a source package with a list of sources of its own, so that nothing of the system's changes.
const FETCH: &str = r#"
. /etc/os-release
echo "deb-src http://deb.debian.org/debian $VERSION_CODENAME main" > sources.list
mkdir -p lists/partial
apt="-q -q -o Dir::Etc::SourceList=$PWD/sources.list -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Lists=$PWD/lists"
apt-get $apt update
apt-get $apt source --download-only "$PACKAGE"
rm -rf lists
"#;

/// No debugging information: it would name the folder. Objects hold no times.
const BUILD: &str = "FORCE_UNSAFE_CONFIGURE=1 CFLAGS=-O1 ./configure --quiet --disable-nls > configure.log 2>&1\n\
                     make -j4 > make.log 2>&1 || { tail -n 30 make.log; exit 1; }\n\
                     touch built; make >> make.log 2>&1; test -z \"$(find . -name '*.o' -newer built)\"";

pub(super) fn run(steps: &mut Steps, place: &Place, package: &str) {
    let outside = place.cluster.outside().join("build");
    let mut archive = None;
    steps.run(&format!("{package}: the source is fetched"), || {
        fs::create_dir(&outside)?;
        shell(&outside, &format!("PACKAGE='{package}'; {FETCH}"));
        let found =
            shell(&outside, "ls -S *.orig.tar.*").lines().find(|name| !name.ends_with(".asc")).map(str::to_owned);
        let name = found.context("an original archive")?;
        archive = Some(outside.join(&name));
        Ok(name)
    });
    let Some(archive) = archive else { return };
    let mut plain = None;
    steps.run(&format!("{package}: built in a plain folder"), || {
        plain = Some(build(&outside.join("plain"), &archive)?);
        Ok(String::new())
    });
    steps.run(&format!("{package}: unpack, configure, make -j4, make again has nothing to do"), || {
        let plain = plain.as_ref().context("there is nothing to compare with")?;
        let built = build(&place.mnt().join("build"), &archive)?;
        let (want, found) = (objects(plain), objects(&built));
        ensure!(!want.is_empty() && want == found, "the objects differ from those built in a plain folder");
        Ok(format!("{} objects, the same as in a plain folder", want.lines().count()))
    });
}

/// Builds in a new folder; gives the folder with the result.
fn build(dir: &Path, archive: &Path) -> anyhow::Result<PathBuf> {
    fs::create_dir(dir)?;
    let mut times = Vec::new();
    let source = dir.join("source");
    let unpack = format!("mkdir source && tar xf '{}' --strip-components=1 -C source", archive.display());
    for (place, what) in [(dir, unpack.as_str()), (&source, BUILD)] {
        let start = Instant::now();
        shell(place, what);
        times.push(format!("{:.1} s", start.elapsed().as_secs_f64()));
    }
    println!("    unpack {}, configure and make {}", times[0], times[1]);
    Ok(source)
}

/// What was compiled, each file with its sum.
fn objects(dir: &Path) -> String {
    shell(dir, "find . -name '*.o' -print0 | sort -z | xargs -0 -r sha256sum")
}
