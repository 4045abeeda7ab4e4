//! Writes the inputs that fuzzing starts from: `corpus/{target}/seed-{n}`.

use std::path::Path;

fn main() -> std::io::Result<()> {
    for parser in moesaic_fuzz::parsers::all() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(parser.name);
        std::fs::create_dir_all(&folder)?;
        let seeds = (parser.seeds)();
        for (n, seed) in seeds.iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{n}")), seed)?;
        }
        println!("{}: {} seeds", parser.name, seeds.len());
    }
    Ok(())
}
