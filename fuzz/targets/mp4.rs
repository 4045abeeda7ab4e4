#![no_main]

moesaic_fuzz::target!(mp4);
