//! rebuild: what a data directory could hold after the power went, from what it held at the start and the shim's log.
//!
//! Owns: which bytes and names each sync promises, and the choice of what else survives. Never: runs brokers, or knows what
//! the files mean (but for the names of the journals, to leave their syncs out on request).
//!
//! The rules. A file's sync keeps its bytes and its size, not its name. A directory's sync keeps its names. `syncfs` keeps
//! everything. A sync keeps what was done before it began. Of what was never synced any 512-byte sector is there as it was
//! after any one of the writes to it, or as it was before them all; a size is one of those the file had; and any subset of
//! the changes of names happened, in order.
//!
//! Compiled by `scripts/power-loss` with rustc alone. `docs/power-loss.md` explains the test; USAGE says how this is called.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "usage: rebuild --base DIR --log FILE --out DIR --seed N [--ignore SYNC] [--keep HOW]
  DIR of --base is what was on the disk when the broker started; --out must not exist, and is to be copied before it is
  written to, because files that were not changed are links into --base
  SYNC: file | journal | appends | segments | small | directory | syncfs | all: these promise nothing
  HOW: nothing | some | everything of what was not synced; drawn from the seed by default";
/// What a disk writes whole.
const SECTOR_BYTES: u64 = 512;
/// What the page cache writes back together.
const PAGE_BYTES: u64 = 4096;
/// kind 4, fd 4, a 8, b 8, length 8.
const HEADER_BYTES: usize = 32;

type Result<T> = std::result::Result<T, String>;

/// Which syncs promise nothing: to show that the test notices.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ignore {
    Nothing,
    /// `fsync` and `fdatasync` of files.
    File,
    /// Every sync of the hard-state journal.
    Journal,
    /// Every sync of the journal of appends.
    Appends,
    /// Every sync of the segments.
    Segments,
    /// Every sync of all other files.
    Small,
    /// `fsync` of directories, and the names in `syncfs`.
    Directory,
    Syncfs,
    All,
}

impl Ignore {
    fn parse(text: &str) -> Result<Self> {
        Ok(match text {
            "" | "nothing" => Self::Nothing,
            "file" => Self::File,
            "journal" => Self::Journal,
            "appends" => Self::Appends,
            "segments" => Self::Segments,
            "small" => Self::Small,
            "directory" => Self::Directory,
            "syncfs" => Self::Syncfs,
            "all" => Self::All,
            _ => return Err(format!("unknown sync '{text}'\n{USAGE}")),
        })
    }
}

/// What a file is for, told by the name it was created with.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Purpose {
    Journal,
    Appends,
    Segment,
    #[default]
    Small,
}

impl Ignore {
    /// Whether no sync at all keeps such a file.
    fn covers(self, purpose: Purpose) -> bool {
        match self {
            Self::Journal => purpose == Purpose::Journal,
            Self::Appends => purpose == Purpose::Appends,
            Self::Segments => purpose == Purpose::Segment,
            Self::Small => purpose == Purpose::Small,
            Self::All => true,
            Self::Nothing | Self::File | Self::Directory | Self::Syncfs => false,
        }
    }
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }
}

/// A change of a file that no sync has promised yet.
enum Change {
    Write {
        offset: u64,
        bytes: Vec<u8>,
    },
    /// The size becomes this.
    Size(u64),
    /// The size becomes at least this.
    Grow(u64),
}

/// Invariant: `pending` is in the order of the log.
#[derive(Default)]
struct File {
    purpose: Purpose,
    /// Where its durable bytes are, until it is changed; then they are in `durable`.
    base: Option<PathBuf>,
    durable: Option<Vec<u8>>,
    pending: Vec<(u64, Change)>,
}

impl File {
    fn durable(&mut self) -> Result<&mut Vec<u8>> {
        if self.durable.is_none() {
            let bytes = match self.base.take() {
                Some(path) => {
                    fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?
                }
                None => Vec::new(),
            };
            self.durable = Some(bytes);
        }
        self.durable.as_mut().ok_or_else(|| "no bytes".to_owned())
    }

