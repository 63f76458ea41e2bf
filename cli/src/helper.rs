//! `mount.mangrove`: this program under the name by which mount(8) calls it.
//!
//! `mount.mangrove SOURCE MOUNTPOINT [-sfnv] [-o OPTIONS]`. The source is a volume, a cluster's view
//! (`/etc/mangrove/cluster.toml`), or both (`/etc/mangrove/cluster.toml:photos`).

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context as _, bail};

use crate::options;

/// The name of this program as a helper.
const NAME: &str = "mount.mangrove";

/// The same as a line for `mangrove`, if that is how this was called.
pub(crate) fn translated(line: impl Iterator<Item = OsString>) -> anyhow::Result<Option<Vec<OsString>>> {
    let mut line = line;
    let called = line.next().unwrap_or_default();
    if Path::new(&called).file_name().is_none_or(|name| name != NAME) {
        return Ok(None);
    }
    let (mut what, mut lists, mut sloppy, mut fake, mut verbose) = (Vec::new(), Vec::new(), false, false, 0);
    while let Some(word) = line.next() {
        let text = word.to_str().context("arguments are plain text")?.to_owned();
        let Some(flags) = text.strip_prefix('-').filter(|flags| !flags.is_empty()) else {
            what.push(text);
            continue;
        };
        for (at, flag) in flags.char_indices() {
            let attached = &flags[at + 1..];
            match flag {
                's' => sloppy = true,
                'f' => fake = true,
                'v' => verbose += 1,
                'r' => lists.push("ro".to_owned()),
                'n' | 'w' => {}
                'o' | 't' | 'N' => {
                    let mut next = || line.next().and_then(|next| next.into_string().ok());
                    let value = if attached.is_empty() { next() } else { Some(attached.to_owned()) };
                    let value = value.with_context(|| format!("-{flag} needs a value"))?;
                    if flag == 'o' {
                        lists.push(value);
                    }
                    break;
                }
                _ => bail!("-{flag} is not known; usage: {NAME} SOURCE MOUNTPOINT [-sfnv] [-o OPTIONS]"),
            }
        }
    }
    let [source, mountpoint] = what.as_slice() else {
        bail!("usage: {NAME} SOURCE MOUNTPOINT [-sfnv] [-o OPTIONS]");
    };
    let mut list: Vec<&str> = lists.iter().flat_map(|list| list.split(',')).collect();
    if sloppy {
        list.retain(|option| options::is_known(option));
    }
    let mut list = list.join(",");
    let (cluster, volume) = parts(source);
    if let Some(cluster) = cluster {
        list.push_str(&format!(",cluster={cluster}"));
    }
    options::parse(std::slice::from_ref(&list))?;
    if fake {
        // All that can be checked without mounting was.
        std::process::exit(0);
    }
    let mut words = vec!["mangrove".to_owned()];
    words.extend((0..verbose).map(|_| "-v".to_owned()));
    words.extend(["mount", "--background", "-o", &list, volume, mountpoint].map(str::to_owned));
    Ok(Some(words.into_iter().map(OsString::from).collect()))
}

/// The cluster's view, if it is named, and the volume.
fn parts(source: &str) -> (Option<&str>, &str) {
    let default = client::connect::DEFAULT_VOLUME;
    match source.rsplit_once(':') {
        Some((cluster, volume)) if !volume.contains('/') => {
            (Some(cluster), if volume.is_empty() { default } else { volume })
        }
        _ if source.contains('/') => (Some(source), default),
        _ => (None, source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(words: &str) -> anyhow::Result<Option<Vec<String>>> {
        let words = words.split_ascii_whitespace().map(OsString::from);
        let text = |words: Vec<OsString>| words.into_iter().map(|word| word.into_string().unwrap()).collect();
        Ok(translated(words)?.map(text))
    }

    #[test]
    fn mounts_helper_line_becomes_ours() {
        assert_eq!(line("mangrove mount /x").unwrap(), None);
        let words = line("/sbin/mount.mangrove /etc/mangrove/cluster.toml:photos /mnt -n -v -o rw,_netdev").unwrap();
        let want = "mangrove -v mount --background -o rw,_netdev,cluster=/etc/mangrove/cluster.toml photos /mnt";
        assert_eq!(words.unwrap().join(" "), want);
        let words = line("mount.mangrove main /mnt -sro fast,noexec").unwrap().unwrap();
        assert_eq!(words.join(" "), "mangrove mount --background -o ro,noexec main /mnt", "-s forgives");
        assert!(line("mount.mangrove main /mnt -o fast").is_err());
        assert!(line("mount.mangrove main").is_err());
        assert!(line("mount.mangrove main /mnt -o").is_err());
        assert_eq!(parts("/a/cluster.toml"), (Some("/a/cluster.toml"), "main"));
    }
}
