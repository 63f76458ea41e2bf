//! A node's data folder: whose it is, and that only one process uses it.
//!
//! Inside:
//!
//! ```text
//! NODE      whose folder this is: format, cluster, node, public key; written once
//! LOCK      locked while a node runs; holds its process id
//! log/      a replica's vote log       blocks/   a storage node's block store
//! ```
//!
//! A folder that this node may not use is refused with the cause and the mend, and nothing in it
//! is changed.

pub(crate) mod durable;
pub(crate) mod header;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use base::{ClusterId, NodeId, PublicKey};

/// The newest layout of a data folder that this program knows.
pub const FORMAT: u32 = 1;

const NODE_FILE: &str = "NODE";
const LOCK_FILE: &str = "LOCK";
const MAGIC: &str = "mangrove-node";
/// Longest `NODE` file that is read, bytes.
const NODE_FILE_BYTES_MAX: u64 = 4096;

/// Whose files these are: written into the header of every file that a node keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "node {} of cluster {}", self.node, self.cluster)
    }
}

/// Why a data folder can't be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// Another process holds it.
    #[error(
        "data folder {} is in use by another node ({}); stop that node, or give this one another folder",
        path.display(),
        pid.map_or("pid not known".to_owned(), |pid| format!("pid {pid}"))
    )]
    InUse {
        /// The folder.
        path: PathBuf,
        /// The process that holds it, if it has said so.
        pid: Option<u32>,
    },
    /// It is another node's.
    #[error(
        "data folder {} belongs to {found}, but this is {wanted}; point this node at its own folder",
        path.display()
    )]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Who asked.
        wanted: String,
    },
    /// It has a layout that this program does not know.
    #[error(
        "data folder {} was written by a newer version (format {format}; this program knows {FORMAT}); \
         start the node with that version or a newer one",
        path.display()
    )]
    Newer {
        /// The folder.
        path: PathBuf,
        /// Its format.
        format: u32,
    },
    /// It is a file, or something in its path is.
    #[error("{} is not a folder; give the node a folder of its own", path.display())]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// It holds something else.
    #[error(
        "folder {} is not empty (it holds {found}) and is not a node's data folder; give the node an empty one",
        path.display()
    )]
    NotEmpty {
        /// The folder.
        path: PathBuf,
        /// One of the things in it.
        found: String,
    },
    /// Its `NODE` file is not what a node wrote.
    #[error(
        "{} is damaged, so it can't be told whose data folder this is; restore that file from a copy",
        path.display()
    )]
    Damaged {
        /// The `NODE` file.
        path: PathBuf,
    },
    /// This user may not write there.
    #[error(
        "data folder {} can't be written ({source}); give this user write access, or choose another folder",
        path.display()
    )]
    NotWritable {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The disk said no.
    #[error("cannot use data folder {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A data folder that is this node's, locked until this value is dropped.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    identity: Identity,
    _lock: File,
}

impl Folder {
    /// Opens the folder at `path` for this node and locks it; creates it on first use (with mode
    /// 0700, and whatever parents are missing).
    ///
    /// # Errors
    /// [`FolderError`]; the folder is then as it was.
    pub fn open(path: &Path, cluster: &ClusterId, node: NodeId, key: &PublicKey) -> Result<Folder, FolderError> {
        let identity = Identity { cluster: *cluster, node };
        let contents = NodeFile { cluster: cluster.to_string(), node: node.to_string(), key: key.to_string() };
        let exists = match fs::metadata(path) {
            Ok(found) if !found.is_dir() => return Err(FolderError::NotAFolder { path: path.into() }),
            Ok(_) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(refuse(path, error)),
        };
        if exists {
            match read_node_file(path)? {
                Some(found) => contents.expect(&found, path)?,
                None => expect_empty(path)?,
            }
        } else {
            DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| refuse(path, error))?;
            path.parent().map_or(Ok(()), durable::sync_folder).map_err(|error| refuse(path, error))?;
        }
        let lock = lock(path)?;
        // Another process may have claimed the folder before the lock was ours.
        match read_node_file(path)? {
            Some(found) => contents.expect(&found, path)?,
            None => {
                durable::create(path, NODE_FILE, contents.to_text().as_bytes()).map_err(|error| refuse(path, error))?
            }
        }
        Ok(Folder { path: path.into(), identity, _lock: lock })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whose it is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }
}