    /// Promises every change before record `covers`.
    fn sync(&mut self, covers: u64) -> Result<()> {
        let pending = std::mem::take(&mut self.pending);
        let durable = self.durable()?;
        let mut rest = Vec::new();
        for (at, change) in pending {
            if at >= covers {
                rest.push((at, change));
                continue;
            }
            match change {
                Change::Size(size) => durable.resize(to_usize(size)?, 0),
                Change::Grow(size) => grow(durable, size)?,
                Change::Write { offset, bytes } => {
                    grow(durable, offset + bytes.len() as u64)?;
                    let offset = to_usize(offset)?;
                    durable[offset..offset + bytes.len()].copy_from_slice(&bytes);
                }
            }
        }
        self.pending = rest;
        Ok(())
    }

    /// What the disk holds after the power went.
    fn lose_power(&mut self, keep: Keep, random: &mut Random, tally: &mut Tally) -> Result<()> {
        let pending = std::mem::take(&mut self.pending);
        if pending.is_empty() {
            return Ok(());
        }
        let durable = self.durable()?;
        let mut sizes = vec![durable.len() as u64];
        let mut pages: BTreeMap<u64, Vec<(u64, &[u8])>> = BTreeMap::new();
        let mut size = durable.len() as u64;
        for (_, change) in &pending {
            match change {
                Change::Size(exact) => size = *exact,
                Change::Grow(least) => size = size.max(*least),
                Change::Write { offset, bytes } => {
                    size = size.max(offset + bytes.len() as u64);
                    let mut at = 0;
                    while at < bytes.len() as u64 {
                        let page = (offset + at) / PAGE_BYTES;
                        let end = ((page + 1) * PAGE_BYTES - offset).min(bytes.len() as u64);
                        let part = &bytes[to_usize(at)?..to_usize(end)?];
                        pages.entry(page).or_default().push((offset + at, part));
                        at = end;
                    }
                }
            }
            sizes.push(size);
        }
        let choice = keep.choose(sizes.len() as u64 - 1, random);
        let chosen = sizes[to_usize(choice)?];
        let largest = sizes.iter().copied().max().unwrap_or(0);
        durable.resize(to_usize(largest)?, 0);
        for writes in pages.values() {
            tally.pages += 1;
            tally.pages_kept += u64::from(keep_page(durable, writes, keep, random)?);
        }
        durable.resize(to_usize(chosen)?, 0);
        Ok(())
    }
}

/// Brings some state of a page that is behind its first so many writes; true if it is not the state before them all.
fn keep_page(
    durable: &mut [u8],
    writes: &[(u64, &[u8])],
    keep: Keep,
    random: &mut Random,
) -> Result<bool> {
    let torn = keep == Keep::Some && random.below(4) == 0;
    let whole = keep.choose(writes.len() as u64, random);
    let mut by_sector: HashMap<u64, u64> = HashMap::new();
    let mut kept = false;
    for (number, (offset, bytes)) in (1_u64..).zip(writes) {
        let mut at = 0;
        while at < bytes.len() as u64 {
            let sector = (offset + at) / SECTOR_BYTES;
            let end = ((sector + 1) * SECTOR_BYTES - offset).min(bytes.len() as u64);
            let upto = if torn {
                *by_sector.entry(sector).or_insert_with(|| random.below(writes.len() as u64 + 1))
            } else {
                whole
            };
            if number <= upto {
                let to = to_usize(offset + at)?;
                let part = &bytes[to_usize(at)?..to_usize(end)?];
                durable[to..to + part.len()].copy_from_slice(part);
                kept = true;
            }
            at = end;
        }
    }
    Ok(kept)
}

/// How much of what was not synced is there all the same; drawn for each power loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keep {
    Nothing,
    Some,
    Everything,
}

impl Keep {
    fn draw(random: &mut Random) -> Self {
        match random.below(6) {
            0 => Self::Nothing,
            1 => Self::Everything,
            _ => Self::Some,
        }
    }

