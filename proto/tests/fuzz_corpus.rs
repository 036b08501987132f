//! Replays the corpus of the batch codec's fuzz target (`fuzz/`), so that it needs no nightly compiler.

#[path = "../../fuzz/batch.rs"]
mod batch;

#[test]
fn the_kept_inputs_of_batch_decode_pass() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/batch_decode");
    let mut inputs = 0;
    for entry in std::fs::read_dir(dir).expect("the corpus is kept") {
        let path = entry.expect("the corpus can be read").path();
        // Named before it runs, so that a panic says which input it was.
        println!("{}", path.display());
        batch::decode(&std::fs::read(path).expect("an input"));
        inputs += 1;
    }
    assert!(inputs > 0, "{dir} is empty");
    batch::decode(&[]);
}
