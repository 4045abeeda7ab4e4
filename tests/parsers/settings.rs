//! Settings in TOML.

use std::path::Path;

use moesaic::eval::Plan;
use moesaic_models::train::forecast::TrainConfig;

use super::{Bound, Layout, Parser};

/// The events of a TOML text, of some 40 bytes each, one or two for each byte of the text, and an error for each that is
/// unexpected; their lists double as they grow.
const TOML: Bound = Bound { base: 128 << 10, per_byte: 320 };

/// An evaluation plan.
pub fn plan() -> Parser {
    Parser {
        name: "plan",
        seeds: || {
            let small = "origins = 2\ncontext = 4\nfetch = \"x\"\n[[series]]\nname = \"y\"\nfile = \"y.csv\"\ncolumn = \"y\"\n\
                         period = 2\nhorizon = 2\n";
            let ours = include_str!("../../benches/zero_shot.toml");
            vec![small.as_bytes().to_vec(), ours.as_bytes().to_vec()]
        },
        parse: |input| {
            let plan = Plan::parse("plans/plan.toml", input).map_err(|error| error.to_string())?;
            assert!((1..=1_000_000).contains(&plan.origins) && !plan.series.is_empty(), "{plan:?}");
            assert_eq!(plan.folder, Path::new("plans"));
            Ok(())
        },
        bound: TOML,
        layout: Layout::Plain,
    }
}

/// The settings of a training run.
pub fn train_config() -> Parser {
    Parser {
        name: "train_config",
        seeds: || {
            let small = "seed = 1\n[model]\nmodel_type = \"time_moe\"\nhidden_size = 8\nintermediate_size = 16\n\
                         num_hidden_layers = 1\nnum_attention_heads = 2\nnum_experts = 4\n[data]\ncontext = [32]\n\
                         tokens = 64\nsynthetic = 1.0\n";
            let ours = include_str!("../../assets/forecaster/train.toml");
            vec![small.as_bytes().to_vec(), ours.as_bytes().to_vec()]
        },
        parse: |input| {
            let path = Path::new("train.toml");
            let config: TrainConfig = moesaic::settings::parse(path, input).map_err(|error| error.to_string())?;
            config.validate().map_err(|error| moesaic::candle_message(&error))?;
            assert!(config.model.parameters().total > 0, "{config:?}");
            Ok(())
        },
        bound: TOML,
        layout: Layout::Plain,
    }
}
