//! Sources as the rules see them: the text, the code without comments and strings, and where the
//! functions and the unit tests are.
//!
//! A heuristic reader, not a parser: it knows comments, strings, characters and braces.

use std::ops::Range;
use std::path::PathBuf;
use std::process::Command;

/// One text file of the project.
#[derive(Debug)]
pub(crate) struct Source {
    /// The path from the root of the project.
    pub(crate) path: String,
    /// What is in it.
    pub(crate) text: String,
    /// The same, byte for byte as long, with comments and the insides of strings blanked.
    pub(crate) code: String,
    /// The byte ranges of `#[cfg(test)]` modules.
    tests: Vec<Range<usize>>,
}

/// A function: its name and where it is, from `fn` to its closing brace.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) range: Range<usize>,
}

/// The root of the project.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests crate is in the workspace").to_owned()
}

/// The project's files: tracked, or new and not ignored.
pub(crate) fn tracked_files() -> Vec<String> {
    let mut git = Command::new("git");
    git.current_dir(root()).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let output = git.output().expect("git is installed; if not: apt-get install -y git");
    assert!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).expect("our file names are UTF-8");
    let names = names.split('\0').filter(|name| !name.is_empty() && root().join(name).is_file());
    names.map(str::to_owned).collect()
}

impl Source {
    /// A file with this text; a Rust file if its name says so.
    pub(crate) fn new(path: &str, text: &str) -> Source {
        let code = if path.ends_with(".rs") { strip(text) } else { text.to_owned() };
        let tests = test_modules(&code);
        Source { path: path.to_owned(), text: text.to_owned(), code, tests }
    }

    /// Every Rust file.
    pub(crate) fn all_rust() -> Vec<Source> {
        let mut sources = Source::all_text();
        sources.retain(|source| source.path.ends_with(".rs"));
        assert!(sources.len() > 20, "found only {} Rust files", sources.len());
        sources
    }

    /// Every text file.
    pub(crate) fn all_text() -> Vec<Source> {
        let read = |path: &String| Some(Source::new(path, &std::fs::read_to_string(root().join(path)).ok()?));
        tracked_files().iter().filter_map(read).collect()
    }

    /// Whether the whole file is a test: below a crate's `tests` folder.
    pub(crate) fn is_test_file(&self) -> bool {
        self.path.split('/').nth(1) == Some("tests")
    }

    /// Whether the file is a source of one of these crates.
    pub(crate) fn is_in_core(&self, cores: &[&str]) -> bool {
        let mut parts = self.path.split('/');
        parts.next().is_some_and(|folder| cores.contains(&folder)) && parts.next() == Some("src")
    }

    /// Whether this place is in a unit test module.
    pub(crate) fn is_in_tests(&self, at: usize) -> bool {
        self.tests.iter().any(|range| range.contains(&at))
    }

    /// How many lines are not in unit test modules.
    pub(crate) fn lines_without_tests(&self) -> usize {
        let in_tests: usize = self.tests.iter().map(|range| self.text[range.clone()].matches('\n').count() + 1).sum();
        self.text.lines().count() - in_tests
    }

    /// The line number of a place, from 1.
    pub(crate) fn line(&self, at: usize) -> usize {
        self.text[..at].matches('\n').count() + 1
    }

    /// `path:line`.
    pub(crate) fn place(&self, at: usize) -> String {
        format!("{}:{}", self.path, self.line(at))
    }

    /// Where `words` stand in the code, not as a part of longer names.
    pub(crate) fn find(&self, words: &str) -> Vec<usize> {
        let is_name = |c: char| c.is_alphanumeric() || c == '_';
        let (first, last) = (words.starts_with(is_name), words.ends_with(is_name));
        let alone = |(at, _): &(usize, &str)| {
            let before = self.code[..*at].ends_with(is_name);
            let after = self.code[at + words.len()..].starts_with(is_name);
            !(first && before || last && after)
        };
        self.code.match_indices(words).filter(alone).map(|(at, _)| at).collect()
    }

    /// Every path that a `use` brings in, groups taken apart: `use std::{fs, net}` gives
    /// `std::fs` and `std::net`.
    pub(crate) fn imports(&self) -> Vec<(usize, String)> {
        let mut paths = Vec::new();
        for at in self.find("use") {
            let Some(end) = self.code[at..].find(';') else { continue };
            let tree: String = self.code[at + 3..at + end].split_whitespace().collect();
            let mut expanded = Vec::new();
            expand("", &tree, &mut expanded);
            paths.extend(expanded.into_iter().map(|path| (at, path)));
        }
        paths
    }

    /// Every function that has a body and is not in a unit test module.
    pub(crate) fn functions(&self) -> Vec<Function> {
        let function = |at: usize| {
            let name_at = at + 2 + self.code[at + 2..].find(|c: char| !c.is_whitespace())?;
            let rest = &self.code[name_at..];
            let name = &rest[..rest.find(|c: char| !(c.is_alphanumeric() || c == '_'))?];
            let open = body(&self.code, name_at)?;
            let close = matching_brace(&self.code, open)?;
            (!name.is_empty()).then(|| Function { name: name.to_owned(), range: at..close + 1 })
        };
        self.find("fn").into_iter().filter(|at| !self.is_in_tests(*at)).filter_map(function).collect()
    }
}

