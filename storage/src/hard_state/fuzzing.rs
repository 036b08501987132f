//! Fuzz target of the hard-state journal: two files of anything, with and without right checksums.

use std::path::Path;
use std::sync::Arc;

use super::{
    FILE_NAMES, HEADER_BYTES, HardState, HardStateJournal, Kind, encode_header, encode_record,
};
use crate::disk::{Disk, SimDisk};
use crate::fuzzing::Input;

/// The journal opens or is refused; what opens takes a state and gives the same states when opened again.
pub fn hard_state(data: &[u8]) {
    let mut input = Input::new(data);
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(1));
    let dir = Path::new("node");
    disk.create_dir_all(dir).expect("a directory");
    for name in FILE_NAMES {
        let bytes = file(&mut input);
        let file = disk.create(&dir.join(name), 0).expect("a file");
        file.write_at(0, &[&bytes]).expect("a write");
    }
    let Ok((mut journal, mut states)) = HardStateJournal::open(Arc::clone(&disk), dir) else {
        return;
    };
    let put = HardState { term: 9, vote: 1, commit: 4 };
    journal.put(&[(3, put)]).expect("a put");
    states.insert(3, put);
    drop(journal);
    let (_, again) = HardStateJournal::open(disk, dir).expect("what opened once opens again");
    assert_eq!(again, states);
}

fn file(input: &mut Input<'_>) -> Vec<u8> {
    let shape = input.byte();
    let generation = input.number();
    let mut bytes = match shape & 3 {
        0 => return input.bytes(usize::from(shape)).to_vec(),
        1 => vec![0; 24],
        _ => encode_header(generation).to_vec(),
    };
    debug_assert_eq!(bytes.len() as u64, HEADER_BYTES);
    let mut sequence = input.number();
    // Before a file's header is durable nothing is in it but the snapshot: that is what an interrupted
    // compaction leaves.
    let records = if shape & 3 == 1 { (shape >> 4).min(1) } else { shape >> 4 };
    for at in 0..records {
        let what = input.byte();
        let kind = match what & 7 {
            0 => Kind::Snapshot,
            1 => Kind::Remove,
            _ if at == 0 => Kind::Snapshot,
            _ => Kind::Put,
        };
        let states: Vec<(u64, HardState)> = (0..what >> 6)
            .map(|_| {
                let (group, term, vote) = (input.number(), input.number(), input.number());
                (group, HardState { term, vote, commit: input.number() })
            })
            .collect();
        let durable = if what & 8 == 0 { 0 } else { input.number() };
        let mut record = encode_record(kind, &states, generation, sequence, durable);
        if what & 48 == 48 {
            let byte = usize::from(input.byte()) % record.len();
            record[byte] ^= input.byte();
        }
        bytes.extend_from_slice(&record);
        sequence = if what & 48 == 32 { input.number() } else { sequence.wrapping_add(1) };
    }
    bytes
}
