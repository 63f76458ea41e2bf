//! Mount options as mount(8) and fstab have them: words and `name=value`, with commas between.

use std::path::PathBuf;

use anyhow::{Context as _, bail};

use crate::args::{Access, Using};

/// What this program does something about, for the message that refuses what it does not know.
const KNOWN: &str = "ro, rw, dev, nodev, suid, nosuid, exec, noexec, atime, noatime, allow_other, uid=N, gid=N, \
                     cache-size=SIZE, cache-dir=DIR, lost-dir=DIR, lost-size=SIZE, max-age=AGE, writeback=on|off, \
                     cluster=FILE, key=FILE; _netdev, nofail, defaults, auto, noauto, user, users and x-* are \
                     accepted and mean what mount(8) says";

/// Words that are mount(8)'s business, or what is the case anyway.
const ACCEPTED: &[&str] = &[
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "_netdev",
    "nofail",
    "async",
    "relatime",
    "norelatime",
    "nodiratime",
    "diratime",
    "loud",
    "silent",
];

/// What options ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Asked {
    read_only: bool,
    devices: bool,
    set_ids: bool,
    no_programs: bool,
    no_access_times: bool,
    allow_other: bool,
    uid: Option<u32>,
    gid: Option<u32>,
    cache_mib: Option<u64>,
    cache_dir: Option<PathBuf>,
    lost_dir: Option<PathBuf>,
    lost_mib: Option<u64>,
    max_age: Option<String>,
    ordered: Option<bool>,
    cluster: Option<PathBuf>,
    key: Option<PathBuf>,
}

/// Reads the lists after each `-o`; later options win.
pub(crate) fn parse(lists: &[String]) -> anyhow::Result<Asked> {
    let mut asked = Asked::default();
    for option in lists.iter().flat_map(|list| list.split(',')).filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some((name, value)) => asked.take_value(name, value)?,
            None => asked.take_word(option)?,
        }
    }
    Ok(asked)
}

/// Whether an option is one of those that [`parse`] takes.
pub(crate) fn is_known(option: &str) -> bool {
    parse(&[option.to_owned()]).is_ok()
}

impl Asked {
    fn take_word(&mut self, word: &str) -> anyhow::Result<()> {
        match word {
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "dev" => self.devices = true,
            "nodev" => self.devices = false,
            "suid" => self.set_ids = true,
            "nosuid" => self.set_ids = false,
            "exec" => self.no_programs = false,
            "noexec" => self.no_programs = true,
            "atime" => self.no_access_times = false,
            "noatime" => self.no_access_times = true,
            "allow_other" => self.allow_other = true,
            _ if word.starts_with("x-") || word.starts_with("X-") || ACCEPTED.contains(&word) => {}
            _ => bail!("the mount option {word:?} is not known; there are: {KNOWN}"),
        }
        Ok(())
    }

    fn take_value(&mut self, name: &str, value: &str) -> anyhow::Result<()> {
        let number = || value.parse().with_context(|| format!("{name}={value}: a number is needed"));
        let path = || std::path::absolute(value).with_context(|| format!("{name}={value}: a path is needed"));
        match name {
            "uid" => self.uid = Some(number()?),
            "gid" => self.gid = Some(number()?),
            "cache-size" => self.cache_mib = Some(mebibytes(name, value)?),
            "cache-dir" => self.cache_dir = Some(path()?),
            "lost-dir" => self.lost_dir = Some(path()?),
            "lost-size" => self.lost_mib = Some(mebibytes(name, value)?),
            "max-age" => self.max_age = Some(value.to_owned()),
            "cluster" => self.cluster = Some(path()?),
            "key" => self.key = Some(path()?),
            "writeback" => match value {
                "on" => self.ordered = Some(false),
                "off" => self.ordered = Some(true),
                _ => bail!("writeback={value}: say on or off"),
            },
            "user" | "comment" => {}
            _ if name.starts_with("x-") || name.starts_with("X-") => {}
            _ => bail!("the mount option {name:?} is not known; there are: {KNOWN}"),
        }
        Ok(())
    }

    /// Puts what is said here in the place of what the command line says elsewhere.
    pub(crate) fn settle(&self, access: &mut Access, using: &mut Using) -> anyhow::Result<()> {
        access.cluster = self.cluster.clone().or(access.cluster.take());
        access.key = self.key.clone().or(access.key.take());
        using.cache.cache_disk = self.cache_mib.unwrap_or(using.cache.cache_disk);
        using.cache.cache_dir = self.cache_dir.clone().or(using.cache.cache_dir.take());
        using.lost.lost_dir = self.lost_dir.clone().or(using.lost.lost_dir.take());
        using.lost.lost_size = self.lost_mib.unwrap_or(using.lost.lost_size);
        using.ordered = self.ordered.unwrap_or(using.ordered);
        if let Some(age) = &self.max_age {
            using.age.max_age = Some(crate::args::parse_age(age).map_err(|why| anyhow::anyhow!("max-age: {why}"))?);
        }
        Ok(())
    }