    fn parse(text: &str) -> Result<Option<Self>> {
        Ok(match text {
            "nothing" => Some(Self::Nothing),
            "some" => Some(Self::Some),
            "everything" => Some(Self::Everything),
            "drawn" => None,
            _ => return Err(format!("cannot keep '{text}'\n{USAGE}")),
        })
    }

    /// How many of `count` changes in a row happened.
    fn choose(self, count: u64, random: &mut Random) -> u64 {
        match self {
            Self::Nothing => 0,
            // As likely none or all as something between.
            Self::Some => match random.below(3) {
                0 => 0,
                1 => count,
                _ => random.below(count + 1),
            },
            Self::Everything => count,
        }
    }
}

/// Names of a directory, to the numbers of what they name.
type Names = BTreeMap<String, usize>;

/// Invariant: `live` is `durable` with all of `pending`, in order.
#[derive(Default)]
struct Directory {
    durable: Names,
    live: Names,
    /// Each one change of one or two names that happens whole or not at all.
    pending: Vec<(u64, Vec<(String, Option<usize>)>)>,
}

fn change_names(names: &mut Names, changes: &[(String, Option<usize>)]) {
    for (name, to) in changes {
        match to {
            Some(node) => names.insert(name.clone(), *node),
            None => names.remove(name),
        };
    }
}

impl Directory {
    fn change(&mut self, at: u64, changes: Vec<(String, Option<usize>)>) {
        change_names(&mut self.live, &changes);
        self.pending.push((at, changes));
    }

    fn sync(&mut self, covers: u64) {
        let (before, rest) =
            std::mem::take(&mut self.pending).into_iter().partition(|(at, _)| *at < covers);
        let before: Vec<(u64, Vec<_>)> = before;
        before.iter().for_each(|(_, changes)| change_names(&mut self.durable, changes));
        self.pending = rest;
    }
}

enum Node {
    File(File),
    Directory(Directory),
}

/// What was not synced, and how much of it the chosen disk kept.
#[derive(Default)]
struct Tally {
    records: u64,
    writes: u64,
    syncs_of_files: u64,
    syncs_of_directories: u64,
    syncs_of_all: u64,
    pages: u64,
    pages_kept: u64,
    names: u64,
    names_kept: u64,
}

/// Invariant: node 0 is the data directory.
struct Tree {
    nodes: Vec<Node>,
    open: HashMap<i32, usize>,
    ignore: Ignore,
    tally: Tally,
}

impl Tree {
    fn load(base: &Path, ignore: Ignore) -> Result<Self> {
        let mut tree =
            Self { nodes: Vec::new(), open: HashMap::new(), ignore, tally: Tally::default() };
        tree.load_directory(base)?;
        Ok(tree)
    }

    fn load_directory(&mut self, path: &Path) -> Result<usize> {
        let number = self.nodes.len();
        self.nodes.push(Node::Directory(Directory::default()));
        let shown = |error: std::io::Error| format!("{}: {error}", path.display());
        let mut names = Names::new();
        for entry in fs::read_dir(path).map_err(shown)? {
            let entry = entry.map_err(shown)?;
            let name = entry.file_name().into_string().map_err(|_| "a name is not UTF-8")?;
            let node = if entry.file_type().map_err(shown)?.is_dir() {
                self.load_directory(&entry.path())?
            } else {
                self.add_file(&name, Some(entry.path()))
            };
            names.insert(name, node);
        }
        self.nodes[number] =
            Node::Directory(Directory { durable: names.clone(), live: names, pending: Vec::new() });
        Ok(number)
    }

    fn add_file(&mut self, name: &str, base: Option<PathBuf>) -> usize {
        let purpose = if name.starts_with("hard-state") {
            Purpose::Journal
        } else if name.starts_with("appends") {
            Purpose::Appends
        } else if name.ends_with(".log") {
            Purpose::Segment
        } else {
            Purpose::Small
        };
        self.nodes.push(Node::File(File { purpose, base, ..File::default() }));
        self.nodes.len() - 1
    }

    fn directory(&mut self, number: usize) -> Result<&mut Directory> {
        match &mut self.nodes[number] {
            Node::Directory(directory) => Ok(directory),
            Node::File(_) => Err("a file is used as a directory".to_owned()),
        }
    }

