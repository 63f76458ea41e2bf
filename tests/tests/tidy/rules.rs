//! The rules about text: from a source to complaints that say what to do.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::Source;

const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 500;
const COLUMNS_MAX: usize = 120;

/// What a core may not name, and what to do instead.
const IMPURE: &[(&str, &str)] = &[
    ("Instant", "take base::Time as an argument"),
    ("SystemTime", "take base::Time as an argument"),
    ("std::fs", "emit an effect and let the driver do it"),
    ("std::net", "emit an effect and let the driver do it"),
    ("std::thread", "a core is one state machine; let the driver have threads"),
    ("std::env", "take it as a parameter"),
    ("std::process", "emit an event and let the driver do it"),
    ("tokio", "emit an effect and let the driver do it"),
    ("HashMap", "use BTreeMap: iteration must be the same everywhere"),
    ("HashSet", "use BTreeSet: iteration must be the same everywhere"),
    ("rand", "take chance as an argument"),
    ("getrandom", "take chance as an argument"),
    ("println!", "emit an event"),
    ("eprintln!", "emit an event"),
    ("unsafe", "write it safely"),
];

/// A core's unit-test-free code that names a clock, chance, a disk or a thread.
pub(crate) fn impure(source: &Source) -> Vec<String> {
    let imports = source.imports();
    let mut complaints = Vec::new();
    for (name, instead) in IMPURE {
        let named = source.find(name);
        let imported = imports.iter().filter(|(_, path)| path == name || path.starts_with(&format!("{name}::")));
        let places: BTreeSet<usize> = named.into_iter().chain(imported.map(|(at, _)| *at)).collect();
        for at in places.into_iter().filter(|at| !source.is_in_tests(*at)) {
            complaints.push(format!("{}: a core must not use {name}; {instead}", source.place(at)));
        }
    }
    complaints
}

/// Work left undone, or a test or warning switched off.
pub(crate) fn undone(source: &Source) -> Vec<String> {
    let banned = [
        ("todo!", "do it"),
        ("unimplemented!", "implement it"),
        ("dbg!", "take it out"),
        ("#[ignore", "make the test pass or take it out"),
        ("#[allow(dead_code)]", "take the dead code out"),
        ("#![allow(dead_code)]", "take the dead code out"),
        ("#[expect(dead_code", "take the dead code out"),
    ];
    let complain = |(words, instead): (&str, &str)| {
        let places = source.find(words).into_iter();
        places.map(|at| format!("{}: {words}: {instead}", source.place(at))).collect::<Vec<_>>()
    };
    banned.into_iter().flat_map(complain).collect()
}

/// A signature checked elsewhere than in the one file that knows how.
pub(crate) fn own_verification(source: &Source, place: &str) -> Vec<String> {
    if source.path == place {
        return Vec::new();
    }
    let mut banned = vec!["verify_batch"];
    if !source.find("ed25519_dalek").is_empty() {
        banned.extend([".verify(", ".verify_strict(", ".verify_prehashed("]);
    }
    let complain = |words: &str| {
        let places = source.find(words).into_iter();
        let say = |at| format!("{}: {words}: check signatures through base::Verifier only ({place})", source.place(at));
        places.map(say).collect::<Vec<_>>()
    };
    banned.into_iter().flat_map(complain).collect()
}

/// A test that sleeps.
pub(crate) fn sleeping_tests(source: &Source, sleeper: &str) -> Vec<String> {
    if source.path == sleeper {
        return Vec::new();
    }
    let all = source.is_test_file() || source.path.starts_with("tests/");
    let places = source.find("sleep(").into_iter().filter(|at| all || source.is_in_tests(*at));
    places.map(|at| format!("{}: a test must not sleep; use tests::wait_until", source.place(at))).collect()
}

/// A file that does not say what it is for.
pub(crate) fn undocumented(source: &Source) -> Vec<String> {
    let says = source.text.starts_with("//! ");
    if says { Vec::new() } else { vec![format!("{}:1: start with `//!` and say what this is for", source.path)] }
}

/// Lines too long to read.
pub(crate) fn wide_lines(source: &Source) -> Vec<String> {
    let wide = source.text.lines().enumerate().filter(|(_, line)| line.chars().count() > COLUMNS_MAX);
    wide.map(|(index, _)| format!("{}:{}: over {COLUMNS_MAX} columns; break the line", source.path, index + 1))
        .collect()
}

