#![no_main]

moesaic_fuzz::target!(pickle);
