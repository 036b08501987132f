//! Fuzz target of the journal: two halves of anything, with and without right checksums.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::record::{self, FIRST_RECORD, HalfId, Piece};
use super::{Disk, DiskFile, FILE_NAMES, JournaledDisk};
use crate::disk::SimDisk;
use crate::fuzzing::Input;

const ROOT: &str = "node/groups";
/// What a record may name, and one that it must not reach.
const NAMES: [&str; 4] = ["1/log", "2/log", "gone", "../outside"];
const OUTSIDE: &str = "node/outside";
const FILE_BYTES: usize = 64;

/// The journal opens or is refused. What opens changes no file outside its directory, makes none, leaves no hole in any, and has
/// nothing left to put back.
pub fn append_journal(data: &[u8]) {
    let mut input = Input::new(data);
    let sim = SimDisk::new(1);
    let root = Path::new(ROOT);
    for dir in ["node", ROOT, "node/groups/1", "node/groups/2"] {
        sim.create_dir_all(Path::new(dir)).expect("a directory");
    }
    let kept: Vec<PathBuf> = vec![root.join(NAMES[0]), root.join(NAMES[1]), PathBuf::from(OUTSIDE)];
    for path in &kept {
        let file = sim.create(path, 0).expect("a file");
        file.write_at(0, &[&[0x55; FILE_BYTES]]).expect("a write");
    }
    for name in FILE_NAMES {
        half(&*sim.create(&root.join(name), 0).expect("a file"), &mut input);
    }
    let open = || JournaledDisk::open_with(Arc::new(sim.clone()), root, 1 << 20).map(drop);
    if open().is_err() {
        return;
    }
    let contents: Vec<_> = kept.iter().map(|path| read(&sim, path)).collect();
    assert_eq!(contents[2], [0x55; FILE_BYTES], "outside");
    for bytes in &contents {
        assert!(bytes.len() <= FILE_BYTES + 3 * data.len(), "a hole in {} bytes", bytes.len());
    }
    assert!(!sim.exists(&root.join("gone")));
    open().expect("what opened once opens again");
    let again: Vec<_> = kept.iter().map(|path| read(&sim, path)).collect();
    assert_eq!(again, contents);
}

fn read(disk: &SimDisk, path: &Path) -> Vec<u8> {
    let file = disk.open(path, 0).expect("the file is there");
    let len = usize::try_from(file.len()).expect("a small file");
    file.read(0, len).expect("its bytes").to_vec()
}

/// Plain bytes, or a header and records with some of their bytes changed.
fn half(file: &dyn DiskFile, input: &mut Input<'_>) {
    let shape = input.byte();
    if shape & 1 == 0 {
        file.write_at(0, &[input.bytes(usize::from(shape))]).expect("a write");
        return;
    }
    let id = HalfId { generation: input.number(), salt: 7 };
    record::begin(file, id).expect("a header");
    let (mut position, mut sequence) = (FIRST_RECORD as u64, 0);
    for _ in 0..shape >> 5 {
        let what = input.byte();
        let (names, offset) = (input.byte(), input.number());
        let bytes = input.bytes(usize::from(what >> 2));
        let name = |at: u8| Path::new(NAMES[usize::from(names >> at & 3)]);
        let pieces = [
            Piece { path: name(0), offset: offset % FILE_BYTES as u64, bytes },
            Piece { path: name(2), offset, bytes: &bytes[..bytes.len() / 2] },
        ];
        let record_bytes = record::bytes_of(&pieces);
        file.allocate(position + record_bytes).expect("space");
        record::write(file, position, id.salt, sequence, &pieces).expect("a record");
        if what & 3 == 3 {
            let at = position + input.number() % record_bytes;
            let old = file.read(at, 1).expect("a byte of the record")[0];
            file.write_at(at, &[&[old ^ input.byte()]]).expect("a write");
        }
        // Also one that is left out, or stands behind a gap.
        position += record_bytes + u64::from(what & 3 == 2) * 8;
        sequence += 1 + u64::from(names >> 7);
    }
    let rest = usize::from(input.byte());
    file.write_at(position, &[input.bytes(rest)]).expect("a write");
}