/// Absolute paths that exist on one machine only.
pub(crate) fn machine_paths(source: &Source) -> Vec<String> {
    // Written in two parts, so that the rule does not find itself.
    let banned = [concat!("/wo", "rk/"), concat!("/ro", "ot/")];
    let mut complaints = Vec::new();
    for path in banned {
        for (at, _) in source.text.match_indices(path) {
            let relative = source.text[..at].ends_with(|c: char| c.is_alphanumeric() || "._-}".contains(c));
            if !relative {
                complaints.push(format!("{}: {path} exists on one machine; use a relative path", source.place(at)));
            }
        }
    }
    complaints
}

/// Folders at the root that the table does not explain, rows without a folder, and crates
/// elsewhere than at the root that `nested` does not name.
pub(crate) fn unknown_folders(
    files: &[String],
    members: &[&str],
    table: &[(&str, &str)],
    nested: &[(&str, &str)],
) -> Vec<String> {
    let folders: BTreeSet<&str> = files.iter().filter_map(|file| Some(file.split_once('/')?.0)).collect();
    let known: BTreeSet<&str> = table.iter().map(|(folder, _)| *folder).collect();
    let table_name = "ROOT_FOLDERS in tests/tests/tidy/main.rs";
    let members = members.iter().filter(|member| !nested.iter().any(|(folder, _)| folder == *member));
    let unknown = folders.iter().chain(members).filter(|folder| !known.contains(**folder));
    let unknown: BTreeSet<_> = unknown.map(|folder| format!("{folder}/: say what it is in {table_name}")).collect();
    let gone = known.difference(&folders).map(|folder| format!("{folder}/: is gone; take it out of {table_name}"));
    let silent = table.iter().filter(|(_, meaning)| meaning.is_empty());
    let silent = silent.map(|(folder, _)| format!("{folder}/: its row in {table_name} says nothing"));
    unknown.into_iter().chain(gone).chain(silent).collect()
}

/// What is over a limit: files by path, functions by `path::function`, in lines.
pub(crate) fn sizes(sources: &[Source]) -> BTreeMap<String, usize> {
    let mut over = BTreeMap::new();
    for source in sources.iter().filter(|source| !source.is_test_file()) {
        let lines = source.lines_without_tests();
        if lines > FILE_LINES_MAX {
            over.insert(source.path.clone(), lines);
        }
        for function in source.functions() {
            let lines = source.line(function.range.end) - source.line(function.range.start) + 1;
            if lines > FUNCTION_LINES_MAX {
                let longest = over.entry(format!("{}::{}", source.path, function.name)).or_default();
                *longest = lines.max(*longest);
            }
        }
    }
    over
}