/// What `NODE` says, as text.
#[derive(PartialEq, Eq)]
struct NodeFile {
    cluster: String,
    node: String,
    key: String,
}

impl NodeFile {
    fn to_text(&self) -> String {
        let text = format!("{MAGIC} {FORMAT}\ncluster {}\nnode {}\nkey {}\n", self.cluster, self.node, self.key);
        let crc = crc32c::crc32c(text.as_bytes());
        format!("{text}crc {crc:08x}\n")
    }

    /// Reads `text`; the format first, so that a newer file is called newer and not damaged.
    fn parse(text: &str, path: &Path) -> Result<NodeFile, FolderError> {
        let damaged = || FolderError::Damaged { path: path.join(NODE_FILE) };
        let field = |line: Option<&str>, name: &str| -> Result<String, FolderError> {
            let value = line.and_then(|line| line.strip_prefix(name)).and_then(|rest| rest.strip_prefix(' '));
            value.map(str::to_owned).ok_or_else(damaged)
        };
        let mut lines = text.lines();
        let format = field(lines.next(), MAGIC)?.parse::<u32>().map_err(|_| damaged())?;
        if format > FORMAT {
            return Err(FolderError::Newer { path: path.into(), format });
        }
        let (cluster, node) = (field(lines.next(), "cluster")?, field(lines.next(), "node")?);
        let file = NodeFile { cluster, node, key: field(lines.next(), "key")? };
        if file.to_text() == text { Ok(file) } else { Err(damaged()) }
    }

    fn expect(&self, found: &NodeFile, path: &Path) -> Result<(), FolderError> {
        if self == found {
            return Ok(());
        }
        let same_node = (&self.cluster, &self.node) == (&found.cluster, &found.node);
        let name = |file: &NodeFile| {
            let name = format!("node {} of cluster {}", file.node, file.cluster);
            if same_node { format!("{name} with key {}", file.key) } else { name }
        };
        Err(FolderError::Foreign { path: path.into(), found: name(found), wanted: name(self) })
    }
}

fn read_node_file(path: &Path) -> Result<Option<NodeFile>, FolderError> {
    let file = path.join(NODE_FILE);
    let mut text = String::new();
    match File::open(&file).and_then(|opened| opened.take(NODE_FILE_BYTES_MAX).read_to_string(&mut text)) {
        Ok(_) => NodeFile::parse(&text, path).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(FolderError::Damaged { path: file }),
        Err(source) => Err(FolderError::Io { path: file, source }),
    }
}

/// A folder without `NODE` may hold only what a crash at first use leaves, or a fresh filesystem.
fn expect_empty(path: &Path) -> Result<(), FolderError> {
    for entry in fs::read_dir(path).map_err(|error| refuse(path, error))? {
        let name = entry.map_err(|error| refuse(path, error))?.file_name();
        let name = name.to_string_lossy();
        if ![LOCK_FILE, &durable::temporary(NODE_FILE), "lost+found"].contains(&&*name) {
            return Err(FolderError::NotEmpty { path: path.into(), found: name.into_owned() });
        }
    }
    Ok(())
}

fn lock(path: &Path) -> Result<File, FolderError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let mut file = options.open(path.join(LOCK_FILE)).map_err(|error| refuse(path, error))?;
    if !durable::lock(&file).map_err(|error| refuse(path, error))? {
        let mut text = String::new();
        let _ = file.take(32).read_to_string(&mut text);
        return Err(FolderError::InUse { path: path.into(), pid: text.trim().parse().ok() });
    }
    // The process id is for the other's error message only; a full disk must not stop a node.
    let _ = file.set_len(0).and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()));
    Ok(file)
}

fn refuse(path: &Path, source: io::Error) -> FolderError {
    let path = path.to_path_buf();
    match source.kind() {
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => FolderError::NotAFolder { path },
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            FolderError::NotWritable { path, source }
        }
        _ => FolderError::Io { path, source },
    }
}