    fn find(&mut self, path: &str) -> Result<usize> {
        let mut at = 0;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let directory = self.directory(at)?;
            at = *directory.live.get(name).ok_or_else(|| format!("{path} is not known"))?;
        }
        Ok(at)
    }

    fn parent(&mut self, path: &str) -> Result<(usize, String)> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.find(parent)?, name.to_owned()))
    }

    fn opened(&mut self, fd: i32, record: u64) -> Result<&mut File> {
        let number = *self
            .open
            .get(&fd)
            .ok_or_else(|| format!("record {record}: descriptor {fd} is not open"))?;
        match &mut self.nodes[number] {
            Node::File(file) => Ok(file),
            Node::Directory(_) => Err(format!("record {record}: a write to a directory")),
        }
    }

    /// Takes in one record; the kinds are those of shim.c.
    fn apply(
        &mut self,
        at: u64,
        kind: u32,
        fd: i32,
        (a, b): (u64, u64),
        payload: Vec<u8>,
    ) -> Result<()> {
        let text =
            |bytes: Vec<u8>| String::from_utf8(bytes).map_err(|_| "a name is not UTF-8".to_owned());
        self.tally.records += 1;
        match kind {
            1 => self.on_open(at, fd, a, &text(payload)?)?,
            2 => drop(self.open.remove(&fd)),
            3 => {
                let node = *self.open.get(&fd).ok_or("a duplicate of an unknown descriptor")?;
                self.open.insert(i32::try_from(a).map_err(|_| "a large descriptor")?, node);
            }
            4 => {
                self.tally.writes += 1;
                self.opened(fd, at)?
                    .pending
                    .push((at, Change::Write { offset: a, bytes: payload }));
            }
            5 => self.opened(fd, at)?.pending.push((at, Change::Size(a))),
            6 => self.opened(fd, at)?.pending.push((at, Change::Grow(a + b))),
            7 => {
                let both = text(payload)?;
                let (from, to) = both.split_once('\n').ok_or("a rename has two names")?;
                let node = self.find(from)?;
                let ((parent, from), (other, to)) = (self.parent(from)?, self.parent(to)?);
                if parent != other {
                    return Err("a rename from directory to directory is not modelled".to_owned());
                }
                self.directory(parent)?.change(at, vec![(from, None), (to, Some(node))]);
            }
            8 => {
                let (parent, name) = self.parent(&text(payload)?)?;
                self.directory(parent)?.change(at, vec![(name, None)]);
            }
            9 => {
                let (parent, name) = self.parent(&text(payload)?)?;
                self.nodes.push(Node::Directory(Directory::default()));
                let node = self.nodes.len() - 1;
                self.directory(parent)?.change(at, vec![(name, Some(node))]);
            }
            10 => self.on_sync(fd, a)?,
            11 => self.on_syncfs(a)?,
            12 => {
                return Err(format!(
                    "the broker does what this test cannot judge: {}",
                    text(payload)?
                ));
            }
            _ => return Err(format!("record {at} is of unknown kind {kind}")),
        }
        Ok(())
    }

    fn on_open(&mut self, at: u64, fd: i32, how: u64, path: &str) -> Result<()> {
        let created = how & 1 != 0;
        let node = if created {
            let (parent, name) = self.parent(path)?;
            let node = self.add_file(&name, None);
            self.directory(parent)?.change(at, vec![(name, Some(node))]);
            node
        } else {
            self.find(path)?
        };
        self.open.insert(fd, node);
        if how & 2 != 0 && !created {
            self.opened(fd, at)?.pending.push((at, Change::Size(0)));
        }
        Ok(())
    }

    fn on_sync(&mut self, fd: i32, covers: u64) -> Result<()> {
        // A descriptor may be gone when its sync is noted: then the close is of later than the sync, and was promised.
        let Some(&number) = self.open.get(&fd) else { return Ok(()) };
        match &mut self.nodes[number] {
            Node::File(file) => {
                self.tally.syncs_of_files += 1;
                let ignored = self.ignore == Ignore::File || self.ignore.covers(file.purpose);
                if !ignored {
                    file.sync(covers)?;
                }
            }
            Node::Directory(directory) => {
                self.tally.syncs_of_directories += 1;
                if !matches!(self.ignore, Ignore::Directory | Ignore::All) {
                    directory.sync(covers);
                }
            }
        }
        Ok(())
    }

    fn on_syncfs(&mut self, covers: u64) -> Result<()> {
        self.tally.syncs_of_all += 1;
        let ignore = self.ignore;
        if matches!(ignore, Ignore::Syncfs | Ignore::All) {
            return Ok(());
        }
        for number in 0..self.nodes.len() {
            match &mut self.nodes[number] {
                Node::File(file) if ignore.covers(file.purpose) => {}
                Node::File(file) if !file.pending.is_empty() => file.sync(covers)?,
                Node::File(_) => {}
                Node::Directory(_) if ignore == Ignore::Directory => {}
                Node::Directory(directory) => directory.sync(covers),
            }
        }
        Ok(())
    }

    /// Chooses what survives, and writes it to `out`.
    fn lose_power(mut self, out: &Path, keep: Option<Keep>, random: &mut Random) -> Result<Tally> {
        let drawn = (Keep::draw(random), Keep::draw(random));
        let (keep_bytes, keep_names) = keep.map_or(drawn, |keep| (keep, keep));
        // Half of the time names survive as a journal keeps them: up to a moment.
        let last = self.tally.records;
        let until = if random.below(2) == 0 { Some(random.below(last + 1)) } else { None };
        self.write_directory(0, out, (keep_bytes, keep_names, until), random)?;
        println!(
            "kept of what was not synced: bytes {keep_bytes:?}, names {keep_names:?}, until {until:?}"
        );
        Ok(self.tally)
    }

    fn write_directory(
        &mut self,
        number: usize,
        out: &Path,
        keep: (Keep, Keep, Option<u64>),
        random: &mut Random,
    ) -> Result<()> {
        let shown = |error: std::io::Error| format!("{}: {error}", out.display());
        fs::create_dir(out).map_err(shown)?;
        let directory = self.directory(number)?;
        let mut names = std::mem::take(&mut directory.durable);
        let (mut changes, mut kept) = (0, 0);
        for (at, change) in std::mem::take(&mut directory.pending) {
            changes += 1;
            let happened = match keep {
                (_, Keep::Nothing, _) => false,
                (_, Keep::Everything, _) => true,
                (_, Keep::Some, Some(until)) => at < until,
                (_, Keep::Some, None) => random.below(2) == 0,
            };
            if happened {
                kept += 1;
                // A file that is renamed twice, the first time in vain, must not end with two names.
                names.retain(|_, node| !change.iter().any(|(_, to)| *to == Some(*node)));
                change_names(&mut names, &change);
            }
        }
        self.tally.names += changes;
        self.tally.names_kept += kept;
        for (name, node) in names {
            let path = out.join(&name);
            let Node::File(file) = &mut self.nodes[node] else {
                self.write_directory(node, &path, keep, random)?;
                continue;
            };
            file.lose_power(keep.0, random, &mut self.tally)?;
            match (&file.base, &file.durable) {
                (Some(base), _) => fs::hard_link(base, &path),
                (None, Some(bytes)) => fs::write(&path, bytes),
                (None, None) => fs::write(&path, b""),
            }
            .map_err(|error| format!("{}: {error}", path.display()))?;
        }
        Ok(())
    }
}

