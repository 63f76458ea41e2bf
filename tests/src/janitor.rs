//! What must be put away when this program ends, however it ends: also by Ctrl-C or `kill -9`, when no
//! destructor runs.

use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Collects lines until the program that writes them is gone, or is interrupted and this with it; then
/// carries them out, the last one first. A program whose threads wait for a mount is dead long before its
/// pipe is closed, so its state is looked at, too.
const SCRIPT: &str = r#"
lines=""
clean() { trap "" INT TERM HUP; kill $watch; printf '%s' "$lines" | sh; exit; }
trap clean INT TERM HUP
parent=$PPID
while state=$(cut -d" " -f3 /proc/$parent/stat) && [ "$state" != Z ]; do sleep 2; done && kill -TERM $$ &
watch=$!
while IFS= read -r line; do lines="$line
$lines"; done
clean
"#;

/// Has this line carried out by a shell when the program has ended. It must do no harm if what it removes
/// is gone already.
///
/// # Panics
/// If there is no shell.
pub fn when_all_is_over(line: &str) {
    static JANITOR: OnceLock<Mutex<Child>> = OnceLock::new();
    let janitor = JANITOR.get_or_init(|| {
        let mut shell = Command::new("sh");
        shell.args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Mutex::new(shell.spawn().expect("a shell"))
    });
    let mut janitor = janitor.lock().unwrap_or_else(PoisonError::into_inner);
    let pipe = janitor.stdin.as_mut().expect("its input was asked for");
    writeln!(pipe, "{line}").expect("the janitor listens");
}
