//! Every seed and every input that once failed, through its target.

use std::path::Path;

#[test]
fn every_seed_passes_through_its_target() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    for name in fuzz::names() {
        let target = fuzz::target(name).unwrap();
        let mut count = 0;
        for file in std::fs::read_dir(seeds.join(name)).unwrap_or_else(|error| panic!("{name}: {error}")) {
            let path = file.unwrap().path();
            eprintln!("{}", path.display());
            target(&std::fs::read(&path).unwrap());
            count += 1;
        }
        assert!(count > 0, "{name} has no seed");
    }
}
