//! Secret keys on disk: a small text file that only its owner may read.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use base::SecretKey;
use zeroize::Zeroizing;

const HEADER: &str = "mangrove secret key 1";

/// A secret key and the seed it grew from, from which a user's other secrets are derived too.
#[derive(Clone)]
pub struct KeyFile {
    seed: Zeroizing<[u8; 32]>,
}

/// Why a key file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It could not be read or written.
    #[error("cannot {what} the key file {path}: {source}")]
    Io {
        /// "read" or "write".
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not a key file.
    #[error("{path} is not a mangrove key file (its first line should be \"{HEADER}\")")]
    NotAKey {
        /// Which file.
        path: PathBuf,
    },
    /// Others may read it.
    #[error("{path} can be read by others (mode {mode:o}); run: chmod 600 {path}")]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its mode bits.
        mode: u32,
    },
}

impl KeyFile {
    /// The key that grows from `seed`.
    #[must_use]
    pub fn from_seed(seed: [u8; 32]) -> KeyFile {
        KeyFile { seed: Zeroizing::new(seed) }
    }

    /// Reads a key.
    ///
    /// # Errors
    /// If the file can't be read, is not a key, or is readable by others.
    pub fn read(path: &Path) -> Result<KeyFile, KeyFileError> {
        let io = |source| KeyFileError::Io { what: "read", path: path.into(), source };
        let mode = fs::metadata(path).map_err(io)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyFileError::Exposed { path: path.into(), mode });
        }
        let text = Zeroizing::new(fs::read_to_string(path).map_err(io)?);
        let seed = text.strip_prefix(HEADER).and_then(|rest| hex32(rest.trim()));
        seed.map(KeyFile::from_seed).ok_or_else(|| KeyFileError::NotAKey { path: path.into() })
    }

    /// Writes the key to a new file with mode 600; never over an existing one.
    ///
    /// # Errors
    /// If the file exists or can't be written.
    pub fn write_new(&self, path: &Path) -> Result<(), KeyFileError> {
        let io = |source| KeyFileError::Io { what: "write", path: path.into(), source };
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(io)?;
        let hex: Zeroizing<String> = Zeroizing::new(self.seed.iter().map(|byte| format!("{byte:02x}")).collect());
        writeln!(file, "{HEADER}\n{}", hex.as_str()).and_then(|()| file.sync_all()).map_err(io)
    }

    /// The signing key.
    #[must_use]
    pub fn secret(&self) -> SecretKey {
        SecretKey::from_seed(&self.seed)
    }

    /// The seed, from which a user's sealing keys are derived.
    #[must_use]
    pub fn seed(&self) -> &[u8; 32] {
        &self.seed
    }
}

/// 32 bytes from 64 hexadecimal digits.
fn hex32(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}
