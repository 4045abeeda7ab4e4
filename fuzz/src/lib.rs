//! What the fuzz targets share: the parsers of `tests/parsers`, under the allocator that counts.

#[path = "../../tests/parsers/mod.rs"]
pub mod parsers;

pub use libfuzzer_sys::fuzz_target;

#[global_allocator]
static ALLOCATOR: parsers::Counting = parsers::Counting;

/// The target of one parser: any input is checked as in `tests/mutations.rs`, and a broken promise is a crash.
#[macro_export]
macro_rules! target {
    ($parser:ident) => {
        $crate::fuzz_target!(|input: &[u8]| {
            static PARSER: std::sync::LazyLock<$crate::parsers::Parser> = std::sync::LazyLock::new(|| {
                let parser = $crate::parsers::$parser();
                // What the first call sets up once is not counted against an input.
                if let Some(seed) = (parser.seeds)().first() {
                    let _ = (parser.parse)(seed);
                }
                parser
            });
            PARSER.check(input);
        });
    };
}