/// Takes a use tree apart.
fn expand(prefix: &str, tree: &str, paths: &mut Vec<String>) {
    let Some(open) = tree.find('{') else {
        paths.push(format!("{prefix}{tree}"));
        return;
    };
    let prefix = format!("{prefix}{}", &tree[..open]);
    let inside = tree[open + 1..].strip_suffix('}').unwrap_or(&tree[open + 1..]);
    let (mut depth, mut start) = (0, 0);
    for (at, c) in inside.char_indices().chain([(inside.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                if start < at {
                    expand(&prefix, &inside[start..at], paths);
                }
                start = at + 1;
            }
            _ => {}
        }
    }
}

/// Where the body that follows a function's name opens; none for a declaration.
fn body(code: &str, from: usize) -> Option<usize> {
    let mut depth = 0;
    for (at, c) in code[from..].char_indices() {
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            ';' if depth == 0 => return None,
            '{' if depth == 0 => return Some(from + at),
            _ => {}
        }
        if depth < 0 {
            return None;
        }
    }
    None
}

/// Where the brace opened at `open` closes.
fn matching_brace(code: &str, open: usize) -> Option<usize> {
    let mut depth = 0;
    for (at, c) in code[open..].char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(open + at);
        }
    }
    None
}

fn test_modules(code: &str) -> Vec<Range<usize>> {
    let module = |(at, _): (usize, &str)| {
        let rest = code[at..].split_once(']')?.1.trim_start();
        let rest = rest.strip_prefix("pub(crate) ").unwrap_or(rest);
        rest.starts_with("mod ").then_some(())?;
        let open = body(code, at + "#[cfg(test)]".len())?;
        Some(at..matching_brace(code, open)? + 1)
    };
    code.match_indices("#[cfg(test)]").filter_map(module).collect()
}

/// Blanks comments and the insides of strings and characters; every other byte keeps its place.
fn strip(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = at + token(&text[at..], at > 0 && is_name_byte(bytes[at - 1]));
        if let Some((from, to)) = blank(&text[at..end]) {
            out[at + from..at + to].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
        }
        at = end;
    }
    String::from_utf8(out).expect("whole characters were blanked")
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Which part of a token is blanked: all of a comment, the inside of a string or character.
fn blank(token: &str) -> Option<(usize, usize)> {
    if token.starts_with("//") || token.starts_with("/*") {
        return Some((0, token.len()));
    }
    let quote = token.find(['"', '\''])?;
    let close = token.rfind(['"', '\'']).filter(|close| *close > quote)?;
    Some((quote + 1, close))
}

/// The length of the comment, string or character that `rest` starts with, or of one character
/// of anything else.
fn token(rest: &str, after_name: bool) -> usize {
    let one = rest.chars().next().map_or(1, char::len_utf8);
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return block_comment(rest);
    }
    if rest.starts_with('"') {
        return quoted(rest, '"');
    }
    if let Some(inside) = rest.strip_prefix('\'') {
        let width = inside.chars().next().map_or(0, char::len_utf8);
        let is_character = inside.starts_with('\\') || inside[width..].starts_with('\'');
        return if is_character { quoted(rest, '\'') } else { one };
    }
    if !after_name && let Some(raw) = rest.strip_prefix('r').or_else(|| rest.strip_prefix("br")) {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            let end = format!("\"{}", "#".repeat(hashes));
            let start = rest.len() - raw.len() + hashes + 1;
            return rest[start..].find(&end).map_or(rest.len(), |at| start + at + end.len());
        }
    }
    one
}

fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest[at..].starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_strings_and_characters_are_blanked_and_code_is_not() {
        let text =
            "let a = \"x{\\\"y\"; // z{\nlet b = r#\"q\"{\"#; let c = '{'; let d: &'a str = '\\''; /* { /* } */ */ e{}";
        let code = strip(text);
        assert_eq!(code.len(), text.len());
        assert_eq!(code.matches(['{', '}']).collect::<String>(), "{}");
        for kept in ["let a = ", "let b = r#", "let c = '", "&'a str"] {
            assert!(code.contains(kept), "{kept:?} in {code:?}");
        }
    }

    #[test]
    fn functions_are_found_with_their_lengths_and_tests_are_not() {
        let text = "//! x\nfn one() {\n    if x { y }\n}\ntrait T { fn no(a: [u8; 2]); fn two() {} }\n\
                    type F = fn(u8);\n#[cfg(test)]\nmod tests {\n    fn hidden() {}\n}\n";
        let source = Source::new("a/src/b.rs", text);
        let functions = source.functions();
        let names: Vec<_> = functions.iter().map(|function| function.name.as_str()).collect();
        assert_eq!(names, ["one", "two"]);
        assert_eq!(source.line(functions[0].range.end) - source.line(functions[0].range.start), 2);
        assert_eq!(source.lines_without_tests(), 6);
    }

    #[test]
    fn grouped_imports_are_taken_apart() {
        let source = Source::new("a.rs", "use std::{fs, io::{self, Read}};\nuse a::b as c;\n");
        let paths: Vec<_> = source.imports().into_iter().map(|(_, path)| path).collect();
        assert_eq!(paths, ["std::fs", "std::io::self", "std::io::Read", "a::basc"]);
    }
}