    /// What is for the kernel and the door.
    pub(crate) fn fuse(&self) -> fuse::MountOptions {
        fuse::MountOptions {
            allow_other: self.allow_other.then_some(true),
            read_only: self.read_only,
            devices: self.devices,
            set_ids: self.set_ids,
            programs: !self.no_programs,
            access_times: !self.no_access_times,
            shown_as: (self.uid, self.gid),
            ..fuse::MountOptions::default()
        }
    }

    /// What [`Asked::fuse`] needs, as a list.
    pub(crate) fn to_list(&self) -> String {
        let words = [
            (self.read_only, "ro"),
            (self.devices, "dev"),
            (self.set_ids, "suid"),
            (self.no_programs, "noexec"),
            (self.no_access_times, "noatime"),
            (self.allow_other, "allow_other"),
        ];
        let mut list: Vec<String> = words.iter().filter(|(set, _)| *set).map(|(_, word)| (*word).to_owned()).collect();
        list.extend(self.uid.map(|uid| format!("uid={uid}")));
        list.extend(self.gid.map(|gid| format!("gid={gid}")));
        list.join(",")
    }
}

/// A size with K, M, G or T after it, or bytes; at least what it says, in MiB.
fn mebibytes(name: &str, text: &str) -> anyhow::Result<u64> {
    let wrong = || format!("{name}={text}: say a number and K, M, G or T: 2G");
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.to_ascii_uppercase().as_str() {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => bail!(wrong()),
    };
    let number: u64 = number.parse().with_context(wrong)?;
    let bytes = number.checked_mul(1 << shift).with_context(wrong)?;
    Ok(bytes.div_ceil(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(list: &str) -> Asked {
        parse(&[list.to_owned()]).unwrap()
    }

    #[test]
    fn options_mean_what_mount_says() {
        let line = "rw,noexec,nosuid,nodev,user,_netdev,nofail,x-systemd.automount,noatime,uid=1000,gid=7,defaults";
        let options = asked(line).fuse();
        assert!(!options.programs && !options.set_ids && !options.devices && !options.access_times);
        assert_eq!((options.read_only, options.shown_as), (false, (Some(1000), Some(7))));
        assert_eq!(
            asked("ro,rw,exec,noexec,exec,dev,suid"),
            Asked { devices: true, set_ids: true, ..Asked::default() }
        );
        assert_eq!(asked(&asked(line).to_list()), asked("noexec,noatime,uid=1000,gid=7"), "passed on as they are");
    }

    #[test]
    fn where_losses_are_kept_can_be_said_either_way() {
        use clap::Parser as _;
        let line =
            ["mangrove", "mount", "--lost-dir", "/a", "--lost-size", "5", "-o", "lost-dir=/b,lost-size=1G", "/m"];
        let crate::args::Command::Mount(mut mount) = crate::args::Args::parse_from(line).command else { panic!() };
        assert_eq!((mount.using.lost.lost_dir.as_deref(), mount.using.lost.lost_size), (Some("/a".as_ref()), 5));
        let asked = parse(&mount.options).unwrap();
        let mut access = Access { cluster: None, key: None };
        asked.settle(&mut access, &mut mount.using).unwrap();
        assert_eq!((mount.using.lost.lost_dir.as_deref(), mount.using.lost.lost_size), (Some("/b".as_ref()), 1024));
    }

    #[test]
    fn what_is_not_known_is_refused_with_what_is() {
        for list in ["rwx", "allow_root", "cache=3", "writeback=maybe", "uid=me", "cache-size=2X", "cache-size=", "max"]
        {
            assert!(parse(&[list.to_owned()]).is_err(), "{list}");
        }
        let message = parse(&["ro,fast".to_owned()]).unwrap_err().to_string();
        assert!(
            message.contains("\"fast\"") && message.contains("noatime") && message.contains("_netdev"),
            "{message}"
        );
    }

    #[test]
    fn sizes_are_rounded_up() {
        assert_eq!(mebibytes("cache-size", "2G").unwrap(), 2048);
        assert_eq!(mebibytes("cache-size", "1").unwrap(), 1);
        assert_eq!(mebibytes("cache-size", "512m").unwrap(), 512);
        assert!(mebibytes("cache-size", "99999999999T").is_err());
    }
}
