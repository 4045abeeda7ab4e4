#![no_main]

moesaic_fuzz::target!(video_webp);