fn to_usize(number: u64) -> Result<usize> {
    usize::try_from(number).map_err(|_| format!("{number} is too large"))
}

fn grow(bytes: &mut Vec<u8>, size: u64) -> Result<()> {
    let size = to_usize(size)?;
    if bytes.len() < size {
        bytes.resize(size, 0);
    }
    Ok(())
}

/// Reads exactly what fits; false at the end of the log, where the last record may be cut off by the kill.
fn fill(log: &mut impl Read, bytes: &mut [u8]) -> Result<bool> {
    match log.read_exact(bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(format!("the log: {error}")),
    }
}

fn replay(tree: &mut Tree, log: &Path) -> Result<()> {
    let file = fs::File::open(log).map_err(|error| format!("{}: {error}", log.display()))?;
    let mut left = file.metadata().map_err(|error| error.to_string())?.len();
    let mut log = std::io::BufReader::with_capacity(1 << 20, file);
    let mut header = [0_u8; HEADER_BYTES];
    let mut at = 0;
    while fill(&mut log, &mut header)? {
        left = left.saturating_sub(HEADER_BYTES as u64);
        let number = |from: usize| {
            let mut bytes = [0_u8; 8];
            bytes.copy_from_slice(&header[from..from + 8]);
            u64::from_ne_bytes(bytes)
        };
        let kind = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]);
        let fd = i32::from_ne_bytes([header[4], header[5], header[6], header[7]]);
        let (a, b, length) = (number(8), number(16), number(24));
        if length > left {
            break;
        }
        let mut payload = vec![0_u8; to_usize(length)?];
        fill(&mut log, &mut payload)?;
        left -= length;
        tree.apply(at, kind, fd, (a, b), payload)
            .map_err(|error| format!("record {at}: {error}"))?;
        at += 1;
    }
    Ok(())
}