/// Compares what is over a limit with the table of exceptions, which may only shrink.
pub(crate) fn ratchet(over: &BTreeMap<String, usize>, table: &[(&str, usize)]) -> Vec<String> {
    let allowed: BTreeMap<&str, usize> = table.iter().copied().collect();
    let mut complaints = Vec::new();
    for (what, lines) in over {
        let limit = if what.contains("::") { FUNCTION_LINES_MAX } else { FILE_LINES_MAX };
        match allowed.get(what.as_str()) {
            None => complaints.push(format!("{what}: {lines} lines, {limit} allowed; split it")),
            Some(was) if lines > was => {
                complaints.push(format!("{what}: {lines} lines, grown from {was}; it may only shrink: split it"));
            }
            Some(was) if lines < was => {
                complaints.push(format!("{what}: shrunk from {was} to {lines} lines; lower its row in OVERSIZED"));
            }
            Some(_) => {}
        }
    }
    let needless = allowed.keys().filter(|what| !over.contains_key(**what));
    complaints.extend(needless.map(|what| format!("{what}: within the limit now; take its row out of OVERSIZED")));
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    fn core(code: &str) -> Source {
        Source::new("bft/src/made_up.rs", code)
    }

    #[test]
    fn an_impure_core_is_seen_however_it_imports() {
        for offence in [
            "use std::time::Instant;",
            "use std::{collections::BTreeMap, fs};",
            "use std::{fs::File, io};",
            "fn f() { std::thread::spawn(g); }",
            "let map: HashMap<u8, u8> = HashMap::new();",
            "use rand::Rng;",
            "println!(\"hello\");",
            "unsafe { g() }",
        ] {
            assert!(!impure(&core(offence)).is_empty(), "not seen: {offence}");
        }
        for innocent in [
            "// Instant, HashMap",
            "let brand = \"std::fs\"; operand(InstantNoodles);",
            "use std::time::Duration;",
            "#[cfg(test)]\nmod tests {\n    use std::fs;\n}",
        ] {
            assert_eq!(impure(&core(innocent)), Vec::<String>::new());
        }
    }

    #[test]
    fn undone_work_is_seen() {
        for offence in ["fn f() { todo!() }", "unimplemented!(\"x\")", "dbg!(x)", "#[ignore]", "#[ignore = \"slow\"]"] {
            assert_eq!(undone(&core(offence)).len(), 1, "{offence}");
        }
        assert_eq!(undone(&core("#[allow(dead_code)]\nfn f() {}")).len(), 1);
        assert_eq!(undone(&core("// todo!\nlet ignored = true; my_todo!();")), Vec::<String>::new());
    }

    #[test]
    fn a_private_verdict_is_seen() {
        let offence = "use ed25519_dalek::Verifier;\nfn f() { key.verify(message, &signature).is_ok() }";
        assert_eq!(own_verification(&core(offence), "base/src/verdict.rs").len(), 1);
        assert_eq!(own_verification(&core("verify_batch(a, b, c)"), "base/src/verdict.rs").len(), 1);
        assert_eq!(own_verification(&core("verifier.verify(key, bytes, &s)"), "base/src/verdict.rs").len(), 0);
    }

    #[test]
    fn a_sleeping_test_is_seen() {
        let nap = "//! x\nfn f() { std::thread::sleep(d); }\n";
        assert_eq!(sleeping_tests(&Source::new("bft/tests/paper.rs", nap), "tests/src/wait.rs").len(), 1);
        assert_eq!(sleeping_tests(&Source::new("tests/src/mount.rs", nap), "tests/src/wait.rs").len(), 1);
        assert_eq!(sleeping_tests(&Source::new("tests/src/wait.rs", nap), "tests/src/wait.rs").len(), 0);
        assert_eq!(sleeping_tests(&Source::new("server/src/a.rs", nap), "tests/src/wait.rs").len(), 0);
        let unit = "#[cfg(test)]\nmod tests {\n    async fn f() { sleep(d).await }\n}\n";
        assert_eq!(sleeping_tests(&Source::new("server/src/a.rs", unit), "tests/src/wait.rs").len(), 1);
    }

    #[test]
    fn a_file_without_docs_or_with_wide_lines_is_seen() {
        assert_eq!(undocumented(&core("use a;\n")).len(), 1);
        assert_eq!(undocumented(&core("//! For tests.\n")).len(), 0);
        assert_eq!(wide_lines(&core(&format!("{}\n{}", "ü".repeat(120), "x".repeat(121)))).len(), 1);
    }

    #[test]
    fn a_machine_path_is_seen() {
        let offence = concat!("see /wo", "rk/here and `/ro", "ot/.cargo`");
        assert_eq!(machine_paths(&Source::new("README.md", offence)).len(), 2);
        let relative = concat!("meta/ro", "ot/x, {dir}/ro", "ot/x, homework/x");
        assert_eq!(machine_paths(&Source::new("README.md", relative)).len(), 0);
    }

    #[test]
    fn an_unknown_folder_is_seen() {
        let files = ["README.md", "base/Cargo.toml", "stuff/x"].map(str::to_owned);
        let complaints = unknown_folders(&files, &["base"], &[("base", "words"), ("gone", "was here")], &[]);
        assert!(complaints.len() == 2 && complaints[0].starts_with("stuff/"), "{complaints:?}");
        assert_eq!(unknown_folders(&files[..2], &["base", "new"], &[("base", "words")], &[]).len(), 1);
        assert_eq!(unknown_folders(&files[..2], &["base", "a/new"], &[("base", "words")], &[]).len(), 1);
        assert_eq!(
            unknown_folders(&files[..2], &["base", "a/new"], &[("base", "words")], &[("a/new", "why")]).len(),
            0
        );
    }

    #[test]
    fn a_grown_room_is_seen_and_so_is_a_needless_exception() {
        let long = format!("//! x\nfn long() {{\n{}}}\n{}", "    f();\n".repeat(70), "// y\n".repeat(450));
        let over = sizes(&[core(&long)]);
        let (file, function) = ("bft/src/made_up.rs", "bft/src/made_up.rs::long");
        assert_eq!(over, BTreeMap::from([(file.to_owned(), 523), (function.to_owned(), 72)]));
        assert_eq!(ratchet(&over, &[]).len(), 2);
        assert_eq!(ratchet(&over, &[(file, 523), (function, 72)]), Vec::<String>::new());
        assert!(ratchet(&over, &[(file, 522), (function, 72)])[0].contains("may only shrink"));
        assert!(ratchet(&over, &[(file, 524), (function, 72)])[0].contains("lower its row"));
        assert!(ratchet(&BTreeMap::new(), &[(file, 523)])[0].contains("take its row out"));
        assert_eq!(sizes(&[Source::new("bft/tests/paper.rs", &long)]), BTreeMap::new());
    }
}
