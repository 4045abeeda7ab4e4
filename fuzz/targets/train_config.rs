#![no_main]

moesaic_fuzz::target!(train_config);