fn run(arguments: &[String]) -> Result<()> {
    let mut keep = None;
    let (mut base, mut log, mut out, mut seed, mut ignore) =
        (None, None, None, None, Ignore::Nothing);
    for pair in arguments.chunks(2) {
        let [name, value] = pair else { return Err(USAGE.to_owned()) };
        match name.as_str() {
            "--base" => base = Some(PathBuf::from(value)),
            "--log" => log = Some(PathBuf::from(value)),
            "--out" => out = Some(PathBuf::from(value)),
            "--seed" => seed = value.parse::<u64>().ok(),
            "--keep" => keep = Keep::parse(value)?,
            "--ignore" => ignore = Ignore::parse(value)?,
            _ => return Err(USAGE.to_owned()),
        }
    }
    let (Some(base), Some(log), Some(out), Some(seed)) = (base, log, out, seed) else {
        return Err(USAGE.to_owned());
    };
    let mut tree = Tree::load(&base, ignore)?;
    replay(&mut tree, &log)?;
    let tally = tree.lose_power(&out, keep, &mut Random(seed))?;
    println!(
        "{} writes; syncs: {} of files, {} of directories, {} of all; unsynced pages {}, of them kept {}; \
         unsynced names {}, of them kept {}",
        tally.writes,
        tally.syncs_of_files,
        tally.syncs_of_directories,
        tally.syncs_of_all,
        tally.pages,
        tally.pages_kept,
        tally.names,
        tally.names_kept
    );
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rebuild: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree with one file `f` of two durable pages of ones, open as descriptor 3, and the directory as 4.
    fn tree(ignore: Ignore) -> Tree {
        let mut tree =
            Tree { nodes: Vec::new(), open: HashMap::new(), ignore, tally: Tally::default() };
        tree.nodes.push(Node::Directory(Directory::default()));
        let file = tree.add_file("f.log", None);
        if let Node::File(file) = &mut tree.nodes[file] {
            file.durable = Some(vec![1; 8192]);
        }
        let names = Names::from([("f".to_owned(), file)]);
        tree.nodes[0] =
            Node::Directory(Directory { durable: names.clone(), live: names, pending: Vec::new() });
        tree.open = HashMap::from([(3, file), (4, 0)]);
        tree
    }

    fn file(tree: &mut Tree, number: usize) -> &mut File {
        match &mut tree.nodes[number] {
            Node::File(file) => file,
            Node::Directory(_) => panic!("a directory"),
        }
    }

    fn after(mut tree: Tree, keep: Keep, seed: u64) -> Vec<u8> {
        let file = file(&mut tree, 1);
        file.lose_power(keep, &mut Random(seed), &mut Tally::default()).unwrap();
        file.durable.take().unwrap()
    }

    fn two_writes_and_a_sync_between(ignore: Ignore) -> Tree {
        let mut tree = tree(ignore);
        tree.apply(0, 4, 3, (0, 0), vec![2; 5000]).unwrap();
        tree.apply(1, 10, 3, (1, 0), Vec::new()).unwrap();
        tree.apply(2, 4, 3, (4096, 0), vec![3; 8192]).unwrap();
        tree
    }

    #[test]
    fn a_synced_write_survives_whatever_is_drawn_and_an_unsynced_one_sometimes() {
        let mut seen = [false; 2];
        for seed in 0..200 {
            let bytes = after(two_writes_and_a_sync_between(Ignore::Nothing), Keep::Some, seed);
            assert_eq!(bytes[..4096], [2; 4096]);
            assert!(bytes[4096..5000].iter().all(|byte| [2, 3].contains(byte)));
            seen[usize::from(bytes[4096] == 3)] = true;
        }
        assert_eq!(seen, [true; 2]);
    }

    #[test]
    fn an_ignored_sync_promises_nothing() {
        for ignore in [Ignore::File, Ignore::Segments, Ignore::All] {
            assert_eq!(
                after(two_writes_and_a_sync_between(ignore), Keep::Nothing, 1),
                vec![1; 8192]
            );
        }
        let kept = after(two_writes_and_a_sync_between(Ignore::Journal), Keep::Nothing, 1);
        assert_eq!((kept[0], kept[4999], kept[5000], kept.len()), (2, 2, 1, 8192));
    }

    #[test]
    fn a_sync_does_not_promise_what_was_written_while_it_ran() {
        let mut tree = tree(Ignore::Nothing);
        tree.apply(0, 4, 3, (0, 0), vec![2; 100]).unwrap();
        tree.apply(1, 10, 3, (0, 0), Vec::new()).unwrap();
        assert_eq!(after(tree, Keep::Nothing, 1), vec![1; 8192]);
    }

    #[test]
    fn space_that_was_allocated_is_zero_and_the_size_one_that_the_file_had() {
        for seed in 0..100 {
            let mut tree = tree(Ignore::Nothing);
            tree.apply(0, 6, 3, (8192, 4096), Vec::new()).unwrap();
            let bytes = after(tree, Keep::Some, seed);
            assert!([8192, 12288].contains(&bytes.len()));
            assert!(bytes[8192..].iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn names_need_the_directory_s_own_sync() {
        let mut tree = tree(Ignore::Nothing);
        tree.apply(0, 1, 5, (1, 0), b"new".to_vec()).unwrap();
        tree.apply(1, 10, 5, (1, 0), Vec::new()).unwrap();
        assert!(!tree.directory(0).unwrap().durable.contains_key("new"));
        tree.apply(2, 7, -1, (0, 0), b"new\nf".to_vec()).unwrap();
        tree.apply(3, 10, 4, (1, 0), Vec::new()).unwrap();
        let directory = tree.directory(0).unwrap();
        assert_eq!(directory.durable, Names::from([("f".to_owned(), 1), ("new".to_owned(), 2)]));
        assert_eq!(directory.live, Names::from([("f".to_owned(), 2)]));
        tree.apply(4, 11, 9, (4, 0), Vec::new()).unwrap();
        assert_eq!(tree.directory(0).unwrap().durable, Names::from([("f".to_owned(), 2)]));
    }

    #[test]
    fn a_rename_happens_whole_or_not_at_all_and_no_file_gets_two_names() {
        for seed in 0..200 {
            let mut tree = tree(Ignore::Nothing);
            tree.apply(0, 7, -1, (0, 0), b"f\ng".to_vec()).unwrap();
            tree.apply(1, 7, -1, (0, 0), b"g\nh".to_vec()).unwrap();
            let out =
                std::env::temp_dir().join(format!("rebuild-test-{}-{seed}", std::process::id()));
            tree.lose_power(&out, None, &mut Random(seed)).unwrap();
            let names: Vec<_> =
                fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path()).collect();
            assert_eq!(names.len(), 1, "{names:?}");
            assert_eq!(fs::read(&names[0]).unwrap(), vec![1; 8192]);
            fs::remove_dir_all(&out).unwrap();
        }
    }
}
