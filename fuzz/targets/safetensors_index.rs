#![no_main]

moesaic_fuzz::target!(safetensors_index);
