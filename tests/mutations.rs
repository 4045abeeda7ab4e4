//! Hostile input: 20,000 seeded mutations for every parser, and the inputs that make each take the most memory. Whatever the
//! damage, a parser returns, holds no more memory than its stated bound, and says on one short line what is wrong.
//!
//! `MOESAIC_MUTATIONS=200000` in the environment asks for more of them, `MOESAIC_MUTATION_SEED=7` for others.

#[path = "mutations/mutate.rs"]
mod mutate;
mod parsers;
#[path = "mutations/worst.rs"]
mod worst;

use moesaic_kernels::rng::Rng;
use parsers::{Counting, Parser, each_parser};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

macro_rules! tests {
    ($($(#[$when:meta])* $name:ident)*) => {
        $(
            $(#[$when])*
            #[test]
            fn $name() {
                mutated(&parsers::$name());
            }
        )*
    };
}
each_parser!(tests);

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a whole number"))
}

fn mutated(parser: &Parser) {
    let seeds = (parser.seeds)();
    // Also what the first call sets up once is not counted against an input.
    let _ = (parser.parse)(&seeds[0]);
    for seed in &seeds {
        assert!(parser.check(seed).accepted, "{}: a seed is refused: {:?}", parser.name, (parser.parse)(seed));
    }
    let words = mutate::words(&seeds);
    let mut rng = Rng::named(setting("MOESAIC_MUTATION_SEED", 1), parser.name);
    let rounds = setting("MOESAIC_MUTATIONS", 20_000);
    let (mut accepted, mut held, mut used) = (0, 0, 0.0f64);
    for _ in 0..rounds {
        let input = mutate::mutate(&seeds, &words, parser.layout, &mut rng);
        let outcome = parser.check(&input);
        accepted += u64::from(outcome.accepted);
        held = held.max(outcome.memory.held);
        used = used.max(outcome.memory.held as f64 / parser.bound.of(input.len()) as f64);
    }
    eprintln!(
        "{}: {accepted} of {rounds} accepted; at most {held} bytes held, {:.0} % of what is allowed",
        parser.name,
        100.0 * used
    );
    // Both outcomes must occur often, or the mutations test one side only.
    assert!((rounds / 100..rounds - rounds / 100).contains(&accepted), "{accepted} of {rounds} accepted");
}

/// What is promised about a parser is tested and fuzzed, or is not promised.
#[test]
fn every_parser_has_a_fuzz_target() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).unwrap();
    for parser in parsers::all() {
        let name = parser.name;
        let target = std::fs::read_to_string(folder.join(format!("targets/{name}.rs"))).expect(name);
        assert!(target.contains(&format!("target!({name})")), "{name}");
        assert!(manifest.contains(&format!("name = \"{name}\"\npath = \"targets/{name}.rs\"\n")), "{name}");
    }
}

/// Not a test: `cargo test --release --test mutations -- --ignored` writes the inputs that fuzzing starts from.
#[test]
#[ignore = "writes fuzz/corpus"]
fn write_fuzz_seeds() {
    for parser in parsers::all() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(parser.name);
        std::fs::create_dir_all(&folder).unwrap();
        for (n, seed) in (parser.seeds)().iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{n}")), seed).unwrap();
        }
    }
}
