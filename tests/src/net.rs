//! A small network of hosts that are network namespaces: a cluster behind a switch, and clients with a
//! cable each. Only root can make one. It is gone when dropped, with every process in it.
//!
//! Nothing of it is in the namespace of the machine: no address, no route, no rule.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::janitor::when_all_is_over;
use crate::process::{ANSWER, run_ok};

/// The address of the host that runs the cluster.
pub const CLUSTER: &str = "10.86.0.1";

/// The hosts.
#[derive(Debug)]
pub struct Net {
    cluster: String,
    clients: Vec<String>,
    hand: Mutex<Hand>,
}

/// A process that runs `ip` for one that has files open on a mount behind a cable. Such a one can't put the cable in
/// again itself: to start a program is to close files in it, and closing waits for the mount.
#[derive(Debug)]
struct Hand {
    child: Child,
    words: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Hand {
    fn new() -> Hand {
        let script = "while read -r words; do ip $words && echo done || echo failed; done";
        let mut shell = Command::new("sh");
        shell.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = shell.spawn().expect("a shell");
        let words = child.stdin.take().expect("it was asked for");
        let answers = BufReader::new(child.stdout.take().expect("it was asked for"));
        Hand { child, words, answers }
    }

    /// Has it run `ip` with these words.
    #[track_caller]
    fn ip(&mut self, words: &str) {
        writeln!(self.words, "{words}").expect("the shell reads");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("the shell answers");
        assert_eq!(answer, "done\n", "ip {words}");
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What went through a cable, seen from the client: bytes of Ethernet frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// From the client to the cluster.
    pub sent: u64,
    /// From the cluster to the client.
    pub received: u64,
}

impl Traffic {
    /// What came since.
    #[must_use]
    pub fn since(self, before: Traffic) -> Traffic {
        Traffic { sent: self.sent - before.sent, received: self.received - before.received }
    }
}

/// Runs `ip` with these words.
#[track_caller]
fn ip(words: &str) -> String {
    run_ok(Command::new("ip").args(words.split(' ')), ANSWER)
}

impl Net {
    /// Makes a host for the cluster and so many for clients.
    ///
    /// # Panics
    /// If this is not root, or `ip` is missing.
    #[must_use]
    #[track_caller]
    pub fn new(clients: usize) -> Net {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("mgv{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let net = Net {
            cluster: format!("{name}-cluster"),
            clients: (0..clients).map(|client| format!("{name}-client{client}")).collect(),
            hand: Mutex::new(Hand::new()),
        };
        for host in net.hosts() {
            when_all_is_over(&format!("ip netns pids {host} | xargs -r kill -9; ip netns del {host}"));
            ip(&format!("netns add {host}"));
            ip(&format!("-n {host} link set lo up"));
        }
        let cluster = &net.cluster;
        ip(&format!("-n {cluster} link add switch type bridge"));
        ip(&format!("-n {cluster} addr add {CLUSTER}/24 dev switch"));
        ip(&format!("-n {cluster} link set switch up"));
        for (index, client) in net.clients.iter().enumerate() {
            ip(&format!("-n {cluster} link add cable{index} type veth peer name eth0 netns {client}"));
            ip(&format!("-n {cluster} link set cable{index} master switch up"));
            ip(&format!("-n {client} addr add 10.86.0.{}/24 dev eth0", index + 2));
            ip(&format!("-n {client} link set eth0 up"));
        }
        net
    }

    fn hosts(&self) -> impl Iterator<Item = &String> {
        self.clients.iter().chain([&self.cluster])
    }

    /// The host that runs the cluster, for [`inside`].
    #[must_use]
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The host of a client, for [`inside`].
    #[must_use]
    pub fn client(&self, index: usize) -> &str {
        &self.clients[index]
    }

    /// Pulls a client's cable out at the switch.
    ///
    /// # Panics
    /// If `ip` fails.
    pub fn cut(&self, client: usize) {
        self.pull(client, "down");
    }

    /// Puts it in again.
    ///
    /// # Panics
    /// If `ip` fails.
    pub fn mend(&self, client: usize) {
        self.pull(client, "up");
    }

    #[track_caller]
    fn pull(&self, client: usize, which: &str) {
        let mut hand = self.hand.lock().unwrap_or_else(PoisonError::into_inner);
        hand.ip(&format!("-n {} link set cable{client} {which}", self.cluster));
    }

    /// What has gone through a client's cable so far.
    ///
    /// # Panics
    /// If its counters can't be read.
    #[must_use]
    pub fn traffic(&self, client: usize) -> Traffic {
        let mut cat = Command::new("cat");
        let table = run_ok(&mut inside(self.client(client), cat.arg("/proc/self/net/dev")), ANSWER);
        let line = table.lines().find_map(|line| line.trim_start().strip_prefix("eth0:"));
        let fields: Vec<u64> = line.expect("a cable").split_whitespace().flat_map(str::parse).collect();
        Traffic { received: fields[0], sent: fields[8] }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for host in self.hosts() {
            let script = format!("ip netns pids {host} | xargs -r kill -9; ip netns del {host}");
            let _ = Command::new("sh").args(["-c", &script]).status();
        }
    }
}

/// The same command on another host: only its network is another, files and mounts are what they are.
#[must_use]
pub fn inside(host: &str, command: &Command) -> Command {
    let mut outer = Command::new("nsenter");
    outer.arg(format!("--net=/run/netns/{host}")).arg("--").arg(command.get_program()).args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => outer.env(key, value),
            None => outer.env_remove(key),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        outer.current_dir(dir);
    }
    outer
}
